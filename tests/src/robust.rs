//! Damaged images: what a subject may not do even where no promise can be kept.
//!
//! ```text
//!   one life ──crash──> damage (trash, bit rot, a misdirected write) ──> every unit decided: one image of plain bytes
//!                                                                          ├─ open read-only, map, read
//!                                                                          ├─ check and repair
//!                                                                          └─ open for writing, use, close
//! ```
//!
//! **Invariant.** Such an image is judged by three things and no others: nobody panics; every road ends within a number of
//! storage operations that is proportional to the image; and nobody calls sound what redundancy shows to be damaged: after a
//! claim of repair the auditor finds nothing that is illegal then, after opening a dirty image nothing that writing to it could make
//! worse, and a repair that gave up has changed no guest data. What a guest reads from such an image is not asked.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use faultfs::chooser::{Always, Choice, Chooser};
use faultfs::direct::{Direct, DirectOptions};
use faultfs::disk::{File, PossibleDisk};
use faultfs::fault::{Fault, FaultPlan};
use faultfs::profile::{Profile, Robustness};
use faultfs::rng::Rng;
use faultfs::trace::Io;
use faultfs::values::Values;
use model::case::{Case, Content, CrashImage, Origin, SCHEMA, Status};
use model::evidence::ValueKey;
use model::finding::{Finding, Property, Stage};
use model::guest::{DiscardReads, Guest, Made, Promises};
use model::judge::{Contents, Judge, Place, Statement, Violation};
use model::label::Region;
use model::op::Durability;
use model::payload::Unit;
use qcow2_core::storage::{IoBuf, UNIT};

use crate::any::AnySubject;
use crate::buffer::to_read_into;
use crate::call;
use crate::capabilities::Capabilities;
use crate::corpus::{CorpusError, decided};
use crate::ended::Ended;
use crate::evidence::{DiskEvidence, units};
use crate::figures::{Figures, commit};
use crate::leaf::{LeafChooser, SharedLeaf};
use crate::life;
use crate::minimise::{MinimiseProgress, Watch};
use crate::panics;
use crate::probe::{Probe, Probes};
use crate::recover::{Bench, Failure, whole_image};
use crate::subject::{Refusal, Session, Subject, SubjectImage};
use crate::trial::{self, Trial, TrialLife, cluster_units};
use crate::verdict::{Basis, Replay, Verdict};
use crate::watch::doing;
use crate::workload::{GENERATOR, Plan};

/// Of so many moments of a life one is looked at.
const SAMPLE: u32 = 6;

/// Storage operations that one road may take: this many, and [`IOS_PER_UNIT`] for each unit of the file.
const IOS: u64 = 2_000;
const IOS_PER_UNIT: u64 = 8;
/// On a device that takes shorter transfers than this, as many more.
const PLAIN_TRANSFER: u64 = 4096;

