//! A campaign past its findings, as a person sees it: each cause told and kept once, counted, and compared with what was known.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::Args;

use super::journal::Journal;
use super::keep::Keep;
use super::output::{complain, shown, write};
use super::shorten::{Progress, verdict};
use super::status::ExitStatus;
use super::tell::{as_found, written};
use crate::any::AnySubject;
use crate::campaign::{self, Found, Report, Settings, Standing};
use crate::causes::{Findings, Look, Met, RootCause};
use crate::corpus::{self, CorpusError};
use crate::ended::Ended;
use crate::figures::Figures;
use crate::interrupt;
use crate::minimise::{Minimised, Shrunk, minimise};
use crate::promise;
use crate::supervisor::{self, Death, Notes, Run};

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
    /// How many campaigns this process has run before.
    #[arg(skip)]
    campaign: usize,
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

    /// The same for a second campaign of this process, with nothing known and nothing written.
    pub(super) fn without_files(&self) -> Self {
        Self { keep_going: self.keep_going, campaign: 1, ..Self::default() }
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
        let mut journal = Journal::new(self.campaign);
        let notes = &journal.notes;
        let kept: BTreeMap<u64, Keep<'_>> = notes
            .kept
            .iter()
            .map(|(&case, path)| (case, Path::new(path)))
            .filter(|(_, path)| path.exists())
            .map(|(case, path)| (case, Keep::again(folder, path)))
            .collect();
        let found = Mutex::new((Findings::of(&notes.found), kept));
        let account = |one: &Found| {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            let (kept, forgotten) = found.0.add(one);
            if let Some(number) = kept {
                let raw = case(&as_found(&one.trial, &one.failure));
                found.1.insert(number, Keep::raw(folder, &raw));
            }
            let keep = forgotten.and_then(|number| found.1.remove(&number));
            keep.into_iter().for_each(Keep::forget);
        };
        let standing = notes.standing.clone();
        let writing = Mutex::new(&mut journal);
        let note = |standing: &Standing| {
            let mut journal = writing.lock().unwrap_or_else(PoisonError::into_inner);
            if journal.is_read() {
                let found = found.lock().unwrap_or_else(PoisonError::into_inner);
                journal.notes.standing = standing.clone();
                journal.suspects_ran(standing);
                journal.notes.found = found.0.noted();
                let path = |(&case, keep): (&u64, &Keep<'_>)| {
                    Some((case, keep.path()?.to_str()?.to_owned()))
                };
                journal.notes.kept = found.1.iter().filter_map(path).collect();
                journal.write();
            }
        };
        let report =
            campaign::run_from(subject, settings, standing, progress, |_| true, account, note);
        let (mut findings, mut kept) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let gone = findings.find(|number| {
            let may = !interrupt::asked() && journal.begins(number, Run::Again);
            if may { campaign::find_again(subject, settings, number) } else { None }
        });
        let (all, first) = findings.count();
        if first > 0 {
            complain(format_args!(
                "{all} findings; {first} of them are shortened, each for at most {} s",
                limit.as_secs()
            ));
        }
        let mut shortening = Progress::new(limit);
        let causes = findings.causes_by(subject, &mut |found| {
            let raw = as_found(&found.trial, &found.failure);
            if !journal.begins(found.case, Run::Shorter) {
                return (raw, Ended::Broken);
            }
            if let Some(done) = journal.shortened(subject, found.case) {
                return done;
            }
            let show = &mut |step| shortening.show(step);
            let Shrunk { found: small, ended, .. } =
                minimise(subject, &raw.trial, &raw.failure, limit, show);
            journal.is_short(found.case, || corpus::text_of(&case(&small)), ended);
            (small, ended)
        });
        shortening.finish();
        let mut breaks_no_promise = |met: &Met| {
            let Minimised { trial, failure } = &met.small;
            journal.begins(met.cases[0], Run::Promise)
                && !promise::is_broken(subject, trial, failure)
        };
        let beyond: Vec<bool> = causes.iter().map(&mut breaks_no_promise).collect();
        journal.is_through();
        let deadly = deadly(&journal.notes);

        let mut told = Told { met: causes.len() + deadly.len() + gone.len(), ..Told::default() };
        for (cause, cases) in &deadly {
            let is_known = known.iter().any(|known| cause.is_of(known));
            told.add_deadly(cause, cases, is_known);
        }
        for (look, case) in gone {
            let path = kept.remove(&case).and_then(|keep| keep.path().map(shown));
            let why = match journal.notes.deadly_runs.contains(&(case, Run::Again)) {
                true => "looking for it again ends the process",
                false if interrupt::asked() => "not looked for again: interrupted",
                false => "which does not show it again",
            };
            told.add_gone(&look, case, why, path);
        }
        for (met, beyond) in causes.iter().zip(beyond) {
            let is_known = known.iter().any(|known| met.cause.is_of(known));
            told.add(met, is_known);
            if beyond {
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
        let all =
            || deadly.iter().map(|(cause, _)| cause).chain(causes.iter().map(|met| &met.cause));
        let is_met = |known: &RootCause| all().any(|cause| cause.is_of(known));
        for cause in known.iter().filter(|known| !is_met(known)) {
            told.text += &format!("known, and not met: {cause}\n");
        }
        if let Some(path) = &self.causes {
            let causes: Vec<&RootCause> = all().collect();
            let mut text = serde_json::to_string_pretty(&causes).expect("words and lists of words");
            text.push('\n');
            write(path, text)?;
        }
        Ok((report, told))
    }

    /// Whether processes before this one had come to the second of two campaigns.
    pub(super) fn is_past_the_first() -> bool {
        supervisor::is_past_the_first()
    }

    /// Runs the program under a supervisor, so that what ends a process does not end the campaign. What it came to; none in the process that the
    /// supervisor has started, which is to do it. To be called with signals [listened to](super::listen).
    ///
    /// # Errors
    /// If the system refuses.
    pub fn supervise(&self) -> Result<Option<ExitStatus>, CorpusError> {
        if !self.keep_going {
            return Ok(None);
        }
        let code = supervisor::supervise()
            .map_err(|error| CorpusError::Case(format!("--keep-going: a process: {error}")))?;
        Ok(code.map(ExitStatus::of_code))
    }

    fn known(&self) -> Result<Vec<RootCause>, CorpusError> {
        let Some(path) = &self.known else { return Ok(Vec::new()) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| CorpusError::Io { path: path.clone(), source })?;
        serde_json::from_str(&text)
            .map_err(|error| CorpusError::Case(format!("--known: {}: {error}", shown(path))))
    }
}

/// What cases in which the process ended have for a cause, and those cases.
fn deadly(notes: &Notes) -> Vec<(RootCause, Vec<u64>)> {
    let mut cases: BTreeMap<(Death, &str), BTreeSet<u64>> = BTreeMap::new();
    for (&case, &how) in &notes.deadly {
        cases.entry((how, "")).or_default().insert(case);
    }
    for (how, among) in &notes.unexplained {
        cases.entry((*how, ", and by none of these cases alone")).or_default().extend(among);
    }
    if let Some((how, among)) = &notes.suspects {
        cases.entry((*how, ", by one of these cases or by all")).or_default().extend(among);
    }
    let cause = |(how, by): (Death, &str)| {
        let seen_as = if how == Death::Stuck { "P7 no-return" } else { "P8 process-ended" };
        RootCause::of_process(seen_as, how.name() + by)
    };
    cases.into_iter().map(|(how, cases)| (cause(how), cases.into_iter().collect())).collect()
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
    fn add_gone(&mut self, look: &str, case: u64, why: &str, path: Option<String>) {
        let kept = path.map_or_else(String::new, |path| format!("; kept as it was found: {path}"));
        self.text += &format!("\nnew: {look}\n    in case {case}, {why}{kept}\n");
        self.new.push(format!("{look} in case {case}, {why}"));
    }

    fn add_deadly(&mut self, cause: &RootCause, cases: &[u64], is_known: bool) {
        let which = if is_known { "known" } else { "new" };
        let list: Vec<String> = cases.iter().map(u64::to_string).collect();
        self.text += &format!("\n{which}: {} ({})\n", cause.seen_as, cause.wrong);
        self.text += &format!("    in case {}; `run --case N` is one by itself\n", list.join(", "));
        if !is_known {
            self.new.push(format!("{}: {} in case {}", cause.seen_as, cause.wrong, cases[0]));
        }
    }

    fn add(&mut self, met: &Met, is_known: bool) {
        let which = if is_known { "known" } else { "new" };
        self.text += &format!("\n{which}: {}\n    first in case {}\n", met.cause, met.cases[0]);
        for (look, Look { minimised, of }) in &met.looks {
            self.text +=
                &format!("    {minimised} that looked like {look}, of which there are {of}\n");
        }
    }
}
