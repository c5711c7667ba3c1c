//! Every kind of image, made by us and by QEMU, used by both.
//!
//! A kind is one value of each axis. Of any two axes every pair of values is in some kind, if there is an image with both; where there is
//! none, both sides refuse it. Three values at once exclude each other in one case: space taken ahead over a layer takes extended entries.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use qcow2_core::blocking::{create, create_encrypted, create_over, create_with_data};
use qcow2_core::format::CompressionType;
use qcow2_core::storage::file::{Existing, FileStorage};
use qcow2_core::{
    Backing, CreateOptions, DataFile, Encryption, Format, Inline, OpenOptions, Passphrase,
    Preallocation, Repair, Zeroing,
};
use qcow2_crashtest::qemu::{self, QemuImage};

use crate::bench::Bench;
use crate::common::{Expected, Scatter, Step, steps};
use crate::turn::share;

/// Parts of the kinds.
const PARTS: usize = 12;

/// The values of the axes, as QEMU spells them.
const AXES: [(&str, &[&str]); 10] = [
    ("cluster_size", &["512", "4096", "16384", "65536", "2097152"]),
    ("compat", &["0.10", "1.1"]),
    ("refcount_bits", &["1", "2", "4", "8", "16", "32", "64"]),
    ("extended_l2", &["off", "on"]),
    ("layer", &["none", "raw", "raw-longer", "qcow2", "qcow2-shorter"]),
    ("lazy_refcounts", &["off", "on"]),
    ("preallocation", &["off", "metadata", "falloc", "full"]),
    ("compression_type", &["zlib", "zstd"]),
    ("data_file", &["none", "plain", "raw"]),
    ("encryption", &["none", "aes", "luks"]),
];

const PASSPHRASE: &str = "passphrase";

/// One value for each axis, by its index.
type Kind = [usize; AXES.len()];

/// What a kind means.
#[derive(Clone, Copy, Debug)]
struct Meaning {
    cluster: u64,
    version: u32,
    refcount_bits: u32,
    extended: bool,
    layer: &'static str,
    lazy: bool,
    ahead: &'static str,
    compression: CompressionType,
    data: &'static str,
    encryption: &'static str,
}

impl Meaning {
    fn of(kind: &Kind) -> Self {
        let value = |axis: usize| AXES[axis].1[kind[axis]];
        let number = |axis| value(axis).parse().unwrap();
        Self {
            cluster: number(0),
            version: if value(1) == "0.10" { 2 } else { 3 },
            refcount_bits: number(2) as u32,
            extended: value(3) == "on",
            layer: value(4),
            lazy: value(5) == "on",
            ahead: value(6),
            compression: match value(7) {
                "zstd" => CompressionType::Zstd,
                _ => CompressionType::Deflate,
            },
            data: value(8),
            encryption: value(9),
        }
    }

    /// Whether there is such an image.
    fn exists(&self) -> bool {
        let old = self.version == 2;
        let zstd = self.compression == CompressionType::Zstd;
        !(old && (self.refcount_bits != 16 || self.extended || self.lazy || zstd))
            && !(self.extended && self.cluster < 16384)
            && !(self.layer != "none" && self.ahead != "off" && !self.extended)
            && !(self.data != "none" && old)
            && !(self.data == "raw" && self.layer != "none")
            && !(self.encryption != "none" && old && self.ahead != "off")
            && !(self.encryption != "none" && self.data == "raw")
    }

    /// Bytes of the disk: some L2 tables of small clusters, some clusters of large ones; the last one is cut short.
    fn size(&self) -> u64 {
        self.cluster * (1 << 20 >> self.cluster.ilog2()).clamp(5, 300) - 512
    }

    fn ours(&self) -> CreateOptions {
        CreateOptions::new(self.size())
            .cluster_bits(self.cluster.ilog2())
            .version(self.version)
            .refcount_bits(self.refcount_bits)
            .extended_l2(self.extended)
            .lazy_refcounts(self.lazy)
            .compression(self.compression)
            .preallocation(match self.ahead {
                "metadata" => Preallocation::Metadata,
                "falloc" => Preallocation::Falloc,
                "full" => Preallocation::Full,
                _ => Preallocation::Off,
            })
    }
}

