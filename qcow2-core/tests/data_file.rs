//! Guest data in a file of its own: what reads back, what the data file holds by itself, and what is refused.

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use qcow2_core::blocking::{Image, block_on, check, create, create_with_data};
use qcow2_core::format::{L2Entry, Mapping, Subclusters};
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf, Limits, Storage};
use qcow2_core::{
    Backing, CreateOptions, DataFile, ErrorKind, File, FileLayers, Format, IoError, Layer,
    OpenError, OpenOptions, Preallocation, Problem, Raw, Repair, Source, Zeroing,
};

use crate::aligned::Aligned;
use crate::draws::draws;
use crate::shown::{Shown, any};

const SIZE: usize = 192 << 10;
const NAME: &str = "data.raw";
const COPIED: u64 = 1 << 63;

/// A layer of these bytes.
pub(crate) fn layer(bytes: &[u8]) -> Arc<dyn Layer> {
    Arc::new(block_on(Raw::new(MemoryStorage::new(bytes.to_vec()))).expect("memory does not fail"))
}

/// An image of one kind, a session after the other, against an array.
fn live<S: Shown>(seed: u64, options: CreateOptions, said: &DataFile, below: Option<usize>) {
    let what = format!("seed {seed}, {options:?}, {said:?}, below {below:?}");
    let storage = S::of(Vec::new());
    // It has been used before, and is longer than the disk.
    let data = S::of(vec![0xdd; SIZE + (128 << 10)]);
    // With holes.
    let byte = |at| if at / 2048 % 5 < 2 { 0 } else { 3 };
    let below: Option<Vec<u8>> = below.map(|len| (0..len).map(byte).collect());
    let mut disk = below.clone().unwrap_or_default();
    disk.resize(SIZE, 0);
    let backing = Backing::new("below", Format::Raw);
    let backing = below.as_ref().map(|_| &backing);
    create_with_data(&storage, &data, &options, said, backing).expect("there is room");
    assert_eq!(block_on(DataFile::of(&storage)).expect("it is an image").as_ref(), Some(said));
    let mut draw = draws(seed);
    for _ in 0..4 {
        let options = OpenOptions::new().growth(0).write_through(draw(4) == 0);
        let below = below.as_deref().map(layer);
        let image = Image::open_with_data(storage.clone(), data.clone(), below, options);
        let image = image.expect("in order");
        for step in 0..30 {
            let at = draw(disk.len() / 512) * 512;
            let end = (at + (1 + draw(40)) * 512).min(disk.len());
            let (from, len) = (at as u64, (end - at) as u64);
            match draw(10) {
                0..=2 => {
                    image.write(from, &vec![100 + step; end - at]).expect("there is room");
                    disk[at..end].fill(100 + step);
                }
                3 | 4 => {
                    let how = [Zeroing::Free, Zeroing::Keep][draw(2)];
                    image.write_zeroes(from, len, how).expect("there is room");
                    disk[at..end].fill(0);
                }
                5 => {
                    image.discard(from, len).expect("there is room");
                    let size = image.info().cluster_size as usize;
                    let whole = at.next_multiple_of(size)..match end == disk.len() {
                        true => end,
                        false => end / size * size,
                    };
                    if whole.start < whole.end {
                        disk[whole].fill(0);
                    }
                }
                6 => {
                    let size = (1 + draw(disk.len() / 512)) * 512;
                    image.shrink(size as u64).expect("nothing fails");
                    disk.truncate(size);
                }
                7 => {
                    let size = disk.len() + draw(100) * 512;
                    image.grow(size as u64).expect("there is room");
                    disk.resize(size, 0);
                }
                8 => image.copy_up(from, len).expect("there is room"),
                _ => image.preallocate(from, len, Preallocation::Full).expect("there is room"),
            }
            if said.raw {
                assert!(data.bytes()[..disk.len()] == disk[..], "{what}, step {step}");
            }
        }
        let mut read = vec![0; disk.len()];
        image.read(0, &mut read).expect("nothing fails");
        assert!(read == disk, "{what}");
        image.close().expect("nothing fails");
        let report = check(&storage, Repair::None).expect("it is an image");
        assert_eq!(report.corruptions + report.leaks, 0, "{what}: {report:?}");
        assert!(data.bytes().len() >= disk.len(), "{what}");
    }
}

