//! A subject that panics is a finding, not the end of the run.
//!
//! What is caught is noted for the thread, which runs the case to its end; whoever watches the case asks for it ([`take`]). A payload that
//! is no text is not a subject's, and goes on its way.
//!
//! What panics while a panic unwinds, such as the second of two values whose `Drop` does, ends the process: nobody can catch that. Both are
//! printed then, and what this thread was doing.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::path::Path;
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};

use crate::watch;

thread_local! {
    /// How many calls deep this thread is in what may panic.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// The panic that is unwinding, and how deep it began.
    static UNWINDING: RefCell<Option<(u32, String)>> = const { RefCell::new(None) };
    /// The first panic that was caught and that nobody has asked for.
    static NOTED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The first panic in this thread since the last call.
pub fn take() -> Option<String> {
    NOTED.with_borrow_mut(Option::take)
}

/// Notes a panic that was caught in another thread.
pub fn note(text: String) {
    NOTED.with_borrow_mut(|noted| {
        noted.get_or_insert(text);
    });
}

/// What another thread panicked with, and where.
struct Again(String);

/// Panics with what was noted in another thread, as if it had been in this one.
pub fn again(noted: String) -> ! {
    panic::panic_any(Again(noted))
}

/// Runs `work`; none if it panics, which is noted and not printed.
pub fn catch<T>(work: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| match text_of(info) {
            Some(text) if DEPTH.get() > 0 => {
                if let Some(told) = second(&text) {
                    eprintln!("{told}");
                }
                note(text);
            }
            _ => before(info),
        }));
    });
    DEPTH.set(DEPTH.get() + 1);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    UNWINDING.with_borrow_mut(|first| *first = first.take().filter(|(at, _)| *at < DEPTH.get()));
    DEPTH.set(DEPTH.get() - 1);
    match done {
        Ok(value) => Some(value),
        Err(payload) if payload.is::<String>() || payload.is::<&str>() || payload.is::<Again>() => {
            None
        }
        Err(payload) => panic::resume_unwind(payload),
    }
}

/// The same for work that has to return soon, see [`watch`].
pub fn call<T>(work: impl FnOnce() -> T) -> Option<T> {
    watch::call(|| catch(work))
}

/// What there is to say of a panic that meets another one, which ends the process. One that meets none may be met.
fn second(text: &str) -> Option<String> {
    UNWINDING.with_borrow_mut(|first| match first {
        Some((at, first)) if *at == DEPTH.get() => {
            let doing = watch::done();
            Some(format!(
                "{doing}: the subject panics while it is unwound from a panic. Unless it catches that itself, the process ends.\n  first: {first}\n  then:  {text}"
            ))
        }
        Some(_) => None,
        first => {
            *first = Some((DEPTH.get(), text.to_owned()));
            None
        }
    })
}

/// What is said and where, if it is a text.
fn text_of(info: &PanicHookInfo<'_>) -> Option<String> {
    let payload = info.payload();
    if let Some(Again(noted)) = payload.downcast_ref() {
        return Some(noted.clone());
    }
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied())?;
    let place = info.location();
    let place = place.map(|place| format!(" ({}:{})", in_package(place.file()), place.line()));
    Some(format!("{text}{}", place.unwrap_or_default()))
}

/// Where what was noted was said, as file and line, if that is known.
pub fn place_in(noted: &str) -> Option<&str> {
    let (_, place) = noted.strip_suffix(')')?.rsplit_once(" (")?;
    let (_, line) = place.rsplit_once(':')?;
    line.bytes().all(|byte| byte.is_ascii_digit()).then_some(place)
}

/// A source file without the folder in which its package is, which is of one machine.
fn in_package(file: &str) -> &str {
    if let Some((_, kept)) = file.split_once("/registry/src/") {
        return kept.split_once('/').map_or(kept, |(_, file)| file);
    }
    let above = match file.rfind("/src/") {
        Some(source) if Path::new(file).is_absolute() => file[..source].rfind('/'),
        _ => None,
    };
    above.map_or(file, |above| &file[above + 1..])
}

/// A future whose panics are caught, when it is polled and when it is dropped: none then.
#[derive(Debug)]
pub struct Caught<F>(Option<Pin<Box<F>>>);

