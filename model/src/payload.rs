//! Guest data that says whose it is.
//!
//! A unit is a function of (guest unit, write id), so whatever a disk gives back names its writer: a lost write, a stale
//! cluster and a neighbour's data look different in a report. The invariant: [`decode`] answers [`Value::Tag`] only if all
//! 512 bytes are exactly those that [`unit()`] makes for that tag.
//!
//! ```text
//!   0                   21      28       36   40                                            512
//!   +------+------------+-------+--------+----+-----------------------------------------------+
//!   |"unit "| 16 hex    |" write "| 8 hex |" ::\n"| 59 words of a stream seeded by (unit, id)   |
//!   +------+------------+-------+--------+----+-----------------------------------------------+
//! ```
//!
//! Of a write whose id says that it compresses, two units in three repeat one word 59 times: so its clusters become streams of several lengths,
//! and some become none. Of a write whose id says that it has zeroes, every other run of eight units is nothing but these, and names nobody.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// Bytes in a unit, the atom of a write.
pub const UNIT: usize = 512;

/// The content of one unit.
pub type Unit = [u8; UNIT];

/// The write id of data that an initial image holds.
pub const INITIAL: u32 = 0;

/// The write id of bytes that lie in free, leaked or preallocated clusters, where no guest may ever see them.
pub const STALE: u32 = u32::MAX;

/// The write id of what the layer below an image holds.
pub const BELOW: u32 = u32::MAX - 2;

/// Set in the id of a write whose data compresses.
pub const COMPRESSIBLE: u32 = 1 << 30;

/// Set in the id of a write some of whose data is zeroes.
pub const ZEROED: u32 = 1 << 29;

/// What an image over a layer calls it.
pub const LAYER_NAME: &[u8] = b"below.raw";

/// What such an image says of its format.
pub const LAYER_FORMAT: &[u8] = b"raw";

/// What an image with a data file calls that.
pub const DATA_NAME: &[u8] = b"data.raw";

/// A unit of zeroes.
pub const ZEROES: Unit = [0; UNIT];

const TAG: usize = 40;

/// What the bytes of one unit are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// All zeroes.
    Zero,
    /// Generated data.
    Tag {
        /// The guest unit that it was made for.
        unit: u64,
        /// The write that carried it.
        id: u32,
    },
    /// Anything else, by its hash.
    Foreign(u64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => f.write_str("zero"),
            Self::Tag { unit, id: INITIAL } => write!(f, "initial data of unit {unit}"),
            Self::Tag { unit, id: STALE } => write!(f, "stale bytes ({unit}) of no guest"),
            Self::Tag { unit, id: BELOW } => write!(f, "unit {unit} of the layer below"),
            Self::Tag { unit, id } if compresses(*id) => {
                write!(f, "unit {unit} of compressed write {}", number(*id))
            }
            Self::Tag { unit, id } => write!(f, "unit {unit} of write {}", number(*id)),
            Self::Foreign(hash) => write!(f, "foreign bytes {hash:016x}"),
        }
    }
}

/// Whether the data of write `id` compresses.
pub const fn compresses(id: u32) -> bool {
    id & (3 << 30) == COMPRESSIBLE
}

/// Whether some of the data of write `id` is zeroes.
pub const fn has_zeroes(id: u32) -> bool {
    id & (5 << 29) == ZEROED
}

/// The id of a write without what it says of the data.
pub const fn number(id: u32) -> u32 {
    let says =
        if compresses(id) { COMPRESSIBLE } else { 0 } | if has_zeroes(id) { ZEROED } else { 0 };
    id & !says
}

/// The content of guest unit `unit` as write `id` leaves it.
pub fn unit(unit: u64, id: u32) -> Unit {
    let mut bytes = ZEROES;
    if has_zeroes(id) && (unit / 8).is_multiple_of(2) {
        return bytes;
    }
    let (tag, words) = bytes.split_at_mut(TAG);
    tag[..5].copy_from_slice(b"unit ");
    hex(&mut tag[5..21], unit);
    tag[21..28].copy_from_slice(b" write ");
    hex(&mut tag[28..36], u64::from(id));
    tag[36..].copy_from_slice(b" ::\n");
    // splitmix64: cheap, and any two seeds differ in nearly every word.
    let mut state = unit.rotate_left(32) ^ u64::from(id);
    let repeats = compresses(id) && unit % 3 != 2;
    for (index, word) in words.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        if index == 0 || !repeats {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        }
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *word = (mixed ^ (mixed >> 31)).to_be_bytes();
    }
    bytes
}

/// What unit `of` of the layer below an image holds: some of them zeroes, so that clusters are mixed, and a third of it [holes](is_hole), so that
/// some clusters are nothing else.
pub const fn below(of: u64) -> Value {
    if of % 5 == 3 || is_hole(of) { Value::Zero } else { Value::Tag { unit: of, id: BELOW } }
}

/// Whether unit `of` of the layer is in a run of eight, of zeroes.
pub const fn is_hole(of: u64) -> bool {
    of / 8 % 3 == 2
}

