//! The ciphers of guest data.
//!
//! Guest data of an encrypted image is enciphered unit by unit, and each unit's number goes into the cipher: the same data in two places is
//! not the same bytes. Whose number that is differs:
//!
//! ```text
//!              mode          key                           number of a unit
//!   AES        CBC           the passphrase, 16 bytes      the guest's: where the guest reads it
//!   LUKS       XTS           16 bytes and 16 for tweaks    the host's: where it lies in the file that holds the data
//! ```
//!
//! The numbers go in as *plain64*: the first 8 of 16 bytes, little-endian, the rest zero.
//!
//! The invariant: what [`Cipher::encipher`] gives, [`Cipher::decipher`] takes back under the same number.

use std::sync::LazyLock;

use aes::Aes128;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use xts_mode::{Xts128, get_tweak_default};

use crate::op::Encryption;
use crate::payload::{UNIT, Unit};

/// What opens every image that is built encrypted.
pub const PASSPHRASE: &str = "open to the judge";

/// The key of the data of images built with a LUKS header, and that of its tweaks.
pub(super) const DATA_KEY: [u8; KEY] = *b"sixteen for datasixteen to tweak";
pub(super) const KEY: usize = 32;

/// One cipher under the key that all images of its kind have.
pub struct Cipher(Mode);

enum Mode {
    Cbc(Box<Aes128>),
    Xts(Box<Xts128<Aes128>>),
}

impl Cipher {
    /// The one of images built with this encryption.
    pub fn of(encryption: Encryption) -> &'static Self {
        static AES: LazyLock<Cipher> = LazyLock::new(|| {
            let mut key = [0; 16];
            key.iter_mut().zip(PASSPHRASE.bytes()).for_each(|(byte, of)| *byte = of);
            Cipher(Mode::Cbc(Box::new(Aes128::new(&Array(key)))))
        });
        static LUKS: LazyLock<Cipher> = LazyLock::new(|| Cipher::with_key(DATA_KEY));
        match encryption {
            Encryption::Aes => &AES,
            Encryption::Luks => &LUKS,
        }
    }

    pub(super) fn with_key(key: [u8; KEY]) -> Self {
        let [data, tweak] = [0, 16].map(|from| {
            let mut half = [0; 16];
            half.copy_from_slice(&key[from..from + 16]);
            Aes128::new(&Array(half))
        });
        Self(Mode::Xts(Box::new(Xts128::new(data, tweak))))
    }

    /// Enciphers the data of the unit of this number.
    pub fn encipher(&self, number: u64, unit: &mut Unit) {
        match &self.0 {
            Mode::Cbc(aes) => encipher_chain(aes, plain64(number), unit),
            Mode::Xts(xts) => xts.encrypt_sector(unit, get_tweak_default(number.into())),
        }
    }

    /// The other way round.
    pub fn decipher(&self, number: u64, unit: &mut Unit) {
        match &self.0 {
            Mode::Cbc(aes) => decipher_chain(aes, plain64(number), unit),
            Mode::Xts(xts) => xts.decrypt_sector(unit, get_tweak_default(number.into())),
        }
    }
}

#[expect(clippy::little_endian_bytes, reason = "numbers of units are little-endian in the cipher")]
fn plain64(number: u64) -> [u8; 16] {
    u128::from(number).to_le_bytes()
}

/// Each block of plaintext has the ciphertext before it mixed in.
fn encipher_chain(aes: &Aes128, first: [u8; 16], bytes: &mut [u8]) {
    let mut before = first;
    for block in bytes.as_chunks_mut::<16>().0 {
        let mut mixed = Array(std::array::from_fn(|at| block[at] ^ before[at]));
        aes.encrypt_block(&mut mixed);
        (*block, before) = (mixed.0, mixed.0);
    }
}

