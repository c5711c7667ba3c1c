//! Disks that become smaller: what is cut off is gone, for this image, for whoever opens it next, and for the space of the file.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use qcow2_core::blocking::{
    Image, block_on, check, create, create_encrypted, create_over, create_with_data,
};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf};
use qcow2_core::{
    Backing, CreateOptions, DataFile, Encryption, Format, Inline, IoError, OpenOptions, Passphrase,
    Raw, Repair, Source, Zeroing,
};

use crate::data_file::layer;
use crate::draws::{draws, random};
use crate::shown::same;

const SIZE: usize = 192 << 10;

/// An image of one kind, a session after the other, against an array.
fn live(seed: u64, options: CreateOptions, below: Option<usize>) {
    let what = format!("seed {seed}, {options:?}, below {below:?}");
    let storage = MemoryStorage::default();
    let layer: Vec<u8> = vec![3; below.unwrap_or(0)];
    let mut disk = layer.clone();
    disk.resize(SIZE, 0);
    let open = || {
        let options = OpenOptions::new().growth(0);
        match below {
            Some(_) => {
                let raw = block_on(Raw::new(MemoryStorage::new(layer.clone())));
                let raw = Arc::new(raw.expect("memory does not fail"));
                Image::open_over(storage.clone(), raw, options)
            }
            None => Image::open(storage.clone(), options),
        }
        .expect("in order")
    };
    match below {
        Some(_) => create_over(&storage, &options, &Backing::new("below", Format::Raw)),
        None => create(&storage, &options),
    }
    .expect("there is room");
    let mut draw = draws(seed);
    for _ in 0..4 {
        let image = open();
        for step in 0..30 {
            let at = draw(disk.len() / 512) * 512;
            let end = (at + (1 + draw(40)) * 512).min(disk.len());
            let (from, len) = (at as u64, (end - at) as u64);
            match draw(8) {
                0..=2 => {
                    image.write(from, &vec![100 + step; end - at]).expect("there is room");
                    disk[at..end].fill(100 + step);
                }
                3 => {
                    image.write_zeroes(from, len, Zeroing::Free).expect("there is room");
                    disk[at..end].fill(0);
                }
                4 | 5 => {
                    let size = (1 + draw(disk.len() / 512)) * 512;
                    image.shrink(size as u64).expect("nothing fails");
                    disk.truncate(size);
                }
                6 => {
                    let size = (disk.len() + draw(SIZE / 512) * 512).min(SIZE);
                    image.grow(size as u64).expect("there is room");
                    disk.resize(size, 0);
                }
                _ => image.flush().expect("nothing fails"),
            }
            let mut found = vec![0xee; disk.len()];
            image.read(0, &mut found).expect("nothing fails");
            same(&found, &disk, &format!("{what}, step {step}"));
            assert_eq!(image.info().virtual_size, disk.len() as u64, "{what}");
        }
        image.close().expect("nothing fails");
        let report = check(&storage, Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{what}: {report:?}");
    }
}

#[test]
fn what_is_cut_off_does_not_come_back() {
    let mut seed = 0;
    let kinds = [(2, 9, false), (2, 12, false), (3, 9, false), (3, 12, false), (3, 14, true)];
    for (version, bits, extended) in kinds {
        for below in [None, Some(50_000), Some(SIZE)] {
            for lazy in [false, version == 3] {
                seed += 1;
                let options = CreateOptions::new(SIZE as u64).version(version);
                let options = options.cluster_bits(bits).extended_l2(extended);
                live(seed, options.lazy_refcounts(lazy), below);
            }
        }
    }
}

/// Goal: what is cut off gives its space back, and its tables do too. Method: a full disk of several L2 tables shrinks to a cluster; as
/// much is written again as went, and the file is not longer.
#[test]
fn what_is_cut_off_is_free() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(SIZE as u64).cluster_bits(9)).expect("there is room");
    let image = Image::open(storage.clone(), OpenOptions::new().growth(0)).expect("in order");
    image.write(0, &vec![1; SIZE]).expect("there is room");
    image.flush().expect("nothing fails");
    let length = storage.to_vec().len();
    let used = |storage: &MemoryStorage| {
        let report = check(storage, Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{report:?}");
        report.allocated_clusters
    };
    image.shrink(512).expect("nothing fails");
    image.close().expect("nothing fails");
    assert_eq!(used(&storage), 1);
    let bytes = storage.to_vec();
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().expect("eight bytes")) as usize;
    let tables = bytes[l1..l1 + 8 * 6].chunks(8).filter(|entry| *entry != [0; 8]).count();
    assert_eq!(tables, 1, "five of six tables have no entry left");

    let image = Image::open(storage.clone(), OpenOptions::new().growth(0)).expect("in order");
    image.grow(SIZE as u64).expect("there is room");
    let mut found = vec![1; SIZE - 512];
    image.read(512, &mut found).expect("nothing fails");
    assert!(found.iter().all(|byte| *byte == 0));
    image.write(0, &vec![2; SIZE]).expect("there is room");
    image.close().expect("nothing fails");
    assert_eq!(storage.to_vec().len(), length);
}

