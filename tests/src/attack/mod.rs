//! Breaking one write order, or leaving out one flush, on purpose: to see whether the harness notices.
//!
//! Each is attacked in two ways. *Random*: a campaign. *Exhaustive*: every power cut in every workload of one request, then of
//! two, then of three, from every initial image, every pair of requests at once, and races. Some need more than that, and say why:
//! one that others cover up is broken together with these, under a profile of the device in which *their* absence alone does
//! no harm; and some belong to verbs that neither contains, such as creating an image, so every crash state of those is
//! looked at: a file each, over what `crash` has for all.

mod crash;
mod create;
mod grow;
mod open;
mod rename;
mod repair;
mod separate;
mod write;

pub use separate::{Room, separate};

use std::time::{Duration, Instant};

use faultfs::profile::Profile;
use model::build::Initial;
use model::op::{DataFile, Encryption};
use qcow2_core::{Barrier, Mutant, Rule, Rules};

use crate::campaign::{self, Budget, Found, Settings};
use crate::explore::{
    self, AtOnce,
    alphabet::{Symbol, initials, worlds},
};
use crate::recover::Failure;
use crate::sabotage::Target;
use crate::subject::Qcow2Core;
use crate::workload::{Scope, Shape};

/// How to look for the damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// A random campaign.
    Random,
    /// Every power cut in every small workload.
    Exhaustive,
}

/// How a target is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// By workloads, under this profile, with these taken away too.
    Workloads(Profile, &'static [Target]),
    /// By random workloads only: it takes a request that is dropped or an I/O that fails.
    Campaign,
    /// By every crash state of creating an image.
    Create,
    /// By every crash state of repairing a damaged image.
    RepairDamaged,
    /// By every crash state of repairing damaged images that nothing can mark dirty, those of version 2.
    RepairUnmarked,
    /// By random workloads, and by every crash state of opening an image that promises what this implementation does not know,
    /// and writing to it.
    OpenPromising,
    /// By every crash state of rebuilding what somebody left without flushing it, on a device with no room for more.
    RebuildInPlace,
    /// By every crash state of a write that a damaged image leads to a table.
    WriteOverTable,
    /// By random workloads, and by every crash state of growing a disk past whose end something was left.
    GrowOverLeftovers,
    /// By every crash state of an image that comes to name another layer.
    Rename,
}

/// How `target` is attacked, and why not by plain workloads, where it is not.
pub const fn attack_on(target: Target) -> (Attack, &'static str) {
    match target {
        Target::Rule(Rule::DirtyBeforeUncounted)
        | Target::Flush(Barrier::DirtyBit)
        | Target::Mutant(Mutant::DirtyBelievedTooEarly) => (
            Attack::Workloads(Profile::Torn, &[Target::Rule(Rule::LengthBeforeReference)]),
            "the first allocation of a session grows the file, and the flush for the length covers the dirty bit too; \
             under torn the length never lags, so only the dirty bit is missing",
        ),
        Target::Rule(Rule::HeaderLast | Rule::OldHeaderFirst | Rule::DataFileFirst)
        | Target::Flush(
            Barrier::CreateOverOld
            | Barrier::CreateDataFile
            | Barrier::CreateBeforeHeader
            | Barrier::Create,
        ) => (Attack::Create, "workloads create no images"),
        Target::Rule(Rule::DirtyBeforeRepair) | Target::Flush(Barrier::RepairDirtyBit) => (
            Attack::RepairDamaged,
            "half a repair of a clean image leaks at most; it matters where refcounts were too low before",
        ),
        Target::Rule(Rule::CountsBeforeCopied)
        | Target::Flush(Barrier::RepairReferences | Barrier::RepairCounts) => (
            Attack::RepairUnmarked,
            "it takes an image of version 2 that is damaged, or whose last writer did not flush what it dropped",
        ),
        Target::Rule(Rule::AutoclearFirst) | Target::Flush(Barrier::Autoclear) => (
            Attack::OpenPromising,
            "workloads begin with the one promise of a feature that the judge knows, not with those that nobody knows",
        ),
        Target::Flush(Barrier::RepairReuse) => (
            Attack::RebuildInPlace,
            "recovery follows a power cut, which leaves nothing unflushed, and has room to grow",
        ),
        Target::Rule(Rule::CorruptBeforeError) | Target::Flush(Barrier::CorruptBit) => {
            (Attack::WriteOverTable, "no workload begins with an image whose data lie over a table")
        }
        Target::Rule(Rule::NameBeforeHeader | Rule::CopiedBeforeRename)
        | Target::Flush(Barrier::BackingName | Barrier::BackingSwitch) => {
            (Attack::Rename, "no request of a guest changes what an image says of its layer")
        }
        Target::Rule(Rule::NothingBeforeSize) | Target::Flush(Barrier::GrowthCleared) => {
            (Attack::GrowOverLeftovers, "it takes a growth to where something was left")
        }
        Target::Rule(
            Rule::OrphansBeforeReuse | Rule::SettleBeforeRetry | Rule::FailedFlushIsFinal,
        )
        | Target::Flush(Barrier::HeaderRestored | Barrier::KeySlotsRead) => {
            (Attack::Campaign, "it takes a request that is dropped, or an I/O that fails")
        }
        _ => (Attack::Workloads(Profile::TornLength, &[]), ""),
    }
}

