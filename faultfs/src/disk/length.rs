//! The length of the file: one more thing that a cached operation changes and a crash may leave behind.
//!
//! Invariant: a length is possible exactly if some subset of the pending changes that contains all the certain ones,
//! applied in some order that real time allows, gives it. A change *sets* the length (`set_len`) or *extends* it (a
//! write that ends past the end): extending is a maximum, so two appends in flight together need no order, and a short
//! length never comes back once a longer one is durable.

use super::PossibleDisk;
use super::record::{Change, NONE, Pending, State, Write};
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
    pub(super) fn lengths(&self, fate: impl Fn(&Pending, &Write) -> Fate) -> Vec<u32> {
        struct Change<'a> {
            write: &'a Write,
            len: u32,
            must: bool,
        }
        if self.length.changes.is_empty() {
            return self.length.base.clone();
        }
        let (mut sets, mut extends) = (Vec::new(), Vec::new());
        for pending in &self.length.changes {
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
            found.extend(self.length.base.iter().map(|&len| len.max(longest[0])));
            least_of_base = self.length.shortest_base().max(longest[0]);
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
    pub(super) fn firm_up<C: Chooser + ?Sized>(&mut self, end: u32, chooser: &mut C) {
        if end > self.length.firm {
            self.decide_length(chooser);
        }
    }

    pub(super) fn decide_length<C: Chooser + ?Sized>(&mut self, chooser: &mut C) {
        for at in 0..self.length.changes.len() {
            let Pending { write, certain, .. } = self.length.changes[at];
            if !certain {
                self.has_landed(write, chooser);
            }
        }
        let options = self.lengths(|pending, write| match write.state {
            State::Lost if !pending.certain => Fate::Not,
            _ => Fate::Must,
        });
        let len = options[ask(chooser, options.len(), Choice::Length { options: &options })];
        self.set_length_base(&[len]);
        self.length.firm = NONE;
        self.zero_from(len);
    }

    /// Makes everything from unit `len` on zero for ever: no length reaches it.
    pub(super) fn zero_from(&mut self, len: u32) {
        if self.has(Defect::ShortLengthKeepsUnits) {
            return;
        }
        let cut: Vec<u32> = self.nonzero_cells(len).collect();
        for unit in cut {
            match self.slot_at(unit) {
                Some(slot) => self.fold(slot, &[Key::ZERO]),
                None => self.set_cell(unit, Key::ZERO.0),
            }
        }
        self.log.changed(len, self.extent().saturating_sub(len));
    }

    /// Makes `base` what the medium may say, and forgets all changes.
    pub(super) fn set_length_base(&mut self, base: &[u32]) {
        self.length.base.clear();
        self.length.base.extend_from_slice(base);
        let mut changes = std::mem::take(&mut self.length.changes);
        for pending in changes.drain(..) {
            self.release(pending.write);
        }
        self.length.changes = changes;
    }

    pub(super) fn visible_length<C: Chooser + ?Sized>(&self, chooser: &mut C) -> u32 {
        if self.length.changes.is_empty() {
            return self.length.base[0];
        }
        let options = self.visible_lengths();
        options[ask(chooser, options.len(), Choice::Length { options: &options })]
    }

    /// Records that `write` reaches up to `end`, if that may be past the end of the file.
    pub(super) fn extend(&mut self, write: u32, end: u32) {
        if self.length.firm != NONE || self.writes[write as usize].count == 0 {
            // A length is open, and `firm_up` has seen to it that the write is within all that it may be.
            return;
        }
        let sets = self.length.changes.iter().filter_map(|pending| match pending.change {
            Change::Set(len) => Some(len),
            Change::Extend(_) => None,
        });
        if end > sets.fold(self.length.shortest_base(), u32::min) {
            self.change_length(write, Change::Extend(end));
        }
    }

    pub(super) fn change_length(&mut self, write: u32, change: Change) {
        debug_assert!(self.length.firm == NONE);
        self.length.changes.push(Pending { write, change, certain: false });
        self.writes[write as usize].refs += 1;
    }

    /// Whether `write` is a set_len.
    pub(super) fn sets_length(&self, write: u32) -> bool {
        self.length
            .changes
            .iter()
            .any(|pending| pending.write == write && matches!(pending.change, Change::Set(_)))
    }

    /// A write fell short: it ends at `end`, or changes nothing where that is 0.
    pub(super) fn shorten_length(&mut self, write: u32, end: u32) {
        for pending in &mut self.length.changes {
            if pending.write == write {
                pending.change = Change::Extend(end);
            }
        }
        if end == 0 {
            self.forget_length(write);
        }
    }

    pub(super) fn forget_length(&mut self, write: u32) {
        let had = self.length.changes.len();
        self.length.changes.retain(|pending| pending.write != write);
        for _ in self.length.changes.len()..had {
            self.release(write);
        }
    }

    /// Makes settled changes the base, as far as nothing pending can still be ordered against them.
    pub(super) fn settle_length(&mut self) {
        if self.length.changes.is_empty() {
            return;
        }
        let settled = |disk: &Self, pending: &Pending| {
            disk.writes[pending.write as usize].state == State::Settled
        };
        if self.length.changes.iter().all(|pending| settled(self, pending)) {
            let base = self.lengths(|_, _| Fate::Must);
            self.set_length_base(&base);
        } else if self.length.changes.iter().all(|p| matches!(p.change, Change::Extend(_))) {
            let reached = self.length.changes.iter().filter(|pending| settled(self, pending));
            let reached = reached.fold(0, |reached, pending| match pending.change {
                Change::Extend(end) | Change::Set(end) => reached.max(end),
            });
            for len in &mut self.length.base {
                *len = (*len).max(reached);
            }
            self.length.base.dedup();
            let shortest = self.length.shortest_base();
            let mut dropped = Vec::new();
            self.length.changes.retain(|pending| match pending.change {
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
