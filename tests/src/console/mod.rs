//! A campaign as a person sees it: progress while it runs, the figures, and a violation minimised, told and kept.

pub mod cases;
pub mod keep;
pub mod output;
pub mod outsider;
pub mod sample;
pub mod shorten;

use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use model::case::{Case, Status as CaseStatus};

use crate::campaign::{self, Budget, Found, Settings};
use crate::corpus::{self, CorpusError};
use crate::ended::Ended;
use crate::explore;
use crate::explore::certificate::{Certificate, Part};
use crate::figures::{Figures, Summary};
use crate::interrupt::{self, Signal};
use crate::ledger::{self, Cited};
use crate::minimise::Minimised;
use crate::probe::Probe;
use crate::recover::Failure;
use crate::report;
use crate::robust;
use crate::subject::Subject;
use crate::trial::{self, Trial};
use keep::Keep;
use output::{check, write};
pub use output::{complain, say, shown};
use shorten::{MINIMISE_FOR, minimise, verdict};

/// What exit statuses mean, for help texts.
pub const EXIT_STATUS: &str = "Exit status: 0 nothing found, 1 a violation, 2 misuse, a broken harness or \
    output that cannot be written, 130 or 143 interrupted (SIGINT, SIGTERM) before anything was found. The first of these signals \
    ends a run with what it has seen, a second one at once.";

/// What a campaign came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing was found.
    Passed,
    /// A violation was found and kept.
    Violation,
    /// The run proves nothing, or what it shows cannot be written.
    Broken,
    /// Nothing was found before a signal ended it.
    Interrupted(Signal),
}

impl Status {
    /// The exit status that says so.
    pub const fn code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Violation => 1,
            Self::Broken => 2,
            Self::Interrupted(signal) => signal.code(),
        }
    }
}

/// The exit status of a command; what went wrong with it goes to standard error.
pub fn exit(result: Result<Status, CorpusError>) -> ExitCode {
    let status = result.unwrap_or_else(|error| {
        complain(error);
        Status::Broken
    });
    let status =
        if status == Status::Passed && output::unheard() { Status::Broken } else { status };
    ExitCode::from(status.code())
}

/// What a command line asks for. Help and misuse end the program, help that cannot be shown as an error.
pub fn parsed<T>(result: Result<T, clap::Error>) -> T {
    result.unwrap_or_else(|error| {
        let shown = error.print().is_ok();
        let code = if shown { error.exit_code() } else { i32::from(Status::Broken.code()) };
        std::process::exit(code)
    })
}

/// From now on a signal ends the run with what it has seen, see [`interrupt`].
///
/// # Errors
/// If the system refuses.
pub fn listen() -> Result<(), CorpusError> {
    interrupt::listen().map_err(|error| CorpusError::Case(format!("signals: {error}")))
}

/// Where the results of a campaign go.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// A file for one JSON object with the figures.
    pub json: Option<PathBuf>,
    /// The folder for case files; none: the violation is told and not kept.
    pub corpus: Option<PathBuf>,
    /// The folder of the certificates that may be cited; one that is not there has none.
    pub certificates: Option<PathBuf>,
    /// The name of the rules that the subject does without, for the case file.
    pub witness: Option<String>,
    /// Whether every probe must have been reached.
    pub all_probes: bool,
    /// How long minimising may take; none: [`MINIMISE_FOR`].
    pub minimise: Option<Duration>,
}

/// Runs a campaign with live progress on standard error and the results on standard output.
///
/// # Errors
/// If a result cannot be written. Where that is known before the first case, none is run.
pub fn run<Sub: Subject>(
    subject: &Sub,
    settings: &Settings,
    outputs: &Outputs,
) -> Result<Status, CorpusError> {
    check(outputs.json.as_deref(), outputs.corpus.as_deref())?;
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
        titles.push(tell(subject, settings, outputs, found));
    } else if let Some(why) = report.broken.clone() {
        say(&format!("This run proves nothing: {why}.\n"));
        status = Status::Broken;
    } else if let (Ended::Interrupted, Some(signal)) = (report.ended, interrupt::signal()) {
        say(&format!("interrupted ({signal}); no violation in the cases until then\n"));
        status = Status::Interrupted(signal);
    } else if let Some(why) = vacuous(settings, &report.figures) {
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
            let kept = outputs.certificates.as_deref().map(ledger::certificates).transpose()?;
            let cited = Cited::of(kept.unwrap_or_default(), subject, settings.profile_name());
            say(&ledger::table(&report.figures, &cited));
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
            report.ended,
        );
        let mut text = serde_json::to_string_pretty(&summary).expect("figures are plain numbers");
        text.push('\n');
        return after(status, write(path, text));
    }
    Ok(status)
}

