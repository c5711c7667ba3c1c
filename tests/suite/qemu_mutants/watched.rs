//! Memory under an image, watched.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf, Limits, Storage};

/// No call may need more storage operations than this.
const OPERATIONS: u64 = 200_000;
/// No image may come by more scheduling points than this: whoever does goes round in circles.
const PAUSES: u64 = 4_000_000;
/// What there is no room for past this many bytes.
const ROOM: u64 = 64 << 20;
/// What the guest writes.
pub(super) const PATTERN: &[u8; 8] = b"Mutant!\n";

/// Memory with an end, that counts what is asked of it and sees where the guest's pattern goes.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched {
    memory: MemoryStorage,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    operations: u64,
    pauses: u64,
    /// Whether bytes were cut off at the end.
    shortened: bool,
    /// Host offsets of units that begin with the pattern.
    pattern: BTreeSet<u64>,
}

impl Watched {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self { memory: MemoryStorage::new(bytes.to_vec()), ..Self::default() }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.memory.to_vec()
    }

    pub(super) fn ran_on(&self) -> bool {
        self.seen.lock().unwrap().operations > OPERATIONS
    }

    /// Whether bytes were cut off at the end of the file.
    pub(super) fn was_shortened(&self) -> bool {
        self.seen.lock().unwrap().shortened
    }

    /// Whether the pattern was written somewhere in a range of host offsets.
    pub(super) fn was_written(&self, range: Range<u64>) -> bool {
        self.seen.lock().unwrap().pattern.range(range).next().is_some()
    }

    fn step(&self, end: u64) -> io::Result<()> {
        let mut seen = self.seen.lock().unwrap();
        seen.operations += 1;
        if seen.operations > OPERATIONS {
            return Err(io::Error::other("too many operations"));
        }
        if end > ROOM { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl Storage for Watched {
    fn limits(&self) -> Limits {
        self.memory.limits()
    }

    async fn len(&self) -> io::Result<u64> {
        self.step(0)?;
        self.memory.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.step(len)?;
        let shorter = len < self.memory.len().await?;
        self.seen.lock().unwrap().shortened |= shorter;
        self.memory.set_len(len).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        match self.step(0) {
            Ok(()) => self.memory.read(offset, buf).await,
            Err(error) => (buf, Err(error)),
        }
    }

    async fn write(&self, offset: u64, buf: IoBuf, how: Durability) -> (IoBuf, io::Result<()>) {
        if let Err(error) = self.step(offset.saturating_add(buf.len() as u64)) {
            return (buf, Err(error));
        }
        let units = (offset..).step_by(512).zip(buf.chunks(512));
        let pattern = units.filter(|(_, unit)| unit.starts_with(PATTERN)).map(|(at, _)| at);
        self.seen.lock().unwrap().pattern.extend(pattern);
        self.memory.write(offset, buf, how).await
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.step(range.end)?;
        self.memory.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.step(0)?;
        self.memory.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.step(0)
    }

    async fn settle(&self) -> io::Result<()> {
        self.step(0)
    }

    async fn pause(&self) {
        let pauses = {
            let mut seen = self.seen.lock().unwrap();
            seen.pauses += 1;
            seen.pauses
        };
        assert!(pauses <= PAUSES, "it goes round in circles");
    }
}
