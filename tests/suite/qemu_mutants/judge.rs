//! What a mutant promises, and the looking.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use model::audit::Auditor;
use model::evidence::BytesEvidence;
use model::finding::Finding as AuditFinding;
use qcow2_core::blocking::check;
use qcow2_core::format::feature::Incompatible;
use qcow2_core::format::{Header, extension};
use qcow2_core::{
    CheckError, CheckReport, Finding, Layer, MAX_FINDINGS, OpenError, OpenOptions, Problem, Repair,
};
use qcow2_crashtest::qemu;
use tempfile::TempDir;

use super::changes::Mutant;
use super::difference::Opinions;
use super::seeds::{DOUBTFUL, Place, from, places};
use super::view::{View, open};
use super::watched::{PATTERN, Watched};
use crate::common::memory_directory;

/// No mutant may take longer than this, QEMU's part not counted.
const PATIENCE: Duration = Duration::from_secs(2);

/// The file grows by single clusters: an image without room to spare meets more.
const WRITING: OpenOptions = OpenOptions::new().growth(1);

/// What a mutant must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Property {
    /// (a) What could be read still can, and reads the same.
    Data,
    /// (a) A way to open it that worked still works.
    Opening,
    /// A check changes nothing; what is refused stays as it is.
    Untouched,
    /// (b) A repair that says that all is well is right, and there is nothing left for a second one.
    Repaired,
    /// (b) QEMU says so too, and reads what it read.
    Qemu,
    /// (c) A second attempt makes nothing worse.
    SecondAttempt,
    /// (d) Writing changes what is written and nothing else.
    Writing,
    /// (d) No guest data where a table is.
    OnMetadata,
    /// (e) Neither panics nor takes for ever.
    Bounded,
    /// (f) A check says of it what QEMU's says, or it is known why not.
    Verdict,
}

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub(super) struct Violation {
    pub(super) property: Property,
    pub(super) during: &'static str,
    pub(super) what: String,
}

impl Violation {
    /// Its kind: without numbers.
    pub(super) fn kind(&self) -> (Property, String) {
        (self.property, format!("{}: {}", self.during, shape(&self.what)))
    }
}

/// A text without its numbers.
pub(super) fn shape(text: &str) -> String {
    let words = text.split_inclusive([' ', ',', ';', ':', '.', ')', '(']).map(|word| {
        let is_number = word.starts_with(|c: char| c.is_ascii_digit());
        let tail = word.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
        if is_number { format!("#{tail}") } else { word.to_owned() }
    });
    words.collect()
}

/// Why a mutant does not have to keep a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Excuse {
    /// The image is not marked dirty, so its counts are believed, and a cluster of data has a count of 0: only counting all
    /// references could tell that it is in use, and nobody does that when a clean image is opened.
    CountTooLow,
    /// The image is not marked dirty, so COPIED is believed, and two guest clusters that claim a cluster for their own write
    /// to it in place; or a guest cluster and a table.
    SharedData,
    /// QEMU does not open the mutant as it was before either.
    QemuRefuses,
}

/// What happened how often, by name.
#[derive(Debug, Default)]
pub(super) struct Figures(pub(super) Mutex<BTreeMap<String, u64>>);

impl Figures {
    fn count(&self, what: impl Into<String>) {
        *self.0.lock().unwrap().entry(what.into()).or_default() += 1;
    }
}

/// Tools and room for one worker.
struct Bench<'a> {
    directory: TempDir,
    figures: &'a Figures,
    found: Vec<Violation>,
    /// Time that QEMU took.
    qemu: Duration,
    during: &'static str,
    /// Whether QEMU finds persistent bitmaps in the mutant.
    bitmaps: bool,
    /// Whether QEMU is asked what it thinks.
    asks: bool,
    /// What the mutant is over.
    layer: Option<&'a Arc<dyn Layer>>,
}

