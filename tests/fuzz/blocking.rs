//! The blocking calls under power cuts: any byte, any length, on a disk where the power fails in the middle of a call.
//!
//! ```text
//!   bytes of a call      |  ..#####|#########|###......  |      whole units are written; the first and the last are read, changed and
//!   units of 512 bytes   |   old   |   new   |   old     |      written again, so each is the old one or the whole new one
//! ```
//!
//! A power cut ends the thread that the call is on, as it does in life; what it left is judged like everything else.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::{Context, Poll, Waker};

use faultfs::chooser::Always;
use faultfs::direct::{Direct, DirectOptions};
use faultfs::profile::Profile;
use faultfs::rng::Rng;
use model::case::Opening;
use model::evidence::ValueKey;
use model::guest::{Guest, Token};
use model::payload::UNIT;
use qcow2_core::blocking::Image;
use qcow2_core::storage::{Durability, IoBuf, Limits, Storage};
use qcow2_core::{Repair, Zeroing, blocking};
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::layer::Base;
use qcow2_crashtest::leaf::LeafChooser;
use qcow2_crashtest::probe::Probes;
use qcow2_crashtest::recover::Bench;
use qcow2_crashtest::subject::{Qcow2Core, Session};
use qcow2_crashtest::trial::{self, cluster_units};
use qcow2_crashtest::workload::{Scope, plan};

/// What a thread ends with at a power cut.
struct PowerCut;

/// A storage on which a power cut ends whoever waits for it.
struct Cut(Direct<Always>);

/// What `work` comes to; the end of the thread if it never ends.
async fn or_end<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => resume_unwind(Box::new(PowerCut)),
    }
}

impl Storage for Cut {
    fn limits(&self) -> Limits {
        self.0.limits()
    }

    async fn len(&self) -> io::Result<u64> {
        or_end(self.0.len()).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        or_end(self.0.set_len(len)).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        or_end(self.0.read(offset, buf)).await
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, io::Result<()>) {
        or_end(self.0.write(offset, buf, durability)).await
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        or_end(self.0.write_zeroes(range)).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        or_end(self.0.discard(range)).await
    }

    async fn flush(&self) -> io::Result<()> {
        or_end(self.0.flush()).await
    }

    async fn settle(&self) -> io::Result<()> {
        or_end(self.0.settle()).await
    }
}

/// The guest's side: what it wrote, byte by byte, and what that means for each unit.
struct Owner<'a> {
    guest: &'a mut Guest,
    direct: &'a Direct<Always>,
    bytes: Vec<u8>,
}

impl Owner<'_> {
    /// Begins to change some bytes, as a write of all units that they touch.
    fn begin_write(&mut self, offset: usize, data: &[u8]) -> Token {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        let units = offset / UNIT..(offset + data.len()).div_ceil(UNIT);
        let bytes = &self.bytes[units.start * UNIT..units.end * UNIT];
        let mut keys = Vec::new();
        self.direct.with_disk(|disk, _| disk.values().intern_all(bytes, &mut keys));
        let keys: Vec<ValueKey> = keys.iter().map(|key| ValueKey(key.0)).collect();
        self.guest.begin_write(units.start as u64, &keys, model::op::Durability::Cached)
    }
}

