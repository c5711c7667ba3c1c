//! One failure, told to a person who knows qcow2 and not this harness.
//!
//! ```text
//!   which promise, where            one line
//!   workload                        what the guest asked, and when the power failed
//!   I/O                             lanes: what was written where, what was kept, what was lost
//!   entries                         the table entries that disagree: before it, everything landed, after the cut, repaired
//!   lost                            the smallest set of losses that still does it
//!   missing flush                   where one more would have helped, and against how much else
//!   commands                        to see it again
//! ```
//!
//! The invariant: the text is a function of the case. No time, no path but the case's, no commit.

mod barrier;
mod entries;
mod export;
mod lanes;
mod lost;
mod scene;
mod timeline;
mod words;

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use faultfs::chooser::Always;
use faultfs::disk::{File, PossibleDisk};
use faultfs::profile::Profile;
use faultfs::trace::{Event, Io, IoKind};
use model::finding::Property;
use model::judge::{AUTOCLEAR_STAYS, Place, Violation};
use model::label::{Label, Region};
use model::op::{Compression, DataFile, Encryption, Op};
use model::payload::{INITIAL, STALE, Value};

use crate::any::AnySubject;
use crate::capabilities::Capabilities;
use crate::leaf::Labels;
use crate::life::Cause;
use crate::promise;
use crate::recover::{Bench, Failure, asked, name};
use crate::subject::Subject;
use crate::trial::{self, At, Outcome, Trial, TrialLife};

use barrier::{Search, Searched};
use entries::View;
pub use export::{ExportedLog, log};
use lanes::{Cut, Drawing, LEGEND, WIDTH};
use lost::Smallest;
use scene::Scene;
use timeline::{Played, Seen, Timeline, unit_of};
use words::describe;

/// The report of a trial that fails as `failure` says. `path` is the case file that it is kept in, for the commands.
pub fn text(
    subject: &impl Subject,
    trial: &Trial,
    failure: &Failure,
    path: Option<&str>,
) -> String {
    let subject = &AnySubject::of(subject);
    let story = match Story::of(subject, trial, failure) {
        Ok(story) => story,
        Err(why) => return format!("{}\nseen {}, {why}\n", failure.violation, failure.moment),
    };
    let mut out = String::new();
    let _ = story.write(&mut out, subject, path);
    out
}

/// Every event of a trial, labelled: of its lives, and of recovery after the last.
pub fn verbose(subject: &impl Subject, trial: &Trial, failure: &Failure) -> String {
    let subject = &AnySubject::of(subject);
    let Ok(outcome) = trial::run(subject, trial) else { return String::new() };
    let mut out = String::new();
    for (number, record) in outcome.lives.iter().enumerate() {
        let _ = writeln!(out, "life {number}, every event up to the power cut");
        let place = |offset: u64| (record.places)(unit_of(offset)).to_string();
        out.push_str(&record.trace.dump(place));
        for (at, (answer, label)) in record.answers.iter().zip(&record.labels).enumerate() {
            let what = match answer.unit {
                Some(unit) => format!("{label}, at {:#x}", u64::from(unit) * 512),
                None => "length or whole writes".to_owned(),
            };
            let (taken, options) = (answer.taken, answer.options);
            let _ = writeln!(out, "  choice {at}: option {taken} of {options} for {what}");
        }
    }
    let last = outcome.lives.len() - 1;
    let mut bench = Bench::new(subject.clone(), trial.session(), trial.profile);
    if let Some(record) = outcome.lives.get(last) {
        let (disk, guest, life) = (&record.disk, &record.guest, &trial.lives[last]);
        let all =
            scene::scenes(&mut bench, disk, guest, &life.steps, &record.choices, Some(failure));
        for scene in &all[1..] {
            let _ = writeln!(out, "recovery, {}", scene.moment);
            let place = |offset: u64| (scene.labels)(unit_of(offset)).to_string();
            out.push_str(&scene.trace.dump(place));
        }
    }
    out
}

/// The image of a failing trial, as bytes, and its data file if it has one: as the last power cut before the failure left it, or as recovery
/// left that. None if it fails without a power cut.
pub fn image(
    subject: &impl Subject,
    trial: &Trial,
    failure: &Failure,
    repaired: bool,
) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let subject = &AnySubject::of(subject);
    if fails_alive(failure) {
        return None;
    }
    let outcome = trial::run(subject, trial).ok()?;
    let (number, _) = outcome.failure?;
    let record = &outcome.lives[number];
    let mut bench = Bench::new(subject.clone(), trial.session(), trial.profile);
    let (disk, guest, steps) = (&record.disk, &record.guest, &trial.lives[number].steps);
    let mut all = scene::scenes(&mut bench, disk, guest, steps, &record.choices, Some(failure));
    let at =
        if repaired { all.len() - 1 } else { scene::last_cut(&all, scene::failing(&all, failure)) };
    let Scene { image, mut disk, .. } = all.swap_remove(at);
    let data = disk.second().map(|_| disk.image_of(File::Second, &mut Always(0)));
    Some((image, data))
}

