//! Campaigns: `cargo test fuzz` runs all of them at a smoke budget, `cargo test --release --test fuzz` is the long one. Where
//! neither `CI` is set nor the build optimised, each has fewer cases, or the part of them whose turn it is.
//!
//! Environment: `CAMPAIGN_SECONDS` (60 in release, 5 otherwise), `CAMPAIGN_SEED`, `CAMPAIGN_PROFILE`.

#[path = "../build/turn.rs"]
mod turn;

#[path = "."]
mod fuzz {
    mod blocking;
    mod campaign;
    mod ops;
    mod wrong;
}
