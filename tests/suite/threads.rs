//! Synchronous code whose requests run at once, in a thread each: it is a function of the seed, sound code is accused of nothing, and what is
//! wrong between two threads is found and nowhere else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use faultfs::chooser::Always;
use faultfs::direct::{Direct, DirectOptions, run};
use model::build::Initial;
use model::guest::Promises;
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry};
use qcow2_core::Image;
use qcow2_core::storage::{AnyStorage, IoBuf, block_on};
use qcow2_crashtest::blocking::sync::{Condvar, Mutex, RwLock};
use qcow2_crashtest::blocking::{Blocking, BlockingImage, BlockingSubject, Handles, PlainFile};
use qcow2_crashtest::campaign;
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::explore::alphabet::worlds;
use qcow2_crashtest::subject::{Mend, Qcow2Core, Refusal, Session, Subject, SubjectImage};
use qcow2_crashtest::trial;
use qcow2_crashtest::workload::Scope;

use crate::blocking_door::{How, Synchronous, opened, settings};

/// How its threads keep out of each other's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// One lock.
    Lock,
    /// One lock for reading or writing, and below it one for the library.
    Rooms,
    /// A flag, and a condition for who finds it set.
    Flag,
    /// One lock, which a write gives up between what it reads around its data and what it writes.
    Halves,
    /// Two locks, which reads and writes take in different orders.
    Crossed,
}

/// The library, in threads.
#[derive(Clone, Copy, Debug)]
struct Threads {
    core: Qcow2Core,
    by: By,
    /// Whether it has handles.
    at_once: bool,
}

impl Threads {
    fn new(by: By, at_once: bool) -> Blocking<Self> {
        Blocking(Self { core: Qcow2Core::default(), by, at_once })
    }
}

/// How often a call met another one that had not ended.
static MET: AtomicU64 = AtomicU64::new(0);

struct Shared {
    by: By,
    image: Mutex<Option<Image<AnyStorage>>>,
    other: Mutex<()>,
    room: RwLock<()>,
    busy: Mutex<bool>,
    free: Condvar,
    inside: AtomicU64,
}

/// The flag, until it is dropped.
struct Busy<'a>(&'a Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap() = false;
        self.0.free.notify_one();
    }
}

/// A call that has not ended.
struct Inside<'a>(&'a Shared);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn new(image: Image<AnyStorage>, by: By) -> Self {
        Self {
            by,
            image: Mutex::new(Some(image)),
            other: Mutex::new(()),
            room: RwLock::new(()),
            busy: Mutex::new(false),
            free: Condvar::new(),
            inside: AtomicU64::new(0),
        }
    }

    fn enter(&self) -> Inside<'_> {
        let met = self.inside.fetch_add(1, Ordering::Relaxed);
        MET.fetch_add(u64::from(met > 0), Ordering::Relaxed);
        Inside(self)
    }

    fn with<T>(&self, reads: bool, work: impl FnOnce(&Image<AnyStorage>) -> T) -> T {
        let _inside = self.enter();
        let work = |image: &Option<Image<AnyStorage>>| work(image.as_ref().unwrap());
        match self.by {
            By::Lock | By::Halves => work(&self.image.lock().unwrap()),
            By::Rooms if reads => {
                let _room = self.room.read().unwrap();
                work(&self.image.lock().unwrap())
            }
            By::Rooms => {
                let _room = self.room.write().unwrap();
                work(&self.image.lock().unwrap())
            }
            By::Flag => {
                let mut busy =
                    self.free.wait_while(self.busy.lock().unwrap(), |busy| *busy).unwrap();
                *busy = true;
                drop(busy);
                let _busy = Busy(self);
                work(&self.image.lock().unwrap())
            }
            By::Crossed if reads => {
                let _other = self.other.lock().unwrap();
                work(&self.image.lock().unwrap())
            }
            By::Crossed => {
                let image = self.image.lock().unwrap();
                let _other = self.other.lock().unwrap();
                work(&image)
            }
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        let read = self.with(true, |image| {
            block_on(SubjectImage::read(image, offset, IoBuf::zeroed(buf.len(), 512)))
        });
        read.map(|read| buf.copy_from_slice(&read))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), String> {
        let written = |offset, data: &[u8]| {
            self.with(false, |image| {
                let data = IoBuf::copy_of(data, 512);
                block_on(SubjectImage::write(image, offset, data, Durability::Cached))
            })
        };
        if self.by != By::Halves {
            return written(offset, data);
        }
        // As if no less than 2 KiB could be written.
        let size = self.size();
        let first = offset / 2048 * 2048;
        let end = (offset + data.len() as u64).next_multiple_of(2048).min(size);
        let mut around = vec![0; (end - first) as usize];
        self.read(first, &mut around)?;
        around[(offset - first) as usize..][..data.len()].copy_from_slice(data);
        written(first, &around)
    }

    fn size(&self) -> u64 {
        self.image.lock().unwrap().as_ref().map_or(0, SubjectImage::size)
    }
}

#[derive(Clone)]
struct Handle(Arc<Shared>);

