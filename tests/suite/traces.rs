//! The recorded guest traces in `corpus/traces` are what their README says.

use std::fs;

use qcow2_crashtest::corpus;
use qcow2_crashtest::logwrites::{Action, Entry, Log};

/// Goal: the trace can be read to its end by the strict reader, and its figures are those of the README.
#[test]
fn the_ext4_trace_is_whole() {
    let path = corpus::folder().join("traces/ext4-sqlite.log.zst");
    let bytes = zstd::decode_all(&*fs::read(path).unwrap()).unwrap();
    let log = Log::parse(&bytes).unwrap();
    assert_eq!((log.sector_size(), log.promised()), (512, 669));
    let entries: Vec<Entry<'_>> = log.entries().collect::<Result<_, _>>().unwrap();
    let writes: Vec<&[u8]> = entries
        .iter()
        .filter_map(|entry| match entry.content {
            Action::Data(data) if !data.is_empty() => Some(data),
            _ => None,
        })
        .collect();
    assert_eq!(writes.len(), 453);
    assert_eq!(entries.iter().filter(|entry| entry.flush).count(), 216);
    assert_eq!(writes.iter().map(|data| data.len()).sum::<usize>(), 7_133_184);
    let end = |entry: &Entry<'_>| match entry.content {
        Action::Data(data) => entry.offset + data.len() as u64,
        Action::Discard(length) => entry.offset + length,
        Action::Mark(_) => 0,
    };
    assert!(entries.iter().all(|entry| end(entry) <= 64 << 20), "past the end of the disk");
}
