//! Exploration is complete, and its certificate is one that anybody can make again.
//!
//! Goal: branching only where recovery reads loses no state. Method: on workloads small enough, every combination of units
//! and lengths that a power cut may leave is written out as a disk of single values and recovered from, without the
//! explorer; what comes out must be what the explorer's recovered disks expand to, no more and no less.

use std::collections::BTreeSet;

use faultfs::chooser::{Always, Exhaustive};
use faultfs::direct::{Direct, DirectOptions, run};
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use model::build::Initial;
use model::guest::Promises;
use model::judge::Statement;
use model::op::{Durability, Encryption, Geometry, Op};
use model::payload::COMPRESSIBLE;
use qcow2_core::Image;
use qcow2_core::storage::AnyStorage;
use qcow2_crashtest::call::open;
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::explore::alphabet::{Symbol, World, initials, operations, worlds};
use qcow2_crashtest::explore::certificate::{Certificate, MergeError, Part};
use qcow2_crashtest::explore::walk::{Stop, Walk};
use qcow2_crashtest::explore::{self, AtOnce, ExploreSettings};
use qcow2_crashtest::life::{Request, perform};
use qcow2_crashtest::subject::{Qcow2Core, Refusal, Session, Subject, SubjectImage as _};
use qcow2_crashtest::trial;
use qcow2_crashtest::{corpus, probe::Probe};

use crate::common::Scatter;

/// More combinations than this of one crash disk are left out, and counted.
const MOST: u64 = 1 << 13;

type Images = BTreeSet<Vec<u8>>;

/// Every image that a disk of sets may be; none if there are too many.
fn expand(disk: &PossibleDisk) -> Option<Images> {
    let mut combinations = disk.possible_lengths().len() as u64;
    let mut keys = Vec::new();
    for unit in disk.undecided() {
        keys.clear();
        disk.peek(unit, &mut keys);
        combinations = combinations.saturating_mul(keys.len() as u64);
    }
    if combinations > MOST {
        return None;
    }
    let mut images = Images::new();
    let mut odometer = Exhaustive::new();
    loop {
        images.insert(disk.clone().image(&mut odometer));
        if !odometer.advance() {
            return Some(images);
        }
    }
}

/// What a power cut may leave of a live disk.
fn crashed(live: &PossibleDisk) -> PossibleDisk {
    live.crash(Profile::TornLength, &mut Always(0))
}

/// The disks that a power cut in the last request of a workload can find.
fn crash_disks(world: &World, ops: &[Op]) -> Vec<PossibleDisk> {
    let subject = Qcow2Core::default();
    let (disk, guest) = world.start(&subject).unwrap();
    let mut size = guest.size();
    let options = DirectOptions { forks: ops.is_empty(), ..DirectOptions::default() };
    let mut all = if ops.is_empty() { vec![disk.clone()] } else { Vec::new() };
    let direct = Direct::with_options(disk, Always(0), options);
    let mut image = run(open(&subject, direct.clone(), world.session)).unwrap().unwrap();
    for (number, op) in ops.iter().enumerate() {
        direct.take_forks(number + 1 == ops.len());
        if *op == Op::Reopen {
            run(image.close()).unwrap().unwrap();
            image = run(open(&subject, direct.clone(), world.session)).unwrap().unwrap();
        } else {
            let request = op.clip(size).map(Request::Op);
            run(perform(&image, request.as_ref())).unwrap().unwrap();
        }
        if let Op::Grow { to } = *op {
            size = to;
        }
    }
    all.extend(direct.take_forks(false));
    all.push(direct.with_disk(|disk, _| disk.clone()));
    all
}

/// Recovers from one image: what opening it leaves, and the disks that power cuts on the way can find.
fn recover(bytes: &[u8], live: &PossibleDisk, session: Session) -> (Vec<u8>, Vec<PossibleDisk>) {
    let subject = Qcow2Core::default();
    let disk = PossibleDisk::from_extents(live.values(), bytes.len() as u64, [(0, bytes)]);
    let options = || DirectOptions { forks: true, ..DirectOptions::default() };
    let direct = Direct::with_options(disk, Always(0), options());
    drop(run(open(&subject, direct.clone(), session)).unwrap().unwrap());
    let opened = direct.power_off();
    let mut forks = opened.forks;
    let direct = Direct::with_options(opened.disk.clone(), Always(0), options());
    run(subject.repair(AnyStorage::new(direct.clone()))).unwrap().unwrap();
    forks.extend(direct.power_off().forks);
    let mut newest = Always(0);
    (opened.disk.clone().image(&mut newest), forks)
}

