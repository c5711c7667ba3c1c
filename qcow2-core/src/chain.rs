//! An image and all layers below it, each named by the one above.
//!
//! ```text
//!   top image ──names──> image ──names──> image or raw disk
//!   as asked for         read-only        read-only             opened from the top down, put together from the bottom up
//! ```
//!
//! **Invariant.** Nothing is opened because an image says so: every name goes through [`Layers`], which is the caller's.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::backing::{Backing, Format};
use crate::crypt::Passphrase;
use crate::data_file::DataFile;
use crate::error::OpenError;
use crate::files::Files;
use crate::format::header::{CryptMethod, Header};
use crate::format::limits;
use crate::image::Image;
use crate::layer::{Below, Layer, Raw};
use crate::load::read_header;
use crate::options::OpenOptions;
use storage::Storage;

impl Backing {
    /// What the image on `storage` says, if it says anything.
    ///
    /// # Errors
    /// [`OpenError`] if its header cannot be read.
    pub async fn of<S: Storage>(storage: &S) -> Result<Option<Self>, OpenError> {
        Ok(Self::of_header(&read_header(storage).await?.header))
    }

    fn of_header(header: &Header) -> Option<Self> {
        header.backing_name().map(|name| Self {
            name: name.to_vec(),
            format: header.backing_format().map(<[u8]>::to_vec),
        })
    }

    fn known_format(&self) -> Result<Format, OpenError> {
        match self.format.as_deref() {
            Some(b"raw") => Ok(Format::Raw),
            Some(b"qcow2") => Ok(Format::Qcow2),
            Some(_) => Err(OpenError::Unsupported(format!("the backing file {self:?}"))),
            None => Err(OpenError::Option(format!(
                "it is over the backing file {self:?} and does not say of what format that is"
            ))),
        }
    }
}

/// Opens what images name: the caller's policy.
pub trait Layers<S: Storage> {
    /// Opens a layer for reading, or refuses to. `above` are the storages of the images above it, from the top down; the last one names
    /// it.
    fn open(
        &mut self,
        backing: &Backing,
        above: &[S],
    ) -> impl Future<Output = io::Result<S>> + Send;

    /// Opens the external data file of an image, for writing too if that is asked for, or refuses to, which it does unless it says
    /// otherwise. `images` are the storages of the images from the top down; the last one names it.
    fn open_data(
        &mut self,
        said: &DataFile,
        images: &[S],
        writable: bool,
    ) -> impl Future<Output = io::Result<S>> + Send {
        let _ = (said, images, writable);
        std::future::ready(Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "whoever opens the layers opens no data files",
        )))
    }

    /// The passphrase of an encrypted image, the last of `images`, which are the storages of the images from the top down; none, unless it
    /// says otherwise.
    fn passphrase(&mut self, images: &[S]) -> Option<Passphrase> {
        let _ = images;
        None
    }
}

/// Opens the image on `storage` over the layers that it and they name, each opened by `layers` and read-only. A layer may be dirty or
/// marked corrupt: what can be read of it is read.
///
/// # Errors
/// See [`OpenError`]; [`OpenError::Layer`] and [`OpenError::Below`] say which layer it was.
pub async fn open_chain<S: Storage + fmt::Debug>(
    storage: S,
    layers: &mut impl Layers<S>,
    options: OpenOptions,
) -> Result<Image<S>, OpenError> {
    let mut names: Vec<Backing> = Vec::new();
    let mut chain = vec![storage];
    let mut besides: Vec<(Option<S>, Option<Passphrase>)> = Vec::new();
    let mut bottom = Format::Qcow2;
    while bottom == Format::Qcow2 {
        let last = chain.last().expect("the top image is there");
        let header = read_header(last).await.map_err(|error| below(names.last())(error.into()))?;
        let data = match DataFile::of_header(&header.header) {
            None => None,
            Some(said) => {
                // Those below are only read.
                let writable = options.writable && names.is_empty();
                let opened = layers.open_data(&said, &chain, writable).await;
                let opened = opened.map_err(|source| {
                    let name = String::from_utf8_lossy(&said.name).into();
                    below(names.last())(OpenError::DataFile { name, source })
                })?;
                Some(opened)
            }
        };
        let passphrase = match header.header.crypt_method {
            CryptMethod::None => None,
            CryptMethod::Aes | CryptMethod::Luks => layers.passphrase(&chain),
        };
        besides.push((data, passphrase));
        let Some(backing) = Backing::of_header(&header.header) else { break };
        if chain.len() > limits::LAYERS {
            let most = limits::LAYERS;
            return Err(OpenError::Unsupported(format!("a chain of more than {most} layers")));
        }
        bottom = backing.known_format().map_err(below(names.last()))?;
        let opened = layers.open(&backing, &chain).await;
        let opened = opened.map_err(|source| OpenError::Layer { backing: backing.clone(), source });
        chain.push(opened.map_err(below(names.last()))?);
        names.push(backing);
    }
    let mut layer: Option<Arc<dyn Layer>> = None;
    loop {
        let storage = chain.pop().expect("the loop ends with the top image");
        let name = names.pop();
        if layer.is_none() && bottom == Format::Raw {
            let raw = Raw::new(storage).await.map_err(OpenError::Io);
            layer = Some(Arc::new(raw.map_err(below(name.as_ref()))?));
            continue;
        }
        let options = if name.is_some() { OpenOptions::read_only() } else { options };
        let (data, passphrase) = besides.pop().expect("each image has something or nothing");
        let files = Files { image: storage, data };
        let under = layer.map(Below::new);
        let image = Image::open_files(files, under, passphrase.as_ref(), options).await;
        let image = image.map_err(below(name.as_ref()))?;
        if name.is_none() {
            return Ok(image);
        }
        layer = Some(Arc::new(image));
    }
}

/// Says in which layer an error was, if it was not in the top image.
fn below(name: Option<&Backing>) -> impl FnOnce(OpenError) -> OpenError + use<> {
    let name = name.cloned();
    move |error| match name {
        Some(backing) => OpenError::Below { backing, error: Box::new(error) },
        None => error,
    }
}
