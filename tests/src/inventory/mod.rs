//! Everything that qcow2-core can be told or asked, and that a storage can answer: which classes of values there are, what draws each,
//! and which property would be violated if it were treated wrongly.
//!
//! ```text
//!   of                           class            drawn                                        noticed
//!   OpenOptions.page_size        one unit         Plans(500, |plan| plan.open.page_size ..)    P1 P2 P4
//!   Storage::flush()             fails for good   Fault(FlushSticky)                           P1 P8
//!   OpenError::Option            told             Test(REFUSED, "options_of_opening_..")       (the test itself)
//! ```
//!
//! `tests/suite/inventory.rs` reads the names from the sources of qcow2-core: a field, variant, method or constant without a line here
//! fails there, and so does a line about something that is gone, a test that is not there, and a class that plans seldom draw.

mod line;
mod lines;

pub use line::{By, Line};
pub use lines::{LINES, OUTSIDE};
