//! The reference disk: what each guest unit may hold.
//!
//! Guest writes are ordered only by real time: *a* is before *b* if *a* was answered before *b* began. For one unit:
//!
//! ```text
//!   settled    the writes that completed before a successful flush was submitted, and write-through writes that completed
//!   G(g)       every write that is not before a settled one: what may be there after a power cut
//!   live       every write that is not before a completed one: what a read may return now
//!
//!            w1 ------|                                  G = {w1, w2, w3}: w0 was before w1, which the flush settled;
//!   w0 ---|      w2 -----------|                         w2 overlaps w1, and w3 is not flushed
//!                        flush ----|   w3 ------|        live = {w3}
//! ```
//!
//! The invariant this module owns: each unit's list holds exactly G(g). Three kinds of write never settle anything and so
//! stay possible until a later write settles: one that failed, one whose future was dropped, and a discard by a subject that
//! promises no more than "old or zero". Values are opaque keys of the run's store. The virtual size is one more such cell, and so is
//! whether a further passphrase opens the image.
//!
//! | module | subject |
//! |---|---|
//! | `disk` | the disk: operations, answers, flushes, power cuts |
//! | `units` | all units, in chunks that copies share |
//! | `cell` | one unit: its writes, and what is before what |
//! | `passphrases` | what opens an encrypted image |
//! | `history` | what was done, for a story |
//! | `lower` | the layer below, which never changes |
//! | `made` | what the image was made as, and stays |
//! | `promises` | what an implementation promises |

mod cell;
mod disk;
mod history;
mod lower;
mod made;
mod passphrases;
mod promises;
mod units;

pub use cell::Token;
pub use disk::{Guest, Leeway, Misread};
pub use lower::LowerDisk;
pub use made::{ForeignExtension, Made};
pub use passphrases::{Openings, Opens};
pub use promises::{DiscardReads, Promises};
