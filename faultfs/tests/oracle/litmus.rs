//! Small programs with their exact outcomes, worked out by hand from the rules of the device.
//!
//! Goal: each row states one rule so that a person can check it. Method: explore every choice; the set of outcomes must
//! be the set in the row, so every allowed outcome is reached and no other one is. The notation is in `program`.

use std::collections::BTreeSet;

use faultfs::Defect;
use faultfs::profile::Profile::{self, Cache, Epoch, Kill, Prefix, Torn, TornLength};

use super::naive;
use super::program::{Order, Program};

pub(crate) struct Litmus {
    pub(crate) name: &'static str,
    pub(crate) profile: Profile,
    /// Length of the file at first.
    pub(crate) len: u32,
    /// That of the second file, if there is one.
    pub(crate) second: Option<u32>,
    pub(crate) program: &'static str,
    pub(crate) outcomes: &'static str,
}

const fn row(
    name: &'static str,
    profile: Profile,
    len: u32,
    program: &'static str,
    outcomes: &'static str,
) -> Litmus {
    Litmus { name, profile, len, second: None, program, outcomes }
}

/// With a second file, units c and d.
const fn two(
    name: &'static str,
    profile: Profile,
    (len, second): (u32, u32),
    program: &'static str,
    outcomes: &'static str,
) -> Litmus {
    Litmus { name, profile, len, second: Some(second), program, outcomes }
}

