//! Metadata in memory: slices of L1, L2 and refcount tables and of refcount blocks, by host offset.
//!
//! ```text
//!   table cluster on disk   | slice 0 | slice 1 | ... | slice n |     one page = one slice (at most a cluster)
//!   page in memory          bytes, version 7; written version 5 carries stamp 3; after: [edges of version 7]
//! ```
//!
//! **Invariant.** A page is written only when every edge of its newest version is satisfied; what is written is its newest
//! version. A page that is evicted leaves its stamp behind until that stamp is durable, so that edges to it stay right.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use smallvec::SmallVec;

use crate::mutant::mutant;
use crate::order::{Before, Edge, FlushClock, Stamp};
use crate::rule::Rules;
use storage::IoBuf;

/// Pages used within this many accesses are not evicted, so that one operation cannot evict what it is about to use.
const RECENT: u64 = 32;
/// Whatever the limit, as many pages may be there: of so many one was not used recently.
const LEAST: usize = RECENT as usize + 2;
/// As many of the pages that were not used for the longest time are looked at for a clean one.
const LOOKED_AT: usize = 64;
/// No slot: the end of the list.
const NONE: usize = usize::MAX;

/// What a page is a slice of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    L1,
    L2,
    RefcountTable,
    RefcountBlock,
}

impl Kind {
    /// Whether a clean-up of a dirty image may rebuild this kind from the others.
    pub(crate) fn is_refcount(self) -> bool {
        matches!(self, Self::RefcountTable | Self::RefcountBlock)
    }
}

#[derive(Debug)]
struct Page {
    offset: u64,
    kind: Kind,
    bytes: IoBuf,
    version: u64,
    /// The newest version on the storage, and its stamp.
    written: u64,
    stamp: Stamp,
    after: SmallVec<[Edge; 4]>,
    used: u64,
    /// Neighbours in the order of use.
    older: usize,
    newer: usize,
}

impl Page {
    fn is_dirty(&self) -> bool {
        self.version != self.written
    }

    /// A copy whose memory may be given to the storage as the memory of this one may.
    fn copy(&self, alignment: usize) -> Self {
        let Self { ref bytes, ref after, .. } = *self;
        Self { bytes: IoBuf::copy_of(bytes, alignment), after: after.clone(), ..*self }
    }
}

/// Where a page is, until one is added or removed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot(usize);

/// What has to happen before something may rely on a page or stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    /// Write this page.
    Write(u64),
    /// Flush the storage up to this stamp.
    Flush(Stamp),
}

/// How to make room for one more page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Enough,
    /// Every page that could go is dirty: write this one first.
    Write(u64),
}

/// Stamps of evicted pages that are not durable yet.
#[derive(Clone, Debug, Default)]
struct Evicted {
    pages: BTreeMap<u64, Stamp>,
    by_stamp: BTreeSet<(Stamp, u64)>,
}

impl Evicted {
    fn insert(&mut self, page: u64, stamp: Stamp) {
        self.pages.insert(page, stamp);
        self.by_stamp.insert((stamp, page));
    }

    fn remove(&mut self, page: u64) -> Option<Stamp> {
        let stamp = self.pages.remove(&page)?;
        self.by_stamp.remove(&(stamp, page));
        Some(stamp)
    }

