//! From a trial to a case file and back.
//!
//! A case file says the same thing three times, from what survives changes of code to what is exact: by labels (which
//! operation, which structure), by numbers (event, schedule, choices; valid while the trace hash matches), and as the crash
//! image itself with the values that the guest may see.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use faultfs::chooser::Chooser;
use faultfs::disk::{File, PossibleDisk};
use faultfs::fault::{Fault, FaultAt, Planned, PlannedFault};
use faultfs::profile::{DiscardMode, FlushFailure, Profile, Robustness};
use faultfs::trace::{Event, IoKind};
use faultfs::values::Key;
use model::case::{
    Anchor, Case, Content, Crash, CrashData, CrashImage, Discard, Effect, Exact, FailedIo, Fate,
    Hash, Life, Origin, Phase, Recovery, SCHEMA, Scheduling, Status,
};
use model::guest::Guest;
use model::label::Label;
use model::op::Op;
use model::payload::UNIT;

use crate::any::AnySubject;
use crate::figures::commit;
use crate::file;
use crate::leaf::LeafChooser;
use crate::life::{Cause, Order};
use crate::recover::{Failure, StepPlan};
use crate::subject::Subject;
use crate::trial::{At, LifeRecord, Outcome, Survivors, Trial, TrialLife};
use crate::workload::GENERATOR;

/// The largest case file that is read, in bytes: a case whose image and lists are as large as they may be is far below.
const MAX_FILE: u64 = 64 << 20;

/// Most guest units whose allowed values a case file lists, and most units of a crash image.
const MAX_IMAGE_UNITS: usize = 400;

/// A case that cannot be run, or a folder of them that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a case; the text names file and field.
    #[error("{0}")]
    Case(String),
}

/// The folder of the corpus in the source tree.
pub fn folder() -> PathBuf {
    // Not one folder above: the unit tests are in a package below this one.
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().skip(1);
    let mut folders = above.map(|folder| folder.join("corpus"));
    folders.find(|folder| folder.is_dir()).unwrap_or_else(|| PathBuf::from("corpus"))
}

/// The folder of the cases that were found in a subject outside the workspace: it is called after the subject's key.
pub fn folder_of(subject: &impl Subject) -> PathBuf {
    let subject = &AnySubject::of(subject);
    folder().join("subjects").join(subject.key())
}

/// The case files in a folder, by name.
///
/// # Errors
/// If the folder cannot be read.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, CorpusError> {
    let error = |source| CorpusError::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The names of the case files in a folder, in order.
///
/// # Errors
/// If the folder cannot be read.
pub fn names(folder: &Path) -> Result<Vec<String>, CorpusError> {
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(files(folder)?.iter().filter_map(name).collect())
}

/// Loads a case.
///
/// # Errors
/// [`CorpusError`], which names the file and the field.
pub fn load(path: &Path) -> Result<Case, CorpusError> {
    let error = |source| CorpusError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(error)?;
    let read = io::Read::take(file, MAX_FILE + 1);
    io::Read::read_to_string(&mut { read }, &mut text).map_err(error)?;
    if text.len() as u64 > MAX_FILE {
        let why = format!("it is longer than {} MiB, the longest that is read", MAX_FILE >> 20);
        return Err(CorpusError::Case(format!("{}: {why}", path.display())));
    }
    Case::from_json(&path.display().to_string(), &text)
        .map_err(|error| CorpusError::Case(error.to_string()))
}

/// Writes a case into `folder` under a name made of its title, without overwriting another; returns the path.
///
/// # Errors
/// [`CorpusError::Io`].
pub fn save(case: &Case, folder: &Path) -> Result<PathBuf, CorpusError> {
    save_as(case, folder, "json")
}

/// The same for a case as it was found, long as it is: its name ends in `.raw.json`. It is a case like any other, so one that
/// stayed behind is replayed with the rest.
///
/// # Errors
/// [`CorpusError::Io`].
pub fn save_raw(case: &Case, folder: &Path) -> Result<PathBuf, CorpusError> {
    save_as(case, folder, "raw.json")
}

