//! A real guest's writes as a workload: what a guest asked of its disk once is asked of a fresh image again, and the power
//! fails on the way.
//!
//! The invariant: the image is asked for exactly what the log says, in the log's order, and the reference disk is told of
//! every request. A log holds requests in the order in which they completed, and nothing of what ran side by side, so one
//! task does one request at a time. What else happens is a function of the log and the [`TraceSettings`].
//!
//! ```text
//!   log       w  w  F  w  w  w  F  w  F  w  w  F
//!   life 0    w  w  F  w  w--x       ^                 power cuts on copies of the disk, each state recovered and judged
//!                ^  ^        |                         the last one of a life is for good:
//!   life 1                   w  w  F  w  F--x            on what recovery left, the guest asks again for what was cut off
//!   life 2                                  F  w  w  F   the last life is closed cleanly
//! ```

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use faultfs::chooser::Always;
use faultfs::direct::{self, Direct};
use faultfs::disk::PossibleDisk;
use faultfs::fault::Planned;
use faultfs::profile::Profile;
use faultfs::rng::Rng;
use faultfs::trace::IoKind;
use faultfs::values::Values;
use model::build::Initial;
use model::case::Opening;
use model::evidence::ValueKey;
use model::guest::Guest;
use model::op::{Geometry, MAX_VIRTUAL_SIZE, Op};
use qcow2_core::storage::AnyStorage;
use qcow2_core::{CreateError, CreateOptions};

use crate::any::AnySubject;
use crate::campaign::draw_steps;
use crate::evidence::DiskEvidence;
use crate::figures::Figures;
use crate::leaf::{self, LeafChooser, SharedLeaf};
use crate::life::{self, Cause, Moment, Order, Request, Script};
use crate::log_file::{self, LogFileError};
use crate::logwrites::{Action, Log};
use crate::probe::{Probe, Probes};
use crate::recover::{Bench, Failure};
use crate::situations::{probe_answers, probe_data};
use crate::subject::{Session, Subject};
use crate::trial;

/// A power cut falls on the moment that comes up to so many moments after a request has begun.
const MOMENTS_PER_REQUEST: usize = 12;

/// The guest's disk ends on such a boundary.
const SIZE_STEP: u64 = 1 << 20;

/// Everything that a guest asked of its disk.
#[derive(Clone, Debug)]
pub struct GuestTrace {
    requests: Vec<Request>,
    /// The number of the log entry that each is of.
    entries: Vec<u64>,
    size: u64,
}

/// Why a file is no trace that can be run.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A file cannot be read, or it is no log.
    #[error(transparent)]
    Log(#[from] LogFileError),
    /// The guest's disk is larger than the reference disk can be.
    #[error("{}: log entry {entry} ends at {end}, past the {MAX_VIRTUAL_SIZE} bytes that are tracked", .path.display())]
    TooFar {
        /// The file.
        path: PathBuf,
        /// Number of the entry, from 0.
        entry: u64,
        /// Where it ends.
        end: u64,
    },
    /// Nothing was asked of the disk.
    #[error("{}: a log without a request", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl GuestTrace {
    /// Loads a log of block writes, compressed with zstd or not.
    ///
    /// # Errors
    /// [`TraceError`], which names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, TraceError> {
        let bad = |source| LogFileError::log(path, source);
        let bytes = log_file::read(path)?;
        let mut trace = Self { requests: Vec::new(), entries: Vec::new(), size: 0 };
        for (number, entry) in (0..).zip(Log::parse(&bytes).map_err(bad)?.entries()) {
            let entry = entry.map_err(bad)?;
            let (offset, length) = match entry.content {
                Action::Data(data) => (entry.offset, data.len() as u64),
                Action::Discard(length) => (entry.offset, length),
                Action::Mark(_) => continue,
            };
            let end = offset.saturating_add(length);
            if length > 0 && end > MAX_VIRTUAL_SIZE {
                return Err(TraceError::TooFar { path: path.to_owned(), entry: number, end });
            }
            let mut push = |request| {
                trace.requests.push(request);
                trace.entries.push(number);
            };
            if entry.flush {
                push(Request::Op(Op::Flush));
            }
            if length == 0 {
                continue;
            }
            push(match entry.content {
                Action::Data(data) => Request::Raw(offset, Arc::from(data)),
                _ => Request::Op(Op::Discard { offset, length }),
            });
            // Durable when it returns: as a host does it whose storage knows no such writes.
            if entry.fua {
                push(Request::Op(Op::Flush));
            }
            trace.size = trace.size.max(end.next_multiple_of(SIZE_STEP));
        }
        if trace.size == 0 {
            return Err(TraceError::Empty { path: path.to_owned() });
        }
        Ok(trace)
    }

    /// The requests, in order.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// The log entry that a request is of; none of the clean close after the last.
    pub fn entry_of(&self, request: usize) -> Option<u64> {
        self.entries.get(request).copied()
    }

    /// The trace without its discards, and how many they were: a device need not heed them.
    #[must_use]
    pub fn without_discards(self) -> (Self, usize) {
        let all = self.requests.len();
        let kept = self.requests.into_iter().zip(self.entries);
        let kept = kept.filter(|(it, _)| !matches!(it, Request::Op(Op::Discard { .. })));
        let (requests, entries): (Vec<_>, Vec<_>) = kept.unzip();
        let left_out = all - requests.len();
        (Self { requests, entries, size: self.size }, left_out)
    }

    /// Bytes of a disk that holds all that the guest wrote to: whole mebibytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes written.
    pub fn bytes(&self) -> u64 {
        let bytes = |request: &Request| match request {
            Request::Raw(_, data) => data.len() as u64,
            Request::Op(_) => 0,
        };
        self.requests.iter().map(bytes).sum()
    }
}

