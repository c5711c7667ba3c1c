//! A storage of whatever kind, behind one type.
//!
//! Code that is generic over [`Storage`] is compiled once for each kind that it is used with. Who chooses a kind while the program runs, or
//! uses many and cares more for building than for an allocation a call, uses it with this one.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;

use crate::{Durability, IoBuf, Limits, Storage};

/// A storage that was chosen when the program ran. Each operation is that of the storage inside, and costs one allocation more.
pub struct AnyStorage(Box<dyn Kind>);

impl AnyStorage {
    /// Puts a storage of any kind in.
    pub fn new(storage: impl Storage) -> Self {
        Self(Box::new(storage))
    }
}

impl fmt::Debug for AnyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyStorage").field("limits", &Storage::limits(self)).finish_non_exhaustive()
    }
}

/// What one of its operations becomes.
type Going<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Storage`], as it can be asked for behind a pointer.
trait Kind: Send + Sync + 'static {
    fn limits(&self) -> Limits;
    fn writable(&self) -> bool;
    fn len(&self) -> Going<'_, io::Result<u64>>;
    fn set_len(&self, len: u64) -> Going<'_, io::Result<()>>;
    fn read(&self, offset: u64, buf: IoBuf) -> Going<'_, (IoBuf, io::Result<()>)>;
    fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> Going<'_, (IoBuf, io::Result<()>)>;
    fn write_zeroes(&self, range: Range<u64>) -> Going<'_, io::Result<()>>;
    fn discard(&self, range: Range<u64>) -> Going<'_, io::Result<()>>;
    fn flush(&self) -> Going<'_, io::Result<()>>;
    fn settle(&self) -> Going<'_, io::Result<()>>;
    fn is_hole(&self, offset: u64, len: u64) -> Going<'_, (u64, bool)>;
    fn pause(&self) -> Going<'_, ()>;
}

impl<S: Storage> Kind for S {
    fn limits(&self) -> Limits {
        Storage::limits(self)
    }

    fn writable(&self) -> bool {
        Storage::writable(self)
    }

    fn len(&self) -> Going<'_, io::Result<u64>> {
        Box::pin(Storage::len(self))
    }

    fn set_len(&self, len: u64) -> Going<'_, io::Result<()>> {
        Box::pin(Storage::set_len(self, len))
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Going<'_, (IoBuf, io::Result<()>)> {
        Box::pin(Storage::read(self, offset, buf))
    }

    fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> Going<'_, (IoBuf, io::Result<()>)> {
        Box::pin(Storage::write(self, offset, buf, durability))
    }

    fn write_zeroes(&self, range: Range<u64>) -> Going<'_, io::Result<()>> {
        Box::pin(Storage::write_zeroes(self, range))
    }

    fn discard(&self, range: Range<u64>) -> Going<'_, io::Result<()>> {
        Box::pin(Storage::discard(self, range))
    }

    fn flush(&self) -> Going<'_, io::Result<()>> {
        Box::pin(Storage::flush(self))
    }

    fn settle(&self) -> Going<'_, io::Result<()>> {
        Box::pin(Storage::settle(self))
    }

    fn is_hole(&self, offset: u64, len: u64) -> Going<'_, (u64, bool)> {
        Box::pin(Storage::is_hole(self, offset, len))
    }

    fn pause(&self) -> Going<'_, ()> {
        Box::pin(Storage::pause(self))
    }
}

impl Storage for AnyStorage {
    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn writable(&self) -> bool {
        self.0.writable()
    }

    fn len(&self) -> impl Future<Output = io::Result<u64>> + Send {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> impl Future<Output = io::Result<()>> + Send {
        self.0.set_len(len)
    }

    fn read(
        &self,
        offset: u64,
        buf: IoBuf,
    ) -> impl Future<Output = (IoBuf, io::Result<()>)> + Send {
        self.0.read(offset, buf)
    }

    fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> impl Future<Output = (IoBuf, io::Result<()>)> + Send {
        self.0.write(offset, buf, durability)
    }

    fn write_zeroes(&self, range: Range<u64>) -> impl Future<Output = io::Result<()>> + Send {
        self.0.write_zeroes(range)
    }

    fn discard(&self, range: Range<u64>) -> impl Future<Output = io::Result<()>> + Send {
        self.0.discard(range)
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.0.flush()
    }

    fn settle(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.0.settle()
    }

    fn is_hole(&self, offset: u64, len: u64) -> impl Future<Output = (u64, bool)> + Send {
        self.0.is_hole(offset, len)
    }

    fn pause(&self) -> impl Future<Output = ()> + Send {
        self.0.pause()
    }
}
