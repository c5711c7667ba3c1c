//! Subjects that go wrong where only damage, or a whole run, shows it: the judgements of `robust` and `liveness` can fail.

use std::time::Duration;

use faultfs::chooser::Always;
use faultfs::fault::Planned;
use faultfs::profile::{DiscardMode, Profile, Robustness};
use model::build::Initial;
use model::case::{Device, Opening, Status, Step};
use model::finding::Property;
use model::guest::Promises;
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry, Op};
use qcow2_core::Image;
use qcow2_core::storage::{AnyStorage, IoBuf, Storage as _};
use qcow2_crashtest::campaign::{self, Budget, Report, Settings};
use qcow2_crashtest::ended::Ended;
use qcow2_crashtest::life::Order;
use qcow2_crashtest::liveness::{WentOn, p7_goes_on};
use qcow2_crashtest::probe::{Probe, Probes};
use qcow2_crashtest::recover::{Bench, Failure, StepPlan};
use qcow2_crashtest::replay::{Verdict, replay};
use qcow2_crashtest::subject::{Mend, Qcow2Core, Refusal, Session, Subject, SubjectImage};
use qcow2_crashtest::trial::{At, Survivors, Trial, TrialLife};
use qcow2_crashtest::workload::Scope;
use qcow2_crashtest::{corpus, robust, trial};

use crate::turn;

/// What it does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Nothing.
    Right,
    /// Says that it has repaired what it gave up on.
    Lies,
    /// Panics when it gives up.
    Panics,
    /// Tries again for ever when it gives up.
    NeverEnds,
    /// Writes to what it gave up on: zeroes over the last half of the file.
    Spoils,
    /// Refuses to write.
    Refuses,
    /// Looks at the whole file before each write.
    Labours,
    /// Forgets every write.
    Forgets,
    /// Reads for ever where it is to zero.
    Circles,
    /// Its check finds fault with everything, and gives nothing back.
    Alarms,
    /// Its check finds everything sound.
    Praises,
}

#[derive(Clone, Copy, Debug)]
struct Wrong(How);

struct WrongImage {
    image: Image<AnyStorage>,
    how: How,
}

impl Subject for Wrong {
    type Image = WrongImage;

    fn name(&self) -> String {
        format!("{:?}", self.0)
    }

    fn key(&self) -> &'static str {
        "wrong"
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        Qcow2Core::default().promises(geometry, session)
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<WrongImage, Refusal> {
        let image = Qcow2Core::default().open(storage, session).await?;
        Ok(WrongImage { image, how: self.0 })
    }

    async fn check(&self, storage: AnyStorage, mend: Mend) -> Option<Result<Statement, Refusal>> {
        match self.0 {
            How::Alarms => Some(Ok(Statement::GaveUp)),
            How::Praises => Some(Ok(Statement::Clean)),
            _ => Qcow2Core::default().check(storage, mend).await,
        }
    }

    async fn repair(&self, storage: AnyStorage) -> Result<Statement, Refusal> {
        let core = Qcow2Core { rules: qcow2_core::Rules::all() };
        let report = qcow2_core::check(&storage, qcow2_core::Repair::All, core.rules).await;
        let gave_up = !report.as_ref().is_ok_and(qcow2_core::CheckReport::is_consistent);
        match (self.0, gave_up) {
            (_, false) => Ok(Statement::Repaired),
            (How::Lies, true) => Ok(Statement::Repaired),
            (How::Panics, true) => panic!("a subject that panics on purpose"),
            (How::NeverEnds, true) => loop {
                let unit = storage.limits().alignment;
                let _ = storage.read(0, IoBuf::zeroed(unit, unit)).await;
            },
            (How::Spoils, true) => {
                let length = storage.len().await.map_err(|e| Refusal::Failed(e.to_string()))?;
                let _ = storage.write_zeroes(length / 1024 * 512..length).await;
                Ok(Statement::GaveUp)
            }
            _ => Ok(Statement::GaveUp),
        }
    }
}

