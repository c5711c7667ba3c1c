//! What one unit may hold, as a list of writes, and the moments that order them.
//!
//! Invariant: the list is exactly G: every write that is not before a settled one. The virtual size is such a list too.

use std::sync::Arc;

/// An operation in flight: the moment when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub(super) u32);

impl Token {
    /// No two moments are the same: each beginning and each answer has its own.
    #[inline]
    pub(super) fn is_before(self, other: Self) -> bool {
        self < other
    }
}

/// What one unit may hold: exactly G, one entry a write.
#[derive(Clone, Debug)]
pub(super) enum Cell<T> {
    /// Settled, and nothing written since.
    One(T),
    Many(Arc<Vec<Entry<T>>>),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<T> {
    pub(super) value: T,
    pub(super) begin: Token,
    /// When it was answered; [`NEVER`] while it is in flight.
    pub(super) end: Token,
    /// Answered well, and certain to be there unless something later is.
    pub(super) sure: bool,
    pub(super) settled: bool,
}

/// The time of everything that a crash or the initial image left behind: before any write, in no order among itself.
pub(super) const ORIGIN: Token = Token(0);
pub(super) const NEVER: Token = Token(u32::MAX);

impl<T: Copy + Ord> Cell<T> {
    /// Any one of `values`, in no order.
    pub(super) fn of(values: &[T]) -> Self {
        match values {
            [] => panic!("a unit holds something"),
            [only] => Self::One(*only),
            many => Self::Many(Arc::new(many.iter().copied().map(Entry::origin).collect())),
        }
    }

    fn entries(&mut self) -> &mut Vec<Entry<T>> {
        if let Self::One(value) = *self {
            *self = Self::Many(Arc::new(vec![Entry::origin(value)]));
        }
        match self {
            Self::Many(entries) => Arc::make_mut(entries),
            Self::One(_) => unreachable!("made many above"),
        }
    }

    #[inline]
    pub(super) fn begin(&mut self, value: T, token: Token) {
        let entry = Entry { value, begin: token, end: NEVER, sure: false, settled: false };
        self.entries().push(entry);
    }

    #[inline]
    pub(super) fn answer(&mut self, token: Token, now: Token, sure: bool) {
        for entry in self.entries().iter_mut().filter(|entry| entry.begin == token) {
            (entry.end, entry.sure) = (now, sure);
        }
    }

    pub(super) fn forget(&mut self, token: Token) {
        self.entries().retain(|entry| entry.begin != token);
        self.tidy();
    }

    /// Marks the sure entries that `covered` picks as settled, and drops every write that is before a settled one.
    pub(super) fn settle(&mut self, covered: impl Fn(&Entry<T>) -> bool) {
        let Self::Many(_) = self else { return };
        let entries = self.entries();
        let mut horizon = ORIGIN;
        for entry in entries.iter_mut() {
            entry.settled |= entry.sure && covered(entry);
            if entry.settled {
                horizon = horizon.max(entry.begin);
            }
        }
        entries.retain(|entry| entry.end >= horizon);
        self.tidy();
    }

    /// A lone settled entry needs no times: whatever begins later begins after its end.
    fn tidy(&mut self) {
        if let Self::Many(entries) = self
            && let [Entry { value, settled: true, .. }] = entries[..]
        {
            *self = Self::One(value);
        }
    }

    /// Everything that is not before a write that completed.
    #[inline]
    pub(super) fn live(&self) -> impl Iterator<Item = T> {
        let (one, many) = self.parts();
        let horizon = many.iter().filter(|entry| entry.sure).map(|entry| entry.begin).max();
        let horizon = horizon.unwrap_or(ORIGIN);
        one.into_iter()
            .chain(many.iter().filter(move |entry| entry.end >= horizon).map(|entry| entry.value))
    }

    /// Whether one value is all that may be there, with nothing in flight or in doubt.
    pub(super) fn is_decided(&self) -> bool {
        self.sorted().len() == 1 && self.parts().1.iter().all(|entry| entry.settled)
    }

    /// Everything; a value may come twice.
    #[inline]
    pub(super) fn values(&self) -> impl Iterator<Item = T> {
        let (one, many) = self.parts();
        one.into_iter().chain(many.iter().map(|entry| entry.value))
    }

    #[inline]
    fn parts(&self) -> (Option<T>, &[Entry<T>]) {
        match self {
            Self::One(value) => (Some(*value), &[]),
            Self::Many(entries) => (None, entries),
        }
    }

    #[inline]
    pub(super) fn sorted(&self) -> Vec<T> {
        let mut values: Vec<T> = self.values().collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Everything that may be there becomes what the unit holds, in no order.
    #[inline]
    pub(super) fn crash(&mut self, forget_in_flight: bool) {
        if let Self::Many(entries) = self {
            if forget_in_flight {
                Arc::make_mut(entries).retain(|entry| entry.end != NEVER);
            }
            *self = Self::of(&self.sorted());
        }
    }

    /// A read returned `value`: if that tells which of the values left by a crash is there, the others are not.
    pub(super) fn choose(&mut self, value: T) {
        let Self::Many(entries) = self else { return };
        let left_by_crash = |entry: &Entry<T>| entry.begin == ORIGIN;
        let mut holding = entries.iter().filter(|entry| entry.value == value);
        if holding.next().is_some_and(left_by_crash) && holding.next().is_none() {
            Arc::make_mut(entries).retain(|entry| !left_by_crash(entry) || entry.value == value);
            self.tidy();
        }
    }
}

impl<T> Entry<T> {
    fn origin(value: T) -> Self {
        Self { value, begin: ORIGIN, end: ORIGIN, sure: true, settled: true }
    }
}
