//! What a run says and writes. What cannot be written is never silent: it goes to standard error, and the exit status is not 0.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::corpus::CorpusError;
use crate::file;

/// Whether something that was said did not get out.
static UNHEARD: AtomicBool = AtomicBool::new(false);

/// Writes to standard output past the capture of test harnesses.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
        && !UNHEARD.swap(true, Ordering::Relaxed)
    {
        complain(format_args!("standard output: {error}"));
    }
}

/// Whether something that was [said](say) did not get out.
pub fn unheard() -> bool {
    UNHEARD.load(Ordering::Relaxed)
}

/// Writes a line to standard error. Where that is gone too, nobody is left to tell.
pub fn complain(what: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{what}");
}

/// Writes a file that somebody asked for, whole or not at all.
///
/// # Errors
/// [`CorpusError::Io`].
pub fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<(), CorpusError> {
    file::replace(path, contents.as_ref())
        .map_err(|source| CorpusError::Io { path: path.to_owned(), source })
}

/// Refuses to begin where what a run ends with could not be written: its files, and cases in a folder.
///
/// # Errors
/// [`CorpusError::Io`], with the path.
pub fn check<'a>(
    files: impl IntoIterator<Item = &'a Path>,
    folder: Option<&Path>,
) -> Result<(), CorpusError> {
    let error = |path: &Path, source| CorpusError::Io { path: path.to_owned(), source };
    for path in files {
        file::check(path).map_err(|source| error(path, source))?;
    }
    folder
        .map_or(Ok(()), |folder| file::check_folder(folder).map_err(|source| error(folder, source)))
}

/// Shows a path in a message.
pub fn shown(path: &Path) -> String {
    let escaped = |c: char| match c {
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    path.display().to_string().chars().map(escaped).collect()
}

/// Whether what is written goes somewhere else than what it is made of.
///
/// # Errors
/// If both are the same file.
pub fn another_file(from: &Path, to: &Path) -> Result<(), CorpusError> {
    match (from.canonicalize(), to.canonicalize()) {
        (Ok(one), Ok(other)) if one == other => {
            let why = "it is the case itself, and would be written over";
            Err(CorpusError::Case(format!("{}: {why}", shown(to))))
        }
        _ => Ok(()),
    }
}
