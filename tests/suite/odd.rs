//! Subjects that can do little, that panic, that never answer, that lie or that are not a function of their seed: each is asked what it can
//! do and no more, and what is wrong with it is told for what it is.

use std::future::{Future as _, pending};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::pin;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use clap::{Args as _, FromArgMatches as _};
use faultfs::profile::{Profile, Robustness};
use model::build::Initial;
use model::finding::Property;
use model::guest::Promises;
use model::image::Mapping;
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry};
use qcow2_core::Image;
use qcow2_core::storage::{AnyStorage, IoBuf, Limits, Storage};
use qcow2_crashtest::any::AnySubject;
use qcow2_crashtest::campaign::{self, Budget, Found, Settings};
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::causes::{Findings, RootCause};
use qcow2_crashtest::console::{self, ExitStatus, Exploration, Onward, Outputs, outsider};
use qcow2_crashtest::explore::alphabet::{initials, worlds};
use qcow2_crashtest::explore::certificate::Certificate;
use qcow2_crashtest::explore::{self, ExploreSettings};
use qcow2_crashtest::lapse::{Lapse, Swept, Tried, sweep};
use qcow2_crashtest::liveness::p9_bounded_waste;
use qcow2_crashtest::minimise::minimise;
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::recover::Failure;
use qcow2_crashtest::subject::{Duties, Qcow2Core, Refusal, Session, Subject, SubjectImage};
use qcow2_crashtest::trial;
use qcow2_crashtest::watch;
use qcow2_crashtest::workload::{Scope, Shape};
use qcow2_crashtest::{panics, report};

/// What is odd about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It reads, writes and flushes, on images of version 3 with clusters of 1 and 4 KiB.
    Little,
    /// The same, on images whose headers may be damaged.
    LittleOfDamaged,
    /// The same as the first, and its flushes do nothing.
    LittleForgetful,
    /// It has one refcount block for all, and panics when it closes an image that has another.
    OneBlock,
    /// It panics when it opens an image for writing that is marked dirty.
    PanicsOpening,
    /// It panics in its second write.
    PanicsWriting,
    /// It panics in its second write, in one place where that is a unit, and in another where it is more.
    PanicsInTwoPlaces,
    /// It panics when an image that was written to is dropped, as one is by a power cut.
    PanicsDropped,
    /// It panics in a repair.
    PanicsRepairing,
    /// It reads what is compressed with deflate, and panics when it opens an image with zstd.
    Inflates,
    /// Its flushes never return.
    Hangs,
    /// Its second write waits for something that no storage and no request brings.
    WaitsForAThread,
    /// Its second write goes round in a circle.
    Spins,
    /// It says of every mapping that there is none.
    MapsWrong,
    /// What it does depends on what it did in other images.
    Remembers,
    /// Both of these.
    MapsWrongAndRemembers,
    /// It begins a write when an image that was written to is dropped.
    WritesWhenDropped,
    /// It promises nothing of leaks.
    MayLeak,
    /// It flushes no storage, and says that it survives the death of the process and no more.
    SurvivesKill,
    /// The same, and what it does depends on what it did in other images.
    SurvivesKillAndRemembers,
    /// The same promise, and what is mapped wrong shows on every device.
    SurvivesKillAndMapsWrong,
    /// A clean close leaves a cluster counted that nothing refers to; it says that it may.
    LeaksClosing,
    /// The same, and it does not say so.
    LeaksClosingUnsaid,
    /// Takes its time to open an image.
    Slow,
    /// Reads what it has written a dozen times, and says that it works that much.
    Toils,
    /// The same, and does not say so.
    ToilsUnsaid,
    /// Reads a byte wrong where it only reads.
    MisreadsReadOnly,
    /// Says that the disk is a unit shorter where it only reads.
    SaysLessReadOnly,
}

impl How {
    fn leaks_closing(self) -> bool {
        matches!(self, Self::LeaksClosing | Self::LeaksClosingUnsaid)
    }

    fn is_little(self) -> bool {
        matches!(self, Self::Little | Self::LittleOfDamaged | Self::LittleForgetful)
    }
}

#[derive(Clone, Debug)]
struct Odd {
    how: How,
    /// Images that it has opened.
    opened: Arc<AtomicU64>,
}

impl Odd {
    fn new(how: How) -> Self {
        Self { how, opened: Arc::default() }
    }
}

struct OddImage {
    image: Option<Image<AnyStorage>>,
    how: How,
    number: u64,
    writable: bool,
    writes: AtomicU64,
}

impl Drop for OddImage {
    fn drop(&mut self) {
        let Some(image) = &self.image else { return };
        if self.writes.load(Ordering::Relaxed) == 0 {
            return;
        }
        assert!(self.how != How::PanicsDropped, "dropped");
        if self.how == How::WritesWhenDropped {
            let data = IoBuf::zeroed(512, 512);
            let mut write = pin!(SubjectImage::write(image, 0, data, Durability::Cached));
            // It pauses before it begins, and nobody but itself goes on.
            for _ in 0..8 {
                let _ = write.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            }
        }
    }
}

