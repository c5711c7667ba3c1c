//! The smallest trial that fails in the same way: fewer lives, then fewer crashes in recovery, faults, tasks and operations,
//! a plainer schedule, a plainer image, shorter requests, and last the smallest set of what is lost.
//!
//! Taking something away shifts every event after it, so each candidate is not replayed but *searched*: the last life is run
//! once and at each of its moments a handful of crash states is judged, those that lose little first.

use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use faultfs::disk::PossibleDisk;
use faultfs::fault::Planned;
use model::build::Initial;
use model::case::Device;
use model::finding::Property;
use model::guest::Guest;
use model::judge::Violation;
use model::op::{Compression, Durability, Geometry, Op, Preallocation};

use crate::any::AnySubject;
use crate::ended::Ended;
use crate::evidence::DiskEvidence;
use crate::interrupt;
use crate::leaf::{LeafChooser, SharedLeaf, look};
use crate::life::{self, Order};
use crate::liveness::{Before, p7_goes_on, p9_bounded_waste};
use crate::panics;
use crate::probe::Probes;
use crate::recover::{Bench, Failure};
use crate::subject::Subject;
use crate::trial::{self, At, Survivors, Trial, TrialLife, cluster_units};
use crate::watch::doing;

/// Bytes in a unit.
const UNIT: u64 = model::payload::UNIT as u64;

/// Random crash states tried at each moment of a search, beside the two that keep and lose all.
const SEEDS: u64 = 24;

/// A minimised trial and its failure.
#[derive(Clone, Debug)]
pub struct Minimised {
    /// The trial, with everything written down.
    pub trial: Trial,
    /// How it fails.
    pub failure: Failure,
}

/// What minimising came to.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest trial that was seen to fail.
    pub found: Minimised,
    /// [`Ended::Complete`]: nothing can be taken away from it. Else it may be shorter still.
    pub ended: Ended,
    /// How many smaller trials were tried.
    pub tries: u64,
}

/// How far minimising is.
#[derive(Clone, Copy, Debug)]
pub struct MinimiseProgress {
    /// What could still be taken away: see [`elements`].
    pub elements: usize,
    /// How many smaller trials were tried.
    pub tries: u64,
    /// Time so far.
    pub elapsed: Duration,
}

/// When to stop looking for something smaller.
pub(crate) struct Watch<'a> {
    start: Instant,
    limit: Duration,
    tries: u64,
    progress: &'a mut dyn FnMut(MinimiseProgress),
}

impl<'a> Watch<'a> {
    pub(crate) fn new(limit: Duration, progress: &'a mut dyn FnMut(MinimiseProgress)) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "minimising stops by the clock; its result is replayed, not its way"
        )]
        let start = Instant::now();
        Self { start, limit, tries: 0, progress }
    }

    /// Why there may be no further try, if so.
    pub(crate) fn over(&self) -> Option<Ended> {
        if interrupt::asked() {
            Some(Ended::Interrupted)
        } else if self.start.elapsed() >= self.limit {
            Some(Ended::Budget)
        } else {
            None
        }
    }

    /// Counts a try on something of so many elements.
    pub(crate) fn trying(&mut self, elements: usize) {
        self.tries += 1;
        (self.progress)(MinimiseProgress {
            elements,
            tries: self.tries,
            elapsed: self.start.elapsed(),
        });
    }

    pub(crate) const fn tries(&self) -> u64 {
        self.tries
    }
}

/// Shrinks a failing trial until nothing more can be taken away, `limit` has passed or a signal came. `progress` is called
/// before each try.
///
/// A trial that nothing can be taken away from fails in another way or not at all, as it is and at every other moment,
/// without any one of its elements or with any range shorter by one unit at either end.
pub fn minimise(
    subject: &impl Subject,
    found: &Trial,
    failure: &Failure,
    limit: Duration,
    progress: &mut dyn FnMut(MinimiseProgress),
) -> Shrunk {
    let subject = &AnySubject::of(subject);
    let (property, kind) = (failure.violation.property, failure.violation.kind);
    doing(format!("making a case of {property} {kind} shorter"));
    let wanted = Signature::of(failure);
    let mut best = Minimised { trial: found.clone(), failure: failure.clone() };
    let mut watch = Watch::new(limit, progress);
    // Each of these may make room for another.
    let ended = loop {
        let before = best.trial.clone();
        let ended = smallest(subject, &mut best, &wanted, &mut watch);
        best = written(subject, best);
        let ended = ended.or_else(|| fewest_losses(subject, &mut best, &wanted, &mut watch));
        if let Some(ended) = ended {
            break ended;
        }
        if best.trial == before {
            break Ended::Complete;
        }
    };
    Shrunk { found: best, ended, tries: watch.tries() }
}

