//! House rules that a program can check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use qcow2_core::{Barrier, Mutant, Rule};
use qcow2_crashtest::{corpus, mutants};

pub(crate) fn root() -> PathBuf {
    corpus::folder().parent().unwrap().to_owned()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The packages of the workspace: where each is, its name, and the ones of them that it may depend on.
fn arrows() -> BTreeMap<&'static str, (&'static str, BTreeSet<&'static str>)> {
    let harness = ["qcow2-core", "storage", "faultfs", "model"];
    let above = harness.into_iter().chain(["qcow2-crashtest"]);
    BTreeMap::from([
        ("qcow2-core/storage", ("storage", BTreeSet::new())),
        ("qcow2-core", ("qcow2-core", BTreeSet::from(["storage"]))),
        ("qcow2-core/tests", ("library", BTreeSet::from(["qcow2-core"]))),
        ("faultfs", ("faultfs", BTreeSet::from(["storage"]))),
        ("model", ("model", BTreeSet::new())),
        ("tests", ("qcow2-crashtest", BTreeSet::from(harness))),
        ("tests/campaign", ("campaign", above.collect())),
    ])
}

/// Files of the project below a folder, except what building and running leave behind.
fn files(below: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> =
        fs::read_dir(below).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_str().expect("file names are text");
        if path.is_dir() {
            if !matches!(name, "target" | "proptest-regressions" | "criterion") {
                files(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

pub(crate) fn sources(krate: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root().join(krate), &mut found);
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    assert!(!found.is_empty(), "no sources in {krate}");
    found
}

/// The names on the left in the dependency sections of a manifest, whatever the section is called.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            inside = section.ends_with("dependencies");
            // As in `[dependencies.serde]`.
            if let Some((_, name)) = section.split_once("dependencies.") {
                found.insert(name.to_owned());
            }
        } else if inside && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            found.insert(name.to_owned());
        }
    }
    found.remove("");
    found
}

#[test]
fn manifests_are_read_as_cargo_reads_them() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\n# a = 1\nserde.workspace = true\nmodel = { path = \"..\" }\n\
                    [target.'cfg(unix)'.dev-dependencies]\nnix=\"1\"\n[dependencies.faultfs]\npath = \"y\"\n[lints]\nworkspace = true\n";
    let expected = ["faultfs", "model", "nix", "serde"].map(str::to_owned);
    assert_eq!(dependencies(manifest), BTreeSet::from(expected));
}

/// Goal: nobody depends on what it must not know. Method: the manifests.
#[test]
fn dependencies_follow_the_arrows() {
    let arrows = arrows();
    let manifest = text(&root().join("Cargo.toml"));
    let members = manifest.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    let members = members.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let members: BTreeSet<&str> = members
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().strip_prefix('"')?.strip_suffix('"'))
        .collect();
    assert_eq!(members, arrows.keys().copied().collect(), "a crate without arrows");
    for (folder, (name, allowed)) in &arrows {
        let manifest = text(&root().join(folder).join("Cargo.toml"));
        assert!(manifest.contains(&format!("[package]\nname = \"{name}\"\n")), "{folder}");
        let found = dependencies(&manifest);
        assert!(!found.is_empty(), "{name}: the manifest was not understood");
        // A crate may depend on itself, to switch its own features on in its tests.
        let others: BTreeSet<&str> = arrows
            .values()
            .map(|(other, _)| *other)
            .filter(|other| other != name && found.contains(*other))
            .collect();
        assert!(others.is_subset(allowed), "{name} depends on {others:?}, allowed is {allowed:?}");
    }
}

/// Words that a finished source does not have, in two halves so that this one does not have them either.
const UNFINISHED: [(&str, &str); 5] =
    [("todo", "!"), ("unimplemented", "!"), ("FIX", "ME"), ("TO", "DO"), ("XX", "X")];

#[test]
fn sources_are_ascii_and_finished() {
    for krate in arrows().keys() {
        for path in sources(krate) {
            let source = text(&path);
            for (number, line) in (1..).zip(source.lines()) {
                let place = || format!("{}:{number}: {line}", path.display());
                let plain = line.chars().all(|c| c.is_ascii() || is_drawing(c));
                assert!(plain, "not ASCII: {}", place());
                for (first, second) in UNFINISHED {
                    assert!(!line.contains(&format!("{first}{second}")), "unfinished: {}", place());
                }
            }
        }
    }
}

/// Lines and arrows of drawings in comments.
fn is_drawing(c: char) -> bool {
    matches!(c, '\u{2500}'..='\u{257f}' | '\u{25b2}' | '\u{25bc}' | '\u{25b6}' | '\u{25c0}')
}

