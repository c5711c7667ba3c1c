//! What a judge may see of a possible disk without deciding anything, and how it notices what has changed.
//!
//! Invariant: nothing here takes a chooser, so nothing here collapses anything.

use std::ops::Range;

use super::changes::Mark;
use super::hash::{cell_hash, length_hash, mix, set_hash};
use super::length::Fate;
use super::record::{Change, NEVER, NONE, PAGE, SLOT, State, Write, push_unique};
use super::{File, MAX_UNITS, PossibleDisk};
use crate::chooser::Chooser;
use crate::defect::Defect;
use crate::values::Key;

use storage::UNIT;

impl PossibleDisk {
    /// Appends every value that `unit` may hold, each once, newest first: what is on the medium and what is pending.
    /// Where a crash left the length open, the unit may also be cut off, and zero is among them.
    ///
    /// The set is exact for each unit by itself, with one exception: under profile `cache` a length that is still open
    /// hangs on whole writes, and beyond the shortest one the set may be too wide until the length is decided.
    pub fn peek(&self, unit: u32, keys: &mut Vec<Key>) {
        let from = keys.len();
        match self.slot_at(unit) {
            None => keys.push(Key(self.cell(unit))),
            Some(slot) => self.allowed(slot, keys),
        }
        if unit >= self.firm(unit) && !keys[from..].contains(&Key::ZERO) {
            keys.push(Key::ZERO);
        }
    }

    /// Appends every value that a read of `unit` may return now.
    pub fn visible(&self, unit: u32, keys: &mut Vec<Key>) {
        let from = keys.len();
        match self.slot_at(unit) {
            None => keys.push(Key(self.cell(unit))),
            Some(slot) => {
                if self.visible_pending(slot, keys) {
                    self.medium(slot, keys);
                }
            }
        }
        if unit >= self.firm(unit) && !keys[from..].contains(&Key::ZERO) {
            keys.push(Key::ZERO);
        }
    }

    /// The value of `unit` if it is decided, nothing is pending, and no open length may cut it off: the fast path of
    /// [`peek`](Self::peek).
    pub fn single(&self, unit: u32) -> Option<Key> {
        let cell = self.cell(unit);
        (cell & SLOT == 0 && (unit < self.firm(unit) || cell == 0)).then_some(Key(cell))
    }

    /// The values of units from `unit` on, `most` at most, as long as [`single`](Self::single) gives one. There may be more than
    /// these: a run ends at the end of a page or of the room of a file at the latest.
    #[inline]
    pub fn single_run(&self, unit: u32, most: u32) -> impl Iterator<Item = Key> {
        let file = self.file_of(unit);
        let end = self.room(file).end.min(self.length[file as usize].firm);
        let most = most.min(end.saturating_sub(unit)) as usize;
        let page = self.directory.get(unit as usize / PAGE).copied().unwrap_or(0);
        let cells = &self.pages[page as usize][unit as usize % PAGE..];
        let cells = &cells[..most.min(cells.len())];
        let run = cells.iter().position(|cell| cell & SLOT != 0).unwrap_or(cells.len());
        cells[..run].iter().map(|&cell| Key(cell))
    }

    /// How many units of a file from `unit` on, `most` at most, hold zeroes whatever a crash left open.
    pub fn zero_run(&self, unit: u32, most: u32) -> u32 {
        let end = self.extent().min(self.room(self.file_of(unit)).end);
        let end = unit.saturating_add(most).min(end);
        let mut at = unit;
        while at < end {
            let page = self.directory[at as usize / PAGE];
            let next = (at / PAGE as u32 + 1).saturating_mul(PAGE as u32);
            if page != 0 {
                let cells = &self.pages[page as usize][at as usize % PAGE..];
                let zeroes = cells.iter().take_while(|&&cell| cell == 0).count() as u32;
                if at + zeroes < next {
                    return (at + zeroes).min(end) - unit;
                }
            }
            at = next;
        }
        at.min(end).saturating_sub(unit)
    }

