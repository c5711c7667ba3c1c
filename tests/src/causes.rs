//! Causes, not findings: a mistake of a subject shows itself again and again, and under more than one property. Findings that look alike are
//! counted; some of each sort are minimised; those that come down to the same are one cause.
//!
//! ```text
//!   finding ──> sort: property, kind, structure            every finding is counted
//!                 └─ the first few of a sort ── minimised ──> cause: what is wrong, after which write, what is lost, what fails
//!                                                              equal in these, and the requests of one are among the other's: one cause
//!                                                              panics in one place: one cause
//!                                                              where something was not done: whatever was written and lost
//! ```
//!
//! **Invariant.** With a number of cases as the budget, the causes are a function of the seed: which findings are minimised depends on the
//! numbers of their cases and not on when a worker met them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use faultfs::trace::{Event, IoKind};
use model::finding::{Finding, Property};
use model::judge::{Place, Violation};
use model::label::Region;
use model::op::Op;
use model::payload::UNIT;
use serde::{Deserialize, Serialize};

use crate::any::AnySubject;
use crate::campaign::Found;
use crate::ended::Ended;
use crate::liveness::is_seen_going_on;
use crate::minimise::{MinimiseProgress, Minimised, Shrunk, minimise, panics_at, shows};
use crate::recover::{self, Bench, Failure};
use crate::subject::Subject;
use crate::trial::{self, Outcome, Trial};

/// So many findings of a sort are minimised: one mistake may hide behind another that looks like it.
const OF_A_SORT: usize = 4;

/// What findings that one mistake led to have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootCause {
    /// Property and kind of the finding that showed it first, such as `P4 refcount-too-low`.
    pub seen_as: String,
    /// What is wrong: guest data, a kind of structure, or the kind of finding where it is neither.
    pub wrong: String,
    /// The kind of structure that was written last before: without that write nothing is wrong yet.
    pub after: Option<String>,
    /// Where it panics: file and line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panics_at: Option<String>,
    /// What a cluster held before whose refcount is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// The kinds of requests of the smallest case that change something.
    pub requests: BTreeSet<String>,
    /// The kinds of structures of which that case loses a write.
    pub lost: BTreeSet<String>,
    /// What fails in it, is dropped, or is cut off beside the first power cut.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub faults: BTreeSet<String>,
}

impl RootCause {
    /// The cause of a minimised finding.
    pub fn of(subject: &impl Subject, small: &Minimised) -> Self {
        let subject = &AnySubject::of(subject);
        let mut requests = BTreeSet::new();
        let mut faults = BTreeSet::new();
        for life in &small.trial.lives {
            let ops = life.tasks.iter().flatten();
            requests.extend(ops.filter_map(changes).map(str::to_owned));
            faults.extend(life.faults.0.iter().map(|fault| format!("{:?}", fault.fault)));
            if life.dropped.is_some() {
                faults.insert("a request dropped".to_owned());
            }
            let steps = recover::asked(&life.steps, &subject.capabilities());
            let cut = steps.filter(|step| step.crash_at.is_some());
            faults.extend(cut.map(|step| format!("power cut in {}", recover::name(step.run))));
        }
        let outcome = trial::run(subject, &small.trial).ok();
        let violation = &small.failure.violation;
        Self {
            seen_as: seen_as(violation),
            wrong: wrong(violation),
            after: outcome.as_ref().and_then(written_last),
            panics_at: panics_at(violation).map(str::to_owned),
            held: held(subject, small),
            requests,
            lost: outcome.as_ref().map(lost).unwrap_or_default(),
            faults,
        }
    }

    /// Whether it is that something was not done: a bit that stays set, clusters that nobody gives back. What was written last, or lost, says nothing
    /// of that.
    fn is_undone(&self) -> bool {
        self.wrong == model::judge::AUTOCLEAR_STAYS
            || self.seen_as.starts_with(&format!("{} ", Property::P9))
    }

    /// That of cases in which the process ends, in this way, or a call does not come back.
    pub(crate) fn of_process(seen_as: &str, how: String) -> Self {
        Self {
            seen_as: seen_as.to_owned(),
            wrong: how,
            after: None,
            panics_at: None,
            held: None,
            requests: BTreeSet::new(),
            lost: BTreeSet::new(),
            faults: BTreeSet::new(),
        }
    }

