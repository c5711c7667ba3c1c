//! What a campaign runs, and when it has done enough.

use std::time::Duration;

use faultfs::profile::{Profile, Robustness};

use crate::workload::Scope;

/// What a campaign runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seed of all cases.
    pub seed: u64,
    /// How the power fails.
    pub profile: Profile,
    /// How the medium is damaged besides; then the power fails by `torn-length`, and `robust` judges.
    pub damage: Option<Robustness>,
    /// What the cases may do.
    pub scope: Scope,
    /// When to stop.
    pub budget: Budget,
    /// Worker threads; 0 for one a core.
    pub workers: usize,
}

impl Settings {
    /// What reports call the device.
    pub const fn profile_name(&self) -> &'static str {
        match self.damage {
            Some(how) => how.name(),
            None => self.profile.name(),
        }
    }
}

/// When a campaign has done enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// After this much time.
    Time(Duration),
    /// After this many cases.
    Cases(u64),
    /// Nothing but the case of this number.
    Case(u64),
    /// After this many crash states, or after this much time.
    States(u64, Duration),
}
