//! The judge, on the slots of LUKS headers: who opens an image, who no longer does, and what a slot keeps for whom.

use std::collections::BTreeMap;

use model::build::Initial;
use model::crypt::{
    ACTIVE, DISABLED, Fields, MAX_ITERATIONS, Slot, built_fields, material_units, passphrase,
    slot_units,
};
use model::evidence::BytesEvidence;
use model::finding::{Property, Stage};
use model::guest::{Guest, Openings, Opens, Token};
use model::judge::{Contents, Judge, Place};
use model::mistake::Mistake;
use model::op::Op;
use model::payload::{UNIT, Unit, ZEROES};

use crate::encryption::told;
use crate::patient::{AES, KIB, LUKS, Patient};
use crate::states::{Open, kinds};
use crate::{Outcome, expect};

/// Where in the file the LUKS header begins.
fn first_unit(patient: &mut Patient) -> u64 {
    patient.u64_at(120) / UNIT as u64
}

/// An encrypted image, and what somebody did to its slots.
#[derive(Clone)]
struct Vault {
    disk: BytesEvidence,
    /// Older values of units.
    others: BTreeMap<u64, Vec<Unit>>,
    fields: Fields,
    first: u64,
}

impl Vault {
    fn new(patient: &mut Patient) -> Self {
        let first = first_unit(patient);
        let disk = patient.disk.clone();
        Self { disk, others: BTreeMap::new(), fields: *built_fields(), first }
    }

    /// Lets a passphrase open the slot of this number.
    fn with(mut self, number: usize, id: u32) -> Self {
        let slot = Slot::in_use(number as u8);
        let units = slot_units(number, id);
        self = self.says(number, slot);
        self.holds(number, units[2..].iter().map(|(_, unit)| *unit))
    }

    /// Changes what the fields say of a slot.
    fn says(mut self, number: usize, slot: Slot) -> Self {
        slot.put(&mut self.fields, number);
        let fields = self.fields;
        self.fields(fields)
    }

    /// The slot of this number is in this state.
    fn is(self, number: usize, state: u32) -> Self {
        let slot = Slot::read(&self.fields, number);
        self.says(number, Slot { state, ..slot })
    }

    fn fields(mut self, fields: Fields) -> Self {
        self.fields = fields;
        (self.first..).zip(&fields).for_each(|(unit, bytes)| self.disk.set(unit, bytes));
        self
    }

    /// Sets the first units of a slot's material.
    fn holds(mut self, number: usize, material: impl IntoIterator<Item = Unit>) -> Self {
        for (unit, bytes) in material_units(number).zip(material) {
            self.disk.set(self.first + unit, &bytes);
        }
        self
    }

    /// A unit of the header may hold this besides, which is older than all that it may hold.
    fn or(mut self, unit: u64, bytes: Unit) -> Self {
        self.others.entry(self.first + unit).or_default().insert(0, bytes);
        self
    }

    /// The fields may be these besides, each unit by itself.
    fn or_fields(self, fields: Fields) -> Self {
        self.or(0, fields[0]).or(1, fields[1])
    }

    /// All of a slot's material may be this besides.
    fn or_holds(self, number: usize, material: impl IntoIterator<Item = Unit>) -> Self {
        material_units(number)
            .zip(material)
            .fold(self, |vault, (unit, bytes)| vault.or(unit, bytes))
    }

    fn open(mut self) -> Open {
        let values = &mut self.disk.values;
        let mut keys = |units: &[Unit]| units.iter().map(|unit| values.intern(unit)).collect();
        let others = self.others.iter().map(|(at, units)| (*at, keys(units))).collect();
        Open { disk: self.disk, others }
    }
}

/// The material of this slot for this passphrase.
fn material(number: usize, id: u32) -> Vec<Unit> {
    slot_units(number, id).into_iter().skip(2).map(|(_, unit)| unit).collect()
}

fn erased() -> Vec<Unit> {
    vec![[0xee; UNIT]; 250]
}

fn change(guest: &mut Guest, id: u32, opens: bool) {
    let token = guest.begin_passphrase(id, opens);
    guest.complete(token);
}

