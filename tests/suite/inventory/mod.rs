//! Everything that qcow2-core can be told or asked, and that a storage can answer: which classes of values there are, what draws each,
//! and which property would be violated if it were treated wrongly.
//!
//! ```text
//!   of                           class            drawn                                        noticed
//!   OpenOptions.page_size        one unit         Plans(500, |plan| plan.open.page_size ..)    P1 P2 P4
//!   Storage::flush()             fails for good   Fault(FlushSticky)                           P1 P8
//!   OpenError::Option            told             Test(REFUSED, "options_of_opening_..")       (the test itself)
//! ```
//!
//! The table is in parts, one a file. The tests read the names from the sources of qcow2-core: a field, variant, method or constant
//! without a line fails, and so does a line about something that is gone, a test that is not there, and a class that plans seldom draw.

mod answers;
mod blocking;
mod check;
mod create;
mod data_files;
mod encryption;
mod entries;
mod errors;
mod extensions;
mod features;
mod files;
mod header;
mod image;
mod layers;
mod line;
mod numbers;
mod open;
mod outside;
mod plans;
mod storage;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use qcow2_crashtest::campaign::case_seed;
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::workload::{FaultKind, Plan, Scope, plan};

use self::line::{By, Line};
use self::outside::OUTSIDE;
use crate::house::root;

/// The parts of the table.
const PARTS: [&[Line]; 17] = [
    create::LINES,
    open::LINES,
    image::LINES,
    data_files::LINES,
    encryption::LINES,
    layers::LINES,
    blocking::LINES,
    check::LINES,
    errors::LINES,
    storage::LINES,
    answers::LINES,
    files::LINES,
    header::LINES,
    features::LINES,
    extensions::LINES,
    entries::LINES,
    numbers::LINES,
];

/// All lines.
fn lines() -> Vec<Line> {
    PARTS.concat()
}

/// The sources of qcow2-core and of the storages: the name of each module, and its text without its tests.
fn modules() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (folder, package) in [("qcow2-core/src", None), ("qcow2-core/storage/src", Some("storage"))]
    {
        let source = root().join(folder);
        let mut folders = vec![source.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(&source).unwrap().with_extension("");
                let name: Vec<&str> = package
                    .into_iter()
                    .chain(name.iter().filter_map(|part| part.to_str()))
                    .collect();
                let is_root = |part: &&str| matches!(*part, "mod" | "lib");
                let parts: Vec<&str> = match name.as_slice() {
                    [.., "tests"] => continue,
                    ["lib"] => name,
                    [before @ .., last] if is_root(last) => before.to_vec(),
                    _ => name,
                };
                let text = fs::read_to_string(&path).unwrap();
                let text = text.split("\n#[cfg(test)]").next().unwrap().to_owned();
                found.push((parts.join("::"), text));
            }
        }
    }
    found
}

/// The name at the front of some source.
fn name(source: &str) -> Option<&str> {
    let end = source.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(source.len());
    Some(&source[..end]).filter(|name| !name.is_empty())
}

/// Some source without any of these words in front.
fn without<'a>(mut source: &'a str, words: &[&str]) -> &'a str {
    while let Some(rest) = words.iter().find_map(|word| source.strip_prefix(word)) {
        source = rest;
    }
    source
}

/// The name of a function that this is the first line of.
fn function(line: &str) -> Option<&str> {
    name(without(line, &["const ", "async "]).strip_prefix("fn ")?)
}

/// What the lines of the source that follow belong to.
#[derive(Clone, Debug)]
enum Inside {
    Nothing,
    Struct(String),
    Enum(String),
    Trait(String),
    Impl(String),
}

