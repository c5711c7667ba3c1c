//! One seed, one plan: how everything in it is drawn.
//!
//! Every case draws its own weights, some of them zero, so that different cases are different in kind and not only in
//! detail (swarm testing); and most requests fall on a few hot clusters, so that requests meet: overwrite, discard, write
//! again where something was freed.

use faultfs::fault::{Fault, FaultAt, PlannedFault};
use faultfs::profile::{DiscardMode, FlushFailure};
use faultfs::rng::Rng;
use faultfs::trace::IoKind;
use model::build::Initial;
use model::case::{Device, Dropped, Opening};
use model::op::{
    Compression, DataFile, Durability, Encryption, Geometry, Op, PASSPHRASES, Preallocation,
};
use model::payload::{COMPRESSIBLE, ZEROED};

use super::fault_kind::FaultKind;
use super::plan::{LONG, LifePlan, MANY, Plan, SECTOR, SPARSE};
use super::scope::Scope;
use super::shape::Shape;
use crate::capabilities::Capabilities;

/// Bytes of the longest request. A disk that grows by many L2 tables has many times as many, and a case that writes it whole would take as
/// long as all others of a campaign, with next to no unit decided.
const LONGEST: u64 = 4 << 20;

/// Draws the plan of `seed`, of nothing that a subject cannot do.
pub fn plan(seed: u64, scope: &Scope, can: &Capabilities) -> Plan {
    let mut rng = Rng::new(seed);
    // What has thousands of clusters has small ones.
    let small = can.cluster_bits.0 <= 9;
    // Of so many cases one has this shape, unless all have.
    let shaped =
        |rng: &mut Rng, shape, one_in| scope.shape == Some(shape) || rng.below(one_in) == 0;
    // Sectors ask for clusters that hold whole ones, subclusters for 32 of them, those two for many small clusters.
    let wide = scope.shape == Some(Shape::Sectors) && can.cluster_bits.1 >= 12;
    let streams = matches!(scope.shape, Some(Shape::Compressed | Shape::Compressing));
    let large = wide || streams || scope.shape == Some(Shape::Subclusters);
    let growing = shaped(&mut rng, Shape::Growing, 60)
        && scope.shape != Some(Shape::Eviction)
        && !large
        && small;
    let eviction = shaped(&mut rng, Shape::Eviction, 40) && !growing && !large && small;
    let sparse = (shaped(&mut rng, Shape::Sparse, 40) && !streams) || eviction || growing;
    let three = scope.lazy == Some(true)
        || matches!(scope.shape, Some(Shape::Widths | Shape::Subclusters | Shape::DataFiles));
    let version = if shaped(&mut rng, Shape::Version2, 8) && !three { 2 } else { 3 };
    let extended = (scope.shape == Some(Shape::Subclusters)
        || (rng.below(10) == 0 && scope.shape.is_none()))
        && version == 3
        && can.cluster_bits.1 >= 14
        && !(growing || eviction || scope.tiny);
    let apart = shaped(&mut rng, Shape::DataFiles, 8) && version == 3 && !scope.tiny && !streams;
    let enciphered = matches!(scope.shape, Some(Shape::Encrypted | Shape::Passphrases));
    let compressed = shaped(&mut rng, Shape::Compressed, 20) && !sparse && !apart && !enciphered;
    let compressing = shaped(&mut rng, Shape::Compressing, 8);
    let initial = match rng.below(24) {
        _ if compressed => Initial::Compressed,
        0..=4 => Initial::Fresh,
        5..=8 => Initial::Leaky,
        // Neither has feature bits to be marked with.
        9..=11 | 20 if version == 2 => Initial::Leaky,
        9..=11 => Initial::Dirty,
        12..=15 => Initial::Fragmented,
        16..=17 => Initial::L1AboutToGrow,
        20 => Initial::Bitmaps,
        21..=22 => Initial::Leftovers,
        _ if scope.tiny || sparse || wide || extended => Initial::Fresh,
        18 => Initial::RefcountBlockOneShort,
        23 => Initial::FullOfLeaks,
        _ => {
            // A full refcount table takes an L1 table of 8 MiB to fill it: a few cases of it are enough.
            if rng.below(20) == 0 { Initial::RefcountTableOneShort } else { Initial::Fresh }
        }
    };
    let cluster_bits = match (initial, rng.below(10)) {
        (
            Initial::RefcountTableOneShort | Initial::RefcountBlockOneShort | Initial::FullOfLeaks,
            _,
        ) => 9,
        _ if eviction && compressing => 10,
        _ if eviction || growing => 9,
        _ if extended => 14 + rng.below(3),
        _ if wide => 12 + rng.below(3),
        (Initial::Compressed, 0..=6) => 10,
        (Initial::Compressed, _) => 12,
        // The more sectors a cluster has, the more lengths its streams have.
        (_, drawn) if compressing && !sparse => [12, 10][usize::from(drawn > 6)],
        (_, 0..=5) if sparse => 9,
        (_, 0..=1) if !scope.tiny => 9,
        (_, 0..=7) => 10,
        _ => 12,
    };
    let cluster_bits = cluster_bits.clamp(can.cluster_bits.0, can.cluster_bits.1);
    let clusters = match cluster_bits {
        // An L2 table has an eighth of the cluster size of entries.
        _ if eviction => 64 * (40 + rng.below(60)),
        _ if growing => 64 * (65 + rng.below(20)),
        bits if sparse => (1 << 20 >> bits).max(4) * (1 + rng.below(4)),
        9 => 24 + rng.below(80),
        10 => {
            let spread = if rng.below(4) == 0 { 180 } else { 36 };
            12 + rng.below(spread)
        }
        bits if bits > 14 => 3 + rng.below(5),
        _ => 6 + rng.below(10),
    };
    let cluster = 1u64 << cluster_bits;
    let short = if cluster_bits > 9 && rng.below(4) == 0 { 512 } else { 0 };
    let refcount_order = match (shaped(&mut rng, Shape::Widths, 4), initial) {
        _ if version == 2 => 4,
        // Leaks are many there, and many more with narrow counts.
        (_, Initial::FullOfLeaks) => 6,
        // What a growth needs first is in several pages.
        (_, _) if growing && rng.below(2) == 0 => 6,
        // Counts in many pages.
        _ if compressing && eviction => 6,
        // Of which three streams fill a count up.
        _ if compressing && rng.below(6) == 0 => 1,
        (false, _) => 4,
        // What is full of counts of few bits takes long to look through.
        (true, Initial::RefcountTableOneShort | Initial::RefcountBlockOneShort) => {
            [3, 5, 6][rng.below(3) as usize]
        }
        (true, _) => [0, 1, 2, 3, 5, 6][rng.below(6) as usize],
    };
    let virtual_size = u64::from(clusters) * cluster - short;
    let mut geometry = Geometry {
        version,
        cluster_bits,
        refcount_order,
        virtual_size,
        data_file: None,
        encryption: None,
        lazy_refcounts: scope.lazy.unwrap_or_else(|| rng.below(2) == 0) && version == 3,
        extended_l2: extended,
        compression: match (compressed || compressing) && version == 3 && rng.below(3) == 0 {
            true => Compression::Zstd,
            false => Compression::Deflate,
        },
        below: (shaped(&mut rng, Shape::Layered, 6) || scope.shape == Some(Shape::CopyOnRead))
            .then(|| match rng.below(4) {
                // Somewhere inside the disk, in a cluster or at its end; and longer by what a growth or two bring.
                0 => u64::from(rng.below(clusters)) * cluster,
                1 => {
                    512 * u64::from(
                        rng.below(u32::try_from(virtual_size / 512).expect("it is small")),
                    )
                }
                2 => virtual_size,
                _ => virtual_size + 512 * u64::from(rng.below(40 * cluster as u32 / 512)),
            }),
    };
    if apart {
        // One that is the disk by itself has nothing below it.
        let raw = rng.below(2) == 0 && geometry.below.is_none() && !enciphered;
        geometry.data_file = Some(if raw { DataFile::Raw } else { DataFile::Plain });
    }
    let is_plain = compressed || scope.tiny || geometry.data_file == Some(DataFile::Raw);
    if (shaped(&mut rng, Shape::Encrypted, 12) || enciphered) && !is_plain {
        // A LUKS header is two thousand units more.
        let luks = rng.below(2) == 0 || scope.shape == Some(Shape::Passphrases);
        geometry.encryption = Some(if luks { Encryption::Luks } else { Encryption::Aes });
    }
    let overridden = scope.lazy.is_none() && rng.below(12) == 0 && version == 3;
    let open = Opening {
        cache_pages: if eviction { 1 } else { [1, 4, 1024][rng.below(3) as usize] },
        growth_step: cluster * [1, 1, 4, 16][rng.below(4) as usize],
        write_through: shaped(&mut rng, Shape::WriteThrough, 8),
        page_size: match shaped(&mut rng, Shape::Pages, 4) {
            // Its own choice is longer than any cluster here.
            true => [0, 1024, 2048][rng.below(3) as usize],
            false => 512,
        },
        pass_discard: rng.below(8) != 0,
        lazy_refcounts: overridden.then(|| rng.below(2) == 0),
        copy_on_read: geometry.below.is_some() && shaped(&mut rng, Shape::CopyOnRead, 3),
        ..Opening::new("qcow2-core")
    };
    let plain = Device::default();
    let transfers = shaped(&mut rng, Shape::Transfers, 8);
    let mut device = Device {
        sector: plain.sector,
        max_transfer: match transfers {
            true => [512, 1024, 1536, 4096, 65536][rng.below(5) as usize],
            false => plain.max_transfer,
        },
        can_discard: !transfers || rng.below(4) != 0,
        stale_units: match shaped(&mut rng, Shape::Stale, 8) {
            true => 1 + rng.below(200),
            false => 0,
        },
    };
    let discard = if rng.below(3) == 0 { DiscardMode::Zeroes } else { DiscardMode::Either };
    let working = shaped(&mut rng, Shape::Working, 3);
    let lives = if rng.below(3) == 0 && !working { 1 } else { 2 + rng.below(2) };
    let long = shaped(&mut rng, Shape::Long, 12);
    let shrinking = shaped(&mut rng, Shape::Shrinking, 8);
    let contended = !shrinking && (scope.contended || (rng.below(8) == 0 && !eviction));
    let mut draw = Draw::new(&mut rng, geometry, contended);
    draw.long = long;
    let ahead = shaped(draw.rng, Shape::Ahead, 8);
    if ahead && !contended {
        draw.weights[8] = 1 + draw.rng.below(20);
    }
    let slots = geometry.encryption == Some(Encryption::Luks);
    if slots && !contended {
        draw.weights[10] = 2 + draw.rng.below(20);
    }
    if compressing {
        draw.weights[9] = 10 + draw.rng.below(60);
    }
    if shrinking {
        draw.shrinking = true;
        draw.weights[6] = 24;
    }
    if sparse && !contended {
        draw.weights[6] = 12;
    }
    if initial == Initial::FullOfLeaks && !contended {
        draw.weights[6] = 6;
    }
    if growing {
        draw.grow();
    }
    if eviction {
        draw.spread();
    }
    let mut lives: Vec<LifePlan> =
        (0..lives).map(|_| LifePlan { unrecovered: working, ..draw.life(scope) }).collect();
    if scope.shape == Some(Shape::Ahead) {
        // At the beginning at least, whatever else was drawn.
        let (offset, length) = (0, virtual_size.min(4 * cluster));
        let how = Preallocation::Metadata;
        lives[0].tasks[0].insert(0, Op::Preallocate { offset, length, how });
    }
    if scope.shape == Some(Shape::Shrinking) {
        let middle = lives[0].tasks[0].len() / 2;
        lives[0].tasks[0].insert(middle, Op::Shrink { to: virtual_size - 512 });
    }
    if scope.shape == Some(Shape::Passphrases) {
        let LifePlan { tasks, dropped, .. } = &mut lives[0];
        let middle = tasks[0].len() / 2;
        tasks[0].insert(middle, Op::AddPassphrase { id: 1 });
        // Added by two at once it has two slots.
        if let Some(beside) = tasks.get_mut(1) {
            beside.insert(beside.len() / 2, Op::AddPassphrase { id: 1 });
        }
        // The slot that one leaves is the next one's.
        tasks[0].extend([Op::RemovePassphrase { id: 1 }, Op::AddPassphrase { id: 2 }]);
        if let Some(dropped) = dropped
            && rng.below(2) == 0
        {
            let op = tasks[0].len() - 2;
            *dropped = Dropped { task: 0, op, after_ios: rng.below(20) };
        }
    }
    if scope.shape == Some(Shape::Compressing) {
        let (offset, length) = (0, virtual_size.min(2 * cluster));
        let id = ZEROED - 1;
        lives[0].tasks[0].insert(0, Op::WriteCompressed { offset, length, id: id | COMPRESSIBLE });
    }
    if wide || (cluster >= u64::from(SECTOR) && rng.below(3) == 0) {
        device.sector = SECTOR;
        if !device.max_transfer.is_multiple_of(SECTOR) {
            device.max_transfer *= SECTOR / 512;
        }
        device.stale_units = device.stale_units.next_multiple_of(SECTOR / 512);
    }
    let mut plan = Plan { geometry, initial, open, discard, device, lives };
    plan.restrict(can);
    plan
}

