//! The same random operations as in a campaign, on a real file that the process leaves behind when it dies.
//!
//! A killed process loses what it had in memory, such as metadata that waited for a flush, and nothing that it had written.
//! It dies between two requests or between two operations of the storage within one. So the reference disk is told of a power
//! cut, and the file is judged as it lies there: byte for byte, with the judge's own reader.
//!
//! ```text
//!   file --open--> operations, reopen, ... --killed, or closed--> bytes, judged --> recovery --> bytes, judged --> next life
//!                                                                                     `- killed, judged, once more
//! ```

use std::fs;
use std::path::PathBuf;

use faultfs::rng::Rng;
use model::build::{Initial, build};
use model::case::Step;
use model::evidence::{BytesEvidence, ValueKey};
use model::finding::Stage;
use model::guest::Guest;
use model::judge::{Contents, Inherited, Judge, Statement, Violation};
use model::op::Op;
use model::payload::{self, UNIT, Unit};
use qcow2_core::blocking::block_on;
use qcow2_core::storage::file::{Access, FileStorage};
use qcow2_core::storage::{AnyStorage, IoBuf};
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::count::Counted;
use qcow2_crashtest::subject::{Qcow2Core, Session, Subject, SubjectImage};
use qcow2_crashtest::workload::{self, Plan, Scope};
use tempfile::TempDir;

type Image = qcow2_core::Image<AnyStorage>;

/// A process that lives on.
const FOREVER: u64 = u64::MAX;

/// What every operation says once the process is dead.
const DEATH: &str = "the budget of";

/// What the judge objects to.
type Verdict<T = ()> = Result<T, String>;

/// An image file, and what must be in it.
struct Disk {
    subject: Qcow2Core,
    _directory: TempDir,
    path: PathBuf,
    session: Session,
    guest: Guest,
    /// The file as it was when it was looked at last. Its store names the values of the reference disk.
    evidence: BytesEvidence,
    judge: Judge,
    what: String,
}

/// What a seed's lives have met.
#[derive(Debug, Default)]
struct Met {
    kills: u32,
    kills_in_requests: u32,
    kills_in_recovery: u32,
    closes: u32,
    dirty: u32,
    leaky: u32,
    reads: u32,
}

impl Disk {
    fn new(subject: Qcow2Core, plan: &Plan, what: String) -> Self {
        let built = build(&plan.geometry, plan.initial).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.qcow2");
        fs::write(&path, built.to_bytes()).unwrap();
        let mut evidence = built.evidence();
        let keys = built.guest_keys(|unit| evidence.values.intern(unit));
        let session = Session::of(&plan.open, &plan.geometry);
        let guest = Guest::new(&keys, subject.promises(&plan.geometry, &session))
            .on(built.made(&plan.geometry, |unit| evidence.values.intern(unit)));
        Self {
            subject,
            _directory: directory,
            path,
            session,
            guest,
            evidence,
            judge: Judge::default(),
            what,
        }
    }

    /// The file, for a process that lives for so many operations.
    fn storage(&self, access: Access, life: u64) -> AnyStorage {
        let file = FileStorage::open(&self.path, access).unwrap();
        AnyStorage::new(Counted::with_budget(file, life))
    }

    /// Opens the image for writing, unless the process dies on the way.
    fn open_until_death(&self, life: u64) -> Option<Image> {
        let storage = self.storage(Access::ReadWrite, life);
        let opened = block_on(self.subject.open(storage, self.session));
        self.unless_dead(opened.map_err(|refusal| format!("{refusal:?}")))
    }

    /// What an operation returned, unless it failed because the process is dead.
    #[track_caller]
    fn unless_dead<T>(&self, outcome: Result<T, String>) -> Option<T> {
        outcome.map_err(|error| assert!(error.contains(DEATH), "{}: {error}", self.what)).ok()
    }

