//! A campaign as a person sees it: progress while it runs, the figures, and a violation minimised, told and kept.

pub mod cases;
pub mod outsider;
pub mod sample;

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use model::case::Case;

use crate::campaign::{self, Budget, Found, Settings};
use crate::corpus::{self, CorpusError};
use crate::explore;
use crate::explore::certificate::{self, Certificate, Part};
use crate::figures::{Figures, Summary};
use crate::ledger;
use crate::minimise::{Minimised, minimise};
use crate::probe::Probe;
use crate::recover::Failure;
use crate::report;
use crate::robust;
use crate::subject::Subject;
use crate::trial;

/// How long minimising may take.
const MINIMISE_FOR: Duration = Duration::from_secs(20);

/// What a campaign came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing was found.
    Passed,
    /// A violation was found and kept.
    Violation,
    /// The run proves nothing.
    Broken,
}

impl Status {
    /// The exit status that says so.
    pub const fn code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Violation => 1,
            Self::Broken => 2,
        }
    }
}

/// The exit status of a command; what went wrong with it goes to standard error.
pub fn exit(result: Result<Status, CorpusError>) -> ExitCode {
    let status = result.unwrap_or_else(|error| {
        eprintln!("{error}");
        Status::Broken
    });
    ExitCode::from(status.code())
}

/// Where the results of a campaign go.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// A file for one JSON object with the figures.
    pub json: Option<PathBuf>,
    /// The folder for case files; none: the violation is told and not kept.
    pub corpus: Option<PathBuf>,
    /// The name of the rules that the subject does without, for the case file.
    pub witness: Option<String>,
    /// Whether every probe must have been reached.
    pub all_probes: bool,
}

/// Runs a campaign with live progress on standard error and the results on standard output.
///
/// # Errors
/// If a result cannot be written.
pub fn run<Sub: Subject>(
    subject: &Sub,
    settings: &Settings,
    outputs: &Outputs,
) -> Result<Status, CorpusError> {
    let progress = Progress::new(settings);
    let report = campaign::run(subject, settings, |figures| progress.show(figures));
    progress.finish();
    say(&format!(
        "{}, profile {}, seed {}: {:.1} s\n{}",
        subject.name(),
        settings.profile_name(),
        settings.seed,
        report.figures.seconds,
        match settings.damage {
            Some(_) => report.figures.damaged_table(),
            None => report.figures.table(),
        }
    ));
    let mut titles = Vec::new();
    let mut status = Status::Passed;
    if let Some(found) = &report.found {
        status = Status::Violation;
        titles.push(tell(subject, settings, outputs, found)?);
    } else if let Some(why) = report.broken.clone().or_else(|| vacuous(settings, &report.figures)) {
        say(&format!("This run proves nothing: {why}.\n"));
        status = Status::Broken;
    } else {
        let expected = match settings.damage {
            Some(_) => Probe::DAMAGED,
            None => Probe::GUARANTEED,
        };
        let missed = report.figures.probes.missed(expected);
        let missed: Vec<&str> = missed.map(|probe| probe.name()).collect();
        if !missed.is_empty() {
            say(&format!("probes missed: {}\n", missed.join(", ")));
            if outputs.all_probes {
                status = Status::Broken;
            }
        }
        if settings.damage.is_none() {
            let covered = ledger::certificates()?;
            say(&ledger::table(&report.figures, settings.profile_name(), &covered));
        }
        say("no violation\n");
    }
    if let Some(path) = &outputs.json {
        let summary = Summary::new(
            &report.figures,
            subject.name(),
            settings.profile_name().to_owned(),
            settings.seed,
            titles,
        );
        let mut text = serde_json::to_string_pretty(&summary).expect("figures are plain numbers");
        text.push('\n');
        write(path, text)?;
    }
    Ok(status)
}

/// Why a run could not have failed, if it could not.
fn vacuous(settings: &Settings, figures: &Figures) -> Option<String> {
    match settings.damage {
        None => figures.vacuous(),
        Some(_) if figures.states == 0 => Some("no damaged image was judged".to_owned()),
        Some(_) => None,
    }
}

