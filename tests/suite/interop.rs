//! QEMU as a witness: each side reads, writes, checks and repairs what the other one left, and both keep out of an image
//! that the other one has open.

use std::fs;
use std::time::Duration;

use qcow2_core::blocking::{Image, check, create_encrypted, create_over};
use qcow2_core::format::Header;
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::{Backing, CreateOptions, Encryption, Format, OpenOptions, Passphrase, Repair};
use qcow2_crashtest::qemu;

use crate::bench::Bench;
use crate::common::{Expected, Scatter, Step, steps};

/// How a session of ours ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    EagerClosed,
    LazyClosed,
    /// Flushed and then left as a power cut would.
    LazyAbandoned,
}

/// An image of ours, filled in two sessions, and what it must read as.
fn ours(cluster_bits: u32, end: End) -> (Bench, Expected) {
    let cluster = 1u64 << cluster_bits;
    // The last cluster is cut short.
    let size = (11 << cluster_bits) - 512;
    let bench = Bench::new();
    let lazy_refcounts = end != End::EagerClosed;
    let options =
        CreateOptions::new(size).cluster_bits(cluster_bits).lazy_refcounts(lazy_refcounts);
    let mut expected = Expected::zeroes(size, cluster);
    let mut image = Image::open(bench.create(&options), OpenOptions::new()).unwrap();
    for session in 0..2 {
        for step in steps(session + u64::from(cluster_bits), 40, size, cluster) {
            step.apply(&image);
            expected.apply(step);
        }
        if session == 0 {
            drop(image.close().unwrap());
            image = bench.open(OpenOptions::new());
        }
    }
    // However the requests above fell, this one allocates.
    for step in [
        Step::Discard { offset: 3 * cluster, length: cluster },
        Step::Write { offset: 3 * cluster, length: 512, byte: 77 },
    ] {
        step.apply(&image);
        expected.apply(step);
    }
    if end == End::LazyAbandoned {
        image.flush().unwrap();
    } else {
        image.close().unwrap();
    }
    assert_eq!(bench.is_dirty(), end == End::LazyAbandoned);
    (bench, expected)
}

/// Goal: whatever we leave after a clean close, QEMU checks without a finding and reads as it was written. What we leave
/// dirty, either side repairs to that.
/// Method: four cluster sizes, eager and lazy, closed and abandoned, 80 scattered requests each.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(
    all(has_qemu, not(turn = "10")),
    ignore = "its turn is at another commit; CI=1 runs all"
)]
fn images_of_ours_are_images_to_qemu() {
    for cluster_bits in [9, 12, 16, 21] {
        for end in [End::EagerClosed, End::LazyClosed, End::LazyAbandoned] {
            let (bench, expected) = ours(cluster_bits, end);
            if end == End::LazyAbandoned {
                bench.assert_reads(&expected);
                let theirs = Bench::with(&fs::read(bench.path()).unwrap());
                let repaired = qemu::repair(theirs.path(), "all").unwrap();
                assert_eq!(repaired.code, 0, "{repaired:?}");
                assert!(repaired.corruptions_fixed > 0, "lazy refcounts left nothing to repair");
                theirs.assert_sound(&expected);
                assert!(bench.check(Repair::All).is_consistent());
                assert!(!bench.is_dirty());
            }
            bench.assert_sound(&expected);
        }
    }
}

/// Goal: a dirty image of ours that QEMU just opens and writes to is repaired on the way, and sound afterwards.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn qemu_repairs_our_dirty_image_when_it_opens_it() {
    let (bench, mut expected) = ours(12, End::LazyAbandoned);
    let step = Step::Write { offset: 5000, length: 9000, byte: 99 };
    qemu::io(bench.path(), &[step.command()]).unwrap().success().unwrap();
    expected.apply(step);
    assert!(!bench.is_dirty());
    bench.assert_sound(&expected);
}

fn commands(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|step| step.command()).collect()
}

