//! What things cost in instructions of the processor in user space, as valgrind's callgrind counts them: the same on a busy machine.
//!
//! ```text
//!   cargo bench -p qcow2-crashtest --bench instructions              compare with what is kept; exit 1 if one is dearer
//!   cargo bench -p qcow2-crashtest --bench instructions -- --keep    keep what is counted now
//! ```
//!
//! Each piece runs twice in a process of its own, so many and twice so many times; the difference is what they cost, without the start
//! and without the preparation. Clearing and copying are most of what varies: the C library has several ways to do them, of which it chooses
//! when a program starts, and counts by valgrind depend on the way (of `rep stosb` each byte is an instruction). It is told to take the plain
//! one. Before, one source counted 6 % more on one machine than on another with the same name of its processor; why was not found out. What is
//! kept holds for one compiler and one C library; with others the figures are printed without a verdict.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};

use model::audit::Auditor;
use model::build::Initial;
use model::evidence::BytesEvidence;
use qcow2_core::blocking::{self, block_on, create};
use qcow2_core::storage::file::{Existing, FileStorage};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf};
use qcow2_core::{CreateOptions, Image, OpenOptions, Repair};
use qcow2_crashtest::explore;
use qcow2_crashtest::explore::alphabet::worlds;
use qcow2_crashtest::subject::Qcow2Core;
use tempfile::TempDir;

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");
/// Tenths of a percent that a piece may be dearer.
const SLACK: u64 = 30;
/// How the C library copies and clears, whatever the processor: without the instructions that only some have, and by fixed sizes.
const PLAIN_COPIES: &str = "glibc.cpu.hwcaps=-AVX2,-ERMS,-FSRM:\
    glibc.cpu.x86_data_cache_size=32768:\
    glibc.cpu.x86_shared_cache_size=1048576:\
    glibc.cpu.x86_non_temporal_threshold=1048576";

const CLUSTER: u64 = 64 << 10;
const REQUEST: usize = 4096;

/// What is counted, how often it runs, and what it runs.
type Piece = (&'static str, u64, fn(u64));

const PIECES: [Piece; 8] = [
    ("read 4 KiB", 4096, |times| {
        let (_directory, image) = image(1 << 30);
        write(&image, 4096);
        read(&image, times);
    }),
    ("rewrite 4 KiB", 4096, |times| {
        let (_directory, image) = image(1 << 30);
        write(&image, 4096);
        for _ in 0..times / 4096 {
            write(&image, 4096);
        }
    }),
    ("allocate 4 KiB", 4096, |times| {
        let (_directory, image) = image(1 << 30);
        write(&image, times);
    }),
    ("read 4 KiB of an image of 1 TiB, tables far apart", 4096, |times| {
        let (_directory, image) = image(1 << 40);
        write(&image, 4096);
        read(&image, times);
    }),
    ("check 1 TiB with 20,000 clusters", 2, |times| {
        let (_directory, image) = image(1 << 40);
        write(&image, 20_000);
        let storage = block_on(image.close()).expect("nothing fails");
        for _ in 0..times {
            let report = blocking::check(&storage, Repair::None).expect("it can be read");
            assert!(report.is_consistent());
        }
    }),
    ("open and repair a dirty image", 200, |times| {
        let image = dirty();
        for _ in 0..times {
            let storage = MemoryStorage::new(image.clone());
            block_on(Image::open(storage, OpenOptions::new())).expect("it is repaired");
        }
    }),
    ("audit that image", 200, |times| {
        let image = dirty();
        let mut auditor = Auditor::default();
        for _ in 0..times {
            black_box(auditor.audit(&mut BytesEvidence::new(&image)));
        }
    }),
    ("explore every power cut in one request", 2, |times| {
        let settings = explore::ExploreSettings {
            workers: 1,
            ..explore::ExploreSettings::new(worlds(&[1024], &[true], &[Initial::Fragmented]), 1)
        };
        for _ in 0..times {
            black_box(explore::run(&Qcow2Core::default(), &settings, |_, _, _, _| {}));
        }
    }),
];

/// A new image in a file.
fn image(size: u64) -> (TempDir, Image<FileStorage>) {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let directory = directory.expect("a directory");
    let path = directory.path().join("image.qcow2");
    let storage = FileStorage::create(path, Existing::Replace).expect("a file");
    create(&storage, &CreateOptions::new(size)).expect("there is room");
    let image = block_on(Image::open(storage, OpenOptions::new())).expect("it was just made");
    (directory, image)
}

/// So many clusters of the disk, neighbours in time far apart in space.
fn offsets(image: &Image<FileStorage>, count: u64) -> impl Iterator<Item = u64> + Clone {
    let clusters = image.info().virtual_size / CLUSTER;
    (0..count).map(move |index| index * 2731 * (clusters / 16_384 + 1) % clusters * CLUSTER)
}

fn write(image: &Image<FileStorage>, count: u64) {
    let mut buf = IoBuf::zeroed(REQUEST, 1);
    buf.fill(7);
    for offset in offsets(image, count) {
        let result;
        (buf, result) = block_on(image.write(offset, buf, Durability::Cached));
        result.expect("there is room");
    }
}

fn read(image: &Image<FileStorage>, count: u64) {
    let mut buf = IoBuf::zeroed(REQUEST, 1);
    for offset in offsets(image, 4096).cycle().take(usize::try_from(count).expect("few")) {
        let result;
        (buf, result) = block_on(image.read(offset, buf));
        result.expect("nothing fails");
    }
}

/// A small image that is marked dirty and whose counts are too low.
fn dirty() -> Vec<u8> {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(64 << 20).cluster_bits(12).lazy_refcounts(true);
    create(&storage, &options).expect("there is room");
    let image =
        block_on(Image::open(storage.clone(), OpenOptions::new())).expect("it was just made");
    for index in 0..64 {
        let buf = IoBuf::copy_of(&[7; REQUEST], 1);
        let written = block_on(image.write(index << 20, buf, Durability::Cached));
        written.1.expect("there is room");
    }
    block_on(image.flush()).expect("nothing fails");
    assert!(image.info().dirty);
    storage.to_vec()
}

/// What is kept.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Kept {
    compiler: String,
    machine: String,
    instructions: BTreeMap<String, u64>,
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output
        .map_or_else(|_| String::new(), |said| String::from_utf8_lossy(&said.stdout).trim().into())
}

