//! Guest data in a file of its own, each byte at the guest's own offset.
//!
//! ```text
//!   image file   | header | refcounts | L1 | L2: mapped, zero, nothing, mapped |
//!                                             │                        │
//!   data file                                 | cluster 0 |  ..  |  ..  | cluster 3 |
//! ```
//!
//! Such a place is taken, freed and counted by nobody, so allocation has nothing to do with it. What is stored there may be anything while
//! no entry maps it: nothing in a data file is fresh, and whatever maps a cluster waits for all of it (`data-before-mapping`).
//!
//! A **raw** data file is the guest's disk by itself, for whoever reads it without the image.
//!
//! **Invariant.** At every moment, on the storage too, a guest unit of a raw one is mapped, or its place holds zeroes. So zeroes are written
//! out and no entry says them, and an entry is durable before anything else is written to its place (`mapping-before-raw-data`).

use std::ops::Range;

use crate::backing::Backing;
use crate::barrier::Barrier;
use crate::claim::Claim;
use crate::claims::Resource;
use crate::error::{IoError, OpenError};
use crate::files::{File, failed, in_data, place};
use crate::format::entry::{Mapping, Subclusters};
use crate::format::header::Header;
use crate::image::Image;
use crate::load::read_header;
use crate::map::{EntryPlace, NewLink};
use crate::mutant::mutant;
use crate::rule::Rule;
use crate::state::State;
use crate::write::{WriteExtent, WriteMap};
use storage::{Durability, IoBuf, Storage};

/// What an image says about its external data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// The name, as its bytes are in the header; none if it says none. A relative one is looked up from where the image lies by
    /// [`FileLayers`](crate::FileLayers), and from its working directory by QEMU 10: what both are to find has an absolute one.
    pub name: Vec<u8>,
    /// Whether the data file, read as a raw disk, is the guest's disk.
    pub raw: bool,
}

impl DataFile {
    /// A data file of that name.
    pub fn new(name: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), raw: false }
    }

    /// One that can be read as a raw disk. Each change of what reads as zeroes costs a write to it, and the first write to a guest cluster
    /// that has no entry three flushes; [creating](crate::create_with_data) such an image makes all entries at once.
    pub fn raw(name: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), raw: true }
    }

    /// What the image on `storage` says, if it has one.
    ///
    /// # Errors
    /// [`OpenError`] if its header cannot be read.
    pub async fn of<S: Storage>(storage: &S) -> Result<Option<Self>, OpenError> {
        Ok(Self::of_header(&read_header(storage).await?.header))
    }

    pub(crate) fn of_header(header: &Header) -> Option<Self> {
        header.has_data_file().then(|| Self {
            name: header.data_file_name().unwrap_or_default().to_vec(),
            raw: header.has_raw_data_file(),
        })
    }

    /// Why an image cannot have one over this layer, if it cannot.
    pub(crate) fn fault(&self, backing: Option<&Backing>) -> Option<&'static str> {
        if self.name.is_empty() {
            return Some("a data file without a name");
        }
        (self.raw && backing.is_some())
            .then_some("a data file that is the disk by itself, and a backing file besides")
    }
}

impl State {
    /// What of the tables has to be durable so that this guest cluster is found as it is mapped now.
    fn undurable_tables(
        &mut self,
        guest_cluster: u64,
    ) -> Result<impl Iterator<Item = crate::order::Before> + use<>, crate::state::Stop> {
        let l1_at = self.header.l1_table_offset + (guest_cluster >> self.table_bits) * 8;
        let l1_page = self.cache.page_of(l1_at);
        let l2_page = match self.entry_place(guest_cluster)? {
            EntryPlace::At(at) => Some(self.cache.page_of(at)),
            EntryPlace::NoTable(_) => None,
        };
        let pages = [Some(l1_page), l2_page]
            .map(|page| page.and_then(|page| self.cache.undurable(page, &self.clock)));
        Ok(pages.into_iter().flatten())
    }
}