/// A disk on an encrypted image of which all is known of the first passphrase but this.
fn guest_of(patient: &mut Patient, is: Opens) -> Guest {
    let mut guest = patient.guest(Mistake::None);
    match is {
        Opens::Gone => {}
        Opens::Surely => change(&mut guest, 1, true),
        Opens::Perhaps | Opens::Shut => {
            guest.begin_passphrase(1, true);
            guest.crash();
        }
    }
    if is == Opens::Shut {
        guest.collapse_passphrases(&[Some(false); 3]);
    }
    assert_eq!(guest.passphrase(1), is);
    guest
}

/// Goal: an operation that completed is there to stay, and nothing is left of one that changes nothing. Method: by hand.
pub(crate) fn passphrases_settle(mistake: Mistake) -> Outcome {
    let mut patient = Patient::of(&LUKS, Initial::Fresh);
    let mut guest = patient.guest(mistake);
    let [add, remove] = [|id| Op::AddPassphrase { id }, |id| Op::RemovePassphrase { id }];
    let clips = |guest: &Guest| {
        [add(1), remove(1)].map(|op| guest.clip(&op).inspect(|cut| assert_eq!(*cut, op)).is_some())
    };
    let begin = |guest: &mut Guest, op: Op| guest.begin(&op, |_, _| unreachable!("no payload"));
    expect("at first", (guest.passphrase(1), clips(&guest)), (Opens::Gone, [true, false]))?;
    let hashes = |guest: &Guest| guest.allowed_hash();
    let at_first = hashes(&guest);
    let token = begin(&mut guest, add(1));
    expect("adding", (guest.passphrase(1), clips(&guest)), (Opens::Perhaps, [true, true]))?;
    expect("others", [0, 2, 3, 4].map(|id| guest.passphrase(id)), [Opens::Gone; 4])?;
    let adding = hashes(&guest);
    guest.complete(token);
    expect("added", (guest.passphrase(1), clips(&guest)), (Opens::Surely, [false, true]))?;
    let added = hashes(&guest);
    let mut crashed = guest.clone();
    crashed.crash();
    expect("durably", crashed.passphrase(1), Opens::Surely)?;
    let vain = begin(&mut guest, add(1));
    guest.complete(vain);
    expect("once more", guest.passphrase(1), Opens::Surely)?;
    let token = begin(&mut guest, remove(1));
    expect("removing", (guest.passphrase(1), clips(&guest)), (Opens::Perhaps, [true, true]))?;
    guest.complete(token);
    expect("removed", (guest.passphrase(1), clips(&guest)), (Opens::Gone, [true, false]))?;
    expect("as at first", hashes(&guest), at_first)?;
    guest.crash();
    expect("durably", guest.passphrase(1), Opens::Gone)?;
    let mut second = patient.guest(mistake);
    change(&mut second, 2, true);
    let mut different = [at_first, adding, added, hashes(&second)].to_vec();
    different.sort_unstable();
    different.dedup();
    expect("hashes", different.len(), 4)?;
    let story = "at first: it opens nothing\nt=1 added, completed t=2\nt=5 removed, completed t=6\nt=7 power cut";
    expect("the story", guest.passphrase_story(1).as_str(), story)?;
    expect("of another", guest.passphrase_story(2).lines().count(), 2)?;

    for id in [0, 4] {
        expect("no such number", [add(id), remove(id)].map(|op| guest.clip(&op)), [None; 2])?;
        change(&mut guest, id, true);
        expect("nothing", guest.passphrase(id), Opens::Gone)?;
    }
    for geometry in [KIB, AES] {
        let guest = Patient::of(&geometry, Initial::Fresh).guest(mistake);
        expect("no slots", clips(&guest), [false, false])?;
    }
    Ok(())
}

