//! The direct driver: every operation completes when it is polled. For recovery, for judging and for benchmarks.
//!
//! Invariant: there is no schedule, so what runs on it is a function of the disk, of the chooser's answers and of the
//! fault plan. The power may be set to fail at the n-th operation that matters to a crash: that one is submitted and
//! never ends, nothing after it begins, and the disk can then be crashed. Work that calls for ever without an operation that the
//! disk takes is stopped at one of its calls, so that it is seen to hang.

use std::future::{Future, pending};
use std::io;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use storage::{Durability, IoBuf, Limits, Storage, UNIT};

use crate::chooser::Chooser;
use crate::device::{Breach, Device, MAX_IDLE, span};
use crate::disk::{File, PossibleDisk};
use crate::fault::FaultPlan;
use crate::trace::{IoKind, Trace};

/// How to run a [`Direct`] storage; the default fails never and traces nothing.
#[derive(Default)]
pub struct DirectOptions {
    /// Index of the operation at which the power fails, among those that change or flush something.
    pub crash_at: Option<u64>,
    /// What fails.
    pub faults: Option<Box<dyn FaultPlan + Send>>,
    /// Whether to keep a trace.
    pub trace: bool,
    /// Whether to keep a fork of the disk after the submission of each operation that changes something: what a power
    /// cut there would find. See [`Direct::take_forks`].
    pub forks: bool,
    /// Whether to keep what was done, so that it can be done [once more](Direct::again) elsewhere.
    pub record: bool,
}

/// One operation that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What it was.
    pub kind: IoKind,
    /// The file that it went to.
    pub file: File,
    /// The bytes of this file that it covered; of a length change, the new length twice.
    pub range: Range<u64>,
    /// What it wrote.
    pub data: Box<[u8]>,
}

/// How many operations were submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Submitted {
    /// Reads.
    pub reads: u64,
    /// Writes, zeroings, discards, length changes.
    pub updates: u64,
    /// Flushes.
    pub flushes: u64,
}

/// A storage over a possible disk without a schedule: one file of it. Clones share the disk.
pub struct Direct<C> {
    shared: Arc<Mutex<Option<Powered<C>>>>,
    limits: Limits,
    file: File,
    /// Calls since the last operation.
    idle: Arc<AtomicU32>,
}

impl<C> Clone for Direct<C> {
    fn clone(&self) -> Self {
        let (shared, idle) = (Arc::clone(&self.shared), Arc::clone(&self.idle));
        Self { shared, limits: self.limits, file: self.file, idle }
    }
}

struct Powered<C> {
    device: Device,
    chooser: C,
    crash_at: u64,
    crashed: bool,
    /// Forks kept so far, if they are kept.
    forks: Option<Vec<PossibleDisk>>,
    /// What was done so far, if it is kept.
    record: Option<Vec<Done>>,
}

/// What is left when the power is off.
pub struct Remains<C> {
    /// The disk, with its writes still pending.
    pub disk: PossibleDisk,
    /// Who chose.
    pub chooser: C,
    /// How the contract was broken.
    pub breaches: Vec<Breach>,
    /// What happened, if it was traced.
    pub trace: Option<Trace>,
    /// How many operations there were.
    pub counts: Submitted,
    /// Whether the power failed at the operation that the options named.
    pub crashed: bool,
    /// The forks that nobody has taken, oldest first.
    pub forks: Vec<PossibleDisk>,
    /// What was done, if it was recorded, oldest first.
    pub record: Vec<Done>,
}

