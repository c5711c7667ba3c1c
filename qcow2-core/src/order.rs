//! What must be durable before what: stamps for things written, edges between them.
//!
//! Time is counted in flushes. A write that completes while `n` flushes have been submitted carries [`Stamp`] `n + 1`: it
//! is durable once flush `n + 1`, or any later one, has completed.
//!
//! ```text
//!   submitted:      0            1                 2
//!   writes:    a ──┤   b ──┤  flush 1 ─────┤  flush 2 ──────┤
//!   stamps:    a:1     b:1      c:2 ──┤         (c durable when flush 2 completes)
//! ```
//!
//! An [`Edge`] names what a cache page waits for before it may be written, and the rule that asks for it. Edges only
//! ever lead from L2 and L1 and refcount tables down to data, lengths and refcount blocks, never back: a refcount that
//! goes *down* is not recorded in its page until the dropped reference is durable. So they cannot form a cycle.

use smallvec::{Array, SmallVec};

use crate::mutant::mutant;
use crate::rule::{Rule, Rules};

/// The number of the flush that makes something durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(u64);

impl Stamp {
    /// What was durable before the image was opened.
    pub(crate) const DURABLE: Self = Self(0);
}

/// Counts flushes and what they cover.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlushClock {
    submitted: u64,
    completed: u64,
    newest: u64,
    rules: Rules,
}

impl FlushClock {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// The stamp of a write that has just completed.
    pub(crate) fn stamp(&mut self) -> Stamp {
        let last = mutant!(self.rules, StampOfRunningFlush => self.completed; self.submitted);
        self.newest = last + 1;
        Stamp(self.newest)
    }

    /// The stamp of the newest completed write.
    pub(crate) fn newest(&self) -> Stamp {
        Stamp(self.newest)
    }

    /// Numbers a flush that is about to be submitted.
    pub(crate) fn submit(&mut self) -> Stamp {
        self.submitted += 1;
        Stamp(self.submitted)
    }

    /// Records that the flush `stamp` completed well.
    pub(crate) fn complete(&mut self, stamp: Stamp) {
        debug_assert!(stamp.0 <= self.submitted, "what completes was submitted");
        self.completed = self.completed.max(stamp.0);
    }

    /// Whether what carries `stamp` is durable.
    pub(crate) fn is_durable(&self, stamp: Stamp) -> bool {
        debug_assert!(
            stamp.0 <= self.submitted + 1,
            "nothing waits for a flush after the next one"
        );
        stamp.0 <= self.completed
    }
}

/// Something that has to be durable first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// A completed write, zeroing or length change.
    Written(Stamp),
    /// The cache page at this host offset, in this version or a later one.
    Page { offset: u64, version: u64 },
}

/// What a page waits for, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) rule: Rule,
    pub(crate) before: Before,
}

impl Edge {
    /// Adds this edge to `edges`; the later of two alike replaces the earlier.
    pub(crate) fn merge_into(self, edges: &mut SmallVec<impl Array<Item = Self>>, rules: Rules) {
        for edge in edges.iter_mut().filter(|edge| edge.rule == self.rule) {
            match (&mut edge.before, self.before) {
                (Before::Written(old), Before::Written(new)) => {
                    *old = mutant!(rules, MergeKeepsEarlier => (*old).min(new); (*old).max(new));
                    return;
                }
                (
                    Before::Page { offset: old_page, version: old },
                    Before::Page { offset, version },
                ) if *old_page == offset => {
                    *old = (*old).max(version);
                    return;
                }
                _ => {}
            }
        }
        edges.push(self);
    }
}

#[cfg(test)]
mod tests {
    use super::{Before, Edge, FlushClock, Stamp};
    use smallvec::SmallVec;

    use crate::rule::{Rule, Rules};

    #[test]
    fn a_flush_covers_only_what_completed_before_it_was_submitted() {
        let mut clock = FlushClock::default();
        let early = clock.stamp();
        let first = clock.submit();
        let late = clock.stamp();
        clock.complete(first);
        assert!(clock.is_durable(early));
        assert!(!clock.is_durable(late));
        let second = clock.submit();
        clock.complete(second);
        assert!(clock.is_durable(late));
        assert!(clock.is_durable(Stamp::DURABLE));
    }

    #[test]
    fn edges_merge_by_rule_and_page() {
        let mut edges = SmallVec::<[Edge; 4]>::new();
        let page = |offset, version| Edge {
            rule: Rule::RefcountBeforeReference,
            before: Before::Page { offset, version },
        };
        page(0, 5).merge_into(&mut edges, Rules::all());
        page(0, 3).merge_into(&mut edges, Rules::all());
        page(512, 4).merge_into(&mut edges, Rules::all());
        assert_eq!(edges[..], [page(0, 5), page(512, 4)]);
        let written =
            |stamp| Edge { rule: Rule::DataBeforeMapping, before: Before::Written(Stamp(stamp)) };
        written(2).merge_into(&mut edges, Rules::all());
        written(1).merge_into(&mut edges, Rules::all());
        assert_eq!(edges[2..], [written(2)]);
    }
}
