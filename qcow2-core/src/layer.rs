//! The layer below an image: what its guest reads where the image itself says nothing.
//!
//! ```text
//!   guest disk         |  image  | below | image |  zero  | below  |  zero            |
//!                           │        ▲                        ▲       past the end of the layer below
//!                           └────────┴──── nothing allocated ─┘
//! ```
//!
//! **Invariant.** Nobody changes a layer while an image is open over it. It is only read here, whatever state it is in: of a dirty
//! image only refcounts may be wrong, and reading asks for none.
//!
//! A chain is read layer by layer: each fills what it has and says where the next one shows, so that a long chain takes no more of the
//! stack than a short one.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use crate::error::IoError;
use crate::mutant::mutant;
use crate::rule::Rules;
use crate::transfer::read_whole;
use storage::{IoBuf, Storage, UNIT};

/// What a read from a layer becomes: the buffer, and whether it is filled.
pub type LayerRead<'a> = Pin<Box<dyn Future<Output = (IoBuf, Result<(), IoError>)> + Send + 'a>>;

/// What a read of what a layer itself has becomes: the buffer, and where in the range the layer below it shows, ascending and apart from each
/// other, as offsets of the guest.
pub type OwnRead<'a> =
    Pin<Box<dyn Future<Output = (IoBuf, Result<Vec<Range<u64>>, IoError>)> + Send + 'a>>;

/// What is known of a range of a layer without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It reads as zeroes.
    Zeroes,
    /// It reads as the layer below this one does.
    Below,
    /// Nothing.
    Nothing,
}

/// What asking a layer what it knows becomes: of how many bytes, and what that is.
pub type OwnKnown<'a> = Pin<Box<dyn Future<Output = (u64, Known)> + Send + 'a>>;

/// A disk that is read through an image above it: a raw one ([`Raw`]), another [`Image`](crate::Image), or anything else that has bytes.
pub trait Layer: fmt::Debug + Send + Sync + 'static {
    /// Length in bytes; constant. What lies behind it reads as zeroes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`, both multiples of 512 bytes, with what is inside the length, and zeroes from the end to the end of
    /// its unit; no unit behind that one is asked for. The buffer comes back in every case.
    fn read(&self, offset: u64, buf: IoBuf) -> LayerRead<'_>;

    /// The layer below this one, if it has one that [`read_own`](Self::read_own) leaves anything to.
    fn below(&self) -> Option<&dyn Layer> {
        None
    }

    /// As [`read`](Self::read), but for what the layer below shows: what the buffer holds there means nothing. Whoever has no layer below
    /// that it speaks of reads everything itself.
    fn read_own(&self, offset: u64, buf: IoBuf) -> OwnRead<'_> {
        Box::pin(async move {
            let (buf, read) = self.read(offset, buf).await;
            (buf, read.map(|()| Vec::new()))
        })
    }

    /// What is known without reading it of the first of `len` bytes from `offset` on, for who would rather not read what is zeroes: of how
    /// many of them, 512 at least, and what. Both are multiples of 512 bytes, and all of it is inside the length but for the rest of its
    /// last unit. Whoever knows nothing says so of all of it, and so does whoever fails to find out: reading it will tell.
    fn known_own(&self, offset: u64, len: u64) -> OwnKnown<'_> {
        let _ = offset;
        Box::pin(std::future::ready((len, Known::Nothing)))
    }
}

/// A layer whose bytes are the guest's, one to one.
#[derive(Debug)]
pub struct Raw<S> {
    storage: S,
    size: u64,
}

impl<S: Storage> Raw<S> {
    /// All of `storage` as a layer, as long as it is now.
    ///
    /// # Errors
    /// What asking for its length met, or that it has limits that nothing can be read under.
    pub async fn new(storage: S) -> Result<Self, IoError> {
        if let Some(why) = storage.limits().fault() {
            return Err(IoError::Unsupported(why));
        }
        let size = storage.len().await.map_err(|source| IoError::Storage {
            action: "asking for the length of a layer",
            offset: 0,
            source,
        })?;
        Ok(Self { storage, size })
    }

    async fn read_whole(&self, offset: u64, buf: IoBuf) -> (IoBuf, Result<(), IoError>) {
        let limits = self.storage.limits();
        let sector = limits.sector();
        let fits = offset.is_multiple_of(sector as u64)
            && buf.len().is_multiple_of(sector)
            && buf.is_aligned(limits.alignment);
        let (mut whole, mut wanted) = (buf, IoBuf::default());
        let from = offset - offset % sector as u64;
        let skip = usize::try_from(offset - from).expect("less than a sector");
        if !fits {
            let len = (skip + whole.len()).next_multiple_of(sector);
            wanted = std::mem::replace(&mut whole, IoBuf::zeroed(len, limits.alignment));
        }
        let (whole, read) = read_whole(&self.storage, from, whole).await;
        let action = "reading data";
        let read = read.map_err(|(offset, source)| IoError::Storage { action, offset, source });
        if fits {
            return (whole, read);
        }
        if read.is_ok() {
            let len = wanted.len();
            wanted.copy_from_slice(&whole[skip..skip + len]);
        }
        (wanted, read)
    }
}