/// Whether it is about the passphrases that open an image, which seldom change.
const fn of_passphrases(target: Target) -> bool {
    matches!(
        target,
        Target::Rule(Rule::KeyMaterialFirst | Rule::SlotBeforeKeyMaterial)
            | Target::Flush(
                Barrier::KeySlotsRead
                    | Barrier::KeySlotOff
                    | Barrier::KeyMaterial
                    | Barrier::KeyChange
            )
    )
}

/// What an attack led to.
#[derive(Debug)]
pub struct AttackOutcome {
    /// What was seen, if anything.
    pub failure: Option<Failure>,
    /// The way to it, where a campaign found it.
    pub found: Option<Found>,
    /// Crash states judged until then.
    pub states: u64,
    /// Seconds until then.
    pub seconds: f64,
}

/// Attacks the image without `target`, for at most `limit`; with all of it in force if `broken` is false. None where that
/// strategy does not apply.
pub fn run(
    target: Target,
    broken: bool,
    strategy: Strategy,
    seed: u64,
    limit: Duration,
) -> Option<AttackOutcome> {
    #[expect(clippy::disallowed_methods, reason = "seconds to kill are a figure, not an input")]
    let start = Instant::now();
    let (attack, _) = attack_on(target);
    let rules = if broken { target.taken_from(Rules::all()) } else { Rules::all() };
    let (failure, found, states) = match (attack, strategy) {
        (Attack::Workloads(profile, others), Strategy::Exhaustive) => {
            let rules = others.iter().fold(rules, |rules, other| other.taken_from(rules));
            let (failure, states) = explored(rules, profile, limit);
            (failure, None, states)
        }
        (
            Attack::Workloads(..)
            | Attack::Campaign
            | Attack::OpenPromising
            | Attack::GrowOverLeftovers,
            Strategy::Random,
        ) => {
            let (profile, others): (_, &[Target]) = match attack {
                Attack::Workloads(profile, others) => (profile, others),
                _ => (Profile::TornLength, &[]),
            };
            let rules = others.iter().fold(rules, |rules, other| other.taken_from(rules));
            let contended = target == Target::Rule(Rule::ReadsBeforeReuse);
            let shape = of_passphrases(target).then_some(Shape::Passphrases);
            // What is broken besides is harmless only while no growth of the file fails.
            let all = if others.is_empty() { Scope::default() } else { Scope::faultless() };
            let settings = Settings {
                seed,
                profile,
                damage: None,
                scope: Scope { contended, shape, ..all },
                budget: Budget::Time(limit),
                workers: 1,
            };
            let report = campaign::run(&Qcow2Core { rules }, &settings, |_| {});
            let failure = report.found.as_ref().map(|found| found.failure.clone());
            (failure, report.found, report.figures.states)
        }
        (Attack::Campaign, Strategy::Exhaustive) | (_, Strategy::Random) => return None,
        (verb, Strategy::Exhaustive) => {
            let (failure, states) = match verb {
                Attack::Create => create::create(rules),
                Attack::RepairDamaged => repair::repair_damaged(rules),
                Attack::RepairUnmarked => repair::repair_unmarked(rules),
                Attack::OpenPromising => open::open_promising(rules),
                Attack::RebuildInPlace => repair::rebuild_in_place(rules),
                Attack::WriteOverTable => write::write_over_table(rules),
                Attack::GrowOverLeftovers => grow::grow_over_leftovers(rules),
                Attack::Rename => rename::rename(rules),
                Attack::Workloads(..) | Attack::Campaign => unreachable!("they were above"),
            };
            (failure, None, states)
        }
    };
    Some(AttackOutcome { failure, found, states, seconds: start.elapsed().as_secs_f64() })
}

