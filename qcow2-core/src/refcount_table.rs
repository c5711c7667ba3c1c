//! New refcount blocks, and a larger refcount table.
//!
//! **Invariant.** New structures count themselves, and lie where no block described anything before: the first cluster that a block
//! describes is the block. A table is never rewritten in place when it moves.

use crate::barrier::Barrier;
use crate::cache::Kind;
use crate::claim::Claim;
use crate::claims::Resource;
use crate::error::IoError;
use crate::files::File;
use crate::format::entry::RefcountTableEntry;
use crate::format::{limits, refcount};
use crate::image::Image;
use crate::metadata::Table;
use crate::mutant::mutant;
use crate::order::Before;
use crate::rule::Rule;
use storage::Storage;

impl<S: Storage> Image<S> {
    /// Adds the refcount block that describes `cluster`. It takes the first cluster that it describes, so that it describes
    /// itself. Where as many clusters as there has to be `room` for do not fit behind it, several blocks come before them.
    pub(crate) async fn add_refcount_block(&self, cluster: u64, room: u64) -> Result<(), IoError> {
        self.restore_header().await?;
        let mut claim = self.claim(Resource::Refcounts).await?;
        let (described, per_block, table_entries, size) = self
            .decide(|state| {
                Ok((
                    state.refcount_place(cluster)?.is_some(),
                    state.entries_per_block(),
                    state.refcount_table_entries(),
                    state.cluster_size(),
                ))
            })
            .await?;
        if described {
            return Ok(());
        }
        let block = cluster / per_block;
        let taken = block * per_block..block * per_block + 1;
        if block >= table_entries || room >= per_block {
            return self.grow_refcount_table(&mut claim, taken.start, room).await;
        }
        self.decide(|state| Ok(state.check_free(taken.clone())?)).await?;
        self.grow_file(taken.end).await?;
        let range = taken.start * size..taken.end * size;
        let fresh = self.with(|state| taken.start >= state.fresh_from).await;
        if !fresh {
            let zeroed = claim.write_zeroes(range.clone()).await;
            let action = "zeroing a refcount block";
            zeroed.map_err(|source| IoError::Storage { action, offset: range.start, source })?;
        }
        self.decide(|state| {
            let at = state.header.refcount_table_offset + 8 * block;
            state.entry(at, Kind::RefcountTable)?;
            state.check_room()?;
            let zeroes =
                if fresh { state.reaches(taken.end) } else { state.clock.stamp(File::Image) };
            let order = state.header.refcount_order;
            state.cache.insert_zeroes(range.start, Kind::RefcountBlock, zeroes);
            let own = mutant!(state.rules, BlockNotCounted => 0; 1);
            let version = state.cache.change(range.start, |page| {
                refcount::set(page, order, 0, own).expect("1 fits in every width");
            });
            state.note_written(taken.end);
            state.add_table(taken.start, Table::RefcountBlock);
            state.cache.set_entry(at, RefcountTableEntry::new(range.start).0);
            let table_page = state.cache.page_of(at);
            let counts = [Before::Page { offset: range.start, version }];
            state.order_reference(table_page, taken.end, &counts);
            state.order(table_page, Rule::ZeroesBeforePointer, Before::Written(zeroes));
            Ok(())
        })
        .await
    }

    /// Replaces the refcount table by a larger one that describes `cluster` and itself, written beside it and switched
    /// to by one write of the header. It has the clusters that it needs: with 64 KiB clusters another one is needed once
    /// in 16 TiB.
    ///
    /// ```text
    ///   from `cluster` on:  | new refcount blocks for all of this | new refcount table | `room` for others |
    /// ```
    async fn grow_refcount_table(
        &self,
        claim: &mut Claim<'_, S>,
        cluster: u64,
        room: u64,
    ) -> Result<(), IoError> {
        let (per_block, old_entries, size, order, old_offset) = self
            .with(|state| {
                (
                    state.entries_per_block(),
                    state.refcount_table_entries(),
                    state.cluster_size(),
                    state.header.refcount_order,
                    state.header.refcount_table_offset,
                )
            })
            .await;
        let first_block = cluster / per_block;
        let (mut blocks, mut table_clusters) = (1, 1);
        loop {
            let end_block = (cluster + blocks + table_clusters + room).div_ceil(per_block);
            let entries = old_entries.max(end_block);
            let wanted = (end_block - first_block, (entries * 8).div_ceil(size));
            if wanted == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = wanted;
        }
        if table_clusters * size > limits::REFCOUNT_TABLE_BYTES {
            return Err(IoError::Full(format!(
                "a refcount table of {table_clusters} clusters is larger than the format allows"
            )));
        }
        let clusters = blocks + table_clusters;
        let region = cluster..cluster + clusters;
        self.decide(|state| Ok(state.check_free(region.clone())?)).await?;
        self.grow_file(region.end).await?;

        let mut bytes = vec![0u8; usize::try_from(clusters * size).expect("limited")];
        let (block_bytes, table_bytes) =
            bytes.split_at_mut(usize::try_from(blocks * size).expect("limited"));
        let old = old_offset..old_offset + 8 * old_entries;
        let mut before = Vec::new();
        self.copy_table(old_offset, old_entries, Kind::RefcountTable, table_bytes).await?;
        let dirty = self.with(|state| state.cache.dirty(old.clone(), true, usize::MAX).0).await;
        before.extend(dirty.into_iter().map(|(offset, version)| Before::Page { offset, version }));
        for block in 0..blocks {
            set_entry(table_bytes, first_block + block, (cluster + block) * size);
        }
        let block_size = usize::try_from(size).expect("a cluster fits in memory");
        for taken in region.clone() {
            let block = usize::try_from(taken / per_block - first_block).expect("limited");
            let index = usize::try_from(taken % per_block).expect("a block fits in memory");
            let block = &mut block_bytes[block * block_size..(block + 1) * block_size];
            refcount::set(block, order, index, 1).expect("1 fits in every width");
        }
        // From now on it is not as if never written, whatever becomes of this.
        self.with(|state| state.note_written(region.end)).await;
        self.write_all(claim, cluster * size, &bytes).await?;
        self.with(|state| {
            before.push(Before::Written(state.clock.stamp(File::Image)));
            before.push(Before::Written(state.length_stamp));
        })
        .await;
        self.ensure(Rule::CopyBeforeSwitch, Barrier::RefcountTableSwitch, &before).await?;
        let mut header = self.claim(Resource::Header).await?;
        self.write_header(
            &mut header,
            |header| {
                header.refcount_table_offset = (cluster + blocks) * size;
                header.refcount_table_clusters =
                    u32::try_from(table_clusters).expect("checked against the limit");
            },
            |state, switched| {
                mutant!(state.rules, OldTablePagesStay => (); state.forget(old.clone()));
                for block in cluster..cluster + blocks {
                    state.add_table(block, Table::RefcountBlock);
                }
                for cluster in old.start / size..old.end.div_ceil(size) {
                    state.dereference(cluster, Before::Written(switched), false);
                }
            },
        )
        .await?;
        Ok(())
    }
}

fn set_entry(table: &mut [u8], index: u64, entry: u64) {
    let at = usize::try_from(index * 8).expect("a table fits in memory");
    table[at..at + 8].copy_from_slice(&entry.to_be_bytes());
}
