//! imago 0.2.6 as a subject: its asynchronous variant, in process, on the hostile disk.
//!
//! ```text
//!   guest write, read, zeroes   -> FormatAccess::{write, read, write_zeroes}      side by side
//!   guest discard               -> FormatAccess::discard_to_backing               alone: it takes `&mut self`
//!   guest flush                 -> FormatAccess::flush, then FormatAccess::sync   as its documentation asks
//!   power cut                   -> the image is dropped: this variant has no `Drop` that writes
//! ```

mod storage;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping as Mapped};
use qcow2_crashtest::prelude::*;
use tokio::sync::RwLock;

use crate::storage::Below;

/// imago, and what it is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imago {
    /// A legal image whenever the power fails, and everything that its guest may see.
    Full,
    /// Only what its guest may see: what was written, flushed and synced is there, and nothing that nobody wrote.
    Contents,
}

impl Subject for Imago {
    type Image = ImagoImage;

    fn name(&self) -> String {
        match self {
            Self::Full => "imago 0.2.6".to_owned(),
            Self::Contents => "imago 0.2.6, judged by what its guest sees".to_owned(),
        }
    }

    fn source(&self) -> Option<Vec<(String, String)>> {
        // Another version of Rust may hash otherwise: then it counts as another source, which is safe.
        let mut hasher = DefaultHasher::new();
        [include_str!("lib.rs"), include_str!("storage.rs")].hash(&mut hasher);
        let adapter = format!("{:016x}", hasher.finish());
        Some(vec![("imago".to_owned(), "0.2.6".to_owned()), ("adapter".to_owned(), adapter)])
    }

    fn command(&self) -> &'static str {
        "cargo run --release --manifest-path tests/subjects/imago/Cargo.toml --"
    }

    fn key(&self) -> &'static str {
        match self {
            Self::Full => "imago",
            Self::Contents => "imago-contents",
        }
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        Promises {
            cluster_units: geometry.cluster_units(),
            // Without a backing image, what is seen through a discarded cluster is zero.
            discard: DiscardReads::Zeroes,
            grow: Durability::Cached,
            changes: if session.write_through { Durability::Through } else { Durability::Cached },
        }
    }

    fn duties(&self) -> Duties {
        Duties {
            structure: *self == Self::Full,
            disjoint_writes: false,
            finds_space: false,
            ..Duties::default()
        }
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::plain();
        can.repair = false;
        // It opens images of version 2, and refuses to write zeroes there; which of the two is asked cannot be said apart.
        can.version_2 = false;
        can
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<ImagoImage, Refusal> {
        let (below, queue) = Below::new(storage);
        let builder = Qcow2::<Below>::builder(below).backing(None).write(session.writable);
        match queue.run(builder.open(DenyImplicitOpenGate::default())).await {
            Ok(format) => {
                let access = FormatAccess::new(format);
                let (size, write_through) = (AtomicU64::new(access.size()), session.write_through);
                Ok(ImagoImage { access: RwLock::new(access), queue, size, write_through })
            }
            Err(error) if error.raw_os_error().is_some() => Err(Refusal::Failed(error.to_string())),
            Err(error) => Err(Refusal::GaveUp(error.to_string())),
        }
    }
}

/// An open image.
pub struct ImagoImage {
    access: RwLock<FormatAccess<Below>>,
    queue: InOrder,
    /// Virtual size in bytes, known without waiting for `access`.
    size: AtomicU64,
    write_through: bool,
}

impl ImagoImage {
    /// Runs `work` on the image, beside others.
    async fn shared<T>(
        &self,
        work: impl AsyncFnOnce(&FormatAccess<Below>) -> io::Result<T>,
    ) -> Result<T, String> {
        let work = async move { work(&*self.access.read().await).await };
        self.queue.run(work).await.map_err(|error| error.to_string())
    }

    /// Runs `work` on the image while nobody else uses it.
    async fn alone<T>(
        &self,
        work: impl AsyncFnOnce(&mut FormatAccess<Below>) -> io::Result<T>,
    ) -> Result<T, String> {
        let work = async move { work(&mut *self.access.write().await).await };
        self.queue.run(work).await.map_err(|error| error.to_string())
    }
}

impl ImagoImage {
    /// What everything ends with that an image does which was opened to write through.
    async fn through(&self) -> Result<(), String> {
        if self.write_through {
            return self.shared(async |access| durable(access).await).await;
        }
        Ok(())
    }
}

/// Guest flush.
async fn durable(access: &FormatAccess<Below>) -> io::Result<()> {
    access.flush().await?;
    access.sync().await
}

impl SubjectImage for ImagoImage {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, String> {
        self.shared(async move |access| access.read(&mut buf[..], offset).await.map(|()| buf)).await
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        let through = self.write_through || durability == Durability::Through;
        self.shared(async move |access| {
            access.write(&data[..], offset).await?;
            if through { durable(access).await } else { Ok(()) }
        })
        .await
    }

    async fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        if unmap {
            self.alone(async move |access| access.discard_to_zero(offset, length).await).await?;
        } else {
            self.shared(async move |access| access.write_zeroes(offset, length).await).await?;
        }
        self.through().await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), String> {
        self.alone(async move |access| access.discard_to_backing(offset, length).await).await?;
        self.through().await
    }

    async fn flush(&self) -> Result<(), String> {
        self.shared(async |access| durable(access).await).await
    }

    async fn grow(&self, size: u64) -> Result<(), String> {
        self.shared(async move |access| {
            access.resize_grow(size, PreallocateMode::None).await?;
            self.size.store(access.size(), Ordering::Relaxed);
            Ok(())
        })
        .await
    }

    async fn map(&self) -> Result<Vec<Extent>, String> {
        self.shared(async |access| {
            let mut extents = Vec::new();
            let mut guest = 0;
            while guest < access.size() {
                let (mapped, length) = access.get_mapping(guest, access.size() - guest).await?;
                let to = match mapped {
                    Mapped::Raw { offset, .. } => Mapping::Host(offset),
                    Mapped::Zero { .. } => Mapping::Zero,
                    other => return Err(io::Error::other(format!("mapped as {other:?}"))),
                };
                extents.push(Extent { guest, length, to });
                guest += length;
            }
            Ok(extents)
        })
        .await
    }

    async fn close(self) -> Result<(), String> {
        self.flush().await
    }
}
