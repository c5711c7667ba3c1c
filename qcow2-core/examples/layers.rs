//! An image over a raw disk that stays as it is: what is written goes into the image, what is not is read from below.

use std::error::Error;

use qcow2_core::blocking::{Image, create_over};
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::{Backing, CreateOptions, FileLayers, Format, OpenOptions};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let (base, path) = (directory.path().join("base.raw"), directory.path().join("clone.qcow2"));
    std::fs::write(&base, vec![1; 1 << 20])?;

    // A disk that is longer than what is below: the rest reads as zeroes.
    let storage = FileStorage::create(&path, Existing::Refuse)?;
    let options = CreateOptions::new(2 << 20);
    create_over(&storage, &options, &Backing::new("base.raw", Format::Raw))?;
    // The name of the new file is durable, too.
    storage.sync_parent()?;
    drop(storage);

    // Nothing outside this directory is opened, whatever the image says.
    let mut layers = FileLayers::within(directory.path())?;
    let storage = FileStorage::open(&path, Access::ReadWrite)?;
    let image = Image::open_chain(storage, &mut layers, OpenOptions::new())?;
    image.write(512, &[2; 512])?;
    let mut data = [0; 1536];
    image.read(0, &mut data)?;
    assert_eq!(data[..512], [1; 512]);
    assert_eq!(data[512..1024], [2; 512]);
    assert_eq!(data[1024..], [1; 512]);
    image.close()?;

    assert_eq!(std::fs::read(&base)?, vec![1; 1 << 20]);
    println!("{} bytes of {}", std::fs::metadata(&path)?.len(), path.display());
    Ok(())
}
