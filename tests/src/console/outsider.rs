//! The whole command line of a subject outside the workspace: campaigns, exploration, and its kept cases.
//!
//! Such a subject is tested in two forms, which case files tell apart by their keys: held to everything, and held only to
//! what its guest sees. Its binary is [`main`] with the two.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use faultfs::profile::Profile;
use model::case::Case;

use super::cases::{Cases, Dump, Explain, Minimise, ReplayCommand};
use super::export::Export;
use super::import::Import;
use super::merge::Merge;
use super::output::say;
use super::sample::Sample;
use super::sensitivity::Sensitivity;
use super::shorten::Minimising;
use super::worlds::Worlds;
use super::{EXIT_STATUS, ExitStatus, Exploration, Onward, Outputs, Results, TraceWorkload};
use crate::any::AnySubject;
use crate::bystander;
use crate::campaign::Settings;
use crate::corpus::CorpusError;
use crate::subject::Subject;
use crate::watch;

/// The folder of certificates in that of cases.
const CERTIFICATES: &str = "certificates";

#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run random cases and judge a sample of what power cuts leave.
    Run(Run),
    /// Explore every power cut in every small workload.
    Explore(Explore),
    /// Leave flushes out and do writes late, one after the other, under the subject: what is noticed.
    Sensitivity(LeaveOut),
    /// Merge the parts that shards of one exploration wrote into its certificate.
    Merge(Merge),
    /// Run kept cases again: verdict per case.
    Replay(ReplayCommand),
    /// Shrink a case and print the smaller one.
    Minimise(Minimise),
    /// Tell the story of one case.
    Explain(Explain),
    /// Write the image that the power cut of a case left, for other tools.
    Dump(Dump),
    /// Write what a case wrote to its image file as a log of block writes, for other tools.
    Export(Export),
    /// Judge what power cuts leave of an image file to which anybody wrote, by a log of these writes.
    Import(Import),
}

#[derive(Args)]
struct Run {
    /// Judge only what the guest sees, and not refcounts and the like.
    #[arg(long)]
    contents: bool,
    /// How the power fails: kill, prefix, epoch, cache, torn or torn-length.
    #[arg(long, default_value_t = Profile::default())]
    profile: Profile,
    #[command(flatten)]
    sample: Sample,
    #[command(flatten)]
    onward: Onward,
    #[command(flatten)]
    trace: TraceWorkload,
    /// Both --no-errors and --no-drops; with a trace there is neither.
    #[arg(long)]
    faultless: bool,
    /// Where it keeps its promise, run the same again judged by what it does not promise, too; that is told, and the files written are those of its promise.
    #[arg(long, conflicts_with = "workload")]
    beyond_promise: bool,
    /// Keep a violation as a case file in this folder.
    #[arg(long)]
    corpus: PathBuf,
    #[command(flatten)]
    minimising: Minimising,
    /// Write what was seen as one JSON object to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Explore {
    #[command(flatten)]
    worlds: Worlds,
    /// Judge only what the guest sees, and not refcounts and the like.
    #[arg(long)]
    contents: bool,
    /// Keep a violation as a case file in this folder. A run cites certificates of its own subject, profile and source in CORPUS/certificates.
    #[arg(long)]
    corpus: PathBuf,
    #[command(flatten)]
    minimising: Minimising,
    #[command(flatten)]
    results: Results,
}

#[derive(Args)]
struct LeaveOut {
    /// Judge only what the guest sees, and not refcounts and the like.
    #[arg(long)]
    contents: bool,
    #[command(flatten)]
    tried: Sensitivity,
}

/// A subject in its two forms.
struct Outsider {
    full: AnySubject,
    contents: AnySubject,
}

impl Cases for Outsider {
    const WITNESSES: bool = false;

    fn folder(&self) -> PathBuf {
        folder(&self.full)
    }

    fn subject_of(
        &self,
        case: &Case,
        file: &str,
        _broken: bool,
    ) -> Result<AnySubject, CorpusError> {
        let named = &case.open.subject;
        let subject = [&self.full, &self.contents].into_iter().find(|it| it.key() == named);
        subject.cloned().ok_or_else(|| {
            CorpusError::Case(format!("{file}: open.subject: no subject is called {named} here"))
        })
    }
}

/// Where the cases and certificates of a subject are, below the working directory: its author's, and not the one of this harness.
fn folder(subject: &AnySubject) -> PathBuf {
    Path::new("corpus/subjects").join(subject.key())
}

impl Outsider {
    fn held_to(&self, contents: bool) -> &AnySubject {
        if contents { &self.contents } else { &self.full }
    }
}

/// Runs the command line of the subject `full`, which is `contents` when held only to what its guest sees. The program is
/// called after the key of `full`.
pub fn main<S: Subject>(full: S, contents: S) -> ExitCode {
    run(AnySubject::of(&full), AnySubject::of(&contents))
}

