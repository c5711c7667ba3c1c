//! The hostile disk: what may survive a power cut, what may fail, and in which order things happen.
//!
//! A [`PossibleDisk`](disk::PossibleDisk) is a disk of which each unit of 512 bytes holds the *set* of values that it may
//! have: all crash states at once. It serves as the live disk under a running program, as what a crash leaves, and as
//! the disk under recovery; crashing it again is the same operation once more.
//!
//! ```text
//!   program under test                          recovery under test
//!         |  Storage                                  |  Storage
//!   +-----v------+   step by step               +-----v------+   at once
//!   | exec::Sim  |   Schedule, FaultPlan        |   Direct   |   crash at operation n
//!   +-----|------+                              +-----|------+
//!         v                  crash(profile)           v                 crash(profile)
//!   PossibleDisk  -------------------------->  PossibleDisk  -------------------------->  ...
//!         |                                           |
//!         +-- what is left open: Chooser              +-- what a judge sees: peek, visible, possible_lengths
//!             Random, Playback, Exhaustive, ...             (decides nothing)
//! ```
//!
//! # Exploring every crash state
//!
//! ```
//! use faultfs::chooser::{Always, Exhaustive};
//! use faultfs::disk::PossibleDisk;
//! use faultfs::profile::Profile;
//! use faultfs::values::Values;
//! use storage::Durability;
//!
//! let values = Values::new();
//! let (a, b) = (values.intern(&[1; 512]), values.intern(&[2; 512]));
//! let mut disk = PossibleDisk::new(&values, 2);
//! let write = disk.submit_write(0, &[a, b], Durability::Cached, &mut Always(0));
//! disk.complete(write);
//!
//! let mut chooser = Exhaustive::new();
//! let mut states = 0;
//! loop {
//!     let mut crashed = disk.crash(Profile::TornLength, &mut chooser);
//!     crashed.image(&mut chooser); // recovery and judgement would run here
//!     states += 1;
//!     if !chooser.advance() {
//!         break;
//!     }
//! }
//! assert_eq!(states, 4); // a write of two units tears: none, either, both
//! ```
//!
//! # What it does not do
//!
//! It knows nothing of qcow2 and labels no offsets; nothing is damaged unless
//! somebody asks for it after a crash ([`PossibleDisk::damage`](disk::PossibleDisk::damage)); lengths are whole units.

mod candidate;
mod defect;
mod device;

pub mod chooser;
pub mod direct;
pub mod disk;
pub mod exec;
pub mod fault;
pub mod profile;
pub mod rng;
pub mod schedule;
pub mod trace;
pub mod values;

#[doc(hidden)]
pub use defect::Defect;
pub use device::Breach;
pub use disk::DEFAULT_LIMITS;
