//! The command line of the harness: `cargo campaign VERB`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use faultfs::profile::{Profile, Robustness, UnknownProfile};
use model::build::Initial;
use model::case::Case;
use qcow2_core::{Area, Mutant};
use qcow2_crashtest::attack::{self, Strategy};
use qcow2_crashtest::campaign::Found;
use qcow2_crashtest::console::cases::{Cases, Dump, Explain, Minimise, ReplayCommand};
use qcow2_crashtest::console::evidence::EvidenceCommand;
use qcow2_crashtest::console::keep::Keep;
use qcow2_crashtest::console::kept::KeptFiles;
use qcow2_crashtest::console::sample::Sample;
use qcow2_crashtest::console::shorten::{Minimising, minimise, verdict};
use qcow2_crashtest::console::{self, ExitStatus, Outputs, say, shown};
use qcow2_crashtest::corpus::{self, CorpusError};
use qcow2_crashtest::explore::alphabet::{self, Symbol, World, worlds};
use qcow2_crashtest::explore::certificate::{MergeError, Part};
use qcow2_crashtest::explore::{self, AtOnce};
use qcow2_crashtest::file;
use qcow2_crashtest::interrupt;
use qcow2_crashtest::minimise::Minimised;
use qcow2_crashtest::mutants::{self, Effort};
use qcow2_crashtest::replay;
use qcow2_crashtest::sabotage::Target;
use qcow2_crashtest::subject::Qcow2Core;
use qcow2_crashtest::workload::{FaultKind, Scope, Shape};

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
    Merge {
        /// Files written by `explore --part`.
        #[arg(required = true)]
        parts: Vec<PathBuf>,
    },
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
    /// Write what noticed each to this file.
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
    /// Only eager or only lazy refcounts.
    #[arg(long)]
    refcounts: Option<Refcounts>,
    /// A fault of this kind in every life.
    #[arg(long, value_parser = named::<FaultKind>(FaultKind::ALL.map(FaultKind::name)))]
    fault: Option<FaultKind>,
    /// Every case has this shape.
    #[arg(long, value_parser = named::<Shape>(Shape::ALL.map(Shape::name)))]
    shape: Option<Shape>,
    /// Break this write order (repeatable): the run must then find something.
    #[arg(long = "without", value_name = "RULE")]
    broken: Vec<String>,
    /// Fail unless every probe was reached.
    #[arg(long)]
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
    /// Workloads have at most this many requests.
    #[arg(long, default_value_t = 2)]
    operations: u32,
    /// Two tasks with one request each, in every order that departs at most this often from the plain one,
    /// in the place of requests one after the other.
    #[arg(long, value_name = "DEPARTURES", num_args = 0..=1, default_missing_value = "2")]
    pairs: Option<u32>,
    /// Two tasks that read, write, discard and flush two clusters, up to OPERATIONS requests beside one, with at most this many steps
    /// put off until nothing else can go on.
    #[arg(long, value_name = "DELAYS", num_args = 0..=1, default_missing_value = "2", conflicts_with = "pairs")]
    races: Option<u32>,
    /// Follow power cuts in recovery this deep; without it, until no new state appears.
    #[arg(long)]
    depth: Option<u32>,
    /// Cluster sizes in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 1024, 4096])]
    clusters: Vec<u32>,
    /// Only eager or only lazy refcounts.
    #[arg(long)]
    refcounts: Option<Refcounts>,
    /// Refcounts of these widths in bits; without it, 16, or 64 where the refcounts of the initial image are full or fragmented.
    #[arg(long, value_delimiter = ',')]
    refcount_bits: Vec<u32>,
    /// Images of this version of the format, 2 or 3.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=3))]
    format_version: u32,
    /// Requests of the alphabet of disks that become smaller and larger.
    #[arg(long, conflicts_with_all = ["pairs", "races"])]
    resizing: bool,
    /// Images with extended L2 entries, whose clusters have at least 16 KiB, and requests of the alphabet of subclusters.
    #[arg(long, conflicts_with_all = ["pairs", "races", "resizing"])]
    subclusters: bool,
    /// Requests of the alphabet of clusters that are taken ahead; over a layer, what is read of it is copied.
    #[arg(long, conflicts_with_all = ["pairs", "races", "resizing", "subclusters"])]
    ahead: bool,
    /// Requests of the alphabet of clusters that are written compressed; in races, of those around the cluster that streams are put into.
    #[arg(long, conflicts_with_all = ["pairs", "resizing", "subclusters", "ahead"])]
    compressing: bool,
    /// Images whose guest data is in a data file, which may be anything where it is not mapped (plain) or is the disk by itself (raw), and
    /// requests of the alphabet of such images; in pairs and races, the usual one.
    #[arg(long, conflicts_with_all = ["resizing", "subclusters", "ahead", "compressing"])]
    data_file: Option<DataFile>,
    /// Images whose guest data is encrypted, with the AES from before LUKS or with LUKS.
    #[arg(long)]
    encryption: Option<Encryption>,
    /// Requests of the alphabet of passphrases that come and go, on images encrypted with LUKS.
    #[arg(long, conflicts_with_all = ["pairs", "races", "resizing", "subclusters", "ahead", "compressing", "data_file", "encryption"])]
    passphrases: bool,
    /// Images over a layer that is longer than the disk.
    #[arg(long)]
    over_layer: bool,
    /// Only these initial images: fresh, refcount-block-one-short, refcount-table-one-short, l1-about-to-grow, leaky,
    /// dirty, fragmented, bitmaps, leftovers; and compressed, if it is asked for.
    #[arg(long, value_delimiter = ',')]
    initial: Vec<String>,
    /// How the power fails: kill, prefix, epoch, cache, torn or torn-length.
    #[arg(long, default_value_t = Profile::default())]
    profile: Profile,
    /// Explore only part K of N of the workloads, as K/N with K from 0.
    #[arg(long, value_name = "K/N", value_parser = parse_shard, default_value = "0/1")]
    shard: (u64, u64),
    /// Give up after this many seconds, and say how far it came.
    #[arg(long)]
    seconds: Option<u64>,
    /// Worker threads; 0 for one a core.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Break this write order (repeatable): the run must then find something.
    #[arg(long = "without", value_name = "RULE")]
    broken: Vec<String>,
    /// Write how far it came as one JSON object to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the certificate to this file.
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// Write what `merge` needs of this shard to this file.
    #[arg(long)]
    part: Option<PathBuf>,
    /// Keep a violation as a case file in this folder.
    #[arg(long, default_value = "corpus")]
    corpus: PathBuf,
    #[command(flatten)]
    minimising: Minimising,
}

