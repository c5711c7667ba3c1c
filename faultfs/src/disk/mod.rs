//! The possible disk: all crash states at once.
//!
//! Invariant: for every unit of 512 bytes this type knows exactly the set of values that a power cut may leave, and for
//! the file exactly the set of lengths; a test holds both against an enumeration written from the rules alone.
//!
//! ```text
//!   unit   0      1      2      3      4            one 32-bit cell each: the key of a decided value, or a slot
//!        +------+------+------+------+------+
//!        | key  | slot | key  | key  | slot |
//!        +------+--|---+------+------+--|---+
//!                  v                    v
//!          base { A, B, C }      base { A }         what may be on the medium: no order among these
//!          (a crash left it)       ^
//!                                  | write 5  done        E      pending, oldest at the bottom
//!                                  | write 9  in flight   F
//! ```
//!
//! A write knows when it was submitted and when it ended, on a logical clock; *a before b* means that a ended before b
//! was submitted. Everything follows from one comparison. Let *floor* be the latest submission among the settled
//! (flushed, or completed write-through) writes of a unit:
//!
//! - a write that ended before the floor is superseded and dropped, and so is the base if there is a floor at all;
//! - everything else is **allowed**: a crash may leave it;
//! - with *completed* in the place of *settled*, everything else is **visible**: a read may return it.
//!
//! A flush settles the completed writes that ended before it was submitted. It never narrows a base that nothing
//! overwrote. A failed write has ended (a later write supersedes it) but completes nothing, so it stays possible. One that
//! failed *late* has not ended: like a write in flight it may land over whatever is written meanwhile, until the disk is
//! settled; then it has. A write-through write is a cached write and a sync; where the sync fails, the write is one of those
//! that a failed flush loses.
//! A discard supersedes nothing: its zero stands beside what was there.
//!
//! What a crash leaves is a base again, so recovery, nested crashes and second lives need nothing more. Under profile
//! `cache` the units of one write share their fate, so there the crash leaves the writes in place as part of the medium
//! until a read decides them.

mod crash;
mod damage;
mod length;
mod view;

use qcow2_core::storage::{Durability, Limits, UNIT};

use crate::chooser::{Choice, Chooser, ask};
use crate::defect::Defect;
use crate::device::DEFAULT_LIMITS;
use crate::profile::{DiscardMode, FlushFailure};
use crate::values::{Key, Values};
use length::Length;
use view::ChangeLog;
pub use view::Mark;

/// No unit reaches this number: 32 GiB.
pub const MAX_UNITS: u32 = 1 << 26;

/// Units per page of cells. A page is stored only when some unit of it is not zero.
const PAGE: usize = 32;
/// Marks a cell that names a slot rather than a key.
const SLOT: u32 = 1 << 31;
const NONE: u32 = u32::MAX;
const NEVER: u64 = u64::MAX;

/// A write, zeroing, discard or length change that was submitted and has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteId(u32);

/// A flush that was submitted and has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushId(u64);

/// What a failed write has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// Nobody knows: any of its units may land, until a later write supersedes it.
    Any,
    /// Its first units were written like those of a completed cached write, and the others never will be. A length
    /// change that fails so has not happened.
    First(u32),
    /// Any of its units may land, at any moment until [`PossibleDisk::settle`]; from then on as with [`Landing::Any`].
    Late,
}

/// A disk of sets of values; see the module. A clone is a fork: it shares nothing but the value store.
#[derive(Debug)]
pub struct PossibleDisk {
    values: Values,
    /// Page of each group of [`PAGE`] units; page 0 is all zero and never written.
    directory: Vec<u32>,
    pages: Vec<[u32; PAGE]>,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    entries: Vec<Entry>,
    free_entry: u32,
    /// The members of bases that have several.
    sets: Vec<Key>,
    writes: Vec<Write>,
    free_writes: Vec<u32>,
    length: Length,
    /// When the flushes were submitted that are in flight, ascending.
    barriers: Vec<u64>,
    /// When the last write-through write completed.
    through_at: u64,
    /// A sync failed for good.
    stuck: bool,
    clock: u64,
    discard: DiscardMode,
    limits: Limits,
    /// Sum of the hashes of all cells that are keys.
    plain_hash: u64,
    log: ChangeLog,
    scratch: Vec<Key>,
    #[cfg(feature = "mutants")]
    defect: Option<Defect>,
}

