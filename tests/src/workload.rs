//! What a random case does: its image, its requests, its faults. One seed, one plan.
//!
//! Every case draws its own weights, some of them zero, so that different cases are different in kind and not only in
//! detail (swarm testing); and most requests fall on a few hot clusters, so that requests meet: overwrite, discard, write
//! again where something was freed.

use faultfs::fault::{Fault, FaultAt, PlannedFault};
use faultfs::profile::FlushFailure;
use faultfs::rng::Rng;
use faultfs::trace::IoKind;
use model::build::Initial;
use model::case::{Dropped, OpenOptions};
use model::op::{Durability, Geometry, Op};

/// Version of this generator: cases of different versions with the same seed differ.
pub const GENERATOR: u32 = 1;

/// What a campaign asks of its cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only eager (`false`) or only lazy (`true`) refcounts.
    pub lazy: Option<bool>,
    /// Exactly this many tasks in every life.
    pub tasks: Option<usize>,
    /// No injected errors and no dropped futures.
    pub faultless: bool,
    /// Only cases in which several tasks read, discard and write the same few clusters.
    pub contended: bool,
    /// Only clusters of 1 KiB and 4 KiB, and no initial image that fills refcount structures up.
    pub tiny: bool,
}

/// One life of a plan; where the power fails is decided while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifePlan {
    /// Operations that run side by side.
    pub tasks: Vec<Vec<Op>>,
    /// Seed of the schedule.
    pub schedule: u64,
    /// What fails.
    pub faults: Vec<PlannedFault>,
    /// A request whose future is dropped.
    pub dropped: Option<Dropped>,
}

/// A random case before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The shape of the image.
    pub geometry: Geometry,
    /// What it holds at first.
    pub initial: Initial,
    /// How it is opened.
    pub open: OpenOptions,
    /// What is done, life after life.
    pub lives: Vec<LifePlan>,
}

/// Draws the plan of `seed`.
pub fn plan(seed: u64, scope: &Scope) -> Plan {
    let mut rng = Rng::new(seed);
    let initial = match rng.below(20) {
        0..=4 => Initial::Fresh,
        5..=8 => Initial::Leaky,
        9..=11 => Initial::Dirty,
        12..=15 => Initial::Fragmented,
        16..=17 => Initial::L1AboutToGrow,
        _ if scope.tiny => Initial::Fresh,
        18 => Initial::RefcountBlockOneShort,
        _ => {
            // A full refcount table takes an L1 table of 8 MiB to fill it: a few cases of it are enough.
            if rng.below(20) == 0 { Initial::RefcountTableOneShort } else { Initial::Fresh }
        }
    };
    let cluster_bits = match (initial, rng.below(10)) {
        (Initial::RefcountTableOneShort | Initial::RefcountBlockOneShort, _) => 9,
        (_, 0..=1) if !scope.tiny => 9,
        (_, 0..=7) => 10,
        _ => 12,
    };
    let clusters = match cluster_bits {
        9 => 24 + rng.below(80),
        10 => {
            let spread = if rng.below(4) == 0 { 180 } else { 36 };
            12 + rng.below(spread)
        }
        _ => 6 + rng.below(10),
    };
    let cluster = 1u64 << cluster_bits;
    let short = if cluster_bits > 9 && rng.below(4) == 0 { 512 } else { 0 };
    let geometry = Geometry {
        version: 3,
        cluster_bits,
        refcount_order: 4,
        virtual_size: u64::from(clusters) * cluster - short,
        lazy_refcounts: scope.lazy.unwrap_or_else(|| rng.below(2) == 0),
    };
    let open = OpenOptions {
        subject: "qcow2-core".to_owned(),
        cache_pages: [1, 4, 1024][rng.below(3) as usize],
        growth_step: cluster * [1, 1, 4, 16][rng.below(4) as usize],
        write_through: rng.below(12) == 0,
    };
    let lives = if rng.below(3) == 0 { 1 } else { 2 + rng.below(2) };
    let contended = scope.contended || rng.below(8) == 0;
    let mut draw = Draw::new(&mut rng, geometry, contended);
    let lives = (0..lives).map(|_| draw.life(scope)).collect();
    Plan { geometry, initial, open, lives }
}

/// Weights and hot spots of one case.
struct Draw<'a> {
    rng: &'a mut Rng,
    size: u64,
    cluster: u64,
    hot: Vec<u64>,
    weights: [u32; 8],
    contended: bool,
    next_id: u32,
}

impl<'a> Draw<'a> {
    fn new(rng: &'a mut Rng, geometry: Geometry, contended: bool) -> Self {
        let clusters = u32::try_from(geometry.clusters()).expect("plans are small");
        let spots = 2 + rng.below(5);
        let hot = (0..spots).map(|_| u64::from(rng.below(clusters))).collect();
        // write, write through, zeroes, discard, read, flush, grow, reopen
        let most = [60, 15, 20, 30, 15, 30, 4, 4];
        let weights = most.map(|most| if rng.below(4) == 0 { 0 } else { 1 + rng.below(most) });
        let mut draw = Self {
            rng,
            size: geometry.virtual_size,
            cluster: geometry.cluster_size(),
            hot,
            weights,
            contended,
            next_id: 1,
        };
        if contended {
            draw.hot.truncate(2);
            draw.weights = [20, 0, 0, 14, 24, 14, 0, 0];
        }
        draw.weights[0] = draw.weights[0].max(10);
        draw
    }