/// Takes away what can be, until every candidate was tried in vain; or why it ended before.
fn smallest(
    subject: &AnySubject,
    best: &mut Minimised,
    wanted: &Signature,
    watch: &mut Watch<'_>,
) -> Option<Ended> {
    let mut all = candidates(&best.trial);
    let (mut at, mut in_vain) = (0, 0);
    while in_vain < all.len() {
        if let Some(ended) = watch.over() {
            return Some(ended);
        }
        watch.trying(elements(&best.trial));
        let over = || watch.over().is_some();
        match fails(subject, &all[at % all.len()], wanted, &over) {
            Some(smaller) => {
                *best = smaller;
                all = candidates(&best.trial);
                in_vain = 0;
            }
            None => {
                // A try that the end cut short says nothing.
                if let Some(ended) = watch.over() {
                    return Some(ended);
                }
                at = at % all.len() + 1;
                in_vain += 1;
            }
        }
    }
    None
}

/// Whether a trial fails as wanted, at any moment of its last life or as it is.
fn fails(
    subject: &AnySubject,
    trial: &Trial,
    wanted: &Signature,
    over: &dyn Fn() -> bool,
) -> Option<Minimised> {
    search_until(subject, trial, wanted, over).or_else(|| exactly(subject, trial, wanted))
}

/// Whether a trial fails as wanted, just as it is.
fn exactly(subject: &AnySubject, trial: &Trial, wanted: &Signature) -> Option<Minimised> {
    let (last, failure) = trial::run(subject, trial).ok()?.failure?;
    let mut trial = trial.clone();
    trial.lives.truncate(last + 1);
    wanted.matches(&failure).then_some(Minimised { trial, failure })
}

/// How many things a trial consists of that could be taken away one by one: lives, tasks, requests, steps of recovery, faults,
/// a dropped request, and choices that lose something.
pub fn elements(trial: &Trial) -> usize {
    let of = |life: &TrialLife| {
        let losses = match &life.leaf {
            Survivors::Choices(choices) => choices.iter().filter(|&&choice| choice != 0).count(),
            Survivors::Labels { keep, lose, .. } => keep.len() + lose.len(),
            Survivors::Seed(_) => 0,
        };
        let requests: usize = life.tasks.iter().map(Vec::len).sum();
        let dropped = usize::from(life.dropped.is_some());
        1 + life.tasks.len() + requests + life.steps.len() + life.faults.0.len() + dropped + losses
    };
    trial.lives.iter().map(of).sum()
}

/// What tells one bug from another, as far as one can tell: the property, and the way in which it is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The property.
    pub property: Property,
    /// The judge's name of the way.
    pub kind: String,
    /// Where the subject panics, as far as that matters.
    pub panics_at: Option<String>,
}

impl Signature {
    /// The signature of a failure.
    pub fn of(failure: &Failure) -> Self {
        let violation = &failure.violation;
        let panics_at = panics_at(violation).map(str::to_owned);
        Self { property: violation.property, kind: violation.kind.to_owned(), panics_at }
    }

    /// Whether a failure has this signature.
    pub fn matches(&self, failure: &Failure) -> bool {
        let Self { property, kind, panics_at: at } = self;
        let violation = &failure.violation;
        (violation.property, violation.kind) == (*property, kind)
            && (at.is_none() || panics_at(violation) == at.as_deref())
    }
}

/// Where a subject panicked, if that is what is wrong, and if it is known.
pub(crate) fn panics_at(violation: &Violation) -> Option<&str> {
    if violation.kind == "panic" { panics::place_in(&violation.story) } else { None }
}

