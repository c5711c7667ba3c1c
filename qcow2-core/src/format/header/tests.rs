//! Goal: what is encoded is what the specification says, what is parsed is what was encoded, and every rule of cluster 0
//! is enforced at its limit and not before it. Method: one header written out byte by byte; generated headers for the
//! round trips; a valid header with one field poked for the limits; and random damage, which must never panic.

use quickcheck::{Arbitrary, Gen, TestResult, quickcheck};

use super::*;

/// A fresh image of 1 MiB with clusters of 512 bytes, as this crate creates it.
#[rustfmt::skip]
const SMALL: [u8; 120] = [
    b'Q', b'F', b'I', 0xfb,  0, 0, 0, 3,      // magic, version
    0, 0, 0, 0, 0, 0, 0, 0,                   // backing_file_offset
    0, 0, 0, 0,  0, 0, 0, 9,                  // backing_file_size, cluster_bits
    0, 0, 0, 0, 0, 0x10, 0, 0,                // size
    0, 0, 0, 0,  0, 0, 0, 32,                 // crypt_method, l1_size
    0, 0, 0, 0, 0, 0, 6, 0,                   // l1_table_offset
    0, 0, 0, 0, 0, 0, 2, 0,                   // refcount_table_offset
    0, 0, 0, 1,  0, 0, 0, 0,                  // refcount_table_clusters, nb_snapshots
    0, 0, 0, 0, 0, 0, 0, 0,                   // snapshots_offset
    0, 0, 0, 0, 0, 0, 0, 0,                   // incompatible_features
    0, 0, 0, 0, 0, 0, 0, 1,                   // compatible_features: lazy refcounts
    0, 0, 0, 0, 0, 0, 0, 0,                   // autoclear_features
    0, 0, 0, 4,  0, 0, 0, 112,                // refcount_order, header_length
    0,  0, 0, 0, 0, 0, 0, 0,                  // compression_type, padding
    0, 0, 0, 0,  0, 0, 0, 0,                  // end of extensions
];

/// A version 2 header with a name directly behind it, as programs from before extensions write.
#[rustfmt::skip]
const OLD: [u8; 80] = [
    b'Q', b'F', b'I', 0xfb,  0, 0, 0, 2,      // magic, version
    0, 0, 0, 0, 0, 0, 0, 72,                  // backing_file_offset
    0, 0, 0, 8,  0, 0, 0, 12,                 // backing_file_size, cluster_bits
    0, 0, 0, 0, 0, 0, 0x13, 0xff,             // size: nine sectors and 511 bytes
    0, 0, 0, 0,  0, 0, 0, 1,                  // crypt_method, l1_size
    0, 0, 0, 0, 0, 0, 0x30, 0,                // l1_table_offset
    0, 0, 0, 0, 0, 0, 0x10, 0,                // refcount_table_offset
    0, 0, 0, 1,  0, 0, 0, 0,                  // refcount_table_clusters, nb_snapshots
    0, 0, 0, 0, 0, 0, 0, 0,                   // snapshots_offset
    b'b', b'a', b's', b'e', b'.', b'i', b'm', b'g',
];

/// A header for an image of `size` bytes whose tables lie one behind the other.
fn header(cluster_bits: u32, size: u64) -> Header {
    let mut header = Header::new(3, cluster_bits, size).unwrap();
    let cluster_size = header.cluster_size();
    header.refcount_table_offset = cluster_size;
    header.refcount_table_clusters = 1;
    header.l1_table_offset = 3 * cluster_size;
    header
}

/// Cluster 0 of an image with that header.
fn cluster(header: &Header) -> Vec<u8> {
    let mut bytes = header.encode().unwrap();
    bytes.resize(header.cluster_size() as usize, 0);
    bytes
}

fn poke(bytes: &mut [u8], field: Field, value: u64) {
    let value = value.to_be_bytes();
    bytes[field.at..field.at + field.width].copy_from_slice(&value[8 - field.width..]);
}