/// Goal: what a check says and does can be found wrong. Method: one that finds fault with all, one that finds none, and the right one, as
/// steps of recovery on a sound and on a leaky image.
#[test]
fn a_check_that_is_wrong_is_found() {
    let geometry = Geometry::plain(9, 8 << 10);
    let session = Session::of(&Opening::new("wrong"), &geometry);
    let judged = |how, initial, run| {
        let device = Device::default();
        let start = trial::initial(&Wrong(how), &geometry, initial, &session, &device);
        let (disk, guest) = start.expect("feasible");
        let mut bench = Bench::new(Wrong(how), session, Profile::TornLength);
        let steps = [StepPlan { run, crash_at: None }];
        let judged = bench.judge_crash(disk, &guest, &steps, &Always(0), &mut Probes::default());
        judged.map_err(|failure| (failure.violation.property, failure.violation.kind))
    };
    for (initial, run) in [
        (Initial::Fresh, Step::Check),
        (Initial::Leaky, Step::Check),
        (Initial::Leaky, Step::RepairLeaks),
    ] {
        assert!(judged(How::Right, initial, run).is_ok(), "{initial:?}, {run:?}");
    }
    for (how, initial, run, expected) in [
        (How::Alarms, Initial::Fresh, Step::Check, (Property::P8, "false-alarm")),
        (How::Alarms, Initial::Leaky, Step::RepairLeaks, (Property::P4, "leaks-stay")),
        (How::Praises, Initial::Leaky, Step::Check, (Property::P8, "false-claim")),
    ] {
        assert_eq!(judged(how, initial, run).unwrap_err(), expected, "{how:?}");
    }
}

impl SubjectImage for WrongImage {
    fn size(&self) -> u64 {
        SubjectImage::size(&self.image)
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, String> {
        SubjectImage::read(&self.image, offset, buf).await
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        match self.how {
            How::Refuses => return Err("no".to_owned()),
            How::Forgets => return Ok(()),
            How::Labours => {
                for at in (0..self.size()).step_by(512) {
                    SubjectImage::read(&self.image, at, IoBuf::zeroed(512, 512)).await?;
                }
            }
            _ => {}
        }
        SubjectImage::write(&self.image, offset, data, durability).await
    }

    async fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        let forever = if self.how == How::Circles { usize::MAX } else { 0 };
        for _ in 0..forever {
            SubjectImage::read(&self.image, 0, IoBuf::zeroed(512, 512)).await?;
        }
        SubjectImage::write_zeroes(&self.image, offset, length, unmap).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), String> {
        SubjectImage::discard(&self.image, offset, length).await
    }

    async fn flush(&self) -> Result<(), String> {
        SubjectImage::flush(&self.image).await
    }

    async fn grow(&self, size: u64) -> Result<(), String> {
        SubjectImage::grow(&self.image, size).await
    }

    async fn map(&self) -> Result<Vec<Extent>, String> {
        SubjectImage::map(&self.image).await
    }

    async fn close(self) -> Result<(), String> {
        SubjectImage::close(self.image).await
    }
}

fn settings(how: Robustness, budget: Budget) -> Settings {
    Settings {
        seed: 1,
        profile: Profile::TornLength,
        damage: Some(how),
        scope: Scope::default(),
        budget,
        workers: 0,
    }
}

/// Goal: damage is survived: no panic, bounded work, no false claim. Method: a campaign of each robustness profile, and all
/// that it must have met.
#[test]
fn damaged_images_are_not_called_sound() {
    let seconds = if cfg!(debug_assertions) { 4 } else { 15 };
    let parts = if cfg!(debug_assertions) { Robustness::ALL.len() } else { 1 };
    for how in turn::share(Robustness::ALL.into_iter(), parts) {
        let budget = Budget::Time(Duration::from_secs(seconds));
        let report = campaign::run(&Qcow2Core::default(), &settings(how, budget), |_| {});
        assert!(report.found.is_none(), "{how}: {:?}", report.found);
        assert!(report.broken.is_none(), "{how}: {:?}", report.broken);
        let missed: Vec<Probe> = report.figures.probes.missed(Probe::DAMAGED).collect();
        assert!(missed.is_empty(), "{how}: {missed:?}\n{}", report.figures.damaged_table());
    }
}

