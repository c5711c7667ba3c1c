//! What a subject says that it survives, and what only a worse device shows.
//!
//! ```text
//!   kill   prefix   epoch   cache   torn   torn-length
//!   |------ survives -----|------ beyond what it says ------|
//! ```
//!
//! A finding on a worse device is looked for again on the worst that the subject says it survives: the same requests, the power failing at each
//! moment. If the same is wrong there, the promise is broken; if not, the finding is true and nobody promised anything else.

use crate::any::AnySubject;
use crate::causes::is_shown_by;
use crate::recover::Failure;
use crate::subject::Subject;
use crate::trial::Trial;

/// Whether what a trial shows breaks what the subject says it survives.
pub fn is_broken(subject: &impl Subject, trial: &Trial, failure: &Failure) -> bool {
    let subject = &AnySubject::of(subject);
    let survives = subject.duties().survives;
    trial.profile <= survives
        || is_shown_by(subject, &Trial { profile: survives, ..trial.clone() }, failure)
}
