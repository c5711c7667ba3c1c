//! Logs of block writes in the format of the Linux device-mapper target `dm-log-writes`, which QEMU's driver
//! `blklogwrites` writes too. Everything in it is little-endian.
//!
//! The invariant: **a log is taken whole or not at all.** Whatever does not fit the format is an error that names the entry
//! and the byte; nothing is skipped or guessed. What [`encode`] writes, [`Log::parse`] reads back as it was.
//!
//! ```text
//!   0            8            16           24         28            sector size
//!   +------------+------------+------------+----------+-------------+
//!   | magic      | version 1  | entries    | sector   | zeroes      |
//!   |            |            |            | size     |             |
//!   +------------+------------+------------+----------+-------------+
//!
//!   then for each entry, one sector, and its data:
//!   0            8            16           24           32                         sector size
//!   +------------+------------+------------+------------+---------------+---------+----------------------+
//!   | sector     | sectors    | flags      | text bytes | text of a mark| zeroes  | sectors * sector size|
//!   +------------+------------+------------+------------+---------------+---------+----------------------+
//!                                                                        no data after a discard or a mark
//! ```
//!
//! A writer updates the number of entries only now and then (QEMU: at a flush). Bytes behind the last entry that is counted
//! are not part of the log yet and are not looked at.

#![expect(clippy::little_endian_bytes, reason = "the format is little-endian")]

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const SUPERBLOCK_BYTES: usize = 28;
const ENTRY_BYTES: usize = 32;

const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const METADATA: u64 = 16;
const KNOWN: u64 = FLUSH | FUA | DISCARD | MARK | METADATA;

/// Smallest and largest sector size accepted here. The format says only that the superblock fits in one.
const SECTOR_SIZES: std::ops::RangeInclusive<u32> = 512..=65_536;

/// One entry of a log. A flush that comes with data happens before the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// First byte on the device, a multiple of the sector size.
    pub offset: u64,
    /// What was done there.
    pub content: Action<'a>,
    /// Everything before it is durable.
    pub flush: bool,
    /// Its own data is durable.
    pub fua: bool,
    /// The file system said that it is metadata.
    pub metadata: bool,
}

/// What an entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Wrote this: whole sectors, perhaps none, as with a mere flush.
    Data(&'a [u8]),
    /// Discarded so many bytes.
    Discard(u64),
    /// Nothing: it is a note.
    Mark(&'a [u8]),
}

impl<'a> Entry<'a> {
    const fn new(offset: u64, content: Action<'a>) -> Self {
        Self { offset, content, flush: false, fua: false, metadata: false }
    }

    /// A write.
    pub const fn write(offset: u64, data: &'a [u8]) -> Self {
        Self::new(offset, Action::Data(data))
    }

    /// A flush without data.
    pub const fn flush() -> Self {
        Self { flush: true, ..Self::new(0, Action::Data(&[])) }
    }

    /// A discard.
    pub const fn discard(offset: u64, length: u64) -> Self {
        Self::new(offset, Action::Discard(length))
    }

    /// A note.
    pub const fn mark(text: &'a [u8]) -> Self {
        Self::new(0, Action::Mark(text))
    }
}

/// Why bytes are no log, or why entries cannot be written as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The superblock is bad.
    #[error("log superblock, byte {offset}: {problem}")]
    Superblock {
        /// Where.
        offset: u64,
        /// What.
        problem: LogProblem,
    },
    /// An entry is bad.
    #[error("log entry {index}, byte {offset}: {problem}")]
    Entry {
        /// Number of the entry, from 0.
        index: u64,
        /// Where it begins, or what in it is bad.
        offset: u64,
        /// What.
        problem: LogProblem,
    },
}

