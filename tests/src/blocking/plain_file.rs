//! The file of an image for synchronous code, and the line by which a thread asks for what it does with it.
//!
//! **Invariant.** Who asks waits for the answer; so of the threads of an image and the harness one runs and the others wait, until the power
//! is cut. Then no line has another end, and whatever is asked fails.

use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::board::Board;
use crate::byte_file::ByteFile;

/// So many calls after a power cut are a loop that takes no error for an answer; what makes them is unwound.
const MOST_AFTER_POWER_CUT: u64 = 10_000;

/// What unwinds it; no text, so that it is nobody's panic.
struct PowerIsOff;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a thread asks of the harness.
pub(super) enum Ask {
    Read(u64, Vec<u8>),
    Write(u64, Vec<u8>),
    SetLen(u64),
    Zero(Range<u64>),
    Discard(Range<u64>),
    Flush,
    /// Others may get ahead of it here.
    Pause,
    /// To go on once something was let go of since the board said this.
    Wait(u64),
    /// What it was given to do is done; this is what came of it.
    Done(Box<dyn Any + Send>),
    Panicked(String),
}

/// What became of it, with the bytes of a read.
pub(super) type Answer = io::Result<Vec<u8>>;

/// A thread's end of the line to the harness.
#[derive(Debug)]
pub(super) struct Line {
    asks: Sender<Ask>,
    answers: Mutex<Receiver<Answer>>,
    /// Calls since the power was cut.
    refused: AtomicU64,
    pub(super) board: Arc<Board>,
}

thread_local! {
    /// The line of this thread, if the harness gave it one.
    static OWN: RefCell<Option<Arc<Line>>> = const { RefCell::new(None) };
}

impl Line {
    pub(super) fn new(asks: Sender<Ask>, answers: Receiver<Answer>, board: Arc<Board>) -> Self {
        Self { asks, answers: Mutex::new(answers), refused: AtomicU64::new(0), board }
    }

    /// Makes this the line of the thread that calls.
    pub(super) fn take_up(self: Arc<Self>) {
        OWN.set(Some(self));
    }

    /// The line of the thread that calls.
    pub(super) fn own() -> Option<Arc<Self>> {
        OWN.with_borrow(Option::clone)
    }

    /// Asks and waits; none once nobody answers any more.
    pub(super) fn ask(&self, ask: Ask) -> Option<Answer> {
        self.asks.send(ask).ok()?;
        lock(&self.answers).recv().ok()
    }

    /// What is said of that: an error, until it was said so often that nothing but unwinding helps.
    fn power_is_off(&self) -> io::Error {
        if self.refused.fetch_add(1, Ordering::Relaxed) > MOST_AFTER_POWER_CUT {
            unwind();
        }
        io::Error::other("the power is off")
    }
}

/// Ends what this thread does, unless that ends already.
pub(super) fn unwind() {
    if !thread::panicking() {
        resume_unwind(Box::new(PowerIsOff));
    }
}

/// The file of an image: reads and writes of any place and length. Clones are the same file. It is a [`ByteFile`] by plain calls, which any
/// thread makes that the harness called in, and others while one of those waits for them.
#[derive(Clone, Debug)]
pub struct PlainFile {
    file: ByteFile,
    /// Of the thread of the image.
    line: Arc<Line>,
}

impl PlainFile {
    pub(super) fn new(file: ByteFile, line: Arc<Line>) -> Self {
        Self { file, line }
    }

    /// Bytes of the file. After a power cut they are rounded up to whole sectors.
    pub fn len(&self) -> u64 {
        self.file.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.file.is_empty()
    }

    fn ask(&self, ask: Ask) -> Answer {
        let own = Line::own();
        let line = own.as_ref().unwrap_or(&self.line);
        line.ask(ask).unwrap_or_else(|| Err(line.power_is_off()))
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
