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
    /// ENOSPC: the first units of a write were written, the others never will be. What needs no space (reads, discards,
    /// flushes) is not affected.
    Enospc {
        /// How many units of it were written.
        landed: u32,
    },
    /// EIO after a part of a read or write, which a backend that loops over short transfers cannot go on from: the first
    /// units were transferred, into the buffer or like those of a completed cached write; the others never will be. A
    /// flush fails retry-safe, and a change of length did not happen.
    Short {
        /// How many units of it were transferred.
        landed: u32,
    },
    /// A flush fails with this meaning; any other I/O as with EIO.
    Flush(FlushFailure),
    /// EIO of a write, zeroing, discard or length change, any unit of which may land at any moment until the storage is
    /// settled, over newer writes too; from then on as with [`Fault::Eio`].
    Late,
    /// EIO of a write-through write in its sync: its data was transferred, and it and what had completed before it fare as
    /// with a flush that fails with this meaning.
    Through(FlushFailure),
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
    /// These consecutive I/Os of whatever kind: with [`Fault::Enospc`], a device that is full until somebody makes room.
    Span {
        /// Index of the first among all.
        first: u64,
        /// How many.
        count: u64,
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

impl Fault {
    /// Whether it can do anything to an I/O of this kind.
    pub const fn concerns(self, kind: IoKind) -> bool {
        match self {
            Self::Enospc { .. } => !matches!(kind, IoKind::Read | IoKind::Discard | IoKind::Flush),
            Self::Late => kind.is_update(),
            Self::Through(_) => matches!(kind, IoKind::WriteThrough),
            Self::Eio | Self::Short { .. } | Self::Flush(_) => true,
        }
    }
}

impl PlannedFault {
    /// Whether it strikes this I/O, if nothing before it in a list does.
    pub fn strikes(&self, io: &Io) -> bool {
        self.fault.concerns(io.kind)
            && match self.at {
                FaultAt::Index(index) => io.index == index,
                FaultAt::Nth { kind, nth } => io.kind == kind && io.nth == nth,
                FaultAt::Span { first, count } => io.index >= first && io.index - first < count,
                FaultAt::From { kind, nth } => io.kind == kind && io.nth >= nth,
            }
    }
}

impl Planned {
    /// The fault of this list that strikes an I/O.
    pub fn striking(&self, io: &Io) -> Option<&PlannedFault> {
        self.0.iter().find(|planned| planned.strikes(io))
    }
}

impl FaultPlan for Planned {
    fn fault(&mut self, io: &Io) -> Option<Fault> {
        self.striking(io).map(|planned| planned.fault)
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
    /// A read, write or zeroing that is cut short.
    pub short: Ratio,
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
        let transfers = !matches!(io.kind, IoKind::Flush | IoKind::Discard | IoKind::SetLen);
        if transfers && rng.chance(rates.short) {
            return Some(Fault::Short { landed: rng.below(io.units().max(1)) });
        }
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
    use crate::disk::File;
    use crate::profile::FlushFailure;
    use crate::rng::Ratio;
    use crate::trace::{Io, IoKind};

    fn io(index: u64, nth: u64, kind: IoKind) -> Io {
        Io { index, nth, kind, offset: 0, len: 2048, task: None, file: File::First }
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
    fn a_full_device_has_room_again_and_still_reads_and_flushes() {
        let span = FaultAt::Span { first: 2, count: 3 };
        let full = Fault::Enospc { landed: 0 };
        let eio = PlannedFault { at: FaultAt::Index(4), fault: Fault::Eio };
        let mut plan = Planned(vec![PlannedFault { at: span, fault: full }, eio]);
        let kinds = [IoKind::Write, IoKind::SetLen, IoKind::WriteZeroes, IoKind::WriteThrough];
        for kind in kinds {
            let struck: Vec<u64> =
                (0..8).filter(|&index| plan.fault(&io(index, 0, kind)).is_some()).collect();
            assert_eq!(struck, [2, 3, 4], "{kind:?}");
        }
        // What needs no space is left for the next fault in the list.
        for kind in [IoKind::Read, IoKind::Discard, IoKind::Flush] {
            assert_eq!(plan.fault(&io(3, 0, kind)), None);
            assert_eq!(plan.fault(&io(4, 0, kind)), Some(Fault::Eio));
        }
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Planned>(&json).unwrap(), plan);
    }

    #[test]
    fn each_fault_is_written_as_it_always_was() {
        use FlushFailure::{CleanMarked, RetrySafe, Sticky};
        for (fault, text) in [
            (Fault::Eio, r#""eio""#),
            (Fault::Enospc { landed: 2 }, r#"{"enospc":{"landed":2}}"#),
            (Fault::Short { landed: 1 }, r#"{"short":{"landed":1}}"#),
            (Fault::Flush(Sticky), r#"{"flush":"sticky"}"#),
            (Fault::Late, r#""late""#),
            (Fault::Through(RetrySafe), r#"{"through":"retry-safe"}"#),
            (Fault::Through(CleanMarked), r#"{"through":"clean-marked"}"#),
        ] {
            assert_eq!(serde_json::to_string(&fault).unwrap(), text);
            assert_eq!(serde_json::from_str::<Fault>(text).unwrap(), fault);
        }
    }

    #[test]
    fn what_a_fault_does_not_concern_it_does_not_strike() {
        let all = Planned(vec![
            PlannedFault {
                at: FaultAt::Index(1),
                fault: Fault::Through(FlushFailure::CleanMarked),
            },
            PlannedFault { at: FaultAt::Index(1), fault: Fault::Late },
        ]);
        let through = Some(Fault::Through(FlushFailure::CleanMarked));
        for (kind, fault) in [
            (IoKind::Read, None),
            (IoKind::Write, Some(Fault::Late)),
            (IoKind::WriteThrough, through),
            (IoKind::WriteZeroes, Some(Fault::Late)),
            (IoKind::Discard, Some(Fault::Late)),
            (IoKind::SetLen, Some(Fault::Late)),
            (IoKind::Flush, None),
        ] {
            assert_eq!(all.clone().fault(&io(1, 0, kind)), fault, "{kind:?}");
        }
    }

    #[test]
    fn random_faults_keep_to_their_rates_and_kinds() {
        let rates = FaultRates {
            read: Ratio::NEVER,
            write: Ratio::NEVER,
            no_space: Ratio::new(1, 2),
            short: Ratio::NEVER,
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

    #[test]
    fn every_random_fault_strikes_its_kinds_and_no_others() {
        use IoKind::{Discard, Flush, Read, SetLen, Write, WriteThrough, WriteZeroes};
        const ALL: [IoKind; IoKind::COUNT] =
            [Read, Write, WriteThrough, WriteZeroes, Discard, SetLen, Flush];
        let always = Ratio::new(1, 1);
        let never = FaultRates {
            read: Ratio::NEVER,
            write: Ratio::NEVER,
            no_space: Ratio::NEVER,
            short: Ratio::NEVER,
            flush: Ratio::NEVER,
            failure: FlushFailure::RetrySafe,
        };
        let names = |rates: FaultRates| {
            ALL.map(|kind| match RandomFaults::new(1, rates).fault(&io(0, 0, kind)) {
                None => "-",
                Some(Fault::Eio) => "eio",
                Some(Fault::Enospc { landed }) if landed < 4 => "full",
                Some(Fault::Short { landed }) if landed < 4 => "short",
                Some(Fault::Flush(FlushFailure::RetrySafe)) => "flush",
                Some(_) => "?",
            })
        };
        for (rates, expected) in [
            (never, ["-"; 7]),
            (FaultRates { read: always, ..never }, ["eio", "-", "-", "-", "-", "-", "-"]),
            (FaultRates { write: always, ..never }, ["-", "eio", "eio", "eio", "eio", "eio", "-"]),
            (
                FaultRates { no_space: always, ..never },
                ["-", "full", "full", "full", "-", "full", "-"],
            ),
            (
                FaultRates { short: always, ..never },
                ["short", "short", "short", "short", "-", "-", "-"],
            ),
            (FaultRates { flush: always, ..never }, ["-", "-", "-", "-", "-", "-", "flush"]),
        ] {
            assert_eq!(names(rates), expected, "{rates:?}");
        }
    }
}
