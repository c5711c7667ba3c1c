//! Images over layers: what the guest reads is the image's, or else the layer's, or else zeroes; whatever is written, zeroed, discarded or
//! grown, and however the layer ends.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow2_core::blocking::{self, Image, block_on, check, create, create_over};
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Limits, Storage};
use qcow2_core::{
    Backing, CreateOptions, ErrorKind, FileLayers, Format, IoError, Layer, LayerRead, OpenError,
    OpenOptions, Raw, Repair, Source, Zeroing,
};

use crate::draws::draws;
use crate::shown::same;

const NAME: &str = "base.raw";
const SIZE: u64 = 24 << 10;

fn over() -> Backing {
    Backing::new(NAME, Format::Raw)
}

fn raw(bytes: Vec<u8>) -> Arc<dyn Layer> {
    Arc::new(block_on(Raw::new(MemoryStorage::new(bytes))).expect("memory does not fail"))
}

/// Bytes that differ from unit to unit and are never zero.
fn base(len: usize) -> Vec<u8> {
    (0..len).map(|at| 1 + (at / 512 * 7 + at % 5) as u8 % 250).collect()
}

fn read(image: &Image<MemoryStorage>, len: usize) -> Vec<u8> {
    let mut found = vec![0xee; len];
    image.read(0, &mut found).expect("nothing fails");
    found
}

/// One life of an image over a raw layer of `below` bytes, against a disk that is an array.
fn live(seed: u64, options: CreateOptions, below: usize) {
    let what = format!("seed {seed}, {options:?}, a layer of {below} bytes");
    let layer = raw(base(below));
    let storage = MemoryStorage::default();
    create_over(&storage, &options, &over()).expect("there is room");
    let mut size = options.virtual_size as usize;
    let mut disk = base(below);
    disk.resize(below.max(4 * SIZE as usize), 0);
    disk[size.min(below)..].fill(0);
    let cluster = 1usize << options.cluster_bits;
    let mut draws = draws(seed);
    let mut draw = |below: u64| draws(below as usize) as u64;
    for _ in 0..4 {
        let open = OpenOptions::new().growth(0);
        let image = Image::open_over(storage.clone(), layer.clone(), open).expect("in order");
        same(&read(&image, size), &disk[..size], &what);
        for step in 0..40 {
            let at = draw(size as u64 / 512) as usize * 512;
            let len = (draw(3 * cluster as u64 / 512) as usize + 1) * 512;
            let end = (at + len).min(size);
            let (from, count) = (at as u64, (end - at) as u64);
            match draw(13) {
                0..=4 => {
                    let byte = 100 + step as u8;
                    image.write(from, &vec![byte; end - at]).expect("there is room");
                    disk[at..end].fill(byte);
                }
                5 | 6 => {
                    image.write_zeroes(from, count, Zeroing::Keep).expect("there is room");
                    disk[at..end].fill(0);
                }
                7 | 8 => {
                    image.write_zeroes(from, count, Zeroing::Free).expect("there is room");
                    disk[at..end].fill(0);
                }
                9 => {
                    image.discard(from, count).expect("there is room");
                    let last = if end == size { end.div_ceil(cluster) } else { end / cluster };
                    for whole in at.div_ceil(cluster)..last {
                        let start = whole * cluster;
                        // In version 2 nothing can hide the layer, so it stays as it is.
                        if options.version == 3 || start >= below {
                            disk[start..(start + cluster).min(size)].fill(0);
                        }
                    }
                }
                10 => image.flush().expect("nothing fails"),
                11 => {
                    image.uncover(from, count).expect("there is room");
                    let last = if end == size { end.div_ceil(cluster) } else { end / cluster };
                    let shown = base(below);
                    let start = at.div_ceil(cluster) * cluster;
                    let whole = start..(last * cluster).min(size).max(start);
                    let there = whole.start.min(below)..whole.end.min(below);
                    disk[whole.clone()].fill(0);
                    disk[there.clone()].copy_from_slice(&shown[there]);
                }
                _ if size < 4 * SIZE as usize => {
                    size += 512 * (1 + draw(9) as usize);
                    size = size.min(4 * SIZE as usize);
                    image.grow(size as u64).expect("there is room");
                }
                _ => {}
            }
            same(&read(&image, size), &disk[..size], &format!("{what}, step {step}"));
        }
        if draw(2) == 0 {
            image.close().expect("nothing fails");
        } else {
            image.flush().expect("nothing fails");
            drop(image);
            check(&storage, Repair::All).expect("an image");
        }
        let report = check(&storage, Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{what}: {report:?}");
    }
}

#[test]
#[cfg_attr(not(turn = "9"), ignore = "its turn is at another commit; CI=1 runs all")]
fn the_guest_reads_the_layer_where_the_image_says_nothing() {
    let mut seed = 0;
    for version in [2, 3] {
        for bits in [9, 10, 12] {
            for lazy in [false, version == 3] {
                // Shorter, longer, empty, not made of units, and ending inside the last cluster of the disk.
                let ends = [0, 700, 8 << 10, 20_000, SIZE as usize, 60_001, 4 * SIZE as usize];
                for below in ends {
                    seed += 1;
                    let options = CreateOptions::new(SIZE - 512 * (seed % 3));
                    let options = options.version(version).cluster_bits(bits).lazy_refcounts(lazy);
                    live(seed, options, below);
                }
            }
        }
    }
}

#[test]
fn a_read_map_says_where_the_layer_shows() {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(8192).cluster_bits(9);
    create_over(&storage, &options, &over()).expect("there is room");
    let layer = raw(base(3 * 512 + 100));
    let image = block_on(qcow2_core::Image::open_over(storage, layer, OpenOptions::new()))
        .expect("in order");
    assert_eq!(image.below().expect("it is there").size(), 3 * 512 + 100);
    let sources = |offset, len| {
        let map = block_on(image.map_read(offset, len)).expect("nothing fails");
        map.extents().iter().map(|extent| (extent.len, extent.source)).collect::<Vec<_>>()
    };
    // The cluster in which the layer ends is the layer's, and what follows is zeroes: without a table and with one.
    let before = [(2048, Source::Below), (6144, Source::Zeroes)];
    assert_eq!(sources(0, 8192), before);
    block_on(image.write_zeroes(512, 512, Zeroing::Free)).expect("there is room");
    let after = [
        (512, Source::Below),
        (512, Source::Zeroes),
        (1024, Source::Below),
        (6144, Source::Zeroes),
    ];
    assert_eq!(sources(0, 8192), after);
}

/// A layer that cannot be read.
#[derive(Debug)]
struct Broken;

impl Layer for Broken {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, offset: u64, buf: IoBuf) -> LayerRead<'_> {
        let source = std::io::Error::other("gone");
        let error = IoError::Storage { action: "reading data", offset, source };
        Box::pin(std::future::ready((buf, Err(error))))
    }
}