impl Subject for Odd {
    type Image = OddImage;

    fn name(&self) -> String {
        format!("odd: {:?}", self.how)
    }

    fn key(&self) -> &'static str {
        "odd"
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        Qcow2Core::default().promises(geometry, session)
    }

    fn duties(&self) -> Duties {
        let survives = match self.how {
            How::SurvivesKill | How::SurvivesKillAndRemembers | How::SurvivesKillAndMapsWrong => {
                Profile::Kill
            }
            _ => Profile::TornLength,
        };
        Duties {
            leaks_little: !matches!(self.how, How::MayLeak | How::LeaksClosing),
            closes_without_leaks: self.how != How::LeaksClosing,
            finds_space: self.how != How::LeaksClosing,
            ios_per_cluster: if self.how == How::Toils { 40 } else { 6 },
            survives,
            ..Duties::default()
        }
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::plain();
        if self.how.is_little() {
            (can.zeroes, can.discard, can.grow) = (false, false, false);
            (can.repair, can.map, can.version_2) = (false, false, false);
            can.lazy_refcounts = false;
            (can.cluster_bits, can.refcount_orders) = ((10, 12), (4, 4));
            can.initials = &[Initial::Fresh, Initial::Fragmented];
        }
        can.compressed = self.how == How::Inflates;
        can.grows_tables = self.how != How::OneBlock;
        if self.how.leaks_closing() {
            can.refcount_orders = (4, 4);
        }
        can
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<OddImage, Refusal> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let sector = storage.limits().alignment;
        let (header, read) = storage.read(0, IoBuf::zeroed(sector, sector)).await;
        read.map_err(|error| Refusal::Failed(error.to_string()))?;
        let is_dirty = header[79] & 1 != 0 && header[7] == 3;
        if self.how == How::Slow {
            std::thread::sleep(Duration::from_millis(25));
        }
        assert!(self.how != How::PanicsOpening || !is_dirty || !session.writable, "it is dirty");
        assert!(self.how != How::Inflates || header[79] & 8 == 0, "it is compressed with zstd");
        if self.how == How::Little {
            let (version, cluster_bits, refcount_order) = (header[7], header[23], header[99]);
            assert_eq!((version, refcount_order, is_dirty), (3, 4, false));
            assert!((10..=12).contains(&cluster_bits) && header[87] & 1 == 0, "{header:?}");
        }
        let storage = match self.how {
            How::SurvivesKill | How::SurvivesKillAndRemembers => {
                AnyStorage::new(NeverFlushed(storage))
            }
            _ => storage,
        };
        let image = Some(Qcow2Core::default().open(storage, session).await?);
        Ok(OddImage {
            image,
            how: self.how,
            number,
            writable: session.writable,
            writes: AtomicU64::new(0),
        })
    }

    async fn repair(&self, storage: AnyStorage) -> Result<Statement, Refusal> {
        assert!(!self.how.is_little() && self.how != How::PanicsRepairing, "in a repair");
        Qcow2Core::default().repair(storage).await
    }
}

/// A storage whose flushes do nothing.
struct NeverFlushed(AnyStorage);

impl Storage for NeverFlushed {
    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn writable(&self) -> bool {
        self.0.writable()
    }

    async fn len(&self) -> io::Result<u64> {
        self.0.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        self.0.read(offset, buf).await
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        _: qcow2_core::storage::Durability,
    ) -> (IoBuf, io::Result<()>) {
        self.0.write(offset, buf, qcow2_core::storage::Durability::Cached).await
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.0.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.0.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn settle(&self) -> io::Result<()> {
        self.0.settle().await
    }

    async fn pause(&self) {
        self.0.pause().await;
    }
}

impl OddImage {
    fn inner(&self) -> &Image<AnyStorage> {
        self.image.as_ref().unwrap()
    }

    /// What only those are asked that can do it.
    fn more(&self) -> &Image<AnyStorage> {
        assert!(!self.how.is_little(), "nobody said that it can do that");
        self.inner()
    }
}

impl SubjectImage for OddImage {
    fn size(&self) -> u64 {
        let less = self.how == How::SaysLessReadOnly && !self.writable;
        SubjectImage::size(self.inner()) - if less { 512 } else { 0 }
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, String> {
        let mut read = SubjectImage::read(self.inner(), offset, buf).await?;
        if self.how == How::MisreadsReadOnly && !self.writable {
            read[0] ^= 1;
        }
        Ok(read)
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        let before = self.writes.fetch_add(1, Ordering::Relaxed);
        match self.how {
            How::PanicsWriting => assert!(before < 1, "in a write"),
            How::PanicsInTwoPlaces if data.len() == 512 => assert!(before < 1, "in a write"),
            How::PanicsInTwoPlaces => assert!(before < 1, "in a write"),
            How::WaitsForAThread if before == 1 => pending().await,
            How::Spins if before == 1 => loop {
                std::hint::spin_loop();
            },
            // One image in four does something that the others do not.
            How::Remembers | How::MapsWrongAndRemembers | How::SurvivesKillAndRemembers
                if self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 == 0 =>
            {
                SubjectImage::flush(self.inner()).await?;
            }
            _ => {}
        }
        if matches!(self.how, How::Toils | How::ToilsUnsaid) {
            let copy = IoBuf::copy_of(&data, 512);
            SubjectImage::write(self.inner(), offset, copy, durability).await?;
            for _ in 0..12 {
                SubjectImage::read(self.inner(), offset, IoBuf::zeroed(512, 512)).await?;
            }
        }
        SubjectImage::write(self.inner(), offset, data, durability).await
    }

    async fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        SubjectImage::write_zeroes(self.more(), offset, length, unmap).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), String> {
        SubjectImage::discard(self.more(), offset, length).await
    }

