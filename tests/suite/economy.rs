//! What a durable guest write costs the storage, request by request: ours exactly, QEMU's beside it.
//!
//! 256 requests of 4 KiB on 64 KiB clusters, one L2 table, every request durable when it returns, after one request that
//! allocates the table itself. The figures of ours are exact expectations: whoever changes them sees by how much.

use std::fmt::Write as _;

use qcow2_core::blocking::{Image, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CreateOptions, OpenOptions};
use qcow2_crashtest::count::Counted;
use qcow2_crashtest::logwrites::{Action, Log};
use qcow2_crashtest::qemu;

use crate::common::memory_directory;

const CLUSTER: u64 = 64 << 10;
const REQUEST: u64 = 4 << 10;
const REQUESTS: u64 = 256;
const VIRTUAL_SIZE: u64 = 512 << 20;

/// Which clusters are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    Sequential,
    /// Every 31st, so that the entries of neighbouring requests lie in different pages of the L2 table now and then.
    Strided,
}

impl Pattern {
    /// Guest offsets of the requests. The first cluster is left to the request before them.
    fn offsets(self) -> impl Iterator<Item = u64> {
        let stride = if self == Self::Strided { 31 } else { 1 };
        (0..REQUESTS).map(move |index| (1 + index * stride) * CLUSTER)
    }
}

/// What 256 requests of one kind cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    writes: u64,
    /// Bytes of these.
    written: u64,
    /// Writes that are durable when they return.
    through: u64,
    flushes: u64,
    lengths: u64,
    reads: u64,
    /// Bytes of these.
    read: u64,
}

fn row(table: &mut String, name: &str, cost: &Cost) {
    let Cost { writes, written, through, flushes, lengths, reads, read } = cost;
    let (written, read) = (written >> 10, read >> 10);
    writeln!(
        table,
        "{name:<34} {writes:>6} {written:>8} {through:>7} {flushes:>7} {lengths:>7} {reads:>5} {read:>8}"
    )
    .unwrap();
}

const HEAD: &str = "\
256 requests of 4 KiB              writes  KiB wr. through flushes lengths reads KiB read
";

/// Costs of allocating, rewriting and reading, in this order.
fn ours(lazy_refcounts: bool, pattern: Pattern) -> [Cost; 3] {
    let storage = Counted::new(MemoryStorage::default());
    create(&storage, &CreateOptions::new(VIRTUAL_SIZE).lazy_refcounts(lazy_refcounts)).unwrap();
    let options = OpenOptions::new().write_through(true);
    let image = Image::open(storage.clone(), options).unwrap();
    let data = vec![7; REQUEST as usize];
    image.write(0, &data).unwrap();
    let measure = |request: &dyn Fn(u64)| {
        let before = storage.counts();
        pattern.offsets().for_each(request);
        let counts = storage.counts() - before;
        assert_eq!((counts.zeroes.count, counts.discards.count, counts.lens), (0, 0, 0));
        Cost {
            writes: counts.writes.count,
            written: counts.writes.bytes + counts.through.bytes,
            through: counts.through.count,
            flushes: counts.flushes,
            lengths: counts.set_lens,
            reads: counts.reads.count,
            read: counts.reads.bytes,
        }
    };
    [
        measure(&|offset| image.write(offset, &data).unwrap()),
        measure(&|offset| image.write(offset, &data).unwrap()),
        measure(&|offset| {
            let mut back = vec![0; REQUEST as usize];
            image.read(offset, &mut back).unwrap();
            assert_eq!(back, data);
        }),
    ]
}

