//! The guest's sets, by hand: what each answer to a request leaves possible.

use model::evidence::ValueKey;
use model::guest::{DiscardReads, Guest, Promises, Token};
use model::mistake::Mistake;
use model::op::{Durability, Op};

use crate::{Outcome, expect};

pub(crate) const ZERO: ValueKey = ValueKey::ZERO;
pub(crate) const A: ValueKey = ValueKey(1);
pub(crate) const B: ValueKey = ValueKey(2);
pub(crate) const C: ValueKey = ValueKey(3);
pub(crate) const CACHED: Durability = Durability::Cached;
pub(crate) const PROMISES: Promises = Promises {
    cluster_units: 2,
    discard: DiscardReads::Zeroes,
    grow: Durability::Through,
    changes: Durability::Cached,
};

/// A disk of `units` zero units.
pub(crate) fn blank(units: usize, mistake: Mistake) -> Guest {
    Guest::new(&vec![ZERO; units], PROMISES).with_mistake(mistake)
}

pub(crate) fn done(guest: &mut Guest, unit: u64, value: ValueKey) {
    let token = guest.begin_write(unit, &[value], CACHED);
    guest.complete(token);
}

pub(crate) fn flush(guest: &mut Guest) {
    let token = guest.begin_flush();
    guest.complete(token);
}

pub(crate) fn flush_settles(mistake: Mistake) -> Outcome {
    let mut guest = blank(1, mistake);
    done(&mut guest, 0, A);
    expect("W", guest.allowed(0), vec![ZERO, A])?;
    done(&mut guest, 0, B);
    expect("W W", guest.allowed(0), vec![ZERO, A, B])?;
    flush(&mut guest);
    expect("W W F", guest.allowed(0), vec![B])?;
    let figures = guest.figures();
    expect("decided", (figures.units, figures.decided, figures.values), (1, 1, 1))
}

pub(crate) fn flush_covers_completed_only(mistake: Mistake) -> Outcome {
    let mut guest = blank(2, mistake);
    let a = guest.begin_write(0, &[A], CACHED);
    done(&mut guest, 1, B);
    let flush = guest.begin_flush();
    guest.complete(a);
    done(&mut guest, 1, C);
    guest.complete(flush);
    expect("completed during the flush", guest.allowed(0), vec![ZERO, A])?;
    expect("before and during", guest.allowed(1), vec![B, C])
}

pub(crate) fn failed_flush(mistake: Mistake) -> Outcome {
    let mut guest = blank(1, mistake);
    done(&mut guest, 0, A);
    let failed = guest.begin_flush();
    guest.fail(failed);
    expect("W F-fails", guest.allowed(0), vec![ZERO, A])?;
    let dropped = guest.begin_flush();
    guest.abandon(dropped);
    expect("W F-dropped", guest.allowed(0), vec![ZERO, A])?;
    flush(&mut guest);
    expect("then one that succeeds", guest.allowed(0), vec![A])
}

pub(crate) fn through(mistake: Mistake) -> Outcome {
    let mut guest = blank(2, mistake);
    done(&mut guest, 0, A);
    let token = guest.begin_write(1, &[B], Durability::Through);
    expect("in flight", guest.allowed(1), vec![ZERO, B])?;
    guest.complete(token);
    expect("its own unit", guest.allowed(1), vec![B])?;
    expect("another unit", guest.allowed(0), vec![ZERO, A])
}

pub(crate) fn failed_write(mistake: Mistake) -> Outcome {
    let mut guest = blank(1, mistake);
    let failed = guest.begin_write(0, &[A], CACHED);
    guest.fail(failed);
    flush(&mut guest);
    expect("W-fails F", guest.allowed(0), vec![ZERO, A])?;
    done(&mut guest, 0, B);
    expect("W-fails F W", guest.allowed(0), vec![ZERO, A, B])?;
    flush(&mut guest);
    expect("W-fails F W F", guest.allowed(0), vec![B])
}

pub(crate) fn dropped_write(mistake: Mistake) -> Outcome {
    let mut guest = blank(1, mistake);
    let dropped = guest.begin_write(0, &[A], Durability::Through);
    guest.abandon(dropped);
    flush(&mut guest);
    expect("W-dropped F", guest.allowed(0), vec![ZERO, A])?;
    done(&mut guest, 0, B);
    flush(&mut guest);
    expect("W-dropped F W F", guest.allowed(0), vec![B])
}

