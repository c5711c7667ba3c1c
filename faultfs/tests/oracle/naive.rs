//! The device rules, applied literally to the whole history of a life. Slow on purpose; shares nothing with the disk.
//!
//! A life starts from one concrete state. Every operation is kept with the times of its submission and its end. What a
//! read may return and what a crash may leave is computed anew from that history each time it is asked for, and a
//! crash is followed up from each concrete state that it may leave. Subsets of writes and orders of length changes are
//! enumerated, not reasoned about.

use std::collections::BTreeSet;

use faultfs::disk::File;
use faultfs::profile::{DiscardMode, FlushFailure, Profile};

use super::program::{Ending, Event, OLD, Op, Program, SECOND, UNITS, ZERO, finish};

/// An operation and what became of it.
#[derive(Clone, Debug)]
struct Past {
    op: Op,
    file: File,
    submitted: usize,
    ended: Option<usize>,
    well: bool,
    /// It failed, and ends when it is settled.
    late: bool,
    /// A failed sync marked it clean.
    tainted: bool,
    /// Units that a decided read has taken out of its reach.
    forgotten: Vec<u32>,
    /// The device zeroes what it discards.
    zeroes: bool,
    /// Where the file has no room any more.
    room_end: u32,
}

/// The length of the file, and that of a second one if there is one.
type Lens = (u32, Option<u32>);

#[derive(Clone, Debug)]
struct Life {
    base: [u8; UNITS as usize],
    lens: Lens,
    past: Vec<Past>,
    /// Number in the program of the first operation of this life.
    first: usize,
    time: usize,
    stuck: bool,
    reads: String,
    discard: DiscardMode,
}

/// Why a program is not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unspecified;

/// Everything that may come out of `program`.
pub(crate) fn outcomes(
    program: &Program,
    profile: Profile,
) -> Result<BTreeSet<String>, Unspecified> {
    let mut base = [ZERO; UNITS as usize];
    base[..program.len as usize].fill(OLD);
    if let Some(len) = program.second {
        base[SECOND as usize..(SECOND + len) as usize].fill(OLD);
    }
    let life = Life {
        base,
        lens: (program.len, program.second),
        past: Vec::new(),
        first: 0,
        time: 0,
        stuck: false,
        reads: String::new(),
        discard: program.discard,
    };
    let mut found = BTreeSet::new();
    live(life, &program.events, profile, &mut found)?;
    Ok(found)
}

fn live(
    mut life: Life,
    events: &[Event],
    profile: Profile,
    found: &mut BTreeSet<String>,
) -> Result<(), Unspecified> {
    let Some((event, rest)) = events.split_first() else {
        let per_unit: Vec<Vec<u8>> = (0..UNITS).map(|unit| life.visible(unit)).collect();
        for units in product(&per_unit) {
            for lens in life.both(Life::visible_lengths) {
                found.insert(finish(life.reads.clone(), &units, lens));
            }
        }
        return Ok(());
    };
    life.time += 1;
    match *event {
        Event::Submit(op) => life.submit(op)?,
        Event::End(number, ending) => life.end(number, ending),
        Event::Drop(..) => unreachable!("a program is compared without dropped futures"),
        Event::Settle => life.settle(),
        Event::Len(file) => {
            for len in life.visible_lengths(file) {
                let mut next = life.clone();
                next.reads.push_str(&len.to_string());
                live(next, rest, profile, found)?;
            }
            return Ok(());
        }
        Event::Read(unit) => {
            let decides = life.nothing_pending(unit);
            if !decides && life.durable(unit).len() > 1 {
                // Whether a read that finds what is on the medium decides it, with something newer pending, is not
                // for the rules to say.
                return Err(Unspecified);
            }
            for value in life.visible(unit) {
                let mut next = life.clone();
                next.reads.push(char::from(value));
                if decides {
                    next.base[unit as usize] = value;
                    next.past.iter_mut().for_each(|past| past.forgotten.push(unit));
                }
                live(next, rest, profile, found)?;
            }
            return Ok(());
        }
        Event::Crash => {
            let first = life.first + life.past.len();
            for (base, lens) in life.crash_states(profile) {
                let reads = life.reads.clone();
                let time = life.time;
                let (past, discard) = (Vec::new(), life.discard);
                let next = Life { base, lens, past, first, time, stuck: false, reads, discard };
                live(next, rest, profile, found)?;
            }
            return Ok(());
        }
    }
    live(life, rest, profile, found)
}

