//! The reference disk: operations begin and are answered, flushes settle, the power fails.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use super::cell::{Cell, Token};
use super::history::{Answer, Event, History, What};
use super::made::Made;
use super::passphrases::{Change, Openings, Opens, Passphrases};
use super::promises::{DiscardReads, Promises};
use super::units::{Units, set_hash};
use crate::evidence::ValueKey;
use crate::mistake::Mistake;
use crate::op::{Durability, Encryption, Op, PASSPHRASES};
use crate::payload::UNIT;

/// A read that returned what it must not (P0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misread {
    /// The guest unit.
    pub unit: u64,
    /// What the read returned.
    pub found: ValueKey,
    /// What it could have returned.
    pub allowed: Vec<ValueKey>,
}

/// How much a state could have failed: with one allowed value per unit, every bit is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leeway {
    /// Guest units.
    pub units: u64,
    /// Units with exactly one allowed value.
    pub decided: u64,
    /// Allowed values, summed over all units.
    pub values: u64,
}

/// The reference disk; cheap to clone.
#[derive(Clone, Debug)]
pub struct Guest {
    promises: Promises,
    units: Units,
    size: Cell<u64>,
    in_flight: Vec<(Token, Flight)>,
    now: u32,
    initial: Arc<[ValueKey]>,
    made: Made,
    passphrases: Passphrases,
    history: History,
    mistake: Mistake,
}

#[derive(Clone, Debug)]
enum Flight {
    /// Puts values into units `first..first + count`, certainly into those before `sure`.
    Change {
        first: usize,
        count: usize,
        durability: Durability,
        sure: usize,
        /// It is a discard up to the end of the disk: if that cuts its last cluster short, it takes it for whole.
        to_the_end: bool,
    },
    Resize {
        /// What it cuts off of the last cluster, if it makes the disk smaller.
        cut: Option<Range<usize>>,
    },
    Passphrase(Change),
    Flush,
    Read {
        first: usize,
        count: usize,
        /// The units when it began.
        then: Units,
        /// (unit, value) of the changes that have begun since.
        beside: Vec<(usize, ValueKey)>,
    },
    /// Nothing was left of the operation.
    Nothing,
}

impl Guest {
    /// A disk that holds `initial`, durably.
    pub fn new(initial: &[ValueKey], promises: Promises) -> Self {
        Self {
            promises,
            units: Units::new(initial),
            size: Cell::One(initial.len() as u64),
            in_flight: Vec::new(),
            now: 0,
            initial: initial.into(),
            made: Made::default(),
            passphrases: Passphrases::default(),
            history: History::default(),
            mistake: Mistake::None,
        }
    }

    /// The same disk on an image that was made as this says.
    #[must_use]
    pub fn on(mut self, made: Made) -> Self {
        self.made = made;
        self
    }

    /// The same disk on an image that the same passphrases open as another's.
    #[must_use]
    pub fn opened_as(mut self, other: &Self) -> Self {
        self.passphrases = other.passphrases.clone();
        self
    }

    /// What the image was made as.
    pub fn made(&self) -> &Made {
        &self.made
    }

    /// The same disk with a deliberate mistake.
    pub fn with_mistake(mut self, mistake: Mistake) -> Self {
        self.mistake = mistake;
        self
    }

    /// What the implementation promises.
    pub fn promises(&self) -> Promises {
        self.promises
    }

    /// Units of the largest disk that this may be.
    pub fn units(&self) -> u64 {
        self.units.len() as u64
    }

    /// Bytes that operations may address: the smallest size that the disk may have now.
    pub fn size(&self) -> u64 {
        self.size.live().min().unwrap_or(0) * UNIT as u64
    }

    /// The operation as it applies to the disk, whichever size that has now; `None` if nothing is left of it, as of an addition of a
    /// passphrase that surely opens the image, and of a removal of one that surely does not.
    pub fn clip(&self, op: &Op) -> Option<Op> {
        let is_vain = match *op {
            Op::AddPassphrase { id } => {
                !self.has_slot_for(id) || self.passphrase(id) == Opens::Surely
            }
            Op::RemovePassphrase { id } => {
                !self.has_slot_for(id) || matches!(self.passphrase(id), Opens::Shut | Opens::Gone)
            }
            _ => false,
        };
        if is_vain {
            return None;
        }
        let largest = || self.size.live().max().unwrap_or(0) * UNIT as u64;
        op.clip(if matches!(op, Op::Grow { .. }) { largest() } else { self.size() })
    }

    fn has_slot_for(&self, id: u32) -> bool {
        self.made.encryption() == Some(Encryption::Luks) && (1..=PASSPHRASES).contains(&id)
    }

    /// Whether the further passphrase of this number opens the image.
    pub fn passphrase(&self, id: u32) -> Opens {
        self.passphrases.get(id)
    }

    /// Whether the image may come back with this many bytes.
    pub fn permits_size(&self, bytes: u64) -> bool {
        self.mistake == Mistake::SizeUnchecked
            || self.size.values().any(|units| units * UNIT as u64 == bytes)
    }

