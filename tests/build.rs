//! Finds the programs that some tests need, so that a test without its program is shown as ignored, with the reason, and
//! never as passed. Where `CI` is set nothing may be missing.
//!
//! Sets the cfgs `has_qemu` (qemu-img and qemu-io) and `has_e2fsck`; with the latter, the variable `E2FSCK_PATH` at compile
//! time, because e2fsck lives in a directory that is rarely in PATH.

use std::env;
use std::path::{Path, PathBuf};

/// Where administrators' programs are, whether or not PATH says so.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rerun-if-env-changed=CI");
    let from_path = env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = env::split_paths(&from_path).collect();
    require("has_qemu", &["qemu-img", "qemu-io"], &path, "qemu-utils");
    let everywhere: Vec<PathBuf> =
        path.iter().cloned().chain(SYSTEM_DIRECTORIES.map(PathBuf::from)).collect();
    if let [e2fsck] = &require("has_e2fsck", &["e2fsck"], &everywhere, "e2fsprogs")[..] {
        println!("cargo::rustc-env=E2FSCK_PATH={}", e2fsck.display());
    }
}

/// Sets `cfg` if all of `programs` are in `path` and returns where they are; else nothing, and says so.
fn require(cfg: &str, programs: &[&str], path: &[PathBuf], package: &str) -> Vec<PathBuf> {
    println!("cargo::rustc-check-cfg=cfg({cfg})");
    let found: Vec<PathBuf> = programs.iter().filter_map(|program| find(program, path)).collect();
    if found.len() == programs.len() {
        println!("cargo::rustc-cfg={cfg}");
        for program in &found {
            println!("cargo::rerun-if-changed={}", program.display());
        }
        return found;
    }
    let names = programs.join(" or ");
    let missing = format!("{names} is not installed (Debian package {package})");
    if env::var_os("CI").is_some() {
        println!("cargo::error={missing}, and where CI is set no test may be left out");
    } else {
        println!(
            "cargo::warning={missing}: the tests that need it are ignored. Once it is installed: touch tests/build.rs"
        );
    }
    Vec::new()
}

fn find(program: &str, path: &[PathBuf]) -> Option<PathBuf> {
    path.iter()
        .map(|directory: &PathBuf| directory.join(program))
        .find(|file: &PathBuf| Path::is_file(file))
}
