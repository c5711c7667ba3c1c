//! What is under test: an implementation of qcow2 that runs on a [`Storage`], behind a handful of calls.
//!
//! This page is the way from an implementation to what the harness finds in it. `tests/examples/own_subject.rs` is all of it in one
//! file that is compiled and run (`cargo run -p qcow2-crashtest --example own_subject`), with an implementation whose flush does nothing;
//! `tests/subjects/imago` is another library, in a package of its own. Packages to copy are in `tests/templates`: `async`, `blocking` for
//! synchronous code, and `c`, in which `crashtest.h` says what an implementation in C offers and is given.
//!
//! # From nothing to the first finding
//!
//! 1. A package that depends on `qcow2-crashtest` by path, outside this workspace if what it needs is to stay out of the default build.
//!    [`prelude`](crate::prelude) has all the names that an adapter needs; the contract of a storage is [`qcow2_core::storage`].
//! 2. Let the implementation do its I/O through that [`Storage`] and through nothing else. Where it has a trait of its own for files, that
//!    is an adapter: a call becomes an operation with the same range and the same outcome. Keep nothing back, and make nothing up. A device
//!    has sectors, of 512 or 4,096 bytes: whoever reads and writes parts of them does so through a [`ByteFile`](crate::byte_file::ByteFile).
//!    Synchronous code gets a file of its own instead, with reads and writes of any place and length: implement
//!    [`BlockingSubject`](crate::blocking::BlockingSubject), and [`Blocking`](crate::blocking::Blocking) is the subject.
//! 3. Implement [`SubjectImage`] for an open image. An error is a text, for reports only; whether a request failed is what counts. `flush`
//!    is what a guest gets: where the library parts writing metadata from syncing the file, both. [`map`](SubjectImage::map) is what it
//!    believes of its mapping, and is compared with what the judge reads.
//! 4. Implement [`Subject`]. [`promises`](Subject::promises) says what is not common to all: what a discarded cluster reads as, when a
//!    growth and a write are durable. [`capabilities`](Subject::capabilities) says what it can do at all; the rest is not asked of it, and
//!    the run says so. [`duties`](Subject::duties) says what it is held to. Begin with what its documentation promises: a duty that is
//!    taken away hides a bug, one that is not its own shows bugs that are none. Among them is the worst device that it
//!    [survives](Duties::survives): what only a worse one shows is told as beyond that. [`command`](Subject::command) is what reports tell people
//!    to type: the running program, unless the subject says how that is started (`cargo run --release --`).
//! 5. Begin gently. [`Profile::Kill`] loses nothing that was written, so what fails there was still in
//!    memory, or was written in an order that is wrong without any cache below; then each profile up to `torn-length`, first
//!    [faultless](crate::workload::Scope::faultless), without failing I/O and dropped requests. [`campaign::run`](crate::campaign::run)
//!    ends at the first violation. [`console::outsider::main`](crate::console::outsider::main) is the same on a command line, with the
//!    subject in two forms, held to everything and held to what its guest sees: `run --contents --profile kill --faultless`, then with
//!    less of that; `explore --operations 2` when random cases are silent; `replay`, `minimise`, `explain` and `dump` for what was kept,
//!    in `corpus/subjects/KEY` below the working directory.
//! 6. Read the report (below), mend, and `replay` the case: it says `fixed` then. Set `"status": "fixed"` in the file, and it stays as a
//!    test: `replay` fails if it comes back.
//! 7. `run --keep-going` goes on to the end of its budget and tells findings apart by cause ([`causes`](crate::causes)): what is left when
//!    nothing can be taken away. `--causes FILE` writes them down; with `--known FILE` only others count, and one that is gone is said.
//! 8. When a campaign is silent, see whether it could have been loud: `sensitivity` leaves flushes out and does writes late under the
//!    implementation ([`lapse`](crate::lapse)). What is noticed by nobody is not needed, or not asked for. Mistakes of its own do not count:
//!    what fails on a sound storage in the same way is gone past. Figures say what was met.
//! 9. `run --workload trace:FILE` asks what a real guest asked, in the place of random requests; `--witness` lets a file system's checker
//!    look at the guest's disk after recovery. `export` writes a kept case as a log of block writes, for tools that replay those.
//!
//! # What the harness does to a subject
//!
//! *A power cut* is not announced. The disk as it was at some I/O is copied with everything that the device may have lost, and a new image
//! is opened on that; the futures of the old one, and the image, are dropped wherever they are (when a case is run again, and in one case of
//! sixteen; the others go on after the copy was taken). So `Drop` must not do I/O: after a real power cut nobody would run it. What it begins
//! is a finding (P8 `io-when-dropped`), and waiting for it never ends.
//!
//! *A panic*, in a call or in `Drop`, is a finding like any other (P8 `panic`): it is caught, kept, minimised and told. Only one that meets
//! another on its way out, such as the second of two values that panic in `Drop`, ends the process; the last lines then say which case it
//! was (`run --case N` with the same seed is there again). So they do where a stack overflows, or C follows a dangling pointer. `run --keep-going`
//! leaves such a case out, goes on in another process, and tells it as a cause (P8 `process-ended`).
//!
//! *Dropped requests.* In some lives the future of a request is dropped at one of its awaits and the image goes on. The I/O in flight
//! goes on as well, and may land until [`Storage::settle`] has returned. Nobody waits for an implementation that spawns the work elsewhere.
//!
//! *Failing I/O.* In some lives reads, writes and flushes fail, the device is full, transfers are short. A request may fail then. One that
//! fails where nothing was made to fail is a finding.
//!
//! *Requests at once.* Up to four tasks use one image, by `&self`. They are futures of one executor with one thread, which decides at every
//! await who goes on and which I/O ends. Whatever a subject waits for has to come from the storage or from another of its requests: a
//! timer, a thread or a runtime of its own wakes nobody, and the run ends in a deadlock. An implementation with locks and threads calls
//! [`Storage::pause`] before each critical section, so that others can get ahead of it there; without that only awaits of I/O are places
//! where they can. Synchronous code has a thread for each request if it says how that is done
//! ([`handles`](crate::blocking::BlockingSubject::handles)), and [locks](crate::blocking::sync) with which the harness knows who waits.
//! A call that goes round in a circle, or waits for a lock that another request has, comes back to nobody: after a minute
//! the process says which case or file that is in, and ends; `run --case N` is one case by itself, and `run --keep-going` leaves it out (P7 `no-return`).
//!
//! *Determinism.* The same case has to do the same I/O: no clock, no random number, no order of a hash map with random keys, no address as
//! a key, no state from one image to the next. A finding is replayed and minimised by that. One case in a hundred is run twice, and where
//! the traces differ the run says that it is broken and proves nothing. What cannot be taken out of an implementation may be put in order
//! in the adapter, if that is an order that it takes (`tests/subjects/imago/src/storage.rs`).
//!
//! *`Send`.* Only the [`Subject`] itself has to be: workers take cases side by side. A case runs on one worker from its beginning to its
//! end, so images and futures need not be `Send`.
//!
//! *Recovery* is [`open`](Subject::open) for writing, on what the power cut left, and is cut short itself. Then it is checked,
//! repaired twice and read; some cases work on in it, fill it, or close it and open it again.
//!
//! # What a finding means
//!
//! | property | broken | where to look |
//! |---|---|---|
//! | P0 | a read returned what could not be there | races; a cluster that was given up while somebody read it |
//! | P1 | `lost-write`: acknowledged and flushed, and gone | an entry or a length that the flush did not cover; a failed flush that was forgotten |
//! | P2 | bytes that nobody wrote there: another unit's (`other-unit`), old ones (`stale-bytes`) | an entry that is on the disk before its data, a cluster that is used again too early |
//! | P3 | looking again, or recovery, changed contents | a read-only open that writes; a repair that drops data |
//! | P4 | the tables are not sound: `refcount-too-low`, `overlap`, `out-of-range` | a reference before its refcount, a pointer before the table that it leads to |
//! | P5 | a second repair does something, or one cut short comes to another end | repair in an order of its own |
//! | P6 | closed, and dirty or leaking | what `close` leaves behind; leaking is legal if [`Duties`] say so |
//! | P7 | something hangs, or cannot be written any more | space that is not found again; recovery that does not end |
//! | P8 | an error without a reason, a panic, a false claim, a breach of the storage's contract | overlapping writes in flight, I/O past a limit |
//! | P9 | more is leaked than the requests in flight account for, by power cuts, failed flushes or neither | allocation far ahead of use; what a write replaces |
//! | P10 | a growth by halves; a passphrase that is lost (`passphrase-lost`), comes back (`passphrase-opens`, `passphrase-recoverable`), or a key slot that is nobody's (`slot-opens-to-nobody`) | the size before what it needs; key material, and the slot |
//! | P-cipher | guest data of an encrypted image is in a file as the guest wrote it (`in-clear`, `compressed`) | padding, copies, streams: what does not go the way of a write |
//!
//! P4 on an image that is marked dirty is of references only: its refcounts are counted again. A finding of P4 need not have lost data yet;
//! it says that the next writer may.
//!
//! # How to read a report
//!
//! The first lines say which property, at which cluster or guest unit, and when it was seen. `WORKLOAD` is the shortest that does it: the
//! options, the requests of each task, and the I/O at which the power failed. `I/O` has a line for each operation and a column for each
//! kind of structure. *safe*: a flush covered it. *kept* and *LOST*: it was not covered, and this power cut left it, or did not. `ENTRIES`
//! are the table entries that disagree: before the workload, as they would be had everything landed, after the cut, and as recovery left them. `LOST, the
//! smallest set` is what has to be missing; whatever else was in flight does not matter. Where that is nothing, what is missing had not
//! even been written. `MISSING FLUSH` is what to try first: a flush between those two operations, and whether it also removes the other
//! crash states that fail. If no flush helps, the order of what was written is not the cause. `COMMANDS` shows it again, and `dump` writes
//! the image for `qemu-img` and other readers: if they see it too, it is no matter of this harness.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use faultfs::profile::Profile;
use faultfs::rng::Rng;
use model::crypt::{PASSPHRASE, passphrase};
use model::finding::Property;
use model::guest::{DiscardReads, Promises};
use model::image::Mapping;
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry, Preallocation};
use qcow2_core::format::entry::Mapping as Entry;
use qcow2_core::storage::{AnyStorage, IoBuf, Storage};
use qcow2_core::{
    Barrier, CheckError, CheckReport, ErrorKind, Executor, Image, IoError, Layer, Mutant,
    OpenOptions, Passphrase, Repair, Rule, Rules, Source, Zeroing,
};

