//! Examinations of what a disk keeps: base values, pending writes, lengths.

use storage::{Durability, UNIT};

use super::{File, Landing, MAX_UNITS, NONE, PAGE, PossibleDisk};
use crate::chooser::{Always, Random};
use crate::profile::{FlushFailure, Profile, Robustness};
use crate::values::{Key, Values};

/// A disk of `len` units of one old value, and new values.
fn disk(len: u32) -> (PossibleDisk, Vec<Key>) {
    let values = Values::new();
    let old = vec![0xee; len as usize * UNIT];
    let disk = PossibleDisk::from_extents(&values, old.len() as u64, [(0, &old[..])]);
    (disk, (1..=8).map(|byte| values.intern(&[byte; UNIT])).collect())
}

fn flush(disk: &mut PossibleDisk) {
    let flush = disk.submit_flush();
    assert!(disk.complete_flush(flush));
}

/// Nothing is pending, and no memory is taken for what was.
fn assert_nothing_is_left(disk: &PossibleDisk, when: &str) {
    assert!(disk.length.iter().all(|length| length.changes.is_empty()), "{when}");
    assert_eq!(disk.free_slots.len(), disk.slots.len(), "{when}");
    assert_eq!(disk.free_writes.len(), disk.writes.len(), "{when}");
    assert!(disk.slots.iter().all(|slot| slot.unit == NONE && slot.head == NONE), "{when}");
    assert!(disk.writes.iter().all(|write| write.refs == 0), "{when}");
    assert!(disk.writes.len() <= 3 && disk.slots.len() <= 4 && disk.entries.len() <= 8);
}

#[test]
fn what_is_over_leaves_nothing_behind() {
    let (mut disk, keys) = disk(2);
    let mut chooser = Random::new(1);
    for round in 0..200u32 {
        let append = disk.submit_write(1, &keys[..3], Durability::Cached, &mut chooser);
        let over = disk.submit_write(0, &keys[3..5], Durability::Cached, &mut chooser);
        disk.complete(append);
        match round % 5 {
            0 => disk.fail(over, Landing::First(0)),
            1 => disk.fail(over, Landing::Any),
            2 => disk.fail(over, Landing::Late),
            3 => disk.fail_sync(over, FlushFailure::CleanMarked),
            _ => assert!(disk.complete(over)),
        }
        if round % 2 == 0 {
            let profile = Profile::ALL[round as usize / 2 % Profile::ALL.len()];
            disk.crash_in_place(profile, &mut chooser);
            assert!(disk.sets.len() <= 3 * 4, "{profile}: {}", disk.sets.len());
            disk.image(&mut chooser);
        }
        disk.settle();
        let cut = disk.submit_set_len(2, &mut chooser);
        disk.complete(cut);
        flush(&mut disk);
        let last = disk.submit_write(0, &keys[5..7], Durability::Through, &mut chooser);
        disk.complete(last);
        assert_nothing_is_left(&disk, &format!("round {round}"));
    }
}

#[test]
fn a_durable_write_is_plain_values_again_in_all_of_its_units() {
    let (mut disk, keys) = disk(4);
    let write = disk.submit_write(1, &keys[..3], Durability::Through, &mut Always(0));
    let single = [0, 1, 2, 3].map(|unit| disk.single(unit).is_some());
    assert_eq!(single, [true, false, false, false]);
    disk.complete(write);
    assert_eq!([1, 2, 3].map(|unit| disk.single(unit)), [0, 1, 2].map(|at| Some(keys[at])));
    assert_nothing_is_left(&disk, "durable");
}

