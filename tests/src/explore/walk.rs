//! One workload, and every state that a power cut in its last request can leave; or two requests at once, in every order.
//!
//! ```text
//!   request ──submits──> fork ──power cut──> crash disk ──audit──> leaf ──open, repair, repair──> recovered
//!      │                  fork ─ ...             │  └─ another answer ─> leaf                │
//!      └─ returns ──> disk, with more promised   └─ met before: nothing new                  └─ each write of it is a fork too
//! ```
//!
//! The audit and the recovery run on the possible disk and are repeated for every combination of answers to what they ask
//! of it, depth first; units that nobody reads stay sets, and the judge asks that the whole set is allowed. Nothing is lost
//! by that because both are functions of what they read: a run that asks differently after the same answers is reported as
//! a broken harness.
//!
//! Two memories keep this finite, both forgotten after the workload, so that what is counted of it depends on it alone:
//!
//! - a crash disk, with what the guest may see, is entered once;
//! - recovery from a disk whose metadata the audit has decided is a leaf once, whatever led there. Its outcome depends on
//!   that disk alone, and what the guest may see was judged before it: recovery may not change contents (P3).
//!
//! For the same reason a leaf need not run what ran for another workload. More memories are kept from workload to workload, and
//! change no number:
//!
//! - what recovery made of a disk, if it asked nothing of it;
//! - what recovery did to a disk, if that follows from its metadata (see [`course`](super::course));
//! - what an audit found, by what it was told of the disk: all disks of a walk have one store of values;
//! - the ways through a crash disk, with what the guest may see there. Both lead to the same leaves, and to the same power cuts in
//!   their recovery, whenever they are met; which of them are new is asked again each time.
//!
//! A request is judged in the workload that ends with it; the ones before it only have to have happened. So a walk keeps the way to
//! the last workload as forks, one after opening and one after each request, and a workload that shares some of that way begins
//! at the last fork of it. In the order of their numbers, workloads share all but their last request with the ones beside them.
//! A subject that cannot be forked does its requests again.
//!
//! Power cuts within recovery enter the same memory, so they are followed to the depth at which no new state appears.
//! A power cut before the request has submitted anything leaves the disk of the end of the request before it, with more
//! values allowed: it is judged there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use faultfs::chooser::{Always, Choice, Chooser, Exhaustive, Taken};
use faultfs::direct::{Direct, DirectOptions, Done, run};
use faultfs::disk::PossibleDisk;
use faultfs::fault::Planned;
use faultfs::profile::Profile;
use faultfs::schedule::{Choices, PutOff, Schedule};
use faultfs::values::Values;
use model::evidence::ValueKey;
use model::finding::Property;
use model::guest::Guest;
use model::judge::{Inherited, p0_misread};
use model::op::Op;
use model::payload::{self, UNIT};

use super::at_once::AtOnce;
use crate::any::AnySubject;
use crate::buffer::to_read_into;
use crate::call::{Opened, open};
use crate::evidence::DiskEvidence;
use crate::explore::course::Course;
use crate::leaf::Answer;
use crate::life::{Order, Request, Script, perform, probe_trace, run_scheduled};
use crate::panics;
use crate::probe::{Probe, Probes};
use crate::recover::{Bench, Failure, Watched, collapse, panicked, whole_image};
use crate::situations::{Shape, probe_answers};
use crate::subject::{Refusal, Session, Subject, SubjectImage};

/// What exploring has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Moments at which the power could fail.
    pub crash_points: u64,
    /// Of these, and of the power cuts in recovery, the ones that left a disk or a promise not met before.
    pub crash_disks: u64,
    /// Ways through a crash disk, judged, to disks that the workload had not been recovered from before.
    pub leaves: u64,
    /// Ways through a crash disk that ended, after the audit, in a disk that had been recovered from before.
    pub memo_hits: u64,
    /// Power cuts in recovery.
    pub nested: u64,
    /// Orders of two tasks' steps that were run.
    pub schedules: u64,
    /// How many power cuts in recovery followed each other at most.
    pub deepest: u32,
    /// Sum over all leaves of a hash of what was left after recovery.
    pub digest: u64,
}

