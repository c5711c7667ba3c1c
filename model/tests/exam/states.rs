//! The judge, on whole states: what the guest may see, before recovery and after it.

use std::collections::BTreeMap;

use model::build::Initial;
use model::evidence::{BytesEvidence, Evidence, Readable, ValueKey};
use model::finding::{Property, Stage};
use model::guest::Guest;
use model::image::{COPIED, Mapping};
use model::judge::{
    Contents, Extent, Inherited, Judge, MAX_VIOLATIONS, Place, Statement, Violation, p0_misread,
};
use model::mistake::Mistake;
use model::op::{Geometry, Op};
use model::payload::{self, UNIT, Unit};

use crate::guest::{CACHED, PROMISES, ZERO, done, flush};
use crate::patient::{KIB, Patient, STAGES};
use crate::{Outcome, expect};

/// A disk of which some units may hold other values than the one that they would resolve to.
pub(crate) struct Open {
    pub(crate) disk: BytesEvidence,
    pub(crate) others: BTreeMap<u64, Vec<ValueKey>>,
}

impl Readable for Open {
    fn data_file(&self) -> Option<u64> {
        self.disk.data_file()
    }

    fn data_len(&mut self) -> u64 {
        self.disk.data_len()
    }

    fn len(&mut self) -> u64 {
        self.disk.len()
    }

    fn resolve(&mut self, unit: u64) -> ValueKey {
        assert!(!self.others.contains_key(&unit), "unit {unit} was read, not peeked at");
        self.disk.resolve(unit)
    }

    fn zero_run(&self, unit: u64, most: u64) -> u64 {
        self.decided(unit, most).take_while(|key| *key == ZERO).count() as u64
    }

    fn bytes(&self, key: ValueKey) -> &Unit {
        self.disk.bytes(key)
    }
}

impl Evidence for Open {
    fn peek(&self, unit: u64, mut visit: impl FnMut(ValueKey)) {
        self.others.get(&unit).into_iter().flatten().copied().for_each(&mut visit);
        self.disk.peek(unit, visit);
    }

    fn decided(&self, unit: u64, most: u64) -> impl Iterator<Item = ValueKey> {
        let known =
            (unit..unit.saturating_add(most)).take_while(|unit| !self.others.contains_key(unit));
        known.map(|unit| {
            let mut only = ZERO;
            self.disk.peek(unit, |key| only = key);
            only
        })
    }

    fn key_of(&self, bytes: &Unit) -> Option<ValueKey> {
        self.disk.key_of(bytes)
    }
}

pub(crate) fn kinds(violations: &[Violation]) -> Vec<(Property, &'static str)> {
    violations.iter().map(|violation| (violation.property, violation.kind)).collect()
}

pub(crate) fn lost_write(mistake: Mistake) -> Outcome {
    let mut patient = Patient::new(Initial::Fragmented);
    let mut guest = patient.guest(mistake);
    let mut judge = Judge::with_mistake(mistake);
    for stage in STAGES {
        let found = kinds(judge.state(&mut patient.disk, &guest, Some(stage)));
        expect("in order", found, vec![])?;
    }
    // Unit 2 is in guest cluster 1, which is mapped nowhere.
    let token = guest
        .begin(&Op::Write { offset: 1024, length: 512, id: 5, durability: CACHED }, |unit, id| {
            patient.disk.values.intern(&payload::unit(unit, id))
        });
    guest.complete(token);
    expect("not flushed", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])?;
    flush(&mut guest);
    let violations = judge.state(&mut patient.disk, &guest, None);
    expect("flushed", kinds(violations), vec![(Property::P1, "lost-write")])?;
    let text = violations[0].to_string();
    let wanted = "P1 lost-write: guest unit 2, not mapped: found zero, allowed unit 2 of write 5\n  \
                  at first: zero\n  \
                  t=1 puts unit 2 of write 5, completed t=2\n  \
                  t=3 flush, completed t=4";
    expect("the report", text.as_str(), wanted)
}

