//! The I/O of a life or of one step of recovery, with its contents, so that the disk of any moment can be made again, also
//! with a flush that nobody asked for.
//!
//! ```text
//!   start --event--event--event--|--event--event--> disk
//!                                `-- flush: submitted and completed here, unknown to the subject
//! ```
//!
//! The invariant: without such a flush the disk that is made again allows exactly what the real one allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, PoisonError};

use faultfs::chooser::Always;
use faultfs::disk::{File, FlushId, Landing, PossibleDisk, WriteId};
use faultfs::fault::{Fault, FaultPlan, Planned};
use faultfs::profile::FlushFailure;
use faultfs::trace::{Event, Io, IoKind, Trace};
use faultfs::values::{Key, Values};
use model::guest::Guest;
use qcow2_core::storage::{Durability, IoBuf, Limits, Storage};

use crate::any::AnySubject;
use crate::call::Files;
use crate::life::{self, Cause};
use crate::probe::Probes;
use crate::trial::{self, At, Trial};

/// I/O with its contents.
#[derive(Clone)]
pub(super) struct Timeline {
    /// The disk before the first event.
    pub(super) start: PossibleDisk,
    /// What happened.
    pub(super) events: Vec<Event>,
    /// What each unit of a write was given, by index of the I/O.
    pub(super) contents: BTreeMap<u64, Vec<Key>>,
    /// I/Os that the storage refused: they had no effect.
    pub(super) refused: BTreeSet<u64>,
    faults: Planned,
}

impl Timeline {
    /// A timeline without faults, of a step of recovery.
    pub(super) fn of_step(
        start: PossibleDisk,
        trace: &Trace,
        written: &Mutex<Vec<Vec<u8>>>,
        values: &Values,
    ) -> Self {
        let written = written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut contents = BTreeMap::new();
        let mut next = written.iter();
        for event in trace.events() {
            if let Event::Submit { io, .. } = event
                && matches!(io.kind, IoKind::Write | IoKind::WriteThrough)
                && let Some(bytes) = next.next()
            {
                let mut keys = Vec::new();
                values.intern_all(bytes, &mut keys);
                contents.insert(io.index, keys);
            }
        }
        let (events, refused) = (trace.events().to_vec(), BTreeSet::new());
        Self { start, events, contents, refused, faults: Planned::default() }
    }

    /// Whether `io`, which failed, could land until the storage was settled.
    pub(super) fn is_late(&self, io: &Io) -> bool {
        self.faults.striking(io).is_some_and(|by| by.fault == Fault::Late)
    }

    /// What `io` gave to the `nth` of its units.
    pub(super) fn content(&self, io: &Io, nth: u32) -> Key {
        let keys = self.contents.get(&io.index);
        keys.and_then(|keys| keys.get(nth as usize)).copied().unwrap_or(Key::ZERO)
    }

    /// The disk after the first `until` events.
    pub(super) fn disk(&self, until: usize) -> PossibleDisk {
        let mut again = self.again();
        again.go_to(until);
        again.disk
    }

    /// From its start on.
    pub(super) fn again(&self) -> Again<'_> {
        let (disk, faults) = (self.start.clone(), self.faults.clone());
        Again { timeline: self, at: 0, disk, running: BTreeMap::new(), faults }
    }

    fn submit(&self, disk: &mut PossibleDisk, io: &Io) -> Running {
        let (first, mut chooser) = (unit_of(io.offset), Always(0));
        let keys = || (0..io.units()).map(|nth| self.content(io, nth)).collect::<Vec<_>>();
        let mut write = |durability| disk.submit_write(first, &keys(), durability, &mut chooser);
        Running::Write(match io.kind {
            IoKind::Read => return Running::Read,
            IoKind::Flush => return Running::Flush(disk.submit_flush_of(io.file)),
            IoKind::Write => write(Durability::Cached),
            IoKind::WriteThrough => write(Durability::Through),
            IoKind::WriteZeroes => disk.submit_zeroes(first, io.units(), &mut chooser),
            IoKind::Discard => disk.submit_discard(first, io.units(), &mut chooser),
            IoKind::SetLen => disk.submit_set_len_of(io.file, length_of(disk, io), &mut chooser),
        })
    }
}

/// A timeline on its way once more.
#[derive(Clone)]
pub(super) struct Again<'a> {
    timeline: &'a Timeline,
    /// How many events came until now.
    at: usize,
    /// The disk now.
    pub(super) disk: PossibleDisk,
    running: BTreeMap<u64, (Io, Running)>,
    faults: Planned,
}

