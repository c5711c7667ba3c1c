//! The judge of a qcow2 implementation: what a guest was promised, what an image says, and whether the two agree.
//!
//! It shares no code with the accused: it has its own words for operations, its own reader of images and its own builder
//! of initial ones, and it imports no crate of the workspace.
//!
//! ```text
//!   op, case          what is done to a disk, as data that a file can hold
//!      |
//!   guest             what each guest unit may hold: G(g)          evidence        what each host unit may hold
//!      |                                                              |
//!      |                                                           image           header, L1, L2, refcounts; labels
//!      |                                                              |
//!      |                                                           audit           references against refcounts
//!      +------------------------------ judge -------------------------+            P0..P6 and P8, one function each
//!
//!   payload           units of guest data that say whose they are
//!   crypt             how guest data of encrypted images is enciphered, by ciphers that the library does not use, and what opens them
//!   build             initial images, byte by byte, and what a guest reads from them
//!   mistake            named mutants of this crate, by which its own tests are tested
//!   mistaken          what those make of single steps
//! ```
//!
//! Two ideas keep it fast and honest. Contents are compared as [`evidence::ValueKey`]s, never as bytes: equal keys are equal
//! bytes. And a unit of guest data is never *read* to be judged: everything that its host unit may hold must be allowed
//! ([`evidence::Evidence::peek`]), so that what nobody reads need not be decided.

pub mod audit;
pub mod build;
pub mod case;
pub mod crypt;
pub mod evidence;
pub mod finding;
pub mod guest;
pub mod image;
pub mod judge;
pub mod label;
mod memory;
pub mod mistake;
mod mistaken;
pub mod op;
pub mod payload;
mod stream;
mod text;
