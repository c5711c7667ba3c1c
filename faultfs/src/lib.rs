//! The hostile disk.
