//! What a possible disk is made of.
//!
//! Invariant: nothing here decides or changes anything; indices of one list into another are 32 bits, and [`NONE`] leads nowhere.

use serde::{Deserialize, Serialize};

use crate::values::Key;

/// Which file of a disk: most have but one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum File {
    /// The one that begins at unit 0.
    #[default]
    First,
    /// The one that [`PossibleDisk::with_second`](super::PossibleDisk::with_second) adds.
    Second,
}

impl File {
    /// Both, whether or not a disk has the second.
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];

    /// Whether it is the one that every disk has.
    pub const fn is_first(&self) -> bool {
        matches!(self, Self::First)
    }
}

/// Units per page of cells. A page is stored only when some unit of it is not zero.
pub(super) const PAGE: usize = 32;
/// Marks a cell that names a slot rather than a key.
pub(super) const SLOT: u32 = 1 << 31;
pub(super) const NONE: u32 = u32::MAX;
pub(super) const NEVER: u64 = u64::MAX;

/// A unit that is more than one decided value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// [`NONE`] when the slot is free.
    pub(super) unit: u32,
    pub(super) base: Base,
    /// Newest entry, or [`NONE`].
    pub(super) head: u32,
}

/// What the medium may hold below all entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    /// 0: a settled entry has taken its place. 1: `at` is the key. More: `sets[at..at + len]`.
    pub(super) len: u32,
    pub(super) at: u32,
}

impl Base {
    pub(super) const EMPTY: Self = Self { len: 0, at: 0 };

    #[inline]
    pub(super) const fn one(key: Key) -> Self {
        Self { len: 1, at: key.0 }
    }
}

/// One unit of one write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) write: u32,
    /// The entry submitted before this one, or [`NONE`].
    pub(super) next: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) submitted: u64,
    /// [`NEVER`] while in flight.
    pub(super) ended: u64,
    pub(super) first: u32,
    pub(super) count: u32,
    /// How many entries, of units and of the length, belong to it; free when none do and it has ended.
    pub(super) refs: u32,
    pub(super) state: State,
    pub(super) discard: bool,
    pub(super) through: bool,
    pub(super) file: File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
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
    #[inline]
    pub(super) const fn is_completed(self) -> bool {
        matches!(self, Self::Done | Self::Settled)
    }

    #[inline]
    pub(super) const fn is_left_by_crash(self) -> bool {
        matches!(self, Self::Undecided | Self::Landed | Self::Lost)
    }
}

impl Write {
    /// Whether it ended before what happened at `time`. The clock ticks at every event, so nothing else happened at its end.
    #[inline]
    pub(super) const fn ended_before(&self, time: u64) -> bool {
        self.ended < time
    }

    /// Whether it is part of what is on the medium, not of what is pending above it.
    #[inline]
    pub(super) const fn is_medium(&self) -> bool {
        self.state.is_left_by_crash() || (self.discard && matches!(self.state, State::Settled))
    }
}

/// The length of one file. All lengths are counted from its own first unit.
#[derive(Debug)]
pub(super) struct Length {
    /// What the medium may say below all changes, longest first.
    pub(super) base: Vec<u32>,
    /// Pending changes, oldest first.
    pub(super) changes: Vec<Pending>,
    /// Units of the disk below this one are within every length that a crash left open; [`NONE`] when it left none open.
    pub(super) firm: u32,
}

impl Clone for Length {
    fn clone(&self) -> Self {
        Self { base: self.base.clone(), changes: self.changes.clone(), firm: self.firm }
    }

    fn clone_from(&mut self, source: &Self) {
        self.base.clone_from(&source.base);
        self.changes.clone_from(&source.changes);
        self.firm = source.firm;
    }
}

impl Length {
    pub(super) fn new(len: u32) -> Self {
        Self { base: vec![len], changes: Vec::new(), firm: NONE }
    }

    /// That of a file that there is not.
    pub(super) const fn none() -> Self {
        Self { base: Vec::new(), changes: Vec::new(), firm: NONE }
    }

    #[inline]
    pub(super) fn shortest_base(&self) -> u32 {
        self.base.last().copied().unwrap_or(0)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) write: u32,
    pub(super) change: Change,
    /// A crash kept it whatever happened to the units of its write.
    pub(super) certain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Set(u32),
    Extend(u32),
}

#[inline]
pub(super) fn push_unique(keys: &mut Vec<Key>, key: Key) {
    if !keys.contains(&key) {
        keys.push(key);
    }
}
