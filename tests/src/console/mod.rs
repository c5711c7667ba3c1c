//! Campaigns, explorations and kept cases as a person sees them, on the command line.
//!
//! | module | subject |
//! |---|---|
//! | `run` `explore` | a campaign; an exploration |
//! | `tell` `keep` `shorten` | a violation: told, kept, minimised |
//! | `cases` | kept cases: again, smaller, explained |
//! | `kept` `evidence` | what kept files say, as tables; what documents show, made again |
//! | `sample` | which cases a campaign takes, and for how long |
//! | `outsider` | all of it for a subject outside the workspace |
//! | `output` `status` | what is said and written; what a command came to |

pub mod cases;
pub mod evidence;
mod explore;
pub mod keep;
pub mod kept;
pub mod output;
pub mod outsider;
mod run;
pub mod sample;
pub mod shorten;
mod status;
mod tell;

pub use explore::{Exploration, explore};
pub use output::{complain, say, shown};
pub use run::{Outputs, run};
pub use status::{EXIT_STATUS, ExitStatus, exit, listen, parsed};
pub use tell::written;
