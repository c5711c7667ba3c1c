//! Images to damage by hand.

use model::build::{Built, Initial, build};
use model::evidence::{BytesEvidence, Readable};
use model::finding::Stage;
use model::guest::Guest;
use model::image::COPIED;
use model::mistake::Mistake;
use model::op::{DataFile, Encryption, Geometry};
use model::payload::{self, Unit};

use crate::guest::PROMISES;

/// 8 clusters of 16 KiB, whose subclusters are units. As `Fragmented` guest cluster 0 is mixed, 2 has zeroes and no host cluster, 4 has
/// one for nothing but zeroes, 6 is all data, and nothing is said of the others.
pub(crate) const EXTENDED: Geometry =
    Geometry { cluster_bits: 14, virtual_size: 128 << 10, extended_l2: true, ..KIB };

pub(crate) const KIB: Geometry = Geometry::plain(10, 64 << 10);

/// The same with guest data in a file of its own. As `Fragmented` guest clusters 0 and 30 have data, 10 is marked as zero and has no host
/// cluster, 20 is and has one, and odd ones are mapped nowhere.
pub(crate) const PLAIN: Geometry = Geometry { data_file: Some(DataFile::Plain), ..KIB };

/// The same, and that file is the disk.
pub(crate) const RAW: Geometry = Geometry { data_file: Some(DataFile::Raw), ..KIB };

/// The same in one file, and encrypted.
pub(crate) const AES: Geometry = Geometry { encryption: Some(Encryption::Aes), ..KIB };

/// The same with a LUKS header, of 1028 clusters behind the refcount blocks; its extension is the first one, at 112.
pub(crate) const LUKS: Geometry = Geometry { encryption: Some(Encryption::Luks), ..KIB };

/// An image under the knife. With 1 KiB clusters: header 0, refcount table 1, its only block 2, L1 3, then `Fragmented` puts
/// the only L2 table somewhere behind.
pub(crate) struct Patient {
    pub(crate) disk: BytesEvidence,
    built: Built,
    geometry: Geometry,
}

impl Patient {
    pub(crate) fn new(initial: Initial) -> Self {
        Self::of(&KIB, initial)
    }

    pub(crate) fn of(geometry: &Geometry, initial: Initial) -> Self {
        let built = build(geometry, initial).expect("small images of most kinds are feasible");
        Self { disk: built.evidence(), built, geometry: *geometry }
    }

    pub(crate) fn u64_at(&mut self, offset: u64) -> u64 {
        let key = self.disk.resolve(offset / 512);
        let at = (offset % 512) as usize;
        u64::from_be_bytes(self.disk.bytes(key)[at..at + 8].try_into().expect("eight bytes"))
    }

    pub(crate) fn put_u64(&mut self, offset: u64, value: u64) {
        self.disk.patch(offset, &value.to_be_bytes());
    }

    pub(crate) fn put_refcount(&mut self, cluster: u64, count: u64) {
        let order = self.geometry.refcount_order;
        let table = self.u64_at(48);
        let block = self.u64_at(table + cluster / self.geometry.block_entries() * 8);
        let bit = (cluster % self.geometry.block_entries()) << order;
        let at = block + bit / 8;
        if order < 3 {
            let held = self.byte_at(at) & !(((1u8 << (1 << order)) - 1) << (bit % 8));
            self.disk.patch(at, &[held | (count as u8) << (bit % 8)]);
        } else {
            let bytes = 1 << (order - 3);
            self.disk.patch(at, &count.to_be_bytes()[8 - bytes..]);
        }
    }

    fn byte_at(&mut self, offset: u64) -> u8 {
        let key = self.disk.resolve(offset / 512);
        self.disk.bytes(key)[(offset % 512) as usize]
    }

    /// Where the L1 entry of a guest cluster is.
    pub(crate) fn l1_at(&mut self, guest: u64) -> u64 {
        self.u64_at(40) + guest / self.geometry.l2_entries() * 8
    }

    pub(crate) fn l2_at(&mut self, guest: u64) -> u64 {
        let at = self.l1_at(guest);
        let entry = self.u64_at(at);
        (entry & !COPIED) + guest % self.geometry.l2_entries() * self.geometry.l2_entry_size()
    }

    pub(crate) fn l2(&mut self, guest: u64) -> u64 {
        let at = self.l2_at(guest);
        self.u64_at(at)
    }