/// Whether `base` with `pokes` parses; an error must name `field`, its offset and its value.
#[track_caller]
fn accepted(base: &[u8], pokes: &[(Field, u64)], field: Field) -> bool {
    let mut bytes = base.to_vec();
    for &(field, value) in pokes {
        poke(&mut bytes, field, value);
    }
    match Header::parse(&bytes) {
        Ok(_) => true,
        Err(FormatError::BadField { field: name, offset, value, .. }) => {
            assert_eq!((name, offset), (field.name, field.at as u64));
            if let Some((_, poked)) = pokes.iter().find(|(poked, _)| poked.at == field.at) {
                assert_eq!(value, *poked);
            }
            false
        }
        Err(other) => panic!("{other}"),
    }
}

/// One `(value, is accepted)` after the other, in one field of `base`.
#[track_caller]
fn limits_of(base: &Header, field: Field, cases: &[(u64, bool)]) {
    let bytes = cluster(base);
    for &(value, expected) in cases {
        assert_eq!(accepted(&bytes, &[(field, value)], field), expected, "{} {value}", field.name);
    }
}

#[test]
fn bytes_by_hand() {
    let mut small = header(9, 1 << 20);
    small.compatible = Compatible::LAZY_REFCOUNTS;
    let bytes = small.encode().unwrap();
    assert_eq!(bytes.len(), 512);
    assert_eq!(bytes[..120], SMALL);
    assert!(bytes[120..].iter().all(|&byte| byte == 0));
    assert_eq!(Header::parse(&bytes), Ok(small));
}

#[test]
fn version_2_is_recognised() {
    let old = Header::parse(&OLD).unwrap();
    assert_eq!((old.version, old.header_length, old.refcount_order), (2, 72, 4));
    assert_eq!(old.backing_name(), Some(&b"base.img"[..]));
    assert_eq!(old.size, 9 * 512, "rounded down");
    assert_eq!((old.extensions.len(), old.unknown.len()), (0, 0));
    // The name leaves no room for an end marker: not a header to create, but one to patch.
    assert!(matches!(old.encode(), Err(FormatError::BadExtension { kind: extension::END, .. })));
    let mut sector = [&OLD[..], &[0xee; 432]].concat();
    Header { nb_snapshots: 1, snapshots_offset: 0x4000, ..old }.patch_sector(&mut sector).unwrap();
    assert_eq!(sector[60..72], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x40, 0]);
    assert_eq!(sector[72..80], OLD[72..]);
    assert!(sector[80..].iter().all(|&byte| byte == 0xee));
}

#[test]
fn the_l1_table_maps_the_odd_bytes_of_a_size_too() {
    let header = header(9, 64 * 512);
    let mut bytes = header.encode().unwrap();
    assert_eq!(Header::parse(&bytes), Ok(header));
    bytes[31] = 4;
    let error = Header::parse(&bytes).unwrap_err();
    assert!(error.to_string().contains("fewer than the 2 that the size needs"), "{error}");
}

#[test]
fn a_size_that_nobody_changed_keeps_its_odd_bytes() {
    let header = Header::parse(&OLD).unwrap();
    assert_ne!(OLD[24..32], header.size.to_be_bytes());
    let mut sector = [&OLD[..], &[0; 432]].concat();
    header.patch_sector(&mut sector).unwrap();
    assert_eq!(sector[24..32], OLD[24..32]);
    let size = header.size + 512;
    Header { size, ..header }.patch_sector(&mut sector).unwrap();
    assert_eq!(sector[24..32], size.to_be_bytes());
}

#[test]
fn version_2_has_no_features() {
    let old = Header { version: 2, header_length: 72, ..header(16, 1 << 20) };
    assert_eq!(Header::parse(&old.encode().unwrap()), Ok(old.clone()));
    let wide = Header { refcount_order: 5, ..old.clone() };
    assert!(matches!(wide.encode(), Err(FormatError::BadField { field: "refcount_order", .. })));
    let lazy = Header { compatible: Compatible::LAZY_REFCOUNTS, ..old.clone() };
    assert!(matches!(lazy.encode(), Err(FormatError::BadField { offset: 80, .. })));
    let long = Header { header_length: 112, ..old };
    assert!(matches!(long.encode(), Err(FormatError::BadField { field: "header_length", .. })));
}

