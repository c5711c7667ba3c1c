//! Rare situations, recognised in what a life did and in what a recovery found.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use faultfs::disk::PossibleDisk;
use faultfs::fault::Planned;
use faultfs::trace::{Event, Io, IoKind};
use model::image::Mapping;
use model::label::Region;
use model::payload::UNIT;

use crate::leaf::Answer;
use crate::probe::{Probe, Probes};
use crate::recover::Bench;
use crate::workload::FaultKind;

/// What an image consists of, for seeing it grow and its clusters change hands.
#[derive(Default)]
pub(crate) struct Shape {
    cluster: u64,
    l1: u64,
    refcount_table: u64,
    blocks: usize,
    /// Guest cluster by host offset.
    owners: BTreeMap<u64, u64>,
    streams: Streams,
}

/// How compressed clusters lie in an image.
#[derive(Clone, Copy, Default)]
struct Streams {
    across: bool,
    in_one_unit: bool,
    together: bool,
    full: bool,
}

impl Streams {
    /// Of these ranges of the file, in clusters that can count so many references.
    fn of(streams: impl Iterator<Item = Range<u64>>, cluster: u64, most: u64) -> Self {
        let mut streams: Vec<_> = streams.collect();
        streams.sort_unstable_by_key(|stream| stream.start);
        let unit = UNIT as u64;
        let mut parts = BTreeMap::<u64, u64>::new();
        for stream in &streams {
            for host in stream.start / cluster..stream.end.div_ceil(cluster) {
                *parts.entry(host).or_default() += 1;
            }
        }
        let across = |stream: &Range<u64>| (stream.end - 1) / cluster > stream.start / cluster;
        let meet = |two: &[Range<u64>]| (two[0].end - 1) / unit == two[1].start / unit;
        Self {
            across: streams.iter().any(across),
            in_one_unit: streams.windows(2).any(meet),
            together: parts.values().any(|&count| count >= 3),
            full: most > 1 && parts.values().any(|&count| count == most),
        }
    }
}

impl Shape {
    pub(crate) fn cluster_size(&self) -> u64 {
        self.cluster
    }

    pub(crate) fn of(bench: &Bench) -> Self {
        let image = bench.judge.auditor().image();
        let Some(header) = image.header() else { return Self::default() };
        let clusters = header.size.div_ceil(header.cluster_size());
        let owners = (0..clusters).filter_map(|cluster| match image.mapping(cluster) {
            Mapping::Host(offset) => Some((offset, cluster)),
            _ => None,
        });
        Self {
            cluster: header.cluster_size(),
            l1: header.l1_table_offset,
            refcount_table: header.refcount_table_offset,
            blocks: image.refcount_blocks(),
            owners: owners.collect(),
            streams: Streams::of(image.streams(), header.cluster_size(), header.refcount_max()),
        }
    }

    pub(crate) fn compare(&self, after: &Self, probes: &mut Probes) {
        if after.l1 != self.l1 {
            probes.hit(Probe::L1Growth);
        }
        if after.refcount_table != self.refcount_table {
            probes.hit(Probe::RefcountTableGrowth);
        }
        if after.blocks > self.blocks {
            probes.hit(Probe::RefcountBlockGrowth);
        }
        for (met, probe) in [
            (after.streams.across, Probe::StreamAcross),
            (after.streams.in_one_unit, Probe::StreamsInUnit),
            (after.streams.together, Probe::StreamsTogether),
            (after.streams.full, Probe::FullCount),
        ] {
            if met {
                probes.hit(probe);
            }
        }
        let reused = |(host, guest)| self.owners.get(host).is_some_and(|owner| owner != guest);
        if after.owners.iter().any(reused) {
            probes.hit(Probe::Reuse);
        }
    }
}

/// Which faults of a life struck, and which two did so together.
pub(crate) fn probe_faults(
    planned: &Planned,
    events: &[Event],
    dropped: bool,
    probes: &mut Probes,
) -> BTreeSet<(FaultKind, FaultKind)> {
    let mut completed = BTreeSet::new();
    let mut failed = BTreeSet::new();
    for event in events {
        match *event {
            Event::Complete { index, .. } => drop(completed.insert(index)),
            Event::Fail { index, .. } => drop(failed.insert(index)),
            _ => {}
        }
    }
    let mut struck = Vec::new();
    for fault in &planned.0 {
        let last = events.iter().rev().find_map(|event| match event {
            Event::Submit { io, .. } if failed.contains(&io.index) => {
                planned.striking(io).is_some_and(|by| by == fault).then_some(io.index)
            }
            _ => None,
        });
        let Some(last) = last else { continue };
        let kind = FaultKind::of(fault);
        struck.push(kind);
        match kind {
            FaultKind::FlushRetrySafe => probes.hit(Probe::FlushRetrySafe),
            FaultKind::FlushCleanMarked => probes.hit(Probe::FlushCleanMarked),
            FaultKind::FlushSticky => probes.hit(Probe::FlushSticky),
            FaultKind::ShortRead => probes.hit(Probe::ShortRead),
            FaultKind::ShortWrite => probes.hit(Probe::ShortWrite),
            FaultKind::WriteThroughFailed => probes.hit(Probe::WriteThroughFailed),
            FaultKind::Late if goes_on(events, last) => probes.hit(Probe::LateLanding),
            FaultKind::FullDevice => {
                let works = |event: &Event| match event {
                    Event::Submit { io, .. } => {
                        io.index > last && io.kind.is_update() && completed.contains(&io.index)
                    }
                    _ => false,
                };
                if events.iter().any(works) {
                    probes.hit(Probe::FullForGood);
                }
            }
            FaultKind::NoSpaceForAWhile => {
                let works = |event: &Event| match event {
                    Event::Submit { io, .. } => {
                        io.index > last
                            && fault.fault.concerns(io.kind)
                            && completed.contains(&io.index)
                    }
                    _ => false,
                };
                if events.iter().any(works) {
                    probes.hit(Probe::SpaceAgain);
                }
            }
            _ => {}
        }
    }
    struck.extend(dropped.then_some(FaultKind::Dropped));
    struck.sort_unstable();
    let mut pairs = BTreeSet::new();
    for (at, &one) in struck.iter().enumerate() {
        pairs.extend(struck[at + 1..].iter().map(|&other| (one, other)));
    }
    if !pairs.is_empty() {
        probes.hit(Probe::TwoFaults);
    }
    pairs
}

