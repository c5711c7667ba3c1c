//! Compressing and decompressing a disk, beside `qemu-img convert`: processor time of both, on the same data, in turns.
//!
//! Both read a raw file and write an image of 64 KiB clusters, or the other way round, on tmpfs. `qemu-img` has its threads; here the work is
//! done on the calling one. Processor time is the kernel's count, in hundredths of a second.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use qcow2_core::blocking::{Image, create};
use qcow2_core::format::CompressionType;
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::{CreateOptions, Inline, OpenOptions};
use qcow2_crashtest::qemu;

const BYTES: usize = 128 << 20;
const PIECE: usize = 2 << 20;
const ROUNDS: usize = 7;

/// A disk of text, tables, noise and zeroes.
fn disk() -> Vec<u8> {
    let mut state = 1u64;
    let mut draw = move |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let words: Vec<Vec<u8>> = (0..4000)
        .map(|_| (0..2 + draw(9)).map(|_| b"etaoinshrdlucmfw"[draw(16)]).collect())
        .collect();
    let mut bytes = Vec::with_capacity(BYTES + PIECE);
    while bytes.len() < BYTES {
        let end = bytes.len() + (64 << 10) * (1 + draw(8));
        match draw(8) {
            0 => bytes.resize_with(end, || draw(256) as u8),
            1 => bytes.resize(end, 0),
            2..4 => {
                for row in 0u32.. {
                    bytes.extend(row.to_be_bytes());
                    bytes.extend([draw(16) as u8, 0, draw(256) as u8, 1]);
                    if bytes.len() >= end {
                        break;
                    }
                }
            }
            _ => {
                while bytes.len() < end {
                    let frequent = 1 + draw(4000);
                    bytes.extend(&words[draw(frequent)]);
                    bytes.push(b' ');
                }
            }
        }
        bytes.truncate(end);
    }
    bytes.truncate(BYTES);
    bytes
}

/// Seconds of processor time of this process, or of the children that it waited for.
fn processor(children: bool) -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux has it");
    let fields: Vec<&str> =
        stat[stat.rfind(')').expect("after the name") + 2..].split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    let from = if children { 13 } else { 11 };
    (ticks(from) + ticks(from + 1)) / 100.0
}

fn timed(children: bool, work: impl FnOnce()) -> f64 {
    let before = processor(children);
    work();
    processor(children) - before
}

fn compress(raw: &Path, to: &Path, kind: CompressionType) {
    let storage = FileStorage::create(to, Existing::Replace).expect("the directory is ours");
    create(&storage, &CreateOptions::new(BYTES as u64).compression(kind)).expect("there is room");
    drop(storage);
    let storage = FileStorage::open(to, Access::ReadWrite).expect("it is there");
    let image = Image::open(storage, OpenOptions::new()).expect("it was just made");
    let mut source = File::open(raw).expect("it is there");
    let mut piece = vec![0; PIECE];
    for at in (0..BYTES).step_by(PIECE) {
        source.read_exact(&mut piece).expect("it is as long");
        image.write_compressed(at as u64, &piece, &Inline).expect("there is room");
    }
    image.close().expect("nothing fails");
}

fn decompress(from: &Path, raw: &Path) {
    let storage = FileStorage::open(from, Access::ReadOnly).expect("it is there");
    let image = Image::open(storage, OpenOptions::read_only()).expect("it is in order");
    let mut target = File::create(raw).expect("the directory is ours");
    let mut piece = vec![0; PIECE];
    for at in (0..BYTES).step_by(PIECE) {
        image.read(at as u64, &mut piece).expect("nothing fails");
        target.write_all(&piece).expect("there is room");
    }
}

fn convert<const N: usize>(options: [&str; N], from: &Path, to: &Path) {
    let paths = [from, to].map(|path| path.to_str().expect("the name is ours"));
    let done = qemu::img(["convert"].into_iter().chain(options).chain(paths));
    done.expect("qemu-img is installed").success().expect("it works");
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("tmpfs is mounted there");
    let path = |name: &str| folder.path().join(name);
    let (raw, back) = (path("disk.raw"), path("back.raw"));
    let data = disk();
    fs::write(&raw, &data).expect("there is room");
    println!(
        "{} MiB, clusters of 64 KiB: seconds of processor time, median of {ROUNDS} rounds\n",
        BYTES >> 20
    );
    println!("                    compress            decompress          bytes of the image");
    for (name, kind) in [("zlib", CompressionType::Deflate), ("zstd", CompressionType::Zstd)] {
        let (ours, theirs) = (path("ours.qcow2"), path("theirs.qcow2"));
        let mut seconds: [Vec<f64>; 4] = Default::default();
        let option = format!("compression_type={name}");
        let made = ["-c", "-f", "raw", "-O", "qcow2", "-o", &option];
        for _ in 0..ROUNDS {
            seconds[0].push(timed(false, || compress(&raw, &ours, kind)));
            seconds[1].push(timed(true, || convert(made, &raw, &theirs)));
            // Each reads what the other wrote.
            seconds[2].push(timed(false, || decompress(&theirs, &back)));
            assert!(fs::read(&back).expect("it is there") == data, "what QEMU compressed is read");
            seconds[3].push(timed(true, || convert(["-O", "raw"], &ours, &back)));
            assert!(fs::read(&back).expect("it is there") == data, "QEMU reads what we compressed");
        }
        // A file that grew ahead of need is longer than what it holds.
        let bytes =
            [&ours, &theirs].map(|path| 512 * fs::metadata(path).expect("it is there").blocks());
        let [ours, theirs, ours_read, theirs_read] = seconds.map(median);
        println!("{name}  qcow2-core  {ours:>12.2} {ours_read:>20.2} {:>23}", bytes[0]);
        println!("{name}  qemu-img    {theirs:>12.2} {theirs_read:>20.2} {:>23}", bytes[1]);
    }
}
