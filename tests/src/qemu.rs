//! QEMU as a witness: `qemu-img` and `qemu-io` on image files.
//!
//! The invariant: no answer is taken from a command that did not run as asked. Every error shows the whole command and
//! everything that it printed, so that a person can repeat it in a shell. An exit code is never the whole answer: `qemu-img
//! check` calls several legal crash states corrupt, and several damaged images fine.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A command that ran to its end, well or badly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The command as a shell would take it.
    pub command: String,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        writeln!(f, "$ {command}")?;
        match code {
            Some(code) => writeln!(f, "exit code {code}")?,
            None => writeln!(f, "ended by a signal")?,
        }
        write!(f, "--- stdout\n{}--- stderr\n{}", printable(stdout), printable(stderr))
    }
}

/// So many bytes at the beginning and at the end of what a command printed are told.
const TOLD: usize = 8 << 10;

/// What a program printed, for a terminal: without control characters, and without the middle of what is long.
fn printable(text: &str) -> String {
    let plain = |text: &str| -> String {
        let escaped = |c: char| match c {
            '\n' | '\t' => c.to_string(),
            c if c.is_control() => c.escape_default().to_string(),
            c => c.to_string(),
        };
        text.chars().map(escaped).collect()
    };
    if text.len() <= 2 * TOLD {
        return plain(text);
    }
    let (head, tail) = (text.floor_char_boundary(TOLD), text.ceil_char_boundary(text.len() - TOLD));
    let left_out = tail - head;
    format!("{}\n({left_out} bytes)\n{}", plain(&text[..head]), plain(&text[tail..]))
}

/// Why QEMU gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// The program did not start.
    #[error("$ {command}\ncannot be run: {source}")]
    Start {
        /// The command.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// The command failed.
    #[error("{0}")]
    Failed(Run),
    /// The command printed something else than the JSON that was expected.
    #[error("{run}cannot be understood: {source}")]
    Output {
        /// The command.
        run: Run,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl Run {
    /// The run, if its exit code is 0.
    ///
    /// # Errors
    /// [`QemuError::Failed`] otherwise.
    pub fn success(self) -> Result<Self, QemuError> {
        if self.code == Some(0) { Ok(self) } else { Err(QemuError::Failed(self)) }
    }

    fn json<T: DeserializeOwned>(self) -> Result<T, QemuError> {
        serde_json::from_str(&self.stdout).map_err(|source| QemuError::Output { run: self, source })
    }
}

/// What `qemu-img check --output=json` says, and its exit code: 0 nothing wrong, 1 the check was not complete, 2
/// corruptions, 3 leaks only. After a repair the code is that of what is left, and so are `corruptions` and `leaks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Check {
    /// Exit code.
    #[serde(skip)]
    pub code: i32,
    /// End of the last cluster in use.
    pub image_end_offset: u64,
    /// Guest clusters.
    pub total_clusters: u64,
    /// Things that kept the check from being complete.
    pub check_errors: u64,
    /// Corruptions.
    pub corruptions: u64,
    /// Leaked clusters.
    pub leaks: u64,
    /// Corruptions that were repaired.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Guest clusters with a host cluster.
    pub allocated_clusters: u64,
    /// Of these, those that do not follow the one before.
    pub fragmented_clusters: u64,
    /// Of these, the compressed ones.
    pub compressed_clusters: u64,
}

/// One extent of `qemu-img map --output=json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct MapExtent {
    /// Guest offset.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// How many layers down it is found: 0 is the image itself.
    pub depth: u64,
    /// Whether it reads as zeroes.
    pub zero: bool,
    /// Whether it holds data.
    pub data: bool,
    /// Host offset, if it has one.
    pub offset: Option<u64>,
}

/// An image as QEMU is told of it: a file, which is qcow2, and the passphrase if it is encrypted.
#[derive(Clone, Copy, Debug)]
pub struct QemuImage<'a> {
    /// The file.
    pub path: &'a Path,
    /// The passphrase, in letters and digits.
    pub passphrase: Option<&'a str>,
}

impl<'a> From<&'a Path> for QemuImage<'a> {
    fn from(path: &'a Path) -> Self {
        Self { path, passphrase: None }
    }
}

impl<'a> From<&'a PathBuf> for QemuImage<'a> {
    fn from(path: &'a PathBuf) -> Self {
        path.as_path().into()
    }
}

