//! Finds the programs that some tests need, and hashes the source of the crates, for certificates: the variable
//! `SOURCE_HASHES` at compile time.
//!
//! Sets the cfgs `has_qemu` (qemu-img and qemu-io), `has_strace`, `has_bash` and `has_e2fsck`; with the latter, the variable `E2FSCK_PATH` at compile
//! time, because e2fsck lives in a directory that is rarely in PATH. The same with `has_loop_devices` and `LOSETUP_PATH`.

#[path = "build/programs.rs"]
mod programs;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use xxhash_rust::xxh3::Xxh3;

use crate::programs::{require, search_path};

/// Where administrators' programs are, whether or not PATH says so.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The crates whose source says what a certificate is about, and where they are from here.
const CRATES: [(&str, &str); 5] = [
    ("qcow2-core", "../qcow2-core"),
    ("storage", "../qcow2-core/storage"),
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
    require("has_strace", &["strace"], &path, "strace");
    require("has_bash", &["bash"], &path, "bash");
    let everywhere: Vec<PathBuf> =
        path.into_iter().chain(SYSTEM_DIRECTORIES.map(PathBuf::from)).collect();
    if let [e2fsck] = &require("has_e2fsck", &["e2fsck"], &everywhere, "e2fsprogs")[..] {
        println!("cargo::rustc-env=E2FSCK_PATH={}", e2fsck.display());
    }
    require_loop_devices(&everywhere);
}

/// Sets the cfg `has_loop_devices`, and the variable `LOSETUP_PATH`, if a file can be made a block device here. That takes
/// rights, too, which nobody can be asked to install: so it is no error where `CI` is set.
fn require_loop_devices(everywhere: &[PathBuf]) {
    println!("cargo::rustc-check-cfg=cfg(has_loop_devices)");
    let [losetup] = &require("has_losetup", &["losetup"], everywhere, "mount")[..] else { return };
    println!("cargo::rustc-env=LOSETUP_PATH={}", losetup.display());
    match try_loop_device(losetup) {
        Ok(()) => println!("cargo::rustc-cfg=has_loop_devices"),
        Err(why) => println!(
            "cargo::warning=no loop device can be set up ({why}): the tests that need one are ignored. Once one can be: \
             touch {}",
            Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs").display()
        ),
    }
}

fn try_loop_device(losetup: &Path) -> Result<(), String> {
    let folder = env::var_os("OUT_DIR").expect("cargo sets it");
    let file = Path::new(&folder).join("loop");
    fs::write(&file, [0; 4096]).map_err(|error| error.to_string())?;
    let run = |command: &mut Command| {
        let ran = command.output().map_err(|error| error.to_string())?;
        let text = |bytes| String::from_utf8_lossy(bytes).trim().replace('\n', " ");
        if ran.status.success() { Ok(text(&ran.stdout)) } else { Err(text(&ran.stderr)) }
    };
    let device = run(Command::new(losetup).args(["--find", "--show"]).arg(&file))?;
    let opened = fs::OpenOptions::new().read(true).write(true).open(&device);
    run(Command::new(losetup).args(["--detach", &device]))?;
    opened.map(drop).map_err(|error| format!("{device}: {error}"))
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