/// Goal: what failed, was dropped, cut short or done beside something else stays possible until it is decided, and what it may have left
/// in a slot stays for good. Method: by hand.
pub(crate) fn passphrases_in_doubt(mistake: Mistake) -> Outcome {
    let mut patient = Patient::of(&LUKS, Initial::Fresh);
    let fresh = patient.guest(mistake);
    let mut added = fresh.clone();
    change(&mut added, 1, true);
    type End = fn(&mut Guest, Token);
    let ends: [(&str, End); 3] = [
        ("failed", |guest, token| guest.fail(token)),
        ("dropped", |guest, token| guest.abandon(token)),
        ("cut short", |guest, _| guest.crash()),
    ];
    for (name, end) in ends {
        for (before, opens) in [(&fresh, true), (&added, false)] {
            let what = |what: &str| format!("{name}, {opens}: {what}");
            let mut guest = before.clone();
            let token = guest.begin_passphrase(1, opens);
            end(&mut guest, token);
            expect(&what("either"), guest.passphrase(1), Opens::Perhaps)?;
            let mut decided = guest.clone();
            change(&mut decided, 1, true);
            expect(&what("added"), decided.passphrase(1), Opens::Surely)?;
            change(&mut decided, 1, false);
            expect(&what("removed"), decided.passphrase(1), Opens::Shut)?;
            let add = Op::AddPassphrase { id: 1 };
            let remove = Op::RemovePassphrase { id: 1 };
            expect(&what("cut"), [add, remove].map(|op| decided.clip(&op)), [Some(add), None])?;
            let mut removed = guest.clone();
            change(&mut removed, 1, false);
            expect(&what("removed at once"), removed.passphrase(1), Opens::Shut)?;
            expect(&what("a hash"), removed.allowed_hash() == fresh.allowed_hash(), false)?;
            guest.crash();
            expect(&what("after a power cut"), guest.passphrase(1), Opens::Perhaps)?;
            let hash = guest.allowed_hash();
            guest.collapse_passphrases(&[None, Some(false), Some(false)]);
            expect(&what("nobody saw"), guest.passphrase(1), Opens::Perhaps)?;
            expect(&what("the same"), guest.allowed_hash(), hash)?;
            for (opens, is) in [(true, Opens::Surely), (false, Opens::Shut)] {
                let mut seen = guest.clone();
                seen.collapse_passphrases(&[Some(opens), Some(false), Some(false)]);
                expect(&what("seen"), seen.passphrase(1), is)?;
                expect(&what("others"), seen.passphrase(2), Opens::Gone)?;
            }
        }
    }
    for first in [0, 1] {
        let mut beside = added.clone();
        let both = [false, true].map(|opens| beside.begin_passphrase(1, opens));
        beside.complete(both[first]);
        expect("the other in flight", beside.passphrase(1), Opens::Perhaps)?;
        beside.complete(both[1 - first]);
        expect("in either order", beside.passphrase(1), Opens::Perhaps)?;
        change(&mut beside, 1, true);
        expect("and once more", beside.passphrase(1), Opens::Surely)?;
        change(&mut beside, 1, false);
        expect("in another slot perhaps", beside.passphrase(1), Opens::Shut)?;
    }
    for first in [0, 1] {
        let mut removed = added.clone();
        let both = [false; 2].map(|opens| removed.begin_passphrase(1, opens));
        removed.complete(both[first]);
        expect("one in flight", removed.passphrase(1), Opens::Shut)?;
        removed.complete(both[1 - first]);
        expect("both done", removed.passphrase(1), Opens::Shut)?;
    }
    let mut twice = fresh.clone();
    let [one, two] = [true; 2].map(|opens| twice.begin_passphrase(1, opens));
    twice.complete(two);
    let mut crashed = twice.clone();
    crashed.crash();
    expect("once at least", crashed.passphrase(1), Opens::Surely)?;
    change(&mut crashed, 1, false);
    expect("cut short in the other slot", crashed.passphrase(1), Opens::Shut)?;
    twice.complete(one);
    expect("twice", twice.passphrase(1), Opens::Surely)?;
    change(&mut twice, 1, false);
    expect("removed from both slots", twice.passphrase(1), Opens::Gone)
}

