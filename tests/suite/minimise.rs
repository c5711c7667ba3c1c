//! What minimising calls shortest is: no one thing can be taken away from it.

use std::time::Duration;

use model::op::Op;
use qcow2_crashtest::corpus;
use qcow2_crashtest::ended::Ended;
use qcow2_crashtest::life::Order;
use qcow2_crashtest::minimise::{Signature, minimise, search};
use qcow2_crashtest::replay::{replay, subject_of};
use qcow2_crashtest::subject::Qcow2Core;
use qcow2_crashtest::trial::{self, Survivors, Trial};

/// The trial with one thing less, for each thing; not what `minimise` tries, but written from what it promises.
fn one_less(trial: &Trial) -> Vec<(String, Trial)> {
    let mut all = Vec::new();
    let mut less = |what: String, change: &dyn Fn(&mut Trial)| {
        let mut smaller = trial.clone();
        change(&mut smaller);
        all.push((what, smaller));
    };
    for (l, life) in trial.lives.iter().enumerate() {
        if trial.lives.len() > 1 {
            less(format!("life {l}"), &|trial| drop(trial.lives.remove(l)));
        }
        for t in 0..life.tasks.len() {
            if life.tasks.len() > 1 {
                less(format!("task {t}"), &|trial| drop(trial.lives[l].tasks.remove(t)));
            }
            for (o, &op) in life.tasks[t].iter().enumerate() {
                less(format!("{op:?}"), &|trial| {
                    trial.lives[l].tasks[t].remove(o);
                });
                for shorter in [shorter(op, 0), shorter(op, 512)].into_iter().flatten() {
                    less(format!("{shorter:?}"), &|trial| trial.lives[l].tasks[t][o] = shorter);
                }
            }
        }
        for step in 0..life.steps.len() {
            less(format!("step {step}"), &|trial| {
                trial.lives[l].steps.remove(step);
            });
        }
        for fault in 0..life.faults.0.len() {
            less(format!("fault {fault}"), &|trial| {
                trial.lives[l].faults.0.remove(fault);
            });
        }
        if life.dropped.is_some() {
            less("dropped".to_owned(), &|trial| trial.lives[l].dropped = None);
        }
        if let Survivors::Choices(choices) = &life.leaf {
            for at in (0..choices.len()).filter(|&at| choices[at] != 0) {
                let mut fewer = choices.clone();
                fewer[at] = 0;
                less(format!("choice {at}"), &|trial| {
                    trial.lives[l].leaf = Survivors::Choices(fewer.clone());
                });
            }
        }
    }
    all
}

/// A range without its first unit, or without its last.
fn shorter(op: Op, skip: u64) -> Option<Op> {
    let mut shorter = op;
    match &mut shorter {
        Op::Write { offset, length, .. }
        | Op::WriteCompressed { offset, length, .. }
        | Op::WriteZeroes { offset, length, .. }
        | Op::Discard { offset, length }
        | Op::Uncover { offset, length }
        | Op::Preallocate { offset, length, .. }
        | Op::Read { offset, length } => {
            *offset += skip;
            *length = length.checked_sub(512).filter(|&left| left > 0)?;
            Some(shorter)
        }
        Op::AddPassphrase { .. }
        | Op::RemovePassphrase { .. }
        | Op::Grow { .. }
        | Op::Shrink { .. }
        | Op::Flush
        | Op::Reopen => None,
    }
}

/// The failing run of a kept case, and how it fails.
fn failing(name: &str) -> (Qcow2Core, Trial, qcow2_crashtest::recover::Failure) {
    let case = corpus::load(&corpus::folder().join(name)).expect("the file is a case");
    let subject = subject_of(&case, name, true).expect("subject and witness exist");
    let shown = replay(&subject, &case, name).expect("it can be run");
    (subject, shown.trial.expect("it is a trial"), shown.failure.expect("it fails"))
}

fn fails_as_it_is(subject: &Qcow2Core, trial: &Trial, wanted: &Signature) -> bool {
    let exact = trial::run(subject, trial).ok().and_then(|outcome| outcome.failure);
    exact.is_some_and(|(_, failure)| wanted.matches(&failure))
}

fn fails(subject: &Qcow2Core, trial: &Trial, wanted: &Signature) -> bool {
    fails_as_it_is(subject, trial, wanted) || search(subject, trial, wanted).is_some()
}

/// Goal: shortest means that nothing can be taken away. Method: minimise kept cases, then take away every single
/// thing.
#[test]
#[cfg_attr(not(turn = "9"), ignore = "its turn is at another commit; CI=1 runs all")]
fn nothing_can_be_taken_away_from_what_is_called_shortest() {
    for name in [
        "without-data-before-mapping.json",
        "without-copy-before-switch.json",
        "without-dereference-before-reuse.json",
        "without-failed-flush-is-final.json",
        "without-all-before-clean-in-repair.json",
        "without-settle-before-retry.json",
    ] {
        let (subject, trial, failure) = failing(name);
        let limit = Duration::from_secs(300);
        let shrunk = minimise(&subject, &trial, &failure, limit, &mut |_| {});
        assert_eq!(shrunk.ended, Ended::Complete, "{name}");
        let wanted = Signature::of(&failure);
        let least = shrunk.found.trial;
        assert!(matches!(least.lives[0].order, Order::Choices(_)), "{name}");
        assert!(fails(&subject, &least, &wanted), "{name}: it does not fail any more");
        for (what, less) in one_less(&least) {
            // A search chooses what survives by itself, so without a choice only the trial as it is counts.
            let still = match what.starts_with("choice") {
                true => fails_as_it_is(&subject, &less, &wanted),
                false => fails(&subject, &less, &wanted),
            };
            assert!(!still, "{name}: {what} is not needed in {least:#?}");
        }
    }
}

/// Goal: a budget ends it, with what was reached until then. Method: no time at all.
#[test]
fn without_time_it_does_not_claim_to_be_shortest() {
    let (subject, trial, failure) = failing("without-data-before-mapping.json");
    let shrunk = minimise(&subject, &trial, &failure, Duration::ZERO, &mut |_| {});
    assert_eq!((shrunk.ended, shrunk.tries), (Ended::Budget, 0));
    assert!(fails(&subject, &shrunk.found.trial, &Signature::of(&failure)));
}
