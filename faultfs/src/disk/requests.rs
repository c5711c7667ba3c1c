//! What a caller asks of the disk, from submission to end, and what a flush or a failed sync makes of what has ended.

use storage::Durability;

use super::record::{Base, Change, NEVER, NONE, State, Write};
use super::{File, FlushId, Landing, MAX_UNITS, PossibleDisk, WriteId};
use crate::chooser::Chooser;
use crate::defect::Defect;
use crate::profile::{DiscardMode, FlushFailure};
use crate::values::Key;

impl PossibleDisk {
    /// Submits a write of one key per unit from unit `first`. It extends the file that this unit belongs to if it ends
    /// beyond it.
    ///
    /// All submissions may have to decide a length that a crash left open, and then ask `chooser`.
    ///
    /// # Panics
    /// If it ends beyond the room of the file, like all submissions.
    pub fn submit_write<C: Chooser + ?Sized>(
        &mut self,
        first: u32,
        keys: &[Key],
        durability: Durability,
        chooser: &mut C,
    ) -> WriteId {
        let count = u32::try_from(keys.len()).expect("a write has fewer than 2^32 units");
        let write = self.begin(self.file_of(first), first, count, chooser);
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
        let write = self.begin(self.file_of(first), first, count, chooser);
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
        let write = self.begin(self.file_of(first), first, end - first, chooser);
        let either = self.discard == DiscardMode::Either || self.has(Defect::DiscardModeIgnored);
        self.writes[write as usize].discard = either && !self.has(Defect::DiscardIsZero);
        for unit in first..end {
            self.push(unit, Key::ZERO, write);
        }
        WriteId(write)
    }

    /// Submits a change of the length of the first file to `len` units. The units that it cuts become zero.
    ///
    /// # Panics
    /// If the file has no room for `len` units: [`MAX_UNITS`] where there is no second one.
    pub fn submit_set_len<C: Chooser + ?Sized>(&mut self, len: u32, chooser: &mut C) -> WriteId {
        self.submit_set_len_of(File::First, len, chooser)
    }

    /// Submits a change of the length of a file, as [`submit_set_len`](Self::submit_set_len) is one of the first.
    ///
    /// # Panics
    /// If the file has no room for `len` units, or if there is no such file.
    pub fn submit_set_len_of<C: Chooser + ?Sized>(
        &mut self,
        file: File,
        len: u32,
        chooser: &mut C,
    ) -> WriteId {
        assert!(self.files().contains(&file), "a length of no file");
        assert!(len as usize <= self.room(file).len(), "a file of {len} units");
        self.firm_up(file, MAX_UNITS, chooser);
        let mut beyond = self.beyond(file, len);
        let write = self.begin(file, beyond.start, beyond.end - beyond.start, chooser);
        self.change_length(write, Change::Set(len));
        if self.has(Defect::SetLenCutsBothFiles) {
            beyond.end = MAX_UNITS;
        }
        if !self.has(Defect::CutUnitsKept) {
            let cut: Vec<u32> = self.nonzero_cells(beyond).collect();
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
        let Write { first, count, through, file, .. } = self.writes[id];
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
            self.settle_length(file);
        }
        if through && self.has(Defect::ThroughIsBarrier) {
            self.cover(file, now);
        }
        self.free_if_unused(write.0);
        true
    }

