//! What needs whole runs rather than states: that work goes on (P7), and that a crash wastes little (P9).
//!
//! **P7.** On what a recovery left, once no I/O fails any more: repair, open, write every guest unit, flush, close, and read
//! it all back, within [`IOS`] storage operations and as many more for each cluster of the file and of the guest's
//! disk as it is [held to](Duties::ios_per_cluster), and some for what takes several transfers. An implementation that never allocates again, or walks all tables for each request, does not pass. Emptied and filled
//! again, the file does not get longer; and what is closed at the end has no flaw.
//!
//! **P9.** What a crash can leak is what has a count and no reference on the medium, and that is bounded by the requests whose
//! counts and references may be apart there. With [`Exposure`] these are:
//!
//! ```text
//!    request ends     flush A         whoever was at it      flush B                flush C           power cut
//!   ------|-----------[======]-----------------|------------[======]---------------[======]-------------X
//!          taken: counts and references        :                   :                      :
//!                    go to the medium          :                   :                      :
//!          freed: the reference goes from      : no read is left   : at the latest now    :
//!                    the medium                : in the cluster    : the count is down in : ... and on
//!                                              :                   : memory               : the medium
//! ```
//!
//! So a request is settled once it has ended well, a flush A that began afterwards has succeeded, all requests that began before
//! the end of A have returned (a read among them may hold a freed cluster), a flush B that began after that has succeeded (it
//! lowers the counts, if nobody has), and so on for B and a flush C (which writes them). Until then it counts; one that failed
//! or was dropped counts to the end of the session, and so does a read during which an I/O failed: it returns what was asked for, whatever
//! becomes of the copy that it makes of a layer. It touches `c` guest
//! clusters under `t` L2 tables and can leak `c` that it takes, `c` that it gives up, twice as many of both where a stream may lie in two
//! clusters, and `t` new tables. Besides, refcount blocks are made for what is taken, and a table that moves (refcounts; L1 if the disk
//! grows) leaves its old or its new copy behind.

use std::collections::BTreeMap;

use faultfs::chooser::{Always, Chooser};
use faultfs::direct::Direct;
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use model::evidence::ValueKey;
use model::finding::{Finding, Property};
use model::guest::Guest;
use model::image::{Header, Mapping};
use model::judge::{Inherited, Statement};
use model::op::{Durability, Geometry, Op};
use model::payload::{self, UNIT};
use qcow2_core::storage::{IoBuf, Storage};

use crate::any::AnySubject;
use crate::buffer::to_read_into;
use crate::call;
use crate::evidence::{DiskEvidence, units};
use crate::panics;
use crate::recover::{Bench, Failure, Recovered, panicked, whole_image};
use crate::subject::{Duties, Session, Subject, SubjectImage};

/// Storage operations that going on may take in any case.
pub const IOS: u64 = 64;
/// A disk is written in no more than so many pieces, and some.
const PIECES: u64 = 256;
/// A disk of up to so many clusters is emptied and filled again.
const MOST_REFILLED: u64 = 300;
/// So often; the first time may leave more room than was needed.
const ROUNDS: usize = 3;
/// After so many flushes what was given up can be had again: one that makes it durable that it was, one that lowers the counts.
const FLUSHES: usize = 2;

/// When P7 is looked at.
const GOING_ON: &str = "after recovery, when nothing fails any more";

/// When P6 is looked at then.
const CLOSED_AFTERWARDS: &str = "after all of a recovered image was written and it was closed";

/// Write id of the payload that goes everywhere; no plan has so many writes.
const EVERYWHERE: u32 = u32::MAX - 1;

/// Whether a failure comes to light only when all of a recovered image is written.
pub fn is_seen_going_on(failure: &Failure) -> bool {
    [GOING_ON, CLOSED_AFTERWARDS].contains(&failure.moment.as_str())
}

/// How work went on after a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WentOn {
    /// Storage operations that it took until everything was written.
    pub ios: u64,
    /// How many it might have taken.
    pub most: u64,
    /// Whether the image was emptied and filled again.
    pub refilled: bool,
}

