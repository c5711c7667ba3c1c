//! Every case of the corpus, one named test each: whole code passes it, code without its witness fails it.

use std::path::PathBuf;

use faultfs::chooser::Always;
use faultfs::disk::PossibleDisk;
use faultfs::values::Values;
use model::case::{
    Case, Content, CrashImage, Discard, Exact, Life, Origin, SCHEMA, Scheduling, Status,
};
use model::evidence::ValueKey;
use model::finding::{Property, Stage};
use model::guest::{Guest, Made};
use model::judge::{Judge, Place, Violation};
use model::op::Durability;
use model::payload::{UNIT, Value};
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::corpus::{self, text_of};
use qcow2_crashtest::evidence::DiskEvidence;
use qcow2_crashtest::replay::{Basis, Verdict, is_expected, replay, replay_until, subject_of};
use qcow2_crashtest::subject::{Qcow2Core, Session, Subject};
use qcow2_crashtest::workload::{self, LifePlan, Scope, Shape};

/// Replays a case on whole code and, if it has a witness, on code without it.
fn check(name: &str) {
    let path = corpus::folder().join(name);
    let case = corpus::load(&path).expect("the file is a case");
    for broken in [false, true] {
        if broken && case.witness.is_none() {
            continue;
        }
        let subject = subject_of(&case, name, broken).expect("subject and witness exist");
        let replay = replay(&subject, &case, name).expect("the case can be run");
        assert!(
            is_expected(&case, replay.verdict, broken),
            "{name}, broken {broken}: {} by the {} layer: {:?}",
            replay.verdict,
            replay.basis.name(),
            replay.failure
        );
    }
}

