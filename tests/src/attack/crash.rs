//! Every crash state of one verb, and what is asked of such a state again and again.

use faultfs::chooser::{Always, Exhaustive};
use faultfs::direct::{self, Direct, DirectOptions};
use faultfs::disk::PossibleDisk;
use faultfs::fault::{Fault, FaultAt, FaultPlan, Planned, PlannedFault};
use faultfs::profile::Profile;
use faultfs::trace::IoKind;
use faultfs::values::Key;
use model::audit::Auditor;
use model::build::{Built, Initial, build};
use model::finding::Property;
use model::image::Mapping;
use model::op::Geometry;
use qcow2_core::storage::{AnyStorage, UNIT};

use crate::recover::{Failure, whole_image};

/// Runs `verb` on the files of copies of `disk` with a power cut at each of its updates and flushes in turn, and after its end, and shows
/// `judge` every state that each leaves, and whether the verb had ended. It says nothing if it could not do what it is for, which is a
/// failure too, but on a `full` device, which does not get longer. Returns the first failure and the number of states.
pub(super) fn every_crash<T>(
    disk: &PossibleDisk,
    full: bool,
    verb: impl AsyncFn(AnyStorage, Option<AnyStorage>) -> Option<T>,
    judge: impl Fn(&mut PossibleDisk, &mut Exhaustive, bool) -> Result<(), Failure>,
) -> (Option<Failure>, u64) {
    let mut states = 0;
    for crash_at in 0.. {
        let mut chooser = Exhaustive::new();
        loop {
            let no_room = PlannedFault {
                at: FaultAt::From { kind: IoKind::SetLen, nth: 0 },
                fault: Fault::Enospc { landed: 0 },
            };
            let faults: Option<Box<dyn FaultPlan + Send>> =
                if full { Some(Box::new(Planned(vec![no_room]))) } else { None };
            let options =
                DirectOptions { crash_at: Some(crash_at), faults, ..DirectOptions::default() };
            let direct = Direct::with_options(disk.clone(), chooser, options);
            let data = direct.second().map(AnyStorage::new);
            let done = direct::run(verb(AnyStorage::new(direct.clone()), data));
            if matches!(done, Some(None)) && !full {
                let failure = seen("verb-failed", "it failed, and no I/O had".to_owned());
                return (Some(failure), states);
            }
            let ended = done.is_some();
            let remains = direct.power_off();
            chooser = remains.chooser;
            let mut crashed = remains.disk.crash(Profile::TornLength, &mut chooser);
            states += 1;
            if let Err(failure) = judge(&mut crashed, &mut chooser, ended) {
                return (Some(failure), states);
            }
            if !chooser.advance() {
                if ended {
                    return (None, states);
                }
                break;
            }
        }
    }
    unreachable!("a verb has fewer than 2^64 updates")
}

/// An image of clusters of 512 bytes, eager or lazy, with a disk of `virtual_size` bytes.
pub(super) fn small(initial: Initial, virtual_size: u64, lazy_refcounts: bool) -> Built {
    let geometry = Geometry { lazy_refcounts, ..Geometry::plain(9, virtual_size) };
    build(&geometry, initial).expect("the geometry is a small one")
}

/// Whether a crash left `before` as it was, from this unit on.
pub(super) fn is_same(
    crashed: &mut PossibleDisk,
    chooser: &mut Exhaustive,
    before: &PossibleDisk,
    from: u32,
) -> bool {
    let mut before = before.clone();
    let end = crashed.extent().max(before.extent());
    (from..end).all(|unit| crashed.read(unit, chooser) == before.read(unit, &mut Always(0)))
}

pub(super) fn units_of(image: &[u8]) -> Built {
    let units = image.as_chunks::<UNIT>().0.iter().copied();
    Built {
        length: image.len() as u64,
        units: (0..).zip(units).collect(),
        guest: Vec::new(),
        data: None,
    }
}

pub(super) fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}

pub(super) fn seen(kind: &'static str, story: String) -> Failure {
    let mut violation = whole_image(Property::P4, kind);
    violation.story = story;
    Failure { violation, moment: "after the power cut".to_owned() }
}

/// What a guest unit reads as, as far as the image that was audited holds it: zero where it does not.
pub(super) fn guest_unit(
    auditor: &Auditor,
    crashed: &mut PossibleDisk,
    chooser: &mut Exhaustive,
    unit: u64,
) -> Key {
    let (piece, mapping) = auditor.image().piece(unit);
    let Mapping::Host(host) = mapping else { return Key::ZERO };
    let unit = host / UNIT as u64 + (unit - piece.start);
    crashed.read(u32::try_from(unit).expect("the image is small"), chooser)
}
