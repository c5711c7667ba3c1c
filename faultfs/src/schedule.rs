//! What happens next: the order of tasks, completions and cancellations.
//!
//! Invariant: a schedule decides only by what it is offered and by its own seed or record. The first candidate is
//! always to go on with the task that ran last, if it can run, so taking option 0 for ever is a run with as few
//! switches as possible. That no candidate waits for ever is not a schedule's business: the executor sees to it.

use std::collections::BTreeMap;

pub use crate::candidate::{Candidate, TaskId};
use crate::chooser::{Choice, Chooser, ask};
use crate::rng::{Ratio, Rng};

/// Picks what happens next.
pub trait Schedule {
    /// An index into `candidates`, which is never empty.
    fn pick(&mut self, candidates: &[Candidate]) -> usize;
}

impl<S: Schedule + ?Sized> Schedule for Box<S> {
    fn pick(&mut self, candidates: &[Candidate]) -> usize {
        (**self).pick(candidates)
    }
}

/// Any candidate with the same probability; cancellations rarely.
#[derive(Clone, Debug)]
pub struct RandomOrder {
    rng: Rng,
    cancel: Ratio,
}

impl RandomOrder {
    /// The order of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), cancel: Ratio::new(1, 16) }
    }

    /// How often a step is a cancellation while some are allowed.
    #[must_use]
    pub const fn cancelling(mut self, cancel: Ratio) -> Self {
        self.cancel = cancel;
        self
    }
}

impl Schedule for RandomOrder {
    fn pick(&mut self, candidates: &[Candidate]) -> usize {
        let useful = useful(candidates);
        if useful < candidates.len() && self.rng.chance(self.cancel) {
            return useful + self.rng.below((candidates.len() - useful) as u32) as usize;
        }
        self.rng.below(useful as u32) as usize
    }
}

/// How many candidates come before the cancellations, which are always last.
fn useful(candidates: &[Candidate]) -> usize {
    candidates.partition_point(|candidate| !matches!(candidate, Candidate::Cancel(_)))
}

/// Probabilistic concurrency testing: everything has a random priority and the highest runs; at a few random steps the
/// one about to run falls to the bottom. A bug that needs d ordering constraints among k steps of n threads is hit with
/// probability at least 1 / (n k^(d-1)) per run, where d - 1 is the number of such steps.
#[derive(Clone, Debug)]
pub struct Pct {
    rng: Rng,
    step: u32,
    /// Steps at which a priority falls.
    changes: Vec<u32>,
    priorities: BTreeMap<Candidate, u64>,
}

impl Pct {
    /// The order of `seed`, with `changes` falls of priority within the first `steps` steps.
    pub fn new(seed: u64, changes: u32, steps: u32) -> Self {
        let mut rng = Rng::new(seed);
        let changes = (0..changes).map(|_| rng.below(steps.max(1))).collect();
        Self { rng, step: 0, changes, priorities: BTreeMap::new() }
    }
}

impl Schedule for Pct {
    fn pick(&mut self, candidates: &[Candidate]) -> usize {
        // Cancelling is not a thread that could have a priority: it takes the place of a fall.
        let (useful, cancels) = candidates.split_at(useful(candidates));
        let falls = self.changes.iter().filter(|&&at| at == self.step).count() as u64;
        self.step += 1;
        for &candidate in useful {
            let rng = &mut self.rng;
            self.priorities.entry(candidate).or_insert_with(|| rng.next_u64() | 1 << 63);
        }
        let highest = |priorities: &BTreeMap<Candidate, u64>| {
            useful.iter().enumerate().max_by_key(|&(_, candidate)| priorities[candidate])
        };
        if falls > 0 {
            if !cancels.is_empty() && self.rng.below(2) == 0 {
                return useful.len() + self.rng.below(cancels.len() as u32) as usize;
            }
            if let Some((_, &top)) = highest(&self.priorities) {
                // Below all first priorities, and below all that fell before.
                self.priorities.insert(top, (1 << 32) - u64::from(self.step));
            }
        }
        highest(&self.priorities).map_or(0, |(at, _)| at)
    }
}

