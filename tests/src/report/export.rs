//! The lives of a failing trial as a log of block writes, which other tools replay and `import` judges.
//!
//! ```text
//!   I/O    w0 submitted   F submitted   w0 ends   w1 submitted   F ends   w1 ends   w2 submitted | power cut
//!   log                   F             w0                                w1        w2           | mark
//! ```
//!
//! A log has an entry for what has ended, in that order, and its flushes cover all that stands before them. So a flush stands where it was
//! submitted, as soon as it is known to have ended well; what is in flight when the power fails is as undecided as what a flush did not
//! cover, and stands last. What failed is a note: a log cannot say that a write may have landed.
//!
//! Between two lives the log turns what was written into what the power cut and recovery left. Marks ([`LogMark`]) say where that is, how
//! long the file is, and what the guest asked.
//!
//! The invariant: whatever a power cut can leave in a life, it can leave at the same place of the log, unless something failed there.

use std::collections::{BTreeMap, BTreeSet};

use faultfs::chooser::Always;
use faultfs::disk::PossibleDisk;
use faultfs::trace::{Event, Io, IoKind};
use model::payload::UNIT;

use super::timeline::{Played, play};
use super::{fails_alive, notes};
use crate::any::AnySubject;
use crate::log_mark::LogMark;
use crate::logwrites::{Entry, LogError, encode};
use crate::recover::Failure;
use crate::subject::Subject;
use crate::trial::{self, Trial, TrialLife};

/// A log of what a trial wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedLog {
    /// The log.
    pub bytes: Vec<u8>,
    /// Its entries.
    pub entries: usize,
    /// Lives in it.
    pub lives: usize,
    /// What failed, and is a note.
    pub failed: usize,
}

/// One entry.
enum Owned {
    Write { offset: u64, data: Vec<u8>, through: bool },
    Discard { offset: u64, length: u64 },
    Flush,
    Note(String),
}

/// The log of a failing trial, up to its failure; none if it does not fail any more.
///
/// # Errors
/// What a log cannot hold: a note that is too long.
pub fn log(
    subject: &impl Subject,
    trial: &Trial,
    failure: &Failure,
) -> Result<Option<ExportedLog>, LogError> {
    let subject = &AnySubject::of(subject);
    let Some((last, _)) = trial::run(subject, trial).ok().and_then(|outcome| outcome.failure)
    else {
        return Ok(None);
    };
    let mut writer = Writer::default();
    for number in 0..=last {
        let Some(played) = play(subject, trial, number) else { return Ok(None) };
        writer.begin(number, &played.timeline.start);
        let alive = number == last && fails_alive(failure);
        let end = if alive { played.timeline.events.len() } else { played.cut };
        writer.live(&trial.lives[number], &played, end);
        if !alive {
            writer.mark(LogMark::PowerCut);
        }
    }
    let Writer { entries, failed, .. } = writer;
    let bytes = encode(UNIT as u32, entries.iter().map(Owned::entry))?;
    Ok(Some(ExportedLog { bytes, entries: entries.len(), lives: last + 1, failed }))
}

impl Owned {
    fn entry(&self) -> Entry<'_> {
        match self {
            Self::Write { offset, data, through } => {
                Entry { fua: *through, ..Entry::write(*offset, data) }
            }
            Self::Discard { offset, length } => Entry::discard(*offset, *length),
            Self::Flush => Entry::flush(),
            Self::Note(text) => Entry::mark(text.as_bytes()),
        }
    }
}

/// A log that is being written.
#[derive(Default)]
struct Writer {
    entries: Vec<Owned>,
    /// The file as all that was written leaves it.
    newest: Vec<u8>,
    /// Units that may hold something else: they were discarded.
    unsure: BTreeSet<u64>,
    failed: usize,
}

impl Writer {
    fn mark(&mut self, mark: LogMark) {
        self.entries.push(Owned::Note(mark.to_string()));
    }

    fn write(&mut self, offset: u64, data: Vec<u8>, through: bool) {
        let from = usize::try_from(offset).expect("a file of a campaign is small");
        if self.newest.len() < from + data.len() {
            self.newest.resize(from + data.len(), 0);
        }
        self.newest[from..from + data.len()].copy_from_slice(&data);
        self.entries.push(Owned::Write { offset, data, through });
    }

