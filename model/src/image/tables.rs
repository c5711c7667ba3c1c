//! Where guest clusters are: the L1 table and L2 tables.

use super::bytes::{to_usize, units_of};
use super::entry::{
    COMPRESSED, COPIED, ENTRIES_IN_UNIT, L1_RESERVED, L2_RESERVED, OFFSET, ZERO, compressed_extent,
    is_cluster, nonzero_entries,
};
use super::header::Header;
use super::reader::Image;
use crate::defect::Defect;
use crate::evidence::{Evidence, ValueKey};
use crate::finding::Finding;
use crate::label::Region;

impl Image {
    pub(super) fn read_tables<E: Evidence>(
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
            if self.defect.passes_over_table(*index, of_disk, self.l2_tables.len()) {
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

    fn read_table<E: Evidence>(
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
        let readable = self.defect.readable_of_table(end, self.length);
        for unit in units_of(offset, header.cluster_size(), readable) {
            let key = evidence.resolve(unit);
            if key == ValueKey::ZERO {
                let length = self.l2_entries.len().saturating_add(ENTRIES_IN_UNIT);
                self.l2_entries.resize(length, 0);
                continue;
            }
            for chunk in evidence.bytes(key).as_chunks::<8>().0 {
                let entry = u64::from_be_bytes(*chunk);
                if entry != 0 {
                    let within = self.l2_entries.len().saturating_sub(start) as u64;
                    let guest = first_guest.saturating_add(within);
                    self.take_l2_entry(header, guest, entry, &mut next_host, findings);
                }
                self.l2_entries.push(entry);
            }
        }
        // A table that the end of the file cuts short continues in zeroes.
        self.l2_entries.resize(start.saturating_add(count), 0);
    }

    fn take_l2_entry(
        &mut self,
        header: &Header,
        guest: u64,
        entry: u64,
        next_host: &mut Option<u64>,
        findings: &mut Vec<Finding>,
    ) {
        if entry & COMPRESSED != 0 {
            let at = Region::Compressed(guest);
            if entry & COPIED != 0 {
                findings.push(Finding::ReservedBits { at, entry, bits: COPIED });
            }
            findings.push(Finding::Unsupported { what: "compressed cluster", value: entry });
            let (start, length) = compressed_extent(entry, header);
            let length = match self.defect {
                Defect::CompressedCountsOnce => 1,
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
        let mut reserved = entry & L2_RESERVED;
        if offset == 0 {
            reserved |= entry & COPIED;
        }
        if header.version == 2 {
            reserved |= entry & ZERO;
        }
        if !is_cluster(at, entry, reserved, offset, header, findings) {
            return;
        }
        self.claim(at, offset, header.cluster_size(), entry, findings);
        self.mapped.allocated = self.mapped.allocated.saturating_add(1);
        if next_host.is_some_and(|expected| expected != offset) {
            self.mapped.fragmented = self.mapped.fragmented.saturating_add(1);
        }
        *next_host = offset.checked_add(header.cluster_size());
    }
}
