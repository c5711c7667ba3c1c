//! What a header leads to: every table that begins at an offset which the header itself holds.
//!
//! ```text
//!   header ──> L1 table ──> L2 tables ──> data
//!     ├──────> refcount table ──> refcount blocks
//!     └──────> encryption header, by an extension
//! ```
//!
//! **Invariant.** A cluster of any of them is in use though no other table refers to it. Whoever has to know them all walks this list:
//! opening, the count of references, and what refuses to write over tables.

use std::ops::Range;

use super::header::Header;

/// What begins where the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// The header itself, with its extensions: cluster 0.
    Header,
    /// The active L1 table.
    L1Table,
    /// The refcount table.
    RefcountTable,
}

impl Root {
    /// The header field that holds its offset, and where that is in the file; none for the header.
    pub(crate) const fn field(self) -> Option<(&'static str, u64)> {
        match self {
            Self::Header => None,
            Self::L1Table => Some(("l1_table_offset", 40)),
            Self::RefcountTable => Some(("refcount_table_offset", 48)),
        }
    }

    /// What errors call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Header => "the header",
            Self::L1Table => "the L1 table",
            Self::RefcountTable => "the refcount table",
        }
    }
}

impl Header {
    /// The bytes of the active L1 table.
    pub(crate) const fn l1_table(&self) -> Range<u64> {
        let start = self.l1_table_offset;
        start..start.saturating_add((self.l1_size as u64).saturating_mul(8))
    }

    /// The bytes of the refcount table.
    pub(crate) fn refcount_table(&self) -> Range<u64> {
        let start = self.refcount_table_offset;
        let clusters = u64::from(self.refcount_table_clusters);
        start..start.saturating_add(clusters.saturating_mul(self.cluster_size()))
    }

    /// The bytes of the encryption header, none without one.
    pub(crate) fn keys(&self) -> Range<u64> {
        match self.luks() {
            Ok(Some(luks)) => luks.offset..luks.offset.saturating_add(luks.length),
            _ => 0..0,
        }
    }

    /// Everything that a field of the header leads to, itself first, with its bytes. (An extension leads to [the keys](Self::keys).)
    pub(crate) fn roots(&self) -> [(Root, Range<u64>); 3] {
        [
            (Root::Header, 0..self.cluster_size()),
            (Root::L1Table, self.l1_table()),
            (Root::RefcountTable, self.refcount_table()),
        ]
    }
}
