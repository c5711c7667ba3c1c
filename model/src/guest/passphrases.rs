//! Which further passphrases open an image, and under which somebody may still read the key.
//!
//! ```text
//!   Gone --addition begins--> Perhaps --completes--> Surely --removal begins--> Perhaps --completes--> Gone
//!
//!   one fails, is dropped, is cut short or runs beside another:     Perhaps, and something may be kept from here on
//!     an addition completes, or recovery is seen to have left it open       Surely
//!     a removal completes, or recovery is seen to have left it shut         Shut, and not Gone
//! ```
//!
//! The invariant: whatever was begun and is not known to be undone stays possible. Whether a passphrase opens is a cell like any other, which
//! settles when an operation completes. What an operation in doubt left in a slot may lie there whatever opens now: nobody has to look for it,
//! so a later removal need not take it along.

use super::cell::{Cell, Token};
use super::history::Answer;
use crate::mistake::Mistake;
use crate::op::PASSPHRASES;

const COUNT: usize = PASSPHRASES as usize;

/// For each further passphrase, number 1 first: whether it opens an image, where that is decided.
pub type Openings = [Option<bool>; COUNT];

/// What somebody may do with a passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// It opens the image.
    Surely,
    /// It opens the image or does not.
    Perhaps,
    /// It does not open the image, but what a slot that is not in use keeps may give the key for it.
    Shut,
    /// It does not open the image, and nothing gives the key for it.
    Gone,
}

/// All further passphrases of one image. At first all are gone.
#[derive(Clone, Debug)]
pub(super) struct Passphrases([Passphrase; COUNT]);

#[derive(Clone, Debug)]
struct Passphrase {
    opens: Cell<bool>,
    /// Whether something that is not in use may be kept under it.
    kept: bool,
}

/// An operation on a passphrase in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) id: u32,
    /// What it does: the passphrase opens the image, or does not.
    pub(super) opens: bool,
}

impl Default for Passphrases {
    fn default() -> Self {
        let gone = || Passphrase { opens: Cell::One(false), kept: false };
        Self(std::array::from_fn(|_| gone()))
    }
}

impl Passphrases {
    /// What is to be said of this one. Of a number that there is not: it is gone.
    pub(super) fn get(&self, id: u32) -> Opens {
        let known = index(id).and_then(|at| self.0.get(at));
        known.map_or(Opens::Gone, Passphrase::opening)
    }

    pub(super) fn begin(&mut self, change: Change, token: Token) {
        if let Some(passphrase) = self.at(change.id) {
            passphrase.opens.begin(change.opens, token);
        }
    }

    pub(super) fn answer(
        &mut self,
        change: Change,
        token: Token,
        now: Token,
        answer: Answer,
        mistake: Mistake,
    ) {
        let Some(passphrase) = self.at(change.id) else { return };
        let settles = answer == Answer::Completed && mistake.settles_passphrase(change.opens);
        passphrase.opens.answer(token, now, settles);
        if settles {
            passphrase.opens.settle(|entry| entry.begin == token);
        }
        // What runs beside a removal may have been put where that had looked already.
        let took_all = change.opens || passphrase.opens.is_decided();
        if answer != Answer::Completed || !took_all {
            passphrase.leave(mistake);
        }
    }

    pub(super) fn crash(&mut self, forget_in_flight: bool, mistake: Mistake) {
        for passphrase in &mut self.0 {
            if !passphrase.opens.is_decided() {
                passphrase.leave(mistake);
            }
            passphrase.opens.crash(forget_in_flight);
        }
    }

    /// Recovery left an image that opens so. What is kept beside it nobody has read.
    pub(super) fn collapse(&mut self, found: &Openings) {
        for (passphrase, found) in self.0.iter_mut().zip(found) {
            if let Some(opens) = *found {
                passphrase.opens = Cell::One(opens);
            }
        }
    }

    /// Those that are not as they were at first, each as a number that says all of it.
    pub(super) fn touched(&self) -> impl Iterator<Item = u64> {
        (1..).zip(&self.0).filter_map(|(id, passphrase)| {
            let opens = match passphrase.opens.sorted()[..] {
                [false] => 0,
                [true] => 1,
                _ => 2,
            };
            let state = opens * 2 + u64::from(passphrase.kept);
            (state != 0).then_some(id << 8 | state)
        })
    }

    fn at(&mut self, id: u32) -> Option<&mut Passphrase> {
        index(id).and_then(|at| self.0.get_mut(at))
    }
}

impl Passphrase {
    fn opening(&self) -> Opens {
        match self.opens.sorted()[..] {
            [true] => Opens::Surely,
            [false] if self.kept => Opens::Shut,
            [false] => Opens::Gone,
            _ => Opens::Perhaps,
        }
    }

    fn leave(&mut self, mistake: Mistake) {
        self.kept |= mistake != Mistake::InterruptedLeavesNothing;
    }
}

fn index(id: u32) -> Option<usize> {
    usize::try_from(id.checked_sub(1)?).ok()
}
