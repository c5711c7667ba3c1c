//! Where an image's bytes live: the contract between the format and whatever stores it.
//!
//! A storage is a byte-addressed file with explicit durability. The contract is what makes a crash-safe writer
//! possible at all, so it says exactly what is *not* promised:
//!
//! - **Order.** Operations in flight together may take effect in any order, unit by unit. Ranges in flight must not
//!   overlap unless all of them are reads; a read that overlaps a write returns either, per unit of 512 bytes.
//! - **Durability.** A completed [`Storage::flush`] covers exactly the writes, zeroes, discards and length changes that
//!   had completed when it was called. A write [`Durability::Through`] makes its own units durable, and orders nothing else.
//! - **Failure.** An operation that returned an error has ended: each unit that it was to change holds its old or its new
//!   value, a length that it was to change is the old or the new one, what it was to read is not there, and nothing of it
//!   lands later. A read that finds one of the two does not decide it: until the unit is written again, and flushed, a power cut
//!   may leave the other. A storage that cannot promise that nothing lands later, because its errors may come before the end, has
//!   *late landings*: whoever is to use the range again settles first. [`Storage::settle`] waits for failed operations too.
//! - **Failed durability.** A failed flush, or write [`Durability::Through`], may have lost everything that it covered, and
//!   a later flush may succeed without having written that. So it is final, whatever the error says: no later flush counts.
//! - **Dropping.** Dropping a future does not cancel its operation; [`Storage::settle`] waits until none of those can land.
//!   A flush that fails after its future was dropped has an outcome that somebody must hear of: `settle` reports it.
//! - **No room.** Three kinds of error say so: [`io::ErrorKind::StorageFull`], [`io::ErrorKind::QuotaExceeded`] and
//!   [`io::ErrorKind::FileTooLarge`]. After one of them less may still fit.

mod any;
mod block_on;
mod buffer;
pub mod file;
pub mod memory;

pub use any::AnyStorage;
pub use block_on::block_on;
pub use buffer::IoBuf;

use std::future::Future;
use std::io;
use std::ops::Range;

/// The atom of a write in bytes: a power cut leaves each such unit wholly old or wholly new.
pub const UNIT: usize = 512;

/// The largest alignment that a storage may ask for: tables are read and written in pieces of whole multiples of it.
pub const MOST_ALIGNMENT: usize = 32 << 10;

/// When a write is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After the next completed flush.
    Cached,
    /// When it returns, for its own units (and the file length up to its end) only, like FUA. Not a barrier.
    Through,
}

/// What a storage can do and what it asks of its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets, lengths and buffer addresses must be multiples of this many bytes (a power of two). It says nothing about what
    /// tears: the atom of a write is [`UNIT`], or more.
    pub alignment: usize,
    /// Longest single transfer in bytes: a multiple of 512 and of the alignment, and not 0.
    pub max_transfer: usize,
    /// Whether `discard` may be called at all.
    pub can_discard: bool,
    /// Whether space that was never written reads as zeroes. True of a file, false of a reused block device and of whatever
    /// else keeps its length. It decides whether a fresh cluster may be mapped before its data is durable.
    pub unwritten_reads_zero: bool,
}

impl Limits {
    /// Why an image cannot be kept there, if it cannot.
    pub fn fault(&self) -> Option<String> {
        let Self { alignment, max_transfer, .. } = *self;
        if alignment > UNIT && (alignment > MOST_ALIGNMENT || !alignment.is_power_of_two()) {
            Some(format!("a storage with alignment {alignment}"))
        } else if max_transfer == 0 || !max_transfer.is_multiple_of(self.sector()) {
            Some(format!("a storage that transfers {max_transfer} bytes at once"))
        } else {
            None
        }
    }

    /// Bytes of a sector, of which every transfer has whole ones: 512, or the alignment if that is more.
    #[inline]
    pub const fn sector(&self) -> usize {
        if self.alignment > UNIT { self.alignment } else { UNIT }
    }
}

/// Whether an operation failed because there was no room.
pub fn is_no_space(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | FileTooLarge | QuotaExceeded)
}

/// A byte-addressed file with explicit durability; see the module for the contract.
#[expect(clippy::len_without_is_empty, reason = "an empty storage is nothing special to anybody")]
pub trait Storage: Send + Sync + 'static {
    /// Abilities and alignment; constant for the life of the storage.
    fn limits(&self) -> Limits;

    /// Whether it can be changed at all; constant as well. Of one that cannot, every change fails, and no image on it is opened for
    /// writing. A storage that passes everything on to another one passes this on too.
    fn writable(&self) -> bool {
        true
    }

    /// Current length in bytes, including completed length changes that are not durable yet.
    fn len(&self) -> impl Future<Output = io::Result<u64>> + Send;

    /// Sets the length; new space reads as zeroes. Cached, like a write.
    ///
    /// A storage of a fixed size keeps its length, and what it holds: a length up to its size succeeds and changes nothing,
    /// a longer one fails with [`io::ErrorKind::StorageFull`], and [`Storage::len`] goes on saying the whole size. Should
    /// somebody make it longer meanwhile, what it gains may hold anything.
    fn set_len(&self, len: u64) -> impl Future<Output = io::Result<()>> + Send;

    /// Fills `buf` from `offset`; past the end reads as zeroes. The buffer comes back in every case.
    fn read(&self, offset: u64, buf: IoBuf)
    -> impl Future<Output = (IoBuf, io::Result<()>)> + Send;

    /// Writes all of `buf` at `offset`, extending the file if need be. The buffer comes back in every case.
    fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> impl Future<Output = (IoBuf, io::Result<()>)> + Send;

    /// Makes `range` read as zeroes: a write of zeroes that need not carry them.
    fn write_zeroes(&self, range: Range<u64>) -> impl Future<Output = io::Result<()>> + Send;

    /// Gives the space of `range` back. Until it is overwritten, each unit holds what it held or zeroes, and after a
    /// crash either again.
    fn discard(&self, range: Range<u64>) -> impl Future<Output = io::Result<()>> + Send;

    /// Makes durable everything that had completed when it was called.
    fn flush(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Returns once no operation whose future was dropped, and none that failed, can still take effect. Fails if a dropped one
    /// was a flush that failed and that no earlier `settle` has reported. No default: every backend must decide.
    fn settle(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// What is known of the bytes from `offset` on without reading them: of how many, one at least and `len` at most, and whether they are a
    /// hole. A hole reads as zeroes; what is behind the end is one, and what was written and not flushed yet is none. It is asked of
    /// the layers below an image, to spare reading them. A storage that knows nothing of holes says of all of it that it is none, as
    /// does one that fails to find out; one that passes everything on may pass this on too.
    fn is_hole(&self, offset: u64, len: u64) -> impl Future<Output = (u64, bool)> + Send {
        let _ = offset;
        std::future::ready((len, false))
    }

    /// A scheduling point before each critical section. Ready at once except under a simulator.
    fn pause(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}