/// Goal: a decided header is judged by what opens it. Method: each damage, of a disk that knows of the passphrase each of four things.
pub(crate) fn slots_judged(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(&LUKS, Initial::Fresh);
    let all = [Opens::Surely, Opens::Perhaps, Opens::Shut, Opens::Gone];
    let guests = all.map(|is| guest_of(&mut patient, is));
    let vault = |patient: &mut Patient| Vault::new(patient);
    let first = first_unit(&mut patient);
    let lost = || vec![("passphrase-lost", Place::Image)];
    let at = |kind, unit| vec![(kind, Place::File { unit: first + unit })];
    let opens = |number: usize| at("passphrase-opens", Slot::unit(number));
    let kept = |number: usize| at("passphrase-recoverable", material_units(number).start);
    let dead = |number: usize| at("slot-opens-to-nobody", Slot::unit(number));
    let none = Vec::new;
    let mut expected = Vec::new();
    let mut case = |what: &'static str, vault: Vault, wanted: [Vec<(&'static str, Place)>; 4]| {
        expected.push((what, vault.open(), wanted));
    };
    let p = &mut patient;

    case("as built", vault(p), [lost(), none(), none(), none()]);
    for number in [1, 5, 6, 7] {
        let found = [opens(number), kept(number)].concat();
        case("in use", vault(p).with(number, 1), [none(), none(), opens(number), found]);
        let disabled = vault(p).with(number, 1).is(number, DISABLED);
        case("disabled and kept", disabled, [lost(), none(), none(), kept(number)]);
        let torn = vault(p).with(number, 1).holds(number, vec![ZEROES; 125]);
        let bad = dead(number);
        case("torn", torn, [[lost(), dead(number)].concat(), bad.clone(), bad.clone(), bad]);
    }
    let torn = vault(p).with(1, 1).is(1, DISABLED).holds(1, vec![ZEROES; 125]);
    case("disabled and torn", torn, [lost(), none(), none(), none()]);
    let one = vault(p).with(1, 1).is(1, DISABLED).holds(1, vec![ZEROES]);
    case("one unit of it", one, [lost(), none(), none(), none()]);
    for (what, state) in
        [("no state", 0), ("nearly active", ACTIVE ^ 1), ("nearly not", DISABLED | 1 << 31)]
    {
        let bad = dead(1);
        let gone = [kept(1), dead(1)].concat();
        let vault = vault(p).with(1, 1).is(1, state);
        case(what, vault, [[lost(), dead(1)].concat(), bad.clone(), bad, gone]);
    }
    let slot = Slot::in_use(1);
    let mut salted = slot;
    salted.salt[31] ^= 1;
    for (what, slot) in [
        ("another salt", salted),
        ("no iterations", Slot { iterations: 0, ..slot }),
        ("more iterations", Slot { iterations: 2, ..slot }),
    ] {
        let bad = dead(1);
        let vault = vault(p).with(1, 1).says(1, slot);
        case(what, vault, [[lost(), dead(1)].concat(), bad.clone(), bad.clone(), bad]);
    }
    for (what, iterations, is_lost) in
        [("most iterations", MAX_ITERATIONS, false), ("too many", MAX_ITERATIONS + 1, true)]
    {
        let slot = Slot { iterations, ..slot };
        let vault = vault(p).says(1, slot).holds(1, slot.material(&passphrase(1)));
        let bad = dead(1);
        let wanted = match is_lost {
            true => [[lost(), dead(1)].concat(), bad.clone(), bad.clone(), bad],
            false => [none(), none(), opens(1), [opens(1), kept(1)].concat()],
        };
        case(what, vault, wanted);
    }
    let strange = vault(p).says(1, slot).holds(1, slot.material("open to a stranger"));
    let bad = dead(1);
    case("a stranger's", strange, [[lost(), dead(1)].concat(), bad.clone(), bad.clone(), bad]);
    case("the first passphrase again", vault(p).with(1, 0), [lost(), none(), none(), none()]);
    // Slots are not judged in what is not as it was built.
    let mut elsewhere = *built_fields();
    slot.put(&mut elsewhere, 1);
    elsewhere[0][208 + 48 + 43] ^= 1;
    let moved = || at("encryption", 0);
    case("another place", vault(p).fields(elsewhere), [moved(), moved(), moved(), moved()]);

    for (what, mut open, wanted) in expected {
        for ((is, guest), wanted) in all.iter().zip(&guests).zip(wanted) {
            let found = told(&mut judge, &mut open, guest);
            expect(&format!("{what}, {is:?}"), found, wanted)?;
        }
    }
    let mut open = vault(p).with(7, 1).open();
    let found = judge.state(&mut open, &guests[3], None);
    let story = found.first().map(|violation| violation.to_string());
    let wanted = "P10 passphrase-opens: file unit 11\n  passphrase 1 must not open it, and may open slot 7\n  at first: it opens nothing";
    expect("the report", story.as_deref(), Some(wanted))?;
    expect("the property", kinds(found).iter().all(|(of, _)| *of == Property::P10), true)
}

