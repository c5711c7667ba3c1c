//! Many cases: each a plan, run life after life, judged at a sample of its moments; figures at the end.
//!
//! **Invariant.** A case is a function of the campaign's seed and its own number, so workers may take cases in any order and
//! a violation is found again from the two.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faultfs::disk::PossibleDisk;
use faultfs::fault::Planned;
use faultfs::profile::{DiscardMode, Profile, Robustness};
use faultfs::rng::Rng;
use faultfs::trace::{Event, Io, IoKind};
use model::build::{Initial, build};
use model::case::{CrashImage, Step};
use model::guest::Guest;
use model::image::Mapping;
use model::label::Region;

use crate::ended::Ended;
use crate::evidence::DiskEvidence;
use crate::figures::Figures;
use crate::interrupt;
use crate::leaf::{Answer, LeafChooser, SharedLeaf, look};
use crate::life::{self, probe_trace};
use crate::liveness::{Before, p7_goes_on, p9_bounded_waste};
use crate::probe::{Probe, Probes};
use crate::recover::{Bench, Failure, StepPlan};
use crate::robust;
use crate::subject::{Session, Subject};
use crate::trial::{self, At, Leaf, Trial, TrialLife, cluster_units};
use crate::workload::{self, FaultKind, Scope};

/// After one recovery in so many, every guest unit is written.
const GOES_ON_ONE_IN: u32 = 64;

/// One case in so many is run twice, to see that it is a function of its seed.
const REPEAT_ONE_IN: u64 = 100;

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
    /// After this many crash states, or after this much time.
    States(u64, Duration),
}

/// A violation, with the way that leads to it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Number of the case in the campaign.
    pub case: u64,
    /// What went wrong.
    pub failure: Failure,
    /// How to see it again.
    pub trial: Trial,
    /// The image, if it was a damaged one; the trial then has no lives.
    pub image: Option<CrashImage>,
    /// Crash states that this worker had judged before.
    pub states: u64,
}

/// What a campaign did and found.
#[derive(Debug)]
pub struct Report {
    /// The figures.
    pub figures: Figures,
    /// The first violation, by case number.
    pub found: Option<Found>,
    /// Why the run proves nothing, if it does not: a case that is not a function of its seed.
    pub broken: Option<String>,
    /// Why it went no further.
    pub ended: Ended,
}

/// Runs a campaign; `progress` is called now and then with the figures so far. A signal ends it after the cases
/// in hand.
pub fn run<Sub: Subject>(
    subject: &Sub,
    settings: &Settings,
    progress: impl Fn(&Figures) + Sync,
) -> Report {
    #[expect(clippy::disallowed_methods, reason = "the budget of a campaign is time by the clock")]
    let now = Instant::now;
    let start = now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let interrupted = AtomicBool::new(false);
    let states = AtomicU64::new(0);
    let shared = Mutex::new((Figures::default(), None::<Found>, None::<String>));
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        workers => workers,
    };
    let work = |reports: bool| {
        let worker_start = now();
        let mut total = Figures::default();
        let mut last_report = worker_start;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let done = match settings.budget {
                Budget::Time(limit) => start.elapsed() >= limit,
                Budget::Cases(count) => number >= count,
                Budget::States(count, limit) => {
                    states.load(Ordering::Relaxed) >= count || start.elapsed() >= limit
                }
            };
            if done || stop.load(Ordering::Relaxed) {
                break;
            }
            if interrupt::asked() {
                interrupted.store(true, Ordering::Relaxed);
                break;
            }
            let seed = case_seed(settings.seed, number);
            let mut figures = Figures::default();
            let run = run_case(subject, seed, settings, &mut figures);
            let mut broken = None;
            if number.is_multiple_of(REPEAT_ONE_IN) {
                let again = run_case(subject, seed, settings, &mut Figures::default());
                figures.repeated += 1;
                if again.digest != run.digest {
                    broken = Some(format!("case {number} is not a function of its seed {seed}"));
                }
            }
            states.fetch_add(figures.states, Ordering::Relaxed);
            total.add(&figures);
            if run.found.is_some() || broken.is_some() {
                let mut shared = shared.lock().expect("no worker panics with the lock");
                if let Some((failure, trial)) = run.found
                    && shared.1.as_ref().is_none_or(|first| number < first.case)
                {
                    let (image, states) = (run.image, total.states);
                    shared.1 = Some(Found { case: number, failure, trial, image, states });
                }
                shared.2 = shared.2.take().or(broken);
                stop.store(true, Ordering::Relaxed);
            }
            if reports && last_report.elapsed() >= Duration::from_millis(500) {
                last_report = now();
                let mut figures = total.clone();
                figures.seconds = start.elapsed().as_secs_f64();
                figures.worker_seconds = worker_start.elapsed().as_secs_f64();
                progress(&figures);
            }
        }
        total.worker_seconds = worker_start.elapsed().as_secs_f64();
        shared.lock().expect("no worker panics with the lock").0.add(&total);
    };
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(|| work(false));
        }
        work(true);
    });
    let (mut figures, found, broken) = shared.into_inner().expect("no worker panics with the lock");
    figures.seconds = start.elapsed().as_secs_f64();
    let ended = match (&found, &broken) {
        (Some(_), _) => Ended::Violation,
        (None, Some(_)) => Ended::Broken,
        (None, None) if interrupted.into_inner() => Ended::Interrupted,
        (None, None) => Ended::Budget,
    };
    Report { figures, found, broken, ended }
}

