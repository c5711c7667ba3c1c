//! A storage whose I/Os are tasks of shuttle, so that its scheduler decides when each one ends.
//!
//! Invariant: nothing here decides anything. What runs next is the scheduler's choice, and so is, through its random
//! numbers, what a read returns of a unit with a write in flight.
//!
//! ```text
//!   request ──submit──┐                              ┌── goes on
//!                     ├─ spawns ──> I/O task ──ends──┤
//!                     └─ waits for it, or is dropped └── nobody waits: an orphan has landed, settle() goes on
//! ```

use std::future::poll_fn;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use faultfs::DEFAULT_LIMITS;
use faultfs::chooser::{Choice, Chooser};
use faultfs::disk::{FlushId, PossibleDisk, WriteId};
use faultfs::values::Key;
use model::guest::Guest;
use qcow2_core::storage::{Durability, IoBuf, Limits, Storage, UNIT};
use shuttle::rand::{Rng, thread_rng};

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Read,
    Cached,
    Through,
    Zeroes,
    Discard,
    Length,
    Flush,
}

/// An I/O in flight.
#[derive(Debug)]
struct Flying {
    index: u64,
    kind: Kind,
    /// Bytes that it may change or return.
    range: Range<u64>,
    effect: Effect,
    /// Nobody waits for it any more.
    orphan: bool,
}

#[derive(Clone, Copy, Debug)]
enum Effect {
    None,
    Write(WriteId),
    Flush(FlushId),
}

/// The disk, what the guest was promised of it, and everything in flight.
pub(super) struct Scene {
    pub(super) disk: PossibleDisk,
    pub(super) guest: Guest,
    /// Two I/Os in flight at once that the contract of the storage forbids.
    pub(super) breach: Option<String>,
    /// The disk and the promises at every moment so far.
    pub(super) moments: Vec<(PossibleDisk, Guest)>,
    flying: Vec<Flying>,
    settling: Vec<Waker>,
    submitted: u64,
    order: DefaultHasher,
}

impl Scene {
    /// A moment at which the power could fail: an I/O or a request has begun or ended.
    pub(super) fn pass(&mut self) {
        self.moments.push((self.disk.clone(), self.guest.clone()));
    }

    /// Hash of what was submitted and what ended so far, in order.
    pub(super) fn order(&self) -> u64 {
        self.order.finish()
    }

    fn submit(&mut self, kind: Kind, range: Range<u64>, data: &[u8]) -> u64 {
        let aligned = |offset: u64| offset.is_multiple_of(UNIT as u64);
        assert!(aligned(range.start) && aligned(range.end), "{kind:?} of {range:?}");
        let index = self.submitted;
        self.submitted += 1;
        (true, index, kind, range.clone()).hash(&mut self.order);
        let chooser = &mut Scheduled;
        let (first, end) = (unit(range.start), unit(range.end));
        let effect = match kind {
            Kind::Read => Effect::None,
            Kind::Cached | Kind::Through => {
                let mut keys = Vec::new();
                self.disk.values().intern_all(data, &mut keys);
                let durability = match kind {
                    Kind::Cached => Durability::Cached,
                    _ => Durability::Through,
                };
                Effect::Write(self.disk.submit_write(first, &keys, durability, chooser))
            }
            Kind::Zeroes => Effect::Write(self.disk.submit_zeroes(first, end - first, chooser)),
            Kind::Discard => Effect::Write(self.disk.submit_discard(first, end - first, chooser)),
            Kind::Length => Effect::Write(self.disk.submit_set_len(first, chooser)),
            Kind::Flush => Effect::Flush(self.disk.submit_flush()),
        };
        // A change of length touches everything beyond the new one.
        let range = if kind == Kind::Length { range.start..u64::MAX } else { range };
        let new = Flying { index, kind, range, effect, orphan: false };
        if new.kind != Kind::Read
            && let Some(other) = self.flying.iter().find(|other| {
                let overlap =
                    other.range.start < new.range.end && new.range.start < other.range.end;
                other.kind != Kind::Read && overlap
            })
        {
            self.breach.get_or_insert_with(|| format!("overlapping: {other:?} and {new:?}"));
        }
        self.flying.push(new);
        self.pass();
        index
    }

