//! Layers that are files: which of them an image may name.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::backing::Backing;
use crate::chain::Layers;
use crate::crypt::Passphrase;
use crate::data_file::DataFile;
use storage::file::{Access, FileStorage};

/// Files in one directory and those below it. A name is looked up from where the file lies that says it, with symbolic links resolved.
///
/// What is outside the directory is refused, and so is a file that is in the chain already, and a name that is no path: one with a
/// protocol in front (`nbd:..`, `json:..`), as QEMU knows them.
#[derive(Clone, Debug)]
pub struct FileLayers {
    directory: PathBuf,
    passphrase: Option<Passphrase>,
}

impl FileLayers {
    /// Those in `directory`.
    ///
    /// # Errors
    /// What looking for it met.
    pub fn within(directory: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self { directory: directory.as_ref().canonicalize()?, passphrase: None })
    }

    /// With this passphrase for every image of them that is encrypted.
    #[must_use]
    pub fn passphrase(mut self, passphrase: Passphrase) -> Self {
        self.passphrase = Some(passphrase);
        self
    }

    /// The file of that name, which the last of these says.
    fn resolve(&self, name: &[u8], above: &[FileStorage]) -> io::Result<PathBuf> {
        let refused = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        let name = Path::new(OsStr::from_bytes(name));
        let first = name.as_os_str().as_bytes().split(|&byte| byte == b'/').next();
        if first.is_some_and(|first| first.contains(&b':')) {
            let name = name.display();
            return refused(format!("the name {name:?} has a protocol in front"));
        }
        let from = above.last().expect("somebody names it").path().canonicalize()?;
        let path = from.parent().unwrap_or(&from).join(name).canonicalize()?;
        if !path.starts_with(&self.directory) {
            let (path, directory) = (path.display(), self.directory.display());
            return refused(format!("{path} is not in {directory}"));
        }
        let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino()));
        let wanted = identity(&path)?;
        for storage in above {
            if identity(storage.path())? == wanted {
                return refused(format!("{} is one of the images above it", path.display()));
            }
        }
        Ok(path)
    }
}

impl Layers<FileStorage> for FileLayers {
    async fn open(&mut self, backing: &Backing, above: &[FileStorage]) -> io::Result<FileStorage> {
        let path = self.resolve(&backing.name, above)?;
        FileStorage::open(path, Access::ReadOnly).map_err(io::Error::other)
    }

    async fn open_data(
        &mut self,
        said: &DataFile,
        images: &[FileStorage],
        writable: bool,
    ) -> io::Result<FileStorage> {
        if said.name.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the image does not name it"));
        }
        let path = self.resolve(&said.name, images)?;
        let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
        FileStorage::open(path, access).map_err(io::Error::other)
    }

    fn passphrase(&mut self, _: &[FileStorage]) -> Option<Passphrase> {
        self.passphrase.clone()
    }
}
