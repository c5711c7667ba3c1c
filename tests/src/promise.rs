//! What a subject says that it survives, and what only a worse device shows.
//!
//! ```text
//!   kill   prefix   epoch   cache   torn   torn-length
//!   |------ survives -----|------ beyond what it says ------|
//! ```
//!
//! A finding on a worse device is looked for again on the worst that the subject says it survives: the same requests, the power failing at each
//! moment. If the same is wrong there, the promise is broken; if not, the finding is true and nobody promised anything else. It is the same with
//! what a subject is [held to](AnySubject::held_to_all) beyond its own duties.

use faultfs::profile::Profile;

use crate::any::AnySubject;
use crate::causes::is_shown_by;
use crate::recover::Failure;
use crate::subject::Subject;
use crate::trial::Trial;

/// Whether what a trial shows breaks what the subject says it survives.
pub fn is_broken(subject: &impl Subject, trial: &Trial, failure: &Failure) -> bool {
    let subject = AnySubject::of(subject);
    let promised = subject.held_to_all(false);
    let profile = trial.profile.min(promised.duties().survives);
    (profile == trial.profile && promised.duties() == subject.duties())
        || is_shown_by(&promised, &Trial { profile, ..trial.clone() }, failure)
}

/// Beyond what a finding is that breaks no promise, on this device.
pub fn beyond(subject: &AnySubject, profile: Profile) -> String {
    let promised = subject.held_to_all(false).duties();
    let survives = promised.survives;
    match (profile > survives, promised == subject.duties()) {
        (false, _) => "beyond what it takes on".to_owned(),
        (true, true) => format!("beyond what it says that it survives, {survives}"),
        (true, false) => format!("beyond what it takes on, or says that it survives, {survives}"),
    }
}