/// Goal: a closed image may hand on the COPIED flags that it was opened with, and those only.
pub(crate) fn copied_flags_inherited(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Fragmented);
    let guest = patient.guest(mistake);
    let mapped = patient.mapped();
    let strip = |patient: &mut Patient, guest: u64| {
        let entry = patient.l2(guest);
        patient.set_l2(guest, entry & !COPIED);
    };
    strip(&mut patient, mapped[2]);
    strip(&mut patient, mapped[0]);
    judge.state(&mut patient.disk, &guest, None);
    let inherited = Inherited::of(judge.auditor());
    let found = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("as inherited", found, vec![])?;
    let own = vec![(Property::P6, "copied-missing"); 2];
    let found = kinds(judge.closed(&mut patient.disk, &guest, &Inherited::default()));
    expect("its own", found, own.clone())?;
    strip(&mut patient, mapped[1]);
    let found = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("one more", found, own[..1].to_vec())
}

/// Goal: a verdict stays readable when everything is wrong.
#[test]
fn violations_are_kept_up_to_a_limit() {
    let mut patient = Patient::new(Initial::Fresh);
    let key = patient.disk.values.intern(&payload::unit(0, 1));
    let guest = Guest::new(&[key; 128], PROMISES);
    let mut judge = Judge::default();
    let violations = judge.state(&mut patient.disk, &guest, None);
    assert_eq!(kinds(violations), [(Property::P2, "invented-zero"); MAX_VIOLATIONS]);
}

/// Goal: where a mapping disagrees is told, and the disk is covered once and in order. Method: of the
/// first eight guest clusters 0 and 6 are in the file.
#[test]
fn a_mapping_disagrees_from_a_unit_on() {
    let mut judge = Judge::default();
    let mut patient = Patient::new(Initial::Fragmented);
    let guest = patient.guest(Mistake::None);
    let all = 0..64u64;
    let host = |mapping| matches!(mapping, Mapping::Host(_));
    judge.state(&mut patient.disk, &guest, None);
    let image = judge.auditor().image();
    let extent = |guest: u64, length: u64| {
        let to = match image.mapping(guest / 1024) {
            Mapping::Host(offset) => Mapping::Host(offset + guest % 1024),
            to => to,
        };
        Extent { guest, length, to }
    };
    let whole: Vec<_> = all.map(|cluster| extent(cluster * 1024, 1024)).collect();
    let halves: Vec<_> = (0..128).map(|unit| extent(unit * 512, 512)).collect();
    assert_eq!(judge.p3_mapping_agrees(&whole), None);
    assert_eq!(judge.p3_mapping_agrees(&halves), None);
    let mapped: Vec<_> = (0..8).filter(|cluster| host(image.mapping(*cluster))).collect();
    assert_eq!(mapped, [0, 6]);
    let Mapping::Host(offset) = image.mapping(6) else { unreachable!("it is mapped") };

    let with = |from: usize, to: usize, extents: &[Extent]| {
        let mut changed = whole.clone();
        changed.splice(from..to, extents.iter().copied());
        changed
    };
    let nowhere = |guest, length| Extent { guest, length, to: Mapping::Unallocated };
    let cases = [
        (with(1, 2, &[]), 2, None, "the subject maps 0x800..0xc00 after 0x400"),
        (with(1, 1, &[nowhere(1024, 0)]), 2, None, "the subject maps 0x400..0x400 after 0x400"),
        (
            with(63, 64, &[extent(63 << 10, 1025)]),
            126,
            None,
            "the subject maps 0xfc00..0x10001 after 0xfc00",
        ),
        (with(63, 64, &[]), 126, None, "the subject maps nothing from 0xfc00 on"),
        (
            with(1, 7, &[nowhere(1024, 6144)]),
            12,
            Some(offset),
            "the subject maps it to nowhere, not 0x",
        ),
        (
            with(5, 7, &[nowhere(5120, 512), nowhere(5632, 1536)]),
            12,
            Some(offset),
            "the subject maps it to nowhere, not 0x",
        ),
        (
            with(7, 8, &[Extent { guest: 7168, length: 1024, to: Mapping::Host(1024) }]),
            14,
            None,
            "the subject maps it to 0x400, not nowhere",
        ),
    ];
    for (extents, unit, host, story) in cases {
        let violation = judge.p3_mapping_agrees(&extents).expect(story);
        assert_eq!(violation.place, Place::Guest { unit, host }, "{story}");
        assert!(violation.story.starts_with(story), "{}, not {story}", violation.story);
    }
}

