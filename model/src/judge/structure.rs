//! P4, P10 and P-cipher, as far as one state shows them: tables, bitmaps and the header say what they may at this stage.

use super::keys::luks_unit;
use super::plain::Plain;
use super::shown::{Shown, each_guest_cluster};
use super::violation::{MAX_VIOLATIONS, Place, Violation, whole_image};
use crate::audit::AuditReport;
use crate::crypt::{HEADER_UNITS, LUKS_BYTES, is_as_built, luks_units};
use crate::evidence::Evidence;
use crate::finding::{Property, Stage};
use crate::guest::Guest;
use crate::image::{AUTOCLEAR_UNKNOWN, Bit, Header, Image, Recording};
use crate::mistake::Mistake;
use crate::op::{DataFile, Encryption, MAX_VIRTUAL_SIZE};
use crate::payload::{self, DATA_NAME, LAYER_FORMAT, LAYER_NAME, UNIT, Unit, Value};

/// The kind of a finding: a bit that every writer of an image has to clear, and that is set after a write.
pub const AUTOCLEAR_STAYS: &str = "autoclear-bit-stays";

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

/// P10: the image has every compatible feature bit that it was made with, known or not: nobody has a reason to clear one.
pub(super) fn p10_features(header: &Header, guest: &Guest, violations: &mut Vec<Violation>) {
    let lost = guest.made().compatible_features() & !header.compatible_features;
    if lost != 0 {
        let story = format!("it was made with compatible feature bits {lost:#x}, which are gone");
        violations.push(whole_image(Property::P10, "feature-lost", story));
    }
}

/// P10: the header extension is still there that nobody knows.
pub(super) fn p10_extension(image: &Image, guest: &Guest, violations: &mut Vec<Violation>) {
    if let Some((kind, data)) = guest.made().foreign_extension()
        && !image.has_foreign_extension(kind, data)
    {
        let story =
            format!("the header had an extension of type {kind:#x}, which is gone or changed");
        violations.push(whole_image(Property::P10, "extension-lost", story));
    }
}

/// P10: the image names the layer that it was made over, whole, or none if it was made over none.
pub fn p10_layer(image: &Image, guest: &Guest, violations: &mut Vec<Violation>) {
    let found = image.layer().map(|layer| (&layer.name[..], layer.format.as_deref()));
    let right = guest.made().lower().is_there().then_some((LAYER_NAME, Some(LAYER_FORMAT)));
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
    let right = guest.made().data_file().map(|kind| (kind, Some(DATA_NAME)));
    if found != right {
        let text = |file: Option<(DataFile, Option<&[u8]>)>| match file {
            None => "none".to_owned(),
            Some((kind, name)) => format!("{kind:?} {:?}", name.map(String::from_utf8_lossy)),
        };
        let story = format!("its data file is {}, not {}", text(found), text(right));
        violations.push(whole_image(Property::P10, "data-file", story));
    }
}

/// P10: the image is encrypted as it was made, and its LUKS header keeps the key for whoever knows the passphrase that it was made with: every
/// unit that the builder wrote there holds what it held, in each value that it may have, but for what it says of slots other than the first.
pub fn p10_encryption<E: Evidence>(
    image: &Image,
    evidence: &E,
    guest: &Guest,
    violations: &mut Vec<Violation>,
) {
    let found = image.header().and_then(Header::encryption);
    let right = guest.made().encryption();
    if found != right {
        let text = |kind| match kind {
            None => "not enciphered",
            Some(Encryption::Aes) => "enciphered with AES",
            Some(Encryption::Luks) => "enciphered with LUKS",
        };
        let story = format!("its data is {}, and was {}", text(found), text(right));
        violations.push(whole_image(Property::P10, "encryption", story));
        return;
    }
    if right != Some(Encryption::Luks) {
        return;
    }
    let Some(first) = luks_unit(image) else {
        let header = image.luks_header();
        let story = format!("its LUKS header is at {header:?}, and had {LUKS_BYTES} bytes");
        violations.push(whole_image(Property::P10, "encryption", story));
        return;
    };
    let lost = luks_units().iter().find_map(|(unit, held)| {
        let at = first + unit;
        let fields = usize::try_from(*unit).ok().filter(|unit| *unit < HEADER_UNITS);
        let mut other = None;
        evidence.peek(at, |key| {
            let bytes = evidence.bytes(key);
            if bytes != held && !fields.is_some_and(|unit| is_as_built(unit, bytes)) {
                other = Some(payload::decode(bytes));
            }
        });
        other.map(|other| (at, other, payload::decode(held)))
    });
    if let Some((unit, found, held)) = lost {
        violations.push(Violation {
            property: Property::P10,
            kind: "encryption",
            place: Place::File { unit },
            found: Some(found),
            allowed: vec![held],
            story: "nobody changed what this unit of the LUKS header says beside slots 1 to 7"
                .to_owned(),
        });
    }
}