impl Past {
    fn is_discard(&self) -> bool {
        matches!(self.op, Op::Discard { .. }) && !self.zeroes
    }

    fn is_through(&self) -> bool {
        matches!(self.op, Op::Write { through: true, .. })
    }

    fn is_flush(&self) -> bool {
        matches!(self.op, Op::Flush(_))
    }

    /// Whether it gives `unit` a value that replaces what was there.
    fn replaces(&self, unit: u32) -> bool {
        self.touches(unit) && !self.is_discard()
    }

    fn touches(&self, unit: u32) -> bool {
        let within = match self.op {
            Op::Write { first, count, .. }
            | Op::Zeroes { first, count }
            | Op::Discard { first, count } => (first..first + count).contains(&unit),
            Op::SetLen(file, len) => unit >= start_of(file) + len && unit < self.room_end,
            Op::Flush(_) => false,
        };
        within && !self.forgotten.contains(&unit)
    }

    fn value(&self) -> u8 {
        match self.op {
            Op::Write { value, .. } => value,
            _ => ZERO,
        }
    }

    fn completed(&self) -> bool {
        self.well && !self.tainted && self.ended.is_some()
    }

    fn before(&self, other: &Self) -> bool {
        self.ended.is_some_and(|ended| ended < other.submitted)
    }

    fn changes_length(&self) -> bool {
        match self.op {
            Op::Write { count, .. } | Op::Zeroes { count, .. } => count > 0,
            Op::SetLen(..) => true,
            Op::Discard { .. } | Op::Flush(_) => false,
        }
    }

    /// Whether it does anything at all.
    fn acts(&self) -> bool {
        match self.op {
            Op::Write { count, .. } | Op::Zeroes { count, .. } | Op::Discard { count, .. } => {
                count > 0
            }
            Op::SetLen(..) => true,
            Op::Flush(_) => false,
        }
    }

    /// The last byte that an operation in flight may touch, in units, for overlap.
    fn reach(&self) -> std::ops::Range<u32> {
        match self.op {
            Op::Write { first, count, .. }
            | Op::Zeroes { first, count }
            | Op::Discard { first, count } => first..first + count,
            Op::SetLen(file, len) => start_of(file) + len..self.room_end,
            Op::Flush(_) => 0..0,
        }
    }
}

impl Life {
    fn submit(&mut self, op: Op) -> Result<(), Unspecified> {
        let file = self.file_of(op);
        let two = self.lens.1.is_some();
        let new = Past {
            op,
            file,
            submitted: self.time,
            ended: None,
            well: false,
            late: false,
            tainted: false,
            forgotten: Vec::new(),
            zeroes: self.discard == DiscardMode::Zeroes,
            room_end: if two && file.is_first() { SECOND } else { u32::MAX },
        };
        // Overlapping writes break the contract of a storage and are compared all the same; not so what overlaps a
        // change of length, or a discard unless one of them failed late.
        let sets_length = |past: &Past| matches!(past.op, Op::SetLen(..));
        for past in self.past.iter().filter(|past| past.ended.is_none()) {
            let (a, b) = (past.reach(), new.reach());
            let open = sets_length(past)
                || sets_length(&new)
                || (!past.late && (past.is_discard() || new.is_discard()));
            if a.start < b.end && b.start < a.end && open {
                return Err(Unspecified);
            }
        }
        self.past.push(new);
        Ok(())
    }

    fn settle(&mut self) {
        for past in self.past.iter_mut().filter(|past| past.late) {
            past.ended = Some(self.time);
            past.late = false;
        }
    }

