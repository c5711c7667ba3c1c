//! From a guest cluster to its place on the host, and back into the tables.
//!
//! ```text
//!   guest offset = | L1 index | L2 index | offset in cluster |
//!
//!   header ──> L1 table ──entry──> L2 table (one cluster) ──entry──> data cluster
//! ```
//!
//! With an external data file the data cluster is in that file, at the guest's own offset, and belongs to no other guest cluster ever.

use std::num::NonZeroU32;
use std::ops::Range;

use crate::alloc::Extent;
use crate::cache::{Kind, Slot};
use crate::content::Content;
use crate::error::IoError;
use crate::files::{File, in_data, place};
use crate::format::entry::{L1Entry, L2Entry, Mapping, Subclusters};
use crate::mutant::mutant;
use crate::order::{Before, Stamp};
use crate::rule::Rule;
use crate::state::{State, Stop};
use crate::tail::Room;

/// Where the L2 entry of a guest cluster is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum EntryPlace {
    /// At this host offset.
    At(u64),
    /// Nowhere: the L1 entry of this index is empty.
    NoTable(u64),
}

/// What maps guest clusters that follow each other, as far as one page goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entries {
    /// So many L2 entries from host offset `at` on, in a page of the cache.
    At { slot: Slot, at: u64, count: usize },
    /// None for so many clusters: their L1 entry is empty.
    NoTable { clusters: u64 },
}

/// A mapping to be made when the data is there.
#[derive(Debug)]
pub(crate) struct NewLink {
    pub(crate) guest_cluster: u64,
    pub(crate) host: u64,
    /// Which of the extents that were taken `host` is from, counted from 1; `None` if the entry keeps its own cluster.
    pub(crate) run: Option<NonZeroU32>,
    /// In an image with extended entries, what becomes of the subclusters, and whether those that are written read as zeroes before.
    pub(crate) of: Subclusters,
    pub(crate) read_zero: bool,
}

fn lost_table(guest_cluster: u64) -> IoError {
    IoError::Lost(format!("guest cluster {guest_cluster} lost its L2 table"))
}

impl State {
    /// L2 entries in a table.
    pub(crate) fn l2_entries(&self) -> u64 {
        1 << self.table_bits
    }

    /// Bytes of an L2 entry.
    pub(crate) fn entry_bytes(&self) -> u64 {
        1 << self.entry_bits
    }

    /// Where the L2 entry of a guest cluster is.
    pub(crate) fn entry_place(&mut self, guest_cluster: u64) -> Result<EntryPlace, Stop> {
        let index = guest_cluster >> self.table_bits;
        let Some(table) = self.l1_entry(index)?.1 else { return Ok(EntryPlace::NoTable(index)) };
        let within = guest_cluster & (self.l2_entries() - 1);
        Ok(EntryPlace::At(table.host + (within << self.entry_bits)))
    }

    /// The same for an entry that is to change. A table past the end of the file holds nothing, and nobody knows what will be there, so
    /// there is none. One that the file ends inside goes on in zeroes.
    #[inline]
    pub(crate) fn entry_place_to_change(&mut self, guest_cluster: u64) -> Result<EntryPlace, Stop> {
        Ok(match self.entry_place(guest_cluster)? {
            EntryPlace::At(at) if at - at % self.cluster_size() >= self.length => {
                EntryPlace::NoTable(guest_cluster / self.l2_entries())
            }
            place => place,
        })
    }

    /// The host offset of the L1 entry `index`, and the entry if it is not empty.
    pub(crate) fn l1_entry(
        &mut self,
        index: u64,
    ) -> Result<(u64, Option<crate::format::entry::TableHost>), Stop> {
        if index >= u64::from(self.header.l1_size) {
            let entries = self.header.l1_size;
            return Err(IoError::Lost(format!("L1 entry {index} of a table of {entries}")).into());
        }
        let at = self.header.l1_table_offset + 8 * index;
        let entry = L1Entry(self.entry(at, Kind::L1)?);
        Ok((at, entry.decode(self.header.cluster_bits, at)?))
    }

    /// What maps the first of these guest clusters, at most so many entries. Each table is looked up once for all of them.
    pub(crate) fn entries(&mut self, clusters: Range<u64>, most: u64) -> Result<Entries, Stop> {
        match self.entry_place(clusters.start)? {
            EntryPlace::At(at) => {
                let most = most.min(clusters.end - clusters.start);
                let (slot, count) = self.entries_at(at, most)?;
                Ok(Entries::At { slot, at, count })
            }
            EntryPlace::NoTable(index) => {
                let end = clusters.end.min((index + 1) * self.l2_entries());
                Ok(Entries::NoTable { clusters: end - clusters.start })
            }
        }
    }

    /// The page of at most so many L2 entries from host offset `at` on, and how many of them it has.
    pub(crate) fn entries_at(&mut self, at: u64, most: u64) -> Result<(Slot, usize), Stop> {
        let page = self.cache.page_of(at);
        let slot = self.find(page, Kind::L2)?;
        let count = most.min((page + self.cache.page_size() - at) >> self.entry_bits);
        self.work.looked_at += count;
        Ok((slot, usize::try_from(count).expect("a page fits in memory")))
    }

