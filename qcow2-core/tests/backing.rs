//! What an image says of the layer below it, changed: where names go, what stays, what is refused.

use std::sync::Arc;

use qcow2_core::blocking::{Image, block_on, check, create, create_over};
use qcow2_core::format::Header;
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{Backing, CreateOptions, ErrorKind, Format, IoError, OpenOptions, Raw, Repair};

const SIZE: u64 = 30 << 10;

fn layer() -> Vec<u8> {
    (0..SIZE).map(|at| 1 + (at / 512 % 200) as u8).collect()
}

fn open(storage: &MemoryStorage) -> Image<MemoryStorage> {
    let raw = block_on(Raw::new(MemoryStorage::new(layer()))).expect("memory does not fail");
    let options = OpenOptions::new().growth(0);
    Image::open_over(storage.clone(), Arc::new(raw), options).expect("in order")
}

fn header(storage: &MemoryStorage) -> Header {
    Header::parse(&storage.to_vec()).expect("it has a header")
}

/// What the image says.
fn said(storage: &MemoryStorage) -> Option<Backing> {
    block_on(Backing::of(storage)).expect("it has a header")
}

fn name(len: usize) -> Vec<u8> {
    (0..len).map(|at| b'a' + (at % 23) as u8).collect()
}

/// Every way to say a layer that is tried, none among them.
fn every_layer() -> Vec<Option<Backing>> {
    let lengths = [1, 9, 60, 200, 350, 480, 900, 1023];
    let mut all = vec![None];
    for len in lengths {
        let raw = Backing::new(name(len), Format::Raw);
        all.push(Some(Backing { format: None, ..raw.clone() }));
        all.push(Some(Backing::new(name(len), Format::Qcow2)));
        all.push(Some(raw));
    }
    all
}

/// Goal: an image comes to name any layer from any other, where there is room for both names; all else that it says and holds stays, and
/// what is refused changes nothing. Method: each after each, over clusters of four sizes and both versions, with an extension that nobody
/// knows and fields that nobody knows; the header is compared field by field.
#[test]
#[cfg_attr(not(turn = "3"), ignore = "its turn is at another commit; CI=1 runs all")]
fn an_image_comes_to_name_another_layer() {
    let layers = every_layer();
    let mut refused = 0;
    for (version, bits) in [(2, 9), (3, 9), (3, 10), (2, 12), (3, 12), (3, 16)] {
        for first in layers.iter().flatten() {
            let storage = MemoryStorage::default();
            let options = CreateOptions::new(SIZE).cluster_bits(bits).version(version);
            if create_over(&storage, &options, first).is_err() {
                continue;
            }
            for next in &layers {
                let what = format!("version {version}, {bits}: {first:?} to {next:?}");
                let storage = MemoryStorage::new(storage.to_vec());
                let image = open(&storage);
                image.write(512, &[0xee; 512]).expect("there is room");
                image.flush().expect("nothing fails");
                let (before, old) = (storage.to_vec(), header(&storage));
                match image.set_backing(next.as_ref()) {
                    Ok(()) => assert_eq!(said(&storage), *next, "{what}"),
                    Err(error) => {
                        assert!(matches!(error, IoError::Backing(_)), "{what}: {error}");
                        assert!(storage.to_vec() == before, "{what}: {error}");
                        refused += 1;
                    }
                }
                let mut new = header(&storage);
                // Names of features may be given up; nothing else may.
                let kept = |header: &Header| {
                    let mut header = header.clone();
                    header.backing = None;
                    header.extensions.retain(|it| !matches!(it.kind, 0xe279_2aca | 0x6803_f857));
                    header
                };
                assert_eq!(kept(&new), kept(&old), "{what}");
                // The session goes on, and so does the next one.
                image.write(2048, &[0xdd; 1024]).expect("there is room");
                image.close().expect("nothing fails");
                new.extensions.clear();
                let report = check(&storage, Repair::None).expect("an image");
                assert!(report.findings.is_empty(), "{what}: {report:?}");
                if said(&storage).is_some() {
                    let mut found = vec![0; SIZE as usize];
                    open(&storage).read(0, &mut found).expect("nothing fails");
                    let mut wanted = layer();
                    wanted[512..1024].fill(0xee);
                    wanted[2048..3072].fill(0xdd);
                    assert!(found == wanted, "{what}");
                }
            }
        }
    }
    assert!(refused > 100, "{refused} were refused, for want of room");
}

