//! The layer below the images of a campaign: a raw disk that never changes and holds what [`model::payload::below`] says. Of every other hole it
//! knows that it is one; what zeroes else there are is seen by who reads them.

use std::sync::Arc;

use model::op::Geometry;
use model::payload::{self, UNIT, Value, ZEROES};
use qcow2_core::storage::IoBuf;
use qcow2_core::{Known, Layer, LayerRead, OwnKnown};

/// Units from the beginning of a hole to that of the next.
const HOLES: u64 = 24;

/// Such a layer of so many bytes, a multiple of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    size: u64,
}

impl Base {
    /// The layer below images of a geometry, if there is one.
    pub fn of(geometry: &Geometry) -> Option<Self> {
        geometry.below.map(Self::new)
    }

    /// One of so many bytes.
    pub const fn new(size: u64) -> Self {
        Self { size }
    }

    /// The same for whoever opens an image over it.
    pub fn shared(self) -> Arc<dyn Layer> {
        Arc::new(self)
    }

    /// Fills `bytes` with what is there from `offset` on, both multiples of 512 bytes.
    pub fn fill(&self, offset: u64, bytes: &mut [u8]) {
        let units = self.size / UNIT as u64;
        for (unit, bytes) in (offset / UNIT as u64..).zip(bytes.as_chunks_mut::<UNIT>().0) {
            *bytes = match payload::below(unit) {
                Value::Tag { unit, id } if unit < units => payload::unit(unit, id),
                _ => ZEROES,
            };
        }
    }

    /// All of it, for a file.
    pub fn to_bytes(self) -> Vec<u8> {
        let len = usize::try_from(self.size).expect("a disk of a campaign fits in memory");
        let mut bytes = vec![0; len];
        self.fill(0, &mut bytes);
        bytes
    }
}

impl Layer for Base {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> LayerRead<'_> {
        self.fill(offset, &mut buf);
        Box::pin(std::future::ready((buf, Ok(()))))
    }

    fn known_own(&self, offset: u64, len: u64) -> OwnKnown<'_> {
        let known = |unit| payload::is_hole(unit) && (unit / HOLES).is_multiple_of(2);
        let (first, end) = (offset / UNIT as u64, (offset + len) / UNIT as u64);
        let alike = (first..end).take_while(|&unit| known(unit) == known(first)).count();
        let what = if known(first) { Known::Zeroes } else { Known::Nothing };
        Box::pin(std::future::ready((alike as u64 * UNIT as u64, what)))
    }
}