/// Minimises what was found, tells it and keeps it; returns its title.
fn tell<Sub: Subject>(
    subject: &Sub,
    settings: &Settings,
    outputs: &Outputs,
    found: &Found,
) -> Result<String, CorpusError> {
    say(&format!(
        "violation in case {} after {} crash states of that worker; minimising\n",
        found.case, found.states
    ));
    if let (Some(image), Some(how)) = (&found.image, settings.damage) {
        let whole =
            robust::case_of(&found.trial, how, image.clone(), &found.failure, settings.seed);
        let case = robust::minimise(subject, &whole, &found.failure);
        let Failure { violation, moment } = &found.failure;
        say(&format!("\n{violation}\nseen {moment}, on an image with damage ({how})\n\n"));
        return keep(&case, outputs);
    }
    let small = minimise(subject, &found.trial, &found.failure, MINIMISE_FOR);
    tell_and_keep(
        subject,
        &small,
        settings.seed,
        outputs.witness.clone(),
        outputs.corpus.as_deref(),
    )
}

/// Writes a case where it is to be kept; returns its title.
fn keep(case: &Case, outputs: &Outputs) -> Result<String, CorpusError> {
    if let Some(folder) = &outputs.corpus {
        let path = corpus::save(case, folder)?;
        let shown = path.display();
        say(&format!("kept as {shown}\nreplay it:   cargo campaign replay {shown}\n"));
    }
    Ok(case.title.clone())
}

/// Where the results of an exploration go.
#[derive(Clone, Debug, Default)]
pub struct Exploration {
    /// A file for the certificate.
    pub certificate: Option<PathBuf>,
    /// A file for the part of a shard.
    pub part: Option<PathBuf>,
    /// The folder for case files; none: the violation is told and not kept.
    pub corpus: Option<PathBuf>,
    /// The name of the rules that the subject does without, for the case file.
    pub witness: Option<String>,
}