impl Bench<'_> {
    fn excuse(&self, excuse: Excuse) {
        self.figures.count(format!("excused: {excuse:?}"));
    }

    fn violation(&mut self, property: Property, what: impl Into<String>) {
        let mut what = what.into();
        if self.bitmaps {
            what.push_str(" [it has bitmaps]");
        }
        self.found.push(Violation { property, during: self.during, what });
    }

    fn judge(&mut self, mutant: &Mutant<'_>) {
        let bytes = mutant.bytes();
        self.bitmaps = Header::parse_for_check(&bytes)
            .is_ok_and(|header| header.extension(extension::BITMAPS).is_some());
        let growth =
            if mutant.number.is_multiple_of(4) { OpenOptions::new().growth } else { Some(1) };
        let opened = open(Watched::new(&bytes), self.layer, WRITING);
        let before = Before {
            view: View::of(&bytes, self.layer).ok(),
            writable: opened.is_ok(),
            growth,
            bytes,
        };
        if let (Some(_), Err(error)) = (&before.view, opened) {
            self.figures.count(format!("open for reading, but: {}", shape(&error.to_string())));
        }
        for (what, counted) in
            [("open for reading", before.view.is_some()), ("open for writing", before.writable)]
        {
            if counted {
                self.figures.count(what);
            }
        }
        if self.asks {
            self.compare_verdicts(&before);
        }
        let mut seen = Vec::new();
        let kinds = [
            ("check", Repair::None),
            ("repair of leaks", Repair::Leaks),
            ("repair of all", Repair::All),
            ("rebuild", Repair::Rebuild),
        ];
        for (during, how) in kinds {
            self.during = during;
            self.repair(mutant, &before, how, &mut seen);
        }
        self.during = "opening for writing";
        self.write(&before);
    }

    fn repair(
        &mut self,
        mutant: &Mutant<'_>,
        before: &Before,
        how: Repair,
        seen: &mut Vec<Vec<u8>>,
    ) {
        let storage = Watched::new(&before.bytes);
        let result = check(&storage, how);
        let after = storage.bytes();
        let changed = after != before.bytes;
        if storage.ran_on() {
            self.violation(Property::Bounded, "too many operations");
        }
        let refused = matches!(result, Err(CheckError::Format(_) | CheckError::Unsupported(_)));
        if changed && (how == Repair::None || refused) {
            self.violation(Property::Untouched, "the image was changed");
        }
        if changed && !seen.contains(&after) {
            self.compare(Property::Data, before, &after);
        }
        let consistent = result.as_ref().is_ok_and(CheckReport::is_consistent);
        if consistent {
            let changed = if changed { ", changed" } else { "" };
            self.figures.count(format!("sound after {}{changed}", self.during));
        }
        let again = Watched::new(&after);
        if !consistent {
            if changed {
                drop(check(&again, how));
                self.compare(Property::SecondAttempt, before, &again.bytes());
            }
            return;
        }
        match check(&again, Repair::None) {
            Ok(report) if report.findings.is_empty() || how == Repair::None => {}
            Ok(report) => self.violation(
                Property::Repaired,
                format!("a check afterwards finds: {}", report.findings[0]),
            ),
            Err(error) => {
                self.violation(Property::Repaired, format!("a check afterwards: {error}"))
            }
        }
        let second = check(&again, how).is_ok_and(|report| report.is_consistent());
        if !second {
            self.violation(Property::Repaired, "a second one does not say that all is well");
        }
        // A rebuild builds in any case; what it leaves must be the same but for its place.
        if how != Repair::Rebuild && again.bytes() != after {
            self.violation(Property::Repaired, "a second one changes something");
        }
        // All that changed, but for rebuilds of what was sound, and a sample of the rest.
        let sampled = mutant.number.is_multiple_of(8);
        let rebuilt_only =
            how == Repair::Rebuild && seen.iter().all(|other| *other == before.bytes);
        if self.asks && !seen.contains(&after) && (sampled || changed && !rebuilt_only) {
            let started = now();
            self.ask_qemu(before, &after);
            self.qemu += now() - started;
        }
        seen.push(after);
    }

    /// What ours and QEMU think of the mutant. Where they differ it is known why, and nothing else is let pass.
    fn compare_verdicts(&mut self, before: &Before) {
        let started = now();
        let path = self.directory.path().join("before.qcow2");
        let opinions = Opinions::of(&before.bytes, &path);
        self.qemu += now() - started;
        match opinions.difference() {
            Ok(None) => {}
            Ok(Some(difference)) => {
                self.figures.count(format!("differs from qemu-img check: {difference:?}"));
            }
            Err(what) => self.violation(Property::Verdict, what),
        }
        if opinions.both() {
            self.figures.count("compared with qemu-img check");
        }
    }

    /// What could be read and opened before still can.
    fn compare(&mut self, property: Property, before: &Before, after: &[u8]) {
        let Some(view) = &before.view else { return };
        match View::of(after, self.layer) {
            Ok(now) => {
                if let Some(loss) = view.loss(&now, &BTreeMap::new()) {
                    self.violation(property, loss);
                }
            }
            Err(error) => self.violation(Property::Opening, format!("for reading: {error}")),
        }
        if before.writable
            && let Err(error) = open(Watched::new(after), self.layer, WRITING)
        {
            self.violation(Property::Opening, format!("for writing: {error}"));
        }
    }

    fn ask_qemu(&mut self, before: &Before, after: &[u8]) {
        let [old, new] =
            ["before.qcow2", "after.qcow2"].map(|name| self.directory.path().join(name));
        fs::write(&old, &before.bytes).unwrap();
        fs::write(&new, after).unwrap();
        let info = |path: &Path| qemu::info(path).ok();
        if !self.qemu_checks(&old, &new) || before.bytes == after {
            return;
        }
        let args = ["compare", "-f", "qcow2", "-F", "qcow2", from(&old), from(&new)];
        let run = qemu::img(args).unwrap();
        if run.code != Some(0) {
            // An image that QEMU could not read before, wholly, has nothing to compare.
            let same = ["compare", "-f", "qcow2", "-F", "qcow2", from(&old), from(&old)];
            if qemu::img(same).unwrap().code == Some(0) {
                self.violation(Property::Qemu, format!("reads otherwise: {}", said(&run)));
            }
        }
        if self.bitmaps {
            let bitmaps =
                |info: &serde_json::Value| info["format-specific"]["data"]["bitmaps"].clone();
            if let Some(before) = info(&old) {
                match info(&new) {
                    Some(after) if bitmaps(&after) == bitmaps(&before) => {}
                    Some(_) => self.violation(Property::Qemu, "lists other bitmaps"),
                    None => self.violation(Property::Qemu, "does not open it any more"),
                }
            }
        }
    }

    /// QEMU's check of what ours calls sound. Whether QEMU opens it.
    fn qemu_checks(&mut self, old: &Path, new: &Path) -> bool {
        match qemu::check(new) {
            Ok(check) if check.code == 0 => true,
            Ok(_) => {
                let run = qemu::img(["check", "-f", "qcow2", from(new)]).unwrap();
                self.violation(Property::Qemu, format!("finds: {}", said(&run)));
                true
            }
            Err(error) => {
                if qemu::check(old).is_err() {
                    self.excuse(Excuse::QemuRefuses);
                } else if let qemu::QemuError::Failed(run) = error {
                    self.violation(Property::Qemu, format!("refuses it: {}", said(&run)));
                }
                false
            }
        }
    }

    fn write(&mut self, before: &Before) {
        let storage = Watched::new(&before.bytes);
        let options = before.growth.map_or(OpenOptions::new(), |growth| WRITING.growth(growth));
        let image = match open(storage.clone(), self.layer, options) {
            Ok(image) => image,
            Err(error) => {
                let after = storage.bytes();
                if storage.ran_on() {
                    self.violation(Property::Bounded, "too many operations");
                }
                let repaired = matches!(
                    error,
                    OpenError::Unrepairable(_) | OpenError::Repair(CheckError::Storage { .. })
                );
                if after != before.bytes {
                    if !repaired {
                        let what = format!("refused and changed: {error}");
                        self.violation(Property::Untouched, what);
                    }
                    self.compare(Property::Data, before, &after);
                    let again = Watched::new(&after);
                    drop(open(again.clone(), self.layer, WRITING));
                    self.compare(Property::SecondAttempt, before, &again.bytes());
                }
                return;
            }
        };
        let opened = storage.bytes();
        let Some(view) = &before.view else {
            self.violation(Property::Opening, "it opens for writing and did not for reading");
            return;
        };
        let Ok(header) = Header::parse(&opened) else {
            self.violation(Property::Opening, "it is open and has no header");
            return;
        };
        if let Ok(now) = View::of(&opened, self.layer)
            && let Some(loss) = view.loss(&now, &BTreeMap::new())
        {
            self.violation(Property::Data, loss);
            return;
        }
        let report = check(&Watched::new(&opened), Repair::None);
        let worst = report.as_ref().ok().and_then(|report| Worst::of(report, &opened));
        let sound = report.is_ok() && worst.is_none();
        let small = header.size <= 64 << 20;
        let compressed = small && report.is_ok_and(|report| report.compressed_clusters > 0);

        self.during = "writing";
        // What each of them must read afterwards; no length where that is open.
        let mut written = BTreeMap::new();
        let mut failed = None;
        for (&number, data) in view.clusters.iter().filter(|(number, _)| **number % 4 == 1) {
            let len = data.as_ref().map_or(view.cluster as usize, Vec::len);
            let pattern: Vec<u8> = PATTERN.iter().copied().cycle().take(len).collect();
            match image.write(number * view.cluster, &pattern) {
                Ok(()) => written.insert(number, pattern),
                Err(error) => {
                    failed = Some(error.to_string());
                    written.insert(number, Vec::new())
                }
            };
        }
        let flushed = image.flush();
        let closed = image.close().map(drop);
        if storage.ran_on() {
            self.violation(Property::Bounded, "too many operations");
        }
        let after = storage.bytes();
        if sound {
            let errors = [failed, flushed.as_ref().err().map(ToString::to_string)];
            let errors =
                errors.into_iter().flatten().chain(closed.as_ref().err().map(ToString::to_string));
            // A check does not look into streams.
            for error in errors.filter(|error| !error.contains("cannot be decompressed")) {
                self.violation(Property::Writing, format!("refused on a sound image: {error}"));
            }
        }
        let suffix = worst.map_or_else(String::new, |worst| format!(" ({worst:?} when opened)"));
        if storage.was_shortened() {
            self.violation(Property::Writing, format!("the file was made shorter{suffix}"));
            return;
        }
        if let Some(what) = landed(&storage, &header, &opened, &after) {
            self.violation(Property::OnMetadata, format!("on the {what}{suffix}"));
            return;
        }
        let excuse = match worst {
            _ if before.is_dirty() => None,
            Some(Worst::CountTooLow) => Some(Excuse::CountTooLow),
            Some(Worst::Shared | Worst::Overlap) => Some(Excuse::SharedData),
            _ => None,
        };
        match View::of(&after, self.layer) {
            Err(error) => {
                self.violation(Property::Opening, format!("for reading: {error}{suffix}"));
            }
            Ok(now) => {
                let loss = view.loss(&now, &written);
                let wrong = written.iter().find(|(number, pattern)| {
                    let data = now.clusters.get(number).and_then(|data| data.as_ref().ok());
                    flushed.is_ok() && !pattern.is_empty() && data != Some(*pattern)
                });
                let wrong =
                    wrong.map(|(number, _)| format!("guest cluster {number} was written in vain"));
                for what in loss.into_iter().chain(wrong) {
                    // A stream of which others wrote a part gives nothing any more.
                    let unreadable =
                        what.contains("cannot be read") && !what.contains("cannot be decompressed");
                    match excuse {
                        Some(excuse) if !unreadable => self.excuse(excuse),
                        _ => self.violation(Property::Writing, format!("{what}{suffix}")),
                    }
                }
            }
        }
        if sound && closed.is_ok() {
            let started = now();
            match check(&Watched::new(&after), Repair::None) {
                Ok(report) if report.findings.is_empty() => {}
                Ok(report) => {
                    let what = format!("a check afterwards finds: {}", report.findings[0]);
                    self.violation(Property::Writing, what);
                }
                Err(error) => {
                    self.violation(Property::Writing, format!("a check afterwards: {error}"))
                }
            }
            if !self.asks {
                return;
            }
            let [old, new] =
                ["before.qcow2", "after.qcow2"].map(|name| self.directory.path().join(name));
            fs::write(&old, &before.bytes).unwrap();
            fs::write(&new, &after).unwrap();
            if self.qemu_checks(&old, &new) && compressed {
                self.compare_compressed(&old, &new, view.cluster, &written);
            }
            self.qemu += now() - started;
        }
    }

    /// QEMU reads what is beside the clusters that were written as before: it has other decoders.
    fn compare_compressed(
        &mut self,
        old: &Path,
        new: &Path,
        cluster: u64,
        written: &BTreeMap<u64, Vec<u8>>,
    ) {
        let raw = self.directory.path().join("guest.raw");
        let read = |path: &Path| {
            let args = ["convert", "-f", "qcow2", "-O", "raw", from(path), from(&raw)];
            let run = qemu::img(args).unwrap();
            (run.code == Some(0)).then(|| fs::read(&raw).unwrap()).ok_or_else(|| said(&run))
        };
        let Ok(before) = read(old) else { return };
        match read(new) {
            Ok(after) => {
                let clusters = (0..).zip(before.chunks(cluster as usize));
                let changed = clusters.zip(after.chunks(cluster as usize)).find(
                    |((number, before), after)| before != after && !written.contains_key(number),
                );
                if let Some(((number, _), _)) = changed {
                    let what = format!("QEMU reads guest cluster {number} otherwise");
                    self.violation(Property::Writing, what);
                }
            }
            Err(error) => {
                self.violation(Property::Writing, format!("QEMU cannot read it: {error}"))
            }
        }
    }
}

