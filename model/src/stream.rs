//! What compressed clusters read as, by decoders that the library does not use.
//!
//! ```text
//!   units of the file     |   {a}   |  {b, c}  |   {d}   |      each a set of possible values
//!   descriptor                 [==================]
//!   streams                    a b d,   a c d                   each decoded to a whole cluster, or to none
//! ```
//!
//! **Invariant.** A stream that gives anything but exactly one cluster gives none. Where more ways to read it are possible than
//! [`MOST`], the first of them are looked at, and each other value of each unit once.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io::Read;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::decompress_slice_iter_to_slice;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::evidence::{Evidence, ValueKey};
use crate::op::Compression;
use crate::payload::UNIT;

/// Ways to read one stream that are looked at.
const MOST: usize = 256;
/// The longest that a descriptor can name: 2^13 sectors.
const MOST_BYTES: u64 = 8192 * UNIT as u64;

/// The largest window that a frame may ask for: four times the largest cluster. What asks for more is no stream.
const MOST_WINDOW: u64 = 8 << 20;

/// Where a compressed cluster's data may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    /// Host offset in bytes.
    pub(crate) offset: u64,
    /// The most bytes that it has.
    pub(crate) length: u64,
    /// What it was compressed with.
    pub(crate) kind: Compression,
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

/// Decompresses frames of zstd, one after the other, until a whole cluster is full; what follows is not looked at.
fn frames(mut stream: &[u8], cluster: &mut [u8]) -> bool {
    let mut rest = cluster;
    while !rest.is_empty() {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MOST_WINDOW);
        let mut frame = match StreamingDecoder::new_with_decoder(&mut stream, decoder) {
            Ok(frame) => frame,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let skipped =
                    usize::try_from(length).ok().and_then(|len| stream.split_at_checked(len));
                let Some((_, others)) = skipped else { return false };
                stream = others;
                continue;
            }
            Err(_) => return false,
        };
        loop {
            let mut one_more = [0];
            let room = if rest.is_empty() { &mut one_more[..] } else { &mut *rest };
            match (frame.read(room), rest.is_empty()) {
                (Ok(0), _) => break,
                // Nor is one that gives more than its cluster.
                (Err(_), _) | (Ok(_), true) => return false,
                (Ok(done), false) => match rest.split_at_mut_checked(done) {
                    Some((_, others)) => rest = others,
                    None => return false,
                },
            }
        }
    }
    true
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
        let mut read = |chosen: &[usize]| {
            bytes.clear();
            for (set, &index) in sets.iter().zip(chosen) {
                let key = set.get(index).copied().unwrap_or(ValueKey::ZERO);
                bytes.extend_from_slice(evidence.bytes(key));
            }
            let stream = bytes.get(within..).unwrap_or_default();
            let stream = stream.get(..length).unwrap_or(stream);
            let is_one = match self.kind {
                Compression::Deflate => inflate(stream, &mut whole),
                Compression::Zstd => frames(stream, &mut whole),
            };
            show(is_one.then_some(&whole[..]));
        };
        // Each other value of each unit beside the first ones of all others: whatever is not looked at below, no unit is left out.
        let mut chosen = vec![0usize; sets.len()];
        let ways = sets
            .iter()
            .map(|set| set.len().max(1))
            .try_fold(1usize, |ways, one| ways.checked_mul(one).filter(|&ways| ways <= MOST));
        for (at, set) in sets.iter().enumerate().filter(|_| ways.is_none()) {
            for index in 1..set.len() {
                if let Some(one) = chosen.get_mut(at) {
                    *one = index;
                }
                read(&chosen);
            }
            if let Some(one) = chosen.get_mut(at) {
                *one = 0;
            }
        }
        for _ in 0..MOST {
            read(&chosen);
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
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::Stream;
    use crate::evidence::BytesEvidence;
    use crate::op::Compression;

    fn readings(bytes: &[u8], stream: Stream) -> Vec<Option<Vec<u8>>> {
        let mut found = Vec::new();
        let evidence = BytesEvidence::new(bytes);
        stream.each_reading(&evidence, 1024, |reading| found.push(reading.map(<[u8]>::to_vec)));
        found
    }

    #[test]
    fn a_stream_anywhere_gives_its_cluster() {
        let cluster: Vec<u8> = (0..1024u32).map(|at| (at / 100) as u8).collect();
        let kind = Compression::Deflate;
        let stream = miniz_oxide::deflate::compress_to_vec(&cluster, 6);
        for offset in [0, 7, 511, 512, 1000] {
            let mut bytes = vec![0xa5; offset];
            bytes.extend_from_slice(&stream);
            bytes.extend([0x5a; 600]);
            let place = Stream { offset: offset as u64, length: stream.len() as u64 + 300, kind };
            assert_eq!(readings(&bytes, place), [Some(cluster.clone())]);
        }
        let place = Stream { offset: 0, length: stream.len() as u64 / 2, kind };
        assert_eq!(readings(&stream, place), [None]);
        let shorter = miniz_oxide::deflate::compress_to_vec(cluster.split_at(1).1, 6);
        assert_eq!(readings(&shorter, Stream { offset: 0, length: 600, kind }), [None]);
        assert_eq!(readings(&[], Stream { offset: 1 << 50, length: 512, kind }), [None]);
    }

    /// Goal: frames give a cluster as the specification has it: several, empty ones and skipped ones among them, exactly full. Method: frames of
    /// each kind in a row, and what is too short, too long, or no frame.
    #[test]
    fn frames_give_their_cluster_and_nothing_else() {
        let cluster: Vec<u8> = (0..1024u32).map(|at| (at / 100) as u8).collect();
        let frame = |data: &[u8]| compress_to_vec(data, CompressionLevel::Fastest);
        let (first, second) = cluster.split_at(300);
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], &[7; 3]].concat();
        let read = |bytes: &[u8]| {
            let length = bytes.len() as u64;
            let kind = Compression::Zstd;
            readings(bytes, Stream { offset: 0, length, kind }).remove(0)
        };
        let whole = [frame(&cluster), vec![0; 200]].concat();
        assert_eq!(read(&whole), Some(cluster.clone()));
        let parts = [frame(first), frame(&[]), skipped, frame(second), vec![0x5a; 9]].concat();
        assert_eq!(read(&parts), Some(cluster.clone()));
        assert_eq!(read(&frame(first)), None);
        assert_eq!(read(&frame(&[&cluster[..], &[1]].concat())), None);
        let short = whole.split_at(whole.len() - 220).0;
        assert_eq!(read(short), None);
        assert_eq!(read(&[0; 600]), None);
        // A window of 2^41 bytes.
        assert_eq!(read(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8, 0x29, 0, 0, 1, 2, 3, 4, 5]), None);
    }
}
