//! Who decides what the disk leaves open, and how decisions are recorded, replayed and enumerated.
//!
//! Invariant: a run is a function of the answers that its [`Chooser`] gave. So one mechanism serves random campaigns
//! ([`Random`]), replay ([`Playback`], [`Prefix`]), minimising ([`Steer`]) and proof by enumeration ([`Exhaustive`]). A
//! chooser is asked only where there are at least two options, and option 0 is always the one that loses least: the
//! newest value, the write that landed, no cut. All zeroes is thus a crash that lost nothing.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::candidate::Candidate;
use crate::rng::Rng;
use crate::values::Key;

/// What is being chosen. The options are numbered; where they are values, they are listed.
#[derive(Clone, Copy, Debug)]
pub enum Choice<'a> {
    /// Which of these values is on the medium. The unit keeps it.
    Unit {
        /// Which unit.
        unit: u32,
        /// The values, newest first.
        options: &'a [Key],
    },
    /// What a read returns of a unit with writes in flight, failed or discarded: one of `options`, newest first, or,
    /// as one option more, what is on the medium (offered where `medium` is set).
    Read {
        /// Which unit.
        unit: u32,
        /// The values that writes may have left.
        options: &'a [Key],
        /// Whether the last option is "what is on the medium".
        medium: bool,
    },
    /// Whether a whole write landed: 0 yes, 1 no.
    Write {
        /// Its first unit.
        unit: u32,
        /// How many units it has.
        count: u32,
    },
    /// How many of the writes that completed last are cut off; 0 is none.
    Prefix,
    /// How many of the barriers submitted last are not reached; 0 is none.
    Epoch,
    /// Which length the file has.
    Length {
        /// The lengths in units, longest first.
        options: &'a [u32],
    },
    /// Whether a unit is damaged: 0 no, else in which way.
    Damage {
        /// Which unit.
        unit: u32,
    },
    /// Which bit of a unit is flipped.
    Bit {
        /// Which unit.
        unit: u32,
    },
    /// Where a write landed that was meant for a unit.
    Misdirected {
        /// Which unit.
        unit: u32,
        /// It landed in one of this many.
        len: u32,
    },
    /// What happens next.
    Step {
        /// All that may.
        candidates: &'a [Candidate],
    },
}

/// Answers choices.
pub trait Chooser {
    /// One of `0 .. options`; `options` is at least 2.
    fn choose(&mut self, options: u32, what: Choice<'_>) -> u32;
}

/// Asks, unless there is nothing to choose.
///
/// # Panics
/// If the answer is not one of the options.
pub fn ask<C: Chooser + ?Sized>(chooser: &mut C, options: usize, what: Choice<'_>) -> usize {
    if options <= 1 {
        return 0;
    }
    let options = u32::try_from(options).expect("options are counted in memory");
    let taken = chooser.choose(options, what);
    assert!(taken < options, "a chooser took option {taken} of {options} at {what:?}");
    taken as usize
}

impl<C: Chooser + ?Sized> Chooser for Box<C> {
    fn choose(&mut self, options: u32, what: Choice<'_>) -> u32 {
        (**self).choose(options, what)
    }
}

/// A chooser in two hands: one that is moved into a run, one that reads it afterwards.
impl<C: Chooser + ?Sized> Chooser for Arc<Mutex<C>> {
    fn choose(&mut self, options: u32, what: Choice<'_>) -> u32 {
        self.lock().unwrap_or_else(PoisonError::into_inner).choose(options, what)
    }
}

/// Each option with the same probability.
#[derive(Clone, Debug)]
pub struct Random(Rng);

impl Random {
    /// The choices of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Rng::new(seed))
    }
}

impl Chooser for Random {
    fn choose(&mut self, options: u32, _: Choice<'_>) -> u32 {
        self.0.below(options)
    }
}

/// Always the same option, or the last one where there are fewer: `Always(0)` loses nothing, `Always(u32::MAX)` loses
/// most.
#[derive(Clone, Copy, Debug)]
pub struct Always(pub u32);

impl Chooser for Always {
    fn choose(&mut self, options: u32, _: Choice<'_>) -> u32 {
        self.0.min(options - 1)
    }
}

/// A function as a chooser: for keeping and losing by label, by bias, by hand.
#[derive(Clone, Debug)]
pub struct Steer<F>(pub F);

impl<F: FnMut(u32, Choice<'_>) -> u32> Chooser for Steer<F> {
    fn choose(&mut self, options: u32, what: Choice<'_>) -> u32 {
        (self.0)(options, what)
    }
}

/// One answered choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Taken {
    /// How many options there were.
    pub options: u32,
    /// Which one was taken.
    pub taken: u32,
}

impl From<(u32, u32)> for Taken {
    fn from((options, taken): (u32, u32)) -> Self {
        Self { options, taken }
    }
}

impl From<Taken> for (u32, u32) {
    fn from(choice: Taken) -> Self {
        (choice.options, choice.taken)
    }
}

