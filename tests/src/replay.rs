//! A case again, and a verdict.
//!
//! The exact moment is tried first. Where the code has changed so much that the trace is another one, the crash is looked up
//! by its meaning, and at last among all moments of the life: a case never passes because nothing was found to run.

use std::cell::Cell;

use faultfs::profile::Robustness;
use model::case::{Case, Status};
use model::finding::Property;

use crate::any::AnySubject;
use crate::corpus::{self, CorpusError};
use crate::minimise::{self, Signature};
use crate::recover::{Failure, whole_image};
use crate::robust;
use crate::subject::{Qcow2Core, Subject};
use crate::trial::{self, At, LifeRecord, Outcome, Trial};
pub use crate::verdict::{Basis, Replay, Verdict};
use crate::watch::doing;

/// The subject of a case, without its witness if `broken`.
///
/// # Errors
/// If the case names a subject or rule that does not exist here.
pub fn subject_of(case: &Case, file: &str, broken: bool) -> Result<Qcow2Core, CorpusError> {
    if case.open.subject != "qcow2-core" {
        let name = &case.open.subject;
        return Err(CorpusError::Case(format!(
            "{file}: open.subject: no subject is called {name}"
        )));
    }
    let names = case.witness.iter().flat_map(|names| names.split('+')).filter(|_| broken);
    Qcow2Core::without(names)
        .map_err(|error| CorpusError::Case(format!("{file}: witness: {error}")))
}

/// Replays a case on a subject.
///
/// # Errors
/// What in the case cannot be run: file and field.
pub fn replay(subject: &impl Subject, case: &Case, file: &str) -> Result<Replay, CorpusError> {
    replay_until(subject, case, file, &|| false)
}

/// The same, with an end: where the I/O is other than the file says and its moment does not show the failure, all moments are looked at
/// until it is `over`. If the file says no moment, or that one is gone, and not all others were looked at, nothing was measured.
///
/// # Errors
/// As [`replay`].
pub fn replay_until(
    subject: &impl Subject,
    case: &Case,
    file: &str,
    over: &dyn Fn() -> bool,
) -> Result<Replay, CorpusError> {
    let subject = &AnySubject::of(subject);
    doing(format!("replay of {file}"));
    if case.profile.parse::<Robustness>().is_ok() {
        return robust::replay(subject, case, file);
    }
    let exact = corpus::trial_of(case, file)?;
    let outcome = match trial::run(subject, &exact) {
        Ok(outcome) => outcome,
        Err(why) => return Ok(not_measured(Basis::Exact, "not-feasible", why)),
    };
    let same_trace = traces_match(case, &outcome);
    // What another trace shows besides is not what the case is about, as long as that can be found.
    let mut besides = None;
    if let Some((_, failure)) = outcome.failure {
        let basis = if same_trace { Basis::Exact } else { Basis::Semantic };
        let mut replay = verdict_of(case, failure, basis, exact.clone());
        if replay.verdict == Verdict::HarnessBroken && !answers_match(case, &outcome.lives) {
            replay.verdict = Verdict::OtherFailure;
        }
        if same_trace || replay.verdict == Verdict::Reproduced {
            return Ok(replay);
        }
        besides = Some(replay);
    } else if same_trace {
        let (verdict, basis) = (Verdict::Fixed, Basis::Exact);
        return Ok(Replay { verdict, basis, failure: None, trial: None });
    }

    let (semantic, found) = by_meaning(subject, case, &exact);
    if found
        && let Ok(outcome) = trial::run(subject, &semantic)
        && let Some((_, failure)) = outcome.failure
    {
        let replay = verdict_of(case, failure, Basis::Semantic, semantic.clone());
        if replay.verdict == Verdict::Reproduced {
            return Ok(replay);
        }
        besides.get_or_insert(replay);
    }
    let kind = case.title.split(':').next().unwrap_or_default().to_owned();
    let wanted = Signature { property: case.property, kind, panics_at: None };
    let cut = Cell::new(false);
    let until = || {
        cut.set(cut.get() || over());
        cut.get()
    };
    if let Some(hit) = minimise::search_until(subject, &semantic, &wanted, &until) {
        return Ok(verdict_of(case, hit.failure, Basis::Searched, hit.trial));
    }
    if let Some(besides) = besides {
        return Ok(besides);
    }
    let says_when = case.lives.last().is_some_and(|life| life.crash.is_some());
    if cut.get() && !(found && says_when) {
        let why = "its moment is not there, and not every other one was looked at";
        return Ok(not_measured(Basis::Searched, "not-searched", why.to_owned()));
    }
    let (verdict, basis) =
        if found { (Verdict::Fixed, Basis::Semantic) } else { (Verdict::Drifted, Basis::Searched) };
    Ok(Replay { verdict, basis, failure: None, trial: None })
}

