//! The command line of the harness: `cargo campaign VERB`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use faultfs::profile::{Profile, Robustness, UnknownProfile};
use model::case::Case;
use qcow2_core::{Area, Mutant};
use qcow2_crashtest::any::AnySubject;
use qcow2_crashtest::attack::{self, Strategy};
use qcow2_crashtest::bystander;
use qcow2_crashtest::campaign::Found;
use qcow2_crashtest::console::cases::{Cases, Dump, Explain, Minimise, ReplayCommand};
use qcow2_crashtest::console::evidence::EvidenceCommand;
use qcow2_crashtest::console::export::Export;
use qcow2_crashtest::console::import::Import;
use qcow2_crashtest::console::keep::Keep;
use qcow2_crashtest::console::kept::KeptFiles;
use qcow2_crashtest::console::merge::Merge;
use qcow2_crashtest::console::sample::Sample;
use qcow2_crashtest::console::shorten::{Minimising, minimise, verdict};
use qcow2_crashtest::console::worlds::Worlds;
use qcow2_crashtest::console::{
    self, ExitStatus, Onward, Outputs, Results, TraceWorkload, say, shown,
};
use qcow2_crashtest::corpus::{self, CorpusError};
use qcow2_crashtest::file;
use qcow2_crashtest::interrupt;
use qcow2_crashtest::minimise::Minimised;
use qcow2_crashtest::mutants::{self, Effort};
use qcow2_crashtest::replay;
use qcow2_crashtest::sabotage::Target;
use qcow2_crashtest::subject::Qcow2Core;
use qcow2_crashtest::watch;

/// Crash-consistency campaigns for qcow2.
#[derive(Parser)]
#[command(name = "cargo campaign", version, about, after_help = console::EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run random cases and judge a sample of what power cuts leave.
    #[command(
        after_help = "Example: cargo campaign run --profile torn-length --seconds 600 --refcounts lazy --tasks 4"
    )]
    Run(Run),
    /// Explore every power cut in every small workload; a certificate of what was covered.
    #[command(
        after_help = "Example: cargo campaign explore --operations 3 --clusters 1024 --certificate three.json"
    )]
    Explore(Explore),
    /// Merge the parts that shards of one exploration wrote into its certificate.
    #[command(
        after_help = "Example: cargo campaign merge part-0.json part-1.json > certificate.json"
    )]
    Merge(Merge),
    /// Run cases of the corpus again: verdict per case.
    #[command(
        after_help = "Example: cargo campaign replay corpus/without-data-before-mapping.json"
    )]
    Replay(ReplayCommand),
    /// Shrink a case and print the smaller one.
    #[command(after_help = "Example: cargo campaign minimise found.json > smaller.json")]
    Minimise(Minimise),
    /// Tell the story of one case.
    #[command(
        after_help = "Example: cargo campaign explain corpus/without-data-before-mapping.json"
    )]
    Explain(Explain),
    /// Write the image that a power cut left to a file, for other tools.
    #[command(
        after_help = "Example: cargo campaign dump corpus/without-data-before-mapping.json crashed.qcow2"
    )]
    Dump(Dump),
    /// Write what a case wrote to its image file as a log of block writes, for other tools.
    #[command(
        after_help = "Example: cargo campaign export corpus/without-all-before-clean.json case.log"
    )]
    Export(Export),
    /// Judge what power cuts leave of an image file to which anybody wrote, by a log of these writes.
    #[command(
        after_help = "Example: cargo campaign import writes.log --before image.qcow2 --recover 'qemu-img check -r all {}'"
    )]
    Import(Import),
    /// Break each write order in turn, or put in each mutant; a table of what noticed, and how fast, random and exhaustive.
    #[command(
        after_help = "Examples: cargo campaign sensitivity --rule data-before-mapping\n          \
                      cargo campaign sensitivity --mutants --runs 3"
    )]
    Sensitivity {
        #[command(flatten)]
        all: Sensitivity,
        #[command(flatten)]
        mutants: Mutants,
    },
    /// Take each flush away in turn; a table of what noticed. One that nothing misses is not needed.
    #[command(after_help = "Example: cargo campaign barriers --rule flush:guest-flush")]
    Barriers(Sensitivity),
    /// What kept files say, as a table.
    #[command(after_help = "Example: cargo campaign kept certificates")]
    Kept {
        /// Of what.
        of: KeptFiles,
    },
    /// Run the commands that README.md and EVIDENCE.md show, and put what they print in the place of what they printed.
    #[command(after_help = "Example: cargo campaign evidence 'Every flush is missed'")]
    Evidence(EvidenceCommand),
}

