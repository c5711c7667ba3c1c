//! Reading: resolve a guest range to host extents, then move the bytes.

use std::fmt;

use smallvec::SmallVec;

use crate::content::Content;
use crate::crypt::Place;
use crate::error::IoError;
use crate::files::{File, failed, in_data, place};
use crate::format::entry::{L2Entry, Mapping};
use crate::image::Image;
use crate::layer::{Known, Layer, LayerRead, OwnKnown, OwnRead};
use crate::map::Entries;
use crate::mutant::mutant;
use crate::state::{State, Stop};
use storage::{IoBuf, Storage, UNIT};

/// Most guest clusters that are looked at in one step.
const AT_ONCE: u64 = 1024;

/// Where a piece of a guest range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadExtent {
    /// Length in bytes.
    pub len: u64,
    /// What its bytes are.
    pub source: Source,
}

/// Where the bytes of a piece of a guest range come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The guest reads zeroes.
    Zeroes,
    /// The image file, from this byte on.
    Host(u64),
    /// The image file, from this byte on, enciphered. [`Image::read`] deciphers it.
    Enciphered(u64),
    /// The external data file, from this byte on, which is the guest's own offset. [`Image::data_file`] has it.
    Data(u64),
    /// The layer below, at the guest's own offset; past its end it reads as zeroes. [`Image::below`] has it.
    Below,
    /// The stream that this entry of the L2 table describes, at the guest's own place in the cluster that it gives. [`Image::read`]
    /// decompresses it.
    Compressed(L2Entry),
}

impl Source {
    /// The host offset in bytes, if it is in the image file.
    pub const fn host(self) -> Option<u64> {
        match self {
            Self::Host(offset) | Self::Enciphered(offset) => Some(offset),
            Self::Zeroes | Self::Data(_) | Self::Below | Self::Compressed(_) => None,
        }
    }

    /// The host address, if it is in a file as it is.
    pub(crate) const fn address(self) -> Option<u64> {
        match self {
            Self::Host(offset) | Self::Enciphered(offset) => Some(offset),
            Self::Data(offset) => Some(in_data(offset)),
            Self::Zeroes | Self::Below | Self::Compressed(_) => None,
        }
    }

    /// What follows it after so many bytes, if it goes on as it is.
    const fn after(self, len: u64) -> Self {
        match self {
            Self::Host(offset) => Self::Host(offset + len),
            Self::Enciphered(offset) => Self::Enciphered(offset + len),
            Self::Data(offset) => Self::Data(offset + len),
            Self::Zeroes => Self::Zeroes,
            Self::Below => Self::Below,
            Self::Compressed(entry) => Self::Compressed(entry),
        }
    }
}

impl From<Content> for Source {
    fn from(content: Content) -> Self {
        match content {
            Content::Zero => Self::Zeroes,
            Content::Host(host) => match place(host) {
                (File::Image, offset) => Self::Host(offset),
                (File::Data, offset) => Self::Data(offset),
            },
            Content::Below(_) => Self::Below,
            Content::Stream(entry) => Self::Compressed(entry),
        }
    }
}

type Extents = SmallVec<[ReadExtent; 1]>;

/// The extents of a guest range, in order. While it lives, none of them is handed to another guest cluster.
#[derive(Debug)]
pub struct ReadMap<'a, S: Storage> {
    image: &'a Image<S>,
    ticket: Option<u64>,
    extents: Extents,
}

impl<S: Storage> ReadMap<'_, S> {
    /// The extents, in guest order, neighbours merged.
    pub fn extents(&self) -> &[ReadExtent] {
        &self.extents
    }
}

impl<S: Storage> Drop for ReadMap<'_, S> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.image.now(|state| state.end_read(ticket));
        }
    }
}

/// Appends what so many bytes of clusters, or subclusters, of `size` bytes are, from `at` on, which goes on behind them.
#[inline(always)]
fn push(extents: &mut Extents, at: &mut u64, end: u64, bytes: u64, size: u64, source: Source) {
    let within = *at % size;
    let len = (bytes - within).min(end - *at);
    let source = source.after(within);
    match extents.last_mut() {
        Some(last) if last.source.after(last.len) == source => last.len += len,
        _ => extents.push(ReadExtent { len, source }),
    }
    *at += len;
}

