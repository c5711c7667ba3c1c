//! The suites: everything about qcow2-core, and about the harness itself, that is no campaign.

mod common;
mod corpus;
mod economy;
mod house;
mod interop;
mod malformed;
mod report;
mod snapshots;
mod traces;
