//! What each guest cluster reads as, by the entries of the image.

use std::ops::Range;

use crate::evidence::Evidence;
use crate::image::{Header, Image, Mapping, decode_l2, stream_of};
use crate::mistake::Mistake;
use crate::payload::UNIT;
use crate::stream::Stream;

/// What a guest cluster reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// What is in the file from this byte on.
    Host(u64),
    /// Zeroes.
    Zero,
    /// What the layer below holds.
    Below,
    /// What a stream in the file gives.
    Stream(Stream),
}

/// The first unit of a raw data file, if the image has one.
pub(super) fn raw_data<E: Evidence>(header: &Header, evidence: &E) -> Option<u64> {
    evidence.data_file().filter(|_| header.has_raw_data())
}

/// A length in memory.
pub(super) fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a cluster fits in memory")
}

/// Shows every guest cluster, as its units, with what it reads as; neighbours whose entries are empty at once, and one that has
/// subclusters piece by piece.
pub(super) fn each_guest_cluster(
    image: &Image,
    header: &Header,
    units: u64,
    mistake: Mistake,
    mut show: impl FnMut(Range<u64>, Shown),
) {
    if header.has_extended_l2() {
        each_guest_piece(image, header, units, show);
        return;
    }
    let in_cluster = header.cluster_size() / UNIT as u64;
    let in_table = header.l2_entries();
    let (mut unit, mut cluster) = (0, 0);
    let mut table: &[u64] = &[];
    while unit < units {
        if mistake.passes_over_cluster(cluster, in_table) {
            return;
        }
        let within = cluster % in_table;
        if within == 0 {
            table = image.table(cluster / in_table).words;
        }
        let rest = table.get(within as usize..).unwrap_or_default();
        let empty = match rest {
            [] => in_table - within,
            _ => rest.iter().take_while(|entry| **entry == 0).count() as u64,
        };
        let entry = rest.first().copied().unwrap_or(0);
        let clusters = empty.max(1);
        let end = (unit + clusters * in_cluster).min(units);
        match decode_l2(entry, header) {
            Mapping::Host(offset) => show(unit..end, Shown::Host(offset)),
            Mapping::Unallocated if header.has_layer() => show(unit..end, Shown::Below),
            Mapping::Unallocated | Mapping::Zero => show(unit..end, Shown::Zero),
            Mapping::Compressed(_) => show(unit..end, Shown::Stream(stream_of(entry, header))),
        }
        (unit, cluster) = (end, cluster + clusters);
    }
}

/// The same of an image whose clusters have subclusters: apart, so that what others cost does not change.
fn each_guest_piece(
    image: &Image,
    header: &Header,
    units: u64,
    mut show: impl FnMut(Range<u64>, Shown),
) {
    let nothing = if header.has_layer() { Shown::Below } else { Shown::Zero };
    let mut next = 0;
    for (piece, mapping) in image.pieces().take_while(|(piece, _)| piece.start < units) {
        if next < piece.start {
            show(next..piece.start, nothing);
        }
        next = piece.end.min(units);
        match mapping {
            Mapping::Host(offset) => show(piece.start..next, Shown::Host(offset)),
            Mapping::Unallocated => show(piece.start..next, nothing),
            Mapping::Zero => show(piece.start..next, Shown::Zero),
            Mapping::Compressed(_) => {
                let cluster = piece.start * UNIT as u64 / header.cluster_size();
                let (entry, _) = image.entry(header, cluster);
                show(piece.start..next, Shown::Stream(stream_of(entry, header)));
            }
        }
    }
    if next < units {
        show(next..units, nothing);
    }
}