/// Explores, with progress on standard error and a line a world on standard output.
///
/// # Errors
/// If a result cannot be written.
pub fn explore<Sub: Subject>(
    subject: &Sub,
    settings: &explore::Settings,
    outputs: &Exploration,
) -> Result<Status, CorpusError> {
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} workloads, {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(0).with_style(style)
    });
    let report = explore::run(subject, settings, |world, done, todo, counts| {
        if let Some(bar) = &bar {
            bar.set_length(todo);
            bar.set_position(done);
            bar.set_message(format!("{} leaves; {}", counts.leaves, certificate::line(world)));
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    say(&format!(
        "{}, profile {}, {}, {}: {:.1} s\n",
        subject.name(),
        settings.profile,
        match settings.departures {
            None => format!("all workloads of up to {} requests", settings.operations),
            Some(most) => format!("all pairs of requests at once, up to {most} departures"),
        },
        match settings.depth {
            u32::MAX => "power cuts in recovery to a fixed point".to_owned(),
            depth => format!("power cuts in recovery to depth {depth}"),
        },
        report.seconds
    ));
    say("  workloads  crash disks      leaves   memo hits  distinct  deepest  leaves/s\n");
    for explored in &report.worlds {
        say(&format!("  {}\n", explored.row()));
    }
    if let Some(why) = &report.broken {
        say(&format!("This run proves nothing: {why}.\n"));
        return Ok(Status::Broken);
    }
    if let Some(found) = &report.found {
        return tell_explored(subject, settings, outputs, found);
    }
    if !report.complete {
        say("the time was up before the end: there is no certificate of this\n");
        return Ok(Status::Broken);
    }
    if report.worlds.iter().all(|explored| explored.counts.leaves == 0) {
        say("This run proves nothing: no leaf was judged.\n");
        return Ok(Status::Broken);
    }
    for (size, (_, missed)) in report.probes() {
        if !missed.is_empty() {
            let names: Vec<&str> = missed.iter().map(|probe| probe.name()).collect();
            say(&format!("not met at {size} B: {}\n", names.join(", ")));
        }
    }
    if let Some(path) = &outputs.certificate {
        if settings.shard.1 != 1 {
            let why = "a shard has no certificate of its own; write its part and merge the parts";
            return Err(CorpusError::Case(format!("--certificate: {why}")));
        }
        write(path, Certificate::new(subject.name(), settings, &report).to_json())?;
    }
    if let Some(path) = &outputs.part {
        let part = Part::new(subject.name(), settings, &report);
        write(path, serde_json::to_string(&part).expect("numbers and names"))?;
    }
    say("no violation\n");
    Ok(Status::Passed)
}

/// Tells what an exploration found, as a case if the way there can be written as one.
fn tell_explored<Sub: Subject>(
    subject: &Sub,
    settings: &explore::Settings,
    outputs: &Exploration,
    found: &explore::Found,
) -> Result<Status, CorpusError> {
    let names: Vec<&str> = found.workload.iter().map(|symbol| symbol.name()).collect();
    say(&format!(
        "violation in workload {} ({}) of {} after {} leaves\n  {} {}\n",
        found.index,
        names.join(", "),
        certificate::line(&found.world),
        found.leaves,
        found.failure.violation,
        found.failure.moment
    ));
    let Some(found) = found.trial(subject, settings.profile) else {
        say("no single way that leads there was found within the bounds of the search\n");
        return Ok(Status::Violation);
    };
    let small = minimise(subject, &found.trial, &found.failure, MINIMISE_FOR);
    tell_and_keep(subject, &small, 0, outputs.witness.clone(), outputs.corpus.as_deref())?;
    Ok(Status::Violation)
}

/// Writes a case into a folder, if there is one, and reports it; returns its title.
fn tell_and_keep<Sub: Subject>(
    subject: &Sub,
    small: &Minimised,
    seed: u64,
    witness: Option<String>,
    folder: Option<&Path>,
) -> Result<String, CorpusError> {
    let case = written(subject, small, seed, witness);
    let path = folder.map(|folder| corpus::save(&case, folder)).transpose()?;
    let path = path.as_deref().map(shown);
    say(&format!("\n{}\n", report::text(subject, &small.trial, &small.failure, path.as_deref())));
    if let Some(path) = path {
        say(&format!("kept as {path}\n"));
    }
    Ok(case.title)
}

/// A minimised trial as a case.
pub fn written<Sub: Subject>(
    subject: &Sub,
    small: &Minimised,
    seed: u64,
    witness: Option<String>,
) -> Case {
    let outcome = trial::run(subject, &small.trial).expect("it was feasible when it was found");
    corpus::case_of(&small.trial, &outcome, &small.failure, seed, subject.key(), witness)
}

/// Writes a file that somebody asked for.
fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<(), CorpusError> {
    std::fs::write(path, contents)
        .map_err(|source| CorpusError::Io { path: path.to_owned(), source })
}

/// Writes to standard output past the capture of test harnesses.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// A bar on a terminal, a line every five seconds elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    budget: Budget,
    last: Mutex<f64>,
}

impl Progress {
    fn new(settings: &Settings) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let length = match settings.budget {
                Budget::Time(limit) => limit.as_secs(),
                Budget::Cases(count) | Budget::States(count, _) => count,
            };
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(length).with_style(style)
        });
        Self { bar, budget: settings.budget, last: Mutex::new(0.0) }
    }

    fn show(&self, figures: &Figures) {
        let message = format!(
            "{} cases, {} states, {:.0} states/s a worker (this worker's)",
            figures.cases,
            figures.states,
            figures.states_per_second()
        );
        if let Some(bar) = &self.bar {
            bar.set_position(match self.budget {
                Budget::Time(_) => figures.seconds as u64,
                Budget::Cases(_) => figures.cases,
                Budget::States(..) => figures.states,
            });
            bar.set_message(message);
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if figures.seconds - *last >= 5.0 {
            *last = figures.seconds;
            let _ = writeln!(std::io::stderr().lock(), "{:6.1} s  {message}", figures.seconds);
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Shows a path in a message.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}
