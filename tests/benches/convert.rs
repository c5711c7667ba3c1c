//! A disk that is compressed or encrypted, and read again, beside `qemu-img convert`: processor time of both, on the same data, in turns.
//!
//! Both read a raw file and write an image of 64 KiB clusters, or the other way round, on tmpfs. `qemu-img` has its threads; here the work is
//! done on the calling one. Each reads what the other wrote. Processor time is the kernel's count, in hundredths of a second.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use qcow2_core::blocking::{Image, create, create_encrypted};
use qcow2_core::format::CompressionType;
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::{CreateOptions, Encryption, Inline, OpenOptions, Passphrase};
use qcow2_crashtest::qemu::{self, QemuImage};

const BYTES: usize = 128 << 20;
const PIECE: usize = 2 << 20;
const ROUNDS: usize = 7;
const PASSPHRASE: &str = "passphrase";

/// What becomes of the disk.
#[derive(Clone, Copy)]
enum Kind {
    Compressed(CompressionType),
    /// The format's name for it.
    Encrypted(&'static str),
}

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

fn write(raw: &Path, to: &Path, kind: Kind) {
    let storage = FileStorage::create(to, Existing::Replace).expect("the directory is ours");
    let options = CreateOptions::new(BYTES as u64);
    let made = match kind {
        Kind::Compressed(kind) => create(&storage, &options.compression(kind)),
        Kind::Encrypted(format) => {
            let mut source = File::open("/dev/urandom").expect("Linux has it");
            let mut random = |bytes: &mut [u8]| source.read_exact(bytes).expect("it never ends");
            let encryption = match format {
                "luks" => Encryption::luks(&Passphrase::new(PASSPHRASE), 1000, &mut random),
                _ => Encryption::aes(),
            };
            create_encrypted(&storage, None, &options, &encryption, None)
        }
    };
    made.expect("there is room");
    drop(storage);
    let storage = FileStorage::open(to, Access::ReadWrite).expect("it is there");
    let image = open(storage, kind, OpenOptions::new());
    let mut source = File::open(raw).expect("it is there");
    let mut piece = vec![0; PIECE];
    for at in (0..BYTES).step_by(PIECE) {
        source.read_exact(&mut piece).expect("it is as long");
        match kind {
            Kind::Compressed(_) => image.write_compressed(at as u64, &piece, &Inline),
            Kind::Encrypted(_) => image.write(at as u64, &piece),
        }
        .expect("there is room");
    }
    image.close().expect("nothing fails");
}

fn open(storage: FileStorage, kind: Kind, options: OpenOptions) -> Image<FileStorage> {
    let passphrase = Passphrase::new(PASSPHRASE);
    let opened = match kind {
        Kind::Compressed(_) => Image::open(storage, options),
        Kind::Encrypted(_) => Image::open_encrypted(storage, &passphrase, None, None, options),
    };
    opened.expect("it is in order")
}

fn read(from: &Path, raw: &Path, kind: Kind) {
    let storage = FileStorage::open(from, Access::ReadOnly).expect("it is there");
    let image = open(storage, kind, OpenOptions::read_only());
    let mut target = File::create(raw).expect("the directory is ours");
    let mut piece = vec![0; PIECE];
    for at in (0..BYTES).step_by(PIECE) {
        image.read(at as u64, &mut piece).expect("nothing fails");
        target.write_all(&piece).expect("there is room");
    }
}

/// What tells QEMU the passphrase.
fn secret() -> [String; 2] {
    ["--object".to_owned(), format!("secret,id=key,data={PASSPHRASE}")]
}

fn convert(args: Vec<String>) {
    let args = ["convert".to_owned()].into_iter().chain(args);
    qemu::img(args).expect("qemu-img is installed").success().expect("it works");
}

fn text(path: &Path) -> String {
    path.to_str().expect("the name is ours").to_owned()
}

fn qemu_writes(raw: &Path, to: &Path, kind: Kind) {
    let mut args = ["-f", "raw", "-O", "qcow2", "-o"].map(str::to_owned).to_vec();
    match kind {
        Kind::Compressed(kind) => {
            let name = if kind == CompressionType::Zstd { "zstd" } else { "zlib" };
            args.extend([format!("compression_type={name}"), "-c".to_owned()]);
        }
        Kind::Encrypted(format) => {
            args.push(QemuImage::encrypted(format));
            args.extend(secret());
        }
    }
    convert([args, vec![text(raw), text(to)]].concat());
}

fn qemu_reads(from: &Path, raw: &Path, kind: Kind) {
    let mut args = ["-O", "raw"].map(str::to_owned).to_vec();
    let from = text(from);
    match kind {
        Kind::Compressed(_) => args.extend(["-f".to_owned(), "qcow2".to_owned(), from]),
        Kind::Encrypted(_) => {
            args.extend(secret());
            let image = format!("driver=qcow2,file.filename={from},encrypt.key-secret=key");
            args.extend(["--image-opts".to_owned(), image]);
        }
    }
    convert([args, vec![text(raw)]].concat());
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
    println!("                       write                read          bytes of the image");
    for (name, kind) in [
        ("zlib", Kind::Compressed(CompressionType::Deflate)),
        ("zstd", Kind::Compressed(CompressionType::Zstd)),
        ("LUKS", Kind::Encrypted("luks")),
        ("AES", Kind::Encrypted("aes")),
    ] {
        let (ours, theirs) = (path("ours.qcow2"), path("theirs.qcow2"));
        let mut seconds: [Vec<f64>; 4] = Default::default();
        for _ in 0..ROUNDS {
            seconds[0].push(timed(false, || write(&raw, &ours, kind)));
            seconds[1].push(timed(true, || qemu_writes(&raw, &theirs, kind)));
            seconds[2].push(timed(false, || read(&theirs, &back, kind)));
            assert!(fs::read(&back).expect("it is there") == data, "what QEMU wrote is read");
            seconds[3].push(timed(true, || qemu_reads(&ours, &back, kind)));
            assert!(fs::read(&back).expect("it is there") == data, "QEMU reads what we wrote");
        }
        // A file that grew ahead of need is longer than what it holds.
        let bytes =
            [&ours, &theirs].map(|path| 512 * fs::metadata(path).expect("it is there").blocks());
        let [ours, theirs, ours_read, theirs_read] = seconds.map(median);
        println!("{name:<5} qcow2-core  {ours:>12.2} {ours_read:>20.2} {:>23}", bytes[0]);
        println!("{name:<5} qemu-img    {theirs:>12.2} {theirs_read:>20.2} {:>23}", bytes[1]);
    }
}
