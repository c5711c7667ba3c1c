//! Documents with transcripts in them: a command, and what it printed.
//!
//! The invariant: **nobody writes what a transcript says.** Its command is run, and what that prints takes the place of what was there,
//! or nothing does: output of a command that failed is not kept.
//!
//! ````text
//!   ## A section                 the command is one line of bash
//!
//!   ```console
//!   $ cargo campaign run --seconds 60
//!   what it printed on standard output
//!   ```
//! ````

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};

const BEGIN: &str = "```console\n";
const PROMPT: &str = "$ ";
const END: &str = "```\n";

/// One transcript of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcript<'a> {
    /// The heading that it is below.
    pub section: &'a str,
    /// What is run.
    pub command: &'a str,
    /// What it printed: whole lines, the last one not empty.
    pub output: &'a str,
    /// Where the output is in the document.
    place: Range<usize>,
}

impl Transcript<'_> {
    /// The document with another output here.
    pub fn replaced(&self, document: &str, output: &str) -> String {
        let Range { start, end } = self.place;
        [&document[..start], output, &document[end..]].concat()
    }
}

/// The transcripts of a document, in order.
///
/// # Errors
/// The line of one that has no command, no output or no end.
pub fn transcripts(document: &str) -> Result<Vec<Transcript<'_>>, String> {
    let mut found = Vec::new();
    let mut section = "";
    let mut lines = document.split_inclusive('\n');
    let mut at = 0;
    let mut number = 0;
    while let Some(line) = lines.next() {
        at += line.len();
        number += 1;
        if let Some(heading) = line.strip_prefix('#') {
            section = heading.trim_start_matches('#').trim();
        }
        if line != BEGIN {
            continue;
        }
        let fault = |what: &str| Err(format!("line {number}: a transcript without {what}"));
        let Some(command) =
            document[at..].split_inclusive('\n').next().and_then(|line| line.strip_prefix(PROMPT))
        else {
            return fault("a command");
        };
        let start = at + PROMPT.len() + command.len();
        let Some(length) = document[start..].find(&format!("\n{END}")).map(|length| length + 1)
        else {
            return fault("an output and an end");
        };
        let place = start..start + length;
        found.push(Transcript {
            section,
            command: command.trim_end(),
            output: &document[place.clone()],
            place,
        });
        // What is inside is no heading and no other transcript.
        while at < start + length {
            let line = lines.next().expect("the end was found");
            at += line.len();
            number += 1;
        }
    }
    Ok(found)
}

/// Runs a command in a folder: what it prints on standard output, without white space at the ends of lines and empty lines around it.
/// Standard error goes where that of this process goes.
///
/// # Errors
/// Why there is no output to keep.
pub fn run(command: &str, folder: &Path) -> Result<String, String> {
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", command])
        .current_dir(folder)
        .env("CARGO_TERM_COLOR", "never")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("bash cannot be run: {error}"))?;
    let text = String::from_utf8(output.stdout)
        .map_err(|error| format!("$ {command}: it printed {error}"))?;
    if !output.status.success() {
        return Err(format!("$ {command}\n{text}{}", output.status));
    }
    let lines: Vec<&str> = text.trim_matches('\n').lines().map(str::trim_end).collect();
    match lines.join("\n").trim_end() {
        "" => Err(format!("$ {command}: it printed nothing")),
        text if text.lines().any(|line| line.starts_with("```")) => {
            Err(format!("$ {command}: it printed what ends a transcript"))
        }
        text => Ok(format!("{text}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# One\n\n```console\n$ echo a  b\nold\n## no heading\n```\n\n```sh\n$ no transcript\n```\n\n## Two\n\
                            \n```console\n$ true | false\nkept\n```\n";

    #[test]
    #[cfg_attr(not(has_bash), ignore = "bash is not installed")]
    fn what_a_command_prints_takes_the_place_of_what_it_printed() {
        let found = transcripts(DOCUMENT).unwrap();
        let seen: Vec<_> = found.iter().map(|it| (it.section, it.command, it.output)).collect();
        assert_eq!(
            seen,
            [("One", "echo a  b", "old\n## no heading\n"), ("Two", "true | false", "kept\n")]
        );
        let printed = run(found[0].command, Path::new("/")).unwrap();
        let replaced = found[0].replaced(DOCUMENT, &printed);
        assert_eq!(replaced, DOCUMENT.replace("old\n## no heading\n", "a b\n"));
        let again = transcripts(&replaced).unwrap();
        assert_eq!(again[1].output, "kept\n");
        assert_eq!(again[1].replaced(&replaced, "kept\n"), replaced);
    }

    #[test]
    #[cfg_attr(not(has_bash), ignore = "bash is not installed")]
    fn what_fails_or_prints_nothing_is_not_kept() {
        let fault = |command| run(command, Path::new("/")).unwrap_err();
        assert!(
            fault("echo a; true | false").starts_with("$ echo a; true | false\na\nexit status: 1")
        );
        assert_eq!(fault("echo"), "$ echo: it printed nothing");
        assert!(fault("echo '```'").ends_with("it printed what ends a transcript"));
        assert_eq!(run("printf '\\n  a \\n\\nb\\n\\n'", Path::new("/")).unwrap(), "  a\n\nb\n");
    }

    #[test]
    fn a_transcript_has_a_command_an_output_and_an_end() {
        let fault = |document| transcripts(document).unwrap_err();
        assert_eq!(fault("\n```console\n"), "line 2: a transcript without a command");
        assert_eq!(fault("```console\necho\n```\n"), "line 1: a transcript without a command");
        assert_eq!(
            fault("```console\n$ echo\n```\n"),
            "line 1: a transcript without an output and an end"
        );
        assert_eq!(
            fault("```console\n$ echo\nout\n"),
            "line 1: a transcript without an output and an end"
        );
    }
}
