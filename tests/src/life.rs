//! One life: tasks on an image on a live possible disk, step by step, with a look at every moment at which the power
//! could fail.
//!
//! ```text
//!   open ──> task 0: op, op, op ─┐
//!       └──> task 1: op, op ─────┼──> close (which a failure before may make fail)
//!   every submission and completion, of storage and of guest operations, is a moment
//! ```

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use faultfs::Breach;
use faultfs::chooser::Always;
use faultfs::disk::PossibleDisk;
use faultfs::exec::{Sim, SimOptions, SimStorage, StepResult};
use faultfs::fault::Planned;
use faultfs::rng::Rng;
use faultfs::schedule::{Candidate, Pct, RandomOrder, Schedule};
use faultfs::trace::{Event, Io, IoKind};
use faultfs::values::{Key, Values};
use model::case::Dropped;
use model::evidence::ValueKey;
use model::finding::Property;
use model::guest::{Guest, Misread, Token};
use model::judge::p0_misread;
use model::op::{Durability, Op};
use model::payload::{self, UNIT};
use qcow2_core::storage::{IoBuf, Storage};

use crate::any::AnySubject;
use crate::buffer::to_read_into;
use crate::call::{Opened, open};
use crate::evidence::{DiskEvidence, units};
use crate::liveness::Exposure;
use crate::panics;
use crate::probe::{Probe, Probes};
use crate::recover::{Failure, panicked, whole_image};
use crate::subject::{Session, Subject, SubjectImage};

/// How many steps a life may take before it counts as hanging, and how many more for each of its requests and each cluster that one
/// touches: the work of a request may follow its length. Opening the image once more may take a read of every table: on a device of
/// 512 bytes at once that is 32,768 of them, of two steps each, for the L1 table of 16 MiB that fills refcounts of 8 bits.
const MAX_STEPS: u64 = 100_000;
const STEPS_PER_REQUEST: u64 = 200;
const STEPS_PER_CLUSTER: u64 = 64;
const STEPS_PER_TRANSFER: u64 = 2;

/// When an image is dropped that nobody closed.
const DROPPED: &str = "when it was dropped, as a power cut drops it";

/// How many steps such requests may take, by how many clusters they touch, on a file of so many transfers.
fn most_steps(requests: &[Vec<Request>], cluster: u64, transfers: u64) -> u64 {
    let touched = |request: &Request| match request {
        Request::Op(op) => op.length().div_ceil(cluster) + 1,
        Request::Raw(_, data) => (data.len() as u64).div_ceil(cluster) + 1,
    };
    let opening = |request: &Request| match request {
        Request::Op(Op::Reopen) => STEPS_PER_TRANSFER * transfers,
        _ => 0,
    };
    let steps =
        |request| STEPS_PER_REQUEST + STEPS_PER_CLUSTER * touched(request) + opening(request);
    MAX_STEPS + requests.iter().flatten().map(steps).sum::<u64>()
}

/// What a task asks of the image.
#[derive(Clone, Debug)]
pub enum Request {
    /// An operation with generated payload.
    Op(Op),
    /// A write of given bytes, a multiple of 512, at a byte offset.
    Raw(u64, Arc<[u8]>),
}

/// What picks the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// By this seed, in one of several manners.
    Seed(u64),
    /// As written down: the option taken at each step; the first one when they run out.
    Choices(Vec<u32>),
}

/// All that a life is made of.
#[derive(Clone, Debug)]
pub struct Script {
    /// Lists of requests that run side by side.
    pub tasks: Vec<Vec<Request>>,
    /// Who runs when.
    pub order: Order,
    /// What fails.
    pub faults: Planned,
    /// A request whose future is dropped.
    pub dropped: Option<Dropped>,
    /// How the image is opened.
    pub session: Session,
}

/// What a moment follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An I/O was submitted.
    Submitted(Io),
    /// An I/O ended.
    Completed(Io),
    /// A guest operation began.
    Began,
    /// A guest operation returned.
    Returned,
}

