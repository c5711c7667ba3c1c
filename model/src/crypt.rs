//! The judge's own ciphers, and the LUKS header of the images that it builds.
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
//! The numbers go in as *plain64*: the first 8 of 16 bytes, little-endian, the rest zero. A LUKS header keeps the data key, for whoever knows a
//! passphrase, big-endian and in sectors of 512 bytes:
//!
//! ```text
//!   0        magic 6 . version 2 . cipher 32 . mode 32 . hash 32 . payload's sector 4 . key bytes 4
//!   112      digest of the key 20 . its salt 32 . its iterations 4 . uuid 40
//!   208      8 slots of: active 4 . iterations 4 . salt 32 . material's sector 4 . stripes 4
//!   4096     material of slot 0: the key in 4000 stripes, of which none may be missing, enciphered by number from 0 on
//!            up to a multiple of 8 sectors; then that of slot 1, and so on
//!   1052672  the end
//! ```
//!
//! The invariant: what [`Cipher::encipher`] gives, [`Cipher::decipher`] takes back under the same number. This shares no code with the
//! library: it has the modes from elsewhere, or its own. Nothing here is a secret: the passphrase and the key are constants, and iterations
//! are as few as there can be.

use std::sync::LazyLock;

use aes::Aes128;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use pbkdf2::pbkdf2_hmac_array;
use sha2::{Digest, Sha256};
use xts_mode::{Xts128, get_tweak_default};

use crate::op::Encryption;
use crate::payload::{UNIT, Unit, ZEROES};

/// What opens every image that is built encrypted.
pub const PASSPHRASE: &str = "open to the judge";

/// Bytes of a LUKS header with a key of 32 bytes: up to the end of the last slot's material.
pub const LUKS_BYTES: u64 = (FIRST_MATERIAL + SLOTS as u64 * MATERIAL_SECTORS) * UNIT as u64;

/// The key of the data of images built with a LUKS header, and that of its tweaks.
const DATA_KEY: [u8; KEY] = *b"sixteen for datasixteen to tweak";
const KEY: usize = 32;

const SLOTS: usize = 8;
const STRIPES: u32 = 4000;
/// The first sector of the first slot's material.
const FIRST_MATERIAL: u64 = 8;
/// Sectors from one slot's material to the next one's: 250 of stripes, up to a multiple of 8.
const MATERIAL_SECTORS: u64 =
    (KEY as u64 * STRIPES as u64).div_ceil(UNIT as u64).next_multiple_of(8);
const ACTIVE: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
const ITERATIONS: u32 = 1;
const DIGEST_SALT: [u8; 32] = *b"with which the key is digested..";
const SLOT_SALT: [u8; 32] = *b"with which a passphrase opens it";
const UUID: &[u8] = b"6d6f6465-6c00-4000-8000-6a7564676521";

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

    fn with_key(key: [u8; KEY]) -> Self {
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

fn decipher_chain(aes: &Aes128, first: [u8; 16], bytes: &mut [u8]) {
    let mut before = first;
    for block in bytes.as_chunks_mut::<16>().0 {
        let mut mixed = Array(*block);
        aes.decrypt_block(&mut mixed);
        let plain = std::array::from_fn(|at| mixed[at] ^ before[at]);
        before = std::mem::replace(block, plain);
    }
}

/// The units of the LUKS header that are not zero, with their numbers in it, ascending: two of fields, and the material of the only slot
/// that is active.
pub fn luks_units() -> &'static [(u64, Unit)] {
    static UNITS: LazyLock<Vec<(u64, Unit)>> = LazyLock::new(|| {
        let fields = (0..).zip(units(&fields()));
        fields.chain((FIRST_MATERIAL..).zip(material())).collect()
    });
    &UNITS
}

fn fields() -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &[u8], length: usize| {
        bytes.extend(text);
        bytes.resize(bytes.len() + length - text.len(), 0);
    };
    let sector = |number: u64| u32::try_from(number).expect("a header is short").to_be_bytes();
    bytes.extend(b"LUKS\xba\xbe\0\x01");
    text(&mut bytes, b"aes", 32);
    text(&mut bytes, b"xts-plain64", 32);
    text(&mut bytes, b"sha256", 32);
    bytes.extend(sector(LUKS_BYTES / UNIT as u64));
    bytes.extend((KEY as u32).to_be_bytes());
    bytes.extend(pbkdf2_hmac_array::<Sha256, 20>(&DATA_KEY, &DIGEST_SALT, ITERATIONS));
    bytes.extend(DIGEST_SALT);
    bytes.extend(ITERATIONS.to_be_bytes());
    text(&mut bytes, UUID, 40);
    for slot in 0..SLOTS as u64 {
        let (state, iterations, salt) = match slot {
            0 => (ACTIVE, ITERATIONS, SLOT_SALT),
            _ => (DISABLED, 0, [0; 32]),
        };
        bytes.extend(state.to_be_bytes());
        bytes.extend(iterations.to_be_bytes());
        bytes.extend(salt);
        bytes.extend(sector(FIRST_MATERIAL + slot * MATERIAL_SECTORS));
        bytes.extend(STRIPES.to_be_bytes());
    }
    bytes
}

