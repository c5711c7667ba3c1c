//! References per host cluster, and the clusters that hold tables.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::format::entry::L2Entry;
use crate::format::header::Header;
use crate::format::limits;
use crate::mutant::mutant;
use crate::rule::Rules;

use super::entries::Halves;

/// Clusters whose references are counted in an array, which takes 64 MiB. A file can claim any length and hold nothing;
/// what lies further up costs memory by the runs that refer to it.
const DENSE_CLUSTERS: usize = 1 << 24;

/// References per host cluster, wherever they point.
///
/// ```text
///   0             file's end or 2^24
///   | count | count | ... |  start..end: count | start..end: count | ...
///     dense, 4 bytes each    runs of as many references each, some 40 bytes
/// ```
#[derive(Clone, Debug, Default)]
pub(super) struct References {
    dense: Vec<u32>,
    /// Start to end and count; neighbours that touch differ in their counts, and no count is 0.
    runs: BTreeMap<u64, (u64, u32)>,
}

impl References {
    pub(super) fn new(clusters: u64) -> Self {
        let clusters = usize::try_from(clusters).unwrap_or(usize::MAX).min(DENSE_CLUSTERS);
        Self { dense: vec![0; clusters], runs: BTreeMap::new() }
    }

    /// Whether a reference to the cluster may take memory that there is not.
    pub(super) fn is_full_at(&self, cluster: u64) -> bool {
        cluster >= self.dense.len() as u64 && self.runs.len() >= limits::RUNS_PAST_END
    }

    fn dense(&mut self, cluster: u64) -> Option<&mut u32> {
        self.dense.get_mut(usize::try_from(cluster).ok()?)
    }

    /// The run that a cluster is in.
    fn run(&self, cluster: u64) -> Option<(u64, u64, u32)> {
        let (&start, &(end, count)) = self.runs.range(..=cluster).next_back()?;
        (cluster < end).then_some((start, end, count))
    }

    /// Sets the count of a cluster past what is counted in an array.
    fn set(&mut self, cluster: u64, count: u32) {
        if let Some((start, end, old)) = self.run(cluster) {
            self.runs.remove(&start);
            if start < cluster {
                self.runs.insert(start, (cluster, old));
            }
            if cluster + 1 < end {
                self.runs.insert(cluster + 1, (end, old));
            }
        }
        if count == 0 {
            return;
        }
        let (mut start, mut end) = (cluster, cluster + 1);
        let before = cluster.checked_sub(1).and_then(|before| self.run(before));
        if let Some((first, _, _)) = before.filter(|&(_, _, other)| other == count) {
            start = first;
        }
        if let Some(&(last, _)) = self.runs.get(&end).filter(|&&(_, other)| other == count) {
            self.runs.remove(&end);
            end = last;
        }
        self.runs.insert(start, (end, count));
    }

    pub(super) fn add(&mut self, cluster: u64, count: u32) {
        match self.dense(cluster) {
            Some(slot) => *slot = slot.saturating_add(count),
            None => {
                let old = self.run(cluster).map_or(0, |(_, _, old)| old);
                self.set(cluster, old.saturating_add(count));
            }
        }
    }

    pub(super) fn remove(&mut self, cluster: u64) {
        match self.dense(cluster) {
            Some(slot) => *slot = slot.saturating_sub(1),
            None => {
                let old = self.run(cluster).map_or(0, |(_, _, old)| old);
                self.set(cluster, old.saturating_sub(1));
            }
        }
    }

    pub(super) fn get(&self, cluster: u64) -> u64 {
        let dense = usize::try_from(cluster).ok().and_then(|index| self.dense.get(index));
        let sparse = || self.run(cluster).map_or(0, |(_, _, count)| count);
        u64::from(dense.copied().unwrap_or_else(sparse))
    }

    /// Whether no cluster of a range, counted from `first`, has references.
    pub(super) fn none(&self, first: u64, range: Range<usize>) -> bool {
        let (from, to) = (first + range.start as u64, first + range.end as u64);
        let index = |cluster| usize::try_from(cluster).unwrap_or(usize::MAX).min(self.dense.len());
        self.dense[index(from)..index(to)].iter().fold(0, |all, count| all | count) == 0
            && self.runs.range(from..to).next().is_none()
            && self.run(from).is_none()
    }

