//! Writing where a damaged image leads guest data to a table.

use model::build::{Built, Initial};
use model::image::COPIED;
use qcow2_core::storage::{Durability, IoBuf, UNIT};
use qcow2_core::{Image, OpenOptions, Rules};

use super::crash::{be64, every_crash, is_same, seen, small};
use crate::recover::Failure;
use crate::trial::disk_of;

/// Every crash state of a write to a guest cluster that is mapped to the L1 table: once it has failed, the image is marked corrupt,
/// and the table is as it was.
pub(super) fn write_over_table(rules: Rules) -> (Option<Failure>, u64) {
    const INCOMPATIBLE: usize = 79;
    let mut built = small(Initial::Fragmented, 16 << 10, false);
    let unit = |built: &Built, number: u64| {
        built.units.iter().position(|(unit, _)| *unit == number).expect("it holds something")
    };
    let l1 = be64(&built.units[unit(&built, 0)].1[40..]);
    let first = unit(&built, l1 / 512);
    let l2 = be64(&built.units[first].1[..]) & !COPIED;
    let table = unit(&built, l2 / 512);
    built.units[table].1[..8].copy_from_slice(&(l1 | COPIED).to_be_bytes());
    let disk = disk_of(&built);
    every_crash(
        &disk,
        false,
        async |storage, _| {
            let options = OpenOptions::new().rules(rules).page_size(512);
            let image = Image::open(storage, options).await.ok()?;
            let mut data = IoBuf::zeroed(UNIT, UNIT);
            data.fill(7);
            image.write(0, data, Durability::Cached).await.1.err()
        },
        |crashed, chooser, ended| {
            if !is_same(crashed, chooser, &disk, 1) {
                return Err(seen("wrote-over-a-table", "a guest write landed".to_owned()));
            }
            let header = crashed.read(0, chooser);
            if ended && disk.values().bytes(header)[INCOMPATIBLE] & 2 == 0 {
                let story = "the write had failed, and nobody knows of it after the power cut";
                return Err(seen("corruption-forgotten", story.to_owned()));
            }
            Ok(())
        },
    )
}
