//! A case: everything that is needed to see one failure again, as one JSON file.
//!
//! ```text
//!   schema, title, property, profile, origin, witness, status       what it is
//!   geometry, open, initial                                          what it starts from
//!   lives: [ tasks, schedule, faults, dropped, crash, recovery ]     what is done, one power cut a life
//!   image: { length, units, allowed }                                the crash image itself, for any implementation
//! ```
//!
//! A crash is described three times, from the binding that survives most changes of code to the most exact: by labels
//! ([`Crash::anchor`], [`Crash::keep`], [`Crash::lose`]), by event number and choices ([`Exact`], valid while the trace hash
//! matches), and by the image that it left ([`CrashImage`]).
//!
//! The invariant: what is loaded is exactly what the file says. Unknown fields are refused, every error names file and field,
//! and an older schema is brought up to date step by step before it is read.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Json;

use crate::build::Initial;
use crate::finding::Property;
use crate::label::Label;
use crate::op::{Geometry, Op};
use crate::payload::{self, UNIT, Unit, ZEROES};
use crate::text;

/// The schema that is written.
pub const SCHEMA: &str = "crash-corpus/1";

/// Brings a case of one schema to the next: (from, to, how).
type Migration = (&'static str, &'static str, fn(&mut Json) -> Result<(), String>);

const MIGRATIONS: [Migration; 1] = [("crash-corpus/0", SCHEMA, one_life_to_many)];

/// One failure, or one program with a known outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// [`SCHEMA`].
    pub schema: String,
    /// One line for people.
    pub title: String,
    /// What is violated.
    pub property: Property,
    /// The weakest profile of the disk that shows it.
    pub profile: String,
    /// What a discarded unit of the disk holds.
    #[serde(default, skip_serializing_if = "Discard::is_either")]
    pub discard: Discard,
    /// What the device offers besides.
    #[serde(default, skip_serializing_if = "Device::is_plain")]
    pub device: Device,
    /// Where it comes from.
    pub origin: Origin,
    /// The rule without which it must fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<String>,
    /// What replaying it should give.
    pub status: Status,
    /// The shape of the image.
    pub geometry: Geometry,
    /// How the image is opened.
    pub open: Opening,
    /// What the image holds at first.
    pub initial: Initial,
    /// What is done, life after life on the same disk.
    pub lives: Vec<Life>,
    /// The crash image, so that recovery can be tried on any implementation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<CrashImage>,
}

/// What a discarded unit of the disk holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Discard {
    /// What it held, or zero. Every disk was so before this could be said.
    #[default]
    Either,
    /// Zero, as if zeroes had been written.
    Zeroes,
}

impl Discard {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
    const fn is_either(&self) -> bool {
        matches!(self, Self::Either)
    }
}

/// What a device offers, in the words of the storage contract. Every disk was a plain one before this could be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// Bytes of a sector: every access is in whole ones. A power of two from 512 on, and no more than a cluster.
    #[serde(skip_serializing_if = "is_smallest_sector")]
    pub sector: u32,
    /// Longest transfer in bytes, a multiple of a sector.
    pub max_transfer: u32,
    /// Whether it takes discards at all.
    pub can_discard: bool,
    /// So many units of what somebody else left behind the image are part of the device, whose unwritten space holds anything. With 0
    /// it is a file, whose unwritten space reads as zeroes.
    pub stale_units: u32,
}

