//! A file of ours as one of qcow2-rs's, and its futures as calls.
//!
//! It does what the library's engine for system calls does: any place and length, and less is read at the end of the file.
//!
//! Invariant: what is written is a function of what was asked for. The library flushes a cache in the order of a hash map whose keys are
//! random, all slices at once; so a write waits until all that were asked for with it are known, and they are done in order of offset,
//! which is one of the orders that it takes.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::mem::take;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use qcow2_crashtest::blocking::PlainFile;
use qcow2_rs::error::Qcow2Result;
use qcow2_rs::ops::Qcow2IoOps;

/// The file of an image, and where it is about to be written.
pub(crate) struct File(PlainFile, RefCell<BTreeSet<u64>>);

impl File {
    /// As it is.
    pub(crate) fn new(file: PlainFile) -> Self {
        Self(file, RefCell::default())
    }
}

impl Qcow2IoOps for File {
    // At the end of the file it reads less.
    async fn read_to(&self, offset: u64, buf: &mut [u8]) -> Qcow2Result<usize> {
        let there = buf.len().min(usize::try_from(self.0.len().saturating_sub(offset))?);
        self.0.read_at(offset, &mut buf[..there])?;
        Ok(there)
    }

    async fn write_from(&self, offset: u64, buf: &[u8]) -> Qcow2Result<()> {
        let mut new = self.1.borrow_mut().insert(offset);
        let turn = |context: &mut Context<'_>| {
            context.waker().wake_by_ref();
            let waits = self.1.borrow().first().is_some_and(|first| *first < offset);
            if take(&mut new) || waits { Poll::Pending } else { Poll::Ready(()) }
        };
        poll_fn(turn).await;
        let written = self.0.write_at(offset, buf);
        self.1.borrow_mut().remove(&offset);
        Ok(written?)
    }

    // The flags of its own engines are none that Linux takes, and the library writes zeroes then.
    async fn fallocate(&self, _offset: u64, _len: usize, _flags: u32) -> Qcow2Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn fsync(&self, _offset: u64, _len: usize, _flags: u32) -> Qcow2Result<()> {
        Ok(self.0.flush()?)
    }
}

/// What a future comes to. Nothing that it waits for is done by anybody else.
pub(crate) fn now<T>(work: impl Future<Output = Qcow2Result<T>>) -> Result<T, String> {
    let mut work = pin!(work);
    loop {
        if let Poll::Ready(result) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return result.map_err(|error| error.to_string());
        }
    }
}
