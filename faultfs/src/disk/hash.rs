//! The hash of a disk as a sum over its units, so that a change of one unit changes one summand.

use super::record::SLOT;
use crate::values::Key;

/// The share of one cell in the hash of the disk: nothing where it is zero, so that extent does not matter, and nothing
/// where it is a slot, which has a share of its own.
#[inline]
pub(super) fn cell_hash(unit: u32, cell: u32) -> u64 {
    if cell == 0 || cell & SLOT != 0 { 0 } else { mix((u64::from(unit) << 32) + u64::from(cell)) }
}

#[inline]
pub(super) fn set_hash(unit: u32, keys: &[Key]) -> u64 {
    match keys {
        [key] => cell_hash(unit, key.0),
        _ => {
            let members = keys.iter().map(|key| mix(u64::from(key.0) + 1));
            mix(members.fold(u64::from(unit), u64::wrapping_add))
        }
    }
}

/// The share of a length: of the first file, or of a second one that begins at unit `second`.
#[inline]
pub(super) const fn length_hash(second: Option<u32>, len: u32) -> u64 {
    match second {
        None => mix((1 << 62) + len as u64),
        Some(start) => mix((3 << 62) + ((start as u64) << 32) + len as u64),
    }
}

/// Finaliser of SplitMix64: every bit of the input moves half the bits of the output.
#[inline]
pub(super) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
