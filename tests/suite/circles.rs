//! No module of a crate imports one that, over however many others, imports it.
//!
//! Method: the paths in each source file that begin with `crate`, `super` or `self`, or with a child module's name, as tokens; so those
//! inside macros are seen too. A name that a module only passes on (`pub use`) is followed to where it is from, and is no import of
//! the module itself unless it uses the name. Methods are not seen: an `impl` may call what lies above its file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::house::{root, sources};

/// A module of a crate: the names on the way to it, none for the root.
type Name = Vec<String>;

#[derive(Debug, Default)]
struct Module {
    /// What it names, as written.
    paths: BTreeSet<Name>,
    /// What it passes on: the name by which others know it, and the path as written.
    passed_on: BTreeMap<String, Name>,
    /// Single words in it, outside what it passes on.
    words: BTreeSet<String>,
}

type Crate = BTreeMap<Name, Module>;

/// The file of a module, from the file's path below the source folder.
fn name_of(below: &Path) -> Name {
    let mut name: Name = below
        .with_extension("")
        .iter()
        .map(|part| part.to_str().expect("file names are text").to_owned())
        .collect();
    if matches!(name.last().map(String::as_str), Some("mod" | "lib")) {
        name.pop();
    }
    name
}

/// A path and what follows it: one path for each name of a list in braces.
fn spread(mut before: Name, tokens: &[TokenTree], mut at: usize, found: &mut Vec<Name>) -> usize {
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(ident)) => {
                before.push(ident.to_string());
                at += 1;
            }
            Some(TokenTree::Group(list)) if list.delimiter() == Delimiter::Brace => {
                let inside: Vec<TokenTree> = list.stream().into_iter().collect();
                let mut next = 0;
                while next < inside.len() {
                    next = spread(before.clone(), &inside, next, found);
                    // To the comma and past it, over `as` and a name.
                    while next < inside.len() && !is_punct(inside.get(next), ',') {
                        next += 1;
                    }
                    next += 1;
                }
                return at + 1;
            }
            _ => break,
        }
        if is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':') {
            at += 2;
        } else {
            break;
        }
    }
    found.push(before);
    at
}

fn is_punct(token: Option<&TokenTree>, c: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == c)
}

fn is_word(token: Option<&TokenTree>, word: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(ident)) if ident == word)
}

fn is_group(token: Option<&TokenTree>, delimiter: Delimiter) -> bool {
    matches!(token, Some(TokenTree::Group(group)) if group.delimiter() == delimiter)
}

/// Reads some tokens of a source file into what its module names; `children` are the modules below it.
fn read(tokens: TokenStream, children: &BTreeSet<String>, module: &mut Module) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let (mut at, mut passes_on) = (0, false);
    while at < tokens.len() {
        match &tokens[at] {
            // `#[cfg(test)] mod name { ... }` or `;`: tests may import what they like.
            TokenTree::Group(attribute) if attribute.stream().to_string() == "cfg (test)" => {
                at += 1;
                while at < tokens.len()
                    && !is_group(tokens.get(at), Delimiter::Brace)
                    && !is_punct(tokens.get(at), ';')
                {
                    at += 1;
                }
                at += 1;
            }
            TokenTree::Group(group) => {
                read(group.stream(), children, module);
                at += 1;
            }
            TokenTree::Ident(ident) if ident == "use" => {
                // Passed on: `pub use`, `pub(crate) use`.
                let before = at.checked_sub(1).and_then(|before| tokens.get(before));
                passes_on = is_word(before, "pub")
                    || at >= 2
                        && is_group(before, Delimiter::Parenthesis)
                        && is_word(tokens.get(at - 2), "pub");
                at += 1;
            }
            TokenTree::Ident(ident) => {
                let word = ident.to_string();
                let continues = at > 0 && is_punct(tokens.get(at - 1), ':');
                let leads = is_punct(tokens.get(at + 1), ':') && is_punct(tokens.get(at + 2), ':');
                let ours =
                    matches!(word.as_str(), "crate" | "super" | "self") || children.contains(&word);
                if continues || !leads || !ours {
                    if !passes_on && !continues {
                        module.words.insert(word);
                    }
                    at += 1;
                    continue;
                }
                let mut found = Vec::new();
                at = spread(Vec::new(), &tokens, at, &mut found);
                if passes_on {
                    for path in found {
                        let last = path.last().expect("a path has a name").clone();
                        module.passed_on.insert(last, path);
                    }
                } else {
                    module.paths.extend(found);
                }
                passes_on = false;
            }
            token => {
                passes_on &= !is_punct(Some(token), ';');
                at += 1;
            }
        }
    }
}

/// Reads the sources of a crate, by the file name of each below the source folder.
fn crate_of<'a>(files: impl Iterator<Item = (&'a Path, String)>) -> Crate {
    let texts: BTreeMap<Name, String> = files.map(|(below, text)| (name_of(below), text)).collect();
    let read_one = |(name, text): (&Name, &String)| {
        let below = texts.keys().filter(|other| other.len() == name.len() + 1);
        let children = below.filter(|other| other.starts_with(name));
        let children = children.filter_map(|other| other.last().cloned()).collect();
        let mut module = Module::default();
        read(text.parse().expect("the source has tokens"), &children, &mut module);
        let used = module.passed_on.iter().filter(|(name, _)| module.words.contains(*name));
        module.paths.extend(used.map(|(_, path)| path.clone()));
        (name.clone(), module)
    };
    texts.iter().map(read_one).collect()
}

