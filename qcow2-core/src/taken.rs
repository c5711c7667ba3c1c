//! Clusters that a claim has taken and that nothing refers to yet, in runs, in the order in which they were taken.
//!
//! ```text
//!   runs:   [12..16] [40..41]                       taken:     12 13 14 15 40
//!   first:   0, with 12 and 13 referred to by now:  [14..16] [40..41]
//! ```

use std::ops::Range;

use smallvec::SmallVec;

/// Clusters taken; what refers to them takes them out, from the front.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    runs: SmallVec<[Range<u64>; 1]>,
    /// The runs before this one are used up.
    first: usize,
}

impl Taken {
    /// Adds a run.
    pub(crate) fn push(&mut self, run: Range<u64>) {
        debug_assert!(run.start < run.end, "a run has clusters");
        self.runs.push(run);
    }

    /// Takes out the first one: something refers to it.
    pub(crate) fn pop_front(&mut self) {
        if let Some(run) = self.runs.get_mut(self.first) {
            run.start += 1;
            self.first += usize::from(run.is_empty());
        }
    }

    /// Takes out all of them.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.first = 0;
    }

    /// Takes out those in a run: something refers to them.
    pub(crate) fn remove(&mut self, run: &Range<u64>) {
        let rest: Vec<u64> =
            std::mem::take(self).into_iter().filter(|cluster| !run.contains(cluster)).collect();
        rest.into_iter().for_each(|cluster| self.push(cluster..cluster + 1));
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.first == self.runs.len()
    }

    /// All of them.
    pub(crate) fn into_iter(self) -> impl Iterator<Item = u64> {
        self.runs.into_iter().skip(self.first).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::Taken;

    #[test]
    fn what_is_referred_to_goes_from_the_front() {
        let mut taken = Taken::default();
        taken.push(12..14);
        taken.push(40..42);
        for _ in 0..3 {
            assert!(!taken.is_empty());
            taken.pop_front();
        }
        taken.push(7..9);
        taken.remove(&(8..50));
        assert_eq!(taken.into_iter().collect::<Vec<_>>(), [7]);
        let mut taken = Taken::default();
        taken.push(1..2);
        taken.pop_front();
        taken.pop_front();
        assert!(taken.is_empty());
    }
}
