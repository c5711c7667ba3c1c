//! Minimising as a person sees it: its budget on the command line, how far it is, and how sure its result.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::complain;
use crate::any::AnySubject;
use crate::ended::Ended;
use crate::minimise::{self, MinimiseProgress, Minimised, Shrunk};
use crate::recover::Failure;
use crate::subject::Subject;
use crate::trial::Trial;

/// How long minimising may take if nobody says.
pub const MINIMISE_FOR: Duration = Duration::from_secs(20);

/// The arguments of whatever minimises what it finds.
#[derive(Args)]
pub struct Minimising {
    /// Shorten a case that was found for at most this many seconds.
    #[arg(long, default_value_t = MINIMISE_FOR.as_secs())]
    minimise_seconds: u64,
}

impl Minimising {
    /// The time there is for it.
    pub const fn limit(&self) -> Duration {
        Duration::from_secs(self.minimise_seconds)
    }
}

/// Minimises with progress on standard error.
pub fn minimise(
    subject: &impl Subject,
    found: &Trial,
    failure: &Failure,
    limit: Duration,
) -> (Minimised, Ended) {
    let subject = &AnySubject::of(subject);
    let mut progress = Progress::new(limit);
    let Shrunk { found, ended, .. } =
        minimise::minimise(subject, found, failure, limit, &mut |step| progress.show(step));
    progress.finish();
    (found, ended)
}

/// How sure it is that nothing shorter fails too.
pub fn verdict(ended: Ended, limit: Duration) -> String {
    match ended {
        Ended::Interrupted => "shortening was interrupted: it may be shorter still".to_owned(),
        Ended::Budget => format!("shortened for {} s: it may be shorter still", limit.as_secs()),
        Ended::Broken => "shortening it ends the process: it is as it was found".to_owned(),
        _ => "nothing can be taken away from it".to_owned(),
    }
}

/// A bar on a terminal, a line every few seconds elsewhere.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    /// When the next line is due.
    due: Duration,
}

impl Progress {
    const EVERY: Duration = Duration::from_secs(3);

    pub(super) fn new(limit: Duration) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} s, shortening: {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(limit.as_secs()).with_style(style)
        });
        Self { bar, due: Self::EVERY }
    }

    pub(super) fn show(&mut self, step: MinimiseProgress) {
        let MinimiseProgress { elements, tries, elapsed } = step;
        let message = format!("{elements} elements left, {tries} tries");
        if let Some(bar) = &self.bar {
            bar.set_position(elapsed.as_secs());
            bar.set_message(message);
        } else if elapsed >= self.due {
            self.due = elapsed + Self::EVERY;
            complain(format_args!("{:6.1} s  shortening: {message}", elapsed.as_secs_f64()));
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
