//! What a person reads about a failure: the exact text of one failure of each kind, and that what it says is so.

use faultfs::fault::Planned;
use faultfs::profile::Profile;
use model::audit::Auditor;
use model::build::Initial;
use model::case::{Device, Opening};
use model::evidence::BytesEvidence;
use model::finding::{Property, Stage};
use model::guest::Promises;
use model::image::Mapping;
use model::judge::{Place, Statement};
use model::op::{Compression, Geometry, Op};
use model::payload::{self, Value};
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Storage as _};
use qcow2_crashtest::campaign;
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::life::Order;
use qcow2_crashtest::recover::Failure;
use qcow2_crashtest::replay::{self, subject_of};
use qcow2_crashtest::subject::{Duties, Qcow2Core, Refusal, Session, Subject, SubjectImage};
use qcow2_crashtest::trial::{self, At, Survivors, Trial, TrialLife};
use qcow2_crashtest::workload::Scope;
use qcow2_crashtest::{corpus, report};

use crate::house::root;

/// Columns of a line of a report, the first line and the commands aside.
const WIDTH: usize = 100;

/// A case of the corpus on code without its witness; none if it has no witness, or no lives.
fn without_witness(name: &str) -> Option<(Qcow2Core, Trial, Failure)> {
    let case = corpus::load(&corpus::folder().join(name)).expect("the file is a case");
    if case.witness.is_none() || case.lives.is_empty() {
        return None;
    }
    let broken = subject_of(&case, name, true).expect("subject and witness exist");
    let replay = replay::replay(&broken, &case, name).expect("the case can be run");
    let failure = replay.failure.unwrap_or_else(|| panic!("{name} passes without its witness"));
    Some((broken, replay.trial.expect("it was seen in a trial"), failure))
}

fn failing(name: &str) -> (Qcow2Core, Trial, Failure) {
    without_witness(name).expect("it has a witness and lives")
}

fn told(name: &str) -> String {
    let (subject, trial, failure) = failing(name);
    report::text(&subject, &trial, &failure, Some(&format!("corpus/{name}")))
}

#[test]
fn a_refcount_too_low() {
    insta::assert_snapshot!(told("without-refcount-before-reference.json"));
}

#[test]
fn lost_guest_data() {
    insta::assert_snapshot!(told("without-durable-before-acknowledge.json"));
}

#[test]
fn stale_data_exposed() {
    insta::assert_snapshot!(told("without-dereference-before-reuse.json"));
}

#[test]
fn a_power_cut_in_repair() {
    insta::assert_snapshot!(told("without-all-before-clean-in-repair.json"));
}

#[test]
fn a_failure_without_a_power_cut() {
    insta::assert_snapshot!(told("without-orphans-before-reuse.json"));
}

/// Goal: of a failure that does not come again nothing is shown but that. Method: what a sabotaged library did, told of the library as it is.
#[test]
fn a_failure_that_does_not_come_again_is_said_to_be_gone() {
    let (_, trial, failure) = failing("without-dereference-before-reuse.json");
    let text = report::text(&Qcow2Core::default(), &trial, &failure, None);
    assert!(text.ends_with(", and not again\n") && !text.contains("WORKLOAD"), "{text}");
}

/// Goal: an image that changes when it is only read is shown changing. Method: a reader that closes the image as a writer does.
#[test]
fn what_a_reader_wrote_is_shown() {
    let subject = Qcow2Core::without(["mutant:close-of-reader"]).unwrap();
    let found = campaign::run(&subject, &crate::blocking_door::settings(1, None), |_| {}).found;
    let campaign::Found { trial, failure, .. } = found.expect("it is noticed");
    assert_eq!(failure.violation.kind, "read-only-open-wrote");
    let text = report::text(&subject, &trial, &failure, None);
    let (_, cut) = text.split_once("==== power cut").expect("there is one");
    let (read, _) = cut.split_once("==== when it was read ===").expect("it ends there");
    assert!(read.contains("recovery write") && !text.contains("it wrote nothing"), "{text}");
}

