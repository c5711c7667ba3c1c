//! Says which of the tests that take long have their turn.

use std::path::Path;

#[path = "../../tests/build/turn.rs"]
mod turn;
#[path = "../../tests/build/turns.rs"]
mod turns;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../tests/build/turn.rs");
    println!("cargo::rerun-if-changed=../../tests/build/turns.rs");
    turns::set(Path::new("../.."));
}
