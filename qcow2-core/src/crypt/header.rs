//! The header of LUKS version 1, which an image encrypted with LUKS has in clusters of its own.
//!
//! ```text
//!   byte    0      6     8        40       72       104     108   112      132      164     168    208
//!          |magic |1    |cipher  |mode    |hash    |payload|key  |digest  |salt    |rounds |uuid  |slot 0 .. slot 7|
//!          |LUKS..|     |"aes"   |"xts-.." |"sha256"|sector |bytes|of key  |        |       |      | 48 bytes each  |
//!
//!   slot    0       4       8                       40        44
//!          |active |rounds | salt, 32 bytes        |first    |stripes|
//!          |or not |       |                       |sector   | 4000  |
//!
//!   4096   | key material of slot 0 | of slot 1 | ..                   where each slot's sector says, behind the header's own bytes
//! ```
//!
//! Slot 6 lies across two units of 512 bytes. What makes a slot open or not is one number in one unit.

use std::ops::Range;

/// Bytes of the header.
pub(crate) const BYTES: usize = 592;
/// Key slots.
pub(crate) const SLOTS: usize = 8;
/// Stripes that a key is split into.
pub(crate) const STRIPES: u32 = 4000;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const ACTIVE: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
const SLOTS_AT: usize = 208;
const SLOT_BYTES: usize = 48;
/// Sectors before the first key material, and what that of each slot is aligned to.
const ALIGNMENT: u64 = 8;
const SECTOR: u64 = 512;

/// Why bytes are no LUKS header, with the byte at which it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Of what.
    pub(crate) field: &'static str,
    /// From the header's first byte on.
    pub(crate) at: usize,
    /// What it says.
    pub(crate) value: u64,
    /// What it should.
    pub(crate) rule: &'static str,
}

/// A LUKS header of version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LuksHeader {
    /// Name of the cipher.
    pub(crate) cipher: String,
    /// Its mode, and how the vectors of units are made.
    pub(crate) mode: String,
    /// Name of the hash.
    pub(crate) hash: String,
    /// The sector behind the last key material.
    pub(crate) payload_sector: u32,
    /// Bytes of the key that enciphers the data.
    pub(crate) key_bytes: u32,
    /// What that key gives, with this salt after so many rounds.
    pub(crate) digest: [u8; 20],
    /// See `digest`.
    pub(crate) digest_salt: [u8; 32],
    /// See `digest`.
    pub(crate) digest_rounds: u32,
    /// Its name among others, 36 characters.
    pub(crate) uuid: String,
    /// The key slots.
    pub(crate) slots: [KeySlot; SLOTS],
}

/// A place for the key, enciphered with a passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeySlot {
    /// Whether it has one.
    pub(crate) active: bool,
    /// Rounds that a passphrase is hashed.
    pub(crate) rounds: u32,
    /// What it is hashed with.
    pub(crate) salt: [u8; 32],
    /// First sector of its key material, from the header's first byte on.
    pub(crate) sector: u32,
    /// Stripes of that.
    pub(crate) stripes: u32,
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn put_text(bytes: &mut [u8], text: &str) {
    let len = text.len().min(bytes.len());
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
}

impl LuksHeader {
    /// A header whose slots are all disabled, for a key of so many bytes, with the places that QEMU gives its slots.
    pub(crate) fn new(cipher: &str, mode: &str, hash: &str, key_bytes: u32) -> Self {
        let sectors = material_bytes(key_bytes).div_ceil(SECTOR).next_multiple_of(ALIGNMENT);
        let sector = |slot: usize| (ALIGNMENT + slot as u64 * sectors) as u32;
        let slot = |at| KeySlot {
            active: false,
            rounds: 0,
            salt: [0; 32],
            sector: sector(at),
            stripes: STRIPES,
        };
        Self {
            cipher: cipher.into(),
            mode: mode.into(),
            hash: hash.into(),
            payload_sector: sector(SLOTS),
            key_bytes,
            digest: [0; 20],
            digest_salt: [0; 32],
            digest_rounds: 0,
            uuid: String::new(),
            slots: std::array::from_fn(slot),
        }
    }

    /// Parses a header in an area of `length` bytes, which has all key material.
    ///
    /// # Errors
    /// [`Fault`]: the first field that makes no sense.
    pub(crate) fn parse(bytes: &[u8; BYTES], length: u64) -> Result<Self, Fault> {
        let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four"));
        let fault = |field, at, value, rule| Err(Fault { field, at, value, rule });
        if bytes[..6] != MAGIC {
            let value = u64::from(u32_at(0));
            return fault("magic", 0, value, "is not that of a LUKS header");
        }
        let version = u16::from_be_bytes([bytes[6], bytes[7]]);
        if version != VERSION {
            return fault("version", 6, version.into(), "is not 1");
        }
        let array = |at: usize| bytes[at..at + 32].try_into().expect("32 bytes");
        let slots = std::array::from_fn(|slot| {
            let at = SLOTS_AT + slot * SLOT_BYTES;
            KeySlot {
                active: u32_at(at) == ACTIVE,
                rounds: u32_at(at + 4),
                salt: array(at + 8),
                sector: u32_at(at + 40),
                stripes: u32_at(at + 44),
            }
        });
        let header = Self {
            cipher: text(&bytes[8..40]),
            mode: text(&bytes[40..72]),
            hash: text(&bytes[72..104]),
            payload_sector: u32_at(104),
            key_bytes: u32_at(108),
            digest: bytes[112..132].try_into().expect("20 bytes"),
            digest_salt: array(132),
            digest_rounds: u32_at(164),
            uuid: text(&bytes[168..SLOTS_AT]),
            slots,
        };
        if !matches!(header.key_bytes, 1..=64) {
            return fault("key bytes", 108, header.key_bytes.into(), "is not from 1 to 64");
        }
        for (slot, it) in header.slots.iter().enumerate() {
            let at = SLOTS_AT + slot * SLOT_BYTES;
            let state = u32_at(at);
            if !matches!(state, ACTIVE | DISABLED) {
                return fault("state of a key slot", at, state.into(), "is neither on nor off");
            }
            if it.stripes != STRIPES {
                return fault("stripes of a key slot", at + 44, it.stripes.into(), "is not 4000");
            }
            let material = header.material(slot);
            let sector = u64::from(it.sector);
            if material.start < BYTES as u64 {
                return fault("sector of a key slot", at + 40, sector, "lies in the header");
            }
            if material.end > length {
                return fault(
                    "sector of a key slot",
                    at + 40,
                    sector,
                    "puts its end past the area",
                );
            }
            let overlaps = |other| {
                let other = header.material(other);
                material.start < other.end && other.start < material.end
            };
            if (0..slot).any(overlaps) {
                return fault("sector of a key slot", at + 40, sector, "lies in another slot");
            }
        }
        Ok(header)
    }

