//! What the disk costs: a fork, a crash, an operation, a whole crash state.
//!
//! `cargo bench -p faultfs`. One line per figure, nanoseconds per repetition, the best of five rounds.

use std::hint::black_box;
use std::time::Instant;

use faultfs::chooser::{Always, Random};
use faultfs::direct::{Direct, run};
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use faultfs::values::{Key, Values};
use storage::{Durability, IoBuf, Storage, UNIT};

fn measure(name: &str, repetitions: u32, mut body: impl FnMut()) {
    let mut best = u128::MAX;
    for _ in 0..5 {
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
        let start = Instant::now();
        for _ in 0..repetitions {
            body();
        }
        best = best.min(start.elapsed().as_nanos());
    }
    println!("{name:<58} {:>9.0} ns", best as f64 / f64::from(repetitions));
}

/// A disk of `units` units, all different, with a pending write on every one of the first `pending`.
fn image(units: u32, pending: u32) -> PossibleDisk {
    let values = Values::new();
    let bytes: Vec<u8> = (0..units).flat_map(|unit| [(unit % 251 + 1) as u8; UNIT]).collect();
    let mut disk =
        PossibleDisk::from_extents(&values, u64::from(units) * UNIT as u64, [(0, &bytes[..])]);
    for unit in 0..pending {
        let key = [Key(unit + 1)];
        let write = disk.submit_write(unit * 3, &key, Durability::Cached, &mut Always(0));
        disk.complete(write);
    }
    disk
}

fn main() {
    let live = image(1024, 20);
    let crashed = live.crash(Profile::TornLength, &mut Always(0));
    assert_eq!(crashed.undecided().len(), 19);

    measure("clone, 1024 units, 19 undecided", 100_000, || drop(black_box(crashed.clone())));
    let mut fork = crashed.clone();
    measure("clone_from, 1024 units, 19 undecided", 100_000, || {
        black_box(&mut fork).clone_from(&crashed);
    });
    for profile in Profile::ALL {
        measure(&format!("clone_from and crash, 20 pending, {profile}"), 100_000, || {
            fork.clone_from(&live);
            fork.crash_in_place(profile, &mut Always(0));
        });
    }
    measure("allowed_hash, 19 undecided", 100_000, || {
        black_box(crashed.allowed_hash());
    });
    measure("state_hash, 20 pending", 100_000, || {
        black_box(live.state_hash());
    });

    for len in [UNIT, 8 * UNIT] {
        let storage = Direct::new(image(1024, 0), Always(0));
        let mut buf = Some(IoBuf::copy_of(&vec![7; len], UNIT));
        let mut at = 0u64;
        measure(&format!("write and read back {len} bytes, a flush every 16"), 160_000, || {
            at += 1;
            let offset = at % 100 * len as u64;
            buf = run(async {
                let (buf, written) =
                    storage.write(offset, buf.take().unwrap_or_default(), Durability::Cached).await;
                let (buf, found) = storage.read(offset, buf).await;
                if at.is_multiple_of(16) {
                    storage.flush().await.expect("nothing fails");
                }
                written.and(found).expect("nothing fails");
                buf
            });
        });
    }

    let mut seed = 0;
    let mut spare = Some((live.clone(), IoBuf::zeroed(UNIT, UNIT)));
    measure("a crash state: fork, crash, 100 operations, peek at all", 20_000, || {
        seed += 1;
        let (mut disk, buf) = spare.take().expect("put back below");
        disk.clone_from(&live);
        let mut chooser = Random::new(seed);
        disk.crash_in_place(Profile::TornLength, &mut chooser);
        let storage = Direct::new(disk, chooser);
        let buf = run(async {
            let mut buf = buf;
            for round in 0..20 {
                for unit in 0..4 {
                    buf = storage.read((round * 4 + unit) * UNIT as u64, buf).await.0;
                }
                let offset = round * 7 * UNIT as u64;
                buf = storage.write(offset, buf, Durability::Cached).await.0;
                if round % 5 == 4 {
                    storage.flush().await.expect("nothing fails");
                }
            }
            buf
        });
        let disk = storage.power_off().disk;
        let mut keys = Vec::new();
        for unit in 0..1024 {
            if disk.single(unit).is_none() {
                keys.clear();
                disk.peek(unit, &mut keys);
                black_box(&keys);
            }
        }
        spare = buf.map(|buf| (disk, buf));
    });
}