/// Goal: images that QEMU made and filled are ours to read, write, check and repair, and QEMU finds nothing wrong with
/// them afterwards.
/// Method: every cluster size, lazy or not, sizes that are a multiple of the cluster or not; scattered requests through
/// `qemu-io`, then as many through us.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(all(has_qemu, not(turn = "6")), ignore = "its turn is at another commit; CI=1 runs all")]
fn images_of_qemu_are_images_to_us() {
    for cluster_bits in 9..=21u32 {
        let cluster = 1u64 << cluster_bits;
        let lazy = cluster_bits % 2 == 0;
        let size = (9 << cluster_bits) + if cluster_bits % 3 == 0 { 0 } else { 512 };
        let bench = Bench::new();
        let lazy_option = if lazy { "on" } else { "off" };
        let options = format!("cluster_size={cluster},lazy_refcounts={lazy_option}");
        qemu::create(bench.path(), size, &options).unwrap();
        let mut expected = Expected::zeroes(size, cluster);
        expected.assert_read_from(&bench.open(OpenOptions::read_only()));

        let theirs = steps(u64::from(cluster_bits), 40, size, cluster);
        qemu::io(bench.path(), &commands(&theirs)).unwrap().success().unwrap();
        theirs.iter().for_each(|&step| expected.apply(step));
        bench.assert_sound(&expected);

        let image = bench.open(OpenOptions::new());
        assert_eq!(image.info().lazy_refcounts, lazy);
        for step in steps(100 + u64::from(cluster_bits), 40, size, cluster) {
            step.apply(&image);
            expected.apply(step);
        }
        image.close().unwrap();
        bench.assert_sound(&expected);
        assert!(bench.check(Repair::Rebuild).rebuilt);
        bench.assert_sound(&expected);
    }
}

/// Images of a disk of 600 clusters, one made by us and one by QEMU, each filled in turn by both, checked and read by both after each
/// session, and rebuilt at the end; `kind` looks at the header of each before and after.
fn go_both_ways(ours: &CreateOptions, theirs: &str, seed: u64, kind: impl Fn(&Header)) {
    let cluster = 1u64 << ours.cluster_bits;
    let size = 600 * cluster;
    for by_us in [true, false] {
        let bench = Bench::new();
        if by_us {
            drop(bench.create(&ours.virtual_size(size)));
        } else {
            let options = format!("cluster_size={cluster},{theirs}");
            qemu::create(bench.path(), size, &options).unwrap();
        }
        kind(&bench.header());
        let mut expected = Expected::zeroes(size, cluster);
        let theirs = steps(seed, 30, size, 8 * cluster);
        let ours = steps(100 + seed, 30, size, 8 * cluster);
        for session in [by_us, !by_us, by_us] {
            if session {
                let image = bench.open(OpenOptions::new());
                ours.iter().for_each(|step| step.apply(&image));
                image.close().unwrap();
            } else {
                qemu::io(bench.path(), &commands(&theirs)).unwrap().success().unwrap();
            }
            let done = if session { &ours } else { &theirs };
            done.iter().for_each(|&step| expected.apply(step));
            bench.assert_sound(&expected);
        }
        assert!(bench.check(Repair::Rebuild).rebuilt);
        bench.assert_sound(&expected);
        kind(&bench.header());
    }
}

/// Goal: refcounts of every width are ours and QEMU's alike. 512-byte clusters, so that every width has several blocks.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(all(has_qemu, not(turn = "9")), ignore = "its turn is at another commit; CI=1 runs all")]
fn refcounts_of_every_width_are_understood() {
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let ours = CreateOptions::new(0).cluster_bits(9).refcount_bits(bits);
        go_both_ways(&ours, &format!("refcount_bits={bits}"), bits.into(), |header| {
            assert_eq!(1 << header.refcount_order, bits);
        });
    }
}

