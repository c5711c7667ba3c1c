//! A qcow2 implementation whose write orders are named rules.
pub mod storage;
