//! The bytes of a qcow2 image as values: parsing, validating and encoding, without any I/O.
//!
//! The invariant of this layer: **every number that leaves it was checked against a named limit** ([`limits`]), and
//! every number that enters an image through it obeys the same rules, because encoders and parsers share them. An
//! error names the field, the byte offset in the file and the value. Hostile bytes can make a function here return an
//! error and nothing else: no panic, no overflow, no work or memory beyond the bytes given.
//!
//! ```text
//!   cluster 0                        anywhere else, each a whole number of clusters
//!   +------------------------+       +----------------+      +---------------+      +-------------+
//!   | header      (header)   |--L1-->| L1 table       |----->| L2 table      |----->| data        |
//!   | extensions  (extension)|       | (entry)        |      | (entry)       |      |             |
//!   | backing file name      |       +----------------+      +---------------+      +-------------+
//!   |                        |       +----------------+      +---------------+
//!   |                        |------>| refcount table |----->| refcount block|  one count per cluster
//!   +------------------------+       | (entry)        |      | (refcount)    |  of the file
//!                                    +----------------+      +---------------+
//! ```
//!
//! All integers are big-endian.

// Numbers from disk meet only checked or total operations here. Tests build their own bytes and may be plain.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub mod entry;
pub mod extension;
pub mod feature;
pub mod header;
pub mod limits;
pub mod refcount;
mod rename;
mod roots;

use std::borrow::Cow;
use std::fmt;

pub use entry::{
    EntryError, L1Entry, L2Entry, Mapping, RefcountTableEntry, Subclusters, TableHost,
};
pub use extension::Extension;
pub use feature::{Autoclear, Compatible, Incompatible};
pub use header::{BackingName, CompressionType, CryptMethod, Header, peek_cluster_bits};

/// Why bytes are not a header that this crate can work with, or why a header cannot be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The magic is missing.
    #[error("not a qcow2 image: it begins with {found:#010x} instead of 0x514649fb")]
    NotQcow2 {
        /// The first four bytes.
        found: u32,
    },
    /// Neither version 2 nor version 3.
    #[error("header field version at byte 4: {0} is neither 2 nor 3")]
    UnsupportedVersion(u32),
    /// The image ends inside something that must be there.
    #[error("the image ends at byte {len}, inside {what}, which ends at byte {needed}")]
    Truncated {
        /// What is cut.
        what: &'static str,
        /// Where it would end.
        needed: u64,
        /// Where the bytes end.
        len: u64,
    },
    /// A fixed header field holds a value that breaks a rule.
    #[error("header field {field} at byte {offset}: {value} {rule}")]
    BadField {
        /// Name of the field in the specification.
        field: &'static str,
        /// Where it is in the file.
        offset: u64,
        /// What it holds.
        value: u64,
        /// The rule that it breaks, as the rest of a sentence: "is outside 9..=21".
        rule: Cow<'static, str>,
    },
    /// A header extension, or the list of them, breaks a rule.
    #[error("header extension {kind:#010x} at byte {offset}: {value} {rule}")]
    BadExtension {
        /// Type of the extension.
        kind: u32,
        /// Where the extension, or the field in it, begins in the file.
        offset: u64,
        /// The offending number.
        value: u64,
        /// The rule that it breaks, as the rest of a sentence.
        rule: Cow<'static, str>,
    },
    /// Features without which the image must not be touched.
    #[error("the image uses incompatible features that are not known here: {}", Listed(.0))]
    UnknownIncompatible(Vec<UnknownFeature>),
}

/// An incompatible feature bit that this crate does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownFeature {
    /// Number of the bit.
    pub bit: u8,
    /// Its name in the feature name table of the image, safe to print.
    pub name: Option<String>,
}

struct Listed<'a>(&'a [UnknownFeature]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, UnknownFeature { bit, name }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}bit {bit} ({})", name.as_deref().unwrap_or("unknown"))?;
        }
        Ok(())
    }
}

/// The big-endian `u16` at byte `at`, unless `bytes` ends before it.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The big-endian `u32` at byte `at`, unless `bytes` ends before it.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The big-endian `u64` at byte `at`, unless `bytes` ends before it.
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Copies `value` to byte `at`. None, with nothing changed, if it does not fit.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(at..)?.get_mut(..value.len())?.copy_from_slice(value);
    Some(())
}

/// `len` rounded up to a multiple of eight, as header extensions are padded.
const fn align8(len: u64) -> u64 {
    len.saturating_add(7) & !7
}
