//! The judge, on images whose guest data is in a file of its own.

use std::collections::BTreeMap;

use model::audit::Auditor;
use model::build::Initial;
use model::evidence::{BytesEvidence, DATA_FIRST, Evidence, Readable};
use model::finding::{Property, Stage};
use model::guest::Guest;
use model::image::{COPIED, Mapping};
use model::judge::{Contents, Extent, Judge, Place, Violation};
use model::mistake::Mistake;
use model::op::Geometry;
use model::payload::{self, UNIT};

use crate::guest::{CACHED, ZERO, flush};
use crate::patient::{EXTENDED, PLAIN, Patient, RAW};
use crate::states::{Open, kinds};
use crate::{Outcome, expect};

const START: u64 = DATA_FIRST * UNIT as u64;

/// What is wrong, and at which guest unit.
fn told<E: Evidence>(judge: &mut Judge, disk: &mut E, guest: &Guest) -> Vec<(&'static str, Place)> {
    let found = judge.state(disk, guest, Some(Stage::Closed)).iter();
    found.map(|violation| (violation.kind, violation.place)).collect()
}

/// Where a guest unit is in the data file.
fn in_data(unit: u64) -> Place {
    Place::Guest { unit, host: Some(START + unit * UNIT as u64) }
}

fn stale(patient: &mut Patient, unit: u64) {
    patient.disk.set(DATA_FIRST + unit, &payload::unit(unit, payload::STALE));
}

/// Goal: what is mapped is read from the data file, the first cluster too, and nothing else of that file is. Method: each of several units
/// of it is spoilt; entries lead elsewhere; the file ends early, or is not there.
pub(crate) fn data_read_where_it_is(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let layered = Geometry { below: Some((40 << 10) + 512), ..PLAIN };
    for geometry in [PLAIN, layered] {
        let mut patient = Patient::of(&geometry, Initial::Fragmented);
        let guest = patient.guest(mistake);
        expect("as built", told(&mut judge, &mut patient.disk, &guest), vec![])?;
        let mapped = |cluster| judge.auditor().image().mapping(cluster);
        expect("the first cluster", mapped(0), Mapping::Host(START))?;
        expect("another", mapped(30), Mapping::Host(START + (30 << 10)))?;
        expect(
            "nowhere",
            [1, 10, 20].map(mapped),
            [Mapping::Unallocated, Mapping::Zero, Mapping::Zero],
        )?;
        // Units 2 and 3 are mapped nowhere, 20 and 40 marked as zero: whatever is there, nobody reads it.
        for unit in [2, 3, 20, 40] {
            stale(&mut patient, unit);
            expect("not read", told(&mut judge, &mut patient.disk, &guest), vec![])?;
        }
        for unit in [0, 1, 60, 61] {
            let mut spoilt = Patient::of(&geometry, Initial::Fragmented);
            let guest = spoilt.guest(mistake);
            stale(&mut spoilt, unit);
            let found = told(&mut judge, &mut spoilt.disk, &guest);
            expect("read", found, vec![("stale-bytes", in_data(unit))])?;
        }
    }

    let mut patient = Patient::of(&PLAIN, Initial::Fragmented);
    let guest = patient.guest(mistake);
    patient.set_l2(0, 30 << 10 | COPIED);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    let other = (Property::P2, "other-unit");
    expect("elsewhere", found, vec![(Property::P4, "data-file-offset"), other, other])?;
    patient.set_l2(0, 0);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("gone", found, vec![(Property::P2, "invented-zero"); 2])?;
    patient.set_l2(0, COPIED);

    // The last cluster with data is number 62.
    let mut short = patient.disk.clone();
    short.set_data_len((62 << 10) + 512);
    let found = kinds(judge.state(&mut short, &guest, None));
    let wanted = vec![(Property::P4, "data-file-short"), (Property::P2, "invented-zero")];
    expect("cut", found, wanted)?;
    let mut alone = BytesEvidence::new(&patient.disk.to_bytes());
    let found = kinds(judge.state(&mut alone, &guest, None));
    expect("no data file", found, vec![(Property::P4, "unsupported")])?;

    // What a bitmap has to have is looked for in the data file.
    let mut patient = Patient::of(&PLAIN, Initial::Bitmaps);
    let guest = patient.guest(mistake);
    patient.disk.set(DATA_FIRST + 25, &payload::unit(25, 1));
    let found = told(&mut judge, &mut patient.disk, &guest);
    let wanted = ["invented", "autoclear-bit-stays", "bitmap-misses-a-change"];
    let wanted = wanted.map(|kind| (kind, in_data(25))).to_vec();
    expect("not recorded", found, wanted)
}

