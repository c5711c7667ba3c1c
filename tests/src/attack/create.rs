//! Creating an image where something was.

use faultfs::DEFAULT_LIMITS;
use faultfs::disk::PossibleDisk;
use faultfs::values::Key;
use model::audit::Auditor;
use model::build::{Built, Initial};
use model::finding::Stage;
use model::image::Mapping;
use model::payload;
use qcow2_core::storage::{Limits, UNIT};
use qcow2_core::{CreateOptions, DataFile, Preallocation, Rules};

use super::crash::{every_crash, guest_unit, seen, small};
use crate::evidence::DiskEvidence;
use crate::recover::Failure;
use crate::trial::{disk_of, first_of_data};

/// Every crash state of creating an image where something was: that, no image at all, or a valid and empty new one; once creating it
/// has returned, the last of these. The new one is shorter than what was there, longer, or of version 2, and its clusters may be taken ahead;
/// and what was there is nothing, no image, or one of several; on a file, and on a device that keeps what others left.
pub(super) fn create(rules: Rules) -> (Option<Failure>, u64) {
    let mut states = 0;
    for before in predecessors() {
        for said in [DataFile::new(payload::DATA_NAME), DataFile::raw(payload::DATA_NAME)] {
            let (failure, more) = create_with_data(&before, &said, rules);
            states += more;
            if failure.is_some() {
                return (failure, states);
            }
        }
        for stale in [false, true] {
            let kinds = [
                (3, 4 << 10, Preallocation::Off),
                (3, 64 << 20, Preallocation::Off),
                (2, 4 << 10, Preallocation::Off),
                (3, 4 << 10, Preallocation::Metadata),
                (2, 4 << 10, Preallocation::Full),
            ];
            for (version, size, ahead) in kinds {
                let limits = Limits { unwritten_reads_zero: !stale, ..DEFAULT_LIMITS };
                let disk = disk_of(&before).with_limits(limits);
                let options = CreateOptions::new(size).version(version).preallocation(ahead);
                let (failure, more) = create_over(&disk, options.cluster_bits(9).rules(rules));
                states += more;
                if failure.is_some() {
                    return (failure, states);
                }
            }
        }
    }
    (None, states)
}

/// What may be where an image is created.
fn predecessors() -> Vec<Built> {
    let nothing = Built { length: 0, units: Vec::new(), guest: Vec::new(), data: None };
    let units = (0..40).map(|unit| (unit, payload::unit(unit, payload::STALE))).collect();
    let no_image = Built { length: 40 * UNIT as u64, units, guest: Vec::new(), data: None };
    let images = [
        (Initial::Fragmented, false),
        (Initial::Dirty, true),
        (Initial::Leftovers, false),
        (Initial::Bitmaps, true),
    ];
    let images = images.map(|(initial, lazy)| small(initial, 8 << 10, lazy));
    [nothing, no_image].into_iter().chain(images).collect()
}

/// The same with a data file that holds what somebody else left, and is shorter than the new disk or longer. Once there is an image, that is as
/// long as the disk, and one that is a disk by itself is empty.
fn create_with_data(before: &Built, said: &DataFile, rules: Rules) -> (Option<Failure>, u64) {
    let size = 4 << 10;
    let options = CreateOptions::new(size).cluster_bits(9).rules(rules);
    let mut states = 0;
    for units in [3, 12] {
        let stale: Vec<_> = (0..units).map(|unit| payload::unit(unit, payload::STALE)).collect();
        let extents = (0..).step_by(UNIT).zip(stale.iter().map(|unit| &unit[..]));
        let second = first_of_data(before.length);
        let disk = disk_of(before).with_second_extents(second, units * UNIT as u64, extents);
        let (failure, more) = every_crash(
            &disk,
            false,
            async |image, data| {
                let data = data.expect("there are two files");
                qcow2_core::create_with_data(&image, &data, &options, said, None).await.ok()
            },
            |crashed, chooser, _| {
                let mut auditor = Auditor::default();
                let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
                let Some(header) = report.header.filter(|header| header.has_data_file()) else {
                    return Ok(());
                };
                let stage =
                    if header.is_dirty() { Stage::CrashedDirty } else { Stage::CrashedClean };
                if let Some((_, finding)) = report.violations(stage).next() {
                    return Err(seen("created-half", finding.to_string()));
                }
                let is_full = |unit| crashed.read(second + unit, chooser) != Key::ZERO;
                if said.raw && (0..(size / UNIT as u64) as u32).any(is_full) {
                    return Err(seen("created-full", "its data file is not empty".to_owned()));
                }
                Ok(())
            },
        );
        states += more;
        if failure.is_some() {
            return (failure, states);
        }
    }
    (None, states)
}

fn create_over(disk: &PossibleDisk, options: CreateOptions) -> (Option<Failure>, u64) {
    let size = options.virtual_size;
    every_crash(
        disk,
        false,
        async |image, _| qcow2_core::create(&image, &options).await.ok(),
        |crashed, chooser, ended| {
            let lost = || Err(seen("created-and-lost", "creating it had returned".to_owned()));
            let mut auditor = Auditor::default();
            let is_image = disk.values().bytes(crashed.read(0, chooser)).starts_with(b"QFI\xfb");
            if !is_image {
                return if ended { lost() } else { Ok(()) };
            }
            let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            let Some(header) = report.header else {
                return Err(seen("created-half", "its header cannot be read".to_owned()));
            };
            if ended && header.size != size {
                return lost();
            }
            let stage = if header.is_dirty() { Stage::CrashedDirty } else { Stage::CrashedClean };
            if let Some((_, finding)) = report.violations(stage).next() {
                return Err(seen("created-half", finding.to_string()));
            }
            let clusters = header.size.div_ceil(header.cluster_size());
            let mut holds = |cluster| match auditor.image().mapping(cluster) {
                Mapping::Unallocated => false,
                // What was taken ahead; its clusters are units.
                Mapping::Host(_) if options.preallocation != Preallocation::Off => {
                    guest_unit(&auditor, crashed, chooser, cluster) != Key::ZERO
                }
                _ => true,
            };
            if header.size == size && (0..clusters).any(&mut holds) {
                return Err(seen("created-full", "it holds what was there before".to_owned()));
            }
            Ok(())
        },
    )
}
