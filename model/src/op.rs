//! What is done to a virtual disk, as data.
//!
//! The invariant: operations are total. Every operation means something on every disk, because [`Op::clip`] cuts off what
//! lies outside; so any subsequence of a valid list is a valid list, which is what a minimiser needs.

use serde::{Deserialize, Serialize};

use crate::payload::UNIT;

/// The shape of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    /// Format version: 2 or 3.
    pub version: u32,
    /// log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// log2 of the bits in a refcount, 0 to 6.
    pub refcount_order: u32,
    /// Bytes that the guest sees, a multiple of 512.
    pub virtual_size: u64,
    /// Whether refcounts may lag behind under the dirty bit.
    pub lazy_refcounts: bool,
    /// Bytes of the raw layer below that the image names, a multiple of 512, if it names one. It holds what [`below`](crate::payload::below) says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<u64>,
    /// Whether L2 entries are extended: 16 bytes, the second half of which is a bitmap of 32 subclusters.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extended_l2: bool,
    /// What clusters are compressed with that are.
    #[serde(default, skip_serializing_if = "Compression::is_deflate")]
    pub compression: Compression,
    /// Whether guest data is in a file of its own, each byte of it where the guest has it, and the image has nothing but metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_file: Option<DataFile>,
    /// How guest data is enciphered, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// What is promised of a file of guest data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFile {
    /// Nothing: what is in it means something only beside its image.
    Plain,
    /// It is the disk: whoever reads it without the image reads what the guest reads.
    Raw,
}

/// How guest data is enciphered, each unit by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    /// AES-128 in CBC mode, as the passphrase says by itself.
    Aes,
    /// AES-128 in XTS mode, with a key that a LUKS header in the image keeps for whoever has the passphrase.
    Luks,
}

impl Encryption {
    /// What the header's `crypt_method` says of it.
    pub const fn crypt_method(self) -> u32 {
        match self {
            Self::Aes => 1,
            Self::Luks => 2,
        }
    }

    /// Whether the number of a unit is that of its place in the file that holds the data, and not that of the guest's unit.
    pub const fn by_host(self) -> bool {
        matches!(self, Self::Luks)
    }
}

/// What clusters are compressed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Raw deflate.
    #[default]
    Deflate,
    /// Zstandard.
    Zstd,
}

impl Compression {
    fn is_deflate(&self) -> bool {
        *self == Self::Deflate
    }
}

impl Geometry {
    /// Version 3, refcounts of 16 bits that are never late, and nothing that an image may do without.
    pub const fn plain(cluster_bits: u32, virtual_size: u64) -> Self {
        Self {
            version: 3,
            cluster_bits,
            refcount_order: 4,
            virtual_size,
            lazy_refcounts: false,
            below: None,
            extended_l2: false,
            compression: Compression::Deflate,
            data_file: None,
            encryption: None,
        }
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of a cluster that its L2 entry speaks of by themselves: a 32nd of it with extended L2 entries, else all of it.
    pub fn subcluster_size(&self) -> u64 {
        if self.extended_l2 { self.cluster_size() / SUBCLUSTERS } else { self.cluster_size() }
    }

    /// Units in a cluster.
    pub fn cluster_units(&self) -> u64 {
        self.cluster_size() / UNIT as u64
    }

    /// Guest units.
    pub fn units(&self) -> u64 {
        self.virtual_size / UNIT as u64
    }

    /// Guest clusters, the last of which may be cut short.
    pub fn clusters(&self) -> u64 {
        self.virtual_size.div_ceil(self.cluster_size())
    }

    /// Entries in an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size()
    }