/// The other way round: what each block needs is there from the beginning, so the blocks of a unit are deciphered at once.
fn decipher_chain(aes: &Aes128, first: [u8; 16], bytes: &mut [u8]) {
    let mut before = first;
    for blocks in bytes.as_chunks_mut::<16>().0.chunks_mut(UNIT / 16) {
        let mut mixed = [Array::from([0; 16]); UNIT / 16];
        for (mixed, block) in mixed.iter_mut().zip(&*blocks) {
            *mixed = Array(*block);
        }
        aes.decrypt_blocks(&mut mixed[..blocks.len()]);
        for (block, mixed) in blocks.iter_mut().zip(mixed) {
            let plain = std::array::from_fn(|at| mixed[at] ^ before[at]);
            before = std::mem::replace(block, plain);
        }
    }
}

#[cfg(test)]
mod tests {
    use quickcheck::quickcheck;

    use super::*;

    fn number(hex: &str) -> u128 {
        u128::from_str_radix(hex, 16).unwrap()
    }

    quickcheck! {
        fn what_is_enciphered_comes_back(number: u64, of: u64, id: u32) -> bool {
            [Encryption::Aes, Encryption::Luks].map(Cipher::of).iter().all(|cipher| {
                let plain = crate::payload::unit(of, id);
                let mut unit = plain;
                cipher.encipher(number, &mut unit);
                let enciphered = unit;
                cipher.decipher(number, &mut unit);
                let mut elsewhere = enciphered;
                cipher.decipher(number ^ 1, &mut elsewhere);
                enciphered != plain && unit == plain && elsewhere != plain
            })
        }
    }

    /// Method: vectors 4 and 5 of IEEE 1619-2007, the second of which goes on with what the first gives, in the next unit.
    #[test]
    fn xts_gives_what_its_standard_says() {
        let mut key = [0; KEY];
        key[..16].copy_from_slice(&number("27182818284590452353602874713526").to_be_bytes());
        key[16..].copy_from_slice(&number("31415926535897932384626433832795").to_be_bytes());
        let cipher = Cipher::with_key(key);
        let mut unit: Unit = std::array::from_fn(|at| at as u8);
        let ends = |unit: &Unit| {
            let blocks = unit.as_chunks::<16>().0;
            [blocks[0], blocks[31]].map(u128::from_be_bytes)
        };
        cipher.encipher(0, &mut unit);
        assert_eq!(
            ends(&unit),
            ["27a7479befa1d476489f308cd4cfa6e2", "0a282df920147beabe421ee5319d0568"].map(number)
        );
        cipher.encipher(1, &mut unit);
        assert_eq!(
            ends(&unit),
            ["264d3ca8512194fec312c8c9891f279f", "fd2a89ccb45e001a03a867b187f225dd"].map(number)
        );
    }

    /// Method: the vectors of NIST SP 800-38A, F.2.1, and the numbers of units by hand.
    #[test]
    fn chains_are_what_their_standard_says() {
        let aes = Aes128::new(&Array(number("2b7e151628aed2a6abf7158809cf4f3c").to_be_bytes()));
        let first = number("000102030405060708090a0b0c0d0e0f").to_be_bytes();
        let bytes = |blocks: [&str; 4]| blocks.map(|hex| number(hex).to_be_bytes()).concat();
        let plain = bytes([
            "6bc1bee22e409f96e93d7e117393172a",
            "ae2d8a571e03ac9c9eb76fac45af8e51",
            "30c81c46a35ce411e5fbc1191a0a52ef",
            "f69f2445df4f9b17ad2b417be66c3710",
        ]);
        let mut chain = plain.clone();
        encipher_chain(&aes, first, &mut chain);
        let wanted = bytes([
            "7649abac8119b246cee98e9b12e9197d",
            "5086cb9b507219ee95db113a917678b2",
            "73bed6b8e3c1743b7116e69e22229516",
            "3ff1caa1681fac09120eca307586e1a7",
        ]);
        assert_eq!(chain, wanted);
        decipher_chain(&aes, first, &mut chain);
        assert_eq!(chain, plain);
        let wanted = [8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(plain64(0x0102_0304_0506_0708), wanted);
    }
}
