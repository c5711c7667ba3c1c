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
//! An operation that failed is over when it returns, and so is one that was dropped when the next one begins: what they left undone does not
//! land later. What is not known of the length then is asked of the device, which rounds it up to whole sectors. That a flush failed which
//! was dropped is told by the next one.

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
    /// Whether a flush failed that was dropped, and nobody has been told.
    unheard: bool,
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
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// No file is longer.
const MOST: u64 = i64::MAX as u64;

/// The end of a range that is to be changed.
fn end_of(offset: u64, length: u64) -> io::Result<u64> {
    let end = offset.checked_add(length).filter(|end| *end <= MOST);
    end.ok_or_else(|| io::ErrorKind::FileTooLarge.into())
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

    /// Bytes of the file. After a power cut, and after a change that failed or was dropped, they are rounded up to whole sectors.
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
    async fn claim(&self, range: Range<u64>) -> Claim<'_> {
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
            self.settle().await;
            self.settled(dropped);
            self.look_up_length().await;
        }
        claim
    }

    /// Waits until nothing that failed or was dropped can land.
    async fn settle(&self) {
        let settled = self.0.storage.settle().await;
        self.state().unheard |= settled.is_err();
    }

    fn settled(&self, dropped: u64) {
        let mut state = self.state();
        state.settled = state.settled.max(dropped);
    }

    async fn look_up_length(&self) {
        if let Ok(length) = self.over(self.0.storage.len().await).await {
            self.state().length = length;
        }
    }

    /// The end of an operation.
    async fn over<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if done.is_err() {
            self.settle().await;
        }
        done
    }

    /// The same of what may change the length, of which nobody knows what it is after a failure.
    async fn changed(&self, done: io::Result<()>) -> io::Result<()> {
        if done.is_err() {
            let done = self.over(done).await;
            self.look_up_length().await;
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
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len());
        let Some(end) = end else { return Err(io::ErrorKind::UnexpectedEof.into()) };
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
        let range = self.around(offset..end_of(offset, data.len() as u64)?);
        let mut claim = self.claim(range).await;
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
        end_of(length, 0)?;
        let mut claim = self.claim(0..u64::MAX).await;
        let done = self.set_len_claimed(length).await;
        claim.done = true;
        done
    }

    async fn set_len_claimed(&self, length: u64) -> io::Result<()> {
        let (old, whole) = (self.len(), length.next_multiple_of(self.sector()));
        self.changed(self.0.storage.set_len(whole).await).await?;
        self.state().length = old.min(whole);
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
        end_of(range.end, 0)?;
        let mut claim = self.claim(self.around(range.clone())).await;
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
        let mut claim = self.claim(whole.clone()).await;
        let done = self.over(self.0.storage.discard(whole).await).await;
        claim.done = true;
        done
    }

    /// The whole sectors in a range.
    fn whole_sectors(&self, range: &Range<u64>) -> Range<u64> {
        let end = range.end.min(MOST) / self.sector() * self.sector();
        range.start.min(MOST).next_multiple_of(self.sector())..end
    }

    /// Lets others get ahead here, as [`pause`](qcow2_core::storage::Storage::pause) of a storage.
    pub async fn pause(&self) {
        self.0.storage.pause().await;
    }

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// As the device says.
    pub async fn flush(&self) -> io::Result<()> {
        // It claims nothing; what becomes of one that is dropped is to be heard, too.
        let mut claim = self.claim(0..0).await;
        let done = self.over(self.0.storage.flush().await).await;
        claim.done = true;
        match std::mem::take(&mut self.state().unheard) {
            true => Err(io::Error::other("a flush that was dropped failed")),
            false => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::rc::Rc;

    use faultfs::chooser::Always;
    use faultfs::disk::PossibleDisk;
    use faultfs::exec::{Sim, SimOptions, StepResult};
    use faultfs::fault::{Fault, FaultAt, FaultPlan, NoFaults, Planned, PlannedFault};
    use faultfs::profile::FlushFailure;
    use faultfs::rng::Rng;
    use faultfs::schedule::RandomOrder;
    use faultfs::trace::IoKind;
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

    /// Goal: what a dropped or failed change left is as a file would have it: what lies behind the end reads as zeroes once it is in the file,
    /// and nothing is cut off without the length saying so. Method: a write past the end that is dropped in flight and lands, then growth; a
    /// shrink whose rest of a sector cannot be read.
    #[test]
    fn a_change_by_halves_leaves_what_the_length_says() {
        let (mut sim, file) = opened(NoFaults);
        let writer = file.clone();
        let write = sim.spawn("write", async move {
            writer.write_at(2000, &[7; 100]).await.unwrap();
        });
        while !sim.in_flight().iter().any(|io| io.kind == IoKind::Write) {
            sim.step();
        }
        sim.cancel(write);
        let grower = file.clone();
        sim.spawn("grow", async move {
            grower.write_at(0, &[1; 512]).await.unwrap();
            assert_eq!(grower.len(), 2560);
            grower.set_len(4096).await.unwrap();
            let mut read = [0; 100];
            grower.read_at(2000, &mut read).await.unwrap();
            assert_eq!(read, [7; 100], "it landed where the file had an end behind it");
            grower.read_at(2100, &mut read).await.unwrap();
            assert_eq!(read, [0; 100]);
        });
        assert_eq!(sim.run(), StepResult::Done);

        let at = FaultAt::Nth { kind: IoKind::Read, nth: 0 };
        let (mut sim, file) = opened(Planned(vec![PlannedFault { at, fault: Fault::Eio }]));
        sim.spawn("shrink", async move {
            file.write_at(0, &[1; 5120]).await.unwrap();
            file.set_len(700).await.unwrap_err();
            let length = file.len();
            assert!((700..=1024).contains(&length), "{length}");
        });
        assert_eq!(sim.run(), StepResult::Done);
    }

    /// Goal: that a flush failed which was dropped is told by the next one, whatever was waited for in between. Method: one that is dropped in
    /// flight and fails, then a read that fails, then two flushes.
    #[test]
    fn a_dropped_flush_that_fails_is_told() {
        let fault = |kind, fault| PlannedFault { at: FaultAt::Nth { kind, nth: 0 }, fault };
        let failed = Fault::Flush(FlushFailure::CleanMarked);
        let faults = vec![fault(IoKind::Flush, failed), fault(IoKind::Read, Fault::Eio)];
        let (mut sim, file) = opened(Planned(faults));
        let (writer, flusher) = (file.clone(), file.clone());
        sim.spawn("write", async move { writer.write_at(0, &[1; 512]).await.unwrap() });
        assert_eq!(sim.run(), StepResult::Done);
        let flush = sim.spawn("flush", async move { flusher.flush().await.unwrap() });
        while sim.in_flight().is_empty() {
            sim.step();
        }
        sim.cancel(flush);
        sim.spawn("next", async move {
            file.read_at(0, &mut [0; 512]).await.unwrap_err();
            file.flush().await.unwrap_err();
            file.flush().await.unwrap();
        });
        assert_eq!(sim.run(), StepResult::Done);
    }

    /// Goal: a place that no file has is told as what it is. Method: offsets at the end of all numbers.
    #[test]
    fn no_offset_is_too_large_to_be_told() {
        let (mut sim, file) = opened(NoFaults);
        sim.spawn("far", async move {
            let kind = |done: io::Result<()>| done.unwrap_err().kind();
            let far = u64::MAX - 3;
            assert_eq!(kind(file.read_at(far, &mut [0; 8]).await), io::ErrorKind::UnexpectedEof);
            assert_eq!(kind(file.write_at(far, &[0; 8]).await), io::ErrorKind::FileTooLarge);
            assert_eq!(kind(file.set_len(far).await), io::ErrorKind::FileTooLarge);
            assert_eq!(kind(file.write_zeroes(far..u64::MAX).await), io::ErrorKind::FileTooLarge);
            file.discard(far..u64::MAX).await.unwrap();
            assert_eq!(file.len(), 0);
        });
        assert_eq!(sim.run(), StepResult::Done);
    }

    fn opened(faults: impl FaultPlan + Send + 'static) -> (Sim, ByteFile) {
        let disk = PossibleDisk::new(&Values::new(), 0);
        let mut options = SimOptions::new(RandomOrder::new(1), Always(0));
        options.faults = Box::new(faults);
        let mut sim = Sim::new(disk, options);
        let slot = Rc::new(RefCell::new(None));
        let (storage, into) = (sim.storage(), Rc::clone(&slot));
        sim.spawn("open", async move {
            let opened = ByteFile::new(AnyStorage::new(storage)).await;
            *into.borrow_mut() = Some(opened.unwrap());
        });
        assert_eq!(sim.run(), StepResult::Done);
        let file = slot.take().unwrap();
        (sim, file)
    }
}
