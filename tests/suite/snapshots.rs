//! Images and messages as people see them, so that a change of either is looked at.

use std::fmt::Write as _;

use model::build::{Initial, build};
use model::op::Geometry;
use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CreateOptions, OpenOptions, Repair, Zeroing};
use qcow2_crashtest::dump::dump;

use crate::common::four_clusters;

fn created(options: &CreateOptions) -> MemoryStorage {
    let storage = MemoryStorage::default();
    create(&storage, options).unwrap();
    storage
}

#[test]
fn a_new_image() {
    let storage = created(&CreateOptions::new(10 << 30));
    insta::assert_snapshot!(dump(&storage.to_vec()));
}

/// Goal: what each kind of request leaves in the tables.
#[test]
fn an_image_in_use() {
    let options = CreateOptions::new(1 << 20).cluster_bits(10);
    let storage = created(&options);
    let open = OpenOptions::new().growth(1);
    let image = Image::open(storage.clone(), open).unwrap();
    image.write(0, &[1; 6 << 10]).unwrap();
    image.write(200 << 10, &[2; 1]).unwrap();
    image.write_zeroes(1 << 10, 1 << 10, Zeroing::Keep).unwrap();
    image.write_zeroes(2 << 10, 1 << 10, Zeroing::Free).unwrap();
    image.discard(3 << 10, 1 << 10).unwrap();
    image.close().unwrap();
    insta::assert_snapshot!(dump(&storage.to_vec()));
}

/// Goal: what a power cut leaves of an image with lazy refcounts: mappings, and no counts of them.
#[test]
fn a_dirty_image() {
    let options = CreateOptions::new(64 << 10).cluster_bits(9).lazy_refcounts(true);
    let storage = created(&options);
    let open = OpenOptions::new().growth(1);
    let image = Image::open(storage.clone(), open).unwrap();
    image.write(0, &[1; 2 << 10]).unwrap();
    image.flush().unwrap();
    insta::assert_snapshot!(dump(&storage.to_vec()));
}

#[test]
fn a_scattered_image() {
    let geometry = Geometry { refcount_order: 3, ..Geometry::plain(9, 96 << 9) };
    let built = build(&geometry, Initial::Fragmented).unwrap();
    insta::assert_snapshot!(dump(&built.to_bytes()));
}

/// Goal: the whole text of a check that finds nearly everything there is to find, before and after repair.
#[test]
fn a_damaged_image() {
    let mut image = four_clusters();
    let patches: [(usize, &[u8]); 5] = [
        // Refcounts: the L2 table's too low, cluster 8's too high, cluster 100 leaked.
        (0x2009, &[0]),
        (0x2011, &[3]),
        (0x20c9, &[1]),
        // Guest cluster 1 shares its cluster with 0, and 2 has lost COPIED.
        (0x400e, &[0x50]),
        (0x4010, &[0]),
    ];
    for (at, bytes) in patches {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let mut text = dump(&image);
    let storage = MemoryStorage::new(image);
    for (how, title) in [(Repair::None, "check"), (Repair::All, "repair"), (Repair::None, "check")]
    {
        let report = check(&storage, how).unwrap();
        writeln!(
            text,
            "{title}: {} corruptions, {} of them repaired; {} leaks, {} of them repaired",
            report.corruptions, report.corruptions_fixed, report.leaks, report.leaks_fixed
        )
        .unwrap();
        for finding in &report.findings {
            writeln!(text, "  {finding}").unwrap();
        }
    }
    insta::assert_snapshot!(text);
}

/// The text of the first error of opening the image and reading or writing it; of a check, the first finding.
fn consequences(text: &mut String, what: &str, bytes: &[u8]) {
    writeln!(text, "{what}").unwrap();
    for (verb, options) in [("read", OpenOptions::read_only()), ("write", OpenOptions::new())] {
        let outcome = Image::open(MemoryStorage::new(bytes.to_vec()), options)
            .map_err(|error| error.to_string())
            .and_then(|image| {
                let mut data = vec![0; 4 << 12];
                let read = image.read(0, &mut data);
                let write = if options.writable { image.write(1 << 19, &[1; 512]) } else { Ok(()) };
                read.and(write).map_err(|error| error.to_string())
            });
        let outcome = outcome.err().unwrap_or_else(|| "ok".to_owned());
        writeln!(text, "  {verb}: {outcome}").unwrap();
    }
    let report = check(&MemoryStorage::new(bytes.to_vec()), Repair::None).unwrap();
    let (corruptions, leaks) = (report.corruptions, report.leaks);
    let first = report.findings.first().map_or_else(String::new, |finding| format!(": {finding}"));
    writeln!(text, "  check: {corruptions} corruptions, {leaks} leaks{first}").unwrap();
}

/// Goal: every kind of damage that leaves a header which can be used: what a reader, a writer and a check say.
#[test]
fn consequences_of_damage() {
    let mut text = String::new();
    for (what, at, bytes) in [
        ("the L1 table ends past the end of the file", 36, &[0, 0, 0x40, 0][..]),
        ("the L1 table is past the end of the file", 45, &[1]),
        ("the refcount table is past the end of the file", 53, &[1]),
        ("there is no refcount table", 56, &[0, 0, 0, 0]),
        ("the image is marked corrupt", 79, &[2]),
        ("reserved bit in L1", 0x3007, &[1]),
        ("misaligned entry in L1", 0x3006, &[0x42]),
        ("the L1 table points to itself", 0x3006, &[0x30]),
        ("reserved bit in L2", 0x4007, &[2]),
        ("misaligned entry in L2", 0x4006, &[0x52]),
        ("the L2 table maps itself", 0x4006, &[0x40]),
        ("a compressed cluster", 0x4000, &[0x40]),
        ("reserved bit in the refcount table", 0x1007, &[1]),
        ("misaligned entry in the refcount table", 0x1006, &[0x22]),
        ("an entry in the refcount table points out of the world", 0x1000, &[1]),
        ("the refcount table points to itself", 0x1006, &[0x10]),
        ("there is no refcount block", 0x1006, &[0]),
        ("the header is free", 0x2000, &[0, 0]),
        ("the refcount table is free", 0x2002, &[0, 0]),
        ("the L1 table is free", 0x2006, &[0, 0]),
    ] {
        let mut image = four_clusters();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        consequences(&mut text, what, &image);
    }
    let mut image = four_clusters();
    (image[0x3000], image[0x2009]) = (0, 2);
    consequences(&mut text, "the L2 table has two references", &image);
    insta::assert_snapshot!(text);
}
