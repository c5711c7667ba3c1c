//! How the judge sees a disk: as sets of values, one set a unit.
//!
//! After a crash a unit may hold any of several values until somebody reads it. The auditor *resolves* what it reads, as
//! recovery does: the choice is made once and stays. Guest data is only *peeked* at: the whole set is shown and nothing is
//! decided. A disk that holds one value everywhere, such as a file, is the simple case ([`BytesEvidence`]).
//!
//! Values are named by [`ValueKey`]s. The invariant that everything here rests on: within one store, equal keys are equal
//! bytes, and [`ValueKey::ZERO`] is the unit of zeroes and nothing else is.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::payload::{UNIT, Unit, ZEROES};

/// The name of one 512-byte content within one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueKey(pub u32);

impl ValueKey {
    /// The unit of zeroes.
    pub const ZERO: Self = Self(0);
}

/// A disk under judgement. Units past the end hold zeroes.
pub trait Evidence {
    /// The file length in bytes; decides it if it was open.
    fn len(&mut self) -> u64;

    /// Whether the file has no byte at all.
    fn is_empty(&mut self) -> bool {
        self.len() == 0
    }

    /// What `unit` holds; decides it if it was open.
    fn resolve(&mut self, unit: u64) -> ValueKey;

    /// Shows everything that `unit` may hold, at least one value, and decides nothing.
    fn peek(&self, unit: u64, visit: impl FnMut(ValueKey));

    /// How many units from `unit` on, `most` at most, are known to hold zeroes and nothing else: so that long empty
    /// tables cost little. Saying 0 is always right.
    fn zero_run(&self, _unit: u64, _most: u64) -> u64 {
        0
    }

    /// What units from `unit` on hold, `most` at most, up to the first that may hold more than one value: so that what has long been
    /// decided costs little. None at all is always right.
    fn decided(&self, _unit: u64, _most: u64) -> impl Iterator<Item = ValueKey> {
        std::iter::empty()
    }

    /// The bytes that `key` names.
    fn bytes(&self, key: ValueKey) -> &Unit;

    /// The key that names these bytes, where one does. (Of a file, those that it has are known, and those that somebody else named.)
    fn key_of(&self, bytes: &Unit) -> Option<ValueKey>;

    /// A mark in time for [`Evidence::changed_since`].
    fn generation(&self) -> u64;

    /// Shows every unit whose set of values has changed since `generation`, each at least once.
    fn changed_since(&self, generation: u64, visit: impl FnMut(u64));
}

/// Interned contents: equal bytes get equal keys.
#[derive(Clone, Debug)]
pub struct Values {
    contents: Vec<Unit>,
    by_hash: BTreeMap<u64, Vec<ValueKey>>,
}

impl Default for Values {
    fn default() -> Self {
        let by_hash = BTreeMap::from([(xxh3_64(&ZEROES), vec![ValueKey::ZERO])]);
        Self { contents: vec![ZEROES], by_hash }
    }
}

impl Values {
    /// The key of `bytes`, which is new if they are.
    pub fn intern(&mut self, bytes: &Unit) -> ValueKey {
        let same_hash = self.by_hash.entry(xxh3_64(bytes)).or_default();
        let known = same_hash.iter().copied().find(|key| self.contents[key.0 as usize] == *bytes);
        known.unwrap_or_else(|| {
            let next = u32::try_from(self.contents.len()).expect("2 TiB of distinct units");
            self.contents.push(*bytes);
            same_hash.push(ValueKey(next));
            ValueKey(next)
        })
    }

    /// The key of `bytes`, if they are known.
    pub fn find(&self, bytes: &Unit) -> Option<ValueKey> {
        let same_hash = self.by_hash.get(&xxh3_64(bytes))?;
        same_hash.iter().copied().find(|key| self.contents[key.0 as usize] == *bytes)
    }

    /// The bytes of `key`, which must be of this store.
    pub fn bytes(&self, key: ValueKey) -> &Unit {
        &self.contents[key.0 as usize]
    }
}

/// A disk with one value everywhere: a file, a crash image, what the builder made.
#[derive(Clone, Debug)]
pub struct BytesEvidence {
    /// The contents that the keys name.
    pub values: Values,
    units: Vec<ValueKey>,
    length: u64,
    changes: Vec<u64>,
}

