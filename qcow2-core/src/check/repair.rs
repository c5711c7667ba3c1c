//! Putting right what a survey found.
//!
//! ```text
//!   in place      dirty ══ counts, COPIED ══ clean ══
//!   rebuilt       new blocks and table ══ dirty, switched ══ COPIED ══ clean ══          (══ is a flush)
//!
//!   version 2     ══ counts ══ COPIED ══
//!   rebuilt       new blocks and table ══ switched ══ COPIED ══
//! ```
//!
//! **Invariants.** What needs room is written first, where nothing is, and changes nothing. From the first change of anything that is
//! in use to the last one the dirty bit is durable.
//!
//! Version 2 has no dirty bit, so nobody knows that a repair was under way: whatever part of it a power cut leaves must be no worse than
//! what was there before. A count that is right harms nobody, whatever the entries say, once every reference that it leaves out is
//! gone from the medium. A COPIED bit that is right needs its count: without COPIED a writer copies and counts one down.

use std::collections::BTreeMap;

use crate::barrier::Barrier;
use crate::error::CheckError;
use crate::format::entry::{L1Entry, L2Entry, Mapping, RefcountTableEntry, Subclusters};
use crate::format::feature::{Autoclear, Incompatible};
use crate::format::header::Header;
use crate::format::{limits, refcount};
use crate::load::HeaderRead;
use crate::mutant::mutant;
use crate::options::Repair;
use crate::rule::Rule;
use storage::{Storage, UNIT, is_no_space};

use super::autoclear::clear_autoclear;
use super::disk::Disk;
use super::entries::{Halves, entries, l2_entries};
use super::references::References;
use super::report::{CheckReport, Problem};
use super::survey::{L2Table, PIECE, Survey};

pub(super) struct Repairer<'a, 'b, S> {
    disk: &'a mut Disk<'b, S>,
    image: &'a mut HeaderRead,
    /// What was found; its references are those of now, once refcount structures are rebuilt.
    survey: Survey,
    report: &'a mut CheckReport,
}

/// New refcount structures.
#[derive(Clone, Debug)]
struct Plan {
    /// References once they are there.
    references: References,
    /// The host cluster of each block, by its index.
    blocks: BTreeMap<u64, u64>,
    /// The first host cluster of the table.
    table: u64,
    table_clusters: u64,
    /// None of all these clusters is before this one, and where the last one ends.
    start: u64,
    end: u64,
}

impl Plan {
    /// What the new structures take.
    fn clusters(&self) -> impl Iterator<Item = u64> {
        let table = self.table..self.table + self.table_clusters;
        self.blocks.values().copied().chain(table)
    }
}

impl<'a, 'b, S: Storage> Repairer<'a, 'b, S> {
    pub(super) fn new(
        disk: &'a mut Disk<'b, S>,
        image: &'a mut HeaderRead,
        survey: Survey,
        report: &'a mut CheckReport,
    ) -> Self {
        Self { disk, image, survey, report }
    }

