//! Options and requests that are refused: by name, and without a change.

use faultfs::DEFAULT_LIMITS;
use faultfs::chooser::Always;
use faultfs::direct::Direct;
use faultfs::disk::PossibleDisk;
use faultfs::values::Values;
use qcow2_core::blocking::{self, block_on, check, create};
use qcow2_core::storage::file::{Access, FileStorage};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf, Limits, MOST_ALIGNMENT};
use qcow2_core::{CreateOptions, ErrorKind, Image, Inline, IoError, OpenOptions, Repair, Zeroing};

use crate::common::{assert_clean, four_clusters};

const SIZE: u64 = 1 << 20;

#[test]
fn options_of_a_new_image_are_refused_by_name() {
    let new = CreateOptions::new(SIZE);
    let small = |virtual_size| CreateOptions::new(virtual_size).cluster_bits(9);
    let most = 128u64 << 30;
    let too_large = |size| {
        format!(
            "header field size at byte 24: {size} is more than the {most} bytes that the largest L1 table maps"
        )
    };
    for (options, why) in [
        (new.version(1), "version 1 of the format cannot be created, only 2 and 3".to_owned()),
        (new.version(4), "version 4 of the format cannot be created, only 2 and 3".to_owned()),
        (
            new.version(2).refcount_bits(32),
            "refcounts of 32 bits need version 3 of the format; version 2 has 16".to_owned(),
        ),
        (
            new.version(2).lazy_refcounts(true),
            "lazy refcounts need version 3 of the format, not version 2".to_owned(),
        ),
        (
            new.cluster_bits(8),
            "header field cluster_bits at byte 20: 8 is outside 9..=21".to_owned(),
        ),
        (new.refcount_bits(24), "refcounts of 24 bits: not a power of two from 1 to 64".to_owned()),
        (new.refcount_bits(0), "refcounts of 0 bits: not a power of two from 1 to 64".to_owned()),
        (
            new.refcount_bits(128),
            "refcounts of 128 bits: not a power of two from 1 to 64".to_owned(),
        ),
        (
            new.cluster_bits(22),
            "header field cluster_bits at byte 20: 22 is outside 9..=21".to_owned(),
        ),
        (small(SIZE + 1), format!("size {} is not a multiple of 512 bytes", SIZE + 1)),
        (small(most + 512), too_large(most + 512)),
        (small(u64::MAX - 511), too_large(u64::MAX - 511)),
    ] {
        let storage = MemoryStorage::new(vec![7; 4096]);
        let error = create(&storage, &options).unwrap_err().to_string();
        assert_eq!(error, format!("cannot create the image: {why}"));
        assert_eq!(storage.to_vec(), [7; 4096]);
    }
}

#[test]
fn options_of_opening_are_refused_by_name() {
    let image = four_clusters();
    let open = OpenOptions::new();
    let mut refused = vec![(open.cache_pages(0), "a cache of 0 pages".into())];
    refused.extend([0, 1, 256, 768, 4095, 131_072, u64::MAX].map(|page_size| {
        let why = format!("page size {page_size} is not a power of two from 512 to 65536");
        (open.page_size(page_size), why)
    }));
    for (options, why) in refused {
        let storage = MemoryStorage::new(image.clone());
        let error = blocking::Image::open(storage.clone(), options).unwrap_err().to_string();
        assert_eq!(error, format!("cannot open the image: {why}"));
        assert!(storage.to_vec() == image);
    }
}

