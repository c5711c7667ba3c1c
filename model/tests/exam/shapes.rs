//! The judge, on images of other shapes: files that end within a cluster, several L2 tables and refcount blocks, refcounts of every
//! width, clusters of several sizes, disks that grow.

use model::audit::Auditor;
use model::build::Initial;
use model::evidence::{BytesEvidence, Readable, ValueKey};
use model::finding::{Property, Stage};
use model::guest::{DiscardReads, Guest, Made, Promises};
use model::image::{COPIED, Mapping};
use model::judge::{Contents, Extent, Inherited, Judge, Place, Violation};
use model::mistake::Mistake;
use model::op::Geometry;
use model::payload::{self, UNIT};

use crate::guest::{CACHED, PROMISES, ZERO, flush};
use crate::patient::{EXTENDED, KIB, Patient};
use crate::states::kinds;
use crate::{Outcome, expect};

/// 200 KiB in clusters of 1 KiB: the second L2 table begins at guest cluster 128.
const TWO_TABLES: Geometry = Geometry { virtual_size: 200 << 10, ..KIB };

type Kinds = Vec<(Property, &'static str)>;

/// What is wrong with an image after a clean close, first what is and then how often.
fn closed(judge: &mut Judge, disk: &mut BytesEvidence, guest: &Guest) -> Kinds {
    kinds(judge.closed(disk, guest, &Inherited::default()))
}

/// Goal: what a file that ends within a cluster has of it counts, and the rest is zeroes. Method: the same image, cut at every
/// byte that matters, once with a table and once with data at its end.
pub(crate) fn cut_short(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let at = |length: u64, patient: &Patient| {
        let mut disk = patient.disk.clone();
        disk.set_len(length);
        disk
    };

    // The only table is cluster 5, the last one, and its only entry is number 63: it maps cluster 4.
    let mut patient = Patient::new(Initial::L1AboutToGrow);
    let guest = patient.guest(mistake);
    let (table, entry_end) = (5120, 5120 + 512);
    let zero = (Property::P2, "invented-zero");
    let leak = (Property::P6, "leak");
    let reserved = (Property::P4, "reserved-bits");
    let cases: [(&str, u64, Kinds); 7] = [
        ("whole", table + 1024, vec![]),
        ("behind the entry", entry_end, vec![]),
        ("within the entry, in its last byte, which is 0", entry_end - 1, vec![]),
        ("within the entry, in the offset", entry_end - 2, vec![reserved, leak, zero, zero]),
        ("before the entry", entry_end - 8, vec![leak, zero, zero]),
        ("behind the first byte of the table", table + 1, vec![leak, zero, zero]),
        ("before the table", table, vec![(Property::P4, "out-of-range"), leak, zero, zero]),
    ];
    for (name, length, wanted) in cases {
        let found = closed(&mut judge, &mut at(length, &patient), &guest);
        expect(name, found, wanted)?;
    }

    // Guest cluster 0 in a new last cluster.
    let host = patient.append(0);
    let guest = patient.guest_with(0, mistake);
    let start = host * 1024;
    let invented = (Property::P2, "invented");
    let cases: [(&str, u64, Kinds); 6] = [
        ("all of the data", start + 1024, vec![]),
        ("all but the last byte", start + 1023, vec![invented]),
        ("a unit of it", start + 512, vec![zero]),
        ("a unit and a byte", start + 513, vec![invented]),
        ("a byte of it", start + 1, vec![invented, zero]),
        ("nothing of it", start, vec![(Property::P4, "out-of-range"), zero, zero]),
    ];
    for (name, length, wanted) in cases {
        let found = closed(&mut judge, &mut at(length, &patient), &guest);
        expect(name, found, wanted)?;
    }

    // The L1 table in a new last cluster, of which only the first entry is in use.
    let mut patient = Patient::new(Initial::L1AboutToGrow);
    let guest = patient.guest(mistake);
    patient.disk.set_len(7168);
    let entry = patient.u64_at(3072);
    patient.put_u64(6144, entry);
    patient.put_u64(40, 6144);
    patient.put_refcount(3, 0);
    patient.put_refcount(6, 1);
    let cases: [(&str, u64, Kinds); 3] = [
        ("the entry of L1", 6144 + 8, vec![]),
        ("half of it", 6144 + 4, vec![reserved, leak, leak, zero, zero]),
        ("nothing of L1", 6144, vec![leak, leak, zero, zero]),
    ];
    for (name, length, wanted) in cases {
        let found = closed(&mut judge, &mut at(length, &patient), &guest);
        let mut found = found;
        found.sort_unstable();
        let mut wanted = wanted;
        wanted.sort_unstable();
        expect(name, found, wanted)?;
    }

    // The refcount block in a new last cluster, with counts for clusters 0..=6 without the old one, number 2.
    let mut patient = Patient::new(Initial::L1AboutToGrow);
    patient.disk.set_len(7168);
    let guest = patient.guest(mistake);
    for cluster in [0, 1, 3, 4, 5, 6] {
        patient.disk.patch(6144 + cluster * 2, &[0, 1]);
    }
    patient.put_u64(1024, 6144);
    let cases: [(&str, u64, Kinds); 3] = [
        ("the counts", 6144 + 14, vec![]),
        ("all but the last byte", 6144 + 13, vec![(Property::P4, "refcount-too-low")]),
        ("all but the last count", 6144 + 12, vec![(Property::P4, "refcount-too-low")]),
    ];
    for (name, length, wanted) in cases {
        let found = closed(&mut judge, &mut at(length, &patient), &guest);
        expect(name, found, wanted)?;
    }
    Ok(())
}

/// Goal: of an extended entry within which a file ends what is there counts, and the rest is zeroes. Method: the only table is the last
/// cluster, and its only entry is number 7.
pub(crate) fn cut_extended(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(&EXTENDED, Initial::L1AboutToGrow);
    let guest = patient.guest(mistake);
    let entry = patient.l2_at(7);
    expect("where it is", (patient.disk.len() - entry, entry % 512), ((16 << 10) - 112, 112))?;
    let zeroes = |units: usize| vec![(Property::P2, "invented-zero"); units];
    let leak = vec![(Property::P6, "leak")];
    let reserved = vec![(Property::P4, "reserved-bits")];
    let cases: [(&str, u64, Kinds); 7] = [
        ("behind the entry", 16, vec![]),
        ("within the bitmap, in the bits of subclusters 0 to 7", 15, zeroes(8)),
        ("within the bitmap, behind those of zeroes", 12, zeroes(32)),
        ("between the words", 8, zeroes(32)),
        ("within the first word, in its last bytes, which are 0", 6, zeroes(32)),
        ("within the first word, in the offset", 5, [reserved, leak.clone(), zeroes(32)].concat()),
        ("before the entry", 0, [leak, zeroes(32)].concat()),
    ];
    for (name, within, wanted) in cases {
        let mut disk = patient.disk.clone();
        disk.set_len(entry + within);
        expect(name, closed(&mut judge, &mut disk, &guest), wanted)?;
    }
    Ok(())
}

/// Goal: each guest unit is judged by what the bitmap says of its own subcluster, and so are the subject's mapping and what a
/// repair leaves. Method: each subcluster in turn becomes each of the three kinds, and what it was is known.
pub(crate) fn subclusters(mistake: Mistake) -> Outcome {
    // A mixed cluster, zeroes without a host cluster and with one; and a mixed one whose subclusters have two units.
    for (cluster_bits, cluster) in [(14, 0), (14, 2), (14, 4), (15, 0)] {
        let virtual_size = 8 << cluster_bits;
        // Ends in the middle of guest cluster 4.
        let below = Some((9 << cluster_bits) / 2);
        let geometry = Geometry { cluster_bits, virtual_size, below, ..EXTENDED };
        each_subcluster(&geometry, cluster, mistake)?;
    }
    Ok(())
}

fn each_subcluster(geometry: &Geometry, cluster: u64, mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(geometry, Initial::Fragmented);
    let guest = patient.guest(mistake);
    expect("as built", closed(&mut judge, &mut patient.disk, &guest), vec![])?;
    let mut before = Contents::default();
    judge.contents(&patient.disk, &mut before);
    let (host, bitmap) = (patient.l2(cluster) & !COPIED, patient.subclusters(cluster));
    let units = geometry.subcluster_size() / UNIT as u64;
    let (nothing, allocated, zero) = (0, 1, 1 << 32);
    for subcluster in 0..32 {
        let bits = bitmap >> subcluster & (1 << 32 | 1);
        for kind in [nothing, allocated, zero] {
            if kind == allocated && host == 0 {
                continue;
            }
            let changed = bitmap & !((1 << 32 | 1) << subcluster) | kind << subcluster;
            patient.set_subclusters(cluster, changed);
            let first = cluster * geometry.cluster_units() + subcluster * units;
            let mut wanted = Vec::new();
            for unit in first..first + units {
                let at =
                    host + (subcluster * geometry.subcluster_size()) + (unit - first) * UNIT as u64;
                let below = match payload::below(unit) {
                    payload::Value::Tag { .. } if unit < geometry.below_units() => "layer-shows",
                    _ => "invented-zero",
                };
                let is_zero = |kind| kind == zero || kind == nothing && below == "invented-zero";
                let told = match kind {
                    _ if kind == bits || is_zero(kind) && is_zero(bits) => continue,
                    _ if kind == allocated => ("stale-bytes", Some(at)),
                    _ if is_zero(kind) => ("invented-zero", None),
                    _ => (below, None),
                };
                wanted.push((told.0, Place::Guest { unit, host: told.1 }));
            }
            let found = judge.state(&mut patient.disk, &guest, Some(Stage::Closed));
            let found = found.iter().map(|violation| (violation.kind, violation.place));
            let what = format!("subcluster {subcluster} of {cluster}: {bits:#x} became {kind:#x}");
            expect(&what, found.collect(), wanted.clone())?;
            let mut after = Contents::default();
            judge.contents(&patient.disk, &mut after);
            let changed = judge.p3_same_contents(&before, &after, &patient.disk);
            expect(
                &what,
                changed.map(|v| v.place),
                wanted.first().map(|(_, place)| match *place {
                    Place::Guest { unit, .. } => Place::Guest { unit, host: None },
                    other => other,
                }),
            )?;
        }
    }
    patient.set_subclusters(cluster, bitmap);
    judge.state(&mut patient.disk, &guest, None);
    mapped_as_said(&judge, geometry, (cluster, host, bitmap))
}

/// The subject may map the units of a cluster one by one, and none of them elsewhere.
fn mapped_as_said(
    judge: &Judge,
    geometry: &Geometry,
    (cluster, host, bitmap): (u64, u64, u64),
) -> Outcome {
    let image = judge.auditor().image();
    let start = cluster * geometry.cluster_size();
    let piece = |from: u64, to: u64| {
        (from / UNIT as u64..to / UNIT as u64).map(|unit| {
            let (piece, to) = image.piece(unit);
            let to = match to {
                Mapping::Host(at) => Mapping::Host(at + (unit - piece.start) * UNIT as u64),
                to => to,
            };
            Extent { guest: unit * UNIT as u64, length: UNIT as u64, to }
        })
    };
    let own = (0..geometry.cluster_units()).map(|within| {
        let subcluster = within * UNIT as u64 / geometry.subcluster_size();
        let to = match bitmap >> subcluster & (1 << 32 | 1) {
            0 => Mapping::Unallocated,
            1 => Mapping::Host(host + within * UNIT as u64),
            _ => Mapping::Zero,
        };
        Extent { guest: start + within * UNIT as u64, length: UNIT as u64, to }
    });
    let behind = start + geometry.cluster_size();
    let mut extents: Vec<_> = piece(0, start).chain(own).collect();
    let first = extents.len() - geometry.cluster_units() as usize;
    extents.extend(piece(behind, geometry.virtual_size));
    let place = |violation: Option<Violation>| violation.map(|v| v.place);
    expect("as it says", place(judge.p3_mapping_agrees(&extents)), None)?;
    for within in 0..geometry.cluster_units() {
        let at = first + within as usize;
        let to = extents[at].to;
        let unit = cluster * geometry.cluster_units() + within;
        extents[at].to = Mapping::Host(512);
        let host = match to {
            Mapping::Host(host) => Some(host),
            _ => None,
        };
        let found = place(judge.p3_mapping_agrees(&extents));
        expect("elsewhere", found, Some(Place::Guest { unit, host }))?;
        extents[at].to = to;
    }
    Ok(())
}

/// Goal: what lies under the second L2 table is judged as what lies under the first is. Method: the first guest cluster with data
/// under each of them, treated alike.
pub(crate) fn second_table(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let whole = Patient::of(&TWO_TABLES, Initial::Fragmented).mapped();
    let under = [whole[0], *whole.iter().find(|guest| **guest >= 128).expect("data under both")];
    for cluster in under {
        let mut patient = Patient::of(&TWO_TABLES, Initial::Fragmented);
        let mut guest = patient.guest(mistake);
        let entry = patient.l2(cluster);
        let offset = entry & !COPIED;
        expect("as built", closed(&mut judge, &mut patient.disk, &guest), vec![])?;
        let mut before = Contents::default();
        judge.contents(&patient.disk, &mut before);
        let mapping = judge.auditor().image().mapping(cluster);
        expect("mapped", mapping, Mapping::Host(offset))?;

        let mut spoilt = patient.disk.clone();
        spoilt.patch(offset + 600, b"rot");
        let found = closed(&mut judge, &mut spoilt, &guest);
        expect("spoilt", found, vec![(Property::P2, "invented")])?;
        let mut after = Contents::default();
        judge.contents(&spoilt, &mut after);
        // Keys of one store: that of the fork knows all that the other does.
        let changed = judge.p3_same_contents(&before, &after, &spoilt).map(|v| v.place);
        let place = Place::Guest { unit: cluster * 2 + 1, host: None };
        expect("changed by repair", changed, Some(place))?;

        patient.put_refcount(offset / 1024, 0);
        let found = closed(&mut judge, &mut patient.disk, &guest);
        let low = vec![(Property::P6, "copied-stale"), (Property::P4, "refcount-too-low")];
        expect("not counted", sorted(found), sorted(low))?;
        patient.put_refcount(offset / 1024, 1);

        let key = patient.disk.values.intern(&payload::unit(cluster * 2, 5));
        let token = guest.begin_write(cluster * 2, &[key], CACHED);
        guest.complete(token);
        flush(&mut guest);
        let found = closed(&mut judge, &mut patient.disk, &guest);
        expect("lost", found, vec![(Property::P1, "lost-write")])?;

        // The table itself is gone.
        let at = patient.l1_at(cluster);
        patient.put_u64(at, 0);
        let found = closed(&mut judge, &mut patient.disk, &guest);
        let gone =
            found.iter().filter(|(_, kind)| *kind == "lost-write" || *kind == "invented-zero");
        let lost = whole.iter().filter(|guest| (**guest >= 128) == (cluster >= 128)).count();
        expect("all of it", gone.count(), lost * 2)?;
    }
    // The tables change places.
    let mut patient = Patient::of(&TWO_TABLES, Initial::Fragmented);
    let guest = patient.guest(mistake);
    let [first, second] = [3072, 3080].map(|at| patient.u64_at(at));
    patient.put_u64(3072, second);
    patient.put_u64(3080, first);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("swapped", found.contains(&(Property::P2, "other-unit")), true)
}

fn sorted(mut kinds: Kinds) -> Kinds {
    kinds.sort_unstable();
    kinds
}

/// Goal: refcounts are read at every width, in every place of a unit, in every block. Method: data in each of several clusters, with
/// counts that are right, too low and too high; the greatest count that there is.
pub(crate) fn widths(mistake: Mistake) -> Outcome {
    let mut auditor = Auditor::with_mistake(mistake);
    for order in 0..=6 {
        let geometry = Geometry { refcount_order: order, ..KIB };
        let mut patient = Patient::of(&geometry, Initial::Fragmented);
        let names = |auditor: &mut Auditor, patient: &mut Patient| {
            let report = auditor.audit(&mut patient.disk);
            report.findings.iter().map(|finding| finding.name()).collect::<Vec<_>>()
        };
        let name = |what: &str| format!("{what}, {} bits", 1u32 << order);
        expect(&name("as built"), names(&mut auditor, &mut patient), vec![])?;
        let most = u64::MAX >> (64 - (1u32 << order));
        for guest in patient.mapped() {
            let host = (patient.l2(guest) & !COPIED) / 1024;
            patient.put_refcount(host, 0);
            let found = names(&mut auditor, &mut patient);
            let wanted = vec!["refcount-too-low", "copied-stale"];
            expect(&name(&format!("cluster {host} not counted")), found, wanted)?;
            // The counts from which nothing is left when they are read too narrow, and the greatest one.
            for count in [2, 3, 256, 1 << 16, 1 << 32, most].into_iter().filter(|n| *n <= most) {
                patient.put_refcount(host, count);
                let report = auditor.audit(&mut patient.disk);
                let stored: Vec<_> = report
                    .findings
                    .iter()
                    .filter_map(|finding| match *finding {
                        model::finding::Finding::Leak { cluster, stored, counted: 1 } => {
                            Some((cluster, stored))
                        }
                        _ => None,
                    })
                    .collect();
                let wanted = if count == 1 { vec![] } else { vec![(host, count)] };
                expect(&name("counted too often"), stored, wanted)?;
            }
            patient.put_refcount(host, 1);
        }
    }
    // 128 counts of 64 bits are a block of 1 KiB: data in cluster 130 is counted by the second one.
    let geometry = Geometry { refcount_order: 6, ..KIB };
    let mut patient = Patient::of(&geometry, Initial::Fragmented);
    let free = (0..64).find(|guest| patient.l2(*guest) == 0).expect("it has holes");
    patient.disk.set_len(130 << 10);
    let host = patient.append(free);
    expect("its cluster", host, 130)?;
    expect("counted", auditor.audit(&mut patient.disk).findings.len(), 0)?;
    patient.put_refcount(host, 0);
    let found: Vec<_> =
        auditor.audit(&mut patient.disk).findings.iter().map(|finding| finding.name()).collect();
    expect("not counted", found, vec!["refcount-too-low", "copied-stale"])
}

/// Goal: every unit of a cluster is judged, whatever the size of clusters. Method: spoil one after the other.
pub(crate) fn every_unit(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    for cluster_bits in [9, 10, 12, 16] {
        let geometry = Geometry { cluster_bits, virtual_size: 640 << 10, ..KIB };
        let mut patient = Patient::of(&geometry, Initial::Fragmented);
        let guest = patient.guest(mistake);
        let name = |what: &str| format!("{what}, clusters of 2^{cluster_bits}");
        let found = closed(&mut judge, &mut patient.disk, &guest);
        expect(&name("as built"), found, vec![])?;
        let cluster = *patient.mapped().last().expect("some data");
        let offset = patient.l2(cluster) & !COPIED;
        let units = geometry.cluster_units();
        for within in 0..units {
            let mut spoilt = patient.disk.clone();
            let at = offset / UNIT as u64 + within;
            spoilt.set(at, &payload::unit(at, payload::STALE));
            let found = judge.state(&mut spoilt, &guest, Some(Stage::Closed));
            let places: Vec<_> = found.iter().map(|violation| violation.place).collect();
            let place =
                Place::Guest { unit: cluster * units + within, host: Some(at * UNIT as u64) };
            expect(&name("spoilt"), places, vec![place])?;
        }
    }
    Ok(())
}

/// Goal: what lies behind the end of the disk is counted, and nobody's data until the disk grows. Method: an image with data
/// there, in tables of the disk and behind them; then the same image with a larger disk.
pub(crate) fn behind_the_disk(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let geometry = Geometry { virtual_size: (63 << 10) + 512, ..KIB };
    let mut patient = Patient::of(&geometry, Initial::Leftovers);
    let mut guest = patient.guest(mistake);
    expect("as built", closed(&mut judge, &mut patient.disk, &guest), vec![])?;
    // Guest cluster 128 lies under the second table, behind the disk.
    for cluster in [64, 128] {
        let host = (patient.l2(cluster) & !COPIED) / 1024;
        patient.put_refcount(host, 0);
        let found = sorted(closed(&mut judge, &mut patient.disk, &guest));
        let wanted = vec![(Property::P6, "copied-stale"), (Property::P4, "refcount-too-low")];
        expect("not counted", found, sorted(wanted))?;
        patient.put_refcount(host, 1);
    }
    // One unit more: the rest of the last cluster, where stale bytes are.
    let stale = |found: &[Violation]| -> Vec<_> {
        found.iter().map(|violation| (violation.kind, violation.place)).collect()
    };
    let last = patient.l2(63) & !COPIED;
    let grow = guest.begin_grow(128);
    patient.put_u64(24, 64 << 10);
    let found = stale(judge.state(&mut patient.disk, &guest, None));
    let place = Place::Guest { unit: 127, host: Some(last + 512) };
    expect("while it grows", found, vec![("stale-bytes", place)])?;
    guest.complete(grow);
    flush(&mut guest);
    let found = stale(judge.state(&mut patient.disk, &guest, None));
    expect("when it has grown", found, vec![("stale-bytes", place)])?;
    patient.disk.set(last / 512 + 1, &[0; UNIT]);
    expect("zeroed", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])
}

