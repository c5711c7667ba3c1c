//! The door for synchronous code: an implementation that reads and writes its file by plain calls which return when they are done.
//!
//! ```text
//!   harness, one thread for all requests          a thread for each open image
//!   request ──────── what to do ──────────>       BlockingImage::write(..)
//!           <─────── read 512 at 0x200 ────         PlainFile::read_at(..)     waits
//!   ByteFile::read_at, scheduled as any I/O
//!           ──────── bytes ───────────────>         goes on
//!           <─────── done ─────────────────
//! ```
//!
//! One request is done at a time and others wait for their turn, unless the subject has [`handles`](BlockingSubject::handles): each request has
//! a thread of its own then, and while one waits for its I/O others run. Locks that they hold across a call of the file are those of
//! [`sync`].
//!
//! **Invariant.** Until the power is cut, one of all these threads runs and the others wait, so that a case is a function of its seed. So what
//! goes wrong between two calls is found, and what goes wrong between two instructions, without a lock, is not. After a power cut every
//! call of the file fails, until the image is dropped.

mod board;
mod plain_file;
pub mod sync;
mod worker;

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;

use model::guest::Promises;
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry};
use qcow2_core::storage::{AnyStorage, IoBuf};

use self::board::Board;
pub use self::plain_file::PlainFile;
use self::plain_file::lock;
use self::worker::Worker;
use crate::byte_file::ByteFile;
use crate::capabilities::Capabilities;
use crate::subject::{
    Duties, Mend, Refusal, Session, Subject, SubjectImage, called, least, unasked,
};

/// An open image of synchronous code. It stays on one thread from its beginning to its end, and need not be `Send`. Calls with a body here
/// are made only of a subject whose [`Capabilities`] have what they do.
pub trait BlockingImage: 'static {
    /// Virtual size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from a place of the disk.
    ///
    /// # Errors
    /// A text, for reports.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), String>;

    /// Writes all of `data` to a place of the disk.
    ///
    /// # Errors
    /// A text, for reports.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), String>;

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// A text, for reports.
    fn flush(&mut self) -> Result<(), String>;

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// A text, for reports.
    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        let _ = (offset, length, unmap);
        Err(unasked("zeroes"))
    }

    /// Gives the whole clusters of a range back.
    ///
    /// # Errors
    /// A text, for reports.
    fn discard(&mut self, offset: u64, length: u64) -> Result<(), String> {
        let _ = (offset, length);
        Err(unasked("discard"))
    }

    /// Enlarges the disk.
    ///
    /// # Errors
    /// A text, for reports.
    fn grow(&mut self, size: u64) -> Result<(), String> {
        let _ = size;
        Err(unasked("grow"))
    }

    /// Makes the disk smaller.
    ///
    /// # Errors
    /// A text, for reports.
    fn shrink(&mut self, size: u64) -> Result<(), String> {
        let _ = size;
        Err(unasked("shrink"))
    }

    /// Where every part of the disk is, in order.
    ///
    /// # Errors
    /// A text, for reports.
    fn map(&mut self) -> Result<Vec<Extent>, String> {
        Err(unasked("map"))
    }

    /// Closes it cleanly; unless there is more to it, a flush.
    ///
    /// # Errors
    /// A text, for reports.
    fn close(mut self) -> Result<(), String>
    where
        Self: Sized,
    {
        self.flush()
    }
}

/// A handle of an open image, for one request.
type Handle = Box<dyn BlockingImage + Send>;

/// What makes handles of an open image, by which several threads use it at once. The thread that opened the image closes and drops it, when
/// no handle is left.
pub struct Handles(Box<dyn Fn() -> Handle + Send>);

impl Handles {
    /// Handles that `make` makes, one for each request. It runs in the harness's own thread, where nobody can wait: it takes no lock that a request may
    /// hold, of which it is the handle's calls that take them.
    pub fn new<H: BlockingImage + Send>(make: impl Fn() -> H + Send + 'static) -> Self {
        Self(Box::new(move || Box::new(make())))
    }
}

impl fmt::Debug for Handles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handles")
    }
}

