//! Encrypted guest data: what reads back and with which passphrase, what the file holds of it, and what is refused.

use qcow2_core::blocking::{Image, block_on, check, create_encrypted};
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf};
use qcow2_core::{
    Backing, CreateOptions, DataFile, Encryption, ErrorKind, FileLayers, Format, Inline, IoError,
    OpenError, OpenOptions, Passphrase, Preallocation, Repair, Source, Zeroing,
};

use crate::aligned::Aligned;
use crate::data_file::layer;
use crate::draws::{draws, random};
use crate::shown::Shown;

const SIZE: usize = 192 << 10;
const UNIT: usize = 512;

fn luks(passphrase: &str) -> Encryption {
    Encryption::luks(&Passphrase::new(passphrase), 1, &mut random(1))
}

/// A unit that no cipher gives by chance.
fn unit(step: u8) -> [u8; UNIT] {
    std::array::from_fn(|at| if at % 8 == 0 { step } else { 0xa5 })
}

/// An image of one kind, a session after the other, against an array. No unit that was written is ever in the file, nor are zeroes in a data
/// cluster.
fn live<S: Shown>(
    seed: u64,
    options: CreateOptions,
    encryption: &Encryption,
    beside: Option<&DataFile>,
    below: Option<usize>,
) {
    let what = format!("seed {seed}, {options:?}, {encryption:?}, {beside:?}, below {below:?}");
    let passphrase = Passphrase::new("one");
    let storage = S::of(Vec::new());
    let below: Option<Vec<u8>> = below.map(|len| unit(0xbb).repeat(len / UNIT));
    let mut disk = below.clone().unwrap_or_default();
    disk.resize(SIZE, 0);
    let backing = Backing::new("below", Format::Raw);
    let backing = below.as_ref().map(|_| &backing);
    // The data file has been used before, and is longer than the disk.
    let data = beside.map(|said| (S::of(vec![0xdd; SIZE + (128 << 10)]), said));
    let given = data.as_ref().map(|(data, said)| (data, *said));
    create_encrypted(&storage, given, &options, encryption, backing).expect("there is room");
    let mut draw = draws(seed);
    for _ in 0..4 {
        let options = OpenOptions::new().growth(0).write_through(draw(4) == 0);
        let layer = below.as_deref().map(layer);
        let file = data.as_ref().map(|(data, _)| data.clone());
        let image = Image::open_encrypted(storage.clone(), &passphrase, file, layer, options);
        let image = image.expect("in order");
        assert!(image.info().encrypted);
        for step in 0..30 {
            let at = draw(disk.len() / UNIT) * UNIT;
            let end = (at + (1 + draw(40)) * UNIT).min(disk.len());
            let (from, len) = (at as u64, (end - at) as u64);
            match draw(10) {
                0..=3 => {
                    let data = unit(step + 1).repeat((end - at) / UNIT);
                    if draw(4) == 0 {
                        image.write_compressed(from, &data, &Inline).expect("there is room");
                    } else {
                        image.write(from, &data).expect("there is room");
                    }
                    disk[at..end].copy_from_slice(&data);
                }
                4 | 5 => {
                    let how = [Zeroing::Free, Zeroing::Keep][draw(2)];
                    image.write_zeroes(from, len, how).expect("there is room");
                    disk[at..end].fill(0);
                }
                6 => {
                    image.discard(from, len).expect("there is room");
                    let size = image.info().cluster_size as usize;
                    let whole = at.next_multiple_of(size)..match end == disk.len() {
                        true => end,
                        false => end / size * size,
                    };
                    let is_hidden = below.is_none() || !what.contains("version: 2");
                    if whole.start < whole.end && is_hidden {
                        disk[whole].fill(0);
                    } else if whole.start < whole.end {
                        // What a layer shows stays, and with it whatever was there.
                        let mut now = vec![0; whole.len()];
                        image.read(whole.start as u64, &mut now).expect("nothing fails");
                        disk[whole].copy_from_slice(&now);
                    }
                }
                7 => {
                    let size = (1 + draw(disk.len() / UNIT)) * UNIT;
                    image.shrink(size as u64).expect("nothing fails");
                    disk.truncate(size);
                }
                8 => {
                    let size = disk.len() + draw(100) * UNIT;
                    image.grow(size as u64).expect("there is room");
                    disk.resize(size, 0);
                }
                _ => image.preallocate(from, len, Preallocation::Full).expect("there is room"),
            }
            let mut read = vec![0; disk.len()];
            image.read(0, &mut read).expect("nothing fails");
            assert!(read == disk, "{what}, step {step}");
        }
        image.close().expect("nothing fails");
        let report = check(&storage, Repair::None).expect("it is an image");
        assert_eq!(report.corruptions + report.leaks, 0, "{what}: {report:?}");
        assert_eq!(report.compressed_clusters, 0, "streams are not enciphered");
    }
    let shown = |bytes: &[u8]| bytes[1..8] == [0xa5; 7] && bytes[9..16] == [0xa5; 7];
    let mut bytes = storage.bytes();
    bytes.extend(data.iter().flat_map(|(data, _)| data.bytes()));
    assert!(!bytes.chunks_exact(UNIT).any(shown), "{what}: it is in the clear");
}