/// Goal: tables that the header puts past the end of the file are not there.
pub(crate) fn tables_past_the_end(mistake: Mistake) -> Outcome {
    let mut auditor = Auditor::with_mistake(mistake);
    let far = 0x100_0000;
    for (field, wanted) in [
        (40, vec!["out-of-range", "leak"]),
        // Nothing is counted, and the header, L1 and the table itself are there.
        (48, vec!["out-of-range", "refcount-too-low", "refcount-too-low"]),
    ] {
        let mut patient = Patient::new(Initial::Fresh);
        patient.put_u64(field, far);
        let report = auditor.audit(&mut patient.disk);
        let found: Vec<_> = report.findings.iter().map(|finding| finding.name()).collect();
        expect("past the end", found, wanted)?;
    }
    // A disk of nothing has no need of tables.
    let guest = Guest::new(&[], PROMISES).with_mistake(mistake);
    let mut patient = Patient::new(Initial::Fresh);
    patient.put_u64(24, 0);
    let mut judge = Judge::with_mistake(mistake);
    expect("an empty disk", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])?;
    expect("nothing is there", patient.disk.resolve(u64::MAX), ZERO)
}

/// 64 KiB over a layer that ends 512 bytes into guest cluster 40.
const LAYERED: Geometry = Geometry { below: Some((40 << 10) + 512), ..KIB };