/// The seed of a case.
pub fn case_seed(campaign: u64, number: u64) -> u64 {
    Rng::new(campaign ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next_u64()
}

/// What one case led to.
struct CaseRun {
    found: Option<(Failure, Trial)>,
    /// The damaged image on which it failed, if it was one.
    image: Option<CrashImage>,
    /// Hash of everything that happened.
    digest: u64,
}

/// What the next life starts from.
struct Kept {
    disk: PossibleDisk,
    guest: Guest,
    at: At,
    leaf: u64,
    steps: Vec<StepPlan>,
    chooser: SharedLeaf,
    leaks: u64,
}

/// Runs the case of a seed.
fn run_case<Sub: Subject>(
    subject: &Sub,
    seed: u64,
    settings: &Settings,
    figures: &mut Figures,
) -> CaseRun {
    let mut plan = workload::plan(seed, &settings.scope);
    if plan.initial.is_dirty(&plan.geometry) && !subject.duties().repair {
        plan.initial = Initial::Fresh;
    }
    if build(&plan.geometry, plan.initial).is_err() {
        plan.initial = Initial::Fresh;
    }
    let session = Session::of(&plan.open);
    let mut trial = Trial {
        geometry: plan.geometry,
        initial: plan.initial,
        open: plan.open.clone(),
        profile: settings.profile,
        discard: plan.discard,
        device: plan.device,
        lives: Vec::new(),
    };
    let (mut disk, mut guest) = trial.start(subject).expect("a fresh image is always feasible");
    figures.cases += 1;
    if let Some(how) = settings.damage {
        let (found, digest) = robust::run_case(subject, &plan, disk, guest, how, seed, figures);
        let (failure, image) = found.unzip();
        return CaseRun { found: failure.map(|failure| (failure, trial)), image, digest };
    }
    let units = cluster_units(&plan.geometry);
    let mut rng = Rng::new(seed ^ 0x6c69_6665);
    let mut bench = Bench::new(subject.clone(), session, settings.profile);
    let mut digest = seed;
    let (mut probes, mut leaf_probes) = (Probes::default(), Probes::default());
    let mut distinct = BTreeSet::new();
    figures.long_cases += u64::from(plan.lives.len() > 1);
    let states_before = figures.states;
    // Auditing an image with full refcount structures takes many times as long.
    let weight = match plan.initial {
        Initial::RefcountTableOneShort => 64,
        Initial::FullOfLeaks => 8,
        Initial::RefcountBlockOneShort => 4,
        _ => 1,
    };
    // So does a large one, and a life of many requests has many moments.
    let large = u32::try_from(plan.geometry.units() >> 8).expect("plans are small");
    let sample = [1, 2, 4][rng.below(3) as usize] * weight * (1 + large);
    let mut leaks = 0;
    let mut found = None;

    for (number, life) in plan.lives.iter().enumerate() {
        figures.lives += 1;
        if number > 0 {
            probes.hit(Probe::SecondLife);
            if leaks > 0 {
                probes.hit(Probe::SecondLifeOnLeaky);
            }
        }
        if number > 0 && plan.lives[number - 1].unrecovered {
            probes.hit(Probe::WorkedOn);
        }
        let mut this = TrialLife::of(life);
        let goes_on = number + 1 < plan.lives.len();
        let script = this.script(session);
        let inherited = trial::inherited(&mut bench, &mut disk, &guest);
        let began = Before::of(&bench, &plan.geometry);
        let before = Shape::of(&bench);
        let mut kept: Option<Kept> = None;
        let mut judged = 0;
        let dropped_before = probes.count(Probe::Dropped);
        let end = life::run(subject, disk.clone(), guest.clone(), &script, &mut probes, |moment| {
            figures.crash_points += 1;
            if rng.below(sample) != 0 {
                return ControlFlow::Continue(());
            }
            let leaf = rng.next_u64();
            let steps = draw_steps(&mut rng);
            let chooser = LeafChooser::random(leaf, units).share();
            let mut seen = moment.guest.clone();
            seen.crash();
            let mut asked = SharedLeaf::clone(&chooser);
            let crashed = moment.sim.with_disk(|disk| disk.crash(settings.profile, &mut asked));
            let length = crashed.possible_lengths();
            let keep = rng.below(judged + 1) == 0;
            let unrecovered = (keep && life.unrecovered && goes_on).then(|| crashed.clone());
            let result = bench.judge_crash(crashed, &seen, &steps, &chooser, &mut leaf_probes);
            let at = At::Event(moment.event);
            let may_leak = began.may_leak(moment.exposure);
            let result = result.and_then(|recovered| {
                let leaked = began.leaked(&recovered);
                p9_bounded_waste(leaked, may_leak)?;
                if leaked > 0 {
                    leak_probes(leaked, may_leak, figures, &mut leaf_probes);
                }
                if rng.below(GOES_ON_ONE_IN) == 0 {
                    let disk = &recovered.disk;
                    let went_on = p7_goes_on(subject, session, &plan.geometry, disk, &chooser)?;
                    figures.liveness_percent =
                        figures.liveness_percent.max(100 * went_on.ios / went_on.most);
                    if went_on.refilled {
                        leaf_probes.hit(Probe::SpaceFoundAgain);
                    }
                    leaf_probes.hit(Probe::GoesOn);
                }
                Ok(recovered)
            });
            match result {
                Ok(recovered) => {
                    judged += 1;
                    count(figures, &seen, recovered.states);
                    let state = recovered.disk.state_hash();
                    digest = digest.rotate_left(5) ^ state;
                    distinct.insert(state);
                    if length.len() > 1 && recovered.disk.possible_lengths() != length[..1] {
                        leaf_probes.hit(Probe::LaggingLength);
                    }
                    probe_answers(look(&chooser).answers(), &bench, &mut leaf_probes);
                    probe_data(&recovered.disk, &bench, units, &mut leaf_probes);
                    if keep {
                        kept = Some(Kept {
                            disk: unrecovered.unwrap_or(recovered.disk),
                            guest: seen,
                            at,
                            leaf,
                            steps,
                            chooser,
                            leaks: recovered.leaks,
                        });
                    }
                    ControlFlow::Continue(())
                }
                Err(failure) => {
                    found = Some((failure, at, leaf, steps));
                    ControlFlow::Break(())
                }
            }
        });
        figures.operations += end.operations;
        digest = digest.rotate_left(5) ^ end.trace_hash;
        if let Some((failure, at, leaf, steps)) = found.take() {
            this.at = at;
            this.leaf = Leaf::Seed(leaf);
            this.steps = steps;
            trial.lives.push(this);
            return CaseRun { found: Some((failure, trial)), image: None, digest };
        }
        let trace = end.sim.trace();
        figures.ios += end.sim.storage().submitted();
        probe_trace(trace.events(), plan.geometry.cluster_size(), &mut probes);
        probe_reloads(trace.events(), &bench, &mut probes);
        let dropped = probes.count(Probe::Dropped) > dropped_before;
        let struck = probe_faults(&script.faults, trace.events(), dropped, &mut probes);
        for pair in struck {
            *figures.fault_pairs.entry(pair).or_default() += 1;
        }
        if plan.discard == DiscardMode::Zeroes && trace.events().iter().any(is_discard) {
            probes.hit(Probe::DiscardZeroes);
        }
        if let Some(failure) = end.failure {
            trial.lives.push(this);
            return CaseRun { found: Some((failure, trial)), image: None, digest };
        }

        // The end of the life is a moment too, and the only one at which a clean close can be judged.
        let leaf = rng.next_u64();
        let steps = draw_steps(&mut rng);
        let chooser = LeafChooser::random(leaf, units).share();
        let mut asked = SharedLeaf::clone(&chooser);
        let mut seen = end.guest;
        seen.crash();
        let mut crashed = end.disk.crash(settings.profile, &mut asked);
        this.leaf = Leaf::Seed(leaf);
        this.steps.clone_from(&steps);
        if end.closed {
            let mut evidence = DiskEvidence::new(&mut crashed, &mut asked);
            let violations = bench.judge.closed(&mut evidence, &seen, &inherited);
            if let Some(violation) = violations.first().cloned() {
                let failure = Failure { violation, moment: "after a clean close".to_owned() };
                trial.lives.push(this);
                return CaseRun { found: Some((failure, trial)), image: None, digest };
            }
            before.compare(&Shape::of(&bench), &mut probes);
        }
        let unrecovered = (life.unrecovered && goes_on).then(|| crashed.clone());
        match bench.judge_crash(crashed, &seen, &steps, &chooser, &mut probes) {
            Ok(recovered) => {
                count(figures, &seen, recovered.states);
                digest = digest.rotate_left(5) ^ recovered.disk.state_hash();
                distinct.insert(recovered.disk.state_hash());
                if kept.is_none() || rng.below(4) == 0 {
                    kept = Some(Kept {
                        disk: unrecovered.unwrap_or(recovered.disk),
                        guest: seen,
                        at: At::End,
                        leaf,
                        steps,
                        chooser,
                        leaks: recovered.leaks,
                    });
                }
            }
            Err(failure) => {
                trial.lives.push(this);
                return CaseRun { found: Some((failure, trial)), image: None, digest };
            }
        }
        let Some(mut next) = kept else { break };
        this.at = next.at;
        this.leaf = Leaf::Seed(next.leaf);
        this.steps = next.steps;
        trial.lives.push(this);
        disk = next.disk;
        guest = next.guest;
        leaks = next.leaks;
        bench.settle_guest(&mut disk, &mut guest, &mut next.chooser);
    }
    figures.distinct_states += distinct.len() as u64;
    figures.probes.add(&probes);
    figures.probes.add(&leaf_probes);
    let states = figures.states - states_before;
    *figures.by_initial.entry(initial_name(plan.initial)).or_default() += states;
    for shape in plan.shapes() {
        *figures.by_shape.entry(shape.name()).or_default() += states;
    }
    *figures.by_cluster.entry(plan.geometry.cluster_size()).or_default() += states;
    CaseRun { found: None, image: None, digest }
}

fn leak_probes(leaked: u64, may_leak: u64, figures: &mut Figures, probes: &mut Probes) {
    figures.most_leaked = figures.most_leaked.max(leaked);
    figures.leak_percent = figures.leak_percent.max(100 * leaked / may_leak);
    probes.hit(Probe::Leaked);
}

/// Adds a judged state to the figures.
pub(crate) fn count(figures: &mut Figures, guest: &Guest, states: u64) {
    figures.states += states;
    figures.nested_states += states - 1;
    let sets = guest.figures();
    figures.units += sets.units;
    figures.decided_units += sets.decided;
    figures.allowed_values += sets.values;
}

/// Recovery as a random case runs it: often nothing before the image is opened for good, else up to four steps, most of them
/// cut short.
pub(crate) fn draw_steps(rng: &mut Rng) -> Vec<StepPlan> {
    if rng.below(2) == 0 {
        return Vec::new();
    }
    (0..=rng.below(4))
        .map(|_| match rng.below(10) {
            8 => StepPlan { run: Step::Check, crash_at: None },
            9 => StepPlan { run: Step::RepairLeaks, crash_at: Some(u64::from(rng.below(10))) },
            0 => StepPlan { run: Step::OpenReadOnly, crash_at: None },
            1 => StepPlan { run: Step::Repair, crash_at: Some(u64::from(rng.below(10))) },
            2 => StepPlan { run: Step::Open, crash_at: None },
            _ => StepPlan { run: Step::Open, crash_at: Some(u64::from(rng.below(10))) },
        })
        .collect()
}

const fn is_discard(event: &Event) -> bool {
    matches!(event, Event::Submit { io: Io { kind: IoKind::Discard, .. }, .. })
}

/// Which faults of a life struck, and which two did so together.
fn probe_faults(
    planned: &Planned,
    events: &[Event],
    dropped: bool,
    probes: &mut Probes,
) -> BTreeSet<(FaultKind, FaultKind)> {
    let mut completed = BTreeSet::new();
    let mut failed = BTreeSet::new();
    for event in events {
        match *event {
            Event::Complete { index, .. } => drop(completed.insert(index)),
            Event::Fail { index, .. } => drop(failed.insert(index)),
            _ => {}
        }
    }
    let mut struck = Vec::new();
    for fault in &planned.0 {
        let last = events.iter().rev().find_map(|event| match event {
            Event::Submit { io, .. } if failed.contains(&io.index) => {
                planned.striking(io).is_some_and(|by| by == fault).then_some(io.index)
            }
            _ => None,
        });
        let Some(last) = last else { continue };
        let kind = FaultKind::of(fault);
        struck.push(kind);
        match kind {
            FaultKind::FlushRetrySafe => probes.hit(Probe::FlushRetrySafe),
            FaultKind::FlushCleanMarked => probes.hit(Probe::FlushCleanMarked),
            FaultKind::FlushSticky => probes.hit(Probe::FlushSticky),
            FaultKind::ShortRead => probes.hit(Probe::ShortRead),
            FaultKind::ShortWrite => probes.hit(Probe::ShortWrite),
            FaultKind::WriteThroughFailed => probes.hit(Probe::WriteThroughFailed),
            FaultKind::Late if goes_on(events, last) => probes.hit(Probe::LateLanding),
            FaultKind::FullDevice => {
                let works = |event: &Event| match event {
                    Event::Submit { io, .. } => {
                        io.index > last && io.kind.is_update() && completed.contains(&io.index)
                    }
                    _ => false,
                };
                if events.iter().any(works) {
                    probes.hit(Probe::FullForGood);
                }
            }
            FaultKind::NoSpaceForAWhile => {
                let works = |event: &Event| match event {
                    Event::Submit { io, .. } => {
                        io.index > last
                            && fault.fault.concerns(io.kind)
                            && completed.contains(&io.index)
                    }
                    _ => false,
                };
                if events.iter().any(works) {
                    probes.hit(Probe::SpaceAgain);
                }
            }
            _ => {}
        }
    }
    struck.extend(dropped.then_some(FaultKind::Dropped));
    struck.sort_unstable();
    let mut pairs = BTreeSet::new();
    for (at, &one) in struck.iter().enumerate() {
        pairs.extend(struck[at + 1..].iter().map(|&other| (one, other)));
    }
    if !pairs.is_empty() {
        probes.hit(Probe::TwoFaults);
    }
    pairs
}

/// Metadata that was read again after it had been written, as the image is now: its page had been given up meanwhile.
fn probe_reloads<Sub: Subject>(events: &[Event], bench: &Bench<Sub>, probes: &mut Probes) {
    let image = bench.judge.auditor().image();
    // By offset of each unit: whether a flush has covered it.
    let mut written: BTreeMap<u64, bool> = BTreeMap::new();
    for event in events {
        match event {
            Event::Submit { io, .. } if io.kind == IoKind::Write => {
                written
                    .extend((io.offset..io.offset + io.len).step_by(512).map(|unit| (unit, false)));
            }
            Event::Submit { io, .. } if io.kind == IoKind::Flush => {
                written.values_mut().for_each(|flushed| *flushed = true);
            }
            Event::Submit { io, .. } if io.kind == IoKind::Read => {
                let Some(flushed) = written.get(&io.offset) else { continue };
                if !matches!(
                    image.label(io.offset).region,
                    Region::L2(_) | Region::RefcountBlock(_)
                ) {
                    continue;
                }
                probes.hit(Probe::Reloaded);
                if !flushed {
                    probes.hit(Probe::ReloadedUndurable);
                }
            }
            _ => {}
        }
    }
}

/// Whether the bytes of an I/O that failed were updated again, or the storage was settled.
fn goes_on(events: &[Event], failed: u64) -> bool {
    let mut late = None;
    events.iter().any(|event| match (event, late) {
        (Event::Submit { io, .. }, None) if io.index == failed => {
            late = Some(*io);
            false
        }
        (Event::Submit { io, .. }, Some(late)) => io.kind.is_update() && io.overlaps(&late),
        (Event::Settle, late) => late.is_some(),
        _ => false,
    })
}

/// What an image consists of, for seeing it grow and its clusters change hands.
#[derive(Default)]
pub(crate) struct Shape {
    cluster: u64,
    l1: u64,
    refcount_table: u64,
    blocks: usize,
    /// Guest cluster by host offset.
    owners: BTreeMap<u64, u64>,
}

impl Shape {
    pub(crate) fn cluster_size(&self) -> u64 {
        self.cluster
    }

    pub(crate) fn of<Sub: Subject>(bench: &Bench<Sub>) -> Self {
        let image = bench.judge.auditor().image();
        let Some(header) = image.header() else { return Self::default() };
        let clusters = header.size.div_ceil(header.cluster_size());
        let owners = (0..clusters).filter_map(|cluster| match image.mapping(cluster) {
            Mapping::Host(offset) => Some((offset, cluster)),
            _ => None,
        });
        Self {
            cluster: header.cluster_size(),
            l1: header.l1_table_offset,
            refcount_table: header.refcount_table_offset,
            blocks: image.refcount_blocks(),
            owners: owners.collect(),
        }
    }

    pub(crate) fn compare(&self, after: &Self, probes: &mut Probes) {
        if after.l1 != self.l1 {
            probes.hit(Probe::L1Growth);
        }
        if after.refcount_table != self.refcount_table {
            probes.hit(Probe::RefcountTableGrowth);
        }
        if after.blocks > self.blocks {
            probes.hit(Probe::RefcountBlockGrowth);
        }
        let reused = |(host, guest)| self.owners.get(host).is_some_and(|owner| owner != guest);
        if after.owners.iter().any(reused) {
            probes.hit(Probe::Reuse);
        }
    }
}

/// Guest data that came back with several values possible, all of which were judged.
pub(crate) fn probe_data<Sub: Subject>(
    disk: &PossibleDisk,
    bench: &Bench<Sub>,
    units: u32,
    probes: &mut Probes,
) {
    let image = bench.judge.auditor().image();
    let mut last = None;
    for unit in disk.undecided() {
        if matches!(image.label(u64::from(unit) * 512).region, Region::Data(_)) {
            probes.hit(Probe::UnflushedLost);
            if last == Some(unit / units) {
                probes.hit(Probe::TornData);
            }
            last = Some(unit / units);
        }
    }
}

/// Which structures a crash tore, by what the units of each were decided to be.
pub(crate) fn probe_answers<Sub: Subject>(
    answers: &[Answer],
    bench: &Bench<Sub>,
    probes: &mut Probes,
) {
    if answers.is_empty() {
        return;
    }
    let image = bench.judge.auditor().image();
    let mut kept = BTreeSet::new();
    let mut lost = BTreeSet::new();
    for answer in answers {
        let Some(unit) = answer.unit else { continue };
        let region = image.label(u64::from(unit) * 512).region;
        if answer.taken == 0 { &mut kept } else { &mut lost }.insert(region);
    }
    let l2 = |set: &BTreeSet<Region>| set.iter().any(|region| matches!(region, Region::L2(_)));
    let counts = |set: &BTreeSet<Region>| {
        set.iter().any(|region| matches!(region, Region::RefcountBlock(_)))
    };
    for region in kept.intersection(&lost) {
        match region {
            Region::L2(_) => probes.hit(Probe::TornL2),
            Region::RefcountBlock(_) => probes.hit(Probe::TornRefcountBlock),
            _ => {}
        }
    }
    if l2(&kept) && counts(&lost) {
        probes.hit(Probe::L2WithoutRefcount);
    }
    if counts(&kept) && l2(&lost) {
        probes.hit(Probe::RefcountWithoutL2);
    }
}

/// The name of an initial image in figures.
pub const fn initial_name(initial: Initial) -> &'static str {
    match initial {
        Initial::Fresh => "fresh",
        Initial::RefcountBlockOneShort => "refcount-block-one-short",
        Initial::RefcountTableOneShort => "refcount-table-one-short",
        Initial::L1AboutToGrow => "l1-about-to-grow",
        Initial::Leaky => "leaky",
        Initial::Dirty => "dirty",
        Initial::Fragmented => "fragmented",
        Initial::Bitmaps => "bitmaps",
        Initial::Leftovers => "leftovers",
        Initial::FullOfLeaks => "full-of-leaks",
    }
}
