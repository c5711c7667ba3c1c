//! A process beside a run, which says what the run was at if that ends without a word: a subject that overflows its stack, follows a
//! dangling pointer in C, or takes all memory ends the process that it is in, and nothing in there can say more.
//!
//! ```text
//!   run          "3 case 7 of seed 1" ──> pipe                      dies: the pipe ends without "end"
//!   bystander                              keeps the last of each   ──> "case 7 of seed 1"
//! ```
//!
//! It is the same program, called once more with the first thing that is done after [`begin`], and decides nothing.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, BufRead, Write};
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What makes this program one, when it is called with it.
const ASKED: &str = "QCOW2_CRASHTEST_BYSTANDER";

/// The last line of a run that ends by itself.
const END: &str = "end";

/// Whether there is to be one.
static WANTED: AtomicBool = AtomicBool::new(false);

/// The pipe to it, once it has begun; none if it could not.
static PIPE: Mutex<Option<Option<ChildStdin>>> = Mutex::new(None);

/// To be called first by a program: from now on there is one, as soon as something is done. What the program ends with if it was called to be
/// that itself.
pub fn begin() -> Option<ExitCode> {
    if env::var_os(ASKED).is_none() {
        WANTED.store(true, Ordering::Relaxed);
        return None;
    }
    if let Some(told) = told_of(io::stdin().lock().lines().map_while(Result::ok)) {
        eprint!("{told}");
    }
    Some(ExitCode::SUCCESS)
}

/// Nothing more is to be said: the process ends by itself.
pub fn end() {
    WANTED.store(false, Ordering::Relaxed);
    write(END);
}

/// What a thread does from now on; empty if that has ended.
pub(crate) fn tell(thread: u64, what: &str) {
    if WANTED.load(Ordering::Relaxed) {
        write(&format!("{thread} {}", what.replace('\n', " ")));
    }
}

fn write(line: &str) {
    let mut pipe = PIPE.lock().unwrap_or_else(PoisonError::into_inner);
    if pipe.is_none() && line == END {
        return;
    }
    // Without one there is no more to see than there was.
    if let Some(into) = pipe.get_or_insert_with(call) {
        let _ = writeln!(into, "{line}");
    }
}

fn call() -> Option<ChildStdin> {
    let mut this = Command::new(env::current_exe().ok()?);
    let piped = this.env(ASKED, "").stdin(Stdio::piped()).stdout(Stdio::null());
    piped.spawn().ok()?.stdin
}

/// What there is to say after these lines, if the last is not that all is well.
fn told_of(lines: impl Iterator<Item = String>) -> Option<String> {
    let mut at = BTreeMap::new();
    for line in lines {
        if line == END {
            return None;
        }
        if let Some((thread, what)) = line.split_once(' ') {
            at.insert(thread.to_owned(), what.to_owned());
        }
    }
    at.retain(|_, what| !what.is_empty());
    let mut told =
        String::from("The process was ended from without, or by the subject. It was at\n");
    at.values().for_each(|what| told += &format!("  {what}\n"));
    (!at.is_empty()).then_some(told + "With the same seed `run --case N` is one case by itself.\n")
}

#[cfg(test)]
mod tests {
    use super::told_of;

    /// Goal: what is told is what was not over, and nothing of a run that ended by itself. Method: three threads, one of which has ended.
    #[test]
    fn what_was_not_over_is_told() {
        let lines = ["1 case 1", "2 case 2", "1 case 3", "3 case 4", "3 "];
        let of = |last: &[&str]| told_of(lines.iter().chain(last).map(|it| (*it).to_owned()));
        let told = of(&[]).unwrap();
        assert!(told.contains("  case 3\n  case 2\nWith"), "{told}");
        assert_eq!(of(&["end"]), None);
        assert_eq!(of(&["1 ", "2 "]), None);
    }
}
