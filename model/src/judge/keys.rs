//! P10: what opens an encrypted image, as the slots of its LUKS header say over all that their units may hold.
//!
//! ```text
//!   fields     unit 0 {a, b}   x   unit 1 {c}            each combination of values is a header that somebody may find
//!                 |
//!                 v   slot 3: state, iterations, salt
//!   material   {m, n} {m} {m, n} ...                     opens surely: one value a unit, and these give the key
//!                                                        opens perhaps: the first of each give it, or the second, ... or the last, ...
//! ```
//!
//! A slot is written as a whole, so the whole generations among what its material may be are those of equal age; they are found by counting from
//! the oldest value of each unit, and from the newest. What is mixed of two generations opens to nobody.
//!
//! The invariant: in no header that may be found is a passphrase lost that was added, does one open that was removed, or is a slot in use that
//! opens to nobody. Of an image in whose slots nothing was ever put this costs two comparisons; what a slot's material opens to is remembered by
//! its bytes, because keys name others in another store.

use std::cell::RefCell;
use std::collections::BTreeMap;

use xxhash_rust::xxh3::Xxh3;

use super::violation::{Place, Violation, whole_image};
use crate::crypt::{
    ACTIVE, DISABLED, HEADER_UNITS, LUKS_BYTES, MAX_ITERATIONS, SLOTS, Slot, built_fields,
    material_units, passphrase,
};
use crate::evidence::{Evidence, ValueKey};
use crate::finding::Property;
use crate::guest::{Guest, Openings, Opens};
use crate::image::{Header, Image};
use crate::mistake::Mistake;
use crate::op::{Encryption, PASSPHRASES};
use crate::payload::UNIT;

/// Headers that are looked at, of those that may be found. An operation on a slot leaves two or three values in a unit, so there are few; of
/// more the rest is not judged.
pub(crate) const MAX_HEADERS: usize = 64;

/// A set of passphrases, by number; the one that the image was made with is number 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ids(u8);

impl Ids {
    fn has(self, id: u32) -> bool {
        self.0 >> id & 1 != 0
    }

    fn add(&mut self, others: Self) {
        self.0 |= others.0;
    }
}

impl FromIterator<u32> for Ids {
    fn from_iter<T: IntoIterator<Item = u32>>(ids: T) -> Self {
        Self(ids.into_iter().fold(0, |ids, id| ids | 1 << id))
    }
}

fn further() -> impl Iterator<Item = u32> {
    1..=PASSPHRASES
}

/// What the slots of one image do but the first, which stays as it was built.
#[derive(Default)]
struct Slots {
    /// What a header may be found in which it does not surely open.
    missed: Ids,
    by_number: [Facts; SLOTS],
}

#[derive(Clone, Copy, Default)]
struct Facts {
    /// What may open the slot while it is in use.
    opens: Ids,
    /// What its material may give the key for, whether or not it is in use.
    gives: Ids,
    /// How it may be found in use and open to nobody.
    dead: Option<Slot>,
}

/// What a slot's material gives the key for.
#[derive(Clone, Copy)]
struct Given {
    surely: Ids,
    perhaps: Ids,
}

/// Where the LUKS header of an image begins, if it has all of one.
pub(super) fn luks_unit(image: &Image) -> Option<u64> {
    let encryption = image.header().and_then(Header::encryption);
    let at = image.luks_header().filter(|_| encryption == Some(Encryption::Luks))?;
    (at.end.saturating_sub(at.start) == LUKS_BYTES).then_some(at.start / UNIT as u64)
}

/// For each further passphrase whether it opens the image: in all headers that may be found, in none, or in some.
pub(super) fn openings<E: Evidence>(
    image: &Image,
    evidence: &E,
    memo: &RefCell<Memo>,
    mistake: Mistake,
) -> Openings {
    let shut = Openings::default().map(|_| Some(false));
    let Some(first) = luks_unit(image) else { return shut };
    let Some(slots) = Slots::read(evidence, first, false, memo, mistake) else { return shut };
    let mut ids = further();
    shut.map(|_| {
        let id = ids.next()?;
        let opens = slots.by_number.iter().any(|facts| facts.opens.has(id));
        if opens && slots.missed.has(id) { None } else { Some(opens) }
    })
}