/// What slot 0 keeps: stripes that give the key only all together, enciphered as the passphrase says.
fn material() -> Vec<Unit> {
    let mut stripes = Vec::new();
    let mut mixed = [0; KEY];
    for index in 1..STRIPES {
        let stripe = Sha256::new().chain_update(b"stripe").chain_update(index.to_be_bytes());
        let stripe: [u8; KEY] = stripe.finalize().into();
        mixed = diffuse(xor(mixed, stripe));
        stripes.extend(stripe);
    }
    stripes.extend(xor(mixed, DATA_KEY));
    let key = pbkdf2_hmac_array::<Sha256, KEY>(PASSPHRASE.as_bytes(), &SLOT_SALT, ITERATIONS);
    let cipher = Cipher::with_key(key);
    let mut units = units(&stripes);
    (0..).zip(&mut units).for_each(|(number, unit)| cipher.encipher(number, unit));
    units
}

fn xor(one: [u8; KEY], other: [u8; KEY]) -> [u8; KEY] {
    std::array::from_fn(|at| one[at] ^ other[at])
}

/// Spreads every bit over a stripe, which is as long as the hash.
fn diffuse(stripe: [u8; KEY]) -> [u8; KEY] {
    Sha256::new().chain_update(0u32.to_be_bytes()).chain_update(stripe).finalize().into()
}

fn units(bytes: &[u8]) -> Vec<Unit> {
    let unit = |chunk: &[u8]| {
        let mut unit = ZEROES;
        unit[..chunk.len()].copy_from_slice(chunk);
        unit
    };
    bytes.chunks(UNIT).map(unit).collect()
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

    /// Goal: whoever knows the passphrase gets the key out of the header. Method: the way that the specification of LUKS describes, from
    /// the bytes alone: fields, key of the slot, stripes merged, digest.
    #[test]
    fn the_header_opens() {
        let mut bytes = vec![0; LUKS_BYTES as usize];
        for (unit, content) in luks_units() {
            bytes[*unit as usize * UNIT..][..UNIT].copy_from_slice(content);
        }
        let be = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let text = |at: usize| bytes[at..at + 32].split(|byte| *byte == 0).next().unwrap();
        assert_eq!(&bytes[..8], b"LUKS\xba\xbe\0\x01");
        assert_eq!([8, 40, 72].map(text), [&b"aes"[..], b"xts-plain64", b"sha256"]);
        assert_eq!([104, 108].map(be), [2056, 32]);
        let states: Vec<u32> = (0..8).map(|slot| be(208 + slot * 48)).collect();
        assert_eq!(states, [&[0x00ac_71f3][..], &[0xdead; 7]].concat());
        let sectors: Vec<u32> = (0..8).map(|slot| be(208 + slot * 48 + 40)).collect();
        assert_eq!(sectors, (0..8).map(|slot| 8 + slot * 256).collect::<Vec<_>>());
        assert!((0..8).all(|slot| be(208 + slot * 48 + 44) == 4000));
        assert_eq!(bytes.iter().rposition(|byte| *byte != 0), Some(4096 + 128_000 - 1));

        let opened = |passphrase: &str| {
            let salt = &bytes[216..248];
            let key = pbkdf2_hmac_array::<Sha256, 32>(passphrase.as_bytes(), salt, be(212));
            let cipher = Cipher::with_key(key);
            let mut stripes = bytes[4096..4096 + 128_000].to_vec();
            let sectors = stripes.as_chunks_mut::<UNIT>().0;
            (0..).zip(sectors).for_each(|(number, sector)| cipher.decipher(number, sector));
            let (last, rest) = stripes.as_chunks::<32>().0.split_last().unwrap();
            let merged = rest.iter().fold([0; 32], |merged: [u8; 32], stripe| {
                let mixed: Vec<u8> =
                    merged.iter().zip(stripe).map(|(one, two)| one ^ two).collect();
                Sha256::digest([&[0; 4], &mixed[..]].concat()).into()
            });
            std::array::from_fn(|at| merged[at] ^ last[at])
        };
        let digest = |key: &[u8; 32]| {
            pbkdf2_hmac_array::<Sha256, 20>(key, &bytes[132..164], be(164)) == bytes[112..132]
        };
        let key: [u8; 32] = opened(PASSPHRASE);
        assert!(digest(&key));
        assert_eq!(key, DATA_KEY);
        assert!(!digest(&opened("open to nobody")));
    }
}