impl<S: Storage> Image<S> {
    /// How many bytes of a guest cluster there are at this host address: in the data file none past its end, which need not be that of the disk.
    /// What it has there comes to light when the disk grows, so it is filled like the rest; what it has not reads as zeroes then.
    pub(crate) fn room_in(&self, guest_cluster: u64, host: u64) -> u64 {
        let size = self.cluster_size;
        match place(host).0 {
            File::Image => size,
            File::Data => {
                let end = self.now(|state| {
                    mutant!(state.rules, DataFilledToDiskEnd => state.header.size; state.data_length)
                });
                self.data_end(end.saturating_sub(guest_cluster * size)).min(size)
            }
        }
    }

    /// Whether what reads as zeroes has to be written as zeroes, because the data file is the guest's disk by itself.
    pub(crate) fn is_raw(&self) -> bool {
        self.now(|state| mutant!(state.rules, RawZeroedByEntry => false; state.raw))
    }

    /// The end of so many bytes in the data file: that of the last sector.
    pub(crate) fn data_end(&self, size: u64) -> u64 {
        size.next_multiple_of(self.limits.sector() as u64)
    }

    /// Gives the space of whole guest clusters in the data file back, which nothing maps any more. Should the entries not outlive a power cut,
    /// they show what was there or zeroes, which is what a discard that was not flushed may show. Of an encrypted image they would show what
    /// zeroes decipher to, and nothing is given back.
    pub(crate) async fn discard_data(
        &self,
        claim: &mut Claim<'_, S>,
        clusters: Range<u64>,
    ) -> Result<(), IoError> {
        let can_discard = self.files.data.as_ref().is_some_and(|data| data.limits().can_discard);
        let is_encrypted =
            mutant!(self.options.rules, EncryptedDataDiscarded => false; self.cipher.is_some());
        if !can_discard || !self.options.pass_discard || is_encrypted {
            return Ok(());
        }
        let disk = self.data_end(self.now(|state| state.header.size));
        let (from, to) = (clusters.start * self.cluster_size, clusters.end * self.cluster_size);
        // One that fails gives no space back, and that is all.
        let _ = claim.discard(in_data(from)..in_data(to.min(disk))).await;
        claim.settle().await
    }

    /// Writes zeroes to a part of the guest's disk that is a raw data file. What no entry maps is zero there already, or is now.
    pub(crate) async fn zero_in_raw(&self, bytes: Range<u64>) -> Result<(), IoError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let (offset, len) = (bytes.start, bytes.end - bytes.start);
        let mut claim = self.claim(Resource::Guest(self.clusters(offset, len))).await?;
        // The disk may have become smaller while the claim was waited for.
        self.now(|state| state.check_range(offset, len))?;
        self.zero_data(&mut claim, bytes).await
    }

    /// Zeroes bytes of the data file, whatever the storage's sectors are.
    async fn zero_data(&self, claim: &mut Claim<'_, S>, bytes: Range<u64>) -> Result<(), IoError> {
        let sector = self.limits.sector() as u64;
        let from = bytes.start.next_multiple_of(sector).min(bytes.end);
        let to = (bytes.end - bytes.end % sector).max(from);
        if from < to {
            let zeroed = claim.write_zeroes(in_data(from)..in_data(to)).await;
            zeroed.map_err(|source| failed("writing zeroes", in_data(from), source))?;
        }
        for edge in [bytes.start..from, to..bytes.end] {
            let len = edge.end - edge.start;
            if len > 0 {
                let len_in_memory = usize::try_from(len).expect("less than a sector");
                let buf = IoBuf::zeroed(len_in_memory, self.limits.alignment);
                let extent = WriteExtent { len, host: in_data(edge.start) };
                self.write_widened(claim, &[extent], buf, Durability::Cached).await.1?;
            }
        }
        self.with(|state| state.clock.stamp(File::Data)).await;
        Ok(())
    }

    /// Makes the data file reach the end of a larger disk. What lies there in one that was longer already becomes zeroes if it would be seen.
    pub(crate) async fn grow_data_file(&self, from: u64, to: u64) -> Result<(), IoError> {
        let Some(data) = &self.files.data else { return Ok(()) };
        let mut claim = self.claim(Resource::Guest(self.clusters(from, to - from))).await?;
        let action = "asking for the length";
        let length = data.len().await;
        let length = length.map_err(|source| failed(action, in_data(0), source))?;
        // In any case: a cut that failed may come to light with a power cut, whatever length the storage says meanwhile.
        let end = self.data_end(to.max(length));
        if mutant!(self.options.rules, FailedCutBelieved => length < end; true) {
            let grown = claim.set_len(File::Data, end).await;
            grown.map_err(|source| failed("growing the file", in_data(length), source))?;
            self.with(|state| {
                state.data_length = end;
                state.clock.stamp(File::Data)
            })
            .await;
        }
        let seen = from..length.min(to);
        if !seen.is_empty() && self.now(|state| state.raw) {
            mutant!(self.options.rules, GrownRawNotZeroed => (); {
                self.zero_data(&mut claim, seen).await?;
            });
        }
        Ok(())
    }

    /// Cuts the data file behind a disk that has become smaller; the claim is on all guest clusters there. One that cannot be cut stays longer,
    /// and so does one that is still read there by a read before the ticket `reads`.
    pub(crate) async fn cut_data_file(
        &self,
        claim: &mut Claim<'_, S>,
        size: u64,
        reads: u64,
    ) -> Result<(), IoError> {
        let Some(data) = &self.files.data else { return Ok(()) };
        let ended = self.with(|state| state.reads_ended(reads)).await;
        if mutant!(self.options.rules, CutBesideRead => false; !ended) {
            return Ok(());
        }
        let _ = claim.set_len(File::Data, self.data_end(size)).await;
        claim.settle().await?;
        let length = data.len().await;
        let length =
            length.map_err(|source| failed("asking for the length", in_data(0), source))?;
        self.with(|state| {
            state.data_length = length;
            state.clock.stamp(File::Data)
        })
        .await;
        Ok(())
    }
}

