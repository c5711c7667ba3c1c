//! The images that the mutants are made of, and what lies where in an image.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use qcow2_core::format::Header;
use qcow2_core::format::entry::{L1Entry, L2Entry, Mapping, RefcountTableEntry};
use qcow2_core::format::extension::Bitmaps;
use qcow2_core::storage::block_on;
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{Layer, Raw};
use qcow2_crashtest::qemu;
use tempfile::TempDir;

use crate::common::{Step, memory_directory, steps};

/// An image that QEMU made.
pub(super) struct Seed {
    pub(super) name: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) cluster_bits: u32,
    pub(super) refcount_order: u32,
    pub(super) places: Vec<Place>,
    /// What it is over.
    pub(super) layer: Option<Arc<dyn Layer>>,
}

/// All of them, and the directory in which QEMU finds their layers.
pub(super) struct Seeds {
    pub(super) images: Vec<Seed>,
    _directory: TempDir,
}

/// What an entry leads to that makes no sense: nobody reads it, and nobody knows what it meant.
pub(super) const DOUBTFUL: &str = "place that a senseless entry names";

/// A table, or a cluster of data.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) what: &'static str,
    pub(super) range: Range<u64>,
}

impl Seed {
    fn new(name: &'static str, path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let header = Header::parse(&bytes).unwrap();
        let places = places(&bytes, &header);
        let (cluster_bits, refcount_order) = (header.cluster_bits, header.refcount_order);
        Self { name, bytes, cluster_bits, refcount_order, places, layer: None }
    }

    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(super) fn all(&self, what: &str) -> Vec<&Place> {
        self.places.iter().filter(|place| place.what == what).collect()
    }
}

/// A big-endian number of up to eight bytes in an image that reads as zeroes past its end.
pub(super) fn number(bytes: &[u8], at: u64, len: usize) -> u64 {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    let byte = |index| at.checked_add(index).and_then(|at| bytes.get(at)).copied().unwrap_or(0);
    (0..len).fold(0, |number, index| number << 8 | u64::from(byte(index)))
}

/// Where everything lies, as far as the image says so; it may say anything.
pub(super) fn places(bytes: &[u8], header: &Header) -> Vec<Place> {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let size = header.cluster_size();
    let length = bytes.len() as u64;
    let mut found = Vec::new();
    let mut add = |what, at: u64, len: u64| {
        let fits = at < length && at.is_multiple_of(size) && len > 0;
        if fits {
            found.push(Place { what, range: at..at + len });
        }
        fits
    };
    let words = |at: u64, len: u64| {
        let end = at.saturating_add(len).min(length);
        (at..end).step_by(8).map(|at| (at, number(bytes, at, 8))).filter(|&(_, entry)| entry != 0)
    };
    add("header", 0, size);
    let table = u64::from(header.refcount_table_clusters) * size;
    add("refcount table", header.refcount_table_offset, table);
    for (at, entry) in words(header.refcount_table_offset, table) {
        let makes_sense = RefcountTableEntry(entry).decode(header.cluster_bits, at).is_ok();
        add(if makes_sense { "refcount block" } else { DOUBTFUL }, entry & !0x1ff, size);
    }
    let mut roots = vec![("L1 table", "L2 table", header.l1_table_offset, header.l1_size)];
    let mut at = header.snapshots_offset;
    for _ in 0..header.nb_snapshots.min(16) {
        let l1_size = u32::try_from(number(bytes, at + 8, 4)).unwrap_or(0);
        roots.push(("snapshot's L1 table", "snapshot's L2 table", number(bytes, at, 8), l1_size));
        let texts = number(bytes, at + 12, 2) + number(bytes, at + 14, 2);
        at += (40 + number(bytes, at + 36, 4) + texts).next_multiple_of(8);
    }
    add("snapshot table", header.snapshots_offset, at - header.snapshots_offset);
    let mut tables = BTreeSet::new();
    for (root, kind, at, entries) in roots {
        add(root, at, u64::from(entries) * 8);
        for (at, entry) in words(at, u64::from(entries) * 8) {
            let table = L1Entry(entry).host();
            if L1Entry(entry).decode(header.cluster_bits, at).is_err() {
                add(DOUBTFUL, table, size);
                continue;
            }
            if !tables.insert(table) || !add(kind, table, size) {
                continue;
            }
            for (at, entry) in words(table, size) {
                match L2Entry(entry).decode(header.cluster_bits, header.version, at) {
                    Ok(Mapping::Data { host, .. }) => add("data", host, size),
                    Ok(Mapping::ZeroAllocated { host, .. }) => {
                        add("preallocated zeroes", host, size)
                    }
                    Ok(Mapping::Compressed { offset, .. }) => {
                        add("compressed data", offset & !(size - 1), size)
                    }
                    _ => false,
                };
            }
        }
    }
    if let Ok(Some(Bitmaps { count, directory_size, directory_offset })) = header.bitmaps() {
        add("bitmap directory", directory_offset, directory_size);
        let mut at = directory_offset;
        for _ in 0..count.min(16) {
            let (table, len) = (number(bytes, at, 8), number(bytes, at + 8, 4) * 8);
            add("bitmap table", table, len);
            for (_, entry) in words(table, len) {
                add("bitmap data", entry & OFFSET, size);
            }
            at += (24 + number(bytes, at + 18, 2) + number(bytes, at + 20, 4)).next_multiple_of(8);
        }
    }
    if let Ok(Some(luks)) = header.luks() {
        add("LUKS header", luks.offset, luks.length);
    }
    found
}

