//! Campaigns on imago: the harness of the workspace, with another subject.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use faultfs::profile::Profile;
use model::build::Initial;
use qcow2_crashtest::campaign::{Budget, Settings};
use qcow2_crashtest::console::{self, Outputs, say, shown};
use qcow2_crashtest::corpus::{self, CorpusError};
use qcow2_crashtest::explore::{self, alphabet::worlds};
use qcow2_crashtest::recover::Failure;
use qcow2_crashtest::replay::{is_expected, replay};
use qcow2_crashtest::trial::Trial;
use qcow2_crashtest::workload::Scope;
use qcow2_crashtest::{report, trial};
use qcow2_crashtest_imago::{Imago, cases, subject_of};

/// Crash-consistency campaigns on imago 0.2.6. Exit status: 0 nothing found, 1 a violation, 2 misuse or a broken harness.
#[derive(Parser)]
#[command(name = "imago-campaign", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run random cases and judge what every power cut leaves.
    #[command(
        after_help = "Example: cargo run --release --manifest-path tests/subjects/imago/Cargo.toml -- run --contents --profile kill"
    )]
    Run(Run),
    /// Explore every power cut in every small workload.
    #[command(
        after_help = "Example: cargo run --release --manifest-path tests/subjects/imago/Cargo.toml -- explore --operations 2 --contents"
    )]
    Explore(Explore),
    /// Run kept cases again: verdict per case.
    Replay {
        /// Case files; all kept ones if none is named.
        paths: Vec<PathBuf>,
    },
    /// Tell the story of one case.
    Explain {
        /// A case file.
        path: PathBuf,
        /// Also everything that happened, line by line.
        #[arg(long)]
        verbose: bool,
    },
    /// Write the image that the power cut of a case left, for other tools.
    Dump {
        /// A case file.
        path: PathBuf,
        /// The image to write.
        file: PathBuf,
        /// As recovery left it.
        #[arg(long)]
        repaired: bool,
    },
}

#[derive(Args)]
struct Run {
    /// Judge only what the guest sees, and not refcounts and the like.
    #[arg(long)]
    contents: bool,
    /// How the power fails: kill, prefix, epoch, cache, torn or torn-length.
    #[arg(long, default_value_t = Profile::default())]
    profile: Profile,
    /// Seed; the same seed gives the same cases.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after this many seconds.
    #[arg(long, default_value_t = 60, conflicts_with = "cases")]
    seconds: u64,
    /// Stop after this many cases.
    #[arg(long)]
    cases: Option<u64>,
    /// Exactly this many guest tasks at once.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    tasks: Option<u8>,
    /// Neither failing I/O nor dropped requests.
    #[arg(long)]
    faultless: bool,
    /// Keep a violation as a case file in this folder.
    #[arg(long, default_value = "corpus/subjects/imago")]
    corpus: PathBuf,
}

#[derive(Args)]
struct Explore {
    /// Workloads have at most this many requests.
    #[arg(long, default_value_t = 2)]
    operations: u32,
    /// Judge only what the guest sees, and not refcounts and the like.
    #[arg(long)]
    contents: bool,
    /// How the power fails: kill, prefix, epoch, cache, torn or torn-length.
    #[arg(long, default_value_t = Profile::default())]
    profile: Profile,
    /// Keep a violation as a case file in this folder.
    #[arg(long, default_value = "corpus/subjects/imago")]
    corpus: PathBuf,
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Run(run) => campaign(run),
        Verb::Explore(args) => explore_all(args),
        Verb::Replay { paths } => replay_all(&paths),
        Verb::Explain { path, verbose } => explain(&path, verbose),
        Verb::Dump { path, file, repaired } => dump(&path, &file, repaired),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn campaign(run: Run) -> Result<u8, CorpusError> {
    let subject = if run.contents { Imago::Contents } else { Imago::Full };
    let settings = Settings {
        seed: run.seed,
        profile: run.profile,
        damage: None,
        scope: Scope {
            tasks: run.tasks.map(usize::from),
            faultless: run.faultless,
            ..Scope::default()
        },
        budget: match run.cases {
            Some(cases) => Budget::Cases(cases),
            None => Budget::Time(Duration::from_secs(run.seconds)),
        },
        workers: 0,
    };
    let outputs = Outputs { corpus: Some(run.corpus), ..Outputs::default() };
    console::run(&subject, &settings, &outputs).map(console::Status::code)
}

fn explore_all(args: Explore) -> Result<u8, CorpusError> {
    let subject = if args.contents { Imago::Contents } else { Imago::Full };
    let settings = explore::Settings {
        worlds: worlds(&[1024], &[false], &Initial::ALL),
        operations: args.operations,
        departures: None,
        depth: u32::MAX,
        profile: args.profile,
        shard: (0, 1),
        limit: None,
        workers: 0,
    };
    let outputs = console::Exploration { corpus: Some(args.corpus), ..Default::default() };
    console::explore(&subject, &settings, &outputs).map(console::Status::code)
}

fn replay_all(paths: &[PathBuf]) -> Result<u8, CorpusError> {
    let paths = if paths.is_empty() { corpus::files(&cases())? } else { paths.to_vec() };
    let mut code = 0;
    for path in &paths {
        let file = shown(path);
        let case = corpus::load(path)?;
        let replay = replay(&subject_of(&case, &file)?, &case, &file)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (verdict, layer) = (replay.verdict, replay.layer.name());
        say(&format!("{verdict:<14} {layer:<9} {name}\n"));
        if !is_expected(&case, verdict, false) {
            code = 1;
            if let Some(failure) = replay.failure {
                say(&format!("    {} {}\n", failure.violation, failure.moment));
            }
        }
    }
    Ok(code)
}

fn explain(path: &Path, verbose: bool) -> Result<u8, CorpusError> {
    let Some((subject, trial, failure)) = failing(path)? else { return Ok(0) };
    say(&report::text(&subject, &trial, &failure, Some(&shown(path))));
    if verbose {
        say(&format!("\n{}", report::verbose(&subject, &trial, &failure)));
    }
    Ok(1)
}

fn dump(path: &Path, file: &Path, repaired: bool) -> Result<u8, CorpusError> {
    let Some((subject, trial, failure)) = failing(path)? else { return Ok(0) };
    let image = report::image(&subject, &trial, &failure, repaired).ok_or_else(|| {
        CorpusError::Case(format!("{}: it fails without a power cut", shown(path)))
    })?;
    std::fs::write(file, &image)
        .map_err(|source| CorpusError::Io { path: file.to_owned(), source })?;
    say(&format!("{} bytes in {}\n", image.len(), shown(file)));
    Ok(0)
}

/// The case in a file as it fails; none, and said so, if it passes.
fn failing(path: &Path) -> Result<Option<(Imago, Trial, Failure)>, CorpusError> {
    let file = shown(path);
    let case = corpus::load(path)?;
    let subject = subject_of(&case, &file)?;
    let exact = corpus::trial_of(&case, &file)?;
    let outcome = trial::run(&subject, &exact)
        .map_err(|why| CorpusError::Case(format!("{file}: initial: {why}")))?;
    let Some((_, failure)) = outcome.failure else {
        say(&format!("{file} passes: there is nothing to show\n"));
        return Ok(None);
    };
    Ok(Some((subject, exact, failure)))
}