impl Again<'_> {
    /// Goes on until so many events came.
    pub(super) fn go_to(&mut self, until: usize) {
        debug_assert!(until >= self.at, "nothing is undone");
        let Self { timeline, at, disk, running, faults } = self;
        let until = until.min(timeline.events.len());
        for event in timeline.events.get(*at..until).unwrap_or_default() {
            match event {
                Event::Submit { io, .. } if !timeline.refused.contains(&io.index) => {
                    running.insert(io.index, (*io, timeline.submit(disk, io)));
                }
                Event::Complete { index, .. } => {
                    if let Some((io, what)) = running.remove(index) {
                        complete(disk, &io, what);
                    }
                }
                Event::Fail { index, .. } => {
                    if let Some((io, what)) = running.remove(index) {
                        fail(disk, what, faults.fault(&io));
                    }
                }
                Event::Settle => disk.settle(),
                _ => {}
            }
        }
        *at = until.max(*at);
    }

    /// A flush of all that there is, unknown to the subject.
    pub(super) fn flush(&mut self) {
        let second = self.disk.second().is_some();
        for file in File::BOTH.into_iter().filter(|file| file.is_first() || second) {
            let flush = self.disk.submit_flush_of(file);
            let _ = self.disk.complete_flush(flush);
        }
    }
}

#[derive(Clone, Copy)]
enum Running {
    Read,
    Write(WriteId),
    Flush(FlushId),
}

fn complete(disk: &mut PossibleDisk, io: &Io, what: Running) {
    match what {
        Running::Read => {
            let first = unit_of(io.offset);
            for unit in first..(first + io.units()).min(disk.extent()) {
                disk.read(unit, &mut Always(0));
            }
        }
        Running::Write(write) => {
            disk.complete(write);
        }
        Running::Flush(flush) => {
            let _ = disk.complete_flush(flush);
        }
    }
}

fn fail(disk: &mut PossibleDisk, what: Running, fault: Option<Fault>) {
    match (what, fault) {
        (Running::Read, _) => {}
        (Running::Write(write), Some(Fault::Enospc { landed } | Fault::Short { landed })) => {
            disk.fail(write, Landing::First(landed));
        }
        (Running::Write(write), Some(Fault::Late)) => disk.fail(write, Landing::Late),
        (Running::Write(write), Some(Fault::Through(failure))) => disk.fail_sync(write, failure),
        // It failed because an earlier sync had failed for good.
        (Running::Write(write), None) => {
            disk.complete(write);
        }
        (Running::Write(write), _) => disk.fail(write, Landing::Any),
        (Running::Flush(flush), Some(Fault::Flush(failure))) => disk.fail_flush(flush, failure),
        (Running::Flush(flush), Some(_)) => disk.fail_flush(flush, FlushFailure::RetrySafe),
        (Running::Flush(flush), None) => {
            let _ = disk.complete_flush(flush);
        }
    }
}

/// The length, in units, to which a change of length sets its file.
pub(super) fn length_of(disk: &PossibleDisk, io: &Io) -> u32 {
    let begin = if io.file.is_first() { 0 } else { disk.second().unwrap_or(0) };
    unit_of(io.offset) - begin
}

/// The unit of a byte offset.
pub(super) fn unit_of(offset: u64) -> u32 {
    u32::try_from(offset / 512).unwrap_or(u32::MAX)
}

/// A moment of a life.
pub(super) struct Seen {
    /// How many events of the timeline came before it.
    pub(super) at: usize,
    /// What it follows.
    pub(super) cause: Cause,
    /// Task and operation.
    pub(super) concerns: Option<(usize, usize)>,
    /// The reference disk.
    pub(super) guest: Guest,
}

/// A life again, to its end, with everything that is needed to tell it.
pub(super) struct Played {
    /// Its I/O.
    pub(super) timeline: Timeline,
    /// Every moment at which the power could fail.
    pub(super) moments: Vec<Seen>,
    /// Events of the timeline before the power failed.
    pub(super) cut: usize,
    /// The disk then, writes pending.
    pub(super) live: PossibleDisk,
    /// The reference disk then.
    pub(super) guest: Guest,
    /// The disk when nothing was left to do.
    pub(super) last: PossibleDisk,
}

impl Played {
    /// Whether the timeline makes the disk again as it was.
    pub(super) fn is_faithful(&self) -> bool {
        self.timeline.disk(self.cut).allowed_hash() == self.live.allowed_hash()
    }
}

/// Plays life `number` of a trial; the lives before it must pass.
pub(super) fn play(subject: &AnySubject, trial: &Trial, number: usize) -> Option<Played> {
    let (mut start, guest) = trial::led_to(subject, trial, number).ok()??;
    // As `trial::run` does before each life: what this read decides stays decided.
    let mut bench = crate::recover::Bench::new(subject.clone(), trial.session(), trial.profile);
    trial::inherited(&mut bench, &mut start, &guest);
    let life = &trial.lives[number];
    let script = life.script(trial.session());
    let mut moments = Vec::new();
    let mut contents: BTreeMap<u64, Vec<Key>> = BTreeMap::new();
    let mut cut = None;
    let mut started = BTreeSet::new();
    let observe = |moment: &life::Moment<'_>| {
        let sim = moment.sim;
        for io in sim.in_flight() {
            if started.insert(io.index) && matches!(io.kind, IoKind::Write | IoKind::WriteThrough) {
                let first = unit_of(io.offset);
                let newest = |disk: &PossibleDisk| {
                    (first..first + io.units()).map(|unit| newest(disk, unit)).collect()
                };
                contents.insert(io.index, sim.with_disk(newest));
            }
        }
        let at = sim.trace().events().len();
        if life.at == At::Event(moment.event) {
            cut = Some((at, sim.disk(), moment.guest.clone()));
        }
        let (cause, concerns) = (moment.cause, moment.concerns);
        moments.push(Seen { at, cause, concerns, guest: moment.guest.clone() });
        ControlFlow::Continue(())
    };
    let probes = &mut Probes::default();
    let end = life::run(subject, start.clone(), guest, &script, probes, observe);
    let events = end.sim.trace().events().to_vec();
    let all = events.iter().filter_map(|event| match event {
        Event::Submit { io, .. } => Some(io.index),
        _ => None,
    });
    let refused = all.filter(|index| !started.contains(index)).collect();
    let faults = life.faults.clone();
    let timeline = Timeline { start, events, contents, refused, faults };
    let whole = timeline.events.len();
    let (cut, live, guest) = cut.unwrap_or_else(|| (whole, end.disk.clone(), end.guest.clone()));
    Some(Played { timeline, moments, cut, live, guest, last: end.disk })
}

