//! The flush that is missing: where one more would have made the failure impossible, and what else it would have.
//!
//! ```text
//!   crash states of the workload, judged:  fails   fails   holds   fails  ...
//!   with a flush at gap p, still possible?   no      no              yes        removes 2 of 3
//! ```
//!
//! A flush only takes crash states away. So the states that fail are looked for once, without it, and each gap is judged by
//! which of them can no longer be: a unit would have to hold what that flush has superseded. Where writes tear, that is a unit that
//! somebody read. Where each is kept or lost as a whole, it is any that one of those lost has written; the failure itself is then of the
//! smallest set of losses, so that a flush which removes it concerns one of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use faultfs::chooser::{Choice, Chooser, Exhaustive, Prefix};
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use faultfs::trace::{Event, IoKind};
use faultfs::values::Key;
use model::guest::Guest;
use model::judge::Place;
use model::payload;

use crate::interrupt;
use crate::leaf::LeafChooser;
use crate::liveness::{is_seen_going_on, p7_goes_on};
use crate::minimise::Signature;
use crate::probe::Probes;
use crate::recover::{Bench, Failure, StepPlan};
use crate::report::scene::Scene;
use crate::report::timeline::{Played, Timeline, unit_of};
use crate::trial::{Trial, cluster_units};

/// Crash states tried at each moment: this many in the order of enumeration, and where there are more, as many at random.
const STATES: usize = 32;

/// So many units of disk are gone through at most, each state being all of them. Where that is not enough for every moment, it is every
/// second one, or third, and so on.
const UNITS: usize = 1 << 25;

/// How long moments are judged, which makes a difference where the code that is judged is slow: then not all of them are.
const SEARCH_FOR: Duration = Duration::from_secs(60);

/// Which of so many moments on `disk` there is time for: every how manyth.
fn every(moments: usize, disk: &PossibleDisk) -> usize {
    let states = UNITS / disk.extent().max(1) as usize;
    (moments * 2 * STATES).div_ceil(states.max(1)).max(1)
}

/// `0..count` in an order that is spread evenly wherever it ends: the first, the one in the middle, those in the middle between them.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    let strides =
        std::iter::successors(Some(count.next_power_of_two() / 2), |stride| Some(stride / 2));
    let odd = strides
        .take_while(|&stride| stride > 0)
        .flat_map(move |stride| (stride..count).step_by(2 * stride));
    std::iter::once(0).filter(move |_| count > 0).chain(odd)
}

/// The time that there is for moments.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "how many moments slow code is judged at depends on the clock, and the report says so"
        )]
        Self(Instant::now())
    }

    fn is_over(&self) -> bool {
        interrupt::asked() || self.0.elapsed() >= SEARCH_FOR
    }
}

/// What the search showed.
pub(super) struct Searched {
    /// Crash states judged.
    pub(super) judged: usize,
    /// Failing states other than those meant by "this failure".
    pub(super) others: usize,
    /// States in which this failure shows, at this power cut.
    pub(super) same: usize,
    /// Whether the states at this power cut are all that there are.
    pub(super) complete: bool,
    /// Of how many moments states were judged, and of how many there are; the same unless there was no time for all.
    pub(super) moments: (usize, usize),
    /// The best place for a flush.
    pub(super) best: Option<Gap>,
}

/// A stretch of the timeline in which a flush has the same effect everywhere.
pub(super) struct Gap {
    /// Events before its first place.
    pub(super) first: usize,
    /// Events before its last place.
    pub(super) last: usize,
    /// Whether it removes this failure in every state judged.
    pub(super) removes_this: bool,
    /// How many of the other failing states it removes.
    pub(super) removes: usize,
}

/// A failing crash state: what somebody read of it.
struct Failing {
    /// Events of the timeline before the power cut.
    at: usize,
    units: BTreeMap<u32, Key>,
    length: Option<u32>,
    same: bool,
}

/// What is searched.
pub(super) struct Search<'a> {
    /// The failing trial.
    pub(super) trial: &'a Trial,
    /// Its failing life.
    pub(super) played: &'a Played,
    /// Recovery after that life.
    pub(super) steps: &'a [StepPlan],
    /// The answers with which it fails.
    pub(super) choices: &'a [u32],
    /// How it fails.
    pub(super) failure: &'a Failure,
}