impl<C: Chooser + Send + 'static> Direct<C> {
    /// A storage over `disk` that never fails: its first file.
    pub fn new(disk: PossibleDisk, chooser: C) -> Self {
        Self::with_options(disk, chooser, DirectOptions::default())
    }

    /// A storage over `disk`: its first file.
    pub fn with_options(disk: PossibleDisk, chooser: C, options: DirectOptions) -> Self {
        let limits = disk.limits();
        let mut device = Device::new(disk);
        device.faults = options.faults;
        device.trace = options.trace.then(Trace::new);
        let crash_at = options.crash_at.unwrap_or(u64::MAX);
        let forks = options.forks.then(Vec::new);
        let record = options.record.then(Vec::new);
        let powered = Powered { device, chooser, crash_at, crashed: false, forks, record };
        let idle = Arc::new(AtomicU32::new(0));
        Self { shared: Arc::new(Mutex::new(Some(powered))), limits, file: File::First, idle }
    }

    /// The second file of the same disk, if it has one; none once the power is off. What `settle` ends is of both files.
    #[must_use]
    pub fn second(&self) -> Option<Self> {
        let second = self.lock().as_ref()?.device.disk.second();
        second.map(|_| Self { file: File::Second, ..self.clone() })
    }

    /// A storage in the same state that shares nothing with this one but the store of values: each goes its own way from
    /// here. It keeps no forks of the disk yet.
    ///
    /// # Panics
    /// If the power is off, or if there is a fault plan: that has one future.
    #[must_use]
    pub fn fork(&self) -> Self
    where
        C: Clone,
    {
        let shared = self.lock();
        let Powered { device, chooser, crash_at, crashed, .. } =
            shared.as_ref().expect("the power is on");
        let powered = Powered {
            device: device.fork(),
            chooser: chooser.clone(),
            crash_at: *crash_at,
            crashed: *crashed,
            forks: None,
            record: None,
        };
        let idle = Arc::new(AtomicU32::new(self.idle.load(Ordering::Relaxed)));
        let shared = Arc::new(Mutex::new(Some(powered)));
        Self { shared, limits: self.limits, file: self.file, idle }
    }

    /// Takes the disk away from the storage, whoever still holds it: nothing they call ever ends.
    ///
    /// # Panics
    /// If the power is off already.
    pub fn power_off(&self) -> Remains<C> {
        let Powered { device, chooser, crashed, forks, record, .. } =
            self.lock().take().expect("the power is switched off once");
        let counts = counts(&device);
        let Device { disk, breaches, trace, .. } = device;
        let (forks, record) = (forks.unwrap_or_default(), record.unwrap_or_default());
        Remains { disk, chooser, breaches, trace, counts, crashed, forks, record }
    }

    /// Does once more what was recorded on another disk, each operation on its file, without whoever did it there. Reads
    /// are left out.
    ///
    /// # Panics
    /// If something fails that did not fail there.
    pub fn again(&self, record: &[Done]) {
        for done in record.iter().filter(|done| done.kind != IoKind::Read) {
            let Done { kind, file, range, data } = done;
            let done = self.update(*file, *kind, range.clone(), data);
            assert!(matches!(done, Some(Ok(()))), "{kind:?} at {range:?} failed: {done:?}");
        }
    }

    /// Looks at the disk, with the chooser at hand.
    ///
    /// # Panics
    /// If the power is off.
    pub fn with_disk<R>(&self, look: impl FnOnce(&mut PossibleDisk, &mut C) -> R) -> R {
        let mut shared = self.lock();
        let Powered { device, chooser, .. } = shared.as_mut().expect("the power is on");
        look(&mut device.disk, chooser)
    }

    /// Takes the forks kept so far, oldest first, and says whether to keep more. A fork holds everything that had been
    /// submitted by then: with writes that are torn unit by unit it allows all that the disk allowed since the fork
    /// before it, because a completion takes nothing away until a flush, and a flush only narrows.
    ///
    /// # Panics
    /// If the power is off.
    pub fn take_forks(&self, keep: bool) -> Vec<PossibleDisk> {
        let mut shared = self.lock();
        let forks = &mut shared.as_mut().expect("the power is on").forks;
        std::mem::replace(forks, keep.then(Vec::new)).unwrap_or_default()
    }

    /// How many operations were submitted so far; none once the power is off.
    pub fn counts(&self) -> Submitted {
        self.lock().as_ref().map_or_else(Submitted::default, |powered| counts(&powered.device))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Powered<C>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call that did nothing; whether another one may follow.
    fn idles(&self) -> bool {
        self.idle.fetch_add(1, Ordering::Relaxed) < MAX_IDLE
    }

    /// Does one operation that changes something; none if the power fails at it.
    fn update(
        &self,
        file: File,
        kind: IoKind,
        range: Range<u64>,
        data: &[u8],
    ) -> Option<io::Result<()>> {
        let mut shared = self.lock();
        let Powered { device, chooser, crash_at, crashed, forks, record } = shared.as_mut()?;
        if *crashed {
            return None;
        }
        let io = match device.describe(file, kind, range.clone(), data, data, None) {
            Ok(io) => io,
            Err(refused) => return self.idles().then_some(Err(refused)),
        };
        self.idle.store(0, Ordering::Relaxed);
        if let Some(record) = record {
            record.push(Done { kind, file, range, data: data.into() });
        }
        let started = device.start(io, data, chooser);
        if let Some(forks) = forks.as_mut().filter(|_| kind != IoKind::Flush) {
            forks.push(device.disk.clone());
        }
        if *crash_at == 0 {
            *crashed = true;
            return None;
        }
        *crash_at -= 1;
        Some(device.end(&started))
    }

    fn fill(&self, offset: u64, buf: &mut IoBuf) -> Option<io::Result<()>> {
        let mut shared = self.lock();
        let Powered { device, chooser, crashed, record, .. } = shared.as_mut()?;
        if *crashed {
            return None;
        }
        let range = span(offset, buf);
        if let Some(record) = record {
            let (kind, range, data) = (IoKind::Read, range.clone(), Box::default());
            record.push(Done { kind, file: self.file, range, data });
        }
        let io = match device.describe(self.file, IoKind::Read, range, &[], buf, None) {
            Ok(io) => io,
            Err(refused) => return self.idles().then_some(Err(refused)),
        };
        self.idle.store(0, Ordering::Relaxed);
        let started = device.start(io, &[], chooser);
        Some(device.end_read(&started, buf, |disk, unit| disk.read(unit, chooser)))
    }
}

