//! The image that was read: one pass over everything that the header leads to, and what is known of each cluster afterwards.

use std::ops::Range;

use super::bytes::{UNIT_BYTES, to_usize};
use super::entry::{Mapping, Table, compressed_extent, decode_whole, pieces_of};
use super::extensions::find_extensions;
use super::header::{Header, MAX_BACKING_NAME};
use super::recording::Recording;
use crate::evidence::Readable;
use crate::finding::Finding;
use crate::label::{Label, Region};
use crate::mistake::Mistake;

/// Longest file in clusters: the reader keeps a slot for each.
pub const MAX_CLUSTERS: u64 = 1 << 24;

/// One reference to each of some host clusters that follow each other.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) clusters: Range<u32>,
    pub(crate) region: Region,
    /// The entry that refers to it; 0 for what the header refers to.
    pub(crate) entry: u64,
}

/// What is known of one host cluster.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slot {
    pub(crate) stored: u64,
    pub(crate) counted: u32,
    /// Index of the first claim, if there is one.
    pub(crate) first_claim: u32,
}

impl Slot {
    /// Whether the refcount is not the number of references.
    fn is_uneven(&self) -> bool {
        self.stored != u64::from(self.counted)
    }
}

/// Counts of guest clusters, as `qemu-img check` gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) allocated: u64,
    pub(crate) fragmented: u64,
    pub(crate) compressed: u64,
}

/// What a header says of the layer below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerName {
    /// Its name.
    pub name: Vec<u8>,
    /// Its format, if the header says it.
    pub format: Option<Vec<u8>>,
}

/// An image that was read. Reading another one reuses the buffers.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub(super) header: Option<Header>,
    pub(super) length: u64,
    pub(super) slots: Vec<Slot>,
    pub(super) claims: Vec<Reference>,
    /// Clusters within `slots` whose refcounts share a unit that is not all 0, ascending.
    pub(super) stored: Vec<Range<u32>>,
    /// Clusters past `slots` whose refcount is not 0.
    pub(super) stored_beyond: Vec<(u64, u64)>,
    /// Raw L2 entries of all tables, one after the other; the first words of them if they are extended.
    pub(super) l2_entries: Vec<u64>,
    /// The bitmaps of extended ones; none unless they are extended.
    pub(super) l2_bitmaps: Vec<u64>,
    /// (index in L1, where its entries start), ascending.
    pub(super) l2_tables: Vec<(u64, usize)>,
    pub(super) table_entries: Vec<(u64, u64)>,
    pub(super) recordings: Vec<Recording>,
    pub(super) mapped: Mapped,
    layer: Option<LayerName>,
    /// Bytes of the data file; 0 without one.
    pub(super) data_length: u64,
    data_name: Option<Vec<u8>>,
    /// Type and data of the header extensions that nobody here knows.
    foreign: Vec<(u32, Vec<u8>)>,
    /// Where the LUKS header is.
    pub(super) luks: Option<Range<u64>>,
    pub(super) mistake: Mistake,
}

impl Image {
    /// A reader with a deliberate mistake.
    pub(crate) fn with_mistake(mistake: Mistake) -> Self {
        Self { mistake, ..Self::default() }
    }

    /// Where in the evidence the file ends that holds what the guest reads.
    pub(crate) fn guest_data_end(&self) -> u64 {
        let data_at = self.header.and_then(|header| header.data_at);
        data_at.map_or(self.length, |start| start.saturating_add(self.data_length))
    }

    /// How much memory it takes, by clusters.
    pub(crate) fn weight(&self) -> usize {
        self.slots.len().saturating_add(self.l2_entries.len())
    }

    /// Units of the file that was read last, the last of them cut short or not.
    pub fn file_units(&self) -> u64 {
        self.length.div_ceil(UNIT_BYTES)
    }

    /// Up to where tables are read.
    #[inline]
    pub(super) fn readable(&self) -> u64 {
        self.mistake.readable(self.length)
    }

