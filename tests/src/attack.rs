//! Breaking one write order, or leaving out one flush, on purpose: to see whether the harness notices.
//!
//! Each is attacked in two ways. *Random*: a campaign. *Exhaustive*: every power cut in every workload of one request, then of
//! two, then of three, from every initial image, and every pair of requests at once. Some need more than that, and say why:
//! one that others cover up is broken together with these, under a profile of the device in which *their* absence alone does
//! no harm; and some belong to verbs that neither contains, such as creating an image, so every crash state of those is
//! looked at.

use std::time::{Duration, Instant};

use faultfs::chooser::{Always, Exhaustive};
use faultfs::direct::{Direct, DirectOptions};
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use model::audit::Auditor;
use model::build::{Built, Initial, build};
use model::finding::{Property, Stage};
use model::op::Geometry;
use qcow2_core::storage::{Durability, IoBuf, UNIT};
use qcow2_core::{Barrier, CreateOptions, Image, OpenOptions, Repair, Rule, Rules};

use crate::campaign::{self, Budget, Found, Settings};
use crate::evidence::DiskEvidence;
use crate::explore::{self, alphabet::worlds};
use crate::recover::{Failure, whole_image};
use crate::sabotage::Target;
use crate::subject::Qcow2Core;
use crate::trial::disk_of;
use crate::workload::Scope;

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
    /// By every crash state of opening an image that promises what this implementation does not know, and writing to it.
    OpenPromising,
}

/// How `target` is attacked, and why not by plain workloads, where it is not.
pub const fn attack_on(target: Target) -> (Attack, &'static str) {
    match target {
        Target::Rule(Rule::DirtyBeforeUncounted) | Target::Flush(Barrier::DirtyBit) => (
            Attack::Workloads(Profile::Torn, &[Target::Rule(Rule::LengthBeforeReference)]),
            "the first allocation of a session grows the file, and the flush for the length covers the dirty bit too; \
             under torn the length never lags, so only the dirty bit is missing",
        ),
        Target::Rule(Rule::HeaderLast | Rule::OldHeaderFirst)
        | Target::Flush(Barrier::CreateOverOld | Barrier::CreateBeforeHeader | Barrier::Create) => {
            (Attack::Create, "workloads create no images")
        }
        Target::Rule(Rule::DirtyBeforeRepair) | Target::Flush(Barrier::RepairDirtyBit) => (
            Attack::RepairDamaged,
            "half a repair of a clean image leaks at most; it matters where refcounts were too low before",
        ),
        Target::Flush(Barrier::Open) => (
            Attack::OpenPromising,
            "opening writes only where a feature promises what this implementation does not keep",
        ),
        Target::Rule(Rule::OrphansBeforeReuse | Rule::FailedFlushIsFinal)
        | Target::Flush(Barrier::HeaderRestored) => {
            (Attack::Campaign, "it takes a request that is dropped, or a flush that fails")
        }
        _ => (Attack::Workloads(Profile::TornLength, &[]), ""),
    }
}

/// What an attack led to.
#[derive(Debug)]
pub struct Outcome {
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
) -> Option<Outcome> {
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
        (Attack::Workloads(..) | Attack::Campaign, Strategy::Random) => {
            let (profile, others): (_, &[Target]) = match attack {
                Attack::Workloads(profile, others) => (profile, others),
                _ => (Profile::TornLength, &[]),
            };
            let rules = others.iter().fold(rules, |rules, other| other.taken_from(rules));
            let contended = target == Target::Rule(Rule::ReadsBeforeReuse);
            let settings = Settings {
                seed,
                profile,
                damage: None,
                // What is broken besides is harmless only while no growth of the file fails.
                scope: Scope { contended, faultless: !others.is_empty(), ..Scope::default() },
                budget: Budget::Time(limit),
                workers: 1,
            };
            let report = campaign::run(&Qcow2Core { rules }, &settings, |_| {});
            let failure = report.found.as_ref().map(|found| found.failure.clone());
            (failure, report.found, report.figures.states)
        }
        (Attack::Campaign, Strategy::Exhaustive)
        | (Attack::Create | Attack::RepairDamaged | Attack::OpenPromising, Strategy::Random) => {
            return None;
        }
        (Attack::Create, Strategy::Exhaustive) => {
            let (failure, states) = create(rules);
            (failure, None, states)
        }
        (Attack::RepairDamaged, Strategy::Exhaustive) => {
            let (failure, states) = repair_damaged(rules);
            (failure, None, states)
        }
        (Attack::OpenPromising, Strategy::Exhaustive) => {
            let (failure, states) = open_promising(rules);
            (failure, None, states)
        }
    };
    Some(Outcome { failure, found, states, seconds: start.elapsed().as_secs_f64() })
}