fn theirs(bench: &Bench, kind: &Kind, backing: Option<&Backing>) -> String {
    let said = AXES
        .iter()
        .zip(kind)
        .filter(|((name, _), _)| !matches!(*name, "layer" | "data_file" | "encryption"));
    let mut options: Vec<String> =
        said.map(|((name, values), &value)| format!("{name}={}", values[value])).collect();
    if let Some(Backing { name, format: Some(format), .. }) = backing {
        let (name, format) = (String::from_utf8_lossy(name), String::from_utf8_lossy(format));
        options.push(format!("backing_file={name},backing_fmt={format}"));
    }
    let data = data_file(bench);
    match Meaning::of(kind).data {
        "plain" => options.push(format!("data_file={}", data.display())),
        "raw" => options.push(format!("data_file={},data_file_raw=on", data.display())),
        _ => {}
    }
    match Meaning::of(kind).encryption {
        "none" => {}
        format => options.push(QemuImage::encrypted(format)),
    }
    options.join(",")
}

fn data_file(bench: &Bench) -> PathBuf {
    bench.directory.path().join("data.raw")
}

/// Pairs of two values of two axes.
struct Pairs(Vec<bool>);

impl Pairs {
    /// How many values an axis may have.
    const WIDTH: usize = 7;

    fn none() -> Self {
        Self(vec![false; (AXES.len() * Self::WIDTH).pow(2)])
    }

    fn of<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> Self {
        let mut pairs = Self::none();
        kinds.into_iter().for_each(|kind| pairs.set(kind, true));
        pairs
    }

    /// The places of the pairs of a kind.
    fn each(kind: &Kind, mut see: impl FnMut(usize)) {
        for second in 1..kind.len() {
            for first in 0..second {
                let one = first * Self::WIDTH + kind[first];
                let other = second * Self::WIDTH + kind[second];
                see(one * AXES.len() * Self::WIDTH + other);
            }
        }
    }

    /// How many pairs of a kind are among these.
    fn count(&self, kind: &Kind) -> usize {
        let mut count = 0;
        Self::each(kind, |pair| count += usize::from(self.0[pair]));
        count
    }

    fn set(&mut self, kind: &Kind, present: bool) {
        Self::each(kind, |pair| self.0[pair] = present);
    }

    fn is_empty(&self) -> bool {
        !self.0.contains(&true)
    }
}

fn every_kind() -> impl Iterator<Item = Kind> {
    let count: usize = AXES.iter().map(|(_, values)| values.len()).product();
    (0..count).map(|mut index| {
        AXES.map(|(_, values)| {
            let value = index % values.len();
            index /= values.len();
            value
        })
    })
}

/// Kinds of images that have every pair of values that some image has, each time the one with most that are new; and one for each pair that
/// no image has, all else as usual as it can be.
fn kinds() -> (Vec<Kind>, Vec<Kind>) {
    let (can, cannot): (Vec<Kind>, Vec<Kind>) =
        every_kind().partition(|kind| Meaning::of(kind).exists());
    let mut open = Pairs::of(&can);
    // How many new pairs each had when that was last counted: it gets no more.
    let mut news = vec![usize::MAX; can.len()];
    let mut covering = Vec::new();
    while !open.is_empty() {
        let (mut most, mut best) = (0, 0);
        for (index, kind) in can.iter().enumerate() {
            if news[index] > most {
                news[index] = open.count(kind);
                if news[index] > most {
                    (most, best) = (news[index], index);
                }
            }
        }
        assert!(most > 0, "what is open is in some kind");
        open.set(&can[best], false);
        covering.push(can[best]);
    }
    // Version 3 with refcounts of 16 bits, in clusters of 64 KiB.
    const USUAL: Kind = [3, 1, 4, 0, 0, 0, 0, 0, 0, 0];
    let distance =
        |kind: &Kind| kind.iter().zip(USUAL).filter(|(one, usual)| **one != *usual).count();
    let mut impossible = Vec::new();
    // What is in no kind yet, possible or not.
    let mut open = Pairs::of(&cannot);
    can.iter().for_each(|kind| open.set(kind, false));
    let mut nearest = cannot;
    nearest.sort_by_cached_key(distance);
    for kind in nearest {
        if open.count(&kind) > 0 {
            open.set(&kind, false);
            impossible.push(kind);
        }
    }
    // The three that exclude each other.
    impossible.push([3, 1, 4, 0, 1, 0, 1, 0, 0, 0]);
    (covering, impossible)
}

/// Makes the layer of a kind beside the image; what the image says of it, and what it holds.
fn make_layer(bench: &Bench, meaning: &Meaning) -> (Option<Backing>, Vec<u8>) {
    let size = meaning.size();
    let bytes = match meaning.layer {
        "none" => return (None, Vec::new()),
        "raw" | "qcow2" => size,
        "raw-longer" => size + 2 * meaning.cluster + 1024,
        _ => size / 2 / 512 * 512,
    };
    let mut content = vec![0; bytes as usize];
    for (number, sector) in content.chunks_mut(512).enumerate() {
        sector.fill(1 + (number % 200) as u8);
    }
    let raw = bench.directory.path().join("base.raw");
    fs::write(&raw, &content).unwrap();
    if meaning.layer.starts_with("raw") {
        return (Some(Backing::new("base.raw", Format::Raw)), content);
    }
    let path = bench.directory.path().join("base.qcow2");
    let args = ["convert", "-q", "-f", "raw", "-O", "qcow2"].map(PathBuf::from);
    qemu::img(args.into_iter().chain([raw, path])).unwrap().success().unwrap();
    (Some(Backing::new("base.qcow2", Format::Qcow2)), content)
}

