//! The judgement: one function for each property, and all that apply to one recovered state in one call.
//!
//! ```text
//!   guest unit g --G(g)-------------------------------.
//!        |                                            v
//!        `-- L2 entry --> host unit h --peek(h)--> is every value allowed?     yes: nothing to say
//!                    `--> nothing, zero --> zero                               no: P1 if it was once written to g, else P2
//! ```
//!
//! A raw data file is the disk a second time, R(g): unit g of it. Where g is mapped to its own place the two are one unit; elsewhere all
//! that it may hold has to be what the image says of g.
//!
//! The invariant: a state passes only if every value that any guest unit may still turn out to hold is allowed, and every
//! structural fact is legal at this stage. Nothing here allocates while nothing is wrong.
//!
//! P7, P9 and P10 need whole runs rather than states, so the harness judges those with the same [`Violation`]s; the part of
//! P10 that one state shows, the virtual size, is here.

use std::fmt;
use std::ops::Range;

use crate::audit::{AuditReport, Auditor};
use crate::evidence::{Evidence, ValueKey};
use crate::finding::{Finding, Property, Stage};
use crate::guest::{Guest, LowerDisk, Misread};
use crate::image::{Bit, Header, Image, Mapping, Recording, decode_l2, stream_of};
use crate::mistake::Mistake;
use crate::op::{Compression, DataFile, MAX_VIRTUAL_SIZE};
use crate::payload::{self, DATA_NAME, LAYER_FORMAT, LAYER_NAME, UNIT, Value};
use crate::stream::Stream;

/// Violations that a verdict keeps; there may be more.
pub const MAX_VIOLATIONS: usize = 64;

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub property: Property,
    /// A stable name of how it was broken, for telling one bug from another.
    pub kind: &'static str,
    /// Where.
    pub place: Place,
    /// What the unit holds or may hold, where that is what is wrong.
    pub found: Option<Value>,
    /// What it could hold.
    pub allowed: Vec<Value>,
    /// How it came to this, as far as the judge knows; lines.
    pub story: String,
}

/// Where a promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A guest unit, and the file offset that it is mapped to.
    Guest {
        /// Unit number.
        unit: u64,
        /// Offset in bytes, unless it is mapped nowhere.
        host: Option<u64>,
    },
    /// A structure of the image.
    Structure(Finding),
    /// A unit of the file.
    File {
        /// Unit number.
        unit: u64,
    },
    /// The image as a whole.
    Image,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.property, self.kind)?;
        match &self.place {
            Place::Guest { unit, host: Some(host) } => {
                write!(f, "guest unit {unit}, at {host:#x}")?;
            }
            Place::Guest { unit, host: None } => write!(f, "guest unit {unit}, not mapped")?,
            Place::Structure(finding) => write!(f, "{finding}")?,
            Place::File { unit } => write!(f, "file unit {unit}")?,
            Place::Image => write!(f, "image")?,
        }
        if let Some(found) = &self.found {
            write!(f, ": found {found}, allowed")?;
            for (index, value) in self.allowed.iter().enumerate() {
                write!(f, "{} {value}", if index == 0 { "" } else { "," })?;
            }
        }
        self.story.lines().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// What a subject says about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// It is in order, leaks aside.
    Clean,
    /// It was repaired and is in order.
    Repaired,
    /// It is damaged beyond what the subject repairs; it stays read-only.
    GaveUp,
    /// It can be written without losing more, whatever is wrong with it.
    Writable,
}

impl Statement {
    /// What the image has to be like for the claim to be true, if it claims anything.
    pub const fn stage(self) -> Option<Stage> {
        match self {
            Self::GaveUp => None,
            Self::Clean => Some(Stage::OpenedClean),
            Self::Repaired => Some(Stage::Repaired),
            Self::Writable => Some(Stage::Writable),
        }
    }
}

/// A range of the guest's disk as the subject maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the virtual disk.
    pub guest: u64,
    /// Length in bytes.
    pub length: u64,
    /// Where it begins in the file that guest data is in: the data file, if the image has one.
    pub to: Mapping,
}

/// Flaws that an image already had before a life began: that life may hand them on, and not add to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// (cluster, refcount minus references), ascending.
    leaks: Vec<(u64, u64)>,
    /// Clusters whose COPIED flag is missing or stale, ascending.
    copied: Vec<u64>,
    /// Features that a reader may ignore: no flaw, and nothing to lose.
    compatible: u64,
}

