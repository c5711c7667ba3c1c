//! What can go wrong, one type per phase; every variant names its cause, the place and the value.

use std::io;

use crate::check::{CheckReport, Problem};
use crate::format::{EntryError, FormatError};

/// Why an image could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// An option is outside what the format or this implementation allows.
    #[error("cannot create the image: {0}")]
    Option(String),
    /// The header that results from the options is not valid.
    #[error("cannot create the image: {0}")]
    Format(#[from] FormatError),
    /// The storage failed.
    #[error("cannot create the image: {action} failed: {source}")]
    Storage {
        /// What was attempted.
        action: &'static str,
        /// The storage's own error.
        source: io::Error,
    },
}

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The header is damaged, or names a feature that is not supported.
    #[error("cannot open the image: {0}")]
    Format(#[from] FormatError),
    /// The image uses something that this implementation does not support.
    #[error("cannot open the image: {0} is not supported")]
    Unsupported(String),
    /// An option contradicts the image.
    #[error("cannot open the image: {0}")]
    Option(String),
    /// The image is marked corrupt; it may be read, and checked with repair.
    #[error(
        "cannot open the image for writing: it is marked corrupt (incompatible feature bit 1); repair it first"
    )]
    MarkedCorrupt,
    /// The image is marked dirty and repairing it did not make it consistent.
    #[error(
        "cannot open the image for writing: repair left {} corruptions; the first: {}",
        .0.corruptions,
        .0.findings.iter().find(|finding| !finding.repaired).map_or_else(String::new, ToString::to_string)
    )]
    Unrepairable(Box<CheckReport>),
    /// The file ends inside an entry of a table, and what is missing of it decides which cluster it names: writing could lose what
    /// is there. It may be read.
    #[error("cannot open the image for writing: {0}")]
    CutShort(Problem),
    /// Repairing the dirty image failed.
    #[error("cannot open the image for writing: {0}")]
    Repair(#[from] CheckError),
    /// The storage failed.
    #[error("cannot open the image: {0}")]
    Io(#[from] IoError),
}

/// Why a request on an open image failed.
///
/// A request that failed may have happened, in part or as a whole, or not at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// A storage operation failed.
    #[error("{action} at host offset {offset:#x} failed: {source}")]
    Storage {
        /// What was attempted.
        action: &'static str,
        /// Host offset in bytes.
        offset: u64,
        /// The storage's own error.
        source: io::Error,
    },
    /// A flush or a write through failed earlier, or damage was found where a request would have written. What is durable is
    /// unknown, or what may be written is, so no request changes the image until it is opened again.
    #[error("the image accepts no more changes: {0}")]
    Poisoned(String),
    /// The image was opened read-only.
    #[error("the image is open read-only")]
    ReadOnly,
    /// The request reaches beyond the end of the guest disk.
    #[error(
        "request of {len} bytes at guest offset {offset:#x} reaches beyond the end of the disk, {size:#x}"
    )]
    OutOfRange {
        /// Guest offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Virtual size in bytes.
        size: u64,
    },
    /// The request is not a multiple of 512 bytes.
    #[error("request of {len} bytes at guest offset {offset:#x} is not a multiple of 512 bytes")]
    Unaligned {
        /// Guest offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The header is damaged.
    #[error("the image is damaged: {0}")]
    Header(#[from] FormatError),
    /// A table of the image is damaged.
    #[error("the image is damaged: {0}")]
    Entry(#[from] EntryError),
    /// An L2 table is shared with another reference; writing needs a copy of it, which repair makes unnecessary.
    #[error(
        "the L2 table at host offset {host:#x} has refcount {refcount}, so it cannot be changed in place; check and repair the image"
    )]
    SharedTable {
        /// Host offset of the table in bytes.
        host: u64,
        /// Its refcount.
        refcount: u64,
    },
    /// A cluster that is to be taken because its refcount is 0 holds metadata.
    #[error(
        "the image is damaged: host cluster {cluster} has refcount 0 and holds {what}; check and repair the image"
    )]
    InUse {
        /// Index of the host cluster.
        cluster: u64,
        /// What it holds.
        what: &'static str,
    },
    /// The image is damaged: tables of two kinds lie in one cluster.
    #[error(
        "the image is damaged: host cluster {cluster} is referred to as two different tables; check and repair the image"
    )]
    TwoTables {
        /// Index of the host cluster.
        cluster: u64,
    },
    /// The image uses something that this implementation does not support.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A refcount cannot grow, or the file has reached what the refcount table can describe.
    #[error("the image is full: {0}")]
    Full(String),
    /// The new virtual size is not acceptable.
    #[error("cannot resize the image: {0}")]
    Resize(String),
}

/// Why a check or repair could not be carried out. What it *found* is not an error but a [`CheckReport`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The header is damaged, or names a feature that is not supported.
    #[error("cannot check the image: {0}")]
    Format(#[from] FormatError),
    /// The image uses something that this implementation does not support.
    #[error("cannot check the image: {0} is not supported")]
    Unsupported(String),
    /// A storage operation failed.
    #[error("cannot check the image: {action} at host offset {offset:#x} failed: {source}")]
    Storage {
        /// What was attempted.
        action: &'static str,
        /// Host offset in bytes.
        offset: u64,
        /// The storage's own error.
        source: io::Error,
    },
}
