//! Whose turn it is. What takes long in `cargo test` is cut into parts, of which one is done at each commit, and all of them where `CI` is set.

use std::env;
use std::process::Command;

/// Of all these the part of so many whose turn it is: every so manieth. All of them where `CI` is set.
pub(crate) fn share<T>(all: impl Iterator<Item = T>, parts: usize) -> impl Iterator<Item = T> {
    let turn = turn(parts);
    all.skip(turn.unwrap_or(0)).step_by(if turn.is_some() { parts } else { 1 })
}

fn turn(parts: usize) -> Option<usize> {
    if env::var_os("CI").is_some() {
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
