//! Which passphrases open an image that is encrypted with LUKS: one more, or one less.
//!
//! ```text
//!   add       key material, rounds, salt  ══ flush ══>  slot: active          ══ flush ══>  done
//!   remove    slot: disabled              ══ flush ══>  material: zeroes      ══ flush ══>  done
//! ```
//!
//! **Invariant.** At every moment each passphrase that opens the image, and is not being removed, goes on to open it; each active slot has
//! material that gives the key; and that key never changes. A passphrase that was removed gives the key no more, whatever of the header
//! somebody has kept: its material is gone.

use crate::barrier::Barrier;
use crate::claim::Claim;
use crate::claims::Resource;
use crate::crypt::{DataKey, KeySlots, Passphrase};
use crate::error::IoError;
use crate::files::File;
use crate::format::extension::Luks;
use crate::image::Image;
use crate::mutant::mutant;
use crate::order::Before;
use crate::rule::Rule;
use crate::unlock::{open_slot, read, read_slots};
use storage::{Durability, IoBuf, Storage};

impl<S: Storage> Image<S> {
    /// Lets a further passphrase open the image, after so many rounds of hashing, with what `random` gives (of both
    /// [`Encryption::luks`](crate::Encryption::luks) says more). `known` is one that opens it. Returns the key slot of the new one, 0 to 7.
    /// Durable when it returns; until then it opens the image or does not. Takes as long as opening the image, twice.
    ///
    /// # Errors
    /// [`IoError::Passphrase`] if the image is not encrypted with LUKS, if `known` does not open it, or if each of its eight key slots has a
    /// passphrase; else as [`Image::flush`].
    pub async fn add_passphrase(
        &self,
        known: &Passphrase,
        added: &Passphrase,
        rounds: u32,
        random: &mut (dyn FnMut(&mut [u8]) + Send),
    ) -> Result<usize, IoError> {
        let mut change = self.begin_key_change(known).await?;
        let header = change.slots.header();
        let is_free = |&slot: &usize| mutant!(self.options.rules, AddedOverAnother => slot == 1; !header.slots[slot].active);
        let free = (0..header.slots.len()).find(is_free);
        let slot =
            free.ok_or_else(|| IoError::Passphrase("each of its eight key slots has one".into()))?;
        let material = change.slots.put(slot, &change.key, added.bytes(), rounds, random);
        let at = change.slots.header().material(slot).start;
        change.write(at, &material).await?;
        change.write_header().await?;
        change.ensure(Rule::KeyMaterialFirst, Barrier::KeyMaterial).await?;
        change.slots.set_active(slot, true);
        change.write_header().await?;
        change.ensure(Rule::DurableBeforeAcknowledge, Barrier::KeyChange).await?;
        Ok(slot)
    }

    /// Lets a passphrase open the image no more. `kept` is another one, which goes on to open it. Returns how many key slots the removed one
    /// had: 0 if it opened none. Durable when it returns, and the key material is overwritten then; until then it opens the image or does
    /// not. To change a passphrase, [add](Image::add_passphrase) the new one, then remove the old one.
    ///
    /// Overwriting reaches what the storage keeps at that place. Copies that a file system or a device made, such as snapshots or blocks
    /// that it wrote elsewhere, are beyond this.
    ///
    /// # Errors
    /// [`IoError::Passphrase`] if the image is not encrypted with LUKS, if `kept` does not open it, or is the one to be removed; else as
    /// [`Image::flush`].
    pub async fn remove_passphrase(
        &self,
        kept: &Passphrase,
        removed: &Passphrase,
    ) -> Result<usize, IoError> {
        if kept.bytes() == removed.bytes() {
            return Err(IoError::Passphrase("the one to be removed is the one to be kept".into()));
        }
        let mut change = self.begin_key_change(kept).await?;
        let mut count = 0;
        while let Some(slot) = change.slot_of(removed).await? {
            change.slots.set_active(slot, false);
            change.write_header().await?;
            change.ensure(Rule::SlotBeforeKeyMaterial, Barrier::KeySlotOff).await?;
            let material = change.slots.header().material(slot);
            let zeroes =
                vec![0; usize::try_from(material.end - material.start).expect("it is small")];
            mutant!(self.options.rules, KeyMaterialKept => (); {
                change.write(material.start, &zeroes).await?;
            });
            count += 1;
            mutant!(self.options.rules, OneSlotRemoved => break; ());
        }
        change.ensure(Rule::DurableBeforeAcknowledge, Barrier::KeyChange).await?;
        Ok(count)
    }