/// The plain order, but for steps that a chooser puts off: each waits until nothing else can go on. What a task has to be late for (an
/// answer, a discard, a write of its own) may take many steps of another; putting off says that in one choice, where
/// [`Choices::with_departures`] needs one for each of those steps.
#[derive(Clone, Debug)]
pub struct PutOff<C> {
    chooser: C,
    /// How many steps may still be put off.
    delays: u32,
    /// Those that are, the first one first.
    late: Vec<Candidate>,
}

impl<C: Chooser> PutOff<C> {
    /// With at most so many steps put off.
    pub const fn new(chooser: C, delays: u32) -> Self {
        Self { chooser, delays, late: Vec::new() }
    }
}

impl<C: Chooser> Schedule for PutOff<C> {
    fn pick(&mut self, candidates: &[Candidate]) -> usize {
        let (late, prompt): (Vec<Candidate>, Vec<Candidate>) =
            candidates.iter().partition(|candidate| self.late.contains(candidate));
        // Something has to go on.
        let most = if late.is_empty() { prompt.len() - 1 } else { prompt.len() };
        let most = most.min(self.delays as usize);
        let put_off = match most {
            0 => 0,
            _ => ask(&mut self.chooser, most + 1, Choice::Step { candidates }),
        };
        self.delays -= put_off as u32;
        self.late.extend(&prompt[..put_off]);
        let first_late = || self.late.iter().copied().find(|late| candidates.contains(late));
        let next = prompt.get(put_off).copied().or_else(first_late);
        let next = next.expect("what is not prompt is late");
        self.late.retain(|late| *late != next);
        candidates.iter().position(|offered| *offered == next).expect("it is one of them")
    }
}

/// The order is what a chooser says: with `Playback` a recorded one, with `Exhaustive` all of them.
#[derive(Clone, Debug)]
pub struct Choices<C> {
    chooser: C,
    /// How often something else than the first candidate may still be picked.
    departures: u32,
}

impl<C: Chooser> Choices<C> {
    /// Every order.
    pub const fn new(chooser: C) -> Self {
        Self { chooser, departures: u32::MAX }
    }

    /// Only orders that depart at most `departures` times from the plain one: a task goes on while it can, then the next
    /// one runs, and where none can, the I/O that was submitted first ends (delay bounding). Interrupting a task, running
    /// another one first and ending an I/O early or out of turn are departures. Two tasks of ten steps have 184,756 orders,
    /// and few of them are needed to show a bug.
    #[must_use]
    pub const fn with_departures(mut self, departures: u32) -> Self {
        self.departures = departures;
        self
    }
}