/// Goal: a judge of contents excuses counts, and neither what the guest sees nor an image that shows the guest nothing.
#[test]
fn a_judge_of_contents_excuses_the_structure_alone() {
    let mut judge = Judge::of_contents();
    let mut patient = Patient::new(Initial::Fragmented);
    let guest = patient.guest(Mistake::None);
    let first = patient.mapped()[0];
    let cluster = (patient.l2(first) & !COPIED) / 1024;
    patient.put_refcount(cluster, 0);
    let full = kinds(Judge::default().state(&mut patient.disk, &guest, None));
    assert!(full.contains(&(Property::P4, "refcount-too-low")), "{full:?}");
    assert_eq!(kinds(judge.state(&mut patient.disk, &guest, None)), []);
    assert_eq!(kinds(judge.structure(Stage::OpenedClean)), []);

    patient.set_l2(first, 0);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    assert!(found.contains(&(Property::P2, "invented-zero")), "{found:?}");

    patient.disk.patch(0, b"no image");
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    assert!(!found.is_empty() && found.iter().all(|(property, _)| *property == Property::P4));
    assert_eq!(kinds(judge.structure(Stage::OpenedClean)), found);

    // What a bitmap says is for backup programs: the guest does not see it.
    let mut patient = Patient::new(Initial::Bitmaps);
    let guest = patient.guest(Mistake::None);
    let host = patient.l2(12) & !COPIED;
    patient.disk.patch(host + 512, &payload::unit(25, 1));
    let missed = (Property::P4, "bitmap-misses-a-change");
    assert!(kinds(Judge::default().state(&mut patient.disk, &guest, None)).contains(&missed));
    assert!(!kinds(judge.state(&mut patient.disk, &guest, None)).contains(&missed));
}

pub(crate) fn invented_data(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut judged = |damage: fn(&mut Patient), guest_of: fn(&mut Patient, Mistake) -> Guest| {
        let mut patient = Patient::new(Initial::Fragmented);
        damage(&mut patient);
        let guest = guest_of(&mut patient, mistake);
        let mut found = kinds(judge.state(&mut patient.disk, &guest, None));
        found.dedup();
        found
    };
    let stale = judged(
        |p| {
            let hole = p.hole();
            p.put_refcount(hole, 1);
            p.set_l2(1, (hole * 1024) | COPIED);
        },
        Patient::guest,
    );
    expect("a stale cluster", stale, vec![(Property::P2, "stale-bytes")])?;
    let swapped = judged(
        |p| {
            let (one, two) = (p.mapped()[0], p.mapped()[1]);
            let (first, second) = (p.l2(one), p.l2(two));
            p.set_l2(one, second);
            p.set_l2(two, first);
        },
        Patient::guest,
    );
    expect("swapped mappings", swapped, vec![(Property::P2, "other-unit")])?;
    let unmapped = judged(
        |p| {
            let guest = p.mapped()[0];
            p.set_l2(guest, 0);
        },
        Patient::guest,
    );
    expect("a mapping is gone", unmapped, vec![(Property::P2, "invented-zero")])?;
    let garbage = judged(
        |p| {
            let guest = p.mapped()[0];
            let offset = p.l2(guest) & !COPIED;
            p.disk.patch(offset + 100, b"rot");
        },
        Patient::guest,
    );
    expect("bytes of nobody", garbage, vec![(Property::P2, "invented")])
}

pub(crate) fn whole_set(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Fragmented);
    let mut guest = patient.guest(mistake);
    let cluster = patient.mapped()[0];
    let (unit, host) = (cluster * 2, (patient.l2(cluster) & !COPIED) / UNIT as u64);
    let key = patient.disk.values.intern(&payload::unit(unit, 7));
    let mut open = Open { disk: patient.disk, others: BTreeMap::from([(host, vec![key])]) };
    let found = kinds(judge.state(&mut open, &guest, None));
    expect("never written", found, vec![(Property::P2, "invented")])?;
    let token = guest.begin_write(unit, &[key], CACHED);
    expect("in flight", kinds(judge.state(&mut open, &guest, None)), vec![])?;
    guest.complete(token);
    flush(&mut guest);
    let found = kinds(judge.state(&mut open, &guest, None));
    expect("the old one is superseded", found, vec![(Property::P1, "lost-write")])
}

