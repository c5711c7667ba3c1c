//! One case: a life after another, each on what a crash state of the one before left, judged at a sample of its moments and at its
//! end.
//!
//! **Invariant.** Everything that a case draws comes from one generator, in one order: it is a function of its seed.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use faultfs::disk::PossibleDisk;
use faultfs::profile::DiscardMode;
use faultfs::rng::Rng;
use faultfs::trace::{Event, Io, Trace};
use model::build::{Initial, build};
use model::case::{CrashImage, Step};
use model::guest::Guest;
use model::judge::Inherited;
use model::op::Op;

use super::settings::Settings;
use crate::any::AnySubject;
use crate::evidence::DiskEvidence;
use crate::figures::Figures;
use crate::leaf::{LeafChooser, SharedLeaf, look};
use crate::life::{self, LifeEnd, Moment, probe_trace};
use crate::liveness::{Before, p7_goes_on, p9_bounded_waste};
use crate::probe::{Probe, Probes};
use crate::recover::{Bench, Failure, Recovered, StepPlan};
use crate::robust;
use crate::situations::{
    Shape, is_discard, probe_answers, probe_data, probe_faults, probe_reloads,
};
use crate::subject::{Session, Subject};
use crate::trial::{self, At, Survivors, Trial, TrialLife, cluster_units};
use crate::workload::{self, LifePlan, Plan};

/// After one recovery in so many, every guest unit is written.
const GOES_ON_ONE_IN: u32 = 64;

/// One case in so many is run again as a kept one is: each life ends where the power failed, and its image is dropped there.
const KEPT_ONE_IN: u32 = 16;

/// The seed of a case.
pub fn case_seed(campaign: u64, number: u64) -> u64 {
    Rng::new(campaign ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next_u64()
}

/// What one case led to.
pub(super) struct CaseRun {
    pub(super) found: Option<(Failure, Trial)>,
    /// The damaged image on which it failed, if it was one.
    pub(super) image: Option<CrashImage>,
    /// Hash of everything that happened.
    pub(super) digest: u64,
    /// What happened in each life.
    pub(super) traces: Vec<Trace>,
    /// Whether it was brought to its end.
    pub(super) whole: bool,
}

/// Where two runs of a case part.
pub(super) fn first_difference(one: &[Trace], other: &[Trace]) -> String {
    let told = |event: Option<&Event>| match event {
        None => "nothing more".to_owned(),
        Some(Event::Submit { io, content }) => {
            let Io { kind, offset, len, .. } = io;
            format!("{kind:?} of {len} bytes at {offset:#x} (content {content:08x})")
        }
        Some(event) => format!("{event:?}"),
    };
    for life in 0..one.len().max(other.len()) {
        let events =
            |traces: &[Trace]| traces.get(life).map_or(Vec::new(), |it| it.events().to_vec());
        let (one, other) = (events(one), events(other));
        let at = (0..one.len().max(other.len())).find(|&at| one.get(at) != other.get(at));
        if let Some(at) = at {
            let (first, second) = (told(one.get(at)), told(other.get(at)));
            return format!("in life {life}, event {at} is {first} at first and {second} again");
        }
    }
    match one {
        [] => "it is a damaged image, of which no I/O was kept".to_owned(),
        _ => "the I/O of all lives is the same, and what was judged of it differs".to_owned(),
    }
}

/// A crash state that was judged, and what is left of it: the next life may start there.
struct Kept {
    disk: PossibleDisk,
    guest: Guest,
    at: At,
    draw: Draw,
    chooser: SharedLeaf,
    leaks: u64,
}

/// What decides how a crash state is looked at: the seed of what it left open, and the steps of its recovery.
#[derive(Clone)]
struct Draw {
    leaf: u64,
    steps: Vec<StepPlan>,
}

impl Draw {
    fn new(rng: &mut Rng) -> Self {
        let leaf = rng.next_u64();
        Self { leaf, steps: draw_steps(rng) }
    }

    fn chooser(&self, units: u32) -> SharedLeaf {
        LeafChooser::random(self.leaf, units).share()
    }
}

/// The image that a life begins on, as far as what the life leaves is compared with it.
struct Beginning {
    leaks: Before,
    shape: Shape,
    inherited: Inherited,
}

/// What was judged of a life until now.
#[derive(Default)]
struct Seen {
    judged: u32,
    kept: Option<Kept>,
    failure: Option<(Failure, At, Draw)>,
}

/// A case on its way.
struct Case<'a> {
    subject: &'a AnySubject,
    settings: &'a Settings,
    plan: &'a Plan,
    figures: &'a mut Figures,
    session: Session,
    bench: Bench,
    rng: Rng,
    /// One moment in so many is judged.
    sample: u32,
    probes: Probes,
    distinct: BTreeSet<u64>,
    digest: u64,
    /// Leaked clusters in the image that the life in hand begins on.
    leaks: u64,
    traces: Vec<Trace>,
    /// Whether nothing more is to be judged, which then cuts it.
    over: &'a dyn Fn() -> bool,
    is_cut: bool,
}