/// Weights and hot spots of one case.
struct Draw<'a> {
    rng: &'a mut Rng,
    size: u64,
    cluster: u64,
    hot: Vec<u64>,
    weights: [u32; 11],
    contended: bool,
    /// Requests may be as long as the disk.
    long: bool,
    /// Lives have many requests, all over the disk.
    spread: bool,
    /// Growth is by L2 tables.
    growing: bool,
    /// Every other growth is a shrink.
    shrinking: bool,
    /// A layer is below, and one discard in three uncovers it.
    layered: bool,
    /// Requests for a further passphrase so far.
    added: u32,
    next_id: u32,
}

impl<'a> Draw<'a> {
    fn new(rng: &'a mut Rng, geometry: Geometry, contended: bool) -> Self {
        let clusters = u32::try_from(geometry.clusters()).expect("plans are small");
        let spots = 2 + rng.below(5);
        let hot = (0..spots).map(|_| u64::from(rng.below(clusters))).collect();
        // write, write through, zeroes, discard, read, flush, grow, reopen, preallocate, write compressed, passphrases
        let most = [60, 15, 20, 30, 15, 30, 4, 4];
        let some = most.map(|most| if rng.below(4) == 0 { 0 } else { 1 + rng.below(most) });
        let mut weights = [0; 11];
        weights[..8].copy_from_slice(&some);
        let mut draw = Self {
            rng,
            size: geometry.virtual_size,
            layered: geometry.below.is_some(),
            cluster: geometry.cluster_size(),
            hot,
            weights,
            contended,
            long: false,
            spread: false,
            growing: false,
            shrinking: false,
            added: 0,
            next_id: 1,
        };
        if contended {
            draw.hot.truncate(2);
            draw.weights = [20, 0, 0, 14, 24, 14, 0, 0, 0, 0, 0];
        }
        draw.weights[0] = draw.weights[0].max(10);
        draw
    }

