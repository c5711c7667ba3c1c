//! The judge, on encrypted images: guest data is judged as the guest reads it, and the key is where it was.

use std::collections::BTreeMap;

use model::audit::Auditor;
use model::build::Initial;
use model::crypt::{Cipher, LUKS_BYTES, luks_units};
use model::evidence::{DATA_FIRST, Evidence, Readable, ValueKey};
use model::finding::{Property, Stage};
use model::guest::Guest;
use model::image::{COPIED, Mapping};
use model::judge::{Contents, Judge, Place, Violation};
use model::mistake::Mistake;
use model::op::{Encryption, Geometry};
use model::payload::{self, UNIT, Unit};
use proptest::prelude::*;

use crate::guest::{CACHED, PROMISES, ZERO, flush};
use crate::patient::{AES, EXTENDED, KIB, LUKS, PLAIN, Patient};
use crate::states::{Open, kinds};
use crate::{Outcome, expect};

/// Both ciphers, in one file and with data in a file of its own, with subclusters, and over a layer.
fn shapes() -> impl Iterator<Item = Geometry> {
    [Encryption::Aes, Encryption::Luks].into_iter().flat_map(|kind| {
        let layered = Geometry { below: Some((40 << 10) + 512), ..KIB };
        [KIB, PLAIN, EXTENDED, layered]
            .map(|geometry| Geometry { encryption: Some(kind), ..geometry })
    })
}

/// What has these bytes for a guest unit, in a unit of the evidence.
fn enciphered(geometry: &Geometry, unit: u64, at: u64, plain: &Unit) -> Unit {
    let encryption = geometry.encryption.expect("it is encrypted");
    let first = if geometry.data_file.is_some() { DATA_FIRST } else { 0 };
    let mut bytes = *plain;
    Cipher::of(encryption)
        .encipher(if encryption.by_host() { at - first } else { unit }, &mut bytes);
    bytes
}

/// Where in the evidence a guest unit is that has data.
fn place_of(judge: &Judge, unit: u64) -> u64 {
    match judge.auditor().image().piece(unit) {
        (piece, Mapping::Host(offset)) => offset / UNIT as u64 + unit - piece.start,
        other => panic!("unit {unit} is in no host cluster: {other:?}"),
    }
}

pub(crate) fn told<E: Evidence>(
    judge: &mut Judge,
    disk: &mut E,
    guest: &Guest,
) -> Vec<(&'static str, Place)> {
    let found = judge.state(disk, guest, Some(Stage::Closed)).iter();
    found.map(|violation| (violation.kind, violation.place)).collect()
}

fn seen(kind: &'static str, unit: u64, at: u64) -> (&'static str, Place) {
    (kind, Place::Guest { unit, host: Some(at * UNIT as u64) })
}