    /// Units that are more than one decided value, in ascending order.
    pub fn undecided(&self) -> Vec<u32> {
        let slots = self.slots.iter().map(|slot| slot.unit).filter(|&unit| unit != NONE);
        let mut units: Vec<u32> = slots.collect();
        for &file in self.files() {
            let Range { start, end } = self.room(file);
            units.extend(self.nonzero_cells(self.length[file as usize].firm.max(start)..end));
        }
        units.sort_unstable();
        units.dedup();
        let mut keys = Vec::new();
        units.retain(|&unit| {
            keys.clear();
            self.peek(unit, &mut keys);
            keys.len() > 1
        });
        units
    }

    /// Units that may hold something else than zero, in ascending order.
    pub fn nonzero(&self) -> impl Iterator<Item = u32> {
        self.nonzero_cells(0..MAX_UNITS)
    }

    pub(super) fn nonzero_cells(&self, units: Range<u32>) -> impl Iterator<Item = u32> {
        let Range { start, end } = units;
        let pages = (end as usize).div_ceil(PAGE).min(self.directory.len());
        let pages = self.directory[..pages].iter().enumerate().skip(start as usize / PAGE);
        pages.filter(|&(_, &page)| page != 0).flat_map(move |(at, &page)| {
            let first = (at * PAGE) as u32;
            (first..).zip(&self.pages[page as usize]).filter_map(move |(unit, &cell)| {
                (unit >= start && unit < end && cell != Key::ZERO.0).then_some(unit)
            })
        })
    }

    /// Every length of the first file that a crash now may leave under profile `torn-length`, longest first.
    pub fn possible_lengths(&self) -> Vec<u32> {
        self.possible_lengths_of(File::First)
    }

    /// Every length of a file that a crash now may leave under profile `torn-length`, longest first; none if there is no
    /// such file.
    pub fn possible_lengths_of(&self, file: File) -> Vec<u32> {
        self.lengths(file, |pending, write| match write.state {
            _ if pending.certain => Fate::Must,
            State::Settled | State::Landed => Fate::Must,
            State::Lost => Fate::Not,
            State::Done | State::InFlight | State::Failed | State::Late | State::Undecided => {
                Fate::May
            }
        })
    }

    /// Every length of the first file that a caller may see now, longest first.
    pub fn visible_lengths(&self) -> Vec<u32> {
        self.visible_lengths_of(File::First)
    }

    /// Every length of a file that a caller may see now, longest first; none if there is no such file.
    pub fn visible_lengths_of(&self, file: File) -> Vec<u32> {
        self.lengths(file, |pending, write| match write.state {
            State::Lost if !pending.certain => Fate::Not,
            state => {
                Fate::must_if(pending.certain || state.is_completed() || state == State::Landed)
            }
        })
    }

    /// Whether a crash left a length open, of either file, and nothing has decided it.
    pub const fn length_is_open(&self) -> bool {
        let [first, second] = &self.length;
        first.firm != NONE || second.firm != NONE
    }

    /// Now.
    pub const fn mark(&self) -> Mark {
        Mark(self.log.mark())
    }

    /// Ranges (first unit, count) whose sets may have changed since `mark`; none if that is too long ago, or was
    /// before a crash: then everything may have.
    pub fn changed_since(&self, mark: Mark) -> Option<&[(u32, u32)]> {
        let from = usize::try_from(mark.0.checked_sub(self.log.start)?).ok()?;
        self.log.ranges.get(from..)
    }

    /// Decides everything of the first file and gives its bytes.
    pub fn image<C: Chooser + ?Sized>(&mut self, chooser: &mut C) -> Vec<u8> {
        self.image_of(File::First, chooser)
    }