    fn length(&mut self, bytes: u64) {
        self.newest.resize(usize::try_from(bytes).expect("a file of a campaign is small"), 0);
        self.mark(LogMark::Length(bytes));
    }

    /// Turns what was written into the disk that a life begins on.
    fn begin(&mut self, number: usize, start: &PossibleDisk) {
        self.mark(if number == 0 { LogMark::Initial } else { LogMark::Recovery });
        let image = start.clone().image(&mut Always(0));
        self.length(image.len() as u64);
        let unsure = std::mem::take(&mut self.unsure);
        let differs = |unit: usize| {
            let bytes = unit * UNIT..(unit + 1) * UNIT;
            self.newest[bytes.clone()] != image[bytes] || unsure.contains(&(unit as u64))
        };
        let units = image.len() / UNIT;
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        for unit in (0..units).filter(|&unit| differs(unit)) {
            match runs.last_mut().filter(|run| run.end == unit) {
                Some(run) => run.end += 1,
                None => runs.push(unit..unit + 1),
            }
        }
        for run in runs {
            let data = image[run.start * UNIT..run.end * UNIT].to_vec();
            self.write((run.start * UNIT) as u64, data, false);
        }
        self.entries.push(Owned::Flush);
        self.mark(LogMark::Life(number));
    }

    /// Adds the first `end` events of a life.
    fn live(&mut self, life: &TrialLife, played: &Played, end: usize) {
        let events = &played.timeline.events[..end];
        let ended: BTreeSet<u64> = events.iter().filter_map(ended_well).collect();
        let mut notes = notes(played, life, end).into_iter();
        let mut next = notes.next();
        let mut running: BTreeMap<u64, Io> = BTreeMap::new();
        for (at, event) in events.iter().enumerate() {
            while let Some((_, words)) = next.take_if(|(before, _)| *before <= at) {
                self.entries.push(Owned::Note(words));
                next = notes.next();
            }
            match event {
                Event::Submit { io, .. } if played.timeline.refused.contains(&io.index) => {}
                Event::Submit { io, .. } if io.kind != IoKind::Flush => {
                    let _ = running.insert(io.index, *io);
                }
                Event::Submit { io, .. } if ended.contains(&io.index) => {
                    self.entries.push(Owned::Flush);
                }
                Event::Complete { index, .. } => {
                    if let Some(io) = running.remove(index) {
                        self.io(&io, played);
                    }
                }
                Event::Fail { index, .. } => {
                    if let Some(io) = running.remove(index) {
                        let Io { kind, offset, len, .. } = io;
                        self.failed += usize::from(kind != IoKind::Read);
                        let words = format!("failed: {kind:?} of {len} bytes at {offset:#x}");
                        self.entries.push(Owned::Note(words));
                    }
                }
                _ => {}
            }
        }
        for (_, words) in next.into_iter().chain(notes) {
            self.entries.push(Owned::Note(words));
        }
        if running.values().any(|io| io.kind != IoKind::Read) {
            self.entries.push(Owned::Note("in flight".to_owned()));
        }
        for io in running.into_values() {
            self.io(&io, played);
        }
    }

    /// Adds one I/O.
    fn io(&mut self, io: &Io, played: &Played) {
        let through = io.kind == IoKind::WriteThrough;
        match io.kind {
            IoKind::Read | IoKind::Flush => {}
            IoKind::Write | IoKind::WriteThrough => {
                let mut data = Vec::new();
                let values = played.timeline.start.values();
                for nth in 0..io.units() {
                    data.extend_from_slice(values.bytes(played.timeline.content(io, nth)));
                }
                self.write(io.offset, data, through);
            }
            IoKind::WriteZeroes => {
                let zeroes = vec![0; usize::try_from(io.len).expect("an I/O is small")];
                self.write(io.offset, zeroes, false);
            }
            IoKind::Discard => {
                let unit = UNIT as u64;
                self.unsure.extend(io.offset / unit..(io.offset + io.len) / unit);
                self.entries.push(Owned::Discard { offset: io.offset, length: io.len });
            }
            IoKind::SetLen => self.length(io.offset),
        }
    }
}

fn ended_well(event: &Event) -> Option<u64> {
    match event {
        Event::Complete { index, .. } => Some(*index),
        _ => None,
    }
}
