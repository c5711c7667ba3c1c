//! The extension area of the header.

use std::ops::Range;

use super::bytes::{UNIT_BYTES, be32, to_usize};
use super::header::{AUTOCLEAR_BITMAPS, Header};
use crate::evidence::Readable;
use crate::finding::Finding;
use crate::op::Encryption;

/// Type of the header extension that leads to bitmaps.
pub const EXTENSION_BITMAPS: u32 = 0x2385_2875;
/// Bytes of its data.
pub const BITMAPS_BYTES: u32 = 24;
/// Type of the header extension that says of what format the layer below is.
pub const EXTENSION_LAYER_FORMAT: u32 = 0xe279_2aca;
/// Type of the header extension that names the data file.
pub const EXTENSION_DATA_NAME: u32 = 0x4441_5441;
/// Type of the header extension that leads to the LUKS header.
pub const EXTENSION_LUKS: u32 = 0x0537_be77;
/// Bytes of its data: offset and length.
pub const LUKS_POINTER_BYTES: u32 = 16;

/// Type of the header extension that names features, which every writer may say anew.
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;

/// Where the data of the extensions is, of those that the judge knows and of the others.
#[derive(Clone, Debug, Default)]
pub(super) struct Extensions {
    pub(super) bitmaps: Option<u64>,
    pub(super) layer_format: Option<Range<u64>>,
    pub(super) data_name: Option<Range<u64>>,
    pub(super) luks: Option<u64>,
    /// Type and place of those that it does not know.
    pub(super) foreign: Vec<(u32, Range<u64>)>,
}

/// The extension area: type, length, data padded to 8 bytes, until type 0 or the backing file's name.
pub(super) fn find_extensions<E: Readable>(
    evidence: &mut E,
    header: &Header,
    findings: &mut Vec<Finding>,
) -> Extensions {
    let mut found = Extensions::default();
    let end = match header.backing_file_offset {
        0 => header.cluster_size(),
        name => name.min(header.cluster_size()),
    };
    let mut at = u64::from(header.header_length);
    while at.saturating_add(8) <= end {
        let key = evidence.resolve(at.checked_div(UNIT_BYTES).unwrap_or(0));
        let within = to_usize(at % UNIT_BYTES);
        let bytes = evidence.bytes(key);
        let (kind, length) = (be32(bytes, within), be32(bytes, within.saturating_add(4)));
        if kind == 0 {
            break;
        }
        let data = at.saturating_add(8);
        let next = data.saturating_add(u64::from(length).next_multiple_of(8));
        if next > end {
            let (field, why) = ("extension length", "reaches past the extension area");
            findings.push(Finding::Header { field, offset: at, value: length.into(), why });
            break;
        }
        match kind {
            // Without the bit nobody vouches for what the extension says.
            EXTENSION_BITMAPS if header.autoclear_features & AUTOCLEAR_BITMAPS == 0 => {}
            EXTENSION_BITMAPS if length == BITMAPS_BYTES => found.bitmaps = Some(data),
            EXTENSION_BITMAPS => {
                let (field, why) = ("bitmaps extension length", "is not 24");
                findings.push(Finding::Header { field, offset: at, value: length.into(), why });
            }
            EXTENSION_LAYER_FORMAT => {
                found.layer_format = Some(data..data.saturating_add(length.into()));
            }
            EXTENSION_DATA_NAME => {
                found.data_name = Some(data..data.saturating_add(length.into()));
            }
            // "The full disk encryption header must be present if, and only if, the 'crypt_method' header requires metadata."
            EXTENSION_LUKS if header.encryption() != Some(Encryption::Luks) => {
                let (field, value) = ("encryption header extension", header.crypt_method.into());
                let why = "is a crypt_method that has none";
                findings.push(Finding::Header { field, offset: at, value, why });
            }
            EXTENSION_LUKS if length == LUKS_POINTER_BYTES => found.luks = Some(data),
            EXTENSION_LUKS => {
                let (field, why) = ("encryption header extension length", "is not 16");
                findings.push(Finding::Header { field, offset: at, value: length.into(), why });
            }
            EXTENSION_FEATURE_NAMES => {}
            _ => found.foreign.push((kind, data..data.saturating_add(length.into()))),
        }
        at = next;
    }
    found
}
