//! Whose turn it is. What takes long in `cargo test` is cut into parts, of which one is done: which one goes by the hash of the commit. All of
//! them are done where the variable `CI` is set, and only there is that certain.

use std::env;
use std::process::Command;

/// The part of these whose turn it is, of so many: one in each row of that many.
pub(crate) fn share<T>(all: impl Iterator<Item = T>, parts: usize) -> impl Iterator<Item = T> {
    let turn = turn(parts);
    all.skip(turn.unwrap_or(0)).step_by(if turn.is_some() { parts } else { 1 })
}

fn turn(parts: usize) -> Option<usize> {
    if parts == 1 || env::var_os("CI").is_some() {
        return None;
    }
    let said = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()
        .filter(|said| said.status.success());
    let commit = said.and_then(|said| String::from_utf8(said.stdout).ok()).unwrap_or_default();
    // Outside a repository it is always the first.
    let number = commit.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok());
    Some(number.unwrap_or_default() as usize % parts)
}
