//! Every distinct 512-byte value is stored once and named by a small key.
//!
//! Invariant: equal bytes have equal keys and different bytes different ones (xxh3 finds the candidate, a full
//! comparison decides), so that a disk of sets of values is a disk of sets of integers. The store only grows: a key is
//! good for as long as the store lives, and a reference to its bytes needs no lock.
//!
//! ```text
//!   key      0 .. 255      256 .. 767      768 .. 1791     ...
//!         +-----------+----------------+----------------+
//!         |  chunk 0  |    chunk 1     |    chunk 2     |   chunk n holds 256 << n values, allocated on first use
//!         +-----------+----------------+----------------+
//!           0 = zeroes
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use storage::UNIT;
use xxhash_rust::xxh3::xxh3_64;

/// The bytes of one unit.
pub type Bytes = [u8; UNIT];

/// Names one value in a [`Values`] store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u32);

impl Key {
    /// 512 zero bytes, in every store.
    pub const ZERO: Self = Self(0);
}

const FIRST_CHUNK: usize = 256;
const CHUNKS: usize = 22;
/// Keys stay below this bound; the disk uses the top bit of a cell for itself.
const MAX_KEYS: usize = 1 << 29;

/// An append-only store of values; clones share it.
#[derive(Clone)]
pub struct Values(Arc<Store>);

struct Store {
    chunks: [OnceLock<Box<[OnceLock<Bytes>]>>; CHUNKS],
    index: Mutex<Index>,
}

/// Open addressing over (upper half of the hash, key + 1); an empty place is 0.
struct Index {
    places: Vec<u64>,
    hashes: Vec<u64>,
}

impl Default for Values {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Values({})", self.count())
    }
}

impl Values {
    /// A store that holds [`Key::ZERO`] only.
    pub fn new() -> Self {
        let index = Index { places: vec![0; 256], hashes: Vec::new() };
        let store = Store { chunks: [const { OnceLock::new() }; CHUNKS], index: Mutex::new(index) };
        let zero = store.intern(&mut store.lock(), &[0; UNIT]);
        debug_assert_eq!(zero, Key::ZERO);
        Self(Arc::new(store))
    }

    /// The key of `bytes`.
    pub fn intern(&self, bytes: &Bytes) -> Key {
        self.0.intern(&mut self.0.lock(), bytes)
    }

    /// Appends the key of each unit of `data` to `keys`; what is left over at the end is filled up with zeroes.
    pub fn intern_all(&self, data: &[u8], keys: &mut Vec<Key>) {
        let mut index = self.0.lock();
        let (units, rest) = data.as_chunks::<UNIT>();
        keys.extend(units.iter().map(|bytes| self.0.intern(&mut index, bytes)));
        if !rest.is_empty() {
            let mut bytes = [0; UNIT];
            bytes[..rest.len()].copy_from_slice(rest);
            keys.push(self.0.intern(&mut index, &bytes));
        }
    }

    /// The bytes that `key` names.
    ///
    /// # Panics
    /// If `key` is from another store.
    pub fn bytes(&self, key: Key) -> &Bytes {
        self.0.bytes(key)
    }

    /// Calls `read` with a function that gives a hash of the bytes that a key names, the same in every store: for many
    /// hashes at the price of one lock.
    pub fn with_hashes<R>(&self, read: impl FnOnce(&dyn Fn(Key) -> u64) -> R) -> R {
        let index = self.0.lock();
        read(&|key| index.hashes[key.0 as usize])
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.0.lock().hashes.len()
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self, key: Key) -> &Bytes {
        let (chunk, at) = locate(key.0 as usize);
        self.chunks[chunk]
            .get()
            .and_then(|values| values[at].get())
            .expect("a key is made only when its bytes are stored")
    }

    fn intern(&self, index: &mut Index, bytes: &Bytes) -> Key {
        // Most units hold zeroes, and a comparison costs less than a hash.
        if *bytes == [0; UNIT] && !index.hashes.is_empty() {
            return Key::ZERO;
        }
        let hash = xxh3_64(bytes);
        let mask = index.places.len() - 1;
        let mut place = hash as usize & mask;
        while index.places[place] != 0 {
            let entry = index.places[place];
            let key = Key(entry as u32 - 1);
            if entry >> 32 == hash >> 32 && self.bytes(key) == bytes {
                return key;
            }
            place = (place + 1) & mask;
        }
        let key = index.hashes.len();
        assert!(key < MAX_KEYS, "too many distinct values for one store");
        let (chunk, at) = locate(key);
        let values = self.chunks[chunk]
            .get_or_init(|| (0..FIRST_CHUNK << chunk).map(|_| OnceLock::new()).collect());
        values[at].set(*bytes).expect("a key is given out once, under the lock");
        index.places[place] = entry(hash, key);
        index.hashes.push(hash);
        if index.hashes.len() * 2 > index.places.len() {
            index.grow();
        }
        Key(key as u32)
    }
}