/// Everything that is known of a failure.
struct Story {
    trial: Trial,
    outcome: Outcome,
    failure: Failure,
    /// The life that fails.
    life: usize,
    played: Vec<Played>,
    /// After each life; of the one that fails, on past the failure.
    scenes: Vec<Vec<Scene>>,
    /// By life: what lies where, at the power cut, or later where nothing did yet.
    labels: Vec<Labels>,
}

impl Story {
    /// # Errors
    /// Why there is none.
    fn of(subject: &AnySubject, trial: &Trial, failure: &Failure) -> Result<Self, &'static str> {
        let again = lost::smallest(subject, trial, failure).ok_or("and not again")?;
        let Smallest { trial, outcome, life, failure } = again;
        let mut bench = Bench::new(subject.clone(), trial.session(), trial.profile);
        let (mut played, mut all, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..=life {
            let this = timeline::play(subject, &trial, number)
                .ok_or("and again, but what a life began with did not come again")?;
            let seen = (number == life).then_some(&failure);
            let (steps, choices) = (&trial.lives[number].steps, &outcome.lives[number].choices);
            all.push(scene::scenes(&mut bench, &this.live, &this.guest, steps, choices, seen));
            let then = trial::labels(&mut bench, &this.live, &this.guest);
            let later = trial::labels(&mut bench, &this.last, &this.guest);
            labels.push(either(then, later));
            played.push(this);
        }
        Ok(Self { trial, outcome, failure, life, played, scenes: all, labels })
    }

    fn fails_alive(&self) -> bool {
        fails_alive(&self.failure)
    }

    fn write(&self, out: &mut String, subject: &AnySubject, path: Option<&str>) -> fmt::Result {
        let violation = &self.failure.violation;
        writeln!(out, "{}", headline(violation))?;
        writeln!(out, "seen: {}\nsubject: {}", self.failure.moment, subject.name())?;
        if !promise::is_broken(subject, &self.trial, &self.failure) {
            let beyond = promise::beyond(subject, self.trial.profile);
            writeln!(out, "promise: not broken; this is {beyond}")?;
        }
        self.workload(out, &subject.capabilities())?;
        self.lanes(out)?;
        self.values(out)?;
        if !self.fails_alive() {
            self.entries(out)?;
            self.lost(out)?;
            self.missing_flush(out, subject)?;
        }
        path.map_or(Ok(()), |path| commands(out, subject, path, self.fails_alive()))
    }

    /// Whether the image that the last power cut left was in order, and what came then was not.
    fn is_recovery_at_fault(&self) -> bool {
        let scenes = &self.scenes[self.life];
        let failing = scene::failing(scenes, &self.failure);
        scene::last_cut(scenes, failing) != failing
    }

    /// Whether nothing was written before the first power cut.
    fn is_untouched(&self) -> bool {
        let Played { timeline, cut, .. } = &self.played[0];
        self.life == 0 && !timeline.events[..*cut].iter().any(is_io)
    }

