//! A reader of qcow2 images that trusts nothing, and shares nothing with the implementation that it reads after.
//!
//! It collects three things in one pass: who refers to which host cluster (*claims*), what the refcounts say, and where guest
//! clusters are mapped. It judges single entries on the way; what follows from all of them together is the auditor's.
//!
//! ```text
//!   header (cluster 0)
//!     | refcount_table_offset                      | l1_table_offset
//!     v                                            v
//!   refcount table   9..63 offset                  L1 table   9..55 offset, 63 COPIED
//!     | one entry a block                            | one entry a table
//!     v                                              v
//!   refcount block   2^order bits a cluster        L2 table   9..55 offset, 63 COPIED, 62 compressed, 0 zero
//!                                                    | one entry a guest cluster; an extended one has no zero flag,
//!                                                    | and a second word: 0..31 subcluster allocated, 32..63 zero
//!                                                    v
//!                                                  data cluster, zero, or nothing
//! ```
//!
//! Of an encrypted image data clusters are enciphered, and nothing else is: what is read here is the same.
//!
//! Of an image with a data file the last step leads there, to the offset that the guest has, and nothing counts what is there.
//!
//! The invariant: whatever the bytes, reading ends after work in proportion to the length of the file, because a cluster is
//! walked as a table at most once and nothing past the end of the file is walked at all. All buffers are kept from one image
//! to the next.
//!
//! | module | subject |
//! |---|---|
//! | `reader` | the pass, and what is known of each cluster |
//! | `header` `extensions` | cluster 0 |
//! | `refcounts` | the refcount table and its blocks |
//! | `tables` | L1 and L2 tables |
//! | `encryption` | the LUKS header: where it is |
//! | `bitmaps` `recording` | what the bitmaps extension leads to, and what a bitmap has recorded |
//! | `entry` `bytes` | entries, bit by bit; numbers in bytes |

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod bitmaps;
mod bytes;
mod encryption;
mod entry;
mod extensions;
mod header;
mod reader;
mod recording;
mod refcounts;
mod tables;

pub(crate) use entry::{ALL_ALLOCATED, ALL_ZERO, compressed_entry, decode_l2, stream_of};
pub use entry::{COPIED, Mapping};
pub use extensions::{
    BITMAPS_BYTES, EXTENSION_BITMAPS, EXTENSION_DATA_NAME, EXTENSION_LAYER_FORMAT, EXTENSION_LUKS,
    LUKS_POINTER_BYTES,
};
pub use header::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_DATA, AUTOCLEAR_UNKNOWN, Header, INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_DIRTY, INCOMPATIBLE_EXTENDED_L2,
    MAX_BACKING_NAME, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES,
};
pub use reader::{Image, LayerName, MAX_CLUSTERS};
pub(crate) use recording::{Bit, Recording};