/// Goal: whatever is asked of an image with an external data file reads back; a raw data file is the guest's disk after every request.
/// Method: random requests on every kind of entry, eager and lazy, plain and raw, over a layer and not, on storages of both sectors,
/// against an array; nothing leaks.
#[test]
#[cfg_attr(not(turn = "11"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_guest_finds_what_it_wrote() {
    for (seed, lazy) in (0..12).zip([false, true].into_iter().cycle()) {
        for (bits, extended) in [(9, false), (12, false), (16, false), (14, true), (16, true)] {
            let options = CreateOptions::new(SIZE as u64)
                .cluster_bits(bits)
                .lazy_refcounts(lazy)
                .extended_l2(extended);
            live::<MemoryStorage>(seed, options, &DataFile::new(NAME), None);
            live::<MemoryStorage>(seed, options, &DataFile::raw(NAME), None);
            live::<MemoryStorage>(seed, options, &DataFile::new(NAME), Some(100 << 10));
            if bits >= 12 {
                live::<Aligned>(seed, options, &DataFile::new(NAME), None);
                live::<Aligned>(seed, options, &DataFile::raw(NAME), None);
            }
        }
    }
}

fn new_image(said: &DataFile, options: CreateOptions) -> (MemoryStorage, MemoryStorage) {
    let (storage, data) = (MemoryStorage::default(), MemoryStorage::default());
    create_with_data(&storage, &data, &options, said, None).expect("there is room");
    (storage, data)
}

fn open(
    (storage, data): &(MemoryStorage, MemoryStorage),
    options: OpenOptions,
) -> Result<Image<MemoryStorage>, OpenError> {
    Image::open_with_data(storage.clone(), data.clone(), None, options)
}

fn open_async(
    (storage, data): &(MemoryStorage, MemoryStorage),
) -> qcow2_core::Image<MemoryStorage> {
    let (storage, data) = (storage.clone(), data.clone());
    block_on(qcow2_core::Image::open_with_data(storage, data, None, OpenOptions::new()))
        .expect("in order")
}

/// Goal: the image file takes no space for guest data, which lies at its own offset; maps say so.
#[test]
#[cfg_attr(not(turn = "0"), ignore = "its turn is at another commit; CI=1 runs all")]
fn guest_data_is_in_the_data_file_at_its_own_offset() {
    let files = new_image(&DataFile::new(NAME), CreateOptions::new(1 << 30).cluster_bits(16));
    let image = open(&files, OpenOptions::new().growth(0)).expect("in order");
    image.write(0, &[7; 1024]).expect("there is room");
    image.write(5 << 20, &[8; 512]).expect("there is room");
    image.close().expect("nothing fails");
    let length = files.0.to_vec().len();
    assert!(length <= 8 << 16, "{length} bytes of image file");
    files.1.with(|data| {
        assert_eq!(data.len(), 1 << 30);
        assert!(data[..1024] == [7; 1024] && data[5 << 20..(5 << 20) + 512] == [8; 512]);
    });
    let image = open_async(&files);
    let source = |at| block_on(image.map_read(at, 512)).expect("in order").extents()[0].source;
    assert_eq!(source(0), Source::Data(0));
    assert_eq!(source(5 << 20), Source::Data(5 << 20));
    assert_eq!(source(1 << 20), Source::Zeroes);
    let map = block_on(image.map_write(3 << 20, 1024)).expect("there is room");
    let [extent] = map.extents() else { panic!("{map:?}") };
    assert_eq!((extent.file(), extent.offset(), extent.len), (File::Data, 3 << 20, 1024));
}