    fn workload(&self, out: &mut String, can: &Capabilities) -> fmt::Result {
        let Trial { geometry, initial, open, profile, .. } = &self.trial;
        writeln!(out, "\nWORKLOAD, the shortest known")?;
        writeln!(
            out,
            "  image: {}, {} bytes in clusters of {}, {} refcounts of {} bits{}",
            initial.name(),
            geometry.virtual_size,
            geometry.cluster_size(),
            if geometry.lazy_refcounts { "lazy" } else { "eager" },
            1u32 << geometry.refcount_order,
            if geometry.has_features() { "" } else { ", version 2" },
        )?;
        if geometry.extended_l2 {
            writeln!(out, "  with extended L2 entries")?;
        }
        if geometry.compression == Compression::Zstd {
            writeln!(out, "  compressed with zstd, where it is")?;
        }
        match geometry.data_file {
            None => {}
            Some(DataFile::Plain) => writeln!(out, "  with its guest data in a file of its own")?,
            Some(DataFile::Raw) => {
                writeln!(out, "  with its guest data in a file of its own, which is the disk")?;
            }
        }
        match geometry.encryption {
            None => {}
            Some(Encryption::Aes) => writeln!(out, "  encrypted with the AES from before LUKS")?,
            Some(Encryption::Luks) => writeln!(out, "  encrypted with LUKS")?,
        }
        if let Some(bytes) = geometry.below {
            writeln!(out, "  over a layer of {bytes} bytes")?;
        }
        let pages = match open.cache_pages {
            0 => "its own choice of metadata cache".to_owned(),
            pages => format!("a metadata cache of {pages} pages"),
        };
        writeln!(out, "  opened with {pages}, growing by {} bytes", open.growth_step)?;
        if open.copy_on_read && geometry.below.is_some() {
            writeln!(out, "  copy-on-read: what is read from the layer is copied")?;
        }
        if open.write_through {
            writeln!(out, "  write-through: every guest write is durable when it returns")?;
        }
        writeln!(out, "  power cut: profile {profile}, {}", power(*profile))?;
        for (number, life) in self.trial.lives[..=self.life].iter().enumerate() {
            if self.life > 0 {
                writeln!(out, "  life {number}")?;
            }
            for (task, ops) in life.tasks.iter().enumerate() {
                for (index, op) in ops.iter().enumerate() {
                    writeln!(out, "    t{task} op {index}: {}", describe(op))?;
                }
            }
            for fault in &life.faults.0 {
                writeln!(out, "    fault: {:?} at {:?}", fault.fault, fault.at)?;
            }
            if let Some(dropped) = life.dropped {
                let (task, op, ios) = (dropped.task, dropped.op, dropped.after_ios);
                writeln!(out, "    t{task} op {op} is dropped by its caller after I/O {ios}")?;
            }
            if !(number == self.life && self.fails_alive()) {
                writeln!(out, "    power cut {}", self.when(number))?;
            }
            for step in asked(&life.steps, can) {
                let cut = step.crash_at.map_or_else(String::new, |at| {
                    format!(", power cut at its update or flush {at}")
                });
                writeln!(out, "    recovery: {}{cut}", name(step.run))?;
            }
        }
        Ok(())
    }

    /// When the power fails in a life.
    fn when(&self, number: usize) -> String {
        let (life, played) = (&self.trial.lives[number], &self.played[number]);
        let seen = match life.at {
            At::End => return "when all was done".to_owned(),
            At::Event(event) => {
                usize::try_from(event).ok().and_then(|event| played.moments.get(event))
            }
        };
        let Some(seen) = seen else { return "when all was done".to_owned() };
        let of = |io: Io| format!("I/O #{} ({})", io.index, self.io_name(number, &io));
        match seen.cause {
            Cause::Submitted(io) => format!("right after {} was submitted", of(io)),
            Cause::Completed(io) => format!("right after {} ended", of(io)),
            Cause::Began => format!("right after {} began", op_name(seen.concerns)),
            Cause::Returned => format!("right after {} returned", op_name(seen.concerns)),
        }
    }

    /// An I/O in words: what it does where.
    fn io_name(&self, number: usize, io: &Io) -> String {
        io_name(io, &self.labels[number])
    }

    fn lanes(&self, out: &mut String) -> fmt::Result {
        for number in 0..=self.life {
            let life = &self.trial.lives[number];
            let (played, scenes) = (&self.played[number], &self.scenes[number]);
            match self.life {
                0 => writeln!(out, "\nI/O")?,
                _ => writeln!(out, "\nI/O of life {number}")?,
            }
            let alive = number == self.life && self.fails_alive();
            let end = if alive { played.timeline.events.len() } else { played.cut };
            let who = |task: Option<u32>| task_name(task, life);
            let notes = notes(played, life, end);
            let units = self.units(number);
            let labels = &self.labels[number];
            let cut = Cut { live: &played.live, crashed: &scenes[0].disk };
            let drawing = Drawing {
                timeline: &played.timeline,
                events: 0..end,
                who: &who,
                labels,
                cut: (!alive).then_some(cut),
                notes: &notes,
                units: &units,
            };
            let (lines, in_flight) = lanes::draw(&drawing);
            if played.timeline.events[..end].iter().any(is_io) {
                out.push_str(&lines);
            } else {
                writeln!(out, "  nothing but reads")?;
            }
            if alive {
                rule(out, &format!("seen {}", self.failure.moment))?;
                continue;
            }
            rule(out, &format!("power cut{}", flying(&in_flight)))?;
            let later = later(&played.timeline, played.cut);
            if !later.is_empty() && number == self.life {
                let later: Vec<String> = later
                    .iter()
                    .map(|io| format!("#{} {}", io.index, io_name(io, labels)))
                    .collect();
                writeln!(out, "  never submitted: {}, ...", later.join(", "))?;
            }
            let until = match number == self.life {
                true => scene::failing(scenes, &self.failure),
                false => scenes.len() - 2,
            };
            for scene in &scenes[1..=until] {
                recovery_lanes(out, scene, &units)?;
            }
        }
        for line in LEGEND.lines().filter(|_| !self.fails_alive()) {
            writeln!(out, "  {line}")?;
        }
        Ok(())
    }

