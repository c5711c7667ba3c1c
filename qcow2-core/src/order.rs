//! What must be durable before what: stamps for things written, edges between them.
//!
//! Time is counted in flushes, for each file of an image by itself. A write to a file that completes while `n` flushes of it have been
//! submitted carries [`Stamp`] `n + 1` of that file: it is durable once flush `n + 1`, or any later one, has completed.
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

use crate::files::File;
use crate::mutant::mutant;
use crate::rule::{Rule, Rules};

/// The flush that makes something durable: its number, and in the highest bit which file's. Of one file the later is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(u64);

impl Stamp {
    /// What was durable before the image was opened.
    pub(crate) const DURABLE: Self = Self(0);

    const OF_DATA: u64 = 1 << 63;

    const fn new(file: File, number: u64) -> Self {
        match file {
            File::Image => Self(number),
            File::Data => Self(number | Self::OF_DATA),
        }
    }

    /// The file whose flush it is.
    pub(crate) const fn file(self) -> File {
        if self.0 & Self::OF_DATA == 0 { File::Image } else { File::Data }
    }

    const fn number(self) -> u64 {
        self.0 & !Self::OF_DATA
    }
}

/// Counts the flushes of one file.
#[derive(Clone, Copy, Debug, Default)]
struct Flushes {
    submitted: u64,
    completed: u64,
    newest: u64,
}

/// Counts flushes and what they cover.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlushClock {
    image: Flushes,
    data: Flushes,
    rules: Rules,
}

impl FlushClock {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    const fn of(&self, file: File) -> &Flushes {
        match file {
            File::Image => &self.image,
            File::Data => &self.data,
        }
    }

    const fn of_mut(&mut self, file: File) -> &mut Flushes {
        match file {
            File::Image => &mut self.image,
            File::Data => &mut self.data,
        }
    }

    /// The stamp of a write to that file that has just completed.
    pub(crate) fn stamp(&mut self, file: File) -> Stamp {
        let rules = self.rules;
        let flushes = self.of_mut(file);
        let last = mutant!(rules, StampOfRunningFlush => flushes.completed; flushes.submitted);
        flushes.newest = last + 1;
        Stamp::new(file, flushes.newest)
    }

    /// The stamp of the newest completed write to that file.
    pub(crate) fn newest(&self, file: File) -> Stamp {
        Stamp::new(file, self.of(file).newest)
    }

    /// Numbers a flush of that file that is about to be submitted.
    pub(crate) fn submit(&mut self, file: File) -> Stamp {
        let flushes = self.of_mut(file);
        flushes.submitted += 1;
        Stamp::new(file, flushes.submitted)
    }

    /// Records that the flush `stamp` completed well.
    pub(crate) fn complete(&mut self, stamp: Stamp) {
        let flushes = self.of_mut(stamp.file());
        debug_assert!(stamp.number() <= flushes.submitted, "what completes was submitted");
        flushes.completed = flushes.completed.max(stamp.number());
    }

    /// Whether what carries `stamp` is durable.
    pub(crate) fn is_durable(&self, stamp: Stamp) -> bool {
        let flushes = self.of(stamp.file());
        debug_assert!(
            stamp.number() <= flushes.submitted + 1,
            "nothing waits for a flush after the next one"
        );
        stamp.number() <= flushes.completed
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
                (Before::Written(old), Before::Written(new)) if old.file() == new.file() => {
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

    use crate::files::File;
    use crate::rule::{Rule, Rules};

    #[test]
    fn a_flush_covers_only_what_completed_before_it_was_submitted() {
        let mut clock = FlushClock::default();
        let early = clock.stamp(File::Image);
        let first = clock.submit(File::Image);
        let late = clock.stamp(File::Image);
        clock.complete(first);
        assert!(clock.is_durable(early));
        assert!(!clock.is_durable(late));
        let second = clock.submit(File::Image);
        clock.complete(second);
        assert!(clock.is_durable(late));
        assert!(clock.is_durable(Stamp::DURABLE));
    }

    #[test]
    fn a_flush_covers_one_file_only() {
        let mut clock = FlushClock::default();
        let (image, data) = (clock.stamp(File::Image), clock.stamp(File::Data));
        let flush = clock.submit(File::Data);
        clock.complete(flush);
        assert!(clock.is_durable(data) && !clock.is_durable(image));
        assert_eq!((image.file(), data.file()), (File::Image, File::Data));
        let mut edges = SmallVec::<[Edge; 4]>::new();
        for stamp in [image, data, clock.stamp(File::Image)] {
            let edge = Edge { rule: Rule::DataBeforeMapping, before: Before::Written(stamp) };
            edge.merge_into(&mut edges, Rules::all());
        }
        assert_eq!(edges.len(), 2, "what one file waits for does not replace the other's");
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
