//! Many requests at once on one thread: all of them take `&self`, and each is a future that whoever runs it may interleave.
//!
//! The executor here is the smallest that works: it polls what was woken, and parks the thread where nothing was.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};

use qcow2_core::blocking::block_on;
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf};
use qcow2_core::{CreateOptions, Image, OpenOptions};

/// Wakes one future of [`run_all`].
struct Woken {
    thread: Thread,
    again: AtomicBool,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.again.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Runs all of them to their ends.
fn run_all(futures: Vec<impl Future<Output = ()>>) {
    let woken = || Woken { thread: thread::current(), again: AtomicBool::new(true) };
    let mut running: Vec<_> =
        futures.into_iter().map(|future| (Arc::new(woken()), Box::pin(future))).collect();
    while !running.is_empty() {
        let mut idle = true;
        running.retain_mut(|(woken, future)| {
            if !woken.again.swap(false, Ordering::Acquire) {
                return true;
            }
            idle = false;
            let waker = Waker::from(Arc::clone(woken));
            Pin::as_mut(future).poll(&mut Context::from_waker(&waker)).is_pending()
        });
        if idle {
            thread::park();
        }
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let storage = MemoryStorage::default();
    block_on(qcow2_core::create(&storage, &CreateOptions::new(64 << 20)))?;
    let image = block_on(Image::open(storage, OpenOptions::new()))?;
    // Neighbours share an L2 table and a page of refcounts; the image keeps the requests apart where that is needed.
    let write = async |number: u64| {
        let buf = IoBuf::copy_of(&[number as u8; 4096], 1);
        let (_, result) = image.write(number * 4096, buf, Durability::Cached).await;
        result.expect("there is room in memory");
    };
    run_all((0..200).map(&write).collect());
    block_on(image.flush())?;
    for number in 0..200 {
        let (buf, result) = block_on(image.read(number * 4096, IoBuf::zeroed(4096, 1)));
        result?;
        assert!(buf.iter().all(|&byte| byte == number as u8));
    }
    block_on(image.close())?;
    println!("200 writes at once");
    Ok(())
}
