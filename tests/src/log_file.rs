//! A log of block writes as a file: read as a whole, compressed with zstd or not.

use std::io;
use std::path::{Path, PathBuf};

use crate::file;
use crate::logwrites::LogError;

/// What a zstd frame begins with.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Bytes of the longest log, packed or not: it is held in memory.
const MOST: u64 = 4 << 30;

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
    let bytes = file::read_up_to(path, MOST).map_err(error)?;
    if bytes.starts_with(&ZSTD_MAGIC) {
        let unpacked = zstd::Decoder::new(&bytes[..]).and_then(|from| file::up_to(from, MOST));
        unpacked.map_err(error)
    } else {
        Ok(bytes)
    }
}
