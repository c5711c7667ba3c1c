//! What happens to an image: changes of fields, entries, counts and of the file's length, each of which it can say in words.

use std::collections::BTreeSet;
use std::fmt;

use qcow2_core::format::{extension, refcount};

use super::seeds::{Place, Seed, number};
use crate::common::Scatter;

/// One change, as bytes that are put somewhere or a length of the file.
#[derive(Clone, Debug)]
pub(super) struct Change {
    words: String,
    bytes: Vec<(u64, Vec<u8>)>,
    length: Option<u64>,
}

impl Change {
    fn put(at: u64, bytes: &[u8], words: String) -> Self {
        Self { words, bytes: vec![(at, bytes.to_vec())], length: None }
    }

    fn word(at: u64, value: u64, words: String) -> Self {
        Self::put(at, &value.to_be_bytes(), format!("{words}: {value:#018x} at byte {at:#x}"))
    }
}

/// The fields of a header: place, length and name.
const FIELDS: &[(u64, usize, &str)] = &[
    (8, 8, "backing_file_offset"),
    (16, 4, "backing_file_size"),
    (20, 4, "cluster_bits"),
    (24, 8, "size"),
    (32, 4, "crypt_method"),
    (36, 4, "l1_size"),
    (40, 8, "l1_table_offset"),
    (48, 8, "refcount_table_offset"),
    (56, 4, "refcount_table_clusters"),
    (60, 4, "nb_snapshots"),
    (64, 8, "snapshots_offset"),
    (72, 8, "incompatible_features"),
    (80, 8, "compatible_features"),
    (88, 8, "autoclear_features"),
    (96, 4, "refcount_order"),
    (100, 4, "header_length"),
    (104, 1, "compression_type"),
];

/// Makes changes to a seed.
struct Mutator<'a> {
    seed: &'a Seed,
    scatter: Scatter,
}