/// Opens the image and makes random calls until `requests` are over or the power fails. Each read returns what was written.
fn live(direct: &Direct<Always>, session: &Session, owner: &mut Owner<'_>, rng: &mut Rng) {
    let options = qcow2_core::OpenOptions::new()
        .write_through(session.write_through)
        .page_size(512)
        .growth(session.growth)
        .cache_pages(session.cache_pages as usize);
    let storage = Cut(direct.clone());
    let image = match session.below {
        Some(below) => Image::open_over(storage, Base::new(below).shared(), options),
        None => Image::open(storage, options),
    };
    let image = image.expect("nothing fails");
    let size = owner.bytes.len();
    for _ in 0..2 + rng.below(12) {
        let any =
            |rng: &mut Rng, below: usize| rng.below(u32::try_from(below).expect("small")) as usize;
        let offset = any(rng, size);
        let most = if rng.below(3) == 0 { size } else { 3 * UNIT };
        let length = any(rng, most.min(size - offset) + 1);
        match rng.below(8) {
            0..=2 => {
                let data: Vec<u8> = (0..length).map(|_| rng.below(256) as u8).collect();
                let token = owner.begin_write(offset, &data);
                image.write(offset as u64, &data).expect("nothing fails");
                owner.guest.complete(token);
            }
            3 => {
                let token = owner.begin_write(offset, &vec![0; length]);
                let how = if rng.below(2) == 0 { Zeroing::Free } else { Zeroing::Keep };
                image.write_zeroes(offset as u64, length as u64, how).expect("nothing fails");
                owner.guest.complete(token);
            }
            4 => {
                let units = offset.next_multiple_of(UNIT)..(offset + length) / UNIT * UNIT;
                if units.start < units.end {
                    let (first, count) = (units.start / UNIT, units.len() / UNIT);
                    let token = owner.guest.begin_discard(first as u64, count as u64);
                    image.discard(offset as u64, length as u64).expect("nothing fails");
                    owner.guest.complete(token);
                    let mut now = vec![0; size];
                    image.read(0, &mut now).expect("nothing fails");
                    owner.bytes = now;
                }
            }
            5 => {
                let token = owner.guest.begin_flush();
                image.flush().expect("nothing fails");
                owner.guest.complete(token);
            }
            _ => {
                let mut found = vec![0xee; length];
                image.read(offset as u64, &mut found).expect("nothing fails");
                assert_eq!(found, owner.bytes[offset..offset + length], "at {offset}");
            }
        }
    }
    let token = owner.guest.begin_flush();
    image.close().expect("nothing fails");
    owner.guest.complete(token);
}

/// Goal: the blocking calls lose nothing. Method: random calls at random bytes on every kind of image, the power cut at a random update
/// or flush of them, and everything that it may have left judged; a check by the blocking call finds the same.
#[test]
fn blocking_calls_survive_power_cuts() {
    let cases = if cfg!(debug_assertions) { 1500 } else { 20_000 };
    let (mut cuts, mut ends) = (0, 0);
    for seed in 0..cases {
        let mut rng = Rng::new(seed);
        let scope = Scope { tiny: true, ..Scope::default() };
        let plan = plan(seed, &scope, &Capabilities::everything());
        if plan.geometry.virtual_size > 256 << 10
            || !plan.geometry.virtual_size.is_multiple_of(plan.geometry.cluster_size())
        {
            continue;
        }
        let open = Opening { page_size: 512, ..plan.open.clone() };
        let session = Session::of(
            &Opening { pass_discard: true, lazy_refcounts: None, ..open },
            &plan.geometry,
        );
        let subject = Qcow2Core::default();
        let start = trial::initial(&subject, &plan.geometry, plan.initial, &session, &plan.device);
        let (disk, mut guest) = start.expect("these images are feasible");
        let mut bytes = Vec::new();
        for unit in 0..guest.units() {
            let key = guest.allowed(unit)[0];
            bytes.extend_from_slice(disk.values().bytes(faultfs::values::Key(key.0)));
        }
        let crash_at = if rng.below(4) == 0 { None } else { Some(u64::from(rng.below(40))) };
        let options = DirectOptions { crash_at, ..DirectOptions::default() };
        let direct = Direct::with_options(disk, Always(0), options);
        let mut owner = Owner { guest: &mut guest, direct: &direct, bytes };
        let life = AssertUnwindSafe(|| live(&direct, &session, &mut owner, &mut rng));
        match catch_unwind(life) {
            Ok(()) => ends += 1,
            Err(end) if end.is::<PowerCut>() => cuts += 1,
            Err(other) => {
                eprintln!("seed {seed}, {:?}", plan.geometry);
                resume_unwind(other)
            }
        }
        guest.crash();
        let chooser = LeafChooser::random(rng.next_u64(), cluster_units(&plan.geometry)).share();
        let mut asked = std::sync::Arc::clone(&chooser);
        let crashed = direct.power_off().disk.crash(Profile::TornLength, &mut asked);
        let mut bench = Bench::new(subject, session, Profile::TornLength);
        let judged = bench.judge_crash(crashed, &guest, &[], &chooser, &mut Probes::default());
        let recovered = judged.unwrap_or_else(|failure| {
            panic!("seed {seed}, {:?}: {} {}", plan.geometry, failure.violation, failure.moment)
        });
        let storage = Cut(Direct::new(recovered.disk, Always(0)));
        blocking::check(&storage, Repair::All).expect("it can be read");
        let report = blocking::check(&storage, Repair::None).expect("it can be read");
        assert!(report.is_consistent(), "seed {seed}: {report:?}");
    }
    assert!(cuts > cases / 4 && ends > cases / 20, "{cuts} and {ends} of {cases}");
}