/// Goal: every header that may be found is judged, with all that a slot may keep. Method: units of fields and of material that may hold
/// older values besides.
pub(crate) fn slots_of_several_values(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(&LUKS, Initial::Fresh);
    let [surely, perhaps, shut, gone] = [Opens::Surely, Opens::Perhaps, Opens::Shut, Opens::Gone]
        .map(|is| guest_of(&mut patient, is));
    let p = &mut patient;
    let mut expect_of = |what: &str, vault: Vault, wanted: [&[&str]; 4]| {
        let mut open = vault.open();
        for (guest, wanted) in [&surely, &perhaps, &shut, &gone].into_iter().zip(wanted) {
            let found = told(&mut judge, &mut open, guest);
            let found: Vec<_> = found.into_iter().map(|(kind, _)| kind).collect();
            let is = guest.passphrase(1);
            expect(&format!("{what}, {is:?}"), found, wanted.to_vec())?;
        }
        Ok::<(), String>(())
    };
    const LOST: &str = "passphrase-lost";
    const OPENS: &str = "passphrase-opens";
    const KEPT: &str = "passphrase-recoverable";
    const DEAD: &str = "slot-opens-to-nobody";
    let fresh = Vault::new(p);
    let in_use = |number| fresh.clone().with(number, 1);
    let built = *built_fields();
    let open = |number: usize| in_use(number).fields;
    let shut_fields = |number: usize| in_use(number).is(number, DISABLED).fields;

    // Whether the slot is in use is open, and the first of what is found is right for one guest and the second for the other.
    let either: [&[&str]; 4] = [&[LOST], &[], &[OPENS], &[OPENS, KEPT]];
    for number in [1, 6, 7] {
        expect_of("added, perhaps", in_use(number).or_fields(shut_fields(number)), either)?;
        let removed = in_use(number).is(number, DISABLED).or_fields(open(number));
        expect_of("removed, perhaps", removed, either)?;
    }
    expect_of("state and salt at once", in_use(1).or_fields(built), either)?;
    // The same with slot 6 is a header that nobody wrote: the end of its salt is in the other unit.
    let dead: [&[&str]; 4] = [&[LOST, DEAD], &[DEAD], &[OPENS, DEAD], &[OPENS, KEPT, DEAD]];
    expect_of("a salt in two units", in_use(6).or_fields(built), dead)?;
    expect_of("its end, perhaps", in_use(6).or(1, built[1]), dead)?;
    expect_of("its state, perhaps", in_use(6).or(0, built[0]), either)?;
    let turned = fresh.clone().holds(6, material(6, 1)).or_fields(open(6));
    expect_of("the other way round", turned, dead)?;

    // What the slot keeps is open.
    let torn = in_use(1).or(material_units(1).end - 1, ZEROES);
    expect_of("one unit of material, perhaps", torn, dead)?;
    let last = in_use(1).holds(1, vec![ZEROES]).or(material_units(1).start, material(1, 1)[0]);
    expect_of("the same, older", last, dead)?;
    let never: [&[&str]; 4] = [&[LOST, DEAD], &[DEAD], &[DEAD], &[DEAD]];
    let torn = in_use(1).holds(1, vec![ZEROES]).or_holds(1, erased());
    expect_of("one unit of material, surely not", torn, never)?;
    let kept: [&[&str]; 4] = [&[LOST], &[], &[], &[KEPT]];
    let disabled = || in_use(1).is(1, DISABLED);
    let nothing: [&[&str]; 4] = [&[LOST], &[], &[], &[]];
    expect_of("erased, perhaps", disabled().holds(1, erased()).or_holds(1, material(1, 1)), kept)?;
    expect_of("kept over older bytes", disabled().or_holds(1, erased()), kept)?;
    let mut gone_unit = disabled().holds(1, erased()).or_holds(1, material(1, 1));
    gone_unit.others.pop_first();
    expect_of("one unit erased surely", gone_unit, nothing)?;
    // Three generations in the first unit, of which the middle one is in all units the last but one.
    let middle = disabled()
        .holds(1, erased())
        .or_holds(1, material(1, 1))
        .or(material_units(1).start, [7; UNIT]);
    expect_of("counted from the newest", middle, kept)?;
    let oldest = disabled()
        .holds(1, vec![[7; UNIT]])
        .or(material_units(1).start, [8; UNIT])
        .or(material_units(1).start, material(1, 1)[0]);
    expect_of("counted from the oldest", oldest, kept)?;
    // The material is open, and whether the slot is in use.
    let both = in_use(1).or(0, shut_fields(1)[0]).or_holds(1, erased());
    expect_of("both", both, dead)
}

