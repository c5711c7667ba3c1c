//! Images on real block devices: files that `losetup` makes devices. Devices are what a file is not: of a fixed length, and full
//! of what they held before.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use qcow2_core::blocking::{Image, block_on, check, create};
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::storage::{Durability, IoBuf, Storage};
use qcow2_core::{CreateError, CreateOptions, IoError, OpenOptions, Repair};
use tempfile::TempDir;

use crate::common::assert_clean;

/// A block device for as long as this lives.
pub(crate) struct Device {
    directory: TempDir,
    pub(crate) path: PathBuf,
}

fn losetup(arguments: &[&str]) -> String {
    let program = option_env!("LOSETUP_PATH").unwrap_or("losetup");
    let ran = Command::new(program).args(arguments).output().unwrap();
    assert!(ran.status.success(), "losetup {arguments:?}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap().trim().to_owned()
}

impl Device {
    pub(crate) fn new(bytes: &[u8], sector_size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("device");
        fs::write(&file, bytes).unwrap();
        let file = file.to_str().expect("it is text");
        let path = losetup(&["--find", "--show", "--sector-size", sector_size, file]).into();
        Self { directory, path }
    }

    fn open(&self) -> FileStorage {
        FileStorage::open(&self.path, Access::ReadWrite).unwrap()
    }

    /// What it holds, for good.
    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    fn make_longer(&self, len: u64) {
        let file = fs::File::options().write(true).open(self.directory.path().join("device"));
        file.unwrap().set_len(len).unwrap();
        losetup(&["--set-capacity", self.path.to_str().expect("it is text")]);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        losetup(&["--detach", self.path.to_str().expect("it is text")]);
    }
}

#[track_caller]
fn assert_no_room(result: io::Result<()>) -> String {
    let error = result.expect_err("it is past the end");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    error.to_string()
}

fn read(storage: &impl Storage, offset: u64, count: usize) -> Vec<u8> {
    let (buf, result) = block_on(storage.read(offset, IoBuf::zeroed(count, 1)));
    result.unwrap();
    buf.to_vec()
}

/// Goal: a device keeps its length, whatever it is asked for, and what goes past its end finds no room. Method: sectors of 512
/// bytes, and of 4096, in which the kernel zeroes and gives up whole ones only.
#[test]
#[cfg_attr(
    not(has_loop_devices),
    ignore = "losetup (Debian package mount) cannot set up a loop device here"
)]
fn a_device_keeps_its_length() {
    const SIZE: u64 = 1 << 20;
    for sector in ["512", "4096"] {
        let device = Device::new(&[0xff; SIZE as usize], sector);
        let storage = device.open();
        assert!(!storage.limits().unwritten_reads_zero);
        for len in [0, 1, 4096, SIZE] {
            block_on(storage.set_len(len)).unwrap();
            assert_eq!(block_on(storage.len()).unwrap(), SIZE);
        }
        for len in [SIZE + 1, u64::MAX] {
            let why = assert_no_room(block_on(storage.set_len(len)));
            assert_eq!(why, format!("{len} bytes do not fit on a device of {SIZE} bytes"));
        }
        for at in [SIZE - 512, SIZE, 1 << 40] {
            for durability in [Durability::Cached, Durability::Through] {
                let buf = IoBuf::copy_of(&[0xff; 1024], 1);
                assert_no_room(block_on(storage.write(at, buf, durability)).1);
            }
        }
        for range in [SIZE - 512..SIZE + 512, SIZE..SIZE + 512, 1 << 40..(1 << 40) + 4096] {
            assert_no_room(block_on(storage.write_zeroes(range.clone())));
            block_on(storage.discard(range)).unwrap();
        }
        block_on(storage.write_zeroes(512..1024)).unwrap();
        block_on(storage.write_zeroes(4096..8192)).unwrap();
        block_on(storage.write_zeroes(10_001..10_007)).unwrap();
        block_on(storage.discard(20_000..20_100)).unwrap();
        block_on(storage.flush()).unwrap();
        let zeroed = |at: usize| matches!(at, 512..1024 | 4096..8192 | 10_001..10_007);
        let bytes = read(&storage, 0, SIZE as usize - 512);
        for (at, &byte) in bytes.iter().enumerate().filter(|(at, _)| !(20_000..20_100).contains(at))
        {
            assert_eq!(byte, if zeroed(at) { 0 } else { 0xff }, "byte {at}, sectors of {sector}");
        }
        assert_eq!(block_on(storage.len()).unwrap(), SIZE);
        // Asked anew: it may have been made longer.
        device.make_longer(2 * SIZE);
        block_on(storage.set_len(2 * SIZE)).unwrap();
        assert_eq!(block_on(storage.len()).unwrap(), 2 * SIZE);
        assert_no_room(block_on(storage.set_len(2 * SIZE + 1)));
    }
}

