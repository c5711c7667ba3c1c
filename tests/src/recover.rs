//! One crash state, judged in full: what it is, what recovery makes of it, and whether recovering again changes anything.
//!
//! ```text
//!   crashed disk ──judge──> planned steps (open read-only, open, repair; each may be cut short by another crash, judged again)
//!                └────────> open for writing ──judge──> [kept for the next life]
//!                                             └───────> repair ──judge──> repair again: must write nothing
//! ```
//!
//! What a state must hold at each of these moments is the judge's business (`model`); here is only the order of looking.

use faultfs::chooser::{Always, Chooser};
use faultfs::direct::{Direct, DirectOptions, Done as Io, Submitted};
use faultfs::disk::{Mark, PossibleDisk};
use faultfs::profile::Profile;
use model::case::Step;
use model::evidence::ValueKey;
use model::finding::{Finding, Property, Stage};
use model::guest::{Guest, Misread, Opens};
use model::image::Image;
use model::judge::{Contents, Extent, Judge, Place, Statement, Violation, p0_misread};
use model::op::PASSPHRASES;
use model::payload::UNIT;
use qcow2_core::storage::IoBuf;

use crate::any::AnySubject;
use crate::buffer::to_read_into;
use crate::call::{self, Files};
use crate::capabilities::Capabilities;
use crate::evidence::DiskEvidence;
use crate::leaf::LeafChooser;
use crate::panics;
use crate::probe::{Probe, Probes};
use crate::subject::{Duties, Mend, Refusal, Session, Subject, SubjectImage};

/// One planned step of recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// What runs.
    pub run: Step,
    /// Cut the power when this many of its storage operations that change or flush something have been submitted; the
    /// last of them is in flight. If it has fewer, it completes.
    pub crash_at: Option<u64>,
}

/// A violation, and when it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What is wrong.
    pub violation: Violation,
    /// What had just happened.
    pub moment: String,
}

/// What a fully judged crash state leaves.
#[derive(Debug)]
pub struct Recovered {
    /// The disk after opening for writing.
    pub disk: PossibleDisk,
    /// How many states were judged: the crash's own and each that a crash in recovery left.
    pub states: u64,
    /// Leaked clusters in the image that was opened.
    pub leaks: u64,
}

/// What recovery did, for whoever wants to know it in full.
#[derive(Debug, Default)]
pub struct Watched {
    /// Every disk that a power cut in the middle could find.
    pub forks: Vec<PossibleDisk>,
    /// What opening did, what the repair after it did, and the one after that.
    pub records: [Vec<Io>; 3],
    /// The image as it was after each of these that changed something, and after a power cut right after a repair.
    pub images: Vec<Image>,
}

impl Watched {
    /// Adds what a step left behind and did.
    fn add(watched: &mut Option<&mut Self>, step: usize, (forks, record): Left) {
        if let Some(watched) = watched {
            watched.forks.extend(forks);
            watched.records[step] = record;
        }
    }

    /// Adds the image that was judged last.
    fn look(watched: &mut Option<&mut Self>, judge: &Judge) {
        if let Some(watched) = watched {
            watched.images.push(judge.auditor().image().clone());
        }
    }
}

/// The forks that a step of recovery left behind, and what it did.
type Left = (Vec<PossibleDisk>, Vec<Io>);

/// What a power cut left, on its way through recovery.
#[derive(Debug)]
struct Crashed<'a, C> {
    disk: PossibleDisk,
    /// What the guest may see there.
    guest: &'a Guest,
    chooser: C,
}

/// A step of recovery that ran to its end.
#[derive(Debug)]
struct Taken {
    step: Step,
    /// Whether the image was marked dirty before.
    was_dirty: bool,
    done: Done,
    io: Submitted,
}

/// When a subject was asked what it reads.
pub(crate) const READ: &str = "when it was read";

/// How many places of a large disk are read in a look.
const LOOKS: u64 = 64;
/// How many bytes are read at each.
const LOOK: u64 = 16 << 10;

/// Everything that judging needs and that outlives one state.
#[derive(Debug)]
pub struct Bench {
    /// What is under test.
    pub subject: AnySubject,
    /// How it opens images.
    pub session: Session,
    /// How the power fails.
    pub profile: Profile,
    /// The judge and its buffers.
    pub judge: Judge,
    before: Contents,
    /// When `before` was taken: it is what the disk in hand holds as long as its log shows no change since.
    kept: Option<Mark>,
    after: Contents,
}