/// Goal: a storage that asks for more than is supported is refused from the start.
#[test]
fn a_storage_of_large_sectors_is_refused() {
    let limits = Limits { alignment: 2 * MOST_ALIGNMENT, ..DEFAULT_LIMITS };
    let disk = PossibleDisk::new(&Values::new(), 0).with_limits(limits);
    let storage = Direct::new(disk, Always(0));
    let why = "a storage with alignment 65536";
    let error = create(&storage, &CreateOptions::new(SIZE)).unwrap_err().to_string();
    assert_eq!(error, format!("cannot create the image: {why}"));
    let error = check(&storage, Repair::All).unwrap_err().to_string();
    assert_eq!(error, format!("cannot check the image: {why} is not supported"));
    let opened = blocking::Image::open(storage, OpenOptions::new());
    let error = opened.err().expect("it is refused").to_string();
    assert_eq!(error, format!("cannot open the image: {why} is not supported"));
}

/// Every request for a range that goes to the tables, and what it says.
fn requests(image: &Image<MemoryStorage>, offset: u64, len: u64) -> Vec<Result<(), IoError>> {
    let mut results = vec![
        block_on(image.map_read(offset, len)).map(drop),
        block_on(image.map_write(offset, len)).map(drop),
        block_on(image.write_zeroes(offset, len, Zeroing::Keep)),
        block_on(image.write_zeroes(offset, len, Zeroing::Free)),
        block_on(image.discard(offset, len)),
        block_on(image.uncover(offset, len)),
    ];
    if let Some(bytes) = usize::try_from(len).ok().filter(|&bytes| bytes <= 4096) {
        let buf = IoBuf::zeroed(bytes, 512);
        let (buf, result) = block_on(image.read(offset, buf));
        assert_eq!(buf.len(), bytes, "the buffer comes back");
        results.push(result);
        let (buf, result) = block_on(image.write(offset, buf, Durability::Cached));
        assert_eq!(buf.len(), bytes, "the buffer comes back");
        results.push(result);
        let how = Durability::Cached;
        let (buf, result) = block_on(image.write_compressed(offset, buf, how, &Inline));
        assert_eq!(buf.len(), bytes, "the buffer comes back");
        results.push(result);
    }
    results
}

#[test]
fn requests_that_do_not_fit_are_refused_by_name() {
    let before = four_clusters();
    let storage = MemoryStorage::new(before.clone());
    let image = block_on(Image::open(storage.clone(), OpenOptions::new())).unwrap();
    for (offset, len) in [(1, 512), (0, 1), (512, 511), (u64::MAX, 512), (0, u64::MAX)] {
        for result in requests(&image, offset, len) {
            let named = IoError::Unaligned { offset, len }.to_string();
            assert_eq!(result.unwrap_err().to_string(), named);
        }
    }
    let last = u64::MAX - 511;
    for (offset, len) in
        [(SIZE, 512), (SIZE - 512, 1024), (last, 512), (512, last), (last, last), (0, last)]
    {
        for result in requests(&image, offset, len) {
            let named = IoError::OutOfRange { offset, len, size: SIZE }.to_string();
            assert_eq!(result.unwrap_err().to_string(), named);
        }
    }
    // Of nothing there is nothing to refuse, up to the end.
    for offset in [0, 4096, SIZE] {
        requests(&image, offset, 0).into_iter().for_each(Result::unwrap);
    }
    let most = 8u64 << 40;
    for (size, why) in [
        (SIZE + 1, format!("{} bytes is not a multiple of 512", SIZE + 1)),
        (
            SIZE - 512,
            format!(
                "{} bytes is less than the {SIZE} of now, and growing makes no disk smaller",
                SIZE - 512
            ),
        ),
        (
            most + 512,
            format!(
                "header field size at byte 24: {} is more than the {most} bytes that the largest L1 table maps",
                most + 512
            ),
        ),
    ] {
        let error = block_on(image.grow(size)).unwrap_err().to_string();
        assert_eq!(error, format!("cannot resize the image: {why}"));
    }
    block_on(image.grow(SIZE)).unwrap();
    block_on(image.close()).unwrap();
    assert!(storage.to_vec() == before);
}

