//! The concurrent suite again under a scheduler that is not ours: shuttle's random one, its PCT and its depth-first search.
//!
//! Goal: what `explore --pairs` and the campaigns say of concurrent requests does not hang on `faultfs::exec`, an executor
//! that we wrote ourselves and that could leave out just the order that matters. Method: the pairs of the alphabet and
//! programs of three tasks run as tasks of shuttle on a storage of their own; the power cuts of every moment are explored in
//! full, all reads and a clean close are judged. The whole code must pass; code without a rule that only concurrency needs
//! must be caught, and must pass if the same requests run one after the other.
//!
//! | | campaigns, exploration | here |
//! |---|---|---|
//! | who runs, which I/O ends | `faultfs::exec`, `faultfs::schedule` | shuttle |
//! | an I/O in flight | a record of the executor | a task of shuttle |
//! | a read beside a write | any value seen in its time | each unit read at a moment of its own |
//! | breaches of the contract | `faultfs::device` | `storage.rs` here |
//! | begin and return of requests | `life` | here |
//! | what may survive, what is promised, recovery | `PossibleDisk`, `model`, `Walk` | the same |

mod program;
mod storage;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use faultfs::chooser::Always;
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use model::build::Initial;
use model::evidence::ValueKey;
use model::finding::Property;
use model::guest::{Guest, Token};
use model::judge::p0_misread;
use model::op::Op;
use model::payload;
use qcow2_core::storage::{AnyStorage, IoBuf};
use qcow2_crashtest::evidence::DiskEvidence;
use qcow2_crashtest::explore::alphabet::{World, worlds};
use qcow2_crashtest::explore::walk::{Stop, Walk};
use qcow2_crashtest::life::{Request, perform};
use qcow2_crashtest::recover::{Failure, whole_image};
use qcow2_crashtest::subject::{Qcow2Core, Subject, SubjectImage};
use shuttle::future::{block_on, spawn};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{
    DfsScheduler, PctScheduler, RandomScheduler, Schedule, Scheduler, Task, TaskId,
};
use shuttle::{Config, MaxSteps, Runner};

use program::{Program, dropped_write, pairs, read_beside_reuse, threes};
use storage::{ShuttleStorage, switch};

thread_local! {
    /// What is known of the crash states of each [`Bed`] of this thread, which no other thread may have.
    static WALKS: RefCell<Vec<Walk>> = const { RefCell::new(Vec::new()) };
}

/// An image to start from, and what is known of its crash states: shared by all executions on it.
struct Bed {
    subject: Qcow2Core,
    world: World,
    disk: PossibleDisk,
    guest: Guest,
    walk: usize,
}

impl Bed {
    fn new(subject: Qcow2Core, world: World) -> Self {
        let (disk, guest) = world.start(&subject).unwrap();
        let initial = (disk.clone(), guest.clone());
        let walk = Walk::new(subject, world.session, Profile::TornLength, 0, initial);
        let number = WALKS.with_borrow_mut(|walks| {
            walks.push(walk);
            walks.len() - 1
        });
        Self { subject, world, disk, guest, walk: number }
    }

    fn with_walk<R>(&self, does: impl FnOnce(&mut Walk) -> R) -> R {
        WALKS.with_borrow_mut(|walks| does(&mut walks[self.walk]))
    }
}

/// What executions of one program came to.
#[derive(Debug, Default)]
struct Outcome {
    executions: usize,
    /// Hashes of the orders in which I/Os were submitted and ended.
    orders: BTreeSet<u64>,
    /// Moments at which the power could have failed.
    moments: usize,
    found: Option<Stop>,
}

impl Outcome {
    fn kind(&self) -> Option<&'static str> {
        match &self.found {
            Some(Stop::Failed(failure)) => Some(failure.violation.kind),
            Some(Stop::Broken(_)) => Some("broken"),
            None => None,
        }
    }
}

/// A scheduler that is not asked for another execution once something was found.
struct Until<S> {
    scheduler: S,
    outcome: Arc<Mutex<Outcome>>,
}

impl<S: Scheduler> Scheduler for Until<S> {
    fn new_execution(&mut self) -> Option<Schedule> {
        let found = lock(&self.outcome).found.is_some();
        if found { None } else { self.scheduler.new_execution() }
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        self.scheduler.next_task(runnable, current, is_yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.scheduler.next_u64()
    }
}

/// Depth-first search through the orders that depart at most so often from the plain one, in which a task goes on while it
/// can, and then the one that was spawned first. Without a bound, all that a search comes to see is other ways to end.
struct Departing {
    search: DfsScheduler,
    most: usize,
    left: usize,
}

impl Departing {
    fn new(most: usize, executions: usize) -> Self {
        Self { search: DfsScheduler::new(Some(executions), true), most, left: most }
    }
}

impl Scheduler for Departing {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.left = self.most;
        self.search.new_execution()
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let mut offered = runnable.to_vec();
        let goes_on = |task: &&Task| Some(task.id()) == current;
        if let Some(at) = offered.iter().position(goes_on) {
            offered[..=at].rotate_right(1);
        }
        if self.left == 0 {
            offered.truncate(1);
        }
        let next = self.search.next_task(&offered, current, is_yielding)?;
        self.left -= usize::from(next != offered[0].id());
        Some(next)
    }

