//! What an exploration covered, as a file that anybody can make again, bit for bit.
//!
//! A certificate holds nothing that depends on when, where or by how many workers it was made: no time, no commit, no
//! order. Shards leave a *part*: the same numbers, and the hashes of the states that recovery left, because distinct
//! states do not add up but unite. All parts of one exploration, in any order, merge into its certificate.

use std::collections::{BTreeMap, BTreeSet};

use model::build::Initial;
use model::finding::Property;
use model::op::{DataFile, Encryption, Geometry, Op};
use serde::{Deserialize, Serialize};

use super::alphabet::{Symbol, World, operations};
use super::at_once::AtOnce;
use super::walk::Coverage;
use super::{ExploreReport, ExploreSettings, Explored};
use crate::any::AnySubject;
use crate::capabilities::Capabilities;
use crate::subject::{Duties, Subject};

/// Name and version of the form.
pub const SCHEMA: &str = "exploration-certificate/1";

/// What was explored and what was found to hold: no violation, or there would be none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// [`SCHEMA`].
    pub schema: String,
    /// What was under test; what it did without is part of its name.
    pub subject: String,
    /// What it was not asked, because it cannot do it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_asked: Vec<String>,
    /// Part by part, what tells its source from another: a hash of each crate of the harness and of what they are built with, and what the subject says of itself.
    pub source: Vec<(String, String)>,
    /// The properties that every workload was judged by.
    #[serde(default)]
    pub properties: Vec<Property>,
    /// How the power fails.
    pub profile: String,
    /// Workloads have at most this many requests.
    pub operations: u32,
    /// Two tasks make one request each, in orders that depart at most this often from the plain one; none: one task
    /// makes them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub departures: Option<u32>,
    /// Workloads are that many requests at most beside one, and at most this many steps of the plain order are put off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delays: Option<u32>,
    /// Power cuts in recovery follow each other at most this often; none: until no new state appears.
    pub depth: Option<u32>,
    /// The requests, by name.
    pub alphabet: Vec<String>,
    /// What they are, by cluster size.
    pub requests: Vec<(u64, Vec<Op>)>,
    /// Rare situations that were met, by cluster size.
    pub probes: BTreeMap<u64, BTreeSet<String>>,
    /// Initial images.
    pub worlds: Vec<CertifiedWorld>,
    /// All worlds together.
    pub totals: Totals,
    /// Hash of the run.
    pub run: String,
}

/// One initial image and what followed from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertifiedWorld {
    /// Its shape.
    pub geometry: Geometry,
    /// Its kind.
    pub initial: Initial,
    /// Metadata pages in memory, 512 bytes each.
    pub cache_pages: u32,
    /// Bytes by which the file grows.
    pub growth: u64,
    /// Whether what is read from a layer is copied into the image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy_on_read: bool,
    /// Why this image cannot be; then nothing was explored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infeasible: Option<String>,
    /// What was done.
    #[serde(flatten)]
    pub totals: Totals,
    /// Hash of it.
    pub run: String,
}

/// Numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct Totals {
    /// Workloads.
    pub workloads: u64,
    /// Moments at which the power could fail.
    pub crash_points: u64,
    /// Disks, with what the guest may see, that a power cut left, each counted once a workload.
    pub crash_disks: u64,
    /// Ways through a crash disk, judged, to disks that the workload had not been recovered from before. The recovery
    /// itself ran unless the same disk had been recovered from in an earlier workload.
    pub leaves: u64,
    /// Leaves that led to a disk recovered from before in the same workload.
    pub memo_hits: u64,
    /// Power cuts in recovery.
    pub nested_crashes: u64,
    /// Orders of two tasks' steps that were run.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub schedules: u64,
    /// The longest row of power cuts in recovery that still led to something new.
    pub deepest: u32,
    /// Different disks left by recovery.
    pub distinct_states: u64,
}

/// A certificate of a shard, with what it takes to merge it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which shard of how many; as numbers of shards, ascending.
    pub shards: BTreeSet<u64>,
    /// Of how many.
    pub of: u64,
    /// Its numbers.
    pub certificate: Certificate,
    /// World by world, the hashes of the states that recovery left, 16 hexadecimal digits each.
    pub distinct: Vec<String>,
}

