//! A qcow2 implementation that survives power cuts, and can be shown to.
//!
//! ```text
//!   create() ──> Image::open() ──> read, write, write_zeroes, discard, grow, flush ──> close()
//!                    │ dirty: check + repair first
//!                    └── crash at any point ──> Image::open()
//!
//!   guest offset ──map──> host extent ──────────────────────────────────────────> Storage
//!                  │                                                                 ▲
//!                  └── L1, L2, refcount pages (cache) ──edges, each a named Rule──┘ written when nothing is missing
//! ```
//!
//! - [`storage`]: the contract with whatever holds the bytes; memory and file backends.
//! - [`mod@format`]: bytes to values and back; no I/O.
//! - [`Rule`]: every write order by name.
//! - [`Image`]: an open image. All requests take `&self`; the state behind one lock decides, the async shell does the I/O.
//! - [`check()`]: check and repair of an image that nobody has open.
//! - [`blocking`]: the same with plain calls.
//!
//! Images of version 2 and 3 with standard entries are complete here. So are layers below an image: [`open_chain()`]. Internal
//! snapshots, compression, encryption, external data files, extended L2 entries and persistent bitmaps are refused by name.

mod alloc;
mod backing;
mod barrier;
pub mod blocking;
mod cache;
mod chain;
mod check;
mod claim;
mod claims;
mod content;
mod create;
mod error;
mod file_layers;
mod flush;
pub mod format;
mod free;
mod freed;
mod grow;
mod image;
mod layer;
mod length;
mod load;
mod map;
mod metadata;
mod mutant;
mod named;
mod open;
mod options;
mod order;
mod pages;
mod protect;
mod read;
mod reap;
mod refcount_table;
mod refcounts;
mod rule;
mod shrink;
mod state;
mod tables;
mod taken;
mod widen;
mod work;
mod write;
mod write_header;
mod zero;

pub use ::storage;
pub use backing::{Backing, Format};
pub use barrier::Barrier;
pub use chain::{Layers, open_chain};
pub use check::{CheckReport, Finding, MAX_FINDINGS, Problem, check};
pub use create::{create, create_over};
pub use error::{CheckError, CreateError, ErrorKind, IoError, OpenError};
pub use file_layers::FileLayers;
pub use image::{Image, ImageInfo};
pub use layer::{Layer, LayerRead, Raw};
#[cfg(feature = "sabotage")]
pub use mutant::{Area, Mutant};
pub use options::{CreateOptions, OpenOptions, Repair};
pub use read::{ReadExtent, ReadMap, Source};
pub use rule::{Rule, Rules};
pub use work::Work;
pub use write::{WriteExtent, WriteMap};
pub use zero::Zeroing;