/// Synchronous code under test; [`Blocking`] makes a [`Subject`] of it.
pub trait BlockingSubject: Clone + Send + Sync + 'static {
    /// An open image.
    type Image: BlockingImage;

    /// What reports call it.
    fn name(&self) -> String;

    /// What case files call it.
    fn key(&self) -> &'static str;

    /// As of a [`Subject`].
    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        least(geometry, session)
    }

    /// What it can do. Of what these calls have no words for it is asked nothing, whatever is said here: requests that are dropped in their
    /// middle, uncovering a layer, data files, passphrases.
    fn capabilities(&self) -> Capabilities;

    /// What it is held to.
    fn duties(&self) -> Duties {
        Duties::default()
    }

    /// As of a [`Subject`].
    fn command(&self) -> &'static str {
        called()
    }

    /// As of a [`Subject`].
    fn source(&self) -> Option<Vec<(String, String)>> {
        None
    }

    /// Opens the image; for writing, it must be safe to write afterwards.
    ///
    /// # Errors
    /// Why it does not.
    fn open(&self, file: PlainFile, session: &Session) -> Result<Self::Image, Refusal>;

    /// What makes handles of an image that was opened, if several threads may use it at once: each request is one call of a handle, on a thread of
    /// its own. None: one request at a time, on the thread that opened the image.
    fn handles(&self, image: &Self::Image) -> Option<Handles> {
        let _ = image;
        None
    }

    /// Checks and repairs an image that is not open, and says what it is afterwards.
    ///
    /// # Errors
    /// Why it does not.
    fn repair(&self, file: PlainFile) -> Result<Statement, Refusal> {
        drop(file);
        Err(Refusal::GaveUp(unasked("repair")))
    }

    /// Checks an image that is not open, and changes no more than `mend` says. None: it has no such call.
    fn check(&self, file: PlainFile, mend: Mend) -> Option<Result<Statement, Refusal>> {
        drop((file, mend));
        None
    }
}

/// A [`Subject`] made of synchronous code.
#[derive(Clone, Copy, Debug)]
pub struct Blocking<B>(pub B);

impl<B: BlockingSubject> Subject for Blocking<B> {
    type Image = Remote<B::Image>;

    fn name(&self) -> String {
        self.0.name()
    }

    fn key(&self) -> &'static str {
        self.0.key()
    }

    fn command(&self) -> &'static str {
        self.0.command()
    }

    fn source(&self) -> Option<Vec<(String, String)>> {
        self.0.source()
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        self.0.promises(geometry, session)
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = self.0.capabilities();
        // No call returns before it is done.
        can.dropped_requests = false;
        (can.uncover, can.data_files, can.passphrases) = (false, false, false);
        can
    }

    fn duties(&self) -> Duties {
        self.0.duties()
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<Self::Image, Refusal> {
        let (remote, file) = Remote::new(storage, session.write_through).await?;
        let subject = self.0.clone();
        let opened = remote.call(move |image| {
            let opened = subject.open(file, &session)?;
            let (size, handles) = (opened.size(), subject.handles(&opened));
            *image = Some(opened);
            Ok((size, handles))
        });
        let (size, handles) = opened.await?;
        remote.size.store(size, Ordering::Relaxed);
        *lock(&remote.handles) = handles;
        Ok(remote)
    }

    async fn repair(&self, storage: AnyStorage) -> Result<Statement, Refusal> {
        let (remote, file) = Remote::<B::Image>::new(storage, false).await?;
        let subject = self.0.clone();
        remote.call(move |_| subject.repair(file)).await
    }

    async fn check(&self, storage: AnyStorage, mend: Mend) -> Option<Result<Statement, Refusal>> {
        match Remote::<B::Image>::new(storage, false).await {
            Ok((remote, file)) => {
                let subject = self.0.clone();
                remote.call(move |_| subject.check(file, mend)).await
            }
            Err(refusal) => Some(Err(refusal)),
        }
    }
}

/// An image on a thread of its own.
#[derive(Debug)]
pub struct Remote<I> {
    file: ByteFile,
    write_through: bool,
    size: AtomicU64,
    board: Arc<Board>,
    handles: Mutex<Option<Handles>>,
    turns: Turns,
    /// Threads of requests that a power cut met, in which a handle may still be.
    left: Mutex<Vec<JoinHandle<Option<String>>>>,
    thread: Worker<Option<I>>,
}