impl Inherited {
    /// The flaws of the image that was audited last. What only an autoclear bit vouches for counts as leaked: who does not
    /// maintain it has to clear the bit, and frees nothing by that.
    pub fn of(auditor: &Auditor) -> Self {
        let header = auditor.image().header();
        let compatible = header.map_or(0, |header| header.compatible_features);
        let mut inherited = Self { compatible, ..Self::default() };
        inherited.leaks.extend(auditor.image().vouched_for().map(|cluster| (cluster, 1)));
        for finding in &auditor.report().findings {
            match *finding {
                Finding::Leak { cluster, stored, counted } => {
                    inherited.leaks.push((cluster, stored.saturating_sub(counted)));
                }
                Finding::CopiedMissing { cluster, .. } | Finding::CopiedStale { cluster, .. } => {
                    inherited.copied.push(cluster);
                }
                _ => {}
            }
        }
        inherited.leaks.sort_unstable();
        inherited.copied.sort_unstable();
        inherited
    }

    /// What is left of them after a repair.
    #[must_use]
    pub fn repaired(self) -> Self {
        Self { compatible: self.compatible, ..Self::default() }
    }

    fn has(&self, finding: &Finding) -> bool {
        match *finding {
            Finding::Leak { cluster, stored, counted } => {
                let at = self.leaks.binary_search_by_key(&cluster, |(leaked, _)| *leaked);
                at.is_ok_and(|at| stored.saturating_sub(counted) <= self.leaks[at].1)
            }
            Finding::CopiedMissing { cluster, .. } | Finding::CopiedStale { cluster, .. } => {
                self.copied.binary_search(&cluster).is_ok()
            }
            _ => false,
        }
    }
}

/// What every guest unit holds or may hold, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    size: u64,
    guest: Sets,
    /// The units of a raw data file as far as the disk goes; none of any other image.
    raw: Sets,
}

/// What each of some units holds or may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sets {
    /// One value of each unit.
    one: Vec<ValueKey>,
    /// (unit, another value that it may hold), ascending by unit.
    others: Vec<(u64, ValueKey)>,
}

impl Contents {
    /// Virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Units with their values, each value once.
    pub fn values(&self, unit: u64) -> impl Iterator<Item = ValueKey> {
        self.guest.values(unit)
    }

    /// The same of the raw data file; nothing of an image that has none.
    pub fn raw_values(&self, unit: u64) -> impl Iterator<Item = ValueKey> {
        self.raw.values(unit)
    }
}

impl Sets {
    fn clear(&mut self) {
        self.one.clear();
        self.others.clear();
    }

    fn values(&self, unit: u64) -> impl Iterator<Item = ValueKey> {
        let one = usize::try_from(unit).ok().and_then(|unit| self.one.get(unit)).copied();
        let from = self.others.partition_point(|(of, _)| *of < unit);
        let rest = self.others[from..].iter().take_while(move |(of, _)| *of == unit);
        one.into_iter().chain(rest.map(|(_, value)| *value))
    }

    fn add(&mut self, unit: u64, value: ValueKey) {
        if self.one.len() as u64 == unit {
            self.one.push(value);
        } else if self.values(unit).all(|known| known != value) {
            self.others.push((unit, value));
        }
    }

    /// Adds the units of a range, each as what the unit of the evidence holds that is as far from `at`.
    fn add_all<E: Evidence>(&mut self, units: Range<u64>, mut at: u64, evidence: &E) {
        let mut unit = units.start;
        while unit < units.end {
            let known = self.one.len();
            if known as u64 == unit {
                self.one.extend(evidence.decided(at, units.end - unit));
            }
            let run = (self.one.len() - known) as u64;
            if run == 0 {
                evidence.peek(at, |key| self.add(unit, key));
            }
            (unit, at) = (unit + run.max(1), at + run.max(1));
        }
    }
}

/// Judges states one after the other, with the same buffers.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    auditor: Auditor,
    violations: Vec<Violation>,
    contents_only: bool,
    /// The one below the image that was judged last.
    lower: LowerDisk,
    mistake: Mistake,
}

impl Judge {
    /// A judge with a deliberate mistake.
    pub fn with_mistake(mistake: Mistake) -> Self {
        Self { auditor: Auditor::with_mistake(mistake), mistake, ..Self::default() }
    }

    /// A judge of nothing but what the guest sees, for an implementation that does not promise a legal structure. An image
    /// whose header cannot be read shows the guest nothing, so its structure is judged all the same.
    pub fn of_contents() -> Self {
        Self { contents_only: true, ..Self::default() }
    }

    /// The auditor, with the image that was judged last.
    pub fn auditor(&self) -> &Auditor {
        &self.auditor
    }

