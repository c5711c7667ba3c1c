//! Reads and writes for check and repair.

use std::io;
use std::ops::Range;

use crate::barrier::Barrier;
use crate::error::CheckError;
use crate::mutant::mutant;
use crate::rule::{Rule, Rules};
use crate::transfer::read_whole;
use storage::{Durability, IoBuf, Limits, Storage};

/// Reads and writes for check and repair.
pub(super) struct Disk<'a, S> {
    storage: &'a S,
    pub(super) limits: Limits,
    pub(super) rules: Rules,
    unflushed: bool,
}

impl<'a, S: Storage> Disk<'a, S> {
    pub(super) fn new(storage: &'a S, rules: Rules) -> Self {
        Self { storage, limits: storage.limits(), rules, unflushed: false }
    }

    /// Reads so many bytes, and what follows them in their last sector.
    pub(super) async fn read(&self, offset: u64, len: u64) -> Result<IoBuf, CheckError> {
        let len = usize::try_from(len).expect("limited by the format");
        let len = len.next_multiple_of(self.limits.sector());
        self.read_into(offset, IoBuf::zeroed(len, self.limits.alignment)).await
    }

    pub(super) async fn read_into(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, CheckError> {
        let (buf, read) = read_whole(self.storage, offset, buf).await;
        let action = "reading a table";
        read.map_err(|(offset, source)| CheckError::Storage { action, offset, source })?;
        Ok(buf)
    }

    pub(super) async fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), CheckError> {
        self.unflushed = true;
        let mut at = offset;
        for chunk in bytes.chunks(self.limits.max_transfer) {
            let buf = IoBuf::copy_of(chunk, self.limits.alignment);
            let (_, result) = self.storage.write(at, buf, Durability::Cached).await;
            let action = "writing a repaired table";
            result.map_err(|source| CheckError::Storage { action, offset: at, source })?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Zeroes a range.
    pub(super) async fn write_zeroes(&mut self, range: Range<u64>) -> Result<(), CheckError> {
        self.unflushed = true;
        let offset = range.start;
        let action = "zeroing a repaired table";
        let zeroed = self.storage.write_zeroes(range).await;
        zeroed.map_err(|source| CheckError::Storage { action, offset, source })
    }

    /// Writes those sectors of `new` that differ from `old`.
    pub(super) async fn write_changes(
        &mut self,
        offset: u64,
        old: &[u8],
        new: &[u8],
    ) -> Result<(), CheckError> {
        let mut at = offset;
        let sector = self.limits.sector();
        for (old, new) in old.chunks(sector).zip(new.chunks(sector)) {
            if old != new {
                self.write(at, new).await?;
                mutant!(self.rules, OnlyFirstUnitCorrected => break; ());
            }
            at += sector as u64;
        }
        Ok(())
    }

    /// Waits until everything written is durable, if `rule` asks for it.
    pub(super) async fn ensure(&mut self, rule: Rule, barrier: Barrier) -> Result<(), CheckError> {
        if self.unflushed && self.rules.hold(rule) {
            if !self.rules.skips(barrier) {
                let action = "flushing a repair";
                let result = self.storage.flush().await;
                result.map_err(|source| CheckError::Storage { action, offset: 0, source })?;
            }
            self.unflushed = false;
        }
        Ok(())
    }

    /// Takes what others have written for not durable.
    pub(super) const fn assume_unflushed(&mut self) {
        self.unflushed = true;
    }

    /// Changes the length of the file.
    pub(super) async fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.unflushed = true;
        self.storage.set_len(len).await
    }

    /// Waits until nothing that failed can land any more.
    pub(super) async fn settle(&self) -> Result<(), CheckError> {
        let action = "waiting for what failed";
        let settled = self.storage.settle().await;
        settled.map_err(|source| CheckError::Storage { action, offset: 0, source })
    }
}
