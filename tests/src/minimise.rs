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
use model::op::{Durability, Op};

use crate::evidence::DiskEvidence;
use crate::leaf::{LeafChooser, SharedLeaf, look};
use crate::life::{self, Order};
use crate::liveness::{Before, p9_bounded_waste};
use crate::probe::Probes;
use crate::recover::{Bench, Failure};
use crate::subject::Subject;
use crate::trial::{self, At, Leaf, Trial, TrialLife, cluster_units};

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

/// Shrinks a failing trial until nothing more can be taken away or `limit` has passed.
pub fn minimise<Sub: Subject>(
    subject: &Sub,
    found: &Trial,
    failure: &Failure,
    limit: Duration,
) -> Minimised {
    #[expect(
        clippy::disallowed_methods,
        reason = "minimising stops by the clock; its result is replayed, not its way"
    )]
    let start = Instant::now();
    let wanted = Signature::of(failure);
    let mut best = Minimised { trial: found.clone(), failure: failure.clone() };
    loop {
        let mut shrunk = false;
        for candidate in candidates(&best.trial) {
            if start.elapsed() > limit {
                return fewest_losses(subject, written(subject, best));
            }
            if let Some(smaller) = search(subject, &candidate, &wanted) {
                best = smaller;
                shrunk = true;
                break;
            }
        }
        if !shrunk {
            return fewest_losses(subject, written(subject, best));
        }
    }
}

/// What tells one bug from another, as far as one can tell: the property, and the way in which it is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The property.
    pub property: Property,
    /// The judge's name of the way.
    pub kind: String,
}

impl Signature {
    /// The signature of a failure.
    pub fn of(failure: &Failure) -> Self {
        let violation = &failure.violation;
        Self { property: violation.property, kind: violation.kind.to_owned() }
    }

    /// Whether a failure has this signature.
    pub fn matches(&self, failure: &Failure) -> bool {
        failure.violation.property == self.property && failure.violation.kind == self.kind
    }
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
                with(&|trial| drop(trial.lives[life].tasks.remove(task)));
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
    with(&|trial| trial.geometry.refcount_order = 4);
    with(&|trial| trial.open.page_size = 512);
    with(&|trial| trial.open.pass_discard = true);
    with(&|trial| trial.open.lazy_refcounts = None);
    with(&|trial| trial.open.write_through = false);
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
                for simpler in
                    simpler(trial.lives[life].tasks[task][op], trial.geometry.cluster_size())
                {
                    with(&|trial| trial.lives[life].tasks[task][op] = simpler);
                }
            }
        }
    }
    all
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

fn simpler(op: Op, cluster: u64) -> Vec<Op> {
    let lengths = |length: u64| {
        [512, cluster, length / 2 / 512 * 512]
            .into_iter()
            .filter(move |&new| 0 < new && new < length)
    };
    match op {
        Op::Write { offset, length, id, durability } => {
            let mut all: Vec<Op> = lengths(length)
                .map(|length| Op::Write { offset, length, id, durability })
                .collect();
            if offset > 0 {
                all.push(Op::Write { offset: 0, length, id, durability });
            }
            if durability == Durability::Through {
                all.push(Op::Write { offset, length, id, durability: Durability::Cached });
            }
            all
        }
        Op::Discard { offset, length } => {
            lengths(length).map(|length| Op::Discard { offset, length }).collect()
        }
        Op::WriteZeroes { offset, length, unmap } => {
            lengths(length).map(|length| Op::WriteZeroes { offset, length, unmap }).collect()
        }
        Op::Read { .. } | Op::Flush | Op::Grow { .. } | Op::Reopen => Vec::new(),
    }
}