    async fn flush(&self) -> Result<(), String> {
        match self.how {
            How::Hangs => pending().await,
            How::LittleForgetful => return Ok(()),
            _ => {}
        }
        SubjectImage::flush(self.inner()).await
    }

    async fn grow(&self, size: u64) -> Result<(), String> {
        SubjectImage::grow(self.more(), size).await
    }

    async fn map(&self) -> Result<Vec<Extent>, String> {
        let mut map = SubjectImage::map(self.more()).await?;
        if matches!(
            self.how,
            How::MapsWrong | How::MapsWrongAndRemembers | How::SurvivesKillAndMapsWrong
        ) {
            map.iter_mut().for_each(|extent| extent.to = Mapping::Zero);
        }
        Ok(map)
    }

    async fn close(mut self) -> Result<(), String> {
        let closed = Image::close(self.image.take().unwrap()).await;
        let storage = closed.map_err(|error| error.to_string())?;
        if self.how == How::OneBlock {
            assert_eq!(blocks(&storage).await.map_err(|error| error.to_string())?, 1);
        }
        if self.how.leaks_closing() && self.writable {
            leak_one(&storage).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// How many refcount blocks an image has whose refcount table is one cluster.
async fn blocks(storage: &AnyStorage) -> io::Result<usize> {
    let sector = storage.limits().alignment;
    let read = async |offset| {
        let (bytes, read) = storage.read(offset, IoBuf::zeroed(sector, sector)).await;
        read.map(|()| bytes)
    };
    let header = read(0).await?;
    assert_eq!(header[56..60], [0, 0, 0, 1], "clusters of the refcount table");
    let table = u64::from_be_bytes(header[48..56].try_into().unwrap());
    let mut blocks = 0;
    for at in (table..table + (1 << header[23])).step_by(sector) {
        blocks += read(at).await?.chunks_exact(8).filter(|entry| *entry != [0; 8]).count();
    }
    Ok(blocks)
}

/// Counts the first free cluster of a file whose first refcount block, of counts of 16 bits, has one.
async fn leak_one(storage: &AnyStorage) -> io::Result<()> {
    let sector = storage.limits().alignment;
    let read = async |offset: u64| {
        let start = offset - offset % sector as u64;
        let (bytes, read) = storage.read(start, IoBuf::zeroed(sector, sector)).await;
        read.map(|()| bytes)
    };
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes[..8].try_into().unwrap());
    let header = read(0).await?;
    let table = number(&header[48..]);
    let clusters = storage.len().await? >> header[23];
    let block = number(&read(table).await?[(table % sector as u64) as usize..]);
    let start = block - block % sector as u64;
    let mut counts = read(start).await?;
    let first = (block - start) as usize;
    let free = counts[first..].chunks_exact(2).take(clusters as usize).position(|it| it == [0, 0]);
    if let Some(free) = free {
        counts[first + 2 * free + 1] = 1;
        storage.write(start, counts, qcow2_core::storage::Durability::Cached).await.1?;
        storage.flush().await?;
    }
    Ok(())
}

fn settings(cases: u64, shape: Option<Shape>) -> Settings {
    Settings {
        seed: 1,
        profile: Profile::TornLength,
        damage: None,
        scope: Scope { shape, ..Scope::faultless() },
        budget: Budget::Cases(cases),
        workers: 1,
    }
}

/// Goal: a subject is asked for nothing that it says it cannot do, whatever is drawn. Method: one that panics when it is asked for more than
/// reads, writes and flushes, or given another image than it opens, and one that inflates only: campaigns of every shape, and explorations.
#[test]
#[cfg_attr(not(turn = "5"), ignore = "its turn is at another commit; CI=1 runs all")]
fn little_is_asked_of_whoever_can_do_little() {
    let subject = Odd::new(How::Little);
    for shape in Shape::ALL.into_iter().map(Some).chain([None]) {
        let report = campaign::run(&subject, &settings(12, shape), |_| {});
        let campaign::Report { found, broken, .. } = &report;
        assert!(found.is_none() && broken.is_none(), "{shape:?}: {found:?} {broken:?}");
        assert!(report.figures.states > 0, "{shape:?}");
    }
    for shape in Shape::ALL.into_iter().map(Some).chain([None]) {
        let report = campaign::run(&Odd::new(How::OneBlock), &settings(6, shape), |_| {});
        let campaign::Report { found, broken, .. } = &report;
        assert!(found.is_none() && broken.is_none(), "{shape:?}: {found:?} {broken:?}");
        assert!(report.figures.probes.count(Probe::RefcountBlockGrowth) == 0, "{shape:?}");
    }
    for shape in [Shape::Compressed, Shape::Compressing] {
        let report = campaign::run(&Odd::new(How::Inflates), &settings(40, Some(shape)), |_| {});
        assert!(report.found.is_none() && report.broken.is_none(), "{shape:?}: {:?}", report.found);
    }
    for how in Robustness::ALL {
        let damaged = Settings { damage: Some(how), ..settings(40, None) };
        let subject = Odd::new(How::LittleOfDamaged);
        let report = campaign::run(&subject, &damaged, |_| {});
        assert!(report.found.is_none(), "{how}: {:?}", report.found);
        assert!(report.figures.states > 0, "{how}");
    }
    let worlds = worlds(&[512, 1024], &[false, true], &initials());
    let all = ExploreSettings { workers: 1, ..ExploreSettings::new(worlds, 2) };
    let report = explore::run(&subject, &all, |_, _, _, _| {});
    let why = "the subject cannot do zero-b, which is in the alphabet";
    assert_eq!((report.broken.as_deref(), report.complete), (Some(why), false));

    let settings = all.within(&subject.capabilities());
    let letters = ["write-a", "write-part-of-b", "write-across", "write-far", "write-through"];
    let names: Vec<&str> = settings.alphabet.iter().map(|letter| letter.name()).collect();
    assert_eq!(names, [&letters[..], &["flush", "reopen"]].concat());
    let report = explore::run(&subject, &settings, |_, _, _, _| {});
    assert!(report.complete && report.found.is_none(), "{:?}", report.found);
    let certificate = Certificate::new(&subject, &settings, &report);
    assert_eq!(certificate.not_asked, subject.capabilities().left_out());
    let one_block = Odd::new(How::OneBlock).capabilities().left_out();
    assert!(one_block.contains(&"growth".to_owned()), "{one_block:?}");
    let explored = report.worlds.iter().filter(|explored| explored.infeasible.is_none());
    let explored: Vec<String> = explored.map(|explored| explored.world.to_string()).collect();
    assert_eq!(
        explored,
        ["1024 B, eager, fresh", "1024 B, eager, fragmented, refcounts of 16 bits"],
        "it has no refcounts of 64 bits"
    );
    assert!(
        report.worlds[0].infeasible.as_deref()
            == Some("the subject does not open clusters of 512 bytes")
    );
}

/// Goal: nor does a report of its failure ask for more: no repair is shown, because there is none. Method: the same subject, whose flushes do
/// nothing; what was found is told and its image taken, at the cut and at last.
#[test]
fn a_report_asks_no_repair_of_whoever_has_none() {
    let subject = Odd::new(How::LittleForgetful);
    let found = campaign::run(&subject, &settings(500, None), |_| {}).found.expect("a lost write");
    let told = report::text(&subject, &found.trial, &found.failure, Some("kept.json"));
    assert!(told.contains("after the power cut") && !told.contains("repair"), "{told}");
    for last in [false, true] {
        assert!(report::image(&subject, &found.trial, &found.failure, last).is_some());
    }
    assert_eq!(panics::take(), None);
}

/// Goal: what is wrong with a subject is told for what it is, is found again, and ends no run. Method: one mistake a subject.
#[test]
#[cfg_attr(not(turn = "3"), ignore = "its turn is at another commit; CI=1 runs all")]
fn each_oddity_is_told_for_what_it_is() {
    for (how, expected) in [
        (How::PanicsOpening, "P8 panic: image\n"),
        (How::PanicsWriting, "P8 panic: image\n"),
        (How::PanicsDropped, "P8 panic: image\n"),
        (How::PanicsRepairing, "P8 panic: image\n"),
        (How::WritesWhenDropped, "P8 io-when-dropped: image\n  it submitted 1 I/O"),
        (How::Hangs, "P7 hangs: image"),
        (How::WaitsForAThread, "P7 hangs: image"),
        (How::MapsWrong, "P3 "),
    ] {
        let subject = Odd::new(how);
        let report = campaign::run(&subject, &settings(3000, None), |_| {});
        let found = report.found.unwrap_or_else(|| panic!("{how:?} was not noticed"));
        let told = found.failure.violation.to_string();
        assert!(told.starts_with(expected), "{how:?}: {told}");
        if expected.contains("panic") {
            assert!(told.contains("suite/odd.rs:"), "{how:?}: where it is: {told}");
        }
        // Whenever minimising is cut short, what it has come to fails.
        for limit in (1..=30).map(Duration::from_millis).chain([Duration::from_secs(5)]) {
            let small = minimise(&subject, &found.trial, &found.failure, limit, &mut |_| {}).found;
            let again = trial::run(&subject, &small.trial).unwrap();
            let (_, failure) =
                again.failure.unwrap_or_else(|| panic!("{how:?} is not found again ({limit:?})"));
            assert_eq!(failure.violation.kind, found.failure.violation.kind, "{how:?}");
        }
    }
}

/// Goal: two panics that say the same are two causes, each minimised as itself. Method: one subject with both, and the causes of some cases.
#[test]
#[cfg_attr(not(turn = "5"), ignore = "its turn is at another commit; CI=1 runs all")]
fn panics_in_two_places_are_two_causes() {
    let subject = Odd::new(How::PanicsInTwoPlaces);
    let (settings, found) = (settings(3, None), Mutex::new(Findings::default()));
    let note = |one: &Found| {
        found.lock().unwrap().add(one);
        true
    };
    let report = campaign::run_past(&subject, &settings, |_| {}, note);
    assert!(report.broken.is_none(), "{:?}", report.broken);
    let found = found.into_inner().unwrap();
    let causes = found.causes(&subject, Duration::from_secs(2), &mut |_| {});
    let told: Vec<String> = causes.iter().map(|met| met.cause.to_string()).collect();
    let [one, other] = &causes[..] else { panic!("{told:#?}") };
    for (cause, met) in [(&one.cause, one), (&other.cause, other)] {
        assert!(cause.panics_at.as_ref().is_some_and(|at| at.contains("suite/odd.rs:")), "{cause}");
        assert_eq!(*cause, RootCause::of(&subject, &met.small));
    }
    assert!(!one.cause.is_of(&other.cause) && !other.cause.is_of(&one.cause), "{told:#?}");
}

/// Goal: a call that never returns ends the process, which says in which case. Method: this test again in a process of its own, for a subject
/// that goes round in a circle, and what it says once more as the only case.
#[test]
#[cfg_attr(not(turn = "11"), ignore = "its turn is at another commit; CI=1 runs all")]
fn who_goes_round_in_a_circle_is_told_and_ended() {
    const CASE: &str = "QCOW2_TEST_SPINS_IN";
    const NAME: &str = "odd::who_goes_round_in_a_circle_is_told_and_ended";
    if let Ok(case) = std::env::var(CASE) {
        watch::begin(2, 7);
        let budget = case.parse().map_or(Budget::Cases(100), Budget::Case);
        let settings = Settings { budget, ..settings(1, None) };
        campaign::run(&Odd::new(How::Spins), &settings, |_| {});
        return;
    }
    let run = |case: &str| {
        let mut this = Command::new(std::env::current_exe().unwrap());
        let run = this.args(["--exact", NAME, "--nocapture"]).env(CASE, case).output().unwrap();
        let told = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(7), "{told}");
        told.lines().find(|line| line.starts_with("case ")).expect(&told).to_owned()
    };
    let told = run("any");
    let (case, what) = told.strip_prefix("case ").unwrap().split_once(' ').unwrap();
    assert!(what.starts_with("of seed 1: the subject has not come back from a call"), "{told}");
    assert_eq!(run(case), told);
}

/// Goal: whoever says that a close may leak is told of no leak, in campaigns and explorations, and whoever does not say so is. Method: the same
/// mistake, said and not said.
#[test]
#[cfg_attr(not(turn = "8"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_close_may_leak_if_that_is_said() {
    let worlds = worlds(&[1024], &[false], &[Initial::Fresh, Initial::Fragmented]);
    let explored = ExploreSettings { workers: 1, ..ExploreSettings::new(worlds, 2) };
    let kinds = |how| {
        let subject = Odd::new(how);
        let drawn = campaign::run(&subject, &settings(150, None), |_| {}).found;
        let walked = explore::run(&subject, &explored, |_, _, _, _| {}).found;
        let kind = |failure: &Failure| (failure.violation.property, failure.violation.kind);
        [drawn.map(|found| kind(&found.failure)), walked.map(|found| kind(&found.failure))]
    };
    assert_eq!(kinds(How::LeaksClosing), [None, None]);
    assert_eq!(kinds(How::LeaksClosingUnsaid), [Some((Property::P6, "leak")); 2]);
}

/// Goal: a budget of time is kept, however long a case takes, and what was judged until then counts. Method: one whose cases take seconds, for
/// half a second.
#[test]
fn a_case_ends_with_the_time() {
    let budget = Budget::Time(Duration::from_millis(500));
    #[expect(clippy::disallowed_methods, reason = "a budget of time is by the clock")]
    let start = Instant::now();
    let report =
        campaign::run(&Odd::new(How::Slow), &Settings { budget, ..settings(1, None) }, |_| {});
    let took = start.elapsed();
    assert!(took < Duration::from_millis(2500), "{took:?}");
    assert!(report.figures.states > 0 && report.broken.is_none(), "{:?}", report.broken);
    assert_eq!(report.figures.repeated, 0, "the case is not whole, and is not compared");
}

/// Goal: how much work writing takes is judged by what a subject says of it. Method: one that reads what it has written again and again, which says
/// so, and which does not.
#[test]
#[cfg_attr(not(turn = "11"), ignore = "its turn is at another commit; CI=1 runs all")]
fn much_work_is_allowed_if_that_is_said() {
    let found = |how| campaign::run(&Odd::new(how), &settings(60, None), |_| {}).found;
    let said = found(How::Toils);
    assert!(said.is_none(), "{said:?}");
    let unsaid = found(How::ToilsUnsaid).expect("it works too much").failure.violation;
    assert_eq!((unsaid.property, unsaid.kind), (Property::P7, "unbounded-work"));
}

/// Goal: what only a device shows that is worse than what the subject says it survives is told as that, counted and gone past; what it says is
/// judged first. Method: no flush of the device, by whoever promises to survive the death of the process; the same promise, broken; each as
/// a run on the worst device and on the one that was promised, in a process of its own.
#[test]
#[cfg_attr(not(turn = "11"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_promise_is_judged_before_what_is_beyond_it() {
    const NAME: &str = "odd::a_promise_is_judged_before_what_is_beyond_it";
    const CHILD: &str = "QCOW2_TEST_SURVIVES";
    let of = |word: &str| match word {
        "kept" => (How::SurvivesKill, Profile::TornLength),
        "broken" => (How::SurvivesKillAndMapsWrong, Profile::TornLength),
        "restless" => (How::SurvivesKillAndRemembers, Profile::TornLength),
        _ => (How::SurvivesKill, Profile::Kill),
    };
    if let Ok(word) = std::env::var(CHILD) {
        let ((how, profile), settings) = (of(&word), settings(4, None));
        let outputs = Outputs { minimise: Some(Duration::from_secs(2)), ..Outputs::default() };
        let settings = Settings { profile, ..settings };
        let status = console::run(&Odd::new(how), &settings, &outputs).unwrap();
        let passed = status == ExitStatus::Passed;
        assert_eq!(passed, word == "asked", "{status:?}");
        return;
    }
    let said = ["kept", "broken", "restless", "asked"].map(|word| {
        let mut this = Command::new(std::env::current_exe().unwrap());
        let run = this.args(["--exact", NAME, "--nocapture"]).env(CHILD, word).output().unwrap();
        let told = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{word}: {told}");
        told
    });
    let [kept, broken, restless, asked] = &said;
    let beyond = "beyond what it says that it survives, kill: ";
    let count = kept.split_once(beyond).and_then(|(_, rest)| rest.split(' ').next()).expect(kept);
    assert!(count.parse::<u64>().unwrap() > 1, "it goes on past them: {kept}");
    let unbroken = "promise: not broken; this is beyond what it says that it survives, kill\n";
    assert!(kept.contains(unbroken), "{kept}");
    assert!(broken.contains("\nP3 ") && !broken.contains(unbroken), "{broken}");
    assert!(restless.contains(beyond) && restless.contains("This run ends there, "), "{restless}");
    assert!(asked.contains("no violation") && !asked.contains(beyond), "{asked}");
}