    /// Whether a case with this cause has that of `other`, too: with more requests perhaps, which lead to the same by another way. What panics
    /// in the same place is one cause, whatever leads there, unless something fails in one and not in the other.
    pub fn is_of(&self, other: &Self) -> bool {
        let Self { seen_as: _, wrong, after, panics_at, held, requests, lost, faults } = self;
        if panics_at.is_some() || other.panics_at.is_some() {
            return (panics_at, faults) == (&other.panics_at, &other.faults);
        }
        let was_written =
            (self.is_undone() && other.is_undone()) || (after, lost) == (&other.after, &other.lost);
        (wrong, faults) == (&other.wrong, &other.faults)
            && was_written
            && (held.is_none() || other.held.is_none() || *held == other.held)
            && requests.is_superset(&other.requests)
    }
}

impl fmt::Display for RootCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |parts: &BTreeSet<String>| {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
        };
        write!(f, "{} ({})", self.seen_as, self.wrong)?;
        if let Some(place) = &self.panics_at {
            write!(f, " at {place}")?;
        }
        if let Some(held) = &self.held {
            write!(f, " of what held {held}")?;
        }
        write!(f, "; requests: {}", list(&self.requests))?;
        if !self.is_undone() {
            write!(f, "; after a write of: {}", self.after.as_deref().unwrap_or("nothing"))?;
            write!(f, "; lost: {}", list(&self.lost))?;
        }
        if !self.faults.is_empty() {
            write!(f, "; beside it: {}", list(&self.faults))?;
        }
        Ok(())
    }
}

fn seen_as(violation: &Violation) -> String {
    format!("{} {}", violation.property, violation.kind)
}

/// What findings look alike in.
fn sort(violation: &Violation) -> String {
    let place = panics_at(violation).map(|place| format!(" at {place}"));
    format!("{} ({}){}", seen_as(violation), wrong(violation), place.unwrap_or_default())
}

/// Whether a trial shows that the same is wrong as in `failure`, in whichever of its lives, at whichever moment, and however it comes to
/// light.
pub fn is_shown_by(subject: &impl Subject, trial: &Trial, failure: &Failure) -> bool {
    let subject = &AnySubject::of(subject);
    let Failure { violation, .. } = failure;
    let what = |violation: &Violation| (wrong(violation), panics_at(violation).map(str::to_owned));
    let is_wanted = |other: &Failure| what(&other.violation) == what(violation);
    shows(subject, trial, is_seen_going_on(failure), &is_wanted)
}

/// What is wrong, however it came to light: what a guest reads may break P0 to P3 alike.
fn wrong(violation: &Violation) -> String {
    match (violation.property, violation.place) {
        (Property::P0 | Property::P1 | Property::P2 | Property::P3, _) => "guest data".to_owned(),
        (Property::P9, _) => "refcounts too high".to_owned(),
        (_, Place::Structure(finding)) => structure(&finding),
        _ => violation.kind.to_owned(),
    }
}

/// The kind of structure in which something is wrong.
pub(crate) fn structure(finding: &Finding) -> String {
    let named = |name: &str| name.to_owned();
    match finding {
        Finding::RefcountTooLow { .. } => named("refcounts too low"),
        Finding::Leak { .. } => named("refcounts too high"),
        Finding::CopiedOnShared { at, .. }
        | Finding::CopiedMissing { at, .. }
        | Finding::CopiedStale { at, .. }
        | Finding::OutOfRange { at, .. }
        | Finding::Misaligned { at, .. }
        | Finding::ReservedBits { at, .. }
        | Finding::InvalidSubclusters { at, .. }
        | Finding::DataFileOffset { at, .. } => kind_of(*at),
        Finding::Overlap { second, .. } => kind_of(*second),
        Finding::DataFileShort { .. } => named("data file"),
        Finding::Dirty | Finding::Corrupt | Finding::Header { .. } => named("header"),
        Finding::Unsupported { what, .. } => named(what),
    }
}

