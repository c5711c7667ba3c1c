//! Host clusters whose last known reference was dropped, on their way to being free.
//!
//! ```text
//!   dereferenced ──> unwritten ──> undurable ──> read ──────> ready ──> (discarded) ──> refcount lowered: free
//!                    by page       by stamp      by ticket    by cluster
//!                    page written  flush         readers of before gone
//! ```
//!
//! **Invariant.** A cluster waits for one thing at a time, in an order in which those that may go on are found without looking at
//! what still waits; and they go on when somebody can use them, a few in a step.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::mutant::mutant;
use crate::order::{FlushClock, Stamp};
use crate::rule::Rules;

/// A cluster, and a number that tells references to the same cluster apart.
pub(crate) type Key = (u64, u64);

/// A dropped reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Freed {
    /// Readers with a lower ticket may have resolved to the cluster.
    pub(crate) ticket: u64,
    /// Whether the space goes back to the storage.
    pub(crate) discard: bool,
    /// Whether the refcount was lowered already (only when the rule against that is broken).
    pub(crate) lowered: bool,
}

/// What makes that a reference was dropped durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// It is.
    Now,
    /// A flush that covers this stamp.
    Flushed(Stamp),
    /// A page, written in this version or a later one, and flushed.
    Written { page: u64, version: u64 },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    freed: BTreeMap<Key, Freed>,
    unwritten: BTreeSet<(u64, u64, Key)>,
    undurable: BTreeSet<(Stamp, Key)>,
    read: BTreeSet<(u64, Key)>,
    ready: BTreeSet<Key>,
    rules: Rules,
}

impl Queue {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Adds a dropped reference.
    pub(crate) fn insert(&mut self, key: Key, freed: Freed, until: Until) {
        let old = self.freed.insert(key, freed);
        debug_assert!(old.is_none(), "{key:?} is freed twice under one number");
        match until {
            Until::Now => {
                self.read.insert((freed.ticket, key));
            }
            Until::Flushed(stamp) => {
                self.undurable.insert((stamp, key));
            }
            Until::Written { page, version } => {
                self.unwritten.insert((page, version, key));
            }
        }
    }

    /// A page was written in this version, and is durable with `stamp`.
    pub(crate) fn written(&mut self, page: u64, version: u64, stamp: Stamp) {
        while let Some(&first) = self.unwritten.range((page, 0, (0, 0))..).next() {
            let later =
                mutant!(self.rules, FreedVersionMissed => first.1 >= version; first.1 > version);
            if first.0 != page || later {
                break;
            }
            self.unwritten.remove(&first);
            let stamp = mutant!(self.rules, FreedBeforeFlush => Stamp::DURABLE; stamp);
            self.undurable.insert((stamp, first.2));
        }
    }

    /// The pages in a range of host offsets belong to no table any more, and what they said last is durable elsewhere.
    pub(crate) fn forgotten(&mut self, pages: Range<u64>) {
        while let Some(&first) = self.unwritten.range((pages.start, 0, (0, 0))..).next() {
            if first.0 >= pages.end {
                break;
            }
            self.unwritten.remove(&first);
            self.undurable.insert((Stamp::DURABLE, first.2));
        }
    }

    /// The first one whose flush has completed.
    fn durable(&self, clock: &FlushClock) -> Option<(Stamp, Key)> {
        self.undurable.first().copied().filter(|(stamp, _)| clock.is_durable(*stamp))
    }

    /// The first one whose readers are gone; `readers` is the lowest ticket of one.
    fn unread(&self, readers: Option<u64>) -> Option<(u64, Key)> {
        let first = |oldest| mutant!(self.rules, ReaderOffByOne => oldest + 1; oldest);
        let gone = |ticket| readers.is_none_or(|oldest| first(oldest) >= ticket);
        self.read.first().copied().filter(|&(ticket, _)| gone(ticket))
    }

    /// Whether nothing stands between some of them and being free. (One whose flush has completed may still have readers.)
    pub(crate) fn has_ready(&self, clock: &FlushClock, readers: Option<u64>) -> bool {
        !self.ready.is_empty() || self.durable(clock).is_some() || self.unread(readers).is_some()
    }