#[test]
fn a_layer_that_fails_fails_what_needs_it() {
    let storage = MemoryStorage::default();
    create_over(&storage, &CreateOptions::new(SIZE).cluster_bits(10), &over()).expect("room");
    let image = Image::open_over(storage.clone(), Arc::new(Broken), OpenOptions::new());
    let image = image.expect("nothing is read yet");
    let error = image.read(0, &mut [0; 512]).expect_err("it is the layer's");
    assert_eq!(error.kind(), ErrorKind::Storage);
    let text = "in the layer below: reading data at host offset 0x0 failed: gone";
    assert_eq!(error.to_string(), text);
    // A part of a cluster needs the rest of it, a whole one nothing; and the failed write has taken nothing for good.
    let error = image.write(512, &[1; 512]).expect_err("the rest is the layer's");
    assert_eq!(error.to_string(), text);
    image.write(1024, &[2; 1024]).expect("all of it is new");
    let mut found = [0; 1024];
    image.read(1024, &mut found).expect("it is the image's");
    assert_eq!(found, [2; 1024]);
    image.close().expect("nothing fails");
    assert!(check(&storage, Repair::None).expect("an image").findings.is_empty());
}

#[test]
fn an_image_over_a_layer_is_not_opened_without_it_and_no_other_one_with_it() {
    let storage = MemoryStorage::default();
    create_over(&storage, &CreateOptions::new(SIZE), &over()).expect("there is room");
    let error = Image::open(storage.clone(), OpenOptions::new()).expect_err("no layer");
    assert_eq!(
        error.to_string(),
        "cannot open the image: it is over the backing file \"base.raw\", which has to be opened first"
    );
    let plain = MemoryStorage::default();
    create(&plain, &CreateOptions::new(SIZE)).expect("there is room");
    let error = Image::open_over(plain, raw(vec![]), OpenOptions::new()).expect_err("no name");
    assert_eq!(error.to_string(), "cannot open the image: it names no backing file to be over");
    assert!(check(&storage, Repair::None).expect("a check needs no layer").findings.is_empty());
}

#[test]
fn a_layer_has_a_name() {
    let storage = MemoryStorage::default();
    let nameless = Backing::new("", Format::Raw);
    let error = create_over(&storage, &CreateOptions::new(SIZE), &nameless).expect_err("no name");
    assert_eq!(error.to_string(), "cannot create the image: a backing file without a name");
    assert_eq!(storage.to_vec(), []);
}

/// A storage of sectors of 4,096 bytes, which takes nothing else.
#[derive(Debug)]
struct Sectors(MemoryStorage);

const SECTOR: usize = 4096;

impl Storage for Sectors {
    fn limits(&self) -> Limits {
        Limits { alignment: SECTOR, max_transfer: 2 * SECTOR, ..self.0.limits() }
    }

