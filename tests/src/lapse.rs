//! Whether silence about a subject means something: a storage that leaves a flush out, or does a write late, under a subject that does not
//! know. If the data needed that, somebody has to notice.
//!
//! ```text
//!   told:     w0   w1   flush 0   w2   flush 1      w: a write      counted from when an image is opened, checked or repaired
//!   flush 0:  w0   w1             w2   flush 1
//!   late 1:   w0        flush 0   w1   w2   flush 1
//! ```
//!
//! (That two writes between the same flushes change places is nothing new: a power cut keeps either anyway.) A write is late only where
//! nobody could tell without a power cut: whoever reads it, writes over it or asks for the length has it done first, and so has the end of
//! opening, of a check and of a repair. What is written durably is a flush as well.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use faultfs::profile::Profile;
use model::build::Initial;
use model::guest::Promises;
use model::judge::Statement;
use model::op::Geometry;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Limits, Storage};

use crate::any::{AnyImage, AnySubject};
use crate::campaign::{self, Budget, Found, Settings};
use crate::capabilities::Capabilities;
use crate::causes::is_shown_by;
use crate::explore::alphabet::worlds;
use crate::explore::{self, ExploreSettings};
use crate::interrupt;
use crate::recover::Failure;
use crate::subject::{Duties, Mend, Refusal, Session, Subject};
use crate::workload::Scope;

/// What the storage does not do as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lapse {
    /// The flush of this number does nothing.
    Flush(u64),
    /// The write of this number reaches the device after the next flush.
    Late(u64),
}

impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flush(number) => write!(f, "flush {number}"),
            Self::Late(number) => write!(f, "late {number}"),
        }
    }
}

/// A subject on storages with a lapse.
#[derive(Clone, Debug)]
pub struct Lapsing {
    subject: AnySubject,
    lapse: Lapse,
    /// How often the lapse has shown.
    shown: Arc<AtomicU64>,
}

impl Lapsing {
    /// The subject, unaware of the lapse.
    pub fn new(subject: AnySubject, lapse: Lapse) -> Self {
        Self { subject, lapse, shown: Arc::default() }
    }

    /// How often it was given another storage than it believes.
    pub fn shown(&self) -> u64 {
        self.shown.load(Ordering::Relaxed)
    }

    fn on(&self, storage: AnyStorage) -> Unsound {
        Unsound(Arc::new(Below {
            storage,
            lapse: self.lapse,
            shown: Arc::clone(&self.shown),
            flushes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            held: Mutex::default(),
        }))
    }
}

impl Subject for Lapsing {
    type Image = AnyImage;

    fn name(&self) -> String {
        match self.lapse {
            Lapse::Flush(number) => format!("{} without flush {number}", self.subject.name()),
            Lapse::Late(number) => format!("{} with write {number} late", self.subject.name()),
        }
    }

    fn key(&self) -> &'static str {
        self.subject.key()
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        self.subject.promises(geometry, session)
    }

    fn capabilities(&self) -> Capabilities {
        self.subject.capabilities()
    }

    fn duties(&self) -> Duties {
        self.subject.duties()
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<AnyImage, Refusal> {
        let storage = self.on(storage);
        let opened = self.subject.open(AnyStorage::new(storage.clone()), session).await;
        storage.ended().await?;
        opened
    }

    async fn open_with_data(
        &self,
        storage: AnyStorage,
        data: AnyStorage,
        session: Session,
    ) -> Result<AnyImage, Refusal> {
        let (storage, data) = (self.on(storage), self.on(data));
        let [first, second] = [&storage, &data].map(|storage| AnyStorage::new(storage.clone()));
        let opened = self.subject.open_with_data(first, second, session).await;
        storage.ended().await?;
        data.ended().await?;
        opened
    }

    async fn repair(&self, storage: AnyStorage) -> Result<Statement, Refusal> {
        let storage = self.on(storage);
        let repaired = self.subject.repair(AnyStorage::new(storage.clone())).await;
        storage.ended().await?;
        repaired
    }

    async fn check(&self, storage: AnyStorage, mend: Mend) -> Option<Result<Statement, Refusal>> {
        let storage = self.on(storage);
        let checked = self.subject.check(AnyStorage::new(storage.clone()), mend).await?;
        Some(storage.ended().await.and(checked))
    }
}

