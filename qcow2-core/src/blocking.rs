//! Plain calls for people who want no futures: `&mut [u8]`, any offset, any length.
//!
//! Requests that are not multiples of 512 bytes are completed by reading what surrounds them; those are serialised, so that
//! two of them in one unit do not lose each other's bytes.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::backing::Backing;
use crate::chain::Layers;
use crate::check::CheckReport;
use crate::compress::Executor;
use crate::crypt::{Encryption, Passphrase};
use crate::data_file::DataFile;
use crate::error::{CheckError, CreateError, IoError, OpenError};
use crate::image::ImageInfo;
use crate::layer::Layer;
use crate::options::{CreateOptions, OpenOptions, Preallocation, Repair};
use crate::rule::Rules;
use crate::work::Work;
use crate::zero::Zeroing;
use storage::{Durability, IoBuf, Storage, UNIT};

pub use storage::block_on;

/// As [`crate::create()`].
///
/// # Errors
/// See [`CreateError`].
pub fn create<S: Storage>(storage: &S, options: &CreateOptions) -> Result<(), CreateError> {
    block_on(crate::create(storage, options))
}

/// As [`crate::create_over`].
///
/// # Errors
/// See [`CreateError`].
pub fn create_over<S: Storage>(
    storage: &S,
    options: &CreateOptions,
    backing: &Backing,
) -> Result<(), CreateError> {
    block_on(crate::create_over(storage, options, backing))
}

/// As [`crate::create_with_data`].
///
/// # Errors
/// See [`CreateError`].
pub fn create_with_data<S: Storage>(
    storage: &S,
    data: &S,
    options: &CreateOptions,
    said: &DataFile,
    backing: Option<&Backing>,
) -> Result<(), CreateError> {
    block_on(crate::create_with_data(storage, data, options, said, backing))
}

/// As [`crate::create_encrypted`].
///
/// # Errors
/// See [`CreateError`].
pub fn create_encrypted<S: Storage>(
    storage: &S,
    data: Option<(&S, &DataFile)>,
    options: &CreateOptions,
    encryption: &Encryption,
    backing: Option<&Backing>,
) -> Result<(), CreateError> {
    block_on(crate::create_encrypted(storage, data, options, encryption, backing))
}

/// As [`crate::check()`].
///
/// # Errors
/// See [`CheckError`].
pub fn check<S: Storage>(storage: &S, repair: Repair) -> Result<CheckReport, CheckError> {
    block_on(crate::check(storage, repair, Rules::all()))
}

/// An open image with blocking calls. Share it between threads by reference.
#[derive(Debug)]
pub struct Image<S: Storage> {
    inner: crate::Image<S>,
    /// Held shared by whole-unit changes and exclusively by read-modify-write ones.
    partial: RwLock<()>,
    /// Buffers of past requests for the next ones: [`SPARE_BYTES`] each, and their content is whatever it was.
    spare: Mutex<Vec<IoBuf>>,
}

/// Requests up to this length use the buffers of past ones.
const SPARE_BYTES: usize = 64 << 10;
/// As many of them are kept.
const MOST_SPARE: usize = 16;

