//! A log of block writes as a file: read as a whole, compressed with zstd or not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::logwrites::LogError;

/// What a zstd frame begins with.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Why a file is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// The file cannot be read or unpacked.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system or the decompressor said.
        source: io::Error,
    },
    /// What is in it is no log.
    #[error("{}: {source}", .path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: LogError,
    },
}

impl LogFileError {
    /// Of the file at `path`, which cannot be read or unpacked.
    pub fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    /// Of the file at `path`, which holds no log.
    pub fn log(path: &Path, source: LogError) -> Self {
        Self::Log { path: path.to_owned(), source }
    }
}

/// The bytes of the log in a file.
///
/// # Errors
/// [`LogFileError::File`].
pub fn read(path: &Path) -> Result<Vec<u8>, LogFileError> {
    let error = |source| LogFileError::file(path, source);
    let bytes = fs::read(path).map_err(error)?;
    if bytes.starts_with(&ZSTD_MAGIC) {
        zstd::decode_all(&bytes[..]).map_err(error)
    } else {
        Ok(bytes)
    }
}
