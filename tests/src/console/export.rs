//! `export`: what a kept case wrote to its image, as a log that other tools replay.

use std::path::PathBuf;

use clap::Args;

use super::cases::{Cases, Failing, failing};
use super::output::{another_file, check, say, shown, write};
use super::status::ExitStatus;
use crate::corpus::{self, CorpusError};
use crate::minimise::Minimised;
use crate::report;

/// `export`
#[derive(Args)]
pub struct Export {
    /// A case file.
    path: PathBuf,
    /// The log to write, in the format of the Linux target dm-log-writes.
    log: PathBuf,
}

impl Export {
    /// Writes the I/O of a case, life by life up to each power cut, as a log.
    ///
    /// # Errors
    /// If the case cannot be run or has two files, or the log cannot be written. Of one that passes there is none, either:
    /// [`ExitStatus::Broken`].
    pub fn run<C: Cases>(&self, cases: &C) -> Result<ExitStatus, CorpusError> {
        check([self.log.as_path()], None)?;
        another_file(&self.path, &self.log)?;
        let file = shown(&self.path);
        if corpus::load(&self.path)?.geometry.data_file.is_some() {
            let why = "its image has a data file, and a log is of one file";
            return Err(CorpusError::Case(format!("{file}: geometry.data_file: {why}")));
        }
        let Failing { subject, found, .. } = match failing(cases, &self.path)? {
            Ok(failing) => failing,
            Err(status) => return Ok(status.without_output()),
        };
        let Minimised { trial, failure } = &found;
        let log = report::log(&subject, trial, failure)
            .map_err(|error| CorpusError::Case(format!("{file}: {error}")))?
            .ok_or_else(|| CorpusError::Case(format!("{file}: it does not fail again")))?;
        write(&self.log, &log.bytes)?;
        let (entries, lives) = (log.entries, log.lives);
        say(&format!("{entries} entries of {lives} lives in {}\n", shown(&self.log)));
        if log.failed > 0 {
            say(&format!(
                "{} that failed are notes there: a log cannot say that what failed may have landed\n",
                log.failed
            ));
        }
        Ok(ExitStatus::Passed)
    }
}
