//! An open image: the state, the storage, and the few steps through which everything touches both.
//!
//! Every operation alternates between *deciding* under the lock ([`Image::with`], no I/O) and *awaiting* one storage
//! operation (no lock). What a decision needs from the storage it asks for by failing with [`Stop::Load`]; the decision is
//! then taken again from the start.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use smallvec::SmallVec;

use crate::barrier::Barrier;
use crate::cache::{Kind, Need, Room};
use crate::claims::{Resource, Turn};
use crate::error::IoError;
use crate::format::feature::Incompatible;
use crate::format::header::Header;
use crate::mutant::mutant;
use crate::options::OpenOptions;
use crate::order::{Before, Stamp};
use crate::rule::Rule;
use crate::state::{State, Stop};
use crate::taken::Taken;
use crate::work::Work;
use storage::{Durability, IoBuf, Limits, Storage, UNIT};

/// An open qcow2 image over a storage.
///
/// All requests take `&self` and may run at once. Dropping a request's future leaves its range with old data, new
/// data or both, unit by unit; at worst clusters leak until repair. Dropping the image does no I/O: without
/// [`Image::close`] it is as if the power had failed, except that nothing unflushed is taken back.
#[derive(Debug)]
pub struct Image<S> {
    pub(crate) storage: S,
    pub(crate) limits: Limits,
    pub(crate) options: OpenOptions,
    /// Bytes of a cluster and of a metadata page.
    pub(crate) cluster_size: u64,
    pub(crate) page_size: u64,
    /// Whether it is known which clusters hold metadata.
    pub(crate) knows_metadata: AtomicBool,
    state: Mutex<State>,
}

/// What an image says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Size of the guest disk in bytes.
    pub virtual_size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Whether refcounts are lazy in this session.
    pub lazy_refcounts: bool,
    /// Whether the dirty bit is set.
    pub dirty: bool,
}

impl<S: Storage> Image<S> {
    pub(crate) fn new(storage: S, options: OpenOptions, state: State) -> Self {
        let limits = storage.limits();
        let (cluster_size, page_size) = (state.cluster_size(), state.cache.page_size());
        let knows_metadata = AtomicBool::new(false);
        let state = Mutex::new(state);
        Self { storage, limits, options, cluster_size, page_size, knows_metadata, state }
    }

    /// Geometry and flags as of now.
    pub fn info(&self) -> ImageInfo {
        self.now(|state| ImageInfo {
            virtual_size: state.header.size,
            cluster_size: state.cluster_size(),
            lazy_refcounts: state.lazy,
            dirty: state.header.incompatible.contains(Incompatible::DIRTY),
        })
    }

    /// What has been done since the image was opened.
    pub fn work(&self) -> Work {
        self.now(|state| state.work)
    }

    /// The storage under the image.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Gives the storage back without any I/O, as a crash would.
    pub fn abandon(self) -> S {
        self.storage
    }

    /// The one way into the state: a scheduling point, then a step without I/O.
    pub(crate) async fn with<R>(&self, step: impl FnOnce(&mut State) -> R) -> R {
        self.storage.pause().await;
        self.now(step)
    }

    /// A step into the state where no await is possible (polling, dropping).
    pub(crate) fn now<R>(&self, step: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.work.looked_at;
        let result = step(&mut state);
        state.end_step(before);
        result
    }

    /// Takes a decision, loading the pages that it asks for. `step` is called again after each and must not have changed
    /// anything when it fails.
    ///
    /// A step that finds what only a damaged image can hold where something is about to be written marks the image corrupt first.
    pub(crate) async fn decide<R>(
        &self,
        step: impl FnMut(&mut State) -> Result<R, Stop>,
    ) -> Result<R, IoError> {
        let decided = self.decide_with(true, step).await;
        if let Err(error @ IoError::InUse { .. }) = &decided {
            Box::pin(self.mark_corrupt(error)).await;
        }
        decided
    }

    /// The same for a step that changes nothing: it goes on where dirty pages fill the cache and cannot be written.
    pub(crate) async fn look<R>(
        &self,
        step: impl FnMut(&mut State) -> Result<R, Stop>,
    ) -> Result<R, IoError> {
        self.decide_with(false, step).await
    }

    async fn decide_with<R>(
        &self,
        insists_on_room: bool,
        mut step: impl FnMut(&mut State) -> Result<R, Stop>,
    ) -> Result<R, IoError> {
        loop {
            match self.with(&mut step).await {
                Ok(result) => return Ok(result),
                Err(Stop::Error(error)) => return Err(error),
                // What seldom happens is boxed, so that it does not make every request's future large: futures get moved.
                Err(stop) => Box::pin(self.provide(stop, insists_on_room)).await?,
            }
        }
    }

