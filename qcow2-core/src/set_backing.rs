//! Changing what an image says of the layer below it.
//!
//! ```text
//!   what was copied of the layer   ══ flush ══╗
//!   new name, beside the present one   ══ flush ══>   header: place of the name, format   ══ flush ══>   done
//! ```
//!
//! **Invariant.** At every moment the header names one layer, whole: the one of before or the new one; and the new one only when all that was
//! written until then is durable, or what was copied to do without the old one would be lost with it.

use crate::backing::Backing;
use crate::barrier::Barrier;
use crate::claim::Claim;
use crate::claims::Resource;
use crate::error::IoError;
use crate::files::File;
use crate::image::Image;
use crate::order::{Before, Stamp};
use crate::rule::Rule;
use storage::{Durability, IoBuf, Storage};

impl<S: Storage> Image<S> {
    /// Lets the image say that it is over another layer, or over none. Durable when it returns, and so is all that had completed when it
    /// was called. This session goes on with the layer that
    /// it was opened over; whoever opens the image next goes by what it says then. What that layer reads as is the caller's to know: to do
    /// without a layer, [copy it](Image::copy_up) first.
    ///
    /// # Errors
    /// [`IoError::Backing`] if there is no room for the name, if that of its format is longer than 15 bytes, or if this session has no layer:
    /// what it left unwritten would show the new one; else as [`Image::flush`]. After an error the image says what it said before, or the new name.
    pub async fn set_backing(&self, backing: Option<&Backing>) -> Result<(), IoError> {
        self.begin_change().await?;
        self.now(|state| state.accepts_requests())?;
        if backing.is_some() && self.below.is_none() {
            return Err(IoError::Backing("it is open without one, and would show it".into()));
        }
        if backing.is_some() && self.now(|state| state.raw) {
            return Err(IoError::Backing("its data file is to be the disk by itself".into()));
        }
        if self.options.rules.hold(Rule::CopiedBeforeRename) {
            self.flush().await?;
        }
        self.restore_header().await?;
        let mut claim = self.claim(Resource::Header).await?;
        let said = backing.map(|it| (&it.name[..], it.format.as_deref()));
        let renamed =
            self.now(|state| state.header.rename(&state.sector, said).map_err(IoError::Backing))?;
        if let Some((offset, name)) = &renamed.beyond {
            let written = self.write_beyond(&mut claim, *offset, name).await?;
            let before = [Before::Written(written)];
            self.ensure(Rule::NameBeforeHeader, Barrier::BackingName, &before).await?;
        }
        let stamp = self
            .write_first_sector(
                &mut claim,
                |header, sector| {
                    // What else changed meanwhile did so in the fields.
                    header.backing = renamed.header.backing;
                    header.extensions = renamed.header.extensions;
                    let fields = header.header_length as usize..renamed.sector.len();
                    if let Some(from) = renamed.sector.get(fields.clone()) {
                        sector[fields].copy_from_slice(from);
                    }
                },
                |_, _| {},
            )
            .await?;
        drop(claim);
        let before = [Before::Written(stamp)];
        self.ensure(Rule::DurableBeforeAcknowledge, Barrier::BackingSwitch, &before).await
    }

    /// Writes bytes of the first cluster past its first 512.
    async fn write_beyond(
        &self,
        claim: &mut Claim<'_, S>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Stamp, IoError> {
        let sector = self.limits.sector() as u64;
        let first = offset / sector * sector;
        let end = (offset + bytes.len() as u64).next_multiple_of(sector);
        for at in (first..end).step_by(self.limits.max_transfer) {
            let len = (end - at).min(self.limits.max_transfer as u64);
            let buf = IoBuf::zeroed(len as usize, self.limits.alignment);
            let (mut buf, read) = self.files.read(at, buf).await;
            let action = "reading what is beside a name";
            read.map_err(|source| IoError::Storage { action, offset: at, source })?;
            let from = offset.max(at);
            let until = (offset + bytes.len() as u64).min(at + len);
            buf[(from - at) as usize..(until - at) as usize]
                .copy_from_slice(&bytes[(from - offset) as usize..(until - offset) as usize]);
            let (buf, written) = claim.write(at, buf, Durability::Cached).await;
            let action = "writing a name";
            written.map_err(|source| IoError::Storage { action, offset: at, source })?;
            if at == 0 {
                self.now(|state| state.sector.copy_from_slice(&buf));
            }
        }
        Ok(self.with(|state| state.clock.stamp(File::Image)).await)
    }
}
