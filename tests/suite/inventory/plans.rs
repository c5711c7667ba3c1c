//! What the lines ask of a plan.

use model::op::Op;
use qcow2_crashtest::workload::Plan;

/// Whether some request of a plan is like that; with the plan's cluster size.
pub(super) fn some(plan: &Plan, is: impl Fn(&Op, u64) -> bool) -> bool {
    let cluster = plan.geometry.cluster_size();
    plan.lives.iter().flat_map(|life| life.tasks.iter().flatten()).any(|op| is(op, cluster))
}

/// Where a request that names a range begins, and its length.
pub(super) const fn range(op: &Op) -> Option<(u64, u64)> {
    match *op {
        Op::Write { offset, length, .. }
        | Op::WriteCompressed { offset, length, .. }
        | Op::WriteZeroes { offset, length, .. }
        | Op::Discard { offset, length }
        | Op::Uncover { offset, length }
        | Op::Preallocate { offset, length, .. }
        | Op::Read { offset, length } => Some((offset, length)),
        Op::AddPassphrase { .. }
        | Op::RemovePassphrase { .. }
        | Op::Flush
        | Op::Grow { .. }
        | Op::Shrink { .. }
        | Op::Reopen => None,
    }
}

pub(super) const fn is_write(op: &Op) -> bool {
    matches!(op, Op::Write { .. })
}

pub(super) const fn is_compressed(op: &Op) -> bool {
    matches!(op, Op::WriteCompressed { .. })
}

pub(super) const fn is_zeroing(op: &Op) -> bool {
    matches!(op, Op::WriteZeroes { .. })
}

pub(super) const fn is_discard(op: &Op) -> bool {
    matches!(op, Op::Discard { .. })
}

pub(super) const fn is_read(op: &Op) -> bool {
    matches!(op, Op::Read { .. })
}

/// Whether both ends of a request's range are, or are not, at the start of a cluster.
pub(super) fn ends_at_clusters(op: &Op, cluster: u64, first: bool, last: bool) -> bool {
    let is = |at: u64| at.is_multiple_of(cluster);
    range(op).is_some_and(|(offset, length)| is(offset) == first && is(offset + length) == last)
}

/// Whether a request touches so many clusters.
pub(super) fn clusters(op: &Op, cluster: u64) -> u64 {
    range(op).map_or(0, |(offset, length)| (offset + length).div_ceil(cluster) - offset / cluster)
}

/// Whether a request ends in the middle of the last cluster, where the disk ends.
pub(super) fn takes_a_short_last_cluster(plan: &Plan, is: fn(&Op) -> bool) -> bool {
    let size = plan.geometry.virtual_size;
    some(plan, |op, cluster| {
        let (offset, length) = range(op).unwrap_or_default();
        is(op) && offset + length == size && !size.is_multiple_of(cluster)
    })
}

/// Whether several tasks run at once in some life, and some of their requests are like that.
pub(super) fn beside_others(plan: &Plan, is: fn(&Op) -> bool) -> bool {
    plan.lives.iter().any(|life| life.tasks.len() > 1 && life.tasks.iter().flatten().any(is))
}

/// Bytes of a metadata page, its own choice included.
pub(super) fn page(plan: &Plan) -> u64 {
    let bytes = match plan.open.page_size {
        0 => 4096,
        bytes => bytes,
    };
    bytes.max(plan.device.sector).into()
}
