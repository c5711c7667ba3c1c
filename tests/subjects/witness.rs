//! What tests of kept cases have in common, whichever library they are of: a case shows what it says on its subject and on no other, and
//! QEMU, which is neither the subject nor the judge, finds it in a concrete image file.

#![allow(dead_code, reason = "each package takes what it needs of it")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use model::case::{Case, Content};
use qcow2_crashtest::corpus;
use qcow2_crashtest::qemu;
use qcow2_crashtest::replay::{Basis, Verdict, replay};
use qcow2_crashtest::subject::{Qcow2Core, Subject};

/// A kept case of this subject.
pub(super) fn load<Sub: Subject>(subject: &Sub, name: &str) -> Case {
    corpus::load(&corpus::folder_of(subject).join(name)).expect("the file is a case")
}

/// Goal: a finding stays one, and is not the harness's own. Method: replay on the subject, in the form that the case names, and on the
/// library of this workspace.
pub(super) fn check<Sub: Subject>(forms: [Sub; 2], case: &Case, name: &str) {
    let subject = forms.into_iter().find(|it| it.key() == case.open.subject).unwrap();
    let shown = replay(&subject, case, name).unwrap();
    assert_eq!((shown.verdict, shown.basis), (Verdict::Reproduced, Basis::Exact), "{shown:?}");
    let ours = replay(&Qcow2Core::default(), case, name).unwrap();
    let passes = matches!(ours.verdict, Verdict::Fixed | Verdict::Drifted);
    assert!(passes, "{name} on qcow2-core: {:?}", ours.failure);
}

/// The image of a case as a file.
pub(super) fn image_file(case: &Case, folder: &Path) -> PathBuf {
    let image = case.image.as_ref().expect("every kept case has its image");
    let path = folder.join("crashed.qcow2");
    std::fs::write(&path, image.bytes()).unwrap();
    path
}

/// What `qemu-img check` counts in the image of a case: what is corrupt, and what is leaked.
pub(super) fn counted(case: &Case) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let check = qemu::check(&image_file(case, folder.path())).unwrap();
    (check.corruptions, check.leaks)
}

/// A guest unit, as QEMU converts it.
pub(super) fn read_by_qemu(path: &Path, unit: u64) -> Content {
    let raw = path.with_extension("raw");
    let args = ["convert", "-f", "qcow2", "-O", "raw"].map(OsStr::new);
    let convert = qemu::img(args.into_iter().chain([path.as_os_str(), raw.as_os_str()]));
    convert.unwrap().success().unwrap();
    let guest = std::fs::read(&raw).unwrap();
    Content::of(&guest.as_chunks::<512>().0[usize::try_from(unit).unwrap()])
}

/// Goal: somebody else finds it in the file. Method: `qemu-img convert` reads a guest unit, and the case allows something else only;
/// `qemu-img check` finds nothing corrupt.
pub(super) fn reads_wrong(case: &Case, unit: u64) {
    let folder = tempfile::tempdir().unwrap();
    let found = read_by_qemu(&image_file(case, folder.path()), unit);
    let allowed = &case.image.as_ref().unwrap().allowed[&unit];
    assert!(!allowed.contains(&found), "{found:?}, and not {allowed:?}");
    assert_eq!(counted(case).0, 0);
}

/// Goal: the same. Method: `qemu-img info` lists both bitmaps, neither of them in use by a writer that did not finish, and
/// `qemu-img convert` reads what was written since.
pub(super) fn vouches_for_bitmaps(case: &Case, unit: u64, written: &Content) {
    let folder = tempfile::tempdir().unwrap();
    let path = image_file(case, folder.path());
    let info = ["info".as_ref(), path.as_os_str()];
    let said = qemu::img(info).unwrap().success().unwrap().stdout;
    assert_eq!(said.matches("granularity: 512").count(), 2, "{said}");
    assert!(said.contains("auto") && !said.contains("in-use"), "{said}");
    assert_eq!(counted(case), (0, 0));
    assert_eq!(read_by_qemu(&path, unit), *written);
}

/// Two tests for each kept case of the folder of a subject: that it is shown, and that QEMU sees it; and one that none is left out.
macro_rules! kept_cases {
    ($forms:expr; $($test:ident $file:literal $witness:expr,)*) => {
        $(
            mod $test {
                use super::*;

                #[test]
                fn is_shown_by_the_subject_alone() {
                    let forms = $forms;
                    let case = witness::load(&forms[0], $file);
                    witness::check(forms, &case, $file);
                }

                #[test]
                #[cfg_attr(
                    not(has_qemu),
                    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
                )]
                fn is_in_the_file() {
                    let look: fn(&Case) = $witness;
                    look(&witness::load(&$forms[0], $file));
                }
            }
        )*

        /// Goal: no case file lies there unread. Method: the folder holds exactly the files above.
        #[test]
        fn every_file_is_a_test() {
            let folder = qcow2_crashtest::corpus::folder_of(&$forms[0]);
            let names = qcow2_crashtest::corpus::names(&folder).expect("it can be read");
            assert_eq!(names, [$($file),*]);
        }
    };
}
