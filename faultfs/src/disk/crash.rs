//! The power cut: pending writes become part of what may be on the medium.
//!
//! Invariant: after a crash nothing is in flight, no flush is, and every unit is a base (under `cache`: a base below
//! writes whose fate is shared by their units). The chooser is asked here only for what a profile fixes before recovery
//! starts: the cut of `prefix` and `epoch`, and which of the free writes landed. What a unit holds of the rest is asked when somebody
//! first reads it (`read.rs`), how long a file is when somebody asks for that (`length.rs`).
//!
//! | profile | completed writes | in flight or failed | length |
//! | --- | --- | --- | --- |
//! | `kill` | landed | chosen now, each whole | as visible, with what landed |
//! | `prefix` | all but the last n, chosen now | chosen now if n is 0, else lost | the same |
//! | `epoch` | landed before a barrier, chosen now where free | the same; lost after the next barrier | the same |
//! | `cache` | left to be decided, each whole | the same | the same, decided with its write |
//! | `torn` | any, unit by unit | the same | any that is visible |
//! | `torn-length` | any, unit by unit | the same | any, back to the durable one |
//!
//! Of two files, `prefix` makes one cut through the completions of both: they are on one device, and it works in order. So
//! nothing is cut off that completed before a write that a flush covered, be it a flush of the other file. `epoch` makes a
//! cut for each file by its own barriers. It still leaves what `prefix` does: let each file reach the last of its barriers
//! that was submitted before the first write that `prefix` lost; all of this file that ended before that barrier has
//! landed, and all that was submitted after the next one is lost. What `cache` and those after it leave open is a matter
//! of single writes, units and files, whichever file that is.
//!
//! A disk that crashed under `cache` and crashes again under a profile that tears forgets, for the units written in
//! between, that older writes were whole.

use std::borrow::Cow;

use super::length::Fate;
use super::record::{NEVER, NONE, State, Write, push_unique};
use super::{File, PossibleDisk};
use crate::chooser::{Choice, Chooser, ask};
use crate::defect::Defect;
use crate::profile::Profile;

/// Says of a pending write that it certainly landed, certainly did not, or is free to.
type Rule = Box<dyn Fn(&Write) -> Option<bool>>;

impl PossibleDisk {
    /// The disk that recovery sees after a power cut now.
    #[must_use]
    pub fn crash<C: Chooser + ?Sized>(&self, profile: Profile, chooser: &mut C) -> Self {
        let mut disk = self.clone();
        disk.crash_in_place(profile, chooser);
        disk
    }

    /// Cuts the power of this disk. Ids of operations in flight are void afterwards.
    pub fn crash_in_place<C: Chooser + ?Sized>(&mut self, profile: Profile, chooser: &mut C) {
        self.assert_sound();
        let now = self.tick();
        if self.has(Defect::CrashForgetsInFlight) {
            self.drop_in_flight();
        }
        let profile = match profile {
            Profile::Cache if self.has(Defect::CacheTears) => Profile::Torn,
            Profile::Torn | Profile::TornLength if self.has(Defect::TornIsWhole) => Profile::Cache,
            Profile::TornLength if self.has(Defect::LengthNeverLags) => Profile::Torn,
            other => other,
        };
        let torn = matches!(profile, Profile::Torn | Profile::TornLength);
        let fates = if torn { Vec::new() } else { self.fates(profile, chooser) };
        let lengths = File::BOTH.map(|file| self.length_after(file, profile, &fates));
        if torn {
            self.fold_allowed();
        } else {
            for pending in self.length.iter_mut().flat_map(|length| &mut length.changes) {
                pending.certain |= self.writes[pending.write as usize].state.is_completed();
            }
            for (write, fate) in self.writes.iter_mut().zip(fates) {
                write.state = fate;
                write.ended = write.ended.min(now);
            }
            for slot in 0..self.slots.len() {
                if self.slots[slot].head != NONE {
                    self.fold_decided(slot);
                }
            }
        }
        for (file, lengths) in File::BOTH.into_iter().zip(lengths) {
            self.enter_length(file, lengths);
        }
        self.compact();
        self.barriers.iter_mut().for_each(Vec::clear);
        self.stuck = false;
        self.log.restart();
        self.assert_cut();
    }

