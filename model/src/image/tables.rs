//! Where guest clusters are: the L1 table and L2 tables.

use super::bytes::{to_usize, units_of};
use super::entry::{
    ALL_ALLOCATED, COMPRESSED, COPIED, ENTRIES_IN_UNIT, L1_RESERVED, L2_RESERVED, OFFSET, ZERO,
    compressed_extent, host_of, is_cluster, nonzero_entries,
};
use super::header::Header;
use super::reader::Image;
use crate::evidence::{Readable, ValueKey};
use crate::finding::Finding;
use crate::label::Region;
use crate::mistake::Mistake;

impl Image {
    pub(super) fn read_tables<E: Readable>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        findings: &mut Vec<Finding>,
    ) {
        let entries = u64::from(header.l1_size);
        let bytes = entries.saturating_mul(8);
        if entries == 0 || !self.claim(Region::L1, header.l1_table_offset, bytes, 0, findings) {
            return;
        }
        let mut tables = std::mem::take(&mut self.table_entries);
        nonzero_entries(evidence, header.l1_table_offset, entries, self.readable(), &mut tables);
        let of_disk = header.size.div_ceil(header.cluster_size()).div_ceil(header.l2_entries());
        for (index, entry) in &tables {
            if self.mistake.passes_over_table(*index, of_disk, self.l2_tables.len()) {
                continue;
            }
            let at = Region::L2(*index);
            let mut reserved = entry & L1_RESERVED;
            let offset = entry & OFFSET;
            if offset == 0 {
                reserved |= entry & COPIED;
            }
            if is_cluster(at, *entry, reserved, offset, header, findings)
                && self.claim(at, offset, header.cluster_size(), *entry, findings)
            {
                self.read_table(evidence, header, *index, offset, findings);
            }
        }
        self.table_entries = tables;
    }

    fn read_table<E: Readable>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        l1_index: u64,
        offset: u64,
        findings: &mut Vec<Finding>,
    ) {
        let count = to_usize(header.l2_entries());
        let start = self.l2_entries.len();
        self.l2_tables.push((l1_index, start));
        let first_guest = l1_index.saturating_mul(header.l2_entries());
        let mut next_host = None;
        let end = offset.saturating_add(header.cluster_size());
        let readable = self.mistake.readable_of_table(end, self.length);
        let extended = header.has_extended_l2();
        let has_zero_flag = header.version > 2 && !extended;
        let reserved = if has_zero_flag { L2_RESERVED } else { L2_RESERVED | ZERO };
        let in_unit = if extended { ENTRIES_IN_UNIT / 2 } else { ENTRIES_IN_UNIT };
        for unit in units_of(offset, header.cluster_size(), readable) {
            let key = evidence.resolve(unit);
            let known = self.l2_entries.len();
            if key == ValueKey::ZERO {
                self.l2_entries.resize(known.saturating_add(in_unit), 0);
                continue;
            }
            let words = evidence.bytes(key).as_chunks::<8>().0;
            if extended {
                let first = first_guest.saturating_add(known.saturating_sub(start) as u64);
                self.l2_bitmaps.resize(known, 0);
                for (guest, pair) in (first..).zip(words.as_chunks::<2>().0) {
                    let [entry, bitmap] = pair.map(u64::from_be_bytes);
                    let bitmap = self.mistake.misread_bitmap(entry, bitmap);
                    judge_bitmap(guest, entry, bitmap, header, findings);
                    self.take_l2_entry(header, guest, entry, reserved, &mut next_host, findings);
                    self.l2_entries.push(entry);
                    self.l2_bitmaps.push(self.mistake.mistake_subclusters(bitmap));
                }
                continue;
            }
            for chunk in words {
                let entry = u64::from_be_bytes(*chunk);
                if entry != 0 {
                    let within = self.l2_entries.len().saturating_sub(start) as u64;
                    let guest = first_guest.saturating_add(within);
                    self.take_l2_entry(header, guest, entry, reserved, &mut next_host, findings);
                }
                self.l2_entries.push(entry);
            }
        }
        // A table that the end of the file cuts short continues in zeroes.
        self.l2_entries.resize(start.saturating_add(count), 0);
        if extended {
            self.l2_bitmaps.resize(start.saturating_add(count), 0);
        }
    }

    fn take_l2_entry(
        &mut self,
        header: &Header,
        guest: u64,
        entry: u64,
        reserved: u64,
        next_host: &mut Option<u64>,
        findings: &mut Vec<Finding>,
    ) {
        if entry & COMPRESSED != 0 {
            let at = Region::Compressed(guest);
            if header.data_at.is_some() {
                // Beside a data file there are no compressed clusters, so it refers to nothing.
                let bits = entry & (COMPRESSED | COPIED);
                findings.push(Finding::ReservedBits { at, entry, bits });
                return;
            }
            if entry & COPIED != 0 {
                findings.push(Finding::ReservedBits { at, entry, bits: COPIED });
            }
            let (start, length) = compressed_extent(entry, header);
            let length = match self.mistake {
                Mistake::CompressedCountsOnce => 1,
                _ => length,
            };
            self.claim(at, start, length, entry, findings);
            self.mapped.allocated = self.mapped.allocated.saturating_add(1);
            self.mapped.compressed = self.mapped.compressed.saturating_add(1);
            self.mapped.fragmented = self.mapped.fragmented.saturating_add(1);
            return;
        }
        let at = Region::Data(guest);
        let offset = entry & OFFSET;
        let mut reserved = entry & reserved;
        if offset == 0 && header.data_at.is_none() {
            reserved |= entry & COPIED;
        }
        let good = is_cluster(at, entry, reserved, offset, header, findings);
        match (header.data_at, host_of(entry, header)) {
            (None, _) if good => {
                self.claim(at, offset, header.cluster_size(), entry, findings);
            }
            (Some(_), Some(host)) if good || offset == 0 => {
                self.judge_data_cluster(header, guest, entry, host, findings);
            }
            _ => return,
        }
        self.mapped.allocated = self.mapped.allocated.saturating_add(1);
        if next_host.is_some_and(|expected| expected != offset) {
            self.mapped.fragmented = self.mapped.fragmented.saturating_add(1);
        }
        *next_host = offset.checked_add(header.cluster_size());
    }

    /// A cluster in a data file is where the guest has it, which makes it this entry's alone; nothing counts it.
    fn judge_data_cluster(
        &mut self,
        header: &Header,
        guest: u64,
        entry: u64,
        host: u64,
        findings: &mut Vec<Finding>,
    ) {
        let at = Region::Data(guest);
        let (offset, length) = (entry & OFFSET, header.cluster_size());
        let guest = guest.saturating_mul(length);
        if offset != guest {
            findings.push(Finding::DataFileOffset { at, entry, guest });
        }
        // What a smaller disk has left of a larger one may be cut off, and nobody sees it.
        let file = self.data_length;
        if guest < header.size && offset.saturating_add(length).saturating_sub(file) >= length {
            findings.push(Finding::OutOfRange { at, offset, length, file });
        }
        if entry & COPIED == 0 {
            let cluster = host.wrapping_shr(header.cluster_bits);
            findings.push(Finding::CopiedMissing { at, cluster, entry });
        }
        if self.mistake == Mistake::DataClustersCounted {
            self.claim(at, offset, length, entry, findings);
        }
    }
}

/// What an extended L2 entry says of its subclusters has to make sense.
fn judge_bitmap(guest: u64, entry: u64, bitmap: u64, header: &Header, findings: &mut Vec<Finding>) {
    if bitmap == 0 {
        return;
    }
    let mut invalid = |at, subclusters: u64, why| {
        if subclusters != 0 {
            findings.push(Finding::InvalidSubclusters { at, entry, bitmap, why });
        }
    };
    if entry & COMPRESSED != 0 {
        invalid(Region::Compressed(guest), bitmap, "a compressed cluster has none");
        return;
    }
    let allocated = bitmap & ALL_ALLOCATED;
    let without_host = if host_of(entry, header).is_none() { allocated } else { 0 };
    invalid(Region::Data(guest), allocated & (bitmap >> 32), "one is both allocated and zero");
    invalid(Region::Data(guest), without_host, "one is allocated without a host cluster");
}
