//! The guest's sets, by enumeration: every short history of one unit, judged a second time by the text of the oracle.

use std::collections::BTreeSet;

use model::evidence::ValueKey;
use model::guest::{Guest, Token};
use model::mistake::Mistake;
use model::op::Durability;

use crate::guest::{CACHED, ZERO, blank};
use crate::{Outcome, expect};

/// A history of one unit as plain facts, judged by the text of the oracle and nothing else.
#[derive(Clone, Default)]
struct Naive {
    now: u32,
    writes: Vec<NaiveWrite>,
    /// Submission times of flushes, and whether each returned well yet.
    flushes: Vec<(u32, bool)>,
}

#[derive(Clone)]
struct NaiveWrite {
    value: ValueKey,
    begin: u32,
    answered: Option<u32>,
    well: bool,
    through: bool,
}

impl Naive {
    fn before(a: &NaiveWrite, b: &NaiveWrite) -> bool {
        a.answered.is_some_and(|end| end < b.begin)
    }

    /// "The maximal writes completed before the last successful flush was submitted, and every write that is not before one
    /// of these"; a completed write-through write counts as flushed.
    fn allowed(&self) -> BTreeSet<ValueKey> {
        let flushed: Vec<_> = self
            .writes
            .iter()
            .filter(|w| {
                let flushed_at =
                    |end| self.flushes.iter().any(|(begin, well)| *well && end < *begin);
                w.well && w.answered.is_some_and(|end| w.through || flushed_at(end))
            })
            .collect();
        let maximal: Vec<_> = flushed
            .iter()
            .filter(|w| !flushed.iter().any(|other| Self::before(w, other)))
            .collect();
        let kept = self.writes.iter().filter(|w| !maximal.iter().any(|m| Self::before(w, m)));
        kept.map(|w| w.value).collect()
    }

    /// What a read that began at `begin` may return now: everything that no write superseded by then.
    fn readable(&self, begin: u32) -> BTreeSet<ValueKey> {
        let superseded = |w: &NaiveWrite| {
            self.writes
                .iter()
                .any(|s| s.well && s.answered.is_some_and(|end| end < begin) && Self::before(w, s))
        };
        self.writes.iter().filter(|w| !superseded(w)).map(|w| w.value).collect()
    }

    fn crash(&mut self) {
        let left = self.allowed().into_iter();
        let settled =
            |value| NaiveWrite { value, begin: 0, answered: Some(0), well: true, through: true };
        self.writes = left.map(settled).collect();
        self.flushes.clear();
    }
}

#[derive(Clone)]
struct Walk {
    naive: Naive,
    guest: Guest,
    /// Writes in flight: index in `naive.writes`.
    writing: Vec<(usize, Token)>,
    flushing: Vec<(usize, Token)>,
    reading: Option<(u32, Token)>,
    next_value: u32,
    crashed: bool,
    read: bool,
}

/// Every history of one unit with up to 7 events: writes cached and through, flushes, a read, any answer, one crash. For
/// mutants 5 must do.
pub(crate) fn brute_force(mistake: Mistake) -> Outcome {
    let start = NaiveWrite { value: ZERO, begin: 0, answered: Some(0), well: true, through: true };
    let naive = Naive { writes: vec![start], ..Naive::default() };
    let walk = Walk {
        naive,
        guest: blank(1, mistake),
        writing: Vec::new(),
        flushing: Vec::new(),
        reading: None,
        next_value: 1,
        crashed: false,
        read: false,
    };
    let mut histories = 0;
    let depth = if mistake == Mistake::None { 7 } else { 5 };
    explore(&walk, depth, &mut histories)?;
    if mistake == Mistake::None {
        println!("{histories} histories");
    }
    Ok(())
}

fn explore(walk: &Walk, depth: u32, histories: &mut u64) -> Outcome {
    *histories += 1;
    let wanted: Vec<_> = walk.naive.allowed().into_iter().collect();
    expect("G", walk.guest.allowed(0), wanted)?;
    if let Some((begin, token)) = walk.reading {
        let readable = walk.naive.readable(begin);
        for value in (0..walk.next_value).map(ValueKey) {
            let fine = walk.guest.clone().complete_read(token, &[value]).is_ok();
            expect("read", fine, readable.contains(&value))?;
        }
    }
    if depth == 0 {
        return Ok(());
    }
    for through in [false, true] {
        let mut next = walk.clone();
        next.naive.now += 1;
        let value = ValueKey(next.next_value);
        next.next_value += 1;
        let durability = if through { Durability::Through } else { CACHED };
        let token = next.guest.begin_write(0, &[value], durability);
        next.writing.push((next.naive.writes.len(), token));
        let begin = next.naive.now;
        next.naive.writes.push(NaiveWrite { value, begin, answered: None, well: false, through });
        explore(&next, depth - 1, histories)?;
    }
    if walk.flushing.len() < 2 {
        let mut next = walk.clone();
        next.naive.now += 1;
        let token = next.guest.begin_flush();
        next.flushing.push((next.naive.flushes.len(), token));
        next.naive.flushes.push((next.naive.now, false));
        explore(&next, depth - 1, histories)?;
    }
    if !walk.read {
        let mut next = walk.clone();
        next.naive.now += 1;
        next.reading = Some((next.naive.now, next.guest.begin_read(0, 1)));
        next.read = true;
        explore(&next, depth - 1, histories)?;
    }
    for at in 0..walk.writing.len() {
        for answer in 0..3 {
            let mut next = walk.clone();
            next.naive.now += 1;
            let (write, token) = next.writing.remove(at);
            next.naive.writes[write].answered = Some(next.naive.now);
            next.naive.writes[write].well = answer == 0;
            match answer {
                0 => next.guest.complete(token),
                1 => next.guest.fail(token),
                _ => next.guest.abandon(token),
            }
            explore(&next, depth - 1, histories)?;
        }
    }
    for at in 0..walk.flushing.len() {
        for well in [true, false] {
            let mut next = walk.clone();
            next.naive.now += 1;
            let (flush, token) = next.flushing.remove(at);
            next.naive.flushes[flush].1 = well;
            if well {
                next.guest.complete(token);
            } else {
                next.guest.fail(token);
            }
            explore(&next, depth - 1, histories)?;
        }
    }
    if !walk.crashed {
        let mut next = walk.clone();
        next.naive.now += 1;
        next.naive.crash();
        next.guest.crash();
        next.writing.clear();
        next.flushing.clear();
        next.reading = None;
        next.crashed = true;
        explore(&next, depth - 1, histories)?;
    }
    Ok(())
}