impl Default for Device {
    fn default() -> Self {
        Self { sector: 512, max_transfer: 1 << 30, can_discard: true, stale_units: 0 }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
const fn is_smallest_sector(bytes: &u32) -> bool {
    *bytes == 512
}

impl Device {
    fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a case comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Seed of the campaign.
    pub seed: u64,
    /// Commit of the code that failed.
    pub commit: String,
    /// Version of the generator of workloads.
    pub generator: u32,
}

/// What replaying a case should give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It passes, and fails without its witness.
    Fixed,
    /// It fails.
    Open,
    /// It was found by breaking the witness: it passes with it and fails without.
    Sabotage,
    /// A program whose outcomes are known exactly.
    Litmus,
}

/// How an image is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// The implementation under test.
    pub subject: String,
    /// Pages in its metadata cache; 0 for its own choice.
    pub cache_pages: u32,
    /// Bytes by which the file grows; 0 for its own choice.
    pub growth_step: u64,
    /// Whether every guest write is durable when it returns.
    #[serde(default)]
    pub write_through: bool,
    /// Bytes of a metadata page; 0 for its own choice. It was 512 before this could be said.
    #[serde(default = "smallest_page", skip_serializing_if = "is_smallest_page")]
    pub page_size: u32,
    /// Whether discarded space goes back to the device.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub pass_discard: bool,
    /// Lazy refcounts on or off, whatever the image says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// Whether what is read from the layer below is copied into the image.
    #[serde(default, skip_serializing_if = "is_false")]
    pub copy_on_read: bool,
}

const fn smallest_page() -> u32 {
    512
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
const fn is_smallest_page(bytes: &u32) -> bool {
    *bytes == smallest_page()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
const fn is_false(no: &bool) -> bool {
    !*no
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
const fn is_true(yes: &bool) -> bool {
    *yes
}

impl Opening {
    /// As the subject chooses for itself, with the smallest pages.
    pub fn new(subject: &str) -> Self {
        Self {
            subject: subject.to_owned(),
            cache_pages: 0,
            growth_step: 0,
            write_through: false,
            page_size: smallest_page(),
            pass_discard: true,
            lazy_refcounts: None,
            copy_on_read: false,
        }
    }
}

/// What is done between two openings: operations, then a power cut and recovery, or a clean close.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Life {
    /// Operations that run side by side, each list in order.
    pub tasks: Vec<Vec<Op>>,
    /// Which of them goes on when.
    pub schedule: Scheduling,
    /// What fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FailedIo>,
    /// Futures that are dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
    /// When the power fails; without one, the image is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash: Option<Crash>,
    /// What happens afterwards, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recovery: Vec<Recovery>,
    /// Nothing is recovered before the next life begins: its own session opens what the power cut left, and works on in it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unrecovered: bool,
}

/// Which task goes on, and which I/O completes, at each step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Scheduling {
    /// As this seed says.
    Seed(u64),
    /// The option taken at each step; the first one when they run out.
    Choices(Vec<u32>),
}

impl Default for Scheduling {
    fn default() -> Self {
        Self::Choices(Vec::new())
    }
}

/// A moment in a life: when an I/O of an operation to a labelled place is submitted or completed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// Index of the task; in recovery, 0.
    #[serde(default)]
    pub task: usize,
    /// Index of the operation in it; in recovery, of the step.
    pub op: usize,
    /// Which end of it.
    #[serde(default)]
    pub phase: Phase,
    /// The I/O's place; without one, the operation itself is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    /// How many like it come before.
    #[serde(default)]
    pub nth: u32,
}

/// An end of an I/O or operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Right after it began.
    Submitted,
    /// Right after it returned.
    #[default]
    Completed,
}

/// An I/O that fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedIo {
    /// Which, by its meaning.
    pub anchor: Anchor,
    /// Which, by its number; valid while the trace hash matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<u64>,
    /// How it fails.
    pub effect: Effect,
    /// Units of it that were written all the same.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub landed: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
const fn is_zero(landed: &u32) -> bool {
    *landed == 0
}

/// How an I/O fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// I/O error.
    Eio,
    /// No space left.
    Enospc,
    /// Only a part is transferred.
    Short,
    /// A flush fails, and another may succeed in full.
    FlushRetrySafe,
    /// A flush fails, and later ones succeed without writing what it lost.
    FlushCleanMarked,
    /// A flush fails, and so does every later sync.
    FlushSticky,
    /// I/O error, and any unit may land until the storage is settled.
    Late,
    /// A write-through write fails in its sync, and a flush may succeed in full.
    ThroughRetrySafe,
    /// A write-through write fails in its sync, and later flushes succeed without writing what that lost.
    ThroughCleanMarked,
    /// A write-through write fails in its sync, and so does every later sync.
    ThroughSticky,
}

