//! A campaign past its findings, as a person sees it: each cause told and kept once, counted, and compared with what was known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::Args;

use super::keep::Keep;
use super::output::{complain, shown, write};
use super::shorten::{Progress, verdict};
use super::tell::{as_found, written};
use crate::any::AnySubject;
use crate::campaign::{self, Found, Report, Settings};
use crate::causes::{Findings, Look, Met, RootCause};
use crate::corpus::CorpusError;
use crate::figures::Figures;
use crate::minimise::Minimised;
use crate::promise;

/// The arguments.
#[derive(Args, Clone, Debug, Default)]
pub struct Onward {
    /// Go on past what is found; minimise and tell each cause once when the budget is used up.
    #[arg(long)]
    keep_going: bool,
    /// Causes that are known, as `--causes` wrote them: only others make the run fail, and one that is not met is said.
    #[arg(long, value_name = "FILE", requires = "keep_going")]
    known: Option<PathBuf>,
    /// Write the causes that were met to this file.
    #[arg(long, value_name = "FILE", requires = "keep_going")]
    causes: Option<PathBuf>,
}

/// How findings are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeping<'a> {
    /// The folder for case files; none: they are told and not kept.
    pub(super) folder: Option<&'a Path>,
    /// The name of the rules that the subject does without.
    pub(super) witness: Option<&'a str>,
    /// How long each is minimised.
    pub(super) limit: Duration,
}

impl Onward {
    /// Whether a campaign goes on past what it finds.
    pub(super) const fn is_wanted(&self) -> bool {
        self.keep_going
    }

    /// The same with nothing known and nothing written.
    pub(super) fn without_files(&self) -> Self {
        Self { keep_going: self.keep_going, known: None, causes: None }
    }

    /// The file that it writes.
    pub(super) fn file(&self) -> Option<&Path> {
        self.causes.as_deref()
    }

    /// Runs the campaign to the end of its budget, and tells causes from each other.
    ///
    /// # Errors
    /// If what is known cannot be read, or what was met cannot be written.
    pub(super) fn run(
        &self,
        subject: &AnySubject,
        settings: &Settings,
        keeping: &Keeping<'_>,
        progress: impl Fn(&Figures) + Sync,
    ) -> Result<(Report, Told), CorpusError> {
        if settings.damage.is_some() {
            let why = "what damage leads to is not told apart by cause";
            return Err(CorpusError::Case(format!("--keep-going: {why}")));
        }
        let known = self.known()?;
        let &Keeping { folder, witness, limit } = keeping;
        let case =
            |small: &Minimised| written(subject, small, settings.seed, witness.map(str::to_owned));
        let found = Mutex::new((Findings::default(), BTreeMap::new()));
        let onward = |one: &Found| {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            let (kept, forgotten) = found.0.add(one);
            if let Some(number) = kept {
                let raw = case(&as_found(&one.trial, &one.failure));
                found.1.insert(number, Keep::raw(folder, &raw));
            }
            let keep = forgotten.and_then(|number| found.1.remove(&number));
            keep.into_iter().for_each(Keep::forget);
            true
        };
        let report = campaign::run_past(subject, settings, progress, onward);
        let (findings, mut kept) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (all, first) = findings.count();
        if first > 0 {
            complain(format_args!(
                "{all} findings; {first} of them are shortened, each for at most {} s",
                limit.as_secs()
            ));
        }
        let mut shortening = Progress::new(limit);
        let causes = findings.causes(subject, limit, &mut |step| shortening.show(step));
        shortening.finish();

        let mut told = Told { met: causes.len(), ..Told::default() };
        for met in &causes {
            let is_known = known.iter().any(|known| met.cause.is_of(known));
            told.add(met, is_known);
            if !promise::is_broken(subject, &met.small.trial, &met.small.failure) {
                let beyond = promise::beyond(subject, settings.profile);
                told.text += &format!("    {beyond}\n");
            }
            let mut keeps = met.cases.iter().filter_map(|number| kept.remove(number));
            let first = keeps.next();
            keeps.for_each(Keep::forget);
            if is_known {
                first.into_iter().for_each(Keep::forget);
                continue;
            }
            told.text += &format!("    {}\n", verdict(met.ended, limit));
            let case = case(&met.small);
            if let Some(path) = first.and_then(|keep| keep.shortened(&case, met.ended)) {
                told.text += &format!("    kept as {}\n", shown(&path));
            }
            told.new.push(case.title);
        }
        let is_met = |known: &RootCause| causes.iter().any(|met| met.cause.is_of(known));
        for cause in known.iter().filter(|known| !is_met(known)) {
            told.text += &format!("known, and not met: {cause}\n");
        }
        if let Some(path) = &self.causes {
            let causes: Vec<&RootCause> = causes.iter().map(|met| &met.cause).collect();
            let mut text = serde_json::to_string_pretty(&causes).expect("words and lists of words");
            text.push('\n');
            write(path, text)?;
        }
        Ok((report, told))
    }

    fn known(&self) -> Result<Vec<RootCause>, CorpusError> {
        let Some(path) = &self.known else { return Ok(Vec::new()) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| CorpusError::Io { path: path.clone(), source })?;
        serde_json::from_str(&text)
            .map_err(|error| CorpusError::Case(format!("--known: {}: {error}", shown(path))))
    }
}

/// What there is to say of causes.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// How many were met.
    pub(super) met: usize,
    /// Titles of those that nobody knew.
    pub(super) new: Vec<String>,
    /// A paragraph for each.
    pub(super) text: String,
}

impl Told {
    fn add(&mut self, met: &Met, is_known: bool) {
        let which = if is_known { "known" } else { "new" };
        self.text += &format!("\n{which}: {}\n    first in case {}\n", met.cause, met.cases[0]);
        for (look, Look { minimised, of }) in &met.looks {
            self.text +=
                &format!("    {minimised} that looked like {look}, of which there are {of}\n");
        }
    }
}
