//! What kind of device this is: how far a crash may reorder, lose and tear.
//!
//! Invariant: the profiles are ordered, and what a profile may leave behind contains what the one before it may; a
//! test proves it. A finding that needs only a weak profile is the graver for it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which states a crash may leave, weakest device rules first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// The process died: all completed writes, and any of those in flight.
    Kill,
    /// The device works in order: one cut in completion order, of two files through both. A completed write-through write
    /// is never cut off, nor is a write that a flush of its file covered, so nothing that completed before it is either.
    /// Writes in flight may follow only when nothing was cut.
    Prefix,
    /// A flush is a barrier in its file from the moment it is submitted: nothing submitted after it without all that
    /// completed before it. Between two barriers, any subset.
    Epoch,
    /// A write-back cache that never tears: any subset of writes, each whole.
    Cache,
    /// Any subset of units.
    Torn,
    /// Any subset of units, and a length that lags behind.
    #[default]
    TornLength,
}

impl Profile {
    /// All of them, weakest first.
    pub const ALL: [Self; 6] =
        [Self::Kill, Self::Prefix, Self::Epoch, Self::Cache, Self::Torn, Self::TornLength];

    /// The name used in reports and case files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Prefix => "prefix",
            Self::Epoch => "epoch",
            Self::Cache => "cache",
            Self::Torn => "torn",
            Self::TornLength => "torn-length",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a device does that no promise can be kept on: beside what `torn-length` leaves, a crash damages the medium. All
/// that can be asked then is that nobody panics, that every piece of work ends, and that no damage which redundancy shows
/// is called sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Robustness {
    /// A unit that was in flight or torn may hold bytes that nobody wrote.
    Trash,
    /// A unit of the medium has a bit flipped.
    BitRot,
    /// A write landed in another unit, as well or instead.
    Misdirected,
}

impl Robustness {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Trash, Self::BitRot, Self::Misdirected];

    /// The name used in reports and case files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trash => "trash",
            Self::BitRot => "bit-rot",
            Self::Misdirected => "misdirected",
        }
    }
}

impl fmt::Display for Robustness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Robustness {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        find(&Self::ALL, Self::name, name)
    }
}

/// No profile has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown profile {0:?}: expected one of kill, prefix, epoch, cache, torn, torn-length, trash, bit-rot, misdirected"
)]
pub struct UnknownProfile(String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        find(&Self::ALL, Self::name, name)
    }
}

/// The one of `all` that is called `name`.
fn find<T: Copy>(
    all: &[T],
    name_of: fn(T) -> &'static str,
    name: &str,
) -> Result<T, UnknownProfile> {
    let found = all.iter().copied().find(|one| name_of(*one) == name);
    found.ok_or_else(|| UnknownProfile(name.to_owned()))
}

/// What a sync that failed, of a flush or of a write-through write, means for the writes that it should have covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlushFailure {
    /// They stay pending; the next good flush covers them.
    RetrySafe,
    /// They are taken for clean: no later flush covers them. They stay possible, beside what was there before, until a
    /// new write of the unit is flushed, and a read may return either.
    CleanMarked,
    /// They stay pending, and every later sync fails too.
    Sticky,
}

/// What a discarded unit holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiscardMode {
    /// What it held, or zero.
    #[default]
    Either,
    /// Zero, as if zeroes had been written.
    Zeroes,
}

#[cfg(test)]
mod tests {
    use super::{Profile, Robustness};

    #[test]
    fn names_agree_everywhere() {
        for profile in Profile::ALL {
            assert_eq!(profile.to_string().parse(), Ok(profile));
            let json = serde_json::to_string(&profile).unwrap();
            assert_eq!(json, format!("\"{profile}\""));
            assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), profile);
        }
        for profile in Robustness::ALL {
            assert_eq!(profile.to_string().parse(), Ok(profile));
            assert!(profile.name().parse::<Profile>().is_err(), "the domains are apart");
        }
        assert!(Profile::ALL.is_sorted());
        assert!("Torn".parse::<Profile>().unwrap_err().to_string().contains("torn-length"));
    }
}