    /// An L2 entry with its COPIED bit as the references say. One that makes no sense gets none, and keeps its own only where nobody else has
    /// what it may mean: a program that takes it for an entry would write there in place.
    pub(super) fn with_right_copied(
        &self,
        header: &Header,
        entry: Halves,
        rules: Rules,
    ) -> L2Entry {
        let first = entry.first;
        let Ok(mapping) = entry.decode(header, 0) else {
            let size = header.cluster_size();
            let mut clusters = entry
                .meant(header)
                .into_iter()
                .flat_map(|it| it.start / size..it.end.div_ceil(size));
            let shared = clusters.any(|cluster| self.get(cluster) > 1);
            let shared = mutant!(rules, SenselessStaysCopied => false; shared);
            return if shared { first.with_copied(false) } else { first };
        };
        if header.has_data_file() {
            // Each place there belongs to one guest cluster for ever.
            return first.with_copied(mapping.host().is_some());
        }
        let references = self.to(first.host(), header);
        let single = !first.is_compressed()
            && mutant!(rules, CopiedBitLeft => references >= 1; references == 1);
        first.with_copied(single)
    }

    /// References to the cluster at a host offset that an entry holds, where 0 means that it points nowhere.
    pub(super) fn to(&self, host: u64, header: &Header) -> u64 {
        if host == 0 { 0 } else { self.get(host >> header.cluster_bits) }
    }

    /// The indexes of the refcount blocks that describe clusters with references, of which each describes so many.
    pub(super) fn blocks(&self, per_block: u64) -> BTreeSet<u64> {
        let mut blocks = BTreeSet::new();
        for (cluster, _) in self.used() {
            if blocks.last() != Some(&(cluster / per_block)) {
                blocks.insert(cluster / per_block);
            }
        }
        blocks
    }

    /// The clusters with references, in order.
    pub(super) fn used(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> {
        let dense = self.dense.iter().enumerate().map(|(index, &count)| (index as u64, count));
        let runs = self.runs.iter();
        let runs = runs.flat_map(|(&start, &(end, count))| (start..end).map(move |at| (at, count)));
        dense
            .chain(runs)
            .filter(|&(_, count)| count > 0)
            .map(|(cluster, count)| (cluster, u64::from(count)))
    }
}

/// Clusters that hold tables. The L1 table alone may have so many that a set of them would cost more than the check.
pub(super) struct Metadata {
    pub(super) l1: Range<u64>,
    pub(super) others: BTreeSet<u64>,
}

impl Metadata {
    /// Whether the cluster is new here.
    pub(super) fn insert(&mut self, cluster: u64) -> bool {
        !self.l1.contains(&cluster) && self.others.insert(cluster)
    }

    pub(super) fn contains(&self, cluster: u64) -> bool {
        self.l1.contains(&cluster) || self.others.contains(&cluster)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quickcheck::quickcheck;

    use super::References;

    quickcheck! {
        /// Whatever is added and removed, in the array and past it: counts are those of a plain map, and runs are whole.
        fn counts_are_those_of_a_map(steps: Vec<(bool, u8, u8)>) -> bool {
            let mut references = References::new(8);
            let mut map: BTreeMap<u64, u64> = BTreeMap::new();
            for (add, cluster, count) in steps {
                let cluster = u64::from(cluster % 32);
                let slot = map.entry(cluster).or_default();
                if add {
                    references.add(cluster, u32::from(count % 3));
                    *slot += u64::from(count % 3);
                } else {
                    references.remove(cluster);
                    *slot = slot.saturating_sub(1);
                }
            }
            map.retain(|_, count| *count > 0);
            let runs: Vec<_> = references.runs.iter().map(|(&start, &run)| (start, run)).collect();
            let whole = |pair: &[(u64, (u64, u32))]| {
                let [(_, (end, count)), (start, (_, next))] = *pair else { return false };
                end < start || end == start && count != next
            };
            references.used().eq(map.iter().map(|(&cluster, &count)| (cluster, count)))
                && (0..40).all(|at| references.get(at) == map.get(&at).copied().unwrap_or(0))
                && (0..39).all(|at| {
                    let none = !map.contains_key(&at) && !map.contains_key(&(at + 1));
                    references.none(at, 0..2) == none
                })
                && runs.windows(2).all(whole)
        }
    }

    #[test]
    fn what_follows_each_other_is_one_run() {
        let mut references = References::new(0);
        (0..1_000_000).for_each(|cluster| references.add(cluster + 7, 1));
        assert_eq!(references.runs.len(), 1);
        assert_eq!(references.used().count(), 1_000_000);
        references.remove(100);
        assert_eq!(references.runs.len(), 2);
    }
}