pub(crate) fn overlapping_writes(mistake: Mistake) -> Outcome {
    let mut guest = blank(1, mistake);
    let a = guest.begin_write(0, &[A], CACHED);
    let b = guest.begin_write(0, &[B], CACHED);
    guest.complete(a);
    guest.complete(b);
    flush(&mut guest);
    expect("W || W, F", guest.allowed(0), vec![A, B])?;
    let c = guest.begin_write(0, &[C], CACHED);
    flush(&mut guest);
    guest.complete(c);
    expect("and one not flushed", guest.allowed(0), vec![A, B, C])
}

pub(crate) fn discard(mistake: Mistake) -> Outcome {
    // Clusters of two units, and half a cluster at the end.
    let mut guest = blank(7, mistake);
    for unit in 0..7 {
        done(&mut guest, unit, A);
    }
    flush(&mut guest);
    let op = Op::Discard { offset: 512, length: 3 * 512 };
    let token = guest.begin(&op, |_, _| unreachable!("a discard carries nothing"));
    guest.complete(token);
    flush(&mut guest);
    let sets: Vec<_> = (0..7).map(|unit| guest.allowed(unit)).collect();
    let kept = vec![A];
    expect(
        "1..4",
        sets,
        vec![kept.clone(), kept.clone(), vec![ZERO], vec![ZERO], kept.clone(), kept.clone(), kept],
    )?;
    let token = guest.begin_discard(5, 2);
    guest.complete(token);
    flush(&mut guest);
    expect("5 keeps", guest.allowed(5), vec![A])?;
    expect("the tail cluster is whole", guest.allowed(6), vec![ZERO])
}

pub(crate) fn weak_discard(mistake: Mistake) -> Outcome {
    let promises = Promises { discard: DiscardReads::Either, ..PROMISES };
    let mut guest = Guest::new(&[A, A], promises).with_mistake(mistake);
    let token = guest.begin_discard(0, 2);
    guest.complete(token);
    flush(&mut guest);
    expect("D F", guest.allowed(0), vec![ZERO, A])?;
    done(&mut guest, 0, B);
    flush(&mut guest);
    expect("D F W F", guest.allowed(0), vec![B])
}

pub(crate) fn crash_folds(mistake: Mistake) -> Outcome {
    let mut guest = blank(1, mistake);
    done(&mut guest, 0, A);
    guest.begin_write(0, &[B], CACHED);
    guest.crash();
    expect("W W-in-flight crash", guest.allowed(0), vec![ZERO, A, B])?;
    guest.crash();
    expect("and again", guest.allowed(0), vec![ZERO, A, B])?;
    flush(&mut guest);
    expect("a flush decides nothing that was not written", guest.allowed(0), vec![ZERO, A, B])?;
    done(&mut guest, 0, C);
    expect("W", guest.allowed(0), vec![ZERO, A, B, C])?;
    flush(&mut guest);
    expect("W F", guest.allowed(0), vec![C])
}

pub(crate) fn collapse_binds(mistake: Mistake) -> Outcome {
    let mut guest = blank(2, mistake);
    done(&mut guest, 0, A);
    done(&mut guest, 1, B);
    guest.crash();
    guest.collapse(0, &[ZERO]);
    expect("recovery read zero", guest.allowed(0), vec![ZERO])?;
    // The other unit is still open until somebody reads it.
    let read = guest.begin_read(1, 1);
    expect("either", guest.complete_read(read, &[B]), Ok(()))?;
    expect("it was read", guest.allowed(1), vec![B])?;
    let read = guest.begin_read(1, 1);
    expect("another value", guest.complete_read(read, &[ZERO]).is_err(), true)
}

pub(crate) fn reads(mistake: Mistake) -> Outcome {
    let mut guest = blank(1, mistake);
    done(&mut guest, 0, A);
    let returns =
        |guest: &Guest, token: Token, value| guest.clone().complete_read(token, &[value]).is_ok();
    let read = guest.begin_read(0, 1);
    expect("the newest", returns(&guest, read, A), true)?;
    expect("a superseded one", returns(&guest, read, ZERO), false)?;
    let write = guest.begin_write(0, &[B], CACHED);
    expect("one that began during the read", returns(&guest, read, B), true)?;
    guest.complete(write);
    flush(&mut guest);
    done(&mut guest, 0, C);
    flush(&mut guest);
    for value in [A, B, C] {
        expect("any since it began, flushed over or not", returns(&guest, read, value), true)?;
    }
    expect("nobody's", returns(&guest, read, ValueKey(9)), false)
}