#[test]
#[cfg_attr(not(turn = "5"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_guest_finds_what_it_wrote() {
    let options = CreateOptions::new(SIZE as u64);
    for seed in 0..4 {
        for encryption in [luks("one"), Encryption::aes()] {
            for below in [None, Some(100 << 10)] {
                let old = options.cluster_bits(9).version(2);
                live::<MemoryStorage>(seed, old, &encryption, None, below);
                let extended = options.cluster_bits(15).extended_l2(true).lazy_refcounts(true);
                for beside in [None, Some(&DataFile::new("data"))] {
                    live::<MemoryStorage>(
                        seed,
                        options.cluster_bits(12),
                        &encryption,
                        beside,
                        below,
                    );
                    live::<MemoryStorage>(seed, extended, &encryption, beside, below);
                    live::<Aligned>(seed, options.cluster_bits(13), &encryption, beside, below);
                    live::<Aligned>(seed, extended, &encryption, beside, below);
                }
            }
        }
    }
}

/// Goal: the passphrase opens it, and no other; an image from before LUKS opens with any, and shows its own only the right one.
#[test]
fn a_wrong_passphrase_is_told() {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(1 << 20);
    create_encrypted(&storage, None, &options, &luks("one"), None).expect("there is room");
    let open = |passphrase: &str| {
        let passphrase = Passphrase::new(passphrase);
        Image::open_encrypted(storage.clone(), &passphrase, None, None, OpenOptions::new())
    };
    for wrong in ["two", "", "one "] {
        let error = open(wrong).expect_err("it is another");
        assert!(matches!(error, OpenError::WrongPassphrase), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    open("one").expect("it is the one").write(0, &[1; 512]).expect("there is room");
    let error = Image::open(storage.clone(), OpenOptions::new()).expect_err("it is encrypted");
    assert!(error.to_string().contains("encrypted (LUKS)"), "{error}");
    // A check needs none.
    assert!(check(&storage, Repair::All).expect("it is an image").is_consistent());

    let plain = MemoryStorage::default();
    qcow2_core::blocking::create(&plain, &options).expect("there is room");
    let passphrase = Passphrase::new("one");
    let error = Image::open_encrypted(plain, &passphrase, None, None, OpenOptions::new());
    let error = error.expect_err("it is not encrypted");
    assert!(error.to_string().contains("not encrypted"), "{error}");

    let old = MemoryStorage::default();
    create_encrypted(&old, None, &options, &Encryption::aes(), None).expect("there is room");
    let read = |passphrase: &str, write: bool| {
        let passphrase = Passphrase::new(passphrase);
        let image = Image::open_encrypted(old.clone(), &passphrase, None, None, OpenOptions::new());
        let image = image.expect("any opens it");
        if write {
            image.write(0, &[7; 512]).expect("there is room");
            image.close().expect("nothing fails");
            return [7; 512];
        }
        let mut data = [0; 512];
        image.read(0, &mut data).expect("nothing fails");
        data
    };
    read("one", true);
    assert_eq!(read("one", false), [7; 512]);
    assert_ne!(read("two", false), [7; 512]);
}

/// Goal: who moves bytes past the image is told that they are enciphered, or refused.
#[test]
fn bytes_are_not_moved_past_the_cipher() {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(1 << 20);
    create_encrypted(&storage, None, &options, &luks("one"), None).expect("there is room");
    let passphrase = Passphrase::new("one");
    let open =
        qcow2_core::Image::open_encrypted(storage, &passphrase, None, None, OpenOptions::new());
    let image = block_on(open).expect("in order");
    let data = IoBuf::copy_of(&[7; 4096], 512);
    block_on(image.write(0, data, Durability::Cached)).1.expect("there is room");
    let map = block_on(image.map_read(0, 1 << 20)).expect("in order");
    let [first, rest] = map.extents() else { panic!("{map:?}") };
    let Source::Enciphered(host) = first.source else { panic!("{first:?}") };
    assert_eq!((first.source.host(), rest.source), (Some(host), Source::Zeroes));
    let error = block_on(image.map_write(0, 512)).expect_err("it would be in the clear");
    assert!(matches!(error, IoError::Unsupported(_)), "{error}");
}

/// Goal: clusters that are taken before anything is written there read as zeroes, whether the image is created with them or gets them later.
#[test]
fn what_is_taken_ahead_reads_as_zeroes() {
    let passphrase = Passphrase::new("one");
    for extended in [false, true] {
        for how in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
            let storage = MemoryStorage::default();
            let options = CreateOptions::new(1 << 20).cluster_bits(14).extended_l2(extended);
            let ahead = options.preallocation(how);
            create_encrypted(&storage, None, &ahead, &luks("one"), None).expect("there is room");
            let image = Image::open_encrypted(storage, &passphrase, None, None, OpenOptions::new());
            let image = image.expect("in order");
            let mut data = vec![1; 1 << 20];
            image.read(0, &mut data).expect("nothing fails");
            assert!(data.iter().all(|&byte| byte == 0), "{how:?}, extended {extended}");
            image.write(1024, &[7; 512]).expect("there is room");
            image.read(0, &mut data).expect("nothing fails");
            assert_eq!(data[1024..1536], [7; 512]);
            assert!(data[..1024].iter().chain(&data[1536..]).all(|&byte| byte == 0));
        }
    }
    let options = CreateOptions::new(1 << 20).version(2).preallocation(Preallocation::Metadata);
    let error = create_encrypted(&MemoryStorage::default(), None, &options, &luks("one"), None);
    let error = error.expect_err("no entry of version 2 can say so").to_string();
    assert!(error.contains("version 3"), "{error}");
    // A disk by itself is not encrypted.
    let (image, data) = (MemoryStorage::default(), MemoryStorage::default());
    let raw = DataFile::raw("data");
    let options = CreateOptions::new(1 << 20);
    let error = create_encrypted(&image, Some((&data, &raw)), &options, &luks("one"), None);
    assert!(error.expect_err("it could not be read").to_string().contains("by itself"));
}

fn get(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..][..8].try_into().expect("eight bytes"))
}

