//! Somebody else's program on a file: a command with a place for the path.
//!
//! ```text
//!   qemu-img check -r all {}       e2fsck -fn {}       sh -c 'e2fsck -fy {}; e2fsck -fn {}'
//!                         `-- the path of the file, in each word that has it
//! ```
//!
//! The invariant: no shell has a say. Words are parted by spaces, and a word in quotes is one word; nothing else means anything. What
//! cannot work is refused before there is a file: a command without a place, and a program that is nowhere.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use crate::interrupt;
use crate::qemu::{self, QemuError, Run};

/// What stands for the path.
const PLACE: &str = "{}";

/// Where administrators' programs are, whether or not PATH says so.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A command that takes longer is ended: it looks at one small image, and there are hundreds.
const PATIENCE: Duration = Duration::from_secs(120);

/// A command that is run on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCommand {
    text: String,
    words: Vec<String>,
}

/// Why a command cannot be run, or gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A quote has no end.
    #[error("`{command}`: the quote at byte {at} has no end")]
    Quote {
        /// The command.
        command: String,
        /// Where it begins.
        at: usize,
    },
    /// Nothing says where the file goes.
    #[error("`{0}`: no word of it has {PLACE}, the place of the file")]
    NoPlace(String),
    /// There is no such program.
    #[error("`{command}`: there is no program {program}, neither in PATH nor in {}", SYSTEM_DIRECTORIES.join(", "))]
    NoProgram {
        /// The command.
        command: String,
        /// Its first word.
        program: String,
    },
    /// It did not start.
    #[error(transparent)]
    Start(#[from] QemuError),
    /// It did not end.
    #[error("`{command}` did not end within {} s, or before a signal came: it was ended", PATIENCE.as_secs())]
    Stuck {
        /// The command.
        command: String,
    },
    /// A signal ended it.
    #[error("it gave no answer\n{0}")]
    Signal(Run),
}

impl FromStr for FileCommand {
    type Err = CommandError;

    fn from_str(text: &str) -> Result<Self, CommandError> {
        let mut words = Vec::new();
        let mut word: Option<String> = None;
        let mut quote: Option<(usize, char)> = None;
        for (at, c) in text.char_indices() {
            match (quote, c) {
                (Some((_, end)), c) if c == end => quote = None,
                (Some(_), c) => word.get_or_insert_default().push(c),
                (None, '\'' | '"') => {
                    quote = Some((at, c));
                    word.get_or_insert_default();
                }
                (None, c) if c.is_whitespace() => words.extend(word.take()),
                (None, c) => word.get_or_insert_default().push(c),
            }
        }
        if let Some((at, _)) = quote {
            return Err(CommandError::Quote { command: text.to_owned(), at });
        }
        words.extend(word);
        // The program itself is no file to be looked at.
        if !words.iter().skip(1).any(|word| word.contains(PLACE)) {
            return Err(CommandError::NoPlace(text.to_owned()));
        }
        Ok(Self { text: text.to_owned(), words })
    }
}

impl fmt::Display for FileCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FileCommand {
    /// Whether its program is there.
    ///
    /// # Errors
    /// [`CommandError::NoProgram`].
    pub fn check(&self) -> Result<(), CommandError> {
        self.program().map(drop)
    }

    /// Runs it on the file at `path`, to its end. Its exit code is for the caller to read.
    ///
    /// # Errors
    /// If it does not start, or a signal ends it.
    pub fn run(&self, path: &Path) -> Result<Run, CommandError> {
        let mut command = Command::new(self.program()?);
        let path = path.to_string_lossy();
        command.args(self.words.iter().skip(1).map(|word| word.replace(PLACE, &path)));
        command.stdin(Stdio::null()).env("LC_ALL", "C");
        match run_for(command, PATIENCE)? {
            None => Err(CommandError::Stuck { command: self.text.clone() }),
            Some(run) if run.code.is_none() => Err(CommandError::Signal(run)),
            Some(run) => Ok(run),
        }
    }