/// P7: repairs and opens the image on a fork of `disk`, and writes all of it; closed, it is in order on a device with this profile (P6). `guest`
/// says which passphrases open it.
///
/// # Errors
/// [`Property::P7`].
pub fn p7_goes_on<C: Chooser + Send + Clone + 'static>(
    subject: &impl Subject,
    session: Session,
    profile: Profile,
    geometry: &Geometry,
    disk: &PossibleDisk,
    guest: &Guest,
    chooser: &C,
) -> Result<WentOn, Failure> {
    let subject = &AnySubject::of(subject);
    let fail = |kind, story| {
        let mut violation = whole_image(Property::P7, kind);
        violation.story = story;
        Failure { violation, moment: GOING_ON.to_owned() }
    };
    let direct = Direct::new(disk.clone(), chooser.clone());
    let storage = direct.clone();
    let cluster = geometry.cluster_size();
    let can = subject.capabilities();
    let finds_space =
        subject.duties().finds_space && can.discard && geometry.clusters() <= MOST_REFILLED;
    let this = subject.clone();
    let done = faultfs::direct::run(async move {
        if can.repair {
            let claim = call::repair(&this, storage.clone()).await;
            if !matches!(claim, Ok(Statement::Clean | Statement::Repaired)) {
                return Err(fail("repair-gave-up", format!("{claim:?}")));
            }
        }
        let opened = call::open(&this, storage.clone(), session).await;
        let image = opened.map_err(|refusal| fail("open-refused", format!("{refusal:?}")))?;
        let size = image.size();
        // Of a large disk several clusters at once.
        let piece = cluster.max((size / PIECES).next_multiple_of(cluster));
        let pieces = || (0..size).step_by(as_index(piece)).map(|at| (at, piece.min(size - at)));
        let content = |offset: u64, length: u64| {
            let mut data = IoBuf::zeroed(as_index(length), UNIT);
            for (unit, bytes) in (offset / UNIT as u64..).zip(data.as_chunks_mut::<UNIT>().0) {
                *bytes = payload::unit(unit, EVERYWHERE);
            }
            data
        };
        let fill = async || {
            for (offset, length) in pieces() {
                let written =
                    image.write(offset, content(offset, length), Durability::Cached).await;
                written.map_err(|text| fail("write-fails", text))?;
            }
            image.flush().await.map_err(|text| fail("flush-fails", text))
        };
        fill().await?;
        let ios = storage.counts();
        for (offset, length) in pieces() {
            let read = image
                .read(offset, to_read_into(length))
                .await
                .map_err(|text| fail("read-fails", text))?;
            if read[..] != content(offset, length)[..] {
                return Err(fail("misread", format!("at {offset:#x}")));
            }
        }
        // The space of what is given up is found again: the file does not get longer for ever.
        let mut lengths = Vec::new();
        if finds_space {
            for _ in 0..ROUNDS {
                // Every other piece, then those between: what becomes free has free neighbours, or none.
                for second in [true, false] {
                    for (offset, length) in pieces().skip(usize::from(second)).step_by(2) {
                        let given_up = image.discard(offset, length).await;
                        given_up.map_err(|text| fail("discard-fails", text))?;
                    }
                    for _ in 0..FLUSHES {
                        image.flush().await.map_err(|text| fail("flush-fails", text))?;
                    }
                }
                fill().await?;
                lengths.push(
                    storage.len().await.map_err(|error| fail("len-fails", error.to_string()))?,
                );
            }
        }
        image.close().await.map_err(|text| fail("close-fails", text))?;
        Ok((ios.reads + ios.updates + ios.flushes, size, lengths))
    });
    if let Some(text) = panics::take() {
        return Err(panicked(text, GOING_ON));
    }
    let (ios, size, lengths) = done.unwrap_or_else(|| Err(fail("hangs", String::new())))?;
    if lengths.windows(2).last().is_some_and(|last| last[1] > last[0]) {
        let story = format!("filled again and again, the file was {lengths:?} bytes long");
        return Err(fail("space-lost", story));
    }
    let remains = direct.power_off();
    let clusters = u64::from(units(&remains.disk)).div_ceil(geometry.cluster_units());
    // A write that is durable by itself may take a flush before and one after its mapping.
    let per_cluster = subject.duties().ios_per_cluster * if session.write_through { 2 } else { 1 };
    let of_disk = size.div_ceil(cluster);
    // A cluster takes several transfers on some devices: data when it is written, a table when the repair and opening look at it, too.
    let more = (cluster / remains.disk.limits().max_transfer as u64).saturating_sub(1);
    let tables = tables(geometry, of_disk, clusters);
    let most = IOS + per_cluster * (clusters + of_disk) + more * (of_disk + 3 * tables);
    if ios > most {
        let story = format!("{ios} storage operations, more than {most}");
        return Err(fail("unbounded-work", story));
    }
    // Who does not repair may have been given an image with flaws.
    if can.repair {
        audit_closed(subject, session, profile, geometry, (&remains.disk, size), guest)?;
    }
    Ok(WentOn { ios, most, refilled: !lengths.is_empty() })
}

