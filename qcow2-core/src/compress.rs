//! Compressed clusters: from what a guest cluster is to read as to a stream, on whatever thread the caller has for it.
//!
//! ```text
//!   write_compressed      |#### cluster ####|#### cluster ####|#### cluster ####| ...      a window of them at a time
//!   Executor                   compress          compress          compress               each a piece of work by itself
//!   image                 put in the file, one after the other, in the order of the disk  (write_compressed)
//! ```
//!
//! **Invariant.** A stream is shorter than its cluster by a sector of the storage at least; what is not is no stream, and its cluster is
//! written as it is.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crate::decompress::WINDOW_BITS;
#[cfg(doc)]
use crate::error::IoError;
use crate::format::header::CompressionType;
use storage::IoBuf;

/// What runs the work of compressing, which takes a processor and no I/O.
///
/// ```
/// use qcow2_core::{Executor, Work};
///
/// /// A thread for each guest cluster.
/// struct Threads;
///
/// impl Executor for Threads {
///     fn run(&self, work: Box<dyn FnOnce() + Send>) {
///         std::thread::spawn(work);
///     }
/// }
/// ```
pub trait Executor: Send + Sync {
    /// Does this, now or soon, on any thread. If it is dropped instead, its request fails with [`IoError::NotCompressed`].
    fn run(&self, work: Box<dyn FnOnce() + Send>);
}

/// Does the work at once, on the thread that polls the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inline;

impl Executor for Inline {
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}

/// What the guest clusters of an image are compressed with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compressor {
    pub(crate) kind: CompressionType,
    /// Bytes of a guest cluster, and of a sector of the storage.
    pub(crate) cluster: usize,
    pub(crate) sector: usize,
}

impl Compressor {
    /// The stream of a guest cluster that begins with `data` and goes on in zeroes; none if it would save nothing.
    fn compress(self, data: &[u8]) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        let data = if data.len() == self.cluster {
            data
        } else {
            whole.extend_from_slice(data);
            whole.resize(self.cluster, 0);
            &whole
        };
        let mut stream = vec![0; self.cluster.checked_sub(self.sector).filter(|&most| most > 0)?];
        let len = match self.kind {
            CompressionType::Deflate => {
                let level = flate2::Compression::default();
                let mut deflate = flate2::Compress::new_with_window_bits(level, false, WINDOW_BITS);
                let done = deflate.compress(data, &mut stream, flate2::FlushCompress::Finish);
                let is_whole = matches!(done, Ok(flate2::Status::StreamEnd));
                is_whole.then(|| usize::try_from(deflate.total_out()).expect("it is in memory"))?
            }
            CompressionType::Zstd => {
                let mut context = zstd::zstd_safe::CCtx::try_create()?;
                let level = zstd::zstd_safe::CLEVEL_DEFAULT;
                context.compress(&mut stream[..], data, level).ok()?
            }
        };
        stream.truncate(len);
        Some(stream)
    }

    /// Lets `executor` compress the beginning of a guest cluster.
    pub(crate) fn start(self, data: IoBuf, executor: &dyn Executor) -> Compression {
        let slot = Arc::new(Mutex::new(Slot::Waiting(None)));
        let job = Job { data, slot: Arc::clone(&slot) };
        executor.run(Box::new(move || {
            let stream = self.compress(&job.data);
            job.done(stream);
        }));
        Compression(slot)
    }
}

/// What became of a guest cluster: its data, and its stream if it has one that saves anything; none of both if its work was dropped.
pub(crate) struct Compressed {
    pub(crate) data: IoBuf,
    pub(crate) outcome: Option<Option<Vec<u8>>>,
}

enum Slot {
    Waiting(Option<Waker>),
    Done(Compressed),
    Taken,
}

/// The work on one guest cluster, whose data comes back whatever becomes of it.
struct Job {
    data: IoBuf,
    slot: Arc<Mutex<Slot>>,
}

impl Job {
    fn done(mut self, stream: Option<Vec<u8>>) {
        self.put(Some(stream));
    }

    fn put(&mut self, outcome: Option<Option<Vec<u8>>>) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Slot::Waiting(waker) = &mut *slot {
            let waker = waker.take();
            let data = std::mem::take(&mut self.data);
            *slot = Slot::Done(Compressed { data, outcome });
            drop(slot);
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.put(None);
    }
}

/// The compression of one guest cluster that an executor was given.
pub(crate) struct Compression(Arc<Mutex<Slot>>);

impl Compression {
    /// Waits until the work is done, or dropped.
    pub(crate) async fn done(self) -> Compressed {
        poll_fn(|context| {
            let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *slot {
                Slot::Waiting(waker) => {
                    *waker = Some(context.waker().clone());
                    Poll::Pending
                }
                done => match std::mem::replace(done, Slot::Taken) {
                    Slot::Done(compressed) => Poll::Ready(compressed),
                    _ => unreachable!("it is waited for once"),
                },
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::Compressor;
    use crate::decompress::decompress;
    use crate::format::header::CompressionType::{Deflate, Zstd};

    #[test]
    fn a_stream_gives_what_it_was_made_of_and_zeroes() {
        for (kind, cluster) in [(Deflate, 1024), (Deflate, 1 << 16), (Zstd, 1024), (Zstd, 1 << 21)]
        {
            let compressor = Compressor { kind, cluster, sector: 512 };
            for len in [512, cluster / 2, cluster] {
                let data: Vec<u8> = (0..len).map(|at| (at / 400) as u8).collect();
                let stream = compressor.compress(&data).expect("it compresses");
                let mut whole = vec![0xee; cluster];
                assert_eq!(decompress(kind, &stream, &mut whole), Ok(()));
                assert!(whole[..len] == data && whole[len..].iter().all(|&byte| byte == 0));
            }
        }
    }

    #[test]
    fn what_saves_no_sector_is_no_stream() {
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        for kind in [Deflate, Zstd] {
            let compressor = Compressor { kind, cluster: 4096, sector: 512 };
            let mut data: Vec<u8> = (0..4096).map(|_| noise()).collect();
            assert_eq!(compressor.compress(&data), None);
            data[..400].fill(0);
            assert_eq!(compressor.compress(&data), None, "it saves less than a sector");
            data[..800].fill(0);
            let stream = compressor.compress(&data).expect("it saves one");
            assert!(stream.len() <= 4096 - 512, "{}", stream.len());
            let zeroes = Compressor { kind, cluster: 512, sector: 512 }.compress(&[0; 512]);
            assert_eq!(zeroes, None, "a sector is the least");
            let zeroes = Compressor { kind, cluster: 4096, sector: 4096 }.compress(&[0; 4096]);
            assert_eq!(zeroes, None, "a sector is the least");
        }
    }
}