/// Goal: what the guest reads is judged, whole sets of it, and nothing that deciphers to what nobody wrote passes. Method: of each shape two
/// units of data, which change places, lose their cipher, were never written, or may hold something else besides.
pub(crate) fn units_deciphered(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    for geometry in shapes() {
        let mut patient = Patient::of(&geometry, Initial::Fragmented);
        let mut guest = patient.guest(mistake);
        let what = |what: &str| format!("{what}, {geometry:?}");
        expect(&what("as built"), told(&mut judge, &mut patient.disk, &guest), vec![])?;
        // The same once more, from memory.
        expect(&what("again"), told(&mut judge, &mut patient.disk, &guest), vec![])?;
        let [one, two] = [0, 1];
        let [first, second] = [one, two].map(|unit| place_of(&judge, unit));
        let [a, b] = [first, second].map(|at| {
            let key = patient.disk.resolve(at);
            *patient.disk.bytes(key)
        });
        expect(&what("enciphered"), payload::is_payload(&a) || payload::is_payload(&b), false)?;
        let invented = |unit, at| seen("invented", unit, at);

        let mut swapped = patient.disk.clone();
        swapped.set(first, &b);
        swapped.set(second, &a);
        let found = told(&mut judge, &mut swapped, &guest);
        expect(&what("swapped"), found, vec![invented(one, first), invented(two, second)])?;
        for bytes in [payload::unit(two, payload::INITIAL), payload::ZEROES, [7; UNIT]] {
            let mut spoilt = patient.disk.clone();
            spoilt.set(second, &bytes);
            let found = told(&mut judge, &mut spoilt, &guest);
            let mut wanted = vec![invented(two, second)];
            if payload::is_payload(&bytes) {
                wanted.push(("in-clear", Place::File { unit: second }));
            }
            expect(&what("not enciphered"), found, wanted)?;
        }
        let mut zeroes = patient.disk.clone();
        zeroes.set(first, &enciphered(&geometry, one, first, &payload::ZEROES));
        let found = told(&mut judge, &mut zeroes, &guest);
        expect(&what("zeroes"), found, vec![seen("invented-zero", one, first)])?;

        // A write that may be there, and one that nobody began.
        let written = patient.disk.values.intern(&payload::unit(one, 5));
        let [mine, nobodys] = [5, 6].map(|id| {
            let bytes = enciphered(&geometry, one, first, &payload::unit(one, id));
            patient.disk.values.intern(&bytes)
        });
        let write = guest.begin_write(one, &[written], CACHED);
        let open = |others: &[ValueKey]| Open {
            disk: patient.disk.clone(),
            others: BTreeMap::from([(first, others.to_vec())]),
        };
        let found = told(&mut judge, &mut open(&[mine]), &guest);
        expect(&what("in flight"), found, vec![])?;
        for others in [&[nobodys][..], &[mine, nobodys], &[nobodys, mine]] {
            let found = told(&mut judge, &mut open(others), &guest);
            expect(&what("one of several"), found, vec![invented(one, first)])?;
        }
        guest.complete(write);
        flush(&mut guest);
        let found = told(&mut judge, &mut open(&[mine]), &guest);
        expect(&what("flushed"), found, vec![seen("lost-write", one, first)])?;
        let found = kinds(judge.state(&mut open(&[mine]), &guest, None));
        expect(&what("its property"), found, vec![(Property::P1, "lost-write")])?;
    }
    Ok(())
}

/// Goal: a cipher goes by one number, the guest's or the host's. Method: mappings that change places, and clusters copied as they are.
pub(crate) fn numbers_of_units(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    for (geometry, elsewhere, copied) in
        [(AES, "invented", None), (LUKS, "other-unit", Some("invented"))]
    {
        let mut patient = Patient::of(&geometry, Initial::Fragmented);
        let guest = patient.guest(mistake);
        let (one, two) = (patient.mapped()[0], patient.mapped()[1]);
        let (first, second) = (patient.l2(one), patient.l2(two));
        patient.set_l2(one, second);
        patient.set_l2(two, first);
        let found = kinds(judge.state(&mut patient.disk, &guest, None));
        expect("swapped mappings", found, vec![(Property::P2, elsewhere); 4])?;
        patient.set_l2(one, first);
        patient.set_l2(two, second);

        let held = [0, 1].map(|within| {
            let key = patient.disk.resolve((first & !COPIED) / UNIT as u64 + within);
            *patient.disk.bytes(key)
        });
        patient.append(one);
        let at = (patient.l2(one) & !COPIED) / UNIT as u64;
        (at..).zip(&held).for_each(|(at, bytes)| patient.disk.set(at, bytes));
        let found = kinds(judge.state(&mut patient.disk, &guest, None));
        let wanted = copied.map(|kind| vec![(Property::P2, kind); 2]).unwrap_or_default();
        expect("copied as it is", found, wanted)?;
        for within in 0..2 {
            let unit = one * 2 + within;
            let plain = payload::unit(unit, payload::INITIAL);
            patient.disk.set(at + within, &enciphered(&geometry, unit, at + within, &plain));
        }
        let found = kinds(judge.state(&mut patient.disk, &guest, None));
        expect("enciphered again", found, vec![])?;
    }
    // Guest cluster 20 is marked as zero and has a host cluster, with stale bytes that say so when they are read.
    for geometry in [AES, LUKS] {
        let mut patient = Patient::of(&geometry, Initial::Fragmented);
        let guest = patient.guest(mistake);
        let marked = (0..64).find(|guest| patient.l2(*guest) & 1 == 1 && patient.l2(*guest) > 1);
        let marked = marked.ok_or("no zeroes with a host cluster")?;
        let entry = patient.l2(marked);
        patient.set_l2(marked, entry & !1);
        let found = kinds(judge.state(&mut patient.disk, &guest, None));
        expect("no mark", found, vec![(Property::P2, "stale-bytes"); 2])?;
    }
    Ok(())
}

