//! The course of a recovery: what it did, where that follows from the metadata alone.
//!
//! Recovery reads metadata and hardly ever guest data, and most disks that it runs on differ in guest data only. Then it does to
//! one what it did to the other, and the I/O is all that has to be done again.
//!
//! ```text
//!   disk ──metadata, length──> key ──> course: the I/O of opening, the I/O of the repair after it
//!     └───────────────────────────────────────────────┴──> forks, and the disk that recovery leaves
//! ```
//!
//! **Invariant.** A course is kept only if all that was read lay in metadata when recovery began (so in the key), past the end of
//! the file or where recovery had written before (and flushed, for an audit); if nothing was written to where guest data or bitmaps are; and if every image on
//! the way maps the guest as the first one did. So on another disk with the same key recovery, and whoever audits what it leaves,
//! sees the same; and what the guest may see, judged before it, stays as it was.

use std::collections::BTreeSet;
use std::ops::Range;

use faultfs::direct::Done;
use faultfs::disk::PossibleDisk;
use faultfs::trace::IoKind;
use model::image::{Image, Mapping};
use model::label::Region;
use model::payload::UNIT;

use crate::recover::Watched;

/// What recovery does to every disk of one key.
#[derive(Debug)]
pub struct Course {
    /// What opening does.
    pub opening: Vec<Done>,
    /// What the repair after it does.
    pub repair: Vec<Done>,
    /// Whether opening leaves leaks behind.
    pub leaks: bool,
}

impl Course {
    /// What a course hangs on: the metadata of the image that was audited on `disk`, and the length. None if that is not decided.
    pub fn key(disk: &PossibleDisk, image: &Image) -> Option<u64> {
        let mut is_metadata = metadata_of(image);
        disk.decided_hash(disk.nonzero().filter(move |&unit| is_metadata(unit.into())))
    }

    /// The course of a recovery that began on `image`; none if anything but metadata may bear on it.
    pub fn of(image: &Image, watched: &Watched, leaks: bool) -> Option<Self> {
        let (mut written, mut durable) = (BTreeSet::new(), BTreeSet::new());
        let mut was_metadata = metadata_of(image);
        for done in watched.records.iter().flatten() {
            // Nothing of a data file is metadata.
            if !done.file.is_first() {
                match done.kind {
                    IoKind::Flush => continue,
                    _ => return None,
                }
            }
            let mut units = units(&done.range);
            let follows = match done.kind {
                IoKind::Flush => {
                    durable.extend(written.iter().copied());
                    true
                }
                IoKind::Read => {
                    units.all(|unit| was_metadata(unit) || is_known(image, &written, unit))
                }
                // Guest data would be cut off.
                IoKind::SetLen => hosts(image).all(|host| host < done.range.end),
                // What was there may stay.
                IoKind::Discard => units.all(|unit| may_change(image, unit)),
                IoKind::Write | IoKind::WriteThrough | IoKind::WriteZeroes => {
                    written.extend(units.clone());
                    units.all(|unit| may_change(image, unit))
                }
            };
            if !follows {
                return None;
            }
        }
        let follows = watched.images.iter().all(|after| {
            let ends = after.file_units();
            let (mut is_metadata, mut was_metadata) = (metadata_of(after), metadata_of(image));
            clusters(image) == clusters(after)
                && pieces(image).eq(pieces(after))
                && (0..ends).all(|unit| {
                    !is_metadata(unit) || was_metadata(unit) || is_known(image, &durable, unit)
                })
        });
        let updates = |record: &[Done]| {
            record.iter().filter(|done| done.kind != IoKind::Read).cloned().collect()
        };
        let [opening, repair, _] = &watched.records;
        follows.then(|| Self { opening: updates(opening), repair: updates(repair), leaks })
    }
}

fn region(image: &Image, unit: u64) -> Region {
    image.label(unit * UNIT as u64).region
}

/// Whether a unit is part of what recovery and audit may read.
fn is_metadata(image: &Image, unit: u64) -> bool {
    may_be_read(region(image, unit))
}

/// The same of many units: one look for all of a structure that are asked about in a row.
fn metadata_of(image: &Image) -> impl FnMut(u64) -> bool {
    let (mut known, mut answer) = (0..0, false);
    move |unit| {
        if !known.contains(&unit) {
            let region;
            (region, known) = image.region(unit);
            answer = may_be_read(region);
        }
        answer
    }
}