/// The status of a run whose last results were `written`: a violation stays one even if they were not.
fn after(status: Status, written: Result<(), CorpusError>) -> Result<Status, CorpusError> {
    match (status, written) {
        (Status::Violation, Err(error)) => {
            complain(error);
            Ok(status)
        }
        (_, written) => written.map(|()| status),
    }
}

/// Why a run could not have failed, if it could not.
fn vacuous(settings: &Settings, figures: &Figures) -> Option<String> {
    match settings.damage {
        None => figures.vacuous(),
        Some(_) if figures.states == 0 => Some("no damaged image was judged".to_owned()),
        Some(_) => None,
    }
}

/// Keeps what was found, minimises it, tells it and keeps what is left; returns its title.
fn tell<Sub: Subject>(
    subject: &Sub,
    settings: &Settings,
    outputs: &Outputs,
    found: &Found,
) -> String {
    say(&format!(
        "violation in case {} after {} crash states of that worker\n",
        found.case, found.states
    ));
    let (folder, limit) = (outputs.corpus.as_deref(), outputs.minimise.unwrap_or(MINIMISE_FOR));
    if let (Some(image), Some(how)) = (&found.image, settings.damage) {
        let mut whole =
            robust::case_of(&found.trial, how, image.clone(), &found.failure, settings.seed);
        subject.key().clone_into(&mut whole.open.subject);
        if let Some(witness) = &outputs.witness {
            (whole.witness, whole.status) = (Some(witness.clone()), CaseStatus::Sabotage);
        }
        let keep = Keep::raw(folder, &whole);
        let mut progress = shorten::Progress::new(limit);
        let show = &mut |step| progress.show(step);
        let (case, ended) = robust::minimise(subject, &whole, &found.failure, limit, show);
        progress.finish();
        let Failure { violation, moment } = &found.failure;
        say(&format!("\n{violation}\nseen {moment}, on an image with damage ({how})\n\n"));
        say(&format!("{}\n", verdict(ended, limit)));
        if let Some(path) = keep.shortened(&case, ended) {
            let shown = path.display();
            say(&format!("kept as {shown}\nreplay it:   cargo campaign replay {shown}\n"));
        }
        return case.title;
    }
    let raw = as_found(&found.trial, &found.failure);
    let keep = Keep::raw(folder, &written(subject, &raw, settings.seed, outputs.witness.clone()));
    tell_and_keep(subject, &raw, settings.seed, outputs.witness.clone(), keep, limit)
}

fn as_found(trial: &Trial, failure: &Failure) -> Minimised {
    Minimised { trial: trial.clone(), failure: failure.clone() }
}

/// Where the results of an exploration go.
#[derive(Clone, Debug, Default)]
pub struct Exploration {
    /// A file for one JSON object that says how far it came.
    pub json: Option<PathBuf>,
    /// A file for the certificate.
    pub certificate: Option<PathBuf>,
    /// A file for the part of a shard.
    pub part: Option<PathBuf>,
    /// The folder for case files; none: the violation is told and not kept.
    pub corpus: Option<PathBuf>,
    /// The name of the rules that the subject does without, for the case file.
    pub witness: Option<String>,
    /// How long minimising may take; none: [`MINIMISE_FOR`].
    pub minimise: Option<Duration>,
}

