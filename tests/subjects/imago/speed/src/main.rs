//! 4 KiB requests, one at a time, each to a cluster of its own far from the last one, in a file on tmpfs: qcow2-core with futures and
//! with plain calls, imago 0.2.6 with plain calls, and pwrite and pread of the same sizes at the same offsets of a sparse file.
//!
//! ```text
//!   cargo run --release --manifest-path tests/subjects/imago/speed/Cargo.toml [ROUNDS [REQUESTS]]
//! ```
//!
//! A round gives each of them a new file: requests that allocate, then the same ones again, then reads. What is printed is the median
//! over all rounds of time by time of the plain file in the same round, and the ranks between which the median of such ratios lies
//! with a probability of 95 %. All of them use the caches that they have if nobody says anything.

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use qcow2_core::blocking::{self, block_on};
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::storage::{Durability, IoBuf};
use qcow2_core::{CreateOptions, Image, OpenOptions};

const REQUEST: usize = 4096;
const CLUSTER: u64 = 64 << 10;
const KINDS: [&str; 3] = ["allocate", "rewrite", "read"];

/// What takes requests of 4 KiB.
trait Target {
    fn write(&mut self, offset: u64) -> io::Result<()>;
    fn read(&mut self, offset: u64) -> io::Result<()>;
}

/// How to make one of a file.
type Open = fn(&Path, u64) -> io::Result<Box<dyn Target>>;

const TARGETS: [(&str, Open); 4] = [
    ("plain file", |path, size| {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(size)?;
        Ok(Box::new(Plain(file, [7; REQUEST])))
    }),
    ("qcow2-core, futures", |path, size| {
        create(path, size)?;
        let storage = FileStorage::open(path, Access::ReadWrite).map_err(io::Error::other)?;
        let image = block_on(Image::open(storage, OpenOptions::new()));
        let buf = IoBuf::copy_of(&[7; REQUEST], 1);
        Ok(Box::new(Futures(image.map_err(io::Error::other)?, Some(buf))))
    }),
    ("qcow2-core, plain calls", |path, size| {
        create(path, size)?;
        let storage = FileStorage::open(path, Access::ReadWrite).map_err(io::Error::other)?;
        let image = blocking::Image::open(storage, OpenOptions::new());
        Ok(Box::new(Calls(image.map_err(io::Error::other)?, [7; REQUEST])))
    }),
    ("imago 0.2.6, plain calls", |path, size| {
        create(path, size)?;
        let builder = Qcow2::<imago::file::File>::builder_path(path).write(true);
        let image = builder.open(PermissiveImplicitOpenGate::default())?;
        Ok(Box::new(Imago(FormatAccess::new(image), [7; REQUEST])))
    }),
];

fn create(path: &Path, size: u64) -> io::Result<()> {
    let storage = FileStorage::create(path, Existing::Replace).map_err(io::Error::other)?;
    blocking::create(&storage, &CreateOptions::new(size)).map_err(io::Error::other)
}

struct Plain(File, [u8; REQUEST]);

impl Target for Plain {
    fn write(&mut self, offset: u64) -> io::Result<()> {
        self.0.write_all_at(&self.1, offset)
    }

    fn read(&mut self, offset: u64) -> io::Result<()> {
        self.0.read_exact_at(&mut self.1, offset)
    }
}

struct Futures(Image<FileStorage>, Option<IoBuf>);

impl Target for Futures {
    fn write(&mut self, offset: u64) -> io::Result<()> {
        let buf = self.1.take().expect("it comes back");
        let (buf, result) = block_on(self.0.write(offset, buf, Durability::Cached));
        self.1 = Some(buf);
        result.map_err(io::Error::other)
    }

    fn read(&mut self, offset: u64) -> io::Result<()> {
        let buf = self.1.take().expect("it comes back");
        let (buf, result) = block_on(self.0.read(offset, buf));
        self.1 = Some(buf);
        result.map_err(io::Error::other)
    }
}

struct Calls(blocking::Image<FileStorage>, [u8; REQUEST]);

impl Target for Calls {
    fn write(&mut self, offset: u64) -> io::Result<()> {
        self.0.write(offset, &self.1).map_err(io::Error::other)
    }