    /// The sizes in bytes that the image may come back with, ascending.
    pub fn allowed_sizes(&self) -> Vec<u64> {
        self.size.sorted().into_iter().map(|units| units * UNIT as u64).collect()
    }

    /// Whether `key` is in G(unit).
    pub fn permits(&self, unit: u64, key: ValueKey) -> bool {
        if self.mistake.allows_anything(unit, self.initial.len()) {
            return true;
        }
        match usize::try_from(unit).ok().and_then(|unit| self.units.get(unit)) {
            Some(Cell::One(only)) => *only == key,
            Some(Cell::Many(_))
                if key == ValueKey::ZERO && self.mistake == Mistake::ZeroAlwaysAllowed =>
            {
                true
            }
            Some(Cell::Many(entries)) => entries.iter().any(|entry| entry.value == key),
            None => false,
        }
    }

    /// Whether zeroes are in G(unit) for every unit of a range.
    pub fn permits_zeroes(&self, range: Range<u64>) -> bool {
        let range = index(range.start)..index(range.end);
        range.end <= self.units.len()
            && self.units.used(&range).all(|unit| match self.units.get(unit) {
                Some(Cell::One(_)) => false,
                _ => self.permits(unit as u64, ValueKey::ZERO),
            })
    }

    /// How many of these values, one a unit from `first` on, are settled in their units, up to the first that is not. There may be more
    /// than these.
    #[inline]
    pub fn settled_run(&self, first: u64, keys: impl Iterator<Item = ValueKey>) -> u64 {
        let cells = self.units.run(index(first)).iter().zip(keys);
        cells.take_while(|(cell, key)| matches!(cell, Cell::One(only) if only == key)).count()
            as u64
    }

    /// The units that may hold more than one value, or one that is not settled, ascending.
    pub fn unsettled(&self) -> Vec<u64> {
        self.units.open().map(|unit| unit as u64).collect()
    }

    /// G(unit), ascending.
    pub fn allowed(&self, unit: u64) -> Vec<ValueKey> {
        let cell = usize::try_from(unit).ok().and_then(|unit| self.units.get(unit));
        cell.map_or_else(Vec::new, Cell::sorted)
    }

    /// A hash of G: equal for two disks, of one store of values, that allow the same sizes and the same values in every
    /// unit, and know the same of every passphrase.
    pub fn allowed_hash(&self) -> u64 {
        let sizes = set_hash(u64::MAX, self.allowed_sizes());
        let slots = self.passphrases.touched().map(|state| set_hash(u64::MAX - 1, [state]));
        let before = slots.fold(sizes, u64::wrapping_add);
        self.units.open().fold(before.wrapping_add(self.units.settled_hash()), |hash, unit| {
            let members = self.allowed(unit as u64).into_iter().map(|key| key.0.into());
            hash.wrapping_add(set_hash(unit as u64, members))
        })
    }

    /// The figures of this state.
    pub fn figures(&self) -> Leeway {
        let units = self.units();
        let mut figures = Leeway { units, decided: units, values: units };
        for unit in self.units.open() {
            let members = self.allowed(unit as u64).len() as u64;
            figures.decided -= u64::from(members != 1);
            figures.values += members - 1;
        }
        figures
    }

    /// Begins `op` as far as it lies on the disk; `key_of(unit, id)` names the payload of a write.
    pub fn begin(&mut self, op: &Op, mut key_of: impl FnMut(u64, u32) -> ValueKey) -> Token {
        let units = |bytes: u64| bytes / UNIT as u64;
        match self.clip(op) {
            None => self.start(What::Nothing, Flight::Nothing),
            Some(Op::Write { offset, length, id, durability }) => {
                let units = units(offset)..units(offset + length);
                let keys: Vec<_> = units.clone().map(|unit| key_of(unit, id)).collect();
                self.begin_write(units.start, &keys, durability)
            }
            // How it lies in the file is nothing that the guest sees.
            Some(Op::WriteCompressed { offset, length, id }) => {
                let durability = Durability::Cached;
                self.begin(&Op::Write { offset, length, id, durability }, key_of)
            }
            Some(Op::WriteZeroes { offset, length, .. }) => {
                self.begin_zeroes(units(offset), units(length))
            }
            Some(Op::Discard { offset, length }) => {
                self.begin_discard(units(offset), units(length))
            }
            Some(Op::Uncover { offset, length }) => {
                self.begin_uncover(units(offset), units(length))
            }
            Some(Op::Preallocate { .. }) => self.start(What::Nothing, Flight::Nothing),
            Some(Op::AddPassphrase { id }) => self.begin_passphrase(id, true),
            Some(Op::RemovePassphrase { id }) => self.begin_passphrase(id, false),
            Some(Op::Read { offset, length }) => self.begin_read(units(offset), units(length)),
            Some(Op::Flush | Op::Reopen) => self.begin_flush(),
            Some(Op::Grow { to }) => self.begin_grow(units(to)),
            Some(Op::Shrink { to }) => self.begin_shrink(units(to)),
        }
    }