/// Everything that one step of shrinking may try, largest steps first.
fn candidates(trial: &Trial) -> Vec<Trial> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Trial)| {
        let mut smaller = trial.clone();
        change(&mut smaller);
        if smaller != *trial {
            all.push(smaller);
        }
    };
    if trial.lives.len() > 1 {
        for gone in 0..trial.lives.len() {
            with(&|trial| drop(trial.lives.remove(gone)));
        }
    }
    for life in 0..trial.lives.len() {
        with(&|trial| trial.lives[life].steps.clear());
        with(&|trial| trial.lives[life].faults = Planned::default());
        for fault in 0..trial.lives[life].faults.0.len() {
            with(&|trial| {
                trial.lives[life].faults.0.remove(fault);
            });
        }
        with(&|trial| trial.lives[life].dropped = None);
        for step in 0..trial.lives[life].steps.len() {
            with(&|trial| {
                trial.lives[life].steps.remove(step);
            });
        }
        for task in 0..trial.lives[life].tasks.len() {
            if trial.lives[life].tasks.len() > 1 {
                with(&|trial| remove_task(&mut trial.lives[life], task));
            }
        }
        for task in 0..trial.lives[life].tasks.len() {
            let count = trial.lives[life].tasks[task].len();
            with(&|trial| trial.lives[life].tasks[task].truncate(count / 2));
            with(&|trial| remove_ops(&mut trial.lives[life], task, 0..count / 2));
            for op in (0..count).rev() {
                with(&|trial| remove_ops(&mut trial.lives[life], task, op..op + 1));
            }
        }
        with(&|trial| trial.lives[life].unrecovered = false);
        with(&|trial| trial.lives[life].order = Order::Choices(Vec::new()));
    }
    with(&|trial| trial.initial = Initial::Fresh);
    with(&|trial| trial.device = Device::default());
    with(&|trial| trial.device.stale_units = 0);
    with(&|trial| trial.device.sector = Device::default().sector);
    with(&|trial| trial.geometry.version = 3);
    with(&|trial| trial.geometry.refcount_order = 4);
    with(&|trial| trial.geometry.lazy_refcounts = false);
    with(&|trial| trial.geometry.below = None);
    with(&|trial| trial.geometry.extended_l2 = false);
    with(&|trial| trial.geometry.compression = Compression::Deflate);
    with(&|trial| trial.geometry.data_file = None);
    with(&|trial| trial.geometry.encryption = None);
    with(&|trial| trial.open.page_size = 512);
    with(&|trial| trial.open.pass_discard = true);
    with(&|trial| trial.open.lazy_refcounts = None);
    with(&|trial| trial.open.write_through = false);
    with(&|trial| trial.open.copy_on_read = false);
    with(&|trial| trial.open.cache_pages = 0);
    with(&|trial| trial.open.growth_step = trial.geometry.cluster_size());
    for bits in [9, 10] {
        if bits < trial.geometry.cluster_bits {
            with(&|trial| {
                trial.geometry.cluster_bits = bits;
                trial.open.growth_step = 1 << bits;
            });
        }
    }
    for clusters in [4, 8, 16] {
        let size = clusters * trial.geometry.cluster_size();
        if size < trial.geometry.virtual_size {
            with(&|trial| trial.geometry.virtual_size = size);
        }
    }
    for life in 0..trial.lives.len() {
        for task in 0..trial.lives[life].tasks.len() {
            for op in 0..trial.lives[life].tasks[task].len() {
                for simpler in simpler(trial.lives[life].tasks[task][op], &trial.geometry) {
                    with(&|trial| trial.lives[life].tasks[task][op] = simpler);
                }
            }
        }
    }
    all
}

/// Removes a task; the request whose future is dropped stays the same, if it is of another one.
fn remove_task(life: &mut TrialLife, task: usize) {
    life.tasks.remove(task);
    life.dropped = life.dropped.filter(|dropped| dropped.task != task);
    if let Some(dropped) = &mut life.dropped
        && dropped.task > task
    {
        dropped.task -= 1;
    }
}

/// Removes operations of one task; the one whose future is dropped stays the same.
fn remove_ops(life: &mut TrialLife, task: usize, ops: Range<usize>) {
    if let Some(dropped) = &mut life.dropped
        && dropped.task == task
        && dropped.op >= ops.end
    {
        dropped.op -= ops.len();
    }
    life.tasks[task].drain(ops);
}