#[derive(Args)]
#[group(skip)]
struct Sensitivity {
    /// Only the one of this name.
    #[arg(long)]
    rule: Option<String>,
    /// Give up on each after this many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of the first campaign.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Random campaigns for each, with different seeds; figures are their medians.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Write a minimised case for each that a campaign misses into this folder.
    #[arg(long)]
    corpus: Option<PathBuf>,
    #[command(flatten)]
    minimising: Minimising,
}

#[derive(Args)]
struct Mutants {
    /// Put in mistakes, one at a time, and take no write order away; `--rule mutant:NAME` is one of them.
    #[arg(long)]
    mutants: bool,
    /// Give up on each campaign after this many crash states.
    #[arg(long, default_value_t = 3_000_000, requires = "mutants")]
    states: u64,
    /// Write what noticed each to this file; what it says of others stays.
    #[arg(long, requires = "mutants")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Run {
    /// What is under test.
    #[arg(long, default_value = "qcow2-core", value_parser = ["qcow2-core"])]
    subject: String,
    /// How the power fails: kill, prefix, epoch, cache, torn or torn-length. Or what else goes wrong with the medium, where
    /// only panics, unbounded work and false claims count: trash, bit-rot or misdirected.
    #[arg(long, default_value = Profile::TornLength.name(), value_parser = device)]
    profile: Device,
    #[command(flatten)]
    sample: Sample,
    #[command(flatten)]
    onward: Onward,
    #[command(flatten)]
    trace: TraceWorkload,
    /// Break this write order (repeatable): the run must then find something.
    #[arg(long = "without", value_name = "RULE")]
    broken: Vec<String>,
    /// Fail unless every probe was reached.
    #[arg(long, conflicts_with = "workload")]
    all_probes: bool,
    /// Write the figures as one JSON object to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keep a violation as a case file in this folder.
    #[arg(long, default_value = "corpus")]
    corpus: PathBuf,
    #[command(flatten)]
    minimising: Minimising,
}

#[derive(Args)]
struct Explore {
    #[command(flatten)]
    worlds: Worlds,
    /// Break this write order (repeatable): the run must then find something.
    #[arg(long = "without", value_name = "RULE")]
    broken: Vec<String>,
    #[command(flatten)]
    results: Results,
    /// Keep a violation as a case file in this folder.
    #[arg(long, default_value = "corpus")]
    corpus: PathBuf,
    #[command(flatten)]
    minimising: Minimising,
}

/// A device that keeps its promises, or one that does not.
type Device = (Profile, Option<Robustness>);

fn device(name: &str) -> Result<Device, UnknownProfile> {
    match name.parse() {
        Ok(damage) => Ok((Profile::TornLength, Some(damage))),
        Err(_) => name.parse().map(|profile| (profile, None)),
    }
}

fn main() -> ExitCode {
    if let Some(status) = bystander::begin() {
        return status;
    }
    watch::begin(watch::PATIENCE, ExitStatus::Broken.code());
    console::exit(match console::parsed(Cli::try_parse()).verb {
        Verb::Run(run) => run_campaign(run),
        Verb::Explore(explore) => explore_all(explore),
        Verb::Merge(merge) => merge.run(),
        Verb::Replay(replay) => replay.run(&Corpus),
        Verb::Minimise(minimise) => minimise.run(&Corpus),
        Verb::Explain(explain) => explain.run(&Corpus),
        Verb::Dump(dump) => dump.run(&Corpus),
        Verb::Export(export) => export.run(&Corpus),
        Verb::Import(import) => import.run(),
        Verb::Sensitivity { all, mutants } if mutants.mutants => put_in_mutants(&all, &mutants),
        Verb::Sensitivity { all, .. } => sensitivity(Target::rules(), &all),
        Verb::Barriers(args) => sensitivity(Target::flushes(), &args),
        Verb::Kept { of } => of.show(&corpus::folder()),
        Verb::Evidence(evidence) => evidence.run(&corpus::folder().join("..")),
    })
}

fn run_campaign(run: Run) -> Result<ExitStatus, CorpusError> {
    let subject = Qcow2Core::without(run.broken.iter().map(String::as_str))
        .map_err(|error| CorpusError::Case(format!("--without: {error}")))?;
    let (profile, damage) = run.profile;
    let settings = run.sample.settings(profile, damage)?;
    if run.trace.is_wanted() {
        if let Some(damage) = damage {
            let why = "a trace runs on a device that keeps its promises";
            return Err(CorpusError::Case(format!("--profile {damage}: {why}")));
        }
        return run.trace.run(&subject, &settings);
    }
    let outputs = Outputs {
        json: run.json,
        certificates: Some(corpus::folder().join("certificates")),
        corpus: Some(run.corpus),
        witness: (!run.broken.is_empty()).then(|| run.broken.join("+")),
        all_probes: run.all_probes,
        minimise: Some(run.minimising.limit()),
        onward: run.onward,
    };
    console::listen()?;
    if let Some(status) = outputs.onward.supervise()? {
        return Ok(status);
    }
    console::run(&subject, &settings, &outputs)
}

