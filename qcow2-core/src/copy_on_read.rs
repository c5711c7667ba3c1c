//! Copying what is read from the layer below into the image.
//!
//! ```text
//!   L2 entry       | data | zeroes | shows the layer | shows the layer |
//!   read                      |################|
//!   after          | data | zeroes | data            | shows the layer |      with subclusters: those that the read touches
//! ```
//!
//! **Invariant.** It is no write of the guest's: it has the claim of one, and takes the place only of what showed the layer when it got that.
//! The entry waits for the copy (`data-before-mapping`), so nothing ever reads as anything else than before.

use std::ops::Range;

use crate::content::Content;
use crate::error::IoError;
use crate::format::entry::Mapping;
use crate::image::Image;
use crate::read::{ReadMap, Source};
use crate::state::State;
use crate::write::{AT_ONCE, Purpose, WriteMap};
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

impl<S: Storage> WriteMap<'_, S> {
    async fn copy_up(mut self, bytes: Range<u64>) -> Result<(), IoError> {
        let image = self.image;
        let size = image.cluster_size;
        for cluster in image.clusters(bytes.start, bytes.end - bytes.start) {
            // The disk may have become smaller while the claim was waited for.
            let shows = |state: &mut State| {
                if cluster * size >= state.header.size {
                    return Ok(0);
                }
                let mapping = state.mapping(cluster)?;
                Ok(state.showing(cluster, mapping, &bytes))
            };
            if image.decide(shows).await? == 0 {
                continue;
            }
            let from = bytes.start.max(cluster * size);
            let until = bytes.end.min((cluster + 1) * size);
            self.resolve(from, until - from, false, Purpose::CopyUp).await?;
        }
        self.commit().await
    }
}