    pub(crate) fn set_l2(&mut self, guest: u64, entry: u64) {
        let at = self.l2_at(guest);
        self.put_u64(at, entry);
    }

    /// Which subclusters of a guest cluster are what, where L2 entries are extended.
    pub(crate) fn subclusters(&mut self, guest: u64) -> u64 {
        let at = self.l2_at(guest);
        self.u64_at(at + 8)
    }

    pub(crate) fn set_subclusters(&mut self, guest: u64, bitmap: u64) {
        let at = self.l2_at(guest);
        self.put_u64(at + 8, bitmap);
    }

    /// The directory of bitmaps, in an image that has some.
    pub(crate) fn directory(&mut self) -> u64 {
        self.u64_at(136)
    }

    /// Sets the entry that leads to bits: the first bitmap's table follows the directory.
    pub(crate) fn put_bits(&mut self, entry: u64) {
        let table = self.directory() + 1024;
        self.put_u64(table, entry);
    }

    /// Sets a bit of the first bitmap; its bits follow its table.
    pub(crate) fn put_bit(&mut self, bit: u64) {
        let byte = self.directory() + 2048 + bit / 8;
        self.disk.patch(byte, &[1 << (bit % 8)]);
    }

    /// Sets the flags of the first bitmap.
    pub(crate) fn put_flags(&mut self, flags: u32) {
        let directory = self.directory();
        self.disk.patch(directory + 12, &flags.to_be_bytes());
    }

    /// A second L1 entry, past the disk's end, which is legal.
    pub(crate) fn add_l1(&mut self, entry: u64) {
        self.disk.patch(36, &2u32.to_be_bytes());
        self.put_u64(3072 + 8, entry);
    }

    /// Guest clusters with data, ascending.
    pub(crate) fn mapped(&mut self) -> Vec<u64> {
        let clusters = 0..self.geometry.clusters();
        clusters.filter(|guest| self.l2(*guest) & 1 == 0 && self.l2(*guest) != 0).collect()
    }

    /// Puts data of the guest's into a new cluster at the end of the file, and maps it: the new host cluster.
    pub(crate) fn append(&mut self, guest: u64) -> u64 {
        let size = self.geometry.cluster_size();
        let host = self.disk.len() / size;
        self.disk.set_len((host + 1) * size);
        let units = self.geometry.cluster_units();
        for within in 0..units {
            let content = payload::unit(guest * units + within, payload::INITIAL);
            self.disk.set(host * units + within, &content);
        }
        self.put_refcount(host, 1);
        self.set_l2(guest, (host * size) | COPIED);
        host
    }

    /// A host cluster that nothing refers to, with stale bytes in it.
    pub(crate) fn hole(&mut self) -> u64 {
        let (clusters, units) =
            (self.disk.len() / self.geometry.cluster_size(), self.geometry.cluster_units());
        let counts = 2 * self.geometry.cluster_size();
        let stale = |unit: &Unit| {
            matches!(payload::decode(unit), payload::Value::Tag { id: payload::STALE, .. })
        };
        (4..clusters)
            .find(|cluster| {
                let key = self.disk.resolve(cluster * units);
                let refcount = self.u64_at((counts + cluster * 2) & !7);
                let within = (3 - cluster % 4) * 16;
                stale(self.disk.bytes(key)) && (refcount >> within) & 0xffff == 0
            })
            .expect("a fragmented image has holes")
    }

    pub(crate) fn guest(&mut self, mistake: Mistake) -> Guest {
        let values = &mut self.disk.values;
        let keys = self.built.guest_keys(|bytes| values.intern(bytes));
        let made = self.built.made(&self.geometry, |unit| values.intern(unit));
        Guest::new(&keys, PROMISES).on(made).with_mistake(mistake)
    }

    /// The same with data in one more cluster, as [`Patient::append`] puts it there.
    pub(crate) fn guest_with(&mut self, cluster: u64, mistake: Mistake) -> Guest {
        let units = self.geometry.cluster_units();
        let values = &mut self.disk.values;
        let mut keys = self.built.guest_keys(|bytes| values.intern(bytes));
        for unit in cluster * units..(cluster + 1) * units {
            keys[unit as usize] = values.intern(&payload::unit(unit, payload::INITIAL));
        }
        Guest::new(&keys, PROMISES).with_mistake(mistake)
    }
}

pub(crate) const STAGES: [Stage; 5] =
    [Stage::CrashedClean, Stage::CrashedDirty, Stage::OpenedClean, Stage::Repaired, Stage::Closed];
