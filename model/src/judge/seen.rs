//! P0, P1 and P2: what a guest reads, or may read, is allowed; through the image, and from a raw data file by itself.

use std::ops::Range;

use super::plain::{Held, Plain};
use super::shown::{Shown, each_guest_cluster, in_memory, raw_data};
use super::violation::{MAX_VIOLATIONS, Place, Violation};
use crate::evidence::{Evidence, ValueKey};
use crate::finding::Property;
use crate::guest::{Guest, Misread};
use crate::image::{Header, Image};
use crate::mistake::Mistake;
use crate::payload::{self, UNIT, Value};
use crate::stream::Stream;

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

/// P1 and P2: whatever a guest unit may hold is allowed.
pub(super) fn contents_allowed<E: Evidence>(
    image: &Image,
    header: &Header,
    evidence: &E,
    plain: &Plain<'_, E>,
    guest: &Guest,
    mistake: Mistake,
    violations: &mut Vec<Violation>,
) {
    let permits = |unit, held: &Held| matches!(held, Held::Known(key) if guest.permits(unit, *key));
    let units = guest.units().min(header.size / UNIT as u64);
    each_guest_cluster(image, header, units, mistake, |units, shown| {
        let mut judge = |unit: u64, host: Option<u64>, held: Held| {
            if !permits(unit, &held) && violations.len() < MAX_VIOLATIONS {
                violations.extend(p1_p2_content(unit, host, &held, evidence, guest, mistake));
            }
        };
        match shown {
            Shown::Stream(_) if mistake == Mistake::StreamsUnjudged => {}
            Shown::Stream(stream) => {
                if guest.made().encryption().is_some() && mistake != Mistake::ClearTextAllowed {
                    violations.push(p_cipher_compressed(units.start, stream));
                }
                let room = MAX_VIOLATIONS.saturating_sub(violations.len());
                violations.extend(
                    p1_p2_stream(units, stream, header, evidence, guest, mistake)
                        .into_iter()
                        .take(room),
                );
            }
            Shown::Below | Shown::Zero if mistake == Mistake::UnmappedUnjudged => {}
            Shown::Below if mistake == Mistake::LayerUnjudged => {}
            Shown::Zero if guest.permits_zeroes(units.clone()) => {}
            Shown::Zero => units.for_each(|unit| judge(unit, None, Held::Known(ValueKey::ZERO))),
            Shown::Below => {
                units.for_each(|unit| {
                    judge(unit, None, Held::Known(guest.made().lower().value(unit)))
                });
            }
            Shown::Host(offset) => {
                let mut next = units.start;
                while next < units.end {
                    let unit = next;
                    let host = offset + (unit - units.start) * UNIT as u64;
                    let at = host / UNIT as u64;
                    let run = plain.settled_run(guest, unit, at, units.end - unit);
                    next += run.max(1);
                    if run > 0 || mistake.passes_over_unit(host, offset, image.guest_data_end()) {
                        continue;
                    }
                    let mut fine = false;
                    if mistake == Mistake::OneOfTheSetIsEnough {
                        plain.peek(unit, at, |held| fine |= permits(unit, &held));
                    }
                    if !fine {
                        plain.peek(unit, at, |held| judge(unit, Some(host), held));
                    }
                }
            }
        }
    });
}

/// P2: a raw data file holds the disk by itself, and never something else than what is read through the image.
pub(super) fn raw_view_allowed<E: Evidence>(
    image: &Image,
    header: &Header,
    evidence: &E,
    guest: &Guest,
    mistake: Mistake,
    violations: &mut Vec<Violation>,
) {
    let Some(first) = raw_data(header, evidence) else { return };
    if mistake == Mistake::RawViewUnjudged {
        return;
    }
    let units = guest.units().min(header.size / UNIT as u64);
    each_guest_cluster(image, header, units, mistake, |units, shown| {
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
                Shown::Below => key == guest.made().lower().value(unit),
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
                    () if !is_read(key) && mistake != Mistake::ViewsMayDiffer => "views-differ",
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

/// P1 if the value was ever put into this unit, P2 if it was not.
fn p1_p2_content<E: Evidence>(
    unit: u64,
    host: Option<u64>,
    held: &Held,
    evidence: &E,
    guest: &Guest,
    mistake: Mistake,
) -> Option<Violation> {
    let value = |key| payload::decode(evidence.bytes(key));
    let found = held.value(evidence);
    let was_written = match held {
        Held::Known(key) => guest.was_written(unit, *key),
        Held::Nobodys(_) if mistake == Mistake::CiphertextUnjudged => return None,
        Held::Nobodys(_) => false,
    };
    if mistake == Mistake::ForeignDataAccepted && matches!(found, Value::Tag { .. }) {
        return None;
    }
    let (property, kind) = match found {
        _ if was_written => (Property::P1, "lost-write"),
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

/// P-cipher: a compressed cluster is what its stream gives, for whoever looks.
fn p_cipher_compressed(unit: u64, stream: Stream) -> Violation {
    Violation {
        property: Property::PCipher,
        kind: "compressed",
        place: Place::Guest { unit, host: Some(stream.offset) },
        found: None,
        allowed: Vec::new(),
        story: "the image is encrypted, and a stream is not enciphered".to_owned(),
    }
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
                    &Held::Known(key),
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