    /// Begins a write of `values` from unit `first` on.
    pub fn begin_write(
        &mut self,
        first: u64,
        values: &[ValueKey],
        durability: Durability,
    ) -> Token {
        let values: Arc<[ValueKey]> = values.into();
        let count = values.len() as u64;
        self.begin_change(first, count, Some(values), durability, first + count, false)
    }

    /// Begins to make a range read as zeroes.
    pub fn begin_zeroes(&mut self, first: u64, count: u64) -> Token {
        if self.mistake == Mistake::ZeroesForgotten {
            return self.start(What::Nothing, Flight::Nothing);
        }
        self.begin_change(first, count, None, Durability::Cached, first + count, false)
    }

    /// Begins to give back the whole clusters within a range. A cluster that the end of the disk cuts short is whole; beside
    /// a growth it may be taken or left, whichever comes first.
    pub fn begin_discard(&mut self, first: u64, count: u64) -> Token {
        let cluster = self.promises.cluster_units;
        let mut whole = self.whole_clusters(first, count);
        if self.mistake == Mistake::DiscardZeroesPartialClusters {
            whole.first = first;
            whole.end = first + count;
        }
        let Whole { first, end, sure, to_the_end } = whole;
        if first >= end || self.mistake == Mistake::DiscardForgotten {
            return self.start(What::Nothing, Flight::Nothing);
        }
        let first = match self.promises.discard {
            DiscardReads::ZeroesBesideLayer if self.mistake != Mistake::DiscardHidesLayer => {
                first.max(self.made.lower().units().next_multiple_of(cluster))
            }
            _ => first,
        };
        if first >= end {
            return self.start(What::Nothing, Flight::Nothing);
        }
        let sure = match self.promises.discard {
            DiscardReads::Either => first,
            DiscardReads::Zeroes | DiscardReads::ZeroesBesideLayer => sure,
        };
        self.begin_change(first, end - first, None, Durability::Cached, sure, to_the_end)
    }

    /// Begins to let the whole clusters within a range, taken as a discard takes them, show the layer below, and zeroes past its end.
    pub fn begin_uncover(&mut self, first: u64, count: u64) -> Token {
        let Whole { first, end, sure, to_the_end } = self.whole_clusters(first, count);
        if first >= end {
            return self.start(What::Nothing, Flight::Nothing);
        }
        let shows = |unit| match self.mistake {
            Mistake::UncoverShowsZeroes => ValueKey::ZERO,
            _ => self.made.lower().value(unit),
        };
        let values = (first..end).map(shows).collect();
        self.begin_change(first, end - first, Some(values), Durability::Cached, sure, to_the_end)
    }

    /// The whole clusters of a range. One that the end of the disk cuts short is whole, but beside a growth nobody knows.
    fn whole_clusters(&self, first: u64, count: u64) -> Whole {
        let cluster = self.promises.cluster_units;
        let end = first + count;
        let whole_end = end - end % cluster;
        let to_the_end = end * UNIT as u64 == self.size();
        let size_is_sure = self.size.live().all(|units| units == end);
        Whole {
            first: first.next_multiple_of(cluster),
            end: if to_the_end { end } else { whole_end },
            sure: if to_the_end && size_is_sure { end } else { whole_end },
            to_the_end,
        }
    }

    /// Begins to enlarge the disk to `units`.
    pub fn begin_grow(&mut self, units: u64) -> Token {
        let token = self.start(What::Resize(units), Flight::Resize { cut: None });
        // Units of a disk that may have been smaller meanwhile are zeroes where it was.
        let least = self.size.values().min().unwrap_or(0);
        let len = self.units.len();
        let doubtful: Vec<usize> = self.units.used(&(index(least).min(len)..len)).collect();
        for unit in doubtful {
            self.units.change(unit, |cell| {
                cell.begin(ValueKey::ZERO, token);
                cell.answer(token, token, false);
            });
        }
        self.size.begin(units, token);
        let cluster = index(self.promises.cluster_units);
        for (_, flight) in &mut self.in_flight {
            if let Flight::Change { first, count, sure, to_the_end: true, .. } = flight {
                let end = *first + *count;
                *sure = (*sure).min(end - end % cluster);
            }
        }
        let had = self.units.len();
        let count = index(units).max(had);
        self.units.resize(count);
        self.come_back(had..count);
        token
    }

    /// Units are there again that a shrink had cut off: what was in flight before it may have been done before it, or be done now.
    fn come_back(&mut self, units: Range<usize>) {
        let overlap = |first: usize, count: usize| {
            units.start.max(first)..units.end.min(first.saturating_add(count))
        };
        let mut changes = Vec::new();
        for (token, flight) in &mut self.in_flight {
            match flight {
                Flight::Change { first, count, sure, .. } => {
                    let again = overlap(*first, *count);
                    if !again.is_empty() {
                        *sure = (*sure).min(again.start);
                        changes.push((*token, again));
                    }
                }
                Flight::Read { first, count, beside, .. } => {
                    beside.extend(overlap(*first, *count).map(|unit| (unit, ValueKey::ZERO)));
                }
                Flight::Resize { .. } | Flight::Passphrase(_) | Flight::Flush | Flight::Nothing => {
                }
            }
        }
        for (token, again) in changes {
            let event = self.history.newest_first().find(|event| event.token == token);
            let puts = |unit: usize| event.and_then(|event| event.what.puts(unit as u64));
            let values: Vec<_> = again.filter_map(|unit| Some((unit, puts(unit)?))).collect();
            for (unit, value) in values {
                self.units.change(unit, |cell| cell.begin(value, token));
            }
        }
    }

