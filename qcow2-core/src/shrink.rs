//! Making the guest disk smaller. What lies past the new end goes only when nobody can see it any more.
//!
//! ```text
//!   requests there end ──> header: size ──> L2 entries past it ──> L2 tables past it      each durable before the next
//!                              │                  └─ their clusters are freed       ├─ and so are they; the data file is cut
//!                              │                                                    └─ zeroes to the end of the last cluster
//!                              └ a power cut before: all of the old disk; after: none of what was cut off
//! ```
//!
//! **Invariant.** When it has made the disk smaller and returned well, no entry leads to what the image held past the new end, and its last
//! cluster holds zeroes there, whoever makes the disk larger: not all programs clear first what they find.
//!
//! A power cut or an error after the size may leave some of it, and a data file keeps its length where it cannot be cut, or while somebody
//! reads there. That is legal, counted and read by nobody, and a growth by this library clears it first.
//! The zeroes come last, because a cluster that cannot be changed in place needs another one, and what was cut off is free by then. The file
//! keeps its length, and gives the freed space back by discards.

use std::ops::Range;

use crate::barrier::Barrier;
use crate::claims::Resource;
use crate::error::IoError;
use crate::format::entry::{L1Entry, Mapping};
use crate::format::header::Header;
use crate::image::Image;
use crate::map::EntryPlace;
use crate::mutant::mutant;
use crate::order::Before;
use crate::rule::Rule;
use crate::state::{State, Stop};
use storage::Storage;

/// Most guest clusters, or tables that do not exist, that are looked at in one step.
const AT_ONCE: u64 = 256;

impl State {
    /// Drops the entries of the first of these guest clusters, as far as the cache knows them, and takes them out of the range. Returns
    /// the L1 index of their table, if there is one.
    fn drop_some(&mut self, clusters: &mut Range<u64>) -> Result<Option<u64>, Stop> {
        for _ in 0..AT_ONCE {
            if clusters.is_empty() {
                break;
            }
            let table = clusters.start / self.l2_entries();
            let at = match self.entry_place_to_change(clusters.start)? {
                EntryPlace::At(at) => at,
                EntryPlace::NoTable(index) => {
                    clusters.start = ((index + 1) * self.l2_entries()).min(clusters.end);
                    continue;
                }
            };
            let (slot, count) = self.entries_at(at, AT_ONCE.min(clusters.end - clusters.start))?;
            self.check_table_owned(clusters.start)?;
            let entry_bytes = self.entry_bytes();
            for index in 0..count as u64 {
                let at = at + entry_bytes * index;
                match self.mapping_in(clusters.start, slot, at)? {
                    Mapping::Unallocated => {}
                    old => {
                        self.check_given_up(old)?;
                        self.clear(clusters.start, at, old, Mapping::Unallocated, true);
                    }
                }
                clusters.start += 1;
            }
            return Ok(Some(table));
        }
        Ok(None)
    }

    /// Whether the entries of an L2 table in the page of one of them are all zero; and where the next page begins.
    fn is_empty_page(&mut self, at: u64) -> Result<(bool, u64), Stop> {
        let (slot, count) = self.entries_at(at, self.l2_entries())?;
        let bytes = self.entry_bytes() * count as u64;
        let words = usize::try_from(bytes / 8).expect("a page fits in memory");
        let is_empty = self.cache.entries(slot, at, words).all(|word| word == 0);
        Ok((is_empty, at + bytes))
    }

    /// Gives up the L2 table of this L1 index, which is empty, durably.
    fn drop_empty_table(&mut self, index: u64) -> Result<(), Stop> {
        let (at, table) = self.l1_entry(index)?;
        let Some(table) = table else { return Ok(()) };
        let page = self.cache.page_of(at);
        let version = self.cache.set_entry(at, L1Entry(0).0);
        let size = self.cluster_size();
        self.forget(table.host..table.host + size);
        self.drop_table(table.host / size, Before::Page { offset: page, version });
        Ok(())
    }
}

