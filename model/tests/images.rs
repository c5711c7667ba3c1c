//! The builder's images against this crate's own reader.
//!
//! Goal: initial images that are what they say. Method: every kind in many geometries passes the audit at its stage and gives
//! the guest's contents back; the kinds that are about to grow are shown to be by counting what is free; labels and totals are
//! compared with what was laid out.

use model::audit::Auditor;
use model::build::{Built, Initial, build};
use model::evidence::{BytesEvidence, DATA_FIRST, Readable, ValueKey};
use model::finding::{Finding, Stage};
use model::guest::{DiscardReads, Guest, Promises};
use model::image::Mapping;
use model::judge::Judge;
use model::label::Region;
use model::op::{DataFile, Durability, Encryption, Geometry};
use model::payload::{self, Value};
use xxhash_rust::xxh3::Xxh3;

#[path = "../../tests/build/turn.rs"]
mod turn;

/// Parts of the geometries.
const PARTS: usize = 5;

fn geometry(cluster_bits: u32, refcount_order: u32, virtual_size: u64) -> Geometry {
    Geometry { refcount_order, ..Geometry::plain(cluster_bits, virtual_size) }
}

fn geometries() -> impl Iterator<Item = Geometry> {
    let sizes = [512, 64 << 10, (256 << 10) + 512, 3 << 20];
    (9..=16).flat_map(move |bits| {
        let old = sizes.map(|size| Geometry { version: 2, ..geometry(bits, 4, size) });
        (0..=6).flat_map(move |order| sizes.map(|size| geometry(bits, order, size))).chain(old)
    })
}

/// Over layers: none of theirs, a part, all, and more than the disk.
fn layered() -> impl Iterator<Item = Geometry> {
    let lengths = [0, 3 << 10, 64 << 10, (90 << 10) + 512];
    let old = [2, 3].into_iter().flat_map(|version| [9, 10, 12, 16].map(|bits| (version, bits)));
    old.flat_map(move |(version, bits)| {
        lengths.map(|length| Geometry {
            version,
            below: Some(length),
            ..geometry(bits, 4, (64 << 10) - 512)
        })
    })
}

/// With extended L2 entries, of which several sizes have more than one table, and one a last cluster that is cut short.
fn extended() -> impl Iterator<Item = Geometry> {
    let sizes = [512, 64 << 10, (512 << 10) + 512, 48 << 20];
    (14..=16).flat_map(move |bits| {
        [0, 4, 6].into_iter().flat_map(move |order| {
            sizes.into_iter().flat_map(move |size| {
                let plain = Geometry { extended_l2: true, ..geometry(bits, order, size) };
                [plain, Geometry { below: Some((40 << 10) + 512), ..plain }]
            })
        })
    })
}

/// With data files of both kinds, some of the plain ones over a layer, and with extended L2 entries where they can be.
fn beside_data() -> impl Iterator<Item = Geometry> {
    let sizes = [512, 64 << 10, (256 << 10) + 512, 3 << 20];
    (9..=16).flat_map(move |bits| {
        [0, 4, 6].into_iter().flat_map(move |order| {
            sizes.into_iter().flat_map(move |size| {
                let [plain, raw] = [DataFile::Plain, DataFile::Raw]
                    .map(|kind| Geometry { data_file: Some(kind), ..geometry(bits, order, size) });
                let all = [plain, raw, Geometry { below: Some((40 << 10) + 512), ..plain }];
                let extended = all.map(|shape| Geometry { extended_l2: true, ..shape });
                all.into_iter().chain(extended.into_iter().filter(move |_| bits >= 14))
            })
        })
    })
}

/// Encrypted in both ways, some of them beside a data file or over a layer, and with extended L2 entries where they can be.
fn encrypted() -> impl Iterator<Item = Geometry> {
    let sizes = [512, 64 << 10, (256 << 10) + 512];
    let widths = [(3, 0), (3, 4), (3, 6), (2, 4)];
    let plain = [9, 10, 12, 14, 16].into_iter().flat_map(move |bits| {
        widths.into_iter().flat_map(move |(version, order)| {
            sizes.map(|size| Geometry { version, ..geometry(bits, order, size) })
        })
    });
    let shapes = plain.flat_map(|plain| {
        let all = [
            plain,
            Geometry { below: Some((40 << 10) + 512), ..plain },
            Geometry { data_file: Some(DataFile::Plain), ..plain },
            Geometry { extended_l2: true, ..plain },
        ];
        all.into_iter().filter(|shape| shape.fault().is_none())
    });
    shapes.flat_map(|shape| {
        [Encryption::Aes, Encryption::Luks].map(|kind| Geometry { encryption: Some(kind), ..shape })
    })
}