    /// Judges one state in full: structure, size and every guest unit. With no `stage` it is the one of an image straight
    /// after a power cut.
    pub fn state<E: Evidence>(
        &mut self,
        evidence: &mut E,
        guest: &Guest,
        stage: Option<Stage>,
    ) -> &[Violation] {
        self.violations.clear();
        self.lower.clone_from(guest.lower());
        let report = self.auditor.audit(evidence);
        let stage = stage.unwrap_or_else(|| report.crashed_stage());
        if !(self.contents_only && report.header.is_some()) {
            p4_structure(report, stage, &mut self.violations);
        }
        if let Some(header) = report.header {
            p10_size(&header, guest, &mut self.violations);
            if self.mistake != Mistake::LayerNameIgnored {
                p10_layer(self.auditor.image(), guest, &mut self.violations);
            }
            if self.mistake != Mistake::DataFileNameIgnored {
                p10_data_file(self.auditor.image(), guest, &mut self.violations);
            }
            self.contents_allowed(evidence, guest, &header);
            self.raw_view_allowed(evidence, guest, &header);
            self.p4_changes_recorded(evidence, &header);
        }
        if (self.mistake, stage) == (Mistake::DirtyExcusesAll, Stage::CrashedDirty) {
            self.violations.clear();
        }
        &self.violations
    }

    /// Judges the structure of the image that was judged last by what is asked of it at another stage.
    pub fn structure(&mut self, stage: Stage) -> &[Violation] {
        self.violations.clear();
        let report = self.auditor.report();
        if !(self.contents_only && report.header.is_some()) {
            p4_structure(report, stage, &mut self.violations);
        }
        &self.violations
    }

    /// Judges an image after a clean close (P6): in order except for what it inherited.
    pub fn closed<E: Evidence>(
        &mut self,
        evidence: &mut E,
        guest: &Guest,
        inherited: &Inherited,
    ) -> &[Violation] {
        self.state(evidence, guest, Some(Stage::Closed));
        let lenient = self.mistake == Mistake::EveryLeakInherited;
        self.violations.retain(|violation| match &violation.place {
            Place::Structure(Finding::Leak { .. }) if lenient => false,
            Place::Structure(Finding::CopiedMissing { .. } | Finding::CopiedStale { .. })
                if self.mistake == Mistake::EveryCopiedInherited =>
            {
                false
            }
            Place::Structure(finding) => !inherited.has(finding),
            _ => true,
        });
        let header = self.auditor.image().header();
        let lost = header.map_or(0, |header| inherited.compatible & !header.compatible_features);
        if lost != 0 && self.mistake != Mistake::FeaturesMayBeLost {
            self.violations.push(Violation {
                property: Property::P6,
                kind: "feature-lost",
                place: Place::Image,
                found: None,
                allowed: Vec::new(),
                story: format!("compatible feature bits {lost:#x} were there when it was opened"),
            });
        }
        &self.violations
    }

    /// What every guest unit of the image that was judged last may hold. Narrow the reference disk to it, and compare later
    /// contents with it (P3).
    pub fn contents<E: Evidence>(&self, evidence: &E, into: &mut Contents) {
        into.guest.clear();
        into.raw.clear();
        into.size = 0;
        let image = self.auditor.image();
        let Some(header) = image.header() else { return };
        into.size = header.size;
        // A larger disk is no reference disk's: its size is a violation already.
        let units = header.size.min(MAX_VIRTUAL_SIZE) / UNIT as u64;
        if let Some(first) = raw_data(header, evidence)
            && self.mistake != Mistake::RawViewMayChange
        {
            into.raw.add_all(0..units, first, evidence);
        }
        let into = &mut into.guest;
        each_guest_cluster(image, header, units, self.mistake, |units, shown| match shown {
            Shown::Stream(stream) => {
                let mut readings: Vec<Vec<Option<ValueKey>>> = Vec::new();
                stream.each_reading(evidence, in_memory(header.cluster_size()), |cluster| {
                    let contents = cluster.unwrap_or_default().as_chunks::<UNIT>().0;
                    readings.push(contents.iter().map(|unit| evidence.key_of(unit)).collect());
                });
                // What cannot be read, or is nobody's, is a violation already.
                for (within, unit) in units.enumerate() {
                    for reading in &readings {
                        let key = reading.get(within).copied().flatten();
                        into.add(unit, key.unwrap_or(ValueKey::ZERO));
                    }
                }
            }
            Shown::Host(offset) => into.add_all(units, offset / UNIT as u64, evidence),
            Shown::Below if self.mistake != Mistake::LayerComparedAsZeroes => {
                into.one.extend(units.map(|unit| self.lower.value(unit)));
            }
            Shown::Below | Shown::Zero => into.one.extend(units.map(|_| ValueKey::ZERO)),
        });
    }

