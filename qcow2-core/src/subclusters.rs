//! Guest clusters whose 32 subclusters are of different kinds, in an image with extended L2 entries.
//!
//! ```text
//!   subcluster     0        1        2        3        4     ..
//!   entry         data     data     zero      -       data           -: what the layer below shows, or zeroes
//!   request                      |#########################|
//!   written                      |0#########################...|    filled up where the subcluster had no data
//!   entry after   data     data     data     data     data
//! ```
//!
//! **Invariant.** A subcluster that an entry says has data was filled before: its bit waits for what was written to it
//! (`data-before-mapping`), in a cluster that was mapped already too. Both halves of an entry lie in one unit of 512 bytes, and change in
//! one version of their page.

use std::num::{NonZeroU32, NonZeroU64};
use std::ops::Range;

use crate::alloc::Extent;
use crate::cache::Slot;
use crate::content::Content;
use crate::crypt::Place;
use crate::error::IoError;
use crate::files::File;
use crate::format::entry::{L2Entry, Mapping, Subclusters};
use crate::map::NewLink;
use crate::mutant::mutant;
use crate::read::ReadExtent;
use crate::state::{State, Stop};
use crate::write::{Purpose, Target, Targets, Wanted, WriteExtent, WriteMap, not_filled};
use storage::{Durability, IoBuf, Storage};

/// The bits of so many subclusters.
fn bits(subclusters: Range<u64>) -> u32 {
    subclusters.fold(0, |bits, one| bits | 1 << one)
}

/// The host cluster that a mapping has for its subclusters, whether that has a refcount of exactly one, and what each is. A compressed
/// cluster has none, and data everywhere.
fn parts(mapping: Mapping) -> (u64, bool, Subclusters) {
    mapping.subclusters().unwrap_or((0, false, Subclusters { data: u32::MAX, zero: 0 }))
}

impl State {
    /// The subclusters of a guest cluster that a range of the guest's disk touches, which has a part of it.
    pub(crate) fn touched(&self, guest_cluster: u64, bytes: &Range<u64>) -> Range<u64> {
        let (size, one) = (self.cluster_size(), self.subcluster_size());
        let start = guest_cluster * size;
        let end = (bytes.end - start).min(size);
        let last =
            mutant!(self.rules, LastSubclusterUntouched => (end / one).max(1); end.div_ceil(one));
        bytes.start.saturating_sub(start) / one..last
    }

    /// Whether all of these subclusters of a guest cluster read as zeroes.
    pub(crate) fn reads_zero(
        &self,
        guest_cluster: u64,
        mapping: Mapping,
        mut subclusters: Range<u64>,
    ) -> bool {
        subclusters.all(|one| self.content_of(guest_cluster, mapping, one) == Content::Zero)
    }

    /// How guest clusters with these entries, `guest_cluster` and those that follow, get a place for the subclusters that a request to
    /// `bytes` touches.
    pub(crate) fn part_targets(
        &self,
        guest_cluster: u64,
        slot: Slot,
        at: u64,
        count: usize,
        wanted: &Wanted,
        targets: &mut Targets,
    ) -> Result<(), Stop> {
        for (cluster, at) in (guest_cluster..).zip((at..).step_by(16)).take(count) {
            let mapping = self.mapping_in(cluster, slot, at)?;
            let (host, copied, of) = parts(mapping);
            if self.raw && of.data != u32::MAX {
                targets.push(Target::Unseen);
                continue;
            }
            let touched = bits(self.touched(cluster, &wanted.bytes));
            let own = NonZeroU64::new(host).filter(|_| copied && !self.is_past_end(host));
            self.check_given_up(mapping)?;
            targets.push(match own {
                Some(_) => match of.data & touched == touched {
                    true => Target::InPlace(host),
                    false => Target::Part(own),
                },
                None if self.guest_file == File::Data => {
                    Target::Part(NonZeroU64::new(self.place_in_data(cluster)))
                }
                None => Target::Part(None),
            });
        }
        Ok(())
    }

