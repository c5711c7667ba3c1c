//! Copying what is read from the layer below into the image.
//!
//! ```text
//!   L2 entry       | data | zeroes | shows the layer | shows the layer | shows the layer |
//!   the layer                      | data            | zeroes          | data            |
//!   read                      |####################################|
//!   after          | data | zeroes | data            | zeroes          | shows the layer |      with subclusters: those that the read touches
//! ```
//!
//! **Invariant.** It is no write of the guest's: it has the claim of one, and takes the place only of what showed the layer when it got that.
//! The entry waits for the copy (`data-before-mapping`), so nothing ever reads as anything else than before.
//!
//! What the layer has as zeroes becomes zeroes by its entry, as zeroing does it, so that a sparse layer stays sparse. Whether it has them is
//! asked of the layer first, which may know without being read; what it does not know is read and looked at. In version 2 no entry
//! hides a layer, so zeroes are copied there like anything else.

use std::ops::Range;

use crate::content::Content;
use crate::error::IoError;
use crate::files::File;
use crate::format::entry::Mapping;
use crate::image::Image;
use crate::layer::Known;
use crate::mutant::mutant;
use crate::read::{ReadMap, Source};
use crate::state::State;
use crate::write::{AT_ONCE, WriteMap, memory};
use crate::zero::Becomes;
use storage::{IoBuf, Storage};

impl State {
    /// The parts of a guest cluster with this mapping that `bytes` touch, as far as they show the layer below: a bit for each subcluster, or one for all.
    pub(crate) fn showing(&self, guest_cluster: u64, mapping: Mapping, bytes: &Range<u64>) -> u32 {
        let below = |content| matches!(content, Content::Below(_));
        if !self.extended {
            return below(self.content(guest_cluster, mapping)).into();
        }
        self.touched(guest_cluster, bytes).fold(0, |bits, one| {
            let shows = below(self.content_of(guest_cluster, mapping, one));
            bits | u32::from(shows) << one
        })
    }
}

impl<S: Storage> Image<S> {
    /// Reads what is partly the layer's, or compressed, and copies what is the layer's up if that is wanted.
    pub(crate) async fn read_and_copy(
        &self,
        offset: u64,
        map: ReadMap<'_, S>,
        buf: IoBuf,
    ) -> (IoBuf, Result<(), IoError>) {
        let (buf, read) = self.read_widened(offset, map.extents(), buf).await;
        let shows_layer = map.extents().iter().any(|extent| extent.source == Source::Below);
        drop(map);
        if read.is_ok() && shows_layer && self.options.copy_on_read && self.options.writable {
            // Who reads has what was asked for, whatever becomes of the copy.
            let _ = self.copy_up(offset, buf.len() as u64).await;
        }
        (buf, read)
    }

    /// Copies what a guest range shows of the layer below into the image; `offset` and `len` are multiples of 512 bytes. Durable after the
    /// next flush. With all of the disk copied, the image needs its layer no more ([`Image::set_backing`]).
    ///
    /// Whole clusters, or subclusters, of zeroes take no space, but in version 2; and what the layer knows to be zeroes
    /// ([`Layer::known_own`](crate::Layer::known_own)) is not read.
    ///
    /// # Errors
    /// As [`Image::write`]. What was copied until then stays.
    pub async fn copy_up(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let size = self.cluster_size;
        let stop = self
            .with(|state| {
                state.check_range(offset, len)?;
                // Past its end nothing shows the layer.
                Ok::<_, IoError>((offset + len).min(state.shown().saturating_mul(size)))
            })
            .await?;
        let mut at = offset;
        while at < stop {
            let end = stop.min((at / size + AT_ONCE).saturating_mul(size));
            let map = self.claim_to_write(at, end - at).await?;
            map.copy_up(at..end).await?;
            at = end;
        }
        Ok(())
    }
}

/// The runs of bits that are set.
fn runs(mut bits: u32) -> impl Iterator<Item = Range<u64>> {
    std::iter::from_fn(move || {
        (bits != 0).then(|| {
            let first = bits.trailing_zeros();
            let end = first + (bits >> first).trailing_ones();
            bits &= u32::MAX.checked_shl(end).unwrap_or(0);
            first.into()..end.into()
        })
    })
}