impl Inside {
    /// What a line without indentation begins.
    fn of(line: &str, module: &str) -> Option<Self> {
        let named = |rest: &str| name(rest).map(str::to_owned);
        let public = line.strip_prefix("pub ").unwrap_or_default();
        if let Some(rest) = line.strip_prefix("impl") {
            // What is done for a trait was named by the trait.
            if line.contains(" for ") {
                return None;
            }
            let rest = if rest.starts_with('<') { rest.split_once("> ")?.1 } else { rest.trim() };
            let prefix = if module == "blocking" { "blocking::" } else { "" };
            return Some(Self::Impl(format!("{prefix}{}", name(rest)?)));
        }
        if let Some(rest) = public.strip_prefix("struct ") {
            return named(rest).map(Self::Struct);
        }
        if let Some(rest) = public.strip_prefix("enum ") {
            return named(rest).map(Self::Enum);
        }
        public.strip_prefix("trait ").and_then(named).map(Self::Trait)
    }

    /// What an indented line names.
    fn member(&self, line: &str) -> Option<String> {
        let line = line.strip_prefix("    ").filter(|line| !line.starts_with(' '))?;
        let public = line.strip_prefix("pub ");
        match self {
            Self::Nothing => None,
            Self::Struct(of) => {
                let field = name(public?)?;
                public?.starts_with(&format!("{field}:")).then(|| format!("{of}.{field}"))
            }
            Self::Enum(of) => {
                let variant = name(line).filter(|name| name.starts_with(char::is_uppercase))?;
                Some(format!("{of}::{variant}"))
            }
            Self::Trait(of) => Some(format!("{of}::{}()", function(line)?)),
            Self::Impl(of) => Some(format!("{of}::{}()", function(public?)?)),
        }
    }
}

/// A constant that decides something: not the place of a header field, nor the magic.
fn constant<'a>(module: &str, line: &'a str) -> Option<&'a str> {
    let line = without(line.trim_start(), &["pub ", "pub(crate) ", "pub(super) "]);
    let rest = line.strip_prefix("const ").or_else(|| line.strip_prefix("static "))?;
    let name = name(rest).filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase()))?;
    let is_place = rest.contains(": Field") || rest.contains("[Field;") || name == "MAGIC";
    (module != "format::header" || !is_place).then_some(name)
}

/// Everything that the sources of qcow2-core name.
fn names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (module, text) in modules() {
        let mut inside = Inside::Nothing;
        for line in text.lines() {
            if let Some(constant) = constant(&module, line) {
                names.insert(format!("{module}::{constant}"));
            }
            if line.starts_with([' ', ')', '#', '/']) || line.is_empty() {
                names.extend(inside.member(line));
                continue;
            }
            if let Some(function) = line.strip_prefix("pub ").and_then(function) {
                names.insert(format!("{module}::{function}()"));
            }
            // What takes several lines to begin goes on after its bounds.
            if line.ends_with('{') || line.starts_with('}') {
                inside = Inside::of(line, &module).unwrap_or(Inside::Nothing);
            }
        }
    }
    names
}

/// Whether a name is one of a pattern: `*` is anything, `?` any one character.
fn matches(name: &str, pattern: &str) -> bool {
    match (name.chars().next(), pattern.chars().next()) {
        (_, Some('*')) => {
            let rest = &pattern[1..];
            name.char_indices().any(|(at, _)| matches(&name[at..], rest)) || matches("", rest)
        }
        (Some(_), Some('?')) => matches(&name[1..], &pattern[1..]),
        (Some(one), Some(other)) => one == other && matches(&name[1..], &pattern[1..]),
        (one, other) => one == other,
    }
}

/// Texts of files of the project, each read once.
#[derive(Default)]
struct Files(BTreeMap<String, String>);

impl Files {
    /// Whether there is such a test.
    fn has_test(&mut self, file: &str, test: &str) -> bool {
        let text = self
            .0
            .entry(file.to_owned())
            .or_insert_with(|| fs::read_to_string(root().join(file)).unwrap_or_default());
        let Some((before, _)) = text.split_once(&format!("fn {test}(")) else { return false };
        // Its attributes and its documentation; or the macro that it is in.
        let mut head = before.trim_end().lines().rev().take_while(|line| !line.trim().is_empty());
        head.any(|line| line.trim() == "#[test]") || is_in_macro(before)
    }

