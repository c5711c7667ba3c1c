//! A log of what some program wrote to an image file, as a possible disk that is played on, entry by entry.
//!
//! ```text
//!   entry     0    1    2     3    4        5
//!             w    w    F     w    w FUA    w
//!            `---------'|    `--'         `---'   a power cut here: what 3 and 5 wrote is undecided
//!              durable         durable: 4 too
//! ```
//!
//! A log has its entries in the order in which they ended, so each is submitted and completed at once. What a flush did not cover is
//! undecided at a power cut, by the rules of the disk and a profile.
//!
//! **Length.** No entry says it. The file is as long as the furthest byte of what was there before and of all writes up to the power cut,
//! and that is durable, as on a block device. Only a log with marks of our own ([`LogMark::Length`]) has lengths, and then they may be lost
//! as the writes that made them.
//!
//! The invariant: a log is taken whole or not at all; an error names the file, the entry and the value.

use std::collections::BTreeMap;

use std::path::{Path, PathBuf};

use faultfs::chooser::{Always, Chooser};
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use faultfs::values::{Key, Values};
use model::payload::UNIT;
use qcow2_core::storage::Durability;

use crate::file;
use crate::log_file::{self, LogFileError};
use crate::log_mark::LogMark;
use crate::logwrites::{Action, Log};

/// An image file reaches no further: it is in memory as a whole when a program is to recover it. 4 GiB.
pub const MOST_UNITS: u32 = 1 << 23;

/// What an image begins with.
const IMAGE_MAGIC: &[u8] = b"QFI\xfb";

/// A log of the writes to one file.
#[derive(Debug)]
pub struct ImageLog {
    entries: Vec<LoggedEntry>,
    start: PossibleDisk,
    /// Units of what was there before.
    before: u32,
    has_lengths: bool,
}

/// One entry.
#[derive(Clone, Debug)]
pub struct LoggedEntry {
    /// A flush comes first.
    pub flush: bool,
    /// Its own data is durable.
    pub through: bool,
    /// What it did.
    pub what: LoggedAction,
}

/// What an entry did, in units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoggedAction {
    /// Wrote these from unit `first` on.
    Write {
        /// Where.
        first: u32,
        /// What.
        keys: Vec<Key>,
    },
    /// Discarded `count` units from unit `first` on.
    Discard {
        /// Where.
        first: u32,
        /// How many.
        count: u32,
    },
    /// One of our own marks.
    Mark(LogMark),
    /// Nothing, but perhaps its flush.
    Nothing,
}

/// Why files are no log of an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageLogError {
    /// A file cannot be read, or it is no log.
    #[error(transparent)]
    Log(#[from] LogFileError),
    /// What the device held before is no whole number of sectors.
    #[error("{}: {length} bytes are no whole sectors of {sector}; `truncate -s %{sector}` fills them up with zeroes", .path.display())]
    Unaligned {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
        /// Bytes of a sector, as the log says.
        sector: u32,
    },
    /// Something lies further than a file of the harness reaches.
    #[error("{}: log entry {entry} ends at {end}, past the {} bytes that there can be", .path.display(), u64::from(MOST_UNITS) * UNIT as u64)]
    TooFar {
        /// The file.
        path: PathBuf,
        /// Number of the entry, from 0.
        entry: u64,
        /// Where it ends.
        end: u64,
    },
    /// What the device held before is longer than a file of the harness.
    #[error("{}: {length} bytes, and there can be no more than {}", .path.display(), u64::from(MOST_UNITS) * UNIT as u64)]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// Nothing was written.
    #[error("{}: a log without a write", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl LoggedEntry {
    /// Units from the first to behind the last that it wrote to.
    fn end(&self) -> u32 {
        match &self.what {
            LoggedAction::Write { first, keys } => first + keys.len() as u32,
            _ => 0,
        }
    }
}