    pub(super) async fn run(mut self, repair: Repair, keep: Autoclear) -> Result<(), CheckError> {
        let flags = Incompatible::DIRTY | Incompatible::CORRUPT;
        let marked = self.image.header.incompatible.intersects(flags);
        let leaks_only = repair == Repair::Leaks;
        // What stays as it is, is no work: a second repair finds nothing to do.
        let wrong = self.report.corruptions - self.report.staying + self.report.leaks > 0;
        let covers = self.survey.past_end.near > 0;
        let zeroes = self.survey.past_end.zeroed > 0;
        let work = if leaks_only {
            self.report.leaks > 0
        } else {
            wrong || marked || covers || zeroes || repair == Repair::Rebuild
        };
        // Where refcount structures are damaged, what looks like a block may hold something else: only a rebuild is safe.
        let unsafe_in_place = leaks_only && !self.survey.sound;
        if !work || self.report.hopeless || unsafe_in_place {
            return Ok(());
        }
        let rebuilds = repair == Repair::Rebuild || !leaks_only && !self.survey.sound;
        let past_end = match rebuilds.then(|| self.plan_past_end()).transpose() {
            Ok(plan) => plan,
            Err(problem) => {
                self.report.add_hopeless(problem);
                return Ok(());
            }
        };
        let marks = self.image.header.has_features();
        if !marks {
            self.disk.assume_unflushed();
        }
        clear_autoclear(self.disk, self.image, keep).await?;
        if !leaks_only {
            self.cover().await?;
        }
        let was_dirty = self.image.header.incompatible.contains(Incompatible::DIRTY);
        let switched = match past_end {
            Some(plan) => Some(self.write_somewhere(plan).await?),
            None => None,
        };
        if !marks {
            if zeroes {
                self.zero_past_end().await?;
            }
            let rule = Rule::DereferenceBeforeRefcountDown;
            self.disk.ensure(rule, Barrier::RepairReferences).await?;
        }
        self.write_header(|header| {
            if marks {
                header.incompatible |= Incompatible::DIRTY;
            }
            if let Some(Plan { table, table_clusters, .. }) = switched {
                header.refcount_table_offset = table * header.cluster_size();
                header.refcount_table_clusters =
                    u32::try_from(table_clusters).expect("checked against the limit");
            }
        })
        .await?;
        if marks {
            self.disk.ensure(Rule::DirtyBeforeRepair, Barrier::RepairDirtyBit).await?;
            if zeroes {
                self.zero_past_end().await?;
            }
        }
        match switched {
            Some(plan) => {
                self.survey.references = plan.references;
                self.report.rebuilt = true;
                // A table that was cut short is not used any more.
                self.report.cut = None;
            }
            None => self.correct_refcounts(leaks_only).await?,
        }
        if !marks {
            self.disk.ensure(Rule::CountsBeforeCopied, Barrier::RepairCounts).await?;
        }
        if leaks_only {
            self.report.leaks_repaired();
        } else {
            if self.survey.copied_wrong || self.report.rebuilt {
                self.correct_copied().await?;
            }
            self.report.all_repaired();
        }
        if marks {
            self.disk.ensure(Rule::AllBeforeClean, Barrier::RepairBeforeClean).await?;
            self.take_marks(was_dirty).await?;
        }
        self.disk.ensure(Rule::DurableBeforeAcknowledge, Barrier::Repair).await
    }

    /// Clears the marks that have nothing left to say.
    async fn take_marks(&mut self, was_dirty: bool) -> Result<(), CheckError> {
        // With every reference counted the dirty bit has nothing left to say, whatever else is wrong.
        let done = if self.report.is_consistent() {
            Incompatible::DIRTY | Incompatible::CORRUPT
        } else if self.report.is_writable() || !was_dirty {
            Incompatible::DIRTY
        } else {
            Incompatible::empty()
        };
        let rules = self.disk.rules;
        self.write_header(|header| {
            header.incompatible -= done;
            let compatible = header.compatible;
            header.compatible = mutant!(rules, RepairForgetsFeatures => compatible & crate::format::feature::Compatible::all(); compatible);
        })
        .await
    }

    async fn write_header(&mut self, change: impl FnOnce(&mut Header)) -> Result<(), CheckError> {
        let mut header = self.image.header.clone();
        change(&mut header);
        if header == self.image.header {
            return Ok(());
        }
        header.patch_sector(&mut self.image.sector[..])?;
        self.image.header = header;
        let sector = self.image.sector.clone();
        self.disk.write(0, &sector[..]).await
    }

    /// Makes the file reach the end of what is referred to a little past its end. A storage that cannot get longer leaves those
    /// references as they are: counted, and reading zeroes.
    async fn cover(&mut self) -> Result<(), CheckError> {
        let (near, end) = (self.survey.past_end.near, self.survey.past_end.near_end);
        if near == 0 || self.disk.set_len(end).await.is_err() {
            return Ok(());
        }
        self.image.length = end;
        self.report.resolve(
            near,
            |problem| matches!(problem, Problem::BeyondEnd { host, .. } if *host < end),
        );
        Ok(())
    }

