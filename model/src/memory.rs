//! Audits that are not done again: whoever is told the same reads the same.
//!
//! ```text
//!   length? ── 40960 ──> unit 0? ── key 3 ──> unit 2? ─┬─ key 7 ──> unit 9? ── ... ──> audited
//!                                                      └─ key 8 ──> unit 4? ── ... ──> audited
//! ```
//!
//! What is asked of a disk is asked again, so that it is decided in the same order; what would follow from the answers is known.
//!
//! **Invariant.** What is asked next, and what an audit ends in, follows from the answers up to there, which are all of one store of values.

use std::cell::RefCell;
use std::sync::Arc;

use crate::evidence::{Readable, ValueKey};
use crate::payload::Unit;

/// What is kept at most, in questions and clusters: some 64 MiB. Then all is forgotten.
const MAX_WEIGHT: usize = 1 << 22;

/// What reading asks of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    DataFile,
    DataLength,
    Length,
    Unit(u64),
    Zeroes { unit: u64, most: u64 },
}

impl Question {
    fn ask<R: Readable>(self, disk: &mut R) -> u64 {
        match self {
            Self::DataFile => disk.data_file().unwrap_or(u64::MAX),
            Self::DataLength => disk.data_len(),
            Self::Length => disk.len(),
            Self::Unit(unit) => disk.resolve(unit).0.into(),
            Self::Zeroes { unit, most } => disk.zero_run(unit, most),
        }
    }
}

/// A disk whose answers are noted.
pub(crate) struct Told<'a, R> {
    disk: &'a mut R,
    way: RefCell<Vec<(Question, u64)>>,
}

impl<'a, R: Readable> Told<'a, R> {
    pub(crate) const fn new(disk: &'a mut R) -> Self {
        Self { disk, way: RefCell::new(Vec::new()) }
    }

    fn note(&self, question: Question, answer: u64) {
        self.way.borrow_mut().push((question, answer));
    }
}

impl<R: Readable> Readable for Told<'_, R> {
    fn data_file(&self) -> Option<u64> {
        let first = self.disk.data_file();
        self.note(Question::DataFile, first.unwrap_or(u64::MAX));
        first
    }

    fn data_len(&mut self) -> u64 {
        let length = self.disk.data_len();
        self.note(Question::DataLength, length);
        length
    }

    fn len(&mut self) -> u64 {
        let length = self.disk.len();
        self.note(Question::Length, length);
        length
    }

    fn resolve(&mut self, unit: u64) -> ValueKey {
        let key = self.disk.resolve(unit);
        self.note(Question::Unit(unit), key.0.into());
        key
    }

    fn zero_run(&self, unit: u64, most: u64) -> u64 {
        let run = self.disk.zero_run(unit, most);
        self.note(Question::Zeroes { unit, most }, run);
        run
    }

    fn bytes(&self, key: ValueKey) -> &Unit {
        self.disk.bytes(key)
    }
}

/// Where an answer leads.
#[derive(Clone, Copy, Debug)]
enum Next {
    Asked(usize),
    End(usize),
}

/// A question, and where each answer to it that was given leads. Few were.
#[derive(Clone, Debug)]
struct Asked {
    question: Question,
    answers: Vec<(u64, Next)>,
}

/// Ways of reading a disk, and what they ended in.
#[derive(Clone, Debug)]
pub(crate) struct Memory<T> {
    /// The first is what everybody asks first.
    asked: Vec<Asked>,
    ends: Vec<Arc<T>>,
    weight: usize,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self { asked: Vec::new(), ends: Vec::new(), weight: 0 }
    }
}

impl<T> Memory<T> {
    /// What reading this disk ends in, if another gave the same answers.
    pub(crate) fn find<R: Readable>(&self, disk: &mut R) -> Option<&Arc<T>> {
        let mut asked = self.asked.first()?;
        loop {
            let answer = asked.question.ask(disk);
            match asked.answers.iter().find(|(other, _)| *other == answer)?.1 {
                Next::Asked(next) => asked = self.asked.get(next)?,
                Next::End(end) => return self.ends.get(end),
            }
        }
    }

    /// Keeps what reading a disk ended in, which is so heavy.
    pub(crate) fn keep<R>(&mut self, told: Told<'_, R>, end: Arc<T>, weight: usize) {
        let way = told.way.into_inner();
        let weight = weight.saturating_add(way.len());
        if self.weight.saturating_add(weight) > MAX_WEIGHT {
            *self = Self::default();
        }
        self.weight = self.weight.saturating_add(weight);
        let last = way.len().saturating_sub(1);
        let mut at = 0;
        for (index, (question, answer)) in way.into_iter().enumerate() {
            if at == self.asked.len() {
                self.asked.push(Asked { question, answers: Vec::new() });
            }
            let new = if index == last {
                Next::End(self.ends.len())
            } else {
                Next::Asked(self.asked.len())
            };
            let Some(asked) = self.asked.get_mut(at) else { return };
            assert_eq!(
                asked.question, question,
                "after the same answers another question is asked"
            );
            let known = asked.answers.iter().find(|(other, _)| *other == answer);
            let next = known.map_or(new, |(_, next)| *next);
            if known.is_none() {
                asked.answers.push((answer, new));
            }
            match next {
                Next::Asked(next) => at = next,
                Next::End(_) => break,
            }
        }
        self.ends.push(end);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Memory, Told};
    use crate::audit::Auditor;
    use crate::build::{Initial, build};
    use crate::evidence::{BytesEvidence, Readable, ValueKey, Values};
    use crate::op::Geometry;
    use crate::payload::{Unit, ZEROES};

