//! The layer below the images of a campaign: a disk that never changes and holds what [`model::payload::below`] says. It is raw. Of every other
//! hole it knows that it is one; what zeroes else there are is seen by who reads them.
//!
//! An implementation that reads chains is given the same content in up to two images over a raw disk ([`Base::chain`]). Which layer has a
//! cluster changes from cluster to cluster, and what is below it there is wrong:
//!
//! ```text
//!   image 2   | data  |   -   |   -   | zero  |   -   |   -   |
//!   image 1   | wrong | data  |   -   | wrong | zero  |   -   |
//!   raw       | wrong | wrong | data  | wrong | wrong | zeroes|
//! ```

use std::cell::RefCell;
use std::sync::Arc;

use model::op::Geometry;
use model::payload::{self, UNIT, Value, ZEROES};
use qcow2_core::blocking;
use qcow2_core::storage::IoBuf;
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{
    Backing, CreateOptions, Format, Image, Known, Layer, LayerRead, OpenOptions, OwnKnown, Rules,
    Zeroing,
};

/// Units from the beginning of a hole to that of the next.
const HOLES: u64 = 24;

/// Bytes of a cluster of the images of a chain, as a power of two: holes have four of them.
const CLUSTER_BITS: u32 = 10;

/// A chain that was made, and as what.
type Made = (Base, Rules, Arc<dyn Layer>);

thread_local! {
    /// The chains that this thread has made.
    static CHAINS: RefCell<Vec<Made>> = const { RefCell::new(Vec::new()) };
}

/// Such a layer of so many bytes, a multiple of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    size: u64,
}

impl Base {
    /// The layer below images of a geometry, if there is one.
    pub fn of(geometry: &Geometry) -> Option<Self> {
        geometry.below.map(Self::new)
    }

    /// One of so many bytes.
    pub const fn new(size: u64) -> Self {
        Self { size }
    }

    /// The same for whoever opens an image over it.
    pub fn shared(self) -> Arc<dyn Layer> {
        Arc::new(self)
    }

    /// The same, of up to two images over a raw disk, read by an implementation that obeys `rules`. How many they are goes by the length.
    pub fn chain(self, rules: Rules) -> Arc<dyn Layer> {
        let images = self.size / UNIT as u64 % 3;
        if images == 0 {
            return self.shared();
        }
        CHAINS.with_borrow_mut(|chains| {
            if let Some((.., chain)) =
                chains.iter().find(|(base, by, _)| (*base, *by) == (self, rules))
            {
                return chain.clone();
            }
            let mut layer: Arc<dyn Layer> = Arc::new(Bottom { base: self, images });
            for image in 1..=images {
                layer = Arc::new(self.image(layer, image, images, rules));
            }
            // Rules change with each rule that is taken away, and lengths with each case.
            if chains.len() >= 64 {
                chains.clear();
            }
            chains.push((self, rules, layer.clone()));
            layer
        })
    }

    /// One of the images of a chain, from the bottom up.
    fn image(
        self,
        below: Arc<dyn Layer>,
        image: u64,
        images: u64,
        rules: Rules,
    ) -> Image<MemoryStorage> {
        let done = "a disk of a campaign fits in memory";
        let storage = MemoryStorage::default();
        let options = CreateOptions::new(self.size).cluster_bits(CLUSTER_BITS);
        blocking::create_over(&storage, &options, &Backing::new("below", Format::Raw)).expect(done);
        let made = blocking::Image::open_over(storage.clone(), below.clone(), OpenOptions::new())
            .expect(done);
        let cluster = 1 << CLUSTER_BITS;
        for at in (0..self.size).step_by(cluster) {
            let mut bytes = vec![0; cluster.min((self.size - at) as usize)];
            match owner(at, images) {
                owner if owner == image => self.fill(at, &mut bytes),
                owner if owner > image && !(at / cluster as u64).is_multiple_of(4) => {
                    hide(at, &mut bytes)
                }
                _ => continue,
            }
            match bytes.iter().all(|&byte| byte == 0) {
                true => made.write_zeroes(at, bytes.len() as u64, Zeroing::Keep).expect(done),
                false => made.write(at, &bytes).expect(done),
            }
        }
        made.close().expect(done);
        let options = OpenOptions::read_only().rules(rules);
        blocking::block_on(Image::open_over(storage, below, options)).expect(done)
    }

    /// Fills `bytes` with what is there from `offset` on, both multiples of 512 bytes.
    pub fn fill(&self, offset: u64, bytes: &mut [u8]) {
        let units = self.size / UNIT as u64;
        for (unit, bytes) in (offset / UNIT as u64..).zip(bytes.as_chunks_mut::<UNIT>().0) {
            *bytes = match payload::below(unit) {
                Value::Tag { unit, id } if unit < units => payload::unit(unit, id),
                _ => ZEROES,
            };
        }
    }

