//! The LUKS header: it keeps the data key for whoever knows a passphrase.
//!
//! Numbers are big-endian, and a sector has 512 bytes:
//!
//! ```text
//!   0        magic 6 . version 2 . cipher 32 . mode 32 . hash 32 . payload's sector 4 . key bytes 4
//!   112      digest of the key 20 . its salt 32 . its iterations 4 . uuid 40
//!   208      8 slots of: state 4 . iterations 4 . salt 32 . material's sector 4 . stripes 4
//!            ... 5 | 448 . 6 | 496 . | 512 . 7 | 544 ... 592       slot 6 lies in two units: only the end of its salt is in the second
//!   4096     material of slot 0: the key in 4000 stripes, of which none may be missing, enciphered by number from 0 on
//!            up to a multiple of 8 sectors; then that of slot 1, and so on
//!   1052672  the end
//! ```
//!
//! The invariant: the material that [`Slot::material`] makes for a passphrase gives the data key for that passphrase and for no other, and not
//! if a bit of the material or of the slot's salt is another.

use std::ops::Range;
use std::sync::LazyLock;

use pbkdf2::pbkdf2_hmac_array;
use sha2::{Digest, Sha256};

use super::cipher::{Cipher, DATA_KEY, KEY, PASSPHRASE};
use crate::payload::{UNIT, Unit, ZEROES};

/// Bytes of a LUKS header with a key of 32 bytes: up to the end of the last slot's material.
pub const LUKS_BYTES: u64 = (FIRST_MATERIAL + SLOTS as u64 * MATERIAL_SECTORS) * UNIT as u64;

/// Slots of a header.
pub const SLOTS: usize = 8;

/// The state of a slot that is in use.
pub const ACTIVE: u32 = 0x00ac_71f3;

/// The state of one that is not.
pub const DISABLED: u32 = 0x0000_dead;

/// Iterations of the longest way from a passphrase to a slot's key that is gone: images under judgement have few.
pub const MAX_ITERATIONS: u32 = 1 << 12;

/// Units of the header that have fields.
pub const HEADER_UNITS: usize = 2;

/// These units.
pub type Fields = [Unit; HEADER_UNITS];

const STRIPES: u32 = 4000;
/// The first sector of the first slot's material.
const FIRST_MATERIAL: u64 = 8;
/// Sectors with stripes in a slot's material.
const STRIPE_SECTORS: u64 = (KEY as u64 * STRIPES as u64).div_ceil(UNIT as u64);
/// Sectors from one slot's material to the next one's.
const MATERIAL_SECTORS: u64 = STRIPE_SECTORS.next_multiple_of(8);
const FIRST_SLOT: usize = 208;
const SLOT_BYTES: usize = 48;
/// Bytes of a slot that change when a passphrase is added or removed: all but where its material is.
const CHANGING_BYTES: usize = 40;
const ITERATIONS: u32 = 1;
const DIGEST_SALT: [u8; 32] = *b"with which the key is digested..";
const SLOT_SALT: [u8; 32] = *b"with which a passphrase opens it";
const UUID: &[u8] = b"6d6f6465-6c00-4000-8000-6a7564676521";

/// The further passphrase of this number; [`PASSPHRASE`] is number 0.
pub fn passphrase(id: u32) -> String {
    match id {
        0 => PASSPHRASE.to_owned(),
        _ => format!("{PASSPHRASE}, and to number {id}"),
    }
}

/// What the fields say of a slot, except where its material is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// [`ACTIVE`], [`DISABLED`], or nonsense.
    pub state: u32,
    /// How often the passphrase goes through the hash.
    pub iterations: u32,
    /// What goes in beside it.
    pub salt: [u8; 32],
}

impl Slot {
    /// One that was never in use.
    pub const UNUSED: Self = Self { state: DISABLED, iterations: 0, salt: [0; 32] };

    /// One in use, with a salt of this number.
    pub fn in_use(number: u8) -> Self {
        let mut salt = SLOT_SALT;
        salt[0] ^= number;
        Self { state: ACTIVE, iterations: ITERATIONS, salt }
    }

