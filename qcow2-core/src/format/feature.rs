//! Feature bits, and the table that names them.
//!
//! Three fields of 64 bits say what an image uses. The invariant: **bits that are not known here are kept**, so that
//! rewriting a header never forgets a feature. What a reader has to do with an unknown bit depends on its kind:
//!
//! ```text
//!   kind           an unknown bit means                          known bits
//!   0 incompatible do not open the image                         dirty, corrupt, data file, compression, extended L2
//!   1 compatible   nothing                                       lazy refcounts
//!   2 autoclear    clear it before the first write               bitmaps, raw data file
//! ```
//!
//! The feature name table, a header extension, is a list of 48-byte entries. It lets a program that does not know a bit
//! print its name:
//!
//! ```text
//!   0      1      2                                           48
//!   +------+------+-------------------------------------------+
//!   | kind | bit  | name, padded with zero bytes              |
//!   +------+------+-------------------------------------------+
//! ```

use bitflags::bitflags;

bitflags! {
    /// Features without which an image must not be opened.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Incompatible: u64 {
        /// The refcounts may be wrong in any way and are to be rebuilt before the first write.
        const DIRTY = 1 << 0;
        /// A contradiction was found in the metadata: open for reading or repair only.
        const CORRUPT = 1 << 1;
        /// Guest data is in another file.
        const DATA_FILE = 1 << 2;
        /// Compressed clusters are not deflate; the field `compression_type` says what they are.
        const COMPRESSION = 1 << 3;
        /// L2 entries have 16 bytes and describe 32 subclusters each.
        const EXTENDED_L2 = 1 << 4;
    }
}

bitflags! {
    /// Features that may be ignored.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Compatible: u64 {
        /// Refcounts may be written late, under the dirty bit.
        const LAZY_REFCOUNTS = 1 << 0;
    }
}

bitflags! {
    /// Features whose data is stale once a program that does not know them has written to the image.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Autoclear: u64 {
        /// The bitmaps extension is consistent with the rest.
        const BITMAPS = 1 << 0;
        /// The data file can be read as a raw image.
        const RAW_DATA_FILE = 1 << 1;
    }
}

/// Which of the three fields a bit belongs to; the value is the one in the feature name table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FeatureKind {
    /// A bit of [`Incompatible`].
    Incompatible = 0,
    /// A bit of [`Compatible`].
    Compatible = 1,
    /// A bit of [`Autoclear`].
    Autoclear = 2,
}

/// Bytes per entry of the feature name table.
pub const NAME_ENTRY_BYTES: usize = 48;

/// Longest name of a feature.
const NAME_BYTES: usize = NAME_ENTRY_BYTES - 2;

/// Every bit known here. The most important come first: the table is cut where the first sector of the header ends.
pub const KNOWN: [(FeatureKind, u8, &str); 8] = [
    (FeatureKind::Incompatible, 0, "dirty bit"),
    (FeatureKind::Incompatible, 1, "corrupt bit"),
    (FeatureKind::Incompatible, 2, "external data file"),
    (FeatureKind::Incompatible, 3, "compression type"),
    (FeatureKind::Incompatible, 4, "extended L2 entries"),
    (FeatureKind::Compatible, 0, "lazy refcounts"),
    (FeatureKind::Autoclear, 0, "bitmaps"),
    (FeatureKind::Autoclear, 1, "raw external data"),
];

/// The data of a feature name table with the first `count` names of [`KNOWN`].
pub fn encode_names(count: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for (kind, bit, name) in KNOWN.iter().take(count) {
        let mut padded = [0; NAME_BYTES];
        super::put(&mut padded, 0, name.as_bytes()).expect("every known name fits its entry");
        table.extend_from_slice(&[*kind as u8, *bit]);
        table.extend_from_slice(&padded);
    }
    table
}

/// Looks a bit up in the data of a feature name table. What is returned is safe to print: anything but visible ASCII
/// is escaped.
pub fn find_name(table: &[u8], kind: FeatureKind, bit: u8) -> Option<String> {
    let (entries, _) = table.as_chunks::<NAME_ENTRY_BYTES>();
    entries.iter().find_map(|entry| {
        let (head, name) = entry.split_first_chunk::<2>()?;
        let name = name.split(|&byte| byte == 0).next().filter(|name| !name.is_empty())?;
        (*head == [kind as u8, bit]).then(|| name.escape_ascii().to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the table names every known bit, once, and no other.
    #[test]
    fn every_known_bit_has_its_name() {
        let table = encode_names(KNOWN.len());
        assert_eq!(table.len(), KNOWN.len() * NAME_ENTRY_BYTES);
        let known = |kind| match kind {
            FeatureKind::Incompatible => Incompatible::all().bits(),
            FeatureKind::Compatible => Compatible::all().bits(),
            FeatureKind::Autoclear => Autoclear::all().bits(),
        };
        for kind in [FeatureKind::Incompatible, FeatureKind::Compatible, FeatureKind::Autoclear] {
            for bit in 0..64 {
                let named = find_name(&table, kind, bit).is_some();
                assert_eq!(named, known(kind) >> bit & 1 == 1, "{kind:?} bit {bit}");
            }
        }
        assert_eq!(find_name(&table, FeatureKind::Autoclear, 0).as_deref(), Some("bitmaps"));
    }

    /// Goal: a hostile table neither panics nor smuggles control characters to a terminal. Method: a name with an
    /// escape sequence, an empty name and an entry that is cut short.
    #[test]
    fn hostile_names_are_escaped_and_short_entries_ignored() {
        let mut table = vec![0; NAME_ENTRY_BYTES];
        table[1] = 9;
        table[2..6].copy_from_slice(b"a\x1b[m");
        table.extend_from_slice(&[0; NAME_ENTRY_BYTES]);
        table.extend_from_slice(&[0, 10, b'x']);
        let find = |bit| find_name(&table, FeatureKind::Incompatible, bit);
        assert_eq!(find(9).as_deref(), Some("a\\x1b[m"));
        assert_eq!(find(0), None);
        assert_eq!(find(10), None);
    }

    #[test]
    fn a_name_may_fill_its_entry() {
        let mut table = vec![b'n'; NAME_ENTRY_BYTES];
        table[..2].copy_from_slice(&[2, 63]);
        assert_eq!(find_name(&table, FeatureKind::Autoclear, 63), Some("n".repeat(46)));
    }

    #[test]
    fn unknown_bits_are_kept() {
        let bits = 1 << 63 | 1;
        assert_eq!(Autoclear::from_bits_retain(bits).bits(), bits);
    }
}
