//! An image file, or a block device, through plain system calls.
//!
//! Every operation is done when its future is first polled, so nothing can be dropped half way. The invariants owned
//! here: **the locks are held before the first byte is read**, for as long as the file is open, and **a failed flush is
//! never followed by a good one**: the kernel forgets what it could not write, so a second answer would be a lie. It also
//! tells an open file of a failure once, so flushes go one at a time: of two at once one would hear nothing of it.
//!
//! An operation that failed has ended, so there is nothing to settle. A block device keeps its length.
//!
//! Where the size of files is limited (`RLIMIT_FSIZE`), a process has to ignore SIGXFSZ: the system sends it together with the
//! error, and it kills.
//!
//! The locks are QEMU's, so that the two keep out of one another's way. Each permission owns two bytes of the file's
//! lock space (not of its content): a shared lock on the first says "I use it", one on the second "nobody else may".
//! After taking its own locks, whoever opens the file looks whether somebody holds the opposite ones.
//!
//! ```text
//!   byte of the lock space       100     101     102     103          200     201     202     203
//!                                 |       |       |       |            |       |       |       |
//!                              consistent write  write  resize      consistent write  write  resize
//!                                read          unchanged              read          unchanged
//!                                used by me                           refused to others
//!   read only                     x                                            x               x
//!   read and write                x       x               x                    x               x
//! ```
//!
//! So readers share a file, and a writer shares it with nobody. The locks belong to the open file description: they go
//! away with it, whatever becomes of the process. A child that was forked and has not called exec yet shares the
//! description, so a storage that is dropped gives its locks up and does not wait for that.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::libc;
use nix::unistd::{Whence, lseek};

use super::{Durability, IoBuf, Limits, Storage};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading, beside other readers. Every change fails with [`io::ErrorKind::PermissionDenied`].
    ReadOnly,
    /// Reading and writing, alone.
    ReadWrite,
}

/// What creating a file does where there is one already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Fails.
    Refuse,
    /// Empties it, durably, once it is locked: nothing of its old content can come back after a crash. A block device keeps
    /// its content: whoever makes something of it writes over what matters.
    Replace,
}

/// Why a file was not opened or created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system refused.
    #[error("cannot {action} {}: {source}", .path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, a pipe, a terminal or the like.
    #[error("{} is neither a regular file nor a block device", .path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else has the file open in a way that does not go together with this one.
    #[error("{} is in use: {holder} {permission}", .path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// The permission that both sides want.
        permission: Permission,
        /// What the other side says about it.
        holder: Holder,
    },
}

/// A permission that is guarded by locks; the value is its bit in QEMU's numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Permission {
    /// To read data that makes sense.
    ConsistentRead = 0,
    /// To write.
    Write = 1,
    /// To change the length.
    Resize = 3,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConsistentRead => "read",
            Self::Write => "write",
            Self::Resize => "resize",
        })
    }
}

/// What another open file says about a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// It uses it.
    Uses,
    /// It lets nobody else have it.
    Refuses,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uses => "somebody else has it open to",
            Self::Refuses => "somebody else has it open and lets nobody",
        })
    }
}

impl Access {
    const fn uses(self) -> &'static [Permission] {
        match self {
            Self::ReadOnly => &[Permission::ConsistentRead],
            Self::ReadWrite => &[Permission::ConsistentRead, Permission::Write, Permission::Resize],
        }
    }
}

/// What no open file of ours lets others do.
const REFUSED: [Permission; 2] = [Permission::Write, Permission::Resize];

/// First byte of the lock space for permissions in use.
const USED_BASE: libc::off_t = 100;
/// First byte of the lock space for permissions refused to others.
const REFUSED_BASE: libc::off_t = 200;

/// What is written at a time where zeroes have to be written out.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// An open and locked file.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    path: PathBuf,
    access: Access,
    block_device: bool,
    flush_failed: Mutex<bool>,
    no_zero_range: AtomicBool,
    no_punch_hole: AtomicBool,
}