/// Goal: a raw data file holds what the guest reads where that is not read from it too, in every value that a unit may hold; what is
/// behind the disk is nobody's.
pub(crate) fn raw_view(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let extended = Geometry { data_file: RAW.data_file, ..EXTENDED };
    for (geometry, nowhere) in [(RAW, [2, 3, 20, 40]), (extended, [2, 32, 64, 128])] {
        let mut patient = Patient::of(&geometry, Initial::Fragmented);
        let guest = patient.guest(mistake);
        expect("as built", told(&mut judge, &mut patient.disk, &guest), vec![])?;
        for unit in nowhere {
            let mut spoilt = Patient::of(&geometry, Initial::Fragmented);
            let guest = spoilt.guest(mistake);
            let place = judge.auditor().image().piece(unit).1;
            expect("not in the file", matches!(place, Mapping::Host(_)), false)?;
            stale(&mut spoilt, unit);
            let found = told(&mut judge, &mut spoilt.disk, &guest);
            expect("seen in the file only", found, vec![("raw-view", in_data(unit))])?;
            let found = kinds(judge.state(&mut spoilt.disk, &guest, None));
            expect("its property", found, vec![(Property::P2, "raw-view")])?;
            let mut known = Open { disk: spoilt.disk, others: BTreeMap::new() };
            let found = told(&mut judge, &mut known, &guest);
            expect("seen though it is decided", found, vec![("raw-view", in_data(unit))])?;
        }
        let end = geometry.virtual_size;
        patient.disk.set_data_len(end + 1024);
        stale(&mut patient, geometry.units());
        expect("behind the disk", told(&mut judge, &mut patient.disk, &guest), vec![])?;
    }

    // Guest cluster 1 is read from the place of 30, and its own holds zeroes, which are allowed.
    let mut patient = Patient::of(&RAW, Initial::Fragmented);
    let guest = patient.guest(mistake);
    patient.set_l2(1, 30 << 10 | COPIED);
    let elsewhere = |unit| Place::Guest { unit, host: Some(START + (58 + unit) * UNIT as u64) };
    let mut wanted = vec![("data-file-offset", None)];
    wanted.extend([2, 3].map(|unit| ("other-unit", Some(elsewhere(unit)))));
    wanted.extend([2, 3].map(|unit| ("views-differ", Some(in_data(unit)))));
    let guest_places = |found: Vec<(&'static str, Place)>| -> Vec<_> {
        let place = |place| Some(place).filter(|place| matches!(place, Place::Guest { .. }));
        found.into_iter().map(|(kind, at)| (kind, place(at))).collect()
    };
    let found = guest_places(told(&mut judge, &mut patient.disk, &guest));
    expect("read elsewhere", found, wanted.clone())?;
    let mut known = Open { disk: patient.disk, others: BTreeMap::new() };
    let found = guest_places(told(&mut judge, &mut known, &guest));
    expect("read elsewhere, and decided", found, wanted)?;

    // Guest cluster 30, units 60 and 61, is zeroed, and its entry says so.
    let mut patient = Patient::of(&RAW, Initial::Fragmented);
    let mut guest = patient.guest(mistake);
    let zeroes = guest.begin_zeroes(60, 2);
    guest.complete(zeroes);
    let entry = patient.l2(30);
    patient.set_l2(30, entry | 1);
    let differ = |units: &[u64]| -> Vec<_> {
        units.iter().map(|unit| ("views-differ", in_data(*unit))).collect()
    };
    let found = told(&mut judge, &mut patient.disk, &guest);
    expect("either is allowed, but not both", found, differ(&[60, 61]))?;
    flush(&mut guest);
    let found = told(&mut judge, &mut patient.disk, &guest);
    let lost = vec![("raw-view", in_data(60)), ("raw-view", in_data(61))];
    expect("lost in the file only", found, lost)?;
    let old = patient.disk.resolve(DATA_FIRST + 61);
    for unit in [60, 61] {
        patient.disk.set(DATA_FIRST + unit, &[0; UNIT]);
    }
    expect("zeroed there too", told(&mut judge, &mut patient.disk, &guest), vec![])?;
    let others = BTreeMap::from([(DATA_FIRST + 61, vec![old])]);
    let mut open = Open { disk: patient.disk.clone(), others };
    let found = told(&mut judge, &mut open, &guest);
    expect("zeroed there, perhaps", found, vec![("raw-view", in_data(61))])?;

    // A write to a cluster that is mapped nowhere: as long as it is not, the data must not be there.
    let written = patient.disk.values.intern(&payload::unit(2, 5));
    let write = guest.begin_write(2, &[written], CACHED);
    let others = BTreeMap::from([(DATA_FIRST + 2, vec![written])]);
    let mut open = Open { disk: patient.disk, others };
    expect("not mapped", told(&mut judge, &mut open, &guest), differ(&[2]))?;
    let entry_at = Patient::of(&RAW, Initial::Fragmented).l2_at(1);
    open.disk.patch(entry_at, &u64::to_be_bytes(1 << 10 | COPIED));
    expect("mapped", told(&mut judge, &mut open, &guest), vec![])?;
    guest.complete(write);
    flush(&mut guest);
    let lost = kinds(judge.state(&mut open, &guest, None));
    expect("lost, and told once", lost, vec![(Property::P1, "lost-write")])
}

