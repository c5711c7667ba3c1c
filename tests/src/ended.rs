//! How a piece of work came to its end.

use serde::{Deserialize, Serialize};

/// Why it went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// There was nothing more to do.
    Complete,
    /// The time, or the number of cases, that it was given.
    Budget,
    /// A signal.
    Interrupted,
    /// It found a violation.
    Violation,
    /// It proves nothing: the harness itself is at fault.
    Broken,
}