/// Explores workloads of one request, of two, pairs at once, and workloads of three, until something is found.
fn explored(rules: Rules, profile: Profile, limit: Duration) -> (Option<Failure>, u64) {
    #[expect(clippy::disallowed_methods, reason = "seconds to kill are a figure, not an input")]
    let start = Instant::now();
    let cheap: Vec<Initial> = Initial::ALL
        .into_iter()
        .filter(|initial| *initial != Initial::RefcountTableOneShort)
        .collect();
    // A full refcount table costs thirty times as much to audit: there, two requests have to do.
    let full = [Initial::RefcountTableOneShort];
    let both = [false, true];
    let stages = [
        (worlds(&[1024, 512], &both, &cheap), 1, None),
        (worlds(&[512], &both, &full), 1, None),
        (worlds(&[1024, 512], &both, &cheap), 2, None),
        (worlds(&[1024], &both, &cheap), 2, Some(2)),
        (worlds(&[1024, 4096], &both, &cheap), 3, None),
        (worlds(&[512], &both, &full), 2, None),
    ];
    let mut states = 0;
    for (worlds, operations, departures) in stages {
        let settings = explore::Settings {
            worlds,
            operations,
            departures,
            depth: u32::MAX,
            profile,
            shard: (0, 1),
            limit: Some(limit.saturating_sub(start.elapsed())),
            workers: 1,
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

/// Runs `verb` on copies of `disk` with a power cut at each of its updates and flushes in turn, and after its end, and shows
/// `judge` every state that each leaves, and whether the verb had ended. Returns the first failure and the number of states.
fn every_crash<T>(
    disk: &PossibleDisk,
    verb: impl Fn(Direct<Exhaustive>) -> Option<T>,
    judge: impl Fn(&mut PossibleDisk, &mut Exhaustive, bool) -> Result<(), Failure>,
) -> (Option<Failure>, u64) {
    let mut states = 0;
    for crash_at in 0.. {
        let mut chooser = Exhaustive::new();
        loop {
            let options = DirectOptions { crash_at: Some(crash_at), ..DirectOptions::default() };
            let direct = Direct::with_options(disk.clone(), chooser, options);
            let ended = verb(direct.clone()).is_some();
            let remains = direct.power_off();
            chooser = remains.chooser;
            let mut crashed = remains.disk.crash(Profile::TornLength, &mut chooser);
            states += 1;
            if let Err(failure) = judge(&mut crashed, &mut chooser, ended) {
                return (Some(failure), states);
            }
            if !chooser.advance() {
                if ended {
                    return (None, states);
                }
                break;
            }
        }
    }
    unreachable!("a verb has fewer than 2^64 updates")
}

/// An image of clusters of 512 bytes, eager or lazy, with a disk of `virtual_size` bytes.
fn small(initial: Initial, virtual_size: u64, lazy_refcounts: bool) -> Built {
    let geometry =
        Geometry { version: 3, cluster_bits: 9, refcount_order: 4, virtual_size, lazy_refcounts };
    build(&geometry, initial).expect("the geometry is a small one")
}

/// Whether a crash left `before` as it was, from this unit on.
fn is_same(
    crashed: &mut PossibleDisk,
    chooser: &mut Exhaustive,
    before: &PossibleDisk,
    from: u32,
) -> bool {
    let mut before = before.clone();
    let end = crashed.extent().max(before.extent());
    (from..end).all(|unit| crashed.read(unit, chooser) == before.read(unit, &mut Always(0)))
}

/// Every crash state of opening an image with an unknown autoclear bit and writing to it: with the bit, nothing but the
/// header has changed.
fn open_promising(rules: Rules) -> (Option<Failure>, u64) {
    const AUTOCLEAR: usize = 88;
    let mut built = small(Initial::Fragmented, 16 << 10, false);
    let (_, header) = built.units.first_mut().expect("an image has a header");
    header[AUTOCLEAR] = 0x80;
    let disk = disk_of(&built);
    every_crash(
        &disk,
        |direct| {
            faultfs::direct::run(async move {
                let options = OpenOptions { rules, page_size: 512, ..OpenOptions::new() };
                let image = Image::open(direct, options).await.ok()?;
                let mut data = IoBuf::zeroed(UNIT, UNIT);
                data.fill(7);
                image.write(0, data, Durability::Cached).await.1.ok()?;
                image.flush().await.ok()
            })
        },
        |crashed, chooser, _| {
            let header = crashed.read(0, chooser);
            if disk.values().bytes(header)[AUTOCLEAR] & 0x80 == 0 {
                return Ok(());
            }
            if is_same(crashed, chooser, &disk, 1) {
                return Ok(());
            }
            let story = "changed, and still promised to be as whoever set the bit left it";
            Err(seen("stale-autoclear-bit", story.to_owned()))
        },
    )
}

/// Every crash state of creating an image where another one was: the other one, no image at all, or a valid new one; once
/// creating it has returned, the last of these. The new one is shorter than the other one, or longer.
fn create(rules: Rules) -> (Option<Failure>, u64) {
    let (failure, states) = create_of(4 << 10, rules);
    if failure.is_some() {
        return (failure, states);
    }
    let (failure, more) = create_of(64 << 20, rules);
    (failure, states + more)
}

fn create_of(size: u64, rules: Rules) -> (Option<Failure>, u64) {
    let disk = disk_of(&small(Initial::Fragmented, 8 << 10, false));
    let options = CreateOptions { cluster_bits: 9, rules, ..CreateOptions::new(size) };
    every_crash(
        &disk,
        |direct| {
            faultfs::direct::run(async move { qcow2_core::create(&direct, &options).await.ok() })
        },
        |crashed, chooser, ended| {
            let lost = || Err(seen("created-and-lost", "creating it had returned".to_owned()));
            if crashed.read(0, chooser) == faultfs::values::Key::ZERO {
                return if ended { lost() } else { Ok(()) };
            }
            let mut auditor = Auditor::default();
            let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            match report.violations(Stage::CrashedClean).next() {
                None if ended && report.header.is_some_and(|header| header.size != size) => lost(),
                None => Ok(()),
                Some((_, finding)) => Err(seen("created-half", finding.to_string())),
            }
        },
    )
}

/// Every crash state of repairing a clean image whose refcounts are too low: still as it was, or marked dirty, or repaired.
fn repair_damaged(rules: Rules) -> (Option<Failure>, u64) {
    let mut built = small(Initial::Dirty, 16 << 10, true);
    let (_, header) = built.units.first_mut().expect("an image has a header");
    header[79] &= !1; // The dirty bit: refcounts that are too low are a damage now.
    let l1 = u64::from_be_bytes(header[40..48].try_into().expect("eight bytes")) / 512;
    let table = built
        .units
        .iter_mut()
        .find(|(unit, _)| *unit == l1)
        .expect("there is data, so an L1 entry");
    table.1[0] &= 0x7f; // COPIED: repairing takes two writes, of a refcount block and of this.
    let disk = disk_of(&built);
    every_crash(
        &disk,
        |direct| {
            faultfs::direct::run(async move {
                qcow2_core::check(&direct, Repair::All, rules).await.ok()
            })
        },
        |crashed, chooser, _| {
            let mut auditor = Auditor::default();
            let dirty = {
                let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
                report.header.is_some_and(|header| header.is_dirty())
            };
            let healthy = auditor.report().violations(Stage::CrashedClean).next().is_none();
            if dirty || healthy || is_same(crashed, chooser, &disk, 0) {
                return Ok(());
            }
            Err(seen("repaired-half", "damaged, changed, and not marked dirty".to_owned()))
        },
    )
}

fn seen(kind: &'static str, story: String) -> Failure {
    let mut violation = whole_image(Property::P4, kind);
    violation.story = story;
    Failure { violation, moment: "after the power cut".to_owned() }
}