    /// Where its program is.
    fn program(&self) -> Result<PathBuf, CommandError> {
        let program = &self.words[0];
        let is_program = |path: &PathBuf| {
            let found = path.metadata();
            found.is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
        };
        let found = if program.contains('/') {
            Some(PathBuf::from(program)).filter(is_program)
        } else {
            let path = env::var_os("PATH").unwrap_or_default();
            let folders = env::split_paths(&path).chain(SYSTEM_DIRECTORIES.map(PathBuf::from));
            folders.map(|folder| folder.join(program)).find(is_program)
        };
        found.ok_or_else(|| CommandError::NoProgram {
            command: self.text.clone(),
            program: program.clone(),
        })
    }
}

/// Runs a command of somebody's until it ends, which it is made to after `limit` or a signal. What it began and left running may keep what it
/// prints to, so nobody waits for that.
fn run_for(mut command: Command, limit: Duration) -> Result<Option<Run>, QemuError> {
    let shown = qemu::shown(&command);
    let start = |source| QemuError::Start { command: shown.clone(), source };
    let (mut stdout, mut stderr) =
        (tempfile::tempfile().map_err(start)?, tempfile::tempfile().map_err(start)?);
    command.stdout(stdout.try_clone().map_err(start)?);
    command.stderr(stderr.try_clone().map_err(start)?);
    let mut child = command.spawn().map_err(start)?;
    let mut waited = Duration::ZERO;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(start)? {
            break status;
        }
        if waited >= limit || interrupt::asked() {
            child.kill().and_then(|()| child.wait()).map_err(start)?;
            return Ok(None);
        }
        let pause = (waited / 8).clamp(Duration::from_millis(1), Duration::from_millis(50));
        std::thread::sleep(pause);
        waited += pause;
    };
    let text = |file: &mut File| -> io::Result<String> {
        file.rewind()?;
        let mut bytes = Vec::new();
        file.take(MOST_PRINTED).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (stdout, stderr) = (text(&mut stdout).map_err(start)?, text(&mut stderr).map_err(start)?);
    Ok(Some(Run { command: shown, code: status.code(), stdout, stderr }))
}

/// So many bytes of what somebody's command prints are read.
const MOST_PRINTED: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.parse::<FileCommand>().expect("it is a command").words
    }

    /// Goal: a word is what stands between spaces, or in quotes, and nothing else is special.
    #[test]
    fn words_are_parted_by_spaces_and_quotes() {
        assert_eq!(words(" a  {} "), ["a", "{}"]);
        assert_eq!(
            words(r#"sh -c 'x {}; "y"' "it's" a"b c"d '' $HOME *"#),
            ["sh", "-c", "x {}; \"y\"", "it's", "ab cd", "", "$HOME", "*"]
        );
    }

    /// Goal: what cannot work is refused by name. Method: a quote without an end, no place, nothing at all, and programs that are not there.
    #[test]
    fn what_cannot_work_is_refused() {
        let error = |text: &str| text.parse::<FileCommand>().unwrap_err().to_string();
        assert_eq!(error("a 'b {}"), "`a 'b {}`: the quote at byte 2 has no end");
        for text in ["", "check", "check -f", "{}"] {
            let expected = format!("`{text}`: no word of it has {{}}, the place of the file");
            assert_eq!(error(text), expected);
        }
        for text in ["no-such-program {}", "/no/such/program {}", "/etc/passwd {}"] {
            let command: FileCommand = text.parse().unwrap();
            let error = command.check().unwrap_err().to_string();
            let program = text.split(' ').next().unwrap();
            assert!(error.contains(&format!("there is no program {program}, ")), "{error}");
        }
    }

    /// Goal: the path takes its place in every word, an exit code is an answer, and a signal is none.
    #[test]
    fn a_command_runs_on_the_file() {
        let command: FileCommand = "sh -c 'echo {} \"$0\"; exit 3' a{}b".parse().unwrap();
        let run = command.run(Path::new("/x y")).unwrap();
        assert_eq!((run.code, run.stdout.as_str()), (Some(3), "/x y a/x yb\n"));
        let command: FileCommand = "sh -c 'kill -9 $$' {}".parse().unwrap();
        let error = command.run(Path::new("x")).unwrap_err();
        assert!(matches!(error, CommandError::Signal(_)), "{error}");
    }
}
