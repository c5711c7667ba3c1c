//! What the bitmaps extension leads to. While the autoclear bit vouches for it, all of that is in use:
//!
//! ```text
//!   extension ──> directory                                       ──> table of one bitmap          ──> data clusters
//!                 | table offset 8 | entries 4 | flags 4 |            | 9..55 offset, 0 all ones |
//!                 | type 1 | granularity 1 | name length 2 |
//!                 | length of extra data 4 | extra data, name, padded to 8 |
//! ```
//!
//! Nothing of it may be anything else at the same time. The bits themselves are not looked at.

use crate::error::CheckError;
use crate::format::feature::Autoclear;
use crate::format::header::Header;
use crate::format::limits;
use storage::Storage;

use super::disk::Disk;
use super::entries::entries;
use super::references::Metadata;
use super::report::Problem;
use super::survey::{PIECE, Survey};

/// Bytes of a directory entry before its extra data.
const ENTRY_BYTES: usize = 24;
/// The one type of bitmap that there is: dirty tracking.
const DIRTY_TRACKING: u8 = 1;
/// Bits of a table entry that must be zero.
const RESERVED: u64 = 0xff00_0000_0000_01fe;
/// A table entry that stands for a cluster of ones.
const ALL_ONES: u64 = 1;

/// Where a bitmap's table is, and its length in bytes.
struct Table {
    /// Of its entry in the directory.
    at: u64,
    offset: u64,
    bytes: u64,
}

impl Survey {
    /// Counts the bitmap directory, tables and data.
    pub(super) async fn read_bitmaps<S: Storage>(
        &mut self,
        disk: &Disk<'_, S>,
        header: &Header,
        length: u64,
        metadata: &mut Metadata,
    ) -> Result<(), CheckError> {
        if !header.autoclear.contains(Autoclear::BITMAPS) {
            return Ok(());
        }
        let Some(bitmaps) = header.bitmaps()? else { return Ok(()) };
        let (at, bytes) = (bitmaps.directory_offset, bitmaps.directory_size);
        if !self.take_bitmap_range(header, length, metadata, at, at, bytes) {
            return Ok(());
        }
        let directory = disk.read(at, bytes).await?;
        let directory = &directory[..usize::try_from(bytes).expect("limited by the format")];
        let tables = match parse_directory(at, directory, bitmaps.count) {
            Ok(tables) => tables,
            Err(problem) => {
                self.report.add_hopeless(problem);
                return Ok(());
            }
        };
        for table in tables {
            if self.take_bitmap_range(header, length, metadata, table.at, table.offset, table.bytes)
            {
                self.read_bitmap_table(disk, header, length, metadata, &table).await?;
            }
        }
        Ok(())
    }

    async fn read_bitmap_table<S: Storage>(
        &mut self,
        disk: &Disk<'_, S>,
        header: &Header,
        length: u64,
        metadata: &mut Metadata,
        table: &Table,
    ) -> Result<(), CheckError> {
        let size = header.cluster_size();
        let mut read = 0;
        while read < table.bytes {
            let piece = (table.bytes - read).min(PIECE);
            let bytes = disk.read(table.offset + read, piece).await?;
            for (index, entry) in entries(&bytes).take_while(|&(index, _)| index < piece / 8) {
                let at = table.offset + read + index * 8;
                if entry == ALL_ONES {
                    continue;
                }
                if entry & (RESERVED | ALL_ONES) != 0 || !entry.is_multiple_of(size) {
                    let why = "an entry is neither an offset nor all ones";
                    self.report.add_hopeless(Problem::Bitmaps { at, why });
                } else {
                    self.take_bitmap_range(header, length, metadata, at, entry, size);
                }
            }
            read += piece;
        }
        Ok(())
    }

    /// Counts a part of the bitmaps that the entry at `at` refers to. Returns whether it is one: in the file, and nothing else.
    fn take_bitmap_range(
        &mut self,
        header: &Header,
        length: u64,
        metadata: &mut Metadata,
        at: u64,
        offset: u64,
        bytes: u64,
    ) -> bool {
        let size = header.cluster_size();
        let mut bad = |why| {
            self.report.add_hopeless(Problem::Bitmaps { at, why });
            false
        };
        if !offset.is_multiple_of(size) || offset == 0 {
            return bad("an offset is not that of a cluster");
        }
        if offset >= limits::HOST_OFFSET_END || offset + bytes > length.next_multiple_of(size) {
            return bad("an offset leads past the end of the file");
        }
        let mut alone = true;
        for cluster in offset / size..(offset + bytes).div_ceil(size) {
            self.references.add(cluster, 1);
            alone &= metadata.insert(cluster);
        }
        // What it is besides is told when all is counted; what it would lead to, nobody knows.
        self.report.hopeless |= !alone;
        alone
    }
}

fn parse_directory(start: u64, directory: &[u8], count: u32) -> Result<Vec<Table>, Problem> {
    let mut tables = Vec::new();
    let mut rest = directory;
    for _ in 0..count {
        let at = start + (directory.len() - rest.len()) as u64;
        let bad = |why| Problem::Bitmaps { at, why };
        let Some((entry, tail)) = rest.split_first_chunk::<ENTRY_BYTES>() else {
            return Err(bad("the directory ends before its last bitmap"));
        };
        let field =
            |at: usize| u32::from_be_bytes(entry[at..at + 4].try_into().expect("four bytes"));
        let offset = u64::from(field(0)) << 32 | u64::from(field(4));
        let name = usize::from(u16::from_be_bytes([entry[18], entry[19]]));
        let extra = usize::try_from(field(20)).expect("32 bits fit");
        let length = (ENTRY_BYTES + name).saturating_add(extra).next_multiple_of(8) - ENTRY_BYTES;
        if entry[16] != DIRTY_TRACKING {
            return Err(bad("the type of a bitmap is unknown"));
        }
        let Some(next) = tail.get(length..) else {
            return Err(bad("an entry of the directory reaches past its end"));
        };
        tables.push(Table { at, offset, bytes: u64::from(field(8)) * 8 });
        rest = next;
    }
    Ok(tables)
}
