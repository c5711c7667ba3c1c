//! An image in a file, with plain calls: create, open, write, flush, close, check, read.

use std::error::Error;

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::{CreateOptions, OpenOptions, Repair};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.qcow2");

    // A disk of 1 GiB. The file holds the tables and nothing else until somebody writes.
    let storage = FileStorage::create(&path, Existing::Refuse)?;
    create(&storage, &CreateOptions::new(1 << 30).lazy_refcounts(true))?;
    // The image is durable; the name of the new file is only after this.
    storage.sync_parent()?;
    // With it goes the lock.
    drop(storage);

    // Whoever opens it for writing has it alone. A dirty image is repaired on the way.
    let storage = FileStorage::open(&path, Access::ReadWrite)?;
    let image = Image::open(storage, OpenOptions::new())?;
    image.write(123_456, b"any offset, any length")?;
    // From here on a power cut cannot take it back.
    image.flush()?;

    // Closing writes the refcounts that lazy mode has kept in memory, and clears the dirty bit.
    image.close()?;

    let storage = FileStorage::open(&path, Access::ReadOnly)?;
    let report = check(&storage, Repair::None)?;
    assert!(report.is_consistent() && report.leaks == 0);
    println!("{} corruptions, {} leaks", report.corruptions, report.leaks);

    let image = Image::open(storage, OpenOptions::read_only())?;
    let mut back = [0; 22];
    image.read(123_456, &mut back)?;
    assert_eq!(&back, b"any offset, any length");
    println!("a disk of {} bytes", image.info().virtual_size);
    Ok(())
}
