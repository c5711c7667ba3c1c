//! Operation sequences by proptest, which shrinks them: without a power cut against the reference disk, and with one.

use std::ops::ControlFlow;

use faultfs::fault::Planned;
use faultfs::profile::{DiscardMode, Profile};
use model::build::Initial;
use model::case::{Device, Opening};
use model::op::{Durability, Encryption, Geometry, Op, PASSPHRASES, Preallocation};
use model::payload::COMPRESSIBLE;
use proptest::collection::vec;
use proptest::prelude::*;
use qcow2_crashtest::leaf::LeafChooser;
use qcow2_crashtest::life::{self, Order};
use qcow2_crashtest::probe::Probes;
use qcow2_crashtest::recover::Bench;
use qcow2_crashtest::subject::{Qcow2Core, Session};
use qcow2_crashtest::trial::{self, At, Survivors, Trial, TrialLife, cluster_units};

const UNITS: u64 = 96;

/// Any operation; numbers are made to fit when it is drawn, so every subsequence of a list is a list.
fn op() -> impl Strategy<Value = Op> {
    let range = (0..UNITS, 1..=16u64).prop_map(|(unit, units)| (unit * 512, units * 512));
    prop_oneof![
        6 => (range.clone(), 1..1000u32, any::<bool>()).prop_map(|((offset, length), id, through)| {
            let durability = if through { Durability::Through } else { Durability::Cached };
            Op::Write { offset, length, id, durability }
        }),
        2 => (range.clone(), 1..1000u32, any::<bool>()).prop_map(|((offset, length), id, small)| {
            let id = if small { id | COMPRESSIBLE } else { id };
            Op::WriteCompressed { offset, length, id }
        }),
        2 => (range.clone(), any::<bool>())
            .prop_map(|((offset, length), unmap)| Op::WriteZeroes { offset, length, unmap }),
        2 => range.clone().prop_map(|(offset, length)| Op::Discard { offset, length }),
        1 => range.clone().prop_map(|(offset, length)| Op::Uncover { offset, length }),
        1 => range.clone().prop_map(|(offset, length)| {
            Op::Preallocate { offset, length, how: Preallocation::Metadata }
        }),
        3 => range.prop_map(|(offset, length)| Op::Read { offset, length }),
        3 => Just(Op::Flush),
        1 => (UNITS..2 * UNITS).prop_map(|units| Op::Grow { to: units * 512 }),
        1 => (1..=PASSPHRASES).prop_map(|id| Op::AddPassphrase { id }),
        1 => (1..=PASSPHRASES).prop_map(|id| Op::RemovePassphrase { id }),
        1 => Just(Op::Reopen),
    ]
}

fn geometry() -> impl Strategy<Value = Geometry> {
    let encryption = prop_oneof![8 => Just(None), 1 => Just(Some(Encryption::Luks))];
    let drawn = (prop_oneof![Just(9u32), Just(10), Just(12)], any::<bool>(), encryption);
    drawn.prop_map(|(cluster_bits, lazy_refcounts, encryption)| Geometry {
        lazy_refcounts,
        encryption,
        ..Geometry::plain(cluster_bits, UNITS * 512)
    })
}

fn trial(geometry: Geometry, ops: Vec<Op>, initial: Initial, order: u64, leaf: u64) -> Trial {
    Trial {
        discard: DiscardMode::Either,
        geometry,
        initial,
        device: Device::default(),
        open: Opening {
            cache_pages: 4,
            growth_step: geometry.cluster_size(),
            ..Opening::new("qcow2-core")
        },
        profile: Profile::TornLength,
        lives: vec![TrialLife {
            tasks: vec![ops],
            order: Order::Seed(order),
            faults: Planned::default(),
            dropped: None,
            at: At::End,
            leaf: Survivors::Seed(leaf),
            steps: Vec::new(),
            unrecovered: false,
        }],
    }
}

fn config() -> ProptestConfig {
    // Failures become case files in the corpus; proptest's own memory would be a second one.
    ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// Goal: every read returns what was written last, and a clean close leaves a clean image. Method: run the whole
    /// sequence; the reference disk compares each read, the judge what is left.
    #[test]
    fn reads_and_clean_closes_agree_with_the_reference_disk(
        geometry in geometry(),
        ops in vec(op(), 1..40),
        order in any::<u64>(),
    ) {
        let trial = trial(geometry, ops, Initial::Fragmented, order, 0);
        let outcome = trial::run(&Qcow2Core::default(), &trial).expect("the geometry is feasible");
        prop_assert!(outcome.failure.is_none(), "{:?}", outcome.failure);
    }

    /// Goal: a power cut after any event of any sequence is survived. Method: judge one crash state at each event.
    #[test]
    fn every_event_may_be_the_last(
        geometry in geometry(),
        ops in vec(op(), 1..16),
        leaf in any::<u64>(),
    ) {
        let trial = trial(geometry, ops, Initial::Leaky, 7, leaf);
        let subject = Qcow2Core::default();
        let (disk, guest) = trial.start(&subject).expect("feasible");
        let session = Session { ..trial.session() };
        let mut bench = Bench::new(subject, session, trial.profile);
        let life = &trial.lives[0];
        let script = life.script(session);
        let mut failure = None;
        let mut probes = Probes::default();
        let end = life::run(&subject, disk, guest, &script, &mut Probes::default(), |moment| {
            let mut seen = moment.guest.clone();
            seen.crash();
            let chooser = LeafChooser::random(leaf ^ moment.event, cluster_units(&geometry)).share();
            let mut asked = chooser.clone();
            let crashed = moment.sim.with_disk(|disk| disk.crash(trial.profile, &mut asked));
            match bench.judge_crash(crashed, &seen, &[], &chooser, &mut probes) {
                Ok(_) => ControlFlow::Continue(()),
                Err(other) => {
                    failure = Some((moment.event, other));
                    ControlFlow::Break(())
                }
            }
        });
        prop_assert!(failure.is_none() && end.failure.is_none(), "{failure:?} {:?}", end.failure);
    }
}
