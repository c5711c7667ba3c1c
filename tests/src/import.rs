//! Anybody's log of writes to an image file, as crash states: what a power cut leaves of the image, and what a program makes of that.
//!
//! ```text
//!   log --play--> power cut --> crash state --audit--> what is not sound there                      (P4, by stage: clean or marked dirty)
//!                                   |
//!                                   `--> a file --command--> read back --audit--> what is left      (P4 of a repaired image)
//!                                                                 `--> the guest's contents of before, if that image was sound   (P3)
//! ```
//!
//! **Invariant.** Nothing is judged that a log does not say. It has no guest, so nothing that a guest was promised (P0 to P2) is asked. What
//! was no image yet is counted and not judged; what the auditor cannot judge is no finding. Nor is a leak: it loses nothing, and nobody said
//! that the command frees clusters (`qemu-img check -r all` leaves those past the end of the file).
//!
//! What is kept of a finding is the image alone. A case file says how to come there again: a subject, its requests and a schedule. A log
//! has none of these, and the damaged images that cases carry are of a medium that breaks its promises, for which less is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use faultfs::rng::Rng;
use faultfs::values::Values;
use model::case::Fate;
use model::finding::{Finding, Property, Stage};
use model::guest::{Guest, Promises};
use model::image::Image;
use model::judge::{Contents, Judge, Place};
use model::label::{Label, Region};
use model::payload::UNIT;

use crate::causes;
use crate::ended::Ended;
use crate::evidence::DiskEvidence;
use crate::file;
use crate::file_command::{CommandError, FileCommand};
use crate::image_log::{ImageLog, LostWrite, MOST_UNITS, PlayedLog, begins_image};
use crate::interrupt;
use crate::leaf::{LeafChooser, SharedLeaf, USUAL_CLUSTER_UNITS};
use crate::qemu::Run;
use crate::watch::doing;

/// Crash states of one power cut, as long as there is anything undecided.
const STATES_A_CUT: u64 = 8;

/// The same where a log has few places for a power cut.
const MOST_STATES_A_CUT: u64 = 64;

/// How a log is looked at.
#[derive(Clone, Debug)]
pub struct ImportSettings {
    /// How the power fails.
    pub profile: Profile,
    /// Seed of where it fails and of what survives.
    pub seed: u64,
    /// Crash states, at most.
    pub states: u64,
    /// Stop after so long.
    pub limit: Duration,
    /// What recovers an image.
    pub recover: Option<FileCommand>,
}

/// What is wrong, of one sort.
#[derive(Clone, Debug)]
pub struct ImportFinding {
    /// Which promise is broken.
    pub property: Property,
    /// How.
    pub kind: &'static str,
    /// The kind of structure that is concerned.
    pub structure: String,
    /// What is wrong, as it was seen first.
    pub told: String,
    /// When that was: after the power cut, or after the command.
    pub moment: &'static str,
    /// What the command printed then, if there was one.
    pub printed: Option<String>,
    /// How many entries had happened when the power failed.
    pub entries: usize,
    /// What was lost of them, and what lay there.
    pub lost: Vec<(LostWrite, Label)>,
    /// The image that the power cut left.
    pub image: Arc<[u8]>,
    /// In how many crash states it was seen.
    pub states: u64,
}

/// What looking at a log came to.
#[derive(Clone, Debug, Default)]
pub struct ImportReport {
    /// Places for a power cut, and how many of them were tried.
    pub cuts: (usize, usize),
    /// Crash states judged.
    pub states: u64,
    /// Crash states that were no image yet.
    pub no_image: u64,
    /// What could not be judged, when, and in how many states.
    pub unjudged: BTreeMap<(&'static str, &'static str), u64>,
    /// Images that the command was run on.
    pub recovered: u64,
    /// How often it ended with which exit code.
    pub codes: BTreeMap<i32, u64>,
    /// Images that it changed.
    pub changed: u64,
    /// Of these, sound before: their contents were compared.
    pub compared: u64,
    /// Of these, with clusters counted afterwards that nothing refers to.
    pub leaking: u64,
    /// Each sort of finding, in the order in which they were met.
    pub findings: Vec<ImportFinding>,
    /// Why it went no further; [`Ended::Complete`] if every power cut that was to be tried was.
    pub ended: Option<Ended>,
}

