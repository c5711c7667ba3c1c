//! What is under test: an implementation of qcow2 that runs on a [`Storage`], behind a handful of calls.
//!
//! To put another implementation under the harness, implement [`Subject`] and [`SubjectImage`] for it. Every promise
//! beyond the common rules is declared in [`Subject::promises`], what it does not do at all in [`Subject::duties`], and the
//! judge holds the subject to exactly that.

use std::future::Future;

use model::guest::{DiscardReads, Promises};
use model::image::Mapping;
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry};
use qcow2_core::storage::{IoBuf, Storage};
use qcow2_core::{
    Barrier, CheckError, CheckReport, ErrorKind, Image, IoError, Mutant, OpenOptions, Repair, Rule,
    Rules, Source, Zeroing,
};

use crate::layer::Base;
use crate::sabotage::Target;

/// How an image is opened for one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whether it may change.
    pub writable: bool,
    /// Metadata pages in memory; 0 for the subject's own choice.
    pub cache_pages: u32,
    /// Bytes by which the file grows; 0 for the subject's own choice.
    pub growth: u64,
    /// Whether every write, zeroing and discard is durable when it returns.
    pub write_through: bool,
    /// Bytes of a metadata page; 0 for the subject's own choice.
    pub page_size: u32,
    /// Whether discarded space goes back to the device.
    pub pass_discard: bool,
    /// Lazy refcounts on or off, whatever the image says.
    pub lazy_refcounts: Option<bool>,
    /// Bytes of the layer below, a [`Base`], if the image names one.
    pub below: Option<u64>,
}

impl Session {
    /// A session for writing with the options of a case on an image over a layer of so many bytes, or over none.
    pub const fn of(open: &model::case::OpenOptions, below: Option<u64>) -> Self {
        Self {
            writable: true,
            cache_pages: open.cache_pages,
            growth: open.growth_step,
            write_through: open.write_through,
            page_size: open.page_size,
            pass_discard: open.pass_discard,
            lazy_refcounts: open.lazy_refcounts,
            below,
        }
    }

    /// The options of a case that opens its image so.
    pub fn options(&self, subject: &str) -> model::case::OpenOptions {
        model::case::OpenOptions {
            subject: subject.to_owned(),
            cache_pages: self.cache_pages,
            growth_step: self.growth,
            write_through: self.write_through,
            page_size: self.page_size,
            pass_discard: self.pass_discard,
            lazy_refcounts: self.lazy_refcounts,
        }
    }
}

/// What a check of an image that is not open may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mend {
    /// Nothing.
    Nothing,
    /// What is leaked.
    Leaks,
}

/// Why an image was not opened or repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The subject says that it cannot vouch for the image; it stays as it is.
    GaveUp(String),
    /// The storage failed, or something else that says nothing about the image.
    Failed(String),
}

/// What a subject is held to beyond what its guest sees: all of it, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duties {
    /// It repairs. A subject that does not is given no image that is marked dirty, and [`Subject::repair`] is not called.
    pub repair: bool,
    /// The structure of the image is legal whenever the power fails. Without it only what the guest may read is judged,
    /// as long as the header can be read.
    pub structure: bool,
    /// Guest writes that overlap in time and place reach the storage one after the other. A subject that passes them on
    /// as they come leaves either of them, which the reference disk allows anyway.
    pub disjoint_writes: bool,
    /// Space that was given up and flushed is used again before the file gets longer.
    pub finds_space: bool,
}

impl Default for Duties {
    fn default() -> Self {
        Self { repair: true, structure: true, disjoint_writes: true, finds_space: true }
    }
}

