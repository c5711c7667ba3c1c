//! What a judge sees of a disk without deciding anything.
//!
//! Goal: `peek`, `visible`, the sets of lengths, the list of undecided units, the hashes and the change log say of a
//! disk what exploring all its choices would find. Method: random programs; at every event the views are compared with
//! an exploration of forks of the same disk.

use std::collections::{BTreeMap, BTreeSet};

use faultfs::Defect;
use faultfs::chooser::{Exhaustive, Random};
use faultfs::disk::{File, PossibleDisk};
use faultfs::profile::Profile;
use faultfs::rng::Rng;
use faultfs::values::Key;

use super::brute::{parse, random_program};
use super::naive;
use super::program::{Keys, Order, Program, UNITS, explore, look};

/// Of each unit and of each file.
type Sets = (Vec<BTreeSet<Key>>, Vec<BTreeSet<u32>>);

fn files(disk: &PossibleDisk) -> impl Iterator<Item = File> {
    [File::First].into_iter().chain(disk.second().map(|_| File::Second))
}

fn each_file(disk: &PossibleDisk, lengths: impl Fn(File) -> Vec<u32>) -> Vec<Vec<u32>> {
    files(disk).map(lengths).collect()
}

/// Values of each unit and lengths over all explorations of `look`.
fn explored(disk: &PossibleDisk, prepare: impl Fn(&mut PossibleDisk, &mut Exhaustive)) -> Sets {
    let lengths = files(disk).map(|file| {
        let mut lengths = BTreeSet::new();
        explore(|chooser| {
            let mut fork = disk.clone();
            prepare(&mut fork, chooser);
            lengths.insert(fork.len_of(file, chooser));
        });
        lengths
    });
    let lengths = lengths.collect();
    let units = (0..UNITS).map(|unit| {
        let mut values = BTreeSet::new();
        explore(|chooser| {
            let mut fork = disk.clone();
            prepare(&mut fork, chooser);
            values.insert(fork.read(unit, chooser));
        });
        values
    });
    (units.collect(), lengths)
}

fn viewed(view: impl Fn(u32, &mut Vec<Key>), lengths: Vec<Vec<u32>>) -> Sets {
    let units = (0..UNITS).map(|unit| {
        let mut keys = Vec::new();
        view(unit, &mut keys);
        let set: BTreeSet<Key> = keys.iter().copied().collect();
        assert_eq!(set.len(), keys.len(), "a value is listed twice");
        set
    });
    let lengths = lengths.into_iter().map(|lengths| lengths.into_iter().collect());
    (units.collect(), lengths.collect())
}

/// Calls `check` with every disk that `program` passes through under `profile`.
fn at_every_event(
    text: &str,
    lens: (u32, Option<u32>),
    keys: &Keys,
    profile: Profile,
    mut check: impl FnMut(&PossibleDisk),
) {
    // Where the rules leave the meaning of an overlap open there is nothing to compare with.
    let specified = |program: &Program| naive::outcomes(program, Profile::Kill).is_ok();
    let Some(program) = parse(lens, text).filter(specified) else { return };
    for events in 0..=program.events.len() {
        let start = Program { events: program.events[..events].to_vec(), ..program.clone() };
        explore(|chooser| check(&start.run(program.disk(keys), keys, profile, chooser).0));
    }
}

#[test]
fn peeking_is_exploring() {
    let mut rng = Rng::new(2);
    let keys = Keys::new();
    let mut open = 0;
    for _ in 0..1500 {
        let (lens, text) = random_program(&mut rng, 5);
        for profile in [Profile::Epoch, Profile::Cache, Profile::TornLength] {
            at_every_event(&text, lens, &keys, profile, |disk| {
                if profile == Profile::Cache && disk.length_is_open() {
                    // Here the length and the units hang on the same writes: decided, everything is exact again.
                    return;
                }
                let visible = viewed(
                    |unit, keys| disk.visible(unit, keys),
                    each_file(disk, |file| disk.visible_lengths_of(file)),
                );
                assert_eq!(visible, explored(disk, |_, _| {}), "{text} ({profile}): a read");

                // What the medium holds is only cut off when a length is chosen, so the sets are compared by unit.
                let (peeked, lengths) = viewed(
                    |unit, keys| disk.peek(unit, keys),
                    each_file(disk, |file| disk.possible_lengths_of(file)),
                );
                let crash = |fork: &mut PossibleDisk, chooser: &mut _| {
                    fork.crash_in_place(Profile::TornLength, chooser);
                };
                let (crashed, crashed_lengths) = explored(disk, crash);
                assert_eq!(
                    lengths, crashed_lengths,
                    "{text} ({profile}): the length after a crash"
                );
                let shortest = |file: usize| lengths[file].first().copied().unwrap_or(0);
                for unit in 0..UNITS {
                    let mut peeked = peeked[unit as usize].clone();
                    let cut = match disk.second() {
                        Some(start) if unit >= start => unit - start >= shortest(1),
                        _ => unit >= shortest(0),
                    };
                    if cut {
                        peeked.insert(Key::ZERO);
                    }
                    assert_eq!(peeked, crashed[unit as usize], "{text} ({profile}): unit {unit}");
                }

                let several: Vec<u32> = (0..UNITS)
                    .filter(|&unit| {
                        let mut keys = Vec::new();
                        disk.peek(unit, &mut keys);
                        assert!(disk.single(unit).is_none_or(|key| keys == [key]));
                        keys.len() > 1
                    })
                    .collect();
                assert_eq!(disk.undecided(), several, "{text} ({profile})");
                open += several.len();
            });
        }
    }
    assert!(open > 10_000, "hardly anything was open: {open}");
}