fn guest(built: &Built, evidence: &mut BytesEvidence, geometry: &Geometry) -> Guest {
    let promises = Promises {
        cluster_units: geometry.cluster_units(),
        discard: DiscardReads::Zeroes,
        grow: Durability::Through,
        changes: Durability::Cached,
    };
    Guest::new(&built.guest_keys(|bytes| evidence.values.intern(bytes)), promises)
        .on(built.made(geometry, |bytes| evidence.values.intern(bytes)))
}

#[test]
fn every_image_is_what_it_says() {
    let mut judge = Judge::default();
    let mut built_of_kind = [0; Initial::ALL.len()];
    let all =
        geometries().chain(layered()).chain(extended()).chain(beside_data()).chain(encrypted());
    let all: Vec<Geometry> = turn::share(all, PARTS).collect();
    for geometry in &all {
        for (kind, initial) in Initial::ALL.into_iter().enumerate() {
            let Ok(built) = build(geometry, initial) else { continue };
            built_of_kind[kind] += 1;
            let mut evidence = built.evidence();
            let guest = guest(&built, &mut evidence, geometry);
            let stages: &[Stage] = match initial {
                Initial::Leaky | Initial::FullOfLeaks => &[Stage::CrashedClean, Stage::OpenedClean],
                Initial::Dirty => &[Stage::CrashedDirty],
                _ => &[Stage::CrashedClean, Stage::OpenedClean, Stage::Repaired, Stage::Closed],
            };
            for stage in stages {
                let violations = judge.state(&mut evidence, &guest, Some(*stage));
                assert_eq!(violations, [], "{initial:?} {geometry:?} {stage:?}");
            }
            let totals = judge.auditor().report().totals;
            assert_eq!(totals.total_clusters, geometry.clusters());
            assert_eq!(guest.figures().decided, geometry.units());
        }
    }
    // Filling refcounts up is not feasible in every geometry, and marks take version 3; everything else is.
    let marked = all.iter().filter(|geometry| geometry.has_features()).count();
    let all = all.len();
    println!("{built_of_kind:?} of {all}");
    assert!(built_of_kind.iter().all(|count| *count > 0), "{built_of_kind:?}");
    for kind in [0, 3, 4, 5, 6, 7, 8] {
        let initial = Initial::ALL[kind];
        let marks = matches!(initial, Initial::Dirty | Initial::Bitmaps);
        assert_eq!(built_of_kind[kind], if marks { marked } else { all }, "{initial:?}");
    }
}

#[test]
fn kinds_differ_in_what_they_are_for() {
    let small = geometry(10, 4, 64 << 10);
    let mut auditor = Auditor::default();
    let mut names = |initial| {
        let built = build(&small, initial).unwrap();
        let report = auditor.audit(&mut built.evidence());
        report.findings.iter().map(|finding| finding.name()).collect::<Vec<_>>()
    };
    let leaky = names(Initial::Leaky);
    assert!(leaky.len() > 20 && leaky.iter().all(|name| *name == "leak"), "{leaky:?}");
    let dirty = names(Initial::Dirty);
    for kind in ["dirty", "refcount-too-low", "leak", "copied-stale"] {
        assert!(dirty.contains(&kind), "{kind} is not in {dirty:?}");
    }
    let built = build(&geometry(9, 4, 256 << 10), Initial::Fragmented).unwrap();
    let totals = auditor.audit(&mut built.evidence()).totals;
    assert!(totals.fragmented_clusters > 4, "{totals:?}");
    let image = auditor.image();
    let all: Vec<_> = (0..512).map(|cluster| image.mapping(cluster)).collect();
    assert!(all.contains(&Mapping::Zero));
    assert!(built.guest.contains(&Value::Tag { unit: 0, id: payload::INITIAL }));
    let tables = all.chunks(64).filter(|t| t.iter().any(|m| *m != Mapping::Unallocated)).count();
    assert!(tables > 2, "{tables} L2 tables");

    let report = auditor.audit(&mut build(&small, Initial::Bitmaps).unwrap().evidence());
    assert_eq!(report.header.unwrap().autoclear_features, 1 << 63 | 1);
    // The directory, two tables, and one cluster of bits.
    assert_eq!(auditor.image().vouched_for().count(), 4);
    let built = build(&geometry(10, 4, (63 << 10) + 512), Initial::Leftovers).unwrap();
    auditor.audit(&mut built.evidence());
    let image = auditor.image();
    let behind = [64, 66, 128, 131].map(|cluster| image.mapping(cluster));
    assert!(behind.iter().all(|mapping| matches!(mapping, Mapping::Host(_))), "{behind:?}");
    let Mapping::Host(last) = image.mapping(63) else { panic!("the last cluster is mapped") };
    let behind = built.units.iter().find(|(unit, _)| *unit == last / 512 + 1);
    let stale = Value::Tag { unit: last / 512 + 1, id: payload::STALE };
    assert_eq!(behind.map(|(_, bytes)| payload::decode(bytes)), Some(stale));
}

