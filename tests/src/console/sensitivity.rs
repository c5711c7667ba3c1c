//! What the storage under a subject can leave out unnoticed, as a person sees it.

use std::time::Duration;

use clap::Args;
use faultfs::profile::Profile;

use super::output::{check, say};
use super::status::ExitStatus;
use crate::any::AnySubject;
use crate::corpus::CorpusError;
use crate::interrupt;
use crate::lapse::{Lapse, Swept, sweep};
use crate::recover::Failure;
use crate::subject::Subject;

/// The arguments.
#[derive(Args)]
pub struct Sensitivity {
    /// How the power fails: kill, prefix, epoch, cache, torn or torn-length.
    #[arg(long, default_value_t = Profile::default())]
    profile: Profile,
    /// Try the first so many flushes, and the first so many writes.
    #[arg(long, default_value_t = 8)]
    most: u64,
    /// Give up on each after this many seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

impl Sensitivity {
    /// Takes one thing away after another, and says who noticed.
    ///
    /// # Errors
    /// If what it says cannot be written.
    pub fn run(&self, subject: &impl Subject) -> Result<ExitStatus, CorpusError> {
        let subject = &AnySubject::of(subject);
        check(None, None)?;
        let limit = Duration::from_secs(self.seconds);
        say(&format!(
            "{}, profile {}: the storage leaves a flush out, or does a write after the next flush\n",
            subject.name(),
            self.profile,
        ));
        let own = |own: Option<&Failure>| {
            if let Some(Failure { violation, moment }) = own {
                say(&format!(
                    "It fails on a sound storage as well, and what fails there in the same way is passed over here:\n{violation} {moment}\n"
                ));
            }
            say(&format!("{:<10} {:>9} {:>8}  property that noticed\n", "", "states", "seconds"));
        };
        let swept = sweep(subject, self.profile, self.most, limit, own, |noticed| {
            let verdict = match &noticed.failure {
                Some(failure) => {
                    format!("{} {}", failure.violation.property, failure.violation.kind)
                }
                None => format!("not noticed in {} s", limit.as_secs()),
            };
            let (lapse, states) = (noticed.lapse.to_string(), noticed.states);
            say(&format!("{lapse:<10} {states:>9} {:>8.2}  {verdict}\n", noticed.seconds));
        });
        let Swept { tried, .. } = match swept {
            Ok(swept) => swept,
            Err(why) => {
                say(&format!("This run proves nothing: {why}\n"));
                return Ok(ExitStatus::Broken);
            }
        };
        let count = |is_kind: fn(&Lapse) -> bool| {
            let of: Vec<_> = tried.iter().filter(|noticed| is_kind(&noticed.lapse)).collect();
            let noticed = of.iter().filter(|noticed| noticed.failure.is_some()).count();
            format!("{noticed} of {}", of.len())
        };
        say(&format!(
            "flushes left out: {} noticed; late writes: {} noticed\n",
            count(|lapse| matches!(lapse, Lapse::Flush(_))),
            count(|lapse| matches!(lapse, Lapse::Late(_))),
        ));
        if let Some(signal) = interrupt::signal() {
            say(&format!("interrupted ({signal}): what stands above is all that was tried\n"));
            return Ok(ExitStatus::Interrupted(signal));
        }
        if tried.iter().any(|noticed| noticed.failure.is_some()) {
            return Ok(ExitStatus::Passed);
        }
        say("This run proves nothing: whatever is left out, nobody notices.\n");
        Ok(ExitStatus::Broken)
    }
}