impl FileStorage {
    /// Opens and locks a file.
    ///
    /// # Errors
    /// [`FileError`], if there is none, it may not be opened so, or somebody else has locked it.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self, FileError> {
        let path = path.as_ref();
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        Self::open_with(&options, path, access, "open")
    }

    /// Creates a file, empty and locked. It is certain to be found after a crash only after [`Self::sync_parent`].
    ///
    /// # Errors
    /// [`FileError`], if it is there already and that is to be refused, or it cannot be made or locked.
    pub fn create(path: impl AsRef<Path>, existing: Existing) -> Result<Self, FileError> {
        let path = path.as_ref();
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match existing {
            Existing::Refuse => options.create_new(true),
            // Truncated below, under the lock: whoever has it open must not lose it.
            Existing::Replace => options.create(true).truncate(false),
        };
        let storage = Self::open_with(&options, path, Access::ReadWrite, "create")?;
        if existing == Existing::Replace && !storage.block_device {
            let emptied = storage.file.set_len(0).and_then(|()| storage.file.sync_all());
            emptied.map_err(failed("empty", path))?;
        }
        Ok(storage)
    }

    fn open_with(
        options: &OpenOptions,
        path: &Path,
        access: Access,
        action: &'static str,
    ) -> Result<Self, FileError> {
        // Without O_NONBLOCK, opening a pipe would wait for its other end. Files and disks do not mind.
        let opened = options.clone().custom_flags(libc::O_NONBLOCK).open(path);
        let file = opened.map_err(failed(action, path))?;
        let kind = file.metadata().map_err(failed(action, path))?.file_type();
        let block_device = kind.is_block_device();
        if !kind.is_file() && !block_device {
            return Err(FileError::NotAFile { path: path.into() });
        }
        lock(&file, path, access)?;
        Ok(Self {
            file,
            path: path.into(),
            access,
            block_device,
            flush_failed: Mutex::new(false),
            no_zero_range: AtomicBool::new(false),
            no_punch_hole: AtomicBool::new(false),
        })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory entry durable. To be called once the content of a new file is.
    ///
    /// # Errors
    /// [`FileError`], if the directory cannot be found, opened or synced.
    pub fn sync_parent(&self) -> Result<(), FileError> {
        let resolved = self.path.canonicalize().map_err(failed("resolve", &self.path))?;
        let parent = resolved.parent().unwrap_or(&resolved);
        let synced = File::open(parent).and_then(|directory| directory.sync_all());
        synced.map_err(failed("make durable the directory of", &self.path))
    }

    /// In words of ours: the system would speak of a bad file descriptor.
    fn may_change(&self) -> io::Result<()> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => {
                let why = "the file was opened read-only";
                Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
            }
        }
    }

    fn read_all(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        // The system refuses reads that reach past the largest offset; nothing is there.
        let within = (libc::off_t::MAX as u64).saturating_sub(offset);
        let end = buf.len().min(usize::try_from(within).unwrap_or(usize::MAX));
        let mut done = 0;
        while done < end {
            match self.file.read_at(&mut buf[done..end], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buf[done..].fill(0);
        Ok(())
    }

    fn write_all(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.may_change()?;
        file_offset(offset.saturating_add(bytes.len() as u64))?;
        self.file.write_all_at(bytes, offset)
    }

    fn write_out_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let count = (range.end - at).min(ZEROES.len() as u64);
            self.write_all(at, &ZEROES[..count as usize])?;
            at += count;
        }
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let zero_range = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        if self.allocate(zero_range, &range, &self.no_zero_range)? {
            return Ok(());
        }
        if !self.punch(&range)? {
            return self.write_out_zeroes(range);
        }
        // A hole does not extend the file. A byte written at its end does, and unlike a length that is set, it cannot
        // undo what another write extends at the same time.
        if range.end > self.length()? { self.write_all(range.end - 1, &[0]) } else { Ok(()) }
    }

    fn punch(&self, range: &Range<u64>) -> io::Result<bool> {
        let punch_hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.allocate(punch_hole, range, &self.no_punch_hole)
    }

    /// Calls fallocate unless it is known not to work. Whether it worked.
    fn allocate(
        &self,
        mode: FallocateFlags,
        range: &Range<u64>,
        missing: &AtomicBool,
    ) -> io::Result<bool> {
        self.may_change()?;
        let from = file_offset(range.start)?;
        let length = file_offset(range.end)? - from;
        if missing.load(Ordering::Relaxed) {
            return Ok(false);
        }
        loop {
            return match fallocate(&self.file, mode, from, length) {
                Ok(()) => Ok(true),
                Err(Errno::EINTR) => continue,
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                    missing.store(true, Ordering::Relaxed);
                    Ok(false)
                }
                // This time: a block device wants whole logical blocks within it, and nobody else's exclusive hold of it. If
                // the file may not be written at all, writing says so.
                Err(Errno::EINVAL | Errno::EBUSY | Errno::EPERM) => Ok(false),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    fn length(&self) -> io::Result<u64> {
        if self.block_device {
            (&self.file).seek(SeekFrom::End(0))
        } else {
            Ok(self.file.metadata()?.len())
        }
    }

    /// Where the next data, or the next hole, begins from `offset` on; none at the end and behind it, and no data where only a hole is left. The
    /// position of the open file moves, which nothing else looks at.
    fn seek(&self, offset: u64, to: Whence) -> nix::Result<Option<u64>> {
        // The largest offset is behind every byte.
        let from = libc::off_t::try_from(offset).unwrap_or(libc::off_t::MAX);
        match lseek(&self.file, from, to) {
            Ok(at) => Ok(Some(at.cast_unsigned())),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// As [`Storage::is_hole`], or why the system does not say.
    fn hole(&self, offset: u64, len: u64) -> nix::Result<(u64, bool)> {
        let Some(data) = self.seek(offset, Whence::SeekData)? else { return Ok((len, true)) };
        if data > offset {
            return Ok((len.min(data - offset), true));
        }
        let hole = self.seek(offset, Whence::SeekHole)?;
        // Should somebody punch one between the two calls, a byte of it counts as data.
        Ok((hole.map_or(len, |hole| (hole - offset).clamp(1, len.max(1))), false))
    }

    fn sync(&self) -> io::Result<()> {
        let mut failed = self.flush_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            return Err(io::Error::other(
                "an earlier flush failed: what it covered may be lost, and nobody can tell any more",
            ));
        }
        self.file.sync_data().inspect_err(|_| *failed = true)
    }
}

impl Storage for FileStorage {
    fn limits(&self) -> Limits {
        Limits {
            alignment: 1,
            max_transfer: 1 << 30,
            can_discard: true,
            unwritten_reads_zero: !self.block_device,
        }
    }

    fn writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    async fn len(&self) -> io::Result<u64> {
        self.length()
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.may_change()?;
        if self.block_device {
            let size = self.length()?;
            if len > size {
                let why = format!("{len} bytes do not fit on a device of {size} bytes");
                return Err(io::Error::new(io::ErrorKind::StorageFull, why));
            }
            return Ok(());
        }
        file_offset(len)?;
        self.file.set_len(len)
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (IoBuf, io::Result<()>) {
        let result = self.read_all(offset, &mut buf);
        (buf, result)
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, io::Result<()>) {
        let written = self.write_all(offset, &buf).and_then(|()| match durability {
            Durability::Cached => Ok(()),
            Durability::Through => self.sync(),
        });
        (buf, written)
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() { Ok(()) } else { self.zero(range) }
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        // A discard that is not supported leaves what was there, which is one of the things it may leave.
        if range.is_empty() { Ok(()) } else { self.punch(&range).map(|_| ()) }
    }

    async fn flush(&self) -> io::Result<()> {
        self.sync()
    }

    async fn settle(&self) -> io::Result<()> {
        Ok(())
    }

    async fn is_hole(&self, offset: u64, len: u64) -> (u64, bool) {
        // Not every file system, and hardly a block device, can be asked.
        self.hole(offset, len).unwrap_or((len, false))
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        let end = REFUSED_BASE + libc::off_t::from(Permission::Resize as u8) + 1;
        let mut all = flock(libc::F_UNLCK, USED_BASE, Permission::ConsistentRead);
        all.l_len = end - USED_BASE;
        // Should that fail, closing the file is what gives them up.
        let _ = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&all));
    }
}

/// Takes the locks of `access`, then looks for those that it does not go together with. Two that try at the same moment
/// may both be refused; they are never both let in.
fn lock(file: &File, path: &Path, access: Access) -> Result<(), FileError> {
    let mine = access.uses().iter().map(|&permission| (USED_BASE, permission));
    let others = REFUSED.iter().map(|&permission| (REFUSED_BASE, permission));
    for (base, permission) in mine.clone().chain(others.clone()) {
        let request = flock(libc::F_RDLCK, base, permission);
        retry(|| fcntl(file, FcntlArg::F_OFD_SETLK(&request))).map_err(failed("lock", path))?;
    }
    // The opposite of what I use is what others refuse, and the other way round.
    let opposite = mine.map(|(_, permission)| (REFUSED_BASE, permission, Holder::Refuses));
    let opposite =
        others.map(|(_, permission)| (USED_BASE, permission, Holder::Uses)).chain(opposite);
    for (base, permission, holder) in opposite {
        let mut probe = flock(libc::F_WRLCK, base, permission);
        retry(|| fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)))
            .map_err(failed("look for locks on", path))?;
        if i32::from(probe.l_type) != libc::F_UNLCK {
            return Err(FileError::Locked { path: path.into(), permission, holder });
        }
    }
    Ok(())
}