impl BlockingImage for Handle {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        self.0.read(offset, buf)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), String> {
        self.0.write(offset, data)
    }

    fn flush(&mut self) -> Result<(), String> {
        self.0.with(false, |image| block_on(SubjectImage::flush(image)))
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        let zeroed = |image: &_| block_on(SubjectImage::write_zeroes(image, offset, length, unmap));
        self.0.with(false, zeroed)
    }

    fn discard(&mut self, offset: u64, length: u64) -> Result<(), String> {
        self.0.with(false, |image| block_on(SubjectImage::discard(image, offset, length)))
    }

    fn grow(&mut self, size: u64) -> Result<(), String> {
        self.0.with(false, |image| block_on(SubjectImage::grow(image, size)))
    }

    fn map(&mut self) -> Result<Vec<Extent>, String> {
        self.0.with(true, |image| block_on(SubjectImage::map(image)))
    }

    fn close(self) -> Result<(), String> {
        let alone = Arc::into_inner(self.0).expect("no handle is left");
        block_on(SubjectImage::close(alone.image.into_inner().unwrap().unwrap()))
    }
}

impl BlockingSubject for Threads {
    type Image = Handle;

    fn name(&self) -> String {
        format!("threads: {:?}", self.by)
    }

    fn key(&self) -> &'static str {
        "threads"
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        self.core.promises(geometry, session)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::plain()
    }

    fn open(&self, file: PlainFile, session: &Session) -> Result<Handle, Refusal> {
        let image = opened(self.core, file, session)?;
        Ok(Handle(Arc::new(Shared::new(image, self.by))))
    }

    fn handles(&self, image: &Handle) -> Option<Handles> {
        let image = image.clone();
        self.at_once.then(|| Handles::new(move || image.clone()))
    }

    fn repair(&self, file: PlainFile) -> Result<Statement, Refusal> {
        Synchronous::new(How::Right).0.repair(file)
    }

    fn check(&self, file: PlainFile, mend: Mend) -> Option<Result<Statement, Refusal>> {
        Synchronous::new(How::Right).0.check(file, mend)
    }
}

fn of_three_tasks(cases: u64) -> campaign::Settings {
    let mut settings = settings(cases, None);
    settings.scope = Scope { tasks: Some(3), ..settings.scope };
    settings
}

/// Goal: sound code in threads is accused of nothing, is a function of the seed, and its requests do meet. Method: the library behind each kind of
/// lock, with failing I/O and power cuts in the middle of whatever holds one; each campaign twice.
#[test]
#[cfg_attr(not(turn = "8"), ignore = "its turn is at another commit; CI=1 runs all")]
fn sound_threads_are_accused_of_nothing() {
    for by in [By::Lock, By::Rooms, By::Flag] {
        let subject = Threads::new(by, true);
        let before = MET.load(Ordering::Relaxed);
        let run = || campaign::run(&subject, &of_three_tasks(4), |_| {});
        let (one, other) = (run(), run());
        assert!(one.found.is_none() && one.broken.is_none(), "{:?} {:?}", one.found, one.broken);
        let count = |report: &campaign::Report| (report.figures.states, report.figures.ios);
        assert_eq!(count(&one), count(&other), "{by:?}");
        let met = MET.load(Ordering::Relaxed) - before;
        assert!(one.figures.states > 100 && met > 100, "{by:?}: {} {met}", one.figures.states);
    }
}

/// Goal: what is wrong between two threads is found, and found again, and only where there are two. Method: a write that gives up its lock
/// half way, with handles and without.
#[test]
#[cfg_attr(not(turn = "6"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_lock_that_is_given_up_half_way_is_found() {
    let alone = campaign::run(&Threads::new(By::Halves, false), &of_three_tasks(30), |_| {});
    assert!(alone.found.is_none() && alone.broken.is_none(), "{:?}", alone.found);
    let subject = Threads::new(By::Halves, true);
    let report = campaign::run(&subject, &of_three_tasks(500), |_| {});
    let found = report.found.expect("it loses a write");
    let told = found.failure.violation.to_string();
    assert!(["P0", "P1", "P2"].iter().any(|it| told.starts_with(it)), "{told}");
    let again = trial::run(&subject, &found.trial).unwrap();
    let (_, failure) = again.failure.unwrap();
    assert_eq!(failure.violation.to_string(), told);
}

/// Goal: threads that wait for each other are a finding, and no run that never ends. Method: two locks in different orders.
#[test]
#[cfg_attr(not(turn = "10"), ignore = "its turn is at another commit; CI=1 runs all")]
fn threads_that_wait_for_each_other_are_found() {
    let report = campaign::run(&Threads::new(By::Crossed, true), &of_three_tasks(500), |_| {});
    let violation = report.found.expect("they wait for each other").failure.violation;
    assert!(violation.to_string().starts_with("P7"), "{violation}");
}

/// Goal: a power cut ends threads that hold locks and that wait for them. Method: one that writes with the lock held, and one that waits for
/// it; the image is dropped with both.
#[test]
fn a_power_cut_ends_who_holds_a_lock_and_who_waits() {
    let subject = Threads::new(By::Lock, true);
    let world = worlds(&[1024], &[false], &[Initial::Fresh])[0];
    let (disk, _) = world.start(&subject).unwrap();
    let options = DirectOptions { crash_at: Some(0), ..DirectOptions::default() };
    let direct = Direct::with_options(disk, Always(0), options);
    let opened = run(subject.open(AnyStorage::new(direct.clone()), world.session));
    let image = opened.unwrap().unwrap();
    let write = |at: u64| image.write(at, IoBuf::zeroed(1024, 512), Durability::Cached);
    {
        let (mut first, mut second) = (Box::pin(write(0)), Box::pin(write(1024)));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..8 {
            assert!(Future::poll(first.as_mut(), &mut context).is_pending(), "the power is off");
            assert!(Future::poll(second.as_mut(), &mut context).is_pending(), "the lock is held");
        }
    }
    drop(image);
    assert_eq!(qcow2_crashtest::panics::take(), None);
}
