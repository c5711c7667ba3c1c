//! An image that nobody closed, brought back step by step: look, check, repair, open.
//!
//! Opening it for writing does all that by itself. Doing it by hand shows what there was to do, before anything changes.

use std::error::Error;

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CreateOptions, OpenOptions, Repair};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    // Lazy refcounts: what was flushed is safe, but the refcounts of it are not on the storage.
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 20).cluster_bits(12).lazy_refcounts(true))?;
    let image = Image::open(storage.clone(), OpenOptions::new())?;
    image.write(0, &[7; 20_000])?;
    image.flush()?;
    // The process dies: dropping an image does no I/O.
    drop(image);

    // Read-only, nothing is ever written, and what was flushed is there.
    let image = Image::open(storage.clone(), OpenOptions::read_only())?;
    assert!(image.info().dirty);
    let mut back = [0; 20_000];
    image.read(0, &mut back)?;
    assert!(back == [7; 20_000]);
    drop(image);

    // A check says what is wrong, one by one.
    let report = check(&storage, Repair::None)?;
    for finding in report.findings.iter().take(3) {
        println!("{finding}");
    }
    assert!(report.corruptions > 0, "refcounts are behind");

    // A repair counts every reference anew. A power cut in the middle of it leads to another repair.
    let report = check(&storage, Repair::All)?;
    assert!(report.is_consistent());
    println!("{} corruptions repaired", report.corruptions);

    let image = Image::open(storage, OpenOptions::new())?;
    assert!(!image.info().dirty);
    image.read(0, &mut back)?;
    assert!(back == [7; 20_000]);
    image.close()?;
    Ok(())
}