    fn open_to_read(&self) -> Image {
        let storage = self.storage(Access::ReadOnly, FOREVER);
        let session = Session { writable: false, ..self.session };
        block_on(self.subject.open(storage, session))
            .unwrap_or_else(|refusal| panic!("{}: {refusal:?}", self.what))
    }

    fn repair(&self) {
        let claim = block_on(self.subject.repair(self.storage(Access::ReadWrite, FOREVER)));
        assert_eq!(claim, Ok(Statement::Repaired), "{}", self.what);
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    /// Looks at the file again.
    fn look(&mut self) {
        let bytes = self.bytes();
        let (units, rest) = bytes.as_chunks::<UNIT>();
        assert!(
            rest.is_empty(),
            "{}: {} bytes are no whole number of units",
            self.what,
            bytes.len()
        );
        self.evidence.set_len(bytes.len() as u64);
        for (number, unit) in (0..).zip(units) {
            self.evidence.set(number, unit);
        }
    }

    /// Judges the file as it is now.
    fn judge(&mut self, stage: Option<Stage>, when: &str) -> Verdict {
        self.look();
        verdict(&self.what, when, self.judge.state(&mut self.evidence, &self.guest, stage))
    }

    fn contents(&self) -> Contents {
        let mut contents = Contents::default();
        self.judge.contents(&self.evidence, &mut contents);
        contents
    }

    /// One operation, and what the reference disk says to its outcome. Whether the process is still alive.
    fn perform(&mut self, image: &Image, op: Op, met: &mut Met) -> bool {
        let values = &mut self.evidence.values;
        let token = self.guest.begin(&op, |unit, id| values.intern(&payload::unit(unit, id)));
        let done = match op.clip(image.size()) {
            None => Ok(()),
            Some(Op::Write { offset, length, id, durability }) => {
                let data = payload(offset, length, id);
                block_on(SubjectImage::write(image, offset, data, durability))
            }
            Some(Op::WriteCompressed { offset, length, id }) => {
                let data = payload(offset, length, id);
                block_on(SubjectImage::write_compressed(image, offset, data))
            }
            Some(Op::WriteZeroes { offset, length, unmap }) => {
                block_on(SubjectImage::write_zeroes(image, offset, length, unmap))
            }
            Some(Op::Discard { offset, length }) => {
                block_on(SubjectImage::discard(image, offset, length))
            }
            Some(Op::Uncover { offset, length }) => {
                block_on(SubjectImage::uncover(image, offset, length))
            }
            Some(Op::Preallocate { offset, length, how }) => {
                block_on(SubjectImage::preallocate(image, offset, length, how))
            }
            Some(Op::AddPassphrase { id }) => block_on(SubjectImage::add_passphrase(image, id)),
            Some(Op::RemovePassphrase { id }) => {
                block_on(SubjectImage::remove_passphrase(image, id))
            }
            Some(Op::Grow { to }) => block_on(SubjectImage::grow(image, to)),
            Some(Op::Shrink { to }) => block_on(SubjectImage::shrink(image, to)),
            Some(Op::Flush | Op::Reopen) => block_on(SubjectImage::flush(image)),
            Some(Op::Read { offset, length }) => match read(image, offset, length) {
                Ok(found) => {
                    let found: Vec<ValueKey> =
                        found.iter().map(|unit| self.evidence.values.intern(unit)).collect();
                    let misread = self.guest.complete_read(token, &found);
                    assert_eq!(misread, Ok(()), "{}", self.what);
                    met.reads += 1;
                    return true;
                }
                Err(error) => Err(error),
            },
        };
        let alive = self.unless_dead(done).is_some();
        if alive {
            self.guest.complete(token);
        } else {
            self.guest.fail(token);
        }
        alive
    }

    /// Runs operations one after the other, as far as the process lives; the image, if it is open then.
    fn run(&mut self, ops: &[Op], life: u64, met: &mut Met) -> Verdict<Option<Image>> {
        let Some(mut open) = self.open_until_death(life) else { return Ok(None) };
        for &op in ops {
            if op != Op::Reopen {
                if !self.perform(&open, op, met) {
                    return Ok(None);
                }
                continue;
            }
            if !self.close(open, met)? {
                return Ok(None);
            }
            let Some(again) = self.open_until_death(life) else { return Ok(None) };
            open = again;
        }
        Ok(Some(open))
    }

    /// Closes the image cleanly, and judges what that leaves. Whether the process lived to see it.
    fn close(&mut self, image: Image, met: &mut Met) -> Verdict<bool> {
        let token = self.guest.begin_flush();
        if self.unless_dead(block_on(SubjectImage::close(image))).is_none() {
            self.guest.fail(token);
            return Ok(false);
        }
        self.guest.complete(token);
        met.closes += 1;
        // What was judged last is what this session began with.
        let inherited = Inherited::of(self.judge.auditor());
        self.look();
        let violations = self.judge.closed(&mut self.evidence, &self.guest, &inherited);
        verdict(&self.what, "closed", violations).map(|()| true)
    }

    /// Recovery by opening or by an explicit repair, each judged; then the reference disk is what was found. A process that
    /// dies after `life` operations of opening comes first.
    fn recover(&mut self, how: Step, life: Option<u64>, met: &mut Met) -> Verdict {
        self.judge(None, "as it was left")?;
        let before = self.contents();
        let was_dirty = self.is_dirty();
        met.dirty += u32::from(was_dirty);
        met.leaky += u32::from(self.judge.auditor().report().totals.leaks > 0);

        let found = self.bytes();
        self.assert_reads(&self.open_to_read(), &before);
        assert_eq!(self.bytes(), found, "{}: opening it read-only wrote", self.what);

        if let Some(life) = life
            && self.open_until_death(life).is_none()
        {
            let when = "killed in recovery";
            met.kills_in_recovery += u32::from(self.bytes() != found);
            self.judge(None, when)?;
            self.assert_unchanged(&before, when)?;
        }
        let stage = match how {
            Step::Repair => {
                self.repair();
                Stage::Repaired
            }
            _ => {
                let is_dirty = self.is_dirty();
                drop(self.open_until_death(FOREVER));
                if is_dirty { Stage::Repaired } else { Stage::OpenedClean }
            }
        };
        let when = "after recovery";
        self.judge(Some(stage), when)?;
        self.assert_unchanged(&before, when)?;
        let map = block_on(SubjectImage::map(&self.open_to_read())).unwrap();
        let disagrees = self.judge.p3_mapping_agrees(&map);
        verdict(&self.what, when, disagrees.as_slice())?;
        if stage == Stage::Repaired {
            let once = self.bytes();
            self.repair();
            assert_eq!(self.bytes(), once, "{}: a second repair wrote", self.what);
        }

        self.guest.crash();
        self.guest.collapse_size(before.size());
        self.guest.collapse_passphrases(before.passphrases());
        for unit in 0..self.guest.units() {
            let values: Vec<ValueKey> = before.values(unit).collect();
            self.guest.collapse(unit, &values);
        }
        Ok(())
    }

    fn is_dirty(&self) -> bool {
        self.judge.auditor().image().header().is_some_and(|header| header.is_dirty())
    }

    fn assert_unchanged(&self, before: &Contents, when: &str) -> Verdict {
        let changed = self.judge.p3_same_contents(before, &self.contents(), &self.evidence);
        verdict(&self.what, when, changed.as_slice())
    }

    /// The implementation reads what the judge found.
    fn assert_reads(&self, image: &Image, contents: &Contents) {
        assert_eq!(image.size(), contents.size(), "{}", self.what);
        for (number, unit) in (0..).zip(&read(image, 0, image.size()).unwrap()) {
            let mut found = contents.values(number).map(|key| self.evidence.values.bytes(key));
            assert_eq!(found.next(), Some(unit), "{}: guest unit {number}", self.what);
        }
    }
}

fn verdict(what: &str, when: &str, violations: &[Violation]) -> Verdict {
    violations.first().map_or(Ok(()), |violation| Err(format!("{what}, {when}:\n{violation}")))
}

fn payload(offset: u64, length: u64, id: u32) -> IoBuf {
    let units = offset / UNIT as u64..(offset + length) / UNIT as u64;
    let data: Vec<u8> = units.flat_map(|unit| payload::unit(unit, id)).collect();
    IoBuf::copy_of(&data, UNIT)
}

fn read(image: &Image, offset: u64, length: u64) -> Result<Vec<Unit>, String> {
    let buf = IoBuf::zeroed(usize::try_from(length).unwrap(), UNIT);
    let data = block_on(SubjectImage::read(image, offset, buf))?;
    Ok(data.as_chunks::<UNIT>().0.to_vec())
}

/// Runs the plan of a seed, each of its lives on what recovery made of the one before.
fn run(subject: Qcow2Core, seed: u64, lazy: bool, met: &mut Met) -> Verdict {
    let scope = Scope { lazy: Some(lazy), tasks: Some(1), ..Scope::faultless() };
    let mut plan = workload::plan(seed, &scope, &Capabilities::everything());
    // A process that is killed loses nothing of either file, so one is enough.
    plan.geometry.data_file = None;
    if plan.initial == Initial::RefcountTableOneShort {
        // Its L1 table of 8 MiB would be read and written dozens of times.
        return Ok(());
    }
    let what = format!("seed {seed}, {}", if lazy { "lazy" } else { "eager" });
    let mut disk = Disk::new(subject, &plan, what);
    let mut rng = Rng::new(seed);
    for ops in &plan.lives {
        disk.judge(None, "before a life")?;
        let life = if rng.below(3) == 0 { FOREVER } else { u64::from(rng.below(30)) };
        let open = disk.run(&ops.tasks[0], life, met)?;
        met.kills_in_requests += u32::from(open.is_none());
        match open {
            Some(open) if rng.below(2) == 0 => drop(disk.close(open, met)?),
            open => {
                drop(open);
                met.kills += 1;
            }
        }
        disk.guest.crash();
        let death = (rng.below(2) == 0).then(|| u64::from(rng.below(16)));
        disk.recover(if rng.below(3) == 0 { Step::Repair } else { Step::Open }, death, met)?;
    }
    Ok(())
}

/// Goal: on a real file, whatever a killed process leaves behind is legal, recovers, and holds what was flushed; what a closed
/// one leaves is in order. Method: campaign plans of a few dozen seeds, without faults, one request at a time; every byte
/// of the file is judged after every life, and read back.
#[test]
#[cfg_attr(not(turn = "9"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_killed_process_leaves_a_file_that_recovers() {
    for lazy in [false, true] {
        let mut met = Met::default();
        for seed in 0..100 {
            run(Qcow2Core::default(), seed, lazy, &mut met)
                .unwrap_or_else(|found| panic!("{found}"));
        }
        assert!(met.kills > 40 && met.kills_in_requests > 20, "lazy {lazy}: {met:?}");
        assert!(met.closes > 10 && met.reads > 20, "lazy {lazy}: {met:?}");
        let rare = if lazy { [met.dirty, met.kills_in_recovery] } else { [met.leaky, 5] };
        assert!(rare.iter().all(|&count| count >= 5), "lazy {lazy}: {met:?}");
    }
}

/// Goal: a broken order shows on a real file too. A death reorders nothing, so only orders between what is written and what is
/// written again can show.
#[test]
#[cfg_attr(not(turn = "6"), ignore = "its turn is at another commit; CI=1 runs all")]
fn a_killed_process_shows_a_broken_order() {
    let subject = Qcow2Core::without(["dereference-before-reuse"]).unwrap();
    let found: Vec<String> = (0..200)
        .filter_map(|seed| run(subject, seed, false, &mut Met::default()).err())
        .take(8)
        .collect();
    let shown = found.iter().any(|found| found.contains("P2 other-unit"));
    assert!(shown, "no process died with an old reference to a cluster used again: {found:#?}");
}
