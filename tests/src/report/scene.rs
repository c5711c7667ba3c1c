//! What a power cut left and what recovery made of it, one picture for each time that the judge looked.
//!
//! Recovery runs again as it did when it was judged, and the judge looks again in the same order, so that the same answers
//! decide the same units. It goes on after the look that failed, to show what repairing would still make of it.

use std::sync::{Arc, Mutex};

use faultfs::chooser::{Always, Choice, Steer};
use faultfs::direct::{self, Direct, DirectOptions};
use faultfs::disk::PossibleDisk;
use faultfs::trace::Trace;
use faultfs::values::Key;
use model::case::Step;
use model::guest::Guest;
use model::judge::Place;
use model::payload;

use crate::call::{self, Files};
use crate::evidence::DiskEvidence;
use crate::leaf::{Labels, LeafChooser, SharedLeaf, look};
use crate::panics;
use crate::recover::{Bench, Failure, READ, StepPlan, asked, name};
use crate::report::timeline::{Kept, Timeline, unit_of};
use crate::subject::{Mend, Refusal, Session, Subject, SubjectImage};
use crate::trial;

/// One look of the judge.
pub(super) struct Scene {
    /// When.
    pub(super) moment: String,
    /// The I/O since the scene before; nothing for the first.
    pub(super) timeline: Option<Timeline>,
    /// The same for people.
    pub(super) trace: Trace,
    /// The disk with that I/O still pending, if a power cut ended it.
    pub(super) live: Option<PossibleDisk>,
    /// How many choices had been made before that power cut.
    pub(super) chosen: usize,
    /// The disk, decided where somebody read it.
    pub(super) disk: PossibleDisk,
    /// One image that this disk may be: the one in which the failure shows, if it is seen here.
    pub(super) image: Vec<u8>,
    /// What lies where.
    pub(super) labels: Labels,
}

/// The scenes after a power cut that cuts `live` short. `guest` has not been told of it.
pub(super) fn scenes(
    bench: &mut Bench,
    live: &PossibleDisk,
    guest: &Guest,
    steps: &[StepPlan],
    choices: &[u32],
    failure: Option<&Failure>,
) -> Vec<Scene> {
    let mut guest = guest.clone();
    guest.crash();
    let mut chooser = LeafChooser::written(choices.to_vec()).share();
    let mut disk = live.crash(bench.profile, &mut chooser);
    let mut looker = Looker { bench, guest: &guest, chooser: SharedLeaf::clone(&chooser), failure };
    let mut all = Vec::new();
    looker.look_at(&mut disk, true);
    all.push(looker.scene("after the power cut".to_owned(), &mut disk, Trace::new()));
    all[0].live = Some(live.clone());
    let closing = [Step::Open, Step::Repair].map(|run| StepPlan { run, crash_at: None });
    let can = looker.bench.subject.capabilities();
    for &step in asked(steps, &can).chain(asked(&closing, &can)) {
        if failure.is_some_and(|failure| failure.moment == READ)
            && (step.run == Step::OpenReadOnly || !can.map)
            && let Some(scene) = looker.read(&mut disk)
        {
            all.push(scene);
            break;
        }
        let start = disk.clone();
        let crash_at = step.crash_at;
        let options = DirectOptions { crash_at, trace: true, ..DirectOptions::default() };
        let direct = Direct::with_options(disk, SharedLeaf::clone(&chooser), options);
        let written = Arc::new(Mutex::new(Vec::new()));
        let storage = Kept { inner: direct.clone(), written: Arc::clone(&written) };
        let done = looker.run(storage, step.run);
        let remains = direct.power_off();
        let trace = remains.trace.unwrap_or_default();
        disk = remains.disk;
        let timeline = Timeline::of_step(start, &trace, &written, &disk.values().clone());
        let mut live = None;
        let chosen = look(&chooser).answers().len();
        let moment = match &done {
            None if crash_at.is_some() => {
                live = Some(disk.clone());
                disk.crash_in_place(looker.bench.profile, &mut chooser);
                format!("after a power cut in {}", name(step.run))
            }
            None => format!("in {}, which hangs", name(step.run)),
            Some(Err(text)) => format!("with {}, which {text}", name(step.run)),
            Some(Ok(())) => format!("after {}", name(step.run)),
        };
        looker.look_at(&mut disk, live.is_some() || remains.counts.updates > 0);
        let mut scene = looker.scene(moment, &mut disk, trace);
        (scene.timeline, scene.live, scene.chosen) = (Some(timeline), live, chosen);
        all.push(scene);
        if !matches!(done, Some(Ok(()))) && crash_at.is_none() {
            break;
        }
    }
    all
}

