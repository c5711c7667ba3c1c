//! Where a header puts the name of another layer, so that one write of its first 512 bytes switches to it.
//!
//! ```text
//!   first 512 bytes    | fields | extensions: format of the layer .. names of features | end |        one write
//!   beyond             | the present name |    | the next name |                                      durable before it
//! ```
//!
//! **Invariant.** A new name lies where neither the extensions nor the present name reach, nor will the extensions of the header to come:
//! whatever a power cut leaves of it, the header that is there reads as it did. What is beyond the first 512 bytes of the extensions stays
//! as it is, byte for byte.

use super::extension::{self, FEATURE_NAMES};
use super::header::{BackingName, Header};
use super::{align8, limits};

/// A header that names another layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Renamed {
    /// What it says.
    pub(crate) header: Header,
    /// Its first 512 bytes.
    pub(crate) sector: Vec<u8>,
    /// What has to be on the storage before it: bytes of the first cluster, and where they begin. They lie past the first 512.
    pub(crate) beyond: Option<(u64, Vec<u8>)>,
}

impl Header {
    /// The header, whose first 512 bytes are `sector`, with another layer, or with none: its name and its format.
    ///
    /// # Errors
    /// Why it cannot be had in one write: the name is too long for where there is room, or extensions would have to move that lie across
    /// the end of the first 512 bytes. Names of features are given up rather than that.
    pub(crate) fn rename(
        &self,
        sector: &[u8],
        backing: Option<(&[u8], Option<&[u8]>)>,
    ) -> Result<Renamed, String> {
        let end = limits::HEADER_SECTOR_BYTES as usize;
        let mut header = self.clone();
        header.backing = None;
        match backing {
            Some((_, Some(format))) => {
                header.set_extension(extension::BACKING_FORMAT, format.to_vec())
            }
            _ => header.extensions.retain(|extension| extension.kind != extension::BACKING_FORMAT),
        }
        let area = |header: &Self| {
            let mut bytes = vec![0; header.header_length as usize];
            extension::encode(&header.extensions, &mut bytes).map_err(|error| error.to_string())?;
            Ok::<_, String>(bytes)
        };
        let present = area(self)?;
        let stays = |new: &[u8]| new.len() <= end || new.get(end..) == present.get(end..);
        let mut list = area(&header)?;
        while !stays(&list) {
            let names = header.extensions.iter_mut().find(|it| it.kind == FEATURE_NAMES);
            let fewer = names.and_then(|names| {
                let fewer = names.data.len().checked_sub(super::feature::NAME_ENTRY_BYTES)?;
                names.data.truncate(fewer);
                Some(())
            });
            if fewer.is_none() {
                return Err(
                    "its header extensions reach past byte 512 and would have to move".into()
                );
            }
            header.extensions.retain(|it| it.kind != FEATURE_NAMES || !it.data.is_empty());
            list = area(&header)?;
        }

        let unmarked = self.backing.as_ref().is_some_and(|it| it.offset < present.len() as u64);
        if list.len() > end && unmarked {
            return Err(
                "its header extensions reach past byte 512 and end at the present name".into()
            );
        }
        let mut first = sector.get(..end).ok_or("a header of fewer than 512 bytes")?.to_vec();
        let start = header.header_length as usize;
        let within = list.len().min(end);
        if let (Some(to), Some(from)) = (first.get_mut(start..), list.get(start..within)) {
            to.fill(0);
            if let Some(to) = to.get_mut(..from.len()) {
                to.copy_from_slice(from);
            }
        }
        let mut beyond = None;
        if let Some((name, _)) = backing {
            let offset = self.place_for(name, present.len(), list.len())?;
            header.backing = Some(BackingName { offset, name: name.to_vec() });
            match usize::try_from(offset).ok().filter(|&at| at < end) {
                Some(at) => {
                    let place = first.get_mut(at..at.saturating_add(name.len()));
                    place.ok_or("no place for its name")?.copy_from_slice(name);
                }
                None => beyond = Some((offset, name.to_vec())),
            }
        }
        header.patch_sector(&mut first).map_err(|error| error.to_string())?;
        Ok(Renamed { header, sector: first, beyond })
    }

    /// Where a name goes: past the first 512 bytes and beside the present one, or else into them.
    fn place_for(&self, name: &[u8], present: usize, list: usize) -> Result<u64, String> {
        let len = name.len() as u64;
        let most = u64::from(limits::BACKING_NAME_BYTES);
        if name.is_empty() || len > most {
            return Err(format!("a name of {len} bytes, not of 1 to {most}"));
        }
        let sector = u64::from(limits::HEADER_SECTOR_BYTES);
        let extensions = (present.max(list) as u64).max(sector);
        let mut beyond = align8(extensions);
        if let Some(BackingName { offset, name }) = &self.backing {
            let end = offset.saturating_add(name.len() as u64);
            if *offset < beyond.saturating_add(len) && beyond < end {
                beyond = align8(end);
            }
        }
        if beyond.saturating_add(len) <= self.cluster_size() {
            return Ok(beyond);
        }
        let inside = align8(list as u64);
        if inside.saturating_add(len) <= sector {
            return Ok(inside);
        }
        Err(format!(
            "no room for a name of {len} bytes beside what is in a first cluster of {} bytes",
            self.cluster_size()
        ))
    }
}