/// Clusters of tables of an image with a disk and a file of so many clusters, the header among them; twice, because tables move.
fn tables(geometry: &Geometry, of_disk: u64, of_file: u64) -> u64 {
    let l2 = of_disk.div_ceil(geometry.l2_entries());
    let l1 = (8 * l2).div_ceil(geometry.cluster_size());
    let blocks = of_file.div_ceil(geometry.block_entries());
    let refcount_table = (8 * blocks).div_ceil(geometry.cluster_size());
    2 * (1 + l1 + l2 + refcount_table + blocks)
}

/// P6 of what was closed after that: nothing is wrong with it, nothing is leaked, and it holds what was written.
fn audit_closed(
    subject: &AnySubject,
    session: Session,
    profile: Profile,
    geometry: &Geometry,
    (disk, size): (&PossibleDisk, u64),
    before: &Guest,
) -> Result<(), Failure> {
    let values = disk.values().clone();
    let key = |unit| ValueKey(values.intern(&payload::unit(unit, EVERYWHERE)).0);
    let keys: Vec<ValueKey> = (0..size / UNIT as u64).map(key).collect();
    let guest = Guest::new(&keys, subject.promises(geometry, &session))
        .on(before.made().clone())
        .opened_as(before);
    let mut bench = Bench::new(subject.clone(), session, profile);
    let mut oldest = Always(u32::MAX);
    let mut crashed = disk.crash(profile, &mut oldest);
    let mut evidence = DiskEvidence::new(&mut crashed, &mut oldest);
    let violations = bench.judge.closed(&mut evidence, &guest, &Inherited::default());
    let Some(violation) = violations.first().cloned() else { return Ok(()) };
    Err(Failure { violation, moment: CLOSED_AFTERWARDS.to_owned() })
}

fn as_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a guest disk of a campaign fits in memory")
}

/// Requests whose counts and references may be apart on the medium.
#[derive(Clone, Debug, Default)]
pub struct Exposure {
    clock: u64,
    /// Bytes of the largest and of the smallest disk that were asked for.
    largest: u64,
    smallest: Option<u64>,
    /// When an I/O failed last.
    failed: u64,
    /// To how many bytes a shrink was to lead that did not end well: it may have left what a growth clears.
    half_shrunk: Option<u64>,
    /// Whether something was written compressed, and may lie in two host clusters from then on.
    compressed: bool,
    /// By task and operation.
    requests: BTreeMap<(usize, usize), Exposed>,
}

#[derive(Clone, Copy, Debug)]
struct Exposed {
    op: Op,
    began: u64,
    /// When it returned, or was dropped.
    returned: Option<u64>,
    /// Whether it returned well.
    well: bool,
}

impl Exposed {
    /// When it began and ended, if it is a flush that succeeded.
    fn flush(&self) -> Option<(u64, u64)> {
        let flushed = self.well && matches!(self.op, Op::Flush);
        self.returned.filter(|_| flushed).map(|returned| (self.began, returned))
    }
}