/// What both ways find for one workload; none if it is too large to write out.
fn both_ways(world: &World, symbols: &[Symbol]) -> Option<(Images, Images, bool)> {
    let ops = operations(symbols, &world.geometry);
    let subject = Qcow2Core::default();
    let initial = world.start(&subject).unwrap();
    let mut walk = Walk::new(subject, world.session, Profile::TornLength, 1, initial);
    walk.kept = Some(Vec::new());
    walk.workload(&ops).map_err(|stop| format!("{stop:?}")).unwrap();
    let mut lazy = Images::new();
    for disk in walk.kept.take().unwrap() {
        lazy.append(&mut expand(&disk)?);
    }

    let mut brute = Images::new();
    let mut seen = Images::new();
    let mut nested = Vec::new();
    for live in crash_disks(world, &ops) {
        for image in expand(&crashed(&live))? {
            if seen.insert(image.clone()) {
                let (recovered, forks) = recover(&image, &live, world.session);
                brute.insert(recovered);
                nested.extend(forks);
            }
        }
    }
    let twice = !nested.is_empty();
    let mut entered = BTreeSet::new();
    for live in nested {
        let crashed = crashed(&live);
        if entered.insert(crashed.content_hash()) {
            for image in expand(&crashed)? {
                if seen.insert(image.clone()) {
                    brute.insert(recover(&image, &live, world.session).0);
                }
            }
        }
    }
    Some((lazy, brute, twice))
}

#[test]
#[cfg_attr(not(turn = "0"), ignore = "its turn is at another commit; CI=1 runs all")]
fn branching_where_recovery_reads_finds_what_writing_out_every_image_finds() {
    let (mut compared, mut left_out, mut nested, mut images) = (0, 0, 0, 0);
    let sizes = [512, 1024];
    let kinds = [Initial::Fresh, Initial::Leaky, Initial::Dirty, Initial::Fragmented];
    for world in worlds(&sizes, &[false, true], &kinds) {
        for index in
            (0..explore::alphabet::count(&Symbol::ALL, 1)).chain([20, 40, 75, 100, 120, 148])
        {
            let workload = explore::alphabet::workload(&Symbol::ALL, index);
            let Some((lazy, brute, twice)) = both_ways(&world, &workload) else {
                left_out += 1;
                continue;
            };
            assert_eq!(lazy.len(), brute.len(), "{workload:?} on {world:?}");
            assert!(lazy == brute, "{workload:?} on {world:?}");
            compared += 1;
            nested += usize::from(twice);
            images += brute.len();
        }
    }
    println!("{compared} workloads compared, {images} recovered images, {left_out} left out");
    assert!(compared > 150 && nested > 50, "{compared} compared, {nested} nested");
    assert!(left_out * 10 < compared, "{left_out} were too large to write out");
}

/// Goal: what a walk remembers of earlier workloads stands for running it again. Method: workloads explored one after
/// the other by one walk, short ones and scattered long ones, and each by a new one without memory; the counts, a digest of all
/// that recovery left among them, are the same, and so are all states that were left. `SCATTERED` says how many long ones on each image.
#[test]
#[cfg_attr(not(turn = "2"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_earlier_workloads_left_changes_no_count() {
    let wanted = std::env::var("SCATTERED").unwrap_or_else(|_| "8".to_owned());
    let wanted: u32 = wanted.parse().expect("SCATTERED is a number");
    let mut compared = 0;
    let kinds = [Initial::RefcountBlockOneShort, Initial::Leaky, Initial::Fragmented];
    for world in worlds(&[512, 1024], &[false, true], &kinds) {
        for depth in [1, u32::MAX] {
            let new = || {
                let subject = Qcow2Core::default();
                let initial = world.start(&subject).unwrap();
                Walk::new(subject, world.session, Profile::TornLength, depth, initial)
            };
            let (mut old, mut distinct, mut leaves) = (new(), BTreeSet::new(), 0);
            let mut scatter = Scatter::new(u64::from(depth));
            let longer = explore::alphabet::count(&Symbol::ALL, 2)
                ..explore::alphabet::count(&Symbol::ALL, 4);
            let scattered =
                (0..wanted).map(|_| longer.start + scatter.below(longer.end - longer.start));
            for index in (0..longer.start).step_by(5).chain(scattered) {
                let symbols = explore::alphabet::workload(&Symbol::ALL, index);
                let ops = operations(&symbols, &world.geometry);
                let mut forgetful = new();
                forgetful.remembers = false;
                let [known, afresh] =
                    [&mut old, &mut forgetful].map(|walk| walk.workload(&ops).unwrap());
                assert_eq!(known, afresh, "{symbols:?} on {world:?}");
                assert_eq!(forgetful.executed, afresh.leaves, "nothing was known");
                compared += 1;
                distinct.append(&mut forgetful.distinct);
                leaves += known.leaves;
            }
            assert_eq!(old.distinct, distinct, "{world:?}");
            assert!(old.executed < leaves, "{} of {leaves} leaves were run", old.executed);
        }
    }
    println!("{compared} workloads explored with and without memory: nothing differs");
}