/// Why parts do not merge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// They are of different explorations.
    #[error("{field} differs: the parts are of different explorations")]
    Different {
        /// What differs.
        field: &'static str,
    },
    /// One shard comes twice.
    #[error("shard {0} comes twice")]
    Twice(u64),
    /// A shard is missing.
    #[error("shard {missing} of {of} is missing")]
    Missing {
        /// Its number.
        missing: u64,
        /// Of how many.
        of: u64,
    },
    /// A list of states is not one of hashes.
    #[error("the states of world {0} are no hashes of 16 hexadecimal digits")]
    States(usize),
    /// There is none.
    #[error("no part was given")]
    None,
}

impl Coverage {
    /// A hash of what exploring workload number `index` did.
    pub(super) fn hash(&self, index: u64) -> u64 {
        let Self { crash_points, crash_disks, leaves, memo_hits, nested, schedules, .. } = *self;
        let numbers = [crash_points, crash_disks, leaves, memo_hits, nested, schedules];
        numbers
            .into_iter()
            .chain([self.deepest.into(), self.digest])
            .fold(mix(index), |hash, number| mix(hash ^ number))
    }
}

impl Totals {
    fn of(explored: &Explored) -> Self {
        let counts = &explored.counts;
        Self {
            workloads: explored.workloads,
            crash_points: counts.crash_points,
            crash_disks: counts.crash_disks,
            leaves: counts.leaves,
            memo_hits: counts.memo_hits,
            nested_crashes: counts.nested,
            schedules: counts.schedules,
            deepest: counts.deepest,
            distinct_states: explored.distinct.len() as u64,
        }
    }

    fn add(&mut self, other: &Self) {
        self.workloads += other.workloads;
        self.crash_points += other.crash_points;
        self.crash_disks += other.crash_disks;
        self.leaves += other.leaves;
        self.memo_hits += other.memo_hits;
        self.nested_crashes += other.nested_crashes;
        self.schedules += other.schedules;
        self.deepest = self.deepest.max(other.deepest);
        self.distinct_states += other.distinct_states;
    }
}

impl Certificate {
    /// The certificate of a complete and clean exploration of all shards, or of the one in `settings`.
    pub fn new(subject: &impl Subject, settings: &ExploreSettings, report: &ExploreReport) -> Self {
        let subject = &AnySubject::of(subject);
        let alphabet = &settings.alphabet[..];
        let mut sizes: Vec<Geometry> = settings.worlds.iter().map(|world| world.geometry).collect();
        sizes.sort_by_key(|geometry| geometry.cluster_bits);
        sizes.dedup_by_key(|geometry| geometry.cluster_bits);
        let requests = sizes
            .iter()
            .map(|geometry| (geometry.cluster_size(), operations(alphabet, geometry)))
            .collect();
        let (duties, can) = (subject.duties(), subject.capabilities());
        let mut properties = judged(&duties, &can, settings);
        if settings.worlds.iter().all(|world| world.geometry.encryption.is_some()) {
            properties.push(Property::PCipher);
        }
        let mut certificate = Self {
            schema: SCHEMA.to_owned(),
            subject: subject.name(),
            not_asked: can.left_out(),
            source: source_of(subject).unwrap_or_else(harness),
            properties,
            profile: settings.profile.to_string(),
            operations: settings.operations,
            departures: match settings.at_once {
                Some(AtOnce::Pairs { departures }) => Some(departures),
                _ => None,
            },
            delays: match settings.at_once {
                Some(AtOnce::Races { delays }) => Some(delays),
                _ => None,
            },
            depth: (settings.depth != u32::MAX).then_some(settings.depth),
            alphabet: alphabet.iter().map(|symbol| symbol.name().to_owned()).collect(),
            requests,
            probes: report
                .probes()
                .into_iter()
                .map(|(size, (met, _))| (size, met.iter().map(ToString::to_string).collect()))
                .collect(),
            worlds: report.worlds.iter().map(certified).collect(),
            totals: Totals::default(),
            run: String::new(),
        };
        certificate.sum_up();
        certificate
    }

    /// The same without what changes with every change of the source: what a run must reproduce.
    #[must_use]
    pub fn without_source(mut self) -> Self {
        self.source.clear();
        self
    }