    /// Whether all tests are there that a reason names, as `file.rs::test`.
    fn has_all_in(&mut self, reason: &str) -> bool {
        let words = reason.split([' ', ',', ';']).map(|word| word.trim_end_matches([':', '.']));
        words
            .filter_map(|word| word.split_once(".rs::"))
            .all(|(file, test)| self.has_test(&format!("{file}.rs"), test))
    }
}

/// Whether what follows is in a macro that makes tests of functions.
fn is_in_macro(before: &str) -> bool {
    let mut end = None;
    for line in before.lines() {
        let indented = |end| format!("{}{end}", &line[..line.len() - line.trim_start().len()]);
        if line.ends_with("quickcheck! {") || line.ends_with("proptest! {") {
            end = Some(indented("}"));
        } else if end.as_deref() == Some(line) {
            end = None;
        }
    }
    end.is_some()
}

/// What is wrong with lines, given everything that there is to have one.
fn faults(lines: &[Line], names: &BTreeSet<String>) -> Vec<String> {
    let mut files = Files::default();
    let mut faults = Vec::new();
    let is_outside = |name: &str| OUTSIDE.iter().any(|(pattern, _)| matches(name, pattern));
    let listed: BTreeSet<&str> = lines.iter().map(|line| line.of).collect();
    for name in names.iter().filter(|name| !listed.contains(name.as_str()) && !is_outside(name)) {
        faults.push(format!("{name} has no line"));
    }
    for (pattern, why) in OUTSIDE {
        if !names.iter().any(|name| matches(name, pattern)) {
            faults.push(format!("{pattern} is left out, and there is nothing like it"));
        }
        if why.is_empty() || !files.has_all_in(why) {
            faults.push(format!(
                "{pattern} is left out for no reason, or for a test that is gone: {why}"
            ));
        }
    }
    let mut seen = BTreeSet::new();
    for Line { of, class, drawn, noticed } in lines {
        let mut wrong = |what: String| faults.push(format!("{of}, {class}: {what}"));
        if !names.contains(*of) || is_outside(of) {
            wrong("there is no such thing, or it is left out".into());
        }
        if !seen.insert((of, class)) {
            wrong("it is there twice".into());
        }
        if drawn.is_empty() {
            wrong("nothing draws it, and no reason why".into());
        }
        let judged = drawn.iter().any(By::is_judged);
        if judged && noticed.is_empty() {
            wrong("a campaign draws it, and no property would notice".into());
        }
        if !judged && !noticed.is_empty() {
            wrong("no campaign draws it, so no property would notice".into());
        }
        for by in *drawn {
            match by {
                By::Nothing(why) if why.is_empty() || drawn.len() > 1 || !files.has_all_in(why) => {
                    wrong(format!(
                        "no reason, one beside what draws it, or one about a test that is gone: {why:?}"
                    ));
                }
                By::Test(file, test) if !files.has_test(file, test) => {
                    wrong(format!("there is no test {file}::{test}"));
                }
                _ => {}
            }
        }
    }
    faults
}

