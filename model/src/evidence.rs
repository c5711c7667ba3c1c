//! How the judge sees a disk: as sets of values, one set a unit.
//!
//! After a crash a unit may hold any of several values until somebody reads it. The auditor *resolves* what it reads, as
//! recovery does: the choice is made once and stays. Guest data is only *peeked* at: the whole set is shown and nothing is
//! decided. A disk that holds one value everywhere, such as a file, is the simple case ([`BytesEvidence`]).
//!
//! A disk may be two files, an image and a file of guest data beside it: one space of unit numbers has both, the second from
//! [`Readable::data_file`] on.
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

/// A disk that is read: what it is asked is decided. Units past the end of a file hold zeroes.
pub trait Readable {
    /// The first unit of the data file, if there is one: its unit n is unit `first + n`, and all units of the image come before it. A
    /// multiple of the units in the largest cluster, 4096.
    fn data_file(&self) -> Option<u64> {
        None
    }

    /// The length of the data file in bytes; decides it if it was open.
    fn data_len(&mut self) -> u64 {
        0
    }

    /// The length of the file, of two that of the image, in bytes; decides it if it was open.
    fn len(&mut self) -> u64;

    /// Whether the file has no byte at all.
    fn is_empty(&mut self) -> bool {
        self.len() == 0
    }

    /// What `unit` holds; decides it if it was open.
    fn resolve(&mut self, unit: u64) -> ValueKey;

    /// How many units from `unit` on, `most` at most, are known to hold zeroes and nothing else: so that long empty
    /// tables cost little. Saying 0 is always right.
    fn zero_run(&self, _unit: u64, _most: u64) -> u64 {
        0
    }

    /// The bytes that `key` names.
    fn bytes(&self, key: ValueKey) -> &Unit;
}

/// A disk under judgement.
pub trait Evidence: Readable {
    /// Shows everything that `unit` may hold, at least one value, and decides nothing.
    fn peek(&self, unit: u64, visit: impl FnMut(ValueKey));

    /// What units from `unit` on hold, `most` at most, up to the first that may hold more than one value: so that what has long been
    /// decided costs little. None at all is always right.
    fn decided(&self, _unit: u64, _most: u64) -> impl Iterator<Item = ValueKey> {
        std::iter::empty()
    }

    /// The key that names these bytes, where one does. (Of a file, those that it has are known, and those that somebody else named.)
    fn key_of(&self, bytes: &Unit) -> Option<ValueKey>;

    /// Whether this key names these bytes. It may be of another store, and name nothing in this one.
    fn names(&self, key: ValueKey, bytes: &Unit) -> bool {
        self.key_of(bytes) == Some(key)
    }
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

/// The first unit of a data file in [`BytesEvidence`]: an image beside one ends within 64 MiB.
pub const DATA_FIRST: u64 = 1 << 17;

/// A disk with one value everywhere: a file, a crash image, what the builder made; or two of them, an image and its data file.
#[derive(Clone, Debug)]
pub struct BytesEvidence {
    /// The contents that the keys name.
    pub values: Values,
    image: Part,
    data: Option<Part>,
}

/// One file of a disk.
#[derive(Clone, Debug)]
struct Part {
    units: Vec<ValueKey>,
    length: u64,
}

impl Part {
    fn empty(length: u64) -> Self {
        Self { units: vec![ValueKey::ZERO; units_in(length)], length }
    }
}

fn units_in(length: u64) -> usize {
    usize::try_from(length.div_ceil(UNIT as u64)).expect("a disk fits in memory")
}

impl BytesEvidence {
    /// A disk of exactly these bytes; a last unit that is cut short continues in zeroes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut disk = Self::empty(Values::default(), bytes.len() as u64);
        disk.fill(0, bytes);
        disk
    }

    /// An image of exactly these bytes, and its data file.
    pub fn with_data(image: &[u8], data: &[u8]) -> Self {
        let mut disk = Self::new(image);
        disk.add_data(data.len() as u64);
        disk.fill(DATA_FIRST, data);
        disk
    }

    /// A disk of `length` zero bytes over a store that may know contents already.
    pub fn empty(values: Values, length: u64) -> Self {
        Self { values, image: Part::empty(length), data: None }
    }

    /// Puts a data file of `length` zero bytes beside the image.
    pub fn add_data(&mut self, length: u64) {
        self.data = Some(Part::empty(length));
        self.assert_apart();
    }

    /// Overwrites one unit within the length of its file.
    pub fn set(&mut self, unit: u64, bytes: &Unit) {
        let key = self.values.intern(bytes);
        let (part, first) = match &mut self.data {
            Some(data) if unit >= DATA_FIRST => (data, DATA_FIRST),
            _ => (&mut self.image, 0),
        };
        part.units[usize::try_from(unit - first).expect("a disk fits in memory")] = key;
    }