/// Runs the lives of a trial, the last one with a look at crash states at every moment; the first that fails as wanted.
pub fn search<Sub: Subject>(subject: &Sub, trial: &Trial, wanted: &Signature) -> Option<Minimised> {
    let last = trial.lives.len().checked_sub(1)?;
    let mut bench = Bench::new(subject.clone(), trial.session(), trial.profile);
    let mut probes = Probes::default();
    let (mut disk, guest) = if last == 0 {
        let (disk, guest) = trial.start(subject).ok()?;
        (disk.with_discard(trial.discard), guest)
    } else {
        let earlier = Trial { lives: trial.lives[..last].to_vec(), ..trial.clone() };
        trial::run_to_end(subject, &earlier).ok()??
    };
    let inherited = trial::inherited(&mut bench, &mut disk, &guest);
    let began = Before::of(&bench, &trial.geometry);
    let life = &trial.lives[last];
    let script = life.script(trial.session());
    let units = cluster_units(&trial.geometry);
    let choosers = || {
        let plain = [vec![], vec![u32::MAX; 256]].into_iter().map(LeafChooser::written);
        let known = match &life.leaf {
            Leaf::Choices(choices) => Some(LeafChooser::written(choices.clone())),
            Leaf::Seed(seed) => Some(LeafChooser::random(*seed, units)),
            Leaf::Labels { .. } => None,
        };
        plain.chain(known).chain((0..SEEDS).map(|seed| LeafChooser::random(seed, units)))
    };
    let mut judge = |bench: &mut Bench<Sub>, disk: &PossibleDisk, guest: &Guest, may_leak| {
        let mut seen = guest.clone();
        seen.crash();
        choosers().find_map(|chooser| {
            let chooser = chooser.share();
            let mut asked = SharedLeaf::clone(&chooser);
            let crashed = disk.crash(trial.profile, &mut asked);
            let result = bench.judge_crash(crashed, &seen, &life.steps, &chooser, &mut probes);
            let result =
                result.and_then(|recovered| p9_bounded_waste(began.leaked(&recovered), may_leak));
            let other = result.err().filter(|other| wanted.matches(other))?;
            let choices = look(&chooser).choices();
            Some((choices, other))
        })
    };
    let mut found = None;
    let mut unused = Probes::default();
    let end = life::run(subject, disk, guest, &script, &mut unused, |moment| {
        let may_leak = began.may_leak(moment.exposure);
        let result = moment.sim.with_disk(|disk| judge(&mut bench, disk, moment.guest, may_leak));
        found = result.map(|(choices, other)| (At::Event(moment.event), choices, other));
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if let Some(other) = end.failure {
        let mut trial = trial.clone();
        trial.lives[last].at = At::End;
        return wanted.matches(&other).then_some(Minimised { trial, failure: other });
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
            wanted.matches(&other).then_some((At::End, choices, other))
        });
    }
    if found.is_none() {
        let result = judge(&mut bench, &end.disk, &end.guest, u64::MAX);
        found = result.map(|(choices, other)| (At::End, choices, other));
    }
    let (at, choices, failure) = found?;
    let mut trial = trial.clone();
    trial.lives[last].at = at;
    trial.lives[last].leaf = Leaf::Choices(choices);
    Some(Minimised { trial, failure })
}

/// The same trial with its schedules and choices written down.
fn written<Sub: Subject>(subject: &Sub, found: Minimised) -> Minimised {
    let Ok(outcome) = trial::run(subject, &found.trial) else { return found };
    let Some((last, failure)) = outcome.failure else { return found };
    let mut trial = found.trial.clone();
    trial.lives.truncate(last + 1);
    for (life, record) in trial.lives.iter_mut().zip(&outcome.lives) {
        life.order = Order::Choices(record.decisions.clone());
        life.leaf = Leaf::Choices(record.choices.clone());
    }
    match trial::run(subject, &trial) {
        Ok(outcome)
            if outcome
                .failure
                .as_ref()
                .is_some_and(|(_, other)| Signature::of(&failure).matches(other)) =>
        {
            Minimised { trial, failure }
        }
        _ => found,
    }
}

/// The same failure with as few choices as possible that lose something.
fn fewest_losses<Sub: Subject>(subject: &Sub, found: Minimised) -> Minimised {
    let wanted = Signature::of(&found.failure);
    let mut best = found;
    for life in 0..best.trial.lives.len() {
        let Leaf::Choices(mut choices) = best.trial.lives[life].leaf.clone() else { continue };
        for at in (0..choices.len()).rev() {
            if choices[at] == 0 {
                continue;
            }
            let old = std::mem::replace(&mut choices[at], 0);
            let mut trial = best.trial.clone();
            trial.lives[life].leaf = Leaf::Choices(choices.clone());
            match trial::run(subject, &trial) {
                Ok(outcome) => match outcome.failure {
                    Some((_, failure)) if wanted.matches(&failure) => {
                        best = Minimised { trial, failure };
                    }
                    _ => choices[at] = old,
                },
                Err(_) => choices[at] = old,
            }
        }
    }
    best
}
