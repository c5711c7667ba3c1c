//! The header of an image, as its bytes on the storage say it: read, parsed, and refused by name where it asks for more than this
//! implementation can do.

use std::io;

use crate::error::{CheckError, IoError, OpenError};
use crate::format::FormatError;
use crate::format::header::{CryptMethod, Header, peek_cluster_bits};
use crate::transfer::read_whole;
use storage::{IoBuf, Limits, Storage, UNIT};

/// A header as it was read.
#[derive(Debug)]
pub(crate) struct HeaderRead {
    pub(crate) header: Header,
    /// The first sector of the storage, in whose first 512 bytes is what it was parsed from and what changes.
    pub(crate) sector: Box<[u8]>,
    /// Length of the file.
    pub(crate) length: u64,
}

/// Why a header was not read, or not taken.
#[derive(Debug)]
pub(crate) enum LoadError {
    Format(FormatError),
    /// What is not supported.
    Unsupported(String),
    Storage {
        action: &'static str,
        offset: u64,
        source: io::Error,
    },
}

impl From<FormatError> for LoadError {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

impl From<LoadError> for OpenError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Format(error) => Self::Format(error),
            LoadError::Unsupported(what) => Self::Unsupported(what),
            LoadError::Storage { action, offset, source } => {
                Self::Io(IoError::Storage { action, offset, source })
            }
        }
    }
}

impl From<LoadError> for CheckError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Format(error) => Self::Format(error),
            LoadError::Unsupported(what) => Self::Unsupported(what),
            LoadError::Storage { action, offset, source } => {
                Self::Storage { action, offset, source }
            }
        }
    }
}

/// Reads the header.
pub(crate) async fn read_header<S: Storage>(storage: &S) -> Result<HeaderRead, LoadError> {
    read_header_with(storage, Header::parse).await
}

/// Reads a header whose refcount table may be missing.
pub(crate) async fn read_header_for_check<S: Storage>(
    storage: &S,
) -> Result<HeaderRead, LoadError> {
    read_header_with(storage, Header::parse_for_check).await
}

async fn read_header_with<S: Storage>(
    storage: &S,
    parse: impl FnOnce(&[u8]) -> Result<Header, FormatError>,
) -> Result<HeaderRead, LoadError> {
    // What somebody left in flight, or what failed, must not land under what is read from now on.
    storage.settle().await.map_err(|source| LoadError::Storage {
        action: "waiting for what was left in flight",
        offset: 0,
        source,
    })?;
    let length = storage.len().await.map_err(|source| LoadError::Storage {
        action: "asking for the length",
        offset: 0,
        source,
    })?;
    let limits = storage.limits();
    if let Some(why) = limits.fault() {
        return Err(LoadError::Unsupported(why));
    }
    let read = |len: usize| async move {
        let (buf, read) = read_whole(storage, 0, IoBuf::zeroed(len, limits.alignment)).await;
        let action = "reading the header";
        read.map_err(|(offset, source)| LoadError::Storage { action, offset, source })?;
        Ok::<_, LoadError>(buf)
    };
    let sector = limits.sector();
    let first = read(sector).await?;
    let in_file = |len: u64| usize::try_from(len.min(length)).expect("it fits in a cluster");
    let cluster_bits = peek_cluster_bits(&first[..in_file(UNIT as u64)])?;
    if let Some(why) = check_alignment(&limits, cluster_bits) {
        return Err(LoadError::Unsupported(why));
    }
    let cluster_size = 1u64 << cluster_bits;
    let whole = if cluster_size == sector as u64 {
        first
    } else {
        read(usize::try_from(cluster_size).expect("a cluster fits in memory")).await?
    };
    let header = parse(&whole[..in_file(cluster_size)])?;
    let sector = whole[..sector].into();
    Ok(HeaderRead { header, sector, length })
}

/// Why an image with such clusters cannot be kept on a storage, if it cannot: what shares a sector would be written by two requests at
/// once.
pub(crate) fn check_alignment(limits: &Limits, cluster_bits: u32) -> Option<String> {
    let (size, alignment) = (1u64 << cluster_bits, limits.alignment);
    (alignment as u64 > size).then(|| {
        format!("an image with clusters of {size} bytes (cluster_bits {cluster_bits}) on a storage with alignment {alignment}")
    })
}

/// Refuses, by name, what this implementation cannot do yet.
pub(crate) fn check_supported(header: &Header) -> Result<(), LoadError> {
    let unsupported = |what: &str| Err(LoadError::Unsupported(what.into()));
    if header.crypt_method != CryptMethod::None && header.has_raw_data_file() {
        return unsupported(
            "a raw external data file (autoclear feature bit 1) whose data are encrypted",
        );
    }
    if header.has_raw_data_file() && header.backing_name().is_some() {
        return unsupported(
            "a raw external data file (autoclear feature bit 1) over a backing file",
        );
    }
    if header.nb_snapshots != 0 {
        return unsupported("an image with internal snapshots");
    }
    Ok(())
}
