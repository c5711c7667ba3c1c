//! Check and repair: count every reference, compare with what is stored, and make what is stored true.
//!
//! ```text
//!   header, refcount table and blocks, L1, L2 tables, data ──counted──> references per cluster
//!                                                                          │ compare
//!   refcount blocks ───────────────────stored──────────────────────────────┘
//!   COPIED in L1 and L2 entries <── set exactly where references == 1
//! ```
//!
//! Guest data and mappings are never changed. What cannot be repaired without guessing (an entry that points nowhere,
//! a table that shares its cluster) is reported, and then nothing at all is written. Data that two guest clusters map is
//! made safe to write, by its refcount, and stays a finding: only its owner can say to which of them it belongs.
//!
//! **Crash safety.** The dirty bit is durable before the first write of a repair and goes last, when all else is durable; so
//! a crash anywhere in between leads to another repair. References, which a repair of a dirty image starts from, are changed
//! in nothing but their COPIED bit. A new refcount structure is written beside the old one, past every cluster in use, and
//! switched to by one write of the header.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use crate::barrier::Barrier;
use crate::error::{CheckError, OpenError};
use crate::format::entry::{EntryError, L1Entry, L2Entry, Mapping, RefcountTableEntry};
use crate::format::feature::Incompatible;
use crate::format::header::Header;
use crate::format::{limits, refcount};
use crate::open::{check_supported, read_header_for_check};
use crate::rule::{Rule, Rules};
use crate::storage::{Durability, IoBuf, Limits, Storage, UNIT};

/// How many findings a report lists; it counts all of them.
pub const MAX_FINDINGS: usize = 256;

/// What a check may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    None,
    /// Refcounts that are too high, and the dirty and the corrupt bit if nothing else was wrong.
    Leaks,
    /// Refcounts, the COPIED bits, the dirty and the corrupt bit; refcount structures that are damaged are rebuilt.
    All,
    /// The same, and the refcount structures are rebuilt in any case.
    Rebuild,
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub problem: Problem,
    /// Whether it was put right.
    pub repaired: bool,
}

/// What can be wrong with an image whose header is sound.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The refcount is higher than the number of references: space is wasted, nothing is lost.
    Leak {
        /// Index of the host cluster.
        cluster: u64,
        /// Refcount in the image.
        stored: u64,
        /// References found.
        counted: u64,
    },
    /// The refcount is lower than the number of references: the cluster may be handed out again.
    RefcountTooLow {
        /// Index of the host cluster.
        cluster: u64,
        /// Refcount in the image.
        stored: u64,
        /// References found.
        counted: u64,
    },
    /// The COPIED bit of an entry does not say whether its cluster has exactly one reference.
    Copied {
        /// Host offset of the entry.
        at: u64,
        /// The entry.
        entry: u64,
        /// References to the cluster that it points to.
        counted: u64,
    },
    /// An entry points nowhere sensible.
    Entry(EntryError),
    /// An entry points past the end of the file.
    BeyondEnd {
        /// Host offset of the entry.
        at: u64,
        /// Host offset that it points to.
        host: u64,
        /// Length of the file.
        length: u64,
    },
    /// A cluster of a table or of the header is referred to more than once.
    Overlap {
        /// Index of the host cluster.
        cluster: u64,
        /// References found.
        counted: u64,
    },
    /// A data cluster is mapped by more than one guest cluster.
    Shared {
        /// Index of the host cluster.
        cluster: u64,
        /// References found.
        counted: u64,
    },
    /// More references than a refcount of this width can say, or a cluster past what a refcount table can describe.
    TooMany {
        /// Index of the host cluster.
        cluster: u64,
        /// References found.
        counted: u64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leak { cluster, stored, counted } => write!(
                formatter,
                "leak: host cluster {cluster} has refcount {stored} and {counted} references"
            ),
            Self::RefcountTooLow { cluster, stored, counted } => write!(
                formatter,
                "refcount too low: host cluster {cluster} has refcount {stored} and {counted} references"
            ),
            Self::Copied { at, entry, counted } => write!(
                formatter,
                "COPIED wrong: the entry at byte {at:#x}, {entry:#018x}, points to a cluster with {counted} references"
            ),
            Self::Entry(error) => error.fmt(formatter),
            Self::BeyondEnd { at, host, length } => write!(
                formatter,
                "the entry at byte {at:#x} points to {host:#x}, past the end of the file, {length:#x}"
            ),
            Self::Overlap { cluster, counted } => write!(
                formatter,
                "overlap: host cluster {cluster} holds a table and has {counted} references"
            ),
            Self::Shared { cluster, counted } => write!(
                formatter,
                "shared: host cluster {cluster} is mapped by {counted} guest clusters"
            ),
            Self::TooMany { cluster, counted } => write!(
                formatter,
                "host cluster {cluster} with {counted} references cannot be counted"
            ),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.repaired { " (repaired)" } else { "" };
        write!(formatter, "{}{suffix}", self.problem)
    }
}

