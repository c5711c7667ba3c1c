//! Examinations of what a disk keeps: base values, pending writes, lengths.

use storage::{Durability, UNIT};

use super::{Landing, MAX_UNITS, NONE, PAGE, PossibleDisk};
use crate::chooser::{Always, Random};
use crate::profile::{FlushFailure, Profile};
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