    /// P3: a later look at an image shows nothing that an earlier one did not. Both must be of the same run's values.
    pub fn p3_same_contents<E: Evidence>(
        &self,
        before: &Contents,
        after: &Contents,
        evidence: &E,
    ) -> Option<Violation> {
        if self.mistake == Mistake::RepairMayChangeContents {
            return None;
        }
        if before.size != after.size {
            let story = format!("virtual size was {} and is {}", before.size, after.size);
            return Some(whole_image(Property::P3, "size-changed", story));
        }
        if before == after {
            return None;
        }
        let value = |key| payload::decode(evidence.bytes(key));
        let changed = |kind, unit, found, before: &Sets| Violation {
            property: Property::P3,
            kind,
            place: Place::Guest { unit, host: None },
            found: Some(value(found)),
            allowed: before.values(unit).map(value).collect(),
            story: String::new(),
        };
        let new = |before: &Sets, after: &Sets, unit| {
            after.values(unit).find(|key| before.values(unit).all(|was| was != *key))
        };
        let content = || {
            (0..after.guest.one.len() as u64).find_map(|unit| {
                let new = || new(&before.guest, &after.guest, unit);
                let found = self.mistake.added(unit, before, after).unwrap_or_else(new)?;
                Some(changed("content-changed", unit, found, &before.guest))
            })
        };
        let raw = || {
            (0..after.raw.one.len() as u64).find_map(|unit| {
                let found = new(&before.raw, &after.raw, unit)?;
                Some(changed("raw-view-changed", unit, found, &before.raw))
            })
        };
        content().or_else(raw)
    }

    /// P3: the subject maps the guest's disk as the judge does. `extents` must cover the disk, in order.
    pub fn p3_mapping_agrees(&self, extents: &[Extent]) -> Option<Violation> {
        let below = self.lower.units() * UNIT as u64;
        let image = self.auditor.image();
        let (Some(header), false) = (image.header(), self.mistake == Mistake::MappingUncompared)
        else {
            return None;
        };
        let disagrees = |unit: u64, host, story| {
            let place = Place::Guest { unit, host };
            let (property, kind) = (Property::P3, "mapping-disagrees");
            Some(Violation { property, kind, place, found: None, allowed: Vec::new(), story })
        };
        let mut next = 0;
        for extent in extents {
            let end = extent.guest.saturating_add(extent.length);
            if extent.guest != next || end > header.size || extent.length == 0 {
                let story =
                    format!("the subject maps {:#x}..{end:#x} after {next:#x}", extent.guest);
                return disagrees(next / UNIT as u64, None, story);
            }
            // Behind the end of the layer below it makes no difference which of them is said.
            let shows = |at: u64| header.has_layer() && at < below;
            while next < end {
                let (piece, mapping) = image.piece(next / UNIT as u64);
                let from = piece.start * UNIT as u64;
                let ours = match mapping {
                    Mapping::Host(offset) => Shown::Host(offset + (next - from)),
                    Mapping::Compressed(offset) => {
                        Shown::Stream(Stream { offset, length: 0, kind: Compression::Deflate })
                    }
                    Mapping::Unallocated if shows(next) => Shown::Below,
                    Mapping::Unallocated | Mapping::Zero => Shown::Zero,
                };
                let theirs = match extent.to {
                    Mapping::Host(offset) => {
                        let at = offset.saturating_add(header.data_at.unwrap_or(0));
                        Shown::Host(at.saturating_add(next - extent.guest))
                    }
                    Mapping::Compressed(offset) => {
                        Shown::Stream(Stream { offset, length: 0, kind: Compression::Deflate })
                    }
                    Mapping::Unallocated if shows(next) => Shown::Below,
                    Mapping::Unallocated | Mapping::Zero => Shown::Zero,
                };
                if ours != theirs {
                    let place = |shown| match shown {
                        Shown::Host(at) => format!("{at:#x}"),
                        Shown::Stream(Stream { offset, .. }) => format!("a stream at {offset:#x}"),
                        Shown::Below => "the layer below".to_owned(),
                        Shown::Zero => "nowhere".to_owned(),
                    };
                    let story =
                        format!("the subject maps it to {}, not {}", place(theirs), place(ours));
                    let host = match ours {
                        Shown::Host(at) | Shown::Stream(Stream { offset: at, .. }) => Some(at),
                        Shown::Below | Shown::Zero => None,
                    };
                    return disagrees(next / UNIT as u64, host, story);
                }
                next = piece.end.saturating_mul(UNIT as u64).min(end);
            }
        }
        (next != header.size)
            .then(|| format!("the subject maps nothing from {next:#x} on"))
            .and_then(|story| disagrees(next / UNIT as u64, None, story))
    }