fn make_image(
    bench: &Bench,
    by_us: bool,
    kind: &Kind,
    backing: Option<&Backing>,
) -> Result<(), String> {
    let meaning = Meaning::of(kind);
    if by_us {
        let storage = FileStorage::create(bench.path(), Existing::Refuse).unwrap();
        // QEMU looks for a relative name in its working directory, and not beside the image.
        let name = data_file(bench).into_os_string().into_encoded_bytes();
        let said = match meaning.data {
            "raw" => DataFile::raw(name),
            _ => DataFile::new(name),
        };
        let has_data = meaning.data != "none";
        let data = has_data.then(|| {
            FileStorage::create(data_file(bench), Existing::Refuse).expect("there is room")
        });
        let created = match backing {
            _ if meaning.encryption != "none" => {
                let mut draw = Scatter::new(meaning.cluster);
                let mut random = |bytes: &mut [u8]| bytes.fill_with(|| draw.below(256) as u8);
                let passphrase = Passphrase::new(PASSPHRASE);
                let encryption = match meaning.encryption {
                    "luks" => Encryption::luks(&passphrase, 1000, &mut random),
                    _ => Encryption::aes(),
                };
                let data = data.as_ref().map(|data| (data, &said));
                create_encrypted(&storage, data, &meaning.ours(), &encryption, backing)
            }
            _ if let Some(data) = &data => {
                create_with_data(&storage, data, &meaning.ours(), &said, backing)
            }
            Some(backing) => create_over(&storage, &meaning.ours(), backing),
            None => create(&storage, &meaning.ours()),
        };
        return created.map_err(|error| error.to_string());
    }
    let options = theirs(bench, kind, backing);
    qemu::create(bench.target(), meaning.size(), &options).map_err(|error| error.to_string())
}