/// What a check found and a repair did. The counts are those of `qemu-img check --output=json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Problems that may lose data, found.
    pub corruptions: u64,
    /// Of these, put right.
    pub corruptions_fixed: u64,
    /// Clusters with a refcount that is too high, found.
    pub leaks: u64,
    /// Of these, put right.
    pub leaks_fixed: u64,
    /// End of the last cluster in use, in bytes.
    pub image_end_offset: u64,
    /// Clusters of the guest disk.
    pub total_clusters: u64,
    /// Of these, those with a host cluster.
    pub allocated_clusters: u64,
    /// Of these, those whose predecessor in the same L2 table lies elsewhere on the host, and those that are compressed.
    pub fragmented_clusters: u64,
    /// Of these, those that are compressed.
    pub compressed_clusters: u64,
    /// Whether the refcount structures were rebuilt.
    pub rebuilt: bool,
    /// The first [`MAX_FINDINGS`] problems.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing is wrong, or nothing is any more.
    pub fn is_consistent(&self) -> bool {
        self.corruptions == self.corruptions_fixed && self.leaks == self.leaks_fixed
    }

    fn add(&mut self, problem: Problem) {
        match problem {
            Problem::Leak { .. } => self.leaks += 1,
            _ => self.corruptions += 1,
        }
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { problem, repaired: false });
        }
    }

    fn repaired(&mut self, which: impl Fn(&Problem) -> bool) {
        for finding in &mut self.findings {
            finding.repaired |= which(&finding.problem);
        }
    }
}

/// Checks the image on `storage`, which nobody else may be writing, and repairs it as far as `repair` says.
///
/// # Errors
/// [`CheckError`] if the header cannot be read or names something unsupported, or if the storage fails.
pub async fn check<S: Storage>(
    storage: &S,
    repair: Repair,
    rules: Rules,
) -> Result<CheckReport, CheckError> {
    let (header, sector, length) = read_header_for_check(storage).await.map_err(from_open)?;
    check_supported(&header).map_err(from_open)?;
    let limits = storage.limits();
    let mut disk = Disk { storage, limits, rules, unflushed: false };
    let mut survey = Survey::take(&disk, &header, length).await?;
    let mut report = survey.report.clone();
    if repair != Repair::None {
        let references = std::mem::take(&mut survey.references);
        let mut mender = Mender {
            disk: &mut disk,
            header,
            sector,
            length,
            survey: &survey,
            references,
            report: &mut report,
        };
        mender.run(repair).await?;
    }
    Ok(report)
}

fn from_open(error: OpenError) -> CheckError {
    match error {
        OpenError::Format(error) => CheckError::Format(error),
        OpenError::Unsupported(what) => CheckError::Unsupported(what),
        OpenError::Io(crate::error::IoError::Storage { action, offset, source }) => {
            CheckError::Storage { action, offset, source }
        }
        other => CheckError::Unsupported(other.to_string()),
    }
}

/// Clusters whose references are counted in an array, which takes 64 MiB. A file can claim any length and hold nothing;
/// what lies further up costs memory by what refers to it.
const DENSE_CLUSTERS: usize = 1 << 24;