    /// Ends a write, zeroing, discard or length change with an error.
    pub fn fail(&mut self, write: WriteId, landing: Landing) {
        let now = self.tick();
        let id = write.0 as usize;
        let Write { first, count, discard, file, .. } = self.writes[id];
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
            let end = first + landed - self.room(file).start;
            self.shorten_length(write.0, if landed == 0 { 0 } else { end });
        }
        self.free_if_unused(write.0);
    }

    /// Ends a write-through write whose data was transferred and whose sync failed: what a flush submitted with it would
    /// have lost by failing so is lost, and the write itself with it. The flush is one of its own file.
    pub fn fail_sync(&mut self, write: WriteId, failure: FlushFailure) {
        let now = self.tick();
        let id = write.0 as usize;
        let Write { first, count, submitted, file, .. } = self.writes[id];
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
            self.lose(file, submitted, failure);
        }
        self.free_if_unused(write.0);
    }

    /// Ends what failed late, in either file: none of it lands any more.
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
    pub(super) fn stays_late(&self, write: u32) -> bool {
        let discard = self.writes[write as usize].discard;
        (discard && self.has(Defect::LateDiscardSurvivesSettle))
            || (self.has(Defect::LateLengthSurvivesSettle) && self.sets_length(write))
    }

    /// Submits a flush of the first file.
    pub fn submit_flush(&mut self) -> FlushId {
        self.submit_flush_of(File::First)
    }

    /// Submits a flush of a file. It says nothing of the writes of the other one.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn submit_flush_of(&mut self, file: File) -> FlushId {
        assert!(self.files().contains(&file), "a flush of no file");
        let now = self.tick();
        self.barriers[file as usize].push(now);
        FlushId(now, file)
    }

    /// Ends a flush well, unless an earlier sync failed for good: then it fails too, and the answer is false.
    #[must_use]
    pub fn complete_flush(&mut self, flush: FlushId) -> bool {
        self.tick();
        let FlushId(submitted, file) = flush;
        let barriers = &mut self.barriers[file as usize];
        if self.stuck {
            barriers.retain(|&barrier| barrier != submitted);
            return false;
        }
        let youngest = barriers.last().copied().unwrap_or(submitted).max(submitted);
        // An older flush of the file in flight says nothing that this one has not said.
        barriers.retain(|&barrier| barrier > submitted);
        let ahead = self.has(Defect::OlderFlushCoversYounger);
        self.cover(file, if ahead { youngest } else { submitted });
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
        let FlushId(submitted, file) = flush;
        let older = self.has(Defect::YoungerFlushEndsOlder);
        self.barriers[file as usize]
            .retain(|&barrier| barrier != submitted && !(older && barrier < submitted));
        self.lose(file, submitted, failure);
        if self.has(Defect::FailedFlushDropsPending) {
            for slot in 0..self.slots.len() {
                if self.slots[slot].head != NONE {
                    self.retain(slot, |_, _| false);
                    self.simplify(slot);
                }
            }
        }
        if self.has(Defect::FailedFlushCovers) {
            self.cover(file, submitted);
        }
    }

    #[inline]
    pub(super) fn begin<C: Chooser + ?Sized>(
        &mut self,
        file: File,
        first: u32,
        count: u32,
        chooser: &mut C,
    ) -> u32 {
        let end = first.checked_add(count).filter(|&end| end <= self.room(file).end);
        let end = end.expect("the caller keeps within the room of the file");
        self.firm_up(file, end, chooser);
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
            file,
        };
        if let Some(free) = self.free_writes.pop() {
            self.writes[free as usize] = write;
            free
        } else {
            self.writes.push(write);
            self.writes.len() as u32 - 1
        }
    }

    /// Settles what had completed of a file before `time`.
    pub(super) fn cover(&mut self, file: File, time: u64) {
        let covers_submitted = self.has(Defect::FlushCoversSubmitted);
        let both = self.has(Defect::FlushCoversBothFiles);
        let mut last = None;
        for write in &mut self.writes {
            let completed =
                write.ended_before(time) || (covers_submitted && write.submitted < time);
            if write.state == State::Done && completed && (write.file == file || both) {
                write.state = State::Settled;
                last = last.max(Some(write.ended));
            }
        }
        let Some(last) = last else { return };
        // In one file this covers all that completed before. In two it may leave what the other file's flush is to
        // cover, and a device that works in order has made that durable on the way.
        if self.second().is_some() && !self.has(Defect::FlushOrdersOneFile) {
            self.through_at = self.through_at.max(last);
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].head != NONE {
                self.prune(slot);
            }
        }
        for &file in self.files() {
            self.settle_length(file);
        }
    }

    /// A sync failed that was to cover what had completed of a file before `time`.
    pub(super) fn lose(&mut self, file: File, time: u64, failure: FlushFailure) {
        let both = self.has(Defect::FailedFlushLosesBothFiles);
        if failure == FlushFailure::CleanMarked && !self.has(Defect::CleanMarkedIsRetrySafe) {
            for write in &mut self.writes {
                let concerned = write.file == file || both;
                if write.state == State::Done && write.ended_before(time) && concerned {
                    write.state = State::Failed;
                    self.log.changed(write.first, write.count);
                }
            }
        }
        self.stuck |= failure == FlushFailure::Sticky && !self.has(Defect::StickyForgets);
    }
}