/// How a trace is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceSettings {
    /// log2 of the cluster size of the image.
    pub cluster_bits: u32,
    /// Whether its refcounts are lazy.
    pub lazy: bool,
    /// Bytes by which the file grows; 0 for the subject's own choice. The smaller, the more orders there are to keep.
    pub growth: u64,
    /// How the power fails.
    pub profile: Profile,
    /// Seed of the schedule, of when the power fails and of what survives.
    pub seed: u64,
    /// Power cuts at any moment, beside those that end lives.
    pub crash_points: u32,
    /// The power fails at one in so many of the *busy* moments too, when a request has taken more than one change of the
    /// storage; 0 for none. A guest that rewrites its journal all day touches no metadata, so random moments seldom do.
    pub busy_one_in: u32,
    /// Lives: all but the last one end in a power cut.
    pub lives: u32,
}

impl TraceSettings {
    /// The shape of the image.
    pub fn geometry(&self, trace: &GuestTrace) -> Geometry {
        Geometry { lazy_refcounts: self.lazy, ..Geometry::plain(self.cluster_bits, trace.size()) }
    }
}

/// What running a trace did.
#[derive(Debug)]
pub struct TraceReport {
    /// The figures, times left out.
    pub figures: Figures,
    /// The image after the last life was closed.
    pub disk: PossibleDisk,
    /// The reference disk then.
    pub guest: Guest,
}

/// Why a run of a trace did not end well.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RunError {
    /// No image can be made like that.
    #[error("creating the image: {0}")]
    Create(String),
    /// A promise was broken.
    #[error("life {life}, request {request}, {}: {}", .failure.moment, .failure.violation)]
    Violation {
        /// Number of the life, from 0.
        life: u32,
        /// Number of the request in the trace that had begun last.
        request: usize,
        /// What is wrong.
        failure: Box<Failure>,
    },
    /// Whoever looked at the recovered images had seen enough.
    #[error("life {life}, request {request}: {}", .why.as_deref().unwrap_or("it was asked to stop"))]
    Stopped {
        /// Number of the life, from 0.
        life: u32,
        /// Number of the request in the trace that had begun last.
        request: usize,
        /// What was seen; nothing if it was only asked to stop.
        why: Option<String>,
    },
}

impl From<CreateError> for RunError {
    fn from(error: CreateError) -> Self {
        Self::Create(error.to_string())
    }
}

/// A power cut to come: some moments after a request has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cut {
    /// The request; the number of all of them stands for the clean close.
    request: usize,
    /// Moments after its beginning.
    moments: usize,
    /// Whether the life ends with it.
    for_good: bool,
}

/// How far a life has come.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The request that has begun last.
    request: usize,
    /// Moments since then.
    moments: usize,
    /// Storage operations other than reads that were submitted since then.
    changes: u32,
}