/// What is wrong with a place in a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogProblem {
    /// The log ends too early.
    #[error("{needed} bytes are needed and {left} are left")]
    Truncated {
        /// Bytes that should follow.
        needed: u64,
        /// Bytes that do.
        left: u64,
    },
    /// It is something else.
    #[error("{0:#018x} is not the magic number 0x006a736677736872")]
    Magic(u64),
    /// It has another version.
    #[error("version {0} is not 1")]
    Version(u64),
    /// The sector size is none.
    #[error("sector size {0} is not a power of two from 512 to 65536")]
    SectorSize(u32),
    /// Flags that this format does not have.
    #[error("flags {0:#x} are not known")]
    Flags(u64),
    /// A discard cannot be a mark.
    #[error("an entry cannot be both a discard and a mark")]
    DiscardAndMark,
    /// The place is past the end of every device.
    #[error("{sectors} sectors from sector {sector} reach past the last byte that there can be")]
    TooFar {
        /// First sector.
        sector: u64,
        /// How many.
        sectors: u64,
    },
    /// A mark covers sectors.
    #[error("a mark covers {0} sectors, not 0")]
    MarkWithSectors(u64),
    /// Text without a mark, or more than fits.
    #[error("{length} bytes of text, where {most} fit")]
    Text {
        /// Its length.
        length: u64,
        /// Longest allowed.
        most: u64,
    },
    /// Something where zeroes belong.
    #[error("the padding is not zero")]
    Padding,
    /// An offset or length to be written is not a multiple of the sector size.
    #[error("{0} is not a multiple of the sector size")]
    Unaligned(u64),
}

/// A log whose superblock is good.
#[derive(Clone, Copy, Debug)]
pub struct Log<'a> {
    bytes: &'a [u8],
    sector_size: u32,
    entries: u64,
}

impl<'a> Log<'a> {
    /// Reads the superblock.
    ///
    /// # Errors
    /// [`LogError::Superblock`] if this is no log.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, LogError> {
        let bad = |offset, problem| Err(LogError::Superblock { offset, problem });
        let left = bytes.len() as u64;
        if bytes.len() < SUPERBLOCK_BYTES {
            return bad(0, LogProblem::Truncated { needed: SUPERBLOCK_BYTES as u64, left });
        }
        let (magic, version, entries) = (u64_at(bytes, 0), u64_at(bytes, 8), u64_at(bytes, 16));
        let sector_size = u64_at(bytes, 20).wrapping_shr(32) as u32;
        if magic != MAGIC {
            return bad(0, LogProblem::Magic(magic));
        }
        if version != VERSION {
            return bad(8, LogProblem::Version(version));
        }
        if !is_sector_size(sector_size) {
            return bad(24, LogProblem::SectorSize(sector_size));
        }
        if left < u64::from(sector_size) {
            return bad(0, LogProblem::Truncated { needed: sector_size.into(), left });
        }
        if bytes[SUPERBLOCK_BYTES..sector_size as usize].iter().any(|&byte| byte != 0) {
            return bad(SUPERBLOCK_BYTES as u64, LogProblem::Padding);
        }
        Ok(Self { bytes, sector_size, entries })
    }

    /// Bytes of a sector.
    pub fn sector_size(&self) -> u32 {
        self.sector_size
    }

    /// How many entries the superblock promises.
    pub fn promised(&self) -> u64 {
        self.entries
    }

    /// The entries, in order. After an error there are no more.
    pub fn entries(&self) -> Entries<'a> {
        Entries { log: *self, index: 0, at: self.sector_size as usize }
    }
}

/// Iterator over the entries of a [`Log`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    log: Log<'a>,
    index: u64,
    at: usize,
}

