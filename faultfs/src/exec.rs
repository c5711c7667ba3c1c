//! The executor: one thread, one seed, and every order that a real machine could produce.
//!
//! Invariant: all nondeterminism of a run passes through its [`Schedule`], its chooser and its fault plan; the trace
//! hash covers all three. A task runs until it awaits; an I/O is submitted when its future is first polled and ends in
//! a step of its own, in any order, whether or not anybody still waits for it.
//!
//! ```text
//!              +--------------------- step() -----------------------+
//!              |                                                    |
//!   tasks      |  woken tasks   I/Os in flight   (cancellations)    |      the schedule picks one of these
//!              |      |              |                 |            |
//!              |    poll          complete        drop future       |
//!              |      |              |                 |            |
//!              +------|--------------|-----------------|------------+
//!                     v              v                 v
//!                submits I/O    wakes its task    I/O goes on, orphaned; settle() waits for it
//! ```
//!
//! `settle` also ends what failed late, after a scheduling point at which the others may get ahead of it.
//!
//! No candidate starves: one that was passed over for [`PATIENCE`] steps is taken without asking.

use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use storage::{Durability, IoBuf, Limits, Storage, UNIT};

use crate::chooser::{Choice, Chooser, Recording, Taken, ask};
use crate::defect::Defect;
use crate::device::{Breach, Device, EIO, MAX_IDLE, Started, span, unit_of};
use crate::disk::{File, PossibleDisk};
use crate::fault::{Fault, FaultPlan, NoFaults};
use crate::schedule::{Candidate, Schedule, TaskId};
use crate::trace::{Event, Io, IoKind, Trace};
use crate::values::Key;

/// How many steps something that could happen may be passed over.
pub const PATIENCE: u64 = 2048;

type BoxedChooser = Box<dyn Chooser + Send>;

/// Where the nondeterminism of a run comes from.
pub struct SimOptions {
    /// Who runs, and which I/O ends.
    pub schedule: Box<dyn Schedule + Send>,
    /// What the disk leaves open.
    pub chooser: Box<dyn Chooser + Send>,
    /// What fails.
    pub faults: Box<dyn FaultPlan + Send>,
    /// How many tasks the schedule may cancel.
    pub cancellations: u32,
}

impl SimOptions {
    /// No faults, no cancellations.
    pub fn new(
        schedule: impl Schedule + Send + 'static,
        chooser: impl Chooser + Send + 'static,
    ) -> Self {
        Self {
            schedule: Box::new(schedule),
            chooser: Box::new(chooser),
            faults: Box::new(NoFaults),
            cancellations: 0,
        }
    }
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// A task was polled.
    Ran {
        /// Which.
        task: TaskId,
        /// Whether that finished it.
        finished: bool,
        /// How many I/Os it submitted.
        submitted: u32,
    },
    /// An I/O ended.
    Completed {
        /// Which.
        io: Io,
        /// Whether it ended well.
        ok: bool,
    },
    /// The future of a task was dropped.
    Cancelled(TaskId),
    /// Tasks are left, nothing is in flight, and nobody can run.
    Deadlock {
        /// Names of the tasks that are left.
        tasks: Vec<String>,
    },
    /// No task is left and nothing is in flight.
    Done,
}

/// A seeded single-threaded executor around one possible disk.
pub struct Sim {
    world: Arc<Mutex<World>>,
    schedule: Box<dyn Schedule + Send>,
    tasks: Vec<Task>,
    cancellations: u32,
    steps: u64,
    last: Option<TaskId>,
    candidates: Vec<Candidate>,
    decisions: Vec<Taken>,
}