#[test]
fn only_what_reaches_past_the_end_changes_the_length() {
    let (mut disk, keys) = disk(2);
    let pending = |disk: &PossibleDisk| disk.length[0].changes.len();
    let up_to_the_end = disk.submit_write(1, &keys[..1], Durability::Cached, &mut Always(0));
    assert_eq!(pending(&disk), 0);
    disk.complete(up_to_the_end);
    let nothing = disk.submit_write(9, &[], Durability::Cached, &mut Always(0));
    disk.complete(nothing);
    assert_eq!((pending(&disk), disk.possible_lengths()), (0, vec![2]));
    let failed = disk.submit_write(2, &keys[..1], Durability::Cached, &mut Always(0));
    assert_eq!(pending(&disk), 1);
    disk.fail(failed, Landing::First(0));
    assert_eq!((pending(&disk), disk.possible_lengths()), (0, vec![2]));
    // Once a length is durable, only what may be longer is pending.
    let slow = disk.submit_write(3, &keys[..1], Durability::Cached, &mut Always(0));
    let durable = disk.submit_write(2, &keys[..1], Durability::Through, &mut Always(0));
    disk.complete(durable);
    assert_eq!((pending(&disk), disk.possible_lengths()), (1, vec![4, 3]));
    disk.complete(slow);
    flush(&mut disk);
    assert_nothing_is_left(&disk, "flushed");
}

#[test]
fn units_on_a_page_of_their_own_are_written_and_zeroed() {
    let page = PAGE as u32;
    let (mut disk, keys) = disk(0);
    let zeroes = disk.submit_zeroes(page, 1, &mut Always(0));
    disk.complete(zeroes);
    assert_eq!((disk.len(&mut Always(0)), disk.extent()), (page + 1, 2 * page));
    let far = MAX_UNITS - 1;
    let write = disk.submit_write(far, &keys[..1], Durability::Through, &mut Always(0));
    disk.complete(write);
    assert_eq!((disk.len(&mut Always(0)), disk.single(far)), (MAX_UNITS, Some(keys[0])));
}

/// A device that keeps writes whole leaves open what hangs on them; the next one decides no more than it must.
#[test]
fn a_second_cut_may_be_that_of_another_device() {
    for lost in [0, 1] {
        let (mut disk, keys) = disk(1);
        disk.submit_write(0, &keys[..2], Durability::Cached, &mut Always(0));
        disk.crash_in_place(Profile::Cache, &mut Always(0));
        assert_eq!(disk.possible_lengths(), [2, 1]);
        let unread = disk.crash(Profile::Kill, &mut Always(0));
        assert_eq!(unread.possible_lengths(), [2, 1], "nobody has looked");
        disk.read(0, &mut Always(lost));
        let read = disk.crash(Profile::Kill, &mut Always(0));
        assert_eq!(read.possible_lengths(), [2 - lost], "the read decided it");
    }
}

/// A disk of two units of one value and, from unit 4 on, `len` of another, and new values.
fn two_files(len: u32) -> (PossibleDisk, Vec<Key>) {
    let (disk, keys) = disk(2);
    let old = vec![0xdd; len as usize * UNIT];
    (disk.with_second_extents(4, old.len() as u64, [(0, &old[..])]), keys)
}

#[test]
fn each_file_has_its_units_its_length_and_its_bytes() {
    let (mut disk, keys) = two_files(1);
    let chooser = &mut Always(0);
    assert_eq!(
        (disk.second(), disk.len(chooser), disk.len_of(File::Second, chooser)),
        (Some(4), 2, 1)
    );
    let append = disk.submit_write(5, &keys[..2], Durability::Cached, chooser);
    assert_eq!(disk.visible_lengths_of(File::Second), [3, 1]);
    disk.complete(append);
    let grown = disk.submit_set_len(4, chooser);
    disk.complete(grown);
    assert_eq!((disk.len(chooser), disk.len_of(File::Second, chooser)), (4, 3));
    assert_eq!(disk.possible_lengths(), [4, 2]);
    assert_eq!(disk.possible_lengths_of(File::Second), [3, 1]);
    let image = disk.image_of(File::Second, chooser);
    assert_eq!(image, [[0xdd; UNIT], [1; UNIT], [2; UNIT]].concat());
    assert_eq!(disk.image(chooser), [[0xee; UNIT], [0xee; UNIT], [0; UNIT], [0; UNIT]].concat());
    // What a crash leaves of the one length is decided without the other.
    let mut crashed = disk.crash(Profile::TornLength, chooser);
    crashed.read(5, &mut Always(u32::MAX));
    assert_eq!(crashed.possible_lengths_of(File::Second), [1]);
    assert_eq!((crashed.possible_lengths(), crashed.length_is_open()), (vec![4, 2], true));
    crashed.len(chooser);
    assert!(!crashed.length_is_open());
    let (one, _) = self::disk(2);
    assert_eq!((one.second(), one.possible_lengths_of(File::Second)), (None, vec![]));
}

