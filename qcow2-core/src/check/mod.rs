//! Check and repair: count every reference, compare with what is stored, and make what is stored true.
//!
//! ```text
//!   header, refcount table and blocks, L1, L2 tables, data, bitmaps ──counted──> references per cluster
//!                                                                                   │ compare
//!   refcount blocks ───────────────────stored───────────────────────────────────────┘
//!   COPIED in L1 and L2 entries <── set exactly where references == 1
//! ```
//!
//! | module | subject |
//! |---|---|
//! | `report` | what was found, and what was put right |
//! | `survey` | one pass over all tables that counts and compares |
//! | `bitmaps` | what the bitmaps extension leads to |
//! | `references` | counts per host cluster |
//! | `repair` | writing what is right |
//! | `autoclear` | bits that nobody keeps from now on |
//! | `disk` | reads, writes and flushes of all that |
//!
//! Guest data in an external data file is counted by nobody; its entries are looked at all the same.
//!
//! **Guest data and mappings are never changed.** What cannot be repaired without guessing keeps its references, so that its
//! clusters are never handed out, and stays a finding. If what is referred to cannot be told at all (a table in whose place is
//! something else, an L1 entry that makes no sense), nothing at all is written. [`CheckReport::is_writable`] tells the two apart.
//!
//! **Crash safety.** New refcount structures are written where nothing is: past every cluster in use, or, where the storage has no
//! room there, in free clusters. Until the header points to them nothing has changed, so a repair that finds no room leaves
//! everything as it was. The dirty bit is durable before any entry or count that is in use changes, and goes last, when all else is
//! durable: a crash anywhere in between leads to another repair. Version 2 has no dirty bit; there each part of a repair leaves an image
//! that is no worse (see `repair`). References, which a repair of a dirty image starts from, are
//! changed in nothing but their COPIED bit (and by [`Repair::ZeroPastEnd`], which has to be asked for).

mod autoclear;
mod bitmaps;
mod disk;
mod entries;
mod references;
mod repair;
mod report;
mod survey;

pub(crate) use autoclear::give_up_autoclear;
use autoclear::kept_by_writers;
pub use report::{CheckReport, Finding, MAX_FINDINGS, Problem};

use crate::error::CheckError;
use crate::format::feature::Autoclear;
use crate::load::{check_supported, read_header_for_check};
use crate::options::Repair;
use crate::rule::Rules;
use storage::Storage;

use disk::Disk;
use repair::Repairer;
use survey::Survey;

/// Checks the image on `storage`, which nobody else may be writing, and repairs it as far as `repair` says.
///
/// # Errors
/// [`CheckError`] if the header cannot be read or names something unsupported, or if the storage fails. A repair that found no
/// room for what it has to write has changed nothing.
pub async fn check<S: Storage>(
    storage: &S,
    repair: Repair,
    rules: Rules,
) -> Result<CheckReport, CheckError> {
    run(storage, repair, rules, Autoclear::BITMAPS).await
}

/// Repairs an image that is about to be written by somebody who keeps no promise of an autoclear bit: those bits are cleared
/// first, and what only they vouch for is free.
pub(crate) async fn repair_for_writing<S: Storage>(
    storage: &S,
    rules: Rules,
) -> Result<CheckReport, CheckError> {
    run(storage, Repair::All, rules, Autoclear::empty()).await
}

/// `keep` are the autoclear bits whose promises hold on.
async fn run<S: Storage>(
    storage: &S,
    repair: Repair,
    rules: Rules,
    keep: Autoclear,
) -> Result<CheckReport, CheckError> {
    let mut image = read_header_for_check(storage).await?;
    check_supported(&image.header)?;
    let mut disk = Disk::new(storage, rules);
    let mut counted = image.header.clone();
    let keep = keep | kept_by_writers(&image.header);
    counted.autoclear &= keep;
    let zero_past_end = repair == Repair::ZeroPastEnd;
    let survey = Survey::take(&disk, &counted, image.length, zero_past_end).await?;
    let mut report = survey.report.clone();
    if repair != Repair::None {
        Repairer::new(&mut disk, &mut image, survey, &mut report).run(repair, keep).await?;
    }
    Ok(report)
}