    fn life(&mut self, scope: &Scope) -> LifePlan {
        let tasks = scope.tasks.unwrap_or_else(|| match self.rng.below(5) {
            few @ 0..=3 if !self.contended => [1, 1, 2, 3][few as usize],
            _ => 4,
        });
        let per_task = match tasks {
            1 => 3 + self.rng.below(12),
            _ if self.contended => 5 + self.rng.below(8),
            _ => 1 + self.rng.below(6),
        };
        let tasks: Vec<Vec<Op>> =
            (0..tasks).map(|task| (0..per_task).map(|_| self.op(tasks, task)).collect()).collect();
        let calm = scope.faultless;
        let faults = if !calm && self.rng.below(8) == 0 { vec![self.fault()] } else { Vec::new() };
        let dropped = (!calm && self.rng.below(8) == 0).then(|| {
            let task = self.rng.below(u32::try_from(tasks.len()).expect("few tasks")) as usize;
            let op = self.rng.below(per_task) as usize;
            Dropped { task, op, after_ios: self.rng.below(5) }
        });
        LifePlan { tasks, schedule: self.rng.next_u64(), faults, dropped }
    }

    fn fault(&mut self) -> PlannedFault {
        let nth = u64::from(self.rng.below(8));
        let (kind, fault) = match self.rng.below(6) {
            0 => (IoKind::Read, Fault::Eio),
            1 => (IoKind::Write, Fault::Eio),
            2 => {
                let kind = if self.rng.below(2) == 0 { IoKind::SetLen } else { IoKind::Write };
                (kind, Fault::Enospc { landed: self.rng.below(2) })
            }
            3 => (IoKind::Flush, Fault::Flush(FlushFailure::RetrySafe)),
            4 => (IoKind::Flush, Fault::Flush(FlushFailure::CleanMarked)),
            _ => (IoKind::Flush, Fault::Flush(FlushFailure::Sticky)),
        };
        PlannedFault { at: FaultAt::Nth { kind, nth }, fault }
    }

    fn op(&mut self, tasks: usize, task: usize) -> Op {
        let total: u32 = self.weights.iter().sum();
        let mut ticket = self.rng.below(total);
        let mut kind = 0;
        while ticket >= self.weights[kind] {
            ticket -= self.weights[kind];
            kind += 1;
        }
        match kind {
            0 | 1 => {
                let (offset, length) = self.range();
                let id = self.next_id;
                self.next_id += 1;
                let durability = if kind == 0 { Durability::Cached } else { Durability::Through };
                Op::Write { offset, length, id, durability }
            }
            2 => {
                let (offset, length) = self.range();
                Op::WriteZeroes { offset, length, unmap: self.rng.below(2) == 0 }
            }
            3 => {
                let (offset, length) = self.range();
                let start = offset - offset % self.cluster;
                let end = (offset + length).next_multiple_of(self.cluster).min(self.size);
                if self.rng.below(5) == 0 {
                    Op::Discard { offset, length }
                } else {
                    Op::Discard { offset: start, length: end - start }
                }
            }
            4 => {
                let (offset, length) = self.range();
                Op::Read { offset, length }
            }
            6 => {
                let most = if self.rng.below(3) == 0 { 90 } else { 4 };
                let by = u64::from(1 + self.rng.below(most)) * self.cluster;
                if tasks == 1 {
                    let halves = 1 + u64::from(self.rng.below(2));
                    self.size = (self.size + by / halves).next_multiple_of(512);
                } else if task == 0 && self.size.is_multiple_of(self.cluster) {
                    self.size += by;
                } else {
                    // Of two growths at once one is a request to shrink. And a discard up to the end of the disk takes a
                    // last cluster that is cut short whole: beside a growth it would depend on the order whether it is.
                    return Op::Flush;
                }
                Op::Grow { to: self.size }
            }
            7 if tasks == 1 => Op::Reopen,
            _ => Op::Flush,
        }
    }

    /// A range: mostly around a hot cluster, mostly short, often a part of a cluster, sometimes exactly one or several.
    fn range(&mut self) -> (u64, u64) {
        let clusters = self.size.div_ceil(self.cluster);
        let any = u32::try_from(clusters).expect("plans are small");
        let cluster = if self.rng.below(4) == 0 {
            u64::from(self.rng.below(any))
        } else {
            self.hot[self.rng.below(u32::try_from(self.hot.len()).expect("few spots")) as usize]
        };
        let units = u32::try_from(self.cluster / 512).expect("a cluster is small");
        let start = cluster * self.cluster;
        let (offset, length) = match self.rng.below(4) {
            0 => (start, self.cluster),
            1 => (start, self.cluster * u64::from(2 + self.rng.below(2))),
            2 => {
                let skip = u64::from(self.rng.below(units)) * 512;
                (start + skip, 512 * u64::from(1 + self.rng.below(units)))
            }
            _ => {
                let skip = u64::from(self.rng.below(units)) * 512;
                (start + skip, 512 * u64::from(1 + self.rng.below(3 * units)))
            }
        };
        let offset = offset.min(self.size - 512);
        (offset, length.min(self.size - offset))
    }
}

#[cfg(test)]
mod tests {
    use super::{Scope, plan};

    #[test]
    fn a_seed_is_a_plan() {
        for seed in 0..50 {
            assert_eq!(plan(seed, &Scope::default()), plan(seed, &Scope::default()));
        }
    }

    #[test]
    fn operations_are_valid_and_most_plans_have_two_lives() {
        let mut long = 0;
        for seed in 0..500 {
            let plan = plan(seed, &Scope::default());
            assert_eq!(plan.geometry.fault(), None);
            long += usize::from(plan.lives.len() > 1);
            for op in plan.lives.iter().flat_map(|life| &life.tasks).flatten() {
                assert_eq!(op.fault(), None, "{op:?}");
            }
        }
        assert!(long > 250, "{long} of 500");
    }
}
