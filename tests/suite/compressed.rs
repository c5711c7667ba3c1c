//! Compressed clusters that QEMU made: read here as there, written over by both, and sound to both afterwards.

use std::fs;

use qcow2_core::blocking::Image;
use qcow2_core::format::CompressionType;
use qcow2_core::storage::file::FileStorage;
use qcow2_core::{CreateOptions, Inline, OpenOptions, Repair};
use qcow2_crashtest::qemu;

use crate::bench::Bench;
use crate::common::{Expected, Scatter, Step, steps};

/// A disk of clusters that compress well, badly or not at all, and of zeroes.
fn disk(seed: u64, size: u64, cluster: u64) -> Vec<u8> {
    let mut scatter = Scatter::new(seed);
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < size {
        let (words, kinds) = match scatter.below(8) {
            0 => (cluster, 256),
            1 => (1, 1),
            2..5 => (1 + scatter.below(cluster / 8), 40),
            _ => (1 + scatter.below(20), 200),
        };
        let words: Vec<u8> = (0..words).map(|_| scatter.below(kinds) as u8).collect();
        bytes.extend((0..cluster).map(|at| words[(at % words.len() as u64) as usize]));
    }
    bytes.truncate(size as usize);
    bytes
}

/// An image with these options that QEMU compressed, and what it reads as.
fn compressed(seed: u64, size: u64, cluster: u64, options: &str) -> (Bench, Expected) {
    let bench = Bench::new();
    let mut expected = Expected::zeroes(size, cluster);
    expected.bytes = disk(seed, size, cluster);
    let raw = bench.directory.path().join("source.raw");
    fs::write(&raw, &expected.bytes).unwrap();
    let options = format!("cluster_size={cluster},{options}");
    let from = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options];
    let paths = [raw.as_path(), bench.path()].map(|path| path.to_str().unwrap());
    qemu::img(from.into_iter().chain(paths)).unwrap().success().unwrap();
    (bench, expected)
}

/// Flushes, drops the image as a power cut would, and opens it again; it is sound then. How many of its clusters are compressed.
fn cut_power(bench: &Bench, image: Image<FileStorage>, expected: &Expected) -> u64 {
    image.flush().unwrap();
    drop(image);
    drop(bench.open(OpenOptions::new()).close().unwrap());
    let report = bench.check(Repair::Leaks);
    bench.assert_sound(expected);
    report.compressed_clusters
}

/// Lets QEMU do these requests; the image is sound then.
fn qemu_goes_on(bench: &Bench, expected: &mut Expected, steps: Vec<Step>) {
    let commands: Vec<String> = steps.iter().map(|step| step.command()).collect();
    qemu::io(bench.path(), &commands).unwrap().success().unwrap();
    steps.into_iter().for_each(|step| expected.apply(step));
    bench.assert_sound(expected);
}

/// Goal: images that QEMU compressed are ours to read, to write over and to repair, and sound to both afterwards.
/// Method: every cluster size, deflate and zstd, standard and extended entries, wide and narrow refcounts (in which a host cluster has as
/// many streams as it can count), eager and lazy; scattered requests through us, a power cut, and as many through QEMU.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(all(has_qemu, not(turn = "5")), ignore = "its turn is at another commit; CI=1 runs all")]
fn compressed_images_of_qemu_are_images_to_us() {
    let mut full = 0;
    for cluster_bits in 9..=21u32 {
        let cluster = 1u64 << cluster_bits;
        let size = (24 << cluster_bits.min(16)).max(5 << cluster_bits) + 512;
        for (index, kind) in
            ["compression_type=zlib", "compression_type=zstd"].into_iter().enumerate()
        {
            let seed = u64::from(cluster_bits) * 2 + index as u64;
            let refcount_bits = [16, 2, 64, 1, 4][seed as usize % 5];
            let extended = cluster_bits >= 14 && seed.is_multiple_of(3);
            let lazy = seed % 4 < 2;
            let on = |is: bool| if is { "on" } else { "off" };
            let options = format!(
                "{kind},refcount_bits={refcount_bits},extended_l2={},lazy_refcounts={}",
                on(extended),
                on(lazy)
            );
            let (bench, mut expected) = compressed(seed, size, cluster, &options);
            let report = bench.check(Repair::None);
            assert!(report.compressed_clusters > 0, "{options}");
            full += u64::from(refcount_bits == 2);
            bench.assert_sound(&expected);

            let image = bench.open(OpenOptions::new());
            for step in steps(seed, 12, size, cluster) {
                step.apply(&image);
                expected.apply(step);
            }
            cut_power(&bench, image, &expected);
            qemu_goes_on(&bench, &mut expected, steps(1000 + seed, 12, size, cluster));
        }
    }
    assert!(full > 3, "refcounts that come to their limit");
}

