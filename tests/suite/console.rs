//! The command line as a process: signals, output that nobody gets, and folders that cannot be written.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use model::case::Status;
use qcow2_crashtest::corpus;
use qcow2_crashtest::replay::{Verdict, replay, subject_of};

/// Sends a signal, as every shell can without another program.
fn send(signal: &str, id: &str) -> ExitStatus {
    let sent = Command::new("sh").args(["-c", r#"kill -s "$0" "$1""#, signal, id]).status();
    sent.expect("a shell is there")
}

fn campaign(words: &str, folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_campaign"));
    command.args(words.split(' ')).current_dir(folder);
    command
}

/// Runs it to its end; its exit status and output.
fn run(words: &str, folder: &Path) -> (i32, String, String) {
    let Output { status, stdout, stderr } = campaign(words, folder).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code().expect("no signal ended it"), text(stdout), text(stderr))
}

/// Waits until `ready`, sends signals a moment apart, and returns exit status and standard output.
fn signalled(mut command: Command, signals: &[&str], ready: impl Fn() -> bool) -> (i32, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs");
    let pause = || std::thread::sleep(Duration::from_millis(100));
    let waited = (0..600).any(|_| {
        pause();
        ready()
    });
    assert!(waited, "it never got there");
    for signal in signals {
        let id = child.id().to_string();
        let sent = send(signal, &id);
        assert!(sent.success());
        pause();
    }
    let status = child.wait().expect("it ends");
    let mut said = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
    (status.code().expect("it ends by itself"), said)
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("it can be read").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

/// Goal: an interrupted run says what it has seen. Method: a signal to a long campaign and to a long exploration.
#[test]
#[cfg_attr(not(turn = "3"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_signal_ends_a_run_with_what_it_has_seen() {
    let folder = tempfile::tempdir().unwrap();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let began = std::cell::Cell::new(0);
        let soon = || began.replace(began.get() + 1) >= 10;
        let command = campaign("run --seconds 600 --json run.json", folder.path());
        let (status, said) = signalled(command, &[signal], soon);
        assert_eq!(status, code, "{said}");
        assert!(said.contains("crash states fully judged"), "{said}");
        assert!(said.contains(&format!("interrupted (SIG{signal}); no violation")), "{said}");
        let json = fs::read_to_string(folder.path().join("run.json")).unwrap();
        assert!(json.contains("\"ended\": \"interrupted\""), "{json}");

        // The process that is sent the signal is the one that looks after another.
        began.set(0);
        let command = campaign("run --keep-going --seconds 600", folder.path());
        let (status, said) = signalled(command, &[signal], soon);
        assert_eq!(status, code, "{said}");
        assert!(said.contains(&format!("interrupted (SIG{signal}); no violation")), "{said}");

        began.set(0);
        let words = "explore --operations 3 --clusters 1024 --json far.json";
        let (status, said) = signalled(campaign(words, folder.path()), &[signal], soon);
        assert_eq!(status, code, "{said}");
        assert!(said.contains(" of 18 images and "), "{said}");
        assert!(said.contains(" of 1885 workloads of the next, 1024 B, eager, "), "{said}");
        let json = fs::read_to_string(folder.path().join("far.json")).unwrap();
        assert!(json.contains("\"ended\": \"interrupted\""), "{json}");
    }
}

/// Goal: what a run was at is told when the process is ended, as by a subject that overflows its stack, and nothing where it ends by itself. Method:
/// a campaign that is killed, and one that passes.
#[test]
#[cfg_attr(not(turn = "11"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_a_killed_run_was_at_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut campaign = campaign("run --seconds 600 --seed 5", folder.path());
    let mut child = campaign.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
    std::thread::sleep(Duration::from_secs(2));
    assert!(send("KILL", &child.id().to_string()).success());
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert_eq!(child.wait().expect("it ends").code(), None);
    let (_, cases) = said.split_once("It was at\n").unwrap_or_else(|| panic!("{said}"));
    let case = cases.lines().next().expect("a worker has begun");
    assert!(case.starts_with("  case ") && case.ends_with(" of seed 5"), "{said}");

    let (status, _, said) = run("run --cases 3", folder.path());
    assert!(status == 0 && !said.contains("It was at"), "{said}");
}

/// The command line of a subject that ends its process, and forgets flushes.
fn fragile(words: &str, folder: &Path) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fragile"));
    let words = "run --keep-going --faultless --tasks 1 --minimise-seconds 1 --corpus kept "
        .to_owned()
        + words;
    let Output { status, stdout, stderr } =
        command.args(words.split(' ')).current_dir(folder).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code().expect("no signal ended it"), text(stdout), text(stderr))
}

