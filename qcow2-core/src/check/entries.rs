//! Entries of a table that was read as bytes.

use std::ops::Range;

use crate::files::in_data;
use crate::format::entry::{EntryError, L2Entry, Mapping};
use crate::format::header::Header;

/// An entry of an L2 table, in its halves, and its guest cluster; the second half of a standard entry is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Halves {
    pub(super) first: L2Entry,
    pub(super) bitmap: u64,
    pub(super) cluster: u64,
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
        if header.has_data_file() {
            let guest = self.cluster.saturating_mul(header.cluster_size());
            let bitmap = EXTENDED.then_some(self.bitmap);
            let place = in_data(guest);
            return self.first.decode_in_data_file(bitmap, header.cluster_bits, guest, place, at);
        }
        match EXTENDED {
            true => self.first.decode_extended(self.bitmap, header.cluster_bits, at),
            false => self.first.decode(header.cluster_bits, header.version, at),
        }
    }

    /// The bytes of the file that an entry may mean which makes no sense.
    pub(super) fn meant(self, header: &Header) -> Option<Range<u64>> {
        let first = self.first;
        if first.is_compressed() {
            // Whatever its bitmap says, and wherever guest data is.
            return match first.decode(header.cluster_bits, header.version, 0) {
                Ok(Mapping::Compressed { offset, length, .. }) => Some(offset..offset + length),
                _ => None,
            };
        }
        let host = first.host();
        (host != 0).then(|| host..host + header.cluster_size())
    }
}

/// The entries of an L2 table that are not zero, with the byte at which they begin in it; the first one is that of this guest cluster.
pub(super) fn l2_entries<const EXTENDED: bool>(
    table: &[u8],
    first_cluster: u64,
) -> impl Iterator<Item = (u64, Halves)> {
    let half = move |at: usize| {
        let bytes = table.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_be_bytes)
    };
    let mut done = None;
    entries(table).filter_map(move |(index, entry)| {
        if !EXTENDED {
            let cluster = first_cluster + index;
            return Some((index * 8, Halves { first: L2Entry(entry), bitmap: 0, cluster }));
        }
        // Either half is enough to find both.
        let at = index / 2 * 16;
        if done == Some(at) {
            return None;
        }
        done = Some(at);
        let within = usize::try_from(at).expect("a table fits in memory");
        let (first, bitmap) = (L2Entry(half(within)), half(within + 8));
        Some((at, Halves { first, bitmap, cluster: first_cluster + at / 16 }))
    })
}

/// The entries of a table that are not zero, with their index; most of a large table is.
pub(super) fn entries(table: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    const PART: usize = 4096;
    const LINE: usize = 64;
    used::<PART>(0, table).flat_map(|(first, part)| {
        used::<LINE>(first, part).flat_map(|(first, line)| {
            (first..).zip(line.as_chunks::<8>().0).filter_map(|(index, bytes)| {
                let entry = u64::from_be_bytes(*bytes);
                (entry != 0).then_some((index, entry))
            })
        })
    })
}

/// The parts of so many bytes that are not all zero, with the index of their first entry.
fn used<const BYTES: usize>(first: u64, table: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let parts = (first..).step_by(BYTES / 8).zip(table.chunks(BYTES));
    parts.filter(|(_, part)| **part != [0; BYTES][..part.len()])
}