macro_rules! cases {
    ($($test:ident $file:literal,)*) => {
        $(#[test] fn $test() { check($file); })*

        /// Goal: no case file lies there unread. Method: the folder holds exactly the files above.
        #[test]
        fn every_file_is_a_test() {
            let names = corpus::names(&corpus::folder()).expect("the corpus can be read");
            let mut known = vec![$($file.to_owned()),*];
            known.sort();
            assert_eq!(names, known);
        }
    };
}

cases! {
    copied_on_read_beside_a_failure "copied-on-read-beside-a-failure.json",
    discarded_enciphered_data "discarded-enciphered-data.json",
    dropped_discard_leaks "dropped-discard-leaks.json",
    dropped_flush_failure_unheard "dropped-flush-failure-unheard.json",
    dropped_write_through_failure_unheard "dropped-write-through-failure-unheard.json",
    failed_cut_believed "failed-cut-believed.json",
    grown_beside_padding "grown-beside-padding.json",
    growth_over_zeroes_in_memory "growth-over-zeroes-in-memory.json",
    growth_that_hid_a_layer_in_a_table_of_another "growth-that-hid-a-layer-in-a-table-of-another.json",
    growth_that_took_every_hole "growth-that-took-every-hole.json",
    growth_that_took_every_hole_of_a_full_device "growth-that-took-every-hole-of-a-full-device.json",
    moved_beside_nothing "moved-beside-nothing.json",
    rotten_refcount_table_past_end "rotten-refcount-table-past-end.json",
    rotten_sharing_beside_compressed "rotten-sharing-beside-compressed.json",
    rotten_sharing_beside_nonsense "rotten-sharing-beside-nonsense.json",
    rotten_size_beyond_l1 "rotten-size-beyond-l1.json",
    rotten_size_rounded_down "rotten-size-rounded-down.json",
    rotten_table_of_two_kinds "rotten-table-of-two-kinds.json",
    unaligned_cut "unaligned-cut.json",
    uncovered_beside_a_growth "uncovered-beside-a-growth.json",
    without_all_before_clean "without-all-before-clean.json",
    without_all_before_clean_in_repair "without-all-before-clean-in-repair.json",
    without_copy_before_switch "without-copy-before-switch.json",
    without_data_before_mapping "without-data-before-mapping.json",
    without_dereference_before_refcount_down "without-dereference-before-refcount-down.json",
    without_dereference_before_reuse "without-dereference-before-reuse.json",
    without_dirty_before_uncounted "without-dirty-before-uncounted.json",
    without_discard_before_reuse "without-discard-before-reuse.json",
    without_durable_before_acknowledge "without-durable-before-acknowledge.json",
    without_failed_flush_is_final "without-failed-flush-is-final.json",
    without_length_before_reference "without-length-before-reference.json",
    without_orphans_before_reuse "without-orphans-before-reuse.json",
    without_reads_before_reuse "without-reads-before-reuse.json",
    without_mapping_before_raw_data "without-mapping-before-raw-data.json",
    without_refcount_before_reference "without-refcount-before-reference.json",
    without_settle_before_retry "without-settle-before-retry.json",
    without_zeroes_before_pointer "without-zeroes-before-pointer.json",
    write_through_failure_beside_a_flush "write-through-failure-beside-a-flush.json",
}

/// Goal: a case is told again when the trace has changed. Method: forget the hash of the exact part and event; the anchor finds
/// the moment, and the verdict says which layer it rests on.
#[test]
fn the_meaning_of_a_case_survives_another_trace() {
    let name = "without-durable-before-acknowledge.json";
    let mut case = corpus::load(&corpus::folder().join(name)).expect("the file is a case");
    let exact = case.lives[0].crash.as_mut().and_then(|crash| crash.exact.as_mut());
    let exact = exact.expect("it has an exact part");
    exact.trace.0 ^= 1;
    exact.event = 0;
    let whole = subject_of(&case, name, false).expect("it exists");
    let found = replay(&whole, &case, name).expect("it can be run");
    assert_eq!((found.verdict, found.basis), (Verdict::Fixed, Basis::Semantic));
    let broken = subject_of(&case, name, true).expect("it exists");
    let found = replay(&broken, &case, name).expect("it can be run");
    assert_eq!(found.verdict, Verdict::Reproduced);
    assert_ne!(found.basis, Basis::Exact);
}

/// Goal: a case whose moment is gone is never a silent pass. Method: an anchor that nothing matches.
#[test]
fn a_lost_anchor_is_drift() {
    let name = "without-durable-before-acknowledge.json";
    let mut case = corpus::load(&corpus::folder().join(name)).expect("the file is a case");
    let crash = case.lives[0].crash.as_mut().expect("it has a crash");
    crash.exact = None;
    crash.anchor.op = 0;
    crash.anchor.nth = 9999;
    let whole = subject_of(&case, name, false).expect("it exists");
    let found = replay(&whole, &case, name).expect("it can be run");
    assert_eq!(found.verdict, Verdict::Drifted);
    // Nor is it one if there was no time, or if the file says no moment: an exploration keeps what it has before it has found one.
    let late = |case: &Case| replay_until(&whole, case, name, &|| true).expect("it can be run");
    let found = late(&case);
    assert_eq!((found.verdict, found.basis), (Verdict::NotMeasured, Basis::Searched));
    case.lives[0].crash = None;
    let found = late(&case);
    assert_eq!((found.verdict, found.basis), (Verdict::NotMeasured, Basis::Searched));
    let found = replay(&whole, &case, name).expect("it can be run");
    assert_eq!(found.verdict, Verdict::Fixed);
}

/// Goal: code that does other I/O and fails otherwise is told from a judge that says something else of the same. Method: a case of another
/// property, with the trace that it has and with another one.
#[test]
fn another_failure_of_other_code_is_no_broken_harness() {
    let name = "without-all-before-clean.json";
    let mut case = corpus::load(&corpus::folder().join(name)).expect("the file is a case");
    case.property = Property::P9;
    let broken = subject_of(&case, name, true).expect("it exists");
    let found = replay(&broken, &case, name).expect("it can be run");
    assert_eq!((found.verdict, found.basis), (Verdict::HarnessBroken, Basis::Exact));
    let exact = |case: &mut Case, change: fn(&mut Exact)| {
        let exact = case.lives[0].crash.as_mut().and_then(|crash| crash.exact.as_mut());
        change(exact.expect("it has an exact part"));
    };
    // What is asked for after the power cut, and with it recovery, is not in the trace.
    let mut other = case.clone();
    exact(&mut other, |exact| exact.choices.push(7));
    let found = replay(&broken, &other, name).expect("it can be run");
    assert_eq!((found.verdict, found.basis), (Verdict::OtherFailure, Basis::Exact));
    exact(&mut case, |exact| exact.trace.0 ^= 1);
    let found = replay(&broken, &case, name).expect("it can be run");
    assert_eq!((found.verdict, found.basis), (Verdict::OtherFailure, Basis::Semantic));
}

/// Goal: a file that is no case is refused with its name and the field.
#[test]
fn broken_files_name_file_and_field() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let good =
        corpus::load(&corpus::folder().join("without-all-before-clean.json")).expect("a case");
    let text = text_of(&good);
    let refuse = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a temporary file");
        let error = corpus::load(&path).expect_err("it is broken").to_string();
        assert!(error.contains(name), "{error}");
        error
    };
    let error = refuse("field.json", text.replace("\"cluster_bits\"", "\"cluster_bytes\""));
    assert!(error.contains("geometry"), "{error}");
    let error = refuse("number.json", text.replacen("\"offset\": ", "\"offset\": 1", 1));
    assert!(error.contains("lives[0].tasks[0]"), "{error}");
    let error = refuse("cut.json", text[..text.len() / 2].to_owned());
    assert!(error.contains("not JSON"), "{error}");
    let mut unknown = good;
    unknown.open.subject = "somebody-else".to_owned();
    let error = subject_of(&unknown, "x.json", false).expect_err("no such subject").to_string();
    assert!(error.contains("x.json") && error.contains("open.subject"), "{error}");
}