fn img(args: &[&str]) {
    qemu::img(args).unwrap().success().unwrap();
}

/// What the seeds are made of: `qemu-img create -o`, the size, and how many scattered requests.
const PLAIN: &[(&str, &str, u64, usize)] = &[
    ("512 B", "cluster_size=512", 100 << 10, 60),
    (
        "512 B, 1-bit counts, lazy",
        "cluster_size=512,refcount_bits=1,lazy_refcounts=on",
        70 << 10,
        60,
    ),
    ("1 KiB, 8-bit counts", "cluster_size=1k,refcount_bits=8", 300 << 10, 60),
    ("4 KiB", "cluster_size=4k", 4 << 20, 60),
    (
        "4 KiB, 64-bit counts, lazy",
        "cluster_size=4k,refcount_bits=64,lazy_refcounts=on",
        1 << 20,
        60,
    ),
    ("64 KiB", "cluster_size=64k", 1 << 20, 12),
    ("64 KiB, two L2 tables, lazy", "cluster_size=64k,lazy_refcounts=on", 513 << 20, 12),
    ("1 KiB, preallocated", "cluster_size=1k,preallocation=metadata", 200 << 10, 20),
    (
        "4 KiB, preallocated, lazy",
        "cluster_size=4k,preallocation=metadata,lazy_refcounts=on",
        1 << 20,
        20,
    ),
    ("1 KiB, version 2", "cluster_size=1k,compat=0.10", 200 << 10, 40),
    ("16 KiB, extended L2 entries", "cluster_size=16k,extended_l2=on", 1 << 20, 20),
];

