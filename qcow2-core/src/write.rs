//! Writing: claim the guest clusters, find or take host clusters, move the bytes, then map them.
//!
//! ```text
//!   guest cluster      | kept or zero |#### request ####| kept or zero |
//!   in place           nothing else            written                        (the entry says COPIED)
//!   new cluster        padded                  written         padded         then linked
//! ```
//!
//! Of a cluster that has subclusters only those are filled up that the request touches (`subclusters`).
//!
//! **Invariant.** Nothing refers to a new cluster before all of it is written, and what refers to it then is ordered by the
//! named rules. A request that fails or is dropped before that leaves the old mapping.

use std::num::{NonZeroU32, NonZeroU64};
use std::ops::Range;

use smallvec::SmallVec;

use crate::alloc::Extent;
use crate::cache::Kind;
use crate::claim::Claim;
use crate::claims::Resource;
use crate::content::Content;
use crate::crypt::{Cipher, Place};
use crate::error::IoError;
use crate::files::{File, failed, in_data, place};
use crate::format::entry::{L1Entry, Mapping, Subclusters};
use crate::image::Image;
use crate::map::{EntryPlace, NewLink};
use crate::metadata::Table;
use crate::mutant::mutant;
use crate::options::Preallocation;
use crate::order::Before;
use crate::rule::Rule;
use crate::state::{State, Stop};
use storage::{Durability, IoBuf, Storage, UNIT};

/// Where a piece of a guest range goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteExtent {
    /// Length in bytes.
    pub len: u64,
    /// Its host address.
    pub(crate) host: u64,
}

impl WriteExtent {
    /// The file that it is in: [`Image::storage`], or [`Image::data_file`].
    pub const fn file(&self) -> File {
        place(self.host).0
    }

    /// Offset in that file in bytes.
    pub const fn offset(&self) -> u64 {
        place(self.host).1
    }
}

/// Host extents for a guest range that is about to be written.
///
/// Write the data to [`WriteMap::extents`], call [`WriteMap::begin`] before the first byte and [`WriteMap::commit`] after
/// the last. Dropping the map instead leaves the old mapping; the range stays claimed until then.
#[derive(Debug)]
pub struct WriteMap<'a, S: Storage> {
    pub(crate) image: &'a Image<S>,
    pub(crate) claim: Claim<'a, S>,
    extents: SmallVec<[WriteExtent; 1]>,
    pub(crate) links: SmallVec<[NewLink; 1]>,
    pub(crate) runs: SmallVec<[Extent; 1]>,
}

/// What guest clusters get host clusters for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For what the holder of the map writes.
    Write,
    /// To have them, with so much of their space.
    Keep(Preallocation),
}

/// Most guest clusters that are looked at in one step.
pub(crate) const AT_ONCE: u64 = 256;

/// A part of the guest's disk that is to have host clusters, and what for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) bytes: Range<u64>,
    pub(crate) purpose: Purpose,
}

/// How a guest cluster gets a host cluster to write to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The L2 table of this L1 index does not exist yet.
    NoTable(u64),
    /// It has one of its own that holds its data.
    InPlace(u64),
    /// It has one of its own whose content nobody reads.
    Revive(u64),
    /// It has its place in the data file, whose content nobody reads; a partial write leaves this of it.
    Apart { rest: Content },
    /// Its place in the data file is not mapped, or not for good, and whoever reads that as a raw disk sees it all the same.
    Unseen,
    /// It needs a new one; a partial write leaves this of it.
    New { rest: Content },
    /// Not all of its subclusters that the request touches have data. It has this host cluster of its own, or none.
    Part(Option<NonZeroU64>),
}

/// The first of a range of guest clusters, and how they get host clusters.
pub(crate) type Targets = SmallVec<[Target; 1]>;

