//! What kept files say, as tables: certificates, and what noticed each mutant.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use clap::ValueEnum;
use qcow2_core::Mutant;

use super::output::say;
use super::status::ExitStatus;
use crate::corpus::{self, CorpusError};
use crate::explore::certificate::Certificate;
use crate::{ledger, mutants};

/// Which files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeptFiles {
    /// What was explored exhaustively.
    Certificates,
    /// What noticed each mistake that can be put into the library.
    Mutants,
}

impl KeptFiles {
    /// Shows those in the corpus at `folder`.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn show(self, folder: &Path) -> Result<ExitStatus, CorpusError> {
        say(&match self {
            Self::Certificates => certificates(&folder.join("certificates"))?,
            Self::Mutants => of_mutants(&mutants::load(&folder.join("mutants/outcomes.json"))?),
        });
        Ok(ExitStatus::Passed)
    }
}

fn certificates(folder: &Path) -> Result<String, CorpusError> {
    let mut table = format!(
        "{:<22} {:<11} {:<13} {:>7} {:<13} {:>6} {:>9} {:>9} {:>10} {:>11} {:>15}\n",
        "certificate",
        "requests",
        "clusters",
        "version",
        "refcount bits",
        "images",
        "workloads",
        "orders",
        "leaves",
        "memory hits",
        "distinct states"
    );
    for (path, certificate) in corpus::files(folder)?.iter().zip(ledger::certificates(folder)?) {
        let name = path.file_name().expect("files have names").to_string_lossy();
        let worlds = || certificate.worlds.iter().filter(|world| world.infeasible.is_none());
        let totals = certificate.totals;
        let _ = writeln!(
            table,
            "{name:<22} {:<11} {:<13} {:>7} {:<13} {:>6} {:>9} {:>9} {:>10} {:>11} {:>15}",
            requests(&certificate),
            joined(certificate.requests.iter().map(|(size, _)| *size)),
            joined(worlds().map(|world| world.geometry.version.into())),
            joined(worlds().map(|world| 1 << world.geometry.refcount_order)),
            worlds().count(),
            totals.workloads,
            if totals.schedules == 0 { "-".to_owned() } else { totals.schedules.to_string() },
            totals.leaves,
            totals.memo_hits,
            totals.distinct_states,
        );
    }
    Ok(table)
}

/// How many requests a workload has at most, and of how many tasks.
fn requests(certificate: &Certificate) -> String {
    match (certificate.departures, certificate.delays) {
        (Some(_), _) => "1 beside 1".to_owned(),
        (None, Some(_)) => format!("{} beside 1", certificate.operations),
        (None, None) => certificate.operations.to_string(),
    }
}

/// Each of them once, ascending.
fn joined(numbers: impl Iterator<Item = u64>) -> String {
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join("/")
}

fn of_mutants(kept: &mutants::Kept) -> String {
    let mut table = format!("{:<42} {:<26} {:>9}  what noticed\n", "mutant", "area", "states");
    let mut areas: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    let mut states = Vec::new();
    for (name, line) in kept {
        let (noticed, of) = areas.entry(&line.area).or_default();
        *of += 1;
        let by = if line.noticed.is_empty() {
            let reason = Mutant::from_name(name).and_then(Mutant::reason);
            format!("nothing: {}", reason.unwrap_or("nobody says why"))
        } else {
            *noticed += 1;
            states.push(line.states);
            let how = if line.exhaustive { " (exhaustive)" } else { "" };
            format!("{}{how}", line.noticed.join(", "))
        };
        let _ = writeln!(table, "{name:<42} {:<26} {:>9}  {by}", line.area, line.states);
    }
    for (area, (noticed, of)) in &areas {
        let _ = writeln!(table, "{area}: {noticed} of {of} noticed");
    }
    states.sort_unstable();
    if let Some(median) = states.get(states.len() / 2) {
        let (noticed, of) = (states.len(), kept.len());
        let _ =
            writeln!(table, "all: {noticed} of {of} noticed, half of these within {median} states");
    }
    table
}