/// The implementation as a subject of which there are no forks.
#[derive(Clone, Copy, Debug)]
struct Unforked(Qcow2Core);

impl Subject for Unforked {
    type Image = Image<AnyStorage>;

    fn name(&self) -> String {
        self.0.name()
    }

    fn key(&self) -> &'static str {
        self.0.key()
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        self.0.promises(geometry, session)
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn open(
        &self,
        storage: AnyStorage,
        session: Session,
    ) -> Result<Image<AnyStorage>, Refusal> {
        self.0.open(storage, session).await
    }

    async fn repair(&self, storage: AnyStorage) -> Result<Statement, Refusal> {
        self.0.repair(storage).await
    }
}

/// Goal: going on from a fork is going there again. Method: a subject with forks and one without, in shards so that neighbours are
/// not explored one after the other only, with one worker and with several; all that a report has but times is the same.
#[test]
#[cfg_attr(not(turn = "3"), ignore = "its turn is at another commit; CI=1 runs all")]
fn forks_are_explored_as_what_leads_to_them_is() {
    let subject = Qcow2Core::default();
    let kinds = [Initial::Fresh, Initial::RefcountBlockOneShort, Initial::Fragmented];
    let plain =
        [(2, (0, 1), 2), (3, (1, 16), 1), (4, (5, 640), 1)].map(|(operations, shard, workers)| {
            let worlds = worlds(&[512, 1024], &[false, true], &kinds);
            ExploreSettings { shard, workers, ..ExploreSettings::new(worlds, operations) }
        });
    // What is random in a new key slot follows from what the image has done so far.
    let encrypted = worlds(&[512], &[false, true], &[Initial::Fresh]);
    let encrypted = encrypted.into_iter().map(|world| world.encrypted(Encryption::Luks)).collect();
    let passphrases = ExploreSettings {
        alphabet: Symbol::PASSPHRASES.to_vec(),
        workers: 2,
        ..ExploreSettings::new(encrypted, 2)
    };
    for settings in plain.into_iter().chain([passphrases]) {
        let forked = explore::run(&subject, &settings, |_, _, _, _| {});
        let again = explore::run(&Unforked(subject), &settings, |_, _, _, _| {});
        assert!(forked.complete && again.complete, "{:?} {:?}", forked.found, again.found);
        assert_eq!(forked.probes(), again.probes());
        for (forked, again) in forked.worlds.iter().zip(&again.worlds) {
            assert_eq!((forked.workloads, forked.hash), (again.workloads, again.hash));
            assert_eq!(forked.counts, again.counts, "{}", forked.world);
            assert_eq!(forked.distinct, again.distinct, "{}", forked.world);
        }
    }
}

/// Goal: races alone miss what it takes a step that stays behind to miss; elsewhere random campaigns or pairs may have been who noticed. Method: both
/// of these rules, each with as many delays and requests as it takes.
#[test]
#[cfg_attr(not(turn = "7"), ignore = "its turn is at another commit; CI=1 runs all")]
fn races_miss_what_a_step_that_stays_behind_breaks() {
    let races = |rule, delays, operations| {
        let settings = ExploreSettings {
            alphabet: Symbol::RACING.to_vec(),
            at_once: Some(AtOnce::Races { delays }),
            ..ExploreSettings::new(worlds(&[512], &[false], &[Initial::Fragmented]), operations)
        };
        let subject = Qcow2Core::without([rule]).unwrap();
        let report = explore::run(&subject, &settings, |_, _, _, _| {});
        report.found.unwrap_or_else(|| panic!("{rule} was not missed")).failure.violation.kind
    };
    assert_eq!(races("discard-before-reuse", 2, 2), "contract-breach");
    assert_eq!(races("reads-before-reuse", 1, 3), "misread");
}