/// What a request is called that changes something; none for one that does not.
const fn changes(op: &Op) -> Option<&'static str> {
    Some(match op {
        Op::Read { .. } | Op::Flush => return None,
        Op::Write { .. } => "write",
        Op::WriteCompressed { .. } => "write compressed",
        Op::WriteZeroes { .. } => "zero",
        Op::Discard { .. } => "discard",
        Op::Uncover { .. } => "uncover",
        Op::Preallocate { .. } => "preallocate",
        Op::Grow { .. } => "grow",
        Op::Shrink { .. } => "shrink",
        Op::AddPassphrase { .. } => "add a passphrase",
        Op::RemovePassphrase { .. } => "remove a passphrase",
        Op::Reopen => "reopen",
    })
}

/// What a cluster held when the last life began, if it is a cluster whose refcount is wrong.
fn held(subject: &AnySubject, small: &Minimised) -> Option<String> {
    let Place::Structure(Finding::Leak { cluster, .. } | Finding::RefcountTooLow { cluster, .. }) =
        small.failure.violation.place
    else {
        return None;
    };
    let trial = &small.trial;
    let last = trial.lives.len().checked_sub(1)?;
    let (disk, guest) = trial::led_to(subject, trial, last).ok()??;
    let mut bench = Bench::new(subject.clone(), trial.session(), trial.profile);
    let unit = u32::try_from(cluster.checked_mul(trial.geometry.cluster_units())?).ok()?;
    Some(kind_of(trial::labels(&mut bench, &disk, &guest)(unit).region))
}

/// What was written last, or given up.
fn written_last(outcome: &Outcome) -> Option<String> {
    let life = outcome.lives.last()?;
    life.trace.events().iter().rev().find_map(|event| match event {
        Event::Submit { io, .. } => match io.kind {
            IoKind::Read | IoKind::Flush => None,
            IoKind::SetLen => Some("file length".to_owned()),
            // Whoever writes so far out that no disk has a unit there writes past the end.
            _ => {
                let unit = u32::try_from(io.offset / UNIT as u64).unwrap_or(u32::MAX);
                Some(kind_of((life.places)(unit).region))
            }
        },
        _ => None,
    })
}

/// The kinds of structures of which something is not as it was written last.
fn lost(outcome: &Outcome) -> BTreeSet<String> {
    let answers = outcome.lives.iter().flat_map(|life| life.answers.iter().zip(&life.labels));
    let lost = answers.filter(|(answer, _)| answer.taken != 0);
    lost.map(|(answer, label)| match answer.unit {
        Some(_) => kind_of(label.region),
        None => "file length".to_owned(),
    })
    .collect()
}

/// A structure without the number of which one it is. What is free is free, behind the end of the file, too.
pub(crate) fn kind_of(region: Region) -> String {
    let mut name = match region {
        Region::BeyondEnd => Region::Free(0).to_string(),
        region => region.to_string(),
    };
    name.truncate(name.find('[').unwrap_or(name.len()));
    name
}

/// Findings of a campaign, by what they look like.
#[derive(Debug, Default)]
pub struct Findings {
    /// By what is to be seen of them before they are minimised.
    sorts: BTreeMap<String, Alike>,
}

#[derive(Debug, Default)]
struct Alike {
    count: u64,
    /// Those that are to be minimised, by the number of their case; none: it has to be found again.
    first: BTreeMap<u64, Option<Found>>,
}

impl Findings {
    /// What there is to note of them: by sort, how many there are, and the cases that are to be minimised.
    pub(crate) fn noted(&self) -> BTreeMap<String, (u64, BTreeSet<u64>)> {
        let noted = |alike: &Alike| (alike.count, alike.first.keys().copied().collect());
        self.sorts.iter().map(|(sort, alike)| (sort.clone(), noted(alike))).collect()
    }

    /// The same findings, of what was noted of them.
    pub(crate) fn of(noted: &BTreeMap<String, (u64, BTreeSet<u64>)>) -> Self {
        let alike = |(sort, (count, cases)): (&String, &(u64, BTreeSet<u64>))| {
            let first = cases.iter().map(|&case| (case, None)).collect();
            (sort.clone(), Alike { count: *count, first })
        };
        Self { sorts: noted.iter().map(alike).collect() }
    }