impl<S: Storage> WriteMap<'_, S> {
    /// Maps guest clusters of a raw data file that no entry maps on the storage: zeroes where nothing was mapped, then the entries, durably,
    /// before the guest's own data.
    pub(crate) async fn let_see(&mut self, clusters: Range<u64>) -> Result<(), IoError> {
        let image = self.image;
        image.restore_header().await?;
        for bytes in self.unmapped(clusters.clone()).await? {
            image.zero_data(&mut self.claim, bytes).await?;
        }
        let mut before = Vec::new();
        for cluster in clusters {
            image
                .decide(|state| {
                    let zeroes = state.clock.newest(File::Data);
                    let of = Subclusters { data: u32::MAX, zero: 0 };
                    let host = state.place_in_data(cluster);
                    let link =
                        NewLink { guest_cluster: cluster, host, run: None, of, read_zero: false };
                    // One that is mapped, and not durably, waits for what others have changed.
                    if !matches!(state.mapping(cluster)?, Mapping::Data { .. }) {
                        state.link(&link, None, zeroes)?;
                    }
                    before.extend(state.undurable_tables(cluster)?);
                    Ok(())
                })
                .await?;
        }
        before.dedup();
        image.ensure(Rule::MappingBeforeRawData, Barrier::RawMapping, &before).await
    }

    /// The parts of guest clusters that no entry maps, neighbours merged, as far as the data file reaches.
    async fn unmapped(&self, clusters: Range<u64>) -> Result<Vec<Range<u64>>, IoError> {
        let image = self.image;
        let size = image.cluster_size;
        let extended = image.now(|state| state.extended);
        let part = if extended { size / Subclusters::COUNT } else { size };
        let mut unmapped: Vec<Range<u64>> = Vec::new();
        for cluster in clusters {
            let mapping = image.decide(|state| state.mapping(cluster)).await?;
            let data = mapping.subclusters().map_or(0, |(_, _, of)| of.data);
            let end = cluster * size + image.room_in(cluster, in_data(cluster * size));
            let parts = (cluster * size..end).step_by(usize::try_from(part).expect("it is small"));
            for from in (0..).zip(parts).filter(|(one, _)| data & 1 << one == 0).map(|(_, at)| at) {
                let to = (from + part).min(end);
                match unmapped.last_mut() {
                    Some(last) if last.end == from => last.end = to,
                    _ => unmapped.push(from..to),
                }
            }
        }
        Ok(unmapped)
    }
}
