//! Host clusters taken ahead: at creation, and of an image in use.

use std::sync::Arc;

use qcow2_core::blocking::{Image, block_on, check, create, create_over};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{
    Backing, CheckReport, CreateError, CreateOptions, ErrorKind, Format, OpenOptions,
    Preallocation, Raw, Repair, Zeroing,
};

use crate::draws::draws;
use crate::shown::same;

const MODES: [Preallocation; 4] =
    [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];

/// A raw layer of so many bytes, none of which is zero.
fn layer(len: usize) -> Vec<u8> {
    (0..len).map(|at| 1 + (at / 512 % 99) as u8).collect()
}

fn open(storage: &MemoryStorage, layer: Option<&[u8]>) -> Image<MemoryStorage> {
    let options = OpenOptions::new().growth(0);
    match layer {
        None => Image::open(storage.clone(), options),
        Some(layer) => {
            let raw = block_on(Raw::new(MemoryStorage::new(layer.to_vec())));
            let raw = Arc::new(raw.expect("memory does not fail"));
            Image::open_over(storage.clone(), raw, options)
        }
    }
    .expect("in order")
}

fn sound(storage: &MemoryStorage, what: &str) -> CheckReport {
    let report = check(storage, Repair::None).expect("an image");
    assert!(report.findings.is_empty(), "{what}: {report:?}");
    report
}

/// Guest clusters that have a host cluster, and the length of the file. Counts of clusters that were given up go down some flushes later.
fn taken(storage: &MemoryStorage) -> (u64, usize) {
    let report = check(storage, Repair::None).expect("an image");
    assert_eq!(report.corruptions, 0, "{report:?}");
    (report.allocated_clusters, storage.to_vec().len())
}

/// Every combination that there can be of a small disk, whose last cluster is cut short.
fn every_kind() -> Vec<CreateOptions> {
    let mut all = Vec::new();
    for (version, bits, extended) in [
        (2, 9, false),
        (2, 12, false),
        (3, 9, false),
        (3, 12, false),
        (3, 16, false),
        (3, 14, true),
    ] {
        let size = (70 << bits) + 512;
        let options = CreateOptions::new(size).version(version).cluster_bits(bits);
        let widths: &[u32] = if version == 2 { &[16] } else { &[1, 16, 64] };
        for &width in widths {
            for lazy in [false, version == 3] {
                let options = options.refcount_bits(width).lazy_refcounts(lazy);
                all.extend(MODES.map(|how| options.extended_l2(extended).preallocation(how)));
            }
        }
    }
    all
}

/// Goal: what is created with its space taken reads as zeroes, is in order, and takes nothing more when it is written. Method: every kind
/// of image, in each mode; all of it written, in pieces; the clusters in use and the end of the image before and after.
#[test]
#[cfg_attr(not(turn = "2"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_preallocated_image_never_grows() {
    for options in every_kind() {
        let what = format!("{options:?}");
        let storage = MemoryStorage::default();
        create(&storage, &options).expect("there is room");
        let size = options.virtual_size as usize;
        let before = sound(&storage, &what);
        let taken = options.preallocation != Preallocation::Off;
        assert_eq!(
            before.allocated_clusters,
            if taken { before.total_clusters } else { 0 },
            "{what}"
        );
        let image = open(&storage, None);
        let mut found = vec![0xee; size];
        image.read(0, &mut found).expect("nothing fails");
        assert!(found.iter().all(|&byte| byte == 0), "{what}");
        let content = layer(size);
        for (at, piece) in (0..).step_by(1536).zip(content.chunks(1536)) {
            image.write(at, piece).expect("there is room");
        }
        image.read(0, &mut found).expect("nothing fails");
        assert!(found == content, "{what}");
        image.close().expect("nothing fails");
        let after = sound(&storage, &what);
        assert_eq!(after.allocated_clusters, after.total_clusters, "{what}");
        assert_eq!(after.image_end_offset == before.image_end_offset, taken, "{what}");
    }
}

/// Goal: over a layer only an image with extended entries can have clusters that show it. Method: both kinds, in each mode.
#[test]
fn over_a_layer_it_takes_extended_entries() {
    let below = Backing::new("below", Format::Raw);
    let standard = CreateOptions::new(9 << 14).cluster_bits(14);
    let content = layer(5 << 14);
    for how in MODES {
        let storage = MemoryStorage::default();
        let created = create_over(&storage, &standard.preallocation(how), &below);
        if how == Preallocation::Off {
            created.expect("there is room");
        } else {
            let error = created.expect_err("it would hide the layer");
            assert!(matches!(error, CreateError::Option(_)), "{error}");
            assert_eq!(storage.to_vec(), [], "{error}");
        }
        let extended = standard.extended_l2(true).preallocation(how);
        create_over(&storage, &extended, &below).expect("there is room");
        let before = sound(&storage, "created").image_end_offset;
        let image = open(&storage, Some(&content));
        let mut found = vec![0xee; 9 << 14];
        image.read(0, &mut found).expect("nothing fails");
        assert!(found[..5 << 14] == content && found[5 << 14..].iter().all(|&byte| byte == 0));
        image.write(0, &vec![7; 9 << 14]).expect("there is room");
        image.close().expect("nothing fails");
        let after = sound(&storage, "written").image_end_offset;
        assert_eq!(after == before, how != Preallocation::Off, "{how:?}");
    }
}

