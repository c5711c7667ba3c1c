//! Guest data on a storage whose sectors are longer than 512 bytes: what is not made of whole sectors goes there in whole ones.
//!
//! ```text
//!   sectors of the storage   |           |           |           |
//!   request                        |#################|
//!   read, or written         |.....|#################|
//! ```
//!
//! **Invariant.** What is written beside a request is what was read there under the same claim. A claim is on whole clusters, and those
//! are whole sectors, so nobody else writes there meanwhile; and on a storage that tears between 512 bytes, what does not change
//! cannot be torn.

use std::ops::Range;

use crate::claim::Claim;
use crate::crypt::Place;
use crate::error::IoError;
use crate::files::failed;
use crate::image::Image;
use crate::mutant::mutant;
use crate::read::{ReadExtent, Source};
use crate::write::WriteExtent;
use storage::{Durability, IoBuf, Storage};

/// A part of an extent, and the sectors around it in one transfer.
struct Piece {
    part: Range<u64>,
    whole: Range<u64>,
}

impl Piece {
    /// Where the part is in a buffer of the whole.
    fn within(&self) -> Range<usize> {
        index(self.part.start - self.whole.start)..index(self.part.end - self.whole.start)
    }

    fn part_len(&self) -> usize {
        index(self.part.end - self.part.start)
    }

    fn whole_len(&self) -> usize {
        index(self.whole.end - self.whole.start)
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a transfer fits in memory")
}

impl<S: Storage> Image<S> {
    /// Whether the storage takes `buf` as it is, for or from an extent that begins `offset` bytes after some cluster does.
    pub(crate) fn takes(&self, offset: u64, buf: &IoBuf) -> bool {
        let sector = self.limits.sector();
        offset.is_multiple_of(sector as u64)
            && buf.len().is_multiple_of(sector)
            && buf.is_aligned(self.limits.alignment)
    }

    /// The pieces of a range of the file, in order.
    fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + use<S> {
        let (sector, most) = (self.limits.sector() as u64, self.limits.max_transfer as u64);
        let mut rest = range;
        std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| {
                let from = rest.start - rest.start % sector;
                let to = rest.end.next_multiple_of(sector).min(from + most);
                let part = rest.start..to.min(rest.end);
                rest.start = part.end;
                Piece { part, whole: from..to }
            })
        })
    }

    /// Reads extents into `buf`, the first of which is at guest offset `offset`.
    pub(crate) async fn read_widened(
        &self,
        offset: u64,
        extents: &[ReadExtent],
        mut buf: IoBuf,
    ) -> (IoBuf, Result<(), IoError>) {
        let mut done = 0;
        for extent in extents {
            let end = done + index(extent.len);
            let host = match extent.source {
                Source::Host(_) | Source::Enciphered(_) | Source::Data(_) => {
                    extent.source.address().expect("it is in a file")
                }
                Source::Zeroes => {
                    buf[done..end].fill(0);
                    done = end;
                    continue;
                }
                Source::Compressed(entry) => {
                    let cluster = match self.decompress(entry).await {
                        Ok(cluster) => cluster,
                        Err(error) => return (buf, Err(error)),
                    };
                    while done < end {
                        // Two guest clusters may have the same stream.
                        let from = index((offset + done as u64) % self.cluster_size);
                        let len = (cluster.len() - from).min(end - done);
                        let from = mutant!(self.options.rules, StreamReadFromStart => 0; from);
                        buf[done..done + len].copy_from_slice(&cluster[from..from + len]);
                        done += len;
                    }
                    continue;
                }
                Source::Below => {
                    let mut whole = buf.split_to(done);
                    let piece = buf.split_to(end - done);
                    let (piece, read) = self.read_below(offset + done as u64, piece).await;
                    whole.unsplit(piece);
                    whole.unsplit(buf);
                    buf = whole;
                    if read.is_err() {
                        return (buf, read);
                    }
                    done = end;
                    continue;
                }
            };
            for piece in self.pieces(host..host + extent.len) {
                let whole = IoBuf::zeroed(piece.whole_len(), self.limits.alignment);
                let host = piece.whole.start;
                let (whole, read) = self.files.read(host, whole).await;
                if let Err(source) = read {
                    return (buf, Err(failed("reading data", host, source)));
                }
                let end = done + piece.part_len();
                buf[done..end].copy_from_slice(&whole[piece.within()]);
                if let Some(cipher) = &self.cipher {
                    let at = Place { guest: offset + done as u64, host: piece.part.start };
                    cipher.decipher(at, &mut buf[done..end]);
                }
                done = end;
            }
        }
        (buf, Ok(()))
    }

    /// Writes `buf` to extents under a claim on all of their clusters.
    pub(crate) async fn write_widened(
        &self,
        claim: &mut Claim<'_, S>,
        extents: &[WriteExtent],
        buf: IoBuf,
        how: Durability,
    ) -> (IoBuf, Result<(), IoError>) {
        let mut done = 0;
        for extent in extents {
            for piece in self.pieces(extent.host..extent.host + extent.len) {
                let end = done + piece.part_len();
                let written = self.write_piece(claim, &piece, &buf[done..end], how).await;
                if written.is_err() {
                    return (buf, written);
                }
                done = end;
            }
        }
        (buf, Ok(()))
    }

    async fn write_piece(
        &self,
        claim: &mut Claim<'_, S>,
        piece: &Piece,
        data: &[u8],
        how: Durability,
    ) -> Result<(), IoError> {
        let (sector, alignment) = (self.limits.sector() as u64, self.limits.alignment);
        let Piece { part, whole } = piece;
        let mut buf = IoBuf::zeroed(piece.whole_len(), alignment);
        let (first, last) = (whole.start, whole.end - sector);
        let is_first = part.start > whole.start;
        let is_last = part.end < whole.end && !(is_first && last == first);
        for (host, _) in [(first, is_first), (last, is_last)].into_iter().filter(|(_, is)| *is) {
            let edge = IoBuf::zeroed(index(sector), alignment);
            let (edge, read) = self.files.read(host, edge).await;
            let action = "reading what is beside the data";
            read.map_err(|source| failed(action, host, source))?;
            let at = index(host - whole.start);
            buf[at..at + edge.len()].copy_from_slice(&edge);
        }
        buf[piece.within()].copy_from_slice(data);
        let (_, written) = claim.write(whole.start, buf, how).await;
        written.map_err(|source| failed("writing data", whole.start, source))
    }
}
