//! All units of a disk, in chunks that copies share until one of them changes its own.
//!
//! Invariant: a chunk knows which of its units are open and which are not settled zeroes, and `settled_hash` is the sum over all units
//! that are settled. Both are kept up by [`Units::change`], so that a copy, a hash and a look at what is open cost by what has changed
//! and not by the length of the disk.

use std::ops::Range;
use std::sync::Arc;

use super::cell::Cell;
use crate::evidence::ValueKey;

/// Units in a chunk: the bits of a mask.
const CHUNK: usize = 64;

#[derive(Clone, Debug)]
struct Chunk {
    /// Past the end of the disk settled zeroes.
    cells: [Cell<ValueKey>; CHUNK],
    /// Units that are not settled.
    open: u64,
    /// Units that are not settled zeroes.
    used: u64,
}

/// The units of a disk.
#[derive(Clone, Debug)]
pub(super) struct Units {
    chunks: Vec<Arc<Chunk>>,
    len: usize,
    settled_hash: u64,
}

const ZEROES: Cell<ValueKey> = Cell::One(ValueKey::ZERO);

impl Units {
    /// A disk that holds `initial`, settled.
    pub(super) fn new(initial: &[ValueKey]) -> Self {
        let mut units = Self { chunks: Vec::new(), len: 0, settled_hash: 0 };
        units.resize(initial.len());
        for (unit, &key) in initial.iter().enumerate().filter(|(_, key)| **key != ValueKey::ZERO) {
            units.change(unit, |cell| *cell = Cell::One(key));
        }
        units
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Cuts the disk, or extends it with settled zeroes.
    pub(super) fn resize(&mut self, len: usize) {
        let cut: Vec<usize> =
            if len < self.len { self.used(&(len..self.len)).collect() } else { Vec::new() };
        for unit in cut {
            self.change(unit, |cell| *cell = ZEROES);
        }
        let chunks = len.div_ceil(CHUNK);
        if chunks > self.chunks.len() {
            let zeroes = Arc::new(Chunk { cells: [const { ZEROES }; CHUNK], open: 0, used: 0 });
            self.chunks.resize(chunks, zeroes);
        }
        self.chunks.truncate(chunks);
        self.len = len;
    }

    #[inline]
    pub(super) fn get(&self, unit: usize) -> Option<&Cell<ValueKey>> {
        (unit < self.len).then(|| &self.chunks[unit / CHUNK].cells[unit % CHUNK])
    }

    /// Units from `unit` on, none if it is past the end: those of one chunk.
    #[inline]
    pub(super) fn run(&self, unit: usize) -> &[Cell<ValueKey>] {
        let end = (self.len - self.len.min(unit - unit % CHUNK)).min(CHUNK);
        let cells = self.chunks.get(unit / CHUNK).map(|chunk| &chunk.cells[..end]);
        cells.and_then(|cells| cells.get(unit % CHUNK..)).unwrap_or_default()
    }

    /// Does `step` to a unit of the disk.
    pub(super) fn change<R>(
        &mut self,
        unit: usize,
        step: impl FnOnce(&mut Cell<ValueKey>) -> R,
    ) -> R {
        let chunk = Arc::make_mut(&mut self.chunks[unit / CHUNK]);
        let bit = 1 << (unit % CHUNK);
        let cell = &mut chunk.cells[unit % CHUNK];
        let before = settled_hash(unit, cell);
        let done = step(cell);
        let after = settled_hash(unit, cell);
        self.settled_hash = self.settled_hash.wrapping_sub(before).wrapping_add(after);
        let (open, zeroes) = match cell {
            Cell::One(key) => (false, *key == ValueKey::ZERO),
            Cell::Many(_) => (true, false),
        };
        chunk.open = if open { chunk.open | bit } else { chunk.open & !bit };
        chunk.used = if zeroes { chunk.used & !bit } else { chunk.used | bit };
        done
    }

    /// Does `step` to every unit that is not settled.
    pub(super) fn change_open(&mut self, step: impl Fn(&mut Cell<ValueKey>)) {
        for unit in self.open().collect::<Vec<_>>() {
            self.change(unit, &step);
        }
    }

    /// The units that are not settled, ascending.
    pub(super) fn open(&self) -> impl Iterator<Item = usize> {
        each_bit(0, self.chunks.iter().map(|chunk| chunk.open))
    }

    /// The units of a range that are anything but settled zeroes, ascending. The range ends within the disk.
    pub(super) fn used(&self, range: &Range<usize>) -> impl Iterator<Item = usize> {
        let (start, end) = (range.start, range.end);
        let chunks = start / CHUNK..end.div_ceil(CHUNK).max(start / CHUNK);
        let within = move |chunk: usize| {
            let from = start.saturating_sub(chunk * CHUNK);
            let cut = CHUNK.saturating_sub(end - (chunk * CHUNK).min(end));
            u64::MAX << from & u64::MAX.checked_shr(cut as u32).unwrap_or(0)
        };
        let used = (chunks.clone()).zip(&self.chunks[chunks.clone()]);
        each_bit(chunks.start, used.map(move |(at, chunk)| chunk.used & within(at)))
    }

    /// A hash of what is settled, and nothing of a unit that is open: the sum of [`set_hash`] over all units that hold something else
    /// than zeroes.
    pub(super) fn settled_hash(&self) -> u64 {
        self.settled_hash
    }
}

/// The numbers of the bits in `masks`, the first of which is that of chunk number `first`.
fn each_bit(first: usize, masks: impl Iterator<Item = u64>) -> impl Iterator<Item = usize> {
    let some = (first..).zip(masks).filter(|(_, mask)| *mask != 0);
    some.flat_map(|(chunk, mask)| {
        std::iter::successors(Some(mask), |rest| Some(rest & rest.wrapping_sub(1)))
            .take_while(|rest| *rest != 0)
            .map(move |rest| chunk * CHUNK + rest.trailing_zeros() as usize)
    })
}

/// The share of a unit in the hash of what is settled.
#[inline]
fn settled_hash(unit: usize, cell: &Cell<ValueKey>) -> u64 {
    match cell {
        Cell::One(key) if *key != ValueKey::ZERO => set_hash(unit as u64, [key.0.into()]),
        Cell::One(_) | Cell::Many(_) => 0,
    }
}

/// A hash of a place and of what may be there, in no order.
#[inline]
pub(super) fn set_hash(place: u64, members: impl IntoIterator<Item = u64>) -> u64 {
    mix(members.into_iter().map(mix).fold(place, u64::wrapping_add))
}

/// Finaliser of SplitMix64: every bit of the input moves half the bits of the output.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of so many units, of which these hold these keys, settled.
    fn disk(len: usize, keys: &[(usize, u32)]) -> Units {
        let mut initial = vec![ValueKey::ZERO; len];
        for (unit, key) in keys {
            initial[*unit] = ValueKey(*key);
        }
        Units::new(&initial)
    }