impl Bench {
    /// A bench for one case.
    pub fn new(subject: impl Subject, session: Session, profile: Profile) -> Self {
        let subject = AnySubject::of(&subject);
        let Duties { structure, closes_without_leaks, .. } = subject.duties();
        let judge = if structure { Judge::default() } else { Judge::of_contents() };
        let judge = if closes_without_leaks { judge } else { judge.allowing_leaks() };
        Self {
            subject,
            session,
            profile,
            judge,
            before: Contents::default(),
            kept: None,
            after: Contents::default(),
        }
    }

    /// Which size a power cut in a resize left.
    fn probe_size(&self, guest: &Guest, probes: &mut Probes) {
        let header = self.judge.auditor().image().header();
        if let ([smaller, .., larger], Some(header)) = (&guest.allowed_sizes()[..], header) {
            if header.size == *smaller {
                probes.hit(Probe::ResizeSmaller);
            } else if header.size == *larger {
                probes.hit(Probe::ResizeLarger);
            }
        }
    }

    /// Whether a power cut left a passphrase that was being added or removed.
    fn probe_passphrases<C: Chooser>(&self, crashed: &mut Crashed<'_, C>, probes: &mut Probes) {
        let Crashed { disk, guest, chooser } = crashed;
        let is_open = |id: &u32| guest.passphrase(*id) == Opens::Perhaps;
        if !(1..=PASSPHRASES).any(|id| is_open(&id)) {
            return;
        }
        let found = self.judge.passphrases(&DiskEvidence::new(disk, chooser));
        for (_, opens) in (1..).zip(found).filter(|(id, _)| is_open(id)) {
            match opens {
                Some(true) => probes.hit(Probe::PassphraseThere),
                Some(false) => probes.hit(Probe::PassphraseNotThere),
                None => {}
            }
        }
    }