/// Goal: images of version 2 go both ways, whoever made them, and stay of version 2.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(all(has_qemu, not(turn = "6")), ignore = "its turn is at another commit; CI=1 runs all")]
fn version_2_goes_both_ways() {
    for cluster_bits in [9, 12, 16] {
        let ours = CreateOptions::new(0).cluster_bits(cluster_bits).version(2);
        go_both_ways(&ours, "compat=0.10", cluster_bits.into(), |header| {
            assert_eq!(header.version, 2);
        });
    }
}

/// Goal: images over layers are ours and QEMU's alike, whoever made them and the layers. Method: over a raw disk that is shorter, longer,
/// or not made of clusters, and over an image over that; both fill it in turn; then the disk grows, where a longer layer must not show.
/// (In version 2 a discard leaves what a layer shows, here; QEMU refuses it.)
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(all(has_qemu, not(turn = "8")), ignore = "its turn is at another commit; CI=1 runs all")]
fn layers_go_both_ways() {
    let plain =
        [(2, 9), (3, 9), (2, 12), (3, 12), (3, 16)].map(|(version, bits)| (version, bits, false));
    let kinds = plain.into_iter().chain([(3, 14, true), (3, 16, true)]);
    for ((version, bits, extended), by_us) in kinds.flat_map(|it| [(it, true), (it, false)]) {
        let cluster = 1u64 << bits;
        let size = 100 * cluster;
        for (below, format) in [
            (70 * cluster + 1536, Format::Raw),
            (3000, Format::Raw),
            (150 * cluster + 512, Format::Raw),
            (150 * cluster + 512, Format::Qcow2),
        ] {
            let what = format!(
                "version {version}, {cluster} B, extended {extended}, {format:?} of {below} bytes, {by_us}"
            );
            let bench = Bench::new();
            let mut bytes: Vec<u8> = (0..below).map(|at| 1 + (at / 512 % 200) as u8).collect();
            let raw = bench.directory.path().join("base.raw");
            fs::write(&raw, &bytes).unwrap();
            let mut backing = Backing::new("base.raw", Format::Raw);
            if format == Format::Qcow2 {
                // One more between the two, of as many bytes, made by the other side, with something in it.
                let between = bench.directory.path().join("between.qcow2");
                if by_us {
                    let options = "cluster_size=4096,backing_file=base.raw,backing_fmt=raw";
                    qemu::create(&between, below, options).unwrap();
                } else {
                    let storage = FileStorage::create(&between, Existing::Refuse).unwrap();
                    let options = CreateOptions::new(below).cluster_bits(12);
                    create_over(&storage, &options, &backing).unwrap();
                }
                qemu::io(&between, &["write -q -P 251 512 5000".into()])
                    .unwrap()
                    .success()
                    .unwrap();
                bytes[512..5512].fill(251);
                backing = Backing::new("between.qcow2", Format::Qcow2);
            }
            if by_us {
                let storage = FileStorage::create(bench.path(), Existing::Refuse).unwrap();
                let options = CreateOptions::new(size).cluster_bits(bits).version(version);
                let options = options.extended_l2(extended);
                create_over(&storage, &options, &backing).unwrap();
            } else {
                let compat = if version == 2 { "0.10" } else { "1.1" };
                let name = String::from_utf8(backing.name.clone()).unwrap();
                let options = format!(
                    "cluster_size={cluster},compat={compat},extended_l2={},backing_file={name},backing_fmt={}",
                    if extended { "on" } else { "off" },
                    format.name()
                );
                qemu::create(bench.path(), size, &options).unwrap();
            }
            let mut expected = Expected::zeroes(size, cluster);
            let shown = bytes.len().min(expected.bytes.len());
            expected.bytes[..shown].copy_from_slice(&bytes[..shown]);
            bench.assert_sound(&expected);
            for session in [by_us, !by_us, by_us] {
                let mut done = steps(u64::from(bits) + u64::from(session), 24, size, 2 * cluster);
                if version == 2 {
                    done.retain(|step| !matches!(step, Step::Discard { .. }));
                }
                if session {
                    let image = bench.open(OpenOptions::new());
                    done.iter().for_each(|step| step.apply(&image));
                    image.close().unwrap();
                } else {
                    qemu::io(bench.path(), &commands(&done)).unwrap().success().unwrap();
                }
                done.iter().for_each(|&step| expected.apply(step));
                bench.assert_sound(&expected);
            }
            let image = bench.open(OpenOptions::new());
            image.grow(size + 40 * cluster).unwrap_or_else(|error| panic!("{what}: {error}"));
            image.close().unwrap();
            expected.bytes.resize((size + 40 * cluster) as usize, 0);
            bench.assert_sound(&expected);
            assert!(bench.check(Repair::Rebuild).rebuilt);
            bench.assert_sound(&expected);
        }
    }
}

