//! What deliberate mistakes make of single steps.
//!
//! Apart from the code that they spoil, so that it can be mutated without them: a mistaken mistake is another mistake, and the
//! examinations notice that one as well.

use crate::evidence::ValueKey;
use crate::image::{ALL_ALLOCATED, ALL_ZERO};
use crate::judge::{Contents, MAX_HEADERS};
use crate::mistake::Mistake;
use crate::op::Encryption;
use crate::payload::UNIT;

impl Mistake {
    /// Whether anything is taken for allowed in a unit of a disk that had `initial` units.
    pub(crate) fn allows_anything(self, unit: u64, initial: usize) -> bool {
        self == Self::GrownSpaceUnjudged && unit >= initial as u64
    }

    /// Whether an addition or a removal of a passphrase settles whether that opens the image.
    pub(crate) fn settles_passphrase(self, opens: bool) -> bool {
        self != if opens { Self::AddNeverSettles } else { Self::RemoveNeverSettles }
    }

    /// Whether a unit of a read that begins at `first` is looked at.
    pub(crate) fn checks_read(self, unit: usize, first: usize) -> bool {
        match self {
            Self::ReadsUnchecked => false,
            Self::ReadsCheckedOnce => unit == first,
            _ => true,
        }
    }

    /// Up to where a file of `length` bytes is read.
    pub(crate) fn readable(self, length: u64) -> u64 {
        match self {
            Self::CutUnitUnread => length - length % UNIT as u64,
            _ => length,
        }
    }

    /// Up to where the L2 table is read that ends at `end`.
    pub(crate) fn readable_of_table(self, end: u64, length: u64) -> u64 {
        match self {
            Self::CutTableUnread if end > length => 0,
            _ => self.readable(length),
        }
    }

    /// The length of a data file beside an image of `image` bytes.
    pub(crate) fn length_of_data(self, data: u64, image: u64) -> u64 {
        if self == Self::DataFileAsLongAsImage { image } else { data }
    }

    /// Whether something that ends at `end` counts as past the end of the file, come what may.
    pub(crate) fn puts_out_of_range(self, end: u64, length: u64) -> bool {
        self == Self::CutClusterOutOfRange && end > length
    }

    /// Whether the refcount block of this number is not read.
    pub(crate) fn passes_over_block(self, index: u64) -> bool {
        self == Self::FirstBlockOnly && index > 0
    }

    /// A refcount and its place in a unit, misread.
    pub(crate) fn misread(self, order: u32, within: u64, count: u64) -> (u64, u64) {
        match self {
            Self::NarrowRefcountsFromAbove if order < 3 => (within ^ ((8 >> order) - 1), count),
            Self::WideRefcountsCutOff => (within, count & 0xffff),
            _ => (within, count),
        }
    }

    /// Whether an L2 table is not read, of a disk that has `of_disk` and when `read` others have been.
    pub(crate) fn passes_over_table(self, index: u64, of_disk: u64, read: usize) -> bool {
        match self {
            Self::BehindDiskUncounted => index >= of_disk,
            Self::FirstTableOnly => read > 0,
            _ => false,
        }
    }

    /// The bitmap of an extended L2 entry with this first word, misread.
    pub(crate) fn misread_bitmap(self, word: u64, bitmap: u64) -> u64 {
        match self {
            Self::LoneBitmapUnread if word == 0 => 0,
            _ => bitmap,
        }
    }

    /// What is taken for a bitmap of subclusters that was read.
    pub(crate) fn mistake_subclusters(self, bitmap: u64) -> u64 {
        let first = |bit: u32, all| if bitmap >> bit & 1 == 0 { 0 } else { all };
        match self {
            Self::SubclusterZeroesIgnored => bitmap & ALL_ALLOCATED,
            Self::SilentSubclustersAllocated => bitmap | (ALL_ALLOCATED & !(bitmap >> 32)),
            Self::FirstSubclusterForAll => first(0, ALL_ALLOCATED) | first(32, ALL_ZERO),
            _ => bitmap,
        }
    }

    /// Whether a guest cluster is not looked at, with this many in a table.
    pub(crate) fn passes_over_cluster(self, cluster: u64, in_table: u64) -> bool {
        self == Self::SecondTableUnjudged && cluster >= in_table
    }

    /// Whether the unit at `host` is not looked at, of a cluster at `offset` in a file of `length` bytes.
    pub(crate) fn passes_over_unit(self, host: u64, offset: u64, length: u64) -> bool {
        match self {
            Self::FirstUnitOnly => host > offset,
            Self::TwoUnitsOnly => host > offset + UNIT as u64,
            Self::CutDataUnjudged => host >= length,
            _ => false,
        }
    }

    /// Whether the numbers under which data is deciphered are the host's.
    pub(crate) fn numbers_by_host(self, encryption: Encryption) -> bool {
        match self {
            Self::CipherNumberOfGuest => false,
            Self::CipherNumberOfHost => true,
            _ => encryption.by_host(),
        }
    }

    /// The unit that counts as number 0 of a file of data that begins at this one.
    pub(crate) fn first_unit_of_data(self, first: u64) -> u64 {
        if self == Self::CipherNumberOfEvidence { 0 } else { first }
    }

    /// Whether a value of a unit is deciphered after so many others.
    pub(crate) fn deciphers(self, others: usize) -> bool {
        self != Self::FirstValueDeciphered || others == 0
    }

    /// Whether what was deciphered is remembered for this value, if this is the mistake that looks at keys alone.
    pub(crate) fn remembers(self, same_key: bool) -> Option<bool> {
        (self == Self::DecipheredByKey).then_some(same_key)
    }

    /// How many of the ways are looked at in which a LUKS header may read.
    pub(crate) fn headers(self) -> usize {
        if self == Self::SlotsOfOneCombination { 1 } else { MAX_HEADERS }
    }

    /// How many generations of a slot's material are tried, of so many.
    pub(crate) fn generations(self, ages: usize) -> usize {
        if self == Self::FirstGenerationOnly { ages.min(1) } else { ages }
    }

    /// What a repair is said to have added to a unit, if this is a mistake in that.
    pub(crate) fn added(
        self,
        unit: u64,
        before: &Contents,
        after: &Contents,
    ) -> Option<Option<ValueKey>> {
        let was = |key: &ValueKey| before.values(unit).any(|was| was == *key);
        let is = |key: &ValueKey| after.values(unit).any(|is| is == *key);
        Some(match self {
            Self::P3ComparesOne => after.values(unit).take(1).find(|key| !was(key)),
            Self::P3WantsTheSame => before.values(unit).find(|key| !is(key)),
            Self::P3WantsOneInCommon if after.values(unit).any(|key| was(&key)) => None,
            _ => return None,
        })
    }

    /// Whether two values are taken for the same by their keys, if this is the mistake that looks at keys.
    pub(crate) fn is_same(self, one: ValueKey, other: ValueKey) -> Option<bool> {
        (self == Self::FixedPointByKey).then_some(one == other)
    }
}