#[test]
fn the_first_bytes() {
    let bytes = cluster(&header(16, 1 << 20));
    assert_eq!(peek_cluster_bits(&bytes[..512]), Ok(16));
    assert_eq!(peek_cluster_bits(&bytes[..24]), Ok(16));
    let error = peek_cluster_bits(&bytes[..23]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image ends at byte 23, inside cluster_bits, which ends at byte 24"
    );
    let error = peek_cluster_bits(b"\x7fELF").unwrap_err();
    assert_eq!(
        error.to_string(),
        "not a qcow2 image: it begins with 0x7f454c46 instead of 0x514649fb"
    );
    for version in [0, 1, 4, u32::MAX] {
        let mut other = bytes.clone();
        poke(&mut other, VERSION, version.into());
        assert_eq!(Header::parse(&other), Err(FormatError::UnsupportedVersion(version)));
    }
}

/// Goal: a file that ends inside cluster 0 is as good as one padded with zeroes, until something that it needs is cut.
#[test]
fn files_that_end_inside_cluster_0() {
    let mut header = header(16, 1 << 20);
    header.set_backing(b"base");
    let bytes = cluster(&header);
    let end = 512 + 4;
    assert_eq!(Header::parse(&bytes[..end]), Ok(header.clone()));
    let cut = |what, needed, len| Err(FormatError::Truncated { what, needed, len });
    assert_eq!(Header::parse(&bytes[..515]), cut("backing file name", 516, 515));
    assert_eq!(Header::parse(&bytes[..111]), cut("header", 112, 111));
    assert_eq!(Header::parse(&bytes[..99]), cut("header_length", 104, 99));
    header.backing = None;
    header.set_extension(0xaaaa, vec![1; 8]);
    let bytes = cluster(&header);
    assert_eq!(Header::parse(&bytes[..128]), Ok(header));
    assert_eq!(Header::parse(&bytes[..127]), cut("extensions", 128, 127));
}

#[test]
fn cluster_bits_limits() {
    for bits in [9, 21] {
        assert!(Header::parse(&cluster(&header(bits, 1 << 20))).is_ok());
    }
    let bytes = cluster(&header(16, 1 << 20));
    for bits in [0, 8, 22, 40, u32::MAX] {
        assert!(!accepted(&bytes, &[(CLUSTER_BITS, bits.into())], CLUSTER_BITS));
        assert!(Header::new(3, bits, 0).is_err());
    }
    let mut bytes = bytes;
    poke(&mut bytes, CLUSTER_BITS, 40);
    let error = Header::parse(&bytes).unwrap_err().to_string();
    assert_eq!(error, "header field cluster_bits at byte 20: 40 is outside 9..=21");
}

#[test]
fn extended_l2_needs_large_clusters() {
    for (bits, ok) in [(13, false), (14, true)] {
        let bytes = cluster(&header(bits, 0));
        let pokes = [(INCOMPATIBLE, Incompatible::EXTENDED_L2.bits())];
        assert_eq!(accepted(&bytes, &pokes, CLUSTER_BITS), ok);
    }
    // Half the entries per L2 table: twice the L1 entries.
    let mut extended = header(16, 1 << 30);
    extended.incompatible = Incompatible::EXTENDED_L2;
    assert_eq!((extended.l1_size, extended.l1_entries_for(1 << 30)), (2, Ok(4)));
    assert!(matches!(extended.encode(), Err(FormatError::BadField { field: "l1_size", .. })));
}

