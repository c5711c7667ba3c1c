//! What may fail: one plan, asked once at each submission.
//!
//! Invariant: a plan is a function of the I/Os that it has been shown and of its own seed or data, so a fault that was
//! found at random can be written down as data. Latency is no fault: the schedule completes I/O when it likes.

use serde::{Deserialize, Serialize};

use crate::profile::FlushFailure;
use crate::rng::{Ratio, Rng};
use crate::trace::{Io, IoKind};

/// What goes wrong with one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// EIO. Any unit of a write may still land. A flush fails retry-safe.
    Eio,
    /// ENOSPC: the first units of a write were written, the others never will be. Reads and flushes are not affected.
    Enospc {
        /// How many units of it were written.
        landed: u32,
    },
    /// A flush fails with this meaning; any other I/O as with EIO.
    Flush(FlushFailure),
}

/// Decides which I/O fails.
pub trait FaultPlan {
    /// The fault of an I/O that is being submitted.
    fn fault(&mut self, io: &Io) -> Option<Fault>;
}

impl<P: FaultPlan + ?Sized> FaultPlan for Box<P> {
    fn fault(&mut self, io: &Io) -> Option<Fault> {
        (**self).fault(io)
    }
}

/// Nothing fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl FaultPlan for NoFaults {
    fn fault(&mut self, _: &Io) -> Option<Fault> {
        None
    }
}

/// Which I/O a planned fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FaultAt {
    /// The I/O with this index among all.
    Index(u64),
    /// The I/O with this index, counted from 0, among those of its kind.
    Nth {
        /// Of which kind.
        kind: IoKind,
        /// Which of these.
        nth: u64,
    },
    /// This I/O of its kind and all after it: a device that has gone for good, or a full one.
    From {
        /// Of which kind.
        kind: IoKind,
        /// From which of these on.
        nth: u64,
    },
}

/// A fault as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedFault {
    /// Where it strikes.
    pub at: FaultAt,
    /// What it does.
    pub fault: Fault,
}

/// A list of faults; the first one that matches an I/O strikes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Planned(pub Vec<PlannedFault>);

impl FaultPlan for Planned {
    fn fault(&mut self, io: &Io) -> Option<Fault> {
        let strikes = |planned: &&PlannedFault| match planned.at {
            FaultAt::Index(index) => io.index == index,
            FaultAt::Nth { kind, nth } => io.kind == kind && io.nth == nth,
            FaultAt::From { kind, nth } => io.kind == kind && io.nth >= nth,
        };
        self.0.iter().find(strikes).map(|planned| planned.fault)
    }
}

/// How often [`RandomFaults`] strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRates {
    /// EIO of a read.
    pub read: Ratio,
    /// EIO of a write, zeroing, discard or length change.
    pub write: Ratio,
    /// ENOSPC of a write, zeroing or length change, after any part of it.
    pub no_space: Ratio,
    /// Failure of a flush.
    pub flush: Ratio,
    /// What a failed flush means.
    pub failure: FlushFailure,
}

/// Faults at random, by integer ratios.
#[derive(Clone, Debug)]
pub struct RandomFaults {
    rng: Rng,
    rates: FaultRates,
}

impl RandomFaults {
    /// The faults of `seed`.
    pub fn new(seed: u64, rates: FaultRates) -> Self {
        Self { rng: Rng::new(seed), rates }
    }
}

impl FaultPlan for RandomFaults {
    fn fault(&mut self, io: &Io) -> Option<Fault> {
        let Self { rng, rates } = self;
        match io.kind {
            IoKind::Read => rng.chance(rates.read).then_some(Fault::Eio),
            IoKind::Flush => rng.chance(rates.flush).then_some(Fault::Flush(rates.failure)),
            _ if rng.chance(rates.write) => Some(Fault::Eio),
            IoKind::Discard => None,
            _ => rng
                .chance(rates.no_space)
                .then(|| Fault::Enospc { landed: rng.below(io.units().max(1)) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, FaultAt, FaultPlan, FaultRates, Planned, PlannedFault, RandomFaults};
    use crate::profile::FlushFailure;
    use crate::rng::Ratio;
    use crate::trace::{Io, IoKind};

    fn io(index: u64, nth: u64, kind: IoKind) -> Io {
        Io { index, nth, kind, offset: 0, len: 2048, task: None }
    }

    #[test]
    fn planned_faults_strike_where_they_say() {
        let json = r#"[
            {"at": {"index": 3}, "fault": "eio"},
            {"at": {"nth": {"kind": "flush", "nth": 1}}, "fault": {"flush": "clean-marked"}},
            {"at": {"from": {"kind": "write", "nth": 2}}, "fault": {"enospc": {"landed": 1}}}
        ]"#;
        let mut plan: Planned = serde_json::from_str(json).unwrap();
        assert_eq!(plan.fault(&io(3, 0, IoKind::Read)), Some(Fault::Eio));
        assert_eq!(plan.fault(&io(4, 0, IoKind::Flush)), None);
        let failure = Some(Fault::Flush(FlushFailure::CleanMarked));
        assert_eq!(plan.fault(&io(5, 1, IoKind::Flush)), failure);
        assert_eq!(plan.fault(&io(6, 1, IoKind::Write)), None);
        for nth in 2..5 {
            let full = plan.fault(&io(7 + nth, nth, IoKind::Write));
            assert_eq!(full, Some(Fault::Enospc { landed: 1 }));
        }
        let again = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!(plan, again);
        assert!(serde_json::from_str::<PlannedFault>(r#"{"at":{"index":1},"fault":"x"}"#).is_err());
        assert_eq!(plan.0[0].at, FaultAt::Index(3));
    }

    #[test]
    fn random_faults_keep_to_their_rates_and_kinds() {
        let rates = FaultRates {
            read: Ratio::NEVER,
            write: Ratio::NEVER,
            no_space: Ratio::new(1, 2),
            flush: Ratio::new(1, 4),
            failure: FlushFailure::Sticky,
        };
        let mut plan = RandomFaults::new(11, rates);
        let mut count = |kind| (0..1000).filter(|&n| plan.fault(&io(n, n, kind)).is_some()).count();
        assert_eq!(count(IoKind::Read), 0);
        assert_eq!(count(IoKind::Discard), 0);
        assert!((430..570).contains(&count(IoKind::Write)));
        assert!((190..310).contains(&count(IoKind::Flush)));
    }
}