/// Goal: what a subject does not take on is judged after what it does, and told as that. Method: one whose close leaks, and which says that it
/// may; the same, unsaid; each in a process of its own.
#[test]
#[cfg_attr(not(turn = "10"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_is_not_taken_on_is_judged_second() {
    const NAME: &str = "odd::what_is_not_taken_on_is_judged_second";
    const CHILD: &str = "QCOW2_TEST_TAKES_ON";
    if let Ok(word) = std::env::var(CHILD) {
        let how = if word == "said" { How::LeaksClosing } else { How::LeaksClosingUnsaid };
        let outputs = Outputs { minimise: Some(Duration::from_secs(2)), ..Outputs::default() };
        let subject = AnySubject::of(&Odd::new(how));
        let status = outsider::twice(&subject, &settings(2, None), &outputs).unwrap();
        assert_eq!(status, ExitStatus::Violation);
        return;
    }
    let [said, unsaid] = ["said", "unsaid"].map(|word| {
        let mut this = Command::new(std::env::current_exe().unwrap());
        let run = this.args(["--exact", NAME, "--nocapture"]).env(CHILD, word).output().unwrap();
        let told = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{word}: {told}");
        told
    });
    let second = "\nThe same, judged by what it does not promise, too.\n";
    let unbroken = "promise: not broken; this is beyond what it takes on\n";
    let (promised, all) = said.split_once(second).expect(&said);
    assert!(promised.contains("no violation\n"), "{said}");
    assert!(all.contains("\nbeyond what it takes on: ") && all.contains(unbroken), "{said}");
    assert!(all.contains("leak"), "{said}");
    assert!(!unsaid.contains(second) && !unsaid.contains("beyond"), "{unsaid}");
    assert!(unsaid.contains("leak"), "{unsaid}");
}

