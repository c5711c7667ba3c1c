//! Opening an image that promises what this implementation does not know.

use model::build::Initial;
use qcow2_core::storage::{Durability, IoBuf, UNIT};
use qcow2_core::{Image, OpenOptions, Rules};

use super::crash::{every_crash, is_same, seen, small};
use crate::recover::Failure;
use crate::trial::disk_of;

/// Every crash state of opening an image with an unknown autoclear bit, clean or dirty, and writing to it: with the bit, nothing but
/// the header has changed.
pub(super) fn open_promising(rules: Rules) -> (Option<Failure>, u64) {
    const AUTOCLEAR: usize = 88;
    let mut states = 0;
    for (initial, lazy) in [(Initial::Fragmented, false), (Initial::Dirty, true)] {
        let mut built = small(initial, 16 << 10, lazy);
        let (_, header) = built.units.first_mut().expect("an image has a header");
        header[AUTOCLEAR] = 0x80;
        let disk = disk_of(&built);
        let (failure, more) = every_crash(
            &disk,
            false,
            async |storage, _| {
                let options = OpenOptions::new().rules(rules).page_size(512);
                let image = Image::open(storage, options).await.ok()?;
                let mut data = IoBuf::zeroed(UNIT, UNIT);
                data.fill(7);
                image.write(0, data, Durability::Cached).await.1.ok()?;
                image.flush().await.ok()
            },
            |crashed, chooser, _| {
                let header = crashed.read(0, chooser);
                if disk.values().bytes(header)[AUTOCLEAR] & 0x80 == 0 {
                    return Ok(());
                }
                if is_same(crashed, chooser, &disk, 1) {
                    return Ok(());
                }
                let story = "changed, and still promised to be as whoever set the bit left it";
                Err(seen("stale-autoclear-bit", story.to_owned()))
            },
        );
        states += more;
        if failure.is_some() {
            return (failure, states);
        }
    }
    (None, states)
}
