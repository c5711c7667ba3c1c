//! What a run has done, in numbers: so that its silence can be weighed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use model::guest::Guest;
use serde::{Deserialize, Serialize};

use crate::any::AnySubject;
use crate::ended::Ended;
use crate::probe::{Probe, Probes};
use crate::subject::Subject;
use crate::workload::FaultKind;

/// The figures of a campaign. Those of two runs of different seeds can be added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// Cases run.
    pub cases: u64,
    /// Of these, with at least two lives.
    pub long_cases: u64,
    /// Lives run.
    pub lives: u64,
    /// Guest operations completed.
    pub operations: u64,
    /// Storage operations of workloads.
    pub ios: u64,
    /// Moments at which the power could have failed.
    pub crash_points: u64,
    /// Crash states that recovery ran on and that were fully judged, nested ones included.
    pub states: u64,
    /// Of these, those that differ in what the disk may hold or in what the guest may see (by hash, within a case).
    pub distinct_states: u64,
    /// Of the states, those that a crash inside a repair had left.
    pub nested_states: u64,
    /// Guest units judged, over all states.
    pub units: u64,
    /// Of these, with exactly one allowed value.
    pub decided_units: u64,
    /// Sizes of the allowed sets, summed over all units judged.
    pub allowed_values: u64,
    /// Crash states by initial image.
    pub by_initial: BTreeMap<Cow<'static, str>, u64>,
    /// Crash states by cluster size.
    pub by_cluster: BTreeMap<u64, u64>,
    /// Crash states by the shape of their case.
    pub by_shape: BTreeMap<Cow<'static, str>, u64>,
    /// Lives in which two faults struck, by their kinds.
    #[serde(with = "pairs")]
    pub fault_pairs: BTreeMap<(FaultKind, FaultKind), u64>,
    /// Most clusters that one crash leaked.
    pub most_leaked: u64,
    /// Most of what a crash may leak that one did leak, in percent.
    pub leak_percent: u64,
    /// Most of the storage operations that going on after a recovery may take that it did take, in percent.
    pub liveness_percent: u64,
    /// Cases run twice, with the same trace both times.
    pub repeated: u64,
    /// Probes reached.
    pub probes: Probes,
    /// Seconds, summed over workers.
    pub worker_seconds: f64,
    /// Seconds by the clock.
    pub seconds: f64,
}

impl Figures {
    /// Adds crash states that were judged against what the guest may see.
    pub(crate) fn judged(&mut self, guest: &Guest, states: u64) {
        self.states += states;
        self.nested_states += states - 1;
        let sets = guest.figures();
        self.units += sets.units;
        self.decided_units += sets.decided;
        self.allowed_values += sets.values;
    }

    /// Adds the figures of a run of other seeds, except for the time by the clock.
    pub fn add(&mut self, other: &Self) {
        self.cases += other.cases;
        self.long_cases += other.long_cases;
        self.lives += other.lives;
        self.operations += other.operations;
        self.ios += other.ios;
        self.crash_points += other.crash_points;
        self.states += other.states;
        self.distinct_states += other.distinct_states;
        self.nested_states += other.nested_states;
        self.units += other.units;
        self.decided_units += other.decided_units;
        self.allowed_values += other.allowed_values;
        self.repeated += other.repeated;
        self.worker_seconds += other.worker_seconds;
        for (initial, count) in &other.by_initial {
            *self.by_initial.entry(initial.clone()).or_default() += count;
        }
        for (&cluster, count) in &other.by_cluster {
            *self.by_cluster.entry(cluster).or_default() += count;
        }
        for (shape, count) in &other.by_shape {
            *self.by_shape.entry(shape.clone()).or_default() += count;
        }
        for (&pair, count) in &other.fault_pairs {
            *self.fault_pairs.entry(pair).or_default() += count;
        }
        self.most_leaked = self.most_leaked.max(other.most_leaked);
        self.leak_percent = self.leak_percent.max(other.leak_percent);
        self.liveness_percent = self.liveness_percent.max(other.liveness_percent);
        self.probes.add(&other.probes);
    }

    /// Share of judged guest units that had exactly one allowed value.
    pub fn decided_share(&self) -> f64 {
        ratio(self.decided_units, self.units)
    }

    /// Mean number of allowed values of a guest unit.
    pub fn mean_allowed(&self) -> f64 {
        ratio(self.allowed_values, self.units)
    }

    /// Fully judged crash states per second of one worker.
    pub fn states_per_second(&self) -> f64 {
        if self.worker_seconds > 0.0 { self.states as f64 / self.worker_seconds } else { 0.0 }
    }

