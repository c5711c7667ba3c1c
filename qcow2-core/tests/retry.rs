//! A storage on which things fail for a while: nothing that was acknowledged is lost, what could not be written is written again, and
//! what failed cannot land over what came later. A sync that failed is final.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use qcow2_core::blocking::{Image, block_on, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Limits, Storage};
use qcow2_core::{CreateOptions, IoError, OpenOptions, Repair, Zeroing};

use crate::shown::any;

const CLUSTER: u64 = 512;

/// What fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Failing {
    #[default]
    Nothing,
    /// Everything that changes something, for want of room, as long as it lasts.
    Updates,
    /// The update with this number, counted from now.
    Update(u64),
    /// Flushes.
    Flushes,
    /// Writes through.
    WritesThrough,
    /// Nothing yet: a write through has not ended before that is over, and fails if those fail then.
    WritesThroughLater,
}

#[derive(Debug, Default)]
struct Trouble {
    failing: Failing,
    updates: u64,
    /// What failed and may still land, until the storage is settled.
    late: Vec<(u64, Vec<u8>)>,
    late_lengths: Vec<u64>,
}

/// A storage in memory on which operations fail and land late, over whatever is written there meanwhile.
#[derive(Clone, Debug, Default)]
struct Flaky {
    bytes: MemoryStorage,
    trouble: Arc<Mutex<Trouble>>,
}