    /// P5: a second repair of a repaired image changed no byte.
    pub fn p5_fixed_point<E: Evidence>(&self, once: &mut E, twice: &mut E) -> Option<Violation> {
        if self.mistake == Mistake::SecondRepairMayWrite {
            return None;
        }
        let (before, after) = (once.len(), twice.len());
        if before != after {
            let story = format!("the second repair changed the length from {before} to {after}");
            return Some(whole_image(Property::P5, "not-a-fixed-point", story));
        }
        let (data, still) = (once.data_len(), twice.data_len());
        if data != still && self.mistake != Mistake::DataFileNoFixedPoint {
            let story = format!(
                "the second repair changed the length of the data file from {data} to {still}"
            );
            return Some(whole_image(Property::P5, "not-a-fixed-point", story));
        }
        let first = once.data_file().unwrap_or(0);
        let of_data = match self.mistake {
            Mistake::DataFileNoFixedPoint => 0,
            _ => data.div_ceil(UNIT as u64),
        };
        let mut values = (Vec::new(), Vec::new());
        (0..before.div_ceil(UNIT as u64)).chain(first..first + of_data).find_map(|unit| {
            values.0.clear();
            values.1.clear();
            once.peek(unit, |key| values.0.push(key));
            twice.peek(unit, |key| values.1.push(key));
            let known = |key: &ValueKey| {
                let bytes = twice.bytes(*key);
                values.0.iter().any(|was| {
                    let same = || once.bytes(*was) == bytes;
                    self.mistake.is_same(*was, *key).unwrap_or_else(same)
                })
            };
            let looked_at = match self.mistake {
                Mistake::FixedPointOfOne => 1,
                _ => usize::MAX,
            };
            let new = values.1.iter().take(looked_at).find(|key| !known(key))?;
            Some(Violation {
                property: Property::P5,
                kind: "not-a-fixed-point",
                place: Place::File { unit },
                found: Some(payload::decode(twice.bytes(*new))),
                allowed: values.0.iter().map(|key| payload::decode(once.bytes(*key))).collect(),
                story: "a second repair wrote it".to_owned(),
            })
        })
    }

    /// P8: what the subject says about the image that was judged last is so.
    pub fn p8_claim(&self, claim: Statement) -> Option<Violation> {
        let stage = match claim {
            _ if self.mistake == Mistake::ClaimsBelieved => return None,
            Statement::Writable if self.mistake == Mistake::WritableBelieved => return None,
            _ => claim.stage()?,
        };
        // Who checks an image is given the image file only.
        let is_unseen = |finding: &Finding| {
            claim != Statement::Writable && matches!(finding, Finding::DataFileShort { .. })
        };
        let mut findings = self.auditor.report().violations(stage);
        let (_, finding) = findings.find(|(_, finding)| !is_unseen(finding))?;
        Some(Violation {
            property: Property::P8,
            kind: "false-claim",
            place: Place::Structure(*finding),
            found: None,
            allowed: Vec::new(),
            story: format!("the subject says: {claim:?}"),
        })
    }

    /// P1 and P2: whatever a guest unit may hold is allowed.
    fn contents_allowed<E: Evidence>(&mut self, evidence: &E, guest: &Guest, header: &Header) {
        let Self { auditor, violations, mistake, .. } = self;
        let units = guest.units().min(header.size / UNIT as u64);
        let image = auditor.image();
        each_guest_cluster(image, header, units, *mistake, |units, shown| {
            let mut judge = |unit: u64, host: Option<u64>, key: ValueKey| {
                if !guest.permits(unit, key) && violations.len() < MAX_VIOLATIONS {
                    violations.extend(p1_p2_content(unit, host, key, evidence, guest, *mistake));
                }
            };
            match shown {
                Shown::Stream(_) if *mistake == Mistake::StreamsUnjudged => {}
                Shown::Stream(stream) => {
                    let room = MAX_VIOLATIONS.saturating_sub(violations.len());
                    violations.extend(
                        p1_p2_stream(units, stream, header, evidence, guest, *mistake)
                            .into_iter()
                            .take(room),
                    );
                }
                Shown::Below | Shown::Zero if *mistake == Mistake::UnmappedUnjudged => {}
                Shown::Below if *mistake == Mistake::LayerUnjudged => {}
                Shown::Zero if guest.permits_zeroes(units.clone()) => {}
                Shown::Zero => units.for_each(|unit| judge(unit, None, ValueKey::ZERO)),
                Shown::Below => units.for_each(|unit| judge(unit, None, guest.lower().value(unit))),
                Shown::Host(offset) => {
                    let mut next = units.start;
                    while next < units.end {
                        let unit = next;
                        let host = offset + (unit - units.start) * UNIT as u64;
                        let at = host / UNIT as u64;
                        let run = guest.settled_run(unit, evidence.decided(at, units.end - unit));
                        next += run.max(1);
                        if run > 0 || mistake.passes_over_unit(host, offset, image.guest_data_end())
                        {
                            continue;
                        }
                        let mut fine = false;
                        if *mistake == Mistake::OneOfTheSetIsEnough {
                            evidence.peek(at, |key| fine |= guest.permits(unit, key));
                        }
                        if !fine {
                            evidence.peek(at, |key| judge(unit, Some(host), key));
                        }
                    }
                }
            }
        });
    }

