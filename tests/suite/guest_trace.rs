//! A recorded guest (ext4 with SQLite on it) on our images: its writes under power cuts, and its own file system as a witness.

use std::path::{Path, PathBuf};

use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use faultfs::values::Values;
use model::finding::Property;
use qcow2_crashtest::corpus;
use qcow2_crashtest::guest_disk::{self, ExportFailure};
use qcow2_crashtest::guest_trace::{
    GuestTrace, RunError, TraceError, TraceReport, TraceSettings, run,
};
use qcow2_crashtest::logwrites::{self, Entry};
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::subject::Qcow2Core;

/// Requests of the trace that make the file system; after them there is one, clean or with a journal to replay.
const MKFS_REQUESTS: usize = 32;

fn trace() -> GuestTrace {
    let path = corpus::folder().join("traces/ext4-sqlite.log.zst");
    GuestTrace::load(&path).unwrap()
}

/// 64 KiB clusters as everybody has them, and 4 KiB clusters in a file that grows cluster by cluster.
fn settings(cluster_bits: u32, lazy: bool) -> TraceSettings {
    let (growth, busy_one_in) = if cluster_bits == 16 { (0, 2) } else { (1 << cluster_bits, 8) };
    TraceSettings {
        cluster_bits,
        lazy,
        growth,
        profile: Profile::TornLength,
        seed: 1,
        crash_points: 40,
        busy_one_in,
        lives: 4,
    }
}

const KINDS: [(u32, bool); 4] = [(16, false), (16, true), (12, false), (12, true)];

#[test]
fn the_log_is_read_whole() {
    let trace = trace();
    assert_eq!(trace.requests().len(), 453 + 216);
    assert_eq!((trace.size(), trace.bytes()), (64 << 20, 7_133_184));
}

/// Goal: what a log can say besides writes and flushes becomes the requests that a host without it would make.
#[test]
fn marks_discards_and_forced_writes_become_requests() {
    let directory = tempfile::tempdir().unwrap();
    let load = |entries: &[Entry<'_>]| {
        let path = directory.path().join("log");
        std::fs::write(&path, logwrites::encode(512, entries.iter().copied()).unwrap()).unwrap();
        GuestTrace::load(&path)
    };
    let forced = Entry { flush: true, fua: true, ..Entry::write(512, &[1; 512]) };
    let trace = load(&[
        Entry::mark(b"begin"),
        Entry::write(0, &[]),
        forced,
        Entry::discard(1 << 20, 4096),
        Entry::flush(),
    ]);
    let trace = trace.unwrap();
    let requests: Vec<String> = trace.requests().iter().map(|r| format!("{r:?}")).collect();
    assert_eq!(requests[0], "Op(Flush)");
    assert!(requests[1].starts_with("Raw(512, [1, 1,"), "{}", requests[1]);
    assert_eq!(
        requests[2..],
        ["Op(Flush)", "Op(Discard { offset: 1048576, length: 4096 })", "Op(Flush)"]
    );
    assert_eq!((trace.size(), trace.bytes()), (2 << 20, 512));

    let far = load(&[Entry::mark(b"begin"), Entry::discard(4 << 30, 512)]).unwrap_err();
    assert!(matches!(far, TraceError::TooFar { entry: 1, .. }), "{far}");
    assert!(matches!(load(&[Entry::mark(b"begin")]), Err(TraceError::Empty { .. })));
    let missing = GuestTrace::load(Path::new("/no/such/log")).unwrap_err().to_string();
    assert!(missing.starts_with("/no/such/log: "), "{missing}");
}

/// Goal: a real guest loses nothing that it flushed and reads nothing that it did not write, whenever the power fails; and
/// it can go on afterwards. Method: about a hundred crash states an image, some of them busy ones; four lives.
#[test]
#[cfg_attr(not(turn = "9"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_real_guest_survives_power_cuts() {
    let trace = trace();
    for (cluster_bits, lazy) in KINDS {
        let what = format!("{cluster_bits} {lazy}");
        let TraceReport { figures, .. } =
            run(&Qcow2Core::default(), &trace, &settings(cluster_bits, lazy), |_, _| {})
                .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(figures.vacuous(), None, "{what}");
        assert_eq!(figures.lives, 4, "{what}");
        assert!(figures.distinct_states > 60, "{what}\n{}", figures.table());
        assert_eq!(figures.probes.count(Probe::DirtyCrash) > 0, lazy, "{what}");
        for probe in [Probe::TornData, Probe::UnflushedLost, Probe::SecondLife] {
            assert!(figures.probes.count(probe) > 0, "{what}: {probe}");
        }
    }
}

/// Goal: the trace can show a broken order, so its silence means something. Method: without one rule each, on the image for
/// which the rule is made, the same runs must fail within a few seeds.
#[test]
fn a_real_guest_notices_broken_orders() {
    let trace = trace();
    for (rule, lazy, property) in [
        ("durable-before-acknowledge", false, Property::P4),
        ("refcount-before-reference", false, Property::P4),
        ("length-before-reference", true, Property::P4),
        ("all-before-clean", true, Property::P4),
    ] {
        let subject = Qcow2Core::without([rule]).unwrap();
        let settings = TraceSettings { busy_one_in: 1, ..settings(16, lazy) };
        let found = (1..=5).find_map(|seed| {
            run(&subject, &trace, &TraceSettings { seed, ..settings }, |_, _| {}).err()
        });
        let Some(RunError::Violation { failure, .. }) = found else {
            panic!("nobody misses {rule}");
        };
        assert_eq!(failure.violation.property, property, "{rule}: {}", failure.violation);
    }
}