fn not_measured(basis: Basis, kind: &'static str, why: String) -> Replay {
    let mut violation = whole_image(Property::P7, kind);
    violation.story = why;
    let failure = Failure { violation, moment: "when it was run again".to_owned() };
    Replay { verdict: Verdict::NotMeasured, basis, failure: Some(failure), trial: None }
}

fn verdict_of(case: &Case, failure: Failure, basis: Basis, trial: Trial) -> Replay {
    let verdict = match basis {
        _ if failure.violation.property == case.property => Verdict::Reproduced,
        Basis::Exact => Verdict::HarnessBroken,
        Basis::Semantic | Basis::Searched => Verdict::OtherFailure,
    };
    Replay { verdict, basis, failure: Some(failure), trial: Some(trial) }
}

fn traces_match(case: &Case, outcome: &Outcome) -> bool {
    case.lives.len() == outcome.lives.len()
        && case.lives.iter().zip(&outcome.lives).all(|(life, record)| {
            let exact = life.crash.as_ref().and_then(|crash| crash.exact.as_ref());
            record.reached && exact.is_some_and(|exact| exact.trace.0 == record.trace_hash)
        })
}

/// Whether what survived, and what recovery and the judge asked for, was chosen as the file says: recovery did what it did then, as far as
/// that shows.
fn answers_match(case: &Case, lives: &[LifeRecord]) -> bool {
    case.lives.iter().zip(lives).all(|(life, record)| {
        let exact = life.crash.as_ref().and_then(|crash| crash.exact.as_ref());
        exact.is_some_and(|exact| exact.choices == record.choices)
    })
}

/// The trial with each crash at the moment that its anchor means; whether every anchor was found.
fn by_meaning(subject: &AnySubject, case: &Case, exact: &Trial) -> (Trial, bool) {
    let mut trial = exact.clone();
    let mut all = true;
    for number in 0..trial.lives.len() {
        let life = &case.lives[number];
        let Some(crash) = &life.crash else { continue };
        trial.lives[number].leaf = corpus::labels_of(crash);
        if corpus::is_end(life, &crash.anchor) {
            continue;
        }
        let mut until = trial.clone();
        until.lives.truncate(number + 1);
        match event_of(subject, &until, &crash.anchor) {
            Some(event) => trial.lives[number].at = At::Event(event),
            None => all = false,
        }
    }
    (trial, all)
}

/// The event of the last life of a trial that an anchor means.
fn event_of(subject: &AnySubject, trial: &Trial, anchor: &model::case::Anchor) -> Option<u64> {
    let mut seen = 0;
    let tasks = &trial.lives.last()?.tasks;
    trial::watch(subject, trial, |moment| {
        let same = corpus::named(moment.concerns, tasks) == (anchor.task, anchor.op)
            && corpus::phase_of(moment.cause) == anchor.phase;
        if same {
            seen += 1;
        }
        same && seen > anchor.nth
    })
}

/// Whether a verdict is the one that the status of a case asks for, with or without its witness.
pub const fn is_expected(case: &Case, verdict: Verdict, broken: bool) -> bool {
    match (case.status, broken) {
        (Status::Open, _) | (Status::Fixed | Status::Sabotage, true) => {
            matches!(verdict, Verdict::Reproduced)
        }
        (Status::Fixed | Status::Sabotage | Status::Litmus, false) => {
            matches!(verdict, Verdict::Fixed)
        }
        (Status::Litmus, true) => true,
    }
}
