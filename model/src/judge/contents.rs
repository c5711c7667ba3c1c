//! What every guest unit holds or may hold, and what opens the image, taken down to be compared with what is there later.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use crate::evidence::{Evidence, ValueKey};
use crate::guest::Openings;
use crate::payload::Unit;

/// What every guest unit holds or may hold, and what opens the image, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub(super) size: u64,
    pub(super) guest: Sets,
    /// The units of a raw data file as far as the disk goes; none of any other image.
    pub(super) raw: Sets,
    pub(super) passphrases: Openings,
}

/// What each of some units holds or may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sets {
    /// One value of each unit.
    pub(super) one: Vec<ValueKey>,
    /// (unit, another value that it may hold), ascending by unit.
    pub(super) others: Vec<(u64, ValueKey)>,
}

impl Contents {
    /// Virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Which further passphrases open the image, where that is decided.
    pub fn passphrases(&self) -> &Openings {
        &self.passphrases
    }

    /// Units with their values, each value once; what is nobody's is a violation already, and shown as zeroes.
    pub fn values(&self, unit: u64) -> impl Iterator<Item = ValueKey> {
        self.guest.values(unit).map(|key| if is_nobodys(key) { ValueKey::ZERO } else { key })
    }

    /// The same of the raw data file; nothing of an image that has none.
    pub fn raw_values(&self, unit: u64) -> impl Iterator<Item = ValueKey> {
        self.raw.values(unit)
    }
}

/// Set in a key of no store: what was deciphered and is nobody's, by its hash, so that it can be told from anything else.
const NOBODYS: u32 = 1 << 31;

/// Whether no store has this key.
pub(super) fn is_nobodys(key: ValueKey) -> bool {
    key.0 & NOBODYS != 0
}

impl Sets {
    pub(super) fn clear(&mut self) {
        self.one.clear();
        self.others.clear();
    }

    pub(super) fn values(&self, unit: u64) -> impl Iterator<Item = ValueKey> {
        let one = usize::try_from(unit).ok().and_then(|unit| self.one.get(unit)).copied();
        let from = self.others.partition_point(|(of, _)| *of < unit);
        let rest = self.others[from..].iter().take_while(move |(of, _)| *of == unit);
        one.into_iter().chain(rest.map(|(_, value)| *value))
    }

    pub(super) fn add(&mut self, unit: u64, value: ValueKey) {
        if self.one.len() as u64 == unit {
            self.one.push(value);
        } else if self.values(unit).all(|known| known != value) {
            self.others.push((unit, value));
        }
    }

    /// Adds a value that no key names.
    pub(super) fn add_nobodys(&mut self, unit: u64, bytes: &Unit) {
        self.add(unit, ValueKey(NOBODYS | (xxh3_64(bytes) >> 33) as u32));
    }

    /// Adds the units of a range, each as what the unit of the evidence holds that is as far from `at`.
    pub(super) fn add_all<E: Evidence>(&mut self, units: Range<u64>, mut at: u64, evidence: &E) {
        let mut unit = units.start;
        while unit < units.end {
            let known = self.one.len();
            if known as u64 == unit {
                self.one.extend(evidence.decided(at, units.end - unit));
            }
            let run = (self.one.len() - known) as u64;
            if run == 0 {
                evidence.peek(at, |key| self.add(unit, key));
            }
            (unit, at) = (unit + run.max(1), at + run.max(1));
        }
    }
}