pub(crate) fn dirty_and_lost(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Dirty);
    let mut guest = patient.guest(mistake);
    expect("dirty", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])?;
    expect("its stage", judge.auditor().report().crashed_stage(), Stage::CrashedDirty)?;
    let after = judge.state(&mut patient.disk, &guest, Some(Stage::Repaired));
    expect("not repaired", after.is_empty(), false)?;
    let key = patient.disk.values.intern(&payload::unit(127, 3));
    done(&mut guest, 127, key);
    flush(&mut guest);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("lost", found, vec![(Property::P1, "lost-write")])
}

pub(crate) fn wrong_size(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Fresh);
    let mut guest = patient.guest(mistake);
    patient.put_u64(24, 96 << 10);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("another size", found, vec![(Property::P10, "virtual-size")])?;
    guest.begin_grow(192);
    expect("growing", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])?;
    // What lies past the end of a disk that came back too small is not lost once more.
    let key = patient.disk.values.intern(&payload::unit(127, 3));
    done(&mut guest, 127, key);
    flush(&mut guest);
    patient.put_u64(24, 32 << 10);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("too small", found, vec![(Property::P10, "virtual-size")])
}

pub(crate) fn contents_kept(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Fragmented);
    let guest = patient.guest(mistake);
    let cluster = patient.mapped()[0];
    let (unit, offset) = (cluster * 2, patient.l2(cluster) & !COPIED);
    let (mut before, mut after) = (Contents::default(), Contents::default());
    let other = patient.disk.values.intern(&payload::unit(unit, 7));
    let others = BTreeMap::from([(offset / UNIT as u64, vec![other])]);
    let mut open = Open { disk: patient.disk.clone(), others };
    judge.state(&mut open, &guest, None);
    judge.contents(&open, &mut before);
    expect("open", before.values(unit).count(), 2)?;
    judge.state(&mut patient.disk, &guest, None);
    judge.contents(&patient.disk, &mut after);
    let kind = |violation: Option<Violation>| violation.map(|v| (v.property, v.kind));
    let fine = kind(judge.p3_same_contents(&before, &after, &patient.disk));
    expect("one of two was chosen", fine, None)?;
    let widened = kind(judge.p3_same_contents(&after, &before, &patient.disk));
    expect("it was chosen", widened, Some((Property::P3, "content-changed")))?;
    patient.set_l2(cluster, 0);
    judge.state(&mut patient.disk, &guest, None);
    judge.contents(&patient.disk, &mut after);
    let gone = kind(judge.p3_same_contents(&before, &after, &patient.disk));
    expect("it is gone", gone, Some((Property::P3, "content-changed")))?;
    patient.put_u64(24, 32 << 10);
    judge.state(&mut patient.disk, &guest, None);
    judge.contents(&patient.disk, &mut after);
    let cut = kind(judge.p3_same_contents(&before, &after, &patient.disk));
    expect("the disk shrank", cut, Some((Property::P3, "size-changed")))
}

pub(crate) fn second_repair(mistake: Mistake) -> Outcome {
    let judge = Judge::with_mistake(mistake);
    let mut once = Patient::new(Initial::Leaky).disk;
    let mut twice = once.clone();
    let kind = |violation: Option<Violation>| violation.map(|v| (v.property, v.kind));
    expect("the same", kind(judge.p5_fixed_point(&mut once, &mut twice)), None)?;
    let broken = Some((Property::P5, "not-a-fixed-point"));
    twice.patch(5000, &[0xee]);
    expect("a byte", kind(judge.p5_fixed_point(&mut once, &mut twice)), broken)?;
    let mut longer = once.clone();
    longer.set_len(1 << 20);
    expect("the length", kind(judge.p5_fixed_point(&mut once, &mut longer)), broken)
}