impl Mutator<'_> {
    fn below(&mut self, end: u64) -> u64 {
        self.scatter.below(end.max(1))
    }

    fn pick<'b, T>(&mut self, from: &'b [T]) -> &'b T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// Each kind of place as likely as the others.
    fn place(&mut self) -> Place {
        let kinds: BTreeSet<&str> = self.seed.places.iter().map(|place| place.what).collect();
        let kinds: Vec<&str> = kinds.into_iter().collect();
        let kind = *self.pick(&kinds);
        (*self.pick(&self.seed.all(kind))).clone()
    }

    /// Somewhere in the file or past its end, and how to say it.
    fn host(&mut self) -> (u64, String) {
        let cluster = self.seed.cluster();
        let end = (self.seed.bytes.len() as u64).next_multiple_of(cluster);
        match self.below(12) {
            0 => (0, "to byte 0".into()),
            1 => (end, "to the end of the file".into()),
            2 => (end + cluster * (1 + self.below(200)), "past the end of the file".into()),
            3 => (cluster << self.below(44), "perhaps far past the end of the file".into()),
            4 => ((1 << 56) - cluster, "to the end of all host offsets".into()),
            5 => {
                let place = self.place();
                let inside = if self.below(2) == 0 { 512 } else { 8 };
                (place.range.start + inside, format!("into the middle of the {}", place.what))
            }
            _ => {
                let place = self.place();
                let clusters = (place.range.end - place.range.start).div_ceil(cluster);
                let at = (place.range.start & !(cluster - 1)) + cluster * self.below(clusters);
                (at, format!("to the {}", place.what))
            }
        }
    }

    fn changes(&mut self) -> Vec<Change> {
        let mut changes = vec![self.change()];
        while changes.len() < 4 && self.below(5) < 2 {
            changes.push(self.change());
        }
        let version = number(&self.seed.bytes, 4, 4);
        if version == 3 && self.below(3) == 0 {
            let bits = number(&self.seed.bytes, 79, 1) as u8 | 1;
            changes.push(Change::put(79, &[bits], "marked dirty".into()));
        }
        changes
    }

    fn change(&mut self) -> Change {
        let seed = self.seed;
        match self.below(100) {
            0..12 => self.header_field(),
            12..20 => self.feature(),
            20..24 => self.extension(),
            24..36 => self.entry("L1 table"),
            36..58 => self.entry("L2 table"),
            58..66 => self.entry("refcount table"),
            66..80 => self.count(),
            80..84 => {
                let kinds = [
                    "bitmap directory",
                    "bitmap table",
                    "snapshot table",
                    "snapshot's L1 table",
                    "snapshot's L2 table",
                    "LUKS header",
                    "bitmap data",
                ];
                let there: Vec<&str> =
                    kinds.into_iter().filter(|kind| !seed.all(kind).is_empty()).collect();
                if there.is_empty() {
                    return self.count();
                }
                let kind = *self.pick(&there);
                self.entry(kind)
            }
            84..92 => {
                let length = seed.bytes.len() as u64;
                let at = match self.below(6) {
                    0 => self.below(length),
                    1 => length - self.below(length.min(2 * seed.cluster())),
                    2 => length + self.below(4 * seed.cluster()),
                    3 => length.next_multiple_of(seed.cluster()) + seed.cluster() * self.below(64),
                    _ => {
                        // Inside a table, at or between entries.
                        let Place { range, .. } = self.place();
                        range.start + self.below((range.end - range.start).min(256))
                    }
                };
                let verb = if at < length { "cut off" } else { "extended" };
                let words = format!("file {verb} at byte {at:#x} (was {length:#x})");
                Change { words, bytes: Vec::new(), length: Some(at) }
            }
            _ => {
                let Place { what, range } = self.place();
                let units = (range.end - range.start).div_ceil(512);
                let at = range.start + 512 * self.below(units);
                if what == "header" && at == 0 {
                    return self.count();
                }
                Change::put(at, &[0; 512], format!("512 zeroes at byte {at:#x}, in the {what}"))
            }
        }
    }

    fn header_field(&mut self) -> Change {
        let &(at, len, name) = self.pick(FIELDS);
        let old = number(&self.seed.bytes, at, len);
        let cluster = self.seed.cluster();
        let value = match self.below(10) {
            0 => 0,
            1 => 1,
            2 => old.wrapping_add(1),
            3 => old.wrapping_sub(1),
            4 => old.wrapping_add(cluster),
            5 => old.wrapping_sub(cluster),
            6 => old ^ 1 << self.below(8 * len as u64),
            7 => old << 1,
            _ => self.host().0,
        };
        let bytes = value.to_be_bytes();
        let shown = number(&bytes, 8 - len as u64, len);
        Change::put(at, &bytes[8 - len..], format!("header field {name}: {old:#x} -> {shown:#x}"))
    }

    fn feature(&mut self) -> Change {
        let features = [
            (79, 1, "dirty"),
            (79, 1, "dirty"),
            (79, 2, "corrupt"),
            (79, 4, "external data file"),
            (79, 16, "extended L2 entries"),
            (87, 1, "lazy refcounts"),
            (95, 1, "bitmaps"),
            (95, 2, "raw external data"),
            (95, 4, "autoclear bit 2"),
        ];
        let &(at, bit, name) = self.pick(&features);
        let old = number(&self.seed.bytes, at, 1) as u8;
        Change::put(at, &[old ^ bit], format!("feature bit \"{name}\" flipped"))
    }

    /// A word in the extensions of the header.
    fn extension(&mut self) -> Change {
        let bytes = &self.seed.bytes;
        let version_2 = number(bytes, 4, 4) == 2;
        let mut at = if version_2 { 72 } else { number(bytes, 100, 4) };
        let mut found = Vec::new();
        while at + 8 <= self.seed.cluster() && found.len() < 8 {
            let (kind, len) = (number(bytes, at, 4), number(bytes, at + 4, 4));
            found.push((at, kind, len));
            if kind == u64::from(extension::END) {
                break;
            }
            at += 8 + len.next_multiple_of(8);
        }
        let &(at, kind, len) = self.pick(&found);
        let words = format!("header extension {kind:#x}");
        match self.below(4) {
            0 => Change::put(at, &[0; 8], format!("{words} ends the extensions")),
            1 => {
                let len = self.below(40) as u32;
                Change::put(at + 4, &len.to_be_bytes(), format!("{words} has length {len}"))
            }
            _ => {
                let at = at + 8 + 8 * self.below(len.min(24) / 8);
                let (host, _) = self.host();
                Change::word(at, host, words)
            }
        }
    }

    /// An entry of a table; most often one that is in use.
    fn entry(&mut self, kind: &str) -> Change {
        let seed = self.seed;
        let tables = seed.all(kind);
        if tables.is_empty() {
            return self.count();
        }
        let Place { what, range } = (*self.pick(&tables)).clone();
        let all: Vec<u64> = (range.start..range.end).step_by(8).collect();
        let word = |at| number(&seed.bytes, at, 8);
        let used: Vec<u64> = all.iter().copied().filter(|&at| word(at) != 0).collect();
        let among = if used.is_empty() || self.below(5) == 0 { &all } else { &used };
        let (at, other) = (*self.pick(among), *self.pick(among));
        let old = word(at);
        let entry = format!("{what} entry {}", (at - range.start) / 8);
        let index = (other - range.start) / 8;
        match self.below(14) {
            0 => {
                let words = format!("{entry} and entry {index} swapped");
                let bytes = vec![
                    (at, word(other).to_be_bytes().to_vec()),
                    (other, old.to_be_bytes().to_vec()),
                ];
                Change { words, bytes, length: None }
            }
            1 | 2 => Change::word(at, word(other), format!("{entry} is a copy of entry {index}")),
            3 => Change::word(at, old ^ 1 << 63, format!("{entry}: COPIED flipped")),
            4 => Change::word(at, old ^ 1 << 62, format!("{entry}: bit 62 (compressed) flipped")),
            5 => Change::word(at, old ^ 1, format!("{entry}: bit 0 (zero) flipped")),
            6 => {
                let bit = *self.pick(&[1, 2, 5, 8, 9, 12, 56, 57, 60, 61]);
                Change::word(at, old ^ 1 << bit, format!("{entry}: bit {bit} flipped"))
            }
            7 => Change::word(at, 0, format!("{entry} cleared")),
            _ => {
                let (host, where_to) = self.host();
                let flags = match self.below(4) {
                    0 => 0,
                    1 => 1 << 63,
                    _ => old & (1 << 63 | 1),
                };
                Change::word(at, host | flags, format!("{entry} points {where_to}"))
            }
        }
    }

    /// A refcount.
    fn count(&mut self) -> Change {
        let seed = self.seed;
        let block = (*self.pick(&seed.all("refcount block"))).clone();
        let range = block.range.start as usize..(block.range.end as usize).min(seed.bytes.len());
        let old = &seed.bytes[range.clone()];
        let order = seed.refcount_order;
        let max = refcount::max(order);
        let total = (old.len() * 8) >> order;
        // Clusters of the file, most often.
        let clusters = seed.bytes.len() as u64 / seed.cluster() + 4;
        let within = if self.below(8) == 0 { total as u64 } else { clusters.min(total as u64) };
        let index = self.below(within) as usize;
        let count = refcount::get(old, order, index).unwrap_or(0);
        let new = match self.below(7) {
            0 | 1 => 0,
            2 => 1,
            3 => 2.min(max),
            4 => max,
            5 => count.saturating_add(1).min(max),
            _ => count.saturating_sub(1),
        };
        let mut changed = old.to_vec();
        refcount::set(&mut changed, order, index, new).unwrap();
        let first = (0..old.len()).find(|&at| old[at] != changed[at]).unwrap_or(0);
        let last = (0..old.len()).rfind(|&at| old[at] != changed[at]).unwrap_or(0);
        let at = block.range.start + first as u64;
        let words =
            format!("refcount {index} of the block at {:#x}: {count} -> {new}", block.range.start);
        Change::put(at, &changed[first..=last], words)
    }
}