    /// Begins to make the disk smaller, to `units`. Until it is, it holds all that it held; a read beside it may find zeroes in place of
    /// what it cuts off of the last cluster.
    pub fn begin_shrink(&mut self, units: u64) -> Token {
        let cut = index(units)..index(units.next_multiple_of(self.promises.cluster_units));
        for (_, flight) in &mut self.in_flight {
            if let Flight::Read { first, count, beside, .. } = flight {
                beside.extend(zeroes_in(&cut, *first, *count));
            }
        }
        let token = self.start(What::Resize(units), Flight::Resize { cut: Some(cut) });
        self.size.begin(units, token);
        token
    }

    /// Begins to let a passphrase open the image, or no longer.
    pub fn begin_passphrase(&mut self, id: u32, opens: bool) -> Token {
        let change = Change { id, opens };
        let token = self.start(What::Passphrase { id, opens }, Flight::Passphrase(change));
        self.passphrases.begin(change, token);
        token
    }

    /// Begins a flush, or a clean close.
    pub fn begin_flush(&mut self) -> Token {
        self.start(What::Flush, Flight::Flush)
    }

    /// Begins a read of `count` units.
    pub fn begin_read(&mut self, first: u64, count: u64) -> Token {
        let (first, count) = (index(first), index(count));
        let then = self.units.clone();
        let mut beside = Vec::new();
        for (_, flight) in &self.in_flight {
            if let Flight::Resize { cut: Some(cut) } = flight {
                beside.extend(zeroes_in(cut, first, count));
            }
        }
        self.start(What::Nothing, Flight::Read { first, count, then, beside })
    }

    /// The operation returned well.
    pub fn complete(&mut self, token: Token) {
        self.answer(token, Answer::Completed);
    }

    /// The operation returned an error: it may or may not have happened.
    pub fn fail(&mut self, token: Token) {
        self.answer(token, Answer::Failed);
    }

    /// The operation's future was dropped: it may or may not have happened, or happen yet.
    pub fn abandon(&mut self, token: Token) {
        self.answer(token, Answer::Abandoned);
    }

    /// A read returned well with these values. One that settles a choice left open by a crash settles it for good (P3).
    ///
    /// # Errors
    /// [`Misread`] with what was found and what is allowed, of the first unit that may not read so.
    pub fn complete_read(&mut self, token: Token, found: &[ValueKey]) -> Result<(), Misread> {
        let Flight::Read { first, count, then, beside } = self.land(token) else {
            panic!("{token:?} is no read");
        };
        assert_eq!(found.len(), count, "a read returns as many units as it asked for");
        let stale = self.mistake == Mistake::StaleReadsAllowed;
        for (unit, found) in (first..).zip(found.iter().copied()) {
            let was = then.get(unit);
            let allowed = || {
                let (live, all) = match was {
                    Some(cell) if stale => (None, Some(cell.values())),
                    cell => (cell.map(Cell::live), None),
                };
                let written = beside.iter().filter(|(of, _)| *of == unit).map(|(_, value)| *value);
                live.into_iter().flatten().chain(all.into_iter().flatten()).chain(written)
            };
            let same = matches!(was, Some(Cell::One(only)) if *only == found);
            if !same
                && self.mistake.checks_read(unit, first)
                && !allowed().any(|value| value == found)
            {
                let mut allowed: Vec<_> = allowed().collect();
                allowed.sort_unstable();
                allowed.dedup();
                return Err(Misread { unit: unit as u64, found, allowed });
            }
            if matches!(self.units.get(unit), Some(Cell::Many(_)))
                && self.mistake != Mistake::CollapseForgotten
            {
                self.units.change(unit, |cell| cell.choose(found));
            }
        }
        Ok(())
    }

    /// The power fails: what may be there is what was allowed, and nobody remembers in which order it was written.
    pub fn crash(&mut self) {
        let forget = self.mistake == Mistake::CrashForgetsInFlight;
        self.units.change_open(|cell| cell.crash(forget));
        self.size.crash(forget);
        self.passphrases.crash(forget, self.mistake);
        self.in_flight.clear();
        self.now += 1;
        self.history.push(Event { token: Token(self.now), what: What::Crash });
    }

    /// Recovery left `unit` holding one of `values`, all of which must be allowed: from here on nothing else is (P3).
    pub fn collapse(&mut self, unit: u64, values: &[ValueKey]) {
        debug_assert!(values.iter().all(|value| self.permits(unit, *value)));
        let values = if self.mistake == Mistake::CollapseToOne { &values[..1] } else { values };
        if self.mistake != Mistake::CollapseForgotten {
            self.units.change(index(unit), |cell| *cell = Cell::of(values));
        }
    }