#[test]
fn hashes_tell_disks_apart_by_what_they_may_do() {
    let mut rng = Rng::new(3);
    let keys = Keys::new();
    let mut by_allowed: BTreeMap<u64, Sets> = BTreeMap::new();
    let mut by_sets: BTreeMap<Sets, u64> = BTreeMap::new();
    let mut by_state: BTreeMap<u64, Vec<BTreeSet<String>>> = BTreeMap::new();
    let mut met_again = 0;
    for _ in 0..1500 {
        let (lens, text) = random_program(&mut rng, 4);
        at_every_event(&text, lens, &keys, Profile::Cache, |disk| {
            let sets = viewed(
                |unit, keys| disk.peek(unit, keys),
                each_file(disk, |file| disk.possible_lengths_of(file)),
            );
            if !disk.length_is_open() {
                let hash = disk.allowed_hash();
                assert_eq!(by_allowed.entry(hash).or_insert_with(|| sets.clone()), &sets, "{text}");
                assert_eq!(*by_sets.entry(sets).or_insert(hash), hash, "{text}");
            }

            let futures: Vec<BTreeSet<String>> = Profile::ALL
                .into_iter()
                .map(|profile| {
                    let mut found = BTreeSet::new();
                    explore(|chooser| {
                        let mut fork = disk.crash(profile, chooser);
                        found.insert(look(
                            &mut fork,
                            String::new(),
                            &keys,
                            Order::LengthFirst,
                            chooser,
                        ));
                    });
                    found
                })
                .collect();
            let known = by_state.entry(disk.state_hash()).or_insert_with(|| futures.clone());
            met_again += 1;
            assert_eq!(known, &futures, "{text}");
        });
    }
    assert!(
        by_state.len() > 1000 && met_again > 3 * by_state.len(),
        "{} states, {met_again} meetings",
        by_state.len()
    );
}

#[test]
fn the_change_log_forgets_nothing() {
    let mut told = 0;
    assert_eq!(changes(None, &mut told), None);
    assert!(told > 2000, "hardly anything changed: {told}");
}

/// The first program of which the change log keeps something back.
pub(crate) fn changes(defect: Option<Defect>, told: &mut u32) -> Option<String> {
    let mut rng = Rng::new(4);
    let keys = Keys::new();
    for _ in 0..3000 {
        let (lens, text) = random_program(&mut rng, 5);
        let Some(program) = parse(lens, &text) else { continue };
        let random = Random::new(rng.next_u64());
        let mut before: Option<(PossibleDisk, Sets)> = None;
        for at in 0..=program.events.len() {
            // The same choices each time: one event more.
            let mut same = random.clone();
            let start = Program { events: program.events[..at].to_vec(), ..program.clone() };
            let (disk, _) = start.run(
                program.disk(&keys).with_defect(defect),
                &keys,
                Profile::Cache,
                &mut same,
            );
            let now = viewed(
                |unit, keys| disk.peek(unit, keys),
                each_file(&disk, |file| disk.possible_lengths_of(file)),
            );
            if let Some((earlier, sets)) = before
                && let Some(ranges) = disk.changed_since(earlier.mark())
            {
                for unit in 0..UNITS {
                    let listed =
                        ranges.iter().any(|&(first, count)| (first..first + count).contains(&unit));
                    let changed = sets.0[unit as usize] != now.0[unit as usize];
                    if changed && !listed {
                        return Some(format!("{text}: event {at} changed unit {unit}"));
                    }
                    *told += u32::from(listed && changed);
                }
            }
            before = Some((disk, now));
        }
    }
    None
}
