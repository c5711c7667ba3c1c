//! Case after case on all workers, until the budget is used up or something is found.
//!
//! ```text
//!   standing   cases 0 .. next: over, but for those in hand │ next .. : not begun
//!   again      those in hand, one after the other on one worker; then all from `next` on, on all workers
//! ```
//!
//! **Invariant.** What a standing says of a case it says at once: that it is over, its figures, and what it found.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::case::CrashImage;
use serde::{Deserialize, Serialize};

use super::case::{case_seed, first_difference, run_case};
use super::settings::{Budget, Settings};
use crate::any::AnySubject;
use crate::ended::Ended;
use crate::figures::Figures;
use crate::interrupt;
use crate::recover::Failure;
use crate::subject::Subject;
use crate::trial::Trial;
use crate::watch;

/// One case in so many is run twice, to see that it is a function of its seed.
const REPEAT_ONE_IN: u64 = 100;

/// A violation, with the way that leads to it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Number of the case in the campaign.
    pub case: u64,
    /// What went wrong.
    pub failure: Failure,
    /// How to see it again.
    pub trial: Trial,
    /// The image, if it was a damaged one; the trial then has no lives.
    pub image: Option<CrashImage>,
    /// Crash states that this worker had judged before.
    pub states: u64,
}

/// How far a campaign is: what is needed to go on with it in another process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Standing {
    /// The first case that no worker has begun.
    pub(crate) next: u64,
    /// Cases before that which are not over. Who goes on with them begins with these, one at a time.
    pub(crate) in_hand: BTreeSet<u64>,
    /// Of these, the one that runs by itself.
    pub(crate) alone: Option<u64>,
    /// Why it went no further, once it has, and why it proves nothing, if so.
    pub(crate) ended: Option<(Ended, Option<String>)>,
    /// The figures of those that are over, and of the time that they took.
    pub(crate) figures: Figures,
}

/// What a campaign did and found.
#[derive(Debug)]
pub struct Report {
    /// The figures.
    pub figures: Figures,
    /// The first violation, by case number.
    pub found: Option<Found>,
    /// Why the run proves nothing, if it does not: a case that is not a function of its seed.
    pub broken: Option<String>,
    /// Why it went no further.
    pub ended: Ended,
}

/// Runs a campaign to its first finding; `progress` is called now and then with the figures so far. A signal ends it after the
/// cases in hand.
pub fn run(
    subject: &impl Subject,
    settings: &Settings,
    progress: impl Fn(&Figures) + Sync,
) -> Report {
    let subject = &AnySubject::of(subject);
    run_past(subject, settings, progress, |_| false)
}

/// The same, past every finding of which `onward` says so; those are not reported.
pub fn run_past(
    subject: &impl Subject,
    settings: &Settings,
    progress: impl Fn(&Figures) + Sync,
    onward: impl Fn(&Found) -> bool + Sync,
) -> Report {
    run_from(subject, settings, Standing::default(), progress, onward, |_| {}, |_| {})
}