/// P-cipher: no unit of any file of an encrypted image, whatever it may hold, is what a guest wrote.
pub fn p_cipher<E: Evidence>(evidence: &mut E, guest: &Guest, violations: &mut Vec<Violation>) {
    if guest.made().encryption().is_none() {
        return;
    }
    let units = |bytes: u64| bytes.div_ceil(UNIT as u64);
    let image = 0..units(evidence.len());
    let data = evidence.data_file().map_or(0..0, |first| first..first + units(evidence.data_len()));
    for units in [image, data] {
        let mut unit = units.start;
        while unit < units.end {
            let empty = evidence.zero_run(unit, units.end - unit);
            if empty > 0 {
                unit += empty;
                continue;
            }
            evidence.peek(unit, |key| {
                let bytes = evidence.bytes(key);
                if violations.len() < MAX_VIOLATIONS && payload::is_payload(bytes) {
                    violations.push(in_clear(unit, bytes));
                }
            });
            unit += 1;
        }
    }
}

fn in_clear(unit: u64, bytes: &Unit) -> Violation {
    Violation {
        property: Property::PCipher,
        kind: "in-clear",
        place: Place::File { unit },
        found: Some(payload::decode(bytes)),
        allowed: Vec::new(),
        story: "the image is encrypted, and this is there as the guest wrote it".to_owned(),
    }
}

/// P4: where a bitmap says that it is up to date, it says so of every unit that a guest has written since; and where a guest has written
/// anything, no autoclear bit is left that nobody knows. (A unit that reads as zeroes may always have been so.)
pub(super) fn p4_changes_recorded<E: Evidence>(
    image: &Image,
    header: &Header,
    evidence: &E,
    plain: &Plain<'_, E>,
    mistake: Mistake,
    violations: &mut Vec<Violation>,
) {
    let recordings = match mistake {
        Mistake::StaleBitmapAllowed => &[],
        _ => image.recordings(),
    };
    let unknown = match mistake {
        Mistake::AutoclearMayStay => 0,
        _ => header.autoclear_features & AUTOCLEAR_UNKNOWN,
    };
    if recordings.is_empty() && unknown == 0 {
        return;
    }
    let mut is_told = false;
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
    each_guest_cluster(image, header, units, mistake, |units, shown| {
        let Shown::Host(host) = shown else { return };
        for (unit, at) in units.zip(host / UNIT as u64..) {
            let mut written = None;
            plain.peek(unit, at, |held| match held.value(evidence) {
                Value::Tag { id: payload::INITIAL | payload::STALE | payload::BELOW, .. }
                | Value::Zero => {}
                value => written = Some(value),
            });
            let missed = |recording: &Recording| {
                !is_set(recording.bit(unit * UNIT as u64, header.cluster_bits))
            };
            let told = |kind, story| Violation {
                property: Property::P4,
                kind,
                place: Place::Guest { unit, host: Some(at * UNIT as u64) },
                found: written,
                allowed: Vec::new(),
                story,
            };
            if written.is_none() {
                continue;
            }
            if unknown != 0 && !std::mem::replace(&mut is_told, true) {
                let story =
                    format!("autoclear bits that nobody knows are still there: {unknown:#x}");
                violations.push(told(AUTOCLEAR_STAYS, story));
            }
            if violations.len() < MAX_VIOLATIONS && recordings.iter().any(missed) {
                let story = "a bitmap says that it is up to date".to_owned();
                violations.push(told("bitmap-misses-a-change", story));
            }
        }
    });
}