    /// Finds again what was only noted. What is not found any more is left out: how it looked, and its case.
    pub(crate) fn find(
        &mut self,
        mut find: impl FnMut(u64) -> Option<Found>,
    ) -> Vec<(String, u64)> {
        let mut gone = Vec::new();
        for (look, alike) in &mut self.sorts {
            alike.first.retain(|&case, found| {
                *found = found
                    .take()
                    .or_else(|| find(case))
                    .filter(|it| sort(&it.failure.violation) == *look);
                if found.is_none() {
                    gone.push((look.clone(), case));
                }
                found.is_some()
            });
        }
        gone
    }

    /// Takes one in. The cases that are to be minimised because of it, and no longer, in this order.
    pub fn add(&mut self, found: &Found) -> (Option<u64>, Option<u64>) {
        let alike = self.sorts.entry(sort(&found.failure.violation)).or_default();
        alike.count += 1;
        alike.first.insert(found.case, Some(found.clone()));
        let over = (alike.first.len() > OF_A_SORT).then(|| alike.first.pop_last()).flatten();
        match over {
            Some((case, _)) if case == found.case => (None, None),
            over => (Some(found.case), over.map(|(case, _)| case)),
        }
    }

    /// How many there are, and how many of them are to be minimised.
    pub fn count(&self) -> (u64, usize) {
        let sorts = self.sorts.values();
        sorts.fold((0, 0), |(all, first), sort| (all + sort.count, first + sort.first.len()))
    }

    /// Minimises, each for at most `limit`, and tells causes from each other: those of the fewest requests first.
    pub fn causes(
        self,
        subject: &impl Subject,
        limit: Duration,
        progress: &mut dyn FnMut(MinimiseProgress),
    ) -> Vec<Met> {
        let subject = &AnySubject::of(subject);
        self.causes_by(subject, &mut |found| {
            let Shrunk { found: small, ended, .. } =
                minimise(subject, &found.trial, &found.failure, limit, progress);
            (small, ended)
        })
    }

    /// The same with another way to minimise.
    pub(crate) fn causes_by(
        self,
        subject: &AnySubject,
        shorten: &mut dyn FnMut(&Found) -> (Minimised, Ended),
    ) -> Vec<Met> {
        let alike = self.sorts.into_values();
        let mut small: Vec<_> = alike
            .flat_map(|Alike { count, first }| {
                first.into_values().flatten().map(move |one| (one, count))
            })
            .map(|(found, of)| {
                let (small, ended) = shorten(&found);
                (RootCause::of(subject, &small), found, of, small, ended)
            })
            .collect();
        small.sort_by_key(|(cause, found, ..)| {
            (cause.requests.len(), cause.held.is_none(), found.case)
        });
        let mut causes: Vec<Met> = Vec::new();
        for (cause, found, of, small, ended) in small {
            let at = causes.iter().position(|met| cause.is_of(&met.cause));
            let at = at.unwrap_or_else(|| {
                causes.push(Met { cause, small, ended, cases: Vec::new(), looks: BTreeMap::new() });
                causes.len() - 1
            });
            causes[at].cases.push(found.case);
            let looks = &mut causes[at].looks;
            let look = looks.entry(sort(&found.failure.violation));
            look.or_insert(Look { minimised: 0, of }).minimised += 1;
        }
        causes
    }
}

/// A cause that was met.
#[derive(Clone, Debug)]
pub struct Met {
    /// The cause.
    pub cause: RootCause,
    /// The smallest case that shows it.
    pub small: Minimised,
    /// How its shortening ended.
    pub ended: Ended,
    /// The cases of the campaign that came down to it; the first is [`small`](Self::small) before it was minimised.
    pub cases: Vec<u64>,
    /// How they looked before.
    pub looks: BTreeMap<String, Look>,
}

