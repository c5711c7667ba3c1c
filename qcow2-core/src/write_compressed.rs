//! Writing guest clusters compressed: each to a stream of its own, where that saves anything.
//!
//! ```text
//!   guest clusters     |    #|########|########|########|##      |
//!                       written  compressed, if it saves  written        what is no whole cluster is written as by any write
//!   entry                        stream, then its entry (data-before-mapping)
//! ```
//!
//! **Invariant.** An entry leads to a stream only when all of that is there: no space reads as a stream before one is written, so nothing
//! overtakes it. What the entry led to before goes the way of any freed cluster.

use std::collections::VecDeque;

use crate::compress::{Compressed, Compressor, Executor};
use crate::error::IoError;
use crate::files::File;
use crate::format::entry::{L2Entry, Mapping};
use crate::format::refcount;
use crate::image::Image;
use crate::map::EntryPlace;
use crate::mutant::mutant;
use crate::state::{State, Stop};
use crate::write::WriteMap;
use storage::{Durability, IoBuf, Storage};

/// Guest clusters of one request that are with the executor at once.
const AT_ONCE: usize = 32;

/// A stream, and the guest cluster that it is to be.
struct Stream<'a> {
    guest_cluster: u64,
    bytes: &'a [u8],
}

impl State {
    /// Checks that the entry of a guest cluster may be given up for another one; says where there is no table for it.
    fn check_replaced(&mut self, guest_cluster: u64) -> Result<Option<u64>, Stop> {
        match self.entry_place_to_change(guest_cluster)? {
            EntryPlace::NoTable(index) => Ok(Some(index)),
            EntryPlace::At(at) => {
                let old = self.mapping_at(guest_cluster, at)?;
                self.check_given_up(old)?;
                self.check_table_owned(guest_cluster)?;
                Ok(None)
            }
        }
    }
}

impl<S: Storage> Image<S> {
    /// Writes `buf` at guest offset `offset`, both multiples of 512 bytes, and compresses the whole clusters of it that this makes shorter, in
    /// work for `executor`: up to 32 clusters at a time. The last cluster of the disk may be cut short; what else is no whole cluster is
    /// written as by [`Image::write`], and so is what does not compress. Where no two clusters can share one, or a cluster is no longer
    /// than a sector of the storage, or where guest data is in an external data file, nothing is compressed. The buffer comes back in every case.
    ///
    /// A compressed cluster that is written to again, in part too, takes a cluster of its own: this is for data that stays, as in an image that
    /// is filled once and kept. Zeroes are compressed like anything else; [`Image::write_zeroes`] takes no space.
    ///
    /// Of two requests at once on the same bytes each cluster, and what is no whole one, has an order of its own.
    ///
    /// With [`Durability::Through`], or on an image opened `write_through`, the data is durable when this returns.
    ///
    /// # Errors
    /// As [`Image::write`], and [`IoError::NotCompressed`]. What came before may be written, and what comes after is not.
    pub async fn write_compressed(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
        executor: &dyn Executor,
    ) -> (IoBuf, Result<(), IoError>) {
        let (size, len) = (self.cluster_size, buf.len() as u64);
        let whole = match self.whole_clusters(offset, len).await {
            Ok(whole) => whole,
            Err(error) => return (buf, Err(error)),
        };
        let (kind, counts, guest_file) = self.now(|state| {
            (state.header.compression_type, state.header.refcount_order, state.guest_file)
        });
        let sector = self.limits.sector();
        // A stream is not enciphered, and so nothing is compressed in an encrypted image.
        let is_plain = mutant!(self.options.rules, StreamInTheClear => true; self.cipher.is_none());
        let may_share = refcount::max(counts) > 1 && guest_file == File::Image && is_plain;
        let gains = may_share && size > sector as u64;
        if whole.is_empty() || !gains {
            return self.write(offset, buf, durability).await;
        }
        let cluster = usize::try_from(size).expect("a cluster fits in memory");
        let compressor = Compressor { kind, cluster, sector };
        let (mut rest, mut done, mut result) = (buf, IoBuf::default(), Ok(()));
        let head = usize::try_from(whole.start * size - offset).expect("it is part of a buffer");
        // What is to be written as it is, in one piece, behind what is done.
        let mut plain = rest.split_to(head);
        let mut guest_cluster = whole.start;
        let mut ahead = VecDeque::new();
        let mut not_started = whole;
        loop {
            while ahead.len() < AT_ONCE && result.is_ok() && !not_started.is_empty() {
                let data = rest.split_to(rest.len().min(cluster));
                ahead.push_back(compressor.start(data, executor));
                not_started.start += 1;
            }
            let Some(compression) = ahead.pop_front() else { break };
            let Compressed { data, outcome } = compression.done().await;
            let stream = match outcome {
                Some(stream) => stream,
                None => {
                    let offset = guest_cluster * size;
                    result = result.and(Err(IoError::NotCompressed { offset }));
                    None
                }
            };
            let mut is_stream = false;
            if let (Some(bytes), true) = (stream, result.is_ok()) {
                (plain, result) = self.write_plain(offset + done.len() as u64, plain).await;
                done.unsplit(std::mem::take(&mut plain));
                if result.is_ok() {
                    let stream = Stream { guest_cluster, bytes: &bytes };
                    match self.write_stream(stream, data.len() as u64).await {
                        Ok(written) => is_stream = written,
                        Err(error) => result = Err(error),
                    }
                }
            }
            if is_stream {
                done.unsplit(data);
            } else {
                plain.unsplit(data);
            }
            guest_cluster += 1;
        }
        plain.unsplit(rest);
        if result.is_ok() {
            (plain, result) = self.write_plain(offset + done.len() as u64, plain).await;
        }
        done.unsplit(plain);
        let through = self.options.write_through || durability == Durability::Through;
        if result.is_ok() && through {
            result = Box::pin(self.flush()).await;
        }
        (done, result)
    }

