//! Logs of writes on the command line: a case as a log and back, somebody else's log of an image, a guest's log as a workload.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use qcow2_crashtest::corpus;
use qcow2_crashtest::logwrites::{self, Action, Entry, Log};
use qcow2_crashtest::qemu;

/// Runs the command line in a folder; its exit status, and all that it said.
fn campaign(folder: &Path, words: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_campaign"));
    let Output { status, stdout, stderr } =
        command.args(words).current_dir(folder).output().expect("it runs");
    let said = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
    (status.code().expect(&said), said)
}

/// Goal: what a case does to the structure of its image is in its log. Method: cases of four orders, each without its rule, as logs that
/// are judged by themselves; two whose only victim is the guest's data, of which a log says nothing.
#[test]
fn what_a_case_breaks_is_found_in_its_log() {
    let folder = tempfile::tempdir().unwrap();
    for (rule, found) in [
        ("all-before-clean", Some("\nP4 refcount-too-low ")),
        ("refcount-before-reference", Some("\nP4 refcount-too-low ")),
        ("length-before-reference", Some("\nP4 out-of-range (l2)")),
        ("dereference-before-refcount-down", Some("\nP4 refcount-too-low ")),
        ("copy-before-switch", None),
        ("data-before-mapping", None),
    ] {
        let case = corpus::folder().join(format!("without-{rule}.json"));
        let case = case.to_str().unwrap();
        let (status, said) = campaign(folder.path(), &["export", case, "case.log"]);
        assert_eq!(status, 0, "{rule}: {said}");
        let import = ["import", "case.log", "--profile", "torn-length", "--corpus", "kept"];
        let (status, said) = campaign(folder.path(), &import);
        match found {
            Some(found) => assert!(status == 1 && said.contains(found), "{rule}: {said}"),
            None => assert!(status == 0 && said.contains("\nno finding\n"), "{rule}: {said}"),
        }
        assert!(said.contains("whether something that it flushed is lost is not judged"), "{said}");
    }
    assert!(fs::read_dir(folder.path().join("kept")).unwrap().count() >= 3);
}

/// Goal: what cannot be taken in is refused by name, and nothing is written. Method: files that are no logs, a case of two files, programs that
/// are nowhere, arguments that a trace leaves without meaning.
#[test]
fn what_is_no_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("text"), "no log").unwrap();
    let marks = logwrites::encode(512, [Entry::mark(b"begin")]).unwrap();
    fs::write(path.join("marks"), &marks).unwrap();
    let write = logwrites::encode(512, [Entry::write(0, &[1; 512])]).unwrap();
    fs::write(path.join("write"), &write).unwrap();
    fs::write(path.join("short"), &write[..1100]).unwrap();
    fs::write(path.join("odd"), [0; 700]).unwrap();
    let far = logwrites::encode(512, [Entry::write(4 << 30, &[1; 512])]).unwrap();
    fs::write(path.join("far"), &far).unwrap();
    let far_flush = Entry { offset: 8 << 30, ..Entry::flush() };
    let far_flush = logwrites::encode(512, [Entry::write(0, &[1; 512]), far_flush]).unwrap();
    fs::write(path.join("far-flush"), far_flush).unwrap();
    let two_files = corpus::folder().join("without-mapping-before-raw-data.json");
    for (words, expected) in [
        (&["import", "none"][..], "none: No such file"),
        (&["import", "text"], "text: log superblock, byte 0: 28 bytes are needed and 6 are left"),
        (&["import", "short"], "short: log entry 0, byte "),
        (&["import", "marks"], "marks: a log without a write"),
        (&["import", "write", "--before", "odd"], "odd: 700 bytes are no whole sectors of 512"),
        (&["import", "write", "--recover", "no-such {}"], "there is no program no-such"),
        (&["import", "write", "--recover", "true"], "no word of it has {}"),
        (&["import", "far"], "far: log entry 0 ends at 4294967808, past the 4294967296 bytes"),
        (&["import", "far-flush"], "This run proves nothing: nothing in it is a qcow2 image"),
        (&["import", "write"], "This run proves nothing: nothing in it is a qcow2 image"),
        (&["export", two_files.to_str().unwrap(), "log"], "geometry.data_file: "),
        (&["run", "--workload", "write"], "it is trace:FILE"),
        (&["run", "--workload", "trace:marks"], "marks: a log without a request"),
        (&["run", "--workload", "trace:write", "--tasks", "2"], "cannot be used with"),
        (&["run", "--workload", "trace:write", "--profile", "trash"], "--profile trash: "),
        (&["run", "--workload", "trace:write", "--witness", "no-such {}"], "no program no-such"),
        (&["run", "--witness", "true {}"], "--workload"),
    ] {
        let (status, said) = campaign(path, words);
        assert!(status >= 2 && said.contains(expected), "{words:?}: {status}, {said}");
    }
    assert!(!path.join("log").exists());
}

