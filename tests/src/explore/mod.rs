//! Exploration: all small workloads, and every state that a power cut can leave in any of them.
//!
//! A campaign samples large worlds; this exhausts small ones. Bugs of this kind need few requests and few clusters, so
//! "nothing found in any workload of up to four requests" says more than any number of random cases, and it can be cited: the
//! [`certificate`] lists what was covered and is the same bit for bit whoever runs it.

pub mod alphabet;
mod at_once;
pub mod certificate;
pub mod course;
pub mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faultfs::fault::Planned;
use faultfs::profile::Profile;
use model::case::{Device, Step};
use model::op::{Geometry, Op};

use crate::any::AnySubject;
use crate::capabilities::Capabilities;
use crate::ended::Ended;
use crate::interrupt;
use crate::life::Order;
use crate::minimise::{Minimised, Signature, search};
use crate::panics;
use crate::probe::{Probe, Probes};
use crate::recover::{Failure, StepPlan};
use crate::subject::Subject;
use crate::trial::{At, Survivors, Trial, TrialLife};
use crate::watch;
use alphabet::{Symbol, World, operations};
pub use at_once::AtOnce;
use walk::{Coverage, Stop, Walk};

/// What is explored.
#[derive(Clone, Debug)]
pub struct ExploreSettings {
    /// Images to start from.
    pub worlds: Vec<World>,
    /// Requests one after the other are of this alphabet.
    pub alphabet: Vec<Symbol>,
    /// Workloads have at most this many requests.
    pub operations: u32,
    /// Workloads are requests of two tasks at once, in the place of requests one after the other.
    pub at_once: Option<AtOnce>,
    /// Power cuts in recovery are followed this deep.
    pub depth: u32,
    /// How the power fails.
    pub profile: Profile,
    /// Which part of the workloads: (number, of how many).
    pub shard: (u64, u64),
    /// When to give up.
    pub limit: Option<Duration>,
    /// Worker threads; 0 for one a core.
    pub workers: usize,
}

impl ExploreSettings {
    /// Every power cut in all workloads of up to so many requests of the usual alphabet, one after the other, under torn-length; by one
    /// thread a core, to the end.
    pub fn new(worlds: Vec<World>, operations: u32) -> Self {
        Self {
            worlds,
            alphabet: Symbol::ALL.to_vec(),
            operations,
            at_once: None,
            depth: u32::MAX,
            profile: Profile::TornLength,
            shard: (0, 1),
            limit: None,
            workers: 0,
        }
    }

    /// The same without the letters that are nothing this subject can do, and with refcounts that it opens where nobody chose another width.
    #[must_use]
    pub fn within(mut self, can: &Capabilities) -> Self {
        self.alphabet.retain(|letter| letter.is_within(can));
        for world in &mut self.worlds {
            *world = world.within(can);
        }
        self
    }
}

/// What exploring one world came to.
#[derive(Clone, Debug)]
pub struct Explored {
    /// The world.
    pub world: World,
    /// Why its initial image cannot be, if it cannot.
    pub infeasible: Option<String>,
    /// Workloads explored.
    pub workloads: u64,
    /// What was done.
    pub counts: Coverage,
    /// Of the leaves, those that were run; the others a worker had met before. It depends on who explored what.
    pub executed: u64,
    /// Hash of it all.
    pub hash: u64,
    /// Hashes of everything that recovery left.
    pub distinct: BTreeSet<u64>,
    /// Rare situations met.
    pub probes: Probes,
    /// Time of all workers.
    pub worker_seconds: f64,
}

/// A violation, and the workload that shows it.
#[derive(Clone, Debug)]
pub struct Witness {
    /// Where it starts.
    pub world: World,
    /// Number of the workload.
    pub index: u64,
    /// The requests of each task.
    pub tasks: Vec<Vec<Symbol>>,
    /// The order of the steps, if it was two tasks at once.
    pub schedule: Vec<u32>,
    /// What went wrong.
    pub failure: Failure,
    /// Leaves judged until then, by all workers.
    pub leaves: u64,
}

impl Explored {
    /// Its numbers in a line, for a person.
    pub fn row(&self) -> String {
        let world = &self.world;
        if let Some(why) = &self.infeasible {
            return format!("{world}: {why}");
        }
        let counts = &self.counts;
        let speed = counts.leaves as f64 / self.worker_seconds.max(1e-9);
        format!(
            "{:>9}  {:>11}  {:>10}  {:>8}  {:>10}  {:>10}  {:>8}  {:>7}  {speed:>8.0}  {world}",
            self.workloads,
            counts.crash_disks,
            counts.leaves,
            self.executed,
            counts.leaves - self.executed.min(counts.leaves),
            counts.memo_hits,
            self.distinct.len(),
            counts.deepest,
        )
    }
}

