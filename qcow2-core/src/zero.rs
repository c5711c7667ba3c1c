//! Write zeroes, discard and uncover: whole clusters by changing their L2 entry, the edges of zeroes by writing them.

use std::ops::Range;

use crate::claims::Resource;
use crate::content::Content;
use crate::error::IoError;
use crate::format::entry::{Mapping, Subclusters};
use crate::image::Image;
use crate::map::{Entries, EntryPlace};
use crate::mutant::mutant;
use crate::state::{State, Stop};
use storage::{Durability, IoBuf, Storage, UNIT};

/// Most guest clusters, or tables that do not exist, that are looked at in one step.
const AT_ONCE: u64 = 256;

/// What becomes of the host clusters of a range that is to read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// They stay with the guest cluster, so that writing it again needs no allocation. In version 2 no entry can say so, and they are
    /// freed.
    Keep,
    /// They are freed.
    Free,
}

/// What whole guest clusters are to read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Becomes {
    Zeroes(Zeroing),
    /// What the layer below holds, zeroes without one.
    Below,
    /// Zeroes of the image's own, where these bytes show the layer below, which has zeroes there; what they are elsewhere.
    Hidden {
        from: u64,
        until: u64,
    },
}

/// How far a step has come that takes what guest clusters hold from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Done,
    /// The L2 table of this L1 index has to be made first: without it a layer below shows.
    NeedsTable(u64),
}

impl State {
    /// What to put in the place of a guest cluster's mapping, so that it reads as zeroes; none where it does, or where nothing can say so.
    fn zeroed(&self, guest_cluster: u64, mapping: Mapping, how: Zeroing) -> Option<Mapping> {
        let is_shown = self.unallocated(guest_cluster) != Content::Zero;
        let is_shown = mutant!(self.rules, ZeroesShowLayer => is_shown && !self.header.has_zero_entries(); is_shown);
        let empty = match (is_shown, self.header.has_zero_entries()) {
            (false, _) => Mapping::Unallocated,
            (true, true) => Mapping::ZeroPlain,
            (true, false) => return None,
        };
        match (mapping, how) {
            (Mapping::Unallocated, _) if is_shown => Some(empty),
            (Mapping::Unallocated | Mapping::ZeroPlain, _)
            | (Mapping::ZeroAllocated { .. }, Zeroing::Keep) => None,
            (Mapping::Data { host, copied: true }, Zeroing::Keep) if mutant!(self.rules, ZeroMarkInVersion2 => true; self.header.has_zero_entries()) => {
                Some(Mapping::ZeroAllocated { host, copied: true })
            }
            // Nothing of it reads as anything but zeroes, and it has nothing that could be freed.
            (Mapping::Mixed { host: 0, .. }, _) if !is_shown => None,
            (Mapping::Mixed { host: host @ 1.., copied: true, .. }, Zeroing::Keep) => {
                Some(Mapping::ZeroAllocated { host, copied: true })
            }
            (
                Mapping::Data { .. }
                | Mapping::ZeroAllocated { .. }
                | Mapping::Compressed { .. }
                | Mapping::Mixed { .. },
                _,
            ) => Some(empty),
        }
    }

    /// What to put in the place of a guest cluster's mapping, so that the layer below shows; none where it does.
    fn uncovered(&self, mapping: Mapping) -> Option<Mapping> {
        match mapping {
            Mapping::Unallocated => None,
            Mapping::ZeroPlain | Mapping::ZeroAllocated { .. } if mutant!(self.rules, UncoverKeepsZeroes => true; false) => {
                None
            }
            _ => Some(Mapping::Unallocated),
        }
    }

    /// What to put in the place of a guest cluster's mapping, so that what these bytes of it show of the layer below reads as zeroes; none
    /// where they show nothing.
    fn hidden(&self, guest_cluster: u64, mapping: Mapping, bytes: &Range<u64>) -> Option<Mapping> {
        let shows = self.showing(guest_cluster, mapping, bytes);
        if shows == 0 {
            return None;
        }
        if !self.extended {
            return Some(Mapping::ZeroPlain);
        }
        let (host, copied, of) = mapping.subclusters().expect("a stream shows no layer");
        Some(Mapping::with_subclusters(host, copied, Subclusters { zero: of.zero | shows, ..of }))
    }