/// Goal: what a command makes of an image is told as its own, and nothing but that image is at its mercy. Method: one that does nothing, well
/// and badly, one that leaves what cannot be judged, one that leaves a link to something precious.
#[test]
#[cfg_attr(not(turn = "6"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_command_answers_for_what_it_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let import = |case: &str, recover: &str| {
        let case = corpus::folder().join(case);
        let exported = campaign(folder.path(), &["export", case.to_str().unwrap(), "case.log"]);
        assert_eq!(exported.0, 0, "{}", exported.1);
        campaign(folder.path(), &["import", "case.log", "--recover", recover])
    };
    let (bad, sound) = ("without-all-before-clean.json", "without-discard-before-reuse.json");
    let (status, said) = import(bad, "true {}");
    assert!(status == 1 && said.contains("exit codes of the command    0 ("), "{status}: {said}");
    for moment in ["seen after the power cut", "seen after the command"] {
        assert!(said.contains(moment), "{moment}: {said}");
    }
    let (status, said) = import(sound, "true {}");
    assert!(status == 0 && said.contains("\nno finding\n"), "{status}: {said}");
    let (status, said) = import(sound, "false {}");
    let idle = "This run proves nothing: the command never ended well, and changed nothing.";
    assert!(status == 2 && said.contains(idle), "{status}: {said}");
    // A snapshot more than there are: what is not judged is said.
    let snapshot = "sh -c 'printf \\001 | dd of={} bs=1 seek=63 conv=notrunc status=none'";
    let (_, said) = import(sound, snapshot);
    assert!(said.contains("internal snapshots, after the command, in "), "{said}");
    fs::write(folder.path().join("precious"), "mine").unwrap();
    let link = "sh -c 'rm {}; ln -s $PWD/precious {}'";
    let (status, said) = import(bad, link);
    assert!(status == 2 && said.contains("it is no file any more"), "{status}: {said}");
    assert_eq!(fs::read(folder.path().join("precious")).unwrap(), b"mine");
}

/// Goal: what is made of a case does not take its place. Method: each command that writes a file, told to write the case.
#[test]
fn a_case_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let case = folder.path().join("case.json");
    fs::copy(corpus::folder().join("without-all-before-clean.json"), &case).unwrap();
    let before = fs::read(&case).unwrap();
    for command in ["export", "dump"] {
        let (status, said) = campaign(folder.path(), &[command, "case.json", "./case.json"]);
        assert!(status >= 2 && said.contains("it is the case itself"), "{status}: {said}");
        assert!(fs::read(&case).unwrap() == before, "{command} wrote over the case");
    }
}

/// Goal: what QEMU writes survives power cuts, by its own repair, and what it would be without its flushes does not. Method: a few writes below
/// its driver `blklogwrites`; the log as it is, and without what its entries say of flushes.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(
    all(has_qemu, not(turn = "10")),
    ignore = "its turn is at another commit; CI=1 runs all"
)]
fn what_qemu_writes_is_judged_by_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    qemu::create(&path("image"), 16 << 20, "cluster_size=4096").unwrap();
    fs::copy(path("image"), path("before")).unwrap();
    let length = fs::metadata(path("before")).unwrap().len().next_multiple_of(512);
    fs::OpenOptions::new().write(true).open(path("before")).unwrap().set_len(length).unwrap();
    fs::write(path("log"), "").unwrap();
    let options = format!(
        "driver=qcow2,file.driver=blklogwrites,file.log-super-update-interval=1,\
         file.file.driver=file,file.file.filename={},file.log.driver=file,file.log.filename={}",
        path("image").display(),
        path("log").display()
    );
    let commands = ["write -P 1 0 12k", "flush", "write -P 2 8k 64k", "flush", "write -z -u 0 8k"];
    let more =
        ["flush", "write -P 3 8M 4k", "discard 16k 8k", "flush", "write -P 4 16k 4k", "flush"];
    let commands = commands.iter().chain(&more).map(|words| (*words).to_owned());
    let commands: Vec<String> = commands.collect();
    let run =
        qemu::io_with(["-t", "writeback", "-d", "unmap", "--image-opts", &options], &commands);
    run.unwrap().success().unwrap();

    let bytes = fs::read(path("log")).unwrap();
    let log = Log::parse(&bytes).unwrap();
    let entries: Vec<Entry<'_>> = log.entries().map(|entry| entry.unwrap()).collect();
    let unflushed = entries.iter().map(|&entry| Entry { flush: false, fua: false, ..entry });
    let written = unflushed.filter(|entry| entry.content != Action::Data(&[]));
    fs::write(path("unflushed"), logwrites::encode(log.sector_size(), written).unwrap()).unwrap();

    let program = option_env!("QEMU_IMG_PATH").unwrap_or("qemu-img");
    let repair = format!("{program} check -q -f qcow2 -r all {{}}");
    let import = |log, recover: &str| {
        let recover =
            ["import", log, "--before", "before", "--states", "200", "--recover", recover];
        campaign(folder.path(), &recover)
    };
    let (status, said) = import("log", &repair);
    assert!(status == 0 && said.contains("\nno finding\n"), "{status}: {said}");
    assert!(said.contains("with contents compared"), "{said}");
    assert!(said.contains("leaks left by the command"), "of clusters past the end: {said}");
    let (status, said) = import("unflushed", &repair);
    assert!(status == 1 && said.contains("\nP4 refcount-too-low ("), "{status}: {said}");
    assert!(said.contains("seen after the power cut, first with the power cut after "), "{said}");
    // What repairs the tables and loses data is no repair.
    let zero = "dd if=/dev/zero of={} bs=4096 seek=5 count=1 conv=notrunc status=none";
    let (status, said) = import("log", &format!("sh -c '{repair} && {zero}'"));
    assert!(status == 1 && said.contains("\nP3 ") && !said.contains("\nP4 "), "{status}: {said}");
}

