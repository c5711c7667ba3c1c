//! Case after case on all workers, until the budget is used up or something is found.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::case::CrashImage;

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
    let subject = &AnySubject::of(subject);
    #[expect(clippy::disallowed_methods, reason = "the budget of a campaign is time by the clock")]
    let now = Instant::now;
    let start = now();
    let next = AtomicU64::new(match settings.budget {
        Budget::Case(number) => number,
        _ => 0,
    });
    let stop = AtomicBool::new(false);
    let interrupted = AtomicBool::new(false);
    let states = AtomicU64::new(0);
    let shared = Mutex::new((Figures::default(), None::<Found>, None::<String>));
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        workers => workers,
    };
    // What is in hand is not brought to its end then: a case may take long.
    let over = || {
        let time = match settings.budget {
            Budget::Time(limit) | Budget::States(_, limit) => start.elapsed() >= limit,
            Budget::Cases(_) | Budget::Case(_) => false,
        };
        time || interrupt::asked()
    };
    let work = |reports: bool| {
        let worker_start = now();
        let mut total = Figures::default();
        let mut last_report = worker_start;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let done = match settings.budget {
                Budget::Time(limit) => start.elapsed() >= limit,
                Budget::Cases(count) => number >= count,
                Budget::Case(only) => number != only,
                Budget::States(count, limit) => {
                    states.load(Ordering::Relaxed) >= count || start.elapsed() >= limit
                }
            };
            if done || stop.load(Ordering::Relaxed) {
                break;
            }
            if interrupt::asked() {
                interrupted.store(true, Ordering::Relaxed);
                break;
            }
            let seed = case_seed(settings.seed, number);
            watch::doing(format!("case {number} of seed {}", settings.seed));
            let mut figures = Figures::default();
            let run = run_case(subject, seed, settings, &mut figures, &over);
            let mut broken = None;
            if run.whole && number.is_multiple_of(REPEAT_ONE_IN) {
                let again = run_case(subject, seed, settings, &mut Figures::default(), &over);
                figures.repeated += u64::from(again.whole);
                if again.whole && again.digest != run.digest {
                    let part = first_difference(&run.traces, &again.traces);
                    broken =
                        Some(format!("case {number} is not a function of its seed {seed}: {part}"));
                }
            }
            states.fetch_add(figures.states, Ordering::Relaxed);
            total.add(&figures);
            let (image, states) = (run.image, total.states);
            let found = run.found.map(|(failure, trial)| Found {
                case: number,
                failure,
                trial,
                image,
                states,
            });
            let found = found.filter(|found| !onward(found));
            if found.is_some() || broken.is_some() {
                let mut shared = shared.lock().expect("no worker panics with the lock");
                if let Some(found) = found
                    && shared.1.as_ref().is_none_or(|first| number < first.case)
                {
                    shared.1 = Some(found);
                }
                shared.2 = shared.2.take().or(broken);
                stop.store(true, Ordering::Relaxed);
            }
            if reports && last_report.elapsed() >= Duration::from_millis(500) {
                last_report = now();
                let mut figures = total.clone();
                figures.seconds = start.elapsed().as_secs_f64();
                figures.worker_seconds = worker_start.elapsed().as_secs_f64();
                progress(&figures);
            }
        }
        total.worker_seconds = worker_start.elapsed().as_secs_f64();
        shared.lock().expect("no worker panics with the lock").0.add(&total);
    };
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(|| work(false));
        }
        work(true);
    });
    let (mut figures, found, broken) = shared.into_inner().expect("no worker panics with the lock");
    figures.seconds = start.elapsed().as_secs_f64();
    let ended = match (&found, &broken) {
        (Some(_), _) => Ended::Violation,
        (None, Some(_)) => Ended::Broken,
        (None, None) if interrupted.into_inner() => Ended::Interrupted,
        (None, None) => Ended::Budget,
    };
    Report { figures, found, broken, ended }
}
