//! A clock beside a run: a subject that goes round in a circle, or waits for a lock, comes back from no call, and nothing in a process can
//! end that.
//!
//! ```text
//!   worker    doing "case 7 of seed 1"     call ──── back     call ─────────────────────────── ...
//!   watcher                            tick          tick          tick     tick  ...  tick: stuck
//! ```
//!
//! Each call and each return is a beat. A call that had none for so many ticks is stuck: the process says in what, and ends; a case that it
//! names can be run by itself. A future that waits has returned: that is another thing, and a finding (P7).
//!
//! **Invariant.** The watcher decides nothing but that. It counts its own ticks, so that a process that is stopped for a while is not stuck.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use crate::bystander;

const TICK: Duration = Duration::from_secs(1);

/// A call that takes so many seconds is stuck. Recovery is one call: of a large image without optimisation it takes one or two.
pub const PATIENCE: u32 = 60;

/// The exit status of a process that ends because it is stuck, where a supervisor goes on past it.
pub(crate) const STUCK: u8 = 70;

/// What a thread does.
#[derive(Debug)]
struct Post {
    /// Which of the posts it is: the lowest that no other has.
    number: u64,
    /// Calls and returns, up to now.
    beats: AtomicU64,
    /// Calls that have not returned.
    depth: AtomicU64,
    doing: Mutex<String>,
    /// Whether its thread has ended.
    left: AtomicBool,
}

/// The post of one thread.
struct Manned(Arc<Post>);

impl Drop for Manned {
    fn drop(&mut self) {
        // In this order: the number is another's when it is left.
        bystander::tell(self.0.number, "");
        self.0.left.store(true, Ordering::Relaxed);
    }
}

static POSTS: Mutex<Vec<Arc<Post>>> = Mutex::new(Vec::new());

thread_local! {
    static POST: Manned = {
        let mut posts = POSTS.lock().unwrap_or_else(PoisonError::into_inner);
        posts.retain(|post| !post.left.load(Ordering::Relaxed));
        let taken = |number: &u64| posts.iter().any(|post| post.number == *number);
        let post = Arc::new(Post {
            number: (0..).find(|number| !taken(number)).unwrap_or(u64::MAX),
            beats: AtomicU64::new(0),
            depth: AtomicU64::new(0),
            doing: Mutex::default(),
            left: AtomicBool::new(false),
        });
        posts.push(Arc::clone(&post));
        Manned(post)
    };
}

/// What this thread does from now on, should it be the last thing.
pub fn doing(what: String) {
    POST.with(|Manned(post)| bystander::tell(post.number, &what));
    helping(what);
}

/// The same of a thread that helps one that has said so.
pub(crate) fn helping(what: String) {
    POST.with(|Manned(post)| *post.doing.lock().unwrap_or_else(PoisonError::into_inner) = what);
}

/// What this thread does.
pub(crate) fn done() -> String {
    POST.with(|Manned(post)| post.told())
}

