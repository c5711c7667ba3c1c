//! References per host cluster, and the clusters that hold tables.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::format::entry::L2Entry;
use crate::format::header::Header;

/// Clusters whose references are counted in an array, which takes 64 MiB. A file can claim any length and hold nothing;
/// what lies further up costs memory by what refers to it.
const DENSE_CLUSTERS: usize = 1 << 24;

/// References per host cluster, wherever they point.
#[derive(Clone, Debug, Default)]
pub(super) struct References {
    dense: Vec<u32>,
    sparse: BTreeMap<u64, u32>,
}

impl References {
    pub(super) fn new(clusters: u64) -> Self {
        let clusters = usize::try_from(clusters).unwrap_or(usize::MAX).min(DENSE_CLUSTERS);
        Self { dense: vec![0; clusters], sparse: BTreeMap::new() }
    }

    fn slot(&mut self, cluster: u64) -> &mut u32 {
        match usize::try_from(cluster).ok().filter(|&index| index < self.dense.len()) {
            Some(index) => &mut self.dense[index],
            None => self.sparse.entry(cluster).or_default(),
        }
    }

    pub(super) fn add(&mut self, cluster: u64, count: u32) {
        let slot = self.slot(cluster);
        *slot = slot.saturating_add(count);
    }

    pub(super) fn remove(&mut self, cluster: u64) {
        let slot = self.slot(cluster);
        *slot = slot.saturating_sub(1);
    }

    pub(super) fn get(&self, cluster: u64) -> u64 {
        let dense = usize::try_from(cluster).ok().and_then(|index| self.dense.get(index));
        u64::from(dense.or_else(|| self.sparse.get(&cluster)).copied().unwrap_or(0))
    }

    /// Whether no cluster of a range, counted from `first`, has references.
    pub(super) fn none(&self, first: u64, range: Range<usize>) -> bool {
        let (from, to) = (first + range.start as u64, first + range.end as u64);
        let index = |cluster| usize::try_from(cluster).unwrap_or(usize::MAX).min(self.dense.len());
        self.dense[index(from)..index(to)].iter().fold(0, |all, count| all | count) == 0
            && self.sparse.range(from..to).next().is_none()
    }

    /// An L2 entry with its COPIED bit as the references say; one that makes no sense is left alone.
    pub(super) fn with_right_copied(&self, header: &Header, entry: L2Entry) -> L2Entry {
        if entry.decode(header.cluster_bits, header.version, 0).is_err() {
            return entry;
        }
        let single = !entry.is_compressed() && self.to(entry.host(), header) == 1;
        entry.with_copied(single)
    }

    /// References to the cluster at a host offset that an entry holds, where 0 means that it points nowhere.
    pub(super) fn to(&self, host: u64, header: &Header) -> u64 {
        if host == 0 { 0 } else { self.get(host >> header.cluster_bits) }
    }

    /// The clusters with references, in order.
    pub(super) fn used(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> {
        let dense = self.dense.iter().enumerate().map(|(index, &count)| (index as u64, count));
        dense
            .chain(self.sparse.iter().map(|(&cluster, &count)| (cluster, count)))
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