/// Goal: an exploration on a device that is worse than what the subject says it survives explores that first, to its end. Method: the same
/// promise, kept and broken, and asked for alone; each in a process of its own.
#[test]
fn a_promise_is_explored_before_what_is_beyond_it() {
    const NAME: &str = "odd::a_promise_is_explored_before_what_is_beyond_it";
    const CHILD: &str = "QCOW2_TEST_EXPLORES";
    const JSON: &str = "QCOW2_TEST_EXPLORED";
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("explored.json");
    if let Ok(word) = std::env::var(CHILD) {
        let (how, profile) = match &*word {
            "kept" => (How::SurvivesKill, Profile::TornLength),
            "broken" => (How::SurvivesKillAndMapsWrong, Profile::TornLength),
            _ => (How::SurvivesKill, Profile::Kill),
        };
        let worlds = worlds(&[1024], &[false], &[Initial::Fresh]);
        let settings = ExploreSettings { profile, ..ExploreSettings::new(worlds, 2) };
        let minimise = Some(Duration::from_secs(2));
        let json = std::env::var_os(JSON).map(PathBuf::from);
        let outputs = Exploration { minimise, json, ..Exploration::default() };
        let status = console::explore(&Odd::new(how), &settings, &outputs).unwrap();
        assert_eq!(status == ExitStatus::Passed, word == "asked", "{status:?}");
        return;
    }
    let [kept, broken, asked] = ["kept", "broken", "asked"].map(|word| {
        let mut this = Command::new(std::env::current_exe().unwrap());
        this.args(["--exact", NAME, "--nocapture"]).env(CHILD, word).env(JSON, &json);
        let run = this.output().unwrap();
        let told = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{word}: {told}");
        let came: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        let profiles = [&came["profile"], &came["asked"], &came["promised"]["profile"]];
        let ended = [&came["ended"], &came["promised"]["ended"]];
        let of = |names: [&str; 3], ends: [&str; 2]| {
            let null =
                |name: &str| if name.is_empty() { "null".into() } else { format!("{name:?}") };
            assert_eq!(profiles.map(ToString::to_string), names.map(null), "{word}: {came:#}");
            assert_eq!(ended.map(ToString::to_string), ends.map(null), "{word}: {came:#}");
        };
        match word {
            "kept" => of(["torn-length", "torn-length", "kill"], ["violation", "complete"]),
            "broken" => of(["kill", "torn-length", "kill"], ["violation", "violation"]),
            _ => of(["kill", "kill", ""], ["complete", ""]),
        }
        told
    });
    let first = "first what it says that it survives, kill:\nodd: ";
    let then = "no violation; and then what it does not say, torn-length:\nodd: ";
    let (promised, beyond) = kept.split_once(then).expect(&kept);
    assert!(promised.contains(first) && promised.contains("profile kill, "), "{kept}");
    assert!(beyond.contains("profile torn-length, ") && beyond.contains("\nviolation "), "{kept}");
    assert!(broken.contains(first) && broken.contains("\nviolation "), "{broken}");
    assert!(!broken.contains(then), "{broken}");
    assert!(asked.contains("no violation\n") && !asked.contains(first), "{asked}");
}