/// The implementation, but its repair always writes the header once more.
#[derive(Clone)]
struct Restless(Qcow2Core);

impl Subject for Restless {
    type Image = <Qcow2Core as Subject>::Image;

    fn name(&self) -> String {
        "a restless repair".to_owned()
    }

    fn key(&self) -> &'static str {
        "restless"
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        self.0.promises(geometry, session)
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<Self::Image, Refusal> {
        self.0.open(storage, session).await
    }

    async fn repair(&self, storage: AnyStorage) -> Result<Statement, Refusal> {
        let failed = |error: std::io::Error| Refusal::Failed(error.to_string());
        let (header, read) = storage.read(0, IoBuf::zeroed(512, 512)).await;
        read.map_err(failed)?;
        let (_, written) = storage.write(0, header, Durability::Cached).await;
        written.map_err(failed)?;
        storage.flush().await.map_err(failed)?;
        self.0.repair(storage).await
    }
}

/// The implementation without a write order, which refuses to write to an image that refers to what lies past the end of its file; or the whole
/// one, which opens no image for reading only.
#[derive(Clone)]
enum Strict {
    Writes(Qcow2Core),
    Opens(Qcow2Core),
}

struct StrictImage {
    image: <Qcow2Core as Subject>::Image,
    torn: bool,
}

impl SubjectImage for StrictImage {
    fn size(&self) -> u64 {
        SubjectImage::size(&self.image)
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, String> {
        SubjectImage::read(&self.image, offset, buf).await
    }

    async fn write(
        &self,
        offset: u64,
        data: IoBuf,
        durability: model::op::Durability,
    ) -> Result<(), String> {
        if self.torn {
            return Err("a cluster past the end of the file".to_owned());
        }
        SubjectImage::write(&self.image, offset, data, durability).await
    }

    async fn flush(&self) -> Result<(), String> {
        SubjectImage::flush(&self.image).await
    }

    async fn close(self) -> Result<(), String> {
        SubjectImage::close(self.image).await
    }
}

impl Subject for Strict {
    type Image = StrictImage;

    fn name(&self) -> String {
        "a strict library".to_owned()
    }

    fn key(&self) -> &'static str {
        "strict"
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::plain();
        (can.zeroes, can.discard, can.grow, can.repair, can.map) =
            (false, false, false, false, false);
        can.initials = &[Initial::Fresh];
        can
    }

    fn duties(&self) -> Duties {
        Duties { structure: false, ..Duties::default() }
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<StrictImage, Refusal> {
        let length = storage.len().await.map_err(|error| Refusal::Failed(error.to_string()))?;
        let (Self::Writes(core) | Self::Opens(core)) = self;
        if matches!(self, Self::Opens(_)) && !session.writable {
            return Err(Refusal::GaveUp("it is not opened for writing".to_owned()));
        }
        let image = core.open(storage, session).await?;
        let map = SubjectImage::map(&image).await.map_err(Refusal::Failed)?;
        let torn = map
            .iter()
            .any(|extent| matches!(extent.to, Mapping::Host(at) if at + extent.length > length));
        Ok(StrictImage { image, torn })
    }
}

/// Goal: what shows only when all is written after recovery is looked for as well where a flush may be missing, and the flush that was taken away
/// is what is advised. Method: references before the length of the file, under a library that writes to no such image.
#[test]
#[cfg_attr(not(turn = "8"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_flush_that_going_on_misses() {
    let subject = Strict::Writes(Qcow2Core::without(["length-before-reference"]).unwrap());
    let settings = campaign::Settings {
        scope: Scope { tasks: Some(1), ..Scope::faultless() },
        ..crate::blocking_door::settings(500, None)
    };
    let found = campaign::run(&subject, &settings, |_| {}).found.expect("the length is lost");
    let (trial, failure) = (&found.trial, &found.failure);
    let violation = &failure.violation;
    assert_eq!((violation.property, violation.kind), (Property::P7, "write-fails"), "{failure:?}");
    let text = report::text(&subject, trial, failure, None);
    let (_, missing) = text.split_once("MISSING FLUSH").unwrap();
    assert!(missing.contains("A flush after") && missing.contains("removes this"), "{missing}");
    assert!(!missing.contains("not known"), "{missing}");
}

