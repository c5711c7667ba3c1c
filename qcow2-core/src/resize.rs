//! Growing the guest disk.
//!
//! ```text
//!   header  size | l1_size | l1_table_offset     all three inside the first 512 bytes: one write switches them
//!                               │
//!      old L1 <─ before ────────┴──── after ─> new L1: copy of the old, then zeroes
//! ```

use crate::barrier::Barrier;
use crate::cache::Kind;
use crate::claims::Resource;
use crate::error::IoError;
use crate::image::Image;
use crate::order::Before;
use crate::rule::Rule;
use crate::storage::{Storage, UNIT};

impl<S: Storage> Image<S> {
    /// Grows the guest disk to `size` bytes, a multiple of 512; the new space reads as zeroes. Durable when it returns.
    ///
    /// # Errors
    /// [`IoError::Resize`] if `size` is smaller than now or more than the format allows; else as [`Image::write`].
    pub async fn grow(&self, size: u64) -> Result<(), IoError> {
        self.check_writable()?;
        if !size.is_multiple_of(UNIT as u64) {
            return Err(IoError::Resize(format!("{size} bytes is not a multiple of 512")));
        }
        self.restore_header().await?;
        let mut claim = self.claim(Resource::Tables(0..u64::MAX)).await?;
        let header = self.with(|state| state.header.clone()).await;
        if size < header.size {
            let now = header.size;
            return Err(IoError::Resize(format!(
                "{size} bytes is less than the {now} of now, and shrinking is not supported"
            )));
        }
        let entries =
            header.l1_entries_for(size).map_err(|error| IoError::Resize(error.to_string()))?;
        if size == header.size {
            return Ok(());
        }
        if entries <= header.l1_size {
            let mut header = self.claim(Resource::Header).await?;
            self.write_header(&mut header, |header| header.size = size, |_, _| {}).await?;
            drop(header);
            return self.flush().await;
        }

        let cluster_size = header.cluster_size();
        let clusters = (u64::from(entries) * 8).div_ceil(cluster_size);
        let (taken, mut counts) = self.allocate_run(&mut claim, clusters).await?;
        let offset = taken.start * cluster_size;
        let len = usize::try_from(clusters * cluster_size).expect("limited by the format");
        let mut table = vec![0; len];
        let (old_offset, old_entries) = (header.l1_table_offset, u64::from(header.l1_size));
        self.copy_table(old_offset, old_entries, Kind::L1, &mut table).await?;
        self.write_all(&mut claim, offset, &table).await?;
        // The copy holds the newest entries of the old table, so what those wait for comes first too.
        let old = old_offset..old_offset + 8 * old_entries;
        let mut before = Vec::new();
        self.with(|state| {
            if !state.counted() {
                counts.clear();
            }
            let dirty = state.cache.dirty(false).into_iter();
            before.extend(
                dirty
                    .filter(|(page, _)| old.contains(page))
                    .map(|(offset, version)| Before::Page { offset, version }),
            );
            before.push(Before::Written(state.clock.stamp()));
            before.push(Before::Written(state.length_stamp));
        })
        .await;
        self.ensure(Rule::RefcountBeforeReference, Barrier::L1Counts, &counts).await?;
        self.ensure(Rule::CopyBeforeSwitch, Barrier::L1Switch, &before).await?;
        let mut switch = self.claim(Resource::Header).await?;
        self.write_header(
            &mut switch,
            |header| {
                header.size = size;
                header.l1_size = entries;
                header.l1_table_offset = offset;
            },
            |state, switched| {
                claim.clusters.retain(|cluster| !taken.contains(cluster));
                state.forget(old.clone());
                for cluster in old.start / cluster_size..old.end.div_ceil(cluster_size) {
                    state.dereference(cluster, Before::Written(switched), false);
                }
            },
        )
        .await?;
        drop(switch);
        drop(claim);
        self.flush().await
    }
}
