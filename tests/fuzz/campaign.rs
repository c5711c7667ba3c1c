//! Random cases under every kind of power cut: our own code is silent, and code with a rule taken away is not.

use std::time::Duration;

use faultfs::profile::Profile;
use model::build::Initial;
use model::finding::Property;
use model::op::{DataFile, Encryption, Op};
use qcow2_core::Rule;
use qcow2_crashtest::attack::{self, Strategy};
use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::console::{self, ExitStatus, Outputs};
use qcow2_crashtest::corpus;
use qcow2_crashtest::explore::alphabet::{Symbol, World, initials, worlds};
use qcow2_crashtest::explore::{self, ExploreSettings};
use qcow2_crashtest::figures::Figures;
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::sabotage::Target;
use qcow2_crashtest::subject::Qcow2Core;
use qcow2_crashtest::workload::{FaultKind, Scope, Shape, plan};

use crate::turn;

/// The value of an environment variable, or what it is to be without one.
///
/// # Panics
/// If it is set and no value of its kind.
fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Err(_) => default,
        Ok(text) => match text.parse() {
            Ok(value) => value,
            Err(_) => panic!("{name}={text:?} is not a value of its kind"),
        },
    }
}

fn settings(cases: u64) -> Settings {
    Settings {
        seed: 1,
        profile: Profile::TornLength,
        damage: None,
        scope: Scope::default(),
        budget: Budget::Cases(cases),
        workers: 0,
    }
}

/// Everything in an optimised build; in others so many parts, one at each commit.
fn share<T>(all: impl Iterator<Item = T>, parts: usize) -> impl Iterator<Item = T> {
    turn::share(all, if cfg!(debug_assertions) { parts } else { 1 })
}

/// So many cases of a campaign; a tenth of them where only a share is done.
fn smoke(cases: u64) -> u64 {
    if share(0..2, 2).count() == 2 { cases } else { cases / 10 }
}

/// Goal: no violation, and figures that say what that is worth. Method: the campaign in `EVIDENCE.md`.
#[test]
fn no_power_cut_loses_anything() {
    let seconds = setting("CAMPAIGN_SECONDS", if cfg!(debug_assertions) { 5 } else { 60 });
    let settings = Settings {
        seed: setting("CAMPAIGN_SEED", 1),
        profile: setting("CAMPAIGN_PROFILE", Profile::TornLength),
        budget: Budget::Time(Duration::from_secs(seconds)),
        ..settings(0)
    };
    let outputs = Outputs {
        corpus: Some(corpus::folder()),
        certificates: Some(corpus::folder().join("certificates")),
        all_probes: seconds >= 60 && settings.profile == Profile::TornLength,
        ..Outputs::default()
    };
    let status =
        console::run(&Qcow2Core::default(), &settings, &outputs).expect("results can be written");
    assert_eq!(status, ExitStatus::Passed);
}

/// Goal: the harness can fail. Method: the same campaign on code that maps clusters before their data is durable.
#[test]
fn the_canary_dies() {
    let broken = Qcow2Core::without([Rule::DataBeforeMapping.name()]).expect("the rule exists");
    let report = campaign::run(&broken, &settings(200), |_| {});
    assert!(report.found.is_some(), "{}", report.figures.table());
}

/// Goal: no write order and no flush is there for nothing, and none is untested. Method: take each away in turn, and look for
/// the damage in every small workload, where that can show it, else in random ones. `cargo campaign sensitivity` and `barriers` do all of them.
#[test]
fn whatever_is_taken_away_is_missed() {
    for target in share(Target::all(), 16) {
        let strategies = [(Strategy::Exhaustive, 10), (Strategy::Random, 300)];
        let missed = strategies.into_iter().any(|(strategy, seconds)| {
            let limit = Duration::from_secs(seconds);
            let outcome = attack::run(target, true, strategy, 1, limit);
            outcome.is_some_and(|outcome| outcome.failure.is_some())
        });
        assert!(missed, "{} survived", target.name());
    }
}

/// Goal: what kills broken code is what was taken away and not the attack. Method: the same attacks with nothing taken away, for
/// the attacks that are more than plain workloads.
#[test]
fn the_special_attacks_find_nothing_in_whole_code() {
    let special = Target::all().filter(|target| !attack::attack_on(*target).1.is_empty());
    for target in share(special, 8) {
        for strategy in [Strategy::Exhaustive, Strategy::Random] {
            let limit = Duration::from_secs(2);
            if let Some(outcome) = attack::run(target, false, strategy, 1, limit) {
                assert!(outcome.states > 0);
                let failure = outcome.failure;
                assert!(failure.is_none(), "{}: {failure:?}", target.name());
            }
        }
    }
}