    /// What becomes of each write under a profile that does not tear.
    fn fates<C: Chooser + ?Sized>(&self, profile: Profile, chooser: &mut C) -> Vec<State> {
        let free =
            |write: &Write| matches!(write.state, State::InFlight | State::Failed | State::Late);
        let kept: Rule = match profile {
            Profile::Kill if self.has(Defect::KillLosesCompleted) => Box::new(|_| None),
            Profile::Prefix if self.has(Defect::PrefixHasHoles) => {
                Box::new(move |write| free(write).then_some(false))
            }
            Profile::Epoch if self.has(Defect::EpochIgnoresBarrier) => Box::new(|_| None),
            Profile::Kill => Box::new(move |write| (!free(write)).then_some(true)),
            Profile::Prefix => {
                let mut ends: Vec<u64> = self
                    .writes
                    .iter()
                    .filter(|write| write.state == State::Done)
                    .filter(|write| !write.ended_before(self.through_at))
                    .map(|write| write.ended)
                    .collect();
                ends.sort_unstable();
                let cut = ask(chooser, ends.len() + 1, Choice::Prefix);
                let first_lost = ends.get(ends.len() - cut).copied();
                Box::new(move |write| match first_lost {
                    None => (!free(write)).then_some(true),
                    Some(lost) => Some(!free(write) && write.ended_before(lost)),
                })
            }
            Profile::Epoch => {
                let (mut reached, mut next) = ([0; 2], [NEVER; 2]);
                for &file in self.files() {
                    let barriers = self.barriers_of(file);
                    let count = barriers.len();
                    let cut = ask(chooser, count + 1, Choice::Epoch);
                    reached[file as usize] =
                        if cut == count { 0 } else { barriers[count - 1 - cut] };
                    next[file as usize] = if cut == 0 { NEVER } else { barriers[count - cut] };
                }
                Box::new(move |write| match write.state {
                    State::Done if write.ended_before(reached[write.file as usize]) => Some(true),
                    _ => (write.submitted > next[write.file as usize]).then_some(false),
                })
            }
            Profile::Cache | Profile::Torn | Profile::TornLength => Box::new(|_| None),
        };

        let mut fates: Vec<State> = self.writes.iter().map(|write| write.state).collect();
        let mut order: Vec<usize> = (0..self.writes.len()).collect();
        order.sort_unstable_by_key(|&id| self.writes[id].submitted);
        for id in order {
            let write = &self.writes[id];
            if write.refs == 0 || write.state.is_left_by_crash() {
                continue;
            }
            let certain = write.discard && self.has(Defect::DiscardAlwaysLands);
            fates[id] = if write.state == State::Settled || certain {
                State::Landed
            } else {
                match kept(write) {
                    Some(true) => State::Landed,
                    Some(false) => State::Lost,
                    // A discard that landed leaves what was there as an option, so there is nothing to choose.
                    None if write.discard => State::Landed,
                    None if profile == Profile::Cache => State::Undecided,
                    None => {
                        let what = Choice::Write { unit: write.first, count: write.count };
                        if ask(chooser, 2, what) == 0 { State::Landed } else { State::Lost }
                    }
                }
            };
        }
        fates
    }

    /// When the flushes of a file were submitted that a crash takes for barriers, ascending.
    fn barriers_of(&self, file: File) -> Cow<'_, [u64]> {
        if !self.has(Defect::BarrierIsOfBothFiles) {
            return Cow::Borrowed(&self.barriers[file as usize]);
        }
        let mut all = self.barriers.concat();
        all.sort_unstable();
        Cow::Owned(all)
    }

    /// The lengths of a file that the crash leaves; none where they hang on writes whose fate is left open.
    fn length_after(&self, file: File, profile: Profile, fates: &[State]) -> Option<Vec<u32>> {
        match profile {
            Profile::TornLength => Some(self.possible_lengths_of(file)),
            Profile::Torn => Some(self.visible_lengths_of(file)),
            Profile::Kill | Profile::Prefix | Profile::Epoch => {
                Some(self.lengths(file, |pending, write| {
                    let landed = pending.certain || write.state.is_completed();
                    match fates[pending.write as usize] {
                        _ if landed => Fate::Must,
                        State::Lost => Fate::Not,
                        State::Undecided => Fate::May,
                        _ => Fate::Must,
                    }
                }))
            }
            Profile::Cache => None,
        }
    }

    fn enter_length(&mut self, file: File, lengths: Option<Vec<u32>>) {
        if self.length[file as usize].changes.is_empty() {
            return;
        }
        match lengths {
            Some(lengths) => self.set_length_base(file, &lengths),
            None => {
                let possible = self.possible_lengths_of(file);
                if let [len] = possible[..] {
                    self.set_length_base(file, &[len]);
                }
            }
        }
        let possible = self.possible_lengths_of(file);
        let (longest, shortest) = (possible[0], possible[possible.len() - 1]);
        let firm = self.room(file).start + shortest;
        self.length[file as usize].firm = if longest == shortest { NONE } else { firm };
        self.zero_from(file, longest);
    }

    /// Every unit may be anything that is allowed, whatever the others are.
    fn fold_allowed(&mut self) {
        let mut keys = Vec::new();
        for slot in 0..self.slots.len() {
            if self.slots[slot].head != NONE {
                keys.clear();
                self.allowed(slot, &mut keys);
                if self.has(Defect::NewestOrBase)
                    && let Some(&oldest) = keys.last()
                {
                    keys.truncate(1);
                    push_unique(&mut keys, oldest);
                }
                self.fold(slot, &keys);
            }
        }
    }

    /// Where the fates of all writes of a unit are decided, they say what its base is.
    fn fold_decided(&mut self, slot: usize) {
        let mut keys = Vec::new();
        let mut floor = 0;
        if self.entries_of(slot).any(|(_, write)| write.state == State::Undecided) {
            return self.retain(slot, |_, write| write.state != State::Lost);
        }
        for (entry, write) in self.entries_of(slot) {
            if write.ended_before(floor) || write.state == State::Lost {
                continue;
            }
            push_unique(&mut keys, entry.key);
            if !write.discard {
                floor = floor.max(write.submitted);
            }
        }
        if floor == 0 {
            for key in self.base_keys(self.slots[slot].base) {
                push_unique(&mut keys, key);
            }
        }
        self.fold(slot, &keys);
    }

    /// Frees what the crash has made unreachable.
    fn compact(&mut self) {
        let old = std::mem::take(&mut self.sets);
        for slot in &mut self.slots {
            if slot.base.len > 1 {
                let from = slot.base.at as usize;
                slot.base.at = self.sets.len() as u32;
                self.sets.extend_from_slice(&old[from..from + slot.base.len as usize]);
            }
        }
        self.free_writes.clear();
        if self.writes.iter().all(|write| write.refs == 0) {
            self.writes.clear();
            self.entries.clear();
            self.free_entry = NONE;
        }
        for (id, write) in self.writes.iter_mut().enumerate() {
            if write.refs == 0 {
                write.state = State::InFlight;
                self.free_writes.push(id as u32);
            }
        }
    }

    fn drop_in_flight(&mut self) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].unit != NONE {
                self.retain(slot, |_, write| write.state != State::InFlight);
                self.simplify(slot);
            }
        }
    }
}
