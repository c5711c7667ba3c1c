//! What a person asks of kept cases: run them again, shrink one, tell its story, write its image.
//!
//! A case is run on the subject that it names. Where that one can do without what the case is a witness of, it is run on
//! whole code and on broken code, and it is the one of them that fails that is shrunk, told and written.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use model::case::Case;

use super::output::{another_file, check, complain, say, shown, write};
use super::shorten::{minimise, verdict};
use super::status::{ExitStatus, after, listen};
use super::tell::written;
use crate::any::AnySubject;
use crate::corpus::{self, CorpusError};
use crate::interrupt;
use crate::minimise::Minimised;
use crate::replay::{self, Replay, is_expected};
use crate::report;

/// The kept cases of a command line, and what they are run on.
pub trait Cases {
    /// Whether the subject can do without the witness of a case.
    const WITNESSES: bool;

    /// The folder of the case files.
    fn folder(&self) -> PathBuf;

    /// The subject of a case, without its witness if `broken`.
    ///
    /// # Errors
    /// If the case names a subject or a witness that does not exist here.
    fn subject_of(&self, case: &Case, file: &str, broken: bool) -> Result<AnySubject, CorpusError>;
}

/// How long is looked for a case whose moment is gone, if nobody says.
const SEARCH_FOR: u64 = 60;

/// `replay`
#[derive(Args)]
pub struct ReplayCommand {
    /// Case files; all of the corpus if none is named.
    paths: Vec<PathBuf>,
    /// Where the moment of a case is gone, look at every other one for at most this many seconds.
    #[arg(long, default_value_t = SEARCH_FOR)]
    seconds: u64,
    /// Write the verdicts as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl ReplayCommand {
    /// Runs cases again and says the verdict of each.
    ///
    /// # Errors
    /// If a case cannot be run, or the verdicts cannot be written.
    pub fn run<C: Cases>(&self, cases: &C) -> Result<ExitStatus, CorpusError> {
        check(self.json.as_deref(), None)?;
        listen()?;
        let all;
        let paths = if self.paths.is_empty() {
            all = corpus::files(&cases.folder())?;
            &all
        } else {
            &self.paths
        };
        let mut status = ExitStatus::Passed;
        let mut rows = Vec::new();
        'cases: for path in paths {
            let file = shown(path);
            let case = corpus::load(path)?;
            let both = C::WITNESSES && case.witness.is_some();
            let runs: &[bool] = if both { &[false, true] } else { &[false] };
            for &broken in runs {
                let subject = cases.subject_of(&case, &file, broken)?;
                let replay = again(&subject, &case, &file, self.seconds)?;
                if let Some(signal) = interrupt::signal() {
                    say(&format!("interrupted ({signal}) at {file}\n"));
                    if status == ExitStatus::Passed {
                        status = ExitStatus::Interrupted(signal);
                    }
                    break 'cases;
                }
                let expected = is_expected(&case, replay.verdict, broken);
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let how = if broken { "broken" } else { "whole" };
                let column = if C::WITNESSES { format!("{how:<7} ") } else { String::new() };
                say(&format!(
                    "{:<14} {:<9} {column}{name}{}\n",
                    replay.verdict,
                    replay.basis.name(),
                    if expected { "" } else { "   <- not as expected" }
                ));
                if let Some(failure) = replay.failure.as_ref().filter(|_| !expected) {
                    say(&format!("    {} {}\n", failure.violation, failure.moment));
                }
                if !expected {
                    status = ExitStatus::Violation;
                }
                rows.push(serde_json::json!({
                    "case": name, "code": how, "verdict": replay.verdict.name(),
                    "basis": replay.basis.name(), "expected": expected,
                }));
            }
        }
        if let Some(path) = &self.json {
            let text = serde_json::Value::Array(rows).to_string() + "\n";
            return after(status, write(path, text));
        }
        Ok(status)
    }
}

/// `minimise`
#[derive(Args)]
pub struct Minimise {
    /// A case file.
    path: PathBuf,
    /// Stop after this many seconds.
    #[arg(long, alias = "minimise-seconds", default_value_t = 60)]
    seconds: u64,
}

impl Minimise {
    /// Shrinks a case and prints the smaller one; a signal ends that with the smallest until then.
    ///
    /// # Errors
    /// If the case cannot be run.
    pub fn run<C: Cases>(&self, cases: &C) -> Result<ExitStatus, CorpusError> {
        listen()?;
        let Some(Failing { subject, found, case }) = failing(cases, &self.path)? else {
            return Ok(ExitStatus::Passed);
        };
        let limit = Duration::from_secs(self.seconds);
        let (small, ended) = minimise(&subject, &found.trial, &found.failure, limit);
        say(&corpus::text_of(&written(&subject, &small, case.origin.seed, case.witness)));
        complain(verdict(ended, limit));
        Ok(ExitStatus::Violation)
    }
}

