//! Who decides what a power cut leaves: with a bias drawn for each crash state, or as written down before.
//!
//! Choosing every unit by the throw of one coin hardly ever gives the states that matter, such as "all kept but one
//! cluster", so each state has a bias of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use faultfs::chooser::{Choice, Chooser};
use faultfs::rng::Rng;
use model::case::Fate;
use model::label::Label;

/// Units of a cluster of 64 KiB, for whoever does not know how large clusters are.
pub const USUAL_CLUSTER_UNITS: u32 = 128;

/// One answer, for probes and for writing down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The unit that was decided, if it was one.
    pub unit: Option<u32>,
    /// How many options there were.
    pub options: u32,
    /// Which was taken; 0 loses least.
    pub taken: u32,
}

/// Says what lies at a unit, for answers by label.
pub type Labels = Arc<dyn Fn(u32) -> Label + Send + Sync>;

enum Mode {
    /// Every option alike.
    Even(Rng),
    /// The first option, but for one in `odds`.
    Keep(Rng, u32),
    /// The last option, but for one in `odds`.
    Lose(Rng, u32),
    /// Whole clusters kept or lost, by a hash of their number.
    Clusters { salt: u64, units: u32, keep_most: bool, rng: Rng },
    /// These answers, then the first option.
    Written { answers: Vec<u32>, next: usize },
    /// Kept or lost by label.
    Labelled { keep: Vec<Label>, lose: Vec<Label>, default: Fate, labels: Labels },
}

/// A leaf chooser in several hands: the disk's, the judge's, and whoever reads the answers.
pub type SharedLeaf = Arc<Mutex<LeafChooser>>;

/// Looks at a shared chooser.
pub fn look(chooser: &SharedLeaf) -> MutexGuard<'_, LeafChooser> {
    chooser.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The chooser of one crash state; it remembers what it answered.
pub struct LeafChooser {
    mode: Mode,
    answers: Vec<Answer>,
    drifted: bool,
}

impl std::fmt::Debug for LeafChooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeafChooser").field("answers", &self.answers).finish_non_exhaustive()
    }
}

impl LeafChooser {
    /// The bias and the choices of `seed`; `cluster_units` units make a cluster.
    pub fn random(seed: u64, cluster_units: u32) -> Self {
        let mut rng = Rng::new(seed);
        let mode = match rng.below(8) {
            0 | 1 => Mode::Even(rng),
            2 => Mode::Keep(rng, 8),
            3 => Mode::Lose(rng, 8),
            4 => Mode::Keep(rng, 3),
            5 => Mode::Lose(rng, 3),
            keep => Mode::Clusters {
                salt: rng.next_u64(),
                units: cluster_units,
                keep_most: keep == 6,
                rng,
            },
        };
        Self::with(mode)
    }

    /// These answers, one for each choice, and 0 when they run out; `u32::MAX` is the option that loses most.
    pub fn written(answers: Vec<u32>) -> Self {
        Self::with(Mode::Written { answers, next: 0 })
    }

    /// Kept or lost by label.
    pub fn labelled(keep: Vec<Label>, lose: Vec<Label>, default: Fate, labels: Labels) -> Self {
        Self::with(Mode::Labelled { keep, lose, default, labels })
    }

    /// The chooser in a form that can be shared.
    pub fn share(self) -> SharedLeaf {
        Arc::new(Mutex::new(self))
    }

    fn with(mode: Mode) -> Self {
        Self { mode, answers: Vec::new(), drifted: false }
    }

    /// What was answered so far.
    pub fn answers(&self) -> &[Answer] {
        &self.answers
    }

    /// The answers as a case file keeps them.
    pub fn choices(&self) -> Vec<u32> {
        let mut choices: Vec<u32> = self.answers.iter().map(|answer| answer.taken).collect();
        while choices.last() == Some(&0) {
            choices.pop();
        }
        choices
    }

    /// Whether a written answer was no option of its choice.
    pub const fn has_drifted(&self) -> bool {
        self.drifted
    }
}

impl Chooser for LeafChooser {
    fn choose(&mut self, options: u32, what: Choice<'_>) -> u32 {
        let unit = match what {
            Choice::Unit { unit, .. } | Choice::Read { unit, .. } | Choice::Write { unit, .. } => {
                Some(unit)
            }
            _ => None,
        };
        let taken = match &mut self.mode {
            Mode::Even(rng) => rng.below(options),
            Mode::Keep(rng, odds) => {
                if rng.below(*odds) == 0 {
                    rng.below(options)
                } else {
                    0
                }
            }
            Mode::Lose(rng, odds) => {
                if rng.below(*odds) == 0 {
                    rng.below(options)
                } else {
                    options - 1
                }
            }
            Mode::Clusters { salt, units, keep_most, rng } => {
                let cluster = u64::from(unit.map_or(u32::MAX, |unit| unit / *units));
                let hash = (cluster ^ *salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                let odd = hash.is_multiple_of(4) ^ (rng.below(16) == 0);
                if odd == *keep_most { options - 1 } else { 0 }
            }
            Mode::Written { answers, next } => {
                let answer = answers.get(*next).copied().unwrap_or(0);
                *next += 1;
                self.drifted |= answer >= options && answer != u32::MAX;
                answer.min(options - 1)
            }
            Mode::Labelled { keep, lose, default, labels } => {
                let label = unit.map(|unit| labels(unit));
                let named = |list: &[Label]| {
                    label.as_ref().is_some_and(|label| list.iter().any(|name| name.covers(label)))
                };
                let fate = if named(lose) {
                    Fate::Lose
                } else if named(keep) {
                    Fate::Keep
                } else {
                    *default
                };
                if fate == Fate::Keep { 0 } else { options - 1 }
            }
        };
        self.answers.push(Answer { unit, options, taken });
        taken
    }
}
