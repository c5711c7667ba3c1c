//! The judge's own examinations, and the proof that they are not empty.
//!
//! Goal: trust in a judge that finds nothing. Method: a list of examinations, each a small situation whose verdict was worked
//! out by hand or by a deliberately naive enumeration; the judge must pass all of them, and every judge with one deliberate
//! mistake ([`Mistake`]) must fail at least one. The second test prints which examinations notice which mistake.

mod data_files;
mod encryption;
mod findings;
mod guest;
mod histories;
mod keys;
mod patient;
mod shapes;
mod states;
#[path = "../../../tests/build/turn.rs"]
mod turn;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::thread;

use model::mistake::Mistake;

use crate::data_files::{
    data_file_kept, data_file_named, data_read_where_it_is, raw_view, raw_view_kept,
};
use crate::encryption::{
    changes_of_encrypted_data, clear_text, deciphered_contents_kept, encryption_kept,
    forks_deciphered, luks_header_counted, numbers_of_units, units_deciphered,
};
use crate::findings::{findings_by_stage, findings_seen};
use crate::guest::{
    collapse_binds, crash_folds, discard, dropped_write, everything_through, failed_flush,
    failed_write, flush_covers_completed_only, flush_settles, growths, overlapping_writes, reads,
    several_units, shrinks, sizes, through, weak_discard, without_zero, zeroes,
};
use crate::histories::brute_force;
use crate::keys::{
    passphrases_in_doubt, passphrases_kept, passphrases_settle, slots_judged,
    slots_of_several_values, slots_of_two,
};
use crate::shapes::{
    behind_the_disk, cut_extended, cut_short, discard_beside_layer, every_unit, layers,
    second_table, subclusters, tables_past_the_end, uncovering, widths,
};
use crate::states::{
    autoclear_goes, changes_recorded, claims, clean_close, contents_kept, copied_flags_inherited,
    dirty_and_lost, extensions_stay, features_stay, invented_data, lost_write, mappings,
    misread_story, no_zero_among_several, second_repair, second_repair_of_sets, sets_kept, streams,
    whole_set, wrong_size,
};
use crate::turn::share;

type Outcome = Result<(), String>;
type Exam = (&'static str, fn(Mistake) -> Outcome);

const EXAMS: [Exam; 72] = [
    ("a flush settles what completed before it", flush_settles),
    ("a flush covers nothing that completes during it", flush_covers_completed_only),
    ("a failed flush settles nothing", failed_flush),
    ("write-through covers its own units only", through),
    ("an image that writes everything through owes it", everything_through),
    ("a failed write stays possible", failed_write),
    ("a dropped write stays possible", dropped_write),
    ("overlapping writes both stay", overlapping_writes),
    ("a discard acts on whole clusters", discard),
    ("a discard may promise less", weak_discard),
    ("a crash folds everything into the base", crash_folds),
    ("what recovery chose binds", collapse_binds),
    ("reads return live values", reads),
    ("sizes are before or after", sizes),
    ("a disk becomes smaller as a whole", shrinks),
    ("zeroes are a write", zeroes),
    ("each unit of a write and a read is by itself", several_units),
    ("several values need not have zero among them", without_zero),
    ("a growth that failed stays possible", growths),
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
    ("an autoclear bit that nobody knows goes before a change", autoclear_goes),
    ("features stay", features_stay),
    ("extensions stay", extensions_stay),
    ("a bitmap that is up to date has every change", changes_recorded),
    ("claims are checked", claims),
    ("mappings are compared", mappings),
    ("a misread is told with its story", misread_story),
    ("COPIED flags are inherited too", copied_flags_inherited),
    ("repair adds to no set", sets_kept),
    ("no zero among several values", no_zero_among_several),
    ("a second repair adds to no set", second_repair_of_sets),
    ("a file may end within a cluster", cut_short),
    ("a file may end within an extended entry", cut_extended),
    ("each unit is judged by its own subcluster", subclusters),
    ("the second table counts as the first", second_table),
    ("refcounts have every width", widths),
    ("every unit of a cluster is judged", every_unit),
    ("what is behind the disk is counted", behind_the_disk),
    ("tables past the end are not there", tables_past_the_end),
    ("what the image does not say is the layer's", layers),
    ("a discard may leave what a layer shows", discard_beside_layer),
    ("what is uncovered shows the layer, and zeroes past its end", uncovering),
    ("compressed clusters are judged in every way in which they may read", streams),
    ("guest data is read from the data file", data_read_where_it_is),
    ("a raw data file is the disk too", raw_view),
    ("repair keeps a raw data file", raw_view_kept),
    ("a second repair writes nothing to a data file", data_file_kept),
    ("the image has the data file that it was made with", data_file_named),
    ("encrypted data is judged as the guest reads it", units_deciphered),
    ("a cipher goes by the guest's number or the host's", numbers_of_units),
    ("what a guest wrote is nowhere in the clear", clear_text),
    ("what a key deciphers to is that of its store", forks_deciphered),
    ("repair keeps what encrypted data says", deciphered_contents_kept),
    ("a bitmap that is up to date has changes of encrypted data", changes_of_encrypted_data),
    ("the image is encrypted as it was made, and has its key", encryption_kept),
    ("a LUKS header is counted", luks_header_counted),
    ("a passphrase opens the image before or after", passphrases_settle),
    ("what is in doubt of a passphrase stays so", passphrases_in_doubt),
    ("slots open to whom they must, and to nobody else", slots_judged),
    ("slots are judged in every way in which they may read", slots_of_several_values),
    ("each passphrase has its slots", slots_of_two),
    ("repair keeps what opens the image", passphrases_kept),
];

#[test]
fn the_judge_passes_every_examination() {
    for (name, exam) in EXAMS {
        exam(Mistake::None).unwrap_or_else(|why| panic!("{name}: {why}"));
    }
}

/// Parts of the mistakes.
const PARTS: usize = 16;

#[test]
fn every_mutant_is_killed() {
    // A mutant may also trip over an assertion: what counts is that it does not pass.
    let noticed = |mistake| EXAMS.iter().filter(move |(_, exam)| exam(mistake).is_err());
    let names = |mistake: &Mistake| noticed(*mistake).map(|(name, _)| *name).collect::<Vec<_>>();
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let mistakes: Vec<Mistake> = share(Mistake::ALL.iter().copied(), PARTS).collect();
    let part = |worker| mistakes.iter().enumerate().skip(worker).step_by(workers);
    let examined: BTreeMap<usize, Vec<&str>> = thread::scope(|scope| {
        let start = |worker| {
            scope.spawn(move || part(worker).map(|(at, it)| (at, names(it))).collect::<Vec<_>>())
        };
        let started: Vec<_> = (0..workers).map(start).collect();
        started.into_iter().flat_map(|worker| worker.join().expect("exams do not panic")).collect()
    });
    let mut survivors = Vec::new();
    for (mistake, names) in mistakes.iter().zip(examined.values()) {
        println!("{:<30} {}", format!("{mistake:?}"), names.join("; "));
        if names.is_empty() {
            survivors.push(mistake);
        }
    }
    assert_eq!(examined.len(), mistakes.len());
    assert!(survivors.is_empty(), "survived: {survivors:?}");
}

pub(crate) fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Outcome {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?}, not {wanted:?}")) }
}
