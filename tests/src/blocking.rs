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
//! **Invariant.** Until the power is cut, one of the two threads runs and the other waits, so that a case is a function of its seed. One
//! request is done at a time; others wait for their turn. After a power cut every call of the file fails, until the image is dropped.

use std::any::Any;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread::{self, JoinHandle};

use model::guest::Promises;
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry};
use qcow2_core::storage::{AnyStorage, IoBuf};

use crate::byte_file::ByteFile;
use crate::capabilities::Capabilities;
use crate::panics;
use crate::subject::{
    Duties, Mend, Refusal, Session, Subject, SubjectImage, called, least, unasked,
};
use crate::watch;

/// So many calls after a power cut are a loop that takes no error for an answer; what makes them is unwound.
const MOST_AFTER_POWER_CUT: u64 = 10_000;

/// What unwinds it; no text, so that it is nobody's panic.
struct PowerIsOff;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread of an image asks of the other.
enum Ask {
    Read(u64, Vec<u8>),
    Write(u64, Vec<u8>),
    SetLen(u64),
    Zero(Range<u64>),
    Discard(Range<u64>),
    Flush,
    /// What it was given to do is done; this is what came of it.
    Done(Box<dyn Any + Send>),
    Panicked(String),
}

/// What became of it, with the bytes of a read.
type Answer = io::Result<Vec<u8>>;

/// A piece of work on the image, if there is one yet.
type Job<I> = Box<dyn FnOnce(&mut Option<I>) -> Box<dyn Any + Send> + Send>;

/// The file of an image: reads and writes of any place and length. Clones are the same file. It is a [`ByteFile`] by plain calls.
#[derive(Clone, Debug)]
pub struct PlainFile(Arc<Line>);

#[derive(Debug)]
struct Line {
    file: ByteFile,
    asks: Sender<Ask>,
    answers: Mutex<Receiver<Answer>>,
    /// Calls since the power was cut.
    refused: AtomicU64,
}

impl PlainFile {
    /// Bytes of the file. After a power cut they are rounded up to whole sectors.
    pub fn len(&self) -> u64 {
        self.0.file.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.file.is_empty()
    }

    fn ask(&self, ask: Ask) -> Answer {
        let answer = match self.0.asks.send(ask) {
            Ok(()) => lock(&self.0.answers).recv().ok(),
            Err(_) => None,
        };
        answer.unwrap_or_else(|| {
            let refused = self.0.refused.fetch_add(1, Ordering::Relaxed);
            if refused > MOST_AFTER_POWER_CUT && !thread::panicking() {
                resume_unwind(Box::new(PowerIsOff));
            }
            Err(io::Error::other("the power is off"))
        })
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] past the end; as the device says.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let read = self.ask(Ask::Read(offset, vec![0; buf.len()]))?;
        buf.copy_from_slice(&read);
        Ok(())
    }

    /// Writes all of `data` at `offset`, and makes the file longer if need be. Of a sector that it does not fill the rest is read before.
    ///
    /// # Errors
    /// As the device says.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.ask(Ask::Write(offset, data.to_vec())).map(drop)
    }

    /// Makes the file so long; what it gains reads as zeroes.
    ///
    /// # Errors
    /// As the device says.
    pub fn set_len(&self, length: u64) -> io::Result<()> {
        self.ask(Ask::SetLen(length)).map(drop)
    }

    /// Makes a range read as zeroes: the whole sectors in it without writing them.
    ///
    /// # Errors
    /// As the device says.
    pub fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.ask(Ask::Zero(range)).map(drop)
    }

    /// Gives the space of the whole sectors in a range back, each of which reads as it did or as zeroes then; nothing where the device takes
    /// none back.
    ///
    /// # Errors
    /// As the device says.
    pub fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.ask(Ask::Discard(range)).map(drop)
    }

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// As the device says.
    pub fn flush(&self) -> io::Result<()> {
        self.ask(Ask::Flush).map(drop)
    }
}

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
            let size = opened.size();
            *image = Some(opened);
            Ok(size)
        });
        let size = opened.await?;
        remote.size.store(size, Ordering::Relaxed);
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
    turns: Turns,
    /// None once nobody will answer any more.
    ends: Mutex<Option<Ends<I>>>,
    /// It ends with what dropping the image panicked with.
    thread: Option<JoinHandle<Option<String>>>,
}

/// The ends of the lines to a thread.
#[derive(Debug)]
struct Ends<I> {
    jobs: Sender<Job<I>>,
    asks: Receiver<Ask>,
    answers: Sender<Answer>,
}