/// The same operation on less: a few lengths that often do, then a half, a quarter and so on to one unit less at either end; and where the
/// disk begins, because what lies far out keeps the disk from becoming smaller.
fn simpler(op: Op, geometry: &Geometry) -> Vec<Op> {
    let units = |length: u64| {
        let halves = std::iter::successors(Some(length / UNIT / 2), |units| Some(units / 2));
        halves.take_while(|&units| units > 0).map(|units| units * UNIT)
    };
    let ranges = |offset: u64, length: u64| {
        let known = [UNIT, geometry.cluster_size()].into_iter().filter(move |&new| new < length);
        let known = known.map(move |new| (offset, new));
        let end = units(length).map(move |less| (offset, length - less));
        let start = units(length).map(move |less| (offset + less, length - less));
        let front = (offset > 0).then_some((0, length));
        known.chain(end).chain(start).chain(front)
    };
    match op {
        Op::Write { offset, length, id, durability } => {
            let mut all: Vec<Op> = ranges(offset, length)
                .map(|(offset, length)| Op::Write { offset, length, id, durability })
                .collect();
            if durability == Durability::Through {
                all.push(Op::Write { offset, length, id, durability: Durability::Cached });
            }
            all
        }
        Op::WriteCompressed { offset, length, id } => {
            let shorter = ranges(offset, length).map(|(offset, length)| Op::WriteCompressed {
                offset,
                length,
                id,
            });
            let plain = Op::Write { offset, length, id, durability: Durability::Cached };
            std::iter::once(plain).chain(shorter).collect()
        }
        Op::Discard { offset, length } => {
            ranges(offset, length).map(|(offset, length)| Op::Discard { offset, length }).collect()
        }
        Op::Uncover { offset, length } => {
            ranges(offset, length).map(|(offset, length)| Op::Uncover { offset, length }).collect()
        }
        Op::WriteZeroes { offset, length, unmap } => ranges(offset, length)
            .map(|(offset, length)| Op::WriteZeroes { offset, length, unmap })
            .collect(),
        Op::Preallocate { offset, length, how } => {
            let shorter = ranges(offset, length).map(|(offset, length)| Op::Preallocate {
                offset,
                length,
                how,
            });
            let plain = Op::Preallocate { offset, length, how: Preallocation::Metadata };
            shorter.chain((how != Preallocation::Metadata).then_some(plain)).collect()
        }
        Op::Read { offset, length } => {
            ranges(offset, length).map(|(offset, length)| Op::Read { offset, length }).collect()
        }
        Op::Grow { to } => units(to.saturating_sub(geometry.virtual_size) + UNIT)
            .map(|less| Op::Grow { to: to - less })
            .collect(),
        Op::Shrink { to } => units(geometry.virtual_size.saturating_sub(to))
            .map(|less| Op::Shrink { to: to + less })
            .collect(),
        Op::AddPassphrase { .. } | Op::RemovePassphrase { .. } | Op::Flush | Op::Reopen => {
            Vec::new()
        }
    }
}

/// Runs the lives of a trial, the last one with a look at crash states at every moment; the first that fails as wanted.
pub fn search(subject: &impl Subject, trial: &Trial, wanted: &Signature) -> Option<Minimised> {
    let subject = &AnySubject::of(subject);
    search_until(subject, trial, wanted, &|| false)
}

/// The same until it is `over`.
pub(crate) fn search_until(
    subject: &AnySubject,
    trial: &Trial,
    wanted: &Signature,
    over: &dyn Fn() -> bool,
) -> Option<Minimised> {
    let goes_on = wanted.property == Property::P7;
    search_for(subject, trial, goes_on, &|failure| wanted.matches(failure), over)
}

/// Whether a trial shows what is wanted, in whichever of its lives. Whether all can be written again (P7) is tried if `goes_on`.
pub fn shows(
    subject: &impl Subject,
    trial: &Trial,
    goes_on: bool,
    wanted: &dyn Fn(&Failure) -> bool,
) -> bool {
    let subject = &AnySubject::of(subject);
    (1..=trial.lives.len()).any(|lives| {
        let part = Trial { lives: trial.lives[..lives].to_vec(), ..trial.clone() };
        search_for(subject, &part, goes_on, wanted, &|| false).is_some()
    })
}

