//! Any subject as one type, so that the harness is compiled once, and not for each subject again.
//!
//! Whoever is given a subject from outside makes one of these of it ([`AnySubject::of`]) and hands that on. A call costs a box more.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use model::guest::Promises;
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry, Preallocation};
use qcow2_core::storage::{AnyStorage, IoBuf};

use crate::capabilities::Capabilities;
use crate::subject::{Duties, Mend, Refusal, Session, Subject, SubjectImage};

/// What is going on in a subject; nothing that another thread could go on with.
type Going<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A subject of any type; cheap to clone.
#[derive(Clone)]
pub struct AnySubject {
    erased: Arc<dyn Erased>,
    /// Whether it is held to duties that it does not take on, too.
    by_all: bool,
}

/// An open image of one.
pub struct AnyImage(Box<dyn ErasedImage>);

impl AnySubject {
    /// This subject.
    pub fn of<S: Subject>(subject: &S) -> Self {
        match (subject as &dyn Any).downcast_ref::<Self>() {
            Some(any) => any.clone(),
            None => Self { erased: Arc::new(subject.clone()), by_all: false },
        }
    }

    /// The same, held to [all duties](Duties::all), or to those that it takes on.
    #[must_use]
    pub fn held_to_all(&self, by_all: bool) -> Self {
        Self { by_all, ..self.clone() }
    }
}

impl fmt::Debug for AnySubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnySubject").field(&self.erased.name()).finish()
    }
}

impl fmt::Debug for AnyImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyImage").finish_non_exhaustive()
    }
}

/// [`Subject`] as far as a table of functions goes.
trait Erased: Send + Sync {
    fn name(&self) -> String;
    fn key(&self) -> &'static str;
    fn command(&self) -> &'static str;
    fn source(&self) -> Option<Vec<(String, String)>>;
    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises;
    fn capabilities(&self) -> Capabilities;
    fn duties(&self) -> Duties;
    fn open(&self, storage: AnyStorage, session: Session) -> Going<'_, Result<AnyImage, Refusal>>;
    fn open_with_data(
        &self,
        storage: AnyStorage,
        data: AnyStorage,
        session: Session,
    ) -> Going<'_, Result<AnyImage, Refusal>>;
    fn fork(
        &self,
        image: &dyn Any,
        storage: AnyStorage,
        data: Option<AnyStorage>,
    ) -> Option<AnyImage>;
    fn repair(&self, storage: AnyStorage) -> Going<'_, Result<Statement, Refusal>>;
    fn check(
        &self,
        storage: AnyStorage,
        mend: Mend,
    ) -> Going<'_, Option<Result<Statement, Refusal>>>;
}

impl<S: Subject> Erased for S {
    fn name(&self) -> String {
        Subject::name(self)
    }

    fn key(&self) -> &'static str {
        Subject::key(self)
    }

    fn command(&self) -> &'static str {
        Subject::command(self)
    }

    fn source(&self) -> Option<Vec<(String, String)>> {
        Subject::source(self)
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        Subject::promises(self, geometry, session)
    }

    fn capabilities(&self) -> Capabilities {
        Subject::capabilities(self)
    }

    fn duties(&self) -> Duties {
        Subject::duties(self)
    }

    fn open(&self, storage: AnyStorage, session: Session) -> Going<'_, Result<AnyImage, Refusal>> {
        let opening = Subject::open(self, storage, session);
        Box::pin(async { opening.await.map(AnyImage::new) })
    }

    fn open_with_data(
        &self,
        storage: AnyStorage,
        data: AnyStorage,
        session: Session,
    ) -> Going<'_, Result<AnyImage, Refusal>> {
        let opening = Subject::open_with_data(self, storage, data, session);
        Box::pin(async { opening.await.map(AnyImage::new) })
    }

    fn fork(
        &self,
        image: &dyn Any,
        storage: AnyStorage,
        data: Option<AnyStorage>,
    ) -> Option<AnyImage> {
        let image = image.downcast_ref().expect("it is an image of this subject");
        Subject::fork(self, image, storage, data).map(AnyImage::new)
    }

    fn repair(&self, storage: AnyStorage) -> Going<'_, Result<Statement, Refusal>> {
        Box::pin(Subject::repair(self, storage))
    }

    fn check(
        &self,
        storage: AnyStorage,
        mend: Mend,
    ) -> Going<'_, Option<Result<Statement, Refusal>>> {
        Box::pin(Subject::check(self, storage, mend))
    }
}

impl Subject for AnySubject {
    type Image = AnyImage;

    fn name(&self) -> String {
        self.erased.name()
    }

    fn key(&self) -> &'static str {
        self.erased.key()
    }

    fn command(&self) -> &'static str {
        self.erased.command()
    }

    fn source(&self) -> Option<Vec<(String, String)>> {
        self.erased.source()
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        self.erased.promises(geometry, session)
    }

    fn capabilities(&self) -> Capabilities {
        self.erased.capabilities()
    }

    fn duties(&self) -> Duties {
        let own = self.erased.duties();
        if self.by_all { own.all() } else { own }
    }

    fn open(
        &self,
        storage: AnyStorage,
        session: Session,
    ) -> impl Future<Output = Result<AnyImage, Refusal>> {
        self.erased.open(storage, session)
    }

    fn open_with_data(
        &self,
        storage: AnyStorage,
        data: AnyStorage,
        session: Session,
    ) -> impl Future<Output = Result<AnyImage, Refusal>> {
        self.erased.open_with_data(storage, data, session)
    }

    fn fork(
        &self,
        image: &AnyImage,
        storage: AnyStorage,
        data: Option<AnyStorage>,
    ) -> Option<AnyImage> {
        self.erased.fork(image.0.as_any(), storage, data)
    }

    fn repair(&self, storage: AnyStorage) -> impl Future<Output = Result<Statement, Refusal>> {
        self.erased.repair(storage)
    }

    fn check(
        &self,
        storage: AnyStorage,
        mend: Mend,
    ) -> impl Future<Output = Option<Result<Statement, Refusal>>> {
        self.erased.check(storage, mend)
    }
}

