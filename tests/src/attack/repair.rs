//! Repairing what is damaged, in place, without a mark, and where there is no room for more.

use std::collections::BTreeSet;

use faultfs::chooser::{Always, Chooser, Exhaustive};
use faultfs::direct::Direct;
use faultfs::disk::PossibleDisk;
use model::audit::Auditor;
use model::build::{Built, Initial, build};
use model::finding::{Finding, Stage};
use model::image::{COPIED, Mapping};
use model::op::Geometry;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Storage, UNIT};
use qcow2_core::{Barrier, Image, OpenOptions, Repair, Rules};

use super::crash::{be64, every_crash, guest_unit, is_same, seen, small};
use crate::evidence::DiskEvidence;
use crate::recover::Failure;
use crate::trial::disk_of;

/// Every crash state of rebuilding the refcounts of an image whose last writer wrote what it had discarded and did not flush it,
/// where the file cannot get longer: each cluster that is mapped still holds its data.
pub(super) fn rebuild_in_place(rules: Rules) -> (Option<Failure>, u64) {
    const CLUSTERS: u64 = 4;
    const DATA: u8 = 7;
    let direct = Direct::new(disk_of(&small(Initial::Fresh, 4096, false)), Exhaustive::new());
    let prepared = direct.clone();
    faultfs::direct::run(async move {
        let unflushed = Rules::all().without_flush(Barrier::GuestFlush);
        let options = OpenOptions::new().growth(0).page_size(512).pass_discard(false);
        let image = Image::open(AnyStorage::new(prepared.clone()), options).await.ok()?;
        let len = usize::try_from(CLUSTERS).ok()? * UNIT;
        let mut data = IoBuf::zeroed(len, UNIT);
        data.fill(DATA);
        image.write(0, data, Durability::Cached).await.1.ok()?;
        image.close().await.ok()?;
        let image = Image::open(AnyStorage::new(prepared), options.rules(unflushed)).await.ok()?;
        image.discard(0, CLUSTERS * UNIT as u64).await.ok()?;
        image.flush().await.ok()
    })
    .expect("there is room, and nothing fails");
    let disk = direct.power_off().disk;
    every_crash(
        &disk,
        true,
        async |image, _| qcow2_core::check(&image, Repair::Rebuild, rules).await.ok(),
        |crashed, chooser, _| {
            let mut auditor = Auditor::default();
            auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            for cluster in 0..CLUSTERS {
                if auditor.image().mapping(cluster) == Mapping::Unallocated {
                    continue;
                }
                let key = guest_unit(&auditor, crashed, chooser, cluster);
                if disk.values().bytes(key) != &[DATA; UNIT] {
                    let story = format!("guest cluster {cluster} holds a refcount structure");
                    return Err(seen("rebuilt-over-data", story));
                }
            }
            Ok(())
        },
    )
}

/// Every crash state of repairing a clean image whose refcounts are too low: still as it was, or marked dirty, or repaired.
pub(super) fn repair_damaged(rules: Rules) -> (Option<Failure>, u64) {
    let mut built = small(Initial::Dirty, 16 << 10, true);
    let (_, header) = built.units.first_mut().expect("an image has a header");
    header[79] &= !1; // The dirty bit: refcounts that are too low are a damage now.
    let l1 = u64::from_be_bytes(header[40..48].try_into().expect("eight bytes")) / 512;
    let table = built
        .units
        .iter_mut()
        .find(|(unit, _)| *unit == l1)
        .expect("there is data, so an L1 entry");
    table.1[0] &= 0x7f; // COPIED: repairing takes two writes, of a refcount block and of this.
    let disk = disk_of(&built);
    every_crash(
        &disk,
        false,
        async |image, _| qcow2_core::check(&image, Repair::All, rules).await.ok(),
        |crashed, chooser, _| {
            let mut auditor = Auditor::default();
            let dirty = {
                let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
                report.header.is_some_and(|header| header.is_dirty())
            };
            let healthy = auditor.report().violations(Stage::CrashedClean).next().is_none();
            if dirty || healthy || is_same(crashed, chooser, &disk, 0) {
                return Ok(());
            }
            Err(seen("repaired-half", "damaged, changed, and not marked dirty".to_owned()))
        },
    )
}

/// Every crash state of repairing damaged images of version 2, in place and by a rebuild: nothing is wrong that was not wrong before, and
/// whoever goes on writing to the image harms nobody but those whose clusters were shared before.
pub(super) fn repair_unmarked(rules: Rules) -> (Option<Failure>, u64) {
    let mut states = 0;
    for (damaged, repair) in [
        (Unmarked::shared(), Repair::All),
        (Unmarked::shared(), Repair::Rebuild),
        (Unmarked::past_the_end(), Repair::ZeroPastEnd),
        (Unmarked::unflushed(), Repair::Leaks),
        (Unmarked::unflushed(), Repair::All),
        (Unmarked::unflushed(), Repair::Rebuild),
    ] {
        let before = wrong(&mut damaged.disk.clone(), &mut Always(0));
        let (failure, more) = every_crash(
            &damaged.disk,
            false,
            async |image, _| qcow2_core::check(&image, repair, rules).await.ok(),
            |crashed, chooser, _| {
                let now = wrong(crashed, chooser);
                if let Some(news) = now.difference(&before).next() {
                    return Err(seen("repair-made-worse", format!("{repair:?}: {news}")));
                }
                damaged.go_on(crashed)
            },
        );
        states += more;
        if failure.is_some() {
            return (failure, states);
        }
    }
    (None, states)
}