    /// Recovery found an image of this many bytes, which must be allowed.
    pub fn collapse_size(&mut self, bytes: u64) {
        debug_assert!(self.permits_size(bytes));
        let units = bytes / UNIT as u64;
        self.size = Cell::One(units);
        self.units.resize(index(units).min(self.units.len()));
    }

    /// Recovery found an image that opens with these passphrases, all of which must be allowed (P3).
    pub fn collapse_passphrases(&mut self, found: &Openings) {
        debug_assert!((1..).zip(found).all(|(id, opens)| match self.passphrase(id) {
            Opens::Surely => *opens != Some(false),
            Opens::Perhaps => true,
            Opens::Shut | Opens::Gone => *opens != Some(true),
        }));
        if self.mistake != Mistake::OpeningsNotCollapsed {
            self.passphrases.collapse(found);
        }
    }

    /// Whether `key` was ever put into `unit`, or was there from the start.
    pub fn was_written(&self, unit: u64, key: ValueKey) -> bool {
        let original = self.initial.get(index(unit)).copied().unwrap_or(ValueKey::ZERO);
        original == key
            || self.history.newest_first().any(|event| event.what.puts(unit) == Some(key))
    }

    /// What happened to `unit`, newest last: the end of it if it is long.
    pub fn story(&self, unit: u64, name: impl Fn(ValueKey) -> String) -> String {
        let original = self.initial.get(index(unit)).copied().unwrap_or(ValueKey::ZERO);
        let first = format!("at first: {}", name(original));
        self.tell(first, |what| match what {
            What::Change { .. } => what.puts(unit).map(|key| format!("puts {}", name(key))),
            What::Resize(units) => Some(format!("resize to {} bytes", units * UNIT as u64)),
            What::Flush => Some("flush".to_owned()),
            What::Crash => Some("power cut".to_owned()),
            What::Passphrase { .. } | What::Answer(..) | What::Nothing => None,
        })
    }

    /// What happened to the passphrase of this number, newest last: the end of it if it is long.
    pub fn passphrase_story(&self, id: u32) -> String {
        let first = "at first: it opens nothing".to_owned();
        self.tell(first, |what| match what {
            What::Passphrase { id: of, opens } if *of == id => {
                Some(if *opens { "added" } else { "removed" }.to_owned())
            }
            What::Crash => Some("power cut".to_owned()),
            _ => None,
        })
    }

    fn tell(&self, first: String, done: impl Fn(&What) -> Option<String>) -> String {
        const EVENTS: usize = 12;
        let mut lines = Vec::new();
        let mut older = 0;
        let mut answers = Vec::new();
        for event in self.history.newest_first() {
            // Newest first, an answer comes before its beginning, so answers are kept until it shows what they are about.
            if let What::Answer(to, answer) = event.what {
                answers.push((to, event.token, answer));
                continue;
            }
            let Some(done) = done(&event.what) else { continue };
            if lines.len() == EVENTS {
                older += 1;
                continue;
            }
            let mut line = format!("t={} {done}", event.token.0);
            if !matches!(event.what, What::Crash) {
                let ended = answers.iter().find(|(to, ..)| *to == event.token);
                let _ = match ended {
                    Some((_, at, Answer::Completed)) => write!(line, ", completed t={}", at.0),
                    Some((_, at, Answer::Failed)) => write!(line, ", failed t={}", at.0),
                    Some((_, at, Answer::Abandoned)) => write!(line, ", dropped t={}", at.0),
                    None => write!(line, ", never answered"),
                };
            }
            lines.push(line);
        }
        if older > 0 {
            lines.push(format!("({older} older events)"));
        }
        lines.push(first);
        lines.reverse();
        lines.join("\n")
    }

    fn begin_change(
        &mut self,
        first: u64,
        count: u64,
        values: Option<Arc<[ValueKey]>>,
        durability: Durability,
        sure: u64,
        to_the_end: bool,
    ) -> Token {
        let (from, length, sure) = (index(first), index(count), index(sure));
        let durability = match self.promises.changes {
            Durability::Through if self.mistake != Mistake::ChangesNeverThrough => {
                Durability::Through
            }
            _ => durability,
        };
        let what = What::Change { first, count, values: values.clone() };
        let flight = Flight::Change { first: from, count: length, durability, sure, to_the_end };
        let token = self.start(what, flight);
        let same = self.mistake == Mistake::FirstValueForAll;
        let value_at = |at: usize| {
            values.as_ref().map_or(ValueKey::ZERO, |values| values[if same { 0 } else { at }])
        };
        for at in 0..length {
            self.units.change(from + at, |cell| cell.begin(value_at(at), token));
        }
        for (_, flight) in &mut self.in_flight {
            if let Flight::Read { first, count, beside, .. } = flight {
                let overlap = from.max(*first)..(from + length).min(*first + *count);
                beside.extend(overlap.map(|unit| (unit, value_at(unit - from))));
            }
        }
        token
    }