/// Host clusters that the refcount structures cover, less those in use.
fn free_entries(geometry: &Geometry, initial: Initial) -> u64 {
    let mut evidence = build(geometry, initial).expect("feasible").evidence();
    let mut auditor = Auditor::default();
    let report = auditor.audit(&mut evidence);
    assert_eq!(report.findings, []);
    let end = report.totals.image_end_offset / geometry.cluster_size();
    let table = report.header.expect("a valid image").refcount_table_offset / 512;
    let keys: Vec<ValueKey> =
        (table..table + geometry.cluster_units()).map(|unit| evidence.resolve(unit)).collect();
    let entries = keys.iter().flat_map(|key| evidence.bytes(*key).as_chunks::<8>().0);
    let blocks = entries.filter(|entry| **entry != [0; 8]).count();
    assert_eq!(auditor.image().refcount_blocks(), blocks);
    blocks as u64 * geometry.block_entries() - end
}

#[test]
fn full_images_have_one_entry_left() {
    for (bits, order) in [(9, 4), (10, 4), (10, 6), (11, 4)] {
        let shape = geometry(bits, order, 64 << 10);
        assert_eq!(free_entries(&shape, Initial::RefcountBlockOneShort), 1);
    }
    for (bits, order) in [(9, 4), (9, 6), (10, 6)] {
        let shape = geometry(bits, order, 64 << 10);
        assert_eq!(free_entries(&shape, Initial::RefcountTableOneShort), 1);
    }
    // A LUKS header is 1028 clusters of 1 KiB.
    for (bits, order, blocks) in [(9, 6, 34), (10, 4, 4), (12, 4, 2)] {
        let shape = geometry(bits, order, 64 << 10);
        let shape = Geometry { encryption: Some(Encryption::Luks), ..shape };
        assert_eq!(free_entries(&shape, Initial::RefcountBlockOneShort), 1);
        let mut auditor = Auditor::default();
        auditor.audit(&mut build(&shape, Initial::RefcountBlockOneShort).unwrap().evidence());
        assert_eq!(auditor.image().refcount_blocks(), blocks);
    }
    let shape = Geometry { encryption: Some(Encryption::Luks), ..geometry(9, 6, 64 << 10) };
    assert_eq!(free_entries(&shape, Initial::RefcountTableOneShort), 1);
    let shape = Geometry { virtual_size: 4 << 30, ..shape };
    let why = build(&shape, Initial::Fresh).unwrap_err().to_string();
    assert!(why.ends_with("one cluster cannot count a LUKS header beside it"), "{why}");
    build(&Geometry { encryption: None, ..shape }, Initial::Fresh).unwrap();
    for (bits, order) in [(9, 4), (9, 6), (10, 6)] {
        let shape = geometry(bits, order, 64 << 10);
        let built = build(&shape, Initial::FullOfLeaks).expect("feasible");
        let report = Auditor::default().audit(&mut built.evidence()).clone();
        let leaks = |finding: &Finding| matches!(finding, Finding::Leak { .. });
        assert!(report.findings.iter().all(leaks), "{:?}", report.findings);
        let counted = shape.block_entries() * shape.cluster_size() / 8;
        assert_eq!(built.length / shape.cluster_size(), counted - 1);
        let others =
            2 + shape.cluster_size() / 8 + (shape.l1_entries() * 8).div_ceil(shape.cluster_size());
        assert_eq!(report.findings.len() as u64, counted - 1 - others);
    }
    let why = build(&geometry(12, 4, 64 << 10), Initial::FullOfLeaks).unwrap_err();
    assert!(why.to_string().contains("1048576 clusters"), "{why}");
    let why = build(&geometry(16, 4, 64 << 10), Initial::RefcountTableOneShort).unwrap_err();
    assert!(why.to_string().contains("bytes of L1 table"), "{why}");
    // Of 64 entries the header, table, block and the free one take 4: 30 KiB of L1 table are 3,840 entries of 32 KiB each.
    let most = geometry(9, 6, 120 << 20);
    assert_eq!(free_entries(&most, Initial::RefcountBlockOneShort), 1);
    let more = geometry(9, 6, most.virtual_size + 512);
    let why = build(&more, Initial::RefcountBlockOneShort).unwrap_err();
    assert!(why.to_string().contains("30720 bytes are too few for the L1 table"), "{why}");
}