    fn end(&mut self, number: usize, ending: Ending) {
        let at = number - self.first;
        let time = self.time;
        let submitted = self.past[at].submitted;
        self.past[at].ended = Some(time);
        if self.past[at].is_through() {
            // A cached write and a sync: where the sync fails, the write is one of those that it should have covered.
            let failure = match ending {
                Ending::Sync(failure) => Some(failure),
                Ending::Well if self.stuck => {
                    self.reads.push('E');
                    Some(FlushFailure::Sticky)
                }
                _ => None,
            };
            if let Some(failure) = failure {
                self.past[at].well = true;
                if let Op::Write { through, .. } = &mut self.past[at].op {
                    *through = false;
                }
                self.past[at].tainted = failure == FlushFailure::CleanMarked;
                self.fail_sync(self.past[at].file, submitted, failure);
                return;
            }
        }
        match ending {
            Ending::Well if self.past[at].is_flush() && self.stuck => self.reads.push('E'),
            Ending::Well => self.past[at].well = true,
            Ending::Eio => {}
            Ending::Late => {
                self.past[at].late = true;
                self.past[at].ended = None;
            }
            Ending::Enospc(landed) => {
                self.past[at].well = true;
                match &mut self.past[at].op {
                    Op::Write { count, through, .. } => {
                        *count = landed.min(*count);
                        *through = false;
                    }
                    Op::Zeroes { count, .. } | Op::Discard { count, .. } => {
                        *count = landed.min(*count)
                    }
                    Op::SetLen(..) | Op::Flush(_) => {
                        self.past[at].op = Op::Zeroes { first: 0, count: 0 }
                    }
                }
            }
            Ending::Sync(failure) if self.past[at].is_flush() => {
                self.fail_sync(self.past[at].file, submitted, failure);
            }
            Ending::Sync(_) => {}
        }
    }

    /// A sync of a file failed that began at `submitted`. That it failed for good is for both files to know.
    fn fail_sync(&mut self, file: File, submitted: usize, failure: FlushFailure) {
        match failure {
            FlushFailure::RetrySafe => {}
            FlushFailure::Sticky => self.stuck = true,
            FlushFailure::CleanMarked => {
                let marked: Vec<bool> = self
                    .past
                    .iter()
                    .map(|past| {
                        let ended_before = past.ended.is_some_and(|ended| ended < submitted);
                        let covered = self.covered(past);
                        past.file == file && past.completed() && ended_before && !covered
                    })
                    .collect();
                for (past, marked) in self.past.iter_mut().zip(marked) {
                    past.tainted |= marked;
                }
            }
        }
    }

    /// Whether it is durable.
    fn covered(&self, past: &Past) -> bool {
        let through = matches!(past.op, Op::Write { through: true, .. });
        let flushed = self.past.iter().any(|flush| {
            flush.is_flush() && flush.file == past.file && flush.well && past.before(flush)
        });
        past.completed() && (through || flushed)
    }

    /// Values of `unit` that no operation chosen by `rules` supersedes; the base unless one replaced it.
    fn surviving(
        &self,
        unit: u32,
        counts: impl Fn(&Past) -> bool,
        rules: impl Fn(&Past) -> bool,
    ) -> Vec<u8> {
        let ruling: Vec<&Past> =
            self.past.iter().filter(|past| past.replaces(unit) && rules(past)).collect();
        let mut values = BTreeSet::new();
        if ruling.is_empty() {
            values.insert(self.base[unit as usize]);
        }
        for past in self.past.iter().filter(|past| past.touches(unit) && counts(past)) {
            if !ruling.iter().any(|later| past.before(later)) {
                values.insert(past.value());
            }
        }
        values.into_iter().collect()
    }

    fn visible(&self, unit: u32) -> Vec<u8> {
        self.surviving(unit, |_| true, Past::completed)
    }

    fn allowed(&self, unit: u32) -> Vec<u8> {
        self.surviving(unit, |_| true, |past| self.covered(past))
    }

    /// What the medium may hold of `unit` if nothing pending lands.
    fn durable(&self, unit: u32) -> Vec<u8> {
        self.surviving(unit, |past| self.covered(past), |past| self.covered(past))
    }

    /// Whether everything that may still be found in `unit` is on the medium.
    fn nothing_pending(&self, unit: u32) -> bool {
        let durable: Vec<&Past> =
            self.past.iter().filter(|past| past.replaces(unit) && self.covered(past)).collect();
        self.past
            .iter()
            .filter(|past| past.touches(unit) && !durable.iter().any(|later| past.before(later)))
            .all(|past| self.covered(past))
    }

