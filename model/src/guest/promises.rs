//! What an implementation promises of its guest disk beyond the common rules.

use crate::op::Durability;

/// What an implementation promises beyond the common rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promises {
    /// Units in a cluster: a discard acts on whole ones.
    pub cluster_units: u64,
    /// What a discarded cluster reads as.
    pub discard: DiscardReads,
    /// When a completed growth is durable.
    pub grow: Durability,
    /// When a completed write, zeroing or discard is durable that does not ask for more: [`Durability::Through`] of an image that was
    /// opened to write everything through.
    pub changes: Durability,
}

impl Promises {
    /// The least that an implementation says: what is given up reads as before or as zeroes, and what changes is durable after a flush.
    pub const fn least(cluster_units: u64) -> Self {
        let (discard, cached) = (DiscardReads::Either, Durability::Cached);
        Self { cluster_units, discard, grow: cached, changes: cached }
    }
}

/// What a discarded cluster reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardReads {
    /// Zeroes.
    Zeroes,
    /// What it held, or zeroes.
    Either,
    /// What it held where a layer is below, and zeroes elsewhere.
    ZeroesBesideLayer,
}