impl Exposure {
    /// A request begins.
    pub fn begin(&mut self, task: usize, index: usize, op: Op) {
        self.clock += 1;
        match op {
            Op::Grow { to } => self.largest = self.largest.max(to),
            Op::Shrink { to } => self.smallest = Some(self.smallest.map_or(to, |it| it.min(to))),
            Op::WriteCompressed { .. } => self.compressed = true,
            _ => {}
        }
        let exposed = Exposed { op, began: self.clock, returned: None, well: false };
        self.requests.insert((task, index), exposed);
    }

    /// An I/O has failed.
    pub fn io_failed(&mut self) {
        self.clock += 1;
        self.failed = self.clock;
    }

    /// A request has returned, well or not, or was dropped.
    pub fn end(&mut self, task: usize, index: usize, well: bool) {
        self.clock += 1;
        let clock = self.clock;
        let Some(exposed) = self.requests.get_mut(&(task, index)) else { return };
        if let (Op::Shrink { to }, false) = (exposed.op, well) {
            self.half_shrunk = Some(self.half_shrunk.map_or(to, |it| it.min(to)));
        }
        let copied = !(matches!(exposed.op, Op::Read { .. }) && self.failed > exposed.began);
        (exposed.returned, exposed.well) = (Some(clock), well && copied);
        if well && matches!(exposed.op, Op::Reopen) {
            self.requests.clear();
        }
    }

    /// When what had ended well by then was settled.
    fn settled(&self) -> u64 {
        let flushes = || self.requests.values().filter_map(Exposed::flush);
        let quiet = |end: u64| {
            let earlier = self.requests.values().filter(|exposed| exposed.began < end);
            earlier.map(|exposed| exposed.returned.unwrap_or(u64::MAX)).fold(end, u64::max)
        };
        let after = |end: u64| {
            let quiet = quiet(end);
            flushes().filter(move |&(began, _)| began > quiet)
        };
        flushes()
            .filter(|&(_, end)| after(end).any(|(_, end)| after(end).next().is_some()))
            .fold(0, |latest, (began, _)| latest.max(began))
    }

    /// P9: how many clusters a power cut now may leak, in an image that was like this when the life began.
    fn may_leak(&self, before: &Before) -> u64 {
        let Before { geometry, copies, streams, size, past_end, refcount_table, l1, .. } = *before;
        let cluster = geometry.cluster_size();
        let covered = cluster / 8 * cluster;
        let mut taken = 0;
        let mut moved = 0;
        let settled = self.settled();
        let given_up = 1 + u64::from(streams || self.compressed);
        // What a growth finds past the end of the disk, and clears.
        let left = || {
            let most = self.largest.max(size);
            let cut = self.half_shrunk.map_or(0, |to| most.saturating_sub(to));
            (past_end + cut.div_ceil(cluster)) * given_up
        };
        // What a growth over a longer layer needs to hide it: tables of marks, or zeroes in version 2.
        let hides = |to: u64| {
            let old = self.smallest.map_or(size, |it| it.min(size));
            let shown = to.min(geometry.below.unwrap_or(0)).saturating_sub(old);
            match shown {
                0 => 0,
                _ if geometry.has_features() => 2 + shown.div_ceil(covered),
                _ => 3 + shown.div_ceil(covered) + shown.div_ceil(cluster),
            }
        };
        let is_settled = |exposed: &&Exposed| {
            exposed.well && exposed.returned.is_some_and(|returned| returned < settled)
        };
        for exposed in self.requests.values().filter(|exposed| !is_settled(exposed)) {
            match exposed.op {
                Op::Write { offset, length, .. }
                | Op::WriteZeroes { offset, length, .. }
                | Op::Discard { offset, length }
                | Op::Uncover { offset, length }
                | Op::Preallocate { offset, length, .. } => {
                    let touched = |size: u64| (offset + length).div_ceil(size) - offset / size;
                    taken += (1 + given_up) * touched(cluster) + touched(covered);
                }
                // A stream may reach from one host cluster into a second one.
                Op::WriteCompressed { offset, length, .. } => {
                    let touched = |size: u64| (offset + length).div_ceil(size) - offset / size;
                    taken += (2 + given_up) * touched(cluster) + touched(covered);
                }
                // What it shows of the layer is copied.
                Op::Read { offset, length } if copies => {
                    let touched = |size: u64| (offset + length).div_ceil(size) - offset / size;
                    taken += touched(cluster) + touched(covered);
                }
                // The new table has room for the disk that was asked for.
                Op::Grow { to } => {
                    moved += l1 + (to.div_ceil(covered) * 8).div_ceil(cluster);
                    taken += hides(to) + left();
                }
                // All that is cut off, and its tables.
                Op::Shrink { to } => {
                    let most = self.largest.max(size);
                    let cut =
                        |unit: u64| most.div_ceil(unit) - (to / unit).min(most.div_ceil(unit));
                    taken += 1 + given_up * cut(cluster) + cut(covered);
                }
                Op::AddPassphrase { .. }
                | Op::RemovePassphrase { .. }
                | Op::Read { .. }
                | Op::Flush
                | Op::Reopen => {}
            }
        }
        if taken + moved == 0 {
            return 0;
        }
        let counts_in_block = (cluster * 8) >> geometry.refcount_order;
        let blocks = 1 + (taken + moved).div_ceil(counts_in_block);
        // A part of the new L1 table, up to where a block has to come first, and the whole of it behind that.
        taken + 2 * moved + blocks + 2 * refcount_table + 1
    }
}

