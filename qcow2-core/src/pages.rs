//! Metadata pages on their way between the cache and the storage, and the flushes that they wait for.
//!
//! **Invariant.** A page is written when nothing that it waits for is missing; what it waits for is brought to the storage first.

use std::future::poll_fn;
use std::task::Poll;

use smallvec::SmallVec;

use crate::barrier::Barrier;
use crate::cache::{Kind, Need, Room};
use crate::claims::Resource;
use crate::error::IoError;
use crate::files::File;
use crate::image::Image;
use crate::mutant::mutant;
use crate::order::{Before, Stamp};
use crate::rule::Rule;
use crate::state::{State, Stop};
use storage::{Durability, IoBuf, Storage};

impl<S: Storage> Image<S> {
    /// Does something about why a step could not be taken.
    pub(crate) async fn provide(&self, stop: Stop, insists_on_room: bool) -> Result<(), IoError> {
        match stop {
            Stop::Load { page, kind, generation } => {
                self.make_room(insists_on_room).await?;
                self.load(page, kind, generation, insists_on_room).await
            }
            Stop::Room => self.make_room(insists_on_room).await,
            Stop::Error(error) => Err(error),
        }
    }

    /// Makes room for one more metadata page. Where it has to be there, a page that cannot be written is an error; else the cache
    /// holds a few clean pages more than its limit until it can be written again.
    async fn make_room(&self, insists: bool) -> Result<(), IoError> {
        loop {
            match self.with(|state| state.cache.make_room(&state.clock)).await {
                Room::Enough => return Ok(()),
                Room::Write(dirty) => match self.write_page(dirty).await {
                    Err(_) if !insists => return Ok(()),
                    written => written?,
                },
            }
        }
    }

    /// Reads a metadata page into the cache, unless others have filled that meanwhile.
    async fn load(
        &self,
        page: u64,
        kind: Kind,
        generation: u64,
        insists_on_room: bool,
    ) -> Result<(), IoError> {
        let _claim = self.claim(Resource::Pages(page..page + self.page_size)).await?;
        let missing =
            |state: &mut State| (!state.cache.contains(page)).then(|| state.cache.buffer());
        let Some(buf) = self.with(missing).await else { return Ok(()) };
        let (buf, result) = self.files.read(page, buf).await;
        result.map_err(|source| IoError::Storage {
            action: "reading metadata",
            offset: page,
            source,
        })?;
        self.with(|state| {
            let room = !insists_on_room || !state.cache.is_full();
            let current =
                mutant!(state.rules, StalePageLoaded => true; state.generation == generation);
            if room && current && !state.cache.contains(page) {
                state.cache.insert(page, kind, buf);
            }
        })
        .await;
        Ok(())
    }

    /// Brings the newest version of a metadata page to the storage, and first whatever it has to wait for.
    pub(crate) async fn write_page(&self, target: u64) -> Result<(), IoError> {
        self.restore_header().await?;
        let mut page = target;
        loop {
            match self.with(|state| state.cache.next_step(page, &state.clock)).await {
                Need::Nothing if page == target => return Ok(()),
                Need::Nothing => page = target,
                Need::Flush(stamp) => self.flush_storage(Barrier::PageInOrder, stamp).await?,
                Need::Write(first) if first == page => {
                    self.write_pages_now(page, 1).await?;
                    if page == target {
                        return Ok(());
                    }
                    page = target;
                }
                Need::Write(first) => page = first,
            }
        }
    }

    /// Writes `count` pages that follow each other in one write, as far as no other task has written them or given them a new edge
    /// meanwhile. Those that could not be written stay as they are, with all that they wait for; their claim is an orphan until the
    /// storage has settled.
    pub(crate) async fn write_pages_now(&self, first: u64, count: usize) -> Result<(), IoError> {
        let size = self.page_size;
        let pages = first..first + size * count as u64;
        let claimed =
            mutant!(self.options.rules, RunClaimsFirstPage => first..first + size; pages.clone());
        let mut claim = self.claim(Resource::Pages(claimed)).await?;
        let alignment = self.limits.alignment;
        let snapshot = self
            .with(|state| {
                state.accepts_changes()?;
                let step = usize::try_from(size).expect("a page fits in memory");
                let offsets = pages.step_by(step);
                let ready =
                    |page: &u64| state.cache.next_step(*page, &state.clock) == Need::Write(*page);
                let ready = offsets.take_while(ready).count();
                let ready = mutant!(state.rules, RunWrittenUnchecked => count; ready);
                let mut buf = IoBuf::with_capacity(ready * step, alignment);
                let mut versions = SmallVec::<[_; 1]>::with_capacity(ready);
                for page in (first..).step_by(step).take(ready) {
                    let (version, bytes) = state.cache.snapshot(page);
                    buf.extend_from_slice(bytes);
                    versions.push((page, version));
                }
                Ok::<_, IoError>((buf, versions))
            })
            .await?;
        let (buf, versions) = snapshot;
        if versions.is_empty() {
            return Ok(());
        }
        let (_, result) = claim.write(first, buf, Durability::Cached).await;
        self.with(|state| {
            let stamp = state.clock.stamp(File::Image);
            result.map_err(|source| IoError::Storage {
                action: "writing metadata",
                offset: first,
                source,
            })?;
            for (page, version) in versions {
                state.page_written(page, version, stamp);
            }
            Ok(())
        })
        .await
    }

