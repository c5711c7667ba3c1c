//! Programs for a disk as data, their notation, and what a possible disk makes of them.
//!
//! ```text
//!   W(ab)   cached write of units a and b      T(a)   write-through         Z(a)  zeroes       D(a)  discard
//!   L3      set_len to 3 units                 F      flush                 R(a)  read         N     read the length
//!   crash   power cut     S     settle         /      only sets operations apart
//!   l1 f n  length, flush, read of the length of a second file, if there is one: units c and d are its first two
//!
//!   X!  fails with EIO     W(ab)!1  fails with ENOSPC after one unit     F!retry F!clean F!sticky  failing flush
//!   X!late  fails with EIO and may land until it is settled              T(a)!retry ...  failing in its sync
//!   X-  its future is dropped: it ends at any later moment before the next S, or never; X-! X-!late ...  and fails
//!   X~  is submitted and stays in flight       <.  the oldest in flight ends well    >.  the newest
//!   <! >! <!1 <!clean ...  it fails like that
//! ```
//!
//! The n-th data write writes the value n to each of its units. An outcome shows what was read and, after a bar, every
//! unit up to the length of the file: `.` zero, `o` what was there at first, a digit the write that it came from.
//! A second file follows after a `,`. `E` among the reads is a flush or write-through that failed because an earlier sync had failed for good.

use std::collections::BTreeSet;

use faultfs::Defect;
use faultfs::chooser::{Always, Chooser, Exhaustive};
use faultfs::disk::{File, FlushId, Landing, PossibleDisk, WriteId};
use faultfs::profile::{DiscardMode, FlushFailure, Profile};
use faultfs::values::{Key, Values};
use storage::{Durability, UNIT};

/// Units that a program may touch.
pub(crate) const UNITS: u32 = 4;
/// The first unit of a second file.
pub(crate) const SECOND: u32 = 2;
pub(crate) const OLD: u8 = b'o';
pub(crate) const ZERO: u8 = b'.';

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Write { first: u32, count: u32, through: bool, value: u8 },
    Zeroes { first: u32, count: u32 },
    Discard { first: u32, count: u32 },
    SetLen(File, u32),
    Flush(File),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Well,
    Eio,
    Enospc(u32),
    /// Of a flush, or of a write-through in its sync.
    Sync(FlushFailure),
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Operations are numbered in the order of their submission.
    Submit(Op),
    End(usize, Ending),
    /// Nobody waits for its end any more.
    Drop(usize, Ending),
    Read(u32),
    Len(File),
    Settle,
    Crash,
}

#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Length of the file at first; all these units hold `OLD`.
    pub(crate) len: u32,
    /// That of the second file, if there is one.
    pub(crate) second: Option<u32>,
    pub(crate) discard: DiscardMode,
    pub(crate) events: Vec<Event>,
}

impl Program {
    /// Parses the notation; none if it ends something when nothing is in flight.
    pub(crate) fn parse(len: u32, text: &str) -> Option<Self> {
        let mut events = Vec::new();
        let mut in_flight: Vec<usize> = Vec::new();
        let mut submitted = 0;
        let mut value = b'0';
        for token in text.split_whitespace().filter(|&token| token != "/") {
            let (head, rest) = match token.find(['~', '!', '.', '-']) {
                Some(at) => token.split_at(at),
                None => (token, ""),
            };
            let file =
                if head.as_bytes()[0].is_ascii_lowercase() { File::Second } else { File::First };
            let range = |text: &str| {
                let (first, last) =
                    (text.as_bytes()[2] - b'a', text.as_bytes()[text.len() - 2] - b'a');
                (u32::from(first), u32::from(last - first) + 1)
            };
            let op = match head.as_bytes()[0] {
                b'W' | b'T' => {
                    let (first, count) = range(head);
                    value += 1;
                    Op::Write { first, count, through: head.starts_with('T'), value }
                }
                b'Z' => Op::Zeroes { first: range(head).0, count: range(head).1 },
                b'D' => Op::Discard { first: range(head).0, count: range(head).1 },
                b'L' | b'l' => Op::SetLen(file, u32::from(head.as_bytes()[1] - b'0')),
                b'F' | b'f' => Op::Flush(file),
                b'R' => {
                    events.push(Event::Read(range(head).0));
                    continue;
                }
                b'N' | b'n' => {
                    events.push(Event::Len(file));
                    continue;
                }
                b'S' => {
                    events.push(Event::Settle);
                    continue;
                }
                b'c' => {
                    events.push(Event::Crash);
                    in_flight.clear();
                    continue;
                }
                b'<' | b'>' => {
                    let at = if head == "<" { 0 } else { in_flight.len().checked_sub(1)? };
                    if in_flight.is_empty() {
                        return None;
                    }
                    let id = in_flight.remove(at);
                    events.push(Event::End(id, ending(rest)));
                    continue;
                }
                _ => panic!("no such operation: {token}"),
            };
            events.push(Event::Submit(op));
            match rest {
                "~" => in_flight.push(submitted),
                _ if rest.starts_with('-') => {
                    events.push(Event::Drop(submitted, ending(&rest[1..])));
                }
                _ => events.push(Event::End(submitted, ending(rest))),
            }
            submitted += 1;
        }
        Some(Self { len, second: None, discard: DiscardMode::default(), events })
    }