impl QemuImage<'_> {
    /// The object that has the passphrase.
    const SECRET: &'static str = "key";

    /// The options of `create` that encrypt an image in this format, `aes` or `luks`.
    pub fn encrypted(format: &str) -> String {
        // The hashing takes as little time as it may.
        let rounds = if format == "luks" { ",encrypt.iter-time=1" } else { "" };
        format!("encrypt.format={format},encrypt.key-secret={}{rounds}", Self::SECRET)
    }

    fn secret(self) -> Vec<OsString> {
        let object = |passphrase| format!("secret,id={},data={passphrase}", Self::SECRET);
        self.passphrase
            .map(object)
            .map_or_else(Vec::new, |object| vec!["--object".into(), object.into()])
    }

    /// Arguments that name it.
    fn args(self) -> Vec<OsString> {
        let mut args = self.secret();
        if args.is_empty() {
            return vec!["-f".into(), "qcow2".into(), self.path.into()];
        }
        args.extend(["--image-opts".into(), self.options()]);
        args
    }

    fn options(self) -> OsString {
        let mut options = OsString::from("driver=qcow2,file.driver=file,file.filename=");
        options.push(self.path);
        options.push(format!(",encrypt.key-secret={}", Self::SECRET));
        options
    }
}

/// Runs `qemu-img`.
///
/// # Errors
/// [`QemuError::Start`] if it cannot be run; a bad exit code is no error here.
pub fn img<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Result<Run, QemuError> {
    run(command("qemu-img", args))
}

/// Runs `qemu-io` on an image: `commands` one after the other, as `-c` takes them.
///
/// # Errors
/// [`QemuError::Start`] if it cannot be run; a bad exit code, as when one of the commands fails, is no error here.
pub fn io<'a>(image: impl Into<QemuImage<'a>>, commands: &[String]) -> Result<Run, QemuError> {
    io_with(image.into().args(), commands)
}

/// Runs `qemu-io` with arguments that name the image in some other way.
///
/// # Errors
/// As [`io()`].
pub fn io_with<A: AsRef<OsStr>>(
    args: impl IntoIterator<Item = A>,
    commands: &[String],
) -> Result<Run, QemuError> {
    let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
    let commands = commands.iter().flat_map(|command| ["-c".into(), OsString::from(command)]);
    run(command("qemu-io", args.chain(commands)))
}

/// Starts a `qemu-io` that has the image at `path` open for writing until its standard input is closed.
///
/// # Errors
/// [`QemuError::Start`] if it cannot be run.
pub fn hold_open(path: &Path) -> Result<Child, QemuError> {
    let mut command = command("qemu-io", ["-f".as_ref(), "qcow2".as_ref(), path.as_os_str()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|source| QemuError::Start { command: shown(&command), source })
}

/// Creates a qcow2 image of `size` bytes with `options` as `-o` takes them.
///
/// # Errors
/// [`QemuError`] if that does not succeed.
pub fn create<'a>(
    image: impl Into<QemuImage<'a>>,
    size: u64,
    options: &str,
) -> Result<(), QemuError> {
    let image = image.into();
    let args = ["create", "-q", "-f", "qcow2", "-o", options].map(OsString::from);
    let args = args.into_iter().chain(image.secret());
    img(args.chain([image.path.into(), size.to_string().into()]))?.success().map(drop)
}

/// Makes an image of another size, with options as `resize` takes them.
///
/// # Errors
/// [`QemuError`] if that does not succeed.
pub fn resize<'a>(
    image: impl Into<QemuImage<'a>>,
    size: u64,
    options: &[&str],
) -> Result<(), QemuError> {
    let args = ["resize", "-q"].iter().chain(options).map(OsString::from);
    let args = args.chain(image.into().args()).chain([size.to_string().into()]);
    img(args)?.success().map(drop)
}

/// Lets another passphrase, in letters and digits, open an image that is encrypted with LUKS.
///
/// # Errors
/// [`QemuError`] if that does not succeed.
pub fn add_passphrase(image: QemuImage<'_>, added: &str) -> Result<(), QemuError> {
    amend(image, added, "encrypt.state=active,encrypt.iter-time=1,encrypt.new-secret=other")
}

/// Lets it open the image no more.
///
/// # Errors
/// [`QemuError`] if that does not succeed.
pub fn remove_passphrase(image: QemuImage<'_>, removed: &str) -> Result<(), QemuError> {
    amend(image, removed, "encrypt.state=inactive,encrypt.old-secret=other")
}

fn amend(image: QemuImage<'_>, other: &str, options: &str) -> Result<(), QemuError> {
    let other = format!("secret,id=other,data={other}");
    let args = ["amend", "-q", "--object", &other, "-o", options].map(OsString::from);
    img(args.into_iter().chain(image.args()))?.success().map(drop)
}