    /// The figures of a campaign on damaged images, as lines for a person.
    pub fn damaged_table(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "  {name:<28} {value}");
        };
        line("cases", self.cases.to_string());
        line("guest operations", self.operations.to_string());
        line("crash points", self.crash_points.to_string());
        line("damaged images judged", self.states.to_string());
        line("per second and worker", format!("{:.0}", self.states_per_second()));
        line("cases run twice, same trace", self.repeated.to_string());
        self.probe_lines(Probe::DAMAGED, &mut line);
        out
    }

    fn probe_lines(&self, probes: &[Probe], line: &mut impl FnMut(&str, String)) {
        let reached = probes.iter().filter(|&&probe| self.probes.count(probe) > 0).count();
        line("probes reached", format!("{reached} of {}", probes.len()));
        for &probe in probes {
            line(&format!("  {probe}"), self.probes.count(probe).to_string());
        }
    }

    /// Why this run could not have failed, if it could not.
    pub fn vacuous(&self) -> Option<String> {
        if self.states == 0 {
            Some("no crash state was judged".to_owned())
        } else if self.decided_share() < 0.2 {
            let share = self.decided_share() * 100.0;
            Some(format!("only {share:.1} % of the guest units had exactly one allowed value"))
        } else if 2 * self.long_cases < self.cases {
            Some(format!("only {} of {} cases had two lives", self.long_cases, self.cases))
        } else {
            None
        }
    }

    /// The figures as lines for a person.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "  {name:<28} {value}");
        };
        line("cases", format!("{} ({} with two or more lives)", self.cases, self.long_cases));
        line("guest operations", self.operations.to_string());
        line("storage operations", self.ios.to_string());
        line("crash points", self.crash_points.to_string());
        line(
            "crash states fully judged",
            format!("{} ({} distinct)", self.states, self.distinct_states),
        );
        line("  left by a crash in repair", self.nested_states.to_string());
        line("per second and worker", format!("{:.0}", self.states_per_second()));
        line("allowed values per unit", format!("{:.3} on average", self.mean_allowed()));
        line("units with exactly one", format!("{:.1} %", self.decided_share() * 100.0));
        line("cases run twice, same trace", self.repeated.to_string());
        let by = |map: Vec<String>| map.join(", ");
        let initial = self.by_initial.iter().map(|(name, count)| format!("{name} {count}"));
        line("states by initial image", by(initial.collect()));
        let cluster = self.by_cluster.iter().map(|(size, count)| format!("{size} B {count}"));
        line("states by cluster size", by(cluster.collect()));
        let shape = self.by_shape.iter().map(|(name, count)| format!("{name} {count}"));
        line("states by shape", by(shape.collect()));
        let pairs = FaultKind::pairs().count();
        line("pairs of faults that struck", format!("{} of {pairs}", self.fault_pairs.len()));
        let leaks = format!("{} ({} % of its bound)", self.most_leaked, self.leak_percent);
        line("most leaked by one crash", leaks);
        line("I/O to write all afterwards", format!("{} % of its bound", self.liveness_percent));
        self.probe_lines(Probe::GUARANTEED, &mut line);
        out
    }
}

/// Pairs as a list: JSON has no keys but texts.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use crate::workload::FaultKind;

    type Pairs = BTreeMap<(FaultKind, FaultKind), u64>;

    pub(super) fn serialize<S: Serializer>(pairs: &Pairs, to: S) -> Result<S::Ok, S::Error> {
        pairs.iter().collect::<Vec<_>>().serialize(to)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Pairs, D::Error> {
        Vec::deserialize(from).map(|pairs| pairs.into_iter().collect())
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The figures of a run as one JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The subject under test.
    pub subject: String,
    /// What it was not asked, because it cannot do it.
    pub not_asked: Vec<String>,
    /// Device profile.
    pub profile: String,
    /// Seed of the run.
    pub seed: u64,
    /// Commit of the code, if it is known.
    pub commit: String,
    /// What was found: titles of cases.
    pub violations: Vec<String>,
    /// Cases run.
    pub cases: u64,
    /// Cases with at least two lives.
    pub long_cases: u64,
    /// Crash points passed.
    pub crash_points: u64,
    /// Crash states fully judged.
    pub states: u64,
    /// Of these, distinct.
    pub distinct_states: u64,
    /// Of these, left by a crash inside a repair.
    pub nested_states: u64,
    /// Fully judged states per second of one worker.
    pub states_per_second: f64,
    /// Mean number of allowed values.
    pub mean_allowed: f64,
    /// Share of guest units with exactly one allowed value.
    pub decided_share: f64,
    /// Cases that were run twice.
    pub repeated: u64,
    /// Probes and how often each was reached.
    pub probes: BTreeMap<&'static str, u64>,
    /// How each property was looked at.
    pub strategy: &'static str,
    /// Why the run went no further: `budget`, `interrupted`, `violation` or `broken`.
    pub ended: Ended,
    /// Seconds by the clock.
    pub seconds: f64,
}

impl Summary {
    /// The summary of a run.
    pub fn new(
        figures: &Figures,
        subject: &impl Subject,
        profile: String,
        seed: u64,
        violations: Vec<String>,
        ended: Ended,
    ) -> Self {
        let subject = &AnySubject::of(subject);
        Self {
            subject: subject.name(),
            not_asked: subject.capabilities().left_out(),
            profile,
            seed,
            commit: commit(),
            violations,
            cases: figures.cases,
            long_cases: figures.long_cases,
            crash_points: figures.crash_points,
            states: figures.states,
            distinct_states: figures.distinct_states,
            nested_states: figures.nested_states,
            states_per_second: figures.states_per_second(),
            mean_allowed: figures.mean_allowed(),
            decided_share: figures.decided_share(),
            repeated: figures.repeated,
            probes: Probe::GUARANTEED
                .iter()
                .chain(Probe::DAMAGED)
                .map(|probe| (probe.name(), figures.probes.count(*probe)))
                .collect(),
            strategy: "random",
            ended,
            seconds: figures.seconds,
        }
    }
}

/// The commit of the working tree, or "unknown" where git does not say.
pub fn commit() -> String {
    std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}