    /// The same with a second file of `len` units, if any. The first one has room for two.
    pub(crate) fn with_second(self, len: Option<u32>) -> Self {
        Self { second: len, ..self }
    }

    /// The same on a device with another discard.
    pub(crate) fn with_discard(self, discard: DiscardMode) -> Self {
        Self { discard, ..self }
    }

    /// The same without dropped futures: one program for each moment at which what was dropped may end.
    pub(crate) fn endings(&self) -> Vec<Self> {
        let dropped = self.events.iter().enumerate().find_map(|(at, event)| match *event {
            Event::Drop(id, ending) => Some((at, id, ending)),
            _ => None,
        });
        let Some((at, id, ending)) = dropped else { return vec![self.clone()] };
        let mut without = self.clone();
        without.events.remove(at);
        let rest = &without.events[at..];
        let last = rest.iter().position(|event| matches!(event, Event::Settle | Event::Crash));
        let settled = last.is_some_and(|last| rest[last] == Event::Settle);
        let mut programs = if settled { Vec::new() } else { without.endings() };
        for moment in at..=last.map_or(without.events.len(), |last| at + last) {
            let mut one = without.clone();
            one.events.insert(moment, Event::End(id, ending));
            programs.extend(one.endings());
        }
        programs
    }

    /// Everything that may come out of it on a possible disk.
    pub(crate) fn explore(
        &self,
        profile: Profile,
        defect: Option<Defect>,
        order: Order,
    ) -> BTreeSet<String> {
        let keys = Keys::new();
        let disk = self.disk(&keys).with_defect(defect);
        let mut outcomes = BTreeSet::new();
        explore(|chooser| {
            let (mut disk, reads) = self.run(disk.clone(), &keys, profile, chooser);
            outcomes.insert(look(&mut disk, reads, &keys, order, chooser));
        });
        outcomes
    }

    /// The disk that it starts on.
    pub(crate) fn disk(&self, keys: &Keys) -> PossibleDisk {
        let old = vec![OLD; self.len as usize * UNIT];
        let disk = PossibleDisk::from_extents(&keys.values, old.len() as u64, [(0, &old[..])]);
        let disk = match self.second {
            None => disk,
            Some(len) => {
                let old = vec![OLD; len as usize * UNIT];
                disk.with_second_extents(SECOND, old.len() as u64, [(0, &old[..])])
            }
        };
        disk.with_discard(self.discard)
    }

    /// Runs it once: the disk afterwards, and what was read.
    pub(crate) fn run(
        &self,
        mut disk: PossibleDisk,
        keys: &Keys,
        profile: Profile,
        chooser: &mut impl Chooser,
    ) -> (PossibleDisk, String) {
        let mut ids: Vec<Id> = Vec::new();
        let mut reads = String::new();
        for event in &self.events {
            match *event {
                Event::Submit(op) => ids.push(submit(&mut disk, op, keys, chooser)),
                Event::End(id, ending) => {
                    if !end(&mut disk, ids[id], ending) {
                        reads.push('E');
                    }
                }
                Event::Drop(..) => unreachable!("the disk knows no futures"),
                Event::Read(unit) => reads.push(keys.name(disk.read(unit, chooser))),
                Event::Len(file) => reads.push_str(&disk.len_of(file, chooser).to_string()),
                Event::Settle => disk.settle(),
                Event::Crash => disk.crash_in_place(profile, chooser),
            }
        }
        (disk, reads)
    }
}

/// Runs `leaf` once for every combination of choices.
pub(crate) fn explore(mut leaf: impl FnMut(&mut Exhaustive)) {
    let mut chooser = Exhaustive::new();
    loop {
        leaf(&mut chooser);
        if !chooser.advance() {
            break;
        }
    }
    assert!(!chooser.diverged(), "a run is not a function of its choices");
}

/// Reads everything.
pub(crate) fn look(
    disk: &mut PossibleDisk,
    reads: String,
    keys: &Keys,
    order: Order,
    chooser: &mut impl Chooser,
) -> String {
    let mut units = [ZERO; UNITS as usize];
    let lengths = |disk: &mut PossibleDisk, chooser: &mut _| {
        let second = disk.second().map(|_| disk.len_of(File::Second, chooser));
        (disk.len(chooser), second)
    };
    let mut lens = (0, None);
    if order == Order::LengthFirst {
        lens = lengths(disk, chooser);
    }
    for at in 0..UNITS {
        let unit = if order == Order::LengthFirst { at } else { UNITS - 1 - at };
        units[unit as usize] = keys.name(disk.read(unit, chooser)) as u8;
    }
    if order == Order::UnitsFirst {
        lens = lengths(disk, chooser);
    }
    finish(reads, &units, lens)
}