/// Costs of allocating and rewriting with QEMU in writethrough mode. The requests of each kind have their own pattern byte,
/// so that the log of all writes can be cut where they begin.
fn qemus(lazy_refcounts: bool, pattern: Pattern) -> [Cost; 2] {
    const MARKS: [u8; 3] = [0xa1, 0xa2, 0xa3];
    let directory = memory_directory();
    let (image, log) = (directory.path().join("image"), directory.path().join("log"));
    let lazy = if lazy_refcounts { "on" } else { "off" };
    qemu::create(&image, VIRTUAL_SIZE, &format!("lazy_refcounts={lazy}")).unwrap();
    std::fs::write(&log, "").unwrap();
    let options = format!(
        "driver=qcow2,file.driver=blklogwrites,file.log-super-update-interval=1,\
         file.file.driver=file,file.file.filename={},file.log.driver=file,file.log.filename={}",
        image.display(),
        log.display()
    );
    let write = |byte: u8, offset: u64| format!("write -q -P {byte} {offset} {REQUEST}");
    let mut commands = vec![write(1, 0)];
    for mark in &MARKS[..2] {
        commands.extend(pattern.offsets().map(|offset| write(*mark, offset)));
    }
    commands.push(write(MARKS[2], 0));
    qemu::io_with(["-t", "writethrough", "--image-opts", &options], &commands)
        .unwrap()
        .success()
        .unwrap();

    let bytes = std::fs::read(&log).unwrap();
    let mut costs = [Cost::default(); 2];
    let mut next = 0;
    for entry in Log::parse(&bytes).unwrap().entries() {
        let entry = entry.unwrap();
        let Action::Data(data) = entry.content else { panic!("{entry:?}") };
        if MARKS.get(next).is_some_and(|mark| data.starts_with(&[*mark; 512])) {
            next += 1;
        }
        let Some(cost) = next.checked_sub(1).and_then(|phase| costs.get_mut(phase)) else {
            continue;
        };
        cost.flushes += u64::from(entry.flush);
        cost.writes += u64::from(!data.is_empty());
        cost.written += data.len() as u64;
    }
    assert_eq!(next, MARKS.len(), "the log does not show every kind of request");
    costs
}

const CASES: [(&str, bool, Pattern); 4] = [
    ("eager, sequential", false, Pattern::Sequential),
    ("eager, strided", false, Pattern::Strided),
    ("lazy, sequential", true, Pattern::Sequential),
    ("lazy, strided", true, Pattern::Strided),
];

/// Goal: nobody makes a durable write more expensive without noticing. In the steady state,
///
/// - eager: data, one page of refcounts, flush, one page of L2, flush. A cluster that was never written may be mapped
///   before its data is durable, so the data needs no flush of its own;
/// - lazy: data, one page of L2, flush;
/// - in place: one write that is durable by itself;
/// - reading: one read;
/// - and every 64 clusters, when the file grows by 4 MiB, its length has to be durable before an entry points there: with
///   eager refcounts the flush for the refcount serves that too, with lazy ones it costs one flush.
#[test]
fn a_durable_write_costs_exactly_this() {
    let mut table = HEAD.to_owned();
    for (name, lazy, pattern) in CASES {
        for (kind, cost) in ["allocate", "rewrite", "read"].iter().zip(&ours(lazy, pattern)) {
            row(&mut table, &format!("{kind}, {name}"), cost);
        }
    }
    insta::assert_snapshot!("economy", table);
}

/// Goal: we never write more bytes than QEMU and never flush more often, for the same durable requests.
/// Method: QEMU's writes and flushes are counted in its own log of them. Length changes are not in that log.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn no_durable_write_costs_more_than_qemus() {
    let mut table = HEAD.to_owned();
    let mut dearer = Vec::new();
    for (name, lazy, pattern) in CASES {
        let kinds = ["allocate", "rewrite"];
        for ((kind, theirs), ours) in
            kinds.iter().zip(&qemus(lazy, pattern)).zip(&ours(lazy, pattern))
        {
            row(&mut table, &format!("{kind}, {name}: QEMU"), theirs);
            row(&mut table, &format!("{kind}, {name}: ours"), ours);
            // One that is durable when it returns costs what a write and a flush cost, at most.
            if ours.written > theirs.written || ours.flushes + ours.through > theirs.flushes {
                dearer.push(format!("{kind}, {name}"));
            }
        }
    }
    println!("{table}");
    assert!(dearer.is_empty(), "dearer than QEMU: {dearer:?}\n{table}");
}

/// Goal: knowing what may not be written over costs little. Method: count what opening 1 TiB of disk and the first write of a session
/// read: with clusters of 64 KiB, the L1 table of 16 KiB and the one cluster of the refcount table, once.
#[test]
fn the_first_write_reads_the_tables_of_tables_once() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 40)).unwrap();
    let counted = Counted::new(storage);
    let image = Image::open(counted.clone(), OpenOptions::new()).unwrap();
    image.read(0, &mut [0; 512]).unwrap();
    let opened = counted.counts().reads;
    image.write(0, &[1; 512]).unwrap();
    let first = counted.counts().reads - opened;
    image.write(1 << 39, &[1; 512]).unwrap();
    let second = counted.counts().reads - opened - first;
    // Beside those tables: a page of the refcount table, one of a block, and for the second write one of the L1 table.
    assert_eq!((first.count, first.bytes), (3 + 2, (16 << 10) + (64 << 10) + 2 * 4096));
    assert_eq!((second.count, second.bytes), (1, 4096));
}
