//! What a case is to do, before it runs: its image, and life after life its requests and faults.

use faultfs::fault::PlannedFault;
use faultfs::profile::DiscardMode;
use model::build::Initial;
use model::case::{Device, Dropped, Opening};
use model::op::{Compression, Durability, Geometry, Op};

use super::shape::Shape;
use crate::capabilities::{Capabilities, is_roomy};

/// So many requests in a task are many: they touch more pages than the cache keeps.
pub(super) const MANY: usize = 40;
/// So many bytes of disk are sparse.
pub(super) const SPARSE: u64 = 1 << 19;
/// So many entries are a page of L1 table.
const L1_PAGE: u64 = 512 / 8;
/// So many bytes of a sector are many.
pub(super) const SECTOR: u32 = 4096;
/// So many clusters of a request are long.
pub(super) const LONG: u64 = 16;

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
    /// Nothing recovers the image before the next life opens it.
    pub unrecovered: bool,
}

/// A random case before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The shape of the image.
    pub geometry: Geometry,
    /// What it holds at first.
    pub initial: Initial,
    /// How it is opened.
    pub open: Opening,
    /// What a discard leaves on the device.
    pub discard: DiscardMode,
    /// What the device offers besides.
    pub device: Device,
    /// What is done, life after life.
    pub lives: Vec<LifePlan>,
}

impl Plan {
    /// Which shapes it has.
    pub fn shapes(&self) -> impl Iterator<Item = Shape> {
        Shape::ALL.into_iter().filter(|shape| match shape {
            Shape::WriteThrough => self.open.write_through,
            Shape::Pages => self.open.page_size != 512,
            Shape::Eviction => self.lives.iter().any(|life| life.tasks[0].len() >= MANY),
            Shape::Working => self.lives.iter().any(|life| life.unrecovered),
            Shape::Transfers => {
                let plain = Device::default();
                self.device.max_transfer != plain.max_transfer || !self.device.can_discard
            }
            Shape::Stale => self.device.stale_units > 0,
            Shape::Widths => self.geometry.refcount_order != 4,
            Shape::Sparse => self.geometry.virtual_size >= SPARSE,
            Shape::Version2 => self.geometry.version == 2,
            Shape::Long => {
                let ops = self.lives.iter().flat_map(|life| life.tasks.iter().flatten());
                ops.clone().any(|op| op.length() >= LONG * self.geometry.cluster_size())
            }
            Shape::Growing => self.geometry.l1_entries() > L1_PAGE,
            Shape::Sectors => self.device.sector == SECTOR,
            Shape::Layered => self.geometry.below.is_some(),
            Shape::Subclusters => self.geometry.extended_l2,
            Shape::DataFiles => self.geometry.data_file.is_some(),
            Shape::Encrypted => self.geometry.encryption.is_some(),
            Shape::Passphrases => {
                let mut ops = self.lives.iter().flat_map(|life| life.tasks.iter().flatten());
                ops.any(|op| matches!(op, Op::AddPassphrase { .. } | Op::RemovePassphrase { .. }))
            }
            Shape::Ahead => {
                let mut ops = self.lives.iter().flat_map(|life| life.tasks.iter().flatten());
                ops.any(|op| matches!(op, Op::Preallocate { .. }))
            }
            Shape::CopyOnRead => self.open.copy_on_read && self.geometry.below.is_some(),
            Shape::Compressed => self.initial == Initial::Compressed,
            Shape::Compressing => {
                let mut ops = self.lives.iter().flat_map(|life| life.tasks.iter().flatten());
                ops.any(|op| matches!(op, Op::WriteCompressed { .. }))
            }
            Shape::Shrinking => {
                let mut ops = self.lives.iter().flat_map(|life| life.tasks.iter().flatten());
                ops.any(|op| matches!(op, Op::Shrink { .. }))
            }
        })
    }

    fn replace(&mut self, other: impl Fn(Op) -> Op) {
        for op in self.lives.iter_mut().flat_map(|life| life.tasks.iter_mut().flatten()) {
            *op = other(*op);
        }
    }

    /// Has no more in it than a subject can do: flushes and plain writes in the place of requests, and the parts of the image left out.
    pub(super) fn restrict(&mut self, can: &Capabilities) {
        self.replace(|op| match op {
            op if can.does(&op) => op,
            Op::WriteCompressed { offset, length, id } => {
                Op::Write { offset, length, id, durability: Durability::Cached }
            }
            Op::Uncover { offset, length } if can.discard => Op::Discard { offset, length },
            _ => Op::Flush,
        });
        if !can.dropped_requests {
            self.lives.iter_mut().for_each(|life| life.dropped = None);
        }
        let Geometry { version, cluster_bits, refcount_order, .. } = &mut self.geometry;
        if !can.version_2 || !(can.refcount_orders.0..=can.refcount_orders.1).contains(&4) {
            *version = 3;
        }
        *cluster_bits = (*cluster_bits).clamp(can.cluster_bits.0, can.cluster_bits.1);
        *refcount_order = (*refcount_order).clamp(can.refcount_orders.0, can.refcount_orders.1);
        while !can.grows_tables && !is_roomy(&self.geometry) {
            let Geometry { version, cluster_bits, refcount_order, .. } = &mut self.geometry;
            if *version == 3 && *refcount_order > can.refcount_orders.0 {
                *refcount_order -= 1;
            } else if *cluster_bits < can.cluster_bits.1 {
                *cluster_bits += 1;
            } else {
                break;
            }
        }
        if !can.lazy_refcounts {
            self.geometry.lazy_refcounts = false;
            self.open.lazy_refcounts = None;
        }
        if !can.subclusters {
            self.geometry.extended_l2 = false;
        }
        if !can.data_files {
            self.geometry.data_file = None;
        }
        if !can.encryption {
            self.geometry.encryption = None;
            self.replace(|op| match op {
                Op::AddPassphrase { .. } | Op::RemovePassphrase { .. } => Op::Flush,
                op => op,
            });
        }
        if !can.layers {
            self.geometry.below = None;
        }
        if !can.compressed && self.initial == Initial::Compressed {
            self.initial = Initial::Fragmented;
        }
        if !can.compressed || !can.zstd {
            self.geometry.compression = Compression::Deflate;
        }
        if can.refuses(&self.geometry, self.initial).is_some() {
            self.initial = Initial::Fresh;
        }
    }
}
