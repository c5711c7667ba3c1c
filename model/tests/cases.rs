//! Case files: what is written reads back, and what is wrong is named.
//!
//! Goal: a corpus that survives years. Method: a case that uses every field goes through text and back; broken ones, made by
//! one replacement each, must be refused with the file and the field; a case of the schema before is brought up to date.

use model::build::Initial;
use model::case::*;
use model::finding::Property;
use model::op::{Durability, Geometry, Op, Preallocation};
use model::payload::{self, UNIT};

fn everything() -> Case {
    let label = |text: &str| text.parse().expect("a label");
    let anchor =
        Anchor { task: 0, op: 1, phase: Phase::Submitted, label: Some(label("l2[0]")), nth: 1 };
    let crash = Crash {
        anchor: anchor.clone(),
        keep: vec![label("l2[0]#0")],
        lose: vec![label("refcount-block[0]#0"), label("header")],
        default: Fate::Keep,
        exact: Some(Exact { event: 9, choices: vec![0, 2, 1], trace: Hash(0xfeed) }),
    };
    let mut foreign = [0; UNIT];
    foreign[..4].copy_from_slice(b"QFI\xfb");
    let image = CrashImage {
        data: None,
        length: 5 * UNIT as u64,
        units: [(0, Content::of(&foreign)), (4, Content::of(&payload::unit(2, 1)))].into(),
        allowed: [(2, vec![Content::Zero, Content::Tag { unit: 2, id: 1 }])].into(),
    };
    Case {
        schema: SCHEMA.to_owned(),
        title: "L2 entry durable before its refcount block".to_owned(),
        property: Property::P4,
        profile: "torn-length".to_owned(),
        discard: Discard::Zeroes,
        origin: Origin { seed: u64::MAX, commit: "1ae95bf".to_owned(), generator: 1 },
        witness: Some("refcount-before-l2".to_owned()),
        status: Status::Sabotage,
        geometry: Geometry { lazy_refcounts: true, ..Geometry::plain(10, 65536) },
        device: Device { sector: 4096, max_transfer: 4096, ..Device::default() },
        open: Opening {
            subject: "qcow2-core".to_owned(),
            cache_pages: 4,
            growth_step: 0,
            write_through: true,
            page_size: 0,
            pass_discard: false,
            lazy_refcounts: Some(true),
            copy_on_read: true,
        },
        initial: Initial::RefcountBlockOneShort,
        lives: vec![
            Life {
                unrecovered: true,
                tasks: vec![
                    vec![
                        Op::Write {
                            offset: 0,
                            length: 512,
                            id: 1,
                            durability: Durability::Through,
                        },
                        Op::Flush,
                        Op::Reopen,
                    ],
                    vec![
                        Op::WriteZeroes { offset: 0, length: 1024, unmap: true },
                        Op::Discard { offset: 512, length: 1024 },
                        Op::Preallocate { offset: 512, length: 1024, how: Preallocation::Falloc },
                        Op::Read { offset: 0, length: 512 },
                        Op::Grow { to: 131_072 },
                        Op::AddPassphrase { id: 1 },
                        Op::RemovePassphrase { id: 3 },
                    ],
                ],
                schedule: Scheduling::Seed(7),
                faults: vec![
                    FailedIo { anchor, io: Some(3), effect: Effect::FlushCleanMarked, landed: 0 },
                    FailedIo {
                        anchor: Anchor::default(),
                        io: None,
                        effect: Effect::Short,
                        landed: 2,
                    },
                ],
                dropped: vec![Dropped { task: 1, op: 0, after_ios: 2 }],
                crash: Some(crash.clone()),
                recovery: vec![
                    Recovery { run: Step::OpenReadOnly, crash: None },
                    Recovery { run: Step::Open, crash: Some(crash) },
                    Recovery { run: Step::Repair, crash: None },
                ],
            },
            Life::default(),
        ],
        image: Some(image),
    }
}

#[test]
fn a_case_reads_back() {
    let case = everything();
    let text = case.to_json();
    assert_eq!(Case::from_json("a.json", &text).unwrap(), case);
    assert_eq!(Case::from_json("a.json", &text).unwrap().to_json(), text);
    let plain = Case { device: Device { sector: 512, ..case.device }, ..case.clone() };
    assert!(text.contains("sector") && !plain.to_json().contains("sector"));
    assert_eq!(Case::from_json("a.json", &plain.to_json()).unwrap(), plain);
    // What is as usual is left out.
    for (field, times) in [("landed", 1), ("\"io\"", 1), ("durability", 1), ("exact", 2)] {
        assert_eq!(text.matches(field).count(), times, "{field}");
    }
}