/// Goal: what the format cannot count is refused by name, and before anything is written. Method: clusters of 512 bytes, whose refcount
/// table of 8 MiB counts 128 GiB; one cluster more than that can be.
#[test]
fn more_than_a_refcount_table_counts_is_refused() {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(128 << 30).cluster_bits(9).refcount_bits(64);
    let error = create(&storage, &options.preallocation(Preallocation::Metadata));
    let error = error.expect_err("too many clusters").to_string();
    assert!(error.contains("refcount table"), "{error}");
    assert_eq!(storage.to_vec(), []);
}

fn live(seed: u64, options: &CreateOptions, below: Option<usize>) {
    let what = format!("seed {seed}, {options:?}, below {below:?}");
    let (size, cluster) = (options.virtual_size as usize, 1 << options.cluster_bits);
    let content = below.map(layer);
    let storage = MemoryStorage::default();
    match &content {
        Some(_) => create_over(&storage, options, &Backing::new("below", Format::Raw)),
        None => create(&storage, options),
    }
    .expect("there is room");
    let mut disk = content.clone().unwrap_or_default();
    disk.resize(size, 0);
    let mut draw = draws(seed);
    for _ in 0..3 {
        let image = open(&storage, content.as_deref());
        for step in 0..30 {
            let at = draw(size / 512) * 512;
            let most = [3, 40, 400][draw(3)];
            let end = (at + (1 + draw(most)) * 512).min(size);
            let (from, len) = (at as u64, (end - at) as u64);
            match draw(6) {
                0 => {
                    image.write(from, &vec![100 + step; end - at]).expect("there is room");
                    disk[at..end].fill(100 + step);
                }
                1 => {
                    let how = [Zeroing::Free, Zeroing::Keep][draw(2)];
                    image.write_zeroes(from, len, how).expect("there is room");
                    disk[at..end].fill(0);
                }
                2 if options.version == 3 || below.is_none() => {
                    let whole_end = if end == size { size } else { end / cluster * cluster };
                    let start = at.next_multiple_of(cluster);
                    image.discard(from, len).expect("there is room");
                    if start < whole_end {
                        disk[start..whole_end].fill(0);
                    }
                }
                3 => image.flush().expect("nothing fails"),
                _ => {
                    let how = MODES[1 + draw(3)];
                    image.preallocate(from, len, how).expect("there is room");
                    image.flush().expect("nothing fails");
                    let before = taken(&storage);
                    image.write(from, &vec![200; end - at]).expect("there is room");
                    disk[at..end].fill(200);
                    image.flush().expect("nothing fails");
                    assert_eq!(taken(&storage), before, "{what}, step {step}");
                }
            }
            let mut found = vec![0xee; size];
            image.read(0, &mut found).expect("nothing fails");
            same(&found, &disk, &format!("{what}, step {step}"));
        }
        image.close().expect("nothing fails");
        sound(&storage, &what);
    }
}

/// Goal: taking clusters of an image in use changes nothing that it reads, and a write there takes none. Method: random requests against
/// an array, without a layer, over a shorter and over a longer one; the clusters in use around a write to what was just taken.
#[test]
fn taking_clusters_ahead_changes_nothing_that_is_read() {
    for options in every_kind() {
        if options.preallocation != Preallocation::Off || options.lazy_refcounts {
            continue;
        }
        let size = options.virtual_size as usize;
        for (seed, below) in (0..).zip([None, Some(size / 3 / 512 * 512), Some(size)]) {
            live(seed, &options, below);
        }
    }
}

/// Goal: a disk that has grown can have its new space taken, as `qemu-img resize --preallocation` does. Method: grow, preallocate, write;
/// what was past the end of the disk, and what is asked for past it, is refused.
#[test]
fn the_space_of_growth_is_taken() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(3 << 12).cluster_bits(12)).expect("there is room");
    let image = open(&storage, None);
    let error = image.preallocate(3 << 12, 512, Preallocation::Full).expect_err("past the end");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    image.grow(900 << 12).expect("there is room");
    image.preallocate(3 << 12, 897 << 12, Preallocation::Metadata).expect("there is room");
    image.flush().expect("nothing fails");
    let before = sound(&storage, "grown");
    assert_eq!(before.allocated_clusters, 897);
    image.write(3 << 12, &vec![1; 897 << 12]).expect("there is room");
    image.close().expect("nothing fails");
    assert_eq!(sound(&storage, "written").image_end_offset, before.image_end_offset);
}

/// Goal: the mode that takes nothing takes nothing, and is asked for within the disk all the same. Method: the file before and after.
#[test]
fn nothing_is_taken_without_a_mode() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(9 << 12).cluster_bits(12)).expect("there is room");
    let before = storage.to_vec();
    let image = open(&storage, None);
    image.preallocate(0, 9 << 12, Preallocation::Off).expect("nothing is to be done");
    let error = image.preallocate(9 << 12, 512, Preallocation::Off).expect_err("past the end");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    image.close().expect("nothing fails");
    assert_eq!(storage.to_vec(), before);
}
