//! What a guest cluster reads as: the one place where a mapping turns into content.
//!
//! ```text
//!   entry ──decode──> mapping   unallocated                       ──> Below, Zero where no layer is below or it has ended
//!                               zero plain, zero allocated        ──> Zero
//!                               data                              ──> Host
//!                               compressed                        ──> Stream
//!                               mixed                             ──> one of the first three for each subcluster
//! ```
//!
//! **Invariant.** Reading, what a partial write leaves of a cluster, zeroing, and whether an entry may overtake its data all ask here.

use crate::format::entry::{L2Entry, Mapping, Subclusters};
use crate::mutant::mutant;
use crate::state::State;

/// What a guest cluster reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeroes.
    Zero,
    /// What the file holds from this byte on.
    Host(u64),
    /// What the layer below holds from this byte on, which is the guest's own offset.
    Below(u64),
    /// What the stream of this entry gives, at the guest's own place in its cluster.
    Stream(L2Entry),
}

impl State {
    /// What a guest cluster with this mapping reads as. One that is mixed is asked for [by subclusters](Self::content_of).
    #[inline]
    pub(crate) fn content(&self, guest_cluster: u64, mapping: Mapping) -> Content {
        match mapping {
            Mapping::Unallocated => self.unallocated(guest_cluster),
            Mapping::ZeroPlain | Mapping::ZeroAllocated { .. } => Content::Zero,
            Mapping::Data { host, .. } => Content::Host(host),
            Mapping::Compressed { offset, length, .. } => {
                let entry = L2Entry::compressed(offset, length, self.header.cluster_bits);
                Content::Stream(entry.expect("an entry said so"))
            }
            Mapping::Mixed { .. } => unreachable!("it is asked for by subclusters"),
        }
    }

    /// What a subcluster of a guest cluster with this mapping reads as.
    pub(crate) fn content_of(
        &self,
        guest_cluster: u64,
        mapping: Mapping,
        subcluster: u64,
    ) -> Content {
        let Mapping::Mixed { host, of: Subclusters { data, zero }, .. } = mapping else {
            let content = self.content(guest_cluster, mapping);
            return content.after(subcluster * self.subcluster_size());
        };
        let content = match 1 << subcluster {
            bit if data & bit != 0 => Content::Host(host),
            bit if zero & bit != 0 => Content::Zero,
            _ => self.unallocated(guest_cluster),
        };
        content.after(subcluster * self.subcluster_size())
    }

    /// What a guest cluster reads as that the image says nothing about.
    #[inline]
    pub(crate) fn unallocated(&self, guest_cluster: u64) -> Content {
        if self.below > 0 && guest_cluster < self.shown() {
            Content::Below(guest_cluster * self.cluster_size())
        } else {
            Content::Zero
        }
    }

    /// Guest clusters before this one show the layer below where the image says nothing about them.
    pub(crate) fn shown(&self) -> u64 {
        let size = self.cluster_size();
        mutant!(self.rules, LayerEndsEarly => self.below / size; self.below.div_ceil(size))
    }
}

impl Content {
    /// The same, so many bytes further into the cluster.
    pub(crate) const fn after(self, bytes: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Host(offset) => Self::Host(offset + bytes),
            Self::Below(offset) => Self::Below(offset + bytes),
            Self::Stream(entry) => Self::Stream(entry),
        }
    }
}