pub(crate) fn sizes(mistake: Mistake) -> Outcome {
    let mut guest = blank(2, mistake);
    let grow = guest.begin_grow(4);
    expect("usable while it grows", guest.size(), 1024)?;
    expect("sizes", guest.allowed_sizes(), vec![1024, 2048])?;
    let mut crashed = guest.clone();
    crashed.crash();
    expect("between", crashed.permits_size(1536), false)?;
    crashed.collapse_size(1024);
    expect("before", (crashed.units(), crashed.allowed_sizes()), (2, vec![1024]))?;
    guest.complete(grow);
    expect("after", (guest.size(), guest.allowed_sizes()), (2048, vec![2048]))?;
    expect("new space", guest.allowed(3), vec![ZERO])?;
    // A growth that is durable only with a flush, or with a write-through write to what it added.
    let promises = Promises { grow: Durability::Cached, ..PROMISES };
    let mut guest = Guest::new(&[ZERO], promises).with_mistake(mistake);
    let grow = guest.begin_grow(2);
    guest.complete(grow);
    expect("cached", guest.allowed_sizes(), vec![512, 1024])?;
    let write = guest.begin_write(1, &[A], Durability::Through);
    guest.complete(write);
    if mistake == Mistake::ThroughForgotten {
        Ok(())
    } else {
        expect("written to", guest.allowed_sizes(), vec![1024])
    }
}

/// Goal: a disk that becomes smaller holds all of what it held or has the new size, and what was cut off does not come back. Where it
/// is not known whether it did become smaller, either may come to light.
pub(crate) fn shrinks(mistake: Mistake) -> Outcome {
    let mut guest = Guest::new(&[A; 6], PROMISES).with_mistake(mistake);
    let shrink = guest.begin_shrink(2);
    expect("usable while it shrinks", guest.size(), 1024)?;
    expect("sizes", guest.allowed_sizes(), vec![1024, 3072])?;
    expect("still there", guest.allowed(5), vec![A])?;
    let mut crashed = guest.clone();
    crashed.crash();
    crashed.collapse_size(3072);
    expect("before", crashed.allowed(5), vec![A])?;
    let mut failed = guest.clone();
    failed.fail(shrink);
    expect("perhaps", failed.allowed_sizes(), vec![1024, 3072])?;
    expect("smaller than it may be", failed.clip(&Op::Grow { to: 2048 }), None)?;
    let grow = failed.begin_grow(8);
    failed.complete(grow);
    expect("either", failed.allowed(5), vec![ZERO, A])?;
    expect("new", failed.allowed(7), vec![ZERO])?;
    expect("never in doubt", failed.allowed(1), vec![A])?;
    guest.complete(shrink);
    expect("after", (guest.units(), guest.allowed_sizes()), (2, vec![1024]))?;
    let grow = guest.begin_grow(6);
    guest.complete(grow);
    expect("gone", guest.allowed(5), vec![ZERO])?;

    // What was in flight all the while may have been done before, or be done last.
    let mut before = Guest::new(&[A; 6], PROMISES).with_mistake(mistake);
    let write = before.begin_write(4, &[B, B], CACHED);
    let read = before.begin_read(5, 1);
    let shrink = before.begin_shrink(2);
    before.complete(shrink);
    let grow = before.begin_grow(6);
    before.complete(grow);
    expect("while it is in flight", before.allowed(5), vec![ZERO, B])?;
    before.complete_read(read, &[ZERO]).map_err(|_| "a read of what came back".to_owned())?;
    before.complete(write);
    flush(&mut before);
    expect("when it has returned", before.allowed(5), vec![ZERO, B])?;
    expect("what stayed", before.allowed(1), vec![A])
}

/// An image that writes everything through owes what it answered: writes, zeroes and discards.
pub(crate) fn everything_through(mistake: Mistake) -> Outcome {
    let promises = Promises { changes: Durability::Through, ..PROMISES };
    let mut guest = Guest::new(&[A; 6], promises).with_mistake(mistake);
    let write = guest.begin_write(0, &[B], CACHED);
    expect("in flight", guest.allowed(0), vec![A, B])?;
    guest.complete(write);
    let zeroes = guest.begin_zeroes(1, 1);
    guest.complete(zeroes);
    let discard = guest.begin_discard(2, 2);
    guest.complete(discard);
    let failed = guest.begin_write(4, &[B], CACHED);
    guest.fail(failed);
    expect("written", guest.allowed(0), vec![B])?;
    expect("zeroed", guest.allowed(1), vec![ZERO])?;
    expect("discarded", guest.allowed(2), vec![ZERO])?;
    expect("failed", guest.allowed(4), vec![A, B])?;
    expect("untouched", guest.allowed(5), vec![A])
}

