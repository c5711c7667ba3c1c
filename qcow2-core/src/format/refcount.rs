//! Reading and writing single refcounts in a refcount block.
//!
//! A refcount block is one cluster of equally wide unsigned numbers, `2^order` bits each. The invariant: **setting one
//! refcount changes no other bit of the block**, and a value that does not fit is refused, never cut.
//!
//! ```text
//!   order 0: bit 0 of byte 0 is entry 0, bit 7 is entry 7        order 4 (the usual one):
//!   order 1: bits 0-1 of byte 0 are entry 0                        byte  0    1    2    3
//!   order 2: bits 0-3 of byte 0 are entry 0                            +----+----+----+----+
//!            +-----------+-----------+                                 | entry 0 | entry 1 |  big-endian
//!     byte 0 | entry 1   | entry 0   |                                 +---------+---------+
//!            +-7-6-5-4---+-3-2-1-0---+                           order 3, 5 and 6 likewise: 1, 4 and 8 bytes
//! ```

use super::{limits, put, u16_at, u32_at, u64_at};

/// Why a refcount was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefcountError {
    /// The width cannot hold it.
    #[error("a refcount of {value} does not fit in {bits} bits")]
    Overflow {
        /// The value.
        value: u64,
        /// Width of a refcount in this image.
        bits: u32,
    },
    /// The block has no such entry, or the order is none of 0..=6.
    #[error("a refcount block of {bytes} bytes with refcount order {order} has no entry {index}")]
    NoSuchEntry {
        /// Length of the block.
        bytes: usize,
        /// The order.
        order: u32,
        /// The entry asked for.
        index: usize,
    },
}

/// Refcounts in one block.
///
/// # Panics
/// If `cluster_bits` is outside [`limits::CLUSTER_BITS`] or `order` is above [`limits::REFCOUNT_ORDER`], which those of
/// no parsed header are.
pub const fn entries_per_block(cluster_bits: u32, order: u32) -> u64 {
    assert!(order <= limits::REFCOUNT_ORDER);
    // At most 2^21 * 2^3.
    limits::cluster_size(cluster_bits).wrapping_mul(8).wrapping_shr(order)
}

/// Largest refcount of this order.
///
/// # Panics
/// If `order` is above [`limits::REFCOUNT_ORDER`].
pub const fn max(order: u32) -> u64 {
    assert!(order <= limits::REFCOUNT_ORDER);
    u64::MAX.wrapping_shr(64u32.wrapping_sub(1u32.wrapping_shl(order)))
}

/// The refcount at `index`. None if the block has no such entry or the order is none of 0..=6.
pub fn get(block: &[u8], order: u32, index: usize) -> Option<u64> {
    match order {
        0..=2 => {
            let (byte, shift) = packed(order, index);
            let byte = u64::from(*block.get(byte)?);
            Some(byte.wrapping_shr(shift) & max(order))
        }
        3 => block.get(index).copied().map(u64::from),
        4 => u16_at(block, index.checked_mul(2)?).map(u64::from),
        5 => u32_at(block, index.checked_mul(4)?).map(u64::from),
        6 => u64_at(block, index.checked_mul(8)?),
        _ => None,
    }
}

/// Sets the refcount at `index`; on an error the block is unchanged.
///
/// # Errors
/// [`RefcountError`], if the block has no such entry, or the value does not fit into its bits.
pub fn set(block: &mut [u8], order: u32, index: usize, value: u64) -> Result<(), RefcountError> {
    let missing = RefcountError::NoSuchEntry { bytes: block.len(), order, index };
    if order > limits::REFCOUNT_ORDER {
        return Err(missing);
    }
    if value > max(order) {
        return Err(RefcountError::Overflow { value, bits: 1u32.wrapping_shl(order) });
    }
    let written = if order < 3 {
        let (byte, shift) = packed(order, index);
        block.get_mut(byte).map(|byte| {
            let others = u64::from(*byte) & !max(order).wrapping_shl(shift);
            let [.., low] = (others | value.wrapping_shl(shift)).to_be_bytes();
            *byte = low;
        })
    } else {
        let width = 1usize.wrapping_shl(order.wrapping_sub(3));
        let bytes = value.to_be_bytes();
        let (_, low) = bytes.split_at(bytes.len().saturating_sub(width));
        index.checked_mul(width).and_then(|at| put(block, at, low))
    };
    written.ok_or(missing)
}

