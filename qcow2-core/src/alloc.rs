//! Which host clusters are free, and taking and releasing them. First fit: the lowest free cluster that is known goes first, so
//! that freed space is used again before the file grows. Counts are searched once, a page in a step; what is freed later is known.
//!
//! ```text
//!   refcount table            refcount block (one cluster)           host clusters
//!   | entry b | ... |  ──>    | count | count | ... |       counts   b * entries_per_block ...
//! ```
//!
//! **Invariants.** A cluster is free when its count is 0, nothing describes it as still on its way there (`State::freed`), and
//! no claim holds it. Counts in memory go up when a cluster is taken, before anything refers to it; they go down only
//! when the dropped reference is durable. A cluster that no refcount block describes is free.

use std::collections::VecDeque;
use std::ops::Range;

use smallvec::SmallVec;

use crate::barrier::Barrier;
use crate::cache::Kind;
use crate::claims::Resource;
use crate::error::IoError;
use crate::format::entry::RefcountTableEntry;
use crate::format::feature::Incompatible;
use crate::format::{limits, refcount};
use crate::freed::Key;
use crate::image::{Claim, Image};
use crate::metadata::Table;
use crate::mutant::mutant;
use crate::order::{Before, Stamp};
use crate::rule::Rule;
use crate::state::{State, Stop};
use crate::storage::{self, Durability, IoBuf, Storage};

/// What makes the counts of an extent durable: as a rule, one page of counts; its table is durable.
pub(crate) type Counts = SmallVec<[Before; 1]>;

/// Clusters taken for one purpose, in one run.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    pub(crate) clusters: Range<u64>,
    /// Never written: reads as zeroes.
    pub(crate) fresh: bool,
    /// What makes the counts durable.
    pub(crate) counts: Counts,
}

/// What an attempt to take clusters led to.
#[derive(Debug)]
pub(crate) enum Allocation {
    Taken {
        extent: Extent,
        /// It is time to let the file grow.
        near_the_end: bool,
    },
    /// The image has to be marked dirty first.
    Clean,
    /// Freed clusters can be had first.
    Freed,
    /// The search has passed a page of counts without a free cluster.
    Searching,
    /// No refcount block describes this cluster yet. It is the first one of its block, because the search comes from
    /// below and passes no cluster without a block.
    NoBlock(u64),
    /// The file has to reach the end of this many clusters first.
    BeyondLength(u64),
}

/// What a search of one page of counts led to.
enum Search {
    Found(Range<u64>),
    Nothing,
    NoBlock(u64),
}

/// Where the count of a cluster is.
struct Place {
    page: u64,
    index: usize,
    /// Counts in the page.
    entries: usize,
    /// The page of the refcount table that points to the block.
    table_page: u64,
}

impl State {
    fn entries_per_block(&self) -> u64 {
        refcount::entries_per_block(self.header.cluster_bits, self.header.refcount_order)
    }

    fn refcount_table_entries(&self) -> u64 {
        u64::from(self.header.refcount_table_clusters) * self.cluster_size() / 8
    }

