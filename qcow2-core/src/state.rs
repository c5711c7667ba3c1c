//! Everything mutable about an open image. No I/O, no awaiting: a step looks, decides and changes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::task::Waker;

use crate::cache::{Cache, Kind, Need, Slot};
use crate::claims::Claims;
use crate::error::IoError;
use crate::files::{File, place};
use crate::format::entry::Subclusters;
use crate::format::feature::Incompatible;
use crate::format::header::Header;
use crate::free::Free;
use crate::freed::{self, Freed, Until};
use crate::load::HeaderRead;
use crate::metadata::Metadata;
use crate::mutant::mutant;
use crate::options::{OpenOptions, Overlap};
use crate::order::{Before, Edge, FlushClock, Stamp};
use crate::rule::{Rule, Rules};
use crate::taken::Taken;
use crate::work::Work;
use storage::{Limits, UNIT};

/// Why a step could not be taken.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It needs a page that is not in the cache; `generation` tells a later load whether the page is still a table.
    Load {
        page: u64,
        kind: Kind,
        generation: u64,
    },
    /// It adds a page, and the cache is full.
    Room,
    Error(IoError),
}

impl<E: Into<IoError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Operations in flight, by numbers that ascend.
#[derive(Clone, Debug, Default)]
struct InFlight(VecDeque<u64>);

impl InFlight {
    fn begin(&mut self, number: u64) {
        debug_assert!(self.0.back().is_none_or(|&last| last < number), "numbers ascend");
        self.0.push_back(number);
    }

    fn end(&mut self, number: u64) {
        if let Ok(at) = self.0.binary_search(&number) {
            self.0.remove(at);
        }
    }

    /// The oldest.
    fn first(&self) -> Option<u64> {
        self.0.front().copied()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) header: Header,
    /// The header's first sector of the storage as last written, with whatever this crate does not know.
    pub(crate) sector: Box<[u8]>,
    /// Whether `sector` is what the storage holds: not after a header write that was dropped or failed.
    pub(crate) header_known: bool,
    /// Whether the dirty bit is durable, so that refcounts owe nothing to references.
    pub(crate) dirty_durable: bool,
    pub(crate) lazy: bool,
    /// Whether L2 entries have 16 bytes.
    pub(crate) extended: bool,
    /// log2 of the bytes of an L2 entry, and of the entries of an L2 table.
    pub(crate) entry_bits: u32,
    pub(crate) table_bits: u32,
    /// Length of the layer below in bytes; 0 if there is none.
    pub(crate) below: u64,
    /// Where guest data is.
    pub(crate) guest_file: File,
    /// Bytes of the data file, 0 without one.
    pub(crate) data_length: u64,
    /// Whether the data file read as a raw disk has to be the guest's disk at every moment.
    pub(crate) raw: bool,
    pub(crate) rules: Rules,
    pub(crate) cache: Cache,
    pub(crate) clock: FlushClock,
    pub(crate) work: Work,
    pub(crate) claims: Claims,
    /// What is looked at before a cluster is written to or taken.
    pub(crate) overlap: Overlap,
    /// The bytes of the encryption header, none without one.
    pub(crate) keys: Range<u64>,
    /// The clusters of all L2 tables and refcount blocks, once they are known.
    pub(crate) metadata: Option<Metadata>,
    /// Counts how often pages were forgotten: a page asked for before must not be loaded after.
    pub(crate) generation: u64,
    /// Length of the file in bytes, and what makes it durable.
    pub(crate) length: u64,
    pub(crate) length_stamp: Stamp,
    /// The file is durably at least as long.
    pub(crate) durable_length: u64,
    /// By how much it grows at once, if that was said.
    pub(crate) growth: Option<u64>,
    /// Whether it did not get longer before that was needed: no use trying again.
    pub(crate) stays_short: bool,
    /// Clusters from this one on were never written.
    pub(crate) fresh_from: u64,
    /// Clusters from this one on were not in the file when it was opened, and nobody has taken one since.
    pub(crate) untouched_from: u64,
    pub(crate) free: Free,
    pub(crate) freed: freed::Queue,
    /// Where the next stream goes, if it fits: what is left of the cluster that streams were last put into, as a range of the file.
    pub(crate) tail: Option<Range<u64>>,
    /// Reads in flight, by ticket.
    readers: InFlight,
    next_ticket: u64,
    /// Clusters taken by dropped requests, by the number of their orphaned claim.
    orphaned: BTreeMap<u64, Taken>,
    /// Writes through in flight, by number, and who waits for some of them to end.
    throughs: InFlight,
    next_through: u64,
    awaiting_throughs: Vec<Waker>,
    /// The sync that failed.
    poison: Option<String>,
    /// The damage that was found.
    corrupt: Option<String>,
}