pub(crate) fn clean_close(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Leaky);
    let guest = patient.guest(mistake);
    expect("as opened", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])?;
    let inherited = Inherited::of(judge.auditor());
    expect("as inherited", kinds(judge.closed(&mut patient.disk, &guest, &inherited)), vec![])?;
    let none = Inherited::default();
    let own = judge.closed(&mut patient.disk, &guest, &none);
    expect("its own leaks", own.is_empty(), false)?;
    let last = patient.disk.len() / 1024;
    patient.put_refcount(last, 1);
    let added = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("one more", added, vec![(Property::P6, "leak")])?;
    let mut allowing = Judge::with_mistake(mistake).allowing_leaks();
    let allowed = kinds(allowing.closed(&mut patient.disk, &guest, &inherited));
    expect("one more, of whoever may leak", allowed, vec![])?;
    patient.put_refcount(last, 0);
    let guest_cluster = patient.mapped()[0];
    let host = (patient.l2(guest_cluster) & !COPIED) / 1024;
    patient.put_refcount(host, 3);
    let deeper = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("a deeper one", deeper, vec![(Property::P6, "leak")])?;
    patient.put_refcount(host, 2);
    patient.put_u64(72, 1);
    let dirty = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("dirty", dirty, vec![(Property::P6, "dirty")])?;
    let mut patient = Patient::new(Initial::Bitmaps);
    let guest = patient.guest(mistake);
    judge.state(&mut patient.disk, &guest, None);
    let inherited = Inherited::of(judge.auditor());
    patient.put_u64(88, 0);
    let given_up = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("bitmaps given up", given_up, vec![])?;
    let directory = patient.directory() / 1024;
    patient.put_refcount(directory, 2);
    let deeper = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("a deeper leak of bitmaps", deeper, vec![(Property::P6, "leak")])
}

/// An image whose header has what nobody knows, all of which is there.
fn leftovers(mistake: Mistake) -> Result<(Judge, Patient, Guest), String> {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Leftovers);
    let guest = patient.guest(mistake);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("all there", found, vec![])?;
    Ok((judge, patient, guest))
}

pub(crate) fn features_stay(mistake: Mistake) -> Outcome {
    let lost = vec![(Property::P10, "feature-lost")];
    let (mut judge, mut patient, guest) = leftovers(mistake)?;
    let features = guest.made().compatible_features();
    expect("one that nobody knows", features > 1, true)?;
    patient.put_u64(80, features | 1 << 62);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("one more", found, vec![])?;
    patient.put_u64(80, features & 1);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("straight after a power cut", found, lost.clone())?;
    let found = kinds(judge.state(&mut patient.disk, &guest, Some(Stage::Repaired)));
    expect("repaired", found.contains(&lost[0]), true)?;
    let inherited = Inherited::of(judge.auditor());
    let found = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("closed", found, lost)
}

pub(crate) fn extensions_stay(mistake: Mistake) -> Outcome {
    let lost = vec![(Property::P10, "extension-lost")];
    let (mut judge, mut patient, guest) = leftovers(mistake)?;
    let (_, data) = guest.made().foreign_extension().ok_or("the image has none")?;
    // It is the first one: its type, its length, and its data.
    for at in [112, 116, 120 + data.len() as u64 - 1] {
        let mut changed = patient.disk.clone();
        changed.patch(at, &[0x5a]);
        let found = kinds(judge.state(&mut changed, &guest, None));
        expect("changed", found.contains(&lost[0]), true)?;
    }
    patient.put_u64(112, 0);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("gone", found, lost)
}

/// Goal: an autoclear bit that nobody knows is gone before a guest changes anything. Method: one that stays, before and after a write.
pub(crate) fn autoclear_goes(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Bitmaps);
    let guest = patient.guest(mistake);
    let stays = (Property::P4, "autoclear-bit-stays");
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("nothing is changed", found, vec![])?;
    // The first guest cluster: its bit is set in both bitmaps.
    let host = patient.l2(0) & !COPIED;
    patient.disk.patch(host + 512, &payload::unit(1, 1));
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("one unit is", found, vec![(Property::P2, "invented"), stays])?;
    patient.put_u64(88, 1);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("only the bitmaps are vouched for", found.contains(&stays), false)?;
    patient.put_u64(88, 1 << 62);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("another bit, and no bitmaps", found.contains(&stays), true)
}

