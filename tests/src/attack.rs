//! Breaking one write order on purpose, to see whether the harness notices.
//!
//! Most rules are attacked by a campaign. Some need more: one that other rules cover up is broken together with these, under a
//! profile of the device in which *their* absence alone does no harm; and two belong to verbs that a campaign's lives do not
//! contain, creating an image and repairing a damaged one, so every crash state of those is looked at.

use std::time::{Duration, Instant};

use faultfs::chooser::Exhaustive;
use faultfs::direct::{Direct, DirectOptions};
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use faultfs::values::Values;
use model::audit::Auditor;
use model::build::{Initial, build};
use model::finding::{Property, Stage};
use model::op::Geometry;
use qcow2_core::{CreateOptions, Repair, Rule, Rules};

use crate::campaign::{self, Budget, Found, Settings};
use crate::evidence::DiskEvidence;
use crate::recover::{Failure, whole_image};
use crate::subject::Qcow2Core;
use crate::workload::Scope;

/// How a rule is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// By a campaign under this profile, with these rules broken too.
    Campaign(Profile, &'static [Rule]),
    /// By every crash state of creating an image.
    Create,
    /// By every crash state of repairing a damaged image.
    RepairDamaged,
}

/// How `rule` is attacked, and why not by a plain campaign, where it is not.
pub const fn attack_on(rule: Rule) -> (Attack, &'static str) {
    match rule {
        Rule::DirtyBeforeUncounted => (
            Attack::Campaign(Profile::Torn, &[Rule::LengthBeforeReference]),
            "the first allocation of a session grows the file, and the flush for the length covers the dirty bit too; \
             under torn the length never lags, so only the dirty bit is missing",
        ),
        Rule::HeaderLast => (Attack::Create, "a campaign creates no images"),
        Rule::DirtyBeforeRepair => (
            Attack::RepairDamaged,
            "half a repair of a clean image leaks at most; it matters where refcounts were too low before",
        ),
        _ => (Attack::Campaign(Profile::TornLength, &[]), ""),
    }
}

/// What an attack led to.
#[derive(Debug)]
pub struct Result {
    /// What was seen, if anything.
    pub failure: Option<Failure>,
    /// The way to it, where a campaign found it.
    pub found: Option<Found>,
    /// Crash states judged until then.
    pub states: u64,
    /// Seconds until then.
    pub seconds: f64,
}

/// Attacks the image without `rule`, for at most `limit`; with `rule` itself in force if `broken` is false.
pub fn run(rule: Rule, broken: bool, seed: u64, limit: Duration) -> Result {
    #[expect(clippy::disallowed_methods, reason = "seconds to kill are a figure, not an input")]
    let start = Instant::now();
    let (attack, _) = attack_on(rule);
    let rules = if broken { Rules::all().without(rule) } else { Rules::all() };
    let (failure, found, states) = match attack {
        Attack::Campaign(profile, others) => {
            let rules = others.iter().fold(rules, |rules, other| rules.without(*other));
            let settings = Settings {
                seed,
                profile,
                damage: None,
                scope: Scope { contended: rule == Rule::ReadsBeforeReuse, ..Scope::default() },
                budget: Budget::Time(limit),
                workers: 1,
            };
            let report = campaign::run(&Qcow2Core { rules }, &settings, |_| {});
            let failure = report.found.as_ref().map(|found| found.failure.clone());
            (failure, report.found, report.figures.states)
        }
        Attack::Create => {
            let (failure, states) = create(rules);
            (failure, None, states)
        }
        Attack::RepairDamaged => {
            let (failure, states) = repair_damaged(rules);
            (failure, None, states)
        }
    };
    Result { failure, found, states, seconds: start.elapsed().as_secs_f64() }
}

/// Runs `verb` on copies of `disk` with a power cut at each of its updates and flushes in turn, and shows `judge` every state
/// that each leaves. Returns the first failure and the number of states.
fn every_crash<T>(
    disk: &PossibleDisk,
    verb: impl Fn(Direct<Exhaustive>) -> Option<T>,
    judge: impl Fn(&mut PossibleDisk, &mut Exhaustive) -> std::result::Result<(), Failure>,
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
            if let Err(failure) = judge(&mut crashed, &mut chooser) {
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

/// Every crash state of creating an image: no image at all, or a valid one.
fn create(rules: Rules) -> (Option<Failure>, u64) {
    let disk = PossibleDisk::new(&Values::new(), 0);
    let options = CreateOptions { cluster_bits: 9, rules, ..CreateOptions::new(4096) };
    every_crash(
        &disk,
        |direct| {
            faultfs::direct::run(async move { qcow2_core::create(&direct, &options).await.ok() })
        },
        |crashed, chooser| {
            if crashed.read(0, chooser) == faultfs::values::Key::ZERO {
                return Ok(());
            }
            let mut auditor = Auditor::default();
            let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            match report.violations(Stage::CrashedClean).next() {
                None => Ok(()),
                Some((_, finding)) => Err(seen("created-half", finding.to_string())),
            }
        },
    )
}

/// Every crash state of repairing a clean image whose refcounts are too low: still as it was, or marked dirty, or repaired.
fn repair_damaged(rules: Rules) -> (Option<Failure>, u64) {
    let geometry = Geometry {
        version: 3,
        cluster_bits: 9,
        refcount_order: 4,
        virtual_size: 16 << 10,
        lazy_refcounts: true,
    };
    let built = build(&geometry, Initial::Dirty).expect("the geometry is a small one");
    let values = Values::new();
    let mut units = built.units.clone();
    let (_, header) = units.first_mut().expect("an image has a header");
    header[79] &= !1; // The dirty bit: refcounts that are too low are a damage now.
    let l1 = u64::from_be_bytes(header[40..48].try_into().expect("eight bytes")) / 512;
    let table =
        units.iter_mut().find(|(unit, _)| *unit == l1).expect("there is data, so an L1 entry");
    table.1[0] &= 0x7f; // COPIED: repairing takes two writes, of a refcount block and of this.
    let extents = units.iter().map(|(unit, bytes)| (unit * 512, bytes.as_slice()));
    let disk = PossibleDisk::from_extents(&values, built.length, extents);
    every_crash(
        &disk,
        |direct| {
            faultfs::direct::run(async move {
                qcow2_core::check(&direct, Repair::All, rules).await.ok()
            })
        },
        |crashed, chooser| {
            let mut auditor = Auditor::default();
            let dirty = {
                let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
                report.header.is_some_and(|header| header.is_dirty())
            };
            let healthy = auditor.report().violations(Stage::CrashedClean).next().is_none();
            let mut untouched = disk.clone();
            let end = crashed.extent().max(untouched.extent());
            let same = (0..end).all(|unit| {
                crashed.read(unit, chooser)
                    == untouched.read(unit, &mut faultfs::chooser::Always(0))
            });
            if dirty || healthy || same {
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
