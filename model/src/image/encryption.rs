//! Where the LUKS header is, which keeps the key of guest data.
//!
//! ```text
//!   encryption header extension, if and only if crypt_method is 2
//!     | offset 8, where a cluster begins . length 8
//!     v
//!   LUKS header      clusters that follow each other, each with one reference; what is in them is the guest's, as data is
//! ```

use super::bytes::number;
use super::entry::is_cluster;
use super::header::Header;
use super::reader::Image;
use crate::evidence::Readable;
use crate::finding::Finding;
use crate::label::Region;
use crate::mistake::Mistake;
use crate::op::Encryption;

impl Image {
    /// Counts the clusters of the LUKS header that the extension at this offset leads to.
    pub(super) fn read_encryption<E: Readable>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        extension: Option<u64>,
        findings: &mut Vec<Finding>,
    ) {
        let mut fault = |field, offset, value, why| {
            findings.push(Finding::Header { field, offset, value, why });
        };
        let Some(extension) = extension else {
            if header.encryption() == Some(Encryption::Luks) {
                let value = header.crypt_method.into();
                fault("crypt_method", 32, value, "has no encryption header extension");
            }
            return;
        };
        let (offset_at, length_at) = (extension, extension.saturating_add(8));
        let (offset, length) = (number(evidence, offset_at, 8), number(evidence, length_at, 8));
        if offset == 0 {
            fault("encryption header offset", offset_at, offset, "is the header's");
        }
        if length == 0 {
            fault("encryption header length", length_at, length, "leaves no encryption header");
            return;
        }
        let at = Region::EncryptionHeader;
        if is_cluster(at, offset, 0, offset, header, findings) {
            self.luks = Some(offset..offset.saturating_add(length));
            if self.mistake != Mistake::EncryptionHeaderUncounted {
                self.claim(at, offset, length, 0, findings);
            }
        }
    }
}
