//! One pass over all tables: who refers to what, and how that compares with what is stored.
//!
//! A reference counts wherever it points: past the end of the file too, so that its cluster is not handed out when the file
//! grows. Bytes past the end of the file are zeroes to every reader, inside an entry as well.
//!
//! Memory: 4 bytes for each cluster of the file, at most 64 MiB, as much again if there are compressed clusters, and as much again while
//! refcount structures are made anew; some 64 bytes for each L2 table and refcount block, 16 for each L1 entry that is not zero, and some
//! 64 for each run of clusters past the end that something refers to, of which there may be 2^20. Time: one pass over the tables, and one
//! over the L2 tables more if a COPIED bit is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::error::CheckError;
use crate::format::entry::{L1Entry, L2Entry, Mapping, RefcountTableEntry};
use crate::format::header::Header;
use crate::format::{extension, limits, refcount};
use crate::mutant::mutant;
use storage::{IoBuf, Storage, UNIT};

use super::disk::Disk;
use super::entries::{Halves, entries, l2_entries};
use super::references::{Metadata, References};
use super::report::{CheckReport, Problem};

/// Bytes of a table that are read at once: they stay in a processor's first cache until they have been looked at.
pub(super) const PIECE: u64 = 32 << 10;

/// Everything that a check learns in one pass over the tables.
pub(super) struct Survey {
    pub(super) references: References,
    /// Those by compressed clusters, which may share what they lie in among themselves.
    compressed: Option<References>,
    /// Blocks of the refcount table that can be used, by index.
    pub(super) blocks: BTreeMap<u64, u64>,
    /// Clusters of the refcount table and its blocks, as often as they are referred to.
    pub(super) structure: Vec<u64>,
    /// L2 tables, each once.
    pub(super) tables: Vec<L2Table>,
    /// Whether the refcount structures can be corrected in place.
    pub(super) sound: bool,
    pub(super) copied_wrong: bool,
    pub(super) past_end: PastEnd,
    pub(super) report: CheckReport,
}

/// Where an L2 table is, and the first guest cluster that it maps.
#[derive(Clone, Copy, Debug)]
pub(super) struct L2Table {
    pub(super) host: u64,
    pub(super) first_cluster: u64,
}

/// Entries that point past the end of the file.
#[derive(Debug)]
pub(super) struct PastEnd {
    /// Up to here a repair makes the file reach.
    pub(super) bound: u64,
    /// How many of them end by the bound.
    pub(super) near: u64,
    /// Where the last of those ends.
    pub(super) near_end: u64,
    /// Whether they are to become zeroes, and how many will.
    zeroes: bool,
    pub(super) zeroed: u64,
}

impl Survey {
    pub(super) async fn take<S: Storage>(
        disk: &Disk<'_, S>,
        header: &Header,
        length: u64,
        zero_past_end: bool,
    ) -> Result<Self, CheckError> {
        let size = header.cluster_size();
        let end = length.div_ceil(size) * size;
        let mut survey = Self {
            references: References::new(length.div_ceil(size)),
            compressed: None,
            blocks: BTreeMap::new(),
            structure: Vec::new(),
            tables: Vec::new(),
            sound: true,
            copied_wrong: false,
            past_end: PastEnd {
                bound: end + limits::COVERED_PAST_END,
                near: 0,
                near_end: 0,
                // Where a layer is below, no entry of version 2 reads as zeroes unless it has a cluster.
                zeroes: zero_past_end
                    && (header.has_zero_entries() || header.backing_name().is_none()),
                zeroed: 0,
            },
            report: CheckReport {
                total_clusters: header.size.div_ceil(size),
                ..CheckReport::default()
            },
        };
        let Range { start: l1_start, end: l1_end } = header.l1_table();
        if l1_end > end {
            let host = header.l1_table_offset;
            survey.report.add_hopeless(Problem::BeyondEnd { at: 40, host, length });
        }
        survey.references.add(0, 1);
        let l1_end = mutant!(disk.rules, L1TailUncounted => l1_end / size; l1_end.div_ceil(size));
        let l1 = l1_start / size..l1_end;
        for cluster in l1.clone() {
            survey.references.add(cluster, 1);
        }
        let mut metadata = Metadata { l1, others: BTreeSet::from([0]) };
        survey.read_refcount_table(disk, header, length, &mut metadata).await?;
        survey.count_keys(header, length, &mut metadata);
        survey.read_bitmaps(disk, header, length, &mut metadata).await?;
        let entries = survey.read_l1(disk, header, length, &mut metadata).await?;
        let suspects = match header.extended_l2() {
            true => survey.read_l2::<true, S>(disk, header, length, &metadata).await?,
            false => survey.read_l2::<false, S>(disk, header, length, &metadata).await?,
        };
        survey.judge_cut_entry(disk, header, length).await?;
        survey.judge_sharing(&metadata);
        survey.compare_refcounts(disk, header).await?;
        match header.extended_l2() {
            true => survey.judge_copied::<true, S>(disk, header, &entries, suspects).await?,
            false => survey.judge_copied::<false, S>(disk, header, &entries, suspects).await?,
        }
        survey.report.image_end_offset = survey.report.image_end_offset.max(
            survey.references.used().next_back().map_or(0, |(cluster, _)| (cluster + 1) * size),
        );
        Ok(survey)
    }