impl Coverage {
    /// Adds what was done elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.crash_points += other.crash_points;
        self.crash_disks += other.crash_disks;
        self.leaves += other.leaves;
        self.memo_hits += other.memo_hits;
        self.nested += other.nested;
        self.schedules += other.schedules;
        self.deepest = self.deepest.max(other.deepest);
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

/// Why a walk ended before its end.
#[derive(Clone, Debug)]
pub enum Stop {
    /// The subject broke a promise.
    Failed(Failure),
    /// The run proves nothing.
    Broken(String),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Every combination of answers, and what the present one is about.
#[derive(Debug, Default)]
struct Odometer {
    wheels: Exhaustive,
    answers: Vec<Answer>,
}

impl Chooser for Odometer {
    fn choose(&mut self, options: u32, what: Choice<'_>) -> u32 {
        let unit = match what {
            Choice::Unit { unit, .. } | Choice::Read { unit, .. } | Choice::Write { unit, .. } => {
                Some(unit)
            }
            _ => None,
        };
        let taken = self.wheels.choose(options, what);
        self.answers.push(Answer { unit, options, taken });
        taken
    }
}

/// The probes that need a look at every leaf, or at every I/O: none of it is done once all are reached.
const OF_LEAVES: [Probe; 4] =
    [Probe::TornL2, Probe::TornRefcountBlock, Probe::L2WithoutRefcount, Probe::RefcountWithoutL2];
const OF_TRACES: [Probe; 3] = [Probe::CopiedOnWrite, Probe::PaddedBothSides, Probe::HostDiscard];

/// A workload on its way: what the guest may see, the storage, and the image that is open on it.
struct Reached {
    guest: Guest,
    direct: Direct<Always>,
    image: Opened,
}

impl Reached {
    /// The same again, to go another way from here; none if the subject cannot.
    fn fork(&self, subject: &AnySubject) -> Option<Self> {
        let direct = self.direct.fork();
        let image = self.image.fork(subject, direct.clone())?;
        Some(Self { guest: self.guest.clone(), direct, image })
    }
}

/// The requests that led somewhere, and where that is.
struct Way {
    /// Where opening led, and then each request. One more than requests, or none at all.
    forks: Vec<Reached>,
    ops: Vec<Op>,
}

impl Way {
    const fn new() -> Self {
        Self { forks: Vec::new(), ops: Vec::new() }
    }

    /// Goes back to the last fork that lies on the way to `ops`, and says how many of them that is. None: to begin with.
    fn back_to(&mut self, ops: &[Op], subject: &AnySubject) -> Option<(Reached, usize)> {
        let shared = self.ops.iter().zip(ops).take_while(|(old, new)| old == new).count();
        self.ops.truncate(shared);
        self.forks.truncate(shared + 1);
        Some((self.forks.last()?.fork(subject)?, shared))
    }
}

/// What the guest may see after a power cut.
#[derive(Clone)]
struct Ground {
    guest: Arc<Guest>,
    hash: u64,
}

impl Ground {
    fn new(guest: Guest) -> Self {
        Self { hash: guest.allowed_hash(), guest: Arc::new(guest) }
    }

