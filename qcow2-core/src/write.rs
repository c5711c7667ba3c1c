//! Writing: claim the guest clusters, find or take host clusters, move the bytes, then map them.
//!
//! ```text
//!   guest cluster      | kept or zero |#### request ####| kept or zero |
//!   in place           nothing else            written                        (the entry says COPIED)
//!   new cluster        padded                  written         padded         then linked
//! ```
//!
//! **Invariant.** Nothing refers to a new cluster before all of it is written, and what refers to it then is ordered by the
//! named rules. A request that fails or is dropped before that leaves the old mapping.

use std::collections::VecDeque;
use std::ops::Range;

use crate::alloc::Extent;
use crate::cache::Kind;
use crate::claims::Resource;
use crate::error::IoError;
use crate::format::entry::{L1Entry, Mapping};
use crate::image::{Claim, Image};
use crate::map::{EntryPlace, Link};
use crate::metadata::Table;
use crate::order::Before;
use crate::rule::Rule;
use crate::state::{State, Stop};
use crate::storage::{Durability, IoBuf, Storage};

/// Where a piece of a guest range goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteExtent {
    /// Length in bytes.
    pub len: u64,
    /// Host offset in bytes.
    pub host: u64,
}

/// Host extents for a guest range that is about to be written.
///
/// Write the data to [`WriteMap::extents`], call [`WriteMap::begin`] before the first byte and [`WriteMap::commit`] after
/// the last. Dropping the map instead leaves the old mapping; the range stays claimed until then.
#[derive(Debug)]
pub struct WriteMap<'a, S: Storage> {
    image: &'a Image<S>,
    claim: Claim<'a, S>,
    extents: Vec<WriteExtent>,
    links: Vec<NewLink>,
    runs: Vec<Extent>,
}

/// A mapping to be made when the data is there.
#[derive(Debug)]
struct NewLink {
    guest_cluster: u64,
    host: u64,
    /// Index into `runs`; `None` if the entry keeps its own cluster.
    run: Option<usize>,
}

/// Most guest clusters that are looked at in one step.
const AT_ONCE: u64 = 256;

/// How a guest cluster gets a host cluster to write to.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// The L2 table of this L1 index does not exist yet.
    NoTable(u64),
    /// It has one of its own that holds its data.
    InPlace(u64),
    /// It has one of its own whose content nobody reads.
    Revive(u64),
    /// It needs a new one; what a partial write leaves comes from here, or is zero.
    New { source: Option<u64> },
}

impl State {
    /// How some of these guest clusters, from the first one on, get host clusters: as far as the cache knows, and no further than one
    /// without a table.
    fn write_targets(
        &mut self,
        clusters: Range<u64>,
        targets: &mut VecDeque<Target>,
    ) -> Result<(), Stop> {
        let mut owned = None;
        for cluster in clusters.start..clusters.end.min(clusters.start + AT_ONCE) {
            let target = match self.write_target(cluster) {
                Err(Stop::Load { .. }) if !targets.is_empty() => return Ok(()),
                target => target?,
            };
            if let Target::New { .. } | Target::Revive(_) = target {
                let table = cluster / self.l2_entries();
                if owned != Some(table) {
                    match self.check_table_owned(cluster) {
                        Err(Stop::Load { .. }) if !targets.is_empty() => return Ok(()),
                        checked => checked?,
                    }
                    owned = Some(table);
                }
            }
            targets.push_back(target);
            if let Target::NoTable(_) = target {
                return Ok(());
            }
        }
        Ok(())
    }

    fn write_target(&mut self, guest_cluster: u64) -> Result<Target, Stop> {
        let at = match self.entry_place(guest_cluster)? {
            // A table past the end of the file holds nothing, and nobody knows what will be there. One that the file ends inside
            // goes on in zeroes.
            EntryPlace::At(at) if at - at % self.cluster_size() >= self.length => {
                return Ok(Target::NoTable(guest_cluster / self.l2_entries()));
            }
            EntryPlace::At(at) => at,
            EntryPlace::NoTable(index) => return Ok(Target::NoTable(index)),
        };
        Ok(match self.mapping_at(at)? {
            // The same of data.
            Mapping::Data { host, .. } | Mapping::ZeroAllocated { host, .. }
                if host >= self.length =>
            {
                Target::New { source: None }
            }
            Mapping::Data { host, copied: true } => {
                self.check_data(host)?;
                Target::InPlace(host)
            }
            Mapping::Data { host, copied: false } => Target::New { source: Some(host) },
            Mapping::ZeroAllocated { host, copied: true } => {
                self.check_data(host)?;
                Target::Revive(host)
            }
            Mapping::Unallocated | Mapping::ZeroPlain | Mapping::ZeroAllocated { .. } => {
                Target::New { source: None }
            }
            Mapping::Compressed { .. } => {
                return Err(IoError::Unsupported("a compressed cluster".into()).into());
            }
        })
    }