/// Why looking at a log came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The command cannot be run, or gave no answer.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// An image cannot be given to the command, or be kept.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What the command left in the place of the image is none.
    #[error("`{command}` was given an image, and it left none that can be read: {source}")]
    Taken {
        /// The command.
        command: String,
        /// Why.
        source: io::Error,
    },
}

/// When something was seen.
const AFTER_CUT: &str = "after the power cut";
const AFTER_COMMAND: &str = "after the command";

/// Tries power cuts in a log.
///
/// # Errors
/// [`ImportError`], from the command.
pub fn run(log: &ImageLog, settings: &ImportSettings) -> Result<ImportReport, ImportError> {
    let mut rng = Rng::new(settings.seed);
    let all = log.cuts();
    let (cuts, each) = drawn(&all, settings.states, &mut rng);
    let mut bench = ImportBench::new(log.values(), settings.recover.as_ref())?;
    let mut report = ImportReport { cuts: (all.len(), 0), ..ImportReport::default() };
    let mut played = log.play();
    #[expect(clippy::disallowed_methods, reason = "the budget is time by the clock")]
    let now = Instant::now;
    let start = now();
    for cut in cuts {
        played.to(cut);
        let states = if played.is_open() { each } else { 1 };
        for number in 0..states {
            let ended = if interrupt::asked() {
                Some(Ended::Interrupted)
            } else if start.elapsed() >= settings.limit || report.judged() >= settings.states {
                Some(Ended::Budget)
            } else {
                None
            };
            if ended.is_some() {
                report.ended = ended;
                return Ok(report);
            }
            report.cuts.1 += usize::from(number == 0);
            doing(format!("crash state {number} after {cut} entries of a log"));
            let chooser = survivors(number, &mut rng).share();
            bench.judge(&played, cut, settings.profile, chooser, &mut report)?;
        }
    }
    report.ended = Some(Ended::Complete);
    Ok(report)
}

impl ImportReport {
    /// Whether there was a command that did nothing each time, and said that it did not.
    pub fn is_command_idle(&self) -> bool {
        self.recovered > 0 && self.changed == 0 && !self.codes.contains_key(&0)
    }

    fn judged(&self) -> u64 {
        self.states + self.no_image
    }

    /// Notes what is wrong in a crash state, each sort once. Those that were not known before have no image yet.
    fn note(&mut self, seen: Vec<ImportFinding>) -> &mut [ImportFinding] {
        // The same after the power cut and after the command are two: one may be there without the other.
        let sort = |it: &ImportFinding| (it.moment, it.property, it.kind, it.structure.clone());
        let known = self.findings.len();
        let mut here = BTreeSet::new();
        for finding in seen {
            let this = sort(&finding);
            if !here.insert(this.clone()) {
                continue;
            }
            match self.findings.iter_mut().find(|known| sort(known) == this) {
                Some(known) => known.states += 1,
                None => self.findings.push(finding),
            }
        }
        &mut self.findings[known..]
    }
}

/// Which power cuts are tried, ascending, and how many crash states of each.
fn drawn(all: &[usize], states: u64, rng: &mut Rng) -> (Vec<usize>, u64) {
    let most = usize::try_from(states / STATES_A_CUT).unwrap_or(usize::MAX).max(1);
    if all.len() <= most {
        let each = (states / all.len() as u64).clamp(STATES_A_CUT, MOST_STATES_A_CUT);
        return (all.to_vec(), each);
    }
    let mut left = all.to_vec();
    let mut cuts: Vec<usize> = (0..most)
        .map(|_| {
            left.swap_remove(rng.below(u32::try_from(left.len()).unwrap_or(u32::MAX)) as usize)
        })
        .collect();
    cuts.sort_unstable();
    (cuts, STATES_A_CUT)
}

/// What survives in the crash state of this number: all, nothing that need not, then what seeds say.
fn survivors(number: u64, rng: &mut Rng) -> LeafChooser {
    match number {
        0 => LeafChooser::written(Vec::new()),
        1 => {
            let anywhere = std::sync::Arc::new(|_| Label { region: Region::BeyondEnd, unit: None });
            LeafChooser::labelled(Vec::new(), Vec::new(), Fate::Lose, anywhere)
        }
        _ => LeafChooser::random(rng.next_u64(), USUAL_CLUSTER_UNITS),
    }
}