/// Runs a campaign by the subject's own promise, and where nothing is found, by everything. What that finds is told and not kept: a case is
/// replayed by the promise.
///
/// # Errors
/// As [`run`](super::run()).
pub fn twice(
    subject: &AnySubject,
    settings: &Settings,
    outputs: &Outputs,
) -> Result<ExitStatus, CorpusError> {
    // A process that goes on with the second of the two has passed the first.
    let status = match Onward::is_past_the_first() {
        true => ExitStatus::Passed,
        false => super::run(subject, settings, outputs)?,
    };
    if status != ExitStatus::Passed || subject.duties() == subject.duties().all() {
        return Ok(status);
    }
    say("\nThe same, judged by what it does not promise, too.\n");
    let onward = outputs.onward.without_files();
    let outputs = Outputs { json: None, corpus: None, onward, ..outputs.clone() };
    super::run(&subject.held_to_all(true), settings, &outputs)
}

fn run(full: AnySubject, contents: AnySubject) -> ExitCode {
    if let Some(status) = bystander::begin() {
        return status;
    }
    watch::begin(watch::PATIENCE, ExitStatus::Broken.code());
    let mut command = command(&full);
    let matches = super::parsed(command.try_get_matches_from_mut(std::env::args_os()));
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command));
    let cli = super::parsed(cli);
    let subjects = Outsider { full, contents };
    super::exit(match cli.verb {
        Verb::Run(run) => {
            let sample = if run.faultless { run.sample.faultless() } else { run.sample };
            let settings = sample.settings(run.profile, None);
            let trace = run.trace;
            let outputs = Outputs {
                json: run.json,
                certificates: Some(run.corpus.join(CERTIFICATES)),
                corpus: Some(run.corpus),
                minimise: Some(run.minimising.limit()),
                onward: run.onward,
                ..Outputs::default()
            };
            let subject = subjects.held_to(run.contents);
            super::listen().and_then(|()| outputs.onward.supervise()).and_then(|done| match done {
                Some(status) => Ok(status),
                None if trace.is_wanted() => trace.run(subject, &settings?),
                None if run.beyond_promise => twice(subject, &settings?, &outputs),
                None => super::run(subject, &settings?, &outputs),
            })
        }
        Verb::Explore(args) => {
            let subject = subjects.held_to(args.contents);
            let outputs = Exploration {
                corpus: Some(args.corpus),
                minimise: Some(args.minimising.limit()),
                ..args.results.outputs()
            };
            super::listen()
                .and_then(|()| args.worlds.settings())
                .map(|settings| settings.within(&subject.capabilities()))
                .and_then(|settings| super::explore(subject, &settings, &outputs))
        }
        Verb::Sensitivity(args) => {
            super::listen().and_then(|()| args.tried.run(subjects.held_to(args.contents)))
        }
        Verb::Merge(merge) => merge.run(),
        Verb::Replay(replay) => replay.run(&subjects),
        Verb::Minimise(minimise) => minimise.run(&subjects),
        Verb::Explain(explain) => explain.run(&subjects),
        Verb::Dump(dump) => dump.run(&subjects),
        Verb::Export(export) => export.run(&subjects),
        Verb::Import(import) => import.run(),
    })
}

/// The command line with the names that are the subject's own.
fn command(subject: &AnySubject) -> clap::Command {
    let key = subject.key();
    let folder = folder(subject).display().to_string();
    let about = format!("Crash-consistency campaigns on {}. {EXIT_STATUS}", subject.name());
    let example = |words| format!("Example: {} {words}", subject.command());
    let run = example("run --contents --profile kill");
    let explore = example("explore --operations 2 --contents");
    let corpus = |argument: clap::Arg| argument.required(false).default_value(folder.clone());
    let profile = |argument: clap::Arg| argument.default_value(subject.duties().survives.name());
    Cli::command()
        .name(format!("{key}-campaign"))
        .about(about)
        .mut_subcommand("run", |verb| {
            verb.mut_arg("corpus", corpus).mut_arg("profile", profile).after_help(run)
        })
        .mut_subcommand("sensitivity", |verb| verb.mut_arg("profile", profile))
        .mut_subcommand("explore", |verb| {
            // Small and soon over, unless more is asked for.
            let clusters = |argument: clap::Arg| argument.default_value("1024");
            let refcounts = |argument: clap::Arg| argument.default_value("eager");
            let verb = verb.mut_arg("clusters", clusters).mut_arg("refcounts", refcounts);
            let verb = verb.mut_arg("profile", profile);
            verb.mut_arg("corpus", corpus).after_help(explore)
        })
}

#[cfg(test)]
mod tests {
    use super::{Cli, Verb, command};
    use crate::any::AnySubject;
    use crate::subject::Qcow2Core;
    use clap::FromArgMatches as _;

    /// Goal: what is set by hand fits what is derived. Method: clap's own checks, and a line with defaults only.
    #[test]
    fn the_command_line_is_whole() {
        command(&AnySubject::of(&Qcow2Core::default())).debug_assert();
        for verb in ["run", "explore"] {
            let words = ["qcow2-core-campaign", verb];
            let matches = command(&AnySubject::of(&Qcow2Core::default())).get_matches_from(words);
            let corpus = match Cli::from_arg_matches(&matches).map(|cli| cli.verb) {
                Ok(Verb::Run(run)) => run.corpus,
                Ok(Verb::Explore(explore)) => explore.corpus,
                _ => panic!("{verb} is not understood"),
            };
            assert_eq!(corpus.to_str(), Some("corpus/subjects/qcow2-core"));
        }
    }
}