impl State {
    /// How some of these guest clusters, from the first one on, get host clusters: as far as a page goes, and no further than one without
    /// a table.
    #[expect(clippy::explicit_counter_loop, reason = "one more zip costs each write instructions")]
    fn write_targets(
        &mut self,
        clusters: Range<u64>,
        wanted: &Wanted,
        targets: &mut Targets,
    ) -> Result<(), Stop> {
        targets.clear();
        let first = clusters.start;
        let at = match self.entry_place_to_change(first)? {
            EntryPlace::At(at) => at,
            EntryPlace::NoTable(index) => {
                targets.push(Target::NoTable(index));
                return Ok(());
            }
        };
        let (slot, count) = self.entries_at(at, AT_ONCE.min(clusters.end - first))?;
        if self.raw
            && self.rules.hold(Rule::MappingBeforeRawData)
            && !self.is_mapped_durably(first)?
        {
            targets.extend((0..count).map(|_| Target::Unseen));
            return self.check_table_owned(first);
        }
        if self.extended {
            self.part_targets(first, slot, at, count, wanted, targets)?;
            let changes = targets.iter().any(|target| !matches!(target, Target::InPlace(_)));
            return if changes { self.check_table_owned(first) } else { Ok(()) };
        }
        let mut changes_table = false;
        let mut cluster = first;
        for (entry, at) in self.cache.entries(slot, at, count).zip((at..).step_by(8)) {
            let target = self.write_target(cluster, self.decode(cluster, entry, at)?)?;
            cluster += 1;
            changes_table |= !matches!(target, Target::InPlace(_));
            targets.push(target);
        }
        if changes_table { self.check_table_owned(first) } else { Ok(()) }
    }

    /// The file whose flush makes guest data durable that was written.
    fn data_stamped_in(&self) -> File {
        mutant!(self.rules, DataStampedInImageFile => File::Image; self.guest_file)
    }

    fn write_target(&self, cluster: u64, mapping: Mapping) -> Result<Target, IoError> {
        if self.guest_file == File::Data {
            return Ok(self.target_in_data(cluster, mapping));
        }
        Ok(match mapping {
            // What is past the end of the file holds nothing.
            Mapping::Data { host, .. } | Mapping::ZeroAllocated { host, .. }
                if host >= self.length =>
            {
                Target::New { rest: Content::Zero }
            }
            Mapping::Data { host, copied: true } => {
                self.check_data(host)?;
                Target::InPlace(host)
            }
            Mapping::ZeroAllocated { host, copied: true } => {
                self.check_data(host)?;
                Target::Revive(host)
            }
            Mapping::Unallocated | Mapping::ZeroPlain => {
                Target::New { rest: self.content(cluster, mapping) }
            }
            Mapping::Data { copied: false, .. }
            | Mapping::ZeroAllocated { copied: false, .. }
            | Mapping::Mixed { .. }
            | Mapping::Compressed { .. } => {
                self.check_given_up(mapping)?;
                Target::New { rest: self.content(cluster, mapping) }
            }
        })
    }

    #[cold]
    fn target_in_data(&self, cluster: u64, mapping: Mapping) -> Target {
        match mapping {
            Mapping::Data { host, .. } => Target::InPlace(host),
            _ if self.raw => Target::Unseen,
            _ => Target::Apart { rest: self.content(cluster, mapping) },
        }
    }

    /// Refuses to give up metadata with the guest cluster of an entry that leads to it: it would be counted down, and discarded.
    pub(crate) fn check_given_up(&self, mapping: Mapping) -> Result<(), IoError> {
        let bytes = match mapping {
            Mapping::Data { host, .. }
            | Mapping::ZeroAllocated { host, .. }
            | Mapping::Mixed { host: host @ 1.., .. } => host..host + 1,
            Mapping::Compressed { offset, length, .. } => offset..offset + length,
            Mapping::Unallocated | Mapping::ZeroPlain | Mapping::Mixed { host: 0, .. } => {
                return Ok(());
            }
        };
        let size = self.cluster_size();
        self.check_unused(bytes.start / size..bytes.end.div_ceil(size))
    }

