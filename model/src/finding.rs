//! What can be wrong with an image, and when that is a violation.
//!
//! The auditor states facts; whether a fact is a violation depends on what was done to the image before. A leak is legal
//! after a power cut and a bug after repair. The invariant this module owns is that table: [`Finding::violates`].
//!
//! ```text
//!                                crashed, clean  crashed, dirty  opened clean  repaired  closed
//!   refcount too low                   P4              -              P4          P4       P4
//!   leak, COPIED missing or stale      -               -              -           P4       P6 unless inherited
//!   dirty bit                          -               -              -           P4       P6
//!   refcount table entry invalid       P4              -              P4          P4       P4
//!   anything else                      P4              P4             P4          P4       P4
//! ```
//!
//! A damaged image that is said to be safe to write (`Stage::Writable`) may have what loses no more when it is written:
//! leaks, missing COPIED bits, and data entries that make no sense or share a cluster.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::label::Region;

/// A promise, by its name in the oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Property {
    /// Reads return live values.
    P0,
    /// What was flushed is there.
    P1,
    /// Nothing is there that was not written there.
    P2,
    /// A choice, once seen, is final.
    P3,
    /// Tables and refcounts agree.
    P4,
    /// Repair is a function.
    P5,
    /// Work goes on after recovery, and a clean close is clean.
    P6,
    /// Everything ends.
    P7,
    /// Errors and claims are honest.
    P8,
    /// Waste is bounded.
    P9,
    /// Image operations are atomic.
    P10,
    /// What a guest wrote into an encrypted image is never in a file as it was written.
    #[serde(rename = "P-cipher")]
    PCipher,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PCipher => f.pad("P-cipher"),
            _ => fmt::Debug::fmt(self, f),
        }
    }
}

/// What was done to an image before it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The power failed; the dirty bit is clear.
    CrashedClean,
    /// The power failed; the dirty bit is set.
    CrashedDirty,
    /// An image whose dirty bit was clear was opened, and not repaired.
    OpenedClean,
    /// A dirty image was opened for writing, or any image was repaired.
    Repaired,
    /// A damaged image was opened for writing, and said to be safe to write: what is in use is counted.
    Writable,
    /// The image was closed without an error.
    Closed,
}

/// A fact about an image that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A cluster has more references than its refcount says.
    RefcountTooLow {
        /// Host cluster.
        cluster: u64,
        /// Refcount in the image.
        stored: u64,
        /// References found.
        counted: u64,
    },
    /// A cluster has fewer references than its refcount says.
    Leak {
        /// Host cluster.
        cluster: u64,
        /// Refcount in the image.
        stored: u64,
        /// References found.
        counted: u64,
    },
    /// An entry says COPIED, though its cluster has other references.
    CopiedOnShared {
        /// What the entry points to.
        at: Region,
        /// Host cluster.
        cluster: u64,
        /// The entry.
        entry: u64,
        /// References found.
        counted: u64,
    },
    /// An entry does not say COPIED, though its cluster has exactly one reference and a refcount of one, or is in a data file, where nothing
    /// else can refer to it.
    CopiedMissing {
        /// What the entry points to.
        at: Region,
        /// Host cluster.
        cluster: u64,
        /// The entry.
        entry: u64,
    },
    /// An entry says COPIED; its cluster has no other reference, but a refcount other than one.
    CopiedStale {
        /// What the entry points to.
        at: Region,
        /// Host cluster.
        cluster: u64,
        /// The entry.
        entry: u64,
        /// Refcount in the image.
        stored: u64,
    },
    /// Two structures or mappings use one cluster.
    Overlap {
        /// Host cluster.
        cluster: u64,
        /// The use that was found first.
        first: Region,
        /// The other.
        second: Region,
    },
    /// A structure reaches a whole cluster or more past the end of the file.
    OutOfRange {
        /// The structure.
        at: Region,
        /// Its first byte.
        offset: u64,
        /// Its length.
        length: u64,
        /// The length of the file.
        file: u64,
    },
    /// An offset is not aligned to clusters.
    Misaligned {
        /// What it points to.
        at: Region,
        /// The offset.
        offset: u64,
    },
    /// An entry has bits that must be clear.
    ReservedBits {
        /// What the entry points to.
        at: Region,
        /// The entry.
        entry: u64,
        /// The bits that must be clear.
        bits: u64,
    },
    /// An extended entry says of subclusters what cannot be.
    InvalidSubclusters {
        /// What the entry points to.
        at: Region,
        /// Its first word.
        entry: u64,
        /// Its second word.
        bitmap: u64,
        /// Why it is not valid.
        why: &'static str,
    },
    /// A cluster is not where the guest has it, and nowhere else may it be in a data file.
    DataFileOffset {
        /// What the entry points to.
        at: Region,
        /// The entry.
        entry: u64,
        /// The guest's offset.
        guest: u64,
    },
    /// The data file ends before the disk does.
    DataFileShort {
        /// Its length.
        length: u64,
        /// The virtual size.
        disk: u64,
    },
    /// The dirty bit is set.
    Dirty,
    /// The corrupt bit is set.
    Corrupt,
    /// A header field or extension is not valid.
    Header {
        /// Name of the field.
        field: &'static str,
        /// Its offset in the file.
        offset: u64,
        /// Its value.
        value: u64,
        /// Why it is not valid.
        why: &'static str,
    },
    /// Something that this reader knows of and cannot judge.
    Unsupported {
        /// What it is.
        what: &'static str,
        /// Where, or the value that shows it.
        value: u64,
    },
}