/// Goal: what lies past the first 512 bytes of the header is left alone, or the change is refused. Method: an extension that nobody knows and
/// that reaches past them, with the format of the layer in front: one as long is changed, none and one more would move it.
#[test]
fn extensions_that_would_move_are_not_touched() {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(SIZE).cluster_bits(12);
    create_over(&storage, &options, &Backing::new("below", Format::Raw)).expect("there is room");
    let mut old = header(&storage);
    old.extensions.retain(|it| it.kind == 0xe279_2aca);
    old.set_extension(0xdead_beef, name(700));
    old.set_backing(b"below");
    let bytes = old.encode().expect("it fits");
    storage.with(|file| {
        file[..4096].fill(0);
        file[..bytes.len()].copy_from_slice(&bytes);
    });
    let image = open(&storage);
    let before = storage.to_vec();
    for next in [None, Some(Backing { name: name(9), format: None })] {
        let error = image.set_backing(next.as_ref()).expect_err("it would move");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("past byte 512"), "{error}");
        assert!(storage.to_vec() == before, "{error}");
    }
    let next = Backing::new("another", Format::Qcow2);
    image.set_backing(Some(&next)).expect("it is as long");
    assert_eq!(said(&storage), Some(next));
    assert_eq!(header(&storage).extensions[1..], old.extensions[1..]);
}

/// Goal: with all of it copied, an image needs its layer no more. Method: copied, then opened without one; pieces of it were written and
/// zeroed before.
#[test]
fn an_image_becomes_one_of_its_own() {
    for extended in [false, true] {
        let bits = if extended { 14 } else { 10 };
        let storage = MemoryStorage::default();
        let options = CreateOptions::new(SIZE).cluster_bits(bits).extended_l2(extended);
        create_over(&storage, &options, &Backing::new("below", Format::Raw))
            .expect("there is room");
        let image = open(&storage);
        image.write(3000, &[0xee; 3000]).expect("there is room");
        image.write_zeroes(10_000, 7000, qcow2_core::Zeroing::Free).expect("there is room");
        let mut wanted = vec![0; SIZE as usize];
        image.read(0, &mut wanted).expect("nothing fails");
        let error = image.copy_up(SIZE, 512).expect_err("past the end");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        image.copy_up(0, SIZE).expect("there is room");
        image.set_backing(None).expect("nothing fails");
        image.close().expect("nothing fails");
        let report = check(&storage, Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{report:?}");
        let image = Image::open(storage, OpenOptions::new()).expect("it needs no layer");
        let mut found = vec![0; SIZE as usize];
        image.read(0, &mut found).expect("nothing fails");
        assert!(found == wanted);
    }
}

/// Goal: an image that is open without a layer does not come to show one. Method: refused by name, and nothing is changed.
#[test]
fn an_image_without_a_layer_gets_none() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(SIZE)).expect("there is room");
    let before = storage.to_vec();
    let image = Image::open(storage.clone(), OpenOptions::new()).expect("in order");
    let error = image.set_backing(Some(&Backing::new("below", Format::Raw))).expect_err("none");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(storage.to_vec() == before);
    let read_only = Image::open(storage, OpenOptions::read_only()).expect("in order");
    let error = read_only.set_backing(None).expect_err("it is open to read");
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
}

/// Goal: no image comes to say a format whose name is longer than others take. Method: the longest, and one byte more, at creation (where
/// what was there before stays, as with the name of a layer that is too long), later, and in an image that somebody else made.
#[test]
fn a_format_has_a_longest_name() {
    let of = |len| Backing { name: b"below".into(), format: Some(name(len)) };
    let says = "header extension 0xe2792aca at byte 112: 16 bytes of a backing file's format are more than the 15 allowed here";
    let storage = MemoryStorage::new(vec![9; 1 << 20]);
    let options = CreateOptions::new(SIZE);
    for (refused, says) in [
        (of(16), says),
        (Backing::new(name(1024), Format::Raw), "backing_file_size at byte 16: 1024 is more"),
    ] {
        let error = create_over(&storage, &options, &refused).expect_err("it is too long");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(storage.to_vec() == [9; 1 << 20], "nothing was written");
    }

    create_over(&storage, &options, &of(15)).expect("it is as long as it may be");
    assert_eq!(said(&storage), Some(of(15)));
    let image = open(&storage);
    let before = storage.to_vec();
    let error = image.set_backing(Some(&of(16))).expect_err("it is too long");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains(says), "{error}");
    assert!(storage.to_vec() == before);
    image.set_backing(Some(&of(14))).expect("there is room");
    image.set_backing(Some(&of(15))).expect("there is room");
    image.close().expect("nothing fails");
    assert_eq!(said(&storage), Some(of(15)));

    storage.with(|bytes| bytes[112 + 7] = 16);
    let error = block_on(Backing::of(&storage)).expect_err("it is too long");
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}