/// Goal: each of the three judgements can fail. Method: subjects that lie, panic, go on for ever, and spoil what they give up;
/// what is found is kept as an image, is smaller for being minimised, and is told again by a replay.
#[test]
fn what_damage_brings_out_is_found_and_kept() {
    for (how, property, kind) in [
        (How::Lies, Property::P8, "false-claim"),
        (How::Panics, Property::P8, "panic"),
        (How::NeverEnds, Property::P7, "unbounded-work"),
        (How::Spoils, Property::P3, "content-changed"),
    ] {
        let settings = settings(Robustness::Misdirected, Budget::Cases(2000));
        let Report { found, figures, .. } = campaign::run(&Wrong(how), &settings, |_| {});
        let found = found.unwrap_or_else(|| panic!("{how:?}\n{}", figures.damaged_table()));
        let violation = &found.failure.violation;
        assert_eq!((violation.property, violation.kind), (property, kind), "{how:?}: {violation}");
        let image = found.image.expect("a damaged image is kept");
        let units = image.units.len();
        let whole =
            robust::case_of(&found.trial, Robustness::Misdirected, image, &found.failure, 1);
        let limit = Duration::from_secs(60);
        let (case, ended) =
            robust::minimise(&Wrong(how), &whole, &found.failure, limit, &mut |_| {});
        assert_eq!(ended, Ended::Complete);
        assert!(case.image.as_ref().is_some_and(|image| image.units.len() < units));
        let text = corpus::text_of(&case);
        let case = model::case::Case::from_json("x.json", &text).expect("it reads back");
        assert_eq!(case.status, Status::Open);
        let again = replay(&Wrong(how), &case, "x.json").expect("it can be shown again");
        assert_eq!(again.verdict, Verdict::Reproduced);
        let right = replay(&Wrong(How::Right), &case, "x.json").expect("it can be shown again");
        assert_eq!(right.verdict, Verdict::Fixed);
    }
}

/// Goal: P7 can fail. Method: subjects that do not go on after recovery, or not within the bound, or only in appearance.
#[test]
fn who_does_not_go_on_is_found() {
    let geometry = Geometry::plain(10, 64 << 10);
    let open = Opening { cache_pages: 1, growth_step: 1 << 10, ..Opening::new("wrong") };
    let session = Session::of(&open, &geometry);
    let goes_on = |how| -> Result<WentOn, Failure> {
        let (disk, guest) =
            trial::initial(&Wrong(how), &geometry, Initial::Leaky, &session, &Device::default())
                .expect("feasible");
        p7_goes_on(&Wrong(how), session, Profile::TornLength, &geometry, &disk, &guest, &Always(0))
    };
    let WentOn { ios, most, refilled } = goes_on(How::Right).expect("it goes on");
    assert!(ios < most && refilled);
    for (how, kind) in
        [(How::Refuses, "write-fails"), (How::Labours, "unbounded-work"), (How::Forgets, "misread")]
    {
        let failure = goes_on(how).expect_err("it must be found");
        assert_eq!((failure.violation.property, failure.violation.kind), (Property::P7, kind));
    }
}

/// Goal: long requests are no endless ones, and endless ones are found. Method: what a file system does when it is made, with a journal
/// that is zeroed in one request, on a disk of many small clusters; and the same on a subject that zeroes for ever.
#[test]
fn long_requests_are_told_from_endless_ones() {
    let geometry = Geometry { lazy_refcounts: true, ..Geometry::plain(9, 32 << 20) };
    let write =
        |id, offset, length| Op::Write { offset, length, id, durability: Durability::Cached };
    let zeroes = |unmap| Op::WriteZeroes { offset: 4 << 20, length: 8 << 20, unmap };
    let life = |op| TrialLife {
        tasks: vec![vec![write(1, 0, 1 << 20), op, write(2, 1 << 20, 4 << 20), Op::Flush]],
        order: Order::Seed(3),
        faults: Planned::default(),
        dropped: None,
        at: At::End,
        leaf: Survivors::Choices(Vec::new()),
        steps: Vec::new(),
        unrecovered: false,
    };
    for op in [zeroes(false), zeroes(true), Op::Discard { offset: 0, length: 32 << 20 }] {
        let trial = Trial {
            geometry,
            initial: Initial::Fresh,
            open: Opening::new("wrong"),
            profile: Profile::TornLength,
            discard: DiscardMode::Either,
            device: Device::default(),
            lives: vec![life(op)],
        };
        let right = trial::run(&Wrong(How::Right), &trial).expect("it is feasible");
        assert_eq!(right.failure, None);
        if matches!(op, Op::WriteZeroes { .. }) {
            let endless = trial::run(&Wrong(How::Circles), &trial).expect("it is feasible");
            let (_, failure) = endless.failure.expect("it never ends");
            let violation = failure.violation;
            assert_eq!((violation.property, violation.kind), (Property::P7, "hangs"));
        }
    }
}
