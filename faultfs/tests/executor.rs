//! Who runs when, and what becomes of I/O that nobody waits for.
//!
//! Goal: every order of tasks and completions that a real machine could produce can happen, none other does, and a run
//! is a function of its decisions. Method: tiny tasks over one disk; the orders that must occur are looked for, and the
//! decisions of a run are fed back to get the same run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

use std::collections::BTreeSet;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use faultfs::Breach;
use faultfs::chooser::{Always, Exhaustive, Playback, Random};
use faultfs::disk::{File, PossibleDisk};
use faultfs::exec::{PATIENCE, Sim, SimOptions, SimStorage, StepResult};
use faultfs::fault::{Fault, FaultAt, Planned, PlannedFault};
use faultfs::profile::{FlushFailure, Profile};
use faultfs::rng::Ratio;
use faultfs::schedule::{self, Candidate, Choices, Pct, Schedule, TaskId};
use faultfs::trace::{Io, IoKind};
use faultfs::values::{Key, Values};
use storage::{Durability, IoBuf, Storage, UNIT};

type Shared<T> = Arc<Mutex<T>>;

fn shared<T>(value: T) -> Shared<T> {
    Arc::new(Mutex::new(value))
}

fn disk(units: u32) -> PossibleDisk {
    PossibleDisk::new(&Values::new(), units)
}

fn sim(schedule: impl Schedule + Send + 'static) -> Sim {
    Sim::new(disk(8), SimOptions::new(schedule, Always(0)))
}

fn unit(number: u64) -> u64 {
    number * UNIT as u64
}

async fn write(storage: &SimStorage, first: u64, byte: u8, units: usize) -> io::Result<()> {
    let buf = IoBuf::copy_of(&vec![byte; units * UNIT], UNIT);
    storage.write(unit(first), buf, Durability::Cached).await.1
}

/// The first byte of each unit.
async fn read(storage: &SimStorage, first: u64, units: usize) -> Vec<u8> {
    let stale = IoBuf::copy_of(&vec![0xee; units * UNIT], UNIT);
    let (buf, outcome) = storage.read(unit(first), stale).await;
    outcome.unwrap();
    buf.chunks(UNIT).map(|unit| unit[0]).collect()
}