/// Goal: each names another layer in images of either, and the other reads it there. Method: names that become longer, shorter and none, of
/// both formats, in turn by us and by QEMU; three cluster sizes, both versions.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(all(has_qemu, not(turn = "6")), ignore = "its turn is at another commit; CI=1 runs all")]
fn layers_are_renamed_both_ways() {
    for ((version, bits), by_us) in
        [(2, 12), (3, 10), (3, 12), (3, 16)].into_iter().flat_map(|it| [(it, true), (it, false)])
    {
        let bench = Bench::new();
        let size = 40u64 << bits;
        let bytes: Vec<u8> = (0..size).map(|at| 1 + (at / 512 % 200) as u8).collect();
        let long = "b".repeat(150);
        for name in ["base", long.as_str()] {
            fs::write(bench.directory.path().join(name), &bytes).unwrap();
        }
        let compat = if version == 2 { "0.10" } else { "1.1" };
        let options = format!("cluster_size={},compat={compat}", 1 << bits);
        let backing = "backing_file=base,backing_fmt=raw";
        if by_us {
            let options = CreateOptions::new(size).cluster_bits(bits).version(version);
            let storage = FileStorage::create(bench.path(), Existing::Refuse).unwrap();
            create_over(&storage, &options, &Backing::new("base", Format::Raw)).unwrap();
        } else {
            qemu::create(bench.path(), size, &format!("{options},{backing}")).unwrap();
        }
        let mut expected = Expected::zeroes(size, 1 << bits);
        expected.bytes.copy_from_slice(&bytes);
        bench.assert_sound(&expected);
        for (turn, name) in [long.as_str(), "base", long.as_str(), "base"].iter().enumerate() {
            if (turn % 2 == 0) == by_us {
                let image = bench.open(OpenOptions::new());
                image.set_backing(Some(&Backing::new(*name, Format::Raw))).unwrap();
                image.close().unwrap();
            } else {
                let path = bench.path().to_str().unwrap();
                let args = ["rebase", "-u", "-f", "qcow2", "-b", name, "-F", "raw", path];
                qemu::img(args).unwrap().success().unwrap();
            }
            let header = bench.header();
            assert_eq!(header.backing_name(), Some(name.as_bytes()));
            assert_eq!(header.backing_format(), Some(&b"raw"[..]));
            assert_eq!(qemu::info(bench.path()).unwrap()["backing-filename"], **name);
            let step = Step::Write { offset: 1000 * turn as u64, length: 700, byte: 7 };
            let image = bench.open(OpenOptions::new());
            step.apply(&image);
            image.close().unwrap();
            expected.apply(step);
            bench.assert_sound(&expected);
        }
        // Neither needs a layer once all of it is copied.
        let image = bench.open(OpenOptions::new());
        image.copy_up(0, size).unwrap();
        image.set_backing(None).unwrap();
        image.close().unwrap();
        assert_eq!(qemu::info(bench.path()).unwrap().get("backing-filename"), None);
        bench.assert_sound(&expected);
    }
}