/// Goal: every rule is explained where it is declared, with what breaks without it, and is obeyed somewhere.
#[test]
fn every_rule_is_documented_and_used() {
    let declaration = text(&root().join("qcow2-core/src/rule.rs"));
    let body = declaration.split("pub enum Rule {").nth(1).unwrap().split("\n}").next().unwrap();
    let mut others = String::new();
    for path in sources("qcow2-core") {
        if path.file_name().is_some_and(|name| name != "rule.rs") {
            others.push_str(&text(&path));
        }
    }
    for rule in Rule::ALL {
        let name = format!("{rule:?}");
        let (before, _) =
            body.split_once(&format!("\n        {name} =")).expect("a variant of its own");
        let docs: Vec<&str> =
            before.lines().rev().take_while(|line| line.trim().starts_with("///")).collect();
        assert!(
            docs.iter().any(|line| line.contains("Broken: ")),
            "{name} does not say what breaks"
        );
        assert!(others.contains(&format!("Rule::{name}")), "{name} is obeyed nowhere");
    }
}

/// Goal: every flush is made somewhere, and it says where in the library that is. Method: its name in the sources.
#[test]
fn every_flush_is_used() {
    let others: Vec<PathBuf> = sources("qcow2-core")
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name != "barrier.rs"))
        .collect();
    let others: String = others.iter().map(|path| text(path)).collect();
    for barrier in Barrier::ALL {
        assert!(others.contains(&format!("Barrier::{barrier:?}")), "{barrier:?} is used nowhere");
    }
}

/// Goal: no mutant is in the list in vain, and each is one mistake. Method: its places in the sources.
#[test]
fn every_mutant_is_at_one_place() {
    let all: String = sources("qcow2-core").iter().map(|path| text(path)).collect();
    for mutant in Mutant::ALL {
        let places = all.matches(&format!(", {mutant:?} =>")).count();
        assert_eq!(places, 1, "{}", mutant.name());
    }
}

/// Goal: what became of each mutant is known: something notices it, or there is a reason why no campaign can. Method: the outcomes that `cargo campaign sensitivity --mutants --json` wrote.
#[test]
fn every_mutant_has_an_outcome() {
    let kept = mutants::load(&root().join("corpus/mutants/outcomes.json")).unwrap();
    let names: BTreeSet<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
    assert_eq!(kept.keys().map(String::as_str).collect::<BTreeSet<_>>(), names);
    for mutant in Mutant::ALL {
        let line = &kept[mutant.name()];
        assert_eq!(line.area, mutant.area().name(), "{}", mutant.name());
        let explained = !line.noticed.is_empty() || mutant.reason().is_some();
        assert!(explained, "{} was noticed by nothing, and nobody says why", mutant.name());
    }
}

/// Goal: what a reason says of a mutant is there to be run. Method: each file that reasons name exists, and has the test that is named after
/// it, or is a kept case.
#[test]
fn what_notices_a_mutant_is_there() {
    let mut named = 0;
    for mutant in Mutant::ALL {
        let words: Vec<&str> = mutant
            .reason()
            .unwrap_or("")
            .split([' ', ','])
            .filter(|word| !word.is_empty())
            .collect();
        for (at, file) in words.iter().enumerate() {
            if !file.ends_with(".rs") && !file.ends_with(".json") {
                continue;
            }
            let text = fs::read_to_string(root().join(file));
            let text = text.unwrap_or_else(|error| panic!("{}: {file}: {error}", mutant.name()));
            named += 1;
            if let Some(test) = words.get(at + 1).filter(|word| word.contains('_')) {
                let there = text.contains(&format!("fn {test}("));
                assert!(there, "{}: {file} has no test {test}", mutant.name());
            } else {
                let whole = file.ends_with(".json") && file.starts_with("corpus/");
                assert!(whole, "{}: of {file} it takes a test", mutant.name());
            }
        }
    }
    assert!(named >= 15, "only {named} reasons name what notices");
}

/// Names that more than one public type has, and why nobody can take one for another.
const SHARED_NAMES: [(&str, &str); 10] = [
    ("Durability", "when a write is durable, as the guest asks and as the storage is asked"),
    ("Finding", "what a check found: the library's and the judge's"),
    ("Header", "the header of an image: the library's and the judge's"),
    (
        "Image",
        "an image: the library's with futures and with plain calls, and as the judge reads it",
    ),
    (
        "DataFile",
        "an external data file: what an image says of it, and which kind the image of a case has",
    ),
    (
        "Encryption",
        "how guest data is encrypted: of an image to be made, and of the image of a case",
    ),
    ("File", "one of two files: of a disk, and of an image"),
    ("Mapping", "where a guest cluster is: the library's and the judge's"),
    (
        "Preallocation",
        "how much of a cluster's space is taken ahead: the library's, and written down in a case",
    ),
    ("Values", "interned contents of units: the disk's and the judge's"),
];