/// Checks an image and changes nothing.
///
/// # Errors
/// [`QemuError`] if the check itself was not possible. What it found is in the answer.
pub fn check<'a>(image: impl Into<QemuImage<'a>>) -> Result<Check, QemuError> {
    check_with(&[], image.into())
}

/// Checks an image and repairs `what`: `leaks` or `all`.
///
/// # Errors
/// As [`check`].
pub fn repair<'a>(image: impl Into<QemuImage<'a>>, what: &str) -> Result<Check, QemuError> {
    check_with(&["-r", what], image.into())
}

fn check_with(options: &[&str], image: QemuImage<'_>) -> Result<Check, QemuError> {
    let args = ["check", "--output=json"].iter().chain(options).map(OsString::from);
    let run = img(args.chain(image.args()))?;
    match run.code {
        Some(code @ 0..=3) if !run.stdout.is_empty() => Ok(Check { code, ..run.json()? }),
        _ => Err(QemuError::Failed(run)),
    }
}

/// What `qemu-img info` says, as JSON.
///
/// # Errors
/// [`QemuError`] if it says nothing.
pub fn info(path: &Path) -> Result<serde_json::Value, QemuError> {
    let args = ["info", "-f", "qcow2", "--output=json"].map(OsStr::new);
    img(args.into_iter().chain([path.as_os_str()]))?.success()?.json()
}

/// Where `qemu-img map` says that the guest's data is.
///
/// # Errors
/// [`QemuError`] if it says nothing.
pub fn map(path: &Path) -> Result<Vec<MapExtent>, QemuError> {
    let args = ["map", "-f", "qcow2", "--output=json"].map(OsStr::new);
    img(args.into_iter().chain([path.as_os_str()]))?.success()?.json()
}

/// Compares the guest's view of an image with the raw image at `raw`. Where one of them is longer, the
/// rest must read as zeroes.
///
/// # Errors
/// [`QemuError::Failed`], which names the first difference, if they differ.
pub fn compare<'a>(image: impl Into<QemuImage<'a>>, raw: &Path) -> Result<(), QemuError> {
    let image = image.into();
    let secret = image.secret();
    let args = match secret.is_empty() {
        true => {
            let args = ["compare", "-f", "raw", "-F", "qcow2"].map(OsString::from);
            args.into_iter().chain([raw.into(), image.path.into()]).collect::<Vec<_>>()
        }
        false => {
            let mut with = OsString::from("driver=raw,file.driver=file,file.filename=");
            with.push(raw);
            let args = ["compare".into(), "--image-opts".into()];
            args.into_iter().chain(secret).chain([with, image.options()]).collect()
        }
    };
    img(args)?.success().map(drop)
}

fn command<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command) -> Result<Run, QemuError> {
    let shown = shown(&command);
    match command.output() {
        Ok(output) => Ok(Run {
            command: shown,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
        Err(source) => Err(QemuError::Start { command: shown, source }),
    }
}

/// The command as a shell would take it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_the_whole_command_and_its_output() {
        let run = run(command("sh", ["-c", "echo out; echo it\\'s err >&2; exit 3"])).unwrap();
        assert_eq!(
            run.clone().success().unwrap_err().to_string(),
            "$ sh -c 'echo out; echo it\\'\\''s err >&2; exit 3'\n\
             exit code 3\n--- stdout\nout\n--- stderr\nit's err\n"
        );
        let error = run.json::<Check>().unwrap_err().to_string();
        assert!(error.contains("exit 3'") && error.contains("cannot be understood"), "{error}");
        let error = super::run(command("no-such-program", ["a b"])).unwrap_err().to_string();
        assert!(error.starts_with("$ no-such-program 'a b'\ncannot be run: "), "{error}");
    }

    #[test]
    fn a_check_without_findings_leaves_keys_out() {
        let json =
            r#"{"image-end-offset": 9, "total-clusters": 2, "check-errors": 0, "filename": "a"}"#;
        let check: Check = serde_json::from_str(json).unwrap();
        let expected = Check { image_end_offset: 9, total_clusters: 2, ..Check::default() };
        assert_eq!(check, expected);
    }

    /// Goal: what a program prints says nothing to the terminal, and not more than a person reads.
    #[test]
    fn what_a_program_prints_is_text_of_a_bounded_length() {
        assert_eq!(printable("a\n\tb\u{1b}[31m\u{7}c"), "a\n\tb\\u{1b}[31m\\u{7}c");
        let long = format!("begin{}end", "\u{e9}".repeat(TOLD * 4));
        let told = printable(&long);
        assert!(told.starts_with("begin") && told.ends_with("end"));
        assert!(told.len() < TOLD * 2 + 100 && told.contains(" bytes)\n"), "{}", told.len());
    }
}