/// Goal: a subject that ends its process does not end a campaign that goes on past findings: the cases in which it does are left out, and told once
/// for each way, and everything else is as if they had not been there. Method: a subject that aborts in some writes and exits in others, twice
/// on all workers; cases and figures are compared; then with what was met known.
#[test]
#[cfg_attr(not(turn = "9"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_campaign_goes_on_past_the_end_of_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let words = "--cases 50 --causes met.json --json run.json";
        let (status, said, complaint) = fragile(words, folder.path());
        assert_eq!(status, 1, "{said}{complaint}");
        assert!(
            complaint.contains("case 4 by itself has ended the process (SIGABRT)"),
            "{complaint}"
        );
        let deadly = |line: &&str| line.starts_with("    in case ");
        let deadly: Vec<String> = said.lines().filter(deadly).map(str::to_owned).collect();
        let [aborts, exits] = &deadly[..] else { panic!("{said}") };
        assert!(
            said.contains("\nnew: P8 process-ended (SIGABRT)\n")
                && said.contains("(exit status 3)")
        );
        let count = aborts.matches(',').count() + exits.matches(',').count() + 2;
        assert!(count > 2 && said.contains("P1 lost-write"), "{said}");
        let json = fs::read_to_string(folder.path().join("run.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["cases"], 50 - count, "{json}");
        let of = ["cases", "crash_points", "states", "distinct_states", "probes", "repeated"];
        let figures = of.map(|name| json[name].clone());
        seen.push((deadly, figures));
    }
    assert_eq!(seen[0], seen[1]);

    let (_, said, _) = fragile("--cases 50 --known met.json", folder.path());
    assert!(said.contains("\nknown: P8 process-ended (SIGABRT)\n"), "{said}");
    assert!(said.contains("\nknown: P8 process-ended (exit status 3)\n"), "{said}");
    assert!(!said.contains("new: P8"), "{said}");
}

/// Goal: that a process has ended is told even where no case ends one by itself, and what it took is of the budget. Method: a subject that aborts once,
/// and never again, in a campaign of few cases; one that aborts now and then, in a campaign of few seconds.
#[test]
#[cfg_attr(not(turn = "6"), ignore = "its turn is at another commit; CI=1 runs all")]
fn an_end_that_does_not_come_again_is_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("once"), "").unwrap();
    let (status, said, complaint) = fragile("--cases 3", folder.path());
    assert_eq!(status, 1, "{said}{complaint}");
    let told = "\nnew: P8 process-ended (SIGABRT, and by none of these cases alone)\n    in case 0";
    assert!(said.contains(told), "{said}{complaint}");

    let (status, said, complaint) = fragile("--seconds 3 --json run.json", folder.path());
    assert!(status == 1 && said.contains("new: P8 process-ended (SIGABRT)\n"), "{said}{complaint}");
    let json = fs::read_to_string(folder.path().join("run.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let seconds = json["seconds"].as_f64().unwrap();
    assert!((3.0..20.0).contains(&seconds), "{seconds} s of 3");
}

/// Goal: what cannot be shortened, because that ends the process, is told as it was found. Method: a subject that survives no image that a case is
/// shortened to; each case that is kept is as long as it was.
#[test]
fn what_ends_the_process_when_it_is_shortened_stays_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (status, said, complaint) = fragile("--contents --cases 3", folder.path());
    assert_eq!(status, 1, "{said}{complaint}");
    assert!(
        complaint.contains("shortening what case 0 found has ended the process (SIGABRT)"),
        "{complaint}"
    );
    assert!(said.contains("    shortening it ends the process: it is as it was found\n"), "{said}");
    assert!(files(&folder.path().join("kept")).contains(&"lost-write.json".to_owned()));
}

/// Goal: nothing passes because it was not looked at. Method: names of what another command takes away.
#[test]
fn what_a_command_does_not_take_away_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for words in [
        "barriers --rule data-before-mapping",
        "sensitivity --rule flush:close",
        "sensitivity --rule mutant:fresh-off-by-one",
    ] {
        let (status, said, complaint) = run(words, folder.path());
        let told = complaint.contains("is nothing that this command takes away");
        assert!(status == 2 && said.is_empty() && told, "{words}: {status} {said} {complaint}");
    }
}

/// Goal: a time that ends is told apart from a signal, and from the end. Method: one second.
#[test]
fn an_exploration_out_of_time_says_how_far_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let words = "explore --operations 4 --clusters 1024 --seconds 1 --json far.json";
    let (status, said, _) = run(words, folder.path());
    assert_eq!(status, 2, "{said}");
    assert!(said.contains("the time was up after 0 of 18 images and"), "{said}");
    let json = fs::read_to_string(folder.path().join("far.json")).unwrap();
    assert!(json.contains("\"ended\": \"budget\""), "{json}");
}