/// Goal: refcount blocks count themselves too. Method: 2 clusters, 254 of L1 table and 4 blocks are more than 4 blocks count.
#[test]
fn blocks_are_as_many_as_they_need_to_count_a_long_table() {
    let mut auditor = Auditor::default();
    let shape = geometry(9, 6, 508 << 20);
    let report = auditor.audit(&mut build(&shape, Initial::Fresh).unwrap().evidence());
    assert_eq!(report.findings, []);
    assert_eq!(report.totals.image_end_offset, (2 + 254 + 5) * 512);
    assert_eq!(auditor.image().refcount_blocks(), 5);
    // With room for up to 129 clusters of data, 59 of L1 table are the first to need a fourth block.
    for (l1, blocks) in [(58, 3), (59, 4)] {
        let shape = geometry(9, 6, l1 << 21);
        auditor.audit(&mut build(&shape, Initial::Leaky).unwrap().evidence());
        assert_eq!(auditor.image().refcount_blocks(), blocks);
    }
}

/// Corpus cases and certificates name an initial image by its kind and geometry: what they mean must not change unnoticed.
#[test]
fn images_stay_what_they_were() {
    let expected: [(Initial, [u64; 2]); 11] = [
        (Initial::Fresh, [0xd3afc883a5007227, 0xec19b6c81a65e98a]),
        (Initial::RefcountBlockOneShort, [0x24c4627a49d303f2, 0xa8f564a50110c928]),
        (Initial::RefcountTableOneShort, [0x5e372266d28714e0, 0x7b2efd5663401033]),
        (Initial::L1AboutToGrow, [0xec4af1d408a82d15, 0xdb224ff163dd2442]),
        (Initial::Leaky, [0x33017a0e63994c2b, 0x2085a25a45a03567]),
        (Initial::Dirty, [0x2cf4606397fe65d8, 0x03542c3645ee1341]),
        (Initial::Fragmented, [0x18348574c70c314c, 0x6330178c1a12dbe5]),
        (Initial::Bitmaps, [0xe0b78c47da699a7b, 0x174189db160bcc10]),
        (Initial::Leftovers, [0x26a33aca455f87a7, 0xde32b3d141c63351]),
        (Initial::Compressed, [0x6d219579fdc43cfe, 0x6cae76ebf7587800]),
        (Initial::FullOfLeaks, [0x6d829d5782ede8d3, 0x1ac92e7edaf6e3fe]),
    ];
    assert_eq!(expected.map(|(initial, _)| initial), Initial::ALL);
    let all =
        expected.iter().flat_map(|(initial, of)| [(*initial, 2, of[0]), (*initial, 3, of[1])]);
    for (initial, version, expected) in all {
        let mut hash = Xxh3::new();
        for geometry in geometries().filter(|geometry| geometry.version == version) {
            add(&mut hash, &geometry, initial);
        }
        assert_eq!(hash.digest(), expected, "{initial:?} in version {version}");
    }
}

