//! Who may change what: exclusive claims on guest clusters, tables, pages and single steps, granted first come, first served.
//!
//! A claim is a record in the image's state, not a held lock: a task waits for one at an await, holds it across
//! storage operations, and the records of all tasks lie open in one list.
//!
//! ```text
//!   queue:  [1 guest 4..6 held] [2 pages 0x400..0x600 held] [3 guest 5..9 waits for 1] [4 guest 8..9 waits for 3]
//! ```
//!
//! A claim is granted when no earlier record in the queue overlaps it, so nobody starves. A task that is dropped with
//! I/O in flight, or whose I/O failed, leaves its claim as an **orphan**: it still blocks, because the I/O may still land, until
//! someone has seen the storage settle. To exclude deadlock, claims are taken in the order of the variants of [`Resource`].

use std::ops::Range;
use std::task::Waker;

use crate::files::File;
use crate::mutant::mutant;
use crate::rule::Rules;

/// As many orphans wait for somebody who overlaps them.
const MANY_ORPHANS: u64 = 32;

/// What can be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// The reading of what is metadata.
    Metadata,
    /// The size of the guest disk.
    Size,
    /// Guest clusters, by index.
    Guest(Range<u64>),
    /// The L2 tables that these indices of the L1 table point to, and the entries themselves.
    Tables(Range<u64>),
    /// The refcount table and the set of refcount blocks.
    Refcounts,
    /// The turning of freed clusters into free ones.
    Reap,
    /// The length of the image file.
    Length,
    /// The header.
    Header,
    /// The encryption header.
    Keys,
    /// Metadata pages, by host offset.
    Pages(Range<u64>),
    /// The submission of a flush of this file.
    Flush(File),
}

impl Resource {
    fn overlaps(&self, other: &Self, rules: Rules) -> bool {
        match (self, other) {
            (Self::Guest(a), Self::Guest(b))
            | (Self::Tables(a), Self::Tables(b))
            | (Self::Pages(a), Self::Pages(b)) => {
                mutant!(rules, OverlapOneSided => a.start <= b.start; a.start < b.end)
                    && b.start < a.end
            }
            (a, b) => a == b,
        }
    }
}

#[derive(Clone, Debug)]
enum Holder {
    Waiting(Waker),
    Held,
    /// `sync`: it may have been a write through, whose failure somebody has to hear of.
    Orphan {
        sync: bool,
    },
}

#[derive(Clone, Debug)]
struct Record {
    id: u64,
    resource: Resource,
    holder: Holder,
}

/// Where a waiting claim stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Granted,
    /// An earlier claim overlaps; the waker is called when it goes.
    Wait,
    /// An orphan overlaps: see the storage settle, then release it.
    Settle,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    queue: Vec<Record>,
    next_id: u64,
    orphans: u64,
    rules: Rules,
}