    /// Where the count of `cluster` is, or `None` if no block describes it.
    fn refcount_place(&mut self, cluster: u64) -> Result<Option<Place>, Stop> {
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
        }
        Ok(())
    }

    /// Takes up to `wanted` free clusters in one run: of those that are known to be free, or else of those that a search finds that
    /// goes on where the last one ended. If they have to be a `whole` run, of those only, and what is shorter is passed and known from
    /// then on; but a part will do that reaches behind everything that is in use, because the rest comes next.
    pub(crate) fn allocate(
        &mut self,
        wanted: u64,
        whole: bool,
        reaped: bool,
    ) -> Result<Allocation, Stop> {
        if self.lazy && !self.dirty_durable {
            return Ok(Allocation::Clean);
        }
        if !reaped && self.has_reapable() {
            return Ok(Allocation::Freed);
        }
        let known = self.free.first().filter(|_| !whole);
        if known.is_none() && !whole {
            self.free.go_back();
        }
        let found = match known.clone() {
            Some(run) => run.start..run.end.min(run.start + wanted),
            None => match self.search(wanted)? {
                Search::Found(found)
                    if whole
                        && found.end - found.start < wanted
                        && found.end < self.untouched_from =>
                {
                    self.free.pass(found);
                    return Ok(Allocation::Searching);
                }
                Search::Found(found) => found,
                Search::Nothing => return Ok(Allocation::Searching),
                Search::NoBlock(cluster) => return Ok(Allocation::NoBlock(cluster)),
            },
        };
        let in_file = self.length / self.cluster_size();
        if found.start >= in_file {
            return Ok(Allocation::BeyondLength(found.end));
        }
        let end = mutant!(self.rules, ExtentPastLength => found.end; found.end.min(in_file));
        let extent = self.take(found.start..end)?;
        if known.is_some() {
            self.free.take(found.start, end - found.start);
        } else {
            self.free.search_reached(end);
        }
        let near_the_end = self.is_nearly_full(end);
        Ok(Allocation::Taken { extent, near_the_end })
    }

    /// Takes up to `wanted` clusters of the run that is known to be free and begins at `start`, as many as are counted in one page. None
    /// if there is no such run.
    fn allocate_at(&mut self, start: u64, wanted: u64) -> Result<Option<Extent>, Stop> {
        let Some(run) = self.free.run_at(start) else { return Ok(None) };
        let Some(place) = self.refcount_place(start)? else { return Ok(None) };
        let counted = (place.entries - place.index) as u64;
        let end = run.end.min(start + wanted).min(start + counted);
        let extent = self.take(start..end)?;
        self.free.take(start, end - start);
        Ok(Some(extent))
    }

    /// Takes clusters that are free.
    fn take(&mut self, clusters: Range<u64>) -> Result<Extent, Stop> {
        self.check_free(clusters.clone())?;
        let counts = self.raise_refcounts(clusters.clone())?;
        let first = mutant!(self.rules, FreshOffByOne => clusters.start + 1; clusters.start);
        let fresh = first >= self.fresh_from;
        mutant!(self.rules, TakenNotNoted => (); self.note_written(clusters.end));
        Ok(Extent { clusters, fresh, counts })
    }

    /// Where a run of at least `wanted` clusters of the file begins that is known to be free, among some that begin at `from` or later;
    /// else where to go on looking, if there are more.
    fn long_run(&mut self, wanted: u64, from: u64) -> (Option<u64>, Option<u64>) {
        let in_file = self.length / self.cluster_size();
        let mut runs = self.free.runs_from(from);
        for run in runs.by_ref().take(AT_ONCE) {
            self.work.looked_at += 1;
            if run.end.min(in_file).saturating_sub(run.start) >= wanted {
                return (Some(run.start), None);
            }
        }
        (None, runs.next().map(|run| run.start))
    }

    /// Looks for up to `wanted` free clusters in one run, in one page of counts.
    fn search(&mut self, wanted: u64) -> Result<Search, Stop> {
        let order = self.header.refcount_order;
        let from = self.free.searched();
        let Some(place) = self.refcount_place(from)? else { return Ok(Search::NoBlock(from)) };
        let slot = self.find(place.page, Kind::RefcountBlock)?;
        let page = self.cache.bytes(slot);
        let mut found = None;
        let mut cluster = from;
        let entries =
            mutant!(self.rules, SearchStopsBeforeLast => place.entries - 1; place.entries);
        for index in place.index..entries {
            self.work.looked_at += 1;
            let free =
                refcount::get(page, order, index) == Some(0) && !self.freed.contains(cluster);
            match found {
                None if free => found = Some(cluster),
                Some(_) if !free || cluster == self.fresh_from => break,
                Some(first) if cluster - first == wanted => break,
                _ => {}
            }
            cluster += 1;
        }
        let Some(first) = found else {
            self.free.search_reached(cluster);
            return Ok(Search::Nothing);
        };
        self.free.search_reached(first);
        Ok(Search::Found(first..cluster))
    }

    /// Remembers that clusters below `end` may have been written.
    fn note_written(&mut self, end: u64) {
        self.fresh_from = self.fresh_from.max(end);
        self.untouched_from = self.untouched_from.max(end);
    }

    /// Sets the refcounts of free clusters to 1; returns what makes that durable.
    fn raise_refcounts(&mut self, clusters: Range<u64>) -> Result<Counts, Stop> {
        let order = self.header.refcount_order;
        let mut places = SmallVec::<[(Place, usize); 1]>::new();
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let Some(place) = self.refcount_place(cluster)? else {
                return Err(IoError::Full(format!(
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

    /// What makes durable that the file reaches the end of so many clusters, which it does.
    fn reaches(&self, clusters: u64) -> Stamp {
        let durable = clusters * self.cluster_size() <= self.durable_length;
        if durable { Stamp::DURABLE } else { self.length_stamp }
    }

    /// Records a new length.
    fn set_length(&mut self, length: u64) {
        let durable = self.clock.is_durable(self.length_stamp);
        if mutant!(self.rules, EarlierLengthTakenDurable => true; durable) {
            self.durable_length = self.length;
        }
        self.length = length;
        self.length_stamp = self.clock.stamp();
    }

    /// By how much the file grows.
    fn growth(&self) -> u64 {
        self.growth.unwrap_or_else(|| (self.length / 8).clamp(4 << 20, 1 << 30))
    }

    /// Whether it is time to let the file grow, though there is room: the next flush covers it then.
    fn is_nearly_full(&self, end: u64) -> bool {
        let spare = self.length.saturating_sub(end * self.cluster_size());
        spare < self.growth() / 2 && !self.stays_short
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

    /// The next freed clusters, from `from` on, that nothing stands in the way of: a run to discard, or some to free.
    fn next_reapable(&mut self, from: Key, pass_discard: bool) -> Result<Option<Reap>, Stop> {
        let ready = self.freed.ready_from(from).take(AT_ONCE);
        let ready: Vec<_> =
            ready.map(|(key, freed)| (key, freed.discard && pass_discard)).collect();
        let (mut keys, mut run): (VecDeque<Key>, Option<Range<u64>>) = (VecDeque::new(), None);
        self.work.looked_at += ready.len() as u64;
        for (key, discard) in ready {
            let (cluster, _) = key;
            // Only where it matters: counts far apart are in many pages, more than a small cache keeps for one step.
            let alone = !discard
                || mutant!(self.rules, SharedClusterDiscarded => true; self.refcount(cluster)? == 1);
            run = match (discard && alone, run) {
                (true, None) if keys.is_empty() => Some(cluster..cluster + 1),
                (true, Some(run)) if run.end == cluster => Some(run.start..cluster + 1),
                (false, None) => None,
                (_, run) => {
                    let size = self.cluster_size();
                    let discard = run.map(|run| run.start * size..run.end * size);
                    return Ok(Some(Reap { keys, discard }));
                }
            };
            keys.push_back(key);
        }
        let size = self.cluster_size();
        let discard = run.map(|run| run.start * size..run.end * size);
        Ok((!keys.is_empty()).then_some(Reap { keys, discard }))
    }

    /// Lowers the refcounts of freed clusters for good. What has been done is taken out of `keys`.
    fn reap(&mut self, keys: &mut VecDeque<Key>) -> Result<(), Stop> {
        while let Some(&key) = keys.front() {
            let (cluster, _) = key;
            mutant!(self.rules, DequeuedBeforeLoaded => 0; self.refcount(cluster)?);
            if let Some(freed) = self.freed.take_ready(key) {
                if mutant!(self.rules, CountNeverLowered => false; !freed.lowered) {
                    self.lower_refcount(cluster)?;
                }
                if self.refcount(cluster)? == 0 && !self.freed.contains(cluster) {
                    mutant!(self.rules, FreedNotReused => (); self.free.insert(cluster));
                }
            }
            keys.pop_front();
        }
        Ok(())
    }
}

/// Most freed clusters, and most runs of free ones, that are looked at in one step.
const AT_ONCE: usize = 64;

/// Freed clusters and what becomes of them.
struct Reap {
    keys: VecDeque<Key>,
    /// Bytes of the file to give back first.
    discard: Option<Range<u64>>,
}

impl<S: Storage> Image<S> {
    /// Takes exactly `wanted` clusters in one run for the holder of `claim`; returns them and what makes their refcounts
    /// durable. Shorter runs are left to others. Where the storage has no room for one it is looked for among what is known to be free,
    /// which is all there is then.
    pub(crate) async fn allocate_run(
        &self,
        claim: &mut Claim<'_, S>,
        wanted: u64,
    ) -> Result<(Range<u64>, Vec<Before>), IoError> {
        let (mut run, mut counts) = (0..0, Vec::new());
        let whole = Some(wanted).filter(|wanted| *wanted > 1);
        self.with(|state| state.free.forget_last()).await;
        let mut no_room = None;
        while run.end - run.start < wanted {
            let rest = wanted - (run.end - run.start);
            let next = match no_room {
                None => match self.allocate_some(claim, rest, whole).await {
                    Err(error) if whole.is_some() && is_no_space(&error) => {
                        no_room = Some(error);
                        None
                    }
                    next => Some(next?),
                },
                Some(_) => {
                    self.decide(|state| {
                        let extent = state.allocate_at(run.end, rest)?;
                        if let Some(extent) = &extent {
                            claim.clusters.push(extent.clusters.clone());
                        }
                        Ok(extent)
                    })
                    .await?
                }
            };
            match next {
                Some(next) => {
                    if next.clusters.start != run.end {
                        run.start = next.clusters.start;
                        counts.clear();
                    }
                    run.end = next.clusters.end;
                    counts.extend(next.counts);
                }
                // What was taken until now is of no use. It stays with the claim until that goes.
                None => match self.long_run(wanted).await {
                    Some(start) => (run, counts) = (start..start, Vec::new()),
                    None => return Err(no_room.expect("only then a run is looked for")),
                },
            }
        }
        Ok((run, counts))
    }

    /// Where a run of at least `wanted` clusters of the file begins that is known to be free.
    async fn long_run(&self, wanted: u64) -> Option<u64> {
        let mut from = Some(0);
        while let Some(cluster) = from {
            let (found, next) = self.with(|state| state.long_run(wanted, cluster)).await;
            if found.is_some() {
                return found;
            }
            from = next;
        }
        None
    }

    /// Takes up to `wanted` clusters in one run for the holder of `claim`, who has to take them out of `claim.clusters`
    /// when something refers to them.
    pub(crate) async fn allocate(
        &self,
        claim: &mut Claim<'_, S>,
        wanted: u64,
    ) -> Result<Extent, IoError> {
        self.allocate_some(claim, wanted, None).await
    }

    /// The same, as part of a `whole` run of so many clusters, if they have to be one.
    async fn allocate_some(
        &self,
        claim: &mut Claim<'_, S>,
        wanted: u64,
        whole: Option<u64>,
    ) -> Result<Extent, IoError> {
        let (mut reaped, mut reclaimed) = (false, false);
        loop {
            let taken = self
                .decide(|state| {
                    let taken = state.allocate(wanted, whole.is_some(), reaped)?;
                    // In the same step: what was taken is given back with the claim.
                    if let Allocation::Taken { extent, .. } = &taken {
                        claim.clusters.push(extent.clusters.clone());
                    }
                    Ok(taken)
                })
                .await?;
            let made = match taken {
                Allocation::Taken { extent, near_the_end } => {
                    if near_the_end {
                        Box::pin(self.grow_ahead(extent.clusters.end)).await?;
                    }
                    return Ok(extent);
                }
                Allocation::Clean => Box::pin(self.mark_dirty()).await,
                Allocation::Freed => {
                    reaped = true;
                    Box::pin(self.reap(wanted.max(AT_ONCE as u64))).await
                }
                Allocation::Searching => continue,
                Allocation::NoBlock(cluster) => {
                    Box::pin(self.add_refcount_block(cluster, whole.unwrap_or(1))).await
                }
                Allocation::BeyondLength(end) => Box::pin(self.grow_file(end)).await,
            };
            match made {
                Err(error) if is_no_space(&error) && !reclaimed => {
                    reclaimed = true;
                    Box::pin(self.flush()).await?;
                    Box::pin(self.reap(u64::MAX)).await?;
                }
                result => result?,
            }
        }
    }

    /// In lazy mode, makes the dirty bit durable before the first allocation.
    async fn mark_dirty(&self) -> Result<(), IoError> {
        let mut claim = self.claim(Resource::Header).await?;
        if self.with(|state| state.dirty_durable).await {
            return Ok(());
        }
        let stamp = self
            .write_header(
                &mut claim,
                |header| header.incompatible |= Incompatible::DIRTY,
                |state, _| {
                    mutant!(state.rules, DirtyBelievedTooEarly => state.dirty_durable = true; ());
                },
            )
            .await?;
        self.ensure(Rule::DirtyBeforeUncounted, Barrier::DirtyBit, &[Before::Written(stamp)])
            .await?;
        self.with(|state| state.dirty_durable = true).await;
        Ok(())
    }

    /// Makes the file reach the end of `clusters` clusters, and some way beyond.
    async fn grow_file(&self, clusters: u64) -> Result<(), IoError> {
        self.restore_header().await?;
        let mut claim = self.claim(Resource::Length).await?;
        let (length, needed, size, growth) = self
            .with(|state| {
                let size = state.cluster_size();
                (state.length, clusters * size, size, state.growth())
            })
            .await;
        if needed <= length {
            return Ok(());
        }
        let generous = length.checked_add(growth);
        let generous = generous.and_then(|end| end.checked_next_multiple_of(size));
        let mut target = needed.max(generous.unwrap_or(needed));
        let mut result = claim.set_len(target).await;
        if target > needed && result.as_ref().is_err_and(storage::is_no_space) {
            claim.settle().await?;
            target = mutant!(self.options.rules, GenerousLengthRemembered => target; needed);
            result = claim.set_len(needed).await;
        }
        result.map_err(|source| IoError::Storage {
            action: "growing the file",
            offset: length,
            source,
        })?;
        self.with(|state| {
            state.set_length(target);
            state.stays_short = target == needed;
        })
        .await;
        Ok(())
    }

    /// Makes the file longer while there is room, if it can be.
    async fn grow_ahead(&self, clusters: u64) -> Result<(), IoError> {
        let mut claim = self.claim(Resource::Length).await?;
        let target = self
            .with(|state| {
                let target = state.length.checked_add(state.growth());
                let target =
                    target.and_then(|end| end.checked_next_multiple_of(state.cluster_size()));
                // One that fails is not tried again, whether or not it is heard of.
                let due = state.is_nearly_full(clusters);
                state.stays_short |= due;
                target.filter(|_| due)
            })
            .await;
        let Some(target) = target else { return Ok(()) };
        match claim.set_len(target).await {
            Ok(()) => {
                self.with(|state| {
                    state.set_length(target);
                    state.stays_short = false;
                })
                .await;
                Ok(())
            }
            Err(_) => claim.settle().await,
        }
    }

    /// Adds the refcount block that describes `cluster`. It takes the first cluster that it describes, so that it describes
    /// itself. Where as many clusters as there has to be `room` for do not fit behind it, several blocks come before them.
    async fn add_refcount_block(&self, cluster: u64, room: u64) -> Result<(), IoError> {
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
            let zeroes = if fresh { state.reaches(taken.end) } else { state.clock.stamp() };
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
            before.push(Before::Written(state.clock.stamp()));
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

    /// Turns freed clusters into free ones where nothing stands in the way any more, until none is left or `most` are.
    ///
    /// One that fails, or is dropped at its discard, leaves the rest to the next request.
    pub(crate) async fn reap(&self, most: u64) -> Result<(), IoError> {
        const START: Key = (0, 0);
        self.restore_header().await?;
        let mut claim = self.claim(Resource::Reap).await?;
        let pass_discard = self.options.pass_discard && self.limits.can_discard;
        let mut from = START;
        let mut reaped = 0;
        while reaped < most {
            let next = self
                .decide(|state| {
                    state.advance_freed(AT_ONCE);
                    Ok(match state.next_reapable(from, pass_discard)? {
                        None => state.next_reapable(START, pass_discard)?,
                        next => next,
                    })
                })
                .await?;
            let Some(Reap { mut keys, discard }) = next else {
                if self.now(|state| state.has_reapable()) {
                    continue;
                }
                return Ok(());
            };
            reaped += keys.len() as u64;
            from = *keys.back().expect("there is one at least");
            if let Some(range) = discard {
                let range = mutant!(self.options.rules, DiscardOneTooMany => {
                    range.start..range.end + self.cluster_size
                }; range);
                if !self.now(|state| state.rules.hold(Rule::DiscardBeforeReuse)) {
                    self.decide(|state| state.reap(&mut keys)).await?;
                }
                // A failed discard gives no space back; the cluster is free all the same, once it cannot land any more.
                let _ = claim.discard(range).await;
                claim.settle().await?;
            }
            self.decide(|state| state.reap(&mut keys)).await?;
        }
        Ok(())
    }
}

fn set_entry(table: &mut [u8], index: u64, entry: u64) {
    let at = usize::try_from(index * 8).expect("a table fits in memory");
    table[at..at + 8].copy_from_slice(&entry.to_be_bytes());
}

fn is_no_space(error: &IoError) -> bool {
    matches!(error, IoError::Storage { source, .. } if storage::is_no_space(source))
}