fn save_as(case: &Case, folder: &Path, extension: &str) -> Result<PathBuf, CorpusError> {
    let error = |path: &Path, source| CorpusError::Io { path: path.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(|source| error(folder, source))?;
    let text = text_of(case);
    let stem = slug(case);
    for number in 1.. {
        let name = if number == 1 {
            format!("{stem}.{extension}")
        } else {
            format!("{stem}-{number}.{extension}")
        };
        let path = folder.join(name);
        match file::create(&path, text.as_bytes()) {
            Ok(()) => return Ok(path),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
                    return Ok(path);
                }
            }
            Err(source) => return Err(error(&path, source)),
        }
    }
    unreachable!("some number is free")
}

/// A case as the text of its file: JSON with each list of numbers on one line.
pub fn text_of(case: &Case) -> String {
    let json = case.to_json();
    let mut out = String::with_capacity(json.len());
    let mut lines = json.lines().peekable();
    while let Some(line) = lines.next() {
        out.push_str(line);
        let is_number = |line: &&str| {
            let text = line.trim().trim_end_matches(',');
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if line.ends_with('[') {
            let mut first = true;
            while let Some(number) = lines.next_if(is_number) {
                out.push_str(if first { "" } else { " " });
                out.push_str(number.trim());
                first = false;
            }
            if !first {
                out.push_str(lines.next().map_or("", str::trim));
            }
        }
        out.push('\n');
    }
    out
}

fn slug(case: &Case) -> String {
    let title = case.witness.as_deref().map_or_else(
        || case.title.split(':').next().unwrap_or_default().to_owned(),
        |rule| format!("without-{rule}"),
    );
    let clean: String = title
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    clean.trim_matches('-').to_owned()
}

/// What a case file says of a failed trial. `outcome` is that of running `trial`.
pub fn case_of(
    trial: &Trial,
    outcome: &Outcome,
    failure: &Failure,
    seed: u64,
    subject: &str,
    witness: Option<String>,
) -> Case {
    let violation = &failure.violation;
    let line = violation.to_string();
    let title = line.lines().next().unwrap_or_default();
    let title = title.strip_prefix(&format!("{} ", violation.property)).unwrap_or(title);
    let mut open = trial.open.clone();
    subject.clone_into(&mut open.subject);
    Case {
        schema: SCHEMA.to_owned(),
        title: format!("{title} ({})", failure.moment),
        property: violation.property,
        profile: trial.profile.name().to_owned(),
        discard: match trial.discard {
            DiscardMode::Either => Discard::Either,
            DiscardMode::Zeroes => Discard::Zeroes,
        },
        device: trial.device,
        origin: Origin { seed, commit: commit(), generator: GENERATOR },
        status: if witness.is_some() { Status::Sabotage } else { Status::Open },
        witness,
        geometry: trial.geometry,
        open,
        initial: trial.initial,
        lives: trial
            .lives
            .iter()
            .zip(&outcome.lives)
            .map(|(life, record)| life_of(life, record))
            .collect(),
        image: outcome.lives.last().and_then(|record| image_of(trial, record)),
    }
}

fn life_of(life: &TrialLife, record: &LifeRecord) -> Life {
    let mut decisions = record.decisions.clone();
    while decisions.last() == Some(&0) {
        decisions.pop();
    }
    let (mut keep, mut lose) = (Vec::new(), Vec::new());
    for (answer, label) in record.answers.iter().zip(&record.labels) {
        if answer.unit.is_some() {
            let list = if answer.taken == 0 { &mut keep } else { &mut lose };
            if !list.contains(label) {
                list.push(*label);
            }
        }
    }
    let losing = lose.len() > keep.len();
    Life {
        tasks: life.tasks.clone(),
        schedule: Scheduling::Choices(decisions),
        faults: faults_of(&life.faults, record),
        dropped: life.dropped.into_iter().collect(),
        crash: Some(Crash {
            anchor: anchor_of(life, record),
            keep: if losing { keep } else { Vec::new() },
            lose: if losing { Vec::new() } else { lose },
            default: if losing { Fate::Lose } else { Fate::Keep },
            exact: Some(Exact {
                event: match life.at {
                    At::Event(event) => event,
                    At::End => record.events,
                },
                choices: record.choices.clone(),
                trace: Hash(record.trace_hash),
            }),
        }),
        recovery: life.steps.iter().enumerate().map(recovery_of).collect(),
        unrecovered: life.unrecovered,
    }
}

fn recovery_of((index, step): (usize, &StepPlan)) -> Recovery {
    let crash = step.crash_at.map(|at| Crash {
        anchor: Anchor {
            task: 0,
            op: index,
            phase: Phase::Submitted,
            label: None,
            nth: u32::try_from(at).unwrap_or(u32::MAX),
        },
        keep: Vec::new(),
        lose: Vec::new(),
        default: Fate::Keep,
        exact: None,
    });
    Recovery { run: step.run, crash }
}

/// The crash by its meaning: the last event before it, and how many like it the operation had before.
fn anchor_of(life: &TrialLife, record: &LifeRecord) -> Anchor {
    let Some(&(cause, concerns)) = record.moments.last() else { return Anchor::default() };
    if life.at == At::End {
        let op = life.tasks.first().map_or(0, Vec::len) + 1;
        return Anchor { op, ..Anchor::default() };
    }
    let (task, op) = named(concerns, &life.tasks);
    let phase = phase_of(cause);
    let like = |other: &&(Cause, Option<(usize, usize)>)| {
        other.1 == concerns && phase_of(other.0) == phase
    };
    let nth = record.moments.iter().filter(like).count().saturating_sub(1);
    Anchor { task, op, phase, label: None, nth: u32::try_from(nth).unwrap_or(u32::MAX) }
}

/// Which end of an I/O or operation a moment follows.
pub const fn phase_of(cause: Cause) -> Phase {
    match cause {
        Cause::Submitted(_) | Cause::Began => Phase::Submitted,
        Cause::Completed(_) | Cause::Returned => Phase::Completed,
    }
}

/// The I/O that planned faults struck, one fault each, by number; a fault that struck nothing is none.
fn faults_of(planned: &Planned, record: &LifeRecord) -> Vec<FailedIo> {
    let strike = |event: &Event| {
        let Event::Submit { io, .. } = event else { return None };
        let (effect, landed) = effect_of(planned.striking(io)?.fault);
        Some(FailedIo { anchor: Anchor::default(), io: Some(io.index), effect, landed })
    };
    record.trace.events().iter().filter_map(strike).collect()
}

/// How an I/O fails, and how many of its units land all the same, as a case says it.
const fn effect_of(fault: Fault) -> (Effect, u32) {
    match fault {
        Fault::Eio => (Effect::Eio, 0),
        Fault::Enospc { landed } => (Effect::Enospc, landed),
        Fault::Short { landed } => (Effect::Short, landed),
        Fault::Flush(FlushFailure::RetrySafe) => (Effect::FlushRetrySafe, 0),
        Fault::Flush(FlushFailure::CleanMarked) => (Effect::FlushCleanMarked, 0),
        Fault::Flush(FlushFailure::Sticky) => (Effect::FlushSticky, 0),
        Fault::Late => (Effect::Late, 0),
        Fault::Through(FlushFailure::RetrySafe) => (Effect::ThroughRetrySafe, 0),
        Fault::Through(FlushFailure::CleanMarked) => (Effect::ThroughCleanMarked, 0),
        Fault::Through(FlushFailure::Sticky) => (Effect::ThroughSticky, 0),
    }
}

/// The crash image of the last life, decided as the trial decided it, if it is small.
fn image_of(trial: &Trial, record: &LifeRecord) -> Option<CrashImage> {
    let mut chooser = LeafChooser::written(record.choices.clone());
    let mut disk = record.disk.crash(trial.profile, &mut chooser);
    let image = decided(&mut disk, &mut chooser);
    let mut guest = record.guest.clone();
    guest.crash();
    let allowed = allowed(&guest, &disk);
    let units = image.units.len() + image.data.as_ref().map_or(0, |data| data.units.len());
    let small = units <= MAX_IMAGE_UNITS && allowed.len() <= MAX_IMAGE_UNITS;
    small.then_some(CrashImage { allowed, ..image })
}

/// What a disk holds, all of it decided; nothing is said of what the guest may see.
pub(crate) fn decided(disk: &mut PossibleDisk, chooser: &mut impl Chooser) -> CrashImage {
    let length = u64::from(disk.len(chooser)) * UNIT as u64;
    let mut image = CrashImage { length, ..CrashImage::default() };
    let second = disk.second();
    if second.is_some() {
        let length = u64::from(disk.len_of(File::Second, chooser)) * UNIT as u64;
        image.data = Some(CrashData { length, ..CrashData::default() });
    }
    for unit in disk.nonzero().collect::<Vec<u32>>() {
        let key = disk.read(unit, chooser);
        if key == Key::ZERO {
            continue;
        }
        let (units, first) = match (&mut image.data, second.filter(|&first| unit >= first)) {
            (Some(data), Some(first)) => (&mut data.units, first),
            _ => (&mut image.units, 0),
        };
        units.insert(u64::from(unit - first), content(disk, key));
    }
    image
}

fn content(disk: &PossibleDisk, key: Key) -> Content {
    Content::of(disk.values().bytes(key))
}

fn allowed(guest: &Guest, disk: &PossibleDisk) -> BTreeMap<u64, Vec<Content>> {
    (0..guest.units())
        .map(|unit| {
            let values = guest.allowed(unit);
            (unit, values.iter().map(|key| content(disk, Key(key.0))).collect::<Vec<_>>())
        })
        .filter(|(_, values)| *values != [Content::Zero])
        .collect()
}

/// The exact reading of a case.
///
/// # Errors
/// What in it cannot be run: file and field.
pub fn trial_of(case: &Case, file: &str) -> Result<Trial, CorpusError> {
    let bad = |field: &str, why: String| CorpusError::Case(format!("{file}: {field}: {why}"));
    if case.profile.parse::<Robustness>().is_ok() {
        let why = "a damaged image has no lives: it can be replayed, and that is all".to_owned();
        return Err(bad("profile", why));
    }
    let profile: Profile =
        case.profile.parse().map_err(|error| bad("profile", format!("{error}")))?;
    let lives = case.lives.iter().map(trial_life).collect();
    Ok(Trial {
        geometry: case.geometry,
        initial: case.initial,
        open: case.open.clone(),
        profile,
        discard: match case.discard {
            Discard::Either => DiscardMode::Either,
            Discard::Zeroes => DiscardMode::Zeroes,
        },
        device: case.device,
        lives,
    })
}

fn trial_life(life: &Life) -> TrialLife {
    let exact = life.crash.as_ref().and_then(|crash| crash.exact.as_ref());
    let ends = life.crash.as_ref().is_none_or(|crash| is_end(life, &crash.anchor));
    TrialLife {
        tasks: life.tasks.clone(),
        order: match &life.schedule {
            Scheduling::Seed(seed) => Order::Seed(*seed),
            Scheduling::Choices(choices) => Order::Choices(choices.clone()),
        },
        faults: Planned(life.faults.iter().map(planned).collect()),
        dropped: life.dropped.first().copied(),
        at: match exact {
            Some(exact) if !ends => At::Event(exact.event),
            _ => At::End,
        },
        leaf: match (&life.crash, exact) {
            (_, Some(exact)) => Survivors::Choices(exact.choices.clone()),
            (Some(crash), None) => labels_of(crash),
            (None, None) => Survivors::Choices(Vec::new()),
        },
        steps: life
            .recovery
            .iter()
            .map(|step| StepPlan {
                run: step.run,
                crash_at: step.crash.as_ref().map(|crash| u64::from(crash.anchor.nth)),
            })
            .collect(),
        unrecovered: life.unrecovered,
    }
}

/// Task and operation as anchors name them: the operation after the last of task 0 is the clean close, and opening is its
/// first.
pub fn named(concerns: Option<(usize, usize)>, tasks: &[Vec<Op>]) -> (usize, usize) {
    match concerns {
        None => (0, 0),
        Some((_, usize::MAX)) => (0, tasks.first().map_or(0, Vec::len)),
        Some(named) => named,
    }
}

/// Whether an anchor means the end of a life: what follows the clean close.
pub fn is_end(life: &Life, anchor: &Anchor) -> bool {
    anchor.op > life.tasks.get(anchor.task).map_or(0, Vec::len)
}

/// What survives, by label.
pub fn labels_of(crash: &Crash) -> Survivors {
    let (keep, lose): (Vec<Label>, Vec<Label>) = (crash.keep.clone(), crash.lose.clone());
    Survivors::Labels { keep, lose, default: crash.default }
}

fn planned(fault: &FailedIo) -> PlannedFault {
    let (flush, through) = (Fault::Flush, Fault::Through);
    let (kind, effect) = match fault.effect {
        Effect::Eio => (IoKind::Write, Fault::Eio),
        Effect::Enospc => (IoKind::Write, Fault::Enospc { landed: fault.landed }),
        Effect::Short => (IoKind::Write, Fault::Short { landed: fault.landed }),
        Effect::FlushRetrySafe => (IoKind::Flush, flush(FlushFailure::RetrySafe)),
        Effect::FlushCleanMarked => (IoKind::Flush, flush(FlushFailure::CleanMarked)),
        Effect::FlushSticky => (IoKind::Flush, flush(FlushFailure::Sticky)),
        Effect::Late => (IoKind::Write, Fault::Late),
        Effect::ThroughRetrySafe => (IoKind::WriteThrough, through(FlushFailure::RetrySafe)),
        Effect::ThroughCleanMarked => (IoKind::WriteThrough, through(FlushFailure::CleanMarked)),
        Effect::ThroughSticky => (IoKind::WriteThrough, through(FlushFailure::Sticky)),
    };
    let at = fault
        .io
        .map_or_else(|| FaultAt::Nth { kind, nth: u64::from(fault.anchor.nth) }, FaultAt::Index);
    PlannedFault { at, fault: effect }
}

#[cfg(test)]
mod tests {
    use faultfs::fault::FaultAt;
    use model::case::Anchor;

    use super::{Effect, FailedIo, Fault, FlushFailure, effect_of, planned};

    /// Goal: a case keeps what failed. Method: each fault to its effect, through JSON, and back.
    #[test]
    fn faults_survive_being_written_down() {
        use FlushFailure::{CleanMarked, RetrySafe, Sticky};
        let mut names = Vec::new();
        for fault in [
            Fault::Eio,
            Fault::Enospc { landed: 3 },
            Fault::Short { landed: 2 },
            Fault::Flush(RetrySafe),
            Fault::Flush(CleanMarked),
            Fault::Flush(Sticky),
            Fault::Late,
            Fault::Through(RetrySafe),
            Fault::Through(CleanMarked),
            Fault::Through(Sticky),
        ] {
            let (effect, landed) = effect_of(fault);
            let written = FailedIo { anchor: Anchor::default(), io: Some(7), effect, landed };
            let json = serde_json::to_string(&written).expect("it can be written");
            let read: FailedIo = serde_json::from_str(&json).expect("it can be read");
            assert_eq!(read, written);
            let back = planned(&read);
            assert_eq!((back.at, back.fault), (FaultAt::Index(7), fault));
            names.push(serde_json::to_string::<Effect>(&effect).expect("it can be written"));
        }
        assert_eq!(
            names.join(" "),
            concat!(
                r#""eio" "enospc" "short" "flush-retry-safe" "flush-clean-marked" "flush-sticky" "late" "#,
                r#""through-retry-safe" "through-clean-marked" "through-sticky""#
            )
        );
    }
}
