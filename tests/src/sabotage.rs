//! What can be taken away from qcow2-core on purpose, a write order or a flush, and what can be put into it: a mistake.

use qcow2_core::{Barrier, Mutant, Rule, Rules};

/// What is taken away, or put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A write order.
    Rule(Rule),
    /// A flush.
    Flush(Barrier),
    /// A mistake, put in.
    Mutant(Mutant),
}

impl Target {
    /// Every write order and every flush.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::rules().chain(Self::flushes())
    }

    /// Every write order.
    pub fn rules() -> impl Iterator<Item = Self> {
        Rule::ALL.into_iter().map(Self::Rule)
    }

    /// Every flush.
    pub fn flushes() -> impl Iterator<Item = Self> {
        Barrier::ALL.into_iter().map(Self::Flush)
    }

    /// Every mistake that can be put in.
    pub fn mutants() -> impl Iterator<Item = Self> {
        Mutant::ALL.iter().copied().map(Self::Mutant)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rule(rule) => rule.name(),
            Self::Flush(barrier) => barrier.name(),
            Self::Mutant(mutant) => mutant.name(),
        }
    }

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().chain(Self::mutants()).find(|target| target.name() == name)
    }

    /// These rules without it, or with the mistake.
    pub const fn taken_from(self, rules: Rules) -> Rules {
        match self {
            Self::Rule(rule) => rules.without(rule),
            Self::Flush(barrier) => rules.without_flush(barrier),
            Self::Mutant(mutant) => rules.with_mutant(mutant),
        }
    }
}
