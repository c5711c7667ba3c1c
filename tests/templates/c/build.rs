//! Compiles what is in C.

fn main() {
    // YOURS: the files of the implementation, and what it is linked with (`cargo::rustc-link-lib=...`).
    let files = ["mine.c"];
    for file in files.iter().chain(&["crashtest.h"]) {
        println!("cargo::rerun-if-changed={file}");
    }
    // What does not give up after a power cut is unwound, and Rust code below it: C has to let that through.
    cc::Build::new()
        .files(files)
        .flag("-fexceptions")
        .warnings(true)
        .extra_warnings(true)
        .compile("mine");
}