    /// All of it, for a file.
    pub fn to_bytes(self) -> Vec<u8> {
        let len = usize::try_from(self.size).expect("a disk of a campaign fits in memory");
        let mut bytes = vec![0; len];
        self.fill(0, &mut bytes);
        bytes
    }
}

impl Layer for Base {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> LayerRead<'_> {
        self.fill(offset, &mut buf);
        Box::pin(std::future::ready((buf, Ok(()))))
    }

    fn known_own(&self, offset: u64, len: u64) -> OwnKnown<'_> {
        let known = |unit| payload::is_hole(unit) && (unit / HOLES).is_multiple_of(2);
        let (first, end) = (offset / UNIT as u64, (offset + len) / UNIT as u64);
        let alike = (first..end).take_while(|&unit| known(unit) == known(first)).count();
        let what = if known(first) { Known::Zeroes } else { Known::Nothing };
        Box::pin(std::future::ready((alike as u64 * UNIT as u64, what)))
    }
}

/// Which layer of a chain has the cluster at this offset: 0 is the raw disk, and the last image the highest.
fn owner(offset: u64, images: u64) -> u64 {
    let cluster = offset >> CLUSTER_BITS;
    // Neighbours in one layer, too.
    (cluster + cluster / 3) % (images + 1)
}

/// Fills `bytes` with what nobody may see there.
fn hide(offset: u64, bytes: &mut [u8]) {
    for (unit, bytes) in (offset / UNIT as u64..).zip(bytes.as_chunks_mut::<UNIT>().0) {
        *bytes = payload::unit(unit, payload::STALE);
    }
}

/// The raw disk of a chain.
#[derive(Debug)]
struct Bottom {
    base: Base,
    images: u64,
}

impl Layer for Bottom {
    fn size(&self) -> u64 {
        self.base.size
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> LayerRead<'_> {
        self.base.fill(offset, &mut buf);
        for (at, unit) in (offset..).step_by(UNIT).zip(buf.chunks_mut(UNIT)) {
            if owner(at, self.images) > 0 {
                hide(at, unit);
            }
        }
        Box::pin(std::future::ready((buf, Ok(()))))
    }

    fn known_own(&self, offset: u64, len: u64) -> OwnKnown<'_> {
        let rest = (1 << CLUSTER_BITS) - offset % (1 << CLUSTER_BITS);
        match owner(offset, self.images) {
            0 => self.base.known_own(offset, len.min(rest)),
            _ => Box::pin(std::future::ready((len.min(rest), Known::Nothing))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a chain has the content of the raw disk, and each of its layers knows some zeroes. Method: lengths for each number of images, one
    /// that ends inside a cluster, read whole and copied.
    #[test]
    fn a_chain_reads_as_the_raw_disk() {
        for units in [48u64, 49, 50, 145, 146] {
            let base = Base::new(units * UNIT as u64);
            let chain = base.chain(Rules::all());
            assert_eq!(chain.size(), base.size);
            let images = std::iter::successors(chain.below(), |layer| layer.below()).count();
            assert_eq!(images as u64, units % 3);
            let layers = std::iter::successors(Some(&*chain), |layer| layer.below());
            for layer in layers.take_while(|_| units > 100) {
                let knows = |at| blocking::block_on(layer.known_own(at, 512)).1 == Known::Zeroes;
                assert!((0..base.size).step_by(512).any(knows), "{layer:?}");
            }
            let storage = MemoryStorage::default();
            let options = CreateOptions::new(base.size);
            let backing = Backing::new("below", Format::Qcow2);
            blocking::create_over(&storage, &options, &backing).unwrap();
            let top = blocking::Image::open_over(storage, chain, OpenOptions::new()).unwrap();
            let mut bytes = vec![0; base.size as usize];
            top.read(0, &mut bytes).unwrap();
            assert!(bytes == base.to_bytes(), "{units} units");
            top.copy_up(0, base.size).unwrap();
            top.set_backing(None).unwrap();
            top.read(0, &mut bytes).unwrap();
            assert!(bytes == base.to_bytes(), "{units} units, copied");
        }
    }

    /// Goal: each layer of a chain matters. Method: which layer has a cluster, counted.
    #[test]
    fn every_layer_of_a_chain_has_some_of_it() {
        for images in 1..=2 {
            let mut seen = [[0; 2]; 3];
            for unit in 0..256 {
                let zero = payload::below(unit) == Value::Zero;
                seen[owner(unit * UNIT as u64, images) as usize][usize::from(zero)] += 1;
            }
            let seen = &seen[..=images as usize];
            assert!(seen.iter().flatten().all(|&units| units >= 16), "{seen:?}");
        }
    }
}