pub(crate) const TABLE: &[Litmus] = &[
    // Order and durability.
    row("two writes are independent", TornLength, 2, "W(a) W(b) crash", "|oo |1o |o2 |12"),
    row("a flush covers what completed", TornLength, 2, "W(a) F W(b) crash", "|1o |12"),
    row("write-through orders nothing else", TornLength, 2, "W(a) T(b) crash", "|o2 |12"),
    row("write-through is durable", TornLength, 1, "T(a) crash", "|1"),
    row("write-through in flight is not", TornLength, 1, "T(a)~ crash", "|o |1"),
    row("a write in flight escapes the flush", TornLength, 1, "W(a)~ F <. crash", "|o |1"),
    row("a flush in flight covers nothing", TornLength, 1, "W(a) F~ crash", "|o |1"),
    row("completed during the flush", TornLength, 1, "W(a)~ F~ <. <. crash", "|o |1"),
    row("completed before a slow flush", TornLength, 2, "W(a) F~ W(b) <. crash", "|1o |12"),
    row("every overwritten value survives", TornLength, 1, "W(a) W(a) W(a) crash", "|o |1 |2 |3"),
    row("a flush settles a chain", TornLength, 1, "W(a) W(a) F W(a) crash", "|2 |3"),
    row("write-through overtakes a chain", TornLength, 1, "W(a) T(a) W(a) crash", "|2 |3"),
    row("writes that overlap have no order", TornLength, 1, "W(a)~ W(a)~ <. <. F crash", "|1 |2"),
    row("half of an overlap covered", TornLength, 1, "W(a)~ W(a)~ <. F <. F crash", "|1 |2"),
    row("the process dies", Kill, 2, "W(a) W(b)~ crash", "|1o |12"),
    row("a read of what is in flight", TornLength, 1, "W(a)~ R(a) <. R(a)", "o1|1 11|1"),
    row("a read after both sees the newer", TornLength, 1, "W(a) W(a) R(a) F", "2|2"),
    row("the first unit of all", TornLength, 0, "T(a) crash", "|1"),
    // Flushes and overlaps.
    row("of two flushes the older covers less", TornLength, 1, "F~ W(a) F~ <. crash", "|o |1"),
    row("and the younger more", TornLength, 1, "F~ W(a) F~ >. crash", "|1"),
    row("which the older takes nothing of", TornLength, 1, "F~ W(a) F~ >. <!clean crash", "|1"),
    row("one marks clean, one is in vain", TornLength, 1, "W(a) F~ F~ >!clean <. crash", "|o |1"),
    row("one fails, one is a barrier", Epoch, 2, "W(a) F~ F~ >!retry W(b) crash", "|oo |1o |12"),
    row("write-through over one in flight", TornLength, 1, "W(a)~ T(a) <. F crash", "|1 |2"),
    row("and under a cached one", TornLength, 1, "T(a)~ W(a) <. crash", "|1 |2"),
    row("over a part of one in flight", TornLength, 2, "W(ab)~ T(b) <. F crash", "|11 |12"),
    // Tearing.
    row("a torn write", Torn, 2, "W(ab) crash", "|oo |1o |o1 |11"),
    row("a write that is not torn", Cache, 2, "W(ab) crash", "|oo |11"),
    row("any subset of whole writes", Cache, 2, "W(ab) W(b) crash", "|oo |11 |o2 |12"),
    row("an overwritten write tears no more", Cache, 2, "W(ab) T(b) crash", "|o2 |12"),
    row("half read binds the other half", Cache, 2, "W(ab) crash R(a) W(b) F", "o|o2 1|12"),
    row("fates across two crashes", Cache, 2, "W(ab) crash W(b) crash", "|oo |11 |o2 |12"),
    // Weaker profiles.
    row("a cut in completion order", Prefix, 2, "W(a) W(b) crash", "|oo |1o |12"),
    row("order is that of completion", Prefix, 2, "W(a)~ W(b) <. crash", "|oo |o2 |12"),
    row("no cut behind a write-through", Prefix, 2, "W(a) T(b) crash", "|12"),
    row("in flight only behind all others", Prefix, 2, "W(a) W(b)~ crash", "|oo |1o |12"),
    row("a barrier in flight", Epoch, 2, "W(a) F~ W(b) crash", "|oo |1o |12"),
    row("no order between barriers", Epoch, 2, "W(a) W(b) F~ crash", "|oo |1o |o2 |12"),
    row("in flight across a barrier", Epoch, 2, "W(a)~ F~ W(b) crash", "|oo |1o |o2 |12"),
    row("a cache ignores barriers in flight", Cache, 2, "W(a) F~ W(b) crash", "|oo |1o |o2 |12"),
    // Failures.
    row("a failed write may land", TornLength, 1, "W(a)! F crash", "|o |1"),
    row("a failed write is read as either", TornLength, 1, "W(a)! R(a) F crash", "o|o o|1 1|o 1|1"),
    row("a failed write is superseded", TornLength, 1, "W(a)! W(a) F crash", "|2"),
    row("but not before a flush", TornLength, 1, "W(a)! W(a) crash", "|o |1 |2"),
    row("and its order was not known", TornLength, 1, "W(a)~ W(a) <! F crash", "|1 |2"),
    row("no space for the second half", TornLength, 2, "W(ab)!1 F crash", "|1o"),
    row("no space for one of two appends", TornLength, 1, "W(b) W(c)!0 F crash", "|o1"),
    row("no space at all", TornLength, 2, "W(ab)!0 W(b) F crash", "|o2"),
    row("no space for half of a through", TornLength, 2, "T(ab)!1 crash", "|oo |1o"),
    row("zeroes that fell short", TornLength, 2, "Z(ab)!1 F crash", "|.o"),
    row("a discard that fell short", TornLength, 2, "D(ab)!1 F crash", "|oo |.o"),
    row("a failed flush, retried", TornLength, 1, "W(a) F!retry F crash", "|1"),
    row("a failed flush covers nothing", TornLength, 1, "W(a) F!retry crash", "|o |1"),
    row("marked clean, a flush is in vain", TornLength, 1, "W(a) F!clean F crash", "|o |1"),
    row("marked clean, read as either", TornLength, 1, "W(a) F!clean R(a) W(a) F crash", "o|2 1|2"),
    row("not marked: completed later", TornLength, 1, "F~ W(a) <!clean F crash", "|1"),
    row("failed for good", TornLength, 1, "W(a) F!sticky F crash", "E|o E|1"),
    row("a new life flushes again", TornLength, 1, "F!sticky crash W(a) F crash", "|1"),
    // Late failures.
    row("late, it lands over what is newer", TornLength, 1, "W(a)!late W(a) F crash", "|1 |2"),
    row("a flush settles nothing", TornLength, 1, "W(a)!late F W(a) F crash", "|1 |2"),
    row("settled, it is superseded", TornLength, 1, "W(a)!late S W(a) F crash", "|2"),
    row("settled too late", TornLength, 1, "W(a)!late W(a) S F crash", "|1 |2"),
    row("settled, it is old or new", TornLength, 1, "W(a)!late S F crash", "|o |1"),
    row("unsettled as well", TornLength, 1, "W(a)!late F crash", "|o |1"),
    row("late, it is read as either", TornLength, 1, "W(a)!late W(a) R(a) F", "1|1 1|2 2|1 2|2"),
    row("each unit by itself", TornLength, 2, "W(ab)!late T(b) crash", "|o1 |o2 |11 |12"),
    row("a whole write late", Cache, 2, "W(ab)!late W(b) F crash", "|o2 |11 |12"),
    row("late through the cache", TornLength, 1, "T(a)!late T(a) crash", "|1 |2"),
    row("zeroes that come late", TornLength, 1, "Z(a)!late T(a) crash", "|. |1"),
    row("a discard that comes late", TornLength, 1, "D(a)!late F crash", "|o |."),
    row("and lands over what is newer", TornLength, 1, "D(a)!late W(a) F crash", "|. |1"),
    row("a settled discard", TornLength, 1, "D(a)!late S T(a) crash", "|1"),
    row("a length that comes late", TornLength, 1, "L3!late T(b) crash", "|o1 |o1."),
    row("a cut that was settled", TornLength, 2, "L1!late S L3 F crash", "|oo. |o.."),
    row("an append that comes late", TornLength, 1, "W(b)!late T(c) crash", "|o.2 |o12"),
    row("only what failed is settled", TornLength, 1, "W(a)~ S W(a) <. F crash", "|1 |2"),
    row("a power cut settles", TornLength, 1, "W(a)!late crash T(a) crash", "|2"),
    row("the process dies, late or not", Kill, 1, "W(a)!late W(a) crash", "|1 |2"),
    row("late behind a cut", Prefix, 2, "W(a)!late W(b) crash", "|oo |o2 |12"),
    // Failed syncs of write-through.
    row("its data failed", TornLength, 2, "W(a) T(b)! F crash", "|1o |12"),
    row("its sync failed, retried", TornLength, 2, "W(a) T(b)!retry F crash", "|12"),
    row("a failed sync covers nothing", TornLength, 1, "T(a)!retry crash", "|o |1"),
    row("its data was transferred", TornLength, 1, "T(a)!retry R(a) F", "1|1"),
    row("it taints what completed", TornLength, 2, "W(a) T(b)!clean F crash", "|oo |1o |o2 |12"),
    row("not what was durable", TornLength, 2, "W(a) F T(b)!clean F crash", "|1o |12"),
    row("nor what completed later", TornLength, 2, "T(a)~ W(b) <!clean F crash", "|o2 |12"),
    row("until written again", TornLength, 1, "T(a)!clean T(a) crash", "|2"),
    row("tainted, read as either", TornLength, 1, "T(a)!clean R(a) W(a) F crash", "o|2 1|2"),
    row("its length is tainted", TornLength, 1, "T(b)!clean F crash", "|o |o. |o1"),
    row("it fails flushes for good", TornLength, 1, "W(a) T(a)!sticky F crash", "E|o E|1 E|2"),
    row("and write-throughs", TornLength, 2, "T(a)!sticky T(b) crash", "E|oo E|1o E|o2 E|12"),
    row("as a flush does", TornLength, 1, "F!sticky T(a) crash", "E|o E|1"),
    row("no write-through, no cut", Prefix, 2, "W(a) T(b)!retry crash", "|oo |1o |12"),
    // Zeroes and discards.
    row("zeroes are a write", TornLength, 2, "Z(a) F Z(b) crash", "|.o |.."),
    row("a discard puts zero beside", TornLength, 1, "D(a) F crash", "|o |."),
    row("until overwritten", TornLength, 1, "D(a) W(a) F crash", "|1"),
    row("a discard hides nothing pending", TornLength, 1, "W(a) D(a) crash", "|o |1 |."),
    row("but stays behind a flush", TornLength, 1, "W(a) D(a) F crash", "|1 |."),
    row("a discarded unit read is decided", TornLength, 1, "D(a) F R(a) crash R(a)", "oo|o ..|."),
    row("a discard is not whole", Cache, 2, "D(ab) crash", "|oo |.o |o. |.."),
    row("in flight it is behind all others", Prefix, 2, "W(b) D(a)~ crash", "|oo |o1 |.1"),
    row("or behind a barrier", Epoch, 2, "W(a) F~ D(b) crash", "|oo |1o |1."),
    // The length.
    row("an append may be forgotten", TornLength, 1, "W(b) crash", "|o |o. |o1"),
    row("without lag its length stays", Torn, 1, "W(b) crash", "|o. |o1"),
    row("in flight its length may not", Torn, 1, "W(b)~ crash", "|o |o. |o1"),
    row("write-through brings its length", TornLength, 1, "T(b) crash", "|o1"),
    row("and that of no other", TornLength, 1, "W(c) T(b) crash", "|o2 |o2. |o21"),
    row("grown, then within it", TornLength, 1, "L3 T(a) crash", "|1 |1.."),
    row("grown, then at its end", TornLength, 1, "L3 W(c) T(a) crash", "|2 |2.. |2.1"),
    row("two appends need no order", TornLength, 1, "W(c)~ W(b)~ <. >. F crash", "|o21"),
    row("one of two appends covered", TornLength, 1, "W(b) F W(c) crash", "|o1 |o1. |o12"),
    row("cut", TornLength, 2, "L1 crash", "|o |oo |o."),
    row("cut, durably", TornLength, 2, "L1 F crash", "|o"),
    row("cut and grown again", TornLength, 2, "L1 L2 F crash", "|o."),
    row("cut, then appended", TornLength, 2, "L1 W(b) F crash", "|o1"),
    row("a short length is for ever", TornLength, 1, "W(b) crash N L2 F", "1|o. 2|o. 2|o1"),
    row("no space for a length", TornLength, 1, "L3!0 F crash", "|o"),
    row("a length is not set in part", TornLength, 2, "L1!1 F crash", "|oo"),
    row("a completed append keeps its length", Cache, 1, "W(b) W(c)~ crash", "|o. |o1 |o.2 |o12"),
    row(
        "whatever becomes of its units",
        Cache,
        1,
        "W(ab) W(c)~ crash R(a) N",
        "o2|o. o3|o.2 12|11 13|112",
    ),
    // What a crash leaves.
    row("a read decides", TornLength, 1, "W(a) crash R(a) R(a) crash", "oo|o 11|1"),
    row("unread, it stays open", TornLength, 1, "W(a) crash W(a) crash", "|o |1 |2"),
    row("a flush decides nothing", TornLength, 2, "W(a) crash W(b) F crash", "|o2 |12"),
    row("a new write settles it", TornLength, 1, "W(a) crash W(a) F crash", "|2"),
    row("what was in flight is over", TornLength, 2, "W(a)~ crash T(b) F crash", "|o2 |12"),
    // Two files: what a flush covers.
    two("the flush of the other", TornLength, (1, 1), "W(a) f W(c) crash", "|o,o |1,o |o,2 |1,2"),
    two("the flush of the same", TornLength, (1, 1), "W(a) F W(c) crash", "|1,o |1,2"),
    two("and of the second", TornLength, (1, 1), "W(c) f W(a) crash", "|o,1 |2,1"),
    two("flushed each", TornLength, (1, 1), "W(a) W(c) F f crash", "|1,2"),
    two("other in flight, this covers", TornLength, (1, 1), "f~ W(a) F <. crash", "|1,o"),
    two("write-through in one", TornLength, (1, 1), "W(a) T(c) crash", "|o,2 |1,2"),
    two("one torn, one durable", Torn, (1, 2), "W(a) T(cd) crash", "|o,22 |1,22"),
    two("marked clean in one", TornLength, (1, 1), "W(a) W(c) f!clean F f crash", "|1,o |1,2"),
    two("and not in the other", TornLength, (1, 1), "W(a) W(c) F!clean F f crash", "|o,2 |1,2"),
    two("a sync marks clean", TornLength, (1, 1), "W(a) T(c)!clean F f crash", "|1,o |1,2"),
    two("stuck is the device", TornLength, (1, 1), "W(c) F!sticky f crash", "E|o,o E|o,1"),
    two("settled are both", TornLength, (1, 1), "W(a)!late W(c)!late S T(a) T(c) crash", "|3,4"),
    // Two files under weaker profiles.
    two("one cut through both", Prefix, (1, 1), "W(a) W(c) crash", "|o,o |1,o |1,2"),
    two("durable with all before it", Prefix, (1, 1), "W(a) W(c) f crash", "|1,2"),
    two("but not what came later", Prefix, (1, 1), "W(c) W(a) f crash", "|o,1 |2,1"),
    two("a write-through in one binds both", Prefix, (1, 1), "W(a) T(c) crash", "|1,2"),
    two("a barrier of its own", Epoch, (1, 1), "W(a) F~ W(c) crash", "|o,o |1,o |o,2 |1,2"),
    two("and one of the other", Epoch, (1, 2), "W(c) f~ W(d) crash", "|o,oo |o,1o |o,12"),
    two(
        "that of the other is none",
        Epoch,
        (2, 1),
        "W(a) f~ W(b) crash",
        "|oo,o |1o,o |o2,o |12,o",
    ),
    two("a barrier in each", Epoch, (2, 1), "W(a) F~ f~ W(b) crash", "|oo,o |1o,o |12,o"),
    two("the process dies with both", Kill, (1, 1), "W(a) W(c)~ crash", "|1,o |1,2"),
    two("whole in each", Cache, (1, 2), "W(a) W(cd) crash", "|o,oo |1,oo |o,22 |1,22"),
    // Two files: lengths.
    two("a cut spares the other", TornLength, (1, 1), "L0 F crash", "|,o"),
    two("whichever it is", TornLength, (2, 2), "l1 f crash", "|oo,o"),
    two("an append spares the other", TornLength, (1, 1), "T(d) crash", "|o,o1"),
    two(
        "two lengths lag each",
        TornLength,
        (1, 1),
        "L2 l0 crash",
        "|o,o |o,. |o, |o.,o |o.,. |o.,",
    ),
    two("one flushed, one not", TornLength, (1, 1), "L2 l0 f crash", "|o, |o.,"),
    two("the first one is full", TornLength, (1, 1), "W(b) F L2 l2 f crash", "|o1,o."),
    two("a short one is for ever", TornLength, (1, 1), "W(d) crash n l2 f", "1|o,o. 2|o,o. 2|o,o1"),
    two(
        "each is asked by itself",
        Torn,
        (1, 1),
        "W(b)~ W(d)~ crash N",
        "1|o,o 1|o,o. 1|o,o2 2|o.,o 2|o.,o. 2|o.,o2 2|o1,o 2|o1,o. 2|o1,o2",
    ),
];

