//! Numbers in bytes, and units in a file.

use std::ops::Range;

use crate::evidence::Readable;
use crate::payload::{UNIT, Unit};

pub(super) const UNIT_BYTES: u64 = UNIT as u64;

/// The units of a range, as far as the file reaches.
#[inline]
pub(super) fn units_of(offset: u64, length: u64, file: u64) -> Range<u64> {
    let end = offset.saturating_add(length).min(file);
    offset.checked_div(UNIT_BYTES).unwrap_or(0)..end.div_ceil(UNIT_BYTES)
}

#[inline]
pub(super) fn be8(bytes: &Unit, at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

#[inline]
pub(super) fn be32(bytes: &Unit, at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |c| u32::from_be_bytes(*c))
}

#[inline]
pub(super) fn be64(bytes: &Unit, at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |c| u64::from_be_bytes(*c))
}

#[inline]
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Bytes of the file as a big-endian number: at most eight, wherever they lie.
pub(super) fn number<E: Readable>(evidence: &mut E, offset: u64, bytes: u64) -> u64 {
    (offset..offset.saturating_add(bytes)).fold(0, |number, at| {
        let key = evidence.resolve(at.checked_div(UNIT_BYTES).unwrap_or(0));
        let byte = be8(evidence.bytes(key), to_usize(at % UNIT_BYTES));
        number.wrapping_shl(8) | u64::from(byte)
    })
}
