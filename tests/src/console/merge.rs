//! Parts of one exploration, which shards wrote, as its certificate.

use std::path::PathBuf;

use clap::Args;

use super::output::{say, shown};
use super::status::ExitStatus;
use crate::corpus::CorpusError;
use crate::explore::certificate::{MergeError, Part};

/// The arguments.
#[derive(Args)]
pub struct Merge {
    /// Files written by `explore --part`.
    #[arg(required = true)]
    parts: Vec<PathBuf>,
}

impl Merge {
    /// Merges them, and prints the certificate.
    ///
    /// # Errors
    /// A file that is no part, and parts that do not belong together.
    pub fn run(&self) -> Result<ExitStatus, CorpusError> {
        let mut merged: Option<Part> = None;
        for path in &self.parts {
            let text = std::fs::read_to_string(path)
                .map_err(|source| CorpusError::Io { path: path.clone(), source })?;
            let fault = |error: String| CorpusError::Case(format!("{}: {error}", shown(path)));
            let part: Part =
                serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
            match &mut merged {
                None => merged = Some(part),
                Some(merged) => merged.merge(&part).map_err(|error| fault(error.to_string()))?,
            }
        }
        let whole = merged.ok_or(MergeError::None).and_then(Part::whole);
        say(&whole.map_err(|error| CorpusError::Case(error.to_string()))?.to_json());
        Ok(ExitStatus::Passed)
    }
}