/// Goal: a repair may decide what a raw data file holds, and not change it, nor where nobody reads it through the image.
pub(crate) fn raw_view_kept(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(&RAW, Initial::Fragmented);
    let guest = patient.guest(mistake);
    let old = patient.disk.values.intern(&payload::unit(2, payload::STALE));
    let mut spoilt = patient.disk.clone();
    spoilt.set(DATA_FIRST + 2, &payload::unit(2, payload::STALE));
    let mut open =
        Open { disk: patient.disk.clone(), others: BTreeMap::from([(DATA_FIRST + 2, vec![old])]) };
    let [mut zeroes, mut stale, mut either] = [(); 3].map(|()| Contents::default());
    contents(&mut judge, &mut patient.disk, &guest, &mut zeroes);
    contents(&mut judge, &mut spoilt, &guest, &mut stale);
    contents(&mut judge, &mut open, &guest, &mut either);
    let kept = |before: &Contents, after: &Contents| {
        judge.p3_same_contents(before, after, &spoilt).map(|v| (v.kind, v.place))
    };
    let changed = Some(("raw-view-changed", Place::Guest { unit: 2, host: None }));
    expect("changed", kept(&zeroes, &stale), changed)?;
    expect("changed back", kept(&stale, &zeroes), changed)?;
    expect("opened", kept(&zeroes, &either), changed)?;
    expect("decided", (kept(&either, &stale), kept(&either, &zeroes)), (None, None))?;
    // Of a plain one nobody reads it.
    let mut patient = Patient::of(&PLAIN, Initial::Fragmented);
    let guest = patient.guest(mistake);
    let [mut before, mut after] = [(); 2].map(|()| Contents::default());
    contents(&mut judge, &mut patient.disk, &guest, &mut before);
    patient.disk.set(DATA_FIRST + 2, &[7; UNIT]);
    contents(&mut judge, &mut patient.disk, &guest, &mut after);
    let same = judge.p3_same_contents(&before, &after, &patient.disk);
    expect("plain", same.map(|v| v.kind), None)
}

fn contents<E: Evidence>(judge: &mut Judge, disk: &mut E, guest: &Guest, into: &mut Contents) {
    judge.state(disk, guest, None);
    judge.contents(disk, into);
}

/// Goal: a second repair leaves a data file alone as it does the image.
pub(crate) fn data_file_kept(mistake: Mistake) -> Outcome {
    let judge = Judge::with_mistake(mistake);
    let mut once = Patient::of(&PLAIN, Initial::Leaky).disk;
    let place = |violation: Option<Violation>| violation.map(|v| (v.property, v.kind, v.place));
    let broken = |place| Some((Property::P5, "not-a-fixed-point", place));
    let mut twice = once.clone();
    expect("the same", place(judge.p5_fixed_point(&mut once, &mut twice)), None)?;
    twice.patch(START + (64 << 10) - 1, &[0xee]);
    let unit = DATA_FIRST + 127;
    let found = place(judge.p5_fixed_point(&mut once, &mut twice));
    expect("a byte", found, broken(Place::File { unit }))?;
    let mut longer = once.clone();
    longer.set_data_len(1 << 20);
    let found = place(judge.p5_fixed_point(&mut once, &mut longer));
    expect("the length", found, broken(Place::Image))
}