fn counts(device: &Device) -> Submitted {
    let count = |kinds: &[IoKind]| kinds.iter().map(|&kind| device.count(kind)).sum();
    let updates =
        [IoKind::Write, IoKind::WriteThrough, IoKind::WriteZeroes, IoKind::Discard, IoKind::SetLen];
    Submitted {
        reads: count(&[IoKind::Read]),
        updates: count(&updates),
        flushes: count(&[IoKind::Flush]),
    }
}

/// The outcome, or never.
async fn or_never<T>(outcome: Option<T>) -> T {
    match outcome {
        Some(outcome) => outcome,
        None => pending().await,
    }
}

impl<C: Chooser + Send + 'static> Storage for Direct<C> {
    fn limits(&self) -> Limits {
        self.limits
    }

    async fn len(&self) -> io::Result<u64> {
        let len = match self.lock().as_mut() {
            Some(Powered { device, chooser, crashed: false, .. }) if self.idles() => {
                Some(device.disk.len_of(self.file, chooser))
            }
            _ => None,
        };
        Ok(u64::from(or_never(len).await) * UNIT as u64)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        or_never(self.update(self.file, IoKind::SetLen, len..len, &[])).await
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (IoBuf, io::Result<()>) {
        let outcome = or_never(self.fill(offset, &mut buf)).await;
        (buf, outcome)
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, io::Result<()>) {
        let kind = IoKind::of_write(durability);
        let outcome = or_never(self.update(self.file, kind, span(offset, &buf), &buf)).await;
        (buf, outcome)
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        or_never(self.update(self.file, IoKind::WriteZeroes, range, &[])).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        or_never(self.update(self.file, IoKind::Discard, range, &[])).await
    }

    async fn flush(&self) -> io::Result<()> {
        or_never(self.update(self.file, IoKind::Flush, 0..0, &[])).await
    }

    async fn settle(&self) -> io::Result<()> {
        self.pause().await;
        if let Some(Powered { device, crashed: false, .. }) = self.lock().as_mut() {
            device.settle();
        }
        Ok(())
    }

    async fn pause(&self) {
        if !self.idles() {
            pending().await
        }
    }
}

