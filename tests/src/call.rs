//! Every call of a subject goes through here: it is given its storage, and what it panics with is caught ([`panics`]).
//!
//! [`panics`]: crate::panics

use faultfs::chooser::Chooser;
use faultfs::direct::Direct;
use faultfs::exec::SimStorage;
use model::judge::{Extent, Statement};
use model::op::{Durability, Preallocation};
use qcow2_core::storage::{AnyStorage, IoBuf, Storage};

use crate::any::{AnyImage, AnySubject};
use crate::panics::{Caught, call};
use crate::subject::{Mend, Refusal, Session, Subject, SubjectImage};

/// What a call says that ended in a panic; the panic is what counts.
const PANICKED: &str = "it panicked";

/// A storage of the harness, which may have an external data file on the same disk.
pub trait Files: Storage {
    /// The data file, if there is one.
    fn data_file(&self) -> Option<Self>
    where
        Self: Sized;
}

impl Files for SimStorage {
    fn data_file(&self) -> Option<Self> {
        self.second()
    }
}

impl<C: Chooser + Send + 'static> Files for Direct<C> {
    fn data_file(&self) -> Option<Self> {
        self.second()
    }
}

/// Opens the image on a storage of the harness, with its data file if it has one.
///
/// # Errors
/// As the subject says.
pub async fn open<S: Files>(
    subject: &impl Subject,
    storage: S,
    session: Session,
) -> Result<Opened, Refusal> {
    let subject = &AnySubject::of(subject);
    let data = storage.data_file().map(AnyStorage::new);
    let storage = AnyStorage::new(storage);
    let opened = match data {
        Some(data) => Caught::new(subject.open_with_data(storage, data, session)).await,
        None => Caught::new(subject.open(storage, session)).await,
    };
    opened.unwrap_or_else(panicked).map(|image| Opened(Some(image)))
}

/// Checks and repairs the image on a storage.
///
/// # Errors
/// As the subject says.
pub async fn repair(subject: &impl Subject, storage: impl Storage) -> Result<Statement, Refusal> {
    let subject = &AnySubject::of(subject);
    Caught::new(subject.repair(AnyStorage::new(storage))).await.unwrap_or_else(panicked)
}

/// Checks the image on a storage, and changes no more than `mend` says; none if the subject has no such call.
///
/// # Errors
/// As the subject says.
pub async fn check(
    subject: &impl Subject,
    storage: impl Storage,
    mend: Mend,
) -> Option<Result<Statement, Refusal>> {
    let subject = &AnySubject::of(subject);
    let checked = Caught::new(subject.check(AnyStorage::new(storage), mend)).await;
    checked.unwrap_or_else(|| Some(panicked()))
}

fn panicked<T>() -> Result<T, Refusal> {
    Err(Refusal::Failed(PANICKED.to_owned()))
}

/// An open image of a subject; none once it is closed.
#[derive(Debug)]
pub struct Opened(Option<AnyImage>);

impl Opened {
    fn image(&self) -> &AnyImage {
        self.0.as_ref().expect("nobody has it who has closed it")
    }

    /// A copy of it on `storage`, which is a copy of what it is on; none if the subject cannot.
    pub fn fork(&self, subject: &impl Subject, storage: impl Files) -> Option<Self> {
        let subject = &AnySubject::of(subject);
        let data = storage.data_file().map(AnyStorage::new);
        let storage = AnyStorage::new(storage);
        let fork = call(|| subject.fork(self.image(), storage, data)).flatten()?;
        Some(Self(Some(fork)))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(image) = self.0.take() {
            call(|| drop(image));
        }
    }
}

/// What a request came to.
async fn caught<T>(request: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    Caught::new(request).await.unwrap_or_else(|| Err(PANICKED.to_owned()))
}

impl SubjectImage for Opened {
    fn size(&self) -> u64 {
        call(|| self.image().size()).unwrap_or(0)
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, String> {
        caught(self.image().read(offset, buf)).await
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        caught(self.image().write(offset, data, durability)).await
    }

    async fn write_compressed(&self, offset: u64, data: IoBuf) -> Result<(), String> {
        caught(self.image().write_compressed(offset, data)).await
    }

    async fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        caught(self.image().write_zeroes(offset, length, unmap)).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), String> {
        caught(self.image().discard(offset, length)).await
    }

    async fn uncover(&self, offset: u64, length: u64) -> Result<(), String> {
        caught(self.image().uncover(offset, length)).await
    }

    async fn add_passphrase(&self, id: u32) -> Result<(), String> {
        caught(self.image().add_passphrase(id)).await
    }

    async fn remove_passphrase(&self, id: u32) -> Result<(), String> {
        caught(self.image().remove_passphrase(id)).await
    }

    async fn preallocate(
        &self,
        offset: u64,
        length: u64,
        how: Preallocation,
    ) -> Result<(), String> {
        caught(self.image().preallocate(offset, length, how)).await
    }

    async fn flush(&self) -> Result<(), String> {
        caught(self.image().flush()).await
    }

    async fn grow(&self, size: u64) -> Result<(), String> {
        caught(self.image().grow(size)).await
    }

    async fn shrink(&self, size: u64) -> Result<(), String> {
        caught(self.image().shrink(size)).await
    }

    async fn map(&self) -> Result<Vec<Extent>, String> {
        caught(self.image().map()).await
    }

    async fn close(mut self) -> Result<(), String> {
        let image = self.0.take().expect("nobody has it who has closed it");
        caught(image.close()).await
    }
}
