//! A storage of ours as one of imago's.
//!
//! Every call becomes one operation below, with the same range and the same outcome; nothing is kept back, so `flush` has
//! nothing to do and `sync` is the flush of the storage below.
//!
//! Invariant: what is submitted is a function of what was asked for, and not of the order in which it was. imago flushes a
//! cache in the order of a hash map whose keys are random, all tables at once; so the writes that it asks for in one poll
//! wait in a queue, and after the poll they are submitted in order of offset, which is one of the orders that imago takes.
//! How often it wakes itself depends on that order too, so it is polled until it waits for somebody else.
//!
//! ```text
//!   poll ──> imago ──> write 0xa00, write 0x400 ──> queue ──after the poll──> submit 0x400, 0xa00
//!              ^                                                                 |
//!              '------------------------- woken meanwhile? <---------------------'
//! ```

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Storage as _};

/// What imago reads from and writes to.
pub(crate) struct Below {
    storage: Arc<AnyStorage>,
    queue: Queue,
    helper: CommonStorageHelper,
}

/// Writes that were asked for in this poll; one whose future was dropped is gone.
#[derive(Clone, Default)]
pub(crate) struct Queue(Arc<Mutex<Vec<Weak<Mutex<Write>>>>>);

struct Write {
    offset: u64,
    io: Pin<Box<dyn Future<Output = io::Result<()>> + Send>>,
    submitted: bool,
    outcome: Option<io::Result<()>>,
    waker: Waker,
}

impl Write {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(outcome) = self.outcome.take() {
            return Poll::Ready(outcome);
        }
        if self.submitted {
            return self.io.as_mut().poll(context);
        }
        self.waker.clone_from(context.waker());
        Poll::Pending
    }

    fn submit(&mut self) {
        self.submitted = true;
        if let Poll::Ready(outcome) = self.io.as_mut().poll(&mut Context::from_waker(&self.waker)) {
            self.outcome = Some(outcome);
            self.waker.wake_by_ref();
        }
    }
}

impl Queue {
    /// Runs `work`; what it asks for in each poll is submitted after that poll.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let task = Arc::new(Task(Mutex::new(Woken::Polled { again: false })));
        let waker = Waker::from(Arc::clone(&task));
        poll_fn(|context| {
            loop {
                *lock(&task.0) = Woken::Polled { again: false };
                let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
                let asked = std::mem::take(&mut *lock(&self.0));
                let mut writes: Vec<_> = asked.iter().filter_map(Weak::upgrade).collect();
                writes.sort_by_key(|write| lock(write).offset);
                writes.iter().for_each(|write| lock(write).submit());
                let mut woken = lock(&task.0);
                if polled.is_ready() || matches!(*woken, Woken::Polled { again: false }) {
                    *woken = Woken::Later(context.waker().clone());
                    return polled;
                }
            }
        })
        .await
    }

    async fn write(
        &self,
        offset: u64,
        io: impl Future<Output = io::Result<()>> + Send + 'static,
    ) -> io::Result<()> {
        let (io, waker) = (Box::pin(io), Waker::noop().clone());
        let write = Write { offset, io, submitted: false, outcome: None, waker };
        let write = Arc::new(Mutex::new(write));
        lock(&self.0).push(Arc::downgrade(&write));
        poll_fn(|context| lock(&write).poll(context)).await
    }
}

/// The waker of a future in a queue: it passes on what comes from outside, and keeps what the future does itself.
struct Task(Mutex<Woken>);

enum Woken {
    /// While it is polled: whether it is to be polled again.
    Polled { again: bool },
    /// Afterwards: who is to know.
    Later(Waker),
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        match &mut *lock(&self.0) {
            Woken::Polled { again } => *again = true,
            Woken::Later(waker) => waker.wake_by_ref(),
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Below {
    /// A storage of imago's, and the queue through which its users must run.
    pub(crate) fn new(storage: AnyStorage) -> (Self, Queue) {
        let queue = Queue::default();
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