    /// Corrects counts in the blocks that there are; only downwards if `leaks_only`.
    async fn correct_refcounts(&mut self, leaks_only: bool) -> Result<(), CheckError> {
        let header = &self.image.header;
        let per_block = header.refcounts_per_block();
        let order = header.refcount_order;
        for (&index, &offset) in &self.survey.blocks {
            let old = self.disk.read(offset, header.cluster_size()).await?;
            let mut new = old.to_vec();
            let counts =
                mutant!(self.disk.rules, LastCountOfBlockStays => per_block - 1; per_block);
            for within in 0..counts {
                let at = usize::try_from(within).expect("a block fits in memory");
                let stored = refcount::get(&old, order, at).unwrap_or(0);
                let counted = self.survey.references.get(index * per_block + within);
                let most =
                    mutant!(self.disk.rules, RepairLeavesLeaks => stored.max(counted); counted);
                let right = if leaks_only { stored.min(counted) } else { most };
                if right != stored {
                    refcount::set(&mut new, order, at, right)
                        .expect("the survey found that it fits");
                }
            }
            self.disk.write_changes(offset, &old, &new).await?;
        }
        Ok(())
    }

    /// Lets entries that point past the end of the file read as zeroes and refer to nothing.
    async fn zero_past_end(&mut self) -> Result<(), CheckError> {
        let header = self.image.header.clone();
        let length = self.image.length;
        let zero = |entry: Halves| match (header.extended_l2(), header.has_zero_entries()) {
            (false, true) => Halves { first: L2Entry::ZERO_PLAIN, ..entry },
            (false, false) => Halves { first: L2Entry(0), ..entry },
            // What shows a layer below goes on to do so.
            (true, _) => {
                let of = entry.decode(&header, 0).ok().and_then(Mapping::subclusters);
                let of = of.map_or(Subclusters { data: 0, zero: u32::MAX }, |(_, _, of)| of);
                let of = Subclusters { data: 0, zero: of.zero | of.data };
                Halves { first: L2Entry(0), bitmap: of.bitmap(), ..entry }
            }
        };
        let past_end = |entry: Halves| match entry.decode(&header, 0) {
            // No entry leads into this file.
            _ if header.has_data_file() => false,
            Ok(
                Mapping::Data { host, .. }
                | Mapping::ZeroAllocated { host, .. }
                | Mapping::Mixed { host: host @ 1.., .. }
                | Mapping::Compressed { offset: host, .. },
            ) => host >= length,
            Ok(Mapping::Unallocated | Mapping::ZeroPlain | Mapping::Mixed { .. }) | Err(_) => false,
        };
        self.change_entries(
            |_, entry| if entry.host() >= length { L1Entry(0) } else { entry },
            |_, entry| if past_end(entry) { zero(entry) } else { entry },
        )
        .await
    }

    /// Sets COPIED in every entry as the references say.
    async fn correct_copied(&mut self) -> Result<(), CheckError> {
        let header = self.image.header.clone();
        let rules = self.disk.rules;
        self.change_entries(
            |references, entry| entry.with_copied(references.to(entry.host(), &header) == 1),
            |references, entry| {
                let first = references.with_right_copied(&header, entry, rules);
                Halves { first, ..entry }
            },
        )
        .await
    }

    /// Changes entries of the L1 table and of the L2 tables that are not zero.
    async fn change_entries(
        &mut self,
        l1: impl Fn(&References, L1Entry) -> L1Entry,
        l2: impl Fn(&References, Halves) -> Halves,
    ) -> Result<(), CheckError> {
        match self.image.header.extended_l2() {
            true => self.change_entries_of::<true>(l1, l2).await,
            false => self.change_entries_of::<false>(l1, l2).await,
        }
    }

    async fn change_entries_of<const EXTENDED: bool>(
        &mut self,
        l1: impl Fn(&References, L1Entry) -> L1Entry,
        l2: impl Fn(&References, Halves) -> Halves,
    ) -> Result<(), CheckError> {
        let header = &self.image.header;
        let references = &self.survey.references;
        let l1_len = u64::from(header.l1_size) * 8;
        let old = self.disk.read(header.l1_table_offset, l1_len).await?;
        let mut new = old.to_vec();
        let l1_size = u64::from(header.l1_size);
        for (index, entry) in entries(&old).take_while(|&(index, _)| index < l1_size) {
            set_entry(&mut new, index, l1(references, L1Entry(entry)).0);
        }
        self.disk.write_changes(header.l1_table_offset, &old, &new).await?;
        for &L2Table { host: offset, first_cluster } in &self.survey.tables {
            let old = self.disk.read(offset, header.cluster_size()).await?;
            let mut new = old.to_vec();
            for (within, entry) in l2_entries::<EXTENDED>(&old, first_cluster) {
                let Halves { first, bitmap, .. } = l2(references, entry);
                set_entry(&mut new, within / 8, first.0);
                if EXTENDED {
                    set_entry(&mut new, within / 8 + 1, bitmap);
                }
            }
            self.disk.write_changes(offset, &old, &new).await?;
        }
        Ok(())
    }

