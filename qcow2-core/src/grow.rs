//! Growing the guest disk. Its new space reads as zeroes: what lies past the old end goes first, durably.
//!
//! ```text
//!   header  size | l1_size | l1_table_offset     all three inside the first 512 bytes: one write switches them
//!                               │
//!      old L1 <─ before ────────┴──── after ─> new L1: copy of the old, then zeroes
//! ```

use std::collections::BTreeSet;
use std::ops::Range;

use crate::barrier::Barrier;
use crate::cache::Kind;
use crate::claim::Claim;
use crate::claims::Resource;
use crate::error::IoError;
use crate::files::File;
use crate::format::header::Header;
use crate::image::Image;
use crate::map::EntryPlace;
use crate::mutant::mutant;
use crate::order::{Before, Stamp};
use crate::rule::Rule;
use crate::state::{State, Stop};
use crate::zero::{Becomes, Zeroing};
use storage::{Durability, IoBuf, Storage, UNIT};

impl State {
    /// The page that holds the L2 entry of a guest cluster, if there is one.
    fn page_of_entry(&mut self, guest_cluster: u64) -> Result<Option<u64>, Stop> {
        Ok(match self.entry_place(guest_cluster)? {
            EntryPlace::At(at) => Some(self.cache.page_of(at)),
            EntryPlace::NoTable(_) => None,
        })
    }

    /// The pages of the L1 table that lead to these guest clusters.
    fn l1_pages(&self, clusters: Range<u64>) -> impl Iterator<Item = u64> + use<> {
        let per_table = self.l2_entries();
        let at = |index: u64| self.header.l1_table_offset + 8 * index;
        let indexes = clusters.start / per_table..clusters.end.div_ceil(per_table);
        let pages = match indexes.is_empty() {
            true => 0..0,
            false => self.cache.page_of(at(indexes.start))..at(indexes.end),
        };
        let page_size = usize::try_from(self.cache.page_size()).expect("a page fits in memory");
        pages.step_by(page_size)
    }
}

impl<S: Storage> Image<S> {
    /// Grows the guest disk to `size` bytes, a multiple of 512; the new space reads as zeroes. Durable when it returns.
    ///
    /// # Errors
    /// [`IoError::Resize`] if `size` is smaller than now or more than the format allows; else as [`Image::write`]. After an error
    /// the disk has the old size, or the new one, and all of it can be used.
    pub async fn grow(&self, size: u64) -> Result<(), IoError> {
        let (_one, mut header) = self.begin_resize(size).await?;
        if size < header.size {
            let now = header.size;
            return Err(IoError::Resize(format!(
                "{size} bytes is less than the {now} of now, and growing makes no disk smaller"
            )));
        }
        let entries =
            header.l1_entries_for(size).map_err(|error| IoError::Resize(error.to_string()))?;
        if size == header.size {
            return Ok(());
        }
        let shows = self.below.as_ref().is_some_and(|below| below.size > header.size);
        let missing = mutant!(self.options.rules, L1OneEntryShort => entries - 1; entries);
        if shows && missing > header.l1_size {
            // What hides the layer below in the new space has to be somewhere before there is new space.
            self.enlarge_l1(&header, entries, header.size).await?;
            header = self.with(|state| state.header.clone()).await;
        }
        self.grow_data_file(header.size, size).await?;
        self.clear_past_end(&header, size).await?;
        if missing <= header.l1_size {
            let _tables = self.claim(Resource::Tables(0..u64::MAX)).await?;
            let mut header = self.claim(Resource::Header).await?;
            self.write_header(&mut header, |header| header.size = size, |_, _| {}).await?;
        } else {
            self.enlarge_l1(&header, entries, size).await?;
        }
        self.flush().await
    }

    /// Begins to change the size of the guest disk, alone, with the header as it is on the storage.
    pub(crate) async fn begin_resize(&self, size: u64) -> Result<(Claim<'_, S>, Header), IoError> {
        self.begin_change().await?;
        self.now(|state| state.accepts_requests())?;
        if !size.is_multiple_of(UNIT as u64) {
            return Err(IoError::Resize(format!("{size} bytes is not a multiple of 512")));
        }
        self.restore_header().await?;
        let claim = self.claim(Resource::Size).await?;
        let header = self.with(|state| state.header.clone()).await;
        Ok((claim, header))
    }

