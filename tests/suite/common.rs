//! What several suites need: scattered operations on an image and on a plain array that says what it must read.

use qcow2_core::blocking::{Image, create};
use qcow2_core::storage::Storage;
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CheckReport, CreateOptions, OpenOptions, Zeroing};

/// Small numbers for choosing operations: not random, only scattered, and the same every time.
#[derive(Clone, Debug)]
pub(crate) struct Scatter(u64);

impl Scatter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// One request that every implementation understands. Offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Write { offset: u64, length: u64, byte: u8 },
    Zero { offset: u64, length: u64, free: bool },
    Discard { offset: u64, length: u64 },
    Flush,
}

/// `count` scattered steps on a disk of `size` bytes, most of them about as long as a cluster; a quarter of the writes and
/// zeroings begin and end anywhere, the rest at multiples of 512 bytes.
pub(crate) fn steps(seed: u64, count: usize, size: u64, cluster: u64) -> Vec<Step> {
    let mut scatter = Scatter::new(seed);
    let mut step = |index: usize| {
        let unit = if scatter.below(4) == 0 { 1 } else { 512 };
        let place = |scatter: &mut Scatter, unit: u64| {
            let offset = scatter.below(size / unit) * unit;
            let length = (1 + scatter.below(2 * cluster / unit)) * unit;
            (offset, length.min(size - offset))
        };
        match scatter.below(12) {
            0..=6 => {
                let (offset, length) = place(&mut scatter, unit);
                Step::Write { offset, length, byte: (index % 255) as u8 + 1 }
            }
            7 | 8 => {
                let (offset, length) = place(&mut scatter, unit);
                Step::Zero { offset, length, free: scatter.below(2) == 0 }
            }
            9 | 10 => {
                let (offset, length) = place(&mut scatter, 512);
                Step::Discard { offset, length }
            }
            _ => Step::Flush,
        }
    };
    (0..count).map(&mut step).collect()
}

impl Step {
    /// What `qemu-io` calls it.
    pub(crate) fn command(self) -> String {
        match self {
            Self::Write { offset, length, byte } => format!("write -q -P {byte} {offset} {length}"),
            Self::Zero { offset, length, free: false } => format!("write -q -z {offset} {length}"),
            Self::Zero { offset, length, free: true } => {
                format!("write -q -z -u {offset} {length}")
            }
            Self::Discard { offset, length } => format!("discard -q {offset} {length}"),
            Self::Flush => "flush".to_owned(),
        }
    }

    /// Does it to an image.
    pub(crate) fn apply<S: Storage>(self, image: &Image<S>) {
        match self {
            Self::Write { offset, length, byte } => {
                image.write(offset, &vec![byte; length as usize])
            }
            Self::Zero { offset, length, free } => {
                let how = if free { Zeroing::Free } else { Zeroing::Keep };
                image.write_zeroes(offset, length, how)
            }
            Self::Discard { offset, length } => image.discard(offset, length),
            Self::Flush => image.flush(),
        }
        .unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }
}

/// What a disk must read as.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) bytes: Vec<u8>,
    cluster: u64,
}

impl Expected {
    pub(crate) fn zeroes(size: u64, cluster: u64) -> Self {
        Self { bytes: vec![0; size as usize], cluster }
    }

    pub(crate) fn apply(&mut self, step: Step) {
        let size = self.bytes.len() as u64;
        let (range, byte) = match step {
            Step::Write { offset, length, byte } => (offset..offset + length, byte),
            Step::Zero { offset, length, .. } => (offset..offset + length, 0),
            Step::Discard { offset, length } => {
                // Whole clusters, of which the last one of the disk may be cut short.
                let end = offset + length;
                let end = if end == size { end } else { end - end % self.cluster };
                (offset.next_multiple_of(self.cluster)..end, 0)
            }
            Step::Flush => return,
        };
        if range.start < range.end {
            self.bytes[range.start as usize..range.end as usize].fill(byte);
        }
    }

    /// Compares with all that an image reads; what differs is named by its first byte.
    pub(crate) fn assert_read_from<S: Storage>(&self, image: &Image<S>) {
        assert_eq!(image.info().virtual_size, self.bytes.len() as u64);
        let mut data = vec![0xee; self.bytes.len()];
        image.read(0, &mut data).unwrap();
        // All at once first: byte by byte is slow.
        if data != self.bytes {
            let at = data.iter().zip(&self.bytes).position(|(a, b)| a != b).expect("they differ");
            panic!("byte {at:#x} reads {:#04x} instead of {:#04x}", data[at], self.bytes[at]);
        }
    }
}

/// A temporary directory where flushing is cheap: in memory, where there is such a place.
pub(crate) fn memory_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Nothing is wrong with the image, not even a leak.
#[track_caller]
pub(crate) fn assert_clean(report: &CheckReport) {
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
}

/// Four mapped guest clusters and nothing else, in clusters of 4 KiB:
///
/// ```text
///   cluster   0        1               2               3    4     5 ..= 8
///             header | refcount table | refcount block | L1 | L2 | data of guest clusters 0 ..= 3
/// ```
pub(crate) fn four_clusters() -> Vec<u8> {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 20).cluster_bits(12)).unwrap();
    let options = OpenOptions::new().growth(1);
    let image = Image::open(storage.clone(), options).unwrap();
    image.write(0, &[7; 4 << 12]).unwrap();
    image.close().unwrap();
    storage.to_vec()
}
