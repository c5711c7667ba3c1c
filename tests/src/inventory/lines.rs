//! All lines, by what they are about.

use faultfs::profile::{DiscardMode, Robustness};
use model::build::Initial;
use model::case::Step;
use model::finding::Property;
use model::op::Op;
use qcow2_core::{Barrier, Rule};

use crate::explore::alphabet::Symbol;
use crate::probe::Probe;
use crate::sabotage::Target;
use crate::workload::{FaultKind, Plan, Shape};

use super::line::{By, Line};

/// Names that have no lines here, and why. A `*` stands for anything.
pub const OUTSIDE: &[(&str, &str)] = &[
    ("mutant::ALL", "mistakes that can be put in: there only with the feature `sabotage`"),
    ("Rule*", "tests/fuzz/campaign.rs::whatever_is_taken_away_is_missed breaks each"),
    (
        "named::ALL",
        "qcow2-core/src/barrier.rs::names_are_unique_and_resolve goes through one of them",
    ),
    (
        "Work.*",
        "counts for qcow2-core/tests/cost.rs::requests_enter_the_lock_a_few_times; they decide nothing",
    ),
    ("ImageInfo.*", "an answer about what is in the header"),
    (
        "ReadExtent.*",
        "an answer: tests/suite/rare.rs::a_map_may_be_committed_failed_or_dropped uses it",
    ),
    (
        "WriteExtent.*",
        "an answer: tests/suite/rare.rs::a_map_may_be_committed_failed_or_dropped uses it",
    ),
    (
        "CheckReport*",
        "an answer: tests/suite/interop.rs::three_checks_on_damaged_images compares it",
    ),
    ("ErrorKind::*", "qcow2-core/src/error.rs::the_kind_of_an_error_is_that_of_its_cause"),
    ("*Error::kind()", "qcow2-core/src/error.rs::the_kind_of_an_error_is_that_of_its_cause"),
    ("Source::*", "an answer: qcow2-core/tests/image.rs::neighbours_are_one_extent"),
    ("Finding.*", "an answer, of which the variants of Problem have lines"),
    ("EntryError.*", "an answer, of which the variants of EntryProblem have lines"),
    ("Table::*", "the place in an EntryError"),
    ("TableHost.*", "what the bits of an L1 entry say, which have lines"),
    (
        "FormatError::*",
        "tests/suite/malformed.rs::bad_headers_are_refused_by_name has the words of each",
    ),
    ("UnknownFeature.*", "tests/suite/malformed.rs::bad_headers_are_refused_by_name has the words"),
    ("RefcountError::*", "qcow2-core/src/format/refcount.rs::largest_value_and_one_past"),
    (
        "FeatureKind::*",
        "qcow2-core/src/format/feature.rs::every_known_bit_has_its_name goes through them",
    ),
    ("Permission::*", "qcow2-core/storage/src/file.rs::readers_share_and_writers_do_not"),
    ("Holder::*", "qcow2-core/storage/src/file.rs::readers_share_and_writers_do_not"),
    ("CreateOptions::*()", "defaults: the fields have lines"),
    ("OpenOptions::*()", "defaults: the fields have lines"),
    (
        "Header::*()",
        "from bytes to values: qcow2-core/src/format/header/tests.rs::encode_then_parse_is_the_same",
    ),
    (
        "Extension::*()",
        "from bytes to values: qcow2-core/src/format/extension.rs::lists_round_trip",
    ),
    ("Bitmaps::*()", "from bytes to values: qcow2-core/src/format/extension.rs::bitmaps_limits"),
    ("Luks::*()", "from bytes to values: qcow2-core/src/format/extension.rs::luks_limits"),
    (
        "L?Entry::*()",
        "from bytes to values: qcow2-core/src/format/entry.rs::standard_entries_round_trip",
    ),
    (
        "RefcountTableEntry::*()",
        "from bytes to values: qcow2-core/src/format/entry.rs::standard_entries_round_trip",
    ),
    ("format::*()", "from bytes to values, each with tests in its own file"),
    ("IoBuf::*()", "qcow2-core/storage/src/buffer.rs::split_and_unsplit_keep_address_and_content"),
    ("MemoryStorage::*()", "a storage for tests, which every test with one tests"),
];

const BLOCKING: &str = "tests/fuzz/blocking.rs";
const BLOCK_DEVICE: &str = "tests/suite/block_device.rs";
const CACHE: &str = "qcow2-core/src/cache.rs";
const CAMPAIGN: &str = "tests/fuzz/campaign.rs";
const CHECK: &str = "qcow2-core/tests/check.rs";
const CORPUS: &str = "tests/suite/corpus.rs";
const COST: &str = "qcow2-core/tests/cost.rs";
const DAMAGE: &str = "qcow2-core/tests/damage.rs";
const ENTRY: &str = "qcow2-core/src/format/entry.rs";
const EXTENSION: &str = "qcow2-core/src/format/extension.rs";
const FEATURE: &str = "qcow2-core/src/format/feature.rs";
const FILE: &str = "qcow2-core/storage/src/file.rs";
const FREE: &str = "qcow2-core/src/free.rs";
const GROW: &str = "qcow2-core/tests/grow.rs";
const GUEST_TRACE: &str = "tests/suite/guest_trace.rs";
const HEADER: &str = "qcow2-core/src/format/header/tests.rs";
const HEAP: &str = "qcow2-core/tests/heap.rs";
const IMAGE: &str = "qcow2-core/tests/image.rs";
const INTEROP: &str = "tests/suite/interop.rs";
const LIMITED: &str = "qcow2-core/tests/limited.rs";
const MALFORMED: &str = "tests/suite/malformed.rs";
const MUTANTS: &str = "tests/suite/qemu_mutants/mod.rs";
const RARE: &str = "tests/suite/rare.rs";
const REAL_FILE: &str = "tests/suite/real_file.rs";
const REFCOUNT: &str = "qcow2-core/src/format/refcount.rs";
const REFUSED: &str = "tests/suite/refused.rs";
const RETRY: &str = "qcow2-core/tests/retry.rs";
const SHUTTLE: &str = "tests/suite/shuttle/mod.rs";
const SNAPSHOTS: &str = "tests/suite/snapshots.rs";
const TABLES: &str = "qcow2-core/tests/tables.rs";
const WRONG: &str = "tests/fuzz/wrong.rs";

/// Whether some request of a plan is like that; with the plan's cluster size.
fn some(plan: &Plan, is: impl Fn(&Op, u64) -> bool) -> bool {
    let cluster = plan.geometry.cluster_size();
    plan.lives.iter().flat_map(|life| life.tasks.iter().flatten()).any(|op| is(op, cluster))
}

/// Where a request that names a range begins, and its length.
const fn range(op: &Op) -> Option<(u64, u64)> {
    match *op {
        Op::Write { offset, length, .. }
        | Op::WriteZeroes { offset, length, .. }
        | Op::Discard { offset, length }
        | Op::Read { offset, length } => Some((offset, length)),
        Op::Flush | Op::Grow { .. } | Op::Reopen => None,
    }
}

const fn is_write(op: &Op) -> bool {
    matches!(op, Op::Write { .. })
}

const fn is_zeroing(op: &Op) -> bool {
    matches!(op, Op::WriteZeroes { .. })
}

const fn is_discard(op: &Op) -> bool {
    matches!(op, Op::Discard { .. })
}

const fn is_read(op: &Op) -> bool {
    matches!(op, Op::Read { .. })
}

/// Whether both ends of a request's range are, or are not, at the start of a cluster.
fn ends_at_clusters(op: &Op, cluster: u64, first: bool, last: bool) -> bool {
    let is = |at: u64| at.is_multiple_of(cluster);
    range(op).is_some_and(|(offset, length)| is(offset) == first && is(offset + length) == last)
}

/// Whether a request touches so many clusters.
fn clusters(op: &Op, cluster: u64) -> u64 {
    range(op).map_or(0, |(offset, length)| (offset + length).div_ceil(cluster) - offset / cluster)
}

/// Whether a request ends in the middle of the last cluster, where the disk ends.
fn takes_a_short_last_cluster(plan: &Plan, is: fn(&Op) -> bool) -> bool {
    let size = plan.geometry.virtual_size;
    some(plan, |op, cluster| {
        let (offset, length) = range(op).unwrap_or_default();
        is(op) && offset + length == size && !size.is_multiple_of(cluster)
    })
}

/// Whether several tasks run at once in some life, and some of their requests are like that.
fn beside_others(plan: &Plan, is: fn(&Op) -> bool) -> bool {
    plan.lives.iter().any(|life| life.tasks.len() > 1 && life.tasks.iter().flatten().any(is))
}

/// Bytes of a metadata page, its own choice included.
const fn page(plan: &Plan) -> u64 {
    match plan.open.page_size {
        0 => 4096,
        bytes => bytes as u64,
    }
}

use By::{
    Attack, Damage, Explored, Fault, Initial as Start, Nothing, Plans, Probe as Met,
    Shape as Shaped, Step as Recovery, Test,
};

macro_rules! lines {
    ($($of:literal { $($class:literal [$($by:expr),* $(,)?] $($property:ident)*;)+ })+) => {
        /// All lines.
        pub static LINES: &[Line] = &[
            $($(Line {
                of: $of,
                class: $class,
                drawn: &[$($by),*],
                noticed: &[$(Property::$property),*],
            },)+)+
        ];
    };
}