    /// Lets the first of these guest clusters become what they are to, as far as the cache knows them, and takes them out of the range.
    ///
    /// In version 2, what a layer below shows stays as it is: no entry can hide it.
    pub(crate) fn clear_some(
        &mut self,
        clusters: &mut Range<u64>,
        becomes: Becomes,
    ) -> Result<Step, Stop> {
        let is_kept = becomes == Becomes::Zeroes(Zeroing::Keep);
        for _ in 0..AT_ONCE {
            if clusters.is_empty() {
                break;
            }
            let hides = becomes != Becomes::Below
                && clusters.start < self.shown()
                && self.header.has_zero_entries();
            let hides = mutant!(self.rules, NoTableHidesNothing => false; hides);
            if hides
                && let EntryPlace::NoTable(index) = self.entry_place_to_change(clusters.start)?
            {
                return Ok(Step::NeedsTable(index));
            }
            match self.entries(clusters.clone(), AT_ONCE)? {
                Entries::NoTable { clusters: unmapped } => {
                    clusters.start +=
                        mutant!(self.rules, ZeroSkipsAfterGap => unmapped + 1; unmapped);
                }
                Entries::At { slot, at, count } => {
                    self.check_unshared(at)?;
                    let mut owned = false;
                    let entry_bytes = self.entry_bytes();
                    for index in 0..count as u64 {
                        let at = at + entry_bytes * index;
                        let old = self.mapping_in(clusters.start, slot, at)?;
                        let new = match becomes {
                            Becomes::Zeroes(how) => self.zeroed(clusters.start, old, how),
                            Becomes::Below => self.uncovered(old),
                            Becomes::Hidden { from, until } => {
                                self.hidden(clusters.start, old, &(from..until))
                            }
                        };
                        if let Some(new) = new {
                            if !owned {
                                self.check_table_owned(clusters.start)?;
                                owned = true;
                            }
                            if new.host().is_none() {
                                self.check_given_up(old)?;
                            }
                            self.clear(clusters.start, at, old, new, !is_kept);
                        }
                        clusters.start += 1;
                    }
                    return Ok(Step::Done);
                }
            }
        }
        Ok(Step::Done)
    }

    /// Whether any part of the guest cluster, or of the subclusters, that a range touches may read as something else than zeroes.
    pub(crate) fn has_data_in(&mut self, bytes: Range<u64>) -> Result<bool, Stop> {
        let guest_cluster = bytes.start / self.cluster_size();
        if self.extended {
            let mapping = self.mapping(guest_cluster)?;
            let touched = self.touched(guest_cluster, &bytes);
            return Ok(!self.reads_zero(guest_cluster, mapping, touched));
        }
        self.has_data(guest_cluster)
    }

    /// Whether any part of a guest cluster may read as something else than zeroes.
    fn has_data(&mut self, guest_cluster: u64) -> Result<bool, Stop> {
        let mapping = self.mapping(guest_cluster)?;
        if let Mapping::Mixed { .. } = mapping {
            return Ok(!self.reads_zero(guest_cluster, mapping, 0..Subclusters::COUNT));
        }
        Ok(self.content(guest_cluster, mapping) != Content::Zero)
    }
}