/// Goal: an image is created in place over whatever a device holds, fills it, and takes again what was given up; one that would
/// not fit leaves what is there. Method: trash; the size is no multiple of a cluster's; half of each cluster is written.
#[test]
#[cfg_attr(
    not(has_loop_devices),
    ignore = "losetup (Debian package mount) cannot set up a loop device here"
)]
fn an_image_fills_a_device() {
    const LENGTH: u64 = (1 << 20) + 4096;
    for (cluster_bits, lazy_refcounts, sector) in [
        (9, false, "512"),
        (9, true, "4096"),
        (14, false, "4096"),
        (14, true, "512"),
        (16, false, "512"),
    ] {
        let size = 1u64 << cluster_bits;
        let device = Device::new(&[0xff; LENGTH as usize], sector);
        let storage = FileStorage::create(&device.path, Existing::Replace).unwrap();
        let shape =
            CreateOptions::new(2 << 20).cluster_bits(cluster_bits).lazy_refcounts(lazy_refcounts);
        create(&storage, &shape).unwrap();
        assert_clean(&check(&storage, Repair::None).unwrap());

        let image = Image::open(storage, OpenOptions::new()).unwrap();
        let half = vec![7; size as usize / 2];
        let write = |cluster: u64| image.write(cluster * size, &half);
        let full = |result: Result<(), IoError>| match result {
            Err(IoError::Storage { source, .. }) => {
                assert_no_room(Err(source));
            }
            other => panic!("{other:?}"),
        };
        let fitted = (0..2 << 20 >> cluster_bits).take_while(|&cluster| write(cluster).is_ok());
        let fitted = fitted.count() as u64;
        assert!(fitted * size > LENGTH / 2, "{fitted} clusters of {size} bytes");
        full(write(fitted));
        image.discard(0, 2 * size).unwrap();
        image.flush().unwrap();
        write(fitted).unwrap();
        write(fitted + 1).unwrap();
        full(write(fitted + 2));
        image.close().unwrap();

        let storage = device.open();
        assert_clean(&check(&storage, Repair::None).unwrap());
        let image = Image::open(storage, OpenOptions::read_only()).unwrap();
        for cluster in 0..(2 << 20) / size {
            let mut back = vec![1; size as usize];
            image.read(cluster * size, &mut back).unwrap();
            let (written, rest) = back.split_at(half.len());
            let expected = if (2..fitted + 2).contains(&cluster) { 7 } else { 0 };
            assert!(written.iter().all(|&byte| byte == expected), "cluster {cluster}");
            assert!(rest.iter().all(|&byte| byte == 0), "cluster {cluster}");
        }
        drop(image);

        let before = device.bytes();
        let storage = device.open();
        let why = create(&storage, &CreateOptions::new(1 << 50)).unwrap_err();
        assert!(
            matches!(&why, CreateError::Storage { source, .. } if source.kind() == io::ErrorKind::StorageFull),
            "{why}"
        );
        drop(storage);
        assert!(device.bytes() == before, "it was changed");
        // Over an image whose clusters are of another size.
        let storage = device.open();
        create(&storage, &CreateOptions::new(1 << 20).cluster_bits(12)).unwrap();
        assert_clean(&check(&storage, Repair::None).unwrap());
        let image = Image::open(storage, OpenOptions::read_only()).unwrap();
        let mut back = vec![1; 1 << 20];
        image.read(0, &mut back).unwrap();
        assert!(back.iter().all(|&byte| byte == 0));
    }
}
