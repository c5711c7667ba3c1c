//! What no campaign draws, because no plan can say it: options and images that are rare, and requests of an unusual caller.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::thread;

use faultfs::chooser::{Always, Exhaustive};
use faultfs::direct::{Direct, DirectOptions, run};
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use faultfs::values::Values;
use model::build::{Initial, build};
use model::op::{Geometry, Op};
use qcow2_core::blocking::{self, block_on, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Storage};
use qcow2_core::{CreateOptions, Image, IoError, OpenOptions, Repair, Rules, WriteMap};
use qcow2_crashtest::explore;
use qcow2_crashtest::explore::ExploreSettings;
use qcow2_crashtest::explore::alphabet::{Symbol, initials, operations, worlds};
use qcow2_crashtest::life::{Request, perform};
use qcow2_crashtest::subject::{Qcow2Core, Session, Subject as _};
use qcow2_crashtest::trial::disk_of;

use crate::common::{Expected, assert_clean, four_clusters, steps};

/// Goal: a disk of no bytes is an image, and grows. Method: as it is created here, and as QEMU does it, without an L1 table.
#[test]
fn a_disk_of_nothing_grows() {
    const END: usize = 1 << 20;
    for (cluster_bits, lazy_refcounts) in [(9, false), (9, true), (16, false), (21, true)] {
        for without_table in [false, true] {
            let storage = MemoryStorage::default();
            let options =
                CreateOptions::new(0).cluster_bits(cluster_bits).lazy_refcounts(lazy_refcounts);
            create(&storage, &options).unwrap();
            assert_clean(&check(&storage, Repair::None).unwrap());
            if without_table {
                // Its number of entries, and its place.
                storage.with(|bytes| bytes[36..48].fill(0));
                assert_eq!(check(&storage, Repair::Leaks).unwrap().leaks_fixed, 1);
            }
            let image = blocking::Image::open(storage.clone(), OpenOptions::new()).unwrap();
            image.read(0, &mut []).unwrap();
            assert!(matches!(image.write(0, &[1]), Err(IoError::OutOfRange { size: 0, .. })));
            image.flush().unwrap();
            image.grow(512).unwrap();
            image.write(0, &[7; 512]).unwrap();
            image.grow(END as u64).unwrap();
            image.write(END as u64 - 512, &[8; 512]).unwrap();
            image.close().unwrap();
            assert_clean(&check(&storage, Repair::None).unwrap());
            let image = blocking::Image::open(storage, OpenOptions::read_only()).unwrap();
            let mut back = vec![1; END];
            image.read(0, &mut back).unwrap();
            assert!(back[..512] == [7; 512] && back[END - 512..] == [8; 512]);
            assert!(back[512..END - 512].iter().all(|&byte| byte == 0));
        }
    }
}

/// Goal: the largest disk of the smallest clusters, whose L1 table has 32 MiB, works to its last unit, and does not grow.
#[test]
fn the_largest_disk_works_to_its_end() {
    const SIZE: u64 = 128 << 30;
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(SIZE).cluster_bits(9)).unwrap();
    let image = blocking::Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.write(SIZE - 512, &[7; 512]).unwrap();
    assert!(matches!(image.grow(SIZE + 512), Err(IoError::Resize(_))));
    image.close().unwrap();
    assert_clean(&check(&storage, Repair::None).unwrap());
    let image = blocking::Image::open(storage, OpenOptions::read_only()).unwrap();
    let mut back = [1; 1024];
    image.read(SIZE - 1024, &mut back).unwrap();
    assert!(back[..512] == [0; 512] && back[512..] == [7; 512]);
}

/// Goal: what a header says that is of no use here stays where it is, whatever is written and however often the header changes.
#[test]
fn what_else_a_header_says_stays() {
    let changes: [(&str, usize, &[u8]); 6] = [
        ("a header that ends before the compression type", 103, &[104]),
        ("padding that means something some day", 105, &[1, 2, 3, 4, 5, 6, 7]),
        ("a header that is longer", 103, &[120]),
        ("a place for snapshots, and none there", 64, &[0, 0, 1, 0, 0, 0, 0, 0]),
        (
            "a place for the name of a backing file, and no name",
            8,
            &[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0],
        ),
        ("compatible features", 80, &[0x80, 0, 0, 0, 0, 0, 1, 0]),
    ];
    for (what, at, bytes) in changes {
        let mut image = four_clusters();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        if bytes == [120] {
            // A field that is not known here.
            image[112..120].fill(0xab);
        }
        let kept = |image: &[u8]| {
            [&image[64..72], &image[8..20], &image[80..96], &image[100..136]].concat()
        };
        let before = kept(&image);
        let storage = MemoryStorage::new(image);
        assert_clean(&check(&storage, Repair::All).unwrap());
        let options = OpenOptions::new().lazy_refcounts(true);
        let image = blocking::Image::open(storage.clone(), options).unwrap();
        image.write(5 << 12, &[7; 512]).unwrap();
        image.grow(6 << 20).unwrap();
        image.write((6 << 20) - 512, &[8; 512]).unwrap();
        assert!(image.info().dirty, "{what}");
        drop(image);
        let image = blocking::Image::open(storage.clone(), options).unwrap();
        image.close().unwrap();
        assert_clean(&check(&storage, Repair::Rebuild).unwrap());
        assert_eq!(kept(&storage.to_vec()), before, "{what}");
    }
}