/// Goal: the violation that is told is the one with the lowest number, whoever finds another one first. Method: rules whose absence
/// many workloads show, with forks and without, with one worker and with several.
#[test]
#[cfg_attr(not(turn = "9"), ignore = "its turn is at another commit; CI=1 runs all")]
fn the_first_violation_is_the_one_with_the_lowest_number() {
    for (rule, lazy) in [("dereference-before-reuse", false), ("all-before-clean", true)] {
        let subject = Qcow2Core::without([rule]).unwrap();
        let found = |forks: bool, workers| {
            let settings = ExploreSettings {
                workers,
                ..ExploreSettings::new(worlds(&[1024], &[lazy], &[Initial::Leaky]), 2)
            };
            let report = if forks {
                explore::run(&subject, &settings, |_, _, _, _| {})
            } else {
                explore::run(&Unforked(subject), &settings, |_, _, _, _| {})
            };
            report.found.map(|found| (found.index, found.tasks, found.failure))
        };
        let first = found(false, 1);
        assert!(first.is_some(), "{rule}");
        for (forks, workers) in [(false, 3), (true, 1), (true, 3)] {
            assert_eq!(found(forks, workers), first, "{rule}");
        }
    }
}

fn everything() -> Vec<World> {
    worlds(&[512, 1024, 4096], &[false, true], &initials())
}

#[test]
#[cfg_attr(not(turn = "2"), ignore = "its turn is at another commit; CI=1 runs all")]
fn the_small_certificate_is_reproduced_bit_for_bit() {
    let path = corpus::folder().join("certificates/one-request.json");
    let text = std::fs::read_to_string(path).unwrap();
    let kept: Certificate = serde_json::from_str(&text).unwrap();
    let settings = ExploreSettings::new(everything(), 1);
    let subject = Qcow2Core::default();
    let report = explore::run(&subject, &settings, |_, _, _, _| {});
    assert!(report.complete && report.found.is_none(), "{:?}", report.found);
    let made = Certificate::new(&subject, &settings, &report);
    let [made, kept] = [made, kept].map(|certificate| certificate.without_source().to_json());
    let mut lines = made.lines().zip(kept.lines()).enumerate();
    let different = lines.find(|(_, (made, kept))| made != kept);
    assert!(made == kept, "(line, (made now, kept)): {different:?}");
}

#[test]
fn shards_merge_into_the_certificate_of_the_whole_in_any_order() {
    let worlds = worlds(&[1024], &[false], &[Initial::Fresh, Initial::Fragmented]);
    let whole = ExploreSettings::new(worlds, 2);
    let subject = Qcow2Core::default();
    let certificate = {
        let report = explore::run(&subject, &whole, |_, _, _, _| {});
        Certificate::new(&subject, &whole, &report)
    };
    let parts: Vec<Part> = (0..3)
        .map(|shard| {
            let settings = ExploreSettings { shard: (shard, 3), workers: 1, ..whole.clone() };
            let report = explore::run(&subject, &settings, |_, _, _, _| {});
            Part::new(&subject, &settings, &report)
        })
        .collect();
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let mut merged = parts[order[0]].clone();
        merged.merge(&parts[order[1]]).unwrap();
        let missing = MergeError::Missing { missing: order[2] as u64, of: 3 };
        assert_eq!(merged.clone().whole(), Err(missing));
        assert_eq!(merged.merge(&parts[order[0]]), Err(MergeError::Twice(order[0] as u64)));
        merged.merge(&parts[order[2]]).unwrap();
        assert_eq!(merged.whole().unwrap().to_json(), certificate.to_json());
    }
    // Parts of different explorations are of no whole: one thing changed at a time.
    type Change = fn(&mut Certificate);
    let changes: [(Change, &str); 3] = [
        (|part| part.not_asked.push("growth".to_owned()), "what was not asked"),
        (|part| part.source[0].1.push('0'), "source"),
        (|part| part.worlds[0].copy_on_read = true, "the list of worlds"),
    ];
    for (change, field) in changes {
        let mut other = parts[1].clone();
        change(&mut other.certificate);
        let merged = parts[0].clone().merge(&other);
        assert_eq!(merged, Err(MergeError::Different { field }));
    }
}

#[test]
fn a_broken_rule_is_found_and_the_workload_is_the_shortest() {
    let subject = Qcow2Core::without(["refcount-before-reference"]).unwrap();
    let worlds = worlds(&[1024], &[false], &[Initial::Fresh]);
    let report = explore::run(&subject, &ExploreSettings::new(worlds, 2), |_, _, _, _| {});
    let found = report.found.expect("counts may lag behind references");
    assert_eq!(found.tasks.concat().len(), 1, "{:?}", found.tasks);
    assert_eq!(found.failure.violation.kind, "refcount-too-low");
    let trial = found.trial(&subject, Profile::TornLength).expect("it is one way through a case");
    let outcome = trial::run(&subject, &trial.trial).unwrap();
    assert_eq!(outcome.failure.unwrap().1.violation.kind, "refcount-too-low");
}