/// Goal: whatever a campaign may find can be kept: the limits of a case are above what is drawn. Method: plans of every shape as cases,
/// written and read again.
#[test]
fn what_is_drawn_can_be_kept() {
    let shapes = Shape::ALL.into_iter().map(Some).chain([None]);
    for (shape, seed) in shapes.flat_map(|shape| (0..200).map(move |seed| (shape, seed))) {
        let plan =
            workload::plan(seed, &Scope { shape, ..Scope::default() }, &Capabilities::everything());
        let life = |life: &LifePlan| Life {
            tasks: life.tasks.clone(),
            schedule: Scheduling::Seed(life.schedule),
            unrecovered: life.unrecovered,
            ..Life::default()
        };
        let case = Case {
            schema: SCHEMA.to_owned(),
            title: "drawn".to_owned(),
            property: Property::P1,
            profile: "torn-length".to_owned(),
            discard: Discard::Either,
            device: plan.device,
            origin: Origin::default(),
            witness: None,
            status: Status::Open,
            geometry: plan.geometry,
            open: plan.open.clone(),
            initial: plan.initial,
            lives: plan.lives.iter().map(life).collect(),
            image: None,
        };
        let read = Case::from_json("drawn.json", &text_of(&case));
        assert_eq!(read.as_ref(), Ok(&case), "{shape:?}, seed {seed}");
    }
}

/// What the judge finds in the image of a case, by what its guest may read, and nothing else of the case.
fn judged(case: &Case, image: &CrashImage) -> Vec<Violation> {
    let values = Values::new();
    let key = |content: &Content| ValueKey(values.intern(&content.bytes()).0);
    let units: Vec<_> =
        image.units.iter().map(|(unit, content)| (unit * UNIT as u64, content.bytes())).collect();
    let extents = units.iter().map(|(offset, bytes)| (*offset, &bytes[..]));
    let mut disk = PossibleDisk::from_extents(&values, image.length, extents);
    let geometry = &case.geometry;
    let mut first = vec![ValueKey::ZERO; usize::try_from(geometry.virtual_size).unwrap() / UNIT];
    for (unit, allowed) in &image.allowed {
        if let Some(value) = first.get_mut(usize::try_from(*unit).unwrap()) {
            *value = allowed.first().map_or(ValueKey::ZERO, key);
        }
    }
    let session = Session::of(&case.open, geometry);
    let promises = Qcow2Core::default().promises(geometry, &session);
    let made = Made::of(geometry, |unit| ValueKey(values.intern(unit).0));
    let mut guest = Guest::new(&first, promises).on(made);
    for (unit, allowed) in &image.allowed {
        for other in allowed.iter().skip(1) {
            guest.begin_write(*unit, &[key(other)], Durability::Cached);
        }
    }
    guest.crash();
    let mut always = Always(0);
    let stage = (case.property == Property::P6).then_some(Stage::Closed);
    // By one of these the case was found.
    [Judge::default(), Judge::of_contents()]
        .iter_mut()
        .flat_map(|judge| {
            judge.state(&mut DiskEvidence::new(&mut disk, &mut always), &guest, stage).to_vec()
        })
        .collect()
}

/// Goal: what a case says is in its image, whichever library it is of and whether that is here or not: the image alone shows it to the judge.
/// Method: every kept case of a library outside the workspace, by the place or the kind that its title names; of a panic, or of what a running
/// image did, no image says anything, and what was met when all was written after recovery has begun with something else.
#[test]
fn images_of_other_libraries_show_what_their_cases_say() {
    let folders = std::fs::read_dir(corpus::folder().join("subjects")).expect("it is there");
    let mut paths: Vec<PathBuf> = Vec::new();
    for folder in folders {
        paths.extend(
            corpus::files(&folder.expect("it can be read").path()).expect("it can be read"),
        );
    }
    let (mut shown, mut excused) = (0, 0);
    for path in paths {
        let case = corpus::load(&path).expect("the file is a case");
        let kind = case.title.split(':').next().unwrap_or_default();
        if kind == "panic" || case.title.ends_with("(while it ran)") {
            continue;
        }
        let image = case.image.as_ref().expect("every kept case has its image");
        let mut found = judged(&case, image);
        if case.title.ends_with("when nothing fails any more)") {
            assert!(!found.is_empty(), "{}", path.display());
            continue;
        }
        let named = case.title.split_once("guest unit ").map(|(_, rest)| {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest[..end].parse::<u64>().expect("a title names a unit by its number")
        });
        // What a guest reads may break P0 to P3 alike, by what was durable when.
        let is_said = |violation: &Violation| match violation.place {
            Place::Guest { unit, .. } => named == Some(unit),
            _ => named.is_none() && violation.kind == kind,
        };
        let said = found.iter().find(|violation| is_said(violation));
        let said = said.unwrap_or_else(|| panic!("{}: {found:#?}", path.display()));
        shown += 1;
        // And nothing is said of a unit that may hold what it holds.
        if let (Place::Guest { unit, .. }, Some(value)) = (&said.place, said.found)
            && kind != "autoclear-bit-stays"
        {
            let held = match value {
                Value::Zero => Content::Zero,
                Value::Tag { unit, id } => Content::Tag { unit, id },
                Value::Foreign(_) => continue,
            };
            let mut allowing = image.clone();
            allowing.allowed.entry(*unit).or_default().push(held);
            found = judged(&case, &allowing);
            assert!(!found.iter().any(is_said), "{}: {found:#?}", path.display());
            excused += 1;
        }
    }
    assert!(shown >= 19 && excused >= 8, "{shown} cases, {excused} excused");
}
