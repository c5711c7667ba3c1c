//! Passphrases that QEMU and this library add and remove in turn: each opens what the other left, and no more.

use std::path::Path;

use qcow2_core::blocking::{Image, create_encrypted};
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::{CreateOptions, Encryption, OpenError, OpenOptions, Passphrase};
use qcow2_crashtest::qemu::{self, QemuImage};

use crate::bench::Bench;
use crate::common::Scatter;

fn open(path: &Path, passphrase: &str) -> Result<Image<FileStorage>, OpenError> {
    let storage = FileStorage::open(path, Access::ReadWrite).unwrap();
    let passphrase = Passphrase::new(passphrase);
    Image::open_encrypted(storage, &passphrase, None, None, OpenOptions::new())
}

/// Those that open the image, and no others do, here as there.
fn assert_open(path: &Path, passphrases: &[&str]) {
    for passphrase in ["one", "two", "three", "four"] {
        let opens = passphrases.contains(&passphrase);
        match open(path, passphrase) {
            Ok(image) => assert!(opens, "{passphrase} opens it: {:?}", image.info()),
            Err(OpenError::WrongPassphrase) => assert!(!opens, "{passphrase} does not open it"),
            Err(error) => panic!("{passphrase}: {error}"),
        }
        let image = QemuImage { path, passphrase: Some(passphrase) };
        let read = qemu::io(image, &["read -P 7 0 4k".to_owned()]).unwrap().success();
        assert_eq!(read.is_ok(), opens, "QEMU, {passphrase}: {read:?}");
    }
}

/// Method: an image that either made gets three further passphrases in turn, of which either removes two, the first one included.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(all(has_qemu, not(turn = "2")), ignore = "its turn is at another commit; CI=1 runs all")]
fn passphrases_go_both_ways() {
    for made_by_qemu in [false, true] {
        let bench = Bench::new();
        let path = bench.path();
        let mut scatter = Scatter::new(1);
        let mut random = |bytes: &mut [u8]| bytes.fill_with(|| scatter.below(256) as u8);
        let [one, two, three, four] = ["one", "two", "three", "four"].map(Passphrase::new);
        let known = |passphrase| QemuImage { path, passphrase: Some(passphrase) };
        if made_by_qemu {
            qemu::create(known("one"), 1 << 20, &QemuImage::encrypted("luks")).unwrap();
        } else {
            let encryption = Encryption::luks(&one, 1000, &mut random);
            let storage = FileStorage::create(path, Existing::Refuse).unwrap();
            let options = CreateOptions::new(1 << 20);
            create_encrypted(&storage, None, &options, &encryption, None).unwrap();
        }
        let image = open(path, "one").unwrap();
        image.write(0, &[7; 4096]).unwrap();
        assert_eq!(image.add_passphrase(&one, &two, 1000, &mut random).unwrap(), 1);
        image.close().unwrap();
        assert_open(path, &["one", "two"]);
        qemu::add_passphrase(known("two"), "three").unwrap();
        assert_open(path, &["one", "two", "three"]);
        let image = open(path, "three").unwrap();
        assert_eq!(image.remove_passphrase(&three, &one).unwrap(), 1);
        assert_eq!(image.add_passphrase(&two, &four, 1000, &mut random).unwrap(), 0);
        image.close().unwrap();
        assert_open(path, &["two", "three", "four"]);
        qemu::remove_passphrase(known("four"), "two").unwrap();
        assert_open(path, &["three", "four"]);
        let check = qemu::check(known("four")).unwrap();
        assert_eq!((check.corruptions, check.leaks), (0, 0), "{check:?}");
    }
}
