//! Separating guest clusters that share a host cluster.

use std::collections::BTreeMap;

use model::audit::Auditor;
use model::finding::{Finding, Stage};
use model::image::COPIED;
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, UNIT, block_on};
use qcow2_core::{CreateOptions, Image, OpenOptions, Repair, Rules};

use super::crash::{be64, every_crash, guest_unit, seen, units_of};
use crate::evidence::DiskEvidence;
use crate::recover::Failure;
use crate::trial::disk_of;

/// Where the copies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Clusters that were in use and are free again.
    Used,
    /// What the file has durably grown by since it was opened.
    Fresh,
}

/// Every crash state of separating guest clusters that share a host cluster, as a repair left them: each reads as it did, and nothing is
/// wrong but that some still share. Three share one: with standard entries in two L2 tables; with extended ones each holds a subcluster.
pub fn separate(
    rules: Rules,
    lazy_refcounts: bool,
    extended_l2: bool,
    room: Room,
) -> (Option<Failure>, u64) {
    let (cluster_bits, entry_size) = if extended_l2 { (14, 16) } else { (9, 8) };
    let cluster = 1u64 << cluster_bits;
    let far = if extended_l2 { 6 } else { cluster / entry_size };
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(2 * far * cluster).cluster_bits(cluster_bits);
    let options = options.lazy_refcounts(lazy_refcounts).extended_l2(extended_l2);
    let file = || AnyStorage::new(storage.clone());
    block_on(qcow2_core::create(&file(), &options)).expect("there is room");
    let image = qcow2_core::blocking::Image::open(file(), OpenOptions::new().growth(0));
    let image = image.expect("it was just made");
    // What each guest unit holds.
    let per_cluster = cluster / UNIT as u64;
    let mut holds = BTreeMap::new();
    for guest in [0, 1, 2, 3, 4, 5, far] {
        let byte = 1 + u8::try_from(guest).expect("few clusters");
        image.write(guest * cluster, &[byte; UNIT]).expect("there is room");
        holds.insert(guest * per_cluster, byte);
    }
    if room == Room::Used {
        image.discard(3 * cluster, 3 * cluster).expect("nothing fails");
        holds.retain(|unit, _| !(3..6).contains(&(unit / per_cluster)));
    }
    image.close().expect("nothing fails");
    // What is written so that the file grows: first of all the two clusters are used up that damage set free.
    let grows = far + 1..far + 4;
    let mut damaged = storage.to_vec();
    let at = |offset: u64| usize::try_from(offset).expect("the image is small");
    let l1 = be64(&damaged[40..]);
    let entry = |guest: u64| {
        let per_table = cluster / entry_size;
        let table = be64(&damaged[at(l1 + 8 * (guest / per_table))..]) & !COPIED;
        at(table + entry_size * (guest % per_table))
    };
    let (first, others) = (entry(0), [entry(2), entry(far)]);
    for other in others {
        damaged.copy_within(first..first + at(entry_size), other);
    }
    holds.extend([(2 * per_cluster, 1), (far * per_cluster, 1)]);
    let storage = MemoryStorage::new(damaged);
    let repaired =
        block_on(qcow2_core::check(&AnyStorage::new(storage.clone()), Repair::All, Rules::all()));
    assert!(repaired.is_ok_and(|report| report.is_writable() && !report.is_consistent()));
    let disk = disk_of(&units_of(&storage.to_vec()));
    every_crash(
        &disk,
        false,
        async |storage, _| {
            let grows = grows.clone();

            let growth = if room == Room::Fresh { 16 * cluster } else { 0 };
            let open = OpenOptions::new().growth(growth).rules(rules);
            let image = Image::open(storage, open).await.ok()?;
            if room == Room::Fresh {
                for guest in grows {
                    let data = IoBuf::copy_of(&[9; UNIT], UNIT);
                    image.write(guest * cluster, data, Durability::Cached).await.1.ok()?;
                }
                image.flush().await.ok()?;
            }
            image.separate().await.ok()
        },
        |crashed, chooser, ended| {
            let mut auditor = Auditor::default();
            let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            let is_dirty = report.header.as_ref().is_some_and(model::image::Header::is_dirty);
            let stage = if is_dirty { Stage::CrashedDirty } else { Stage::CrashedClean };
            let shares = |finding: &Finding| {
                matches!(finding, Finding::Overlap { .. } | Finding::CopiedMissing { .. })
            };
            let wrong = report.violations(stage).find(|(_, it)| ended || !shares(it));
            if let Some((_, finding)) = wrong {
                return Err(seen("separated-half", finding.to_string()));
            }
            // That may be there or not.
            let judged = |unit: &u64| !grows.contains(&(unit / per_cluster));
            for unit in (0..2 * far * per_cluster).filter(judged) {
                let found = guest_unit(&auditor, crashed, chooser, unit);
                let byte = holds.get(&unit).copied().unwrap_or(0);
                if disk.values().bytes(found)[..] != [byte; UNIT] {
                    let story = format!("guest unit {unit} reads as something else");
                    return Err(seen("separated-and-lost", story));
                }
            }
            Ok(())
        },
    )
}