    /// P2: a raw data file holds the disk by itself, and never something else than what is read through the image.
    fn raw_view_allowed<E: Evidence>(&mut self, evidence: &E, guest: &Guest, header: &Header) {
        let Self { auditor, violations, lower, mistake, .. } = self;
        let Some(first) = raw_data(header, evidence) else { return };
        if *mistake == Mistake::RawViewUnjudged {
            return;
        }
        let units = guest.units().min(header.size / UNIT as u64);
        each_guest_cluster(auditor.image(), header, units, *mistake, |units, shown| {
            // The same units of the file, which were judged as what the guest reads.
            if shown == Shown::Host((first + units.start) * UNIT as u64) {
                return;
            }
            let zeroes = shown == Shown::Zero;
            let mut next = units.start;
            while next < units.end {
                let (unit, at, rest) = (next, first + next, units.end - next);
                next += 1;
                if zeroes {
                    // Zeroes on both sides: that they are allowed was asked already.
                    let known = |key: &ValueKey| *key == ValueKey::ZERO;
                    let run = match evidence.zero_run(at, rest) {
                        0 => evidence.decided(at, rest).take_while(known).count() as u64,
                        run => run,
                    };
                    if run > 0 {
                        next = unit + run;
                        continue;
                    }
                }
                let is_read = |key| match shown {
                    Shown::Zero => key == ValueKey::ZERO,
                    Shown::Below => key == lower.value(unit),
                    Shown::Host(offset) => {
                        let mut only = true;
                        let host = offset / UNIT as u64 + (unit - units.start);
                        evidence.peek(host, |read| only &= read == key);
                        only
                    }
                    // What is compressed there is no data of this file, and a finding.
                    Shown::Stream(_) => true,
                };
                evidence.peek(at, |key| {
                    let kind = match () {
                        () if !guest.permits(unit, key) => "raw-view",
                        () if !is_read(key) && *mistake != Mistake::ViewsMayDiffer => {
                            "views-differ"
                        }
                        () => return,
                    };
                    if violations.len() < MAX_VIOLATIONS {
                        let value = |key| payload::decode(evidence.bytes(key));
                        violations.push(Violation {
                            property: Property::P2,
                            kind,
                            place: Place::Guest { unit, host: Some(at * UNIT as u64) },
                            found: Some(value(key)),
                            allowed: guest.allowed(unit).into_iter().map(value).collect(),
                            story: guest.story(unit, |key| value(key).to_string()),
                        });
                    }
                });
            }
        });
    }

    /// P4: where a bitmap says that it is up to date, it says so of every unit that a guest has written since. (A unit that
    /// reads as zeroes may always have been so.)
    fn p4_changes_recorded<E: Evidence>(&mut self, evidence: &E, header: &Header) {
        let Self { auditor, violations, mistake, .. } = self;
        let image = auditor.image();
        if image.recordings().is_empty() || *mistake == Mistake::StaleBitmapAllowed {
            return;
        }
        let is_set = |bit| match bit {
            Bit::Is(set) => set,
            Bit::At(byte, mask) => {
                let mut set = true;
                evidence.peek(byte / UNIT as u64, |key| {
                    set &= evidence.bytes(key)[(byte % UNIT as u64) as usize] & mask != 0;
                });
                set
            }
        };
        let units = (header.size / UNIT as u64).min(MAX_VIRTUAL_SIZE / UNIT as u64);
        each_guest_cluster(image, header, units, *mistake, |units, shown| {
            let Shown::Host(host) = shown else { return };
            for (unit, at) in units.zip(host / UNIT as u64..) {
                let mut written = None;
                evidence.peek(at, |key| match payload::decode(evidence.bytes(key)) {
                    Value::Tag {
                        id: payload::INITIAL | payload::STALE | payload::BELOW, ..
                    }
                    | Value::Zero => {}
                    value => written = Some(value),
                });
                let missed = |recording: &Recording| {
                    !is_set(recording.bit(unit * UNIT as u64, header.cluster_bits))
                };
                if written.is_some()
                    && violations.len() < MAX_VIOLATIONS
                    && image.recordings().iter().any(missed)
                {
                    violations.push(Violation {
                        property: Property::P4,
                        kind: "bitmap-misses-a-change",
                        place: Place::Guest { unit, host: Some(at * UNIT as u64) },
                        found: written,
                        allowed: Vec::new(),
                        story: "a bitmap says that it is up to date".to_owned(),
                    });
                }
            }
        });
    }
}

