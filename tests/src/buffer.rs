//! What a subject is given to read into.

use model::payload::{self, UNIT};
use qcow2_core::storage::IoBuf;

/// A buffer to read into, full of what no guest may see: what a read leaves as it was is no zero.
///
/// # Panics
/// If there is no memory for it.
pub fn to_read_into(length: u64) -> IoBuf {
    let length = usize::try_from(length).expect("it fits in memory");
    let mut buf = IoBuf::with_capacity(length, UNIT);
    let stale = payload::unit(0, payload::STALE);
    while buf.len() < length {
        buf.extend_from_slice(&stale[..UNIT.min(length - buf.len())]);
    }
    buf
}