/// As many pages hold the L2 tables of the whole disk, and counts of as many clusters, within the bounds for whom nothing is said.
fn default_pages(header: &Header, page_size: u64) -> usize {
    let clusters = header.size.div_ceil(1 << header.cluster_bits);
    let counts = (clusters << header.refcount_order) / 8;
    let entry_bytes = header.cluster_size() / header.l2_entries();
    let bytes = (clusters * entry_bytes + counts).clamp(4 << 20, 32 << 20);
    usize::try_from(bytes / page_size).expect("32 MiB fit in memory")
}

impl State {
    pub(crate) fn new(
        read: HeaderRead,
        options: &OpenOptions,
        limits: &Limits,
        lazy: bool,
        below: u64,
    ) -> Self {
        let HeaderRead { header, sector, length } = read;
        let cluster_size = 1u64 << header.cluster_bits;
        let one_transfer = 1 << limits.max_transfer.ilog2();
        let least = limits.sector() as u64;
        let page_size = options.page_size.max(least).min(cluster_size).min(one_transfer);
        let cache_pages = options.cache_pages.unwrap_or_else(|| default_pages(&header, page_size));
        let clusters = length.div_ceil(cluster_size);
        let rules = options.rules;
        let length = mutant!(rules, OpenLengthRoundedUp => clusters * cluster_size; length);
        let extended = header.extended_l2();
        let guest_file = if header.has_data_file() { File::Data } else { File::Image };
        let raw = header.has_raw_data_file();
        let keys = mutant!(rules, KeysUnprotected => 0..0; header.keys());
        let entry_bits = if extended { 4 } else { 3 };
        let table_bits = header.cluster_bits - entry_bits;
        let zeroes = limits.unwritten_reads_zero;
        let zeroes = mutant!(rules, StaleSpaceTakenForZeroes => true; zeroes);
        let fresh_from = if zeroes { clusters } else { u64::MAX };
        Self {
            header,
            sector,
            header_known: true,
            dirty_durable: false,
            lazy,
            extended,
            entry_bits,
            table_bits,
            below,
            guest_file,
            data_length: 0,
            raw,
            rules,
            cache: Cache::new(page_size, cache_pages, limits.alignment, rules),
            clock: FlushClock::new(rules),
            work: Work::default(),
            claims: Claims::new(rules),
            overlap: options.overlap,
            keys,
            metadata: None,
            generation: 0,
            length,
            length_stamp: Stamp::DURABLE,
            durable_length: length,
            growth: options.growth,
            stays_short: false,
            fresh_from,
            untouched_from: clusters,
            free: Free::new(rules),
            freed: freed::Queue::new(rules),
            tail: None,
            readers: InFlight::default(),
            next_ticket: 0,
            orphaned: BTreeMap::new(),
            throughs: InFlight::default(),
            next_through: 0,
            awaiting_throughs: Vec::new(),
            poison: None,
            corrupt: None,
        }
    }

    /// Counts the end of a step before which `before` had been looked at.
    pub(crate) fn end_step(&mut self, before: u64) {
        self.work.looked_at += self.cache.take_looked_at();
        self.work.end_step(before, self.cache.len());
    }

    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    pub(crate) fn subcluster_size(&self) -> u64 {
        self.cluster_size() / Subclusters::COUNT
    }

    /// The 8-byte entry at host offset `at` of a table of that kind.
    pub(crate) fn entry(&mut self, at: u64, kind: Kind) -> Result<u64, Stop> {
        let slot = self.find(self.cache.page_of(at), kind)?;
        Ok(self.cache.entry(slot, at))
    }