/// Explores workloads of one request, of two, races, pairs at once, and workloads of three, until something is found.
pub(crate) fn explored(rules: Rules, profile: Profile, limit: Duration) -> (Option<Failure>, u64) {
    #[expect(clippy::disallowed_methods, reason = "seconds to kill are a figure, not an input")]
    let start = Instant::now();
    let cheap: Vec<Initial> = initials()
        .into_iter()
        .filter(|initial| *initial != Initial::RefcountTableOneShort)
        .collect();
    // A full refcount table costs most: there, two requests have to do.
    let full = [Initial::RefcountTableOneShort];
    let both = [false, true];
    let all: &[Symbol] = &Symbol::ALL;
    let fragmented = |size| worlds(&[size], &both, &[Initial::Fragmented]);
    let beside = |kind| {
        let worlds = worlds(&[1024], &both, &cheap).into_iter();
        worlds.map(|world| world.beside(kind)).collect::<Vec<_>>()
    };
    let encrypted = |kind| {
        let worlds = worlds(&[1024], &both, &cheap).into_iter();
        worlds.map(|world| world.encrypted(kind)).collect::<Vec<_>>()
    };
    let stages = [
        (worlds(&[1024, 512], &both, &cheap), all, 1, None),
        (worlds(&[512], &both, &full), all, 1, None),
        (worlds(&[1024, 512], &both, &cheap), all, 2, None),
        (worlds(&[1024, 512], &both, &cheap), &Symbol::RESIZING, 2, None),
        (worlds(&[4096], &both, &cheap), &Symbol::COMPRESSING, 2, None),
        (beside(DataFile::Plain), &Symbol::DATA_FILES, 2, None),
        (beside(DataFile::Raw), &Symbol::DATA_FILES, 2, None),
        (encrypted(Encryption::Aes), all, 2, None),
        (encrypted(Encryption::Luks), &Symbol::PASSPHRASES, 2, None),
        (fragmented(512), &Symbol::RACING, 2, Some(AtOnce::Races { delays: 2 })),
        (fragmented(512), &Symbol::RACING, 3, Some(AtOnce::Races { delays: 1 })),
        (fragmented(4096), &Symbol::RACING_COMPRESSED, 2, Some(AtOnce::Races { delays: 2 })),
        (worlds(&[1024], &both, &cheap), all, 2, Some(AtOnce::Pairs { departures: 2 })),
        (worlds(&[1024, 4096], &both, &cheap), all, 3, None),
        (worlds(&[512], &both, &full), all, 2, None),
    ];
    let mut states = 0;
    for (worlds, alphabet, operations, at_once) in stages {
        let settings = explore::ExploreSettings {
            alphabet: alphabet.to_vec(),
            at_once,
            profile,
            limit: Some(limit.saturating_sub(start.elapsed())),
            workers: 1,
            ..explore::ExploreSettings::new(worlds, operations)
        };
        let report = explore::run(&Qcow2Core { rules }, &settings, |_, _, _, _| {});
        states += report.worlds.iter().map(|explored| explored.counts.leaves).sum::<u64>();
        if let Some(found) = report.found {
            return (Some(found.failure), states);
        }
        if !report.complete {
            break;
        }
    }
    (None, states)
}