/// Goal: what a value deciphers to is that of this store. Method: two forks of one store, in which one key has two contents.
pub(crate) fn forks_deciphered(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(&LUKS, Initial::Fragmented);
    let mut guest = patient.guest(mistake);
    judge.state(&mut patient.disk, &guest, None);
    let at = place_of(&judge, 0);
    let written = patient.disk.values.intern(&payload::unit(0, 5));
    guest.begin_write(0, &[written], CACHED);
    let [mut good, mut bad] = [5, 6].map(|id| {
        let mut fork = patient.disk.clone();
        fork.set(at, &enciphered(&LUKS, 0, at, &payload::unit(0, id)));
        fork
    });
    expect("one key", good.resolve(at), bad.resolve(at))?;
    expect("good", told(&mut judge, &mut good, &guest), vec![])?;
    expect("bad", told(&mut judge, &mut bad, &guest), vec![seen("invented", 0, at)])?;
    expect("good again", told(&mut judge, &mut good, &guest), vec![])
}

/// Goal: contents are compared as the guest reads them. Method: a cluster moves, and has other bytes for the same data; then it holds other
/// data, or what nobody wrote, or is zeroed.
pub(crate) fn deciphered_contents_kept(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(&LUKS, Initial::Fragmented);
    let guest = patient.guest(mistake);
    let mut contents = |disk: &mut model::evidence::BytesEvidence| {
        let mut contents = Contents::default();
        judge.state(disk, &guest, None);
        judge.contents(disk, &mut contents);
        contents
    };
    let before = contents(&mut patient.disk);
    let cluster = patient.mapped()[0];
    let unit = cluster * 2 + 1;
    let plain = [0, 1].map(|within| payload::unit(cluster * 2 + within, payload::INITIAL));
    let key = patient.disk.values.intern(&plain[1]);
    expect("as the guest reads it", before.values(unit).collect(), vec![key])?;

    patient.append(cluster);
    let at = (patient.l2(cluster) & !COPIED) / UNIT as u64;
    let bytes =
        |within: u64, plain: &Unit| enciphered(&LUKS, cluster * 2 + within, at + within, plain);
    patient.disk.set(at, &bytes(0, &plain[0]));
    patient.disk.set(at + 1, &bytes(1, &plain[1]));
    let moved = contents(&mut patient.disk);
    let mut garbage = Vec::new();
    for held in [[7; UNIT], [8; UNIT]] {
        let mut spoilt = patient.disk.clone();
        spoilt.set(at + 1, &held);
        garbage.push(contents(&mut spoilt));
    }
    let mut zeroed = patient.disk.clone();
    zeroed.set(at + 1, &bytes(1, &payload::ZEROES));
    let zeroed = contents(&mut zeroed);
    expect("nobody's is shown as zeroes", garbage[0].values(unit).collect(), vec![ZERO])?;
    let judge = Judge::with_mistake(mistake);
    let changed = |before: &Contents, after: &Contents| {
        let found = judge.p3_same_contents(before, after, &patient.disk);
        found.map(|violation| (violation.kind, violation.place))
    };
    let wanted = Some(("content-changed", Place::Guest { unit, host: None }));
    expect("moved", changed(&before, &moved), None)?;
    for (what, before, after) in [
        ("zeroed", &moved, &zeroed),
        ("spoilt", &moved, &garbage[0]),
        ("mended", &garbage[0], &moved),
        ("nobody's, zeroed", &garbage[0], &zeroed),
        ("zeroes, spoilt", &zeroed, &garbage[0]),
        ("nobody's, and somebody else's", &garbage[0], &garbage[1]),
    ] {
        expect(what, changed(before, after), wanted)?;
    }
    expect("nobody's, and the same", changed(&garbage[0], &garbage[0]), None)
}

