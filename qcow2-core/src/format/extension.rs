//! Header extensions: typed records between the header and the backing file name.
//!
//! The invariant: **a header extension is kept as it was found**, byte for byte and in its place in the list, whether
//! its type is known or not. Known ones are decoded on demand. The list begins where the header ends and must be over
//! before the backing file name or, without one, inside cluster 0:
//!
//! ```text
//!   header_length                                                   backing_file_offset or end of cluster 0
//!   +--------+--------+---------------+-----+--------+--------+-----+
//!   | type   | length | data          | pad | type 0 | length | ... |
//!   | u32    | u32    | length bytes  | to 8| (end)  | any    |     |
//!   +--------+--------+---------------+-----+--------+--------+-----+
//! ```
//!
//! A list may also end exactly at the backing file name, as images from before extensions do.

use super::{FormatError, align8, limits, u32_at, u64_at};

/// Ends the list.
pub const END: u32 = 0;
/// Format of the backing file, as text.
pub const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Names of feature bits; see [`super::feature`].
pub const FEATURE_NAMES: u32 = 0x6803_f857;
/// Where the persistent bitmaps are; see [`Bitmaps`].
pub const BITMAPS: u32 = 0x2385_2875;
/// Where the LUKS header is; see [`Luks`].
pub const LUKS: u32 = 0x0537_be77;
/// Name of the external data file, as text.
pub const DATA_FILE: u32 = 0x4441_5441;

/// Types that may occur once: with two of them, two programs could read two different images.
const KNOWN: [u32; 5] = [BACKING_FORMAT, FEATURE_NAMES, BITMAPS, LUKS, DATA_FILE];

/// Type and length in front of the data.
const HEAD_BYTES: u64 = 8;

/// One header extension, verbatim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its type.
    pub kind: u32,
    /// Its data, without padding.
    pub data: Vec<u8>,
}

impl Extension {
    /// Bytes that it takes in the file, with head and padding.
    pub fn encoded_len(&self) -> u64 {
        align8(self.data.len() as u64).saturating_add(HEAD_BYTES)
    }
}

/// Bytes that a list takes in the file, with its end marker.
pub fn encoded_len(list: &[Extension]) -> u64 {
    list.iter().fold(HEAD_BYTES, |total, extension| total.saturating_add(extension.encoded_len()))
}

/// Where a list of extensions may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    /// First byte after the header.
    pub(super) start: u64,
    /// First byte that is no longer part of it.
    pub(super) end: u64,
    /// Whether `end` is a backing file name, which ends a list by itself.
    pub(super) ends_list: bool,
    /// Where the file ends, if that is inside cluster 0.
    pub(super) file_end: u64,
}

/// Parses the list in `area` of cluster 0.
pub(super) fn parse(cluster: &[u8], area: Area) -> Result<Vec<Extension>, FormatError> {
    let mut list: Vec<Extension> = Vec::new();
    let mut at = area.start;
    while at < area.end || !area.ends_list {
        let bad = |kind, value: u64, rule: &'static str| FormatError::BadExtension {
            kind,
            offset: at,
            value,
            rule: rule.into(),
        };
        let data_start = at.saturating_add(HEAD_BYTES);
        if data_start > area.end {
            let left = area.end.saturating_sub(at);
            return Err(bad(END, left, "bytes are left and the list has no end marker"));
        }
        let head = usize::try_from(at).ok().and_then(|at| cluster.get(at..)).unwrap_or_default();
        let (Some(kind), Some(length)) = (u32_at(head, 0), u32_at(head, 4)) else {
            let len = cluster.len() as u64;
            return Err(FormatError::Truncated { what: "extensions", needed: data_start, len });
        };
        if kind == END {
            break;
        }
        let data_end = data_start.saturating_add(length.into());
        if data_end > area.end {
            return Err(bad(
                kind,
                length.into(),
                "bytes of data do not fit where extensions may be",
            ));
        }
        let data = usize::try_from(length).ok().and_then(|length| head.get(8..)?.get(..length));
        let Some(data) = data.filter(|_| data_end <= area.file_end) else {
            let len = area.file_end;
            return Err(FormatError::Truncated { what: "extensions", needed: data_end, len });
        };
        if KNOWN.contains(&kind) && list.iter().any(|earlier| earlier.kind == kind) {
            return Err(bad(
                kind,
                length.into(),
                "bytes of data in a second extension of its type",
            ));
        }
        check_length(kind, at, length.into())?;
        list.push(Extension { kind, data: data.to_vec() });
        at = align8(data_end);
    }
    Ok(list)
}