impl<C: Chooser> Schedule for Choices<C> {
    fn pick(&mut self, candidates: &[Candidate]) -> usize {
        if self.departures == 0 {
            return 0;
        }
        let taken = ask(&mut self.chooser, candidates.len(), Choice::Step { candidates });
        self.departures = self.departures.saturating_sub(u32::from(taken > 0));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::{Candidate, Choices, Pct, PutOff, RandomOrder, Schedule, TaskId};
    use crate::chooser::{Always, Exhaustive};
    use crate::rng::Ratio;
    use std::sync::{Arc, Mutex};

    const RUN: [Candidate; 3] =
        [Candidate::Run(TaskId(0)), Candidate::Run(TaskId(1)), Candidate::Complete(7)];

    #[test]
    fn random_reaches_everything_and_cancels_at_its_ratio() {
        let offered = [RUN[0], RUN[2], Candidate::Cancel(TaskId(0)), Candidate::Cancel(TaskId(1))];
        let mut schedule = RandomOrder::new(1).cancelling(Ratio::new(1, 4));
        let mut picked = [0; 4];
        for _ in 0..4000 {
            picked[schedule.pick(&offered)] += 1;
        }
        assert!(picked[..2].iter().all(|count| (1300..1700).contains(count)), "{picked:?}");
        assert!(picked[2..].iter().all(|count| (400..600).contains(count)), "{picked:?}");
    }

    #[test]
    fn pct_keeps_to_one_thread_until_it_falls() {
        let mut schedule = Pct::new(3, 1, 10);
        let order: Vec<usize> = (0..20).map(|_| schedule.pick(&RUN)).collect();
        let switches = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(switches, 1, "{order:?}");
    }

    #[test]
    fn pct_lowers_what_falls_below_all_that_fell_before_however_late() {
        let mut firsts = [false; 3];
        for (seed, late) in (0..9).flat_map(|seed| [(seed, 0), (seed, 1_000_000)]) {
            let changes = vec![late + 1, late + 2, late + 3];
            let mut schedule = Pct { step: late, changes, ..Pct::new(seed, 0, 1) };
            let order = [(); 5].map(|()| schedule.pick(&RUN));
            let [first, second, third, ..] = order;
            assert_eq!(order, [first, second, third, first, first], "from step {late}");
            assert_eq!(first + second + third, 3, "{order:?}");
            firsts[first] = true;
        }
        assert_eq!(firsts, [true; 3]);
    }

    #[test]
    fn pct_cancels_one_at_random_in_half_of_its_falls() {
        let offered = [RUN[0], RUN[2], Candidate::Cancel(TaskId(0)), Candidate::Cancel(TaskId(1))];
        let mut picked = [0; 4];
        for seed in 0..4000 {
            picked[Pct::new(seed, 1, 1).pick(&offered)] += 1;
        }
        assert!(picked.iter().all(|count| (900..1100).contains(count)), "{picked:?}");
    }

    #[test]
    fn the_order_of_a_pct_seed_is_known() {
        // On every machine: another order would change what a recorded seed means.
        let runs = (0..12).map(|task| Candidate::Run(TaskId(task)));
        let offered: Vec<Candidate> = runs.chain([Candidate::Cancel(TaskId(0))]).collect();
        let mut schedule = Pct::new(3, 8, 12);
        let order: Vec<usize> = (0..12).map(|_| schedule.pick(&offered)).collect();
        assert_eq!(order, [8, 12, 8, 1, 1, 1, 1, 6, 6, 10, 12, 10]);
    }

    #[test]
    fn departures_are_bounded() {
        let mut schedule = Choices::new(Always(1)).with_departures(2);
        assert_eq!([(); 4].map(|()| schedule.pick(&RUN)), [1, 1, 0, 0]);
        // Where there is one candidate nothing is departed from.
        let mut schedule = Choices::new(Always(1)).with_departures(1);
        assert_eq!([&RUN[..1], &RUN, &RUN].map(|offered| schedule.pick(offered)), [0, 1, 0]);
    }

    #[test]
    fn what_is_put_off_waits_until_nothing_else_can_go_on() {
        let [one, other, end] = RUN;
        let mut schedule = PutOff::new(Always(1), 1);
        assert_eq!(schedule.pick(&RUN), 1);
        // However often it is offered, and wherever; the second choice is not asked for any more.
        assert_eq!(schedule.pick(&[one, end]), 1);
        assert_eq!(schedule.pick(&[end, one]), 0);
        assert_eq!(schedule.pick(&[one]), 0);
        // Then it is over.
        assert_eq!(schedule.pick(&[one, end]), 0);
        let mut schedule = PutOff::new(Always(2), 2);
        assert_eq!(schedule.pick(&RUN), 2);
        assert_eq!([[other, one], [one, other]].map(|offered| schedule.pick(&offered)), [1, 0]);
        // The only one that is not late may be put off behind those that are.
        let mut schedule = PutOff::new(Always(1), 2);
        assert_eq!(
            [&RUN[..2], &[one, end], &[end]].map(|offered| schedule.pick(offered)),
            [1, 0, 0]
        );
    }

    #[test]
    fn exhaustive_orders_are_all_orders() {
        let chooser = Arc::new(Mutex::new(Exhaustive::new()));
        let mut orders = Vec::new();
        loop {
            let mut schedule = Choices::new(Arc::clone(&chooser));
            let mut left = RUN.to_vec();
            let mut order = Vec::new();
            while !left.is_empty() {
                order.push(left.remove(schedule.pick(&left)));
            }
            orders.push(order);
            if !chooser.lock().unwrap().advance() {
                break;
            }
        }
        orders.sort();
        orders.dedup();
        assert_eq!(orders.len(), 6);
    }
}