/// Goal: where the image says nothing its layer is read, zeroes behind the end of that, and a mark hides it; and the image names it.
pub(crate) fn layers(mistake: Mistake) -> Outcome {
    let mut judge = Judge::with_mistake(mistake);
    let mut patient = Patient::of(&LAYERED, Initial::Fragmented);
    let guest = patient.guest(mistake);
    expect("as built", closed(&mut judge, &mut patient.disk, &guest), vec![])?;
    let mut before = Contents::default();
    judge.contents(&patient.disk, &mut before);

    // Guest cluster 1 shows the layer; a mark over it is a loss, of every unit that is not zero there.
    let shown = |judge: &mut Judge, patient: &mut Patient, guest: &Guest| {
        let found = judge.state(&mut patient.disk, guest, Some(Stage::Closed));
        found.iter().map(|violation| (violation.kind, violation.place)).collect::<Vec<_>>()
    };
    let place = |unit| Place::Guest { unit, host: None };
    expect("nothing is said", patient.l2(1), 0)?;
    patient.set_l2(1, 1);
    let found = shown(&mut judge, &mut patient, &guest);
    expect("hidden", found, vec![("invented-zero", place(2))])?;
    let mut after = Contents::default();
    judge.contents(&patient.disk, &mut after);
    let changed = judge.p3_same_contents(&before, &after, &patient.disk).map(|v| v.place);
    expect("hidden by a repair", changed, Some(place(2)))?;
    patient.set_l2(1, 0);

    // The other way round: what was written or zeroed comes to light.
    let mapped = patient.mapped()[0];
    let entry = patient.l2(mapped);
    patient.set_l2(mapped, 0);
    let found = shown(&mut judge, &mut patient, &guest);
    let leak = |found: Vec<(&'static str, Place)>| -> Vec<_> {
        found.into_iter().filter(|(_, place)| matches!(place, Place::Guest { .. })).collect()
    };
    let units = [mapped * 2, mapped * 2 + 1].map(|unit| match payload::below(unit) {
        payload::Value::Zero => ("invented-zero", place(unit)),
        _ => ("layer-shows", place(unit)),
    });
    expect("comes to light", leak(found), units.to_vec())?;
    patient.set_l2(mapped, entry);

    // Behind its end a layer reads as zeroes, in the same cluster too.
    let key = patient.disk.values.intern(&payload::unit(81, payload::BELOW));
    expect("behind its end", guest.permits(81, key), false)?;

    for (at, bytes) in [(16, &8u32.to_be_bytes()[..]), (512, b"B"), (120, b"q"), (8, &[0; 12])] {
        let mut renamed = patient.disk.clone();
        renamed.patch(at, bytes);
        let found = kinds(judge.state(&mut renamed, &guest, Some(Stage::Closed)));
        expect("another layer", found.first().copied(), Some((Property::P10, "layer")))?;
    }
    let mut plain = Patient::new(Initial::Fresh);
    let keys = vec![ZERO; 128];
    let guest = Guest::new(&keys, PROMISES).with_mistake(mistake);
    expect("no layer", kinds(judge.state(&mut plain.disk, &guest, None)), vec![])
}

