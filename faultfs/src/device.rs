//! From bytes to units: what both drivers of a possible disk do with one I/O.
//!
//! Invariant: an I/O is numbered, traced, checked against the contract and shown to the fault plan exactly once, when
//! it is submitted; its effect on the disk begins then and ends in [`Device::end`].

use std::io;
use std::ops::Range;

use storage::{Durability, UNIT};
use xxhash_rust::xxh3::xxh3_64;

use crate::chooser::Chooser;
use crate::disk::{File, FlushId, Landing, MAX_UNITS, PossibleDisk, WriteId};
use crate::fault::{Fault, FaultPlan};
use crate::profile::FlushFailure;
use crate::trace::{Event, Io, IoKind, Trace};
use crate::values::Key;

pub(crate) const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// The bytes that a transfer covers. One that would end past the last offset there is ends there, for the device to refuse.
pub(crate) const fn span(offset: u64, buf: &[u8]) -> Range<u64> {
    offset..offset.saturating_add(buf.len() as u64)
}

/// Calls that change and read nothing, refused ones among them, after which work is taken to go round in circles.
pub(crate) const MAX_IDLE: u32 = 1 << 20;

/// How a caller broke the contract of the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// Two I/Os in flight touch the same bytes, and neither is a read. One that failed and may still land counts as in flight.
    #[error("overlapping writes in flight: {first:?} and {second:?}")]
    Overlap {
        /// The one in flight.
        first: Io,
        /// The one submitted while it was.
        second: Io,
    },
    /// Offset or length are not multiples of the alignment. The I/O was refused.
    #[error("not aligned: {0:?}")]
    Misaligned(Io),
    /// The buffer does not lie at a multiple of an alignment above 512. The I/O was refused.
    #[error("its buffer is not aligned: {0:?}")]
    Unplaced(Io),
    /// More than the longest transfer. The I/O was refused.
    #[error("longer than the longest transfer: {0:?}")]
    TooLong(Io),
    /// A discard although the storage cannot. The I/O was refused.
    #[error("discard is not offered: {0:?}")]
    NoDiscard(Io),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Effect {
    None,
    Write(WriteId),
    Flush(FlushId),
}

/// An I/O in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) io: Io,
    effect: Effect,
    pub(crate) fault: Option<Fault>,
}

pub(crate) struct Device {
    pub(crate) disk: PossibleDisk,
    pub(crate) faults: Option<Box<dyn FaultPlan + Send>>,
    pub(crate) trace: Option<Trace>,
    pub(crate) breaches: Vec<Breach>,
    /// What failed late and has not been settled.
    late: Vec<Io>,
    submitted: u64,
    by_kind: [u64; IoKind::COUNT],
    keys: Vec<Key>,
}

impl Device {
    pub(crate) fn new(disk: PossibleDisk) -> Self {
        Self {
            disk,
            faults: None,
            trace: None,
            breaches: Vec::new(),
            late: Vec::new(),
            submitted: 0,
            by_kind: [0; IoKind::COUNT],
            keys: Vec::new(),
        }
    }

    /// A device in the same state that goes its own way from here.
    ///
    /// # Panics
    /// If it has a fault plan: that has one future.
    pub(crate) fn fork(&self) -> Self {
        assert!(self.faults.is_none(), "a fault plan has one future");
        Self {
            disk: self.disk.clone(),
            faults: None,
            trace: self.trace.clone(),
            breaches: self.breaches.clone(),
            late: self.late.clone(),
            submitted: self.submitted,
            by_kind: self.by_kind,
            keys: Vec::new(),
        }
    }

    /// How many I/Os were submitted.
    pub(crate) const fn submitted(&self) -> u64 {
        self.submitted
    }

    /// How many I/Os of a kind were submitted.
    pub(crate) const fn count(&self, kind: IoKind) -> u64 {
        self.by_kind[kind as usize]
    }