impl<I: BlockingImage> Remote<I> {
    /// A thread, and the file that it reads and writes.
    async fn new(storage: AnyStorage, write_through: bool) -> Result<(Self, PlainFile), Refusal> {
        let opened = ByteFile::new(storage).await;
        let file = opened.map_err(|error| Refusal::Failed(error.to_string()))?;
        let (jobs, todo) = channel::<Job<I>>();
        let (asks, asked) = channel();
        let (answers, answered) = channel();
        let (done, doing) = (asks.clone(), watch::done());
        #[expect(clippy::disallowed_methods, reason = "its other end waits whenever it runs")]
        let thread = thread::spawn(move || {
            watch::doing(doing);
            let mut image = None;
            for job in todo {
                let came = panics::catch(|| job(&mut image));
                let text = || panics::take().unwrap_or_default();
                let said = came.map_or_else(|| Ask::Panicked(text()), Ask::Done);
                // After a power cut nobody wants to know.
                let _ = done.send(said);
            }
            panics::catch(|| drop(image));
            panics::take()
        });
        let plain = PlainFile(Arc::new(Line {
            file: file.clone(),
            asks,
            answers: Mutex::new(answered),
            refused: AtomicU64::new(0),
        }));
        let remote = Self {
            file,
            write_through,
            size: AtomicU64::new(0),
            turns: Turns::default(),
            ends: Mutex::new(Some(Ends { jobs, asks: asked, answers })),
            thread: Some(thread),
        };
        Ok((remote, plain))
    }

    /// Has the thread do `job`, and does for it what it asks meanwhile. A panic there is one here.
    async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Option<I>) -> T + Send + 'static,
    ) -> T {
        let _turn = self.turns.take().await;
        let mut cut = Cut { ends: &self.ends, done: false };
        let job: Job<I> = Box::new(move |image| Box::new(job(image)));
        self.with(|ends| ends.jobs.send(job).is_ok());
        loop {
            // The thread runs until it asks, and this one waits.
            let ask = self.with(|ends| ends.asks.recv().ok()).flatten();
            // After a power cut nobody says anything.
            let Some(ask) = ask else { pending().await };
            let done = match ask {
                Ask::Done(came) => {
                    cut.done = true;
                    return *came.downcast().expect("it is what the job returns");
                }
                Ask::Panicked(text) => {
                    cut.done = true;
                    panic!("{text}");
                }
                Ask::Read(offset, mut buf) => {
                    self.file.read_at(offset, &mut buf).await.map(|()| buf)
                }
                Ask::Write(offset, data) => {
                    self.file.write_at(offset, &data).await.map(|()| Vec::new())
                }
                Ask::SetLen(length) => self.file.set_len(length).await.map(|()| Vec::new()),
                Ask::Zero(range) => self.file.write_zeroes(range).await.map(|()| Vec::new()),
                Ask::Discard(range) => self.file.discard(range).await.map(|()| Vec::new()),
                Ask::Flush => self.file.flush().await.map(|()| Vec::new()),
            };
            self.with(|ends| ends.answers.send(done).is_ok());
        }
    }

    fn with<T>(&self, work: impl FnOnce(&Ends<I>) -> T) -> Option<T> {
        lock(&self.ends).as_ref().map(work)
    }

    /// The same for a request of the guest, durable before it returns if it has to be.
    async fn request<T: Send + 'static>(
        &self,
        through: bool,
        work: impl FnOnce(&mut I) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let done = self.call(move |image| {
            let image = image.as_mut().ok_or("it is closed")?;
            let done = work(image)?;
            if through {
                image.flush()?;
            }
            Ok((done, image.size()))
        });
        done.await.map(|(done, size)| {
            self.size.store(size, Ordering::Relaxed);
            done
        })
    }
}

/// What a request that is dropped in its middle leaves: a thread that waits for an answer. As after a power cut, there will be none.
struct Cut<'a, I> {
    ends: &'a Mutex<Option<Ends<I>>>,
    done: bool,
}

impl<I> Drop for Cut<'_, I> {
    fn drop(&mut self) {
        if !self.done {
            lock(self.ends).take();
        }
    }
}

impl<I> Drop for Remote<I> {
    fn drop(&mut self) {
        lock(&self.ends).take();
        if let Some(thread) = self.thread.take() {
            // A payload is that of a loop that was unwound.
            if let Ok(Some(text)) = thread.join() {
                panics::note(text);
            }
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
        self.request(false, I::flush).await
    }

    async fn grow(&self, size: u64) -> Result<(), String> {
        self.request(self.write_through, move |image| image.grow(size)).await
    }

    async fn shrink(&self, size: u64) -> Result<(), String> {
        self.request(self.write_through, move |image| image.shrink(size)).await
    }

    async fn map(&self) -> Result<Vec<Extent>, String> {
        self.request(false, I::map).await
    }

    async fn close(self) -> Result<(), String> {
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