/// Goal: what a subject says where it only reads is compared with what is there. Method: one that reads a byte wrong there, and one that says
/// another size; both are right where they write.
#[test]
fn sessions_that_only_read_are_judged() {
    for (how, kind) in [(How::MisreadsReadOnly, "misread"), (How::SaysLessReadOnly, "size-misread")]
    {
        let found = campaign::run(&Odd::new(how), &settings(150, None), |_| {}).found;
        let Failure { violation, moment } = found.expect("it is noticed").failure;
        let seen = (violation.property, violation.kind, moment.as_str());
        assert_eq!(seen, (Property::P0, kind, "when it was read"), "{how:?}");
    }
}

/// Goal: exploration ends with a panic as with any other finding. Method: the same subjects.
#[test]
fn an_exploration_tells_of_panics() {
    for how in [How::PanicsOpening, How::PanicsWriting, How::PanicsRepairing] {
        let worlds = worlds(&[1024], &[false, true], &[Initial::Fresh, Initial::Dirty]);
        let settings = ExploreSettings { workers: 1, ..ExploreSettings::new(worlds, 2) };
        let report = explore::run(&Odd::new(how), &settings, |_, _, _, _| {});
        let found = report.found.unwrap_or_else(|| panic!("{how:?} was not noticed"));
        assert_eq!(found.failure.violation.kind, "panic", "{how:?}");
    }
}

