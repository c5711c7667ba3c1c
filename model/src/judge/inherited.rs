//! What was wrong with an image before a life began.

use crate::audit::Auditor;
use crate::finding::Finding;

/// Flaws that an image already had before a life began: that life may hand them on, and not add to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// (cluster, refcount minus references), ascending.
    leaks: Vec<(u64, u64)>,
    /// Clusters whose COPIED flag is missing or stale, ascending.
    copied: Vec<u64>,
}

impl Inherited {
    /// The flaws of the image that was audited last. What only an autoclear bit vouches for counts as leaked: who does not
    /// maintain it has to clear the bit, and frees nothing by that.
    pub fn of(auditor: &Auditor) -> Self {
        let mut inherited = Self::default();
        inherited.leaks.extend(auditor.image().vouched_for().map(|cluster| (cluster, 1)));
        for finding in &auditor.report().findings {
            match *finding {
                Finding::Leak { cluster, stored, counted } => {
                    inherited.leaks.push((cluster, stored.saturating_sub(counted)));
                }
                Finding::CopiedMissing { cluster, .. } | Finding::CopiedStale { cluster, .. } => {
                    inherited.copied.push(cluster);
                }
                _ => {}
            }
        }
        inherited.leaks.sort_unstable();
        inherited.copied.sort_unstable();
        inherited
    }

    /// Whether a finding is one of these.
    pub(super) fn has(&self, finding: &Finding) -> bool {
        match *finding {
            Finding::Leak { cluster, stored, counted } => {
                let at = self.leaks.binary_search_by_key(&cluster, |(leaked, _)| *leaked);
                at.is_ok_and(|at| stored.saturating_sub(counted) <= self.leaks[at].1)
            }
            Finding::CopiedMissing { cluster, .. } | Finding::CopiedStale { cluster, .. } => {
                self.copied.binary_search(&cluster).is_ok()
            }
            _ => false,
        }
    }
}
