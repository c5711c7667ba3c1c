//! Metadata in memory: slices of L1, L2 and refcount tables and of refcount blocks, by host offset.
//!
//! ```text
//!   table cluster on disk   | slice 0 | slice 1 | ... | slice n |     one page = one slice (at most a cluster)
//!   page in memory          bytes, version 7; written version 5 carries stamp 3; after: [edges of version 7]
//! ```
//!
//! **Invariant.** A page is written only when every edge of its newest version is satisfied; what is written is its newest
//! version. A page that is evicted leaves its stamp behind until that stamp is durable, so that edges to it stay right.

use std::collections::BTreeMap;

use crate::order::{Before, Edge, FlushClock, Stamp};

/// Pages used within this many accesses are not evicted, so that one operation cannot evict what it is about to use.
const RECENT: u64 = 32;

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
    kind: Kind,
    bytes: Box<[u8]>,
    version: u64,
    /// The newest version on the storage, and its stamp.
    written: u64,
    stamp: Stamp,
    after: Vec<Edge>,
    used: u64,
}

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

#[derive(Debug)]
pub(crate) struct Cache {
    page_size: u64,
    limit: usize,
    pages: BTreeMap<u64, Page>,
    /// Stamps of evicted pages that are not durable yet.
    evicted: BTreeMap<u64, Stamp>,
    next_version: u64,
    tick: u64,
    dirty: usize,
}

impl Cache {
    pub(crate) fn new(page_size: u64, limit: usize) -> Self {
        Self {
            page_size,
            limit,
            pages: BTreeMap::new(),
            evicted: BTreeMap::new(),
            next_version: 1,
            tick: 0,
            dirty: 0,
        }
    }

    pub(crate) fn page_size(&self) -> u64 {
        self.page_size
    }

    /// The host offset of the page that holds the byte at `offset`.
    pub(crate) fn page_of(&self, offset: u64) -> u64 {
        offset - offset % self.page_size
    }

    /// What the page at host offset `page` was loaded as, if it is there.
    pub(crate) fn kind(&self, page: u64) -> Option<Kind> {
        self.pages.get(&page).map(|page| page.kind)
    }

    pub(crate) fn contains(&self, page: u64) -> bool {
        self.pages.contains_key(&page)
    }

    /// The bytes of the page at host offset `page`, or `None` if it has to be loaded.
    pub(crate) fn get(&mut self, page: u64) -> Option<&[u8]> {
        self.tick += 1;
        let tick = self.tick;
        self.pages.get_mut(&page).map(|page| {
            page.used = tick;
            &*page.bytes
        })
    }

    /// The big-endian entry at host offset `at`, or `None` if its page has to be loaded.
    pub(crate) fn entry(&mut self, at: u64) -> Option<u64> {
        let page = self.page_of(at);
        let within = usize::try_from(at - page).expect("a page fits in memory");
        let bytes = self.get(page)?;
        let bytes = bytes[within..within + 8].try_into().expect("eight bytes");
        Some(u64::from_be_bytes(bytes))
    }

    /// Adds a page as it is on the storage.
    pub(crate) fn insert(&mut self, page: u64, kind: Kind, bytes: &[u8]) {
        let stamp = self.evicted.remove(&page).unwrap_or(Stamp::DURABLE);
        self.insert_stamped(page, kind, bytes.into(), stamp);
    }

    /// Adds a page of zeroes as it is on the storage since `stamp`.
    pub(crate) fn insert_zeroes(&mut self, page: u64, kind: Kind, stamp: Stamp) {
        let size = usize::try_from(self.page_size).expect("a page fits in memory");
        // A damaged image may refer to a free cluster as a table, and somebody may have read that one.
        self.forget(page..page + 1);
        self.insert_stamped(page, kind, vec![0; size].into(), stamp);
    }

    fn insert_stamped(&mut self, page: u64, kind: Kind, bytes: Box<[u8]>, stamp: Stamp) {
        let version = self.next_version;
        self.next_version += 1;
        let used = self.tick;
        let old = self.pages.insert(
            page,
            Page { kind, bytes, version, written: version, stamp, after: Vec::new(), used },
        );
        assert!(old.is_none(), "page {page:#x} was loaded twice");
    }