/// A storage with a lapse.
#[derive(Clone)]
struct Unsound(Arc<Below>);

struct Below {
    storage: AnyStorage,
    lapse: Lapse,
    shown: Arc<AtomicU64>,
    flushes: AtomicU64,
    writes: AtomicU64,
    held: Mutex<Option<Held>>,
}

/// A write that waits for the next flush.
struct Held {
    offset: u64,
    data: IoBuf,
    /// It is on its way to the device.
    landing: bool,
}

/// What is to become of a write that is held.
enum Now {
    Nothing,
    Wait,
    Write(u64, IoBuf),
}

impl Unsound {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what was held back, if it is wanted; returns when it is done, whoever does it.
    async fn release(&self, is_wanted: impl Fn(&Range<u64>) -> bool) -> io::Result<()> {
        loop {
            let now = match &mut *self.held() {
                Some(Held { offset, data, landing }) => {
                    let range = *offset..*offset + data.len() as u64;
                    match (is_wanted(&range), *landing) {
                        (false, _) => Now::Nothing,
                        (true, true) => Now::Wait,
                        (true, false) => {
                            *landing = true;
                            Now::Write(*offset, IoBuf::copy_of(data, self.limits().alignment))
                        }
                    }
                }
                None => Now::Nothing,
            };
            match now {
                Now::Nothing => return Ok(()),
                Now::Wait => self.0.storage.pause().await,
                Now::Write(offset, data) => {
                    let (_, written) = self.0.storage.write(offset, data, Durability::Cached).await;
                    *self.held() = None;
                    return written;
                }
            }
        }
    }

    /// What was done on it has ended.
    async fn ended(&self) -> Result<(), Refusal> {
        self.release(|_| true).await.map_err(|error| Refusal::Failed(error.to_string()))
    }

    fn is_flush_left_out(&self) -> bool {
        let left_out = self.0.lapse == Lapse::Flush(self.0.flushes.fetch_add(1, Ordering::Relaxed));
        if left_out {
            self.0.shown.fetch_add(1, Ordering::Relaxed);
        }
        left_out
    }
}

const fn meet(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Storage for Unsound {
    fn limits(&self) -> Limits {
        self.0.storage.limits()
    }

    fn writable(&self) -> bool {
        self.0.storage.writable()
    }

    async fn len(&self) -> io::Result<u64> {
        self.release(|_| true).await?;
        self.0.storage.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.release(|_| true).await?;
        self.0.storage.set_len(len).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        let range = offset..offset + buf.len() as u64;
        match self.release(|held| meet(held, &range)).await {
            Ok(()) => self.0.storage.read(offset, buf).await,
            Err(error) => (buf, Err(error)),
        }
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, io::Result<()>) {
        let range = offset..offset + buf.len() as u64;
        if let Err(error) = self.release(|held| meet(held, &range)).await {
            return (buf, Err(error));
        }
        if durability == Durability::Through {
            let durability =
                if self.is_flush_left_out() { Durability::Cached } else { Durability::Through };
            return self.0.storage.write(offset, buf, durability).await;
        }
        if self.0.lapse == Lapse::Late(self.0.writes.fetch_add(1, Ordering::Relaxed)) {
            let data = IoBuf::copy_of(&buf, self.limits().alignment);
            *self.held() = Some(Held { offset, data, landing: false });
            return (buf, Ok(()));
        }
        self.0.storage.write(offset, buf, durability).await
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.release(|held| meet(held, &range)).await?;
        self.0.storage.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.release(|held| meet(held, &range)).await?;
        self.0.storage.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        if self.is_flush_left_out() {
            return Ok(());
        }
        let is_late = self.held().is_some();
        self.0.storage.flush().await?;
        if is_late {
            self.0.shown.fetch_add(1, Ordering::Relaxed);
            self.release(|_| true).await?;
        }
        Ok(())
    }

    async fn settle(&self) -> io::Result<()> {
        self.0.storage.settle().await
    }

    async fn pause(&self) {
        self.0.storage.pause().await;
    }
}

/// What a lapse led to.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The lapse.
    pub lapse: Lapse,
    /// How often it showed.
    pub shown: u64,
    /// What was seen, if anything.
    pub failure: Option<Failure>,
    /// Crash states judged until then.
    pub states: u64,
    /// Seconds until then.
    pub seconds: f64,
}