    /// A disk of which everything that can be asked is a number.
    #[derive(Clone, Copy)]
    struct Disk {
        data_file: Option<u64>,
        data_len: u64,
        len: u64,
        units: [u32; 3],
        zeroes: u64,
    }

    const DISK: Disk =
        Disk { data_file: Some(9), data_len: 4, len: 6, units: [1, 2, 3], zeroes: 5 };

    impl Readable for Disk {
        fn data_file(&self) -> Option<u64> {
            self.data_file
        }

        fn data_len(&mut self) -> u64 {
            self.data_len
        }

        fn len(&mut self) -> u64 {
            self.len
        }

        fn resolve(&mut self, unit: u64) -> ValueKey {
            ValueKey(self.units[unit as usize])
        }

        fn zero_run(&self, _: u64, most: u64) -> u64 {
            self.zeroes.min(most)
        }

        fn bytes(&self, _: ValueKey) -> &Unit {
            &ZEROES
        }
    }

    /// Asks everything; the last unit by what the first holds.
    fn read(disk: &mut impl Readable) {
        disk.len();
        disk.data_file();
        disk.data_len();
        disk.zero_run(0, 7);
        let first = disk.resolve(0);
        disk.resolve(first.0.into());
    }

    /// Goal: nothing that was answered is left out of what is remembered by. Method: each answer changed in turn.
    #[test]
    fn another_answer_is_another_disk() {
        let mut memory = Memory::default();
        let mut keep = |mut disk: Disk, end: u32| {
            assert!(memory.find(&mut disk).is_none());
            let mut told = Told::new(&mut disk);
            read(&mut told);
            memory.keep(told, Arc::new(end), 1);
        };
        let others = [
            Disk { data_file: None, ..DISK },
            Disk { data_len: 5, ..DISK },
            Disk { len: 7, ..DISK },
            Disk { units: [2, 2, 3], ..DISK },
            Disk { units: [1, 3, 3], ..DISK },
            Disk { zeroes: 4, ..DISK },
        ];
        keep(DISK, 0);
        (1..).zip(others).for_each(|(end, disk)| keep(disk, end));
        // Nobody asks for the last unit of this one.
        let same = Disk { units: [1, 2, 4], ..DISK };
        let found = |mut disk: Disk| memory.find(&mut disk).map(|end| **end);
        assert_eq!(found(same), Some(0));
        (1..).zip(others).for_each(|(end, disk)| assert_eq!(found(disk), Some(end)));
    }

    /// Goal: an auditor that remembers finds what one finds that does not. Method: images of one store of values with some units in the place of
    /// others.
    #[test]
    fn what_is_remembered_is_what_an_audit_finds() {
        let mut values = Values::default();
        let mut images = Vec::new();
        for initial in [Initial::Leaky, Initial::Fragmented, Initial::Dirty, Initial::Bitmaps] {
            let built = build(&Geometry::plain(9, 64 << 10), initial).unwrap();
            let units: Vec<(u64, ValueKey)> =
                built.units.iter().map(|(unit, bytes)| (*unit, values.intern(bytes))).collect();
            images.push((built.length, units));
        }
        let disk = |image: usize, from: usize, to: usize| {
            let (length, units) = &images[image % images.len()];
            let mut disk = BytesEvidence::empty(values.clone(), *length);
            units.iter().for_each(|(unit, key)| disk.set(*unit, values.bytes(*key)));
            let (to, from) = (units[to % units.len()].0, units[from % units.len()].1);
            disk.set(to, values.bytes(from));
            disk
        };
        let mut remembers = Auditor::default();
        remembers.remember(true);
        let mut findings = 0;
        for round in 0..3000usize {
            let (image, from, to) = (round % 7, round % 5, round % 11 + round / 1500);
            let mut disk = disk(image, from, to);
            let mut plain = Auditor::default();
            let (fresh, known) = (plain.audit(&mut disk), remembers.audit(&mut disk));
            findings += fresh.findings.len();
            assert_eq!(fresh.findings, known.findings);
            assert_eq!((fresh.header, fresh.totals), (known.header, known.totals));
            let mappings = |auditor: &Auditor| auditor.image().mappings().collect::<Vec<_>>();
            assert_eq!(mappings(&plain), mappings(&remembers));
        }
        assert!(findings > 3000, "{findings}");
    }

    /// Goal: what is remembered has an end.
    #[test]
    fn too_much_is_forgotten() {
        let mut memory = Memory::default();
        for len in 0..3 {
            let mut told = Disk { len, ..DISK };
            let mut told = Told::new(&mut told);
            read(&mut told);
            memory.keep(told, Arc::new(len), super::MAX_WEIGHT / 2 - 10);
        }
        let found = |len| memory.find(&mut Disk { len, ..DISK }).map(|end| **end);
        assert_eq!([0, 1, 2].map(found), [None, None, Some(2)]);
    }
}
