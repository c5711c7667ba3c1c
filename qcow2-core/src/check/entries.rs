//! Entries of a table that was read as bytes.

use crate::format::entry::{EntryError, L2Entry, Mapping};
use crate::format::header::Header;

/// An entry of an L2 table, in its halves; the second one of a standard entry is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Halves {
    pub(super) first: L2Entry,
    pub(super) bitmap: u64,
}

impl Halves {
    pub(super) fn decode(self, header: &Header, at: u64) -> Result<Mapping, EntryError> {
        match header.extended_l2() {
            true => self.decode_of::<true>(header, at),
            false => self.decode_of::<false>(header, at),
        }
    }

    /// The same where it is known whether entries are extended.
    #[inline]
    pub(super) fn decode_of<const EXTENDED: bool>(
        self,
        header: &Header,
        at: u64,
    ) -> Result<Mapping, EntryError> {
        match EXTENDED {
            true => self.first.decode_extended(self.bitmap, header.cluster_bits, at),
            false => self.first.decode(header.cluster_bits, header.version, at),
        }
    }
}

/// The entries of an L2 table that are not zero, with the byte at which they begin in it.
pub(super) fn l2_entries<const EXTENDED: bool>(
    table: &[u8],
) -> impl Iterator<Item = (u64, Halves)> {
    let half = move |at: usize| {
        let bytes = table.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_be_bytes)
    };
    let mut done = None;
    entries(table).filter_map(move |(index, entry)| {
        if !EXTENDED {
            return Some((index * 8, Halves { first: L2Entry(entry), bitmap: 0 }));
        }
        // Either half is enough to find both.
        let at = index / 2 * 16;
        if done == Some(at) {
            return None;
        }
        done = Some(at);
        let within = usize::try_from(at).expect("a table fits in memory");
        Some((at, Halves { first: L2Entry(half(within)), bitmap: half(within + 8) }))
    })
}

/// The entries of a table that are not zero, with their index; most of a large table is.
pub(super) fn entries(table: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    const PART: usize = 4096;
    let parts = (0..).step_by(PART / 8).zip(table.chunks(PART));
    let used = parts.filter(|(_, part)| **part != [0; PART][..part.len()]);
    used.flat_map(|(first, part)| {
        (first..).zip(part.as_chunks::<8>().0).filter_map(|(index, bytes)| {
            let entry = u64::from_be_bytes(*bytes);
            (entry != 0).then_some((index, entry))
        })
    })
}