/// Goal: what both copy of a sparse layer is the same: data where there is some, and zeroes that take no cluster where there are none.
/// Method: a raw layer with holes of all sizes, copied cluster by cluster by QEMU's reads, by reads of ours, and at once; `qemu-img map`
/// of the three, in which nothing is the layer's.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn zeroes_of_a_layer_are_copied_alike() {
    for (version, bits, extended) in [(2, 16, false), (3, 16, false), (3, 12, false), (3, 16, true)]
    {
        let cluster = 1u64 << bits;
        let size = 24 * cluster;
        let one = if extended { cluster / 32 } else { cluster };
        let mut bytes = vec![0; size as usize];
        for at in [2 * cluster, 3 * cluster + one - 512, 7 * cluster + one, 12 * cluster - 512] {
            bytes[at as usize..][..1024].fill(9);
        }
        bytes[15 * cluster as usize..18 * cluster as usize].fill(8);
        let clusters = (0..size).step_by(cluster as usize);
        let mut maps = Vec::new();
        for how in ["read by QEMU", "read", "at once"] {
            let bench = Bench::new();
            fs::write(bench.directory.path().join("base"), &bytes).unwrap();
            let storage = FileStorage::create(bench.path(), Existing::Refuse).unwrap();
            let options = CreateOptions::new(size).cluster_bits(bits).version(version);
            let options = options.extended_l2(extended);
            create_over(&storage, &options, &Backing::new("base", Format::Raw)).unwrap();
            drop(storage);
            if how == "read by QEMU" {
                let read = |at| format!("read {at} {cluster}");
                let commands: Vec<_> = clusters.clone().map(read).collect();
                let args =
                    ["-C".as_ref(), "-f".as_ref(), "qcow2".as_ref(), bench.path().as_os_str()];
                qemu::io_with(args, &commands).unwrap().success().unwrap();
            } else {
                let image = bench.open(OpenOptions::new().copy_on_read(how == "read"));
                for at in clusters.clone().filter(|_| how == "read") {
                    image.read(at, &mut vec![0; cluster as usize]).unwrap();
                }
                image.copy_up(0, size).unwrap();
                image.close().unwrap();
            }
            let map = qemu::map(bench.path()).unwrap();
            assert!(map.iter().all(|extent| extent.depth == 0), "{how}, {options:?}: {map:?}");
            let kinds = map.iter().map(|extent| (extent.length, extent.zero, extent.data));
            let mut merged: Vec<(u64, bool, bool)> = Vec::new();
            for (length, zero, data) in kinds {
                match merged.last_mut() {
                    Some(last) if (last.1, last.2) == (zero, data) => last.0 += length,
                    _ => merged.push((length, zero, data)),
                }
            }
            maps.push(merged);
            let mut expected = Expected::zeroes(size, cluster);
            expected.bytes.copy_from_slice(&bytes);
            bench.assert_sound(&expected);
        }
        let what = format!("version {version}, {cluster} bytes, subclusters: {extended}");
        assert_eq!(maps[1], maps[2], "{what}");
        let zeroes = |map: &[(u64, bool, bool)]| {
            map.iter().filter(|extent| extent.1 && !extent.2).map(|extent| extent.0).sum::<u64>()
        };
        println!("{what}: QEMU {:?}, ours {:?}", maps[0], maps[1]);
        // With subclusters QEMU copies clusters whole.
        if extended {
            assert!(zeroes(&maps[0]) <= zeroes(&maps[1]), "{what}");
        } else {
            assert_eq!(maps[0], maps[1], "{what}");
        }
    }
}

/// Goal: what is too long for the name of a layer's format is that for both. Method: an image of ours with the longest; then its length in
/// the header says one byte more.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn formats_of_layers_have_the_same_longest_name() {
    let bench = Bench::new();
    let storage = FileStorage::create(bench.path(), Existing::Refuse).unwrap();
    let backing = Backing { name: b"base".into(), format: Some(b"f".repeat(15)) };
    create_over(&storage, &CreateOptions::new(1 << 20), &backing).unwrap();
    drop(storage);
    let theirs = qemu::info(bench.path()).unwrap();
    assert_eq!(theirs["backing-filename-format"], "f".repeat(15));
    bench.patch(112 + 7, &[16]);
    let theirs = qemu::info(bench.path()).unwrap_err().to_string();
    assert!(theirs.contains("ext_backing_format: len=16 too large (>=16)"), "{theirs}");
    let ours = Header::parse(&fs::read(bench.path()).unwrap()).unwrap_err().to_string();
    assert!(ours.contains("16 bytes of a backing file's format are more than the 15"), "{ours}");
}

