//! What has been shown, property by property, and how: the claims ledger.
//!
//! A green run can mean "all of them" or "a few of them", and a reader cannot see which. The ledger says it: exhaustive up to
//! so many requests, as certificates have it; random, so many states; or a sample of these.
//!
//! Invariant: a certificate is cited only for what it is of. That is one subject with what it does without, one profile, and one
//! source of subject and harness. One of the same subject and profile but of another source is named, and not counted; of others
//! there is no word. And nothing is claimed of a property that the subject is not judged by.

use std::fmt::Write as _;
use std::path::Path;

use model::finding::Property;

use crate::any::AnySubject;
use crate::capabilities::Capabilities;
use crate::corpus::{self, CorpusError};
use crate::explore::certificate::{self, Certificate};
use crate::figures::Figures;
use crate::probe::Probe;
use crate::subject::{Duties, Subject};
use crate::workload::Shape;

/// What certificates say of a subject under a profile.
#[derive(Clone, Debug)]
pub struct Cited {
    subject: String,
    profile: String,
    /// What tells the source of this run from others, if the subject can say.
    source: Option<Vec<(String, String)>>,
    duties: Duties,
    can: Capabilities,
    current: Vec<Certificate>,
    older: Vec<Certificate>,
}

impl Cited {
    /// What `kept` has of a subject under a profile.
    pub fn of(kept: Vec<Certificate>, subject: &impl Subject, profile: &str) -> Self {
        let subject = &AnySubject::of(subject);
        let (name, source) = (subject.name(), certificate::source_of(subject));
        let own = kept.into_iter().filter(|it| it.subject == name && it.profile == profile);
        let (current, older) = own.partition(|it| Some(&it.source) == source.as_ref());
        let (duties, can) = (subject.duties(), subject.capabilities());
        Self { subject: name, profile: profile.to_owned(), source, duties, can, current, older }
    }

    /// Whether all workloads of a certificate were judged by it.
    pub fn is_exhaustive(&self, property: Property) -> bool {
        self.current.iter().any(|certificate| certificate.properties.contains(&property))
    }

    /// What a certificate is of that this run is not.
    fn difference(&self, older: &Certificate) -> String {
        let Some(source) = &self.source else {
            return "the subject does not say which source it is of".to_owned();
        };
        let of = |name: &str| source.iter().find(|(part, _)| part == name);
        let other = older.source.iter().filter(|part| of(&part.0) != Some(part));
        let names: Vec<&str> = other.map(|(name, _)| name.as_str()).collect();
        match &names[..] {
            [] => "it says less of its source than this run".to_owned(),
            names => format!("of another source of {}", names.join(", ")),
        }
    }
}

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerLine {
    /// What is claimed to hold.
    pub property: Property,
    /// Whether it is judged at all: whether the subject is held to it, and can do what would show it.
    pub judged: bool,
    /// Whether all small workloads were judged by it.
    pub exhaustive: bool,
    /// How many states, or other occasions, a random campaign judged by it.
    pub random: u64,
    /// What was counted.
    pub of: &'static str,
}

/// The ledger of a random run.
pub fn claims(figures: &Figures, cited: &Cited) -> Vec<LedgerLine> {
    let claim = |property, random, of| LedgerLine {
        property,
        judged: cited.duties.judge(&cited.can, property),
        exhaustive: cited.is_exhaustive(property),
        random,
        of,
    };
    let states = |property| claim(property, figures.states, "states");
    let encrypted = figures.by_shape.get(Shape::Encrypted.name());
    vec![
        claim(Property::P0, figures.operations, "requests"),
        states(Property::P1),
        states(Property::P2),
        states(Property::P3),
        states(Property::P4),
        states(Property::P5),
        claim(Property::P6, figures.probes.count(Probe::CleanClose), "closes"),
        claim(Property::P7, figures.probes.count(Probe::GoesOn), "recoveries"),
        states(Property::P8),
        states(Property::P9),
        states(Property::P10),
        claim(Property::PCipher, encrypted.copied().unwrap_or(0), "states of encrypted images"),
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
        Property::P10 => "a size or a passphrase changes wholly or not",
        Property::PCipher => "no guest data is written in the clear",
    }
}

/// The ledger as lines for a person: the random run, what the certificates cover, and what none does.
pub fn table(figures: &Figures, cited: &Cited) -> String {
    let mut out = String::from("what has been shown\n");
    let claims = claims(figures, cited);
    for claim in &claims {
        let (name, promise) = (claim.property.to_string(), promise(claim.property));
        if !claim.judged {
            let _ = writeln!(out, "  {name:<8} {promise:<48} not judged, or not asked for");
            continue;
        }
        let how = if claim.exhaustive { "exhaustive (below), random" } else { "random" };
        let _ = writeln!(
            out,
            "  {name:<8} {promise:<48} {}: {how} {} {}",
            cited.profile, claim.random, claim.of
        );
    }
    for certificate in &cited.current {
        let _ = writeln!(out, "  exhaustive: {}", certificate.covers());
    }
    if cited.current.is_empty() {
        let Cited { subject, profile, .. } = cited;
        let _ = writeln!(
            out,
            "  exhaustive: nothing; no certificate is of {subject}, {profile} and this source"
        );
    } else {
        let missing = claims.iter().filter(|claim| claim.judged && !claim.exhaustive);
        let missing: Vec<String> = missing.map(|claim| claim.property.to_string()).collect();
        let _ = writeln!(
            out,
            "  not exhaustive: {}, I/O that fails, requests that are dropped, and what else the images above are not",
            missing.join(", ")
        );
    }
    for certificate in &cited.older {
        let why = cited.difference(certificate);
        let _ = writeln!(out, "  not counted, {why}: {}", certificate.covers());
    }
    out
}

/// The certificates in a folder, by file name; none if there is no such folder.
///
/// # Errors
/// If one cannot be read.
pub fn certificates(folder: &Path) -> Result<Vec<Certificate>, CorpusError> {
    let mut all = Vec::new();
    if !folder.exists() {
        return Ok(all);
    }
    for path in corpus::files(folder)? {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| CorpusError::Io { path: path.clone(), source })?;
        let certificate = serde_json::from_str(&text)
            .map_err(|error| CorpusError::Case(format!("{}: {error}", path.display())))?;
        all.push(certificate);
    }
    Ok(all)
}