/// Goal: who is not a function of the seed proves nothing, and is not accused of anything. Method: one of whose images one in four differs.
#[test]
fn who_remembers_other_images_proves_nothing() {
    let report = campaign::run(
        &Odd::new(How::Remembers),
        &Settings { seed: 2, ..settings(3, None) },
        |_| {},
    );
    assert!(report.found.is_none());
    let broken = report.broken.unwrap();
    assert!(broken.contains(" is not a function of its seed"), "{broken}");
    assert!(
        broken.contains(": in life 0, event ") && broken.contains(" at first and "),
        "{broken}"
    );
}

/// Goal: nor is that passed over in a run that goes on past findings and has some. Method: this test again in a process of its own, for a
/// subject that is wrong besides; what it prints.
#[test]
fn who_remembers_other_images_is_told_beside_findings() {
    const CHILD: &str = "QCOW2_TEST_REMEMBERS";
    const NAME: &str = "odd::who_remembers_other_images_is_told_beside_findings";
    if std::env::var_os(CHILD).is_some() {
        let arguments = Onward::augment_args(clap::Command::new("run"));
        let matches = arguments.get_matches_from(["run", "--keep-going"]);
        let onward = Onward::from_arg_matches(&matches).unwrap();
        let minimise = Some(Duration::ZERO);
        let outputs = Outputs { onward, minimise, ..Outputs::default() };
        let subject = Odd::new(How::MapsWrongAndRemembers);
        let status = console::run(&subject, &settings(300, None), &outputs).unwrap();
        assert_eq!(status, ExitStatus::Violation);
        return;
    }
    let mut this = Command::new(std::env::current_exe().unwrap());
    let run = this.args(["--exact", NAME, "--nocapture"]).env(CHILD, "").output().unwrap();
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{told}");
    assert!(told.contains("\nnew: P3 "), "{told}");
    assert!(told.contains("This run ends there, and proves nothing more: case "), "{told}");
}

