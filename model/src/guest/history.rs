//! What was done, for the story of a unit: nothing is judged by it but whether a value was ever written.

use std::sync::Arc;

use super::cell::Token;
use crate::evidence::ValueKey;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Completed,
    Failed,
    Abandoned,
}

/// Everything that was done, as a list that clones in one step because it only grows at its head.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    newest: Option<Arc<Node>>,
}

#[derive(Debug)]
struct Node {
    event: Event,
    older: Option<Arc<Node>>,
}

#[derive(Debug)]
pub(super) struct Event {
    pub(super) token: Token,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// Puts `values`, or zeroes.
    Change {
        first: u64,
        count: u64,
        values: Option<Arc<[ValueKey]>>,
    },
    /// Makes the disk larger or smaller, to so many units.
    Resize(u64),
    /// Lets this passphrase open the image, or no longer.
    Passphrase {
        id: u32,
        opens: bool,
    },
    Flush,
    Answer(Token, Answer),
    Crash,
    /// Not worth remembering.
    Nothing,
}

impl What {
    pub(super) fn puts(&self, unit: u64) -> Option<ValueKey> {
        let Self::Change { first, count, values } = self else { return None };
        let at = unit.checked_sub(*first).filter(|at| at < count)?;
        Some(values.as_ref().map_or(ValueKey::ZERO, |values| values[at as usize]))
    }
}

impl History {
    pub(super) fn push(&mut self, event: Event) {
        self.newest = Some(Arc::new(Node { event, older: self.newest.take() }));
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Event> {
        let mut next = self.newest.as_deref();
        std::iter::from_fn(move || {
            let node = next?;
            next = node.older.as_deref();
            Some(&node.event)
        })
    }
}

impl Drop for History {
    /// Node by node: the compiler's own way would recurse as deep as the list is long.
    fn drop(&mut self) {
        let mut next = self.newest.take();
        while let Some(mut node) = next.and_then(Arc::into_inner) {
            next = node.older.take();
        }
    }
}