/// Runs the first life of a plan and judges what damaged crashes leave. The first failure, with the image.
pub fn run_case(
    subject: &impl Subject,
    plan: &Plan,
    disk: PossibleDisk,
    guest: Guest,
    how: Robustness,
    seed: u64,
    figures: &mut Figures,
) -> (Option<(Failure, CrashImage)>, u64) {
    let subject = &AnySubject::of(subject);
    let session = Session::of(&plan.open, &plan.geometry);
    let script = TrialLife::of(&plan.lives[0]).script(session);
    let units = cluster_units(&plan.geometry);
    let mut rng = Rng::new(seed ^ 0x6461_6d61_6765);
    let mut bench = Bench::new(subject.clone(), session, Profile::TornLength);
    let mut roads = Roads::new(subject, session);
    let mut probes = Probes::default();
    let mut found = None;
    let mut digest = seed;
    let end = life::run(subject, disk, guest, &script, &mut Probes::default(), |moment| {
        figures.crash_points += 1;
        if rng.below(SAMPLE) != 0 {
            return ControlFlow::Continue(());
        }
        let live = moment.sim.disk();
        let labels = trial::labels(&mut bench, &live, moment.guest);
        let leaf = LeafChooser::random(rng.next_u64(), units).share();
        let mut vandal = Vandal {
            odds: 1 << (2 * rng.below(4)),
            left: 1 << rng.below(5),
            rng: Rng::new(rng.next_u64()),
            rest: SharedLeaf::clone(&leaf),
            is_metadata: |unit| !matches!(labels(unit).region, Region::Data(_) | Region::Free(_)),
        };
        let mut crashed = live.crash(Profile::TornLength, &mut vandal);
        let struck = crashed.damage(how, &mut vandal);
        if struck.is_empty() {
            return ControlFlow::Continue(());
        }
        for &unit in &struck {
            probes.hit(match labels(unit).region {
                Region::Header => Probe::DamagedHeader,
                Region::RefcountTable => Probe::DamagedRefcountTable,
                Region::RefcountBlock(_) => Probe::DamagedRefcountBlock,
                Region::L1 => Probe::DamagedL1,
                Region::L2(_) => Probe::DamagedL2,
                _ => Probe::DamagedData,
            });
        }
        crashed.image(&mut vandal);
        if crashed.second().is_some() {
            crashed.image_of(File::Second, &mut vandal);
        }
        figures.states += 1;
        digest = digest.rotate_left(5) ^ crashed.state_hash();
        match roads.judge(&crashed, moment.guest, &mut probes) {
            None => ControlFlow::Continue(()),
            Some(failure) => {
                found = Some((failure, decided(&mut crashed, &mut Always(0))));
                ControlFlow::Break(())
            }
        }
    });
    figures.lives += 1;
    figures.operations += end.operations;
    figures.ios += end.sim.storage().submitted();
    figures.probes.add(&probes);
    (found, digest.rotate_left(5) ^ end.trace_hash)
}

/// Decides where damage strikes: metadata rather than guest data, of which nobody has a second copy.
struct Vandal<F> {
    odds: u32,
    /// How many units it may still strike.
    left: u32,
    rng: Rng,
    rest: SharedLeaf,
    is_metadata: F,
}

impl<F: Fn(u32) -> bool> Chooser for Vandal<F> {
    fn choose(&mut self, options: u32, what: Choice<'_>) -> u32 {
        let Self { odds, left, rng, rest, is_metadata } = self;
        match what {
            Choice::Damage { unit } => {
                let odds = *odds * if is_metadata(unit) { 1 } else { 64 };
                if *left == 0 || rng.below(odds) > 0 {
                    return 0;
                }
                *left -= 1;
                1 + rng.below(options - 1)
            }
            // Half of the flips where tables and the header are in use.
            Choice::Bit { .. } if rng.below(2) == 0 => rng.below(options / 8),
            Choice::Bit { .. } => rng.below(options),
            Choice::Misdirected { len, .. } => {
                let mut to = rng.below(len);
                for _ in 0..8 {
                    if !is_metadata(to) {
                        to = rng.below(len);
                    }
                }
                to
            }
            _ => rest.choose(options, what),
        }
    }
}

/// Counts storage operations and ends a piece of work that takes too many of them.
struct Meter {
    left: u64,
}

/// What the meter panics with.
struct TooMuchWork;

impl FaultPlan for Meter {
    fn fault(&mut self, _: &Io) -> Option<Fault> {
        if self.left == 0 {
            std::panic::panic_any(TooMuchWork);
        }
        self.left -= 1;
        None
    }
}

/// The three roads from a damaged image.
struct Roads<'a> {
    subject: &'a AnySubject,
    session: Session,
    judge: Judge,
    before: Contents,
    /// Whether `before` is all that there is: the judge reads nothing behind a header that leaves the layout unknown, and no
    /// mapping table that lies in something else, and a repair may put either right.
    all_read: bool,
}

/// What the subject said at the end of a road.
enum Said {
    Statement(Statement),
    Refused,
    /// It let the image be used, and claimed nothing.
    Used,
}

impl<'a> Roads<'a> {
    fn new(subject: &'a AnySubject, session: Session) -> Self {
        let (judge, before) = (Judge::default(), Contents::default());
        Self { subject, session, judge, before, all_read: false }
    }