/// P10: the passphrases open the image that must, and no other does; what was kept under one that was removed is gone; and each slot in use
/// opens to somebody. The rest of the LUKS header must be as it was built.
pub(super) fn p10_passphrases<E: Evidence>(
    image: &Image,
    evidence: &E,
    guest: &Guest,
    memo: &RefCell<Memo>,
    mistake: Mistake,
    violations: &mut Vec<Violation>,
) {
    let Some(first) = luks_unit(image).filter(|_| mistake != Mistake::SlotsUnjudged) else {
        return;
    };
    let that_are = |openings: &[Opens]| -> Ids {
        further().filter(|id| openings.contains(&guest.passphrase(*id))).collect()
    };
    let must_open = that_are(&[Opens::Surely]);
    let must_not = that_are(&[Opens::Shut, Opens::Gone]);
    let gone = that_are(&[Opens::Gone]);
    let slots = Slots::read(evidence, first, gone != Ids::default(), memo, mistake);
    let slots = slots.unwrap_or_else(Slots::untouched);

    let told = |kind, place, what: String, id| {
        let story = format!("{what}\n{}", guest.passphrase_story(id));
        Violation { place, ..whole_image(Property::P10, kind, story) }
    };
    let first_with = |has: &dyn Fn(&Facts) -> bool| slots.by_number.iter().position(has);
    for id in further() {
        if must_open.has(id) && slots.missed.has(id) && mistake != Mistake::PassphraseMayBeLost {
            let what = format!("passphrase {id} must open it, and may find no slot that does");
            violations.push(told("passphrase-lost", Place::Image, what, id));
        }
        if must_not.has(id)
            && mistake != Mistake::RemovedMayOpen
            && let Some(slot) = first_with(&|facts| facts.opens.has(id))
        {
            let place = Place::File { unit: first + Slot::unit(slot) };
            let what = format!("passphrase {id} must not open it, and may open slot {slot}");
            violations.push(told("passphrase-opens", place, what, id));
        }
        if gone.has(id)
            && mistake != Mistake::MaterialMayStay
            && let Some(slot) = first_with(&|facts| facts.gives.has(id))
        {
            let place = Place::File { unit: first + material_units(slot).start };
            let what =
                format!("what slot {slot} may keep gives the key to who knows passphrase {id}");
            violations.push(told("passphrase-recoverable", place, what, id));
        }
    }
    if mistake == Mistake::DeadSlotsAllowed {
        return;
    }
    for (number, facts) in slots.by_number.iter().enumerate() {
        let Some(dead) = facts.dead else { continue };
        let story = match dead.state {
            ACTIVE => format!("slot {number} may be in use and open with no passphrase"),
            state => format!("slot {number} may have the state {state:#x}, which it cannot have"),
        };
        let place = Place::File { unit: first + Slot::unit(number) };
        violations
            .push(Violation { place, ..whole_image(Property::P10, "slot-opens-to-nobody", story) });
    }
}

impl Slots {
    /// Those of a header that is as it was built.
    fn untouched() -> Self {
        Self { missed: further().collect(), ..Self::default() }
    }

