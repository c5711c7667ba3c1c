//! A finding on its way into the corpus: as it was found first, and in its place what is left of it when it was shortened.
//!
//! **Invariant.** From the moment at which it is found, a file or the terminal has all of it: whatever happens to what is done
//! with it next, it can be replayed.

use std::path::{Path, PathBuf};

use model::case::Case;

use super::{complain, say, shown};
use crate::corpus::{self, CorpusError};
use crate::ended::Ended;

/// A finding that is being kept.
#[derive(Debug)]
pub struct Keep<'a> {
    /// Where; none: it is told and not kept.
    folder: Option<&'a Path>,
    raw: Option<PathBuf>,
}

impl<'a> Keep<'a> {
    /// Keeps a case as it was found.
    pub fn raw(folder: Option<&'a Path>, case: &Case) -> Self {
        let saved = folder.map(|folder| corpus::save_raw(case, folder));
        let raw = path_or_text(saved, case);
        if let Some(raw) = &raw {
            say(&format!("kept as it was found: {}\n", shown(raw)));
        }
        Self { folder, raw }
    }

    /// What another process has kept as it was found.
    pub(super) fn again(folder: Option<&'a Path>, path: &Path) -> Self {
        Self { folder, raw: Some(path.to_owned()) }
    }

    /// The file of what was found.
    pub(super) fn path(&self) -> Option<&Path> {
        self.raw.as_deref()
    }

    /// Keeps more of what was found in the place of what was known first.
    pub fn better(self, case: &Case) -> Self {
        let better = Self::raw(self.folder, case);
        if better.raw.is_some() && better.raw != self.raw {
            self.forget();
        }
        better
    }

    /// Keeps the shortened case; its path, if it is in a file. What was found stays beside it if a signal ended the shortening.
    pub fn shortened(self, case: &Case, ended: Ended) -> Option<PathBuf> {
        let path = path_or_text(self.folder.map(|folder| corpus::save(case, folder)), case)?;
        if ended != Ended::Interrupted {
            self.forget();
        }
        Some(path)
    }

    /// Keeps nothing of it any longer: another file has what it shows.
    pub fn forget(self) {
        if let Some(path) = self.raw
            && let Err(source) = std::fs::remove_file(&path)
        {
            complain(CorpusError::Io { path, source });
        }
    }
}

/// The path of a case that was saved. If it could not be, its text goes to the terminal.
fn path_or_text(saved: Option<Result<PathBuf, CorpusError>>, case: &Case) -> Option<PathBuf> {
    saved?
        .inspect_err(|error| {
            complain(error);
            say(&format!(
                "the case could not be kept; this is the file:\n{}",
                corpus::text_of(case)
            ));
        })
        .ok()
}
