//! Where streams go: behind each other in host clusters, each at a sector.
//!
//! ```text
//!   host clusters   |  other  |== a ===|=== b ==|- tail -|  next   |
//!   counts              1         2 (a and b)                0
//!
//!   c fits          |  other  |== a ===|=== b ==|= c =|--|  next   |     the count goes up
//!   d does not      |  other  |== a ===|=== b ==|==== d =|== d |---|     across, if the cluster that was taken is the next one
//! ```
//!
//! **Invariant.** A stream begins at a sector, and what is behind it in its last sector are zeroes of its own write: two streams are never in
//! flight in one sector, and a stream whose write was lost takes no other with it. Room goes one way, and is not used again before the cluster
//! is free: what a stream held is never written over while something may lead there. The tail is of a cluster that this session took, and
//! ends when its count falls to 0 or is full, and before a discard of it.

use std::ops::Range;

use crate::alloc::Extent;
use crate::claim::Claim;
use crate::error::IoError;
use crate::image::Image;
use crate::mutant::mutant;
use crate::refcounts::Counts;
use crate::state::{State, Stop};
use storage::Storage;

/// Room that a stream was given.
#[derive(Debug)]
pub(crate) struct Room {
    /// Host offset in bytes.
    pub(crate) offset: u64,
    /// The clusters of the host that it reaches into end before this one.
    pub(crate) end: u64,
    /// What makes their counts durable.
    pub(crate) counts: Counts,
}

impl State {
    /// Room for a stream of `len` bytes in the tail: all of it or, if `next` was taken and follows, the part before that. None if it does
    /// not fit there, or if the cluster can count no more.
    fn room_in_tail(&mut self, len: u64, next: Option<&Extent>) -> Result<Option<Room>, Stop> {
        let Some(tail) = self.tail.clone() else { return Ok(None) };
        let size = self.cluster_size();
        let is_room = match next {
            None => tail.end - tail.start >= len,
            // What was taken is used in any case, so what fits without it stays where it is.
            Some(next) => {
                let follows = next.clusters.start * size == tail.end;
                let follows = mutant!(self.rules, StreamAcrossAnywhere => true; follows);
                follows && tail.end - tail.start < len
            }
        };
        if !is_room {
            return Ok(None);
        }
        let Some(counts) = self.raise_refcount(tail.start / size)? else {
            self.tail = None;
            return Ok(None);
        };
        let end = (tail.start + len).div_ceil(size);
        let rest = tail.start + len..end * size;
        self.tail = Some(rest).filter(|rest| !rest.is_empty());
        Ok(Some(Room { offset: tail.start, end, counts }))
    }

    /// Room at the beginning of a cluster that was taken; what is left of it is the tail, if that is more than there was.
    fn room_in(&mut self, len: u64, next: Extent) -> Room {
        let size = self.cluster_size();
        let offset = next.clusters.start * size;
        let rest = offset + len..next.clusters.end * size;
        let left = |tail: &Range<u64>| tail.end - tail.start;
        if self.tail.as_ref().is_none_or(|tail| left(tail) < left(&rest)) {
            self.tail = Some(rest).filter(|rest| !rest.is_empty());
        }
        Room { offset, end: next.clusters.end, counts: next.counts }
    }

    /// Puts no more streams into a cluster that is about to be discarded, or free.
    pub(crate) fn end_tail_in(&mut self, cluster: u64) {
        let size = self.cluster_size();
        let _ = self.tail.take_if(|tail| tail.start / size == cluster);
    }
}

impl<S: Storage> Image<S> {
    /// Takes room for a stream of `len` bytes, whole sectors and less than a cluster, for the holder of `claim`, who has to take its clusters
    /// out of `claim.clusters` when an entry refers to them.
    pub(crate) async fn room_for_stream(
        &self,
        claim: &mut Claim<'_, S>,
        len: u64,
    ) -> Result<Room, IoError> {
        if let Some(room) = self.take_tail(claim, len, None).await? {
            return Ok(room);
        }
        let next = self.allocate(claim, 1).await?;
        if let Some(mut room) = self.take_tail(claim, len, Some(&next)).await? {
            mutant!(self.options.rules, SecondHostNotAwaited => (); room.counts.extend(next.counts));
            return Ok(room);
        }
        Ok(self.with(|state| state.room_in(len, next)).await)
    }

    async fn take_tail(
        &self,
        claim: &mut Claim<'_, S>,
        len: u64,
        next: Option<&Extent>,
    ) -> Result<Option<Room>, IoError> {
        self.decide(|state| {
            let room = state.room_in_tail(len, next)?;
            // In the same step: what was taken is given back with the claim.
            if let Some(room) = &room {
                let cluster = room.offset / self.cluster_size;
                claim.clusters.push(cluster..cluster + 1);
            }
            Ok(room)
        })
        .await
    }
}
