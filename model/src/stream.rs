//! What compressed clusters read as, by a decoder that no implementation under test is known to use.
//!
//! ```text
//!   units of the file     |   {a}   |  {b, c}  |   {d}   |      each a set of possible values
//!   descriptor                 [==================]
//!   streams                    a b d,   a c d                   each decoded to a whole cluster, or to none
//! ```
//!
//! **Invariant.** A stream that gives anything but exactly one cluster gives none. Where more ways to read it are possible than
//! [`MOST`], the first of them are looked at.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::decompress_slice_iter_to_slice;

use crate::evidence::{Evidence, ValueKey};
use crate::payload::UNIT;

/// Ways to read one stream that are looked at.
const MOST: usize = 256;
/// The longest that a descriptor can name: 2^13 sectors.
const MOST_BYTES: u64 = 8192 * UNIT as u64;

/// Where a compressed cluster's data may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    /// Host offset in bytes.
    pub(crate) offset: u64,
    /// The most bytes that it has.
    pub(crate) length: u64,
}

/// Inflates a stream of raw deflate to a whole cluster.
fn inflate(stream: &[u8], cluster: &mut [u8]) -> bool {
    match decompress_slice_iter_to_slice(cluster, std::iter::once(stream), false, true) {
        Ok(len) => len == cluster.len(),
        // Full, and more would follow: a full cluster is where it ends.
        Err(TINFLStatus::HasMoreOutput) => true,
        Err(_) => false,
    }
}

impl Stream {
    /// Shows every way in which the cluster may read; none where its bytes are no stream that gives one.
    pub(crate) fn each_reading<E: Evidence>(
        self,
        evidence: &E,
        cluster: usize,
        mut show: impl FnMut(Option<&[u8]>),
    ) {
        let unit = UNIT as u64;
        let length = self.length.min(MOST_BYTES);
        let first = self.offset.checked_div(unit).unwrap_or(0);
        let end = self.offset.saturating_add(length).div_ceil(unit);
        let mut sets: Vec<Vec<ValueKey>> = Vec::new();
        for unit in first..end {
            let mut keys = Vec::new();
            evidence.peek(unit, |key| keys.push(key));
            sets.push(keys);
        }
        let within = usize::try_from(self.offset.checked_rem(unit).unwrap_or(0)).unwrap_or(0);
        let length = usize::try_from(length).unwrap_or(0);
        let mut whole = vec![0; cluster];
        let mut bytes = Vec::new();
        let mut chosen = vec![0usize; sets.len()];
        for _ in 0..MOST {
            bytes.clear();
            for (set, &index) in sets.iter().zip(&chosen) {
                let key = set.get(index).copied().unwrap_or(ValueKey::ZERO);
                bytes.extend_from_slice(evidence.bytes(key));
            }
            let stream = bytes.get(within..).unwrap_or_default();
            let stream = stream.get(..length).unwrap_or(stream);
            let is_one = inflate(stream, &mut whole);
            show(is_one.then_some(&whole[..]));
            // The next way, as an odometer counts.
            let mut turned = false;
            for (index, set) in chosen.iter_mut().zip(&sets) {
                *index = index.saturating_add(1);
                if *index < set.len() {
                    turned = true;
                    break;
                }
                *index = 0;
            }
            if !turned {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Stream;
    use crate::evidence::BytesEvidence;

    fn readings(bytes: &[u8], stream: Stream) -> Vec<Option<Vec<u8>>> {
        let mut found = Vec::new();
        let evidence = BytesEvidence::new(bytes);
        stream.each_reading(&evidence, 1024, |reading| found.push(reading.map(<[u8]>::to_vec)));
        found
    }

    #[test]
    fn a_stream_anywhere_gives_its_cluster() {
        let cluster: Vec<u8> = (0..1024u32).map(|at| (at / 100) as u8).collect();
        let stream = miniz_oxide::deflate::compress_to_vec(&cluster, 6);
        for offset in [0, 7, 511, 512, 1000] {
            let mut bytes = vec![0xa5; offset];
            bytes.extend_from_slice(&stream);
            bytes.extend([0x5a; 600]);
            let place = Stream { offset: offset as u64, length: stream.len() as u64 + 300 };
            assert_eq!(readings(&bytes, place), [Some(cluster.clone())]);
        }
        let place = Stream { offset: 0, length: stream.len() as u64 / 2 };
        assert_eq!(readings(&stream, place), [None]);
        let shorter = miniz_oxide::deflate::compress_to_vec(cluster.split_at(1).1, 6);
        assert_eq!(readings(&shorter, Stream { offset: 0, length: 600 }), [None]);
        assert_eq!(readings(&[], Stream { offset: 1 << 50, length: 512 }), [None]);
    }
}
