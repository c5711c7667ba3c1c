//! `run --workload trace:FILE`: what a real guest asked of its disk as the workload of a campaign, as a person sees it.
//!
//! Case N of a seed is one run of all of the trace, on an image whose shape, schedule and power cuts the two decide. A witness of the
//! guest's is asked of the disks that recovery leaves: from the first flush on after which it has nothing to say against the disk that
//! the trace alone makes. Before that the guest has no file system yet.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use faultfs::disk::PossibleDisk;
use faultfs::rng::Rng;
use model::op::Op;

use super::output::{say, shown};
use super::status::{ExitStatus, listen};
use crate::any::AnySubject;
use crate::campaign::{Budget, Settings, case_seed};
use crate::corpus::CorpusError;
use crate::figures::Figures;
use crate::file_command::FileCommand;
use crate::guest_disk::{self, ExportFailure};
use crate::guest_trace::{GuestTrace, RunError, TraceReport, TraceSettings, run_until};
use crate::interrupt;
use crate::life::Request;
use crate::subject::Subject;
use crate::watch::doing;

/// Power cuts at any moment of a case, beside those that end lives.
const CUTS: u32 = 40;

/// Lives of a case, at most.
const LIVES: u32 = 4;

/// The cluster sizes of guests, as log2.
const CLUSTER_BITS: (u32, u32) = (12, 16);

/// A witness is asked of so many recovered states of a case.
const ASKED: u64 = 8;

/// So many flushes may come before a witness is content.
const FLUSHES: usize = 64;

/// The arguments.
#[derive(Args, Clone, Debug, Default)]
pub struct TraceWorkload {
    /// In the place of random requests, what a guest asked of its disk: a log of its writes, in the format of the Linux target
    /// dm-log-writes.
    #[arg(
        long,
        value_name = "trace:FILE",
        value_parser = trace_file,
        conflicts_with_all = ["tasks", "fault", "shape", "keep_going", "json", "corpus", "minimise_seconds"],
    )]
    workload: Option<PathBuf>,
    /// Run this on the guest's disk in some of the states that recovery leaves, in the place of {} the path of a raw file: it must exit
    /// with status 0. Words are parted by spaces and may be quoted; there is no shell.
    #[arg(long, value_name = "COMMAND", requires = "workload")]
    witness: Option<FileCommand>,
}

fn trace_file(text: &str) -> Result<PathBuf, String> {
    let file = text.strip_prefix("trace:").filter(|file| !file.is_empty());
    file.map(PathBuf::from).ok_or_else(|| "it is trace:FILE, with the path of a log".to_owned())
}

impl TraceWorkload {
    /// Whether there is one.
    pub const fn is_wanted(&self) -> bool {
        self.workload.is_some()
    }