use crate::capabilities::Capabilities;
use crate::layer::Base;
use crate::sabotage::Target;

/// How an image is opened for one session. The default reads a plain one, as the subject sees fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Whether what is read from it may be copied into the image.
    pub copy_on_read: bool,
    /// Whether the image is encrypted, with [`PASSPHRASE`].
    pub encrypted: bool,
}

impl Session {
    /// A session for writing with the options of a case on an image of this geometry.
    pub const fn of(open: &model::case::Opening, geometry: &Geometry) -> Self {
        Self {
            writable: true,
            cache_pages: open.cache_pages,
            growth: open.growth_step,
            write_through: open.write_through,
            page_size: open.page_size,
            pass_discard: open.pass_discard,
            lazy_refcounts: open.lazy_refcounts,
            below: geometry.below,
            copy_on_read: open.copy_on_read,
            encrypted: geometry.encryption.is_some(),
        }
    }

    /// The options of a case that opens its image so.
    pub fn options(&self, subject: &str) -> model::case::Opening {
        model::case::Opening {
            subject: subject.to_owned(),
            cache_pages: self.cache_pages,
            growth_step: self.growth,
            write_through: self.write_through,
            page_size: self.page_size,
            pass_discard: self.pass_discard,
            lazy_refcounts: self.lazy_refcounts,
            copy_on_read: self.copy_on_read,
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
    /// The structure of the image is legal whenever the power fails. Without it only what the guest may read is judged,
    /// as long as the header can be read.
    pub structure: bool,
    /// A power cut leaks no more clusters than the requests that it met can account for (P9), where the structure is judged at all.
    pub leaks_little: bool,
    /// No cluster is counted that nothing refers to when an image is closed, beyond those that were when it was opened (P6). Without it that
    /// is no damage; a repair removes it all the same (P4).
    pub closes_without_leaks: bool,
    /// Guest writes that overlap in time and place reach the storage one after the other. A subject that passes them on
    /// as they come leaves either of them, which the reference disk allows anyway.
    pub disjoint_writes: bool,
    /// Space that was given up and flushed is used again before the file gets longer.
    pub finds_space: bool,
    /// Storage operations for each cluster of the file and of the disk with which all of a recovered image can be written (P7); twice as many
    /// where each change is durable when it returns. There are some besides for a small image, and for what takes several transfers.
    pub ios_per_cluster: u64,
    /// The worst device on which it says that a power cut does no harm. A campaign runs on that one unless another is asked for, and what only
    /// a worse one shows is told as beyond what it says. An exploration on a worse one explores this first.
    pub survives: Profile,
}

impl Duties {
    /// Whether a subject that can do that is judged by a property: whether it is held to it, and there is something that would show it.
    pub const fn judge(&self, can: &Capabilities, property: Property) -> bool {
        match property {
            Property::P0
            | Property::P1
            | Property::P2
            | Property::P3
            | Property::P7
            | Property::P8 => true,
            Property::P4 => self.structure,
            Property::P5 => can.repair,
            Property::P6 => self.structure && self.closes_without_leaks,
            Property::P9 => self.structure && self.leaks_little,
            Property::P10 => can.grow || can.shrink || can.passphrases,
            Property::PCipher => can.encryption,
        }
    }

    /// All that a subject may leave out while it is judged as it is, by structure or by contents, on the device that it says it survives and with
    /// its own bound of work.
    #[must_use]
    pub const fn all(self) -> Self {
        Self {
            leaks_little: true,
            closes_without_leaks: true,
            disjoint_writes: true,
            finds_space: true,
            ..self
        }
    }
}

impl Default for Duties {
    fn default() -> Self {
        Self {
            structure: true,
            leaks_little: true,
            closes_without_leaks: true,
            disjoint_writes: true,
            finds_space: true,
            ios_per_cluster: 6,
            survives: Profile::TornLength,
        }
    }
}

/// An implementation of qcow2.
pub trait Subject: Clone + Send + Sync + 'static {
    /// An open image.
    type Image: SubjectImage;

    /// What reports call it.
    fn name(&self) -> String;

    /// What case files call it.
    fn key(&self) -> &'static str;

    /// The command line that runs cases of this subject: this program as it was called, unless the subject says otherwise.
    fn command(&self) -> &'static str {
        called()
    }

