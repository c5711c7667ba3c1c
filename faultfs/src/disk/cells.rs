//! One unit: its cell, the slot that the cell may name, and the entries of writes on that slot.
//!
//! Invariant: a unit that is one decided value has no slot; an entry belongs to one slot, and counts in its write.

use super::PossibleDisk;
use super::hash::cell_hash;
use super::record::{Base, Entry, NONE, PAGE, SLOT, Slot, State, Write, push_unique};
use crate::defect::Defect;
use crate::values::Key;

impl PossibleDisk {
    /// The latest submission among the writes of a unit that supersede what ended before: those in a state that
    /// `counts`, without discards.
    #[inline]
    pub(super) fn floor(&self, slot: usize, counts: impl Fn(State) -> bool) -> Option<u64> {
        self.entries_of(slot)
            .find(|(_, write)| !write.discard && counts(write.state))
            .map(|(_, write)| write.submitted)
    }

    /// Drops what the settled writes of a unit supersede; when nothing unsettled is left, they become its base.
    pub(super) fn prune(&mut self, slot: usize) {
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

    /// Makes `keys` the whole truth about a unit.
    pub(super) fn fold(&mut self, slot: usize, keys: &[Key]) {
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
    #[inline]
    pub(super) fn simplify(&mut self, slot: usize) {
        let Slot { unit, base, head } = self.slots[slot];
        if head == NONE && base.len == 1 {
            self.slots[slot].unit = NONE;
            self.free_slots.push(slot as u32);
            self.set_cell(unit, base.at);
        }
    }

    /// Makes room for the cells of all units below `end`.
    pub(super) fn reserve(&mut self, end: u32) {
        let pages = (end as usize).div_ceil(PAGE);
        self.directory.resize(pages.max(self.directory.len()), 0);
    }

    pub(super) fn push(&mut self, unit: u32, key: Key, write: u32) {
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

    pub(super) fn retain(&mut self, slot: usize, keep: impl Fn(&Entry, &Write) -> bool) {
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

    #[inline]
    pub(super) fn release(&mut self, write: u32) {
        self.writes[write as usize].refs -= 1;
        self.free_if_unused(write);
    }

    #[inline]
    pub(super) fn free_if_unused(&mut self, write: u32) {
        let Write { refs, state, .. } = self.writes[write as usize];
        if refs == 0 && !matches!(state, State::InFlight | State::Late) {
            // In flight again: a free record matches no rule, and is not freed twice.
            self.writes[write as usize].state = State::InFlight;
            self.free_writes.push(write);
        }
    }

    #[inline]
    pub(super) fn entries_of(&self, slot: usize) -> impl Iterator<Item = (Entry, &Write)> {
        let mut at = self.slots[slot].head;
        std::iter::from_fn(move || {
            let entry = *self.entries.get(at as usize)?;
            at = entry.next;
            Some((entry, &self.writes[entry.write as usize]))
        })
    }

    #[inline]
    pub(super) fn base_keys(&self, base: Base) -> impl Iterator<Item = Key> {
        (0..base.len).map(move |n| self.base_key(base, n))
    }

    #[inline]
    pub(super) fn base_key(&self, base: Base, n: u32) -> Key {
        if base.len == 1 { Key(base.at) } else { self.sets[(base.at + n) as usize] }
    }

    #[inline]
    pub(super) fn cell(&self, unit: u32) -> u32 {
        match self.directory.get(unit as usize / PAGE) {
            Some(&page) => self.pages[page as usize][unit as usize % PAGE],
            None => Key::ZERO.0,
        }
    }

    #[inline]
    pub(super) fn slot_at(&self, unit: u32) -> Option<usize> {
        let cell = self.cell(unit);
        (cell & SLOT != 0).then_some((cell & !SLOT) as usize)
    }

    #[inline]
    pub(super) fn set_cell(&mut self, unit: u32, cell: u32) {
        let page = &mut self.directory[unit as usize / PAGE];
        if *page == 0 {
            if cell == Key::ZERO.0 {
                return;
            }
            *page = self.pages.len() as u32;
            self.pages.push([Key::ZERO.0; PAGE]);
        }
        let old = &mut self.pages[*page as usize][unit as usize % PAGE];
        self.plain_hash =
            self.plain_hash.wrapping_sub(cell_hash(unit, *old)).wrapping_add(cell_hash(unit, cell));
        *old = cell;
    }
}
