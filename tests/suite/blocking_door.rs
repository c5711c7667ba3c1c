//! Synchronous code under the harness: what it reads and writes is a file, what it does is a function of the seed, and what is wrong with it
//! is found as of any other subject.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use faultfs::chooser::Always;
use faultfs::direct::{Direct, DirectOptions, run};
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use faultfs::rng::Rng;
use faultfs::values::Values;
use model::build::Initial;
use model::guest::Promises;
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry};
use qcow2_core::Image;
use qcow2_core::storage::{self, AnyStorage, IoBuf, Limits, Storage, block_on};
use qcow2_crashtest::blocking::{Blocking, BlockingImage, BlockingSubject, PlainFile};
use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::explore::alphabet::worlds;
use qcow2_crashtest::explore::{self, ExploreSettings};
use qcow2_crashtest::panics;
use qcow2_crashtest::subject::{Mend, Qcow2Core, Refusal, Session, Subject, SubjectImage};
use qcow2_crashtest::trial;
use qcow2_crashtest::workload::{FaultKind, Scope, Shape};

/// A plain file as the storage of the library, which so becomes synchronous code.
#[derive(Debug)]
struct Plain(PlainFile);

impl Storage for Plain {
    fn limits(&self) -> Limits {
        Limits {
            alignment: 1,
            max_transfer: 1 << 20,
            can_discard: true,
            unwritten_reads_zero: true,
        }
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.0.len())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (IoBuf, io::Result<()>) {
        let there = self.0.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        buf[there..].fill(0);
        let read = self.0.read_at(offset, &mut buf[..there]);
        (buf, read)
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: storage::Durability,
    ) -> (IoBuf, io::Result<()>) {
        let written = self.0.write_at(offset, &buf);
        let flushed = match durability {
            storage::Durability::Cached => Ok(()),
            storage::Durability::Through => self.0.flush(),
        };
        (buf, written.and(flushed))
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.0.write_zeroes(range)
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.0.discard(range)
    }

    async fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    async fn settle(&self) -> io::Result<()> {
        Ok(())
    }
}

/// How it goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// As it should.
    Right,
    /// Its second write panics.
    Panics,
    /// A write that fails is tried again, for ever.
    TriesForEver,
    /// An image that was written to and not closed panics when it is dropped.
    PanicsDropped,
}

/// How often a write was tried again.
static TRIED: AtomicU64 = AtomicU64::new(0);

/// The library on a plain file.
pub(crate) fn opened(
    core: Qcow2Core,
    file: PlainFile,
    session: &Session,
) -> Result<Image<AnyStorage>, Refusal> {
    block_on(core.open(AnyStorage::new(Plain(file)), *session))
}

/// The library, called by synchronous code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Synchronous {
    core: Qcow2Core,
    how: How,
}

impl Synchronous {
    pub(crate) fn new(how: How) -> Blocking<Self> {
        Blocking(Self { core: Qcow2Core::default(), how })
    }
}

pub(crate) struct Open {
    image: Option<Image<AnyStorage>>,
    how: How,
    writes: AtomicU64,
}

impl BlockingSubject for Synchronous {
    type Image = Open;

    fn name(&self) -> String {
        format!("synchronous: {:?}", self.how)
    }

    fn key(&self) -> &'static str {
        "synchronous"
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        self.core.promises(geometry, session)
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::plain();
        can.shrink = true;
        can
    }

    fn open(&self, file: PlainFile, session: &Session) -> Result<Open, Refusal> {
        let image = opened(self.core, file, session)?;
        Ok(Open { image: Some(image), how: self.how, writes: AtomicU64::new(0) })
    }

    fn repair(&self, file: PlainFile) -> Result<Statement, Refusal> {
        block_on(self.core.repair(AnyStorage::new(Plain(file))))
    }

    fn check(&self, file: PlainFile, mend: Mend) -> Option<Result<Statement, Refusal>> {
        block_on(self.core.check(AnyStorage::new(Plain(file)), mend))
    }
}

impl Open {
    fn inner(&self) -> &Image<AnyStorage> {
        self.image.as_ref().unwrap()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let used = self.image.is_some() && self.writes.load(Ordering::Relaxed) > 0;
        assert!(self.how != How::PanicsDropped || !used, "dropped");
    }
}