/// Goal: a bound on leaks is asked of whoever promises it. Method: one that does, and one that does not.
#[test]
fn who_may_leak_is_not_held_to_little() {
    assert_eq!(p9_bounded_waste(&Odd::new(How::MayLeak), 4, 3), Ok(()));
    let failure = p9_bounded_waste(&Odd::new(How::Little), 4, 3).unwrap_err();
    assert_eq!(failure.violation.kind, "too-many-leaks");
}

/// Goal: what the data need of the storage is missed when it is not done. Method: the first flushes and writes of the library; a subject that
/// is not a function of its seed says nothing of a storage.
#[test]
#[cfg_attr(not(turn = "7"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_the_storage_leaves_out_is_missed() {
    let swept = sweep_of(&Qcow2Core::default(), 4).unwrap();
    assert!(swept.own.is_none());
    let noticed = |is_kind: fn(&Lapse) -> bool| {
        let of = swept.tried.iter().filter(|tried| is_kind(&tried.lapse));
        of.filter(|tried| tried.failure.is_some()).count()
    };
    let flushes = noticed(|lapse| matches!(lapse, Lapse::Flush(_)));
    let late = noticed(|lapse| matches!(lapse, Lapse::Late(_)));
    assert!(flushes >= 3 && late >= 1, "{flushes} flushes, {late} writes");
    let restless = sweep_of(&Odd::new(How::Remembers), 1);
    assert!(restless.unwrap_err().contains("is not a function of its seed"));
}

/// Goal: that is so of a subject with mistakes of its own, too, and none of these is taken for what the storage left out. Method: one that
/// panics whatever opens a dirty image, and one of which everything is wrong in the same way.
#[test]
#[cfg_attr(not(turn = "2"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_the_storage_leaves_out_is_missed_beside_mistakes_of_its_own() {
    let swept = sweep_of(&Odd::new(How::PanicsOpening), 2).unwrap();
    assert_eq!(swept.own.map(|own| own.violation.kind), Some("panic"));
    let noticed: Vec<_> = swept.tried.iter().filter_map(|tried| tried.failure.as_ref()).collect();
    assert!(noticed.len() >= 2, "{:?}", swept.tried);
    assert!(noticed.iter().all(|failure| failure.violation.kind != "panic"), "{noticed:?}");

    let swept = sweep_of(&Odd::new(How::MapsWrong), 1).unwrap();
    assert_eq!(swept.own.map(|own| own.violation.property), Some(Property::P3));
    let tried = &swept.tried;
    assert!(!tried.is_empty(), "the first flush comes");
    for Tried { lapse, failure, .. } in tried {
        let is_mapping = |failure: &Failure| failure.violation.property == Property::P3;
        assert!(!failure.as_ref().is_some_and(is_mapping), "{lapse}: {failure:?}");
    }
}

fn sweep_of<Sub: Subject>(subject: &Sub, most: u64) -> Result<Swept, String> {
    let (profile, limit) = (Profile::TornLength, Duration::from_secs(6));
    sweep(subject, profile, most, limit, |_| {}, |tried| println!("{tried:?}"))
}
