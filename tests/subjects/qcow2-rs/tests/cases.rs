//! Every kept case: qcow2-rs shows it, the library of this workspace does not, and QEMU finds it in a concrete image file.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use faultfs::profile::Profile;
use model::case::{Case, Content};
use qcow2_crashtest::blocking::Blocking;
use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::corpus;
use qcow2_crashtest::qemu;
use qcow2_crashtest::replay::{Basis, Verdict, replay};
use qcow2_crashtest::subject::{Qcow2Core, Subject as _};
use qcow2_crashtest::workload::Scope;
use qcow2_crashtest_qcow2_rs::Qcow2Rs;

const FULL: Blocking<Qcow2Rs> = Blocking(Qcow2Rs { contents: false });
const CONTENTS: Blocking<Qcow2Rs> = Blocking(Qcow2Rs { contents: true });

fn load(name: &str) -> Case {
    corpus::load(&corpus::folder_of(&FULL).join(name)).expect("the file is a case")
}

/// The image of a case as a file.
fn image_file(case: &Case, folder: &Path) -> PathBuf {
    let image = case.image.as_ref().expect("every kept case has its image");
    let path = folder.join("crashed.qcow2");
    std::fs::write(&path, image.bytes()).unwrap();
    path
}

/// Goal: a finding stays one, and is not the harness's own. Method: replay on both libraries.
fn check(name: &str) {
    let case = load(name);
    let subject = [FULL, CONTENTS].into_iter().find(|it| it.key() == case.open.subject).unwrap();
    let shown = replay(&subject, &case, name).unwrap();
    assert_eq!((shown.verdict, shown.basis), (Verdict::Reproduced, Basis::Exact), "{shown:?}");
    let ours = replay(&Qcow2Core::default(), &case, name).unwrap();
    let passes = matches!(ours.verdict, Verdict::Fixed | Verdict::Drifted);
    assert!(passes, "{name} on qcow2-core: {:?}", ours.failure);
}

/// What `qemu-img check` counts in the image of a case: what is corrupt, and what is leaked.
fn counted(name: &str) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let check = qemu::check(&image_file(&load(name), folder.path())).unwrap();
    (check.corruptions, check.leaks)
}

/// Goal: somebody else finds it in the file. Method: `qemu-img convert` reads a guest unit, and the case allows something else only;
/// `qemu-img check` finds nothing corrupt.
fn reads_wrong(name: &str, unit: u64) {
    let case = load(name);
    let folder = tempfile::tempdir().unwrap();
    let found = read_by_qemu(&image_file(&case, folder.path()), unit);
    let allowed = &case.image.as_ref().unwrap().allowed[&unit];
    assert!(!allowed.contains(&found), "{name}: {found:?}, and not {allowed:?}");
    assert_eq!(counted(name).0, 0, "{name}");
}

fn reads_wrong_at_0(name: &str) {
    reads_wrong(name, 0);
}

fn reads_wrong_at_1(name: &str) {
    reads_wrong(name, 1);
}

/// Goal: the same. Method: `qemu-img check` finds something corrupt.
fn is_corrupt(name: &str) {
    assert_ne!(counted(name).0, 0, "{name}");
}

/// Goal: the image is legal, and what panics can be done. Method: `qemu-img check` finds nothing corrupt, before and after `qemu-io` has
/// written all of the disk and read it again.
fn is_written_by_qemu(name: &str) {
    let case = load(name);
    let folder = tempfile::tempdir().unwrap();
    let path = image_file(&case, folder.path());
    assert_eq!(qemu::check(&path).unwrap().corruptions, 0, "{name}");
    let size = case.geometry.virtual_size;
    let commands = ["write", "read"].map(|verb| format!("{verb} -P 165 0 {size}"));
    let said = qemu::io(&path, &commands).unwrap().success().unwrap().stdout;
    assert!(!said.contains("verification failed"), "{said}");
    assert_eq!(qemu::check(&path).unwrap().corruptions, 0, "{name}");
}

/// Goal: somebody else finds it in the file. Method: `qemu-img info` lists both bitmaps, neither of them in use by a writer that did not
/// finish, and `qemu-img convert` reads what was written since.
fn vouches_for_bitmaps(name: &str) {
    let case = load(name);
    let folder = tempfile::tempdir().unwrap();
    let path = image_file(&case, folder.path());
    let info = ["info".as_ref(), path.as_os_str()];
    let said = qemu::img(info).unwrap().success().unwrap().stdout;
    assert_eq!(said.matches("granularity: 512").count(), 2, "{said}");
    assert!(said.contains("auto") && !said.contains("in-use"), "{said}");
    assert_eq!(counted(name), (0, 0), "{name}");
    assert_eq!(read_by_qemu(&path, 3), Content::Tag { unit: 3, id: 1 });
}

/// A guest unit, as QEMU converts it.
fn read_by_qemu(path: &Path, unit: u64) -> Content {
    let raw = path.with_extension("raw");
    let args = ["convert", "-f", "qcow2", "-O", "raw"].map(OsStr::new);
    let convert = qemu::img(args.into_iter().chain([path.as_os_str(), raw.as_os_str()]));
    convert.unwrap().success().unwrap();
    let guest = std::fs::read(&raw).unwrap();
    Content::of(&guest.as_chunks::<512>().0[usize::try_from(unit).unwrap()])
}

macro_rules! cases {
    ($($test:ident $file:literal $witness:ident,)*) => {
        $(
            mod $test {
                #[test]
                fn is_shown_by_the_subject_alone() {
                    super::check($file);
                }

                #[test]
                #[cfg_attr(
                    not(has_qemu),
                    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
                )]
                fn is_in_the_file() {
                    super::$witness($file);
                }
            }
        )*

        /// Goal: no case file lies there unread. Method: the folder holds exactly the files above.
        #[test]
        fn every_file_is_a_test() {
            let names = corpus::names(&corpus::folder_of(&FULL)).expect("it can be read");
            assert_eq!(names, [$($file),*]);
        }
    };
}

cases! {
    bitmaps_outlive_a_write "bitmaps-outlive-a-write.json" vouches_for_bitmaps,
    compressed_write_panics "compressed-write-panics.json" is_written_by_qemu,
    l1_entry_forgotten "l1-entry-forgotten.json" reads_wrong_at_0,
    mapped_without_its_data "mapped-without-its-data.json" reads_wrong_at_0,
    narrow_refcounts_misread "narrow-refcounts-misread.json" is_corrupt,
    refcount_table_growth_panics "refcount-table-growth-panics.json" is_written_by_qemu,
    shared_cluster_not_copied "shared-cluster-not-copied.json" reads_wrong_at_1,
}

/// Goal: a case is a function of its seed, whatever the keys of hash maps are. Method: a campaign past whatever it finds, which runs every
/// hundredth case twice.
#[test]
fn cases_are_functions_of_their_seeds() {
    let scope = Scope { faultless: true, tasks: Some(1), ..Scope::default() };
    let settings = Settings {
        seed: 1,
        profile: Profile::Kill,
        damage: None,
        scope,
        budget: Budget::Cases(101),
        workers: 1,
    };
    let report = campaign::run_past(&CONTENTS, &settings, |_| {}, |_| true);
    assert!(report.found.is_none() && report.broken.is_none(), "{:?}", report.broken);
    assert_eq!(report.figures.repeated, 2);
}
