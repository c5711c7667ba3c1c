//! The counts of host clusters: where each is, raising and lowering them in the cache, and what makes a count durable.
//!
//! ```text
//!   refcount table            refcount block (one cluster)           host clusters
//!   | entry b | ... |  ──>    | count | count | ... |       counts   b * entries_per_block ...
//! ```
//!
//! **Invariant.** Counts in memory go up when a cluster is taken, before anything refers to it; they go down only when the dropped
//! reference is durable. A cluster that no refcount block describes has the count 0.

use std::ops::Range;

use smallvec::SmallVec;

use crate::cache::Kind;
use crate::error::IoError;
use crate::format::entry::RefcountTableEntry;
use crate::format::refcount;
use crate::mutant::mutant;
use crate::order::Before;
use crate::rule::Rule;
use crate::state::{State, Stop};

/// What makes the counts of an extent durable: as a rule, one page of counts; its table is durable.
pub(crate) type Counts = SmallVec<[Before; 1]>;

/// Where the count of a cluster is.
pub(crate) struct Place {
    pub(crate) page: u64,
    pub(crate) index: usize,
    /// Counts in the page.
    pub(crate) entries: usize,
    /// The page of the refcount table that points to the block.
    pub(crate) table_page: u64,
}

impl State {
    pub(crate) fn entries_per_block(&self) -> u64 {
        refcount::entries_per_block(self.header.cluster_bits, self.header.refcount_order)
    }

    pub(crate) fn refcount_table_entries(&self) -> u64 {
        u64::from(self.header.refcount_table_clusters) * self.cluster_size() / 8
    }

    /// Where the count of `cluster` is, or `None` if no block describes it.
    pub(crate) fn refcount_place(&mut self, cluster: u64) -> Result<Option<Place>, Stop> {
        let per_block = self.entries_per_block();
        let block = cluster / per_block;
        if block >= self.refcount_table_entries() {
            return Ok(None);
        }
        let at = self.header.refcount_table_offset + 8 * block;
        let entry = RefcountTableEntry(self.entry(at, Kind::RefcountTable)?);
        let Some(host) = entry.decode(self.header.cluster_bits, at)? else { return Ok(None) };
        let per_page = (self.cache.page_size() * 8) >> self.header.refcount_order;
        let within = cluster % per_block;
        Ok(Some(Place {
            page: host + within / per_page * self.cache.page_size(),
            index: usize::try_from(within % per_page).expect("a page fits in memory"),
            entries: usize::try_from(per_page).expect("a page fits in memory"),
            table_page: self.cache.page_of(at),
        }))
    }

    /// The refcount of `cluster`.
    pub(crate) fn refcount(&mut self, cluster: u64) -> Result<u64, Stop> {
        let order = self.header.refcount_order;
        let Some(place) = self.refcount_place(cluster)? else { return Ok(0) };
        let slot = self.find(place.page, Kind::RefcountBlock)?;
        Ok(refcount::get(self.cache.bytes(slot), order, place.index).unwrap_or(0))
    }

    /// Lowers the refcount of `cluster` by one, or leaves it at 0.
    pub(crate) fn lower_refcount(&mut self, cluster: u64) -> Result<(), Stop> {
        let count = self.refcount(cluster)?;
        if count == 0 {
            return Ok(());
        }
        if let Some(place) = self.refcount_place(cluster)? {
            let order = self.header.refcount_order;
            let left = mutant!(self.rules, CountFallsToZero => 0; count - 1);
            self.cache.change(place.page, |page| {
                refcount::set(page, order, place.index, left)
                    .expect("a count that went down still fits");
            });
            if left == 0 {
                mutant!(self.rules, TailOutlivesCluster => (); self.end_tail_in(cluster));
            }
        }
        Ok(())
    }

    /// Raises the refcount of a cluster in use by one; returns what makes that durable, or none if it counts all that it can.
    pub(crate) fn raise_refcount(&mut self, cluster: u64) -> Result<Option<Counts>, Stop> {
        let (order, count) = (self.header.refcount_order, self.refcount(cluster)?);
        let most = refcount::max(order);
        let is_full = mutant!(self.rules, FullCountIgnored => false; count == most);
        let Some(place) = self.refcount_place(cluster)?.filter(|_| !is_full && count > 0) else {
            return Ok(None);
        };
        let version = self.cache.change(place.page, |page| {
            refcount::set(page, order, place.index, (count + 1).min(most)).expect("it fits");
        });
        let table = self.cache.undurable(place.table_page, &self.clock);
        let mut counts: Counts = table.into_iter().collect();
        if mutant!(self.rules, SharedCountNotAwaited => false; true) {
            counts.push(Before::Page { offset: place.page, version });
        }
        Ok(Some(counts))
    }

    /// Sets the refcounts of free clusters to 1; returns what makes that durable.
    pub(crate) fn raise_refcounts(&mut self, clusters: Range<u64>) -> Result<Counts, Stop> {
        let order = self.header.refcount_order;
        let mut places = SmallVec::<[(Place, usize); 1]>::new();
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let Some(place) = self.refcount_place(cluster)? else {
                return Err(IoError::Lost(format!(
                    "no refcount block describes cluster {cluster}"
                ))
                .into());
            };
            self.find(place.page, Kind::RefcountBlock)?;
            let here = clusters.end - cluster;
            let end = place
                .entries
                .min(place.index.saturating_add(usize::try_from(here).unwrap_or(usize::MAX)));
            cluster += (end - place.index) as u64;
            places.push((place, end));
        }
        let mut counts = Counts::new();
        for (place, end) in places {
            let end =
                mutant!(self.rules, LastClusterUncounted => (end - 1).max(place.index + 1); end);
            let version = self.cache.change(place.page, |page| {
                for index in place.index..end {
                    debug_assert_eq!(refcount::get(page, order, index), Some(0), "it was free");
                    refcount::set(page, order, index, 1).expect("1 fits in every width");
                }
            });
            if let Some(table) = self.cache.undurable(place.table_page, &self.clock)
                && !counts.contains(&table)
            {
                counts.push(table);
            }
            if mutant!(self.rules, CountsOfFirstPage => counts.is_empty(); true) {
                counts.push(Before::Page { offset: place.page, version });
            }
        }
        Ok(counts)
    }

    /// Orders a page that refers to a new extent, before the end of so many clusters, after the file length and the counts that the
    /// reference needs.
    pub(crate) fn order_reference(&mut self, page: u64, end: u64, counts: &[Before]) {
        self.order(page, Rule::LengthBeforeReference, Before::Written(self.reaches(end)));
        if self.counted() {
            for &before in counts {
                self.order(page, Rule::RefcountBeforeReference, before);
            }
        }
    }
}
