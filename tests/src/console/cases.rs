//! What a person asks of kept cases: run them again, shrink one, tell its story, write its image.
//!
//! A case is run on the subject that it names. Where that one can do without what the case is a witness of, it is run on
//! whole code and on broken code, and it is the one of them that fails that is shrunk, told and written.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use model::case::Case;
use model::judge::Violation;

use super::output::{another_file, check, complain, say, shown, write};
use super::shorten::{minimise, verdict};
use super::status::{ExitStatus, after, listen};
use super::tell::written;
use crate::any::AnySubject;
use crate::corpus::{self, CorpusError};
use crate::interrupt;
use crate::minimise::Minimised;
use crate::replay::{self, Replay, Verdict, is_expected};
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
    /// Where the code has changed and the moment of a case shows nothing, look at all others for at most this many seconds.
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
                let signal = interrupt::signal();
                if signal.is_some() && replay.verdict == Verdict::NotMeasured {
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
                    say(&match replay.verdict {
                        Verdict::NotMeasured => format!("    {}\n", failure.violation.story),
                        _ => format!("    {} {}\n", failure.violation, failure.moment),
                    });
                }
                match replay.verdict {
                    _ if expected || status == ExitStatus::Violation => {}
                    Verdict::NotMeasured | Verdict::HarnessBroken => status = ExitStatus::Broken,
                    _ => status = ExitStatus::Violation,
                }
                rows.push(serde_json::json!({
                    "case": name, "code": how, "verdict": replay.verdict.name(),
                    "basis": replay.basis.name(), "expected": expected,
                }));
                if signal.is_some() {
                    break 'cases;
                }
            }
        }
        if let Some(signal) = interrupt::signal() {
            say(&format!("interrupted ({signal}): what stands above is all that was run\n"));
            if status == ExitStatus::Passed {
                status = ExitStatus::Interrupted(signal);
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
        let Failing { subject, found, case } = match failing(cases, &self.path)? {
            Ok(failing) => failing,
            Err(status) => return Ok(status.without_output()),
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
        let Failing { subject, found, .. } = match failing(cases, &self.path)? {
            Ok(failing) => failing,
            Err(status) => return Ok(status),
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
        let Failing { subject, found, .. } = match failing(cases, &self.path)? {
            Ok(failing) => failing,
            Err(status) => return Ok(status.without_output()),
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
    let now = Instant::now;
    // What comes before the search is run whatever it takes.
    let start = OnceCell::new();
    let limit = Duration::from_secs(seconds);
    let over = || interrupt::asked() || start.get_or_init(now).elapsed() >= limit;
    replay::replay_until(subject, case, file, &over)
}

/// A case that fails, and the subject that it fails on.
pub(super) struct Failing {
    pub(super) subject: AnySubject,
    pub(super) found: Minimised,
    pub(super) case: Case,
}

/// The failing run of a case: whole code if it is open, else code without its witness. A status, and said so, if it passes or a signal
/// ended it.
pub(super) fn failing<C: Cases>(
    cases: &C,
    path: &Path,
) -> Result<Result<Failing, ExitStatus>, CorpusError> {
    let file = shown(path);
    let case = corpus::load(path)?;
    let runs: &[bool] = if C::WITNESSES { &[false, true] } else { &[false] };
    let mut unknown = None;
    for &broken in runs {
        let subject = cases.subject_of(&case, &file, broken)?;
        let shown = again(&subject, &case, &file, SEARCH_FOR)?;
        if let Some(signal) = interrupt::signal()
            && shown.verdict != Verdict::Reproduced
        {
            complain(format_args!("interrupted ({signal}) before {file} was seen to fail"));
            return Ok(Err(ExitStatus::Interrupted(signal)));
        }
        match (shown.trial, shown.failure) {
            (Some(trial), Some(failure)) => {
                let found = Minimised { trial, failure };
                return Ok(Ok(Failing { subject, found, case }));
            }
            (None, Some(failure)) => {
                let Violation { story, .. } = &failure.violation;
                let why =
                    if story.is_empty() { failure.violation.to_string() } else { story.clone() };
                unknown.get_or_insert(why);
            }
            (_, None) => {}
        }
    }
    if let Some(why) = unknown {
        return Err(CorpusError::Case(format!("{file}: there is no run to show: {why}")));
    }
    let how = if C::WITNESSES { ", with and without its witness" } else { "" };
    complain(format_args!("{file} passes{how}: there is nothing to show"));
    Ok(Err(ExitStatus::Passed))
}
