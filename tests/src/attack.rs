//! Breaking one write order, or leaving out one flush, on purpose: to see whether the harness notices.
//!
//! Each is attacked in two ways. *Random*: a campaign. *Exhaustive*: every power cut in every workload of one request, then of
//! two, then of three, from every initial image, every pair of requests at once, and races. Some need more than that, and say why:
//! one that others cover up is broken together with these, under a profile of the device in which *their* absence alone does
//! no harm; and some belong to verbs that neither contains, such as creating an image, so every crash state of those is
//! looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use faultfs::DEFAULT_LIMITS;
use faultfs::chooser::{Always, Chooser, Exhaustive};
use faultfs::direct::{Direct, DirectOptions};
use faultfs::disk::PossibleDisk;
use faultfs::fault::{Fault, FaultAt, FaultPlan, Planned, PlannedFault};
use faultfs::profile::Profile;
use faultfs::trace::IoKind;
use model::audit::Auditor;
use model::build::{Built, Initial, build};
use model::finding::{Finding, Property, Stage};
use model::image::{COPIED, Mapping};
use model::op::Geometry;
use model::payload;
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf, Limits, Storage, UNIT, block_on};
use qcow2_core::{
    Backing, Barrier, CreateOptions, Format, Image, Mutant, OpenOptions, Preallocation, Repair,
    Rule, Rules,
};