    /// Refuses to write guest data over metadata.
    pub(crate) fn check_data(&self, host: u64) -> Result<(), IoError> {
        let cluster = host / self.cluster_size();
        self.check_unused(cluster..cluster + 1)
    }

    /// Checks that the L1 table refers no more than once to the L2 table that has something at host offset `at`.
    pub(crate) fn check_unshared(&self, at: u64) -> Result<(), IoError> {
        let size = self.cluster_size();
        if self.metadata.as_ref().is_some_and(|metadata| metadata.is_shared(at / size)) {
            return Err(IoError::SharedTable { host: at - at % size, refcount: 2 });
        }
        Ok(())
    }

    /// Checks that the L2 table of a guest cluster may be changed in place: nothing else refers to it.
    pub(crate) fn check_table_owned(&mut self, guest_cluster: u64) -> Result<(), Stop> {
        let index = guest_cluster >> self.table_bits;
        let Some(table) = self.l1_entry(index)?.1 else { return Ok(()) };
        self.check_unshared(table.host)?;
        if table.copied {
            return Ok(());
        }
        match self.refcount(table.host / self.cluster_size())? {
            0 | 1 => Ok(()),
            refcount => Err(IoError::SharedTable { host: table.host, refcount }.into()),
        }
    }

    /// Whether the mapping of a guest cluster is on the storage for good, so that writing in place through the cache is
    /// all that it takes.
    fn is_mapped_durably(&mut self, guest_cluster: u64) -> Result<bool, Stop> {
        let EntryPlace::At(at) = self.entry_place(guest_cluster)? else { return Ok(false) };
        let l1_at = self.header.l1_table_offset + (guest_cluster >> self.table_bits) * 8;
        let l1_at = mutant!(self.rules, L1NotLookedAt => at; l1_at);
        let pages = [self.cache.page_of(at), self.cache.page_of(l1_at)];
        Ok(self.header_known
            && pages.iter().all(|&page| self.cache.undurable(page, &self.clock).is_none()))
    }
}