/// What an image was like when a life began, as far as its waste is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    geometry: Geometry,
    /// Whether what is read of the layer below is copied.
    copies: bool,
    /// Whether clusters are compressed: each may lie in two host clusters.
    streams: bool,
    leaks: u64,
    /// Of the disk, in bytes.
    size: u64,
    /// Guest clusters past its end that are mapped all the same.
    past_end: u64,
    /// In clusters.
    refcount_table: u64,
    l1: u64,
}

impl Before {
    /// The image that `bench` judged last.
    pub fn of(bench: &Bench, geometry: &Geometry) -> Self {
        let auditor = bench.judge.auditor();
        let leak = |finding: &&Finding| matches!(finding, Finding::Leak { .. });
        let header = auditor.image().header();
        let (size, refcount_table, l1) = header.map_or((0, 0, 0), |header| {
            let l1 = (u64::from(header.l1_size) * 8).div_ceil(header.cluster_size());
            (header.size, u64::from(header.refcount_table_clusters), l1)
        });
        let past = |header: &Header| {
            let end = header.size.div_ceil(header.cluster_size());
            // Whatever else it says, a host cluster may be kept for it.
            let mappings = auditor.image().mappings();
            mappings.filter(|&(cluster, _)| cluster >= end).count() as u64
        };
        let past_end = header.map_or(0, past);
        let leaks = auditor.report().findings.iter().filter(leak).count();
        // What nobody vouches for any more is leaked too, and by no crash.
        // Opening it repairs the first kind; and the second, unless somebody has repaired it before.
        let leaks = if bench.will_repair() { 0 } else { leaks };
        let leaks = (leaks + auditor.image().vouched_for().count()) as u64;
        let copies = bench.session.copy_on_read;
        let compressed = |(_, mapping)| matches!(mapping, Mapping::Compressed(_));
        let streams = auditor.image().mappings().any(compressed);
        Self { geometry: *geometry, copies, streams, leaks, size, past_end, refcount_table, l1 }
    }

    /// How many clusters a power cut may leak after these requests.
    pub fn may_leak(&self, exposure: &Exposure) -> u64 {
        exposure.may_leak(self)
    }

    /// How many of the leaks that a recovery met are of this life.
    pub fn leaked(&self, recovered: &Recovered) -> u64 {
        recovered.leaks.saturating_sub(self.leaks)
    }
}

