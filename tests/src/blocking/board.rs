//! Where the threads of an image see that something was let go of, and the harness whom it has to wake.

use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Where it is put up that something was let go of.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<Posted>);

#[derive(Debug, Default)]
struct Posted {
    number: u64,
    wakers: Vec<Waker>,
}

impl Board {
    fn posted(&self) -> MutexGuard<'_, Posted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What stands there now.
    pub(super) fn number(&self) -> u64 {
        self.posted().number
    }

    /// Puts up the next number.
    pub(super) fn put_up(&self) {
        let mut posted = self.posted();
        posted.number += 1;
        posted.wakers.drain(..).for_each(Waker::wake);
    }

    /// Returns once the number is another one than `seen`.
    pub(super) fn changed(self: &Arc<Self>, seen: u64) -> impl Future<Output = ()> + use<> {
        let board = Arc::clone(self);
        poll_fn(move |context| {
            let mut posted = board.posted();
            if posted.number != seen {
                return Poll::Ready(());
            }
            posted.wakers.push(context.waker().clone());
            Poll::Pending
        })
    }
}
