//! What can go wrong, one type per phase; every variant names its cause, the place and the value.

use std::io;

use crate::backing::Backing;
use crate::check::{CheckReport, Problem};
use crate::format::{EntryError, FormatError};

/// What kind of failure an error is, whatever it says: for programs that have to decide what to do. A variant that an error type gains
/// has one of these kinds; none ever changes its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What was asked for cannot be had of any image, or not of this one: the caller has to ask for something else.
    InvalidInput,
    /// The image was opened read-only, or what it is on was.
    ReadOnly,
    /// The image uses something, or something was asked for, that this implementation cannot do.
    Unsupported,
    /// What is there is no sound image. A check says more, and a repair may help.
    Damaged,
    /// There is no room: the storage is full, or the format has come to its limit.
    NoSpace,
    /// The storage failed in another way.
    Storage,
    /// Something failed before, and the image takes no more changes until it is opened again.
    Poisoned,
}

impl ErrorKind {
    fn of_storage(source: &io::Error) -> Self {
        if storage::is_no_space(source) { Self::NoSpace } else { Self::Storage }
    }

    const fn of_format(error: &FormatError) -> Self {
        match error {
            FormatError::UnsupportedVersion(_) | FormatError::UnknownIncompatible(_) => {
                Self::Unsupported
            }
            FormatError::NotQcow2 { .. }
            | FormatError::Truncated { .. }
            | FormatError::BadField { .. }
            | FormatError::BadExtension { .. } => Self::Damaged,
        }
    }
}

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

impl CreateError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Option(_) | Self::Format(_) => ErrorKind::InvalidInput,
            Self::Storage { source, .. } => ErrorKind::of_storage(source),
        }
    }
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
    /// The image is encrypted, and no key slot of it opens with the passphrase.
    #[error("cannot open the image: the passphrase opens none of its key slots")]
    WrongPassphrase,
    /// The storage cannot be changed.
    #[error(
        "cannot open the image for writing: its storage was opened read-only; open that for writing, or the image with `OpenOptions::read_only`"
    )]
    ReadOnlyStorage,
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
    /// What opens layers did not open one.
    #[error("cannot open the backing file {backing:?}: {source}")]
    Layer {
        /// What the image says about it.
        backing: Backing,
        /// Why not.
        source: io::Error,
    },
    /// What opens files did not open the external data file.
    #[error("cannot open the external data file {name:?}: {source}")]
    DataFile {
        /// What the image calls it.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// The external data file ends before the guest disk does. What is missing would read as zeroes that nobody wrote.
    #[error(
        "cannot open the image: its external data file has {length} bytes, and the guest disk {size}"
    )]
    DataFileTooShort {
        /// Bytes of the data file.
        length: u64,
        /// Bytes of the guest disk.
        size: u64,
    },
    /// An image below could not be opened.
    #[error("in the backing file {backing:?}: {error}")]
    Below {
        /// What the image above says about it.
        backing: Backing,
        /// Why not.
        error: Box<OpenError>,
    },
}

impl OpenError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Format(error) => ErrorKind::of_format(error),
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Option(_) | Self::WrongPassphrase => ErrorKind::InvalidInput,
            Self::ReadOnlyStorage => ErrorKind::ReadOnly,
            Self::MarkedCorrupt
            | Self::Unrepairable(_)
            | Self::CutShort(_)
            | Self::DataFileTooShort { .. } => ErrorKind::Damaged,
            Self::Repair(error) => error.kind(),
            Self::Io(error) => error.kind(),
            Self::Layer { .. } | Self::DataFile { .. } => ErrorKind::Storage,
            Self::Below { error, .. } => error.kind(),
        }
    }
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
    /// An operation on the external data file failed.
    #[error("{action} at byte {offset:#x} of the external data file failed: {source}")]
    DataFile {
        /// What was attempted.
        action: &'static str,
        /// Where, in bytes, which is the guest's own offset.
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
    /// The image is damaged: a compressed cluster has no stream that gives one.
    #[error(
        "the image is damaged: the compressed data at host offset {offset:#x} cannot be decompressed: {why}"
    )]
    Compressed {
        /// Host offset in bytes.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The caller's executor dropped the work of compressing a guest cluster, which is not written.
    #[error("the guest cluster at {offset:#x} was not compressed: the executor dropped the work")]
    NotCompressed {
        /// Guest offset in bytes.
        offset: u64,
    },
    /// The image uses something that this implementation does not support.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The image is damaged: a table that has to be there is not, or is too short.
    #[error("the image is damaged: {0}")]
    Lost(String),
    /// The file has reached what a refcount table can describe.
    #[error("the image is full: {0}")]
    Full(String),
    /// The new virtual size is not acceptable.
    #[error("cannot resize the image: {0}")]
    Resize(String),
    /// The image cannot come to name that layer.
    #[error("the image cannot name that backing file: {0}")]
    Backing(String),
    /// The passphrases that open the image cannot be changed so.
    #[error("cannot change the passphrases of the image: {0}")]
    Passphrase(String),
    /// Reading the layer below the image failed.
    #[error("in the layer below: {0}")]
    Below(Box<IoError>),
}

impl IoError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Storage { source, .. } | Self::DataFile { source, .. } => {
                ErrorKind::of_storage(source)
            }
            Self::Poisoned(_) => ErrorKind::Poisoned,
            Self::ReadOnly => ErrorKind::ReadOnly,
            Self::OutOfRange { .. }
            | Self::Unaligned { .. }
            | Self::Resize(_)
            | Self::NotCompressed { .. }
            | Self::Backing(_)
            | Self::Passphrase(_) => ErrorKind::InvalidInput,
            Self::Header(error) => ErrorKind::of_format(error),
            Self::Entry(_)
            | Self::SharedTable { .. }
            | Self::InUse { .. }
            | Self::TwoTables { .. }
            | Self::Compressed { .. }
            | Self::Lost(_) => ErrorKind::Damaged,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Full(_) => ErrorKind::NoSpace,
            Self::Below(error) => error.kind(),
        }
    }
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

impl CheckError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Format(error) => ErrorKind::of_format(error),
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Storage { source, .. } => ErrorKind::of_storage(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{CheckError, CreateError, ErrorKind, IoError, OpenError};
    use crate::format::FormatError;

    #[test]
    fn the_kind_of_an_error_is_that_of_its_cause() {
        let storage = |kind: io::ErrorKind| IoError::Storage {
            action: "writing data",
            offset: 0,
            source: kind.into(),
        };
        let full = || storage(io::ErrorKind::StorageFull);
        assert_eq!(full().kind(), ErrorKind::NoSpace);
        assert_eq!(storage(io::ErrorKind::Other).kind(), ErrorKind::Storage);
        assert_eq!(OpenError::Io(full()).kind(), ErrorKind::NoSpace);
        assert_eq!(IoError::Lost(String::new()).kind(), ErrorKind::Damaged);
        assert_eq!(IoError::Full(String::new()).kind(), ErrorKind::NoSpace);
        let unknown = || FormatError::UnsupportedVersion(4);
        assert_eq!(OpenError::Format(unknown()).kind(), ErrorKind::Unsupported);
        assert_eq!(OpenError::Repair(CheckError::Format(unknown())).kind(), ErrorKind::Unsupported);
        // Nobody's image is damaged where there is none yet.
        assert_eq!(CreateError::Format(unknown()).kind(), ErrorKind::InvalidInput);
        let cut = FormatError::Truncated { what: "the header", needed: 72, len: 3 };
        assert_eq!(OpenError::Format(cut).kind(), ErrorKind::Damaged);
    }
}
