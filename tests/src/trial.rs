//! One way through a case, with nothing left open: what a campaign found, what a minimiser shrinks, what a corpus file says.

use std::ops::ControlFlow;

use faultfs::disk::PossibleDisk;
use faultfs::fault::Planned;
use faultfs::profile::{DiscardMode, Profile};
use faultfs::trace::Trace;
use faultfs::values::Values;
use model::build::{Built, Initial, build};
use model::case::{Device, Dropped, Fate, Opening};
use model::evidence::ValueKey;
use model::guest::Guest;
use model::judge::Inherited;
use model::label::Label;
use model::op::{Geometry, Op};
use model::payload::{self, UNIT, Unit};
use qcow2_core::storage::Limits;

use crate::any::AnySubject;
use crate::evidence::DiskEvidence;
use crate::leaf::{Answer, Labels, LeafChooser, SharedLeaf, look};
use crate::life::{self, Cause, LifeEnd, Moment, Order, Request, Script};
use crate::liveness::{Before, p7_goes_on, p9_bounded_waste};
use crate::probe::Probes;
use crate::recover::{Bench, Failure, StepPlan};
use crate::subject::{Session, Subject};
use crate::workload::{LifePlan, Plan};

/// A case with one schedule, one crash and one set of survivors for each life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The shape of the image.
    pub geometry: Geometry,
    /// What it holds at first.
    pub initial: Initial,
    /// How it is opened.
    pub open: Opening,
    /// How the power fails.
    pub profile: Profile,
    /// What a discard leaves on the device.
    pub discard: DiscardMode,
    /// What the device offers besides.
    pub device: Device,
    /// What is done, life after life.
    pub lives: Vec<TrialLife>,
}

/// One life of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialLife {
    /// Operations that run side by side.
    pub tasks: Vec<Vec<Op>>,
    /// Who runs when.
    pub order: Order,
    /// What fails.
    pub faults: Planned,
    /// A request whose future is dropped.
    pub dropped: Option<Dropped>,
    /// When the power fails.
    pub at: At,
    /// What survives.
    pub leaf: Survivors,
    /// What recovery does before the image is opened for good.
    pub steps: Vec<StepPlan>,
    /// The next life starts from what the power cut left: its own session recovers the image, and works on in it.
    pub unrecovered: bool,
}

impl TrialLife {
    /// A life as planned, run to its end; the newest of everything survives.
    pub fn of(plan: &LifePlan) -> Self {
        Self {
            tasks: plan.tasks.clone(),
            order: Order::Seed(plan.schedule),
            faults: Planned(plan.faults.clone()),
            dropped: plan.dropped,
            at: At::End,
            leaf: Survivors::Choices(Vec::new()),
            steps: Vec::new(),
            unrecovered: plan.unrecovered,
        }
    }

    /// What runs in it until the power fails.
    pub fn script(&self, session: Session) -> Script {
        Script {
            tasks: self
                .tasks
                .iter()
                .map(|ops| ops.iter().copied().map(Request::Op).collect())
                .collect(),
            order: self.order.clone(),
            faults: self.faults.clone(),
            dropped: self.dropped,
            session,
        }
    }
}

/// When the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Right after this event.
    Event(u64),
    /// When nothing is left to do, after a clean close if there was one.
    End,
}

/// What survives a power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// What this seed chooses.
    Seed(u64),
    /// One answer for each choice; the newest when they run out.
    Choices(Vec<u32>),
    /// By label.
    Labels {
        /// These hold the newest value that they may.
        keep: Vec<Label>,
        /// These the oldest.
        lose: Vec<Label>,
        /// All others.
        default: Fate,
    },
}

impl Trial {
    /// A trial of what is planned, on a device that fails so, of which no life has begun.
    pub fn planned(plan: &Plan, profile: Profile) -> Self {
        Self {
            geometry: plan.geometry,
            initial: plan.initial,
            open: plan.open.clone(),
            profile,
            discard: plan.discard,
            device: plan.device,
            lives: Vec::new(),
        }
    }

    /// How its images are opened.
    pub fn session(&self) -> Session {
        Session::of(&self.open, &self.geometry)
    }