    async fn len(&self) -> io::Result<u64> {
        self.0.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        let whole = offset.is_multiple_of(SECTOR as u64) && buf.len().is_multiple_of(SECTOR);
        assert!(whole && buf.len() <= 2 * SECTOR, "{} bytes at {offset}", buf.len());
        assert!(buf.is_aligned(SECTOR), "a buffer at {:?}", buf.as_ptr());
        self.0.read(offset, buf).await
    }

    async fn write(&self, offset: u64, buf: IoBuf, how: Durability) -> (IoBuf, io::Result<()>) {
        self.0.write(offset, buf, how).await
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.0.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.0.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.0.flush().await
    }

    async fn settle(&self) -> io::Result<()> {
        self.0.settle().await
    }
}

/// Goal: the sectors of an image and of its layer have nothing to do with each other. Method: each of the two, both, and neither, on
/// long ones; reads of every place and length by half sectors, and a write of a part of a cluster.
#[test]
fn a_layer_has_sectors_of_its_own() {
    const LEN: usize = 5 * SECTOR + 700;
    let sectors = |bytes| MemoryStorage::new(bytes);
    for (above, below) in [(false, true), (true, false), (true, true)] {
        let layer: Arc<dyn Layer> = if below {
            Arc::new(block_on(Raw::new(Sectors(sectors(base(LEN))))).expect("nothing fails"))
        } else {
            raw(base(LEN))
        };
        let storage = MemoryStorage::default();
        let options = CreateOptions::new(8 * SECTOR as u64).cluster_bits(13);
        create_over(&storage, &options, &over()).expect("there is room");
        let mut wanted = base(LEN);
        wanted.resize(8 * SECTOR, 0);
        let check = |read: &dyn Fn(u64, &mut [u8]), write: &dyn Fn(u64, &[u8])| {
            let compare = |wanted: &[u8]| {
                for first in (0..16).map(|half| half * SECTOR / 2) {
                    for len in (1..=16 - first / 2048).map(|half| half * SECTOR / 2) {
                        let mut found = vec![0xee; len];
                        read(first as u64, &mut found);
                        same(&found, &wanted[first..first + len], &format!("{above}, {below}"));
                    }
                }
            };
            compare(&wanted);
            let mut wanted = wanted.clone();
            write(8192 + 512, &[77; 1024]);
            write(16_384 + 1536, &[78; 512]);
            wanted[8704..9728].fill(77);
            wanted[17_920..18_432].fill(78);
            compare(&wanted);
        };
        if above {
            let image =
                Image::open_over(AnyStorage::new(Sectors(storage)), layer, OpenOptions::new());
            let image = image.expect("in order");
            check(&|at, data| image.read(at, data).expect("nothing fails"), &|at, data| {
                image.write(at, data).expect("there is room")
            });
        } else {
            let image = Image::open_over(storage, layer, OpenOptions::new()).expect("in order");
            check(&|at, data| image.read(at, data).expect("nothing fails"), &|at, data| {
                image.write(at, data).expect("there is room")
            });
        }
    }
}

/// Entries past the end of the file read as zeroes, and go on doing so when a repair takes them away.
#[test]
fn a_repair_hides_the_layer_where_the_file_was_cut() {
    for version in [2, 3] {
        let storage = MemoryStorage::default();
        let options = CreateOptions::new(SIZE).cluster_bits(9).version(version);
        create_over(&storage, &options, &over()).expect("there is room");
        let layer = raw(base(SIZE as usize));
        let open = || {
            let options = OpenOptions::new().growth(0);
            Image::open_over(storage.clone(), layer.clone(), options).expect("in order")
        };
        let image = open();
        image.write(0, &[9; 512]).expect("there is room");
        image.write(4096, &[9; 512]).expect("there is room");
        image.close().expect("nothing fails");
        storage.with(|bytes| bytes.truncate(bytes.len() - 512));
        let report = check(&storage, Repair::ZeroPastEnd).expect("an image");
        let mut found = [1; 512];
        open().read(4096, &mut found).expect("nothing fails");
        assert_eq!(found, [0; 512], "version {version}: {report:?}");
        // In version 2 no entry says that, so the file is made longer instead.
        let left = check(&storage, Repair::None).expect("an image");
        assert!(left.findings.is_empty(), "{left:?}");
    }
}

