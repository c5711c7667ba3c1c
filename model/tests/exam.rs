//! The judge's own examinations, and the proof that they are not empty.
//!
//! Goal: trust in a judge that finds nothing. Method: a list of examinations, each a small situation whose verdict was worked
//! out by hand or by a deliberately naive enumeration; the judge must pass all of them, and every judge with one deliberate
//! mistake ([`Defect`]) must fail at least one. The second test prints which examinations notice which mistake.

use std::collections::{BTreeMap, BTreeSet};

use model::audit::Auditor;
use model::build::{Built, Initial, build};
use model::defect::Defect;
use model::evidence::{BytesEvidence, Evidence, ValueKey};
use model::finding::{Property, Stage};
use model::guest::{DiscardReads, Guest, Promises, Token};
use model::image::{COPIED, Mapping};
use model::judge::{Claim, Contents, Extent, Inherited, Judge, Violation, p0_misread};
use model::op::{Durability, Geometry, Op};
use model::payload::{self, UNIT, Unit};

type Outcome = Result<(), String>;
type Exam = (&'static str, fn(Defect) -> Outcome);

const EXAMS: [Exam; 27] = [
    ("a flush settles what completed before it", flush_settles),
    ("a flush covers nothing that completes during it", flush_covers_completed_only),
    ("a failed flush settles nothing", failed_flush),
    ("write-through covers its own units only", through),
    ("a failed write stays possible", failed_write),
    ("a dropped write stays possible", dropped_write),
    ("overlapping writes both stay", overlapping_writes),
    ("a discard acts on whole clusters", discard),
    ("a discard may promise less", weak_discard),
    ("a crash folds everything into the base", crash_folds),
    ("what recovery chose binds", collapse_binds),
    ("reads return live values", reads),
    ("sizes are before or after", sizes),
    ("G over all tiny histories", brute_force),
    ("each finding is seen", findings_seen),
    ("each finding is a violation where it must be", findings_by_stage),
    ("a lost write is P1", lost_write),
    ("stale and foreign data is P2", invented_data),
    ("the whole set must be allowed", whole_set),
    ("the dirty bit does not excuse lost data", dirty_and_lost),
    ("a wrong size is P10", wrong_size),
    ("repair keeps contents", contents_kept),
    ("a second repair writes nothing", second_repair),
    ("a clean close adds no flaw", clean_close),
    ("claims are checked", claims),
    ("mappings are compared", mappings),
    ("a misread is told with its story", misread_story),
];

#[test]
fn the_judge_passes_every_examination() {
    for (name, exam) in EXAMS {
        exam(Defect::None).unwrap_or_else(|why| panic!("{name}: {why}"));
    }
}

#[test]
fn every_mutant_is_killed() {
    let mut survivors = Vec::new();
    for defect in Defect::ALL {
        // A mutant may also trip over an assertion: what counts is that it does not pass.
        let noticed = EXAMS.iter().filter(|(_, exam)| exam(defect).is_err());
        let names: Vec<_> = noticed.map(|(name, _)| *name).collect();
        println!("{:<30} {}", format!("{defect:?}"), names.join("; "));
        if names.is_empty() {
            survivors.push(defect);
        }
    }
    assert!(survivors.is_empty(), "survived: {survivors:?}");
}

// ---------------------------------------------------------------------------------------------------------------------
// The guest's sets, by hand
// ---------------------------------------------------------------------------------------------------------------------

const ZERO: ValueKey = ValueKey::ZERO;
const A: ValueKey = ValueKey(1);
const B: ValueKey = ValueKey(2);
const C: ValueKey = ValueKey(3);
const CACHED: Durability = Durability::Cached;
const PROMISES: Promises =
    Promises { cluster_units: 2, discard: DiscardReads::Zeroes, grow: Durability::Through };

/// A disk of `units` zero units.
fn blank(units: usize, defect: Defect) -> Guest {
    Guest::new(&vec![ZERO; units], PROMISES).with_defect(defect)
}

fn done(guest: &mut Guest, unit: u64, value: ValueKey) {
    let token = guest.begin_write(unit, &[value], CACHED);
    guest.complete(token);
}

fn flush(guest: &mut Guest) {
    let token = guest.begin_flush();
    guest.complete(token);
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Outcome {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?}, not {wanted:?}")) }
}

fn flush_settles(defect: Defect) -> Outcome {
    let mut guest = blank(1, defect);
    done(&mut guest, 0, A);
    expect("W", guest.allowed(0), vec![ZERO, A])?;
    done(&mut guest, 0, B);
    expect("W W", guest.allowed(0), vec![ZERO, A, B])?;
    flush(&mut guest);
    expect("W W F", guest.allowed(0), vec![B])?;
    let figures = guest.figures();
    expect("decided", (figures.units, figures.decided, figures.values), (1, 1, 1))
}

fn flush_covers_completed_only(defect: Defect) -> Outcome {
    let mut guest = blank(2, defect);
    let a = guest.begin_write(0, &[A], CACHED);
    done(&mut guest, 1, B);
    let flush = guest.begin_flush();
    guest.complete(a);
    done(&mut guest, 1, C);
    guest.complete(flush);
    expect("completed during the flush", guest.allowed(0), vec![ZERO, A])?;
    expect("before and during", guest.allowed(1), vec![B, C])
}

fn failed_flush(defect: Defect) -> Outcome {
    let mut guest = blank(1, defect);
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

fn through(defect: Defect) -> Outcome {
    let mut guest = blank(2, defect);
    done(&mut guest, 0, A);
    let token = guest.begin_write(1, &[B], Durability::Through);
    expect("in flight", guest.allowed(1), vec![ZERO, B])?;
    guest.complete(token);
    expect("its own unit", guest.allowed(1), vec![B])?;
    expect("another unit", guest.allowed(0), vec![ZERO, A])
}

fn failed_write(defect: Defect) -> Outcome {
    let mut guest = blank(1, defect);
    let failed = guest.begin_write(0, &[A], CACHED);
    guest.fail(failed);
    flush(&mut guest);
    expect("W-fails F", guest.allowed(0), vec![ZERO, A])?;
    done(&mut guest, 0, B);
    expect("W-fails F W", guest.allowed(0), vec![ZERO, A, B])?;
    flush(&mut guest);
    expect("W-fails F W F", guest.allowed(0), vec![B])
}

fn dropped_write(defect: Defect) -> Outcome {
    let mut guest = blank(1, defect);
    let dropped = guest.begin_write(0, &[A], Durability::Through);
    guest.abandon(dropped);
    flush(&mut guest);
    expect("W-dropped F", guest.allowed(0), vec![ZERO, A])?;
    done(&mut guest, 0, B);
    flush(&mut guest);
    expect("W-dropped F W F", guest.allowed(0), vec![B])
}

fn overlapping_writes(defect: Defect) -> Outcome {
    let mut guest = blank(1, defect);
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

fn discard(defect: Defect) -> Outcome {
    // Clusters of two units, and half a cluster at the end.
    let mut guest = blank(7, defect);
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

fn weak_discard(defect: Defect) -> Outcome {
    let promises = Promises { discard: DiscardReads::Either, ..PROMISES };
    let mut guest = Guest::new(&[A, A], promises).with_defect(defect);
    let token = guest.begin_discard(0, 2);
    guest.complete(token);
    flush(&mut guest);
    expect("D F", guest.allowed(0), vec![ZERO, A])?;
    done(&mut guest, 0, B);
    flush(&mut guest);
    expect("D F W F", guest.allowed(0), vec![B])
}

fn crash_folds(defect: Defect) -> Outcome {
    let mut guest = blank(1, defect);
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

fn collapse_binds(defect: Defect) -> Outcome {
    let mut guest = blank(2, defect);
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

fn reads(defect: Defect) -> Outcome {
    let mut guest = blank(1, defect);
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

fn sizes(defect: Defect) -> Outcome {
    let mut guest = blank(2, defect);
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
    let mut guest = Guest::new(&[ZERO], promises).with_defect(defect);
    let grow = guest.begin_grow(2);
    guest.complete(grow);
    expect("cached", guest.allowed_sizes(), vec![512, 1024])?;
    let write = guest.begin_write(1, &[A], Durability::Through);
    guest.complete(write);
    if defect == Defect::ThroughForgotten {
        Ok(())
    } else {
        expect("written to", guest.allowed_sizes(), vec![1024])
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The guest's sets, by enumeration
// ---------------------------------------------------------------------------------------------------------------------

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
fn brute_force(defect: Defect) -> Outcome {
    let start = NaiveWrite { value: ZERO, begin: 0, answered: Some(0), well: true, through: true };
    let naive = Naive { writes: vec![start], ..Naive::default() };
    let walk = Walk {
        naive,
        guest: blank(1, defect),
        writing: Vec::new(),
        flushing: Vec::new(),
        reading: None,
        next_value: 1,
        crashed: false,
        read: false,
    };
    let mut histories = 0;
    let depth = if defect == Defect::None { 7 } else { 5 };
    explore(&walk, depth, &mut histories)?;
    if defect == Defect::None {
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

// ---------------------------------------------------------------------------------------------------------------------
// The auditor, on images damaged by hand
// ---------------------------------------------------------------------------------------------------------------------

const KIB: Geometry = Geometry {
    version: 3,
    cluster_bits: 10,
    refcount_order: 4,
    virtual_size: 64 << 10,
    lazy_refcounts: false,
};

/// An image under the knife. With 1 KiB clusters: header 0, refcount table 1, its only block 2, L1 3, then `Fragmented` puts
/// the only L2 table somewhere behind.
struct Patient {
    disk: BytesEvidence,
    built: Built,
}

impl Patient {
    fn new(initial: Initial) -> Self {
        let built = build(&KIB, initial).expect("1 KiB clusters allow every kind but one");
        Self { disk: built.evidence(), built }
    }

    fn u64_at(&mut self, offset: u64) -> u64 {
        let key = self.disk.resolve(offset / 512);
        let at = (offset % 512) as usize;
        u64::from_be_bytes(self.disk.bytes(key)[at..at + 8].try_into().expect("eight bytes"))
    }

    fn put_u64(&mut self, offset: u64, value: u64) {
        self.disk.patch(offset, &value.to_be_bytes());
    }

    fn put_refcount(&mut self, cluster: u64, count: u16) {
        self.disk.patch(2048 + cluster * 2, &count.to_be_bytes());
    }

    fn l2_at(&mut self, guest: u64) -> u64 {
        let entry = self.u64_at(3072);
        (entry & !COPIED) + guest * 8
    }

    fn l2(&mut self, guest: u64) -> u64 {
        let at = self.l2_at(guest);
        self.u64_at(at)
    }

    fn set_l2(&mut self, guest: u64, entry: u64) {
        let at = self.l2_at(guest);
        self.put_u64(at, entry);
    }

    /// A second L1 entry, past the disk's end, which is legal.
    fn add_l1(&mut self, entry: u64) {
        self.disk.patch(36, &2u32.to_be_bytes());
        self.put_u64(3072 + 8, entry);
    }

    /// Guest clusters with data, ascending.
    fn mapped(&mut self) -> Vec<u64> {
        (0..64).filter(|guest| self.l2(*guest) & 1 == 0 && self.l2(*guest) != 0).collect()
    }

    /// A host cluster that nothing refers to, with stale bytes in it.
    fn hole(&mut self) -> u64 {
        let clusters = self.disk.len() / 1024;
        let stale = |unit: &Unit| {
            matches!(payload::decode(unit), payload::Value::Tag { id: payload::STALE, .. })
        };
        (4..clusters)
            .find(|cluster| {
                let key = self.disk.resolve(cluster * 2);
                let refcount = self.u64_at((2048 + cluster * 2) & !7);
                let within = (3 - cluster % 4) * 16;
                stale(self.disk.bytes(key)) && (refcount >> within) & 0xffff == 0
            })
            .expect("a fragmented image has holes")
    }

    fn guest(&mut self, defect: Defect) -> Guest {
        let values = &mut self.disk.values;
        let keys = self.built.guest_keys(|bytes| values.intern(bytes));
        Guest::new(&keys, PROMISES).with_defect(defect)
    }
}

/// One kind of damage to a fragmented image, the findings that it must give, and the stages at which each is legal.
type Damage = (&'static str, fn(&mut Patient), &'static [(&'static str, &'static [Stage])]);

const CRASHED: &[Stage] = &[Stage::CrashedClean, Stage::CrashedDirty, Stage::OpenedClean];
const DIRTY_ONLY: &[Stage] = &[Stage::CrashedDirty];
const NOWHERE: &[Stage] = &[];
const STAGES: [Stage; 5] =
    [Stage::CrashedClean, Stage::CrashedDirty, Stage::OpenedClean, Stage::Repaired, Stage::Closed];

const DAMAGES: &[Damage] = &[
    ("none", |_| {}, &[]),
    (
        "the refcount of a mapped cluster is 0",
        |p| {
            let guest = p.mapped()[0];
            let host = (p.l2(guest) & !COPIED) / 1024;
            p.put_refcount(host, 0);
        },
        &[("refcount-too-low", DIRTY_ONLY), ("copied-stale", CRASHED)],
    ),
    ("the header has no refcount", |p| p.put_refcount(0, 0), &[("refcount-too-low", DIRTY_ONLY)]),
    (
        "a free cluster has a refcount",
        |p| {
            let hole = p.hole();
            p.put_refcount(hole, 1);
        },
        &[("leak", CRASHED)],
    ),
    ("a cluster past the end has a refcount", |p| p.put_refcount(500, 7), &[("leak", CRASHED)]),
    (
        "COPIED is missing",
        |p| {
            let guest = p.mapped()[0];
            let entry = p.l2(guest);
            p.set_l2(guest, entry & !COPIED);
        },
        &[("copied-missing", CRASHED)],
    ),
    (
        "COPIED is missing in L1",
        |p| {
            let entry = p.u64_at(3072);
            p.put_u64(3072, entry & !COPIED);
        },
        &[("copied-missing", CRASHED)],
    ),
    (
        "COPIED with a refcount of 2",
        |p| {
            let guest = p.mapped()[0];
            let host = (p.l2(guest) & !COPIED) / 1024;
            p.put_refcount(host, 2);
        },
        &[("leak", CRASHED), ("copied-stale", CRASHED)],
    ),
    (
        "two guest clusters in one host cluster",
        |p| {
            let (one, two) = (p.mapped()[0], p.mapped()[1]);
            let (entry, lost) = (p.l2(one), p.l2(two));
            p.set_l2(two, entry);
            p.put_refcount((entry & !COPIED) / 1024, 2);
            p.put_refcount((lost & !COPIED) / 1024, 0);
        },
        &[("overlap", NOWHERE), ("copied-on-shared", NOWHERE), ("copied-on-shared", NOWHERE)],
    ),
    (
        "data over the L1 table",
        |p| {
            p.set_l2(1, 3072);
            p.put_refcount(3, 2);
        },
        &[("overlap", NOWHERE)],
    ),
    ("a mapping past the end", |p| p.set_l2(1, 0x100_0000 | COPIED), &[("out-of-range", NOWHERE)]),
    (
        "a refcount block past the end",
        |p| p.put_u64(1024 + 8, 0x100_0000),
        &[("out-of-range", DIRTY_ONLY)],
    ),
    ("a misaligned mapping", |p| p.set_l2(1, 0x600), &[("misaligned", NOWHERE)]),
    ("a misaligned table", |p| p.add_l1(0x600), &[("misaligned", NOWHERE)]),
    ("a misaligned block", |p| p.put_u64(1024 + 8, 0x600), &[("misaligned", DIRTY_ONLY)]),
    ("reserved bits in L2", |p| p.set_l2(1, 2), &[("reserved-bits", NOWHERE)]),
    ("COPIED on nothing", |p| p.set_l2(1, COPIED), &[("reserved-bits", NOWHERE)]),
    ("reserved bits in L1", |p| p.add_l1(1 << 60), &[("reserved-bits", NOWHERE)]),
    (
        "reserved bits in the refcount table",
        |p| p.put_u64(1024 + 8, 8),
        &[("reserved-bits", DIRTY_ONLY)],
    ),
    ("dirty", |p| p.put_u64(72, 1), &[("dirty", CRASHED)]),
    ("corrupt", |p| p.put_u64(72, 2), &[("corrupt", NOWHERE)]),
    ("another magic", |p| p.disk.patch(0, b"QED\0"), &[("header", NOWHERE)]),
    ("version 4", |p| p.disk.patch(4, &4u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("clusters of 256 bytes", |p| p.disk.patch(20, &8u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("refcounts of 128 bits", |p| p.disk.patch(96, &7u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("a short header", |p| p.disk.patch(100, &96u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("no L1 table", |p| p.disk.patch(36, &0u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("an endless L1 table", |p| p.disk.patch(36, &u32::MAX.to_be_bytes()), &[("header", NOWHERE)]),
    ("an odd L1 table", |p| p.put_u64(40, 3073), &[("header", NOWHERE)]),
    ("no refcount table", |p| p.disk.patch(56, &0u32.to_be_bytes()), &[("header", NOWHERE)]),
    ("an unknown feature", |p| p.put_u64(72, 1 << 40), &[("header", NOWHERE)]),
    ("a compression type without its bit", |p| p.disk.patch(104, &[1]), &[("header", NOWHERE)]),
    ("an endless extension", |p| p.put_u64(112, 0x1234_5678_7fff_ffff), &[("header", NOWHERE)]),
    ("bitmaps", |p| p.put_u64(112, 0x2385_2875_0000_0000), &[("unsupported", NOWHERE)]),
    ("snapshots", |p| p.disk.patch(60, &1u32.to_be_bytes()), &[("unsupported", NOWHERE)]),
    ("an external data file", |p| p.put_u64(72, 4), &[("unsupported", NOWHERE)]),
    (
        "a compressed cluster in a leaked one",
        |p| {
            let hole = p.hole();
            p.set_l2(1, 1 << 62 | (hole * 1024 + 17));
            p.put_refcount(hole, 1);
        },
        &[("unsupported", NOWHERE)],
    ),
];

fn findings_seen(defect: Defect) -> Outcome {
    let mut auditor = Auditor::with_defect(defect);
    for (name, damage, expected) in DAMAGES {
        let mut patient = Patient::new(Initial::Fragmented);
        damage(&mut patient);
        let report = auditor.audit(&mut patient.disk);
        let mut found: Vec<_> = report.findings.iter().map(|finding| finding.name()).collect();
        let mut wanted: Vec<_> = expected.iter().map(|(kind, _)| *kind).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        expect(name, found, wanted)?;
    }
    Ok(())
}

fn findings_by_stage(defect: Defect) -> Outcome {
    let mut auditor = Auditor::with_defect(defect);
    for (name, damage, expected) in DAMAGES {
        let mut patient = Patient::new(Initial::Fragmented);
        damage(&mut patient);
        let report = auditor.audit(&mut patient.disk);
        for stage in STAGES {
            let mut found: Vec<_> =
                report.violations(stage).map(|(_, finding)| finding.name()).collect();
            let mut wanted: Vec<_> = expected
                .iter()
                .filter(|(_, legal)| !legal.contains(&stage))
                .map(|(kind, _)| *kind)
                .collect();
            found.sort_unstable();
            wanted.sort_unstable();
            expect(&format!("{name}, {stage:?}"), found, wanted)?;
        }
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------------
// The judge, on whole states
// ---------------------------------------------------------------------------------------------------------------------

/// A disk of which some units may hold other values than the one that they would resolve to.
struct Open {
    disk: BytesEvidence,
    others: BTreeMap<u64, ValueKey>,
}

impl Evidence for Open {
    fn len(&mut self) -> u64 {
        self.disk.len()
    }

    fn resolve(&mut self, unit: u64) -> ValueKey {
        assert!(!self.others.contains_key(&unit), "unit {unit} was read, not peeked at");
        self.disk.resolve(unit)
    }

    fn peek(&self, unit: u64, mut visit: impl FnMut(ValueKey)) {
        self.others.get(&unit).copied().into_iter().for_each(&mut visit);
        self.disk.peek(unit, visit);
    }

    fn bytes(&self, key: ValueKey) -> &Unit {
        self.disk.bytes(key)
    }

    fn generation(&self) -> u64 {
        self.disk.generation()
    }

    fn changed_since(&self, generation: u64, visit: impl FnMut(u64)) {
        self.disk.changed_since(generation, visit);
    }
}

fn kinds(violations: &[Violation]) -> Vec<(Property, &'static str)> {
    violations.iter().map(|violation| (violation.property, violation.kind)).collect()
}

fn lost_write(defect: Defect) -> Outcome {
    let mut patient = Patient::new(Initial::Fragmented);
    let mut guest = patient.guest(defect);
    let mut judge = Judge::with_defect(defect);
    for stage in STAGES {
        let found = kinds(judge.state(&mut patient.disk, &guest, Some(stage)));
        expect("in order", found, vec![])?;
    }
    // Unit 2 is in guest cluster 1, which is mapped nowhere.
    let token = guest
        .begin(&Op::Write { offset: 1024, length: 512, id: 5, durability: CACHED }, |unit, id| {
            patient.disk.values.intern(&payload::unit(unit, id))
        });
    guest.complete(token);
    expect("not flushed", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])?;
    flush(&mut guest);
    let violations = judge.state(&mut patient.disk, &guest, None);
    expect("flushed", kinds(violations), vec![(Property::P1, "lost-write")])?;
    let text = violations[0].to_string();
    let wanted = "P1 lost-write: guest unit 2, not mapped: found zero, allowed unit 2 of write 5\n  \
                  at first: zero\n  \
                  t=1 puts unit 2 of write 5, completed t=2\n  \
                  t=3 flush, completed t=4";
    expect("the report", text.as_str(), wanted)
}

/// Goal: a judge of contents excuses counts, and neither what the guest sees nor an image that shows the guest nothing.
#[test]
fn a_judge_of_contents_excuses_the_structure_alone() {
    let mut judge = Judge::of_contents();
    let mut patient = Patient::new(Initial::Fragmented);
    let guest = patient.guest(Defect::None);
    let first = patient.mapped()[0];
    let cluster = (patient.l2(first) & !COPIED) / 1024;
    patient.put_refcount(cluster, 0);
    let full = kinds(Judge::default().state(&mut patient.disk, &guest, None));
    assert!(full.contains(&(Property::P4, "refcount-too-low")), "{full:?}");
    assert_eq!(kinds(judge.state(&mut patient.disk, &guest, None)), []);
    assert_eq!(kinds(judge.structure(Stage::OpenedClean)), []);

    patient.set_l2(first, 0);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    assert!(found.contains(&(Property::P2, "invented-zero")), "{found:?}");

    patient.disk.patch(0, b"no image");
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    assert!(!found.is_empty() && found.iter().all(|(property, _)| *property == Property::P4));
    assert_eq!(kinds(judge.structure(Stage::OpenedClean)), found);
}

fn invented_data(defect: Defect) -> Outcome {
    let mut judge = Judge::with_defect(defect);
    let mut judged = |damage: fn(&mut Patient), guest_of: fn(&mut Patient, Defect) -> Guest| {
        let mut patient = Patient::new(Initial::Fragmented);
        damage(&mut patient);
        let guest = guest_of(&mut patient, defect);
        let mut found = kinds(judge.state(&mut patient.disk, &guest, None));
        found.dedup();
        found
    };
    let stale = judged(
        |p| {
            let hole = p.hole();
            p.put_refcount(hole, 1);
            p.set_l2(1, (hole * 1024) | COPIED);
        },
        Patient::guest,
    );
    expect("a stale cluster", stale, vec![(Property::P2, "stale-bytes")])?;
    let swapped = judged(
        |p| {
            let (one, two) = (p.mapped()[0], p.mapped()[1]);
            let (first, second) = (p.l2(one), p.l2(two));
            p.set_l2(one, second);
            p.set_l2(two, first);
        },
        Patient::guest,
    );
    expect("swapped mappings", swapped, vec![(Property::P2, "other-unit")])?;
    let unmapped = judged(
        |p| {
            let guest = p.mapped()[0];
            p.set_l2(guest, 0);
        },
        Patient::guest,
    );
    expect("a mapping is gone", unmapped, vec![(Property::P2, "invented-zero")])?;
    let garbage = judged(
        |p| {
            let guest = p.mapped()[0];
            let offset = p.l2(guest) & !COPIED;
            p.disk.patch(offset + 100, b"rot");
        },
        Patient::guest,
    );
    expect("bytes of nobody", garbage, vec![(Property::P2, "invented")])
}

fn whole_set(defect: Defect) -> Outcome {
    let mut judge = Judge::with_defect(defect);
    let mut patient = Patient::new(Initial::Fragmented);
    let mut guest = patient.guest(defect);
    let cluster = patient.mapped()[0];
    let (unit, host) = (cluster * 2, (patient.l2(cluster) & !COPIED) / UNIT as u64);
    let key = patient.disk.values.intern(&payload::unit(unit, 7));
    let mut open = Open { disk: patient.disk, others: BTreeMap::from([(host, key)]) };
    let found = kinds(judge.state(&mut open, &guest, None));
    expect("never written", found, vec![(Property::P2, "invented")])?;
    let token = guest.begin_write(unit, &[key], CACHED);
    expect("in flight", kinds(judge.state(&mut open, &guest, None)), vec![])?;
    guest.complete(token);
    flush(&mut guest);
    let found = kinds(judge.state(&mut open, &guest, None));
    expect("the old one is superseded", found, vec![(Property::P1, "lost-write")])
}

fn dirty_and_lost(defect: Defect) -> Outcome {
    let mut judge = Judge::with_defect(defect);
    let mut patient = Patient::new(Initial::Dirty);
    let mut guest = patient.guest(defect);
    expect("dirty", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])?;
    expect("its stage", judge.auditor().report().crashed_stage(), Stage::CrashedDirty)?;
    let after = judge.state(&mut patient.disk, &guest, Some(Stage::Repaired));
    expect("not repaired", after.is_empty(), false)?;
    let key = patient.disk.values.intern(&payload::unit(127, 3));
    done(&mut guest, 127, key);
    flush(&mut guest);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("lost", found, vec![(Property::P1, "lost-write")])
}

fn wrong_size(defect: Defect) -> Outcome {
    let mut judge = Judge::with_defect(defect);
    let mut patient = Patient::new(Initial::Fresh);
    let mut guest = patient.guest(defect);
    patient.put_u64(24, 96 << 10);
    let found = kinds(judge.state(&mut patient.disk, &guest, None));
    expect("another size", found, vec![(Property::P10, "virtual-size")])?;
    guest.begin_grow(192);
    expect("growing", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])
}

fn contents_kept(defect: Defect) -> Outcome {
    let mut judge = Judge::with_defect(defect);
    let mut patient = Patient::new(Initial::Fragmented);
    let guest = patient.guest(defect);
    let cluster = patient.mapped()[0];
    let (unit, offset) = (cluster * 2, patient.l2(cluster) & !COPIED);
    let (mut before, mut after) = (Contents::default(), Contents::default());
    let other = patient.disk.values.intern(&payload::unit(unit, 7));
    let others = BTreeMap::from([(offset / UNIT as u64, other)]);
    let mut open = Open { disk: patient.disk.clone(), others };
    judge.state(&mut open, &guest, None);
    judge.contents(&open, &mut before);
    expect("open", before.values(unit).count(), 2)?;
    judge.state(&mut patient.disk, &guest, None);
    judge.contents(&patient.disk, &mut after);
    let kind = |violation: Option<Violation>| violation.map(|v| (v.property, v.kind));
    let fine = kind(judge.p3_same_contents(&before, &after, &patient.disk));
    expect("one of two was chosen", fine, None)?;
    let widened = kind(judge.p3_same_contents(&after, &before, &patient.disk));
    expect("it was chosen", widened, Some((Property::P3, "content-changed")))?;
    patient.set_l2(cluster, 0);
    judge.state(&mut patient.disk, &guest, None);
    judge.contents(&patient.disk, &mut after);
    let gone = kind(judge.p3_same_contents(&before, &after, &patient.disk));
    expect("it is gone", gone, Some((Property::P3, "content-changed")))?;
    patient.put_u64(24, 32 << 10);
    judge.state(&mut patient.disk, &guest, None);
    judge.contents(&patient.disk, &mut after);
    let cut = kind(judge.p3_same_contents(&before, &after, &patient.disk));
    expect("the disk shrank", cut, Some((Property::P3, "size-changed")))
}

fn second_repair(defect: Defect) -> Outcome {
    let judge = Judge::with_defect(defect);
    let mut once = Patient::new(Initial::Leaky).disk;
    let mut twice = once.clone();
    let kind = |violation: Option<Violation>| violation.map(|v| (v.property, v.kind));
    expect("the same", kind(judge.p5_fixed_point(&mut once, &mut twice)), None)?;
    let broken = Some((Property::P5, "not-a-fixed-point"));
    twice.patch(5000, &[0xee]);
    expect("a byte", kind(judge.p5_fixed_point(&mut once, &mut twice)), broken)?;
    let mut longer = once.clone();
    longer.set_len(1 << 20);
    expect("the length", kind(judge.p5_fixed_point(&mut once, &mut longer)), broken)
}

fn clean_close(defect: Defect) -> Outcome {
    let mut judge = Judge::with_defect(defect);
    let mut patient = Patient::new(Initial::Leaky);
    let guest = patient.guest(defect);
    expect("as opened", kinds(judge.state(&mut patient.disk, &guest, None)), vec![])?;
    let inherited = Inherited::from_report(judge.auditor().report());
    expect("as inherited", kinds(judge.closed(&mut patient.disk, &guest, &inherited)), vec![])?;
    let none = Inherited::default();
    let own = judge.closed(&mut patient.disk, &guest, &none);
    expect("its own leaks", own.is_empty(), false)?;
    let last = patient.disk.len() / 1024;
    patient.put_refcount(last, 1);
    let added = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("one more", added, vec![(Property::P6, "leak")])?;
    patient.put_refcount(last, 0);
    let guest_cluster = patient.mapped()[0];
    let host = (patient.l2(guest_cluster) & !COPIED) / 1024;
    patient.put_refcount(host, 3);
    let deeper = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("a deeper one", deeper, vec![(Property::P6, "leak")])?;
    patient.put_refcount(host, 2);
    patient.put_u64(72, 1);
    let dirty = kinds(judge.closed(&mut patient.disk, &guest, &inherited));
    expect("dirty", dirty, vec![(Property::P6, "dirty")])
}

fn claims(defect: Defect) -> Outcome {
    let mut judge = Judge::with_defect(defect);
    let mut patient = Patient::new(Initial::Leaky);
    let guest = patient.guest(defect);
    let kind = |violation: Option<Violation>| violation.map(|v| (v.property, v.kind));
    judge.state(&mut patient.disk, &guest, None);
    let lie = Some((Property::P8, "false-claim"));
    expect("leaks aside", kind(judge.p8_claim(Claim::Clean)), None)?;
    let leaks = if defect == Defect::LeakIgnored { None } else { lie };
    expect("leaks remain", kind(judge.p8_claim(Claim::Repaired)), leaks)?;
    patient.put_refcount(3, 0);
    judge.state(&mut patient.disk, &guest, None);
    expect("too low", kind(judge.p8_claim(Claim::Clean)), lie)?;
    expect("it gave up", kind(judge.p8_claim(Claim::GaveUp)), None)
}

fn mappings(defect: Defect) -> Outcome {
    let mut judge = Judge::with_defect(defect);
    let mut patient = Patient::new(Initial::Fragmented);
    let guest = patient.guest(defect);
    judge.state(&mut patient.disk, &guest, None);
    let image = judge.auditor().image();
    let mut extents: Vec<Extent> = (0..64)
        .map(|cluster| {
            let guest = cluster * 1024;
            Extent { guest, length: 1024, to: image.mapping(cluster) }
        })
        .collect();
    let kind = |violation: Option<Violation>| violation.map(|v| (v.property, v.kind));
    expect("the same", kind(judge.p3_mapping_agrees(&extents)), None)?;
    let wrong = Some((Property::P3, "mapping-disagrees"));
    expect("cut short", kind(judge.p3_mapping_agrees(&extents[..63])), wrong)?;
    expect("a gap", kind(judge.p3_mapping_agrees(&extents[1..])), wrong)?;
    let at = extents.iter().position(|e| matches!(e.to, Mapping::Host(_))).expect("data");
    extents[at].to = Mapping::Zero;
    expect("elsewhere", kind(judge.p3_mapping_agrees(&extents)), wrong)
}

fn misread_story(defect: Defect) -> Outcome {
    let mut patient = Patient::new(Initial::Fresh);
    let mut guest = patient.guest(defect);
    let key = patient.disk.values.intern(&payload::unit(4, 9));
    done(&mut guest, 4, key);
    let read = guest.begin_read(4, 1);
    let Err(misread) = guest.complete_read(read, &[ZERO]) else {
        return Err("a stale read passed".to_owned());
    };
    let text = p0_misread(&misread, &patient.disk, &guest).to_string();
    let wanted = "P0 misread: guest unit 4, not mapped: found zero, allowed unit 4 of write 9\n  \
                  at first: zero\n  \
                  t=1 puts unit 4 of write 9, completed t=2";
    expect("the report", text.as_str(), wanted)
}
