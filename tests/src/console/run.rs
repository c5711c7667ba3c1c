//! A campaign as a person sees it: progress while it runs, the figures, and a violation minimised, told and kept.

use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use model::case::Status as CaseStatus;

use super::causes::{Keeping, Onward, Told};
use super::keep::Keep;
use super::output::{check, say, write};
use super::shorten::{self, MINIMISE_FOR, verdict};
use super::status::{ExitStatus, after};
use super::tell::{as_found, tell_and_keep, written};
use crate::any::AnySubject;
use crate::campaign::{self, Budget, Found, Settings};
use crate::corpus::CorpusError;
use crate::ended::Ended;
use crate::figures::{Figures, Summary};
use crate::interrupt;
use crate::ledger::{self, Cited};
use crate::probe::Probe;
use crate::promise;
use crate::recover::Failure;
use crate::robust;
use crate::subject::Subject;

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
    /// Whether it goes on past what it finds.
    pub onward: Onward,
}

/// Runs a campaign with live progress on standard error and the results on standard output.
///
/// # Errors
/// If a result cannot be written. Where that is known before the first case, none is run.
pub fn run(
    subject: &impl Subject,
    settings: &Settings,
    outputs: &Outputs,
) -> Result<ExitStatus, CorpusError> {
    let subject = &AnySubject::of(subject);
    let files = outputs.json.as_deref().into_iter().chain(outputs.onward.file());
    check(files, outputs.corpus.as_deref())?;
    let progress = Progress::new(settings);
    let show = |figures: &Figures| progress.show(figures);
    let beyond = Beyond::default();
    let (report, causes) = match outputs.onward.is_wanted() {
        true => {
            let keeping = Keeping {
                folder: outputs.corpus.as_deref(),
                witness: outputs.witness.as_deref(),
                limit: outputs.minimise.unwrap_or(MINIMISE_FOR),
            };
            outputs.onward.run(subject, settings, &keeping, show)?
        }
        false => {
            let onward = |found: &Found| beyond.takes(subject, found);
            (campaign::run_past(subject, settings, show, onward), Told::default())
        }
    };
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
    say(&not_asked(subject));
    say(&beyond.line(&promise::beyond(subject, settings.profile)));
    say(&causes.text);
    let mut titles = causes.new;
    let mut status = ExitStatus::Passed;
    if !titles.is_empty() {
        status = ExitStatus::Violation;
        if let Some(why) = &report.broken {
            say(&format!("This run ends there, and proves nothing more: {why}.\n"));
        }
    } else if causes.met > 0 && report.broken.is_none() {
        if let (Ended::Interrupted, Some(signal)) = (report.ended, interrupt::signal()) {
            status = ExitStatus::Interrupted(signal);
            say(&format!("interrupted ({signal}); until then "));
        }
        match vacuous(settings, &report.figures) {
            _ if status != ExitStatus::Passed => say("nothing but what is known\n"),
            Some(why) if !matches!(settings.budget, Budget::Case(_)) => {
                say(&format!("Nothing but what is known, and this run proves nothing: {why}.\n"));
                status = ExitStatus::Broken;
            }
            _ => say("nothing but what is known\n"),
        }
    } else if let Some(found) = &report.found {
        status = ExitStatus::Violation;
        titles.push(tell(subject, settings, outputs, found));
    } else if let Some(found) = beyond.first() {
        status = ExitStatus::Violation;
        titles.push(tell(subject, settings, outputs, &found));
        if let Some(why) = &report.broken {
            say(&format!("This run ends there, and proves nothing more: {why}.\n"));
        }
    } else if let Some(why) = report.broken.clone() {
        say(&format!("This run proves nothing: {why}.\n"));
        status = ExitStatus::Broken;
    } else if let (Ended::Interrupted, Some(signal)) = (report.ended, interrupt::signal()) {
        say(&format!("interrupted ({signal}); no violation in the cases until then\n"));
        status = ExitStatus::Interrupted(signal);
    } else if let (false, Some(why)) =
        (matches!(settings.budget, Budget::Case(_)), vacuous(settings, &report.figures))
    {
        say(&format!("This run proves nothing: {why}.\n"));
        status = ExitStatus::Broken;
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
                status = ExitStatus::Broken;
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
            subject,
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

/// Findings that break no promise of the subject, see [`promise`].
#[derive(Default)]
struct Beyond(Mutex<(u64, Option<Found>)>);

impl Beyond {
    /// Whether it is such a finding; it is counted then.
    fn takes(&self, subject: &AnySubject, found: &Found) -> bool {
        if found.image.is_some() || promise::is_broken(subject, &found.trial, &found.failure) {
            return false;
        }
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 += 1;
        if taken.1.as_ref().is_none_or(|first| found.case < first.case) {
            taken.1 = Some(found.clone());
        }
        true
    }

    /// The one with the smallest number.
    fn first(&self) -> Option<Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// How many there are, as a line; nothing if there is none.
    fn line(&self, what: &str) -> String {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).0 {
            0 => String::new(),
            count => format!("{what}: {count} findings\n"),
        }
    }
}

/// What was not asked of the subject, as a line; nothing if all was.
pub(super) fn not_asked(subject: &AnySubject) -> String {
    match &subject.capabilities().left_out()[..] {
        [] => String::new(),
        parts => format!("not asked of it: {}\n", parts.join(", ")),
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
fn tell(subject: &AnySubject, settings: &Settings, outputs: &Outputs, found: &Found) -> String {
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
                Budget::Case(_) => 1,
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
                Budget::Cases(_) | Budget::Case(_) => figures.cases,
                Budget::States(..) => figures.states,
            });
            bar.set_message(message);
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
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
