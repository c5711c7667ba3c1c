//! A campaign that goes on past the end of its process: a subject that overflows its stack, aborts, or never comes back from a call ends
//! the process that it is in, and the cases after it would never be run.
//!
//! ```text
//!   supervisor   starts a process ───────── it died ── was it at one case alone? ──yes──> that case ends processes, and is left out
//!                    ^                                        └──no──> those in hand are run again, one at a time
//!                    └──────────────────────────────────────────────────────┘
//!   process      reads where the campaign stands, goes on, and notes where it stands:      cases over, their figures, what they found
//! ```
//!
//! The process is the same program with the same arguments. It notes where the campaign stands before it begins a case: what was in hand when it
//! dies is all that is done again, and the result is that of a process that nothing has ended.
//!
//! **Invariant.** Each process either comes further than the one before or is the last: a case that ends one alone is never run again, those that
//! do not are over, and what ends one while it is shortened is left as it was found.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signal_hook::low_level::signal_name;

use crate::bystander;
use crate::campaign::Standing;
use crate::interrupt;
use crate::watch;

/// In the folder that both share: where the campaign stands.
const NOTES: &str = "notes.json";

/// The exit status of a supervisor that cannot go on: of a run that proves nothing.
const DIED: u8 = 2;

/// That of one that was asked to end, and knows of something that was found.
const FOUND: u8 = 1;

/// How a program ends that panics: not the subject, whose panics are caught.
const PANICKED: Death = Death::Exit(101);

/// How often the supervisor looks whether its process lives.
const TICK: Duration = Duration::from_millis(20);

/// How a process ended that did not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Death {
    /// A call into the subject did not come back, see [`watch`].
    Stuck,
    /// A signal.
    Signal(i32),
    /// The subject ended it, with this exit status.
    Exit(i32),
}

impl Death {
    fn of(status: ExitStatus) -> Self {
        match (status.signal(), status.code()) {
            (Some(signal), _) => Self::Signal(signal),
            (None, Some(code)) if code == i32::from(watch::STUCK) => Self::Stuck,
            (None, code) => Self::Exit(code.unwrap_or_default()),
        }
    }

    /// In the words of a cause.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Stuck => "a call that does not come back".to_owned(),
            Self::Signal(signal) => {
                signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned)
            }
            Self::Exit(code) => format!("exit status {code}"),
        }
    }
}

/// What a case is run again for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Run {
    /// To find again what a process before has found in it.
    Again,
    /// To shorten that, and to see what it has for a cause.
    Shorter,
    /// To see whether it breaks a promise.
    Promise,
}

/// What a process leaves to the next one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Notes {
    /// Which campaign of the process it is of: there may be one after the other.
    pub(crate) campaign: usize,
    pub(crate) standing: Standing,
    /// What was found: by how it looks, how many there are, and the cases that are to be shortened.
    pub(crate) found: BTreeMap<String, (u64, BTreeSet<u64>)>,
    /// Files of these cases as they were found.
    pub(crate) kept: BTreeMap<u64, String>,
    /// Cases that end a process, and how.
    pub(crate) deadly: BTreeMap<u64, Death>,
    /// The process has died while it was at these cases, which are run again by themselves.
    pub(crate) suspects: Option<(Death, BTreeSet<u64>)>,
    /// The same of those none of which ends a process by itself.
    pub(crate) unexplained: Vec<(Death, BTreeSet<u64>)>,
    /// The case of which what was found is run again, and what for.
    pub(crate) running: Option<(u64, Run)>,
    /// Cases that were shortened: each as the text of a case file, and whether nothing can be taken away from it.
    pub(crate) short: BTreeMap<u64, (String, bool)>,
    /// The same of those where that ends a process.
    pub(crate) deadly_runs: BTreeSet<(u64, Run)>,
}

impl Notes {
    fn is_something_found(&self) -> bool {
        let Self { found, deadly, suspects, unexplained, .. } = self;
        !(found.is_empty() && deadly.is_empty() && unexplained.is_empty()) || suspects.is_some()
    }

