//! Key slots: from a passphrase to the key of the data, and back into a slot.
//!
//! ```text
//!   passphrase ──PBKDF2, salt and rounds of the slot──> key of the slot
//!   key material on the storage ──deciphered with that, sector by sector──> stripes ──merged──> key of the data
//!   key of the data ──PBKDF2, salt and rounds of the header──> digest: whether it is the right one
//! ```
//!
//! **Invariant.** How long this takes is bounded whatever a header says: one that asks for more rounds than [`MOST_ROUNDS`] is refused.

use zeroize::Zeroizing;

use super::hash::Hash;
use super::header::{Fault, LuksHeader, SLOTS};
use super::split;
use super::xts::Xts;

/// Most rounds that a slot, or the digest, may ask for: some ten seconds on a machine of 2026.
pub(crate) const MOST_ROUNDS: u32 = 1 << 26;
/// The digest takes fewer rounds than a slot, because what it is of cannot be guessed.
const LEAST_DIGEST_ROUNDS: u32 = 1000;
const SLOT_ROUNDS_PER_DIGEST_ROUND: u32 = 8;
const CIPHER: &str = "aes";
const MODE: &str = "xts-plain64";
/// Of a new header: AES-256, twice.
const KEY_BYTES: u32 = 64;

/// Why key slots cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadSlots {
    Fault(Fault),
    Unsupported(String),
}

/// The key that enciphers the data.
pub(crate) type DataKey = Zeroizing<Vec<u8>>;

/// A header whose slots can be opened.
#[derive(Clone, Debug)]
pub(crate) struct KeySlots {
    header: LuksHeader,
    hash: Hash,
}

fn too_many(what: &str, rounds: u32) -> BadSlots {
    BadSlots::Unsupported(format!(
        "{what} of a LUKS header that takes {rounds} rounds of hashing, more than {MOST_ROUNDS},"
    ))
}

impl KeySlots {
    /// Those of a header.
    pub(crate) fn of(header: LuksHeader) -> Result<Self, BadSlots> {
        let LuksHeader { cipher, mode, hash, key_bytes, digest_rounds, .. } = &header;
        let is_known = cipher == CIPHER && mode == MODE && matches!(key_bytes, 32 | 64);
        let hash_name = hash;
        let hash = Hash::ALL.into_iter().find(|hash| hash.name() == hash_name);
        let Some(hash) = hash.filter(|_| is_known) else {
            return Err(BadSlots::Unsupported(format!(
                "a LUKS header with cipher {cipher:?}, mode {mode:?}, a key of {key_bytes} bytes and hash {hash_name:?} \
                 (known are \"aes\", \"xts-plain64\", 32 or 64 bytes, and \"sha1\", \"sha256\" or \"sha512\")"
            )));
        };
        if *digest_rounds > MOST_ROUNDS {
            return Err(too_many("the digest", *digest_rounds));
        }
        let none = |field, at| {
            let rule = "takes no round of hashing";
            Err(BadSlots::Fault(Fault { field, at, value: 0, rule }))
        };
        if *digest_rounds == 0 {
            return none("rounds of the digest", 164);
        }
        for (slot, it) in header.slots.iter().enumerate() {
            if it.active && it.rounds == 0 {
                return none("rounds of a key slot", LuksHeader::slot_at(slot) + 4);
            }
        }
        Ok(Self { header, hash })
    }

    /// Slots for a new key, all of them disabled, and that key.
    pub(super) fn new(rounds: u32, random: &mut dyn FnMut(&mut [u8])) -> (Self, DataKey) {
        let hash = Hash::Sha256;
        let mut header = LuksHeader::new(CIPHER, MODE, hash.name(), KEY_BYTES);
        let mut key = Zeroizing::new(vec![0; KEY_BYTES as usize]);
        random(&mut key);
        random(&mut header.digest_salt);
        let mut uuid = [0; 16];
        random(&mut uuid);
        // Version 4 of RFC 9562: random, but for these bits.
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        for (at, byte) in uuid.into_iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            header.uuid.push_str(&format!("{dash}{byte:02x}"));
        }
        header.digest_rounds = (rounds / SLOT_ROUNDS_PER_DIGEST_ROUND).max(LEAST_DIGEST_ROUNDS);
        let mut slots = Self { header, hash };
        slots.header.digest = slots.digest_of(&key);
        (slots, key)
    }

    pub(crate) const fn header(&self) -> &LuksHeader {
        &self.header
    }

    /// Slots that have a key.
    pub(crate) fn active(&self) -> impl Iterator<Item = usize> + use<'_> {
        (0..SLOTS).filter(|&slot| self.header.slots[slot].active)
    }

    /// What enciphers data with this key.
    pub(crate) fn cipher(key: &DataKey) -> Xts {
        Xts::new(key).expect("its length was looked at")
    }

    /// What a passphrase makes of the key material of a slot; none if it is another passphrase.
    pub(crate) fn open(
        &self,
        slot: usize,
        mut material: Zeroizing<Vec<u8>>,
        passphrase: &[u8],
    ) -> Result<Option<DataKey>, BadSlots> {
        let len = self.header.key_bytes as usize;
        let it = &self.header.slots[slot];
        if it.rounds > MOST_ROUNDS {
            return Err(too_many(&format!("key slot {slot}"), it.rounds));
        }
        let key = self.hash.stretch(passphrase, &it.salt, it.rounds, len);
        Self::cipher(&key).decipher(0, &mut material);
        let stripes = &material[..len * it.stripes as usize];
        let key = split::merge(self.hash, stripes, len);
        Ok((self.digest_of(&key) == self.header.digest).then_some(key))
    }

    /// Puts the key into a slot that has none, with another salt; the header does not say yet that it is there. Returns the key material, in
    /// whole sectors.
    pub(crate) fn put(
        &mut self,
        slot: usize,
        key: &DataKey,
        passphrase: &[u8],
        rounds: u32,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Vec<u8> {
        let len = key.len();
        let range = self.header.material(slot);
        let it = &mut self.header.slots[slot];
        it.rounds = rounds.clamp(1, MOST_ROUNDS);
        random(&mut it.salt);
        let mut material = vec![0; usize::try_from(range.end - range.start).expect("it is small")];
        let stripes = &mut material[..len * it.stripes as usize];
        random(stripes);
        split::split(self.hash, key, stripes);
        let key = self.hash.stretch(passphrase, &it.salt, it.rounds, len);
        Self::cipher(&key).encipher(0, &mut material);
        material
    }

    /// Says that a slot has a key, or that it has none.
    pub(crate) fn set_active(&mut self, slot: usize, active: bool) {
        self.header.slots[slot].active = active;
    }

    fn digest_of(&self, key: &DataKey) -> [u8; 20] {
        let LuksHeader { digest_salt, digest_rounds, .. } = &self.header;
        let digest = self.hash.stretch(key, digest_salt, *digest_rounds, 20);
        digest[..].try_into().expect("20 bytes were asked for")
    }
}