struct Task {
    name: String,
    /// None once it has finished or was cancelled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    woken: Arc<Woken>,
    waker: Waker,
    /// Since when it could have run.
    ready_since: Option<u64>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Sim {
    /// An executor without tasks.
    pub fn new(disk: PossibleDisk, options: SimOptions) -> Self {
        let SimOptions { schedule, chooser, faults, cancellations } = options;
        let mut device = Device::new(disk);
        device.faults = Some(faults);
        device.trace = Some(Trace::new());
        let world = World {
            device,
            chooser: Recording::new(chooser),
            traced: 0,
            in_flight: Vec::new(),
            ended: Vec::new(),
            settling: Vec::new(),
            lost_sync_error: false,
            current: None,
            submitted: 0,
            idle: 0,
            steps: 0,
        };
        Self {
            world: Arc::new(Mutex::new(world)),
            schedule,
            tasks: Vec::new(),
            cancellations,
            steps: 0,
            last: None,
            candidates: Vec::new(),
            decisions: Vec::new(),
        }
    }

    /// A storage whose I/O this executor schedules: the first file of the disk.
    pub fn storage(&self) -> SimStorage {
        let limits = self.lock().device.disk.limits();
        SimStorage { world: Arc::clone(&self.world), limits, file: File::First }
    }

    /// Adds a task. Results leave it through whatever it shares with its maker.
    pub fn spawn(&mut self, name: &str, future: impl Future<Output = ()> + 'static) -> TaskId {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&woken));
        let name = name.to_owned();
        self.lock().trace(|trace| trace.name_task(&name));
        let future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(future);
        self.tasks.push(Task { name, future: Some(future), woken, waker, ready_since: None });
        TaskId(self.tasks.len() as u32 - 1)
    }

    /// Drops the future of a task, unless it has finished. What it has in flight goes on.
    pub fn cancel(&mut self, task: TaskId) {
        // Dropped outside the lock: futures of I/Os take it.
        let future = self.tasks[task.0 as usize].future.take();
        if future.is_some() {
            self.lock().trace(|trace| trace.record(Event::Cancel(task)));
        }
    }

    /// Drops the futures of all tasks, as a power cut does, which nothing in the trace tells.
    pub fn abandon(&mut self) {
        for task in &mut self.tasks {
            drop(task.future.take());
        }
    }

    /// Lets one thing happen.
    pub fn step(&mut self) -> StepResult {
        self.steps += 1;
        let overdue = self.offer();
        if self.candidates.is_empty() {
            let left = self.tasks.iter().filter(|task| task.future.is_some());
            let tasks: Vec<String> = left.map(|task| task.name.clone()).collect();
            return if tasks.is_empty() {
                StepResult::Done
            } else {
                StepResult::Deadlock { tasks }
            };
        }
        let picked = match overdue {
            Some(candidate) => candidate,
            None => {
                let options = self.candidates.len();
                let taken = if options == 1 { 0 } else { self.schedule.pick(&self.candidates) };
                if options > 1 {
                    let decision = Taken { options: options as u32, taken: taken as u32 };
                    self.decisions.push(decision);
                    self.lock().trace(|trace| trace.record(Event::Picked(decision)));
                }
                self.candidates[taken]
            }
        };
        match picked {
            Candidate::Run(task) => self.run_task(task),
            Candidate::Complete(index) => {
                let (io, ok) = self.lock().complete(index);
                StepResult::Completed { io, ok }
            }
            Candidate::Cancel(task) => {
                self.cancellations -= 1;
                self.cancel(task);
                StepResult::Cancelled(task)
            }
        }
    }

    /// Steps until nothing is left to do: `Done`, or `Deadlock`.
    pub fn run(&mut self) -> StepResult {
        loop {
            let step = self.step();
            if matches!(step, StepResult::Done | StepResult::Deadlock { .. }) {
                return step;
            }
        }
    }

    /// Lists what may happen next; the answer is something that has waited for too long.
    fn offer(&mut self) -> Option<Candidate> {
        let mut oldest: Option<(u64, Candidate)> = None;
        let mut consider = |since: u64, candidate: Candidate| {
            if oldest.is_none_or(|(first, _)| since < first) {
                oldest = Some((since, candidate));
            }
        };
        self.candidates.clear();
        for (number, task) in self.tasks.iter_mut().enumerate() {
            if task.future.is_some() && task.woken.0.load(Ordering::Relaxed) {
                let candidate = Candidate::Run(TaskId(number as u32));
                consider(*task.ready_since.get_or_insert(self.steps), candidate);
                self.candidates.push(candidate);
            }
        }
        if let Some(last) = self.last
            && let Some(at) = self.candidates.iter().position(|&c| c == Candidate::Run(last))
        {
            self.candidates[..=at].rotate_right(1);
        }
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        world.steps = self.steps;
        for flying in &world.in_flight {
            let candidate = Candidate::Complete(flying.started.io.index);
            consider(flying.since, candidate);
            self.candidates.push(candidate);
        }
        if self.cancellations > 0 && !self.candidates.is_empty() {
            for (number, task) in self.tasks.iter().enumerate() {
                if task.future.is_some() {
                    self.candidates.push(Candidate::Cancel(TaskId(number as u32)));
                }
            }
        }
        oldest.filter(|(since, _)| self.steps - since > PATIENCE).map(|(_, candidate)| candidate)
    }

    fn run_task(&mut self, id: TaskId) -> StepResult {
        {
            let mut world = self.lock();
            world.trace(|trace| trace.record(Event::Run(id)));
            world.current = Some(id);
            world.submitted = 0;
            world.idle = 0;
        }
        let task = &mut self.tasks[id.0 as usize];
        task.woken.0.store(false, Ordering::Relaxed);
        task.ready_since = None;
        let mut context = Context::from_waker(&task.waker);
        let poll = task.future.as_mut().map(|future| future.as_mut().poll(&mut context));
        let finished = poll.is_some_and(|poll| poll.is_ready());
        if finished {
            task.future = None;
        }
        self.last = Some(id);
        let mut world = self.lock();
        world.current = None;
        StepResult::Ran { task: id, finished, submitted: world.submitted }
    }

    /// The disk as it is now: crash it, look at it.
    pub fn disk(&self) -> PossibleDisk {
        self.lock().device.disk.clone()
    }

    /// Looks at the disk as it is now.
    pub fn with_disk<R>(&self, look: impl FnOnce(&PossibleDisk) -> R) -> R {
        look(&self.lock().device.disk)
    }

    /// What is in flight, in the order of submission.
    pub fn in_flight(&self) -> Vec<Io> {
        self.lock().in_flight.iter().map(|flying| flying.started.io).collect()
    }

    /// Whether a task has neither finished nor been cancelled.
    pub fn is_alive(&self, task: TaskId) -> bool {
        self.tasks[task.0 as usize].future.is_some()
    }

    /// How the contract was broken so far.
    pub fn breaches(&self) -> Vec<Breach> {
        self.lock().device.breaches.clone()
    }

    /// What happened so far.
    pub fn trace(&self) -> Trace {
        self.lock().device.trace.clone().unwrap_or_default()
    }

    /// Hash of what happened so far.
    pub fn trace_hash(&self) -> u64 {
        self.lock().device.trace.as_ref().map_or(0, Trace::hash)
    }

    /// The decisions of the schedule so far: `Choices(Playback)` repeats them.
    pub fn decisions(&self) -> &[Taken] {
        &self.decisions
    }

    /// The decisions of the chooser so far.
    pub fn choices(&self) -> Vec<Taken> {
        self.lock().chooser.taken().to_vec()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the storage handles share with the executor.
struct World {
    device: Device,
    chooser: Recording<BoxedChooser>,
    /// How many of the chooser's answers are in the trace.
    traced: usize,
    in_flight: Vec<Flying>,
    /// Ended, and not yet fetched by its future.
    ended: Vec<Ended>,
    settling: Vec<Waker>,
    /// A flush or write-through write failed after its future was dropped, and no `settle` has said so yet.
    lost_sync_error: bool,
    current: Option<TaskId>,
    submitted: u32,
    /// Calls of this poll that took no step.
    idle: u32,
    steps: u64,
}

struct Ended {
    index: u64,
    /// What a read transferred, from its first unit on; all of it if it ended well.
    keys: Vec<Key>,
    outcome: io::Result<()>,
    kind: IoKind,
}

struct Flying {
    started: Started,
    since: u64,
    waker: Waker,
    /// Its future was dropped.
    orphan: bool,
    /// A read: values that its units had while it was in flight, beside what they hold when it ends.
    seen: Vec<(u32, Vec<Key>)>,
}

impl Flying {
    fn can_land_unwatched(&self, disk: &PossibleDisk) -> bool {
        let kind = self.started.io.kind;
        let spared = match kind {
            IoKind::Discard => disk.has(Defect::SettleSparesDiscards),
            IoKind::WriteZeroes => disk.has(Defect::SettleSparesZeroes),
            IoKind::SetLen => disk.has(Defect::SettleSparesLengths),
            _ => false,
        };
        self.orphan && kind != IoKind::Read && !spared
    }
}

impl World {
    fn trace(&mut self, record: impl FnOnce(&mut Trace)) {
        if let Some(trace) = &mut self.device.trace {
            record(trace);
        }
    }

    fn submit(
        &mut self,
        file: File,
        kind: IoKind,
        range: Range<u64>,
        data: &[u8],
        buf: &[u8],
        waker: &Waker,
    ) -> io::Result<u64> {
        let task = self.current.map(|TaskId(number)| number);
        let io = self.device.describe(file, kind, range, data, buf, task)?;
        self.submitted += 1;
        let mut seen = Vec::new();
        for at in 0..self.in_flight.len() {
            let other = self.in_flight[at].started.io;
            if !io.overlaps(&other) {
                continue;
            }
            match (io.kind == IoKind::Read, other.kind == IoKind::Read) {
                (true, true) => {}
                (false, false) => {
                    self.device.breaches.push(Breach::Overlap { first: other, second: io });
                }
                (true, false) => self.look(&io, &other, &mut seen),
                (false, true) => {
                    let mut seen = std::mem::take(&mut self.in_flight[at].seen);
                    self.look(&other, &io, &mut seen);
                    self.in_flight[at].seen = seen;
                }
            }
        }
        let started = self.device.start(io, data, &mut self.chooser);
        self.trace_choices();
        let flying =
            Flying { started, since: self.steps, waker: waker.clone(), orphan: false, seen };
        self.in_flight.push(flying);
        Ok(io.index)
    }

    /// Counts a call that takes no step. Whoever makes too many of them within one poll goes round in circles, and gets no answer: that is
    /// seen as a deadlock.
    const fn idles(&mut self) -> bool {
        self.idle += 1;
        self.idle <= MAX_IDLE
    }

    /// Notes what the units of a read hold that a write may change while it is in flight.
    fn look(&mut self, read: &Io, write: &Io, seen: &mut Vec<(u32, Vec<Key>)>) {
        let (file, read, write) = (read.file, read.range(), write.range());
        let disk = &mut self.device.disk;
        let units = unit_of(read.start.max(write.start))..unit_of(read.end.min(write.end));
        for unit in units.start..units.end.min(disk.extent()).min(disk.room(file).end) {
            disk.decide(unit, &mut self.chooser);
            let mut keys = Vec::new();
            disk.visible(unit, &mut keys);
            seen.push((unit, keys));
        }
    }

    fn complete(&mut self, index: u64) -> (Io, bool) {
        let at = self
            .in_flight
            .iter()
            .position(|flying| flying.started.io.index == index)
            .expect("only I/Os in flight are candidates");
        let Flying { started, waker, orphan, seen, .. } = self.in_flight.remove(at);
        let io = started.io;
        let mut keys = Vec::new();
        let outcome = if io.kind == IoKind::Read {
            let chooser = &mut self.chooser;
            let first = unit_of(io.offset);
            let mut data = vec![0; io.len as usize];
            let outcome = self.device.end_read(&started, &mut data, |disk, unit| {
                let key = read_over(disk, unit, &seen, chooser);
                // Units that are certainly zero are not asked for.
                keys.resize((unit - first) as usize, Key::ZERO);
                keys.push(key);
                key
            });
            if outcome.is_ok() {
                keys.resize(io.units() as usize, Key::ZERO);
            }
            outcome
        } else {
            self.device.end(&started)
        };
        self.trace_choices();
        let ok = outcome.is_ok();
        if orphan {
            self.lost_sync_error |= io.kind.syncs() && !ok;
            self.wake_settling();
        } else {
            self.ended.push(Ended { index, keys, outcome, kind: io.kind });
            waker.wake();
        }
        (io, ok)
    }

    fn any_can_land_unwatched(&self) -> bool {
        self.in_flight.iter().any(|flying| flying.can_land_unwatched(&self.device.disk))
    }

    fn wake_settling(&mut self) {
        if !self.any_can_land_unwatched() {
            self.settling.drain(..).for_each(Waker::wake);
        }
    }

    /// What a defect makes of an I/O, other than a write, whose future was just dropped.
    fn mistreat_orphan(&mut self, index: u64) {
        let gone = self.device.disk.has(Defect::DroppedIsGone);
        if !gone && !self.device.disk.has(Defect::DroppedEndsAtOnce) {
            return;
        }
        let other = |flying: &Flying| {
            let io = flying.started.io;
            io.index == index
                && matches!(io.kind, IoKind::Discard | IoKind::WriteZeroes | IoKind::SetLen)
        };
        if let Some(at) = self.in_flight.iter().position(other) {
            if gone {
                self.in_flight[at].started.fault = Some(Fault::Short { landed: 0 });
            }
            self.complete(index);
        }
    }

    fn trace_choices(&mut self) {
        for &taken in &self.chooser.taken()[self.traced..] {
            if let Some(trace) = &mut self.device.trace {
                trace.record(Event::Chose(taken));
            }
        }
        self.traced = self.chooser.taken().len();
    }
}

/// What a read returns of a unit: what the unit holds now, or held at some moment of the read.
fn read_over(
    disk: &mut PossibleDisk,
    unit: u32,
    seen: &[(u32, Vec<Key>)],
    chooser: &mut impl Chooser,
) -> Key {
    let mut overlapping = seen.iter().filter(|(seen, _)| *seen == unit).peekable();
    if overlapping.peek().is_none() {
        return disk.read(unit, chooser);
    }
    disk.decide(unit, chooser);
    let mut options = Vec::new();
    disk.visible(unit, &mut options);
    for &key in overlapping.flat_map(|(_, keys)| keys) {
        if !options.contains(&key) {
            options.push(key);
        }
    }
    let what = Choice::Read { unit, options: &options, medium: false };
    options[ask(chooser, options.len(), what)]
}

/// A storage under a [`Sim`]: one file of the disk. Clones share it.
#[derive(Clone)]
pub struct SimStorage {
    world: Arc<Mutex<World>>,
    limits: Limits,
    file: File,
}

/// One I/O as a future: submitted when first polled, orphaned when dropped in flight.
struct InFlight<'a> {
    storage: &'a SimStorage,
    index: Option<u64>,
}

impl InFlight<'_> {
    async fn run(
        mut self,
        kind: IoKind,
        range: Range<u64>,
        data: &[u8],
        mut into: Option<&mut [u8]>,
    ) -> io::Result<()> {
        let mut refused = None;
        poll_fn(|context| {
            if let Some(refused) = refused.take() {
                return Poll::Ready(Err(refused));
            }
            let mut world = lock(&self.storage.world);
            let Some(index) = self.index else {
                let buf = into.as_deref().unwrap_or(data);
                let file = self.storage.file;
                match world.submit(file, kind, range.clone(), data, buf, context.waker()) {
                    Ok(index) => self.index = Some(index),
                    // It takes a step, or whoever tries for ever would never let go.
                    Err(error) => {
                        refused = Some(error);
                        context.waker().wake_by_ref();
                    }
                }
                return Poll::Pending;
            };
            let Some(at) = world.ended.iter().position(|ended| ended.index == index) else {
                let flying = world.in_flight.iter_mut().find(|f| f.started.io.index == index);
                let flying = flying.expect("an I/O that has not ended is in flight");
                flying.waker.clone_from(context.waker());
                return Poll::Pending;
            };
            let Ended { keys, outcome, .. } = world.ended.swap_remove(at);
            self.index = None;
            let values = world.device.disk.values();
            if let Some(buf) = into.as_deref_mut() {
                for (target, &key) in buf.as_chunks_mut::<UNIT>().0.iter_mut().zip(&keys) {
                    *target = *values.bytes(key);
                }
            }
            Poll::Ready(outcome)
        })
        .await
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            let mut world = lock(&self.storage.world);
            if let Some(flying) =
                world.in_flight.iter_mut().find(|flying| flying.started.io.index == index)
            {
                flying.orphan = true;
                world.mistreat_orphan(index);
            }
            if let Some(at) = world.ended.iter().position(|ended| ended.index == index) {
                let Ended { outcome, kind, .. } = world.ended.swap_remove(at);
                world.lost_sync_error |= kind.syncs() && outcome.is_err();
            }
        }
    }
}