impl ImageLog {
    /// Loads a log, compressed with zstd or not, and what the device held `before`: zeroes where that is not said.
    ///
    /// # Errors
    /// [`ImageLogError`], which names the file and what is wrong with it.
    pub fn load(path: &Path, before: Option<&Path>) -> Result<Self, ImageLogError> {
        let bad = |source| LogFileError::log(path, source);
        let bytes = log_file::read(path)?;
        let log = Log::parse(&bytes).map_err(bad)?;
        let values = Values::new();
        let mut entries = Vec::new();
        for (number, entry) in (0..).zip(log.entries()) {
            let entry = entry.map_err(bad)?;
            let length = match entry.content {
                Action::Data(data) => data.len() as u64,
                Action::Discard(length) => length,
                Action::Mark(_) => 0,
            };
            let too_far = |end| ImageLogError::TooFar { path: path.to_owned(), entry: number, end };
            // Where nothing is written, no place is meant.
            let end = if length > 0 { entry.offset.saturating_add(length) } else { 0 };
            let units = units(end).ok_or_else(|| too_far(end))?;
            let first = units - (length / UNIT as u64) as u32;
            let what = match entry.content {
                Action::Data([]) => LoggedAction::Nothing,
                Action::Data(data) => {
                    let mut keys = Vec::new();
                    values.intern_all(data, &mut keys);
                    LoggedAction::Write { first, keys }
                }
                Action::Discard(_) => LoggedAction::Discard { first, count: units - first },
                Action::Mark(text) => match LogMark::read(text) {
                    Some(LogMark::Length(bytes)) if self::units(bytes).is_none() => {
                        return Err(too_far(bytes));
                    }
                    Some(mark) => LoggedAction::Mark(mark),
                    None => LoggedAction::Nothing,
                },
            };
            entries.push(LoggedEntry { flush: entry.flush, through: entry.fua, what });
        }
        if !entries.iter().any(|entry| entry.end() > 0) {
            return Err(ImageLogError::Empty { path: path.to_owned() });
        }
        let (there, before) = match before {
            None => (Vec::new(), 0),
            Some(path) => {
                let there = file::read_up_to(path, u64::from(MOST_UNITS) * UNIT as u64)
                    .map_err(|source| LogFileError::file(path, source))?;
                let length = there.len() as u64;
                let (path, sector) = (path.to_owned(), log.sector_size());
                if !length.is_multiple_of(sector.into()) {
                    return Err(ImageLogError::Unaligned { path, length, sector });
                }
                let before = units(length).ok_or(ImageLogError::TooLong { path, length })?;
                (there, before)
            }
        };
        let is_length =
            |entry: &LoggedEntry| matches!(entry.what, LoggedAction::Mark(LogMark::Length(_)));
        let has_lengths = entries.iter().any(is_length);
        let furthest = entries.iter().map(LoggedEntry::end).fold(before, u32::max);
        let length = if has_lengths { before } else { furthest };
        let extents = (0..).step_by(UNIT).zip(there.chunks(UNIT));
        let extents = extents.filter(|(_, unit)| unit.iter().any(|&byte| byte != 0));
        let start = PossibleDisk::from_extents(&values, u64::from(length) * UNIT as u64, extents);
        Ok(Self { entries, start, before, has_lengths })
    }

    /// The entries, in order.
    pub fn entries(&self) -> &[LoggedEntry] {
        &self.entries
    }

    /// Whether marks say how long the file is.
    pub fn has_lengths(&self) -> bool {
        self.has_lengths
    }

    /// The store of all values.
    pub fn values(&self) -> &Values {
        self.start.values()
    }

    /// How many entries may have happened when the power fails: wherever the next one would leave something else.
    pub fn cuts(&self) -> Vec<usize> {
        let mut is_on = true;
        let mut cuts = vec![0];
        for (number, entry) in (1..).zip(&self.entries) {
            match entry.what {
                LoggedAction::Mark(LogMark::Initial | LogMark::PowerCut) => is_on = false,
                LoggedAction::Mark(LogMark::Life(_)) => {
                    is_on = true;
                    cuts.push(number);
                }
                LoggedAction::Mark(LogMark::Recovery) => {}
                LoggedAction::Nothing if !entry.flush => {}
                _ if is_on => cuts.push(number),
                _ => {}
            }
        }
        cuts
    }

    /// The disk before the first entry, to be played on.
    pub fn play(&self) -> PlayedLog<'_> {
        let mut played = PlayedLog {
            log: self,
            disk: self.start.clone(),
            next: 0,
            furthest: self.before,
            since: 0,
            is_image: false,
        };
        played.look();
        played
    }
}

/// How many units reach to a byte; none if that is more than there can be.
fn units(end: u64) -> Option<u32> {
    u32::try_from(end.div_ceil(UNIT as u64)).ok().filter(|&units| units <= MOST_UNITS)
}

