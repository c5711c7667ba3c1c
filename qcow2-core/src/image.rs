//! An open image: the state, the storage, and the few steps through which everything touches both.
//!
//! Every operation alternates between *deciding* under the lock ([`Image::with`], no I/O) and *awaiting* one storage
//! operation (no lock). What a decision needs from the storage it asks for by failing with [`Stop::Load`]; the decision is
//! then taken again from the start.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::crypt::Cipher;
use crate::error::IoError;
use crate::files::Files;
use crate::format::feature::Incompatible;
use crate::layer::{Below, Layer};
use crate::options::OpenOptions;
use crate::state::{State, Stop};
use crate::work::Work;
use storage::{Limits, Storage};

/// An open qcow2 image over a storage.
///
/// All requests take `&self` and may run at once. Dropping a request's future leaves its range with old data, new
/// data or both, unit by unit; at worst clusters leak until repair. Dropping the image does no I/O: without
/// [`Image::close`] it is as if the power had failed, except that nothing unflushed is taken back.
#[derive(Debug)]
pub struct Image<S> {
    pub(crate) files: Files<S>,
    /// What its guest reads where the image says nothing.
    pub(crate) below: Option<Below>,
    /// What guest data is enciphered with, if it is.
    pub(crate) cipher: Option<Arc<Cipher>>,
    pub(crate) limits: Limits,
    pub(crate) options: OpenOptions,
    /// Bytes of a cluster and of a metadata page.
    pub(crate) cluster_size: u64,
    pub(crate) page_size: u64,
    /// Whether it is known which clusters hold metadata.
    pub(crate) knows_metadata: AtomicBool,
    state: Mutex<State>,
}

/// What an image says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Size of the guest disk in bytes.
    pub virtual_size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Whether refcounts are lazy in this session.
    pub lazy_refcounts: bool,
    /// Whether the dirty bit is set.
    pub dirty: bool,
    /// Whether guest data is encrypted.
    pub encrypted: bool,
}

impl<S: Storage> Image<S> {
    pub(crate) fn new(
        files: Files<S>,
        below: Option<Below>,
        cipher: Option<Arc<Cipher>>,
        options: OpenOptions,
        state: State,
    ) -> Self {
        let limits = files.limits();
        let (cluster_size, page_size) = (state.cluster_size(), state.cache.page_size());
        let knows_metadata = AtomicBool::new(false);
        let state = Mutex::new(state);
        Self {
            files,
            below,
            cipher,
            limits,
            options,
            cluster_size,
            page_size,
            knows_metadata,
            state,
        }
    }

    /// Geometry and flags as of now.
    pub fn info(&self) -> ImageInfo {
        self.now(|state| ImageInfo {
            virtual_size: state.header.size,
            cluster_size: state.cluster_size(),
            lazy_refcounts: state.lazy,
            dirty: state.header.incompatible.contains(Incompatible::DIRTY),
            encrypted: self.cipher.is_some(),
        })
    }

    /// What has been done since the image was opened.
    pub fn work(&self) -> Work {
        self.now(|state| state.work)
    }

    /// The storage under the image.
    pub fn storage(&self) -> &S {
        &self.files.image
    }

    /// The storage of its external data file, if it has one.
    pub fn data_file(&self) -> Option<&S> {
        self.files.data.as_ref()
    }

    /// The layer below, if there is one.
    pub fn below(&self) -> Option<&dyn Layer> {
        self.below.as_ref().map(|below| &*below.layer)
    }

    /// Gives the storage back without any I/O, as a crash would.
    pub fn abandon(self) -> S {
        self.files.image
    }

    /// A copy of the image on `storage`, and on `data` if it has an external data file, which hold copies of what is under this one. From
    /// then on each goes its own way.
    /// None while a request is in flight, or while one that was dropped or failed has left something that must settle first: what
    /// is in flight is in the storage too, and has no copy.
    #[cfg(feature = "sabotage")]
    pub fn fork<T: Storage>(&self, storage: T, data: Option<T>) -> Option<Image<T>> {
        // No step of the image: it is in the state of one of which there is no fork.
        let state = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.is_idle().then(|| state.clone())?
        };
        assert_eq!(storage.limits(), self.files.image.limits(), "the storage is a copy");
        assert_eq!(data.is_some(), self.files.data.is_some(), "both files are copied");
        let files = Files { image: storage, data };
        let (below, cipher) = (self.below.clone(), self.cipher.clone());
        let fork = Image::new(files, below, cipher, self.options, state);
        let knows_metadata = self.knows_metadata.load(Ordering::Acquire);
        fork.knows_metadata.store(knows_metadata, Ordering::Release);
        Some(fork)
    }

    /// The one way into the state: a scheduling point, then a step without I/O.
    pub(crate) async fn with<R>(&self, step: impl FnOnce(&mut State) -> R) -> R {
        self.files.image.pause().await;
        self.now(step)
    }

    /// A step into the state where no await is possible (polling, dropping).
    pub(crate) fn now<R>(&self, step: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.work.looked_at;
        let result = step(&mut state);
        state.end_step(before);
        result
    }

    /// Takes a decision, loading the pages that it asks for. `step` is called again after each and must not have changed
    /// anything when it fails.
    ///
    /// A step that finds what only a damaged image can hold where something is about to be written marks the image corrupt first.
    pub(crate) async fn decide<R>(
        &self,
        step: impl FnMut(&mut State) -> Result<R, Stop>,
    ) -> Result<R, IoError> {
        let decided = self.decide_with(true, step).await;
        if let Err(error @ IoError::InUse { .. }) = &decided {
            Box::pin(self.mark_corrupt(error)).await;
        }
        decided
    }

    /// The same for a step that changes nothing: it goes on where dirty pages fill the cache and cannot be written.
    pub(crate) async fn look<R>(
        &self,
        step: impl FnMut(&mut State) -> Result<R, Stop>,
    ) -> Result<R, IoError> {
        self.decide_with(false, step).await
    }

    async fn decide_with<R>(
        &self,
        insists_on_room: bool,
        mut step: impl FnMut(&mut State) -> Result<R, Stop>,
    ) -> Result<R, IoError> {
        loop {
            match self.with(&mut step).await {
                Ok(result) => return Ok(result),
                Err(Stop::Error(error)) => return Err(error),
                // What seldom happens is boxed, so that it does not make every request's future large: futures get moved.
                Err(stop) => Box::pin(self.provide(stop, insists_on_room)).await?,
            }
        }
    }

    /// Checks that the image may be changed at all, and learns before the first change what must not be written over. The rest of
    /// the check is [`State::accepts_requests`].
    pub(crate) async fn begin_change(&self) -> Result<(), IoError> {
        if !self.options.writable {
            return Err(IoError::ReadOnly);
        }
        if self.knows_metadata.load(Ordering::Acquire) {
            return Ok(());
        }
        self.now(|state| state.accepts_requests())?;
        Box::pin(self.learn_metadata()).await?;
        self.knows_metadata.store(true, Ordering::Release);
        Ok(())
    }
}
