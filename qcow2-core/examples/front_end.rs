//! A front end that moves the bytes itself: it asks where a guest range is, and does the I/O there.
//!
//! A server over the network or a virtual device has buffers of its own, and ways of its own to move them. `map_read` and `map_write`
//! give it host extents; the image keeps everything else in order.

use std::error::Error;

use qcow2_core::blocking::block_on;
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf, Storage};
use qcow2_core::{CreateOptions, Image, OpenOptions, Source};

/// Writes `data` to guest offset `at`.
async fn write(image: &Image<MemoryStorage>, at: u64, data: &[u8]) -> Result<(), Box<dyn Error>> {
    // Host clusters are found or taken. Until `commit` the guest reads what was there before.
    let mut map = image.map_write(at, data.len() as u64).await?;
    // From here on bytes may land, whatever becomes of this future.
    map.begin();
    let mut rest = data;
    for extent in map.extents() {
        let (piece, after) = rest.split_at(usize::try_from(extent.len)?);
        let buf = IoBuf::copy_of(piece, 1);
        image.storage().write(extent.offset(), buf, Durability::Cached).await.1?;
        rest = after;
    }
    // Now the entries that map them may follow; they reach the storage after the data.
    map.commit().await?;
    Ok(())
}

/// Reads `len` bytes from guest offset `at`.
async fn read(image: &Image<MemoryStorage>, at: u64, len: u64) -> Result<Vec<u8>, Box<dyn Error>> {
    // While the map lives, none of its clusters is handed to somebody else.
    let map = image.map_read(at, len).await?;
    let mut data = Vec::new();
    for extent in map.extents() {
        let len = usize::try_from(extent.len)?;
        match extent.source {
            Source::Host(host) => {
                let (buf, result) = image.storage().read(host, IoBuf::zeroed(len, 1)).await;
                result?;
                data.extend_from_slice(&buf);
            }
            Source::Zeroes => data.resize(data.len() + len, 0),
            // An image may learn to say more; who does not know what, must not guess.
            other => return Err(format!("{other:?} is not understood").into()),
        }
    }
    Ok(data)
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let storage = MemoryStorage::default();
    block_on(async {
        qcow2_core::create(&storage, &CreateOptions::new(1 << 20)).await?;
        let image = Image::open(storage.clone(), OpenOptions::new()).await?;
        write(&image, 65_536 - 512, &[5; 1024]).await?;
        image.flush().await?;
        let data = read(&image, 0, 131_072).await?;
        assert!(data[65_024..66_048] == [5; 1024]);
        assert!(data[..65_024].iter().all(|&byte| byte == 0));
        image.close().await?;
        println!("1024 bytes over two clusters, moved by the front end");
        Ok(())
    })
}
