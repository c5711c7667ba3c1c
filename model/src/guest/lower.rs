//! The layer below an image: what a guest unit reads as of which the image says nothing.

use std::sync::Arc;

use crate::evidence::ValueKey;
use crate::op::Geometry;
use crate::payload::{self, Unit, Value};

/// One that never changes, or none; cheap to clone. Behind its end it reads as zeroes.
#[derive(Clone, Debug, Default)]
pub struct LowerDisk(Option<Arc<[ValueKey]>>);

impl LowerDisk {
    /// The one that a geometry says, with the keys that `intern` gives.
    pub(super) fn of(geometry: &Geometry, intern: &mut impl FnMut(&Unit) -> ValueKey) -> Self {
        let key = |unit| match payload::below(unit) {
            Value::Tag { unit, id } => intern(&payload::unit(unit, id)),
            Value::Zero | Value::Foreign(_) => ValueKey::ZERO,
        };
        Self(geometry.below.map(|_| (0..geometry.below_units()).map(key).collect()))
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// How many units it has.
    pub fn units(&self) -> u64 {
        self.0.as_ref().map_or(0, |units| units.len() as u64)
    }

    /// What it holds there.
    pub fn value(&self, unit: u64) -> ValueKey {
        let units = self.0.as_deref().unwrap_or_default();
        let unit = usize::try_from(unit).ok().and_then(|unit| units.get(unit));
        unit.copied().unwrap_or(ValueKey::ZERO)
    }
}