    /// Changes bytes anywhere within the length of their file.
    pub fn patch(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            let unit = at / UNIT as u64;
            let mut content = *self.values.bytes(self.get(unit));
            content[(at % UNIT as u64) as usize] = *byte;
            self.set(unit, &content);
        }
    }

    /// Cuts or extends the file, of two the image; new space holds zeroes.
    pub fn set_len(&mut self, length: u64) {
        let old = std::mem::replace(&mut self.image.length, length);
        self.resize(0, old, length);
        self.assert_apart();
    }

    /// The same with the data file, which must be there.
    pub fn set_data_len(&mut self, length: u64) {
        let data = self.data.as_mut().expect("there is a data file");
        let old = std::mem::replace(&mut data.length, length);
        self.resize(DATA_FIRST, old, length);
    }

    /// The whole file, of two the image.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes_of(&self.image)
    }

    /// The whole data file, if there is one.
    pub fn data_bytes(&self) -> Option<Vec<u8>> {
        self.data.as_ref().map(|data| self.bytes_of(data))
    }

    fn bytes_of(&self, part: &Part) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            part.units.iter().flat_map(|key| *self.values.bytes(*key)).collect();
        bytes.truncate(usize::try_from(part.length).expect("a disk fits in memory"));
        bytes
    }

    /// What the units from `first` on hold.
    fn fill(&mut self, first: u64, bytes: &[u8]) {
        for (unit, chunk) in (first..).zip(bytes.chunks(UNIT)) {
            let mut content = ZEROES;
            content[..chunk.len()].copy_from_slice(chunk);
            self.set(unit, &content);
        }
    }

    /// Gives the file that begins at unit `first` the units of its new length.
    fn resize(&mut self, first: u64, old: u64, length: u64) {
        let count = units_in(length);
        let part =
            if first == 0 { &mut self.image } else { self.data.as_mut().expect("asked for") };
        part.units.resize(count, ValueKey::ZERO);
        let within = (length % UNIT as u64) as usize;
        if length < old && within > 0 {
            // What the unit held behind the end is gone as well.
            let mut unit = *self.values.bytes(part.units[count - 1]);
            unit[within..].fill(0);
            self.set(first + length / UNIT as u64, &unit);
        }
    }

    fn assert_apart(&self) {
        let apart = self.data.is_none() || self.image.units.len() as u64 <= DATA_FIRST;
        assert!(apart, "the image runs into its data file");
    }

    fn get(&self, unit: u64) -> ValueKey {
        let (part, first) = match &self.data {
            Some(data) if unit >= DATA_FIRST => (data, DATA_FIRST),
            _ => (&self.image, 0),
        };
        let held = usize::try_from(unit - first).ok().and_then(|unit| part.units.get(unit));
        held.copied().unwrap_or(ValueKey::ZERO)
    }
}

impl Readable for BytesEvidence {
    fn data_file(&self) -> Option<u64> {
        self.data.as_ref().map(|_| DATA_FIRST)
    }

    fn data_len(&mut self) -> u64 {
        self.data.as_ref().map_or(0, |data| data.length)
    }

    fn len(&mut self) -> u64 {
        self.image.length
    }

    fn resolve(&mut self, unit: u64) -> ValueKey {
        self.get(unit)
    }

    fn bytes(&self, key: ValueKey) -> &Unit {
        self.values.bytes(key)
    }
}

impl Evidence for BytesEvidence {
    fn peek(&self, unit: u64, mut visit: impl FnMut(ValueKey)) {
        visit(self.get(unit));
    }

    fn key_of(&self, bytes: &Unit) -> Option<ValueKey> {
        self.values.find(bytes)
    }

    fn names(&self, key: ValueKey, bytes: &Unit) -> bool {
        self.values.contents.get(key.0 as usize) == Some(bytes)
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
    fn a_key_names_its_bytes_in_its_store_only() {
        let mut disk = BytesEvidence::new(&[1; UNIT]);
        let one = disk.resolve(0);
        let two = disk.values.clone().intern(&[2; UNIT]);
        assert!(disk.names(one, &[1; UNIT]) && disk.names(ValueKey::ZERO, &ZEROES));
        assert!(!disk.names(one, &[2; UNIT]) && !disk.names(two, &[2; UNIT]));
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
        disk.set_len(UNIT as u64 - 12);
        disk.set_len(2 * UNIT as u64);
        assert_eq!(disk.to_bytes(), [vec![7; UNIT - 12], vec![0; UNIT + 12]].concat());
    }

    #[test]
    fn an_image_and_its_data_file_are_apart() {
        let (image, data) = ([1; 700], [2; 1000]);
        let mut disk = BytesEvidence::with_data(&image, &data);
        assert_eq!((disk.to_bytes(), disk.data_bytes()), (image.to_vec(), Some(data.to_vec())));
        assert_eq!((disk.len(), disk.data_file(), disk.data_len()), (700, Some(DATA_FIRST), 1000));
        assert_eq!([2, DATA_FIRST - 1, DATA_FIRST + 2].map(|at| disk.resolve(at).0), [0; 3]);
        disk.patch((DATA_FIRST + 1) * UNIT as u64 - 1, &[3, 4]);
        disk.set_data_len(513);
        disk.set_len(513);
        disk.set_data_len(515);
        let bytes = [&[2; 511][..], &[3, 4, 0, 0]].concat();
        assert_eq!((disk.to_bytes(), disk.data_bytes()), (vec![1; 513], Some(bytes)));
        assert_eq!(BytesEvidence::new(&image).data_file(), None);
    }

    #[test]
    #[should_panic(expected = "the image runs into its data file")]
    fn an_image_ends_before_its_data_file() {
        let mut disk = BytesEvidence::with_data(&[], &[]);
        disk.set_len(DATA_FIRST * UNIT as u64);
        disk.set_len(DATA_FIRST * UNIT as u64 + 1);
    }
}