    /// What a guest cluster that a request is about to write says, if what is past the end of the file holds nothing; which of its
    /// subclusters the request to `bytes` touches, and whether those read as zeroes.
    fn part(&mut self, guest_cluster: u64, wanted: &Wanted) -> Result<(Mapping, u32, bool), Stop> {
        let mapping = self.mapping(guest_cluster)?;
        let (host, copied, of) = parts(mapping);
        let mapping = if let Mapping::Compressed { .. } = mapping {
            mapping
        } else if !self.is_past_end(host) {
            Mapping::with_subclusters(host, copied, of)
        } else {
            let of = Subclusters { data: 0, zero: of.zero | of.data };
            Mapping::with_subclusters(0, false, of)
        };
        let touched = self.touched(guest_cluster, &wanted.bytes);
        let read_zero = self.reads_zero(guest_cluster, mapping, touched.clone());
        Ok((mapping, bits(touched), read_zero))
    }

    /// Lets these subclusters of a guest cluster read as zeroes. They keep their place in the host cluster, if there is one. Returns whether
    /// it has subclusters: one that is compressed has none, and is left as it is.
    pub(crate) fn zero_subclusters(
        &mut self,
        guest_cluster: u64,
        at: u64,
        subclusters: Range<u64>,
    ) -> Result<bool, Stop> {
        let old = self.mapping_at(guest_cluster, at)?;
        let Some((host, copied, of)) = old.subclusters() else { return Ok(false) };
        if self.reads_zero(guest_cluster, old, subclusters.clone()) {
            return Ok(true);
        }
        self.check_unshared(at)?;
        self.check_table_owned(guest_cluster)?;
        let zeroed = bits(subclusters);
        let data = mutant!(self.rules, ZeroedKeepsData => of.data; of.data & !zeroed);
        let zero = mutant!(self.rules, ZeroedShowsLayer => of.zero; of.zero | zeroed);
        let of = Subclusters { data, zero };
        self.keep(guest_cluster, at, Mapping::with_subclusters(host, copied, of));
        Ok(true)
    }
}