/// Goal: a witness that gives no answer is an error and accuses nobody; one that objects is a finding. Method: one that is content once, and is
/// ended by a signal or exits with a status the next time.
#[test]
fn a_witness_without_an_answer_is_no_finding() {
    let folder = tempfile::tempdir().unwrap();
    let trace = corpus::folder().join("traces/ext4-sqlite.log.zst");
    let trace = format!("trace:{}", trace.display());
    for (then, expected, said_so) in [
        ("kill -9 $$", 2, "--witness: it gave no answer"),
        ("exit 3", 1, "is not content with the guest's disk"),
    ] {
        let mark = folder.path().join(format!("asked-{expected}"));
        let mark = mark.display();
        let witness = format!("sh -c 'test -e {mark} || {{ touch {mark}; exit 0; }}; {then}' {{}}");
        let words = ["run", "--workload", &trace, "--cases", "1", "--witness", &witness];
        let (status, said) = campaign(folder.path(), &words);
        assert_eq!(status, expected, "{then}: {said}");
        assert!(said.contains(said_so), "{then}: {said}");
    }
}

/// Goal: a guest's log is a workload like any other: without a finding on a whole library, with one on a broken one, which is found again by
/// what is said. Method: the recorded guest, on both, as a few cases.
#[test]
#[cfg_attr(not(turn = "0"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_guests_log_is_a_workload() {
    let folder = tempfile::tempdir().unwrap();
    let trace = corpus::folder().join("traces/ext4-sqlite.log.zst");
    let trace = format!("trace:{}", trace.display());
    let run =
        |more: &[&str]| campaign(folder.path(), &[&["run", "--workload", &trace], more].concat());
    let (status, said) = run(&["--cases", "2"]);
    assert!(status == 0 && said.contains("\nno violation\n"), "{said}");
    let (status, said) =
        run(&["--cases", "8", "--refcounts", "eager", "--without", "refcount-before-reference"]);
    assert!(status == 1 && said.contains("P4 refcount-too-low"), "{said}");
    let number = said.split_once("the same command, with --case ").expect(&said).1;
    let number = number.split(' ').next().unwrap();
    let broken = ["--refcounts", "eager", "--without", "refcount-before-reference"];
    let again = run(&[&broken[..], &["--case", number]].concat());
    assert!(said.contains(", entry ") && again == (status, said), "{}", again.1);
    assert!(!folder.path().join("corpus").exists());
}

/// Goal: who knows the guest's file system is asked of what recovery leaves, once there is one, and what it says against a disk is a finding.
/// Method: e2fsck, which replays the journal first; and one that is content only where there is no journal to replay.
#[test]
#[cfg_attr(not(has_e2fsck), ignore = "e2fsck is not installed (Debian package e2fsprogs)")]
#[cfg_attr(
    all(has_e2fsck, not(turn = "1")),
    ignore = "its turn is at another commit; CI=1 runs all"
)]
fn a_witness_is_asked_of_the_guests_disk() {
    let folder = tempfile::tempdir().unwrap();
    let trace = corpus::folder().join("traces/ext4-sqlite.log.zst");
    let trace = format!("trace:{}", trace.display());
    let program = option_env!("E2FSCK_PATH").unwrap_or("e2fsck");
    let run = |witness: &str| {
        let words = ["run", "--workload", &trace, "--cases", "1", "--witness", witness];
        campaign(folder.path(), &words)
    };
    let (status, said) =
        run(&format!("sh -c '{program} -E journal_only -fy {{}}; {program} -fn {{}}'"));
    assert!(status == 0 && said.contains("the witness was content with "), "{said}");
    let unmounted =
        format!(r#"said=$({program} -fn {{}} 2>&1) && ! echo "$said" | grep -q skipping"#);
    let (status, said) = run(&format!("sh -c '{unmounted}'"));
    assert!(status == 1 && said.contains("is not content with the guest's disk"), "{said}");
}
