//! Locks for synchronous code whose requests run at once: those of [`std::sync`], for threads of which the harness lets one run at a time.
//!
//! ```text
//!   thread of request 1      lock ─ write ─ ...................... ─ unlock      waits for its I/O with the lock held
//!   thread of request 2               lock? ─ waits, and says so                 ─ lock ─
//! ```
//!
//! A thread that waits for a lock of the operating system says nothing: the harness would wait for it, and it for the I/O of the thread that
//! has the lock, which only the harness ends. So whoever holds a lock across a call of the file uses these. Before a lock is taken others
//! may get ahead of who takes it, as the seed says, so that an order between two sections is not taken for granted.
//!
//! In a thread that the harness did not call in they are the locks of the standard library; so code can use them everywhere, or in their
//! place under a flag of its own.
//!
//! **Invariant.** Whoever lets go of something, or notifies, puts up a new number on the board of the image before the next one runs; who
//! waits does so for a number other than the one that it has seen. If all wait, none will come: a deadlock, which is a finding (P7).

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{self, LockResult, PoisonError, TryLockError, TryLockResult};
use std::thread;

use super::plain_file::{Ask, Line, unwind};

/// So often a lock is tried after a power cut.
const MOST_REFUSED: u32 = 1_000;

/// Lets others get ahead.
fn pause() {
    if let Some(line) = Line::own() {
        let _ = line.ask(Ask::Pause);
    }
}

/// Tells those who wait that something was let go of.
fn let_go() {
    if let Some(line) = Line::own() {
        line.board.put_up();
    }
}

/// Takes what `take` gives once it gives it; none if the operating system has to wait for it, because the harness does not.
fn taken<G>(mut take: impl FnMut() -> TryLockResult<G>) -> Option<LockResult<G>> {
    let line = Line::own()?;
    pause();
    let mut refused = 0;
    loop {
        let seen = line.board.number();
        match take() {
            Ok(guard) => return Some(Ok(guard)),
            Err(TryLockError::Poisoned(poisoned)) => return Some(Err(poisoned)),
            Err(TryLockError::WouldBlock) if line.ask(Ask::Wait(seen)).is_some() => {}
            // After a power cut the others run as well, and let go of what they have; but for those that wait for each other.
            Err(TryLockError::WouldBlock) if refused < MOST_REFUSED => {
                refused += 1;
                thread::yield_now();
            }
            Err(TryLockError::WouldBlock) => {
                unwind();
                return None;
            }
        }
    }
}

fn map_lock<G, T>(result: LockResult<G>, map: impl FnOnce(G) -> T) -> LockResult<T> {
    match result {
        Ok(guard) => Ok(map(guard)),
        Err(poisoned) => Err(PoisonError::new(map(poisoned.into_inner()))),
    }
}

macro_rules! guards {
    ($($(#[$about:meta])* $name:ident of $inner:ident;)*) => {$(
        $(#[$about])*
        #[derive(Debug)]
        pub struct $name<'a, T: ?Sized> {
            /// None while it is let go of.
            inner: Option<sync::$inner<'a, T>>,
        }

        impl<'a, T: ?Sized> $name<'a, T> {
            fn new(inner: sync::$inner<'a, T>) -> Self {
                Self { inner: Some(inner) }
            }
        }

        impl<T: ?Sized> Deref for $name<'_, T> {
            type Target = T;

            fn deref(&self) -> &T {
                self.inner.as_deref().expect("it holds until it is dropped")
            }
        }

        impl<T: ?Sized> Drop for $name<'_, T> {
            fn drop(&mut self) {
                if self.inner.take().is_some() {
                    let_go();
                }
            }
        }
    )*};
}

guards! {
    /// That a [`RwLock`] is held for reading.
    ReadGuard of RwLockReadGuard;
    /// That a [`RwLock`] is held for writing.
    WriteGuard of RwLockWriteGuard;
}

impl<T: ?Sized> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_deref_mut().expect("it holds until it is dropped")
    }
}

/// That a [`Mutex`] is held.
#[derive(Debug)]
pub struct Guard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    /// None while it is let go of.
    inner: Option<sync::MutexGuard<'a, T>>,
}