impl Place {
    /// Goes on to `moment` of a life that began with request `first` of `all`.
    fn follow(&mut self, moment: &Moment<'_>, first: usize, all: usize) {
        self.moments += 1;
        if let Some((_, op)) = moment.concerns {
            let request = op.saturating_add(first).min(all);
            if request != self.request {
                *self = Self { request, moments: 0, changes: 0 };
            }
        }
        if let Cause::Submitted(io) = moment.cause {
            self.changes += u32::from(io.kind != IoKind::Read);
        }
    }

    fn reached(&self) -> (usize, usize) {
        (self.request, self.moments)
    }

    fn is_busy(&self) -> bool {
        self.changes > 1
    }
}

/// Runs a trace onto a fresh image. `look` is shown every crash state once it is recovered and judged: the image as opening it
/// for writing left it, and the number of the request that had begun last.
///
/// # Errors
/// [`RunError`]: the first violation, or an image that cannot be created.
pub fn run(
    subject: &impl Subject,
    trace: &GuestTrace,
    settings: &TraceSettings,
    mut look: impl FnMut(&PossibleDisk, usize),
) -> Result<TraceReport, RunError> {
    let subject = &AnySubject::of(subject);
    run_until(subject, trace, settings, |disk, request| {
        look(disk, request);
        ControlFlow::Continue(())
    })
}

