//! What one crash state costs the judge: the audit alone, the audit and every guest unit, and a copy of the reference disk.
//!
//! 128 KiB of guest data at 1 KiB clusters, with and without undecided units, encrypted in both ways, and the two kinds of image whose
//! refcounts were filled up by a long L1 table.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use model::audit::Auditor;
use model::build::{Initial, build};
use model::evidence::BytesEvidence;
use model::guest::{DiscardReads, Guest, Made, Promises};
use model::judge::Judge;
use model::op::{Durability, Encryption, Geometry};

/// An image, and its reference disk with `undecided` units written and not flushed.
fn scene(
    cluster_bits: u32,
    initial: Initial,
    undecided: u64,
    encryption: Option<Encryption>,
) -> (BytesEvidence, Guest) {
    let geometry = Geometry { encryption, ..Geometry::plain(cluster_bits, 128 << 10) };
    let built = build(&geometry, initial).expect("the geometry allows it");
    let mut evidence = built.evidence();
    let keys = built.guest_keys(|bytes| evidence.values.intern(bytes));
    let promises = Promises {
        cluster_units: geometry.cluster_units(),
        discard: DiscardReads::Zeroes,
        grow: Durability::Through,
        changes: Durability::Cached,
    };
    let made = Made::of(&geometry, |bytes| evidence.values.intern(bytes));
    let mut guest = Guest::new(&keys, promises).on(made);
    for unit in 0..undecided {
        let key = evidence.values.intern(&[unit as u8 + 1; 512]);
        guest.begin_write(unit * 7 % 256, &[key], Durability::Cached);
    }
    (evidence, guest)
}

fn states(c: &mut Criterion) {
    let (mut evidence, _) = scene(10, Initial::Fragmented, 0, None);
    let mut auditor = Auditor::default();
    c.bench_function("audit, 128 KiB", |b| {
        b.iter(|| auditor.audit(black_box(&mut evidence)).findings.len());
    });
    let (aes, luks) = (Some(Encryption::Aes), Some(Encryption::Luks));
    for (name, bits, initial, encryption) in [
        ("audit and every unit, 128 KiB", 10, Initial::Fragmented, None),
        ("audit and every unit, AES", 10, Initial::Fragmented, aes),
        ("audit and every unit, LUKS", 10, Initial::Fragmented, luks),
        ("audit and every unit, leaky", 10, Initial::Leaky, None),
        ("audit and every unit, refcount block full", 10, Initial::RefcountBlockOneShort, None),
        ("audit and every unit, refcount table full", 9, Initial::RefcountTableOneShort, None),
    ] {
        let (mut evidence, guest) = scene(bits, initial, 20, encryption);
        let mut judge = Judge::default();
        assert_eq!(judge.state(&mut evidence, &guest, None), []);
        c.bench_function(name, |b| {
            b.iter(|| judge.state(black_box(&mut evidence), black_box(&guest), None).len());
        });
    }
    let (_, guest) = scene(10, Initial::Fragmented, 20, None);
    c.bench_function("copy of a reference disk, 20 units undecided", |b| {
        b.iter(|| black_box(&guest).clone());
    });
    c.bench_function("copy and crash", |b| {
        b.iter(|| {
            let mut guest = black_box(&guest).clone();
            guest.crash();
            guest
        });
    });
}

criterion_group!(benches, states);
criterion_main!(benches);