impl<S: Storage> Image<S> {
    /// Writes `buf` at guest offset `offset`, both multiples of 512 bytes. The buffer comes back in every case.
    ///
    /// With [`Durability::Through`], or on an image opened `write_through`, the data is durable when this returns.
    ///
    /// # Errors
    /// [`IoError::OutOfRange`], [`IoError::Unaligned`], [`IoError::ReadOnly`], [`IoError::Poisoned`], or what the storage or the
    /// tables met. A request that failed may have happened, in part or as a whole.
    pub async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, Result<(), IoError>) {
        let through = self.options.write_through || durability == Durability::Through;
        let len = buf.len() as u64;
        let mut map = match self.claim_to_write(offset, len).await {
            Ok(map) => map,
            Err(error) => return (buf, Err(error)),
        };
        if let Err(error) = map.resolve(offset, len, true, Purpose::Write).await {
            return (buf, Err(error));
        }
        let direct = through && map.is_mapped_durably(offset, len).await;
        let how = if direct { Durability::Through } else { Durability::Cached };
        // Not through a future around both, which would cost each write instructions.
        let (buf, result) = match &self.cipher {
            None => map.write_bytes(buf, how).await,
            Some(cipher) => Box::pin(map.write_enciphered(cipher, offset, buf, how)).await,
        };
        if let Err(error) = result {
            return (buf, Err(error));
        }
        let mut result = map.link().await;
        drop(map);
        if result.is_ok() && through && !direct {
            result = Box::pin(self.flush()).await;
        }
        (buf, result)
    }

    /// Claims a guest range to write to.
    pub(crate) async fn claim_to_write(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<WriteMap<'_, S>, IoError> {
        self.begin_change().await?;
        let check = |state: &State| {
            state.accepts_requests()?;
            state.check_range(offset, len)
        };
        let clusters = self.clusters(offset, len);
        let clusters = mutant!(self.options.rules, GuestClaimEndsEarly => {
            clusters.start..offset.saturating_add(len) / self.cluster_size
        }; clusters);
        Ok(WriteMap::new(self, self.claim_if(Resource::Guest(clusters), check).await?))
    }

    /// The guest clusters that a range touches: none if it is empty, wherever in a cluster that is.
    pub(crate) fn clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let first = offset / self.cluster_size;
        let end = offset.saturating_add(len).div_ceil(self.cluster_size);
        if len == 0 { first..first } else { first..end }
    }

    /// Claims a guest range and finds or takes host clusters for it; `offset` and `len` are multiples of 512 bytes. Whoever writes the
    /// extents on a storage of longer sectors writes whole ones, with what they hold beside the extent: the clusters that the range
    /// touches are claimed, and share no sector with another.
    ///
    /// # Errors
    /// As [`Image::write`]; [`IoError::Unsupported`] if the image is encrypted: what is written past its cipher would be nothing.
    pub async fn map_write(&self, offset: u64, len: u64) -> Result<WriteMap<'_, S>, IoError> {
        if self.cipher.is_some() {
            return Err(IoError::Unsupported(
                "writing to an encrypted image past its cipher".into(),
            ));
        }
        self.map_to_write(offset, len).await
    }

    /// The same for who writes through the map.
    pub(crate) async fn map_to_write(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<WriteMap<'_, S>, IoError> {
        let mut map = self.claim_to_write(offset, len).await?;
        map.resolve(offset, len, true, Purpose::Write).await?;
        Ok(map)
    }

    /// The same for any range of whole units that the tables can hold, past the end of the disk too.
    pub(crate) async fn map_range(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<WriteMap<'_, S>, IoError> {
        let claim = self.claim(Resource::Guest(self.clusters(offset, len))).await?;
        let mut map = WriteMap::new(self, claim);
        map.resolve(offset, len, false, Purpose::Write).await?;
        Ok(map)
    }

    /// Adds an empty L2 table.
    pub(crate) async fn add_l2_table(&self, index: u64) -> Result<(), IoError> {
        let mut claim = self.claim(Resource::Tables(index..index + 1)).await?;
        let there = self
            .decide(|state| {
                let table = state.l1_entry(index)?.1;
                Ok(table.is_some_and(|table| table.host < state.length))
            })
            .await?;
        if there {
            return Ok(());
        }
        let extent = self.allocate(&mut claim, 1).await?;
        let size = self.cluster_size;
        let host = extent.clusters.start * size;
        if mutant!(self.options.rules, TableNotZeroed => false; !extent.fresh) {
            let zeroed = claim.write_zeroes(host..host + size).await;
            let action = "zeroing an L2 table";
            zeroed.map_err(|source| IoError::Storage { action, offset: host, source })?;
        }
        self.decide(|state| {
            let (at, past_end) = state.l1_entry(index)?;
            state.check_room()?;
            let version = state.cache.set_entry(at, L1Entry::new(host, true).0);
            let page = state.cache.page_of(at);
            state.add_table(extent.clusters.start, Table::L2);
            if let Some(old) = past_end {
                state.forget(old.host..old.host + size);
                state.drop_table(old.host / size, Before::Page { offset: page, version });
            }
            if !extent.fresh {
                let zeroes = Before::Written(state.clock.stamp(File::Image));
                state.order(page, Rule::ZeroesBeforePointer, zeroes);
            }
            state.order_reference(page, extent.clusters.end, &extent.counts);
            let stamp = state.clock.newest(File::Image);
            state.cache.insert_zeroes(host, Kind::L2, stamp);
            claim.clusters.clear();
            Ok(())
        })
        .await
    }
}

pub(crate) fn memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a cluster fits in memory")
}

pub(crate) fn not_filled(host: u64, source: std::io::Error) -> IoError {
    failed("filling the rest of a cluster", host, source)
}

impl<'a, S: Storage> WriteMap<'a, S> {
    fn new(image: &'a Image<S>, claim: Claim<'a, S>) -> Self {
        let (extents, links, runs) = (SmallVec::new(), SmallVec::new(), SmallVec::new());
        Self { image, claim, extents, links, runs }
    }