/// Searches a failing life, where the power cut that matters is the one in the life.
pub(super) fn in_life(bench: &mut Bench, search: &Search<'_>) -> Searched {
    let Search { trial, played, steps, choices, failure } = *search;
    let mut found = Found::new(failure, played.cut);
    let clock = Clock::start();
    let mut judge = |at, guest, own| {
        let live = &played.timeline.disk(at);
        let point = Point { live, pending: live, guest, steps, at, given: &[], own };
        found.states(bench, trial, &point);
    };
    judge(played.cut, &played.guest, choices);
    let every = every(played.moments.len(), &played.live);
    let mut once = BTreeSet::from([played.cut]);
    let moments = played.moments.iter().step_by(every).filter(|seen| once.insert(seen.at));
    let moments: Vec<_> = moments.collect();
    let mut judged = 0;
    for at in spread(moments.len()).take_while(|_| !clock.is_over()) {
        judge(moments[at].at, &moments[at].guest, &[]);
        judged += 1;
    }
    found.moments = (judged + 1, moments.len() + 1);
    found.search(&played.timeline, trial.profile)
}

/// Searches the step of recovery that led to scene `number`, where the power cut that matters is the one in that step.
pub(super) fn in_step(
    bench: &mut Bench,
    search: &Search<'_>,
    scenes: &[Scene],
    number: usize,
) -> Option<Searched> {
    let Search { trial, played, steps, choices, failure } = *search;
    let scene = &scenes[number];
    let timeline = scene.timeline.as_ref()?;
    let given = &choices[..scene.chosen.min(choices.len())];
    let counted: Vec<usize> =
        (0..timeline.events.len()).filter(|at| matters(timeline, *at)).collect();
    let mut found = Found::new(failure, counted.last()? + 1);
    let mut judge = |crash_at: usize, own| {
        let mut steps = steps[..number].to_vec();
        steps[number - 1].crash_at = Some(crash_at as u64);
        let at = counted[crash_at] + 1;
        let pending = &timeline.disk(at);
        let (live, guest) = (&played.live, &played.guest);
        let point = Point { live, pending, guest, steps: &steps, at, given, own };
        found.states(bench, trial, &point);
    };
    let clock = Clock::start();
    // The last one is the failure's own.
    let last = counted.len() - 1;
    judge(last, choices);
    let moments: Vec<_> = (0..last).step_by(every(counted.len(), &played.live)).collect();
    let mut judged = 0;
    for at in spread(moments.len()).take_while(|_| !clock.is_over()) {
        judge(moments[at], &[]);
        judged += 1;
    }
    found.moments = (judged + 1, moments.len() + 1);
    Some(found.search(timeline, trial.profile))
}

/// A moment at which the power may fail.
struct Point<'a> {
    /// The disk at the power cut of the life.
    live: &'a PossibleDisk,
    /// The disk at this power cut: another one if it is in recovery.
    pending: &'a PossibleDisk,
    guest: &'a Guest,
    steps: &'a [StepPlan],
    /// Events of the timeline before it.
    at: usize,
    /// Answers that lead to it.
    given: &'a [u32],
    /// Answers of the failure, if it fails here.
    own: &'a [u32],
}

/// Whether an event submits something that a power cut could lose or a flush.
fn matters(timeline: &Timeline, at: usize) -> bool {
    matches!(&timeline.events[at], Event::Submit { io, .. } if io.kind != IoKind::Read)
}

struct Found {
    wanted: Signature,
    cut: usize,
    /// Whether it shows only when all is written after recovery. That takes long, and is done at the power cut that matters.
    goes_on: bool,
    judged: usize,
    complete: bool,
    moments: (usize, usize),
    failing: Vec<Failing>,
}

impl Found {
    fn new(failure: &Failure, cut: usize) -> Self {
        let (wanted, goes_on) = (Signature::of(failure), is_seen_going_on(failure));
        let (moments, failing) = ((0, 0), Vec::new());
        Self { wanted, cut, goes_on, judged: 0, complete: true, moments, failing }
    }