/// Goal: the virtual size is limited by the largest L1 table, and that table by 32 MiB.
#[test]
fn size_and_l1_limits() {
    for bits in 9..=21 {
        let most = limits::virtual_size(bits, false);
        let largest = header(bits, most);
        assert_eq!(largest.l1_size, 1 << 22);
        // The largest L1 table of small clusters would run into nothing: it is the last of the tables.
        assert_eq!(Header::parse(&cluster(&largest)), Ok(largest.clone()));
        limits_of(&largest, SIZE, &[(most - 1, true), (most, true), (most + 1, false)]);
        limits_of(&largest, L1_SIZE, &[((1 << 22) + 1, false), ((1 << 22) - 1, false)]);
        assert!(Header::new(3, bits, most + 1).is_err());
    }
    assert!(Header::new(3, 21, u64::MAX).is_err());
    let per_l2 = limits::l2_coverage(16, false);
    let one = header(16, per_l2);
    assert_eq!(one.l1_size, 1);
    limits_of(&one, SIZE, &[(0, true), (per_l2, true)]);
    // One sector more needs one entry more, and the error is about the entries.
    assert!(!accepted(&cluster(&one), &[(SIZE, per_l2 + 512)], L1_SIZE));
    limits_of(&one, L1_SIZE, &[(0, false), (1, true), (1 << 22, true), (u32::MAX.into(), false)]);
    // Nothing to map needs no table, wherever it is said to be.
    let none = header(16, 0);
    limits_of(&none, L1_OFFSET, &[(0, true), (1 << 16, true), (1, false)]);
}

#[test]
fn refcount_table_limits() {
    for (bits, most) in [(9, 16_384), (16, 128), (21, 4)] {
        let mut base = header(bits, 0);
        base.refcount_table_clusters = most;
        let most = u64::from(most);
        limits_of(&base, REFCOUNT_CLUSTERS, &[(1, true), (most, true), (most + 1, false)]);
        limits_of(&base, REFCOUNT_CLUSTERS, &[(0, false), (u32::MAX.into(), false)]);
    }
    let base = header(16, 0);
    limits_of(&base, REFCOUNT_ORDER, &[(0, true), (6, true), (7, false), (1 << 31, false)]);
    assert_eq!(base.refcounts_per_block(), 32_768);
}

/// Goal: an image without refcount table is refused, except by check, which can build one.
#[test]
fn check_accepts_a_missing_refcount_table() {
    let mut bytes = cluster(&header(16, 1 << 20));
    for (field, value) in [(REFCOUNT_CLUSTERS, 0), (REFCOUNT_OFFSET, 0)] {
        poke(&mut bytes, field, value);
        let error = Header::parse(&bytes).unwrap_err();
        assert!(
            matches!(error, FormatError::BadField { field: "refcount_table_clusters", .. }),
            "{error}"
        );
        assert_eq!(Header::parse_for_check(&bytes).unwrap().refcount_table_clusters, 0);
    }
    // Repair announces itself before it builds the table, and cannot take a table away.
    let mut dirty = Header::parse_for_check(&bytes).unwrap();
    dirty.incompatible = Incompatible::DIRTY;
    dirty.patch_sector(&mut bytes[..512]).unwrap();
    assert_eq!(Header::parse_for_check(&bytes), Ok(dirty.clone()));
    let mut whole = cluster(&header(16, 1 << 20));
    assert!(dirty.patch_sector(&mut whole[..512]).is_err());
    poke(&mut bytes, REFCOUNT_CLUSTERS, 129);
    assert!(Header::parse_for_check(&bytes).is_err(), "every other rule holds for check, too");
}

#[test]
fn snapshot_limits() {
    let mut base = header(16, 1 << 20);
    base.snapshots_offset = 1 << 24;
    let most = u64::from(limits::SNAPSHOTS);
    limits_of(&base, SNAPSHOTS, &[(0, true), (most, true), (most + 1, false)]);
    base.nb_snapshots = 1;
    limits_of(&base, SNAPSHOTS_OFFSET, &[(0, false), (1 << 23, true), ((1 << 23) + 512, false)]);
}

#[test]
fn tables_lie_on_clusters_within_reach() {
    let mut base = header(16, 1 << 20);
    base.nb_snapshots = 1;
    base.snapshots_offset = 1 << 24;
    let last = limits::HOST_OFFSET_END - (1 << 16);
    for field in [L1_OFFSET, REFCOUNT_OFFSET, SNAPSHOTS_OFFSET] {
        limits_of(
            &base,
            field,
            &[
                (0, false),
                (1, false),
                ((1 << 26) + 512, false),
                (1 << 26, true),
                (last, true),
                (last + (1 << 16), false),
                (u64::MAX << 16, false),
                (u64::MAX, false),
            ],
        );
    }
    // A table that ends past the limit although it begins before it.
    assert!(!accepted(
        &cluster(&base),
        &[(REFCOUNT_CLUSTERS, 2), (REFCOUNT_OFFSET, last)],
        REFCOUNT_OFFSET
    ));
}

