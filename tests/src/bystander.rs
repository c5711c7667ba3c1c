//! A process beside a run, which says what the run was at if that ends without a word: a subject that overflows its stack, follows a
//! dangling pointer in C, or takes all memory ends the process that it is in, and nothing in there can say more.
//!
//! ```text
//!   file        [ case 7 of seed 1 \0\0.. ][ \0\0.. ][ case 9 of seed 1 \0.. ]     a slot a thread: what it is at, empty if at nothing
//!   run         writes its slot ...       dies: the pipe ends without "end"
//!   bystander   reads the pipe ...        reads the file               ──> "case 7 of seed 1"
//! ```
//!
//! It is the same program, called once more with the first thing that is done after [`begin`], and decides nothing. Of a process with a
//! supervisor (`supervisor.rs`) that one reads the file, and no bystander is called. What threads are at is in a file
//! without a name and not in the pipe, because a line of a pipe wakes who reads it: a tenth of an exploration of small worlds went there.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What makes this program one, when it is called with it.
const ASKED: &str = "QCOW2_CRASHTEST_BYSTANDER";

/// What tells a process the folder that it shares with its supervisor.
const SUPERVISED: &str = "QCOW2_CRASHTEST_SUPERVISED";

/// The file in this folder for what threads are at; its last word is [`END`].
const AT: &str = "at";

/// The last word of a run that ends by itself.
const END: &str = "end";

/// Bytes of the file for a thread.
const SLOT: usize = 1024;

/// Whether there is to be one.
static WANTED: AtomicBool = AtomicBool::new(false);

/// The one, once it has begun; none if it could not.
static BESIDE: Mutex<Option<Option<Beside>>> = Mutex::new(None);

/// What ties a run to its bystander, or supervisor.
struct Beside {
    /// To the bystander; none where there is a supervisor.
    pipe: Option<ChildStdin>,
    file: File,
}

/// To be called first by a program: from now on there is one, as soon as something is done. What the program ends with if it was called to be
/// that itself.
pub fn begin() -> Option<ExitCode> {
    if env::var_os(ASKED).is_none() {
        WANTED.store(true, Ordering::Relaxed);
        return None;
    }
    if let Ok(Some(told)) = stand_by() {
        eprint!("{told}");
    }
    Some(ExitCode::SUCCESS)
}

/// Waits for the end of the run, and says what there is to say of it.
fn stand_by() -> io::Result<Option<String>> {
    let mut last = Vec::new();
    io::stdin().read_to_end(&mut last)?;
    if last == END.as_bytes() {
        return Ok(None);
    }
    let mut file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut slots = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut slots)?;
    Ok(told_of(&slots))
}

/// Nothing more is to be said: the process ends by itself.
pub fn end() {
    WANTED.store(false, Ordering::Relaxed);
    if let Some(folder) = folder() {
        // What a thread says later, such as one that ends, is not said. Whoever cannot say this counts as one that has died.
        let mut beside = BESIDE.lock().unwrap_or_else(PoisonError::into_inner);
        *beside = Some(None);
        let _ = fs::write(folder.join(AT), END);
        return;
    }
    if let Some(Some(mut beside)) = BESIDE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = beside.pipe.as_mut().map(|pipe| pipe.write_all(END.as_bytes()));
    }
}

/// Whether [`begin`] was called: this is a program that can be called once more.
pub(crate) fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// The folder that this process shares with its supervisor, if it has one.
pub(crate) fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(|| env::var_os(SUPERVISED).map(PathBuf::from)).as_deref()
}

/// This program, to be called once more under a supervisor with this folder.
pub(crate) fn supervised(folder: &Path) -> io::Result<Command> {
    fs::write(folder.join(AT), "")?;
    let mut this = Command::new(env::current_exe()?);
    this.env(SUPERVISED, folder);
    Ok(this)
}

/// What the threads of a process under a supervisor were at when it died, as far as they could say; none if it ended by itself.
pub(crate) fn left_in(folder: &Path) -> io::Result<Option<Vec<String>>> {
    let slots = fs::read(folder.join(AT))?;
    Ok((slots != END.as_bytes()).then(|| told_in(&slots)))
}

/// What a thread does from now on; empty if that has ended. No two that do something have the same number, and few numbers do.
pub(crate) fn tell(thread: u64, what: &str) {
    if WANTED.load(Ordering::Relaxed) {
        let mut beside = BESIDE.lock().unwrap_or_else(PoisonError::into_inner);
        // Without one there is no more to see than there was.
        if let Some(beside) = beside.get_or_insert_with(|| call().ok().flatten()) {
            let _ = beside.file.write_all_at(&slot(what), thread.saturating_mul(SLOT as u64));
        }
    }
}

fn call() -> io::Result<Option<Beside>> {
    if let Some(folder) = folder() {
        let file = File::options().write(true).open(folder.join(AT))?;
        return Ok(Some(Beside { pipe: None, file }));
    }
    let file = tempfile::tempfile()?;
    let mut this = Command::new(env::current_exe()?);
    this.env(ASKED, "").stdin(Stdio::piped()).stdout(file.try_clone()?);
    Ok(this.spawn()?.stdin.map(|pipe| Beside { pipe: Some(pipe), file }))
}

/// What is done, as far as it has room.
fn slot(what: &str) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot.iter_mut().zip(what.bytes()).for_each(|(to, byte)| *to = byte);
    slot
}

/// What there is to say after these slots.
fn told_of(slots: &[u8]) -> Option<String> {
    let told: String = told_in(slots).iter().map(|what| format!("  {what}\n")).collect();
    (!told.is_empty()).then(|| {
        format!(
            "The process was ended from without, or by the subject. It was at\n{told}With the same seed `run --case N` is one case by itself.\n"
        )
    })
}

/// What is said in slots, a line each.
fn told_in(slots: &[u8]) -> Vec<String> {
    slots
        .chunks(SLOT)
        .map(|slot| String::from_utf8_lossy(slot).trim_end_matches('\0').replace('\n', " "))
        .filter(|what| !what.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{SLOT, slot, told_of};

    /// Goal: what is told is what was not over, and nothing of a run at nothing. Method: three threads, one of which has ended; one at more than
    /// there is room for.
    #[test]
    fn what_was_not_over_is_told() {
        let of = |whats: &[&str]| {
            told_of(&whats.iter().flat_map(|what| slot(what)).collect::<Vec<u8>>())
        };
        let told = of(&["case\n3", "", "case 2"]).unwrap();
        assert!(told.contains("\n  case 3\n  case 2\nWith"), "{told}");
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["", ""]), None);
        let long = "x".repeat(SLOT + 1);
        assert!(of(&[&long, "case 2"]).unwrap().contains("xx\n  case 2\n"));
    }
}