    /// Writes what is not compressed; durable after the next flush, whatever the image's options say.
    async fn write_plain(&self, offset: u64, data: IoBuf) -> (IoBuf, Result<(), IoError>) {
        if data.is_empty() {
            return (data, Ok(()));
        }
        let mut map = match Box::pin(self.map_to_write(offset, data.len() as u64)).await {
            Ok(map) => map,
            Err(error) => return (data, Err(error)),
        };
        let (data, written) = Box::pin(map.write_data(offset, data, Durability::Cached)).await;
        match written {
            Ok(()) => (data, map.commit().await),
            Err(error) => (data, Err(error)),
        }
    }

    /// Puts a stream into the file and lets the entry of its guest cluster lead to it, if the `len` bytes that it was made of are still all
    /// that there is of the cluster, and an entry can say where it lies.
    async fn write_stream(&self, stream: Stream<'_>, len: u64) -> Result<bool, IoError> {
        let (size, cluster) = (self.cluster_size, stream.guest_cluster);
        let offset = cluster * size;
        let mut map = self.claim_to_write(offset, len).await?;
        // The disk may have become smaller while the claim was waited for; or larger, and then a last cluster that was cut short is not
        // whole any more: somebody may have written to what there is of it now.
        let disk = self.now(|state| state.check_range(offset, len).map(|()| state.header.size))?;
        if mutant!(self.options.rules, GrownClusterCompressed => false; offset + len < disk.min(offset + size))
        {
            return Ok(false);
        }
        while let Some(index) = self.decide(|state| state.check_replaced(cluster)).await? {
            Box::pin(self.add_l2_table(index)).await?;
        }
        map.put_stream(&stream).await
    }
}

impl<S: Storage> WriteMap<'_, S> {
    async fn put_stream(&mut self, stream: &Stream<'_>) -> Result<bool, IoError> {
        let image = self.image;
        let sector = image.limits.sector();
        let mut sectors = vec![0; stream.bytes.len().next_multiple_of(sector)];
        sectors[..stream.bytes.len()].copy_from_slice(stream.bytes);
        let room = Box::pin(image.room_for_stream(&mut self.claim, sectors.len() as u64)).await?;
        let length = stream.bytes.len() as u64;
        let length = mutant!(image.options.rules, StreamLacksItsEnd => length.saturating_sub(512).max(1); length);
        let bits = image.cluster_size.trailing_zeros();
        if L2Entry::compressed(room.offset, length, bits).is_none() {
            // Too far up in the file for a descriptor: the room goes back with the claim.
            return Ok(false);
        }
        let failed = |offset, source| {
            let action = "writing compressed data";
            IoError::Storage { action, offset, source }
        };
        self.put(&sectors, room.offset, failed).await?;
        let mapping = Mapping::Compressed { offset: room.offset, length, copied: false };
        let (claim, mut data) = (&mut self.claim, None);
        image
            .decide(|state| {
                let data = *data.get_or_insert_with(|| state.clock.stamp(File::Image));
                state.link_stream(stream.guest_cluster, mapping, &room, data)?;
                // In the same step: what is referred to is not given back.
                claim.clusters.clear();
                Ok(())
            })
            .await?;
        Ok(true)
    }
}
