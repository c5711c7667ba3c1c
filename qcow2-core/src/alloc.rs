//! Which host clusters are free, and taking them. First fit: the lowest free cluster that is known goes first, so that freed space is
//! used again before the file grows. Counts are searched once, a page in a step; what is freed later is known.
//!
//! **Invariant.** A cluster is free when its count is 0, nothing describes it as still on its way there (`State::freed`), and no claim
//! holds it. A cluster that no refcount block describes is free.

use std::ops::Range;

use crate::barrier::Barrier;
use crate::cache::Kind;
use crate::claim::Claim;
use crate::claims::Resource;
use crate::error::IoError;
use crate::format::feature::Incompatible;
use crate::format::refcount;
use crate::image::Image;
use crate::mutant::mutant;
use crate::order::Before;
use crate::refcounts::Counts;
use crate::rule::Rule;
use crate::state::{State, Stop};
use storage::Storage;

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

impl State {
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
        if self.rules.are_whole() {
            debug_assert!(clusters.end * self.cluster_size() <= self.length, "past the file");
            let freed = |cluster| self.freed.contains(cluster);
            debug_assert!(!clusters.clone().any(freed), "on its way to being free, not there");
        }
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
    pub(crate) fn note_written(&mut self, end: u64) {
        self.fresh_from = self.fresh_from.max(end);
        self.untouched_from = self.untouched_from.max(end);
    }
}

/// Most runs of free clusters that are looked at in one step.
const AT_ONCE: usize = 64;

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
}

fn is_no_space(error: &IoError) -> bool {
    matches!(error, IoError::Storage { source, .. } if storage::is_no_space(source))
}
