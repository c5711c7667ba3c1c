//! Images on files and devices that are opened for direct I/O, past the page cache: the kernel takes whole sectors in aligned buffers
//! only, so what is not so fails here for real.

use std::fs::{File, OpenOptions as FileOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::{Durability, IoBuf, Limits, Storage};
use qcow2_core::{CreateOptions, OpenOptions, Repair, Zeroing};

use crate::block_device::Device;
use crate::common::assert_clean;

/// Direct I/O in sectors of 4,096 bytes. Clones share the file.
#[derive(Clone, Debug)]
struct DirectFile {
    file: Arc<File>,
    /// Its length, if it keeps it.
    fixed: Option<u64>,
}

impl DirectFile {
    fn open(path: &Path, fixed: Option<u64>) -> io::Result<Self> {
        let mut options = FileOptions::new();
        options.read(true).write(true).create(fixed.is_none()).truncate(false);
        let file = options.custom_flags(OFlag::O_DIRECT.bits()).open(path)?;
        Ok(Self { file: Arc::new(file), fixed })
    }

    fn length(&self) -> io::Result<u64> {
        (&*self.file).seek(SeekFrom::End(0))
    }
}

impl Storage for DirectFile {
    fn limits(&self) -> Limits {
        Limits {
            alignment: 4096,
            max_transfer: 1 << 20,
            can_discard: false,
            unwritten_reads_zero: self.fixed.is_none(),
        }
    }

    async fn len(&self) -> io::Result<u64> {
        self.length()
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        match self.fixed {
            None => self.file.set_len(len),
            Some(fixed) if len > fixed => Err(io::ErrorKind::StorageFull.into()),
            Some(_) => Ok(()),
        }
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (IoBuf, io::Result<()>) {
        let result = self.file.read_at(&mut buf, offset).and_then(|count| {
            let ended = offset + count as u64 >= self.length()?;
            buf[count..].fill(0);
            if ended || count == buf.len() {
                Ok(())
            } else {
                Err(io::ErrorKind::Interrupted.into())
            }
        });
        (buf, result)
    }

    async fn write(&self, offset: u64, buf: IoBuf, how: Durability) -> (IoBuf, io::Result<()>) {
        let written = self.file.write_all_at(&buf, offset);
        let written = written.and_then(|()| match how {
            Durability::Cached => Ok(()),
            Durability::Through => self.file.sync_data(),
        });
        (buf, written)
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        let len = usize::try_from(range.end - range.start).expect("clusters fit in memory");
        self.file.write_all_at(&IoBuf::zeroed(len, 4096), range.start)
    }

    async fn discard(&self, _: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    async fn settle(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Creates an image, changes it wherever, leaves it unclosed, opens it again, and compares.
fn works(storage: &DirectFile) {
    for (cluster_bits, lazy_refcounts) in [(12, false), (12, true), (14, true), (16, false)] {
        let mut expected = vec![0; (1 << 20) - 512];
        let shape = CreateOptions::new(expected.len() as u64).cluster_bits(cluster_bits);
        create(storage, &shape.lazy_refcounts(lazy_refcounts)).unwrap();
        let image = Image::open(storage.clone(), OpenOptions::new().growth(0)).unwrap();
        let requests = [(0, 512), (70_000, 3), (4096, 4096), (5000, 100_000), (9 * 512, 512)];
        for (byte, (offset, len)) in (1..).zip(requests) {
            image.write(offset as u64, &vec![byte; len]).unwrap();
            expected[offset..offset + len].fill(byte);
        }
        image.write_zeroes(10_000, 30_000, Zeroing::Free).unwrap();
        expected[10_000..40_000].fill(0);
        image.discard(64 << 10, 64 << 10).unwrap();
        expected[64 << 10..128 << 10].fill(0);
        image.grow((3 << 20) + 1024).unwrap();
        expected.resize((3 << 20) + 1024, 0);
        image.write((3 << 20) + 1000, &[9; 24]).unwrap();
        expected[(3 << 20) + 1000..].fill(9);
        image.flush().unwrap();
        drop(image);
        let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        image.close().unwrap();
        assert_clean(&check(storage, Repair::None).unwrap());
        assert!(check(storage, Repair::Rebuild).unwrap().is_consistent());
        let image = Image::open(storage.clone(), OpenOptions::read_only()).unwrap();
        let mut back = vec![1; expected.len()];
        image.read(0, &mut back).unwrap();
        assert!(back == expected, "clusters of {} bytes", 1 << cluster_bits);
    }
}

/// Goal: direct I/O to a file works. Where the file system has none there is nothing to show.
#[test]
fn a_file_is_written_directly() {
    let directory = tempfile::tempdir().unwrap();
    match DirectFile::open(&directory.path().join("image"), None) {
        Ok(storage) => works(&storage),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}"),
    }
}

/// Goal: an image lives on a disk of 4,096-byte sectors, which takes nothing else.
#[test]
#[cfg_attr(
    not(has_loop_devices),
    ignore = "losetup (Debian package mount) cannot set up a loop device here"
)]
fn a_disk_of_long_sectors_is_written_directly() {
    const LENGTH: u64 = 8 << 20;
    let device = Device::new(&[0xff; LENGTH as usize], "4096");
    let storage = DirectFile::open(&device.path, Some(LENGTH)).unwrap();
    let short = storage.file.read_at(&mut IoBuf::zeroed(512, 4096), 512);
    assert_eq!(short.unwrap_err().kind(), io::ErrorKind::InvalidInput, "the device takes sectors");
    works(&storage);
}