impl<I: BlockingImage> Remote<I> {
    /// A thread, and the file that it reads and writes.
    async fn new(storage: AnyStorage, write_through: bool) -> Result<(Self, PlainFile), Refusal> {
        let opened = ByteFile::new(storage).await;
        let file = opened.map_err(|error| Refusal::Failed(error.to_string()))?;
        let board = Arc::<Board>::default();
        let thread = Worker::new(file.clone(), Arc::clone(&board));
        let plain = PlainFile::new(file.clone(), Arc::clone(&thread.line));
        let remote = Self {
            file,
            write_through,
            size: AtomicU64::new(0),
            board,
            handles: Mutex::default(),
            turns: Turns::default(),
            left: Mutex::default(),
            thread,
        };
        Ok((remote, plain))
    }

    /// Has the thread of the image do `job`, after what it is at.
    async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Option<I>) -> T + Send + 'static,
    ) -> T {
        let _turn = self.turns.take().await;
        self.thread.call(job).await
    }

    /// A request of the guest, in a thread of its own if the subject takes several; durable before it returns if it has to be.
    async fn request<T: Send + 'static>(
        &self,
        through: bool,
        work: impl FnOnce(&mut dyn BlockingImage) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let work = move |image: &mut dyn BlockingImage| {
            let done = work(image)?;
            if through {
                image.flush()?;
            }
            Ok((done, image.size()))
        };
        let handle = lock(&self.handles).as_ref().map(|Handles(make)| make());
        let done: Result<(T, u64), String> = match handle {
            Some(mut handle) => {
                let worker = Worker::new(self.file.clone(), Arc::clone(&self.board));
                let mut own = Own { worker: Some(worker), left: &self.left };
                let worker = own.worker.as_ref().expect("it has just begun");
                let done = worker.call(move |()| work(handle.as_mut())).await;
                own.worker = None;
                done
            }
            None => {
                let done = self.call(move |image| work(image.as_mut().ok_or("it is closed")?));
                done.await
            }
        };
        done.map(|(done, size)| {
            self.size.store(size, Ordering::Relaxed);
            done
        })
    }
}

/// The thread of one request.
struct Own<'a> {
    worker: Option<Worker<()>>,
    left: &'a Mutex<Vec<JoinHandle<Option<String>>>>,
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        // It may wait for what another one holds, which has not heard of the power cut yet.
        lock(self.left).extend(self.worker.take().and_then(Worker::leave));
    }
}

impl<I> Drop for Remote<I> {
    fn drop(&mut self) {
        // The thread of the image is the last that has a handle, and drops the image.
        lock(&self.handles).take();
        for thread in lock(&self.left).drain(..) {
            // What came of a request that a power cut met, nobody wants to know.
            let _ = thread.join();
        }
    }
}

impl<I: BlockingImage> SubjectImage for Remote<I> {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, String> {
        self.request(false, move |image| image.read(offset, &mut buf).map(|()| buf)).await
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        let through = self.write_through || durability == Durability::Through;
        self.request(through, move |image| image.write(offset, &data)).await
    }

    async fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        let through = self.write_through;
        self.request(through, move |image| image.write_zeroes(offset, length, unmap)).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), String> {
        self.request(self.write_through, move |image| image.discard(offset, length)).await
    }

    async fn flush(&self) -> Result<(), String> {
        self.request(false, |image| image.flush()).await
    }

    async fn grow(&self, size: u64) -> Result<(), String> {
        self.request(self.write_through, move |image| image.grow(size)).await
    }

    async fn shrink(&self, size: u64) -> Result<(), String> {
        self.request(self.write_through, move |image| image.shrink(size)).await
    }

    async fn map(&self) -> Result<Vec<Extent>, String> {
        self.request(false, |image| image.map()).await
    }

    async fn close(self) -> Result<(), String> {
        lock(&self.handles).take();
        self.call(|image| image.take().ok_or("it is closed")?.close()).await
    }
}

/// One request at a time; which one is next is decided by the schedule.
#[derive(Debug, Default)]
struct Turns(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    busy: bool,
    wakers: Vec<Waker>,
}

/// A turn, until it is dropped.
struct Turn<'a>(&'a Turns);

impl Turns {
    fn take(&self) -> impl Future<Output = Turn<'_>> + Send {
        poll_fn(|context| {
            let mut waiting = lock(&self.0);
            if waiting.busy {
                waiting.wakers.push(context.waker().clone());
                return Poll::Pending;
            }
            waiting.busy = true;
            Poll::Ready(Turn(self))
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.0.0);
        waiting.busy = false;
        waiting.wakers.drain(..).for_each(Waker::wake);
    }
}