/// Goal: nothing that a disk held past its new end is left in its last cluster, for a program that makes it larger without a look. Method:
/// disks full of data, standard and with subclusters, plain, compressed, enciphered, over a layer and in a data file, raw or not, cut inside
/// a cluster; then the header says the size up to the end of that.
#[test]
fn the_last_cluster_holds_nothing_past_the_end() {
    const CLUSTER: u64 = 16 << 10;
    let passphrase = Passphrase::new("one");
    let luks = Encryption::luks(&passphrase, 1, &mut random(1));
    let standard = CreateOptions::new(SIZE as u64).cluster_bits(14);
    let layouts = [standard.version(2), standard, standard.extended_l2(true)];
    let kinds = ["written", "compressed", "enciphered", "over a layer", "in a file", "raw"];
    for (options, kind) in layouts.into_iter().flat_map(|it| kinds.map(|kind| (it, kind))) {
        for small in [512, 5 * CLUSTER + 1536, 6 * CLUSTER - 512] {
            let what = format!("{kind}, {options:?}, cut to {small}");
            let (storage, data) = (MemoryStorage::default(), MemoryStorage::default());
            let said = match kind {
                "enciphered" | "in a file" | "raw" if options.version == 2 => continue,
                "in a file" => Some(DataFile::new("data")),
                "raw" => Some(DataFile::raw("data")),
                _ => None,
            };
            let backing = Backing::new("below", Format::Raw);
            match (kind, &said) {
                ("enciphered", _) => create_encrypted(&storage, None, &options, &luks, None),
                ("over a layer", _) => create_over(&storage, &options, &backing),
                (_, Some(said)) => create_with_data(&storage, &data, &options, said, None),
                _ => create(&storage, &options),
            }
            .expect("there is room");
            let open = || {
                let (storage, data, options) = (storage.clone(), data.clone(), OpenOptions::new());
                match kind {
                    "enciphered" => {
                        Image::open_encrypted(storage, &passphrase, None, None, options)
                    }
                    "over a layer" => Image::open_over(storage, layer(&[3; SIZE]), options),
                    "in a file" | "raw" => Image::open_with_data(storage, data, None, options),
                    _ => Image::open(storage, options),
                }
                .expect("in order")
            };
            let image = open();
            let bytes: Vec<u8> = (0..SIZE).map(|at| 1 + (at / 4096) as u8).collect();
            match kind {
                "compressed" => image.write_compressed(0, &bytes, &Inline),
                _ => image.write(0, &bytes),
            }
            .expect("there is room");
            image.shrink(small).expect("there is room");
            // What it promised is durable when it returns.
            drop(image);
            let end = small.next_multiple_of(CLUSTER) as usize;
            storage.with(|bytes| bytes[24..32].copy_from_slice(&(end as u64).to_be_bytes()));
            data.with(|data| data.resize(end.max(data.len()), 0));
            let mut found = vec![0xee; end];
            open().read(0, &mut found).expect("nothing fails");
            let mut expected = bytes[..small as usize].to_vec();
            expected.resize(end, 0);
            same(&found, &expected, &what);
            let report = check(&storage, Repair::None).expect("an image");
            assert_eq!(report.corruptions, 0, "{what}: {report:?}");
        }
    }
}

