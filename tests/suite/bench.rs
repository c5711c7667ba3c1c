//! A directory with one image in it, for us and for QEMU.

use std::fs;
use std::path::{Path, PathBuf};

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::format::Header;
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::{CheckReport, CreateOptions, FileLayers, OpenOptions, Passphrase, Repair};
use qcow2_crashtest::qemu::{self, QemuImage};
use tempfile::TempDir;

use crate::common::{Expected, assert_clean};

/// A directory with one image in it.
pub(crate) struct Bench {
    pub(crate) directory: TempDir,
    image: PathBuf,
    /// What the image is encrypted with, if it is.
    pub(crate) passphrase: Option<&'static str>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image.qcow2");
        Self { directory, image, passphrase: None }
    }

    pub(crate) fn with(bytes: &[u8]) -> Self {
        let bench = Self::new();
        fs::write(&bench.image, bytes).unwrap();
        bench
    }

    pub(crate) fn path(&self) -> &Path {
        &self.image
    }

    /// The image as QEMU is told of it.
    pub(crate) fn target(&self) -> QemuImage<'_> {
        QemuImage { path: &self.image, passphrase: self.passphrase }
    }

    pub(crate) fn create(&self, options: &CreateOptions) -> FileStorage {
        let storage = FileStorage::create(&self.image, Existing::Refuse).unwrap();
        create(&storage, options).unwrap();
        storage
    }

    pub(crate) fn open(&self, options: OpenOptions) -> Image<FileStorage> {
        let access = if options.writable { Access::ReadWrite } else { Access::ReadOnly };
        let storage = FileStorage::open(&self.image, access).unwrap();
        let mut layers = FileLayers::within(self.directory.path()).unwrap();
        if let Some(passphrase) = self.passphrase {
            layers = layers.passphrase(Passphrase::new(passphrase));
        }
        Image::open_chain(storage, &mut layers, options).unwrap()
    }

    pub(crate) fn check(&self, repair: Repair) -> CheckReport {
        let access = if repair == Repair::None { Access::ReadOnly } else { Access::ReadWrite };
        check(&FileStorage::open(&self.image, access).unwrap(), repair).unwrap()
    }

    pub(crate) fn header(&self) -> Header {
        Header::parse(&fs::read(&self.image).unwrap()).unwrap()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.header().incompatible.bits() & 1 == 1
    }

    /// Both checks find nothing, and both implementations read what is expected.
    #[track_caller]
    pub(crate) fn assert_sound(&self, expected: &Expected) {
        assert_clean(&self.check(Repair::None));
        let theirs = qemu::check(self.target()).unwrap();
        assert_eq!((theirs.code, theirs.check_errors), (0, 0), "{theirs:?}");
        self.assert_reads(expected);
    }

    #[track_caller]
    pub(crate) fn assert_reads(&self, expected: &Expected) {
        let raw = self.directory.path().join("expected.raw");
        fs::write(&raw, &expected.bytes).unwrap();
        qemu::compare(self.target(), &raw).unwrap();
        expected.assert_read_from(&self.open(OpenOptions::read_only()));
    }

    pub(crate) fn patch(&self, at: usize, bytes: &[u8]) {
        let mut file = fs::read(&self.image).unwrap();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&self.image, file).unwrap();
    }
}