#[test]
fn a_case_without_a_word_on_discards_is_of_a_disk_that_may_ignore_them() {
    let case = Case { discard: Discard::Either, ..everything() };
    let text = case.to_json();
    assert!(!text.contains("discard\": \"either"), "{text}");
    assert_eq!(Case::from_json("a.json", &text).unwrap(), case);
    let odd = everything().to_json().replace("\"discard\": \"zeroes\"", "\"discard\": \"ones\"");
    let error = Case::from_json("a.json", &odd).unwrap_err();
    assert_eq!((error.file.as_str(), error.path.as_str()), ("a.json", "discard"));
}

#[test]
fn contents_are_bytes() {
    let mut bytes = [0; UNIT];
    bytes[7] = 0xab;
    for unit in [[0; UNIT], bytes, payload::unit(3, 4), [0xff; UNIT]] {
        let content = Content::of(&unit);
        assert_eq!(content.bytes(), unit);
        assert_eq!(content.to_string().parse(), Ok(content));
    }
    assert_eq!(Content::of(&bytes).to_string(), "hex:00000000000000ab");
    for text in ["", "hex", "hex:0", "hex:0g", "hex:+1", "tag:1", "tag:1/x", "one"] {
        assert!(text.parse::<Content>().is_err(), "{text:?}");
    }
    assert!(format!("hex:{}", "00".repeat(UNIT + 1)).parse::<Content>().is_err());
}