impl<'a> Entries<'a> {
    fn read(&mut self) -> Result<Entry<'a>, LogError> {
        let (index, start) = (self.index, self.at);
        let bad = |within: usize, problem| {
            Err(LogError::Entry { index, offset: (start + within) as u64, problem })
        };
        let sector_size = self.log.sector_size as usize;
        let rest = &self.log.bytes[start..];
        let Some((block, rest)) = rest.split_at_checked(sector_size) else {
            let (needed, left) = (sector_size as u64, rest.len() as u64);
            return bad(0, LogProblem::Truncated { needed, left });
        };
        let (sector, sectors) = (u64_at(block, 0), u64_at(block, 8));
        let (flags, text) = (u64_at(block, 16), u64_at(block, 24));
        if flags & !KNOWN != 0 {
            return bad(16, LogProblem::Flags(flags & !KNOWN));
        }
        let mark = flags & MARK != 0;
        if mark && flags & DISCARD != 0 {
            return bad(16, LogProblem::DiscardAndMark);
        }
        let most = if mark { longest_text(self.log.sector_size) } else { 0 };
        let text = match usize::try_from(text) {
            Ok(length) if length as u64 <= most => length,
            _ => return bad(24, LogProblem::Text { length: text, most }),
        };
        let (text, padding) = block[ENTRY_BYTES..].split_at(text);
        if padding.iter().any(|&byte| byte != 0) {
            return bad(ENTRY_BYTES + text.len(), LogProblem::Padding);
        }
        if mark && sectors != 0 {
            return bad(8, LogProblem::MarkWithSectors(sectors));
        }
        let scale = |count: u64| count.checked_mul(sector_size as u64);
        let (Some(offset), Some(length)) = (scale(sector), scale(sectors)) else {
            return bad(0, LogProblem::TooFar { sector, sectors });
        };
        if offset.checked_add(length).is_none() {
            return bad(0, LogProblem::TooFar { sector, sectors });
        }
        self.at += sector_size;
        let content = if mark {
            Action::Mark(text)
        } else if flags & DISCARD != 0 {
            Action::Discard(length)
        } else {
            let data = usize::try_from(length).ok().and_then(|length| rest.get(..length));
            let Some(data) = data else {
                let left = rest.len() as u64;
                return bad(sector_size, LogProblem::Truncated { needed: length, left });
            };
            self.at += data.len();
            Action::Data(data)
        };
        let is = |flag| flags & flag != 0;
        Ok(Entry { offset, content, flush: is(FLUSH), fua: is(FUA), metadata: is(METADATA) })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.log.entries {
            return None;
        }
        let entry = self.read();
        self.index = if entry.is_ok() { self.index + 1 } else { self.log.entries };
        Some(entry)
    }
}

/// The bytes of a log with these entries.
///
/// # Errors
/// What the format cannot express: offsets and lengths that are not whole sectors, a mark that is too long.
pub fn encode<'a>(
    sector_size: u32,
    entries: impl IntoIterator<Item = Entry<'a>>,
) -> Result<Vec<u8>, LogError> {
    if !is_sector_size(sector_size) {
        let problem = LogProblem::SectorSize(sector_size);
        return Err(LogError::Superblock { offset: 24, problem });
    }
    let sector = u64::from(sector_size);
    let mut bytes = vec![0; sector_size as usize];
    let mut count = 0u64;
    for entry in entries {
        let offset = bytes.len() as u64;
        let bad = |problem| Err(LogError::Entry { index: count, offset, problem });
        let (kind, length, text, data): (u64, u64, &[u8], &[u8]) = match entry.content {
            Action::Data(data) => (0, data.len() as u64, &[], data),
            Action::Discard(length) => (DISCARD, length, &[], &[]),
            Action::Mark(text) => (MARK, 0, text, &[]),
        };
        if let Some(&odd) = [entry.offset, length].iter().find(|at| !at.is_multiple_of(sector)) {
            return bad(LogProblem::Unaligned(odd));
        }
        let (sector_at, sectors) = (entry.offset / sector, length / sector);
        if entry.offset.checked_add(length).is_none() {
            return bad(LogProblem::TooFar { sector: sector_at, sectors });
        }
        let (text_length, most) = (text.len() as u64, longest_text(sector_size));
        if text_length > most {
            return bad(LogProblem::Text { length: text_length, most });
        }
        let set = |flag, is: bool| if is { flag } else { 0 };
        let flags =
            kind | set(FLUSH, entry.flush) | set(FUA, entry.fua) | set(METADATA, entry.metadata);
        for field in [sector_at, sectors, flags, text_length] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(text);
        bytes.resize(bytes.len().next_multiple_of(sector_size as usize), 0);
        bytes.extend_from_slice(data);
        count += 1;
    }
    for (at, field) in [(0, MAGIC), (8, VERSION), (16, count)] {
        bytes[at..at + 8].copy_from_slice(&field.to_le_bytes());
    }
    bytes[24..28].copy_from_slice(&sector_size.to_le_bytes());
    Ok(bytes)
}