/// Looks for guest data where a table is, at the beginning and at the end. Where a senseless entry leads counts as well, but for clusters that
/// are the guest's.
fn landed(storage: &Watched, header: &Header, opened: &[u8], after: &[u8]) -> Option<&'static str> {
    // Guest data may have become the header.
    let end = Header::parse(after).ok();
    let ends: Option<Vec<Place>> = end.as_ref().map(|end| places(after, end));
    let begins = places(opened, header);
    let is_data = |place: &&Place| ["data", "preallocated zeroes"].contains(&place.what);
    let data: BTreeSet<u64> = begins.iter().filter(is_data).map(|it| it.range.start).collect();
    let is_table = |place: &&Place| match place.what {
        DOUBTFUL => !data.contains(&place.range.start),
        what => {
            ["L1 table", "L2 table", "refcount table", "refcount block", "header"].contains(&what)
        }
    };
    // One that has moved has left its place to others.
    let stays = |place: &Place| {
        let same = |end: &Place| end.what == place.what && end.range == place.range;
        ends.as_ref().is_none_or(|ends| ends.iter().any(same))
    };
    let mut tables = begins.iter().filter(is_table);
    tables
        .find(|place| stays(place) && storage.was_written(place.range.clone()))
        .map(|place| place.what)
}

/// A mutant before anything was done to it.
struct Before {
    bytes: Vec<u8>,
    view: Option<View>,
    writable: bool,
    /// How the file is to grow when it is written to.
    growth: Option<u64>,
}