/// Goal: what is uncovered shows the layer and nothing else, as far as it goes, and zeroes behind it. Method: most of a disk that was written.
pub(crate) fn uncovering(mistake: Mistake) -> Outcome {
    let mut patient = Patient::of(&LAYERED, Initial::Fresh);
    let values = &mut patient.disk.values;
    let written = values.intern(&payload::unit(0, 1));
    let mut guest = Guest::new(&vec![written; 128], PROMISES)
        .on(Made::of(&LAYERED, |unit| values.intern(unit)))
        .with_mistake(mistake);
    let below = |unit: u64| guest.made().lower().value(unit);
    let (shown, last) = (below(2), below(80));
    let uncover = guest.begin_uncover(1, 126);
    expect("before it is done", guest.allowed(2), kept_or(written, shown))?;
    guest.complete(uncover);
    flush(&mut guest);
    for (unit, wanted) in [
        (0, written),
        (1, written),
        (2, shown),
        (80, last),
        (82, ZERO),
        (125, ZERO),
        (126, written),
    ] {
        expect(&format!("unit {unit}"), guest.allowed(unit), vec![wanted])?;
    }
    Ok(())
}

fn kept_or(kept: ValueKey, put: ValueKey) -> Vec<ValueKey> {
    let mut both = vec![kept, put];
    both.sort_unstable();
    both.dedup();
    both
}

/// Goal: an implementation that says so may leave what a layer shows, and nothing behind its end. Method: a discard of the whole disk.
pub(crate) fn discard_beside_layer(mistake: Mistake) -> Outcome {
    let mut patient = Patient::of(&LAYERED, Initial::Fresh);
    let promises = Promises { discard: DiscardReads::ZeroesBesideLayer, ..PROMISES };
    let values = &mut patient.disk.values;
    let written = values.intern(&payload::unit(0, 1));
    let mut guest = Guest::new(&vec![written; 128], promises)
        .on(Made::of(&LAYERED, |unit| values.intern(unit)))
        .with_mistake(mistake);
    let discard = guest.begin_discard(0, 128);
    guest.complete(discard);
    flush(&mut guest);
    // The cluster in which the layer ends is one of those that it shows in.
    for (unit, wanted) in [(0, written), (81, written), (82, ZERO), (127, ZERO)] {
        expect(&format!("unit {unit}"), guest.allowed(unit), vec![wanted])?;
    }
    Ok(())
}