/// What an audit calls wrong in an image that is not marked dirty; counts that are still too low are as wrong as before.
fn wrong(disk: &mut PossibleDisk, chooser: &mut impl Chooser) -> BTreeSet<String> {
    let mut auditor = Auditor::default();
    let report = auditor.audit(&mut DiskEvidence::new(disk, chooser));
    let wrong = report.violations(Stage::CrashedClean);
    wrong
        .map(|(_, finding)| match finding {
            Finding::RefcountTooLow { cluster, .. } => format!("the count of {cluster} is too low"),
            other => other.to_string(),
        })
        .collect()
}

/// An image of version 2 with clusters of 512 bytes that needs a repair, and guest clusters to go on with.
struct Unmarked {
    disk: PossibleDisk,
    /// Guest clusters that share a host cluster, if any do.
    sharing: Option<[u64; 2]>,
    /// Guest clusters that have none.
    free: [u64; 2],
}

impl Unmarked {
    const SIZE: u64 = 16 << 10;

    /// The host offset of the first L2 table's unit, and the entries of the guest clusters that have data.
    fn entries(built: &Built) -> (usize, Vec<usize>) {
        let find = |offset: u64| {
            let number = offset / UNIT as u64;
            built.units.iter().position(|(unit, _)| *unit == number).expect("it is in use")
        };
        let l1 = be64(&built.units[find(0)].1[40..]);
        let table = find(be64(&built.units[find(l1)].1[..]) & !COPIED);
        let entries = built.units[table].1.as_chunks::<8>().0;
        let used = (0..).zip(entries).filter(|(_, entry)| **entry != [0; 8]);
        (table, used.map(|(index, _)| index).collect())
    }

    fn of(built: &Built, sharing: Option<[u64; 2]>) -> Self {
        let (_, used) = Self::entries(built);
        let mut free = (0..Self::SIZE / 512).filter(|guest| !used.contains(&(*guest as usize)));
        let mut next = || free.next().expect("much of the disk is unmapped");
        Self { disk: disk_of(built), sharing, free: [next(), next()] }
    }

    fn built() -> Built {
        let geometry = Geometry { version: 2, ..Geometry::plain(9, Self::SIZE) };
        build(&geometry, Initial::Leaky).expect("the geometry is a small one")
    }

    /// Two guest clusters with one host cluster, which is counted once. (What the second had is leaked, as are others.)
    fn shared() -> Self {
        let mut built = Self::built();
        let (table, used) = Self::entries(&built);
        let unit = &mut built.units[table].1;
        let [one, other] = [used[1], used[3]];
        unit.copy_within(one * 8..one * 8 + 8, other * 8);
        assert!(unit[one * 8] & 0x80 != 0, "it says COPIED");
        Self::of(&built, Some([one as u64, other as u64]))
    }

    /// The file ends before a cluster that an entry refers to and that is counted.
    fn past_the_end() -> Self {
        let mut built = Self::built();
        let (table, used) = Self::entries(&built);
        let last = *used.last().expect("some clusters are mapped");
        let unit = &mut built.units[table].1;
        let host = built.length - 512;
        unit[last * 8..last * 8 + 8].copy_from_slice(&(host | COPIED).to_be_bytes());
        built.length = host;
        built.units.retain(|(unit, _)| unit * 512 < host);
        Self::of(&built, None)
    }

    /// The last writer discarded a guest cluster and did not flush it.
    fn unflushed() -> Self {
        let built = Self::built();
        let (table, used) = Self::entries(&built);
        let (unit, mut bytes) = built.units[table];
        bytes[used[1] * 8..used[1] * 8 + 8].fill(0);
        let direct = Direct::new(disk_of(&built), Always(0));
        let writer = direct.clone();
        faultfs::direct::run(async move {
            let buf = IoBuf::copy_of(&bytes, UNIT);
            writer.write(unit * UNIT as u64, buf, Durability::Cached).await.1.ok()
        })
        .expect("nothing fails");
        Self { disk: direct.power_off().disk, ..Self::of(&built, None) }
    }

    /// Writes to those who share and, in between, to two that have nothing: what the first of these holds is its own.
    fn go_on(&self, crashed: &PossibleDisk) -> Result<(), Failure> {
        const OWN: u8 = 3;
        let Some([one, other]) = self.sharing else { return Ok(()) };
        let [bystander, last] = self.free;
        let direct = Direct::new(crashed.clone(), Always(0));
        let read = faultfs::direct::run(async move {
            let options = OpenOptions::new().growth(0).page_size(512).pass_discard(false);
            let image = Image::open(AnyStorage::new(direct), options).await.ok()?;
            for (guest, byte) in [(one, 1), (bystander, OWN), (other, 2), (last, 4)] {
                let mut data = IoBuf::zeroed(UNIT, UNIT);
                data.fill(byte);
                let _: Option<()> = image.write(guest * 512, data, Durability::Cached).await.1.ok();
                image.flush().await.ok()?;
            }
            let (data, read) = image.read(bystander * 512, IoBuf::zeroed(UNIT, UNIT)).await;
            read.ok().map(|()| data)
        });
        match read.flatten() {
            Some(read) if *read == [OWN; UNIT] => Ok(()),
            Some(_) => {
                let story = "a guest cluster that had shared nothing lost its data afterwards";
                Err(seen("half-repaired-harms-others", story.to_owned()))
            }
            None => Err(seen("half-repaired-harms-others", "it cannot be used".to_owned())),
        }
    }
}