/// Goal: pages may be as long as they may be, and no longer than a cluster. Method: scattered requests, two sessions.
#[test]
fn pages_may_have_64_kib() {
    for (cluster_bits, page_size) in
        [(9, 65_536), (13, 8192), (16, 16_384), (16, 65_536), (18, 65_536)]
    {
        let (cluster, size) = (1 << cluster_bits, 30 << cluster_bits);
        let storage = MemoryStorage::default();
        create(&storage, &CreateOptions::new(size).cluster_bits(cluster_bits)).unwrap();
        let mut expected = Expected::zeroes(size, cluster);
        for session in 0..2 {
            let options = OpenOptions::new().page_size(page_size).cache_pages(1);
            let image = blocking::Image::open(storage.clone(), options).unwrap();
            for step in steps(u64::from(cluster_bits) + session, 40, size, cluster) {
                step.apply(&image);
                expected.apply(step);
            }
            image.close().unwrap();
            assert_clean(&check(&storage, Repair::None).unwrap());
            let image = blocking::Image::open(storage.clone(), OpenOptions::read_only()).unwrap();
            expected.assert_read_from(&image);
        }
    }
}

/// Goal: a file that grows by what it needs and no more, and one about which nothing is said, lose nothing in a power cut. Method: every
/// request from every initial image that is not too dear, every power cut in it.
#[test]
fn growth_and_cache_by_need_and_by_own_choice_are_explored() {
    let cheap = initials().into_iter().filter(|&at| at != Initial::RefcountTableOneShort);
    let cheap: Vec<Initial> = cheap.collect();
    let mut all = worlds(&[1024], &[false, true], &cheap);
    let by_itself = all.clone().into_iter().map(|mut world| {
        world.session = Session { growth: 0, cache_pages: 0, page_size: 0, ..world.session };
        world
    });
    let by_itself: Vec<_> = by_itself.collect();
    // A step of one byte is none.
    all.iter_mut().for_each(|world| world.session.growth = 1);
    all.extend(by_itself);
    let settings = ExploreSettings::new(all, 1);
    let report = explore::run(&Qcow2Core::default(), &settings, |_, _, _, _| {});
    let found = report.found.map(|found| found.failure);
    assert!(found.is_none(), "{found:?}");
    assert!(report.broken.is_none() && report.complete);
    assert!(report.worlds.iter().all(|explored| explored.counts.leaves > 0));
}

/// Goal: whoever does the I/O of a write himself may finish it, give it up, fail, or vanish in the middle of it, and nothing leaks.
#[test]
fn a_map_may_be_committed_failed_or_dropped() {
    const CLUSTER: u64 = 4096;
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 20).cluster_bits(12)).unwrap();
    let image = block_on(Image::open(storage.clone(), OpenOptions::new())).unwrap();
    let fill = |map: &mut WriteMap<'_, MemoryStorage>, byte: u8| {
        map.begin();
        for extent in map.extents() {
            let data = IoBuf::copy_of(&vec![byte; extent.len as usize], 512);
            block_on(image.storage().write(extent.offset(), data, Durability::Cached)).1.unwrap();
        }
    };
    // Whole clusters, the rest of which nobody has to fill.
    let map = |cluster: u64| block_on(image.map_write(cluster * CLUSTER, 2 * CLUSTER)).unwrap();
    let mut done = map(0);
    fill(&mut done, 7);
    block_on(done.commit()).unwrap();
    drop(map(10));
    let mut failed = map(20);
    fill(&mut failed, 8);
    failed.fail();
    let mut vanished = map(30);
    fill(&mut vanished, 9);
    drop(vanished);
    let holds = |image: &Image<MemoryStorage>, cluster: u64, byte: u8| {
        let buf = IoBuf::zeroed(2 * CLUSTER as usize, 512);
        let (data, result) = block_on(image.read(cluster * CLUSTER, buf));
        result.unwrap();
        assert!(data.iter().all(|&found| found == byte), "clusters {cluster} and the next");
    };
    for (cluster, byte) in [(0, 7), (10, 0), (20, 0), (30, 0)] {
        holds(&image, cluster, byte);
    }
    // Nobody is kept out for good.
    for cluster in [10, 20, 30] {
        let mut again = map(cluster);
        fill(&mut again, 5);
        block_on(again.commit()).unwrap();
        holds(&image, cluster, 5);
    }
    block_on(image.close()).unwrap();
    let report = check(&storage, Repair::None).unwrap();
    assert_clean(&report);
    assert_eq!(report.allocated_clusters, 8);
}