fn newest(disk: &PossibleDisk, unit: u32) -> Key {
    let mut keys = Vec::new();
    disk.peek(unit, &mut keys);
    keys.first().copied().unwrap_or(Key::ZERO)
}

/// A storage that keeps what is written to another one.
#[derive(Clone)]
pub(super) struct Kept<S> {
    /// The other one.
    pub(super) inner: S,
    /// The bytes of every write, in order.
    pub(super) written: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl<S: Files + Clone> Files for Kept<S> {
    fn data_file(&self) -> Option<Self> {
        let inner = self.inner.data_file()?;
        Some(Self { inner, written: Arc::clone(&self.written) })
    }
}

impl<S: Storage> Storage for Kept<S> {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn writable(&self) -> bool {
        self.inner.writable()
    }

    async fn len(&self) -> io::Result<u64> {
        self.inner.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        self.inner.read(offset, buf).await
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, io::Result<()>) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(buf.to_vec());
        self.inner.write(offset, buf, durability).await
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.inner.flush().await
    }

    async fn settle(&self) -> io::Result<()> {
        self.inner.settle().await
    }

    async fn pause(&self) {
        self.inner.pause().await;
    }
}

#[cfg(test)]
mod tests {
    use faultfs::profile::Profile;
    use faultfs::trace::Event;

    use super::play;
    use crate::any::AnySubject;
    use crate::capabilities::Capabilities;
    use crate::subject::Qcow2Core;
    use crate::trial::{self, Survivors, Trial, TrialLife};
    use crate::workload::{FaultKind, LifePlan, Scope, Shape, plan};

    /// Goal: the timeline makes the disk again whatever failed. Method: lives with each kind of fault, to their ends.
    #[test]
    fn a_disk_is_made_again_from_io_that_failed() {
        for kind in FaultKind::ALL {
            let scope = Scope { fault: Some(kind), tiny: true, ..Scope::default() };
            let mut failed = 0;
            for seed in 0..24 {
                let plan = plan(seed, &scope, &Capabilities::everything());
                let lives = vec![TrialLife::of(&plan.lives[0])];
                let trial = Trial { lives, ..Trial::planned(&plan, Profile::TornLength) };
                let Some(played) = play(&AnySubject::of(&Qcow2Core::default()), &trial, 0) else {
                    continue;
                };
                let events = &played.timeline.events;
                failed += events.iter().filter(|event| matches!(event, Event::Fail { .. })).count();
                assert!(played.is_faithful(), "{kind}, seed {seed}");
            }
            assert!(failed > 0 || kind == FaultKind::Dropped, "{kind}");
        }
    }

    /// Goal: what is shown of a life is that life, on the disk that the lives before it left, recovered or not. Method: trials of several lives, of
    /// some of which each begins on what the power cut before it left.
    #[test]
    fn a_life_is_played_again_from_where_the_trial_had_it() {
        let mut unrecovered = 0;
        for seed in 0..24 {
            let shape = [None, Some(Shape::Working)][seed as usize % 2];
            let scope = Scope { shape, tiny: true, ..Scope::default() };
            let plan = plan(seed, &scope, &Capabilities::everything());
            let life = |life: &LifePlan| {
                let leaf = Survivors::Seed(seed);
                TrialLife { leaf, ..TrialLife::of(life) }
            };
            let lives = plan.lives.iter().map(life).collect();
            let trial = Trial { lives, ..Trial::planned(&plan, Profile::TornLength) };
            let subject = AnySubject::of(&Qcow2Core::default());
            let outcome = trial::run(&subject, &trial).unwrap();
            assert!(outcome.failure.is_none(), "seed {seed}");
            for (number, record) in outcome.lives.iter().enumerate().skip(1) {
                let played = play(&subject, &trial, number).unwrap();
                assert_eq!(played.live.allowed_hash(), record.disk.allowed_hash(), "seed {seed}");
                unrecovered += usize::from(trial.lives[number - 1].unrecovered);
            }
        }
        assert!(unrecovered > 8, "{unrecovered}");
    }
}