    /// The file of which an operation is.
    fn file_of(&self, op: Op) -> File {
        match op {
            Op::Write { first, .. } | Op::Zeroes { first, .. } | Op::Discard { first, .. } => {
                let second = self.lens.1.is_some() && first >= SECOND;
                if second { File::Second } else { File::First }
            }
            Op::SetLen(file, _) | Op::Flush(file) => file,
        }
    }

    /// Every combination of a length of the one file and one of the other, if there is one.
    fn both(&self, lengths: impl Fn(&Self, File) -> BTreeSet<u32>) -> BTreeSet<Lens> {
        let seconds: Vec<Option<u32>> = match self.lens.1 {
            None => vec![None],
            Some(_) => lengths(self, File::Second).into_iter().map(Some).collect(),
        };
        let firsts = lengths(self, File::First);
        firsts
            .iter()
            .flat_map(|&first| seconds.iter().map(move |&second| (first, second)))
            .collect()
    }

    /// Every length of a file that some subset of its changes, in some order that real time allows, leads to.
    fn lengths(
        &self,
        file: File,
        must: impl Fn(&Past) -> bool,
        may: impl Fn(&Past) -> bool,
    ) -> BTreeSet<u32> {
        let (must, may): (Vec<&Past>, Vec<&Past>) = self
            .past
            .iter()
            .filter(|past| past.file == file && past.changes_length() && (must(past) || may(past)))
            .partition(|past| must(past));
        let mut found = BTreeSet::new();
        for subset in 0..1u32 << may.len() {
            let mut chosen = must.clone();
            chosen.extend(
                may.iter().enumerate().filter(|(n, _)| subset >> n & 1 == 1).map(|(_, p)| p),
            );
            let len = if file.is_first() { Some(self.lens.0) } else { self.lens.1 };
            in_every_order(&chosen, len.expect("a file that there is"), &mut found);
        }
        found
    }

    fn visible_lengths(&self, file: File) -> BTreeSet<u32> {
        self.lengths(file, Past::completed, |_| true)
    }

    fn crash_states(&self, profile: Profile) -> BTreeSet<([u8; UNITS as usize], Lens)> {
        let mut states = BTreeSet::new();
        let mut add = |per_unit: &[Vec<u8>], lengths: &BTreeSet<Lens>| {
            for units in product(per_unit) {
                for &(first, second) in lengths {
                    let mut state = [ZERO; UNITS as usize];
                    for (unit, &value) in (0..).zip(&units) {
                        let kept = match second {
                            Some(second) if unit >= SECOND => unit - SECOND < second,
                            _ => unit < first,
                        };
                        if kept {
                            state[unit as usize] = value;
                        }
                    }
                    states.insert((state, (first, second)));
                }
            }
        };
        if matches!(profile, Profile::Torn | Profile::TornLength) {
            let lengths = match profile {
                Profile::Torn => self.both(Self::visible_lengths),
                _ => {
                    self.both(|life, file| life.lengths(file, |past| life.covered(past), |_| true))
                }
            };
            let per_unit: Vec<Vec<u8>> = (0..UNITS).map(|unit| self.allowed(unit)).collect();
            add(&per_unit, &lengths);
            return states;
        }
        let writes: Vec<usize> =
            (0..self.past.len()).filter(|&at| !self.past[at].is_flush()).collect();
        for subset in 0..1u32 << writes.len() {
            let landed: Vec<usize> = writes
                .iter()
                .enumerate()
                .filter(|(n, _)| subset >> n & 1 == 1)
                .map(|(_, &at)| at)
                .collect();
            if !self.may_land(profile, &landed) {
                continue;
            }
            let has_landed =
                |past: &Past| landed.iter().any(|&at| std::ptr::eq(&self.past[at], past));
            let lengths = self.both(|life, file| {
                life.lengths(file, |past| past.completed() || has_landed(past), |_| false)
            });
            let per_unit: Vec<Vec<u8>> =
                (0..UNITS).map(|unit| self.surviving(unit, has_landed, has_landed)).collect();
            add(&per_unit, &lengths);
        }
        states
    }