/// An implementation of qcow2.
pub trait Subject: Clone + Send + Sync + 'static {
    /// An open image.
    type Image<S: Storage>: SubjectImage;

    /// What reports call it.
    fn name(&self) -> String;

    /// What case files call it.
    fn key(&self) -> &'static str;

    /// The command line that runs cases of this subject.
    fn command(&self) -> &'static str {
        "cargo campaign"
    }

    /// What tells one source of it from another, part by part: names, with versions or hashes. A certificate holds it beside the
    /// harness's own, and only one of the same source is cited. None: it cannot say, and then no certificate of it is.
    fn source(&self) -> Option<Vec<(String, String)>> {
        None
    }

    /// What it promises of an image that is opened so.
    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises;

    /// Whether it opens images over a layer, which [`Session::below`] describes. One that does not is given none.
    fn opens_layers(&self) -> bool {
        false
    }

    /// Whether it makes disks smaller. A subject that does not is not asked to.
    fn shrinks(&self) -> bool {
        false
    }

    /// What it is held to.
    fn duties(&self) -> Duties {
        Duties::default()
    }

    /// Opens the image; for writing, it must be safe to write afterwards.
    fn open<S: Storage>(
        &self,
        storage: S,
        session: Session,
    ) -> impl Future<Output = Result<Self::Image<S>, Refusal>> + Send;

    /// A copy of an open image on `storage`, which holds a copy of what is under it, while no request is in flight. Both then do
    /// what the image would have done. None: it cannot, and what led to the image is done once more.
    fn fork<S: Storage>(&self, image: &Self::Image<S>, storage: S) -> Option<Self::Image<S>> {
        drop(storage);
        let _ = image;
        None
    }

    /// Checks and repairs an image that is not open, and says what it is afterwards.
    fn repair<S: Storage>(
        &self,
        storage: S,
    ) -> impl Future<Output = Result<Statement, Refusal>> + Send;

    /// Checks an image that is not open, changes no more than `mend` says, and says what it is afterwards: [`Statement::GaveUp`] if
    /// something is wrong with it. None: it has no such call.
    fn check<S: Storage>(
        &self,
        storage: S,
        mend: Mend,
    ) -> impl Future<Output = Option<Result<Statement, Refusal>>> + Send {
        drop((storage, mend));
        std::future::ready(None)
    }
}

/// An open image of a subject. Requests may run at once.
pub trait SubjectImage: Send + Sync + 'static {
    /// Virtual size in bytes.
    fn size(&self) -> u64;

    /// Reads a range.
    fn read(&self, offset: u64, buf: IoBuf) -> impl Future<Output = Result<IoBuf, String>> + Send;

    /// Writes a range.
    fn write(
        &self,
        offset: u64,
        data: IoBuf,
        durability: Durability,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Makes a range read as zeroes.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        unmap: bool,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Gives the whole clusters of a range back.
    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = Result<(), String>> + Send;

    /// Makes what has completed durable.
    fn flush(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// Enlarges the disk.
    fn grow(&self, size: u64) -> impl Future<Output = Result<(), String>> + Send;

    /// Makes the disk smaller; asked only of a subject that [`shrinks`](Subject::shrinks).
    fn shrink(&self, size: u64) -> impl Future<Output = Result<(), String>> + Send {
        std::future::ready(Err(format!(
            "no subject that does not shrink is asked for {size} bytes"
        )))
    }

    /// Where every part of the disk is, in order, as the subject itself sees it.
    fn map(&self) -> impl Future<Output = Result<Vec<Extent>, String>> + Send;

    /// Closes it cleanly.
    fn close(self) -> impl Future<Output = Result<(), String>> + Send;
}

/// This project's own implementation, with all its rules or without some of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Qcow2Core {
    /// The write orders that it obeys.
    pub rules: Rules,
}

impl Qcow2Core {
    /// The implementation without the rules and flushes of these names, and with the mutants of these.
    ///
    /// # Errors
    /// The name that none has.
    pub fn without<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut rules = Rules::all();
        for name in names {
            let target = Target::from_name(name)
                .ok_or_else(|| format!("no rule, no flush and no mutant is called {name}"))?;
            rules = target.taken_from(rules);
        }
        Ok(Self { rules })
    }
}

impl Subject for Qcow2Core {
    type Image<S: Storage> = Image<S>;

    fn name(&self) -> String {
        let flushes = Barrier::ALL.iter().filter(|barrier| self.rules.skips(**barrier));
        let broken: Vec<_> = Rule::ALL
            .iter()
            .filter(|rule| !self.rules.hold(**rule))
            .map(|rule| rule.name())
            .chain(flushes.map(|barrier| barrier.name()))
            .collect();
        let mutants = Mutant::ALL.iter().filter(|mutant| self.rules.has_mutant(**mutant));
        let mutants: Vec<_> = mutants.map(|mutant| mutant.name()).collect();
        let part = |word: &str, names: &[&str]| match names {
            [] => String::new(),
            names => format!(" {word} {}", names.join(", ")),
        };
        format!("qcow2-core{}{}", part("without", &broken), part("with", &mutants))
    }

