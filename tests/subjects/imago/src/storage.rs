//! A storage of ours as one of imago's.
//!
//! Every call becomes one operation below, with the same range and the same outcome; nothing is kept back, so `flush` has
//! nothing to do and `sync` is the flush of the storage below.
//!
//! imago flushes a cache in the order of a hash map whose keys are random, all tables at once; so its writes go through a queue that puts
//! them in order of offset, which is one of the orders that imago takes.

use std::fmt;
use std::io;
use std::sync::Arc;

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Storage as _};
use qcow2_crashtest::in_order::InOrder;

/// What imago reads from and writes to.
pub(crate) struct Below {
    storage: Arc<AnyStorage>,
    queue: InOrder,
    helper: CommonStorageHelper,
}

impl Below {
    /// A storage of imago's, and the queue through which its users must run.
    pub(crate) fn new(storage: AnyStorage) -> (Self, InOrder) {
        let queue = InOrder::default();
        let (storage, helper) = (Arc::new(storage), CommonStorageHelper::default());
        (Self { storage, queue: queue.clone(), helper }, queue)
    }
}

impl Below {
    /// What is asked for as transfers that the device takes: where each begins, and its length.
    fn parts(&self, offset: u64, length: u64) -> impl Iterator<Item = (u64, usize)> + use<> {
        let most = self.storage.limits().max_transfer;
        let end = offset + length;
        (offset..end).step_by(most).map(move |at| {
            let rest = usize::try_from(end - at).unwrap_or(most);
            (at, rest.min(most))
        })
    }
}

impl fmt::Debug for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Below")
    }
}

impl fmt::Display for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("storage under test")
    }
}

fn bytes(length: u64) -> io::Result<usize> {
    usize::try_from(length).map_err(io::Error::other)
}

#[expect(unsafe_code, reason = "the trait declares them so; nothing unsafe is done")]
impl imago::Storage for Below {
    fn mem_align(&self) -> usize {
        self.storage.limits().alignment
    }

    fn req_align(&self) -> usize {
        self.storage.limits().alignment
    }

    fn size(&self) -> io::Result<u64> {
        faultfs::direct::run(self.storage.len())
            .unwrap_or_else(|| Err(io::Error::other("the length is not known at once")))
    }

    async unsafe fn pure_readv(&self, mut to: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut whole = Vec::new();
        for (at, length) in self.parts(offset, to.len()) {
            let buf = IoBuf::zeroed(length, self.mem_align());
            let (buf, result) = self.storage.read(at, buf).await;
            result?;
            whole.extend_from_slice(&buf);
        }
        to.copy_from_slice(&whole);
        Ok(())
    }

    async unsafe fn pure_writev(&self, from: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut whole = vec![0; bytes(from.len())?];
        from.copy_into_slice(&mut whole);
        let (storage, align) = (Arc::clone(&self.storage), self.mem_align());
        let parts: Vec<_> = self.parts(offset, from.len()).collect();
        let io = async move {
            for (at, length) in parts {
                let within = bytes(at - offset)?;
                let buf = IoBuf::copy_of(&whole[within..within + length], align);
                storage.write(at, buf, Durability::Cached).await.1?;
            }
            Ok(())
        };
        self.queue.write(offset, io).await
    }

    async unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.storage.write_zeroes(offset..offset + length).await
    }

    async unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.storage.write_zeroes(offset..offset + length).await
    }

    async unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.storage.discard(offset..offset + length).await
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Settles first: of a sync whose future was dropped and that failed, the next one must not be silent.
    async fn sync(&self) -> io::Result<()> {
        self.storage.settle().await?;
        self.storage.flush().await
    }

    async fn settle_writes(&self) -> io::Result<()> {
        self.storage.settle().await
    }

    async unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