    /// The disk and reference disk that its first life begins with.
    ///
    /// # Errors
    /// If the geometry does not allow the initial image, or something in it is what the subject cannot do.
    pub fn start(&self, subject: &impl Subject) -> Result<(PossibleDisk, Guest), String> {
        let subject = &AnySubject::of(subject);
        let can = subject.capabilities();
        let mut ops = self.lives.iter().flat_map(|life| life.tasks.iter().flatten());
        if let Some(op) = ops.find(|op| !can.does(op)) {
            return Err(format!("the subject cannot do this: {op:?}"));
        }
        if !can.dropped_requests && self.lives.iter().any(|life| life.dropped.is_some()) {
            return Err("no request of the subject can be dropped in its middle".to_owned());
        }
        let session = self.session();
        let start = initial(subject, &self.geometry, self.initial, &session, &self.device);
        start.map(|(disk, guest)| (disk.with_discard(self.discard), guest))
    }
}

/// What running a trial showed.
pub struct Outcome {
    /// The violation, if there was one, and the life in which it was.
    pub failure: Option<(usize, Failure)>,
    /// What happened in each life that was run.
    pub lives: Vec<LifeRecord>,
    /// The disk and reference disk after the last recovery, if nothing failed.
    pub left: Option<(PossibleDisk, Guest)>,
}

/// What happened in one life of a trial.
pub struct LifeRecord {
    /// What the schedule picked.
    pub decisions: Vec<u32>,
    /// Hash of the trace up to the crash.
    pub trace_hash: u64,
    /// The trace up to the crash.
    pub trace: Trace,
    /// Events up to the crash.
    pub events: u64,
    /// Whether the life got as far as the event at which the power was to fail.
    pub reached: bool,
    /// The moments up to the crash, and the task and operation that each concerns.
    pub moments: Vec<(Cause, Option<(usize, usize)>)>,
    /// What the crash and recovery chose.
    pub answers: Vec<Answer>,
    /// The same as a case file keeps them.
    pub choices: Vec<u32>,
    /// What lay at the unit of each answer, as the judge read the image last.
    pub labels: Vec<Label>,
    /// What lay where before the power failed, if every write had landed.
    pub places: Labels,
    /// The disk before the power failed, writes pending.
    pub disk: PossibleDisk,
    /// The reference disk at that time.
    pub guest: Guest,
}

/// The initial disk and reference disk of a case.
///
/// # Errors
/// If the geometry does not allow the initial image, or the subject opens none of this kind.
pub fn initial(
    subject: &impl Subject,
    geometry: &Geometry,
    initial: Initial,
    session: &Session,
    device: &Device,
) -> Result<(PossibleDisk, Guest), String> {
    let subject = &AnySubject::of(subject);
    if let Some(why) = subject.capabilities().refuses(geometry, initial) {
        return Err(why);
    }
    let mut built = build(geometry, initial).map_err(|error| error.to_string())?;
    leave_stale(&mut built, geometry, device.stale_units);
    let disk = disk_of(&built).with_limits(limits_of(device));
    let intern = |bytes: &Unit| ValueKey(disk.values().intern(bytes).0);
    let guest = Guest::new(&built.guest_keys(intern), subject.promises(geometry, session))
        .on(built.made(geometry, intern));
    Ok((disk, guest))
}

/// Lets somebody else have left so many units behind the last cluster of an image.
fn leave_stale(built: &mut Built, geometry: &Geometry, units: u32) {
    if units == 0 {
        return;
    }
    let first = built.length.next_multiple_of(geometry.cluster_size()) / UNIT as u64;
    let stale = first..first + u64::from(units);
    built.length = stale.end * UNIT as u64;
    built.units.extend(stale.map(|unit| (unit, payload::unit(unit, payload::STALE))));
}

/// What a storage on this device says of itself.
pub(crate) fn limits_of(device: &Device) -> Limits {
    Limits {
        alignment: device.sector as usize,
        max_transfer: device.max_transfer as usize,
        can_discard: device.can_discard,
        unwritten_reads_zero: device.stale_units == 0,
    }
}

/// A disk that holds an image and nothing else.
pub fn disk_of(built: &Built) -> PossibleDisk {
    let extents = |units: &[(u64, Unit)]| -> Vec<(u64, Unit)> {
        units.iter().map(|(unit, bytes)| (unit * UNIT as u64, *bytes)).collect()
    };
    let image = extents(&built.units);
    let image = image.iter().map(|(offset, bytes)| (*offset, bytes.as_slice()));
    let disk = PossibleDisk::from_extents(&Values::new(), built.length, image);
    let Some(data) = &built.data else { return disk };
    let first = first_of_data(built.length);
    let units = extents(&data.units);
    let units = units.iter().map(|(offset, bytes)| (*offset, bytes.as_slice()));
    disk.with_second_extents(first, data.length, units)
}