fn search_for(
    subject: &AnySubject,
    trial: &Trial,
    goes_on: bool,
    wanted: &dyn Fn(&Failure) -> bool,
    over: &dyn Fn() -> bool,
) -> Option<Minimised> {
    let last = trial.lives.len().checked_sub(1)?;
    let mut bench = Bench::new(subject.clone(), trial.session(), trial.profile);
    let mut probes = Probes::default();
    let (mut disk, guest) = trial::led_to(subject, trial, last).ok()??;
    let inherited = trial::inherited(&mut bench, &mut disk, &guest);
    let began = Before::of(&bench, &trial.geometry);
    let life = &trial.lives[last];
    let script = life.script(trial.session());
    let units = cluster_units(&trial.geometry);
    let choosers = || {
        let plain = [vec![], vec![u32::MAX; 256]].into_iter().map(LeafChooser::written);
        let known = match &life.leaf {
            Survivors::Choices(choices) => Some(LeafChooser::written(choices.clone())),
            Survivors::Seed(seed) => Some(LeafChooser::random(*seed, units)),
            Survivors::Labels { .. } => None,
        };
        plain.chain(known).chain((0..SEEDS).map(|seed| LeafChooser::random(seed, units)))
    };
    let mut judge = |bench: &mut Bench, disk: &PossibleDisk, guest: &Guest, may_leak| {
        let mut seen = guest.clone();
        seen.crash();
        choosers().find_map(|chooser| {
            let chooser = chooser.share();
            let mut asked = SharedLeaf::clone(&chooser);
            let crashed = disk.crash(trial.profile, &mut asked);
            let result = bench.judge_crash(crashed, &seen, &life.steps, &chooser, &mut probes);
            let result = result.and_then(|recovered| {
                p9_bounded_waste(subject, began.leaked(&recovered), may_leak)?;
                // Writing every unit takes long, and only this property asks for it.
                if goes_on {
                    let (geometry, disk) = (&trial.geometry, &recovered.disk);
                    p7_goes_on(
                        subject,
                        trial.session(),
                        trial.profile,
                        geometry,
                        disk,
                        &seen,
                        &chooser,
                    )?;
                }
                Ok(())
            });
            let other = result.err().filter(wanted)?;
            let choices = look(&chooser).choices();
            Some((choices, other))
        })
    };
    let mut found = None;
    // Where it ends: dropping the image there may be what fails.
    let mut cut = At::End;
    let mut unused = Probes::default();
    let end = life::run(subject, disk, guest, &script, &mut unused, |moment| {
        if over() {
            cut = At::Event(moment.event);
            return ControlFlow::Break(());
        }
        let may_leak = began.may_leak(moment.exposure);
        let result = moment.sim.with_disk(|disk| judge(&mut bench, disk, moment.guest, may_leak));
        found = result.map(|(choices, other)| (At::Event(moment.event), choices, other));
        if found.is_none() {
            return ControlFlow::Continue(());
        }
        cut = At::Event(moment.event);
        ControlFlow::Break(())
    });
    if let Some(other) = end.failure {
        let mut trial = trial.clone();
        trial.lives[last].at = cut;
        return wanted(&other).then_some(Minimised { trial, failure: other });
    }
    if found.is_none() && end.closed {
        let mut seen = end.guest.clone();
        seen.crash();
        found = choosers().find_map(|chooser| {
            let chooser = chooser.share();
            let mut asked = SharedLeaf::clone(&chooser);
            let mut crashed = end.disk.crash(trial.profile, &mut asked);
            let mut evidence = DiskEvidence::new(&mut crashed, &mut asked);
            let violation =
                bench.judge.closed(&mut evidence, &seen, &inherited).first().cloned()?;
            let other = Failure { violation, moment: "after a clean close".to_owned() };
            let choices = look(&chooser).choices();
            wanted(&other).then_some((At::End, choices, other))
        });
    }
    if found.is_none() && !over() {
        let result = judge(&mut bench, &end.disk, &end.guest, u64::MAX);
        found = result.map(|(choices, other)| (At::End, choices, other));
    }
    let (at, choices, failure) = found?;
    let mut trial = trial.clone();
    trial.lives[last].at = at;
    trial.lives[last].leaf = Survivors::Choices(choices);
    Some(Minimised { trial, failure })
}