impl<S: Storage> WriteMap<'_, S> {
    /// Gives the first of these guest clusters, `cluster` and those that follow, the places that they need. Returns how many.
    pub(crate) async fn resolve_parts(
        &mut self,
        mut cluster: u64,
        targets: &[Target],
        wanted: &Wanted,
    ) -> Result<usize, IoError> {
        let size = self.image.cluster_size;
        if let Some(&Target::Part(Some(host))) = targets.first() {
            let host = host.get();
            self.fill_touched(cluster, host, wanted, None).await?;
            self.add_extent(cluster, host, wanted.bytes.start, wanted.bytes.end, size);
            return Ok(1);
        }
        let is_new = |target: &&Target| matches!(target, Target::Part(None));
        let count = targets.iter().take_while(is_new).count() as u64;
        let run = self.take(count, wanted.purpose).await?;
        let taken = run.clusters.end - run.clusters.start;
        for host in run.clusters.clone() {
            let host = host * size;
            self.fill_touched(cluster, host, wanted, Some(&run)).await?;
            self.add_extent(cluster, host, wanted.bytes.start, wanted.bytes.end, size);
            cluster += 1;
        }
        self.runs.push(run);
        Ok(usize::try_from(taken).expect("it was wanted"))
    }

    /// Fills what a request to `bytes` leaves of the subclusters that it touches, in the host cluster at `to`, which was taken with the
    /// next `run`; if that is not the guest cluster's own, with all other data that it has. The link to be made is what is left to do.
    async fn fill_touched(
        &mut self,
        cluster: u64,
        to: u64,
        wanted: &Wanted,
        run: Option<&Extent>,
    ) -> Result<(), IoError> {
        let fresh = run.is_some_and(|run| run.fresh);
        let bytes = &wanted.bytes;
        let size = self.image.cluster_size;
        let (start, one) = (cluster * size, size / Subclusters::COUNT);
        let (old, touched, read_zero) =
            self.image.decide(|state| state.part(cluster, wanted)).await?;
        let (host, _, of) = parts(old);
        let decompressed = match old {
            Mapping::Compressed { offset, length, .. } => {
                let entry = L2Entry::compressed(offset, length, size.trailing_zeros());
                let entry = entry.expect("an entry said so");
                Some(Box::pin(self.image.decompress(entry)).await?)
            }
            _ => None,
        };
        let moved = if host == to { 0 } else { of.data };
        // What is moved has to be there before the entry, whatever the request touches.
        let read_zero = mutant!(self.image.options.rules, MovedDataOvertaken => read_zero; read_zero && moved == 0);
        for subcluster in 0..Subclusters::COUNT {
            let whole = subcluster * one..(subcluster + 1) * one;
            let is_touched = touched & 1 << subcluster != 0;
            let has_data = of.data & 1 << subcluster != 0;
            if (has_data && host == to) || (!is_touched && moved & 1 << subcluster == 0) {
                continue;
            }
            let from = bytes.start.saturating_sub(start).clamp(whole.start, whole.end);
            let until = (bytes.end - start).clamp(whole.start, whole.end);
            let pieces = match is_touched && wanted.purpose == Purpose::Write {
                true => [whole.start..from, until..whole.end],
                false => [whole.clone(), 0..0],
            };
            // As far as there is a file.
            let all = self.image.room_in(cluster, to);
            let inside = |piece: Range<u64>| piece.start.min(all)..piece.end.min(all);
            let pieces = pieces.map(inside).into_iter();
            for piece in pieces.filter(|piece| !piece.is_empty()) {
                let content = self.image.now(|state| state.content_of(cluster, old, subcluster));
                let content = content.after(piece.start - whole.start);
                let content = mutant!(self.image.options.rules, SubclusterNotFilled => Content::Zero; content);
                if !fresh || content != Content::Zero {
                    self.fill(
                        start + piece.start,
                        to + piece.start,
                        content,
                        piece.end - piece.start,
                        decompressed.as_ref(),
                    )
                    .await?;
                }
            }
        }
        let zero =
            mutant!(self.image.options.rules, WrittenStaysZero => of.zero; of.zero & !touched);
        let data = mutant!(self.image.options.rules, TakenAheadSaysData => match wanted.purpose {
            Purpose::Keep(_) => !zero,
            _ => of.data | touched,
        }; of.data | touched);
        let of = Subclusters { data, zero };
        let run = run.and_then(|_| NonZeroU32::new(self.runs.len() as u32 + 1));
        self.links.push(NewLink { guest_cluster: cluster, host: to, run, of, read_zero });
        Ok(())
    }

    /// Writes `content`, which is that of the guest's disk from `at` on, to host offset `to`; `whole` is a compressed cluster that it is
    /// part of.
    async fn fill(
        &mut self,
        at: u64,
        to: u64,
        content: Content,
        len: u64,
        whole: Option<&IoBuf>,
    ) -> Result<(), IoError> {
        let image = self.image;
        let len_in_memory = usize::try_from(len).expect("a cluster fits in memory");
        let mut buf = IoBuf::zeroed(len_in_memory, image.limits.alignment);
        if let Some(whole) = whole {
            let from = usize::try_from(at % image.cluster_size).expect("a cluster fits in memory");
            buf.copy_from_slice(&whole[from..from + len_in_memory]);
        } else if content != Content::Zero {
            let extent = ReadExtent { len, source: content.into() };
            let read;
            (buf, read) = image.read_widened(at, &[extent], buf).await;
            read?;
        } else if image.limits.alignment <= storage::UNIT && image.cipher.is_none() {
            let zeroed = self.claim.write_zeroes(to..to + len).await;
            return zeroed.map_err(|source| not_filled(to, source));
        }
        if let Some(cipher) = &image.cipher {
            cipher.encipher(Place { guest: at, host: to }, &mut buf);
        }
        let extent = WriteExtent { len, host: to };
        image.write_widened(&mut self.claim, &[extent], buf, Durability::Cached).await.1
    }
}