pub(crate) fn changes_recorded(mistake: Mistake) -> Outcome {
    type Change = fn(&mut Patient);
    // The first of two bitmaps has a bit set for the first guest cluster only; clusters of 1 KiB have a bit each.
    let cases: [(&str, u64, Change, bool); 9] = [
        ("a cluster whose bit is set", 0, |_| {}, false),
        ("a cluster whose bit is not", 12, |_| {}, true),
        ("its bit is set", 12, |p| p.put_bit(12), false),
        ("a neighbour's bit is set", 12, |p| p.put_bit(11), true),
        ("no bitmap is vouched for", 12, |p| p.put_u64(88, 0), false),
        ("the bitmap is in use", 12, |p| p.put_flags(3), false),
        ("the bitmap follows nothing", 12, |p| p.put_flags(0), false),
        ("the bitmap is of ones", 12, |p| p.put_bits(1), false),
        ("the bitmap is of zeroes", 0, |p| p.put_bits(0), true),
    ];
    let mut judge = Judge::with_mistake(mistake);
    for (name, cluster, change, expected) in cases {
        let mut patient = Patient::new(Initial::Bitmaps);
        let guest = patient.guest(mistake);
        let host = patient.l2(cluster) & !COPIED;
        change(&mut patient);
        let whole = kinds(judge.state(&mut patient.disk, &guest, Some(Stage::OpenedClean)));
        let missed = (Property::P4, "bitmap-misses-a-change");
        expect(name, whole.contains(&missed), false)?;
        let unit = cluster * 2 + 1;
        patient.disk.patch(host + 512, &payload::unit(unit, 1));
        let found = kinds(judge.state(&mut patient.disk, &guest, Some(Stage::OpenedClean)));
        expect(name, found.contains(&missed), expected)?;
        // One of the values that the unit may hold is enough.
        let other = patient.disk.values.intern(&payload::unit(unit, payload::INITIAL));
        let mut open = Open { disk: patient.disk, others: [(host / 512 + 1, vec![other])].into() };
        let found = kinds(judge.state(&mut open, &guest, Some(Stage::OpenedClean)));
        expect(name, found.contains(&missed), expected)?;
    }
    Ok(())
}

pub(crate) fn claims(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Leaky);
    let guest = patient.guest(mistake);
    let kind = |violation: Option<Violation>| violation.map(|v| (v.property, v.kind));
    judge.state(&mut patient.disk, &guest, None);
    let lie = Some((Property::P8, "false-claim"));
    expect("leaks aside", kind(judge.p8_claim(Statement::Clean)), None)?;
    expect("leaks remain", kind(judge.p8_claim(Statement::Repaired)), lie)?;
    patient.put_refcount(3, 0);
    judge.state(&mut patient.disk, &guest, None);
    expect("too low", kind(judge.p8_claim(Statement::Clean)), lie)?;
    expect("it gave up", kind(judge.p8_claim(Statement::GaveUp)), None)?;
    expect("safe to write", kind(judge.p8_claim(Statement::Writable)), lie)?;
    // A leak loses nothing, and two guest clusters in one host cluster no more than they have.
    let mut patient = Patient::new(Initial::Fragmented);
    let guest = patient.guest(mistake);
    let (one, two) = (patient.mapped()[0], patient.mapped()[1]);
    let entry = patient.l2(one) & !COPIED;
    patient.set_l2(one, entry);
    patient.set_l2(two, entry);
    patient.put_refcount(entry / 1024, 2);
    judge.state(&mut patient.disk, &guest, None);
    expect("shared and counted", kind(judge.p8_claim(Statement::Writable)), None)?;
    patient.set_l2(two, entry | COPIED);
    judge.state(&mut patient.disk, &guest, None);
    expect("and written in place", kind(judge.p8_claim(Statement::Writable)), lie)
}

pub(crate) fn mappings(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Fragmented);
    let guest = patient.guest(mistake);
    judge.state(&mut patient.disk, &guest, None);
    let image = judge.auditor().image();
    let mut extents: Vec<Extent> = (0..64)
        .map(|cluster| {
            let guest = cluster * 1024;
            Extent { guest, length: 1024, to: image.mapping(cluster) }
        })
        .collect();
    let kind = |violation: Option<Violation>| violation.map(|v| (v.property, v.kind));
    expect("the same", kind(judge.p3_mapping_agrees(&extents)), None)?;
    let wrong = Some((Property::P3, "mapping-disagrees"));
    expect("cut short", kind(judge.p3_mapping_agrees(&extents[..63])), wrong)?;
    expect("a gap", kind(judge.p3_mapping_agrees(&extents[1..])), wrong)?;
    let at = extents.iter().position(|e| matches!(e.to, Mapping::Host(_))).expect("data");
    extents[at].to = Mapping::Zero;
    expect("elsewhere", kind(judge.p3_mapping_agrees(&extents)), wrong)
}