    /// Reads all metadata of an image. Resolves what it reads and nothing else; what is wrong is added to `findings`.
    pub fn read<E: Readable>(&mut self, evidence: &mut E, findings: &mut Vec<Finding>) {
        self.forget();
        self.length = evidence.len();
        let first = evidence.resolve(0);
        let Some(mut header) = Header::parse(evidence.bytes(first), findings) else { return };
        if header.has_data_file() {
            let Some(first) = evidence.data_file() else {
                // Nobody knows then what the guest reads.
                let (what, value) = ("external data file", header.incompatible_features);
                findings.push(Finding::Unsupported { what, value });
                return;
            };
            header.data_at = Some(first.saturating_mul(UNIT_BYTES));
            self.data_length = self.mistake.length_of_data(evidence.data_len(), self.length);
        }
        let clusters = self.length.div_ceil(header.cluster_size());
        if clusters > MAX_CLUSTERS {
            let what = "file of more than 2^24 clusters";
            findings.push(Finding::Unsupported { what, value: clusters });
            return;
        }
        self.header = Some(header);
        // One more than the file has: a structure may begin at its very end and still count as inside.
        let slots = to_usize(clusters.saturating_add(1));
        self.slots.resize(self.slots.len().max(slots), Slot::default());
        self.claim(Region::Header, 0, header.cluster_size(), 0, findings);
        let extensions = find_extensions(evidence, &header, findings);
        self.read_layer(evidence, &header, extensions.layer_format);
        if header.has_data_file() {
            // The guest sees whole units of it.
            let (length, disk) =
                (self.data_length, (header.size / UNIT_BYTES).saturating_mul(UNIT_BYTES));
            if length < disk {
                findings.push(Finding::DataFileShort { length, disk });
            }
            self.data_name = extensions.data_name.map(|name| self.text(evidence, &header, name));
        }
        let foreign = extensions.foreign.into_iter();
        self.foreign =
            foreign.map(|(kind, data)| (kind, self.text(evidence, &header, data))).collect();
        self.read_encryption(evidence, &header, extensions.luks, findings);
        self.read_refcounts(evidence, &header, findings);
        self.read_tables(evidence, &header, findings);
        if let Some(at) = extensions.bitmaps {
            self.read_bitmaps(evidence, &header, at, findings);
        }
    }