    /// Takes in that the process died, and says what the next one does otherwise; none if there is nothing.
    fn died(&mut self, how: Death) -> Option<String> {
        let name = how.name();
        if let Some((case, run)) = self.running.take() {
            let what = match run {
                Run::Again => "looking again for what case",
                Run::Shorter => "shortening what case",
                Run::Promise => "holding against its promise what case",
            };
            let told = format!(
                "{what} {case} found has ended the process ({name}): it is left as it was found"
            );
            return self.deadly_runs.insert((case, run)).then_some(told);
        }
        let standing = &mut self.standing;
        if let Some(case) = standing.alone.take() {
            standing.in_hand.remove(&case);
            self.deadly.insert(case, how);
            if self.suspects.as_ref().is_some_and(|(first, _)| *first == how) {
                self.suspects = None;
            }
            return Some(format!("case {case} by itself has ended the process ({name})"));
        }
        if standing.in_hand.is_empty() || self.suspects.is_some() {
            return None;
        }
        self.suspects = Some((how, standing.in_hand.clone()));
        let cases: Vec<String> = standing.in_hand.iter().map(u64::to_string).collect();
        Some({
            let cases = cases.join(", ");
            format!(
                "the process has ended ({name}): what it was at is run one at a time, case {cases}"
            )
        })
    }
}

/// What the processes before this one have noted of its campaign of this number; none in a process without a supervisor. Of a campaign that is over
/// there is nothing.
pub(crate) fn notes(campaign: usize) -> Option<Notes> {
    let notes = read(bystander::folder()?).filter(|notes| notes.campaign == campaign);
    Some(notes.unwrap_or_else(|| Notes { campaign, ..Notes::default() }))
}

/// Whether the processes before this one were past the first of its campaigns.
pub(crate) fn is_past_the_first() -> bool {
    bystander::folder().and_then(read).is_some_and(|notes| notes.campaign > 0)
}

/// Notes where the campaign stands.
pub(crate) fn note(notes: &Notes) {
    let Some(folder) = bystander::folder() else { return };
    let text = serde_json::to_vec(notes).expect("numbers and words");
    // Nothing but the next process reads it: it need not survive a power cut.
    let new = folder.join("new");
    if let Err(error) = fs::write(&new, text).and_then(|()| fs::rename(&new, folder.join(NOTES))) {
        // The next process would do all of it again, and so would the one after it.
        say(&format!("{}: {error}: a campaign cannot go on without its notes", new.display()));
        bystander::end();
        std::process::exit(i32::from(DIED));
    }
}

fn say(what: &str) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}

fn read(folder: &Path) -> Option<Notes> {
    serde_json::from_slice(&fs::read(folder.join(NOTES)).ok()?).ok()
}

/// Runs this program under a supervisor, if it is one that called [`bystander::begin`] and that has none: its exit status. To be called with signals
/// [listened to](interrupt::listen).
///
/// # Errors
/// If the program cannot be started again.
pub(crate) fn supervise() -> io::Result<Option<u8>> {
    if !bystander::is_wanted() {
        return Ok(None);
    }
    if bystander::folder().is_some() {
        interrupt::follow(io::stdin());
        return Ok(None);
    }
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    loop {
        let mut this = bystander::supervised(folder)?;
        this.args(env::args_os().skip(1)).stdin(Stdio::piped());
        let status = wait(this.spawn()?)?;
        let Some(at) = bystander::left_in(folder)? else {
            return Ok(Some(status.code().map_or(DIED, |code| code as u8)));
        };
        let how = Death::of(status);
        if how == PANICKED {
            say("the harness itself has panicked: this run proves nothing");
            return Ok(Some(DIED));
        }
        let mut notes = read(folder).unwrap_or_default();
        if let Some(signal) = interrupt::signal() {
            return Ok(Some(if notes.is_something_found() { FOUND } else { signal.code() }));
        }
        if notes.standing.ended.is_none() {
            // It has not noted what its last cases took.
            let noted = fs::metadata(folder.join(NOTES)).and_then(|it| it.modified()).ok();
            let since = noted.and_then(|noted| noted.elapsed().ok()).unwrap_or_default();
            notes.standing.figures.seconds += since.as_secs_f64();
        }
        let Some(next) = notes.died(how) else {
            let (how, at) = (how.name(), at.join("; "));
            say(&format!("the process has ended ({how}), and no case that can be left out: {at}"));
            return Ok(Some(DIED));
        };
        say(&next);
        let text = serde_json::to_vec(&notes).expect("numbers and words");
        fs::write(folder.join(NOTES), text)?;
    }
}