/// Where an image says that its encryption header is: the offset in the first extension.
fn keys(bytes: &[u8]) -> u64 {
    let extensions = u64::from(u32::from_be_bytes(bytes[100..104].try_into().expect("four")));
    assert_eq!(get(bytes, extensions) >> 32, 0x0537_be77);
    get(bytes, extensions + 8)
}

/// Goal: no entry and no refcount makes anybody write guest data over the keys. Method: an entry that leads there; counts that say it is free.
#[test]
fn nothing_is_written_over_the_keys() {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(1 << 20);
    create_encrypted(&storage, None, &options, &luks("one"), None).expect("there is room");
    let passphrase = Passphrase::new("one");
    let open = || {
        let options = OpenOptions::new().growth(0);
        Image::open_encrypted(storage.clone(), &passphrase, None, None, options).expect("in order")
    };
    let image = open();
    image.write(0, &[7; 512]).expect("there is room");
    image.close().expect("nothing fails");
    let sound = storage.to_vec();
    let at = keys(&sound);
    let table = get(&sound, get(&sound, 40)) & !(1 << 63);
    storage.with(|bytes| {
        bytes[table as usize..][..8].copy_from_slice(&(at | 1 << 63).to_be_bytes());
    });
    let report = check(&storage, Repair::None).expect("it is an image");
    assert!(report.corruptions > 0, "{report:?}");
    let error = open().write(0, &[8; 512]).expect_err("it is no place for data");
    assert!(error.to_string().contains("the encryption header"), "{error}");

    storage.with(|bytes| bytes.copy_from_slice(&sound));
    let block = get(&sound, get(&sound, 48));
    storage.with(|bytes| bytes[block as usize + (at >> 16) as usize * 2 + 1] = 0);
    let image = open();
    let error = (1..16).find_map(|cluster| image.write(cluster << 16, &[8; 512]).err());
    let error = error.expect("there is no other that is free");
    assert!(error.to_string().contains("the encryption header"), "{error}");
    drop(image);
    // A repair counts it again.
    let report = check(&storage, Repair::All).expect("it is an image");
    assert!(report.is_consistent(), "{report:?}");
    open().write(1 << 16, &[8; 512]).expect("there is room");
}

