//! An image as text: everything that its metadata says, in the order in which it refers to one another.
//!
//! For people and for snapshots. The invariant: every entry that is not zero is shown, with its place, and a damaged one is
//! shown with what is wrong with it; equal neighbours are folded. Guest data is not shown.

use std::fmt::Write as _;

use qcow2_core::format::{
    Extension, FormatError, Header, L1Entry, L2Entry, Mapping, RefcountTableEntry, Subclusters,
    refcount,
};

/// The metadata of the image in `bytes` as text.
pub fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    match Header::parse(bytes) {
        Ok(header) => {
            Dump { bytes, header: &header, out: &mut out }.all();
            out
        }
        Err(error) => no_header(&error),
    }
}

fn no_header(error: &FormatError) -> String {
    format!("no header: {error}\n")
}

struct Dump<'a> {
    bytes: &'a [u8],
    header: &'a Header,
    out: &'a mut String,
}

impl Dump<'_> {
    fn line(&mut self, indent: usize, text: &str) {
        writeln!(self.out, "{:indent$}{text}", "").expect("writing to a string does not fail");
    }

    fn all(&mut self) {
        let (length, size) = (self.bytes.len() as u64, self.header.cluster_size());
        let clusters = length.div_ceil(size);
        self.line(0, &format!("file: {length} bytes, {clusters} clusters of {size} bytes"));
        self.header();
        self.refcounts();
        self.mappings();
    }

    fn header(&mut self) {
        let header = self.header;
        let flags = |names: String| if names.is_empty() { "none".to_owned() } else { names };
        let names = |set: &mut dyn Iterator<Item = (&'static str, u64)>| {
            flags(set.map(|(name, _)| name).collect::<Vec<_>>().join(" "))
        };
        let lines = [
            format!(
                "version {}, refcounts of {} bits",
                header.version,
                1u32 << header.refcount_order
            ),
            format!("virtual size {} bytes", header.size),
            format!("L1 table at {:#x}, {} entries", header.l1_table_offset, header.l1_size),
            format!(
                "refcount table at {:#x}, {} clusters",
                header.refcount_table_offset, header.refcount_table_clusters
            ),
            format!(
                "incompatible: {}",
                names(&mut header.incompatible.iter_names().map(|(n, f)| (n, f.bits())))
            ),
            format!(
                "compatible: {}",
                names(&mut header.compatible.iter_names().map(|(n, f)| (n, f.bits())))
            ),
            format!(
                "autoclear: {}",
                names(&mut header.autoclear.iter_names().map(|(n, f)| (n, f.bits())))
            ),
        ];
        self.line(0, &format!("header at 0, {} bytes", header.header_length));
        for line in lines {
            self.line(2, &line);
        }
        for Extension { kind, data } in &header.extensions {
            self.line(2, &format!("extension {kind:#010x}, {} bytes", data.len()));
        }
    }

    fn refcounts(&mut self) {
        let header = self.header;
        let offset = header.refcount_table_offset;
        let entries = u64::from(header.refcount_table_clusters) * header.cluster_size() / 8;
        self.line(0, &format!("refcount table at {offset:#x}"));
        for (index, value) in self.entries(offset, entries) {
            let entry = RefcountTableEntry(value);
            match entry.decode(header.cluster_bits, offset + index * 8) {
                Ok(Some(host)) => {
                    self.line(2, &format!("[{index}] block at {host:#x}"));
                    self.block(index, host);
                }
                Ok(None) => {}
                Err(error) => self.line(2, &format!("[{index}] {error}")),
            }
        }
    }

    fn block(&mut self, index: u64, host: u64) {
        let header = self.header;
        let per_block = header.refcounts_per_block();
        let block = self.read(host, header.cluster_size());
        // (first cluster, last cluster, count) of runs of equal counts.
        let mut runs: Vec<(u64, u64, u64)> = Vec::new();
        for within in 0..per_block {
            let at = usize::try_from(within).expect("a block fits in memory");
            let count = refcount::get(&block, header.refcount_order, at).unwrap_or(0);
            let cluster = index * per_block + within;
            match runs.last_mut() {
                Some((_, last, same)) if *same == count && *last + 1 == cluster => *last = cluster,
                _ if count > 0 => runs.push((cluster, cluster, count)),
                _ => {}
            }
        }
        for (first, last, count) in runs {
            let clusters =
                if first == last { format!("{first}") } else { format!("{first}..={last}") };
            self.line(4, &format!("clusters {clusters}: {count}"));
        }
    }

    fn mappings(&mut self) {
        let header = self.header;
        let offset = header.l1_table_offset;
        self.line(0, &format!("L1 table at {offset:#x}"));
        for (index, value) in self.entries(offset, header.l1_size.into()) {
            match L1Entry(value).decode(header.cluster_bits, offset + index * 8) {
                Ok(Some(table)) => {
                    let copied = copied(table.copied);
                    self.line(2, &format!("[{index}] L2 table at {:#x}{copied}", table.host));
                    self.l2(index, table.host);
                }
                Ok(None) => {}
                Err(error) => self.line(2, &format!("[{index}] {error}")),
            }
        }
    }

    fn l2(&mut self, l1_index: u64, offset: u64) {
        let header = self.header;
        let first = l1_index * header.l2_entries();
        let words = header.cluster_size() / header.l2_entries() / 8;
        let table = self.read(offset, header.cluster_size());
        let halves = table.chunks_exact(8 * words as usize).map(|entry| {
            let (numbers, _) = entry.as_chunks::<8>();
            let number = |at: usize| numbers.get(at).map_or(0, |bytes| u64::from_be_bytes(*bytes));
            (number(0), number(1))
        });
        for (index, (value, bitmap)) in (0..).zip(halves).filter(|(_, halves)| *halves != (0, 0)) {
            let at = offset + index * 8 * words;
            let bits = header.cluster_bits;
            let guest = (first + index) * header.cluster_size();
            let apart = header.has_data_file();
            let mapping = match header.extended_l2() {
                extended if apart => {
                    let bitmap = extended.then_some(bitmap);
                    L2Entry(value).decode_in_data_file(bitmap, bits, guest, u64::MAX, at)
                }
                true => L2Entry(value).decode_extended(bitmap, bits, at),
                false => L2Entry(value).decode(bits, header.version, at),
            };
            let place = |host: u64| match apart {
                true => format!("{guest:#x} of the data file"),
                false => format!("{host:#x}"),
            };
            let text = match mapping {
                Ok(Mapping::Unallocated) => format!("unallocated ({value:#018x})"),
                Ok(Mapping::ZeroPlain) => "zeroes".to_owned(),
                Ok(Mapping::ZeroAllocated { host, copied: is }) => {
                    format!("zeroes, keeps {}{}", place(host), copied(is))
                }
                Ok(Mapping::Data { host, copied: is }) => {
                    format!("data at {}{}", place(host), copied(is))
                }
                Ok(Mapping::Mixed { host, copied: is, of: Subclusters { data, zero } }) => {
                    let place = match host {
                        0 => "no cluster".to_owned(),
                        host => format!("{}{}", place(host), copied(is)),
                    };
                    format!("{place}, subclusters with data {data:#010x}, zeroes {zero:#010x}")
                }
                Ok(Mapping::Compressed { offset, length, .. }) => {
                    format!("compressed, at most {length} bytes at {offset:#x}")
                }
                Err(error) => error.to_string(),
            };
            self.line(4, &format!("[{index}] guest cluster {}: {text}", first + index));
        }
    }

    /// Index and value of the entries of a table that are not zero.
    fn entries(&self, offset: u64, count: u64) -> Vec<(u64, u64)> {
        let table = self.read(offset, count * 8);
        let values = table
            .chunks_exact(8)
            .map(|entry| u64::from_be_bytes(entry.try_into().expect("eight bytes")));
        (0..).zip(values).filter(|&(_, value)| value != 0).collect()
    }

    /// Bytes of the file; past its end there are none.
    fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let end = self.bytes.len() as u64;
        let range = offset.min(end)..offset.saturating_add(length).min(end);
        let index = |at: u64| usize::try_from(at).expect("it is within a slice");
        self.bytes[index(range.start)..index(range.end)].to_vec()
    }
}

fn copied(is: bool) -> &'static str {
    if is { ", copied" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::dump;

    #[test]
    fn what_is_no_image_says_so() {
        assert_eq!(
            dump(b"nonsense"),
            "no header: not a qcow2 image: it begins with 0x6e6f6e73 instead of 0x514649fb\n"
        );
    }
}
