//! Which units have changed since when, so that a judge looks again at those only.
//!
//! Invariant: a unit whose set changed after a mark is in a range of the log behind it, or the log has started anew.

/// A moment in the life of a disk, for [`PossibleDisk::changed_since`](super::PossibleDisk::changed_since).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(pub(super) u64);

/// Ranges of units whose sets may have changed, oldest first. It forgets rather than outgrow the disk.
#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    /// Number of the first entry of `ranges`, counted from the birth of the disk.
    pub(super) start: u64,
    /// (first unit, number of units).
    pub(super) ranges: Vec<(u32, u32)>,
}

impl ChangeLog {
    #[inline]
    pub(super) fn changed(&mut self, first: u32, count: u32) {
        if count > 0 {
            self.ranges.push((first, count));
        }
    }

    #[inline]
    pub(super) fn limit(&mut self, units: u32) {
        if self.ranges.len() > units as usize + 256 {
            self.restart();
        }
    }

    pub(super) fn restart(&mut self) {
        // One more, so that a mark taken before is told apart from one taken now.
        self.start += self.ranges.len() as u64 + 1;
        self.ranges.clear();
    }

    #[inline]
    pub(super) const fn mark(&self) -> u64 {
        self.start + self.ranges.len() as u64
    }
}

impl Clone for ChangeLog {
    fn clone(&self) -> Self {
        Self { start: self.start, ranges: self.ranges.clone() }
    }

    fn clone_from(&mut self, source: &Self) {
        self.start = source.start;
        self.ranges.clone_from(&source.ranges);
    }
}
