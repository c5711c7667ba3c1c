//! What no careful writer can survive: a medium that holds what nobody put there.
//!
//! Invariant: damage strikes only where [`Robustness`] says, only between a crash and what runs next, and only through
//! this module: the sets that [`PossibleDisk::crash`] leaves are the guaranteed domain, and contain none of it. Each place
//! is offered to the chooser as [`Choice::Damage`], of which option 0 is a sound unit; all zeroes is thus no damage.
//!
//! | profile | which units | what becomes of one |
//! | --- | --- | --- |
//! | `trash` | those that the crash left undecided | all ones, noise, or half of one value and half of another |
//! | `bit-rot` | all of the files | its value with one bit flipped |
//! | `misdirected` | those that the crash left undecided | its newest value lies in any unit; its own stays undecided, so the write landed there as well or instead |

use storage::UNIT;

use super::PossibleDisk;
use super::record::Base;
use crate::chooser::{Choice, Chooser, ask};
use crate::defect::Defect;
use crate::profile::Robustness;
use crate::values::Key;

impl PossibleDisk {
    /// Damages what a crash has left. Returns the units that hold what was never written there, ascending.
    pub fn damage<C: Chooser + ?Sized>(&mut self, how: Robustness, chooser: &mut C) -> Vec<u32> {
        // The files at their longest, one behind the other: how many units, and which of the disk each is.
        let ends: Vec<u32> = self.files().iter().map(|&f| self.possible_lengths_of(f)[0]).collect();
        let (first, len, second) = (ends[0], ends.iter().sum(), self.second());
        let unit_at = |n: u32| match second {
            Some(start) if n >= first => start + (n - first),
            _ => n,
        };
        let units: Vec<u32> = match how {
            Robustness::BitRot => (0..len).map(unit_at).collect(),
            Robustness::Trash if self.has(Defect::TrashStrikesAll) => {
                (0..len).map(unit_at).collect()
            }
            Robustness::Trash | Robustness::Misdirected => self.undecided(),
        };
        let mut struck = Vec::new();
        for unit in units {
            let kinds = match how {
                Robustness::Trash => 4,
                Robustness::BitRot | Robustness::Misdirected => 2,
            };
            let kind = ask(chooser, kinds, Choice::Damage { unit });
            if kind == 0 {
                continue;
            }
            match how {
                Robustness::Trash => self.trash(unit, kind),
                Robustness::BitRot if !self.rot(unit, chooser) => continue,
                Robustness::BitRot => {}
                Robustness::Misdirected => {
                    let what = Choice::Misdirected { unit, len };
                    let to = unit_at(ask(chooser, len as usize, what) as u32);
                    let to = if self.has(Defect::MisdirectedStaysHome) { unit } else { to };
                    let mut keys = Vec::new();
                    self.peek(unit, &mut keys);
                    self.put(to, keys[0]);
                    struck.push(to);
                    continue;
                }
            }
            struck.push(unit);
        }
        struck.sort_unstable();
        struck.dedup();
        struck
    }

    fn trash(&mut self, unit: u32, kind: usize) {
        let mut keys = Vec::new();
        self.peek(unit, &mut keys);
        let mut bytes = [0xff; UNIT];
        match kind {
            1 => {}
            2 => {
                // Noise that is a function of the place, so that a run repeats.
                let mut state = u64::from(unit);
                for byte in &mut bytes {
                    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    *byte =
                        ((state ^ (state >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8;
                }
            }
            _ => {
                let (newest, oldest) = (keys[0], keys[keys.len() - 1]);
                bytes = *self.values.bytes(newest);
                bytes[UNIT / 2..].copy_from_slice(&self.values.bytes(oldest)[UNIT / 2..]);
            }
        }
        let key = self.values.intern(&bytes);
        self.put(unit, key);
    }

    /// Lets a bit of a unit rot, if it is still there: reading it may decide that its file ends before.
    fn rot<C: Chooser + ?Sized>(&mut self, unit: u32, chooser: &mut C) -> bool {
        let key = self.read(unit, chooser);
        let file = self.file_of(unit);
        let start = if file.is_first() { 0 } else { self.second().unwrap_or(0) };
        if unit - start >= self.possible_lengths_of(file)[0] {
            return false;
        }
        let mut bytes = *self.values.bytes(key);
        let bit = ask(chooser, UNIT * 8, Choice::Bit { unit });
        let flipped = if self.has(Defect::RotFlipsTwo) { 0b11 } else { 0b1 };
        bytes[bit / 8] ^= flipped << (bit % 8);
        let key = self.values.intern(&bytes);
        self.put(unit, key);
        true
    }

    /// Decides what is on the medium of a unit, whatever was possible there.
    fn put(&mut self, unit: u32, key: Key) {
        self.reserve(unit + 1);
        match self.slot_at(unit) {
            None => self.set_cell(unit, key.0),
            Some(slot) => {
                self.retain(slot, |_, _| false);
                self.slots[slot].base = Base::one(key);
                self.simplify(slot);
            }
        }
        self.log.changed(unit, 1);
    }
}
