//! What the lists of a possible disk say of each other, asked in debug builds on both sides of each power cut: of what the requests
//! since the last one made, and of what the next ones begin with.
//!
//! ```text
//!   cell ──SLOT + n──> slot n { unit, base ──len, at──> sets
//!                             { head ──> entry ──> entry ──> NONE
//!                                          └──write──> write { refs: its entries, and its changes of a length }
//! ```

use super::PossibleDisk;
use super::record::{NONE, SLOT};

impl PossibleDisk {
    /// Each slot is its unit's, and holds what is no single decided value; each write knows how much belongs to it.
    pub(super) fn assert_sound(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let mut counted = vec![0; self.writes.len()];
        for (at, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.unit != NONE) {
            assert_eq!(self.slot_at(slot.unit), Some(at), "the slot of unit {}", slot.unit);
            let open = slot.head != NONE || slot.base.len > 1;
            assert!(open, "unit {} is one decided value, and has a slot", slot.unit);
            let end = if slot.base.len > 1 { slot.base.at + slot.base.len } else { 0 };
            assert!(end as usize <= self.sets.len(), "the set of unit {} ends at {end}", slot.unit);
            self.entries_of(at).for_each(|(entry, _)| counted[entry.write as usize] += 1);
        }
        for pending in self.length.iter().flat_map(|length| &length.changes) {
            counted[pending.write as usize] += 1;
        }
        for (at, (write, counted)) in self.writes.iter().zip(counted).enumerate() {
            assert_eq!(write.refs, counted, "what belongs to write {at}");
        }
        let slots = (self.pages.iter().flatten()).filter(|&cell| cell & SLOT != 0).count();
        let free = self.free_slots.len();
        assert_eq!(slots + free, self.slots.len(), "{slots} units have slots, {free} are free");
    }

    /// Nothing is in flight, no flush is, and what is not decided is part of the medium.
    pub(super) fn assert_cut(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.assert_sound();
        assert!(self.barriers.iter().all(Vec::is_empty), "a flush is in flight");
        let pending =
            self.writes.iter().position(|write| write.refs > 0 && !write.state.is_left_by_crash());
        assert_eq!(pending, None, "a write outlives the power cut as it was");
    }
}