/// A moment at which the power could fail.
pub struct Moment<'a> {
    /// Which one of the life, counted from 0.
    pub event: u64,
    /// What it follows.
    pub cause: Cause,
    /// Task and operation that are concerned, if it is one.
    pub concerns: Option<(usize, usize)>,
    /// The executor with the disk.
    pub sim: &'a Sim,
    /// The reference disk.
    pub guest: &'a Guest,
    /// What a crash may leak.
    pub exposure: &'a Exposure,
}

/// How a life ended.
pub struct LifeEnd {
    /// The disk as it is now, writes pending.
    pub disk: PossibleDisk,
    /// The reference disk.
    pub guest: Guest,
    /// Whether the image was closed cleanly.
    pub closed: bool,
    /// What went wrong, if something did.
    pub failure: Option<Failure>,
    /// What the schedule picked.
    pub decisions: Vec<u32>,
    /// Hash of everything that happened.
    pub trace_hash: u64,
    /// The trace as lines, labels left to the caller.
    pub sim: Sim,
    /// Moments passed.
    pub events: u64,
    /// Guest operations that returned.
    pub operations: u64,
}

/// What the tasks of a life share.
struct Book {
    guest: Guest,
    values: Values,
    /// Begins and returns of guest operations so far.
    events: u64,
    last: Option<(Cause, usize, usize)>,
    operations: u64,
    misread: Option<Misread>,
    /// An operation that failed although no I/O had.
    unprovoked: Option<String>,
    /// The image was closed at the end, whatever had failed before.
    closed: bool,
    /// The operation that each task is in.
    at: Vec<usize>,
    exposure: Exposure,
    probes: Vec<Probe>,
}

type Shared = Arc<Mutex<Book>>;

fn lock(book: &Shared) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    fn note(&mut self, cause: Cause, task: usize, op: usize) {
        self.events += 1;
        self.last = Some((cause, task, op));
        self.at[task] = op;
    }

    fn begin(&mut self, task: usize, index: usize, request: &Request) -> Token {
        self.note(Cause::Began, task, index);
        let values = self.values.clone();
        match request {
            Request::Op(op) => {
                self.exposure.begin(task, index, *op);
                self.guest.begin(op, |unit, id| ValueKey(values.intern(&payload::unit(unit, id)).0))
            }
            Request::Raw(offset, data) => {
                let mut keys = Vec::new();
                values.intern_all(data, &mut keys);
                let keys: Vec<ValueKey> = keys.iter().map(|key| ValueKey(key.0)).collect();
                self.guest.begin_write(offset / UNIT as u64, &keys, Durability::Cached)
            }
        }
    }
}

