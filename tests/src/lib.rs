//! The harness: an implementation of qcow2 runs on a disk that loses, reorders and tears what was not flushed, the power
//! fails at every moment, and a judge that shares no code with it says whether what comes back is what was promised.
//!
//! ```text
//!   workload ──plan──> campaign ──> life ──moment──> power cut ──> recover ──> judged
//!                          │                                          │
//!                          └── figures, probes                        └── violation ──> minimise ──> corpus, report
//! ```
//!
//! To test another implementation, implement [`subject::Subject`] for it: [`subject`] is the guide, [`prelude`] has the names.

pub mod any;
pub mod attack;
pub mod blocking;
pub mod buffer;
pub mod bystander;
pub mod byte_file;
pub mod call;
pub mod campaign;
pub mod capabilities;
pub mod causes;
pub mod console;
pub mod corpus;
pub mod count;
pub mod dump;
pub mod ended;
pub mod evidence;
pub mod explore;
pub mod figures;
pub mod file;
pub mod file_command;
pub mod guest_disk;
pub mod guest_trace;
pub mod image_log;
pub mod import;
pub mod in_order;
pub mod interrupt;
pub mod lapse;
pub mod layer;
pub mod leaf;
pub mod ledger;
pub mod life;
pub mod liveness;
pub mod log_file;
pub mod log_mark;
pub mod logwrites;
pub mod minimise;
pub mod mutants;
pub mod panics;
pub mod prelude;
pub mod probe;
pub mod promise;
pub mod qemu;
pub mod recover;
pub mod replay;
pub mod report;
pub mod robust;
pub mod sabotage;
mod situations;
pub mod subject;
mod supervisor;
pub mod transcript;
pub mod trial;
pub mod verdict;
pub mod watch;
pub mod workload;