#[test]
fn a_chain_is_read_from_the_top_down() {
    let directory = tempfile::tempdir().expect("there is room");
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("base.raw"), base(10_000)).expect("there is room");
    let new = |name: &str, backing: &Backing| {
        let storage = FileStorage::create(path(name), Existing::Refuse).expect("there is room");
        let options = CreateOptions::new(SIZE).cluster_bits(12).lazy_refcounts(true);
        create_over(&storage, &options, backing).expect("there is room");
    };
    let mut layers = FileLayers::within(directory.path()).expect("it is there");
    let mut open = |name: &str| {
        let storage = FileStorage::open(path(name), Access::ReadWrite).expect("it is there");
        Image::open_chain(storage, &mut layers, OpenOptions::new())
    };
    new("middle.qcow2", &over());
    let image = open("middle.qcow2").expect("in order");
    image.write(4096, &[7; 4096]).expect("there is room");
    image.write_zeroes(8192, 4096, Zeroing::Free).expect("there is room");
    image.flush().expect("nothing fails");
    // Left as it is, as if the power had failed: a layer may be dirty, and stays so.
    assert!(image.info().dirty);
    drop(image);
    let before = std::fs::read(path("middle.qcow2")).expect("it is there");
    new("top.qcow2", &Backing::new("middle.qcow2", Format::Qcow2));
    let image = open("top.qcow2").expect("in order");
    image.write(512, &[8; 512]).expect("there is room");
    let mut found = vec![1; SIZE as usize];
    image.read(0, &mut found).expect("nothing fails");
    let mut wanted = base(10_000);
    wanted.resize(SIZE as usize, 0);
    wanted[512..1024].fill(8);
    wanted[4096..8192].fill(7);
    wanted[8192..12_288].fill(0);
    same(&found, &wanted, "three layers");
    // The layers are locked for reading while it is open.
    let error = FileStorage::open(path("middle.qcow2"), Access::ReadWrite).expect_err("in use");
    assert!(error.to_string().contains("in use"), "{error}");
    image.close().expect("nothing fails");
    FileStorage::open(path("middle.qcow2"), Access::ReadWrite).expect("nobody has it open");
    assert!(std::fs::read(path("middle.qcow2")).expect("it is there") == before, "only read");
}

/// Goal: no layer is asked for what is past its end. Method: an image whose layer is a shorter image, which refuses that.
#[test]
fn a_layer_that_is_an_image_may_be_shorter() {
    let below = MemoryStorage::default();
    create(&below, &CreateOptions::new(3 * 512).cluster_bits(9)).expect("there is room");
    let layer = Image::open(below.clone(), OpenOptions::new()).expect("in order");
    layer.write(0, &[4; 3 * 512]).expect("there is room");
    layer.close().expect("nothing fails");
    let layer = block_on(qcow2_core::Image::open(below, OpenOptions::read_only()));
    let storage = MemoryStorage::default();
    create_over(&storage, &CreateOptions::new(SIZE).cluster_bits(12), &over()).expect("room");
    let layer = Arc::new(layer.expect("in order"));
    let image = Image::open_over(storage, layer, OpenOptions::new()).expect("in order");
    let mut wanted = vec![0; SIZE as usize];
    wanted[..3 * 512].fill(4);
    same(&read(&image, SIZE as usize), &wanted, "as it is");
    // What a write leaves of the cluster in which the layer ends is partly past that.
    image.write(512, &[5; 512]).expect("there is room");
    wanted[512..1024].fill(5);
    same(&read(&image, SIZE as usize), &wanted, "written");
}

#[test]
fn what_a_policy_does_not_allow_is_not_opened() {
    let directory = tempfile::tempdir().expect("there is room");
    let inner = directory.path().join("images");
    std::fs::create_dir(&inner).expect("there is room");
    std::fs::write(directory.path().join("secret"), base(512)).expect("there is room");
    std::fs::write(inner.join("base.raw"), base(512)).expect("there is room");
    std::os::unix::fs::symlink("../secret", inner.join("link")).expect("there is room");
    let path = inner.join("top.qcow2");
    let refused = |backing: Backing| {
        let _ = std::fs::remove_file(&path);
        let storage = FileStorage::create(&path, Existing::Refuse).expect("there is room");
        create_over(&storage, &CreateOptions::new(SIZE), &backing).expect("there is room");
        drop(storage);
        let storage = FileStorage::open(&path, Access::ReadOnly).expect("it is there");
        let mut layers = FileLayers::within(&inner).expect("it is there");
        let options = OpenOptions::read_only();
        let opened = Image::open_chain(storage, &mut layers, options);
        opened.expect_err("the policy does not allow it").to_string()
    };
    let says = |backing: Backing, what: &str| {
        let error = refused(backing);
        assert!(error.contains(what), "{error:?} does not say {what:?}");
    };
    says(Backing::new("../secret", Format::Raw), "is not in");
    says(Backing::new("link", Format::Raw), "is not in");
    says(Backing::new("/etc/hostname", Format::Raw), "is not in");
    says(Backing::new("nbd://host/disk", Format::Raw), "has a protocol in front");
    says(Backing::new("missing", Format::Raw), "No such file");
    says(Backing::new("top.qcow2", Format::Qcow2), "is one of the images above it");
    says(Backing::new("base.raw", Format::Qcow2), "not a qcow2 image");
    let of = |format: Option<&str>| Backing {
        name: NAME.into(),
        format: format.map(|format| format.into()),
    };
    says(of(None), "does not say of what format");
    says(of(Some("vmdk")), "of format \"vmdk\" is not supported");
    let error = create_over(
        &MemoryStorage::default(),
        &CreateOptions::new(SIZE).cluster_bits(9),
        &Backing::new("x".repeat(600), Format::Raw),
    );
    let error = error.expect_err("it does not fit in the first cluster").to_string();
    assert!(error.contains("backing_file"), "{error}");
}