impl Finding {
    /// The property that this violates in an image at `stage`, if it does. What violates P6 may be inherited.
    pub fn violates(&self, stage: Stage) -> Option<Property> {
        let refcounts_may_be_anything = stage == Stage::CrashedDirty;
        match self {
            _ if stage == Stage::Writable && self.is_safe_to_write() => None,
            Self::Leak { .. }
            | Self::CopiedMissing { .. }
            | Self::CopiedStale { .. }
            | Self::Dirty => match stage {
                Stage::CrashedClean | Stage::CrashedDirty | Stage::OpenedClean => None,
                Stage::Repaired | Stage::Writable => Some(Property::P4),
                Stage::Closed => Some(Property::P6),
            },
            Self::RefcountTooLow { .. }
            | Self::OutOfRange { at: Region::RefcountBlock(_), .. }
            | Self::Misaligned { at: Region::RefcountBlock(_), .. }
            | Self::ReservedBits { at: Region::RefcountBlock(_), .. }
                if refcounts_may_be_anything =>
            {
                None
            }
            _ => Some(Property::P4),
        }
    }

    /// Whether an image in which this is wrong can be written without losing more: nothing that is in use can be handed out, and no
    /// cluster that two refer to can be written in place. What an entry should have said stays unknown.
    fn is_safe_to_write(&self) -> bool {
        let data = |at: &Region| matches!(at, Region::Data(_) | Region::Compressed(_));
        match self {
            Self::Leak { .. } | Self::CopiedMissing { .. } => true,
            Self::Overlap { first, second, .. } => data(first) && data(second),
            Self::OutOfRange { at: Region::L2(_), .. } => true,
            Self::OutOfRange { at, .. }
            | Self::Misaligned { at, .. }
            | Self::ReservedBits { at, .. }
            | Self::InvalidSubclusters { at, .. }
            | Self::DataFileOffset { at, .. } => data(at),
            _ => false,
        }
    }

    /// A stable name of its kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RefcountTooLow { .. } => "refcount-too-low",
            Self::Leak { .. } => "leak",
            Self::CopiedOnShared { .. } => "copied-on-shared",
            Self::CopiedMissing { .. } => "copied-missing",
            Self::CopiedStale { .. } => "copied-stale",
            Self::Overlap { .. } => "overlap",
            Self::OutOfRange { .. } => "out-of-range",
            Self::Misaligned { .. } => "misaligned",
            Self::ReservedBits { .. } => "reserved-bits",
            Self::InvalidSubclusters { .. } => "invalid-subclusters",
            Self::DataFileOffset { .. } => "data-file-offset",
            Self::DataFileShort { .. } => "data-file-short",
            Self::Dirty => "dirty",
            Self::Corrupt => "corrupt",
            Self::Header { .. } => "header",
            Self::Unsupported { .. } => "unsupported",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RefcountTooLow { cluster, stored, counted } => {
                write!(f, "cluster {cluster}: refcount {stored} is below its {counted} references")
            }
            Self::Leak { cluster, stored, counted } => {
                write!(f, "cluster {cluster}: refcount {stored} is above its {counted} references")
            }
            Self::CopiedOnShared { at, cluster, entry, counted } => write!(
                f,
                "{at}: entry {entry:#018x} says COPIED, but cluster {cluster} has {counted} references"
            ),
            Self::CopiedMissing { at, cluster, entry } => write!(
                f,
                "{at}: entry {entry:#018x} lacks COPIED, but cluster {cluster} has one reference"
            ),
            Self::CopiedStale { at, cluster, entry, stored } => write!(
                f,
                "{at}: entry {entry:#018x} says COPIED, but cluster {cluster} has refcount {stored}"
            ),
            Self::Overlap { cluster, first, second } => {
                write!(f, "cluster {cluster}: used by {first} and by {second}")
            }
            Self::OutOfRange { at, offset, length, file } => write!(
                f,
                "{at}: {length} bytes at {offset:#x} reach past the end of the file at {file:#x}"
            ),
            Self::Misaligned { at, offset } => {
                write!(f, "{at}: offset {offset:#x} is not aligned to clusters")
            }
            Self::ReservedBits { at, entry, bits } => {
                write!(f, "{at}: entry {entry:#018x} has reserved bits {bits:#x}")
            }
            Self::InvalidSubclusters { at, entry, bitmap, why } => {
                write!(f, "{at}: entry {entry:#018x} has subclusters {bitmap:#018x}: {why}")
            }
            Self::DataFileOffset { at, entry, guest } => {
                write!(f, "{at}: entry {entry:#018x} is not for {guest:#x}, where the guest has it")
            }
            Self::DataFileShort { length, disk } => {
                write!(f, "the data file ends at {length:#x}, before the disk at {disk:#x}")
            }
            Self::Dirty => f.write_str("the dirty bit is set"),
            Self::Corrupt => f.write_str("the corrupt bit is set"),
            Self::Header { field, offset, value, why } => {
                write!(f, "header: {field} at {offset}: {value:#x} {why}")
            }
            Self::Unsupported { what, value } => {
                write!(f, "{what} ({value:#x}) cannot be judged")
            }
        }
    }
}