    /// The references without those of the refcount structures of now.
    fn references_without_structure(&self) -> References {
        let mut references = self.survey.references.clone();
        for &cluster in &self.survey.structure {
            references.remove(cluster);
        }
        references
    }

    /// New refcount structures past everything in use in the file, between what is referred to further up. Fails if no refcount
    /// table can describe all references, or not with less than there is in the file.
    fn plan_past_end(&self) -> Result<Plan, Problem> {
        let header = &self.image.header;
        let size = header.cluster_size();
        let per_block = header.refcounts_per_block();
        let mut references = self.references_without_structure();
        let in_file = self.image.length.div_ceil(size);
        let used = self.survey.references.used().rev().find(|&(cluster, _)| cluster < in_file);
        let behind = |last| mutant!(self.disk.rules, RebuildOverLastCluster => last; last + 1);
        let start = used.map_or(0, |(cluster, _)| behind(cluster));
        // Old structures outside the file hold nothing.
        let mut blocks = references.blocks(per_block);
        let placed = loop {
            let last = *blocks.last().expect("the header has a reference");
            let table_clusters = ((last + 1) * 8).div_ceil(size);
            let most = self.image.length.max(limits::REBUILT_BYTES);
            if table_clusters * size > limits::REFCOUNT_TABLE_BYTES
                || blocks.len() as u64 * size > most
            {
                return Err(Problem::TooMany { cluster: last * per_block, counted: 1 });
            }
            let mut free = (start..).filter(|&cluster| references.get(cluster) == 0);
            let placed: BTreeMap<u64, u64> = blocks.iter().copied().zip(&mut free).collect();
            let mut run = 0;
            let mut end = placed.last_key_value().map_or(start, |(_, cluster)| cluster + 1);
            while run < table_clusters {
                run = if references.get(end) == 0 { run + 1 } else { 0 };
                end += 1;
            }
            if end * size >= limits::HOST_OFFSET_END {
                return Err(Problem::TooMany { cluster: start.saturating_sub(1), counted: 1 });
            }
            let table = end - table_clusters;
            let count = blocks.len();
            blocks.extend(placed.values().map(|cluster| cluster / per_block));
            blocks.extend(table / per_block..=(end - 1) / per_block);
            if blocks.len() == count {
                break Plan {
                    references: References::default(),
                    blocks: placed,
                    table,
                    table_clusters,
                    start,
                    end,
                };
            }
        };
        for cluster in placed.clusters() {
            references.add(cluster, 1);
        }
        Ok(Plan { references, ..placed })
    }

    /// New refcount structures in clusters of the file that nothing refers to and that are not part of the old structures, as they
    /// may still be needed. `None` if there are not enough.
    fn plan_in_free_clusters(&self) -> Option<Plan> {
        let header = &self.image.header;
        let size = header.cluster_size();
        let per_block = header.refcounts_per_block();
        let in_file = self.image.length / size;
        let mut references = self.references_without_structure();
        let mut blocks = references.blocks(per_block);
        let last = (*blocks.last().expect("the header has a reference")).max(in_file / per_block);
        let table_clusters = ((last + 1) * 8).div_ceil(size);
        let is_free = |cluster: &u64| self.survey.references.get(*cluster) == 0;
        let mut run = 0;
        let table = (0..in_file).find(|cluster| {
            run = if is_free(cluster) { run + 1 } else { 0 };
            run == table_clusters
        })? + 1
            - table_clusters;
        let own = table..table + table_clusters;
        blocks.extend(own.clone().map(|cluster| cluster / per_block));
        let mut free = (0..in_file).filter(|cluster| is_free(cluster) && !own.contains(cluster));
        let mut clusters = Vec::new();
        while clusters.len() < blocks.len() {
            let cluster = free.next()?;
            blocks.insert(cluster / per_block);
            clusters.push(cluster);
        }
        let blocks = blocks.into_iter().zip(clusters).collect();
        let plan = Plan {
            references: References::default(),
            blocks,
            table,
            table_clusters,
            start: 0,
            end: in_file,
        };
        for cluster in plan.clusters() {
            references.add(cluster, 1);
        }
        Some(Plan { references, ..plan })
    }