    /// Judges a disk that the power cut has just left (`guest` has been told of it), runs `steps` and then the closing
    /// sequence on it. Clones of `chooser` must share their answers.
    ///
    /// # Errors
    /// The first violation.
    pub fn judge_crash<C: Chooser + Send + Clone + 'static>(
        &mut self,
        disk: PossibleDisk,
        guest: &Guest,
        steps: &[StepPlan],
        chooser: &C,
        probes: &mut Probes,
    ) -> Result<Recovered, Failure> {
        let mut crashed = Crashed { disk, guest, chooser: chooser.clone() };
        let mut states = 1;
        self.kept = None;
        self.look(&mut crashed, None, "after the power cut")?;
        if self.is_dirty() {
            probes.hit(Probe::DirtyCrash);
        }
        self.probe_size(crashed.guest, probes);
        self.probe_passphrases(&mut crashed, probes);
        let mut crashes_in_repair = 0;
        for step in asked(steps, &self.subject.capabilities()) {
            let was_dirty = self.is_dirty();
            if step.run == Step::OpenReadOnly && was_dirty {
                probes.hit(Probe::ReadOnlyDirty);
            }
            if step.run == Step::OpenReadOnly {
                self.reads_alike(&mut crashed)?;
            }
            let options = DirectOptions { crash_at: step.crash_at, ..DirectOptions::default() };
            let (next, taken, _) = self.take(crashed, step.run, options);
            crashed = next;
            if let Some(taken) = taken {
                self.accept(&mut crashed, &taken?, &format!("after {}", name(step.run)))?;
                continue;
            }
            let moment = format!("after a power cut in {}", name(step.run));
            crashed.disk.crash_in_place(self.profile, &mut crashed.chooser);
            self.look(&mut crashed, None, &moment)?;
            self.same_contents(&mut crashed, &moment)?;
            states += 1;
            if was_dirty || !is_open(step.run) {
                crashes_in_repair += 1;
                probes.hit(Probe::CrashInRepair);
                if crashes_in_repair == 2 {
                    probes.hit(Probe::NestedTwice);
                }
            }
        }
        // What does not say what it maps is asked what it reads.
        if !self.subject.capabilities().map {
            self.reads_alike(&mut crashed)?;
        }
        let Crashed { disk, guest, .. } = crashed;
        let mut recovered = self.recover(disk, guest, chooser, probes, None)?;
        recovered.states += states;
        Ok(recovered)
    }

    /// The closing sequence on the disk that was judged last: open it for writing and, if the subject repairs, repair it,
    /// repair it again. What it did is added to `watched`, if somebody watches.
    ///
    /// # Errors
    /// The first violation.
    pub fn recover<C: Chooser + Send + Clone + 'static>(
        &mut self,
        disk: PossibleDisk,
        guest: &Guest,
        chooser: &C,
        probes: &mut Probes,
        mut watched: Option<&mut Watched>,
    ) -> Result<Recovered, Failure> {
        let record = watched.is_some();
        let with_forks = || DirectOptions { forks: record, record, ..DirectOptions::default() };
        let crashed = Crashed { disk, guest, chooser: chooser.clone() };
        let (mut opened, taken, left) = self.take(crashed, Step::Open, with_forks());
        Watched::add(&mut watched, 0, left);
        let taken = taken.ok_or_else(|| stuck(Step::Open))??;
        self.accept(&mut opened, &taken, "after opening it for writing")?;
        Watched::look(&mut watched, &self.judge);
        let was_dirty = taken.was_dirty;
        let report = self.judge.auditor().report();
        let leaks =
            report.findings.iter().filter(|f| matches!(f, Finding::Leak { .. })).count() as u64;

        if !self.subject.capabilities().repair {
            return Ok(Recovered { disk: opened.disk, states: 0, leaks });
        }
        let chooser = opened.chooser.clone();
        let again = Crashed { disk: opened.disk.clone(), guest, chooser };
        let (mut repaired, taken, left) = self.take(again, Step::Repair, with_forks());
        Watched::add(&mut watched, 1, left);
        let taken = taken.ok_or_else(|| stuck(Step::Repair))??;
        self.accept(&mut repaired, &taken, "after an explicit repair")?;
        Watched::look(&mut watched, &self.judge);
        if taken.io.updates > 0 {
            let mut least = Always(u32::MAX);
            let disk = repaired.disk.crash(self.profile, &mut least);
            let mut cut = Crashed { disk, guest, chooser: least };
            let moment = "after a power cut after an explicit repair";
            self.look(&mut cut, Some(Stage::Repaired), moment)?;
            Watched::look(&mut watched, &self.judge);
            if was_dirty {
                return Err(not_idempotent("a repair after the repair by opening wrote again"));
            }
            if leaks > 0 {
                probes.hit(Probe::LeakRepaired);
            }
            let options = DirectOptions { record, ..DirectOptions::default() };
            let direct = Direct::with_options(repaired.disk, repaired.chooser, options);
            let done = self.run_step(&direct, Step::Repair).ok_or_else(|| stuck(Step::Repair))?;
            let remains = direct.power_off();
            done?;
            Watched::add(&mut watched, 2, (remains.forks, remains.record));
            if remains.counts.updates > 0 {
                return Err(not_idempotent("a second repair wrote again"));
            }
        }
        Ok(Recovered { disk: opened.disk, states: 0, leaks })
    }

    /// What every guest unit may hold on the disk that was judged last.
    pub(crate) fn contents<C: Chooser>(
        &mut self,
        disk: &mut PossibleDisk,
        chooser: &mut C,
    ) -> &Contents {
        self.kept = None;
        self.keep_contents(disk, chooser);
        &self.before
    }

    /// P8: what a check says of the image that was judged last is so: that it is sound, that it is not, and that nothing is leaked
    /// any more. (Whether the refcounts of a dirty image are right is nothing that it has to say.)
    fn p8_check(&self, step: Step, claim: Statement) -> Option<Violation> {
        if claim != Statement::GaveUp {
            // Nothing at all is wrong with it, leaks included; but that it is marked dirty says nothing about its counts.
            let mut wrong = self.judge.auditor().report().violations(Stage::Repaired);
            let wrong = wrong.any(|(_, finding)| !matches!(finding, Finding::Dirty));
            return wrong.then(|| whole_image(Property::P8, "false-claim"));
        }
        let report = self.judge.auditor().report();
        let leak = |finding: &Finding| matches!(finding, Finding::Leak { .. });
        if report.findings.is_empty() && !self.is_dirty() {
            return Some(whole_image(Property::P8, "false-alarm"));
        }
        let stays = step == Step::RepairLeaks && report.findings.iter().any(leak);
        (stays && !self.is_dirty()).then(|| whole_image(Property::P4, "leaks-stay"))
    }

    /// Narrows what the guest may see to what is on the disk now, as after any recovery.
    ///
    /// # Errors
    /// What is wrong there.
    pub fn settle_guest<C: Chooser>(
        &mut self,
        disk: &mut PossibleDisk,
        guest: &mut Guest,
        chooser: &mut C,
    ) -> Result<(), Failure> {
        // Where nothing recovered it, this decides metadata that nobody has looked at.
        self.state(disk, guest, chooser, None, "when the next life began")?;
        let evidence = DiskEvidence::new(disk, chooser);
        self.judge.contents(&evidence, &mut self.after);
        collapse(guest, &self.after);
        Ok(())
    }

    /// Whether the image that was judged last is marked dirty.
    pub fn is_dirty(&self) -> bool {
        self.judge.auditor().image().header().is_some_and(|header| header.is_dirty())
    }

    /// Whether opening the image that was judged last for writing repairs it.
    pub fn will_repair(&self) -> bool {
        self.is_dirty() && self.subject.capabilities().repair
    }

    /// Judges a disk at `stage`; without one, as a power cut leaves it. Remembers its contents.
    pub(crate) fn state<C: Chooser>(
        &mut self,
        disk: &mut PossibleDisk,
        guest: &Guest,
        chooser: &mut C,
        stage: Option<Stage>,
        moment: &str,
    ) -> Result<(), Failure> {
        let mut evidence = DiskEvidence::new(disk, chooser);
        if let Some(violation) = self.judge.state(&mut evidence, guest, stage).first() {
            return Err(Failure { violation: violation.clone(), moment: moment.to_owned() });
        }
        Ok(())
    }

    /// The same for what a power cut left.
    fn look<C: Chooser>(
        &mut self,
        crashed: &mut Crashed<'_, C>,
        stage: Option<Stage>,
        moment: &str,
    ) -> Result<(), Failure> {
        let Crashed { disk, guest, chooser } = crashed;
        self.state(disk, guest, chooser, stage, moment)
    }

    /// Takes down what the disk in hand holds, unless that is known already.
    fn keep_contents<C: Chooser>(&mut self, disk: &mut PossibleDisk, chooser: &mut C) {
        let changes = self.kept.and_then(|mark| disk.changed_since(mark));
        if changes.is_some_and(<[_]>::is_empty) {
            return;
        }
        self.kept = Some(disk.mark());
        let evidence = DiskEvidence::new(disk, chooser);
        self.judge.contents(&evidence, &mut self.before);
    }

    /// P3: nothing is there that was not there when the contents were kept. Keeps what is there now.
    fn same_contents<C: Chooser>(
        &mut self,
        crashed: &mut Crashed<'_, C>,
        moment: &str,
    ) -> Result<(), Failure> {
        let mark = crashed.disk.mark();
        let evidence = DiskEvidence::new(&mut crashed.disk, &mut crashed.chooser);
        self.judge.contents(&evidence, &mut self.after);
        if let Some(violation) = self.judge.p3_same_contents(&self.before, &self.after, &evidence) {
            return Err(Failure { violation, moment: moment.to_owned() });
        }
        std::mem::swap(&mut self.before, &mut self.after);
        self.kept = Some(mark);
        Ok(())
    }

    /// Runs one step to its end, or to the crash in it.
    fn run_step<C: Chooser + Send + 'static>(
        &self,
        direct: &Direct<C>,
        step: Step,
    ) -> Option<Result<Done, Failure>> {
        let storage = direct.clone();
        let subject = self.subject.clone();
        let session = Session { writable: step != Step::OpenReadOnly, ..self.session };
        let done = faultfs::direct::run(async move {
            match step {
                Step::OpenReadOnly | Step::Open => {
                    let image = call::open(&subject, storage, session).await.map_err(refused)?;
                    if !subject.capabilities().map {
                        return Ok(Done::Opened(None));
                    }
                    let map = image.map().await.map_err(|text| refused(Refusal::Failed(text)))?;
                    Ok(Done::Opened(Some(map)))
                }
                Step::Repair => {
                    call::repair(&subject, storage).await.map(Done::Repaired).map_err(refused)
                }
                Step::Check => checked(call::check(&subject, storage, Mend::Nothing).await),
                Step::RepairLeaks => checked(call::check(&subject, storage, Mend::Leaks).await),
            }
        });
        match panics::take() {
            Some(text) => Some(Err(panicked(text, &format!("in {}", name(step))))),
            None => done,
        }
    }

    /// Runs one step on what is there, to its end or to the crash in it, which leaves nothing to say; and the disks that a power cut
    /// in the middle could find, if they are wanted.
    fn take<'a, C: Chooser + Send + Clone + 'static>(
        &mut self,
        crashed: Crashed<'a, C>,
        step: Step,
        options: DirectOptions,
    ) -> (Crashed<'a, C>, Option<Result<Taken, Failure>>, Left) {
        let Crashed { mut disk, guest, mut chooser } = crashed;
        let was_dirty = self.is_dirty();
        self.keep_contents(&mut disk, &mut chooser);
        let direct = Direct::with_options(disk, chooser.clone(), options);
        let done = self.run_step(&direct, step);
        let remains = direct.power_off();
        let (disk, io) = (remains.disk, remains.counts);
        let taken = done.map(|done| done.map(|done| Taken { step, was_dirty, done, io }));
        (Crashed { disk, guest, chooser }, taken, (remains.forks, remains.record))
    }

    /// P0 and P3 by the subject's own eyes: who opens the image that was judged last to read it reads what may be there, and neither that
    /// nor closing it changes anything. What was in doubt is decided for this look alone: the disk in hand stays as it is.
    fn reads_alike<C: Chooser>(&mut self, crashed: &mut Crashed<'_, C>) -> Result<(), Failure> {
        self.keep_contents(&mut crashed.disk, &mut crashed.chooser);
        let chooser = self.reader(&crashed.disk);
        let direct = Direct::new(crashed.disk.clone(), chooser);
        let size = self.before.size();
        let fail = |violation| Failure { violation, moment: READ.to_owned() };
        let read = self.read_through(direct.clone(), size);
        if let Some(text) = panics::take() {
            return Err(panicked(text, READ));
        }
        let remains = direct.power_off();
        let (said, read) = read.ok_or_else(|| stuck(Step::OpenReadOnly))??;
        if remains.counts.updates > 0 {
            return Err(fail(whole_image(Property::P3, "read-only-open-wrote")));
        }
        if said != size {
            let story = format!("it says {said} bytes, and the header {size}");
            return Err(fail(Violation { story, ..whole_image(Property::P0, "size-misread") }));
        }
        let mut keys = Vec::new();
        for (offset, data) in read {
            keys.clear();
            crashed.disk.values().intern_all(&data, &mut keys);
            for (unit, key) in (offset / UNIT as u64..).zip(&keys) {
                let found = ValueKey(key.0);
                if self.before.values(unit).all(|allowed| allowed != found) {
                    let allowed = self.before.values(unit).collect();
                    let misread = Misread { unit, found, allowed };
                    let evidence = DiskEvidence::new(&mut crashed.disk, &mut crashed.chooser);
                    return Err(fail(p0_misread(&misread, &evidence, crashed.guest)));
                }
            }
        }
        Ok(())
    }

    /// What decides the units that a reader of the image that was judged last finds in doubt.
    pub(crate) fn reader(&self, disk: &PossibleDisk) -> LeafChooser {
        let cluster = self.judge.auditor().image().header().map_or(1, |header| {
            u32::try_from(header.cluster_size() / UNIT as u64).expect("clusters are small")
        });
        LeafChooser::random(disk.state_hash(), cluster)
    }

    /// Opens an image to read it, reads it all or at many places, and closes it: what it says its size is, and what was where. Nothing
    /// if that never ends.
    pub(crate) fn read_through<S: Files>(&self, storage: S, size: u64) -> Option<Read> {
        let subject = self.subject.clone();
        let session = Session { writable: false, ..self.session };
        let told = |text| {
            let violation = whole_image(Property::P8, "unprovoked-error");
            Failure { violation: Violation { story: text, ..violation }, moment: READ.to_owned() }
        };
        faultfs::direct::run(async move {
            let image = call::open(&subject, storage, session).await.map_err(refused)?;
            let mut read = Vec::new();
            for (offset, length) in looked_at(size.min(image.size())) {
                let data = image.read(offset, to_read_into(length)).await.map_err(told)?;
                read.push((offset, data));
            }
            let said = image.size();
            image.close().await.map_err(told)?;
            Ok((said, read))
        })
    }

    /// Judges what a completed step left and said.
    fn accept<C: Chooser>(
        &mut self,
        crashed: &mut Crashed<'_, C>,
        taken: &Taken,
        moment: &str,
    ) -> Result<(), Failure> {
        let Taken { step, was_dirty, done, io } = taken;
        let fail = |violation| Failure { violation, moment: moment.to_owned() };
        let stage = match step {
            Step::OpenReadOnly | Step::Check | Step::RepairLeaks => None,
            Step::Open if *was_dirty => Some(Stage::Repaired),
            Step::Open => Some(Stage::OpenedClean),
            Step::Repair => Some(Stage::Repaired),
        };
        if io.updates == 0 {
            // Nothing has changed, so the audit of before still says what is there; only more is asked of it.
            if let Some(stage) = stage
                && let Some(violation) = self.judge.structure(stage).first()
            {
                return Err(fail(violation.clone()));
            }
        } else if matches!(step, Step::OpenReadOnly | Step::Check) {
            return Err(fail(whole_image(Property::P3, "read-only-open-wrote")));
        } else {
            self.look(crashed, stage, moment)?;
            self.same_contents(crashed, moment)?;
        }
        let violation = match done {
            Done::Opened(Some(map)) => self.judge.p3_mapping_agrees(map),
            Done::Repaired(Statement::GaveUp) => Some(whole_image(Property::P4, "repair-gave-up")),
            Done::Checked(Some(claim)) => self.p8_check(*step, *claim),
            Done::Opened(None) | Done::Checked(None) => None,
            Done::Repaired(claim) => self.judge.p8_claim(*claim),
        };
        violation.map_or(Ok(()), |violation| Err(fail(violation)))
    }
}