/// References per host cluster, wherever they point.
#[derive(Debug, Default)]
struct References {
    dense: Vec<u32>,
    sparse: BTreeMap<u64, u32>,
}

impl References {
    fn new(clusters: u64) -> Self {
        let clusters = usize::try_from(clusters).unwrap_or(usize::MAX).min(DENSE_CLUSTERS);
        Self { dense: vec![0; clusters], sparse: BTreeMap::new() }
    }

    fn slot(&mut self, cluster: u64) -> &mut u32 {
        match usize::try_from(cluster).ok().filter(|&index| index < self.dense.len()) {
            Some(index) => &mut self.dense[index],
            None => self.sparse.entry(cluster).or_default(),
        }
    }

    fn add(&mut self, cluster: u64, count: u32) {
        let slot = self.slot(cluster);
        *slot = slot.saturating_add(count);
    }

    fn remove(&mut self, cluster: u64) {
        let slot = self.slot(cluster);
        *slot = slot.saturating_sub(1);
    }

    fn get(&self, cluster: u64) -> u64 {
        let dense = usize::try_from(cluster).ok().and_then(|index| self.dense.get(index));
        u64::from(dense.or_else(|| self.sparse.get(&cluster)).copied().unwrap_or(0))
    }

    /// Whether no cluster of a range, counted from `first`, has references.
    fn none(&self, first: u64, range: Range<usize>) -> bool {
        let (from, to) = (first + range.start as u64, first + range.end as u64);
        let index = |cluster| usize::try_from(cluster).unwrap_or(usize::MAX).min(self.dense.len());
        self.dense[index(from)..index(to)].iter().fold(0, |all, count| all | count) == 0
            && self.sparse.range(from..to).next().is_none()
    }

    /// An L2 entry with its COPIED bit as the references say.
    fn with_right_copied(&self, header: &Header, entry: L2Entry) -> L2Entry {
        let single = !entry.is_compressed() && self.to(entry.host(), header) == 1;
        entry.with_copied(single)
    }

    /// References to the cluster at a host offset that an entry holds, where 0 means that it points nowhere.
    fn to(&self, host: u64, header: &Header) -> u64 {
        if host == 0 { 0 } else { self.get(host >> header.cluster_bits) }
    }

    /// The clusters with references, in order.
    fn used(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> {
        let dense = self.dense.iter().enumerate().map(|(index, &count)| (index as u64, count));
        dense
            .chain(self.sparse.iter().map(|(&cluster, &count)| (cluster, count)))
            .filter(|&(_, count)| count > 0)
            .map(|(cluster, count)| (cluster, u64::from(count)))
    }
}

/// Clusters that hold tables. The L1 table alone may have so many that a set of them would cost more than the check.
struct Metadata {
    l1: Range<u64>,
    others: BTreeSet<u64>,
}

impl Metadata {
    /// Whether the cluster is new here.
    fn insert(&mut self, cluster: u64) -> bool {
        !self.l1.contains(&cluster) && self.others.insert(cluster)
    }

    fn contains(&self, cluster: u64) -> bool {
        self.l1.contains(&cluster) || self.others.contains(&cluster)
    }
}

/// Bytes of an L1 table that are read at once: they stay in a processor's first cache until they have been looked at.
const L1_PIECE: u64 = 32 << 10;

/// Reads and writes for check and repair.
struct Disk<'a, S> {
    storage: &'a S,
    limits: Limits,
    rules: Rules,
    unflushed: bool,
}