    fn start(&mut self, what: What, flight: Flight) -> Token {
        self.now += 1;
        let token = Token(self.now);
        if !matches!(what, What::Nothing) {
            self.history.push(Event { token, what });
        }
        self.in_flight.push((token, flight));
        token
    }

    fn land(&mut self, token: Token) -> Flight {
        let at = self.in_flight.iter().position(|(begun, _)| *begun == token);
        self.in_flight.swap_remove(at.expect("each operation is answered once, before a crash")).1
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        let flight = self.land(token);
        self.now += 1;
        let now = Token(self.now);
        if !matches!(flight, Flight::Nothing | Flight::Read { .. }) {
            self.history.push(Event { token: now, what: What::Answer(token, answer) });
        }
        let completed = answer == Answer::Completed;
        match flight {
            Flight::Change { first, count, durability, sure, .. } => {
                let (forget, counts) = match answer {
                    Answer::Completed => (false, true),
                    Answer::Failed => (
                        self.mistake == Mistake::FailedWriteForgotten,
                        self.mistake == Mistake::FailedWriteCounts,
                    ),
                    Answer::Abandoned => (self.mistake == Mistake::AbandonedWriteForgotten, false),
                };
                let through = completed
                    && durability == Durability::Through
                    && self.mistake != Mistake::ThroughForgotten;
                // A shrink beside it may have cut some of them off.
                for unit in first..(first + count).min(self.units.len()) {
                    self.units.change(unit, |cell| {
                        if forget {
                            return cell.forget(token);
                        }
                        cell.answer(token, now, unit < sure && counts);
                        if through {
                            cell.settle(|entry| entry.begin == token);
                        }
                    });
                }
                if through {
                    // The units exist only on a disk of the size that they were written to.
                    self.size.settle(|entry| entry.end.is_before(token));
                    if self.mistake == Mistake::ThroughIsBarrier {
                        self.settle_all(|end| end.is_before(token));
                    }
                }
            }
            Flight::Resize { cut } => {
                let smaller = cut.is_some();
                let completed = completed || self.mistake == Mistake::FailedGrowthCounts;
                self.size.answer(token, now, completed);
                if completed && (smaller || self.promises.grow == Durability::Through) {
                    self.size.settle(|entry| entry.begin == token);
                }
                if smaller && self.mistake != Mistake::CutOffStays {
                    // What no disk that it may be has is gone: units that come back are zeroes.
                    let most = self.size.values().max().unwrap_or(0);
                    self.units.resize(index(most).min(self.units.len()));
                }
            }
            Flight::Passphrase(change) => {
                self.passphrases.answer(change, token, now, answer, self.mistake);
            }
            Flight::Flush if completed || self.mistake == Mistake::FailedFlushSettles => {
                if self.mistake == Mistake::FlushCoversSubmitted {
                    self.settle_all(|_| true);
                } else {
                    self.settle_all(|end| end.is_before(token));
                }
            }
            Flight::Flush | Flight::Read { .. } | Flight::Nothing => {}
        }
    }

    fn settle_all(&mut self, covers: impl Fn(Token) -> bool) {
        if self.mistake == Mistake::SupersededStaysAllowed {
            return;
        }
        if self.mistake != Mistake::FlushSparesSize {
            self.size.settle(|entry| covers(entry.end));
        }
        self.units.change_open(|cell| cell.settle(|entry| covers(entry.end)));
    }
}

/// The whole clusters of a range, in units.
struct Whole {
    first: u64,
    end: u64,
    /// What lies before this one is taken whatever becomes of the disk's size.
    sure: u64,
    /// The range ends where the disk does.
    to_the_end: bool,
}

fn index(units: u64) -> usize {
    usize::try_from(units).expect("MAX_VIRTUAL_SIZE keeps unit numbers small")
}