/// Goal: growing a disk of QEMU's past its L1 table leaves an image that QEMU accepts.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn a_disk_of_qemu_grows_under_us() {
    let bench = Bench::new();
    qemu::create(bench.path(), 1 << 20, "cluster_size=512").unwrap();
    let size = 3 << 20;
    let mut expected = Expected::zeroes(size, 512);
    let image = bench.open(OpenOptions::new());
    image.grow(size).unwrap();
    for step in steps(7, 30, size, 1 << 16) {
        let step = match step {
            Step::Discard { .. } => Step::Flush,
            step => step,
        };
        step.apply(&image);
        expected.apply(step);
    }
    image.close().unwrap();
    bench.assert_sound(&expected);
}

/// Goal: what either side cuts off is gone for the other. Method: each shrinks a disk that is full of data, to sizes of whole clusters and
/// not, and each grows it again; standard and with subclusters, over a layer that is longer than what is left, and enciphered.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(all(has_qemu, not(turn = "0")), ignore = "its turn is at another commit; CI=1 runs all")]
fn disks_shrink_both_ways() {
    let kinds = [
        (9, "plain"),
        (12, "plain"),
        (16, "plain"),
        (16, "subclusters"),
        (12, "over a layer"),
        (16, "subclusters over a layer"),
        (12, "enciphered"),
    ];
    let turns = [(true, false), (false, true), (true, true)];
    for ((bits, kind), (cut_by_us, grown_by_us)) in
        kinds.into_iter().flat_map(|kind| turns.map(|turn| (kind, turn)))
    {
        let cluster = 1u64 << bits;
        let size = 300 * cluster;
        for small in [37 * cluster + 512, 38 * cluster - 512, 37 * cluster] {
            let what = format!("{cluster} B, {kind}, cut to {small}, {cut_by_us}, {grown_by_us}");
            let mut bench = Bench::new();
            let options = CreateOptions::new(size).cluster_bits(bits);
            let options = options.extended_l2(kind.starts_with("subclusters"));
            let mut expected = Expected::zeroes(size, cluster);
            if kind.ends_with("over a layer") {
                expected.bytes.fill(99);
                fs::write(bench.directory.path().join("base.raw"), &expected.bytes).unwrap();
                let storage = FileStorage::create(bench.path(), Existing::Refuse).unwrap();
                let backing = Backing::new("base.raw", Format::Raw);
                create_over(&storage, &options, &backing).unwrap();
            } else if kind == "enciphered" {
                bench.passphrase = Some("secret");
                let storage = FileStorage::create(bench.path(), Existing::Refuse).unwrap();
                let mut scatter = Scatter::new(1);
                let mut random = |bytes: &mut [u8]| bytes.fill_with(|| scatter.below(256) as u8);
                let luks = Encryption::luks(&Passphrase::new("secret"), 1000, &mut random);
                create_encrypted(&storage, None, &options, &luks, None).unwrap();
            } else {
                drop(bench.create(&options));
            }
            let all = Step::Write { offset: 0, length: size, byte: 201 };
            let done: Vec<Step> = match kind {
                // What nobody wrote shows the layer.
                "over a layer" => Vec::new(),
                _ => vec![all],
            };
            let some = steps(u64::from(bits), 60, size, 8 * cluster);
            let last = Step::Write { offset: small - 512, length: 1024, byte: 202 };
            let done: Vec<Step> = done.into_iter().chain(some).chain([last]).collect();
            qemu::io(bench.target(), &commands(&done)).unwrap().success().unwrap();
            done.iter().for_each(|&step| expected.apply(step));
            for (by_us, to) in [(cut_by_us, small), (grown_by_us, size)] {
                if by_us {
                    let image = bench.open(OpenOptions::new());
                    let resized = if to == small { image.shrink(to) } else { image.grow(to) };
                    resized.unwrap_or_else(|error| panic!("{what}: {error}"));
                    image.close().unwrap();
                } else {
                    let how: &[&str] = if to == small { &["--shrink"] } else { &[] };
                    qemu::resize(bench.target(), to, how).unwrap();
                }
                expected.bytes.resize(to as usize, 0);
                bench.assert_sound(&expected);
            }
        }
    }
}

