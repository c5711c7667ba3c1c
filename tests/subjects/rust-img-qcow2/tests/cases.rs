//! Every kept case: rust-img-qcow2 shows it, the library of this workspace does not, and QEMU finds it in a concrete image file.

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
use qcow2_crashtest::workload::{FaultKind, Scope};
use qcow2_crashtest_rust_img_qcow2::RustImg;

const FULL: Blocking<RustImg> = Blocking(RustImg { contents: false });
const CONTENTS: Blocking<RustImg> = Blocking(RustImg { contents: true });

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

/// Goal: somebody else finds it in the file. Method: `qemu-img check` says that one cluster is leaked, and nothing else.
fn leaks_one(name: &str) {
    assert_eq!(counted(name), (0, 1), "{name}");
}

/// Goal: the same. Method: `qemu-img info` lists both bitmaps, neither of them in use by a writer that did not finish, and `qemu-io` reads
/// what was written since.
fn vouches_for_bitmaps(name: &str) {
    let case = load(name);
    let folder = tempfile::tempdir().unwrap();
    let path = image_file(&case, folder.path());
    let info = ["info".as_ref(), path.as_os_str()];
    let said = qemu::img(info).unwrap().success().unwrap().stdout;
    assert_eq!(said.matches("granularity: 512").count(), 2, "{said}");
    assert!(said.contains("auto") && !said.contains("in-use"), "{said}");
    assert_eq!(counted(name), (0, 0), "{name}");
    assert_eq!(read_by_qemu(&path, 18), Content::Tag { unit: 18, id: 3 });
}

/// Goal: the same. Method: `qemu-io` reads a guest unit, and the case allows something else only.
fn reads_old(name: &str) {
    let case = load(name);
    let folder = tempfile::tempdir().unwrap();
    let path = image_file(&case, folder.path());
    let found = read_by_qemu(&path, 0);
    let allowed = &case.image.as_ref().unwrap().allowed[&0];
    assert!(!allowed.contains(&found), "{name}: {found:?}, and not {allowed:?}");
    assert_eq!(counted(name).0, 0, "{name}");
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
    compressed_cluster_leaks "compressed-cluster-leaks.json" leaks_one,
    failed_flush_forgotten "failed-flush-forgotten.json" reads_old,
    zero_cluster_leaks "zero-cluster-leaks.json" leaks_one,
}

fn settings(scope: Scope, profile: Profile) -> Settings {
    Settings { seed: 1, profile, damage: None, scope, budget: Budget::Cases(60), workers: 1 }
}

/// Nothing was found.
fn silent(report: &campaign::Report) {
    assert!(
        report.found.is_none() && report.broken.is_none(),
        "{:?} {:?}",
        report.found,
        report.broken
    );
}

/// Goal: its write orders are found to be what it says. Method: a short campaign on the worst device, judged by what its guest sees.
#[test]
fn a_campaign_finds_nothing_that_its_guest_sees() {
    let scope = Scope { faultless: true, ..Scope::default() };
    let report = campaign::run(&CONTENTS, &settings(scope, Profile::TornLength), |_| {});
    silent(&report);
}

/// Goal: a plain call that failed is over. Method: I/O that fails and lands late; none of it meets what comes after.
#[test]
fn what_failed_does_not_land_after_its_call() {
    let scope = Scope { fault: Some(FaultKind::Late), tasks: Some(1), ..Scope::default() };
    let report = campaign::run(&CONTENTS, &settings(scope, Profile::Kill), |_| {});
    silent(&report);
}