/// Runs `future` as far as it goes without anybody's help: its value, or none if it waits for something that will not
/// come, as after a power cut.
pub fn run<T>(future: impl Future<Output = T>) -> Option<T> {
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let mut future = pin!(future);
    // Most futures are ready at once and need no waker that works.
    if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return Some(value);
    }
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    while woken.0.swap(false, Ordering::Relaxed) {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::ErrorKind;
    use std::task::Poll;

    use storage::{Durability, IoBuf, Storage, UNIT};

    use super::{Direct, DirectOptions, Submitted, run};
    use crate::chooser::{Always, Random};
    use crate::device::{Breach, MAX_IDLE};
    use crate::disk::{File, MAX_UNITS, PossibleDisk};
    use crate::fault::{Fault, FaultAt, FaultPlan, Planned, PlannedFault};
    use crate::profile::Profile;
    use crate::trace::{Io, IoKind};
    use crate::values::Values;

    fn buf(byte: u8, units: usize) -> IoBuf {
        IoBuf::copy_of(&vec![byte; units * UNIT], UNIT)
    }

    async fn read(storage: &impl Storage, offset: u64, len: usize) -> Vec<u8> {
        let (buf, outcome) = storage.read(offset, IoBuf::copy_of(&vec![0xee; len], UNIT)).await;
        outcome.unwrap();
        buf.to_vec()
    }

    #[test]
    fn work_that_does_nothing_for_ever_is_ended() {
        let storage = Direct::new(PossibleDisk::new(&Values::new(), 4), Always(0));
        let busy = async |steps: u32| {
            for _ in 0..steps {
                storage.pause().await;
            }
        };
        assert_eq!(run(busy(MAX_IDLE)), Some(()));
        run(storage.flush()).unwrap().unwrap();
        assert_eq!(run(busy(MAX_IDLE)), Some(()));
        assert_eq!(run(busy(1)), None);
    }

    #[test]
    fn whoever_tries_what_is_refused_for_ever_is_ended() {
        let storage = Direct::new(PossibleDisk::new(&Values::new(), 4), Always(0));
        let stubborn =
            async { while storage.read(1, IoBuf::zeroed(UNIT, UNIT)).await.1.is_err() {} };
        assert_eq!(run(stubborn), None);
        let storage = Direct::new(PossibleDisk::new(&Values::new(), 4), Always(0));
        let stubborn =
            async { while storage.write(1, buf(7, 1), Durability::Cached).await.1.is_err() {} };
        assert_eq!(run(stubborn), None);
    }

    #[test]
    fn what_was_written_is_read() {
        let storage = Direct::new(PossibleDisk::new(&Values::new(), 4), Always(0));
        let done = run(async {
            storage.write(512, buf(7, 2), Durability::Cached).await.1.unwrap();
            assert_eq!(
                read(&storage, 0, 2048).await,
                [vec![0; 512], vec![7; 1024], vec![0; 512]].concat()
            );
            storage.write_zeroes(1024..1536).await.unwrap();
            storage.discard(0..512).await.unwrap();
            storage.write(4096, buf(8, 1), Durability::Through).await.1.unwrap();
            assert_eq!(storage.len().await.unwrap(), 4608);
            storage.flush().await.unwrap();
            storage.settle().await.unwrap();
            storage.set_len(1024).await.unwrap();
            assert_eq!(storage.len().await.unwrap(), 1024);
            assert_eq!(read(&storage, 512, 512).await, vec![7; 512]);
            assert_eq!(read(&storage, 4096, 1024).await, vec![0; 1024]);
            assert_eq!(read(&storage, u64::MAX - 1023, 512).await, vec![0; 512]);
        });
        assert_eq!(done, Some(()));
        let counts = Submitted { reads: 4, updates: 5, flushes: 1 };
        assert_eq!(storage.counts(), counts);
        let remains = storage.power_off();
        assert_eq!(remains.counts, counts);
        assert_eq!(storage.counts(), Submitted::default());
        assert_eq!(remains.breaches, []);
        assert!(!remains.crashed);
        assert_eq!(run(storage.flush()).map(|_| ()), None);
    }

    #[test]
    fn work_is_polled_again_when_it_has_woken_itself_and_only_then() {
        let after = |polls: u32, wakes: bool| {
            let mut count = 0;
            let work = poll_fn(move |context| {
                count += 1;
                if count == polls {
                    return Poll::Ready(count);
                }
                if wakes {
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            });
            run(work)
        };
        assert_eq!([1, 2, 9].map(|polls| after(polls, true)), [Some(1), Some(2), Some(9)]);
        assert_eq!(after(9, false), None);
    }

    #[test]
    fn a_read_of_what_no_write_can_reach_decides_nothing() {
        let values = Values::new();
        let mut disk = PossibleDisk::new(&values, 1);
        let key = values.intern(&[9; UNIT]);
        let append = disk.submit_write(1, &[key], Durability::Cached, &mut Always(0));
        disk.complete(append);
        let crashed = disk.crash(Profile::TornLength, &mut Always(0));
        let storage = Direct::new(crashed, Always(0));
        let far = u64::from(MAX_UNITS) * UNIT as u64;
        assert_eq!(run(read(&storage, far, 1024)), Some(vec![0; 1024]));
        assert!(storage.with_disk(|disk, _| disk.length_is_open()));
        run(read(&storage, 512, 512)).unwrap();
        assert!(!storage.with_disk(|disk, _| disk.length_is_open()));
    }

    #[test]
    fn a_fork_is_kept_of_every_submission_that_changes_something() {
        let options = DirectOptions { forks: true, ..DirectOptions::default() };
        let disk = PossibleDisk::new(&Values::new(), 2);
        let storage = Direct::with_options(disk, Always(0), options);
        let steps = async || {
            storage.write(0, buf(1, 1), Durability::Through).await.1.unwrap();
            storage.flush().await.unwrap();
            read(&storage, 0, 512).await;
            storage.discard(512..1024).await.unwrap();
            storage.set_len(512).await.unwrap();
        };
        run(steps()).unwrap();
        let undecided = |forks: Vec<PossibleDisk>| {
            forks.iter().map(PossibleDisk::undecided).collect::<Vec<_>>()
        };
        let lengths = |forks: &[PossibleDisk]| {
            forks.iter().map(PossibleDisk::possible_lengths).collect::<Vec<_>>()
        };
        let forks = storage.take_forks(true);
        assert_eq!(lengths(&forks), [vec![2], vec![2], vec![2, 1]]);
        assert_eq!(undecided(forks), [vec![0], vec![], vec![]]);
        run(steps()).unwrap();
        assert_eq!(storage.take_forks(false).len(), 3);
        run(steps()).unwrap();
        assert_eq!(storage.take_forks(true).len(), 0);
        run(steps()).unwrap();
        assert_eq!(storage.power_off().forks.len(), 3);
    }

    #[test]
    fn a_fork_of_the_storage_goes_its_own_way() {
        let options = DirectOptions { trace: true, forks: true, ..DirectOptions::default() };
        let storage =
            Direct::with_options(PossibleDisk::new(&Values::new(), 2), Always(0), options);
        let write = |storage: &Direct<Always>, byte| {
            run(storage.write(0, buf(byte, 1), Durability::Cached)).unwrap().1.unwrap();
        };
        write(&storage, 1);
        let fork = storage.fork();
        write(&storage, 2);
        write(&fork, 3);
        run(fork.flush()).unwrap().unwrap();
        let [one, other] = [&storage, &fork].map(|storage| run(read(storage, 0, 512)).unwrap());
        assert_eq!((one[0], other[0]), (2, 3));
        let [one, other] = [storage, fork].map(|storage| storage.power_off());
        assert_eq!((one.counts.updates, other.counts.updates), (2, 2));
        assert_eq!((one.counts.flushes, other.counts.flushes), (0, 1));
        assert_eq!((one.forks.len(), other.forks.len()), (2, 0));
        let [one, other] = [one, other].map(|remains| remains.trace.unwrap().events().to_vec());
        assert_eq!(one[..2], other[..2], "what was before the fork");
        assert_eq!((one.len(), other.len()), (6, 8));
    }

    #[test]
    #[should_panic(expected = "one future")]
    fn a_storage_that_is_to_fail_has_no_fork() {
        let faults = Some(Box::new(Planned(Vec::new())) as Box<dyn FaultPlan + Send>);
        let options = DirectOptions { faults, ..DirectOptions::default() };
        let disk = PossibleDisk::new(&Values::new(), 1);
        let _ = Direct::with_options(disk, Always(0), options).fork();
    }

    #[test]
    fn what_was_recorded_is_done_again_elsewhere() {
        let disk = PossibleDisk::new(&Values::new(), 4);
        let options = || DirectOptions { forks: true, record: true, ..DirectOptions::default() };
        let storage = Direct::with_options(disk.clone(), Always(0), options());
        run(async {
            storage.write(0, buf(1, 2), Durability::Cached).await.1.unwrap();
            read(&storage, 512, 1024).await;
            storage.flush().await.unwrap();
            storage.write(1024, buf(2, 1), Durability::Through).await.1.unwrap();
            storage.write_zeroes(0..512).await.unwrap();
            storage.discard(512..1024).await.unwrap();
            storage.set_len(4096).await.unwrap();
        })
        .unwrap();
        let first = storage.power_off();
        assert_eq!(first.record.len(), 7);
        assert_eq!(
            (first.record[1].kind, first.record[1].range.clone()),
            (IoKind::Read, 512..1536)
        );
        let storage = Direct::with_options(disk, Always(0), options());
        storage.again(&first.record);
        let second = storage.power_off();
        assert_eq!(second.disk.state_hash(), first.disk.state_hash());
        let hashes =
            |forks: &[PossibleDisk]| forks.iter().map(PossibleDisk::state_hash).collect::<Vec<_>>();
        assert_eq!(hashes(&second.forks), hashes(&first.forks));
        assert_eq!(second.record.len(), 6, "all but the read");
    }

    #[test]
    fn the_power_fails_within_the_operation_that_was_named() {
        for crash_at in 0..4 {
            let disk = PossibleDisk::new(&Values::new(), 2);
            let options = DirectOptions { crash_at: Some(crash_at), ..DirectOptions::default() };
            let storage = Direct::with_options(disk, Always(0), options);
            let done = run(async {
                storage.write(0, buf(1, 1), Durability::Cached).await.1.unwrap();
                read(&storage, 0, 512).await;
                storage.flush().await.unwrap();
                storage.write(512, buf(2, 1), Durability::Cached).await.1.unwrap();
            });
            let remains = storage.power_off();
            assert_eq!((done.is_some(), remains.crashed), (crash_at == 3, crash_at < 3));
            let crashed = remains.disk.crash(Profile::TornLength, &mut Always(0));
            let undecided: &[u32] = match crash_at {
                0 | 1 => &[0],
                _ => &[1],
            };
            assert_eq!(crashed.undecided(), undecided, "at {crash_at}");
        }
    }

    #[test]
    fn what_breaks_the_contract_is_refused_and_recorded() {
        let limits =
            storage::Limits { can_discard: false, max_transfer: 1024, ..crate::DEFAULT_LIMITS };
        let disk = PossibleDisk::new(&Values::new(), 4).with_limits(limits);
        let storage = Direct::new(disk, Always(0));
        let most = u64::from(MAX_UNITS) * UNIT as u64;
        let kinds = run(async {
            [
                storage.write(100, buf(1, 1), Durability::Cached).await.1,
                storage.set_len(100).await,
                storage.discard(0..512).await,
                storage.write(0, buf(1, 3), Durability::Cached).await.1,
                storage.write(1 << 50, buf(1, 1), Durability::Cached).await.1,
                storage.set_len(u64::MAX - 511).await,
                storage.set_len(most + 512).await,
            ]
            .map(|outcome| outcome.unwrap_err().kind())
        });
        let invalid = ErrorKind::InvalidInput;
        let large = ErrorKind::FileTooLarge;
        let expected = [invalid, invalid, ErrorKind::Unsupported, invalid, large, large, large];
        assert_eq!(kinds, Some(expected));
        run(async {
            storage.write(0, buf(1, 2), Durability::Cached).await.1.unwrap();
            storage.write_zeroes(0..2048).await.unwrap();
            storage.set_len(most).await.unwrap();
        })
        .unwrap();
        let breaches = storage.power_off().breaches;
        assert!(matches!(
            breaches[..],
            [
                Breach::Misaligned(_),
                Breach::Misaligned(_),
                Breach::NoDiscard(_),
                Breach::TooLong(_)
            ]
        ));
    }

    #[test]
    fn long_sectors_are_taken_whole() {
        let limits = storage::Limits { alignment: 4096, ..crate::DEFAULT_LIMITS };
        let disk = PossibleDisk::new(&Values::new(), 16).with_limits(limits);
        let storage = Direct::new(disk, Always(0));
        let at = |skip: usize| {
            let mut buf = IoBuf::zeroed(2 * 4096, 4096);
            drop(buf.split_to(skip));
            buf.split_to(4096)
        };
        run(async {
            let refused = [
                storage.write(512, at(0), Durability::Cached).await.1,
                storage.write(0, at(512), Durability::Through).await.1,
                storage.read(4096, at(512)).await.1,
                storage.read(0, at(0).split_to(512)).await.1,
                storage.set_len(512).await,
                storage.discard(0..512).await,
                storage.write_zeroes(512..4096).await,
            ];
            assert!(refused.iter().all(Result::is_err), "{refused:?}");
            storage.write(4096, at(0), Durability::Cached).await.1.unwrap();
            storage.read(0, at(0)).await.1.unwrap();
            storage.write_zeroes(0..8192).await.unwrap();
            storage.set_len(12288).await.unwrap();
            storage.flush().await.unwrap();
        })
        .unwrap();
        use Breach::{Misaligned, Unplaced};
        let breaches = storage.power_off().breaches;
        assert!(matches!(
            breaches[..],
            [
                Misaligned(_),
                Unplaced(_),
                Unplaced(_),
                Misaligned(_),
                Misaligned(_),
                Misaligned(_),
                Misaligned(_)
            ]
        ));
    }

    #[test]
    fn faults_reach_the_caller_and_the_disk() {
        let fault = |kind, fault| PlannedFault { at: FaultAt::Nth { kind, nth: 0 }, fault };
        let plan = Planned(vec![
            fault(IoKind::Write, Fault::Enospc { landed: 1 }),
            fault(IoKind::WriteThrough, Fault::Eio),
            fault(IoKind::Read, Fault::Eio),
            fault(IoKind::Flush, Fault::Eio),
        ]);
        let options =
            DirectOptions { faults: Some(Box::new(plan)), trace: true, ..DirectOptions::default() };
        let disk = PossibleDisk::new(&Values::new(), 4);
        let storage = Direct::with_options(disk, Random::new(1), options);
        run(async {
            let full = storage.write(0, buf(1, 2), Durability::Cached).await.1.unwrap_err();
            assert_eq!(full.kind(), ErrorKind::StorageFull);
            let lost = storage.write(1024, buf(2, 1), Durability::Through).await.1.unwrap_err();
            assert_eq!(lost.raw_os_error(), Some(5));
            assert!(storage.read(0, buf(0, 1)).await.1.is_err());
            assert!(storage.flush().await.is_err());
            storage.flush().await.unwrap();
            assert_eq!(read(&storage, 0, 1024).await, [vec![1; 512], vec![0; 512]].concat());
        })
        .unwrap();
        let remains = storage.power_off();
        assert_eq!(remains.disk.undecided(), [2]);
        assert_eq!(remains.trace.unwrap().events().len(), 12);
    }

    #[test]
    fn what_failed_late_ends_when_the_storage_is_settled() {
        for settles in [false, true] {
            let at = FaultAt::Nth { kind: IoKind::Write, nth: 0 };
            let plan = Planned(vec![PlannedFault { at, fault: Fault::Late }]);
            let options =
                DirectOptions { faults: Some(Box::new(plan)), ..DirectOptions::default() };
            let disk = PossibleDisk::new(&Values::new(), 2);
            let storage = Direct::with_options(disk, Always(0), options);
            run(async {
                assert!(storage.write(0, buf(1, 1), Durability::Cached).await.1.is_err());
                if settles {
                    storage.settle().await.unwrap();
                }
                storage.flush().await.unwrap();
                storage.write(512, buf(2, 1), Durability::Through).await.1.unwrap();
                storage.write(0, buf(2, 1), Durability::Through).await.1.unwrap();
            })
            .unwrap();
            let remains = storage.power_off();
            let crashed = remains.disk.crash(Profile::TornLength, &mut Always(0));
            let (late, breaches): (&[u32], usize) = if settles { (&[], 0) } else { (&[0], 1) };
            assert_eq!((crashed.undecided().as_slice(), remains.breaches.len()), (late, breaches));
        }
    }

    #[test]
    fn a_full_device_reads_flushes_and_discards_whatever_the_plan_says() {
        struct Full;
        impl FaultPlan for Full {
            fn fault(&mut self, _: &Io) -> Option<Fault> {
                Some(Fault::Enospc { landed: 0 })
            }
        }
        let values = Values::new();
        let disk = PossibleDisk::from_extents(&values, 1024, [(0, &[7; 1024][..])]);
        let options = DirectOptions { faults: Some(Box::new(Full)), ..DirectOptions::default() };
        let storage = Direct::with_options(disk, Always(0), options);
        run(async {
            assert!(storage.write(0, buf(1, 1), Durability::Cached).await.1.is_err());
            assert_eq!(read(&storage, 0, 1024).await, vec![7; 1024]);
            storage.flush().await.unwrap();
            storage.discard(0..512).await.unwrap();
        })
        .unwrap();
    }

    #[test]
    fn each_of_two_files_has_a_handle_and_nothing_of_the_other() {
        let disk = PossibleDisk::new(&Values::new(), 2);
        assert!(Direct::new(disk.clone(), Always(0)).second().is_none());
        let options = DirectOptions { trace: true, ..DirectOptions::default() };
        let first = Direct::with_options(disk.with_second(4, 1), Always(0), options);
        let second = first.second().unwrap();
        assert!(second.second().is_some());
        run(async {
            first.write(512, buf(1, 1), Durability::Cached).await.1.unwrap();
            second.write(512, buf(2, 2), Durability::Cached).await.1.unwrap();
            assert_eq!((first.len().await.unwrap(), second.len().await.unwrap()), (1024, 1536));
            let all = read(&first, 0, 4096).await;
            assert_eq!(all, [vec![0; 512], vec![1; 512], vec![0; 3072]].concat(), "its own room");
            assert_eq!(read(&first, 2048, 1024).await, vec![0; 1024], "past its room");
            assert_eq!(read(&second, 0, 1024).await, [[0; 512], [2; 512]].concat());
            assert_eq!(read(&second, u64::MAX - 1023, 512).await, vec![0; 512]);
            second.flush().await.unwrap();
            second.set_len(512).await.unwrap();
            first.settle().await.unwrap();
        })
        .unwrap();
        let remains = first.power_off();
        assert_eq!(remains.breaches, []);
        let crashed = remains.disk.crash(Profile::Torn, &mut Always(0));
        assert_eq!(crashed.undecided(), [1], "the flush was of the second file");
        let places = remains.trace.unwrap().dump(|_| String::new());
        let of_second = places.lines().filter(|line| line.contains("(file 2)")).count();
        assert_eq!(of_second, 2, "a flush and a length:\n{places}");
        assert!(second.second().is_none(), "the power is off");
    }

    #[test]
    fn a_file_ends_with_its_room() {
        let disk = PossibleDisk::new(&Values::new(), 2).with_second(4, 1);
        let limits = storage::Limits { alignment: 1024, ..crate::DEFAULT_LIMITS };
        let first = Direct::new(disk.clone(), Always(0));
        let second = first.second().unwrap();
        let room = u64::from(MAX_UNITS - 4) * 512;
        let large = run(async {
            first.set_len(2048).await.unwrap();
            second.set_len(room).await.unwrap();
            [
                first.set_len(2560).await,
                first.write(1536, buf(1, 2), Durability::Cached).await.1,
                first.discard(2048..2560).await,
                second.set_len(room + 512).await,
                second.write_zeroes(room..room + 512).await,
            ]
            .map(|outcome| outcome.unwrap_err().kind())
        });
        assert_eq!(large, Some([ErrorKind::FileTooLarge; 5]));
        // Alignment is within the file, wherever that begins.
        let odd = PossibleDisk::new(disk.values(), 2).with_second(5, 1).with_limits(limits);
        let second = Direct::new(odd, Always(0)).second().unwrap();
        run(async {
            second.write_zeroes(1024..2048).await.unwrap();
            second.write_zeroes(512..1536).await.unwrap_err();
        })
        .unwrap();
    }

    #[test]
    fn what_was_recorded_of_two_files_is_done_again_on_each() {
        let disk = PossibleDisk::new(&Values::new(), 4).with_second(8, 4);
        let options = || DirectOptions { forks: true, record: true, ..DirectOptions::default() };
        let storage = Direct::with_options(disk.clone(), Always(0), options());
        let second = storage.second().unwrap();
        run(async {
            storage.write(0, buf(1, 2), Durability::Cached).await.1.unwrap();
            second.write(1024, buf(2, 4), Durability::Cached).await.1.unwrap();
            second.flush().await.unwrap();
            read(&second, 0, 512).await;
            second.set_len(512).await.unwrap();
            storage.set_len(1024).await.unwrap();
            storage.flush().await.unwrap();
        })
        .unwrap();
        let first = storage.power_off();
        let files: Vec<File> = first.record.iter().map(|done| done.file).collect();
        use File::{First, Second};
        assert_eq!(files, [First, Second, Second, Second, Second, First, First]);
        assert_eq!(first.record[1].range, 1024..3072, "of the file");
        let hashes =
            |forks: &[PossibleDisk]| forks.iter().map(PossibleDisk::state_hash).collect::<Vec<_>>();
        // Whichever handle it is that does it again.
        for of_second in [false, true] {
            let storage = Direct::with_options(disk.clone(), Always(0), options());
            let handle = if of_second { storage.second().unwrap() } else { storage.clone() };
            handle.again(&first.record);
            let again = storage.power_off();
            assert_eq!(again.disk.state_hash(), first.disk.state_hash());
            assert_eq!(hashes(&again.forks), hashes(&first.forks));
        }
    }

    #[test]
    fn whoever_settles_one_file_settles_both() {
        let at = FaultAt::Nth { kind: IoKind::Write, nth: 0 };
        let plan = Planned(vec![PlannedFault { at, fault: Fault::Late }]);
        let options = DirectOptions { faults: Some(Box::new(plan)), ..DirectOptions::default() };
        let disk = PossibleDisk::new(&Values::new(), 2).with_second(4, 1);
        let first = Direct::with_options(disk, Always(0), options);
        let second = first.second().unwrap();
        run(async {
            assert!(second.write(0, buf(1, 1), Durability::Cached).await.1.is_err());
            first.settle().await.unwrap();
            second.write(0, buf(2, 1), Durability::Through).await.1.unwrap();
        })
        .unwrap();
        let remains = first.power_off();
        assert_eq!((remains.breaches.len(), remains.disk.undecided().len()), (0, 0));
    }
}
