//! qcow2-rs 0.1.6 with requests at once: its futures, which are not `Send`, over a file of bytes whose calls wait.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::mem::forget;
use std::pin::Pin;

use qcow2_crashtest::prelude::*;
use qcow2_rs::dev::Qcow2Dev;
use qcow2_rs::error::Qcow2Result;
use qcow2_rs::ops::Qcow2IoOps;
use qcow2_rs::utils::qcow2_alloc_dev;

use crate::{can, parameters};

/// The library, held to a legal image whenever the power fails, or only to what its guest sees; requests run beside each other.
#[derive(Clone, Copy, Debug)]
pub struct AtOnce {
    /// The latter.
    pub contents: bool,
}

/// The file of an image. A cache is flushed in the order of a hash map whose keys are random, all slices at once.
struct File(ByteFile, InOrder);

impl Qcow2IoOps for File {
    // At the end of the file it reads less, and past it nothing.
    async fn read_to(&self, offset: u64, buf: &mut [u8]) -> Qcow2Result<usize> {
        let there = buf.len().min(usize::try_from(self.0.len().saturating_sub(offset))?);
        if there > 0 {
            self.0.read_at(offset, &mut buf[..there]).await?;
        }
        Ok(there)
    }

    async fn write_from(&self, offset: u64, buf: &[u8]) -> Qcow2Result<()> {
        let (file, data) = (self.0.clone(), buf.to_vec());
        let io = async move { file.write_at(offset, &data).await };
        Ok(self.1.write(offset, io).await?)
    }

    // The flags of its own engines are none that Linux takes, and the library writes zeroes then.
    async fn fallocate(&self, _offset: u64, _len: usize, _flags: u32) -> Qcow2Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn fsync(&self, _offset: u64, _len: usize, _flags: u32) -> Qcow2Result<()> {
        Ok(self.0.flush().await?)
    }
}

/// An open image.
pub struct Open {
    device: Option<Qcow2Dev<File>>,
    queue: InOrder,
    write_through: bool,
    /// Requests on their way, and whether there were ever two.
    running: Cell<u32>,
    beside: Cell<bool>,
}

// As the other form: dropping a device, or a request that has the last of a slice of a table, asserts that it was flushed, part by part, and two that
// were not end the process. No power cut drops anything. After requests at once it may say that there is nothing to flush where there is.
impl Drop for Open {
    fn drop(&mut self) {
        let beside = self.beside.get();
        forget(self.device.take_if(|device| beside || device.need_flush_meta()));
    }
}

/// A request on its way, which is left where it is if it is dropped there.
struct OnItsWay<F>(Option<Pin<Box<F>>>);

impl<F> Drop for OnItsWay<F> {
    fn drop(&mut self) {
        forget(self.0.take());
    }
}

async fn run<T>(queue: &InOrder, work: impl Future<Output = T>) -> T {
    let mut work = OnItsWay(Some(Box::pin(work)));
    let turn = poll_fn(|context| work.0.as_mut().expect("it is not over").as_mut().poll(context));
    let done = queue.run(turn).await;
    drop(work.0.take());
    done
}

impl Open {
    fn device(&self) -> &Qcow2Dev<File> {
        self.device.as_ref().expect("it is there until it is dropped")
    }

    async fn run<T>(&self, work: impl Future<Output = Qcow2Result<T>>) -> Result<T, String> {
        self.beside.set(self.beside.get() || self.running.get() > 0);
        self.running.set(self.running.get() + 1);
        let done = run(&self.queue, work).await;
        self.running.set(self.running.get() - 1);
        done.map_err(|error| error.to_string())
    }
}

impl Subject for AtOnce {
    type Image = Open;

    fn name(&self) -> String {
        "qcow2-rs 0.1.6, requests at once".to_owned()
    }

    fn key(&self) -> &'static str {
        if self.contents { "qcow2-rs-at-once-contents" } else { "qcow2-rs-at-once" }
    }

    fn command(&self) -> &'static str {
        "cargo run --release --manifest-path tests/subjects/qcow2-rs/Cargo.toml --bin qcow2-rs-at-once --"
    }

    // It says nothing of futures that are dropped.
    fn capabilities(&self) -> Capabilities {
        let mut can = can();
        can.dropped_requests = false;
        can
    }

    fn duties(&self) -> Duties {
        Duties { structure: !self.contents, finds_space: false, ..Duties::default() }
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<Open, Refusal> {
        let failed = |error: io::Error| Refusal::Failed(error.to_string());
        let (file, queue) = (ByteFile::new(storage).await.map_err(failed)?, InOrder::default());
        let parameters = parameters(&session);
        let opening = async {
            let file = File(file, queue.clone());
            let (device, _) = qcow2_alloc_dev("image".as_ref(), file, &parameters).await?;
            device.qcow2_prep_io().await?;
            Qcow2Result::Ok(device)
        };
        let device =
            queue.run(opening).await.map_err(|error| Refusal::GaveUp(error.to_string()))?;
        let (running, beside) = (Cell::new(0), Cell::new(false));
        let write_through = session.write_through;
        Ok(Open { device: Some(device), queue, write_through, running, beside })
    }
}

impl SubjectImage for Open {
    fn size(&self) -> u64 {
        self.device().info.virtual_size()
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, String> {
        match self.run(self.device().read_at(&mut buf, offset)).await? {
            read if read == buf.len() => Ok(buf),
            read => Err(format!("{read} of {} bytes", buf.len())),
        }
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        self.run(self.device().write_at(&data, offset)).await?;
        let through = self.write_through || durability == Durability::Through;
        if through { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> Result<(), String> {
        self.run(self.device().flush_meta()).await?;
        self.run(self.device().fsync_range(0, usize::MAX)).await
    }

    async fn close(self) -> Result<(), String> {
        self.flush().await
    }
}