/// Records what another chooser answers.
#[derive(Clone, Debug)]
pub struct Recording<C> {
    inner: C,
    taken: Vec<Taken>,
}

impl<C: Chooser> Recording<C> {
    /// Records `inner`.
    pub const fn new(inner: C) -> Self {
        Self { inner, taken: Vec::new() }
    }

    /// What was answered so far.
    pub fn taken(&self) -> &[Taken] {
        &self.taken
    }

    /// What was answered, and who answered.
    pub fn into_parts(self) -> (Vec<Taken>, C) {
        (self.taken, self.inner)
    }
}

impl<C: Chooser> Chooser for Recording<C> {
    fn choose(&mut self, options: u32, what: Choice<'_>) -> u32 {
        let taken = self.inner.choose(options, what);
        self.taken.push(Taken { options, taken });
        taken
    }
}

/// Some given answers, then another chooser's. An answer that is out of range becomes the last option.
#[derive(Clone, Debug)]
pub struct Prefix<C> {
    given: Vec<u32>,
    position: usize,
    then: C,
}

impl<C: Chooser> Prefix<C> {
    /// `given` first, then what `then` says.
    pub const fn new(given: Vec<u32>, then: C) -> Self {
        Self { given, position: 0, then }
    }
}

impl<C: Chooser> Chooser for Prefix<C> {
    fn choose(&mut self, options: u32, what: Choice<'_>) -> u32 {
        match self.given.get(self.position) {
            Some(&taken) => {
                self.position += 1;
                taken.min(options - 1)
            }
            None => self.then.choose(options, what),
        }
    }
}

/// Why a replay is not the run that was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Drift {
    /// More was asked than had been recorded.
    #[error("choice {index} was never recorded ({options} options)")]
    Exhausted {
        /// Which choice, counted from 0.
        index: usize,
        /// How many options it has now.
        options: u32,
    },
    /// The choice has another number of options than when it was recorded.
    #[error("choice {index} has {options} options, {recorded} were recorded")]
    Different {
        /// Which choice, counted from 0.
        index: usize,
        /// How many options it has now.
        options: u32,
        /// How many it had.
        recorded: u32,
    },
}

/// Gives recorded answers. Where the run has drifted from the record it takes option 0 and says so.
#[derive(Clone, Debug)]
pub struct Playback {
    recorded: Vec<Taken>,
    position: usize,
    drift: Option<Drift>,
}

impl Playback {
    /// The answers of a [`Recording`].
    pub const fn new(recorded: Vec<Taken>) -> Self {
        Self { recorded, position: 0, drift: None }
    }

    /// The first departure from the record.
    pub const fn drift(&self) -> Option<Drift> {
        self.drift
    }

    /// Recorded answers that were not asked for.
    pub const fn left_over(&self) -> usize {
        self.recorded.len().saturating_sub(self.position)
    }
}

impl Chooser for Playback {
    fn choose(&mut self, options: u32, _: Choice<'_>) -> u32 {
        let index = self.position;
        self.position += 1;
        let drift = match self.recorded.get(index) {
            Some(choice) if choice.options == options && choice.taken < options => {
                return choice.taken;
            }
            Some(choice) => Drift::Different { index, options, recorded: choice.options },
            None => Drift::Exhausted { index, options },
        };
        self.drift.get_or_insert(drift);
        0
    }
}

/// Every combination of answers, depth first, like an odometer whose wheels appear as they are asked for.
///
/// ```text
///   run 1: 0 0 0    run 2: 0 0 1    run 3: 0 1      run 4: 1 0 ...      the last wheel that can turn is turned,
///                                                                       those behind it are taken off
/// ```
///
/// Run, then [`advance`](Self::advance), until that returns false. The run must be a function of the answers.
#[derive(Clone, Debug, Default)]
pub struct Exhaustive {
    wheels: Vec<Taken>,
    position: usize,
    diverged: bool,
}

impl Exhaustive {
    /// Stands at the first combination.
    pub fn new() -> Self {
        Self::default()
    }

    /// Turns to the next combination; false when there is none left.
    #[must_use]
    pub fn advance(&mut self) -> bool {
        self.diverged |= self.position < self.wheels.len();
        self.wheels.truncate(self.position);
        self.position = 0;
        while let Some(wheel) = self.wheels.last_mut() {
            wheel.taken += 1;
            if wheel.taken < wheel.options {
                return true;
            }
            self.wheels.pop();
        }
        false
    }

    /// The answers of the run since the last advance.
    pub fn taken(&self) -> &[Taken] {
        &self.wheels[..self.position]
    }

    /// Whether some run asked differently after the same answers: then the enumeration proves nothing.
    pub const fn diverged(&self) -> bool {
        self.diverged
    }
}

