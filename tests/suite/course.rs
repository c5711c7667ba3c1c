//! When what recovery did to one disk may be done again to another: only if nothing but metadata bore on it.

use std::ops::Range;

use faultfs::direct::Done;
use faultfs::trace::IoKind;
use model::audit::Auditor;
use model::build::{Initial, build};
use model::image::Mapping;
use model::op::Geometry;
use qcow2_crashtest::explore::course::Course;
use qcow2_crashtest::recover::Watched;

/// Goal: a recovery that looks at guest data, or writes or discards where they are, or cuts them off, is not done again elsewhere. Method: one
/// such I/O at a time, beside the same where metadata are.
#[test]
fn what_guest_data_may_bear_on_is_not_done_again() {
    let geometry = Geometry {
        version: 3,
        cluster_bits: 9,
        refcount_order: 4,
        virtual_size: 16 << 10,
        lazy_refcounts: false,
        below: None,
    };
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