impl Flaky {
    fn with<R>(&self, step: impl FnOnce(&mut Trouble) -> R) -> R {
        step(&mut self.trouble.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fail(&self, failing: Failing) {
        self.with(|trouble| {
            trouble.failing = failing;
            trouble.updates = 0;
        });
    }

    fn update(&self) -> io::Result<()> {
        self.with(|trouble| {
            let number = trouble.updates;
            trouble.updates += 1;
            let fails = match trouble.failing {
                Failing::Updates => true,
                Failing::Update(failing) => number == failing,
                Failing::Nothing
                | Failing::Flushes
                | Failing::WritesThrough
                | Failing::WritesThroughLater => false,
            };
            if fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })
    }

    /// What failed lands now, wherever it has not been settled.
    fn land(&self) {
        let (late, lengths) = self.with(|trouble| {
            (std::mem::take(&mut trouble.late), std::mem::take(&mut trouble.late_lengths))
        });
        self.bytes.with(|bytes| {
            for (offset, data) in late {
                let range = offset as usize..offset as usize + data.len();
                if let Some(target) = bytes.get_mut(range) {
                    target.copy_from_slice(&data);
                }
            }
            for length in lengths {
                bytes.resize(length as usize, 0);
            }
        });
    }

    fn later(&self, offset: u64, data: Vec<u8>) {
        self.with(|trouble| trouble.late.push((offset, data)));
    }
}

impl Storage for Flaky {
    fn limits(&self) -> Limits {
        self.bytes.limits()
    }

    async fn len(&self) -> io::Result<u64> {
        self.bytes.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        if let Err(error) = self.update() {
            self.with(|trouble| trouble.late_lengths.push(len));
            return Err(error);
        }
        self.bytes.set_len(len).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        self.bytes.read(offset, buf).await
    }

    async fn write(&self, offset: u64, buf: IoBuf, how: Durability) -> (IoBuf, io::Result<()>) {
        if how == Durability::Through {
            let failing = poll_fn(|_| match self.with(|trouble| trouble.failing) {
                Failing::WritesThroughLater => Poll::Pending,
                failing => Poll::Ready(failing),
            });
            if failing.await == Failing::WritesThrough {
                return (buf, Err(io::ErrorKind::StorageFull.into()));
            }
        }
        if let Err(error) = self.update() {
            self.later(offset, buf.to_vec());
            return (buf, Err(error));
        }
        self.bytes.write(offset, buf, how).await
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        if let Err(error) = self.update() {
            self.later(range.start, vec![0; (range.end - range.start) as usize]);
            return Err(error);
        }
        self.bytes.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        if let Err(error) = self.update() {
            self.later(range.start, vec![0; (range.end - range.start) as usize]);
            return Err(error);
        }
        self.bytes.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        if self.with(|trouble| trouble.failing) == Failing::Flushes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.land();
        Ok(())
    }

    async fn settle(&self) -> io::Result<()> {
        // Each unit old or new: here, new. Whatever comes later stays.
        self.land();
        Ok(())
    }
}

fn image(options: OpenOptions) -> (Flaky, Image<AnyStorage>) {
    let storage = Flaky::default();
    create(&any(&storage), &CreateOptions::new(1 << 20).cluster_bits(9)).expect("there is room");
    let image = Image::open(any(&storage), options).expect("it was just made");
    (storage, image)
}

/// The same without blocking calls, with one cluster written and flushed.
fn bare_image() -> (Flaky, qcow2_core::Image<AnyStorage>) {
    let (storage, image) = image(OpenOptions::new());
    image.write(0, &fill(0, 1)).expect("there is room");
    image.close().expect("nothing fails");
    let image = block_on(qcow2_core::Image::open(any(&storage), OpenOptions::new()))
        .expect("it was just closed");
    (storage, image)
}

fn fill(cluster: u64, round: u8) -> Vec<u8> {
    vec![(cluster as u8).wrapping_mul(7).wrapping_add(round) | 1; CLUSTER as usize]
}

/// Goal: a full file system that has room again costs nothing. Method: requests of all kinds until one fails, a flush that fails, then
/// room, a flush, and the whole disk compared after opening it again.
#[test]
fn room_comes_back_and_nothing_is_lost() {
    for lazy in [false, true] {
        for growth in [0, 4 << 20] {
            let options = OpenOptions::new()
                .growth(growth)
                .lazy_refcounts(lazy)
                .cache_pages(4)
                .page_size(512);
            let (storage, image) = image(options);
            let mut expected = vec![vec![0; CLUSTER as usize]; 2048];
            for cluster in (0..600).step_by(3) {
                image.write(cluster * CLUSTER, &fill(cluster, 1)).unwrap();
                expected[cluster as usize] = fill(cluster, 1);
            }
            image.flush().unwrap();
            for cluster in (0..300).step_by(2) {
                image.write(cluster * CLUSTER, &fill(cluster, 2)).unwrap();
                expected[cluster as usize] = fill(cluster, 2);
            }
            image.discard(30 * CLUSTER, 9 * CLUSTER).unwrap();
            expected[30..39].fill(vec![0; CLUSTER as usize]);
            storage.fail(Failing::Updates);
            assert!(image.write(900 * CLUSTER, &fill(900, 3)).is_err());
            for _ in 0..2 {
                let error = image.flush().unwrap_err();
                assert!(matches!(error, IoError::Storage { .. }), "{error:?}");
            }
            assert!(image.grow(2 << 20).is_err());
            // Reads go on, though the cache is full of what cannot be written.
            let mut back = vec![0; CLUSTER as usize];
            for (cluster, expected) in (0..).zip(&expected) {
                image.read(cluster * CLUSTER, &mut back).unwrap();
                assert!(&back == expected, "guest cluster {cluster} in the middle");
            }
            storage.fail(Failing::Nothing);
            image.flush().unwrap();
            image.write(901 * CLUSTER, &fill(901, 4)).unwrap();
            expected[901] = fill(901, 4);
            image.flush().unwrap();
            drop(image);
            storage.land();
            let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
            for (cluster, expected) in (0..).zip(&expected) {
                image.read(cluster * CLUSTER, &mut back).unwrap();
                assert!(&back == expected, "guest cluster {cluster} after opening again");
            }
            image.close().unwrap();
            let report = check(&any(&storage), Repair::None).unwrap();
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
        }
    }
}

type Step = fn(&Image<AnyStorage>) -> Result<(), IoError>;

/// Goal: whichever update fails, and lands when it likes, a second try of the same request succeeds, and nothing is lost. Method: a
/// life that needs every structure there is, with each of its updates failing once in turn.
#[test]
fn each_update_may_fail_once_and_land_late() {
    let steps: [Step; 9] = [
        |image| image.write(0, &[1; 70 * CLUSTER as usize]),
        |image| image.flush(),
        |image| image.write(10 * CLUSTER + 100, &[2; 3000]),
        |image| image.discard(20 * CLUSTER, 8 * CLUSTER),
        |image| image.flush(),
        |image| image.write_zeroes(40 * CLUSTER, 4 * CLUSTER, Zeroing::Keep),
        |image| image.grow(8 << 20),
        |image| image.write(6 << 20, &[3; 250 * CLUSTER as usize]),
        |image| image.flush(),
    ];
    for lazy in [false, true] {
        let mut reference = None;
        for number in 0.. {
            let options =
                OpenOptions::new().growth(0).lazy_refcounts(lazy).cache_pages(4).page_size(512);
            let (storage, image) = image(options);
            storage.fail(Failing::Update(number));
            let mut failed = 0;
            for step in &steps {
                while let Err(error) = step(&image) {
                    failed += 1;
                    assert!(matches!(error, IoError::Storage { .. }), "update {number}: {error}");
                    assert_eq!(failed, 1, "update {number}: {error}");
                }
            }
            let done = storage.with(|trouble| trouble.updates <= number);
            storage.fail(Failing::Nothing);
            drop(image);
            storage.land();
            let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
            let mut disk = vec![0; 8 << 20];
            image.read(0, &mut disk).unwrap();
            image.close().unwrap();
            let reference = reference.get_or_insert_with(|| {
                let mut reference = vec![0; 8 << 20];
                reference[..70 * 512].fill(1);
                reference[10 * 512 + 100..][..3000].fill(2);
                reference[20 * 512..28 * 512].fill(0);
                reference[40 * 512..44 * 512].fill(0);
                reference[6 << 20..][..250 * 512].fill(3);
                reference
            });
            assert!(disk == *reference, "update {number}, lazy {lazy}");
            let report = check(&any(&storage), Repair::None).unwrap();
            assert_eq!(report.corruptions, 0, "update {number}: {:#?}", report.findings);
            if done {
                assert!(number > 30, "{number} updates");
                break;
            }
        }
    }
}

/// Goal: a sync that failed is final, whatever its error says. Method: a flush, and a write through, that fail as if for want of room.
#[test]
fn a_sync_that_failed_is_final() {
    for failing in [Failing::Flushes, Failing::WritesThrough] {
        let (storage, image) = bare_image();
        storage.fail(failing);
        let buf = IoBuf::zeroed(512, 1);
        assert!(
            block_on(image.write(0, buf, Durability::Through)).1.is_err()
                || failing == Failing::Flushes
        );
        if failing == Failing::Flushes {
            let buf = IoBuf::zeroed(512, 1);
            block_on(image.write(1024, buf, Durability::Cached)).1.unwrap();
            assert!(block_on(image.flush()).is_err());
        }
        storage.fail(Failing::Nothing);
        let again = block_on(image.flush());
        assert!(matches!(again, Err(IoError::Poisoned(_))), "{failing:?}: {again:?}");
        let buf = IoBuf::zeroed(512, 1);
        let again = block_on(image.write(0, buf, Durability::Cached)).1;
        assert!(matches!(again, Err(IoError::Poisoned(_))), "{failing:?}: {again:?}");
        assert!(block_on(image.read(0, IoBuf::zeroed(512, 1))).1.is_ok());
        assert!(block_on(image.close()).is_err());
    }
}

/// Goal: failed requests leave nothing behind that grows. Method: many of them, all elsewhere.
#[test]
fn failed_requests_do_not_pile_up() {
    let (storage, image) = image(OpenOptions::new().growth(0));
    image.write(0, &[1; 512 << 10]).unwrap();
    image.flush().unwrap();
    storage.fail(Failing::Updates);
    for cluster in 0..1000 {
        assert!(image.write(cluster * CLUSTER, &[2; CLUSTER as usize]).is_err());
    }
    let waiting = storage.with(|trouble| trouble.late.len());
    assert!(waiting < 100, "{waiting} failed operations were never settled");
}

/// Goal: reads go on where dirty pages fill the cache and cannot be written. Method: more tables than the cache has pages, most of them
/// changed; then nothing can be written, and those that are not in the cache are read.
#[test]
fn reads_go_on_past_a_cache_full_of_changes() {
    let options = OpenOptions::new().cache_pages(40).page_size(512).growth(0);
    let (storage, image) = image(options);
    image.grow(4 << 20).unwrap();
    let at = |table: u64| table * 64 * CLUSTER;
    (0..63).for_each(|table| image.write(at(table), &fill(table, 1)).unwrap());
    image.flush().unwrap();
    (0..45).for_each(|table| image.write_zeroes(at(table), CLUSTER, Zeroing::Keep).unwrap());
    storage.fail(Failing::Updates);
    let mut back = vec![0; CLUSTER as usize];
    for table in 45..63 {
        image.read(at(table), &mut back).unwrap();
        assert!(back == fill(table, 1), "table {table}");
    }
}

/// Goal: a cluster that was another's is not mapped before a flush of its new data has succeeded. Method: one that is taken again, and
/// a flush that fails; what the storage holds then is opened. Refcounts are lazy, so that nothing else asks for a flush.
#[test]
fn a_cluster_taken_again_is_not_mapped_before_its_data_is_durable() {
    let options = OpenOptions::new().growth(0).lazy_refcounts(true);
    let (storage, image) = image(options);
    (0..2).for_each(|cluster| image.write(cluster * CLUSTER, &fill(cluster, 1)).unwrap());
    image.discard(0, CLUSTER).unwrap();
    image.flush().unwrap();
    image.flush().unwrap();
    let length = storage.bytes.to_vec().len();
    image.write(5 * CLUSTER, &fill(5, 2)).unwrap();
    assert_eq!(storage.bytes.to_vec().len(), length, "the cluster was taken again");
    storage.fail(Failing::Flushes);
    assert!(image.flush().is_err());
    let copy = MemoryStorage::new(storage.bytes.to_vec());
    let copy = Image::open(any(&copy), OpenOptions::read_only()).unwrap();
    let mut back = vec![1; CLUSTER as usize];
    copy.read(5 * CLUSTER, &mut back).unwrap();
    assert!(back == [0; CLUSTER as usize]);
}

/// Goal: a flush ends after every write through that was there before it, and fails if one of those does. Method: a write through that
/// does not end for a while, the first one or not.
#[test]
fn a_flush_hears_of_the_writes_through_beside_it() {
    let buf = || IoBuf::zeroed(512, 1);
    for (ending, earlier) in [Failing::Nothing, Failing::WritesThrough]
        .into_iter()
        .flat_map(|ending| [(ending, 0), (ending, 1)])
    {
        let (storage, image) = bare_image();
        for _ in 0..earlier {
            block_on(image.write(0, buf(), Durability::Through)).1.unwrap();
        }
        let mut context = Context::from_waker(Waker::noop());
        storage.fail(Failing::WritesThroughLater);
        let mut through = pin!(image.write(0, buf(), Durability::Through));
        assert!(through.as_mut().poll(&mut context).is_pending());
        block_on(image.write(1024, buf(), Durability::Cached)).1.unwrap();
        let mut flush = pin!(image.flush());
        assert!(flush.as_mut().poll(&mut context).is_pending(), "{ending:?} after {earlier}");
        storage.fail(ending);
        let good = ending == Failing::Nothing;
        let Poll::Ready((_, ended)) = through.as_mut().poll(&mut context) else {
            panic!("nothing holds it any more")
        };
        assert_eq!(ended.is_ok(), good);
        let Poll::Ready(flushed) = flush.as_mut().poll(&mut context) else {
            panic!("it waits for a write through that has ended")
        };
        assert_eq!(flushed.is_ok(), good, "{ending:?} after {earlier}: {flushed:?}");
    }
}

/// Goal: a flush waits for no write through that has ended. Method: it is ready when it is asked for the first time.
#[test]
fn a_flush_after_a_write_through_does_not_wait() {
    let (_, image) = bare_image();
    let buf = || IoBuf::zeroed(512, 1);
    block_on(image.write(0, buf(), Durability::Through)).1.unwrap();
    block_on(image.write(1024, buf(), Durability::Cached)).1.unwrap();
    let mut flush = pin!(image.flush());
    let mut context = Context::from_waker(Waker::noop());
    assert!(matches!(flush.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
}