const fn may_be_read(region: Region) -> bool {
    match region {
        Region::Data(_) | Region::Compressed(_) | Region::Free(_) | Region::BeyondEnd => false,
        Region::Header
        | Region::RefcountTable
        | Region::RefcountBlock(_)
        | Region::L1
        | Region::L2(_)
        | Region::BitmapDirectory
        | Region::BitmapTable(_)
        | Region::Bitmap(_)
        | Region::EncryptionHeader => true,
    }
}

/// Whether the key of a course, or the course so far, says what a unit holds.
fn is_known(image: &Image, written: &BTreeSet<u64>, unit: u64) -> bool {
    is_metadata(image, unit) || region(image, unit) == Region::BeyondEnd || written.contains(&unit)
}

/// Whether a unit is nothing that the guest sees or that is judged by what the guest did.
fn may_change(image: &Image, unit: u64) -> bool {
    let region = region(image, unit);
    !matches!(region, Region::Data(_) | Region::Compressed(_)) && !region.is_vouched_for()
}

fn units(range: &Range<u64>) -> Range<u64> {
    range.start / UNIT as u64..range.end.div_ceil(UNIT as u64)
}

/// How many clusters the guest has.
fn clusters(image: &Image) -> u64 {
    image.header().map_or(0, |header| header.size.div_ceil(header.cluster_size()))
}

/// Where each piece of the guest's clusters is that is somewhere.
fn pieces(image: &Image) -> impl Iterator<Item = (Range<u64>, Mapping)> {
    let cluster = image.header().map_or(0, |header| header.cluster_size() / UNIT as u64);
    let units = clusters(image).saturating_mul(cluster);
    let pieces = image.pieces().take_while(move |(piece, _)| piece.start < units);
    pieces.filter(|(_, mapping)| *mapping != Mapping::Unallocated)
}

/// The last bytes of all pieces of the guest's that are in the file.
fn hosts(image: &Image) -> impl Iterator<Item = u64> {
    pieces(image).filter_map(|(piece, mapping)| match mapping {
        Mapping::Host(offset) => {
            Some(offset.saturating_add((piece.end - piece.start) * UNIT as u64 - 1))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use faultfs::chooser::Always;
    use faultfs::profile::Profile;
    use model::build::Initial;
    use model::payload::UNIT;
    use qcow2_core::storage::Durability;

    use super::{Course, is_metadata};
    use crate::explore::alphabet::worlds;
    use crate::recover::Bench;
    use crate::subject::Qcow2Core;

    /// Goal: a course hangs on every unit of metadata and on the length, and on nothing else. Method: each unit of an image changed
    /// by itself, and the length.
    #[test]
    fn the_key_of_a_course_is_of_the_metadata_and_the_length() {
        let subject = Qcow2Core::default();
        let initials = [Initial::Fresh, Initial::Leaky, Initial::Bitmaps, Initial::Fragmented];
        for world in worlds(&[512, 4096], &[false], &initials) {
            let (mut disk, guest) = world.start(&subject).expect("the geometry allows it");
            let mut bench = Bench::new(subject, world.session, Profile::TornLength);
            bench.state(&mut disk, &guest, &mut Always(0), None, "at first").expect("it is sound");
            let image = bench.judge.auditor().image();
            let original = Course::key(&disk, image);
            assert!(original.is_some());
            let mut of_metadata = 0;
            for unit in 0..image.file_units() {
                let mut other = disk.clone();
                let key = other.values().intern(&[0x5a; UNIT]);
                let unit32 = u32::try_from(unit).expect("the image is small");
                let write = other.submit_write(unit32, &[key], Durability::Through, &mut Always(0));
                other.complete(write);
                let differs = Course::key(&other, image) != original;
                assert_eq!(differs, is_metadata(image, unit), "unit {unit} of {world}");
                of_metadata += u64::from(differs);
            }
            assert!((1..=image.file_units()).contains(&of_metadata), "{of_metadata} of {world}");
            let mut longer = disk.clone();
            let length = u32::try_from(image.file_units()).expect("the image is small") + 8;
            let grown = longer.submit_set_len(length, &mut Always(0));
            longer.complete(grown);
            let flush = longer.submit_flush();
            assert!(longer.complete_flush(flush));
            assert!(Course::key(&longer, image).is_some_and(|key| Some(key) != original));
        }
    }
}