/// Whether a unit is the beginning of an image.
pub fn begins_image(unit: &[u8]) -> bool {
    unit.starts_with(IMAGE_MAGIC)
}

/// A log up to one of its entries.
#[derive(Debug)]
pub struct PlayedLog<'a> {
    log: &'a ImageLog,
    disk: PossibleDisk,
    next: usize,
    /// Units up to the furthest that was written to.
    furthest: u32,
    /// The first entry that the last flush does not cover.
    since: usize,
    is_image: bool,
}

impl PlayedLog<'_> {
    /// Plays on until `entries` of them have happened.
    pub fn to(&mut self, entries: usize) {
        let log = self.log;
        for entry in log.entries.get(self.next..entries).unwrap_or_default() {
            self.next += 1;
            self.one(entry);
        }
    }

    fn one(&mut self, entry: &LoggedEntry) {
        let disk = &mut self.disk;
        let durability = if entry.through { Durability::Through } else { Durability::Cached };
        if entry.flush {
            let flush = disk.submit_flush();
            let _ = disk.complete_flush(flush);
            self.since = self.next - 1;
        }
        // Nothing is read from this disk, so it has nothing to decide.
        let sure = &mut Always(0);
        let written = match &entry.what {
            LoggedAction::Write { first, keys } => {
                disk.submit_write(*first, keys, durability, sure)
            }
            LoggedAction::Discard { first, count } => disk.submit_discard(*first, *count, sure),
            LoggedAction::Mark(LogMark::Length(bytes)) => {
                disk.submit_set_len((bytes / UNIT as u64) as u32, sure)
            }
            LoggedAction::Mark(_) | LoggedAction::Nothing => return self.look(),
        };
        let _ = disk.complete(written);
        self.furthest = self.furthest.max(entry.end());
        self.look();
    }

    /// From when on a header is there whatever a power cut leaves, this is an image.
    fn look(&mut self) {
        let begins = |key| begins_image(self.disk.values().bytes(key));
        self.is_image = self.is_image || self.disk.single(0).is_some_and(begins);
    }

    /// Whether an image was there, durably, at some time until now.
    pub fn is_image(&self) -> bool {
        self.is_image
    }

    /// Whether a power cut now leaves a choice.
    pub fn is_open(&self) -> bool {
        !self.disk.undecided().is_empty() || self.disk.possible_lengths().len() > 1
    }

    /// The disk that a power cut leaves now.
    pub fn crash<C: Chooser + ?Sized>(&self, profile: Profile, chooser: &mut C) -> PossibleDisk {
        let mut disk = self.disk.crash(profile, chooser);
        if !self.log.has_lengths {
            let length = disk.submit_set_len(self.furthest, chooser);
            let _ = disk.complete(length);
            let flush = disk.submit_flush();
            let _ = disk.complete_flush(flush);
        }
        disk
    }

    /// The writes of which `image`, which a power cut left now, lacks something that nothing later has gone over.
    pub fn lost(&self, image: &[u8]) -> Vec<LostWrite> {
        let mut newest = BTreeMap::new();
        let window = (self.since..self.next).zip(&self.log.entries[self.since..self.next]);
        for (number, entry) in window {
            if let LoggedAction::Write { first, keys } = &entry.what {
                newest.extend((*first..).zip(keys.iter().map(|&key| (number, key))));
            }
        }
        let mut lost: BTreeMap<usize, LostWrite> = BTreeMap::new();
        for (unit, (entry, key)) in newest {
            let at = unit as usize * UNIT;
            let zeroes = [0; UNIT];
            let found = image.get(at..at + UNIT).unwrap_or(&zeroes);
            if found != self.log.values().bytes(key) {
                let of = match &self.log.entries[entry].what {
                    LoggedAction::Write { keys, .. } => keys.len() as u32,
                    _ => 0,
                };
                let none = LostWrite { entry, first: unit, units: 0, of };
                lost.entry(entry).or_insert(none).units += 1;
            }
        }
        lost.into_values().collect()
    }
}

/// A write of which a power cut left less than all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostWrite {
    /// Number of its entry, from 0.
    pub entry: usize,
    /// The first unit that is lost.
    pub first: u32,
    /// How many are.
    pub units: u32,
    /// How many it wrote.
    pub of: u32,
}