#[test]
fn two_files_leave_nothing_behind() {
    let (mut disk, keys) = two_files(2);
    let mut chooser = Random::new(2);
    for round in 0..200u32 {
        for start in [0, 4] {
            let append = disk.submit_write(start + 1, &keys[..2], Durability::Cached, &mut chooser);
            match round % 3 {
                0 => disk.fail(append, Landing::First(1)),
                1 => disk.fail(append, Landing::Late),
                _ => assert!(disk.complete(append)),
            }
        }
        let profile = Profile::ALL[round as usize % Profile::ALL.len()];
        disk.crash_in_place(profile, &mut chooser);
        for (file, start) in [(File::First, 0), (File::Second, 4)] {
            disk.image_of(file, &mut chooser);
            let cut = disk.submit_set_len_of(file, 1, &mut chooser);
            disk.complete(cut);
            let flush = disk.submit_flush_of(file);
            assert!(disk.complete_flush(flush));
            let last = disk.submit_write(start, &keys[5..7], Durability::Through, &mut chooser);
            disk.complete(last);
        }
        assert_nothing_is_left(&disk, &format!("round {round}"));
    }
}

#[test]
fn hashes_tell_whose_length_and_whose_flush_it_is() {
    let values = Values::new();
    let of = |first, second: u32| PossibleDisk::new(&values, first).with_second(4, second);
    let mut stuck = of(1, 1);
    let one = stuck.submit_flush();
    let mut flushing = [of(1, 1), of(1, 1)];
    flushing[0].submit_flush();
    flushing[1].submit_flush_of(File::Second);
    stuck.fail_flush(one, FlushFailure::Sticky);
    let mut cut = [of(4, 1), of(4, 1)];
    cut[0].submit_set_len(0, &mut Always(0));
    cut[1].submit_set_len_of(File::Second, 0, &mut Always(0));
    let [by_first, by_second] = flushing;
    let [cut_first, cut_second] = cut;
    let disks = [
        PossibleDisk::new(&values, 1),
        of(1, 0),
        of(0, 1),
        of(4, 0),
        of(1, 1),
        PossibleDisk::new(&values, 1).with_second(5, 1),
        cut_first,
        cut_second,
        by_first,
        by_second,
        stuck,
    ];
    for (at, a) in disks.iter().enumerate() {
        assert_eq!(a.clone().state_hash(), a.state_hash());
        for (n, b) in disks[..at].iter().enumerate() {
            assert_ne!(a.state_hash(), b.state_hash(), "{at} and {n}");
            if at < 8 {
                assert_ne!(a.allowed_hash(), b.allowed_hash(), "{at} and {n}");
                assert_ne!(a.content_hash(), b.content_hash(), "{at} and {n}");
            }
            if at < 6 {
                assert_ne!(a.decided_hash([0]), b.decided_hash([0]), "{at} and {n}");
            }
        }
        assert_eq!(a.decided_hash([0]).is_some(), at < 6, "{at}");
    }
}

