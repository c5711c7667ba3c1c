//! Finds QEMU, which one test needs: sets the cfg `has_qemu` (qemu-img and qemu-io).

#[path = "../../build/programs.rs"]
mod programs;

use crate::programs::{require, search_path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../build/programs.rs");
    require("has_qemu", &["qemu-img", "qemu-io"], &search_path(), "qemu-utils");
}