impl Witness {
    /// One way that leads to the violation, as a trial: the workload again, with what survives searched for, and with up
    /// to two power cuts in recovery. A signal ends the search.
    pub fn trial(&self, subject: &impl Subject, profile: Profile) -> Option<Minimised> {
        let subject = &AnySubject::of(subject);
        let wanted = Signature::of(&self.failure);
        self.ways(subject, profile)
            .take_while(|_| !interrupt::asked())
            .find_map(|trial| search(subject, &trial, &wanted))
    }

    /// The workload run to its end: what is known before the moment of the power cut was searched for.
    pub fn workload(&self, subject: &impl Subject, profile: Profile) -> Trial {
        let subject = &AnySubject::of(subject);
        self.ways(subject, profile).next().expect("one way has no step of recovery")
    }

    /// The workload with each recovery that is tried, the shortest first.
    fn ways(&self, subject: &AnySubject, profile: Profile) -> impl Iterator<Item = Trial> {
        let World { geometry, initial, session } = self.world;
        let plans = [Step::Open, Step::Repair].into_iter().flat_map(|run| {
            (0..12).map(move |crash_at| StepPlan { run, crash_at: Some(crash_at) })
        });
        let once: Vec<Vec<StepPlan>> = plans.map(|plan| vec![plan]).collect();
        let twice = once.iter().flat_map(|first| {
            once.iter().map(move |second| [first.as_slice(), second.as_slice()].concat())
        });
        let none = std::iter::once(Vec::new());
        let all: Vec<Vec<StepPlan>> = none.chain(once.iter().cloned()).chain(twice).collect();
        all.into_iter().map(move |steps| {
            let life = TrialLife {
                tasks: tasks_of(&self.tasks, &geometry),
                order: Order::Choices(self.schedule.clone()),
                faults: Planned::default(),
                dropped: None,
                at: At::End,
                leaf: Survivors::Choices(Vec::new()),
                steps,
                unrecovered: false,
            };
            Trial {
                discard: faultfs::profile::DiscardMode::Either,
                geometry,
                initial,
                device: Device::default(),
                open: session.options(subject.key()),
                profile,
                lives: vec![life],
            }
        })
    }
}

/// Tasks as operations, numbered through.
fn tasks_of(tasks: &[Vec<Symbol>], geometry: &Geometry) -> Vec<Vec<Op>> {
    let mut ops = operations(&tasks.concat(), geometry).into_iter();
    tasks.iter().map(|task| ops.by_ref().take(task.len()).collect()).collect()
}

/// What an exploration came to.
#[derive(Debug)]
pub struct ExploreReport {
    /// World by world.
    pub worlds: Vec<Explored>,
    /// The first violation, by world and number of the workload.
    pub found: Option<Witness>,
    /// Why the run proves nothing, if it does not.
    pub broken: Option<String>,
    /// Whether every workload was explored.
    pub complete: bool,
    /// Why it went no further.
    pub ended: Ended,
    /// Workloads that there are for each image.
    pub todo: u64,
    /// Time by the clock.
    pub seconds: f64,
}

impl ExploreReport {
    /// Cluster size by cluster size, the situations that had to be met: those that were, and those that were not.
    pub fn probes(&self) -> BTreeMap<u64, (Vec<Probe>, Vec<Probe>)> {
        let mut met: BTreeMap<u64, Probes> = BTreeMap::new();
        for explored in &self.worlds {
            met.entry(explored.world.geometry.cluster_size()).or_default().add(&explored.probes);
        }
        let split = |(size, met): (u64, Probes)| {
            (size, alphabet::probes(size).into_iter().partition(|&probe| met.count(probe) > 0))
        };
        met.into_iter().map(split).collect()
    }
}