    /// What tells one source of it from another, part by part: names, with versions or hashes. A certificate holds it beside the
    /// harness's own, and only one of the same source is cited. None: it cannot say, and then no certificate of it is.
    fn source(&self) -> Option<Vec<(String, String)>> {
        None
    }

    /// What it promises of an image that is opened so. The least, unless it says more; each change durable when it returns, if the session
    /// asks for that.
    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        least(geometry, session)
    }

    /// What it can do; what it cannot is not asked of it. Plain images and all that is done with those, unless it says otherwise.
    fn capabilities(&self) -> Capabilities {
        Capabilities::plain()
    }

    /// What it is held to.
    fn duties(&self) -> Duties {
        Duties::default()
    }

    /// Opens the image; for writing, it must be safe to write afterwards.
    fn open(
        &self,
        storage: AnyStorage,
        session: Session,
    ) -> impl Future<Output = Result<Self::Image, Refusal>>;

    /// The same for an image with an external data file, which is `data`; asked only of a subject that
    /// [opens](Capabilities::data_files) those.
    fn open_with_data(
        &self,
        storage: AnyStorage,
        data: AnyStorage,
        session: Session,
    ) -> impl Future<Output = Result<Self::Image, Refusal>> {
        drop((storage, data));
        std::future::ready(Err(Refusal::GaveUp(format!("it has a data file, and {session:?}"))))
    }

    /// A copy of an open image on `storage`, which holds a copy of what is under it, and `data`, a copy of its data file, while no request is
    /// in flight. Both then do what the image would have done. None: it cannot, and what led to the image is done once more.
    fn fork(
        &self,
        image: &Self::Image,
        storage: AnyStorage,
        data: Option<AnyStorage>,
    ) -> Option<Self::Image> {
        drop((storage, data));
        let _ = image;
        None
    }

    /// Checks and repairs an image that is not open, and says what it is afterwards; asked only of a subject that
    /// [repairs](Capabilities::repair).
    fn repair(&self, storage: AnyStorage) -> impl Future<Output = Result<Statement, Refusal>> {
        drop(storage);
        std::future::ready(Err(Refusal::GaveUp(unasked("repair"))))
    }

    /// Checks an image that is not open, changes no more than `mend` says, and says what it is afterwards: [`Statement::GaveUp`] if
    /// something is wrong with it. None: it has no such call.
    fn check(
        &self,
        storage: AnyStorage,
        mend: Mend,
    ) -> impl Future<Output = Option<Result<Statement, Refusal>>> {
        drop((storage, mend));
        std::future::ready(None)
    }
}

