//! What has been shown, property by property, and how: the claims ledger.
//!
//! A green run can mean "all of them" or "a few of them", and a reader cannot see which. The ledger says it: exhaustive up to
//! so many requests, as the certificates in the corpus have it; random, so many states; or a sample of these.

use std::fmt::Write as _;

use model::finding::Property;

use crate::corpus::{self, CorpusError};
use crate::explore::certificate::Certificate;
use crate::figures::Figures;
use crate::probe::Probe;

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What is claimed to hold.
    pub property: Property,
    /// Whether all small workloads were judged by it.
    pub exhaustive: bool,
    /// How many states, or other occasions, a random campaign judged by it.
    pub random: u64,
    /// What was counted.
    pub of: &'static str,
}

/// The ledger of a random run.
pub fn claims(figures: &Figures) -> Vec<Claim> {
    let states =
        |property| Claim { property, exhaustive: true, random: figures.states, of: "states" };
    let random = |property, random, of| Claim { property, exhaustive: false, random, of };
    vec![
        Claim { random: figures.operations, of: "requests", ..states(Property::P0) },
        states(Property::P1),
        states(Property::P2),
        states(Property::P3),
        states(Property::P4),
        states(Property::P5),
        Claim {
            random: figures.probes.count(Probe::CleanClose),
            of: "closes",
            ..states(Property::P6)
        },
        random(Property::P7, figures.probes.count(Probe::GoesOn), "recoveries"),
        states(Property::P8),
        random(Property::P9, figures.states, "states"),
        states(Property::P10),
    ]
}

/// What a property promises.
const fn promise(property: Property) -> &'static str {
    match property {
        Property::P0 => "reads return what is there",
        Property::P1 => "what was flushed is there after a power cut",
        Property::P2 => "nothing is there that was not written there",
        Property::P3 => "looking again and repairing change nothing",
        Property::P4 => "tables and refcounts agree",
        Property::P5 => "repair is a function, cut short or not",
        Property::P6 => "a clean close is clean, and work goes on",
        Property::P7 => "everything ends, and all can be written again",
        Property::P8 => "errors and claims are honest",
        Property::P9 => "one crash leaks little",
        Property::P10 => "a growth happens whole or not at all",
    }
}

/// The ledger as lines for a person: the random run, and what the certificates cover.
pub fn table(figures: &Figures, profile: &str, certificates: &[Certificate]) -> String {
    let mut out = String::from("what has been shown\n");
    let covered: Vec<String> = certificates.iter().map(Certificate::covers).collect();
    for claim in claims(figures) {
        let how = if claim.exhaustive { "exhaustive (below), random" } else { "random" };
        let _ = writeln!(
            out,
            "  {:<4} {:<48} {profile}: {how} {} {}",
            claim.property,
            promise(claim.property),
            claim.random,
            claim.of
        );
    }
    for line in covered {
        let _ = writeln!(out, "  exhaustive: {line}");
    }
    out
}

/// The certificates of the corpus, by file name.
///
/// # Errors
/// If one cannot be read.
pub fn certificates() -> Result<Vec<Certificate>, CorpusError> {
    let mut all = Vec::new();
    for path in corpus::files(&corpus::folder().join("certificates"))? {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| CorpusError::Io { path: path.clone(), source })?;
        let certificate = serde_json::from_str(&text)
            .map_err(|error| CorpusError::Case(format!("{}: {error}", path.display())))?;
        all.push(certificate);
    }
    Ok(all)
}
