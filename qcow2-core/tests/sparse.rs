//! A storage in memory that keeps only what is not zero.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf, Limits, Storage};

const PIECE: u64 = 4096;

#[derive(Debug, Default)]
struct Content {
    length: u64,
    /// Bytes read and written so far.
    moved: u64,
    /// Writes so far.
    writes: u64,
    pieces: BTreeMap<u64, Box<[u8]>>,
}

/// A file with holes. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SparseStorage(Arc<Mutex<Content>>);

/// The parts of a range of bytes that lie in one piece each: piece, where in it, and how long.
fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, usize, usize)> {
    (range.start / PIECE..range.end.div_ceil(PIECE)).map(move |piece| {
        let from = range.start.max(piece * PIECE);
        let to = range.end.min((piece + 1) * PIECE);
        (piece, (from % PIECE) as usize, (to - from) as usize)
    })
}

impl SparseStorage {
    fn with<R>(&self, step: impl FnOnce(&mut Content) -> R) -> R {
        step(&mut self.0.lock().expect("nobody panics under it"))
    }

    /// Bytes read and written so far.
    pub(crate) fn moved(&self) -> u64 {
        self.with(|content| content.moved)
    }

    /// Writes so far.
    pub(crate) fn writes(&self) -> u64 {
        self.with(|content| content.writes)
    }

    /// Fills `bytes` from an offset.
    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) {
        self.with(|content| {
            content.moved += bytes.len() as u64;
            let mut rest = bytes;
            for (piece, at, len) in parts(offset..offset + rest.len() as u64) {
                let (into, after) = rest.split_at_mut(len);
                match content.pieces.get(&piece) {
                    Some(bytes) => into.copy_from_slice(&bytes[at..at + len]),
                    None => into.fill(0),
                }
                rest = after;
            }
        });
    }

    /// Writes bytes, and makes the file as long as that takes.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) {
        self.with(|content| {
            let end = offset + bytes.len() as u64;
            content.length = content.length.max(end);
            content.moved += bytes.len() as u64;
            content.writes += 1;
            let mut rest = bytes;
            for (piece, at, len) in parts(offset..end) {
                let (from, after) = rest.split_at(len);
                let zeroes = || vec![0; PIECE as usize].into();
                content.pieces.entry(piece).or_insert_with(zeroes)[at..at + len]
                    .copy_from_slice(from);
                rest = after;
            }
        });
    }

    fn zero(&self, range: Range<u64>) {
        self.with(|content| {
            for (piece, at, len) in parts(range) {
                if len == PIECE as usize {
                    content.pieces.remove(&piece);
                } else if let Some(bytes) = content.pieces.get_mut(&piece) {
                    bytes[at..at + len].fill(0);
                }
            }
        });
    }
}

impl Storage for SparseStorage {
    fn limits(&self) -> Limits {
        MemoryStorage::default().limits()
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.with(|content| content.length))
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.with(|content| std::mem::replace(&mut content.length, len));
        self.zero(len..old.max(len));
        Ok(())
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (IoBuf, io::Result<()>) {
        self.read_at(offset, &mut buf);
        (buf, Ok(()))
    }

    async fn write(&self, offset: u64, buf: IoBuf, _: Durability) -> (IoBuf, io::Result<()>) {
        self.write_at(offset, &buf);
        (buf, Ok(()))
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.with(|content| content.length = content.length.max(range.end));
        self.zero(range);
        Ok(())
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.zero(range);
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn settle(&self) -> io::Result<()> {
        Ok(())
    }

    async fn is_hole(&self, offset: u64, len: u64) -> (u64, bool) {
        self.with(|content| {
            let piece = offset / PIECE;
            let is_hole = !content.pieces.contains_key(&piece);
            let next = match is_hole {
                true => content.pieces.range(piece..).next().map_or(u64::MAX, |(&next, _)| next),
                false => piece + 1,
            };
            (len.min(next.saturating_mul(PIECE) - offset), is_hole)
        })
    }
}
