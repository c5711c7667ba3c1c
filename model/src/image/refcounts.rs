//! What the refcounts say: the refcount table and its blocks.

use super::bytes::{UNIT_BYTES, to_usize, units_of};
use super::entry::{REFCOUNT_TABLE_RESERVED, is_cluster, nonzero_entries};
use super::header::Header;
use super::reader::Image;
use crate::evidence::{Readable, ValueKey};
use crate::finding::Finding;
use crate::label::Region;
use crate::mistake::Mistake;
use crate::payload::Unit;

impl Image {
    pub(super) fn read_refcounts<E: Readable>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        findings: &mut Vec<Finding>,
    ) {
        let clusters = u64::from(header.refcount_table_clusters);
        let bytes = clusters.saturating_mul(header.cluster_size());
        let table = header.refcount_table_offset;
        if !self.claim(Region::RefcountTable, table, bytes, 0, findings) {
            return;
        }
        let mut blocks = std::mem::take(&mut self.table_entries);
        nonzero_entries(evidence, table, bytes >> 3, self.readable(), &mut blocks);
        for (index, entry) in &blocks {
            let at = Region::RefcountBlock(*index);
            let reserved = entry & REFCOUNT_TABLE_RESERVED;
            let offset = entry & !REFCOUNT_TABLE_RESERVED;
            if is_cluster(at, *entry, reserved, offset, header, findings)
                && self.claim(at, offset, header.cluster_size(), *entry, findings)
                && !self.mistake.passes_over_block(*index)
            {
                self.read_block(evidence, header, *index, offset);
            }
        }
        self.table_entries = blocks;
    }

    fn read_block<E: Readable>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        index: u64,
        offset: u64,
    ) {
        let base = index.saturating_mul(header.block_entries());
        let readable = self.readable();
        let mistake = self.mistake;
        let order = match mistake {
            Mistake::RefcountsOf16Bits => 4,
            _ => header.refcount_order,
        };
        let in_unit = UNIT_BYTES.wrapping_shl(3).wrapping_shr(order);
        let Self { slots, stored, stored_beyond, .. } = self;
        // One more than the file has: see the slots.
        let clusters = self.length.div_ceil(header.cluster_size()).saturating_add(1);
        let slots = slots.get_mut(..to_usize(clusters)).unwrap_or_default();
        for (ordinal, unit) in (0..).zip(units_of(offset, header.cluster_size(), readable)) {
            let key = evidence.resolve(unit);
            if key == ValueKey::ZERO {
                continue;
            }
            let base = base.saturating_add(in_unit.saturating_mul(ordinal));
            let first = to_usize(base).min(slots.len());
            let end = first.saturating_add(to_usize(in_unit)).min(slots.len());
            let known = slots.get_mut(first..end).unwrap_or_default();
            nonzero_refcounts(evidence.bytes(key), order, |within, count| {
                let (within, count) = mistake.misread(order, within, count);
                match known.get_mut(to_usize(within)) {
                    Some(slot) => slot.stored = count,
                    None => stored_beyond.push((base.saturating_add(within), count)),
                }
            });
            if let (Ok(first), Ok(end)) = (u32::try_from(first), u32::try_from(end)) {
                stored.push(first..end);
            }
        }
    }
}

/// Shows every refcount in a unit that is not 0, with its index. Narrow ones fill a byte from its lowest bit up.
fn nonzero_refcounts(bytes: &Unit, order: u32, mut show: impl FnMut(u64, u64)) {
    let mut each = |index: u64, value: u64| {
        if value != 0 {
            show(index, value);
        }
    };
    match order {
        0..=2 => {
            let width = 1u32.wrapping_shl(order);
            let mask = 1u8.wrapping_shl(width).wrapping_sub(1);
            let shifts = (0..8u32).step_by(width as usize);
            let places = bytes
                .iter()
                .flat_map(|byte| shifts.clone().map(move |shift| byte.wrapping_shr(shift) & mask));
            (0..).zip(places).for_each(|(index, count)| each(index, count.into()));
        }
        3 => (0..).zip(bytes).for_each(|(index, count)| each(index, (*count).into())),
        4 => (0..)
            .zip(bytes.as_chunks::<2>().0)
            .for_each(|(index, chunk)| each(index, u16::from_be_bytes(*chunk).into())),
        5 => (0..)
            .zip(bytes.as_chunks::<4>().0)
            .for_each(|(index, chunk)| each(index, u32::from_be_bytes(*chunk).into())),
        _ => (0..)
            .zip(bytes.as_chunks::<8>().0)
            .for_each(|(index, chunk)| each(index, u64::from_be_bytes(*chunk))),
    }
}

#[cfg(test)]
mod tests {
    use super::nonzero_refcounts;
    use crate::payload::UNIT;

    #[test]
    fn narrow_refcounts_fill_a_byte_from_below() {
        let mut bytes = [0; UNIT];
        bytes[1] = 0b1001_0010;
        let all = |order| {
            let mut found = Vec::new();
            nonzero_refcounts(&bytes, order, |index, count| found.push((index, count)));
            found
        };
        assert_eq!(all(0), [(9, 1), (12, 1), (15, 1)]);
        assert_eq!(all(1), [(4, 2), (6, 1), (7, 2)]);
        assert_eq!(all(2), [(2, 2), (3, 9)]);
        assert_eq!(all(3), [(1, 0x92)]);
        assert_eq!(all(4), [(0, 0x92)]);
        assert_eq!(all(5), [(0, 0x92_0000)]);
        assert_eq!(all(6), [(0, 0x92_0000_0000_0000)]);
    }
}
