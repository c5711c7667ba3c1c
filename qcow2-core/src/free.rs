//! Free clusters that are known, as runs: what was freed below the point that the search for free clusters has reached.
//!
//! ```text
//!   clusters   | in use | run | in use | run | in use ...          searched up to here | not looked at yet
//! ```
//!
//! **Invariant.** A cluster below `searched` that is free is in a run, or not below `passed`. Runs do not touch, and there are at most
//! [`MOST`]: where there would be more, the highest one is given up and will be searched for again; or not kept at first, by a search
//! that only passes it on its way to a longer one, and that has to end.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::mutant::mutant;
use crate::rule::Rules;

/// Most runs kept: some 3 MiB.
const MOST: usize = 1 << 16;

#[derive(Clone, Debug, Default)]
pub(crate) struct Free {
    /// Start to end.
    runs: BTreeMap<u64, u64>,
    searched: u64,
    /// The lowest cluster that was passed and not kept.
    passed: Option<u64>,
    rules: Rules,
}

impl Free {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// From here on nothing is known.
    pub(crate) fn searched(&self) -> u64 {
        self.searched
    }

    /// Everything below `cluster` that is not in a run is in use.
    pub(crate) fn search_reached(&mut self, cluster: u64) {
        self.searched = cluster;
    }

    /// Passes free clusters that a search has found and that are too few for it.
    pub(crate) fn pass(&mut self, run: Range<u64>) {
        self.searched = run.end;
        let is_full = self.runs.len() >= MOST;
        if is_full && self.runs.last_key_value().is_none_or(|(_, &end)| end != run.start) {
            self.passed = self.passed.or(Some(run.start));
        } else {
            run.for_each(|cluster| self.insert(cluster));
        }
    }

    /// Goes back to where free clusters were passed and not kept, if they were.
    pub(crate) fn go_back(&mut self) {
        if let Some(passed) = self.passed.take() {
            self.searched = self.searched.min(passed);
            self.runs.split_off(&self.searched);
        }
    }

    /// Forgets the highest run if nothing is between it and what was not searched yet, so that it is found as one with that.
    pub(crate) fn forget_last(&mut self) {
        if let Some((&start, &end)) = self.runs.last_key_value()
            && end == self.searched
        {
            self.runs.pop_last();
            self.searched = start;
        }
    }

    /// The lowest run.
    pub(crate) fn first(&self) -> Option<Range<u64>> {
        self.runs.first_key_value().map(|(&start, &end)| start..end)
    }

    /// Adds a cluster that has become free.
    pub(crate) fn insert(&mut self, cluster: u64) {
        if cluster >= self.searched {
            return;
        }
        let (mut start, mut end) = (cluster, cluster + 1);
        if let Some((&before, &stop)) = self.runs.range(..=cluster).next_back() {
            if stop > cluster {
                return;
            }
            if stop == cluster {
                start = before;
            }
        }
        if let Some(stop) = self.runs.remove(&end) {
            end = mutant!(self.rules, FreeMergeLosesNext => end; stop);
        }
        self.runs.insert(start, end);
        self.check_around(start);
        if self.runs.len() > MOST
            && let Some((start, _)) = self.runs.pop_last()
        {
            self.searched = start;
        }
    }

    /// The runs that begin at `cluster` or later.
    pub(crate) fn runs_from(&self, cluster: u64) -> impl Iterator<Item = Range<u64>> {
        self.runs.range(cluster..).map(|(&start, &end)| start..end)
    }

    /// The run that begins at `cluster`.
    pub(crate) fn run_at(&self, cluster: u64) -> Option<Range<u64>> {
        self.runs.get(&cluster).map(|&end| cluster..end)
    }

    /// Takes so many clusters out of the run that begins at `start`, from there on.
    pub(crate) fn take(&mut self, start: u64, count: u64) {
        if let Some(end) = self.runs.remove(&start)
            && start + count < end
        {
            let taken = mutant!(self.rules, RunKeepsTakenCluster => count - 1; count);
            self.runs.insert(start + taken, end);
            self.check_around(start + taken);
        }
    }

    /// The run that begins at `start` is below what was searched, and does not touch its neighbours.
    fn check_around(&self, start: u64) {
        let apart = || {
            let end = self.runs[&start];
            let before = self.runs.range(..start).next_back().is_none_or(|(_, &stop)| stop < start);
            let after = self.runs.range(end..).next().is_none_or(|(&next, _)| next > end);
            start < end && before && after
        };
        debug_assert!(!self.rules.are_whole() || apart(), "runs around {start} touch");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use quickcheck::quickcheck;

    use super::{Free, MOST};

    quickcheck! {
        /// Clusters that are added and taken are those of a plain set, lowest first.
        fn runs_are_a_set(steps: Vec<(bool, u8)>) -> bool {
            let mut free = Free::default();
            free.search_reached(200);
            let mut set = BTreeSet::new();
            steps.into_iter().all(|(add, number)| {
                if add {
                    free.insert(number.into());
                    if number < 200 {
                        set.insert(u64::from(number));
                    }
                } else if let Some(run) = free.first() {
                    let count = (u64::from(number) % (run.end - run.start)) + 1;
                    free.take(run.start, count);
                    (run.start..run.start + count).for_each(|cluster| assert!(set.remove(&cluster)));
                }
                let runs: Vec<u64> = free.runs.iter().flat_map(|(&start, &end)| start..end).collect();
                let apart = free.runs.iter().zip(free.runs.keys().skip(1));
                runs == set.iter().copied().collect::<Vec<_>>()
                    && apart.into_iter().all(|((_, end), next)| end < next)
            })
        }
    }

    /// Goal: what a search passes is kept, or found by going back, and passing ends. Method: as many runs as are kept, and one more.
    #[test]
    fn what_was_passed_is_found_again() {
        let mut free = Free::default();
        let most = MOST as u64;
        (0..=most).for_each(|index| free.pass(3 * index..3 * index + 2));
        assert_eq!((free.runs.len(), free.searched()), (MOST, 3 * most + 2));
        // What continues the last one needs no room.
        free.pass(3 * most - 1..3 * most);
        assert_eq!(free.run_at(3 * (most - 1)), Some(3 * (most - 1)..3 * most));
        free.search_reached(3 * most + 100);
        free.go_back();
        assert_eq!((free.runs.len(), free.searched()), (MOST, 3 * most));
        free.search_reached(3 * most + 100);
        free.go_back();
        assert_eq!(free.searched(), 3 * most + 100, "there is nothing to go back for");
        assert_eq!(free.runs_from(4).next(), Some(6..8));
        free.take(6, 1);
        assert_eq!((free.run_at(6), free.run_at(7)), (None, Some(7..8)));
    }

    #[test]
    fn what_is_too_much_is_searched_for_again() {
        let mut free = Free::default();
        let most = MOST as u64;
        free.search_reached(2 * most + 10);
        (0..=most).for_each(|index| free.insert(2 * index));
        assert_eq!(free.runs.len(), MOST);
        assert_eq!(free.searched(), 2 * most);
        free.insert(2 * most + 4);
        assert_eq!(free.runs.len(), MOST, "it is above what was searched");
        assert_eq!(free.first(), Some(0..1));
    }
}
