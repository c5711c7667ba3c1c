//! What a campaign that goes on past its findings notes for a process that goes on with it, see [`supervisor`].

use model::case::Case;

use crate::any::AnySubject;
use crate::campaign::Standing;
use crate::ended::Ended;
use crate::interrupt;
use crate::minimise::Minimised;
use crate::replay;
use crate::supervisor::{self, Notes, Run};
use crate::verdict::Verdict;

/// The notes of this process and those before it. In a process without a supervisor nobody reads them, and none are written.
pub(super) struct Journal {
    pub(super) notes: Notes,
    is_read: bool,
}

impl Journal {
    pub(super) fn new(campaign: usize) -> Self {
        let notes = supervisor::notes(campaign);
        let is_read = notes.is_some();
        let journal = Self { notes: notes.unwrap_or_default(), is_read };
        // The notes of the campaign before this one are of no use any more.
        journal.write();
        journal
    }

    /// Whether somebody reads them.
    pub(super) const fn is_read(&self) -> bool {
        self.is_read
    }

    pub(super) fn write(&self) {
        if self.is_read {
            supervisor::note(&self.notes);
        }
    }

    /// Takes in that the cases at which a process has died were run by themselves, if they were.
    pub(super) fn suspects_ran(&mut self, standing: &Standing) {
        if standing.alone.is_none() && !interrupt::asked() {
            self.notes.unexplained.extend(self.notes.suspects.take());
        }
    }

    /// Notes that what a case found is run again. Not if that ends a process.
    pub(super) fn begins(&mut self, case: u64, run: Run) -> bool {
        let is_deadly = self.notes.deadly_runs.contains(&(case, run));
        self.notes.running = (!is_deadly).then_some((case, run));
        self.write();
        !is_deadly
    }

    /// Notes that nothing is run again any more.
    pub(super) fn is_through(&mut self) {
        self.notes.running = None;
        self.write();
    }

    /// Notes what a case was shortened to; what a signal ended is not.
    pub(super) fn is_short(&mut self, case: u64, text: impl FnOnce() -> String, ended: Ended) {
        if self.is_read && ended != Ended::Interrupted {
            self.notes.short.insert(case, (text(), ended == Ended::Complete));
            self.write();
        }
    }

    /// What a process before this one shortened a case to.
    pub(super) fn shortened(&self, subject: &AnySubject, case: u64) -> Option<(Minimised, Ended)> {
        let (text, is_complete) = self.notes.short.get(&case)?;
        let short = Case::from_json("a shortened case", text).ok()?;
        let again = replay::replay_until(subject, &short, "a shortened case", &|| true).ok()?;
        let (Verdict::Reproduced, Some(trial), Some(failure)) =
            (again.verdict, again.trial, again.failure)
        else {
            return None;
        };
        let ended = if *is_complete { Ended::Complete } else { Ended::Budget };
        Some((Minimised { trial, failure }, ended))
    }
}
