//! Images that nobody should trust.
//!
//! Goal: whatever the bytes, the reader, the auditor and the judge end, soon, and without a panic. Method: images of every
//! kind with bytes changed at random, most of them in metadata, cut short or made longer; and worst cases made by hand, where
//! the work would not be in proportion to the file if tables were walked more than once.

use model::audit::Auditor;
use model::build::{Initial, build};
use model::evidence::{BytesEvidence, Evidence, Readable};
use model::guest::{DiscardReads, Guest, Promises};
use model::judge::{Contents, Judge};
use model::op::{DataFile, Durability, Encryption, Geometry};
use model::payload::Unit;
use proptest::prelude::*;

fn judge_everything(evidence: &mut BytesEvidence, guest: &Guest) {
    let mut judge = Judge::default();
    let mut contents = Contents::default();
    let violations = judge.state(evidence, guest, None).to_vec();
    violations.iter().for_each(|violation| assert!(!violation.to_string().is_empty()));
    // A size that a damaged header makes up is not worth a list of all its units.
    if judge.auditor().image().header().is_some_and(|header| header.size < 1 << 24) {
        judge.contents(evidence, &mut contents);
    }
    for offset in [0, 511, 1 << 10, 1 << 20, u64::MAX] {
        assert!(!judge.auditor().image().label(offset).to_string().is_empty());
        judge.auditor().image().mapping(offset);
        let (piece, _) = judge.auditor().image().piece(offset);
        assert!(piece.contains(&offset) || offset == u64::MAX, "{offset} is not in {piece:?}");
    }
    let pieces = judge.auditor().image().pieces();
    pieces.for_each(|(piece, _)| assert!(piece.start <= piece.end));
    judge.p3_mapping_agrees(&[]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images_are_judged_to_the_end(
        bits in prop_oneof![9u32..=12, Just(14)],
        order in 0u32..=6,
        kind in 0..Initial::ALL.len(),
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..12),
        length in prop::option::of(0u64..300_000),
        data_file in prop_oneof![Just(None), Just(Some(DataFile::Plain)), Just(Some(DataFile::Raw))],
        data_length in prop::option::of(0u64..300_000),
        encryption in prop_oneof![Just(None), Just(Some(Encryption::Aes)), Just(Some(Encryption::Luks))],
    ) {
        let initial = Initial::ALL[kind];
        prop_assume!(!matches!(
            initial,
            Initial::RefcountBlockOneShort | Initial::RefcountTableOneShort | Initial::FullOfLeaks
        ));
        prop_assume!(initial != Initial::Compressed || bits > 9);
        let data_file = data_file.filter(|_| initial != Initial::Compressed);
        let encryption = encryption
            .filter(|_| initial != Initial::Compressed && data_file != Some(DataFile::Raw));
        let geometry = Geometry { refcount_order: order, extended_l2: bits == 14, data_file, encryption, ..Geometry::plain(bits, 64 << 10) };
        let built = build(&geometry, initial).unwrap();
        let mut evidence = built.evidence();
        let promises = Promises {
            cluster_units: geometry.cluster_units(),
            discard: DiscardReads::Zeroes,
            grow: Durability::Through,
            changes: Durability::Cached,
        };
        let guest = Guest::new(&built.guest_keys(|bytes| evidence.values.intern(bytes)), promises)
            .on(built.made(&geometry, |unit| evidence.values.intern(unit)));
        for (at, byte, header) in damages {
            let reach = if header { 112 } else { built.length.min(8 << bits) };
            evidence.patch(at.index(reach as usize) as u64, &[byte]);
        }
        if let Some(length) = length {
            evidence.set_len(length);
        }
        if let (Some(length), Some(_)) = (data_length, data_file) {
            evidence.set_data_len(length);
        }
        judge_everything(&mut evidence, &guest);
    }

    #[test]
    fn noise_is_judged_to_the_end(bytes in prop::collection::vec(any::<u8>(), 0..4096), magic: bool) {
        let mut bytes = bytes;
        if magic && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        }
        let guest = Guest::new(&[], Promises { cluster_units: 1, discard: DiscardReads::Zeroes, grow: Durability::Through, changes: Durability::Cached });
        judge_everything(&mut BytesEvidence::new(&bytes), &guest);
    }
}

/// Counts how many units are read.
struct Counting {
    disk: BytesEvidence,
    reads: u64,
}

impl Readable for Counting {
    fn len(&mut self) -> u64 {
        self.disk.len()
    }

    fn resolve(&mut self, unit: u64) -> model::evidence::ValueKey {
        self.reads += 1;
        self.disk.resolve(unit)
    }

    fn bytes(&self, key: model::evidence::ValueKey) -> &Unit {
        self.disk.bytes(key)
    }
}

impl Evidence for Counting {
    fn peek(&self, unit: u64, visit: impl FnMut(model::evidence::ValueKey)) {
        self.disk.peek(unit, visit);
    }

    fn key_of(&self, bytes: &Unit) -> Option<model::evidence::ValueKey> {
        self.disk.key_of(bytes)
    }
}

#[test]
fn a_table_that_everything_points_to_is_walked_once() {
    // Clusters of 2 MiB: one L2 table has 4,096 units, and an L1 table of a cluster 262,144 entries, all for that table.
    let geometry = Geometry::plain(21, 4 << 20);
    let built = build(&geometry, Initial::Fragmented).unwrap();
    let mut disk = built.evidence();
    let cluster = geometry.cluster_size();
    disk.patch(36, &(262_144u32).to_be_bytes());
    let table = ((4 * cluster) | (1 << 63)).to_be_bytes();
    let mut unit = [0; 512];
    unit.as_chunks_mut::<8>().0.fill(table);
    for at in 0..cluster / 512 {
        disk.set(3 * cluster / 512 + at, &unit);
    }
    let units = disk.len() / 512;
    let mut counting = Counting { disk, reads: 0 };
    let mut auditor = Auditor::default();
    let report = auditor.audit(&mut counting);
    assert!(report.is_cut_short(), "{} findings", report.findings.len());
    assert!(counting.reads <= units, "{} reads of {units} units", counting.reads);
}

#[test]
fn a_file_of_too_many_clusters_is_refused() {
    let geometry = Geometry::plain(9, 4096);
    let built = build(&geometry, Initial::Fresh).unwrap();
    struct Long(BytesEvidence, u64);
    impl Readable for Long {
        fn len(&mut self) -> u64 {
            self.1
        }

        fn resolve(&mut self, unit: u64) -> model::evidence::ValueKey {
            self.0.resolve(unit)
        }

        fn bytes(&self, key: model::evidence::ValueKey) -> &Unit {
            self.0.bytes(key)
        }
    }

    impl Evidence for Long {
        fn peek(&self, unit: u64, visit: impl FnMut(model::evidence::ValueKey)) {
            self.0.peek(unit, visit);
        }

        fn key_of(&self, bytes: &Unit) -> Option<model::evidence::ValueKey> {
            self.0.key_of(bytes)
        }
    }
    for (clusters, expected) in
        [(1 << 24, &[][..]), ((1 << 24) + 1, &["unsupported"]), (1 << 51, &["unsupported"])]
    {
        let mut evidence = Long(built.evidence(), clusters << 9);
        let mut auditor = Auditor::default();
        let report = auditor.audit(&mut evidence);
        let names: Vec<_> = report.findings.iter().map(|finding| finding.name()).collect();
        assert_eq!(names, expected, "{clusters} clusters");
    }
}
