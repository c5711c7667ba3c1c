//! Makes what the documents of this workspace show again: runs the commands in them and keeps what these print.

use std::path::Path;

use clap::Args;

use super::output::{say, write};
use super::status::ExitStatus;
use crate::corpus::CorpusError;
use crate::transcript::{run, transcripts};

/// The documents with transcripts, below the root of the workspace.
pub const DOCUMENTS: [&str; 2] = ["README.md", "EVIDENCE.md"];

/// `evidence`
#[derive(Args)]
pub struct EvidenceCommand {
    /// Only what is below these headings, each as it stands there.
    sections: Vec<String>,
}

impl EvidenceCommand {
    /// Runs every command of the documents at `root`, one after the other. What each printed is kept before the next one begins.
    ///
    /// # Errors
    /// The first command that failed, a document that has none or cannot be written, a section that does not exist.
    pub fn run(&self, root: &Path) -> Result<ExitStatus, CorpusError> {
        let mut unknown: Vec<&String> = self.sections.iter().collect();
        for name in DOCUMENTS {
            let path = root.join(name);
            let read = || {
                std::fs::read_to_string(&path)
                    .map_err(|source| CorpusError::Io { path: path.clone(), source })
            };
            let fault = |why: String| CorpusError::Case(format!("{name}: {why}"));
            let document = read()?;
            for transcript in transcripts(&document).map_err(fault)? {
                unknown.retain(|section| *section != transcript.section);
                if !self.sections.is_empty()
                    && !self.sections.iter().any(|section| section == transcript.section)
                {
                    continue;
                }
                let command = transcript.command;
                say(&format!("$ {command}\n"));
                let output = run(command, root).map_err(fault)?;
                say(&output);
                // A command may take long, and somebody may have edited the text meanwhile.
                let document = read()?;
                let found = transcripts(&document).map_err(fault)?;
                let place = found.iter().find(|it| it.command == command);
                let place =
                    place.ok_or_else(|| fault(format!("$ {command}: it went meanwhile")))?;
                write(&path, place.replaced(&document, &output))?;
            }
        }
        match unknown.first() {
            None => Ok(ExitStatus::Passed),
            Some(section) => {
                Err(CorpusError::Case(format!("no transcript is below a heading {section:?}")))
            }
        }
    }
}