/// A seed with changes.
pub(super) struct Mutant<'a> {
    pub(super) number: u64,
    pub(super) seed: &'a Seed,
    pub(super) changes: Vec<Change>,
}

impl<'a> Mutant<'a> {
    pub(super) fn new(seeds: &'a [Seed], run: u64, number: u64) -> Self {
        let mut scatter = Scatter::new(number ^ Scatter::new(run).below(u64::MAX));
        let seed = &seeds[scatter.below(seeds.len() as u64) as usize];
        let mut mutator = Mutator { seed, scatter };
        let changes = mutator.changes();
        Self { number, seed, changes }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.seed.bytes.clone();
        for (at, put) in self.changes.iter().flat_map(|change| &change.bytes) {
            let at = usize::try_from(*at).unwrap().min(bytes.len());
            let fits = put.len().min(bytes.len() - at);
            bytes[at..at + fits].copy_from_slice(&put[..fits]);
        }
        for length in self.changes.iter().filter_map(|change| change.length) {
            bytes.resize(usize::try_from(length).unwrap(), 0);
        }
        bytes
    }
}

impl fmt::Display for Mutant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MUTANT={} of the seed image \"{}\"", self.number, self.seed.name)?;
        self.changes.iter().try_for_each(|change| write!(f, "; {}", change.words))
    }
}
