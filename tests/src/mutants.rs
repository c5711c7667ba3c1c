//! Putting one mistake at a time into qcow2-core, to see whether the harness notices.
//!
//! Random campaigns come first, on several seeds. What they miss is looked for in every small workload. A mistake that neither
//! notices stays in the list: it shows what no workload draws, or what nobody promised.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faultfs::profile::Profile;
use qcow2_core::{Mutant, Rules};
use serde::{Deserialize, Serialize};

use crate::attack::{Attack, Strategy, attack_on, explored};
use crate::campaign::{self, Budget, Settings};
use crate::corpus::CorpusError;
use crate::recover::Failure;
use crate::sabotage::Target;
use crate::subject::Qcow2Core;
use crate::workload::{FaultKind, Scope, Shape};

/// How long to look for one mutant.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Seed of the first campaign.
    pub seed: u64,
    /// Campaigns, with different seeds.
    pub runs: u64,
    /// Crash states in each campaign.
    pub states: u64,
    /// Time for each campaign, and for the small workloads.
    pub limit: Duration,
}

/// Who noticed a mutant.
#[derive(Clone, Debug)]
pub struct Noticed {
    /// The properties that did not hold, and how.
    pub by: Vec<String>,
    /// Whether random cases did, or small workloads.
    pub strategy: Strategy,
}

/// What came of looking for one mutant.
#[derive(Clone, Debug)]
pub struct MutantOutcome {
    /// Who noticed it, if anybody.
    pub noticed: Option<Noticed>,
    /// Crash states until then, the median of all campaigns; without that, all that were judged.
    pub states: u64,
    /// Seconds in all.
    pub seconds: f64,
}

/// What the random cases for a mutant are to have, where it takes something rare.
fn scope_for(mutant: Mutant) -> Scope {
    let fault = |kind| Scope { fault: Some(kind), ..Scope::default() };
    let shape = |shape| Scope { shape: Some(shape), ..Scope::default() };
    match mutant {
        Mutant::ReaderOffByOne | Mutant::DirtyBelievedTooEarly => {
            Scope { contended: true, ..Scope::default() }
        }
        Mutant::DroppedFlushForgotten => fault(FaultKind::Dropped),
        Mutant::FlushBesideThrough => {
            Scope { tasks: Some(4), ..fault(FaultKind::WriteThroughFailed) }
        }
        Mutant::GenerousLengthRemembered => fault(FaultKind::NoSpace),
        Mutant::EvictedStampLost
        | Mutant::ReloadTakenDurable
        | Mutant::L1NotLookedAt
        | Mutant::StalePageLoaded => shape(Shape::Eviction),
        Mutant::DequeuedBeforeLoaded => shape(Shape::Widths),
        Mutant::SlotOffNotAwaited => {
            Scope { shape: Some(Shape::Passphrases), ..fault(FaultKind::Dropped) }
        }
        Mutant::KeyMaterialKept | Mutant::AddedOverAnother | Mutant::OneSlotRemoved => {
            shape(Shape::Passphrases)
        }
        Mutant::TailBesideDiscard => Scope { contended: true, ..shape(Shape::Compressing) },
        Mutant::ForgetsFirstPageOnly | Mutant::OldL1NotAwaited => shape(Shape::Growing),
        _ => Scope::default(),
    }
}

/// Looks for `mutant`.
pub fn look_for(mutant: Mutant, effort: &Effort) -> MutantOutcome {
    #[expect(clippy::disallowed_methods, reason = "seconds to kill are a figure, not an input")]
    let start = Instant::now();
    let (profile, others): (_, &[Target]) = match attack_on(Target::Mutant(mutant)).0 {
        Attack::Workloads(profile, others) => (profile, others),
        _ => (Profile::TornLength, &[]),
    };
    let rules = Rules::all().with_mutant(mutant);
    let rules = others.iter().fold(rules, |rules, other| other.taken_from(rules));
    // What is broken besides is harmless only while no growth of the file fails.
    let plain = !others.is_empty();
    let scope = Scope { no_errors: plain, no_drops: plain, ..scope_for(mutant) };
    let campaign = |scope: Scope, run: u64| {
        random(rules, &settings(profile, scope, effort, effort.seed + run))
    };
    let (mut by, mut kills) = (Vec::new(), Vec::new());
    for run in 0..effort.runs {
        let (killer, states) = campaign(scope, run);
        kills.push(states);
        match killer {
            Some(killer) if !by.contains(&killer) => by.push(killer),
            // One that escapes the first campaign is not worth the others.
            None if by.is_empty() => break,
            _ => {}
        }
    }
    kills.sort_unstable();
    let mut states = kills[kills.len() / 2];
    let mut strategy = Strategy::Random;
    if by.is_empty() {
        strategy = Strategy::Exhaustive;
        let explored = guarded(|| explored(rules, profile, effort.limit));
        let (killer, more) = match explored {
            Some((failure, states)) => (failure.as_ref().map(killer_of), states),
            None => (Some(PANIC.to_owned()), 0),
        };
        states += more;
        by.extend(killer);
    }
    let noticed = (!by.is_empty()).then_some(Noticed { by, strategy });
    MutantOutcome { noticed, states, seconds: start.elapsed().as_secs_f64() }
}

const PANIC: &str = "panic";

/// What does not come back without a panic gives nothing.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

fn killer_of(failure: &Failure) -> String {
    format!("{} {}", failure.violation.property, failure.violation.kind)
}

fn settings(profile: Profile, scope: Scope, effort: &Effort, seed: u64) -> Settings {
    let budget = Budget::States(effort.states, effort.limit);
    Settings { seed, profile, damage: None, scope, budget, workers: 1 }
}

/// One campaign: what noticed, and how many crash states were judged until then.
fn random(rules: Rules, settings: &Settings) -> (Option<String>, u64) {
    // Of a campaign that panics nothing else is left.
    let seen = AtomicU64::new(0);
    let report = guarded(|| {
        campaign::run(&Qcow2Core { rules }, settings, |figures| {
            seen.store(figures.states, Ordering::Relaxed);
        })
    });
    match report {
        Some(report) => {
            let killer = report.found.as_ref().map(|found| killer_of(&found.failure));
            (killer, report.figures.states)
        }
        None => (Some(PANIC.to_owned()), seen.into_inner()),
    }
}

/// What is kept of the outcomes: mutant to line.
pub type Kept = BTreeMap<String, Line>;

/// Reads what is kept.
///
/// # Errors
/// If it cannot be read.
pub fn load(path: &Path) -> Result<Kept, CorpusError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| CorpusError::Io { path: path.to_owned(), source })?;
    serde_json::from_str(&text)
        .map_err(|error| CorpusError::Case(format!("{}: {error}", path.display())))
}

/// What is kept of one outcome.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// The part of the library that the mutant is in.
    pub area: String,
    /// Whether random cases did not, but small workloads.
    pub exhaustive: bool,
    /// What noticed it; empty if nothing did.
    pub noticed: Vec<String>,
    /// Median of the crash states until then.
    pub states: u64,
}

impl Line {
    /// What to keep of an outcome.
    pub fn of(mutant: Mutant, outcome: &MutantOutcome) -> Self {
        let noticed = outcome.noticed.as_ref();
        Self {
            area: mutant.area().name().to_owned(),
            noticed: noticed.map(|noticed| noticed.by.clone()).unwrap_or_default(),
            exhaustive: noticed.is_some_and(|noticed| noticed.strategy == Strategy::Exhaustive),
            states: outcome.states,
        }
    }
}