    fn next_u64(&mut self) -> u64 {
        self.search.next_u64()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a program until the scheduler has enough or something is found.
fn run(bed: &Arc<Bed>, program: &Program, scheduler: impl Scheduler + 'static) -> Outcome {
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let mut config = Config::new();
    // Crash states are judged on the stack of a task.
    config.stack_size = 1 << 20;
    config.max_steps = MaxSteps::FailAfter(100_000);
    let scheduler = Until { scheduler, outcome: Arc::clone(&outcome) };
    let (bed, program, shared) = (Arc::clone(bed), program.clone(), Arc::clone(&outcome));
    Runner::new(scheduler, config).run(move || {
        let found = execute(&bed, &program, &shared).err();
        let mut outcome = lock(&shared);
        outcome.executions += 1;
        outcome.found = found;
    });
    std::mem::take(&mut *lock(&outcome))
}

/// One execution, from opening the image to judging what it leaves.
fn execute(bed: &Bed, program: &Program, outcome: &Mutex<Outcome>) -> Result<(), Stop> {
    let storage = ShuttleStorage::new(bed.disk.clone(), bed.guest.clone());
    let failed: Arc<Mutex<Option<Failure>>> = Arc::default();
    let found = || match (lock(&failed).take(), storage.scene().breach.take()) {
        (Some(failure), _) => Err(Stop::Failed(failure)),
        (None, Some(breach)) => Err(Stop::Failed(named(Property::P8, "contract-breach", breach))),
        (None, None) => Ok(()),
    };
    let opened = block_on(bed.subject.open(AnyStorage::new(storage.clone()), bed.world.session));
    let image = opened.map_err(|refusal| unprovoked(&format!("{refusal:?}")))?;
    let image = Arc::new(image);
    storage.scene().moments.clear();
    let tasks: Vec<_> = program
        .tasks
        .iter()
        .map(|ops| {
            let guest = GuestTask {
                storage: storage.clone(),
                image: Arc::clone(&image),
                failed: Arc::clone(&failed),
            };
            spawn(guest.run(ops.clone()))
        })
        .collect();
    if let Some(dropped) = program.dropped {
        let victim = tasks[dropped].abort_handle();
        spawn(async move {
            for _ in 0..thread_rng().gen_range(0..64) {
                switch().await;
            }
            victim.abort();
        });
    }
    for task in tasks {
        // An error says that the task was dropped, as planned.
        let _ = block_on(task);
    }
    found()?;
    let image = Arc::into_inner(image).expect("all tasks have ended");
    let size = storage.scene().guest.size();
    let all =
        GuestTask { storage: storage.clone(), image: Arc::new(image), failed: Arc::clone(&failed) };
    block_on(all.request(Op::Read { offset: 0, length: size }));
    found()?;
    let image = Arc::into_inner(all.image).expect("nobody else has it");
    let token = storage.scene().guest.begin_flush();
    block_on(image.close()).map_err(|text| unprovoked(&text))?;
    storage.scene().guest.complete(token);
    found()?;
    let mut scene = storage.scene();
    scene.pass();
    {
        let mut outcome = lock(outcome);
        outcome.orders.insert(scene.order());
        outcome.moments += scene.moments.len();
    }
    bed.with_walk(|walk| {
        walk.in_order(&scene.disk, &scene.guest)?;
        scene.moments.iter().try_for_each(|(disk, guest)| walk.crash(disk, guest))
    })
}

fn named(property: Property, kind: &'static str, story: String) -> Failure {
    let mut violation = whole_image(property, kind);
    violation.story = story;
    Failure { violation, moment: "while it ran".to_owned() }
}

/// Nothing fails here, so nothing may be refused.
fn unprovoked(text: &impl ToString) -> Failure {
    named(Property::P8, "unprovoked-error", text.to_string())
}

/// A task of the guest.
struct GuestTask<I> {
    storage: ShuttleStorage,
    image: Arc<I>,
    failed: Arc<Mutex<Option<Failure>>>,
}

impl<I: SubjectImage> GuestTask<I> {
    async fn run(self, ops: Vec<Op>) {
        for op in ops {
            switch().await;
            if lock(&self.failed).is_some() {
                return;
            }
            self.request(op).await;
        }
    }

    /// One request, and what its beginning and its end mean to the guest.
    async fn request(&self, op: Op) {
        let mut begun = Begun { storage: &self.storage, token: None };
        let request = {
            let mut scene = self.storage.scene();
            let request = op.clip(scene.guest.size()).map(Request::Op);
            let values = scene.disk.values().clone();
            let key = |unit, id| ValueKey(values.intern(&payload::unit(unit, id)).0);
            begun.token = Some(scene.guest.begin(&op, key));
            scene.pass();
            request
        };
        let done = perform(&*self.image, request.as_ref()).await;
        let token = begun.token.take().expect("it has begun");
        let failure = self.end(token, done);
        self.storage.scene().pass();
        if let Some(failure) = failure {
            lock(&self.failed).get_or_insert(failure);
        }
    }

    fn end(&self, token: Token, done: Result<Option<IoBuf>, String>) -> Option<Failure> {
        let mut scene = self.storage.scene();
        match done {
            Ok(None) => scene.guest.complete(token),
            Ok(Some(read)) => {
                let mut keys = Vec::new();
                scene.disk.values().intern_all(&read, &mut keys);
                let found: Vec<ValueKey> = keys.iter().map(|key| ValueKey(key.0)).collect();
                if let Err(misread) = scene.guest.complete_read(token, &found) {
                    let (mut disk, mut newest) = (scene.disk.clone(), Always(0));
                    let evidence = DiskEvidence::new(&mut disk, &mut newest);
                    let violation = p0_misread(&misread, &evidence, &scene.guest);
                    return Some(Failure { violation, moment: "in a read".to_owned() });
                }
            }
            Err(text) => {
                scene.guest.fail(token);
                return Some(unprovoked(&text));
            }
        }
        None
    }
}

/// A request that has begun. Dropped before its end, it may have happened or not.
struct Begun<'a> {
    storage: &'a ShuttleStorage,
    token: Option<Token>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.storage.scene().guest.abandon(token);
        }
    }
}