/// Goal: what an image says of its data file stays what it was made with.
pub(crate) fn data_file_named(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    // The name's extension is the first one, at 112.
    let cases: [(&str, Geometry, u64, u64); 5] = [
        ("raw no longer", RAW, 88, 0),
        ("raw of a sudden", PLAIN, 88, 2),
        ("another name", PLAIN, 120, 0x6461_7461_2e72_6178),
        ("no name", PLAIN, 112, 0x4441_5442_0000_0008),
        ("a shorter name", PLAIN, 112, 0x4441_5441_0000_0007),
    ];
    for (name, geometry, at, value) in cases {
        let mut patient = Patient::of(&geometry, Initial::Fresh);
        let guest = patient.guest(mistake);
        patient.put_u64(at, value);
        let found = kinds(judge.state(&mut patient.disk, &guest, Some(Stage::Closed)));
        expect(name, found, vec![(Property::P10, "data-file")])?;
    }
    let mut patient = Patient::of(&PLAIN, Initial::Fresh);
    let guest = patient.guest(mistake);
    patient.put_u64(72, 0);
    let found = judge.state(&mut patient.disk, &guest, Some(Stage::Closed));
    let stories: Vec<_> = found.iter().map(|violation| violation.to_string()).collect();
    let wanted = "P10 data-file: image\n  its data file is none, not Plain Some(\"data.raw\")";
    expect("no data file any more", stories, vec![wanted.to_owned()])?;
    expect("and no name", judge.auditor().image().data_name(), None)?;
    let guest = Guest::new(&[ZERO; 128], crate::guest::PROMISES).with_mistake(mistake);
    patient.put_u64(72, 4);
    let found = kinds(judge.state(&mut patient.disk, &guest, Some(Stage::Closed)));
    expect("a data file of a sudden", found, vec![(Property::P10, "data-file")])
}

/// Goal: units of the data file have names, and the subject's own mapping is compared with where they are.
#[test]
fn units_of_a_data_file_are_named_and_mapped() {
    let mut judge = Judge::default();
    let mut patient = Patient::of(&PLAIN, Initial::Fragmented);
    let guest = patient.guest(Mistake::None);
    patient.disk.set_data_len((64 << 10) + 512);
    judge.state(&mut patient.disk, &guest, None);
    let image = judge.auditor().image();
    let label = |offset: u64| image.label(START + offset).to_string();
    // Guest cluster 0 is mapped, 1 is not, and 64 is behind the disk.
    let offsets = [0, 1024 + 600, 64 << 10, (64 << 10) + 512, 1 << 30];
    let names = ["data[0]#0", "data[1]#1", "data[64]#0", "beyond-end", "beyond-end"];
    assert_eq!(offsets.map(label), names);
    assert_eq!(image.label(START - 1).to_string(), "beyond-end");
    for unit in [2, 3] {
        let (region, units) = image.region(DATA_FIRST + unit);
        let wanted = DATA_FIRST + unit..DATA_FIRST + 4;
        assert_eq!((region.to_string().as_str(), units), ("data[1]", wanted));
    }
    let cluster = |cluster: u64| {
        let guest = cluster * 1024;
        // Who maps it knows its place in the data file only.
        let to = match image.mapping(cluster) {
            Mapping::Host(at) => Mapping::Host(at - START),
            other => other,
        };
        Extent { guest, length: 1024, to }
    };
    let mut extents: Vec<_> = (0..64).map(cluster).collect();
    assert_eq!(judge.p3_mapping_agrees(&extents), None);
    extents[30].to = Mapping::Host(31 << 10);
    let found = judge.p3_mapping_agrees(&extents).map(|violation| violation.place);
    assert_eq!(found, Some(in_data(60)));
    let totals = judge.auditor().report().totals;
    assert!(totals.allocated_clusters > 20 && totals.image_end_offset < 64 << 10, "{totals:?}");
}

/// Goal: what is wrong with a data file is told in numbers, and an image whose entry leads elsewhere in it can be written all the same, as
/// with any other entry that makes no sense.
#[test]
fn findings_of_data_files_are_told() {
    let mut patient = Patient::of(&PLAIN, Initial::Fragmented);
    patient.set_l2(1, 3 << 10 | COPIED);
    patient.disk.set_data_len((64 << 10) - 512);
    let mut auditor = Auditor::default();
    let report = auditor.audit(&mut patient.disk);
    let texts: Vec<_> = report.findings.iter().map(|finding| finding.to_string()).collect();
    let wanted = [
        "the data file ends at 0xfe00, before the disk at 0x10000",
        "data[1]: entry 0x8000000000000c00 is not for 0x400, where the guest has it",
    ];
    assert_eq!(texts, wanted);
    let writable: Vec<_> = report.violations(Stage::Writable).map(|(_, f)| f.name()).collect();
    assert_eq!(writable, ["data-file-short"]);
}
