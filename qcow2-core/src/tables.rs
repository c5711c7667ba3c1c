//! Whole tables on their way to another place: copied from the cache, written past it.

use crate::cache::Kind;
use crate::claim::Claim;
use crate::error::IoError;
use crate::image::Image;
use storage::{Durability, IoBuf, Storage};

impl<S: Storage> Image<S> {
    /// Copies the newest entries of a table, page by page, to the front of `to`.
    pub(crate) async fn copy_table(
        &self,
        offset: u64,
        entries: u64,
        kind: Kind,
        to: &mut [u8],
    ) -> Result<(), IoError> {
        let end = offset + 8 * entries;
        let mut at = offset;
        while at < end {
            let next = self
                .decide(|state| {
                    let page = state.cache.page_of(at);
                    let slot = state.find(page, kind)?;
                    let page_end = (page + state.cache.page_size()).min(end);
                    let bytes = state.cache.bytes(slot);
                    let span = |from: u64, to: u64| {
                        let index = |at: u64| usize::try_from(at).expect("a table fits in memory");
                        index(from)..index(to)
                    };
                    to[span(at - offset, page_end - offset)]
                        .copy_from_slice(&bytes[span(at - page, page_end - page)]);
                    Ok(page_end)
                })
                .await?;
            at = next;
        }
        Ok(())
    }

    /// Writes metadata that no cache page holds.
    pub(crate) async fn write_all(
        &self,
        claim: &mut Claim<'_, S>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), IoError> {
        let mut at = offset;
        for chunk in bytes.chunks(self.limits.max_transfer) {
            let buf = IoBuf::copy_of(chunk, self.limits.alignment);
            let (_, result) = claim.write(at, buf, Durability::Cached).await;
            let action = "writing metadata";
            result.map_err(|source| IoError::Storage { action, offset: at, source })?;
            at += chunk.len() as u64;
        }
        Ok(())
    }
}