pub(crate) fn zeroes(mistake: Mistake) -> Outcome {
    let mut guest = Guest::new(&[A; 4], PROMISES).with_mistake(mistake);
    let op = Op::WriteZeroes { offset: 512, length: 1024, unmap: false };
    let token = guest.begin(&op, |_, _| unreachable!("zeroes carry nothing"));
    expect("in flight", guest.allowed(1), vec![ZERO, A])?;
    guest.complete(token);
    expect("completed", guest.allowed(2), vec![ZERO, A])?;
    flush(&mut guest);
    let sets: Vec<_> = (0..4).map(|unit| guest.allowed(unit)).collect();
    expect("flushed", sets, vec![vec![A], vec![ZERO], vec![ZERO], vec![A]])
}

pub(crate) fn several_units(mistake: Mistake) -> Outcome {
    let mut guest = blank(4, mistake);
    let whole = guest.begin_write(0, &[A, B, C], CACHED);
    let read = guest.begin_read(0, 4);
    // Overlaps the first in its last two units, and goes on behind it.
    let over = guest.begin_write(1, &[C, A, B], CACHED);
    let returns =
        |guest: &Guest, found: [ValueKey; 4]| guest.clone().complete_read(read, &found).is_ok();
    for found in [[ZERO; 4], [A, B, C, ZERO], [A, C, A, B], [ZERO, B, A, ZERO], [A, ZERO, C, B]] {
        expect("one of each unit's", returns(&guest, found), true)?;
    }
    for found in [[B, B, C, ZERO], [A, A, C, ZERO], [A, B, B, ZERO], [A, B, C, A]] {
        expect("another unit's", returns(&guest, found), false)?;
    }
    guest.complete(whole);
    guest.complete(over);
    flush(&mut guest);
    let sets: Vec<_> = (0..4).map(|unit| guest.allowed(unit)).collect();
    expect("flushed", sets, vec![vec![A], vec![B, C], vec![A, C], vec![B]])
}

pub(crate) fn without_zero(mistake: Mistake) -> Outcome {
    let mut guest = Guest::new(&[A; 2], PROMISES).with_mistake(mistake);
    done(&mut guest, 0, B);
    done(&mut guest, 0, C);
    let permits = |guest: &Guest, unit| [ZERO, A, B, C].map(|key| guest.permits(unit, key));
    expect("A, B or C", permits(&guest, 0), [false, true, true, true])?;
    expect("A", permits(&guest, 1), [false, true, false, false])?;
    expect("no zeroes", guest.permits_zeroes(0..1), false)?;
    guest.crash();
    expect("after a crash", permits(&guest, 0), [false, true, true, true])?;
    guest.collapse(0, &[B, C]);
    expect("recovery left two", permits(&guest, 0), [false, false, true, true])?;
    expect("and both bind", guest.allowed(0), vec![B, C])?;
    let read = guest.begin_read(0, 1);
    expect("no zero is read", guest.clone().complete_read(read, &[ZERO]).is_err(), true)?;
    expect("nor what recovery dropped", guest.clone().complete_read(read, &[A]).is_err(), true)?;
    expect("either of the two", guest.complete_read(read, &[C]), Ok(()))?;
    expect("it was read", guest.allowed(0), vec![C])
}

pub(crate) fn growths(mistake: Mistake) -> Outcome {
    let promises = Promises { grow: Durability::Cached, ..PROMISES };
    for answer in [Guest::fail, Guest::abandon] {
        let mut guest = Guest::new(&[A], promises).with_mistake(mistake);
        let grow = guest.begin_grow(2);
        answer(&mut guest, grow);
        flush(&mut guest);
        let sizes = (guest.size(), guest.allowed_sizes());
        expect("it may have happened", sizes, (512, vec![512, 1024]))?;
        expect("what it added", guest.allowed(1), vec![ZERO])?;
        let grow = guest.begin_grow(3);
        guest.complete(grow);
        flush(&mut guest);
        let sizes = (guest.size(), guest.allowed_sizes());
        expect("one more that succeeds", sizes, (1536, vec![1536]))?;
    }
    // Two at once have no order.
    let mut guest = Guest::new(&[A], promises).with_mistake(mistake);
    let (two, three) = (guest.begin_grow(2), guest.begin_grow(3));
    guest.complete(three);
    guest.complete(two);
    flush(&mut guest);
    expect("either", guest.allowed_sizes(), vec![1024, 1536])
}