/// A unit that is more than one decided value.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// [`NONE`] when the slot is free.
    unit: u32,
    base: Base,
    /// Newest entry, or [`NONE`].
    head: u32,
}

/// What the medium may hold below all entries.
#[derive(Clone, Copy, Debug)]
struct Base {
    /// 0: a settled entry has taken its place. 1: `at` is the key. More: `sets[at..at + len]`.
    len: u32,
    at: u32,
}

impl Base {
    const EMPTY: Self = Self { len: 0, at: 0 };

    const fn one(key: Key) -> Self {
        Self { len: 1, at: key.0 }
    }
}

/// One unit of one write.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key: Key,
    write: u32,
    /// The entry submitted before this one, or [`NONE`].
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    submitted: u64,
    /// [`NEVER`] while in flight.
    ended: u64,
    first: u32,
    count: u32,
    /// How many entries, of units and of the length, belong to it; free when none do and it has ended.
    refs: u32,
    state: State,
    discard: bool,
    through: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InFlight,
    /// Completed, not covered by a flush.
    Done,
    /// Completed and durable; kept only beside writes that it does not supersede.
    Settled,
    /// Ended with an error, or covered by a sync that failed and marked it clean.
    Failed,
    /// A crash left it, part of the medium now, and nobody has looked whether it landed.
    Undecided,
    /// A crash left it and it landed.
    Landed,
    /// A crash left it and it did not land.
    Lost,
    /// Returned an error, and may land until the disk is settled.
    Late,
}

impl State {
    const fn is_completed(self) -> bool {
        matches!(self, Self::Done | Self::Settled)
    }

    const fn is_left_by_crash(self) -> bool {
        matches!(self, Self::Undecided | Self::Landed | Self::Lost)
    }
}

impl Write {
    /// Whether it ended before what happened at `time`. The clock ticks at every event, so nothing else happened at its end.
    const fn ended_before(&self, time: u64) -> bool {
        self.ended < time
    }

    /// Whether it is part of what is on the medium, not of what is pending above it.
    const fn is_medium(&self) -> bool {
        self.state.is_left_by_crash() || (self.discard && matches!(self.state, State::Settled))
    }
}

impl PossibleDisk {
    /// A disk of `len` units that are all zero, durably.
    ///
    /// # Panics
    /// If `len` is more than [`MAX_UNITS`].
    pub fn new(values: &Values, len: u32) -> Self {
        assert!(len <= MAX_UNITS, "a disk of {len} units");
        Self {
            values: values.clone(),
            directory: vec![0; (len as usize).div_ceil(PAGE)],
            pages: vec![[0; PAGE]],
            slots: Vec::new(),
            free_slots: Vec::new(),
            entries: Vec::new(),
            free_entry: NONE,
            sets: Vec::new(),
            writes: Vec::new(),
            free_writes: Vec::new(),
            length: Length::new(len),
            barriers: Vec::new(),
            through_at: 0,
            stuck: false,
            clock: 1,
            discard: DiscardMode::default(),
            limits: DEFAULT_LIMITS,
            plain_hash: 0,
            log: ChangeLog::default(),
            scratch: Vec::new(),
            #[cfg(feature = "mutants")]
            defect: None,
        }
    }

    /// A disk of `len` bytes, rounded up to whole units, that durably holds `extents` (offset, bytes) and zeroes
    /// elsewhere. The last unit of an extent is filled up with zeroes.
    ///
    /// # Panics
    /// If an extent does not begin on a unit or does not fit.
    pub fn from_extents<'a>(
        values: &Values,
        len: u64,
        extents: impl IntoIterator<Item = (u64, &'a [u8])>,
    ) -> Self {
        let units =
            u32::try_from(len.div_ceil(UNIT as u64)).expect("the length is below MAX_UNITS");
        let mut disk = Self::new(values, units);
        let mut keys = Vec::new();
        for (offset, bytes) in extents {
            assert!(offset.is_multiple_of(UNIT as u64), "an extent begins within a unit: {offset}");
            keys.clear();
            values.intern_all(bytes, &mut keys);
            let first = offset / UNIT as u64;
            assert!(first + keys.len() as u64 <= u64::from(units), "an extent at {offset} is cut");
            for (unit, key) in (first as u32..).zip(&keys) {
                disk.set_cell(unit, key.0);
            }
        }
        disk
    }