impl Chooser for Exhaustive {
    fn choose(&mut self, options: u32, _: Choice<'_>) -> u32 {
        if self.position == self.wheels.len() {
            self.wheels.push(Taken { options, taken: 0 });
        }
        let wheel = &mut self.wheels[self.position];
        if wheel.options != options {
            self.diverged = true;
            *wheel = Taken { options, taken: wheel.taken.min(options - 1) };
        }
        self.position += 1;
        wheel.taken
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Always, Choice, Chooser, Drift, Exhaustive, Playback, Prefix, Random, Recording, Steer,
        Taken, ask,
    };

    fn pick(chooser: &mut impl Chooser, options: usize) -> usize {
        ask(chooser, options, Choice::Prefix)
    }

    #[test]
    fn a_single_option_is_not_asked_for() {
        let mut never = Steer(|_, _: Choice<'_>| unreachable!());
        assert_eq!(pick(&mut never, 1), 0);
        assert_eq!(pick(&mut never, 0), 0);
    }

    #[test]
    #[should_panic(expected = "took option 2 of 2")]
    fn an_answer_out_of_range_is_refused() {
        pick(&mut Steer(|options, _: Choice<'_>| options), 2);
    }

    #[test]
    fn random_reaches_every_option_and_no_other() {
        let mut chooser = Random::new(1);
        let mut picked = [0; 5];
        (0..5000).for_each(|_| picked[pick(&mut chooser, 5)] += 1);
        assert!(picked.iter().all(|count| (850..1150).contains(count)), "{picked:?}");
    }

    #[test]
    fn exhaustive_visits_every_leaf_of_an_uneven_tree_once() {
        let mut chooser = Exhaustive::new();
        let mut leaves = Vec::new();
        loop {
            let first = pick(&mut chooser, 3);
            let leaf = match first {
                0 => vec![first],
                _ => vec![first, pick(&mut chooser, first + 1)],
            };
            let taken = chooser.taken().iter().map(|choice| choice.taken as usize);
            assert_eq!(taken.collect::<Vec<_>>(), leaf);
            leaves.push(leaf);
            if !chooser.advance() {
                break;
            }
        }
        let expected: Vec<Vec<usize>> =
            vec![vec![0], vec![1, 0], vec![1, 1], vec![2, 0], vec![2, 1], vec![2, 2]];
        assert_eq!(leaves, expected);
        assert!(!chooser.diverged());
    }

    #[test]
    fn exhaustive_notices_a_run_with_another_input() {
        let mut chooser = Exhaustive::new();
        pick(&mut chooser, 2);
        pick(&mut chooser, 2);
        assert!(chooser.advance());
        pick(&mut chooser, 3);
        assert!(chooser.diverged());

        let mut shorter = Exhaustive::new();
        pick(&mut shorter, 2);
        pick(&mut shorter, 2);
        assert!(shorter.advance());
        assert!(!shorter.advance() || shorter.diverged());
        assert!(shorter.diverged());

        // What was asked before has fewer options now: the last one stands for those that are gone.
        let mut fewer = Exhaustive::new();
        pick(&mut fewer, 3);
        assert!(fewer.advance());
        assert_eq!(pick(&mut fewer, 3), 1);
        assert!(fewer.advance());
        assert_eq!(pick(&mut fewer, 2), 1);
        assert!(fewer.diverged());
    }

    #[test]
    fn a_recording_replays_and_says_when_it_no_longer_fits() {
        let mut recording = Recording::new(Random::new(1));
        let answers: Vec<usize> = (2..9).map(|options| pick(&mut recording, options)).collect();
        let (taken, _) = recording.into_parts();
        let mut replay = Playback::new(taken.clone());
        let again: Vec<usize> = (2..9).map(|options| pick(&mut replay, options)).collect();
        assert_eq!((again, replay.drift(), replay.left_over()), (answers, None, 0));
        pick(&mut replay, 2);
        assert_eq!(replay.drift(), Some(Drift::Exhausted { index: 7, options: 2 }));

        let mut other = Playback::new(taken);
        pick(&mut other, 3);
        assert_eq!(other.drift(), Some(Drift::Different { index: 0, options: 3, recorded: 2 }));
        assert_eq!(other.left_over(), 6);

        // No recording holds such an answer; a file written by hand may.
        let mut impossible = Playback::new(vec![Taken { options: 2, taken: 2 }]);
        assert_eq!(pick(&mut impossible, 2), 0);
        assert_eq!(
            impossible.drift(),
            Some(Drift::Different { index: 0, options: 2, recorded: 2 })
        );
    }

    #[test]
    fn a_prefix_is_taken_before_the_rest() {
        let mut chooser = Prefix::new(vec![1, 9], Always(0));
        assert_eq!([3, 3, 3].map(|options| pick(&mut chooser, options)), [1, 2, 0]);
    }

    #[test]
    fn taken_is_a_pair_in_json() {
        let taken = Taken { options: 3, taken: 1 };
        assert_eq!(serde_json::to_string(&taken).unwrap(), "[3,1]");
        assert_eq!(serde_json::from_str::<Taken>("[3,1]").unwrap(), taken);
    }
}