fn explore_all(args: Explore) -> Result<ExitStatus, CorpusError> {
    let subject = Qcow2Core::without(args.broken.iter().map(String::as_str))
        .map_err(|error| CorpusError::Case(format!("--without: {error}")))?;
    let settings = args.worlds.settings()?;
    let outputs = console::Exploration {
        corpus: Some(args.corpus),
        witness: (!args.broken.is_empty()).then(|| args.broken.join("+")),
        minimise: Some(args.minimising.limit()),
        ..args.results.outputs()
    };
    console::listen()?;
    console::explore(&subject, &settings, &outputs)
}

/// The corpus of the workspace's own library.
struct Corpus;

impl Cases for Corpus {
    const WITNESSES: bool = true;

    fn folder(&self) -> PathBuf {
        corpus::folder()
    }

    fn subject_of(&self, case: &Case, file: &str, broken: bool) -> Result<AnySubject, CorpusError> {
        replay::subject_of(case, file, broken).map(|subject| AnySubject::of(&subject))
    }
}

/// Attacks all of `targets` with both strategies.
fn sensitivity(
    targets: impl Iterator<Item = Target>,
    args: &Sensitivity,
) -> Result<ExitStatus, CorpusError> {
    if let Some(name) = args.rule.as_ref().filter(|name| Target::from_name(name).is_none()) {
        return Err(CorpusError::Case(format!("--rule: no rule and no flush is called {name}")));
    }
    let named = |target: &Target| args.rule.as_ref().is_none_or(|name| name == target.name());
    let targets: Vec<Target> = targets.filter(named).collect();
    if let ([], Some(name)) = (&targets[..], &args.rule) {
        let why = format!("--rule: {name} is nothing that this command takes away");
        return Err(CorpusError::Case(why));
    }
    console::output::check(None, args.corpus.as_deref())?;
    console::listen()?;
    let limit = Duration::from_secs(args.seconds);
    let mut survived = Vec::new();
    let mut medians: [Vec<(u64, f64)>; 2] = Default::default();
    say(&format!(
        "{:<34} {:>9} {:>8} {:>9} {:>8}  property that noticed\n{:<34} {:>18} {:>18}\n",
        "", "states", "seconds", "states", "seconds", "", "random", "exhaustive"
    ));
    for target in targets {
        let mut killers = Vec::new();
        let mut cells = String::new();
        for (strategy, medians) in
            [Strategy::Random, Strategy::Exhaustive].into_iter().zip(&mut medians)
        {
            let runs = if strategy == Strategy::Random { args.runs } else { 1 };
            let mut kills = Vec::new();
            let mut tried = false;
            for run in 0..runs {
                let Some(outcome) = attack::run(target, true, strategy, args.seed + run, limit)
                else {
                    break;
                };
                tried = true;
                let Some(failure) = &outcome.failure else { continue };
                let violation = &failure.violation;
                let killer = format!("{} {}", violation.property, violation.kind);
                if !killers.contains(&killer) {
                    killers.push(killer);
                }
                kills.push((outcome.states, outcome.seconds));
                if let (0, Some(folder), Some(found)) = (run, &args.corpus, &outcome.found) {
                    keep(target, found, args.seed, folder, args.minimising.limit())?;
                }
            }
            kills.sort_by(|one, other| one.1.total_cmp(&other.1));
            cells += &match kills.get(kills.len() / 2) {
                Some(&(states, seconds)) => {
                    medians.push((states, seconds));
                    format!(" {states:>9} {seconds:>8.2}")
                }
                None if tried => format!(" {:>18}", "survived"),
                None => format!(" {:>18}", "-"),
            };
        }
        // An attack that a signal ended says nothing about its target.
        if killers.is_empty() && interrupt::asked() {
            break;
        }
        let verdict = if killers.is_empty() { "SURVIVED".to_owned() } else { killers.join(", ") };
        say(&format!("{:<34}{cells}  {verdict}\n", target.name()));
        if killers.is_empty() {
            survived.push(target.name());
        }
    }
    for (name, medians) in ["random", "exhaustive"].into_iter().zip(&mut medians) {
        medians.sort_by(|one, other| one.1.total_cmp(&other.1));
        if let Some((states, seconds)) = medians.get(medians.len() / 2) {
            let count = medians.len();
            say(&format!("{name}: {count} noticed, median {states} states, {seconds:.2} s\n"));
        }
    }
    if let Some(signal) = interrupt::signal() {
        say(&format!("interrupted ({signal}): what stands above is all that was tried\n"));
    }
    if survived.is_empty() {
        return Ok(interrupt::signal().map_or(ExitStatus::Passed, ExitStatus::Interrupted));
    }
    say(&format!("survived: {}\n", survived.join(", ")));
    Ok(ExitStatus::Violation)
}