/// Goal: where nothing was written, no flush is missed and no recovery blamed. Method: a library that opens no image for reading only.
#[test]
fn an_image_that_is_not_opened_misses_no_flush() {
    let subject = Strict::Opens(Qcow2Core::default());
    let settings = campaign::Settings {
        scope: Scope { tasks: Some(1), ..Scope::faultless() },
        ..crate::blocking_door::settings(50, None)
    };
    let found = campaign::run(&subject, &settings, |_| {}).found.expect("it is not opened");
    let text = report::text(&subject, &found.trial, &found.failure, None);
    let (_, missing) = text.split_once("MISSING FLUSH").unwrap();
    assert!(missing.contains("nothing was written before"), "{text}");
    assert!(text.contains("nothing: nothing was written before the power cut"), "{text}");
}

#[test]
fn a_repair_that_is_not_a_fixed_point() {
    let subject = Restless(Qcow2Core::default());
    let trial = Trial {
        geometry: Geometry { lazy_refcounts: true, ..Geometry::plain(9, 4096) },
        initial: Initial::Dirty,
        device: Device::default(),
        open: Opening { growth_step: 512, ..Opening::new("restless") },
        discard: faultfs::profile::DiscardMode::Either,
        profile: Profile::TornLength,
        lives: vec![TrialLife {
            tasks: vec![vec![Op::Read { offset: 0, length: 512 }]],
            order: Order::Choices(Vec::new()),
            faults: Planned::default(),
            dropped: None,
            at: At::Event(4),
            leaf: Survivors::Choices(vec![u32::MAX; 8]),
            steps: Vec::new(),
            unrecovered: false,
        }],
    };
    let outcome = trial::run(&subject, &trial).expect("it is feasible");
    let (_, failure) = outcome.failure.expect("a repair that always writes never rests");
    insta::assert_snapshot!(report::text(&subject, &trial, &failure, None));
    // Nobody else has heard of a subject that does not say how it is run.
    let text = report::text(&subject, &trial, &failure, Some("case.json"));
    let program = std::env::args().next().expect("it has a name");
    assert!(text.contains(&format!("\n  {program} replay case.json\n")), "{text}");
}

/// Goal: every report can be read on a terminal and has all its sections. Method: the whole corpus.
#[test]
#[cfg_attr(not(turn = "0"), ignore = "its turn is at another commit; CI=1 runs all")]
fn every_report_is_complete() {
    let mut told = 0;
    for path in corpus::files(&corpus::folder()).expect("the corpus can be read") {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let Some((subject, trial, failure)) = without_witness(&name) else { continue };
        told += 1;
        let text = report::text(&subject, &trial, &failure, Some(&format!("corpus/{name}")));
        let mut sections = vec!["WORKLOAD", "I/O", "COMMANDS"];
        let alive = matches!(failure.moment.as_str(), "in a read" | "while it ran");
        if !alive {
            sections.extend(["LOST", "MISSING FLUSH", "ENTRIES"]);
        }
        for section in sections {
            assert!(text.contains(&format!("\n{section}")), "{name} has no {section}:\n{text}");
        }
        assert!(!text.contains("not searched"), "{name}:\n{text}");
        let Geometry { below, extended_l2, compression, data_file, encryption, .. } =
            trial.geometry;
        let parts = [
            (below.is_some(), "\n  over a layer"),
            (extended_l2, "\n  with extended L2 entries"),
            (compression == Compression::Zstd, "\n  compressed with zstd"),
            (data_file.is_some(), "\n  with its guest data in a file of its own"),
            (encryption.is_some(), "\n  encrypted with"),
        ];
        for (has, part) in parts {
            assert_eq!(text.contains(part), has, "{name}, {part}:\n{text}");
        }
        let (report, _) = text.split_once("\nCOMMANDS").expect("commands come last");
        let widest = report.lines().skip(1).map(str::len).max();
        assert!(widest <= Some(WIDTH), "{name}: {widest:?} columns:\n{report}");
    }
    assert!(told >= 15, "only {told} cases were told");
}