impl Claims {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Queues a claim and returns its number.
    pub(crate) fn enqueue(&mut self, resource: Resource, waker: &Waker) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.queue.push(Record { id, resource, holder: Holder::Waiting(waker.clone()) });
        id
    }

    /// Grants the claim `id` if nothing stands in its way.
    pub(crate) fn turn(&mut self, id: u64, waker: &Waker) -> Turn {
        let at = self.index(id);
        let (earlier, rest) = self.queue.split_at_mut(at);
        let claim = rest.first_mut().expect("index() found it");
        debug_assert!(matches!(claim.holder, Holder::Waiting(_)), "only who waits has a turn");
        let mut turn = Turn::Granted;
        let rules = self.rules;
        for other in earlier.iter().filter(|other| other.resource.overlaps(&claim.resource, rules))
        {
            if mutant!(rules, ClaimOvertakes => matches!(other.holder, Holder::Waiting(_)); false) {
                continue;
            }
            if matches!(other.holder, Holder::Orphan { .. }) {
                turn = Turn::Settle;
                break;
            }
            turn = Turn::Wait;
        }
        claim.holder = match turn {
            Turn::Granted => Holder::Held,
            Turn::Wait | Turn::Settle => Holder::Waiting(waker.clone()),
        };
        turn
    }

    /// Removes the claim `id` and wakes who may have waited for it.
    pub(crate) fn release(&mut self, id: u64) {
        let at = self.index(id);
        let gone = self.queue.remove(at);
        self.check_orphans();
        for other in &self.queue[at..] {
            if let Holder::Waiting(waker) = &other.holder
                && other.resource.overlaps(&gone.resource, self.rules)
            {
                waker.wake_by_ref();
                mutant!(self.rules, ReleaseWakesOne => break; ());
            }
        }
    }

    /// Leaves the claim `id` to whoever sees the storage settle; `sync` says whether a write through is in flight under it.
    pub(crate) fn orphan(&mut self, id: u64, sync: bool) {
        let at = self.index(id);
        debug_assert!(matches!(self.queue[at].holder, Holder::Held), "only what is held is left");
        self.queue[at].holder = Holder::Orphan { sync };
        self.orphans += 1;
        self.check_orphans();
        for other in &self.queue[at..] {
            if let Holder::Waiting(waker) = &other.holder {
                waker.wake_by_ref();
            }
        }
    }

    /// Whether it is time to see the storage settle, whoever overlaps them: records of failed requests must not pile up.
    pub(crate) fn has_many_orphans(&self) -> bool {
        self.orphans > MANY_ORPHANS
    }

    /// Whether a write through of a dropped request may fail, or have failed, with nobody there to hear it.
    pub(crate) fn has_sync_orphans(&self) -> bool {
        self.orphans > 0
            && self
                .queue
                .iter()
                .any(|record| matches!(record.holder, Holder::Orphan { sync: true }))
    }

    /// The orphans of this moment: settle the storage, then [`release`](Self::release) those that are still there.
    pub(crate) fn orphans(&self) -> Vec<u64> {
        if self.orphans == 0 {
            return Vec::new();
        }
        self.queue
            .iter()
            .filter(|record| matches!(record.holder, Holder::Orphan { .. }))
            .map(|record| record.id)
            .collect()
    }

    /// Releases those of `orphans` that nobody has released yet.
    pub(crate) fn release_orphans(&mut self, orphans: &[u64]) {
        for &id in orphans {
            if self.queue.iter().any(|record| record.id == id) {
                self.orphans -= 1;
                self.release(id);
            }
        }
    }

    /// Whether nobody holds a claim, waits for one or has left one behind.
    #[cfg(feature = "sabotage")]
    pub(crate) fn are_none(&self) -> bool {
        self.queue.is_empty()
    }

    /// Orphans are counted as they are.
    fn check_orphans(&self) {
        let orphans = || {
            let is_orphan = |record: &&Record| matches!(record.holder, Holder::Orphan { .. });
            self.queue.iter().filter(is_orphan).count() as u64
        };
        debug_assert_eq!(self.orphans, orphans());
    }

    fn index(&self, id: u64) -> usize {
        self.queue
            .iter()
            .position(|record| record.id == id)
            .expect("a claim stays queued until it is released")
    }
}

#[cfg(test)]
mod tests {
    use super::{Claims, Resource, Turn};
    use std::task::Waker;

    #[test]
    fn first_come_first_served() {
        let mut claims = Claims::default();
        let waker = Waker::noop();
        let mut queue = |resource| claims.enqueue(resource, waker);
        let a = queue(Resource::Guest(4..6));
        let b = queue(Resource::Guest(5..9));
        let c = queue(Resource::Guest(8..9));
        let d = queue(Resource::Tables(4..6));
        assert_eq!(claims.turn(a, waker), Turn::Granted);
        assert_eq!(claims.turn(b, waker), Turn::Wait);
        assert_eq!(claims.turn(c, waker), Turn::Wait, "it must not overtake the one before it");
        assert_eq!(claims.turn(d, waker), Turn::Granted);
        claims.release(a);
        assert_eq!(claims.turn(b, waker), Turn::Granted);
        claims.release(b);
        assert_eq!(claims.turn(c, waker), Turn::Granted);
    }

    #[test]
    fn an_orphan_blocks_until_it_is_released() {
        let mut claims = Claims::default();
        let waker = Waker::noop();
        let a = claims.enqueue(Resource::Pages(0..512), waker);
        assert_eq!(claims.turn(a, waker), Turn::Granted);
        claims.orphan(a, false);
        let b = claims.enqueue(Resource::Pages(0..512), waker);
        assert_eq!(claims.turn(b, waker), Turn::Settle);
        let orphans = claims.orphans();
        claims.release_orphans(&orphans);
        claims.release_orphans(&orphans);
        assert_eq!(claims.turn(b, waker), Turn::Granted);
        assert!(claims.orphans().is_empty());
    }
}
