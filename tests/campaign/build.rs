//! Finds the programs that some tests need, and hashes the source of the crates, which the unit tests of the harness want as it does.
//!
//! Sets the cfgs `has_qemu` (qemu-img and qemu-io), `has_strace`, `has_bash` and `has_e2fsck`; with the latter, the variable `E2FSCK_PATH` at
//! compile time, because e2fsck lives in a directory that is rarely in PATH. The same with `has_loop_devices` and `LOSETUP_PATH`. And the cfgs
//! `turn` of the tests whose turn it is.

#[path = "../build/programs.rs"]
mod programs;
#[path = "../build/sources.rs"]
mod sources;
#[path = "../build/turn.rs"]
mod turn;
#[path = "../build/turns.rs"]
mod turns;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::programs::{require, search_path};

/// Where administrators' programs are, whether or not PATH says so.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../build/programs.rs");
    println!("cargo::rerun-if-changed=../build/sources.rs");
    println!("cargo::rerun-if-changed=../build/turn.rs");
    println!("cargo::rerun-if-changed=../build/turns.rs");
    sources::hash(Path::new("../.."));
    turns::set(Path::new("../.."));
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