#[test]
fn errors_name_the_file_and_the_field() {
    let good = everything().to_json();
    let broken = |from: &str, to: &str| {
        assert!(good.contains(from), "{from:?} is not in the case");
        Case::from_json("corpus/x.json", &good.replacen(from, to, 1)).unwrap_err()
    };
    let table = [
        (
            r#""offset": 0"#,
            r#""offset": "zero""#,
            "lives[0].tasks[0][0].write.offset",
            "invalid type",
        ),
        (r#""offset": 512"#, r#""offset": 100"#, "lives[0].tasks[1][1].offset", "multiple of 512"),
        (r#""id": 1"#, r#""id": 0"#, "lives[0].tasks[0][0].id", "initial image"),
        (r#""id": 3"#, r#""id": 4"#, "lives[0].tasks[1][6].id", "not in 1..=3"),
        (r#""write-zeroes""#, r#""zap""#, "lives[0].tasks[1][0].zap", "unknown variant `zap`"),
        (
            r#""unmap": true"#,
            r#""trim": true"#,
            "lives[0].tasks[1][0].write-zeroes.trim",
            "unknown field `trim`",
        ),
        (r#""cluster_bits": 10"#, r#""cluster_bits": 8"#, "geometry", "cluster_bits 8"),
        (r#""cluster_bits": 10,"#, "", "geometry", "missing field `cluster_bits`"),
        (r#""label": "l2[0]""#, r#""label": "l3[0]""#, "lives[0].faults[0].anchor.label", "l3[0]"),
        (
            r#""label": "l2[0]""#,
            r#""label": 5"#,
            "lives[0].faults[0].anchor.label",
            "integer `5`, expected a string",
        ),
        (r#""000000000000feed""#, r#""feed""#, "lives[0].crash.exact.trace", "16 hex digits"),
        (r#""refcount-block[0]#0","#, r#""refcount-block","#, "lives[0].crash.lose[0]", "label"),
        (r#""tag:2/1""#, r#""tag:2""#, "image.units.4", "tag:2"),
        (r#""length": 2560"#, r#""length": 512"#, "image.units.4", "past the end"),
        (r#""crash-corpus/1""#, r#""crash-corpus/9""#, "schema", "unknown"),
        (r#""schema": "crash-corpus/1","#, "", "schema", "missing"),
        (r#""title""#, r#""titel""#, "titel", "unknown field `titel`"),
        ("{", "", "(whole file)", "not JSON"),
    ];
    for (from, to, path, message) in table {
        let error = broken(from, to);
        assert_eq!((error.file.as_str(), error.path.as_str()), ("corpus/x.json", path), "{error}");
        assert!(error.message.contains(message), "{error}");
    }
}

#[test]
fn an_older_schema_is_brought_up_to_date() {
    let old = r#"{
        "schema": "crash-corpus/0",
        "title": "one life", "property": "P1", "profile": "torn",
        "origin": {"seed": 1, "commit": "abc", "generator": 1}, "status": "open",
        "geometry": {"version": 3, "cluster_bits": 12, "refcount_order": 4,
                     "virtual_size": 65536, "lazy_refcounts": false},
        "open": {"subject": "qcow2-core", "cache_pages": 0, "growth_step": 0},
        "initial": "fresh",
        "tasks": [["flush"]], "schedule": {"seed": 3},
        "crash": {"anchor": {"op": 0}, "default": "lose"},
        "recovery": [{"run": "open"}]
    }"#;
    let case = Case::from_json("old.json", old).unwrap();
    assert_eq!((case.schema.as_str(), case.lives.len()), (SCHEMA, 1));
    assert_eq!(case.lives[0].tasks, [[Op::Flush]]);
    assert_eq!(case.lives[0].schedule, Scheduling::Seed(3));
    assert_eq!(case.lives[0].recovery[0].run, Step::Open);
    let error = Case::from_json("old.json", &old.replace("\"open\"}", "\"shut\"}")).unwrap_err();
    assert_eq!(error.path, "lives[0].recovery[0].run");
    let error = Case::from_json("old.json", &old.replace("\"tasks\"", "\"lives\"")).unwrap_err();
    assert_eq!((error.path.as_str(), error.message.contains("crash-corpus/0")), ("schema", true));
}

/// Goal: no case makes a replay endless or huge. Method: each number above its limit is refused with its field and the limit,
/// and the largest that is allowed is not.
#[test]
fn what_no_replay_can_do_is_refused() {
    let of = |change: &dyn Fn(&mut Case)| {
        let mut case = everything();
        change(&mut case);
        Case::from_json("x.json", &case.to_json())
    };
    let flush = |count: usize| vec![Op::Flush; count];
    let write = |length| Op::Write { offset: 0, length, id: 1, durability: Durability::Cached };
    let step = Recovery { run: Step::Open, crash: None };
    type Change<'a> = &'a dyn Fn(&mut Case, u64);
    let table: [(&str, u64, Change<'_>); 11] = [
        ("geometry.cluster_bits", 16, &|case, most| case.geometry.cluster_bits = most as u32),
        ("geometry.virtual_size", 64 << 20, &|case, most| {
            case.geometry.virtual_size = most.next_multiple_of(512);
        }),
        ("open.cache_pages", 65_536, &|case, most| case.open.cache_pages = most as u32),
        ("open.growth_step", 16 << 20, &|case, most| case.open.growth_step = most),
        ("image.length", 256 << 20, &|case, most| {
            case.image.as_mut().expect("it has one").length = most;
        }),
        ("lives (their number)", 64, &|case, most| {
            case.lives.resize(most as usize, Life::default());
        }),
        ("lives[0].tasks (their number)", 64, &|case, most| {
            case.lives[0].tasks.resize(most as usize, Vec::new());
        }),
        ("lives[1].recovery (their number)", 16, &|case, most| {
            case.lives[1].recovery = vec![step.clone(); most as usize];
        }),
        ("lives[1].tasks[0][4086] (number", 4096, &|case, most| {
            case.lives[1].tasks = vec![flush(most as usize - 10)];
        }),
        ("lives[1].tasks[0][0].grow.to", 64 << 20, &|case, most| {
            case.lives[1].tasks = vec![vec![Op::Grow { to: most.next_multiple_of(512) }]];
        }),
        // Five are touched by the requests of the first life, and one more by its read.
        ("lives[1].tasks[0][15] (guest clusters", 1 << 20, &|case, most| {
            case.geometry.virtual_size = 64 << 20;
            let mut writes = vec![write(64 << 20); 15];
            writes.push(write((most - 7 - (15 << 16)) << 10));
            case.lives[1].tasks = vec![writes];
        }),
    ];
    for (field, most, change) in table {
        of(&|case| change(case, most)).unwrap_or_else(|error| panic!("{field}: {error}"));
        let error = of(&|case| change(case, most + 1)).expect_err(field);
        assert!(error.path.starts_with(field), "{field}: {error}");
        let known = field.contains("virtual_size") || field.ends_with(".to");
        let value = if known { (most + 1).next_multiple_of(512) } else { most + 1 };
        let expected = format!("{value} is above {most}, the most that a replay can do");
        assert_eq!(error.message, expected, "{field}");
        assert_eq!(error.file, "x.json");
    }
    // What is cut off at the end of the disk counts for nothing.
    of(&|case| case.lives[1].tasks = vec![vec![write(1 << 62)]]).unwrap();
}