/// P9: a crash leaked no more than it may.
///
/// # Errors
/// [`Property::P9`], of a subject that is held to it.
pub fn p9_bounded_waste(subject: &impl Subject, leaked: u64, may_leak: u64) -> Result<(), Failure> {
    let subject = &AnySubject::of(subject);
    let Duties { structure, leaks_little, .. } = subject.duties();
    if leaked <= may_leak || !(structure && leaks_little) {
        return Ok(());
    }
    let mut violation = whole_image(Property::P9, "too-many-leaks");
    violation.story = format!(
        "{leaked} clusters leaked, more than the {may_leak} that the requests in doubt can account for"
    );
    Err(Failure { violation, moment: "after recovery".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::{Before, Exposure, p9_bounded_waste};
    use crate::subject::Qcow2Core;
    use model::op::{Durability, Geometry, Op};

    const GEOMETRY: Geometry = Geometry::plain(10, 1 << 16);

    fn write(length: u64) -> Op {
        Op::Write { offset: 512, length, id: 1, durability: Durability::Cached }
    }

    fn leak(exposure: &Exposure) -> u64 {
        leak_of(exposure, false)
    }

    fn leak_of(exposure: &Exposure, copies: bool) -> u64 {
        let size = GEOMETRY.virtual_size;
        exposure.may_leak(&Before {
            geometry: GEOMETRY,
            copies,
            streams: false,
            leaks: 0,
            size,
            past_end: 0,
            refcount_table: 1,
            l1: 1,
        })
    }

    fn flush(exposure: &mut Exposure, index: usize) {
        exposure.begin(1, index, Op::Flush);
        exposure.end(1, index, true);
    }

    #[test]
    fn a_request_is_exposed_until_three_flushes_after_its_end() {
        let mut exposure = Exposure::default();
        assert_eq!(leak(&exposure), 0);
        exposure.begin(0, 0, write(1024));
        // Two clusters taken, two given up, one L2 table, two refcount blocks, two refcount tables, one more.
        assert_eq!(leak(&exposure), 2 * 2 + 1 + 2 + 2 + 1);
        exposure.begin(1, 0, Op::Flush);
        exposure.end(0, 0, true);
        exposure.end(1, 0, true);
        for index in 1..=3 {
            assert!(leak(&exposure) > 0, "a flush that began before its end is none");
            flush(&mut exposure, index);
        }
        assert_eq!(leak(&exposure), 0);
    }

    #[test]
    fn whoever_holds_a_cluster_has_to_be_done_before_the_second_flush() {
        let mut exposure = Exposure::default();
        exposure.begin(0, 0, write(512));
        exposure.end(0, 0, true);
        exposure.begin(2, 0, Op::Flush);
        (1..4).for_each(|index| flush(&mut exposure, index));
        assert!(leak(&exposure) > 0, "the flush of task 2 is still at it");
        exposure.end(2, 0, true);
        for index in 4..=5 {
            assert!(leak(&exposure) > 0, "what is lowered is in memory");
            flush(&mut exposure, index);
        }
        assert_eq!(leak(&exposure), 0);
    }

    #[test]
    fn what_failed_stays_exposed_until_the_image_is_closed() {
        let mut exposure = Exposure::default();
        exposure.begin(0, 0, write(512));
        exposure.end(0, 0, false);
        (1..9).for_each(|index| flush(&mut exposure, index));
        assert!(leak(&exposure) > 0);
        exposure.begin(0, 9, Op::Reopen);
        exposure.end(0, 9, true);
        assert_eq!(leak(&exposure), 0);
    }

    #[test]
    fn a_read_whose_copy_failed_stays_exposed() {
        for io_fails in [false, true] {
            let mut exposure = Exposure::default();
            exposure.begin(0, 0, Op::Read { offset: 512, length: 512 });
            if io_fails {
                exposure.io_failed();
            }
            exposure.end(0, 0, true);
            (1..9).for_each(|index| flush(&mut exposure, index));
            assert_eq!(leak_of(&exposure, true) > 0, io_fails);
            assert_eq!(leak_of(&exposure, false), 0, "nothing is copied");
        }
    }

    #[test]
    fn one_cluster_too_many_is_a_violation() {
        let subject = Qcow2Core::default();
        assert_eq!(p9_bounded_waste(&subject, 3, 3), Ok(()));
        let failure = p9_bounded_waste(&subject, 4, 3).expect_err("it is one too many");
        assert_eq!(failure.violation.to_string().lines().next(), Some("P9 too-many-leaks: image"));
    }
}