    /// Does something about why a step could not be taken.
    async fn provide(&self, stop: Stop, insists_on_room: bool) -> Result<(), IoError> {
        match stop {
            Stop::Load { page, kind, generation } => {
                self.make_room(insists_on_room).await?;
                self.load(page, kind, generation, insists_on_room).await
            }
            Stop::Room => self.make_room(insists_on_room).await,
            Stop::Error(error) => Err(error),
        }
    }

    /// Waits for an exclusive claim.
    pub(crate) async fn claim(&self, resource: Resource) -> Result<Claim<'_, S>, IoError> {
        self.claim_if(resource, |_| Ok(())).await
    }

    /// The same, if `check` allows it, which looks in the step in which the claim is queued.
    pub(crate) async fn claim_if(
        &self,
        resource: Resource,
        check: impl Fn(&State) -> Result<(), IoError>,
    ) -> Result<Claim<'_, S>, IoError> {
        self.storage.pause().await;
        let mut resource = Some(resource);
        let mut claim = Claim {
            image: self,
            id: None,
            in_flight: false,
            through: None,
            failed: false,
            clusters: Taken::default(),
        };
        loop {
            let turn = poll_fn(|context| {
                let waker = context.waker();
                let turn: Result<Turn, IoError> = self.now(|state| {
                    if state.claims.has_many_orphans() && claim.id.is_none() {
                        return Ok(Turn::Settle);
                    }
                    if let Some(resource) = resource.take() {
                        check(state)?;
                        claim.id = Some(state.claims.enqueue(resource, waker));
                    }
                    let id = claim.id.expect("it was just queued");
                    Ok(state.claims.turn(id, waker))
                });
                match turn {
                    Ok(Turn::Wait) => Poll::Pending,
                    turn => Poll::Ready(turn),
                }
            })
            .await?;
            if turn == Turn::Granted {
                return Ok(claim);
            }
            Box::pin(self.settle()).await?;
        }
    }

    /// Waits until no I/O of a dropped or failed request can land any more, and releases what they had claimed. If one of them was
    /// a flush that failed, it failed for everybody.
    pub(crate) async fn settle(&self) -> Result<(), IoError> {
        let orphans = self.with(|state| state.claims.orphans()).await;
        if orphans.is_empty() {
            return Ok(());
        }
        let settled = self.storage.settle().await;
        self.now(|state| {
            state.release_orphans(&orphans);
            settled.map_err(|source| state.fail_flush(source))
        })
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
        let (buf, result) = self.storage.read(page, buf).await;
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
            let stamp = state.clock.stamp();
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

    /// Makes everything that carries `stamp` or an earlier one durable.
    pub(crate) async fn flush_storage(
        &self,
        barrier: Barrier,
        stamp: Stamp,
    ) -> Result<(), IoError> {
        let mut claim = self.claim(Resource::Flush).await?;
        let flush = self
            .with(|state| {
                state.accepts_changes()?;
                Ok::<_, IoError>((!state.clock.is_durable(stamp)).then(|| state.clock.submit()))
            })
            .await?;
        let Some(flush) = flush else { return Ok(()) };
        if self.now(|state| state.claims.has_sync_orphans()) {
            self.settle().await?;
        }
        let result = claim.flush(barrier).await;
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

    /// Writes the header with `change` in one 512-byte write; the claim must be on the header. Once it is written the state
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
        let alignment = self.limits.alignment;
        let (header, buf, known) = self
            .with(|state| {
                state.accepts_changes()?;
                let mut header = state.header.clone();
                change(&mut header);
                let mut buf = IoBuf::copy_of(&*state.sector, alignment);
                header.patch_sector(&mut buf)?;
                let known = std::mem::replace(&mut state.header_known, false);
                Ok::<_, IoError>((header, buf, known))
            })
            .await?;
        let (buf, result) = claim.write(0, buf, Durability::Cached).await;
        self.with(|state| {
            let action = "writing the header";
            result.map_err(|source| IoError::Storage { action, offset: 0, source })?;
            state.header = header;
            state.sector.copy_from_slice(&buf[..UNIT]);
            // One that was in doubt before stays so until it is durable.
            state.header_known = known;
            let stamp = state.clock.stamp();
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
    /// changes it any more. What was written so far can be flushed.
    pub(crate) async fn mark_corrupt(&self, why: &IoError) {
        if !self.with(|state| state.found_corrupt(why)).await {
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

    /// Checks that the image may be changed at all, and learns before the first change what must not be written over. The rest of
    /// the check is [`State::accepts_requests`].
    pub(crate) async fn begin_change(&self) -> Result<(), IoError> {
        if !self.options.writable {
            return Err(IoError::ReadOnly);
        }
        if self.knows_metadata.load(Ordering::Acquire) {
            return Ok(());
        }
        self.now(|state| state.accepts_requests())?;
        Box::pin(self.learn_metadata()).await?;
        self.knows_metadata.store(true, Ordering::Release);
        Ok(())
    }
}

/// An exclusive claim. Dropping it releases it, or leaves it as an orphan while its I/O is in flight or may still land because it
/// failed.
#[derive(Debug)]
pub(crate) struct Claim<'a, S: Storage> {
    image: &'a Image<S>,
    id: Option<u64>,
    in_flight: bool,
    /// The write through in flight, by its number.
    through: Option<u64>,
    /// Whether some of its I/O failed since the storage was settled.
    failed: bool,
    /// Clusters taken for the holder that nothing refers to yet: given back when the claim goes.
    pub(crate) clusters: Taken,
}

impl<S: Storage> Claim<'_, S> {
    /// Writes under the claim.
    pub(crate) async fn write(
        &mut self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, std::io::Result<()>) {
        self.in_flight = true;
        if durability == Durability::Through {
            self.through = Some(self.image.now(State::begin_through));
        }
        let (buf, result) = self.image.storage.write(offset, buf, durability).await;
        if let Some(number) = self.through.take() {
            // In the same step as its end: a sync that failed may have lost what others wrote.
            self.image.now(|state| {
                if let Err(source) = &result {
                    state.fail_sync("writing through", offset, source);
                }
                state.end_through(number);
            });
        }
        (buf, self.ended(result))
    }

    /// Zeroes under the claim.
    pub(crate) async fn write_zeroes(&mut self, range: Range<u64>) -> std::io::Result<()> {
        self.in_flight = true;
        let result = self.image.storage.write_zeroes(range).await;
        self.ended(result)
    }

    /// Discards under the claim.
    pub(crate) async fn discard(&mut self, range: Range<u64>) -> std::io::Result<()> {
        self.in_flight = true;
        let result = self.image.storage.discard(range).await;
        self.ended(result)
    }

    /// Changes the file length under the claim.
    pub(crate) async fn set_len(&mut self, len: u64) -> std::io::Result<()> {
        self.in_flight = true;
        let result = self.image.storage.set_len(len).await;
        self.ended(result)
    }

    /// Flushes under the claim.
    async fn flush(&mut self, barrier: Barrier) -> std::io::Result<()> {
        if self.image.options.rules.skips(barrier) {
            return Ok(());
        }
        self.in_flight = mutant!(self.image.options.rules, DroppedFlushForgotten => false; true);
        let result = self.image.storage.flush().await;
        self.in_flight = false;
        result
    }

    fn ended<T>(&mut self, result: std::io::Result<T>) -> std::io::Result<T> {
        self.in_flight = false;
        let before = mutant!(self.image.options.rules, LaterSuccessForgets => false; self.failed);
        self.failed = before || result.is_err();
        result
    }

    /// Waits until what failed under the claim cannot land any more, so that its range can be used again.
    pub(crate) async fn settle(&mut self) -> Result<(), IoError> {
        if self.failed && self.image.options.rules.hold(Rule::SettleBeforeRetry) {
            let settled = self.image.storage.settle().await;
            settled.map_err(|source| self.image.now(|state| state.fail_flush(source)))?;
            self.failed = false;
        }
        Ok(())
    }

    /// Marks I/O of the holder's own as in flight, or as done.
    pub(crate) fn set_in_flight(&mut self, in_flight: bool) {
        self.in_flight = in_flight;
    }

    /// Says that I/O of the holder's own failed.
    pub(crate) fn set_failed(&mut self) {
        self.in_flight = false;
        self.failed = true;
    }
}

impl<S: Storage> Drop for Claim<'_, S> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let clusters = std::mem::take(&mut self.clusters);
        self.image.now(|state| {
            if let Some(number) = self.through {
                state.end_through(number);
            }
            let may_land = (self.in_flight && state.rules.hold(Rule::OrphansBeforeReuse))
                || (self.failed && state.rules.hold(Rule::SettleBeforeRetry));
            if may_land {
                let left = mutant!(state.rules, OrphanClustersFreedAtOnce => {
                    state.give_back(clusters);
                    Taken::default()
                }; clusters);
                state.orphan(id, self.through.is_some(), left);
            } else {
                state.give_back(clusters);
                state.claims.release(id);
            }
        });
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