    /// Counts a reference to a range of the file by the entry at `at`, and says so if it begins past the end, or ends a cluster or more
    /// past it, as only compressed data may: how many of the last sector's bytes they need, nobody knows.
    fn refer(&mut self, header: &Header, length: u64, at: u64, range: Range<u64>) {
        let size = header.cluster_size();
        if range.start >= length || range.end - length.min(range.end) >= size {
            let host = range.start;
            if self.past_end.zeroes && host >= length {
                self.past_end.zeroed += 1;
                self.report.add(Problem::BeyondEnd { at, host, length });
                return;
            }
            self.report.add_staying(Problem::BeyondEnd { at, host, length });
            if range.end <= self.past_end.bound {
                self.past_end.near += 1;
                self.past_end.near_end =
                    self.past_end.near_end.max(range.end.next_multiple_of(size));
            }
        }
        self.count(header, length, range);
    }

    /// Counts a reference to each cluster that a range of the file touches.
    fn count(&mut self, header: &Header, length: u64, range: Range<u64>) {
        let size = header.cluster_size();
        let describable = limits::REFCOUNT_TABLE_BYTES / 8 * header.refcounts_per_block();
        for cluster in range.start / size..range.end.div_ceil(size) {
            // Past the end of the file, what no refcount table can describe is never handed out either.
            if cluster >= describable && range.start >= length {
                continue;
            }
            if self.references.is_full_at(cluster) {
                self.report.add_hopeless(Problem::TooMany { cluster, counted: 1 });
                return;
            }
            self.references.add(cluster, 1);
        }
    }

    /// Notes that what lies in these bytes is compressed.
    fn note_stream(&mut self, header: &Header, length: u64, stream: &Range<u64>) {
        let size = header.cluster_size();
        let compressed =
            self.compressed.get_or_insert_with(|| References::new(length.div_ceil(size)));
        for cluster in stream.start / size..stream.end.div_ceil(size) {
            if !compressed.is_full_at(cluster) {
                compressed.add(cluster, 1);
            }
        }
    }

    /// Counts what an entry that makes no sense can mean: that is not handed out. Of a stream only what is in the file, because past its end there
    /// is none. Beside a data file it means nothing here, unless the feature bit that says so is what is wrong; tables are counted anyway.
    fn count_meant(&mut self, header: &Header, length: u64, entry: Halves, metadata: &Metadata) {
        let size = header.cluster_size();
        let Some(range) = entry.meant(header) else { return };
        let in_file = range.start.min(length)..range.end.min(length);
        if header.has_data_file() {
            let clusters = in_file.start / size..in_file.end.div_ceil(size);
            for cluster in clusters.filter(|&cluster| !metadata.contains(cluster)) {
                self.count(header, length, cluster * size..(cluster + 1) * size);
            }
        } else if entry.first.is_compressed() {
            self.note_stream(header, length, &in_file);
            self.count(header, length, in_file);
        } else {
            self.count(header, length, range);
        }
    }

