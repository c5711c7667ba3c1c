//! The suites: everything about qcow2-core, and about the harness itself, that is no campaign.

#![expect(clippy::unwrap_used, reason = "nothing but tests and what they share")]

mod bench;
mod block_device;
mod blocking_door;
mod builder;
mod causes;
mod circles;
mod common;
mod compressed;
mod console;
mod corpus;
mod course;
mod direct_io;
mod documents;
mod economy;
mod examples;
mod exploration;
mod guest_trace;
mod house;
mod interop;
mod inventory;
mod ledger;
mod logs;
mod malformed;
mod matrix;
mod minimise;
mod odd;
mod opinions;
mod passphrases;
mod qemu_mutants;
mod qemu_repairs;
mod rare;
mod real_file;
mod refused;
mod report;
mod separate;
mod shuttle;
mod snapshots;
mod threads;
mod traces;
#[path = "../build/turn.rs"]
mod turn;
mod waste;
