//! Many cases: each a plan, run life after life, judged at a sample of its moments; figures at the end.
//!
//! **Invariant.** A case is a function of the campaign's seed and its own number, so workers may take cases in any order and
//! a violation is found again from the two.
//!
//! | module | subject |
//! |---|---|
//! | `settings` | what a campaign runs, and for how long |
//! | `run` | case after case, on all workers |
//! | `case` | one case |

mod case;
mod run;
mod settings;

pub use case::case_seed;
pub(crate) use case::draw_steps;
pub use run::{Found, Report, run, run_past};
pub(crate) use run::{Standing, find_again, run_from};
pub use settings::{Budget, Settings};
