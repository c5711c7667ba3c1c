//! What an image has done, counted: so that its cost can be held against what was asked of it, whatever the machine.

/// Counts since an image was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Work {
    /// How often the lock around the state was taken.
    pub steps: u64,
    /// What was looked at under it: metadata pages looked up, and entries of tables, queues and lists.
    pub looked_at: u64,
    /// The most that was looked at in one step.
    pub most_in_a_step: u64,
    /// The most metadata pages in memory.
    pub most_pages: u64,
}

impl Work {
    /// Counts the end of a step before which `before` had been looked at.
    pub(crate) fn end_step(&mut self, before: u64, pages: usize) {
        self.steps += 1;
        self.most_in_a_step = self.most_in_a_step.max(self.looked_at - before);
        self.most_pages = self.most_pages.max(pages as u64);
    }
}