    /// What it covers, in a line.
    pub fn covers(&self) -> String {
        let sizes: Vec<String> = self.requests.iter().map(|(size, _)| size.to_string()).collect();
        let explored = self.worlds.iter().filter(|world| world.infeasible.is_none()).count();
        let pairs = self.departures.map(|departures| AtOnce::Pairs { departures });
        let at_once = pairs.or_else(|| self.delays.map(|delays| AtOnce::Races { delays }));
        let has = |symbol: Symbol| self.alphabet.iter().any(|name| name == symbol.name());
        let those = match () {
            () if has(Symbol::ShrinkBeforeF) => ", of those that resize",
            () if has(Symbol::PreallocateAB) => ", of those that take clusters ahead",
            () if has(Symbol::CompressA) => ", of those that compress",
            () if has(Symbol::AddFirst) => ", of those that change passphrases",
            () => "",
        };
        let what = AtOnce::covers(at_once, self.operations) + those;
        let old = self.worlds.iter().all(|world| world.geometry.version == 2);
        let layered = self.worlds.iter().all(|world| world.geometry.below.is_some());
        let extended = self.worlds.iter().all(|world| world.geometry.extended_l2);
        let of = match (old, extended) {
            (true, _) => " of version 2",
            (false, true) => " with subclusters",
            (false, false) => "",
        };
        let over = if layered { " over a layer" } else { "" };
        let kinds = self.worlds.iter().map(|world| world.geometry.data_file);
        let beside = match kinds.reduce(|all, kind| if kind == all { all } else { None }).flatten()
        {
            Some(DataFile::Plain) => " beside a data file",
            Some(DataFile::Raw) => " beside a raw data file",
            None => "",
        };
        let kinds = self.worlds.iter().map(|world| world.geometry.encryption);
        let encrypted = kinds.reduce(|all, kind| if kind == all { all } else { None }).flatten();
        let encrypted = match encrypted {
            Some(Encryption::Aes) => " encrypted with AES",
            Some(Encryption::Luks) => " encrypted with LUKS",
            None => "",
        };
        let images = format!("images{of}{over}{beside}{encrypted}");
        let depth =
            self.depth.map_or_else(|| "a fixed point".to_owned(), |depth| format!("depth {depth}"));
        let Totals { workloads, leaves, memo_hits, distinct_states, .. } = self.totals;
        format!(
            "{what}, {} B clusters, {explored} {images}, {}, nested to {depth}: {workloads} workloads, {leaves} leaves, \
             {memo_hits} memo hits, {distinct_states} distinct",
            sizes.join("/"),
            self.profile,
        )
    }

    /// As JSON, with a newline at its end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("numbers and names");
        text.push('\n');
        text
    }

    fn sum_up(&mut self) {
        self.totals = Totals::default();
        let mut run = 0u64;
        for world in &self.worlds {
            self.totals.add(&world.totals);
            run = mix(run ^ u64::from_str_radix(&world.run, 16).unwrap_or(0));
        }
        self.run = format!("{run:016x}");
    }
}

fn certified(explored: &Explored) -> CertifiedWorld {
    let World { geometry, initial, session } = explored.world;
    CertifiedWorld {
        geometry,
        initial,
        cache_pages: session.cache_pages,
        growth: session.growth,
        copy_on_read: session.copy_on_read,
        infeasible: explored.infeasible.clone(),
        totals: Totals::of(explored),
        run: format!("{:016x}", explored.hash),
    }
}

impl Part {
    /// The part of the shard in `settings`.
    pub fn new(subject: &impl Subject, settings: &ExploreSettings, report: &ExploreReport) -> Self {
        let subject = &AnySubject::of(subject);
        let digits = |explored: &Explored| {
            explored.distinct.iter().map(|hash| format!("{hash:016x}")).collect()
        };
        Self {
            shards: BTreeSet::from([settings.shard.0]),
            of: settings.shard.1,
            certificate: Certificate::new(subject, settings, report),
            distinct: report.worlds.iter().map(digits).collect(),
        }
    }