/// Goal: two tables never share a cluster. Method: an L1 table of three clusters (5 to 7) and the refcount table (two
/// clusters) at each place around it.
#[test]
fn tables_do_not_overlap() {
    let mut base = header(9, 0);
    (base.l1_size, base.l1_table_offset) = (2 * 64 + 1, 5 * 512);
    (base.refcount_table_clusters, base.refcount_table_offset) = (2, 512);
    let at = |cluster: u64, ok| (cluster * 512, ok);
    limits_of(
        &base,
        REFCOUNT_OFFSET,
        &[at(3, true), at(4, false), at(5, false), at(7, false), at(8, true)],
    );
    let error = Header { refcount_table_offset: 4 * 512, ..base }.encode().unwrap_err();
    assert_eq!(
        error.to_string(),
        "header field refcount_table_offset at byte 48: 2048 plus 1024 bytes overlaps \
         l1_table_offset at 2560"
    );
}

#[test]
fn header_length_limits() {
    let base = header(9, 0);
    limits_of(
        &base,
        HEADER_LENGTH,
        &[
            (0, false),
            (96, false),
            (103, false),
            (105, false),
            (108, false),
            (104, true),
            (112, true),
            (120, true),
            (504, true),
            (520, false),
            (u32::MAX.into(), false),
        ],
    );
    // A header that fills cluster 0 leaves no room for the end of the extensions.
    let mut bytes = cluster(&base);
    poke(&mut bytes, HEADER_LENGTH, 512);
    assert!(matches!(
        Header::parse(&bytes),
        Err(FormatError::BadExtension { kind: extension::END, offset: 512, value: 0, .. })
    ));
}

#[test]
fn a_header_of_104_bytes_has_no_compression_type() {
    let mut short = header(16, 1 << 20);
    short.header_length = 104;
    short.set_extension(extension::BACKING_FORMAT, b"raw".to_vec());
    let bytes = cluster(&short);
    assert_eq!(bytes[104..108], extension::BACKING_FORMAT.to_be_bytes());
    assert_eq!(Header::parse(&bytes), Ok(short.clone()));
    let mut sector = bytes[..512].to_vec();
    short.patch_sector(&mut sector).unwrap();
    assert_eq!(sector, bytes[..512], "the extension at byte 104 is no compression type");
    let zstd = CompressionType::Zstd;
    let bits = Incompatible::COMPRESSION;
    let error = Header { compression_type: zstd, incompatible: bits, ..short }.encode();
    assert!(matches!(error, Err(FormatError::BadField { field: "header_length", .. })));
}

#[test]
fn compression_type_and_its_bit() {
    let bytes = cluster(&header(16, 1 << 20));
    let bit = Incompatible::COMPRESSION.bits();
    for (kind, bits, ok) in
        [(0, 0, true), (1, bit, true), (2, bit, false), (0, bit, false), (1, 0, false)]
    {
        let pokes = [(COMPRESSION_TYPE, kind), (INCOMPATIBLE, bits)];
        assert_eq!(accepted(&bytes, &pokes, COMPRESSION_TYPE), ok, "type {kind} bits {bits}");
    }
}

#[test]
fn crypt_method_and_its_extension() {
    let plain = header(16, 1 << 20);
    limits_of(&plain, CRYPT_METHOD, &[(0, true), (1, true), (2, false), (3, false)]);
    let mut luks = plain;
    luks.crypt_method = CryptMethod::Luks;
    luks.set_extension(extension::LUKS, Luks { offset: 1 << 20, length: 4096 }.encode());
    limits_of(&luks, CRYPT_METHOD, &[(0, false), (1, false), (2, true)]);
    assert_eq!(luks.luks(), Ok(Some(Luks { offset: 1 << 20, length: 4096 })));
}