/// All of them. QEMU makes the same ones each time, but for random keys and times, which nothing here looks at.
pub(super) fn seeds() -> Seeds {
    let directory = memory_directory();
    let at = |name: &str| directory.path().join(name);
    let path = at("seed.qcow2");
    let name = path.to_str().unwrap();
    let io = |commands: &[String]| {
        qemu::io(&path, commands).unwrap().success().unwrap();
    };
    let fill = |seed: u64, count: usize, size: u64, cluster: u64| {
        let commands: Vec<String> =
            steps(seed, count, size, cluster).into_iter().map(Step::command).collect();
        io(&commands);
    };
    let mut seeds = Vec::new();
    for (index, &(title, options, size, count)) in PLAIN.iter().enumerate() {
        qemu::create(&path, size, options).unwrap();
        let cluster = qemu::info(&path).unwrap()["cluster-size"].as_u64().unwrap();
        fill(index as u64, count, size.min(1 << 20), cluster);
        if size > 512 << 20 {
            io(&["write -q -P 7 512M 100k".to_owned()]);
        }
        seeds.push(Seed::new(title, &path));
    }
    // Compressed clusters, alone and among others.
    let source = at("source.qcow2");
    for (title, options, more) in [
        ("1 KiB, compressed", "cluster_size=1k", false),
        ("4 KiB, compressed and written to", "cluster_size=4k", true),
        ("4 KiB, compressed with zstd", "cluster_size=4k,compression_type=zstd", true),
    ] {
        qemu::create(&source, 300 << 10, "cluster_size=1k").unwrap();
        let commands: Vec<String> =
            steps(50, 40, 300 << 10, 9000).into_iter().map(Step::command).collect();
        qemu::io(&source, &commands).unwrap().success().unwrap();
        let from = source.to_str().unwrap();
        img(&["convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", options, from, name]);
        if more {
            fill(51, 10, 300 << 10, 4096);
        }
        seeds.push(Seed::new(title, &path));
    }
    for (title, options, cluster) in [
        ("512 B, bitmaps", "cluster_size=512", 512),
        ("4 KiB, bitmaps, lazy", "cluster_size=4k,lazy_refcounts=on", 4096),
        ("64 KiB, bitmaps", "cluster_size=64k", 65_536),
    ] {
        let size = if cluster == 512 { 100 << 10 } else { 1 << 20 };
        qemu::create(&path, size, options).unwrap();
        fill(60, 20, size, cluster);
        img(&["bitmap", "--add", "--enable", "-g", "512", name, "first"]);
        fill(61, 10, size, cluster);
        img(&["bitmap", "--add", "--enable", name, "second"]);
        fill(62, 10, size, cluster);
        seeds.push(Seed::new(title, &path));
    }
    qemu::create(&path, 100 << 10, "cluster_size=1k").unwrap();
    for snapshot in ["one", "two"] {
        fill(70, 15, 100 << 10, 1024);
        img(&["snapshot", "-c", snapshot, name]);
    }
    fill(71, 15, 100 << 10, 1024);
    seeds.push(Seed::new("1 KiB, snapshots", &path));
    // A killed QEMU.
    qemu::create(&path, 1 << 20, "cluster_size=4k,lazy_refcounts=on").unwrap();
    fill(80, 20, 1 << 20, 4096);
    let mut commands: Vec<String> =
        steps(81, 20, 1 << 20, 4096).into_iter().map(Step::command).collect();
    commands.extend(["flush".to_owned(), "sigraise 9".to_owned()]);
    assert_ne!(qemu::io(&path, &commands).unwrap().code, Some(0));
    seeds.push(Seed::new("4 KiB, left dirty", &path));

    img(&["create", "-q", "-f", "qcow2", "-b", from(&source), "-F", "qcow2", name]);
    fill(90, 8, 300 << 10, 65_536);
    seeds.push(Seed::new("64 KiB, backing file", &path));
    let raw = at("data.raw");
    qemu::create(&path, 1 << 20, &format!("cluster_size=4k,data_file={}", from(&raw))).unwrap();
    fill(91, 20, 1 << 20, 4096);
    seeds.push(Seed::new("4 KiB, data file", &path));
    let secret = ["--object", "secret,id=s,data=x", "-o"];
    let luks = "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    img(&[&["create", "-q", "-f", "qcow2"][..], &secret, &[luks, name, "256k"]].concat());
    seeds.push(Seed::new("4 KiB, LUKS", &path));

    // Made smaller, made larger, with its space taken.
    qemu::create(&path, 1 << 20, "cluster_size=1k").unwrap();
    fill(100, 60, 1 << 20, 1024);
    img(&["resize", "-q", "-f", "qcow2", "--shrink", name, "200k"]);
    fill(101, 10, 200 << 10, 1024);
    img(&["resize", "-q", "-f", "qcow2", "--preallocation=metadata", name, "400k"]);
    seeds.push(Seed::new("1 KiB, resized", &path));
    // Over layers that are read and written through.
    let below = at("below.raw");
    let bytes: Vec<u8> = (0..300 << 10).map(|at| 1 + (at / 512 * 7 % 250) as u8).collect();
    fs::write(&below, &bytes).unwrap();
    let layer: Arc<dyn Layer> =
        Arc::new(block_on(Raw::new(MemoryStorage::new(bytes))).expect("memory does not fail"));
    for (title, options, cluster) in [
        ("1 KiB, over a layer", "cluster_size=1k", 1024),
        ("4 KiB, over a layer, lazy", "cluster_size=4k,lazy_refcounts=on", 4096),
        ("4 KiB, over a layer, version 2", "cluster_size=4k,compat=0.10", 4096),
        ("16 KiB, over a layer, extended L2 entries", "cluster_size=16k,extended_l2=on", 4096),
    ] {
        let over = ["-b", from(&below), "-F", "raw", "-o", options, name, "400k"];
        img(&[&["create", "-q", "-f", "qcow2"][..], &over].concat());
        fill(110, 20, 400 << 10, cluster);
        seeds.push(Seed { layer: Some(Arc::clone(&layer)), ..Seed::new(title, &path) });
    }
    Seeds { images: seeds, _directory: directory }
}

/// A path as an argument.
pub(super) fn from(path: &Path) -> &str {
    path.to_str().unwrap()
}