/// One byte of the lock space.
fn flock(kind: libc::c_int, base: libc::off_t, permission: Permission) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: base + libc::off_t::from(permission as u8),
        l_len: 1,
        l_pid: 0,
    }
}

fn retry(mut call: impl FnMut() -> nix::Result<libc::c_int>) -> io::Result<()> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map(|_| ()).map_err(io::Error::from),
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> FileError {
    move |source| FileError::System { action, path: path.into(), source }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset)
        .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, format!("offset {offset}")))
}

#[cfg(test)]
mod tests {
    //! Goal: the file behaves like an array of bytes with explicit durability, and keeps others out. Method: small
    //! files in a temporary directory. Every future of this storage is ready at once, so one poll runs it.

    use std::future::Future;
    use std::os::fd::AsRawFd;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use nix::fcntl::SealFlag;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use quickcheck::{Arbitrary, Gen, quickcheck};

    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> T {
        let Poll::Ready(value) = pin!(future).poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("not ready at once");
        };
        value
    }

    fn read(storage: &FileStorage, offset: u64, count: usize) -> Vec<u8> {
        let mut buf = IoBuf::zeroed(count, 1);
        buf.fill(0xee);
        let (buf, result) = now(storage.read(offset, buf));
        result.unwrap();
        buf.to_vec()
    }

    fn write(storage: &FileStorage, offset: u64, bytes: &[u8], durability: Durability) {
        let (buf, result) = now(storage.write(offset, IoBuf::copy_of(bytes, 1), durability));
        result.unwrap();
        assert_eq!(&*buf, bytes);
    }

    fn fresh() -> (tempfile::TempDir, FileStorage) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let storage = FileStorage::create(path, Existing::Refuse).unwrap();
        (directory, storage)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u16, u16, bool),
        Zero(u16, u16),
        SetLen(u16),
        Flush,
    }

    impl Arbitrary for Step {
        fn arbitrary(g: &mut Gen) -> Self {
            let (at, count) = (u16::arbitrary(g), u16::arbitrary(g) % 9000);
            match u8::arbitrary(g) % 8 {
                0..=3 => Self::Write(at, count, bool::arbitrary(g)),
                4 | 5 => Self::Zero(at, count),
                6 => Self::SetLen(at),
                _ => Self::Flush,
            }
        }
    }

    /// Runs `steps` on a file and on a plain vector and compares them after every step. The first `missing` of the ways
    /// to zero a range are switched off, as on a file system that has none of them.
    fn file_is_an_array(steps: Vec<Step>, missing: u8) -> bool {
        let (_directory, storage) = fresh();
        storage.no_zero_range.store(missing >= 1, Ordering::Relaxed);
        storage.no_punch_hole.store(missing >= 2, Ordering::Relaxed);
        let mut array: Vec<u8> = Vec::new();
        let grow = |array: &mut Vec<u8>, end| array.resize(array.len().max(end), 0);
        for (index, step) in steps.into_iter().enumerate() {
            match step {
                Step::Write(at, count, through) => {
                    let bytes = vec![index as u8 + 1; count.into()];
                    let durability = if through { Durability::Through } else { Durability::Cached };
                    write(&storage, at.into(), &bytes, durability);
                    let (at, end) = (usize::from(at), usize::from(at) + bytes.len());
                    if !bytes.is_empty() {
                        grow(&mut array, end);
                        array[at..end].copy_from_slice(&bytes);
                    }
                }
                Step::Zero(at, count) => {
                    let (at, end) = (usize::from(at), usize::from(at) + usize::from(count));
                    now(storage.write_zeroes(at as u64..end as u64)).unwrap();
                    if at < end {
                        grow(&mut array, end);
                        array[at..end].fill(0);
                    }
                }
                Step::SetLen(len) => {
                    now(storage.set_len(len.into())).unwrap();
                    array.resize(len.into(), 0);
                }
                Step::Flush => now(storage.flush()).unwrap(),
            }
            let whole = read(&storage, 0, array.len() + 100);
            if now(storage.len()).unwrap() != array.len() as u64
                || whole[..array.len()] != array
                || whole[array.len()..] != [0; 100]
            {
                return false;
            }
            let mut at = 0;
            while at < whole.len() {
                let (of, is_hole) = now(storage.is_hole(at as u64, (whole.len() - at) as u64));
                let of = &whole[at..at + usize::try_from(of).unwrap()];
                if of.is_empty() || is_hole && of.iter().any(|&byte| byte != 0) {
                    return false;
                }
                at += of.len();
            }
        }
        true
    }

    quickcheck! {
        fn a_file_is_an_array(steps: Vec<Step>, missing: u8) -> bool {
            file_is_an_array(steps, missing % 3)
        }
    }

    /// Goal: holes are told, up to the end of the file and behind it, if the file system has them. Method: a file of 64 MiB with one byte in
    /// it, for which the file system may take a few blocks; a file of which nothing is known.
    #[test]
    fn holes_are_told() {
        const SIZE: u64 = 64 << 20;
        let (_directory, storage) = fresh();
        now(storage.set_len(SIZE)).unwrap();
        if storage.seek(0, Whence::SeekData).is_err() {
            assert_eq!(now(storage.is_hole(0, SIZE)), (SIZE, false));
            return;
        }
        assert_eq!(now(storage.is_hole(0, 2 * SIZE)), (2 * SIZE, true));
        write(&storage, SIZE / 2, &[1], Durability::Cached);
        let (before, is_hole) = now(storage.is_hole(0, SIZE));
        assert!(is_hole && before <= SIZE / 2 && before > SIZE / 4, "{before}");
        let (data, is_hole) = now(storage.is_hole(SIZE / 2, SIZE));
        assert!(!is_hole && data <= SIZE / 4, "{data}");
        let (rest, is_hole) = now(storage.is_hole(SIZE - 1, SIZE));
        assert!(is_hole && rest == SIZE, "{rest}");
        let (rest, is_hole) = now(storage.is_hole(u64::MAX - 512, 512));
        assert_eq!((rest, is_hole), (512, true));
        let untold = FileStorage::open("/proc/kallsyms", Access::ReadOnly).unwrap();
        assert_eq!(now(untold.is_hole(0, 4096)), (4096, false));
    }

    /// A short transfer is gone on with, not an end and not an error. The kernel hands this file out a page at a time at most.
    #[test]
    fn short_reads_are_gone_on_with() {
        let path = "/proc/kallsyms";
        let mut plain = vec![0; 32 << 10];
        let once = File::open(path).unwrap().read_at(&mut plain, 0).unwrap();
        assert!((1..plain.len()).contains(&once), "a read of {once} bytes is not short");
        let whole = std::fs::read(path).unwrap();
        let storage = FileStorage::open(path, Access::ReadOnly).unwrap();
        assert_eq!(read(&storage, 0, plain.len()), whole[..plain.len()]);
    }

    /// Goal: a discarded range holds what it held or zeroes, nothing around it changes and the length stays, whether
    /// the file system can punch holes or not.
    #[test]
    fn discard_leaves_old_or_zero() {
        for missing in [false, true] {
            let (_directory, storage) = fresh();
            storage.no_punch_hole.store(missing, Ordering::Relaxed);
            write(&storage, 0, &[7; 40_000], Durability::Cached);
            now(storage.discard(10_000..30_000)).unwrap();
            now(storage.discard(39_000..90_000)).unwrap();
            assert_eq!(now(storage.len()).unwrap(), 40_000);
            let bytes = read(&storage, 0, 40_000);
            for (at, &byte) in bytes.iter().enumerate() {
                let discarded = (10_000..30_000).contains(&at) || at >= 39_000;
                assert!(byte == 7 || discarded && !missing && byte == 0, "byte {at} is {byte}");
            }
        }
    }

    #[test]
    fn large_zeroes_are_written_in_pieces() {
        let (_directory, storage) = fresh();
        write(&storage, 0, &[9; 200_000], Durability::Cached);
        storage.no_zero_range.store(true, Ordering::Relaxed);
        storage.no_punch_hole.store(true, Ordering::Relaxed);
        now(storage.write_zeroes(1..199_999)).unwrap();
        let bytes = read(&storage, 0, 200_000);
        assert_eq!((bytes[0], bytes[199_999]), (9, 9));
        assert!(bytes[1..199_999].iter().all(|&byte| byte == 0));
    }

    /// Goal: offsets that no file has are the end of the file to a read and an error to everything else.
    #[test]
    fn offsets_past_every_file() {
        let (_directory, storage) = fresh();
        for offset in [i64::MAX as u64 - 1, i64::MAX as u64, u64::MAX - 1, u64::MAX] {
            assert_eq!(read(&storage, offset, 3), [0; 3]);
        }
        for offset in [1 << 63, u64::MAX - 1, u64::MAX] {
            let (buf, result) = now(storage.write(offset, IoBuf::zeroed(1, 1), Durability::Cached));
            assert_eq!(buf.len(), 1);
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
            for result in
                [now(storage.write_zeroes(offset - 1..offset)), now(storage.set_len(offset))]
            {
                assert_eq!(result.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
            }
        }
        assert_eq!(now(storage.len()).unwrap(), 0);
    }

    #[test]
    fn nothing_is_done_for_empty_ranges() {
        let (_directory, storage) = fresh();
        now(storage.write_zeroes(5..5)).unwrap();
        now(storage.discard(5..5)).unwrap();
        now(storage.settle()).unwrap();
        assert_eq!(now(storage.len()).unwrap(), 0);
    }

    /// Goal: no flush, and no write through the cache, is reported as good after one of either that failed. Method: while it
    /// fails, the file is one that cannot be flushed at all.
    #[test]
    fn a_failed_flush_is_remembered() {
        type Attempt = fn(&FileStorage) -> io::Result<()>;
        let flush: Attempt = |storage| now(storage.flush());
        let write_through: Attempt =
            |storage| now(storage.write(0, IoBuf::zeroed(1, 1), Durability::Through)).1;
        for first in [flush, write_through] {
            let (_directory, mut storage) = fresh();
            flush(&storage).unwrap();
            write_through(&storage).unwrap();
            let null = File::options().read(true).write(true).open("/dev/null").unwrap();
            let file = std::mem::replace(&mut storage.file, null);
            let failed = first(&storage).expect_err("the null device cannot be flushed");
            assert_eq!(failed.raw_os_error(), Some(libc::EINVAL));
            storage.file = file;
            for _ in 0..2 {
                let forgotten = "an earlier flush failed";
                assert!(flush(&storage).unwrap_err().to_string().starts_with(forgotten));
                assert!(write_through(&storage).unwrap_err().to_string().starts_with(forgotten));
            }
            write(&storage, 0, &[0], Durability::Cached);
        }
    }

    /// Goal: a way to zero that is not permitted is no failure where writing is, and no discard fails for it. Method: a file
    /// in memory, sealed against writing, where neither is: the discard leaves what was there, the zeroes are refused.
    #[test]
    fn what_may_not_be_punched_is_written_or_left() {
        let file = File::from(memfd_create("sealed", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let storage = FileStorage::open(path, Access::ReadWrite).unwrap();
        write(&storage, 0, &[7; 4096], Durability::Cached);
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
        now(storage.discard(0..4096)).unwrap();
        let refused = now(storage.write_zeroes(0..4096)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(read(&storage, 0, 4096), [7; 4096]);
    }

    #[test]
    fn a_reader_cannot_write() {
        let (_directory, storage) = fresh();
        let path = storage.path().to_path_buf();
        write(&storage, 0, b"abc", Durability::Through);
        drop(storage);
        let reader = FileStorage::open(path, Access::ReadOnly).unwrap();
        assert_eq!(read(&reader, 1, 4), [b'b', b'c', 0, 0]);
        assert!(!reader.writable());
        for result in [
            now(reader.write(0, IoBuf::zeroed(1, 1), Durability::Cached)).1,
            now(reader.write_zeroes(0..1)),
            now(reader.discard(0..1)),
            now(reader.set_len(0)),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(error.to_string(), "the file was opened read-only");
        }
        now(reader.flush()).unwrap();
        assert_eq!(read(&reader, 0, 3), b"abc");
    }

    /// Goal: who may have a file open beside whom. Method: every pair; the locks of this process' own open files
    /// conflict with one another just as those of other processes do.
    #[test]
    fn readers_share_and_writers_do_not() {
        use Access::{ReadOnly, ReadWrite};
        let (_directory, storage) = fresh();
        let path = storage.path().to_path_buf();
        drop(storage);
        for (first, second, expected) in [
            (ReadOnly, ReadOnly, None),
            (ReadOnly, ReadWrite, Some((Permission::Write, Holder::Refuses))),
            (ReadWrite, ReadOnly, Some((Permission::Write, Holder::Uses))),
            (ReadWrite, ReadWrite, Some((Permission::Write, Holder::Uses))),
        ] {
            let held = FileStorage::open(&path, first).unwrap();
            let refused = match FileStorage::open(&path, second) {
                Ok(_) => None,
                Err(FileError::Locked { permission, holder, path: named }) => {
                    assert_eq!(named, path);
                    Some((permission, holder))
                }
                Err(other) => panic!("{other}"),
            };
            assert_eq!(refused, expected, "{second:?} beside {first:?}");
            drop(held);
            FileStorage::open(&path, second).expect("the locks are gone with their holder");
        }
    }

    #[test]
    fn refusals_name_the_file_and_the_permission() {
        let (_directory, storage) = fresh();
        let path = storage.path();
        let error = FileStorage::open(path, Access::ReadOnly).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{} is in use: somebody else has it open to write", path.display())
        );
        let missing = path.with_extension("missing");
        let error = FileStorage::open(&missing, Access::ReadOnly).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot open {}: ", missing.display())), "{error}");
        let directory = path.parent().unwrap();
        let error = FileStorage::open(directory, Access::ReadOnly).unwrap_err();
        assert!(matches!(error, FileError::NotAFile { .. }), "{error}");
    }

    /// Goal: a file in use is not emptied by who wants to create it anew, and one that is not is.
    #[test]
    fn creating_over_an_existing_file() {
        let (_directory, storage) = fresh();
        let path = storage.path().to_path_buf();
        write(&storage, 0, b"precious", Durability::Cached);
        for existing in [Existing::Refuse, Existing::Replace] {
            assert!(FileStorage::create(&path, existing).is_err());
            assert_eq!(read(&storage, 0, 8), b"precious");
        }
        drop(storage);
        assert!(FileStorage::create(&path, Existing::Refuse).is_err());
        let replaced = FileStorage::create(&path, Existing::Replace).unwrap();
        assert_eq!(now(replaced.len()).unwrap(), 0);
        replaced.sync_parent().unwrap();
        drop(replaced);
        let new = path.with_extension("new");
        FileStorage::create(&new, Existing::Replace).unwrap().sync_parent().unwrap();
        std::fs::remove_file(&new).unwrap();
    }
}