/// Checks that the data of an extension, which begins at `offset`, are not longer than its type allows.
fn check_length(kind: u32, offset: u64, length: u64) -> Result<(), FormatError> {
    let most = u64::from(limits::BACKING_FORMAT_BYTES);
    if kind != BACKING_FORMAT || length <= most {
        return Ok(());
    }
    let rule = format!("bytes of a backing file's format are more than the {most} allowed here");
    Err(FormatError::BadExtension { kind, offset, value: length, rule: rule.into() })
}

/// Appends the list and its end marker.
pub(super) fn encode(list: &[Extension], out: &mut Vec<u8>) -> Result<(), FormatError> {
    for Extension { kind, data } in list {
        let offset = out.len() as u64;
        let bad = |rule: &'static str| FormatError::BadExtension {
            kind: *kind,
            offset,
            value: data.len() as u64,
            rule: rule.into(),
        };
        if *kind == END {
            return Err(bad("bytes of data in an extension whose type ends the list"));
        }
        let length = u32::try_from(data.len()).map_err(|_| bad("bytes of data are too many"))?;
        check_length(*kind, offset, length.into())?;
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out.extend_from_slice(&[0; 8]);
    Ok(())
}

/// The bitmaps extension:
///
/// ```text
///   0         4          8                 16                  24
///   +---------+----------+-----------------+-------------------+
///   | count   | reserved | directory bytes | directory offset  |
///   +---------+----------+-----------------+-------------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitmaps {
    /// Number of bitmaps.
    pub count: u32,
    /// Length of the bitmap directory in bytes.
    pub directory_size: u64,
    /// Where the bitmap directory is.
    pub directory_offset: u64,
}

impl Bitmaps {
    /// Length of the data.
    pub const BYTES: usize = 24;

    /// Decodes and validates; `offset` is where `data` is in the file.
    ///
    /// # Errors
    /// [`FormatError`] that names the field, if the data are too short or a value is not allowed.
    pub fn decode(data: &[u8], offset: u64, cluster_bits: u32) -> Result<Self, FormatError> {
        let field = Field { kind: BITMAPS, offset, data };
        field.length_is(Self::BYTES)?;
        let count = field.u32(0)?;
        let reserved = field.u32(4)?;
        let directory_size = field.u64(8)?;
        let directory_offset = field.u64(16)?;
        field.ensure((1..=limits::BITMAPS).contains(&count), 0, count.into(), || {
            format!("bitmaps are outside 1..={}", limits::BITMAPS)
        })?;
        field.ensure(reserved == 0, 4, reserved.into(), || "is in a reserved field".into())?;
        let sizes = 1..=limits::BITMAP_DIRECTORY_BYTES;
        field.ensure(sizes.contains(&directory_size), 8, directory_size, || {
            format!("bytes of directory are outside 1..={}", limits::BITMAP_DIRECTORY_BYTES)
        })?;
        field.placed(16, directory_offset, directory_size, cluster_bits)?;
        Ok(Self { count, directory_size, directory_offset })
    }

    /// The data of the extension.
    pub fn encode(self) -> Vec<u8> {
        let mut data = Vec::with_capacity(Self::BYTES);
        data.extend_from_slice(&self.count.to_be_bytes());
        data.extend_from_slice(&[0; 4]);
        data.extend_from_slice(&self.directory_size.to_be_bytes());
        data.extend_from_slice(&self.directory_offset.to_be_bytes());
        data
    }
}

