//! Names for places in an image file, as people and corpus files write them.
//!
//! ```text
//!   header   refcount-table   l1                    one of each
//!   encryption-header                               the LUKS header
//!   refcount-block[i]   l2[t]                       by table index
//!   data[g]   compressed[g]                         by guest cluster
//!   bitmap-directory   bitmap-table[b]   bitmap[b]  by the bitmap's place in the directory
//!   free[h]                                         by host cluster
//!   beyond-end
//!   l2[0]#1                                         the second 512-byte unit of the first L2 table
//! ```
//!
//! The invariant: a label's text reads back as the same label. Labels come from this crate's reader, never from the subject,
//! so that a subject cannot hide behind a name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text;

/// One structure of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// The first cluster.
    Header,
    /// The refcount table.
    RefcountTable,
    /// A refcount block, by its index in the table.
    RefcountBlock(u64),
    /// The active L1 table.
    L1,
    /// An L2 table, by its index in the L1 table.
    L2(u64),
    /// A guest cluster's own host cluster, or its place in the data file, mapped or not.
    Data(u64),
    /// A guest cluster's compressed data.
    Compressed(u64),
    /// The directory of bitmaps.
    BitmapDirectory,
    /// A bitmap's table, by the bitmap's place in the directory.
    BitmapTable(u64),
    /// Bits of a bitmap, by the bitmap's place in the directory.
    Bitmap(u64),
    /// The LUKS header.
    EncryptionHeader,
    /// A host cluster that nothing refers to.
    Free(u64),
    /// Past the end of the file, or of the data file.
    BeyondEnd,
}

impl Region {
    /// Whether it is in use only because an autoclear bit vouches for what leads to it.
    pub fn is_vouched_for(&self) -> bool {
        matches!(self, Self::BitmapDirectory | Self::BitmapTable(_) | Self::Bitmap(_))
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::RefcountTable => f.write_str("refcount-table"),
            Self::RefcountBlock(index) => write!(f, "refcount-block[{index}]"),
            Self::L1 => f.write_str("l1"),
            Self::L2(index) => write!(f, "l2[{index}]"),
            Self::Data(guest) => write!(f, "data[{guest}]"),
            Self::Compressed(guest) => write!(f, "compressed[{guest}]"),
            Self::BitmapDirectory => f.write_str("bitmap-directory"),
            Self::BitmapTable(bitmap) => write!(f, "bitmap-table[{bitmap}]"),
            Self::Bitmap(bitmap) => write!(f, "bitmap[{bitmap}]"),
            Self::EncryptionHeader => f.write_str("encryption-header"),
            Self::Free(host) => write!(f, "free[{host}]"),
            Self::BeyondEnd => f.write_str("beyond-end"),
        }
    }
}

/// A structure, or one unit of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    /// The structure.
    pub region: Region,
    /// The 512-byte unit within it; without one, all of them.
    pub unit: Option<u64>,
}

impl Label {
    /// Whether a place so labelled is meant by `self`.
    pub fn covers(&self, place: &Self) -> bool {
        self.region == place.region && (self.unit.is_none() || self.unit == place.unit)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.region)?;
        self.unit.map_or(Ok(()), |unit| write!(f, "#{unit}"))
    }
}

/// A text that is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a label such as header, l1, l2[0], refcount-block[0]#1 or data[5]#0")]
pub struct BadLabel(String);

impl FromStr for Label {
    type Err = BadLabel;

    fn from_str(text: &str) -> Result<Self, BadLabel> {
        let bad = || BadLabel(text.to_owned());
        let (region, unit) = match text.split_once('#') {
            Some((region, unit)) => (region, Some(number(unit).ok_or_else(bad)?)),
            None => (text, None),
        };
        let (name, index) = match region.split_once('[') {
            Some((name, rest)) => {
                (name, Some(rest.strip_suffix(']').and_then(number).ok_or_else(bad)?))
            }
            None => (region, None),
        };
        let region = match (name, index) {
            ("header", None) => Region::Header,
            ("refcount-table", None) => Region::RefcountTable,
            ("refcount-block", Some(index)) => Region::RefcountBlock(index),
            ("l1", None) => Region::L1,
            ("l2", Some(index)) => Region::L2(index),
            ("data", Some(guest)) => Region::Data(guest),
            ("compressed", Some(guest)) => Region::Compressed(guest),
            ("bitmap-directory", None) => Region::BitmapDirectory,
            ("bitmap-table", Some(bitmap)) => Region::BitmapTable(bitmap),
            ("bitmap", Some(bitmap)) => Region::Bitmap(bitmap),
            ("encryption-header", None) => Region::EncryptionHeader,
            ("free", Some(host)) => Region::Free(host),
            ("beyond-end", None) => Region::BeyondEnd,
            _ => return Err(bad()),
        };
        Ok(Self { region, unit })
    }
}

/// Digits only: a label has one text, so `+1` and ` 1` are refused.
fn number(digits: &str) -> Option<u64> {
    let plain =
        digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    plain.then(|| digits.parse().ok()).flatten()
}

impl Serialize for Label {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use quickcheck::quickcheck;

    use super::*;

    quickcheck! {
        fn a_label_reads_back(kind: u8, index: u64, unit: Option<u64>) -> bool {
            let region = match kind % 13 {
                0 => Region::Header,
                1 => Region::RefcountTable,
                2 => Region::RefcountBlock(index),
                3 => Region::L1,
                4 => Region::L2(index),
                5 => Region::Data(index),
                6 => Region::Compressed(index),
                7 => Region::Free(index),
                8 => Region::BitmapDirectory,
                9 => Region::BitmapTable(index),
                10 => Region::Bitmap(index),
                11 => Region::EncryptionHeader,
                _ => Region::BeyondEnd,
            };
            let label = Label { region, unit };
            label.to_string().parse() == Ok(label)
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "l3[0]", "l2", "l2[]", "l2[0", "l2[0]#", "l2[+1]", "l2[00]", "header[0]", "l1#-1"]
        {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_structure_covers_its_units() {
        let label = |text: &str| text.parse::<Label>().unwrap();
        assert!(label("l2[0]").covers(&label("l2[0]#1")));
        assert!(label("l2[0]#1").covers(&label("l2[0]#1")));
        assert!(!label("l2[0]#0").covers(&label("l2[0]#1")));
        assert!(!label("l2[1]").covers(&label("l2[0]#1")));
    }
}