/// Goal: whatever is added to the library has to be thought of: what values it has, what draws them, what would notice.
#[test]
fn everything_has_its_lines() {
    let faults = faults(&lines(), &names());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Goal: the sources are read as they are meant: what is known to be there is found.
#[test]
fn names_are_found_in_the_sources() {
    let names = names();
    for name in [
        "OpenOptions.page_size",
        "Header.unknown",
        "Zeroing::Keep",
        "Mapping::Compressed",
        "Image::write()",
        "WriteMap::fail()",
        "blocking::Image::close()",
        "FileStorage::sync_parent()",
        "Storage::pause()",
        "create::create()",
        "format::feature::DIRTY",
        "check::entries::PART",
        "storage::file::ZEROES",
        "reap::START",
    ] {
        assert!(names.contains(name), "{name} was not found");
    }
    // Fields of another crate's business, tests, and places of header fields.
    for name in
        ["Image.storage", "format::header::BACKING_SIZE", "format::entry::AT", "Claims::new()"]
    {
        assert!(!names.contains(name), "{name} was found");
    }
    assert!(names.len() > 380, "{} names", names.len());
}

/// Goal: each fault is found. Method: lines that have it.
#[test]
fn what_is_wrong_with_a_line_is_told() {
    let names = names();
    let told = |line: Line, what: &str| {
        let faults = faults(&[line], &names);
        let of_it = format!("{}, {}: ", line.of, line.class);
        let found = faults.iter().filter_map(|fault| fault.strip_prefix(&of_it));
        let found: Vec<&str> = found.collect();
        assert!(found.len() == 1 && found[0].contains(what), "{what:?}: {found:?}");
    };
    let lines = lines();
    let right = lines.iter().find(|line| line.of == "OpenOptions.page_size").unwrap();
    let others: Vec<Line> =
        lines.iter().copied().filter(|line| line.of != "OpenOptions.page_size").collect();
    assert_eq!(faults(&others, &names), ["OpenOptions.page_size has no line"]);
    told(Line { of: "OpenOptions.pages", ..*right }, "there is no such thing");
    told(Line { drawn: &[], noticed: &[], ..*right }, "nothing draws it");
    told(Line { noticed: &[], ..*right }, "no property would notice");
    let gone = &[By::Test("tests/suite/inventory/mod.rs", "a_test_that_is_not_there")];
    told(Line { drawn: gone, noticed: &[], ..*right }, "there is no test");
    let helper = &[By::Test("tests/suite/inventory/mod.rs", "modules")];
    told(Line { drawn: helper, noticed: &[], ..*right }, "there is no test");
    told(Line { drawn: &[By::Nothing("")], noticed: &[], ..*right }, "no reason");
    let stale = &[By::Nothing("as tests/suite/inventory/mod.rs::nobody shows")];
    told(Line { drawn: stale, noticed: &[], ..*right }, "a test that is gone");
    let sound = &[By::Test("tests/suite/inventory/mod.rs", "what_is_wrong_with_a_line_is_told")];
    told(Line { drawn: sound, ..*right }, "no campaign draws it");
    let twice = faults(&[*right, *right], &names);
    assert!(twice.iter().any(|fault| fault.ends_with("it is there twice")));
}

/// Goal: what plans are said to draw they do draw, and not once in a blue moon. Method: count over some thousand of them.
#[test]
fn plans_draw_what_they_are_said_to() {
    const PLANS: u64 = 4000;
    let all = Capabilities::everything();
    let drawn = |index| plan(case_seed(1, index), &Scope::default(), &all);
    let plans: Vec<Plan> = (0..PLANS).map(drawn).collect();
    let share = |holds: &dyn Fn(&Plan) -> bool| {
        let count = plans.iter().filter(|plan| holds(plan)).count() as u64;
        (count * 1000 / PLANS) as u32
    };
    let has_fault = |plan: &Plan, kind: FaultKind| {
        plan.lives.iter().any(|life| match kind {
            FaultKind::Dropped => life.dropped.is_some(),
            _ => life.faults.iter().any(|fault| FaultKind::of(fault) == kind),
        })
    };
    let mut seldom = Vec::new();
    for Line { of, class, drawn, .. } in lines() {
        for by in drawn {
            let (least, drawn) = match *by {
                By::Plans(least, holds) => (least, share(&holds)),
                // A full refcount table is dear: few are enough.
                By::Initial(initial) => (1, share(&|plan| plan.initial == initial)),
                By::Shape(shape) => (10, share(&|plan| plan.shapes().any(|drawn| drawn == shape))),
                By::Fault(kind) => (10, share(&|plan| has_fault(plan, kind))),
                _ => continue,
            };
            println!("{drawn:>5} of 1000, at least {least:>3}: {of}, {class}");
            if drawn < least {
                seldom.push(format!("{of}, {class}: {drawn} of 1000, not {least}"));
            }
        }
    }
    assert!(seldom.is_empty(), "{}", seldom.join("\n"));
}