/// Goal: a request that waits while the disk becomes smaller does not get past the new end. Method: a map in hand keeps a shrink
/// waiting, and writes, zeroes and a discard behind it.
#[test]
fn who_waited_finds_the_disk_smaller() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(SIZE as u64).cluster_bits(9)).expect("there is room");
    let image = block_on(qcow2_core::Image::open(storage.clone(), OpenOptions::new()));
    let image = image.expect("in order");
    let mut context = Context::from_waker(Waker::noop());
    let map = block_on(image.map_write(8192, 512)).expect("there is room");

    let mut shrink = pin!(image.shrink(4096));
    assert!(shrink.as_mut().poll(&mut context).is_pending(), "somebody writes there");
    let buf = || IoBuf::copy_of(&[5; 1024], 1);
    let mut write = pin!(image.write(8192, buf(), Durability::Cached));
    assert!(write.as_mut().poll(&mut context).is_pending());
    let mut across = pin!(image.write(3584, buf(), Durability::Cached));
    assert!(across.as_mut().poll(&mut context).is_pending());
    let mut zeroes = pin!(image.write_zeroes(8192, 1024, Zeroing::Keep));
    assert!(zeroes.as_mut().poll(&mut context).is_pending());
    let mut discard = pin!(image.discard(8192, 1024));
    assert!(discard.as_mut().poll(&mut context).is_pending());
    let mut inside = pin!(image.write(0, buf(), Durability::Cached));
    assert!(matches!(inside.as_mut().poll(&mut context), Poll::Ready((_, Ok(())))));

    drop(map);
    assert!(matches!(shrink.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
    let refused = |result: Poll<Result<(), IoError>>| match result {
        Poll::Ready(Err(IoError::OutOfRange { size: 4096, .. })) => {}
        other => panic!("{other:?}"),
    };
    refused(write.as_mut().poll(&mut context).map(|(_, result)| result));
    refused(across.as_mut().poll(&mut context).map(|(_, result)| result));
    refused(zeroes.as_mut().poll(&mut context));
    refused(discard.as_mut().poll(&mut context));
    block_on(image.grow(SIZE as u64)).expect("there is room");
    let map = block_on(image.map_read(1024, SIZE as u64 - 1024)).expect("nothing fails");
    let sources: Vec<Source> = map.extents().iter().map(|extent| extent.source).collect();
    assert_eq!(sources, [Source::Zeroes]);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(4096).cluster_bits(9)).expect("there is room");
    let image = Image::open(storage.clone(), OpenOptions::new()).expect("in order");
    let says = |result: Result<(), IoError>| result.expect_err("it does not fit").to_string();
    assert_eq!(
        says(image.shrink(8192)),
        "cannot resize the image: 8192 bytes is more than the 4096 of now, and shrinking makes no disk larger"
    );
    assert_eq!(
        says(image.shrink(1000)),
        "cannot resize the image: 1000 bytes is not a multiple of 512"
    );
    image.shrink(4096).expect("it is as large");
    image.shrink(0).expect("a disk of nothing");
    assert_eq!(image.info().virtual_size, 0);
    drop(image);
    let image = Image::open(storage, OpenOptions::read_only()).expect("in order");
    assert!(matches!(image.shrink(0), Err(IoError::ReadOnly)));
}