/// Goes on with a campaign from where it stood. `note` is called with where it stands before every case and at the end, and `account` with what was
/// found past which it goes, at once with that the case is over: both one at a time.
pub(crate) fn run_from(
    subject: &impl Subject,
    settings: &Settings,
    mut standing: Standing,
    progress: impl Fn(&Figures) + Sync,
    onward: impl Fn(&Found) -> bool + Sync,
    account: impl Fn(&Found) + Sync,
    note: impl Fn(&Standing) + Sync,
) -> Report {
    if let Some((ended, broken)) = standing.ended {
        return Report { figures: standing.figures, found: None, broken, ended };
    }
    let subject = &AnySubject::of(subject);
    #[expect(clippy::disallowed_methods, reason = "the budget of a campaign is time by the clock")]
    let now = Instant::now;
    let start = now();
    let used = Duration::from_secs_f64(standing.figures.seconds);
    let elapsed = || used + start.elapsed();
    if let Budget::Case(only) = settings.budget {
        standing.next = standing.next.max(only);
    }
    let stop = AtomicBool::new(false);
    let interrupted = AtomicBool::new(false);
    let before = standing.in_hand.clone();
    let shared = Mutex::new(Shared { standing, found: None, broken: None });
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        workers => workers,
    };
    // What is in hand is not brought to its end then: a case may take long. One that runs by itself had begun in time.
    let over = |alone: bool| {
        let time = !alone
            && match settings.budget {
                Budget::Time(limit) | Budget::States(_, limit) => elapsed() >= limit,
                Budget::Cases(_) | Budget::Case(_) => false,
            };
        time || interrupt::asked()
    };
    // The next case for a worker, if there is to be one; `alone`: one that was in hand before.
    let take = |alone: Option<u64>| {
        let mut shared = lock(&shared);
        let standing = &mut shared.standing;
        let number = alone.unwrap_or(standing.next);
        let done = alone.is_none()
            && match settings.budget {
                Budget::Time(limit) => elapsed() >= limit,
                Budget::Cases(count) => number >= count,
                Budget::Case(only) => number != only,
                Budget::States(count, limit) => {
                    standing.figures.states >= count || elapsed() >= limit
                }
            };
        if done || stop.load(Ordering::Relaxed) {
            return None;
        }
        if interrupt::asked() {
            interrupted.store(true, Ordering::Relaxed);
            return None;
        }
        standing.alone = alone;
        if alone.is_none() {
            standing.next += 1;
            standing.in_hand.insert(number);
        }
        standing.figures.seconds = elapsed().as_secs_f64();
        note(standing);
        Some(number)
    };
    let work = |reports: bool, alone: &BTreeSet<u64>| {
        let worker_start = now();
        let mut total = Figures::default();
        let (mut last, mut last_report) = (worker_start, worker_start);
        let mut alone = alone.iter().copied();
        loop {
            let again = alone.next();
            let Some(number) = take(again) else { break };
            let seed = case_seed(settings.seed, number);
            watch::doing(format!("case {number} of seed {}", settings.seed));
            let mut figures = Figures::default();
            let over = || over(again.is_some());
            let run = run_case(subject, seed, settings, &mut figures, &over);
            let mut broken = None;
            if run.whole && number.is_multiple_of(REPEAT_ONE_IN) {
                let second = run_case(subject, seed, settings, &mut Figures::default(), &over);
                figures.repeated += u64::from(second.whole);
                if second.whole && second.digest != run.digest {
                    let part = first_difference(&run.traces, &second.traces);
                    broken =
                        Some(format!("case {number} is not a function of its seed {seed}: {part}"));
                }
            }
            let ended = now();
            figures.worker_seconds = (ended - last).as_secs_f64();
            last = ended;
            total.add(&figures);
            let (image, states) = (run.image, total.states);
            let found = run.found.map(|(failure, trial)| Found {
                case: number,
                failure,
                trial,
                image,
                states,
            });
            let (past, found) = match found {
                Some(found) if onward(&found) => (Some(found), None),
                found => (None, found),
            };
            let mut shared = lock(&shared);
            past.iter().for_each(&account);
            if found.is_some() || broken.is_some() {
                if let Some(found) = found
                    && shared.found.as_ref().is_none_or(|first| number < first.case)
                {
                    shared.found = Some(found);
                }
                shared.broken = shared.broken.take().or(broken);
                stop.store(true, Ordering::Relaxed);
            }
            let standing = &mut shared.standing;
            standing.figures.add(&figures);
            standing.in_hand.remove(&number);
            standing.alone = None;
            drop(shared);
            if reports && last_report.elapsed() >= Duration::from_millis(500) {
                last_report = now();
                let mut figures = total.clone();
                figures.seconds = elapsed().as_secs_f64();
                progress(&figures);
            }
            if again.is_some() && alone.len() == 0 {
                break;
            }
        }
    };
    if !before.is_empty() {
        // Not here: the stack of another thread may be shorter, and one may have overflowed.
        std::thread::scope(|scope| {
            scope.spawn(|| work(true, &before));
        });
    }
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(|| work(false, &BTreeSet::new()));
        }
        work(true, &BTreeSet::new());
    });
    let Shared { mut standing, found, broken } =
        shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    standing.figures.seconds = elapsed().as_secs_f64();
    let ended = match (&found, &broken) {
        (Some(_), _) => Ended::Violation,
        (None, Some(_)) => Ended::Broken,
        (None, None) if interrupted.into_inner() => Ended::Interrupted,
        (None, None) => Ended::Budget,
    };
    standing.in_hand.clear();
    standing.ended = Some((ended, broken.clone()));
    note(&standing);
    Report { figures: standing.figures, found, broken, ended }
}

/// What workers share.
struct Shared {
    standing: Standing,
    found: Option<Found>,
    broken: Option<String>,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a case of a campaign found, once more.
pub(crate) fn find_again(subject: &AnySubject, settings: &Settings, number: u64) -> Option<Found> {
    watch::doing(format!("what case {number} of seed {} found", settings.seed));
    let mut figures = Figures::default();
    let seed = case_seed(settings.seed, number);
    let run = run_case(subject, seed, settings, &mut figures, &|| false);
    let (image, states) = (run.image, figures.states);
    let (failure, trial) = run.found?;
    Some(Found { case: number, failure, trial, image, states })
}