/// [`SubjectImage`] as far as a table of functions goes.
trait ErasedImage: Any {
    fn as_any(&self) -> &dyn Any;
    fn size(&self) -> u64;
    fn read(&self, offset: u64, buf: IoBuf) -> Going<'_, Result<IoBuf, String>>;
    fn write(
        &self,
        offset: u64,
        data: IoBuf,
        durability: Durability,
    ) -> Going<'_, Result<(), String>>;
    fn write_compressed(&self, offset: u64, data: IoBuf) -> Going<'_, Result<(), String>>;
    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Going<'_, Result<(), String>>;
    fn discard(&self, offset: u64, length: u64) -> Going<'_, Result<(), String>>;
    fn uncover(&self, offset: u64, length: u64) -> Going<'_, Result<(), String>>;
    fn add_passphrase(&self, id: u32) -> Going<'_, Result<(), String>>;
    fn remove_passphrase(&self, id: u32) -> Going<'_, Result<(), String>>;
    fn preallocate(
        &self,
        offset: u64,
        length: u64,
        how: Preallocation,
    ) -> Going<'_, Result<(), String>>;
    fn flush(&self) -> Going<'_, Result<(), String>>;
    fn grow(&self, size: u64) -> Going<'_, Result<(), String>>;
    fn shrink(&self, size: u64) -> Going<'_, Result<(), String>>;
    fn map(&self) -> Going<'_, Result<Vec<Extent>, String>>;
    fn close(self: Box<Self>) -> Going<'static, Result<(), String>>;
}

impl<I: SubjectImage> ErasedImage for I {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn size(&self) -> u64 {
        SubjectImage::size(self)
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Going<'_, Result<IoBuf, String>> {
        Box::pin(SubjectImage::read(self, offset, buf))
    }

    fn write(
        &self,
        offset: u64,
        data: IoBuf,
        durability: Durability,
    ) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::write(self, offset, data, durability))
    }

    fn write_compressed(&self, offset: u64, data: IoBuf) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::write_compressed(self, offset, data))
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::write_zeroes(self, offset, length, unmap))
    }

    fn discard(&self, offset: u64, length: u64) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::discard(self, offset, length))
    }

    fn uncover(&self, offset: u64, length: u64) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::uncover(self, offset, length))
    }

    fn add_passphrase(&self, id: u32) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::add_passphrase(self, id))
    }

    fn remove_passphrase(&self, id: u32) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::remove_passphrase(self, id))
    }

    fn preallocate(
        &self,
        offset: u64,
        length: u64,
        how: Preallocation,
    ) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::preallocate(self, offset, length, how))
    }

    fn flush(&self) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::flush(self))
    }

    fn grow(&self, size: u64) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::grow(self, size))
    }

    fn shrink(&self, size: u64) -> Going<'_, Result<(), String>> {
        Box::pin(SubjectImage::shrink(self, size))
    }

    fn map(&self) -> Going<'_, Result<Vec<Extent>, String>> {
        Box::pin(SubjectImage::map(self))
    }

    fn close(self: Box<Self>) -> Going<'static, Result<(), String>> {
        Box::pin(SubjectImage::close(*self))
    }
}

impl AnyImage {
    fn new(image: impl SubjectImage) -> Self {
        Self(Box::new(image))
    }
}

impl SubjectImage for AnyImage {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> impl Future<Output = Result<IoBuf, String>> {
        self.0.read(offset, buf)
    }

    fn write(
        &self,
        offset: u64,
        data: IoBuf,
        durability: Durability,
    ) -> impl Future<Output = Result<(), String>> {
        self.0.write(offset, data, durability)
    }

    fn write_compressed(
        &self,
        offset: u64,
        data: IoBuf,
    ) -> impl Future<Output = Result<(), String>> {
        self.0.write_compressed(offset, data)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        unmap: bool,
    ) -> impl Future<Output = Result<(), String>> {
        self.0.write_zeroes(offset, length, unmap)
    }

    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = Result<(), String>> {
        self.0.discard(offset, length)
    }

    fn uncover(&self, offset: u64, length: u64) -> impl Future<Output = Result<(), String>> {
        self.0.uncover(offset, length)
    }

    fn add_passphrase(&self, id: u32) -> impl Future<Output = Result<(), String>> {
        self.0.add_passphrase(id)
    }

    fn remove_passphrase(&self, id: u32) -> impl Future<Output = Result<(), String>> {
        self.0.remove_passphrase(id)
    }

    fn preallocate(
        &self,
        offset: u64,
        length: u64,
        how: Preallocation,
    ) -> impl Future<Output = Result<(), String>> {
        self.0.preallocate(offset, length, how)
    }

    fn flush(&self) -> impl Future<Output = Result<(), String>> {
        self.0.flush()
    }

    fn grow(&self, size: u64) -> impl Future<Output = Result<(), String>> {
        self.0.grow(size)
    }

    fn shrink(&self, size: u64) -> impl Future<Output = Result<(), String>> {
        self.0.shrink(size)
    }

    fn map(&self) -> impl Future<Output = Result<Vec<Extent>, String>> {
        self.0.map()
    }

    fn close(self) -> impl Future<Output = Result<(), String>> {
        self.0.close()
    }
}