impl State {
    /// Appends the extents of `at..end` to `extents`, as far as the cache knows them; returns how far that is.
    fn resolve(&mut self, extents: &mut Extents, mut at: u64, end: u64) -> Result<u64, Stop> {
        let size = self.cluster_size();
        let start = at;
        let end = end.min((at / size + AT_ONCE).saturating_mul(size));
        while at < end {
            match self.entries(at / size..end.div_ceil(size), AT_ONCE) {
                Ok(Entries::NoTable { clusters }) => {
                    // What is behind the end of a layer comes in the next turn.
                    let (clusters, source) = match self.shown().saturating_sub(at / size) {
                        0 => (clusters, Source::Zeroes),
                        shown => (shown.min(clusters), Source::Below),
                    };
                    push(extents, &mut at, end, clusters * size, size, source);
                }
                Ok(Entries::At { slot, at: place, count }) if self.extended => {
                    for place in (place..).step_by(16).take(count) {
                        let (cluster, mapping) =
                            (at / size, self.mapping_in(at / size, slot, place)?);
                        if let Mapping::Mixed { .. } = mapping {
                            let one = self.subcluster_size();
                            while at < end && at / size == cluster {
                                let of = mutant!(self.rules, ReadAsFirstSubcluster => 0; at % size / one);
                                let content = self.content_of(cluster, mapping, of);
                                push(extents, &mut at, end, one, one, content.into());
                            }
                        } else {
                            let content = self.content(cluster, mapping);
                            push(extents, &mut at, end, size, size, content.into());
                        }
                    }
                }
                Ok(Entries::At { slot, at: place, count }) => {
                    let places = (place..).step_by(8);
                    for (entry, place) in self.cache.entries(slot, place, count).zip(places) {
                        let cluster = at / size;
                        let content = self.content(cluster, self.decode(cluster, entry, place)?);
                        push(extents, &mut at, end, size, size, content.into());
                    }
                }
                Err(Stop::Load { .. }) if at > start => break,
                Err(stop) => return Err(stop),
            }
        }
        Ok(at)
    }
}