    /// The place of a guest cluster in the external data file, as a host address.
    pub(crate) fn place_in_data(&self, guest_cluster: u64) -> u64 {
        debug_assert!(self.guest_file == File::Data);
        in_data(guest_cluster * self.cluster_size())
    }

    /// Whether what an entry leads to is past the end of the image file, and so holds nothing.
    pub(crate) fn is_past_end(&self, host: u64) -> bool {
        host >= self.length && place(host).0 == File::Image
    }

    /// What a standard L2 entry from host offset `at` says of a guest cluster.
    #[inline]
    pub(crate) fn decode(&self, cluster: u64, entry: u64, at: u64) -> Result<Mapping, IoError> {
        match self.guest_file {
            File::Image => {
                Ok(L2Entry(entry).decode(self.header.cluster_bits, self.header.version, at)?)
            }
            File::Data => self.decode_in_data(cluster, entry, None, at),
        }
    }

    #[cold]
    fn decode_in_data(
        &self,
        cluster: u64,
        entry: u64,
        bitmap: Option<u64>,
        at: u64,
    ) -> Result<Mapping, IoError> {
        let bits = self.header.cluster_bits;
        let (guest, place) = (cluster * self.cluster_size(), self.place_in_data(cluster));
        Ok(L2Entry(entry).decode_in_data_file(bitmap, bits, guest, place, at)?)
    }

    /// What the L2 entry at host offset `at` says of a guest cluster; it is in this page.
    pub(crate) fn mapping_in(&self, cluster: u64, slot: Slot, at: u64) -> Result<Mapping, IoError> {
        let entry = self.cache.entry(slot, at);
        if !self.extended {
            return self.decode(cluster, entry, at);
        }
        let bitmap = self.cache.entry(slot, at + 8);
        match self.guest_file {
            File::Image => {
                Ok(L2Entry(entry).decode_extended(bitmap, self.header.cluster_bits, at)?)
            }
            File::Data => self.decode_in_data(cluster, entry, Some(bitmap), at),
        }
    }

    /// What the L2 entry at host offset `at` says of a guest cluster.
    pub(crate) fn mapping_at(&mut self, cluster: u64, at: u64) -> Result<Mapping, Stop> {
        let slot = self.find(self.cache.page_of(at), Kind::L2)?;
        Ok(self.mapping_in(cluster, slot, at)?)
    }

    /// Lets the L2 entry at host offset `at`, whose page is in the cache, say this; returns the page's new version.
    fn set_mapping(&mut self, cluster: u64, at: u64, mapping: Mapping) -> u64 {
        if self.guest_file == File::Data {
            let guest = cluster * self.cluster_size();
            let entry = L2Entry::in_data_file(mapping, guest, self.extended);
            let (entry, bitmap) =
                entry.expect("nothing is compressed, or mixed without subclusters");
            return match self.extended {
                true => self.cache.set_entries(at, [entry.0, bitmap]),
                false => self.cache.set_entry(at, entry.0),
            };
        }
        let compressed = |offset, length| {
            let entry = L2Entry::compressed(offset, length, self.header.cluster_bits);
            entry.expect("who makes one asks whether there can be one")
        };
        if self.extended {
            let (entry, bitmap) = match mapping {
                Mapping::Compressed { offset, length, .. } => (compressed(offset, length), 0),
                _ => L2Entry::extended(mapping).expect("it is not compressed"),
            };
            return self.cache.set_entries(at, [entry.0, bitmap]);
        }
        let entry = match mapping {
            Mapping::Unallocated => L2Entry::UNALLOCATED,
            Mapping::ZeroPlain => L2Entry::ZERO_PLAIN,
            Mapping::ZeroAllocated { host, copied } => L2Entry::zero_allocated(host, copied),
            Mapping::Data { host, copied } => L2Entry::data(host, copied),
            Mapping::Mixed { .. } => unreachable!("only extended entries say so"),
            Mapping::Compressed { offset, length, .. } => compressed(offset, length),
        };
        self.cache.set_entry(at, entry.0)
    }

    /// Where a guest cluster is.
    pub(crate) fn mapping(&mut self, guest_cluster: u64) -> Result<Mapping, Stop> {
        match self.entry_place(guest_cluster)? {
            EntryPlace::At(at) => self.mapping_at(guest_cluster, at),
            EntryPlace::NoTable(_) => Ok(Mapping::Unallocated),
        }
    }

