//! What replaying a case showed, and what that rests on.

use std::fmt;

use crate::recover::Failure;
use crate::trial::Trial;

/// What replaying a case showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It fails as the case says.
    Reproduced,
    /// It was run as the case says, and passes.
    Fixed,
    /// The moment of the crash is not there any more; every moment of the life was tried and passes.
    Drifted,
    /// It could not be run, because something it needs does not exist here.
    NotMeasured,
    /// It failed in another way than the case says, and not by I/O and answers known to be the same: the code is another one.
    OtherFailure,
    /// What is known to be the same I/O and the same answers is judged otherwise than the case says.
    HarnessBroken,
}

impl Verdict {
    /// The name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::Fixed => "fixed",
            Self::Drifted => "drifted",
            Self::NotMeasured => "not-measured",
            Self::OtherFailure => "other-failure",
            Self::HarnessBroken => "harness-broken",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which way of finding a case again the verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Event numbers and choices; the trace is the one in the file.
    Exact,
    /// Operations and labels.
    Semantic,
    /// A search of all moments.
    Searched,
}

impl Basis {
    /// The name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Semantic => "semantic",
            Self::Searched => "searched",
        }
    }
}

/// A replay of one case.
#[derive(Debug)]
pub struct Replay {
    /// The verdict.
    pub verdict: Verdict,
    /// What it rests on.
    pub basis: Basis,
    /// What was seen.
    pub failure: Option<Failure>,
    /// The trial in which it was seen; none if that was no trial.
    pub trial: Option<Trial>,
}
