//! The one or two files of an image, and how host addresses tell them apart.
//!
//! ```text
//!   host address   0 ..            image file: header, tables, and guest data without an external data file
//!                  DATA | 0 ..     external data file: guest data, each byte at the guest's own offset
//! ```
//!
//! **Invariant.** Each file has its own length and is flushed by itself; a flush of one says nothing about the other. So whatever
//! is stamped or awaited carries its file. Offsets of the format end at 2^56, far below the bit that names the file, so that no
//! address of the one is ever taken for one of the other.

use std::io;
use std::ops::Range;

use crate::error::IoError;
use crate::format::limits::HOST_OFFSET_END;
use storage::{Durability, IoBuf, Limits, Storage};

/// One of the files that an image is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// The image file, which has all tables, and guest data unless there is a data file.
    #[default]
    Image,
    /// The external data file, which has guest data only.
    Data,
}

/// The bit of a host address in the external data file.
const DATA: u64 = 1 << 62;

const _: () = assert!(HOST_OFFSET_END < DATA);

/// The host address of this byte of the external data file.
pub(crate) const fn in_data(offset: u64) -> u64 {
    DATA | offset
}

/// The file that a host address is in, and the byte there.
#[inline]
pub(crate) const fn place(host: u64) -> (File, u64) {
    match host & DATA {
        0 => (File::Image, host),
        _ => (File::Data, host & !DATA),
    }
}

/// An operation at a host address that its storage failed.
pub(crate) fn failed(action: &'static str, host: u64, source: io::Error) -> IoError {
    match place(host) {
        (File::Image, offset) => IoError::Storage { action, offset, source },
        (File::Data, offset) => IoError::DataFile { action, offset, source },
    }
}

/// The storages of an image.
#[derive(Debug)]
pub(crate) struct Files<S> {
    pub(crate) image: S,
    pub(crate) data: Option<S>,
}

impl<S: Storage> Files<S> {
    /// What both ask for together. Whether space can be discarded, and reads as zeroes where it was never written, is said of the image
    /// file.
    pub(crate) fn limits(&self) -> Limits {
        let image = self.image.limits();
        let Some(data) = self.data.as_ref().map(S::limits) else { return image };
        let alignment = image.alignment.max(data.alignment);
        let sector = Limits { alignment, ..image }.sector();
        let most = image.max_transfer.min(data.max_transfer);
        Limits { alignment, max_transfer: most - most % sector, ..image }
    }

    /// The storage of a file.
    ///
    /// # Panics
    /// If there is no such file: no address leads there then.
    #[inline]
    pub(crate) fn of(&self, file: File) -> &S {
        match file {
            File::Image => &self.image,
            File::Data => self.data.as_ref().expect("only an image with a data file leads there"),
        }
    }

    #[inline]
    fn at(&self, host: u64) -> (&S, u64) {
        let (file, offset) = place(host);
        (self.of(file), offset)
    }

    /// Fills `buf` from a host address.
    #[inline]
    pub(crate) fn read(
        &self,
        host: u64,
        buf: IoBuf,
    ) -> impl Future<Output = (IoBuf, io::Result<()>)> + Send {
        let (storage, offset) = self.at(host);
        storage.read(offset, buf)
    }

    /// Writes `buf` to a host address.
    #[inline]
    pub(crate) fn write(
        &self,
        host: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> impl Future<Output = (IoBuf, io::Result<()>)> + Send {
        let (storage, offset) = self.at(host);
        storage.write(offset, buf, durability)
    }

    /// Zeroes a range of host addresses.
    pub(crate) fn write_zeroes(
        &self,
        host: Range<u64>,
    ) -> impl Future<Output = io::Result<()>> + Send {
        let (storage, offset) = self.at(host.start);
        storage.write_zeroes(offset..place(host.end).1)
    }

    /// Gives the space of a range of host addresses back.
    pub(crate) fn discard(&self, host: Range<u64>) -> impl Future<Output = io::Result<()>> + Send {
        let (storage, offset) = self.at(host.start);
        storage.discard(offset..place(host.end).1)
    }

    /// Waits until nothing that was dropped or failed can land any more, in any file.
    pub(crate) async fn settle(&self) -> io::Result<()> {
        let image = self.image.settle().await;
        if let Some(data) = &self.data {
            // Both are settled whatever became of the first.
            data.settle().await?;
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::{File, Files, in_data, place};
    use storage::memory::MemoryStorage;

    #[test]
    fn an_address_says_its_file() {
        assert_eq!(place(0x1_0000), (File::Image, 0x1_0000));
        assert_eq!(place(in_data(0)), (File::Data, 0));
        assert_eq!(place(in_data(0x1_0000) + 512), (File::Data, 0x1_0200));
    }

    #[test]
    fn limits_are_those_of_the_stricter() {
        let files = Files { image: MemoryStorage::default(), data: Some(MemoryStorage::default()) };
        assert_eq!(files.limits(), Files { image: MemoryStorage::default(), data: None }.limits());
    }
}