    /// The units of the file that a failure is about: the guest unit's, or those that two I/Os in flight both touched.
    fn units(&self, number: usize) -> BTreeSet<u32> {
        if number != self.life {
            return BTreeSet::new();
        }
        let (played, labels) = (&self.played[number], &self.labels[number]);
        match self.failure.violation.place {
            Place::Guest { host: Some(host), .. } => BTreeSet::from([unit_of(host)]),
            Place::Guest { unit, host: None } => {
                let cluster = unit * 512 / self.trial.geometry.cluster_size();
                let is_its = |at: &u32| labels(*at).region == Region::Data(cluster);
                (0..played.live.extent()).filter(is_its).collect()
            }
            Place::Image if self.fails_alive() => contended(&played.timeline),
            _ => BTreeSet::new(),
        }
    }

    /// The value that is wrong: where it comes from, what was allowed, what happened to the unit.
    fn values(&self, out: &mut String) -> fmt::Result {
        let violation = &self.failure.violation;
        if let Some(found) = violation.found {
            writeln!(out, "\nVALUE")?;
            writeln!(out, "  found    {found}: {}", self.origin(found))?;
            for (index, value) in violation.allowed.iter().enumerate() {
                let head = if index == 0 { "allowed" } else { "" };
                writeln!(out, "  {head:<8} {value}: {}", self.origin(*value))?;
            }
        }
        if !violation.story.is_empty() {
            writeln!(out, "  what happened (t counts guest events):")?;
            for line in violation.story.lines() {
                wrap(out, "    ", line)?;
            }
        }
        Ok(())
    }

    /// Who wrote a value.
    fn origin(&self, value: Value) -> String {
        let (unit, id) = match value {
            Value::Zero => return "no data, or zeroed or discarded".to_owned(),
            Value::Foreign(_) => return "no guest wrote this; metadata, or damaged".to_owned(),
            Value::Tag { unit, id } => (unit, id),
        };
        if id == INITIAL {
            return format!("in guest unit {unit} from the start");
        }
        if id == STALE {
            return "left in a free cluster from the start; no guest may see it".to_owned();
        }
        let lives = &self.trial.lives[..=self.life];
        let writer = lives.iter().enumerate().find_map(|(number, life)| {
            life.tasks.iter().enumerate().find_map(|(task, ops)| {
                let is = |op: &Op| match op {
                    Op::Write { id: of, .. } | Op::WriteCompressed { id: of, .. } => *of == id,
                    _ => false,
                };
                ops.iter().position(is).map(|op| (number, task, op))
            })
        });
        match writer {
            Some((0, task, op)) if self.life == 0 => {
                format!("t{task} op {op} wrote it, to guest unit {unit}")
            }
            Some((number, task, op)) => {
                format!("t{task} op {op} of life {number} wrote it, to guest unit {unit}")
            }
            None => "an earlier write".to_owned(),
        }
    }

    fn entries(&self, out: &mut String) -> fmt::Result {
        let scenes = &self.scenes[self.life];
        let failing = scene::failing(scenes, &self.failure);
        let cut = scene::last_cut(scenes, failing);
        let Some(live) = &scenes[cut].live else { return Ok(()) };
        let start = self.played[self.life].timeline.start.clone().image(&mut Always(0));
        let landed = live.clone().image(&mut Always(0));
        let last = &scenes[scenes.len() - 1];
        let repaired = last.moment.starts_with("after an explicit repair");
        let end = if repaired { "repaired" } else { "at last" };
        let before = match self.life {
            0 => "before".to_owned(),
            number => format!("before life {number}"),
        };
        let titles = [&before, "all landed", "after the cut", end];
        let images = [&start, &landed, &scenes[cut].image, &last.image];
        let views = images.map(|image| View::new(image));
        let table = entries::table(&self.failure.violation, titles, &views);
        if table.lines().count() > 1 {
            writeln!(out, "\nENTRIES (* the power cut changed it)")?;
            out.push_str(&table);
        }
        if !repaired {
            wrap(out, "  ", &format!("Recovery ends {}", last.moment))?;
        }
        Ok(())
    }