    /// What there is when the power fails now.
    fn after(guest: &Guest) -> Self {
        let mut seen = guest.clone();
        seen.crash();
        Self::new(seen)
    }
}

/// What a power cut left, and its hash.
#[derive(Clone)]
struct Cut {
    disk: Arc<PossibleDisk>,
    hash: u64,
}

/// A crash disk that is still to be entered.
struct Crashed {
    cut: Cut,
    ground: Ground,
    depth: u32,
}

/// What recovery made of a disk without asking anything of it.
struct Outcome {
    /// Hash of the disk that it left.
    left: u64,
    /// Whether opening left leaks behind.
    leaks: bool,
    /// How many power cuts in it there could be.
    nested: u64,
    /// What these leave.
    cuts: Vec<Cut>,
}

/// One way through a crash disk, to its end.
struct Leaf {
    /// Hash of the disk that the audit decided it to be.
    decided: u64,
    outcome: Arc<Outcome>,
    /// What the guest may see after a power cut in recovery, if there can be one and it is followed.
    ground: Option<Ground>,
    /// What the decisions show, if anything.
    met: Option<Box<Probes>>,
}

/// What tells one crash disk from another: its hash, that of what the guest may see there, and whether power cuts in its recovery
/// are followed.
type CrashKey = (u64, u64, bool);

/// How many outcomes are remembered, at 5 to 15 KB each. Then all are forgotten: the next workloads are alike again.
const MAX_OUTCOMES: usize = 1 << 14;

/// How many crash disks are remembered with their leaves, which share their outcomes.
const MAX_CRASHES: usize = 1 << 16;

/// Explores the workloads of one world, one after the other.
pub struct Walk {
    bench: Bench,
    values: Values,
    disk: PossibleDisk,
    guest: Guest,
    inherited: Inherited,
    shape: Shape,
    depth: u32,
    odometer: Arc<Mutex<Odometer>>,
    entered: BTreeSet<CrashKey>,
    /// By hash of the disk that recovery began on, and whether power cuts in it are followed.
    recovered: BTreeSet<(u64, bool)>,
    /// By hash of the disk that recovery began on, of all workloads.
    outcomes: BTreeMap<u64, Arc<Outcome>>,
    /// What recovery does, by key of the course.
    courses: BTreeMap<u64, Arc<Course>>,
    /// The leaves of crash disks, of all workloads.
    leaves: BTreeMap<CrashKey, Arc<[Leaf]>>,
    /// What the guest may see in them, by hash: few of them differ.
    grounds: BTreeMap<u64, Ground>,
    waiting: Vec<Crashed>,
    /// The way to the last request of the last workload.
    way: Way,
    /// A disk that nobody needs, for its memory.
    spare: Option<PossibleDisk>,
    probes: Probes,
    counts: Coverage,
    /// Hashes of everything that recovery left, of all workloads.
    pub distinct: BTreeSet<u64>,
    /// What the last schedule of a pair picked.
    pub schedule: Vec<u32>,
    /// Of the leaves of all workloads, those that were run: the others were known.
    pub executed: u64,
    /// Whether what earlier workloads showed may stand for running it again.
    pub remembers: bool,
    /// What recovery left, leaf by leaf, where somebody wants to see it all.
    pub kept: Option<Vec<PossibleDisk>>,
}

impl Walk {
    /// A walk from `disk`, which holds what `guest` says. Power cuts in recovery are followed to `depth`.
    pub fn new(
        subject: impl Subject,
        session: Session,
        profile: Profile,
        depth: u32,
        (mut disk, guest): (PossibleDisk, Guest),
    ) -> Self {
        let mut bench = Bench::new(subject, session, profile);
        let inherited = crate::trial::inherited(&mut bench, &mut disk, &guest);
        let shape = Shape::of(&bench);
        Self {
            bench,
            values: disk.values().clone(),
            disk,
            guest,
            inherited,
            shape,
            depth,
            odometer: Arc::default(),
            entered: BTreeSet::new(),
            recovered: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            courses: BTreeMap::new(),
            leaves: BTreeMap::new(),
            grounds: BTreeMap::new(),
            waiting: Vec::new(),
            way: Way::new(),
            spare: None,
            probes: Probes::default(),
            counts: Coverage::default(),
            distinct: BTreeSet::new(),
            schedule: Vec::new(),
            executed: 0,
            remembers: true,
            kept: None,
        }
    }

    /// Runs a workload, one request at a time, and explores every power cut in its last request; without a request, in
    /// opening the image.
    ///
    /// # Errors
    /// The first violation, or why nothing is proved.
    pub fn workload(&mut self, ops: &[Op]) -> Result<Coverage, Stop> {
        self.forget();
        self.run(ops)?;
        match panics::take() {
            Some(text) => Err(panicked(text, "when it was dropped").into()),
            None => Ok(self.counts),
        }
    }

    /// Runs two tasks in every order that `how` allows, and explores every power cut in all of them.
    ///
    /// # Errors
    /// The first violation, with the schedule that led to it in [`Walk::schedule`], or why nothing is proved.
    pub fn at_once(&mut self, tasks: &[Vec<Op>], how: AtOnce) -> Result<Coverage, Stop> {
        self.forget();
        let requests = |ops: &Vec<Op>| ops.iter().map(|op| Request::Op(*op)).collect();
        let script = Script {
            tasks: tasks.iter().map(requests).collect(),
            order: Order::Choices(Vec::new()),
            faults: Planned::default(),
            dropped: None,
            session: self.bench.session,
        };
        let wheels = Arc::new(Mutex::new(Exhaustive::new()));
        loop {
            let chooser = Arc::clone(&wheels);
            let schedule: Box<dyn Schedule + Send> = match how {
                AtOnce::Pairs { departures } => {
                    Box::new(Choices::new(chooser).with_departures(departures))
                }
                AtOnce::Races { delays } => Box::new(PutOff::new(chooser, delays)),
            };
            self.scheduled(&script, schedule)?;
            self.counts.schedules += 1;
            let mut wheels = wheels.lock().unwrap_or_else(PoisonError::into_inner);
            let more = wheels.advance();
            if wheels.diverged() {
                let why = "a schedule was offered other steps after the same ones";
                return Err(Stop::Broken(why.to_owned()));
            }
            if !more {
                return Ok(self.counts);
            }
        }
    }