/// The LUKS extension: where the LUKS header is in the image.
///
/// ```text
///   0                 8                 16
///   +-----------------+-----------------+
///   | offset          | length          |
///   +-----------------+-----------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Luks {
    /// Where the LUKS header begins.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

impl Luks {
    /// Length of the data.
    pub const BYTES: usize = 16;

    /// Decodes and validates; `offset` is where `data` is in the file.
    ///
    /// # Errors
    /// [`FormatError`] that names the field, if the data are too short or a value is not allowed.
    pub fn decode(data: &[u8], offset: u64, cluster_bits: u32) -> Result<Self, FormatError> {
        let field = Field { kind: LUKS, offset, data };
        field.length_is(Self::BYTES)?;
        let luks = Self { offset: field.u64(0)?, length: field.u64(8)? };
        field.ensure(luks.length != 0, 8, 0, || "bytes are no LUKS header".into())?;
        field.ensure(luks.length <= limits::LUKS_BYTES, 8, luks.length, || {
            format!("bytes are more than {} of a LUKS header", limits::LUKS_BYTES)
        })?;
        field.placed(0, luks.offset, luks.length, cluster_bits)?;
        Ok(luks)
    }

    /// The data of the extension.
    pub fn encode(self) -> Vec<u8> {
        [self.offset.to_be_bytes(), self.length.to_be_bytes()].concat()
    }
}

/// The data of an extension while it is decoded, with what an error has to say about it.
struct Field<'a> {
    kind: u32,
    offset: u64,
    data: &'a [u8],
}

