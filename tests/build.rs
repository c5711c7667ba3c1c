//! Finds the programs that some tests need, and hashes the source of the crates, for certificates: the variable
//! `SOURCE_HASHES` at compile time.
//!
//! Sets the cfgs `has_qemu` (qemu-img and qemu-io) and `has_e2fsck`; with the latter, the variable `E2FSCK_PATH` at compile
//! time, because e2fsck lives in a directory that is rarely in PATH.

#[path = "build/programs.rs"]
mod programs;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::programs::{require, search_path};

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
    println!("cargo::rerun-if-changed=build/programs.rs");
    let path = search_path();
    require("has_qemu", &["qemu-img", "qemu-io"], &path, "qemu-utils");
    let everywhere: Vec<PathBuf> =
        path.into_iter().chain(SYSTEM_DIRECTORIES.map(PathBuf::from)).collect();
    if let [e2fsck] = &require("has_e2fsck", &["e2fsck"], &everywhere, "e2fsprogs")[..] {
        println!("cargo::rustc-env=E2FSCK_PATH={}", e2fsck.display());
    }
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
