//! What a random case does: its image, its requests, its faults. One seed, one plan.
//!
//! | module | subject |
//! |---|---|
//! | `scope` | what a campaign asks of its cases |
//! | `shape` `fault_kind` | ways in which cases differ, and what goes wrong in them, by name |
//! | `plan` | what a case is to do, before it runs |
//! | `draw` | from a seed to a plan |

mod draw;
mod fault_kind;
mod plan;
mod scope;
mod shape;

pub use draw::plan;
pub use fault_kind::{FaultKind, UnknownFault};
pub use plan::{LifePlan, Plan};
pub use scope::Scope;
pub use shape::{Shape, UnknownShape};

/// Version of the generator: cases of different versions with the same seed differ.
pub const GENERATOR: u32 = 22;