    /// Finds a page in the cache, and in the cache as a table of that kind: in a damaged image a cluster may be two tables at once,
    /// and a page that is two would wait for itself.
    pub(crate) fn find(&mut self, page: u64, kind: Kind) -> Result<Slot, Stop> {
        match self.cache.find(page) {
            Some((slot, other)) if other == kind => Ok(slot),
            Some(_) => Err(IoError::TwoTables { cluster: page / self.cluster_size() }.into()),
            None => Err(Stop::Load { page, kind, generation: self.generation }),
        }
    }

    /// Makes sure that there is room for a page that is about to be added.
    pub(crate) fn check_room(&self) -> Result<(), Stop> {
        if self.cache.is_full() { Err(Stop::Room) } else { Ok(()) }
    }

    /// Whether refcounts have to be durable before references to what they count.
    pub(crate) fn counted(&self) -> bool {
        !self.dirty_durable
    }

    /// Whether the header says dirty, durable or not.
    pub(crate) fn marked_dirty(&self) -> bool {
        self.header.incompatible.contains(Incompatible::DIRTY)
    }

    /// Lets a page wait for `before`, if `rule` holds and it is not durable anyway.
    pub(crate) fn order(&mut self, page: u64, rule: Rule, before: Before) {
        if self.rules.hold(rule) && self.cache.need(before, &self.clock) != Need::Nothing {
            self.cache.wait_for(page, Edge { rule, before });
        }
    }

    /// A flush failed: what it covered may be lost, and no later flush can tell.
    pub(crate) fn fail_flush(&mut self, source: io::Error) -> IoError {
        self.fail_sync("flushing", 0, &source);
        IoError::Storage { action: "flushing", offset: 0, source }
    }

    /// Something that syncs failed, a flush or a write through, for whatever reason: the same. Nothing is acknowledged any more.
    pub(crate) fn fail_sync(&mut self, action: &'static str, host: u64, source: &io::Error) {
        if self.rules.hold(Rule::FailedFlushIsFinal) {
            let reason = || match place(host) {
                (File::Image, offset) => {
                    format!("{action} at host offset {offset:#x} failed: {source}")
                }
                (File::Data, offset) => {
                    format!(
                        "{action} at byte {offset:#x} of the external data file failed: {source}"
                    )
                }
            };
            self.poison.get_or_insert_with(reason);
        }
    }

    /// Numbers a write through that begins.
    pub(crate) fn begin_through(&mut self) -> u64 {
        let number = self.next_through;
        self.next_through += 1;
        self.throughs.begin(number);
        number
    }

    /// Records that a write through has ended, or was left to whoever sees the storage settle.
    pub(crate) fn end_through(&mut self, number: u64) {
        self.throughs.end(number);
        self.awaiting_throughs.drain(..).for_each(Waker::wake);
    }

    /// The number of the next write through.
    pub(crate) fn next_through(&self) -> u64 {
        self.next_through
    }

    /// Whether every write through before `number` has ended; if not, the waker is called when one does.
    pub(crate) fn throughs_ended(&mut self, number: u64, waker: &Waker) -> bool {
        let ended = self.throughs.first().is_none_or(|first| first >= number);
        let ended = mutant!(self.rules, FlushBesideThrough => true; ended);
        if !ended {
            self.awaiting_throughs.push(waker.clone());
        }
        ended
    }