/// The module that defines what a path as written in `here` names, as far as that can be seen.
fn resolve(krate: &Crate, here: &Name, path: &[String]) -> Option<Name> {
    let (first, mut rest) = path.split_first()?;
    let mut module = match first.as_str() {
        "crate" => Name::new(),
        "super" => here[..here.len().checked_sub(1)?].to_vec(),
        "self" => here.clone(),
        child => here.iter().cloned().chain([child.to_owned()]).collect(),
    };
    while let Some((next, after)) = rest.split_first() {
        if next == "super" {
            module.pop();
            rest = after;
            continue;
        }
        let below: Name = module.iter().cloned().chain([next.clone()]).collect();
        if krate.contains_key(&below) {
            module = below;
            rest = after;
        } else if let Some(elsewhere) = krate.get(&module)?.passed_on.get(next) {
            // Of another crate, if it leads nowhere here.
            return resolve(krate, &module, elsewhere);
        } else {
            break;
        }
    }
    krate.contains_key(&module).then_some(module)
}

/// Whom each module imports.
fn arrows(krate: &Crate) -> BTreeMap<&Name, BTreeSet<Name>> {
    let of = |(name, module): (&'_ Name, &'_ Module)| -> BTreeSet<Name> {
        let found = module.paths.iter().filter_map(|path| resolve(krate, name, path));
        found.filter(|to| to != name).collect()
    };
    krate.iter().map(|(name, module)| (name, of((name, module)))).collect()
}

/// A circle, if there is one: each module in it imports the next one, and the last the first.
fn circle(arrows: &BTreeMap<&Name, BTreeSet<Name>>) -> Option<Vec<Name>> {
    fn visit(
        at: &Name,
        arrows: &BTreeMap<&Name, BTreeSet<Name>>,
        on_the_way: &mut Vec<Name>,
        done: &mut BTreeSet<Name>,
    ) -> Option<Vec<Name>> {
        if let Some(from) = on_the_way.iter().position(|name| name == at) {
            return Some(on_the_way[from..].to_vec());
        }
        if !done.contains(at) {
            on_the_way.push(at.clone());
            for to in &arrows[at] {
                if let Some(circle) = visit(to, arrows, on_the_way, done) {
                    return Some(circle);
                }
            }
            on_the_way.pop();
            done.insert(at.clone());
        }
        None
    }
    let mut done = BTreeSet::new();
    arrows.keys().find_map(|name| visit(name, arrows, &mut Vec::new(), &mut done))
}

fn shown(circle: &[Name]) -> String {
    let names: Vec<String> = circle
        .iter()
        .chain(circle.first())
        .map(|name| if name.is_empty() { "lib".to_owned() } else { name.join("::") })
        .collect();
    names.join(" -> ")
}

/// Goal: who reads a module never has to read it first. Method: the sources of every crate.
#[test]
fn no_module_imports_itself_over_others() {
    for (krate, least) in [
        ("qcow2-core", 60),
        ("qcow2-core/storage", 3),
        ("faultfs", 30),
        ("model", 20),
        ("tests", 80),
    ] {
        let source = root().join(krate).join("src");
        let files = sources(krate);
        let files = files.iter().filter_map(|path| {
            let below = path.strip_prefix(&source).ok()?;
            // A file of tests, and programs, are no modules of the library.
            let apart = below.starts_with("bin") || below.ends_with("tests.rs");
            (!apart).then(|| (below, fs::read_to_string(path).unwrap()))
        });
        let krate_read = crate_of(files);
        let arrows = arrows(&krate_read);
        let count: usize = arrows.values().map(BTreeSet::len).sum();
        assert!(count >= least, "{krate}: only {count} imports were seen");
        if let Some(circle) = circle(&arrows) {
            panic!("{krate}: {}", shown(&circle));
        }
    }
}

#[test]
fn a_circle_is_found_whatever_it_is_written_like() {
    let circle_of = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(below, text)| (Path::new(*below), (*text).to_owned()));
        let krate = crate_of(files);
        circle(&arrows(&krate)).map(|circle| shown(&circle))
    };
    let lib = ("lib.rs", "mod a; mod b;");
    let a = ("a.rs", "use crate::{b::{Other, Thing as T}, c};");
    assert_eq!(circle_of(&[lib, a, ("b.rs", "")]), None);
    assert_eq!(
        circle_of(&[lib, a, ("b.rs", "fn f() { m!(super::a::X) }")]).unwrap(),
        "a -> b -> a"
    );
    assert_eq!(circle_of(&[lib, a, ("b.rs", "#[cfg(test)] mod tests { use crate::a::X; }")]), None);
    // Over a name that is only passed on.
    let faces = ("lib.rs", "pub use a::X; pub use ::other::Z;");
    assert_eq!(circle_of(&[faces, a, ("b.rs", "use crate::X;")]).unwrap(), "a -> b -> a");
    assert_eq!(circle_of(&[faces, a, ("b.rs", "use crate::Z;")]), None);
    // A folder's face that only passes names on imports nothing; one that uses them does.
    let part = ("f/part.rs", "use super::Whole;");
    assert_eq!(circle_of(&[("f/mod.rs", "pub use part::Part;"), part]), None);
    let both = ("f/mod.rs", "pub(crate) use part::{Part, Q}; struct Whole(Part);");
    assert_eq!(circle_of(&[both, part]).unwrap(), "f -> f::part -> f");
    let uses = ("f/mod.rs", "use part::Part;");
    assert_eq!(circle_of(&[uses, part]).unwrap(), "f -> f::part -> f");
    assert_eq!(
        circle_of(&[("f/mod.rs", "fn f() { part::g() }"), part]).unwrap(),
        "f -> f::part -> f"
    );
}