/// Whether the images of each kind, of all these geometries, are what they were.
#[track_caller]
fn assert_stay<I: Iterator<Item = Geometry>>(
    expected: [(Initial, u64); Initial::ALL.len()],
    geometries: fn() -> I,
) {
    assert_eq!(expected.map(|(initial, _)| initial), Initial::ALL);
    for (initial, expected) in expected {
        let mut hash = Xxh3::new();
        geometries().for_each(|geometry| add(&mut hash, &geometry, initial));
        assert_eq!(hash.digest(), expected, "{initial:?}");
    }
}

fn add(hash: &mut Xxh3, geometry: &Geometry, initial: Initial) {
    match build(geometry, initial) {
        Ok(built) => {
            let data = built.data.iter().map(|data| (data.length, &data.units));
            for (length, units) in std::iter::once((built.length, &built.units)).chain(data) {
                hash.update(&length.to_be_bytes());
                for (unit, bytes) in units {
                    hash.update(&unit.to_be_bytes());
                    hash.update(bytes);
                }
            }
        }
        Err(why) => hash.update(why.to_string().as_bytes()),
    }
}

/// The same of images with extended L2 entries.
#[test]
fn extended_images_stay_what_they_were() {
    let expected: [(Initial, u64); 11] = [
        (Initial::Fresh, 0x93b6be9e6e29482d),
        (Initial::RefcountBlockOneShort, 0x4901c6187209a9d9),
        (Initial::RefcountTableOneShort, 0x78ec896816244efd),
        (Initial::L1AboutToGrow, 0xce8ef1418cd4d8f3),
        (Initial::Leaky, 0x0b5155667e2b4199),
        (Initial::Dirty, 0xe433a45a8f7f53cb),
        (Initial::Fragmented, 0xc7a19b291a919d6c),
        (Initial::Bitmaps, 0x0e83b18f1f9fd08f),
        (Initial::Leftovers, 0xe8a9785a1868b74b),
        (Initial::Compressed, 0x9d2914fe0d1d0f38),
        (Initial::FullOfLeaks, 0x7082b093d99ffc7f),
    ];
    assert_stay(expected, extended);
}

/// The same of images with a data file.
#[test]
fn images_with_a_data_file_stay_what_they_were() {
    let expected: [(Initial, u64); 11] = [
        (Initial::Fresh, 0x3d1e131785788db1),
        (Initial::RefcountBlockOneShort, 0xa0d2cdc5d81e005e),
        (Initial::RefcountTableOneShort, 0x80e7cbec8aef1eb6),
        (Initial::L1AboutToGrow, 0xd31fc9e3d04a7360),
        (Initial::Leaky, 0x9922c1e2de8c702a),
        (Initial::Dirty, 0x04e846b64c560269),
        (Initial::Fragmented, 0xb33f74ea6f7836e9),
        (Initial::Bitmaps, 0xa242705fef2e8dff),
        (Initial::Leftovers, 0x4680d96e81b376e5),
        (Initial::Compressed, 0x54e1d286e4a45c73),
        (Initial::FullOfLeaks, 0x6a2b7b45b77a7e89),
    ];
    assert_stay(expected, beside_data);
}