/// What a subject promises that says nothing of it.
pub(crate) fn least(geometry: &Geometry, session: &Session) -> Promises {
    let least = Promises::least(geometry.cluster_units());
    let changes = if session.write_through { Durability::Through } else { least.changes };
    Promises { changes, ..least }
}

/// This program as it was called.
pub(crate) fn called() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let called = std::env::args_os().next().unwrap_or_default();
        called.to_string_lossy().into_owned()
    })
}

/// What a call says that a subject does not have, and that is not made then.
pub(crate) fn unasked(capability: &str) -> String {
    format!("asked for what Capabilities::{capability} says that it cannot do")
}

/// An open image of a subject. Requests may run at once. Calls with a body here are made only of a subject whose [`Capabilities`] have
/// what they do.
pub trait SubjectImage: 'static {
    /// Virtual size in bytes.
    fn size(&self) -> u64;

    /// Reads a range.
    fn read(&self, offset: u64, buf: IoBuf) -> impl Future<Output = Result<IoBuf, String>>;

    /// Writes a range.
    fn write(
        &self,
        offset: u64,
        data: IoBuf,
        durability: Durability,
    ) -> impl Future<Output = Result<(), String>>;

    /// Writes a range, compressed where that makes it shorter; a subject that does not compress writes it as it is.
    fn write_compressed(
        &self,
        offset: u64,
        data: IoBuf,
    ) -> impl Future<Output = Result<(), String>> {
        self.write(offset, data, Durability::Cached)
    }

    /// Makes a range read as zeroes.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        unmap: bool,
    ) -> impl Future<Output = Result<(), String>> {
        let _ = (offset, length, unmap);
        std::future::ready(Err(unasked("zeroes")))
    }

    /// Gives the whole clusters of a range back.
    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = Result<(), String>> {
        let _ = (offset, length);
        std::future::ready(Err(unasked("discard")))
    }

    /// Lets the whole clusters of a range show the layer below again.
    fn uncover(&self, offset: u64, length: u64) -> impl Future<Output = Result<(), String>> {
        let _ = (offset, length);
        std::future::ready(Err(unasked("uncover")))
    }

    /// Lets a further [passphrase] open the image; durable when it returns.
    fn add_passphrase(&self, id: u32) -> impl Future<Output = Result<(), String>> {
        let _ = id;
        std::future::ready(Err(unasked("passphrases")))
    }

    /// Lets it open the image no more, if it does; durable when it returns, and what was kept under it is unreadable then.
    fn remove_passphrase(&self, id: u32) -> impl Future<Output = Result<(), String>> {
        let _ = id;
        std::future::ready(Err(unasked("passphrases")))
    }

    /// Takes host clusters ahead of what will be written to a range; a subject that takes none leaves it at that.
    fn preallocate(
        &self,
        offset: u64,
        length: u64,
        how: Preallocation,
    ) -> impl Future<Output = Result<(), String>> {
        let _ = (offset, length, how);
        std::future::ready(Ok(()))
    }

    /// Makes what has completed durable.
    fn flush(&self) -> impl Future<Output = Result<(), String>>;

    /// Enlarges the disk.
    fn grow(&self, size: u64) -> impl Future<Output = Result<(), String>> {
        let _ = size;
        std::future::ready(Err(unasked("grow")))
    }

    /// Makes the disk smaller.
    fn shrink(&self, size: u64) -> impl Future<Output = Result<(), String>> {
        let _ = size;
        std::future::ready(Err(unasked("shrink")))
    }

    /// Where every part of the disk is, in order, as the subject itself sees it; asked only of one that has a [map](Capabilities::map).
    fn map(&self) -> impl Future<Output = Result<Vec<Extent>, String>> {
        std::future::ready(Err(unasked("map")))
    }

    /// Closes it cleanly.
    fn close(self) -> impl Future<Output = Result<(), String>>;
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

    fn layer_of(&self, session: &Session) -> Option<Arc<dyn Layer>> {
        session.below.map(|below| Base::new(below).chain(self.rules))
    }

    fn open_options(&self, session: &Session) -> OpenOptions {
        let mut options = OpenOptions::new()
            .writable(session.writable)
            .write_through(session.write_through)
            .pass_discard(session.pass_discard)
            .copy_on_read(session.copy_on_read)
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
        options
    }
}