/// `explain`
#[derive(Args)]
pub struct Explain {
    /// A case file.
    path: PathBuf,
    /// Every event of the lives and of recovery too.
    #[arg(long)]
    verbose: bool,
}

impl Explain {
    /// Tells the story of a case.
    ///
    /// # Errors
    /// If the case cannot be run.
    pub fn run<C: Cases>(&self, cases: &C) -> Result<ExitStatus, CorpusError> {
        let Some(Failing { subject, found, .. }) = failing(cases, &self.path)? else {
            return Ok(ExitStatus::Passed);
        };
        let Minimised { trial, failure } = &found;
        say(&report::text(&subject, trial, failure, Some(&shown(&self.path))));
        if self.verbose {
            say(&format!("\n{}", report::verbose(&subject, trial, failure)));
        }
        Ok(ExitStatus::Violation)
    }
}

/// `dump`
#[derive(Args)]
pub struct Dump {
    /// A case file.
    path: PathBuf,
    /// The image to write.
    file: PathBuf,
    /// As recovery and an explicit repair leave it.
    #[arg(long)]
    repaired: bool,
}

impl Dump {
    /// Writes the image that the power cut of a case left, and its data file beside it if it has one.
    ///
    /// # Errors
    /// If the case cannot be run or fails without a power cut, or the image cannot be written. Of one that passes there is none, either:
    /// [`ExitStatus::Broken`].
    pub fn run<C: Cases>(&self, cases: &C) -> Result<ExitStatus, CorpusError> {
        another_file(&self.path, &self.file)?;
        let Some(Failing { subject, found, .. }) = failing(cases, &self.path)? else {
            return Ok(ExitStatus::Broken);
        };
        let Minimised { trial, failure } = &found;
        let (image, data) =
            report::image(&subject, trial, failure, self.repaired).ok_or_else(|| {
                CorpusError::Case(format!("{}: it fails without a power cut", shown(&self.path)))
            })?;
        write(&self.file, &image)?;
        say(&format!("{} bytes in {}\n", image.len(), shown(&self.file)));
        if let Some(data) = data {
            let mut name = self.file.clone().into_os_string();
            name.push(".data");
            let path = PathBuf::from(name);
            write(&path, &data)?;
            say(&format!("{} bytes of data file in {}\n", data.len(), shown(&path)));
        }
        Ok(ExitStatus::Passed)
    }
}

/// A case again; a signal ends the search for a moment that is gone, too.
fn again(
    subject: &AnySubject,
    case: &Case,
    file: &str,
    seconds: u64,
) -> Result<Replay, CorpusError> {
    #[expect(clippy::disallowed_methods, reason = "the search is given time by the clock")]
    let start = Instant::now();
    let over = || interrupt::asked() || start.elapsed() >= Duration::from_secs(seconds);
    replay::replay_until(subject, case, file, &over)
}

/// A case that fails, and the subject that it fails on.
pub(super) struct Failing {
    pub(super) subject: AnySubject,
    pub(super) found: Minimised,
    pub(super) case: Case,
}

/// The failing run of a case: whole code if it is open, else code without its witness. None, and said so, if it passes.
pub(super) fn failing<C: Cases>(cases: &C, path: &Path) -> Result<Option<Failing>, CorpusError> {
    let file = shown(path);
    let case = corpus::load(path)?;
    let runs: &[bool] = if C::WITNESSES { &[false, true] } else { &[false] };
    for &broken in runs {
        let subject = cases.subject_of(&case, &file, broken)?;
        let shown = again(&subject, &case, &file, SEARCH_FOR)?;
        match (shown.trial, shown.failure) {
            (Some(trial), Some(failure)) => {
                let found = Minimised { trial, failure };
                return Ok(Some(Failing { subject, found, case }));
            }
            (None, Some(failure)) => {
                let why = failure.violation;
                return Err(CorpusError::Case(format!("{file}: there is no run to show: {why}")));
            }
            (_, None) => {}
        }
    }
    let how = if C::WITNESSES { ", with and without its witness" } else { "" };
    say(&format!("{file} passes{how}: there is nothing to show\n"));
    Ok(None)
}