/// Goal: a data file ends where the disk does, or behind it with stale bytes; where the image maps nothing to it a plain one has stale
/// bytes too, and a raw one is what the guest reads. Method: every unit of the data file.
#[test]
fn data_files_are_what_they_say() {
    let mut plain_ones_with_stale_bytes = 0;
    for geometry in beside_data() {
        for initial in Initial::ALL {
            let built = build(&geometry, initial);
            if initial == Initial::Compressed {
                let why = built.unwrap_err().to_string();
                assert!(why.ends_with("a data file has no compressed clusters"), "{why}");
                continue;
            }
            let Ok(built) = built else { continue };
            let what = format!("{initial:?} {geometry:?}");
            let data = built.data.as_ref().unwrap();
            let clusters = match initial {
                Initial::Leftovers => geometry.clusters() + 3,
                _ => 0,
            };
            let length = geometry.virtual_size.max(clusters * geometry.cluster_size());
            assert_eq!(data.length, length, "{what}");
            let mut evidence = built.evidence();
            let mut value = |unit| {
                let key = evidence.resolve(DATA_FIRST + unit);
                payload::decode(evidence.bytes(key))
            };
            let stale = |unit| Value::Tag { unit, id: payload::STALE };
            let behind = initial == Initial::Leftovers;
            assert_eq!(value(geometry.units()) == stale(geometry.units()), behind, "{what}");
            let held: Vec<Value> = (0..geometry.units()).map(value).collect();
            if geometry.data_file == Some(DataFile::Raw) {
                assert_eq!(held, built.guest, "{what}");
            } else if (0..).zip(&held).any(|(unit, held)| *held == stale(unit)) {
                assert_eq!(initial, Initial::Fragmented);
                plain_ones_with_stale_bytes += 1;
            }
        }
    }
    assert!(plain_ones_with_stale_bytes > 50, "{plain_ones_with_stale_bytes}");
    // 32 pairs of leaked clusters of 2 MiB.
    let geometry = geometry(21, 4, 1 << 30);
    let geometry = Geometry { data_file: Some(DataFile::Plain), ..geometry };
    let why = build(&geometry, Initial::Leaky).unwrap_err().to_string();
    assert!(why.contains("bytes of image are too many"), "{why}");
}

/// The same of encrypted images.
#[test]
fn encrypted_images_stay_what_they_were() {
    let expected: [(Initial, u64); 11] = [
        (Initial::Fresh, 0xe24a48f578f375dc),
        (Initial::RefcountBlockOneShort, 0x74a4901d1a5952f3),
        (Initial::RefcountTableOneShort, 0x1881c161573635e2),
        (Initial::L1AboutToGrow, 0x5785b99002806210),
        (Initial::Leaky, 0x85a88394d722425b),
        (Initial::Dirty, 0x6f0164f96979e760),
        (Initial::Fragmented, 0xfc2c24ad224e7d4e),
        (Initial::Bitmaps, 0x160e74cc69d0bcf3),
        (Initial::Leftovers, 0xd56331ce0fb90683),
        (Initial::Compressed, 0x6736615edce82165),
        (Initial::FullOfLeaks, 0xda692fbcd6b1bfad),
    ];
    assert_stay(expected, encrypted);
}

/// Goal: an encrypted image has guest data nowhere in the clear; stale bytes are where no guest cluster has a place. Method: every unit of
/// both files, and what an image that is not encrypted has in its place.
#[test]
fn encrypted_images_have_no_data_in_the_clear() {
    let mut auditor = Auditor::default();
    let mut differ = 0;
    for geometry in encrypted() {
        for initial in Initial::ALL {
            let built = build(&geometry, initial);
            if initial == Initial::Compressed {
                let why = built.unwrap_err().to_string();
                let why = why.ends_with("what is encrypted does not compress")
                    || why.ends_with("a data file has no compressed clusters");
                assert!(why, "{geometry:?}");
                continue;
            }
            let Ok(built) = built else { continue };
            let mut evidence = built.evidence();
            auditor.audit(&mut evidence);
            let data = built.data.iter().flat_map(|data| &data.units);
            let data = data.map(|(unit, bytes)| (DATA_FIRST + unit, bytes));
            for (unit, bytes) in built.units.iter().map(|(unit, bytes)| (*unit, bytes)).chain(data)
            {
                let region = auditor.image().label(unit * 512).region;
                match payload::decode(bytes) {
                    Value::Tag { id, .. } => {
                        assert_eq!(id, payload::STALE, "{unit} {initial:?} {geometry:?}");
                        assert!(matches!(region, Region::Free(_)), "{region} {geometry:?}");
                    }
                    Value::Zero => panic!("zeroes are not listed"),
                    Value::Foreign(_) => differ += u64::from(matches!(region, Region::Data(_))),
                }
            }
        }
    }
    assert!(differ > 10_000, "{differ}");
}