/// Goal: a read that began before the disk became smaller finds what was there; the next cut takes it. Method: its map is held.
#[test]
fn whoever_reads_what_is_cut_off_reads_what_was_there() {
    let files = new_image(&DataFile::new(NAME), CreateOptions::new(1 << 20).cluster_bits(12));
    let image = open_async(&files);
    let data = IoBuf::copy_of(&[7; 4096], 512);
    block_on(image.write(1 << 19, data, Durability::Cached)).1.expect("there is room");
    let map = block_on(image.map_read(1 << 19, 4096)).expect("in order");
    assert_eq!(map.extents()[0].source, Source::Data(1 << 19));
    block_on(image.shrink(1 << 18)).expect("nothing fails");
    files.1.with(|data| assert!(data[1 << 19..(1 << 19) + 4096] == [7; 4096]));
    drop(map);
    block_on(image.shrink(1 << 17)).expect("nothing fails");
    assert_eq!(files.1.to_vec().len(), 1 << 17);
}

/// Goal: an image and its data file are opened together or not at all, and a data file that is too short is refused with both lengths.
#[test]
fn what_does_not_belong_together_is_refused() {
    let files = new_image(&DataFile::new(NAME), CreateOptions::new(1 << 20));
    let error = Image::open(files.0.clone(), OpenOptions::new()).expect_err("it has a data file");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("\"data.raw\""), "{error}");

    let plain = MemoryStorage::default();
    create(&plain, &CreateOptions::new(1 << 20)).expect("there is room");
    let error = open(&(plain, files.1.clone()), OpenOptions::new()).expect_err("it has none");
    assert!(error.to_string().contains("no external data file"), "{error}");

    files.1.with(|data| data.truncate((1 << 20) - 512));
    for options in [OpenOptions::new(), OpenOptions::read_only()] {
        let error = open(&files, options).expect_err("it is too short");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(
            matches!(error, OpenError::DataFileTooShort { length: 1_048_064, size: 1_048_576 }),
            "{error}"
        );
    }

    let refused = |options: CreateOptions, said: &DataFile, backing: Option<&Backing>| {
        let (storage, data) = (MemoryStorage::default(), MemoryStorage::new(vec![9; 512]));
        let error = create_with_data(&storage, &data, &options, said, backing);
        let error = error.expect_err("it makes no sense");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!((storage.to_vec().len(), data.to_vec()), (0, vec![9; 512]), "{error}");
        error.to_string()
    };
    let options = CreateOptions::new(1 << 20);
    let backing = Backing::new("below", Format::Raw);
    let said = DataFile::raw(NAME);
    assert!(refused(options, &said, Some(&backing)).contains("backing file"));
    assert!(refused(options.version(2), &DataFile::new(NAME), None).contains("version 3"));
    assert!(refused(options, &DataFile::new(""), None).contains("without a name"));
}

/// Goal: an entry that leads anywhere else than to its own place is an error of whoever meets it, and a finding; so is one that is compressed;
/// a missing COPIED bit is put right.
#[test]
fn entries_that_lead_elsewhere_are_refused() {
    for (entry, problem) in [
        (COPIED | 0x3000, "points to 0x3000 of the external data file"),
        (COPIED, "points to 0x0 of the external data file"),
        (1 << 62 | 0x1000, "is compressed"),
    ] {
        let files = new_image(&DataFile::new(NAME), CreateOptions::new(1 << 20).cluster_bits(12));
        let image = open(&files, OpenOptions::new()).expect("in order");
        image.write(0, &[1; 3 * 4096]).expect("there is room");
        image.close().expect("nothing fails");
        let image = open(&files, OpenOptions::read_only()).expect("in order");
        image.read(0, &mut [0; 512]).expect("in order");
        drop(image);
        let at = files.0.with(|bytes| {
            let table = bytes.windows(8).position(|it| it == (COPIED | 0x1000).to_be_bytes());
            let at = table.expect("the entry of guest cluster 1 is there");
            bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
            at
        });
        let image = open(&files, OpenOptions::new()).expect("the header is sound");
        for error in [
            image.read(4096, &mut [0; 512]).expect_err("it leads elsewhere"),
            image.write(4096, &[0; 512]).expect_err("it leads elsewhere"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Damaged);
            assert!(error.to_string().contains(problem), "{error}");
        }
        image.read(0, &mut [0; 512]).expect("the others are sound");
        drop(image);
        let report = check(&files.0, Repair::None).expect("it is an image");
        let Problem::Entry(error) = &report.findings[0].problem else { panic!("{report:?}") };
        assert_eq!((error.at, report.corruptions), (at as u64, 1), "{report:?}");

        files.0.with(|bytes| bytes[at..at + 8].copy_from_slice(&0x1000u64.to_be_bytes()));
        let report = check(&files.0, Repair::None).expect("it is an image");
        assert!(matches!(report.findings[0].problem, Problem::Copied { .. }), "{report:?}");
        check(&files.0, Repair::All).expect("it is an image");
        files.0.with(|bytes| assert_eq!(bytes[at..at + 8], (COPIED | 0x1000).to_be_bytes()));
    }
}

