//! AES-128 in CBC mode over units of 512 bytes: the encryption of images from before LUKS, which is not safe against who can change or
//! compare images, and is here so that such images can be read and written.
//!
//! ```text
//!   vector    = number of the unit, 8 bytes little endian, then zeroes          (plain64)
//!   block j   = E(plain j ^ block j - 1), where the vector is block -1
//! ```

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Block};
use storage::UNIT;

const BLOCK: usize = 16;
/// Units of which one block each is enciphered at once: a block waits for the one before it, and a processor works on eight.
const AT_ONCE: usize = 8;

/// AES-128-CBC with one key.
pub(crate) struct Cbc(Aes128);

impl Cbc {
    /// With the first 16 bytes of a passphrase, zeroes behind a shorter one.
    pub(super) fn new(passphrase: &[u8]) -> Self {
        let mut key = zeroize::Zeroizing::new([0; BLOCK]);
        let len = passphrase.len().min(BLOCK);
        key[..len].copy_from_slice(&passphrase[..len]);
        Self(Aes128::new((&*key).into()))
    }

    /// Enciphers whole units in place, the first of which has this number.
    pub(super) fn encipher(&self, first: u64, bytes: &mut [u8]) {
        let units = bytes.as_chunks_mut::<UNIT>().0;
        for (units, first) in units.chunks_mut(AT_ONCE).zip((first..).step_by(AT_ONCE)) {
            let mut last: [Block; AT_ONCE] = std::array::from_fn(|at| vector(first + at as u64));
            let last = &mut last[..units.len()];
            for block in 0..UNIT / BLOCK {
                for (unit, last) in units.iter().zip(&mut *last) {
                    mix(last, Block::cast_from_core(&unit.as_chunks().0[block]));
                }
                self.0.encrypt_blocks(last);
                for (unit, last) in units.iter_mut().zip(&*last) {
                    unit.as_chunks_mut().0[block] = last.0;
                }
            }
        }
    }

    /// Deciphers whole units in place, the first of which has this number.
    pub(super) fn decipher(&self, first: u64, bytes: &mut [u8]) {
        for (unit, number) in bytes.as_chunks_mut::<UNIT>().0.iter_mut().zip(first..) {
            let enciphered = *unit;
            let blocks = Block::cast_slice_from_core_mut(unit.as_chunks_mut::<BLOCK>().0);
            self.0.decrypt_blocks(blocks);
            mix(&mut blocks[0], &vector(number));
            let before = Block::cast_slice_from_core(enciphered.as_chunks::<BLOCK>().0);
            for (block, before) in blocks[1..].iter_mut().zip(before) {
                mix(block, before);
            }
        }
    }
}

#[expect(clippy::little_endian_bytes, reason = "plain64 counts from the other end than qcow2")]
fn vector(number: u64) -> Block {
    u128::from(number).to_le_bytes().into()
}

fn mix(block: &mut Block, with: &Block) {
    for (byte, with) in block.iter_mut().zip(with) {
        *byte ^= with;
    }
}

#[cfg(test)]
mod tests {
    use super::{AT_ONCE, Cbc};
    use aes::cipher::{BlockCipherEncrypt, KeyInit};
    use aes::{Aes128, Block};
    use storage::UNIT;

    /// Goal: the mode is that of the definition, block by block. Method: written again with single blocks, as SP 800-38A says.
    #[test]
    fn blocks_are_chained() {
        let (passphrase, number) = (b"not sixteen", 0x0102_0304_u64);
        let plain: [u8; UNIT] = std::array::from_fn(|at| (at * 7) as u8);
        let cbc = Cbc::new(passphrase);
        // Many units, each as if it were alone.
        let mut units = plain.repeat(2 * AT_ONCE + 3);
        cbc.encipher(number, &mut units);
        for (unit, number) in units.chunks(UNIT).zip(number..) {
            let mut alone = plain;
            cbc.encipher(number, &mut alone);
            assert_eq!(unit, alone, "unit {number}");
        }
        let mut unit: [u8; UNIT] = units[..UNIT].try_into().unwrap();
        let mut key = [0; 16];
        key[..passphrase.len()].copy_from_slice(passphrase);
        let aes = Aes128::new(&key.into());
        let mut last = [0; 16];
        last[..4].copy_from_slice(&[4, 3, 2, 1]);
        for (at, block) in plain.as_chunks::<16>().0.iter().enumerate() {
            let mut next = Block::from(std::array::from_fn::<u8, 16, _>(|at| block[at] ^ last[at]));
            aes.encrypt_block(&mut next);
            last = next.into();
            assert_eq!(unit[at * 16..][..16], last, "block {at}");
        }
        cbc.decipher(number, &mut unit);
        assert_eq!(unit, plain);
    }

    #[test]
    fn a_long_passphrase_is_cut() {
        let mut units = [[1; UNIT]; 2];
        Cbc::new(b"sixteen bytes of").encipher(9, &mut units[0]);
        Cbc::new(b"sixteen bytes of a passphrase").encipher(9, &mut units[1]);
        assert_eq!(units[0], units[1]);
    }
}