/// Goal: a bitmap that is up to date has what a guest wrote, and not what was only enciphered.
pub(crate) fn changes_of_encrypted_data(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    for geometry in [AES, LUKS] {
        let mut patient = Patient::of(&geometry, Initial::Bitmaps);
        let guest = patient.guest(mistake);
        expect("as built", told(&mut judge, &mut patient.disk, &guest), vec![])?;
        let at = place_of(&judge, 25);
        patient.disk.set(at, &enciphered(&geometry, 25, at, &payload::unit(25, 1)));
        let found = told(&mut judge, &mut patient.disk, &guest);
        let wanted = ["invented", "autoclear-bit-stays", "bitmap-misses-a-change"];
        let wanted = wanted.map(|kind| seen(kind, 25, at)).to_vec();
        expect("not recorded", found, wanted)?;
    }
    Ok(())
}

/// Goal: an image stays encrypted as it was, and keeps its key: every unit of its LUKS header that is in use, whatever it may hold.
pub(crate) fn encryption_kept(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let lost = (Property::P10, "encryption");
    let header = (Property::P4, "header");
    type Damage = (&'static str, Geometry, fn(&mut Patient), Vec<(Property, &'static str)>);
    let cases: [Damage; 8] = [
        ("AES, no longer", AES, |p| p.disk.patch(35, &[0]), vec![lost]),
        ("AES of a sudden", KIB, |p| p.disk.patch(35, &[1]), vec![lost]),
        ("LUKS, no longer", LUKS, |p| p.disk.patch(35, &[0]), vec![header, lost]),
        ("LUKS became AES", LUKS, |p| p.disk.patch(35, &[1]), vec![header, lost]),
        ("LUKS of a sudden", KIB, |p| p.disk.patch(35, &[2]), vec![header, lost]),
        ("no extension", LUKS, |p| p.disk.patch(112, &[1]), vec![header, lost]),
        ("a shorter header", LUKS, |p| p.put_u64(128, LUKS_BYTES - 1), vec![lost]),
        // Its last cluster is full to the end.
        (
            "a longer header",
            LUKS,
            |p| p.put_u64(128, LUKS_BYTES + 1),
            vec![(Property::P4, "overlap"), (Property::P4, "refcount-too-low"), lost],
        ),
    ];
    for (name, geometry, damage, mut wanted) in cases {
        let mut patient = Patient::of(&geometry, Initial::Fresh);
        let guest = patient.guest(mistake);
        expect(name, kinds(judge.state(&mut patient.disk, &guest, None)), vec![])?;
        damage(&mut patient);
        let mut found = kinds(judge.state(&mut patient.disk, &guest, None));
        found.sort_unstable();
        wanted.sort_unstable();
        expect(name, found, wanted)?;
    }
    let mut patient = Patient::of(&AES, Initial::Fresh);
    let guest = patient.guest(mistake);
    patient.disk.patch(35, &[0]);
    let found = judge.state(&mut patient.disk, &guest, None).first().map(Violation::to_string);
    let wanted = "P10 encryption: image\n  its data is not enciphered, and was enciphered with AES";
    expect("the report", found.as_deref(), Some(wanted))?;

    let mut patient = Patient::of(&LUKS, Initial::Fragmented);
    let guest = patient.guest(mistake);
    let start = patient.u64_at(120);
    // The first and the last byte of the fields, and of the material of the slot in use.
    let bytes = [0, 591, 4096, 4096 + 128_000 - 1];
    for at in bytes {
        let mut spoilt = patient.disk.clone();
        let unit = (start + at) / UNIT as u64;
        let key = spoilt.resolve(unit);
        let held = spoilt.bytes(key)[(at % UNIT as u64) as usize];
        spoilt.patch(start + at, &[held ^ 1]);
        let found = told(&mut judge, &mut spoilt, &guest);
        expect("a byte", found, vec![("encryption", Place::File { unit })])?;
        let other = patient.disk.values.intern(&[at as u8; UNIT]);
        let others = BTreeMap::from([(unit, vec![other])]);
        let mut open = Open { disk: patient.disk.clone(), others };
        let found = told(&mut judge, &mut open, &guest);
        expect("perhaps", found, vec![("encryption", Place::File { unit })])?;
    }
    // Behind the fields, and where the next slot would have its material.
    for at in [1024, 4096 + 128_000, LUKS_BYTES - 1] {
        patient.disk.patch(start + at, &[0xee]);
    }
    expect("not in use", told(&mut judge, &mut patient.disk, &guest), vec![])?;
    let guest = Guest::new(&[ZERO; 128], PROMISES).with_mistake(mistake);
    let mut patient = Patient::of(&AES, Initial::Fresh);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("made without", found, vec![lost])
}

