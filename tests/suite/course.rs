//! When what recovery did to one disk may be done again to another: only if nothing but metadata bore on it.

use std::ops::Range;

use faultfs::direct::Done;
use faultfs::disk::File;
use faultfs::trace::IoKind;
use model::audit::Auditor;
use model::build::{Initial, build};
use model::evidence::BytesEvidence;
use model::image::{COPIED, Mapping};
use model::op::Geometry;
use qcow2_crashtest::explore::course::Course;
use qcow2_crashtest::recover::Watched;

/// Goal: a recovery on whose way one subcluster reads otherwise is not done again elsewhere. Method: each bit of a mixed cluster's bitmap
/// changed by itself.
#[test]
fn where_a_subcluster_is_bears_on_a_course() {
    let geometry = Geometry { extended_l2: true, ..Geometry::plain(14, 64 << 10) };
    let bytes = build(&geometry, Initial::Fragmented).unwrap().to_bytes();
    let number = |at: usize| u64::from_be_bytes(*bytes[at..].first_chunk().expect("8 bytes"));
    let at = |entry: u64| (entry & !COPIED) as usize;
    // The second word of the first entry of the first table.
    let place = at(number(at(number(40)))) + 8;
    let bitmap = number(place);
    let mut auditor = Auditor::default();
    let mut image = |bitmap: u64| {
        let mut disk = BytesEvidence::new(&bytes);
        disk.patch(place as u64, &bitmap.to_be_bytes());
        auditor.audit(&mut disk);
        auditor.image().clone()
    };
    let first = image(bitmap);
    let mut kept = |bitmap| {
        let watched = Watched { images: vec![image(bitmap)], ..Watched::default() };
        Course::of(&first, &watched, false).is_some()
    };
    assert!(kept(bitmap));
    for bit in 0..64 {
        // What reads as zeroes does so whether or not it is said to be allocated.
        let says_nothing = bit < 32 && bitmap >> (bit + 32) & 1 != 0;
        assert_eq!(kept(bitmap ^ 1 << bit), says_nothing, "bit {bit} of {bitmap:#x}");
    }
}

/// Goal: a recovery that looks at guest data, or writes or discards where they are, or cuts them off, is not done again elsewhere. Method: one
/// such I/O at a time, beside the same where metadata are.
#[test]
fn what_guest_data_may_bear_on_is_not_done_again() {
    let geometry = Geometry::plain(9, 16 << 10);
    let built = build(&geometry, Initial::Fragmented).unwrap();
    let mut auditor = Auditor::default();
    auditor.audit(&mut built.evidence());
    let image = auditor.image();
    let data = (0..geometry.clusters()).find_map(|cluster| match image.mapping(cluster) {
        Mapping::Host(host) => Some(host),
        _ => None,
    });
    let data = data.expect("some clusters are mapped");
    let kept = |ios: &[(IoKind, Range<u64>)]| {
        let done = |(kind, range): &(IoKind, Range<u64>)| Done {
            kind: *kind,
            range: range.clone(),
            data: Box::default(),
            file: File::First,
        };
        let records = [ios.iter().map(done).collect(), Vec::new(), Vec::new()];
        let watched = Watched { records, ..Watched::default() };
        Course::of(image, &watched, false).is_some()
    };
    let (header, host, end) = (0..512, data..data + 512, built.length);
    assert!(kept(&[]));
    for kind in [IoKind::Read, IoKind::Write, IoKind::WriteThrough, IoKind::WriteZeroes] {
        assert!(kept(&[(kind, header.clone())]), "{kind:?} of metadata");
        assert!(!kept(&[(kind, host.clone())]), "{kind:?} of guest data");
    }
    assert!(kept(&[(IoKind::Discard, header)]));
    assert!(!kept(&[(IoKind::Discard, host)]));
    assert!(kept(&[(IoKind::SetLen, end..end)]));
    assert!(!kept(&[(IoKind::SetLen, data..data)]));
}