/// Goal: an image that a killed QEMU left dirty is repaired when we open it, and what was flushed is there.
/// Method: lazy refcounts; the process kills itself, or aborts, after a flush.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn a_killed_qemu_leaves_what_we_repair() {
    for cluster_bits in [9u32, 12, 16] {
        for death in ["sigraise 9", "abort"] {
            let cluster = 1u64 << cluster_bits;
            let size = 40 << cluster_bits;
            let bench = Bench::new();
            qemu::create(bench.path(), size, &format!("cluster_size={cluster},lazy_refcounts=on"))
                .unwrap();
            let mut expected = Expected::zeroes(size, cluster);
            let done = steps(3 + u64::from(cluster_bits), 30, size, cluster);
            done.iter().for_each(|&step| expected.apply(step));
            let mut script = commands(&done);
            script.extend(["flush".to_owned(), death.to_owned()]);
            let killed = qemu::io(bench.path(), &script).unwrap();
            assert_ne!(killed.code, Some(0), "{killed}");
            assert!(bench.is_dirty(), "{killed}");
            assert!(bench.check(Repair::None).corruptions > 0, "nothing to repair");
            expected.assert_read_from(&bench.open(OpenOptions::read_only()));
            assert!(bench.is_dirty(), "opening it read-only changed it");

            let image = bench.open(OpenOptions::new());
            expected.assert_read_from(&image);
            let step = Step::Write { offset: 512, length: 3 * cluster, byte: 251 };
            step.apply(&image);
            expected.apply(step);
            image.close().unwrap();
            assert!(!bench.is_dirty());
            bench.assert_sound(&expected);
        }
    }
}

/// Places of the feature fields in the header.
const INCOMPATIBLE: usize = 72;
const COMPATIBLE: usize = 80;
const AUTOCLEAR: usize = 88;

fn field(bench: &Bench, at: usize) -> u64 {
    let file = fs::read(bench.path()).unwrap();
    u64::from_be_bytes(file[at..at + 8].try_into().unwrap())
}

/// Goal: bits that we do not know get what the specification asks for: autoclear bits are cleared by the first open for
/// writing and by no other, compatible bits stay through every change of the header, and an unknown header extension stays
/// byte for byte. QEMU accepts the result.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn unknown_features_are_treated_as_specified() {
    let unknown = 1u64 << 63 | 1 << 40;
    let bench = Bench::new();
    // Small clusters: QEMU writes no feature names there, so that the extensions can begin with one that nobody knows.
    qemu::create(bench.path(), 1 << 20, "cluster_size=512,lazy_refcounts=on").unwrap();
    let mut extension = [0xdead_beef_u32.to_be_bytes(), 13u32.to_be_bytes()].concat();
    extension.extend_from_slice(b"thirteen byte\0\0\0");
    bench.patch(112, &extension);
    let lazy = field(&bench, COMPATIBLE);
    bench.patch(COMPATIBLE, &(lazy | unknown).to_be_bytes());
    bench.patch(AUTOCLEAR, &unknown.to_be_bytes());

    drop(bench.open(OpenOptions::read_only()));
    assert_eq!(field(&bench, AUTOCLEAR), unknown, "opening read-only changed the image");

    let image = bench.open(OpenOptions::new());
    assert_eq!(field(&bench, AUTOCLEAR), 0, "not cleared by the open itself");
    image.write(0, &[1; 512]).unwrap();
    assert!(bench.is_dirty());
    image.grow(3 << 20).unwrap();
    image.close().unwrap();
    assert!(!bench.is_dirty());
    assert_eq!(field(&bench, COMPATIBLE), lazy | unknown);
    assert_eq!(fs::read(bench.path()).unwrap()[112..112 + extension.len()], extension);

    let mut expected = Expected::zeroes(3 << 20, 512);
    expected.apply(Step::Write { offset: 0, length: 512, byte: 1 });
    bench.assert_sound(&expected);
}