/// An operation whose future is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// Index of the task.
    pub task: usize,
    /// Index of the operation.
    pub op: usize,
    /// How many I/Os it has submitted by then.
    pub after_ios: u32,
}

/// A power cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crash {
    /// When, by its meaning.
    pub anchor: Anchor,
    /// Units that hold the newest value that they may hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<Label>,
    /// Units that hold the oldest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lose: Vec<Label>,
    /// What all others do.
    pub default: Fate,
    /// The same by numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<Exact>,
}

/// Which value a unit has after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The newest that it may hold.
    Keep,
    /// The oldest.
    Lose,
}

/// A power cut by numbers, valid only while the trace up to it has this hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exact {
    /// Events before it.
    pub event: u64,
    /// The option taken at each choice after it.
    pub choices: Vec<u32>,
    /// Hash of the trace.
    pub trace: Hash,
}

/// 64 bits, as 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(pub u64);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is no hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not 16 hex digits")]
pub struct BadHash(String);

impl FromStr for Hash {
    type Err = BadHash;

    fn from_str(text: &str) -> Result<Self, BadHash> {
        let plain = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let parsed = plain.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        parsed.map(Self).ok_or_else(|| BadHash(text.chars().take(40).collect()))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer)
    }
}

/// One step of recovery, and the power cut within it if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// What is run.
    pub run: Step,
    /// When the power fails in it; what follows then starts from what that left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash: Option<Crash>,
}

/// What recovery runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Opens the image read-only.
    OpenReadOnly,
    /// Opens the image for writing, which repairs it if it is dirty.
    Open,
    /// Repairs it explicitly.
    Repair,
    /// Checks it, and changes nothing.
    Check,
    /// Gives back what is leaked, and repairs nothing else.
    RepairLeaks,
}

/// A crash image, unit by unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrashImage {
    /// File length in bytes.
    pub length: u64,
    /// Units of the file that are not zero.
    pub units: BTreeMap<u64, Content>,
    /// The data file, if the image has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<CrashData>,
    /// What each guest unit may read as; one that is not listed reads as zeroes.
    pub allowed: BTreeMap<u64, Vec<Content>>,
}

impl CrashImage {
    /// The file.
    ///
    /// # Panics
    /// If no memory can hold it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.length).expect("a file that memory can hold")];
        let (units, _) = bytes.as_chunks_mut::<UNIT>();
        for (unit, content) in &self.units {
            if let Some(held) = usize::try_from(*unit).ok().and_then(|unit| units.get_mut(unit)) {
                *held = content.bytes();
            }
        }
        bytes
    }
}

/// The external data file of a crash image, unit by unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrashData {
    /// File length in bytes.
    pub length: u64,
    /// Units of the file that are not zero.
    pub units: BTreeMap<u64, Content>,
}

/// The content of a unit, as text: `zero`, `tag:18/7` (unit 18 of write 7), or `hex:` and its bytes without the zeroes at the
/// end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// All zeroes.
    Zero,
    /// Generated data.
    Tag {
        /// The guest unit that it was made for.
        unit: u64,
        /// The write that carried it.
        id: u32,
    },
    /// Anything else.
    Bytes(Box<Unit>),
}