impl<S: Storage> WriteMap<'_, S> {
    /// Copies what these bytes, which are claimed, show of the layer below: whole clusters, or subclusters.
    async fn copy_up(mut self, bytes: Range<u64>) -> Result<(), IoError> {
        let image = self.image;
        let Some(below) = &image.below else { return Ok(()) };
        // The disk may have become smaller while the claim was waited for.
        let (one, disk, can_hide) = image.now(|state| {
            let one = if state.extended { state.subcluster_size() } else { image.cluster_size };
            (one, state.header.size, state.header.has_zero_entries())
        });
        let mut at = bytes.start / one * one;
        let end = bytes.end.min(disk).next_multiple_of(one);
        while at < end {
            let (own, known) = image.alike(at, end.min(disk) - at).await?;
            let own = (at + own).next_multiple_of(one) - at;
            if known != Known::Below {
                at += own;
                continue;
            }
            let (len, is_zero) = match can_hide {
                true => {
                    let (len, is_zero) = below.knows_zeroes(at, own, image.options.rules).await;
                    mutant!(image.options.rules, KnownZeroesTooLong => (end - at, is_zero); (len, is_zero))
                }
                false => (own, false),
            };
            let whole = (at + len) / one * one;
            if is_zero && at < whole {
                self.hide(at..whole).await?;
                at = whole;
            } else {
                let until = (at + len).next_multiple_of(one);
                self.copy_read(at..until, one, can_hide).await?;
                at = until;
            }
        }
        Ok(())
    }

    /// Lets what these bytes show of the layer below, which has zeroes there, be zeroes of the image's own.
    async fn hide(&self, bytes: Range<u64>) -> Result<(), IoError> {
        let mut clusters = self.image.clusters(bytes.start, bytes.end - bytes.start);
        let becomes = Becomes::Hidden { from: bytes.start, until: bytes.end };
        while !clusters.is_empty() {
            self.image.clear_step(&mut clusters, becomes).await?;
        }
        Ok(())
    }

    /// Reads what these bytes show of the layer below, clusters or subclusters of `one` bytes, and writes it to the image.
    async fn copy_read(
        &mut self,
        bytes: Range<u64>,
        one: u64,
        can_hide: bool,
    ) -> Result<(), IoError> {
        let image = self.image;
        for cluster in image.clusters(bytes.start, bytes.end - bytes.start) {
            let shows = |state: &mut State| {
                let mapping = state.mapping(cluster)?;
                Ok(state.showing(cluster, mapping, &bytes))
            };
            let start = cluster * image.cluster_size;
            for run in runs(image.decide(shows).await?) {
                let mut at = start + run.start * one;
                let buf =
                    IoBuf::zeroed(memory((run.end - run.start) * one), image.limits.alignment);
                let (mut rest, read) = image.read_below(at, buf).await;
                read?;
                while !rest.is_empty() {
                    let hides = |piece: &[u8]| {
                        let piece = mutant!(image.options.rules, CopyZeroByFirstUnit => &piece[..storage::UNIT]; piece);
                        can_hide && piece.iter().all(|&byte| byte == 0)
                    };
                    let hidden = hides(&rest[..memory(one)]);
                    let alike = rest.chunks(memory(one)).take_while(|piece| hides(piece) == hidden);
                    let piece = rest.split_to(alike.map(<[u8]>::len).sum());
                    let next = at + piece.len() as u64;
                    if hidden {
                        self.hide(at..next).await?;
                    } else {
                        self.put_copy(cluster, at, piece).await?;
                    }
                    at = next;
                }
            }
        }
        Ok(())
    }

    /// Writes a copy to its place in a guest cluster, as far as there is one: a data file may end before.
    async fn put_copy(&mut self, cluster: u64, at: u64, mut copy: IoBuf) -> Result<(), IoError> {
        let image = self.image;
        let place = image.now(|state| match state.guest_file {
            File::Image => 0,
            File::Data => state.place_in_data(cluster),
        });
        let room = image.room_in(cluster, place).saturating_sub(at % image.cluster_size);
        let copy = copy.split_to(copy.len().min(memory(room)));
        self.write_new(at, copy).await
    }
}