/// Goal: workloads begin with streams of every situation: two in a unit, one across host clusters, a host cluster with as many as it can
/// count. Method: where they lie in images of narrow and wide refcounts.
#[test]
fn compressed_images_have_streams_of_every_situation() {
    let mut auditor = Auditor::default();
    for (bits, order) in [(10, 1), (10, 4), (12, 1), (12, 4), (14, 2)] {
        let geometry = geometry(bits, order, 64 << bits);
        let built = build(&geometry, Initial::Compressed).unwrap();
        let report = auditor.audit(&mut built.evidence());
        assert_eq!(report.findings, []);
        assert_eq!(report.totals.compressed_clusters, 24);
        let mut streams: Vec<u64> = auditor
            .image()
            .mappings()
            .filter_map(|(_, mapping)| match mapping {
                Mapping::Compressed(offset) => Some(offset),
                _ => None,
            })
            .collect();
        streams.sort_unstable();
        let pairs = || streams.windows(2).map(|pair| (pair[0], pair[1]));
        assert!(pairs().any(|(one, next)| (next - 1) / 512 == next / 512 && next - one < 600));
        let most = (1u64 << (1 << order)) - 1;
        let crosses =
            pairs().any(|(one, next)| one >> bits != (next - 1) >> bits && next - one < 600);
        assert_eq!(crosses, most * 600 > 1 << bits, "{geometry:?}");
        let shared = |cluster: u64| streams.iter().filter(|at| **at >> bits == cluster).count();
        let widest = (0..built.length >> bits).map(shared).max().unwrap() as u64;
        assert!(widest >= most.min((1 << bits) / 600), "{widest} streams begin in one cluster");
    }
    let narrow = build(&geometry(10, 0, 64 << 10), Initial::Compressed).unwrap();
    assert_eq!(auditor.audit(&mut narrow.evidence()).findings, []);
    build(&geometry(9, 4, 64 << 10), Initial::Compressed).unwrap_err();
}

/// Goal: workloads begin with clusters of which each kind of subcluster is a part. Method: the pieces of fragmented images, the smallest
/// that have two clusters chosen among them.
#[test]
fn fragmented_images_have_mixed_clusters() {
    let mut auditor = Auditor::default();
    for (bits, clusters) in [(14, 3), (14, 64), (16, 4)] {
        let geometry = Geometry { extended_l2: true, ..geometry(bits, 4, clusters << bits) };
        let built = build(&geometry, Initial::Fragmented).unwrap();
        auditor.audit(&mut built.evidence());
        let image = auditor.image();
        let pieces = |cluster: u64| {
            let units = geometry.cluster_units();
            let of = cluster * units..(cluster + 1) * units;
            let pieces = image.pieces().filter(move |(piece, _)| of.contains(&piece.start));
            pieces.map(|(_, mapping)| mapping).collect::<Vec<_>>()
        };
        let host = |mapping: &Mapping| matches!(mapping, Mapping::Host(_));
        let all: Vec<_> = (0..clusters).map(pieces).collect();
        let mixed = |has_host: bool| {
            all.iter().any(|pieces| {
                let nothing = pieces.contains(&Mapping::Unallocated);
                nothing && pieces.contains(&Mapping::Zero) && pieces.iter().any(host) == has_host
            })
        };
        assert!(mixed(true) && mixed(false), "{geometry:?}: {all:?}");
        assert!(all.iter().filter(|pieces| pieces.is_empty()).count() > 0, "all are mapped");
        if clusters == 64 {
            assert!(all.iter().any(|pieces| pieces.len() == 1 && host(&pieces[0])));
            assert!(all.contains(&vec![Mapping::Zero]));
        }
        let marked = built.guest.iter().filter(|value| **value != Value::Zero).count();
        assert!(marked > 0 && marked < built.guest.len());
    }
}