/// Runs a life. `observe` sees every moment and may end it there.
pub fn run(
    subject: &impl Subject,
    disk: PossibleDisk,
    guest: Guest,
    script: &Script,
    probes: &mut Probes,
    observe: impl FnMut(&Moment<'_>) -> ControlFlow<()>,
) -> LifeEnd {
    let subject = &AnySubject::of(subject);
    let schedule = order(&script.order);
    run_scheduled(subject, disk, guest, script, schedule, probes, observe)
}

/// The same with a schedule in the place of the script's.
pub fn run_scheduled(
    subject: &impl Subject,
    disk: PossibleDisk,
    guest: Guest,
    script: &Script,
    schedule: Box<dyn Schedule + Send>,
    probes: &mut Probes,
    mut observe: impl FnMut(&Moment<'_>) -> ControlFlow<()>,
) -> LifeEnd {
    let subject = &AnySubject::of(subject);
    // What somebody else left behind is not of this life.
    drop(panics::take());
    let values = disk.values().clone();
    let cluster = guest.promises().cluster_units * UNIT as u64;
    let transfers =
        (u64::from(units(&disk)) * UNIT as u64).div_ceil(disk.limits().max_transfer as u64);
    let mut options = SimOptions::new(schedule, Always(0));
    options.faults = Box::new(script.faults.clone());
    let mut sim = Sim::new(disk, options);
    let book: Shared = Arc::new(Mutex::new(Book {
        guest,
        values: values.clone(),
        events: 0,
        last: None,
        operations: 0,
        misread: None,
        unprovoked: None,
        closed: false,
        at: vec![0; script.tasks.len().max(1)],
        exposure: Exposure::default(),
        probes: Vec::new(),
    }));
    let slot = Slot::default();
    let mut life = Watch {
        book: Arc::clone(&book),
        event: 0,
        steps: 0,
        most_steps: most_steps(&script.tasks, cluster, transfers),
        guest_events: 0,
        faults: 0,
    };

    let mut end = 'life: {
        sim.spawn("open", {
            let (subject, storage, session) = (subject.clone(), sim.storage(), script.session);
            let (slot, book) = (Rc::clone(&slot), Arc::clone(&book));
            async move {
                match open(&subject, storage, session).await {
                    Ok(image) => {
                        *slot.borrow_mut() = Some(Rc::new(image));
                    }
                    Err(refusal) => {
                        let mut book = lock(&book);
                        book.unprovoked = Some(format!("opening it failed: {refusal:?}"));
                    }
                }
            }
        });
        if let Some(end) = life.watch(&mut sim, &mut observe) {
            break 'life end;
        }
        if slot.borrow().is_none() {
            break 'life Ended::Stopped;
        }
        for (number, requests) in script.tasks.iter().enumerate() {
            let task = Task {
                subject: subject.clone(),
                storage: sim.storage(),
                session: script.session,
                image: Rc::clone(&slot),
                book: Arc::clone(&book),
                number,
                requests: requests.clone(),
                dropped: script.dropped.filter(|dropped| dropped.task == number),
                alone: script.tasks.len() == 1,
            };
            sim.spawn(&format!("task {number}"), task.run());
        }
        if let Some(end) = life.watch(&mut sim, &mut observe) {
            break 'life end;
        }
        let image = slot.take();
        let Some(image) = image.and_then(Rc::into_inner) else { break 'life Ended::Stopped };
        sim.spawn("close", {
            let book = Arc::clone(&book);
            async move {
                let token = {
                    let mut book = lock(&book);
                    book.note(Cause::Began, 0, usize::MAX);
                    book.guest.begin_flush()
                };
                let result = image.close().await;
                let mut book = lock(&book);
                book.note(Cause::Returned, 0, usize::MAX);
                match result {
                    Ok(()) => {
                        book.guest.complete(token);
                        book.closed = true;
                        book.probes.push(Probe::CleanClose);
                    }
                    Err(text) => {
                        book.guest.fail(token);
                        book.unprovoked = Some(format!("closing it failed: {text}"));
                    }
                }
            }
        });
        match life.watch(&mut sim, &mut observe) {
            Some(end) => end,
            None => Ended::Closed,
        }
    };

    if matches!(end, Ended::Closed) && !lock(&book).closed {
        end = Ended::Stopped;
    }
    let mut book = lock(&book);
    for probe in book.probes.drain(..) {
        probes.hit(probe);
    }
    let mut failure = match &end {
        Ended::Failed(failure) => Some(failure.clone()),
        _ => None,
    };
    // As after a power cut: nobody goes on with what was begun, and it is dropped.
    let (live, decisions) = (sim.disk(), sim.decisions().iter().map(|it| it.taken).collect());
    let submitted = sim.storage().submitted();
    sim.abandon();
    drop(slot.take());
    if failure.is_none() && sim.storage().submitted() > submitted {
        let mut violation = whole_image(Property::P8, "io-when-dropped");
        let count = sim.storage().submitted() - submitted;
        violation.story = format!("it submitted {count} I/O");
        failure = Some(Failure { violation, moment: DROPPED.to_owned() });
    }
    if let (None, Some(text)) = (&failure, panics::take()) {
        failure = Some(panicked(text, DROPPED));
    }
    let disjoint = subject.duties().disjoint_writes;
    if failure.is_none()
        && let Some(breach) = sim
            .breaches()
            .into_iter()
            .find(|breach| disjoint || !matches!(breach, Breach::Overlap { .. }))
    {
        let mut violation = whole_image(Property::P8, "contract-breach");
        violation.story = breach.to_string();
        failure = Some(Failure { violation, moment: "while it ran".to_owned() });
    }
    LifeEnd {
        disk: live,
        guest: book.guest.clone(),
        closed: matches!(end, Ended::Closed),
        failure,
        decisions,
        trace_hash: sim.trace_hash(),
        events: life.event,
        operations: book.operations,
        sim,
    }
}

/// The image, while it is open.
type Slot = Rc<RefCell<Option<Rc<Opened>>>>;

enum Ended {
    /// The observer had seen enough, or something failed as planned.
    Stopped,
    Closed,
    Failed(Failure),
}

struct Watch {
    book: Shared,
    event: u64,
    steps: u64,
    most_steps: u64,
    guest_events: u64,
    faults: u64,
}

impl Watch {
    /// Steps until nothing is left to do; `None` then.
    fn watch(
        &mut self,
        sim: &mut Sim,
        observe: &mut impl FnMut(&Moment<'_>) -> ControlFlow<()>,
    ) -> Option<Ended> {
        loop {
            self.steps += 1;
            if self.steps > self.most_steps {
                let story = format!("after {} steps", self.most_steps);
                return Some(failed(Property::P7, "hangs", story));
            }
            let step = sim.step();
            if let Some(text) = panics::take() {
                return Some(Ended::Failed(panicked(text, "while it ran")));
            }
            let cause = match &step {
                StepResult::Done => return None,
                StepResult::Deadlock { tasks } => {
                    return Some(failed(Property::P7, "deadlock", tasks.join(", ")));
                }
                StepResult::Ran { submitted: 0, .. } | StepResult::Cancelled(_) => None,
                StepResult::Ran { .. } => sim.in_flight().last().copied().map(Cause::Submitted),
                StepResult::Completed { io, ok } => {
                    if !ok {
                        self.faults += 1;
                        lock(&self.book).exposure.io_failed();
                    }
                    Some(Cause::Completed(*io))
                }
            };
            let book = lock(&self.book);
            if let Some(misread) = &book.misread {
                let mut disk = sim.disk();
                let mut chooser = Always(0);
                let evidence = DiskEvidence::new(&mut disk, &mut chooser);
                let violation = p0_misread(misread, &evidence, &book.guest);
                return Some(Ended::Failed(Failure { violation, moment: "in a read".to_owned() }));
            }
            if let (Some(text), 0) = (&book.unprovoked, self.faults) {
                return Some(failed(Property::P8, "unprovoked-error", text.clone()));
            }
            let guest_event = book.events != self.guest_events;
            self.guest_events = book.events;
            let (cause, concerns) = match (cause, book.last) {
                (Some(cause @ (Cause::Submitted(io) | Cause::Completed(io))), _) => {
                    // Tasks are spawned after the one that opens the image.
                    let task = io.task.and_then(|task| (task as usize).checked_sub(1));
                    (cause, task.and_then(|task| Some((task, *book.at.get(task)?))))
                }
                (_, Some((cause, task, op))) if guest_event => (cause, Some((task, op))),
                _ => continue,
            };
            let (guest, exposure) = (&book.guest, &book.exposure);
            let moment = Moment { event: self.event, cause, concerns, sim, guest, exposure };
            self.event += 1;
            if observe(&moment).is_break() {
                return Some(Ended::Stopped);
            }
        }
    }
}

fn failed(property: Property, kind: &'static str, story: String) -> Ended {
    let mut violation = whole_image(property, kind);
    violation.story = story;
    Ended::Failed(Failure { violation, moment: "while it ran".to_owned() })
}

/// The schedule of an order.
fn order(order: &Order) -> Box<dyn Schedule + Send> {
    match order {
        Order::Seed(seed) => {
            let mut rng = Rng::new(*seed);
            match rng.below(3) {
                0 => Box::new(Pct::new(rng.next_u64(), 3, 400)),
                _ => Box::new(RandomOrder::new(rng.next_u64())),
            }
        }
        Order::Choices(choices) => Box::new(Written { choices: choices.clone(), next: 0 }),
    }
}

/// A schedule that was written down.
struct Written {
    choices: Vec<u32>,
    next: usize,
}

impl Schedule for Written {
    fn pick(&mut self, candidates: &[Candidate]) -> usize {
        let choice = self.choices.get(self.next).copied().unwrap_or(0) as usize;
        self.next += 1;
        choice.min(candidates.len() - 1)
    }
}

struct Task {
    subject: AnySubject,
    storage: SimStorage,
    session: Session,
    image: Slot,
    book: Shared,
    number: usize,
    requests: Vec<Request>,
    dropped: Option<Dropped>,
    alone: bool,
}

impl Task {
    async fn run(self) {
        for (index, request) in self.requests.iter().enumerate() {
            self.storage.pause().await;
            if matches!(request, Request::Op(Op::Reopen)) && self.alone {
                if !self.reopen(index).await {
                    return;
                }
                continue;
            }
            let image = self.image.borrow().clone();
            let Some(image) = image else { return };
            let (token, clipped) = {
                let mut book = lock(&self.book);
                let clipped = match request {
                    Request::Op(op) => book.guest.clip(op).map(Request::Op),
                    raw @ Request::Raw(..) => Some(raw.clone()),
                };
                (book.begin(self.number, index, request), clipped)
            };
            let after =
                self.dropped.filter(|dropped| dropped.op == index).map(|dropped| dropped.after_ios);
            let through = Durability::Through;
            if let Some(Request::Op(Op::Write { durability, .. })) = &clipped
                && *durability == through
            {
                lock(&self.book).probes.push(Probe::WriteThrough);
            }
            let work = perform(&*image, clipped.as_ref());
            let outcome = match after {
                Some(limit) => self.until(limit, work).await,
                None => Some(work.await),
            };
            let mut book = lock(&self.book);
            book.note(Cause::Returned, self.number, index);
            book.exposure.end(self.number, index, matches!(outcome, Some(Ok(_))));
            match outcome {
                None => {
                    book.guest.abandon(token);
                    book.probes.push(Probe::Dropped);
                }
                Some(Ok(None)) => book.guest.complete(token),
                Some(Ok(Some(read))) => {
                    let values = book.values.clone();
                    let mut keys: Vec<Key> = Vec::new();
                    values.intern_all(&read, &mut keys);
                    let found: Vec<ValueKey> = keys.iter().map(|key| ValueKey(key.0)).collect();
                    if let Err(misread) = book.guest.complete_read(token, &found) {
                        book.misread = Some(misread);
                    }
                }
                Some(Err(text)) => {
                    book.guest.fail(token);
                    // Who waited while the disk became smaller is refused what is not there any more.
                    let cut_off = match &clipped {
                        Some(Request::Op(op)) => op.clip(book.guest.size()) != Some(*op),
                        _ => false,
                    };
                    if !cut_off {
                        book.unprovoked = Some(text);
                    }
                }
            }
            book.operations += 1;
        }
    }

    /// Closes the image cleanly and opens it again; whether that worked.
    async fn reopen(&self, index: usize) -> bool {
        let image = self.image.take();
        let Some(image) = image.and_then(Rc::into_inner) else { return false };
        let token = lock(&self.book).begin(self.number, index, &Request::Op(Op::Reopen));
        let result = match image.close().await {
            Ok(()) => {
                {
                    let mut book = lock(&self.book);
                    book.guest.complete(token);
                    book.exposure.end(self.number, index, true);
                    book.probes.push(Probe::CleanClose);
                }
                let opened = open(&self.subject, self.storage.clone(), self.session).await;
                opened.map_err(|refusal| format!("{refusal:?}"))
            }
            Err(text) => {
                lock(&self.book).guest.fail(token);
                Err(text)
            }
        };
        let mut book = lock(&self.book);
        book.note(Cause::Returned, self.number, index);
        book.operations += 1;
        match result {
            Ok(image) => {
                *self.image.borrow_mut() = Some(Rc::new(image));
                true
            }
            Err(text) => {
                book.unprovoked = Some(format!("reopening it failed: {text}"));
                false
            }
        }
    }

    /// Polls `work` until it has submitted `limit` I/Os and more, then drops it.
    async fn until<T>(&self, limit: u32, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let start = self.storage.submitted();
        poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if self.storage.submitted() - start > u64::from(limit) => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        })
        .await
    }
}

/// What a request asks of the image; the bytes that a read returned.
///
/// # Errors
/// What the image said.
pub async fn perform<I: SubjectImage>(
    image: &I,
    request: Option<&Request>,
) -> Result<Option<IoBuf>, String> {
    let payload = |offset, length: u64, id| {
        let length = usize::try_from(length).expect("requests are small");
        let mut data = IoBuf::zeroed(length, UNIT);
        for (unit, bytes) in (offset / UNIT as u64..).zip(data.as_chunks_mut::<UNIT>().0) {
            *bytes = payload::unit(unit, id);
        }
        data
    };
    match request {
        None => {}
        Some(Request::Raw(offset, data)) => {
            image.write(*offset, IoBuf::copy_of(data, UNIT), Durability::Cached).await?;
        }
        Some(Request::Op(op)) => match *op {
            Op::Write { offset, length, id, durability } => {
                image.write(offset, payload(offset, length, id), durability).await?;
            }
            Op::WriteCompressed { offset, length, id } => {
                image.write_compressed(offset, payload(offset, length, id)).await?;
            }
            Op::WriteZeroes { offset, length, unmap } => {
                image.write_zeroes(offset, length, unmap).await?;
            }
            Op::Discard { offset, length } => image.discard(offset, length).await?,
            Op::Uncover { offset, length } => image.uncover(offset, length).await?,
            Op::Preallocate { offset, length, how } => {
                image.preallocate(offset, length, how).await?;
            }
            Op::Read { offset, length } => {
                return image.read(offset, to_read_into(length)).await.map(Some);
            }
            Op::AddPassphrase { id } => image.add_passphrase(id).await?,
            Op::RemovePassphrase { id } => image.remove_passphrase(id).await?,
            Op::Grow { to } => image.grow(to).await?,
            Op::Shrink { to } => image.shrink(to).await?,
            Op::Flush | Op::Reopen => image.flush().await?,
        },
    }
    Ok(None)
}

/// Situations that the trace of a life shows.
pub fn probe_trace(events: &[Event], cluster: u64, probes: &mut Probes) {
    let mut by_index = std::collections::BTreeMap::new();
    for event in events {
        match event {
            Event::Submit { io, .. } => {
                if io.kind == IoKind::Discard {
                    probes.hit(Probe::HostDiscard);
                }
                by_index.insert(io.index, *io);
            }
            Event::Fail { index, errno } => {
                let Some(io) = by_index.get(index) else { continue };
                probes.hit(match (io.kind, errno) {
                    (IoKind::Read, _) => Probe::ReadFailed,
                    (IoKind::Flush, _) => Probe::FlushFailed,
                    (_, 28) => Probe::NoSpace,
                    _ => Probe::WriteFailed,
                });
            }
            _ => {}
        }
    }
    // A partial write to a new cluster: by one task, in a row, something before and something after the data, all within
    // one cluster and touching.
    let mut rows: std::collections::BTreeMap<u32, Vec<Io>> = std::collections::BTreeMap::new();
    for io in by_index.values() {
        let row = rows.entry(io.task.unwrap_or(0)).or_default();
        row.push(*io);
        let pieces: Vec<&Io> = row.iter().rev().take(6).collect();
        let writes: Vec<&&Io> = pieces
            .iter()
            .filter(|io| matches!(io.kind, IoKind::Write | IoKind::WriteZeroes))
            .take(3)
            .collect();
        let [data, tail, head] = writes[..] else { continue };
        let start = head.offset - head.offset % cluster;
        let fits = head.offset == start
            && head.offset + head.len == data.offset
            && data.offset + data.len == tail.offset
            && tail.offset + tail.len == start + cluster;
        if fits {
            let copied = pieces.iter().any(|io| io.kind == IoKind::Read);
            let zeroed = head.kind == IoKind::WriteZeroes && tail.kind == IoKind::WriteZeroes;
            if zeroed {
                probes.hit(Probe::PaddedBothSides);
            } else if copied {
                probes.hit(Probe::CopiedOnWrite);
            }
            row.clear();
        }
    }
}