/// Puts in each mutant and looks for it.
fn put_in_mutants(all: &Sensitivity, args: &Mutants) -> Result<ExitStatus, CorpusError> {
    let named = |mutant: &Mutant| all.rule.as_ref().is_none_or(|name| name == mutant.name());
    let mutants: Vec<Mutant> = Mutant::ALL.iter().copied().filter(named).collect();
    if mutants.is_empty() {
        return Err(CorpusError::Case("--rule: no mutant has that name".to_owned()));
    }
    let limit = Duration::from_secs(all.seconds);
    let effort = Effort { seed: all.seed, runs: all.runs, states: args.states, limit };
    // What is not looked for now stays what it was.
    let mut kept = match &args.json {
        Some(path) if path.exists() => mutants::load(path)?,
        _ => mutants::Kept::new(),
    };
    kept.retain(|name, _| Mutant::ALL.iter().any(|mutant| mutant.name() == name));
    let mut survived = Vec::new();
    let mut noticed: BTreeMap<Area, (u32, u32)> = BTreeMap::new();
    say(&format!(
        "{:<42} {:<26} {:>9} {:>8}  property that noticed\n",
        "", "area", "states", "seconds"
    ));
    for mutant in mutants {
        let outcome = mutants::look_for(mutant, &effort);
        let (count, of) = noticed.entry(mutant.area()).or_default();
        *of += 1;
        *count += u32::from(outcome.noticed.is_some());
        let verdict = match (&outcome.noticed, mutant.reason()) {
            (Some(noticed), _) => {
                let how = match noticed.strategy {
                    Strategy::Random => "",
                    Strategy::Exhaustive => " (exhaustive)",
                };
                format!("{}{how}", noticed.by.join(", "))
            }
            (None, Some(reason)) => format!("survived: {reason}"),
            (None, None) => {
                survived.push(mutant.name());
                "SURVIVED".to_owned()
            }
        };
        let (name, area) = (mutant.name(), mutant.area().name());
        let (states, seconds) = (outcome.states, outcome.seconds);
        say(&format!("{name:<42} {area:<26} {states:>9} {seconds:>8.2}  {verdict}\n"));
        kept.insert(name.to_owned(), mutants::Line::of(mutant, &outcome));
    }
    for (area, (count, of)) in noticed {
        say(&format!("{}: {count} of {of} noticed\n", area.name()));
    }
    if let Some(path) = &args.json {
        let mut text = serde_json::to_string_pretty(&kept).expect("numbers and names");
        text.push('\n');
        file::replace(path, text.as_bytes())
            .map_err(|source| CorpusError::Io { path: path.clone(), source })?;
    }
    if survived.is_empty() {
        return Ok(ExitStatus::Passed);
    }
    say(&format!("survived: {}\n", survived.join(", ")));
    Ok(ExitStatus::Violation)
}

/// Keeps what a campaign found, minimises it and writes it as the case of what was taken away.
fn keep(
    target: Target,
    found: &Found,
    seed: u64,
    folder: &Path,
    limit: Duration,
) -> Result<(), CorpusError> {
    let others: &[Target] = match attack::attack_on(target).0 {
        attack::Attack::Workloads(_, others) => others,
        _ => &[],
    };
    let names: Vec<&str> =
        std::iter::once(target).chain(others.iter().copied()).map(Target::name).collect();
    let subject = Qcow2Core::without(names.iter().copied()).map_err(CorpusError::Case)?;
    let case = |found: &Minimised| console::written(&subject, found, seed, Some(names.join("+")));
    let raw = Minimised { trial: found.trial.clone(), failure: found.failure.clone() };
    let keep = Keep::raw(Some(folder), &case(&raw));
    let (small, ended) = minimise(&subject, &found.trial, &found.failure, limit);
    if let Some(path) = keep.shortened(&case(&small), ended) {
        say(&format!("    kept as {}: {}\n", shown(&path), verdict(ended, limit)));
    }
    Ok(())
}
