//! The table entries that a failure is about, at four moments: before the workload, with everything landed, as the power cut left them,
//! repaired.
//!
//! ```text
//!   refcount[4]    the counter of one host cluster         l1[0]          the entry that points to an L2 table
//!   guest[3]       the entry of one guest cluster          unit 12        what a guest unit reads as
//! ```
//!
//! It reads bytes and judges nothing, so a damaged image is shown as far as it goes.

use std::fmt::Write as _;

use model::finding::Finding;
use model::image::Header;
use model::judge::{Place, Violation};
use model::label::Region;
use model::payload::{self, UNIT};

use super::lanes::WIDTH;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Most entries that are shown.
const MOST: usize = 8;

/// One image as bytes.
pub(super) struct View<'a> {
    bytes: &'a [u8],
    header: Option<Header>,
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    Length,
    Dirty,
    L1Table,
    RefcountTable,
    RefcountBlock(u64),
    Refcount(u64),
    L1(u64),
    Guest(u64),
    Unit(u64),
}

impl<'a> View<'a> {
    /// The image in `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut findings = Vec::new();
        let first = bytes.first_chunk::<UNIT>();
        Self { bytes, header: first.and_then(|unit| Header::parse(unit, &mut findings)) }
    }

    fn number(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = self.bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }

    /// Where an entry is, if there is one.
    fn place(&self, entry: Entry) -> Option<u64> {
        let header = self.header?;
        let per_table = header.l2_entries();
        match entry {
            Entry::L1(index) => {
                let within = index < u64::from(header.l1_size);
                within.then(|| header.l1_table_offset + index * 8)
            }
            Entry::Guest(cluster) => {
                let table = self.value(Entry::L1(cluster / per_table))? & OFFSET;
                let size = header.cluster_size() / per_table;
                (table != 0).then_some(table + cluster % per_table * size)
            }
            Entry::RefcountBlock(index) => {
                let entries = u64::from(header.refcount_table_clusters) * header.cluster_size() / 8;
                (index < entries).then(|| header.refcount_table_offset + index * 8)
            }
            Entry::Refcount(cluster) => {
                let per_block = header.block_entries();
                let block = self.value(Entry::RefcountBlock(cluster / per_block))? & OFFSET;
                let bits = (cluster % per_block) << header.refcount_order;
                (block != 0).then_some(block + bits / 8)
            }
            Entry::Unit(unit) => self.host(unit),
            Entry::Length | Entry::Dirty | Entry::L1Table | Entry::RefcountTable => None,
        }
    }

    /// The raw entry.
    fn value(&self, entry: Entry) -> Option<u64> {
        let header = self.header?;
        match entry {
            Entry::Refcount(cluster) => {
                let width = 1u32 << header.refcount_order;
                let at = usize::try_from(self.place(entry)?).ok()?;
                if width < 8 {
                    let shift = (cluster % header.block_entries()) * u64::from(width) % 8;
                    return Some(u64::from(*self.bytes.get(at)? >> shift) & ((1 << width) - 1));
                }
                let bytes = self.bytes.get(at..at + width as usize / 8)?;
                Some(bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
            }
            _ => self.number(self.place(entry)?),
        }
    }

    /// The bitmap of an entry that has one.
    fn bitmap(&self, entry: Entry) -> Option<u64> {
        let extended = self.header?.has_extended_l2() && matches!(entry, Entry::Guest(_));
        self.number(self.place(entry).filter(|_| extended)? + 8)
    }

    /// The byte of the file that a guest unit is at.
    fn host(&self, unit: u64) -> Option<u64> {
        let size = self.header?.cluster_size();
        let offset = unit * UNIT as u64;
        let entry = Entry::Guest(offset / size);
        let raw = self.value(entry)?;
        let mapped = match self.bitmap(entry) {
            // Of a subcluster the bit that says that it is allocated, and no other.
            Some(bitmap) => bitmap >> (offset % size * 32 / size) & (1 << 32 | 1) == 1,
            None => raw & 1 == 0,
        };
        let plain = raw & OFFSET != 0 && raw & COMPRESSED == 0 && mapped;
        plain.then_some((raw & OFFSET) + offset % size)
    }

    fn name(&self, entry: Entry) -> String {
        match entry {
            Entry::Length => "file length".to_owned(),
            Entry::Dirty => "dirty bit".to_owned(),
            Entry::L1Table => "header: L1 table".to_owned(),
            Entry::RefcountTable => "header: refcount table".to_owned(),
            Entry::RefcountBlock(index) => format!("refcount-table[{index}]"),
            Entry::Refcount(cluster) => format!("refcount of cluster {cluster}"),
            Entry::L1(index) => format!("l1[{index}]"),
            Entry::Guest(cluster) => match self.header {
                Some(header) => {
                    let (table, entries) = (cluster / header.l2_entries(), header.l2_entries());
                    format!("l2[{table}][{}] of guest cluster {cluster}", cluster % entries)
                }
                None => format!("guest cluster {cluster}"),
            },
            Entry::Unit(unit) => format!("guest unit {unit} reads"),
        }
    }

    fn show(&self, entry: Entry) -> String {
        let Some(header) = self.header else { return "no header".to_owned() };
        let raw = self.value(entry);
        match entry {
            Entry::Length => format!("{:#x}", self.bytes.len()),
            Entry::Dirty => if header.is_dirty() { "set" } else { "clear" }.to_owned(),
            Entry::L1Table => format!("{:#x}, {} entries", header.l1_table_offset, header.l1_size),
            Entry::RefcountTable => {
                let clusters = header.refcount_table_clusters;
                format!("{:#x}, {clusters} clusters", header.refcount_table_offset)
            }
            Entry::Refcount(_) => {
                raw.map_or_else(|| "no block".to_owned(), |count| count.to_string())
            }
            Entry::Unit(unit) => match self.host(unit) {
                None => "zero, unmapped".to_owned(),
                Some(at) => {
                    let unit = usize::try_from(at)
                        .ok()
                        .and_then(|at| self.bytes.get(at..)?.first_chunk::<UNIT>());
                    unit.map_or_else(
                        || "zero, past the end".to_owned(),
                        |unit| payload::decode(unit).to_string(),
                    )
                }
            },
            Entry::L1(_) | Entry::Guest(_) | Entry::RefcountBlock(_) => {
                let Some(raw) = raw else { return "no table".to_owned() };
                let is_l2 = matches!(entry, Entry::Guest(_));
                let bitmap = self.bitmap(entry);
                let is_zero = is_l2 && bitmap.is_none() && raw & 1 != 0;
                let mut text = match raw & OFFSET {
                    _ if is_l2 && raw & COMPRESSED != 0 => format!("{raw:#x}"),
                    _ if raw == 0 => "none".to_owned(),
                    0 if is_zero => "zeroes".to_owned(),
                    host if is_zero => format!("zeroes, keeps {host:#x}"),
                    host => format!("{host:#x}"),
                };
                if raw & COPIED != 0 && raw & COMPRESSED == 0 {
                    text.push_str(" copied");
                }
                if let Some(bitmap) = bitmap.filter(|bitmap| *bitmap != 0) {
                    let (zero, allocated) = (bitmap >> 32, bitmap & 0xffff_ffff);
                    let _ = match (allocated, zero) {
                        (0xffff_ffff, 0) => write!(text, ", all data"),
                        (0, 0xffff_ffff) => write!(text, ", all zeroes"),
                        _ => write!(text, ", has {allocated:#x}, zeroes {zero:#x}"),
                    };
                }
                text
            }
        }
    }

    /// Every entry that refers to a host cluster.
    fn references(&self, cluster: u64) -> Vec<Entry> {
        let Some(header) = self.header else { return Vec::new() };
        let within =
            |raw: u64| raw & OFFSET != 0 && (raw & OFFSET) / header.cluster_size() == cluster;
        let covers = |start: u64, bytes: u64| {
            let end = (start + bytes).div_ceil(header.cluster_size());
            (start / header.cluster_size()..end).contains(&cluster)
        };
        let mut all = Vec::new();
        if covers(header.l1_table_offset, u64::from(header.l1_size) * 8) {
            all.push(Entry::L1Table);
        }
        let table = u64::from(header.refcount_table_clusters) * header.cluster_size();
        if covers(header.refcount_table_offset, table) {
            all.push(Entry::RefcountTable);
        }
        all.extend(
            self.filled()
                .into_iter()
                .filter(|entry| !matches!(entry, Entry::Refcount(_)))
                .filter(|entry| self.value(*entry).is_some_and(within)),
        );
        all
    }

    /// Every entry that is not zero.
    fn filled(&self) -> Vec<Entry> {
        let Some(header) = self.header else { return Vec::new() };
        let set = |entry: &Entry| {
            let words = [self.value(*entry), self.bitmap(*entry)];
            words.into_iter().flatten().any(|word| word != 0)
        };
        let tables = u64::from(header.l1_size).min(1 << 16);
        let l1 = (0..tables).map(Entry::L1).filter(set).collect::<Vec<_>>();
        let clusters = self.bytes.len() as u64 / header.cluster_size();
        let mut all = l1.clone();
        for entry in l1 {
            if let Entry::L1(index) = entry {
                let first = index * header.l2_entries();
                all.extend((first..first + header.l2_entries()).map(Entry::Guest).filter(set));
            }
        }
        let blocks = u64::from(header.refcount_table_clusters) * header.cluster_size() / 8;
        all.extend((0..blocks).map(Entry::RefcountBlock).filter(set));
        all.extend((0..=clusters).map(Entry::Refcount).filter(set));
        all
    }
}

