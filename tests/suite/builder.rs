//! The judge's image builder beside `qemu-img`, in every geometry that it is used in and more.

use std::ffi::OsStr;

use model::audit::Auditor;
use model::build::{Initial, build};
use model::op::Geometry;
use model::payload::{self, Value, ZEROES};
use qcow2_crashtest::qemu;

use crate::common::memory_directory;

/// Goal: initial images are what they say, to somebody else too. Method: every kind in many geometries; `qemu-img check` finds
/// leaks and corruptions where there are some and nowhere else, and counts as the judge's auditor does. Where clusters have
/// subclusters, `qemu-img compare` reads what the guest should.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(all(has_qemu, not(turn = "3")), ignore = "its turn is at another commit; CI=1 runs all")]
fn qemu_img_agrees_on_every_image() {
    let folder = memory_directory();
    let [file, raw] = ["image.qcow2", "image.raw"].map(|name| folder.path().join(name));
    let sizes = [512, 64 << 10, (256 << 10) + 512, 3 << 20];
    let geometries = (9..=16).flat_map(|cluster_bits| {
        let shapes = (0..=6).map(|order| (3, order)).chain([(2, 4)]);
        shapes.flat_map(move |(version, refcount_order)| {
            sizes.map(|virtual_size| Geometry {
                version,
                refcount_order,
                ..Geometry::plain(cluster_bits, virtual_size)
            })
        })
    });
    let extended = (14..=16).flat_map(|cluster_bits| {
        [512, 64 << 10, (512 << 10) + 512, 20 << 20].map(|virtual_size| Geometry {
            extended_l2: true,
            ..Geometry::plain(cluster_bits, virtual_size)
        })
    });
    let mut auditor = Auditor::default();
    let mut compared = 0;
    for geometry in geometries.chain(extended) {
        for initial in Initial::ALL {
            let Ok(built) = build(&geometry, initial) else { continue };
            std::fs::write(&file, built.to_bytes()).unwrap();
            let check = ["check", "--output=json", "-f", "qcow2"].map(OsStr::new);
            let run = qemu::img(check.into_iter().chain([file.as_os_str()])).unwrap();
            let what = format!("{initial:?} {geometry:?}");
            let theirs: serde_json::Value = serde_json::from_str(&run.stdout)
                .unwrap_or_else(|error| panic!("{what}: {error}: {run}"));
            let totals = auditor.audit(&mut built.evidence()).totals;
            let ours = serde_json::to_value(totals).unwrap();
            let expected = match initial {
                // Without leaks (no cluster chosen is leaked) there is nothing to report.
                Initial::Leaky | Initial::FullOfLeaks => 3,
                Initial::Dirty => 2,
                _ => 0,
            };
            assert_eq!(run.code, Some(expected), "{what}: {theirs}");
            let mut keys = vec!["image-end-offset", "total-clusters", "check-errors", "leaks"];
            keys.extend(["allocated-clusters", "fragmented-clusters", "compressed-clusters"]);
            if initial != Initial::Dirty {
                keys.push("corruptions");
            }
            for key in keys {
                assert_eq!(ours.get(key), theirs.get(key), "{what}: {key}: {ours} {theirs}");
            }
            if geometry.extended_l2 {
                let units = built.guest.iter().map(|value| match *value {
                    Value::Tag { unit, id } => payload::unit(unit, id),
                    _ => ZEROES,
                });
                std::fs::write(&raw, units.collect::<Vec<_>>().as_flattened()).unwrap();
                qemu::compare(&file, &raw).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            compared += 1;
        }
    }
    println!("{compared} images compared");
    assert!(compared > 500);
}
