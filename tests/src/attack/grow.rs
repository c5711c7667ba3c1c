//! Growing a disk past whose end something was left.

use faultfs::values::Key;
use model::audit::Auditor;
use model::build::{Initial, build};
use model::op::Geometry;
use qcow2_core::storage::UNIT;
use qcow2_core::{Image, OpenOptions, Rules};

use super::crash::{every_crash, guest_unit, seen};
use crate::evidence::DiskEvidence;
use crate::recover::Failure;
use crate::trial::disk_of;

/// Every crash state of growing a disk whose last cluster has something behind the end of the disk, as has its L2 table: the new
/// space is as large as the header says, and all of it reads zeroes.
pub(super) fn grow_over_leftovers(rules: Rules) -> (Option<Failure>, u64) {
    const OLD: u64 = 6 << 10;
    const NEW: u64 = 12 << 10;
    let geometry = Geometry::plain(10, NEW);
    let mut built = build(&geometry, Initial::Fragmented).expect("the geometry is a small one");
    let (_, header) = built.units.first_mut().expect("an image has a header");
    // In the middle of a cluster.
    header[24..32].copy_from_slice(&(OLD - 512).to_be_bytes());
    let disk = disk_of(&built);
    every_crash(
        &disk,
        false,
        async |storage, _| {
            let options = OpenOptions::new().rules(rules).page_size(512);
            let image = Image::open(storage, options).await.ok()?;
            image.grow(NEW).await.ok()
        },
        |crashed, chooser, _| {
            let mut auditor = Auditor::default();
            let size = {
                let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
                report.header.expect("it stays an image").size
            };
            for at in (OLD - 512..size).step_by(UNIT) {
                if guest_unit(&auditor, crashed, chooser, at / UNIT as u64) != Key::ZERO {
                    let story = format!("guest offset {at:#x} of the new space is not zero");
                    return Err(seen("old-content-in-new-space", story));
                }
            }
            Ok(())
        },
    )
}