pub(crate) fn misread_story(mistake: Mistake) -> Outcome {
    let mut patient = Patient::new(Initial::Fresh);
    let mut guest = patient.guest(mistake);
    let key = patient.disk.values.intern(&payload::unit(4, 9));
    done(&mut guest, 4, key);
    let read = guest.begin_read(4, 1);
    let Err(misread) = guest.complete_read(read, &[ZERO]) else {
        return Err("a stale read passed".to_owned());
    };
    let text = p0_misread(&misread, &patient.disk, &guest).to_string();
    let wanted = "P0 misread: guest unit 4, not mapped: found zero, allowed unit 4 of write 9\n  \
                  at first: zero\n  \
                  t=1 puts unit 4 of write 9, completed t=2";
    expect("the report", text.as_str(), wanted)
}

/// Goal: a repair may decide what was open and add nothing, whatever the order in which values are shown. Method: one unit with
/// each set before and each set after.
pub(crate) fn sets_kept(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Fragmented);
    let guest = patient.guest(mistake);
    let cluster = patient.mapped()[0];
    let (unit, offset) = (cluster * 2 + 1, patient.l2(cluster) & !COPIED);
    let host = offset / UNIT as u64 + 1;
    let old = patient.disk.resolve(host);
    let [one, two] = [7, 8].map(|id| patient.disk.values.intern(&payload::unit(unit, id)));
    let contents = |others: &[ValueKey]| {
        let mut open =
            Open { disk: patient.disk.clone(), others: BTreeMap::from([(host, others.to_vec())]) };
        let mut contents = Contents::default();
        judge.state(&mut open, &guest, None);
        judge.contents(&open, &mut contents);
        contents
    };
    // What is on the disk is shown last, so a set with it in front has one value.
    let sets: [&[ValueKey]; 6] = [&[], &[one], &[two], &[one, two], &[two, one], &[old, one]];
    let all: Vec<_> = sets.map(contents).into();
    let values: Vec<Vec<_>> = all.iter().map(|contents| contents.values(unit).collect()).collect();
    expect("a set", values[3].clone(), vec![one, two, old])?;
    for (before, was) in all.iter().zip(&values) {
        for (after, is) in all.iter().zip(&values) {
            let added = is.iter().find(|key| !was.contains(key));
            let found = judge.p3_same_contents(before, after, &patient.disk);
            let place = found.map(|violation| (violation.place, violation.found));
            let wanted = added.map(|key| {
                let value = payload::decode(patient.disk.bytes(*key));
                (Place::Guest { unit, host: None }, Some(value))
            });
            expect(&format!("{is:?} after {was:?}"), place, wanted)?;
        }
    }
    Ok(())
}

/// Goal: a unit that may hold several values, none of them zero, may not hold zero. Method: an image that shows zeroes there, once
/// mapped and once not.
pub(crate) fn no_zero_among_several(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::new(Initial::Fragmented);
    let mut guest = patient.guest(mistake);
    let cluster = patient.mapped()[0];
    let offset = patient.l2(cluster) & !COPIED;
    let keys = [0, 1].map(|within| {
        let unit = cluster * 2 + within;
        patient.disk.values.intern(&payload::unit(unit, 5))
    });
    let write = guest.begin_write(cluster * 2, &keys, CACHED);
    guest.complete(write);
    expect("the old one", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])?;
    let invented = (Property::P2, "invented-zero");
    let mut zeroed = patient.disk.clone();
    zeroed.set(offset / UNIT as u64 + 1, &[0; UNIT]);
    let found = kinds(judge.state(&mut zeroed, &guest, None));
    expect("zeroes in the file", found, vec![invented])?;
    patient.put_refcount(offset / 1024, 0);
    for entry in [0, 1] {
        patient.set_l2(cluster, entry);
        let found = kinds(judge.state(&mut patient.disk, &guest, None));
        expect("zeroes in the table", found, vec![invented; 2])?;
    }
    Ok(())
}