impl Field<'_> {
    fn ensure(
        &self,
        holds: bool,
        at: u64,
        value: u64,
        rule: impl FnOnce() -> String,
    ) -> Result<(), FormatError> {
        if holds {
            return Ok(());
        }
        let offset = self.offset.saturating_add(at);
        Err(FormatError::BadExtension { kind: self.kind, offset, value, rule: rule().into() })
    }

    fn length_is(&self, bytes: usize) -> Result<(), FormatError> {
        let length = self.data.len();
        self.ensure(length == bytes, 0, length as u64, || format!("bytes of data, not {bytes}"))
    }

    /// `size` bytes at `offset` (the field at byte `at`) lie on whole clusters, behind the header, where entries reach.
    fn placed(
        &self,
        at: u64,
        offset: u64,
        size: u64,
        cluster_bits: u32,
    ) -> Result<(), FormatError> {
        let cluster_size = limits::cluster_size(cluster_bits);
        self.ensure(offset != 0 && offset.is_multiple_of(cluster_size), at, offset, || {
            format!("is not a positive multiple of the cluster size {cluster_size}")
        })?;
        let end = offset.checked_add(size).filter(|&end| end <= limits::HOST_OFFSET_END);
        self.ensure(end.is_some(), at, offset, || {
            format!("plus {size} bytes is past the largest file offset")
        })
    }

    fn u32(&self, at: usize) -> Result<u32, FormatError> {
        u32_at(self.data, at).ok_or_else(|| self.short())
    }

    fn u64(&self, at: usize) -> Result<u64, FormatError> {
        u64_at(self.data, at).ok_or_else(|| self.short())
    }

    fn short(&self) -> FormatError {
        FormatError::BadExtension {
            kind: self.kind,
            offset: self.offset,
            value: self.data.len() as u64,
            rule: "bytes of data are too few".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use quickcheck::{TestResult, quickcheck};

    use super::*;

    const START: u64 = 112;

    /// A cluster of 512 bytes whose list is `bytes`.
    fn cluster(bytes: &[u8]) -> Vec<u8> {
        let mut cluster = vec![0; 512];
        cluster[112..112 + bytes.len()].copy_from_slice(bytes);
        cluster
    }

    fn area(end: u64, ends_list: bool) -> Area {
        Area { start: START, end, ends_list, file_end: 512 }
    }

    fn record(kind: u32, length: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = [kind.to_be_bytes(), length.to_be_bytes()].concat();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    quickcheck! {
        /// Goal: lists survive a round trip in order, byte for byte, known types or not.
        fn lists_round_trip(list: Vec<(u32, Vec<u8>)>) -> TestResult {
            let list: Vec<Extension> =
                list.into_iter().map(|(kind, data)| Extension { kind: kind.max(1), data }).collect();
            let mut bytes = vec![0; 112];
            encode(&list, &mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, START + encoded_len(&list));
            let end = bytes.len() as u64;
            let area = Area { start: START, end, ends_list: false, file_end: end };
            TestResult::from_bool(parse(&bytes, area) == Ok(list))
        }

        /// Goal: no bytes make the parser panic or return more than it was given.
        fn any_bytes_are_a_list_or_an_error(bytes: Vec<u8>, end: u16, ends_list: bool) -> bool {
            let area = Area { start: 0, end: end.into(), ends_list, file_end: bytes.len() as u64 };
            parse(&bytes, area).is_ok_and(|list| encoded_len(&list) <= u64::from(end) + 15)
                || parse(&bytes, area).is_err()
        }
    }

    /// Goal: the list ends where it may end and nowhere else. Method: one record of 8 data bytes (16 in all), and areas
    /// that end just around it.
    #[test]
    fn ends_of_the_list() {
        let one = cluster(&record(0xaaaa, 8, &[7; 8]));
        let expected = vec![Extension { kind: 0xaaaa, data: vec![7; 8] }];
        assert_eq!(parse(&one, area(512, false)), Ok(expected.clone()));
        assert_eq!(
            parse(&one, area(START + 24, false)),
            Ok(expected.clone()),
            "room for the marker"
        );
        assert_eq!(parse(&one, area(START + 16, true)), Ok(expected), "the name ends the list");
        assert_eq!(parse(&one, area(START, true)), Ok(vec![]), "no room, no list");
        for (end, ends_list, offset, value) in
            [(START + 16, false, START + 16, 0), (START + 20, true, START + 16, 4)]
        {
            let error = parse(&one, area(end, ends_list)).unwrap_err();
            let FormatError::BadExtension { offset: o, value: v, .. } = error else { panic!() };
            assert_eq!((o, v), (offset, value), "unterminated list ending at {end}");
        }
    }

    #[test]
    fn oversized_data_is_refused_with_its_offset() {
        for (length, fits) in [(392, true), (393, false), (u32::MAX, false)] {
            let parsed = parse(&cluster(&record(0xaaaa, length, &[])), area(512, true));
            assert_eq!(parsed.is_ok(), fits, "length {length}");
            let Err(error) = parsed else { continue };
            assert_eq!(
                error.to_string(),
                format!(
                    "header extension 0x0000aaaa at byte 112: {length} bytes of data do not fit where \
                     extensions may be"
                )
            );
        }
    }

    /// Goal: data past the end of a file that ends inside cluster 0 is not taken for zeroes.
    #[test]
    fn data_past_the_end_of_the_file_is_truncated() {
        let bytes = cluster(&record(0xaaaa, 16, &[]));
        for (file_end, ok) in [(START + 24, true), (START + 23, false)] {
            let area = Area { file_end, ..area(512, false) };
            let parsed = parse(&bytes, area);
            assert_eq!(parsed.is_ok(), ok);
            if !ok {
                let what = "extensions";
                let error = FormatError::Truncated { what, needed: START + 24, len: file_end };
                assert_eq!(parsed, Err(error));
            }
        }
    }

    #[test]
    fn known_types_occur_once_and_unknown_ones_as_often_as_they_like() {
        for (kind, ok) in [(0xaaaa, true), (BACKING_FORMAT, false), (BITMAPS, false)] {
            let twice = [record(kind, 3, b"raw"), record(kind, 3, b"raw")].concat();
            assert_eq!(parse(&cluster(&twice), area(512, false)).is_ok(), ok, "{kind:#x}");
        }
    }

    /// Goal: the name of a format has the length that QEMU takes, and no more, read and written. Method: at the limit and one past it.
    #[test]
    fn backing_format_limits() {
        for (kind, len, ok) in
            [(BACKING_FORMAT, 15, true), (BACKING_FORMAT, 16, false), (0xaaaa, 16, true)]
        {
            let list = vec![Extension { kind, data: vec![b'f'; len] }];
            let bytes = cluster(&record(kind, len as u32, &list[0].data));
            let (read, written) = (parse(&bytes, area(512, false)), encode(&list, &mut vec![]));
            let refused = |offset| FormatError::BadExtension {
                kind,
                offset,
                value: len as u64,
                rule: "bytes of a backing file's format are more than the 15 allowed here".into(),
            };
            assert_eq!(read, if ok { Ok(list) } else { Err(refused(START)) });
            assert_eq!(written, if ok { Ok(()) } else { Err(refused(0)) });
        }
    }

    #[test]
    fn the_end_marker_is_not_a_type() {
        let list = [Extension { kind: END, data: vec![] }];
        assert!(encode(&list, &mut Vec::new()).is_err());
    }

    /// Goal: every rule of the bitmaps extension, at its limit and one past it.
    #[test]
    fn bitmaps_limits() {
        let good = Bitmaps { count: 1, directory_size: 1, directory_offset: 65_536 };
        let decode = |bitmaps: Bitmaps| Bitmaps::decode(&bitmaps.encode(), 120, 16);
        let bad_byte = |bitmaps| match decode(bitmaps) {
            Ok(back) => {
                assert_eq!(back, bitmaps);
                None
            }
            Err(FormatError::BadExtension { kind: BITMAPS, offset, .. }) => Some(offset),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(bad_byte(good), None);
        assert_eq!(bad_byte(Bitmaps { count: 0, ..good }), Some(120));
        assert_eq!(bad_byte(Bitmaps { count: limits::BITMAPS, ..good }), None);
        assert_eq!(bad_byte(Bitmaps { count: limits::BITMAPS + 1, ..good }), Some(120));
        assert_eq!(bad_byte(Bitmaps { directory_size: 0, ..good }), Some(128));
        let most = limits::BITMAP_DIRECTORY_BYTES;
        assert_eq!(bad_byte(Bitmaps { directory_size: most, ..good }), None);
        assert_eq!(bad_byte(Bitmaps { directory_size: most + 1, ..good }), Some(128));
        assert_eq!(bad_byte(Bitmaps { directory_offset: 0, ..good }), Some(136));
        assert_eq!(bad_byte(Bitmaps { directory_offset: 65_537, ..good }), Some(136));
        let last = limits::HOST_OFFSET_END - 65_536;
        assert_eq!(
            bad_byte(Bitmaps { directory_offset: last, directory_size: 65_536, ..good }),
            None
        );
        assert_eq!(
            bad_byte(Bitmaps { directory_offset: last, directory_size: 65_537, ..good }),
            Some(136)
        );
        let mut reserved = good.encode();
        reserved[7] = 1;
        assert!(Bitmaps::decode(&reserved, 120, 16).is_err());
        assert!(Bitmaps::decode(&reserved[..23], 120, 16).is_err());
    }

    #[test]
    fn luks_limits() {
        let decode = |offset, length| Luks::decode(&Luks { offset, length }.encode(), 120, 16);
        assert_eq!(decode(65_536, 1), Ok(Luks { offset: 65_536, length: 1 }));
        assert!(decode(65_536, 0).is_err());
        assert!(decode(0, 1).is_err());
        assert!(decode(512, 1).is_err());
        assert!(decode(limits::HOST_OFFSET_END - 65_536, 65_536).is_ok());
        assert!(decode(limits::HOST_OFFSET_END - 65_536, 65_537).is_err());
        assert!(decode(65_536, limits::LUKS_BYTES).is_ok());
        assert!(decode(65_536, limits::LUKS_BYTES + 1).is_err());
        assert!(Luks::decode(&[0; 15], 120, 16).is_err());
    }
}