/// Goal: weaker profiles are silent too. Method: a few cases of each.
#[test]
fn every_profile_is_silent() {
    for profile in Profile::ALL {
        let report = campaign::run(
            &Qcow2Core::default(),
            &Settings { profile, ..settings(smoke(60)) },
            |_| {},
        );
        assert!(report.found.is_none(), "{profile}: {:?}", report.found);
        assert!(report.figures.states > 0);
    }
}

/// Goal: no kind of fault, alone or beside another, loses anything. Method: a few cases of each, with that fault in every life.
#[test]
fn every_kind_of_fault_is_silent() {
    for kind in FaultKind::ALL {
        let scope = Scope { fault: Some(kind), ..Scope::default() };
        let cases = smoke(60);
        let report =
            campaign::run(&Qcow2Core::default(), &Settings { scope, ..settings(cases) }, |_| {});
        assert!(report.found.is_none(), "{kind}: {:?}", report.found);
        let met =
            report.figures.fault_pairs.keys().any(|&(one, other)| one == kind || other == kind);
        assert!(met || cases < 60, "{kind} beside nothing");
    }
}

/// Goal: no part of the format loses anything. Method: a few cases of each shape; of a resize that a power cut met, both sizes.
#[test]
fn every_part_is_silent() {
    for shape in Shape::ALL {
        let scope = Scope { shape: Some(shape), ..Scope::default() };
        let cases = smoke(60);
        let settings = Settings { scope, ..settings(cases) };
        let report = campaign::run(&Qcow2Core::default(), &settings, |_| {});
        assert!(report.found.is_none(), "{shape}: {:?}", report.found);
        let Figures { states, probes, .. } = report.figures;
        assert!(60 * states > 500 * cases, "{shape}: {states} states");
        if cases < 60 {
            continue;
        }
        if matches!(shape, Shape::Shrinking | Shape::Growing) {
            for size in [Probe::ResizeSmaller, Probe::ResizeLarger] {
                let count = probes.count(size);
                assert!(count >= 10, "{shape}: {size} met {count} times");
            }
        }
        if shape == Shape::Passphrases {
            for outcome in [Probe::PassphraseThere, Probe::PassphraseNotThere] {
                let count = probes.count(outcome);
                assert!(count >= 10, "{shape}: {outcome} met {count} times");
            }
        }
    }
}

/// Goal: no power cut in a small workload of any alphabet loses anything. Method: all workloads of one request of each, from every image, and
/// of two from one.
#[test]
fn every_alphabet_is_silent() {
    type Change = fn(World) -> World;
    let plain: Change = |world| world;
    let alphabets: [(&[Symbol], u32, Change); 11] = [
        (&Symbol::ALL, 1024, plain),
        (&Symbol::RESIZING, 1024, plain),
        (&Symbol::ALL, 512, World::over_layer),
        (&Symbol::AHEAD, 1024, |world| world.over_layer().copying()),
        (&Symbol::COMPRESSING, 4096, plain),
        (&Symbol::DATA_FILES, 1024, |world| world.beside(DataFile::Plain)),
        (&Symbol::DATA_FILES, 4096, |world| world.beside(DataFile::Raw)),
        (&Symbol::ALL, 512, |world| world.encrypted(Encryption::Aes)),
        (&Symbol::ALL, 4096, |world| world.over_layer().encrypted(Encryption::Luks)),
        (&Symbol::PASSPHRASES, 4096, |world| world.encrypted(Encryption::Luks)),
        (&Symbol::SUBCLUSTERS, 16384, |world| world.with_subclusters().over_layer()),
    ];
    let turn: Vec<usize> = share(0..alphabets.len(), alphabets.len()).collect();
    for (at, (alphabet, cluster, change)) in alphabets.into_iter().enumerate() {
        let cheap: Vec<_> =
            initials().into_iter().filter(|it| *it != Initial::RefcountTableOneShort).collect();
        let small = [(1, &cheap[..]), (2, &[Initial::Fragmented])];
        // Of each alphabet the single requests, and of one the pairs too.
        for (operations, initials) in small.into_iter().take(1 + usize::from(turn.contains(&at))) {
            let worlds = worlds(&[cluster], &[false, true], initials);
            let worlds = worlds.into_iter().map(change).collect();
            let alphabet = alphabet.to_vec();
            let settings = ExploreSettings { alphabet, ..ExploreSettings::new(worlds, operations) };
            let report = explore::run(&Qcow2Core::default(), &settings, |_, _, _, _| {});
            let alphabet = &settings.alphabet;
            assert!(report.found.is_none(), "{alphabet:?}: {:?}", report.found);
            let leaves: u64 = report.worlds.iter().map(|world| world.counts.leaves).sum();
            assert!(report.complete && leaves > 100, "{alphabet:?}: {leaves} leaves");
        }
    }
}