/// Goal: whatever the encryption header says, opening ends, soon, with what is wrong by name.
#[test]
fn a_hostile_encryption_header_is_refused() {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(1 << 20);
    create_encrypted(&storage, None, &options, &luks("one"), None).expect("there is room");
    let sound = storage.to_vec();
    let at = keys(&sound) as usize;
    let refused = |place: usize, value: &[u8]| {
        storage.with(|bytes| {
            bytes.clear();
            bytes.extend(&sound);
            bytes[place..place + value.len()].copy_from_slice(value);
        });
        let passphrase = Passphrase::new("one");
        let open =
            Image::open_encrypted(storage.clone(), &passphrase, None, None, OpenOptions::new());
        let error = open.expect_err("it is refused");
        (error.kind(), error.to_string())
    };
    let says = |place: usize, value: &[u8], kind: ErrorKind, part: &str| {
        let (found, error) = refused(place, value);
        assert!(found == kind && error.contains(part), "{found:?}: {error}");
    };
    let (damaged, unsupported) = (ErrorKind::Damaged, ErrorKind::Unsupported);
    says(at, b"SKUL", damaged, "magic");
    says(at + 7, &[2], damaged, "version");
    says(at + 8, b"twofish", unsupported, "\"twofish\"");
    says(at + 40, b"cbc-plain", unsupported, "\"cbc-plain64\"");
    says(at + 72, b"md5\0", unsupported, "\"md5\"");
    says(at + 108, &[0xff; 4], damaged, "key bytes");
    says(at + 164, &[0xff; 4], unsupported, "4294967295 rounds");
    says(at + 208, &[0; 4], damaged, "state of a key slot");
    says(at + 212, &[0xff; 4], unsupported, "4294967295 rounds");
    says(at + 248, &[0xff; 4], damaged, "sector of a key slot");
    says(at + 252, &[0xff; 4], damaged, "stripes of a key slot");
    // The extension that leads there: its offset, its length.
    let extension = u32::from_be_bytes(sound[100..104].try_into().expect("four")) as usize;
    says(extension + 8, &(1u64 << 40).to_be_bytes(), damaged, "past the end of the file");
    says(extension + 8, &512u64.to_be_bytes(), damaged, "extension");
    says(extension + 16, &u64::MAX.to_be_bytes(), damaged, "LUKS header");
    says(extension + 16, &0u64.to_be_bytes(), damaged, "LUKS header");
    // One that is whole, of which any unit is lost: it opens, or says so.
    for unit in (at..at + 4096 + 256_000).step_by(16 * UNIT) {
        let (_, error) = refused(unit, &[0x5a; UNIT]);
        assert!(!error.is_empty());
    }
}

/// Goal: encrypted images are opened in a chain, with what the caller's policy says, and written over each other.
#[test]
fn a_policy_knows_passphrases() {
    let directory = tempfile::tempdir().expect("there is a place");
    let path = |name: &str| directory.path().join(name);
    let new = |name: &str| FileStorage::create(path(name), Existing::Refuse).expect("room");
    let options = CreateOptions::new(SIZE as u64).cluster_bits(12);
    create_encrypted(&new("base.qcow2"), None, &options, &luks("one"), None)
        .expect("there is room");
    let backing = Backing::new("base.qcow2", Format::Qcow2);
    create_encrypted(&new("top.qcow2"), None, &options, &Encryption::aes(), Some(&backing))
        .expect("there is room");
    let layers = FileLayers::within(directory.path()).expect("it is there");
    let open = |name: &str, layers: &FileLayers| {
        let storage = FileStorage::open(path(name), Access::ReadWrite).expect("it is there");
        Image::open_chain(storage, &mut layers.clone(), OpenOptions::new())
    };
    let error = open("base.qcow2", &layers).expect_err("nobody says it");
    assert!(error.to_string().contains("needs a passphrase"), "{error}");
    let layers = layers.passphrase(Passphrase::new("one"));
    let base = open("base.qcow2", &layers).expect("in order");
    base.write(0, &[7; 8192]).expect("there is room");
    base.close().expect("nothing fails");
    let top = open("top.qcow2", &layers).expect("in order");
    top.write(512, &[8; 512]).expect("there is room");
    let mut data = [0; 8704];
    top.read(0, &mut data).expect("nothing fails");
    assert_eq!(data[..512], [7; 512]);
    assert_eq!(data[512..1024], [8; 512]);
    assert_eq!(data[1024..8192], [7; 7168]);
    assert_eq!(data[8192..], [0; 512]);
    let wrong = layers.passphrase(Passphrase::new("two"));
    drop(top);
    let error = open("top.qcow2", &wrong).expect_err("the layer is another's");
    assert!(matches!(error, OpenError::Below { .. }), "{error}");
}

/// Goal: neither passphrases nor keys are shown by anything that can be printed.
#[test]
fn nothing_prints_a_secret() {
    let passphrase = Passphrase::new("unspeakable");
    let encryption = Encryption::luks(&passphrase, 1, &mut |bytes| bytes.fill(0x42));
    let shown = format!("{passphrase:?} {encryption:?}");
    assert_eq!(shown, "Passphrase(..) Encryption::luks(..)");
    let storage = MemoryStorage::default();
    create_encrypted(&storage, None, &CreateOptions::new(1 << 20), &encryption, None)
        .expect("room");
    let image = Image::open_encrypted(storage, &passphrase, None, None, OpenOptions::new());
    let shown = format!("{:?}", image.expect("in order"));
    assert!(shown.contains("cipher: Some(Luks(..))"));
}