/// What judging one crash state after the other needs.
struct ImportBench<'a> {
    judge: Judge,
    /// Nobody: nothing is known of what a guest was told.
    guest: Guest,
    values: Values,
    recover: Option<(&'a FileCommand, tempfile::TempDir)>,
}

impl<'a> ImportBench<'a> {
    fn new(values: &Values, recover: Option<&'a FileCommand>) -> Result<Self, ImportError> {
        let folder = |command: &'a FileCommand| {
            let folder = tempfile::tempdir();
            let path = std::env::temp_dir;
            folder
                .map(|folder| (command, folder))
                .map_err(|source| ImportError::File { path: path(), source })
        };
        let recover = recover.map(folder).transpose()?;
        let guest = Guest::new(&[], Promises::least(1));
        Ok(Self { judge: Judge::default(), guest, values: values.clone(), recover })
    }

    fn judge(
        &mut self,
        played: &PlayedLog<'_>,
        cut: usize,
        profile: Profile,
        mut chooser: SharedLeaf,
        report: &mut ImportReport,
    ) -> Result<(), ImportError> {
        let mut disk = played.crash(profile, &mut chooser);
        if !played.is_image() {
            let first = disk.read(0, &mut chooser);
            if !begins_image(self.values.bytes(first)) {
                report.no_image += 1;
                return Ok(());
            }
        }
        report.states += 1;
        let mut evidence = DiskEvidence::new(&mut disk, &mut chooser);
        self.judge.state(&mut evidence, &self.guest, None);
        let stage = self.judge.auditor().report().crashed_stage();
        let (wrong, unjudged) = self.wrong(stage);
        for what in unjudged {
            *report.unjudged.entry((AFTER_CUT, what)).or_default() += 1;
        }
        let mut before = Contents::default();
        if self.recover.is_some() {
            self.judge.contents(&evidence, &mut before);
        }
        let was_sound = wrong.is_empty();
        let image_of = self.judge.auditor().image().clone();
        let mut seen = Vec::new();
        let finding = |wrong: Wrong, moment, printed: Option<&String>| ImportFinding {
            property: wrong.property,
            kind: wrong.kind,
            structure: wrong.structure,
            told: wrong.told,
            moment,
            printed: printed.cloned(),
            entries: cut,
            lost: Vec::new(),
            image: Arc::default(),
            states: 1,
        };
        seen.extend(wrong.into_iter().map(|wrong| finding(wrong, AFTER_CUT, None)));
        let mut image = None;
        if self.recover.is_some() {
            let bytes = disk.image(&mut chooser);
            let (run, after) = self.command(&bytes)?;
            *report.codes.entry(run.code.unwrap_or_default()).or_default() += 1;
            report.changed += u64::from(after != bytes);
            let (mut wrong, unjudged) = self.recovered(&after, was_sound.then_some(&before));
            for what in unjudged {
                *report.unjudged.entry((AFTER_COMMAND, what)).or_default() += 1;
            }
            let all = wrong.len();
            wrong.retain(|wrong| !wrong.is_leak);
            report.leaking += u64::from(wrong.len() < all);
            report.recovered += 1;
            report.compared += u64::from(was_sound);
            let printed = run.to_string();
            let told = |wrong| finding(wrong, AFTER_COMMAND, Some(&printed));
            seen.extend(wrong.into_iter().map(told));
            image = Some(bytes);
        }
        let new = report.note(seen);
        if !new.is_empty() {
            let image: Arc<[u8]> = image.unwrap_or_else(|| disk.image(&mut chooser)).into();
            let lost = played.lost(&image).into_iter();
            let lost: Vec<_> =
                lost.map(|it| (it, image_of.label(u64::from(it.first) * UNIT as u64))).collect();
            for finding in new {
                (finding.lost, finding.image) = (lost.clone(), Arc::clone(&image));
            }
        }
        Ok(())
    }

    /// What is wrong in the image that was judged last, at a stage, and what of it nobody can judge.
    fn wrong(&self, stage: Stage) -> (Vec<Wrong>, BTreeSet<&'static str>) {
        let auditor = self.judge.auditor();
        let (mut wrong, mut unjudged) = (Vec::new(), BTreeSet::new());
        for (property, finding) in auditor.report().violations(stage) {
            match finding {
                Finding::Unsupported { what, .. } => drop(unjudged.insert(*what)),
                finding => wrong.push(Wrong {
                    property,
                    kind: finding.name(),
                    is_leak: matches!(finding, Finding::Leak { .. }),
                    structure: structure(finding, auditor.image()),
                    told: finding.to_string(),
                }),
            }
        }
        (wrong, unjudged)
    }

    /// Lets the command have an image, in a file that nobody had before; what it said, and what it left there.
    fn command(&self, image: &[u8]) -> Result<(Run, Vec<u8>), ImportError> {
        let (command, folder) = self.recover.as_ref().expect("there is a command");
        let path = folder.path().join("crashed.qcow2");
        let error = |source| ImportError::File { path: path.clone(), source };
        file::fresh(&path).and_then(|mut file| file.write_all(image)).map_err(error)?;
        let run = command.run(&path)?;
        let taken = |source| ImportError::Taken { command: command.to_string(), source };
        // A link may lead to anything, and a pipe is waited for.
        if !fs::symlink_metadata(&path).map_err(taken)?.is_file() {
            return Err(taken(io::Error::other("it is no file any more")));
        }
        let most = u64::from(MOST_UNITS) * UNIT as u64;
        Ok((run, file::read_up_to(&path, most).map_err(taken)?))
    }

    /// What is wrong with what the command left, and what of it nobody can judge.
    fn recovered(
        &mut self,
        after: &[u8],
        sound: Option<&Contents>,
    ) -> (Vec<Wrong>, BTreeSet<&'static str>) {
        let extents = (0..).step_by(UNIT).zip(after.chunks(UNIT));
        let mut disk = PossibleDisk::from_extents(&self.values, after.len() as u64, extents);
        let mut sure = faultfs::chooser::Always(0);
        let mut evidence = DiskEvidence::new(&mut disk, &mut sure);
        self.judge.state(&mut evidence, &self.guest, Some(Stage::Repaired));
        let (mut wrong, unjudged) = self.wrong(Stage::Repaired);
        if let Some(before) = sound {
            let mut now = Contents::default();
            self.judge.contents(&evidence, &mut now);
            if let Some(violation) = self.judge.p3_same_contents(before, &now, &evidence) {
                let structure = match violation.place {
                    Place::Guest { .. } => "data",
                    _ => "image",
                };
                wrong.push(Wrong {
                    property: violation.property,
                    kind: violation.kind,
                    is_leak: false,
                    structure: structure.to_owned(),
                    told: violation.to_string(),
                });
            }
        }
        (wrong, unjudged)
    }
}