    fn lost(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\nLOST, the smallest set: everything else is kept")?;
        let mut none = true;
        for (number, record) in self.outcome.lives.iter().enumerate() {
            let life = if self.life == 0 { String::new() } else { format!("life {number}: ") };
            let answers = record.answers.iter().zip(&record.labels).enumerate();
            for (index, (answer, label)) in answers.filter(|(_, (answer, _))| answer.taken != 0) {
                none = false;
                let cuts = self.scenes[number].iter().rev();
                let cut = cuts.filter(|scene| scene.live.is_some()).find(|s| s.chosen <= index);
                let when = match cut {
                    Some(scene) if scene.timeline.is_some() => format!(", {}", scene.moment),
                    _ => String::new(),
                };
                match answer.unit {
                    Some(unit) => {
                        let at = u64::from(unit) * 512;
                        let age = match (answer.taken, answer.options) {
                            (_, 2) => String::new(),
                            (taken, options) => {
                                format!("; it holds value {taken} of {options}, 0 being the newest")
                            }
                        };
                        let name = self.lost_name(number, unit, label);
                        writeln!(out, "  {life}{name} at {at:#x}{age}{when}")?;
                    }
                    None => {
                        let cut = &self.scenes[number][0];
                        let bytes = |disk: &PossibleDisk| {
                            let lengths = disk.possible_lengths();
                            u64::from(lengths.first().copied().unwrap_or(0)) * 512
                        };
                        let (is, newest) = (bytes(&cut.disk), bytes(&self.played[number].live));
                        writeln!(out, "  {life}file length: {is:#x} instead of {newest:#x}{when}")?;
                    }
                }
            }
        }
        if let Some(unit) = self.lost_unread() {
            none = false;
            let label = (self.labels[self.life])(unit);
            writeln!(
                out,
                "  {label} at {:#x}, which only the guest would read",
                u64::from(unit) * 512
            )?;
        }
        if none {
            return if self.failure.violation.property == Property::P9 {
                writeln!(out, "  nothing: what leaks was never given back")
            } else if self.is_untouched() {
                writeln!(out, "  nothing: nothing was written before the power cut")
            } else if self.is_recovery_at_fault() {
                writeln!(out, "  nothing: recovery goes wrong on an image on which all has landed")
            } else {
                writeln!(
                    out,
                    "  nothing: the image is wrong with all that was submitted, and without what was not"
                )
            };
        }
        writeln!(out, "  Keeping any one of these as well, this failure is gone (each was tried).")
    }

    /// The unit of guest data in which the failure shows, if it is wrong because it is not the newest.
    fn lost_unread(&self) -> Option<u32> {
        let Place::Guest { host: Some(host), .. } = self.failure.violation.place else {
            return None;
        };
        let unit = unit_of(host);
        let cut = &self.scenes[self.life][0];
        let mut keys = Vec::new();
        self.played[self.life].live.peek(unit, &mut keys);
        let is = cut.disk.single(unit)?;
        let answered = self.outcome.lives[self.life].answers.iter().any(|a| a.unit == Some(unit));
        (!answered && keys.len() > 1 && keys.first() != Some(&is)).then_some(unit)
    }

    /// The place of a loss, by what lies there when everything lands.
    fn lost_name(&self, number: usize, unit: u32, label: &Label) -> String {
        let landed = (self.labels[number])(unit);
        if landed.region == Region::BeyondEnd { *label } else { landed }.to_string()
    }

    fn missing_flush(&self, out: &mut String, subject: &AnySubject) -> fmt::Result {
        let played = &self.played[self.life];
        writeln!(out, "\nMISSING FLUSH")?;
        if self.trial.profile == Profile::Kill {
            writeln!(out, "  None: a process that is killed loses nothing that it has written.")?;
            writeln!(out, "  What is wrong was in flight with something that has to wait for it,")?;
            return writeln!(out, "  or was never submitted.");
        }
        let steps = &self.trial.lives[self.life].steps;
        if self.trial.profile == Profile::Cache && steps.iter().any(|step| step.crash_at.is_some())
        {
            writeln!(
                out,
                "  not searched: under cache it is known of each write whether it was lost"
            )?;
            return writeln!(
                out,
                "  only when it is read, and here the power failed again before that"
            );
        }
        if self.failure.violation.property == Property::P9 {
            return writeln!(
                out,
                "  not searched: what leaks was never given back, in whatever order"
            );
        }
        if !played.is_faithful() {
            return writeln!(out, "  not searched: the disk could not be made again from its I/O");
        }
        let scenes = &self.scenes[self.life];
        let cut = scene::last_cut(scenes, scene::failing(scenes, &self.failure));
        let choices = &self.outcome.lives[self.life].choices;
        let mut bench = Bench::new(subject.clone(), self.trial.session(), self.trial.profile);
        let (trial, failure) = (&self.trial, &self.failure);
        let search = Search { trial, played, steps, choices, failure };
        let (searched, timeline, labels, moments) = match &scenes[cut].timeline {
            None => {
                let searched = Some(barrier::in_life(&mut bench, &search));
                (searched, &played.timeline, &self.labels[self.life], &played.moments[..])
            }
            Some(timeline) => {
                let searched = barrier::in_step(&mut bench, &search, scenes, cut);
                (searched, timeline, &scenes[cut].labels, &[][..])
            }
        };
        let Some(searched) = searched else { return writeln!(out, "  not searched") };
        let in_order = self.is_recovery_at_fault();
        let untouched = self.is_untouched() && {
            let recovery = scenes[cut].timeline.as_ref();
            recovery.is_none_or(|of| !of.events.iter().any(is_io))
        };
        advice(out, &searched, &Around { timeline, labels, moments, in_order, untouched })
    }
}

