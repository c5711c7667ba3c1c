//! Naming another layer, or none.

use model::audit::Auditor;
use model::finding::Stage;
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{AnyStorage, UNIT, block_on};
use qcow2_core::{Backing, CreateOptions, Format, Image, OpenOptions, Rules};

use super::crash::{every_crash, guest_unit, seen, units_of};
use crate::evidence::DiskEvidence;
use crate::layer::Base;
use crate::recover::Failure;
use crate::trial::disk_of;

/// Every crash state of an image that comes to name another layer, or none: it names the one or the other, whole, and the new one once that
/// was acknowledged. Names are short and long, in the first 512 bytes and past them, beside one another and in place of one another.
pub(super) fn rename(rules: Rules) -> (Option<Failure>, u64) {
    let long = |len: usize| -> Vec<u8> { (0..len).map(|at| b'a' + (at / 100) as u8).collect() };
    let raw = |name: Vec<u8>| Backing::new(name, Format::Raw);
    let qcow2 = |name: Vec<u8>| Backing::new(name, Format::Qcow2);
    let said_nothing = |name: Vec<u8>| Backing { name, format: None };
    let cases = [
        (9, vec![raw(b"below".to_vec()), qcow2(b"another".to_vec())]),
        (10, vec![raw(b"below".to_vec()), qcow2(long(400)), raw(b"below".to_vec())]),
        (12, vec![raw(long(900)), said_nothing(long(1023)), qcow2(long(700))]),
    ];
    let (failure, mut states) = do_without(rules);
    if failure.is_some() {
        return (failure, states);
    }
    for (cluster_bits, names) in cases {
        for version in [2, 3] {
            let storage = MemoryStorage::default();
            let options = CreateOptions::new(8 << 10).cluster_bits(cluster_bits).version(version);
            let file = || AnyStorage::new(storage.clone());
            block_on(qcow2_core::create_over(&file(), &options, &names[0])).expect("there is room");
            let next = names.iter().skip(1).map(Some).chain([None]);
            for (present, next) in names.iter().zip(next) {
                let (failure, more) = rename_once(&storage.to_vec(), present, next, rules);
                states += more;
                if failure.is_some() {
                    return (failure, states);
                }
                block_on(async {
                    let image = open_over_base(file(), Rules::all()).await?;
                    image.set_backing(next).await.ok()?;
                    image.close().await.ok()
                })
                .expect("nothing fails");
            }
        }
    }
    (None, states)
}

/// Every crash state of an image whose layer is copied and then named no more: where none is named, the image holds all of it.
fn do_without(rules: Rules) -> (Option<Failure>, u64) {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(2 << 10).cluster_bits(9);
    let present = Backing::new("below", Format::Raw);
    let file = AnyStorage::new(storage.clone());
    block_on(qcow2_core::create_over(&file, &options, &present)).expect("there is room");
    let disk = disk_of(&units_of(&storage.to_vec()));
    let mut below = vec![0; 2 << 10];
    Base::new(8 << 10).fill(0, &mut below);
    every_crash(
        &disk,
        false,
        async |storage, _| {
            let image = open_over_base(storage, rules).await?;
            image.copy_up(0, 2 << 10).await.ok()?;
            image.set_backing(None).await.ok()
        },
        |crashed, chooser, ended| {
            let mut auditor = Auditor::default();
            auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            if auditor.image().layer().is_some() {
                let story = || "naming no layer had returned".to_owned();
                return if ended { Err(seen("renamed-and-lost", story())) } else { Ok(()) };
            }
            for (cluster, wanted) in (0..).zip(below.as_chunks::<UNIT>().0) {
                let found = guest_unit(&auditor, crashed, chooser, cluster);
                if disk.values().bytes(found)[..] != wanted[..] {
                    let story = format!("guest cluster {cluster} is neither here nor below");
                    return Err(seen("layer-lost", story));
                }
            }
            Ok(())
        },
    )
}

async fn open_over_base(storage: AnyStorage, rules: Rules) -> Option<Image<AnyStorage>> {
    let options = OpenOptions::new().growth(0).rules(rules);
    Image::open_over(storage, Base::new(8 << 10).shared(), options).await.ok()
}

fn rename_once(
    image: &[u8],
    present: &Backing,
    next: Option<&Backing>,
    rules: Rules,
) -> (Option<Failure>, u64) {
    every_crash(
        &disk_of(&units_of(image)),
        false,
        async |storage, _| {
            let image = open_over_base(storage, rules).await?;
            image.set_backing(next).await.ok()
        },
        |crashed, chooser, ended| {
            let mut auditor = Auditor::default();
            let report = auditor.audit(&mut DiskEvidence::new(crashed, chooser));
            if report.header.is_none() {
                return Err(seen("renamed-half", "its header cannot be read".to_owned()));
            }
            if let Some((_, finding)) = report.violations(Stage::CrashedClean).next() {
                return Err(seen("renamed-half", finding.to_string()));
            }
            let found = auditor.image().layer();
            let found =
                found.map(|it| Backing { name: it.name.clone(), format: it.format.clone() });
            if found.as_ref() == next || (!ended && found.as_ref() == Some(present)) {
                return Ok(());
            }
            let kind = if ended { "renamed-and-lost" } else { "renamed-half" };
            Err(seen(kind, format!("it names {found:?}, neither {present:?} nor {next:?}")))
        },
    )
}