    fn scheduled(
        &mut self,
        script: &Script,
        schedule: Box<dyn Schedule + Send>,
    ) -> Result<(), Stop> {
        let subject = self.bench.subject.clone();
        let (disk, guest) = (self.disk.clone(), self.guest.clone());
        let mut probes = Probes::default();
        let mut stopped = None;
        let end = run_scheduled(&subject, disk, guest, script, schedule, &mut probes, |moment| {
            let result = moment.sim.with_disk(|disk| self.crash(disk, moment.guest));
            match result {
                Ok(()) => ControlFlow::Continue(()),
                Err(stop) => {
                    stopped = Some(stop);
                    ControlFlow::Break(())
                }
            }
        });
        self.schedule.clone_from(&end.decisions);
        self.probes.add(&probes);
        if let Some(stop) = stopped {
            return Err(stop);
        }
        if let Some(failure) = end.failure {
            return Err(Stop::Failed(failure));
        }
        self.crash(&end.disk, &end.guest)?;
        if end.closed { self.in_order(&end.disk, &end.guest) } else { Ok(()) }
    }

    /// Begins a new workload: nothing is known.
    pub fn forget(&mut self) {
        self.bench.judge.remember_audits(self.remembers);
        self.entered.clear();
        self.recovered.clear();
        self.counts = Coverage::default();
    }

    /// What has been done since the last [`forget`](Self::forget).
    pub const fn counts(&self) -> Coverage {
        self.counts
    }

    /// Situations met so far.
    pub const fn probes(&self) -> &Probes {
        &self.probes
    }

    fn run(&mut self, ops: &[Op]) -> Result<(), Stop> {
        match ops.split_last() {
            None => {
                let opened = self.open(true)?;
                self.end(opened)
            }
            Some((last, before)) => {
                let before = self.reach(before)?;
                let reached = self.request(before, last, true)?;
                self.end(reached)
            }
        }
    }

    /// Opens the image; `judged` says whether every power cut in that is explored.
    fn open(&mut self, judged: bool) -> Result<Reached, Stop> {
        let guest = self.guest.clone();
        let trace = !self.has_met(&OF_TRACES);
        let options = DirectOptions { forks: judged, trace, ..DirectOptions::default() };
        let direct = Direct::with_options(self.disk.clone(), Always(0), options);
        if judged {
            self.crash(&self.disk.clone(), &guest)?;
        }
        let image = opened(run(open(&self.bench.subject, direct.clone(), self.bench.session)))?;
        self.after(&direct, &guest, judged)?;
        Ok(Reached { guest, direct, image })
    }

    /// Does `ops`, from the last fork on the way there if there is one, and leaves forks behind. No power cut is explored.
    fn reach(&mut self, ops: &[Op]) -> Result<Reached, Stop> {
        let subject = self.bench.subject.clone();
        let (mut reached, shared) = match self.way.back_to(ops, &subject) {
            Some(there) => there,
            None => {
                self.way = Way::new();
                let opened = self.open(false)?;
                self.way.forks.extend(opened.fork(&subject));
                (opened, 0)
            }
        };
        for (before, op) in ops.iter().enumerate().skip(shared) {
            reached = self.request(reached, op, false)?;
            // A fork after a request that has none before it would not say which requests led there.
            if self.way.forks.len() == before + 1
                && let Some(fork) = reached.fork(&subject)
            {
                self.way.forks.push(fork);
                self.way.ops.push(*op);
            }
        }
        Ok(reached)
    }

    /// Does one request; `judged` says whether every power cut in it is explored.
    fn request(&mut self, reached: Reached, op: &Op, judged: bool) -> Result<Reached, Stop> {
        let Reached { mut guest, direct, mut image } = reached;
        direct.take_forks(judged);
        let request = guest.clip(op).map(Request::Op);
        let token = self.begin(&mut guest, op);
        if *op == Op::Reopen {
            finished(run(image.close()), "closing it")?;
            self.forks_of(&direct, &guest, judged)?;
            guest.complete(token);
            self.closed(&direct, &guest)?;
            self.after(&direct, &guest, judged)?;
            image = opened(run(open(&self.bench.subject, direct.clone(), self.bench.session)))?;
        } else {
            finished(run(perform(&image, request.as_ref())), "a request")?;
            self.forks_of(&direct, &guest, judged)?;
            guest.complete(token);
        }
        self.after(&direct, &guest, judged)?;
        Ok(Reached { guest, direct, image })
    }

    /// The end of every workload: everything is read, and the image is closed and audited.
    fn end(&mut self, reached: Reached) -> Result<(), Stop> {
        let Reached { mut guest, direct, image } = reached;
        direct.take_forks(false);
        self.read_all(&image, &mut guest)?;
        let token = guest.begin_flush();
        finished(run(image.close()), "closing it")?;
        guest.complete(token);
        self.closed(&direct, &guest)?;
        self.shape.compare(&Shape::of(&self.bench), &mut self.probes);
        let remains = direct.power_off();
        if let Some(trace) = remains.trace {
            let cluster = self.shape.cluster_size();
            probe_trace(trace.events(), cluster, &mut self.probes);
        }
        if let Some(breach) = remains.breaches.first() {
            return Err(named(Property::P8, "contract-breach", breach.to_string()).into());
        }
        Ok(())
    }