/// Byte of entry `index` and the shift of its lowest bit, for orders 0 to 2.
const fn packed(order: u32, index: usize) -> (usize, u32) {
    let per_byte = 8usize.wrapping_shr(order);
    let within = (index & per_byte.wrapping_sub(1)) as u32;
    (index.wrapping_shr(3u32.wrapping_sub(order)), within.wrapping_shl(order))
}

#[cfg(test)]
mod tests {
    use quickcheck::{TestResult, quickcheck};

    use super::*;

    quickcheck! {
        /// Goal: a block behaves like an array of numbers. Method: random sets on a block and on a plain vector, then
        /// every entry compared.
        fn a_block_is_an_array(order: u32, sets: Vec<(usize, u64)>) -> bool {
            let order = order % 7;
            let mut block = vec![0; 64];
            let mut array = vec![0; (64 * 8) >> order];
            for (index, value) in sets {
                let (index, value) = (index % array.len(), value & max(order));
                set(&mut block, order, index, value).unwrap();
                array[index] = value;
            }
            (0..array.len()).all(|index| get(&block, order, index) == Some(array[index]))
                && get(&block, order, array.len()).is_none()
        }

        /// Goal: what does not fit, or is not there, is refused and changes nothing.
        fn errors_change_nothing(order: u32, index: usize, value: u64, block: Vec<u8>) -> TestResult {
            let order = order % 9;
            let mut after = block.clone();
            match set(&mut after, order, index, value) {
                Ok(()) => TestResult::discard(),
                Err(_) => TestResult::from_bool(after == block),
            }
        }
    }

    /// Goal: the packing is the specified one. Method: bytes written by hand, one example per order.
    #[test]
    fn packing_of_every_order() {
        let block = [0b1000_0110, 0x9c, 0xab, 0xcd, 1, 2, 3, 4];
        let entries = |order, count| -> Vec<u64> {
            (0..count).map(|index| get(&block, order, index).unwrap()).collect()
        };
        assert_eq!(entries(0, 8), [0, 1, 1, 0, 0, 0, 0, 1]);
        assert_eq!(entries(1, 8), [2, 1, 0, 2, 0, 3, 1, 2]);
        assert_eq!(entries(2, 4), [6, 8, 0xc, 9]);
        assert_eq!(entries(3, 3), [0x86, 0x9c, 0xab]);
        assert_eq!(entries(4, 2), [0x869c, 0xabcd]);
        assert_eq!(entries(5, 2), [0x869c_abcd, 0x0102_0304]);
        assert_eq!(entries(6, 1), [0x869c_abcd_0102_0304]);
        assert_eq!(get(&block, 7, 0), None);
    }

    /// Goal: the largest value of every width is accepted, the next one is refused.
    #[test]
    fn largest_value_and_one_past() {
        for order in 0..=6 {
            let mut block = [0; 64];
            assert_eq!(set(&mut block, order, 3, max(order)), Ok(()));
            assert_eq!(get(&block, order, 3), Some(max(order)));
            if let Some(value) = max(order).checked_add(1) {
                let error = RefcountError::Overflow { value, bits: 1 << order };
                assert_eq!(set(&mut block, order, 3, value), Err(error));
            }
        }
        assert!(set(&mut [0; 64], 7, 0, 0).is_err());
    }

    #[test]
    fn indices_that_overflow_are_missing() {
        for order in 0..=6 {
            assert_eq!(get(&[0; 64], order, usize::MAX), None);
            assert!(set(&mut [0; 64], order, usize::MAX, 0).is_err());
        }
    }

    #[test]
    fn entries_per_block_of_the_extremes() {
        assert_eq!(entries_per_block(9, 6), 64);
        assert_eq!(entries_per_block(16, 4), 32_768);
        assert_eq!(entries_per_block(21, 0), 1 << 24);
    }
}
