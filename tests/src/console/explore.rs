//! An exploration as a person sees it: a line a world, the certificate, and a violation minimised, told and kept.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::keep::Keep;
use super::output::{check, say, write};
use super::run::not_asked;
use super::shorten::MINIMISE_FOR;
use super::status::{ExitStatus, after};
use super::tell::{as_found, tell_and_keep, written};
use crate::any::AnySubject;
use crate::corpus::CorpusError;
use crate::ended::Ended;
use crate::explore::alphabet::Symbol;
use crate::explore::certificate::{Certificate, Part};
use crate::explore::{self, AtOnce};
use crate::interrupt;
use crate::subject::Subject;

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

/// Where they go, on the command line.
#[derive(Args)]
pub struct Results {
    /// Write how far it came as one JSON object to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the certificate to this file.
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// Write what `merge` needs of this shard to this file.
    #[arg(long)]
    part: Option<PathBuf>,
}

impl Results {
    /// The outputs with these arguments, and without any other.
    pub fn outputs(self) -> Exploration {
        let Self { json, certificate, part } = self;
        Exploration { json, certificate, part, ..Exploration::default() }
    }
}

/// Explores, with progress on standard error and a line a world on standard output; on a device that is worse than any that the subject
/// says it survives, after it has explored the worst of these.
///
/// # Errors
/// If a result cannot be written. Where that is known before the first workload, none is run.
pub fn explore(
    subject: &impl Subject,
    settings: &explore::ExploreSettings,
    outputs: &Exploration,
) -> Result<ExitStatus, CorpusError> {
    let subject = &AnySubject::of(subject);
    if outputs.certificate.is_some() && settings.shard.1 != 1 {
        let why = "a shard has no certificate of its own; write its part and merge the parts";
        return Err(CorpusError::Case(format!("--certificate: {why}")));
    }
    let files = [&outputs.json, &outputs.certificate, &outputs.part];
    check(files.into_iter().filter_map(Option::as_deref), outputs.corpus.as_deref())?;
    let (asked, survives) = (settings.profile, subject.duties().survives);
    let (mut end, mut first) = (None, None);
    let mut limit = settings.limit;
    if settings.profile > survives {
        // A finding ends an exploration: on the worse device it would leave it open whether the promise is kept.
        say(&format!("first what it says that it survives, {survives}:\n"));
        let promised = explore::ExploreSettings { profile: survives, ..settings.clone() };
        let report = told(subject, &promised);
        limit = limit.map(|limit| limit.saturating_sub(Duration::from_secs_f64(report.seconds)));
        first = Some(came_to(&promised, &report));
        if report.complete {
            let judged = report.worlds.iter().any(|explored| explored.counts.leaves > 0);
            let said = if judged { "no violation" } else { "no leaf was judged" };
            say(&format!("{said}; and then what it does not say, {asked}:\n"));
        } else {
            end = Some((promised, report));
        }
    }
    let (settings, report) = &end.unwrap_or_else(|| {
        let settings = explore::ExploreSettings { limit, ..settings.clone() };
        let report = told(subject, &settings);
        (settings, report)
    });
    let mut titles = Vec::new();
    let status = if let Some(why) = &report.broken {
        say(&format!("This run proves nothing: {why}.\n"));
        ExitStatus::Broken
    } else if let Some(found) = &report.found {
        titles.push(tell_explored(subject, settings, outputs, found));
        ExitStatus::Violation
    } else if !report.complete {
        let (why, status) = match interrupt::signal() {
            Some(signal) if report.ended == Ended::Interrupted => {
                (format!("interrupted ({signal})"), ExitStatus::Interrupted(signal))
            }
            _ => ("the time was up".to_owned(), ExitStatus::Broken),
        };
        say(&format!("{why} {}\nthere is no certificate of this\n", how_far(settings, report)));
        if settings.profile < asked {
            say(&format!("that was what it says that it survives; {asked} was not begun\n"));
        }
        status
    } else {
        all_explored(subject, settings, outputs, report)?
    };
    if let Some(path) = &outputs.json {
        let mut summary = came_to(settings, report);
        summary["subject"] = subject.name().into();
        summary["not_asked"] = subject.capabilities().left_out().into();
        summary["commit"] = crate::figures::commit().into();
        summary["violations"] = titles.into();
        summary["asked"] = asked.name().into();
        summary["promised"] = first.into();
        return after(status, write(path, format!("{summary:#}\n")));
    }
    Ok(status)
}