    fn read(&mut self, offset: u64) -> io::Result<()> {
        self.0.read(offset, &mut self.1).map_err(io::Error::other)
    }
}

struct Imago(FormatAccess<imago::file::File>, [u8; REQUEST]);

impl Target for Imago {
    fn write(&mut self, offset: u64) -> io::Result<()> {
        self.0.write(&self.1[..], offset)
    }

    fn read(&mut self, offset: u64) -> io::Result<()> {
        self.0.read(&mut self.1[..], offset)
    }
}

/// Times of one target: allocate, rewrite, read.
#[expect(clippy::disallowed_methods, reason = "this program is about time")]
fn time(open: Open, path: &Path, size: u64, requests: u64) -> io::Result<[Duration; 3]> {
    let clusters = size / CLUSTER;
    // Odd, so that each goes to a cluster of its own; and the golden section of the disk, so that all of them lie as far apart as can be.
    let golden = u128::from(clusters) * 0x9e37_79b9_7f4a_7c15;
    let stride = u64::try_from(golden >> 64).expect("it is less than the disk") | 1;
    let offsets = || (0..requests).map(|index| index * stride % clusters * CLUSTER);
    let mut target = open(path, size)?;
    let mut times = [Duration::ZERO; 3];
    for (kind, time) in times.iter_mut().enumerate() {
        let start = Instant::now();
        for offset in offsets() {
            if kind < 2 { target.write(offset)? } else { target.read(offset)? }
        }
        *time = start.elapsed();
    }
    black_box(&target);
    Ok(times)
}

/// The median, and the ranks around it.
fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let count = values.len();
    // Of a binomial distribution, which is near enough to a normal one.
    let reach = (0.98 * (count as f64).sqrt()).ceil() as usize;
    let low = (count / 2).saturating_sub(reach);
    (values[count / 2], values[low], values[(count / 2 + reach).min(count - 1)])
}

fn run(rounds: usize, requests: u64) -> io::Result<()> {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let path = directory.path().join("image");
    println!("{requests} requests of 4 KiB, {rounds} rounds; times by that of the plain file\n");
    for (name, size) in [("1 GiB", 1 << 30), ("16 GiB", 16 << 30), ("1 TiB", 1 << 40)] {
        let requests = requests.min(size / CLUSTER);
        let mut times = vec![[const { Vec::new() }; 3]; TARGETS.len()];
        for round in 0..rounds {
            // Each of them goes first as often as any other.
            for turn in 0..TARGETS.len() {
                let index = (round + turn) % TARGETS.len();
                let took = time(TARGETS[index].1, &path, size, requests)?;
                for (all, time) in times[index].iter_mut().zip(took) {
                    all.push(time.as_secs_f64());
                }
            }
        }
        println!("{name:<28}{:>22}{:>22}{:>22}", KINDS[0], KINDS[1], KINDS[2]);
        for ((target, _), of) in TARGETS.iter().zip(&times) {
            print!("{target:<28}");
            for (mine, plain) in of.iter().zip(&times[0]) {
                let ratios = mine.iter().zip(plain).map(|(mine, plain)| mine / plain);
                let (middle, low, high) = median(ratios.collect());
                print!("{:>22}", format!("{middle:.2} ({low:.2}..{high:.2})"));
            }
            println!();
        }
        let each = times[0].iter().map(|plain| median(plain.clone()).0 / requests as f64 * 1e6);
        let each: Vec<_> = each.map(|micros| format!("{micros:.2} us")).collect();
        println!(
            "{:<28}{:>22}{:>22}{:>22}\n",
            "one request, plain file", each[0], each[1], each[2]
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let numbers: Result<Vec<u64>, _> = std::env::args().skip(1).map(|arg| arg.parse()).collect();
    let (rounds, requests) = match numbers.as_deref() {
        Ok([]) => (15, 20_000),
        Ok([rounds]) if *rounds > 0 => (*rounds, 20_000),
        Ok([rounds, requests]) if rounds * requests > 0 => (*rounds, *requests),
        _ => {
            eprintln!("two numbers at most, not 0: how many rounds, and how many requests in each");
            return ExitCode::from(2);
        }
    };
    match run(usize::try_from(rounds).expect("it fits"), requests) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