/// What `bytes` are; all of them are verified.
pub fn decode(bytes: &Unit) -> Value {
    if *bytes == ZEROES {
        return Value::Zero;
    }
    let number = |range: std::ops::Range<usize>| {
        std::str::from_utf8(&bytes[range]).ok().and_then(|s| u64::from_str_radix(s, 16).ok())
    };
    if bytes.starts_with(b"unit ")
        && let (Some(of), Some(id)) = (number(5..21), number(28..36))
        && let Ok(id) = u32::try_from(id)
        && *bytes == unit(of, id)
    {
        return Value::Tag { unit: of, id };
    }
    Value::Foreign(xxh3_64(bytes))
}

/// Whether `bytes` are generated data of this image or its layer: what it may have nowhere as it is if it is encrypted.
pub fn is_payload(bytes: &Unit) -> bool {
    bytes.starts_with(b"unit ") && matches!(decode(bytes), Value::Tag { id, .. } if id != STALE)
}

fn hex(digits: &mut [u8], value: u64) {
    let mut rest = value;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use quickcheck::quickcheck;

    use super::*;

    quickcheck! {
        fn a_tag_survives_the_round_trip(of: u64, id: u32) -> bool {
            let made = unit(of, id);
            decode(&made) == if made == ZEROES { Value::Zero } else { Value::Tag { unit: of, id } }
        }

        fn one_changed_byte_is_noticed(of: u64, id: u32, at: u16, flip: u8) -> bool {
            let mut bytes = unit(of, id);
            let at = usize::from(at) % UNIT;
            bytes[at] ^= flip.max(1);
            matches!(decode(&bytes), Value::Foreign(_))
        }
    }

    #[test]
    fn payloads_of_two_writes_or_units_share_no_word() {
        let tags = [(0, 0), (0, 1), (1, 0), (1, 1), (1 << 32, 2), (1 << 32, 3), (2, u32::MAX)];
        for (at, (of, id)) in tags.into_iter().enumerate() {
            for (other, other_id) in &tags[..at] {
                let (one, two) = (unit(of, id), unit(*other, *other_id));
                let words = one[TAG..].as_chunks::<8>().0.iter().zip(two[TAG..].as_chunks::<8>().0);
                assert!(words.clone().all(|(a, b)| a != b), "{of}/{id}, {other}/{other_id}");
            }
        }
    }

    #[test]
    fn the_tag_is_readable() {
        assert_eq!(&unit(18, 7)[..TAG], b"unit 0000000000000012 write 00000007 ::\n");
        assert_eq!(decode(&ZEROES), Value::Zero);
        assert_eq!(decode(&unit(18, 7)).to_string(), "unit 18 of write 7");
    }

    /// Goal: clusters of such a write compress, by different amounts, and each unit goes on naming itself. Method: deflate.
    #[test]
    fn what_compresses_does() {
        let id = COMPRESSIBLE + 7;
        assert!(compresses(id) && !compresses(7) && !compresses(STALE) && !compresses(BELOW));
        let mut sectors = std::collections::BTreeSet::new();
        for cluster in 0..6 {
            let units = cluster * 8..cluster * 8 + 8;
            let data: Vec<u8> = units.clone().flat_map(|of| unit(of, id)).collect();
            for (of, bytes) in units.zip(data.as_chunks::<UNIT>().0) {
                assert_eq!(decode(bytes), Value::Tag { unit: of, id });
            }
            let stream = miniz_oxide::deflate::compress_to_vec(&data, 6);
            sectors.insert(stream.len().div_ceil(UNIT));
        }
        assert!(sectors.len() > 1 && sectors.iter().all(|&sectors| sectors < 7), "{sectors:?}");
        assert_eq!(decode(&unit(4, id)).to_string(), "unit 4 of compressed write 7");
    }

    /// Goal: of such a write whole clusters are zeroes and others are not, and no other id says so. Method: the runs of two of them.
    #[test]
    fn what_has_zeroes_does() {
        for id in [ZEROED + 7, ZEROED + COMPRESSIBLE + 7] {
            let zero: Vec<u64> = (0..32).filter(|of| unit(*of, id) == ZEROES).collect();
            assert_eq!(zero, (0..8).chain(16..24).collect::<Vec<_>>());
            assert_eq!(number(id), 7);
        }
        for id in [INITIAL, 7, COMPRESSIBLE + 7, BELOW, BELOW + 1, STALE] {
            assert!(!has_zeroes(id) && unit(0, id) != ZEROES, "{id}");
        }
        assert_eq!((number(STALE), number(BELOW)), (STALE, BELOW));
        assert_eq!(decode(&unit(8, ZEROED + 7)).to_string(), "unit 8 of write 7");
    }

    #[test]
    fn generated_data_is_known_by_all_of_its_bytes() {
        assert!(!is_payload(&unit(3, STALE)), "it is a former owner's");
        for id in [INITIAL, 7, COMPRESSIBLE + 7, BELOW] {
            let mut bytes = unit(3, id);
            assert!(is_payload(&bytes), "{id}");
            bytes[UNIT - 1] ^= 1;
            assert!(!is_payload(&bytes), "{id}");
        }
        assert!(!is_payload(&ZEROES) && !is_payload(&[7; UNIT]));
    }

    #[test]
    fn a_hexadecimal_tag_that_only_parses_is_foreign() {
        let mut bytes = unit(0x12, 7);
        bytes[5] = b'+';
        assert!(matches!(decode(&bytes), Value::Foreign(_)));
    }
}