    /// The slot of this number.
    pub fn read(fields: &Fields, number: usize) -> Self {
        let at = FIRST_SLOT + number * SLOT_BYTES;
        let (words, salt) = fields.as_flattened()[at..at + CHANGING_BYTES].split_at(8);
        let [state, iterations] = [0, 4].map(|at| be32(words, at));
        Self { state, iterations, salt: std::array::from_fn(|at| salt[at]) }
    }

    /// Writes it as the slot of this number.
    pub fn put(&self, fields: &mut Fields, number: usize) {
        let at = FIRST_SLOT + number * SLOT_BYTES;
        fields.as_flattened_mut()[at..at + CHANGING_BYTES].copy_from_slice(&self.bytes());
    }

    /// The unit of the header that the state of the slot of this number is in.
    pub const fn unit(number: usize) -> u64 {
        ((FIRST_SLOT + number * SLOT_BYTES) / UNIT) as u64
    }

    fn bytes(&self) -> [u8; CHANGING_BYTES] {
        let words = [self.state, self.iterations].map(u32::to_be_bytes);
        let mut bytes = words.as_flattened().iter().chain(&self.salt);
        std::array::from_fn(|_| *bytes.next().expect("two words and a salt"))
    }

    /// What it keeps: stripes that give the key only all together, enciphered as the passphrase says.
    pub fn material(&self, passphrase: &str) -> Vec<Unit> {
        let mut stripes = Vec::new();
        let mut mixed = [0; KEY];
        for index in 1..STRIPES {
            let stripe = Sha256::new().chain_update(b"stripe").chain_update(index.to_be_bytes());
            let stripe: [u8; KEY] = stripe.finalize().into();
            mixed = diffuse(xor(mixed, stripe));
            stripes.extend(stripe);
        }
        stripes.extend(xor(mixed, DATA_KEY));
        let cipher = self.cipher(passphrase);
        let mut units = units(&stripes);
        (0..).zip(&mut units).for_each(|(number, unit)| cipher.encipher(number, unit));
        units
    }

    /// Whether this material gives the data key for the passphrase, whatever the state says.
    pub fn gives_key(&self, mut material: Vec<Unit>, passphrase: &str) -> bool {
        if !(1..=MAX_ITERATIONS).contains(&self.iterations) {
            return false;
        }
        let cipher = self.cipher(passphrase);
        (0..).zip(&mut material).for_each(|(number, unit)| cipher.decipher(number, unit));
        let stripes = material.as_flattened().as_chunks::<KEY>().0;
        stripes.split_last().is_some_and(|(last, rest)| {
            let merged = rest.iter().fold([0; KEY], |mixed, stripe| diffuse(xor(mixed, *stripe)));
            xor(merged, *last) == DATA_KEY
        })
    }

    fn cipher(&self, passphrase: &str) -> Cipher {
        let key = pbkdf2_hmac_array::<Sha256, KEY>;
        Cipher::with_key(key(passphrase.as_bytes(), &self.salt, self.iterations))
    }
}

/// The units of the header that have the material of the slot of this number.
pub const fn material_units(number: usize) -> Range<u64> {
    let first = FIRST_MATERIAL + number as u64 * MATERIAL_SECTORS;
    first..first + STRIPE_SECTORS
}

/// Whether a unit of fields is what it was built as, whatever it says of slots other than the first.
pub fn is_as_built(unit: usize, bytes: &Unit) -> bool {
    let built = &built_fields()[unit];
    let is_slots = |at: usize| {
        let within = at.checked_sub(FIRST_SLOT + SLOT_BYTES);
        within.is_some_and(|within| {
            within < (SLOTS - 1) * SLOT_BYTES && within % SLOT_BYTES < CHANGING_BYTES
        })
    };
    let mut pairs = (unit * UNIT..).zip(bytes.iter().zip(built));
    bytes == built || pairs.all(|(at, (byte, built))| byte == built || is_slots(at))
}