/// Explores; `progress` is called now and then with the world, the workloads done and to do, and the counts so far. A
/// signal ends it after the workloads in hand.
pub fn run(
    subject: &impl Subject,
    settings: &ExploreSettings,
    progress: impl Fn(&World, u64, u64, &Coverage) + Sync,
) -> ExploreReport {
    let subject = &AnySubject::of(subject);
    #[expect(clippy::disallowed_methods, reason = "the budget is time by the clock")]
    let now = Instant::now;
    let start = now();
    let mut report = ExploreReport {
        worlds: Vec::new(),
        found: None,
        broken: None,
        complete: true,
        ended: Ended::Complete,
        todo: 0,
        seconds: 0.0,
    };
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        workers => workers,
    };
    let can = subject.capabilities();
    if let Some(letter) = settings.alphabet.iter().find(|letter| !letter.is_within(&can)) {
        report.broken = Some(format!("the subject cannot do {letter}, which is in the alphabet"));
        (report.complete, report.ended) = (false, Ended::Broken);
        return report;
    }
    let (shard, shards) = settings.shard;
    let at_once: Vec<[Vec<Symbol>; 2]> = match settings.at_once {
        None => Vec::new(),
        Some(AtOnce::Pairs { .. }) => {
            let within = |pair: &[Symbol; 2]| pair.iter().all(|symbol| symbol.is_within(&can));
            let pairs = alphabet::pairs().into_iter().filter(within);
            pairs.map(|pair| pair.map(|symbol| vec![symbol])).collect()
        }
        Some(AtOnce::Races { .. }) => alphabet::races(&settings.alphabet, settings.operations),
    };
    let all = match settings.at_once {
        None => alphabet::count(&settings.alphabet, settings.operations),
        Some(_) => at_once.len() as u64,
    };
    // Workloads that share all but their last request are neighbours, and so cheapest in one hand.
    let block = |number: u64| match (settings.at_once, number) {
        (Some(_), _) | (None, 0) => number..number + 1,
        (None, _) => alphabet::continuations(&settings.alphabet, number - 1),
    };
    let todo = all / shards + u64::from(all % shards > shard);
    report.todo = todo;
    let interrupted = AtomicBool::new(false);
    for &world in &settings.worlds {
        let mut explored = Explored {
            world,
            infeasible: None,
            workloads: 0,
            counts: Coverage::default(),
            executed: 0,
            hash: 0,
            distinct: BTreeSet::new(),
            probes: Probes::default(),
            worker_seconds: 0.0,
        };
        let infeasible = world.start(subject).err();
        if infeasible.is_some() {
            explored.infeasible = infeasible;
            report.worlds.push(explored);
            continue;
        }
        let next = AtomicU64::new(0);
        // Whoever has a workload before this one goes on: the first violation is the one with the lowest number.
        let end = AtomicU64::new(all);
        let shared = Mutex::new((explored, None::<Witness>, None::<String>));
        let work = || {
            let began = now();
            let initial = world.start(subject).expect("it was feasible just before");
            let ExploreSettings { profile, depth, .. } = *settings;
            let mut walk = Walk::new(subject.clone(), world.session, profile, depth, initial);
            let blocks = std::iter::from_fn(|| {
                let block = block(next.fetch_add(1, Ordering::Relaxed));
                (block.start < all).then_some(block)
            });
            for index in blocks.flatten().filter(|index| index % shards == shard) {
                let late = settings.limit.is_some_and(|limit| start.elapsed() >= limit);
                if late || index >= end.load(Ordering::Relaxed) {
                    break;
                }
                if interrupt::asked() {
                    interrupted.store(true, Ordering::Relaxed);
                    break;
                }
                let tasks = match settings.at_once {
                    None => vec![alphabet::workload(&settings.alphabet, index)],
                    Some(_) => at_once[index as usize].to_vec(),
                };
                let ops = tasks_of(&tasks, &world.geometry);
                watch::doing(format!("workload {index} of {world}: {ops:?}"));
                let outcome = match settings.at_once {
                    None => walk.workload(&ops[0]),
                    Some(how) => walk.at_once(&ops, how),
                };
                let counts = walk.counts();
                let mut shared = shared.lock().expect("no worker panics with the lock");
                let (explored, found, broken) = &mut *shared;
                explored.counts.add(&counts);
                match outcome {
                    Ok(_) => {
                        explored.workloads += 1;
                        explored.hash = explored.hash.wrapping_add(counts.hash(index));
                        if explored.workloads.is_multiple_of(64) {
                            progress(&world, explored.workloads, todo, &explored.counts);
                        }
                    }
                    Err(Stop::Failed(failure)) => {
                        end.fetch_min(index, Ordering::Relaxed);
                        if found.as_ref().is_none_or(|found| index < found.index) {
                            let leaves = explored.counts.leaves;
                            let schedule = walk.schedule.clone();
                            *found =
                                Some(Witness { world, index, tasks, schedule, failure, leaves });
                        }
                    }
                    Err(Stop::Broken(why)) => {
                        end.store(0, Ordering::Relaxed);
                        *broken = Some(why);
                    }
                }
            }
            let mut shared = shared.lock().expect("no worker panics with the lock");
            shared.0.distinct.append(&mut walk.distinct);
            shared.0.probes.add(walk.probes());
            shared.0.executed += walk.executed;
            shared.0.worker_seconds += began.elapsed().as_secs_f64();
            // What its images panic with now is of no workload.
            drop(walk);
            drop(panics::take());
        };
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        let (explored, found, broken) =
            shared.into_inner().expect("no worker panics with the lock");
        report.complete &= explored.workloads == todo;
        report.worlds.push(explored);
        report.found = found;
        report.broken = broken;
        report.ended = match (&report.found, &report.broken) {
            (Some(_), _) => Ended::Violation,
            (None, Some(_)) => Ended::Broken,
            (None, None) if report.complete => continue,
            (None, None) if interrupted.load(Ordering::Relaxed) => Ended::Interrupted,
            (None, None) => Ended::Budget,
        };
        report.complete = false;
        break;
    }
    report.seconds = start.elapsed().as_secs_f64();
    report
}