/// Goal: the same settings are the same run.
#[test]
fn a_run_is_a_function_of_its_settings() {
    let trace = trace();
    let settings = TraceSettings { crash_points: 5, busy_one_in: 0, ..settings(12, true) };
    let digest = || {
        let mut states = Vec::new();
        let report = run(&Qcow2Core::default(), &trace, &settings, |disk, request| {
            states.push((disk.nonzero().count(), disk.possible_lengths(), request));
        });
        (report.unwrap().figures, states)
    };
    assert_eq!(digest(), digest());
}

/// Goal: after the whole trace and a clean close the guest's file system is clean.
#[test]
#[cfg_attr(not(has_e2fsck), ignore = "e2fsck is not installed (Debian package e2fsprogs)")]
#[cfg_attr(
    all(has_e2fsck, not(turn = "5")),
    ignore = "its turn is at another commit; CI=1 runs all"
)]
fn the_guests_file_system_is_clean_after_the_whole_trace() {
    let trace = trace();
    for (cluster_bits, lazy) in KINDS {
        let calm = TraceSettings {
            crash_points: 0,
            busy_one_in: 0,
            lives: 1,
            ..settings(cluster_bits, lazy)
        };
        let report = run(&Qcow2Core::default(), &trace, &calm, |_, _| {}).unwrap();
        let disk = GuestDisk::export(&report.disk, trace.size(), 0);
        let (code, text) = disk.e2fsck(&["-fn"]);
        assert_eq!(code, Some(0), "{cluster_bits} {lazy}: {text}");
    }
}

/// Goal: what we promise is what a journalling file system needs: after a power cut and our recovery, replaying the journal
/// makes it clean. Method: crash states after the file system was made are exported, e2fsck replays the journal and
/// does no more, and a second e2fsck finds nothing. Of the kinds of images, those that differ most.
#[test]
#[cfg_attr(not(has_e2fsck), ignore = "e2fsck is not installed (Debian package e2fsprogs)")]
#[cfg_attr(
    all(has_e2fsck, not(turn = "5")),
    ignore = "its turn is at another commit; CI=1 runs all"
)]
fn the_guests_file_system_recovers_from_power_cuts() {
    let trace = trace();
    for (cluster_bits, lazy) in [KINDS[0], KINDS[3]] {
        let settings =
            TraceSettings { crash_points: 8, busy_one_in: 0, ..settings(cluster_bits, lazy) };
        let mut replayed = 0;
        run(&Qcow2Core::default(), &trace, &settings, |disk, request| {
            if request < MKFS_REQUESTS {
                return;
            }
            let what = format!("{cluster_bits} {lazy}, a power cut in request {request}");
            let disk = GuestDisk::export(disk, trace.size(), request as u64);
            let (code, text) = disk.e2fsck(&["-E", "journal_only", "-fy"]);
            assert!(matches!(code, Some(0 | 1)), "{what}: {text}");
            replayed += usize::from(text.contains("recovering journal"));
            let (code, text) = disk.e2fsck(&["-fn"]);
            assert_eq!(code, Some(0), "{what}: {text}");
        })
        .unwrap();
        assert!(replayed > 0, "{cluster_bits} {lazy}: no journal was left to replay");
    }
}

/// Goal: an image that the subject cannot read is told apart from a file that cannot be written. Method: a disk of zeroes, which is no image, and
/// a folder that is not there.
#[test]
fn what_cannot_be_read_is_told_apart_from_what_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let disk = PossibleDisk::new(&Values::new(), 8);
    let export =
        |name: &str| guest_disk::export(&Qcow2Core::default(), &disk, 1, &folder.path().join(name));
    let read = export("raw").unwrap_err();
    assert!(matches!(&read, ExportFailure::Subject(why) if why.contains("GaveUp")), "{read:?}");
    assert!(matches!(export("none/raw"), Err(ExportFailure::File(_))));
}

/// What a guest sees of an image, as a raw file.
struct GuestDisk {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl GuestDisk {
    /// Reads all of an image's disk through the implementation; what a power cut left open is decided by `seed`.
    fn export(disk: &PossibleDisk, size: u64, seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.raw");
        guest_disk::export(&Qcow2Core::default(), disk, seed, &path).unwrap();
        assert_eq!(path.metadata().unwrap().len(), size);
        Self { _directory: directory, path }
    }

    fn e2fsck(&self, flags: &[&str]) -> (Option<i32>, String) {
        let program = option_env!("E2FSCK_PATH").unwrap_or("e2fsck");
        let output = std::process::Command::new(program)
            .args(flags)
            .arg(&self.path)
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text.into_owned())
    }
}