/// Goal: an image that is given up is as after a crash: what was flushed is there.
#[test]
fn an_abandoned_image_holds_what_was_flushed() {
    for lazy_refcounts in [false, true] {
        let storage = MemoryStorage::default();
        let options = CreateOptions::new(1 << 20).lazy_refcounts(lazy_refcounts);
        create(&storage, &options).unwrap();
        let image = block_on(Image::open(storage, OpenOptions::new())).unwrap();
        let data = || IoBuf::copy_of(&[7; 512], 512);
        block_on(image.write(0, data(), Durability::Cached)).1.unwrap();
        block_on(image.flush()).unwrap();
        block_on(image.write(1 << 19, data(), Durability::Cached)).1.unwrap();
        let storage = image.abandon();
        let image = blocking::Image::open(storage.clone(), OpenOptions::new()).unwrap();
        let mut back = [0; 512];
        image.read(0, &mut back).unwrap();
        assert_eq!(back, [7; 512]);
        image.close().unwrap();
        assert_eq!(check(&storage, Repair::None).unwrap().corruptions, 0);
    }
}

/// Goal: a fork is in the state of the image, to the last thing that bears on what it does next, and shares nothing with it.
/// Method: after each request of some, a fork; it does the other requests, as the image does after it, and every I/O is the same.
/// Pages are few and short, so that all kinds of them are dirty, waiting and evicted at every moment.
#[test]
fn a_fork_is_the_image_that_the_same_requests_lead_to() {
    let subject = Qcow2Core::default();
    for world in worlds(&[512, 4096], &[false, true], &[Initial::Fresh, Initial::Fragmented]) {
        let symbols = [Symbol::ALL.as_slice(), &Symbol::ALL].concat();
        let ops = operations(&symbols, &world.geometry);
        let (disk, _) = world.start(&subject).unwrap();
        let perform = |image: &Image<AnyStorage>, op: &Op| {
            let size = image.info().virtual_size;
            let request = op.clip(size).filter(|op| *op != Op::Reopen).map(Request::Op);
            run(perform(image, request.as_ref())).unwrap().unwrap();
        };
        let end = |direct: &Direct<Always>, image: &Image<AnyStorage>| {
            let remains = direct.power_off();
            let events = remains.trace.unwrap().events().to_vec();
            (events, remains.disk.state_hash(), image.info())
        };
        let options = DirectOptions { trace: true, ..DirectOptions::default() };
        let direct = Direct::with_options(disk, Always(0), options);
        let image =
            run(subject.open(AnyStorage::new(direct.clone()), world.session)).unwrap().unwrap();
        let mut forks = Vec::new();
        for op in &ops {
            perform(&image, op);
            forks.iter().for_each(|(_, fork)| perform(fork, op));
            let copy = direct.fork();
            let fork = image.fork(AnyStorage::new(copy.clone()), None);
            forks.push((copy, fork.expect("nothing is in flight")));
        }
        let expected = end(&direct, &image);
        assert!(expected.0.len() > 100, "{} events", expected.0.len());
        for (at, (copy, fork)) in forks.iter().enumerate() {
            assert_eq!(end(copy, fork), expected, "after {:?} of {symbols:?}", symbols[at]);
        }
    }
}

/// Goal: what is in flight has no copy, so there is no fork. Method: a write that never ends, a read in the middle of its I/O, a
/// write that was dropped there.
#[test]
fn an_image_with_a_request_in_flight_has_no_fork() {
    let subject = Qcow2Core::default();
    let world = worlds(&[512], &[false], &[Initial::Fresh])[0];
    for crash_at in [None, Some(0)] {
        let (disk, _) = world.start(&subject).unwrap();
        let options = DirectOptions { crash_at, ..DirectOptions::default() };
        let direct = Direct::with_options(disk, Always(0), options);
        let image =
            run(subject.open(AnyStorage::new(direct.clone()), world.session)).unwrap().unwrap();
        let has_fork = || image.fork(AnyStorage::new(direct.fork()), None).is_some();
        assert!(has_fork());
        let ended = {
            let mut write = pin!(image.write(0, IoBuf::zeroed(512, 512), Durability::Cached));
            let ended = write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            assert_eq!(has_fork(), ended);
            ended
        };
        assert_eq!(ended, crash_at.is_none());
        assert_eq!(has_fork(), ended, "it was dropped");
        if ended {
            direct.power_off();
            let mut read = pin!(image.read(0, IoBuf::zeroed(512, 512)));
            assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let other = Direct::new(PossibleDisk::new(&Values::new(), 1), Always(0));
            assert!(image.fork(AnyStorage::new(other), None).is_none());
        }
    }
}