/// The same trial with its schedules and choices written down, if it then fails in the same way.
fn written(subject: &AnySubject, found: Minimised) -> Minimised {
    let wanted = Signature::of(&found.failure);
    let Ok(outcome) = trial::run(subject, &found.trial) else { return found };
    let Some((last, _)) = outcome.failure else { return found };
    let mut trial = found.trial.clone();
    trial.lives.truncate(last + 1);
    for (life, record) in trial.lives.iter_mut().zip(&outcome.lives) {
        life.order = Order::Choices(trimmed(&record.decisions));
        life.leaf = Survivors::Choices(trimmed(&record.choices));
    }
    exactly(subject, &trial, &wanted).unwrap_or(found)
}

/// A list of choices without what goes without saying: that the first option is taken when it ends.
fn trimmed(choices: &[u32]) -> Vec<u32> {
    let used = choices.iter().rposition(|&choice| choice != 0).map_or(0, |last| last + 1);
    choices[..used].to_vec()
}

/// The same failure with as few choices as possible that lose something; or why it ended before.
fn fewest_losses(
    subject: &AnySubject,
    best: &mut Minimised,
    wanted: &Signature,
    watch: &mut Watch<'_>,
) -> Option<Ended> {
    let mut again = true;
    while std::mem::take(&mut again) {
        for life in 0..best.trial.lives.len() {
            let Survivors::Choices(choices) = &best.trial.lives[life].leaf else { continue };
            for at in (0..choices.len()).rev() {
                // What was kept may have cut the list, or the lives.
                let Some(TrialLife { leaf: Survivors::Choices(choices), .. }) =
                    best.trial.lives.get(life)
                else {
                    break;
                };
                if choices.get(at).is_none_or(|&choice| choice == 0) {
                    continue;
                }
                if let Some(ended) = watch.over() {
                    return Some(ended);
                }
                watch.trying(elements(&best.trial));
                let mut fewer = choices.clone();
                fewer[at] = 0;
                let mut trial = best.trial.clone();
                trial.lives[life].leaf = Survivors::Choices(trimmed(&fewer));
                if let Some(smaller) = exactly(subject, &trial, wanted) {
                    *best = smaller;
                    again = true;
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use faultfs::profile::{DiscardMode, Profile};
    use model::case::Opening;
    use model::op::{DataFile, Encryption};

    /// Goal: whatever an image has that the failure does not need is taken away. Method: one with everything, of which each step still fails.
    #[test]
    fn an_image_comes_down_to_the_plainest() {
        let plainest = Geometry::plain(9, 4 << 9);
        let mut trial = Trial {
            discard: DiscardMode::Either,
            geometry: Geometry {
                version: 2,
                cluster_bits: 14,
                refcount_order: 6,
                virtual_size: 100 << 14,
                lazy_refcounts: true,
                below: Some(512),
                extended_l2: true,
                compression: Compression::Zstd,
                data_file: Some(DataFile::Raw),
                encryption: Some(Encryption::Luks),
            },
            initial: Initial::Leaky,
            device: Device::default(),
            open: Opening::new("qcow2-core"),
            profile: Profile::TornLength,
            lives: Vec::new(),
        };
        while let Some(plainer) = candidates(&trial).into_iter().next() {
            trial = plainer;
        }
        assert_eq!((trial.geometry, trial.initial), (plainest, Initial::Fresh));
    }

    /// Goal: no request far out keeps the disk as large as it is: it comes down to where the disk begins, and its length to one unit.
    #[test]
    fn what_lies_far_out_comes_down_to_the_beginning_of_the_disk() {
        let geometry = Geometry::plain(9, 1 << 20);
        let (offset, length) = (1000 * UNIT, 24 * UNIT);
        let (id, durability) = (1, Durability::Cached);
        let all = [
            (Op::Discard { offset, length }, Op::Discard { offset: 0, length: UNIT }),
            (Op::Uncover { offset, length }, Op::Uncover { offset: 0, length: UNIT }),
            (
                Op::WriteZeroes { offset, length, unmap: true },
                Op::WriteZeroes { offset: 0, length: UNIT, unmap: true },
            ),
            (Op::Read { offset, length }, Op::Read { offset: 0, length: UNIT }),
            (
                Op::Write { offset, length, id, durability },
                Op::Write { offset: 0, length: UNIT, id, durability },
            ),
        ];
        for (mut op, smallest) in all {
            // Whatever is tried last still fails.
            while let Some(simpler) = simpler(op, &geometry).pop() {
                op = simpler;
            }
            assert_eq!(op, smallest);
        }
    }
}