    fn open(cell: &mut Cell<ValueKey>) {
        *cell = Cell::of(&[ValueKey(1), ValueKey(2)]);
    }

    #[test]
    fn the_hash_mixes_as_splitmix64_does() {
        let first = 0x9e37_79b9_7f4a_7c15u64;
        let outputs = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        assert_eq!([0, first, first.wrapping_mul(2)].map(mix), outputs);
    }

    /// Goal: what is kept up step by step is what a disk made at once has. Method: units on both sides of the ends of chunks are
    /// settled, opened, settled again and cut off.
    #[test]
    fn what_is_kept_of_the_units_follows_every_change() {
        let mut units = disk(2 * CHUNK + 1, &[(3, 7), (2 * CHUNK, 9)]);
        let changed = [0, 3, CHUNK - 1, CHUNK, 2 * CHUNK];
        let copy = units.clone();
        for unit in changed {
            units.change(unit, open);
        }
        assert_eq!(units.open().collect::<Vec<_>>(), changed);
        assert_eq!(units.used(&(0..units.len())).collect::<Vec<_>>(), changed);
        assert_eq!(units.used(&(1..CHUNK)).collect::<Vec<_>>(), [3, CHUNK - 1]);
        assert_eq!(units.used(&(CHUNK..2 * CHUNK)).collect::<Vec<_>>(), [CHUNK]);
        assert_eq!(units.used(&(CHUNK + 1..2 * CHUNK)).count(), 0);
        assert_eq!(units.settled_hash(), disk(0, &[]).settled_hash());
        for unit in changed {
            units.change(unit, |cell| *cell = Cell::One(ValueKey(5)));
        }
        assert_eq!(units.open().count(), 0);
        assert_eq!(
            units.settled_hash(),
            disk(2 * CHUNK + 1, &changed.map(|at| (at, 5))).settled_hash()
        );
        units.resize(CHUNK);
        assert_eq!(
            units.settled_hash(),
            disk(CHUNK, &[(0, 5), (3, 5), (CHUNK - 1, 5)]).settled_hash()
        );
        units.resize(3);
        assert_eq!(units.settled_hash(), disk(3, &[(0, 5)]).settled_hash());
        units.resize(2 * CHUNK);
        assert_eq!(
            units.used(&(0..2 * CHUNK)).collect::<Vec<_>>(),
            [0],
            "what was cut off is gone"
        );
        assert!(units.get(2 * CHUNK).is_none());
        assert_eq!(copy.used(&(0..copy.len())).collect::<Vec<_>>(), [3, 2 * CHUNK], "a copy");
        assert_eq!(copy.open().count(), 0);
    }
}