    /// Refuses to write guest data over metadata.
    fn check_data(&self, host: u64) -> Result<(), IoError> {
        let cluster = host / self.cluster_size();
        self.check_unused(cluster..cluster + 1)
    }

    /// Checks that the L2 table of an L1 index may be changed in place: nothing else refers to it.
    pub(crate) fn check_table_owned(&mut self, guest_cluster: u64) -> Result<(), Stop> {
        let index = guest_cluster / self.l2_entries();
        let Some(table) = self.l1_entry(index)?.1 else { return Ok(()) };
        let cluster = table.host / self.cluster_size();
        if self.metadata.as_ref().is_some_and(|metadata| metadata.is_shared(cluster)) {
            return Err(IoError::SharedTable { host: table.host, refcount: 2 }.into());
        }
        if table.copied {
            return Ok(());
        }
        match self.refcount(cluster)? {
            0 | 1 => Ok(()),
            refcount => Err(IoError::SharedTable { host: table.host, refcount }.into()),
        }
    }

    /// Whether the mapping of a guest cluster is on the storage for good, so that writing in place through the cache is
    /// all that it takes.
    fn is_mapped_durably(&mut self, guest_cluster: u64) -> Result<bool, Stop> {
        let EntryPlace::At(at) = self.entry_place(guest_cluster)? else { return Ok(false) };
        let l1_at = self.header.l1_table_offset + guest_cluster / self.l2_entries() * 8;
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
        let mut map = match self.map_write(offset, buf.len() as u64).await {
            Ok(map) => map,
            Err(error) => return (buf, Err(error)),
        };
        let direct = through && map.is_mapped_durably(offset, buf.len() as u64).await;
        let how = if direct { Durability::Through } else { Durability::Cached };
        let (buf, result) = map.write_data(buf, how).await;
        if let Err(error) = result {
            return (buf, Err(error));
        }
        let mut result = map.commit().await;
        if result.is_ok() && through && !direct {
            result = self.flush().await;
        }
        (buf, result)
    }

    /// Claims a guest range and finds or takes host clusters for it; `offset` and `len` are multiples of 512 bytes.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub async fn map_write(&self, offset: u64, len: u64) -> Result<WriteMap<'_, S>, IoError> {
        self.begin_change().await?;
        let check = |state: &State| {
            state.accepts_requests()?;
            state.check_range(offset, len)
        };
        self.map_checked(offset, len, check).await
    }

    /// The same for any range of whole units that the tables can hold, past the end of the disk too.
    pub(crate) async fn map_range(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<WriteMap<'_, S>, IoError> {
        self.map_checked(offset, len, |_| Ok(())).await
    }

    async fn map_checked(
        &self,
        offset: u64,
        len: u64,
        check: impl Fn(&State) -> Result<(), IoError>,
    ) -> Result<WriteMap<'_, S>, IoError> {
        let size = self.cluster_size;
        let end = offset.saturating_add(len);
        let clusters = offset / size..end.div_ceil(size);
        let claim = self.claim_if(Resource::Guest(clusters.clone()), check).await?;
        let mut map = WriteMap {
            image: self,
            claim,
            extents: Vec::new(),
            links: Vec::new(),
            runs: Vec::new(),
        };
        let mut cluster = clusters.start;
        let mut targets = VecDeque::new();
        while cluster < clusters.end {
            if targets.is_empty() {
                self.decide(|state| state.write_targets(cluster..clusters.end, &mut targets))
                    .await?;
            }
            let is_new = |target: &Target| matches!(target, Target::New { .. });
            match *targets.front().expect("there is one cluster at least") {
                Target::NoTable(index) => {
                    self.add_l2_table(index).await?;
                    targets.pop_front();
                }
                Target::InPlace(host) => {
                    map.add_extent(cluster, host, offset, end, size);
                    targets.pop_front();
                    cluster += 1;
                }
                Target::Revive(host) => {
                    map.pad(cluster, host, None, offset, end, size).await?;
                    map.links.push(NewLink { guest_cluster: cluster, host, run: None });
                    map.add_extent(cluster, host, offset, end, size);
                    targets.pop_front();
                    cluster += 1;
                }
                Target::New { .. } => {
                    let wanted = targets.iter().take_while(|target| is_new(target)).count() as u64;
                    let run = self.allocate(&mut map.claim, wanted).await?;
                    let index = map.runs.len();
                    for host in run.clusters.clone() {
                        let host = host * size;
                        let source = match targets.pop_front() {
                            Some(Target::New { source }) => source,
                            _ => None,
                        };
                        if !run.fresh || source.is_some() {
                            map.pad(cluster, host, source, offset, end, size).await?;
                        }
                        map.links.push(NewLink { guest_cluster: cluster, host, run: Some(index) });
                        map.add_extent(cluster, host, offset, end, size);
                        cluster += 1;
                    }
                    map.runs.push(run);
                }
            }
        }
        Ok(map)
    }

    /// Adds an empty L2 table.
    async fn add_l2_table(&self, index: u64) -> Result<(), IoError> {
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
        if !extent.fresh {
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
                let zeroes = Before::Written(state.clock.stamp());
                state.order(page, Rule::ZeroesBeforePointer, zeroes);
            }
            state.order_reference(page, extent.clusters.end, &extent.counts);
            let stamp = state.clock.newest();
            state.cache.insert_zeroes(host, Kind::L2, stamp);
            claim.clusters.clear();
            Ok(())
        })
        .await
    }
}

