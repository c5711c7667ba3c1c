//! Campaigns, explorations and kept cases as a person sees them, on the command line.
//!
//! | module | subject |
//! |---|---|
//! | `run` `causes` `journal` | a campaign; one that goes on past its findings, and what it notes on its way |
//! | `explore` `merge` | an exploration; parts of one as a whole |
//! | `tell` `keep` `shorten` | a violation: told, kept, minimised |
//! | `cases` | kept cases: again, smaller, explained |
//! | `kept` `evidence` | what kept files say, as tables; what documents show, made again |
//! | `sample` `worlds` `names` | arguments: which cases a campaign takes, what an exploration covers, values that have names |
//! | `import` `export` `trace` | logs of writes: anybody's, a case's, a guest's as the workload of a campaign |
//! | `sensitivity` | what the storage under a subject can leave out unnoticed |
//! | `outsider` | all of it for a subject outside the workspace |
//! | `output` `status` | what is said and written; what a command came to |

pub mod cases;
mod causes;
pub mod evidence;
mod explore;
pub mod export;
pub mod import;
mod journal;
pub mod keep;
pub mod kept;
pub mod merge;
mod names;
pub mod output;
pub mod outsider;
mod run;
pub mod sample;
pub mod sensitivity;
pub mod shorten;
mod status;
mod tell;
mod trace;
pub mod worlds;

pub use causes::Onward;
pub use explore::{Exploration, Results, explore};
pub use output::{complain, say, shown};
pub use run::{Outputs, run};
pub use status::{EXIT_STATUS, ExitStatus, exit, listen, parsed};
pub use tell::written;
pub use trace::TraceWorkload;
