//! A signal that asks a run to end, as a flag that long work looks at.
//!
//! **Invariant.** A signal decides when a run ends and nothing else: what was found until then is a function of the seed. So
//! the flag is read between cases, workloads and tries, like the clock of a budget, and never by what runs in them.

use std::fmt;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The number of the signal that came; 0 for none.
static CAME: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// A signal that asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `SIGINT`, which is what Ctrl-C sends.
    Interrupt,
    /// `SIGTERM`.
    Terminate,
}

impl Signal {
    const ALL: [Self; 2] = [Self::Interrupt, Self::Terminate];

    const fn number(self) -> i32 {
        match self {
            Self::Interrupt => SIGINT,
            Self::Terminate => SIGTERM,
        }
    }

    /// The byte that tells another process of it, see [`follow`].
    pub(crate) const fn byte(self) -> u8 {
        self.number() as u8
    }

    /// The signal that ended a program with this exit status.
    pub(crate) fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.code() == code)
    }

    /// The exit status of a program that a signal ended, as shells show it.
    pub const fn code(self) -> u8 {
        128 + self.number() as u8
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// From now on the first signal sets the flag and the second ends the process at once. Without this call signals end the
/// process as they always do.
///
/// # Errors
/// If the system refuses.
pub fn listen() -> io::Result<()> {
    if CAME.get().is_some() {
        return Ok(());
    }
    let came = CAME.get_or_init(Arc::default);
    let second = Arc::new(AtomicBool::new(false));
    for signal in Signal::ALL {
        // In this order: the first signal finds the flag of the second not yet set.
        let number = signal.number();
        flag::register_conditional_shutdown(number, i32::from(signal.code()), Arc::clone(&second))?;
        flag::register(number, Arc::clone(&second))?;
        flag::register_usize(number, Arc::clone(came), number as usize)?;
    }
    Ok(())
}

/// With [`listen`]: from now on a signal that another process was sent and tells of here counts as one that came here, and the end of that process, which is the
/// end of what it tells, is the end of this one.
pub(crate) fn follow(mut other: impl Read + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "it decides when a run ends and nothing else")]
    std::thread::spawn(move || {
        let mut byte = [0];
        loop {
            match other.read(&mut byte) {
                Ok(1) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                _ => break,
            }
            if let Some(came) = CAME.get() {
                let (number, order) = (usize::from(byte[0]), Ordering::Relaxed);
                let _ = came.compare_exchange(0, number, order, order);
            }
        }
        let code = signal().unwrap_or(Signal::Terminate).code();
        std::process::exit(i32::from(code));
    });
}

/// The signal that asked to end, if one did.
pub fn signal() -> Option<Signal> {
    let came = CAME.get()?.load(Ordering::Relaxed);
    Signal::ALL.into_iter().find(|signal| signal.number() as usize == came)
}

/// Whether a signal asked to end.
pub fn asked() -> bool {
    signal().is_some()
}
