//! The guest's flush, and a clean close.
//!
//! A flush writes every dirty page that it finds when it starts, in whatever order their edges allow, with as few storage
//! flushes as those edges leave: all pages that may go now, one flush, all pages that may go then, and so on. While the
//! dirty bit is durable, refcount structures stay behind.

use std::collections::VecDeque;

use crate::barrier::Barrier;
use crate::cache::Need;
use crate::claims::Resource;
use crate::error::IoError;
use crate::files::File;
use crate::format::feature::Incompatible;
use crate::image::Image;
use crate::mutant::mutant;
use crate::order::{Before, Stamp};
use crate::rule::Rule;
use crate::state::State;
use storage::Storage;

/// Most bytes of neighbouring pages in one write.
const RUN_BYTES: usize = 256 << 10;
/// Most pages that are looked at in one step.
const LOOKED_AT: usize = 512;

/// Dirty pages that have to reach the storage in these versions, ascending.
///
/// ```text
///   pending  ──may go now──> written            one pass: each page once
///      ^     ──waits for a flush──> waiting
///      '------------ flush ---------'
/// ```
struct Targets {
    /// Whether those of refcount structures are among them.
    all: bool,
    /// Pages from this host offset on have not been looked for.
    next: Option<u64>,
    pending: VecDeque<(u64, u64)>,
    waiting: Vec<(u64, u64)>,
    /// What makes all go that wait for one file.
    flush: Stamp,
    /// Most pages in one write.
    run: usize,
}

/// The next thing to do for them.
enum Step {
    Nothing,
    /// Look at more of them.
    GoOn,
    /// Write this page, and first what it waits for.
    Write(u64),
    /// Write this many pages that follow each other.
    Run(u64, usize),
    Flush(Stamp),
}

impl State {
    fn next_for(&mut self, targets: &mut Targets) -> Step {
        let size = self.cache.page_size();
        if targets.pending.len() < targets.run
            && let Some(from) = targets.next
        {
            let (pages, next) = self.cache.dirty(from..u64::MAX, targets.all, LOOKED_AT);
            self.work.looked_at += LOOKED_AT as u64;
            targets.pending.extend(pages);
            targets.next = next;
        }
        let mut run: Option<(u64, usize)> = None;
        for _ in 0..LOOKED_AT {
            // What is about to be written stays until it has been.
            let next = run.map_or(0, |(_, count)| count);
            let Some(&(page, version)) = targets.pending.get(next) else { break };
            self.work.looked_at += 1;
            let before = Before::Page { offset: page, version };
            let step = match self.cache.need(before, &self.clock) {
                Need::Write(_) => self.cache.next_step(page, &self.clock),
                Need::Nothing | Need::Flush(_) => Need::Nothing,
            };
            match (step, run) {
                (Need::Write(first), None) if first == page => run = Some((page, 1)),
                (Need::Write(first), Some((start, count)))
                    if first == page
                        && page == start + size * count as u64
                        && count < targets.run =>
                {
                    run = Some((start, count + 1));
                }
                (_, Some(_)) => break,
                (Need::Write(first), None) => return Step::Write(first),
                (Need::Nothing, None) => {
                    targets.pending.pop_front();
                }
                (Need::Flush(stamp), None) => {
                    targets.flush = targets.flush.max(stamp);
                    targets.waiting.extend(targets.pending.pop_front());
                }
            }
        }
        match run {
            Some((start, count)) => Step::Run(start, count),
            None if !targets.pending.is_empty() || targets.next.is_some() => Step::GoOn,
            None if targets.waiting.is_empty() => Step::Nothing,
            None => {
                targets.pending = std::mem::take(&mut targets.waiting).into();
                // Those that wait for the other file come in a turn of their own.
                Step::Flush(std::mem::replace(&mut targets.flush, Stamp::DURABLE))
            }
        }
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
        self.flush_data().await?;
        self.write_pages(false).await?;
        let newest = self.with(|state| state.clock.newest(File::Image)).await;
        self.ensure(
            Rule::DurableBeforeAcknowledge,
            Barrier::GuestFlush,
            &[Before::Written(newest)],
        )
        .await?;
        self.with(|state| state.accepts_changes()).await?;
        if self.now(|state| state.has_reapable()) {
            self.reap(u64::MAX).await?;
        }
        Ok(())
    }

    /// Makes what was written to the external data file durable: what was written in place there, nothing in the image file waits for.
    async fn flush_data(&self) -> Result<(), IoError> {
        if self.files.data.is_none() {
            return Ok(());
        }
        let newest = self.with(|state| state.clock.newest(File::Data)).await;
        let before = [Before::Written(newest)];
        self.ensure(Rule::DurableBeforeAcknowledge, Barrier::DataFile, &before).await
    }

    /// Writes the dirty pages of this moment; those of refcount structures if references need them, or if `all`.
    async fn write_pages(&self, all: bool) -> Result<(), IoError> {
        let bytes = RUN_BYTES.min(self.limits.max_transfer);
        let mut targets = self
            .with(|state| Targets {
                all: all || mutant!(state.rules, FlushLeavesRefcounts => false; state.counted()),
                next: Some(0),
                pending: VecDeque::new(),
                waiting: Vec::new(),
                flush: Stamp::DURABLE,
                run: bytes / usize::try_from(state.cache.page_size()).expect("it is small"),
            })
            .await;
        loop {
            match self.with(|state| state.next_for(&mut targets)).await {
                Step::Nothing => return Ok(()),
                Step::GoOn => {}
                Step::Write(page) => self.write_page(page).await?,
                Step::Run(first, count) => {
                    self.restore_header().await?;
                    self.write_pages_now(first, count).await?;
                }
                Step::Flush(stamp) => self.flush_storage(Barrier::PagesInOrder, stamp).await?,
            }
        }
    }

    /// Writes everything, refcounts included, and marks the image clean. Returns the storage.
    ///
    /// # Errors
    /// As [`Image::flush`]; the image is then as after a crash, and is repaired, if need be, at the next open.
    pub async fn close(self) -> Result<S, IoError> {
        let rules = self.options.rules;
        if !mutant!(rules, CloseOfReader => true; self.options.writable) {
            return Ok(self.files.image);
        }
        mutant!(rules, CloseBesideOrphans => (); self.settle().await?);
        self.with(|state| state.accepts_changes()).await?;
        loop {
            mutant!(rules, CloseLeavesHeaderInDoubt => (); self.restore_header().await?);
            self.flush_data().await?;
            self.write_pages(mutant!(rules, CloseLeavesRefcounts => false; true)).await?;
            let done = self.with(|state| state.freed.is_empty()).await;
            if mutant!(rules, CloseForgetsFreed => true; done) {
                break;
            }
            let newest = self.with(|state| state.clock.newest(File::Image)).await;
            self.flush_storage(Barrier::CloseFreed, newest).await?;
            self.reap(u64::MAX).await?;
        }
        let newest = self.with(|state| state.clock.newest(File::Image)).await;
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
        let newest = self.with(|state| state.clock.newest(File::Image)).await;
        self.ensure(Rule::DurableBeforeAcknowledge, Barrier::Close, &[Before::Written(newest)])
            .await?;
        self.with(|state| state.accepts_changes()).await?;
        Ok(self.files.image)
    }
}
