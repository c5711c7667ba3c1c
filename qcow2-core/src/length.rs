//! The length of the file: growing it by a share of itself, ahead of need where that can be.
//!
//! **Invariant.** A cluster is handed out only below the length that the storage has said. The dirty pages that refer to it wait for
//! that length ([`Rule::LengthBeforeReference`](crate::rule::Rule::LengthBeforeReference)); grown ahead of need it is durable before
//! anybody has to.

use crate::claims::Resource;
use crate::error::IoError;
use crate::files::File;
use crate::image::Image;
use crate::mutant::mutant;
use crate::order::Stamp;
use crate::state::State;
use storage::Storage;

impl State {
    /// What makes durable that the file reaches the end of so many clusters, which it does.
    pub(crate) fn reaches(&self, clusters: u64) -> Stamp {
        let durable = clusters * self.cluster_size() <= self.durable_length;
        if durable { Stamp::DURABLE } else { self.length_stamp }
    }

    /// Records a new length.
    pub(crate) fn set_length(&mut self, length: u64) {
        debug_assert!(length > self.length, "a file grows only");
        debug_assert!(self.durable_length <= self.length, "what is durable is there");
        let durable = self.clock.is_durable(self.length_stamp);
        if mutant!(self.rules, EarlierLengthTakenDurable => true; durable) {
            self.durable_length = self.length;
        }
        self.length = length;
        self.length_stamp = self.clock.stamp(File::Image);
    }

    /// By how much the file grows.
    pub(crate) fn growth(&self) -> u64 {
        self.growth.unwrap_or_else(|| (self.length / 8).clamp(4 << 20, 1 << 30))
    }

    /// Whether it is time to let the file grow, though there is room: the next flush covers it then.
    pub(crate) fn is_nearly_full(&self, end: u64) -> bool {
        let spare = self.length.saturating_sub(end * self.cluster_size());
        spare < self.growth() / 2 && !self.stays_short
    }
}

impl<S: Storage> Image<S> {
    /// Makes the file reach the end of `clusters` clusters, and some way beyond.
    pub(crate) async fn grow_file(&self, clusters: u64) -> Result<(), IoError> {
        self.restore_header().await?;
        let mut claim = self.claim(Resource::Length).await?;
        let (length, needed, size, growth) = self
            .with(|state| {
                let size = state.cluster_size();
                (state.length, clusters * size, size, state.growth())
            })
            .await;
        if needed <= length {
            return Ok(());
        }
        let generous = length.checked_add(growth);
        let generous = generous.and_then(|end| end.checked_next_multiple_of(size));
        let mut target = needed.max(generous.unwrap_or(needed));
        let mut result = claim.set_len(File::Image, target).await;
        if target > needed && result.as_ref().is_err_and(storage::is_no_space) {
            claim.settle().await?;
            target = mutant!(self.options.rules, GenerousLengthRemembered => target; needed);
            result = claim.set_len(File::Image, needed).await;
        }
        result.map_err(|source| IoError::Storage {
            action: "growing the file",
            offset: length,
            source,
        })?;
        self.with(|state| {
            state.set_length(target);
            state.stays_short = target == needed;
        })
        .await;
        Ok(())
    }

    /// Makes the file longer while there is room, if it can be.
    pub(crate) async fn grow_ahead(&self, clusters: u64) -> Result<(), IoError> {
        let mut claim = self.claim(Resource::Length).await?;
        let target = self
            .with(|state| {
                let target = state.length.checked_add(state.growth());
                let target =
                    target.and_then(|end| end.checked_next_multiple_of(state.cluster_size()));
                // One that fails is not tried again, whether or not it is heard of.
                let due = state.is_nearly_full(clusters);
                state.stays_short |= due;
                target.filter(|_| due)
            })
            .await;
        let Some(target) = target else { return Ok(()) };
        match claim.set_len(File::Image, target).await {
            Ok(()) => {
                self.with(|state| {
                    state.set_length(target);
                    state.stays_short = false;
                })
                .await;
                Ok(())
            }
            Err(_) => claim.settle().await,
        }
    }
}
