//! The judgement: one function for each property, and all that apply to one recovered state in one call.
//!
//! ```text
//!   guest unit g --G(g)-------------------------------.
//!        |                                            v
//!        `-- L2 entry --> host unit h --peek(h)--> is every value allowed?     yes: nothing to say
//!                    `--> nothing, zero --> zero                               no: P1 if it was once written to g, else P2
//! ```
//!
//! Of an encrypted image h is deciphered on the way, each value of its set (`plain`): by its own number or by that of g.
//!
//! A raw data file is the disk a second time, R(g): unit g of it. Where g is mapped to its own place the two are one unit; elsewhere all
//! that it may hold has to be what the image says of g.
//!
//! The invariant: a state passes only if every value that any guest unit may still turn out to hold is allowed, and every
//! structural fact is legal at this stage. Nothing here allocates while nothing is wrong.
//!
//! P7, P9, P10 and P-cipher need whole runs rather than states, so the harness judges those with the same [`Violation`]s; the part of
//! P10 that one state shows, the virtual size and what the header and the slots of keys say, is here.
//!
//! | module | subject |
//! |---|---|
//! | `state` | one state in full, and what is compared with what was before or was said: P3, P5, P6, P8 |
//! | `seen` | what the guest may read: P0, P1, P2 |
//! | `structure` `keys` | what tables and the header say: P4, P10; what opens an encrypted image: P10 |
//! | `shown` `plain` | where each guest cluster is read from; what the units there say once they are deciphered |
//! | `contents` `inherited` `statement` `violation` | what was there, what was wrong before, what the subject says, what is wrong |

mod contents;
mod inherited;
mod keys;
mod plain;
mod seen;
mod shown;
mod state;
mod statement;
mod structure;
mod violation;

pub use contents::Contents;
pub use inherited::Inherited;
pub(crate) use keys::MAX_HEADERS;
pub use seen::p0_misread;
pub use state::Judge;
pub use statement::{Extent, Statement};
pub use structure::{
    AUTOCLEAR_STAYS, p_cipher, p4_structure, p10_data_file, p10_encryption, p10_layer, p10_size,
};
pub use violation::{MAX_VIOLATIONS, Place, Violation};
