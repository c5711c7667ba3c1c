//! Finds the programs that some tests need, so that a test without its program is shown as ignored, with the reason, and
//! never as passed. Where `CI` is set nothing may be missing. For the build scripts of all packages with such tests.

use std::env;
use std::path::{Path, PathBuf};

/// The folders in PATH.
pub(crate) fn search_path() -> Vec<PathBuf> {
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rerun-if-env-changed=CI");
    env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect()
}

/// Sets `cfg` if all of `programs` are in `path` and returns where they are; else nothing, and says so. `package` is what
/// Debian calls the package that has them.
pub(crate) fn require(
    cfg: &str,
    programs: &[&str],
    path: &[PathBuf],
    package: &str,
) -> Vec<PathBuf> {
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
            "cargo::warning={missing}: the tests that need it are ignored. Once it is installed: touch {}",
            Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs").display()
        );
    }
    Vec::new()
}

fn find(program: &str, path: &[PathBuf]) -> Option<PathBuf> {
    path.iter()
        .map(|directory: &PathBuf| directory.join(program))
        .find(|file: &PathBuf| Path::is_file(file))
}