impl Subject for Qcow2Core {
    type Image = Image<AnyStorage>;

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

    fn command(&self) -> &'static str {
        "cargo campaign"
    }

    fn source(&self) -> Option<Vec<(String, String)>> {
        // It is among the crates of the harness.
        Some(Vec::new())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::everything()
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

    async fn open(
        &self,
        storage: AnyStorage,
        session: Session,
    ) -> Result<Image<AnyStorage>, Refusal> {
        let options = self.open_options(&session);
        if session.encrypted {
            let layer = self.layer_of(&session);
            return encrypted(storage, None, layer, options).await;
        }
        let opened = match self.layer_of(&session) {
            Some(layer) => Image::open_over(storage, layer, options).await,
            None => Image::open(storage, options).await,
        };
        opened.map_err(|error| refusal(error.kind(), error.to_string()))
    }

    async fn open_with_data(
        &self,
        storage: AnyStorage,
        data: AnyStorage,
        session: Session,
    ) -> Result<Image<AnyStorage>, Refusal> {
        let options = self.open_options(&session);
        if session.encrypted {
            let layer = self.layer_of(&session);
            return encrypted(storage, Some(data), layer, options).await;
        }
        let layer = self.layer_of(&session);
        let opened = Image::open_with_data(storage, data, layer, options).await;
        opened.map_err(|error| refusal(error.kind(), error.to_string()))
    }

    fn fork(
        &self,
        image: &Image<AnyStorage>,
        storage: AnyStorage,
        data: Option<AnyStorage>,
    ) -> Option<Image<AnyStorage>> {
        image.fork(storage, data)
    }

    async fn repair(&self, storage: AnyStorage) -> Result<Statement, Refusal> {
        claim(qcow2_core::check(&storage, Repair::All, self.rules).await, Statement::Repaired)
    }

    async fn check(&self, storage: AnyStorage, mend: Mend) -> Option<Result<Statement, Refusal>> {
        let repair = match mend {
            Mend::Nothing => Repair::None,
            Mend::Leaks => Repair::Leaks,
        };
        Some(claim(qcow2_core::check(&storage, repair, self.rules).await, Statement::Clean))
    }
}