    /// Has the disk grow again and again, in steps of a few L2 tables, and most requests where the end of the L1 table maps them.
    fn grow(&mut self) {
        let clusters = u32::try_from(self.size / self.cluster).expect("plans are small");
        let tail = self.rng.below(clusters / 16) + clusters / 64;
        self.hot.extend((0..6).map(|_| u64::from(clusters - 1 - self.rng.below(tail))));
        self.weights[6] = 20;
        self.growing = true;
    }

    /// Spreads requests over many L2 tables, and has many of them.
    fn spread(&mut self) {
        let clusters = u32::try_from(self.size / self.cluster).expect("plans are small");
        self.hot = (0..60).map(|_| u64::from(self.rng.below(clusters))).collect();
        // No growth, and seldom a flush: what is evicted should not be durable.
        let through = [4, 30][self.rng.below(2) as usize];
        self.weights = [60, through, 8, 20, 15, 6, 0, 1, 0, 0, 0];
        self.spread = true;
    }

    fn life(&mut self, scope: &Scope) -> LifePlan {
        let tasks = scope.tasks.unwrap_or_else(|| match self.rng.below(5) {
            few @ 0..=3 if !self.contended => [1, 1, 2, 3][few as usize],
            _ => 4,
        });
        let per_task = match tasks {
            _ if self.spread => MANY as u32 + self.rng.below(40),
            1 => 3 + self.rng.below(12),
            _ if self.contended => 5 + self.rng.below(8),
            _ => 1 + self.rng.below(6),
        };
        let mut kinds: Vec<FaultKind> = scope.fault.into_iter().collect();
        let more = match self.rng.below(16) {
            _ if scope.no_errors && scope.no_drops => 0,
            0..=7 if scope.fault.is_some() => 2,
            0..=2 => 1,
            3..=4 => 2,
            _ => 0,
        };
        while kinds.len() < more {
            // Dropping is drawn more often than each kind of error: there is a future at every await.
            kinds.push(match self.rng.below(4) {
                0 => FaultKind::Dropped,
                _ => FaultKind::ALL[self.rng.below(FaultKind::ALL.len() as u32) as usize],
            });
        }
        kinds.retain(|&kind| scope.fault == Some(kind) || scope.allows(kind));
        let weights = self.weights;
        if kinds.contains(&FaultKind::WriteThroughFailed) {
            // A storage is written through only where a cluster is written again whose mapping a flush has covered.
            self.weights = [20, 60, 4, 4, 4, 30, 0, 0, 0, 0, 0];
        }
        let before = self.size;
        let task = |draw: &mut Self, task| -> Vec<Op> {
            (0..per_task).map(|_| draw.op(tasks, task)).collect()
        };
        let mut all = vec![task(self, 0)];
        // The others go where the disk was before it became smaller, too.
        let after = self.size;
        self.size = before.max(after);
        all.extend((1..tasks).map(|number| task(self, number)));
        self.size = after;
        let tasks = all;
        self.weights = weights;
        let faults = kinds.iter().filter_map(|&kind| self.fault(kind)).collect();
        let dropped = kinds.contains(&FaultKind::Dropped).then(|| {
            let task = self.rng.below(u32::try_from(tasks.len()).expect("few tasks")) as usize;
            let op = self.rng.below(per_task) as usize;
            // A change of the passphrases reads the slots first.
            let most = match tasks[task][op] {
                Op::AddPassphrase { .. } | Op::RemovePassphrase { .. } => 20,
                _ => 5,
            };
            Dropped { task, op, after_ios: self.rng.below(most) }
        });
        LifePlan { tasks, schedule: self.rng.next_u64(), faults, dropped, unrecovered: false }
    }