    /// Judges crash states at a moment, the failure's own first, then an enumeration, then random ones; notes of each that
    /// fails what was read.
    fn states(&mut self, bench: &mut Bench, trial: &Trial, point: &Point<'_>) {
        let Point { live, pending, guest, steps, at, given, own } = *point;
        let mut seen = guest.clone();
        seen.crash();
        let mut known = BTreeSet::new();
        let wheels = Arc::new(Mutex::new(Exhaustive::new()));
        let mut enumerated = false;
        for number in 0..=2 * STATES {
            let inner: Box<dyn Chooser + Send> = match number {
                0 => Box::new(LeafChooser::written(own.to_vec())),
                _ if number <= STATES && !enumerated => {
                    Box::new(Prefix::new(given.to_vec(), Arc::clone(&wheels)))
                }
                _ if enumerated => break,
                seed => {
                    let random = LeafChooser::random(seed as u64, cluster_units(&trial.geometry));
                    Box::new(Prefix::new(given.to_vec(), random))
                }
            };
            let noting = Noting {
                inner,
                skip: given.len(),
                units: BTreeMap::new(),
                length: None,
                fates: Fates::default(),
            };
            let chooser = Arc::new(Mutex::new(noting));
            let crashed = live.crash(trial.profile, &mut Arc::clone(&chooser));
            let probes = &mut Probes::default();
            let mut result = bench.judge_crash(crashed, &seen, steps, &chooser, probes).map(Some);
            if let Ok(Some(recovered)) = &result
                && self.goes_on
                && at == self.cut
            {
                let (Trial { geometry, profile, .. }, session) = (trial, trial.session());
                let (subject, disk) = (&bench.subject, &recovered.disk);
                let went_on =
                    p7_goes_on(subject, session, *profile, geometry, disk, &seen, &chooser);
                result = went_on.map(|_| None);
            }
            if (1..=STATES).contains(&number) {
                let mut wheels = wheels.lock().unwrap_or_else(PoisonError::into_inner);
                enumerated = !wheels.advance();
            }
            let mut noted = chooser.lock().unwrap_or_else(PoisonError::into_inner);
            let mut units = match tears(trial.profile) {
                true => std::mem::take(&mut noted.units),
                false => {
                    let (units, length) =
                        left(pending, trial.profile, std::mem::take(&mut noted.fates));
                    noted.length = length;
                    units
                }
            };
            let mut keys = Vec::new();
            units.retain(|unit, key| {
                keys.clear();
                pending.peek(*unit, &mut keys);
                keys.contains(key)
            });
            if let Err(failure) = &result {
                units.extend(shown(failure, pending));
            }
            if !known.insert((units.clone(), noted.length)) {
                continue;
            }
            self.judged += 1;
            if let Err(failure) = result {
                let same = at == self.cut && self.wanted.matches(&failure);
                self.failing.push(Failing { at, units, length: noted.length, same });
            }
        }
        if at == self.cut {
            self.complete = enumerated;
        }
    }

    fn search(mut self, timeline: &Timeline, profile: Profile) -> Searched {
        self.failing.sort_by_key(|state| state.at);
        let same = self.failing.iter().filter(|state| state.same).count();
        let others = self.failing.len() - same;
        let mut gaps: Vec<Gap> = Vec::new();
        let mut previous: Option<BTreeSet<usize>> = None;
        let mut again = timeline.again();
        for at in (1..self.cut).filter(|at| is_turn(timeline, *at)) {
            again.go_to(at);
            let mut flushed = again.clone();
            flushed.flush();
            let removed: BTreeSet<usize> = (0..self.failing.len())
                // Not in the moment of the power cut itself: that would order nothing.
                .filter(|number| self.failing[*number].at > at)
                .filter(|number| {
                    let state = &self.failing[*number];
                    flushed.go_to(state.at);
                    !is_possible(state, &flushed.disk, profile)
                })
                .collect();
            if previous.as_ref() == Some(&removed)
                && let Some(gap) = gaps.last_mut()
            {
                gap.last = at;
                continue;
            }
            let same_removed = removed.iter().filter(|n| self.failing[**n].same).count();
            gaps.push(Gap {
                first: at,
                last: at,
                removes_this: same > 0 && same_removed == same,
                removes: removed.len() - same_removed,
            });
            previous = Some(removed);
        }
        let worth = |gap: &Gap| (gap.removes_this, gap.removes);
        let best = gaps.into_iter().rev().max_by_key(worth);
        let best = best.filter(|gap| gap.removes_this || gap.removes > 0);
        let Self { judged, complete, moments, .. } = self;
        Searched { judged, others, same, complete, moments, best }
    }
}

/// Whether a power cut may keep a part of a write.
fn tears(profile: Profile) -> bool {
    matches!(profile, Profile::Torn | Profile::TornLength)
}

/// What each unit of `pending` holds that could hold something else, and the length if there could be another one, after a power cut with
/// these answers under a profile that does not tear. What nobody asked for has landed.
fn left(
    pending: &PossibleDisk,
    profile: Profile,
    mut fates: Fates,
) -> (BTreeMap<u32, Key>, Option<u32>) {
    let mut crashed = pending.crash(profile, &mut fates);
    let open = (0..pending.extent()).filter(|unit| pending.single(*unit).is_none());
    let units = open.map(|unit| (unit, crashed.read(unit, &mut fates))).collect();
    let length = (pending.possible_lengths().len() > 1).then(|| crashed.len(&mut fates));
    (units, length)
}