    fn has_met(&self, probes: &[Probe]) -> bool {
        probes.iter().all(|&probe| self.probes.count(probe) > 0)
    }

    fn begin(&self, guest: &mut Guest, op: &Op) -> model::guest::Token {
        let values = &self.values;
        guest.begin(op, |unit, id| ValueKey(values.intern(&payload::unit(unit, id)).0))
    }

    /// P0: everything reads as it must.
    fn read_all<I: SubjectImage>(&mut self, image: &I, guest: &mut Guest) -> Result<(), Stop> {
        let size = guest.size();
        let token = guest.begin_read(0, size / UNIT as u64);
        let read = finished(run(image.read(0, to_read_into(size))), "a read")?;
        let mut keys = Vec::new();
        self.values.intern_all(&read, &mut keys);
        let found: Vec<ValueKey> = keys.iter().map(|key| ValueKey(key.0)).collect();
        guest.complete_read(token, &found).map_err(|misread| {
            let evidence = DiskEvidence::new(&mut self.disk, &mut self.odometer);
            let violation = p0_misread(&misread, &evidence, guest);
            Failure { violation, moment: "in a read".to_owned() }.into()
        })
    }

    /// P6: after a clean close the image is in order.
    fn closed(&mut self, direct: &Direct<Always>, guest: &Guest) -> Result<(), Stop> {
        let disk = direct.with_disk(|disk, _| disk.clone());
        self.in_order(&disk, guest)
    }

    /// P6 on everything that a power cut after a clean close may leave.
    ///
    /// # Errors
    /// The first violation.
    pub fn in_order(&mut self, live: &PossibleDisk, guest: &Guest) -> Result<(), Stop> {
        let mut seen = guest.clone();
        seen.crash();
        let mut wheels = Exhaustive::new();
        loop {
            let mut disk = live.crash(self.bench.profile, &mut wheels);
            let mut evidence = DiskEvidence::new(&mut disk, &mut wheels);
            let violations = self.bench.judge.closed(&mut evidence, &seen, &self.inherited);
            if let Some(violation) = violations.first().cloned() {
                let moment = "after a clean close".to_owned();
                return Err(Failure { violation, moment }.into());
            }
            if !wheels.advance() {
                return Ok(());
            }
        }
    }

    /// Power cuts at the forks so far, and now.
    fn after(&mut self, direct: &Direct<Always>, guest: &Guest, judged: bool) -> Result<(), Stop> {
        self.forks_of(direct, guest, judged)?;
        if judged {
            let now = direct.with_disk(|disk, _| disk.clone());
            self.crash(&now, guest)?;
        }
        Ok(())
    }

    fn forks_of(&mut self, direct: &Direct<Always>, guest: &Guest, keep: bool) -> Result<(), Stop> {
        let forks = direct.take_forks(keep);
        if !forks.is_empty() {
            let ground = Ground::after(guest);
            forks.iter().try_for_each(|fork| self.power_cut(fork, &ground))?;
        }
        Ok(())
    }

    /// The power fails: explores everything that may then be found on `live`.
    ///
    /// # Errors
    /// The first violation, or why nothing is proved.
    pub fn crash(&mut self, live: &PossibleDisk, guest: &Guest) -> Result<(), Stop> {
        self.power_cut(live, &Ground::after(guest))
    }

    fn power_cut(&mut self, live: &PossibleDisk, ground: &Ground) -> Result<(), Stop> {
        self.counts.crash_points += 1;
        let cuts = cuts(live, self.bench.profile);
        self.enter(&cuts, ground, 0);
        drop(cuts);
        while let Some(crashed) = self.waiting.pop() {
            self.explore(&crashed)?;
            if let Some(disk) = Arc::into_inner(crashed.cut.disk) {
                self.spare = Some(disk);
            }
        }
        Ok(())
    }

    /// Leaves what power cuts left to be explored, as far as it is new.
    fn enter(&mut self, cuts: &[Cut], ground: &Ground, depth: u32) {
        for cut in cuts {
            if self.entered.insert((cut.hash, ground.hash, depth < self.depth)) {
                self.counts.crash_disks += 1;
                self.counts.deepest = self.counts.deepest.max(depth);
                self.waiting.push(Crashed { cut: cut.clone(), ground: ground.clone(), depth });
            }
        }
    }