/// Fresh, fragmented and leaky images with clusters of 1 KiB, eager and lazy.
fn beds(subject: Qcow2Core) -> Vec<Arc<Bed>> {
    let initials = [Initial::Fresh, Initial::Fragmented, Initial::Leaky];
    let worlds = worlds(&[1024], &[false, true], &initials);
    worlds.into_iter().map(|world| Arc::new(Bed::new(subject, world))).collect()
}

/// Sums over many programs.
#[derive(Debug, Default)]
struct Figures {
    programs: usize,
    executions: usize,
    orders: usize,
    moments: usize,
    /// Executions of the program that had most.
    longest: usize,
}

impl Figures {
    fn add(&mut self, outcome: &Outcome) {
        self.programs += 1;
        self.executions += outcome.executions;
        self.orders += outcome.orders.len();
        self.moments += outcome.moments;
        self.longest = self.longest.max(outcome.executions);
    }

    fn print(&self, what: &str, beds: &[Arc<Bed>]) {
        let leaves: u64 = beds.iter().map(|bed| bed.with_walk(|walk| walk.counts().leaves)).sum();
        println!("{what}: {self:?}, leaves: {leaves}");
    }
}

/// Says which program it was if an execution panics, as it does when all its tasks wait for each other.
struct Running<'a>(&'a Bed, &'a Program);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} on {:?}", self.1.name, self.0.world);
        }
    }
}

/// Every program on every image, each under a scheduler of its own: nothing is found.
fn all_pass<S: Scheduler + 'static>(
    what: &str,
    beds: &[Arc<Bed>],
    programs: impl Fn(&World) -> Vec<Program>,
    scheduler: impl Fn(u64) -> S,
) -> Figures {
    let mut figures = Figures::default();
    for bed in beds {
        for (seed, program) in (1..).zip(programs(&bed.world)) {
            let _running = Running(bed, &program);
            let outcome = run(bed, &program, scheduler(seed));
            let execution = outcome.executions;
            assert!(outcome.found.is_none(), "execution {execution}: {:?}", outcome.found);
            figures.add(&outcome);
        }
    }
    figures.print(what, beds);
    assert!(figures.orders > 2 * figures.programs, "hardly any two executions differ");
    figures
}

/// Ordering constraints that PCT looks for at once: a priority falls one time less in each execution.
const DEPTH: usize = 4;

fn random(executions: usize) -> impl Fn(u64) -> RandomScheduler {
    move |seed| RandomScheduler::new_from_seed(seed, executions)
}

fn pct(executions: usize) -> impl Fn(u64) -> PctScheduler {
    move |seed| PctScheduler::new_from_seed(seed, DEPTH, executions)
}

/// Whole code on all images.
fn whole() -> Vec<Arc<Bed>> {
    beds(Qcow2Core::default())
}

fn fragmented(subject: Qcow2Core) -> Vec<Arc<Bed>> {
    let mut beds = beds(subject);
    beds.retain(|bed| bed.world.initial == Initial::Fragmented);
    beds
}