#[test]
fn backing_name_limits() {
    let base = header(16, 1 << 20);
    limits_of(&base, BACKING_OFFSET, &[(111, false), (112, true), (120, true)]);
    limits_of(&base, BACKING_OFFSET, &[(65_536, true), (65_537, false), (u64::MAX, false)]);
    let bytes = cluster(&base);
    for (offset, size, ok) in [
        (1024, 1023, true),
        (1024, 1024, false),
        (65_536 - 1023, 1023, true),
        (65_536 - 1022, 1023, false),
        (65_536, 0, true),
        (65_536, 1, false),
        (1024, u32::MAX.into(), false),
    ] {
        let pokes = [(BACKING_OFFSET, offset), (BACKING_SIZE, size)];
        assert_eq!(accepted(&bytes, &pokes, BACKING_SIZE), ok, "{size} bytes at {offset}");
    }
    // Without an offset there is no name, whatever its length.
    assert!(accepted(&bytes, &[(BACKING_SIZE, 9)], BACKING_SIZE));
    for (length, ok) in [(1023, true), (1024, false)] {
        let mut named = base.clone();
        named.set_backing(&vec![b'n'; length]);
        assert_eq!(named.encode().is_ok(), ok);
    }
}

#[test]
fn an_empty_backing_name_is_none() {
    let mut header = header(16, 1 << 20);
    header.set_backing(b"");
    let parsed = Header::parse(&cluster(&header)).unwrap();
    assert_eq!((parsed.backing_name(), parsed.backing.is_some()), (None, true));
}

/// Goal: extensions and the backing name never share a byte, whoever put them there.
#[test]
fn extensions_end_before_the_backing_name() {
    let mut header = header(9, 0);
    header.set_extension(0xaaaa, vec![7; 384]);
    assert_eq!(Header::parse(&header.encode().unwrap()), Ok(header.clone()), "to the last byte");
    header.set_extension(0xaaaa, vec![7; 376]);
    header.set_backing(b"base.img");
    assert_eq!(header.backing.as_ref().map(|backing| backing.offset), Some(504));
    assert_eq!(Header::parse(&header.encode().unwrap()), Ok(header.clone()));
    header.set_extension(0xaaaa, vec![7; 384]);
    let error = header.encode().unwrap_err();
    assert_eq!(
        error.to_string(),
        "header extension 0x00000000 at byte 112: 512 is where the extensions end, past byte 504"
    );
    header.set_extension(0xaaaa, vec![7; 392]);
    header.backing = None;
    assert!(header.encode().is_err());
}

/// Goal: an image that needs a feature unknown here is refused by the name that the image gives it, whatever else it
/// holds.
#[test]
fn unknown_incompatible_features_are_named() {
    let mut header = header(16, 1 << 20);
    let mut names = vec![0; feature::NAME_ENTRY_BYTES];
    names[..9].copy_from_slice(b"\x00\x07quantum");
    header.set_extension(extension::FEATURE_NAMES, names);
    let mut bytes = cluster(&header);
    poke(&mut bytes, INCOMPATIBLE, 1 << 63 | 1 << 7 | 1 << 5 | 1);
    poke(&mut bytes, REFCOUNT_ORDER, 99);
    let error = Header::parse(&bytes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image uses incompatible features that are not known here: bit 5 (unknown), bit 7 \
         (quantum), bit 63 (unknown)"
    );
    // Even where the feature changed what an extension is.
    bytes[116..120].fill(0xff);
    let Err(FormatError::UnknownIncompatible(list)) = Header::parse(&bytes) else { panic!() };
    assert_eq!(list.iter().map(|feature| feature.bit).collect::<Vec<_>>(), [5, 7, 63]);
    header.incompatible = Incompatible::from_bits_retain(1 << 5);
    assert!(matches!(header.encode(), Err(FormatError::UnknownIncompatible(_))));
}

#[test]
fn bad_bitmaps_matter_only_with_their_bit() {
    let mut header = header(16, 1 << 20);
    let bitmaps = Bitmaps { count: 1, directory_size: 32, directory_offset: 1 << 20 };
    header.set_extension(extension::BITMAPS, bitmaps.encode());
    assert_eq!(header.bitmaps(), Ok(None));
    header.autoclear = Autoclear::BITMAPS;
    assert_eq!(Header::parse(&cluster(&header)).unwrap().bitmaps(), Ok(Some(bitmaps)));
    header.set_extension(extension::BITMAPS, vec![0; 24]);
    assert!(matches!(
        header.encode(),
        Err(FormatError::BadExtension { kind: extension::BITMAPS, offset: 120, value: 0, .. })
    ));
    header.autoclear = Autoclear::empty();
    assert!(header.encode().is_ok());
}