/// The answers of a power cut under a profile that does not tear, by what was asked: of whole writes, which may be asked for when
/// somebody reads, in another order than before.
#[derive(Default)]
struct Fates {
    writes: BTreeMap<(u32, u32), VecDeque<u32>>,
    cuts: VecDeque<u32>,
}

impl Fates {
    fn note(&mut self, what: &Choice<'_>, taken: u32) {
        match *what {
            Choice::Write { unit, count } => {
                self.writes.entry((unit, count)).or_default().push_back(taken);
            }
            Choice::Prefix | Choice::Epoch => self.cuts.push_back(taken),
            _ => {}
        }
    }
}

impl Chooser for Fates {
    fn choose(&mut self, _: u32, what: Choice<'_>) -> u32 {
        let next = match what {
            Choice::Write { unit, count } => {
                self.writes.get_mut(&(unit, count)).and_then(VecDeque::pop_front)
            }
            Choice::Prefix | Choice::Epoch => self.cuts.pop_front(),
            _ => None,
        };
        next.unwrap_or(0)
    }
}

/// The unit and value in which a failure shows, if it is one of the guest's and the disk at the power cut already had it.
fn shown(failure: &Failure, pending: &PossibleDisk) -> Option<(u32, Key)> {
    let Place::Guest { host: Some(host), .. } = failure.violation.place else { return None };
    let found = failure.violation.found?;
    let mut keys = Vec::new();
    pending.peek(unit_of(host), &mut keys);
    let is_found = |key: &Key| payload::decode(pending.values().bytes(*key)) == found;
    keys.into_iter().find(is_found).map(|key| (unit_of(host), key))
}

/// Whether an update ends right before event `at`, or something is submitted there: elsewhere a flush does the same.
fn is_turn(timeline: &Timeline, at: usize) -> bool {
    matches!(timeline.events[at - 1], Event::Complete { .. }) || matters(timeline, at)
}

fn is_possible(state: &Failing, disk: &PossibleDisk, profile: Profile) -> bool {
    let mut keys = Vec::new();
    let units = state.units.iter().all(|(unit, key)| {
        keys.clear();
        disk.peek(*unit, &mut keys);
        keys.contains(key)
    });
    // Under this one nobody loses a length by itself.
    let length = |length| profile == Profile::Torn || disk.possible_lengths().contains(&length);
    units && state.length.is_none_or(length)
}

/// Another chooser's answers, with what they decided first of each unit after the first `skip`.
struct Noting {
    inner: Box<dyn Chooser + Send>,
    skip: usize,
    units: BTreeMap<u32, Key>,
    length: Option<u32>,
    /// The answers after the first `skip` of what is kept or lost as a whole.
    fates: Fates,
}