impl<F: Future> Caught<F> {
    /// Catches what `future` panics with.
    pub fn new(future: F) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<F: Future> Future for Caught<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.0 else { return Poll::Ready(None) };
        let polled = call(|| future.as_mut().poll(context));
        if let Some(Poll::Pending) = polled {
            return Poll::Pending;
        }
        let future = self.0.take();
        let dropped = call(|| drop(future));
        Poll::Ready(match (polled, dropped) {
            (Some(Poll::Ready(value)), Some(())) => Some(value),
            _ => None,
        })
    }
}

impl<F> Drop for Caught<F> {
    fn drop(&mut self) {
        let future = self.0.take();
        if future.is_some() {
            call(|| drop(future));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic;

    use super::{Caught, again, catch, in_package, place_in, second, take};
    use crate::watch::doing;
    use faultfs::direct::run;

    struct Falls;

    impl Drop for Falls {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    /// Goal: what panics is told apart from what ends, wherever it does. Method: in a call, at a poll, in what a future leaves behind.
    #[test]
    fn a_panic_is_noted_once() {
        assert_eq!((catch(|| 1), take()), (Some(1), None));
        assert_eq!(catch(|| panic!("in {}", "a call")), None::<()>);
        let noted = take().unwrap();
        assert!(noted.starts_with("in a call (") && noted.contains("panics.rs:"), "{noted}");
        let place = place_in(&noted).unwrap();
        assert_eq!(noted, format!("in a call ({place})"));
        for other in ["in a call", "in a call (x)", "in a call (x:1) again", "in a call (x:y)"] {
            assert_eq!(place_in(other), None);
        }
        assert_eq!(take(), None);
        assert_eq!(run(Caught::new(async { 1 })), Some(Some(1)));
        assert_eq!(run(Caught::new(async { panic!("polled") })), Some(None::<()>));
        assert!(take().unwrap().starts_with("polled"));
        drop(Caught::new(async move {
            let _falls = Falls;
            std::future::pending::<()>().await;
        }));
        assert_eq!(take(), None, "it was never polled, and there was nothing to drop");
        let left = run(Caught::new(async move {
            let _falls = Falls;
            std::future::pending::<()>().await;
        }));
        assert_eq!(left, None, "it waits for ever");
        assert!(take().unwrap().starts_with("dropped"));
    }

    /// Goal: a panic that ends the process says what it met and where; one after another does not. Method: as the hook is called.
    #[test]
    fn a_panic_in_another_tells_both() {
        doing("case 7".to_owned());
        for _ in 0..2 {
            catch(|| {
                assert_eq!(second("one"), None);
                assert_eq!(catch(|| second("deeper, which is caught")), Some(None));
                let told = second("two").unwrap();
                assert!(told.starts_with("case 7: ") && told.contains("first: one\n  then:  two"));
            });
        }
    }

    /// Goal: what panicked in another thread is told by its own place. Method: a panic there, taken and raised again.
    #[test]
    fn a_panic_of_another_thread_keeps_its_place() {
        let there = std::thread::scope(|threads| {
            let there = threads.spawn(|| {
                catch(|| panic!("there"));
                take()
            });
            there.join().unwrap().unwrap()
        });
        assert_eq!(catch(|| again(there.clone())), None::<()>);
        assert_eq!(take(), Some(there));
    }

    /// Goal: what the harness ends a piece of work with is not taken for the subject's. Method: a payload that is no text.
    #[test]
    fn another_payload_goes_on() {
        struct Mine;
        let left = panic::catch_unwind(|| catch(|| panic::panic_any(Mine)));
        assert!(left.unwrap_err().is::<Mine>());
        assert_eq!(take(), None);
    }

    /// Goal: where a library panics is told alike on every machine. Method: a file as cargo keeps it, and one that is somebody's own.
    #[test]
    fn a_place_in_a_package_is_told_without_the_machine() {
        let kept = "/kept/registry/src/index-0123/a-0.1.6/src/meta.rs";
        assert_eq!(in_package(kept), "a-0.1.6/src/meta.rs");
        assert_eq!(in_package("tests/src/blocking.rs"), "tests/src/blocking.rs");
        let kept = "/kept/registry/src/index-0123/a-0.1.6/lib.rs";
        assert_eq!(in_package(kept), "a-0.1.6/lib.rs");
        assert_eq!(in_package("/kept/mine/src/io/file.rs"), "mine/src/io/file.rs");
        assert_eq!(in_package("/src/file.rs"), "/src/file.rs");
    }
}
