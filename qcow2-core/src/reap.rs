//! Freed clusters that nothing stands in the way of any more become free: discarded if that is passed on, and counted down.
//!
//! **Invariant.** A cluster leaves the queue when its count is lowered, not before: a request dropped at a discard leaves the rest to
//! the next one.

use std::collections::VecDeque;
use std::ops::Range;

use crate::claims::Resource;
use crate::error::IoError;
use crate::freed::Key;
use crate::image::Image;
use crate::mutant::mutant;
use crate::rule::Rule;
use crate::state::{State, Stop};
use storage::Storage;

/// Most freed clusters that are looked at in one step.
const AT_ONCE: usize = 64;

/// Freed clusters and what becomes of them.
struct Reap {
    keys: VecDeque<Key>,
    /// Bytes of the file to give back first.
    discard: Option<Range<u64>>,
}

impl State {
    /// The next freed clusters, from `from` on, that nothing stands in the way of: a run to discard, or some to free.
    fn next_reapable(&mut self, from: Key, pass_discard: bool) -> Result<Option<Reap>, Stop> {
        let ready = self.freed.ready_from(from).take(AT_ONCE);
        let ready: Vec<_> =
            ready.map(|(key, freed)| (key, freed.discard && pass_discard)).collect();
        let (mut keys, mut run): (VecDeque<Key>, Option<Range<u64>>) = (VecDeque::new(), None);
        self.work.looked_at += ready.len() as u64;
        for (key, discard) in ready {
            let (cluster, _) = key;
            // Only where it matters: counts far apart are in many pages. What asks for one that is not there leaves it to the next step.
            let alone = match discard {
                false => true,
                true => match self.refcount(cluster) {
                    Ok(count) => {
                        // Several of its references may go at once.
                        let before = keys.iter().rev().take_while(|(other, _)| *other == cluster);
                        mutant!(self.rules, SharedClusterDiscarded => true; count == 1 + before.count() as u64)
                    }
                    Err(Stop::Load { .. }) if !keys.is_empty() => break,
                    Err(stop) => return Err(stop),
                },
            };
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
            if discard && alone {
                mutant!(self.rules, TailBesideDiscard => (); self.end_tail_in(cluster));
            }
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

impl<S: Storage> Image<S> {
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
