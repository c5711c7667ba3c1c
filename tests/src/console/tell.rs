//! A violation told, minimised and kept.

use std::time::Duration;

use model::case::Case;

use super::keep::Keep;
use super::output::{say, shown};
use super::shorten::{minimise, verdict};
use crate::any::AnySubject;
use crate::corpus;
use crate::minimise::Minimised;
use crate::recover::Failure;
use crate::report;
use crate::subject::Subject;
use crate::trial::{self, Trial};

pub(super) fn as_found(trial: &Trial, failure: &Failure) -> Minimised {
    Minimised { trial: trial.clone(), failure: failure.clone() }
}

/// Minimises what was found, keeps what is left, and reports it; returns its title.
pub(super) fn tell_and_keep(
    subject: &AnySubject,
    found: &Minimised,
    seed: u64,
    witness: Option<String>,
    keep: Keep<'_>,
    limit: Duration,
) -> String {
    let (small, ended) = minimise(subject, &found.trial, &found.failure, limit);
    let case = written(subject, &small, seed, witness);
    let path = keep.shortened(&case, ended);
    let path = path.as_deref().map(shown);
    say(&format!("\n{}\n", report::text(subject, &small.trial, &small.failure, path.as_deref())));
    say(&format!("{}\n", verdict(ended, limit)));
    if let Some(path) = path {
        say(&format!("kept as {path}\n"));
    }
    case.title
}

/// A minimised trial as a case.
pub fn written(
    subject: &impl Subject,
    small: &Minimised,
    seed: u64,
    witness: Option<String>,
) -> Case {
    let subject = &AnySubject::of(subject);
    let outcome = trial::run(subject, &small.trial).expect("it was feasible when it was found");
    corpus::case_of(&small.trial, &outcome, &small.failure, seed, subject.key(), witness)
}