impl BytesEvidence {
    /// A disk of exactly these bytes; a last unit that is cut short continues in zeroes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut disk = Self::empty(Values::default(), bytes.len() as u64);
        for (index, chunk) in bytes.chunks(UNIT).enumerate() {
            let mut unit = ZEROES;
            unit[..chunk.len()].copy_from_slice(chunk);
            disk.set(index as u64, &unit);
        }
        disk.changes.clear();
        disk
    }

    /// A disk of `length` zero bytes over a store that may know contents already.
    pub fn empty(values: Values, length: u64) -> Self {
        let count = usize::try_from(length.div_ceil(UNIT as u64)).expect("a disk fits in memory");
        Self { values, units: vec![ValueKey::ZERO; count], length, changes: Vec::new() }
    }

    /// Overwrites one unit within the length.
    pub fn set(&mut self, unit: u64, bytes: &Unit) {
        let key = self.values.intern(bytes);
        self.units[usize::try_from(unit).expect("a disk fits in memory")] = key;
        self.changes.push(unit);
    }

    /// Changes bytes anywhere within the length.
    pub fn patch(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            let unit = at / UNIT as u64;
            let mut content = *self.values.bytes(self.get(unit));
            content[(at % UNIT as u64) as usize] = *byte;
            self.set(unit, &content);
        }
    }

    /// Cuts or extends the file; new space holds zeroes.
    pub fn set_len(&mut self, length: u64) {
        let count = usize::try_from(length.div_ceil(UNIT as u64)).expect("a disk fits in memory");
        let (old, new) = (self.units.len() as u64, count as u64);
        self.changes.extend(old.min(new)..old.max(new));
        self.units.resize(count, ValueKey::ZERO);
        let within = (length % UNIT as u64) as usize;
        if length < self.length && within > 0 {
            // What the unit held behind the end is gone as well.
            let mut unit = *self.values.bytes(self.units[count - 1]);
            unit[within..].fill(0);
            self.set(length / UNIT as u64, &unit);
        }
        self.length = length;
    }

    /// The whole file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            self.units.iter().flat_map(|key| *self.values.bytes(*key)).collect();
        bytes.truncate(usize::try_from(self.length).expect("a disk fits in memory"));
        bytes
    }

    fn get(&self, unit: u64) -> ValueKey {
        let held = usize::try_from(unit).ok().and_then(|unit| self.units.get(unit));
        held.copied().unwrap_or(ValueKey::ZERO)
    }
}

impl Evidence for BytesEvidence {
    fn len(&mut self) -> u64 {
        self.length
    }

    fn resolve(&mut self, unit: u64) -> ValueKey {
        self.get(unit)
    }

    fn peek(&self, unit: u64, mut visit: impl FnMut(ValueKey)) {
        visit(self.get(unit));
    }

    fn bytes(&self, key: ValueKey) -> &Unit {
        self.values.bytes(key)
    }

    fn key_of(&self, bytes: &Unit) -> Option<ValueKey> {
        self.values.find(bytes)
    }

    fn generation(&self) -> u64 {
        self.changes.len() as u64
    }

    fn changed_since(&self, generation: u64, mut visit: impl FnMut(u64)) {
        let since = usize::try_from(generation).unwrap_or(usize::MAX);
        self.changes.iter().skip(since).for_each(|unit| visit(*unit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_have_equal_keys_and_zero_is_zero() {
        let mut values = Values::default();
        let one = values.intern(&[1; UNIT]);
        assert_eq!(values.intern(&ZEROES), ValueKey::ZERO);
        assert_eq!(values.intern(&[1; UNIT]), one);
        assert_ne!(values.intern(&[2; UNIT]), one);
        assert_eq!(values.bytes(one), &[1; UNIT]);
    }

    #[test]
    fn a_file_reads_back_and_ends_in_zeroes() {
        let bytes: Vec<u8> = (0..700u32).map(|i| i as u8).collect();
        let mut disk = BytesEvidence::new(&bytes);
        assert_eq!((disk.len(), disk.to_bytes()), (700, bytes));
        assert!(!disk.is_empty() && BytesEvidence::new(&[]).is_empty());
        assert_eq!(disk.resolve(2), ValueKey::ZERO);
        assert_eq!(disk.resolve(u64::MAX), ValueKey::ZERO);
    }

    #[test]
    fn what_a_cut_takes_is_gone() {
        let mut disk = BytesEvidence::new(&[7; 2 * UNIT]);
        let mark = disk.generation();
        disk.set_len(UNIT as u64 - 12);
        disk.set_len(2 * UNIT as u64);
        assert_eq!(disk.to_bytes(), [vec![7; UNIT - 12], vec![0; UNIT + 12]].concat());
        let mut seen = Vec::new();
        disk.changed_since(mark, |unit| seen.push(unit));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1]);
    }

    #[test]
    fn changes_are_listed_from_a_mark_on() {
        let mut disk = BytesEvidence::new(&[0; 4 * UNIT]);
        disk.patch(0, &[1]);
        disk.patch(UNIT as u64, &[1]);
        let mark = disk.generation();
        disk.patch(UNIT as u64 * 3, &[1]);
        disk.set_len(5 * UNIT as u64);
        let mut seen = Vec::new();
        disk.changed_since(mark, |unit| seen.push(unit));
        assert_eq!(seen, [3, 4]);
    }
}