/// Whether the life itself fails, without a power cut.
fn fails_alive(failure: &Failure) -> bool {
    matches!(failure.moment.as_str(), "in a read" | "while it ran")
}

/// The I/O of recovery that led to a scene.
fn recovery_lanes(out: &mut String, scene: &Scene, units: &BTreeSet<u32>) -> fmt::Result {
    let Some(timeline) = &scene.timeline else { return Ok(()) };
    if !timeline.events.iter().any(is_io) {
        return writeln!(out, "  {}: it wrote nothing", scene.moment);
    }
    let cut = scene.live.as_ref().map(|live| Cut { live, crashed: &scene.disk });
    let drawing = Drawing {
        timeline,
        events: 0..timeline.events.len(),
        who: &|_| "recovery".to_owned(),
        labels: &scene.labels,
        cut,
        notes: &[],
        units,
    };
    let (lines, in_flight) = lanes::draw(&drawing);
    out.push_str(&lines);
    match scene.live {
        Some(_) => rule(out, &format!("{}{}", &scene.moment[6..], flying(&in_flight))),
        None => rule(out, &scene.moment),
    }
}

/// What a search for a missing flush showed.
fn advice(out: &mut String, searched: &Searched, around: &Around<'_>) -> fmt::Result {
    let Searched { judged, others, same, complete, moments, best } = searched;
    let of_others = |removes: usize| match others {
        1 => format!("{removes} of 1 other failing state"),
        _ => format!("{removes} of {others} other failing states"),
    };
    match best {
        _ if *same == 0 => {
            writeln!(out, "  not known: this does not show in the states that were judged")?;
        }
        Some(gap) => {
            let (from, to) = (around.before(gap.first), around.after(gap.last));
            let removes = of_others(gap.removes);
            match (gap.removes_this, *others) {
                (false, _) => {
                    writeln!(out, "  No single flush removes this. One after {from}")?;
                    writeln!(out, "  and before {to} removes {removes}.")?;
                }
                (true, 0) => {
                    writeln!(out, "  A flush after {from} and before {to}")?;
                    writeln!(out, "  removes this. No other state fails.")?;
                }
                (true, _) => {
                    writeln!(out, "  A flush after {from} and before {to}")?;
                    writeln!(out, "  removes this and {removes}.")?;
                }
            }
        }
        None if around.untouched => {
            writeln!(
                out,
                "  No flush changes this: nothing was written before. It is the image as it was given, or what"
            )?;
            writeln!(out, "  recovery makes of it.")?;
        }
        None if around.in_order => {
            writeln!(
                out,
                "  No single flush removes this. Recovery is at fault, whatever was flushed before."
            )?;
        }
        None => {
            writeln!(
                out,
                "  No single flush removes this. What is missing was never submitted (see above): it has"
            )?;
            writeln!(out, "  to be written, and flushed, before something that was.")?;
        }
    }
    let all = if *complete { "all" } else { "some of those" };
    let fail = if *same == 1 { "fails" } else { "fail" };
    write!(out, "  ({judged} crash states judged; at this power cut, {all} that there are, ")?;
    write!(out, "and {same} {fail} in this way")?;
    match moments {
        (some, all) if some < all => {
            writeln!(out, ";\n  there was time for {some} of {all} moments.)")
        }
        _ => writeln!(out, ".)"),
    }
}

/// What lies around a gap.
struct Around<'a> {
    timeline: &'a Timeline,
    labels: &'a Labels,
    moments: &'a [Seen],
    /// The image was in order after the power cut.
    in_order: bool,
    /// Nothing was written at all.
    untouched: bool,
}