/// Goal: an unknown incompatible bit is refused under the name that the image gives it, by every way to open it, and the
/// image stays as it is. QEMU refuses it under the same name.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn an_unknown_incompatible_feature_is_refused_by_name() {
    let bench = Bench::new();
    qemu::create(bench.path(), 1 << 20, "cluster_size=64k").unwrap();
    let file = fs::read(bench.path()).unwrap();
    let table = file.windows(4).position(|bytes| bytes == 0x6803_f857_u32.to_be_bytes()).unwrap();
    let mut entry = [0; 48];
    entry[1] = 40;
    entry[2..13].copy_from_slice(b"time travel");
    bench.patch(table + 8, &entry);
    bench.patch(INCOMPATIBLE, &(1u64 << 40).to_be_bytes());
    let before = fs::read(bench.path()).unwrap();

    let name = "the image uses incompatible features that are not known here: bit 40 (time travel)";
    for options in [OpenOptions::new(), OpenOptions::read_only()] {
        let storage = FileStorage::open(bench.path(), Access::ReadWrite).unwrap();
        let error = Image::open(storage, options).unwrap_err().to_string();
        assert_eq!(error, format!("cannot open the image: {name}"));
    }
    let storage = FileStorage::open(bench.path(), Access::ReadWrite).unwrap();
    let error = check(&storage, Repair::All).unwrap_err().to_string();
    assert_eq!(error, format!("cannot check the image: {name}"));
    drop(storage);
    let theirs = qemu::info(bench.path()).unwrap_err().to_string();
    assert!(theirs.contains("Unsupported qcow2 feature(s): time travel"), "{theirs}");
    assert_eq!(fs::read(bench.path()).unwrap(), before);
}

/// Goal: a writer has the image for itself, whichever side it is on; readers share it.
/// Method: one side holds the image open, the other one tries. QEMU is waited for until its locks are there.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn locks_keep_the_two_apart() {
    let (bench, _) = ours(12, End::EagerClosed);
    let write = ["write -q 0 512".to_owned()];

    let writer = bench.open(OpenOptions::new());
    for refused in [
        qemu::io(bench.path(), &write).unwrap(),
        qemu::img(["check".as_ref(), bench.path().as_os_str()]).unwrap(),
    ] {
        assert_ne!(refused.code, Some(0), "{refused}");
        assert!(refused.stderr.contains("Failed to get"), "{refused}");
        assert!(refused.stderr.contains("lock"), "{refused}");
    }
    writer.close().unwrap();

    let reader = bench.open(OpenOptions::read_only());
    qemu::check(bench.path()).unwrap();
    let refused = qemu::io(bench.path(), &write).unwrap();
    assert!(refused.stderr.contains("Failed to get \"write\" lock"), "{refused}");
    drop(reader);

    let mut holder = qemu::hold_open(bench.path()).unwrap();
    let refused = (0..1000).find_map(|_| {
        let refused = FileStorage::open(bench.path(), Access::ReadWrite).err();
        if refused.is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        refused
    });
    let in_use = format!("{} is in use: somebody else has it open", bench.path().display());
    let refused = refused.expect("QEMU takes its locks within five seconds").to_string();
    assert!(refused.starts_with(&in_use), "{refused}");
    let refused = FileStorage::open(bench.path(), Access::ReadOnly).unwrap_err().to_string();
    assert!(refused.starts_with(&in_use), "{refused}");
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    bench.open(OpenOptions::new()).close().unwrap();
}