/// The same until `look` breaks it off, with what it has seen if that is why.
///
/// # Errors
/// As [`run`], and [`RunError::Stopped`].
pub fn run_until(
    subject: &impl Subject,
    trace: &GuestTrace,
    settings: &TraceSettings,
    mut look: impl FnMut(&PossibleDisk, usize) -> ControlFlow<Option<String>>,
) -> Result<TraceReport, RunError> {
    let subject = &AnySubject::of(subject);
    let TraceSettings { growth, profile, seed, .. } = *settings;
    let geometry = settings.geometry(trace);
    if let Some(why) = subject.capabilities().refuses(&geometry, Initial::Fresh) {
        return Err(RunError::Create(why));
    }
    let mut disk = create(&geometry)?;
    let units = trial::cluster_units(&geometry);
    let guest_units = usize::try_from(geometry.units()).expect("MAX_VIRTUAL_SIZE is far below");
    let zeroes = vec![ValueKey::ZERO; guest_units];
    let open = Opening { growth_step: growth, ..Opening::new(subject.key()) };
    let session = Session::of(&open, &geometry);
    let mut guest = Guest::new(&zeroes, subject.promises(&geometry, &session));
    let mut bench = Bench::new(subject.clone(), session, profile);
    let mut rng = Rng::new(seed);
    let mut cuts = draw_cuts(&mut rng, trace, settings).into_iter().peekable();
    let mut figures = Figures { cases: 1, ..Figures::default() };
    figures.long_cases = u64::from(settings.lives > 1);
    let mut probes = Probes::default();
    let mut distinct = BTreeSet::new();
    let (mut life, mut next) = (0, 0);
    loop {
        let first = next;
        let script = Script {
            tasks: vec![trace.requests()[first..].to_vec()],
            order: Order::Seed(rng.next_u64()),
            faults: Planned(Vec::new()),
            dropped: None,
            session,
        };
        let inherited = trial::inherited(&mut bench, &mut disk, &guest);
        let mut at = Place { request: first, moments: 0, changes: 0 };
        let mut kept = None;
        let mut failed = None;
        let mut stopped = None;
        let mut leaf_probes = Probes::default();
        let end = life::run(subject, disk, guest, &script, &mut probes, |moment| {
            figures.crash_points += 1;
            at.follow(moment, first, trace.requests().len());
            let mut due = u32::from(at.is_busy() && one_in(&mut rng, settings.busy_one_in));
            let mut for_good = false;
            while let Some(cut) = cuts.next_if(|cut| (cut.request, cut.moments) <= at.reached()) {
                due += 1;
                for_good |= cut.for_good;
                if for_good {
                    break;
                }
            }
            for _ in 0..due {
                let chooser = LeafChooser::random(rng.next_u64(), units).share();
                let steps = draw_steps(&mut rng);
                let mut seen = moment.guest.clone();
                seen.crash();
                let mut asked = SharedLeaf::clone(&chooser);
                let crashed = moment.sim.with_disk(|disk| disk.crash(profile, &mut asked));
                match bench.judge_crash(crashed, &seen, &steps, &chooser, &mut leaf_probes) {
                    Ok(recovered) => {
                        figures.judged(&seen, recovered.states);
                        distinct.insert(recovered.disk.state_hash());
                        let answers = leaf::look(&chooser).answers().to_vec();
                        probe_answers(&answers, &bench, &mut leaf_probes);
                        probe_data(&recovered.disk, &bench, units, &mut leaf_probes);
                        if let ControlFlow::Break(why) = look(&recovered.disk, at.request) {
                            stopped = Some(why);
                            return ControlFlow::Break(());
                        }
                        kept = for_good.then_some((recovered.disk, seen, chooser));
                    }
                    Err(failure) => {
                        failed = Some(failure);
                        return ControlFlow::Break(());
                    }
                }
            }
            if for_good {
                // What was answered need not be asked again.
                at.request += usize::from(moment.cause == Cause::Returned);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        figures.lives += 1;
        figures.operations += end.operations;
        figures.ios += end.sim.storage().submitted();
        probes.add(&leaf_probes);
        life::probe_trace(end.sim.trace().events(), geometry.cluster_size(), &mut probes);
        let violation =
            |failure| RunError::Violation { life, request: at.request, failure: Box::new(failure) };
        if let Some(why) = stopped {
            return Err(RunError::Stopped { life, request: at.request, why });
        }
        if let Some(failure) = failed.or(end.failure) {
            return Err(violation(failure));
        }
        if let Some((recovered, seen, mut chooser)) = kept {
            probes.hit(Probe::SecondLife);
            (disk, guest, next) = (recovered, seen, at.request);
            bench.settle_guest(&mut disk, &mut guest, &mut chooser).map_err(violation)?;
            life += 1;
            continue;
        }
        let mut chooser = LeafChooser::random(rng.next_u64(), units).share();
        guest = end.guest;
        guest.crash();
        disk = end.disk.crash(profile, &mut chooser);
        let mut evidence = DiskEvidence::new(&mut disk, &mut chooser);
        if let Some(found) = bench.judge.closed(&mut evidence, &guest, &inherited).first().cloned()
        {
            let moment = "after a clean close".to_owned();
            return Err(violation(Failure { violation: found, moment }));
        }
        let recovered = bench.judge_crash(disk, &guest, &[], &chooser, &mut probes);
        let recovered = recovered.map_err(violation)?;
        figures.judged(&guest, recovered.states);
        distinct.insert(recovered.disk.state_hash());
        figures.distinct_states = distinct.len() as u64;
        figures.by_initial.insert("fresh".into(), figures.states);
        figures.by_cluster.insert(geometry.cluster_size(), figures.states);
        figures.probes = probes;
        return Ok(TraceReport { figures, disk: recovered.disk, guest });
    }
}

/// A fresh image on a disk that has nothing pending.
fn create(geometry: &Geometry) -> Result<PossibleDisk, CreateError> {
    let options = CreateOptions::new(geometry.virtual_size)
        .cluster_bits(geometry.cluster_bits)
        .lazy_refcounts(geometry.lazy_refcounts);
    let storage = Direct::new(PossibleDisk::new(&Values::new(), 0), Always(0));
    let file = AnyStorage::new(storage.clone());
    direct::run(qcow2_core::create(&file, &options)).expect("nothing to wait for")?;
    Ok(storage.power_off().disk)
}

fn one_in(rng: &mut Rng, odds: u32) -> bool {
    odds > 0 && rng.below(odds) == 0
}

/// When the power fails, in order: half of the time around a flush, because that is when metadata is written.
fn draw_cuts(rng: &mut Rng, trace: &GuestTrace, settings: &TraceSettings) -> Vec<Cut> {
    let requests = trace.requests();
    let is_flush = |number: &usize| matches!(requests[*number], Request::Op(Op::Flush));
    let flushes: Vec<usize> = (0..requests.len()).filter(is_flush).collect();
    let ends = settings.lives.saturating_sub(1);
    let mut below = |end: usize| rng.below(u32::try_from(end).unwrap_or(u32::MAX)) as usize;
    let cut = |number| {
        let for_good = number < ends;
        let request = if !flushes.is_empty() && below(2) == 0 {
            flushes[below(flushes.len())]
        } else {
            // After the last request comes the clean close, and nothing for another life to do.
            below(requests.len() + usize::from(!for_good))
        };
        Cut { request, moments: below(MOMENTS_PER_REQUEST), for_good }
    };
    let mut cuts: Vec<Cut> = (0..settings.crash_points + ends).map(cut).collect();
    cuts.sort_unstable();
    cuts
}