async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut first, mut second) = (None, None);
    poll_fn(|context| {
        if first.is_none()
            && let Poll::Ready(value) = a.as_mut().poll(context)
        {
            first = Some(value);
        }
        if second.is_none()
            && let Poll::Ready(value) = b.as_mut().poll(context)
        {
            second = Some(value);
        }
        match (first.take(), second.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (first, second) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

/// Two tasks that each add one to a counter on the disk, as two operations.
fn lost_update(schedule: impl Schedule + Send + 'static) -> (u8, Sim) {
    let mut sim = sim(schedule);
    for name in ["one", "two"] {
        let storage = sim.storage();
        sim.spawn(name, async move {
            let count = read(&storage, 0, 1).await[0];
            write(&storage, 0, count + 1, 1).await.unwrap();
        });
    }
    assert_eq!(sim.run(), StepResult::Done);
    let count = sim.disk().image(&mut Always(0))[0];
    (count, sim)
}

/// Runs `leaf` for every combination of decisions of a schedule.
fn every_schedule(mut leaf: impl FnMut(Choices<Shared<Exhaustive>>)) -> u32 {
    let chooser = shared(Exhaustive::new());
    let mut leaves = 0;
    loop {
        leaf(Choices::new(Arc::clone(&chooser)));
        leaves += 1;
        if !chooser.lock().unwrap().advance() {
            assert!(!chooser.lock().unwrap().diverged());
            return leaves;
        }
    }
}

#[test]
fn a_lost_update_is_found_by_every_schedule() {
    let lost = |counts: &[u8]| counts.iter().filter(|&&count| count == 1).count();
    let random: Vec<u8> =
        (0..200).map(|seed| lost_update(schedule::RandomOrder::new(seed)).0).collect();
    let pct: Vec<u8> = (0..200).map(|seed| lost_update(Pct::new(seed, 2, 10)).0).collect();
    let mut every = Vec::new();
    every_schedule(|schedule| every.push(lost_update(schedule).0));
    let mut bounded = Vec::new();
    let chooser = shared(Exhaustive::new());
    loop {
        let schedule = Choices::new(Arc::clone(&chooser)).with_departures(2);
        bounded.push(lost_update(schedule).0);
        if !chooser.lock().unwrap().advance() {
            break;
        }
    }
    for counts in [&random, &pct, &every, &bounded] {
        let found = lost(counts);
        assert!(found > 0 && found < counts.len(), "{found} of {}", counts.len());
        assert!(counts.iter().all(|&count| count == 1 || count == 2));
    }
    assert!(bounded.len() < every.len(), "{} of {}", bounded.len(), every.len());
}

#[test]
fn the_same_seed_is_the_same_run_and_another_seed_another() {
    let hash = |seed| lost_update(schedule::RandomOrder::new(seed)).1.trace_hash();
    let hashes: BTreeSet<u64> = (0..50).map(hash).collect();
    assert!(hashes.len() > 10, "{}", hashes.len());
    assert!((0..50).all(|seed| hashes.contains(&hash(seed))));
    // On every machine: a change here makes every recorded trace hash void.
    assert_eq!(hash(1), 10_316_975_672_335_982_592);
}

#[test]
fn the_decisions_of_a_run_repeat_it() {
    for seed in 0..20 {
        let race = |options: SimOptions| {
            let mut sim = Sim::new(disk(4), options);
            for (name, byte) in [("one", 1), ("two", 2)] {
                let storage = sim.storage();
                sim.spawn(name, async move {
                    write(&storage, u64::from(byte), byte, 2).await.unwrap();
                    read(&storage, 1, 3).await;
                });
            }
            assert_eq!(sim.run(), StepResult::Done);
            sim
        };
        let first = race(SimOptions::new(schedule::RandomOrder::new(seed), Random::new(seed)));
        let order = shared(Playback::new(first.decisions().to_vec()));
        let choices = shared(Playback::new(first.choices()));
        let again = race(SimOptions::new(Choices::new(Arc::clone(&order)), Arc::clone(&choices)));
        assert_eq!(again.trace_hash(), first.trace_hash());
        for replay in [order, choices] {
            let replay = replay.lock().unwrap();
            assert_eq!((replay.drift(), replay.left_over()), (None, 0));
        }
    }
}

#[test]
fn completions_come_in_any_order() {
    let mut orders = BTreeSet::new();
    every_schedule(|schedule| {
        let mut sim = sim(schedule);
        let storage = sim.storage();
        sim.spawn("writer", async move {
            let (a, b) = both(write(&storage, 0, 1, 1), write(&storage, 1, 2, 1)).await;
            a.and(b).unwrap();
        });
        let mut order = Vec::new();
        loop {
            match sim.step() {
                StepResult::Completed { io, ok: true } => order.push(io.index),
                StepResult::Ran { submitted: 2 | 0, .. } => {}
                StepResult::Done => break,
                other => panic!("{other:?}"),
            }
        }
        orders.insert(order);
    });
    assert_eq!(orders, BTreeSet::from([vec![0, 1], vec![1, 0]]));
}

#[test]
fn a_crash_may_fall_after_every_submission_and_completion() {
    let mut sim = sim(schedule::RandomOrder::new(1));
    let storage = sim.storage();
    sim.spawn("writer", async move {
        write(&storage, 0, 1, 1).await.unwrap();
        storage.flush().await.unwrap();
    });
    let mut undecided = Vec::new();
    while sim.step() != StepResult::Done {
        let crashed = sim.disk().crash(Profile::TornLength, &mut Always(0));
        undecided.push(crashed.undecided().len());
    }
    // Submitted, completed, flush submitted, flush completed, task finished.
    assert_eq!(undecided, [1, 1, 1, 0, 0]);
}

#[test]
fn a_flush_covers_what_had_completed_when_it_was_submitted() {
    let mut open = BTreeSet::new();
    every_schedule(|schedule| {
        let mut sim = sim(schedule);
        let storage = sim.storage();
        sim.spawn("writer", async move {
            let (write, flush) = both(write(&storage, 0, 1, 1), storage.flush()).await;
            write.and(flush).unwrap();
        });
        sim.run();
        open.insert(sim.disk().crash(Profile::TornLength, &mut Always(0)).undecided());
    });
    assert_eq!(open, BTreeSet::from([vec![0]]), "the write was in flight in every order");
}

#[test]
fn a_dropped_future_leaves_its_write_in_flight() {
    let mut sim = sim(schedule::RandomOrder::new(1));
    let storage = sim.storage();
    let task = sim.spawn("writer", async move { write(&storage, 0, 1, 1).await.unwrap() });
    assert_eq!(sim.step(), StepResult::Ran { task, finished: false, submitted: 1 });
    sim.cancel(task);
    assert!(!sim.is_alive(task));
    assert_eq!(sim.in_flight().len(), 1);
    assert_eq!(sim.disk().crash(Profile::TornLength, &mut Always(0)).undecided(), [0]);
    assert!(matches!(sim.step(), StepResult::Completed { ok: true, .. }));
    assert_eq!(sim.step(), StepResult::Done);
    assert_eq!(sim.disk().image(&mut Always(0))[0], 1);
}

#[test]
fn settle_waits_for_orphans_and_for_nothing_else() {
    let mut orders = 0;
    every_schedule(|schedule| {
        let mut sim = sim(schedule);
        let (storage, other) = (sim.storage(), sim.storage());
        let dropped = sim.spawn("dropped", async move { drop(write(&storage, 0, 1, 1).await) });
        while sim.in_flight().is_empty() {
            sim.step();
        }
        if !sim.is_alive(dropped) {
            return;
        }
        sim.cancel(dropped);
        let storage = sim.storage();
        let slow = sim.spawn("slow", async move { drop(write(&other, 1, 2, 1).await) });
        let settles = sim.spawn("settles", async move { storage.settle().await.unwrap() });
        loop {
            let orphan = sim.in_flight().iter().any(|io| io.offset == 0);
            match sim.step() {
                StepResult::Ran { task, finished: true, .. } if task == settles => {
                    assert!(!orphan, "settled while the orphan could still land");
                    orders |= if sim.is_alive(slow) { 1 } else { 2 };
                }
                StepResult::Done => break,
                StepResult::Deadlock { tasks } => panic!("{tasks:?} wait for ever"),
                _ => {}
            }
        }
    });
    assert_eq!(orders, 3, "settle returned both before and after the write that is not an orphan");
}

#[test]
fn a_deadlock_is_reported_by_name() {
    let mut sim = sim(schedule::RandomOrder::new(1));
    let storage = sim.storage();
    sim.spawn("finishes", async move { write(&storage, 0, 1, 1).await.unwrap() });
    sim.spawn("hangs", pending());
    assert_eq!(sim.run(), StepResult::Deadlock { tasks: vec!["hangs".to_owned()] });
}

#[test]
fn whoever_asks_for_ever_and_never_lets_go_is_seen_to_hang() {
    let asks = |storage: SimStorage| async move { while storage.len().await.is_ok() {} };
    let settles = |storage: SimStorage| async move { while storage.settle().await.is_ok() {} };
    for settle in [false, true] {
        let mut sim = sim(schedule::RandomOrder::new(1));
        let storage = sim.storage();
        match settle {
            false => sim.spawn("asks", asks(storage)),
            true => sim.spawn("asks", settles(storage)),
        };
        assert_eq!(sim.run(), StepResult::Deadlock { tasks: vec!["asks".to_owned()] });
    }
    // What is refused takes a step, so that who drives the tasks can count.
    let mut sim = sim(schedule::RandomOrder::new(1));
    let storage = sim.storage();
    sim.spawn("tries", async move {
        while storage.read(1, IoBuf::zeroed(UNIT, UNIT)).await.1.is_err() {}
    });
    assert!((0..1_000).all(|_| matches!(sim.step(), StepResult::Ran { .. })));
}

#[test]
fn the_schedule_may_cancel_as_often_as_it_is_allowed_to() {
    let mut cancelled = BTreeSet::new();
    for seed in 0..50 {
        let schedule = schedule::RandomOrder::new(seed).cancelling(Ratio::new(1, 4));
        let mut options = SimOptions::new(schedule, Always(0));
        options.cancellations = 1;
        let mut sim = Sim::new(disk(8), options);
        for number in 0..3 {
            let storage = sim.storage();
            sim.spawn("writer", async move { write(&storage, number, 1, 1).await.unwrap() });
        }
        let mut count = 0;
        loop {
            match sim.step() {
                StepResult::Cancelled(task) => {
                    count += 1;
                    cancelled.insert(task.0);
                }
                StepResult::Done => break,
                _ => {}
            }
        }
        assert!(count <= 1);
    }
    assert_eq!(cancelled, BTreeSet::from([0, 1, 2]));
}

/// Always goes on with what is offered first.
struct First;

impl Schedule for First {
    fn pick(&mut self, _: &[Candidate]) -> usize {
        0
    }
}

#[test]
fn nothing_starves_beside_a_task_that_spins() {
    let mut sim = sim(First);
    let done = shared(false);
    let (storage, stop) = (sim.storage(), Arc::clone(&done));
    sim.spawn("spins", async move {
        while !*stop.lock().unwrap() {
            storage.pause().await;
        }
    });
    let storage = sim.storage();
    sim.spawn("works", async move {
        write(&storage, 0, 1, 1).await.unwrap();
        *done.lock().unwrap() = true;
    });
    let mut steps = 0;
    while sim.step() != StepResult::Done {
        steps += 1;
        assert!(steps < 4 * PATIENCE, "starved");
    }
}

/// Goal: patience is exact, and of two that have waited for as long the one offered first goes first. Method: two I/Os of one
/// step beside a task that spins.
#[test]
fn what_was_passed_over_goes_in_the_order_in_which_it_was_offered() {
    let mut sim = sim(First);
    let storage = sim.storage();
    sim.spawn("spins", async move {
        loop {
            storage.pause().await;
        }
    });
    let storage = sim.storage();
    sim.spawn("writes", async move {
        let (a, b) = both(write(&storage, 0, 1, 1), write(&storage, 1, 2, 1)).await;
        a.and(b).unwrap();
    });
    let mut ended = Vec::new();
    let mut submitted_at = 0;
    for step in 1..=3 * PATIENCE {
        match sim.step() {
            StepResult::Ran { submitted: 2, .. } => submitted_at = step,
            StepResult::Completed { io, .. } => ended.push((step - submitted_at, io.index)),
            _ => {}
        }
    }
    // The task could run from the first step on, its I/Os end from the step of their submission on.
    assert_eq!(submitted_at, 1 + PATIENCE + 1);
    assert_eq!(ended, [(PATIENCE + 1, 0), (PATIENCE + 2, 1)]);
}

#[test]
fn a_pause_lets_others_in_between_two_steps() {
    let mut seen = BTreeSet::new();
    every_schedule(|schedule| {
        let mut sim = sim(schedule);
        let count = shared(0);
        for name in ["one", "two"] {
            let (storage, count) = (sim.storage(), Arc::clone(&count));
            sim.spawn(name, async move {
                let before = *count.lock().unwrap();
                storage.pause().await;
                *count.lock().unwrap() = before + 1;
            });
        }
        sim.run();
        seen.insert(*count.lock().unwrap());
    });
    assert_eq!(seen, BTreeSet::from([1, 2]));
}

/// Goes on with the first of these that is offered.
struct Prefer(Vec<Candidate>);

impl Schedule for Prefer {
    fn pick(&mut self, candidates: &[Candidate]) -> usize {
        let offered = |wanted| candidates.iter().position(|candidate| candidate == wanted);
        self.0.iter().find_map(offered).unwrap_or(0)
    }
}

/// A reader of `units` into the cell that comes back and a writer of what `write` says, spawned in this order or the other
/// one. Both I/Os are in flight before either ends; then the one ends that `ends` numbers.
fn read_beside_write(
    disk: PossibleDisk,
    choices: &Shared<Exhaustive>,
    (read_first, ends): (bool, u64),
    units: std::ops::Range<u64>,
    (bytes, durability): (Vec<u8>, Durability),
) -> (Sim, Shared<Option<Vec<u8>>>) {
    let runs = [Candidate::Run(TaskId(0)), Candidate::Run(TaskId(1))];
    let order = Prefer(runs.into_iter().chain([Candidate::Complete(ends)]).collect());
    let mut sim = Sim::new(disk, SimOptions::new(order, Arc::clone(choices)));
    let found = shared(None);
    let spawn_reader = |sim: &mut Sim| {
        let (storage, found, units) = (sim.storage(), Arc::clone(&found), units.clone());
        sim.spawn("reader", async move {
            let read = read(&storage, units.start, (units.end - units.start) as usize).await;
            *found.lock().unwrap() = Some(read);
        });
    };
    if read_first {
        spawn_reader(&mut sim);
    }
    let storage = sim.storage();
    let first = unit(units.start);
    sim.spawn("writer", async move {
        let data: Vec<u8> = bytes.iter().flat_map(|&byte| [byte; UNIT]).collect();
        storage.write(first, IoBuf::copy_of(&data, UNIT), durability).await.1.unwrap();
    });
    if !read_first {
        spawn_reader(&mut sim);
    }
    (sim, found)
}

/// Goal: a read that overlaps a write in time returns the old value or the new one of each unit that both cover, and what is
/// there of the others. Method: whichever is submitted first, the write is durable before the read ends.
#[test]
fn a_read_that_overlaps_a_write_returns_either_per_unit() {
    for (read_first, write) in [(true, 1), (false, 0)] {
        let mut seen = BTreeSet::new();
        let choices = shared(Exhaustive::new());
        loop {
            let old = [[5; UNIT], [6; UNIT], [7; UNIT]].concat();
            let disk = PossibleDisk::from_extents(&Values::new(), unit(3), [(0, &old[..])]);
            let new = (vec![1, 2], Durability::Through);
            let (mut sim, found) =
                read_beside_write(disk, &choices, (read_first, write), 0..3, new);
            assert_eq!(sim.run(), StepResult::Done);
            assert_eq!(sim.breaches(), []);
            seen.insert(found.lock().unwrap().take().unwrap());
            if !choices.lock().unwrap().advance() {
                break;
            }
        }
        let expected = [[5, 6, 7], [5, 2, 7], [1, 6, 7], [1, 2, 7]].map(|units| units.to_vec());
        assert_eq!(seen, BTreeSet::from(expected), "read first: {read_first}");
    }
}

/// Goal: what a read has shown of a medium that a crash left open is decided, even below a write in flight. Method: the old
/// value of a unit, or the length of the file, is open; a read that overlaps a write ends first. If it has shown something
/// old, a crash can leave that or what is being written.
#[test]
fn an_overlapping_read_decides_what_it_has_shown_of_the_medium() {
    for (at, may_be) in [(0, [1, 5, 8]), (1, [0, 1, 8])] {
        let mut seen = BTreeSet::new();
        let choices = shared(Exhaustive::new());
        loop {
            let values = Values::new();
            let old = [5; UNIT];
            let mut disk = PossibleDisk::from_extents(&values, unit(1), [(0, &old[..])]);
            let keys = [values.intern(&[8; UNIT]); 2];
            let append = disk.submit_write(0, &keys, Durability::Cached, &mut Always(0));
            disk.complete(append);
            disk.crash_in_place(Profile::TornLength, &mut Always(0));
            let new = (vec![1], Durability::Cached);
            let (mut sim, found) = read_beside_write(disk, &choices, (true, 0), at..at + 1, new);
            while found.lock().unwrap().is_none() {
                sim.step();
            }
            let shown = found.lock().unwrap().take().unwrap()[0];
            let mut keys = Vec::new();
            sim.with_disk(|disk| disk.peek(at as u32, &mut keys));
            let left: Vec<u8> = keys.iter().map(|&key| values.bytes(key)[0]).collect();
            assert!(shown == 1 || left == [1, shown], "{shown} was read, {left:?} may be there");
            seen.insert(shown);
            if !choices.lock().unwrap().advance() {
                break;
            }
        }
        assert_eq!(seen, BTreeSet::from(may_be), "unit {at}");
    }
}

#[test]
fn overlapping_writes_in_flight_are_a_breach_that_names_both() {
    let breaches = |first: (IoKind, u64, u64), second: (IoKind, u64, u64)| {
        let mut sim = sim(First);
        for (kind, offset, len) in [first, second] {
            let storage = sim.storage();
            sim.spawn("task", async move {
                let buf = IoBuf::zeroed(len as usize, UNIT);
                match kind {
                    IoKind::Read => drop(storage.read(offset, buf).await),
                    IoKind::WriteZeroes => {
                        storage.write_zeroes(offset..offset + len).await.unwrap()
                    }
                    IoKind::Discard => storage.discard(offset..offset + len).await.unwrap(),
                    IoKind::SetLen => storage.set_len(offset).await.unwrap(),
                    IoKind::Flush => storage.flush().await.unwrap(),
                    _ => drop(storage.write(offset, buf, Durability::Cached).await),
                }
            });
        }
        // Tasks stand before completions, so both are submitted before either ends.
        for _ in 0..2 {
            assert!(matches!(sim.step(), StepResult::Ran { submitted: 1, .. }));
        }
        sim.breaches()
    };
    let write = (IoKind::Write, 512, 1024);
    for (other, breach) in [
        ((IoKind::Write, 1024, 512), true),
        ((IoKind::Write, 1536, 512), false),
        ((IoKind::Write, 0, 512), false),
        ((IoKind::WriteZeroes, 0, 1024), true),
        ((IoKind::Discard, 1024, 1024), true),
        ((IoKind::SetLen, 1024, 0), true),
        ((IoKind::SetLen, 0, 0), true),
        ((IoKind::SetLen, 1536, 0), false),
        ((IoKind::Read, 512, 512), false),
        ((IoKind::Flush, 0, 0), false),
    ] {
        let found = breaches(write, other);
        assert_eq!(found.len(), usize::from(breach), "{other:?}");
        if let [Breach::Overlap { first, second }] = found[..] {
            assert!(first.overlaps(&second) && first.index == 0 && second.index == 1);
        }
    }
}

#[test]
fn faults_reach_the_task_and_the_disk() {
    let fault = PlannedFault {
        at: FaultAt::Nth { kind: IoKind::Write, nth: 1 },
        fault: Fault::Enospc { landed: 1 },
    };
    let mut options = SimOptions::new(schedule::RandomOrder::new(1), Always(0));
    options.faults = Box::new(Planned(vec![fault]));
    let mut sim = Sim::new(disk(4), options);
    let storage = sim.storage();
    sim.spawn("writer", async move {
        write(&storage, 0, 1, 1).await.unwrap();
        let full = write(&storage, 1, 2, 2).await.unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&storage, 0, 4).await, [1, 2, 0, 0]);
        storage.write_zeroes(0..512).await.unwrap();
        storage.discard(512..1024).await.unwrap();
        storage.set_len(unit(6)).await.unwrap();
        assert_eq!(storage.len().await.unwrap(), unit(6));
        storage.flush().await.unwrap();
    });
    assert_eq!(sim.run(), StepResult::Done);
    let dump = sim.trace().dump(|offset| format!("unit {}", offset / 512));
    assert!(dump.contains("fail     #1    errno 28"), "{dump}");
    assert!(
        dump.contains("submit   #1    write         by writer 0x200+0x400 unit 1 bytes"),
        "{dump}"
    );
    let mut keys = Vec::new();
    sim.with_disk(|disk| disk.peek(0, &mut keys));
    assert_eq!(keys, [Key::ZERO]);
}

/// Goal: what a short transfer moved is there, and nothing else of it. Method: a write of three units and a read of two, each
/// cut after the first; then the same by a device that is full for two I/Os and has room again.
#[test]
fn short_transfers_and_full_devices_move_a_part() {
    let at = |kind| FaultAt::Nth { kind, nth: 0 };
    let short = |kind| PlannedFault { at: at(kind), fault: Fault::Short { landed: 1 } };
    let full = PlannedFault {
        at: FaultAt::Span { first: 3, count: 2 },
        fault: Fault::Enospc { landed: 0 },
    };
    let mut options = SimOptions::new(schedule::RandomOrder::new(1), Always(0));
    options.faults = Box::new(Planned(vec![short(IoKind::Write), short(IoKind::Read), full]));
    let mut sim = Sim::new(disk(0), options);
    let storage = sim.storage();
    sim.spawn("writer", async move {
        assert_eq!(write(&storage, 0, 7, 3).await.unwrap_err().raw_os_error(), Some(5));
        assert_eq!(storage.len().await.unwrap(), unit(1));
        let buf = IoBuf::copy_of(&[9; 1024], UNIT);
        let (buf, outcome) = storage.read(0, buf).await;
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(5));
        assert_eq!((buf[0], buf[511], buf[512], buf[1023]), (7, 7, 9, 9));
        assert_eq!(read(&storage, 0, 3).await, [7, 0, 0]);
        for _ in 0..2 {
            let error = write(&storage, 4, 8, 1).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        write(&storage, 4, 8, 1).await.unwrap();
        assert_eq!(read(&storage, 3, 2).await, [0, 8]);
    });
    assert_eq!(sim.run(), StepResult::Done);
    let mut keys = Vec::new();
    sim.with_disk(|disk| (1..3).for_each(|unit| disk.peek(unit, &mut keys)));
    assert_eq!(keys, [Key::ZERO; 2], "no unit past the cut can land");
}

/// Goal: what failed late lands over what is written without settling, and that is a breach; settled, it does not. Method: a
/// late write, its overwrite through the cache, with and without a settle between them; every option of the last look.
#[test]
fn a_late_write_lands_until_it_is_settled() {
    for (settles, values, breaches) in [(false, vec![1, 2], 1), (true, vec![2], 0)] {
        let at = FaultAt::Nth { kind: IoKind::Write, nth: 0 };
        let mut options = SimOptions::new(schedule::RandomOrder::new(1), Always(0));
        options.faults = Box::new(Planned(vec![PlannedFault { at, fault: Fault::Late }]));
        let mut sim = Sim::new(disk(2), options);
        let storage = sim.storage();
        sim.spawn("writer", async move {
            assert_eq!(write(&storage, 0, 1, 1).await.unwrap_err().raw_os_error(), Some(5));
            if settles {
                storage.settle().await.unwrap();
            }
            let buf = IoBuf::copy_of(&[2; UNIT], UNIT);
            storage.write(0, buf, Durability::Through).await.1.unwrap();
            read(&storage, 0, 1).await;
            write(&storage, 1, 3, 1).await.unwrap();
            storage.settle().await.unwrap();
        });
        assert_eq!(sim.run(), StepResult::Done);
        assert_eq!(sim.breaches().len(), breaches);
        assert!(matches!(
            sim.breaches().first(),
            None | Some(Breach::Overlap { first: Io { index: 0, .. }, .. })
        ));
        let mut keys = Vec::new();
        sim.with_disk(|disk| disk.peek(0, &mut keys));
        let mut found: Vec<u8> =
            keys.iter().map(|&key| sim.disk().values().bytes(key)[0]).collect();
        found.sort_unstable();
        assert_eq!(found, values, "settles: {settles}");
        let settled = sim.trace().dump(|_| String::new()).matches("settle\n").count();
        assert_eq!(settled, 1, "only where something was late");
    }
}

/// Goal: settling takes time, in which others may get ahead. Method: under every schedule of two tasks, one of which settles what
/// failed late; the other one's overwrite comes before or after, and is a breach exactly before.
#[test]
fn others_may_get_ahead_of_a_settle() {
    let mut seen = BTreeSet::new();
    every_schedule(|schedule| {
        let at = FaultAt::Nth { kind: IoKind::Write, nth: 0 };
        let mut options = SimOptions::new(schedule, Always(0));
        options.faults = Box::new(Planned(vec![PlannedFault { at, fault: Fault::Late }]));
        let mut sim = Sim::new(disk(1), options);
        let failed = sim.storage();
        sim.spawn("first", async move { drop(write(&failed, 0, 1, 1).await) });
        assert_eq!(sim.run(), StepResult::Done);
        let (settler, writer) = (sim.storage(), sim.storage());
        sim.spawn("settler", async move { settler.settle().await.unwrap() });
        sim.spawn("writer", async move { write(&writer, 0, 2, 1).await.unwrap() });
        assert_eq!(sim.run(), StepResult::Done);
        seen.insert(sim.breaches().len());
    });
    assert_eq!(seen, BTreeSet::from([0, 1]));
}

/// Goal: a write-through write may fail in its sync, and a sync that failed for good fails all later ones. Method: each meaning,
/// then a flush, a cached write and a write-through write.
#[test]
fn a_write_through_write_fails_in_its_sync() {
    for (failure, goes_on, left) in [
        (FlushFailure::RetrySafe, true, vec![]),
        (FlushFailure::CleanMarked, true, vec![0, 1]),
        (FlushFailure::Sticky, false, vec![0, 1, 2]),
    ] {
        let at = FaultAt::Nth { kind: IoKind::WriteThrough, nth: 0 };
        let fault = Fault::Through(failure);
        let mut options = SimOptions::new(schedule::RandomOrder::new(1), Always(0));
        options.faults = Box::new(Planned(vec![PlannedFault { at, fault }]));
        let mut sim = Sim::new(disk(3), options);
        let storage = sim.storage();
        sim.spawn("writer", async move {
            let through = async |first: u64| {
                let buf = IoBuf::copy_of(&[9; UNIT], UNIT);
                storage.write(unit(first), buf, Durability::Through).await.1
            };
            write(&storage, 0, 1, 1).await.unwrap();
            assert_eq!(through(1).await.unwrap_err().raw_os_error(), Some(5));
            assert_eq!(storage.flush().await.is_ok(), goes_on);
            assert_eq!(through(2).await.is_ok(), goes_on);
        });
        assert_eq!(sim.run(), StepResult::Done);
        let crashed = sim.disk().crash(Profile::TornLength, &mut Always(0));
        assert_eq!(crashed.undecided(), left, "{failure:?}");
    }
}

/// Goal: a sync that fails after the future of its operation was dropped is heard of, and nothing else is. Method: drop it in
/// flight or when it has ended and nobody has looked yet; the next settle reports it, once.
#[test]
fn settle_reports_the_failure_of_a_dropped_sync() {
    let clean = FlushFailure::CleanMarked;
    for (kind, fault, reported) in [
        (IoKind::Flush, Some(Fault::Flush(clean)), Err(Some(5))),
        (IoKind::Flush, None, Ok(())),
        (IoKind::WriteThrough, Some(Fault::Through(clean)), Err(Some(5))),
        (IoKind::WriteThrough, Some(Fault::Eio), Err(Some(5))),
        (IoKind::WriteThrough, Some(Fault::Late), Err(Some(5))),
        (IoKind::WriteThrough, None, Ok(())),
        (IoKind::Write, Some(Fault::Flush(clean)), Ok(())),
        (IoKind::Write, Some(Fault::Late), Ok(())),
        (IoKind::Write, None, Ok(())),
    ] {
        let fails = fault.is_some();
        for ends_first in [false, true] {
            let mut options = SimOptions::new(First, Always(0));
            if let Some(fault) = fault {
                let at = FaultAt::Nth { kind, nth: 0 };
                options.faults = Box::new(Planned(vec![PlannedFault { at, fault }]));
            }
            let mut sim = Sim::new(disk(1), options);
            let storage = sim.storage();
            let dropped = sim.spawn("dropped", async move {
                drop(match kind {
                    IoKind::Flush => storage.flush().await,
                    IoKind::WriteThrough => {
                        let buf = IoBuf::copy_of(&[1; UNIT], UNIT);
                        storage.write(0, buf, Durability::Through).await.1
                    }
                    _ => write(&storage, 0, 1, 1).await,
                });
            });
            assert!(matches!(sim.step(), StepResult::Ran { submitted: 1, .. }));
            if ends_first {
                assert!(matches!(sim.step(), StepResult::Completed { ok, .. } if ok != fails));
            }
            sim.cancel(dropped);
            let heard = shared(Vec::new());
            let (storage, told) = (sim.storage(), Arc::clone(&heard));
            sim.spawn("settler", async move {
                for _ in 0..2 {
                    let result = storage.settle().await.map_err(|error| error.raw_os_error());
                    told.lock().unwrap().push(result);
                }
            });
            assert_eq!(sim.run(), StepResult::Done);
            let heard = heard.lock().unwrap();
            assert_eq!(*heard, [reported, Ok(())], "{kind:?} {fault:?}, {ends_first}");
        }
    }
}

/// Goal: what is in flight in one file bears on no I/O of the other, nor on what a crash left open there. Method: a cut of the first file, a read of it that goes on past
/// its room, and a write and a flush of the second, all in flight together.
#[test]
fn files_of_one_disk_do_not_meet() {
    let explored = every_schedule(|schedule| {
        let mut disk = disk(2).with_second(4, 2);
        let key = disk.values().intern(&[9; UNIT]);
        disk.submit_write(5, &[key], Durability::Cached, &mut Always(0));
        disk.crash_in_place(Profile::Torn, &mut Always(0));
        let mut sim = Sim::new(disk, SimOptions::new(schedule, Always(u32::MAX)));
        let first = sim.storage();
        let second = first.second().unwrap();
        let seen = shared(Vec::new());
        let (cut, reader, writer) = (first.clone(), first, second.clone());
        sim.spawn("cut", async move { cut.set_len(0).await.unwrap() });
        let found = Arc::clone(&seen);
        sim.spawn("read", async move {
            let read = read(&reader, 0, 6).await;
            *found.lock().unwrap() = read;
        });
        sim.spawn("write", async move {
            write(&writer, 0, 7, 1).await.unwrap();
            writer.flush().await.unwrap();
            assert_eq!(writer.len().await.unwrap(), unit(2));
        });
        assert_eq!(sim.run(), StepResult::Done);
        assert_eq!(sim.breaches(), []);
        assert_eq!(*seen.lock().unwrap(), [0; 6]);
        let disk = sim.disk();
        assert_eq!(disk.possible_lengths(), [2, 0]);
        assert_eq!(disk.possible_lengths_of(File::Second), [2]);
        assert_eq!((disk.undecided(), disk.single(4).is_some()), (vec![5], true));
    });
    assert!(explored > 100, "{explored}");
}