    async fn read_refcount_table<S: Storage>(
        &mut self,
        disk: &Disk<'_, S>,
        header: &Header,
        length: u64,
        metadata: &mut Metadata,
    ) -> Result<(), CheckError> {
        let size = header.cluster_size();
        let Range { start: offset, end } = header.refcount_table();
        for cluster in offset / size..end / size {
            self.references.add(cluster, 1);
            self.structure.push(cluster);
            metadata.insert(cluster);
        }
        if end > length.div_ceil(size) * size {
            self.report.add(Problem::BeyondEnd { at: 48, host: offset, length });
            self.sound = false;
        }
        let table = disk.read(offset, end - offset).await?;
        for (index, entry) in entries(&table) {
            let at = offset + index * 8;
            match RefcountTableEntry(entry).decode(header.cluster_bits, at) {
                Ok(None) => {}
                Ok(Some(host)) if host >= length => {
                    self.report.add(Problem::BeyondEnd { at, host, length });
                    self.sound = false;
                }
                Ok(Some(host)) => {
                    self.references.add(host / size, 1);
                    self.structure.push(host / size);
                    // A cluster that is something else, or another block, already has no counts of its own.
                    if metadata.insert(host / size) {
                        self.blocks.insert(index, host);
                    } else {
                        self.sound = false;
                    }
                }
                Err(error) => {
                    self.report.add(Problem::Entry(error));
                    self.sound = false;
                }
            }
        }
        Ok(())
    }

    /// Counts the encryption header.
    fn count_keys(&mut self, header: &Header, length: u64, metadata: &mut Metadata) {
        let (keys, size) = (header.keys(), header.cluster_size());
        if keys.is_empty() {
            return;
        }
        if keys.end > length.next_multiple_of(size) {
            let at = header.extension(extension::LUKS).map_or(0, |(offset, _)| offset);
            self.report.add_hopeless(Problem::BeyondEnd { at, host: keys.start, length });
        }
        for cluster in keys.start / size..keys.end.div_ceil(size) {
            self.references.add(cluster, 1);
            metadata.insert(cluster);
        }
    }

    /// Counts the L2 tables. Returns the valid L1 entries that are not zero, with their place.
    async fn read_l1<S: Storage>(
        &mut self,
        disk: &Disk<'_, S>,
        header: &Header,
        length: u64,
        metadata: &mut Metadata,
    ) -> Result<Vec<(u64, L1Entry)>, CheckError> {
        let size = header.cluster_size();
        let offset = header.l1_table_offset;
        let in_file = length.saturating_sub(offset).next_multiple_of(8);
        let len = (u64::from(header.l1_size) * 8).min(in_file);
        let mut found = Vec::new();
        let mut read = 0;
        let sector = disk.limits.sector();
        let most = usize::try_from(len.min(PIECE)).expect("a piece fits in memory");
        let most = most.next_multiple_of(sector);
        let mut table = IoBuf::zeroed(most, disk.limits.alignment);
        while read < len {
            let piece = (len - read).min(PIECE);
            let bytes = usize::try_from(piece).expect("a piece fits in memory");
            let whole = bytes.next_multiple_of(sector);
            // Another one than the storage was given may lie anywhere.
            let fits = table.len() >= whole && table.is_aligned(disk.limits.alignment);
            table = match fits {
                true => table.split_to(whole),
                false => IoBuf::zeroed(whole, disk.limits.alignment),
            };
            table = disk.read_into(offset + read, table).await?;
            for (index, entry) in entries(&table).take_while(|&(index, _)| index < piece / 8) {
                let at = offset + read + index * 8;
                let entry = L1Entry(entry);
                match entry.decode(header.cluster_bits, at) {
                    Ok(None) => found.push((at, entry)),
                    Ok(Some(table)) => {
                        found.push((at, entry));
                        self.refer(header, length, at, table.host..table.host + size);
                        if !metadata.insert(table.host / size) {
                            // Something else is there, and what it would map is anybody's guess.
                            self.report.hopeless = true;
                        } else if table.host < length {
                            let first_cluster = (read / 8 + index) * header.l2_entries();
                            self.tables.push(L2Table { host: table.host, first_cluster });
                        }
                    }
                    // What it would map, nobody knows.
                    Err(error) => self.report.add_hopeless(Problem::Entry(error)),
                }
            }
            read += piece;
        }
        Ok(found)
    }