/// Explores, with progress on standard error, and says what was done, a line a world.
fn told(subject: &AnySubject, settings: &explore::ExploreSettings) -> explore::ExploreReport {
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
        "{}, profile {}, all {}, {}: {:.1} s\n",
        subject.name(),
        settings.profile,
        AtOnce::covers(settings.at_once, settings.operations),
        match settings.depth {
            u32::MAX => "power cuts in recovery to a fixed point".to_owned(),
            depth => format!("power cuts in recovery to depth {depth}"),
        },
        report.seconds
    ));
    say(&not_asked(subject));
    say(
        "  workloads  crash disks      leaves  executed  remembered   memo hits  distinct  deepest  leaves/s\n",
    );
    for explored in &report.worlds {
        say(&format!("  {}\n", explored.row()));
    }
    report
}

/// How far an exploration under one profile came, as a JSON object.
fn came_to(
    settings: &explore::ExploreSettings,
    report: &explore::ExploreReport,
) -> serde_json::Value {
    let sum =
        |of: &dyn Fn(&explore::Explored) -> u64| -> u64 { report.worlds.iter().map(of).sum() };
    serde_json::json!({
        "profile": settings.profile.name(),
        "ended": report.ended,
        "images": settings.worlds.len(),
        "images_done": images_done(report),
        "workloads_an_image": report.todo,
        "workloads": sum(&|explored| explored.workloads),
        "crash_disks": sum(&|explored| explored.counts.crash_disks),
        "leaves": sum(&|explored| explored.counts.leaves),
        "seconds": report.seconds,
    })
}

/// How many images an exploration is done with.
fn images_done(report: &explore::ExploreReport) -> usize {
    let done = |explored: &&explore::Explored| {
        explored.infeasible.is_some() || explored.workloads == report.todo
    };
    report.worlds.iter().filter(done).count()
}

/// How far an exploration came that did not come to its end.
fn how_far(settings: &explore::ExploreSettings, report: &explore::ExploreReport) -> String {
    let (done, all) = (images_done(report), settings.worlds.len());
    let next = report.worlds.last().map_or_else(String::new, |explored| {
        let (some, todo) = (explored.workloads, report.todo);
        format!(" and {some} of {todo} workloads of the next, {}", explored.world)
    });
    format!("after {done} of {all} images{next}; no violation until then")
}

/// What there is to say and to write of an exploration that came to its end and found nothing.
fn all_explored(
    subject: &AnySubject,
    settings: &explore::ExploreSettings,
    outputs: &Exploration,
    report: &explore::ExploreReport,
) -> Result<ExitStatus, CorpusError> {
    if report.worlds.iter().all(|explored| explored.counts.leaves == 0) {
        say("This run proves nothing: no leaf was judged.\n");
        return Ok(ExitStatus::Broken);
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
    Ok(ExitStatus::Passed)
}

/// Tells what an exploration found, as a case if the way there can be written as one; returns its title.
fn tell_explored(
    subject: &AnySubject,
    settings: &explore::ExploreSettings,
    outputs: &Exploration,
    found: &explore::Witness,
) -> String {
    let names = |task: &Vec<_>| {
        let names: Vec<&str> = task.iter().map(|symbol: &Symbol| symbol.name()).collect();
        names.join(", ")
    };
    let tasks: Vec<String> = found.tasks.iter().map(names).collect();
    say(&format!(
        "violation in workload {} ({}) of {} after {} leaves\n  {} {}\n",
        found.index,
        tasks.join(" beside "),
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