/// The size that a subject says, and what it read from where on; or why it did not.
pub(crate) type Read = Result<(u64, Vec<(u64, IoBuf)>), Failure>;

/// Where a look at a disk of so many bytes reads: all of it, or [`LOOKS`] places as far from each other as they can be.
fn looked_at(size: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = (size / LOOKS).next_multiple_of(UNIT as u64).max(LOOK);
    (0..size).step_by(usize::try_from(step).expect("a disk fits in memory")).map(move |offset| {
        // The last look sees the end of the disk.
        let length = LOOK.min(size - offset);
        if size - offset <= step { (size - length, length) } else { (offset, length) }
    })
}

/// Narrows what the guest may see to what was found.
pub fn collapse(guest: &mut Guest, contents: &Contents) {
    guest.collapse_size(contents.size());
    guest.collapse_passphrases(contents.passphrases());
    let mut values = Vec::new();
    for unit in guest.unsettled() {
        values.clear();
        values.extend(contents.values(unit));
        guest.collapse(unit, &values);
    }
}

/// What a step of recovery returned.
#[derive(Debug)]
enum Done {
    /// Its map, if it has one.
    Opened(Option<Vec<Extent>>),
    Repaired(Statement),
    /// Nothing, if the subject has no such check.
    Checked(Option<Statement>),
}

