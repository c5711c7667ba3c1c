//! What a subject says of an image, in words that can be compared with what is so.

use crate::finding::Stage;
use crate::image::Mapping;

/// What a subject says about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// It is in order, leaks aside.
    Clean,
    /// It was repaired and is in order.
    Repaired,
    /// It is damaged beyond what the subject repairs; it stays read-only.
    GaveUp,
    /// It can be written without losing more, whatever is wrong with it.
    Writable,
}

impl Statement {
    /// What the image has to be like for the claim to be true, if it claims anything.
    pub const fn stage(self) -> Option<Stage> {
        match self {
            Self::GaveUp => None,
            Self::Clean => Some(Stage::OpenedClean),
            Self::Repaired => Some(Stage::Repaired),
            Self::Writable => Some(Stage::Writable),
        }
    }
}

/// A range of the guest's disk as the subject maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the virtual disk.
    pub guest: u64,
    /// Length in bytes.
    pub length: u64,
    /// Where it begins in the file that guest data is in: the data file, if the image has one.
    pub to: Mapping,
}