    fn judge(
        &mut self,
        disk: &PossibleDisk,
        guest: &Guest,
        probes: &mut Probes,
    ) -> Option<Failure> {
        let mut plain = disk.clone();
        let mut sure = Always(0);
        let evidence = &mut DiskEvidence::new(&mut plain, &mut sure);
        self.judge.state(evidence, guest, None);
        self.judge.contents(evidence, &mut self.before);
        let hides = |finding: &Finding| {
            matches!(finding, Finding::Overlap { second: Region::L1 | Region::L2(_), .. })
        };
        let header = self.judge.auditor().image().header();
        let hidden = header.is_none() || self.judge.auditor().report().findings.iter().any(hides);
        self.all_read = !hidden;
        let was_dirty = header.is_some_and(|h| h.is_dirty());
        let sound = self.judge.auditor().report().violations(Stage::Repaired).next().is_none();

        let (subject, session) = (self.subject.clone(), self.session);
        let can = subject.capabilities();
        let read_only = Session { writable: false, ..session };
        let result = self.travel(disk, guest, "opening it read-only", None, |storage| {
            let subject = subject.clone();
            async move {
                match call::open(&subject, storage, read_only).await {
                    Ok(image) => {
                        if can.map {
                            drop(image.map().await);
                        }
                        look_around(&image).await;
                        Said::Used
                    }
                    Err(_) => Said::Refused,
                }
            }
        });
        if let Err(failure) = result {
            return Some(failure);
        }

        let repaired = |storage: Direct<Always>| {
            let subject = subject.clone();
            async move {
                match call::repair(&subject, storage).await {
                    Ok(claim) => Said::Statement(claim),
                    Err(Refusal::GaveUp(_) | Refusal::Failed(_)) => {
                        Said::Statement(Statement::GaveUp)
                    }
                }
            }
        };
        let result =
            can.repair.then(|| self.travel(disk, guest, "an explicit repair", None, repaired));
        match result.unwrap_or(Ok(Said::Refused)) {
            Err(failure) => return Some(failure),
            Ok(Said::Statement(Statement::GaveUp)) => probes.hit(Probe::RepairGaveUp),
            Ok(Said::Refused) => {}
            Ok(_) if sound => probes.hit(Probe::DamageUnseen),
            Ok(_) => probes.hit(Probe::RepairRepaired),
        }

        let opened = |storage: Direct<Always>| {
            let subject = subject.clone();
            async move {
                match call::open(&subject, storage, session).await {
                    Ok(_) if was_dirty => Said::Statement(Statement::Writable),
                    Ok(_) => Said::Used,
                    Err(_) => Said::Statement(Statement::GaveUp),
                }
            }
        };
        match self.travel(disk, guest, "opening it for writing", None, opened) {
            Err(failure) => return Some(failure),
            Ok(Said::Statement(Statement::GaveUp)) => probes.hit(Probe::OpenRefused),
            Ok(_) => probes.hit(Probe::OpenedDamaged),
        }

        let used = |storage: Direct<Always>| {
            let subject = subject.clone();
            async move {
                let Ok(image) = call::open(&subject, storage, session).await else {
                    return Said::Refused;
                };
                use_it(&image, &can).await;
                let _ = image.close().await;
                Said::Used
            }
        };
        self.travel(disk, guest, "using it", Some(()), used).err()
    }