impl<S: Storage> Image<S> {
    /// Makes a guest range read as zeroes; `offset` and `len` are multiples of 512 bytes.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub async fn write_zeroes(&self, offset: u64, len: u64, how: Zeroing) -> Result<(), IoError> {
        let whole = self.whole_clusters(offset, len).await?;
        let (size, end) = (self.cluster_size, offset + len);
        if self.is_raw() {
            self.zero_in_raw(offset..end).await?;
        } else if whole.start >= whole.end {
            self.zero_part(offset, end, size).await?;
        } else {
            self.zero_part(offset, whole.start * size, size).await?;
            // Where no entry can hide a layer below, zeroes are written over it.
            let written = self.now(|state| match state.header.has_zero_entries() {
                true => whole.start,
                false => state.shown().clamp(whole.start, whole.end),
            });
            let written =
                mutant!(self.options.rules, ZeroesNotWrittenOverLayer => whole.start; written);
            self.zero_part(whole.start * size, (written * size).min(end), size).await?;
            let becomes = Becomes::Zeroes(how);
            let done = self.clear_clusters(written..whole.end, end, becomes).await?;
            mutant!(self.options.rules, ZeroTailKept => (); {
                self.zero_part(done * size, end, size).await?;
            });
        }
        let through = self.options.write_through;
        let through = mutant!(self.options.rules, OptionIgnoredForZeroes => false; through);
        if through { self.flush().await } else { Ok(()) }
    }

    /// Frees the whole clusters in a guest range, which then read as zeroes, and leaves the rest as it is; in version 2 also those
    /// where a layer is below, which would show then.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let whole = self.whole_clusters(offset, len).await?;
        let becomes = Becomes::Zeroes(Zeroing::Free);
        self.clear_or_zero(whole, offset + len, becomes).await?;
        if self.options.write_through { self.flush().await } else { Ok(()) }
    }

    /// Frees the whole clusters in a guest range, which then show the layer below, or zeroes without one, and leaves the rest as it is. It
    /// undoes what was written since the image was created over its layer, as after that was copied down into it.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub async fn uncover(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let whole = self.whole_clusters(offset, len).await?;
        let is_cut_short = whole.end * self.cluster_size > offset + len;
        let waits = mutant!(self.options.rules, UncoverBesideGrowth => false; is_cut_short);
        // A growth hides what a longer layer shows of the last cluster past the end of before, and only then is the disk larger.
        let _size = if waits { Some(self.claim(Resource::Size).await?) } else { None };
        let becomes = mutant!(self.options.rules, UncoverHidesLayer => Becomes::Zeroes(Zeroing::Free); Becomes::Below);
        self.clear_or_zero(whole, offset + len, becomes).await?;
        if self.options.write_through { self.flush().await } else { Ok(()) }
    }

    /// Lets whole guest clusters of a request that ends at byte `end` become what they are to. In a data file that is the guest's disk by
    /// itself there is nothing below, and zeroes are written.
    async fn clear_or_zero(
        &self,
        whole: Range<u64>,
        end: u64,
        becomes: Becomes,
    ) -> Result<(), IoError> {
        if self.is_raw() {
            let size = self.cluster_size;
            return self.zero_in_raw(whole.start * size..end.min(whole.end * size)).await;
        }
        self.clear_clusters(whole, end, becomes).await.map(drop)
    }

    /// The whole guest clusters of a range that may be changed. The last cluster of the disk may be cut short: all that there is of it
    /// is the whole.
    pub(crate) async fn whole_clusters(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<Range<u64>, IoError> {
        self.begin_change().await?;
        let disk = self
            .with(|state| {
                state.accepts_requests()?;
                state.check_range(offset, len)?;
                Ok::<_, IoError>(state.header.size)
            })
            .await?;
        let (size, end) = (self.cluster_size, offset + len);
        let at_the_end = mutant!(self.options.rules, ShortLastClusterKept => false; end == disk);
        let whole_end = if at_the_end { end.div_ceil(size) } else { end / size };
        let start =
            mutant!(self.options.rules, DiscardRoundsOut => offset / size; offset.div_ceil(size));
        Ok(start..whole_end)
    }

    /// Lets whole guest clusters of a request that ends at byte `end` become what they are to, and says before which one it has done so.
    async fn clear_clusters(
        &self,
        mut clusters: Range<u64>,
        end: u64,
        becomes: Becomes,
    ) -> Result<u64, IoError> {
        if clusters.is_empty() {
            return Ok(clusters.end);
        }
        let mut claim = self.claim(Resource::Guest(clusters.clone())).await?;
        // The disk may have become smaller while the claim was waited for; or larger, and then a last cluster that was cut short is not
        // whole any more: somebody may have written to what there is of it now.
        let last = clusters.end - 1;
        let disk = self.now(|state| {
            state.check_range(last * self.cluster_size, UNIT as u64).map(|()| state.header.size)
        })?;
        if mutant!(self.options.rules, GrownClusterZeroed => false; end < disk.min(clusters.end * self.cluster_size))
        {
            clusters.end = last;
        }
        let done = clusters.end;
        let first = clusters.start;
        while !clusters.is_empty() {
            self.clear_step(&mut clusters, becomes).await?;
        }
        // What is to show the layer below would show zeroes if its entry outlives a power cut.
        let gone = becomes == Becomes::Zeroes(Zeroing::Free);
        if mutant!(self.options.rules, UncoverDiscardsData => gone || becomes == Becomes::Below; gone)
        {
            self.discard_data(&mut claim, first..done).await?;
        }
        Ok(done)
    }

    /// One step of that under a claim.
    pub(crate) async fn clear_step(
        &self,
        clusters: &mut Range<u64>,
        becomes: Becomes,
    ) -> Result<(), IoError> {
        match self.decide(|state| state.clear_some(clusters, becomes)).await? {
            Step::Done => Ok(()),
            Step::NeedsTable(index) => Box::pin(self.add_l2_table(index)).await,
        }
    }

    /// Zeroes a part of one or two clusters.
    async fn zero_part(&self, from: u64, to: u64, size: u64) -> Result<(), IoError> {
        if self.now(|state| state.extended) {
            let one = size / Subclusters::COUNT;
            let whole = from.next_multiple_of(one)..to / one * one;
            if whole.is_empty() {
                return self.write_zeroes_to_part(from, to, one).await;
            }
            if Box::pin(self.zero_whole_subclusters(whole.clone())).await? {
                self.write_zeroes_to_part(from, whole.start, one).await?;
                return self.write_zeroes_to_part(whole.end, to, one).await;
            }
        }
        self.write_zeroes_to_part(from, to, size).await
    }

    /// Writes zeroes to a part of some clusters, or subclusters, of so many bytes; not to those that read as zeroes.
    async fn write_zeroes_to_part(&self, from: u64, to: u64, size: u64) -> Result<(), IoError> {
        let mut at = from;
        while at < to {
            let piece = (size - at % size).min(to - at);
            let looked_at = mutant!(self.options.rules, ZeroLooksAtFirstCluster => from; at);
            if self.decide(|state| state.has_data_in(looked_at..looked_at + piece)).await? {
                let len = usize::try_from(piece).expect("a cluster fits in memory");
                let buf = IoBuf::zeroed(len, self.limits.alignment);
                let mut map = self.map_to_write(at, piece).await?;
                map.write_data(at, buf, Durability::Cached).await.1?;
                map.commit().await?;
            }
            at += piece;
        }
        Ok(())
    }

    /// Lets whole subclusters of one guest cluster, or of two, read as zeroes by their bits. Returns whether it has: one that is compressed
    /// has no bits.
    async fn zero_whole_subclusters(&self, bytes: Range<u64>) -> Result<bool, IoError> {
        let size = self.cluster_size;
        let clusters = bytes.start / size..bytes.end.div_ceil(size);
        let _claim = self.claim(Resource::Guest(clusters.clone())).await?;
        // The disk may have become smaller while the claim was waited for.
        self.now(|state| state.check_range(bytes.start, bytes.end - bytes.start))?;
        for cluster in clusters {
            let part = bytes.start.max(cluster * size)..bytes.end.min((cluster + 1) * size);
            loop {
                let step = |state: &mut State| match state.entry_place_to_change(cluster)? {
                    EntryPlace::At(at) => {
                        let subclusters = state.touched(cluster, &part);
                        let has_bits = state.zero_subclusters(cluster, at, subclusters)?;
                        Ok((Step::Done, has_bits))
                    }
                    EntryPlace::NoTable(_) if cluster >= state.shown() => Ok((Step::Done, true)),
                    EntryPlace::NoTable(index) => Ok((Step::NeedsTable(index), true)),
                };
                match self.decide(step).await? {
                    (Step::Done, true) => break,
                    (Step::Done, false) => return Ok(false),
                    (Step::NeedsTable(index), _) => Box::pin(self.add_l2_table(index)).await?,
                }
            }
        }
        Ok(true)
    }
}
