//! Hashes the source of the crates, for certificates: the variable `SOURCE_HASHES` at compile time.

use std::fs;
use std::io;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

/// The crates whose source says what a certificate is about, and where they are in the workspace.
const CRATES: [(&str, &str); 5] = [
    ("qcow2-core", "qcow2-core"),
    ("storage", "qcow2-core/storage"),
    ("faultfs", "faultfs"),
    ("model", "model"),
    ("qcow2-crashtest", "tests"),
];

/// Sets the variable. `root` is the folder of the workspace, as seen from that of the package.
pub(crate) fn hash(root: &Path) {
    let hashes: Vec<String> = CRATES
        .iter()
        .map(|(name, folder)| {
            let source = root.join(folder).join("src");
            println!("cargo::rerun-if-changed={}", source.display());
            let hash = hash_of(&source).expect("the source of a crate of this workspace is there");
            format!("{name}={hash:032x}")
        })
        .collect();
    println!("cargo::rustc-env=SOURCE_HASHES={}", hashes.join(" "));
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