/// Goal: the same of plain calls, of any bytes: what is named is what was asked for, not the whole units around it.
#[test]
fn plain_calls_that_do_not_fit_are_refused_by_name() {
    let before = four_clusters();
    let storage = MemoryStorage::new(before.clone());
    let image = blocking::Image::open(storage.clone(), OpenOptions::new()).unwrap();
    for offset in [SIZE - 1, SIZE, SIZE + 1, u64::MAX - 1, u64::MAX] {
        let before = offset - 4096;
        let results = [
            (offset, 2, image.read(offset, &mut [0; 2])),
            (offset, 2, image.write(offset, &[0; 2])),
            (offset, 2, image.write_zeroes(offset, 2, Zeroing::Free)),
            (before, 8192, image.write_compressed(before, &[0; 8192], &Inline)),
            (before, 8192, image.write_zeroes(before, 8192, Zeroing::Keep)),
            (before, 8192, image.discard(before, 8192)),
            (before, 8192, image.uncover(before, 8192)),
        ];
        for (offset, len, result) in results {
            let named = IoError::OutOfRange { offset, len, size: SIZE }.to_string();
            assert_eq!(result.unwrap_err().to_string(), named);
        }
    }
    for offset in [0, 1, 4096, SIZE] {
        image.read(offset, &mut []).unwrap();
        image.write(offset, &[]).unwrap();
        image.write_compressed(offset, &[], &Inline).unwrap();
        image.write_zeroes(offset, 0, Zeroing::Free).unwrap();
        image.discard(offset, 0).unwrap();
        image.uncover(offset, 0).unwrap();
    }
    image.close().unwrap();
    assert_clean(&check(&storage, Repair::None).unwrap());
}

#[test]
fn an_image_that_is_open_to_read_is_not_changed() {
    let before = four_clusters();
    let storage = MemoryStorage::new(before.clone());
    let image = block_on(Image::open(storage.clone(), OpenOptions::read_only())).unwrap();
    let data = IoBuf::zeroed(512, 512);
    let results = [
        block_on(image.write(0, data, Durability::Through)).1,
        block_on(image.map_write(0, 512)).map(drop),
        block_on(image.write_zeroes(0, 4096, Zeroing::Free)),
        block_on(image.discard(0, 4096)),
        block_on(image.uncover(0, 4096)),
        block_on(image.grow(2 * SIZE)),
    ];
    for result in results {
        assert!(matches!(result, Err(IoError::ReadOnly)), "{result:?}");
    }
    block_on(image.flush()).unwrap();
    block_on(image.close()).unwrap();
    assert!(storage.to_vec() == before);
}

/// Goal: who opens the file read-only and the image for writing hears that before anything is tried, whatever state the image is in; and who
/// repairs it hears why that failed. Method: a clean image and a dirty one.
#[test]
fn a_storage_that_is_open_to_read_is_not_opened_for_writing() {
    let dirty = MemoryStorage::default();
    create(&dirty, &CreateOptions::new(SIZE).lazy_refcounts(true)).unwrap();
    let image = blocking::Image::open(dirty.clone(), OpenOptions::new()).unwrap();
    image.write(0, &[1; 512]).unwrap();
    image.flush().unwrap();
    drop(image);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    for (bytes, is_dirty) in [(four_clusters(), false), (dirty.to_vec(), true)] {
        std::fs::write(&path, &bytes).unwrap();
        let storage = || FileStorage::open(&path, Access::ReadOnly).unwrap();
        let error = blocking::Image::open(storage(), OpenOptions::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
        assert_eq!(
            error.to_string(),
            "cannot open the image for writing: its storage was opened read-only; open that for writing, or the image with \
             `OpenOptions::read_only`"
        );
        let image = blocking::Image::open(storage(), OpenOptions::read_only()).unwrap();
        assert_eq!(image.info().dirty, is_dirty);
        drop(image);
        let repaired = check(&storage(), Repair::All);
        if is_dirty {
            let error = repaired.unwrap_err().to_string();
            assert!(error.ends_with("failed: the file was opened read-only"), "{error}");
        }
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}