    /// Those of the header that begins at this unit; nothing if it is as it was built. Of slots that are not in use only with `disabled` what
    /// they keep is read.
    fn read<E: Evidence>(
        evidence: &E,
        first: u64,
        disabled: bool,
        memo: &RefCell<Memo>,
        mistake: Mistake,
    ) -> Option<Self> {
        let mut touched = false;
        for (unit, built) in (first..).zip(built_fields()) {
            evidence.peek(unit, |key| touched |= evidence.bytes(key) != built);
        }
        if !touched {
            return None;
        }
        let [one, two]: [_; HEADER_UNITS] =
            std::array::from_fn(|unit| values(evidence, first + unit as u64));
        let pairs = one.iter().flat_map(|one| two.iter().map(move |two| [*one, *two]));
        let mut slots = Self::default();
        // Most slots are the same in all headers.
        let mut known: Vec<(usize, Slot, Given)> = Vec::new();
        for pair in pairs.take(mistake.headers()) {
            let fields = pair.map(|key| *evidence.bytes(key));
            let mut open = Ids::default();
            for number in 1..SLOTS {
                let slot = Slot::read(&fields, number);
                let facts = &mut slots.by_number[number];
                let is_active = slot.state == ACTIVE;
                if is_active || disabled {
                    let same = |known: &&(usize, Slot, Given)| {
                        known.0 == number && Slot { state: slot.state, ..known.1 } == slot
                    };
                    let given = known.iter().find(same).map(|(.., given)| *given);
                    let given = given.unwrap_or_else(|| {
                        let given = slot_gives(evidence, first, number, &slot, memo, mistake);
                        known.push((number, slot, given));
                        given
                    });
                    facts.gives.add(given.perhaps);
                    if is_active {
                        facts.opens.add(given.perhaps);
                        open.add(given.surely);
                    }
                    if is_active && given.surely == Ids::default() {
                        facts.dead = facts.dead.or(Some(slot));
                    }
                }
                if !is_active && slot.state != DISABLED {
                    facts.dead = facts.dead.or(Some(slot));
                }
            }
            slots.missed.add(further().filter(|id| !open.has(*id)).collect());
        }
        Some(slots)
    }
}

/// What the slot of this number gives the key for, with what the fields say of it.
fn slot_gives<E: Evidence>(
    evidence: &E,
    first: u64,
    number: usize,
    slot: &Slot,
    memo: &RefCell<Memo>,
    mistake: Mistake,
) -> Given {
    let mut given = Given { surely: Ids::default(), perhaps: Ids::default() };
    if !(1..=MAX_ITERATIONS).contains(&slot.iterations) {
        return given;
    }
    let sets: Vec<Vec<ValueKey>> =
        material_units(number).map(|unit| values(evidence, first + unit)).collect();
    let mut memo = memo.borrow_mut();
    let mut opened = |choose: &dyn Fn(usize) -> usize| {
        let material = sets.iter().map(|set| set[choose(set.len() - 1)]);
        memo.opened(evidence, slot, material)
    };
    let ages = sets.iter().map(Vec::len).max().unwrap_or(0);
    for age in 0..mistake.generations(ages) {
        given.perhaps.add(opened(&|newest| age.min(newest)));
    }
    // The oldest and the newest of all were among those.
    for age in 1..mistake.generations(ages).saturating_sub(1) {
        given.perhaps.add(opened(&|newest| newest - age.min(newest)));
    }
    if ages == 1 {
        given.surely = given.perhaps;
    } else if mistake == Mistake::FirstMaterialOnly {
        given.surely = opened(&|_| 0);
    }
    given
}

/// All that a unit may hold, in the order in which it is shown.
fn values<E: Evidence>(evidence: &E, unit: u64) -> Vec<ValueKey> {
    let mut values = Vec::new();
    evidence.peek(unit, |key| values.push(key));
    values
}

/// What material opens to, by the slot's salt and iterations and a hash of the material; in bounds.
#[derive(Clone, Debug, Default)]
pub(super) struct Memo(BTreeMap<([u8; 32], u32, u128), Ids>);

/// 400 KiB; then all of it is forgotten.
const MAX_REMEMBERED: usize = 1 << 12;

impl Memo {
    fn opened<E: Evidence>(
        &mut self,
        evidence: &E,
        slot: &Slot,
        material: impl Iterator<Item = ValueKey> + Clone,
    ) -> Ids {
        let mut hash = Xxh3::new();
        material.clone().for_each(|key| hash.update(evidence.bytes(key)));
        let by = (slot.salt, slot.iterations, hash.digest128());
        if let Some(known) = self.0.get(&by) {
            return *known;
        }
        let material: Vec<_> = material.map(|key| *evidence.bytes(key)).collect();
        let opens = |id: &u32| slot.gives_key(material.clone(), &passphrase(*id));
        let ids = (0..=PASSPHRASES).filter(opens).collect();
        if self.0.len() == MAX_REMEMBERED {
            self.0.clear();
        }
        self.0.insert(by, ids);
        ids
    }
}
