//! What a guest cluster reads as: the one place where a mapping turns into content.
//!
//! ```text
//!   entry ──decode──> mapping   unallocated, zero plain, zero allocated   ──> Zero
//!                               data                                      ──> Host
//!                               compressed                                ──> refused by name
//! ```
//!
//! **Invariant.** Reading, what a partial write leaves of a cluster, zeroing, and whether an entry may overtake its data all ask here.

use crate::error::IoError;
use crate::format::entry::Mapping;

/// What a guest cluster reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeroes.
    Zero,
    /// What the file holds from this byte on.
    Host(u64),
}

impl Content {
    pub(crate) fn of(mapping: Mapping) -> Result<Self, IoError> {
        match mapping {
            Mapping::Unallocated | Mapping::ZeroPlain | Mapping::ZeroAllocated { .. } => {
                Ok(Self::Zero)
            }
            Mapping::Data { host, .. } => Ok(Self::Host(host)),
            Mapping::Compressed { .. } => Err(IoError::Unsupported("a compressed cluster".into())),
        }
    }

    /// The same, so many bytes further into the cluster.
    pub(crate) const fn after(self, bytes: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Host(offset) => Self::Host(offset + bytes),
        }
    }
}