    /// Finds or takes host clusters for the range that was claimed; `inside` the disk, which may have become smaller while the claim
    /// was waited for.
    pub(crate) async fn resolve(
        &mut self,
        offset: u64,
        len: u64,
        inside: bool,
        purpose: Purpose,
    ) -> Result<(), IoError> {
        let image = self.image;
        let size = image.cluster_size;
        let clusters = image.clusters(offset, len);
        let (mut offset, mut end) = (offset, offset.saturating_add(len));
        if purpose != Purpose::Write {
            // Nothing of it is the caller's to write, so all of a new cluster is filled.
            (offset, end) = (clusters.end * size, clusters.end * size);
        }
        let wanted = Wanted { bytes: offset..end, purpose };
        let mut targets = Targets::new();
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let (first, last) = (cluster, clusters.end);
            let find = |state: &mut State| {
                let inside = mutant!(state.rules, WaitedPastNewEnd => false; inside);
                if inside && end > state.header.size {
                    state.check_range(offset, end - offset)?;
                }
                state.write_targets(first..last, &wanted, &mut targets)
            };
            image.decide(find).await?;
            let mut rest = &targets[..];
            while let [target, others @ ..] = rest {
                match *target {
                    Target::NoTable(index) => {
                        Box::pin(image.add_l2_table(index)).await?;
                        rest = others;
                    }
                    Target::InPlace(host) => {
                        self.add_extent(cluster, host, offset, end, size);
                        cluster += 1;
                        rest = others;
                    }
                    target @ (Target::Revive(_) | Target::Apart { .. }) => {
                        let (host, left) = match target {
                            Target::Apart { rest } => (in_data(cluster * size), rest),
                            Target::Revive(host) => (host, Content::Zero),
                            _ => unreachable!("it is one of these"),
                        };
                        mutant!(image.options.rules, ReviveNotPadded => (); {
                            Box::pin(self.pad(cluster, host, left, offset, end, size)).await?;
                        });
                        self.add_link(cluster, host, None);
                        self.add_extent(cluster, host, offset, end, size);
                        cluster += 1;
                        rest = others;
                    }
                    Target::Unseen => {
                        let unseen =
                            rest.iter().take_while(|target| matches!(target, Target::Unseen));
                        let unseen = cluster..cluster + unseen.count() as u64;
                        Box::pin(self.let_see(unseen.clone())).await?;
                        rest = &rest[unseen.clone().count()..];
                        for seen in unseen {
                            let host = image.now(|state| state.place_in_data(seen));
                            self.add_extent(seen, host, offset, end, size);
                            cluster += 1;
                        }
                    }
                    Target::Part(_) => {
                        let parts = Box::pin(self.resolve_parts(cluster, rest, &wanted)).await?;
                        cluster += parts as u64;
                        rest = &rest[parts..];
                    }
                    Target::New { .. } => {
                        let new = |target: &Target| match target {
                            Target::New { rest } => Some(*rest),
                            _ => None,
                        };
                        let count = rest.iter().map_while(new).count() as u64;
                        let run = self.take(count, purpose).await?;
                        for (host, left) in run.clusters.clone().zip(rest.iter().map_while(new)) {
                            let host = host * size;
                            let stale = mutant!(image.options.rules, TakenAheadNotZeroed => {
                                !run.fresh && wanted.purpose == Purpose::Write
                            }; !run.fresh);
                            if stale || !matches!(left, Content::Zero) {
                                self.pad(cluster, host, left, offset, end, size).await?;
                            }
                            let run = NonZeroU32::new(self.runs.len() as u32 + 1);
                            self.add_link(cluster, host, run);
                            self.add_extent(cluster, host, offset, end, size);
                            cluster += 1;
                        }
                        let taken = run.clusters.end - run.clusters.start;
                        rest = &rest[usize::try_from(taken).expect("it was wanted")..];
                        self.runs.push(run);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes clusters of the host for the next guest clusters, with as much of their space as is asked for.
    pub(crate) async fn take(&mut self, wanted: u64, purpose: Purpose) -> Result<Extent, IoError> {
        let mut run = self.image.allocate(&mut self.claim, wanted).await?;
        if self.image.cipher.is_some() {
            // Zeroes that nobody wrote are not what reads as zeroes.
            run.fresh = mutant!(self.image.options.rules, CipherOfHoles => run.fresh; false);
        } else if let Purpose::Keep(space) = purpose {
            Box::pin(self.keep_space(&run, space)).await?;
        }
        Ok(run)
    }

    /// The extents, in guest order, neighbours merged.
    pub fn extents(&self) -> &[WriteExtent] {
        &self.extents
    }

    /// Says that the caller's own I/O to the extents starts now: should the map be dropped before [`WriteMap::commit`],
    /// the range stays claimed until the storage has settled.
    pub fn begin(&mut self) {
        self.claim.set_in_flight(true);
    }

    /// Maps what was written. The caller's I/O has completed; if it failed, drop the map after [`WriteMap::fail`] instead.
    ///
    /// # Errors
    /// What loading the tables met.
    pub async fn commit(mut self) -> Result<(), IoError> {
        self.link().await
    }

    async fn link(&mut self) -> Result<(), IoError> {
        self.claim.set_in_flight(false);
        if self.links.is_empty() {
            let image = self.image;
            mutant!(image.options.rules, InPlaceWriteUnstamped => (); {
                image.with(|state| state.clock.stamp(state.data_stamped_in())).await;
            });
            return Ok(());
        }
        let Self { image, claim, links, runs, .. } = self;
        let (mut data, mut done) = (None, 0);
        while done < links.len() {
            let batch = links.len().min(done + AT_ONCE as usize);
            image
                .decide(|state| {
                    let data =
                        *data.get_or_insert_with(|| state.clock.stamp(state.data_stamped_in()));
                    for link in &links[done..batch] {
                        let run = link.run.map(|run| &runs[run.get() as usize - 1]);
                        state.link(link, run, data)?;
                        // In the same step: what is referred to is not given back.
                        if link.run.is_some() {
                            claim.clusters.pop_front();
                        }
                        done += 1;
                    }
                    Ok(())
                })
                .await?;
        }
        Ok(())
    }

    /// Writes `buf`, which is the guest's from `offset` on, to what of the claim has no place yet, and maps it. The map is as new then.
    pub(crate) async fn write_new(&mut self, offset: u64, buf: IoBuf) -> Result<(), IoError> {
        self.resolve(offset, buf.len() as u64, false, Purpose::Write).await?;
        let left_out = mutant!(self.image.options.rules, CopyLeavesOutRead => self.image.now(|state| state.extended); false);
        if !left_out {
            self.write_data(offset, buf, Durability::Cached).await.1?;
        }
        self.link().await?;
        self.extents.clear();
        self.links.clear();
        self.runs.clear();
        Ok(())
    }

    /// Says that the caller's I/O is over without success: new clusters are given back once it cannot land any more.
    pub fn fail(mut self) {
        self.claim.set_failed();
    }

    async fn is_mapped_durably(&self, offset: u64, len: u64) -> bool {
        if !self.links.is_empty() {
            return false;
        }
        mutant!(self.image.options.rules, ThroughThoughUnmapped => return true; ());
        for cluster in self.image.clusters(offset, len) {
            let durable = self.image.decide(|state| state.is_mapped_durably(cluster)).await;
            if !durable.unwrap_or(false) {
                return false;
            }
        }
        true
    }

    fn add_link(&mut self, guest_cluster: u64, host: u64, run: Option<NonZeroU32>) {
        let of = Subclusters::default();
        self.links.push(NewLink { guest_cluster, host, run, of, read_zero: false });
    }

    pub(crate) fn add_extent(&mut self, cluster: u64, host: u64, offset: u64, end: u64, size: u64) {
        let from = (cluster * size).max(offset);
        let to = ((cluster + 1) * size).min(end);
        // What is only to have a cluster has nothing to be written.
        let Some(len) = to.checked_sub(from).filter(|&len| len > 0) else { return };
        let host = host + from % size;
        match self.extents.last_mut() {
            Some(last) if last.host + last.len == host => last.len += len,
            _ => self.extents.push(WriteExtent { len, host }),
        }
    }

    /// Fills what the request leaves of a cluster with `content`, which is that of the whole cluster.
    async fn pad(
        &mut self,
        cluster: u64,
        host: u64,
        content: Content,
        offset: u64,
        end: u64,
        size: u64,
    ) -> Result<(), IoError> {
        let start = cluster * size;
        // In whole sectors of the storage; what the request has of them is written over this.
        let sector = self.image.limits.sector() as u64;
        let head = 0..offset.saturating_sub(start).min(size).next_multiple_of(sector);
        let all = self.image.room_in(cluster, host);
        let tail = (end.saturating_sub(start).min(size) / sector * sector).min(all)..all;
        let head = head.start..head.end.min(all);
        let content = mutant!(self.image.options.rules, CompressedRestZeroed => match content {
            Content::Stream(_) => Content::Zero,
            content => content,
        }; content);
        // Decompressed once for both.
        let whole = match content {
            Content::Stream(entry) if !(head.is_empty() && tail.is_empty()) => {
                Some(Box::pin(self.image.decompress(entry)).await?)
            }
            _ => None,
        };
        for range in [head, tail].into_iter().filter(|range| !range.is_empty()) {
            let to = host + range.start;
            if let Some(whole) = &whole {
                let rest = &whole[memory(range.start)..memory(range.end)];
                let mut rest = rest.to_vec();
                self.encipher(Place { guest: start + range.start, host: to }, &mut rest);
                Box::pin(self.put(&rest, to, not_filled)).await?;
                continue;
            }
            let content = mutant!(self.image.options.rules, LayerNotCopied => match content {
                Content::Below(_) => Content::Zero,
                content => content,
            }; content);
            let at = mutant!(self.image.options.rules, LayerCopiedFromStart => match content {
                Content::Below(_) => 0,
                _ => range.start,
            }; range.start);
            match content.after(at) {
                Content::Zero if self.image.cipher.is_none() => {
                    let filled = self.claim.write_zeroes(to..host + range.end).await;
                    filled.map_err(|source| not_filled(to, source))?;
                }
                // What is rare is boxed, so that it does not make every request's future large.
                content => {
                    let to = Place { guest: start + range.start, host: to };
                    Box::pin(self.copy(content, to, range.end - range.start)).await?;
                }
            }
        }
        Ok(())
    }

    /// Enciphers what goes there, if the image is encrypted.
    fn encipher(&self, to: Place, bytes: &mut [u8]) {
        if let Some(cipher) = &self.image.cipher {
            mutant!(self.image.options.rules, FilledInTheClear => (); cipher.encipher(to, bytes));
        }
    }

    /// Writes whole sectors to host offset `to`, as they are.
    pub(crate) async fn put(
        &mut self,
        bytes: &[u8],
        to: u64,
        failed: fn(u64, std::io::Error) -> IoError,
    ) -> Result<(), IoError> {
        let limits = self.image.limits;
        let places = (to..).step_by(limits.max_transfer);
        for (offset, piece) in places.zip(bytes.chunks(limits.max_transfer)) {
            let buf = IoBuf::copy_of(piece, limits.alignment);
            let (_, written) = self.claim.write(offset, buf, Durability::Cached).await;
            written.map_err(|source| failed(offset, source))?;
        }
        Ok(())
    }

    /// Copies what is not compressed there.
    async fn copy(&mut self, from: Content, to: Place, len: u64) -> Result<(), IoError> {
        let limits = self.image.limits;
        let mut done = 0;
        while done < len {
            let piece = usize::try_from(len - done).expect("a cluster fits in memory");
            let mut buf = IoBuf::zeroed(piece.min(limits.max_transfer), limits.alignment);
            match from.after(done) {
                Content::Zero => {}
                Content::Host(from) => {
                    let read;
                    (buf, read) = self.image.files.read(from, buf).await;
                    read.map_err(|source| not_filled(to.host, source))?;
                    if let Some(cipher) = &self.image.cipher {
                        let from = Place { guest: to.guest + done, host: from };
                        let from = mutant!(self.image.options.rules, DecipheredAtNewPlace => Place { host: to.host + done, ..from }; from);
                        cipher.decipher(from, &mut buf);
                    }
                }
                Content::Below(from) => {
                    let read;
                    (buf, read) = self.image.read_below(from, buf).await;
                    read?;
                }
                Content::Stream(_) => unreachable!("it is decompressed before"),
            }
            let at = Place { guest: to.guest + done, host: to.host + done };
            self.encipher(at, &mut buf);
            let (buf, written) = self.claim.write(at.host, buf, Durability::Cached).await;
            written.map_err(|source| not_filled(at.host, source))?;
            done += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes `buf`, which is the guest's from `offset` on, to the extents.
    pub(crate) async fn write_data(
        &mut self,
        offset: u64,
        buf: IoBuf,
        how: Durability,
    ) -> (IoBuf, Result<(), IoError>) {
        match &self.image.cipher {
            None => self.write_bytes(buf, how).await,
            Some(cipher) => Box::pin(self.write_enciphered(cipher, offset, buf, how)).await,
        }
    }

    /// The same in an encrypted image. The caller's buffer stays as it is: what the storage gets is another one.
    async fn write_enciphered(
        &mut self,
        cipher: &Cipher,
        offset: u64,
        buf: IoBuf,
        how: Durability,
    ) -> (IoBuf, Result<(), IoError>) {
        if mutant!(self.image.options.rules, ClearTextFirst => true; false) {
            let clear = IoBuf::copy_of(&buf, self.image.limits.alignment);
            let _ = self.write_bytes(clear, Durability::Cached).await;
        }
        let mut enciphered = IoBuf::copy_of(&buf, self.image.limits.alignment);
        let mut done = 0;
        for extent in &self.extents {
            let end = done + memory(extent.len);
            let at = Place { guest: offset + done as u64, host: extent.host };
            let at = mutant!(self.image.options.rules, CipherOfFirstPlace => Place {
                host: self.extents[0].host + done as u64,
                ..at
            }; at);
            cipher.encipher(at, &mut enciphered[done..end]);
            done = end;
        }
        (buf, self.write_bytes(enciphered, how).await.1)
    }

    async fn write_bytes(&mut self, buf: IoBuf, how: Durability) -> (IoBuf, Result<(), IoError>) {
        let begin = self.extents.first().map_or(0, |first| first.host);
        if self.image.limits.alignment > UNIT && !self.image.takes(begin, &buf) {
            let written = self.image.write_widened(&mut self.claim, &self.extents, buf, how);
            return Box::pin(written).await;
        }
        let mut rest = buf;
        let mut done = IoBuf::default();
        for extent in &self.extents {
            let mut host = extent.host;
            let mut len = usize::try_from(extent.len).expect("it is part of a buffer");
            while len > 0 {
                let piece = rest.split_to(len.min(self.image.limits.max_transfer));
                len -= piece.len();
                let how = mutant!(self.image.options.rules, ThroughFirstPieceOnly => {
                    if done.is_empty() { how } else { Durability::Cached }
                }; how);
                let left_out = mutant!(self.image.options.rules, ZeroDataLeftOut => {
                    piece.iter().all(|byte| *byte == 0)
                }; false);
                let (piece, written) = match left_out {
                    true => (piece, Ok(())),
                    false => self.claim.write(host, piece, how).await,
                };
                let result = written.map_err(|source| failed("writing data", host, source));
                host += piece.len() as u64;
                done.unsplit(piece);
                if result.is_err() {
                    done.unsplit(rest);
                    return (done, result);
                }
            }
        }
        (done, Ok(()))
    }
}