/// Whether the bytes of an I/O that failed were updated again, or the storage was settled.
fn goes_on(events: &[Event], failed: u64) -> bool {
    let mut late = None;
    events.iter().any(|event| match (event, late) {
        (Event::Submit { io, .. }, None) if io.index == failed => {
            late = Some(*io);
            false
        }
        (Event::Submit { io, .. }, Some(late)) => io.kind.is_update() && io.overlaps(&late),
        (Event::Settle, late) => late.is_some(),
        _ => false,
    })
}

/// Metadata that was read again after it had been written, as the image is now: its page had been given up meanwhile.
pub(crate) fn probe_reloads(events: &[Event], bench: &Bench, probes: &mut Probes) {
    let image = bench.judge.auditor().image();
    // By offset of each unit: whether a flush has covered it.
    let mut written: BTreeMap<u64, bool> = BTreeMap::new();
    for event in events {
        match event {
            Event::Submit { io, .. } if io.kind == IoKind::Write => {
                written
                    .extend((io.offset..io.offset + io.len).step_by(512).map(|unit| (unit, false)));
            }
            Event::Submit { io, .. } if io.kind == IoKind::Flush => {
                written.values_mut().for_each(|flushed| *flushed = true);
            }
            Event::Submit { io, .. } if io.kind == IoKind::Read => {
                let Some(flushed) = written.get(&io.offset) else { continue };
                if !matches!(
                    image.label(io.offset).region,
                    Region::L2(_) | Region::RefcountBlock(_)
                ) {
                    continue;
                }
                probes.hit(Probe::Reloaded);
                if !flushed {
                    probes.hit(Probe::ReloadedUndurable);
                }
            }
            _ => {}
        }
    }
}

/// Guest data that came back with several values possible, all of which were judged.
pub(crate) fn probe_data(disk: &PossibleDisk, bench: &Bench, units: u32, probes: &mut Probes) {
    let image = bench.judge.auditor().image();
    let mut last = None;
    for unit in disk.undecided() {
        if matches!(image.label(u64::from(unit) * 512).region, Region::Data(_)) {
            probes.hit(Probe::UnflushedLost);
            if last == Some(unit / units) {
                probes.hit(Probe::TornData);
            }
            last = Some(unit / units);
        }
    }
}

/// Which structures a crash tore, by what the units of each were decided to be.
pub(crate) fn probe_answers(answers: &[Answer], bench: &Bench, probes: &mut Probes) {
    if answers.is_empty() {
        return;
    }
    let image = bench.judge.auditor().image();
    let mut kept = BTreeSet::new();
    let mut lost = BTreeSet::new();
    for answer in answers {
        let Some(unit) = answer.unit else { continue };
        let region = image.label(u64::from(unit) * 512).region;
        if answer.taken == 0 { &mut kept } else { &mut lost }.insert(region);
    }
    let l2 = |set: &BTreeSet<Region>| set.iter().any(|region| matches!(region, Region::L2(_)));
    let counts = |set: &BTreeSet<Region>| {
        set.iter().any(|region| matches!(region, Region::RefcountBlock(_)))
    };
    for region in kept.intersection(&lost) {
        match region {
            Region::L2(_) => probes.hit(Probe::TornL2),
            Region::RefcountBlock(_) => probes.hit(Probe::TornRefcountBlock),
            _ => {}
        }
    }
    if l2(&kept) && counts(&lost) {
        probes.hit(Probe::L2WithoutRefcount);
    }
    if counts(&kept) && l2(&lost) {
        probes.hit(Probe::RefcountWithoutL2);
    }
}

pub(crate) const fn is_discard(event: &Event) -> bool {
    matches!(event, Event::Submit { io: Io { kind: IoKind::Discard, .. }, .. })
}
