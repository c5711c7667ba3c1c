//! An exclusive claim in the hand of a request, and the I/O that is done under it.
//!
//! **Invariant.** A claim that goes while its I/O may still land leaves an orphan behind; one that goes otherwise gives back what was
//! taken under it.

use std::future::poll_fn;
use std::ops::Range;
use std::task::Poll;

use crate::barrier::Barrier;
use crate::claims::{Resource, Turn};
use crate::error::IoError;
use crate::files::File;
use crate::image::Image;
use crate::mutant::mutant;
use crate::rule::Rule;
use crate::state::State;
use crate::taken::Taken;
use storage::{Durability, IoBuf, Storage};

impl<S: Storage> Image<S> {
    /// Waits for an exclusive claim.
    pub(crate) async fn claim(&self, resource: Resource) -> Result<Claim<'_, S>, IoError> {
        self.claim_if(resource, |_| Ok(())).await
    }

    /// The same, if `check` allows it, which looks in the step in which the claim is queued.
    pub(crate) async fn claim_if(
        &self,
        resource: Resource,
        check: impl Fn(&State) -> Result<(), IoError>,
    ) -> Result<Claim<'_, S>, IoError> {
        self.files.image.pause().await;
        let mut resource = Some(resource);
        let mut claim = Claim {
            image: self,
            id: None,
            in_flight: false,
            through: None,
            failed: false,
            clusters: Taken::default(),
        };
        loop {
            let turn = poll_fn(|context| {
                let waker = context.waker();
                let turn: Result<Turn, IoError> = self.now(|state| {
                    if state.claims.has_many_orphans() && claim.id.is_none() {
                        return Ok(Turn::Settle);
                    }
                    if let Some(resource) = resource.take() {
                        check(state)?;
                        claim.id = Some(state.claims.enqueue(resource, waker));
                    }
                    let id = claim.id.expect("it was just queued");
                    Ok(state.claims.turn(id, waker))
                });
                match turn {
                    Ok(Turn::Wait) => Poll::Pending,
                    turn => Poll::Ready(turn),
                }
            })
            .await?;
            if turn == Turn::Granted {
                return Ok(claim);
            }
            Box::pin(self.settle()).await?;
        }
    }

    /// Waits until no I/O of a dropped or failed request can land any more, and releases what they had claimed. If one of them was
    /// a flush that failed, it failed for everybody.
    pub(crate) async fn settle(&self) -> Result<(), IoError> {
        let orphans = self.with(|state| state.claims.orphans()).await;
        if orphans.is_empty() {
            return Ok(());
        }
        let settled = self.files.settle().await;
        self.now(|state| {
            state.release_orphans(&orphans);
            settled.map_err(|source| state.fail_flush(source))
        })
    }
}

/// An exclusive claim. Dropping it releases it, or leaves it as an orphan while its I/O is in flight or may still land because it
/// failed.
#[derive(Debug)]
pub(crate) struct Claim<'a, S: Storage> {
    image: &'a Image<S>,
    id: Option<u64>,
    in_flight: bool,
    /// The write through in flight, by its number.
    through: Option<u64>,
    /// Whether some of its I/O failed since the storage was settled.
    failed: bool,
    /// Clusters taken for the holder that nothing refers to yet: given back when the claim goes.
    pub(crate) clusters: Taken,
}

impl<S: Storage> Claim<'_, S> {
    /// Writes to a host address under the claim.
    pub(crate) async fn write(
        &mut self,
        host: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, std::io::Result<()>) {
        self.in_flight = true;
        if durability == Durability::Through {
            self.through = Some(self.image.now(State::begin_through));
        }
        let (buf, result) = self.image.files.write(host, buf, durability).await;
        if let Some(number) = self.through.take() {
            // In the same step as its end: a sync that failed may have lost what others wrote.
            self.image.now(|state| {
                if let Err(source) = &result {
                    state.fail_sync("writing through", host, source);
                }
                state.end_through(number);
            });
        }
        (buf, self.ended(result))
    }

    /// Zeroes host addresses under the claim.
    pub(crate) async fn write_zeroes(&mut self, range: Range<u64>) -> std::io::Result<()> {
        self.in_flight = true;
        let result = self.image.files.write_zeroes(range).await;
        self.ended(result)
    }

    /// Discards host addresses under the claim.
    pub(crate) async fn discard(&mut self, range: Range<u64>) -> std::io::Result<()> {
        self.in_flight = true;
        let result = self.image.files.discard(range).await;
        self.ended(result)
    }

    /// Changes the length of a file under the claim.
    pub(crate) async fn set_len(&mut self, file: File, len: u64) -> std::io::Result<()> {
        self.in_flight = true;
        let result = self.image.files.of(file).set_len(len).await;
        self.ended(result)
    }

    /// Flushes a file under the claim.
    pub(crate) async fn flush(&mut self, file: File, barrier: Barrier) -> std::io::Result<()> {
        if self.image.options.rules.skips(barrier) {
            return Ok(());
        }
        self.in_flight = mutant!(self.image.options.rules, DroppedFlushForgotten => false; true);
        let result = self.image.files.of(file).flush().await;
        self.in_flight = false;
        result
    }

    fn ended<T>(&mut self, result: std::io::Result<T>) -> std::io::Result<T> {
        self.in_flight = false;
        let before = mutant!(self.image.options.rules, LaterSuccessForgets => false; self.failed);
        self.failed = before || result.is_err();
        result
    }

    /// Waits until what failed under the claim cannot land any more, so that its range can be used again.
    pub(crate) async fn settle(&mut self) -> Result<(), IoError> {
        if self.failed && self.image.options.rules.hold(Rule::SettleBeforeRetry) {
            let settled = self.image.files.settle().await;
            settled.map_err(|source| self.image.now(|state| state.fail_flush(source)))?;
            self.failed = false;
        }
        Ok(())
    }

    /// Marks I/O of the holder's own as in flight, or as done.
    pub(crate) fn set_in_flight(&mut self, in_flight: bool) {
        self.in_flight = in_flight;
    }

    /// Says that I/O of the holder's own failed.
    pub(crate) fn set_failed(&mut self) {
        self.in_flight = false;
        self.failed = true;
    }
}

impl<S: Storage> Drop for Claim<'_, S> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let clusters = std::mem::take(&mut self.clusters);
        self.image.now(|state| {
            if let Some(number) = self.through {
                state.end_through(number);
            }
            let may_land = (self.in_flight && state.rules.hold(Rule::OrphansBeforeReuse))
                || (self.failed && state.rules.hold(Rule::SettleBeforeRetry));
            if may_land {
                let left = mutant!(state.rules, OrphanClustersFreedAtOnce => {
                    state.give_back(clusters);
                    Taken::default()
                }; clusters);
                state.orphan(id, self.through.is_some(), left);
            } else {
                state.give_back(clusters);
                state.claims.release(id);
            }
        });
    }
}