impl<S: Storage> WriteMap<'_, S> {
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
        self.claim.set_in_flight(false);
        if self.links.is_empty() {
            self.image.with(|state| state.clock.stamp()).await;
            return Ok(());
        }
        let Self { image, claim, links, runs, .. } = &mut self;
        let (mut data, mut done) = (None, 0);
        while done < links.len() {
            let batch = links.len().min(done + AT_ONCE as usize);
            image
                .decide(|state| {
                    let data = *data.get_or_insert_with(|| state.clock.stamp());
                    for link in &links[done..batch] {
                        state.link(&Link {
                            guest_cluster: link.guest_cluster,
                            host: link.host,
                            extent: link.run.map(|run| &runs[run]),
                            data,
                        })?;
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

    /// Says that the caller's I/O is over without success: new clusters are given back once it cannot land any more.
    pub fn fail(mut self) {
        self.claim.set_failed();
    }

    async fn is_mapped_durably(&self, offset: u64, len: u64) -> bool {
        let size = self.image.cluster_size;
        if !self.links.is_empty() {
            return false;
        }
        for cluster in offset / size..(offset + len).div_ceil(size) {
            let durable = self.image.decide(|state| state.is_mapped_durably(cluster)).await;
            if !durable.unwrap_or(false) {
                return false;
            }
        }
        true
    }

    fn add_extent(&mut self, cluster: u64, host: u64, offset: u64, end: u64, size: u64) {
        let from = (cluster * size).max(offset);
        let to = ((cluster + 1) * size).min(end);
        let host = host + from % size;
        match self.extents.last_mut() {
            Some(last) if last.host + last.len == host => last.len += to - from,
            _ => self.extents.push(WriteExtent { len: to - from, host }),
        }
    }

    /// Fills what the request leaves of a cluster: from `source`, or with zeroes.
    async fn pad(
        &mut self,
        cluster: u64,
        host: u64,
        source: Option<u64>,
        offset: u64,
        end: u64,
        size: u64,
    ) -> Result<(), IoError> {
        let start = cluster * size;
        let head = 0..offset.saturating_sub(start).min(size);
        let tail = end.saturating_sub(start).min(size)..size;
        for range in [head, tail].into_iter().filter(|range| !range.is_empty()) {
            let to = host + range.start;
            let result = match source {
                None => self.claim.write_zeroes(to..host + range.end).await,
                Some(source) => self.copy(source + range.start, to, range.end - range.start).await,
            };
            let action = "filling the rest of a cluster";
            result.map_err(|source| IoError::Storage { action, offset: to, source })?;
        }
        Ok(())
    }

    async fn copy(&mut self, from: u64, to: u64, len: u64) -> std::io::Result<()> {
        let limits = self.image.limits;
        let mut done = 0;
        while done < len {
            let piece = usize::try_from(len - done).expect("a cluster fits in memory");
            let buf = IoBuf::zeroed(piece.min(limits.max_transfer), limits.alignment);
            let (buf, read) = self.image.storage.read(from + done, buf).await;
            read?;
            let (buf, written) = self.claim.write(to + done, buf, Durability::Cached).await;
            written?;
            done += buf.len() as u64;
        }
        Ok(())
    }

    pub(crate) async fn write_data(
        &mut self,
        buf: IoBuf,
        how: Durability,
    ) -> (IoBuf, Result<(), IoError>) {
        let mut rest = buf;
        let mut done = IoBuf::default();
        for extent in &self.extents {
            let mut offset = extent.host;
            let mut len = usize::try_from(extent.len).expect("it is part of a buffer");
            while len > 0 {
                let piece = rest.split_to(len.min(self.image.limits.max_transfer));
                len -= piece.len();
                let (piece, written) = self.claim.write(offset, piece, how).await;
                let action = "writing data";
                let result = written.map_err(|source| IoError::Storage { action, offset, source });
                offset += piece.len() as u64;
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
