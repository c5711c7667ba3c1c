//! A storage of one's own: an image in chunks, as in an object store, which exist only where something was written.
//!
//! The contract is that of `qcow2_core::storage`: what may be reordered, what a flush covers, what an error means. An implementation
//! that keeps it can be put under the harness, which takes none of it on trust.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qcow2_core::blocking::{Image, create};
use qcow2_core::storage::{Durability, IoBuf, Limits, Storage};
use qcow2_core::{CreateOptions, OpenOptions};

const CHUNK: u64 = 64 << 10;

#[derive(Debug, Default)]
struct Chunks {
    length: u64,
    chunks: BTreeMap<u64, Box<[u8]>>,
}

/// A clone is another handle on the same chunks.
#[derive(Clone, Debug, Default)]
struct ChunkStorage(Arc<Mutex<Chunks>>);

impl ChunkStorage {
    fn lock(&self) -> MutexGuard<'_, Chunks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of a range, chunk by chunk: number, where it begins and ends in the chunk.
fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let number = at / CHUNK;
        let end = range.end.min((number + 1) * CHUNK);
        let within = (at - number * CHUNK) as usize..(end - number * CHUNK) as usize;
        let part = (at < end).then_some((number, within));
        at = end;
        part
    })
}

impl Chunks {
    fn zero(&mut self, range: Range<u64>) {
        for (number, within) in parts(range) {
            if within.len() as u64 == CHUNK {
                self.chunks.remove(&number);
            } else if let Some(chunk) = self.chunks.get_mut(&number) {
                chunk[within].fill(0);
            }
        }
    }
}

impl Storage for ChunkStorage {
    fn limits(&self) -> Limits {
        Limits {
            alignment: 1,
            max_transfer: 1 << 20,
            can_discard: true,
            // What was never written reads as zeroes, so a new cluster may be mapped before its data is durable.
            unwritten_reads_zero: true,
        }
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.lock().length)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let mut chunks = self.lock();
        // What is cut off must not come back when the file grows again.
        let cut = len..chunks.length.max(len);
        chunks.zero(cut);
        chunks.length = len;
        Ok(())
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (IoBuf, io::Result<()>) {
        let chunks = self.lock();
        let mut at = 0;
        for (number, within) in parts(offset..offset + buf.len() as u64) {
            let to = &mut buf[at..at + within.len()];
            at += within.len();
            match chunks.chunks.get(&number) {
                Some(chunk) => to.copy_from_slice(&chunk[within]),
                None => to.fill(0),
            }
        }
        (buf, Ok(()))
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        _durability: Durability,
    ) -> (IoBuf, io::Result<()>) {
        let mut chunks = self.lock();
        let end = offset + buf.len() as u64;
        let mut at = 0;
        for (number, within) in parts(offset..end) {
            let empty = || vec![0; CHUNK as usize].into_boxed_slice();
            let chunk = chunks.chunks.entry(number).or_insert_with(empty);
            let len = within.len();
            chunk[within].copy_from_slice(&buf[at..at + len]);
            at += len;
        }
        chunks.length = chunks.length.max(end);
        (buf, Ok(()))
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        let mut chunks = self.lock();
        chunks.length = chunks.length.max(range.end);
        chunks.zero(range);
        Ok(())
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let mut chunks = self.lock();
        let end = range.end.min(chunks.length);
        chunks.zero(range.start.min(end)..end);
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        // Memory has nothing to lose. A real store waits here for everything that has completed, and an error is final.
        Ok(())
    }

    async fn settle(&self) -> io::Result<()> {
        // Every operation is over when its future is first polled: nothing can land later.
        Ok(())
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let storage = ChunkStorage::default();
    create(&storage, &CreateOptions::new(1 << 40))?;
    let image = Image::open(storage.clone(), OpenOptions::new())?;
    image.write(1 << 39, b"in the middle of a disk of 1 TiB")?;
    image.close()?;

    let image = Image::open(storage.clone(), OpenOptions::read_only())?;
    let mut back = [0; 32];
    image.read(1 << 39, &mut back)?;
    assert_eq!(&back, b"in the middle of a disk of 1 TiB");
    let chunks = storage.lock();
    assert!(chunks.chunks.len() < 10);
    println!("{} chunks for a file of {} bytes", chunks.chunks.len(), chunks.length);
    Ok(())
}