/// Goal: plain calls of several threads within one unit lose nothing of one another. Method: each thread has bytes of its own there, and
/// reads back what it wrote.
#[test]
fn threads_may_share_a_unit() {
    const THREADS: usize = 4;
    const OWN: usize = 100;
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 20).cluster_bits(9)).unwrap();
    let image = blocking::Image::open(storage.clone(), OpenOptions::new()).unwrap();
    thread::scope(|scope| {
        for own in 0..THREADS {
            let image = &image;
            scope.spawn(move || {
                for round in 0..2000 {
                    let mine = [(own + round * THREADS) as u8; OWN];
                    let at = (own * OWN) as u64;
                    image.write(at, &mine).unwrap();
                    let mut back = [0; OWN];
                    image.read(at, &mut back).unwrap();
                    assert!(back == mine, "thread {own}, round {round}");
                }
            });
        }
    });
    image.close().unwrap();
    assert_clean(&check(&storage, Repair::None).unwrap());
}

/// What a guest reads.
fn contents(image: &[u8]) -> Vec<u8> {
    let storage = MemoryStorage::new(image.to_vec());
    let image = blocking::Image::open(storage, OpenOptions::read_only()).unwrap();
    let mut data = vec![0xee; image.info().virtual_size as usize];
    image.read(0, &mut data).unwrap();
    data
}

/// Goal: each kind of repair can be cut short anywhere: the guest reads what it read, and the same repair, once it ends, leaves what
/// is safe to write. Method: images with an entry past the end of the file besides, every state of a power cut at each update.
#[test]
fn every_repair_may_be_cut_short() {
    const COPIED: u64 = 1 << 63;
    let word =
        |image: &[u8], at: u64| u64::from_be_bytes(image[at as usize..][..8].try_into().unwrap());
    let mut states = 0;
    for (version, initial, lazy) in [
        (3, Initial::Fragmented, false),
        (3, Initial::Leaky, false),
        (3, Initial::Dirty, true),
        (2, Initial::Fragmented, false),
        (2, Initial::Leaky, false),
    ] {
        let geometry = Geometry { version, lazy_refcounts: lazy, ..Geometry::plain(9, 16 << 10) };
        let mut built = build(&geometry, initial).unwrap();
        let image = built.to_bytes();
        let table = word(&image, word(&image, 40)) & !COPIED;
        let free = (0..32).rev().find(|entry| word(&image, table + entry * 8) == 0).unwrap();
        let past_end = (built.length + 20 * 512) | COPIED;
        let unit = built.units.iter_mut().find(|(unit, _)| *unit == table / 512).unwrap();
        unit.1[free as usize * 8..][..8].copy_from_slice(&past_end.to_be_bytes());
        let before = contents(&built.to_bytes());
        let disk = disk_of(&built);
        for repair in [Repair::Leaks, Repair::All, Repair::Rebuild, Repair::ZeroPastEnd] {
            for crash_at in 0.. {
                let mut chooser = Exhaustive::new();
                let ended = loop {
                    let options =
                        DirectOptions { crash_at: Some(crash_at), ..DirectOptions::default() };
                    let direct = Direct::with_options(disk.clone(), chooser, options);
                    let storage = direct.clone();
                    let ended = faultfs::direct::run(async move {
                        qcow2_core::check(&storage, repair, Rules::all()).await.unwrap()
                    });
                    let remains = direct.power_off();
                    chooser = remains.chooser;
                    let mut crashed = remains.disk.crash(Profile::TornLength, &mut chooser);
                    let left = crashed.image(&mut chooser);
                    states += 1;
                    let what = format!("{version}, {initial:?}, {repair:?}, cut at {crash_at}");
                    assert!(contents(&left) == before, "{what}");
                    let storage = MemoryStorage::new(left);
                    let how = if repair == Repair::Leaks { Repair::All } else { repair };
                    let report = check(&storage, how).unwrap();
                    assert!(report.is_consistent(), "{what}: {report:#?}");
                    assert_clean(&check(&storage, Repair::None).unwrap());
                    let after = storage.to_vec();
                    assert!(contents(&after) == before, "{what}, and once more");
                    let entry = word(&after, table + free * 8);
                    let gone = repair == Repair::ZeroPastEnd;
                    assert_eq!(entry & !COPIED == 0 || entry == 1, gone, "{what}: {entry:#x}");
                    if !chooser.advance() {
                        break ended.is_some();
                    }
                };
                if ended {
                    break;
                }
            }
        }
    }
    assert!(states > 100, "{states} states");
}