/// Explores, with progress on standard error and a line a world on standard output.
///
/// # Errors
/// If a result cannot be written. Where that is known before the first workload, none is run.
pub fn explore<Sub: Subject>(
    subject: &Sub,
    settings: &explore::Settings,
    outputs: &Exploration,
) -> Result<Status, CorpusError> {
    if outputs.certificate.is_some() && settings.shard.1 != 1 {
        let why = "a shard has no certificate of its own; write its part and merge the parts";
        return Err(CorpusError::Case(format!("--certificate: {why}")));
    }
    let files = [&outputs.json, &outputs.certificate, &outputs.part];
    check(files.into_iter().filter_map(Option::as_deref), outputs.corpus.as_deref())?;
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} workloads, {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(0).with_style(style)
    });
    let report = explore::run(subject, settings, |world, done, todo, counts| {
        if let Some(bar) = &bar {
            bar.set_length(todo);
            bar.set_position(done);
            bar.set_message(format!("{} leaves; {}", counts.leaves, world));
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
    let mut titles = Vec::new();
    let status = if let Some(why) = &report.broken {
        say(&format!("This run proves nothing: {why}.\n"));
        Status::Broken
    } else if let Some(found) = &report.found {
        titles.push(tell_explored(subject, settings, outputs, found));
        Status::Violation
    } else if !report.complete {
        let (why, status) = match interrupt::signal() {
            Some(signal) if report.ended == Ended::Interrupted => {
                (format!("interrupted ({signal})"), Status::Interrupted(signal))
            }
            _ => ("the time was up".to_owned(), Status::Broken),
        };
        say(&format!("{why} {}\nthere is no certificate of this\n", how_far(settings, &report)));
        status
    } else {
        all_explored(subject, settings, outputs, &report)?
    };
    if let Some(path) = &outputs.json {
        let sum =
            |of: &dyn Fn(&explore::Explored) -> u64| -> u64 { report.worlds.iter().map(of).sum() };
        let summary = serde_json::json!({
            "subject": subject.name(),
            "profile": settings.profile.name(),
            "commit": crate::figures::commit(),
            "ended": report.ended,
            "violations": titles,
            "images": settings.worlds.len(),
            "images_done": images_done(&report),
            "workloads_an_image": report.todo,
            "workloads": sum(&|explored| explored.workloads),
            "crash_disks": sum(&|explored| explored.counts.crash_disks),
            "leaves": sum(&|explored| explored.counts.leaves),
            "seconds": report.seconds,
        });
        return after(status, write(path, format!("{summary:#}\n")));
    }
    Ok(status)
}

/// How many images an exploration is done with.
fn images_done(report: &explore::Report) -> usize {
    let done = |explored: &&explore::Explored| {
        explored.infeasible.is_some() || explored.workloads == report.todo
    };
    report.worlds.iter().filter(done).count()
}

/// How far an exploration came that did not come to its end.
fn how_far(settings: &explore::Settings, report: &explore::Report) -> String {
    let (done, all) = (images_done(report), settings.worlds.len());
    let next = report.worlds.last().map_or_else(String::new, |explored| {
        let (some, todo) = (explored.workloads, report.todo);
        format!(" and {some} of {todo} workloads of the next, {}", explored.world)
    });
    format!("after {done} of {all} images{next}; no violation until then")
}

/// What there is to say and to write of an exploration that came to its end and found nothing.
fn all_explored<Sub: Subject>(
    subject: &Sub,
    settings: &explore::Settings,
    outputs: &Exploration,
    report: &explore::Report,
) -> Result<Status, CorpusError> {
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
        write(path, Certificate::new(subject, settings, report).to_json())?;
    }
    if let Some(path) = &outputs.part {
        let part = Part::new(subject, settings, report);
        write(path, serde_json::to_string(&part).expect("numbers and names"))?;
    }
    say("no violation\n");
    Ok(Status::Passed)
}

/// Tells what an exploration found, as a case if the way there can be written as one; returns its title.
fn tell_explored<Sub: Subject>(
    subject: &Sub,
    settings: &explore::Settings,
    outputs: &Exploration,
    found: &explore::Found,
) -> String {
    let names: Vec<&str> = found.workload.iter().map(|symbol| symbol.name()).collect();
    say(&format!(
        "violation in workload {} ({}) of {} after {} leaves\n  {} {}\n",
        found.index,
        names.join(", "),
        found.world,
        found.leaves,
        found.failure.violation,
        found.failure.moment
    ));
    // Until the moment of the power cut is found, the case says none: replaying it looks at all of them.
    let mut case = written(
        subject,
        &as_found(&found.workload(subject, settings.profile), &found.failure),
        0,
        outputs.witness.clone(),
    );
    for life in &mut case.lives {
        life.crash = None;
    }
    case.image = None;
    let keep = Keep::raw(outputs.corpus.as_deref(), &case);
    let Some(found) = found.trial(subject, settings.profile) else {
        say(match interrupt::asked() {
            true => "interrupted: no single way that leads there was found until then\n",
            false => "no single way that leads there was found within the bounds of the search\n",
        });
        return case.title;
    };
    let keep = keep.better(&written(subject, &found, 0, outputs.witness.clone()));
    let limit = outputs.minimise.unwrap_or(MINIMISE_FOR);
    tell_and_keep(subject, &found, 0, outputs.witness.clone(), keep, limit)
}

/// Minimises what was found, keeps what is left, and reports it; returns its title.
fn tell_and_keep<Sub: Subject>(
    subject: &Sub,
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
pub fn written<Sub: Subject>(
    subject: &Sub,
    small: &Minimised,
    seed: u64,
    witness: Option<String>,
) -> Case {
    let outcome = trial::run(subject, &small.trial).expect("it was feasible when it was found");
    corpus::case_of(&small.trial, &outcome, &small.failure, seed, subject.key(), witness)
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
