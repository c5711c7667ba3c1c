//! Reading what may be longer than one transfer of the storage.

use std::io;

use storage::{IoBuf, Storage};

/// Fills `buf`, whole sectors, from `offset` on. The buffer comes back in every case; of what failed, where it began.
pub(crate) async fn read_whole<S: Storage>(
    storage: &S,
    offset: u64,
    buf: IoBuf,
) -> (IoBuf, Result<(), (u64, io::Error)>) {
    let most = storage.limits().max_transfer;
    let mut rest = buf;
    let mut done = IoBuf::default();
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(most));
        let at = offset + done.len() as u64;
        let (piece, read) = storage.read(at, piece).await;
        done.unsplit(piece);
        if let Err(source) = read {
            done.unsplit(rest);
            return (done, Err((at, source)));
        }
    }
    (done, Ok(()))
}