fn is_sector_size(size: u32) -> bool {
    size.is_power_of_two() && SECTOR_SIZES.contains(&size)
}

/// Longest text of a mark: it shares a sector with the entry and is followed by a zero byte.
fn longest_text(sector_size: u32) -> u64 {
    u64::from(sector_size) - ENTRY_BYTES as u64 - 1
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use quickcheck::{Arbitrary, Gen, quickcheck};

    use super::*;

    #[derive(Clone, Debug)]
    struct Owned {
        kind: u8,
        sector: u32,
        sectors: u8,
        fill: u8,
        text: Vec<u8>,
        flags: u8,
    }

    impl Arbitrary for Owned {
        fn arbitrary(g: &mut Gen) -> Self {
            Self {
                kind: u8::arbitrary(g) % 3,
                sector: u32::arbitrary(g),
                sectors: u8::arbitrary(g) % 5,
                fill: u8::arbitrary(g),
                text: Vec::arbitrary(g),
                flags: u8::arbitrary(g),
            }
        }
    }

    quickcheck! {
        /// Goal: what is written is read back, whatever the sector size, up to the last byte.
        fn a_log_round_trips(entries: Vec<Owned>, shift: u8) -> bool {
            let sector_size = 512 << (shift % 8);
            let data: Vec<Vec<u8>> = entries
                .iter()
                .map(|owned| vec![owned.fill; usize::from(owned.sectors) * sector_size as usize])
                .collect();
            let borrowed: Vec<Entry<'_>> = entries
                .iter()
                .zip(&data)
                .map(|(owned, data)| {
                    let offset = u64::from(owned.sector) * u64::from(sector_size);
                    let entry = match owned.kind {
                        0 => Entry::write(offset, data),
                        1 => Entry::discard(offset, u64::from(owned.sectors) * u64::from(sector_size)),
                        _ => Entry::mark(&owned.text[..owned.text.len().min(479)]),
                    };
                    let is = |bit: u8| owned.flags >> bit & 1 == 1;
                    Entry { flush: is(0), fua: is(1), metadata: is(2), ..entry }
                })
                .collect();
            let bytes = encode(sector_size, borrowed.iter().copied()).unwrap();
            let log = Log::parse(&bytes).unwrap();
            let mut reader = log.entries();
            let back: Vec<_> = reader.by_ref().map(Result::unwrap).collect();
            log.promised() == borrowed.len() as u64
                && log.sector_size() == sector_size
                && back == borrowed
                && reader.at == bytes.len()
        }

        /// Goal: no bytes make the reader panic or run on.
        fn any_bytes_are_a_log_or_an_error(bytes: Vec<u8>, keep: bool, at: u16, value: u8) -> bool {
            let mut log = encode(512, [Entry::write(512, &[1; 1024]), Entry::mark(b"m")]).unwrap();
            if keep {
                let at = usize::from(at) % log.len();
                log[at] = value;
                log.truncate(log.len() - bytes.len().min(600));
            } else {
                log[..bytes.len().min(600)].copy_from_slice(&bytes[..bytes.len().min(600)]);
            }
            Log::parse(&log).map_or(true, |log| log.entries().take(10).count() < 10)
        }
    }

    fn sample() -> Vec<u8> {
        encode(512, [Entry::write(1024, &[1; 512]), Entry::flush(), Entry::mark(b"end")]).unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let bytes = sample();
        assert_eq!(bytes.len(), 512 + 1024 + 512 + 512);
        assert_eq!(bytes[..8], [0x72, 0x68, 0x73, 0x77, 0x66, 0x73, 0x6a, 0]);
        assert_eq!(bytes[8..28], [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]);
        assert_eq!(u64_at(&bytes, 512), 2, "sector");
        assert_eq!(u64_at(&bytes, 520), 1, "sectors");
        assert_eq!(u64_at(&bytes, 1536 + 16), FLUSH);
        assert_eq!(u64_at(&bytes, 2048 + 16), MARK);
        assert_eq!(bytes[2048 + 24..2048 + 36], [3, 0, 0, 0, 0, 0, 0, 0, b'e', b'n', b'd', 0]);
    }

    /// Goal: each thing that can be wrong is refused with its place. Method: one byte changed, or the end cut off.
    #[test]
    fn errors_name_entry_and_byte() {
        let first_error = |bytes: &[u8]| match Log::parse(bytes) {
            Err(error) => error.to_string(),
            Ok(log) => {
                log.entries().find_map(Result::err).map_or_else(String::new, |e| e.to_string())
            }
        };
        assert_eq!(first_error(&sample()), "");
        for (at, value, expected) in [
            (
                0,
                9,
                "log superblock, byte 0: 0x006a736677736809 is not the magic number 0x006a736677736872",
            ),
            (8, 2, "log superblock, byte 8: version 2 is not 1"),
            (
                25,
                3,
                "log superblock, byte 24: sector size 768 is not a power of two from 512 to 65536",
            ),
            (100, 1, "log superblock, byte 28: the padding is not zero"),
            (528, 32, "log entry 0, byte 528: flags 0x20 are not known"),
            (1552, 12, "log entry 1, byte 1552: an entry cannot be both a discard and a mark"),
            (
                519,
                255,
                "log entry 0, byte 512: 1 sectors from sector 18374686479671623682 reach past the last byte that there can be",
            ),
            (520, 200, "log entry 0, byte 1024: 102400 bytes are needed and 1536 are left"),
            (536, 1, "log entry 0, byte 536: 1 bytes of text, where 0 fit"),
            (600, 1, "log entry 0, byte 544: the padding is not zero"),
            (2056, 7, "log entry 2, byte 2056: a mark covers 7 sectors, not 0"),
            (2073, 2, "log entry 2, byte 2072: 515 bytes of text, where 479 fit"),
            (16, 4, "log entry 3, byte 2560: 512 bytes are needed and 0 are left"),
        ] {
            let mut bytes = sample();
            bytes[at] = value;
            assert_eq!(first_error(&bytes), expected, "byte {at} set to {value}");
        }
        for (length, expected) in [
            (27, "log superblock, byte 0: 28 bytes are needed and 27 are left"),
            (511, "log superblock, byte 0: 512 bytes are needed and 511 are left"),
            (1535, "log entry 0, byte 1024: 512 bytes are needed and 511 are left"),
            (2000, "log entry 1, byte 1536: 512 bytes are needed and 464 are left"),
        ] {
            assert_eq!(first_error(&sample()[..length]), expected, "{length} bytes");
        }
    }

    #[test]
    fn what_the_format_cannot_say_is_not_written() {
        let refused = |entry| encode(512, [Entry::flush(), entry]).unwrap_err().to_string();
        assert_eq!(
            refused(Entry::write(100, &[])),
            "log entry 1, byte 1024: 100 is not a multiple of the sector size"
        );
        assert!(refused(Entry::write(0, &[0; 100])).contains("100 is not a multiple"));
        assert!(refused(Entry::discard(u64::MAX - 511, 1024)).contains("past the last byte"));
        assert!(refused(Entry::mark(&[b'm'; 480])).contains("480 bytes of text, where 479 fit"));
        assert!(encode(513, []).unwrap_err().to_string().contains("sector size 513"));
    }

    #[test]
    fn entries_that_are_not_counted_yet_are_not_read() {
        let mut bytes = sample();
        bytes[16] = 1;
        bytes[1536] = 0xff;
        let log = Log::parse(&bytes).unwrap();
        assert_eq!(log.entries().collect::<Vec<_>>(), [Ok(Entry::write(1024, &[1; 512]))]);
    }
}
