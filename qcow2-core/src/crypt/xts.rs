//! AES in XTS mode over units of 512 bytes (IEEE 1619), as LUKS calls `aes-xts-plain64`.
//!
//! ```text
//!   tweak 0      = E(second half of the key, number of the unit, 16 bytes little endian)
//!   tweak j + 1  = tweak j times x in GF(2^128)
//!   block j      = E(first half of the key, plain j ^ tweak j) ^ tweak j              32 blocks of 16 bytes
//! ```
//!
//! Tweaks of several units are made in one call, and the blocks of a unit too: a processor works on eight blocks at once.

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes256, Block};
use storage::UNIT;

/// Bytes of a block of AES.
const BLOCK: usize = 16;
/// Blocks in a unit.
const BLOCKS: usize = UNIT / BLOCK;
/// Units whose tweaks are made at once.
const AT_ONCE: usize = 16;

/// A cipher with both halves of a key.
pub(crate) struct Keyed<C> {
    data: C,
    tweak: C,
}

impl<C: KeyInit> Keyed<C> {
    fn new(key: &[u8]) -> Option<Box<Self>> {
        let (data, tweak) = key.split_at(key.len() / 2);
        let of = |half| C::new_from_slice(half).ok();
        Some(Box::new(Self { data: of(data)?, tweak: of(tweak)? }))
    }
}

/// AES-XTS with one key of either length.
pub(crate) enum Xts {
    Aes128(Box<Keyed<Aes128>>),
    Aes256(Box<Keyed<Aes256>>),
}

impl Xts {
    /// With a key of 32 or of 64 bytes; none of any other length.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        match key.len() {
            32 => Some(Self::Aes128(Keyed::new(key)?)),
            64 => Some(Self::Aes256(Keyed::new(key)?)),
            _ => None,
        }
    }

    /// Enciphers whole units in place, the first of which has this number.
    pub(super) fn encipher(&self, first: u64, bytes: &mut [u8]) {
        match self {
            Self::Aes128(key) => {
                each_unit(&key.tweak, first, bytes, |blocks| key.data.encrypt_blocks(blocks));
            }
            Self::Aes256(key) => {
                each_unit(&key.tweak, first, bytes, |blocks| key.data.encrypt_blocks(blocks));
            }
        }
    }

    /// Deciphers whole units in place, the first of which has this number.
    pub(super) fn decipher(&self, first: u64, bytes: &mut [u8]) {
        match self {
            Self::Aes128(key) => {
                each_unit(&key.tweak, first, bytes, |blocks| key.data.decrypt_blocks(blocks));
            }
            Self::Aes256(key) => {
                each_unit(&key.tweak, first, bytes, |blocks| key.data.decrypt_blocks(blocks));
            }
        }
    }
}

/// Sends the blocks of each unit through `cipher`, between its tweaks.
#[expect(clippy::little_endian_bytes, reason = "XTS counts from the other end than qcow2")]
fn each_unit<C: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16>>(
    tweak: &C,
    first: u64,
    bytes: &mut [u8],
    cipher: impl Fn(&mut [Block]),
) {
    let (units, rest) = bytes.as_chunks_mut::<UNIT>();
    debug_assert!(rest.is_empty(), "whole units are enciphered");
    for (units, first) in units.chunks_mut(AT_ONCE).zip((first..).step_by(AT_ONCE)) {
        let mut tweaks = [Block::default(); AT_ONCE];
        for (number, tweak) in (first..).zip(&mut tweaks[..units.len()]) {
            tweak.copy_from_slice(&u128::from(number).to_le_bytes());
        }
        tweak.encrypt_blocks(&mut tweaks[..units.len()]);
        for (unit, tweak) in units.iter_mut().zip(tweaks) {
            let mut tweak = u128::from_le_bytes(tweak.into());
            let mut masks = [0u128; BLOCKS];
            for mask in &mut masks {
                *mask = tweak;
                tweak = tweak << 1 ^ (0x87 * (tweak >> 127));
            }
            mix(unit, &masks);
            cipher(Block::cast_slice_from_core_mut(unit.as_chunks_mut::<BLOCK>().0));
            mix(unit, &masks);
        }
    }
}

#[expect(clippy::little_endian_bytes, reason = "XTS counts from the other end than qcow2")]
fn mix(unit: &mut [u8; UNIT], masks: &[u128; BLOCKS]) {
    for (block, mask) in unit.as_chunks_mut::<BLOCK>().0.iter_mut().zip(masks) {
        *block = (u128::from_le_bytes(*block) ^ mask).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::Xts;
    use storage::UNIT;

    fn hex(text: &str) -> Vec<u8> {
        let digit = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("it is hex");
        (0..text.len()).step_by(2).map(digit).collect()
    }

    /// Vectors 4 and 10 of IEEE 1619-2007: the first and the last 16 bytes of what they give.
    #[test]
    fn the_vectors_of_the_standard() {
        let plain: Vec<u8> = (0..UNIT).map(|at| at as u8).collect();
        let key_128 = "2718281828459045235360287471352631415926535897932384626433832795";
        let key_256 = "2718281828459045235360287471352662497757247093699959574966967627\
                       3141592653589793238462643383279502884197169399375105820974944592";
        for (key, number, first) in [
            (key_128, 0, "27a7479befa1d476489f308cd4cfa6e2"),
            (key_256, 0xff, "1c3b3a102f770386e4836c99e370cf9b"),
        ] {
            let xts = Xts::new(&hex(key)).expect("a key of that length");
            let mut unit = plain.clone();
            xts.encipher(number, &mut unit);
            assert_eq!(unit[..16], hex(first), "{key}");
            xts.decipher(number, &mut unit);
            assert_eq!(unit, plain);
        }
        assert!(Xts::new(&[0; 48]).is_none());
    }

    /// Goal: many units at once are each enciphered as it is by itself.
    #[test]
    fn units_do_not_depend_on_each_other() {
        const FAR: u64 = 1 << 47;
        let xts = Xts::new(&[7; 64]).expect("a key of that length");
        let plain: Vec<u8> = (0..40 * UNIT).map(|at| ((at * 31) >> 3) as u8).collect();
        let mut together = plain.clone();
        xts.encipher(FAR, &mut together[..20 * UNIT]);
        xts.encipher(3, &mut together[20 * UNIT..]);
        for (at, unit) in plain.chunks(UNIT).enumerate() {
            let mut alone = unit.to_vec();
            let number = if at < 20 { FAR + at as u64 } else { 3 + at as u64 - 20 };
            xts.encipher(number, &mut alone);
            assert_eq!(alone, together[at * UNIT..(at + 1) * UNIT], "unit {at}");
            assert_ne!(alone, unit);
        }
    }
}
