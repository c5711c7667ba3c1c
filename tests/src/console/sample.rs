//! How long a campaign samples cases, and which: the arguments that are the same for every subject.

use std::time::Duration;

use clap::Args;
use faultfs::profile::{Profile, Robustness};

use super::names::{Refcounts, named};
use crate::campaign::{Budget, Settings};
use crate::corpus::CorpusError;
use crate::workload::{FaultKind, Scope, Shape};

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
    /// Run nothing but the case of this number, which the seed has wherever the run would end.
    #[arg(long, conflicts_with_all = ["cases", "seconds"])]
    case: Option<u64>,
    /// Exactly this many guest tasks at once.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    tasks: Option<u8>,
    /// Only eager or only lazy refcounts.
    #[arg(long, default_value = "both")]
    refcounts: Refcounts,
    /// A fault of this kind in every life.
    #[arg(long, value_parser = named::<FaultKind>(FaultKind::ALL.map(FaultKind::name)))]
    fault: Option<FaultKind>,
    /// No failing I/O, but for --fault.
    #[arg(long)]
    no_errors: bool,
    /// No requests that their caller drops, but for --fault dropped.
    #[arg(long)]
    no_drops: bool,
    /// Every case has this shape.
    #[arg(long, value_parser = named::<Shape>(Shape::ALL.map(Shape::name)))]
    shape: Option<Shape>,
}

impl Sample {
    /// The same with no failing I/O and no dropped requests.
    #[must_use]
    pub fn faultless(self) -> Self {
        Self { no_errors: true, no_drops: true, ..self }
    }

    /// The campaign with these arguments, on a device.
    ///
    /// # Errors
    /// Arguments that exclude each other.
    pub fn settings(
        &self,
        profile: Profile,
        damage: Option<Robustness>,
    ) -> Result<Settings, CorpusError> {
        let lazy = self.refcounts.lazy();
        if self.shape == Some(Shape::Version2) && lazy == Some(true) {
            let why = "images of version 2 have eager refcounts only";
            return Err(CorpusError::Case(format!("--shape version-2: {why}")));
        }
        let Self { fault, shape, no_errors, no_drops, .. } = *self;
        let tasks = self.tasks.map(usize::from);
        Ok(Settings {
            seed: self.seed,
            profile,
            damage,
            scope: Scope { lazy, tasks, fault, shape, no_errors, no_drops, ..Scope::default() },
            budget: match (self.case, self.cases) {
                (Some(number), _) => Budget::Case(number),
                (None, Some(cases)) => Budget::Cases(cases),
                (None, None) => Budget::Time(Duration::from_secs(self.seconds)),
            },
            workers: 0,
        })
    }
}