/// One of these names.
fn named<T>(names: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

fn parse_shard(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((k, n)) if k < n => Ok((k, n)),
        _ => Err(format!("{text} is not K/N with K below N")),
    }
}

/// A device that keeps its promises, or one that does not.
type Device = (Profile, Option<Robustness>);

fn device(name: &str) -> Result<Device, UnknownProfile> {
    match name.parse() {
        Ok(damage) => Ok((Profile::TornLength, Some(damage))),
        Err(_) => name.parse().map(|profile| (profile, None)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Refcounts {
    Eager,
    Lazy,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DataFile {
    Plain,
    Raw,
}

impl From<DataFile> for model::op::DataFile {
    fn from(kind: DataFile) -> Self {
        match kind {
            DataFile::Plain => Self::Plain,
            DataFile::Raw => Self::Raw,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Encryption {
    Aes,
    Luks,
}

impl From<Encryption> for model::op::Encryption {
    fn from(kind: Encryption) -> Self {
        match kind {
            Encryption::Aes => Self::Aes,
            Encryption::Luks => Self::Luks,
        }
    }
}

fn main() -> ExitCode {
    console::exit(match console::parsed(Cli::try_parse()).verb {
        Verb::Run(run) => run_campaign(run),
        Verb::Explore(explore) => explore_all(explore),
        Verb::Merge { parts } => merge(&parts),
        Verb::Replay(replay) => replay.run(&Corpus),
        Verb::Minimise(minimise) => minimise.run(&Corpus),
        Verb::Explain(explain) => explain.run(&Corpus),
        Verb::Dump(dump) => dump.run(&Corpus),
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
    if run.shape == Some(Shape::Version2) && matches!(run.refcounts, Some(Refcounts::Lazy)) {
        let why = "images of version 2 have eager refcounts only";
        return Err(CorpusError::Case(format!("--shape version-2: {why}")));
    }
    let scope = Scope {
        lazy: run.refcounts.map(|refcounts| matches!(refcounts, Refcounts::Lazy)),
        fault: run.fault,
        shape: run.shape,
        ..Scope::default()
    };
    let (profile, damage) = run.profile;
    let settings = run.sample.settings(profile, damage, scope);
    let outputs = Outputs {
        json: run.json,
        certificates: Some(corpus::folder().join("certificates")),
        corpus: Some(run.corpus),
        witness: (!run.broken.is_empty()).then(|| run.broken.join("+")),
        all_probes: run.all_probes,
        minimise: Some(run.minimising.limit()),
    };
    console::listen()?;
    console::run(&subject, &settings, &outputs)
}

fn explore_all(args: Explore) -> Result<ExitStatus, CorpusError> {
    let misuse = |error: String| CorpusError::Case(error);
    let subject = Qcow2Core::without(args.broken.iter().map(String::as_str))
        .map_err(|error| misuse(format!("--without: {error}")))?;
    let mut initials = Vec::new();
    for name in &args.initial {
        let known = Initial::ALL.into_iter().find(|initial| initial.name() == name);
        initials
            .push(known.ok_or_else(|| misuse(format!("--initial: no image is called {name}")))?);
    }
    if initials.is_empty() {
        initials.extend(alphabet::initials());
    }
    let modes: &[bool] = match args.refcounts {
        None => &[false, true],
        Some(Refcounts::Eager) => &[false],
        Some(Refcounts::Lazy) => &[true],
    };
    for cluster in &args.clusters {
        if !cluster.is_power_of_two() || !(512..=65536).contains(cluster) {
            let why = "is not a power of two from 512 to 65536";
            return Err(misuse(format!("--clusters: {cluster} {why}")));
        }
    }
    for bits in &args.refcount_bits {
        if !bits.is_power_of_two() || *bits > 64 {
            let why = "is not a power of two from 1 to 64";
            return Err(misuse(format!("--refcount-bits: {bits} {why}")));
        }
    }
    let old = args.format_version == 2;
    if old && (args.refcounts == Some(Refcounts::Lazy) || !args.refcount_bits.is_empty()) {
        let why = "version 2 has eager refcounts of 16 bits only";
        return Err(misuse(format!("--format-version: {why}")));
    }
    let usual = match old {
        true => worlds(&args.clusters, &[false], &initials)
            .into_iter()
            .map(World::in_version_2)
            .collect(),
        false => worlds(&args.clusters, modes, &initials),
    };
    if args.subclusters && (old || args.clusters.iter().any(|&size| size < 16384)) {
        let why = "subclusters need version 3 and clusters of 16384 bytes or more";
        return Err(misuse(format!("--subclusters: {why}")));
    }
    let usual = match args.subclusters {
        true => usual.into_iter().map(World::with_subclusters).collect(),
        false => usual,
    };
    let usual = match args.over_layer {
        true => usual.into_iter().map(World::over_layer).collect(),
        false => usual,
    };
    let usual: Vec<World> = match args.data_file {
        Some(kind) => usual.into_iter().map(|world| world.beside(kind.into())).collect(),
        None => usual,
    };
    let encryption = if args.passphrases { Some(Encryption::Luks) } else { args.encryption };
    let usual: Vec<World> = match encryption {
        Some(kind) => usual.into_iter().map(|world| world.encrypted(kind.into())).collect(),
        None => usual,
    };
    if let Some(why) = usual.iter().find_map(|world| world.geometry.fault()) {
        return Err(misuse(why.to_string()));
    }
    let usual = match args.ahead {
        true => usual.into_iter().map(World::copying).collect(),
        false => usual,
    };
    let of_width = |bits: &u32| {
        let order = bits.ilog2();
        usual.iter().map(move |world| world.with_refcount_order(order))
    };
    let worlds = match &args.refcount_bits[..] {
        [] => usual,
        widths => widths.iter().flat_map(of_width).collect(),
    };
    let settings = explore::ExploreSettings {
        worlds,
        alphabet: match () {
            () if args.resizing => &Symbol::RESIZING,
            () if args.subclusters => &Symbol::SUBCLUSTERS,
            () if args.ahead => &Symbol::AHEAD,
            () if args.passphrases => &Symbol::PASSPHRASES,
            () if args.races.is_some() && args.compressing => &Symbol::RACING_COMPRESSED,
            () if args.races.is_some() => &Symbol::RACING,
            () if args.compressing => &Symbol::COMPRESSING,
            () if args.data_file.is_some() && args.pairs.is_none() => &Symbol::DATA_FILES,
            () => &Symbol::ALL,
        },
        operations: args.operations,
        at_once: match (args.pairs, args.races) {
            (Some(departures), _) => Some(AtOnce::Pairs { departures }),
            (None, Some(delays)) => Some(AtOnce::Races { delays }),
            (None, None) => None,
        },
        depth: args.depth.unwrap_or(u32::MAX),
        profile: args.profile,
        shard: args.shard,
        limit: args.seconds.map(Duration::from_secs),
        workers: args.workers,
    };
    let outputs = console::Exploration {
        json: args.json,
        certificate: args.certificate,
        part: args.part,
        corpus: Some(args.corpus),
        witness: (!args.broken.is_empty()).then(|| args.broken.join("+")),
        minimise: Some(args.minimising.limit()),
    };
    console::listen()?;
    console::explore(&subject, &settings, &outputs)
}

fn merge(paths: &[PathBuf]) -> Result<ExitStatus, CorpusError> {
    let mut merged: Option<Part> = None;
    for path in paths {
        let text = std::fs::read_to_string(path)
            .map_err(|source| CorpusError::Io { path: path.clone(), source })?;
        let fault = |error: String| CorpusError::Case(format!("{}: {error}", shown(path)));
        let part: Part = serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
        match &mut merged {
            None => merged = Some(part),
            Some(merged) => merged.merge(&part).map_err(|error| fault(error.to_string()))?,
        }
    }
    let whole = merged.ok_or(MergeError::None).and_then(Part::whole);
    say(&whole.map_err(|error| CorpusError::Case(error.to_string()))?.to_json());
    Ok(ExitStatus::Passed)
}

/// The corpus of the workspace's own library.
struct Corpus;

impl Cases for Corpus {
    type Subject = Qcow2Core;

    const WITNESSES: bool = true;

    fn folder(&self) -> PathBuf {
        corpus::folder()
    }

    fn subject_of(&self, case: &Case, file: &str, broken: bool) -> Result<Qcow2Core, CorpusError> {
        replay::subject_of(case, file, broken)
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
        if args.rule.as_ref().is_some_and(|name| name != target.name()) {
            continue;
        }
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
    let mut kept = mutants::Kept::new();
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