/// The first row that a defect fails.
pub(crate) fn first_failure(defect: Defect) -> Option<&'static str> {
    let fails = |litmus: &&Litmus| {
        let program = parse(litmus);
        program.explore(litmus.profile, Some(defect), Order::LengthFirst) != expected(litmus)
    };
    TABLE.iter().find(fails).map(|litmus| litmus.name)
}

fn parse(litmus: &Litmus) -> Program {
    let program = Program::parse(litmus.len, litmus.program).expect("the table is well formed");
    program.with_second(litmus.second)
}

fn expected(litmus: &Litmus) -> BTreeSet<String> {
    litmus.outcomes.split(' ').map(str::to_owned).collect()
}

#[test]
fn every_program_has_exactly_its_outcomes() {
    let mut failures = String::new();
    for litmus in TABLE {
        let program = parse(litmus);
        for order in [Order::LengthFirst, Order::UnitsFirst] {
            let found = program.explore(litmus.profile, None, order);
            if found != expected(litmus) {
                let Litmus { name, profile, program, outcomes, .. } = litmus;
                let found: Vec<String> = found.into_iter().collect();
                failures += &format!(
                    "{name} ({profile}): {program}\n  expected {outcomes}\n  found    {}\n",
                    found.join(" ")
                );
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn the_naive_enumerator_agrees_with_the_table() {
    for litmus in TABLE {
        let naive = naive::outcomes(&parse(litmus), litmus.profile);
        assert_eq!(naive, Ok(expected(litmus)), "{}: {}", litmus.name, litmus.program);
    }
}