    fn explore(&mut self, crashed: &Crashed) -> Result<(), Stop> {
        let key = (crashed.cut.hash, crashed.ground.hash, crashed.depth < self.depth);
        if let Some(leaves) = self.leaves.get(&key) {
            for leaf in &*Arc::clone(leaves) {
                if self.is_new(leaf.decided, key.2) {
                    self.count(leaf, crashed.depth);
                }
            }
            return Ok(());
        }
        self.turn(|odometer| *odometer = Odometer::default());
        // The disk that recovery last ran on, and the answers that the audit before it had: the same once more is not met
        // again but gone on with, because recovery has asked something too.
        let mut running: Option<(u64, Vec<Taken>)> = None;
        let mut leaves = (self.remembers && self.kept.is_none()).then(Vec::new);
        loop {
            self.leaf(crashed, &mut running, &mut leaves)?;
            let (more, diverged) = self.turn(|odometer| {
                odometer.answers.clear();
                (odometer.wheels.advance(), odometer.wheels.diverged())
            });
            if diverged {
                let why = "recovery asked differently after the same answers";
                return Err(Stop::Broken(why.to_owned()));
            }
            if !more {
                break;
            }
        }
        if let Some(leaves) = leaves {
            if self.leaves.len() == MAX_CRASHES {
                self.leaves.clear();
                self.grounds.clear();
            }
            self.leaves.insert(key, leaves.into());
        }
        Ok(())
    }

    /// Whether this workload has not recovered from that disk yet, with power cuts in that or without. If it has, that is counted.
    fn is_new(&mut self, decided: u64, followed: bool) -> bool {
        let new = self.recovered.insert((decided, followed));
        self.counts.memo_hits += u64::from(!new);
        new
    }

    /// One way through a crash disk. It is added to `known`, unless its end is not known; then there are none.
    fn leaf(
        &mut self,
        crashed: &Crashed,
        running: &mut Option<(u64, Vec<Taken>)>,
        known: &mut Option<Vec<Leaf>>,
    ) -> Result<(), Stop> {
        let mut disk = match self.spare.take() {
            Some(mut spare) => {
                spare.clone_from(&crashed.cut.disk);
                spare
            }
            None => PossibleDisk::clone(&crashed.cut.disk),
        };
        let guest = &crashed.ground.guest;
        let mut odometer = Arc::clone(&self.odometer);
        let moment = if crashed.depth == 0 {
            "after the power cut"
        } else {
            "after a power cut in recovery"
        };
        self.bench.state(&mut disk, guest, &mut odometer, None, moment)?;
        let decided = disk.state_hash();
        let same = running.as_ref().is_some_and(|(hash, taken)| {
            *hash == decided && self.turn(|odometer| odometer.wheels.taken() == taken)
        });
        let follows = crashed.depth < self.depth;
        let new = same || self.is_new(decided, follows);
        if new && !same {
            *running = Some((decided, self.turn(|odometer| odometer.wheels.taken().to_vec())));
        }
        let outcome = self.outcomes.get(&decided).filter(|_| self.kept.is_none()).cloned();
        if !new && (known.is_none() || outcome.is_none()) {
            *known = None;
            self.spare = Some(disk);
            return Ok(());
        }
        let mut met = Probes::default();
        if !self.has_met(&OF_LEAVES) {
            let odometer = self.odometer.lock().unwrap_or_else(PoisonError::into_inner);
            probe_answers(&odometer.answers, &self.bench, &mut met);
        }
        let wanted = match &outcome {
            None => true,
            Some(outcome) => follows && !outcome.cuts.is_empty(),
        };
        let contents = wanted.then(|| self.bench.contents(&mut disk, &mut odometer).clone());
        let outcome = match outcome {
            Some(outcome) => {
                self.spare = Some(disk);
                outcome
            }
            None => self.recover(disk, decided, guest, &odometer)?,
        };
        let followed = follows && !outcome.cuts.is_empty();
        let ground = contents.filter(|_| followed).map(|contents| {
            let mut ground = Guest::clone(guest);
            collapse(&mut ground, &contents);
            let ground = Ground::new(ground);
            self.grounds.entry(ground.hash).or_insert(ground).clone()
        });
        let met = (met != Probes::default()).then(|| Box::new(met));
        let leaf = Leaf { decided, outcome, ground, met };
        if new {
            self.count(&leaf, crashed.depth);
        }
        if !self.outcomes.contains_key(&decided) {
            *known = None;
        }
        if let Some(known) = known {
            known.push(leaf);
        }
        Ok(())
    }

