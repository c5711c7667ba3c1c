//! Hashes the source of the crates and what they are built with, for certificates: the variable `SOURCE_HASHES` at compile time.

use std::collections::BTreeMap;
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
    let lock = root.join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let lock = fs::read_to_string(lock).expect("the workspace has a lock file");
    let mut hash = Xxh3::new();
    dependencies(&lock).iter().for_each(|package| hash.update(package.as_bytes()));
    let dependencies = format!("dependencies={:032x}", hash.digest128());
    println!("cargo::rustc-env=SOURCE_HASHES={} {dependencies}", hashes.join(" "));
}

/// The packages that the crates are built with, directly or not, as the lock file has them: name, version, source and checksum of each.
/// What their own tests need is among them, for the lock file does not tell; what only other packages of the workspace need is not.
fn dependencies(lock: &str) -> Vec<&str> {
    let packages: Vec<&str> = lock.split("[[package]]\n").skip(1).collect();
    let field = |package: &'static str| {
        move |line: &str| line.strip_prefix(package).map(|it| it.trim_matches('"').to_owned())
    };
    let mut by_name: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, package) in packages.iter().enumerate() {
        let name = package.lines().find_map(field("name = ")).expect("a package has a name");
        let version = package.lines().find_map(field("version = ")).expect("and a version");
        // A dependency names the version only where there are two.
        by_name.entry(format!("{name} {version}")).or_default().push(at);
        by_name.entry(name).or_default().push(at);
    }
    let mut met = vec![false; packages.len()];
    let mut todo: Vec<usize> = CRATES.iter().flat_map(|(name, _)| by_name[*name].clone()).collect();
    while let Some(at) = todo.pop() {
        if !std::mem::replace(&mut met[at], true) {
            let names = packages[at]
                .lines()
                .filter_map(|line| line.strip_prefix(" \"")?.strip_suffix("\","));
            // Nor the source, unless there are two of a version.
            let known = |name: &str| name.split(" (").next().unwrap_or(name).to_owned();
            todo.extend(names.flat_map(|name| by_name[&known(name)].clone()));
        }
    }
    (0..packages.len()).filter(|&at| met[at]).map(|at| packages[at].trim_end()).collect()
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