/// What decides how much is counted apart from the program: whether there are the wide registers that some crates look for, and the C library.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let wide = if info.split_whitespace().any(|flag| flag == "avx2") { "with" } else { "without" };
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let library = output
        .map_or_else(|_| String::new(), |said| String::from_utf8_lossy(&said.stdout).trim().into());
    format!("{} {wide} AVX2, {library}", std::env::consts::ARCH)
}

/// Instructions of a process that runs a piece so many times.
fn count(name: &str, times: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([name, &times.to_string()])
        .env("GLIBC_TUNABLES", PLAIN_COPIES)
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    match collected {
        Some((_, count)) if output.status.success() => {
            count.trim().parse().map_err(|error| format!("{count}: {error}"))
        }
        _ => Err(format!("{name}, {times} times: {}\n{said}", output.status)),
    }
}

fn run(keep: bool) -> Result<bool, String> {
    let readable = |error: std::io::Error| format!("{KEPT}: {error}");
    let mut kept: Kept = if Path::new(KEPT).exists() {
        let text = fs::read_to_string(KEPT).map_err(readable)?;
        serde_json::from_str(&text).map_err(|error| format!("{KEPT}: {error}"))?
    } else {
        Kept::default()
    };
    let here = (compiler(), machine());
    let same = here == (kept.compiler.clone(), kept.machine.clone());
    if !same {
        println!(
            "kept with {} on {}; here it is {} on {}",
            kept.compiler, kept.machine, here.0, here.1
        );
    }
    let mut well = true;
    println!("{:>12} {:>12}  instructions for each", "kept", "now");
    for (name, times, _) in PIECES {
        let now = (count(name, 2 * times)?.saturating_sub(count(name, times)?)) / times;
        let before = kept.instructions.insert(name.into(), now);
        let verdict = match before {
            Some(before) if same && now * 1000 > before * (1000 + SLACK) => "  DEARER",
            _ => "",
        };
        well &= verdict.is_empty();
        let before = before.map_or_else(|| "-".into(), |before| before.to_string());
        println!("{before:>12} {now:>12}  {name}{verdict}");
    }
    if keep {
        (kept.compiler, kept.machine) = here;
        let text = serde_json::to_string_pretty(&kept).map_err(|error| error.to_string())?;
        fs::write(KEPT, text + "\n").map_err(readable)?;
    }
    Ok(well || keep)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [name, times] = &args[..]
        && let Some((_, _, piece)) = PIECES.iter().find(|(known, ..)| known == name)
        && let Ok(times) = times.parse()
    {
        piece(times);
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("ignored: valgrind is not installed, and it counts the instructions");
        return ExitCode::SUCCESS;
    }
    match run(args.iter().any(|arg| arg == "--keep")) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}