    /// Makes everything in the file of `stamp` durable that carries it or an earlier one.
    pub(crate) async fn flush_storage(
        &self,
        barrier: Barrier,
        stamp: Stamp,
    ) -> Result<(), IoError> {
        let file = stamp.file();
        let mut claim = self.claim(Resource::Flush(file)).await?;
        let flush = self
            .with(|state| {
                state.accepts_changes()?;
                Ok::<_, IoError>((!state.clock.is_durable(stamp)).then(|| state.clock.submit(file)))
            })
            .await?;
        let Some(flush) = flush else { return Ok(()) };
        if self.now(|state| state.claims.has_sync_orphans()) {
            self.settle().await?;
        }
        let result = claim.flush(file, barrier).await;
        // In the same step as its end: between the two, a failure could be dropped with the future.
        let result = self.now(|state| result.map_err(|source| state.fail_flush(source)));
        result?;
        if self.now(|state| state.rules.hold(Rule::FailedFlushIsFinal)) {
            self.hear_of_throughs().await?;
        }
        self.now(|state| match state.accepts_changes() {
            Ok(()) => {
                state.clock.complete(flush);
                Ok(())
            }
            poisoned => poisoned,
        })
    }

    /// Waits until every write through of now has ended and has said how: one that failed beside a flush may have lost what the flush
    /// seems to have covered, and its task may not have heard of it yet, or be there no more.
    async fn hear_of_throughs(&self) -> Result<(), IoError> {
        let next = self.now(|state| state.next_through());
        poll_fn(|context| {
            let ended = self.now(|state| state.throughs_ended(next, context.waker()));
            if ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if self.now(|state| state.claims.has_sync_orphans()) {
            self.settle().await?;
        }
        Ok(())
    }

    /// Waits until all of `before` is durable, if `rule` asks for it.
    pub(crate) async fn ensure(
        &self,
        rule: Rule,
        barrier: Barrier,
        before: &[Before],
    ) -> Result<(), IoError> {
        if !self.now(|state| state.rules.hold(rule)) {
            return Ok(());
        }
        for &before in before {
            loop {
                match self.with(|state| state.cache.need(before, &state.clock)).await {
                    Need::Nothing => break,
                    Need::Write(page) => self.write_page(page).await?,
                    Need::Flush(stamp) => self.flush_storage(barrier, stamp).await?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::Image;
    use crate::blocking::block_on;
    use crate::cache::Kind;
    use crate::claims::Resource;
    use crate::create::create;
    use crate::options::{CreateOptions, OpenOptions};
    use storage::memory::MemoryStorage;

    /// A new image, and the host offset of the first page of its L1 table, which is not loaded.
    fn image() -> (Image<MemoryStorage>, u64) {
        let storage = MemoryStorage::default();
        block_on(create(&storage, &CreateOptions::new(1 << 30))).expect("there is room");
        let options = OpenOptions::new().page_size(512);
        let image = block_on(Image::open(storage, options)).expect("it was just made");
        let page = image.now(|state| state.header.l1_table_offset);
        assert!(!image.now(|state| state.cache.contains(page)));
        (image, page)
    }

    /// Goal: a page of a table that is given up while the page is on its way does not stay in memory, where it would be taken for one
    /// of whatever table comes there next. Method: a load that was asked for before, and one after.
    #[test]
    fn a_page_of_a_table_that_moved_meanwhile_is_not_kept() {
        let (image, page) = image();
        let before = image.now(|state| state.generation);
        let after = image.now(|state| {
            state.forget(page..page + 512);
            state.generation
        });
        for (asked_at, kept) in [(before, false), (after, true)] {
            block_on(image.load(page, Kind::L1, asked_at, true)).expect("nothing fails");
            assert_eq!(image.now(|state| state.cache.contains(page)), kept);
        }
    }

    /// Goal: who loads a page waits for whoever has that page, and for nobody else. Method: the page and its neighbours are claimed.
    #[test]
    fn a_load_waits_for_its_page_only() {
        let (image, page) = image();
        let mut context = Context::from_waker(Waker::noop());
        for (claimed, waits) in
            [(page - 1, false), (page, true), (page + 511, true), (page + 512, false)]
        {
            let asked_at = image.now(|state| {
                state.forget(page..page + 512);
                state.generation
            });
            let claim = block_on(image.claim(Resource::Pages(claimed..claimed + 1)));
            let mut load = pin!(image.load(page, Kind::L1, asked_at, true));
            assert_eq!(load.as_mut().poll(&mut context).is_pending(), waits, "{claimed:#x}");
            drop(claim);
            if waits {
                assert!(matches!(load.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
            }
            assert!(image.now(|state| state.cache.contains(page)));
        }
    }
}