lines! {
    // How an image is created.

    "CreateOptions.version" {
        "3" [Attack(Target::Rule(Rule::HeaderLast)), Test(IMAGE, "reads_back_what_was_written")] P4;
        "any other" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
    }
    "CreateOptions.refcount_bits" {
        "1, 2, 4, 8, 16, 32, 64" [Test(INTEROP, "refcounts_of_every_width_are_understood")];
        "16, under power cuts" [Attack(Target::Rule(Rule::HeaderLast))] P4;
        "another number" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
    }
    "CreateOptions.cluster_bits" {
        "9, under power cuts" [Attack(Target::Rule(Rule::HeaderLast))] P4;
        "10, 12, 16, 21" [
            Test(IMAGE, "reads_back_what_was_written"),
            Test(INTEROP, "images_of_ours_are_images_to_qemu"),
        ];
        "14" [Test(BLOCK_DEVICE, "an_image_fills_a_device")];
        "13, 18" [Test(RARE, "pages_may_have_64_kib")];
        "11, 15, 17, 19, 20" [Nothing(
            "what create does with them is arithmetic that the sizes around them take; tests/suite/interop.rs::images_of_qemu_are_images_to_us \
             opens QEMU's images of all sizes"
        )];
        "below 9 and above 21" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
    }
    "CreateOptions.virtual_size" {
        "0" [Test(RARE, "a_disk_of_nothing_grows")];
        "one L2 table's, or less" [Attack(Target::Rule(Rule::HeaderLast))] P4;
        "a long L1 table's" [
            Attack(Target::Rule(Rule::HeaderLast)),
            Test(CHECK, "a_table_is_not_given_out"),
        ] P4;
        "the largest" [Test(RARE, "the_largest_disk_works_to_its_end")];
        "more than the largest, or no multiple of 512" [
            Test(REFUSED, "options_of_a_new_image_are_refused_by_name"),
        ];
    }
    "CreateOptions.lazy_refcounts" {
        "off" [Attack(Target::Rule(Rule::HeaderLast))] P4;
        "on" [
            Test(IMAGE, "an_abandoned_lazy_image_is_repaired_when_opened"),
            Test(GUEST_TRACE, "a_real_guest_survives_power_cuts"),
        ];
    }
    "CreateOptions.rules" {
        "all" [Test(CAMPAIGN, "the_special_attacks_find_nothing_in_whole_code")];
        "without one" [
            Attack(Target::Rule(Rule::OldHeaderFirst)),
            Attack(Target::Flush(Barrier::Create)),
        ] P4;
    }
    "create::create()" {
        "over nothing, over bytes, over images of every age" [
            Attack(Target::Rule(Rule::OldHeaderFirst)),
        ] P4;
        "on a device that holds something" [
            Attack(Target::Flush(Barrier::CreateOverOld)),
            Test(LIMITED, "an_image_fills_a_device"),
        ] P4;
        "where it does not fit" [Test(LIMITED, "an_image_that_does_not_fit_leaves_the_old_one")];
        "its own I/O fails" [
            Test(LIMITED, "an_image_that_does_not_fit_leaves_the_old_one"),
            Test(BLOCK_DEVICE, "an_image_fills_a_device"),
        ];
    }

    // How an image is opened.

    "OpenOptions.writable" {
        "yes" [Recovery(Step::Open)] P3 P4 P6;
        "no" [Recovery(Step::OpenReadOnly), Met(Probe::ReadOnlyDirty)] P3;
        "no, and asked to write" [Test(REFUSED, "an_image_that_is_open_to_read_is_not_changed")];
    }
    "OpenOptions.lazy_refcounts" {
        "as the image says" [Plans(800, |plan| plan.open.lazy_refcounts.is_none())] P1 P4 P6;
        "on, whatever an eager image says" [
            Plans(8, |plan| plan.open.lazy_refcounts == Some(true) && !plan.geometry.lazy_refcounts),
        ] P1 P4 P6;
        "off, whatever a lazy image says" [
            Plans(8, |plan| plan.open.lazy_refcounts == Some(false) && plan.geometry.lazy_refcounts),
        ] P1 P4 P6;
        "the same as the image" [
            Plans(16, |plan| plan.open.lazy_refcounts == Some(plan.geometry.lazy_refcounts)),
        ] P1 P4 P6;
        "on, for version 2" [
            Nothing("version 2 is refused before: tests/suite/malformed.rs::bad_headers_are_refused_by_name"),
        ];
    }
    "OpenOptions.write_through" {
        "off" [Plans(800, |plan| !plan.open.write_through)] P1;
        "on" [Shaped(Shape::WriteThrough), Met(Probe::WriteThrough)] P1;
    }
    "OpenOptions.pass_discard" {
        "on" [Plans(800, |plan| plan.open.pass_discard), Met(Probe::HostDiscard)] P2;
        "off" [
            Plans(80, |plan| !plan.open.pass_discard),
            Test(IMAGE, "a_discard_is_passed_down_if_asked_to"),
        ] P2 P9;
        "on, and the device takes none" [
            Plans(15, |plan| plan.open.pass_discard && !plan.device.can_discard),
        ] P2 P8;
    }
    "OpenOptions.cache_pages" {
        "one" [Plans(250, |plan| plan.open.cache_pages == 1)] P1 P4 P7;
        "a few" [Plans(250, |plan| plan.open.cache_pages == 4)] P1 P4 P7;
        "more than a life touches" [Plans(250, |plan| plan.open.cache_pages == 1024)] P1 P4;
        "fewer than a life touches" [
            Shaped(Shape::Eviction),
            Met(Probe::Reloaded),
            Met(Probe::ReloadedUndurable),
        ] P0 P1 P4 P7;
        "its own choice" [
            Test(RARE, "growth_and_cache_by_need_and_by_own_choice_are_explored"),
            Test(GUEST_TRACE, "a_real_guest_survives_power_cuts"),
        ];
        "none" [Test(REFUSED, "options_of_opening_are_refused_by_name")];
    }
    "OpenOptions.page_size" {
        "a unit" [Plans(600, |plan| page(plan) == 512)] P1 P2 P4;
        "several units, less than a cluster" [
            Plans(15, |plan| page(plan) > 512 && page(plan) < plan.geometry.cluster_size()),
        ] P1 P2 P4;
        "a cluster of several units" [
            Plans(40, |plan| page(plan) > 512 && page(plan) == plan.geometry.cluster_size()),
        ] P1 P2 P4;
        "more than a cluster" [
            Plans(60, |plan| page(plan) > plan.geometry.cluster_size()),
        ] P1 P2 P4;
        "more than the longest transfer" [
            Plans(5, |plan| page(plan) > plan.device.max_transfer.into()),
        ] P1 P4 P8;
        "its own choice" [Plans(60, |plan| plan.open.page_size == 0)] P1 P2 P4;
        "8 KiB to 64 KiB" [Test(RARE, "pages_may_have_64_kib")];
        "no power of two, or outside 512..=65536" [
            Test(REFUSED, "options_of_opening_are_refused_by_name"),
        ];
    }
    "OpenOptions.growth" {
        "a cluster" [
            Plans(400, |plan| plan.open.growth_step == plan.geometry.cluster_size()),
        ] P1 P2 P4;
        "some clusters" [
            Plans(400, |plan| plan.open.growth_step > plan.geometry.cluster_size()),
        ] P1 P2 P4;
        "none: what is needed" [
            Attack(Target::Flush(Barrier::RepairReuse)),
            Test(RARE, "growth_and_cache_by_need_and_by_own_choice_are_explored"),
            Test(LIMITED, "a_full_storage_is_asked_once"),
        ] P1 P2 P4;
        "more than there is room for" [
            Test(LIMITED, "what_is_needed_is_taken_where_more_does_not_fit"),
        ];
        "more than there are offsets" [Test(LIMITED, "the_largest_file_is_full")];
        "its own choice" [
            Test(RARE, "growth_and_cache_by_need_and_by_own_choice_are_explored"),
            Test(GUEST_TRACE, "a_real_guest_survives_power_cuts"),
        ];
        "its own choice, of a file of more than 32 MiB" [Nothing(
            "an eighth of such a file is one more number of clusters; power cuts in images that long take a file of 64 KiB clusters, \
             which is in tests/suite/guest_trace.rs::a_real_guest_survives_power_cuts with less"
        )];
    }
    "OpenOptions.rules" {
        "all" [Test(CAMPAIGN, "no_power_cut_loses_anything")];
        "without one" [
            Attack(Target::Rule(Rule::DataBeforeMapping)),
            Attack(Target::Flush(Barrier::GuestFlush)),
        ] P1 P2;
    }

    // What is done with an image.

    "Image::open()" {
        "clean" [Met(Probe::CleanClose), Recovery(Step::Open)] P4 P6;
        "dirty" [Met(Probe::DirtyCrash), Start(Initial::Dirty)] P3 P4 P5;
        "cut short by a power cut" [Met(Probe::CrashInRepair), Met(Probe::NestedTwice)] P3 P5;
        "and worked on in the session that repaired it" [
            Shaped(Shape::Working),
            Met(Probe::WorkedOn),
        ] P1 P4 P6;
        "with promises that nobody keeps" [
            Start(Initial::Bitmaps),
            Attack(Target::Rule(Rule::AutoclearFirst)),
        ] P4;
        "damaged" [
            Damage(Robustness::BitRot),
            Met(Probe::OpenRefused),
            Met(Probe::OpenedDamaged),
        ] P7 P8;
        "fails in the middle" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
    }
    "Image::info()" {
        "size after growth, dirty bit" [
            Explored(Symbol::Grow),
            Test(IMAGE, "an_abandoned_lazy_image_is_repaired_when_opened"),
        ] P10;
    }
    "Image::work()" {
        "counts" [Test(COST, "requests_enter_the_lock_a_few_times")];
    }
    "Image::storage()" {
        "used by whoever fills a map" [Test(RARE, "a_map_may_be_committed_failed_or_dropped")];
    }
    "Image::abandon()" {
        "with something flushed, and something not" [
            Test(RARE, "an_abandoned_image_holds_what_was_flushed"),
        ];
    }
    "Image::fork()" {
        "in every explored workload" [Explored(Symbol::WriteA)] P0;
        "as going there again" [Test(RARE, "a_fork_is_the_image_that_the_same_requests_lead_to")];
        "with a request in flight, or something that must settle" [
            Test(RARE, "an_image_with_a_request_in_flight_has_no_fork"),
        ];
    }
    "Image::read()" {
        "of zeroes, data, both" [Plans(500, |plan| some(plan, |op, _| is_read(op)))] P0;
        "a part of a cluster" [
            Plans(300, |plan| some(plan, |op, cluster| is_read(op) && !ends_at_clusters(op, cluster, true, true))),
        ] P0;
        "of many clusters" [
            Plans(5, |plan| some(plan, |op, cluster| is_read(op) && clusters(op, cluster) >= 16)),
            Shaped(Shape::Long),
        ] P0;
        "beside a discard of the same" [
            Attack(Target::Rule(Rule::ReadsBeforeReuse)),
            Plans(150, |plan| beside_others(plan, is_read)),
        ] P0;
        "more than the longest transfer" [Plans(15, |plan| some(plan, |op, _| {
            is_read(op) && range(op).is_some_and(|(_, length)| length > plan.device.max_transfer.into())
        }))] P0 P8;
        "of nothing" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
            Test(BLOCKING, "blocking_calls_survive_power_cuts"),
        ];
        "past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "Image::write()" {
        "a whole cluster" [
            Explored(Symbol::WriteA),
            Plans(500, |plan| some(plan, |op, cluster| is_write(op) && ends_at_clusters(op, cluster, true, true))),
        ] P0 P1 P2;
        "begins in the middle of a cluster" [
            Plans(300, |plan| some(plan, |op, cluster| is_write(op) && ends_at_clusters(op, cluster, false, true))),
        ] P1 P2;
        "ends in the middle of a cluster" [
            Plans(300, |plan| some(plan, |op, cluster| is_write(op) && ends_at_clusters(op, cluster, true, false))),
        ] P1 P2;
        "both in the middle" [
            Explored(Symbol::WritePartOfB),
            Met(Probe::PaddedBothSides),
            Met(Probe::CopiedOnWrite),
        ] P1 P2;
        "one unit" [
            Plans(300, |plan| some(plan, |op, _| is_write(op) && range(op).is_some_and(|(_, length)| length == 512))),
        ] P1 P2;
        "over a cluster's border" [
            Explored(Symbol::WriteAcross),
            Plans(400, |plan| some(plan, |op, cluster| is_write(op) && clusters(op, cluster) == 2)),
        ] P1 P2;
        "to the end of a last cluster that is cut short" [
            Plans(50, |plan| takes_a_short_last_cluster(plan, is_write)),
        ] P1 P2;
        "many clusters" [
            Shaped(Shape::Long),
            Plans(20, |plan| some(plan, |op, cluster| is_write(op) && clusters(op, cluster) >= 16)),
        ] P1 P2 P7;
        "needs a new L2 table" [Explored(Symbol::WriteFar)] P4;
        "needs a new refcount block" [
            Met(Probe::RefcountBlockGrowth),
            Start(Initial::RefcountBlockOneShort),
        ] P4;
        "needs a new refcount table" [
            Met(Probe::RefcountTableGrowth),
            Start(Initial::RefcountTableOneShort),
        ] P4;
        "takes what was given up" [Met(Probe::Reuse)] P2;
        "beside other requests" [
            Plans(400, |plan| beside_others(plan, is_write)),
            Test(SHUTTLE, "pairs_pass_in_random_orders"),
        ] P0 P8;
        "fails, and is not tried again" [Fault(FaultKind::Write), Fault(FaultKind::Late)] P1 P2;
        "is dropped" [Fault(FaultKind::Dropped), Met(Probe::Dropped)] P2 P9;
        "more than the longest transfer" [Plans(20, |plan| some(plan, |op, _| {
            is_write(op) && range(op).is_some_and(|(_, length)| length > plan.device.max_transfer.into())
        }))] P1 P2 P8;
        "of nothing" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
            Test(BLOCKING, "blocking_calls_survive_power_cuts"),
        ];
        "past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
        "over a table" [
            Attack(Target::Rule(Rule::CorruptBeforeError)),
            Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through"),
        ] P4;
    }
    "Durability::Cached" {
        "a guest write" [Explored(Symbol::WriteA)] P1 P2;
        "a write of the storage" [Met(Probe::UnflushedLost)] P1;
    }
    "Durability::Through" {
        "of a cluster that is mapped, durably" [
            Explored(Symbol::WriteThrough),
            Met(Probe::WriteThrough),
        ] P1;
        "of one that is not" [
            Explored(Symbol::WriteThrough),
            Test(CORPUS, "every_file_is_a_test"),
        ] P1;
        "fails in its sync" [
            Fault(FaultKind::WriteThroughFailed),
            Met(Probe::WriteThroughFailed),
        ] P1 P8;
    }
    "Image::write_zeroes()" {
        "whole clusters" [Explored(Symbol::ZeroA), Explored(Symbol::ZeroB)] P0 P1 P2;
        "a part of a cluster" [
            Plans(200, |plan| some(plan, |op, cluster| is_zeroing(op) && !ends_at_clusters(op, cluster, true, true))),
        ] P0 P1 P2;
        "to the end of a last cluster that is cut short" [
            Plans(10, |plan| takes_a_short_last_cluster(plan, is_zeroing)),
        ] P0 P2;
        "many clusters" [
            Plans(5, |plan| some(plan, |op, cluster| is_zeroing(op) && clusters(op, cluster) >= 16)),
            Test(WRONG, "long_requests_are_told_from_endless_ones"),
        ] P0 P7;
        "of nothing, past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "Zeroing::Keep" {
        "of data" [Explored(Symbol::ZeroB)] P0 P2;
        "of data of whose cluster there is a second reference" [
            Plans(30, |plan| {
                plan.initial == Initial::Leaky
                    && some(plan, |op, _| matches!(op, Op::WriteZeroes { unmap: false, .. }))
            }),
        ] P2 P4;
    }
    "Zeroing::Free" {
        "of data, and of zeroes with a cluster" [
            Explored(Symbol::ZeroA),
            Plans(300, |plan| some(plan, |op, _| matches!(op, Op::WriteZeroes { unmap: true, .. }))),
        ] P0 P2 P4;
    }
    "Image::discard()" {
        "one cluster" [Explored(Symbol::DiscardA)] P1 P2;
        "many, over several L2 tables" [Explored(Symbol::DiscardAll)] P1 P2 P4;
        "a part of a cluster" [
            Plans(100, |plan| some(plan, |op, cluster| is_discard(op) && !ends_at_clusters(op, cluster, true, true))),
        ] P0 P2;
        "a last cluster that is cut short" [
            Plans(15, |plan| takes_a_short_last_cluster(plan, is_discard)),
        ] P0 P2;
        "the whole disk" [Met(Probe::SpaceFoundAgain)] P6 P9;
        "where there are no tables" [Test(COST, "nothing_costs_next_to_nothing_to_discard")];
        "of nothing, past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "Image::grow()" {
        "within the last cluster" [Plans(20, |plan| {
            let size = plan.geometry.virtual_size;
            some(plan, |op, cluster| matches!(op, Op::Grow { to } if *to > size && size / cluster == (*to - 1) / cluster))
        }), Test(GROW, "nothing_old_comes_to_light")] P10 P2;
        "within the L1 table, where something was left" [
            Plans(8, |plan| {
                plan.initial == Initial::Leftovers
                    && some(plan, |op, _| matches!(op, Op::Grow { .. }))
            }),
            Attack(Target::Rule(Rule::NothingBeforeSize)),
        ] P10 P2;
        "with a new L1 table" [
            Explored(Symbol::Grow),
            Met(Probe::L1Growth),
            Start(Initial::L1AboutToGrow),
        ] P10 P4;
        "by many L2 tables" [Shaped(Shape::Sparse)] P10 P4;
        "again and again, so that a new table comes where an old one was" [Shaped(Shape::Growing)] P4 P6;
        "from a disk of nothing" [Test(RARE, "a_disk_of_nothing_grows")];
        "to what it is" [Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name")];
        "smaller, too large, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
        "no room for it" [
            Fault(FaultKind::FullDevice),
            Test(RETRY, "room_comes_back_and_nothing_is_lost"),
        ] P10 P8;
    }
    "Image::flush()" {
        "of what has completed" [Explored(Symbol::Flush)] P1;
        "beside other requests" [
            Plans(150, |plan| beside_others(plan, |op| matches!(op, Op::Flush))),
        ] P1;
        "fails" [Met(Probe::FlushFailed)] P1 P8;
        "is dropped, and fails with nobody there to hear it" [
            Fault(FaultKind::Dropped),
            Test(CORPUS, "every_file_is_a_test"),
        ] P1;
        "of many pages" [Test(COST, "a_flush_costs_what_is_dirty")];
    }
    "Image::close()" {
        "after requests" [Explored(Symbol::Reopen), Met(Probe::CleanClose)] P1 P6;
        "after faults" [
            Met(Probe::SpaceAgain),
            Test(RETRY, "room_comes_back_and_nothing_is_lost"),
        ] P6 P8;
        "of an image that was open to read" [
            Test(REFUSED, "an_image_that_is_open_to_read_is_not_changed"),
        ];
    }
    "Image::map_read()" {
        "the whole disk, after each opening" [
            Recovery(Step::Open),
            Recovery(Step::OpenReadOnly),
        ] P3;
        "a part" [Test(IMAGE, "neighbours_are_one_extent")];
        "past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "ReadMap::extents()" {
        "neighbours, and holes" [Recovery(Step::Open), Test(IMAGE, "neighbours_are_one_extent")] P3;
    }
    "Image::map_write()" {
        "by a request of our own" [Explored(Symbol::WriteA)] P1 P2;
        "by somebody else" [
            Test(RARE, "a_map_may_be_committed_failed_or_dropped"),
            Test(IMAGE, "neighbours_are_one_extent"),
        ];
        "past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "WriteMap::extents()" {
        "neighbours" [Test(IMAGE, "neighbours_are_one_extent")];
    }
    "WriteMap::begin()" {
        "then committed, failed or dropped" [
            Test(RARE, "a_map_may_be_committed_failed_or_dropped"),
        ];
    }
    "WriteMap::commit()" {
        "after the data, or without any" [
            Test(RARE, "a_map_may_be_committed_failed_or_dropped"),
            Test(IMAGE, "neighbours_are_one_extent"),
        ];
    }
    "WriteMap::fail()" {
        "of a map with new clusters" [Test(RARE, "a_map_may_be_committed_failed_or_dropped")];
        "under power cuts" [
            Nothing("no subject writes by maps of its own; a claim that failed is the same as that of a write that failed"),
        ];
    }

    // The same with plain calls.

    "storage::block_on::block_on()" {
        "ready at once" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
        "waits for another thread" [Test(RARE, "threads_may_share_a_unit")];
    }
    "blocking::create()" {
        "any" [Test(IMAGE, "reads_back_what_was_written")];
    }
    "blocking::check()" {
        "any" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
    }
    "blocking::Image::open()" {
        "any" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
    }
    "blocking::Image::info()" {
        "any" [Test(IMAGE, "an_abandoned_lazy_image_is_repaired_when_opened")];
    }
    "blocking::Image::work()" {
        "any" [Test(COST, "requests_enter_the_lock_a_few_times")];
    }
    "blocking::Image::read()" {
        "any byte, any length" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
        "past the end" [Test(REFUSED, "plain_calls_that_do_not_fit_are_refused_by_name")];
    }
    "blocking::Image::write()" {
        "any byte, any length" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
        "within one unit, by several threads" [Test(RARE, "threads_may_share_a_unit")];
        "past the end" [Test(REFUSED, "plain_calls_that_do_not_fit_are_refused_by_name")];
    }
    "blocking::Image::write_zeroes()" {
        "any byte, any length" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
        "past the end" [Test(REFUSED, "plain_calls_that_do_not_fit_are_refused_by_name")];
    }
    "blocking::Image::discard()" {
        "any byte, any length" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
        "past the end" [Test(REFUSED, "plain_calls_that_do_not_fit_are_refused_by_name")];
    }
    "blocking::Image::grow()" {
        "with requests before and after" [Test(IMAGE, "reads_back_what_was_written")];
        "under power cuts" [
            Nothing("it is one call of Image::grow, which exploration cuts everywhere"),
        ];
    }
    "blocking::Image::flush()" {
        "any" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
    }
    "blocking::Image::close()" {
        "any" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
    }
    "blocking::SPARE_BYTES" {
        "a request of that length or less" [Test(HEAP, "plain_calls_take_nothing_from_the_heap")];
        "a longer one" [
            Test(BLOCKING, "blocking_calls_survive_power_cuts"),
            Test(IMAGE, "rebuilding_keeps_the_data"),
        ];
    }
    "blocking::MOST_SPARE" {
        "fewer calls at once" [Test(RARE, "threads_may_share_a_unit")];
        "more calls at once" [
            Nothing("the seventeenth buffer is given back to the heap: it would show in memory only"),
        ];
    }

    // Check and repair.

    "check::check()" {
        "a sound image" [
            Recovery(Step::Check),
            Test(CHECK, "an_image_in_order_has_no_findings_and_exact_totals"),
        ] P8;
        "what a power cut left" [Recovery(Step::Check), Recovery(Step::Repair)] P3 P8;
        "a damaged image" [
            Damage(Robustness::Trash),
            Met(Probe::RepairRepaired),
            Met(Probe::RepairGaveUp),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ] P7 P8;
        "cut short by a power cut" [Met(Probe::CrashInRepair), Met(Probe::NestedTwice)] P3 P4 P5;
        "its own I/O fails" [
            Test(LIMITED, "what_cannot_be_counted_is_not_rebuilt"),
            Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers"),
        ];
    }
    "Repair::None" {
        "whatever there is" [Recovery(Step::Check)] P3 P8;
    }
    "Repair::Leaks" {
        "whatever there is, cut short too" [Recovery(Step::RepairLeaks)] P3 P4 P8;
        "beside other damage" [
            Test(CHECK, "a_repair_of_leaks_leaves_the_rest"),
            Test(RARE, "every_repair_may_be_cut_short"),
        ];
    }
    "Repair::All" {
        "after a power cut, cut short too" [
            Recovery(Step::Repair),
            Met(Probe::LeakRepaired),
        ] P3 P4 P5 P8;
        "of damage" [
            Attack(Target::Rule(Rule::DirtyBeforeRepair)),
            Damage(Robustness::Misdirected),
        ] P4 P8;
    }
    "Repair::Rebuild" {
        "where there is room" [
            Test(RARE, "every_repair_may_be_cut_short"),
            Test(INTEROP, "images_of_qemu_are_images_to_us"),
        ];
        "where there is none" [Attack(Target::Flush(Barrier::RepairReuse))] P4;
    }
    "Repair::ZeroPastEnd" {
        "cut short" [Test(RARE, "every_repair_may_be_cut_short")];
        "near and far past the end" [
            Test(DAMAGE, "entries_past_the_end_become_zeroes_only_on_request"),
        ];
    }
    "Problem::Leak" {
        "told" [Test(CHECK, "a_leak_is_told_where_nothing_is_in_use")];
    }
    "Problem::RefcountTooLow" {
        "told" [Test(CHECK, "lost_counts_are_told_one_by_one")];
    }
    "Problem::Copied" {
        "told" [Test(CHECK, "a_lone_copied_bit_is_seen")];
    }
    "Problem::Entry" {
        "told" [Test(CHECK, "an_entry_is_named_by_its_place")];
    }
    "Problem::BeyondEnd" {
        "told" [Test(DAMAGE, "compressed_data_may_reach_past_the_end")];
    }
    "Problem::Overlap" {
        "told" [Test(CHECK, "tables_are_not_shared")];
    }
    "Problem::Shared" {
        "told" [Test(CHECK, "compressed_clusters_are_counted")];
    }
    "Problem::TooMany" {
        "told" [
            Test(CHECK, "references_that_cannot_be_counted_are_told"),
            Test(LIMITED, "what_cannot_be_counted_is_not_rebuilt"),
        ];
    }
    "Problem::Bitmaps" {
        "told" [Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them")];
    }
    "Problem::CutEntry" {
        "told" [Test(DAMAGE, "a_file_may_end_inside_an_entry")];
    }

    // Errors.

    "CreateError::Option" {
        "told" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
    }
    "CreateError::Format" {
        "told" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
    }
    "CreateError::Storage" {
        "told" [Test(LIMITED, "an_image_that_does_not_fit_leaves_the_old_one")];
    }
    "OpenError::Format" {
        "told" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "OpenError::Unsupported" {
        "told" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(REFUSED, "a_storage_of_large_sectors_is_refused"),
        ];
    }
    "OpenError::Option" {
        "told" [Test(REFUSED, "options_of_opening_are_refused_by_name")];
    }
    "OpenError::MarkedCorrupt" {
        "told" [Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through")];
    }
    "OpenError::Unrepairable" {
        "told" [Met(Probe::OpenRefused), Test(DAMAGE, "what_is_refused_by_name_is_not_changed")] P8;
    }
    "OpenError::CutShort" {
        "told" [Test(DAMAGE, "a_file_may_end_inside_an_entry")];
    }
    "OpenError::Repair" {
        "told" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
    }
    "OpenError::Io" {
        "told" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
    }
    "IoError::Storage" {
        "told" [
            Fault(FaultKind::Read),
            Fault(FaultKind::Write),
            Test(LIMITED, "a_discarded_cluster_is_taken_before_an_allocation_fails"),
        ] P8;
    }
    "IoError::Poisoned" {
        "after a sync that failed" [
            Fault(FaultKind::FlushSticky),
            Test(RETRY, "a_sync_that_failed_is_final"),
        ] P1 P8;
        "after damage was found" [
            Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through"),
        ];
    }
    "IoError::ReadOnly" {
        "told" [Test(REFUSED, "an_image_that_is_open_to_read_is_not_changed")];
    }
    "IoError::OutOfRange" {
        "told" [Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name")];
    }
    "IoError::Unaligned" {
        "told" [Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name")];
    }
    "IoError::Header" {
        "told" [Nothing(
            "a header is encoded again from one that was parsed, so what it would say was said at opening: \
             tests/suite/malformed.rs::bad_headers_are_refused_by_name"
        )];
    }
    "IoError::Entry" {
        "told" [Damage(Robustness::BitRot), Test(SNAPSHOTS, "consequences_of_damage")] P7;
    }
    "IoError::SharedTable" {
        "two entries lead to it" [Test(TABLES, "a_table_of_two_entries_is_not_changed")];
        "its refcount says so" [Test(SNAPSHOTS, "consequences_of_damage")];
    }
    "IoError::InUse" {
        "told" [
            Test(TABLES, "a_table_that_is_counted_as_free_is_not_given_out"),
            Test(CHECK, "a_table_is_not_given_out"),
        ];
    }
    "IoError::TwoTables" {
        "told" [Test(SNAPSHOTS, "consequences_of_damage"), Test(CORPUS, "every_file_is_a_test")];
    }
    "IoError::Unsupported" {
        "a compressed cluster" [
            Test(SNAPSHOTS, "consequences_of_damage"),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ];
    }
    "IoError::Lost" {
        "told" [
            Nothing("opening has seen that the L1 table covers the disk, and what was looked up before stays: words for what cannot be"),
        ];
    }
    "IoError::Full" {
        "told" [Test(LIMITED, "the_largest_refcount_table_grows_no_more")];
    }
    "IoError::Resize" {
        "told" [Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name")];
    }
    "CheckError::Format" {
        "told" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "CheckError::Unsupported" {
        "told" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(REFUSED, "a_storage_of_large_sectors_is_refused"),
        ];
    }
    "CheckError::Storage" {
        "told" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
    }
    "FileError::System" {
        "told" [Test(FILE, "refusals_name_the_file_and_the_permission")];
    }
    "FileError::NotAFile" {
        "told" [Test(FILE, "refusals_name_the_file_and_the_permission")];
    }
    "FileError::Locked" {
        "told" [
            Test(FILE, "readers_share_and_writers_do_not"),
            Test(INTEROP, "locks_keep_the_two_apart"),
        ];
    }

    // What a storage is.

    "Limits::fault()" {
        "nothing is wrong" [Met(Probe::CleanClose)] P8;
        "something is" [Test(REFUSED, "a_storage_of_large_sectors_is_refused")];
    }
    "storage::is_no_space()" {
        "it is, or another error" [Test(LIMITED, "a_full_storage_is_asked_once")];
    }
    "Limits.alignment" {
        "a unit" [Met(Probe::CleanClose)] P8;
        "a byte" [
            Test(IMAGE, "reads_back_what_was_written"),
            Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers"),
        ];
        "between the two" [
            Nothing("every offset, length and buffer is a multiple of 512 anyhow, as a storage of units checks"),
        ];
        "more than a unit" [Test(REFUSED, "a_storage_of_large_sectors_is_refused")];
    }
    "Limits.max_transfer" {
        "one unit" [
            Plans(10, |plan| plan.device.max_transfer == 512),
            Test(LIMITED, "everything_works_a_unit_at_a_time"),
        ] P1 P8;
        "no power of two" [Plans(10, |plan| plan.device.max_transfer == 1536)] P1 P8;
        "less than a page" [Plans(5, |plan| page(plan) > plan.device.max_transfer.into())] P1 P4 P8;
        "less than a cluster" [
            Plans(10, |plan| u64::from(plan.device.max_transfer) < plan.geometry.cluster_size()),
        ] P1 P8;
        "some clusters" [
            Plans(10, |plan| plan.device.max_transfer == 65_536),
            Shaped(Shape::Transfers),
        ] P1 P8;
        "more than everything" [Plans(700, |plan| plan.device.max_transfer == 1 << 30)] P1;
        "none, or no whole units" [Test(LIMITED, "transfers_that_are_no_units_are_refused")];
    }
    "Limits.can_discard" {
        "yes" [Plans(800, |plan| plan.device.can_discard), Met(Probe::HostDiscard)] P2;
        "no" [Plans(15, |plan| !plan.device.can_discard)] P2 P8;
    }
    "Limits.unwritten_reads_zero" {
        "yes" [Plans(700, |plan| plan.device.stale_units == 0)] P2;
        "no" [Shaped(Shape::Stale), Test(LIMITED, "an_image_fills_a_device")] P2;
    }
    "storage::UNIT" {
        "a write of several units tears" [
            Met(Probe::TornData),
            Met(Probe::TornL2),
            Met(Probe::TornRefcountBlock),
        ] P2 P4;
    }

    // What a storage answers.

    "Storage::limits()" {
        "constant" [Shaped(Shape::Transfers), Shaped(Shape::Stale)] P8;
    }
    "Storage::len()" {
        "what it was" [Met(Probe::CleanClose)] P4;
        "less than it was before a power cut" [Met(Probe::LaggingLength)] P1 P4;
        "more than the image has" [
            Shaped(Shape::Stale),
            Test(LIMITED, "an_image_fills_a_device"),
        ] P2;
        "inside a table" [
            Start(Initial::Leftovers),
            Test(DAMAGE, "a_file_may_end_inside_an_l2_table"),
        ] P2 P4;
        "inside an entry" [Test(DAMAGE, "a_file_may_end_inside_an_entry")];
        "inside cluster 0" [
            Test(MALFORMED, "truncated_files_are_refused_by_length"),
            Test(HEADER, "files_that_end_inside_cluster_0"),
        ];
        "far more than there is" [Test(MALFORMED, "a_length_is_only_a_number")];
        "more than before, while the image is open" [
            Test(LIMITED, "a_device_that_becomes_longer_is_not_fresh_there"),
        ];
        "an error" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
    }
    "Storage::set_len()" {
        "done" [Met(Probe::CleanClose)] P1;
        "an error" [Fault(FaultKind::Write)] P1 P8;
        "no room, once" [Fault(FaultKind::NoSpace), Met(Probe::NoSpace)] P8;
        "no room, for a while" [Fault(FaultKind::NoSpaceForAWhile), Met(Probe::SpaceAgain)] P7 P8;
        "no room, for good" [Fault(FaultKind::FullDevice), Met(Probe::FullForGood)] P7 P8;
        "no room, in each of the three ways to say so" [
            Test(LIMITED, "what_is_needed_is_taken_where_more_does_not_fit"),
        ];
        "an error, and it lands later" [
            Fault(FaultKind::Late),
            Met(Probe::LateLanding),
            Test(RETRY, "each_update_may_fail_once_and_land_late"),
        ] P1 P2;
        "done, and the length stays" [
            Test(LIMITED, "an_image_fills_a_device"),
            Test(BLOCK_DEVICE, "a_device_keeps_its_length"),
        ];
    }
    "Storage::read()" {
        "data" [Met(Probe::CleanClose)] P0;
        "zeroes past the end" [Start(Initial::Leftovers), Met(Probe::LaggingLength)] P0 P4;
        "an error" [Fault(FaultKind::Read), Met(Probe::ReadFailed)] P0 P8;
        "a part, and an error" [Fault(FaultKind::ShortRead), Met(Probe::ShortRead)] P0 P8;
    }
    "Storage::write()" {
        "done" [Met(Probe::CleanClose)] P1;
        "done, and lost" [Met(Probe::UnflushedLost)] P1 P2;
        "an error" [Fault(FaultKind::Write), Met(Probe::WriteFailed)] P1 P2 P8;
        "a part, and an error" [Fault(FaultKind::ShortWrite), Met(Probe::ShortWrite)] P1 P2 P8;
        "no room, once, for a while" [
            Fault(FaultKind::NoSpace),
            Fault(FaultKind::NoSpaceForAWhile),
        ] P7 P8;
        "an error, and it lands later" [Fault(FaultKind::Late), Met(Probe::LateLanding)] P1 P2;
        "a sync that failed, in three meanings" [
            Fault(FaultKind::WriteThroughFailed),
            Met(Probe::WriteThroughFailed),
        ] P1 P8;
        "nothing: its future is dropped" [Fault(FaultKind::Dropped), Met(Probe::Dropped)] P2 P9;
        "the end of the world in the middle" [Met(Probe::TornData)] P2;
    }
    "Storage::write_zeroes()" {
        "done" [Explored(Symbol::WriteFar)] P2 P4;
        "nothing or a part, and an error" [Fault(FaultKind::ShortWrite)] P2 P4 P8;
        "no room" [Fault(FaultKind::NoSpace)] P8;
        "an error, and it lands later" [Fault(FaultKind::Late)] P1 P2;
    }
    "Storage::discard()" {
        "it zeroes" [
            Plans(200, |plan| plan.discard == DiscardMode::Zeroes),
            Met(Probe::DiscardZeroes),
        ] P2;
        "it zeroes or leaves what was there" [
            Plans(400, |plan| plan.discard == DiscardMode::Either),
        ] P2;
        "an error" [Fault(FaultKind::Write)] P2 P8;
        "an error, and it lands later" [Fault(FaultKind::Late)] P2;
        "nothing: its future is dropped" [
            Fault(FaultKind::Dropped),
            Test(CORPUS, "every_file_is_a_test"),
        ] P9;
    }
    "Storage::flush()" {
        "done" [Explored(Symbol::Flush)] P1;
        "an error, and the next may cover it" [
            Fault(FaultKind::FlushRetrySafe),
            Met(Probe::FlushRetrySafe),
        ] P1 P8;
        "an error, and the next covers it no more" [
            Fault(FaultKind::FlushCleanMarked),
            Met(Probe::FlushCleanMarked),
        ] P1 P8;
        "an error for good" [Fault(FaultKind::FlushSticky), Met(Probe::FlushSticky)] P1 P8;
        "an error that nobody is there to hear" [
            Fault(FaultKind::Dropped),
            Test(CORPUS, "every_file_is_a_test"),
        ] P1;
    }
    "Storage::settle()" {
        "done" [Fault(FaultKind::Late), Fault(FaultKind::Dropped)] P1 P2;
        "an error: a dropped flush had failed" [Test(CORPUS, "every_file_is_a_test")];
        "an error, at opening" [
            Nothing("opening fails and has done nothing: its own words, like those of a length that is not told"),
        ];
    }
    "Storage::pause()" {
        "a scheduling point" [
            Plans(400, |plan| plan.lives.iter().any(|life| life.tasks.len() > 1)),
            Test(SHUTTLE, "everything_passes_depth_first"),
        ] P0 P8;
        "nothing" [Test(IMAGE, "reads_back_what_was_written")];
    }

    // Files and devices.

    "FileStorage::open()" {
        "a file" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
        "a device" [Test(BLOCK_DEVICE, "an_image_fills_a_device")];
        "neither, in use, or not there" [Test(FILE, "refusals_name_the_file_and_the_permission")];
    }
    "FileStorage::create()" {
        "new, and over what is there" [Test(FILE, "creating_over_an_existing_file")];
        "a device" [Test(BLOCK_DEVICE, "an_image_fills_a_device")];
    }
    "FileStorage::path()" {
        "any" [Test(FILE, "refusals_name_the_file_and_the_permission")];
    }
    "FileStorage::sync_parent()" {
        "of a file that is there, and of one that is gone" [
            Test(FILE, "creating_over_an_existing_file"),
        ];
        "under power cuts" [
            Nothing("it takes a file system that forgets directory entries, which nothing here simulates"),
        ];
    }
    "Access::ReadOnly" {
        "alone, beside others, asked to write" [
            Test(FILE, "readers_share_and_writers_do_not"),
            Test(FILE, "a_reader_cannot_write"),
        ];
    }
    "Access::ReadWrite" {
        "alone, and beside others" [Test(FILE, "readers_share_and_writers_do_not")];
    }
    "Existing::Refuse" {
        "something is there, or nothing" [Test(FILE, "creating_over_an_existing_file")];
    }
    "Existing::Replace" {
        "something is there, or nothing, or somebody uses it" [
            Test(FILE, "creating_over_an_existing_file"),
        ];
    }
    "storage::file::REFUSED" {
        "beside QEMU, and beside ourselves" [
            Test(INTEROP, "locks_keep_the_two_apart"),
            Test(FILE, "readers_share_and_writers_do_not"),
        ];
    }
    "storage::file::USED_BASE" {
        "beside QEMU" [Test(INTEROP, "locks_keep_the_two_apart")];
    }
    "storage::file::REFUSED_BASE" {
        "beside QEMU" [Test(INTEROP, "locks_keep_the_two_apart")];
    }
    "storage::file::ZEROES" {
        "more zeroes than that" [Test(FILE, "large_zeroes_are_written_in_pieces")];
    }

    // The header.

    "Header.version" {
        "3" [Met(Probe::CleanClose)] P4;
        "2" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "version_2_is_recognised"),
        ];
        "any other" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "Header.backing" {
        "none" [Met(Probe::CleanClose)] P4;
        "a name" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
        "a place and no name" [
            Test(RARE, "what_else_a_header_says_stays"),
            Test(HEADER, "an_empty_backing_name_is_none"),
        ];
    }
    "BackingName.offset" {
        "outside cluster 0, or in the header" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "backing_name_limits"),
        ];
        "behind extensions" [Test(HEADER, "extensions_end_before_the_backing_name")];
    }
    "BackingName.name" {
        "short, empty, the longest, too long" [Test(HEADER, "backing_name_limits")];
    }
    "Header.cluster_bits" {
        "9" [Plans(150, |plan| plan.geometry.cluster_bits == 9)] P1 P2 P4;
        "10" [Plans(300, |plan| plan.geometry.cluster_bits == 10)] P1 P2 P4;
        "12" [Plans(100, |plan| plan.geometry.cluster_bits == 12)] P1 P2 P4;
        "16, under power cuts" [Test(GUEST_TRACE, "a_real_guest_survives_power_cuts")];
        "all others" [Test(INTEROP, "images_of_qemu_are_images_to_us")];
        "all others, under power cuts" [Nothing(
            "a power cut knows units, pages and clusters: in those that campaigns draw, pages are shorter than a cluster, as long, and longer"
        )];
        "below 9 and above 21" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "Header.size" {
        "whole clusters" [
            Plans(500, |plan| plan.geometry.virtual_size.is_multiple_of(plan.geometry.cluster_size())),
        ] P0 P2;
        "a last cluster that is cut short" [
            Plans(80, |plan| !plan.geometry.virtual_size.is_multiple_of(plan.geometry.cluster_size())),
        ] P0 P2;
        "within one L2 table" [
            Plans(300, |plan| plan.geometry.clusters() <= plan.geometry.l2_entries()),
        ] P4;
        "under several L2 tables" [
            Plans(100, |plan| plan.geometry.clusters() > plan.geometry.l2_entries()),
        ] P4;
        "under many" [Shaped(Shape::Sparse), Shaped(Shape::Eviction)] P4 P7;
        "under more than one page of L1 table" [Shaped(Shape::Growing)] P4 P6;
        "nothing" [Test(RARE, "a_disk_of_nothing_grows")];
        "1 TiB" [Test(COST, "opening_costs_the_same")];
        "no whole units" [
            Test(HEADER, "a_size_that_nobody_changed_keeps_its_odd_bytes"),
            Test(CORPUS, "every_file_is_a_test"),
        ];
        "more than the L1 table maps" [
            Test(HEADER, "size_and_l1_limits"),
            Test(CORPUS, "every_file_is_a_test"),
        ];
    }
    "Header.crypt_method" {
        "none" [Met(Probe::CleanClose)] P4;
        "any" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "crypt_method_and_its_extension"),
        ];
    }
    "CryptMethod::None" {
        "known" [Met(Probe::CleanClose)] P4;
    }
    "CryptMethod::Aes" {
        "refused" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "CryptMethod::Luks" {
        "refused" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "crypt_method_and_its_extension"),
        ];
    }
    "Header.l1_size" {
        "what the size needs" [Start(Initial::L1AboutToGrow)] P4 P10;
        "more, with entries behind the disk" [
            Start(Initial::Leftovers),
            Start(Initial::RefcountBlockOneShort),
        ] P2 P4;
        "none" [Test(RARE, "a_disk_of_nothing_grows")];
        "the most" [Test(RARE, "the_largest_disk_works_to_its_end")];
        "too few, too many" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "Header.l1_table_offset" {
        "where create puts it, and where growth does" [Met(Probe::L1Growth)] P4;
        "0, with no entries" [Test(RARE, "a_disk_of_nothing_grows")];
        "nowhere sensible" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "tables_lie_on_clusters_within_reach"),
        ];
        "past the end of the file" [
            Test(MALFORMED, "truncated_files_are_refused_by_length"),
            Test(MALFORMED, "known_damage_does_no_harm"),
        ];
    }
    "Header.refcount_table_offset" {
        "where create puts it, and where growth and repair do" [Met(Probe::RefcountTableGrowth)] P4;
        "nowhere sensible" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "tables_do_not_overlap"),
        ];
        "past the end of the file" [
            Test(MALFORMED, "known_damage_does_no_harm"),
            Test(CORPUS, "every_file_is_a_test"),
        ];
    }
    "Header.refcount_table_clusters" {
        "one" [Met(Probe::CleanClose)] P4;
        "one, and it becomes more" [
            Start(Initial::RefcountTableOneShort),
            Start(Initial::FullOfLeaks),
        ] P4;
        "many" [Test(IMAGE, "a_refcount_table_may_need_more_than_one_block")];
        "the most" [Test(LIMITED, "the_largest_refcount_table_grows_no_more")];
        "none" [
            Test(HEADER, "check_accepts_a_missing_refcount_table"),
            Test(SNAPSHOTS, "consequences_of_damage"),
        ];
        "too many" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "Header.nb_snapshots" {
        "none" [Met(Probe::CleanClose)] P4;
        "some, too many" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "snapshot_limits"),
        ];
    }
    "Header.snapshots_offset" {
        "somewhere, with no snapshots" [Test(RARE, "what_else_a_header_says_stays")];
        "nowhere sensible, with some" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "Header.incompatible" {
        "known bits" [Met(Probe::DirtyCrash)] P4;
        "unknown bits" [
            Test(INTEROP, "an_unknown_incompatible_feature_is_refused_by_name"),
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
        ];
    }
    "Header.compatible" {
        "known bits" [Plans(300, |plan| plan.geometry.lazy_refcounts)] P4;
        "unknown bits" [
            Test(INTEROP, "unknown_features_are_treated_as_specified"),
            Test(RARE, "what_else_a_header_says_stays"),
        ];
    }
    "Header.autoclear" {
        "known bits" [Start(Initial::Bitmaps)] P4;
        "unknown bits" [
            Attack(Target::Rule(Rule::AutoclearFirst)),
            Test(DAMAGE, "a_bit_that_nobody_maintains_goes_before_what_it_vouches_for"),
        ] P4;
    }
    "Header.refcount_order" {
        "4" [Plans(600, |plan| plan.geometry.refcount_order == 4)] P4;
        "0: a count says one at most" [Plans(15, |plan| plan.geometry.refcount_order == 0)] P4;
        "1 and 2: several counts in a byte" [
            Plans(30, |plan| matches!(plan.geometry.refcount_order, 1 | 2)),
        ] P4;
        "3 and 5" [Plans(30, |plan| matches!(plan.geometry.refcount_order, 3 | 5))] P4;
        "6: a block of few" [
            Plans(15, |plan| plan.geometry.refcount_order == 6),
            Shaped(Shape::Widths),
        ] P4;
        "above 6" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
        "more references than it can count" [
            Test(CHECK, "references_that_cannot_be_counted_are_told"),
            Test(REFCOUNT, "largest_value_and_one_past"),
        ];
    }
    "Header.header_length" {
        "112" [Met(Probe::CleanClose)] P4;
        "104, and more than 112" [Test(RARE, "what_else_a_header_says_stays")];
        "less, no multiple of 8, more than a cluster" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "header_length_limits"),
        ];
    }
    "Header.compression_type" {
        "deflate" [Met(Probe::CleanClose)] P4;
        "zstd" [
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
            Test(HEADER, "compression_type_and_its_bit"),
        ];
        "unknown, or without its bit" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "CompressionType::Deflate" {
        "known" [Test(MUTANTS, "mutants_of_qemu_images_get_no_worse")];
    }
    "CompressionType::Zstd" {
        "known" [Test(MUTANTS, "mutants_of_qemu_images_get_no_worse")];
    }
    "Header.padding" {
        "zero" [Met(Probe::CleanClose)] P4;
        "anything" [
            Test(RARE, "what_else_a_header_says_stays"),
            Test(HEADER, "encode_then_parse_is_the_same"),
        ];
    }
    "Header.unknown" {
        "nothing" [Met(Probe::CleanClose)] P4;
        "something" [
            Test(RARE, "what_else_a_header_says_stays"),
            Test(HEADER, "encode_then_parse_is_the_same"),
        ];
    }
    "Header.extensions" {
        "none" [Start(Initial::Fresh)] P4;
        "known ones" [
            Start(Initial::Bitmaps),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ] P4;
        "unknown ones" [Test(INTEROP, "unknown_features_are_treated_as_specified")];
        "without an end, too long, one twice" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(EXTENSION, "ends_of_the_list"),
        ];
    }
    "Extension.kind" {
        "known and unknown" [
            Test(EXTENSION, "known_types_occur_once_and_unknown_ones_as_often_as_they_like"),
        ];
    }
    "Extension.data" {
        "short, long, past the file" [
            Test(EXTENSION, "oversized_data_is_refused_with_its_offset"),
            Test(EXTENSION, "data_past_the_end_of_the_file_is_truncated"),
        ];
    }
    "Luks.offset" {
        "sensible or not" [Test(EXTENSION, "luks_limits")];
    }
    "Luks.length" {
        "sensible or not" [Test(EXTENSION, "luks_limits")];
    }
    "Bitmaps.count" {
        "two" [Start(Initial::Bitmaps)] P4;
        "none, too many" [Test(EXTENSION, "bitmaps_limits")];
    }
    "Bitmaps.directory_size" {
        "of all bitmaps" [Start(Initial::Bitmaps)] P4;
        "too short" [Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them")];
        "none, too much" [Test(EXTENSION, "bitmaps_limits")];
    }
    "Bitmaps.directory_offset" {
        "a cluster of its own" [Start(Initial::Bitmaps)] P4;
        "nowhere sensible" [
            Test(EXTENSION, "bitmaps_limits"),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ];
    }

    // Feature bits.

    "format::feature::DIRTY" {
        "set before" [Start(Initial::Dirty)] P3 P4;
        "set by a session" [Met(Probe::DirtyCrash), Attack(Target::Flush(Barrier::DirtyBit))] P4;
        "clear" [Plans(200, |plan| !plan.geometry.lazy_refcounts)] P4;
        "set, in an image with eager refcounts" [
            Plans(20, |plan| plan.initial == Initial::Dirty && !plan.geometry.lazy_refcounts),
        ] P4;
    }
    "format::feature::CORRUPT" {
        "set by a session" [
            Attack(Target::Rule(Rule::CorruptBeforeError)),
            Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through"),
        ] P4;
        "set before" [
            Test(SNAPSHOTS, "consequences_of_damage"),
            Test(CHECK, "a_repair_takes_the_marks_away"),
        ];
    }
    "format::feature::DATA_FILE" {
        "refused" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "format::feature::COMPRESSION" {
        "with zstd" [Test(MUTANTS, "mutants_of_qemu_images_get_no_worse")];
        "with deflate" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "format::feature::EXTENDED_L2" {
        "refused" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "extended_l2_needs_large_clusters"),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ];
    }
    "format::feature::LAZY_REFCOUNTS" {
        "set" [Plans(300, |plan| plan.geometry.lazy_refcounts)] P4 P6;
        "clear" [Plans(300, |plan| !plan.geometry.lazy_refcounts)] P4 P6;
    }
    "format::feature::BITMAPS" {
        "set, with bitmaps" [
            Start(Initial::Bitmaps),
            Test(DAMAGE, "bitmaps_are_in_use_while_their_bit_vouches_for_them"),
        ] P4;
        "set, without" [Test(MUTANTS, "mutants_of_qemu_images_get_no_worse")];
        "clear, with bitmaps" [Test(HEADER, "bad_bitmaps_matter_only_with_their_bit")];
    }
    "format::feature::RAW_DATA_FILE" {
        "set, without a data file" [Test(MUTANTS, "mutants_of_qemu_images_get_no_worse")];
    }
    "format::feature::NAME_ENTRY_BYTES" {
        "whole entries, and one that is cut short" [
            Test(FEATURE, "hostile_names_are_escaped_and_short_entries_ignored"),
        ];
    }
    "format::feature::NAME_BYTES" {
        "a name that fills it" [Test(FEATURE, "a_name_may_fill_its_entry")];
    }
    "format::feature::KNOWN" {
        "each" [Test(FEATURE, "every_known_bit_has_its_name")];
    }
    "format::header::NAMED_ABOVE_CLUSTER_SIZE" {
        "clusters below and above" [
            Test(HEADER, "only_large_clusters_of_version_3_get_feature_names"),
        ];
    }

    // Extensions.

    "format::extension::END" {
        "there, missing, as a type" [
            Test(EXTENSION, "ends_of_the_list"),
            Test(EXTENSION, "the_end_marker_is_not_a_type"),
        ];
    }
    "format::extension::BACKING_FORMAT" {
        "kept" [Test(EXTENSION, "known_types_occur_once_and_unknown_ones_as_often_as_they_like")];
    }
    "format::extension::FEATURE_NAMES" {
        "written, read" [
            Test(HEADER, "unknown_incompatible_features_are_named"),
            Test(INTEROP, "images_of_ours_are_images_to_qemu"),
        ];
    }
    "format::extension::BITMAPS" {
        "with its bit" [Start(Initial::Bitmaps)] P4;
        "without" [Test(HEADER, "bad_bitmaps_matter_only_with_their_bit")];
    }
    "format::extension::LUKS" {
        "without encryption" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "format::extension::DATA_FILE" {
        "kept" [Test(EXTENSION, "known_types_occur_once_and_unknown_ones_as_often_as_they_like")];
    }
    "format::extension::KNOWN" {
        "each, twice" [
            Test(EXTENSION, "known_types_occur_once_and_unknown_ones_as_often_as_they_like"),
        ];
    }
    "format::extension::HEAD_BYTES" {
        "a list that ends inside one" [Test(EXTENSION, "ends_of_the_list")];
    }
    "format::extension::BYTES" {
        "data as long as that, or not" [
            Test(EXTENSION, "bitmaps_limits"),
            Test(EXTENSION, "luks_limits"),
        ];
    }

    // Table entries.

    "format::entry::COPIED" {
        "set, in L2 and L1" [Start(Initial::Fragmented)] P4;
        "not set, in L2, with two references or a count of two" [
            Start(Initial::Leaky),
            Met(Probe::CopiedOnWrite),
        ] P2 P4;
        "not set, in L2, where it should be" [Test(CHECK, "a_lone_copied_bit_is_seen")];
        "not set, in L1" [
            Attack(Target::Rule(Rule::DirtyBeforeRepair)),
            Test(SNAPSHOTS, "consequences_of_damage"),
        ] P4;
        "set where it should not be" [
            Test(TABLES, "a_table_of_two_entries_is_not_changed"),
            Test(CHECK, "a_lone_copied_bit_is_seen"),
        ];
        "set on nothing" [
            Test(ENTRY, "copied_without_a_cluster_is_nothing"),
            Test(MALFORMED, "known_damage_does_no_harm"),
        ];
        "set on a compressed cluster" [
            Test(CHECK, "compressed_clusters_are_counted"),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ];
    }
    "format::entry::COMPRESSED" {
        "set, in L2" [
            Test(CHECK, "compressed_clusters_are_counted"),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ];
        "set, in L1" [Test(TABLES, "where_a_senseless_entry_leads_nothing_is_put")];
    }
    "format::entry::ZERO" {
        "with a cluster" [Start(Initial::Fragmented), Explored(Symbol::ZeroB)] P0 P2;
        "without" [Start(Initial::Fragmented)] P0 P2;
        "in L1" [Test(ENTRY, "reserved_bits_one_by_one")];
        "with a cluster that has two references" [Test(MALFORMED, "damaged_images_do_no_harm")];
    }
    "format::entry::OFFSET" {
        "of a cluster of its own" [Met(Probe::CleanClose)] P4;
        "of one in use otherwise" [
            Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through"),
            Test(DAMAGE, "a_cluster_that_two_map_is_safe_to_write_once_it_is_counted"),
        ];
        "not that of a cluster" [
            Test(DAMAGE, "an_l2_entry_that_makes_no_sense_is_no_reason_to_refuse_the_rest"),
        ];
        "past the end of the file" [
            Test(DAMAGE, "an_entry_past_the_end_of_the_file_stays_and_is_counted"),
            Test(DAMAGE, "an_l2_table_past_the_end_of_the_file_stays_and_is_counted"),
        ];
        "the largest" [Test(LIMITED, "what_cannot_be_counted_is_not_rebuilt")];
    }
    "format::entry::L1_RESERVED" {
        "set" [
            Test(TABLES, "where_a_senseless_entry_leads_nothing_is_put"),
            Test(ENTRY, "reserved_bits_one_by_one"),
        ];
    }
    "format::entry::L2_RESERVED" {
        "set" [
            Test(DAMAGE, "an_l2_entry_that_makes_no_sense_is_no_reason_to_refuse_the_rest"),
            Test(ENTRY, "reserved_bits_one_by_one"),
        ];
    }
    "format::entry::REFCOUNT_TABLE_OFFSET" {
        "of a block" [Met(Probe::RefcountBlockGrowth)] P4;
        "of none" [Test(MALFORMED, "known_damage_does_no_harm")];
        "past the end of the file" [Test(COST, "refcount_blocks_past_the_end_cost_nothing")];
        "of one and the same block" [Test(COST, "one_table_named_many_times_is_refused")];
    }
    "format::entry::REFCOUNT_TABLE_RESERVED" {
        "set" [Test(SNAPSHOTS, "consequences_of_damage"), Test(ENTRY, "reserved_bits_one_by_one")];
    }
    "format::entry::SECTOR" {
        "a stream of one, of several, of too many" [
            Test(ENTRY, "compressed_limits"),
            Test(ENTRY, "compressed_descriptors_by_hand"),
        ];
    }
    "format::entry::UNALLOCATED" {
        "in each table" [Start(Initial::Fresh)] P4;
    }
    "format::entry::ZERO_PLAIN" {
        "read, and written to" [Start(Initial::Fragmented)] P0 P2;
        "written, by a repair" [Test(DAMAGE, "entries_past_the_end_become_zeroes_only_on_request")];
    }
    "Mapping::Unallocated" {
        "read, written to, zeroed, discarded" [
            Start(Initial::Fresh),
            Explored(Symbol::DiscardA),
        ] P0 P1 P2;
    }
    "Mapping::ZeroPlain" {
        "read, written to, zeroed, discarded" [Start(Initial::Fragmented)] P0 P1 P2;
    }
    "Mapping::ZeroAllocated" {
        "read, written to, zeroed, discarded" [
            Start(Initial::Fragmented),
            Explored(Symbol::ZeroB),
        ] P0 P1 P2;
        "past the end of the file" [
            Test(DAMAGE, "an_entry_past_the_end_of_the_file_stays_and_is_counted"),
        ];
    }
    "Mapping::Data" {
        "COPIED" [Start(Initial::Fragmented)] P0 P1 P2;
        "not COPIED" [Start(Initial::Leaky), Met(Probe::CopiedOnWrite)] P0 P1 P2;
        "past the end of the file" [
            Test(DAMAGE, "an_entry_past_the_end_of_the_file_stays_and_is_counted"),
        ];
    }
    "Mapping::Compressed" {
        "counted, kept, refused" [
            Test(CHECK, "compressed_clusters_are_counted"),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ];
        "past the end of the file" [Test(DAMAGE, "compressed_data_may_reach_past_the_end")];
    }
    "EntryProblem::Reserved" {
        "told" [
            Test(ENTRY, "reserved_bits_one_by_one"),
            Test(CHECK, "an_entry_is_named_by_its_place"),
        ];
    }
    "EntryProblem::Misaligned" {
        "told" [
            Test(ENTRY, "misaligned_offsets_name_table_place_and_value"),
            Test(SNAPSHOTS, "consequences_of_damage"),
        ];
    }
    "EntryProblem::TooFar" {
        "told" [Test(SNAPSHOTS, "consequences_of_damage")];
    }
    "EntryProblem::ZeroInVersion2" {
        "told" [Test(ENTRY, "version_2_has_no_zero_clusters")];
    }

    // Numbers that decide.

    "order::DURABLE" {
        "what was there when the image was opened" [Met(Probe::CleanClose)] P1;
    }
    "alloc::AT_ONCE" {
        "more runs of free clusters than that" [Test(GROW, "more_holes_than_are_known_are_passed")];
    }
    "reap::AT_ONCE" {
        "more freed clusters than that" [
            Explored(Symbol::DiscardAll),
            Test(COST, "freed_clusters_cost_what_they_are"),
        ] P2 P9;
    }
    "reap::START" {
        "freed clusters from the first one on" [Met(Probe::Reuse)] P2 P9;
    }
    "flush::RUN_BYTES" {
        "fewer neighbours than that" [Met(Probe::CleanClose)] P1 P4;
        "more than a transfer takes" [Shaped(Shape::Transfers)] P1 P4 P8;
        "more than that" [
            Nothing("it takes 256 KiB of tables in a row, all dirty; the same comparison cuts them at a shorter transfer"),
        ];
    }
    "flush::LOOKED_AT" {
        "more dirty pages than that" [Test(COST, "a_flush_costs_what_is_dirty")];
    }
    "protect::PIECE" {
        "a longer table" [
            Test(CHECK, "a_table_is_not_given_out"),
            Test(RARE, "the_largest_disk_works_to_its_end"),
            Start(Initial::RefcountTableOneShort),
        ] P4;
    }
    "read::AT_ONCE" {
        "more clusters than that" [Shaped(Shape::Sparse)] P3;
    }
    "write::AT_ONCE" {
        "more clusters than that" [
            Plans(1, |plan| some(plan, |op, cluster| is_write(op) && clusters(op, cluster) > 256)),
            Test(COST, "a_long_request_costs_what_it_covers"),
        ] P1 P2;
    }
    "zero::AT_ONCE" {
        "more clusters than that" [
            Plans(1, |plan| some(plan, |op, cluster| is_discard(op) && clusters(op, cluster) > 256)),
            Test(COST, "a_long_request_costs_what_it_covers"),
        ] P0 P1;
        "more tables that do not exist" [Test(COST, "nothing_costs_next_to_nothing_to_discard")];
    }
    "cache::RECENT" {
        "fewer pages than one request needs" [
            Shaped(Shape::Eviction),
            Test(CACHE, "a_page_goes_when_it_has_not_been_used_for_a_while"),
            Test(COST, "the_smallest_cache_is_enough"),
        ] P0 P4 P7;
    }
    "cache::LEAST" {
        "a limit below it" [
            Shaped(Shape::Eviction),
            Test(MALFORMED, "a_full_image_with_a_small_cache_can_be_written"),
        ] P7;
    }
    "cache::LOOKED_AT" {
        "more dirty pages than that" [Test(COST, "a_full_cache_costs_what_goes_through_it")];
    }
    "cache::NONE" {
        "the ends of the list" [Test(CACHE, "the_order_of_use_is_kept")];
    }
    "claims::MANY_ORPHANS" {
        "more than that" [Test(RETRY, "failed_requests_do_not_pile_up")];
    }
    "free::MOST" {
        "more runs than that" [Test(FREE, "what_is_too_much_is_searched_for_again")];
    }
    "check::references::DENSE_CLUSTERS" {
        "a file of more" [
            Test(MALFORMED, "a_length_is_only_a_number"),
            Test(LIMITED, "what_cannot_be_counted_is_not_rebuilt"),
        ];
    }
    "check::survey::PIECE" {
        "a longer table" [
            Test(CHECK, "a_long_l1_table_is_looked_at_to_its_end"),
            Start(Initial::RefcountTableOneShort),
        ] P4;
    }
    "check::survey::PART" {
        "a longer table, parts of it zero" [Test(CHECK, "a_long_l1_table_is_looked_at_to_its_end")];
    }
    "check::bitmaps::ENTRY_BYTES" {
        "entries as long, and longer" [
            Start(Initial::Bitmaps),
            Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them"),
        ] P4;
    }
    "check::bitmaps::DIRTY_TRACKING" {
        "that type" [Start(Initial::Bitmaps)] P4;
        "another" [Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them")];
    }
    "check::bitmaps::RESERVED" {
        "set" [Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them")];
    }
    "check::bitmaps::ALL_ONES" {
        "set, without a cluster" [Start(Initial::Bitmaps)] P4;
        "set, with one" [
            Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them"),
        ];
    }
    "check::report::MAX_FINDINGS" {
        "more than that" [Test(CHECK, "lost_counts_are_told_one_by_one")];
    }
    "format::limits::CLUSTER_BITS" {
        "both ends, and outside" [
            Test(HEADER, "cluster_bits_limits"),
            Test(INTEROP, "images_of_qemu_are_images_to_us"),
        ];
    }
    "format::limits::EXTENDED_L2_CLUSTER_BITS_MIN" {
        "there, and below" [Test(HEADER, "extended_l2_needs_large_clusters")];
    }
    "format::limits::HEADER_BYTES_V2" {
        "a header of version 2" [Test(HEADER, "version_2_is_recognised")];
    }
    "format::limits::HEADER_BYTES_V3_MIN" {
        "there, and below" [Test(HEADER, "header_length_limits")];
    }
    "format::limits::HEADER_BYTES" {
        "there, below, above" [
            Test(HEADER, "a_header_of_104_bytes_has_no_compression_type"),
            Test(RARE, "what_else_a_header_says_stays"),
        ];
    }
    "format::limits::HEADER_SECTOR_BYTES" {
        "what changes is before" [Test(HEADER, "what_changes_later_is_in_the_first_sector")];
    }
    "format::limits::BACKING_NAME_BYTES" {
        "there, and above" [Test(HEADER, "backing_name_limits")];
    }
    "format::limits::L1_TABLE_BYTES" {
        "there, and above" [
            Test(HEADER, "size_and_l1_limits"),
            Test(RARE, "the_largest_disk_works_to_its_end"),
        ];
    }
    "format::limits::REFCOUNT_TABLE_BYTES" {
        "there, and above" [
            Test(HEADER, "refcount_table_limits"),
            Test(LIMITED, "the_largest_refcount_table_grows_no_more"),
        ];
    }
    "format::limits::REFCOUNT_ORDER" {
        "there, and above" [
            Plans(15, |plan| plan.geometry.refcount_order == 6),
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
        ] P4;
    }
    "format::limits::REFCOUNT_ORDER_V2" {
        "version 2" [Test(HEADER, "version_2_is_recognised")];
    }
    "format::limits::SNAPSHOTS" {
        "there, and above" [Test(HEADER, "snapshot_limits")];
    }
    "format::limits::SNAPSHOT_ENTRY_BYTES_MIN" {
        "a table that overlaps another" [Test(HEADER, "tables_do_not_overlap")];
    }
    "format::limits::BITMAPS" {
        "there, and above" [Test(EXTENSION, "bitmaps_limits")];
    }
    "format::limits::BITMAP_DIRECTORY_BYTES" {
        "there, and above" [Test(EXTENSION, "bitmaps_limits")];
    }
    "format::limits::HOST_OFFSET_END" {
        "before, and there" [
            Test(HEADER, "tables_lie_on_clusters_within_reach"),
            Test(LIMITED, "what_cannot_be_counted_is_not_rebuilt"),
        ];
    }
    "format::limits::COVERED_PAST_END" {
        "nearer, and further" [
            Test(DAMAGE, "entries_past_the_end_become_zeroes_only_on_request"),
            Test(RARE, "every_repair_may_be_cut_short"),
        ];
    }
    "format::limits::RUNS_PAST_END" {
        "as many, and more" [Test(COST, "what_lies_past_the_end_is_counted_in_bounds")];
    }
    "format::limits::SIZE_UNIT" {
        "a size in between" [
            Test(HEADER, "a_size_that_nobody_changed_keeps_its_odd_bytes"),
            Test(CORPUS, "every_file_is_a_test"),
        ];
    }
    "format::limits::REBUILT_BYTES" {
        "less, and more" [
            Test(COST, "references_far_apart_do_not_make_a_repair_write_without_bound"),
        ];
    }
}