/// Goal: an image whose raw data file has no entry yet, as other programs leave it, comes to have one when it is written to, and is the
/// guest's disk all the time. Method: the L1 table of a new image is emptied; in between a zero mark over bytes that are not zero.
#[test]
fn what_is_not_mapped_in_a_raw_data_file_is_seen_all_the_same() {
    for extended in [false, true] {
        let options = CreateOptions::new(1 << 20).cluster_bits(14).extended_l2(extended);
        let files = new_image(&DataFile::raw(NAME), options);
        let header = files.0.to_vec();
        let l1 = u64::from_be_bytes(header[40..48].try_into().expect("eight bytes")) as usize;
        files.0.with(|bytes| bytes[l1..l1 + 8].fill(0));
        check(&files.0, Repair::All).expect("it is an image");
        let image = open(&files, OpenOptions::new()).expect("in order");
        let mut disk = vec![0; 1 << 20];
        for (at, len, byte) in [(512, 1024, 1), (40 << 10, 64 << 10, 2), (1 << 19, 512, 3)] {
            image.write(at as u64, &vec![byte; len]).expect("there is room");
            disk[at..at + len].fill(byte);
            assert!(files.1.to_vec() == disk);
        }
        image.close().expect("nothing fails");
        let report = check(&files.0, Repair::None).expect("it is an image");
        assert_eq!(report.corruptions + report.leaks, 0, "{report:?}");
    }
}

/// Goal: names are looked up as the caller's policy says: in the image's directory, not outside, not the image itself; the data file is locked.
#[test]
fn a_policy_opens_data_files() {
    let directory = tempfile::tempdir().expect("there is room");
    let path = |name: &str| directory.path().join(name);
    let make = |image: &str, said: &str| {
        let storage = FileStorage::create(path(image), Existing::Refuse).expect("there is room");
        let data = FileStorage::create(path("data.raw"), Existing::Replace).expect("there is room");
        let options = CreateOptions::new(1 << 20);
        create_with_data(&storage, &data, &options, &DataFile::new(said), None)
            .expect("there is room");
    };
    let opened = |image: &str, options| {
        let storage = FileStorage::open(path(image), Access::ReadWrite).expect("it is there");
        let mut layers = FileLayers::within(directory.path()).expect("it is there");
        Image::open_chain(storage, &mut layers, options)
    };
    make("image.qcow2", "data.raw");
    let image = opened("image.qcow2", OpenOptions::new()).expect("in order");
    image.write(4096, &[5; 4096]).expect("there is room");
    let locked = FileStorage::open(path("data.raw"), Access::ReadWrite).expect_err("it is in use");
    assert!(locked.to_string().contains("data.raw"), "{locked}");
    image.close().expect("nothing fails");
    assert_eq!(std::fs::read(path("data.raw")).expect("it is there")[4096..8192], [5; 4096]);

    // A layer may have one too.
    let top = FileStorage::create(path("top.qcow2"), Existing::Refuse).expect("there is room");
    let backing = Backing::new("image.qcow2", Format::Qcow2);
    qcow2_core::blocking::create_over(&top, &CreateOptions::new(1 << 20), &backing)
        .expect("there is room");
    drop(top);
    let image = opened("top.qcow2", OpenOptions::new()).expect("in order");
    let mut read = [0; 512];
    image.read(4096, &mut read).expect("nothing fails");
    assert_eq!(read, [5; 512]);
    drop(image);

    for (number, (said, why)) in [
        ("missing.raw", "No such file"),
        ("../data.raw", "No such file"),
        ("/etc/hostname", "is not in"),
        ("nbd://host/disk", "has a protocol in front"),
        ("bad3.qcow2", "is one of the images"),
    ]
    .into_iter()
    .enumerate()
    .map(|(number, it)| (if it.0.starts_with("bad") { 3 } else { number }, it))
    {
        let name = format!("bad{number}.qcow2");
        let _ = std::fs::remove_file(path(&name));
        make(&name, said);
        let error = opened(&name, OpenOptions::new()).expect_err("it is not allowed").to_string();
        assert!(error.contains(why) && error.contains(said), "{error}");
    }
}