    /// Bytes in an L2 entry: 16 if it is extended, else 8.
    pub fn l2_entry_size(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// L1 entries that the virtual size needs.
    pub fn l1_entries(&self) -> u64 {
        self.clusters().div_ceil(self.l2_entries())
    }

    /// Host clusters that one refcount block counts.
    pub fn block_entries(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// Whether the header has feature bits, and L2 entries can say that their cluster reads as zeroes.
    pub const fn has_features(&self) -> bool {
        self.version >= 3
    }

    /// Units of the layer below; 0 without one.
    pub fn below_units(&self) -> u64 {
        self.below.unwrap_or(0) / UNIT as u64
    }

    /// What is wrong with these numbers, if anything.
    pub fn fault(&self) -> Option<String> {
        if !matches!(self.version, 2 | 3) {
            Some(format!("version {} is neither 2 nor 3", self.version))
        } else if self.version == 2 && self.refcount_order != 4 {
            Some(format!("refcount_order {} is not 4, as in version 2", self.refcount_order))
        } else if self.version == 2 && self.lazy_refcounts {
            Some("lazy refcounts need version 3".to_owned())
        } else if self.version == 2 && self.extended_l2 {
            Some("extended L2 entries need version 3".to_owned())
        } else if self.version == 2 && self.compression == Compression::Zstd {
            Some("compression with zstd needs version 3".to_owned())
        } else if self.version == 2 && self.data_file.is_some() {
            Some("a data file needs version 3".to_owned())
        } else if self.data_file == Some(DataFile::Raw) && self.below.is_some() {
            Some("a raw data file leaves nothing to a layer below".to_owned())
        } else if self.data_file == Some(DataFile::Raw) && self.encryption.is_some() {
            Some("a raw data file is the disk as it is, not enciphered".to_owned())
        } else if !(9..=21).contains(&self.cluster_bits) {
            Some(format!("cluster_bits {} is not in 9..=21", self.cluster_bits))
        } else if self.extended_l2 && self.cluster_bits < EXTENDED_CLUSTER_BITS {
            let least = EXTENDED_CLUSTER_BITS;
            let bits = self.cluster_bits;
            Some(format!("extended L2 entries need cluster_bits of {least}, not {bits}"))
        } else if self.refcount_order > 6 {
            Some(format!("refcount_order {} is above 6", self.refcount_order))
        } else if !self.virtual_size.is_multiple_of(UNIT as u64) {
            Some(format!("virtual_size {} is not a multiple of 512", self.virtual_size))
        } else if self.virtual_size > MAX_VIRTUAL_SIZE {
            Some(format!("virtual_size {} is above {MAX_VIRTUAL_SIZE}", self.virtual_size))
        } else if let Some(below) = self.below
            && (!below.is_multiple_of(UNIT as u64) || below > MAX_VIRTUAL_SIZE)
        {
            Some(format!("below {below} is not a multiple of 512 up to {MAX_VIRTUAL_SIZE}"))
        } else {
            None
        }
    }
}

/// Subclusters in a cluster whose L2 entry is extended.
pub const SUBCLUSTERS: u64 = 32;

/// The least `cluster_bits` with extended L2 entries: a subcluster has a unit at least.
pub const EXTENDED_CLUSTER_BITS: u32 = 14;

/// The largest virtual disk that the reference disk represents, unit by unit.
pub const MAX_VIRTUAL_SIZE: u64 = 1 << 32;

/// When a guest write is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// After the next flush.
    #[default]
    Cached,
    /// When it returns, for its own units only.
    Through,
}

impl Durability {
    fn is_cached(&self) -> bool {
        *self == Self::Cached
    }
}

/// How much of a cluster's space is taken ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preallocation {
    /// Its place in the file.
    Metadata,
    /// Its space, as the storage keeps it.
    Falloc,
    /// Its space, by writing zeroes.
    Full,
}

