//! What a campaign asks of its cases.

use super::fault_kind::FaultKind;
use super::shape::Shape;

/// What a campaign asks of its cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only eager (`false`) or only lazy (`true`) refcounts.
    pub lazy: Option<bool>,
    /// Exactly this many tasks in every life.
    pub tasks: Option<usize>,
    /// No injected errors and no dropped futures.
    pub faultless: bool,
    /// A fault of this kind in every life, alone or beside another.
    pub fault: Option<FaultKind>,
    /// Only cases in which several tasks read, discard and write the same few clusters.
    pub contended: bool,
    /// Only clusters of 1 KiB and 4 KiB, and no initial image that fills refcount structures up.
    pub tiny: bool,
    /// Every case has this shape.
    pub shape: Option<Shape>,
}