#[test]
#[cfg_attr(not(turn = "4"), ignore = "its turn is at another commit; CI=1 runs all")]
fn pairs_pass_in_random_orders() {
    all_pass("pairs, random", &whole(), |world| pairs(&world.geometry), random(8));
}

#[test]
#[cfg_attr(not(turn = "5"), ignore = "its turn is at another commit; CI=1 runs all")]
fn pairs_pass_under_pct() {
    all_pass("pairs, PCT", &whole(), |world| pairs(&world.geometry), pct(8));
}

#[test]
#[cfg_attr(not(turn = "7"), ignore = "its turn is at another commit; CI=1 runs all")]
fn three_tasks_pass_in_random_orders() {
    all_pass("three tasks, random", &whole(), |_| threes(), random(40));
}

#[test]
#[cfg_attr(not(turn = "9"), ignore = "its turn is at another commit; CI=1 runs all")]
fn three_tasks_pass_under_pct() {
    all_pass("three tasks, PCT", &whole(), |_| threes(), pct(40));
}

/// All orders with one departure from the plain one, to the last.
#[test]
#[cfg_attr(not(turn = "10"), ignore = "its turn is at another commit; CI=1 runs all")]
fn everything_passes_depth_first() {
    const MOST: usize = 1000;
    let programs = |world: &World| [pairs(&world.geometry), threes()].concat();
    let beds = fragmented(Qcow2Core::default());
    let figures = all_pass("depth first", &beds, programs, |_| Departing::new(1, MOST));
    assert!(figures.longest < MOST, "a search was cut short: {figures:?}");
}

/// Goal: the suite sees what only concurrency shows. Method: code without one rule is caught, with the whole rules it passes
/// under the same schedulers, and without concurrency it passes without the rule.
#[test]
#[cfg_attr(not(turn = "4"), ignore = "its turn is at another commit; CI=1 runs all")]
fn rules_that_only_concurrency_needs_are_missed() {
    const EXECUTIONS: usize = 1500;
    for (rule, program, beds, kind) in [
        ("reads-before-reuse", read_beside_reuse(), fragmented as fn(_) -> _, "misread"),
        ("discard-before-reuse", read_beside_reuse(), fragmented, "contract-breach"),
        ("orphans-before-reuse", dropped_write(), beds, "contract-breach"),
    ] {
        for bed in beds(Qcow2Core::without([rule]).unwrap()) {
            let broken = run(&bed, &program, pct(EXECUTIONS)(1));
            assert_eq!(broken.kind(), Some(kind), "{rule}: {:?} on {:?}", broken.found, bed.world);
            println!("{rule}, {:?}: {kind} in execution {}", bed.world.initial, broken.executions);
            let alone = run(&bed, &program.in_sequence(), pct(5)(1));
            assert!(alone.found.is_none(), "{rule}: {:?} on {:?}", alone.found, bed.world);
        }
        let one = |_: &World| vec![program.clone()];
        all_pass(rule, &beds(Qcow2Core::default()), one, pct(EXECUTIONS));
    }
}

/// Power cuts in concurrent requests are judged: rules that any workload needs are missed too.
#[test]
#[cfg_attr(not(turn = "7"), ignore = "its turn is at another commit; CI=1 runs all")]
fn rules_that_power_cuts_need_are_missed() {
    for rule in [
        "data-before-mapping",
        "refcount-before-reference",
        "length-before-reference",
        "all-before-clean",
        "dereference-before-refcount-down",
        "dereference-before-reuse",
        "copy-before-switch",
        "durable-before-acknowledge",
    ] {
        let beds = beds(Qcow2Core::without([rule]).unwrap());
        let mut executions = 0;
        let found = beds.iter().find_map(|bed| {
            let programs = [pairs(&bed.world.geometry), threes()].concat();
            programs.iter().find_map(|program| {
                let outcome = run(bed, program, pct(4)(1));
                executions += outcome.executions;
                Some((program.name.clone(), outcome.kind()?))
            })
        });
        println!("{rule}: {found:?} in execution {executions}");
        assert!(found.is_some(), "{rule}");
    }
}

#[test]
#[cfg_attr(not(turn = "8"), ignore = "its turn is at another commit; CI=1 runs all")]
fn the_same_seed_gives_the_same_executions() {
    let [first, second, other] = [7, 7, 8].map(|seed| {
        let beds = fragmented(Qcow2Core::default());
        let orders = |program| {
            let Outcome { orders, moments, .. } = run(&beds[0], program, pct(20)(seed));
            let more = run(&beds[1], program, random(20)(seed)).orders;
            (orders, moments, more)
        };
        threes().iter().map(orders).collect::<Vec<_>>()
    });
    assert_eq!(first, second);
    assert_ne!(first, other);
}