/// The first unit of the data file beside an image of so many bytes, on the same disk: far enough away for the image to grow, and no further,
/// because a disk has something for each unit in between.
pub fn first_of_data(length: u64) -> u32 {
    let units = (length / UNIT as u64 * 4).next_power_of_two().max(1 << 14);
    u32::try_from(units).expect("an image of a campaign is small")
}

/// Runs a trial to its end or to its first violation.
///
/// # Errors
/// If its initial image is not feasible.
pub fn run(subject: &impl Subject, trial: &Trial) -> Result<Outcome, String> {
    run_first(&AnySubject::of(subject), trial, trial.lives.len())
}

/// Runs the first lives of a trial, so many, as it runs them.
fn run_first(subject: &AnySubject, trial: &Trial, lives_run: usize) -> Result<Outcome, String> {
    let (mut disk, mut guest) = trial.start(subject)?;
    let session = trial.session();
    let mut bench = Bench::new(subject.clone(), session, trial.profile);
    let mut probes = Probes::default();
    let mut lives = Vec::new();
    for (number, life) in trial.lives.iter().enumerate().take(lives_run) {
        let inherited = inherited(&mut bench, &mut disk, &guest);
        let began = Before::of(&bench, &trial.geometry);
        let script = life.script(session);
        let mut moments = Vec::new();
        let mut snapshot: Option<(PossibleDisk, Guest, u64, Trace)> = None;
        let mut may_leak = None;
        let end = life::run(subject, disk.clone(), guest.clone(), &script, &mut probes, |moment| {
            moments.push((moment.cause, moment.concerns));
            if life.at == At::Event(moment.event) {
                let sim = moment.sim;
                may_leak = Some(began.may_leak(moment.exposure));
                snapshot = Some((sim.disk(), moment.guest.clone(), sim.trace_hash(), sim.trace()));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        let LifeEnd { failure, closed, decisions, events, sim, .. } = end;
        let reached = snapshot.is_some() || life.at == At::End;
        let (live, mut seen, trace_hash, trace) =
            snapshot.unwrap_or_else(|| (end.disk, end.guest, end.trace_hash, sim.trace()));
        let mut record = LifeRecord {
            decisions,
            trace_hash,
            trace,
            events,
            reached,
            moments,
            answers: Vec::new(),
            choices: Vec::new(),
            labels: Vec::new(),
            places: labels(&mut bench, &live, &seen),
            disk: live.clone(),
            guest: seen.clone(),
        };
        if let Some(failure) = failure {
            lives.push(record);
            return Ok(Outcome { failure: Some((number, failure)), lives, left: None });
        }
        if !reached {
            lives.push(record);
            return Ok(Outcome { failure: None, lives, left: None });
        }
        let mut chooser = chooser(&life.leaf, &mut bench, &live, &seen, trial).share();
        seen.crash();
        let mut crashed = live.crash(trial.profile, &mut chooser);
        if closed && life.at == At::End {
            let mut evidence = DiskEvidence::new(&mut crashed, &mut chooser);
            let violations = bench.judge.closed(&mut evidence, &seen, &inherited);
            if let Some(violation) = violations.first().cloned() {
                note(&mut record, &bench, &chooser);
                lives.push(record);
                let failure = Failure { violation, moment: "after a clean close".to_owned() };
                return Ok(Outcome { failure: Some((number, failure)), lives, left: None });
            }
        }
        let unrecovered =
            (life.unrecovered && number + 1 < trial.lives.len()).then(|| crashed.clone());
        let judged = bench.judge_crash(crashed, &seen, &life.steps, &chooser, &mut probes);
        note(&mut record, &bench, &chooser);
        lives.push(record);
        match judged {
            Ok(recovered) => {
                if let Some(may_leak) = may_leak
                    && let Err(failure) =
                        p9_bounded_waste(subject, began.leaked(&recovered), may_leak)
                {
                    return Ok(Outcome { failure: Some((number, failure)), lives, left: None });
                }
                disk = recovered.disk;
                if number + 1 == trial.lives.len()
                    && let Err(failure) = p7_goes_on(
                        subject,
                        session,
                        trial.profile,
                        &trial.geometry,
                        &disk,
                        &seen,
                        &chooser,
                    )
                {
                    return Ok(Outcome { failure: Some((number, failure)), lives, left: None });
                }
                if let Some(crashed) = unrecovered {
                    disk = crashed;
                }
                if let Err(failure) = bench.settle_guest(&mut disk, &mut seen, &mut chooser) {
                    return Ok(Outcome { failure: Some((number, failure)), lives, left: None });
                }
                guest = seen;
            }
            Err(failure) => {
                return Ok(Outcome { failure: Some((number, failure)), lives, left: None });
            }
        }
    }
    Ok(Outcome { failure: None, lives, left: Some((disk, guest)) })
}

/// Runs the lives of a trial but the last as they are, and the last until `stop` says so; the event at which it did.
pub fn watch(
    subject: &impl Subject,
    trial: &Trial,
    mut stop: impl FnMut(&Moment<'_>) -> bool,
) -> Option<u64> {
    let subject = &AnySubject::of(subject);
    let last = trial.lives.last()?;
    let (disk, guest) = led_to(subject, trial, trial.lives.len() - 1).ok()??;
    let script = last.script(trial.session());
    let mut event = None;
    life::run(subject, disk, guest, &script, &mut Probes::default(), |moment| {
        if stop(moment) {
            event = Some(moment.event);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    event
}

/// The disk and reference disk that life `number` of a trial begins with. None if a life before it does not pass.
///
/// # Errors
/// As [`run`].
pub fn led_to(
    subject: &impl Subject,
    trial: &Trial,
    number: usize,
) -> Result<Option<(PossibleDisk, Guest)>, String> {
    Ok(run_first(&AnySubject::of(subject), trial, number)?.left)
}

fn note(record: &mut LifeRecord, bench: &Bench, chooser: &SharedLeaf) {
    let chooser = look(chooser);
    record.answers = chooser.answers().to_vec();
    record.choices = chooser.choices();
    let image = bench.judge.auditor().image();
    record.labels = record
        .answers
        .iter()
        .map(|answer| image.label(u64::from(answer.unit.unwrap_or(0)) * 512))
        .collect();
}

/// The chooser of a leaf. Labels are those of the image with all its pending writes.
fn chooser(
    leaf: &Survivors,
    bench: &mut Bench,
    live: &PossibleDisk,
    guest: &Guest,
    trial: &Trial,
) -> LeafChooser {
    match leaf {
        Survivors::Seed(seed) => LeafChooser::random(*seed, cluster_units(&trial.geometry)),
        Survivors::Choices(choices) => LeafChooser::written(choices.clone()),
        Survivors::Labels { keep, lose, default } => {
            LeafChooser::labelled(keep.clone(), lose.clone(), *default, labels(bench, live, guest))
        }
    }
}

/// Labels of the units of a disk on which every pending write has landed.
pub fn labels(bench: &mut Bench, live: &PossibleDisk, guest: &Guest) -> Labels {
    let mut newest = LeafChooser::written(Vec::new());
    let mut disk = live.crash(Profile::TornLength, &mut newest);
    bench.judge.state(&mut DiskEvidence::new(&mut disk, &mut newest), guest, None);
    let image = bench.judge.auditor().image();
    let all: Vec<Label> =
        (0..disk.extent()).map(|unit| image.label(u64::from(unit) * 512)).collect();
    let beyond = image.label(u64::MAX - 511);
    std::sync::Arc::new(move |unit| all.get(unit as usize).copied().unwrap_or(beyond))
}

/// Flaws that the image had when a life began, and that opening it left there.
pub fn inherited(bench: &mut Bench, disk: &mut PossibleDisk, guest: &Guest) -> Inherited {
    let mut newest = LeafChooser::written(Vec::new());
    bench.judge.state(&mut DiskEvidence::new(disk, &mut newest), guest, None);
    if bench.will_repair() { Inherited::default() } else { Inherited::of(bench.judge.auditor()) }
}

/// Units in a cluster.
pub fn cluster_units(geometry: &Geometry) -> u32 {
    u32::try_from(geometry.cluster_units()).expect("at most 4,096")
}