impl Index {
    fn grow(&mut self) {
        let mask = self.places.len() * 2 - 1;
        let mut places = vec![0; mask + 1];
        for (key, &hash) in self.hashes.iter().enumerate() {
            let mut place = hash as usize & mask;
            while places[place] != 0 {
                place = (place + 1) & mask;
            }
            places[place] = entry(hash, key);
        }
        self.places = places;
    }
}

/// What an occupied place holds.
const fn entry(hash: u64, key: usize) -> u64 {
    (hash >> 32 << 32) + key as u64 + 1
}

fn locate(key: usize) -> (usize, usize) {
    let shifted = key + FIRST_CHUNK;
    let chunk = (shifted.ilog2() - FIRST_CHUNK.ilog2()) as usize;
    (chunk, shifted - (FIRST_CHUNK << chunk))
}

#[cfg(test)]
mod tests {
    use super::{CHUNKS, FIRST_CHUNK, Key, MAX_KEYS, UNIT, Values, locate, xxh3_64};

    fn numbered(n: u32) -> [u8; UNIT] {
        let mut bytes = [0xa5; UNIT];
        bytes[100..104].copy_from_slice(&n.to_be_bytes());
        bytes
    }

    #[test]
    fn equal_bytes_have_equal_keys_across_growth() {
        let values = Values::new();
        assert_eq!(values.intern(&[0; UNIT]), Key::ZERO);
        let keys: Vec<Key> = (0..5000).map(|n| values.intern(&numbered(n))).collect();
        assert_eq!(values.count(), 5001);
        for (n, &key) in keys.iter().enumerate() {
            assert_eq!(values.intern(&numbered(n as u32)), key);
            assert_eq!(values.bytes(key), &numbered(n as u32));
        }
        assert_eq!(values.count(), 5001);
        assert_eq!(format!("{values:?}"), "Values(5001)");
    }

    #[test]
    fn values_whose_hashes_collide_stay_apart() {
        // Of these two hashes the upper halves agree, and so do the places where the search begins.
        let (one, two) = (numbered(1_054_027), numbered(1_306_392));
        let (first, second) = (xxh3_64(&one), xxh3_64(&two));
        assert_eq!((first >> 32, first as u8), (second >> 32, second as u8));
        let values = Values::new();
        let keys = [values.intern(&one), values.intern(&two)];
        assert_ne!(keys[0], keys[1]);
        assert_eq!([values.intern(&one), values.intern(&two)], keys);
        assert_eq!(keys.map(|key| *values.bytes(key)), [one, two]);
    }

    #[test]
    fn whole_buffers_are_cut_into_units_and_filled_up_with_zeroes() {
        let values = Values::new();
        let mut data = numbered(1).to_vec();
        data.extend_from_slice(&[0; UNIT]);
        data.extend_from_slice(&[7; 3]);
        let mut keys = Vec::new();
        values.intern_all(&data, &mut keys);
        assert_eq!(keys.len(), 3);
        assert_eq!(keys[1], Key::ZERO);
        assert_eq!(&values.bytes(keys[2])[..4], &[7, 7, 7, 0]);
    }

    #[test]
    fn content_hash_does_not_depend_on_the_store() {
        let (one, two) = (Values::new(), Values::new());
        two.intern(&numbered(9));
        let (a, b) = (one.intern(&numbered(1)), two.intern(&numbered(1)));
        assert_ne!(a, b);
        let hash = xxh3_64(&numbered(1));
        assert_eq!(one.with_hashes(|hash_of| hash_of(a)), hash);
        assert_eq!(two.with_hashes(|hash_of| hash_of(b)), hash);
    }

    #[test]
    fn chunks_meet_without_a_gap() {
        assert_eq!(locate(0), (0, 0));
        assert_eq!(locate(FIRST_CHUNK - 1), (0, FIRST_CHUNK - 1));
        assert_eq!(locate(FIRST_CHUNK), (1, 0));
        assert_eq!(locate(3 * FIRST_CHUNK), (2, 0));
        assert!(locate(MAX_KEYS - 1).0 < CHUNKS);
    }
}