/// A value store with one value for each name.
pub(crate) struct Keys {
    values: Values,
    keys: Vec<Key>,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let values = Values::new();
        let keys = (0..=u8::MAX).map(|name| values.intern(&bytes_of(name))).collect();
        Self { values, keys }
    }

    fn key(&self, name: u8) -> Key {
        self.keys[name as usize]
    }

    /// The byte that each byte of a named value is.
    pub(crate) fn byte(&self, name: u8) -> u8 {
        bytes_of(name)[0]
    }

    pub(crate) fn name(&self, key: Key) -> char {
        if key == Key::ZERO {
            return char::from(ZERO);
        }
        let name = self.keys.iter().position(|&other| other == key);
        char::from(name.expect("only these values were written") as u8)
    }
}

/// In which order the end of a program is looked at; it must not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    LengthFirst,
    UnitsFirst,
}

/// What was read, then the files; bytes beyond the end of one that are not zero are shown after a `!`.
pub(crate) fn finish(mut reads: String, units: &[u8], lens: (u32, Option<u32>)) -> String {
    let mut show = |separator: char, units: &[u8], len: u32| {
        let (file, beyond) = units.split_at((len as usize).min(units.len()));
        reads.push(separator);
        reads.extend(file.iter().map(|&unit| char::from(unit)));
        if beyond.iter().any(|&unit| unit != ZERO) {
            reads.push('!');
            reads.extend(beyond.iter().map(|&unit| char::from(unit)));
        }
    };
    match lens {
        (len, None) => show('|', units, len),
        (len, Some(second)) => {
            let (first_file, second_file) = units.split_at(SECOND as usize);
            show('|', first_file, len);
            show(',', second_file, second);
        }
    }
    reads
}

fn ending(text: &str) -> Ending {
    match text {
        "" | "." => Ending::Well,
        "!" => Ending::Eio,
        "!late" => Ending::Late,
        "!retry" => Ending::Sync(FlushFailure::RetrySafe),
        "!clean" => Ending::Sync(FlushFailure::CleanMarked),
        "!sticky" => Ending::Sync(FlushFailure::Sticky),
        _ => Ending::Enospc(text[1..].parse().expect("a number of units")),
    }
}

fn bytes_of(value: u8) -> [u8; UNIT] {
    if value == ZERO { [0; UNIT] } else { [value; UNIT] }
}

#[derive(Clone, Copy)]
enum Id {
    Write(WriteId),
    Through(WriteId),
    Flush(FlushId),
}

fn submit(disk: &mut PossibleDisk, op: Op, keys: &Keys, chooser: &mut impl Chooser) -> Id {
    Id::Write(match op {
        Op::Write { first, count, through, value } => {
            let durability = if through { Durability::Through } else { Durability::Cached };
            let data = vec![keys.key(value); count as usize];
            let id = disk.submit_write(first, &data, durability, chooser);
            if through {
                return Id::Through(id);
            }
            id
        }
        Op::Zeroes { first, count } => disk.submit_zeroes(first, count, chooser),
        Op::Discard { first, count } => disk.submit_discard(first, count, chooser),
        Op::SetLen(file, len) => disk.submit_set_len_of(file, len, chooser),
        Op::Flush(file) => return Id::Flush(disk.submit_flush_of(file)),
    })
}

/// False if it was a flush or a write-through that cannot end well any more.
fn end(disk: &mut PossibleDisk, id: Id, ending: Ending) -> bool {
    match (id, ending) {
        (Id::Write(write) | Id::Through(write), Ending::Well) => return disk.complete(write),
        (Id::Write(write) | Id::Through(write), Ending::Enospc(landed)) => {
            disk.fail(write, Landing::First(landed));
        }
        (Id::Write(write) | Id::Through(write), Ending::Late) => disk.fail(write, Landing::Late),
        (Id::Through(write), Ending::Sync(failure)) => disk.fail_sync(write, failure),
        (Id::Write(write) | Id::Through(write), _) => disk.fail(write, Landing::Any),
        (Id::Flush(flush), Ending::Sync(failure)) => disk.fail_flush(flush, failure),
        (Id::Flush(flush), Ending::Well) => return disk.complete_flush(flush),
        (Id::Flush(flush), _) => disk.fail_flush(flush, FlushFailure::RetrySafe),
    }
    true
}

#[test]
fn a_run_without_choices_is_the_plain_disk() {
    let program = Program::parse(2, "W(a) R(a) T(b) L3 N F W(cd) crash").unwrap();
    let keys = Keys::new();
    let chooser = &mut Always(0);
    let (mut disk, reads) = program.run(program.disk(&keys), &keys, Profile::TornLength, chooser);
    assert_eq!(look(&mut disk, reads, &keys, Order::LengthFirst, chooser), "13|1233");
}

#[test]
fn a_run_on_two_files_is_the_plain_disk() {
    let program = Program::parse(2, "W(a) W(cd) R(d) l3 n N F f L1 W(b) crash").unwrap();
    let keys = Keys::new();
    let chooser = &mut Always(0);
    let disk = program.with_second(Some(1));
    let (mut disk, reads) = disk.run(disk.disk(&keys), &keys, Profile::TornLength, chooser);
    assert_eq!(look(&mut disk, reads, &keys, Order::LengthFirst, chooser), "232|13,22");
    assert_eq!(disk.image_of(File::Second, chooser).len(), 3 * UNIT);
}
