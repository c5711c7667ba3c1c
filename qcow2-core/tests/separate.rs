//! Guest clusters that share a host cluster get one of their own, and read as they did.

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CreateOptions, IoError, OpenOptions, Problem, Repair};

use crate::draws::draws;

const COPIED: u64 = 1 << 63;
const CLUSTERS: usize = 100;

struct Sample {
    bytes: Vec<u8>,
    options: CreateOptions,
}

impl Sample {
    /// A closed image that holds something in most of its first guest clusters, or in parts of them.
    fn new(options: CreateOptions, draw: &mut impl FnMut(usize) -> usize) -> Self {
        let storage = MemoryStorage::default();
        create(&storage, &options).expect("there is room");
        let image = Image::open(storage.clone(), OpenOptions::new()).expect("it was just made");
        let cluster = 1u64 << options.cluster_bits;
        for guest in 0..CLUSTERS as u64 {
            let (from, len) = match draw(4) {
                0 => continue,
                1 => (cluster / 4, cluster / 2),
                _ => (0, cluster),
            };
            let len = len.min(options.virtual_size - guest * cluster - from);
            let data = vec![1 + guest as u8; len as usize];
            image.write(guest * cluster + from, &data).expect("there is room");
        }
        image.close().expect("nothing fails");
        Self { bytes: storage.to_vec(), options }
    }

    fn get(&self, at: u64) -> u64 {
        let bytes = &self.bytes[at as usize..][..8];
        u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// Where the L2 entry of a guest cluster is.
    fn entry(&self, guest: u64) -> Option<u64> {
        let size = if self.options.extended_l2 { 16 } else { 8 };
        let per_table = (1 << self.options.cluster_bits) / size;
        let table = self.get(self.get(40) + guest / per_table * 8) & !COPIED;
        (table != 0).then_some(table + guest % per_table * size)
    }

    /// Lets one guest cluster lose what it has, and hold what another has.
    fn share(&mut self, from: u64, to: u64) -> bool {
        let (Some(from), Some(to)) = (self.entry(from), self.entry(to)) else { return false };
        let (source, lost) = (self.get(from) & !COPIED, self.get(to) & !COPIED);
        let is_new = source > 1 && source != lost;
        if is_new {
            let len = if self.options.extended_l2 { 16 } else { 8 };
            let entry = self.bytes[from as usize..][..len].to_vec();
            self.bytes[to as usize..][..len].copy_from_slice(&entry);
        }
        is_new
    }
}

fn read(storage: &MemoryStorage, size: u64) -> Vec<u8> {
    let image = Image::open(storage.clone(), OpenOptions::read_only()).expect("it can be read");
    let mut found = vec![0xee; size as usize];
    image.read(0, &mut found).expect("nothing fails");
    found
}

/// Goal: shared clusters are separated, nothing reads as anything else, and the image is sound afterwards. Method: images of every kind,
/// in which some entries are made like others, repaired.
#[test]
fn shared_clusters_are_separated() {
    let mut shared = 0;
    for seed in 0..60 {
        let mut draw = draws(seed);
        let bits = if seed % 5 == 4 { 14 } else { [9, 10, 12][seed as usize % 3] };
        let size = ((CLUSTERS as u64) << bits) - 512 * (seed % 3);
        let options = CreateOptions::new(size).cluster_bits(bits).extended_l2(bits == 14);
        let options = options.lazy_refcounts(seed % 2 == 1);
        let options = if seed % 7 == 6 {
            options.extended_l2(false).lazy_refcounts(false).version(2)
        } else {
            options
        };
        let mut sample = Sample::new(options, &mut draw);
        for _ in 0..1 + draw(12) {
            let (from, to) = (draw(CLUSTERS) as u64, draw(CLUSTERS) as u64);
            sample.share(from, to);
        }
        let what = format!("seed {seed}, {options:?}");
        let storage = MemoryStorage::new(sample.bytes);
        let report = check(&storage, Repair::All).expect("an image");
        assert!(report.is_writable(), "{what}: {report:#?}");
        let is_shared = |problem: &Problem| matches!(problem, Problem::Shared { .. });
        let found = report.findings.iter().filter(|finding| is_shared(&finding.problem)).count();
        let before = read(&storage, size);

        let image = Image::open(storage.clone(), OpenOptions::new()).expect("it can be written");
        let separated = image.separate().expect("there is room");
        assert!(separated >= 2 * found as u64, "{what}: {separated} for {found}");
        assert_eq!(separated == 0, found == 0, "{what}");
        shared += found;
        // Durable without a close.
        assert_eq!(read(&MemoryStorage::new(storage.to_vec()), size), before, "{what}");
        assert_eq!(image.separate().expect("nothing is to do"), 0, "{what}");
        image.close().expect("nothing fails");
        assert_eq!(read(&storage, size), before, "{what}");
        let report = check(&storage, Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{what}: {report:#?}");
    }
    assert!(shared > 100, "{shared} clusters were shared");
}

/// Goal: what cannot be separated says so, and a sound image costs no change.
#[test]
fn nothing_is_separated_where_nothing_is_shared() {
    let sample = Sample::new(CreateOptions::new(64 << 10).cluster_bits(9), &mut draws(1));
    let storage = MemoryStorage::new(sample.bytes.clone());
    let image = Image::open(storage.clone(), OpenOptions::read_only()).expect("it can be read");
    assert!(matches!(image.separate(), Err(IoError::ReadOnly)));
    drop(image);
    let image = Image::open(storage.clone(), OpenOptions::new()).expect("it can be written");
    assert_eq!(image.separate().expect("nothing is to do"), 0);
    image.close().expect("nothing fails");
    assert!(storage.to_vec() == sample.bytes);
}