/// Goal: a second repair is compared by bytes, in every value that a unit may hold.
pub(crate) fn second_repair_of_sets(mistake: Mistake) -> Outcome {
    let judge = Judge::with_mistake(mistake);
    let mut disk = Patient::new(Initial::Leaky).disk;
    let [one, two] = [7, 8].map(|id| disk.values.intern(&payload::unit(20, id)));
    let open = |others: &[ValueKey]| Open {
        disk: disk.clone(),
        others: BTreeMap::from([(20, others.to_vec())]),
    };
    let kind = |violation: Option<Violation>| violation.map(|v| (v.property, v.kind));
    let judged = |once: &[ValueKey], twice: &[ValueKey]| {
        kind(judge.p5_fixed_point(&mut open(once), &mut open(twice)))
    };
    let broken = Some((Property::P5, "not-a-fixed-point"));
    expect("the same set", judged(&[one, two], &[two, one]), None)?;
    expect("a part of it", judged(&[one, two], &[two]), None)?;
    expect("one more", judged(&[one], &[one, two]), broken)?;
    expect("another", judged(&[one], &[two]), broken)?;
    // In another store the same bytes have other keys, and the same keys are other bytes.
    let mut bytes = disk.to_bytes();
    let mut same = model::evidence::BytesEvidence::new(&[&[0xab; UNIT], &bytes[..]].concat());
    for unit in 0..bytes.len() / UNIT {
        let content: Unit = bytes[unit * UNIT..][..UNIT].try_into().expect("a unit");
        same.set(unit as u64, &content);
    }
    same.set_len(bytes.len() as u64);
    expect("another store", kind(judge.p5_fixed_point(&mut disk, &mut same)), None)?;
    bytes[9000] ^= 1;
    let mut other = model::evidence::BytesEvidence::new(&bytes);
    expect("a bit", kind(judge.p5_fixed_point(&mut disk, &mut other)), broken)
}

/// Goal: what a compressed cluster reads as is judged in every way in which its units may be, and that it can be read at all. Method: a
/// stream becomes another's, becomes none, and may become none, or give a cluster of zeroes.
pub(crate) fn streams(mistake: Mistake) -> Outcome {
    let geometry = Geometry { virtual_size: 32 << 10, ..KIB };
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(&geometry, Initial::Compressed);
    let guest = patient.guest(mistake);
    let found = kinds(judge.state(&mut patient.disk, &guest, Some(Stage::Closed)));
    expect("as built", found, vec![])?;
    let mut before = Contents::default();
    judge.contents(&patient.disk, &mut before);
    let image = judge.auditor().image();
    let extent = |cluster: u64| {
        let guest = cluster * 1024;
        Extent { guest, length: 1024, to: image.mapping(cluster) }
    };
    let mut extents: Vec<Extent> = (0..32).map(extent).collect();
    let agrees = |extents: &[Extent]| judge.p3_mapping_agrees(extents).map(|it| it.kind);
    expect("mapped as it is", agrees(&extents), None)?;
    let Mapping::Compressed(offset) = extents[0].to else { return Err("no stream".to_owned()) };
    for wrong in [Mapping::Zero, Mapping::Compressed(offset + 1), Mapping::Host(offset)] {
        extents[0].to = wrong;
        expect("mapped to something else", agrees(&extents), Some("mapping-disagrees"))?;
    }

    let (first, second) = (patient.l2(0), patient.l2(2));

    patient.set_l2(0, second);
    let found = kinds(judge.state(&mut patient.disk, &guest, Some(Stage::CrashedDirty)));
    let other = [(Property::P2, "other-unit"), (Property::P2, "invented-zero")];
    expect("another's", found.iter().any(|kind| other.contains(kind)), true)?;
    let mut after = Contents::default();
    judge.contents(&patient.disk, &mut after);
    let changed = judge.p3_same_contents(&before, &after, &patient.disk);
    expect("another's, after a repair", changed.map(|it| it.kind), Some("content-changed"))?;
    patient.set_l2(0, first);

    let unit = offset / UNIT as u64;
    let held = patient.disk.resolve(unit);
    let held = *patient.disk.bytes(held);
    patient.disk.patch(offset, &[0xff; 8]);
    let found = kinds(judge.state(&mut patient.disk, &guest, Some(Stage::Closed)));
    expect("none", found, vec![(Property::P2, "undecodable")])?;

    let broken = patient.disk.resolve(unit);
    patient.disk.set(unit, &held);
    let mut open = Open { disk: patient.disk, others: BTreeMap::from([(unit, vec![broken])]) };
    let found = kinds(judge.state(&mut open, &guest, Some(Stage::Closed)));
    expect("none, perhaps", found, vec![(Property::P2, "undecodable")])
}