/// Goal: a name means one thing in the whole workspace. Method: the declarations of public types in all `src` folders.
#[test]
fn public_types_have_names_of_their_own() {
    let paths: BTreeSet<PathBuf> = arrows().keys().flat_map(|krate| sources(krate)).collect();
    let mut declared: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in
        paths.into_iter().filter(|path| path.components().any(|part| part.as_os_str() == "src"))
    {
        // `subjects` holds packages outside the workspace.
        if path.starts_with(root().join("tests/subjects")) {
            continue;
        }
        for line in text(&path).lines() {
            let Some(("struct" | "enum" | "trait" | "type", rest)) =
                line.trim_start().strip_prefix("pub ").and_then(|line| line.split_once(' '))
            else {
                continue;
            };
            let name = rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
            // A macro declares what its argument says.
            if !name.is_empty() {
                declared.entry(name.to_owned()).or_default().push(path.clone());
            }
        }
    }
    assert!(declared.len() > 100, "declarations were not understood: {declared:?}");
    declared.retain(|_, places| places.len() > 1);
    let shared: BTreeSet<&str> = SHARED_NAMES.iter().map(|(name, _)| *name).collect();
    let unexplained: Vec<_> =
        declared.iter().filter(|(name, _)| !shared.contains(name.as_str())).collect();
    assert!(unexplained.is_empty(), "one name, several types: {unexplained:#?}");
    let found: BTreeSet<&str> = declared.keys().map(String::as_str).collect();
    assert_eq!(found, shared, "a name on the list that no two types share");
}

/// Goal: what a subject does reaches the harness, and no default stands in for it unnoticed. Method: each function of its two traits is in what
/// stands between them (a table, what fills it, what asks it), and of its image also where panics are caught.
#[test]
fn every_call_of_a_subject_is_handed_on() {
    let source = |name: &str| text(&root().join("tests/src").join(name));
    let (subject, any, call) = (source("subject.rs"), source("any.rs"), source("call.rs"));
    let functions = |text: &str| -> Vec<String> {
        let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
        names.map(|name| name.split('(').next().unwrap().to_owned()).collect()
    };
    let body = |name: &str| {
        let after = subject.split_once(&format!("pub trait {name}: ")).unwrap().1;
        functions(after.split_once("\n}\n").unwrap().0)
    };
    let handed_on = functions(&any);
    let caught = call.lines().filter_map(|line| line.trim_start().strip_prefix("async "));
    let caught = functions(&caught.chain(call.lines()).collect::<Vec<_>>().join("\n"));
    let times = |all: &[String], name: &str| all.iter().filter(|one| *one == name).count();
    let (calls, requests) = (body("Subject"), body("SubjectImage"));
    assert!(calls.len() >= 12 && requests.len() >= 15, "{calls:?} {requests:?}");
    for name in calls.iter().chain(&requests) {
        assert!(times(&handed_on, name) >= 3, "tests/src/any.rs does not hand on {name}");
    }
    for name in &requests {
        assert!(times(&caught, name) >= 1, "tests/src/call.rs does not hand on {name}");
    }
}

/// Goal: nobody comes upon a module of which the code map has never heard. Method: the files and folders of each `src`, and the names in the
/// map's rows of that crate; a folder stands for its files.
#[test]
fn the_code_map_names_every_module() {
    let document = text(&root().join("ARCHITECTURE.md"));
    let map = document.split("## Code map").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut krate = "";
    let mut named: BTreeSet<(&str, &str)> = BTreeSet::new();
    for line in map.lines().filter(|line| line.starts_with("| ")) {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        if let Some(name) = columns[1].strip_prefix('`') {
            krate = name.trim_end_matches('`');
        }
        let names = columns[2].split('`').skip(1).step_by(2);
        named.extend(names.map(|name| (krate, name)));
    }
    let mut missing = Vec::new();
    for folder in arrows().into_keys() {
        let krate = folder.rsplit('/').next().expect("it has a name");
        // Some packages are tests only.
        for entry in fs::read_dir(root().join(folder).join("src")).into_iter().flatten() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().expect("file names are text");
            let name = if path.is_dir() { format!("{stem}/*") } else { stem.to_owned() };
            if name != "lib" && !named.contains(&(krate, name.as_str())) {
                missing.push(format!("{krate}: {name}"));
            }
        }
    }
    missing.sort();
    assert!(missing.is_empty(), "modules without a row in the code map: {missing:#?}");
}
