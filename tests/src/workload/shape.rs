//! The ways in which cases differ in kind, by name.

use std::fmt;
use std::str::FromStr;

/// A way in which cases differ from the plainest, other than by what they do and what fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// The image is opened to write everything through.
    WriteThrough,
    /// Metadata pages are longer than a unit.
    Pages,
    /// Lives touch more metadata pages than the cache keeps.
    Eviction,
    /// The session that recovers the image works on in it, life after life.
    Working,
    /// The device takes short transfers only, or no discards.
    Transfers,
    /// The device is longer than the image and full of what somebody else left.
    Stale,
    /// Refcounts are not 16 bits wide.
    Widths,
    /// The disk has many MiB, few of them in use, under many L2 tables, and grows by many.
    Sparse,
    /// The image is of version 2 of the format.
    Version2,
    /// Requests are long: up to the whole disk.
    Long,
    /// The disk grows again and again, and its L1 table is longer than a page.
    Growing,
    /// The device takes whole sectors of 4,096 bytes only.
    Sectors,
    /// The image is over a layer, shorter or longer than the disk.
    Layered,
    /// The disk becomes smaller, and larger again.
    Shrinking,
    /// The image has extended L2 entries.
    Subclusters,
    /// Clusters are taken ahead of what is written.
    Ahead,
    /// What is read from the layer below is copied.
    CopyOnRead,
    /// The image has compressed clusters.
    Compressed,
    /// Clusters are written compressed.
    Compressing,
    /// Guest data is in an external data file, which may be read as a raw disk.
    DataFiles,
    /// Guest data is encrypted.
    Encrypted,
    /// Passphrases of an encrypted image come and go.
    Passphrases,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::WriteThrough,
        Self::Pages,
        Self::Eviction,
        Self::Working,
        Self::Transfers,
        Self::Stale,
        Self::Widths,
        Self::Sparse,
        Self::Version2,
        Self::Long,
        Self::Growing,
        Self::Sectors,
        Self::Layered,
        Self::Shrinking,
        Self::Subclusters,
        Self::Ahead,
        Self::CopyOnRead,
        Self::Compressed,
        Self::Compressing,
        Self::DataFiles,
        Self::Encrypted,
        Self::Passphrases,
    ];

    /// The name in reports and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WriteThrough => "write-through",
            Self::Pages => "pages",
            Self::Eviction => "eviction",
            Self::Working => "working",
            Self::Transfers => "transfers",
            Self::Stale => "stale",
            Self::Widths => "widths",
            Self::Sparse => "sparse",
            Self::Version2 => "version-2",
            Self::Long => "long",
            Self::Growing => "growing",
            Self::Sectors => "sectors",
            Self::Layered => "layered",
            Self::Shrinking => "shrinking",
            Self::Subclusters => "subclusters",
            Self::Ahead => "ahead",
            Self::CopyOnRead => "copy-on-read",
            Self::Compressed => "compressed",
            Self::Compressing => "compressing",
            Self::DataFiles => "data-files",
            Self::Encrypted => "encrypted",
            Self::Passphrases => "passphrases",
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No shape has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown shape {name:?}: expected one of {}", Shape::ALL.map(Shape::name).join(", "))]
pub struct UnknownShape {
    name: String,
}

impl FromStr for Shape {
    type Err = UnknownShape;

    fn from_str(name: &str) -> Result<Self, UnknownShape> {
        let found = Self::ALL.into_iter().find(|shape| shape.name() == name);
        found.ok_or_else(|| UnknownShape { name: name.to_owned() })
    }
}