    /// Adds another part of the same exploration.
    ///
    /// # Errors
    /// If it is none, or was added before.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        let same =
            |same: bool, field| if same { Ok(()) } else { Err(MergeError::Different { field }) };
        let (ours, theirs) = (&self.certificate, &other.certificate);
        same(self.of == other.of, "the number of shards")?;
        same(ours.schema == theirs.schema, "schema")?;
        same(ours.subject == theirs.subject, "subject")?;
        same(ours.not_asked == theirs.not_asked, "what was not asked")?;
        same(ours.source == theirs.source, "source")?;
        same(ours.properties == theirs.properties, "the list of properties")?;
        same(ours.profile == theirs.profile, "profile")?;
        same(ours.operations == theirs.operations, "operations")?;
        same(ours.departures == theirs.departures, "departures")?;
        same(ours.delays == theirs.delays, "delays")?;
        same(ours.depth == theirs.depth, "depth")?;
        same(ours.alphabet == theirs.alphabet && ours.requests == theirs.requests, "alphabet")?;
        let world = |world: &CertifiedWorld| CertifiedWorld {
            totals: Totals::default(),
            run: String::new(),
            ..world.clone()
        };
        same(
            ours.worlds.iter().map(world).eq(theirs.worlds.iter().map(world))
                && self.distinct.len() == other.distinct.len(),
            "the list of worlds",
        )?;
        if let Some(&twice) = self.shards.intersection(&other.shards).next() {
            return Err(MergeError::Twice(twice));
        }
        let hash = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
        for (at, (ours, theirs)) in
            self.certificate.worlds.iter_mut().zip(&other.certificate.worlds).enumerate()
        {
            ours.totals.add(&theirs.totals);
            ours.run = format!("{:016x}", hash(&ours.run).wrapping_add(hash(&theirs.run)));
            let mut states = digits(&self.distinct[at]).ok_or(MergeError::States(at))?;
            states.append(&mut digits(&other.distinct[at]).ok_or(MergeError::States(at))?);
            ours.totals.distinct_states = states.len() as u64;
            self.distinct[at] = states.into_iter().collect();
        }
        for (size, met) in &other.certificate.probes {
            let probes = self.certificate.probes.entry(*size).or_default();
            probes.extend(met.iter().cloned());
        }
        self.shards.extend(&other.shards);
        self.certificate.sum_up();
        Ok(())
    }

    /// The certificate, if no shard is missing.
    ///
    /// # Errors
    /// The first shard that is.
    pub fn whole(self) -> Result<Certificate, MergeError> {
        match (0..self.of).find(|shard| !self.shards.contains(shard)) {
            Some(missing) => Err(MergeError::Missing { missing, of: self.of }),
            None => Ok(self.certificate),
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The hashes in a row of them, each once.
fn digits(text: &str) -> Option<BTreeSet<&str>> {
    let valid = text.len().is_multiple_of(16) && text.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| (0..text.len() / 16).map(|at| &text[at * 16..at * 16 + 16]).collect())
}

/// Crate by crate, a hash of the source of the harness, as it was when this was built.
fn harness() -> Vec<(String, String)> {
    env!("SOURCE_HASHES")
        .split(' ')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, hash)| (name.to_owned(), hash.to_owned()))
        .collect()
}

/// What tells the source of a run on this subject from any other: the harness's, and the subject's own. None if the subject cannot say
/// which it is.
pub fn source_of(subject: &impl Subject) -> Option<Vec<(String, String)>> {
    let subject = &AnySubject::of(subject);
    subject.source().map(|own| harness().into_iter().chain(own).collect())
}

/// The properties that exploring judges a subject by: those that a power cut, what is found after it, and one recovery after another can
/// show, as far as the subject is held to them and the requests lead there. P7 takes whole runs to their end, and P9 compares what
/// several power cuts leaked.
pub fn judged(duties: &Duties, can: &Capabilities, settings: &ExploreSettings) -> Vec<Property> {
    let at_once = settings.at_once.is_some();
    let has = |any: &[Symbol]| any.iter().any(|symbol| settings.alphabet.contains(symbol));
    // Where requests follow each other, all is read after the last one.
    let reads = !at_once || has(&[Symbol::ReadA, Symbol::ReadPartOfB]);
    let closes = has(&[Symbol::Reopen]) && !at_once;
    let whole = has(&[Symbol::Grow, Symbol::AddFirst, Symbol::RemoveFirst]);
    let all = [
        (Property::P0, reads),
        (Property::P1, true),
        (Property::P2, true),
        (Property::P3, true),
        (Property::P4, true),
        (Property::P5, settings.depth > 0),
        (Property::P6, closes),
        (Property::P8, true),
        (Property::P10, whole),
    ];
    all.into_iter()
        .filter(|(property, leads_there)| *leads_there && duties.judge(can, *property))
        .map(|(property, _)| property)
        .collect()
}

/// Finaliser of SplitMix64: every bit of the input moves half the bits of the output.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