#[test]
fn labels_name_what_is_there() {
    let shape = geometry(10, 4, 64 << 10);
    let built = build(&shape, Initial::L1AboutToGrow).unwrap();
    let mut auditor = Auditor::default();
    auditor.audit(&mut built.evidence());
    let image = auditor.image();
    let label = |offset: u64| image.label(offset).to_string();
    // L1 3, the last guest cluster's data 4 and L2 5.
    let expected = [
        (0, "header#0"),
        (512, "header#1"),
        (1024, "refcount-table#0"),
        (2048, "refcount-block[0]#0"),
        (2048 + 600, "refcount-block[0]#1"),
        (3072, "l1#0"),
        (4096, "data[63]#0"),
        (5120 + 512, "l2[0]#1"),
        (6144, "beyond-end"),
    ];
    for (offset, text) in expected {
        assert_eq!(label(offset), text, "{offset}");
    }
    let luks = Geometry { encryption: Some(Encryption::Luks), ..geometry(16, 4, 64 << 10) };
    auditor.audit(&mut build(&luks, Initial::Fresh).unwrap().evidence());
    let header = auditor.image().luks_header().unwrap();
    assert_eq!(header, 3 << 16..(3 << 16) + 1_052_672);
    let label = |offset: u64| auditor.image().label(offset).to_string();
    let names = [header.start, header.end, (3 + 17) << 16].map(label);
    assert_eq!(names, ["encryption-header#0", "encryption-header#2056", "l1#0"]);
    let built = build(&shape, Initial::Leaky).unwrap();
    let report = auditor.audit(&mut built.evidence());
    let free = report.findings.iter().find_map(|finding| match finding {
        Finding::Leak { cluster, counted: 0, .. } => Some(*cluster),
        _ => None,
    });
    let free = free.unwrap();
    assert_eq!(auditor.image().label(free * 1024 + 512).to_string(), format!("free[{free}]#1"));
}

/// A table of several clusters counts its units from where it begins.
#[test]
fn labels_count_the_units_of_a_long_table() {
    let shape = geometry(10, 4, 64 << 10);
    let mut evidence = build(&shape, Initial::RefcountBlockOneShort).unwrap().evidence();
    let end = evidence.len();
    evidence.set_len(end + 2048);
    evidence.patch(48, &end.to_be_bytes());
    evidence.patch(56, &2u32.to_be_bytes());
    let mut auditor = Auditor::default();
    auditor.audit(&mut evidence);
    let label = |offset: u64| auditor.image().label(offset).to_string();
    assert_eq!([3072, 4096, 5120 + 512].map(label), ["l1#0", "l1#2", "l1#5"]);
    assert_eq!([end, end + 1536].map(label), ["refcount-table#0", "refcount-table#3"]);
}

#[test]
fn a_file_that_is_no_image_is_all_header() {
    let mut auditor = Auditor::default();
    auditor.audit(&mut BytesEvidence::new(&[1; 700]));
    let label = |offset: u64| auditor.image().label(offset).to_string();
    let expected = ["header#0", "header#1", "beyond-end#1", "beyond-end#2"];
    assert_eq!([0, 699, 700, 1024].map(label), expected);
}

#[test]
fn totals_have_the_keys_of_qemu_img() {
    let mut evidence =
        build(&geometry(10, 4, 64 << 10), Initial::L1AboutToGrow).unwrap().evidence();
    let mut auditor = Auditor::default();
    let mut totals = |evidence: &mut BytesEvidence| {
        serde_json::to_string(&auditor.audit(evidence).totals).unwrap()
    };
    let wanted =
        r#"{"image-end-offset":6144,"total-clusters":64,"check-errors":0,"allocated-clusters":1}"#;
    assert_eq!(totals(&mut evidence), wanted);
    // A leak, and what says that there may be some, are no damage; a missing COPIED flag is.
    let whole = evidence.clone();
    evidence.patch(2048 + 14, &1u16.to_be_bytes());
    evidence.patch(72, &1u64.to_be_bytes());
    evidence.patch(5120 + 63 * 8, &4096u64.to_be_bytes());
    let wanted = concat!(
        r#"{"image-end-offset":6144,"total-clusters":64,"check-errors":0,"corruptions":1,"#,
        r#""leaks":1,"allocated-clusters":1}"#
    );
    assert_eq!(totals(&mut evidence), wanted);
    let mut evidence = whole;
    // Compressed data in a new cluster behind the only L2 table, which is cluster 5.
    evidence.set_len(7168);
    evidence.patch(5120, &(1u64 << 62 | 6144).to_be_bytes());
    evidence.patch(2048 + 12, &1u16.to_be_bytes());
    let wanted = concat!(
        r#"{"image-end-offset":7168,"total-clusters":64,"check-errors":0,"allocated-clusters":2,"#,
        r#""fragmented-clusters":1,"compressed-clusters":1}"#
    );
    assert_eq!(totals(&mut evidence), wanted);
    // Nothing is known of what has no header.
    evidence.patch(0, b"no image");
    let wanted = r#"{"image-end-offset":0,"total-clusters":0,"check-errors":1}"#;
    assert_eq!(totals(&mut evidence), wanted);
}