#[cfg(test)]
mod tests {
    use super::{BadSlots, KeySlots, MOST_ROUNDS};
    use crate::crypt::header::LuksHeader;
    use zeroize::Zeroizing;

    fn counting() -> impl FnMut(&mut [u8]) {
        let mut next = 0u64;
        move |bytes| {
            for byte in bytes {
                next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (next >> 56) as u8;
            }
        }
    }

    /// Goal: each passphrase opens its own slot and no other, and all of them give the same key.
    #[test]
    fn a_passphrase_opens_its_slot() {
        let mut random = counting();
        let (mut slots, key) = KeySlots::new(8, &mut random);
        let passphrases: [&[u8]; 2] = [b"one", b"another"];
        let materials = [0, 6].map(|slot| {
            let passphrase = passphrases[slot / 6];
            let material = slots.put(slot, &key, passphrase, 8, &mut random);
            slots.set_active(slot, true);
            (slot, material)
        });
        assert_eq!(slots.active().collect::<Vec<_>>(), [0, 6]);
        let header = slots.header();
        let read = LuksHeader::parse(&header.encode(), header.area_bytes()).expect("it is one");
        let slots = KeySlots::of(read).expect("it can be used");
        for (slot, material) in materials {
            for (at, passphrase) in passphrases.into_iter().enumerate() {
                let opened = slots.open(slot, Zeroizing::new(material.clone()), passphrase);
                let opened = opened.expect("not too many rounds");
                assert_eq!(opened.as_ref(), (at == slot / 6).then_some(&key), "slot {slot}");
            }
        }
    }

    #[test]
    fn what_cannot_be_opened_is_refused_by_name() {
        let (slots, _) = KeySlots::new(8, &mut counting());
        let refused = |change: fn(&mut LuksHeader)| {
            let mut header = slots.header().clone();
            change(&mut header);
            KeySlots::of(header).expect_err("it is refused")
        };
        let unsupported = |change: fn(&mut LuksHeader), part: &str| match refused(change) {
            BadSlots::Unsupported(what) => assert!(what.contains(part), "{what}"),
            BadSlots::Fault(fault) => panic!("{fault:?}"),
        };
        unsupported(|it| it.cipher = "serpent".into(), "\"serpent\"");
        unsupported(|it| it.mode = "cbc-essiv:sha256".into(), "\"cbc-essiv:sha256\"");
        unsupported(|it| it.hash = "ripemd160".into(), "\"ripemd160\"");
        unsupported(|it| it.key_bytes = 48, "48 bytes");
        unsupported(|it| it.digest_rounds = u32::MAX, "4294967295 rounds");
        let fault = |change: fn(&mut LuksHeader)| match refused(change) {
            BadSlots::Fault(fault) => fault.at,
            BadSlots::Unsupported(what) => panic!("{what}"),
        };
        assert_eq!(fault(|it| it.digest_rounds = 0), 164);
        assert_eq!(fault(|it| it.slots[1].active = true), 208 + 48 + 4);
        let mut header = slots.header().clone();
        header.slots[3].active = true;
        header.slots[3].rounds = MOST_ROUNDS + 1;
        let slots = KeySlots::of(header).expect("others may open");
        let material = Zeroizing::new(vec![0; 256_000]);
        assert!(matches!(slots.open(3, material, b"one"), Err(BadSlots::Unsupported(_))));
    }
}