/// P0: a read returned what it must not.
pub fn p0_misread<E: Evidence>(misread: &Misread, evidence: &E, guest: &Guest) -> Violation {
    let value = |key| payload::decode(evidence.bytes(key));
    Violation {
        property: Property::P0,
        kind: "misread",
        place: Place::Guest { unit: misread.unit, host: None },
        found: Some(value(misread.found)),
        allowed: misread.allowed.iter().copied().map(value).collect(),
        story: guest.story(misread.unit, |key| value(key).to_string()),
    }
}

/// P4, and the structural part of P6: what is illegal at this stage.
pub fn p4_structure(report: &AuditReport, stage: Stage, violations: &mut Vec<Violation>) {
    let found = report.violations(stage).take(MAX_VIOLATIONS);
    violations.extend(found.map(|(property, finding)| Violation {
        property,
        kind: finding.name(),
        place: Place::Structure(*finding),
        found: None,
        allowed: Vec::new(),
        story: String::new(),
    }));
    if report.is_cut_short() {
        let story = format!("more than {} findings", report.findings.len());
        violations.push(whole_image(Property::P4, "too-many-findings", story));
    }
}

/// P10, as far as one state shows it: the disk has one of the sizes that it could have.
pub fn p10_size(header: &Header, guest: &Guest, violations: &mut Vec<Violation>) {
    if !guest.permits_size(header.size) {
        let story = format!("{} bytes; allowed: {:?}", header.size, guest.allowed_sizes());
        violations.push(whole_image(Property::P10, "virtual-size", story));
    }
}

/// P10: the image names the layer that it was made over, whole, or none if it was made over none.
pub fn p10_layer(image: &Image, guest: &Guest, violations: &mut Vec<Violation>) {
    let found = image.layer().map(|layer| (&layer.name[..], layer.format.as_deref()));
    let right = guest.lower().is_there().then_some((LAYER_NAME, Some(LAYER_FORMAT)));
    if found != right {
        let text = |layer: Option<(&[u8], Option<&[u8]>)>| match layer {
            None => "nothing".to_owned(),
            Some((name, format)) => {
                let text = String::from_utf8_lossy;
                format!("{:?} of format {:?}", text(name), format.map(text))
            }
        };
        let story = format!("it is over {}, not over {}", text(found), text(right));
        violations.push(whole_image(Property::P10, "layer", story));
    }
}

/// P10: the image has the data file that it was made with, by its name, and promises of it what it did.
pub fn p10_data_file(image: &Image, guest: &Guest, violations: &mut Vec<Violation>) {
    let header = image.header().filter(|header| header.has_data_file());
    let kind = |raw| if raw { DataFile::Raw } else { DataFile::Plain };
    let found = header.map(|header| (kind(header.has_raw_data()), image.data_name()));
    let right = guest.data_file().map(|kind| (kind, Some(DATA_NAME)));
    if found != right {
        let text = |file: Option<(DataFile, Option<&[u8]>)>| match file {
            None => "none".to_owned(),
            Some((kind, name)) => format!("{kind:?} {:?}", name.map(String::from_utf8_lossy)),
        };
        let story = format!("its data file is {}, not {}", text(found), text(right));
        violations.push(whole_image(Property::P10, "data-file", story));
    }
}

/// P1 if the value was ever put into this unit, P2 if it was not.
fn p1_p2_content<E: Evidence>(
    unit: u64,
    host: Option<u64>,
    key: ValueKey,
    evidence: &E,
    guest: &Guest,
    mistake: Mistake,
) -> Option<Violation> {
    let value = |key| payload::decode(evidence.bytes(key));
    let found = value(key);
    if mistake == Mistake::ForeignDataAccepted && matches!(found, Value::Tag { .. }) {
        return None;
    }
    let (property, kind) = match found {
        _ if guest.was_written(unit, key) => (Property::P1, "lost-write"),
        Value::Zero => (Property::P2, "invented-zero"),
        Value::Tag { id: payload::STALE, .. } => (Property::P2, "stale-bytes"),
        Value::Tag { unit: of, id: payload::BELOW } if of == unit => (Property::P2, "layer-shows"),
        Value::Tag { unit: of, .. } if of != unit => (Property::P2, "other-unit"),
        Value::Tag { .. } | Value::Foreign(_) => (Property::P2, "invented"),
    };
    Some(Violation {
        property,
        kind,
        place: Place::Guest { unit, host },
        found: Some(found),
        allowed: guest.allowed(unit).into_iter().map(value).collect(),
        story: guest.story(unit, |key| value(key).to_string()),
    })
}

/// What a guest cluster reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// What is in the file from this byte on.
    Host(u64),
    Zero,
    /// What the layer below holds.
    Below,
    /// What a stream in the file gives.
    Stream(Stream),
}