    /// A fault of a kind; none for a dropped future, which is not the device's.
    fn fault(&mut self, kind: FaultKind) -> Option<PlannedFault> {
        // Mostly early, where every life gets to.
        let most = 1 << self.rng.below(5);
        let nth = u64::from(self.rng.below(most));
        let transfers = [IoKind::Write, IoKind::Write, IoKind::WriteThrough, IoKind::WriteZeroes];
        let updates = [IoKind::Write, IoKind::WriteThrough, IoKind::Discard, IoKind::SetLen];
        let meanings = [FlushFailure::RetrySafe, FlushFailure::CleanMarked, FlushFailure::Sticky];
        let any = self.rng.below(4) as usize;
        let (kind, fault) = match kind {
            FaultKind::Read => (IoKind::Read, Fault::Eio),
            FaultKind::ShortRead => (IoKind::Read, Fault::Short { landed: self.rng.below(4) }),
            FaultKind::Write => (updates[any], Fault::Eio),
            FaultKind::ShortWrite => (transfers[any], Fault::Short { landed: self.rng.below(4) }),
            FaultKind::NoSpace => {
                let kind = if any == 0 { IoKind::SetLen } else { transfers[any] };
                (kind, Fault::Enospc { landed: self.rng.below(2) })
            }
            FaultKind::NoSpaceForAWhile => {
                let at = FaultAt::Span { first: 2 * nth, count: 1 + u64::from(self.rng.below(24)) };
                return Some(PlannedFault { at, fault: Fault::Enospc { landed: 0 } });
            }
            FaultKind::FlushRetrySafe => (IoKind::Flush, Fault::Flush(FlushFailure::RetrySafe)),
            FaultKind::FlushCleanMarked => (IoKind::Flush, Fault::Flush(FlushFailure::CleanMarked)),
            FaultKind::FlushSticky => (IoKind::Flush, Fault::Flush(FlushFailure::Sticky)),
            FaultKind::Late => {
                let kind = match self.rng.below(8) {
                    0..=3 => IoKind::Write,
                    4 => IoKind::WriteZeroes,
                    _ => updates[any],
                };
                (kind, Fault::Late)
            }
            FaultKind::WriteThroughFailed => {
                let failure = meanings[self.rng.below(3) as usize];
                let at = FaultAt::Nth { kind: IoKind::WriteThrough, nth: nth / 4 };
                return Some(PlannedFault { at, fault: Fault::Through(failure) });
            }
            FaultKind::FullDevice => {
                let at = FaultAt::From { kind: IoKind::SetLen, nth: nth / 2 };
                return Some(PlannedFault { at, fault: Fault::Enospc { landed: 0 } });
            }
            FaultKind::Dropped => return None,
        };
        Some(PlannedFault { at: FaultAt::Nth { kind, nth }, fault })
    }