impl Chooser for Noting {
    fn choose(&mut self, options: u32, what: Choice<'_>) -> u32 {
        let taken = self.inner.choose(options, what);
        if let Some(left) = self.skip.checked_sub(1) {
            self.skip = left;
            return taken;
        }
        self.fates.note(&what, taken);
        match what {
            Choice::Unit { unit, options } => {
                self.units.entry(unit).or_insert(options[taken as usize]);
            }
            Choice::Length { options } => {
                self.length.get_or_insert(options[taken as usize]);
            }
            _ => {}
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use faultfs::profile::Profile;
    use faultfs::trace::Event;
    use model::build::Initial;

    use super::{Search, in_life, matters, spread};
    use crate::any::AnySubject;
    use crate::explore::{self, ExploreSettings, alphabet::worlds};
    use crate::recover::Bench;
    use crate::report::text;
    use crate::report::timeline::play;
    use crate::report::{all_without_witness, without_witness};
    use crate::subject::Qcow2Core;
    use crate::trial;

    /// Goal: where each write is kept or lost as a whole, the flush is found as well. Method: a mapping that does not wait for its data, which
    /// only the guest would read, and a table that is lost behind a flush that does nothing, in the smallest world, under both profiles that
    /// may lose one and keep another.
    #[test]
    fn a_flush_between_whole_writes_is_found() {
        let rules = [
            ("data-before-mapping", "(write data", "(write l2[0])"),
            ("all-before-clean", "(write refcount-block[0])", "(write header)"),
        ];
        for (profile, (rule, first, then)) in [Profile::Epoch, Profile::Cache]
            .into_iter()
            .flat_map(|profile| rules.map(|rule| (profile, rule)))
        {
            let broken = Qcow2Core::without([rule]).unwrap();
            let worlds = worlds(&[1024], &[false, true], &[Initial::Fresh]);
            let settings = ExploreSettings { profile, ..ExploreSettings::new(worlds, 3) };
            let found = explore::run(&broken, &settings, |_, _, _, _| {}).found.unwrap();
            let small = found.trial(&broken, profile).unwrap();
            let told = text(&broken, &small.trial, &small.failure, None);
            let (_, advice) = told.split_once("MISSING FLUSH\n").expect("it is after a power cut");
            let advice = advice.lines().take(2).collect::<Vec<_>>().join("\n");
            for said in ["  A flush after I/O #", first, then, "removes this"] {
                assert!(advice.contains(said), "{rule} under {profile}: {told}");
            }
        }
    }

    /// Goal: each moment comes once, and wherever the search ends, they are spread evenly. Method: counts up to 70, and the gaps after each.
    #[test]
    fn moments_are_spread_evenly() {
        assert_eq!(spread(6).collect::<Vec<_>>(), [0, 4, 2, 1, 3, 5]);
        for count in 0..70_usize {
            let mut all: Vec<usize> = spread(count).collect();
            for some in 1..=all.len() {
                let mut begun = all[..some].to_vec();
                begun.sort_unstable();
                begun.push(count);
                let widest = begun.windows(2).map(|pair| pair[1] - pair[0]).max();
                assert!(widest <= Some(count.div_ceil(some) * 4), "{some} of {count}: {begun:?}");
            }
            all.sort_unstable();
            assert!(all.into_iter().eq(0..count));
        }
    }

    /// Goal: a disk made again from its I/O is the disk that was, and one flush more takes states away and adds none. Method:
    /// the whole corpus, without the witnesses; every event; a flush at every event before it.
    #[test]
    fn a_flush_more_only_takes_away() {
        let mut narrower = 0;
        for (name, broken, exact) in all_without_witness() {
            let played = play(&AnySubject::of(&broken), &exact, 0).expect("it is feasible");
            assert!(played.is_faithful(), "{name}");
            let timeline = &played.timeline;
            let ios = (1..played.cut.min(200)).filter(|at| matters(timeline, *at));
            let plain = timeline.disk(played.cut);
            for at in ios {
                let mut flushed = timeline.again();
                flushed.go_to(at);
                flushed.flush();
                flushed.go_to(played.cut);
                let flushed = flushed.disk;
                for unit in 0..plain.extent() {
                    let (mut before, mut after) = (Vec::new(), Vec::new());
                    plain.peek(unit, &mut before);
                    flushed.peek(unit, &mut after);
                    assert!(after.iter().all(|key| before.contains(key)), "{name}: unit {unit}");
                    narrower += usize::from(after.len() < before.len());
                }
            }
        }
        assert!(narrower > 0, "no flush changed anything");
    }

    /// Goal: the flush that is named is the one that was taken away. Method: for cases whose broken rule asked for a flush,
    /// the gap that is found ends before the write that the rule holds back.
    #[test]
    fn the_flush_that_was_taken_away_is_found() {
        for (name, held_back) in [
            ("without-refcount-before-reference.json", "l2[0]"),
            ("without-all-before-clean.json", "header"),
            ("without-data-before-mapping.json", "l2[0]"),
            ("without-length-before-reference.json", "l1"),
        ] {
            let (broken, exact) = without_witness(name);
            let outcome = trial::run(&broken, &exact).expect("it is feasible");
            let (_, failure) = outcome.failure.expect("it fails without its witness");
            let played = play(&AnySubject::of(&broken), &exact, 0).expect("it is feasible");
            let mut bench = Bench::new(broken, exact.session(), exact.profile);
            let choices = &outcome.lives[0].choices;
            let (trial, played, failure) = (&exact, &played, &failure);
            let search = Search { trial, played, steps: &[], choices, failure };
            let found = in_life(&mut bench, &search);
            let gap = found.best.unwrap_or_else(|| panic!("{name}: no flush helps"));
            assert!(gap.removes_this && found.complete, "{name}");
            let labels = trial::labels(&mut bench, &played.last, &played.guest);
            let next = played.timeline.events[gap.last..].iter().find_map(|event| match event {
                Event::Submit { io, .. } if io.kind.is_update() => Some(io),
                _ => None,
            });
            let next = next.expect("something was held back");
            let units = super::unit_of(next.offset)..super::unit_of(next.offset + next.len);
            let regions: Vec<_> = units.map(|unit| labels(unit).region.to_string()).collect();
            assert!(regions.iter().any(|region| region == held_back), "{name}: {regions:?}");
        }
    }
}
