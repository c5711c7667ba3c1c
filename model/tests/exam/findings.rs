//! The auditor, on images damaged by hand: each kind of damage gives its findings, and at its stages only.

use model::audit::Auditor;
use model::build::Initial;
use model::evidence::Readable;
use model::finding::{Finding, Stage};
use model::image::COPIED;
use model::label::Region;
use model::mistake::Mistake;
use model::op::{DataFile, Encryption, Geometry};

use crate::patient::{EXTENDED, KIB, PLAIN, Patient, STAGES};
use crate::{Outcome, expect};

/// One kind of damage to a fragmented image, the findings that it must give, and the stages at which each is legal.
type Damage = (&'static str, fn(&mut Patient), &'static [(&'static str, &'static [Stage])]);

const CRASHED: &[Stage] = &[Stage::CrashedClean, Stage::CrashedDirty, Stage::OpenedClean];
const DIRTY_ONLY: &[Stage] = &[Stage::CrashedDirty];
const NOWHERE: &[Stage] = &[];

const DAMAGES: &[Damage] = &[
    ("none", |_| {}, &[]),
    (
        "the refcount of a mapped cluster is 0",
        |p| {
            let guest = p.mapped()[0];
            let host = (p.l2(guest) & !COPIED) / 1024;
            p.put_refcount(host, 0);
        },
        &[("refcount-too-low", DIRTY_ONLY), ("copied-stale", CRASHED)],
    ),
    ("the header has no refcount", |p| p.put_refcount(0, 0), &[("refcount-too-low", DIRTY_ONLY)]),
    (
        "a free cluster has a refcount",
        |p| {
            let hole = p.hole();
            p.put_refcount(hole, 1);
        },
        &[("leak", CRASHED)],
    ),
    ("a cluster past the end has a refcount", |p| p.put_refcount(500, 7), &[("leak", CRASHED)]),
    (
        "COPIED is missing",
        |p| {
            let guest = p.mapped()[0];
            let entry = p.l2(guest);
            p.set_l2(guest, entry & !COPIED);
        },
        &[("copied-missing", CRASHED)],
    ),
    (
        "COPIED is missing in L1",
        |p| {
            let entry = p.u64_at(3072);
            p.put_u64(3072, entry & !COPIED);
        },
        &[("copied-missing", CRASHED)],
    ),
    (
        "COPIED with a refcount of 2",
        |p| {
            let guest = p.mapped()[0];
            let host = (p.l2(guest) & !COPIED) / 1024;
            p.put_refcount(host, 2);
        },
        &[("leak", CRASHED), ("copied-stale", CRASHED)],
    ),
    (
        "two guest clusters in one host cluster",
        |p| {
            let (one, two) = (p.mapped()[0], p.mapped()[1]);
            let (entry, lost) = (p.l2(one), p.l2(two));
            p.set_l2(two, entry);
            p.put_refcount((entry & !COPIED) / 1024, 2);
            p.put_refcount((lost & !COPIED) / 1024, 0);
        },
        &[("overlap", NOWHERE), ("copied-on-shared", NOWHERE), ("copied-on-shared", NOWHERE)],
    ),
    (
        "two L1 entries for one table",
        |p| {
            let entry = p.u64_at(3072);
            let table = entry & !COPIED;
            p.put_u64(3072, table);
            p.add_l1(table);
            p.put_refcount(table / 1024, 2);
        },
        &[("overlap", NOWHERE)],
    ),
    (
        "data over the L1 table",
        |p| {
            p.set_l2(1, 3072);
            p.put_refcount(3, 2);
        },
        &[("overlap", NOWHERE)],
    ),
    ("a mapping past the end", |p| p.set_l2(1, 0x100_0000 | COPIED), &[("out-of-range", NOWHERE)]),
    (
        "a refcount block past the end",
        |p| p.put_u64(1024 + 8, 0x100_0000),
        &[("out-of-range", DIRTY_ONLY)],
    ),
    ("a misaligned mapping", |p| p.set_l2(1, 0x600), &[("misaligned", NOWHERE)]),
    ("a misaligned table", |p| p.add_l1(0x600), &[("misaligned", NOWHERE)]),
    ("a misaligned block", |p| p.put_u64(1024 + 8, 0x600), &[("misaligned", DIRTY_ONLY)]),
    ("reserved bits in L2", |p| p.set_l2(1, 2), &[("reserved-bits", NOWHERE)]),
    ("COPIED on nothing", |p| p.set_l2(1, COPIED), &[("reserved-bits", NOWHERE)]),
    ("reserved bits in L1", |p| p.add_l1(1 << 60), &[("reserved-bits", NOWHERE)]),
    (
        "reserved bits in the refcount table",
        |p| p.put_u64(1024 + 8, 8),
        &[("reserved-bits", DIRTY_ONLY)],
    ),
    ("dirty", |p| p.put_u64(72, 1), &[("dirty", CRASHED)]),
    ("corrupt", |p| p.put_u64(72, 2), &[("corrupt", NOWHERE)]),
    ("another magic", |p| p.disk.patch(0, b"QED\0"), &[("header", NOWHERE)]),
    ("version 4", |p| p.disk.patch(4, &4u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("clusters of 256 bytes", |p| p.disk.patch(20, &8u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("refcounts of 128 bits", |p| p.disk.patch(96, &7u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("a short header", |p| p.disk.patch(100, &96u32.to_be_bytes()), &[("header", NOWHERE)]),
    (
        "a header that ends where its compression type would be",
        |p| {
            p.disk.patch(100, &104u32.to_be_bytes());
            p.put_u64(104, 0x1234_5678_0000_0000);
        },
        &[],
    ),
    ("an L1 table one entry too short", |p| p.put_u64(24, 129 << 10), &[("header", NOWHERE)]),
    ("no L1 table", |p| p.disk.patch(36, &0u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("an endless L1 table", |p| p.disk.patch(36, &u32::MAX.to_be_bytes()), &[("header", NOWHERE)]),
    ("an odd L1 table", |p| p.put_u64(40, 3073), &[("header", NOWHERE)]),
    ("no refcount table", |p| p.disk.patch(56, &0u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("an unknown feature", |p| p.put_u64(72, 1 << 40), &[("header", NOWHERE)]),
    ("a compression type without its bit", |p| p.disk.patch(104, &[1]), &[("header", NOWHERE)]),
    ("a bit without its compression type", |p| p.put_u64(72, 8), &[("header", NOWHERE)]),
    (
        "another compression type",
        |p| {
            p.put_u64(72, 8);
            p.disk.patch(104, &[1]);
        },
        &[],
    ),
    (
        "an unknown compression type",
        |p| {
            p.put_u64(72, 8);
            p.disk.patch(104, &[2]);
        },
        &[("header", NOWHERE)],
    ),
    ("an extension to the end", |p| p.put_u64(112, 0x1234_5678_0000_0388), &[]),
    (
        "an extension past the end",
        |p| p.put_u64(112, 0x1234_5678_0000_0389),
        &[("header", NOWHERE)],
    ),
    ("an endless extension", |p| p.put_u64(112, 0x1234_5678_7fff_ffff), &[("header", NOWHERE)]),
    ("bitmaps that nobody vouches for", |p| p.put_u64(112, 0x2385_2875_0000_0000), &[]),
    (
        "an encryption header of an image that is not encrypted",
        |p| p.put_u64(112, 0x0537_be77_0000_0010),
        &[("header", NOWHERE)],
    ),
    (
        "a backing file",
        |p| {
            p.put_u64(8, 512);
            p.disk.patch(16, &1023u32.to_be_bytes());
        },
        &[],
    ),
    (
        "a backing file with too long a name",
        |p| {
            p.put_u64(8, 512);
            p.disk.patch(16, &1024u32.to_be_bytes());
        },
        &[("header", NOWHERE)],
    ),
    (
        "a promise of raw data without a data file, over a layer",
        |p| {
            p.put_u64(8, 512);
            p.disk.patch(16, &9u32.to_be_bytes());
            p.put_u64(88, 2);
        },
        &[],
    ),
    ("a name's length without a name", |p| p.disk.patch(16, &u32::MAX.to_be_bytes()), &[]),
    ("a name's place without a name", |p| p.put_u64(8, 512), &[]),
    ("snapshots", |p| p.disk.patch(60, &1u32.to_be_bytes()), &[("unsupported", NOWHERE)]),
    ("AES", |p| p.disk.patch(32, &1u32.to_be_bytes()), &[]),
    ("LUKS without a header", |p| p.disk.patch(32, &2u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("an unknown encryption", |p| p.disk.patch(32, &3u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("extended L2 entries in small clusters", |p| p.put_u64(72, 16), &[("header", NOWHERE)]),
    ("an external data file", |p| p.put_u64(72, 4), &[("unsupported", NOWHERE)]),
    (
        "a compressed cluster in two",
        |p| {
            let hole = p.hole();
            let end = p.disk.len();
            p.disk.set_len(end + 2048);
            p.put_refcount(end / 1024, 1);
            p.put_refcount(end / 1024 + 1, 1);
            // 1 KiB clusters: the sectors behind the first one are counted from bit 60 on.
            p.set_l2(1, 1 << 62 | 1 << 60 | (end + 512 + 17));
            p.put_refcount(hole, 0);
        },
        &[],
    ),
    (
        "a compressed cluster in a leaked one",
        |p| {
            let hole = p.hole();
            p.set_l2(1, 1 << 62 | (hole * 1024 + 17));
            p.put_refcount(hole, 1);
        },
        &[],
    ),
];

/// The same to an image with bitmaps: a directory, one table, its bits, and the table of a bitmap of ones.
const BITMAP_DAMAGES: &[Damage] = &[
    ("none to bitmaps", |_| {}, &[]),
    (
        "the bit is cleared",
        |p| p.put_u64(88, 0),
        &[("leak", CRASHED), ("leak", CRASHED), ("leak", CRASHED), ("leak", CRASHED)],
    ),
    ("another bit is set", |p| p.put_u64(88, 3), &[]),
    (
        "the directory has no refcount",
        |p| {
            let directory = p.directory() / 1024;
            p.put_refcount(directory, 0);
        },
        &[("refcount-too-low", DIRTY_ONLY)],
    ),
    (
        "a table has no refcount",
        |p| {
            let table = p.directory() / 1024 + 1;
            p.put_refcount(table, 0);
        },
        &[("refcount-too-low", DIRTY_ONLY)],
    ),
    (
        "bits have no refcount",
        |p| {
            let bits = p.directory() / 1024 + 2;
            p.put_refcount(bits, 0);
        },
        &[("refcount-too-low", DIRTY_ONLY)],
    ),
    (
        "an extension of 25 bytes",
        |p| p.put_u64(112, 0x2385_2875_0000_0019),
        &[
            ("header", NOWHERE),
            ("leak", CRASHED),
            ("leak", CRASHED),
            ("leak", CRASHED),
            ("leak", CRASHED),
        ],
    ),
    ("a reserved field", |p| p.put_u64(120, 0x2_0000_0001), &[("header", NOWHERE)]),
    (
        "no bitmap",
        |p| p.put_u64(120, 0),
        &[("header", NOWHERE), ("leak", CRASHED), ("leak", CRASHED), ("leak", CRASHED)],
    ),
    (
        "a bitmap more than the directory has",
        |p| p.put_u64(120, 0x3_0000_0000),
        &[("header", NOWHERE)],
    ),
    (
        "a directory of nothing",
        |p| p.put_u64(128, 0),
        &[
            ("header", NOWHERE),
            ("leak", CRASHED),
            ("leak", CRASHED),
            ("leak", CRASHED),
            ("leak", CRASHED),
        ],
    ),
    ("a directory with room", |p| p.put_u64(128, 1024), &[]),
    (
        "bits over the L1 table",
        |p| {
            p.put_bits(3072);
            p.put_refcount(3, 2);
        },
        &[("overlap", NOWHERE), ("leak", CRASHED)],
    ),
    ("bits past the end", |p| p.put_bits(1 << 30), &[("out-of-range", NOWHERE), ("leak", CRASHED)]),
    ("misaligned bits", |p| p.put_bits(0x600), &[("misaligned", NOWHERE), ("leak", CRASHED)]),
    ("ones instead of bits", |p| p.put_bits(1), &[("leak", CRASHED)]),
    (
        "a reserved bit instead of bits",
        |p| p.put_bits(2),
        &[("reserved-bits", NOWHERE), ("leak", CRASHED)],
    ),
    (
        "ones and an offset",
        |p| {
            let bits = p.directory() + 2048;
            p.put_bits(bits | 1);
        },
        &[("reserved-bits", NOWHERE)],
    ),
    (
        "a table that is no cluster's",
        |p| {
            let directory = p.directory();
            p.put_u64(directory + 32, 0x601);
        },
        &[("misaligned", NOWHERE), ("leak", CRASHED)],
    ),
    (
        "a bitmap of an unknown type",
        |p| {
            let directory = p.directory();
            p.disk.patch(directory + 32 + 16, &[2]);
        },
        &[("header", NOWHERE), ("leak", CRASHED)],
    ),
    (
        "a name that is too long",
        |p| {
            let directory = p.directory();
            p.disk.patch(directory + 32 + 19, &[9]);
        },
        &[("header", NOWHERE), ("leak", CRASHED)],
    ),
    (
        "extra data",
        |p| {
            let directory = p.directory();
            p.put_u64(128, 1024);
            p.disk.patch(directory + 32 + 23, &[9]);
        },
        &[],
    ),
];

/// The same to an image with extended L2 entries, [`EXTENDED`].
const EXTENDED_DAMAGES: &[Damage] = &[
    ("none to extended entries", |_| {}, &[]),
    (
        "a subcluster that is allocated and zero",
        |p| {
            let bitmap = p.subclusters(0);
            p.set_subclusters(0, bitmap | 1 << 32);
        },
        &[("invalid-subclusters", NOWHERE)],
    ),
    (
        "the last one is allocated and zero",
        |p| p.set_subclusters(6, 1 << 63 | 1 << 31),
        &[("invalid-subclusters", NOWHERE)],
    ),
    (
        "a subcluster that is allocated nowhere",
        |p| p.set_subclusters(1, 1 << 31),
        &[("invalid-subclusters", NOWHERE)],
    ),
    (
        "one that is allocated nowhere and zero",
        |p| p.set_subclusters(1, 1 << 32 | 1),
        &[("invalid-subclusters", NOWHERE), ("invalid-subclusters", NOWHERE)],
    ),
    ("zeroes nowhere", |p| p.set_subclusters(1, 1 << 32 | 1 << 63), &[]),
    ("a host cluster for nothing", |p| p.set_subclusters(6, 0), &[]),
    (
        "one that has no refcount",
        |p| {
            p.set_subclusters(6, 0);
            let host = (p.l2(6) & !COPIED) >> 14;
            p.put_refcount(host, 0);
        },
        &[("refcount-too-low", DIRTY_ONLY), ("copied-stale", CRASHED)],
    ),
    (
        "COPIED on nothing but zeroes",
        |p| {
            p.set_subclusters(1, 1 << 32);
            p.set_l2(1, COPIED);
        },
        &[("reserved-bits", NOWHERE)],
    ),
    ("the flag of a zero cluster", |p| p.set_l2(1, 1), &[("reserved-bits", NOWHERE)]),
    (
        "the flag beside a host cluster",
        |p| {
            let entry = p.l2(6);
            p.set_l2(6, entry | 1);
        },
        &[("reserved-bits", NOWHERE)],
    ),
    (
        "a compressed cluster without subclusters",
        |p| {
            let hole = p.hole();
            p.set_l2(1, 1 << 62 | (hole << 14 | 17));
            p.put_refcount(hole, 1);
        },
        &[],
    ),
    (
        "a compressed cluster with a subcluster",
        |p| {
            let hole = p.hole();
            p.set_l2(1, 1 << 62 | (hole << 14 | 17));
            p.set_subclusters(1, 1 << 40);
            p.put_refcount(hole, 1);
        },
        &[("invalid-subclusters", NOWHERE)],
    ),
    (
        "extended entries in clusters of 8 KiB",
        |p| p.disk.patch(20, &13u32.to_be_bytes()),
        &[("header", NOWHERE)],
    ),
    (
        "an L1 table one extended entry too short",
        |p| p.put_u64(24, (16 << 20) + 512),
        &[("header", NOWHERE)],
    ),
];

/// The same to an image with a data file, [`PLAIN`].
const DATA_DAMAGES: &[Damage] = &[
    ("none to an image with a data file", |_| {}, &[]),
    (
        "an entry for the place of another",
        |p| p.set_l2(1, 3 << 10 | COPIED),
        &[("data-file-offset", NOWHERE)],
    ),
    ("an entry for the first place", |p| p.set_l2(1, COPIED), &[("data-file-offset", NOWHERE)]),
    (
        "zeroes in the place of another",
        |p| p.set_l2(1, 3 << 10 | COPIED | 1),
        &[("data-file-offset", NOWHERE)],
    ),
    ("zeroes in its own place", |p| p.set_l2(1, 1 << 10 | COPIED | 1), &[]),
    ("zeroes nowhere in a data file", |p| p.set_l2(1, 1), &[]),
    ("the first place without COPIED, which is nowhere", |p| p.set_l2(0, 0), &[]),
    ("COPIED is missing in a data file", |p| p.set_l2(1, 1 << 10), &[("copied-missing", CRASHED)]),
    ("a misaligned place", |p| p.set_l2(1, 0x600 | COPIED), &[("misaligned", NOWHERE)]),
    ("reserved bits beside no place", |p| p.set_l2(1, 2), &[("reserved-bits", NOWHERE)]),
    (
        "a compressed cluster beside a data file",
        |p| {
            let hole = p.hole();
            p.set_l2(1, 1 << 62 | (hole * 1024 + 17));
        },
        &[("reserved-bits", NOWHERE)],
    ),
    (
        "a place past the disk, where the data file has ended",
        |p| p.set_l2(64, 64 << 10 | COPIED),
        &[],
    ),
    (
        "a place of the disk past the end of the data file",
        |p| {
            p.disk.set_data_len(63 << 10);
            p.set_l2(63, 63 << 10 | COPIED);
        },
        &[("data-file-short", NOWHERE), ("out-of-range", NOWHERE)],
    ),
    (
        "a place that the end of the data file cuts",
        |p| {
            p.disk.set_data_len((64 << 10) + 1);
            p.set_l2(64, 64 << 10 | COPIED);
        },
        &[],
    ),
    (
        "a data file one byte too short",
        |p| p.disk.set_data_len((64 << 10) - 1),
        &[("data-file-short", NOWHERE)],
    ),
    ("a disk that ends inside a unit", |p| p.put_u64(24, (64 << 10) + 1), &[]),
    ("a longer data file", |p| p.disk.set_data_len(1 << 20), &[]),
    ("a longer image", |p| p.disk.set_len(1 << 20), &[]),
    ("a promise of raw data", |p| p.put_u64(88, 2), &[]),
    (
        "a promise of raw data over a layer",
        |p| {
            p.put_u64(88, 2);
            p.put_u64(8, 512);
            p.disk.patch(16, &9u32.to_be_bytes());
        },
        &[("header", NOWHERE)],
    ),
    (
        "a name of a data file past the end",
        |p| p.put_u64(112, 0x4441_5441_0000_0389),
        &[("header", NOWHERE)],
    ),
    ("no name of a data file", |p| p.put_u64(112, 0x4441_5442_0000_0008), &[]),
    (
        "snapshots beside a data file",
        |p| p.disk.patch(60, &1u32.to_be_bytes()),
        &[("unsupported", NOWHERE)],
    ),
];

/// In one cluster of 2 MiB there is all of a LUKS header, behind the refcount block and before the L1 table.
const LARGE_LUKS: Geometry =
    Geometry { cluster_bits: 21, virtual_size: 2 << 20, encryption: Some(Encryption::Luks), ..KIB };

/// The same to an image with a LUKS header, [`LARGE_LUKS`]: the data of its extension is at 120.
const LUKS_DAMAGES: &[Damage] = &[
    ("none to an image with a LUKS header", |_| {}, &[]),
    ("it has no refcount", |p| p.put_refcount(3, 0), &[("refcount-too-low", DIRTY_ONLY)]),
    (
        "it begins in no cluster",
        |p| p.put_u64(120, (6 << 20) + 512),
        &[("misaligned", NOWHERE), ("leak", CRASHED)],
    ),
    (
        "it begins where the image does",
        |p| p.put_u64(120, 0),
        &[("header", NOWHERE), ("leak", CRASHED)],
    ),
    ("it is empty", |p| p.put_u64(128, 0), &[("header", NOWHERE), ("leak", CRASHED)]),
    (
        "it lies past the end",
        |p| p.put_u64(120, 1 << 30),
        &[("out-of-range", NOWHERE), ("leak", CRASHED)],
    ),
    ("it reaches to the end of its cluster", |p| p.put_u64(128, 2 << 20), &[]),
    (
        "it reaches into the L1 table",
        |p| p.put_u64(128, (2 << 20) + 1),
        &[("overlap", NOWHERE), ("refcount-too-low", DIRTY_ONLY)],
    ),
    (
        "it is endless",
        |p| p.put_u64(128, u64::MAX),
        &[
            ("out-of-range", NOWHERE),
            ("overlap", NOWHERE),
            ("refcount-too-low", DIRTY_ONLY),
            ("refcount-too-low", DIRTY_ONLY),
        ],
    ),
    (
        "an extension of 17 bytes",
        |p| p.put_u64(112, 0x0537_be77_0000_0011),
        &[("header", NOWHERE), ("header", NOWHERE), ("leak", CRASHED)],
    ),
    (
        "no extension that leads to it",
        |p| p.put_u64(112, 0x0537_be78_0000_0010),
        &[("header", NOWHERE), ("leak", CRASHED)],
    ),
    (
        "no encryption any more",
        |p| p.disk.patch(35, &[0]),
        &[("header", NOWHERE), ("leak", CRASHED)],
    ),
    ("AES instead", |p| p.disk.patch(35, &[1]), &[("header", NOWHERE), ("leak", CRASHED)]),
    ("an encryption of the future", |p| p.disk.patch(35, &[3]), &[("header", NOWHERE)]),
];

const EXTENDED_DATA: Geometry = Geometry { data_file: Some(DataFile::Plain), ..EXTENDED };

/// The same with extended L2 entries.
const EXTENDED_DATA_DAMAGES: &[Damage] = &[
    ("none to extended entries for a data file", |_| {}, &[]),
    ("a place for nothing", |p| p.set_subclusters(6, 0), &[]),
    ("the first place for nothing", |p| p.set_subclusters(0, 0), &[]),
    (
        "the first place without COPIED, and allocated",
        |p| p.set_l2(0, 0),
        &[("invalid-subclusters", NOWHERE)],
    ),
    (
        "a subcluster in no place",
        |p| p.set_subclusters(1, 1 << 31),
        &[("invalid-subclusters", NOWHERE)],
    ),
    (
        "a subcluster in the first place",
        |p| {
            p.set_l2(1, COPIED);
            p.set_subclusters(1, 1 << 31);
        },
        &[("data-file-offset", NOWHERE)],
    ),
];

/// Every kind of damage, and an image that has suffered it.
fn damaged() -> impl Iterator<Item = (&'static Damage, Patient)> {
    let kinds = [
        (KIB, Initial::Fragmented, DAMAGES),
        (KIB, Initial::Bitmaps, BITMAP_DAMAGES),
        (EXTENDED, Initial::Fragmented, EXTENDED_DAMAGES),
        (PLAIN, Initial::Fragmented, DATA_DAMAGES),
        (EXTENDED_DATA, Initial::Fragmented, EXTENDED_DATA_DAMAGES),
        (LARGE_LUKS, Initial::Fresh, LUKS_DAMAGES),
    ];
    kinds.into_iter().flat_map(|(geometry, initial, damages)| {
        damages.iter().map(move |damage| {
            let mut patient = Patient::of(&geometry, initial);
            (damage.1)(&mut patient);
            (damage, patient)
        })
    })
}

pub(crate) fn findings_seen(mistake: Mistake) -> Outcome {
    let mut auditor = Auditor::with_mistake(mistake);
    for ((name, _, expected), mut patient) in damaged() {
        let report = auditor.audit(&mut patient.disk);
        let mut found: Vec<_> = report.findings.iter().map(|finding| finding.name()).collect();
        let mut wanted: Vec<_> = expected.iter().map(|(kind, _)| *kind).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        expect(name, found, wanted)?;
    }
    Ok(())
}

pub(crate) fn findings_by_stage(mistake: Mistake) -> Outcome {
    let mut auditor = Auditor::with_mistake(mistake);
    for ((name, _, expected), mut patient) in damaged() {
        let report = auditor.audit(&mut patient.disk);
        for stage in STAGES {
            let mut found: Vec<_> =
                report.violations(stage).map(|(_, finding)| finding.name()).collect();
            let mut wanted: Vec<_> = expected
                .iter()
                .filter(|(_, legal)| !legal.contains(&stage))
                .map(|(kind, _)| *kind)
                .collect();
            found.sort_unstable();
            wanted.sort_unstable();
            expect(&format!("{name}, {stage:?}"), found, wanted)?;
        }
    }
    Ok(())
}

/// Goal: what the reader cannot make sense of ends the audit, and nothing else does.
#[test]
fn an_unknown_layout_leaves_no_header() {
    let mut auditor = Auditor::default();
    let lost = damaged().filter_map(|((name, ..), mut patient)| {
        auditor.audit(&mut patient.disk).header.is_none().then_some(*name)
    });
    let expected = [
        "another magic",
        "version 4",
        "clusters of 256 bytes",
        "refcounts of 128 bits",
        "a short header",
        "an L1 table one entry too short",
        "no L1 table",
        "an endless L1 table",
        "an odd L1 table",
        "no refcount table",
        "an unknown feature",
        "an unknown encryption",
        "extended L2 entries in small clusters",
        "an external data file",
        "extended entries in clusters of 8 KiB",
        "an L1 table one extended entry too short",
        "an encryption of the future",
    ];
    assert_eq!(lost.collect::<Vec<_>>(), expected);
}

/// Goal: a finding names the entry whose subclusters cannot be, and why; the image can be written all the same, as with any other entry
/// of data that makes no sense.
#[test]
fn invalid_subclusters_are_named() {
    let told = |word: u64, bitmap: u64| {
        let mut patient = Patient::of(&EXTENDED, Initial::L1AboutToGrow);
        patient.set_l2(1, word);
        patient.set_subclusters(1, bitmap);
        let mut auditor = Auditor::default();
        let report = auditor.audit(&mut patient.disk);
        let invalid = |f: &&Finding| matches!(f, Finding::InvalidSubclusters { .. });
        let invalid: Vec<_> = report.findings.iter().filter(invalid).collect();
        assert!(invalid.iter().all(|finding| finding.violates(Stage::Writable).is_none()));
        invalid.iter().map(|finding| finding.to_string()).collect::<Vec<_>>()
    };
    let both = "one is both allocated and zero";
    let nowhere = "one is allocated without a host cluster";
    let words =
        |word: u64, bitmap: u64| format!("entry {word:#018x} has subclusters {bitmap:#018x}");
    let host = 0x8000;
    assert!(told(host, 0xffff_0000_0000_ffff).is_empty());
    assert!(told(0, 0xffff_0000_0000_0000).is_empty());
    let bitmap = 0x8000_0000_8000_0001;
    assert_eq!(told(host, bitmap), [format!("data[1]: {}: {both}", words(host, bitmap))]);
    let found = told(0, bitmap);
    assert_eq!(found, [both, nowhere].map(|why| format!("data[1]: {}: {why}", words(0, bitmap))));
    let word = 1 << 62 | host;
    let why = "a compressed cluster has none";
    let wanted = [format!("compressed[1]: {}: {why}", words(word, bitmap))];
    assert_eq!(told(word, bitmap), wanted);
}

/// Goal: a finding names the bits that must be clear, and only those. In version 2 there is no zero flag.
#[test]
fn reserved_bits_are_named() {
    const COMPRESSED: u64 = 1 << 62;
    type Put = fn(&mut Patient, u64);
    let cases: [(u32, Put, Region, u64, u64); 13] = [
        (3, |p, entry| p.set_l2(1, entry), Region::Data(1), 1, 0),
        (3, |p, entry| p.set_l2(1, entry), Region::Data(1), 2, 2),
        (3, |p, entry| p.set_l2(1, entry), Region::Data(1), COPIED, COPIED),
        (3, |p, entry| p.set_l2(1, entry), Region::Data(1), COPIED | 0x101, COPIED | 0x100),
        (3, |p, entry| p.set_l2(1, entry), Region::Data(1), 1 << 61 | 0x400, 1 << 61),
        (3, |p, entry| p.set_l2(1, entry), Region::Compressed(1), COMPRESSED | COPIED, COPIED),
        (2, |p, entry| p.set_l2(1, entry), Region::Data(1), 0x400, 0),
        (2, |p, entry| p.set_l2(1, entry), Region::Data(1), 1, 1),
        (2, |p, entry| p.set_l2(1, entry), Region::Data(1), 3, 3),
        (3, Patient::add_l1, Region::L2(1), COPIED, COPIED),
        (3, Patient::add_l1, Region::L2(1), 1 << 60 | 1, 1 << 60 | 1),
        (3, Patient::add_l1, Region::L2(1), COPIED | 1 << 60 | 0x400, 1 << 60),
        (3, |p, entry| p.put_u64(1024 + 8, entry), Region::RefcountBlock(1), 0x5ff, 0x1ff),
    ];
    for (version, put, region, entry, expected) in cases {
        let mut patient = Patient::new(Initial::L1AboutToGrow);
        patient.disk.patch(4, &version.to_be_bytes());
        put(&mut patient, entry);
        let mut auditor = Auditor::default();
        let report = auditor.audit(&mut patient.disk);
        let named: Vec<_> = report
            .findings
            .iter()
            .filter_map(|finding| match *finding {
                Finding::ReservedBits { at, entry, bits } => Some((at, entry, bits)),
                _ => None,
            })
            .collect();
        let expected: &[_] = if expected == 0 { &[] } else { &[(region, entry, expected)] };
        assert_eq!(named, expected, "version {version}");
    }
}