impl<S: Storage> Image<S> {
    /// Makes the guest disk smaller, to `size` bytes, a multiple of 512; what it held past that is gone from the image, whoever makes the
    /// disk larger. Waits for requests there, and later ones are refused; a read that is under way there may find zeroes. Durable when
    /// it returns.
    ///
    /// # Errors
    /// [`IoError::Resize`] if `size` is larger than now; else as [`Image::write`]. After an error the disk has the old size and all
    /// that it held, or the new one, and then some of what was cut off may still be in the image, for a growth by this library to clear.
    pub async fn shrink(&self, size: u64) -> Result<(), IoError> {
        let (_one, header) = self.begin_resize(size).await?;
        if size > header.size {
            let now = header.size;
            return Err(IoError::Resize(format!(
                "{size} bytes is more than the {now} of now, and shrinking makes no disk larger"
            )));
        }
        if size == header.size {
            return Ok(());
        }
        let cluster_size = header.cluster_size();
        let past =
            mutant!(self.options.rules, ShrinkBesideRequests => u64::MAX - 1; size / cluster_size);
        let mut guest = self.claim(Resource::Guest(past..u64::MAX)).await?;
        let mut claim = self.claim(Resource::Header).await?;
        let to = mutant!(self.options.rules, ShrinkRoundsUp => size.next_multiple_of(cluster_size); size);
        let stamp = self.write_header(&mut claim, |header| header.size = to, |_, _| {}).await?;
        drop(claim);
        // Whoever reads past the new end from now on is refused.
        let reads = self.now(|state| state.next_read());
        let before = [Before::Written(stamp)];
        self.ensure(Rule::SizeBeforeCleared, Barrier::ShrinkSize, &before).await?;
        let first = mutant!(self.options.rules, ShrinkCutsLastCluster => size / cluster_size; size.div_ceil(cluster_size));
        let mut rest = first..header.size.div_ceil(cluster_size);
        let whole = rest.start.div_ceil(header.l2_entries());
        mutant!(self.options.rules, ShrinkLeavesFirst => rest.start = (rest.start + 1).min(rest.end); ());
        let mut tables = Vec::new();
        while !rest.is_empty() {
            let table = self.decide(|state| state.drop_some(&mut rest)).await?;
            let table = table.filter(|table| *table >= whole && tables.last() != Some(table));
            tables.extend(table);
        }
        self.flush().await?;
        self.drop_empty_tables(tables).await?;
        self.cut_data_file(&mut guest, size, reads).await?;
        drop(guest);
        mutant!(self.options.rules, CutTailLeft => (); self.zero_last_cluster(&header, size).await?);
        self.flush().await
    }

    /// Writes zeroes from the end of a disk that has become smaller to the end of its last cluster. A layer below is hidden by whoever makes
    /// the disk larger, there as behind that cluster.
    async fn zero_last_cluster(&self, header: &Header, size: u64) -> Result<(), IoError> {
        let end = size.next_multiple_of(header.cluster_size());
        let end = match self.files.data {
            None => end,
            // No further than the data file, which may still be longer than the disk.
            Some(_) => end.min(self.data_end(self.now(|state| state.data_length))),
        };
        let holds = |state: &mut State| {
            Ok(!matches!(state.mapping(size / header.cluster_size())?, Mapping::Unallocated))
        };
        if size < end && self.decide(holds).await? {
            self.write_zeroes_past_end(size..end).await?;
        }
        Ok(())
    }

    /// Gives up the L2 tables of these L1 indices, which go up, that have no entries. What they had is durably gone.
    async fn drop_empty_tables(&self, tables: Vec<u64>) -> Result<(), IoError> {
        let (Some(first), Some(last)) = (tables.first(), tables.last()) else { return Ok(()) };
        let _claim = self.claim(Resource::Tables(*first..*last + 1)).await?;
        for index in tables {
            let table = self.decide(|state| Ok(state.l1_entry(index)?.1)).await?;
            let inside = |host: u64| self.now(|state| host < state.length);
            let Some(table) = table.filter(|table| inside(table.host)) else { continue };
            let (mut at, mut is_empty) = (table.host, true);
            while is_empty && at < table.host + self.cluster_size {
                (is_empty, at) = self.decide(|state| state.is_empty_page(at)).await?;
            }
            if mutant!(self.options.rules, FullTableDropped => true; is_empty) {
                self.decide(|state| state.drop_empty_table(index)).await?;
            }
        }
        Ok(())
    }
}