    /// Counts data clusters. Returns whether any L2 entry's COPIED bit needs a second look: one that is missing, or that
    /// no such entry may have.
    async fn read_l2<const EXTENDED: bool, S: Storage>(
        &mut self,
        disk: &Disk<'_, S>,
        header: &Header,
        length: u64,
        metadata: &Metadata,
    ) -> Result<bool, CheckError> {
        let size = header.cluster_size();
        let mut suspects = false;
        for L2Table { host: offset, first_cluster } in self.tables.clone() {
            let table = disk.read(offset, size).await?;
            let mut previous = None;
            for (within, entry) in l2_entries::<EXTENDED>(&table, first_cluster) {
                let at = offset + within;
                match entry.decode_of::<EXTENDED>(header, at) {
                    Ok(
                        Mapping::Unallocated | Mapping::ZeroPlain | Mapping::Mixed { host: 0, .. },
                    ) => {
                        suspects |= entry.first.copied();
                    }
                    // Its place in a data file is its own, and nothing counts it.
                    Ok(
                        Mapping::Data { .. }
                        | Mapping::ZeroAllocated { .. }
                        | Mapping::Mixed { .. },
                    ) if header.has_data_file() => {
                        suspects |= !entry.first.copied();
                        self.report.allocated_clusters += 1;
                    }
                    Ok(
                        Mapping::Data { host, copied }
                        | Mapping::ZeroAllocated { host, copied }
                        | Mapping::Mixed { host, copied, .. },
                    ) => {
                        suspects |= !copied;
                        mutant!(disk.rules, ZeroClusterUncounted => {
                            if entry.first != L2Entry::data(host, copied) {
                                continue;
                            }
                        }; ());
                        self.refer(header, length, at, host..host + size);
                        self.report.allocated_clusters += 1;
                        if previous.is_some_and(|previous| previous + size != host) {
                            self.report.fragmented_clusters += 1;
                        }
                        previous = Some(host);
                    }
                    Ok(Mapping::Compressed { offset, length: bytes, copied }) => {
                        suspects |= copied;
                        let stream = offset..offset + bytes;
                        self.note_stream(header, length, &stream);
                        self.refer(header, length, at, stream);
                        self.report.allocated_clusters += 1;
                        self.report.compressed_clusters += 1;
                        self.report.fragmented_clusters += 1;
                    }
                    Err(error) => {
                        self.report.add_staying(Problem::Entry(error));
                        self.count_meant(header, length, entry, metadata);
                    }
                }
            }
        }
        Ok(suspects)
    }

    /// Looks whether the file ends inside an entry whose missing bytes decide which cluster it names.
    async fn judge_cut_entry<S: Storage>(
        &mut self,
        disk: &Disk<'_, S>,
        header: &Header,
        length: u64,
    ) -> Result<(), CheckError> {
        let missing = length.next_multiple_of(8) - length;
        if missing == 0 {
            return Ok(());
        }
        let at = length - length % 8;
        let size = header.cluster_size();
        let (l1, table) = (header.l1_table(), header.refcount_table());
        let is_l2 = self.tables.iter().any(|table| table.host == at - at % size);
        if is_l2 && header.extended_l2() && at % 16 == 8 {
            // Bits of subclusters name no cluster.
            return Ok(());
        }
        if !is_l2 && !l1.contains(&at) && !table.contains(&at) {
            return Ok(());
        }
        let sector = disk.limits.sector() as u64;
        let bytes = disk.read(at - at % sector, sector).await?;
        let within = usize::try_from(at % sector).expect("less than a sector");
        let entry = bytes[within..within + 8].try_into().expect("eight bytes");
        let compressed = is_l2 && L2Entry(u64::from_be_bytes(entry)).is_compressed();
        if compressed || missing * 8 > u64::from(header.cluster_bits) {
            if table.contains(&at) {
                self.report.add(Problem::CutEntry { at, length });
                self.sound = false;
            } else {
                self.report.add_hopeless(Problem::CutEntry { at, length });
            }
            self.report.cut = Some(Problem::CutEntry { at, length });
        }
        Ok(())
    }