/// A rule whose case takes long to shorten, the first one of that seed that notices, and the file that is there at once.
const LONG: &str =
    "run --without reads-before-reuse --case 144 --seed 2 --tasks 4 --minimise-seconds 600";
const RAW: &str = "corpus/without-reads-before-reuse.raw.json";

/// Goal: whatever ends the shortening, what was found is kept, and can be replayed as it is. Method: kill it, interrupt it once,
/// and twice.
#[test]
#[cfg_attr(not(turn = "3"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_was_found_outlives_its_shortening() {
    for (signals, code) in [(&["KILL"][..], None), (&["INT"], Some(1)), (&["INT", "INT"], None)] {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join(RAW);
        let mut command = campaign(LONG, folder.path());
        match code {
            Some(code) => {
                let (status, said) = signalled(command, signals, || raw.exists());
                assert_eq!(status, code, "{said}");
                assert!(said.contains("it may be shorter still"), "{said}");
                let short = "without-reads-before-reuse.json";
                assert!(files(&folder.path().join("corpus")).iter().any(|name| name == short));
            }
            None => {
                let mut child =
                    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                while !raw.exists() {
                    let ended = child.try_wait().unwrap();
                    assert_eq!(ended, None, "another case notices first: see LONG");
                    std::thread::sleep(Duration::from_millis(50));
                }
                for signal in signals {
                    let id = child.id().to_string();
                    send(signal, &id);
                }
                assert!(!child.wait().unwrap().success());
            }
        }
        let case = corpus::load(&raw).expect("it is whole");
        assert_eq!(case.status, Status::Sabotage);
        for (broken, verdict) in [(true, Verdict::Reproduced), (false, Verdict::Fixed)] {
            let subject = subject_of(&case, RAW, broken).unwrap();
            assert_eq!(replay(&subject, &case, RAW).unwrap().verdict, verdict);
        }
    }
}

/// Goal: where the shortened case is kept, the raw one is gone. Method: both ways of finding it, and the campaign on damaged
/// images.
#[test]
#[cfg_attr(not(turn = "11"), ignore = "its turn is at another commit; CI=1 runs all")]
fn one_file_is_left_of_a_finding() {
    for words in [
        "run --without data-before-mapping --seconds 100",
        "explore --operations 2 --clusters 1024 --without refcount-before-reference",
        "sensitivity --rule data-before-mapping --corpus corpus",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (status, said, error) = run(words, folder.path());
        assert_eq!(status, i32::from(!words.starts_with("sens")), "{words}: {said}{error}");
        let kept = files(&folder.path().join("corpus"));
        let rule = if words.starts_with("explore") {
            "refcount-before-reference"
        } else {
            "data-before-mapping"
        };
        assert_eq!(kept, [format!("without-{rule}.json")], "{words}");
    }
}

/// Goal: what could not be written at the end is refused at the start, by name. Method: paths below a file, where not even root
/// can write.
#[test]
fn nothing_runs_whose_results_could_not_be_written() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    for words in [
        "run --seconds 600 --corpus file",
        "run --seconds 600 --corpus file/below",
        "run --seconds 600 --json file/below",
        "run --seconds 600 --json none/below",
        "explore --operations 4 --corpus file/below",
        "explore --operations 4 --certificate file/below",
        "explore --operations 4 --part file/below",
        "sensitivity --corpus file/below",
    ] {
        let (status, said, error) = run(words, folder.path());
        assert_eq!((status, said.as_str()), (2, ""), "{words}: {error}");
        let path = words.rsplit(' ').next().unwrap();
        assert!(error.starts_with(&format!("{path}: ")), "{words}: {error}");
    }
    assert_eq!(files(folder.path()), ["file"]);
}

/// Goal: a finding that cannot be kept goes to the terminal, and stays a violation. Method: the folder turns into a file while
/// the campaign runs; and figures that cannot be written.
#[test]
#[cfg_attr(not(turn = "1"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_finding_that_cannot_be_kept_is_told_in_full() {
    let folder = tempfile::tempdir().unwrap();
    // Written when everything else is done.
    let words =
        "run --without data-before-mapping --seconds 100 --json /dev/full --corpus /proc/self/fd";
    let (status, said, error) = run(words, folder.path());
    if status == 1 {
        assert!(said.contains("the case could not be kept; this is the file:\n{"), "{said}");
        assert!(error.contains("/dev/full: "), "{error}");
    } else {
        // Where that folder is known to be closed before, it is refused.
        assert!(error.contains("/proc/self/fd"), "{error}");
    }
    let words = "run --without data-before-mapping --seconds 100 --json /dev/full";
    let (status, said, error) = run(words, folder.path());
    assert_eq!(status, 1, "{said}{error}");
    assert!(error.contains("/dev/full: No space left"), "{error}");
    let (status, _, error) = run("run --cases 20 --json /dev/full", folder.path());
    assert_eq!(status, 2, "{error}");
}

