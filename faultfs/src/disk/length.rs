//! The length of a file: one more thing that a cached operation changes and a crash may leave behind.
//!
//! Invariant: a length is possible exactly if some subset of the pending changes that contains all the certain ones,
//! applied in some order that real time allows, gives it. A change *sets* the length (`set_len`) or *extends* it (a
//! write that ends past the end): extending is a maximum, so two appends in flight together need no order, and a short
//! length never comes back once a longer one is durable. What one file does has no share in the length of the other.

use std::ops::Range;

use super::record::{Change, Length, NONE, Pending, State, Write};
use super::{File, PossibleDisk};
use crate::chooser::{Choice, Chooser, ask};
use crate::defect::Defect;
use crate::values::Key;

/// How a pending change enters the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Must,
    May,
    Not,
}

impl Fate {
    pub(super) const fn must_if(certain: bool) -> Self {
        if certain { Self::Must } else { Self::May }
    }
}

impl PossibleDisk {
    /// Every length that the pending changes can give, longest first.
    ///
    /// One set took effect last, or none did and the base stands. What that left counts with the longest of the
    /// extensions that must come after it; an extension shows if it is longer than the least of all that it may follow.
    /// Each change is looked at once, in the order of time: an image that shrinks and grows often has thousands.
    pub(super) fn lengths(&self, file: File, fate: impl Fn(&Pending, &Write) -> Fate) -> Vec<u32> {
        struct Change<'a> {
            write: &'a Write,
            len: u32,
            must: bool,
        }
        let length = &self.length[file as usize];
        if length.changes.is_empty() {
            return length.base.clone();
        }
        let (mut sets, mut extends) = (Vec::new(), Vec::new());
        for pending in &length.changes {
            let write = &self.writes[pending.write as usize];
            let must = match fate(pending, write) {
                Fate::Not => continue,
                fate => fate == Fate::Must,
            };
            match pending.change {
                self::Change::Set(len) => sets.push(Change { write, len, must }),
                self::Change::Extend(len) => extends.push(Change { write, len, must }),
            }
        }
        let newest_must = sets.iter().filter(|set| set.must).map(|set| set.write.submitted).max();
        sets.retain(|set| newest_must.is_none_or(|newest| !set.write.ended_before(newest)));
        sets.sort_unstable_by_key(|set| set.write.submitted);
        extends.sort_unstable_by_key(|extend| extend.write.submitted);

        // The longest of the extensions from here on that must be there.
        let mut longest = vec![0; extends.len() + 1];
        for (at, extend) in extends.iter().enumerate().rev() {
            longest[at] = longest[at + 1].max(if extend.must { extend.len } else { 0 });
        }
        let mut found = Vec::new();
        let mut least_of_base = NONE;
        if newest_must.is_none() {
            found.extend(length.base.iter().map(|&len| len.max(longest[0])));
            least_of_base = length.shortest_base().max(longest[0]);
        }
        // The least that the base, and the sets submitted up to here, leave.
        let mut least = Vec::with_capacity(sets.len());
        for set in &sets {
            let after =
                extends.partition_point(|extend| !set.write.ended_before(extend.write.submitted));
            let len = set.len.max(longest[after]);
            found.push(len);
            least.push(len.min(least.last().copied().unwrap_or(least_of_base)));
        }
        for extend in &extends {
            let follows =
                sets.partition_point(|set| !extend.write.ended_before(set.write.submitted));
            let least = follows.checked_sub(1).map_or(least_of_base, |last| least[last]);
            if extend.len > least {
                found.push(extend.len);
            }
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        found
    }

    /// Decides a length that a crash left open before something at or beyond the shortest is touched.
    pub(super) fn firm_up<C: Chooser + ?Sized>(&mut self, file: File, end: u32, chooser: &mut C) {
        if end > self.length[file as usize].firm {
            self.decide_length(file, chooser);
        }
    }

    pub(super) fn decide_length<C: Chooser + ?Sized>(&mut self, file: File, chooser: &mut C) {
        for at in 0..self.length[file as usize].changes.len() {
            let Pending { write, certain, .. } = self.length[file as usize].changes[at];
            if !certain {
                self.has_landed(write, chooser);
            }
        }
        let options = self.lengths(file, |pending, write| match write.state {
            State::Lost if !pending.certain => Fate::Not,
            _ => Fate::Must,
        });
        let len = options[ask(chooser, options.len(), Choice::Length { options: &options })];
        self.set_length_base(file, &[len]);
        self.length[file as usize].firm = NONE;
        self.zero_from(file, len);
    }

    /// The units of a file that lie beyond `len`, as far as any was ever anything but zero.
    pub(super) fn beyond(&self, file: File, len: u32) -> Range<u32> {
        let Range { start, end } = self.room(file);
        start + len..end.min(self.extent()).max(start + len)
    }

