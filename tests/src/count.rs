//! A storage that counts what is asked of another one, and can lose patience.
//!
//! The invariant: every operation is counted once, when it is called, whether or not it succeeds. With a budget, operations
//! past it fail, so that a loop that would never end ends, and the test that set the budget can say so.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Range, Sub};
use std::sync::{Arc, Mutex, PoisonError};

use qcow2_core::storage::{Durability, IoBuf, Limits, Storage};

/// Operations of one kind and the bytes that they carried or covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Sub for Tally {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { count: self.count - earlier.count, bytes: self.bytes - earlier.bytes }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} B)", self.count, self.bytes)
    }
}

/// What was asked of a storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: Tally,
    /// Cached writes.
    pub writes: Tally,
    /// Writes that were to be durable at once.
    pub through: Tally,
    /// Zeroed ranges.
    pub zeroes: Tally,
    /// Discarded ranges.
    pub discards: Tally,
    /// Flushes.
    pub flushes: u64,
    /// Changes of the length.
    pub set_lens: u64,
    /// Questions for the length.
    pub lens: u64,
}

impl Counts {
    /// Operations of every kind.
    pub fn operations(&self) -> u64 {
        let tallies = [self.reads, self.writes, self.through, self.zeroes, self.discards];
        let simple = self.flushes + self.set_lens + self.lens;
        tallies.iter().fold(simple, |sum, tally| sum + tally.count)
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            reads: self.reads - earlier.reads,
            writes: self.writes - earlier.writes,
            through: self.through - earlier.through,
            zeroes: self.zeroes - earlier.zeroes,
            discards: self.discards - earlier.discards,
            flushes: self.flushes - earlier.flushes,
            set_lens: self.set_lens - earlier.set_lens,
            lens: self.lens - earlier.lens,
        }
    }
}

#[derive(Debug)]
struct Meter {
    counts: Counts,
    largest: u64,
    budget: u64,
}

/// A storage over another one. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    meter: Arc<Mutex<Meter>>,
}

impl<S> Counted<S> {
    /// Counts what is asked of `inner`.
    pub fn new(inner: S) -> Self {
        Self::with_budget(inner, u64::MAX)
    }

    /// The same, and every operation after the first `budget` fails.
    pub fn with_budget(inner: S, budget: u64) -> Self {
        let meter = Meter { counts: Counts::default(), largest: 0, budget };
        Self { inner, meter: Arc::new(Mutex::new(meter)) }
    }

    /// What was asked so far.
    pub fn counts(&self) -> Counts {
        self.with(|meter| meter.counts)
    }

    /// The longest buffer that was read into or written from, in bytes.
    pub fn largest_transfer(&self) -> u64 {
        self.with(|meter| meter.largest)
    }

    /// Whether an operation was refused because the budget was spent.
    pub fn is_exhausted(&self) -> bool {
        self.with(|meter| meter.counts.operations() > meter.budget)
    }

    fn with<R>(&self, step: impl FnOnce(&mut Meter) -> R) -> R {
        step(&mut self.meter.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn count(&self, step: impl FnOnce(&mut Counts)) -> io::Result<()> {
        self.with(|meter| {
            step(&mut meter.counts);
            if meter.counts.operations() <= meter.budget {
                return Ok(());
            }
            let budget = meter.budget;
            Err(io::Error::other(format!("the budget of {budget} operations is spent")))
        })
    }

    fn transfer(
        &self,
        bytes: usize,
        kind: impl FnOnce(&mut Counts) -> &mut Tally,
    ) -> io::Result<()> {
        let bytes = bytes as u64;
        self.with(|meter| meter.largest = meter.largest.max(bytes));
        self.count(|counts| kind(counts).add(bytes))
    }
}

impl<S: Storage> Storage for Counted<S> {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn writable(&self) -> bool {
        self.inner.writable()
    }

    async fn len(&self) -> io::Result<u64> {
        self.count(|counts| counts.lens += 1)?;
        self.inner.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.count(|counts| counts.set_lens += 1)?;
        self.inner.set_len(len).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        match self.transfer(buf.len(), |counts| &mut counts.reads) {
            Ok(()) => self.inner.read(offset, buf).await,
            Err(error) => (buf, Err(error)),
        }
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, io::Result<()>) {
        let counted = self.transfer(buf.len(), |counts| match durability {
            Durability::Cached => &mut counts.writes,
            Durability::Through => &mut counts.through,
        });
        match counted {
            Ok(()) => self.inner.write(offset, buf, durability).await,
            Err(error) => (buf, Err(error)),
        }
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.count(|counts| counts.zeroes.add(range.end.saturating_sub(range.start)))?;
        self.inner.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.count(|counts| counts.discards.add(range.end.saturating_sub(range.start)))?;
        self.inner.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.count(|counts| counts.flushes += 1)?;
        self.inner.flush().await
    }

    async fn settle(&self) -> io::Result<()> {
        self.inner.settle().await
    }

    fn pause(&self) -> impl Future<Output = ()> + Send {
        self.inner.pause()
    }
}

#[cfg(test)]
mod tests {
    use qcow2_core::blocking::block_on;
    use qcow2_core::storage::memory::MemoryStorage;

    use super::*;

    /// Goal: each operation is counted as what it is, and changes what is below.
    #[test]
    fn operations_are_counted_by_kind() {
        let storage = Counted::new(MemoryStorage::default());
        let write = |offset, len, how| {
            block_on(storage.write(offset, IoBuf::copy_of(&vec![7; len], 1), how)).1.unwrap();
        };
        write(0, 1000, Durability::Cached);
        let before = storage.counts();
        write(0, 24, Durability::Cached);
        write(512, 512, Durability::Through);
        block_on(storage.read(0, IoBuf::zeroed(100, 1))).1.unwrap();
        block_on(storage.write_zeroes(0..10)).unwrap();
        block_on(storage.discard(10..40)).unwrap();
        block_on(storage.flush()).unwrap();
        block_on(storage.set_len(2000)).unwrap();
        assert_eq!(block_on(storage.len()).unwrap(), 2000);
        let tally = |count, bytes| Tally { count, bytes };
        let expected = Counts {
            reads: tally(1, 100),
            writes: tally(1, 24),
            through: tally(1, 512),
            zeroes: tally(1, 10),
            discards: tally(1, 30),
            flushes: 1,
            set_lens: 1,
            lens: 1,
        };
        assert_eq!(storage.counts() - before, expected);
        assert_eq!(expected.operations(), 8);
        assert_eq!(storage.largest_transfer(), 1000);
    }

    #[test]
    fn a_spent_budget_refuses_and_says_so() {
        let storage = Counted::with_budget(MemoryStorage::default(), 2);
        block_on(storage.flush()).unwrap();
        block_on(storage.set_len(5)).unwrap();
        assert!(!storage.is_exhausted());
        let error = block_on(storage.set_len(9)).unwrap_err();
        assert_eq!(error.to_string(), "the budget of 2 operations is spent");
        assert!(storage.is_exhausted());
        assert_eq!(storage.inner.to_vec().len(), 5, "what is refused does not happen");
    }
}
