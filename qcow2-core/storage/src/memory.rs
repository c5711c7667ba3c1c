//! A storage in memory: every operation completes at once. For tests, benchmarks and tools that build small images.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Durability, IoBuf, Limits, Storage};

/// A growable byte array. Clones share the bytes.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage(Arc<Mutex<Vec<u8>>>);

impl MemoryStorage {
    /// A storage that holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.with(|bytes| bytes.clone())
    }

    /// Runs `step` on the bytes.
    pub fn with<R>(&self, step: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        step(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset)
        .ok()
        .filter(|&at| at <= isize::MAX as usize)
        .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, format!("offset {offset}")))
}

impl Storage for MemoryStorage {
    fn limits(&self) -> Limits {
        Limits {
            alignment: 1,
            max_transfer: 1 << 30,
            can_discard: true,
            unwritten_reads_zero: true,
        }
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.with(|bytes| bytes.len() as u64))
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let len = index(len)?;
        self.with(|bytes| bytes.resize(len, 0));
        Ok(())
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (IoBuf, io::Result<()>) {
        self.with(|bytes| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let count = buf.len().min(bytes.len() - from);
            buf[..count].copy_from_slice(&bytes[from..from + count]);
            buf[count..].fill(0);
        });
        (buf, Ok(()))
    }

    async fn write(&self, offset: u64, buf: IoBuf, _: Durability) -> (IoBuf, io::Result<()>) {
        let written = index(offset).and_then(|from| {
            let end = index(offset.saturating_add(buf.len() as u64))?;
            self.with(|bytes| {
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[from..end].copy_from_slice(&buf);
            });
            Ok(())
        });
        (buf, written)
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        let (from, end) = (index(range.start)?, index(range.end)?);
        self.with(|bytes| {
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[from..end].fill(0);
        });
        Ok(())
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.with(|bytes| {
            let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            let (from, end) = (clamp(range.start), clamp(range.end));
            bytes[from..end].fill(0);
        });
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn settle(&self) -> io::Result<()> {
        Ok(())
    }
}
