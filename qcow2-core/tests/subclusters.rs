//! Images with extended L2 entries: what their subclusters read as, what a small write costs, what a repair makes of them.

use std::sync::Arc;

use qcow2_core::blocking::{Image, block_on, check, create, create_over};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{
    Backing, CreateError, CreateOptions, Format, Image as AsyncImage, OpenOptions, Raw, Repair,
    Source, Zeroing,
};

use crate::draws::draws;
use crate::shown::same;

const CLUSTER: usize = 16 << 10;
const SUBCLUSTER: usize = CLUSTER / 32;
const SIZE: usize = 9 * CLUSTER + 3 * SUBCLUSTER;

fn options() -> CreateOptions {
    CreateOptions::new(SIZE as u64).cluster_bits(14).extended_l2(true)
}

/// An image of `options` in memory, perhaps over a layer of so many bytes.
struct Kept {
    storage: MemoryStorage,
    layer: Option<Vec<u8>>,
}

impl Kept {
    fn new(options: &CreateOptions, below: Option<usize>) -> Self {
        let storage = MemoryStorage::default();
        match below {
            Some(_) => create_over(&storage, options, &Backing::new("below", Format::Raw)),
            None => create(&storage, options),
        }
        .expect("there is room");
        let layer = below.map(|len| (0..len).map(|at| 1 + (at / 512 % 99) as u8).collect());
        Self { storage, layer }
    }

    fn open(&self) -> Image<MemoryStorage> {
        let options = OpenOptions::new().growth(0);
        match &self.layer {
            Some(layer) => {
                let raw = block_on(Raw::new(MemoryStorage::new(layer.clone())));
                let raw = Arc::new(raw.expect("memory does not fail"));
                Image::open_over(self.storage.clone(), raw, options)
            }
            None => Image::open(self.storage.clone(), options),
        }
        .expect("in order")
    }

    /// The only L2 table's entry of a guest cluster, in its halves.
    fn entry(&self, cluster: usize) -> (u64, u64) {
        let bytes = self.storage.to_vec();
        let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let table = (word(word(40) as usize) & !(1 << 63)) as usize;
        (word(table + 16 * cluster), word(table + 16 * cluster + 8))
    }
}

