//! What a read returns, and what it decides about the medium by looking.
//!
//! Invariant: what was decided stays so, until a write, a discard or a cut of its file changes it.

use super::record::{Base, NONE, State, Write, push_unique};
use super::{File, PossibleDisk};
use crate::chooser::{Choice, Chooser, ask};
use crate::defect::Defect;
use crate::values::Key;

impl PossibleDisk {
    /// What a read of `unit` returns now. What it learns about the medium stays so, even if something newer is in
    /// flight above it.
    pub fn read<C: Chooser + ?Sized>(&mut self, unit: u32, chooser: &mut C) -> Key {
        if unit >= self.firm(unit) {
            self.decide_length(self.file_of(unit), chooser);
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
        if unit >= self.firm(unit) {
            self.decide_length(self.file_of(unit), chooser);
        }
        if let Some(slot) = self.slot_at(unit)
            && self.floor(slot, State::is_completed).is_none()
            && self.decided_medium(slot).is_none()
        {
            self.collapse(slot, chooser);
        }
    }

    /// The length of the first file that a caller sees now, in units. What it learns about the medium stays so.
    pub fn len<C: Chooser + ?Sized>(&mut self, chooser: &mut C) -> u32 {
        self.len_of(File::First, chooser)
    }

    /// The length of a file that a caller sees now, as [`len`](Self::len) is that of the first.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn len_of<C: Chooser + ?Sized>(&mut self, file: File, chooser: &mut C) -> u32 {
        if self.length[file as usize].firm != NONE {
            self.decide_length(file, chooser);
        }
        self.visible_length(file, chooser)
    }

    /// Units below this one are within every length of the file of `unit` that a crash left open.
    #[inline]
    pub(super) const fn firm(&self, unit: u32) -> u32 {
        self.length[self.file_of(unit) as usize].firm
    }

    /// Appends what pending writes let a read of the unit return; true if what is on the medium is another option.
    pub(super) fn visible_pending(&self, slot: usize, keys: &mut Vec<Key>) -> bool {
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
    pub(super) fn decided_medium(&self, slot: usize) -> Option<Key> {
        let base = self.slots[slot].base;
        let decided = base.len == 1 && !self.entries_of(slot).any(|(_, write)| write.is_medium());
        decided.then_some(Key(base.at))
    }

    /// Decides what is on the medium of a unit.
    pub(super) fn collapse<C: Chooser + ?Sized>(&mut self, slot: usize, chooser: &mut C) -> Key {
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
    pub(super) fn has_landed<C: Chooser + ?Sized>(&mut self, write: u32, chooser: &mut C) -> bool {
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
}
