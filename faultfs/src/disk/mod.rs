//! The possible disk: all crash states at once.
//!
//! Invariant: for every unit of 512 bytes this type knows exactly the set of values that a power cut may leave, and for
//! each file exactly the set of lengths; a test holds both against an enumeration written from the rules alone.
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
//! A disk may hold a second file, whose units follow the room of the first one. Both go through the same power cut, and
//! a sync that fails for good ends the syncs of both; a length, a cut and a flush are of one file alone:
//!
//! ```text
//!   unit   0 ............ room of the first | second ............ room of the second ............ MAX_UNITS
//!          |<- length of the first ->|      |<- its length ->|
//! ```
//!
//! What a crash leaves is a base again, so recovery, nested crashes and second lives need nothing more. Under profile
//! `cache` the units of one write share their fate, so there the crash leaves the writes in place as part of the medium
//! until a read decides them.
//!
//! | module | subject |
//! |---|---|
//! | `record` | what it is made of |
//! | `cells` | one unit, with the writes on it |
//! | `requests` | writes, discards, lengths and flushes, from submission to end |
//! | `read` | what a read returns, and decides |
//! | `length` | the lengths that a file may have |
//! | `crash` | what a power cut leaves |
//! | `damage` | what is done to an image that no writer can survive |
//! | `sound` | what all of these keep to, asked on both sides of a power cut |
//! | `view` `changes` `hash` | what a judge may see without deciding anything, what has changed, and whether two disks are equal |

mod cells;
mod changes;
mod crash;
mod damage;
mod hash;
mod length;
mod read;
mod record;
mod requests;
mod sound;
mod view;

use std::ops::Range;

use storage::{Limits, UNIT};

use crate::defect::Defect;
use crate::profile::DiscardMode;
use crate::values::{Key, Values};
use changes::ChangeLog;
pub use changes::Mark;
pub use record::File;
use record::{Entry, Length, NONE, PAGE, Slot, Write};

/// No unit reaches this number: 32 GiB.
pub const MAX_UNITS: u32 = 1 << 26;

/// What a storage over a possible disk offers: units of 512 bytes, discard, and zeroes where nothing was written.
pub const DEFAULT_LIMITS: Limits = Limits {
    alignment: UNIT,
    max_transfer: 1 << 30,
    can_discard: true,
    unwritten_reads_zero: true,
};

/// A write, zeroing, discard or length change that was submitted and has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteId(u32);

/// A flush that was submitted and has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushId(u64, File);

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
    /// First unit of the second file; [`NONE`] where there is none.
    second_at: u32,
    /// By file.
    length: [Length; 2],
    /// When the flushes of each file were submitted that are in flight, ascending.
    barriers: [Vec<u64>; 2],
    /// What completed before this is not cut off under `prefix`: the end of the last write-through write or, with two
    /// files, of the last write that a flush covered.
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
            second_at: NONE,
            length: [Length::new(len), Length::none()],
            barriers: [Vec::new(), Vec::new()],
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
        disk.fill(0, units, extents);
        disk
    }

    /// The same disk with a second file of `len` units that are all zero, durably. The first file is below `first_unit`
    /// from now on, unit n of the second one is unit `first_unit + n` of the disk. Every page of units below the end is
    /// listed, so a `first_unit` far behind what the first file may need makes each fork dearer.
    ///
    /// # Panics
    /// If there is a second file already, if the first one may reach beyond `first_unit`, or if the second ends beyond
    /// [`MAX_UNITS`].
    #[must_use]
    pub fn with_second(mut self, first_unit: u32, len: u32) -> Self {
        assert!(self.second().is_none(), "a disk has two files at most");
        let first_ends = self.possible_lengths()[0].max(self.visible_lengths()[0]);
        assert!(first_ends <= first_unit, "the first file has {first_ends} units");
        assert!(
            self.nonzero_cells(first_unit..MAX_UNITS).next().is_none(),
            "something lies beyond unit {first_unit}"
        );
        let end = first_unit.checked_add(len).filter(|&end| end <= MAX_UNITS);
        let end = end.filter(|_| first_unit < MAX_UNITS).expect("both files are below MAX_UNITS");
        self.reserve(end);
        self.second_at = first_unit;
        self.length[File::Second as usize] = Length::new(len);
        self
    }

    /// The same disk with a second file, as [`with_second`](Self::with_second) has it, of `len` bytes that hold
    /// `extents` as those of [`from_extents`](Self::from_extents) do.
    ///
    /// # Panics
    /// As both do.
    #[must_use]
    pub fn with_second_extents<'a>(
        self,
        first_unit: u32,
        len: u64,
        extents: impl IntoIterator<Item = (u64, &'a [u8])>,
    ) -> Self {
        let units =
            u32::try_from(len.div_ceil(UNIT as u64)).expect("the length is below MAX_UNITS");
        let mut disk = self.with_second(first_unit, units);
        disk.fill(first_unit, units, extents);
        disk
    }

    /// Puts extents into a file of `units` units from unit `start` on.
    fn fill<'a>(
        &mut self,
        start: u32,
        units: u32,
        extents: impl IntoIterator<Item = (u64, &'a [u8])>,
    ) {
        let mut keys = Vec::new();
        for (offset, bytes) in extents {
            assert!(offset.is_multiple_of(UNIT as u64), "an extent begins within a unit: {offset}");
            keys.clear();
            self.values.intern_all(bytes, &mut keys);
            let first = offset / UNIT as u64;
            assert!(first + keys.len() as u64 <= u64::from(units), "an extent at {offset} is cut");
            for (unit, key) in (start + first as u32..).zip(&keys) {
                self.set_cell(unit, key.0);
            }
        }
    }

    /// The first unit of the second file, if there is one.
    pub const fn second(&self) -> Option<u32> {
        if self.second_at == NONE { None } else { Some(self.second_at) }
    }

    /// The files that there are.
    pub(crate) const fn files(&self) -> &'static [File] {
        if self.second_at == NONE { &[File::First] } else { &[File::First, File::Second] }
    }

    /// The file to which a unit belongs.
    #[inline]
    pub(crate) const fn file_of(&self, unit: u32) -> File {
        if unit < self.second_at { File::First } else { File::Second }
    }

    /// The units that a file may have.
    #[inline]
    pub(crate) fn room(&self, file: File) -> Range<u32> {
        match file {
            File::First => 0..self.second_at.min(MAX_UNITS),
            File::Second => self.second_at.min(MAX_UNITS)..MAX_UNITS,
        }
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

    /// No unit from here on was ever anything but zero.
    #[inline]
    pub const fn extent(&self) -> u32 {
        (self.directory.len() * PAGE) as u32
    }

    #[inline]
    const fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
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
            second_at,
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
        self.second_at = *second_at;
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
