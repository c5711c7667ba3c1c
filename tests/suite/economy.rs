//! What a durable guest write costs the storage, request by request: ours exactly, QEMU's beside it.
//!
//! 256 requests of 4 KiB on 64 KiB clusters, one L2 table, every request durable when it returns, after one request that
//! allocates the table itself. The figures of ours are exact expectations: whoever changes them sees by how much.
//!
//! QEMU is counted in two ways, because it does two things. On a plain file it zeroes a new cluster by `fallocate` and writes what the
//! guest wrote; that is what people run, and `strace` counts it, of both programs alike. Where the storage zeroes nothing fast, as below
//! its driver `blklogwrites`, it writes whole clusters, and waits for a flush between these and the L2 entry.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use qcow2_core::blocking::{Image, create};
use qcow2_core::storage::Storage;
use qcow2_core::storage::file::{Access, Existing, FileStorage};
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

/// An image of ours in which one request has allocated the L2 table. Every request is durable when it returns.
fn opened<S: Storage>(storage: S) -> Image<S> {
    let image = Image::open(storage, OpenOptions::new().write_through(true)).unwrap();
    image.write(0, &[7; REQUEST as usize]).unwrap();
    image
}

/// Costs of allocating, rewriting and reading, in this order.
fn ours(lazy_refcounts: bool, pattern: Pattern) -> [Cost; 3] {
    let storage = Counted::new(MemoryStorage::default());
    create(&storage, &CreateOptions::new(VIRTUAL_SIZE).lazy_refcounts(lazy_refcounts)).unwrap();
    let image = opened(storage.clone());
    let data = vec![7; REQUEST as usize];
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

/// Costs of allocating and rewriting with QEMU in writethrough mode, below its driver `blklogwrites`. The requests of each kind have
/// their own pattern byte, so that the log of all writes can be cut where they begin.
fn qemus_logged(lazy_refcounts: bool, pattern: Pattern) -> [Cost; 2] {
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
/// - and every 64 clusters the file grows by 4 MiB. Its length has to be durable before an entry points there, and is ahead of need, so
///   that the flush for another request serves that too.
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

/// What the kernel was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Calls {
    writes: u64,
    /// Bytes of these.
    written: u64,
    /// `fdatasync`.
    syncs: u64,
    /// `fallocate`, those that the file system does not know included.
    allocations: u64,
    /// `ftruncate`.
    lengths: u64,
}

/// A read of so many bytes parts the requests of one kind from those of the next in a trace.
const MARK: u64 = 1536;

/// The file of a case in its directory.
fn file_of(name: &str) -> String {
    format!("{}.qcow2", name.replace(", ", "-"))
}

/// Runs a command to its end under `strace`.
fn traced(command: &[&str], trace: &Path) -> String {
    let calls =
        "trace=pread64,preadv,pwrite64,pwritev,pwritev2,fdatasync,fsync,fallocate,ftruncate";
    // One line a call with the path of its file; of the data nothing.
    let options = ["-f", "-qq", "-y", "-s", "0", "-e", "signal=none", "-e", calls, "-o"];
    let run = Command::new("strace").args(options).arg(trace).args(command).output().unwrap();
    assert!(run.status.success(), "{command:?}: {run:?}");
    std::fs::read_to_string(trace).unwrap()
}

/// Calls that allocate and that rewrite, in the file of a case.
fn calls_in(trace: &str, file: &str) -> [Calls; 2] {
    let mut calls = [Calls::default(); 2];
    let mut marks = 0_usize;
    // The end of a call that another thread interrupted says nothing new.
    for line in trace.lines().filter(|line| line.contains(&format!("/{file}>"))) {
        let call = line.split_once(' ').expect("a process, and what it calls").1.trim_start();
        let (name, arguments) = call.split_once('(').expect("a call");
        // As in `4</folder/file>, ""..., 4096, 327680`.
        let length = || arguments.split(", ").nth(2).unwrap().parse::<u64>().unwrap();
        if name == "pread64" && length() == MARK {
            marks += 1;
            continue;
        }
        let Some(calls) = marks.checked_sub(1).and_then(|kind| calls.get_mut(kind)) else {
            continue;
        };
        match name {
            "pread64" => {}
            "pwrite64" => {
                calls.writes += 1;
                calls.written += length();
            }
            "fdatasync" => calls.syncs += 1,
            "fallocate" => calls.allocations += 1,
            "ftruncate" => calls.lengths += 1,
            _ => panic!("nobody counts this: {line}"),
        }
    }
    assert_eq!(marks, 3, "the trace does not show every kind of request in {file}");
    calls
}

/// The same requests with QEMU in writethrough mode on a plain file.
fn qemus_calls(
    directory: &Path,
    (name, lazy_refcounts, pattern): (&str, bool, Pattern),
) -> [Calls; 2] {
    let file = file_of(name);
    let image = directory.join(&file);
    let lazy = if lazy_refcounts { "on" } else { "off" };
    qemu::create(&image, VIRTUAL_SIZE, &format!("lazy_refcounts={lazy}")).unwrap();
    let write = |offset: u64| format!("write -q {offset} {REQUEST}");
    let mark = || std::iter::once(format!("read -q 0 {MARK}"));
    let kind = || mark().chain(pattern.offsets().map(write));
    let commands: Vec<String> =
        std::iter::once(write(0)).chain(kind()).chain(kind()).chain(mark()).collect();
    let mut command = vec!["qemu-io", "-t", "writethrough", "-f", "qcow2"];
    command.extend(commands.iter().flat_map(|command| ["-c", command]));
    command.push(image.to_str().expect("text"));
    calls_in(&traced(&command, &directory.join("trace")), &file)
}

/// Goal: what is durable in memory is in a real file. Method: the requests of this suite on files; another test traces this one.
#[test]
fn durable_writes_are_in_the_file() {
    let directory = memory_directory();
    for (name, lazy, pattern) in CASES {
        let path = directory.path().join(file_of(name));
        let storage = FileStorage::create(&path, Existing::Refuse).unwrap();
        create(&storage, &CreateOptions::new(VIRTUAL_SIZE).lazy_refcounts(lazy)).unwrap();
        drop(storage);
        let image = opened(FileStorage::open(&path, Access::ReadWrite).unwrap());
        let mark = || image.read(0, &mut [0; MARK as usize]).unwrap();
        for byte in [8, 9] {
            mark();
            pattern
                .offsets()
                .for_each(|offset| image.write(offset, &[byte; REQUEST as usize]).unwrap());
        }
        mark();
        // Nothing was closed.
        drop(image);
        let image =
            Image::open(FileStorage::open(&path, Access::ReadWrite).unwrap(), OpenOptions::new())
                .unwrap();
        for offset in pattern.offsets() {
            let mut back = [0; REQUEST as usize];
            image.read(offset, &mut back).unwrap();
            assert_eq!(back, [9; REQUEST as usize], "{name}, {offset}");
        }
    }
}

/// Goal: on a plain file, too, a durable write costs what is said above and no more than QEMU's: not a byte and not a flush.
/// Method: `strace` counts the calls of both; of ours, those of the test before this one.
#[test]
#[cfg_attr(
    not(all(has_qemu, has_strace)),
    ignore = "qemu-img, qemu-io or strace is not installed (Debian packages qemu-utils, strace)"
)]
#[cfg_attr(
    all(has_qemu, has_strace, not(turn = "9")),
    ignore = "its turn is at another commit; CI=1 runs all"
)]
fn no_durable_write_to_a_file_costs_more_than_qemus() {
    let directory = memory_directory();
    let program = std::env::current_exe().unwrap();
    let test = "economy::durable_writes_are_in_the_file";
    let command = [program.to_str().expect("text"), "--exact", test];
    let trace = traced(&command, &directory.path().join("trace"));
    let mut table =
        "256 requests of 4 KiB, by strace   writes  KiB written  fdatasync  fallocate  ftruncate\n"
            .to_owned();
    let mut dearer = Vec::new();
    for case in CASES {
        let (name, lazy, pattern) = case;
        let (theirs, ours) =
            (qemus_calls(directory.path(), case), calls_in(&trace, &file_of(name)));
        let counted = self::ours(lazy, pattern);
        for (at, kind) in ["allocate", "rewrite"].into_iter().enumerate() {
            let (theirs, ours) = (theirs[at], ours[at]);
            for (whose, calls) in [("QEMU", theirs), ("ours", ours)] {
                let Calls { writes, written, syncs, allocations, lengths } = calls;
                let what = format!("{kind}, {name}: {whose}");
                let kib = written >> 10;
                writeln!(
                    table,
                    "{what:<34} {writes:>6} {kib:>12} {syncs:>10} {allocations:>10} {lengths:>10}"
                )
                .unwrap();
            }
            let Cost { writes, written, through, flushes, lengths, .. } = counted[at];
            // A file does one that is durable when it returns as a write and a flush.
            let (writes, syncs) = (writes + through, flushes + through);
            assert_eq!(
                ours,
                Calls { writes, written, syncs, allocations: 0, lengths },
                "{kind}, {name}"
            );
            if ours.written > theirs.written || ours.syncs > theirs.syncs {
                dearer.push(format!("{kind}, {name}"));
            }
        }
    }
    println!("{table}");
    assert!(dearer.is_empty(), "dearer than QEMU: {dearer:?}\n{table}");
}

/// Goal: where nothing is zeroed fast, we never write more bytes than QEMU and never flush more often either.
/// Method: QEMU's writes and flushes are counted in its own log of them. Length changes are not in that log.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn no_durable_write_costs_more_than_qemus_without_fast_zeroes() {
    let mut table = HEAD.to_owned();
    let mut dearer = Vec::new();
    for (name, lazy, pattern) in CASES {
        let kinds = ["allocate", "rewrite"];
        for ((kind, theirs), ours) in
            kinds.iter().zip(&qemus_logged(lazy, pattern)).zip(&ours(lazy, pattern))
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