    /// Reads what the header says of the layer below, as far as it lies in the first cluster and the file.
    fn read_layer<E: Readable>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        format: Option<Range<u64>>,
    ) {
        if !header.has_layer() {
            return;
        }
        let mut text = |bytes: Range<u64>| self.text(evidence, header, bytes);
        let name = header.backing_file_offset;
        let length = header.backing_file_size.min(MAX_BACKING_NAME);
        self.layer = Some(LayerName {
            name: text(name..name.saturating_add(length.into())),
            format: format.map(text),
        });
    }

    /// Bytes of the header, as far as they lie in the first cluster and the file.
    fn text<E: Readable>(&self, evidence: &mut E, header: &Header, bytes: Range<u64>) -> Vec<u8> {
        let end = bytes.end.min(header.cluster_size().min(self.length));
        (bytes.start..end)
            .map(|at| {
                let unit = evidence.resolve(at.checked_div(UNIT_BYTES).unwrap_or(0));
                let byte = evidence.bytes(unit).get(to_usize(at % UNIT_BYTES));
                byte.copied().unwrap_or(0)
            })
            .collect()
    }

    /// What the header calls the data file, if it has one and names it.
    pub fn data_name(&self) -> Option<&[u8]> {
        self.data_name.as_deref()
    }

    /// Whether the header has an extension of this type and with this data, which need not be one that the judge knows.
    pub fn has_foreign_extension(&self, kind: u32, data: &[u8]) -> bool {
        self.foreign.iter().any(|(other, held)| (*other, &held[..]) == (kind, data))
    }

    /// The bytes of the file that the LUKS header has, if the header leads to one.
    pub fn luks_header(&self) -> Option<Range<u64>> {
        self.luks.clone()
    }

    /// What the header says of the layer below, if it names one.
    pub fn layer(&self) -> Option<&LayerName> {
        self.layer.as_ref()
    }

    /// The header, unless it was unusable.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// How many refcount blocks the refcount table points to.
    pub fn refcount_blocks(&self) -> usize {
        self.claims.iter().filter(|claim| matches!(claim.region, Region::RefcountBlock(_))).count()
    }

    /// Where a guest cluster is. Of one that has subclusters: in its host cluster if any subcluster is, or else zero if any is.
    pub fn mapping(&self, guest_cluster: u64) -> Mapping {
        let Some(header) = &self.header else { return Mapping::Unallocated };
        let (entry, bitmap) = self.entry(header, guest_cluster);
        decode_whole(entry, bitmap, header)
    }

    /// Every guest cluster of which an L2 table says something, ascending, with where it is, as [`Image::mapping`] says it.
    pub fn mappings(&self) -> impl Iterator<Item = (u64, Mapping)> {
        let header = self.header.unwrap_or_default();
        self.entries()
            .map(move |(cluster, entry, bitmap)| (cluster, decode_whole(entry, bitmap, &header)))
    }

    /// The bytes of the file that the descriptor of each compressed guest cluster spans, in the order of the disk.
    pub fn streams(&self) -> impl Iterator<Item = Range<u64>> {
        let header = self.header.unwrap_or_default();
        self.entries().filter_map(move |(_, entry, bitmap)| {
            let Mapping::Compressed(_) = decode_whole(entry, bitmap, &header) else { return None };
            let (offset, length) = compressed_extent(entry, &header);
            Some(offset..offset.saturating_add(length))
        })
    }

    /// The units of its cluster around a guest unit of which the image says the same, itself among them, and where the first of them is:
    /// the others follow it in the file. They may reach past the end of the disk. Where clusters have no subclusters it is the cluster.
    pub fn piece(&self, guest_unit: u64) -> (Range<u64>, Mapping) {
        let Some(header) = &self.header else { return (0..u64::MAX, Mapping::Unallocated) };
        let in_cluster = header.cluster_units();
        let cluster = guest_unit.checked_div(in_cluster).unwrap_or(0);
        let (entry, bitmap) = self.entry(header, cluster);
        let mut pieces = pieces_in(cluster, entry, bitmap, header);
        let piece = pieces.find(|(units, _)| units.contains(&guest_unit));
        piece.unwrap_or_else(|| (guest_unit..guest_unit.saturating_add(1), Mapping::Unallocated))
    }

    /// Every piece of the guest clusters of which an L2 table says something, ascending, as [`Image::piece`] says it: guest units, and
    /// where the first of them is.
    pub fn pieces(&self) -> impl Iterator<Item = (Range<u64>, Mapping)> {
        let header = self.header.unwrap_or_default();
        self.entries()
            .flat_map(move |(cluster, entry, bitmap)| pieces_in(cluster, entry, bitmap, &header))
    }

    /// Every L2 entry that says something, ascending, with its guest cluster and its bitmap.
    fn entries(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let in_table = self.header.map_or(0, |header| header.l2_entries());
        self.l2_tables.iter().flat_map(move |(index, _)| {
            let first = index.saturating_mul(in_table);
            let entries = self.table(*index).entries();
            entries
                .map(move |(within, entry, bitmap)| (first.saturating_add(within), entry, bitmap))
        })
    }

    /// The L2 entry of a guest cluster and its bitmap; 0 where there is none.
    pub(crate) fn entry(&self, header: &Header, guest_cluster: u64) -> (u64, u64) {
        let table = guest_cluster.checked_div(header.l2_entries()).unwrap_or(0);
        let within = to_usize(guest_cluster.checked_rem(header.l2_entries()).unwrap_or(0));
        let table = self.table(table);
        (table.words.get(within).copied().unwrap_or(0), table.bitmap(within))
    }

    /// The L2 table at an index of L1; empty if there is none.
    pub(crate) fn table(&self, l1_index: u64) -> Table<'_> {
        let count = self.header.map_or(0, |header| to_usize(header.l2_entries()));
        let found = self.l2_tables.binary_search_by_key(&l1_index, |(index, _)| *index).ok();
        let Some((_, start)) = found.and_then(|at| self.l2_tables.get(at)) else {
            return Table::default();
        };
        let end = start.saturating_add(count);
        Table {
            words: self.l2_entries.get(*start..end).unwrap_or_default(),
            bitmaps: self.l2_bitmaps.get(*start..end).unwrap_or_default(),
        }
    }

    /// What lies at a byte of the file.
    pub fn label(&self, offset: u64) -> Label {
        let unit = offset.checked_div(UNIT_BYTES).unwrap_or(0);
        let Some(header) = &self.header else {
            let region = if offset < self.length { Region::Header } else { Region::BeyondEnd };
            return Label { region, unit: Some(unit) };
        };
        // Where in the data file a byte is says whose it is, whatever the entries say.
        if let Some(within) = header.data_at.and_then(|start| offset.checked_sub(start)) {
            if within >= self.data_length {
                return Label { region: Region::BeyondEnd, unit: None };
            }
            let region = Region::Data(within.wrapping_shr(header.cluster_bits));
            let unit = within
                .checked_rem(header.cluster_size())
                .and_then(|rest| rest.checked_div(UNIT_BYTES));
            return Label { region, unit };
        }
        let cluster = offset.wrapping_shr(header.cluster_bits);
        let in_cluster = |first: u64| {
            let start = first.wrapping_shl(header.cluster_bits);
            offset.saturating_sub(start).checked_div(UNIT_BYTES)
        };
        if let Some(claim) = self.first_claim(cluster) {
            let first = match claim.region {
                Region::Compressed(_) => cluster,
                _ => claim.clusters.start.into(),
            };
            return Label { region: claim.region, unit: in_cluster(first) };
        }
        if offset >= self.length {
            return Label { region: Region::BeyondEnd, unit: None };
        }
        Label { region: Region::Free(cluster), unit: in_cluster(cluster) }
    }

    /// What lies at a unit of the file, and the units around it, from there on, where the same structure goes on.
    pub fn region(&self, unit: u64) -> (Region, Range<u64>) {
        let region = self.label(unit.saturating_mul(UNIT_BYTES)).region;
        let Some(header) = &self.header else { return (region, unit..unit.saturating_add(1)) };
        let in_cluster = header.cluster_size().checked_div(UNIT_BYTES).unwrap_or(1);
        let cluster = unit.checked_div(in_cluster).unwrap_or(unit);
        if matches!(region, Region::Data(_)) && header.data_at.is_some() {
            return (region, unit..cluster.saturating_add(1).saturating_mul(in_cluster));
        }
        let Some(claim) = self.first_claim(cluster) else {
            return (region, unit..unit.saturating_add(1));
        };
        let index = self.slots.get(to_usize(cluster)).map(|slot| slot.first_claim);
        let same = |slot: &&Slot| slot.counted > 0 && Some(slot.first_claim) == index;
        let rest = to_usize(cluster)..claim.clusters.end as usize;
        let rest = self.slots.get(rest).unwrap_or_default().iter().take_while(same).count();
        let end = cluster.saturating_add(rest as u64).saturating_mul(in_cluster);
        (region, unit..end)
    }

    /// Host clusters that are in use only while an autoclear bit says so, each as often as it is used.
    pub fn vouched_for(&self) -> impl Iterator<Item = u64> {
        let claims = self.claims.iter().filter(|claim| claim.region.is_vouched_for());
        claims.flat_map(|claim| claim.clusters.clone()).map(u64::from)
    }

    pub(crate) fn recordings(&self) -> &[Recording] {
        &self.recordings
    }

    /// What is known of each of these clusters, with its number.
    pub(crate) fn slots(
        &self,
        clusters: &Range<u32>,
    ) -> impl DoubleEndedIterator<Item = (u32, &Slot)> + ExactSizeIterator {
        let slots = self.slots.get(indices(clusters)).unwrap_or_default();
        clusters.clone().zip(slots)
    }

    pub(crate) fn claims(&self) -> &[Reference] {
        &self.claims
    }

    /// Ranges, ascending, that every cluster of the file is in whose refcount is not 0.
    pub(crate) fn stored_in(&self) -> impl DoubleEndedIterator<Item = &Range<u32>> {
        self.stored.iter()
    }

    /// Those of these clusters whose refcount is not the number of references. Most are not, so they are looked at many at once.
    pub(crate) fn uneven(&self, clusters: &Range<u32>) -> impl Iterator<Item = (u32, &Slot)> {
        const AT_ONCE: u8 = 64;
        let slots = self.slots.get(indices(clusters)).unwrap_or_default();
        let firsts = clusters.clone().step_by(AT_ONCE.into());
        let pieces = firsts.zip(slots.chunks(AT_ONCE.into()));
        pieces
            .filter(|(_, slots)| slots.iter().fold(false, |any, slot| any | slot.is_uneven()))
            .flat_map(|(first, slots)| (first..).zip(slots))
            .filter(|(_, slot)| slot.is_uneven())
    }

    pub(crate) fn stored_beyond(&self) -> &[(u64, u64)] {
        &self.stored_beyond
    }

    pub(crate) fn mapped(&self) -> Mapped {
        self.mapped
    }

    fn forget(&mut self) {
        for clusters in self.claims.iter().map(|claim| &claim.clusters).chain(&self.stored) {
            if let Some(slots) = self.slots.get_mut(indices(clusters)) {
                slots.fill(Slot::default());
            }
        }
        self.claims.clear();
        self.stored.clear();
        self.stored_beyond.clear();
        self.l2_entries.clear();
        self.l2_bitmaps.clear();
        self.l2_tables.clear();
        self.recordings.clear();
        self.mapped = Mapped::default();
        self.layer = None;
        self.data_length = 0;
        self.data_name = None;
        self.foreign.clear();
        self.luks = None;
        self.header = None;
    }

    fn first_claim(&self, cluster: u64) -> Option<&Reference> {
        let slot = self.slots.get(to_usize(cluster)).filter(|slot| slot.counted > 0)?;
        self.claims.get(slot.first_claim as usize)
    }

    /// Counts a reference to every cluster of a range. Whether the range is this structure's alone and inside the file, so
    /// that it may be walked.
    #[inline]
    pub(super) fn claim(
        &mut self,
        region: Region,
        offset: u64,
        length: u64,
        entry: u64,
        findings: &mut Vec<Finding>,
    ) -> bool {
        let Some(header) = self.header else { return false };
        let (size, bits) = (header.cluster_size(), header.cluster_bits);
        let end = offset.saturating_add(length);
        let mut good = true;
        let beyond = end.saturating_sub(self.length) >= size;
        if beyond || self.mistake.puts_out_of_range(end, self.length) {
            findings.push(Finding::OutOfRange { at: region, offset, length, file: self.length });
            good = false;
        }
        let first = offset.wrapping_shr(bits);
        let last = end.div_ceil(size).min(self.length.div_ceil(size).saturating_add(1));
        let index = u32::try_from(self.claims.len()).unwrap_or(u32::MAX);
        let (Ok(start), Ok(end)) = (u32::try_from(first), u32::try_from(last)) else { return good };
        let clusters = start..end;
        let Some(slots) = self.slots.get_mut(indices(&clusters)) else { return good };
        for (cluster, slot) in (first..).zip(slots) {
            if slot.counted == 0 {
                slot.first_claim = index;
            } else if let Some(other) = self.claims.get(slot.first_claim as usize)
                && !matches!((other.region, region), (Region::Compressed(_), Region::Compressed(_)))
            {
                let (first, second) = (other.region, region);
                findings.push(Finding::Overlap { cluster, first, second });
                good = false;
            }
            slot.counted = slot.counted.saturating_add(1);
        }
        if !clusters.is_empty() {
            self.claims.push(Reference { clusters, region, entry });
        }
        good
    }
}

/// The pieces of a guest cluster, by guest units.
fn pieces_in(
    cluster: u64,
    entry: u64,
    bitmap: u64,
    header: &Header,
) -> impl Iterator<Item = (Range<u64>, Mapping)> + use<> {
    let first = cluster.saturating_mul(header.cluster_units());
    pieces_of(entry, bitmap, header).map(move |(units, mapping)| {
        (first.saturating_add(units.start)..first.saturating_add(units.end), mapping)
    })
}

#[inline]
fn indices(clusters: &Range<u32>) -> Range<usize> {
    clusters.start as usize..clusters.end as usize
}