impl<S: Storage> Image<S> {
    /// As [`crate::Image::open`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(storage: S, options: OpenOptions) -> Result<Self, OpenError> {
        Ok(Self::new(block_on(crate::Image::open(storage, options))?))
    }

    /// As [`crate::Image::open_over`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_over(
        storage: S,
        layer: Arc<dyn Layer>,
        options: OpenOptions,
    ) -> Result<Self, OpenError> {
        Ok(Self::new(block_on(crate::Image::open_over(storage, layer, options))?))
    }

    /// As [`crate::Image::open_with_data`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_with_data(
        storage: S,
        data: S,
        layer: Option<Arc<dyn Layer>>,
        options: OpenOptions,
    ) -> Result<Self, OpenError> {
        Ok(Self::new(block_on(crate::Image::open_with_data(storage, data, layer, options))?))
    }

    /// As [`crate::Image::open_encrypted`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_encrypted(
        storage: S,
        passphrase: &Passphrase,
        data: Option<S>,
        layer: Option<Arc<dyn Layer>>,
        options: OpenOptions,
    ) -> Result<Self, OpenError> {
        let open = crate::Image::open_encrypted(storage, passphrase, data, layer, options);
        Ok(Self::new(block_on(open)?))
    }

    /// As [`crate::open_chain()`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_chain(
        storage: S,
        layers: &mut impl Layers<S>,
        options: OpenOptions,
    ) -> Result<Self, OpenError>
    where
        S: std::fmt::Debug,
    {
        Ok(Self::new(block_on(crate::open_chain(storage, layers, options))?))
    }

    fn new(inner: crate::Image<S>) -> Self {
        Self { inner, partial: RwLock::new(()), spare: Mutex::default() }
    }

    /// Geometry and flags as of now.
    pub fn info(&self) -> ImageInfo {
        self.inner.info()
    }

    /// As [`crate::Image::work`].
    pub fn work(&self) -> Work {
        self.inner.work()
    }

    /// Fills `data` from guest offset `offset`.
    ///
    /// # Errors
    /// As [`crate::Image::read`].
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), IoError> {
        let asked = data.len() as u64;
        let (start, len, skip) = self.widen(offset, asked)?;
        let done = self.with_buffer(len, |buf| {
            let (buf, result) = block_on(self.inner.read(start, buf));
            if result.is_ok() {
                data.copy_from_slice(&buf[skip..skip + data.len()]);
            }
            (buf, result)
        });
        done.map_err(as_asked(offset, asked))
    }

    /// Writes `data` at guest offset `offset`.
    ///
    /// # Errors
    /// As [`crate::Image::write`].
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        self.write_widened(offset, data).map_err(as_asked(offset, data.len() as u64))
    }

    fn write_widened(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let (start, len, skip) = self.widen(offset, data.len() as u64)?;
        if skip == 0 && len == data.len() {
            let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
            return self.with_buffer(len, |mut buf| {
                buf.copy_from_slice(data);
                block_on(self.inner.write(start, buf, Durability::Cached))
            });
        }
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        self.with_buffer(len, |buf| {
            let (mut buf, result) = block_on(self.inner.read(start, buf));
            if result.is_err() {
                return (buf, result);
            }
            buf[skip..skip + data.len()].copy_from_slice(data);
            block_on(self.inner.write(start, buf, Durability::Cached))
        })
    }

    /// As [`crate::Image::write_compressed`], at any offset and length.
    ///
    /// # Errors
    /// As [`crate::Image::write_compressed`].
    pub fn write_compressed(
        &self,
        offset: u64,
        data: &[u8],
        executor: &dyn Executor,
    ) -> Result<(), IoError> {
        let asked = data.len() as u64;
        let done = (|| {
            let Some((first, last)) = self.whole_units(offset, asked)? else {
                return self.write(offset, data);
            };
            let (head, rest) = data.split_at(self.small(offset, first - offset)?);
            let (whole, tail) = rest.split_at(self.small(offset, last - first)?);
            self.write(offset, head)?;
            {
                let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
                let buf = IoBuf::copy_of(whole, self.inner.storage().limits().alignment);
                let how = Durability::Cached;
                block_on(self.inner.write_compressed(first, buf, how, executor)).1?;
            }
            self.write(last, tail)
        })();
        done.map_err(as_asked(offset, asked))
    }

    /// As [`crate::Image::write_zeroes`], at any offset and length.
    ///
    /// # Errors
    /// As [`crate::Image::write`].
    pub fn write_zeroes(&self, offset: u64, len: u64, how: Zeroing) -> Result<(), IoError> {
        self.zero_in_parts(offset, len, how).map_err(as_asked(offset, len))
    }

    fn zero_in_parts(&self, offset: u64, len: u64, how: Zeroing) -> Result<(), IoError> {
        let Some((first, last)) = self.whole_units(offset, len)? else {
            return self.write(offset, &vec![0; self.small(offset, len)?]);
        };
        let end = offset + len;
        self.write(offset, &vec![0; self.small(offset, first - offset)?])?;
        {
            let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
            block_on(self.inner.write_zeroes(first, last - first, how))?;
        }
        self.write(last, &vec![0; self.small(last, end - last)?])
    }

    /// As [`crate::Image::discard`]; what is not a whole number of clusters is left as it is.
    ///
    /// # Errors
    /// As [`crate::Image::write`].
    pub fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let Some((first, last)) = self.whole_units(offset, len)? else { return Ok(()) };
        let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
        block_on(self.inner.discard(first, last - first)).map_err(as_asked(offset, len))
    }

    /// As [`crate::Image::uncover`]; what is not a whole number of clusters is left as it is.
    ///
    /// # Errors
    /// As [`crate::Image::write`].
    pub fn uncover(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let Some((first, last)) = self.whole_units(offset, len)? else { return Ok(()) };
        let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
        block_on(self.inner.uncover(first, last - first)).map_err(as_asked(offset, len))
    }

    /// As [`crate::Image::separate`].
    ///
    /// # Errors
    /// As [`crate::Image::separate`].
    pub fn separate(&self) -> Result<u64, IoError> {
        block_on(self.inner.separate())
    }

    /// As [`crate::Image::preallocate`], of every cluster that the range touches.
    ///
    /// # Errors
    /// As [`crate::Image::preallocate`].
    pub fn preallocate(&self, offset: u64, len: u64, how: Preallocation) -> Result<(), IoError> {
        let (start, whole, _) = self.widen(offset, len)?;
        block_on(self.inner.preallocate(start, whole as u64, how)).map_err(as_asked(offset, len))
    }

    /// As [`crate::Image::copy_up`], of all units that the range touches.
    ///
    /// # Errors
    /// As [`crate::Image::copy_up`].
    pub fn copy_up(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let (start, whole, _) = self.widen(offset, len)?;
        block_on(self.inner.copy_up(start, whole as u64)).map_err(as_asked(offset, len))
    }

    /// As [`crate::Image::set_backing`].
    ///
    /// # Errors
    /// As [`crate::Image::set_backing`].
    pub fn set_backing(&self, backing: Option<&Backing>) -> Result<(), IoError> {
        block_on(self.inner.set_backing(backing))
    }

    /// As [`crate::Image::add_passphrase`].
    ///
    /// # Errors
    /// As [`crate::Image::add_passphrase`].
    pub fn add_passphrase(
        &self,
        known: &Passphrase,
        added: &Passphrase,
        rounds: u32,
        random: &mut (dyn FnMut(&mut [u8]) + Send),
    ) -> Result<usize, IoError> {
        block_on(self.inner.add_passphrase(known, added, rounds, random))
    }

    /// As [`crate::Image::remove_passphrase`].
    ///
    /// # Errors
    /// As [`crate::Image::remove_passphrase`].
    pub fn remove_passphrase(
        &self,
        kept: &Passphrase,
        removed: &Passphrase,
    ) -> Result<usize, IoError> {
        block_on(self.inner.remove_passphrase(kept, removed))
    }

    /// As [`crate::Image::grow`].
    ///
    /// # Errors
    /// As [`crate::Image::grow`].
    pub fn grow(&self, size: u64) -> Result<(), IoError> {
        block_on(self.inner.grow(size))
    }

    /// As [`crate::Image::shrink`].
    ///
    /// # Errors
    /// As [`crate::Image::shrink`].
    pub fn shrink(&self, size: u64) -> Result<(), IoError> {
        block_on(self.inner.shrink(size))
    }

    /// As [`crate::Image::flush`].
    ///
    /// # Errors
    /// As [`crate::Image::flush`].
    pub fn flush(&self) -> Result<(), IoError> {
        block_on(self.inner.flush())
    }

    /// As [`crate::Image::close`].
    ///
    /// # Errors
    /// As [`crate::Image::close`].
    pub fn close(self) -> Result<S, IoError> {
        block_on(self.inner.close())
    }

    /// The whole units around a range: their start and length, and where the range begins in them. Around an empty one there is none.
    fn widen(&self, offset: u64, len: u64) -> Result<(u64, usize, usize), IoError> {
        let unit = UNIT as u64;
        let end = offset
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(unit))
            .ok_or_else(|| self.out_of_range(offset, len))?;
        let start = if len == 0 { end } else { offset - offset % unit };
        let whole = self.small(offset, end - start)?;
        Ok((start, whole, self.small(offset, offset.saturating_sub(start))?))
    }

    /// Where the first whole unit of a range begins and the last one ends, if there is one.
    fn whole_units(&self, offset: u64, len: u64) -> Result<Option<(u64, u64)>, IoError> {
        let unit = UNIT as u64;
        let end = offset.checked_add(len).ok_or_else(|| self.out_of_range(offset, len))?;
        let last = end - end % unit;
        let first = offset.checked_next_multiple_of(unit).filter(|&first| first < last);
        Ok(first.map(|first| (first, last)))
    }

    fn small(&self, offset: u64, len: u64) -> Result<usize, IoError> {
        usize::try_from(len).map_err(|_| self.out_of_range(offset, len))
    }

    fn out_of_range(&self, offset: u64, len: u64) -> IoError {
        IoError::OutOfRange { offset, len, size: self.info().virtual_size }
    }

    /// Does something with a buffer of `len` bytes, whose content may be anything.
    fn with_buffer<R>(&self, len: usize, request: impl FnOnce(IoBuf) -> (IoBuf, R)) -> R {
        let alignment = self.inner.storage().limits().alignment;
        let new = |len| IoBuf::zeroed(len, alignment);
        if len > SPARE_BYTES {
            return request(new(len)).1;
        }
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let found = spare().pop();
        let mut rest = found.unwrap_or_else(|| new(SPARE_BYTES));
        let (mut buf, result) = request(rest.split_to(len));
        buf.unsplit(rest);
        let mut spare = spare();
        // Another one than the storage was given may lie anywhere.
        if spare.len() < MOST_SPARE && buf.is_aligned(alignment) {
            spare.push(buf);
        }
        result
    }
}

/// Says of a request that reaches past the end what its caller asked for, and not what that was widened to.
fn as_asked(offset: u64, len: u64) -> impl FnOnce(IoError) -> IoError {
    move |error| match error {
        IoError::OutOfRange { size, .. } => IoError::OutOfRange { offset, len, size },
        other => other,
    }
}