#[test]
fn a_chain_without_an_end_is_refused() {
    /// Opens the same image again and again.
    struct Again(MemoryStorage);
    impl qcow2_core::Layers<MemoryStorage> for Again {
        async fn open(
            &mut self,
            _: &Backing,
            _: &[MemoryStorage],
        ) -> std::io::Result<MemoryStorage> {
            Ok(self.0.clone())
        }
    }
    let storage = MemoryStorage::default();
    let itself = Backing::new("itself", Format::Qcow2);
    create_over(&storage, &CreateOptions::new(SIZE).cluster_bits(9), &itself).expect("room");
    let mut layers = Again(storage.clone());
    let opened = blocking::Image::open_chain(storage, &mut layers, OpenOptions::new());
    let error = opened.expect_err("it has no end");
    assert!(matches!(error, OpenError::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("more than 200 layers"), "{error}");
}

/// Goal: a chain of as many layers as are allowed is read to its end, on a thread's usual stack, and one more is refused by name. Method:
/// images in memory, each of which has a cluster of its own.
#[test]
#[cfg_attr(not(turn = "1"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_chain_of_as_many_layers_as_are_allowed_is_read() {
    const MOST: usize = 200;
    /// Opens the next one.
    struct Next(Vec<MemoryStorage>);
    impl qcow2_core::Layers<MemoryStorage> for Next {
        async fn open(
            &mut self,
            _: &Backing,
            above: &[MemoryStorage],
        ) -> io::Result<MemoryStorage> {
            Ok(self.0[above.len()].clone())
        }
    }
    let disk = (MOST as u64 + 2) * 512;
    let below = Backing::new("the next one", Format::Qcow2);
    let chain = |layers: usize| {
        let images = (0..=layers).map(|number| {
            let storage = MemoryStorage::default();
            let (options, open) = (CreateOptions::new(disk).cluster_bits(9), OpenOptions::new());
            let image = if number < layers {
                create_over(&storage, &options, &below).expect("there is room");
                Image::open_over(storage.clone(), raw(Vec::new()), open)
            } else {
                create(&storage, &options).expect("there is room");
                Image::open(storage.clone(), open)
            };
            let image = image.expect("in order");
            image.write(number as u64 * 512, &[1 + number as u8 % 250; 512]).expect("room");
            image.close().expect("nothing fails");
            storage
        });
        let images: Vec<_> = images.collect();
        Image::open_chain(images[0].clone(), &mut Next(images), OpenOptions::new())
    };
    let image = chain(MOST).expect("as many as are allowed");
    let mut wanted = vec![0; disk as usize];
    for (number, cluster) in wanted.chunks_mut(512).enumerate().take(MOST + 1) {
        cluster.fill(1 + number as u8 % 250);
    }
    same(&read(&image, disk as usize), &wanted, "201 images");
    image.close().expect("nothing fails");
    let error = chain(MOST + 1).expect_err("one more");
    assert!(error.to_string().contains("more than 200 layers"), "{error}");
}

/// Bytes of whole units, at random, of so many units.
fn some(draw: &mut impl FnMut(usize) -> usize, units: usize) -> Range<usize> {
    let first = draw(units);
    512 * first..512 * (first + 1 + draw(units - first))
}

/// Layers of different lengths, clusters and entries, written to at random: so many images over a raw one; and how they read.
fn a_chain(
    seed: u64,
    images: usize,
    draw: &mut impl FnMut(usize) -> usize,
) -> (Arc<dyn Layer>, Vec<u8>) {
    let mut wanted = base(some(draw, 60).end + 17);
    let mut layer: Arc<dyn Layer> = raw(wanted.clone());
    for (number, bits) in [9, 14, 12, 10].into_iter().cycle().take(images).enumerate() {
        let units = some(draw, 90).end / 512;
        wanted.resize(512 * units, 0);
        let storage = MemoryStorage::default();
        let options = CreateOptions::new(512 * units as u64).cluster_bits(bits);
        let options = options.extended_l2(bits == 14 && seed.is_multiple_of(2));
        create_over(&storage, &options, &over()).expect("there is room");
        let image = Image::open_over(storage.clone(), Arc::clone(&layer), OpenOptions::new());
        let image = image.expect("in order");
        for write in 0..seed as usize % 4 {
            let bytes = some(draw, units);
            let (at, len) = (bytes.start as u64, bytes.len());
            if write == 1 {
                image.write_zeroes(at, len as u64, Zeroing::Keep).expect("there is room");
                wanted[bytes].fill(0);
            } else {
                let data = vec![(1 + 40 * number + write) as u8; len];
                image.write(at, &data).expect("there is room");
                wanted[bytes].copy_from_slice(&data);
            }
        }
        image.close().expect("nothing fails");
        let opened = qcow2_core::Image::open_over(storage, layer, OpenOptions::read_only());
        layer = Arc::new(block_on(opened).expect("in order"));
    }
    (layer, wanted)
}