/// Goal: after creation every change is one write of the first sector. Method: a header with everything that can come
/// later, built as create does; extensions and fields end within 512 bytes and the name lies behind. Every known feature has its name in an
/// image that needs nothing else.
#[test]
fn what_changes_later_is_in_the_first_sector() {
    let mut header = header(16, 1 << 20);
    for (formats, names) in [(0, feature::KNOWN.len()), (1, 7), (2, 7)] {
        if formats > 0 {
            header.set_extension(extension::BACKING_FORMAT, b"qcow2".to_vec());
        }
        if formats > 1 {
            header.set_extension(extension::BITMAPS, vec![0; 24]);
        }
        header.name_features();
        header.set_backing(b"base.qcow2");
        let (at, table) = header.extension(extension::FEATURE_NAMES).unwrap();
        assert_eq!(table.len(), names * feature::NAME_ENTRY_BYTES);
        assert!(at + table.len() as u64 + 8 <= 512);
        assert_eq!(header.backing.as_ref().unwrap().offset, 512);
        let kinds: Vec<u32> = header.extensions.iter().map(|extension| extension.kind).collect();
        assert_eq!(kinds.last(), Some(&extension::FEATURE_NAMES));
        assert_eq!(kinds.len(), formats + 1);
        assert_eq!(Header::parse(&cluster(&header)), Ok(header.clone()));
    }
    assert_eq!(header.backing_format(), Some(&b"qcow2"[..]));
    // Eight bytes less than eight names need.
    let mut tight = self::header(16, 1 << 20);
    tight.set_extension(0xaaaa, Vec::new());
    tight.name_features();
    let (_, table) = tight.extension(extension::FEATURE_NAMES).unwrap();
    assert_eq!(table.len(), 7 * feature::NAME_ENTRY_BYTES);
    header.set_extension(extension::DATA_FILE, vec![b'd'; 300]);
    assert_eq!(header.data_file_name().map(<[u8]>::len), Some(300));
    header.name_features();
    assert!(header.extension(extension::FEATURE_NAMES).is_none(), "no room for a single name");
}

#[test]
fn only_large_clusters_of_version_3_get_feature_names() {
    for (cluster_bits, version, named) in [(12, 3, false), (13, 3, true), (13, 2, false)] {
        let mut header = header(cluster_bits, 0);
        header.version = version;
        header.name_features();
        assert_eq!(header.extension(extension::FEATURE_NAMES).is_some(), named);
    }
}

/// Goal: a patch touches the fixed fields only, and only those of its own image.
#[test]
fn patches_are_refused_by_another_image() {
    let header = header(16, 1 << 20);
    let good = cluster(&header);
    for (field, value) in [(CLUSTER_BITS, 17), (VERSION, 2), (HEADER_LENGTH, 120)] {
        let mut sector = good[..512].to_vec();
        poke(&mut sector, field, value);
        let before = sector.clone();
        let error = header.patch_sector(&mut sector).unwrap_err();
        assert!(matches!(error, FormatError::BadField { field: f, .. } if f == field.name));
        assert_eq!(sector, before);
    }
    assert!(header.patch_sector(&mut good[..104].to_vec()).is_err());
    assert!(header.patch_sector(&mut good[..105].to_vec()).is_ok());
    assert_eq!(header.patch_sector(&mut [0; 512]), Err(FormatError::NotQcow2 { found: 0 }));
}

#[derive(Clone, Debug)]
struct Valid(Header);