    /// Runs cases until the budget is used up or something is found.
    ///
    /// # Errors
    /// A trace or a witness that cannot be.
    pub fn run(
        &self,
        subject: &impl Subject,
        settings: &Settings,
    ) -> Result<ExitStatus, CorpusError> {
        let subject = &AnySubject::of(subject);
        let case = CorpusError::Case;
        let path = self.workload.as_deref().expect("it is run only if it is wanted");
        let trace = GuestTrace::load(path).map_err(|error| case(error.to_string()))?;
        let can = subject.capabilities();
        let (trace, left_out) = if can.discard { (trace, 0) } else { trace.without_discards() };
        let folder = tempfile::tempdir().map_err(|error| case(error.to_string()))?;
        let witness = self.witness.as_ref().map(|command| {
            let witness = Witness { command, disk: folder.path().join("disk.raw") };
            witness.content_from(&trace).map(|from| (witness, from))
        });
        let witness = witness.transpose().map_err(|why| case(format!("--witness: {why}")))?;
        listen()?;
        say(&format!(
            "{}, profile {}, seed {}: {}, {} requests and {} bytes for a disk of {}\n",
            subject.name(),
            settings.profile,
            settings.seed,
            shown(path),
            trace.requests().len(),
            trace.bytes(),
            trace.size(),
        ));
        if left_out > 0 {
            say(&format!("not asked of it: {left_out} discards\n"));
        }
        if let Some((_, from)) = &witness {
            say(&format!("the witness is asked from request {from} on\n"));
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the budget of a campaign is time by the clock"
        )]
        let start = Instant::now();
        let mut figures = Figures::default();
        let mut asked = 0;
        let numbers = match settings.budget {
            Budget::Case(number) => number..=number,
            _ => 0..=u64::MAX,
        };
        for number in numbers {
            let done = match settings.budget {
                Budget::Time(limit) => start.elapsed() >= limit,
                Budget::Cases(count) => number >= count,
                Budget::Case(_) => false,
                Budget::States(count, limit) => figures.states >= count || start.elapsed() >= limit,
            };
            if done || interrupt::asked() {
                break;
            }
            doing(format!("case {number} of seed {} of {}", settings.seed, shown(path)));
            let how = drawn(subject, settings, number)?;
            let mut left = ASKED;
            let mut unasked = None;
            let look = |disk: &PossibleDisk, request: usize| match &witness {
                Some((witness, from)) if request >= *from && left > 0 => {
                    left -= 1;
                    asked += 1;
                    match witness.look(subject, disk, how.seed ^ left) {
                        Ok(None) => ControlFlow::Continue(()),
                        Ok(said) => ControlFlow::Break(said),
                        Err(why) => {
                            unasked = Some(why);
                            ControlFlow::Break(None)
                        }
                    }
                }
                _ => ControlFlow::Continue(()),
            };
            let ran = run_until(subject, &trace, &how, look);
            if let Some(why) = unasked {
                return Err(case(format!("--witness: {why}")));
            }
            match ran {
                Ok(TraceReport { figures: more, .. }) => figures.add(&more),
                Err(RunError::Create(why)) => return Err(case(why)),
                Err(error) => {
                    say(&format!("{}\n{}", told(&error, &trace), shape(&how)));
                    say(&format!(
                        "see it again:   the same command, with --case {number} in the place of --seconds or --cases\n"
                    ));
                    return Ok(ExitStatus::Violation);
                }
            }
        }
        figures.seconds = start.elapsed().as_secs_f64();
        figures.worker_seconds = figures.seconds;
        say(&figures.table());
        if witness.is_some() {
            say(&format!("the witness was content with {asked} disks\n"));
        }
        if let Some(signal) = interrupt::signal() {
            say(&format!("interrupted ({signal}); no violation in the cases until then\n"));
            return Ok(ExitStatus::Interrupted(signal));
        }
        let vacuous = match settings.budget {
            Budget::Case(_) => None,
            _ if witness.is_some() && asked == 0 => Some("the witness was never asked".to_owned()),
            _ => figures.vacuous().map(|why| why.to_string()),
        };
        if let Some(why) = vacuous {
            say(&format!("This run proves nothing: {why}.\n"));
            return Ok(ExitStatus::Broken);
        }
        say("no violation\n");
        Ok(ExitStatus::Passed)
    }
}

/// The image and the power cuts of a case.
fn drawn(
    subject: &AnySubject,
    settings: &Settings,
    number: u64,
) -> Result<TraceSettings, CorpusError> {
    let can = subject.capabilities();
    let seed = case_seed(settings.seed, number);
    let mut rng = Rng::new(seed);
    let (least, most) =
        (can.cluster_bits.0.max(CLUSTER_BITS.0), can.cluster_bits.1.min(CLUSTER_BITS.1));
    if least > most {
        let (low, high) = CLUSTER_BITS;
        let why = format!(
            "a trace runs on clusters of 2^{low} to 2^{high} bytes, and it opens none of these"
        );
        return Err(CorpusError::Case(format!("--workload: {why}")));
    }
    let cluster_bits = least + rng.below(most - least + 1);
    let lazy = match settings.scope.lazy {
        Some(true) if !can.lazy_refcounts => {
            return Err(CorpusError::Case("--refcounts lazy: it opens no such image".to_owned()));
        }
        Some(lazy) => lazy,
        None => can.lazy_refcounts && rng.below(2) == 0,
    };
    // The smaller clusters are, and the less the file grows at once, the more orders there are to keep.
    let growth = if rng.below(2) == 0 { 0 } else { 1 << cluster_bits };
    Ok(TraceSettings {
        cluster_bits,
        lazy,
        growth,
        profile: settings.profile,
        seed,
        crash_points: CUTS,
        busy_one_in: 1 << (CLUSTER_BITS.1 - cluster_bits),
        lives: 1 + rng.below(LIVES),
    })
}

