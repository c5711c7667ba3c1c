//! How long a campaign samples cases, and which: the arguments that are the same for every subject.

use std::time::Duration;

use clap::Args;
use faultfs::profile::{Profile, Robustness};

use crate::campaign::{Budget, Settings};
use crate::workload::Scope;

/// The arguments.
#[derive(Args)]
pub struct Sample {
    /// Seed; the same seed gives the same cases.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after this many seconds.
    #[arg(long, default_value_t = 60, conflicts_with = "cases")]
    seconds: u64,
    /// Stop after this many cases.
    #[arg(long)]
    cases: Option<u64>,
    /// Exactly this many guest tasks at once.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    tasks: Option<u8>,
}

impl Sample {
    /// The campaign with these arguments, on a device, and within `scope` as far as they do not narrow it.
    pub fn settings(&self, profile: Profile, damage: Option<Robustness>, scope: Scope) -> Settings {
        Settings {
            seed: self.seed,
            profile,
            damage,
            scope: Scope { tasks: self.tasks.map(usize::from), ..scope },
            budget: match self.cases {
                Some(cases) => Budget::Cases(cases),
                None => Budget::Time(Duration::from_secs(self.seconds)),
            },
            workers: 0,
        }
    }
}