#[test]
fn runs_end_where_a_file_has_no_more_room() {
    let (mut disk, keys) = two_files(2);
    let write = disk.submit_write(2, &keys[..2], Durability::Through, &mut Always(0));
    disk.complete(write);
    assert_eq!((disk.single_run(1, 9).count(), disk.single_run(4, 9).count()), (3, 9));
    let append = disk.submit_write(6, &keys[..1], Durability::Cached, &mut Always(0));
    disk.complete(append);
    disk.crash_in_place(Profile::TornLength, &mut Always(0));
    assert_eq!((disk.single_run(0, 9).count(), disk.single_run(4, 9).count()), (4, 2));
    assert_eq!([3, 6].map(|unit| disk.single(unit).is_some()), [true, false]);
    assert_eq!(disk.undecided(), [6]);
    let empty = PossibleDisk::new(disk.values(), 1).with_second(4, 9);
    assert_eq!([(0, 9), (3, 9), (4, 9)].map(|(unit, most)| empty.zero_run(unit, most)), [4, 1, 9]);
}

#[test]
fn damage_strikes_both_files_and_nothing_between_them() {
    let (disk, _) = two_files(1);
    assert_eq!(disk.clone().damage(Robustness::BitRot, &mut Always(1)), [0, 1, 4]);
    let mut crashed = disk.clone();
    crashed.submit_write(0, &[Key::ZERO], Durability::Cached, &mut Always(0));
    crashed.crash_in_place(Profile::Torn, &mut Always(0));
    let mut anywhere = (0..3).map(|to| {
        let mut chooser = crate::chooser::Prefix::new(vec![1, to], Always(0));
        crashed.clone().damage(Robustness::Misdirected, &mut chooser)
    });
    assert_eq!([(); 3].map(|()| anywhere.next().unwrap()), [[0], [1], [4]]);
}

/// What `work` says when it panics.
fn refused(work: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    std::panic::catch_unwind(work).is_err()
}

#[test]
fn nothing_crosses_from_one_file_into_the_other() {
    let write = |first: u32, count: usize| {
        refused(move || {
            let (mut disk, keys) = two_files(1);
            disk.submit_write(first, &keys[..count], Durability::Cached, &mut Always(0));
        })
    };
    assert_eq!(
        [(2, 2), (3, 2), (4, 2), (MAX_UNITS - 1, 2)].map(|(first, count)| write(first, count)),
        [false, true, false, true]
    );
    let zero = |discard: bool| {
        refused(move || {
            let (mut disk, _) = two_files(1);
            let chooser = &mut Always(0);
            let _ = if discard {
                disk.submit_discard(3, 2, chooser)
            } else {
                disk.submit_zeroes(3, 2, chooser)
            };
        })
    };
    assert_eq!([true, false].map(zero), [true, true]);
    let set_len = |file, len| {
        refused(move || {
            two_files(1).0.submit_set_len_of(file, len, &mut Always(0));
        })
    };
    let room = MAX_UNITS - 4;
    assert_eq!([4, 5].map(|len| set_len(File::First, len)), [false, true]);
    assert_eq!([room, room + 1].map(|len| set_len(File::Second, len)), [false, true]);
}

#[test]
fn a_second_file_begins_behind_the_first_one_and_is_the_last() {
    let second = |first_unit, len| refused(move || drop(disk(2).0.with_second(first_unit, len)));
    assert_eq!(
        [(2, 0), (1, 0), (4, MAX_UNITS), (MAX_UNITS, 0)].map(|(at, len)| second(at, len)),
        [false, true, true, true]
    );
    assert!(refused(|| drop(two_files(1).0.with_second(9, 0))));
    assert!(refused(|| {
        let (mut disk, keys) = disk(2);
        disk.submit_write(5, &keys[..1], Durability::Cached, &mut Always(0));
        drop(disk.with_second(4, 0));
    }));
    let no_file: [fn(&mut PossibleDisk); 2] = [
        |disk| _ = disk.submit_flush_of(File::Second),
        |disk| _ = disk.submit_set_len_of(File::Second, 0, &mut Always(0)),
    ];
    assert!(no_file.into_iter().all(|submit| refused(move || submit(&mut disk(2).0))));
}