    /// Maps a guest cluster to host data and drops the reference that this replaces.
    /// `extent` is what its host cluster was taken from, if that is new, and `data` what makes the data durable.
    pub(crate) fn link(
        &mut self,
        link: &NewLink,
        extent: Option<&Extent>,
        data: Stamp,
    ) -> Result<(), Stop> {
        let EntryPlace::At(at) = self.entry_place(link.guest_cluster)? else {
            return Err(lost_table(link.guest_cluster).into());
        };
        let old = self.mapping_at(link.guest_cluster, at)?;
        let page = self.cache.page_of(at);
        let (version, reads_zero) = if self.extended {
            let mapping = Mapping::with_subclusters(link.host, true, link.of);
            (self.set_mapping(link.guest_cluster, at, mapping), link.read_zero)
        } else if self.guest_file == File::Data {
            let mapping = Mapping::Data { host: link.host, copied: true };
            (self.set_mapping(link.guest_cluster, at, mapping), false)
        } else {
            let content = self.content(link.guest_cluster, old);
            let reads_zero = mutant!(self.rules, LayerOvertaken => matches!(content, Content::Zero | Content::Below(_)); matches!(content, Content::Zero));
            let reads_zero = mutant!(self.rules, CompressedOvertaken => !matches!(content, Content::Host(_) | Content::Below(_)); reads_zero);
            (self.cache.set_entry(at, L2Entry::data(link.host, true).0), reads_zero)
        };
        // Space that was never written reads as zeroes, which is what the guest may still see here.
        let fresh = extent.is_some_and(|extent| extent.fresh);
        let harmless = reads_zero && mutant!(self.rules, ZeroesTakenForHarmless => true; fresh);
        let harmless = mutant!(self.rules, SubclusterOvertaken => harmless || self.extended && extent.is_none(); harmless);
        if !harmless {
            self.order(page, Rule::DataBeforeMapping, Before::Written(data));
        }
        if let Some(extent) = extent {
            self.order_reference(page, extent.clusters.end, &extent.counts);
            self.drop_mapping(old, Before::Page { offset: page, version }, false);
        }
        Ok(())
    }

    /// Maps a guest cluster to a stream in this room and drops the reference that this replaces. `data` is what makes the stream durable:
    /// no space reads as one before, so that nothing may overtake it.
    pub(crate) fn link_stream(
        &mut self,
        guest_cluster: u64,
        stream: Mapping,
        room: &Room,
        data: Stamp,
    ) -> Result<(), Stop> {
        let EntryPlace::At(at) = self.entry_place(guest_cluster)? else {
            return Err(lost_table(guest_cluster).into());
        };
        let old = self.mapping_at(guest_cluster, at)?;
        let page = self.cache.page_of(at);
        let version = self.set_mapping(guest_cluster, at, stream);
        if mutant!(self.rules, StreamOvertaken => false; true) {
            self.order(page, Rule::DataBeforeMapping, Before::Written(data));
        }
        self.order_reference(page, room.end, &room.counts);
        mutant!(self.rules, ReplacedByStreamKept => (); {
            self.drop_mapping(old, Before::Page { offset: page, version }, false);
        });
        Ok(())
    }

    /// Lets the L2 entry of a guest cluster at host offset `at`, whose page is in the cache, say something about the same host cluster.
    pub(crate) fn keep(&mut self, guest_cluster: u64, at: u64, mapping: Mapping) {
        self.set_mapping(guest_cluster, at, mapping);
    }

    /// Lets the L2 entry of a guest cluster at host offset `at`, which said `old` and whose page is in the cache, say something that refers
    /// to no new host cluster; drops the old reference unless it keeps that.
    pub(crate) fn clear(
        &mut self,
        guest_cluster: u64,
        at: u64,
        old: Mapping,
        new: Mapping,
        discard: bool,
    ) {
        let page = self.cache.page_of(at);
        let version = self.set_mapping(guest_cluster, at, new);
        if mutant!(self.rules, KeptClusterFreed => true; new.host().is_none()) {
            self.drop_mapping(old, Before::Page { offset: page, version }, discard);
        }
    }

    fn drop_mapping(&mut self, old: Mapping, before: Before, discard: bool) {
        mutant!(self.rules, ZeroClusterNotFreed => {
            if matches!(old, Mapping::ZeroAllocated { .. }) {
                return;
            }
        }; ());
        match old {
            // What is in the data file belongs to its guest cluster for ever.
            Mapping::Data { .. } | Mapping::ZeroAllocated { .. } | Mapping::Mixed { .. }
                if self.guest_file == File::Data => {}
            Mapping::Data { host, .. }
            | Mapping::ZeroAllocated { host, .. }
            | Mapping::Mixed { host: host @ 1.., .. } => {
                self.dereference(host / self.cluster_size(), before, discard);
            }
            Mapping::Unallocated | Mapping::ZeroPlain | Mapping::Mixed { host: 0, .. } => {}
            // Each cluster that the stream may reach into has a reference for it.
            Mapping::Compressed { offset, length, .. } => {
                let size = self.cluster_size();
                let (first, end) = (offset / size, (offset + length).div_ceil(size));
                let end = mutant!(self.rules, StreamCountedDownOnce => first + 1; end);
                for cluster in first..end {
                    self.dereference(cluster, before, discard);
                }
            }
        }
    }
}