impl Content {
    /// The shortest text for these bytes.
    pub fn of(bytes: &Unit) -> Self {
        match payload::decode(bytes) {
            payload::Value::Zero => Self::Zero,
            payload::Value::Tag { unit, id } => Self::Tag { unit, id },
            payload::Value::Foreign(_) => Self::Bytes(Box::new(*bytes)),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> Unit {
        match self {
            Self::Zero => ZEROES,
            Self::Tag { unit, id } => payload::unit(*unit, *id),
            Self::Bytes(bytes) => **bytes,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => f.write_str("zero"),
            Self::Tag { unit, id } => write!(f, "tag:{unit}/{id}"),
            Self::Bytes(bytes) => {
                let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                f.write_str("hex:")?;
                bytes[..used].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// A text that is no content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the content of a unit: zero, tag:UNIT/ID or hex:DIGITS")]
pub struct BadContent(String);

impl FromStr for Content {
    type Err = BadContent;

    fn from_str(text: &str) -> Result<Self, BadContent> {
        let bad = || BadContent(text.chars().take(40).collect());
        if text == "zero" {
            return Ok(Self::Zero);
        }
        if let Some((unit, id)) = text.strip_prefix("tag:").and_then(|tag| tag.split_once('/')) {
            let (unit, id) = (unit.parse().map_err(|_| bad())?, id.parse().map_err(|_| bad())?);
            return Ok(Self::Tag { unit, id });
        }
        let digits = text.strip_prefix("hex:").ok_or_else(bad)?;
        let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
        if !plain || !digits.len().is_multiple_of(2) || digits.len() > 2 * UNIT {
            return Err(bad());
        }
        let mut bytes = Box::new(ZEROES);
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().as_chunks::<2>().0) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self::Bytes(bytes))
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer)
    }
}

/// A file that is no case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {path}: {message}")]
pub struct CaseError {
    /// The file, as the caller names it.
    pub file: String,
    /// The field, such as `lives[0].tasks[0][2].write.offset`; `(whole file)` at the top.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl Case {
    /// Reads a case; `file` is only used to name it in errors.
    ///
    /// # Errors
    /// [`CaseError`] that names the file, the field and what is wrong with it.
    pub fn from_json(file: &str, text: &str) -> Result<Self, CaseError> {
        let error = |path: &str, message: String| {
            let path = if path.is_empty() { "(whole file)" } else { path };
            CaseError { file: file.to_owned(), path: path.to_owned(), message }
        };
        let mut json: Json =
            serde_json::from_str(text).map_err(|e| error("", format!("not JSON: {e}")))?;
        let migrated = migrate(&mut json).map_err(|e| error("schema", e))?;
        let rewritten;
        let text = if migrated {
            rewritten = json.to_string();
            &rewritten
        } else {
            text
        };
        let case: Self =
            serde_json::from_str(text).map_err(|e| error(&path_at(text, &e), e.to_string()))?;
        case.find_fault().map_or(Ok(case), |(path, message)| Err(error(&path, message)))
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a case holds no odd map keys");
        text.push('\n');
        text
    }

    /// The field whose value makes no sense, if any, and why.
    fn find_fault(&self) -> Option<(String, String)> {
        if let Some(why) = self.geometry.fault() {
            return Some(("geometry".to_owned(), why));
        }
        if let Some(excess) = self.excess() {
            return Some(excess);
        }
        for (l, life) in self.lives.iter().enumerate() {
            for (t, task) in life.tasks.iter().enumerate() {
                for (o, op) in task.iter().enumerate() {
                    if let Some((field, why)) = op.fault() {
                        return Some((format!("lives[{l}].tasks[{t}][{o}].{field}"), why));
                    }
                }
            }
        }
        let image = self.image.as_ref()?;
        let data = image.data.as_ref();
        if data.is_some() != self.geometry.data_file.is_some() {
            let why = "there is a data file in one of geometry and image only";
            return Some(("image.data".to_owned(), why.to_owned()));
        }
        let beyond = |field: &str, length: u64, of: &BTreeMap<u64, Content>| {
            let units = length.div_ceil(UNIT as u64);
            let unit = of.keys().find(|unit| **unit >= units)?;
            Some((format!("{field}.units.{unit}"), format!("lies past the end at {units} units")))
        };
        beyond("image", image.length, &image.units)
            .or_else(|| data.and_then(|data| beyond("image.data", data.length, &data.units)))
    }
}

/// What a case may ask for at most. Replaying looks at every cluster of the image in every state, and at worst at every state of
/// the last life: at these limits that takes seconds to a minute. What campaigns and exploration find is far below them.
mod limit {
    /// log2 of the cluster size: each state reads whole tables and refcount blocks.
    pub(super) const CLUSTER_BITS: u64 = 16;
    /// Bytes of the virtual disk: the judge looks at each unit.
    pub(super) const VIRTUAL_SIZE: u64 = 64 << 20;
    /// Guest clusters of it, and of what it grows to.
    pub(super) const CLUSTERS: u64 = 1 << 16;
    /// Pages of 4 KiB: 256 MiB of memory.
    pub(super) const CACHE_PAGES: u64 = 1 << 16;
    /// Bytes by which the file grows ahead of need: the judge looks at each cluster of it.
    pub(super) const GROWTH_STEP: u64 = 16 << 20;
    /// Lives.
    pub(super) const LIVES: u64 = 64;
    /// Tasks of a life: each step chooses among all that can go on.
    pub(super) const TASKS: u64 = 64;
    /// Requests of all lives: each is a moment and more.
    pub(super) const REQUESTS: u64 = 4096;
    /// Guest clusters that all requests touch: each may be an I/O, and each I/O is two moments.
    pub(super) const TOUCHED: u64 = 1 << 20;
    /// Steps of one recovery: every state goes through all of them.
    pub(super) const RECOVERY: u64 = 16;
    /// Faults of a life: every I/O is compared with each.
    pub(super) const FAULTS: u64 = 4096;
    /// Bytes of the crash image: the possible disk ends at 32 GiB, and what reads it looks at each cluster.
    pub(super) const IMAGE: u64 = 256 << 20;
}

impl Case {
    /// The field that asks for more than a replay can do, if one does, and the limit.
    fn excess(&self) -> Option<(String, String)> {
        let above = |field: &str, value: u64, most: u64| {
            let why = || format!("{value} is above {most}, the most that a replay can do");
            (value > most).then(|| (field.to_owned(), why()))
        };
        let Self { geometry, open, .. } = self;
        let cluster = geometry.cluster_size();
        let size = limit::VIRTUAL_SIZE.min(limit::CLUSTERS * cluster);
        let fields = [
            ("geometry.cluster_bits", geometry.cluster_bits.into(), limit::CLUSTER_BITS),
            ("geometry.virtual_size", geometry.virtual_size, size),
            ("open.cache_pages", open.cache_pages.into(), limit::CACHE_PAGES),
            ("open.growth_step", open.growth_step, limit::GROWTH_STEP),
            ("lives (their number)", self.lives.len() as u64, limit::LIVES),
            ("image.length", self.image.as_ref().map_or(0, |image| image.length), limit::IMAGE),
        ];
        if let Some(excess) = fields.into_iter().find_map(|(name, is, most)| above(name, is, most))
        {
            return Some(excess);
        }
        let ops = || self.lives.iter().flat_map(|life| life.tasks.iter().flatten());
        let largest = ops().map(|op| if let Op::Grow { to } = op { *to } else { 0 }).max();
        let largest = largest.unwrap_or(0).max(geometry.virtual_size);
        let (mut requests, mut touched) = (0, 0);
        for (l, life) in self.lives.iter().enumerate() {
            let counts = [
                ("tasks", life.tasks.len(), limit::TASKS),
                ("recovery", life.recovery.len(), limit::RECOVERY),
                ("faults", life.faults.len(), limit::FAULTS),
            ];
            for (name, count, most) in counts {
                let field = format!("lives[{l}].{name} (their number)");
                if let Some(excess) = above(&field, count as u64, most) {
                    return Some(excess);
                }
            }
            for (t, task) in life.tasks.iter().enumerate() {
                for (o, op) in task.iter().enumerate() {
                    let field = |name: &str| format!("lives[{l}].tasks[{t}][{o}]{name}");
                    requests += 1;
                    let so_far = " (number of requests up to it)";
                    let mut excess = above(&field(so_far), requests, limit::REQUESTS);
                    if let Op::Grow { to } = *op {
                        let most = limit::CLUSTERS * cluster;
                        excess = excess.or_else(|| above(&field(".grow.to"), to, most));
                    }
                    if let Some(
                        Op::Write { offset, length, .. }
                        | Op::WriteCompressed { offset, length, .. }
                        | Op::WriteZeroes { offset, length, .. }
                        | Op::Discard { offset, length }
                        | Op::Uncover { offset, length }
                        | Op::Preallocate { offset, length, .. }
                        | Op::Read { offset, length },
                    ) = op.clip(largest)
                    {
                        let end = offset.saturating_add(length).div_ceil(cluster);
                        touched += end - offset / cluster;
                        let so_far = " (guest clusters that it and those before it touch)";
                        excess = excess.or_else(|| above(&field(so_far), touched, limit::TOUCHED));
                    }
                    if excess.is_some() {
                        return excess;
                    }
                }
            }
        }
        None
    }
}

/// Whether the case had an older schema.
fn migrate(json: &mut Json) -> Result<bool, String> {
    let mut migrated = false;
    loop {
        let schema = json.get("schema").and_then(Json::as_str).ok_or("is missing")?.to_owned();
        if schema == SCHEMA {
            return Ok(migrated);
        }
        let Some((_, to, step)) = MIGRATIONS.iter().find(|(from, ..)| *from == schema) else {
            return Err(format!("{schema:?} is unknown; this reads {SCHEMA}"));
        };
        step(json).map_err(|e| format!("cannot bring {schema} to {to}: {e}"))?;
        json["schema"] = Json::from(*to);
        migrated = true;
    }
}

/// `crash-corpus/0` has one life, whose fields stand at the top.
fn one_life_to_many(json: &mut Json) -> Result<(), String> {
    let case = json.as_object_mut().ok_or("not an object")?;
    let mut life = serde_json::Map::new();
    for field in ["tasks", "schedule", "faults", "dropped", "crash", "recovery"] {
        if let Some(value) = case.remove(field) {
            life.insert(field.to_owned(), value);
        }
    }
    if case.insert("lives".to_owned(), Json::from(vec![life])).is_some() {
        return Err("it has lives already".to_owned());
    }
    Ok(())
}

/// The field of valid JSON text that ends where an error is.
fn path_at(text: &str, error: &serde_json::Error) -> String {
    /// An object with the key that was last seen in it, or an array with the index.
    enum Level {
        Object(Option<String>),
        Array(usize),
    }
    let lines_before = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let target = lines_before.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
    let bytes = text.as_bytes();
    let mut levels: Vec<Level> = Vec::new();
    let mut expect_key = false;
    let mut at = 0;
    let end = bytes.len().min(target + 1);
    while at < end {
        match bytes[at] {
            b'{' => {
                levels.push(Level::Object(None));
                expect_key = true;
            }
            b'[' => levels.push(Level::Array(0)),
            // What is wrong at an object's end is wrong with all of it: a field is missing.
            b'}' | b']' => {
                levels.pop();
            }
            b',' => match levels.last_mut() {
                Some(Level::Array(index)) => *index += 1,
                Some(Level::Object(_)) => expect_key = true,
                None => {}
            },
            b'"' => {
                let start = at + 1;
                at = start;
                while bytes.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if expect_key && let Some(Level::Object(key)) = levels.last_mut() {
                    *key = text.get(start..at).map(str::to_owned);
                    expect_key = false;
                }
            }
            _ => {}
        }
        at += 1;
    }
    let mut path = String::new();
    for level in levels {
        match level {
            Level::Object(Some(key)) if path.is_empty() => path.push_str(&key),
            Level::Object(Some(key)) => path.extend([".", &key]),
            Level::Object(None) => {}
            Level::Array(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}
