//! Files that are there whole or not at all, and whether they can be written, asked before there is anything to write.
//!
//! ```text
//!   unfinished file in the same folder ──write, flush──> rename, or link where nothing may be overwritten ──flush the folder
//! ```

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Writes a file that does not exist yet.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if it does, or what the file system says; then nothing of it is there.
pub fn create(path: &Path, contents: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let file = unfinished(&folder, contents)?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    sync(&folder)
}

/// Writes a file, over an old one if there is one. What is no regular file, such as a pipe, is written to.
///
/// # Errors
/// What the file system says; then the old file is as it was.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let old = fs::metadata(path).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        return OpenOptions::new().write(true).open(path)?.write_all(contents);
    }
    // What a symbolic link leads to is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = folder_of(&path);
    let file = unfinished(&folder, contents)?;
    if let Some(old) = old {
        file.as_file().set_permissions(old.permissions())?;
    }
    file.persist(&path).map_err(|error| error.error)?;
    sync(&folder)
}

/// A new file in the place of what has this name. Whatever else leads to the old one, such as a link, leads to what it did.
///
/// # Errors
/// What the file system says.
pub fn fresh(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// The contents of a file that is at most `most` bytes long.
///
/// # Errors
/// If it is longer, or what the file system says.
pub fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > most {
        return Err(too_long(length, most));
    }
    up_to(file, most)
}

/// The same of whatever gives bytes.
///
/// # Errors
/// As of [`read_up_to`].
pub fn up_to(from: impl io::Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        length if length > most => Err(too_long(length, most)),
        _ => Ok(bytes),
    }
}

fn too_long(length: u64, most: u64) -> io::Error {
    let why = format!("it has {length} bytes or more, and at most {most} are read");
    io::Error::new(io::ErrorKind::FileTooLarge, why)
}

/// Whether [`replace`] can write this file, as far as one can tell without doing it.
///
/// # Errors
/// Why not.
pub fn check(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if path.file_name().is_none() {
                return Err(error);
            }
            probe(&folder_of(path))
        }
        Err(error) => Err(error),
        Ok(old) if old.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        // Opening a pipe waits for its reader.
        Ok(old) if old.file_type().is_fifo() => Ok(()),
        Ok(old) => {
            OpenOptions::new().write(true).open(path)?;
            if old.is_file() { probe(&folder_of(&fs::canonicalize(path)?)) } else { Ok(()) }
        }
    }
}

/// Whether files can be made in this folder, which need not exist yet; it is not made by this.
///
/// # Errors
/// Why not.
pub fn check_folder(folder: &Path) -> io::Result<()> {
    for part in folder.ancestors() {
        let part = if part.as_os_str().is_empty() { Path::new(".") } else { part };
        match fs::metadata(part) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(there) if !there.is_dir() => return Err(io::ErrorKind::NotADirectory.into()),
            Ok(_) => return probe(part),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes an empty file in a folder, and takes it away again.
fn probe(folder: &Path) -> io::Result<()> {
    temporary(folder)?.close()
}

fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    // As for any other file, what the user's mask leaves of this.
    let permissions = Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(".unfinished-").permissions(permissions).tempfile_in(folder)
}

fn unfinished(folder: &Path, contents: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = temporary(folder)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// Makes a new name in a folder durable. A folder that may not be read cannot be flushed; its files are there all the same.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder).map_or(Ok(()), |folder| folder.sync_all())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Goal: whoever reads a file while it is written sees the old one or the new one. Method: a reader that has it open keeps
    /// the old one whole, a second name keeps its own, and nothing unfinished is left.
    #[test]
    fn a_file_is_replaced_and_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, second) = (folder.path().join("file"), folder.path().join("second"));
        replace(&path, b"old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        fs::hard_link(&path, &second).unwrap();
        replace(&path, b"newer").unwrap();
        assert_eq!(fs::read(&second).unwrap(), b"old");
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        symlink("file", &link).unwrap();
        replace(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
    }

    #[test]
    fn a_new_file_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        create(&path, b"first").unwrap();
        assert_eq!(create(&path, b"second").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// Goal: what cannot be written is known before. Method: paths that not even root can write, and some that anybody can;
    /// asking leaves nothing behind.
    #[test]
    fn what_cannot_be_written_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        let kind = |result: io::Result<()>| result.map_err(|error| error.kind());
        assert_eq!(kind(check_folder(&file)), Err(ErrorKind::NotADirectory));
        assert_eq!(kind(check_folder(&file.join("below"))), Err(ErrorKind::NotADirectory));
        assert!(check_folder(Path::new("/proc/none/below")).is_err());
        check_folder(&folder.path().join("new/and/newer")).unwrap();
        check_folder(Path::new("not-there-yet")).unwrap();
        assert_eq!(kind(check(folder.path())), Err(ErrorKind::IsADirectory));
        assert_eq!(kind(check(&file.join("below"))), Err(ErrorKind::NotADirectory));
        assert_eq!(kind(check(&folder.path().join("none/x"))), Err(ErrorKind::NotFound));
        assert_eq!(kind(check(Path::new(""))), Err(ErrorKind::NotFound));
        check(&file).unwrap();
        check(&folder.path().join("new")).unwrap();
        check(Path::new("/dev/null")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_device_is_written_to() {
        replace(Path::new("/dev/null"), b"x").unwrap();
        let full = replace(Path::new("/dev/full"), b"x").unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }
}