    /// Whether what is written now can still become durable.
    pub(crate) fn accepts_changes(&self) -> Result<(), IoError> {
        match &self.poison {
            Some(reason) => Err(IoError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }

    /// Checks a guest range.
    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<(), IoError> {
        if !offset.is_multiple_of(UNIT as u64) || !len.is_multiple_of(UNIT as u64) {
            return Err(IoError::Unaligned { offset, len });
        }
        let size = self.header.size;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(IoError::OutOfRange { offset, len, size });
        }
        Ok(())
    }

    /// Whether requests may change the image.
    pub(crate) fn accepts_requests(&self) -> Result<(), IoError> {
        match &self.corrupt {
            Some(reason) => Err(IoError::Poisoned(reason.clone())),
            None => self.accepts_changes(),
        }
    }

    /// Lets no request change the image from now on, because of damage that was found. Returns whether that is news.
    pub(crate) fn found_corrupt(&mut self, why: &IoError) -> bool {
        let news = self.corrupt.is_none();
        self.corrupt.get_or_insert_with(|| why.to_string());
        news
    }

    /// Whether no request is in flight, and none that ended has left something that must settle first.
    #[cfg(feature = "sabotage")]
    pub(crate) fn is_idle(&self) -> bool {
        let quiet = self.readers.first().is_none() && self.throughs.first().is_none();
        quiet && self.claims.are_none() && self.orphaned.is_empty()
    }

    /// Starts a read: what it resolves to stays until [`end_read`](Self::end_read).
    pub(crate) fn begin_read(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.readers.begin(ticket);
        ticket
    }

    /// The ticket of the next read.
    pub(crate) fn next_read(&self) -> u64 {
        self.next_ticket
    }

    /// Whether every read before that ticket has ended.
    pub(crate) fn reads_ended(&self, ticket: u64) -> bool {
        self.readers.first().is_none_or(|first| first >= ticket)
            || !self.rules.hold(Rule::ReadsBeforeReuse)
    }

    pub(crate) fn end_read(&mut self, ticket: u64) {
        debug_assert!(ticket < self.next_ticket, "a read that ends began");
        self.readers.end(ticket);
    }

    /// Records that a reference to `cluster` was dropped; `before` makes that durable.
    pub(crate) fn dereference(&mut self, cluster: u64, before: Before, discard: bool) {
        let number = self.next_ticket;
        self.next_ticket += 1;
        let reuse = self.rules.hold(Rule::DereferenceBeforeReuse);
        let lowered = !self.rules.hold(Rule::DereferenceBeforeRefcountDown)
            && self.lower_refcount(cluster).is_ok();
        let ticket = if self.rules.hold(Rule::ReadsBeforeReuse) { number } else { 0 };
        let until = match (self.cache.need(before, &self.clock), before) {
            _ if !reuse => Until::Now,
            (Need::Nothing, _) => Until::Now,
            (Need::Flush(stamp), _) | (Need::Write(_), Before::Written(stamp)) => {
                Until::Flushed(stamp)
            }
            (Need::Write(_), Before::Page { offset, version }) => {
                Until::Written { page: offset, version }
            }
        };
        let freed = Freed { ticket, discard, lowered };
        self.freed.insert((cluster, number), freed, until);
    }

    /// Gives back clusters that were taken and that nothing refers to.
    pub(crate) fn give_back(&mut self, clusters: Taken) {
        for cluster in clusters.into_iter() {
            let number = self.next_ticket;
            self.next_ticket += 1;
            let freed = Freed { ticket: 0, discard: false, lowered: false };
            self.freed.insert((cluster, number), freed, Until::Now);
        }
    }

    /// Records that `version` of a metadata page is on the storage since `stamp`.
    pub(crate) fn page_written(&mut self, page: u64, version: u64, stamp: Stamp) {
        self.cache.written(page, version, stamp);
        self.freed.written(page, version, stamp);
    }

    /// Whether some of the freed clusters may go on towards being free.
    pub(crate) fn has_reapable(&self) -> bool {
        self.freed.has_ready(&self.clock, self.readers.first())
    }

    /// Lets freed clusters go on, at most so many.
    pub(crate) fn advance_freed(&mut self, most: usize) {
        self.work.looked_at += most as u64;
        self.freed.go_on(most, &self.clock, self.readers.first());
    }

    /// Leaves the claim `id` and its clusters until the storage has settled; `sync` says whether a write through is in flight.
    pub(crate) fn orphan(&mut self, id: u64, sync: bool, clusters: Taken) {
        self.claims.orphan(id, sync);
        if !clusters.is_empty() {
            self.orphaned.insert(id, clusters);
        }
    }

    /// Releases orphaned claims, and the clusters that their requests had taken.
    pub(crate) fn release_orphans(&mut self, orphans: &[u64]) {
        self.claims.release_orphans(orphans);
        for id in orphans {
            let taken = self.orphaned.remove(id);
            if let Some(clusters) = mutant!(self.rules, OrphanClustersLost => None; taken) {
                self.give_back(clusters);
            }
        }
    }

    /// Forgets cached pages of a table that is no longer one.
    pub(crate) fn forget(&mut self, range: std::ops::Range<u64>) {
        self.cache.forget(range.clone());
        self.freed.forgotten(range);
        self.generation += 1;
    }
}
