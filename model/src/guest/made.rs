//! What the image was made as, and has to stay through every session and every repair: what the guest's disk says nothing of.
//!
//! | part | who may change it |
//! |---|---|
//! | layer below, data file, encryption | nobody: no operation does |
//! | compatible feature bits, extensions of the header | whoever knows them; here they are some that nobody knows |

use super::lower::LowerDisk;
use crate::evidence::ValueKey;
use crate::op::{DataFile, Encryption, Geometry};
use crate::payload::Unit;

/// Type and data of a header extension.
pub type ForeignExtension = (u32, &'static [u8]);

/// What an image was made as; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Made {
    lower: LowerDisk,
    data_file: Option<DataFile>,
    encryption: Option<Encryption>,
    compatible_features: u64,
    foreign_extension: Option<ForeignExtension>,
}

impl Made {
    /// As a geometry says, with a header that has nothing unknown in it. `intern` gives the keys of what the layer below holds.
    pub fn of(geometry: &Geometry, mut intern: impl FnMut(&Unit) -> ValueKey) -> Self {
        Self {
            lower: LowerDisk::of(geometry, &mut intern),
            data_file: geometry.data_file,
            encryption: geometry.encryption,
            ..Self::default()
        }
    }

    /// The same with these compatible feature bits, and with this extension of the header.
    pub(crate) fn with_header(self, compatible: u64, foreign: Option<ForeignExtension>) -> Self {
        Self { compatible_features: compatible, foreign_extension: foreign, ..self }
    }

    /// The layer below the image.
    pub fn lower(&self) -> &LowerDisk {
        &self.lower
    }

    /// The data file of the image, if it has one.
    pub fn data_file(&self) -> Option<DataFile> {
        self.data_file
    }

    /// How the data of the image is enciphered, if it is.
    pub fn encryption(&self) -> Option<Encryption> {
        self.encryption
    }

    /// The compatible feature bits: whoever does not know one may ignore it, and has to leave it there.
    pub fn compatible_features(&self) -> u64 {
        self.compatible_features
    }

    /// The extension of a type that nobody knows, who has to leave it there as well.
    pub fn foreign_extension(&self) -> Option<ForeignExtension> {
        self.foreign_extension
    }
}