    /// Changes a page that is in the cache and returns its new version.
    pub(crate) fn change(&mut self, page: u64, change: impl FnOnce(&mut [u8])) -> u64 {
        let version = self.next_version;
        self.next_version += 1;
        let page = self.pages.get_mut(&page).expect("only a page in the cache is changed");
        if page.version == page.written {
            self.dirty += 1;
        }
        page.version = version;
        change(&mut page.bytes);
        version
    }

    /// Sets the big-endian entry at host offset `at`, whose page is in the cache, and returns the page's new version.
    pub(crate) fn set_entry(&mut self, at: u64, value: u64) -> u64 {
        let page = self.page_of(at);
        let within = usize::try_from(at - page).expect("a page fits in memory");
        self.change(page, |bytes| bytes[within..within + 8].copy_from_slice(&value.to_be_bytes()))
    }

    /// Lets the newest version of the page at host offset `page` wait for `edge`.
    pub(crate) fn wait_for(&mut self, page: u64, edge: Edge) {
        let page = self.pages.get_mut(&page).expect("only a page in the cache gets an edge");
        edge.merge_into(&mut page.after);
    }

    /// What must happen before `before` is durable.
    pub(crate) fn need(&self, before: Before, clock: &FlushClock) -> Need {
        let stamp = match before {
            Before::Written(stamp) => stamp,
            Before::Page { offset, version } => match self.pages.get(&offset) {
                Some(page) if page.written < version => return Need::Write(offset),
                Some(page) => page.stamp,
                None => self.evicted.get(&offset).copied().unwrap_or(Stamp::DURABLE),
            },
        };
        if clock.is_durable(stamp) { Need::Nothing } else { Need::Flush(stamp) }
    }

    /// What the page at host offset `page` needs next on its way to the storage: nothing if it is clean, itself if it
    /// may be written now, else what it waits for.
    pub(crate) fn next_step(&self, page: u64, clock: &FlushClock) -> Need {
        let Some(state) = self.pages.get(&page).filter(|state| state.version != state.written)
        else {
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
        let page = self.pages.get(&page).expect("only a page in the cache is written");
        (page.version, &page.bytes)
    }

    /// Records that `version` of the page is on the storage since `stamp`, unless the page was forgotten meanwhile.
    pub(crate) fn written(&mut self, page: u64, version: u64, stamp: Stamp) {
        let Some(page) = self.pages.get_mut(&page) else { return };
        page.written = version;
        page.stamp = stamp;
        if page.version == version {
            page.after.clear();
            self.dirty -= 1;
        }
    }

    /// The dirty pages and their versions; those of refcount structures only if asked for.
    pub(crate) fn dirty(&self, with_refcounts: bool) -> Vec<(u64, u64)> {
        if self.dirty == 0 {
            return Vec::new();
        }
        self.pages
            .iter()
            .filter(|(_, page)| page.version != page.written)
            .filter(|(_, page)| with_refcounts || !page.kind.is_refcount())
            .map(|(&offset, page)| (offset, page.version))
            .collect()
    }

    /// The newest version of the page, if it is in the cache and not yet durable.
    pub(crate) fn undurable(&self, page: u64, clock: &FlushClock) -> Option<Before> {
        match self.pages.get(&page) {
            Some(state) if state.version != state.written || !clock.is_durable(state.stamp) => {
                Some(Before::Page { offset: page, version: state.version })
            }
            Some(_) => None,
            None => {
                let stamp = *self.evicted.get(&page)?;
                (!clock.is_durable(stamp)).then_some(Before::Written(stamp))
            }
        }
    }

    /// Makes room for one page by evicting the least recently used one, or says which to write first.
    pub(crate) fn make_room(&mut self, clock: &FlushClock) -> Room {
        self.evicted.retain(|_, stamp| !clock.is_durable(*stamp));
        if self.pages.len() < self.limit {
            return Room::Enough;
        }
        let old = |page: &Page| page.used + RECENT < self.tick;
        let victim = |dirty: bool| {
            self.pages
                .iter()
                .filter(|(_, page)| old(page) && (page.version != page.written) == dirty)
                .min_by_key(|(_, page)| page.used)
                .map(|(&offset, _)| offset)
        };
        if let Some(offset) = victim(false) {
            let page = self.pages.remove(&offset).expect("it was just found");
            if !clock.is_durable(page.stamp) {
                self.evicted.insert(offset, page.stamp);
            }
            return Room::Enough;
        }
        victim(true).map_or(Room::Enough, Room::Write)
    }

    /// Forgets the pages in `range` of host offsets: their cluster has another owner from now on.
    pub(crate) fn forget(&mut self, range: std::ops::Range<u64>) {
        let gone: Vec<u64> = self.pages.range(range.clone()).map(|(&offset, _)| offset).collect();
        for offset in gone {
            let page = self.pages.remove(&offset).expect("it was just found");
            if page.version != page.written {
                self.dirty -= 1;
            }
        }
        self.evicted.retain(|offset, _| !range.contains(offset));
    }
}

#[cfg(test)]
mod tests {
    use super::{Cache, Kind, Need, RECENT, Room};
    use crate::order::{Before, Edge, FlushClock, Stamp};
    use crate::rule::Rule;