/// Goal: output that nobody gets is no success. Method: a full device and a closed pipe as standard output.
#[test]
#[cfg_attr(not(turn = "10"), ignore = "its turn is at another commit; CI=1 runs all")]
fn output_that_nobody_gets_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let case = corpus::folder().join("without-all-before-clean.json");
    let replay = format!("replay {}", case.display());
    let found = "run --without data-before-mapping --seconds 100";
    for (words, code) in [("run --cases 20", 2), (found, 1), (&replay, 2), ("--help", 2)] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = campaign(words, folder.path()).stdout(full).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words}: {error}");
        assert!(!error.contains("panicked"), "{words}: {error}");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = campaign(words, folder.path()).stdout(writer).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words}: {error}");
        assert!(!error.contains("panicked"), "{words}: {error}");
    }
}

/// Goal: a case that asks for too much is refused by file, field, value and limit.
#[test]
fn a_case_that_no_replay_can_do_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = corpus::folder().join("without-all-before-clean.json");
    let text = fs::read_to_string(path).unwrap();
    let huge = text.replace("\"growth_step\": 512", "\"growth_step\": 4294967296");
    assert_ne!(text, huge);
    fs::write(folder.path().join("huge.json"), huge).unwrap();
    let (status, _, error) = run("replay huge.json", folder.path());
    let expected = "huge.json: open.growth_step: 4294967296 is above 16777216, the most that a replay can do\n";
    assert_eq!((status, error.as_str()), (2, expected));
}

/// Goal: causes that are known make no run fail, others do, and one that is gone is said. Method: a write order left out, twice with what the first
/// run wrote, and the whole library with it.
#[test]
#[cfg_attr(not(turn = "10"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_run_goes_on_past_what_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let broken = "run --cases 12 --tasks 1 --keep-going --without data-before-mapping --minimise-seconds 5 --corpus found";
    let (status, said, _) = run(&format!("{broken} --causes causes.json"), folder.path());
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("\nnew: ") && said.contains("    kept as found/"), "{said}");
    let kept = files(&folder.path().join("found"));
    assert_eq!(kept.len(), said.matches("\nnew: ").count(), "a file for each: {kept:?}");

    let (status, said, _) = run(&format!("{broken} --known causes.json"), folder.path());
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("\nknown: ") && !said.contains("\nnew: "), "{said}");
    assert_eq!(files(&folder.path().join("found")), kept, "what is known is not kept again");

    let whole = "run --cases 20 --keep-going --known causes.json";
    let (status, said, _) = run(whole, folder.path());
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("\nknown, and not met: P"), "{said}");

    fs::write(folder.path().join("causes.json"), "[{}]").unwrap();
    let (status, _, complaint) = run(whole, folder.path());
    assert_eq!(status, 2, "{complaint}");
    assert!(complaint.contains("--known: causes.json: missing field `seen_as`"), "{complaint}");
}

/// Goal: a command that had something to write and did not says so in its exit status, and by whom it is heard. Method: a case that passes, as whole
/// code is; another one without its moment, for which there is no time.
#[test]
#[cfg_attr(not(turn = "2"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_has_nothing_to_write_does_not_pass() {
    let folder = tempfile::tempdir().unwrap();
    let name = "dropped-discard-leaks.json";
    fs::copy(corpus::folder().join(name), folder.path().join(name)).unwrap();
    for (verb, code) in [("explain", 0), ("minimise", 2), ("dump", 2), ("export", 2)] {
        let file = if code == 2 && verb != "minimise" { " out" } else { "" };
        let (status, said, error) = run(&format!("{verb} {name}{file}"), folder.path());
        assert_eq!((status, &*said), (code, ""), "{verb}: {error}");
        assert!(error.contains(&format!("{name} passes, with and without its witness")), "{error}");
        assert_eq!(files(folder.path()), [name], "{verb}");
    }
    let mut case = corpus::load(&folder.path().join(name)).unwrap();
    for life in &mut case.lives {
        life.crash = None;
    }
    let path = folder.path().join("late.json");
    fs::write(path, corpus::text_of(&case)).unwrap();
    let (status, said, _) = run("replay --seconds 0 late.json", folder.path());
    let row = "not-measured   searched  whole   late.json   <- not as expected\n";
    let why = "    its moment is not there, and not every other one was looked at\n";
    assert_eq!((status, said), (2, format!("{row}{why}")));
}