struct Looker<'a> {
    bench: &'a mut Bench,
    guest: &'a Guest,
    chooser: SharedLeaf,
    failure: Option<&'a Failure>,
}

impl Looker<'_> {
    /// Decides what the judge decides, if the judge looks at all: it does not where nothing has changed.
    fn look_at(&mut self, disk: &mut PossibleDisk, changed: bool) {
        if changed {
            let mut evidence = DiskEvidence::new(disk, &mut self.chooser);
            self.bench.judge.state(&mut evidence, self.guest, None);
        }
    }

    /// What was written by who opened the image to read it, on a copy of the disk, if anything was.
    fn read(&mut self, disk: &mut PossibleDisk) -> Option<Scene> {
        let size = self.bench.judge.auditor().image().header()?.size;
        let options = DirectOptions { trace: true, ..DirectOptions::default() };
        let direct = Direct::with_options(disk.clone(), self.bench.reader(disk), options);
        let written = Arc::new(Mutex::new(Vec::new()));
        let storage = Kept { inner: direct.clone(), written: Arc::clone(&written) };
        let _ = self.bench.read_through(storage, size);
        drop(panics::take());
        let remains = direct.power_off();
        let trace = remains.trace.filter(|_| remains.counts.updates > 0)?;
        let timeline = Timeline::of_step(disk.clone(), &trace, &written, &disk.values().clone());
        let mut scene = self.scene(READ.to_owned(), disk, trace);
        scene.timeline = Some(timeline);
        Some(scene)
    }

    fn scene(&mut self, moment: String, disk: &mut PossibleDisk, trace: Trace) -> Scene {
        let failure = self.failure.filter(|failure| failure.moment == moment);
        if let Some(Place::Guest { host: Some(host), .. }) = failure.map(|f| f.violation.place)
            && let Some(found) = failure.and_then(|f| f.violation.found)
        {
            let values = disk.values().clone();
            let is_found = move |key: &Key| payload::decode(values.bytes(*key)) == found;
            let mut pick = Steer(move |_, what: Choice<'_>| match what {
                Choice::Unit { options, .. } | Choice::Read { options, .. } => {
                    options.iter().position(&is_found).map_or(0, |at| at as u32)
                }
                _ => 0,
            });
            disk.read(unit_of(host), &mut pick);
        }
        let labels = trial::labels(self.bench, disk, self.guest);
        let image = disk.clone().image(&mut Always(0));
        let (timeline, live) = (None, None);
        Scene { moment, timeline, trace, live, chosen: 0, disk: disk.clone(), image, labels }
    }

    fn run<S: Files>(&self, storage: S, step: Step) -> Option<Result<(), String>> {
        let subject = self.bench.subject.clone();
        let session = Session { writable: step != Step::OpenReadOnly, ..self.bench.session };
        let done = direct::run(async move {
            match step {
                Step::OpenReadOnly | Step::Open => {
                    let image = call::open(&subject, storage, session).await.map_err(refused)?;
                    if subject.capabilities().map { image.map().await.map(drop) } else { Ok(()) }
                }
                Step::Repair => {
                    let claim = call::repair(&subject, storage).await;
                    claim.map(drop).map_err(refused)
                }
                Step::Check | Step::RepairLeaks => {
                    let mend = if step == Step::Check { Mend::Nothing } else { Mend::Leaks };
                    let claim = call::check(&subject, storage, mend).await;
                    claim.transpose().map(drop).map_err(refused)
                }
            }
        });
        // Who draws what a panic left is not the one to tell of it.
        drop(panics::take());
        done
    }
}

fn refused(refusal: Refusal) -> String {
    match refusal {
        Refusal::GaveUp(text) => format!("gave up: {text}"),
        Refusal::Failed(text) => format!("failed: {text}"),
    }
}

/// The scene at which a failure was seen; the last one if none bears its name.
pub(super) fn failing(scenes: &[Scene], failure: &Failure) -> usize {
    let named = scenes.iter().position(|scene| scene.moment == failure.moment);
    named.unwrap_or(scenes.len() - 1)
}

/// The last power cut at or before a scene.
pub(super) fn last_cut(scenes: &[Scene], at: usize) -> usize {
    (0..=at).rev().find(|&at| scenes[at].live.is_some()).unwrap_or(0)
}