    fn end(&mut self, index: u64) -> io::Result<()> {
        (false, index).hash(&mut self.order);
        let at = self.flying.iter().position(|flying| flying.index == index);
        let ended = self.flying.swap_remove(at.expect("an I/O ends once"));
        let well = match ended.effect {
            Effect::None => true,
            Effect::Write(write) => {
                self.disk.complete(write);
                true
            }
            Effect::Flush(flush) => self.disk.complete_flush(flush),
        };
        if !self.has_orphans() {
            self.settling.drain(..).for_each(Waker::wake);
        }
        self.pass();
        if well { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
    }

    fn has_orphans(&self) -> bool {
        self.flying.iter().any(|flying| flying.orphan && flying.kind != Kind::Read)
    }
}

/// Leaves the disk's choices to the scheduler of the running execution.
struct Scheduled;

impl Chooser for Scheduled {
    fn choose(&mut self, options: u32, _: Choice<'_>) -> u32 {
        thread_rng().gen_range(0..options)
    }
}

fn unit(offset: u64) -> u32 {
    u32::try_from(offset / UNIT as u64).expect("explored images are small")
}

/// A storage over one [`Scene`], for tasks of one execution. Clones share it.
#[derive(Clone)]
pub(super) struct ShuttleStorage(Arc<Mutex<Scene>>);

impl ShuttleStorage {
    pub(super) fn new(disk: PossibleDisk, guest: Guest) -> Self {
        Self(Arc::new(Mutex::new(Scene {
            disk,
            guest,
            breach: None,
            moments: Vec::new(),
            flying: Vec::new(),
            settling: Vec::new(),
            submitted: 0,
            order: DefaultHasher::new(),
        })))
    }

    /// The scene, until the next scheduling point: the scheduler knows nothing of this lock.
    pub(super) fn scene(&self) -> MutexGuard<'_, Scene> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits an I/O, spawns the task that ends it, and waits for that; what it read.
    async fn io(&self, kind: Kind, range: Range<u64>, data: &[u8]) -> io::Result<Vec<Key>> {
        let index = self.scene().submit(kind, range.clone(), data);
        let _waiting = Waiting { storage: self, index };
        let storage = self.clone();
        let task = shuttle::future::spawn(async move {
            let mut keys = Vec::new();
            if kind == Kind::Read {
                for unit in unit(range.start)..unit(range.end) {
                    // Each unit at a moment of its own.
                    switch().await;
                    keys.push(storage.scene().disk.read(unit, &mut Scheduled));
                }
            }
            storage.scene().end(index).map(|()| keys)
        });
        task.await.expect("nobody aborts an I/O")
    }
}

/// Makes an orphan of an I/O that is still in flight when it is dropped.
struct Waiting<'a> {
    storage: &'a ShuttleStorage,
    index: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut scene = self.storage.scene();
        if let Some(flying) = scene.flying.iter_mut().find(|flying| flying.index == self.index) {
            flying.orphan = true;
        }
    }
}

/// A scheduling point. Not `yield_now`, which asks for another task to run, so that PCT would lower the priority of whoever
/// passes one.
pub(super) async fn switch() {
    let mut switched = false;
    poll_fn(|context| {
        if std::mem::replace(&mut switched, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Storage for ShuttleStorage {
    fn limits(&self) -> Limits {
        DEFAULT_LIMITS
    }

    async fn len(&self) -> io::Result<u64> {
        switch().await;
        Ok(u64::from(self.scene().disk.len(&mut Scheduled)) * UNIT as u64)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.io(Kind::Length, len..len, &[]).await.map(drop)
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (IoBuf, io::Result<()>) {
        let range = offset..offset + buf.len() as u64;
        let read = self.io(Kind::Read, range, &[]).await.map(|keys| {
            let values = self.scene().disk.values().clone();
            for (target, &key) in buf.as_chunks_mut::<UNIT>().0.iter_mut().zip(&keys) {
                *target = *values.bytes(key);
            }
        });
        (buf, read)
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, io::Result<()>) {
        let kind = match durability {
            Durability::Cached => Kind::Cached,
            Durability::Through => Kind::Through,
        };
        let written = self.io(kind, offset..offset + buf.len() as u64, &buf).await;
        (buf, written.map(drop))
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.io(Kind::Zeroes, range, &[]).await.map(drop)
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.io(Kind::Discard, range, &[]).await.map(drop)
    }

    async fn flush(&self) -> io::Result<()> {
        self.io(Kind::Flush, 0..0, &[]).await.map(drop)
    }

    async fn settle(&self) -> io::Result<()> {
        poll_fn(|context| {
            let mut scene = self.scene();
            if scene.has_orphans() {
                scene.settling.push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    async fn pause(&self) {
        switch().await;
    }
}
