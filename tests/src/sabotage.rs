//! What can be taken away from qcow2-core on purpose: a write order, or a flush.

use qcow2_core::{Barrier, Rule, Rules};

/// What is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A write order.
    Rule(Rule),
    /// A flush.
    Flush(Barrier),
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

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rule(rule) => rule.name(),
            Self::Flush(barrier) => barrier.name(),
        }
    }

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|target| target.name() == name)
    }

    /// These rules without it.
    pub const fn taken_from(self, rules: Rules) -> Rules {
        match self {
            Self::Rule(rule) => rules.without(rule),
            Self::Flush(barrier) => rules.without_flush(barrier),
        }
    }
}