    /// Decides everything of a file and gives its bytes.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn image_of<C: Chooser + ?Sized>(&mut self, file: File, chooser: &mut C) -> Vec<u8> {
        let len = self.len_of(file, chooser);
        let mut bytes = vec![0; len as usize * UNIT];
        for (unit, target) in self.room(file).zip(bytes.as_chunks_mut::<UNIT>().0) {
            let key = self.read(unit, chooser);
            if key != Key::ZERO {
                *target = *self.values.bytes(key);
            }
        }
        bytes
    }

    /// A hash of what a crash may leave: equal for two disks (of one value store) whose units have the same allowed
    /// sets and of which the files have the same possible lengths, whatever led there. Under profile `torn-length` such disks have
    /// the same crash states.
    pub fn allowed_hash(&self) -> u64 {
        let mut hash = self.plain_hash;
        let mut keys = Vec::new();
        for (at, slot) in self.slots.iter().enumerate() {
            if slot.unit != NONE {
                keys.clear();
                self.allowed(at, &mut keys);
                hash = hash.wrapping_add(set_hash(slot.unit, &keys));
            }
        }
        hash.wrapping_add(self.lengths_hash())
    }

    /// A hash of what a crash may leave, as [`allowed_hash`](Self::allowed_hash) is, that depends on the bytes and not on
    /// the store: the same on every machine, for every order in which values were met.
    pub fn content_hash(&self) -> u64 {
        let mut hash = 0u64;
        let mut keys = Vec::new();
        self.values.with_hashes(|hash_of| {
            let of = |key: Key| if key == Key::ZERO { 0 } else { hash_of(key) };
            for unit in self.nonzero() {
                if let Some(key) = self.single(unit) {
                    hash = hash.wrapping_add(mix(u64::from(unit).wrapping_add(mix(of(key)))));
                    continue;
                }
                keys.clear();
                self.peek(unit, &mut keys);
                if keys[..] != [Key::ZERO] {
                    let members = keys.iter().map(|&key| mix(of(key)));
                    let all = members.fold(u64::from(unit), u64::wrapping_add);
                    hash = hash.wrapping_add(mix(all));
                }
            }
        });
        hash.wrapping_add(self.lengths_hash())
    }

    /// A hash of what these units hold and of the lengths: equal for forks of one value store that hold the same there, whatever
    /// they hold elsewhere. None if one of these units or a length is not decided, or if any write is pending.
    pub fn decided_hash(&self, units: impl IntoIterator<Item = u32>) -> Option<u64> {
        let mut lengths = 0u64;
        for &file in self.files() {
            let &[len] = &self.length[file as usize].base[..] else { return None };
            lengths = lengths.wrapping_add(self.length_hash(file, len));
        }
        let pending = self.writes.iter().any(|write| write.refs > 0);
        let flushing = self.barriers.iter().any(|barriers| !barriers.is_empty());
        if pending || flushing || self.stuck || self.length_is_open() {
            return None;
        }
        units.into_iter().try_fold(lengths, |hash, unit| {
            Some(hash.wrapping_add(cell_hash(unit, self.single(unit)?.0)))
        })
    }

    /// A hash of everything that can bear on what this disk does next: sets, pending writes with their order in time
    /// (not its dates), lengths, flushes in flight. For forks of one value store.
    pub fn state_hash(&self) -> u64 {
        let mut times: Vec<u64> = self.barriers.concat();
        times.push(self.through_at);
        for write in self.writes.iter().filter(|write| write.refs > 0) {
            times.extend([write.submitted, write.ended]);
        }
        times.sort_unstable();
        times.dedup();
        let rank = |time: u64| match time {
            NEVER => NEVER,
            _ => times.partition_point(|&other| other < time) as u64,
        };
        let write_hash = |write: &Write| {
            let flags =
                write.state as u64 * 4 + u64::from(write.discard) * 2 + u64::from(write.through);
            mix(mix(rank(write.submitted) ^ mix(flags)) ^ mix(rank(write.ended).wrapping_add(7)))
        };
        let mut hash = self.plain_hash;
        for slot in self.slots.iter().filter(|slot| slot.unit != NONE) {
            let mut one = mix((2 << 62) + u64::from(slot.unit));
            for key in self.base_keys(slot.base) {
                one = one.wrapping_add(mix(u64::from(key.0) + 1));
            }
            let mut at = slot.head;
            while at != NONE {
                let entry = self.entries[at as usize];
                let write = write_hash(&self.writes[entry.write as usize]);
                one = mix(one ^ write.wrapping_add(u64::from(entry.key.0)));
                at = entry.next;
            }
            hash = hash.wrapping_add(mix(one));
        }
        for &file in self.files() {
            if !file.is_first() {
                // So that what follows is not taken for more of the first.
                hash = mix(hash.wrapping_add(3 << 62));
            }
            let length = &self.length[file as usize];
            for &len in &length.base {
                hash = hash.wrapping_add(self.length_hash(file, len));
            }
            for pending in &length.changes {
                let change = match pending.change {
                    Change::Set(len) => u64::from(len) << 2,
                    Change::Extend(end) => (u64::from(end) << 2) + 1,
                };
                let write = write_hash(&self.writes[pending.write as usize]);
                hash = mix(hash ^ write.wrapping_add((change << 1) + u64::from(pending.certain)));
            }
            for &barrier in &self.barriers[file as usize] {
                hash = mix(hash ^ rank(barrier));
            }
        }
        mix(hash ^ rank(self.through_at) << 1 ^ u64::from(self.stuck))
    }

    /// The share of all possible lengths in a hash of the disk.
    fn lengths_hash(&self) -> u64 {
        let mut hash = 0u64;
        for &file in self.files() {
            for len in self.possible_lengths_of(file) {
                hash = hash.wrapping_add(self.length_hash(file, len));
            }
        }
        hash
    }

    /// The share of one length of a file in a hash of the disk.
    fn length_hash(&self, file: File, len: u32) -> u64 {
        length_hash(self.second().filter(|_| !file.is_first()), len)
    }

    /// Appends what a crash may leave of a unit.
    pub(super) fn allowed(&self, slot: usize, keys: &mut Vec<Key>) {
        let floor = self.floor(slot, |state| state == State::Settled);
        for (entry, write) in self.entries_of(slot) {
            let superseded = write.ended_before(floor.unwrap_or(0));
            let below = floor.is_none() && write.is_medium();
            if !superseded && !below {
                push_unique(keys, entry.key);
            }
        }
        if floor.is_none() || self.has(Defect::FlushKeepsSuperseded) {
            self.medium(slot, keys);
        }
    }

    /// Appends what may be on the medium of a unit.
    fn medium(&self, slot: usize, keys: &mut Vec<Key>) {
        let mut floor = 0;
        for (entry, write) in self.entries_of(slot) {
            if write.is_medium() && !write.ended_before(floor) && write.state != State::Lost {
                push_unique(keys, entry.key);
                if write.state == State::Landed && !write.discard {
                    floor = floor.max(write.submitted);
                }
            }
        }
        if floor == 0 {
            for key in self.base_keys(self.slots[slot].base) {
                push_unique(keys, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use storage::{Durability, UNIT};

    use super::super::Landing;
    use super::{MAX_UNITS, PAGE, PossibleDisk};
    use crate::chooser::Always;
    use crate::profile::{FlushFailure, Profile, Robustness};
    use crate::values::{Key, Values};

    fn keys(values: &Values) -> Vec<Key> {
        (1..=8).map(|byte| values.intern(&[byte; UNIT])).collect()
    }

    /// A disk that shows everything that there is: bases of one and of several values, pending writes of every kind, a length
    /// in doubt, a flush in flight.
    fn full_disk() -> PossibleDisk {
        let values = Values::new();
        let keys = keys(&values);
        let old = [0xee; 4 * UNIT];
        let mut disk = PossibleDisk::from_extents(&values, old.len() as u64, [(0, &old[..])]);
        let chooser = &mut Always(0);
        let torn = disk.submit_write(0, &keys[..2], Durability::Cached, chooser);
        disk.complete(torn);
        disk.crash_in_place(Profile::Torn, chooser);
        let durable = disk.submit_write(3, &keys[2..3], Durability::Through, chooser);
        let over = disk.submit_write(1, &keys[3..5], Durability::Cached, chooser);
        disk.complete(durable);
        disk.complete(over);
        let failed = disk.submit_write(1, &keys[5..6], Durability::Cached, chooser);
        disk.fail(failed, Landing::Any);
        let _ = disk.submit_flush();
        let append = disk.submit_write(PAGE as u32 + 8, &keys[6..8], Durability::Cached, chooser);
        disk.complete(append);
        disk.submit_write(4, &keys[..1], Durability::Through, chooser);
        let discard = disk.submit_discard(2, 1, chooser);
        disk.complete(discard);
        disk.submit_set_len(3, chooser);
        disk
    }

    /// Certificates and digests of runs are made of these: whoever changes a hash changes what they say.
    #[test]
    fn the_hashes_of_a_disk_are_known() {
        let live = full_disk();
        let whole = live.crash(Profile::Cache, &mut Always(0));
        let torn = live.crash(Profile::TornLength, &mut Always(0));
        let hashes = [live, whole, torn]
            .map(|disk| [disk.allowed_hash(), disk.content_hash(), disk.state_hash()]);
        assert_eq!(
            hashes,
            [
                [3_515_445_266_937_071_988, 9_233_301_146_428_965_911, 7_939_574_465_229_759_100],
                [2_962_048_139_474_946_856, 8_679_904_018_966_840_779, 7_711_443_673_037_235_184],
                [3_515_445_266_937_071_988, 9_233_301_146_428_965_911, 15_379_214_458_405_210_743],
            ]
        );
    }

    #[test]
    fn a_flush_that_failed_for_good_is_part_of_the_state() {
        let live = full_disk();
        let mut disk = PossibleDisk::new(live.values(), 1);
        for key in keys(live.values()) {
            let write = disk.submit_write(0, &[key], Durability::Through, &mut Always(0));
            disk.complete(write);
            let mut stuck = disk.clone();
            let flush = stuck.submit_flush();
            stuck.fail_flush(flush, FlushFailure::Sticky);
            assert_ne!(stuck.state_hash(), disk.state_hash());
        }
    }

    #[test]
    fn the_hash_of_some_units_is_of_what_is_decided_there_and_of_the_length() {
        let values = Values::new();
        let keys = keys(&values);
        let old = [0xee; 4 * UNIT];
        let disk = PossibleDisk::from_extents(&values, old.len() as u64, [(0, &old[..])]);
        let chooser = &mut Always(0);
        let mut other = disk.clone();
        let write = other.submit_write(2, &keys[..1], Durability::Through, chooser);
        other.complete(write);
        assert_eq!(disk.decided_hash([0, 1]), other.decided_hash([0, 1]));
        assert_ne!(disk.decided_hash([0, 2]), other.decided_hash([0, 2]));
        assert!(disk.decided_hash([0]).is_some());
        let mut longer = disk.clone();
        let grown = longer.submit_set_len(5, chooser);
        longer.complete(grown);
        assert_eq!(longer.decided_hash([0]), None, "it is not durable");
        let open = longer.crash(Profile::TornLength, chooser);
        assert_eq!(open.decided_hash([0]), None, "nobody has looked");
        let flush = longer.submit_flush();
        assert_eq!(longer.decided_hash([0]), None, "it is in flight");
        assert!(longer.complete_flush(flush));
        assert_ne!(longer.decided_hash([0]), disk.decided_hash([0]));
        let mut torn = disk.clone();
        let write = torn.submit_write(2, &keys[..1], Durability::Cached, chooser);
        torn.complete(write);
        assert_eq!(torn.decided_hash([0]), None, "a write is pending");
        torn.crash_in_place(Profile::TornLength, chooser);
        assert_eq!(torn.decided_hash([0]), disk.decided_hash([0]));
        assert_eq!(torn.decided_hash([2]), None);
    }

    /// A state is known by what is in it, not by what was.
    #[test]
    fn what_is_over_has_no_share_in_the_hash() {
        let values = Values::new();
        let keys = keys(&values);
        let state = |together: bool| {
            let mut disk = PossibleDisk::new(&values, 2);
            let chooser = &mut Always(0);
            let writes = if together {
                vec![disk.submit_write(0, &keys[..2], Durability::Cached, chooser)]
            } else {
                vec![
                    disk.submit_write(0, &keys[..1], Durability::Cached, chooser),
                    disk.submit_write(1, &keys[1..2], Durability::Cached, chooser),
                ]
            };
            for write in writes {
                disk.complete(write);
            }
            let flush = disk.submit_flush();
            assert!(disk.complete_flush(flush));
            disk.submit_write(0, &keys[2..3], Durability::Cached, chooser);
            disk.state_hash()
        };
        assert_eq!(state(true), state(false));
    }

    #[test]
    fn runs_of_zeroes_go_on_across_pages() {
        let values = Values::new();
        let page = PAGE as u32;
        let unit = [7; UNIT];
        // One unit that is not zero on the first page, none on the second, the last one of the third, none behind it.
        let extents = [3, 3 * PAGE - 1].map(|at| ((at * UNIT) as u64, &unit[..]));
        let disk = PossibleDisk::from_extents(&values, (3 * PAGE * UNIT) as u64, extents);
        for (unit, most, run) in [
            (0, 100, 3),
            (0, 2, 2),
            (3, 100, 0),
            (4, 1000, 3 * page - 1 - 4),
            (4, page, page),
            (page, page, page),
            (page, 2 * page, 2 * page - 1),
            (3 * page - 1, 10, 0),
            (3 * page, 10, 0),
        ] {
            assert_eq!(disk.zero_run(unit, most), run, "{most} from {unit}");
        }
        assert_eq!(disk.nonzero().collect::<Vec<_>>(), [3, 3 * page - 1]);
        assert_eq!(disk.nonzero_cells(4..MAX_UNITS).collect::<Vec<_>>(), [3 * page - 1]);
        let empty = PossibleDisk::new(&values, 2 * page);
        assert_eq!((empty.zero_run(0, 9 * page), empty.zero_run(page + 1, 9)), (2 * page, 9));
    }

    /// Goal: a run holds what units have that are single, and nothing of any other. Method: runs from every unit, on a disk with units of
    /// every kind and on what a power cut leaves of it, with an open length.
    #[test]
    fn a_run_is_of_single_units() {
        let live = full_disk();
        let torn = live.crash(Profile::TornLength, &mut Always(0));
        assert!(torn.length_is_open());
        let mut decided = torn.clone();
        decided.len(&mut Always(0));
        let mut longest = 0;
        for disk in [&live, &torn, &decided] {
            for unit in 0..disk.extent() + 2 {
                for most in [0, 1, 2, 9 * PAGE as u32] {
                    let run: Vec<Key> = disk.single_run(unit, most).collect();
                    let single: Vec<Key> =
                        (unit..unit + most).map_while(|unit| disk.single(unit)).collect();
                    assert!(single.starts_with(&run), "{most} from {unit}: {run:?} in {single:?}");
                    let ends = unit >= disk.length[0].firm || single.is_empty() || most == 0;
                    assert!(ends || !run.is_empty(), "{most} from {unit}: no run in {single:?}");
                    longest = longest.max(run.len());
                }
            }
        }
        assert_eq!(longest, PAGE);
    }

    #[test]
    fn what_an_open_length_may_cut_off_is_not_single_unless_it_is_zero() {
        let values = Values::new();
        let keys = keys(&values);
        let mut disk = PossibleDisk::from_extents(&values, UNIT as u64, [(0, &[9; UNIT][..])]);
        let write = disk.submit_write(2, &keys[..1], Durability::Cached, &mut Always(0));
        disk.complete(write);
        let mut crashed = disk.crash(Profile::TornLength, &mut Always(0));
        assert!(crashed.single(0).is_some());
        // The first unit past the shortest length, decided by a misdirected write.
        let mut damaged = crashed.clone();
        let struck = damaged.damage(Robustness::Misdirected, &mut Always(1));
        assert_eq!((struck, damaged.single(1)), (vec![1], None));
        assert_eq!([0, 1, 2].map(|unit| crashed.single(unit).is_some()), [true, true, false]);
        assert!(crashed.length_is_open());
        assert_eq!(crashed.len(&mut Always(0)), 3);
        assert!(!crashed.length_is_open());
    }

    /// Goal: a length that a crash kept for certain stays, whatever becomes of the units of its write, and one that it did not
    /// goes with them. Method: lose a write of two units by looking at the first, beside another append that is open.
    #[test]
    fn a_lost_write_takes_its_length_along_unless_that_was_certain() {
        for (completes, lengths) in [(true, [3, 2]), (false, [3, 1])] {
            let values = Values::new();
            let keys = keys(&values);
            let mut disk = PossibleDisk::new(&values, 1);
            let append = disk.submit_write(0, &keys[..2], Durability::Cached, &mut Always(0));
            disk.submit_write(2, &keys[2..3], Durability::Cached, &mut Always(0));
            if completes {
                disk.complete(append);
            }
            let mut crashed = disk.crash(Profile::Cache, &mut Always(0));
            assert_eq!(crashed.read(0, &mut Always(1)), Key::ZERO, "lost");
            assert_eq!(crashed.possible_lengths(), lengths);
            assert_eq!(crashed.visible_lengths(), lengths);
        }
    }

    #[test]
    fn a_look_at_one_unit_of_a_whole_write_tells_what_the_others_hold() {
        for lost in [false, true] {
            let values = Values::new();
            let keys = keys(&values);
            let mut disk = PossibleDisk::new(&values, 2);
            for (first, keys) in [(1, &keys[..1]), (0, &keys[1..3])] {
                let write = disk.submit_write(first, keys, Durability::Cached, &mut Always(0));
                disk.complete(write);
            }
            let mut crashed = disk.crash(Profile::Cache, &mut Always(0));
            crashed.read(0, &mut Always(lost.into()));
            let left = if lost { vec![keys[0], Key::ZERO] } else { vec![keys[2]] };
            let (mut peeked, mut visible) = (Vec::new(), Vec::new());
            crashed.peek(1, &mut peeked);
            crashed.visible(1, &mut visible);
            assert_eq!((&peeked, &visible), (&left, &left));
            let mut again = Vec::new();
            crashed.crash(Profile::Torn, &mut Always(0)).peek(1, &mut again);
            assert_eq!(again, left);
        }
    }

    #[test]
    fn the_change_log_lists_what_may_have_changed_and_forgets_rather_than_grow() {
        let values = Values::new();
        let mut disk = PossibleDisk::new(&values, 1);
        let chooser = &mut Always(0);
        let mark = disk.mark();
        disk.submit_discard(PAGE as u32, 4, chooser);
        assert_eq!(disk.changed_since(mark), Some(&[][..]), "nothing lies past the extent");
        let key = keys(&values)[0];
        disk.submit_write(0, &[key], Durability::Cached, chooser);
        for fork in [&disk, &disk.clone()] {
            assert_eq!(fork.changed_since(mark), Some(&[(0, 1)][..]));
            assert_eq!(fork.changed_since(fork.mark()), Some(&[][..]));
            assert_eq!(fork.log.clone().mark(), fork.log.mark());
        }
        for _ in 0..10_000 {
            let write = disk.submit_write(0, &[key], Durability::Through, chooser);
            disk.complete(write);
            assert!(disk.log.ranges.len() < 1000);
        }
        assert_eq!(disk.changed_since(mark), None, "too long ago");

        let untouched = PossibleDisk::new(&values, 1);
        let crashed = untouched.crash(Profile::TornLength, chooser);
        assert_eq!(crashed.changed_since(untouched.mark()), None, "before a crash");
    }
}