    /// Judges clusters with several references: tables must have one; data must not be mapped twice, but by compressed
    /// clusters only.
    fn judge_sharing(&mut self, metadata: &Metadata) {
        let mut structure: BTreeMap<u64, u64> = BTreeMap::new();
        for &cluster in &self.structure {
            *structure.entry(cluster).or_default() += 1;
        }
        for (cluster, counted) in self.references.used().filter(|&(_, counted)| counted > 1) {
            if let Some(own) = structure.get(&cluster) {
                // A rebuilt structure lies elsewhere; what is left are the other references.
                self.sound = false;
                if counted - own > 1 {
                    self.report.add_hopeless(Problem::Overlap { cluster, counted });
                } else {
                    self.report.add(Problem::Overlap { cluster, counted });
                }
            } else if metadata.contains(cluster) {
                self.report.add_hopeless(Problem::Overlap { cluster, counted });
            } else if counted > self.compressed.as_ref().map_or(0, |all| all.get(cluster)) {
                self.report.add_staying(Problem::Shared { cluster, counted });
            }
        }
    }

    async fn compare_refcounts<S: Storage>(
        &mut self,
        disk: &Disk<'_, S>,
        header: &Header,
    ) -> Result<(), CheckError> {
        let size = header.cluster_size();
        let per_block = header.refcounts_per_block();
        let order = header.refcount_order;
        // Whether there is a block for the last cluster, and its index.
        let (mut block, mut there) = (None, false);
        for (cluster, counted) in self.references.used() {
            let index = cluster >> per_block.ilog2();
            if block != Some(index) {
                (block, there) = (Some(index), self.blocks.contains_key(&index));
            }
            if counted > refcount::max(order) {
                self.report.add_hopeless(Problem::TooMany { cluster, counted });
            } else if !there {
                self.report.add(Problem::RefcountTooLow { cluster, stored: 0, counted });
                self.sound = false;
            }
        }
        for (index, offset) in self.blocks.clone() {
            let block = disk.read(offset, size).await?;
            let first = index * per_block;
            let in_unit = (UNIT * 8) >> order;
            let units = (0..).step_by(in_unit).zip(block.chunks(UNIT));
            for (from, unit) in units {
                if is_zero(unit) && self.references.none(first, from..from + in_unit) {
                    continue;
                }
                for within in 0..in_unit {
                    let cluster = first + (from + within) as u64;
                    let stored = refcount::get(unit, order, within).unwrap_or(0);
                    let counted = self.references.get(cluster);
                    if stored > 0 {
                        let end = cluster.saturating_add(1).saturating_mul(size);
                        self.report.image_end_offset = self.report.image_end_offset.max(end);
                    }
                    if stored > counted {
                        self.report.add(Problem::Leak { cluster, stored, counted });
                    } else if stored < counted {
                        self.report.add(Problem::RefcountTooLow { cluster, stored, counted });
                    }
                }
            }
        }
        Ok(())
    }

    async fn judge_copied<const EXTENDED: bool, S: Storage>(
        &mut self,
        disk: &Disk<'_, S>,
        header: &Header,
        l1: &[(u64, L1Entry)],
        suspects: bool,
    ) -> Result<(), CheckError> {
        for &(at, entry) in l1 {
            let counted = self.references.to(entry.host(), header);
            if entry.copied() != (counted == 1) {
                self.report.add(Problem::Copied { at, entry: entry.0, counted });
                self.copied_wrong = true;
            }
        }
        if !suspects && self.references.used().all(|(_, counted)| counted == 1) {
            return Ok(());
        }
        for L2Table { host: offset, first_cluster } in self.tables.clone() {
            let table = disk.read(offset, header.cluster_size()).await?;
            for (within, entry) in l2_entries::<EXTENDED>(&table, first_cluster) {
                let right = self.references.with_right_copied(header, entry, disk.rules);
                if right != entry.first {
                    let counted = match header.has_data_file() {
                        true => 1,
                        false => self.references.to(right.host(), header),
                    };
                    let (at, entry) = (offset + within, entry.first.0);
                    self.report.add(Problem::Copied { at, entry, counted });
                    self.copied_wrong = true;
                }
            }
        }
        Ok(())
    }
}

/// Whether these bytes, of one unit at most, are all zero: compared whole, because a loop that stops early is slower.
fn is_zero(bytes: &[u8]) -> bool {
    *bytes == [0; UNIT][..bytes.len()]
}