/// Goal: the image that is dumped is the one in which the failure shows, and the repaired one is in order. Method: an audit of
/// their bytes, by the judge's auditor, finds what the failure says, and then nothing.
#[test]
fn a_dumped_image_shows_the_failure() {
    for name in [
        "without-refcount-before-reference.json",
        "without-durable-before-acknowledge.json",
        "without-data-before-mapping.json",
        "without-dereference-before-reuse.json",
        "without-all-before-clean-in-repair.json",
    ] {
        let (subject, trial, failure) = failing(name);
        let dump = |repaired| {
            let bytes = report::image(&subject, &trial, &failure, repaired).map(|(image, _)| image);
            bytes.expect("it fails after a power cut")
        };
        let bytes = dump(false);
        let mut auditor = Auditor::default();
        auditor.audit(&mut BytesEvidence::new(&bytes));
        match failure.violation.place {
            Place::Structure(finding) => {
                assert!(auditor.report().findings.contains(&finding), "{name}: {finding}");
            }
            Place::Guest { unit, .. } => {
                let found = match auditor.image().mapping(unit) {
                    Mapping::Host(at) => {
                        let at = usize::try_from(at).expect("images are small");
                        payload::decode(bytes[at..].first_chunk().expect("a whole unit"))
                    }
                    _ => Value::Zero,
                };
                assert_eq!(Some(found), failure.violation.found, "{name}");
            }
            other => panic!("{name} fails elsewhere: {other:?}"),
        }
        let repaired = dump(true);
        let report = auditor.audit(&mut BytesEvidence::new(&repaired));
        assert_eq!(report.violations(Stage::Repaired).next(), None, "{name}");
    }
}

/// Goal: the commands of a report do what it says when pasted. Method: each is run, in the root of the source tree.
#[test]
fn the_commands_can_be_pasted() {
    let folder = tempfile::tempdir().expect("a folder for two images");
    let path = "corpus/without-all-before-clean-in-repair.json";
    let text = told("without-all-before-clean-in-repair.json");
    let (_, commands) = text.split_once("COMMANDS\n").expect("a report ends with its commands");
    let mut run = Vec::new();
    for line in commands.lines() {
        let Some(words) = line.trim().strip_prefix("cargo campaign ") else { continue };
        let words = words.split(' ').map(|word| match word.strip_suffix(".qcow2") {
            Some(_) => folder.path().join(word).into_os_string(),
            None => word.into(),
        });
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_campaign"))
            .args(words)
            .current_dir(root())
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.stderr.is_empty(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        run.push((output.status.code(), said));
    }
    let [replayed, explained, crashed, repaired] = &run[..] else {
        panic!("four commands, not {}", run.len())
    };
    assert!(replayed.0 == Some(0) && replayed.1.contains("reproduced"), "{replayed:?}");
    assert!(explained.0 == Some(1) && explained.1.starts_with(&text), "{explained:?}");
    assert!(explained.1.contains("submit   #8    write         by"), "{}", explained.1);
    assert_eq!((crashed.0, repaired.0), (Some(0), Some(0)));
    let (subject, trial, failure) = failing(path.trim_start_matches("corpus/"));
    for (file, is_repaired) in [("crashed.qcow2", false), ("repaired.qcow2", true)] {
        let bytes = std::fs::read(folder.path().join(file)).expect("it was written");
        let image = report::image(&subject, &trial, &failure, is_repaired);
        assert_eq!(Some((bytes, None)), image, "{file}");
    }
}