/// One guest operation. Offsets and lengths are bytes, multiples of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Op {
    /// Writes generated payload.
    Write {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// Names the payload; at least 1 and best unique within a case.
        id: u32,
        /// When it is durable.
        #[serde(default, skip_serializing_if = "Durability::is_cached")]
        durability: Durability,
    },
    /// Writes generated payload, whole clusters of it compressed where that makes them shorter; durable after the next flush. A subject that
    /// compresses nothing writes it as it is.
    WriteCompressed {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// Names the payload, which compresses if this says so ([`compresses`](crate::payload::compresses)); otherwise as of a write.
        id: u32,
    },
    /// Makes a range read as zeroes.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// Whether clusters may be given back for it.
        #[serde(default)]
        unmap: bool,
    },
    /// Gives whole clusters back; the parts of clusters at both ends keep what they hold.
    Discard {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// Lets whole clusters show the layer below again, or zeroes where it has none; the parts of clusters at both ends keep what they hold.
    Uncover {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// Takes host clusters ahead of what will be written; nothing reads as anything else for it, and a subject need not do it.
    Preallocate {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// How much of the space.
        how: Preallocation,
    },
    /// Reads, and compares with what is allowed.
    Read {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// Makes durable what had completed when it was called.
    Flush,
    /// Enlarges the disk; nothing happens if it is that large already.
    Grow {
        /// New virtual size in bytes.
        to: u64,
    },
    /// Makes the disk smaller; nothing happens if it is that small already.
    Shrink {
        /// New virtual size in bytes.
        to: u64,
    },
    /// Lets a further passphrase open the image, if it is encrypted with LUKS; durable when it returns.
    AddPassphrase {
        /// Which: its number, up to [`PASSPHRASES`].
        id: u32,
    },
    /// Lets it open the image no more; durable when it returns, and what was kept under it is unreadable then.
    RemovePassphrase {
        /// Which: its number, up to [`PASSPHRASES`].
        id: u32,
    },
    /// Closes the image cleanly and opens it again.
    Reopen,
}

/// Passphrases that may be added to an image, numbered from 1 on. They and the one that it was made with leave half of its slots free.
pub const PASSPHRASES: u32 = 3;

impl Op {
    /// The operation as it applies to a disk of `size` bytes: `None` if nothing is left of it.
    pub fn clip(self, size: u64) -> Option<Self> {
        let cut = |offset: u64, length: u64| {
            let length = length.min(size.saturating_sub(offset));
            (length > 0).then_some(length)
        };
        Some(match self {
            Self::Write { offset, length, id, durability } => {
                Self::Write { offset, length: cut(offset, length)?, id, durability }
            }
            Self::WriteCompressed { offset, length, id } => {
                Self::WriteCompressed { offset, length: cut(offset, length)?, id }
            }
            Self::WriteZeroes { offset, length, unmap } => {
                Self::WriteZeroes { offset, length: cut(offset, length)?, unmap }
            }
            Self::Discard { offset, length } => {
                Self::Discard { offset, length: cut(offset, length)? }
            }
            Self::Uncover { offset, length } => {
                Self::Uncover { offset, length: cut(offset, length)? }
            }
            Self::Preallocate { offset, length, how } => {
                Self::Preallocate { offset, length: cut(offset, length)?, how }
            }
            Self::Read { offset, length } => Self::Read { offset, length: cut(offset, length)? },
            Self::Grow { to } if to <= size => return None,
            Self::Shrink { to } if to >= size => return None,
            Self::Flush
            | Self::Grow { .. }
            | Self::Shrink { .. }
            | Self::AddPassphrase { .. }
            | Self::RemovePassphrase { .. }
            | Self::Reopen => self,
        })
    }

    /// How many bytes of the disk it concerns, by itself.
    pub fn length(&self) -> u64 {
        match *self {
            Self::Write { length, .. }
            | Self::WriteCompressed { length, .. }
            | Self::WriteZeroes { length, .. }
            | Self::Discard { length, .. }
            | Self::Uncover { length, .. }
            | Self::Preallocate { length, .. }
            | Self::Read { length, .. } => length,
            Self::Flush
            | Self::Grow { .. }
            | Self::Shrink { .. }
            | Self::AddPassphrase { .. }
            | Self::RemovePassphrase { .. }
            | Self::Reopen => 0,
        }
    }

    /// What is wrong with its numbers, if anything: the field and why.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        let aligned = |field: &'static str, value: u64| {
            (!value.is_multiple_of(UNIT as u64))
                .then(|| (field, format!("{value} is not a multiple of 512")))
        };
        match *self {
            Self::Write { id: 0, .. } | Self::WriteCompressed { id: 0, .. } => {
                Some(("id", "0 is the id of an initial image's data".to_owned()))
            }
            Self::Write { offset, length, .. }
            | Self::WriteCompressed { offset, length, .. }
            | Self::WriteZeroes { offset, length, .. }
            | Self::Discard { offset, length }
            | Self::Uncover { offset, length }
            | Self::Preallocate { offset, length, .. }
            | Self::Read { offset, length } => {
                aligned("offset", offset).or_else(|| aligned("length", length)).or_else(|| {
                    offset
                        .checked_add(length)
                        .is_none()
                        .then(|| ("length", format!("{offset} + {length} overflows")))
                })
            }
            Self::Grow { to } | Self::Shrink { to } => aligned("to", to).or_else(|| {
                (to > MAX_VIRTUAL_SIZE).then(|| ("to", format!("{to} is above {MAX_VIRTUAL_SIZE}")))
            }),
            Self::AddPassphrase { id } | Self::RemovePassphrase { id } => (!(1..=PASSPHRASES)
                .contains(&id))
            .then(|| ("id", format!("{id} is not in 1..={PASSPHRASES}"))),
            Self::Flush | Self::Reopen => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_keeps_what_lies_inside() {
        let write =
            |length| Op::Write { offset: 1024, length, id: 1, durability: Durability::Cached };
        assert_eq!(write(4096).clip(2048), Some(write(1024)));
        assert_eq!(write(512).clip(1024), None);
        assert_eq!(write(512).clip(0), None);
        assert_eq!(Op::Grow { to: 512 }.clip(1024), None);
        assert_eq!(Op::Flush.clip(0), Some(Op::Flush));
        for op in [Op::AddPassphrase { id: 1 }, Op::RemovePassphrase { id: 1 }] {
            assert_eq!((op.clip(0), op.length()), (Some(op), 0));
        }
    }

    #[test]
    fn faults_name_the_field() {
        let bad = Op::Discard { offset: 512, length: 100 };
        assert_eq!(bad.fault().map(|(field, _)| field), Some("length"));
        let huge = Op::Read { offset: u64::MAX - 511, length: 512 };
        assert_eq!(huge.fault().map(|(field, _)| field), Some("length"));
        let reserved = Op::Write { offset: 0, length: 512, id: 0, durability: Durability::Cached };
        assert_eq!(reserved.fault().map(|(field, _)| field), Some("id"));
        assert_eq!(Op::Grow { to: 1 << 20 }.fault(), None);
        for id in [0, PASSPHRASES + 1] {
            for op in [Op::AddPassphrase { id }, Op::RemovePassphrase { id }] {
                assert_eq!(op.fault(), Some(("id", format!("{id} is not in 1..=3"))));
            }
        }
        assert_eq!(Op::AddPassphrase { id: 1 }.fault(), None);
        assert_eq!(Op::RemovePassphrase { id: PASSPHRASES }.fault(), None);
    }

    #[test]
    fn a_disk_of_4_gib_is_the_largest() {
        let of = |virtual_size| Geometry::plain(16, virtual_size);
        let faults = |size| (of(size).fault().is_some(), Op::Grow { to: size }.fault().is_some());
        assert_eq!(faults(4 << 30), (false, false));
        assert_eq!(faults((4 << 30) + 512), (true, true));
        assert_eq!(faults(8 << 30), (true, true));
    }

    #[test]
    fn extended_entries_are_16_bytes_in_clusters_of_16_kib() {
        let of = |version, cluster_bits| Geometry {
            version,
            extended_l2: true,
            ..Geometry::plain(cluster_bits, 1 << 20)
        };
        assert_eq!([14, 16, 21].map(|bits| of(3, bits).fault()), [None, None, None]);
        let fault = |version, bits| of(version, bits).fault().unwrap_or_default();
        assert_eq!(fault(3, 13), "extended L2 entries need cluster_bits of 14, not 13");
        assert_eq!(fault(2, 14), "extended L2 entries need version 3");
        let extended = of(3, 14);
        assert_eq!((extended.l2_entries(), extended.subcluster_size()), (1024, 512));
        let standard = Geometry { extended_l2: false, ..extended };
        assert_eq!((standard.l2_entries(), standard.subcluster_size()), (2048, 16384));
        // What is not extended is written as it was before there was such a thing.
        let text = serde_json::to_string(&standard).unwrap();
        assert!(!text.contains("extended"), "{text}");
        assert_eq!(serde_json::from_str::<Geometry>(&text).unwrap(), standard);
        let text = serde_json::to_string(&extended).unwrap();
        assert!(text.contains(r#""extended_l2":true"#), "{text}");
        assert_eq!(serde_json::from_str::<Geometry>(&text).unwrap(), extended);
    }

    #[test]
    fn data_files_need_version_3_and_a_raw_one_has_no_layer_below() {
        let of = |version, below, data_file| Geometry {
            version,
            below,
            data_file,
            ..Geometry::plain(16, 1 << 20)
        };
        let [plain, raw] = [DataFile::Plain, DataFile::Raw].map(Some);
        let fault = |version, below, data_file| of(version, below, data_file).fault();
        assert_eq!(fault(3, Some(512), plain), None);
        assert_eq!(fault(3, None, raw), None);
        assert_eq!(fault(2, None, plain).as_deref(), Some("a data file needs version 3"));
        let why = "a raw data file leaves nothing to a layer below";
        assert_eq!(fault(3, Some(512), raw).as_deref(), Some(why));
        // An image without one is written as it was before there was such a thing.
        let text = |geometry: Geometry| serde_json::to_string(&geometry).unwrap();
        assert!(!text(of(3, None, None)).contains("data"), "{}", text(of(3, None, None)));
        assert!(text(of(3, None, raw)).ends_with(r#""data_file":"raw"}"#));
        for geometry in [of(3, None, None), of(3, None, plain), of(3, None, raw)] {
            assert_eq!(serde_json::from_str::<Geometry>(&text(geometry)).unwrap(), geometry);
        }
    }

    #[test]
    fn both_encryptions_go_with_both_versions_and_with_no_raw_data_file() {
        let of = |version, data_file, encryption| Geometry {
            version,
            data_file,
            encryption,
            ..Geometry::plain(16, 1 << 20)
        };
        let text = |geometry: Geometry| serde_json::to_string(&geometry).unwrap();
        // An image without encryption is written as it was before there was such a thing.
        assert!(!text(of(3, None, None)).contains("crypt"), "{}", text(of(3, None, None)));
        for (encryption, name) in [(Encryption::Aes, "aes"), (Encryption::Luks, "luks")] {
            let fault = |version, data_file| of(version, data_file, Some(encryption)).fault();
            assert_eq!([fault(2, None), fault(3, None)], [None, None]);
            assert_eq!(fault(3, Some(DataFile::Plain)), None);
            let why = "a raw data file is the disk as it is, not enciphered";
            assert_eq!(fault(3, Some(DataFile::Raw)).as_deref(), Some(why));
            let geometry = of(3, None, Some(encryption));
            assert!(text(geometry).ends_with(&format!(r#""encryption":"{name}"}}"#)));
            assert_eq!(serde_json::from_str::<Geometry>(&text(geometry)).unwrap(), geometry);
        }
    }

    #[test]
    fn the_json_form_is_small_and_strict() {
        let write = Op::Write { offset: 0, length: 512, id: 1, durability: Durability::Cached };
        let text = serde_json::to_string(&write).unwrap();
        assert_eq!(text, r#"{"write":{"offset":0,"length":512,"id":1}}"#);
        assert_eq!(serde_json::from_str::<Op>(&text).unwrap(), write);
        assert_eq!(serde_json::from_str::<Op>(r#""flush""#).unwrap(), Op::Flush);
        for (op, form) in [
            (Op::AddPassphrase { id: 1 }, r#"{"add-passphrase":{"id":1}}"#),
            (Op::RemovePassphrase { id: 2 }, r#"{"remove-passphrase":{"id":2}}"#),
        ] {
            assert_eq!(serde_json::to_string(&op).unwrap(), form);
            assert_eq!(serde_json::from_str::<Op>(form).unwrap(), op);
        }
        assert!(serde_json::from_str::<Op>(r#"{"read":{"offset":0,"length":1,"x":1}}"#).is_err());
    }
}
