//! What an exploration covers: the arguments that are the same for every subject.

use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use faultfs::profile::Profile;
use model::build::Initial;

use super::names::Refcounts;
use crate::corpus::CorpusError;
use crate::explore::alphabet::{self, Symbol, World, worlds};
use crate::explore::{AtOnce, ExploreSettings};

/// The arguments.
#[derive(Args)]
pub struct Worlds {
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
    #[arg(long, default_value = "both")]
    refcounts: Refcounts,
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
    /// Only these initial images; without it all but those that no request of the alphabet has to do with.
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(Initial::ALL.map(Initial::name)))]
    initial: Vec<String>,
    /// How the power fails: kill, prefix, epoch, cache, torn or torn-length. If that is worse than what the subject says it survives, this
    /// is explored first.
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
}

fn parse_shard(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((k, n)) if k < n => Ok((k, n)),
        _ => Err(format!("{text} is not K/N with K below N")),
    }
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

impl Worlds {
    /// The exploration with these arguments.
    ///
    /// # Errors
    /// Arguments that say nothing that can be.
    pub fn settings(&self) -> Result<ExploreSettings, CorpusError> {
        let misuse = |error: String| CorpusError::Case(error);
        let mut initials = Vec::new();
        for name in &self.initial {
            let known = Initial::ALL.into_iter().find(|initial| initial.name() == name);
            initials.push(known.expect("it is one of the possible values"));
        }
        if initials.is_empty() {
            initials.extend(alphabet::initials());
        }
        let modes: &[bool] = match self.refcounts {
            Refcounts::Both => &[false, true],
            Refcounts::Eager => &[false],
            Refcounts::Lazy => &[true],
        };
        for cluster in &self.clusters {
            if !cluster.is_power_of_two() || !(512..=65536).contains(cluster) {
                let why = "is not a power of two from 512 to 65536";
                return Err(misuse(format!("--clusters: {cluster} {why}")));
            }
        }
        for bits in &self.refcount_bits {
            if !bits.is_power_of_two() || *bits > 64 {
                let why = "is not a power of two from 1 to 64";
                return Err(misuse(format!("--refcount-bits: {bits} {why}")));
            }
        }
        let old = self.format_version == 2;
        if old && (self.refcounts == Refcounts::Lazy || !self.refcount_bits.is_empty()) {
            let why = "version 2 has eager refcounts of 16 bits only";
            return Err(misuse(format!("--format-version: {why}")));
        }
        let usual = match old {
            true => worlds(&self.clusters, &[false], &initials)
                .into_iter()
                .map(World::in_version_2)
                .collect(),
            false => worlds(&self.clusters, modes, &initials),
        };
        if self.subclusters && (old || self.clusters.iter().any(|&size| size < 16384)) {
            let why = "subclusters need version 3 and clusters of 16384 bytes or more";
            return Err(misuse(format!("--subclusters: {why}")));
        }
        let usual = match self.subclusters {
            true => usual.into_iter().map(World::with_subclusters).collect(),
            false => usual,
        };
        let usual = match self.over_layer {
            true => usual.into_iter().map(World::over_layer).collect(),
            false => usual,
        };
        let usual: Vec<World> = match self.data_file {
            Some(kind) => usual.into_iter().map(|world| world.beside(kind.into())).collect(),
            None => usual,
        };
        let encryption = if self.passphrases { Some(Encryption::Luks) } else { self.encryption };
        let usual: Vec<World> = match encryption {
            Some(kind) => usual.into_iter().map(|world| world.encrypted(kind.into())).collect(),
            None => usual,
        };
        if let Some(why) = usual.iter().find_map(|world| world.geometry.fault()) {
            return Err(misuse(why.to_string()));
        }
        let usual = match self.ahead {
            true => usual.into_iter().map(World::copying).collect(),
            false => usual,
        };
        let of_width = |bits: &u32| {
            let order = bits.ilog2();
            usual.iter().map(move |world| world.with_refcount_order(order))
        };
        let worlds = match &self.refcount_bits[..] {
            [] => usual,
            widths => widths.iter().flat_map(of_width).collect(),
        };
        Ok(ExploreSettings {
            worlds,
            alphabet: match () {
                () if self.resizing => &Symbol::RESIZING[..],
                () if self.subclusters => &Symbol::SUBCLUSTERS,
                () if self.ahead => &Symbol::AHEAD,
                () if self.passphrases => &Symbol::PASSPHRASES,
                () if self.races.is_some() && self.compressing => &Symbol::RACING_COMPRESSED,
                () if self.races.is_some() => &Symbol::RACING,
                () if self.compressing => &Symbol::COMPRESSING,
                () if self.data_file.is_some() && self.pairs.is_none() => &Symbol::DATA_FILES,
                () => &Symbol::ALL,
            }
            .to_vec(),
            operations: self.operations,
            at_once: match (self.pairs, self.races) {
                (Some(departures), _) => Some(AtOnce::Pairs { departures }),
                (None, Some(delays)) => Some(AtOnce::Races { delays }),
                (None, None) => None,
            },
            depth: self.depth.unwrap_or(u32::MAX),
            profile: self.profile,
            shard: self.shard,
            limit: self.seconds.map(Duration::from_secs),
            workers: self.workers,
        })
    }
}