/// Goal: after a failed sync nothing is acknowledged that could be lost. Method: with a failed flush of one meaning, or a
/// write-through write that fails in its sync, in every life, code that goes on after it is caught, and where the device will not write again what it lost, it is caught with an
/// acknowledged write missing.
#[test]
fn whoever_goes_on_after_a_failed_sync_is_caught() {
    let broken = Qcow2Core::without([Rule::FailedFlushIsFinal.name()]).expect("the rule exists");
    let kinds = [
        (FaultKind::FlushRetrySafe, false),
        (FaultKind::FlushCleanMarked, true),
        (FaultKind::FlushSticky, true),
        (FaultKind::WriteThroughFailed, true),
    ];
    for (kind, lost) in share(kinds.into_iter(), 4) {
        let scope = Scope { fault: Some(kind), ..Scope::default() };
        // The first violation of a campaign may be another consequence: stale bytes in what was mapped too early.
        let as_wanted = (1..=12).any(|seed| {
            let settings = Settings { seed, scope, ..settings(3000) };
            let report = campaign::run(&broken, &settings, |_| {});
            let found = report.found.unwrap_or_else(|| panic!("{kind}, seed {seed}"));
            !lost || found.failure.violation.property == Property::P1
        });
        assert!(as_wanted, "{kind}: no acknowledged write was missed");
    }
}

/// Goal: a campaign is a function of its seed, whatever the number of workers.
#[test]
fn the_same_seed_gives_the_same_campaign() {
    let run = |workers| {
        let mut figures =
            campaign::run(&Qcow2Core::default(), &Settings { workers, ..settings(40) }, |_| {})
                .figures;
        (figures.seconds, figures.worker_seconds) = (0.0, 0.0);
        figures
    };
    assert_eq!(run(1), run(2));
}

/// Goal: the generator produces what it is there for: every initial image, cluster size and kind of request, and requests
/// that overlap. Method: count over many plans.
#[test]
fn the_generator_reaches_what_it_should() {
    let all = Capabilities::everything();
    let drawn = |seed| plan(campaign::case_seed(1, seed), &Scope::default(), &all);
    let plans: Vec<_> = (0..2000).map(drawn).collect();
    for initial in Initial::ALL {
        assert!(plans.iter().any(|plan| plan.initial == initial), "{initial:?}");
    }
    for bits in [9, 10, 12] {
        let share = plans.iter().filter(|plan| plan.geometry.cluster_bits == bits).count();
        assert!(share > 200, "{share} of 2000 plans have clusters of 2^{bits} bytes");
    }
    let kind = |op: &Op| match op {
        Op::Write { .. } => "write",
        Op::WriteCompressed { .. } => "write-compressed",
        Op::WriteZeroes { .. } => "write-zeroes",
        Op::Discard { .. } => "discard",
        Op::Uncover { .. } => "uncover",
        Op::Preallocate { .. } => "preallocate",
        Op::Read { .. } => "read",
        Op::Flush => "flush",
        Op::Grow { .. } => "grow",
        Op::Shrink { .. } => "shrink",
        Op::AddPassphrase { .. } => "add-passphrase",
        Op::RemovePassphrase { .. } => "remove-passphrase",
        Op::Reopen => "reopen",
    };
    let tasks = plans.iter().flat_map(|plan| &plan.lives).flat_map(|life| &life.tasks);
    let mut kinds: Vec<&str> = tasks.flatten().map(kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), 13, "{kinds:?}");
    let long = plans.iter().filter(|plan| plan.lives.len() > 1).count();
    assert!(long >= 1000, "{long} of 2000 plans have two lives");
    let lives = plans.iter().flat_map(|plan| &plan.lives);
    let faulty = lives.clone().filter(|life| !life.faults.is_empty()).count();
    let dropped = lives.clone().filter(|life| life.dropped.is_some()).count();
    let busy = lives.filter(|life| life.tasks.len() == 4).count();
    assert!(faulty > 200 && dropped > 200 && busy > 200, "{faulty} {dropped} {busy}");
}