    /// Its bytes.
    pub(crate) fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..6].copy_from_slice(&MAGIC);
        bytes[6..8].copy_from_slice(&VERSION.to_be_bytes());
        put_text(&mut bytes[8..40], &self.cipher);
        put_text(&mut bytes[40..72], &self.mode);
        put_text(&mut bytes[72..104], &self.hash);
        bytes[104..108].copy_from_slice(&self.payload_sector.to_be_bytes());
        bytes[108..112].copy_from_slice(&self.key_bytes.to_be_bytes());
        bytes[112..132].copy_from_slice(&self.digest);
        bytes[132..164].copy_from_slice(&self.digest_salt);
        bytes[164..168].copy_from_slice(&self.digest_rounds.to_be_bytes());
        put_text(&mut bytes[168..SLOTS_AT], &self.uuid);
        for (slot, to) in self.slots.iter().zip(bytes[SLOTS_AT..].chunks_mut(SLOT_BYTES)) {
            let state = if slot.active { ACTIVE } else { DISABLED };
            to[..4].copy_from_slice(&state.to_be_bytes());
            to[4..8].copy_from_slice(&slot.rounds.to_be_bytes());
            to[8..40].copy_from_slice(&slot.salt);
            to[40..44].copy_from_slice(&slot.sector.to_be_bytes());
            to[44..48].copy_from_slice(&slot.stripes.to_be_bytes());
        }
        bytes
    }

    /// The key material of a slot, from the header's first byte on, in whole sectors.
    pub(crate) fn material(&self, slot: usize) -> Range<u64> {
        let start = u64::from(self.slots[slot].sector) * SECTOR;
        start..start + material_bytes(self.key_bytes).next_multiple_of(SECTOR)
    }

    /// Bytes of the header with all key material.
    pub(crate) fn area_bytes(&self) -> u64 {
        u64::from(self.payload_sector) * SECTOR
    }

    /// The first byte of a slot in the header.
    pub(crate) fn slot_at(slot: usize) -> usize {
        SLOTS_AT + slot * SLOT_BYTES
    }
}

/// Bytes of a key in stripes.
fn material_bytes(key_bytes: u32) -> u64 {
    u64::from(key_bytes) * u64::from(STRIPES)
}

#[cfg(test)]
mod tests {
    use super::{BYTES, LuksHeader, STRIPES};

    fn header() -> LuksHeader {
        let mut header = LuksHeader::new("aes", "xts-plain64", "sha256", 64);
        header.uuid = "f9c6fdc7-308b-465c-b381-1af851f8ad7c".into();
        header.digest = [1; 20];
        header.digest_salt = [2; 32];
        header.digest_rounds = 1000;
        header.slots[6].active = true;
        header.slots[6].rounds = 2000;
        header.slots[6].salt = [3; 32];
        header
    }

    /// Goal: slots lie where QEMU puts them, and a header is read as it was written.
    #[test]
    fn a_header_round_trips() {
        let header = header();
        let sectors: Vec<u32> = header.slots.iter().map(|slot| slot.sector).collect();
        assert_eq!(sectors, [8, 512, 1016, 1520, 2024, 2528, 3032, 3536]);
        assert_eq!((header.payload_sector, header.area_bytes()), (4040, 2_068_480));
        assert_eq!(LuksHeader::parse(&header.encode(), header.area_bytes()), Ok(header));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let fault = |at: usize, value: u32| {
            let header = header();
            let mut bytes: [u8; BYTES] = header.encode();
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
            let fault = LuksHeader::parse(&bytes, header.area_bytes()).expect_err("it is wrong");
            (fault.field, fault.at)
        };
        assert_eq!(fault(0, 0), ("magic", 0));
        assert_eq!(fault(4, 0xbabe_0002), ("version", 6));
        assert_eq!(fault(108, 0), ("key bytes", 108));
        assert_eq!(fault(108, 65), ("key bytes", 108));
        assert_eq!(fault(208, 7), ("state of a key slot", 208));
        assert_eq!(fault(208 + 48 + 44, STRIPES + 1), ("stripes of a key slot", 300));
        assert_eq!(fault(208 + 40, 1), ("sector of a key slot", 248));
        assert_eq!(fault(208 + 40, u32::MAX), ("sector of a key slot", 248));
        assert_eq!(fault(208 + 48 + 40, 9), ("sector of a key slot", 296));
    }
}