#[test]
fn power_cuts_in_recovery_are_followed_and_probed() {
    let subject = Qcow2Core::default();
    let world = World::new(10, true, Initial::Fresh);
    let initial = world.start(&subject).unwrap();
    let mut walk = Walk::new(subject, world.session, Profile::TornLength, u32::MAX, initial);
    let workload = [Symbol::WriteA, Symbol::Flush, Symbol::DiscardA];
    let counts = match walk.workload(&operations(&workload, &world.geometry)) {
        Ok(counts) => counts,
        Err(Stop::Failed(failure)) => panic!("{}", failure.violation),
        Err(Stop::Broken(why)) => panic!("{why}"),
    };
    assert!(counts.nested > 0 && counts.deepest > 0, "{counts:?}");
    assert!(walk.probes().count(Probe::CrashInRepair) > 0);
}

/// Goal: what the old refcount table still owes the medium is there before a larger one, which says the same, is switched to.
/// Method: a request that needs the last block that the table can point to, and before any flush one that needs a larger table.
#[test]
fn a_refcount_table_may_grow_before_its_newest_block_is_durable() {
    const CLUSTER: u64 = 512;
    let mut world = World::new(9, false, Initial::Fresh);
    // A block counts 64 clusters, a table of one cluster has 64 blocks.
    world.geometry.refcount_order = 6;
    world.geometry.virtual_size = 4100 * CLUSTER;
    world.session.cache_pages = 128;
    let subject = Qcow2Core::default();
    let initial = world.start(&subject).unwrap();
    let mut walk = Walk::new(subject, world.session, Profile::TornLength, 0, initial);
    let write = |clusters: std::ops::Range<u64>, id| Op::Write {
        offset: clusters.start * CLUSTER,
        length: (clusters.end - clusters.start) * CLUSTER,
        id,
        durability: Durability::Cached,
    };
    let ops = [write(0..3900, 1), Op::Flush, write(3900..3964, 2), write(3964..3968, 3)];
    for (requests, growths) in [(3, 0), (4, 1)] {
        let counts = walk.workload(&ops[..requests]).unwrap_or_else(|stop| panic!("{stop:?}"));
        assert!(counts.leaves >= 10, "{counts:?}");
        assert_eq!(walk.probes().count(Probe::RefcountTableGrowth), growths);
    }
}

/// Goal: an entry waits for the counts of both host clusters of its stream, also where they are in two pages of counts and only the
/// entry's page is written. Method: streams up to the last cluster that one page counts, one across, and others far away, whose entries
/// are in so many pages that the first one has to leave the cache.
#[test]
#[cfg_attr(not(turn = "1"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_stream_across_two_pages_of_counts_waits_for_both() {
    const CLUSTER: u64 = 4096;
    let mut world = World::new(12, false, Initial::Fresh);
    // A page of 512 bytes counts 64 clusters, and has 64 entries.
    world.geometry.refcount_order = 6;
    world.geometry.virtual_size = 8 * 64 * CLUSTER;
    world.session.cache_pages = 4;
    world.session.page_size = 512;
    let write = |first: u64, clusters: u64, id| Op::WriteCompressed {
        offset: first * CLUSTER,
        length: clusters * CLUSTER,
        id: COMPRESSIBLE + id,
    };
    let explore = |subject: &Qcow2Core, clusters: u64| {
        let ops: Vec<Op> = [write(0, clusters, 1), Op::Flush, write(clusters, 1, 2)]
            .into_iter()
            .chain((3..8).map(|at| write(64 * at, 1, at as u32)))
            .collect();
        let initial = world.start(subject).unwrap();
        let mut walk = Walk::new(*subject, world.session, Profile::TornLength, 0, initial);
        walk.workload(&ops)
    };
    let broken = Qcow2Core::without(["mutant:second-host-not-awaited"]).unwrap();
    let missed = (124..132).filter_map(|clusters| {
        let explored = explore(&Qcow2Core::default(), clusters);
        assert!(explored.is_ok(), "{clusters} clusters before: {explored:?}");
        explore(&broken, clusters).err()
    });
    match &missed.collect::<Vec<_>>()[..] {
        [Stop::Failed(failure), ..] => assert_eq!(failure.violation.kind, "refcount-too-low"),
        other => panic!("no stream is across two pages: {other:?}"),
    }
}