/// The fields of the header as it is built: one slot is in use.
pub fn built_fields() -> &'static Fields {
    static FIELDS: LazyLock<Fields> = LazyLock::new(|| {
        let mut units = units(&fields()).into_iter();
        std::array::from_fn(|_| units.next().expect("592 bytes are two units"))
    });
    &FIELDS
}

/// The units of the LUKS header that are not zero, with their numbers in it, ascending: two of fields, and the material of the only slot
/// that is active.
pub fn luks_units() -> &'static [(u64, Unit)] {
    static UNITS: LazyLock<Vec<(u64, Unit)>> = LazyLock::new(|| slot_units(0, 0));
    &UNITS
}

/// The units of fields with one more slot in use, for the further passphrase of this number, and those of its material; with their numbers in
/// the header, ascending.
pub fn slot_units(number: usize, id: u32) -> Vec<(u64, Unit)> {
    let slot = Slot::in_use(number as u8);
    let mut fields = *built_fields();
    slot.put(&mut fields, number);
    (0..).zip(fields).chain(material_units(number).zip(slot.material(&passphrase(id)))).collect()
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
        bytes.extend(if slot == 0 { Slot::in_use(0) } else { Slot::UNUSED }.bytes());
        bytes.extend(sector(FIRST_MATERIAL + slot * MATERIAL_SECTORS));
        bytes.extend(STRIPES.to_be_bytes());
    }
    bytes
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|within| bytes[at + within]))
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
    use super::*;

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

    /// Goal: a slot opens with its passphrase and with nothing else, wherever it is. Method: each slot in use for another passphrase, read back;
    /// then one bit of its material and of its salt.
    #[test]
    fn slots_open_with_their_passphrases() {
        for number in 1..SLOTS {
            let id = number as u32 % 4;
            let units = slot_units(number, id);
            let fields = [units[0].1, units[1].1];
            assert!((0..HEADER_UNITS).all(|unit| is_as_built(unit, &fields[unit])));
            let others = (0..SLOTS).filter(|other| *other != number);
            let same = |other| Slot::read(&fields, other) == Slot::read(built_fields(), other);
            assert!(others.into_iter().all(same), "{number}");
            let slot = Slot::read(&fields, number);
            assert_eq!(slot, Slot::in_use(number as u8));
            assert_eq!(be32(fields.as_flattened(), 208 + number * 48), 0x00ac_71f3);
            assert!(units[2..].iter().map(|(unit, _)| *unit).eq(material_units(number)));
            let material: Vec<Unit> = units[2..].iter().map(|(_, unit)| *unit).collect();
            for other in 0..4 {
                let opens = slot.gives_key(material.clone(), &passphrase(other));
                assert_eq!(opens, other == id, "slot {number}, {other}");
            }
            let mut spoilt = material.clone();
            spoilt[249][511] ^= 1;
            assert!(!slot.gives_key(spoilt, &passphrase(id)));
            let mut salted = slot;
            salted.salt[31] ^= 1;
            assert!(!salted.gives_key(material.clone(), &passphrase(id)));
            for iterations in [0, 2, MAX_ITERATIONS + 1] {
                let slot = Slot { iterations, ..slot };
                assert!(!slot.gives_key(material.clone(), &passphrase(id)));
            }
        }
        assert!(!Slot::in_use(1).gives_key(Vec::new(), PASSPHRASE));
    }

    /// Goal: slots may change, all but the first, and nothing else of the fields. Method: every byte by itself.
    #[test]
    fn fields_stay_but_for_what_slots_say() {
        let changing = (0..2 * UNIT).filter(|at| {
            let mut fields = *built_fields();
            fields.as_flattened_mut()[*at] ^= 1;
            is_as_built(at / UNIT, &fields[at / UNIT])
        });
        let wanted = (1..8).flat_map(|slot| (0..40).map(move |at| 208 + slot * 48 + at));
        assert!(changing.eq(wanted));
    }
}
