//! A file of bytes over a device of sectors: reads and writes of any place and length, for implementations that do not align theirs.
//!
//! ```text
//!   write  300..1400          |......****|**********|***.......|      sectors of 512
//!                              0          512        1024
//!   read   0..512, 1024..1536  ^                     ^                what it does not fill
//!   write  0..1536
//! ```
//!
//! **Invariant.** A sector is in one write at a time: one that reads what it does not fill would bring back what another has just written
//! over. Writes that share a sector follow each other, in the order in which they came; nothing else waits.
//!
//! An operation that failed is over when it returns, and so is a write that was dropped when the next one begins: what they left undone does
//! not land later.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Limits, Storage as _};

/// The file of an image. Clones are the same file.
#[derive(Clone, Debug)]
pub struct ByteFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    storage: AnyStorage,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of the file; the storage below may be longer, to whole sectors.
    length: u64,
    /// Sectors that somebody writes or waits for, in order, by number.
    claims: Vec<(u64, Range<u64>)>,
    next: u64,
    wakers: Vec<Waker>,
    /// Operations that were dropped in their middle, and how many of these can neither land nor fail any more.
    dropped: u64,
    settled: u64,
}

/// Sectors that are somebody's until it is dropped.
struct Claim<'a> {
    file: &'a ByteFile,
    number: u64,
    done: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.file.state();
        state.claims.retain(|(number, _)| *number != self.number);
        state.dropped += u64::from(!self.done);
        for waker in state.wakers.drain(..) {
            waker.wake();
        }
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("requests fit in memory")
}