/// What a sweep came to.
#[derive(Clone, Debug)]
pub struct Swept {
    /// What the subject shows on a sound storage, if anything.
    pub own: Option<Failure>,
    /// What each lapse led to.
    pub tried: Vec<Tried>,
}

/// Tries the first `most` flushes and then writes, each for at most `limit`, in turn, and tells `said` of each, once `began` knows what a
/// sound storage shows. A kind ends with the first that never comes.
///
/// Of a subject that fails on a sound storage as well, small workloads are not explored, and a case counts only if the same is wrong nowhere
/// in it when it is run on a sound storage.
///
/// # Errors
/// Why a run proves nothing: then nothing that is seen with a lapse says anything.
pub fn sweep(
    subject: &impl Subject,
    profile: Profile,
    most: u64,
    limit: Duration,
    began: impl FnOnce(Option<&Failure>),
    mut said: impl FnMut(&Tried),
) -> Result<Swept, String> {
    let subject = &AnySubject::of(subject);
    let (own, _) = match explored(subject, profile, limit)? {
        (Some(found), states) => (Some(found), states),
        (None, _) => drawn(subject, profile, limit / 2, |_| false)?,
    };
    began(own.as_ref());
    let mut tried = Vec::new();
    for kind in [Lapse::Flush as fn(u64) -> Lapse, Lapse::Late] {
        for lapse in (0..most).map(kind) {
            #[expect(clippy::disallowed_methods, reason = "seconds are a figure, not an input")]
            let start = Instant::now();
            let lapsing = Lapsing::new(subject.clone(), lapse);
            let subject_with = &AnySubject::of(&lapsing);
            let (failure, states) = match own {
                None => match explored(subject_with, profile, limit)? {
                    (None, states) => {
                        let (failure, more) = drawn(subject_with, profile, limit / 2, |_| false)?;
                        (failure, states + more)
                    }
                    found => found,
                },
                Some(_) => drawn(subject_with, profile, limit, |found| {
                    is_shown_by(subject, &found.trial, &found.failure)
                })?,
            };
            let (shown, seconds) = (lapsing.shown(), start.elapsed().as_secs_f64());
            if (shown == 0 && failure.is_none()) || interrupt::asked() {
                break;
            }
            let one = Tried { lapse, shown, failure, states, seconds };
            said(&one);
            tried.push(one);
        }
    }
    Ok(Swept { own, tried })
}

/// Small workloads, exhaustively; how many states were judged.
fn explored(
    subject: &AnySubject,
    profile: Profile,
    limit: Duration,
) -> Result<(Option<Failure>, u64), String> {
    let can = subject.capabilities();
    let mut sizes =
        [10, 12].map(|bits: u32| 1 << bits.clamp(can.cluster_bits.0, can.cluster_bits.1)).to_vec();
    sizes.dedup();
    let initials = [Initial::Fresh, Initial::Fragmented, Initial::Dirty, Initial::L1AboutToGrow];
    let settings = ExploreSettings {
        profile,
        limit: Some(limit / 2),
        workers: 1,
        ..ExploreSettings::new(worlds(&sizes, &[false, true], &initials), 2)
    };
    let report = explore::run(subject, &settings.within(&can), |_, _, _, _| {});
    let states = report.worlds.iter().map(|explored| explored.counts.leaves).sum();
    match (report.found, report.broken) {
        (None, Some(why)) => Err(why),
        (found, _) => Ok((found.map(|found| found.failure), states)),
    }
}

/// Random workloads, of one request at a time and without failing I/O, past each that is `own`; how many states were judged.
fn drawn(
    subject: &AnySubject,
    profile: Profile,
    limit: Duration,
    own: impl Fn(&Found) -> bool + Sync,
) -> Result<(Option<Failure>, u64), String> {
    let settings = Settings {
        seed: 1,
        profile,
        damage: None,
        scope: Scope { tasks: Some(1), ..Scope::faultless() },
        budget: Budget::Time(limit),
        workers: 1,
    };
    let report = campaign::run_past(subject, &settings, |_| {}, own);
    match (report.found, report.broken) {
        (None, Some(why)) => Err(why),
        (found, _) => Ok((found.map(|found| found.failure), report.figures.states)),
    }
}