/// Goal: a chain reads as its layers say, whatever shows through where. Method: a random chain against a disk that is an array; ranges at
/// random.
#[test]
fn a_chain_reads_as_its_layers_say() {
    for seed in 0..40 {
        let mut draw = draws(seed);
        let images = 1 + seed as usize % 6;
        let (layer, wanted) = a_chain(seed, images, &mut draw);
        let storage = MemoryStorage::default();
        let size = wanted.len();
        create_over(&storage, &CreateOptions::new(size as u64), &over()).expect("there is room");
        let image = Image::open_over(storage, layer, OpenOptions::new()).expect("in order");
        let what = format!("seed {seed}, {images} images");
        same(&read(&image, size), &wanted, &what);
        for _ in 0..8 {
            let bytes = some(&mut draw, size / 512);
            let mut found = vec![0xee; bytes.len()];
            image.read(bytes.start as u64, &mut found).expect("nothing fails");
            same(&found, &wanted[bytes], &what);
        }
    }
}

/// Goal: what images know to be zeroes is copied as what is read of them. Method: a random chain against a disk that is an array; some
/// ranges at random are copied, then all; then the image is opened over another layer, which shows nowhere, and has a cluster only where
/// there is something.
#[test]
fn what_images_know_is_copied_as_what_is_read() {
    for seed in 0..80 {
        let mut draw = draws(seed);
        let images = 1 + seed as usize % 6;
        let (layer, mut wanted) = a_chain(seed, images, &mut draw);
        wanted.resize(some(&mut draw, 120).end, 0);
        let size = wanted.len();
        let bits = [9, 10, 14][draw(3)];
        let options = CreateOptions::new(size as u64).cluster_bits(bits);
        let options = options.extended_l2(bits == 14);
        let shown = layer.size() as usize;
        let storage = MemoryStorage::default();
        create_over(&storage, &options, &over()).expect("there is room");
        let image = Image::open_over(storage.clone(), layer, OpenOptions::new()).expect("in order");
        let what = format!("seed {seed}, {images} images, {options:?}");
        for _ in 0..draw(4) {
            let bytes = some(&mut draw, size / 512);
            image.copy_up(bytes.start as u64, bytes.len() as u64).expect("there is room");
            same(&read(&image, size), &wanted, &what);
        }
        image.copy_up(0, size as u64).expect("there is room");
        same(&read(&image, size), &wanted, &what);
        image.close().expect("nothing fails");
        let report = check(&storage, Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{what}: {report:?}");
        let used = wanted.chunks(1 << bits).filter(|cluster| cluster.iter().any(|&byte| byte != 0));
        assert_eq!(report.allocated_clusters, used.count() as u64, "{what}");
        let other = raw(vec![9; shown.min(size)]);
        let image = Image::open_over(storage, other, OpenOptions::new()).expect("in order");
        same(&read(&image, size), &wanted, &what);
    }
}

/// Goal: an error in a chain says how deep it is. Method: a layer that fails, below as many images as there are.
#[test]
fn an_error_says_how_deep_it_is() {
    for images in 1..5 {
        let mut layer: Arc<dyn Layer> = Arc::new(Broken);
        for _ in 0..images {
            let storage = MemoryStorage::default();
            create_over(&storage, &CreateOptions::new(SIZE), &over()).expect("there is room");
            let opened = qcow2_core::Image::open_over(storage, layer, OpenOptions::read_only());
            layer = Arc::new(block_on(opened).expect("in order"));
        }
        let storage = MemoryStorage::default();
        create_over(&storage, &CreateOptions::new(SIZE), &over()).expect("there is room");
        let image = Image::open_over(storage, layer, OpenOptions::new()).expect("in order");
        let mut error = image.read(0, &mut [0; 512]).expect_err("the layer at the bottom fails");
        let mut deep = 0;
        while let IoError::Below(inner) = error {
            (error, deep) = (*inner, deep + 1);
        }
        assert_eq!(deep, images + 1, "{error}");
    }
}

/// Goal: a layer that is marked corrupt is read as it is, and stays so. Method: the bit in the header of a layer that was written to.
#[test]
fn a_layer_that_is_marked_corrupt_is_read() {
    let below = MemoryStorage::default();
    create(&below, &CreateOptions::new(SIZE).cluster_bits(9)).expect("there is room");
    let layer = Image::open(below.clone(), OpenOptions::new()).expect("in order");
    layer.write(512, &[4; 512]).expect("there is room");
    layer.close().expect("nothing fails");
    let mut bytes = below.to_vec();
    bytes[79] |= 2;
    let below = MemoryStorage::new(bytes.clone());
    assert!(Image::open(below.clone(), OpenOptions::new()).is_err(), "nobody writes to it");
    let storage = MemoryStorage::default();
    let named = Backing::new("below", Format::Qcow2);
    create_over(&storage, &CreateOptions::new(SIZE).cluster_bits(12), &named).expect("room");
    /// Opens the only layer.
    struct Only(MemoryStorage);
    impl qcow2_core::Layers<MemoryStorage> for Only {
        async fn open(&mut self, _: &Backing, _: &[MemoryStorage]) -> io::Result<MemoryStorage> {
            Ok(self.0.clone())
        }
    }
    let image = Image::open_chain(storage, &mut Only(below.clone()), OpenOptions::new());
    let image = image.expect("it is only read");
    image.write(0, &[5; 512]).expect("there is room");
    let mut wanted = vec![0; SIZE as usize];
    wanted[..512].fill(5);
    wanted[512..1024].fill(4);
    same(&read(&image, SIZE as usize), &wanted, "over a corrupt layer");
    image.close().expect("nothing fails");
    assert!(below.to_vec() == bytes, "only read");
}

/// A layer that counts what is read of it.
#[derive(Debug)]
struct Counting(Vec<u8>, Arc<AtomicU64>);

impl Layer for Counting {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> LayerRead<'_> {
        self.1.fetch_add(1, Ordering::Relaxed);
        buf.fill(0);
        let rest = self.0.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Box::pin(std::future::ready((buf, Ok(()))))
    }
}