    /// Switches to an L1 table of so many entries and to a disk of `size` bytes, in one write of the header.
    async fn enlarge_l1(&self, header: &Header, entries: u32, size: u64) -> Result<(), IoError> {
        let mut claim = self.claim(Resource::Tables(0..u64::MAX)).await?;
        let cluster_size = header.cluster_size();
        let clusters = (u64::from(entries) * 8).div_ceil(cluster_size);
        let (taken, mut counts) = self.allocate_run(&mut claim, clusters).await?;
        let offset = taken.start * cluster_size;
        let len = usize::try_from(clusters * cluster_size).expect("limited by the format");
        let mut table = vec![0; len];
        let (old_offset, old_entries) = (header.l1_table_offset, u64::from(header.l1_size));
        let copied = mutant!(self.options.rules, L1CopyOneShort => old_entries - 1; old_entries);
        self.copy_table(old_offset, copied, Kind::L1, &mut table).await?;
        self.write_all(&mut claim, offset, &table).await?;
        // The copy holds the newest entries of the old table, so what those wait for comes first too.
        let old = old_offset..old_offset + 8 * old_entries;
        let mut before = Vec::new();
        self.with(|state| {
            if !state.counted() {
                counts.clear();
            }
            let (dirty, _) = state.cache.dirty(old.clone(), false, usize::MAX);
            let dirty = mutant!(state.rules, OldL1NotAwaited => Vec::new(); dirty);
            before.extend(
                dirty.into_iter().map(|(offset, version)| Before::Page { offset, version }),
            );
            before.push(Before::Written(state.clock.stamp(File::Image)));
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
                claim.clusters.remove(&taken);
                state.forget(old.clone());
                let end = old.end.div_ceil(cluster_size);
                let end = mutant!(state.rules, OldL1TailKept => old.end / cluster_size; end);
                for cluster in old.start / cluster_size..end {
                    state.dereference(cluster, Before::Written(switched), false);
                }
            },
        )
        .await?;
        Ok(())
    }

    /// Writes zeroes over what a part of a guest cluster past the end of the disk shows; returns what makes that durable, if there was
    /// something to do.
    pub(crate) async fn write_zeroes_past_end(
        &self,
        bytes: Range<u64>,
    ) -> Result<Option<Stamp>, IoError> {
        if bytes.is_empty() || !self.decide(|state| state.has_data_in(bytes.clone())).await? {
            return Ok(None);
        }
        let len = bytes.end - bytes.start;
        let mut map = self.map_range(bytes.start, len).await?;
        let len = usize::try_from(len).expect("a cluster fits in memory");
        let buf = IoBuf::zeroed(len, self.limits.alignment);
        map.write_data(bytes.start, buf, Durability::Cached).await.1?;
        map.commit().await?;
        Ok(Some(self.with(|state| state.clock.newest(state.guest_file)).await))
    }

    /// Makes everything between the end of the guest disk and `size` read as zeroes, durably: the rest of its last cluster, and
    /// entries that somebody left there, such as a program that did not finish making it smaller. Nobody else changes those.
    async fn clear_past_end(&self, header: &Header, size: u64) -> Result<(), IoError> {
        let cluster_size = header.cluster_size();
        let per_table = header.l2_entries();
        let end = size.div_ceil(cluster_size);
        let whole = header.size.div_ceil(cluster_size);
        let mut pages = BTreeSet::new();
        // Its length covers the new space, and what it had there is gone.
        let mut data = self.now(|state| state.clock.newest(File::Data));
        let rest = match self.files.data {
            None => header.size..whole * cluster_size,
            // No further than the data file.
            Some(_) => header.size..(whole * cluster_size).min(self.data_end(size)),
        };
        let rest = mutant!(self.options.rules, TailNotCleared => 0..0; rest);
        data = self.write_zeroes_past_end(rest.clone()).await?.unwrap_or(data);
        if !rest.is_empty() {
            // Though it may read as zeroes by now, its entry on the storage may still lead to something.
            pages.extend(self.decide(|state| state.page_of_entry(whole - 1)).await?);
        }
        let mut cluster = mutant!(self.options.rules, FirstLeftoverStays => whole + 1; whole);
        let shown = self.now(|state| state.shown());
        while cluster < end && cluster / per_table < u64::from(header.l1_size) {
            let next = (cluster / per_table + 1) * per_table;
            let table = self.decide(|state| Ok(state.l1_entry(cluster / per_table)?.1)).await?;
            let shows = mutant!(self.options.rules, GrowthShowsLayer => false; cluster < shown);
            if table.is_some() || shows {
                let mut rest = cluster..next.min(end);
                if !header.has_zero_entries() {
                    for cluster in rest.start..shown.min(rest.end) {
                        let whole = cluster * cluster_size..(cluster + 1) * cluster_size;
                        data = self.write_zeroes_past_end(whole).await?.unwrap_or(data);
                        pages.extend(self.decide(|state| state.page_of_entry(cluster)).await?);
                    }
                }
                while !rest.is_empty() {
                    let first = rest.start;
                    // Not before: somebody else may be about to make the table.
                    let early = mutant!(self.options.rules, HidingPageAskedEarly => true; false);
                    if early {
                        pages.extend(self.decide(|state| state.page_of_entry(first)).await?);
                    }
                    self.clear_step(&mut rest, Becomes::Zeroes(Zeroing::Free)).await?;
                    if !early {
                        pages.extend(self.decide(|state| state.page_of_entry(first)).await?);
                    }
                }
            }
            cluster = next;
        }
        if self.below.is_some() {
            // A table that was made on the way hides nothing while nothing leads to it.
            let (first, last) = (header.size / cluster_size, end.min(shown.max(whole)));
            let l1_pages = self.with(|state| state.l1_pages(first..last)).await;
            mutant!(self.options.rules, HidingTableNotAwaited => drop(l1_pages); pages.extend(l1_pages));
        }
        let mut before = vec![Before::Written(data)];
        self.with(|state| {
            let undurable = |page: &u64| state.cache.undurable(*page, &state.clock);
            before.extend(pages.iter().filter_map(undurable));
        })
        .await;
        self.ensure(Rule::NothingBeforeSize, Barrier::GrowthCleared, &before).await
    }
}