impl Around<'_> {
    /// The last update or flush that ended by event `at`.
    fn before(&self, at: usize) -> String {
        let ended = self.timeline.events[..at].iter().rev().find_map(|event| match event {
            Event::Complete { index, .. } => {
                submitted(self.timeline, *index).filter(|io| io.kind != IoKind::Read)
            }
            _ => None,
        });
        ended.map_or_else(|| "the start".to_owned(), |io| numbered(io, self.labels))
    }

    /// The first update or flush from event `at` on, or the return of a guest operation before that.
    fn after(&self, at: usize) -> String {
        let next = self.timeline.events[at..].iter().position(is_io).map_or(usize::MAX, |n| at + n);
        let returned = self
            .moments
            .iter()
            .find(|seen| seen.cause == Cause::Returned && seen.at > at && seen.at <= next);
        match (returned, later(self.timeline, at).first()) {
            (Some(seen), _) => format!("the return of {}", op_name(seen.concerns)),
            (None, Some(io)) => numbered(io, self.labels),
            (None, None) => "the end".to_owned(),
        }
    }
}

fn numbered(io: &Io, labels: &Labels) -> String {
    format!("I/O #{} ({})", io.index, io_name(io, labels))
}

/// Units that two updates in flight both touched, or one over another that had failed late.
fn contended(timeline: &Timeline) -> BTreeSet<u32> {
    let mut units = BTreeSet::new();
    let (mut running, mut late): (Vec<Io>, Vec<u64>) = Default::default();
    for event in &timeline.events {
        match event {
            Event::Submit { io, .. } if io.kind.is_update() => {
                for other in running.iter().filter(|other| other.overlaps(io)) {
                    let first = unit_of(io.offset.max(other.offset));
                    let end = unit_of((io.offset + io.len).min(other.offset + other.len));
                    units.extend(first..end);
                }
                running.push(*io);
            }
            Event::Complete { index, .. } => running.retain(|io| io.index != *index),
            Event::Fail { index, .. } => {
                running.retain(|io| io.index != *index || timeline.is_late(io));
                late.extend(running.iter().map(|io| io.index).filter(|of| of == index));
            }
            Event::Settle => {
                running.retain(|io| !late.contains(&io.index));
                late.clear();
            }
            _ => {}
        }
    }
    units
}

/// Whether an event submits an update or a flush.
fn is_io(event: &Event) -> bool {
    matches!(event, Event::Submit { io, .. } if io.kind != IoKind::Read)
}

fn submitted(timeline: &Timeline, wanted: u64) -> Option<&Io> {
    timeline.events.iter().find_map(|event| match event {
        Event::Submit { io, .. } if io.index == wanted => Some(io),
        _ => None,
    })
}

/// The next few updates and flushes from an event on.
fn later(timeline: &Timeline, from: usize) -> Vec<&Io> {
    let ios = timeline.events[from..].iter().filter_map(|event| match event {
        Event::Submit { io, .. } if io.kind != IoKind::Read => Some(io),
        _ => None,
    });
    ios.take(3).collect()
}

fn io_name(io: &Io, labels: &Labels) -> String {
    match io.kind {
        IoKind::Flush => "flush".to_owned(),
        IoKind::SetLen => format!("length {:#x}", io.offset),
        kind => format!("{} {}", kind.name(), labels(unit_of(io.offset)).region),
    }
}

/// What lies somewhere at one time, or at a later one if nothing did.
fn either(then: Labels, later: Labels) -> Labels {
    std::sync::Arc::new(move |unit| {
        let label = then(unit);
        if matches!(label.region, Region::Free(_) | Region::BeyondEnd) {
            later(unit)
        } else {
            label
        }
    })
}

/// Guest operations, each by the event that it comes before.
fn notes(played: &Played, life: &TrialLife, end: usize) -> Vec<(usize, String)> {
    let mut notes = Vec::new();
    let mut known = BTreeSet::new();
    let mut before = 0;
    for seen in &played.moments {
        if seen.at > end {
            break;
        }
        if let Some((task, op)) = seen.concerns {
            if known.insert((task, op)) {
                let what = life.tasks.get(task).and_then(|ops| ops.get(op));
                let text = what.map_or_else(
                    || "the guest closes the image".to_owned(),
                    |op| format!("t{task} begins: {}", describe(op)),
                );
                notes.push((before, text));
            }
            if seen.cause == Cause::Returned {
                notes.push((seen.at, format!("{} returns", op_name(seen.concerns))));
            }
        }
        before = seen.at;
    }
    notes
}

fn op_name(concerns: Option<(usize, usize)>) -> String {
    match concerns {
        None => "opening".to_owned(),
        Some((_, usize::MAX)) => "the close".to_owned(),
        Some((task, op)) => format!("t{task} op {op}"),
    }
}

/// The executor's first task opens the image, the last one closes it.
fn task_name(task: Option<u32>, life: &TrialLife) -> String {
    match task {
        Some(0) => "open".to_owned(),
        Some(task) if task as usize <= life.tasks.len() => format!("t{}", task - 1),
        _ => "close".to_owned(),
    }
}