    /// One road: what the subject does on a copy of the disk, and what the judge makes of its end. Where the image was
    /// written to by a guest (`used`), only the ways of ending count.
    fn travel<F: Future<Output = Said>>(
        &mut self,
        disk: &PossibleDisk,
        guest: &Guest,
        road: &str,
        used: Option<()>,
        work: impl Fn(Direct<Always>) -> F,
    ) -> Result<Said, Failure> {
        let fail = |property, kind, story: String| {
            let mut violation = whole_image(property, kind);
            violation.story = story;
            Failure { violation, moment: format!("in {road}") }
        };
        let most = IOS + IOS_PER_UNIT * u64::from(units(disk));
        let left = most * (PLAIN_TRANSFER / disk.limits().max_transfer as u64).max(1);
        let options =
            DirectOptions { faults: Some(Box::new(Meter { left })), ..Default::default() };
        let direct = Direct::with_options(disk.clone(), Always(0), options);
        let storage = direct.clone();
        let said = catch_unwind(AssertUnwindSafe(|| faultfs::direct::run(work(storage))));
        if let Some(text) = panics::take() {
            return Err(fail(Property::P8, "panic", text));
        }
        let said = match said {
            Err(panic) if panic.is::<TooMuchWork>() => {
                let story = format!("more than {left} storage operations");
                return Err(fail(Property::P7, "unbounded-work", story));
            }
            Err(panic) => resume_unwind(panic),
            Ok(None) => return Err(fail(Property::P7, "recovery-hangs", String::new())),
            Ok(Some(said)) => said,
        };
        let remains = direct.power_off();
        let (Said::Statement(claim), None) = (&said, used) else { return Ok(said) };
        let mut after = remains.disk;
        let mut sure = Always(0);
        if *claim == Statement::GaveUp && remains.counts.updates == 0 {
            return Ok(said);
        }
        let evidence = &mut DiskEvidence::new(&mut after, &mut sure);
        self.judge.state(evidence, guest, Some(Stage::Repaired));
        let violation = if *claim == Statement::GaveUp && !self.all_read {
            None
        } else if *claim == Statement::GaveUp {
            let mut now = Contents::default();
            self.judge.contents(evidence, &mut now);
            self.judge.p3_same_contents(&self.before, &now, evidence)
        } else {
            // What is beyond judgement is no evidence of a lie.
            let stage = claim.stage().unwrap_or(Stage::Repaired);
            let shown = self.judge.auditor().report().violations(stage);
            let shown = shown.map(|(_, finding)| *finding);
            let mut shown = shown.filter(|f| !matches!(f, Finding::Unsupported { .. }));
            shown.next().and_then(|finding| {
                let violation = self.judge.p8_claim(*claim)?;
                Some(Violation { place: Place::Structure(finding), ..violation })
            })
        };
        match violation {
            None => Ok(said),
            Some(violation) => Err(Failure { violation, moment: format!("after {road}") }),
        }
    }
}

/// Offsets worth a look: both ends, and some between.
fn places(size: u64) -> impl Iterator<Item = u64> {
    (0..8).map(move |eighth| size / 8 / UNIT as u64 * eighth * UNIT as u64)
}

async fn look_around(image: &impl SubjectImage) {
    let size = image.size();
    for offset in places(size) {
        let _ = image.read(offset, to_read_into((size - offset).min(4096))).await;
    }
}

async fn use_it(image: &impl SubjectImage, can: &Capabilities) {
    let size = image.size();
    for (number, offset) in (0..).zip(places(size)) {
        let length = (size - offset).min(4096);
        match number % 4 {
            0 if can.discard => drop(image.discard(offset, length).await),
            1 if can.zeroes => drop(image.write_zeroes(offset, length, true).await),
            _ => {
                let length = usize::try_from(length).expect("at most 4096");
                let data = IoBuf::zeroed(length, UNIT);
                drop(image.write(offset, data, Durability::Cached).await);
            }
        }
    }
    drop(image.flush().await);
    look_around(image).await;
    for offset in places(size) {
        let data = IoBuf::zeroed(UNIT.min(usize::try_from(size - offset).unwrap_or(UNIT)), UNIT);
        drop(image.write(offset, data, Durability::Through).await);
    }
    if can.map {
        drop(image.map().await);
    }
}

/// A damaged image as a case: no lives, only the image.
pub fn case_of(
    trial: &Trial,
    how: Robustness,
    image: CrashImage,
    failure: &Failure,
    seed: u64,
) -> Case {
    let violation = &failure.violation;
    let line = violation.to_string();
    let title = line.lines().next().unwrap_or_default();
    let title = title.strip_prefix(&format!("{} ", violation.property)).unwrap_or(title);
    Case {
        schema: SCHEMA.to_owned(),
        title: format!("{title} ({})", failure.moment),
        property: violation.property,
        profile: how.name().to_owned(),
        discard: model::case::Discard::Either,
        device: trial.device,
        origin: Origin { seed, commit: commit(), generator: GENERATOR },
        witness: None,
        status: Status::Open,
        geometry: trial.geometry,
        open: trial.open.clone(),
        initial: trial.initial,
        lives: Vec::new(),
        image: Some(image),
    }
}