    /// Makes everything of a file from its unit `len` on zero for ever: no length reaches it.
    pub(super) fn zero_from(&mut self, file: File, len: u32) {
        if self.has(Defect::ShortLengthKeepsUnits) {
            return;
        }
        let beyond = self.beyond(file, len);
        let cut: Vec<u32> = self.nonzero_cells(beyond.clone()).collect();
        for unit in cut {
            match self.slot_at(unit) {
                Some(slot) => self.fold(slot, &[Key::ZERO]),
                None => self.set_cell(unit, Key::ZERO.0),
            }
        }
        self.log.changed(beyond.start, beyond.end - beyond.start);
    }

    /// Makes `base` what the medium may say, and forgets all changes.
    pub(super) fn set_length_base(&mut self, file: File, base: &[u32]) {
        let length = &mut self.length[file as usize];
        length.base.clear();
        length.base.extend_from_slice(base);
        let mut changes = std::mem::take(&mut length.changes);
        for pending in changes.drain(..) {
            self.release(pending.write);
        }
        self.length[file as usize].changes = changes;
    }

    pub(super) fn visible_length<C: Chooser + ?Sized>(&self, file: File, chooser: &mut C) -> u32 {
        let length = &self.length[file as usize];
        if length.changes.is_empty() {
            return length.base[0];
        }
        let options = self.visible_lengths_of(file);
        options[ask(chooser, options.len(), Choice::Length { options: &options })]
    }

    /// Records that `write` reaches up to unit `end` of the disk, if that may be past the end of its file.
    pub(super) fn extend(&mut self, write: u32, end: u32) {
        let file = self.writes[write as usize].file;
        let end = end - self.room(file).start;
        let length = &self.length[file as usize];
        if length.firm != NONE || self.writes[write as usize].count == 0 {
            // A length is open, and `firm_up` has seen to it that the write is within all that it may be.
            return;
        }
        let sets = length.changes.iter().filter_map(|pending| match pending.change {
            Change::Set(len) => Some(len),
            Change::Extend(_) => None,
        });
        if end > sets.fold(length.shortest_base(), u32::min) {
            self.change_length(write, Change::Extend(end));
        }
    }

    pub(super) fn change_length(&mut self, write: u32, change: Change) {
        let length = self.length_of(write);
        debug_assert!(length.firm == NONE);
        length.changes.push(Pending { write, change, certain: false });
        self.writes[write as usize].refs += 1;
    }

    /// The length of the file of a write.
    fn length_of(&mut self, write: u32) -> &mut Length {
        &mut self.length[self.writes[write as usize].file as usize]
    }

    /// Whether `write` is a set_len.
    pub(super) fn sets_length(&self, write: u32) -> bool {
        self.length[self.writes[write as usize].file as usize]
            .changes
            .iter()
            .any(|pending| pending.write == write && matches!(pending.change, Change::Set(_)))
    }

    /// A write fell short: it ends at unit `end` of its file, or changes nothing where that is 0.
    pub(super) fn shorten_length(&mut self, write: u32, end: u32) {
        for pending in &mut self.length_of(write).changes {
            if pending.write == write {
                pending.change = Change::Extend(end);
            }
        }
        if end == 0 {
            self.forget_length(write);
        }
    }

    pub(super) fn forget_length(&mut self, write: u32) {
        let changes = &mut self.length_of(write).changes;
        let had = changes.len();
        changes.retain(|pending| pending.write != write);
        for _ in changes.len()..had {
            self.release(write);
        }
    }

    /// Makes settled changes the base, as far as nothing pending can still be ordered against them.
    pub(super) fn settle_length(&mut self, file: File) {
        let length = &self.length[file as usize];
        if length.changes.is_empty() {
            return;
        }
        let settled =
            |pending: &Pending| self.writes[pending.write as usize].state == State::Settled;
        if length.changes.iter().all(settled) {
            let base = self.lengths(file, |_, _| Fate::Must);
            self.set_length_base(file, &base);
        } else if length.changes.iter().all(|p| matches!(p.change, Change::Extend(_))) {
            let reached = length.changes.iter().filter(|pending| settled(pending));
            let reached = reached.fold(0, |reached, pending| match pending.change {
                Change::Extend(end) | Change::Set(end) => reached.max(end),
            });
            let length = &mut self.length[file as usize];
            for len in &mut length.base {
                *len = (*len).max(reached);
            }
            length.base.dedup();
            let shortest = length.shortest_base();
            let mut dropped = Vec::new();
            length.changes.retain(|pending| match pending.change {
                Change::Extend(end) if end <= shortest => {
                    dropped.push(pending.write);
                    false
                }
                _ => true,
            });
            for write in dropped {
                self.release(write);
            }
        }
    }
}