    /// Removes some of what is durable.
    fn prune(&mut self, clock: &FlushClock) {
        for _ in 0..LOOKED_AT {
            let first = self.by_stamp.first().filter(|(stamp, _)| clock.is_durable(*stamp));
            let Some(&(stamp, page)) = first else { break };
            self.by_stamp.remove(&(stamp, page));
            self.pages.remove(&page);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Cache {
    page_size: u64,
    limit: usize,
    /// Of the memory of a page, in bytes.
    alignment: usize,
    /// The memory of the page that was removed last, for the next one.
    spare: Option<IoBuf>,
    /// Where each page is in `slots`.
    index: BTreeMap<u64, usize>,
    slots: Vec<Page>,
    /// The ends of the list of pages in the order of use.
    oldest: usize,
    newest: usize,
    dirty: BTreeSet<u64>,
    evicted: Evicted,
    next_version: u64,
    tick: u64,
    /// Pages looked up or at since somebody asked.
    looked_at: u64,
    rules: Rules,
}

impl Clone for Cache {
    fn clone(&self) -> Self {
        let alignment = self.alignment;
        Self {
            page_size: self.page_size,
            limit: self.limit,
            alignment,
            spare: self.spare.as_ref().map(|bytes| IoBuf::copy_of(bytes, alignment)),
            index: self.index.clone(),
            slots: self.slots.iter().map(|page| page.copy(alignment)).collect(),
            oldest: self.oldest,
            newest: self.newest,
            dirty: self.dirty.clone(),
            evicted: self.evicted.clone(),
            next_version: self.next_version,
            tick: self.tick,
            looked_at: self.looked_at,
            rules: self.rules,
        }
    }
}

impl Cache {
    pub(crate) fn new(page_size: u64, limit: usize, alignment: usize, rules: Rules) -> Self {
        Self {
            page_size,
            limit,
            alignment,
            spare: None,
            index: BTreeMap::new(),
            slots: Vec::new(),
            oldest: NONE,
            newest: NONE,
            dirty: BTreeSet::new(),
            evicted: Evicted::default(),
            next_version: 1,
            tick: 0,
            looked_at: 0,
            rules,
        }
    }

    pub(crate) fn page_size(&self) -> u64 {
        self.page_size
    }

    /// The host offset of the page that holds the byte at `offset`.
    pub(crate) fn page_of(&self, offset: u64) -> u64 {
        offset - offset % self.page_size
    }

    /// How many pages there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many pages were looked up or at since this was called last.
    pub(crate) fn take_looked_at(&mut self) -> u64 {
        std::mem::take(&mut self.looked_at)
    }

    fn page(&self, offset: u64) -> Option<&Page> {
        self.slot(offset).map(|slot| &self.slots[slot])
    }

    fn page_mut(&mut self, offset: u64) -> Option<&mut Page> {
        self.slot(offset).map(|slot| &mut self.slots[slot])
    }

    /// Where the page at a host offset is: of one that is about to change, mostly that which was used last.
    fn slot(&self, offset: u64) -> Option<usize> {
        match self.slots.get(self.newest) {
            Some(page) if page.offset == offset => Some(self.newest),
            _ => self.index.get(&offset).copied(),
        }
    }

    pub(crate) fn contains(&self, page: u64) -> bool {
        self.index.contains_key(&page)
    }

    /// Uses the page at host offset `page`: where it is and what it was loaded as, or `None` if it has to be loaded.
    pub(crate) fn find(&mut self, page: u64) -> Option<(Slot, Kind)> {
        self.tick += 1;
        self.looked_at += 1;
        let slot = *self.index.get(&page)?;
        self.slots[slot].used = self.tick;
        if slot != self.newest {
            self.unlink(slot);
            self.link_newest(slot);
        }
        Some((Slot(slot), self.slots[slot].kind))
    }

    /// The bytes of a page.
    pub(crate) fn bytes(&self, slot: Slot) -> &[u8] {
        &self.slots[slot.0].bytes
    }

    /// The page that was used next after the one in `slot`; after no page, the oldest.
    fn newer_than(&mut self, slot: usize) -> &mut usize {
        match self.slots.get_mut(slot) {
            Some(page) => &mut page.newer,
            None => &mut self.oldest,
        }
    }

    /// The page that was used last before the one in `slot`; before no page, the newest.
    fn older_than(&mut self, slot: usize) -> &mut usize {
        match self.slots.get_mut(slot) {
            Some(page) => &mut page.older,
            None => &mut self.newest,
        }
    }

    /// Takes a page out of the order of use.
    fn unlink(&mut self, slot: usize) {
        let Page { older, newer, .. } = self.slots[slot];
        *self.newer_than(older) = newer;
        *self.older_than(newer) = older;
    }

    /// Makes a page that is not in the order of use the one that was used last.
    fn link_newest(&mut self, slot: usize) {
        let older = std::mem::replace(&mut self.newest, slot);
        *self.newer_than(older) = slot;
        (self.slots[slot].older, self.slots[slot].newer) = (older, NONE);
    }

    /// Takes a page out.
    fn remove(&mut self, offset: u64) {
        let Some(slot) = self.index.remove(&offset) else { return };
        debug_assert_eq!(self.slots[slot].offset, offset, "the index says where each page is");
        self.dirty.remove(&offset);
        self.unlink(slot);
        let bytes = self.slots.swap_remove(slot).bytes;
        // Another one than the storage was given may lie anywhere.
        self.spare = Some(bytes).filter(|bytes| bytes.is_aligned(self.alignment));
        // The last one has moved to the free slot.
        if let Some(&Page { offset, older, newer, .. }) = self.slots.get(slot) {
            self.index.insert(offset, slot);
            *self.newer_than(older) = slot;
            *self.older_than(newer) = slot;
        }
    }

    /// The big-endian entry at host offset `at`, which is in this page.
    pub(crate) fn entry(&self, slot: Slot, at: u64) -> u64 {
        self.entries(slot, at, 1).next().expect("there is one")
    }

    /// So many big-endian entries from host offset `at` on, all of them in this page.
    pub(crate) fn entries(&self, slot: Slot, at: u64, count: usize) -> impl Iterator<Item = u64> {
        let page = &self.slots[slot.0];
        let within = usize::try_from(at - page.offset).expect("a page fits in memory");
        let (entries, _) = page.bytes[within..within + 8 * count].as_chunks();
        entries.iter().map(|&entry| u64::from_be_bytes(entry))
    }

    /// Memory for a page that is about to be read into it.
    pub(crate) fn buffer(&mut self) -> IoBuf {
        let size = usize::try_from(self.page_size).expect("a page fits in memory");
        self.spare.take().unwrap_or_else(|| IoBuf::zeroed(size, self.alignment))
    }

    /// Adds a page as it is on the storage.
    pub(crate) fn insert(&mut self, page: u64, kind: Kind, bytes: IoBuf) {
        let stamp = self.evicted.remove(page).unwrap_or(Stamp::DURABLE);
        let stamp = mutant!(self.rules, ReloadTakenDurable => Stamp::DURABLE; stamp);
        self.insert_stamped(page, kind, bytes, stamp);
    }

    /// Adds a page of zeroes as it is on the storage since `stamp`.
    pub(crate) fn insert_zeroes(&mut self, page: u64, kind: Kind, stamp: Stamp) {
        // A damaged image may refer to a free cluster as a table, and somebody may have read that one.
        self.forget(page..page + 1);
        let mut bytes = self.buffer();
        mutant!(self.rules, NewTableKeepsOldBytes => (); bytes.fill(0));
        self.insert_stamped(page, kind, bytes, stamp);
    }

    fn insert_stamped(&mut self, offset: u64, kind: Kind, bytes: IoBuf, stamp: Stamp) {
        let version = self.next_version;
        self.next_version += 1;
        let slot = self.slots.len();
        self.slots.push(Page {
            offset,
            kind,
            bytes,
            version,
            written: version,
            stamp,
            after: SmallVec::new(),
            used: self.tick,
            older: NONE,
            newer: NONE,
        });
        self.link_newest(slot);
        let old = self.index.insert(offset, slot);
        assert!(old.is_none(), "page {offset:#x} was loaded twice");
    }

    /// Changes a page that is in the cache and returns its new version.
    pub(crate) fn change(&mut self, page: u64, change: impl FnOnce(&mut [u8])) -> u64 {
        let version = self.next_version;
        self.next_version += 1;
        let state = self.page_mut(page).expect("only a page in the cache is changed");
        let was_dirty = state.is_dirty();
        state.version = version;
        change(&mut state.bytes);
        if !was_dirty {
            let new = self.dirty.insert(page);
            debug_assert!(new, "a page that is clean is in no set of dirty ones");
        }
        version
    }

    /// Sets the big-endian entry at host offset `at`, whose page is in the cache, and returns the page's new version.
    pub(crate) fn set_entry(&mut self, at: u64, value: u64) -> u64 {
        let page = self.page_of(at);
        let within = usize::try_from(at - page).expect("a page fits in memory");
        self.change(page, |bytes| bytes[within..within + 8].copy_from_slice(&value.to_be_bytes()))
    }

    /// Sets the two halves of an entry at host offset `at` in one version, as they are in one unit.
    pub(crate) fn set_entries(&mut self, at: u64, halves: [u64; 2]) -> u64 {
        let page = self.page_of(at);
        let within = usize::try_from(at - page).expect("a page fits in memory");
        self.change(page, |bytes| {
            let (entries, _) = bytes[within..within + 16].as_chunks_mut();
            for (entry, half) in entries.iter_mut().zip(halves) {
                *entry = half.to_be_bytes();
            }
        })
    }

    /// Lets the newest version of the page at host offset `page` wait for `edge`.
    pub(crate) fn wait_for(&mut self, page: u64, edge: Edge) {
        let rules = self.rules;
        debug_assert!(self.leads_down(page, edge), "{edge:?} leads from {page:#x} back up");
        let page = self.page_mut(page).expect("only a page in the cache gets an edge");
        mutant!(rules, EdgeReplacesOthers => page.after.clear(); ());
        edge.merge_into(&mut page.after, rules);
    }

    /// Whether an edge cannot close a circle: it ends at a page of counts, or of the table that leads to them, and does not begin at one
    /// of counts.
    fn leads_down(&self, from: u64, edge: Edge) -> bool {
        let Before::Page { offset, .. } = edge.before else { return true };
        let kind = |page| self.page(page).map(|page| page.kind);
        kind(from) != Some(Kind::RefcountBlock) && kind(offset).is_none_or(Kind::is_refcount)
    }

    /// What must happen before `before` is durable.
    pub(crate) fn need(&self, before: Before, clock: &FlushClock) -> Need {
        let missing = |version| mutant!(self.rules, EdgeOneVersionShort => version - 1; version);
        let stamp = match before {
            Before::Written(stamp) => stamp,
            Before::Page { offset, version } => match self.page(offset) {
                Some(page) if page.written < missing(version) => return Need::Write(offset),
                Some(page) => page.stamp,
                None => self.evicted.pages.get(&offset).copied().unwrap_or(Stamp::DURABLE),
            },
        };
        if clock.is_durable(stamp) { Need::Nothing } else { Need::Flush(stamp) }
    }

    /// What the page at host offset `page` needs next on its way to the storage: nothing if it is clean, itself if it
    /// may be written now, else what it waits for.
    pub(crate) fn next_step(&self, page: u64, clock: &FlushClock) -> Need {
        let Some(state) = self.page(page).filter(|state| state.is_dirty()) else {
            return Need::Nothing;
        };
        let mut flush = None;
        for edge in &state.after {
            match self.need(edge.before, clock) {
                Need::Nothing => {}
                Need::Write(first) => return Need::Write(first),
                Need::Flush(stamp) => flush = flush.max(Some(stamp)),
            }
        }
        flush.map_or(Need::Write(page), Need::Flush)
    }

    /// The bytes of the newest version of a page, for writing, and that version.
    pub(crate) fn snapshot(&self, page: u64) -> (u64, &[u8]) {
        let page = self.page(page).expect("only a page in the cache is written");
        (page.version, &page.bytes)
    }

    /// Records that `version` of the page is on the storage since `stamp`, unless the page was forgotten meanwhile.
    pub(crate) fn written(&mut self, page: u64, version: u64, stamp: Stamp) {
        let rules = self.rules;
        let Some(state) = self.page_mut(page) else { return };
        debug_assert!(version <= state.version, "nothing newer than the newest was written");
        debug_assert!(stamp >= state.stamp, "a later write has no earlier stamp");
        state.written = version;
        state.stamp = stamp;
        if mutant!(rules, WrittenClearsNewer => true; state.version == version) {
            state.after.clear();
            self.dirty.remove(&page);
        }
    }

    /// The dirty pages in a range of host offsets and their versions, ascending, those of refcount structures only if asked for; at
    /// most so many are looked at, and where the rest begins is returned too.
    pub(crate) fn dirty(
        &self,
        range: Range<u64>,
        with_refcounts: bool,
        most: usize,
    ) -> (Vec<(u64, u64)>, Option<u64>) {
        let mut dirty = self.dirty.range(range).copied();
        let pages = dirty.by_ref().take(most).filter_map(|offset| self.page(offset));
        let pages = pages
            .filter(|page| with_refcounts || !page.kind.is_refcount())
            .map(|page| (page.offset, page.version))
            .collect();
        (pages, dirty.next())
    }

    /// The newest version of the page, if it is in the cache and not yet durable.
    pub(crate) fn undurable(&self, page: u64, clock: &FlushClock) -> Option<Before> {
        let covered = |stamp| clock.is_durable(stamp);
        let covered = |stamp| mutant!(self.rules, WrittenTakenForDurable => true; covered(stamp));
        match self.page(page) {
            Some(state) if state.is_dirty() || !covered(state.stamp) => {
                Some(Before::Page { offset: page, version: state.version })
            }
            Some(_) => None,
            None => {
                let stamp = *self.evicted.pages.get(&page)?;
                (!clock.is_durable(stamp)).then_some(Before::Written(stamp))
            }
        }
    }

    /// Whether there is no room for one more page.
    pub(crate) fn is_full(&self) -> bool {
        self.slots.len() >= self.limit.max(LEAST)
    }

    /// Makes room for one page by evicting the least recently used one, or says which to write first.
    pub(crate) fn make_room(&mut self, clock: &FlushClock) -> Room {
        self.evicted.prune(clock);
        if self.slots.len() < self.limit {
            return Room::Enough;
        }
        let mut slot = self.oldest;
        let mut dirty = None;
        for _ in 0..LOOKED_AT {
            let old = self.slots.get(slot).filter(|page| page.used + RECENT < self.tick);
            let Some(page) = old else { break };
            self.looked_at += 1;
            if mutant!(self.rules, DirtyPageEvicted => true; !page.is_dirty()) {
                let (offset, stamp) = (page.offset, page.stamp);
                self.remove(offset);
                if mutant!(self.rules, EvictedStampLost => false; !clock.is_durable(stamp)) {
                    self.evicted.insert(offset, stamp);
                }
                return Room::Enough;
            }
            dirty = dirty.or(Some(page.offset));
            slot = page.newer;
        }
        dirty.map_or(Room::Enough, Room::Write)
    }

    /// Forgets the pages in `range` of host offsets: their cluster has another owner from now on.
    pub(crate) fn forget(&mut self, range: Range<u64>) {
        let end = mutant!(self.rules, ForgetsFirstPageOnly => range.start + 1; range.end);
        let range = range.start..end;
        while let Some((&offset, _)) = self.index.range(range.clone()).next() {
            self.remove(offset);
        }
        while let Some((&offset, _)) = self.evicted.pages.range(range.clone()).next() {
            self.evicted.remove(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cache, Kind, NONE, Need, RECENT, Room};
    use crate::files::File;
    use quickcheck::quickcheck;

    use crate::order::{Before, Edge, FlushClock, Stamp};
    use crate::rule::{Rule, Rules};
    use storage::IoBuf;

    #[test]
    fn a_page_waits_for_what_its_edges_name() {
        let mut clock = FlushClock::default();
        let mut cache = Cache::new(512, 4, 1, Rules::all());
        cache.insert(0, Kind::L2, IoBuf::copy_of(&[0; 512], 1));
        cache.insert(512, Kind::RefcountBlock, IoBuf::copy_of(&[0; 512], 1));
        let counted = cache.change(512, |bytes| bytes[0] = 1);
        cache.set_entry(8, 7);
        let (slot, _) = cache.find(0).expect("it was inserted");
        assert_eq!(cache.entry(slot, 8), 7);
        let before = Before::Page { offset: 512, version: counted };
        cache.wait_for(0, Edge { rule: Rule::RefcountBeforeReference, before });
        assert_eq!(cache.next_step(0, &clock), Need::Write(512));
        assert_eq!(cache.next_step(512, &clock), Need::Write(512));
        let stamp = clock.stamp(File::Image);
        cache.written(512, counted, stamp);
        assert_eq!(cache.next_step(0, &clock), Need::Flush(stamp));
        let flush = clock.submit(File::Image);
        clock.complete(flush);
        assert_eq!(cache.next_step(0, &clock), Need::Write(0));
        let (version, _) = cache.snapshot(0);
        let stamp = clock.stamp(File::Image);
        cache.written(0, version, stamp);
        assert_eq!(cache.next_step(0, &clock), Need::Nothing);
        assert_eq!(cache.dirty(0..u64::MAX, true, 9), (vec![], None));
    }

    /// A cache whose only page was changed, written and evicted, and what was to be written and when it was.
    fn evicted(clock: &mut FlushClock) -> (Cache, Before, Stamp) {
        let mut cache = Cache::new(512, 1, 1, Rules::all());
        cache.insert(0, Kind::L2, IoBuf::copy_of(&[0; 512], 1));
        let version = cache.set_entry(0, 1);
        let stamp = clock.stamp(File::Image);
        for _ in 0..40 {
            assert!(cache.find(1024).is_none());
        }
        assert_eq!(cache.make_room(clock), Room::Write(0));
        cache.written(0, version, stamp);
        assert_eq!(cache.make_room(clock), Room::Enough);
        assert!(!cache.contains(0));
        let before = Before::Page { offset: 0, version };
        assert_eq!(cache.need(before, clock), Need::Flush(stamp));
        assert_eq!(cache.undurable(0, clock), Some(Before::Written(stamp)));
        (cache, before, stamp)
    }

    #[test]
    fn an_evicted_page_leaves_its_stamp() {
        let mut clock = FlushClock::default();
        let (mut cache, before, stamp) = evicted(&mut clock);
        // Neither room for others nor what becomes of others takes it away.
        assert_eq!(cache.make_room(&clock), Room::Enough);
        cache.forget(512..1024);
        assert_eq!(cache.need(before, &clock), Need::Flush(stamp));
        assert_eq!(cache.undurable(0, &clock), Some(Before::Written(stamp)));
        cache.insert(0, Kind::L2, IoBuf::copy_of(&[0; 512], 1));
        assert_eq!(cache.need(before, &clock), Need::Flush(stamp));
        let flush = clock.submit(File::Image);
        clock.complete(flush);
        assert_eq!(cache.need(before, &clock), Need::Nothing);
        assert_ne!(stamp, Stamp::DURABLE);
    }

    #[test]
    fn a_forgotten_page_leaves_no_stamp() {
        let mut clock = FlushClock::default();
        let (mut cache, before, _) = evicted(&mut clock);
        cache.forget(0..512);
        assert_eq!(cache.undurable(0, &clock), None);
        assert_eq!(cache.need(before, &clock), Need::Nothing);
    }

    #[test]
    fn an_evicted_page_is_durable_after_a_flush() {
        let mut clock = FlushClock::default();
        let (cache, before, _) = evicted(&mut clock);
        let flush = clock.submit(File::Image);
        clock.complete(flush);
        assert_eq!(cache.undurable(0, &clock), None);
        assert_eq!(cache.need(before, &clock), Need::Nothing);
    }

    #[test]
    fn a_changed_page_is_durable_after_a_write_and_a_flush() {
        let mut clock = FlushClock::default();
        let mut cache = Cache::new(512, 4, 1, Rules::all());
        cache.insert(0, Kind::L2, IoBuf::copy_of(&[0; 512], 1));
        assert_eq!(cache.undurable(0, &clock), None);
        let version = cache.set_entry(0, 1);
        let newest = Some(Before::Page { offset: 0, version });
        assert_eq!(cache.undurable(0, &clock), newest);
        cache.written(0, version, clock.stamp(File::Image));
        assert_eq!(cache.undurable(0, &clock), newest, "no flush has covered it");
        let flush = clock.submit(File::Image);
        clock.complete(flush);
        assert_eq!(cache.undurable(0, &clock), None);
    }

    #[test]
    fn a_page_goes_when_it_has_not_been_used_for_a_while() {
        let clock = FlushClock::default();
        let mut cache = Cache::new(512, 1, 1, Rules::all());
        let pass = |cache: &mut Cache, accesses: u64| {
            (0..accesses).for_each(|_| assert!(cache.find(1 << 20).is_none()));
        };
        for page in [0, 512] {
            pass(&mut cache, 100);
            cache.insert(page, Kind::L2, IoBuf::copy_of(&[0; 512], 1));
            assert!(cache.find(page).is_some());
            pass(&mut cache, RECENT);
            assert_eq!(cache.make_room(&clock), Room::Enough);
            assert!(cache.contains(page), "it was used {RECENT} accesses ago");
            pass(&mut cache, 1);
            assert_eq!(cache.make_room(&clock), Room::Enough);
            assert!(!cache.contains(page));
        }
    }

    #[test]
    fn the_least_recently_used_page_goes_and_a_clean_one_before_a_dirty_one() {
        let clock = FlushClock::default();
        let mut cache = Cache::new(512, 3, 1, Rules::all());
        for page in [0, 512, 1024] {
            cache.insert(page, Kind::L2, IoBuf::copy_of(&[0; 512], 1));
            assert!(cache.find(page).is_some());
        }
        cache.set_entry(0, 1);
        assert!(cache.find(512).is_some());
        let _ = [(); 40].map(|()| cache.find(1 << 20).is_some());
        for gone in [1024, 512] {
            assert_eq!(cache.make_room(&clock), Room::Enough);
            assert!(!cache.contains(gone));
            cache.insert(gone + 2048, Kind::L2, IoBuf::copy_of(&[0; 512], 1));
            assert!(cache.find(gone + 2048).is_some());
        }
        assert_eq!(cache.make_room(&clock), Room::Write(0));
    }

    #[test]
    fn zeroes_take_the_place_of_what_was_read_there() {
        let mut cache = Cache::new(512, 4, 1, Rules::all());
        cache.insert(0, Kind::L2, IoBuf::copy_of(&[7; 512], 1));
        cache.insert_zeroes(0, Kind::RefcountBlock, Stamp::DURABLE);
        let (slot, kind) = cache.find(0).expect("it was inserted");
        assert_eq!(kind, Kind::RefcountBlock);
        assert_eq!(cache.bytes(slot), [0; 512]);
    }

    quickcheck! {
        /// However pages come, are used and go, the order of use is that of their last use.
        fn the_order_of_use_is_kept(steps: Vec<(u8, u8)>) -> bool {
            let mut cache = Cache::new(512, 4, 1, Rules::all());
            let mut order: Vec<u64> = Vec::new();
            for (what, page) in steps {
                let page = u64::from(page % 16) * 512;
                let there = order.iter().position(|&other| other == page);
                match (what % 3, there) {
                    (0, None) => cache.insert(page, Kind::L2, IoBuf::copy_of(&[0; 512], 1)),
                    (1, Some(_)) => cache.forget(page..page + 512),
                    _ => assert_eq!(cache.find(page).is_some(), there.is_some()),
                }
                there.map(|at| order.remove(at));
                if cache.contains(page) {
                    order.push(page);
                }
            }
            let mut slot = cache.oldest;
            let mut found = Vec::new();
            while slot != NONE {
                found.push(cache.slots[slot].offset);
                slot = cache.slots[slot].newer;
            }
            found == order && cache.slots.len() == order.len()
        }
    }
}