    fn key(&self) -> &'static str {
        "qcow2-core"
    }

    fn source(&self) -> Option<Vec<(String, String)>> {
        // It is among the crates of the harness.
        Some(Vec::new())
    }

    fn opens_layers(&self) -> bool {
        true
    }

    fn shrinks(&self) -> bool {
        true
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        Promises {
            cluster_units: geometry.cluster_units(),
            discard: match geometry.below {
                // No entry of version 2 hides a layer.
                Some(_) if !geometry.has_features() => DiscardReads::ZeroesBesideLayer,
                _ => DiscardReads::Zeroes,
            },
            grow: Durability::Through,
            changes: if session.write_through { Durability::Through } else { Durability::Cached },
        }
    }

    async fn open<S: Storage>(&self, storage: S, session: Session) -> Result<Image<S>, Refusal> {
        let mut options = OpenOptions::new()
            .writable(session.writable)
            .write_through(session.write_through)
            .pass_discard(session.pass_discard)
            .rules(self.rules);
        options.lazy_refcounts = session.lazy_refcounts;
        if session.cache_pages > 0 {
            options = options.cache_pages(session.cache_pages as usize);
        }
        if session.growth > 0 {
            options = options.growth(session.growth);
        }
        if session.page_size > 0 {
            options = options.page_size(session.page_size.into());
        }
        let opened = match session.below {
            Some(below) => Image::open_over(storage, Base::new(below).shared(), options).await,
            None => Image::open(storage, options).await,
        };
        opened.map_err(|error| refusal(error.kind(), error.to_string()))
    }

    fn fork<S: Storage>(&self, image: &Image<S>, storage: S) -> Option<Image<S>> {
        image.fork(storage)
    }

    async fn repair<S: Storage>(&self, storage: S) -> Result<Statement, Refusal> {
        claim(qcow2_core::check(&storage, Repair::All, self.rules).await, Statement::Repaired)
    }

    async fn check<S: Storage>(
        &self,
        storage: S,
        mend: Mend,
    ) -> Option<Result<Statement, Refusal>> {
        let repair = match mend {
            Mend::Nothing => Repair::None,
            Mend::Leaks => Repair::Leaks,
        };
        Some(claim(qcow2_core::check(&storage, repair, self.rules).await, Statement::Clean))
    }
}

/// Whether it failed because the storage did, or gave up.
fn refusal(kind: ErrorKind, text: String) -> Refusal {
    match kind {
        ErrorKind::Storage | ErrorKind::NoSpace | ErrorKind::Poisoned => Refusal::Failed(text),
        _ => Refusal::GaveUp(text),
    }
}

/// What a check claims of the image; `sound` if it finds nothing wrong any more.
fn claim(report: Result<CheckReport, CheckError>, sound: Statement) -> Result<Statement, Refusal> {
    match report {
        Ok(report) if report.is_consistent() => Ok(sound),
        Ok(_) => Ok(Statement::GaveUp),
        Err(error) => Err(refusal(error.kind(), error.to_string())),
    }
}

fn plain<T>(result: Result<T, IoError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

impl<S: Storage> SubjectImage for Image<S> {
    fn size(&self) -> u64 {
        self.info().virtual_size
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, String> {
        let (buf, result) = Self::read(self, offset, buf).await;
        plain(result).map(|()| buf)
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        let how = match durability {
            Durability::Cached => qcow2_core::storage::Durability::Cached,
            Durability::Through => qcow2_core::storage::Durability::Through,
        };
        plain(Self::write(self, offset, data, how).await.1)
    }

    async fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        let how = if unmap { Zeroing::Free } else { Zeroing::Keep };
        plain(Self::write_zeroes(self, offset, length, how).await)
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), String> {
        plain(Self::discard(self, offset, length).await)
    }

    async fn flush(&self) -> Result<(), String> {
        plain(Self::flush(self).await)
    }

    async fn grow(&self, size: u64) -> Result<(), String> {
        plain(Self::grow(self, size).await)
    }

    async fn shrink(&self, size: u64) -> Result<(), String> {
        plain(Self::shrink(self, size).await)
    }

    async fn map(&self) -> Result<Vec<Extent>, String> {
        let size = self.info().virtual_size;
        let map = plain(self.map_read(0, size).await)?;
        let mut guest = 0;
        Ok(map
            .extents()
            .iter()
            .map(|extent| {
                let to = match extent.source {
                    Source::Host(host) => Mapping::Host(host),
                    Source::Below => Mapping::Unallocated,
                    _ => Mapping::Zero,
                };
                let this = Extent { guest, length: extent.len, to };
                guest += extent.len;
                this
            })
            .collect())
    }

    async fn close(self) -> Result<(), String> {
        plain(Self::close(self).await).map(drop)
    }
}