    /// Writes new refcount structures where there is room for them, durably. Returns the plan that was carried out.
    async fn write_somewhere(&mut self, past_end: Plan) -> Result<Plan, CheckError> {
        let full = match self.write_structures(&past_end).await {
            Ok(()) => return Ok(past_end),
            Err(CheckError::Storage { action, offset, source }) if is_no_space(&source) => {
                CheckError::Storage { action, offset, source }
            }
            Err(other) => return Err(other),
        };
        // One plan's references at a time: they take what those of the survey do.
        drop(past_end);
        let Some(plan) = self.plan_in_free_clusters() else { return Err(full) };
        self.disk.settle().await?;
        self.write_structures(&plan).await?;
        Ok(plan)
    }

    async fn write_structures(&mut self, plan: &Plan) -> Result<(), CheckError> {
        let size = self.image.header.cluster_size();
        let per_block = self.image.header.refcounts_per_block();
        let order = self.image.header.refcount_order;
        if plan.start * size < self.image.length {
            // Whoever wrote before may have dropped the references to these clusters without flushing that.
            self.disk.assume_unflushed();
            self.disk.ensure(Rule::DereferenceBeforeReuse, Barrier::RepairReuse).await?;
        }
        if plan.end * size > self.image.length {
            self.disk.set_len(plan.end * size).await.map_err(|source| CheckError::Storage {
                action: "making room for a repair",
                offset: plan.end * size,
                source,
            })?;
        }
        let references = mutant!(self.disk.rules, RebuiltCountsOfBefore => {
            &self.survey.references
        }; &plan.references);
        let cluster_len = usize::try_from(size).expect("a cluster fits in memory");
        for (&index, &cluster) in &plan.blocks {
            let mut block = vec![0; cluster_len];
            let in_unit = (UNIT * 8) >> order;
            let first = index * per_block;
            for (from, unit) in (0..).step_by(in_unit).zip(block.chunks_mut(UNIT)) {
                if plan.references.none(first, from..from + in_unit) {
                    continue;
                }
                for within in 0..in_unit {
                    let count = references.get(first + (from + within) as u64);
                    refcount::set(unit, order, within, count)
                        .expect("the survey found that it fits");
                }
            }
            self.disk.write(cluster * size, &block).await?;
        }
        // A table for something far up is long and almost empty.
        let (start, bytes) = (plan.table * size, plan.table_clusters * size);
        if bytes > PIECE {
            self.disk.write_zeroes(start..start + bytes).await?;
        }
        let pieces = (0..bytes).step_by(usize::try_from(PIECE).expect("a piece fits in memory"));
        for at in pieces {
            let indexes = at / 8..(at + PIECE) / 8;
            let mut blocks = plan.blocks.range(indexes.clone()).peekable();
            if bytes > PIECE && blocks.peek().is_none() {
                continue;
            }
            let len = usize::try_from(PIECE.min(bytes - at)).expect("a piece fits in memory");
            let mut piece = vec![0; len];
            for (index, cluster) in blocks {
                let entry = RefcountTableEntry::new(cluster * size).0;
                set_entry(&mut piece, index - indexes.start, entry);
            }
            self.disk.write(start + at, &piece).await?;
        }
        self.disk.ensure(Rule::CopyBeforeSwitch, Barrier::RepairSwitch).await
    }
}

fn set_entry(table: &mut [u8], index: u64, entry: u64) {
    let at = usize::try_from(index * 8).expect("a table fits in memory");
    table[at..at + 8].copy_from_slice(&entry.to_be_bytes());
}