fn copying(seed: u64, options: &CreateOptions, below: usize) {
    let what = format!("seed {seed}, {options:?}, a layer of {below} bytes");
    let reads = Arc::new(AtomicU64::new(0));
    let (size, cluster) = (options.virtual_size as usize, 1 << options.cluster_bits);
    let mut draw = draws(seed);
    let mut disk = base(below);
    for _ in 0..draw(5) {
        let at = draw(below / 512) * 512;
        disk[at..(at + 512 * draw(80)).min(below)].fill(0);
    }
    let layer = Arc::new(Counting(disk.clone(), reads.clone()));
    let storage = MemoryStorage::default();
    create_over(&storage, options, &over()).expect("there is room");
    disk.resize(size.max(below), 0);
    for _ in 0..4 {
        let open = OpenOptions::new().growth(0);
        let image = Image::open_over(storage.clone(), layer.clone(), open.copy_on_read(true));
        let image = image.expect("in order");
        for step in 0..20 {
            let at = draw(size / 512) * 512;
            let most = [3, 30, 120][draw(3)];
            let end = (at + (1 + draw(most)) * 512).min(size);
            let (from, count) = (at as u64, (end - at) as u64);
            match draw(7) {
                0 | 1 => {
                    image.write(from, &vec![100 + step; end - at]).expect("there is room");
                    disk[at..end].fill(100 + step);
                }
                2 => {
                    let how = [Zeroing::Free, Zeroing::Keep][draw(2)];
                    image.write_zeroes(from, count, how).expect("there is room");
                    disk[at..end].fill(0);
                }
                3 => image.flush().expect("nothing fails"),
                _ => {
                    let mut found = vec![0xee; end - at];
                    image.read(from, &mut found).expect("nothing fails");
                    same(&found, &disk[at..end], &what);
                    let before = reads.load(Ordering::Relaxed);
                    image.read(from, &mut found).expect("nothing fails");
                    same(&found, &disk[at..end], &what);
                    assert_eq!(reads.load(Ordering::Relaxed), before, "{what}: it was copied");
                }
            }
        }
        image.close().expect("nothing fails");
        let report = check(&storage, Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{what}: {report:?}");
        // A session that copies nothing sees the same, and what nobody read was not copied.
        let image = Image::open_over(storage.clone(), layer.clone(), OpenOptions::read_only());
        same(&read(&image.expect("in order"), size), &disk[..size], &what);
        assert!(report.allocated_clusters <= (size as u64).div_ceil(cluster), "{what}");
    }
}

/// Goal: what is read from a layer is in the image afterwards, and nothing reads as anything else for it. Method: random requests against
/// an array, over a shorter and over a longer layer that has holes and counts its reads, with standard entries, subclusters and version 2;
/// each range is read twice, the second time without the layer.
#[test]
fn what_is_read_is_copied() {
    let size = (20 << 10) + 512;
    let small = CreateOptions::new(size).cluster_bits(10);
    let extended = CreateOptions::new((9 << 14) + 1536).cluster_bits(14).extended_l2(true);
    for seed in 0..30 {
        for options in [small, small.version(2), extended] {
            let size = options.virtual_size as usize;
            for below in [size / 3 / 512 * 512, size, 2 * size] {
                copying(seed, &options, below);
            }
        }
    }
}

/// How many host clusters hold data of the guest's, and how many bytes of the disk show the layer.
fn held(image: &qcow2_core::Image<MemoryStorage>, cluster: u64) -> (usize, u64) {
    let size = image.info().virtual_size;
    let map = block_on(image.map_read(0, size)).expect("nothing fails");
    let (mut data, mut shows) = (BTreeSet::new(), 0);
    for extent in map.extents() {
        match extent.source {
            Source::Below => shows += extent.len,
            Source::Zeroes => {}
            source => {
                let first = source.host().expect("it is in the file");
                data.extend(first / cluster..(first + extent.len).div_ceil(cluster));
            }
        }
    }
    (data.len(), shows)
}

/// Goal: what a layer has as zeroes takes no cluster when it is copied, and does not show the layer afterwards. Method: copied at once, and
/// by reading; a layer that is zeroes but for some units, and shorter than the disk; in version 2, where no entry says zeroes, all of it
/// takes clusters.
#[test]
fn zeroes_of_a_layer_are_copied_as_zeroes() {
    const CLUSTERS: u64 = 24;
    for (options, by_reading) in [
        CreateOptions::new(CLUSTERS << 10).cluster_bits(10),
        CreateOptions::new(CLUSTERS << 14).cluster_bits(14).extended_l2(true),
        CreateOptions::new(CLUSTERS << 10).cluster_bits(10).version(2),
    ]
    .into_iter()
    .flat_map(|options| [(options, false), (options, true)])
    {
        let what = format!("{options:?}, by reading: {by_reading}");
        let cluster = 1u64 << options.cluster_bits;
        let one = if options.extended_l2 { cluster / 32 } else { cluster };
        let end = 20 * cluster;
        let mut below = vec![0; end as usize];
        // A part of one cluster, the ends of two neighbours, and what the image has itself.
        for at in [3 * cluster + one / 2, 8 * cluster - 512, 8 * cluster, 11 * cluster] {
            below[at as usize..][..512].fill(5);
        }
        let storage = MemoryStorage::default();
        create_over(&storage, &options, &over()).expect("there is room");
        let open = OpenOptions::new().copy_on_read(by_reading).growth(0);
        let opened = qcow2_core::Image::open_over(storage.clone(), raw(below.clone()), open);
        let image = block_on(opened).expect("in order");
        let buf = IoBuf::copy_of(&vec![6; cluster as usize], 512);
        block_on(image.write(11 * cluster, buf, Durability::Cached)).1.expect("there is room");
        let mut wanted = below;
        wanted.resize(options.virtual_size as usize, 0);
        wanted[11 * cluster as usize..][..cluster as usize].fill(6);

        if by_reading {
            for at in (0..options.virtual_size).step_by(512) {
                let (_, read) = block_on(image.read(at, IoBuf::zeroed(512, 512)));
                read.expect("nothing fails");
            }
        } else {
            block_on(image.copy_up(0, options.virtual_size)).expect("there is room");
        }
        let data = if options.version == 2 { 20 } else { 4 };
        assert_eq!(held(&image, cluster), (data, 0), "{what}");
        block_on(image.close()).expect("nothing fails");
        let report = check(&storage, Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{what}: {report:?}");
        // It needs that layer no more.
        let other = Image::open_over(storage, raw(vec![9; end as usize]), OpenOptions::new());
        same(&read(&other.expect("in order"), wanted.len()), &wanted, &what);
    }
}

/// Goal: of a cluster with subclusters only those take space that are not zeroes in the layer. Method: every second one is, and the image
/// has some of its own; what was copied has data, and what was zeroes is zeroes.
#[test]
fn subclusters_are_copied_one_by_one() {
    let options = CreateOptions::new(1 << 14).cluster_bits(14).extended_l2(true);
    let storage = MemoryStorage::default();
    create_over(&storage, &options, &over()).expect("there is room");
    let mut below = vec![0; 1 << 14];
    below.chunks_mut(512).step_by(2).for_each(|one| one.fill(5));
    let opened =
        qcow2_core::Image::open_over(storage.clone(), raw(below.clone()), OpenOptions::new());
    let image = block_on(opened).expect("in order");
    let buf = IoBuf::copy_of(&[6; 1024], 512);
    block_on(image.write(9 * 512, buf, Durability::Cached)).1.expect("there is room");
    block_on(image.write_zeroes(20 * 512, 1024, Zeroing::Keep)).expect("there is room");
    block_on(image.copy_up(0, 1 << 14)).expect("there is room");
    let map = block_on(image.map_read(0, 1 << 14)).expect("nothing fails");
    let mut kinds = Vec::new();
    for extent in map.extents() {
        let units = extent.len as usize / 512;
        kinds.extend(std::iter::repeat_n(extent.source != Source::Zeroes, units));
        assert_ne!(extent.source, Source::Below);
    }
    drop(map);
    let has_data = |unit: usize| match unit {
        9 | 10 => true,
        20 | 21 => false,
        _ => unit.is_multiple_of(2),
    };
    assert_eq!(kinds, (0..32).map(has_data).collect::<Vec<_>>());
    below[9 * 512..11 * 512].fill(6);
    below[20 * 512..22 * 512].fill(0);
    block_on(image.close()).expect("nothing fails");
    assert!(check(&storage, Repair::None).expect("an image").findings.is_empty());
    let other = Image::open_over(storage, raw(vec![9; 1 << 14]), OpenOptions::new());
    same(&read(&other.expect("in order"), 1 << 14), &below, "without the layer");
}