impl<S: Storage + fmt::Debug> Layer for Raw<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: IoBuf) -> LayerRead<'_> {
        Box::pin(self.read_whole(offset, buf))
    }

    fn known_own(&self, offset: u64, len: u64) -> OwnKnown<'_> {
        Box::pin(async move {
            let (of, is_hole) = self.storage.is_hole(offset, len).await;
            let unit = UNIT as u64;
            // A unit of which a part is a hole is read.
            match of / unit * unit {
                whole if is_hole && whole > 0 => (whole, Known::Zeroes),
                _ if is_hole => (unit, Known::Nothing),
                _ => (of.next_multiple_of(unit), Known::Nothing),
            }
        })
    }
}

/// What an open image keeps of the layer below it.
#[derive(Clone, Debug)]
pub(crate) struct Below {
    pub(crate) layer: Arc<dyn Layer>,
    /// Its length in bytes.
    pub(crate) size: u64,
}

impl Below {
    pub(crate) fn new(layer: Arc<dyn Layer>) -> Self {
        let size = layer.size();
        Self { layer, size }
    }

    /// Fills `buf` from `offset`; past the end reads as zeroes.
    pub(crate) async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, Result<(), IoError>) {
        let mut pieces = vec![Piece { at: offset, buf, open: true }];
        let mut layer: Option<&dyn Layer> = Some(&*self.layer);
        let mut deep = 0;
        while let Some(this) = layer.filter(|_| pieces.iter().any(|piece| piece.open)) {
            deep += 1;
            let mut next = Vec::new();
            let mut failed = None;
            for piece in pieces {
                if !piece.open || failed.is_some() {
                    next.push(piece);
                    continue;
                }
                let Piece { at, buf: mut behind, .. } = piece;
                let within = this.size().saturating_sub(at).next_multiple_of(UNIT as u64);
                let within = usize::try_from(within).unwrap_or(usize::MAX).min(behind.len());
                let mut inside = behind.split_to(within);
                behind.fill(0);
                let mut shows = Vec::new();
                if within > 0 {
                    let read;
                    (inside, read) = this.read_own(at, inside).await;
                    match read {
                        Ok(below) => shows = below,
                        Err(error) => failed = Some(error),
                    }
                }
                let mut from = at;
                for shown in shows {
                    for (end, open) in [(shown.start, false), (shown.end, true)] {
                        let len = usize::try_from(end - from).expect("it is a part of the buffer");
                        next.push(Piece { at: from, buf: inside.split_to(len), open });
                        from = end;
                    }
                }
                inside.unsplit(behind);
                next.push(Piece { at: from, buf: inside, open: false });
            }
            pieces = next;
            if let Some(error) = failed {
                let wrapped = (0..deep).fold(error, |error, _| IoError::Below(Box::new(error)));
                return (whole(pieces), Err(wrapped));
            }
            layer = this.below();
        }
        (whole(pieces), Ok(()))
    }
}

impl Below {
    /// Whether the first of `len` bytes from `offset` on, both multiples of 512, are known to read as zeroes, and how many that holds for.
    pub(crate) async fn knows_zeroes(
        &self,
        offset: u64,
        mut len: u64,
        rules: Rules,
    ) -> (u64, bool) {
        let mut layer: Option<&dyn Layer> = Some(&*self.layer);
        while let Some(this) = layer {
            let inside = this.size().saturating_sub(offset).next_multiple_of(UNIT as u64);
            if inside == 0 {
                return (len, true);
            }
            len = len.min(inside);
            let (of, known) = this.known_own(offset, len).await;
            len = of.clamp((UNIT as u64).min(len), len);
            match known {
                Known::Zeroes => return (len, true),
                Known::Nothing => break,
                Known::Below => {
                    mutant!(rules, KnownBelowIsZeroes => return (len, true); layer = this.below())
                }
            }
        }
        (len, false)
    }
}

/// A part of a buffer that is filled from guest offset `at` on.
struct Piece {
    at: u64,
    buf: IoBuf,
    /// Whether that is still to be done, by the next layer.
    open: bool,
}

/// The buffer that these are all parts of, in order.
fn whole(pieces: Vec<Piece>) -> IoBuf {
    let mut all = IoBuf::default();
    pieces.into_iter().for_each(|piece| all.unsplit(piece.buf));
    all
}
