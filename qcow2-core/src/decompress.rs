//! Compressed clusters: from a stream in the file to what the guest reads.
//!
//! ```text
//!   sectors of 512    |          |          |          |          |
//!   in them          ....][stream===============][next stream=====..
//!   descriptor             ^ offset                         ^ offset + length: the end of the last sector that it reaches into
//!
//!   deflate   raw, made with a window of 2^12 bytes; what follows the end is not looked at
//!   zstd      frames, one after the other, until the cluster is full
//! ```
//!
//! **Invariant.** A stream gives exactly one cluster, or it is damaged: never more is inflated, whatever it asks for, and never less is taken
//! for zeroes.

use crate::error::IoError;
use crate::format::entry::{L2Entry, Mapping};
use crate::format::header::CompressionType;
use crate::image::Image;
use crate::transfer::read_whole;
use storage::{IoBuf, Storage};

/// `inflateInit2` is called with -12 by QEMU, and `deflateInit2` too.
pub(crate) const WINDOW_BITS: u8 = 12;

/// Why a stream gives no cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("it ends before the cluster is full")]
    TooShort,
    #[error("it is longer than a cluster")]
    TooLong,
    #[error("it is no such stream")]
    Invalid,
}

/// Decompresses a stream to a whole cluster.
pub(crate) fn decompress(
    kind: CompressionType,
    stream: &[u8],
    cluster: &mut [u8],
) -> Result<(), Damage> {
    match kind {
        CompressionType::Deflate => inflate(stream, cluster),
        CompressionType::Zstd => frames(stream, cluster),
    }
}

fn inflate(stream: &[u8], cluster: &mut [u8]) -> Result<(), Damage> {
    let mut inflate = flate2::Decompress::new_with_window_bits(false, WINDOW_BITS);
    let done = inflate.decompress(stream, cluster, flate2::FlushDecompress::Finish);
    let is_full = inflate.total_out() == cluster.len() as u64;
    // A cluster that is full ends the stream, whether or not that says so.
    match done {
        Ok(flate2::Status::StreamEnd | flate2::Status::BufError) if is_full => Ok(()),
        Ok(_) => Err(Damage::TooShort),
        Err(_) => Err(Damage::Invalid),
    }
}

fn frames(stream: &[u8], cluster: &mut [u8]) -> Result<(), Damage> {
    use zstd::zstd_safe::{DCtx, find_frame_compressed_size, get_frame_content_size};

    let mut context = DCtx::try_create().ok_or(Damage::Invalid)?;
    let (mut stream, mut rest) = (stream, cluster);
    while !rest.is_empty() {
        if stream.is_empty() {
            return Err(Damage::TooShort);
        }
        // A whole frame into room of its size takes no window, however large a one it asks for.
        let len = find_frame_compressed_size(stream).map_err(|_| Damage::Invalid)?;
        let (frame, others) = stream.split_at_checked(len).ok_or(Damage::TooShort)?;
        if matches!(get_frame_content_size(frame), Ok(Some(len)) if len > rest.len() as u64) {
            return Err(Damage::TooLong);
        }
        let done = context.decompress(rest, frame).map_err(|_| Damage::Invalid)?;
        rest = rest.split_at_mut_checked(done).ok_or(Damage::TooLong)?.1;
        stream = others;
    }
    Ok(())
}