fn rule(out: &mut String, text: &str) -> fmt::Result {
    let text = format!("==== {text} ");
    writeln!(out, "  {text:=<0$}", WIDTH - 30)
}

/// Writes words on lines of at most [`WIDTH`] columns.
fn wrap(out: &mut String, indent: &str, text: &str) -> fmt::Result {
    let mut width = indent.len();
    write!(out, "{indent}")?;
    for (number, word) in text.split(' ').enumerate() {
        if number > 0 && width + 1 + word.len() > WIDTH {
            write!(out, "\n{indent}  ")?;
            width = indent.len() + 2;
        } else if number > 0 {
            write!(out, " ")?;
            width += 1;
        }
        write!(out, "{word}")?;
        width += word.len();
    }
    writeln!(out)
}

fn flying(ios: &[u64]) -> String {
    if ios.is_empty() {
        return String::new();
    }
    let ios: Vec<String> = ios.iter().map(|io| format!("#{io}")).collect();
    format!("; in flight: {}", ios.join(" "))
}

fn headline(violation: &Violation) -> String {
    let line = violation.to_string();
    let line = line.lines().next().unwrap_or_default();
    let line = line.split(": found ").next().unwrap_or_default();
    let (name, rest) = line.split_once(": ").unwrap_or((line, ""));
    let words = match violation.kind {
        AUTOCLEAR_STAYS => "an autoclear bit vouches for what a write has made stale",
        _ => words(violation.property),
    };
    format!("{name} ({words}): {rest}")
}

const fn words(property: Property) -> &'static str {
    match property {
        Property::P0 => "a live read returned a wrong value",
        Property::P1 => "the guest was promised something that is gone",
        Property::P2 => "the guest reads what was never written there",
        Property::P3 => "looking again shows something else",
        Property::P4 => "the tables are not sound",
        Property::P5 => "repairing again changes the image",
        Property::P6 => "a clean close is not clean",
        Property::P7 => "something never ends, or cannot be written any more",
        Property::P8 => "an error, claim or contract is broken",
        Property::P9 => "too much is leaked",
        Property::P10 => {
            "what the image says of itself is neither as it was before an operation nor as it is after it"
        }
        Property::PCipher => "what was to be encrypted is not",
    }
}

const fn power(profile: Profile) -> &'static str {
    match profile {
        Profile::Kill => "every completed write, and any of those in flight",
        Profile::Prefix => "the writes up to some point",
        Profile::Epoch => "any subset of the writes since the last flush was submitted",
        Profile::Cache => "any subset of unflushed writes, each whole",
        Profile::Torn => "any subset of unflushed 512-byte units",
        Profile::TornLength => "any subset of unflushed 512-byte units, an older length",
    }
}

fn commands(out: &mut String, subject: &AnySubject, path: &str, alive: bool) -> fmt::Result {
    let campaign = subject.command();
    writeln!(out, "\nCOMMANDS")?;
    writeln!(out, "  {campaign} replay {path}")?;
    writeln!(out, "  {campaign} explain --verbose {path}")?;
    if !alive {
        writeln!(out, "  {campaign} dump {path} crashed.qcow2")?;
        if subject.capabilities().repair {
            writeln!(out, "  {campaign} dump --repaired {path} repaired.qcow2")?;
        }
        writeln!(out, "  qemu-img check crashed.qcow2")?;
    }
    Ok(())
}

/// A case of the corpus and the code on which it fails: without its witness.
#[cfg(test)]
fn without_witness(file: &str) -> (crate::subject::Qcow2Core, Trial) {
    use crate::{corpus, replay};

    let case = corpus::load(&corpus::folder().join(file)).expect("the file is a case");
    let broken = replay::subject_of(&case, file, true).expect("subject and witness exist");
    let exact = corpus::trial_of(&case, file).expect("the case can be run");
    (broken, exact)
}

/// All cases of the corpus that have lives, and not only a damaged image: name, code on which it fails, trial.
#[cfg(test)]
fn all_without_witness() -> Vec<(String, crate::subject::Qcow2Core, Trial)> {
    use crate::corpus;

    let files = corpus::files(&corpus::folder()).expect("the corpus can be read");
    let alive = |path: &std::path::PathBuf| {
        let case = corpus::load(path).expect("the file is a case");
        !case.lives.is_empty()
    };
    let alive = files.iter().filter(|path| alive(path));
    let named = alive.map(|path| path.file_name().expect("a file").to_string_lossy().into_owned());
    let all: Vec<_> = named
        .map(|name| {
            let (broken, exact) = without_witness(&name);
            (name, broken, exact)
        })
        .collect();
    assert!(all.len() >= 17, "only {} cases have lives", all.len());
    all
}
