//! The judge: one state after the other, and what was before beside what is there now.

use std::cell::RefCell;

use super::contents::{Contents, Sets, is_nobodys};
use super::inherited::Inherited;
use super::keys::{self, openings, p10_passphrases};
use super::plain::{Memo, Plain};
use super::seen::{contents_allowed, raw_view_allowed};
use super::shown::{Shown, each_guest_cluster, in_memory, raw_data};
use super::statement::{Extent, Statement};
use super::structure::{
    p_cipher, p4_changes_recorded, p4_structure, p10_data_file, p10_encryption, p10_extension,
    p10_features, p10_layer, p10_size,
};
use super::violation::{Place, Violation, whole_image};
use crate::audit::Auditor;
use crate::evidence::{Evidence, ValueKey};
use crate::finding::{Finding, Property, Stage};
use crate::guest::{Guest, LowerDisk, Openings};
use crate::image::Mapping;
use crate::mistake::Mistake;
use crate::op::{Compression, Encryption, MAX_VIRTUAL_SIZE};
use crate::payload::{self, UNIT, Value};
use crate::stream::Stream;

/// Judges states one after the other, with the same buffers.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    auditor: Auditor,
    violations: Vec<Violation>,
    contents_only: bool,
    /// Leaks are legal after a clean close.
    may_leak: bool,
    /// The one below the image that was judged last.
    lower: LowerDisk,
    memo: RefCell<Memo>,
    keys: RefCell<keys::Memo>,
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

    /// The same judge, of an implementation that may leave clusters counted that nothing refers to when it closes an image (P6).
    #[must_use]
    pub fn allowing_leaks(self) -> Self {
        Self { may_leak: true, ..self }
    }

    /// See [`Auditor::remember`].
    pub fn remember_audits(&mut self, remembers: bool) {
        self.auditor.remember(remembers);
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
        self.lower.clone_from(guest.made().lower());
        let report = self.auditor.audit(evidence);
        let stage = stage.unwrap_or_else(|| report.crashed_stage());
        if !(self.contents_only && report.header.is_some()) {
            p4_structure(report, stage, &mut self.violations);
        }
        if let Some(header) = report.header {
            p10_size(&header, guest, &mut self.violations);
            if self.mistake != Mistake::FeaturesMayBeLost {
                p10_features(&header, guest, &mut self.violations);
            }
            if self.mistake != Mistake::ExtensionsMayBeLost {
                p10_extension(self.auditor.image(), guest, &mut self.violations);
            }
            if self.mistake != Mistake::LayerNameIgnored {
                p10_layer(self.auditor.image(), guest, &mut self.violations);
            }
            if self.mistake != Mistake::DataFileNameIgnored {
                p10_data_file(self.auditor.image(), guest, &mut self.violations);
            }
            if self.mistake != Mistake::EncryptionIgnored {
                let image = self.auditor.image();
                let before = self.violations.len();
                p10_encryption(image, evidence, guest, &mut self.violations);
                // In what is not as it was built there are no slots to judge.
                if guest.made().encryption() == Some(Encryption::Luks)
                    && self.violations.len() == before
                {
                    let (keys, violations) = (&self.keys, &mut self.violations);
                    p10_passphrases(image, evidence, guest, keys, self.mistake, violations);
                }
            }
            let (image, mistake) = (self.auditor.image(), self.mistake);
            let plain = Plain::new(&header, evidence, &self.memo, mistake);
            let violations = &mut self.violations;
            contents_allowed(image, &header, evidence, &plain, guest, mistake, violations);
            raw_view_allowed(image, &header, evidence, guest, mistake, violations);
            if !self.contents_only {
                p4_changes_recorded(image, &header, evidence, &plain, mistake, violations);
            }
        }
        if self.mistake != Mistake::ClearTextAllowed {
            p_cipher(evidence, guest, &mut self.violations);
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
        let lenient = self.may_leak || self.mistake == Mistake::EveryLeakInherited;
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
        &self.violations
    }

    /// Which further passphrases open the image that was judged last.
    pub fn passphrases<E: Evidence>(&self, evidence: &E) -> Openings {
        openings(self.auditor.image(), evidence, &self.keys, self.mistake)
    }

    /// What every guest unit of the image that was judged last may hold, and what opens it. Narrow the reference disk to it, and compare later
    /// contents with it (P3).
    pub fn contents<E: Evidence>(&self, evidence: &E, into: &mut Contents) {
        into.guest.clear();
        into.raw.clear();
        into.size = 0;
        into.passphrases = Openings::default();
        let image = self.auditor.image();
        let Some(header) = image.header() else { return };
        into.size = header.size;
        into.passphrases = self.passphrases(evidence);
        // A larger disk is no reference disk's: its size is a violation already.
        let units = header.size.min(MAX_VIRTUAL_SIZE) / UNIT as u64;
        if let Some(first) = raw_data(header, evidence)
            && self.mistake != Mistake::RawViewMayChange
        {
            into.raw.add_all(0..units, first, evidence);
        }
        let plain = Plain::new(header, evidence, &self.memo, self.mistake);
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
            Shown::Host(offset) => plain.add_to(into, units, offset / UNIT as u64),
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
        let value = |key| match is_nobodys(key) {
            true => Value::Foreign(key.0.into()),
            false => payload::decode(evidence.bytes(key)),
        };
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
        let opens_otherwise = || {
            let pairs = before.passphrases.iter().zip(&after.passphrases);
            let (id, (was, is)) = (1..)
                .zip(pairs)
                .find(|(_, (was, is))| was.is_some() && was != is)
                .filter(|_| self.mistake != Mistake::SlotsMayChange)?;
            let text = |opens| match opens {
                Some(true) => "opens it",
                Some(false) => "does not open it",
                None => "may open it or not",
            };
            let story = format!("passphrase {id} {}, and it was: {}", text(*is), text(*was));
            Some(whole_image(Property::P3, "passphrases-changed", story))
        };
        content().or_else(raw).or_else(opens_otherwise)
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
}