/// Something that is wrong.
struct Wrong {
    property: Property,
    kind: &'static str,
    is_leak: bool,
    structure: String,
    told: String,
}

/// The kind of structure that a finding is about.
fn structure(finding: &Finding, image: &Image) -> String {
    let size = image.header().map_or(0, |header| header.cluster_size());
    match finding {
        Finding::RefcountTooLow { cluster, .. } | Finding::Leak { cluster, .. } => {
            causes::kind_of(image.label(cluster.saturating_mul(size)).region)
        }
        finding => causes::structure(finding),
    }
}

/// Keeps the image of a finding in a folder, over nothing; where.
///
/// # Errors
/// [`ImportError::File`].
pub fn keep(finding: &ImportFinding, folder: &Path) -> Result<PathBuf, ImportError> {
    let error = |path: &Path, source| ImportError::File { path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(|source| error(folder, source))?;
    let structure = finding.structure.replace(' ', "-");
    let stem = format!("imported-{}-{}-{structure}", finding.property, finding.kind).to_lowercase();
    for number in 1.. {
        let name = match number {
            1 => format!("{stem}.qcow2"),
            number => format!("{stem}-{number}.qcow2"),
        };
        let path = folder.join(name);
        match crate::file::create(&path, &finding.image) {
            Ok(()) => return Ok(path),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                if fs::read(&path).is_ok_and(|old| old[..] == finding.image[..]) {
                    return Ok(path);
                }
            }
            Err(source) => return Err(error(&path, source)),
        }
    }
    unreachable!("some number is free")
}
