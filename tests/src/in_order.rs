//! What is asked for in one poll, in order: for implementations that write all tables of a cache at once, in the order of a hash map.
//!
//! ```text
//!   poll ──> a request ──> write 0xa00, write 0x400 ──> queue ──after the poll──> submit 0x400, 0xa00
//!               ^                                                                     |
//!               '------------------------ woken meanwhile? <--------------------------'
//! ```
//!
//! **Invariant.** What is submitted is a function of what was asked for, and not of the order in which it was: the keys of a hash map are
//! random, so that order is another one each time, and a case would be none. Requests run through [`InOrder::run`], and what these write,
//! in whichever of the orders that they take, through [`InOrder::write`]. What that asks of the file is asked at the end of a poll: the first
//! I/O of a write, and those that follow it, because several may go on in one poll, too. How often a request wakes itself depends on that order too, so it is polled until it waits for somebody else.

use std::future::poll_fn;
use std::io;
use std::mem::take;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

/// The writes to one file. Clones are the same.
#[derive(Clone, Default)]
pub struct InOrder(Arc<Mutex<Vec<Weak<Mutex<Write>>>>>);

struct Write {
    offset: u64,
    io: Pin<Box<dyn Future<Output = io::Result<()>> + Send>>,
    outcome: Option<io::Result<()>>,
    waker: Waker,
}

impl Write {
    /// Its turn.
    fn go_on(&mut self) {
        if self.outcome.is_none()
            && let Poll::Ready(done) = self.io.as_mut().poll(&mut Context::from_waker(&self.waker))
        {
            self.outcome = Some(done);
            self.waker.wake_by_ref();
        }
    }
}

impl InOrder {
    /// Runs `work`, such as a request; what it asks for in each poll is submitted after that poll, in order of offset.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let task = Arc::new(Task(Mutex::new(Woken::Polled { again: false })));
        let waker = Waker::from(Arc::clone(&task));
        poll_fn(|context| {
            loop {
                *lock(&task.0) = Woken::Polled { again: false };
                let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
                // One whose future was dropped is gone.
                let asked = take(&mut *lock(&self.0));
                let mut writes: Vec<_> = asked.iter().filter_map(Weak::upgrade).collect();
                writes.sort_by_key(|write| lock(write).offset);
                writes.dedup_by(|one, other| Arc::ptr_eq(one, other));
                writes.iter().for_each(|write| lock(write).go_on());
                let mut woken = lock(&task.0);
                if polled.is_ready() || matches!(*woken, Woken::Polled { again: false }) {
                    *woken = Woken::Later(context.waker().clone());
                    return polled;
                }
            }
        })
        .await
    }

    /// Does `io`, which writes at `offset` of the file; each step of it is taken at the end of a poll.
    ///
    /// # Errors
    /// As `io`.
    pub async fn write(
        &self,
        offset: u64,
        io: impl Future<Output = io::Result<()>> + Send + 'static,
    ) -> io::Result<()> {
        let (io, waker) = (Box::pin(io), Waker::noop().clone());
        let write = Arc::new(Mutex::new(Write { offset, io, outcome: None, waker }));
        poll_fn(|context| {
            let mut this = lock(&write);
            if let Some(outcome) = this.outcome.take() {
                return Poll::Ready(outcome);
            }
            this.waker.clone_from(context.waker());
            lock(&self.0).push(Arc::downgrade(&write));
            Poll::Pending
        })
        .await
    }
}

/// The waker of what runs: it passes on what comes from outside, and keeps what the future does itself.
struct Task(Mutex<Woken>);