    /// Whether exactly these operations may have landed, under the profiles that choose by whole operations.
    fn may_land(&self, profile: Profile, landed: &[usize]) -> bool {
        let lands = |at: usize| landed.contains(&at);
        let writes: Vec<usize> =
            (0..self.past.len()).filter(|&at| !self.past[at].is_flush()).collect();
        if writes.iter().any(|&at| self.covered(&self.past[at]) && !lands(at)) {
            return false;
        }
        let (completed, free): (Vec<usize>, Vec<usize>) = writes
            .into_iter()
            .filter(|&at| !self.covered(&self.past[at]))
            .partition(|&at| self.past[at].completed());
        match profile {
            Profile::Kill => completed.iter().all(|&at| lands(at)),
            Profile::Prefix => {
                let lost: Vec<usize> = completed.iter().copied().filter(|&at| !lands(at)).collect();
                let ended = |at: usize| self.past[at].ended;
                // What landed is a prefix: nothing landed, or is durable by a sync of whichever file, that completed
                // after something lost.
                let in_order = lost.iter().all(|&gone| {
                    completed.iter().all(|&at| !lands(at) || ended(at) < ended(gone))
                        && self.past.iter().all(|past| {
                            !(past.acts() && self.covered(past)) || past.ended < ended(gone)
                        })
                });
                in_order && (lost.is_empty() || free.iter().all(|&at| !lands(at)))
            }
            // Each file by itself.
            Profile::Epoch => File::BOTH.into_iter().all(|file| {
                let of_file = |&&at: &&usize| self.past[at].file == file;
                let flushes = || self.past.iter().filter(|p| p.is_flush() && p.file == file);
                let finished = flushes().filter(|past| past.well && past.ended.is_some());
                let latest = finished.map(|past| past.submitted).max().unwrap_or(0);
                let mut barriers: Vec<usize> = flushes()
                    .filter(|past| past.ended.is_none() && past.submitted > latest)
                    .map(|past| past.submitted)
                    .collect();
                barriers.insert(0, 0);
                (0..barriers.len()).any(|reached| {
                    let next = barriers.get(reached + 1).copied().unwrap_or(usize::MAX);
                    completed.iter().filter(of_file).all(|&at| {
                        lands(at) || self.past[at].ended.is_some_and(|end| end >= barriers[reached])
                    }) && landed
                        .iter()
                        .filter(of_file)
                        .all(|&at| self.covered(&self.past[at]) || self.past[at].submitted < next)
                })
            }),
            Profile::Cache | Profile::Torn | Profile::TornLength => true,
        }
    }
}

/// Applies the changes of length one by one, in every order that keeps to real time.
fn in_every_order(left: &[&Past], len: u32, found: &mut BTreeSet<u32>) {
    if left.is_empty() {
        found.insert(len);
    }
    for at in 0..left.len() {
        if left.iter().any(|other| other.before(left[at])) {
            continue;
        }
        let len = match left[at].op {
            Op::Write { first, count, .. } | Op::Zeroes { first, count } => {
                len.max(first + count - start_of(left[at].file))
            }
            Op::SetLen(_, len) => len,
            Op::Discard { .. } | Op::Flush(_) => len,
        };
        let mut rest = left.to_vec();
        rest.remove(at);
        in_every_order(&rest, len, found);
    }
}

/// The unit at which a file begins.
fn start_of(file: File) -> u32 {
    if file.is_first() { 0 } else { SECOND }
}

fn product(per_unit: &[Vec<u8>]) -> Vec<Vec<u8>> {
    per_unit.iter().fold(vec![Vec::new()], |rows, values| {
        rows.iter()
            .flat_map(|row| values.iter().map(move |&value| [&row[..], &[value]].concat()))
            .collect()
    })
}

#[test]
fn the_rules_as_the_oracle_states_them_on_three_programs() {
    let check = |text: &str, profile: Profile, expected: &[&str]| {
        let program = Program::parse(2, text).unwrap();
        let expected: BTreeSet<String> = expected.iter().map(|&text| text.to_owned()).collect();
        assert_eq!(outcomes(&program, profile), Ok(expected), "{text}");
    };
    check("W(a) W(b) crash", Profile::TornLength, &["|oo", "|1o", "|o2", "|12"]);
    check("W(a) T(b) crash", Profile::TornLength, &["|o2", "|12"]);
    check("W(a)~ F <. crash", Profile::TornLength, &["|oo", "|1o"]);
}
