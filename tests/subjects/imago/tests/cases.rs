//! Every kept case: imago shows it, our own library does not, and two readers of a concrete image file confirm it.
//!
//! The witnesses share nothing with the run that found a case: the crash image in the case file is written to a file, and
//! `qemu-img check`, `qemu-io` and imago on its own file storage say what is in it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use faultfs::direct::run;
use faultfs::profile::Profile;
use imago::file::File;
use imago::io_buffers::IoBuffer;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Storage, StorageOpenOptions};
use model::case::{Case, Content};
use model::finding::Property;
use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::corpus;
use qcow2_crashtest::minimise::{Signature, search};
use qcow2_crashtest::qemu;
use qcow2_crashtest::replay::{Basis, Verdict, replay};
use qcow2_crashtest::subject::{Qcow2Core, Subject as _};
use qcow2_crashtest::trial::Trial;
use qcow2_crashtest::workload::Scope;
use qcow2_crashtest_imago::Imago;

const UNIT: u64 = 512;

fn load(name: &str) -> Case {
    corpus::load(&corpus::folder_of(&Imago::Full).join(name)).expect("the file is a case")
}

/// The crash image of a case as a file.
fn image_file(case: &Case, folder: &Path) -> PathBuf {
    let image = case.image.as_ref().expect("every kept case has its image");
    let path = folder.join("crashed.qcow2");
    std::fs::write(&path, image.bytes()).unwrap();
    path
}

/// What imago itself reads from a guest unit of an image file; what it says if it cannot.
fn read_again(path: &Path, unit: u64) -> Result<Content, String> {
    let reading = async {
        let file = File::open(StorageOpenOptions::new().filename(path)).await?;
        let builder = Qcow2::<File>::builder(file).backing(None);
        let image = FormatAccess::new(builder.open(DenyImplicitOpenGate::default()).await?);
        let mut buffer = IoBuffer::new(512, 512)?;
        image.read(&mut buffer, unit * UNIT).await?;
        let mut bytes = [0; 512];
        bytes.copy_from_slice(buffer.as_ref().into_slice());
        Ok(Content::of(&bytes))
    };
    run(reading)
        .expect("file storage never waits")
        .map_err(|error: std::io::Error| error.to_string())
}

/// Goal: a finding stays one, and is not the harness's own. Method: replay on imago and on the library of this workspace.
fn check(name: &str) {
    let case = load(name);
    let key = &case.open.subject;
    let subject = [Imago::Full, Imago::Contents].into_iter().find(|it| it.key() == key).unwrap();
    let shown = replay(&subject, &case, name).unwrap();
    assert_eq!((shown.verdict, shown.basis), (Verdict::Reproduced, Basis::Exact), "{shown:?}");
    let ours = replay(&Qcow2Core::default(), &case, name).unwrap();
    let passes = matches!(ours.verdict, Verdict::Fixed | Verdict::Drifted);
    assert!(passes, "{name} on qcow2-core: {:?}", ours.failure);

    // No weaker device shows it: every moment of the last life was tried.
    let trial = corpus::trial_of(&case, name).unwrap();
    let kind = case.title.split(':').next().unwrap().to_owned();
    let wanted = Signature { property: case.property, kind, panics_at: None };
    for profile in Profile::ALL.into_iter().filter(|profile| *profile < trial.profile) {
        let weaker = Trial { profile, ..trial.clone() };
        assert!(search(&subject, &weaker, &wanted).is_none(), "{name} is shown by {profile}");
    }
}

/// Goal: what a guest would read is wrong in fact. Method: imago reads the file, and the unit holds what is said here and
/// what the guest may not see.
fn misread(name: &str, unit: u64, wrong: &Content) {
    let case = load(name);
    let folder = tempfile::tempdir().unwrap();
    let path = image_file(&case, folder.path());
    assert_eq!(read_again(&path, unit).as_ref(), Ok(wrong), "{name}");
    let zero = vec![Content::Zero];
    let allowed = case.image.as_ref().unwrap().allowed.get(&unit).unwrap_or(&zero);
    assert!(!allowed.contains(wrong), "{name}: {allowed:?}");
}

/// Goal: nobody reads anything of it any more. Method: imago reads the file, and says why it cannot.
fn unreadable(name: &str, why: &str) {
    let folder = tempfile::tempdir().unwrap();
    let refused = read_again(&image_file(&load(name), folder.path()), 0).unwrap_err();
    assert!(refused.contains(why), "{name}: {refused}");
}

macro_rules! cases {
    ($($test:ident $file:literal $witness:expr,)*) => {
        $(
            mod $test {
                use super::*;

                #[test]
                fn is_shown_by_imago_alone() {
                    check($file);
                }

                #[test]
                fn is_in_the_file() {
                    let witness: fn(&str) = $witness;
                    witness($file);
                }
            }
        )*

        /// Goal: no case file lies there unread. Method: the folder holds exactly the files above.
        #[test]
        fn every_file_is_a_test() {
            let names = corpus::names(&corpus::folder_of(&Imago::Full)).expect("it can be read");
            assert_eq!(names, [$($file),*]);
        }
    };
}