    /// The same disk with another discard.
    #[must_use]
    pub const fn with_discard(mut self, mode: DiscardMode) -> Self {
        self.discard = mode;
        self
    }

    /// The same disk as a device with other limits: whatever runs on it meets them.
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What the device offers and asks for.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// The same disk with a deliberate defect.
    #[doc(hidden)]
    #[cfg(feature = "mutants")]
    #[must_use]
    pub const fn with_defect(mut self, defect: Option<Defect>) -> Self {
        self.defect = defect;
        self
    }

    #[cfg(feature = "mutants")]
    pub(crate) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "the feature `mutants` gives it something to look at")]
    pub(crate) const fn has(&self, _: Defect) -> bool {
        false
    }

    /// The store that the keys of this disk belong to.
    pub const fn values(&self) -> &Values {
        &self.values
    }

    /// Submits a write of one key per unit from unit `first`. It extends the file if it ends beyond it.
    ///
    /// All submissions may have to decide a length that a crash left open, and then ask `chooser`.
    pub fn submit_write<C: Chooser + ?Sized>(
        &mut self,
        first: u32,
        keys: &[Key],
        durability: Durability,
        chooser: &mut C,
    ) -> WriteId {
        let count = u32::try_from(keys.len()).expect("a write has fewer than 2^32 units");
        let write = self.begin(first, count, chooser);
        self.writes[write as usize].through = durability == Durability::Through;
        self.extend(write, first + count);
        self.reserve(first + count);
        for (unit, &key) in (first..).zip(keys) {
            self.push(unit, key, write);
        }
        WriteId(write)
    }

    /// Submits a cached write of zeroes to `count` units from `first`.
    pub fn submit_zeroes<C: Chooser + ?Sized>(
        &mut self,
        first: u32,
        count: u32,
        chooser: &mut C,
    ) -> WriteId {
        let write = self.begin(first, count, chooser);
        self.writes[write as usize].discard = self.has(Defect::ZeroesAreDiscard);
        self.extend(write, first + count);
        self.reserve(first + count);
        for unit in first..first + count {
            self.push(unit, Key::ZERO, write);
        }
        WriteId(write)
    }

    /// Submits a discard of `count` units from `first`. It never extends the file.
    pub fn submit_discard<C: Chooser + ?Sized>(
        &mut self,
        first: u32,
        count: u32,
        chooser: &mut C,
    ) -> WriteId {
        let end = (first + count).min(self.extent()).max(first);
        let write = self.begin(first, end - first, chooser);
        let either = self.discard == DiscardMode::Either || self.has(Defect::DiscardModeIgnored);
        self.writes[write as usize].discard = either && !self.has(Defect::DiscardIsZero);
        for unit in first..end {
            self.push(unit, Key::ZERO, write);
        }
        WriteId(write)
    }

    /// Submits a change of the length to `len` units. The units that it cuts become zero.
    ///
    /// # Panics
    /// If `len` is more than [`MAX_UNITS`].
    pub fn submit_set_len<C: Chooser + ?Sized>(&mut self, len: u32, chooser: &mut C) -> WriteId {
        assert!(len <= MAX_UNITS, "a file of {len} units");
        self.firm_up(MAX_UNITS, chooser);
        let write = self.begin(len, self.extent().saturating_sub(len), chooser);
        self.change_length(write, length::Change::Set(len));
        if !self.has(Defect::CutUnitsKept) {
            let cut: Vec<u32> = self.nonzero_cells(len).collect();
            for unit in cut {
                self.push(unit, Key::ZERO, write);
            }
        }
        WriteId(write)
    }

    /// Ends a write, zeroing, discard or length change well. A write-through write fails in its sync if an earlier sync
    /// failed for good, and the answer is false.
    pub fn complete(&mut self, write: WriteId) -> bool {
        let id = write.0 as usize;
        let Write { first, count, through, .. } = self.writes[id];
        if through && self.stuck && !self.has(Defect::StickySparesThrough) {
            self.fail_sync(write, FlushFailure::Sticky);
            return false;
        }
        let now = self.tick();
        self.writes[id].ended = now;
        let settled = (through && !self.has(Defect::ThroughForgotten))
            || self.has(Defect::CompletionIsDurable);
        self.writes[id].state = if settled { State::Settled } else { State::Done };
        self.log.changed(first, count);
        if settled {
            self.through_at = now;
            for unit in first..(first + count).min(self.extent()) {
                if let Some(slot) = self.slot_at(unit) {
                    if self.has(Defect::ThroughOvertakes) {
                        self.retain(slot, |_, write| write.state != State::InFlight);
                    }
                    self.prune(slot);
                }
            }
            if self.has(Defect::ThroughForgetsLength) {
                self.forget_length(write.0);
            }
            self.settle_length();
        }
        if through && self.has(Defect::ThroughIsBarrier) {
            self.cover(now);
        }
        self.free_if_unused(write.0);
        true
    }

    /// Ends a write, zeroing, discard or length change with an error.
    pub fn fail(&mut self, write: WriteId, landing: Landing) {
        let now = self.tick();
        let id = write.0 as usize;
        let Write { first, count, discard, .. } = self.writes[id];
        self.log.changed(first, count);
        let landing = match landing {
            Landing::Any if self.has(Defect::FailedWriteVanishes) => Landing::First(0),
            Landing::Late if self.has(Defect::LateIsOver) => Landing::Any,
            Landing::Late if discard && self.has(Defect::LateDiscardIsOver) => Landing::Any,
            other => other,
        };
        if landing == Landing::Late {
            self.writes[id].state = State::Late;
            return;
        }
        self.writes[id].ended = now;
        self.writes[id].state = State::Failed;
        if let Landing::First(landed) = landing {
            let landed = if self.sets_length(write.0) { 0 } else { landed.min(count) };
            let whole = discard && self.has(Defect::ShortDiscardIsWhole);
            let landed = if whole { count } else { landed };
            let durable = self.writes[id].through && self.has(Defect::ShortThroughIsDurable);
            self.writes[id].state = if durable { State::Settled } else { State::Done };
            self.writes[id].count = landed;
            for unit in first + landed..(first + count).min(self.extent()) {
                if let Some(slot) = self.slot_at(unit) {
                    self.retain(slot, |entry, _| entry.write != write.0);
                    self.prune(slot);
                }
            }
            self.shorten_length(write.0, if landed == 0 { 0 } else { first + landed });
        }
        self.free_if_unused(write.0);
    }

    /// Ends a write-through write whose data was transferred and whose sync failed: what a flush submitted with it would
    /// have lost by failing so is lost, and the write itself with it.
    pub fn fail_sync(&mut self, write: WriteId, failure: FlushFailure) {
        let now = self.tick();
        let id = write.0 as usize;
        let Write { first, count, submitted, .. } = self.writes[id];
        self.log.changed(first, count);
        self.writes[id].ended = now;
        let failure = match failure {
            FlushFailure::CleanMarked if self.has(Defect::FailedSyncTaintsNothing) => {
                FlushFailure::RetrySafe
            }
            FlushFailure::Sticky if self.has(Defect::FailedSyncNeverSticks) => {
                FlushFailure::RetrySafe
            }
            other => other,
        };
        let taints = failure == FlushFailure::CleanMarked;
        let tainted = taints && !self.has(Defect::FailedSyncSparesItself);
        self.writes[id].state = if tainted { State::Failed } else { State::Done };
        if !taints || !self.has(Defect::FailedSyncSparesOthers) {
            self.lose(submitted, failure);
        }
        self.free_if_unused(write.0);
    }

    /// Ends what failed late: none of it lands any more.
    pub fn settle(&mut self) {
        if self.has(Defect::LateSurvivesSettle) {
            return;
        }
        let landing = match self.has(Defect::SettledLateVanishes) {
            true => Landing::First(0),
            false => Landing::Any,
        };
        for id in 0..self.writes.len() {
            if self.writes[id].state == State::Late && !self.stays_late(id as u32) {
                self.fail(WriteId(id as u32), landing);
            }
        }
    }

    /// Whether a defect keeps a write late when the disk is settled.
    fn stays_late(&self, write: u32) -> bool {
        let discard = self.writes[write as usize].discard;
        (discard && self.has(Defect::LateDiscardSurvivesSettle))
            || (self.has(Defect::LateLengthSurvivesSettle) && self.sets_length(write))
    }

    /// Submits a flush.
    pub fn submit_flush(&mut self) -> FlushId {
        let now = self.tick();
        self.barriers.push(now);
        FlushId(now)
    }

    /// Ends a flush well, unless an earlier sync failed for good: then it fails too, and the answer is false.
    #[must_use]
    pub fn complete_flush(&mut self, flush: FlushId) -> bool {
        self.tick();
        if self.stuck {
            self.barriers.retain(|&barrier| barrier != flush.0);
            return false;
        }
        let youngest = self.barriers.last().copied().unwrap_or(flush.0).max(flush.0);
        // An older flush in flight says nothing that this one has not said.
        self.barriers.retain(|&barrier| barrier > flush.0);
        let ahead = self.has(Defect::OlderFlushCoversYounger);
        self.cover(if ahead { youngest } else { flush.0 });
        if self.has(Defect::LateEndsAtFlush) {
            self.settle();
        }
        if self.has(Defect::FlushNarrowsBase) {
            for slot in 0..self.slots.len() {
                if self.slots[slot].base.len > 1 {
                    self.slots[slot].base = Base::one(self.base_key(self.slots[slot].base, 0));
                    self.simplify(slot);
                }
            }
        }
        true
    }

    /// Ends a flush with an error.
    pub fn fail_flush(&mut self, flush: FlushId, failure: FlushFailure) {
        self.tick();
        let older = self.has(Defect::YoungerFlushEndsOlder);
        self.barriers.retain(|&barrier| barrier != flush.0 && !(older && barrier < flush.0));
        self.lose(flush.0, failure);
        if self.has(Defect::FailedFlushDropsPending) {
            for slot in 0..self.slots.len() {
                if self.slots[slot].head != NONE {
                    self.retain(slot, |_, _| false);
                    self.simplify(slot);
                }
            }
        }
        if self.has(Defect::FailedFlushCovers) {
            self.cover(flush.0);
        }
    }

    /// What a read of `unit` returns now. What it learns about the medium stays so, even if something newer is in
    /// flight above it.
    pub fn read<C: Chooser + ?Sized>(&mut self, unit: u32, chooser: &mut C) -> Key {
        if unit >= self.length.firm {
            self.decide_length(chooser);
        }
        let Some(slot) = self.slot_at(unit) else { return Key(self.cell(unit)) };
        let mut options = std::mem::take(&mut self.scratch);
        options.clear();
        let medium = self.visible_pending(slot, &mut options);
        let taken = if !medium {
            Some(ask(chooser, options.len(), Choice::Read { unit, options: &options, medium }))
        } else if options.is_empty() {
            None
        } else if let Some(key) = self.decided_medium(slot) {
            push_unique(&mut options, key);
            let what = Choice::Read { unit, options: &options, medium: false };
            Some(ask(chooser, options.len(), what))
        } else {
            let what = Choice::Read { unit, options: &options, medium };
            Some(ask(chooser, options.len() + 1, what)).filter(|&taken| taken < options.len())
        };
        let key = taken.map(|taken| options[taken]);
        self.scratch = options;
        key.unwrap_or_else(|| self.collapse(slot, chooser))
    }

    /// Decides what is on the medium of `unit`, below whatever is pending.
    pub fn decide<C: Chooser + ?Sized>(&mut self, unit: u32, chooser: &mut C) {
        if unit >= self.length.firm {
            self.decide_length(chooser);
        }
        if let Some(slot) = self.slot_at(unit)
            && self.floor(slot, State::is_completed).is_none()
            && self.decided_medium(slot).is_none()
        {
            self.collapse(slot, chooser);
        }
    }

    /// The length that a caller sees now, in units. What it learns about the medium stays so.
    pub fn len<C: Chooser + ?Sized>(&mut self, chooser: &mut C) -> u32 {
        if self.length.firm != NONE {
            self.decide_length(chooser);
        }
        self.visible_length(chooser)
    }

    /// No unit from here on was ever anything but zero.
    pub const fn extent(&self) -> u32 {
        (self.directory.len() * PAGE) as u32
    }

    const fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn begin<C: Chooser + ?Sized>(&mut self, first: u32, count: u32, chooser: &mut C) -> u32 {
        let end = first.checked_add(count).filter(|&end| end <= MAX_UNITS);
        let end = end.expect("the caller keeps within MAX_UNITS");
        self.firm_up(end, chooser);
        self.log.limit(self.extent());
        self.log.changed(first, count);
        let write = Write {
            submitted: self.tick(),
            ended: NEVER,
            first,
            count,
            refs: 0,
            state: State::InFlight,
            discard: false,
            through: false,
        };
        if let Some(free) = self.free_writes.pop() {
            self.writes[free as usize] = write;
            free
        } else {
            self.writes.push(write);
            self.writes.len() as u32 - 1
        }
    }

    /// Settles what had completed before `time`.
    fn cover(&mut self, time: u64) {
        let covers_submitted = self.has(Defect::FlushCoversSubmitted);
        let mut any = false;
        for write in &mut self.writes {
            let completed =
                write.ended_before(time) || (covers_submitted && write.submitted < time);
            if write.state == State::Done && completed {
                write.state = State::Settled;
                any = true;
            }
        }
        if !any {
            return;
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].head != NONE {
                self.prune(slot);
            }
        }
        self.settle_length();
    }

    /// A sync failed that was to cover what had completed before `time`.
    fn lose(&mut self, time: u64, failure: FlushFailure) {
        if failure == FlushFailure::CleanMarked && !self.has(Defect::CleanMarkedIsRetrySafe) {
            for write in &mut self.writes {
                if write.state == State::Done && write.ended_before(time) {
                    write.state = State::Failed;
                    self.log.changed(write.first, write.count);
                }
            }
        }
        self.stuck |= failure == FlushFailure::Sticky && !self.has(Defect::StickyForgets);
    }

    /// Drops what the settled writes of a unit supersede; when nothing unsettled is left, they become its base.
    fn prune(&mut self, slot: usize) {
        let unit = self.slots[slot].unit;
        let floor = self.floor(slot, |state| state == State::Settled);
        if let Some(floor) = floor
            && !self.has(Defect::FlushKeepsSuperseded)
        {
            let by_submission = self.has(Defect::OverlapIsOrdered);
            self.retain(slot, |_, write| {
                !(write.ended_before(floor) || (by_submission && write.submitted < floor))
            });
            self.slots[slot].base = Base::EMPTY;
            self.log.changed(unit, 1);
        }
        if self.entries_of(slot).all(|(_, write)| write.state == State::Settled) {
            let mut keys = std::mem::take(&mut self.scratch);
            keys.clear();
            for (entry, _) in self.entries_of(slot) {
                push_unique(&mut keys, entry.key);
            }
            for key in self.base_keys(self.slots[slot].base) {
                push_unique(&mut keys, key);
            }
            self.fold(slot, &keys);
            self.scratch = keys;
        }
    }

    /// The latest submission among the writes of a unit that supersede what ended before: those in a state that
    /// `counts`, without discards.
    fn floor(&self, slot: usize, counts: impl Fn(State) -> bool) -> Option<u64> {
        self.entries_of(slot)
            .find(|(_, write)| !write.discard && counts(write.state))
            .map(|(_, write)| write.submitted)
    }

    /// Appends what pending writes let a read of the unit return; true if what is on the medium is another option.
    fn visible_pending(&self, slot: usize, keys: &mut Vec<Key>) -> bool {
        let floor = self.floor(slot, State::is_completed);
        for (entry, write) in self.entries_of(slot) {
            let hidden = write.ended_before(floor.unwrap_or(0))
                || (write.state == State::InFlight && self.has(Defect::ReadMissesInFlight));
            let below = floor.is_none() && write.is_medium();
            if !hidden && !below {
                push_unique(keys, entry.key);
            }
        }
        floor.is_none()
    }

    /// The value on the medium of a unit, if it is decided.
    fn decided_medium(&self, slot: usize) -> Option<Key> {
        let base = self.slots[slot].base;
        let decided = base.len == 1 && !self.entries_of(slot).any(|(_, write)| write.is_medium());
        decided.then_some(Key(base.at))
    }

    /// Decides what is on the medium of a unit.
    fn collapse<C: Chooser + ?Sized>(&mut self, slot: usize, chooser: &mut C) -> Key {
        let unit = self.slots[slot].unit;
        let mut options = std::mem::take(&mut self.scratch);
        options.clear();
        let mut floor = 0;
        let mut at = self.slots[slot].head;
        while at != NONE {
            let entry = self.entries[at as usize];
            at = entry.next;
            let write = self.writes[entry.write as usize];
            if !write.is_medium() || write.ended_before(floor) {
                continue;
            }
            if write.discard {
                push_unique(&mut options, entry.key);
            } else if self.has_landed(entry.write, chooser) {
                push_unique(&mut options, entry.key);
                floor = floor.max(write.submitted);
            }
        }
        if floor == 0 {
            for key in self.base_keys(self.slots[slot].base) {
                push_unique(&mut options, key);
            }
        }
        let taken = ask(chooser, options.len(), Choice::Unit { unit, options: &options });
        let key = options[taken];
        self.scratch = options;
        if !self.has(Defect::ReadDoesNotCollapse) {
            self.retain(slot, |_, write| !write.is_medium());
            self.slots[slot].base = Base::one(key);
            self.log.changed(unit, 1);
            self.simplify(slot);
        }
        key
    }

    /// Whether a write that a crash left has landed, now or as decided before.
    fn has_landed<C: Chooser + ?Sized>(&mut self, write: u32, chooser: &mut C) -> bool {
        let Write { first, count, state, .. } = self.writes[write as usize];
        if state == State::Undecided {
            let lost = ask(chooser, 2, Choice::Write { unit: first, count }) == 1;
            self.writes[write as usize].state = if lost { State::Lost } else { State::Landed };
            if !self.has(Defect::ChangesForgetFates) {
                self.log.changed(first, count);
            }
            return !lost;
        }
        state == State::Landed
    }

    /// Makes `keys` the whole truth about a unit.
    fn fold(&mut self, slot: usize, keys: &[Key]) {
        self.retain(slot, |_, _| false);
        self.slots[slot].base = match keys {
            [key] => Base::one(*key),
            _ => {
                let at = self.sets.len() as u32;
                self.sets.extend_from_slice(keys);
                Base { len: keys.len() as u32, at }
            }
        };
        self.simplify(slot);
    }

    /// Turns a slot that is one decided value back into a cell.
    fn simplify(&mut self, slot: usize) {
        let Slot { unit, base, head } = self.slots[slot];
        if head == NONE && base.len == 1 {
            self.slots[slot].unit = NONE;
            self.free_slots.push(slot as u32);
            self.set_cell(unit, base.at);
        }
    }

    /// Makes room for the cells of all units below `end`.
    fn reserve(&mut self, end: u32) {
        let pages = (end as usize).div_ceil(PAGE);
        self.directory.resize(pages.max(self.directory.len()), 0);
    }

    fn push(&mut self, unit: u32, key: Key, write: u32) {
        let slot = self.slot_at(unit).unwrap_or_else(|| {
            let new = Slot { unit, base: Base::one(Key(self.cell(unit))), head: NONE };
            let slot = if let Some(free) = self.free_slots.pop() {
                self.slots[free as usize] = new;
                free
            } else {
                self.slots.push(new);
                self.slots.len() as u32 - 1
            };
            self.set_cell(unit, SLOT + slot);
            slot as usize
        });
        let entry = Entry { key, write, next: self.slots[slot].head };
        let at = self.free_entry;
        self.slots[slot].head = if at == NONE {
            self.entries.push(entry);
            self.entries.len() as u32 - 1
        } else {
            self.free_entry = self.entries[at as usize].next;
            self.entries[at as usize] = entry;
            at
        };
        self.writes[write as usize].refs += 1;
    }

    fn retain(&mut self, slot: usize, keep: impl Fn(&Entry, &Write) -> bool) {
        let mut previous = NONE;
        let mut at = self.slots[slot].head;
        while at != NONE {
            let entry = self.entries[at as usize];
            if keep(&entry, &self.writes[entry.write as usize]) {
                previous = at;
            } else {
                match previous {
                    NONE => self.slots[slot].head = entry.next,
                    _ => self.entries[previous as usize].next = entry.next,
                }
                self.entries[at as usize].next = self.free_entry;
                self.free_entry = at;
                self.release(entry.write);
            }
            at = entry.next;
        }
    }

    fn release(&mut self, write: u32) {
        self.writes[write as usize].refs -= 1;
        self.free_if_unused(write);
    }

    fn free_if_unused(&mut self, write: u32) {
        let Write { refs, state, .. } = self.writes[write as usize];
        if refs == 0 && !matches!(state, State::InFlight | State::Late) {
            // In flight again: a free record matches no rule, and is not freed twice.
            self.writes[write as usize].state = State::InFlight;
            self.free_writes.push(write);
        }
    }

    fn entries_of(&self, slot: usize) -> impl Iterator<Item = (Entry, &Write)> {
        let mut at = self.slots[slot].head;
        std::iter::from_fn(move || {
            let entry = *self.entries.get(at as usize)?;
            at = entry.next;
            Some((entry, &self.writes[entry.write as usize]))
        })
    }

    fn base_keys(&self, base: Base) -> impl Iterator<Item = Key> {
        (0..base.len).map(move |n| self.base_key(base, n))
    }

    fn base_key(&self, base: Base, n: u32) -> Key {
        if base.len == 1 { Key(base.at) } else { self.sets[(base.at + n) as usize] }
    }

    fn cell(&self, unit: u32) -> u32 {
        match self.directory.get(unit as usize / PAGE) {
            Some(&page) => self.pages[page as usize][unit as usize % PAGE],
            None => Key::ZERO.0,
        }
    }

    fn slot_at(&self, unit: u32) -> Option<usize> {
        let cell = self.cell(unit);
        (cell & SLOT != 0).then_some((cell & !SLOT) as usize)
    }

    fn set_cell(&mut self, unit: u32, cell: u32) {
        let page = &mut self.directory[unit as usize / PAGE];
        if *page == 0 {
            if cell == Key::ZERO.0 {
                return;
            }
            *page = self.pages.len() as u32;
            self.pages.push([Key::ZERO.0; PAGE]);
        }
        let old = &mut self.pages[*page as usize][unit as usize % PAGE];
        self.plain_hash = self
            .plain_hash
            .wrapping_sub(view::cell_hash(unit, *old))
            .wrapping_add(view::cell_hash(unit, cell));
        *old = cell;
    }
}