impl<S: Storage> Disk<'_, S> {
    async fn read(&self, offset: u64, len: u64) -> Result<IoBuf, CheckError> {
        let len = usize::try_from(len).expect("limited by the format");
        self.read_into(offset, IoBuf::zeroed(len, self.limits.alignment)).await
    }

    async fn read_into(&self, offset: u64, mut whole: IoBuf) -> Result<IoBuf, CheckError> {
        let mut done = IoBuf::default();
        while !whole.is_empty() {
            let piece = whole.split_to(whole.len().min(self.limits.max_transfer));
            let at = offset + done.len() as u64;
            let (piece, result) = self.storage.read(at, piece).await;
            let action = "reading a table";
            result.map_err(|source| CheckError::Storage { action, offset: at, source })?;
            done.unsplit(piece);
        }
        Ok(done)
    }

    async fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), CheckError> {
        self.unflushed = true;
        let mut at = offset;
        for chunk in bytes.chunks(self.limits.max_transfer) {
            let buf = IoBuf::copy_of(chunk, self.limits.alignment);
            let (_, result) = self.storage.write(at, buf, Durability::Cached).await;
            let action = "writing a repaired table";
            result.map_err(|source| CheckError::Storage { action, offset: at, source })?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Writes those 512-byte units of `new` that differ from `old`.
    async fn write_changes(
        &mut self,
        offset: u64,
        old: &[u8],
        new: &[u8],
    ) -> Result<(), CheckError> {
        let mut at = offset;
        for (old, new) in old.chunks(UNIT).zip(new.chunks(UNIT)) {
            if old != new {
                self.write(at, new).await?;
            }
            at += UNIT as u64;
        }
        Ok(())
    }

    /// Waits until everything written is durable, if `rule` asks for it.
    async fn ensure(&mut self, rule: Rule, barrier: Barrier) -> Result<(), CheckError> {
        if self.unflushed && self.rules.hold(rule) {
            if !self.rules.skips(barrier) {
                let action = "flushing a repair";
                let result = self.storage.flush().await;
                result.map_err(|source| CheckError::Storage { action, offset: 0, source })?;
            }
            self.unflushed = false;
        }
        Ok(())
    }
}

/// Everything that a check learns in one pass over the tables.
struct Survey {
    references: References,
    /// Those by compressed clusters, which may share what they lie in among themselves.
    compressed: Option<References>,
    /// Blocks of the refcount table that can be used, by index.
    blocks: BTreeMap<u64, u64>,
    /// Clusters of the refcount table and its blocks, as often as they are referred to.
    structure: Vec<u64>,
    /// L2 tables, each once.
    tables: Vec<u64>,
    /// Whether the refcount structures can be corrected in place.
    sound: bool,
    /// Whether something is wrong that no repair here puts right.
    hopeless: bool,
    copied_wrong: bool,
    /// Data clusters that are mapped more than once. Repair makes writing to them safe and cannot say whose they are.
    shared: u64,
    report: CheckReport,
}

impl Survey {
    async fn take<S: Storage>(
        disk: &Disk<'_, S>,
        header: &Header,
        length: u64,
    ) -> Result<Self, CheckError> {
        let size = header.cluster_size();
        let mut survey = Self {
            references: References::new(length.div_ceil(size)),
            compressed: None,
            blocks: BTreeMap::new(),
            structure: Vec::new(),
            tables: Vec::new(),
            sound: true,
            hopeless: false,
            copied_wrong: false,
            shared: 0,
            report: CheckReport {
                total_clusters: header.size.div_ceil(size),
                ..CheckReport::default()
            },
        };
        let end = length.div_ceil(size) * size;
        let l1_end = header.l1_table_offset + u64::from(header.l1_size) * 8;
        if l1_end > end {
            survey.problem(Problem::BeyondEnd { at: 40, host: header.l1_table_offset, length });
        }
        survey.references.add(0, 1);
        let l1 = header.l1_table_offset / size..l1_end.div_ceil(size);
        for cluster in l1.clone() {
            survey.references.add(cluster, 1);
        }
        let mut metadata = Metadata { l1, others: BTreeSet::from([0]) };
        survey.read_refcount_table(disk, header, length, &mut metadata).await?;
        let entries = survey.read_l1(disk, header, length, &mut metadata).await?;
        let suspects = survey.read_l2(disk, header, length).await?;
        survey.judge_sharing(&metadata);
        survey.compare_refcounts(disk, header).await?;
        survey.judge_copied(disk, header, &entries, suspects).await?;
        survey.report.image_end_offset = survey.report.image_end_offset.max(
            survey.references.used().next_back().map_or(0, |(cluster, _)| (cluster + 1) * size),
        );
        Ok(survey)
    }

    /// Records something that no repair puts right.
    fn problem(&mut self, problem: Problem) {
        self.report.add(problem);
        self.hopeless = true;
    }

    async fn read_refcount_table<S: Storage>(
        &mut self,
        disk: &Disk<'_, S>,
        header: &Header,
        length: u64,
        metadata: &mut Metadata,
    ) -> Result<(), CheckError> {
        let size = header.cluster_size();
        let offset = header.refcount_table_offset;
        let len = u64::from(header.refcount_table_clusters) * size;
        for cluster in offset / size..(offset + len) / size {
            self.references.add(cluster, 1);
            self.structure.push(cluster);
            metadata.insert(cluster);
        }
        if offset + len > length.div_ceil(size) * size {
            self.report.add(Problem::BeyondEnd { at: 48, host: offset, length });
            self.sound = false;
        }
        let table = disk.read(offset, len).await?;
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
        let len = (u64::from(header.l1_size) * 8).min(length.saturating_sub(offset));
        let mut found = Vec::new();
        let mut read = 0;
        let most = len.min(L1_PIECE).next_multiple_of(UNIT as u64);
        let most = usize::try_from(most).expect("a piece fits in memory");
        let mut table = IoBuf::zeroed(most, disk.limits.alignment);
        while read < len {
            let piece = (len - read).min(L1_PIECE);
            let bytes = usize::try_from(piece).expect("a piece fits in memory");
            table = table.split_to(bytes.next_multiple_of(UNIT));
            table = disk.read_into(offset + read, table).await?;
            for (index, entry) in entries(&table).take_while(|&(index, _)| index < piece / 8) {
                let at = offset + read + index * 8;
                let entry = L1Entry(entry);
                match entry.decode(header.cluster_bits, at) {
                    Ok(None) => found.push((at, entry)),
                    Ok(Some(table)) => {
                        found.push((at, entry));
                        self.references.add(table.host / size, 1);
                        if table.host >= length {
                            self.problem(Problem::BeyondEnd { at, host: table.host, length });
                        } else if metadata.insert(table.host / size) {
                            self.tables.push(table.host);
                        } else {
                            // Something else is there, and what it would map is anybody's guess.
                            self.hopeless = true;
                        }
                    }
                    Err(error) => self.problem(Problem::Entry(error)),
                }
            }
            read += piece;
        }
        Ok(found)
    }

    /// Counts data clusters. Returns whether any L2 entry's COPIED bit needs a second look: one that is missing, or that
    /// no such entry may have.
    async fn read_l2<S: Storage>(
        &mut self,
        disk: &Disk<'_, S>,
        header: &Header,
        length: u64,
    ) -> Result<bool, CheckError> {
        let size = header.cluster_size();
        let mut suspects = false;
        for offset in self.tables.clone() {
            let table = disk.read(offset, size).await?;
            let mut previous = None;
            for (index, entry) in entries(&table) {
                let at = offset + index * 8;
                match L2Entry(entry).decode(header.cluster_bits, header.version, at) {
                    Ok(Mapping::Unallocated | Mapping::ZeroPlain) => {
                        suspects |= L2Entry(entry).copied();
                    }
                    Ok(
                        Mapping::Data { host, copied } | Mapping::ZeroAllocated { host, copied },
                    ) => {
                        suspects |= !copied;
                        self.references.add(host / size, 1);
                        if host >= length {
                            self.problem(Problem::BeyondEnd { at, host, length });
                        }
                        self.report.allocated_clusters += 1;
                        if previous.is_some_and(|previous| previous + size != host) {
                            self.report.fragmented_clusters += 1;
                        }
                        previous = Some(host);
                    }
                    Ok(Mapping::Compressed { offset, length: bytes, copied }) => {
                        suspects |= copied;
                        let last = (offset + bytes.max(1) - 1) / size;
                        let compressed = self
                            .compressed
                            .get_or_insert_with(|| References::new(length.div_ceil(size)));
                        for cluster in offset / size..=last {
                            self.references.add(cluster, 1);
                            compressed.add(cluster, 1);
                        }
                        if offset >= length {
                            self.problem(Problem::BeyondEnd { at, host: offset, length });
                        }
                        self.report.allocated_clusters += 1;
                        self.report.compressed_clusters += 1;
                        self.report.fragmented_clusters += 1;
                    }
                    Err(error) => self.problem(Problem::Entry(error)),
                }
            }
        }
        Ok(suspects)
    }

    /// Judges clusters with several references: tables must have one; data must not be mapped twice, but by compressed
    /// clusters only.
    fn judge_sharing(&mut self, metadata: &Metadata) {
        let shared: Vec<(u64, u64)> =
            self.references.used().filter(|&(_, counted)| counted > 1).collect();
        let mut structure: BTreeMap<u64, u64> = BTreeMap::new();
        for &cluster in &self.structure {
            *structure.entry(cluster).or_default() += 1;
        }
        for (cluster, counted) in shared {
            if let Some(own) = structure.get(&cluster) {
                // A rebuilt structure lies elsewhere; what is left are the other references.
                self.sound = false;
                if counted - own > 1 {
                    self.problem(Problem::Overlap { cluster, counted });
                } else {
                    self.report.add(Problem::Overlap { cluster, counted });
                }
            } else if metadata.contains(cluster) {
                self.problem(Problem::Overlap { cluster, counted });
            } else if counted > self.compressed.as_ref().map_or(0, |all| all.get(cluster)) {
                self.report.add(Problem::Shared { cluster, counted });
                self.shared += 1;
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
        let mut missing = Vec::new();
        // Whether there is a block for the last cluster, and its index.
        let (mut block, mut there) = (None, false);
        for (cluster, counted) in self.references.used() {
            let index = cluster >> per_block.ilog2();
            if block != Some(index) {
                (block, there) = (Some(index), self.blocks.contains_key(&index));
            }
            if counted > refcount::max(order) {
                missing.push(Problem::TooMany { cluster, counted });
                self.hopeless = true;
            } else if !there {
                missing.push(Problem::RefcountTooLow { cluster, stored: 0, counted });
                self.sound = false;
            }
        }
        for problem in missing {
            self.report.add(problem);
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

    async fn judge_copied<S: Storage>(
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
        for offset in self.tables.clone() {
            let table = disk.read(offset, header.cluster_size()).await?;
            for (index, entry) in entries(&table) {
                let right = self.references.with_right_copied(header, L2Entry(entry));
                if right.0 != entry {
                    let counted = self.references.to(right.host(), header);
                    self.report.add(Problem::Copied { at: offset + index * 8, entry, counted });
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

/// The entries of a table that are not zero, with their index; most of a large table is.
fn entries(table: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    const PIECE: usize = 4096;
    let pieces = (0..).step_by(PIECE / 8).zip(table.chunks(PIECE));
    let used = pieces.filter(|(_, piece)| **piece != [0; PIECE][..piece.len()]);
    used.flat_map(|(first, piece)| {
        (first..).zip(piece.as_chunks::<8>().0).filter_map(|(index, bytes)| {
            let entry = u64::from_be_bytes(*bytes);
            (entry != 0).then_some((index, entry))
        })
    })
}

/// Puts right what a survey found.
struct Mender<'a, 'b, S> {
    disk: &'a mut Disk<'b, S>,
    header: Header,
    sector: Box<[u8; UNIT]>,
    length: u64,
    survey: &'a Survey,
    /// References as they are now: what the survey found, until a rebuild moves the refcount structures.
    references: References,
    report: &'a mut CheckReport,
}

/// New refcount structures.
struct Plan {
    /// References once they are there.
    references: References,
    /// Indexes of the blocks.
    blocks: BTreeSet<u64>,
    /// What they take: a cluster for each block, and then the table.
    clusters: Range<u64>,
    table_clusters: u64,
}

impl<S: Storage> Mender<'_, '_, S> {
    async fn run(&mut self, repair: Repair) -> Result<(), CheckError> {
        let flags = Incompatible::DIRTY | Incompatible::CORRUPT;
        let marked = self.header.incompatible.intersects(flags);
        let found = self.report.corruptions + self.report.leaks > 0;
        let leaks_only = repair == Repair::Leaks;
        let work = if leaks_only {
            self.report.leaks > 0
        } else {
            found || marked || repair == Repair::Rebuild
        };
        // Where refcount structures are damaged, what looks like a block may hold something else: only a rebuild is safe.
        let unsafe_in_place = leaks_only && !self.survey.sound;
        if !work || self.survey.hopeless || unsafe_in_place {
            return Ok(());
        }
        let was_dirty = self.header.incompatible.contains(Incompatible::DIRTY);
        let plan = if repair == Repair::Rebuild || !leaks_only && !self.survey.sound {
            match self.plan_rebuild() {
                Ok(plan) => Some(plan),
                Err(problem) => {
                    self.report.add(problem);
                    return Ok(());
                }
            }
        } else {
            None
        };
        self.write_header(|header| header.incompatible |= Incompatible::DIRTY).await?;
        self.disk.ensure(Rule::DirtyBeforeRepair, Barrier::RepairDirtyBit).await?;
        match plan {
            Some(plan) => self.rebuild(plan).await?,
            None => self.correct_refcounts(leaks_only).await?,
        }
        if leaks_only {
            self.report.leaks_fixed = self.report.leaks;
            self.report.repaired(|problem| matches!(problem, Problem::Leak { .. }));
        } else {
            if self.survey.copied_wrong || self.report.rebuilt {
                self.correct_copied().await?;
            }
            self.report.leaks_fixed = self.report.leaks;
            self.report.corruptions_fixed = self.report.corruptions - self.survey.shared;
            self.report.repaired(|problem| !matches!(problem, Problem::Shared { .. }));
        }
        self.disk.ensure(Rule::AllBeforeClean, Barrier::RepairBeforeClean).await?;
        if self.report.is_consistent() {
            self.write_header(|header| header.incompatible -= flags).await?;
        } else if !was_dirty {
            self.write_header(|header| header.incompatible -= Incompatible::DIRTY).await?;
        }
        self.disk.ensure(Rule::DurableBeforeAcknowledge, Barrier::Repair).await
    }

    async fn write_header(&mut self, change: impl FnOnce(&mut Header)) -> Result<(), CheckError> {
        let mut header = self.header.clone();
        change(&mut header);
        if header == self.header {
            return Ok(());
        }
        header.patch_sector(&mut self.sector[..])?;
        self.header = header;
        let sector = self.sector.clone();
        self.disk.write(0, &sector[..]).await
    }

    /// Corrects counts in the blocks that there are; only downwards if `leaks_only`.
    async fn correct_refcounts(&mut self, leaks_only: bool) -> Result<(), CheckError> {
        let per_block = self.header.refcounts_per_block();
        let order = self.header.refcount_order;
        for (&index, &offset) in &self.survey.blocks {
            let old = self.disk.read(offset, self.header.cluster_size()).await?;
            let mut new = old.to_vec();
            for within in 0..per_block {
                let at = usize::try_from(within).expect("a block fits in memory");
                let stored = refcount::get(&old, order, at).unwrap_or(0);
                let counted = self.references.get(index * per_block + within);
                let right = if leaks_only { stored.min(counted) } else { counted };
                if right != stored {
                    refcount::set(&mut new, order, at, right)
                        .expect("the survey found that it fits");
                }
            }
            self.disk.write_changes(offset, &old, &new).await?;
        }
        Ok(())
    }

    async fn correct_copied(&mut self) -> Result<(), CheckError> {
        let size = self.header.cluster_size();
        let l1_len = (u64::from(self.header.l1_size) * 8).next_multiple_of(UNIT as u64);
        let l1_offset = self.header.l1_table_offset;
        let old = self.disk.read(l1_offset, l1_len).await?;
        let mut new = old.to_vec();
        let l1_size = self.header.l1_size as usize;
        for (index, entry) in entries(&old).take_while(|&(index, _)| index < l1_size as u64) {
            let entry = L1Entry(entry);
            let counted = self.references.to(entry.host(), &self.header);
            set_entry(&mut new, index, entry.with_copied(counted == 1).0);
        }
        self.disk.write_changes(l1_offset, &old, &new).await?;
        for &offset in &self.survey.tables {
            let old = self.disk.read(offset, size).await?;
            let mut new = old.to_vec();
            for (index, entry) in entries(&old) {
                let right = self.references.with_right_copied(&self.header, L2Entry(entry));
                set_entry(&mut new, index, right.0);
            }
            self.disk.write_changes(offset, &old, &new).await?;
        }
        Ok(())
    }

    /// Where new refcount structures go: past everything in use. Fails if no refcount table can describe all references.
    fn plan_rebuild(&self) -> Result<Plan, Problem> {
        let size = self.header.cluster_size();
        let per_block = self.header.refcounts_per_block();
        let mut references = References::new(self.length.div_ceil(size));
        for (cluster, count) in self.references.used() {
            references.add(cluster, u32::try_from(count).expect("it was one"));
        }
        for &cluster in &self.survey.structure {
            references.remove(cluster);
        }
        // Old structures outside the file hold nothing.
        let in_file = self.length.div_ceil(size);
        let used = self
            .references
            .used()
            .rev()
            .find(|&(cluster, _)| cluster < in_file || references.get(cluster) > 0);
        let start = used.map_or(0, |(cluster, _)| cluster + 1);
        let mut blocks: BTreeSet<u64> =
            references.used().map(|(cluster, _)| cluster / per_block).collect();
        let mut end = start;
        let table_clusters = loop {
            let last = *blocks.last().expect("the header has a reference");
            let table_clusters = ((last + 1) * 8).div_ceil(size);
            if table_clusters * size > limits::REFCOUNT_TABLE_BYTES
                || end * size >= limits::HOST_OFFSET_END
            {
                return Err(Problem::TooMany { cluster: start.saturating_sub(1), counted: 1 });
            }
            let wanted = start + blocks.len() as u64 + table_clusters;
            if wanted == end {
                break table_clusters;
            }
            end = wanted;
            blocks.extend(start / per_block..=(end - 1) / per_block);
        };
        for cluster in start..end {
            references.add(cluster, 1);
        }
        Ok(Plan { references, blocks, clusters: start..end, table_clusters })
    }

    /// Writes new refcount structures and switches to them.
    async fn rebuild(&mut self, plan: Plan) -> Result<(), CheckError> {
        let Plan { references, blocks, clusters: Range { start, end }, table_clusters } = plan;
        let size = self.header.cluster_size();
        let per_block = self.header.refcounts_per_block();
        let order = self.header.refcount_order;
        let cluster_len = usize::try_from(size).expect("a cluster fits in memory");
        let mut table =
            vec![0; usize::try_from(table_clusters * size).expect("checked against the limit")];
        for (offset, &index) in (start..).zip(&blocks) {
            let mut block = vec![0; cluster_len];
            for within in 0..per_block {
                let count = references.get(index * per_block + within);
                let at = usize::try_from(within).expect("a block fits in memory");
                refcount::set(&mut block, order, at, count).expect("the survey found that it fits");
            }
            self.disk.write(offset * size, &block).await?;
            set_entry(&mut table, index, RefcountTableEntry::new(offset * size).0);
        }
        let table_offset = (end - table_clusters) * size;
        self.disk.write(table_offset, &table).await?;
        self.disk.ensure(Rule::CopyBeforeSwitch, Barrier::RepairSwitch).await?;
        self.write_header(|header| {
            header.refcount_table_offset = table_offset;
            header.refcount_table_clusters =
                u32::try_from(table_clusters).expect("checked against the limit");
        })
        .await?;
        self.references = references;
        self.report.rebuilt = true;
        Ok(())
    }
}

fn set_entry(table: &mut [u8], index: u64, entry: u64) {
    let at = usize::try_from(index * 8).expect("a table fits in memory");
    table[at..at + 8].copy_from_slice(&entry.to_be_bytes());
}