impl BlockingImage for Open {
    fn size(&self) -> u64 {
        SubjectImage::size(self.inner())
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        let read = SubjectImage::read(self.inner(), offset, IoBuf::zeroed(buf.len(), 512));
        block_on(read).map(|read| buf.copy_from_slice(&read))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), String> {
        let before = self.writes.fetch_add(1, Ordering::Relaxed);
        assert!(self.how != How::Panics || before == 0, "in a write");
        loop {
            let data = IoBuf::copy_of(data, 512);
            let written = SubjectImage::write(self.inner(), offset, data, Durability::Cached);
            match block_on(written) {
                Err(_) if self.how == How::TriesForEver => {
                    TRIED.fetch_add(1, Ordering::Relaxed);
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> Result<(), String> {
        block_on(SubjectImage::flush(self.inner()))
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        block_on(SubjectImage::write_zeroes(self.inner(), offset, length, unmap))
    }

    fn discard(&mut self, offset: u64, length: u64) -> Result<(), String> {
        block_on(SubjectImage::discard(self.inner(), offset, length))
    }

    fn grow(&mut self, size: u64) -> Result<(), String> {
        block_on(SubjectImage::grow(self.inner(), size))
    }

    fn shrink(&mut self, size: u64) -> Result<(), String> {
        block_on(SubjectImage::shrink(self.inner(), size))
    }

    fn map(&mut self) -> Result<Vec<Extent>, String> {
        block_on(SubjectImage::map(self.inner()))
    }

    fn close(mut self) -> Result<(), String> {
        block_on(SubjectImage::close(self.image.take().unwrap()))
    }
}

pub(crate) fn settings(cases: u64, shape: Option<Shape>) -> Settings {
    Settings {
        seed: 1,
        profile: Profile::TornLength,
        damage: None,
        scope: Scope { shape, ..Scope::default() },
        budget: Budget::Cases(cases),
        workers: 1,
    }
}

/// Goal: sound synchronous code is accused of nothing, and is a function of the seed. Method: the library by plain calls, with failing I/O, on
/// devices of every kind; each campaign twice.
#[test]
#[cfg_attr(not(turn = "2"), ignore = "its turn is at another commit; CI=1 runs all")]
fn sound_synchronous_code_is_accused_of_nothing() {
    let subject = Synchronous::new(How::Right);
    let kinds = [None, Some(Shape::Sectors), Some(Shape::Transfers), Some(Shape::Shrinking)];
    for shape in kinds {
        let run = || campaign::run(&subject, &settings(10, shape), |_| {});
        let (one, other) = (run(), run());
        assert!(one.found.is_none() && one.broken.is_none(), "{:?} {:?}", one.found, one.broken);
        let count = |report: &campaign::Report| (report.figures.states, report.figures.ios);
        assert_eq!(count(&one), count(&other), "{shape:?}");
        assert!(one.figures.states > 100, "{shape:?}: {} states", one.figures.states);
    }
    let worlds = worlds(&[1024], &[false, true], &[Initial::Fresh, Initial::Dirty]);
    let settings = ExploreSettings { workers: 1, ..ExploreSettings::new(worlds, 1) };
    let report = explore::run(&subject, &settings, |_, _, _, _| {});
    assert!(report.complete && report.found.is_none(), "{:?}", report.found);
}

/// Goal: a plain call that failed is over when it returns: synchronous code, which could not wait for what lands later, is not accused of it.
/// Method: sound code on a device whose failed writes may land later, requests one after the other.
#[test]
#[cfg_attr(not(turn = "11"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_failed_in_a_plain_call_does_not_land_later() {
    let mut settings = settings(40, None);
    settings.scope = Scope { fault: Some(FaultKind::Late), tasks: Some(1), ..settings.scope };
    let report = campaign::run(&Synchronous::new(How::Right), &settings, |_| {});
    assert!(report.found.is_none() && report.broken.is_none(), "{:?}", report.found);
}

/// Goal: what is wrong with synchronous code is found and found again. Method: without a write order, and one that panics.
#[test]
fn what_is_wrong_with_synchronous_code_is_found() {
    let broken = Qcow2Core::without(["data-before-mapping"]).unwrap();
    let unordered = Blocking(Synchronous { core: broken, how: How::Right });
    for (subject, expected) in
        [(unordered, ["P1", "P2"]), (Synchronous::new(How::Panics), ["P8"; 2])]
    {
        let report = campaign::run(&subject, &settings(500, None), |_| {});
        let found = report.found.unwrap_or_else(|| panic!("{subject:?} was not noticed"));
        let told = found.failure.violation.to_string();
        assert!(expected.iter().any(|it| told.starts_with(it)), "{told}");
        let place = panics::place_in(&found.failure.violation.story);
        assert_eq!(place.is_some(), told.starts_with("P8 panic"), "{told}");
        assert!(place.is_none_or(|place| place.contains("blocking_door.rs:")), "{told}");
        let again = trial::run(&subject, &found.trial).unwrap();
        let (_, failure) = again.failure.unwrap();
        assert_eq!(failure.violation.to_string(), told);
    }
}

/// Goal: code that takes no error for an answer ends with a power cut as well, and so does the thread that it is on. Method: the power fails at
/// an I/O of a write that is tried for ever, and the image is dropped.
#[test]
fn a_power_cut_ends_a_call_that_never_gives_up() {
    let subject = Synchronous::new(How::TriesForEver);
    let world = worlds(&[1024], &[false], &[Initial::Fresh])[0];
    let (disk, _) = world.start(&subject).unwrap();
    let options = DirectOptions { crash_at: Some(0), ..DirectOptions::default() };
    let direct = Direct::with_options(disk, Always(0), options);
    let opened = run(subject.open(AnyStorage::new(direct.clone()), world.session));
    let image = opened.unwrap().unwrap();
    let data = IoBuf::zeroed(1024, 512);
    assert!(run(image.write(0, data, Durability::Cached)).is_none(), "the power is off");
    assert!(run(image.flush()).is_none(), "nobody answers any more");
    assert_eq!(panics::take(), None);
    drop(image);
    assert!(TRIED.load(Ordering::Relaxed) > 1_000, "{TRIED:?}");
}

/// Goal: what dropping an image panics with is a finding of synchronous code, too. Method: one that does, in a case that is run as a kept one.
#[test]
#[cfg_attr(not(turn = "4"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_panic_of_a_dropped_image_is_found() {
    let report = campaign::run(&Synchronous::new(How::PanicsDropped), &settings(500, None), |_| {});
    let violation = report.found.expect("it panics").failure.violation;
    assert_eq!((violation.kind, violation.story.contains("dropped")), ("panic", true));
}

/// What it does with its file when it is opened: whatever a seed says, beside a file in memory.
#[derive(Clone, Copy, Debug)]
struct Scribbles(u64);

struct Nothing;

impl BlockingImage for Nothing {
    fn size(&self) -> u64 {
        0
    }

    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), String> {
        Ok(())
    }

    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        Ok(())
    }
}

