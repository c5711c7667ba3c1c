//! Finds the programs that some tests need, so that a test without its program is shown as ignored, with the reason, and
//! never as passed. Where `CI` is set nothing may be missing.
//!
//! Also hashes the source of the crates, for certificates: the variable `SOURCE_HASHES` at compile time.
//!
//! Sets the cfgs `has_qemu` (qemu-img and qemu-io) and `has_e2fsck`; with the latter, the variable `E2FSCK_PATH` at compile
//! time, because e2fsck lives in a directory that is rarely in PATH.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

/// Where administrators' programs are, whether or not PATH says so.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The crates whose source says what a certificate is about, and where they are from here.
const CRATES: [(&str, &str); 4] = [
    ("qcow2-core", "../qcow2-core"),
    ("faultfs", "../faultfs"),
    ("model", "../model"),
    ("qcow2-crashtest", "."),
];

fn main() {
    let hashes: Vec<String> = CRATES
        .iter()
        .map(|(name, folder)| {
            let source = Path::new(folder).join("src");
            println!("cargo::rerun-if-changed={}", source.display());
            let hash = hash_of(&source).expect("the source of a crate of this workspace is there");
            format!("{name}={hash:032x}")
        })
        .collect();
    println!("cargo::rustc-env=SOURCE_HASHES={}", hashes.join(" "));
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

/// A hash of the names and contents of all files in a folder, in the order of their names.
fn hash_of(folder: &Path) -> io::Result<u128> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next)? {
            let path = entry?.path();
            if path.is_dir() { &mut folders } else { &mut files }.push(path);
        }
    }
    files.sort();
    let mut hash = Xxh3::new();
    for file in files {
        let name = file.strip_prefix(folder).expect("it was found there");
        hash.update(name.to_string_lossy().as_bytes());
        hash.update(&fs::read(&file)?);
    }
    Ok(hash.digest128())
}
