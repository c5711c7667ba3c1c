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
    /// No failing I/O but that of `fault`.
    pub no_errors: bool,
    /// No dropped futures but those of `fault`.
    pub no_drops: bool,
    /// A fault of this kind in every life, alone or beside another.
    pub fault: Option<FaultKind>,
    /// Only cases in which several tasks read, discard and write the same few clusters.
    pub contended: bool,
    /// Only clusters of 1 KiB and 4 KiB, and no initial image that fills refcount structures up.
    pub tiny: bool,
    /// Every case has this shape.
    pub shape: Option<Shape>,
}

impl Scope {
    /// No failing I/O and no dropped futures; otherwise everything.
    pub fn faultless() -> Self {
        Self { no_errors: true, no_drops: true, ..Self::default() }
    }

    /// Whether a fault of this kind may come by itself.
    pub(super) const fn allows(&self, kind: FaultKind) -> bool {
        match kind {
            FaultKind::Dropped => !self.no_drops,
            _ => !self.no_errors,
        }
    }
}