    /// Keeps other changes of the key slots out, and reads them. What they are is durable then.
    async fn begin_key_change(&self, known: &Passphrase) -> Result<KeyChange<'_, S>, IoError> {
        self.begin_change().await?;
        let luks = self.now(|state| state.header.luks())?;
        let luks =
            luks.ok_or_else(|| IoError::Passphrase("it is not encrypted with LUKS".into()))?;
        let claim = self.claim_if(Resource::Keys, |state| state.accepts_requests()).await?;
        let storage = &self.files.image;
        let slots = read_slots(storage, luks).await?;
        let (_, key) = open_slot(storage, luks, &slots, known)
            .await?
            .ok_or_else(|| IoError::Passphrase("the one that is known does not open it".into()))?;
        // A change that was dropped, or that failed, may have turned a slot off that is free now.
        mutant!(self.options.rules, SlotOffNotAwaited => (); {
            self.with(|state| state.clock.stamp(File::Image)).await;
        });
        let change = KeyChange { image: self, claim, luks, slots, key };
        change.ensure(Rule::SlotBeforeKeyMaterial, Barrier::KeySlotsRead).await?;
        Ok(change)
    }
}

/// A change of the key slots: what they are to be, and the claim under which that is written.
struct KeyChange<'a, S: Storage> {
    image: &'a Image<S>,
    claim: Claim<'a, S>,
    luks: Luks,
    slots: KeySlots,
    key: DataKey,
}

impl<S: Storage> KeyChange<'_, S> {
    async fn slot_of(&self, passphrase: &Passphrase) -> Result<Option<usize>, IoError> {
        let opened = open_slot(&self.image.files.image, self.luks, &self.slots, passphrase).await?;
        Ok(opened.map(|(slot, _)| slot))
    }

    /// Waits until what was written so far is durable, if the rule asks for it.
    async fn ensure(&self, rule: Rule, barrier: Barrier) -> Result<(), IoError> {
        let written = self.image.now(|state| state.clock.newest(File::Image));
        self.image.ensure(rule, barrier, &[Before::Written(written)]).await
    }

    async fn write_header(&mut self) -> Result<(), IoError> {
        let bytes = self.slots.header().encode();
        self.write(0, &bytes).await
    }

    /// Writes bytes of the encryption header: whole sectors, of which what is beside them stays.
    async fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), IoError> {
        let limits = self.image.limits;
        let sector = limits.sector() as u64;
        let offset = self.luks.offset + at;
        let first = offset / sector * sector;
        let end = (offset + bytes.len() as u64).next_multiple_of(sector);
        let mut whole = read(&self.image.files.image, first..end).await?;
        let within = usize::try_from(offset - first).expect("less than a sector");
        whole[within..within + bytes.len()].copy_from_slice(bytes);
        let places = (first..).step_by(limits.max_transfer);
        for (offset, piece) in places.zip(whole.chunks(limits.max_transfer)) {
            let buf = IoBuf::copy_of(piece, limits.alignment);
            let (_, written) = self.claim.write(offset, buf, Durability::Cached).await;
            let action = "writing the encryption header";
            written.map_err(|source| IoError::Storage { action, offset, source })?;
        }
        self.image.with(|state| state.clock.stamp(File::Image)).await;
        Ok(())
    }
}