impl<S: Storage> Image<S> {
    /// What the whole guest cluster of a compressed entry reads as.
    pub(crate) async fn decompress(&self, entry: L2Entry) -> Result<IoBuf, IoError> {
        let bits = self.cluster_size.trailing_zeros();
        let Ok(Mapping::Compressed { offset, length, .. }) = entry.decode(bits, 3, 0) else {
            unreachable!("it was made of such a mapping")
        };
        let sector = self.limits.sector() as u64;
        let from = offset - offset % sector;
        let to = (offset + length).next_multiple_of(sector);
        let in_memory = |bytes: u64| usize::try_from(bytes).expect("a stream fits in memory");
        let sectors = IoBuf::zeroed(in_memory(to - from), self.limits.alignment);
        let (sectors, read) = read_whole(&self.files.image, from, sectors).await;
        let action = "reading compressed data";
        read.map_err(|(offset, source)| IoError::Storage { action, offset, source })?;
        let stream = &sectors[in_memory(offset - from)..in_memory(offset + length - from)];
        let mut cluster = IoBuf::zeroed(in_memory(self.cluster_size), self.limits.alignment);
        let kind = self.now(|state| state.header.compression_type);
        decompress(kind, stream, &mut cluster)
            .map_err(|why| IoError::Compressed { offset, why: why.to_string() })?;
        Ok(cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::{Damage, decompress};
    use crate::format::header::CompressionType::{self, Deflate, Zstd};

    const CLUSTER: usize = 4096;

    /// A cluster that compresses, and is no repetition.
    fn cluster() -> Vec<u8> {
        (0..CLUSTER)
            .map(|at| if at % 16 < 10 { (at / 256) as u8 } else { (at * at / 7) as u8 })
            .collect()
    }

    fn deflated(data: &[u8], window_bits: u8) -> Vec<u8> {
        let best = flate2::Compression::best();
        let mut compress = flate2::Compress::new_with_window_bits(best, false, window_bits);
        let mut stream = Vec::with_capacity(2 * data.len() + 64);
        compress.compress_vec(data, &mut stream, flate2::FlushCompress::Finish).unwrap();
        stream
    }

    fn compressed(kind: CompressionType, data: &[u8]) -> Vec<u8> {
        match kind {
            Deflate => deflated(data, super::WINDOW_BITS),
            Zstd => zstd::bulk::compress(data, 3).unwrap(),
        }
    }

    fn decompressed(kind: CompressionType, stream: &[u8]) -> Result<Vec<u8>, Damage> {
        let mut whole = vec![0; CLUSTER];
        decompress(kind, stream, &mut whole).map(|()| whole)
    }

    #[test]
    fn a_stream_gives_its_cluster_whatever_follows() {
        for kind in [Deflate, Zstd] {
            let mut stream = compressed(kind, &cluster());
            assert!(stream.len() < CLUSTER, "it compresses");
            assert_eq!(decompressed(kind, &stream), Ok(cluster()));
            stream.extend([0xa5; 700]);
            assert_eq!(decompressed(kind, &stream), Ok(cluster()));
        }
    }

    #[test]
    fn a_stream_of_another_length_is_damaged() {
        for kind in [Deflate, Zstd] {
            let whole = compressed(kind, &cluster());
            for len in 0..whole.len() - 8 {
                let error = decompressed(kind, &whole[..len]).unwrap_err();
                assert!(matches!(error, Damage::TooShort | Damage::Invalid), "{kind:?} {len}");
            }
            assert!(decompressed(kind, &compressed(kind, &cluster()[..CLUSTER - 1])).is_err());
            assert!(decompressed(kind, &[0xff; 300]).is_err());
        }
        // Deflate has no length of its own: a full cluster is where it ends. A frame of zstd says how long it is.
        let mut longer = cluster();
        longer.push(7);
        assert_eq!(decompressed(Deflate, &compressed(Deflate, &longer)), Ok(cluster()));
        assert_eq!(decompressed(Zstd, &compressed(Zstd, &longer)), Err(Damage::TooLong));
    }

    #[test]
    fn frames_follow_each_other_until_the_cluster_is_full() {
        let whole = cluster();
        let (first, second) = whole.split_at(1000);
        let empty = compressed(Zstd, &[]);
        let frames = [compressed(Zstd, first), empty, compressed(Zstd, second)].concat();
        assert_eq!(decompressed(Zstd, &frames), Ok(whole));
    }

    /// Goal: no stream takes more memory than a cluster, whatever it asks for. Method: a frame whose header asks for a window of 2^41 bytes,
    /// which nobody has.
    #[test]
    fn a_window_without_end_takes_no_memory() {
        // Magic, no content size, a window descriptor; then one raw block, the last, of 5 bytes.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x29, 0x00, 0x00, 1, 2, 3, 4, 5];
        assert!(decompressed(Zstd, &frame).is_err());
    }

    #[test]
    fn a_longer_window_is_understood_too() {
        // Deflate with a window of 2^15: 5,000 scattered bytes and the same again.
        let half: Vec<u8> =
            (0..5000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let data = [&half[..], &half[..]].concat();
        let stream = deflated(&data, 15);
        assert!(stream.len() < 6000, "it refers back 5,000 bytes");
        let mut whole = vec![0; data.len()];
        assert_eq!(decompress(Deflate, &stream, &mut whole), Ok(()));
        assert_eq!(whole, data);
    }
}