/// Shows the image of a case to a subject again.
///
/// # Errors
/// If the case has no image.
pub fn replay(subject: &impl Subject, case: &Case, file: &str) -> Result<Replay, CorpusError> {
    let subject = &AnySubject::of(subject);
    let Some(image) = &case.image else {
        return Err(CorpusError::Case(format!("{file}: image: a damaged image is missing")));
    };
    let failure = judge_image(subject, case, image);
    let verdict = match &failure {
        None => Verdict::Fixed,
        Some(failure) if failure.violation.property == case.property => Verdict::Reproduced,
        Some(_) => Verdict::OtherFailure,
    };
    Ok(Replay { verdict, basis: Basis::Exact, failure, trial: None })
}

/// The first failure of a subject on a damaged image.
pub fn judge_image(subject: &impl Subject, case: &Case, image: &CrashImage) -> Option<Failure> {
    let subject = &AnySubject::of(subject);
    let values = Values::new();
    let all = |units: &BTreeMap<u64, Content>| -> Vec<(u64, Box<[u8; UNIT]>)> {
        let at = |unit: &u64| unit * UNIT as u64;
        units.iter().map(|(unit, content)| (at(unit), Box::new(content.bytes()))).collect()
    };
    let bytes = all(&image.units);
    let extents = bytes.iter().map(|(offset, bytes)| (*offset, &bytes[..]));
    let mut disk = PossibleDisk::from_extents(&values, image.length, extents);
    if let Some(data) = &image.data {
        let bytes = all(&data.units);
        let extents = bytes.iter().map(|(offset, bytes)| (*offset, &bytes[..]));
        let first = crate::trial::first_of_data(image.length);
        disk = disk.with_second_extents(first, data.length, extents);
    }
    let disk = disk.with_limits(crate::trial::limits_of(&case.device));
    let session = Session::of(&case.open, &case.geometry);
    let promises = Promises {
        cluster_units: case.geometry.cluster_units(),
        discard: DiscardReads::Zeroes,
        grow: Durability::Through,
        changes: Durability::Cached,
    };
    let intern = |unit: &Unit| ValueKey(values.intern(unit).0);
    let guest = Guest::new(&[], promises).on(Made::of(&case.geometry, intern));
    let mut roads = Roads::new(subject, session);
    roads.judge(&disk, &guest, &mut Probes::default())
}

/// The smallest image, unit by unit, on which the subject still fails in the same way; and whether no unit of it can be taken
/// away, or the time was up or a signal came before that was known. `progress` is called before each try.
pub fn minimise(
    subject: &impl Subject,
    case: &Case,
    failure: &Failure,
    limit: Duration,
    progress: &mut dyn FnMut(MinimiseProgress),
) -> (Case, Ended) {
    let subject = &AnySubject::of(subject);
    let (property, kind) = (failure.violation.property, failure.violation.kind);
    doing(format!("making a damaged image of {property} {kind} smaller"));
    let mut best = case.clone();
    let mut watch = Watch::new(limit, progress);
    let mut again = true;
    while std::mem::take(&mut again) {
        let units: Vec<u64> =
            best.image.iter().flat_map(|image| image.units.keys().copied()).collect();
        let mut left = units.len();
        for unit in units.into_iter().rev() {
            if let Some(ended) = watch.over() {
                return (best, ended);
            }
            watch.trying(left);
            let Some(mut smaller) = best.image.clone() else { break };
            smaller.units.remove(&unit);
            let fails = judge_image(subject, &best, &smaller).is_some_and(|other| {
                let (is, was) = (&other.violation, &failure.violation);
                (is.property, is.kind, &other.moment) == (was.property, was.kind, &failure.moment)
            });
            if fails {
                best.image = Some(smaller);
                left -= 1;
                again = true;
            }
        }
    }
    (best, Ended::Complete)
}