async fn encrypted(
    storage: AnyStorage,
    data: Option<AnyStorage>,
    layer: Option<Arc<dyn Layer>>,
    options: OpenOptions,
) -> Result<Image<AnyStorage>, Refusal> {
    let passphrase = Passphrase::new(PASSPHRASE);
    let opened = Image::open_encrypted(storage, &passphrase, data, layer, options).await;
    opened.map_err(|error| refusal(error.kind(), error.to_string()))
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

/// Work that is done one by one while a request waits, the newest first, so that others can get ahead of the request meanwhile.
#[derive(Default)]
struct Later(Mutex<Vec<Box<dyn FnOnce() + Send>>>);

impl Later {
    /// Does the newest, if there is any.
    fn do_one(&self) -> bool {
        let work = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        work.map(|work| work()).is_some()
    }
}

impl Executor for Later {
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(work);
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

    async fn write_compressed(&self, offset: u64, data: IoBuf) -> Result<(), String> {
        let (how, later) = (qcow2_core::storage::Durability::Cached, Later::default());
        let mut request = pin!(Self::write_compressed(self, offset, data, how, &later));
        let written = poll_fn(|context| {
            let polled = request.as_mut().poll(context);
            if polled.is_pending() && later.do_one() {
                context.waker().wake_by_ref();
            }
            polled
        });
        plain(written.await.1)
    }

    async fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        let how = if unmap { Zeroing::Free } else { Zeroing::Keep };
        plain(Self::write_zeroes(self, offset, length, how).await)
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), String> {
        plain(Self::discard(self, offset, length).await)
    }

    async fn uncover(&self, offset: u64, length: u64) -> Result<(), String> {
        plain(Self::uncover(self, offset, length).await)
    }

    async fn add_passphrase(&self, id: u32) -> Result<(), String> {
        let [known, added] = [0, id].map(|id| Passphrase::new(passphrase(id)));
        // What the image has done so far tells one addition from another, in every run alike.
        let mut rng = Rng::new(self.work().steps << 8 | u64::from(id));
        let mut random = |bytes: &mut [u8]| bytes.fill_with(|| rng.below(256) as u8);
        plain(Self::add_passphrase(self, &known, &added, 1, &mut random).await).map(drop)
    }

    async fn remove_passphrase(&self, id: u32) -> Result<(), String> {
        let [kept, removed] = [0, id].map(|id| Passphrase::new(passphrase(id)));
        plain(Self::remove_passphrase(self, &kept, &removed).await).map(drop)
    }

    async fn preallocate(
        &self,
        offset: u64,
        length: u64,
        how: Preallocation,
    ) -> Result<(), String> {
        let how = match how {
            Preallocation::Metadata => qcow2_core::Preallocation::Metadata,
            Preallocation::Falloc => qcow2_core::Preallocation::Falloc,
            Preallocation::Full => qcow2_core::Preallocation::Full,
        };
        plain(Self::preallocate(self, offset, length, how).await)
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
        let info = self.info();
        let (size, cluster_bits) = (info.virtual_size, info.cluster_size.trailing_zeros());
        let map = plain(self.map_read(0, size).await)?;
        let mut guest = 0;
        Ok(map
            .extents()
            .iter()
            .map(|extent| {
                let to = match extent.source {
                    Source::Host(host) | Source::Enciphered(host) => Mapping::Host(host),
                    Source::Data(offset) => Mapping::Host(offset),
                    Source::Below => Mapping::Unallocated,
                    Source::Compressed(entry) => match entry.decode(cluster_bits, 3, 0) {
                        Ok(Entry::Compressed { offset, .. }) => Mapping::Compressed(offset),
                        _ => Mapping::Zero,
                    },
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
