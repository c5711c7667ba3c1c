//! One broken promise, and where.

use std::fmt;

use crate::finding::{Finding, Property};
use crate::payload::Value;

/// Violations that a verdict keeps; there may be more.
pub const MAX_VIOLATIONS: usize = 64;

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub property: Property,
    /// A stable name of how it was broken, for telling one bug from another.
    pub kind: &'static str,
    /// Where.
    pub place: Place,
    /// What the unit holds or may hold, where that is what is wrong.
    pub found: Option<Value>,
    /// What it could hold.
    pub allowed: Vec<Value>,
    /// How it came to this, as far as the judge knows; lines.
    pub story: String,
}

/// Where a promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A guest unit, and the file offset that it is mapped to.
    Guest {
        /// Unit number.
        unit: u64,
        /// Offset in bytes, unless it is mapped nowhere.
        host: Option<u64>,
    },
    /// A structure of the image.
    Structure(Finding),
    /// A unit of the file.
    File {
        /// Unit number.
        unit: u64,
    },
    /// The image as a whole.
    Image,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.property, self.kind)?;
        match &self.place {
            Place::Guest { unit, host: Some(host) } => {
                write!(f, "guest unit {unit}, at {host:#x}")?;
            }
            Place::Guest { unit, host: None } => write!(f, "guest unit {unit}, not mapped")?,
            Place::Structure(finding) => write!(f, "{finding}")?,
            Place::File { unit } => write!(f, "file unit {unit}")?,
            Place::Image => write!(f, "image")?,
        }
        if let Some(found) = &self.found {
            write!(f, ": found {found}, allowed")?;
            for (index, value) in self.allowed.iter().enumerate() {
                write!(f, "{} {value}", if index == 0 { "" } else { "," })?;
            }
        }
        self.story.lines().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// A violation of the image as a whole.
pub(super) fn whole_image(property: Property, kind: &'static str, story: String) -> Violation {
    Violation { property, kind, place: Place::Image, found: None, allowed: Vec::new(), story }
}