/// A storage in memory whose every change fails, if it is told to.
#[derive(Clone, Debug, Default)]
struct Failing {
    bytes: MemoryStorage,
    fails: bool,
}

impl Failing {
    fn outcome(&self) -> io::Result<()> {
        if self.fails { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
}

impl Storage for Failing {
    fn limits(&self) -> Limits {
        self.bytes.limits()
    }

    async fn len(&self) -> io::Result<u64> {
        self.bytes.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.outcome()?;
        self.bytes.set_len(len).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        match self.outcome() {
            Ok(()) => self.bytes.read(offset, buf).await,
            failed => (buf, failed),
        }
    }

    async fn write(&self, offset: u64, buf: IoBuf, how: Durability) -> (IoBuf, io::Result<()>) {
        match self.outcome() {
            Ok(()) => self.bytes.write(offset, buf, how).await,
            failed => (buf, failed),
        }
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.outcome()?;
        self.bytes.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.bytes.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.bytes.flush().await
    }

    async fn settle(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Goal: whoever reads an error knows in which file it was. Method: every change and read of the data file fails.
#[test]
fn a_data_file_that_fails_is_named() {
    let (storage, mut data) = (Failing::default(), Failing::default());
    let options = CreateOptions::new(1 << 20);
    create_with_data(&any(&storage), &any(&data), &options, &DataFile::new(NAME), None)
        .expect("there is room");
    let image = Image::open_with_data(any(&storage), any(&data), None, OpenOptions::new());
    image.expect("in order").write(4096, &[1; 512]).expect("there is room");
    data.fails = true;
    let image = Image::open_with_data(any(&storage), any(&data), None, OpenOptions::new());
    let image = image.expect("in order");
    for error in [
        image.write(4096, &[2; 512]).expect_err("it fails"),
        image.write(1 << 19, &[2; 512]).expect_err("it fails"),
        image.grow(2 << 20).expect_err("it fails"),
    ] {
        assert!(matches!(error, IoError::DataFile { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Storage);
        assert!(error.to_string().contains("of the external data file failed"), "{error}");
    }
}

/// Goal: what an entry of an image with a data file says is what it was made of, and it leads to its own place only.
#[test]
fn entries_of_a_data_file_round_trip() {
    const PLACE: u64 = u64::MAX;
    for guest in [0, 0x1_0000, 0x7fff_0000] {
        for data in [0, 1, 0x8000_0000, u32::MAX] {
            for zero in [0, 2, u32::MAX].map(|zero| zero & !data) {
                for host in [0, PLACE] {
                    let of = Subclusters { data: if host == 0 { 0 } else { data }, zero };
                    let mapping = Mapping::with_subclusters(host, true, of);
                    let (entry, bitmap) =
                        L2Entry::in_data_file(mapping, guest, true).expect("it is not compressed");
                    let read = |guest| entry.decode_in_data_file(Some(bitmap), 16, guest, PLACE, 0);
                    let (_, is_copied, of) = mapping.subclusters().expect("it is not compressed");
                    let read_back = read(guest).expect("it is its own");
                    let (place, _, read_of) = read_back.subclusters().expect("not compressed");
                    assert_eq!((place, read_of), (host, of), "{mapping:?}, {is_copied}");
                    assert_eq!(read(guest + 0x1_0000).is_err(), host != 0, "{mapping:?}");
                    let Some((entry, 0)) = L2Entry::in_data_file(mapping, guest, false) else {
                        continue;
                    };
                    let read = entry.decode_in_data_file(None, 16, guest, PLACE, 0);
                    assert_eq!(read.expect("it is its own").host(), mapping.host());
                }
            }
        }
    }
}
