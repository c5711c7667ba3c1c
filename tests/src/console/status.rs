//! What a command came to, for whoever started it.

use std::process::ExitCode;

use super::output::{complain, unheard};
use crate::bystander;
use crate::corpus::CorpusError;
use crate::interrupt::{self, Signal};

/// What exit statuses mean, for help texts.
pub const EXIT_STATUS: &str = "Exit status: 0 nothing found, 1 a violation, 2 misuse, a broken harness, nothing \
    to write or output that cannot be written, 130 or 143 interrupted (SIGINT, SIGTERM) before anything was found. The first of these signals \
    ends a run with what it has seen, a second one at once.";

/// What a campaign came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Nothing was found.
    Passed,
    /// A violation was found and kept.
    Violation,
    /// The run proves nothing, or what it shows cannot be written.
    Broken,
    /// Nothing was found before a signal ended it.
    Interrupted(Signal),
}

impl ExitStatus {
    /// The same for a command that had something to write, and did not: nothing found is not what was asked for.
    pub(super) const fn without_output(self) -> Self {
        match self {
            Self::Passed => Self::Broken,
            _ => self,
        }
    }

    /// What a program came to that ended with this exit status.
    pub(super) fn of_code(code: u8) -> Self {
        match code {
            0 => Self::Passed,
            1 => Self::Violation,
            _ => Signal::of_code(code).map_or(Self::Broken, Self::Interrupted),
        }
    }

    /// The exit status that says so.
    pub const fn code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Violation => 1,
            Self::Broken => 2,
            Self::Interrupted(signal) => signal.code(),
        }
    }
}

/// The exit status of a command; what went wrong with it goes to standard error.
pub fn exit(result: Result<ExitStatus, CorpusError>) -> ExitCode {
    let status = result.unwrap_or_else(|error| {
        complain(error);
        ExitStatus::Broken
    });
    let status =
        if status == ExitStatus::Passed && unheard() { ExitStatus::Broken } else { status };
    bystander::end();
    ExitCode::from(status.code())
}

/// What a command line asks for. Help and misuse end the program, help that cannot be shown as an error.
pub fn parsed<T>(result: Result<T, clap::Error>) -> T {
    result.unwrap_or_else(|error| {
        let shown = error.print().is_ok();
        let code = if shown { error.exit_code() } else { i32::from(ExitStatus::Broken.code()) };
        bystander::end();
        std::process::exit(code)
    })
}

/// From now on a signal ends the run with what it has seen, see [`interrupt`].
///
/// # Errors
/// If the system refuses.
pub fn listen() -> Result<(), CorpusError> {
    interrupt::listen().map_err(|error| CorpusError::Case(format!("signals: {error}")))
}

/// The status of a run whose last results were `written`: a violation stays one even if they were not.
pub(super) fn after(
    status: ExitStatus,
    written: Result<(), CorpusError>,
) -> Result<ExitStatus, CorpusError> {
    match (status, written) {
        (ExitStatus::Violation, Err(error)) => {
            complain(error);
            Ok(status)
        }
        (_, written) => written.map(|()| status),
    }
}