impl Before {
    fn is_dirty(&self) -> bool {
        Header::parse(&self.bytes)
            .is_ok_and(|header| header.incompatible.contains(Incompatible::DIRTY))
    }
}

/// The worst that a check found: what a mutant's other troubles most likely come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worst {
    Overlap,
    CountTooLow,
    BeyondEnd,
    Shared,
    BadEntry,
    Harmless,
}

impl Worst {
    /// The worst of a report on an image of these bytes. One that is cut short may hide it behind the entries of what is no table:
    /// the judge's auditor keeps more.
    fn of(report: &CheckReport, bytes: &[u8]) -> Option<Self> {
        let mut auditor = Auditor::default();
        let hidden = (report.findings.len() >= MAX_FINDINGS).then(|| {
            auditor.audit(&mut BytesEvidence::new(bytes)).findings.iter().filter_map(|finding| {
                match finding {
                    AuditFinding::RefcountTooLow { .. } => Some(Self::CountTooLow),
                    AuditFinding::Overlap { .. } => Some(Self::Overlap),
                    _ => None,
                }
            })
        });
        let worst = |finding: &Finding| match finding.problem {
            Problem::Overlap { .. } => Self::Overlap,
            Problem::RefcountTooLow { .. } | Problem::TooMany { .. } => Self::CountTooLow,
            Problem::BeyondEnd { .. } => Self::BeyondEnd,
            Problem::Shared { .. } => Self::Shared,
            Problem::Entry(_) => Self::BadEntry,
            _ => Self::Harmless,
        };
        report.findings.iter().map(worst).chain(hidden.into_iter().flatten()).min()
    }
}

/// The first line that QEMU printed, without the path.
pub(super) fn said(run: &qemu::Run) -> String {
    let text = format!("{}{}", run.stderr, run.stdout);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let words =
        line.split_whitespace().map(|word| if word.contains("/") { "(path)" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[expect(clippy::disallowed_methods, reason = "how long a mutant takes is one of the questions")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// What is wrong with a mutant.
pub(super) fn judge(
    mutant: &Mutant<'_>,
    asks: bool,
    figures: &Figures,
) -> (Vec<Violation>, Duration) {
    let mut bench = Bench {
        directory: memory_directory(),
        figures,
        found: Vec::new(),
        qemu: Duration::ZERO,
        during: "reading",
        bitmaps: false,
        asks,
        layer: mutant.seed.layer.as_ref(),
    };
    let started = now();
    let panicked = catch_unwind(AssertUnwindSafe(|| bench.judge(mutant)));
    if let Err(payload) = panicked {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("?");
        bench.violation(Property::Bounded, format!("panicked: {text}"));
    }
    let taken = (now() - started).saturating_sub(bench.qemu);
    if taken > PATIENCE {
        bench.violation(Property::Bounded, "took too long");
    }
    (bench.found, bench.qemu)
}
