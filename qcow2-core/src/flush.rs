//! The guest's flush, and a clean close.
//!
//! A flush writes every dirty page that it finds when it starts, in whatever order their edges allow, with as few storage
//! flushes as those edges leave: all pages that may go now, one flush, all pages that may go then, and so on. While the
//! dirty bit is durable, refcount structures stay behind.

use crate::barrier::Barrier;
use crate::cache::Need;
use crate::claims::Resource;
use crate::error::IoError;
use crate::format::feature::Incompatible;
use crate::image::Image;
use crate::order::Before;
use crate::rule::Rule;
use crate::state::State;
use crate::storage::Storage;

impl State {
    /// The next thing to do for pages that have to reach these versions: write one that may go now, else flush.
    fn next_for(&self, targets: &mut Vec<(u64, u64)>) -> Need {
        targets.retain(|&(page, version)| {
            let before = Before::Page { offset: page, version };
            matches!(self.cache.need(before, &self.clock), Need::Write(_))
        });
        let mut flush = Need::Nothing;
        for &(page, _) in targets.iter() {
            match self.cache.next_step(page, &self.clock) {
                Need::Flush(stamp) => flush = Need::Flush(stamp),
                step => return step,
            }
        }
        flush
    }
}

impl<S: Storage> Image<S> {
    /// Makes every request that has completed durable.
    ///
    /// # Errors
    /// [`IoError::Poisoned`] or the storage's own. After a failed flush the image takes no more changes: what it covered may be
    /// lost, and no later flush can tell.
    pub async fn flush(&self) -> Result<(), IoError> {
        if !self.options.writable {
            return Ok(());
        }
        self.restore_header().await?;
        self.write_pages(false).await?;
        let newest = self.with(|state| state.clock.newest()).await;
        self.ensure(
            Rule::DurableBeforeAcknowledge,
            Barrier::GuestFlush,
            &[Before::Written(newest)],
        )
        .await?;
        self.with(|state| state.accepts_changes()).await?;
        if self.now(|state| state.reap_due) {
            self.reap().await?;
        }
        Ok(())
    }

    /// Writes the dirty pages of this moment; those of refcount structures if references need them, or if `all`.
    async fn write_pages(&self, all: bool) -> Result<(), IoError> {
        let mut targets = self.with(|state| state.cache.dirty(all || state.counted())).await;
        loop {
            match self.with(|state| state.next_for(&mut targets)).await {
                Need::Nothing => return Ok(()),
                Need::Write(page) => self.write_page(page).await?,
                Need::Flush(stamp) => self.flush_storage(Barrier::PagesInOrder, stamp).await?,
            }
        }
    }

    /// Writes everything, refcounts included, and marks the image clean. Returns the storage.
    ///
    /// # Errors
    /// As [`Image::flush`]; the image is then as after a crash, and is repaired, if need be, at the next open.
    pub async fn close(self) -> Result<S, IoError> {
        if !self.options.writable {
            return Ok(self.storage);
        }
        self.settle().await?;
        self.with(|state| state.accepts_changes()).await?;
        loop {
            self.restore_header().await?;
            self.write_pages(true).await?;
            if self.with(|state| !state.has_freed()).await {
                break;
            }
            let newest = self.with(|state| state.clock.newest()).await;
            self.flush_storage(Barrier::CloseFreed, newest).await?;
            self.reap().await?;
        }
        let newest = self.with(|state| state.clock.newest()).await;
        self.ensure(Rule::AllBeforeClean, Barrier::CloseBeforeClean, &[Before::Written(newest)])
            .await?;
        if self.now(|state| state.marked_dirty()) {
            let mut claim = self.claim(Resource::Header).await?;
            self.write_header(
                &mut claim,
                |header| header.incompatible.remove(Incompatible::DIRTY),
                |_, _| {},
            )
            .await?;
        }
        let newest = self.with(|state| state.clock.newest()).await;
        self.ensure(Rule::DurableBeforeAcknowledge, Barrier::Close, &[Before::Written(newest)])
            .await?;
        self.with(|state| state.accepts_changes()).await?;
        Ok(self.storage)
    }
}