/// The first unit of a raw data file, if the image has one.
fn raw_data<E: Evidence>(header: &Header, evidence: &E) -> Option<u64> {
    evidence.data_file().filter(|_| header.has_raw_data())
}

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a cluster fits in memory")
}

/// P1 and P2 of a compressed cluster: every way in which it may read is allowed, and it can be read in every way.
fn p1_p2_stream<E: Evidence>(
    units: Range<u64>,
    stream: Stream,
    header: &Header,
    evidence: &E,
    guest: &Guest,
    mistake: Mistake,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    stream.each_reading(evidence, in_memory(header.cluster_size()), |cluster| {
        let place = |unit| Place::Guest { unit, host: Some(stream.offset) };
        let allowed = |unit| {
            guest
                .allowed(unit)
                .into_iter()
                .map(|key| payload::decode(evidence.bytes(key)))
                .collect()
        };
        let Some(cluster) = cluster else {
            let unit = units.start;
            return violations.push(Violation {
                property: Property::P2,
                kind: "undecodable",
                place: place(unit),
                found: None,
                allowed: allowed(unit),
                story: "its cluster is compressed, and no stream is there that gives one"
                    .to_owned(),
            });
        };
        for (unit, bytes) in units.clone().zip(cluster.as_chunks::<UNIT>().0) {
            match evidence.key_of(bytes) {
                Some(key) if guest.permits(unit, key) => {}
                Some(key) => violations.extend(p1_p2_content(
                    unit,
                    Some(stream.offset),
                    key,
                    evidence,
                    guest,
                    mistake,
                )),
                None => violations.push(Violation {
                    property: Property::P2,
                    kind: "invented",
                    place: place(unit),
                    found: Some(payload::decode(bytes)),
                    allowed: allowed(unit),
                    story: "nobody ever wrote what its stream gives".to_owned(),
                }),
            }
        }
    });
    violations
}

/// Shows every guest cluster, as its units, with what it reads as; neighbours whose entries are empty at once, and one that has
/// subclusters piece by piece.
fn each_guest_cluster(
    image: &Image,
    header: &Header,
    units: u64,
    mistake: Mistake,
    mut show: impl FnMut(Range<u64>, Shown),
) {
    if header.has_extended_l2() {
        each_guest_piece(image, header, units, show);
        return;
    }
    let in_cluster = header.cluster_size() / UNIT as u64;
    let in_table = header.l2_entries();
    let (mut unit, mut cluster) = (0, 0);
    let mut table: &[u64] = &[];
    while unit < units {
        if mistake.passes_over_cluster(cluster, in_table) {
            return;
        }
        let within = cluster % in_table;
        if within == 0 {
            table = image.table(cluster / in_table).words;
        }
        let rest = table.get(within as usize..).unwrap_or_default();
        let empty = match rest {
            [] => in_table - within,
            _ => rest.iter().take_while(|entry| **entry == 0).count() as u64,
        };
        let entry = rest.first().copied().unwrap_or(0);
        let clusters = empty.max(1);
        let end = (unit + clusters * in_cluster).min(units);
        match decode_l2(entry, header) {
            Mapping::Host(offset) => show(unit..end, Shown::Host(offset)),
            Mapping::Unallocated if header.has_layer() => show(unit..end, Shown::Below),
            Mapping::Unallocated | Mapping::Zero => show(unit..end, Shown::Zero),
            Mapping::Compressed(_) => show(unit..end, Shown::Stream(stream_of(entry, header))),
        }
        (unit, cluster) = (end, cluster + clusters);
    }
}

/// The same of an image whose clusters have subclusters: apart, so that what others cost does not change.
fn each_guest_piece(
    image: &Image,
    header: &Header,
    units: u64,
    mut show: impl FnMut(Range<u64>, Shown),
) {
    let nothing = if header.has_layer() { Shown::Below } else { Shown::Zero };
    let mut next = 0;
    for (piece, mapping) in image.pieces().take_while(|(piece, _)| piece.start < units) {
        if next < piece.start {
            show(next..piece.start, nothing);
        }
        next = piece.end.min(units);
        match mapping {
            Mapping::Host(offset) => show(piece.start..next, Shown::Host(offset)),
            Mapping::Unallocated => show(piece.start..next, nothing),
            Mapping::Zero => show(piece.start..next, Shown::Zero),
            Mapping::Compressed(_) => {
                let cluster = piece.start * UNIT as u64 / header.cluster_size();
                let (entry, _) = image.entry(header, cluster);
                show(piece.start..next, Shown::Stream(stream_of(entry, header)));
            }
        }
    }
    if next < units {
        show(next..units, nothing);
    }
}

fn whole_image(property: Property, kind: &'static str, story: String) -> Violation {
    Violation { property, kind, place: Place::Image, found: None, allowed: Vec::new(), story }
}