/// Goal: each cluster of a LUKS header is counted.
pub(crate) fn luks_header_counted(mistake: Mistake) -> Outcome {
    let mut auditor = Auditor::with_mistake(mistake);
    let mut patient = Patient::of(&LUKS, Initial::Fresh);
    let first = patient.u64_at(120) / 1024;
    for cluster in [first, first + 1, first + LUKS_BYTES / 1024 - 1] {
        patient.put_refcount(cluster, 0);
        let report = auditor.audit(&mut patient.disk);
        let found: Vec<_> = report.findings.iter().map(|finding| finding.to_string()).collect();
        let wanted = format!("cluster {cluster}: refcount 0 is below its 1 references");
        expect("not counted", found, vec![wanted])?;
        let label = |at: u64| auditor.image().label(at * 1024 + 512).to_string();
        let wanted = format!("encryption-header#{}", (cluster - first) * 2 + 1);
        expect("its name", label(cluster), wanted)?;
        patient.put_refcount(cluster, 1);
    }
    Ok(())
}

/// What is wrong with a fragmented image of this shape some of whose units of data may hold what `sets` says, each unit and value by number,
/// when one write to every fourth unit is settled and one in flight: properties, guest units, what is found, and the stories.
fn verdict(geometry: &Geometry, sets: &BTreeMap<u64, Vec<u8>>) -> Vec<(Property, String)> {
    let mut judge = Judge::default();
    let mut patient = Patient::of(geometry, Initial::Fragmented);
    let mut guest = patient.guest(Mistake::None);
    judge.state(&mut patient.disk, &guest, None);
    let image = judge.auditor().image();
    let mapped: Vec<(u64, u64)> = image
        .pieces()
        .filter_map(|(piece, mapping)| match mapping {
            Mapping::Host(offset) => Some(piece.zip(offset / UNIT as u64..)),
            _ => None,
        })
        .flatten()
        .collect();
    for (unit, _) in mapped.iter().step_by(4) {
        let [settled, in_flight] =
            [1, 2].map(|id| patient.disk.values.intern(&payload::unit(*unit, id)));
        let write = guest.begin_write(*unit, &[settled], CACHED);
        guest.complete(write);
        flush(&mut guest);
        guest.begin_write(*unit, &[in_flight], CACHED);
    }
    let mut others = BTreeMap::new();
    for (which, values) in sets {
        let (unit, at) = mapped[*which as usize % mapped.len()];
        let keys = values.iter().map(|value| {
            let plain = match value % 7 {
                0 => payload::ZEROES,
                1 => [*value; UNIT],
                2 => payload::unit(unit + 1, payload::INITIAL),
                3 => payload::unit(unit, payload::STALE),
                4 => payload::unit(unit, payload::INITIAL),
                id => payload::unit(unit, u32::from(id) - 4),
            };
            let held = match geometry.encryption {
                None => plain,
                Some(_) => enciphered(geometry, unit, at, &plain),
            };
            patient.disk.values.intern(&held)
        });
        others.insert(at, keys.collect());
    }
    let mut open = Open { disk: patient.disk, others };
    let found = judge.state(&mut open, &guest, None).iter().map(|violation| {
        let unit = match violation.place {
            Place::Guest { unit, .. } => unit,
            other => panic!("nothing else is damaged: {other:?}"),
        };
        let Violation { property, kind, found, allowed, story, .. } = violation;
        (*property, format!("{kind} {unit} {found:?} {allowed:?} {story}"))
    });
    found.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: an encrypted image is judged as one that is not and holds what the guest reads. Method: the same sets of values in the units of
    /// each, enciphered or not.
    #[test]
    fn encrypted_images_are_judged_as_what_they_decipher_to(
        sets in prop::collection::btree_map(0u64..48, prop::collection::vec(any::<u8>(), 1..4), 0..12),
        shape in 0usize..3,
    ) {
        let geometry = [KIB, PLAIN, EXTENDED][shape];
        let wanted = verdict(&geometry, &sets);
        for kind in [Encryption::Aes, Encryption::Luks] {
            let found = verdict(&Geometry { encryption: Some(kind), ..geometry }, &sets);
            prop_assert_eq!(&found, &wanted, "{:?}", kind);
        }
    }
}

