//! A thread that does what it is given, and has the harness do its I/O meanwhile.

use std::any::Any;
use std::future::pending;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::board::Board;
use super::plain_file::{Answer, Ask, Line, lock};
use crate::byte_file::ByteFile;
use crate::{panics, watch};

/// A piece of work on what a thread keeps.
type Job<S> = Box<dyn FnOnce(&mut S) -> Box<dyn Any + Send> + Send>;

/// A thread and what it keeps, which never leaves it.
#[derive(Debug)]
pub(super) struct Worker<S> {
    file: ByteFile,
    /// What the thread asks by.
    pub(super) line: Arc<Line>,
    /// None once nobody will answer any more.
    ends: Mutex<Option<Ends<S>>>,
    /// It ends with what dropping what it kept panicked with.
    thread: Option<JoinHandle<Option<String>>>,
}

/// The harness's ends of the lines.
#[derive(Debug)]
struct Ends<S> {
    jobs: Sender<Job<S>>,
    asks: Receiver<Ask>,
    answers: Sender<Answer>,
}

impl<S: Default + 'static> Worker<S> {
    pub(super) fn new(file: ByteFile, board: Arc<Board>) -> Self {
        let (jobs, todo) = channel::<Job<S>>();
        let (asks, asked) = channel();
        let (answers, answered) = channel();
        let line = Arc::new(Line::new(asks.clone(), answered, board));
        let (own, doing) = (Arc::clone(&line), watch::done());
        #[expect(clippy::disallowed_methods, reason = "its other end waits whenever it runs")]
        let thread = thread::spawn(move || {
            watch::helping(doing);
            own.take_up();
            let mut kept = S::default();
            for job in todo {
                let came = panics::catch(|| job(&mut kept));
                let text = || panics::take().unwrap_or_default();
                let said = came.map_or_else(|| Ask::Panicked(text()), Ask::Done);
                // After a power cut nobody wants to know.
                let _ = asks.send(said);
            }
            panics::catch(|| drop(kept));
            panics::take()
        });
        let ends = Mutex::new(Some(Ends { jobs, asks: asked, answers }));
        Self { file, line, ends, thread: Some(thread) }
    }

    /// Has the thread do `job`, and does for it what it asks meanwhile. A panic there is one here.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> T {
        let mut cut = Cut { worker: self, done: false };
        let job: Job<S> = Box::new(move |kept| Box::new(job(kept)));
        self.with(|ends| ends.jobs.send(job).is_ok());
        loop {
            // The thread runs until it asks, and this one waits.
            let ask = self.with(|ends| ends.asks.recv().ok()).flatten();
            // After a power cut nobody says anything.
            let Some(ask) = ask else { pending().await };
            let file = &self.file;
            let done = match ask {
                Ask::Done(came) => {
                    cut.done = true;
                    return *came.downcast().expect("it is what the job returns");
                }
                Ask::Panicked(text) => {
                    cut.done = true;
                    panics::again(text);
                }
                Ask::Read(offset, mut buf) => file.read_at(offset, &mut buf).await.map(|()| buf),
                Ask::Write(offset, data) => file.write_at(offset, &data).await.map(|()| Vec::new()),
                Ask::SetLen(length) => file.set_len(length).await.map(|()| Vec::new()),
                Ask::Zero(range) => file.write_zeroes(range).await.map(|()| Vec::new()),
                Ask::Discard(range) => file.discard(range).await.map(|()| Vec::new()),
                Ask::Flush => file.flush().await.map(|()| Vec::new()),
                Ask::Pause => {
                    file.pause().await;
                    Ok(Vec::new())
                }
                Ask::Wait(seen) => {
                    self.line.board.changed(seen).await;
                    Ok(Vec::new())
                }
            };
            self.with(|ends| ends.answers.send(done).is_ok());
        }
    }
}

impl<S> Worker<S> {
    fn with<T>(&self, work: impl FnOnce(&Ends<S>) -> T) -> Option<T> {
        lock(&self.ends).as_ref().map(work)
    }

    /// From now on whatever the thread asks fails.
    fn cut(&self) {
        lock(&self.ends).take();
    }

    /// Its thread, which is told to end, and is waited for by nobody.
    pub(super) fn leave(mut self) -> Option<JoinHandle<Option<String>>> {
        self.cut();
        self.thread.take()
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        self.cut();
        if let Some(thread) = self.thread.take() {
            // A payload is that of a loop that was unwound.
            if let Ok(Some(text)) = thread.join() {
                panics::note(text);
            }
        }
    }
}

/// What a request that is dropped in its middle leaves: a thread that waits for an answer. As after a power cut, there will be none.
struct Cut<'a, S> {
    worker: &'a Worker<S>,
    done: bool,
}

impl<S> Drop for Cut<'_, S> {
    fn drop(&mut self) {
        if !self.done {
            self.worker.cut();
        }
    }
}