impl BlockingSubject for Scribbles {
    type Image = Nothing;

    fn name(&self) -> String {
        "scribbles".to_owned()
    }

    fn key(&self) -> &'static str {
        "scribbles"
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        Qcow2Core::default().promises(geometry, session)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::plain()
    }

    fn open(&self, file: PlainFile, _: &Session) -> Result<Nothing, Refusal> {
        let mut rng = Rng::new(self.0);
        let mut expected: Vec<u8> = Vec::new();
        let mut below = |most: u32| rng.below(most) as usize;
        for step in 0..60 {
            let (offset, length) = (below(6000), 1 + below(3000));
            match below(5) {
                0 | 1 => {
                    let data: Vec<u8> = (0..length).map(|at| (at * 7 + step) as u8).collect();
                    expected.resize(expected.len().max(offset + length), 0);
                    expected[offset..offset + length].copy_from_slice(&data);
                    file.write_at(offset as u64, &data).unwrap();
                }
                2 => {
                    expected.resize(expected.len().max(offset + length), 0);
                    expected[offset..offset + length].fill(0);
                    file.write_zeroes(offset as u64..(offset + length) as u64).unwrap();
                }
                3 => {
                    expected.resize(offset, 0);
                    file.set_len(offset as u64).unwrap();
                }
                _ => {
                    let mut read = vec![0; length];
                    let there = file.read_at(offset as u64, &mut read);
                    match expected.get(offset..offset + length) {
                        Some(expected) => assert!(there.is_ok() && read == expected),
                        None => assert_eq!(there.unwrap_err().kind(), io::ErrorKind::UnexpectedEof),
                    }
                }
            }
            assert_eq!((file.len(), file.is_empty()), (expected.len() as u64, expected.is_empty()));
        }
        let mut all = vec![0; expected.len()];
        file.read_at(0, &mut all).unwrap();
        assert!(all == expected);
        Ok(Nothing)
    }
}

/// Goal: the file is a file, whatever the sectors and the transfers of the device below. Method: random reads, writes and lengths beside bytes
/// in memory.
#[test]
fn a_plain_file_is_a_file() {
    for (seed, (alignment, max_transfer)) in
        (0..40).flat_map(|seed| [(512, 1 << 20), (512, 512), (4096, 8192)].map(|it| (seed, it)))
    {
        let limits =
            Limits { alignment, max_transfer, can_discard: true, unwritten_reads_zero: true };
        let disk = PossibleDisk::new(&Values::new(), 0).with_limits(limits);
        let storage = AnyStorage::new(Direct::new(disk, Always(0)));
        let opened = run(Blocking(Scribbles(seed)).open(storage, Session::default()));
        assert!(matches!(opened, Some(Ok(_))), "{seed}, sectors of {alignment}");
    }
}