impl<T: ?Sized> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_deref().expect("it holds until it is dropped")
    }
}

impl<T: ?Sized> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_deref_mut().expect("it holds until it is dropped")
    }
}

impl<T: ?Sized> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        if self.inner.take().is_some() {
            let_go();
        }
    }
}

/// [`std::sync::Mutex`].
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(sync::Mutex<T>);

impl<T> Mutex<T> {
    /// One that is free.
    pub const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    /// What it held.
    ///
    /// # Errors
    /// If somebody panicked with it.
    pub fn into_inner(self) -> LockResult<T> {
        self.0.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits until it is free, and takes it.
    ///
    /// # Errors
    /// If somebody panicked with it.
    pub fn lock(&self) -> LockResult<Guard<'_, T>> {
        let taken = taken(|| self.0.try_lock()).unwrap_or_else(|| self.0.lock());
        map_lock(taken, |inner| Guard { mutex: self, inner: Some(inner) })
    }

    /// What it holds, which nobody else has.
    ///
    /// # Errors
    /// If somebody panicked with it.
    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        self.0.get_mut()
    }
}

/// [`std::sync::RwLock`].
#[derive(Debug, Default)]
pub struct RwLock<T: ?Sized>(sync::RwLock<T>);

impl<T> RwLock<T> {
    /// One that is free.
    pub const fn new(value: T) -> Self {
        Self(sync::RwLock::new(value))
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Waits until nobody writes.
    ///
    /// # Errors
    /// If somebody panicked while writing.
    pub fn read(&self) -> LockResult<ReadGuard<'_, T>> {
        let taken = taken(|| self.0.try_read()).unwrap_or_else(|| self.0.read());
        map_lock(taken, ReadGuard::new)
    }

    /// Waits until it is free.
    ///
    /// # Errors
    /// If somebody panicked while writing.
    pub fn write(&self) -> LockResult<WriteGuard<'_, T>> {
        let taken = taken(|| self.0.try_write()).unwrap_or_else(|| self.0.write());
        map_lock(taken, WriteGuard::new)
    }
}

/// [`std::sync::Condvar`]. Whoever waits may be woken for nothing, as there.
#[derive(Debug, Default)]
pub struct Condvar {
    /// How often somebody was to be woken.
    notified: AtomicU64,
    inner: sync::Condvar,
}

impl Condvar {
    /// One for which nobody waits.
    pub const fn new() -> Self {
        Self { notified: AtomicU64::new(0), inner: sync::Condvar::new() }
    }

    /// Lets go of what `guard` holds until somebody notifies, and takes it again.
    ///
    /// # Errors
    /// If somebody panicked with it.
    pub fn wait<'a, T>(&self, mut guard: Guard<'a, T>) -> LockResult<Guard<'a, T>> {
        let mutex = guard.mutex;
        let Some(line) = Line::own() else {
            let inner = guard.inner.take().expect("it holds until it is dropped");
            let waited = self.inner.wait(inner);
            return map_lock(waited, |inner| Guard { mutex, inner: Some(inner) });
        };
        let notified = self.notified.load(Ordering::SeqCst);
        drop(guard);
        loop {
            let seen = line.board.number();
            if self.notified.load(Ordering::SeqCst) != notified {
                return mutex.lock();
            }
            if line.ask(Ask::Wait(seen)).is_none() {
                // Who was to notify will not, any more.
                unwind();
                return mutex.lock();
            }
        }
    }

    /// Waits as long as `waits` says so of what is held.
    ///
    /// # Errors
    /// If somebody panicked with it.
    pub fn wait_while<'a, T>(
        &self,
        mut guard: Guard<'a, T>,
        mut waits: impl FnMut(&mut T) -> bool,
    ) -> LockResult<Guard<'a, T>> {
        while waits(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Wakes one that waits, or more.
    pub fn notify_one(&self) {
        self.notify_all();
    }

    /// Wakes all that wait.
    pub fn notify_all(&self) {
        self.notified.fetch_add(1, Ordering::SeqCst);
        self.inner.notify_all();
        let_go();
    }
}
