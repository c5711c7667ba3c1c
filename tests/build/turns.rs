//! Tests that take long have a number, `#[cfg_attr(not(turn = "3"), ignore = "...")]`, and are run when it has its turn ([`turn`](crate::turn)).
//! For the build scripts of packages that nothing else is built upon: they are built again when another number has it.

use std::path::Path;
use std::process::Command;

use crate::turn::share;

/// How many numbers there are.
const TURNS: usize = 12;

/// Sets `turn = "3"` for each number whose turn it is. `root` is the folder of the workspace, as seen from that of the package.
pub(crate) fn set(root: &Path) {
    // Grows with each commit. Outside a repository there is none, and nothing changes.
    let log = Command::new("git")
        .args(["rev-parse", "--git-path", "logs/HEAD"])
        .current_dir(root)
        .output();
    let log = log.ok().and_then(|said| String::from_utf8(said.stdout).ok()).unwrap_or_default();
    let log = root.join(log.trim());
    if log.is_file() {
        println!("cargo::rerun-if-changed={}", log.display());
    }
    println!("cargo::rerun-if-env-changed=CI");
    let all: Vec<String> = (0..TURNS).map(|turn| turn.to_string()).collect();
    println!("cargo::rustc-check-cfg=cfg(turn, values(\"{}\"))", all.join("\", \""));
    for turn in share(all.iter(), TURNS) {
        println!("cargo::rustc-cfg=turn=\"{turn}\"");
    }
}