/// The table: a row for each entry that the violation is about, then the others that the power cut changed. `views` are the
/// image before the workload, with everything landed, as the power cut left it, and repaired.
pub(super) fn table(violation: &Violation, titles: [&str; 4], views: &[View<'_>; 4]) -> String {
    let [before, landed, after, _] = views;
    let mut entries = concerned(violation, [before, landed, after]);
    let mut others: Vec<Entry> = landed.filled();
    others.extend(after.filled());
    others.sort_unstable();
    others.dedup();
    let plain = [Entry::Length, Entry::Dirty, Entry::L1Table, Entry::RefcountTable];
    for entry in plain.into_iter().chain(others) {
        if landed.show(entry) != after.show(entry) && !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    let more = entries.len().saturating_sub(MOST);
    entries.truncate(MOST);
    let with_name = |name: String, columns: [String; 4]| {
        let [a, b, c, d] = columns;
        [name, a, b, c, d]
    };
    let mut rows = vec![with_name(String::new(), titles.map(str::to_owned))];
    for entry in entries {
        let at = [after, landed, before].into_iter().find_map(|view| view.place(entry));
        let at = at.map_or_else(String::new, |at| format!(" at {at:#x}"));
        let name = format!("{}{at}", after.name(entry));
        rows.push(with_name(name, views.each_ref().map(|view| view.show(entry))));
    }
    let widths = |rows: &[[String; 5]]| {
        std::array::from_fn::<_, 5, _>(|column| {
            rows.iter().map(|row| row[column].len()).max().unwrap_or(0)
        })
    };
    let marks: Vec<char> = rows
        .iter()
        .map(|row| if row[0].is_empty() || row[2] == row[3] { ' ' } else { '*' })
        .collect();
    // The mark, and what stands between columns.
    let is_too_wide = |rows: &[[String; 5]]| widths(rows).iter().sum::<usize>() + 4 + 8 > WIDTH;
    for column in [4, 3, 2] {
        let too_wide = is_too_wide(&rows);
        for row in rows.iter_mut().skip(1).filter(|row| too_wide && row[column] == row[column - 1])
        {
            row[column] = "the same".into();
        }
    }
    // Where that is not enough, an entry has a line of its own, and what it holds the next.
    let apart = is_too_wide(&rows);
    let mut widths = widths(&rows);
    if apart {
        widths[0] = 2;
    }
    let mut out = String::new();
    for (mark, row) in marks.iter().zip(&rows) {
        let [name, held @ ..] = row;
        let mut start = format!("{mark} {name:<0$}", widths[0]);
        if apart && !name.is_empty() {
            let _ = writeln!(out, "  {start}");
            start = format!("  {:<1$}", "", widths[0]);
        }
        let columns =
            held.iter().zip(&widths[1..]).map(|(text, width)| format!("  {text:<width$}"));
        let line = start + &columns.collect::<String>();
        let _ = writeln!(out, "  {}", line.trim_end());
    }
    if more > 0 {
        let _ = writeln!(out, "    ({more} more that the power cut changed)");
    }
    out
}

/// The entries that a violation names or implies, the most telling first.
fn concerned(violation: &Violation, [before, landed, after]: [&View<'_>; 3]) -> Vec<Entry> {
    let header = after.header.or(landed.header);
    let (size, per_table) =
        header.map_or((512, 64), |header| (header.cluster_size(), header.l2_entries()));
    let guest = |cluster: u64| vec![Entry::Guest(cluster), Entry::L1(cluster / per_table)];
    let of_region = |region: Region| match region {
        Region::L2(table) => vec![Entry::L1(table)],
        Region::Data(cluster) | Region::Compressed(cluster) => guest(cluster),
        Region::RefcountBlock(index) => vec![Entry::RefcountBlock(index)],
        Region::L1 => vec![Entry::L1Table],
        Region::RefcountTable => vec![Entry::RefcountTable],
        Region::BitmapDirectory | Region::BitmapTable(_) | Region::Bitmap(_) => Vec::new(),
        Region::Header | Region::EncryptionHeader | Region::Free(_) | Region::BeyondEnd => {
            Vec::new()
        }
    };
    let of_cluster = |cluster: u64| {
        let mut all = vec![Entry::Refcount(cluster)];
        // What nothing refers to any more had a reference before.
        for view in [after, landed, before] {
            all.extend(view.references(cluster).into_iter().take(3));
        }
        all
    };
    let all = match violation.place {
        Place::Guest { unit, host } => {
            let mut all = vec![Entry::Unit(unit)];
            all.extend(guest(unit * UNIT as u64 / size));
            all.extend(host.or_else(|| landed.host(unit)).map(|at| Entry::Refcount(at / size)));
            all
        }
        Place::Structure(finding) => match finding {
            Finding::RefcountTooLow { cluster, .. }
            | Finding::Leak { cluster, .. }
            | Finding::CopiedOnShared { cluster, .. }
            | Finding::CopiedMissing { cluster, .. }
            | Finding::CopiedStale { cluster, .. }
            | Finding::Overlap { cluster, .. } => of_cluster(cluster),
            Finding::OutOfRange { at, .. } => {
                let mut all = of_region(at);
                all.insert(0, Entry::Length);
                all
            }
            Finding::Misaligned { at, .. }
            | Finding::DataFileOffset { at, .. }
            | Finding::ReservedBits { at, .. }
            | Finding::InvalidSubclusters { at, .. } => of_region(at),
            Finding::DataFileShort { .. } => vec![Entry::Length],
            Finding::Dirty | Finding::Corrupt => vec![Entry::Dirty],
            Finding::Header { .. } => vec![Entry::L1Table, Entry::RefcountTable, Entry::Length],
            Finding::Unsupported { value, .. } => {
                let bad = after.filled().into_iter().find(|e| after.value(*e) == Some(value));
                match bad {
                    Some(Entry::Guest(cluster)) => guest(cluster),
                    other => other.into_iter().collect(),
                }
            }
        },
        Place::File { .. } | Place::Image => Vec::new(),
    };
    let mut once = Vec::new();
    for entry in all {
        if !once.contains(&entry) {
            once.push(entry);
        }
    }
    once
}

#[cfg(test)]
mod tests {
    use model::build::{Initial, build};
    use model::finding::{Finding, Property};
    use model::judge::Place;
    use model::op::Geometry;

    use super::{Entry, OFFSET, View, table};
    use crate::recover::whole_image;

    /// Goal: of a cluster that nothing refers to, the entry is shown that did before. Method: an image that has lost one.
    #[test]
    fn what_referred_to_a_leak_is_shown() {
        let geometry = Geometry::plain(9, 8192);
        let before =
            build(&geometry, Initial::Fragmented).expect("it can be").evidence().to_bytes();
        let view = View::new(&before);
        let mapped = view.filled().into_iter().find_map(|entry| match entry {
            Entry::Guest(cluster) => {
                Some((cluster, view.value(entry)? & OFFSET, view.place(entry)?))
            }
            _ => None,
        });
        let (guest, host, at) = mapped.expect("something is mapped");
        let mut after = before.clone();
        after[usize::try_from(at).unwrap()..][..8].fill(0);
        let leak = Finding::Leak { cluster: host / 512, stored: 1, counted: 0 };
        let mut violation = whole_image(Property::P6, "leak");
        violation.place = Place::Structure(leak);
        let views = [&before, &after, &after, &after].map(|image| View::new(image));
        let told = table(&violation, ["before", "landed", "after", "at last"], &views);
        let row = told.lines().find(|row| row.contains(&format!("of guest cluster {guest} at")));
        let row = row.unwrap_or_else(|| panic!("{told}"));
        assert!(row.contains(&format!("{host:#x} copied")) && row.ends_with("none"), "{told}");
    }
}
