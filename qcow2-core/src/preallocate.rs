//! Taking host clusters before there is anything to write to them.
//!
//! ```text
//!   before        | data | zero, with a cluster | zero, without | shows the layer below |
//!   after         | data | data: zeroes         | data: zeroes  | data: copied from it  |      standard L2 entries
//!                 | data | zero, with a cluster | zero, with a cluster | shows the layer, with a cluster |   extended ones
//! ```
//!
//! **Invariant.** Nothing reads as anything else than before, on the storage neither: what is mapped is new space that was never written,
//! which reads as zeroes, or it was filled, and its entry waits for that (`data-before-mapping`).

use std::ops::Range;

use crate::alloc::Extent;
use crate::error::IoError;
use crate::image::Image;
use crate::options::Preallocation;
use crate::write::{AT_ONCE, Purpose, WriteMap};
use storage::{Durability, IoBuf, Storage};

/// Bytes of zeroes that are written at once.
const ZEROES: u64 = 1 << 20;

impl<S: Storage> Image<S> {
    /// Gives every guest cluster that the range touches a host cluster of its own, and keeps as much of its space as `how` says; `offset`
    /// and `len` are multiples of 512 bytes. A write in the range takes no cluster afterwards, and in an image with standard L2 entries
    /// changes no table: what shows the layer below there is copied from it. Space that is taken already is left as it is.
    ///
    /// Durable after the next flush. To make a disk larger with its new space taken, [grow](Image::grow) it first.
    ///
    /// # Errors
    /// As [`Image::write`]. What was taken until then stays.
    pub async fn preallocate(
        &self,
        offset: u64,
        len: u64,
        how: Preallocation,
    ) -> Result<(), IoError> {
        if how == Preallocation::Off {
            return self.with(|state| state.check_range(offset, len)).await;
        }
        let (size, end) = (self.cluster_size, offset.saturating_add(len));
        let mut at = offset;
        loop {
            let piece = at..end.min((at / size + AT_ONCE).saturating_mul(size));
            let map = self.claim_to_write(piece.start, piece.end - piece.start).await?;
            map.reserve(piece.clone(), how).await?;
            at = piece.end;
            if at >= end {
                break;
            }
        }
        if self.options.write_through { self.flush().await } else { Ok(()) }
    }
}

impl<S: Storage> WriteMap<'_, S> {
    /// Maps the clusters of a range without writing anything of the caller's.
    async fn reserve(mut self, bytes: Range<u64>, how: Preallocation) -> Result<(), IoError> {
        // The disk may have become smaller while the claim was waited for.
        let (offset, len) = (bytes.start, bytes.end - bytes.start);
        self.image.now(|state| state.check_range(offset, len))?;
        self.resolve(offset, len, false, Purpose::Keep(how)).await?;
        self.commit().await
    }

    /// Keeps the space of clusters that were taken.
    pub(crate) async fn keep_space(
        &mut self,
        run: &Extent,
        space: Preallocation,
    ) -> Result<(), IoError> {
        let image = self.image;
        let bytes = run.clusters.start * image.cluster_size..run.clusters.end * image.cluster_size;
        let failed = |offset, source| {
            let action = "keeping space for data";
            IoError::Storage { action, offset, source }
        };
        match space {
            Preallocation::Off | Preallocation::Metadata => {}
            Preallocation::Falloc => {
                let kept = self.claim.write_zeroes(bytes.clone()).await;
                kept.map_err(|source| failed(bytes.start, source))?;
            }
            Preallocation::Full => {
                let most = ZEROES.min(image.limits.max_transfer as u64);
                let mut at = bytes.start;
                while at < bytes.end {
                    let len = usize::try_from(most.min(bytes.end - at)).expect("a piece fits");
                    let buf = IoBuf::zeroed(len, image.limits.alignment);
                    let (buf, written) = self.claim.write(at, buf, Durability::Cached).await;
                    written.map_err(|source| failed(at, source))?;
                    at += buf.len() as u64;
                }
            }
        }
        Ok(())
    }
}
