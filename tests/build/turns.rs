//! Tests that take long have a number, `#[cfg_attr(not(turn = "3"), ignore = "...")]`, and are run at every so manieth commit; all of them where `CI`
//! is set. For the build scripts of packages that nothing else is built upon, since they are built again at each commit.

use std::path::Path;

use crate::turn::share;

/// How many numbers there are.
const TURNS: usize = 12;

/// Sets `turn = "3"` for each number whose turn it is. `root` is the folder of the workspace, as seen from that of the package.
pub(crate) fn set(root: &Path) {
    // It grows with each commit.
    println!("cargo::rerun-if-changed={}", root.join(".git/logs/HEAD").display());
    println!("cargo::rerun-if-env-changed=CI");
    let all: Vec<String> = (0..TURNS).map(|turn| format!("{turn:?}")).collect();
    println!("cargo::rustc-check-cfg=cfg(turn, values(\"{}\"))", all.join("\", \""));
    for turn in share(all.iter(), TURNS) {
        println!("cargo::rustc-cfg=turn=\"{turn}\"");
    }
}
