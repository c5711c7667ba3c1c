//! What an adapter needs, of whichever crate it is: `use qcow2_crashtest::prelude::*`.
//!
//! | door | names |
//! |---|---|
//! | asynchronous code | [`Subject`], [`SubjectImage`] over an [`AnyStorage`] or a [`ByteFile`]; [`InOrder`] where writes have no order of their own |
//! | synchronous code, and C | [`BlockingSubject`], [`BlockingImage`] over a [`PlainFile`]; [`Blocking`] makes a [`Subject`] of it |
//! | both | [`Capabilities`], [`Duties`], [`Promises`], [`Session`], [`Refusal`]; [`outsider::main`] is the command line |

pub use faultfs::profile::Profile;
pub use model::build::Initial;
pub use model::guest::{DiscardReads, Promises};
pub use model::image::Mapping;
pub use model::judge::{Extent, Statement};
pub use model::op::{Durability, Geometry, Preallocation};
pub use qcow2_core::storage::{AnyStorage, IoBuf, Storage};

pub use crate::blocking::{Blocking, BlockingImage, BlockingSubject, Handles, PlainFile};
pub use crate::byte_file::ByteFile;
pub use crate::capabilities::Capabilities;
pub use crate::console::outsider;
pub use crate::in_order::InOrder;
pub use crate::subject::{Duties, Mend, Refusal, Session, Subject, SubjectImage};