    #[test]
    fn a_page_waits_for_what_its_edges_name() {
        let mut clock = FlushClock::default();
        let mut cache = Cache::new(512, 4);
        cache.insert(0, Kind::L2, &[0; 512]);
        cache.insert(512, Kind::RefcountBlock, &[0; 512]);
        let counted = cache.change(512, |bytes| bytes[0] = 1);
        cache.set_entry(8, 7);
        assert_eq!(cache.entry(8), Some(7));
        let before = Before::Page { offset: 512, version: counted };
        cache.wait_for(0, Edge { rule: Rule::RefcountBeforeReference, before });
        assert_eq!(cache.next_step(0, &clock), Need::Write(512));
        assert_eq!(cache.next_step(512, &clock), Need::Write(512));
        let stamp = clock.stamp();
        cache.written(512, counted, stamp);
        assert_eq!(cache.next_step(0, &clock), Need::Flush(stamp));
        let flush = clock.submit();
        clock.complete(flush);
        assert_eq!(cache.next_step(0, &clock), Need::Write(0));
        let (version, _) = cache.snapshot(0);
        let stamp = clock.stamp();
        cache.written(0, version, stamp);
        assert_eq!(cache.next_step(0, &clock), Need::Nothing);
        assert!(cache.dirty(true).is_empty());
    }

    /// A cache whose only page was changed, written and evicted, and what was to be written and when it was.
    fn evicted(clock: &mut FlushClock) -> (Cache, Before, Stamp) {
        let mut cache = Cache::new(512, 1);
        cache.insert(0, Kind::L2, &[0; 512]);
        let version = cache.set_entry(0, 1);
        let stamp = clock.stamp();
        for _ in 0..40 {
            assert!(cache.get(1024).is_none());
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
        cache.insert(0, Kind::L2, &[0; 512]);
        assert_eq!(cache.need(before, &clock), Need::Flush(stamp));
        let flush = clock.submit();
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
        let flush = clock.submit();
        clock.complete(flush);
        assert_eq!(cache.undurable(0, &clock), None);
        assert_eq!(cache.need(before, &clock), Need::Nothing);
    }

    #[test]
    fn a_page_goes_when_it_has_not_been_used_for_a_while() {
        let clock = FlushClock::default();
        let mut cache = Cache::new(512, 1);
        let pass = |cache: &mut Cache, accesses: u64| {
            (0..accesses).for_each(|_| assert!(cache.get(1 << 20).is_none()));
        };
        for page in [0, 512] {
            pass(&mut cache, 100);
            cache.insert(page, Kind::L2, &[0; 512]);
            assert!(cache.get(page).is_some());
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
        let mut cache = Cache::new(512, 3);
        for page in [0, 512, 1024] {
            cache.insert(page, Kind::L2, &[0; 512]);
            assert!(cache.get(page).is_some());
        }
        cache.set_entry(0, 1);
        assert!(cache.get(512).is_some());
        let _ = [(); 40].map(|()| cache.get(1 << 20).is_some());
        for gone in [1024, 512] {
            assert_eq!(cache.make_room(&clock), Room::Enough);
            assert!(!cache.contains(gone));
            cache.insert(gone + 2048, Kind::L2, &[0; 512]);
            assert!(cache.get(gone + 2048).is_some());
        }
        assert_eq!(cache.make_room(&clock), Room::Write(0));
    }

    #[test]
    fn zeroes_take_the_place_of_what_was_read_there() {
        let mut cache = Cache::new(512, 4);
        cache.insert(0, Kind::L2, &[7; 512]);
        cache.insert_zeroes(0, Kind::RefcountBlock, Stamp::DURABLE);
        assert_eq!(cache.kind(0), Some(Kind::RefcountBlock));
        assert_eq!(cache.get(0), Some([0; 512].as_slice()));
    }
}