use crate::campaign::{self, Budget, Found, Settings};
use crate::evidence::DiskEvidence;
use crate::explore::{
    self, AtOnce,
    alphabet::{Symbol, initials, worlds},
};
use crate::layer::Base;
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
        Target::Rule(Rule::HeaderLast | Rule::OldHeaderFirst)
        | Target::Flush(Barrier::CreateOverOld | Barrier::CreateBeforeHeader | Barrier::Create) => {
            (Attack::Create, "workloads create no images")
        }
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
        | Target::Flush(Barrier::HeaderRestored) => {
            (Attack::Campaign, "it takes a request that is dropped, or an I/O that fails")
        }
        _ => (Attack::Workloads(Profile::TornLength, &[]), ""),
    }
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
        (Attack::Campaign, Strategy::Exhaustive) | (_, Strategy::Random) => return None,
        (verb, Strategy::Exhaustive) => {
            let (failure, states) = match verb {
                Attack::Create => create(rules),
                Attack::RepairDamaged => repair_damaged(rules),
                Attack::RepairUnmarked => repair_unmarked(rules),
                Attack::OpenPromising => open_promising(rules),
                Attack::RebuildInPlace => rebuild_in_place(rules),
                Attack::WriteOverTable => write_over_table(rules),
                Attack::GrowOverLeftovers => grow_over_leftovers(rules),
                Attack::Rename => rename(rules),
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
    // A full refcount table costs thirty times as much to audit: there, two requests have to do.
    let full = [Initial::RefcountTableOneShort];
    let both = [false, true];
    let all: &[Symbol] = &Symbol::ALL;
    let stages = [
        (worlds(&[1024, 512], &both, &cheap), all, 1, None),
        (worlds(&[512], &both, &full), all, 1, None),
        (worlds(&[1024, 512], &both, &cheap), all, 2, None),
        (worlds(&[1024, 512], &both, &cheap), &Symbol::RESIZING, 2, None),
        (worlds(&[512], &both, &[Initial::Fragmented]), all, 2, Some(AtOnce::Races { delays: 2 })),
        (worlds(&[512], &both, &[Initial::Fragmented]), all, 3, Some(AtOnce::Races { delays: 1 })),
        (worlds(&[1024], &both, &cheap), all, 2, Some(AtOnce::Pairs { departures: 2 })),
        (worlds(&[1024, 4096], &both, &cheap), all, 3, None),
        (worlds(&[512], &both, &full), all, 2, None),
    ];
    let mut states = 0;
    for (worlds, alphabet, operations, at_once) in stages {
        let settings = explore::ExploreSettings {
            worlds,
            alphabet,
            operations,
            at_once,
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
/// `judge` every state that each leaves, and whether the verb had ended. A `full` device does not get longer. Returns the first failure and the number of states.
fn every_crash<T>(
    disk: &PossibleDisk,
    full: bool,
    verb: impl Fn(Direct<Exhaustive>) -> Option<T>,
    judge: impl Fn(&mut PossibleDisk, &mut Exhaustive, bool) -> Result<(), Failure>,
) -> (Option<Failure>, u64) {
    let mut states = 0;
    for crash_at in 0.. {
        let mut chooser = Exhaustive::new();
        loop {
            let no_room = PlannedFault {
                at: FaultAt::From { kind: IoKind::SetLen, nth: 0 },
                fault: Fault::Enospc { landed: 0 },
            };
            let faults: Option<Box<dyn FaultPlan + Send>> =
                if full { Some(Box::new(Planned(vec![no_room]))) } else { None };
            let options =
                DirectOptions { crash_at: Some(crash_at), faults, ..DirectOptions::default() };
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
    let geometry = Geometry {
        version: 3,
        cluster_bits: 9,
        refcount_order: 4,
        virtual_size,
        lazy_refcounts,
        below: None,
        extended_l2: false,
    };
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

/// Every crash state of opening an image with an unknown autoclear bit, clean or dirty, and writing to it: with the bit, nothing but
/// the header has changed.
fn open_promising(rules: Rules) -> (Option<Failure>, u64) {
    const AUTOCLEAR: usize = 88;
    let mut states = 0;
    for (initial, lazy) in [(Initial::Fragmented, false), (Initial::Dirty, true)] {
        let mut built = small(initial, 16 << 10, lazy);
        let (_, header) = built.units.first_mut().expect("an image has a header");
        header[AUTOCLEAR] = 0x80;
        let disk = disk_of(&built);
        let (failure, more) = every_crash(
            &disk,
            false,
            |direct| {
                faultfs::direct::run(async move {
                    let options = OpenOptions::new().rules(rules).page_size(512);
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
        );
        states += more;
        if failure.is_some() {
            return (failure, states);
        }
    }
    (None, states)
}

/// Every crash state of rebuilding the refcounts of an image whose last writer wrote what it had discarded and did not flush it,
/// where the file cannot get longer: each cluster that is mapped still holds its data.
fn rebuild_in_place(rules: Rules) -> (Option<Failure>, u64) {
    const CLUSTERS: u64 = 4;
    const DATA: u8 = 7;
    let direct = Direct::new(disk_of(&small(Initial::Fresh, 4096, false)), Exhaustive::new());
    let prepared = direct.clone();
    faultfs::direct::run(async move {
        let unflushed = Rules::all().without_flush(Barrier::GuestFlush);
        let options = OpenOptions::new().growth(0).page_size(512).pass_discard(false);
        let image = Image::open(prepared.clone(), options).await.ok()?;
        let len = usize::try_from(CLUSTERS).ok()? * UNIT;
        let mut data = IoBuf::zeroed(len, UNIT);
        data.fill(DATA);
        image.write(0, data, Durability::Cached).await.1.ok()?;
        image.close().await.ok()?;
        let image = Image::open(prepared, options.rules(unflushed)).await.ok()?;
        image.discard(0, CLUSTERS * UNIT as u64).await.ok()?;
        image.flush().await.ok()
    })
    .expect("there is room, and nothing fails");
    let disk = direct.power_off().disk;
    every_crash(
        &disk,
        true,
        |direct| {
            faultfs::direct::run(async move {
                qcow2_core::check(&direct, Repair::Rebuild, rules).await.ok()
            })
        },
        |crashed, chooser, _| {
            let mut auditor = Auditor::default();
            auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            for cluster in 0..CLUSTERS {
                let Mapping::Host(host) = auditor.image().mapping(cluster) else { continue };
                let unit = u32::try_from(host / UNIT as u64).expect("the image is small");
                let key = crashed.read(unit, chooser);
                if disk.values().bytes(key) != &[DATA; UNIT] {
                    let story = format!("guest cluster {cluster} holds a refcount structure");
                    return Err(seen("rebuilt-over-data", story));
                }
            }
            Ok(())
        },
    )
}

/// Every crash state of a write to a guest cluster that is mapped to the L1 table: once it has failed, the image is marked corrupt,
/// and the table is as it was.
fn write_over_table(rules: Rules) -> (Option<Failure>, u64) {
    const INCOMPATIBLE: usize = 79;
    let mut built = small(Initial::Fragmented, 16 << 10, false);
    let unit = |built: &Built, number: u64| {
        built.units.iter().position(|(unit, _)| *unit == number).expect("it holds something")
    };
    let l1 = be64(&built.units[unit(&built, 0)].1[40..]);
    let first = unit(&built, l1 / 512);
    let l2 = be64(&built.units[first].1[..]) & !COPIED;
    let table = unit(&built, l2 / 512);
    built.units[table].1[..8].copy_from_slice(&(l1 | COPIED).to_be_bytes());
    let disk = disk_of(&built);
    every_crash(
        &disk,
        false,
        |direct| {
            faultfs::direct::run(async move {
                let options = OpenOptions::new().rules(rules).page_size(512);
                let image = Image::open(direct, options).await.ok()?;
                let mut data = IoBuf::zeroed(UNIT, UNIT);
                data.fill(7);
                image.write(0, data, Durability::Cached).await.1.err()
            })
        },
        |crashed, chooser, ended| {
            if !is_same(crashed, chooser, &disk, 1) {
                return Err(seen("wrote-over-a-table", "a guest write landed".to_owned()));
            }
            let header = crashed.read(0, chooser);
            if ended && disk.values().bytes(header)[INCOMPATIBLE] & 2 == 0 {
                let story = "the write had failed, and nobody knows of it after the power cut";
                return Err(seen("corruption-forgotten", story.to_owned()));
            }
            Ok(())
        },
    )
}

/// Every crash state of growing a disk whose last cluster has something behind the end of the disk, as has its L2 table: the new
/// space is as large as the header says, and all of it reads zeroes.
fn grow_over_leftovers(rules: Rules) -> (Option<Failure>, u64) {
    const OLD: u64 = 6 << 10;
    const NEW: u64 = 12 << 10;
    let geometry = Geometry {
        version: 3,
        cluster_bits: 10,
        refcount_order: 4,
        virtual_size: NEW,
        lazy_refcounts: false,
        below: None,
        extended_l2: false,
    };
    let mut built = build(&geometry, Initial::Fragmented).expect("the geometry is a small one");
    let (_, header) = built.units.first_mut().expect("an image has a header");
    // In the middle of a cluster.
    header[24..32].copy_from_slice(&(OLD - 512).to_be_bytes());
    let disk = disk_of(&built);
    every_crash(
        &disk,
        false,
        |direct| {
            faultfs::direct::run(async move {
                let options = OpenOptions::new().rules(rules).page_size(512);
                let image = Image::open(direct, options).await.ok()?;
                image.grow(NEW).await.ok()
            })
        },
        |crashed, chooser, _| {
            let mut auditor = Auditor::default();
            let size = {
                let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
                report.header.expect("it stays an image").size
            };
            for at in (OLD - 512..size).step_by(UNIT) {
                let (piece, mapping) = auditor.image().piece(at / UNIT as u64);
                if let Mapping::Host(host) = mapping {
                    let unit = host / UNIT as u64 + (at / UNIT as u64 - piece.start);
                    let unit = u32::try_from(unit).expect("the image is small");
                    if crashed.read(unit, chooser) != faultfs::values::Key::ZERO {
                        let story = format!("guest offset {at:#x} of the new space is not zero");
                        return Err(seen("old-content-in-new-space", story));
                    }
                }
            }
            Ok(())
        },
    )
}

/// Every crash state of creating an image where something was: that, no image at all, or a valid and empty new one; once creating it
/// has returned, the last of these. The new one is shorter than what was there, longer, or of version 2, and its clusters may be taken ahead;
/// and what was there is nothing, no image, or one of several; on a file, and on a device that keeps what others left.
fn create(rules: Rules) -> (Option<Failure>, u64) {
    let mut states = 0;
    for before in predecessors() {
        for stale in [false, true] {
            let kinds = [
                (3, 4 << 10, Preallocation::Off),
                (3, 64 << 20, Preallocation::Off),
                (2, 4 << 10, Preallocation::Off),
                (3, 4 << 10, Preallocation::Metadata),
                (2, 4 << 10, Preallocation::Full),
            ];
            for (version, size, ahead) in kinds {
                let limits = Limits { unwritten_reads_zero: !stale, ..DEFAULT_LIMITS };
                let disk = disk_of(&before).with_limits(limits);
                let options = CreateOptions::new(size).version(version).preallocation(ahead);
                let (failure, more) = create_over(&disk, options.cluster_bits(9).rules(rules));
                states += more;
                if failure.is_some() {
                    return (failure, states);
                }
            }
        }
    }
    (None, states)
}

/// What may be where an image is created.
fn predecessors() -> Vec<Built> {
    let nothing = Built { length: 0, units: Vec::new(), guest: Vec::new() };
    let units = (0..40).map(|unit| (unit, payload::unit(unit, payload::STALE))).collect();
    let no_image = Built { length: 40 * UNIT as u64, units, guest: Vec::new() };
    let images = [
        (Initial::Fragmented, false),
        (Initial::Dirty, true),
        (Initial::Leftovers, false),
        (Initial::Bitmaps, true),
    ];
    let images = images.map(|(initial, lazy)| small(initial, 8 << 10, lazy));
    [nothing, no_image].into_iter().chain(images).collect()
}

fn create_over(disk: &PossibleDisk, options: CreateOptions) -> (Option<Failure>, u64) {
    let size = options.virtual_size;
    every_crash(
        disk,
        false,
        |direct| {
            faultfs::direct::run(async move { qcow2_core::create(&direct, &options).await.ok() })
        },
        |crashed, chooser, ended| {
            let lost = || Err(seen("created-and-lost", "creating it had returned".to_owned()));
            let mut auditor = Auditor::default();
            let is_image = disk.values().bytes(crashed.read(0, chooser)).starts_with(b"QFI\xfb");
            if !is_image {
                return if ended { lost() } else { Ok(()) };
            }
            let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            let Some(header) = report.header else {
                return Err(seen("created-half", "its header cannot be read".to_owned()));
            };
            if ended && header.size != size {
                return lost();
            }
            let stage = if header.is_dirty() { Stage::CrashedDirty } else { Stage::CrashedClean };
            if let Some((_, finding)) = report.violations(stage).next() {
                return Err(seen("created-half", finding.to_string()));
            }
            let clusters = header.size.div_ceil(header.cluster_size());
            let mut holds = |cluster| match auditor.image().mapping(cluster) {
                Mapping::Unallocated => false,
                // What was taken ahead; its clusters are units.
                Mapping::Host(at) if options.preallocation != Preallocation::Off => {
                    let unit = u32::try_from(at / UNIT as u64).expect("the image is small");
                    crashed.read(unit, chooser) != faultfs::values::Key::ZERO
                }
                _ => true,
            };
            if header.size == size && (0..clusters).any(&mut holds) {
                return Err(seen("created-full", "it holds what was there before".to_owned()));
            }
            Ok(())
        },
    )
}

/// Every crash state of an image that comes to name another layer, or none: it names the one or the other, whole, and the new one once that
/// was acknowledged. Names are short and long, in the first 512 bytes and past them, beside one another and in place of one another.
fn rename(rules: Rules) -> (Option<Failure>, u64) {
    let long = |len: usize| -> Vec<u8> { (0..len).map(|at| b'a' + (at / 100) as u8).collect() };
    let raw = |name: Vec<u8>| Backing::new(name, Format::Raw);
    let qcow2 = |name: Vec<u8>| Backing::new(name, Format::Qcow2);
    let said_nothing = |name: Vec<u8>| Backing { name, format: None };
    let cases = [
        (9, vec![raw(b"below".to_vec()), qcow2(b"another".to_vec())]),
        (10, vec![raw(b"below".to_vec()), qcow2(long(400)), raw(b"below".to_vec())]),
        (12, vec![raw(long(900)), said_nothing(long(1023)), qcow2(long(700))]),
    ];
    let (failure, mut states) = do_without(rules);
    if failure.is_some() {
        return (failure, states);
    }
    for (cluster_bits, names) in cases {
        for version in [2, 3] {
            let storage = MemoryStorage::default();
            let options = CreateOptions::new(8 << 10).cluster_bits(cluster_bits).version(version);
            block_on(qcow2_core::create_over(&storage, &options, &names[0]))
                .expect("there is room");
            let next = names.iter().skip(1).map(Some).chain([None]);
            for (present, next) in names.iter().zip(next) {
                let (failure, more) = rename_once(&storage.to_vec(), present, next, rules);
                states += more;
                if failure.is_some() {
                    return (failure, states);
                }
                block_on(async {
                    let image = open_over_base(storage.clone(), Rules::all()).await?;
                    image.set_backing(next).await.ok()?;
                    image.close().await.ok()
                })
                .expect("nothing fails");
            }
        }
    }
    (None, states)
}

/// Every crash state of an image whose layer is copied and then named no more: where none is named, the image holds all of it.
fn do_without(rules: Rules) -> (Option<Failure>, u64) {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(2 << 10).cluster_bits(9);
    let present = Backing::new("below", Format::Raw);
    block_on(qcow2_core::create_over(&storage, &options, &present)).expect("there is room");
    let disk = disk_of(&units_of(&storage.to_vec()));
    let mut below = vec![0; 2 << 10];
    Base::new(8 << 10).fill(0, &mut below);
    every_crash(
        &disk,
        false,
        |direct| {
            faultfs::direct::run(async move {
                let image = open_over_base(direct, rules).await?;
                image.copy_up(0, 2 << 10).await.ok()?;
                image.set_backing(None).await.ok()
            })
            .flatten()
        },
        |crashed, chooser, ended| {
            let mut auditor = Auditor::default();
            auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            if auditor.image().layer().is_some() {
                let story = || "naming no layer had returned".to_owned();
                return if ended { Err(seen("renamed-and-lost", story())) } else { Ok(()) };
            }
            for (cluster, wanted) in (0..).zip(below.as_chunks::<UNIT>().0) {
                let found = match auditor.image().mapping(cluster) {
                    Mapping::Host(at) => {
                        let unit = u32::try_from(at / UNIT as u64).expect("the image is small");
                        crashed.read(unit, chooser)
                    }
                    _ => faultfs::values::Key::ZERO,
                };
                if disk.values().bytes(found)[..] != wanted[..] {
                    let story = format!("guest cluster {cluster} is neither here nor below");
                    return Err(seen("layer-lost", story));
                }
            }
            Ok(())
        },
    )
}

/// Every crash state of separating guest clusters that share a host cluster, as a repair left them: each reads as it did, and nothing is
/// wrong but that some still share. Three share one, in two L2 tables.
pub fn separate(rules: Rules, lazy_refcounts: bool) -> (Option<Failure>, u64) {
    const CLUSTER: u64 = UNIT as u64;
    const PER_TABLE: u64 = CLUSTER / 8;
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(2 * PER_TABLE * CLUSTER).cluster_bits(9);
    let options = options.lazy_refcounts(lazy_refcounts);
    block_on(qcow2_core::create(&storage, &options)).expect("there is room");
    let image = qcow2_core::blocking::Image::open(storage.clone(), OpenOptions::new().growth(0));
    let image = image.expect("it was just made");
    let mut holds = BTreeMap::new();
    for cluster in [0, 1, 2, 3, 4, 5, PER_TABLE] {
        let byte = 1 + u8::try_from(cluster).expect("few clusters");
        image.write(cluster * CLUSTER, &[byte; UNIT]).expect("there is room");
        holds.insert(cluster, byte);
    }
    // Three are free again: a file that grows is flushed, and the copies with it.
    image.discard(3 * CLUSTER, 3 * CLUSTER).and_then(|()| image.close()).expect("nothing fails");
    holds.retain(|cluster, _| !(3..6).contains(cluster));
    let mut damaged = storage.to_vec();
    let l1 = usize::try_from(be64(&damaged[40..])).expect("the image is small");
    let table = |index: usize| (be64(&damaged[l1 + 8 * index..]) & !COPIED) as usize;
    let (first, second) = (table(0), table(1));
    for to in [first + 2 * 8, second] {
        damaged.copy_within(first..first + 8, to);
    }
    holds.extend([(2, 1), (PER_TABLE, 1)]);
    let storage = MemoryStorage::new(damaged);
    let repaired = block_on(qcow2_core::check(&storage, Repair::All, Rules::all()));
    assert!(repaired.is_ok_and(|report| report.is_writable() && !report.is_consistent()));
    let disk = disk_of(&units_of(&storage.to_vec()));
    every_crash(
        &disk,
        false,
        |direct| {
            faultfs::direct::run(async move {
                let open = OpenOptions::new().growth(0).rules(rules);
                Image::open(direct, open).await.ok()?.separate().await.ok()
            })
            .flatten()
        },
        |crashed, chooser, ended| {
            let mut auditor = Auditor::default();
            let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            let is_dirty = report.header.as_ref().is_some_and(model::image::Header::is_dirty);
            let stage = if is_dirty { Stage::CrashedDirty } else { Stage::CrashedClean };
            let shares = |finding: &Finding| {
                matches!(finding, Finding::Overlap { .. } | Finding::CopiedMissing { .. })
            };
            let wrong = report.violations(stage).find(|(_, it)| ended || !shares(it));
            if let Some((_, finding)) = wrong {
                return Err(seen("separated-half", finding.to_string()));
            }
            for cluster in 0..2 * PER_TABLE {
                let found = match auditor.image().mapping(cluster) {
                    Mapping::Host(at) => {
                        let unit = u32::try_from(at / CLUSTER).expect("the image is small");
                        crashed.read(unit, chooser)
                    }
                    _ => faultfs::values::Key::ZERO,
                };
                let byte = holds.get(&cluster).copied().unwrap_or(0);
                if disk.values().bytes(found)[..] != [byte; UNIT] {
                    let story = format!("guest cluster {cluster} reads as something else");
                    return Err(seen("separated-and-lost", story));
                }
            }
            Ok(())
        },
    )
}

fn units_of(image: &[u8]) -> Built {
    let units = image.as_chunks::<UNIT>().0.iter().copied();
    Built { length: image.len() as u64, units: (0..).zip(units).collect(), guest: Vec::new() }
}

async fn open_over_base<S: Storage>(storage: S, rules: Rules) -> Option<Image<S>> {
    let options = OpenOptions::new().growth(0).rules(rules);
    Image::open_over(storage, Base::new(8 << 10).shared(), options).await.ok()
}

fn rename_once(
    image: &[u8],
    present: &Backing,
    next: Option<&Backing>,
    rules: Rules,
) -> (Option<Failure>, u64) {
    every_crash(
        &disk_of(&units_of(image)),
        false,
        |direct| {
            faultfs::direct::run(async move {
                let image = open_over_base(direct, rules).await?;
                image.set_backing(next).await.ok()
            })
            .flatten()
        },
        |crashed, chooser, ended| {
            let mut auditor = Auditor::default();
            let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            if report.header.is_none() {
                return Err(seen("renamed-half", "its header cannot be read".to_owned()));
            }
            if let Some((_, finding)) = report.violations(Stage::CrashedClean).next() {
                return Err(seen("renamed-half", finding.to_string()));
            }
            let found = auditor.image().layer();
            let found =
                found.map(|it| Backing { name: it.name.clone(), format: it.format.clone() });
            if found.as_ref() == next || (!ended && found.as_ref() == Some(present)) {
                return Ok(());
            }
            let kind = if ended { "renamed-and-lost" } else { "renamed-half" };
            Err(seen(kind, format!("it names {found:?}, neither {present:?} nor {next:?}")))
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
        false,
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

/// Every crash state of repairing damaged images of version 2, in place and by a rebuild: nothing is wrong that was not wrong before, and
/// whoever goes on writing to the image harms nobody but those whose clusters were shared before.
fn repair_unmarked(rules: Rules) -> (Option<Failure>, u64) {
    let mut states = 0;
    for (damaged, repair) in [
        (Unmarked::shared(), Repair::All),
        (Unmarked::shared(), Repair::Rebuild),
        (Unmarked::past_the_end(), Repair::ZeroPastEnd),
        (Unmarked::unflushed(), Repair::Leaks),
        (Unmarked::unflushed(), Repair::All),
        (Unmarked::unflushed(), Repair::Rebuild),
    ] {
        let before = wrong(&mut damaged.disk.clone(), &mut Always(0));
        let (failure, more) = every_crash(
            &damaged.disk,
            false,
            |direct| {
                faultfs::direct::run(
                    async move { qcow2_core::check(&direct, repair, rules).await.ok() },
                )
            },
            |crashed, chooser, _| {
                let now = wrong(crashed, chooser);
                if let Some(news) = now.difference(&before).next() {
                    return Err(seen("repair-made-worse", format!("{repair:?}: {news}")));
                }
                damaged.go_on(crashed)
            },
        );
        states += more;
        if failure.is_some() {
            return (failure, states);
        }
    }
    (None, states)
}

/// What an audit calls wrong in an image that is not marked dirty; counts that are still too low are as wrong as before.
fn wrong(disk: &mut PossibleDisk, chooser: &mut impl Chooser) -> BTreeSet<String> {
    let mut auditor = Auditor::default();
    let report = auditor.audit(&mut DiskEvidence::new(disk, chooser));
    let wrong = report.violations(Stage::CrashedClean);
    wrong
        .map(|(_, finding)| match finding {
            Finding::RefcountTooLow { cluster, .. } => format!("the count of {cluster} is too low"),
            other => other.to_string(),
        })
        .collect()
}

/// An image of version 2 with clusters of 512 bytes that needs a repair, and guest clusters to go on with.
struct Unmarked {
    disk: PossibleDisk,
    /// Guest clusters that share a host cluster, if any do.
    sharing: Option<[u64; 2]>,
    /// Guest clusters that have none.
    free: [u64; 2],
}

impl Unmarked {
    const SIZE: u64 = 16 << 10;

    /// The host offset of the first L2 table's unit, and the entries of the guest clusters that have data.
    fn entries(built: &Built) -> (usize, Vec<usize>) {
        let find = |offset: u64| {
            let number = offset / UNIT as u64;
            built.units.iter().position(|(unit, _)| *unit == number).expect("it is in use")
        };
        let l1 = be64(&built.units[find(0)].1[40..]);
        let table = find(be64(&built.units[find(l1)].1[..]) & !COPIED);
        let entries = built.units[table].1.as_chunks::<8>().0;
        let used = (0..).zip(entries).filter(|(_, entry)| **entry != [0; 8]);
        (table, used.map(|(index, _)| index).collect())
    }

    fn of(built: &Built, sharing: Option<[u64; 2]>) -> Self {
        let (_, used) = Self::entries(built);
        let mut free = (0..Self::SIZE / 512).filter(|guest| !used.contains(&(*guest as usize)));
        let mut next = || free.next().expect("much of the disk is unmapped");
        Self { disk: disk_of(built), sharing, free: [next(), next()] }
    }

    fn built() -> Built {
        let geometry = Geometry {
            version: 2,
            cluster_bits: 9,
            refcount_order: 4,
            virtual_size: Self::SIZE,
            lazy_refcounts: false,
            below: None,
            extended_l2: false,
        };
        build(&geometry, Initial::Leaky).expect("the geometry is a small one")
    }

    /// Two guest clusters with one host cluster, which is counted once. (What the second had is leaked, as are others.)
    fn shared() -> Self {
        let mut built = Self::built();
        let (table, used) = Self::entries(&built);
        let unit = &mut built.units[table].1;
        let [one, other] = [used[1], used[3]];
        unit.copy_within(one * 8..one * 8 + 8, other * 8);
        assert!(unit[one * 8] & 0x80 != 0, "it says COPIED");
        Self::of(&built, Some([one as u64, other as u64]))
    }

    /// The file ends before a cluster that an entry refers to and that is counted.
    fn past_the_end() -> Self {
        let mut built = Self::built();
        let (table, used) = Self::entries(&built);
        let last = *used.last().expect("some clusters are mapped");
        let unit = &mut built.units[table].1;
        let host = built.length - 512;
        unit[last * 8..last * 8 + 8].copy_from_slice(&(host | COPIED).to_be_bytes());
        built.length = host;
        built.units.retain(|(unit, _)| unit * 512 < host);
        Self::of(&built, None)
    }

    /// The last writer discarded a guest cluster and did not flush it.
    fn unflushed() -> Self {
        let built = Self::built();
        let (table, used) = Self::entries(&built);
        let (unit, mut bytes) = built.units[table];
        bytes[used[1] * 8..used[1] * 8 + 8].fill(0);
        let direct = Direct::new(disk_of(&built), Always(0));
        let writer = direct.clone();
        faultfs::direct::run(async move {
            let buf = IoBuf::copy_of(&bytes, UNIT);
            writer.write(unit * UNIT as u64, buf, Durability::Cached).await.1.ok()
        })
        .expect("nothing fails");
        Self { disk: direct.power_off().disk, ..Self::of(&built, None) }
    }

    /// Writes to those who share and, in between, to two that have nothing: what the first of these holds is its own.
    fn go_on(&self, crashed: &PossibleDisk) -> Result<(), Failure> {
        const OWN: u8 = 3;
        let Some([one, other]) = self.sharing else { return Ok(()) };
        let [bystander, last] = self.free;
        let direct = Direct::new(crashed.clone(), Always(0));
        let read = faultfs::direct::run(async move {
            let options = OpenOptions::new().growth(0).page_size(512).pass_discard(false);
            let image = Image::open(direct, options).await.ok()?;
            for (guest, byte) in [(one, 1), (bystander, OWN), (other, 2), (last, 4)] {
                let mut data = IoBuf::zeroed(UNIT, UNIT);
                data.fill(byte);
                let _: Option<()> = image.write(guest * 512, data, Durability::Cached).await.1.ok();
                image.flush().await.ok()?;
            }
            let (data, read) = image.read(bystander * 512, IoBuf::zeroed(UNIT, UNIT)).await;
            read.ok().map(|()| data)
        });
        match read.flatten() {
            Some(read) if *read == [OWN; UNIT] => Ok(()),
            Some(_) => {
                let story = "a guest cluster that had shared nothing lost its data afterwards";
                Err(seen("half-repaired-harms-others", story.to_owned()))
            }
            None => Err(seen("half-repaired-harms-others", "it cannot be used".to_owned())),
        }
    }
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}

fn seen(kind: &'static str, story: String) -> Failure {
    let mut violation = whole_image(Property::P4, kind);
    violation.story = story;
    Failure { violation, moment: "after the power cut".to_owned() }
}