/// Waits for a process, and tells it of a signal that came here.
fn wait(mut process: Child) -> io::Result<ExitStatus> {
    let mut pipe = process.stdin.take();
    let mut told = false;
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok(status);
        }
        if let (Some(signal), false, Some(pipe)) = (interrupt::signal(), told, &mut pipe) {
            told = true;
            let _ = pipe.write_all(&[signal.byte()]);
        }
        std::thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Death, Notes, Run};
    use crate::campaign::Standing;

    /// Goal: after each death the next process does something otherwise, and what ends one is found among what was in hand. Method: two cases in
    /// hand; the second of them by itself; one that is being shortened; nothing in hand.
    #[test]
    fn what_ends_a_process_is_found() {
        let standing = Standing { next: 6, in_hand: BTreeSet::from([3, 5]), ..Standing::default() };
        let mut notes = Notes { standing, ..Notes::default() };
        let told = notes.died(Death::Signal(6)).unwrap();
        assert!(told.contains("(SIGABRT)") && told.ends_with("case 3, 5"), "{told}");
        assert!(notes.deadly.is_empty() && notes.standing.in_hand.len() == 2);

        notes.standing.in_hand.remove(&3);
        notes.standing.alone = Some(5);
        let told = notes.died(Death::Stuck).unwrap();
        assert!(told.contains("case 5 by itself"), "{told}");
        let (how, _) = notes.suspects.take().expect("it does not explain the other death");
        assert_eq!(how, Death::Signal(6));
        assert!(notes.standing.in_hand.is_empty() && notes.standing.alone.is_none());
        assert_eq!(notes.deadly.iter().collect::<Vec<_>>(), [(&5, &Death::Stuck)]);

        notes.running = Some((2, Run::Shorter));
        assert!(notes.died(Death::Exit(3)).unwrap().contains("what case 2 found"));
        assert!(notes.deadly_runs.contains(&(2, Run::Shorter)) && notes.running.is_none());
        assert_eq!(notes.died(Death::Exit(3)), None);
        // Twice at the same: nothing that was noted leads further.
        notes.running = Some((2, Run::Shorter));
        assert_eq!(notes.died(Death::Exit(3)), None);
        notes.standing.in_hand = BTreeSet::from([7]);
        assert!(notes.died(Death::Exit(3)).is_some());
        assert_eq!(notes.died(Death::Exit(3)), None);
    }

    /// Goal: notes come back as they were written. Method: a standing with figures of every kind.
    #[test]
    fn notes_come_back() {
        let mut notes = Notes { campaign: 1, ..Notes::default() };
        let figures = &mut notes.standing.figures;
        (figures.cases, figures.seconds) = (7, 0.1);
        figures.by_initial.insert("fresh".into(), 3);
        figures.by_cluster.insert(1024, 3);
        let kinds = crate::workload::FaultKind::ALL;
        figures.fault_pairs.insert((kinds[0], kinds[1]), 2);
        figures.probes.hit(crate::probe::Probe::WriteThrough);
        notes.found.insert("P1 lost-write".to_owned(), (9, BTreeSet::from([1, 4])));
        notes.deadly.insert(3, Death::Signal(11));
        let text = serde_json::to_vec(&notes).unwrap();
        assert_eq!(serde_json::from_slice::<Notes>(&text).unwrap(), notes);
    }
}
