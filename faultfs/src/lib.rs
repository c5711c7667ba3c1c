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
//! # Your storage engine on it
//!
//! Whoever writes files can find out what a power cut makes of them. It takes three things:
//!
//! 1. *The engine*, over [`storage::Storage`]: read, write, flush, set the length. Nothing of it knows that it is tested.
//! 2. *Its recovery*, as it is: what opens the file the next time.
//! 3. *An oracle*: what may be there then. Of a log: all records that a flush covered, and of the others a prefix.
//!
//! [`Direct`](direct::Direct) is the disk under both. It cuts the power at the operation that
//! [`crash_at`](direct::DirectOptions::crash_at) numbers and hands back what is left; recovery runs on another one, over the
//! [crashed](disk::PossibleDisk::crash) disk. Who decides what survived is a [chooser](chooser::Chooser): `Random` for a sample,
//! `Exhaustive` for all of it. Recovery may be cut short in the same way, as often as one likes.
//!
//! What keeps two files has both on one disk, under one power cut: [`with_second`](disk::PossibleDisk::with_second) makes room for
//! the second, and [`second`](direct::Direct::second) is the handle of it.
//!
//! `faultfs/examples` has a write-ahead log of some fifty lines and a page store that copies on write, each with its oracle, and each
//! without one of its flushes: `cargo test -p faultfs --test examples` finds that within a second.
//!
//! What a device may do is its [profile](profile::Profile): under `kill` everything that was submitted survives (a process dies, the
//! machine goes on), under `prefix` writes land in order, under `epoch` in any order between two flushes, under `cache` any subset of those
//! not flushed survives whole, under `torn` each unit of 512 bytes by itself, and under `torn-length` so do lengths of the file.
//!
//! What exploring costs: for each moment at which the power fails, the product of the values that each unit *which recovery reads* may
//! have. What nobody reads stays a set and costs nothing. The log's 466 states and the store's 33 are all that there are; a recovery that
//! reads everything that was not flushed multiplies, and should be sampled.
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
