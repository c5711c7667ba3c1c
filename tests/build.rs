//! Hashes the source of the crates, for certificates.

use std::path::Path;

#[path = "build/sources.rs"]
mod sources;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/sources.rs");
    // Of the unit tests, which campaign/build.rs looks for.
    println!("cargo::rustc-check-cfg=cfg(has_bash)");
    sources::hash(Path::new(".."));
}