/// Goal: what a guest wrote is told where it lies in the clear, whether or not anything refers to it, and where it is compressed; what a former
/// owner left is not. Method: a compressed cluster; a
/// unit past all clusters, of the image and of a data file, which may hold either besides what it holds.
pub(crate) fn clear_text(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    for geometry in shapes() {
        let mut patient = Patient::of(&geometry, Initial::Fragmented);
        let guest = patient.guest(mistake);
        let end = patient.disk.len();
        patient.disk.set_len(end + (4 << 10));
        let mut units = vec![end.div_ceil(UNIT as u64) + 3];
        if geometry.data_file.is_some() {
            let length = patient.disk.data_len();
            patient.disk.set_data_len(length + (4 << 10));
            units.push(DATA_FIRST + length / UNIT as u64 + 3);
        }
        if geometry == (Geometry { encryption: geometry.encryption, ..KIB }) {
            let mut compressed = Patient::of(&geometry, Initial::Fragmented);
            let guest = compressed.guest(mistake);
            let cluster = compressed.mapped()[0];
            let host = compressed.l2(cluster) & !COPIED;
            compressed.set_l2(cluster, 1 << 62 | host);
            let found = judge.state(&mut compressed.disk, &guest, None).iter();
            let found: Vec<_> = found
                .filter(|violation| violation.property == Property::PCipher)
                .map(|violation| violation.kind)
                .collect();
            expect(&format!("compressed, {geometry:?}"), found, vec!["compressed"])?;
        }
        for unit in units {
            for (id, wanted) in
                [(7, vec![("in-clear", Place::File { unit })]), (payload::STALE, vec![])]
            {
                let value = patient.disk.values.intern(&payload::unit(18, id));
                let others = BTreeMap::from([(unit, vec![value])]);
                let mut open = Open { disk: patient.disk.clone(), others };
                let found = judge.state(&mut open, &guest, None).iter();
                let found: Vec<_> = found
                    .filter(|violation| violation.property == Property::PCipher)
                    .map(|violation| (violation.kind, violation.place))
                    .collect();
                expect(&format!("unit {unit}, {id}, {geometry:?}"), found, wanted)?;
            }
        }
    }
    Ok(())
}

#[test]
fn properties_have_names() {
    let text = serde_json::to_string(&Property::PCipher).unwrap();
    assert_eq!(text, r#""P-cipher""#);
    assert_eq!(serde_json::from_str::<Property>(&text).unwrap(), Property::PCipher);
    assert!(luks_units().iter().all(|(_, bytes)| !payload::is_payload(bytes)));
}