/// What a read of `count` units may find besides what was there, beside a shrink that cuts these off of the last cluster.
fn zeroes_in(
    cut: &Range<usize>,
    first: usize,
    count: usize,
) -> impl Iterator<Item = (usize, ValueKey)> {
    (cut.start.max(first)..cut.end.min(first + count)).map(|unit| (unit, ValueKey::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMISES: Promises = Promises {
        cluster_units: 2,
        discard: DiscardReads::Zeroes,
        grow: Durability::Through,
        changes: Durability::Cached,
    };

    #[test]
    fn a_long_history_ends_without_recursion() {
        let mut guest = Guest::new(&[ValueKey::ZERO], PROMISES);
        for _ in 0..300_000 {
            let write = guest.begin_write(0, &[ValueKey(1)], Durability::Through);
            guest.complete(write);
        }
        let story = guest.story(0, |key| key.0.to_string());
        assert!(story.starts_with("at first: 0\n(299988 older events)\nt="), "{story}");
        assert_eq!(story.lines().count(), 14);
        drop(guest);
    }

    #[test]
    fn disks_have_equal_hashes_if_they_allow_the_same() {
        let after = |writes: &[(u64, u32)], flushed: bool| {
            let mut guest = Guest::new(&[ValueKey::ZERO; 3], PROMISES);
            for (unit, key) in writes {
                let write = guest.begin_write(*unit, &[ValueKey(*key)], Durability::Cached);
                guest.complete(write);
            }
            if flushed {
                flush(&mut guest);
            }
            guest.allowed_hash()
        };
        let grown = |to: &[u64]| {
            let mut guest = Guest::new(&[ValueKey::ZERO; 3], PROMISES);
            for units in to {
                guest.begin_grow(*units);
            }
            guest.allowed_hash()
        };
        let different = [
            after(&[], true),
            after(&[(0, 1)], true),
            after(&[(0, 2)], true),
            after(&[(0, 3)], true),
            after(&[(1, 1)], true),
            after(&[(1, 2)], true),
            after(&[(0, 1), (1, 2)], true),
            after(&[(0, 2), (1, 1)], true),
            after(&[(0, 1)], false),
            after(&[(0, 2)], false),
            after(&[(1, 1)], false),
            after(&[(0, 1), (0, 2)], false),
            grown(&[4]),
            grown(&[5]),
            grown(&[4, 5]),
            grown(&[4, 6]),
        ];
        for (at, one) in different.iter().enumerate() {
            assert!(!different[..at].contains(one), "{at}");
        }
        // The order in which values came does not matter, nor what was there before a settled one.
        assert_eq!(after(&[(0, 1), (0, 2)], false), after(&[(0, 2), (0, 1)], false));
        assert_eq!(after(&[(0, 1), (0, 2)], true), after(&[(0, 2)], true));
    }

    #[test]
    fn a_unit_is_settled_when_nothing_but_a_flushed_write_may_be_there() {
        let mut guest = Guest::new(&[ValueKey::ZERO; 2], PROMISES);
        let run =
            |guest: &Guest, keys: [u32; 2]| guest.settled_run(0, keys.map(ValueKey).into_iter());
        assert_eq!((guest.unsettled(), run(&guest, [0, 0]), run(&guest, [0, 1])), (vec![], 2, 1));
        let write = guest.begin_write(0, &[ValueKey(1)], Durability::Cached);
        guest.complete(write);
        assert_eq!((guest.unsettled(), run(&guest, [1, 0]), run(&guest, [0, 0])), (vec![0], 0, 0));
        flush(&mut guest);
        assert_eq!((guest.unsettled(), run(&guest, [1, 0])), (vec![], 2));
        assert_eq!(guest.settled_run(1, [ValueKey::ZERO; 2].into_iter()), 1, "the disk ends");
    }

    /// After a power cut the unit holds one of 0, 1 and 2.
    fn undecided() -> Guest {
        let mut guest = Guest::new(&[ValueKey::ZERO], PROMISES);
        for key in [1, 2] {
            let write = guest.begin_write(0, &[ValueKey(key)], Durability::Cached);
            guest.complete(write);
        }
        guest.crash();
        guest
    }

    fn read(guest: &mut Guest, key: u32) {
        let read = guest.begin_read(0, 1);
        guest.complete_read(read, &[ValueKey(key)]).expect("it is allowed");
    }

    #[test]
    fn a_read_decides_what_a_crash_left_open_if_it_shows_that() {
        for key in 0..3 {
            let mut guest = undecided();
            read(&mut guest, key);
            assert_eq!(guest.allowed(0), [ValueKey(key)]);
        }
        // What a write beside it put there says nothing about what was there before, whether or not it puts the same.
        let all = [0, 1, 2, 3].map(ValueKey);
        for (written, allowed) in [(3, &all[..]), (2, &all[..3])] {
            let mut guest = undecided();
            guest.begin_write(0, &[ValueKey(written)], Durability::Cached);
            read(&mut guest, written);
            assert_eq!(guest.allowed(0), allowed);
        }
    }

    #[test]
    fn a_copy_goes_its_own_way() {
        let mut guest = Guest::new(&[ValueKey::ZERO; 2], PROMISES);
        let write = guest.begin_write(0, &[ValueKey(1)], Durability::Cached);
        let mut copy = guest.clone();
        copy.crash();
        copy.collapse(0, &[ValueKey::ZERO]);
        guest.complete(write);
        assert_eq!(guest.allowed(0), [ValueKey::ZERO, ValueKey(1)]);
        assert_eq!(copy.allowed(0), [ValueKey::ZERO]);
        assert!(copy.was_written(0, ValueKey(1)) && !copy.was_written(1, ValueKey(1)));
    }

    /// Three clusters of two units each, the last cut short, all of them holding 1.
    fn cut_short() -> Guest {
        Guest::new(&[ValueKey(1); 5], PROMISES)
    }

    const ZERO_OR_ONE: [ValueKey; 2] = [ValueKey::ZERO, ValueKey(1)];

    fn flush(guest: &mut Guest) {
        let flush = guest.begin_flush();
        guest.complete(flush);
    }

    #[test]
    fn a_discard_takes_a_last_cluster_that_is_cut_short() {
        let mut guest = cut_short();
        let discard = guest.begin_discard(1, 4);
        guest.complete(discard);
        flush(&mut guest);
        assert_eq!([0, 1, 2, 3, 4].map(|unit| guest.allowed(unit).len()), [1; 5]);
        assert_eq!([1, 2, 4].map(|unit| guest.permits(unit, ValueKey::ZERO)), [false, true, true]);
    }

    #[test]
    fn zeroes_and_writes_are_certain_to_their_last_unit() {
        let mut guest = cut_short();
        let zeroes = guest.begin_zeroes(1, 2);
        guest.complete(zeroes);
        let write = guest.begin_write(3, &[ValueKey(7); 2], Durability::Cached);
        guest.complete(write);
        flush(&mut guest);
        let expected = [1, 0, 0, 7, 7].map(|key| vec![ValueKey(key)]);
        assert_eq!([0, 1, 2, 3, 4].map(|unit| guest.allowed(unit)), expected);
    }

    #[test]
    fn beside_a_growth_a_discard_may_find_the_last_cluster_cut_short_or_not() {
        for growth_first in [false, true] {
            let mut guest = cut_short();
            let growth = growth_first.then(|| guest.begin_grow(8));
            let discard = guest.begin_discard(2, 3);
            let growth = growth.unwrap_or_else(|| guest.begin_grow(8));
            guest.complete(growth);
            guest.complete(discard);
            flush(&mut guest);
            assert_eq!(guest.allowed(3), [ValueKey::ZERO]);
            assert_eq!(guest.allowed(4), ZERO_OR_ONE);
            assert_eq!(guest.allowed(5), [ValueKey::ZERO]);
        }
    }

    #[test]
    fn after_a_growth_a_discard_leaves_what_was_the_last_cluster() {
        let mut guest = cut_short();
        let growth = guest.begin_grow(8);
        guest.complete(growth);
        let discard = guest.begin_discard(2, 3);
        guest.complete(discard);
        flush(&mut guest);
        assert_eq!(guest.allowed(3), [ValueKey::ZERO]);
        assert_eq!(guest.allowed(4), [ValueKey(1)]);
    }

    #[test]
    fn an_image_that_writes_everything_through_has_settled_what_it_answered() {
        let through = Promises { changes: Durability::Through, ..PROMISES };
        let mut guest = Guest::new(&[ValueKey(1); 6], through);
        let write = guest.begin_write(0, &[ValueKey(2)], Durability::Cached);
        assert_eq!(guest.allowed(0).len(), 2, "it is in flight");
        guest.complete(write);
        let zeroes = guest.begin_zeroes(1, 1);
        guest.complete(zeroes);
        let discard = guest.begin_discard(2, 2);
        guest.complete(discard);
        let failed = guest.begin_zeroes(4, 1);
        guest.fail(failed);
        let allowed = [0, 1, 2, 3].map(|unit| guest.allowed(unit));
        assert_eq!(allowed, [2, 0, 0, 0].map(|key| vec![ValueKey(key)]));
        assert_eq!(guest.allowed(4), ZERO_OR_ONE);
    }

    #[test]
    fn operations_are_cut_at_the_end_of_the_disk() {
        let mut guest = Guest::new(&[ValueKey::ZERO; 2], PROMISES);
        let op = Op::Write { offset: 512, length: 4096, id: 3, durability: Durability::Cached };
        let mut asked = Vec::new();
        let write = guest.begin(&op, |unit, id| {
            asked.push((unit, id));
            ValueKey(7)
        });
        guest.complete(write);
        assert_eq!(asked, [(1, 3)]);
        let beyond = Op::Read { offset: 4096, length: 512 };
        let read = guest.begin(&beyond, |_, _| ValueKey::ZERO);
        guest.complete(read);
        let reopen = guest.begin(&Op::Reopen, |_, _| ValueKey::ZERO);
        guest.complete(reopen);
        assert_eq!(guest.allowed(1), [ValueKey(7)]);
    }

    /// Goal: what a shrink cuts off of the last cluster may read as zeroes while it is under way; what it leaves, what is behind that cluster, and
    /// what is read later may not. Method: reads that begin before it, beside it and after it, of a disk that was written to.
    #[test]
    fn a_read_beside_a_shrink_may_find_zeroes_in_the_last_cluster() {
        let promises = Promises { cluster_units: 2, ..PROMISES };
        let cases = [([1, 1, 1], true), ([1, 0, 1], true), ([0, 1, 1], false), ([1, 1, 0], false)];
        for (found, is_allowed) in cases {
            for begins_before in [true, false] {
                let mut guest = Guest::new(&[ValueKey(1); 3], promises);
                let before = begins_before.then(|| guest.begin_read(0, 3));
                let shrink = guest.begin_shrink(1);
                let read = before.unwrap_or_else(|| guest.begin_read(0, 3));
                let result = guest.complete_read(read, &found.map(ValueKey));
                assert_eq!(result.is_ok(), is_allowed, "{found:?}, {result:?}");
                guest.complete(shrink);
            }
            let mut guest = Guest::new(&[ValueKey(1); 3], promises);
            let shrink = guest.begin_shrink(1);
            guest.fail(shrink);
            let read = guest.begin_read(0, 1);
            assert_eq!(guest.complete_read(read, &[ValueKey(found[0])]).is_ok(), found[0] == 1);
        }
    }
}