    /// Numbers and traces an I/O, and refuses what no storage would do. `range` is of bytes of the file, and `buf` is what
    /// the I/O transfers from or to.
    pub(crate) fn describe(
        &mut self,
        file: File,
        kind: IoKind,
        range: Range<u64>,
        data: &[u8],
        buf: &[u8],
        task: Option<u32>,
    ) -> io::Result<Io> {
        let len = range.end.saturating_sub(range.start);
        let nth = &mut self.by_kind[kind as usize];
        let room = self.disk.room(file);
        let offset = range.start.saturating_add(u64::from(room.start) * UNIT as u64);
        let io = Io { index: self.submitted, nth: *nth, kind, offset, len, task, file };
        self.submitted += 1;
        *nth += 1;
        if let Some(trace) = &mut self.trace {
            let content = if data.is_empty() { 0 } else { xxh3_64(data) };
            trace.record(Event::Submit { io, content });
        }
        let limits = self.disk.limits();
        let align = limits.alignment as u64;
        let breach = if !range.start.is_multiple_of(align) || !len.is_multiple_of(align) {
            Breach::Misaligned(io)
        } else if limits.alignment > UNIT
            && !buf.is_empty()
            && !buf.as_ptr().addr().is_multiple_of(limits.alignment)
        {
            Breach::Unplaced(io)
        } else if len > limits.max_transfer as u64
            && matches!(kind, IoKind::Read | IoKind::Write | IoKind::WriteThrough)
        {
            Breach::TooLong(io)
        } else if kind == IoKind::Discard && !limits.can_discard {
            Breach::NoDiscard(io)
        } else {
            let end = range.start.checked_add(len);
            let fits = end.is_some_and(|end| end <= (room.len() * UNIT) as u64);
            if fits || matches!(kind, IoKind::Read | IoKind::Flush) {
                return Ok(io);
            }
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.breaches.push(breach);
        let error = match breach {
            Breach::NoDiscard(_) => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::InvalidInput,
        };
        Err(io::Error::new(error, breach))
    }

    /// Begins the effect of an I/O on the disk.
    pub(crate) fn start<C: Chooser + ?Sized>(
        &mut self,
        io: Io,
        data: &[u8],
        chooser: &mut C,
    ) -> Started {
        let fault = self.faults.as_mut().and_then(|plan| plan.fault(&io));
        let fault = fault.filter(|fault| fault.concerns(io.kind));
        if io.kind.is_update() {
            let overlapped = self.late.iter().filter(|late| late.overlaps(&io));
            self.breaches.extend(overlapped.map(|&first| Breach::Overlap { first, second: io }));
        }
        let first = unit_of(io.offset);
        let effect = match io.kind {
            IoKind::Read => Effect::None,
            IoKind::Flush => Effect::Flush(self.disk.submit_flush_of(io.file)),
            IoKind::Write | IoKind::WriteThrough => {
                let durability = match io.kind {
                    IoKind::Write => Durability::Cached,
                    _ => Durability::Through,
                };
                self.keys.clear();
                self.disk.values().intern_all(data, &mut self.keys);
                Effect::Write(self.disk.submit_write(first, &self.keys, durability, chooser))
            }
            IoKind::WriteZeroes => {
                Effect::Write(self.disk.submit_zeroes(first, io.units(), chooser))
            }
            IoKind::Discard => Effect::Write(self.disk.submit_discard(first, io.units(), chooser)),
            IoKind::SetLen => {
                let len = first - self.disk.room(io.file).start;
                Effect::Write(self.disk.submit_set_len_of(io.file, len, chooser))
            }
        };
        Started { io, effect, fault }
    }

    /// Ends the effect of an I/O on the disk. A read is for [`Device::end_read`].
    pub(crate) fn end(&mut self, started: &Started) -> io::Result<()> {
        let errno = match (started.effect, started.fault) {
            (Effect::None, fault) => fault.map(|_| EIO),
            (Effect::Write(write), None) => (!self.disk.complete(write)).then_some(EIO),
            (Effect::Write(write), Some(Fault::Eio | Fault::Flush(_))) => {
                self.disk.fail(write, Landing::Any);
                Some(EIO)
            }
            (Effect::Write(write), Some(Fault::Late)) => {
                self.disk.fail(write, Landing::Late);
                self.late.push(started.io);
                Some(EIO)
            }
            (Effect::Write(write), Some(Fault::Through(failure))) => {
                self.disk.fail_sync(write, failure);
                Some(EIO)
            }
            (Effect::Write(write), Some(Fault::Enospc { landed })) => {
                self.disk.fail(write, Landing::First(landed));
                Some(ENOSPC)
            }
            (Effect::Write(write), Some(Fault::Short { landed })) => {
                self.disk.fail(write, Landing::First(landed));
                Some(EIO)
            }
            (Effect::Flush(flush), None) => (!self.disk.complete_flush(flush)).then_some(EIO),
            (Effect::Flush(flush), Some(fault)) => {
                let failure = match fault {
                    Fault::Flush(failure) => failure,
                    _ => FlushFailure::RetrySafe,
                };
                self.disk.fail_flush(flush, failure);
                Some(EIO)
            }
        };
        let index = started.io.index;
        if let Some(trace) = &mut self.trace {
            trace.record(match errno {
                None => Event::Complete { index, content: 0 },
                Some(errno) => Event::Fail { index, errno },
            });
        }
        errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    /// Whether something failed late and has not been settled.
    pub(crate) const fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Ends what failed late.
    pub(crate) fn settle(&mut self) {
        if std::mem::take(&mut self.late).is_empty() {
            return;
        }
        self.disk.settle();
        if let Some(trace) = &mut self.trace {
            trace.record(Event::Settle);
        }
    }

    /// Ends a read: fills `buf` from unit to unit with what `read` gives, as far as it gets.
    pub(crate) fn end_read(
        &mut self,
        started: &Started,
        buf: &mut [u8],
        mut read: impl FnMut(&mut PossibleDisk, u32) -> Key,
    ) -> io::Result<()> {
        let transferred = match started.fault {
            Some(Fault::Short { landed }) => landed as usize,
            Some(_) => 0,
            None => usize::MAX,
        };
        let first = unit_of(started.io.offset);
        let targets = buf.as_chunks_mut::<UNIT>().0;
        let count = targets.len().min(transferred);
        let targets = &mut targets[..count];
        let end = self.disk.room(started.io.file).end;
        let mut at = 0;
        while at < targets.len() {
            let unit = (first + at as u32).min(end);
            let rest = (targets.len() - at) as u32;
            let zeroes = if unit < end { self.disk.zero_run(unit, rest) } else { rest };
            if zeroes > 0 {
                targets[at..at + zeroes as usize].as_flattened_mut().fill(0);
                at += zeroes as usize;
            } else {
                let key = read(&mut self.disk, unit);
                targets[at] = *self.disk.values().bytes(key);
                at += 1;
            }
        }
        if transferred < usize::MAX {
            return self.end(started);
        }
        if let Some(trace) = &mut self.trace {
            trace.record(Event::Complete { index: started.io.index, content: xxh3_64(buf) });
        }
        Ok(())
    }
}

/// The unit of an aligned offset; offsets that no write may reach become a unit that no write may reach.
pub(crate) fn unit_of(offset: u64) -> u32 {
    u32::try_from(offset / UNIT as u64).unwrap_or(MAX_UNITS).min(MAX_UNITS)
}
