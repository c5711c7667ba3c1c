//! Opening an image, in the order in which its fields can be trusted: header, features, then repair where it is due.

use std::sync::Arc;

use crate::check;
use crate::crypt::Passphrase;
use crate::data_file::DataFile;
use crate::error::OpenError;
use crate::files::{Files, failed, in_data};
use crate::format::FormatError;
use crate::format::extension;
use crate::format::feature::{Compatible, Incompatible};
use crate::format::header::Header;
use crate::image::Image;
use crate::layer::{Below, Layer};
use crate::load::{HeaderRead, check_alignment, check_supported, read_header};
use crate::mutant::mutant;
use crate::options::{OpenOptions, Repair};
use crate::state::State;
use crate::unlock::unlock;
use storage::{Limits, Storage};

impl<S: Storage> Image<S> {
    /// Opens the image on `storage`. For writing, a dirty image is repaired first; read-only, nothing is ever written.
    ///
    /// An image that names a backing file is refused: what a file says is no reason to open another one. See [`Image::open_over`] and
    /// [`open_chain`](crate::open_chain()).
    ///
    /// # Errors
    /// See [`OpenError`]. The storage is dropped with the error; keep a clone or reference where that matters.
    pub async fn open(storage: S, options: OpenOptions) -> Result<Self, OpenError> {
        Self::open_files(Files { image: storage, data: None }, None, None, options).await
    }

    /// The same for an image that names a backing file, which is `layer`.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::Option`] if the image names none.
    pub async fn open_over(
        storage: S,
        layer: Arc<dyn Layer>,
        options: OpenOptions,
    ) -> Result<Self, OpenError> {
        let files = Files { image: storage, data: None };
        Self::open_files(files, Some(Below::new(layer)), None, options).await
    }

    /// The same for an image with an external data file, which is `data`, over the layer that it names, if it names one. What it calls its
    /// data file says [`DataFile::of`]; whether to open a file of that name is the caller's to decide.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::Option`] if the image has no data file, [`OpenError::DataFileTooShort`] if it ends before the disk.
    pub async fn open_with_data(
        storage: S,
        data: S,
        layer: Option<Arc<dyn Layer>>,
        options: OpenOptions,
    ) -> Result<Self, OpenError> {
        let files = Files { image: storage, data: Some(data) };
        Self::open_files(files, layer.map(Below::new), None, options).await
    }

    /// The same for an image whose guest data is encrypted, in `data` if it has an external data file, over the layer that it names, if it
    /// names one. An image from before LUKS opens with
    /// any passphrase; with a wrong one the guest reads what nobody wrote.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::WrongPassphrase`], [`OpenError::Option`] if the image is not encrypted, and [`OpenError::Unsupported`]
    /// for a cipher that is not known or key slots that take more than 2^26 rounds of hashing.
    pub async fn open_encrypted(
        storage: S,
        passphrase: &Passphrase,
        data: Option<S>,
        layer: Option<Arc<dyn Layer>>,
        options: OpenOptions,
    ) -> Result<Self, OpenError> {
        let files = Files { image: storage, data };
        Self::open_files(files, layer.map(Below::new), Some(passphrase), options).await
    }