impl SimStorage {
    /// The second file of the same disk, if it has one. What `settle` waits for and ends is of both files.
    #[must_use]
    pub fn second(&self) -> Option<Self> {
        let second = lock(&self.world).device.disk.second();
        second.map(|_| Self { file: File::Second, ..self.clone() })
    }

    /// How many I/Os were submitted so far, by all tasks.
    pub fn submitted(&self) -> u64 {
        lock(&self.world).device.submitted()
    }

    async fn io(&self, kind: IoKind, range: Range<u64>, data: &[u8]) -> io::Result<()> {
        InFlight { storage: self, index: None }.run(kind, range, data, None).await
    }
}

impl Storage for SimStorage {
    fn limits(&self) -> Limits {
        self.limits
    }

    async fn len(&self) -> io::Result<u64> {
        poll_fn(|_| {
            let mut world = lock(&self.world);
            if !world.idles() {
                return Poll::Pending;
            }
            let World { device, chooser, .. } = &mut *world;
            let len = device.disk.len_of(self.file, chooser);
            world.trace_choices();
            Poll::Ready(Ok(u64::from(len) * UNIT as u64))
        })
        .await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.io(IoKind::SetLen, len..len, &[]).await
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (IoBuf, io::Result<()>) {
        let range = span(offset, &buf);
        let flight = InFlight { storage: self, index: None };
        let outcome = flight.run(IoKind::Read, range, &[], Some(&mut buf)).await;
        (buf, outcome)
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, io::Result<()>) {
        let kind = IoKind::of_write(durability);
        let outcome = self.io(kind, span(offset, &buf), &buf).await;
        (buf, outcome)
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.io(IoKind::WriteZeroes, range, &[]).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.io(IoKind::Discard, range, &[]).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.io(IoKind::Flush, 0..0, &[]).await
    }

    async fn settle(&self) -> io::Result<()> {
        let mut paused = false;
        poll_fn(|context| {
            let mut world = lock(&self.world);
            if !world.idles() {
                return Poll::Pending;
            }
            if world.any_can_land_unwatched() {
                world.settling.push(context.waker().clone());
                return Poll::Pending;
            }
            if world.device.has_late() && !std::mem::replace(&mut paused, true) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            world.device.settle();
            if std::mem::take(&mut world.lost_sync_error) {
                return Poll::Ready(Err(io::Error::from_raw_os_error(EIO)));
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    async fn pause(&self) {
        let mut paused = false;
        poll_fn(|context| {
            if std::mem::replace(&mut paused, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}