    /// Counts a leaf that is new to the workload, and leaves the power cuts in its recovery to be explored.
    fn count(&mut self, leaf: &Leaf, depth: u32) {
        let Leaf { outcome, ground, met, .. } = leaf;
        self.counts.leaves += 1;
        match depth {
            0 => {}
            1 => self.probes.hit(Probe::CrashInRepair),
            _ => self.probes.hit(Probe::NestedTwice),
        }
        if outcome.leaks {
            self.probes.hit(Probe::LeakRepaired);
        }
        if let Some(met) = met {
            self.probes.add(met);
        }
        self.counts.digest = self.counts.digest.wrapping_add(outcome.left);
        self.distinct.insert(outcome.left);
        self.counts.nested += outcome.nested;
        if let Some(ground) = ground {
            self.enter(&outcome.cuts, ground, depth + 1);
        }
    }

    /// Recovers from `disk`, whose state hash is `decided` and which was judged just before.
    fn recover(
        &mut self,
        disk: PossibleDisk,
        decided: u64,
        guest: &Guest,
        odometer: &Arc<Mutex<Odometer>>,
    ) -> Result<Arc<Outcome>, Failure> {
        let image = self.bench.judge.auditor().image();
        let key = self.courses_hold().then(|| Course::key(&disk, image)).flatten();
        if let Some(course) = key.and_then(|key| self.courses.get(&key)) {
            let course = Arc::clone(course);
            let outcome = self.follow(disk, &course);
            self.remember(decided, &outcome);
            return Ok(outcome);
        }
        let image = key.map(|_| image.clone());
        let asked = self.turn(|odometer| odometer.answers.len());
        let mut watched = Watched::default();
        let recovered =
            self.bench.recover(disk, guest, odometer, &mut self.probes, Some(&mut watched))?;
        let left = recovered.disk.content_hash();
        match &mut self.kept {
            Some(kept) => kept.push(recovered.disk),
            None => self.spare = Some(recovered.disk),
        }
        self.executed += 1;
        let leaks = recovered.leaks > 0;
        let outcome = Arc::new(self.outcome(left, leaks, &watched.forks));
        if asked == self.turn(|odometer| odometer.answers.len()) {
            self.remember(decided, &outcome);
            let course = image.and_then(|image| Course::of(&image, &watched, leaks));
            if let (Some(key), Some(course)) = (key, course) {
                if self.courses.len() == MAX_OUTCOMES {
                    self.courses.clear();
                }
                self.courses.insert(key, Arc::new(course));
            }
        }
        Ok(outcome)
    }

    /// Whether what recovery did to one disk may stand for what it does to another that differs in guest data only.
    fn courses_hold(&self) -> bool {
        self.remembers && self.kept.is_none() && self.bench.subject.duties().structure
    }

    /// What recovery makes of `disk`, whose course is known.
    fn follow(&mut self, disk: PossibleDisk, course: &Course) -> Arc<Outcome> {
        let mut forks = Vec::new();
        let mut step = |disk, record: &[Done]| {
            let options = DirectOptions { forks: true, ..DirectOptions::default() };
            let direct = Direct::with_options(disk, Always(0), options);
            direct.again(record);
            let remains = direct.power_off();
            forks.extend(remains.forks);
            remains.disk
        };
        let opened = step(disk, &course.opening);
        let left = opened.content_hash();
        self.spare = Some(step(opened, &course.repair));
        Arc::new(self.outcome(left, course.leaks, &forks))
    }

    fn outcome(&self, left: u64, leaks: bool, forks: &[PossibleDisk]) -> Outcome {
        let cuts = forks.iter().flat_map(|fork| cuts(fork, self.bench.profile)).collect();
        Outcome { left, leaks, nested: forks.len() as u64, cuts }
    }

    fn remember(&mut self, decided: u64, outcome: &Arc<Outcome>) {
        if self.remembers {
            if self.outcomes.len() == MAX_OUTCOMES {
                self.outcomes.clear();
            }
            self.outcomes.insert(decided, Arc::clone(outcome));
        }
    }