/// One image of a kind, from its creation on: filled in turn by both, grown by one with its space taken, zeroed and rebuilt by us.
fn go(kind: &Kind, by_us: bool, number: usize) {
    let meaning = Meaning::of(kind);
    // Shown if this fails.
    println!("kind {number}, by us: {by_us}: {meaning:?}");
    let mut bench = Bench::new();
    bench.passphrase = (meaning.encryption != "none").then_some(PASSPHRASE);
    let size = meaning.size();
    let (backing, layer) = make_layer(&bench, &meaning);
    make_image(&bench, by_us, kind, backing.as_ref()).unwrap();
    let mut expected = Expected::zeroes(size, meaning.cluster);
    let shown = layer.len().min(expected.bytes.len());
    expected.bytes[..shown].copy_from_slice(&layer[..shown]);
    let sound = |expected: &Expected| {
        bench.assert_sound(expected);
        if meaning.data == "raw" {
            let data = fs::read(data_file(&bench)).unwrap();
            assert!(data[..expected.bytes.len()] == expected.bytes, "it is the disk by itself");
        }
    };
    sound(&expected);
    let all = meaning.ahead != "off" || meaning.data == "raw";
    let taken = if all { size.div_ceil(meaning.cluster) } else { 0 };
    assert_eq!(bench.check(Repair::None).allocated_clusters, taken);
    // Ahead in an encrypted image are zeroes, and in a data file QEMU takes those of place 0 for none.
    let is_none =
        taken > 0 && meaning.data == "plain" && meaning.encryption != "none" && !meaning.extended;
    let theirs = qemu::check(bench.target()).unwrap().allocated_clusters;
    assert_eq!(theirs, taken - u64::from(is_none));
    let of_data = if meaning.data == "none" { bench.path().to_owned() } else { data_file(&bench) };
    let space = fs::metadata(of_data).unwrap().blocks() * 512;
    if matches!(meaning.ahead, "falloc" | "full") {
        // QEMU keeps none in a data file.
        assert!(
            space >= size || (!by_us && meaning.data != "none"),
            "{space} bytes are kept for it"
        );
    } else if by_us {
        assert!(space < size / 2 + (1 << 20), "{space} bytes for nothing");
    }

    // Some clusters in the middle, which we write compressed.
    let middle = size as usize / 3 / 512 * 512;
    let packed = middle..(middle + 3 * meaning.cluster as usize).min(size as usize);
    let data: Vec<u8> = packed.clone().map(|at| 1 + (at / 100 % 50) as u8).collect();
    let mut compressed = 0;
    for session in [by_us, !by_us] {
        let seed = 2 * number as u64 + u64::from(session);
        let mut done = steps(seed, 16, size, 2 * meaning.cluster.min(1 << 17));
        if meaning.version == 2 && backing.is_some() {
            // Nothing can say that the layer is hidden: we leave what it shows, they refuse.
            done.retain(|step| !matches!(step, Step::Discard { .. }));
        }
        if session {
            let image = bench.open(OpenOptions::new().copy_on_read(number.is_multiple_of(2)));
            for step in &done {
                step.apply(&image);
                image.read(size / 2, &mut [0; 1024]).unwrap();
            }
            image.write_compressed(packed.start as u64, &data, &Inline).unwrap();
            image.close().unwrap();
        } else {
            let commands: Vec<String> = done.iter().map(|step| step.command()).collect();
            qemu::io(bench.target(), &commands).unwrap().success().unwrap();
        }
        done.iter().for_each(|&step| expected.apply(step));
        if session {
            expected.bytes[packed.clone()].copy_from_slice(&data);
            compressed = bench.check(Repair::None).compressed_clusters;
            let theirs = qemu::check(bench.target()).unwrap().compressed_clusters;
            assert_eq!(theirs, compressed);
        }
        sound(&expected);
    }
    let compresses = meaning.cluster > 512
        && meaning.refcount_bits > 1
        && meaning.data == "none"
        && meaning.encryption == "none";
    assert_eq!(compressed > 0, compresses);

    let grown = size + 3 * meaning.cluster + 512;
    // QEMU cannot hide a longer layer in version 2, and does not grow over one.
    let hides = meaning.version == 2 && meaning.layer == "raw-longer";
    if by_us || hides {
        let image = bench.open(OpenOptions::new());
        image.grow(grown).unwrap();
        image.preallocate(size, grown - size, Preallocation::Falloc).unwrap();
        image.close().unwrap();
    } else {
        // Not falloc or full: QEMU refuses these where the file is longer than what is in use, as we leave it.
        let ahead = if meaning.encryption == "none" { "metadata" } else { "off" };
        qemu::resize(bench.target(), grown, &[&format!("--preallocation={ahead}")]).unwrap();
    }
    expected.bytes.resize(grown as usize, 0);
    sound(&expected);
    let image = bench.open(OpenOptions::new());
    image.write_zeroes(0, grown, Zeroing::Keep).unwrap();
    image.close().unwrap();
    expected.bytes.fill(0);
    sound(&expected);
    assert!(bench.check(Repair::Rebuild).rebuilt);
    sound(&expected);
}

/// Goal: every pair of values that an image can have is in one that both sides make and use, and what no image has is refused by both.
/// Method: kinds that cover all pairs, made by either side; each is filled by both, grown with its space taken, zeroed and rebuilt, and
/// after each step both check it and read it.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn every_pair_of_options_goes_both_ways() {
    let (covering, impossible) = kinds();
    for (number, kind) in share(covering.iter().enumerate(), PARTS) {
        for by_us in [true, false] {
            let meaning = Meaning::of(kind);
            // What QEMU 10 takes ahead in an encrypted image reads as what its holes decipher to.
            if by_us || meaning.ahead == "off" || meaning.encryption == "none" {
                go(kind, by_us, number);
            }
        }
    }
    for kind in &impossible {
        for by_us in [true, false] {
            let meaning = Meaning::of(kind);
            let mut bench = Bench::new();
            bench.passphrase = (meaning.encryption != "none").then_some(PASSPHRASE);
            let (backing, _) = make_layer(&bench, &meaning);
            let refused = make_image(&bench, by_us, kind, backing.as_ref());
            // QEMU makes some that we do not: a raw disk that is not, and clusters that read as what nobody wrote.
            let only_ours = !by_us && meaning.encryption != "none";
            assert!(refused.is_err() || only_ours, "{meaning:?}, by us: {by_us}");
        }
    }
}

/// Goal: the kinds are those that are needed: every pair is in one or refused, and no kind is of both sorts.
#[test]
fn the_kinds_cover_every_pair() {
    let (covering, impossible) = kinds();
    let all = every_kind().collect::<Vec<_>>();
    let mut missing = Pairs::of(&all);
    covering.iter().chain(&impossible).for_each(|kind| missing.set(kind, false));
    assert!(missing.is_empty());
    assert!(covering.iter().all(|kind| Meaning::of(kind).exists()));
    assert!(!impossible.iter().any(|kind| Meaning::of(kind).exists()));
    assert!(covering.len() >= 5 * 7, "widths by clusters alone are so many");
}