impl<S: Storage> Image<S> {
    /// Resolves a guest range; `offset` and `len` are multiples of 512 bytes. Whoever reads the extents on a storage of longer sectors
    /// reads whole ones: an extent shares none with another cluster.
    ///
    /// # Errors
    /// [`IoError::OutOfRange`], [`IoError::Unaligned`], or what reading or decoding the tables met.
    pub async fn map_read(&self, offset: u64, len: u64) -> Result<ReadMap<'_, S>, IoError> {
        let mut map = self.map_to_read(offset, len).await?;
        if self.cipher.is_some() {
            for extent in &mut map.extents {
                if let Source::Host(host) = extent.source {
                    extent.source = Source::Enciphered(host);
                }
            }
        }
        Ok(map)
    }

    async fn map_to_read(&self, offset: u64, len: u64) -> Result<ReadMap<'_, S>, IoError> {
        let mut map = ReadMap { image: self, ticket: None, extents: Extents::new() };
        let mut at = offset;
        loop {
            let (now, end) = self
                .look(|state| {
                    state.check_range(offset, len)?;
                    map.ticket.get_or_insert_with(|| state.begin_read());
                    Ok((state.resolve(&mut map.extents, at, offset + len)?, offset + len))
                })
                .await?;
            at = now;
            if at == end {
                return Ok(map);
            }
        }
    }

    /// What its own tables say of the first of `len` bytes from `offset` on, both multiples of 512 bytes: of how many of them, and what. Looks at no
    /// more than twice as many as that.
    pub(crate) async fn alike(&self, offset: u64, len: u64) -> Result<(u64, Known), IoError> {
        let size = self.cluster_size;
        let known = |extent: &ReadExtent| match extent.source {
            Source::Zeroes => Known::Zeroes,
            Source::Below => Known::Below,
            _ => Known::Nothing,
        };
        let mut extents = Extents::new();
        let mut alike = |state: &mut State| {
            state.check_range(offset, len)?;
            extents.clear();
            let (mut at, mut step) = (offset, size);
            loop {
                let to = (at + step).min(offset + len);
                at = match state.resolve(&mut extents, at, to) {
                    Ok(now) if now == to => now,
                    Err(stop) if at == offset => return Err(stop),
                    _ => break,
                };
                let is_other = |extent: &ReadExtent| known(extent) != known(&extents[0]);
                if at == offset + len || step >= size * AT_ONCE || extents.iter().any(is_other) {
                    break;
                }
                step *= 2;
            }
            let first = extents.first().map_or(Known::Nothing, known);
            let alike = extents.iter().take_while(|extent| known(extent) == first);
            Ok((alike.map(|extent| extent.len).sum(), first))
        };
        self.look(&mut alike).await
    }

    /// Fills `buf` from guest offset `offset` of the layer below.
    pub(crate) async fn read_below(&self, offset: u64, buf: IoBuf) -> (IoBuf, Result<(), IoError>) {
        match &self.below {
            Some(below) => below.read(offset, buf).await,
            None => unreachable!("only where there is a layer below does anything read as it does"),
        }
    }

    /// Reads `buf.len()` bytes at guest offset `offset`, both multiples of 512 bytes. The buffer comes back in every case.
    ///
    /// # Errors
    /// As [`Image::map_read`], or the storage's own.
    pub async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, Result<(), IoError>) {
        let map = match self.map_to_read(offset, buf.len() as u64).await {
            Ok(map) => map,
            Err(error) => return (buf, Err(error)),
        };
        // Most are one extent: the buffer goes to the storage as it is.
        if let [ReadExtent { source, .. }] = *map.extents()
            && let Some(host) = source.address()
            && buf.len() <= self.limits.max_transfer
            && (self.limits.alignment <= UNIT || self.takes(offset, &buf))
        {
            let (mut buf, read) = self.files.read(host, buf).await;
            if let Some(cipher) = &self.cipher {
                cipher.decipher(Place { guest: offset, host }, &mut buf);
            }
            return (buf, read.map_err(|source| failed("reading data", host, source)));
        }
        if map.extents().iter().any(|extent| extent.source == Source::Below) {
            return Box::pin(self.read_and_copy(offset, map, buf)).await;
        }
        self.read_extents(offset, map.extents(), buf).await
    }

    /// Reads extents into `buf`, the first of which is at guest offset `offset`.
    async fn read_extents(
        &self,
        offset: u64,
        extents: &[ReadExtent],
        buf: IoBuf,
    ) -> (IoBuf, Result<(), IoError>) {
        let plain = |extent: &ReadExtent| {
            matches!(extent.source, Source::Host(_) | Source::Data(_) | Source::Zeroes)
        };
        // Subclusters may be shorter than sectors.
        let whole_sectors = || {
            let sector = self.limits.sector() as u64;
            extents.iter().all(|extent| extent.len.is_multiple_of(sector))
        };
        if !extents.iter().all(plain)
            || self.limits.alignment > UNIT && !(self.takes(offset, &buf) && whole_sectors())
        {
            return Box::pin(self.read_widened(offset, extents, buf)).await;
        }
        let mut rest = buf;
        let mut done = IoBuf::default();
        for extent in extents {
            let mut len = usize::try_from(extent.len).expect("it is part of a buffer");
            let mut host = extent.source.address();
            while len > 0 {
                let mut piece = rest.split_to(len.min(self.limits.max_transfer));
                len -= piece.len();
                if let Some(at) = host {
                    let read;
                    (piece, read) = self.files.read(at, piece).await;
                    if let Err(source) = read {
                        piece.unsplit(rest);
                        done.unsplit(piece);
                        return (done, Err(failed("reading data", at, source)));
                    }
                    if let Some(cipher) = &self.cipher {
                        let guest = offset + done.len() as u64;
                        cipher.decipher(Place { guest, host: at }, &mut piece);
                    }
                    host = Some(at + piece.len() as u64);
                } else {
                    mutant!(self.options.rules, ZeroesTakenFromBuffer => (); piece.fill(0));
                }
                done.unsplit(piece);
            }
        }
        done.unsplit(rest);
        (done, Ok(()))
    }
}

impl<S: Storage + fmt::Debug> Layer for Image<S> {
    fn size(&self) -> u64 {
        self.info().virtual_size
    }

    fn read(&self, offset: u64, buf: IoBuf) -> LayerRead<'_> {
        Box::pin(Self::read(self, offset, buf))
    }

    fn below(&self) -> Option<&dyn Layer> {
        Self::below(self)
    }

    fn read_own(&self, offset: u64, buf: IoBuf) -> OwnRead<'_> {
        Box::pin(async move {
            let map = match self.map_to_read(offset, buf.len() as u64).await {
                Ok(map) => map,
                Err(error) => return (buf, Err(error)),
            };
            let (mut at, mut shows) = (offset, Vec::new());
            let own: Extents = map
                .extents()
                .iter()
                .map(|extent| {
                    let from = at;
                    at += extent.len;
                    let mut source = extent.source;
                    if source == Source::Below {
                        shows.push(mutant!(self.options.rules, ShowsFirstUnit => from..at.min(from + UNIT as u64); from..at));
                        source = Source::Zeroes;
                    }
                    ReadExtent { source, ..*extent }
                })
                .collect();
            let (buf, read) = self.read_extents(offset, &own, buf).await;
            (buf, read.map(|()| shows))
        })
    }

    fn known_own(&self, offset: u64, len: u64) -> OwnKnown<'_> {
        Box::pin(async move { self.alike(offset, len).await.unwrap_or((len, Known::Nothing)) })
    }
}
