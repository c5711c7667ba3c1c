//! What `README.md` and `EVIDENCE.md` show is what there is.

use std::fs;
use std::process::Command;

use qcow2_core::{Barrier, Rule};
use qcow2_crashtest::console::evidence::DOCUMENTS;
use qcow2_crashtest::transcript::{Transcript, transcripts};

use crate::house::{root, sources};

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// Calls `look` with every transcript and the document that it is in.
fn each_transcript(mut look: impl FnMut(&str, &Transcript<'_>)) {
    for name in DOCUMENTS {
        let text = document(name);
        let found = transcripts(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert!(!found.is_empty(), "{name} has no transcript");
        found.iter().for_each(|transcript| look(name, transcript));
    }
}

/// Goal: no figure stands there without the command that printed it, and none twice. Method: every block of `EVIDENCE.md` is a transcript,
/// of a command of its own, and what a test printed says that it ran and passed.
#[test]
fn every_figure_has_its_command() {
    let text = document("EVIDENCE.md");
    let fences: Vec<&str> = text.lines().filter(|line| line.starts_with("```")).collect();
    let blocks = transcripts(&text).unwrap().len();
    assert_eq!(fences, ["```console", "```"].repeat(blocks), "a block that is no transcript");
    let mut commands: Vec<String> = Vec::new();
    each_transcript(|name, Transcript { section, command, output, .. }| {
        let place = format!("{name}, {section}: $ {command}");
        assert!(!commands.iter().any(|other| other == command), "{place}: twice");
        commands.push((*command).to_owned());
        if let Some(result) = output.lines().find(|line| line.starts_with("test result: ")) {
            assert!(
                result.contains(" 0 failed") && !result.contains(" 0 passed"),
                "{place}: {result}"
            );
        }
    });
}

/// Goal: what does not depend on the machine is what it would be now. Method: these commands again.
#[test]
fn what_kept_files_say_is_what_stands_there() {
    let mut compared = 0;
    each_transcript(|name, Transcript { section, command, output, .. }| {
        let Some(words) = command.strip_prefix("cargo campaign ") else { return };
        // Telling a failure ends with that of the case, which the document allows.
        let words = words.strip_suffix(" || [ $? = 1 ]").unwrap_or(words);
        if !words.starts_with("kept ") && !words.starts_with("explain ") {
            return;
        }
        // What a filter leaves of it is looked for in all of it.
        let (words, is_part) = match words.split_once(" | ") {
            Some((words, _)) => (words, true),
            None => (words, false),
        };
        let mut campaign = Command::new(env!("CARGO_BIN_EXE_campaign"));
        let run = campaign.args(words.split(' ')).current_dir(root()).output().unwrap();
        assert!(matches!(run.status.code(), Some(0 | 1)), "{command}: {run:?}");
        let now = String::from_utf8(run.stdout).unwrap();
        let now: Vec<&str> = now.trim_matches('\n').lines().map(str::trim_end).collect();
        let then: Vec<&str> = output.lines().collect();
        let mut rest = now.iter();
        let is_same = match is_part {
            true => !then.is_empty() && then.iter().all(|line| rest.any(|other| other == line)),
            false => now == then,
        };
        assert!(
            is_same,
            "{name}: `cargo campaign evidence '{section}'` makes this again:\n{}",
            now.join("\n")
        );
        compared += 1;
    });
    assert_eq!(compared, 4, "the certificates, the mutants, a failure and its end");
}

/// Goal: each write order and each flush has its line in the tables that show that it is missed. Method: their names at the beginning of a line.
#[test]
fn every_rule_and_flush_stands_in_the_tables() {
    let text = document("EVIDENCE.md");
    let rules = Rule::ALL.iter().map(|rule| rule.name());
    for name in rules.chain(Barrier::ALL.iter().map(|barrier| barrier.name())) {
        let has = text.lines().any(|line| line.split(' ').next() == Some(name));
        assert!(has, "EVIDENCE.md: {name} is in no table");
    }
}

/// Goal: the library looks in `README.md` as it does in its own documentation, where the text is compiled and run.
#[test]
fn the_library_is_shown_as_it_is_tested() {
    let readme = document("README.md");
    let (_, shown) = readme.split_once("```rust\n").unwrap();
    let (shown, _) = shown.split_once("```\n").unwrap();
    let library = document("qcow2-core/src/lib.rs");
    let tested = &library[library.find("//! # fn main").unwrap()..];
    let (tested, _) = tested.split_once("//! ```\n").unwrap();
    let tested: Vec<&str> = tested
        .lines()
        .map(|line| line.strip_prefix("//!").unwrap())
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .filter(|line| !line.starts_with("# "))
        .collect();
    assert_eq!(tested, shown.lines().collect::<Vec<_>>());
}

/// The documents at the root of the workspace.
const ROOT: [&str; 5] =
    ["README.md", "EVIDENCE.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];

/// What a document has between backticks, outside of blocks.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    let outside = text.split("```").step_by(2);
    outside.flat_map(|text| text.split('`').skip(1).step_by(2))
}

/// Goal: what a document names is there. Method: every path below the root in all of them, but in the changelog, which tells of what was; every
/// test that a recipe says would notice.
#[test]
fn what_is_named_is_there() {
    let is_open = |part: &str| ["NAME", "KEY", "CRATE"].iter().any(|name| part.starts_with(name));
    let (mut paths, mut tests) = (0, 0);
    for name in ROOT.into_iter().filter(|name| *name != "CHANGELOG.md") {
        let text = document(name);
        for path in spans(&text).flat_map(str::split_whitespace) {
            let parts: Vec<&str> = path.split('/').collect();
            let plain = path.chars().all(|it| it.is_ascii_alphanumeric() || "/._-".contains(it));
            // What a recipe leaves open is no name of a file, and what is below another folder is another matter.
            if plain && parts.len() > 1 && !parts.iter().any(|part| is_open(part)) {
                if !root().join(parts[0]).exists() {
                    continue;
                }
                assert!(root().join(path).exists(), "{name}: {path} is not there");
                paths += 1;
            }
        }
    }
    let crates = ["qcow2-core", "faultfs", "model", "tests"];
    let sources = crates.iter().flat_map(|krate| sources(krate));
    let sources: String = sources.map(|path| fs::read_to_string(path).unwrap()).collect();
    let text = document("CONTRIBUTING.md");
    for span in spans(&text) {
        let mut words = span.split_whitespace();
        let (Some("suite" | "fuzz" | "exam" | "images"), Some(test), None) =
            (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let function = test.rsplit("::").next().unwrap();
        let known = function.is_empty() || sources.contains(&format!("fn {function}("));
        assert!(known, "CONTRIBUTING.md: no test is called {function}");
        tests += 1;
    }
    assert!(paths > 50 && tests > 8, "{paths} paths and {tests} tests");
}

/// Goal: what a document leads to is there. Method: every link to a file, and to a section of one, in those at the root of the workspace.
#[test]
fn links_lead_somewhere() {
    let mut followed = 0;
    for name in ROOT {
        let text = document(name);
        for link in text.split("](").skip(1) {
            let (path, _) = link.split_once(')').unwrap();
            if path.contains("://") {
                continue;
            }
            let (file, section) = path.split_once('#').unwrap_or((path, ""));
            let file = if file.is_empty() { name } else { file };
            assert!(root().join(file).exists(), "{name}: {path} is not there");
            let anchor = |heading: &str| -> String {
                let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-');
                let words = heading.trim_start_matches('#').trim().to_lowercase();
                words.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
            };
            let is_there = section.is_empty()
                || document(file)
                    .lines()
                    .any(|line| line.starts_with('#') && anchor(line) == section);
            assert!(is_there, "{name}: {path} is no section there");
            followed += 1;
        }
    }
    assert!(followed > 0);
}