    /// Lets go on what may, at most so many.
    pub(crate) fn go_on(&mut self, most: usize, clock: &FlushClock, readers: Option<u64>) {
        for _ in 0..most {
            let (durable, unread) = (self.durable(clock), self.unread(readers));
            if let Some((stamp, key)) = durable {
                self.undurable.remove(&(stamp, key));
                self.read.insert((self.freed[&key].ticket, key));
            }
            if let Some((ticket, key)) = unread {
                self.read.remove(&(ticket, key));
                self.ready.insert(key);
            }
            if durable.is_none() && unread.is_none() {
                break;
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.freed.is_empty()
    }

    /// Those that are ready, by cluster, from a key on.
    pub(crate) fn ready_from(&self, key: Key) -> impl Iterator<Item = (Key, Freed)> {
        self.ready.range(key..).map(|key| (*key, self.freed[key]))
    }

    /// Whether a cluster is on its way.
    pub(crate) fn contains(&self, cluster: u64) -> bool {
        self.freed.range((cluster, 0)..=(cluster, u64::MAX)).next().is_some()
    }

    /// Takes out one that is ready.
    pub(crate) fn take_ready(&mut self, key: Key) -> Option<Freed> {
        let freed = self.ready.remove(&key).then(|| self.freed.remove(&key));
        debug_assert!(freed != Some(None), "what is ready was freed");
        freed.flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::{Freed, Key, Queue, Until};
    use crate::files::File;
    use crate::order::FlushClock;

    fn ready(queue: &Queue) -> Vec<Key> {
        queue.ready_from((0, 0)).map(|(key, _)| key).collect()
    }

    fn flush(clock: &mut FlushClock) {
        let flush = clock.submit(File::Image);
        clock.complete(flush);
    }

    const FREED: Freed = Freed { ticket: 5, discard: false, lowered: false };

    #[test]
    fn a_cluster_waits_for_its_page_then_for_a_flush_then_for_readers() {
        let mut clock = FlushClock::default();
        let mut queue = Queue::default();
        queue.insert((9, 0), FREED, Until::Written { page: 512, version: 7 });
        queue.written(0, 9, clock.stamp(File::Image));
        queue.written(1024, 9, clock.stamp(File::Image));
        queue.written(512, 6, clock.stamp(File::Image));
        flush(&mut clock);
        assert!(queue.contains(9) && !queue.has_ready(&clock, None));
        queue.written(512, 8, clock.stamp(File::Image));
        assert!(!queue.has_ready(&clock, None), "no flush has covered it");
        flush(&mut clock);
        assert!(queue.has_ready(&clock, Some(4)), "one look shows that a reader is there");
        queue.go_on(2, &clock, Some(4));
        assert!(!queue.has_ready(&clock, Some(4)), "a reader from before is there");
        assert!(queue.has_ready(&clock, Some(5)) && queue.has_ready(&clock, None));
        queue.go_on(1, &clock, Some(5));
        assert_eq!(ready(&queue), [(9, 0)]);
        assert_eq!(queue.take_ready((9, 0)), Some(FREED));
        assert!(queue.is_empty() && !queue.contains(9));
        assert_eq!(queue.take_ready((9, 0)), None);
    }

    #[test]
    fn each_goes_on_by_itself() {
        let mut clock = FlushClock::default();
        let mut queue = Queue::default();
        queue.insert((1, 0), FREED, Until::Now);
        queue.insert((2, 1), Freed { ticket: 6, ..FREED }, Until::Now);
        queue.insert((3, 2), FREED, Until::Flushed(clock.stamp(File::Image)));
        queue.insert((4, 3), FREED, Until::Written { page: 512, version: 3 });
        queue.insert((4, 4), FREED, Until::Written { page: 1024, version: 4 });
        queue.go_on(9, &clock, Some(5));
        assert_eq!(ready(&queue), [(1, 0)]);
        assert_eq!(queue.take_ready((2, 1)), None, "it is not ready");
        queue.forgotten(512..1024);
        queue.go_on(9, &clock, Some(5));
        assert_eq!(ready(&queue), [(1, 0), (4, 3)]);
        flush(&mut clock);
        queue.go_on(9, &clock, None);
        assert_eq!(ready(&queue), [(1, 0), (2, 1), (3, 2), (4, 3)]);
        assert_eq!(queue.take_ready((4, 3)), Some(FREED));
        assert!(queue.contains(4), "it was freed twice");
    }
}