enum Woken {
    /// While it is polled: whether it is to be polled again.
    Polled { again: bool },
    /// Afterwards: who is to know.
    Later(Waker),
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        match &mut *lock(&self.0) {
            Woken::Polled { again } => *again = true,
            Woken::Later(waker) => waker.wake_by_ref(),
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::rc::Rc;
    use std::task::Poll;

    use faultfs::chooser::Always;
    use faultfs::disk::PossibleDisk;
    use faultfs::exec::{Sim, SimOptions, StepResult};
    use faultfs::schedule::RandomOrder;
    use faultfs::values::Values;
    use qcow2_core::storage::AnyStorage;

    use super::InOrder;
    use crate::byte_file::ByteFile;

    /// All of them at once, begun in their order.
    async fn all(mut parts: Vec<Pin<Box<dyn Future<Output = ()>>>>) {
        poll_fn(|context| {
            parts.retain_mut(|part| part.as_mut().poll(context).is_pending());
            if parts.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The trace of two requests at once, each of which writes at these places at once and then at others; and what was in the file then.
    fn trace_of(seed: u64, order: [&[u64]; 2], sorted: bool) -> (u64, Vec<u8>) {
        let disk = PossibleDisk::new(&Values::new(), 0);
        let mut sim = Sim::new(disk, SimOptions::new(RandomOrder::new(seed), Always(0)));
        let slot = Rc::new(RefCell::new(None));
        let (storage, into) = (sim.storage(), Rc::clone(&slot));
        sim.spawn("open", async move {
            *into.borrow_mut() = Some(ByteFile::new(AnyStorage::new(storage)).await.unwrap());
        });
        assert_eq!(sim.run(), StepResult::Done);
        let file: ByteFile = slot.take().unwrap();
        let queue = InOrder::default();
        for (request, places) in order.into_iter().enumerate() {
            let (file, queue, places) = (file.clone(), queue.clone(), places.to_vec());
            sim.spawn("request", async move {
                for round in 0..2 {
                    let writes = places.iter().map(|&place| {
                        let (file, queue) = (file.clone(), queue.clone());
                        let at = (place * 4 + round * 2 + request as u64) * 512;
                        let part: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
                            let data = [place as u8; 512];
                            // More than one I/O: those after the first wait for their turn, too.
                            let io = async move {
                                file.write_at(at, &data[..256]).await?;
                                file.write_at(at + 256, &data[256..]).await
                            };
                            if sorted { queue.write(at, io).await } else { io.await }.unwrap();
                        });
                        part
                    });
                    queue.run(all(writes.collect())).await;
                }
            });
        }
        assert_eq!(sim.run(), StepResult::Done);
        let read = Rc::new(RefCell::new(vec![0; 16 << 10]));
        let into = Rc::clone(&read);
        sim.spawn("read", async move {
            let mut all = vec![0; into.borrow().len()];
            file.read_at(0, &mut all).await.unwrap();
            *into.borrow_mut() = all;
        });
        let hash = sim.trace_hash();
        assert_eq!(sim.run(), StepResult::Done);
        (hash, read.take())
    }

    /// Goal: what is submitted, and when, does not depend on the order in which it was asked for, also with another request beside; and all of it
    /// is done. Method: the same writes in two orders at many schedules; without the queue the traces differ.
    #[test]
    fn what_is_submitted_is_no_matter_of_the_order_in_which_it_was_asked_for() {
        let one: [&[u64]; 2] = [&[1, 2, 3, 4, 5, 6], &[7, 1, 3]];
        let other: [&[u64]; 2] = [&[4, 6, 2, 1, 5, 3], &[3, 7, 1]];
        let mut differ = 0;
        for seed in 0..200 {
            let (trace, read) = trace_of(seed, one, true);
            assert_eq!(
                (trace, &read),
                (trace_of(seed, other, true).0, &trace_of(seed, other, false).1)
            );
            for (unit, bytes) in read.chunks(512).enumerate() {
                let (place, of) = (unit as u64 / 4, unit % 2);
                let wanted = if one[of].contains(&place) { place as u8 } else { 0 };
                assert!(bytes.iter().all(|byte| *byte == wanted), "seed {seed}, unit {unit}");
            }
            differ += usize::from(trace_of(seed, one, false).0 != trace_of(seed, other, false).0);
        }
        assert!(differ > 150, "{differ}");
    }
}