    fn turn<R>(&self, step: impl FnOnce(&mut Odometer) -> R) -> R {
        step(&mut self.odometer.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Every disk that a power cut may leave before anybody has looked: one, if writes are torn unit by unit.
fn cuts(live: &PossibleDisk, profile: Profile) -> Vec<Cut> {
    let mut all = Vec::new();
    let mut cut = Exhaustive::new();
    loop {
        let disk = live.crash(profile, &mut cut);
        all.push(Cut { hash: disk.state_hash(), disk: Arc::new(disk) });
        if !cut.advance() {
            return all;
        }
    }
}

fn named(property: Property, kind: &'static str, story: String) -> Failure {
    let mut violation = whole_image(property, kind);
    violation.story = story;
    Failure { violation, moment: "while it ran".to_owned() }
}

/// What a request returned. Nothing fails here, so nothing may be refused.
fn finished<T>(done: Option<Result<T, String>>, what: &str) -> Result<T, Failure> {
    if let Some(text) = panics::take() {
        return Err(panicked(text, what));
    }
    match done {
        None => Err(named(Property::P7, "hangs", format!("{what} never ended"))),
        Some(Err(text)) => {
            Err(named(Property::P8, "unprovoked-error", format!("{what} failed: {text}")))
        }
        Some(Ok(value)) => Ok(value),
    }
}

fn opened<T>(done: Option<Result<T, Refusal>>) -> Result<T, Failure> {
    finished(done.map(|image| image.map_err(|refusal| format!("{refusal:?}"))), "opening it")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use faultfs::disk::PossibleDisk;
    use faultfs::profile::Profile;
    use model::build::Initial;
    use model::evidence::ValueKey;
    use model::guest::Guest;
    use model::op::Durability;
    use model::payload::UNIT;

    use super::{Coverage, Ground, Stop, Walk, cuts};
    use crate::explore::alphabet::{Symbol, World, count, operations, workload};
    use crate::subject::Qcow2Core;

    fn walk(world: World) -> (Walk, PossibleDisk, Guest) {
        let subject = Qcow2Core::default();
        let (disk, guest) = world.start(&subject).expect("the geometry allows it");
        let start = (disk.clone(), guest.clone());
        let walk = Walk::new(subject, world.session, Profile::TornLength, 1, start);
        (walk, disk, guest)
    }

    /// Goal: crash disks that are taken for one another lead to the same. Method: by what the guest may see alone they would not.
    #[test]
    fn the_disk_is_part_of_the_key_of_a_crash_disk() {
        let world = World::new(10, false, Initial::Leaky);
        let (mut walk, ..) = walk(world);
        for index in 0..count(&Symbol::ALL, 1) {
            let ops = operations(&workload(&Symbol::ALL, index), &world.geometry);
            walk.workload(&ops).expect("nothing is wrong");
        }
        let mut by_ground = BTreeMap::new();
        let confused = walk.leaves.iter().any(|((_, ground, _), leaves)| {
            let ends: Vec<u64> = leaves.iter().map(|leaf| leaf.outcome.left).collect();
            let others = by_ground.insert(*ground, ends.clone());
            others.is_some_and(|others| others != ends)
        });
        assert!(confused);
    }

    /// Goal: a crash disk whose recovery was followed by power cuts is another one where they are not. Method: one that is met after
    /// the power cut, and again after a power cut in recovery.
    #[test]
    fn whether_power_cuts_are_followed_is_part_of_the_key_of_a_crash_disk() {
        let (mut walk, disk, guest) = walk(World::new(10, true, Initial::Dirty));
        walk.crash(&disk, &guest).expect("nothing is wrong");
        assert_eq!(walk.counts().deepest, 1);
        walk.forget();
        walk.enter(&cuts(&disk, Profile::TornLength), &Ground::after(&guest), 1);
        let crashed = walk.waiting.pop().expect("nothing is known");
        walk.explore(&crashed).expect("nothing is wrong");
        assert!(walk.counts().nested > 0 && walk.waiting.is_empty());
    }

    /// Goal: within a workload, too. Method: one that is met first where the limit is, and then after the power cut.
    #[test]
    fn what_is_met_first_at_the_limit_is_followed_where_it_is_met_above_it() {
        let (mut walk, disk, guest) = walk(World::new(10, true, Initial::Dirty));
        walk.enter(&cuts(&disk, Profile::TornLength), &Ground::after(&guest), 1);
        let crashed = walk.waiting.pop().expect("nothing is known");
        walk.explore(&crashed).expect("nothing is wrong");
        let Coverage { crash_disks, leaves, .. } = walk.counts();
        assert!(walk.waiting.is_empty() && (crash_disks, leaves > 0) == (1, true));
        walk.crash(&disk, &guest).expect("nothing is wrong");
        assert!(walk.counts().crash_disks > 2 && walk.counts().leaves > leaves);
    }

    /// Goal: a crash disk that was judged by what one guest may see is judged again by what another may.
    #[test]
    fn what_the_guest_may_see_is_part_of_the_key_of_a_crash_disk() {
        let (mut walk, disk, guest) = walk(World::new(10, false, Initial::Leaky));
        walk.crash(&disk, &guest).expect("nothing is wrong");
        let mut other = guest.clone();
        let lost = ValueKey(walk.values.intern(&[7; UNIT]).0);
        let write = other.begin_write(0, &[lost], Durability::Through);
        other.complete(write);
        walk.forget();
        assert!(matches!(walk.crash(&disk, &other), Err(Stop::Failed(_))));
    }
}