impl Arbitrary for Valid {
    fn arbitrary(g: &mut Gen) -> Self {
        let version = *g.choose(&[2, 3, 3, 3]).unwrap();
        let cluster_bits = 9 + u32::arbitrary(g) % 13;
        let mut header = Header { version, ..header(cluster_bits, 0) };
        let cluster_size = header.cluster_size();
        header.header_length = 72;
        if version == 3 {
            header.refcount_order = u32::arbitrary(g) % 7;
            header.compatible = Compatible::from_bits_retain(u64::arbitrary(g));
            header.autoclear = Autoclear::from_bits_retain(u64::arbitrary(g) & !1);
            let known = Incompatible::all() - Incompatible::COMPRESSION;
            header.incompatible = Incompatible::from_bits_truncate(u64::arbitrary(g)) & known;
            if cluster_bits < 14 {
                header.incompatible.remove(Incompatible::EXTENDED_L2);
            }
            header.header_length = 104;
            if bool::arbitrary(g) {
                header.unknown = vec![u8::arbitrary(g); usize::arbitrary(g) % 10 * 8];
                header.header_length = 112 + header.unknown.len() as u32;
                header.padding = [u8::arbitrary(g); 7];
                if bool::arbitrary(g) {
                    header.compression_type = CompressionType::Zstd;
                    header.incompatible.insert(Incompatible::COMPRESSION);
                }
            }
        }
        let most = limits::virtual_size(cluster_bits, header.extended_l2());
        header.size = u64::arbitrary(g) % (most / 512 + 1) * 512;
        header.l1_size = header.l1_entries_for(header.size).unwrap();
        header.l1_size = header.l1_size.saturating_add(u32::arbitrary(g) % 9).min(1 << 22);
        header.l1_table_offset = (1 << 40) + u64::from(u32::arbitrary(g)) * cluster_size;
        header.nb_snapshots = u32::arbitrary(g) % 65_537;
        header.snapshots_offset = cluster_size << 14;
        header.crypt_method = *g.choose(&[CryptMethod::None, CryptMethod::Aes]).unwrap();
        for _ in 0..u8::arbitrary(g) % 4 {
            let kind = 1 + u32::arbitrary(g) % 1000;
            let data = vec![u8::arbitrary(g); usize::arbitrary(g) % 40];
            header.extensions.push(Extension { kind, data });
        }
        header.name_features();
        if bool::arbitrary(g) {
            header.set_backing(&vec![b'n'; usize::arbitrary(g) % 50]);
        }
        Self(header)
    }
}

quickcheck! {
    fn encode_then_parse_is_the_same(header: Valid) -> bool {
        let Valid(header) = header;
        let bytes = header.encode().unwrap();
        bytes.len().is_multiple_of(512) && Header::parse(&bytes) == Ok(header)
    }

    /// Goal: patching writes the new fields and nothing else. Method: the sector of one header, patched with the fields
    /// of another over the same skeleton, parses to a mixture of both.
    fn patch_changes_fields_only(old: Valid, new: Valid) -> TestResult {
        let (Valid(old), Valid(new)) = (old, new);
        let backing = old.backing.clone();
        let merged = Header { backing, size: 0, l1_size: new.l1_size, ..old.clone() };
        let merged = Header {
            nb_snapshots: new.nb_snapshots,
            compatible: if old.version == 3 { new.compatible } else { old.compatible },
            crypt_method: new.crypt_method,
            ..merged
        };
        let mut bytes = old.encode().unwrap();
        let before = bytes.clone();
        merged.patch_sector(&mut bytes[..512]).unwrap();
        let same = bytes[105..] == before[105..];
        TestResult::from_bool(same && Header::parse(&bytes) == Ok(merged))
    }

    /// Goal: no damage makes the parser panic, and what it accepts can be patched back to itself. Method: a valid
    /// header with random bytes overwritten, mostly in the fixed fields.
    fn damage_is_refused_or_harmless(header: Valid, damage: Vec<(u16, u8)>, cut: u16) -> bool {
        let mut bytes = header.0.encode().unwrap();
        for (index, (at, value)) in damage.iter().take(4).enumerate() {
            let range = if index % 2 == 0 { 120 } else { bytes.len() };
            let at = usize::from(*at) % range;
            bytes[at] = *value;
        }
        if cut.is_multiple_of(8) {
            bytes.truncate(usize::from(cut));
        }
        let Ok(parsed) = Header::parse(&bytes) else { return true };
        let mut patched = bytes.clone();
        parsed.patch_sector(&mut patched).unwrap();
        Header::parse(&patched) == Ok(parsed)
    }
}