    pub(crate) async fn open_files(
        files: Files<S>,
        below: Option<Below>,
        passphrase: Option<&Passphrase>,
        options: OpenOptions,
    ) -> Result<Self, OpenError> {
        check_options(&options)?;
        let storage = &files.image;
        let data_writable = files.data.as_ref().is_none_or(S::writable);
        if options.writable && !(storage.writable() && data_writable) {
            return Err(OpenError::ReadOnlyStorage);
        }
        let mut read = read_header(storage).await?;
        check_supported(&read.header)?;
        let data_length = check_data_file(&files, &read.header).await?;
        match (read.header.backing_name(), &below) {
            (Some(name), None) => {
                let name = String::from_utf8_lossy(name);
                return Err(OpenError::Option(format!(
                    "it is over the backing file {name:?}, which has to be opened first"
                )));
            }
            (None, Some(_)) => {
                return Err(OpenError::Option("it names no backing file to be over".into()));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        let lazy = match options.lazy_refcounts {
            Some(true) if read.header.version < 3 => {
                let version = read.header.version;
                return Err(OpenError::Option(format!(
                    "lazy refcounts need version 3 of the format; the image has version {version}"
                )));
            }
            Some(lazy) => lazy,
            None => read.header.compatible.contains(Compatible::LAZY_REFCOUNTS),
        };
        check_tables(&read.header, read.length)?;
        let cipher = unlock(storage, &read.header, passphrase).await?;
        if options.writable {
            prepare(storage, &options, &mut read).await?;
        }
        let limits = files.limits();
        let shown = below.as_ref().map_or(0, |below| below.size);
        let mut state = State::new(read, &options, &limits, lazy, shown);
        state.data_length = data_length;
        Ok(Self::new(files, below, cipher.map(Arc::new), options, state))
    }
}

/// What has to be done before an image may change: its marks heeded, promises that nobody keeps from now on taken back, and a
/// dirty image repaired.
async fn prepare<S: Storage>(
    storage: &S,
    options: &OpenOptions,
    read: &mut HeaderRead,
) -> Result<(), OpenError> {
    let corrupt = read.header.incompatible.contains(Incompatible::CORRUPT);
    if mutant!(options.rules, CorruptBitIgnored => false; corrupt) {
        return Err(OpenError::MarkedCorrupt);
    }
    let dirty = read.header.incompatible.contains(Incompatible::DIRTY);
    if dirty {
        let report = check::repair_for_writing(storage, options.rules).await?;
        if !report.is_writable() {
            return Err(OpenError::Unrepairable(Box::new(report)));
        }
        mutant!(options.rules, HeaderOfBeforeRepair => (); *read = read_header(storage).await?);
    } else if !read.length.is_multiple_of(8) {
        let report = check::check(storage, Repair::None, options.rules).await?;
        if let Some(problem) = report.cut_entry() {
            return Err(OpenError::CutShort(problem.clone()));
        }
    }
    check::give_up_autoclear(storage, read, options.rules).await?;
    Ok(())
}

/// Checks that there is an external data file if the image has one, that it is long enough, and that both files can be written together.
/// Returns its length in bytes, 0 if there is none.
async fn check_data_file<S: Storage>(files: &Files<S>, header: &Header) -> Result<u64, OpenError> {
    let data = match (DataFile::of_header(header), &files.data) {
        (None, None) => return Ok(0),
        (Some(said), None) => {
            let name = String::from_utf8_lossy(&said.name);
            return Err(OpenError::Option(format!(
                "it has the external data file {name:?} (incompatible feature bit 2), which has to be opened first"
            )));
        }
        (None, Some(_)) => {
            return Err(OpenError::Option("it has no external data file".into()));
        }
        (Some(_), Some(data)) => data,
    };
    let fault =
        |limits: Limits| limits.fault().or_else(|| check_alignment(&limits, header.cluster_bits));
    if let Some(why) = fault(data.limits()).or_else(|| fault(files.limits())) {
        return Err(OpenError::Unsupported(why));
    }
    // What somebody left in flight must not land under what is written from now on.
    let failed = |action| move |source| OpenError::Io(failed(action, in_data(0), source));
    data.settle().await.map_err(failed("waiting for what was left in flight"))?;
    let length = data.len().await.map_err(failed("asking for the length"))?;
    let size = header.size;
    if length < size {
        return Err(OpenError::DataFileTooShort { length, size });
    }
    Ok(length)
}

fn check_options(options: &OpenOptions) -> Result<(), OpenError> {
    let page_size = options.page_size;
    if !page_size.is_power_of_two() || !(512..=65_536).contains(&page_size) {
        return Err(OpenError::Option(format!(
            "page size {page_size} is not a power of two from 512 to 65536"
        )));
    }
    if options.cache_pages == Some(0) {
        return Err(OpenError::Option("a cache of 0 pages".into()));
    }
    Ok(())
}

/// Checks that what the header points to lies inside the file.
fn check_tables(header: &Header, length: u64) -> Result<(), OpenError> {
    let cluster_size = header.cluster_size();
    let end = length.div_ceil(cluster_size) * cluster_size;
    let keys = header.keys();
    if keys.end > end {
        return Err(OpenError::Format(FormatError::BadExtension {
            kind: extension::LUKS,
            offset: header.extension(extension::LUKS).map_or(0, |(offset, _)| offset),
            value: keys.start,
            rule: format!(
                "puts the encryption header's end at {}, past the end of the file, {length}",
                keys.end
            )
            .into(),
        }));
    }
    for (root, bytes) in header.roots() {
        let Some((field, offset)) = root.field() else { continue };
        if bytes.end > end {
            return Err(OpenError::Format(FormatError::BadField {
                field,
                offset,
                value: bytes.start,
                rule: format!(
                    "puts the table's end at {}, past the end of the file, {length}",
                    bytes.end
                )
                .into(),
            }));
        }
    }
    Ok(())
}
