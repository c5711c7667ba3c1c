//! Campaigns: `cargo test fuzz` runs all of them at a smoke budget, `cargo test --release --test fuzz` is the long one.
//!
//! Environment: `CAMPAIGN_SECONDS` (60 in release, 5 otherwise), `CAMPAIGN_SEED`, `CAMPAIGN_PROFILE`.

#[path = "."]
mod fuzz {
    mod blocking;
    mod campaign;
    mod ops;
    mod wrong;
}
