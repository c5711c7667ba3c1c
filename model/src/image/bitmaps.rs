//! What the bitmaps extension leads to: clusters that are in use while an autoclear bit vouches for them, and bitmaps that follow
//! what the guest changes.
//!
//! ```text
//!   bitmaps extension, while autoclear bit 0 is set
//!     | number 4 . reserved 4 . directory's size 8 . directory's offset 8
//!     v
//!   directory        table's offset 8 . entries 4 . flags 4 . type 1 . granularity 1 . name's length 2 . extra data's length 4 .
//!     |              extra data . name . up to a multiple of 8
//!     v
//!   table            9..55 offset, 0 all ones if there is no offset
//!     v
//!   bits
//! ```

use super::bytes::{number, to_usize};
use super::entry::{OFFSET, is_cluster, nonzero_entries};
use super::header::Header;
use super::reader::Image;
use super::recording::{ALL_ONES, Recording};
use crate::evidence::Readable;
use crate::finding::Finding;
use crate::label::Region;

const BITMAP_TABLE_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// Flag of a bitmap: somebody has it open, and what it says may be old.
const BITMAP_IN_USE: u64 = 1;
/// Flag of a bitmap: it follows what the guest changes.
const BITMAP_AUTO: u64 = 1 << 1;
/// Most bitmaps.
const MAX_BITMAPS: u64 = 65_535;
/// Longest directory of bitmaps in bytes.
const MAX_BITMAP_DIRECTORY: u64 = 64 << 20;
/// Bytes of a directory's entry before its extra data.
const BITMAP_ENTRY: u64 = 24;

impl Image {
    pub(super) fn read_bitmaps<E: Readable>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        extension: u64,
        findings: &mut Vec<Finding>,
    ) {
        let mut field = |at: u64, bytes| number(evidence, extension.saturating_add(at), bytes);
        let (count, reserved) = (field(0, 4), field(4, 4));
        let (size, directory) = (field(8, 8), field(16, 8));
        let mut fault = |field, at: u64, value, why| {
            let offset = extension.saturating_add(at);
            findings.push(Finding::Header { field, offset, value, why });
        };
        if reserved != 0 {
            fault("bitmaps extension", 4, reserved, "is reserved and not zero");
        }
        if count == 0 || count > MAX_BITMAPS {
            fault("number of bitmaps", 0, count, "is not in 1..=65535");
        }
        if size == 0 || size > MAX_BITMAP_DIRECTORY {
            fault("bitmap directory size", 8, size, "is not in 1..=64 MiB");
            return;
        }
        let at = Region::BitmapDirectory;
        if !is_cluster(at, directory, 0, directory, header, findings)
            || !self.claim(at, directory, size, directory, findings)
        {
            return;
        }
        let end = directory.saturating_add(size);
        let mut entry = directory;
        for bitmap in 0..count {
            let mut field = |at: u64, bytes| number(evidence, entry.saturating_add(at), bytes);
            let (table, entries, flags) = (field(0, 8), field(8, 4), field(12, 4));
            let (kind, granularity) = (field(16, 1), field(17, 1));
            let names = field(18, 2).saturating_add(field(20, 4));
            let next = entry.saturating_add(BITMAP_ENTRY.saturating_add(names).next_multiple_of(8));
            let fault = match () {
                () if next > end => Some((bitmap, "reaches past the end of the directory")),
                () if kind != 1 => Some((kind, "is no type of a bitmap")),
                () => None,
            };
            if let Some((value, why)) = fault {
                let (field, offset) = ("bitmap directory entry", entry);
                findings.push(Finding::Header { field, offset, value, why });
                return;
            }
            let at = Region::BitmapTable(bitmap);
            if is_cluster(at, table, 0, table, header, findings)
                && self.claim(at, table, entries.saturating_mul(8), table, findings)
            {
                self.read_bitmap_table(evidence, header, bitmap, table, entries, findings);
                if flags & (BITMAP_IN_USE | BITMAP_AUTO) == BITMAP_AUTO {
                    self.record(evidence, table, entries, granularity);
                }
            }
            entry = next;
        }
    }

    fn read_bitmap_table<E: Readable>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        bitmap: u64,
        table: u64,
        count: u64,
        findings: &mut Vec<Finding>,
    ) {
        let mut entries = std::mem::take(&mut self.table_entries);
        nonzero_entries(evidence, table, count, self.readable(), &mut entries);
        for (_, entry) in &entries {
            let at = Region::Bitmap(bitmap);
            let offset = entry & OFFSET;
            let mut reserved = entry & BITMAP_TABLE_RESERVED;
            if offset != 0 {
                reserved |= entry & ALL_ONES;
            }
            if is_cluster(at, *entry, reserved, offset, header, findings) {
                self.claim(at, offset, header.cluster_size(), *entry, findings);
            }
        }
        self.table_entries = entries;
    }

    /// Keeps the table of a bitmap, as far as the file has it.
    fn record<E: Readable>(
        &mut self,
        evidence: &mut E,
        table: u64,
        count: u64,
        granularity_bits: u64,
    ) {
        let granularity_bits = u32::try_from(granularity_bits).unwrap_or(0);
        let mut recording = Recording { granularity_bits, table: Vec::new() };
        let mut entries = std::mem::take(&mut self.table_entries);
        nonzero_entries(evidence, table, count, self.readable(), &mut entries);
        for (index, entry) in &entries {
            recording.table.resize(to_usize(*index), 0);
            recording.table.push(*entry);
        }
        self.table_entries = entries;
        self.recordings.push(recording);
    }
}