    /// The id of the next write. The data of one in eight has zeroes.
    fn id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        if id % 8 == 5 { id | ZEROED } else { id }
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
                let id = self.id();
                let durability = if kind == 0 { Durability::Cached } else { Durability::Through };
                Op::Write { offset, length, id, durability }
            }
            2 => {
                let (offset, length) = self.range();
                Op::WriteZeroes { offset, length, unmap: self.rng.below(2) == 0 }
            }
            3 => {
                let (offset, length) = self.whole_clusters();
                if self.layered && self.rng.below(3) == 0 {
                    Op::Uncover { offset, length }
                } else {
                    Op::Discard { offset, length }
                }
            }
            4 => {
                let (offset, length) = self.range();
                Op::Read { offset, length }
            }
            // Of several tasks only one may change the size.
            6 if self.shrinking && task == 0 && self.rng.below(2) == 0 => {
                // By a little, or to any size; a disk of one cluster stays.
                let clusters = u32::try_from(self.size / self.cluster).expect("plans are small");
                let by = match self.rng.below(2) {
                    0 => 1 + self.rng.below(4),
                    _ => self.rng.below(clusters.max(1)),
                };
                let halves = 1 + u64::from(self.rng.below(2));
                let to = self.size.saturating_sub(u64::from(by) * self.cluster / halves);
                self.size = to.max(self.cluster).next_multiple_of(512).min(self.size);
                Op::Shrink { to: self.size }
            }
            6 => {
                // What is many small clusters is a long disk of large ones.
                let small = self.cluster <= 4096;
                let most = if self.rng.below(3) == 0 && small { 90 } else { 4 };
                let mut by = u64::from(1 + self.rng.below(most)) * self.cluster;
                if self.growing {
                    by = u64::from(1 + self.rng.below(3)) * (self.cluster / 8) * self.cluster;
                } else if small
                    && (SPARSE..8 * SPARSE).contains(&self.size)
                    && self.rng.below(2) == 0
                {
                    // By many L2 tables.
                    by *= self.cluster / 8;
                }
                if tasks == 1 {
                    let halves = 1 + u64::from(self.rng.below(2));
                    self.size = (self.size + by / halves).next_multiple_of(512);
                } else if task == 0 {
                    self.size += by;
                } else {
                    // Of two growths at once one would be a request to shrink.
                    return Op::Flush;
                }
                Op::Grow { to: self.size }
            }
            7 if tasks == 1 => Op::Reopen,
            8 => {
                let (offset, length) = self.range();
                let how = [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];
                Op::Preallocate { offset, length, how: how[self.rng.below(3) as usize] }
            }
            9 => {
                let (offset, length) = self.whole_clusters();
                let compresses = if self.rng.below(4) == 0 { 0 } else { COMPRESSIBLE };
                let id = self.id() | compresses;
                Op::WriteCompressed { offset, length, id }
            }
            10 => {
                let id = 1 + self.rng.below(PASSPHRASES);
                // Of eight slots the first is taken; one may be added twice, if it is not sure that it is there.
                if self.added < 4 && self.rng.below(5) < 3 {
                    self.added += 1;
                    Op::AddPassphrase { id }
                } else {
                    Op::RemovePassphrase { id }
                }
            }
            _ => Op::Flush,
        }
    }

    /// A range, in four cases of five of whole clusters.
    fn whole_clusters(&mut self) -> (u64, u64) {
        let (offset, length) = self.range();
        let start = offset - offset % self.cluster;
        let end = (offset + length).next_multiple_of(self.cluster).min(self.size);
        if self.rng.below(5) == 0 { (offset, length) } else { (start, end - start) }
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
        if self.long && self.rng.below(4) == 0 {
            let skip = u64::from(self.rng.below(2)) * 512;
            let length = match self.rng.below(3) {
                0 => self.size,
                _ => (LONG + u64::from(self.rng.below(100))) * self.cluster - skip,
            };
            let offset = (start + skip).min(self.size - 512);
            return (offset, length.min(LONGEST).min(self.size - offset));
        }
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
    use model::op::Op;

    use super::{FaultKind, LONGEST, Plan, Scope, Shape};
    use crate::capabilities::Capabilities;

    fn plan(seed: u64, scope: &Scope) -> Plan {
        super::plan(seed, scope, &Capabilities::everything())
    }

    #[test]
    fn every_kind_of_fault_can_be_asked_for() {
        for kind in FaultKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            let scope = Scope { fault: Some(kind), ..Scope::default() };
            for life in (0..40).flat_map(|seed| plan(seed, &scope).lives) {
                let drawn = life.faults.iter().any(|fault| FaultKind::of(fault) == kind);
                assert!(drawn || (kind == FaultKind::Dropped && life.dropped.is_some()), "{kind}");
            }
        }
        assert!("x".parse::<FaultKind>().unwrap_err().to_string().contains("flush-sticky"));
    }

    /// Goal: errors and dropped requests are left out each by itself, but for what is asked for. Method: what many plans have of each.
    #[test]
    fn errors_and_drops_are_left_out_apart() {
        let drawn = |no_errors, no_drops, fault| {
            let scope = Scope { no_errors, no_drops, fault, ..Scope::default() };
            let lives: Vec<_> = (0..300).flat_map(|seed| plan(seed, &scope).lives).collect();
            let errors = lives.iter().flat_map(|life| &life.faults).map(FaultKind::of);
            let drops = lives.iter().filter(|life| life.dropped.is_some()).count();
            (errors.collect::<std::collections::BTreeSet<_>>(), drops)
        };
        let (errors, drops) = drawn(false, false, None);
        assert!(errors.len() == FaultKind::ALL.len() - 1 && drops > 20, "{errors:?}, {drops}");
        let (errors, drops) = drawn(true, false, None);
        assert!(errors.is_empty() && drops > 20, "{errors:?}, {drops}");
        let (errors, drops) = drawn(false, true, None);
        assert!(errors.len() > 9 && drops == 0, "{errors:?}, {drops}");
        assert_eq!(drawn(true, true, None), Default::default());
        let (errors, drops) = drawn(true, true, Some(FaultKind::Read));
        assert!(errors.iter().eq(&[FaultKind::Read]) && drops == 0, "{errors:?}, {drops}");
    }

    #[test]
    fn every_shape_can_be_asked_for() {
        for shape in Shape::ALL {
            assert_eq!(shape.to_string().parse(), Ok(shape));
            let scope = Scope { shape: Some(shape), ..Scope::default() };
            let drawn = |seed: &u64| plan(*seed, &scope).shapes().any(|drawn| drawn == shape);
            let cases = (0..40).filter(drawn).count();
            let least = if shape == Shape::Long { 20 } else { 40 };
            assert!(cases >= least, "{shape}: {cases} of 40");
        }
        assert!("x".parse::<Shape>().unwrap_err().to_string().contains("sparse"));
    }

    #[test]
    fn a_seed_is_a_plan() {
        for seed in 0..50 {
            assert_eq!(plan(seed, &Scope::default()), plan(seed, &Scope::default()));
        }
    }

    #[test]
    fn operations_are_valid_and_most_plans_have_two_lives() {
        let mut long = 0;
        let mut shapes = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let plan = plan(seed, &Scope::default());
            shapes.extend(plan.shapes());
            assert_eq!(plan.geometry.fault(), None);
            long += usize::from(plan.lives.len() > 1);
            for op in plan.lives.iter().flat_map(|life| &life.tasks).flatten() {
                assert_eq!(op.fault(), None, "{op:?}");
            }
        }
        assert!(long > 250, "{long} of 500");
        assert!(shapes.into_iter().eq(Shape::ALL), "each is drawn now and then");
    }

    /// Goal: no case takes as long as a campaign. Method: thousands of plans; what one in so many has is there.
    #[test]
    fn no_request_is_longer_than_the_longest() {
        let mut longest = 0;
        for seed in 0..8000 {
            let lives = plan(seed, &Scope::default()).lives;
            let lengths = lives.iter().flat_map(|life| life.tasks.iter().flatten());
            longest = lengths.map(Op::length).fold(longest, u64::max);
        }
        // Rounded to whole clusters, of up to 64 KiB.
        assert!((LONGEST / 4..=LONGEST + (64 << 10)).contains(&longest), "{longest} bytes");
    }
}
