//! qcow2-rs 0.1.6 as a subject: its futures, which are not `Send`, in process, on the hostile disk.

use std::io;

use model::op::Durability;
use qcow2_core::storage::{self, AnyStorage, IoBuf, Storage as _};
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::subject::{Duties, Refusal, Session, Subject, SubjectImage};
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::error::Qcow2Result;
use qcow2_rs::ops::Qcow2IoOps;
use qcow2_rs::utils::qcow2_alloc_dev;

/// The library, held to a legal image whenever the power fails, or only to what its guest sees.
#[derive(Clone, Copy, Debug)]
pub struct Qcow2Rs {
    /// The latter.
    pub contents: bool,
}

/// The file of an image, as the library's own engines for files do it.
struct Below(AnyStorage);

impl Qcow2IoOps for Below {
    async fn read_to(&self, offset: u64, buf: &mut [u8]) -> Qcow2Result<usize> {
        let there = self.0.len().await?.saturating_sub(offset);
        let (read, result) = self.0.read(offset, IoBuf::zeroed(buf.len(), 512)).await;
        result?;
        buf.copy_from_slice(&read);
        Ok(buf.len().min(usize::try_from(there)?))
    }

    async fn write_from(&self, offset: u64, buf: &[u8]) -> Qcow2Result<()> {
        let mut data = IoBuf::zeroed(buf.len(), 512);
        data.copy_from_slice(buf);
        Ok(self.0.write(offset, data, storage::Durability::Cached).await.1?)
    }

    // A hole, or a range of zeroes: both read as zeroes, and make the file no longer.
    async fn fallocate(&self, offset: u64, len: usize, _flags: u32) -> Qcow2Result<()> {
        let end = self.0.len().await?.min(offset + len as u64);
        if offset < end { Ok(self.0.write_zeroes(offset..end).await?) } else { Ok(()) }
    }

    async fn fsync(&self, _offset: u64, _len: usize, _flags: u32) -> Qcow2Result<()> {
        Ok(self.0.flush().await?)
    }
}

impl Subject for Qcow2Rs {
    type Image = Open;

    fn name(&self) -> String {
        "qcow2-rs 0.1.6".to_owned()
    }

    fn key(&self) -> &'static str {
        if self.contents { "qcow2-rs-contents" } else { "qcow2-rs" }
    }

    fn command(&self) -> &'static str {
        "cargo run --release --manifest-path tests/subjects/qcow2-rs/Cargo.toml --"
    }

    // It reads and writes, compressed clusters too, in images of version 3; backing files it opens by path only.
    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::plain();
        (can.zeroes, can.discard, can.grow) = (false, false, false);
        (can.repair, can.map, can.compressed) = (false, false, true);
        can
    }

    fn duties(&self) -> Duties {
        Duties { structure: !self.contents, finds_space: false, ..Duties::default() }
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<Open, Refusal> {
        let refused = |error| Refusal::GaveUp(format!("{error}"));
        let slices = Some((9, 512 * session.cache_pages.max(16) as usize));
        let params = Qcow2DevParams::new(9, slices, slices, !session.writable, false);
        let opened = qcow2_alloc_dev("image".as_ref(), Below(storage), &params).await;
        let (device, _) = opened.map_err(refused)?;
        device.qcow2_prep_io().await.map_err(refused)?;
        Ok(Open(Some(device), session.write_through))
    }
}

/// An open image, and whether each change of it is made durable.
pub struct Open(Option<Qcow2Dev<Below>>, bool);

impl Open {
    fn device(&self) -> &Qcow2Dev<Below> {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

// Dropping a device asserts that all of it was flushed, part by part, and two that were not end the process. No power cut drops anything.
impl Drop for Open {
    fn drop(&mut self) {
        std::mem::forget(self.0.take_if(|device| device.need_flush_meta()));
    }
}

fn told<T>(result: Qcow2Result<T>) -> Result<T, String> {
    result.map_err(|error| io::Error::from(error.into_inner()).to_string())
}

impl SubjectImage for Open {
    fn size(&self) -> u64 {
        self.device().info.virtual_size()
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, String> {
        told(self.device().read_at(&mut buf, offset).await).map(|_| buf)
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        told(self.device().write_at(&data, offset).await)?;
        if self.1 || durability == Durability::Through { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> Result<(), String> {
        told(self.device().flush_meta().await)?;
        told(self.device().fsync_range(0, usize::MAX).await)
    }

    async fn close(self) -> Result<(), String> {
        self.flush().await
    }
}