/// Findings that look alike.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// How many of them came down to a cause.
    pub minimised: u64,
    /// How many there are.
    pub of: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause() -> RootCause {
        RootCause {
            seen_as: "P4 leak".to_owned(),
            wrong: "refcounts too high".to_owned(),
            after: Some("l2".to_owned()),
            panics_at: None,
            held: Some("data".to_owned()),
            requests: BTreeSet::from(["write".to_owned()]),
            lost: BTreeSet::new(),
            faults: BTreeSet::new(),
        }
    }

    /// Goal: each part of a cause tells it from another, but for how it was seen; more requests lead to the same by another way. Method: one
    /// part changed at a time, and asked both ways.
    #[test]
    fn each_part_of_a_cause_tells_it_from_others() {
        let alike = [
            RootCause { seen_as: "P9 too-many-leaks".to_owned(), ..cause() },
            RootCause { held: None, ..cause() },
        ];
        let at = |line: u32| RootCause { panics_at: Some(format!("meta.rs:{line}")), ..cause() };
        assert!(RootCause { after: None, ..at(12) }.is_of(&at(12)) && !at(13).is_of(&at(12)));
        let failing = RootCause { faults: BTreeSet::from(["Late".to_owned()]), ..at(12) };
        assert!(!failing.is_of(&at(12)) && !at(12).is_of(&failing));
        for other in alike {
            assert!(cause().is_of(&other) && other.is_of(&cause()), "{other}");
        }
        let others = [
            RootCause { wrong: "header".to_owned(), ..cause() },
            RootCause { after: None, ..cause() },
            RootCause { panics_at: Some("meta.rs:12".to_owned()), ..cause() },
            RootCause { held: Some("compressed".to_owned()), ..cause() },
            RootCause { lost: BTreeSet::from(["l2".to_owned()]), ..cause() },
            RootCause { faults: BTreeSet::from(["Late".to_owned()]), ..cause() },
            RootCause { requests: BTreeSet::from(["discard".to_owned()]), ..cause() },
        ];
        for other in others {
            assert!(!cause().is_of(&other) && !other.is_of(&cause()), "{other}");
        }
        let both = BTreeSet::from(["discard".to_owned(), "write".to_owned()]);
        let longer = RootCause { requests: both, ..cause() };
        assert!(longer.is_of(&cause()) && !cause().is_of(&longer));
    }

    /// Goal: what was not done is one cause, whatever was written last and lost before it showed. Method: a bit that stays, and leaks that are counted over
    /// a run of cases, in two ways each; a leak in one cluster is told by them as before.
    #[test]
    fn what_was_not_done_is_one_cause_whatever_was_written() {
        let lost = BTreeSet::from(["l2".to_owned()]);
        let stays = RootCause { wrong: "autoclear-bit-stays".to_owned(), held: None, ..cause() };
        let many = RootCause { seen_as: "P9 too-many-leaks".to_owned(), held: None, ..cause() };
        for one in [stays, many] {
            let other = RootCause { after: None, lost: lost.clone(), ..one.clone() };
            assert!(one.is_of(&other) && other.is_of(&one), "{other}");
            assert!(!one.to_string().contains("after a write"), "{one}");
        }
        let leak = RootCause { after: None, lost, ..cause() };
        assert!(!cause().is_of(&leak) && !leak.is_of(&cause()));
    }

    /// Goal: one mistake that is seen under two properties is of one sort of wrong. Method: a leak as the image shows it, and as a run of cases
    /// counts it; structures by their kinds, without which one.
    #[test]
    fn what_is_wrong_is_told_without_how_it_came_to_light() {
        let violation = |property, place| Violation {
            property,
            kind: "kind",
            place,
            found: None,
            allowed: Vec::new(),
            story: String::new(),
        };
        let leak = Finding::Leak { cluster: 3, stored: 1, counted: 0 };
        let shown = wrong(&violation(Property::P4, Place::Structure(leak)));
        assert_eq!(shown, wrong(&violation(Property::P9, Place::Image)));
        let guest = Place::Guest { unit: 1, host: None };
        assert_eq!(wrong(&violation(Property::P1, guest)), wrong(&violation(Property::P3, guest)));
        assert_eq!(wrong(&violation(Property::P8, Place::Image)), "kind");
        let kinds = [Region::L2(0), Region::L2(7), Region::Data(9), Region::BeyondEnd].map(kind_of);
        assert_eq!(kinds, ["l2", "l2", "data", "free"]);
    }
}