/// Runs the case of a seed.
pub(super) fn run_case(
    subject: &AnySubject,
    seed: u64,
    settings: &Settings,
    figures: &mut Figures,
    over: &dyn Fn() -> bool,
) -> CaseRun {
    let mut plan = workload::plan(seed, &settings.scope, &subject.capabilities());
    if build(&plan.geometry, plan.initial).is_err() {
        plan.initial = Initial::Fresh;
    }
    let session = Session::of(&plan.open, &plan.geometry);
    let mut trial = Trial::planned(&plan, settings.profile);
    let (mut disk, mut guest) = trial.start(subject).expect("a fresh image is always feasible");
    figures.cases += 1;
    if let Some(how) = settings.damage {
        let (found, digest) = robust::run_case(subject, &plan, disk, guest, how, seed, figures);
        let (failure, image) = found.unzip();
        let found = failure.map(|failure| (failure, trial));
        return CaseRun { found, image, digest, traces: Vec::new(), whole: true };
    }
    let mut rng = Rng::new(seed ^ 0x6c69_6665);
    figures.long_cases += u64::from(plan.lives.len() > 1);
    let states_before = figures.states;
    let mut case = Case {
        subject,
        settings,
        plan: &plan,
        figures,
        session,
        bench: Bench::new(subject.clone(), session, settings.profile),
        sample: sample(&plan, &mut rng),
        rng,
        probes: Probes::default(),
        distinct: BTreeSet::new(),
        digest: seed,
        leaks: 0,
        traces: Vec::new(),
        over,
        is_cut: false,
    };
    for number in 0..plan.lives.len() {
        let mut this = TrialLife::of(&plan.lives[number]);
        let lived = case.live(number, &mut this, &mut disk, &guest);
        trial.lives.push(this);
        let settled = match lived {
            Ok(None) => break,
            Ok(Some(mut next)) => {
                disk = next.disk;
                guest = next.guest;
                case.leaks = next.leaks;
                case.bench.settle_guest(&mut disk, &mut guest, &mut next.chooser)
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = settled {
            let found = Some((failure, trial));
            let Case { digest, traces, .. } = case;
            return CaseRun { found, image: None, digest, traces, whole: true };
        }
    }
    let whole = !case.is_cut;
    if whole
        && case.rng.below(KEPT_ONE_IN) == 0
        && let Ok(outcome) = trial::run(subject, &trial)
        && let Some((life, failure)) = outcome.failure
    {
        trial.lives.truncate(life + 1);
        let Case { digest, traces, .. } = case;
        return CaseRun { found: Some((failure, trial)), image: None, digest, traces, whole: true };
    }
    let Case { probes, distinct, digest, traces, .. } = case;
    figures.distinct_states += distinct.len() as u64;
    figures.probes.add(&probes);
    let states = figures.states - states_before;
    *figures.by_initial.entry(plan.initial.name().into()).or_default() += states;
    for shape in plan.shapes() {
        *figures.by_shape.entry(shape.name().into()).or_default() += states;
    }
    *figures.by_cluster.entry(plan.geometry.cluster_size()).or_default() += states;
    CaseRun { found: None, image: None, digest, traces, whole }
}

/// One moment in so many of a plan is judged.
fn sample(plan: &Plan, rng: &mut Rng) -> u32 {
    // Auditing an image with full refcount structures takes many times as long.
    let weight = match plan.initial {
        Initial::RefcountTableOneShort => 64,
        Initial::FullOfLeaks => 8,
        Initial::RefcountBlockOneShort => 4,
        _ => 1,
    };
    // So does a large one, and a life of many requests has many moments.
    let large = u32::try_from(plan.geometry.units() >> 8).expect("plans are small");
    // Where a device takes little at once, a long request has many, too.
    let moves =
        |op: &&Op| matches!(op, Op::Write { .. } | Op::WriteCompressed { .. } | Op::Read { .. });
    let bytes =
        |life: &LifePlan| life.tasks.iter().flatten().filter(moves).map(Op::length).sum::<u64>();
    let most = plan.lives.iter().map(bytes).max().unwrap_or_default();
    let transfers = most / u64::from(plan.device.max_transfer);
    let long = u32::try_from(transfers >> 10).expect("plans are small");
    [1, 2, 4][rng.below(3) as usize] * weight * (1 + large) * (1 + long)
}

impl Case<'_> {
    /// Runs a life of the plan on `disk`, notes in `this` where it ended, and says what the next one begins with; none if it was cut.
    fn live(
        &mut self,
        number: usize,
        this: &mut TrialLife,
        disk: &mut PossibleDisk,
        guest: &Guest,
    ) -> Result<Option<Kept>, Failure> {
        let plan = self.plan;
        self.figures.lives += 1;
        if number > 0 {
            self.probes.hit(Probe::SecondLife);
            if self.leaks > 0 {
                self.probes.hit(Probe::SecondLifeOnLeaky);
            }
            if plan.lives[number - 1].unrecovered {
                self.probes.hit(Probe::WorkedOn);
            }
        }
        let script = this.script(self.session);
        let inherited = trial::inherited(&mut self.bench, disk, guest);
        let beginning = Beginning {
            leaks: Before::of(&self.bench, &plan.geometry),
            shape: Shape::of(&self.bench),
            inherited,
        };
        let works_on = plan.lives[number].unrecovered && number + 1 < plan.lives.len();

        let mut seen = Seen::default();
        let mut probes = Probes::default();
        let subject = self.subject;
        let end = life::run(subject, disk.clone(), guest.clone(), &script, &mut probes, |moment| {
            self.is_cut = self.is_cut || (self.over)();
            match self.is_cut {
                true => ControlFlow::Break(()),
                false => self.look_at(moment, &beginning, works_on, &mut seen),
            }
        });
        if self.is_cut {
            return Ok(None);
        }
        self.figures.operations += end.operations;
        self.digest = self.digest.rotate_left(5) ^ end.trace_hash;
        let trace = end.sim.trace();
        self.traces.push(trace.clone());
        if let Some((failure, at, draw)) = seen.failure {
            *this = TrialLife {
                at,
                leaf: Survivors::Seed(draw.leaf),
                steps: draw.steps,
                ..this.clone()
            };
            return Err(failure);
        }
        let dropped = probes.count(Probe::Dropped) > 0;
        self.probes.add(&probes);
        self.figures.ios += end.sim.storage().submitted();
        probe_trace(trace.events(), plan.geometry.cluster_size(), &mut self.probes);
        probe_reloads(trace.events(), &self.bench, &mut self.probes);
        for pair in probe_faults(&script.faults, trace.events(), dropped, &mut self.probes) {
            *self.figures.fault_pairs.entry(pair).or_default() += 1;
        }
        if plan.discard == DiscardMode::Zeroes && trace.events().iter().any(is_discard) {
            self.probes.hit(Probe::DiscardZeroes);
        }
        if let Some(failure) = end.failure {
            return Err(failure);
        }

        let draw = Draw::new(&mut self.rng);
        (this.leaf, this.steps) = (Survivors::Seed(draw.leaf), draw.steps.clone());
        let last = self.look_at_end(end, &beginning, works_on, draw)?;
        let kept = match seen.kept {
            Some(kept) if self.rng.below(4) != 0 => kept,
            _ => last,
        };
        this.at = kept.at;
        (this.leaf, this.steps) = (Survivors::Seed(kept.draw.leaf), kept.draw.steps.clone());
        Ok(Some(kept))
    }

    /// Judges what a power cut at this moment leaves, if the moment is one of the sample.
    fn look_at(
        &mut self,
        moment: &Moment<'_>,
        beginning: &Beginning,
        works_on: bool,
        seen: &mut Seen,
    ) -> ControlFlow<()> {
        self.figures.crash_points += 1;
        if self.rng.below(self.sample) != 0 {
            return ControlFlow::Continue(());
        }
        let draw = Draw::new(&mut self.rng);
        let units = cluster_units(&self.plan.geometry);
        let chooser = draw.chooser(units);
        let mut guest = moment.guest.clone();
        guest.crash();
        let mut asked = SharedLeaf::clone(&chooser);
        let profile = self.settings.profile;
        let crashed = moment.sim.with_disk(|disk| disk.crash(profile, &mut asked));
        let length = crashed.possible_lengths();
        if let Some(second) = crashed.second() {
            let undecided = crashed.undecided();
            let is_second = |unit: &u32| *unit >= second;
            if undecided.iter().any(is_second) && !undecided.iter().all(is_second) {
                self.figures.probes.hit(Probe::BothFiles);
            }
        }
        let keep = self.rng.below(seen.judged + 1) == 0;
        let unrecovered = (keep && works_on).then(|| crashed.clone());
        let at = At::Event(moment.event);
        let judged = self
            .bench
            .judge_crash(crashed, &guest, &draw.steps, &chooser, &mut self.probes)
            .and_then(|recovered| {
                let may_leak = beginning.leaks.may_leak(moment.exposure);
                self.look_further(&recovered, &guest, &beginning.leaks, may_leak, &chooser)?;
                Ok(recovered)
            });
        let recovered = match judged {
            Ok(recovered) => recovered,
            Err(failure) => {
                seen.failure = Some((failure, at, draw));
                return ControlFlow::Break(());
            }
        };
        seen.judged += 1;
        self.take_down(&guest, &recovered);
        if length.len() > 1 && recovered.disk.possible_lengths() != length[..1] {
            self.probes.hit(Probe::LaggingLength);
        }
        probe_answers(look(&chooser).answers(), &self.bench, &mut self.probes);
        probe_data(&recovered.disk, &self.bench, units, &mut self.probes);
        if keep {
            let Recovered { disk, leaks, .. } = recovered;
            let disk = unrecovered.unwrap_or(disk);
            seen.kept = Some(Kept { disk, guest, at, draw, chooser, leaks });
        }
        ControlFlow::Continue(())
    }

    /// P9, and now and then P7, of what a recovery left.
    fn look_further(
        &mut self,
        recovered: &Recovered,
        guest: &Guest,
        before: &Before,
        may_leak: u64,
        chooser: &SharedLeaf,
    ) -> Result<(), Failure> {
        let leaked = before.leaked(recovered);
        p9_bounded_waste(self.subject, leaked, may_leak)?;
        if leaked > 0 {
            // More than it may is only of whoever is not held to it.
            if leaked <= may_leak {
                self.figures.most_leaked = self.figures.most_leaked.max(leaked);
                self.figures.leak_percent = self.figures.leak_percent.max(100 * leaked / may_leak);
            }
            self.probes.hit(Probe::Leaked);
        }
        if self.rng.below(GOES_ON_ONE_IN) == 0 {
            let (disk, geometry) = (&recovered.disk, &self.plan.geometry);
            let went_on = p7_goes_on(
                self.subject,
                self.session,
                self.settings.profile,
                geometry,
                disk,
                guest,
                chooser,
            )?;
            let percent = 100 * went_on.ios / went_on.most;
            self.figures.liveness_percent = self.figures.liveness_percent.max(percent);
            if went_on.refilled {
                self.probes.hit(Probe::SpaceFoundAgain);
            }
            self.probes.hit(Probe::GoesOn);
        }
        Ok(())
    }

    /// Judges the end of a life, which is a moment too, and the only one at which a clean close can be judged.
    fn look_at_end(
        &mut self,
        end: LifeEnd,
        beginning: &Beginning,
        works_on: bool,
        draw: Draw,
    ) -> Result<Kept, Failure> {
        let chooser = draw.chooser(cluster_units(&self.plan.geometry));
        let mut asked = SharedLeaf::clone(&chooser);
        let mut guest = end.guest;
        guest.crash();
        let mut crashed = end.disk.crash(self.settings.profile, &mut asked);
        if end.closed {
            let mut evidence = DiskEvidence::new(&mut crashed, &mut asked);
            let violations = self.bench.judge.closed(&mut evidence, &guest, &beginning.inherited);
            if let Some(violation) = violations.first().cloned() {
                return Err(Failure { violation, moment: "after a clean close".to_owned() });
            }
            beginning.shape.compare(&Shape::of(&self.bench), &mut self.probes);
        }
        let unrecovered = works_on.then(|| crashed.clone());
        let probes = &mut self.probes;
        let recovered = self.bench.judge_crash(crashed, &guest, &draw.steps, &chooser, probes)?;
        self.take_down(&guest, &recovered);
        let Recovered { disk, leaks, .. } = recovered;
        let disk = unrecovered.unwrap_or(disk);
        Ok(Kept { disk, guest, at: At::End, draw, chooser, leaks })
    }

    /// Adds a state that was judged and passed to the figures.
    fn take_down(&mut self, guest: &Guest, recovered: &Recovered) {
        self.figures.judged(guest, recovered.states);
        let state = recovered.disk.state_hash();
        self.digest = self.digest.rotate_left(5) ^ state;
        self.distinct.insert(state);
    }
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