/// A call into a subject, whose end is seen however it ends.
pub(crate) fn call<T>(work: impl FnOnce() -> T) -> T {
    struct Return;
    impl Drop for Return {
        fn drop(&mut self) {
            beat(u64::MAX);
        }
    }
    fn beat(deeper: u64) {
        POST.with(|Manned(post)| {
            // Only this thread writes these.
            post.beats.store(post.beats.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            let depth = post.depth.load(Ordering::Relaxed);
            post.depth.store(depth.wrapping_add(deeper), Ordering::Relaxed);
        });
    }
    beat(1);
    let _return = Return;
    work()
}

impl Post {
    fn told(&self) -> String {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// From now on a call that does not return for `patience` seconds ends the process, with the exit status `code`.
pub fn begin(patience: u32, code: u8) {
    static BEGIN: Once = Once::new();
    BEGIN.call_once(|| {
        #[expect(clippy::disallowed_methods, reason = "it looks on and decides nothing in a case")]
        std::thread::spawn(move || {
            let mut watch = Watch::default();
            loop {
                std::thread::sleep(TICK);
                let stuck = watch.tick(patience);
                if !stuck.is_empty() {
                    for doing in stuck {
                        // Nobody may be there any more to hear it.
                        let _ = writeln!(
                            std::io::stderr().lock(),
                            "{doing}: the subject has not come back from a call for {patience} s; nothing but the end of this process ends that. \
                             (A lock of its own that one request waits for while another waits for the storage is such a call: `blocking::sync`.)"
                        );
                    }
                    if bystander::folder().is_some() {
                        std::process::exit(i32::from(STUCK));
                    }
                    bystander::end();
                    std::process::exit(i32::from(code));
                }
            }
        });
    });
}

/// What was seen at the last tick.
#[derive(Debug, Default)]
struct Watch {
    /// By the address of a post: its beats, and for how many ticks they have been that.
    seen: BTreeMap<usize, (u64, u32)>,
}

impl Watch {
    /// What the threads do whose call had no beat in the last ticks.
    fn tick(&mut self, patience: u32) -> Vec<String> {
        let posts = POSTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let before = std::mem::take(&mut self.seen);
        let mut stuck = Vec::new();
        let calls = |post: &&Arc<Post>| {
            post.depth.load(Ordering::Relaxed) > 0 && !post.left.load(Ordering::Relaxed)
        };
        for post in posts.iter().filter(calls) {
            let (at, beats) = (Arc::as_ptr(post).addr(), post.beats.load(Ordering::Relaxed));
            let ticks = match before.get(&at) {
                Some(&(same, ticks)) if same == beats => ticks + 1,
                _ => 0,
            };
            self.seen.insert(at, (beats, ticks));
            if ticks >= patience {
                stuck.push(post.told());
            }
        }
        stuck
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::sync::mpsc;

    use super::{Manned, POST, Watch, call, doing};

    /// Goal: a call that does not return is told, with what it is in, and nothing else is. Method: two threads, one of which calls and returns
    /// between ticks and one that does not.
    #[test]
    fn a_call_that_does_not_return_is_told() {
        let (end, ends) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let (step, steps) = mpsc::channel::<()>();
        let (stepped, at) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                doing("stuck".to_owned());
                call(|| {
                    begun.send(()).unwrap();
                    let _ = ends.recv();
                });
            });
            scope.spawn(move || {
                doing("at work".to_owned());
                // What ends in another way than by returning has ended.
                let _ =
                    std::panic::catch_unwind(|| call(|| std::panic::resume_unwind(Box::new(1))));
                assert_eq!(POST.with(|Manned(post)| post.depth.load(Ordering::Relaxed)), 0);
                while steps.recv().is_ok() {
                    call(|| call(|| stepped.send(()).unwrap()));
                }
            });
            begins.recv().unwrap();
            let mut watch = Watch::default();
            let mut told = Vec::new();
            for _ in 0..5 {
                step.send(()).unwrap();
                at.recv().unwrap();
                told.push(watch.tick(3));
            }
            // Other tests call, too, and return.
            let of = |told: &Vec<String>| {
                told.iter().filter(|told| *told == "stuck" || *told == "at work").count()
            };
            assert_eq!(told.iter().map(of).collect::<Vec<_>>(), [0, 0, 0, 1, 1], "{told:?}");
            assert!(told[4].contains(&"stuck".to_owned()));
            drop(end);
            drop(step);
        });
    }

    /// Goal: no two threads that do something have the same number, and numbers stay few. Method: threads one after the other beside one that stays.
    #[test]
    fn a_number_is_given_again_when_it_is_left() {
        let number = || {
            doing("at work".to_owned());
            POST.with(|Manned(post)| post.number)
        };
        let own = number();
        let others: Vec<u64> =
            (0..200).map(|_| std::thread::scope(|it| it.spawn(number).join()).unwrap()).collect();
        assert!(!others.contains(&own));
        // Other tests have threads, too.
        assert!(others.iter().max() < Some(&100), "{others:?}");
    }
}
