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
//! # From nothing to a checked image
//!
//! With plain calls, which [`blocking`] has:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # std::env::set_current_dir(&folder)?;
//! use qcow2_core::blocking::{Image, check, create};
//! use qcow2_core::storage::file::{Access, Existing, FileStorage};
//! use qcow2_core::{CreateOptions, OpenOptions, Repair};
//!
//! let storage = FileStorage::create("disk.qcow2", Existing::Refuse)?; // or Replace what is there
//! create(&storage, &CreateOptions::new(1 << 30).lazy_refcounts(true))?; // half the flushes; a repair after a power cut
//! storage.sync_parent()?; // the name of the new file is durable, too
//! drop(storage); // and with it the lock
//!
//! let storage = FileStorage::open("disk.qcow2", Access::ReadWrite)?;
//! let image = Image::open(storage, OpenOptions::new())?; // one that is marked dirty is repaired first
//! image.write(123_456, b"any offset, any length")?;
//! image.flush()?; // from here on a power cut cannot take it back
//! image.close()?;
//!
//! let storage = FileStorage::open("disk.qcow2", Access::ReadOnly)?;
//! assert!(check(&storage, Repair::None)?.is_consistent());
//! let image = Image::open(storage, OpenOptions::read_only())?;
//! let mut back = [0; 22];
//! image.read(123_456, &mut back)?;
//! assert_eq!(&back, b"any offset, any length");
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised when
//!
//! A power cut leaves each unit of 512 bytes that was written and not flushed as it was or as it was to be, in any combination, and the
//! file at any length on its way. Whatever of that it leaves, an image that is opened again is sound, and reads
//!
//! - what the last [`flush`](Image::flush) that returned had covered, or what was written there later;
//! - of a request that nothing made durable: the old bytes or the new ones, unit by unit; never bytes of another place, nor what was
//!   there long ago.
//!
//! | call | when it has returned without an error |
//! |---|---|
//! | [`create()`] | an empty image is durable; until then there is an old one or none, and never a half of one. The name of a new file is durable after [`sync_parent`](storage::file::FileStorage::sync_parent) |
//! | [`Image::open`] | a dirty image has been repaired, durably |
//! | [`Image::write`] | the data is there for whoever reads; durable after the next flush |
//! | the same, [`Through`](storage::Durability::Through) | the data is durable, and so is all that it takes to find it |
//! | [`Image::write_compressed`] | as `write` |
//! | [`Image::write_zeroes`], [`Image::discard`] | as `write`; what was discarded in whole clusters reads as zeroes (in version 2 over a layer it stays as it is) |
//! | [`Image::preallocate`], [`Image::copy_up`] | a write there takes no cluster, or needs no layer; nothing reads as anything else, before or after |
//! | [`Image::set_backing`] | the image names the new layer, durably; until then the one of before |
//! | [`Image::flush`] | every request that had completed when it was called is durable |
//! | [`Image::grow`], [`Image::shrink`] | the new size is durable; after a power cut before that it is the old one or the new one |
//! | [`Image::close`] | as `flush`; refcounts are written and the image is marked clean, so that the next open has nothing to repair |
//! | [`check()`] with a repair | the image is as the report says, durably; cut short, it can be done again and comes to the same end |
//!
//! With [`OpenOptions::write_through`] every write, zeroing and discard is durable when it returns.
//!
//! *Two requests at once* on the same bytes happen in some order. Only one that has returned comes before one that is called then.
//!
//! *Dropping an image* does no I/O: what the last flush covered is there at the next open, as after a power cut.
//! *Dropping a future* of a request leaves what it was to change old, new, or a mixture by units; the image goes on, and whoever comes
//! to the same place waits until the storage has [settled](storage::Storage::settle).
//!
//! *Errors.* A request that failed may have happened, in part or as a whole; the image goes on. A failed flush, or a failed write
//! through, is final: nobody can tell what it lost, so the image takes no more changes ([`ErrorKind::Poisoned`]) until it is opened
//! again, and what was acknowledged before it is as safe as it was.
//!
//! *Lazy refcounts* ([`CreateOptions::lazy_refcounts`]) change none of this. Of a write to a new cluster that is durable when it returns
//! they save the write of the refcounts and one flush of two; an image that was not closed is marked dirty, and opening it counts its
//! references again.
//!
//! This holds on a storage that keeps the contract in [`storage`]. Space that rots, and writes that a device puts elsewhere, are outside
//! it: [`check()`] says what is wrong then, and repairs what can be told from the references.
//!
//! # What is where
//!
//! - [`storage`]: the contract with whatever holds the bytes; memory and file backends.
//! - [`mod@format`]: bytes to values and back; no I/O.
//! - [`Rule`]: every write order by name.
//! - [`Image`]: an open image. All requests take `&self`; the state behind one lock decides, the async shell does the I/O.
//! - [`check()`]: check and repair of an image that nobody has open.
//! - [`blocking`]: the same with plain calls.
//!
//! Images of version 2 and 3 are read, written, checked and repaired here, with standard L2 entries and with extended ones, and over layers:
//! [`open_chain()`]. So are compressed clusters, with deflate and zstd, guest data in an external data file: [`DataFile`], and encryption with a
//! [`Passphrase`]: [`Image::open_encrypted`]. Internal snapshots are refused at open, by name. Persistent bitmaps are not kept up: opening for writing gives them up, and their clusters leak until a repair;
//! read-only leaves them alone.

mod alloc;
mod backing;
mod barrier;
pub mod blocking;
mod cache;
mod chain;
mod check;
mod claim;
mod claims;
mod compress;
mod content;
mod copy_on_read;
mod create;
mod crypt;
mod data_file;
mod decompress;
mod error;
mod file_layers;
mod files;
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
mod passphrases;
mod preallocate;
mod protect;
mod read;
mod reap;
mod refcount_table;
mod refcounts;
mod rule;
mod separate;
mod set_backing;
mod shrink;
mod state;
mod subclusters;
mod tables;
mod tail;
mod taken;
mod transfer;
mod unlock;
mod widen;
mod work;
mod write;
mod write_compressed;
mod write_header;
mod zero;

pub use ::storage;
pub use backing::{Backing, Format};
pub use barrier::Barrier;
pub use chain::{Layers, open_chain};
pub use check::{CheckReport, Finding, MAX_FINDINGS, Problem, check};
pub use compress::{Executor, Inline};
pub use create::{create, create_encrypted, create_over, create_with_data};
pub use crypt::{Encryption, Passphrase};
pub use data_file::DataFile;
pub use error::{CheckError, CreateError, ErrorKind, IoError, OpenError};
pub use file_layers::FileLayers;
pub use files::File;
pub use image::{Image, ImageInfo};
pub use layer::{Known, Layer, LayerRead, OwnKnown, OwnRead, Raw};
#[cfg(feature = "sabotage")]
pub use mutant::{Area, Mutant};
pub use options::{CreateOptions, OpenOptions, Overlap, Preallocation, Repair};
pub use read::{ReadExtent, ReadMap, Source};
pub use rule::{Rule, Rules};
pub use work::Work;
pub use write::{WriteExtent, WriteMap};
pub use zero::Zeroing;
