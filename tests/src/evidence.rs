//! How the judge sees a possible disk.

use std::cell::RefCell;

use faultfs::chooser::Chooser;
use faultfs::disk::{File, PossibleDisk};
use faultfs::values::{Key, Values};
use model::evidence::{Evidence, Readable, ValueKey};
use model::payload::{UNIT, Unit};

/// A possible disk as evidence: what the auditor reads is decided by `chooser`, guest data is only looked at.
#[derive(Debug)]
pub struct DiskEvidence<'a, C> {
    disk: &'a mut PossibleDisk,
    chooser: &'a mut C,
    values: Values,
    scratch: RefCell<Vec<Key>>,
}

impl<'a, C: Chooser> DiskEvidence<'a, C> {
    /// The evidence of `disk`.
    pub fn new(disk: &'a mut PossibleDisk, chooser: &'a mut C) -> Self {
        let values = disk.values().clone();
        Self { disk, chooser, values, scratch: RefCell::new(Vec::new()) }
    }
}

/// How many units the files of a disk have, at most.
pub fn units(disk: &PossibleDisk) -> u32 {
    match disk.second() {
        None => disk.extent(),
        Some(_) => {
            let longest = |file| disk.possible_lengths_of(file).first().copied().unwrap_or(0);
            File::BOTH.into_iter().map(longest).sum()
        }
    }
}

fn unit_number(unit: u64) -> Option<u32> {
    u32::try_from(unit).ok().filter(|&unit| unit < faultfs::disk::MAX_UNITS)
}

impl<C: Chooser> Readable for DiskEvidence<'_, C> {
    fn len(&mut self) -> u64 {
        u64::from(self.disk.len(self.chooser)) * UNIT as u64
    }

    fn data_file(&self) -> Option<u64> {
        self.disk.second().map(u64::from)
    }

    fn data_len(&mut self) -> u64 {
        match self.disk.second() {
            Some(_) => u64::from(self.disk.len_of(File::Second, self.chooser)) * UNIT as u64,
            None => 0,
        }
    }

    fn resolve(&mut self, unit: u64) -> ValueKey {
        unit_number(unit)
            .map_or(ValueKey::ZERO, |unit| ValueKey(self.disk.read(unit, self.chooser).0))
    }

    fn zero_run(&self, unit: u64, most: u64) -> u64 {
        let count = u32::try_from(most).unwrap_or(u32::MAX);
        unit_number(unit).map_or(0, |unit| self.disk.zero_run(unit, count).into())
    }

    fn bytes(&self, key: ValueKey) -> &Unit {
        self.values.bytes(Key(key.0))
    }
}

impl<C: Chooser> Evidence for DiskEvidence<'_, C> {
    fn peek(&self, unit: u64, mut visit: impl FnMut(ValueKey)) {
        let Some(unit) = unit_number(unit) else { return visit(ValueKey::ZERO) };
        if let Some(key) = self.disk.single(unit) {
            return visit(ValueKey(key.0));
        }
        let mut keys = self.scratch.take();
        keys.clear();
        self.disk.peek(unit, &mut keys);
        keys.iter().for_each(|key| visit(ValueKey(key.0)));
        self.scratch.replace(keys);
    }

    fn decided(&self, unit: u64, most: u64) -> impl Iterator<Item = ValueKey> {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        // Units that no disk has are not decided.
        let unit = unit_number(unit).unwrap_or(u32::MAX);
        self.disk.single_run(unit, most).map(|key| ValueKey(key.0))
    }

    fn key_of(&self, bytes: &Unit) -> Option<ValueKey> {
        Some(ValueKey(self.values.intern(bytes).0))
    }
}