fn checked(claim: Option<Result<Statement, Refusal>>) -> Result<Done, Failure> {
    claim.transpose().map(Done::Checked).map_err(refused)
}

/// The steps that are asked of a subject: who does not repair is only opened.
pub fn asked<'a>(
    steps: &'a [StepPlan],
    can: &Capabilities,
) -> impl Iterator<Item = &'a StepPlan> + use<'a> {
    let repairs = can.repair;
    steps.iter().filter(move |step| repairs || is_open(step.run))
}

/// Whether a step opens the image rather than checking it.
const fn is_open(step: Step) -> bool {
    matches!(step, Step::OpenReadOnly | Step::Open)
}

fn refused(refusal: Refusal) -> Failure {
    let (kind, text) = match refusal {
        Refusal::GaveUp(text) => ("recovery-gave-up", text),
        Refusal::Failed(text) => ("recovery-failed", text),
    };
    let violation = Violation { story: text, ..whole_image(Property::P4, kind) };
    Failure { violation, moment: "in recovery".to_owned() }
}

/// P8: a subject that panics.
pub fn panicked(text: String, moment: &str) -> Failure {
    let violation = Violation { story: text, ..whole_image(Property::P8, "panic") };
    Failure { violation, moment: moment.to_owned() }
}

/// A step that waits for something that will never come.
fn stuck(step: Step) -> Failure {
    let violation = whole_image(Property::P7, "recovery-hangs");
    Failure { violation, moment: format!("in {}", name(step)) }
}

fn not_idempotent(moment: &str) -> Failure {
    let violation = whole_image(Property::P5, "not-a-fixed-point");
    Failure { violation, moment: moment.to_owned() }
}

/// A violation of the image as a whole.
pub fn whole_image(property: Property, kind: &'static str) -> Violation {
    Violation {
        property,
        kind,
        place: Place::Image,
        found: None,
        allowed: Vec::new(),
        story: String::new(),
    }
}

/// What reports call a step.
pub const fn name(step: Step) -> &'static str {
    match step {
        Step::OpenReadOnly => "opening it read-only",
        Step::Open => "opening it for writing",
        Step::Repair => "an explicit repair",
        Step::Check => "a check",
        Step::RepairLeaks => "a repair of leaks",
    }
}