/// Goal: what we compress is QEMU's to read, to write over and to check, and ours again. Method: every cluster size, deflate and zstd, both
/// kinds of entry, wide and narrow refcounts, eager and lazy, version 2; a disk that is filled, parts of it written again, compressed and not,
/// a power cut, and as many requests through QEMU.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(all(has_qemu, not(turn = "1")), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_we_compress_is_qemus_to_read() {
    let mut compressed = 0;
    for cluster_bits in 9..=21u32 {
        let cluster = 1u64 << cluster_bits;
        let size = (24 << cluster_bits.min(16)).max(5 << cluster_bits) + 512;
        for (index, kind) in
            [CompressionType::Deflate, CompressionType::Zstd].into_iter().enumerate()
        {
            let seed = u64::from(cluster_bits) * 2 + index as u64;
            let old = kind == CompressionType::Deflate && cluster_bits % 4 == 0;
            let mut options = CreateOptions::new(size).cluster_bits(cluster_bits).compression(kind);
            options = match old {
                true => options.version(2),
                false => options
                    .refcount_bits([16, 2, 64, 1, 4][seed as usize % 5])
                    .extended_l2(cluster_bits >= 14 && seed.is_multiple_of(3))
                    .lazy_refcounts(seed % 4 < 2),
            };
            let bench = Bench::new();
            drop(bench.create(&options));
            let mut expected = Expected::zeroes(size, cluster);
            expected.bytes = disk(seed, size, cluster);
            let image = bench.open(OpenOptions::new());
            image.write_compressed(0, &expected.bytes, &Inline).unwrap();
            let mut scatter = Scatter::new(seed);
            for step in steps(seed, 12, size, cluster) {
                step.apply(&image);
                expected.apply(step);
                let from = scatter.below(size / 512) * 512;
                let len = (1 + scatter.below(3 * cluster / 512)) * 512;
                let range = from as usize..(from + len).min(size) as usize;
                let again = disk(scatter.below(1 << 20), range.len() as u64, cluster);
                image.write_compressed(from, &again, &Inline).unwrap();
                expected.bytes[range].copy_from_slice(&again);
            }
            compressed += cut_power(&bench, image, &expected);
            qemu_goes_on(&bench, &mut expected, steps(1000 + seed, 12, size, cluster));
        }
    }
    assert!(compressed > 100, "{compressed}");
}

/// Goal: an overlay shows the compressed image below it, and is written without changing that. Method: as images in the cloud are used.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn a_compressed_image_is_a_layer() {
    let (size, cluster) = (40 * 65_536, 65_536);
    let (base, mut expected) = compressed(7, size, cluster, "compression_type=zstd");
    let below = fs::read(base.path()).unwrap();
    let bench = Bench::new();
    let layer = bench.directory.path().join("base.qcow2");
    fs::write(&layer, &below).unwrap();
    let names = [layer.as_path(), bench.path()].map(|path| path.to_str().unwrap());
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", names[0], names[1]];
    qemu::img(create).unwrap().success().unwrap();
    bench.assert_sound(&expected);
    let image = bench.open(OpenOptions::new().copy_on_read(true));
    for step in steps(8, 20, size, cluster) {
        step.apply(&image);
        expected.apply(step);
        let mut read = vec![0; 9 * 512];
        image.read(0, &mut read).unwrap();
        assert!(read == expected.bytes[..9 * 512]);
    }
    image.close().unwrap();
    bench.assert_sound(&expected);
    assert!(fs::read(&layer).unwrap() == below, "the layer is as it was");
}