fn push_unique(keys: &mut Vec<Key>, key: Key) {
    if !keys.contains(&key) {
        keys.push(key);
    }
}

impl Clone for PossibleDisk {
    fn clone(&self) -> Self {
        let mut fork = Self::new(&self.values, 0);
        fork.clone_from(self);
        fork
    }

    /// Reuses the memory of `self`: the fast way to fork the same disk many times.
    fn clone_from(&mut self, source: &Self) {
        // Every field is named, so that a new one cannot be forgotten.
        let Self {
            values,
            directory,
            pages,
            slots,
            free_slots,
            entries,
            free_entry,
            sets,
            writes,
            free_writes,
            length,
            barriers,
            through_at,
            stuck,
            clock,
            discard,
            limits,
            plain_hash,
            log,
            scratch: _,
            #[cfg(feature = "mutants")]
            defect,
        } = source;
        self.values.clone_from(values);
        self.directory.clone_from(directory);
        self.pages.clone_from(pages);
        self.slots.clone_from(slots);
        self.free_slots.clone_from(free_slots);
        self.entries.clone_from(entries);
        self.free_entry = *free_entry;
        self.sets.clone_from(sets);
        self.writes.clone_from(writes);
        self.free_writes.clone_from(free_writes);
        self.length.clone_from(length);
        self.barriers.clone_from(barriers);
        self.through_at = *through_at;
        self.stuck = *stuck;
        self.clock = *clock;
        self.discard = *discard;
        self.limits = *limits;
        self.plain_hash = *plain_hash;
        self.log.clone_from(log);
        #[cfg(feature = "mutants")]
        {
            self.defect = *defect;
        }
    }
}

#[cfg(test)]
mod tests;
