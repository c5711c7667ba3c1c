//! What host units say to the guest: as they are, or deciphered.
//!
//! ```text
//!   host unit h of an encrypted image     {a, b}          each value of the set, under one number
//!                                          |  |
//!   guest unit g                          {x, y}          x is in the store of values: its key; y is not: nobody ever wrote it
//! ```
//!
//! The invariant: a set maps to the set of what its values decipher to, whole. Zeroes are no exception: where nothing was written there is no
//! zero to read. What is nobody's is shown as such, and never passed over. Of an image that is not encrypted each value is what it is,
//! at no cost.
//!
//! What was deciphered is remembered, so that judging the next state deciphers little: a slot is believed only if both its contents are still
//! those that its keys name, because another store, or a fork of this one, has the same keys for others.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};

use super::contents::Sets;
use crate::crypt::Cipher;
use crate::evidence::{Evidence, ValueKey};
use crate::guest::Guest;
use crate::image::Header;
use crate::mistake::Mistake;
use crate::op::Encryption;
use crate::payload::{self, UNIT, Unit, Value};

/// What a host unit may say to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// What this key names.
    Known(ValueKey),
    /// What no key names.
    Nobodys(Box<Unit>),
}

impl Held {
    /// What it is.
    pub(super) fn value<E: Evidence>(&self, evidence: &E) -> Value {
        payload::decode(match self {
            Self::Known(key) => evidence.bytes(*key),
            Self::Nobodys(bytes) => bytes,
        })
    }
}

/// Guest data of one image.
pub(super) struct Plain<'a, E> {
    evidence: &'a E,
    deciphering: Option<Deciphering<'a>>,
}

struct Deciphering<'a> {
    encryption: Encryption,
    by_host: bool,
    /// The first unit of the file that holds the data.
    first: u64,
    memo: &'a RefCell<Memo>,
    mistake: Mistake,
}

impl<'a, E: Evidence> Plain<'a, E> {
    /// That of an image with this header.
    pub(super) fn new(
        header: &Header,
        evidence: &'a E,
        memo: &'a RefCell<Memo>,
        mistake: Mistake,
    ) -> Self {
        let first = header.data_at.unwrap_or(0) / UNIT as u64;
        let deciphering = header.encryption().map(|encryption| {
            let by_host = mistake.numbers_by_host(encryption);
            let first = mistake.first_unit_of_data(first);
            memo.borrow_mut().fit(header.size.div_ceil(UNIT as u64));
            Deciphering { encryption, by_host, first, memo, mistake }
        });
        Self { evidence, deciphering }
    }

    /// Shows everything that a guest unit may read in a host unit.
    #[inline]
    pub(super) fn peek(&self, unit: u64, at: u64, mut show: impl FnMut(Held)) {
        let Some(deciphering) = &self.deciphering else {
            return self.evidence.peek(at, |key| show(Held::Known(key)));
        };
        let mut shown = 0;
        self.evidence.peek(at, |key| {
            if deciphering.mistake.deciphers(shown) {
                show(deciphering.decipher(self.evidence, key, unit, at));
            }
            shown += 1;
        });
    }

    /// How many guest units from `unit` on, `most` at most, read what is settled in them in host units from `at` on, up to the first that
    /// does not. There may be more than these.
    #[inline]
    pub(super) fn settled_run(&self, guest: &Guest, unit: u64, at: u64, most: u64) -> u64 {
        let decided = self.evidence.decided(at, most);
        let Some(deciphering) = &self.deciphering else { return guest.settled_run(unit, decided) };
        let keys = (0..).zip(decided).map_while(|(index, key)| {
            match deciphering.decipher(self.evidence, key, unit + index, at + index) {
                Held::Known(key) => Some(key),
                Held::Nobodys(_) => None,
            }
        });
        guest.settled_run(unit, keys)
    }

    /// Adds guest units of a range, each as what the host unit holds that is as far from `at`.
    pub(super) fn add_to(&self, sets: &mut Sets, units: Range<u64>, at: u64) {
        match &self.deciphering {
            Some(deciphering) if deciphering.mistake != Mistake::CiphertextCompared => {
                for (unit, at) in units.zip(at..) {
                    self.peek(unit, at, |held| match held {
                        Held::Known(key) => sets.add(unit, key),
                        Held::Nobodys(bytes) => sets.add_nobodys(unit, &bytes),
                    });
                }
            }
            _ => sets.add_all(units, at, self.evidence),
        }
    }
}

impl Deciphering<'_> {
    fn decipher<E: Evidence>(&self, evidence: &E, key: ValueKey, unit: u64, at: u64) -> Held {
        if key == ValueKey::ZERO && self.mistake == Mistake::ZeroesNotDeciphered {
            return Held::Known(key);
        }
        let number = if self.by_host { at - self.first } else { unit };
        let stored = evidence.bytes(key);
        let mut memo = self.memo.borrow_mut();
        let slot = memo.slot(key, number);
        if let Some(known) = slot
            && (known.encryption, known.number) == (self.encryption, number)
            && self.mistake.remembers(known.stored_key == key).unwrap_or_else(|| {
                known.stored == *stored && evidence.names(known.plain_key, &known.plain)
            })
        {
            return Held::Known(known.plain_key);
        }
        let mut plain = *stored;
        Cipher::of(self.encryption).decipher(number, &mut plain);
        let Some(plain_key) = evidence.key_of(&plain) else {
            return Held::Nobodys(Box::new(plain));
        };
        let (encryption, stored_key, stored) = (self.encryption, key, *stored);
        let new = Slot { encryption, number, stored_key, stored, plain_key, plain };
        match slot {
            Some(old) => **old = new,
            None => *slot = Some(Box::new(new)),
        }
        Held::Known(plain_key)
    }
}

/// What was deciphered last, in bounds: of what would share a slot the later stays. There are as many slots as that is rare, up to some.
#[derive(Clone, Debug, Default)]
pub(super) struct Memo(Vec<Option<Box<Slot>>>);

#[derive(Clone, Debug)]
struct Slot {
    encryption: Encryption,
    number: u64,
    stored_key: ValueKey,
    stored: Unit,
    plain_key: ValueKey,
    plain: Unit,
}

/// Fewer slots are not worth it; more than the most take more than 35 MiB when all are in use.
const SLOTS: RangeInclusive<u64> = 1 << 13..=1 << 15;

impl Memo {
    /// Makes room for the units of a guest disk.
    fn fit(&mut self, units: u64) {
        let slots = units.saturating_mul(2).clamp(*SLOTS.start(), *SLOTS.end()).next_power_of_two();
        let slots = usize::try_from(slots).expect("in bounds");
        if self.0.len() < slots {
            self.0 = vec![None; slots];
        }
    }

    fn slot(&mut self, key: ValueKey, number: u64) -> &mut Option<Box<Slot>> {
        // Multiplicative hashing: the upper bits depend on all of both.
        let mixed = (u64::from(key.0) << 32 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bits = self.0.len().ilog2();
        &mut self.0[(mixed >> (u64::BITS - bits)) as usize]
    }
}