cases! {
    entry_before_data "entry-before-data.json"
        |name| misread(name, 2, &Content::Tag { unit: 0, id: 1 }),
    header_before_l1_table "header-before-l1-table.json"
        |name| misread(name, 0, &Content::Zero),
    l1_entry_before_l2_table "l1-entry-before-l2-table.json"
        |name| unreadable(name, "Invalid L2 entry"),
    l1_entry_before_refcount "l1-entry-before-refcount.json"
        |name| {
            // Nothing is misread yet: the cluster in use is counted as free.
            let case = load(name);
            let image = case.image.unwrap();
            let (table, block) = (&image.units[&3].bytes(), &image.units[&2].bytes());
            assert_eq!(table[..8], [0x80, 0, 0, 0, 0, 0, 0x08, 0], "L1 entry 0: cluster 4");
            assert_eq!(block[2 * 4..2 * 4 + 2], [0, 0], "refcount of cluster 4");
        },
    l1_table_given_out_again "l1-table-given-out-again.json"
        |name| unreadable(name, "Invalid L1 entry"),
    l2_table_given_out_again "l2-table-given-out-again.json"
        |name| unreadable(name, "Invalid L2 entry"),
    reuse_before_dereference "reuse-before-dereference.json"
        |name| misread(name, 0, &Content::Tag { unit: 2, id: 2 }),
    zeroing_beside_a_write "zeroing-beside-a-write.json"
        |name| misread(name, 0, &Content::Zero),
}

/// What QEMU says of a crash image.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Whether `qemu-img check` finds the structure damaged.
    corrupt: bool,
    /// The guest units that are wrong; none at all if QEMU refuses to read it.
    wrong_units: Option<Vec<u64>>,
}

fn seen_by_qemu(case: &Case) -> Seen {
    let folder = tempfile::tempdir().unwrap();
    let path = image_file(case, folder.path());
    let corrupt = qemu::check(&path).unwrap().corruptions > 0;
    let raw = folder.path().join("guest.raw");
    let args = ["convert", "-f", "qcow2", "-O", "raw"].map(OsStr::new);
    let converted = qemu::img(args.into_iter().chain([path.as_os_str(), raw.as_os_str()])).unwrap();
    let wrong_units = converted.success().ok().map(|_| {
        let guest = std::fs::read(&raw).unwrap();
        let zero = vec![Content::Zero];
        let allowed = &case.image.as_ref().unwrap().allowed;
        let may = |unit: &u64| allowed.get(unit).unwrap_or(&zero);
        let units = (0..).zip(guest.as_chunks::<512>().0);
        units
            .filter(|(unit, bytes)| !may(unit).contains(&Content::of(bytes)))
            .map(|(unit, _)| unit)
            .collect()
    });
    Seen { corrupt, wrong_units }
}

/// Goal: somebody else finds these files damaged too. Method: `qemu-img check` for refcounts, and what QEMU reads from them.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn qemu_agrees() {
    let expected = [
        ("entry-before-data.json", false, Some(vec![2])),
        ("header-before-l1-table.json", true, Some(vec![0])),
        ("l1-entry-before-l2-table.json", true, None),
        ("l1-entry-before-refcount.json", true, Some(vec![])),
        ("l1-table-given-out-again.json", true, Some(vec![0])),
        ("l2-table-given-out-again.json", true, None),
        ("reuse-before-dereference.json", false, Some(vec![0])),
        ("zeroing-beside-a-write.json", false, Some(vec![0])),
    ];
    for (name, corrupt, wrong_units) in expected {
        assert_eq!(seen_by_qemu(&load(name)), Seen { corrupt, wrong_units }, "{name}");
    }
}

/// Goal: a run is a function of its seed, although imago iterates over hash maps with random keys. Method: many cases twice.
#[test]
fn cases_are_functions_of_their_seeds() {
    for seed in 0..100 {
        let report = campaign::run(&Imago::Contents, &settings(seed, Profile::Kill), |_| {});
        assert_eq!(report.broken, None);
    }
}

/// Goal: a campaign finds at once that counts are late, by what every device shows. Method: a process that is killed.
#[test]
fn a_campaign_finds_counts_too_low() {
    let settings = Settings { budget: Budget::Cases(50), ..settings(1, Profile::Kill) };
    let found = campaign::run(&Imago::Full, &settings, |_| {}).found.expect("it is in every case");
    let violation = found.failure.violation;
    assert_eq!((violation.property, violation.kind), (Property::P4, "refcount-too-low"));
}

/// Goal: what the guest sees is judged too. Method: a short campaign on the default device, blind to the structure.
#[test]
fn a_campaign_finds_wrong_data() {
    let settings = Settings { budget: Budget::Cases(50), ..settings(1, Profile::default()) };
    let report = campaign::run(&Imago::Contents, &settings, |_| {});
    assert!(report.found.is_some() && report.broken.is_none(), "{}", report.figures.table());
}

fn settings(seed: u64, profile: Profile) -> Settings {
    let scope = Scope::faultless();
    // The first case of a campaign is one of those that are run twice.
    Settings { seed, profile, damage: None, scope, budget: Budget::Cases(1), workers: 1 }
}