fn live(seed: u64, options: &CreateOptions, below: Option<usize>) {
    let what = format!("seed {seed}, {options:?}, below {below:?}");
    let kept = Kept::new(options, below);
    let mut disk = kept.layer.clone().unwrap_or_default();
    disk.resize(SIZE, 0);
    let mut draw = draws(seed);
    for _ in 0..4 {
        let image = kept.open();
        for step in 0..40 {
            let at = draw(SIZE / 512) * 512;
            let most = [3, 40, 100][draw(3)];
            let end = (at + (1 + draw(most)) * 512).min(SIZE);
            let (from, len) = (at as u64, (end - at) as u64);
            match draw(8) {
                0..=3 => {
                    image.write(from, &vec![100 + step; end - at]).expect("there is room");
                    disk[at..end].fill(100 + step);
                }
                4 | 5 => {
                    let how = [Zeroing::Free, Zeroing::Keep][draw(2)];
                    image.write_zeroes(from, len, how).expect("there is room");
                    disk[at..end].fill(0);
                }
                6 => {
                    image.discard(from, len).expect("there is room");
                    let whole_end = if end == SIZE { SIZE } else { end / CLUSTER * CLUSTER };
                    let start = at.next_multiple_of(CLUSTER);
                    if start < whole_end {
                        disk[start..whole_end].fill(0);
                    }
                }
                _ => image.flush().expect("nothing fails"),
            }
            let mut found = vec![0xee; SIZE];
            image.read(0, &mut found).expect("nothing fails");
            same(&found, &disk, &format!("{what}, step {step}"));
        }
        image.close().expect("nothing fails");
        let report = check(&kept.storage, Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{what}: {report:?}");
    }
}

/// Goal: whatever is written, zeroed and discarded, in parts of subclusters and across them, is what is read, in this session and in the
/// next. Method: random requests against an array, without a layer, over a shorter and over a longer one.
#[test]
fn an_image_with_subclusters_is_a_disk() {
    for seed in 0..40 {
        for below in [None, Some(4 * CLUSTER + 5 * 512), Some(SIZE)] {
            let lazy = seed % 2 == 0;
            live(seed, &options().lazy_refcounts(lazy), below);
        }
    }
}

/// Goal: a small write fills up no more than its subclusters. Method: 512 bytes into subclusters of 2 KiB, over a layer: the entry, and
/// what the storage has of the cluster beside them.
#[test]
fn a_small_write_fills_up_its_subcluster() {
    let large = 64 << 10;
    let options = CreateOptions::new(4 << 20).extended_l2(true);
    let kept = Kept::new(&options, Some(4 << 20));
    let image = kept.open();
    image.write(5 * 2048 + 512, &[200; 512]).expect("there is room");
    image.close().expect("nothing fails");
    let layer = kept.layer.clone().expect("there is one");
    let raw = block_on(Raw::new(MemoryStorage::new(layer))).expect("memory does not fail");
    let read_only = OpenOptions::read_only();
    let opened = AsyncImage::open_over(kept.storage.clone(), Arc::new(raw), read_only);
    let image = block_on(opened).expect("in order");
    let map = block_on(image.map_read(0, large)).expect("nothing fails");
    let kinds: Vec<_> = map.extents().iter().map(|it| (it.len, it.source.host())).collect();
    let host = kinds[1].1.expect("it was written") - 5 * 2048;
    let rest = large - 6 * 2048;
    assert_eq!(kinds, [(5 * 2048, None), (2048, Some(host + 5 * 2048)), (rest, None)]);
    assert!(map.extents().iter().all(|it| it.source != Source::Zeroes), "{map:?}");
    assert_eq!(kept.entry(0), (1 << 63 | host, 1 << 5));
    let bytes = kept.storage.to_vec();
    let cluster = &bytes[host as usize..][..large as usize];
    let written = cluster.iter().position(|byte| *byte != 0).expect("something was");
    let end = cluster.iter().rposition(|byte| *byte != 0).expect("something was") + 1;
    assert_eq!((written, end), (5 * 2048, 6 * 2048));
}

/// Goal: zeroing whole subclusters sets their bits and keeps their cluster; a cluster of which nothing is left but that can be written
/// again in its place.
#[test]
fn zeroed_subclusters_are_bits() {
    let kept = Kept::new(&options(), None);
    let image = kept.open();
    image.write(0, &[7; CLUSTER]).expect("there is room");
    image.write_zeroes(3 * 512, 4 * 512, Zeroing::Free).expect("there is room");
    image.flush().expect("nothing fails");
    let (first, bits) = kept.entry(0);
    assert_eq!(bits, 0x78 << 32 | u64::from(!0x78_u32));
    image.write(4 * 512, &[8; 512]).expect("there is room");
    image.close().expect("nothing fails");
    assert_eq!(kept.entry(0), (first, 0x68 << 32 | u64::from(!0x68_u32)));
}

/// Goal: what version 2 cannot say and what clusters are too small for is refused by name.
#[test]
fn what_has_no_subclusters_is_refused() {
    let refused = |options: CreateOptions| {
        let error = create(&MemoryStorage::default(), &options).expect_err("it cannot be");
        assert!(matches!(error, CreateError::Option(_)), "{error:?}");
        error.to_string()
    };
    let error = refused(options().version(2));
    assert!(error.contains("extended L2 entries need version 3"), "{error}");
    let error = refused(options().cluster_bits(13));
    assert!(error.contains("extended L2 entries need clusters of 16 KiB"), "{error}");
}

/// Goal: entries that point past the end of the file become zeroes where they had data, and go on to show the layer where they had none.
#[test]
fn data_past_the_end_becomes_zeroes() {
    let kept = Kept::new(&options(), Some(SIZE));
    let image = kept.open();
    image.write(0, &[7; 512]).expect("there is room");
    image.write(CLUSTER as u64, &[7; 512]).expect("there is room");
    image.close().expect("nothing fails");
    let mut bytes = kept.storage.to_vec();
    let last = (kept.entry(1).0 & !(1 << 63)) as usize;
    assert!(last > (kept.entry(0).0 & !(1 << 63)) as usize);
    bytes.truncate(last);
    let cut = Kept { storage: MemoryStorage::new(bytes), layer: kept.layer.clone() };
    check(&cut.storage, Repair::ZeroPastEnd).expect("an image");
    assert_eq!(cut.entry(1), (0, 1 << 32));
    let mut found = vec![0; CLUSTER];
    cut.open().read(CLUSTER as u64, &mut found).expect("nothing fails");
    assert_eq!(found[..512], [0; 512]);
    assert_eq!(
        found[512..],
        kept.layer.as_ref().expect("there is one")[CLUSTER + 512..2 * CLUSTER]
    );
    let report = check(&cut.storage, Repair::None).expect("an image");
    assert!(report.findings.is_empty(), "{report:?}");
}
