//! Giving guest clusters that share a host cluster one of their own.
//!
//! ```text
//!   L2 entries     | 7 | 5 | 7 |     host cluster 7 has refcount 2, and no entry says COPIED, as a repair leaves it
//!   after          | 8 | 5 | 9 |     7 is copied twice, and freed
//! ```
//!
//! **Invariant.** Each is a copy on write of nothing: its entry waits for the copy (`data-before-mapping`), and the shared cluster is counted
//! down when the entry that leaves it is durable (`dereference-before-refcount-down`). Nothing ever reads as anything else than before.

use std::ops::Range;

use crate::error::IoError;
use crate::format::entry::Mapping;
use crate::image::Image;
use crate::map::Entries;
use crate::options::Preallocation;
use crate::state::{State, Stop};
use crate::write::{AT_ONCE, Purpose};
use storage::Storage;

impl State {
    /// The first of these guest clusters whose host cluster others have too, as far as the cache knows; takes it and those before it out of
    /// the range.
    fn next_shared(&mut self, clusters: &mut Range<u64>) -> Result<Option<u64>, Stop> {
        for _ in 0..AT_ONCE {
            if clusters.is_empty() {
                break;
            }
            match self.entries(clusters.clone(), AT_ONCE)? {
                Entries::NoTable { clusters: unmapped } => clusters.start += unmapped,
                Entries::At { slot, at, count } => {
                    let entry_bytes = self.entry_bytes();
                    for index in 0..count as u64 {
                        let at = at + entry_bytes * index;
                        let mapping = self.mapping_in(clusters.start, slot, at)?;
                        clusters.start += 1;
                        if self.is_shared(mapping) {
                            return Ok(Some(clusters.start - 1));
                        }
                    }
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Whether a mapping's host cluster has others too, as its entry says: the count may have gone down since it was written.
    fn is_shared(&self, mapping: Mapping) -> bool {
        match mapping {
            Mapping::Data { host, copied: false }
            | Mapping::ZeroAllocated { host, copied: false }
            | Mapping::Mixed { host: host @ 1.., copied: false, .. } => !self.is_past_end(host),
            // What is compressed may share what it lies in.
            _ => false,
        }
    }
}

impl<S: Storage> Image<S> {
    /// Gives every guest cluster that shares its host cluster with another one of its own, and says how many it gave. Durable when it
    /// returns.
    ///
    /// In an image without snapshots only damage leads there ([`Problem::Shared`](crate::Problem::Shared)): two guest clusters hold the same
    /// bytes, of which one has lost its own, and nobody knows which. A repair makes that safe by counting both, so that a write to the one
    /// does not change the other; this takes the finding away, once the bytes were looked at. [Check](crate::check()) and repair the image
    /// first: what is not counted is not seen.
    ///
    /// # Errors
    /// As [`Image::write`]. What was separated until then stays so.
    pub async fn separate(&self) -> Result<u64, IoError> {
        self.begin_change().await?;
        let (size, disk) = (self.cluster_size, self.now(|state| state.header.size));
        let mut rest = 0..disk.div_ceil(size);
        let mut separated = 0;
        while !rest.is_empty() {
            let Some(cluster) = self.decide(|state| state.next_shared(&mut rest)).await? else {
                continue;
            };
            let offset = cluster * size;
            let len = size.min(disk - offset);
            let mut map = self.claim_to_write(offset, len).await?;
            let still = |state: &mut State| {
                // The disk may have become smaller while the claim was waited for.
                if offset >= state.header.size {
                    return Ok(false);
                }
                let mapping = state.mapping(cluster)?;
                Ok(state.is_shared(mapping))
            };
            if self.decide(still).await? {
                let purpose = Purpose::Keep(Preallocation::Metadata);
                map.resolve(offset, len, false, purpose).await?;
                map.commit().await?;
                separated += 1;
            }
        }
        self.flush().await?;
        Ok(separated)
    }
}