/// Goal: each passphrase is judged by itself, in whichever slots it is. Method: two of them, and one of them twice.
pub(crate) fn slots_of_two(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(&LUKS, Initial::Fresh);
    let mut both = patient.guest(Mistake::None);
    change(&mut both, 1, true);
    let mut one = both.clone();
    change(&mut both, 3, true);
    let first = first_unit(&mut patient);
    let vault = |patient: &mut Patient| Vault::new(patient).with(1, 1).with(6, 3);
    let found = told(&mut judge, &mut vault(&mut patient).open(), &both);
    expect("two", found, vec![])?;
    let found = told(&mut judge, &mut vault(&mut patient).open(), &one);
    let at = |kind, unit| (kind, Place::File { unit: first + unit });
    let wanted =
        vec![at("passphrase-opens", 0), at("passphrase-recoverable", material_units(6).start)];
    expect("one of them was not added", found, wanted)?;
    let mut open = vault(&mut patient).is(6, DISABLED).open();
    let found = judge.state(&mut open, &both, None).first().map(ToString::to_string);
    let wanted = "P10 passphrase-lost: image\n  passphrase 3 must open it, and may find no slot that does\n  at first: it opens nothing\n  t=3 added, completed t=4";
    expect("one of them is lost", found.as_deref(), Some(wanted))?;

    // Two slots of which the fields say the same, and which keep other things.
    let slot = Slot::in_use(1);
    let same = vault(&mut patient).is(6, DISABLED).says(2, slot);
    let same = same.holds(2, slot.material(&passphrase(3)));
    expect("one salt", told(&mut judge, &mut same.open(), &both), vec![])?;

    let twice = |patient: &mut Patient| Vault::new(patient).with(1, 1).with(2, 1);
    expect("one in two slots", told(&mut judge, &mut twice(&mut patient).open(), &one), vec![])?;
    let one_left = twice(&mut patient).is(1, DISABLED).holds(1, erased());
    let mut open = one_left.open();
    expect("one of the two", told(&mut judge, &mut open, &one), vec![])?;
    // In each header one of the two is in use, and so it always opens; both at once is none that anybody wrote, and no harm.
    let left = twice(&mut patient).is(1, DISABLED).fields;
    let right = twice(&mut patient).is(2, DISABLED).or(0, left[0]);
    expect("one or the other", told(&mut judge, &mut right.open(), &one), vec![])?;
    change(&mut one, 1, false);
    let found = told(&mut judge, &mut open, &one);
    let wanted =
        vec![at("passphrase-opens", 0), at("passphrase-recoverable", material_units(2).start)];
    expect("removed from one of two", found, wanted)
}

