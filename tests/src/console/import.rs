//! `import`: anybody's log of writes to an image file, as crash states that are judged, with a program that recovers them or without.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use faultfs::profile::Profile;

use super::output::{check, complain, say, shown};
use super::status::{ExitStatus, listen};
use crate::corpus::CorpusError;
use crate::ended::Ended;
use crate::file_command::FileCommand;
use crate::image_log::ImageLog;
use crate::import::{self, ImportFinding, ImportReport, ImportSettings};
use crate::interrupt;

/// `import`
#[derive(Args)]
pub struct Import {
    /// A log of writes to an image file, in the format of the Linux target dm-log-writes, as QEMU's blklogwrites writes it too.
    log: PathBuf,
    /// What the file held when the log begins; zeroes if that is not said.
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// How the power fails: kill, prefix, epoch, cache, torn or torn-length.
    #[arg(long, default_value_t = Profile::Torn)]
    profile: Profile,
    /// Run this on each image that a power cut leaves, in the place of {} its path, and judge what it makes of it. Words are parted by
    /// spaces and may be quoted; there is no shell.
    #[arg(long, value_name = "COMMAND")]
    recover: Option<FileCommand>,
    /// Seed of where the power fails and of what survives.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Judge at most this many crash states.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    states: u64,
    /// Stop after this many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Keep the first image of each sort of finding in this folder.
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
}

impl Import {
    /// Judges a sample of what power cuts leave, and tells what is wrong.
    ///
    /// # Errors
    /// If the log cannot be read, the command gives no answer, or an image cannot be kept.
    pub fn run(&self) -> Result<ExitStatus, CorpusError> {
        check(None, self.corpus.as_deref())?;
        let error = |error: &dyn std::fmt::Display| CorpusError::Case(error.to_string());
        if let Some(command) = &self.recover {
            command.check().map_err(|why| CorpusError::Case(format!("--recover: {why}")))?;
        }
        let log = ImageLog::load(&self.log, self.before.as_deref()).map_err(|why| error(&why))?;
        listen()?;
        let settings = ImportSettings {
            profile: self.profile,
            seed: self.seed,
            states: self.states,
            limit: Duration::from_secs(self.seconds),
            recover: self.recover.clone(),
        };
        let report = import::run(&log, &settings).map_err(|why| error(&why))?;
        say(&figures(&log, &report, self));
        let mut is_kept = true;
        for finding in &report.findings {
            say(&told(finding, &log));
            let kept = self.corpus.as_deref().map(|folder| import::keep(finding, folder));
            match kept {
                Some(Ok(path)) => say(&format!("  kept as {}\n", shown(&path))),
                Some(Err(why)) => {
                    complain(&why);
                    is_kept = false;
                }
                None => {}
            }
        }
        let status = status(&report);
        say(&ending(&log, &report));
        // What is found stays found, kept or not.
        Ok(if !is_kept && status == ExitStatus::Passed { ExitStatus::Broken } else { status })
    }
}

fn status(report: &ImportReport) -> ExitStatus {
    match (report.ended, interrupt::signal()) {
        _ if !report.findings.is_empty() => ExitStatus::Violation,
        (Some(Ended::Interrupted), Some(signal)) => ExitStatus::Interrupted(signal),
        _ if report.states == 0 || report.is_command_idle() => ExitStatus::Broken,
        _ => ExitStatus::Passed,
    }
}

/// What was looked at.
fn figures(log: &ImageLog, report: &ImportReport, asked: &Import) -> String {
    let (all, tried) = report.cuts;
    let mut lines = vec![
        format!("{}, profile {}, seed {}", shown(&asked.log), asked.profile, asked.seed),
        format!("  entries                      {}", log.entries().len()),
        format!("  places for a power cut       {all}, of which {tried} were tried"),
        format!("  crash states judged          {}", report.states),
    ];
    if report.no_image > 0 {
        let count = report.no_image;
        lines.push(format!("  that are no qcow2 image yet  {count}, and are not judged"));
    }
    if let Some(command) = &asked.recover {
        lines.push(format!("  recovered                    {} by `{command}`", report.recovered));
        let codes: Vec<String> =
            report.codes.iter().map(|(code, count)| format!("{code} ({count} times)")).collect();
        lines.push(format!("  exit codes of the command    {}", codes.join(", ")));
        lines.push(format!("  images that it changed       {}", report.changed));
        lines.push(format!("  with contents compared       {}", report.compared));
        lines.push(format!("  leaks left by the command    in {} of them", report.leaking));
    }
    for ((moment, what), count) in &report.unjudged {
        lines.push(format!("  beyond judgement             {what}, {moment}, in {count} states"));
    }
    match report.ended {
        Some(Ended::Budget) => lines.push(format!("  the budget ended it after {tried} places")),
        Some(Ended::Interrupted) => lines.push(format!("  interrupted after {tried} places")),
        _ => {}
    }
    lines.join("\n") + "\n"
}

/// One sort of finding.
fn told(finding: &ImportFinding, log: &ImageLog) -> String {
    let ImportFinding { property, kind, structure, told, moment, entries, .. } = finding;
    let mut lines = vec![
        format!("\n{property} {kind} ({structure}): {told}"),
        format!(
            "  seen {moment}, first with the power cut after {entries} of {} entries, in {} crash states",
            log.entries().len(),
            finding.states
        ),
    ];
    for (lost, label) in &finding.lost {
        let (units, of, at) = (lost.units, lost.of, u64::from(lost.first) * 512);
        lines.push(format!(
            "  lost: entry {}, {units} of its {of} units, the first at {at:#x} ({label})",
            lost.entry
        ));
    }
    if finding.lost.is_empty() {
        lines.push("  nothing that was written until then is lost".to_owned());
    }
    for line in finding.printed.iter().flat_map(|printed| printed.lines()) {
        lines.push(format!("  | {line}"));
    }
    lines.join("\n") + "\n"
}

/// What came of it, and what such a log cannot hold.
fn ending(log: &ImageLog, report: &ImportReport) -> String {
    let mut lines = vec![String::new()];
    if report.states == 0 {
        let why = if report.no_image > 0 {
            "nothing in it is a qcow2 image; what the file held before is given with --before"
        } else {
            "no crash state was judged"
        };
        lines.push(format!("This run proves nothing: {why}."));
    } else if report.findings.is_empty() && report.is_command_idle() {
        let why = "the command never ended well, and changed nothing";
        lines.push(format!("This run proves nothing: {why}."));
    } else if report.findings.is_empty() {
        lines.push("no finding".to_owned());
    } else {
        lines.push(format!("{} sorts of findings", report.findings.len()));
    }
    lines.push("What such a log cannot hold:".to_owned());
    lines.push(
        "  in flight    a request is in it once it has ended: one that the power cut meets is missing, and one that ended while a flush\n               ran counts as flushed"
            .to_owned(),
    );
    lines.push(if log.has_lengths() {
        "  lengths      there is no entry for them: marks of `export` say them here".to_owned()
    } else {
        "  lengths      the file counts as long as the furthest byte of what was there before and of all writes until then".to_owned()
    });
    lines.push(
        "  the guest    what it asked and was told: whether something that it flushed is lost is not judged (P0 to P2)"
            .to_owned(),
    );
    lines.join("\n") + "\n"
}
