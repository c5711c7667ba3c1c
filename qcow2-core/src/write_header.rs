//! The header of an open image, changed by one write of its first sector. All that changes is in the first 512 bytes of that,
//! so the write is whole on a storage that tears between those.
//!
//! **Invariant.** After a write that failed or was dropped the storage may hold either header: nothing that only one of them reaches is
//! written before one of them is durable.

use crate::barrier::Barrier;
use crate::claim::Claim;
use crate::claims::Resource;
use crate::error::IoError;
use crate::files::File;
use crate::format::feature::Incompatible;
use crate::format::header::Header;
use crate::image::Image;
use crate::mutant::mutant;
use crate::order::{Before, Stamp};
use crate::rule::Rule;
use crate::state::State;
use storage::{Durability, IoBuf, Storage};

impl<S: Storage> Image<S> {
    /// Writes the header with `change` in one write; the claim must be on the header. Once it is written the state
    /// follows, in one step with `then`, which gets the stamp of the write: a dropped request leaves both or neither.
    ///
    /// After a write that failed or was dropped the storage may hold either header. Whatever either of them names stays allocated
    /// until [`restore_header`](Self::restore_header) has made one of them durable.
    pub(crate) async fn write_header(
        &self,
        claim: &mut Claim<'_, S>,
        change: impl FnOnce(&mut Header),
        then: impl FnOnce(&mut State, Stamp),
    ) -> Result<Stamp, IoError> {
        self.write_first_sector(claim, |header, _| change(header), then).await
    }

    /// The same, with a change of what follows the fields in the first 512 bytes too.
    pub(crate) async fn write_first_sector(
        &self,
        claim: &mut Claim<'_, S>,
        change: impl FnOnce(&mut Header, &mut [u8]),
        then: impl FnOnce(&mut State, Stamp),
    ) -> Result<Stamp, IoError> {
        let alignment = self.limits.alignment;
        let (header, buf, known) = self
            .with(|state| {
                state.accepts_changes()?;
                let mut header = state.header.clone();
                let mut buf = IoBuf::copy_of(&state.sector, alignment);
                change(&mut header, &mut buf);
                header.patch_sector(&mut buf)?;
                mutant!(self.options.rules, HeaderForgetsExtension => buf[112..136].fill(0); ());
                let known = std::mem::replace(&mut state.header_known, false);
                Ok::<_, IoError>((header, buf, known))
            })
            .await?;
        let (buf, result) = claim.write(0, buf, Durability::Cached).await;
        self.with(|state| {
            let action = "writing the header";
            result.map_err(|source| IoError::Storage { action, offset: 0, source })?;
            state.header = header;
            state.sector.copy_from_slice(&buf);
            // One that was in doubt before stays so until it is durable.
            state.header_known = known;
            let stamp = state.clock.stamp(File::Image);
            then(state, stamp);
            Ok(stamp)
        })
        .await
    }

    /// If a dropped or failed request left the header in doubt, writes it as the state knows it and makes it durable.
    pub(crate) async fn restore_header(&self) -> Result<(), IoError> {
        if self.now(|state| state.header_known) {
            return Ok(());
        }
        let mut claim = self.claim(Resource::Header).await?;
        if self.with(|state| state.header_known).await {
            return Ok(());
        }
        let stamp = self.write_header(&mut claim, |_| {}, |_, _| {}).await?;
        self.flush_storage(Barrier::HeaderRestored, stamp).await?;
        self.with(|state| state.header_known = true).await;
        Ok(())
    }

    /// Marks the image corrupt, durably, so that nobody writes to it before it is repaired; whatever comes of that, no request
    /// changes it any more. What was written so far can be flushed. Version 2 has no such mark: who opens the image next finds the
    /// damage again.
    pub(crate) async fn mark_corrupt(&self, why: &IoError) {
        let news = self.with(|state| state.found_corrupt(why) && state.header.has_features()).await;
        if !news {
            return;
        }
        let marked = async {
            self.restore_header().await?;
            let mut claim = self.claim(Resource::Header).await?;
            let mark = |header: &mut Header| header.incompatible |= Incompatible::CORRUPT;
            let stamp = self.write_header(&mut claim, mark, |_, _| {}).await?;
            let before = [Before::Written(stamp)];
            self.ensure(Rule::CorruptBeforeError, Barrier::CorruptBit, &before).await
        };
        // The request fails with what it found, not with what came of saying so.
        let _: Result<(), IoError> = marked.await;
    }
}