/// Goal: what recovery was seen to leave binds: a later look never shows another set of passphrases. Method: an addition that a power cut
/// left open, seen one way and then the other.
pub(crate) fn passphrases_kept(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(&LUKS, Initial::Fresh);
    let mut guest = patient.guest(mistake);
    guest.begin_passphrase(1, true);
    guest.crash();
    let p = &mut patient;
    let vault = |p: &mut Patient| Vault::new(p).with(1, 1);
    let shut_fields = vault(p).is(1, DISABLED).fields;
    let mut look = |vault: Vault| {
        let mut open = vault.open();
        let found = kinds(judge.state(&mut open, &guest, Some(Stage::Repaired)));
        let mut contents = Contents::default();
        judge.contents(&open, &mut contents);
        assert_eq!(judge.passphrases(&open), *contents.passphrases());
        (found, contents)
    };
    let [opens, shut, either, torn] = [
        vault(p),
        vault(p).is(1, DISABLED),
        vault(p).or_fields(shut_fields),
        vault(p).or(material_units(1).start, ZEROES),
    ]
    .map(&mut look);
    let as_built = look(Vault::new(p));
    let openings = |first| -> Openings { [first, Some(false), Some(false)] };
    for (what, (found, contents), wanted) in [
        ("opens", &opens, Some(true)),
        ("shut", &shut, Some(false)),
        ("either", &either, None),
        ("as built", &as_built, Some(false)),
        ("torn", &torn, None),
    ] {
        let dead = (Property::P10, "slot-opens-to-nobody");
        expect(what, found.clone(), if what == "torn" { vec![dead] } else { vec![] })?;
        expect(what, *contents.passphrases(), openings(wanted))?;
    }
    for geometry in [KIB, AES] {
        let mut other = Patient::of(&geometry, Initial::Fresh);
        let guest = other.guest(mistake);
        let mut judge = Judge::with_mistake(mistake);
        judge.state(&mut other.disk, &guest, None);
        expect("no slots", judge.passphrases(&other.disk), openings(Some(false)))?;
    }

    let judge = Judge::with_mistake(mistake);
    let changed = |before: &(_, Contents), after: &(_, Contents)| {
        let found = judge.p3_same_contents(&before.1, &after.1, &patient.disk);
        found.map(|violation| violation.to_string())
    };
    let told = |is: &str, was: &str| {
        Some(format!("P3 passphrases-changed: image\n  passphrase 1 {is}, and it was: {was}"))
    };
    let (does, does_not, may) = ("opens it", "does not open it", "may open it or not");
    for (what, before, after, wanted) in [
        ("the same", &opens, &opens, None),
        ("decided", &either, &opens, None),
        ("decided the other way", &either, &shut, None),
        ("still open", &either, &either, None),
        ("not read", &shut, &as_built, None),
        ("shut", &opens, &shut, told(does_not, does)),
        ("opened", &shut, &opens, told(does, does_not)),
        ("open again", &shut, &either, told(may, does_not)),
        ("in doubt", &opens, &either, told(may, does)),
    ] {
        expect(what, changed(before, after), wanted)?;
    }

    let mut judge = Judge::with_mistake(mistake);
    let mut later = |contents: &Contents, vault: Vault| {
        let mut guest = guest.clone();
        guest.collapse_passphrases(contents.passphrases());
        kinds(judge.state(&mut vault.open(), &guest, Some(Stage::Repaired)))
    };
    let lost = vec![(Property::P10, "passphrase-lost")];
    let opened = vec![(Property::P10, "passphrase-opens")];
    let p = &mut patient;
    expect("seen open", later(&opens.1, vault(p)), vec![])?;
    expect("seen open, then shut", later(&opens.1, vault(p).is(1, DISABLED)), lost)?;
    expect("seen shut", later(&shut.1, vault(p).is(1, DISABLED)), vec![])?;
    expect("seen shut, then open", later(&shut.1, vault(p)), opened)?;
    expect("not decided", later(&either.1, vault(p)), vec![])
}