impl ByteFile {
    /// The file on a storage.
    ///
    /// # Errors
    /// If its length is not known.
    pub async fn new(storage: AnyStorage) -> io::Result<Self> {
        let (length, limits) = (storage.len().await?, storage.limits());
        let state = State { length, ..State::default() };
        let state = Mutex::new(state);
        Ok(Self(Arc::new(Inner { storage, limits, state })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the file. After a power cut they are rounded up to whole sectors.
    pub fn len(&self) -> u64 {
        self.state().length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn sector(&self) -> u64 {
        self.0.limits.sector() as u64
    }

    /// Waits until nobody else writes there.
    async fn claim(&self, range: Range<u64>) -> io::Result<Claim<'_>> {
        let number = {
            let mut state = self.state();
            state.next += 1;
            let number = state.next;
            state.claims.push((number, range.clone()));
            number
        };
        let mut claim = Claim { file: self, number, done: true };
        poll_fn(|context| {
            let mut state = self.state();
            let meets = |other: &Range<u64>| other.start < range.end && range.start < other.end;
            if state
                .claims
                .iter()
                .take_while(|(other, _)| *other != number)
                .any(|(_, it)| meets(it))
            {
                state.wakers.push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        claim.done = false;
        let dropped = self.state().dropped;
        if self.state().settled < dropped {
            self.0.storage.settle().await?;
            let mut state = self.state();
            state.settled = state.settled.max(dropped);
        }
        Ok(claim)
    }

    /// The end of an operation.
    async fn over<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if done.is_err() {
            // What could not be waited for is told by what comes next.
            let _ = self.0.storage.settle().await;
        }
        done
    }

    /// The same of what may change the length, of which nobody knows what it is after a failure.
    async fn changed(&self, done: io::Result<()>) -> io::Result<()> {
        if done.is_err() {
            let done = self.over(done).await;
            if let Ok(length) = self.over(self.0.storage.len().await).await {
                self.state().length = length;
            }
            return done;
        }
        done
    }

    /// Whole sectors, in transfers that the device takes.
    async fn read_sectors(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let Limits { alignment, max_transfer, .. } = self.0.limits;
        for (at, part) in (offset..).step_by(max_transfer).zip(into.chunks_mut(max_transfer)) {
            let buf = IoBuf::zeroed(part.len(), alignment);
            let (buf, read) = self.0.storage.read(at, buf).await;
            self.over(read).await?;
            part.copy_from_slice(&buf);
        }
        Ok(())
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] past the end; as the device says.
    pub async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        if end > self.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let first = offset / self.sector() * self.sector();
        let mut whole = vec![0; index(end.next_multiple_of(self.sector()) - first)];
        self.read_sectors(first, &mut whole).await?;
        buf.copy_from_slice(&whole[index(offset - first)..][..buf.len()]);
        Ok(())
    }

    /// Writes all of `data` at `offset`, and makes the file longer if need be. Of a sector that it does not fill the rest is read before.
    ///
    /// # Errors
    /// As the device says.
    pub async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let range = self.around(offset..offset + data.len() as u64);
        let mut claim = self.claim(range).await?;
        let written = self.write_claimed(offset, data).await;
        claim.done = true;
        written
    }

    /// The sectors that a range touches.
    fn around(&self, range: Range<u64>) -> Range<u64> {
        range.start / self.sector() * self.sector()..range.end.next_multiple_of(self.sector())
    }

    async fn write_claimed(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset + data.len() as u64;
        let Range { start: first, end: last } = self.around(offset..end);
        let mut whole = vec![0; index(last - first)];
        let size = index(self.sector());
        if offset != first {
            self.read_sectors(first, &mut whole[..size]).await?;
        }
        if end != last && (whole.len() > size || offset == first) {
            let at = whole.len() - size;
            self.read_sectors(first + at as u64, &mut whole[at..]).await?;
        }
        whole[index(offset - first)..][..data.len()].copy_from_slice(data);
        let Limits { alignment, max_transfer, .. } = self.0.limits;
        for (at, part) in (first..).step_by(max_transfer).zip(whole.chunks(max_transfer)) {
            let buf = IoBuf::copy_of(part, alignment);
            let (_, written) = self.0.storage.write(at, buf, Durability::Cached).await;
            self.changed(written).await?;
        }
        let mut state = self.state();
        state.length = state.length.max(end);
        Ok(())
    }

    /// Makes the file so long; what it gains reads as zeroes.
    ///
    /// # Errors
    /// As the device says.
    pub async fn set_len(&self, length: u64) -> io::Result<()> {
        let mut claim = self.claim(0..u64::MAX).await?;
        let done = self.set_len_claimed(length).await;
        claim.done = true;
        done
    }

    async fn set_len_claimed(&self, length: u64) -> io::Result<()> {
        let (old, whole) = (self.len(), length.next_multiple_of(self.sector()));
        self.changed(self.0.storage.set_len(whole).await).await?;
        if length < old {
            // What is cut off of a sector that stays must not come back with a growth.
            self.write_claimed(length, &vec![0; index(whole - length)]).await?;
        }
        self.state().length = length;
        Ok(())
    }

    /// Makes a range read as zeroes: the whole sectors in it without writing them.
    ///
    /// # Errors
    /// As the device says.
    pub async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        let mut claim = self.claim(self.around(range.clone())).await?;
        let done = self.zero_claimed(range).await;
        claim.done = true;
        done
    }

    async fn zero_claimed(&self, range: Range<u64>) -> io::Result<()> {
        let whole = self.whole_sectors(&range);
        if whole.is_empty() {
            return self.write_claimed(range.start, &vec![0; index(range.end - range.start)]).await;
        }
        self.write_claimed(range.start, &vec![0; index(whole.start - range.start)]).await?;
        self.changed(self.0.storage.write_zeroes(whole.clone()).await).await?;
        {
            let mut state = self.state();
            state.length = state.length.max(whole.end);
        }
        self.write_claimed(whole.end, &vec![0; index(range.end - whole.end)]).await
    }

    /// Gives the space of the whole sectors in a range back, each of which reads as it did or as zeroes then; nothing where the device takes
    /// none back.
    ///
    /// # Errors
    /// As the device says.
    pub async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let whole = self.whole_sectors(&range);
        if whole.is_empty() || !self.0.limits.can_discard {
            return Ok(());
        }
        let mut claim = self.claim(whole.clone()).await?;
        let done = self.over(self.0.storage.discard(whole).await).await;
        claim.done = true;
        done
    }

    /// The whole sectors in a range.
    fn whole_sectors(&self, range: &Range<u64>) -> Range<u64> {
        let end = range.end / self.sector() * self.sector();
        range.start.next_multiple_of(self.sector())..end
    }

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// As the device says.
    pub async fn flush(&self) -> io::Result<()> {
        // It claims nothing; what becomes of one that is dropped is to be heard, too.
        let mut claim = self.claim(0..0).await?;
        let done = self.over(self.0.storage.flush().await).await;
        claim.done = true;
        done
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use faultfs::chooser::Always;
    use faultfs::disk::PossibleDisk;
    use faultfs::exec::{Sim, SimOptions, StepResult};
    use faultfs::rng::Rng;
    use faultfs::schedule::RandomOrder;
    use faultfs::values::Values;
    use qcow2_core::storage::{AnyStorage, Limits};

    use super::ByteFile;

    const BYTES: usize = 9000;

    /// Goal: writes that share sectors lose none of each other's bytes, in whatever order they run, and none are in flight at once; what a
    /// dropped one leaves undone does not meet the next. Method: the file in pieces of random lengths, each written by a task of its own, at
    /// random schedules that drop some of them; then all of it read.
    #[test]
    fn writes_that_share_a_sector_keep_each_others_bytes() {
        let mut shared = 0;
        for seed in 0..4000 {
            let mut rng = Rng::new(seed);
            let alignment = [512, 4096][rng.below(2) as usize];
            let limits = Limits {
                alignment,
                max_transfer: 4096,
                can_discard: true,
                unwritten_reads_zero: true,
            };
            let disk = PossibleDisk::new(&Values::new(), 0).with_limits(limits);
            let mut options = SimOptions::new(RandomOrder::new(seed), Always(0));
            options.cancellations = rng.below(4);
            let mut sim = Sim::new(disk, options);
            let slot = Rc::new(RefCell::new(None));
            let (storage, into) = (sim.storage(), Rc::clone(&slot));
            sim.spawn("open", async move {
                let opened = ByteFile::new(AnyStorage::new(storage)).await;
                *into.borrow_mut() = Some(opened.unwrap());
            });
            while slot.borrow().is_none() && sim.step() != StepResult::Done {}
            let Some(file) = slot.take() else { continue };

            let done: Rc<RefCell<Vec<(usize, usize, u8)>>> = Rc::default();
            let (mut at, mut fill) = (0, 0);
            while at < BYTES {
                let length = (1 + rng.below(2000) as usize).min(BYTES - at);
                fill += 1;
                let (file, done) = (file.clone(), Rc::clone(&done));
                sim.spawn("write", async move {
                    file.write_at(at as u64, &vec![fill; length]).await.unwrap();
                    done.borrow_mut().push((at, length, fill));
                });
                shared += u32::from(at % alignment != 0);
                at += length;
            }
            assert_eq!(sim.run(), StepResult::Done, "seed {seed}");
            let reader = file.clone();
            let written = done.borrow().clone();
            sim.spawn("read", async move {
                for (at, length, fill) in written {
                    let mut read = vec![0; length];
                    reader.read_at(at as u64, &mut read).await.unwrap();
                    assert!(read.iter().all(|byte| *byte == fill), "seed {seed}: write {fill}");
                }
            });
            assert_eq!(sim.run(), StepResult::Done);
            assert!(done.borrow().len() + 3 >= usize::from(fill), "seed {seed}");
            assert_eq!(sim.breaches(), [], "seed {seed}");
        }
        assert!(shared > 1000, "{shared} writes began inside a sector");
    }
}
