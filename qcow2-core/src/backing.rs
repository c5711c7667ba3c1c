//! What an image says about the layer below it.

use std::fmt;

/// What an image says about the layer below it.
#[derive(Clone, PartialEq, Eq)]
pub struct Backing {
    /// The name, as its bytes are in the header: not terminated, at most 1,023 of them.
    pub name: Vec<u8>,
    /// The name of its format, if the image says it, at most 15 bytes. Whoever guesses instead lets the guest of a raw layer choose what is
    /// opened next: it may have written the header of an image.
    pub format: Option<Vec<u8>>,
}

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Its bytes are the guest's.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

impl Format {
    /// The name by which images know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        write!(f, "{:?}", text(&self.name))?;
        match &self.format {
            Some(format) => write!(f, " of format {:?}", text(format)),
            None => Ok(()),
        }
    }
}

impl Backing {
    /// A layer of that name and format.
    pub fn new(name: impl Into<Vec<u8>>, format: Format) -> Self {
        Self { name: name.into(), format: Some(format.name().into()) }
    }
}