/// The image of a case, as a line.
fn shape(how: &TraceSettings) -> String {
    let refcounts = if how.lazy { "lazy" } else { "eager" };
    format!("on an image in clusters of {} bytes, {refcounts} refcounts\n", 1 << how.cluster_bits)
}

/// What was found, and at which entry of the log.
fn told(error: &RunError, trace: &GuestTrace) -> String {
    let (life, request) = match error {
        RunError::Violation { life, request, .. } | RunError::Stopped { life, request, .. } => {
            (*life, *request)
        }
        RunError::Create(_) => (0, 0),
    };
    let place = match trace.entry_of(request) {
        Some(entry) => format!("request {request}, entry {entry} of the log"),
        None => "the clean close".to_owned(),
    };
    let what = match error {
        RunError::Violation { failure, .. } => {
            format!("{}\nseen {}", failure.violation, failure.moment)
        }
        RunError::Stopped { why: Some(why), .. } => why.clone(),
        other => other.to_string(),
    };
    format!("{what}\nin life {life}, {place}")
}

/// Somebody who knows the guest's file system.
struct Witness<'a> {
    command: &'a FileCommand,
    disk: PathBuf,
}

impl Witness<'_> {
    /// After how many requests it has nothing to say for the first time: behind a flush, with all of them done.
    fn content_from(&self, trace: &GuestTrace) -> Result<usize, String> {
        self.command.check().map_err(|error| error.to_string())?;
        let mut last = String::new();
        let is_flush = |it: &&usize| matches!(trace.requests()[**it - 1], Request::Op(Op::Flush));
        let ends: Vec<usize> = (1..=trace.requests().len()).collect();
        for &requests in ends.iter().filter(is_flush).take(FLUSHES) {
            guest_disk::of_trace(trace, requests, &self.disk)
                .map_err(|error| format!("{}: {error}", self.disk.display()))?;
            match self.ask()? {
                None => return Ok(requests),
                Some(said) => last = said,
            }
        }
        Err(format!(
            "it is content after no flush of the first {FLUSHES} that the trace has\n{last}"
        ))
    }

    /// What it has against the disk in the file, if anything.
    fn ask(&self) -> Result<Option<String>, String> {
        let run = self.command.run(&self.disk).map_err(|error| error.to_string())?;
        Ok((run.code != Some(0)).then(|| run.to_string()))
    }

    /// What it has against the disk of an image, if anything; or that this cannot be read.
    fn look(
        &self,
        subject: &AnySubject,
        disk: &PossibleDisk,
        seed: u64,
    ) -> Result<Option<String>, String> {
        let at = |error| format!("{}: {error}", self.disk.display());
        match guest_disk::export(subject, disk, seed, &self.disk) {
            Ok(()) => {}
            Err(ExportFailure::Subject(why)) => {
                return Ok(Some(format!("the guest's disk cannot be read after recovery\n{why}")));
            }
            Err(ExportFailure::File(error)) => return Err(at(error)),
        }
        let said = self.ask()?;
        fs::remove_file(&self.disk).map_err(at)?;
        let command = self.command;
        Ok(said.map(|said| {
            format!(
                "the witness `{command}` is not content with the guest's disk after recovery\n{said}"
            )
        }))
    }
}
