//! The smallest set of losses with which a trial still fails in the same way.
//!
//! Everything is kept but what is in the set, and the set is 1-minimal: keeping any one of its members too, the failure is
//! gone. Each was tried.

use faultfs::profile::Profile;

use crate::any::AnySubject;
use crate::minimise::Signature;
use crate::recover::Failure;
use crate::trial::{self, Outcome, Survivors, Trial};

/// A trial that loses no more than it must.
pub(super) struct Smallest {
    /// The trial, its choices written down.
    pub(super) trial: Trial,
    /// What running it showed.
    pub(super) outcome: Outcome,
    /// The life that fails.
    pub(super) life: usize,
    /// How it fails.
    pub(super) failure: Failure,
}

/// Keeps whatever may be kept. None if the trial does not fail in the way of `failure`.
pub(super) fn smallest(subject: &AnySubject, trial: &Trial, failure: &Failure) -> Option<Smallest> {
    let wanted = Signature::of(failure);
    let fails = |trial: &Trial| -> Option<Smallest> {
        let mut outcome = trial::run(subject, trial).ok()?;
        let (life, failure) = outcome.failure.take().filter(|(_, other)| wanted.matches(other))?;
        Some(Smallest { trial: trial.clone(), outcome, life, failure })
    };
    let mut best = fails(trial)?;
    'again: loop {
        for life in 0..=best.life {
            let choices = best.outcome.lives[life].choices.clone();
            let lost = (0..choices.len()).rev().filter(|at| choices[*at] != 0);
            for at in lost {
                // Under these profiles a choice says how many of the last are lost.
                let counts = matches!(trial.profile, Profile::Prefix | Profile::Epoch);
                let one_less = (counts && choices[at] > 1).then(|| choices[at] - 1);
                for less in [0].into_iter().chain(one_less) {
                    let mut fewer = best.trial.clone();
                    let mut choices = choices.clone();
                    choices[at] = less;
                    fewer.lives[life].leaf = Survivors::Choices(choices);
                    if let Some(smaller) = fails(&fewer) {
                        best = smaller;
                        continue 'again;
                    }
                }
            }
        }
        return Some(best);
    }
}

#[cfg(test)]
mod tests {
    use super::smallest;
    use crate::any::AnySubject;
    use crate::minimise::Signature;
    use crate::report::all_without_witness;
    use crate::trial::{self, Survivors};

    /// Goal: losses that do not matter are kept, and one that does is not. Method: crash states of a failing moment at random,
    /// of which some lose more than they must; of the set that is left, each is kept in turn, and the failure is gone.
    #[test]
    fn what_is_left_cannot_be_left_out() {
        let mut spared = 0;
        for (name, broken, exact) in all_without_witness() {
            for seed in 0..40 {
                let mut wasteful = exact.clone();
                wasteful.lives[0].leaf = Survivors::Seed(seed);
                let outcome = trial::run(&broken, &wasteful).expect("it is feasible");
                let Some((0, failure)) = outcome.failure else { continue };
                let found = smallest(&AnySubject::of(&broken), &wasteful, &failure)
                    .expect("it fails again");
                let count = |choices: &[u32]| choices.iter().filter(|&&taken| taken != 0).count();
                let choices = &found.outcome.lives[0].choices;
                spared += count(&outcome.lives[0].choices) - count(choices);
                for at in (0..choices.len()).filter(|&at| choices[at] != 0) {
                    let mut fewer = found.trial.clone();
                    let mut choices = choices.clone();
                    choices[at] = 0;
                    fewer.lives[0].leaf = Survivors::Choices(choices);
                    let outcome = trial::run(&broken, &fewer).expect("it is feasible");
                    let other = outcome.failure.map(|(_, other)| other);
                    let same = other.is_some_and(|other| Signature::of(&failure).matches(&other));
                    assert!(!same, "{name}, seed {seed}: choice {at} is not needed");
                }
            }
        }
        assert!(spared > 0, "no state lost more than it had to");
    }
}
