//! Every I/O and every decision of a run, its hash, and a dump for people.
//!
//! Invariant: the hash covers every event in order, so equal hashes mean that two runs were the same run; contents
//! enter by their own hash, never by a key, which depends on the store. Labels of offsets are not known here: whoever
//! dumps a trace brings them along.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use storage::{Durability, UNIT};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::chooser::Taken;
use crate::disk::File;
use crate::schedule::TaskId;

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoKind {
    /// Read.
    Read,
    /// Cached write.
    Write,
    /// Write through the cache.
    WriteThrough,
    /// Write of zeroes.
    WriteZeroes,
    /// Discard.
    Discard,
    /// Change of length; the offset is the new length.
    SetLen,
    /// Flush.
    Flush,
}

impl IoKind {
    /// How many kinds there are.
    pub const COUNT: usize = 7;

    /// What a write of this durability is.
    pub(crate) const fn of_write(durability: Durability) -> Self {
        match durability {
            Durability::Cached => Self::Write,
            Durability::Through => Self::WriteThrough,
        }
    }

    /// The name in dumps and case files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteThrough => "write-through",
            Self::WriteZeroes => "write-zeroes",
            Self::Discard => "discard",
            Self::SetLen => "set-len",
            Self::Flush => "flush",
        }
    }

    /// Whether its failure may be that of a sync, of which somebody must hear.
    pub(crate) const fn syncs(self) -> bool {
        matches!(self, Self::WriteThrough | Self::Flush)
    }

    /// Whether it changes what the disk may hold.
    pub const fn is_update(self) -> bool {
        !matches!(self, Self::Read | Self::Flush)
    }
}

/// One I/O, as submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Which one of all, counted from 0.
    pub index: u64,
    /// Which one of its kind, counted from 0.
    pub nth: u64,
    /// What it does.
    pub kind: IoKind,
    /// Where it begins, in bytes of the disk: a second file does not begin at 0.
    pub offset: u64,
    /// How many bytes it covers.
    pub len: u64,
    /// Number of the task that submitted it, if a task did.
    pub task: Option<u32>,
    /// The file that it goes to.
    #[serde(default, skip_serializing_if = "File::is_first")]
    pub file: File,
}

impl Io {
    /// How many whole units it covers.
    pub const fn units(&self) -> u32 {
        (self.len / UNIT as u64) as u32
    }

    /// The bytes that it may change or return. A change of length reaches from the new length to the end of
    /// everything that its file may hold.
    pub const fn range(&self) -> std::ops::Range<u64> {
        match self.kind {
            IoKind::SetLen => self.offset..u64::MAX,
            _ => self.offset..self.offset.saturating_add(self.len),
        }
    }

    /// Whether both touch a common byte of the same file.
    pub const fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.range(), other.range());
        self.file.is_first() == other.file.is_first() && a.start < b.end && b.start < a.end
    }
}

/// One event of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An I/O was submitted.
    Submit {
        /// Which.
        io: Io,
        /// Hash of the bytes that it writes; 0 where it brings none.
        content: u64,
    },
    /// An I/O ended well.
    Complete {
        /// Index of the I/O.
        index: u64,
        /// Hash of the bytes that it read; 0 where it reads none.
        content: u64,
    },
    /// An I/O ended with an error.
    Fail {
        /// Index of the I/O.
        index: u64,
        /// The error number that the caller sees.
        errno: i32,
    },
    /// The storage was settled: what had failed late has ended.
    Settle,
    /// A task was polled.
    Run(TaskId),
    /// The future of a task was dropped.
    Cancel(TaskId),
    /// The schedule picked one of several candidates.
    Picked(Taken),
    /// The chooser decided something that the disk left open.
    Chose(Taken),
}

/// The events of a run and their hash.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    events: Vec<Event>,
    hash: u64,
    tasks: Vec<String>,
}

impl Trace {
    /// An empty trace.
    pub fn new() -> Self {
        Self::default()
    }

    /// What happened, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// A hash of all that happened.
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn name_task(&mut self, name: &str) {
        self.tasks.push(name.to_owned());
    }

    pub(crate) fn record(&mut self, event: Event) {
        self.hash = xxh3_64_with_seed(&encode(&event), self.hash);
        self.events.push(event);
    }

    /// One line per event. `label` says what lies at an offset.
    pub fn dump(&self, label: impl Fn(u64) -> String) -> String {
        let task = |number: u32| self.tasks.get(number as usize).map_or("?", |name| name);
        let mut text = String::new();
        for (at, event) in self.events.iter().enumerate() {
            let line = match event {
                Event::Submit { io, content } => {
                    let who = io.task.map_or("-", task);
                    let what = format!("submit   #{:<4} {:<13}", io.index, io.kind.name());
                    let file = if io.file.is_first() { "" } else { " (file 2)" };
                    let place = match io.kind {
                        IoKind::Flush => file.to_owned(),
                        IoKind::SetLen => format!(" {:#x}{file}", io.offset),
                        _ => format!(" {:#x}+{:#x} {}", io.offset, io.len, label(io.offset)),
                    };
                    let bytes = match content {
                        0 => String::new(),
                        hash => format!(" bytes {hash:016x}"),
                    };
                    format!("{what} by {who}{place}{bytes}")
                }
                Event::Complete { index, content: 0 } => format!("complete #{index}"),
                Event::Complete { index, content } => {
                    format!("complete #{index:<4} bytes {content:016x}")
                }
                Event::Fail { index, errno } => format!("fail     #{index:<4} errno {errno}"),
                Event::Settle => "settle".to_owned(),
                Event::Run(TaskId(number)) => format!("run      {}", task(*number)),
                Event::Cancel(TaskId(number)) => format!("cancel   {}", task(*number)),
                Event::Picked(Taken { options, taken }) => format!("pick     {taken} of {options}"),
                Event::Chose(Taken { options, taken }) => format!("choose   {taken} of {options}"),
            };
            writeln!(text, "{at:>5} {line}").expect("writing to a string cannot fail");
        }
        text
    }
}

/// ```text
///   0      1      2            10           18           26           34           42
///   +------+------+------------+------------+------------+------------+------------+
///   | what | kind |   index    |    nth     |   offset   |   length   |  content   |   big-endian; a task goes into
///   +------+------+------------+------------+------------+------------+------------+   the upper half of nth,
///                                                                                   a file into that of kind
/// ```
fn encode(event: &Event) -> [u8; 42] {
    let mut bytes = [0; 42];
    let mut put = |what: u8, kind: u8, words: [u64; 5]| {
        bytes[0] = what;
        bytes[1] = kind;
        for (target, word) in bytes[2..].as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *target = word.to_be_bytes();
        }
    };
    match *event {
        Event::Submit { io, content } => {
            let task = io.task.map_or(0, |task| u64::from(task) + 1) << 40;
            put(
                0,
                io.kind as u8 + ((io.file as u8) << 4),
                [io.index, io.nth + task, io.offset, io.len, content],
            );
        }
        Event::Complete { index, content } => put(1, 0, [index, 0, 0, 0, content]),
        Event::Fail { index, errno } => {
            put(2, 0, [index, u64::from(errno.unsigned_abs()), 0, 0, 0])
        }
        Event::Run(task) => put(3, 0, [u64::from(task.0), 0, 0, 0, 0]),
        Event::Cancel(task) => put(4, 0, [u64::from(task.0), 0, 0, 0, 0]),
        Event::Picked(taken) => {
            put(5, 0, [u64::from(taken.options), u64::from(taken.taken), 0, 0, 0])
        }
        Event::Chose(taken) => {
            put(6, 0, [u64::from(taken.options), u64::from(taken.taken), 0, 0, 0])
        }
        Event::Settle => put(7, 0, [0; 5]),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{Event, Io, IoKind, Trace};
    use crate::chooser::Taken;
    use crate::disk::File;
    use crate::schedule::TaskId;

    fn sample() -> Vec<Event> {
        let io = Io {
            index: 0,
            nth: 0,
            kind: IoKind::Write,
            offset: 0x400,
            len: 512,
            task: Some(0),
            file: File::First,
        };
        vec![
            Event::Run(TaskId(0)),
            Event::Submit { io, content: 0xabc },
            Event::Picked(Taken { options: 2, taken: 1 }),
            Event::Complete { index: 0, content: 0 },
            Event::Fail { index: 1, errno: 5 },
            Event::Chose(Taken { options: 2, taken: 1 }),
            Event::Cancel(TaskId(0)),
        ]
    }

    fn hash(events: &[Event]) -> u64 {
        let mut trace = Trace::new();
        events.iter().for_each(|&event| trace.record(event));
        trace.hash()
    }

    #[test]
    fn the_hash_sees_every_event_and_their_order() {
        let events = sample();
        let whole = hash(&events);
        for at in 0..events.len() {
            let mut fewer = events.clone();
            fewer.remove(at);
            assert_ne!(hash(&fewer), whole, "without event {at}");
            let mut turned = events.clone();
            turned.rotate_left(at);
            assert_eq!(hash(&turned) == whole, at == 0, "turned by {at}");
        }
    }

    #[test]
    fn the_dump_is_one_labelled_line_per_event() {
        let mut trace = Trace::new();
        trace.name_task("writer");
        sample().into_iter().for_each(|event| trace.record(event));
        let dump = trace.dump(|offset| format!("l2[{}]", offset / 1024));
        let lines: Vec<&str> = dump.lines().collect();
        assert_eq!(lines.len(), 7);
        assert_eq!(
            lines[1],
            "    1 submit   #0    write         by writer 0x400+0x200 l2[1] bytes 0000000000000abc"
        );
        assert_eq!(lines[4], "    4 fail     #1    errno 5");
    }

    #[test]
    fn what_has_no_bytes_and_what_has_no_place_is_dumped_without() {
        let submit = |kind, offset, len| {
            let io = Io { index: 7, nth: 0, kind, offset, len, task: None, file: File::First };
            let mut trace = Trace::new();
            trace.record(Event::Submit { io, content: 0 });
            trace.dump(|_| "label".to_owned())
        };
        let lines = [
            submit(IoKind::Discard, 0x200, 0x400),
            submit(IoKind::SetLen, 0x600, 0),
            submit(IoKind::Flush, 0, 0),
        ];
        assert_eq!(
            lines,
            [
                "    0 submit   #7    discard       by - 0x200+0x400 label\n",
                "    0 submit   #7    set-len       by - 0x600\n",
                "    0 submit   #7    flush         by -\n",
            ]
        );
    }

    #[test]
    fn reads_and_flushes_update_nothing() {
        for kind in [IoKind::Read, IoKind::Flush] {
            assert!(!kind.is_update(), "{kind:?}");
        }
        for kind in [
            IoKind::Write,
            IoKind::WriteThrough,
            IoKind::WriteZeroes,
            IoKind::Discard,
            IoKind::SetLen,
        ] {
            assert!(kind.is_update(), "{kind:?}");
        }
    }

    #[test]
    fn the_file_shows_only_where_it_is_not_the_first() {
        let of =
            |file, kind| Io { index: 1, nth: 0, kind, offset: 0x800, len: 512, task: None, file };
        let first = of(File::First, IoKind::Write);
        let json = r#"{"index":1,"nth":0,"kind":"write","offset":2048,"len":512,"task":null}"#;
        assert_eq!(serde_json::to_string(&first).unwrap(), json);
        assert_eq!(serde_json::from_str::<Io>(json).unwrap(), first);
        let second = of(File::Second, IoKind::Write);
        let json = serde_json::to_string(&second).unwrap();
        assert!(json.ends_with(r#","file":"second"}"#), "{json}");
        assert_eq!(serde_json::from_str::<Io>(&json).unwrap(), second);
        let hashed = |io| hash(&[Event::Submit { io, content: 0 }]);
        assert_ne!(hashed(first), hashed(second));
        let dumped = |kind| {
            let mut trace = Trace::new();
            trace.record(Event::Submit { io: of(File::Second, kind), content: 0 });
            trace.dump(|_| "label".to_owned())
        };
        assert_eq!(
            [IoKind::Flush, IoKind::SetLen, IoKind::Discard].map(dumped),
            [
                "    0 submit   #1    flush         by - (file 2)\n",
                "    0 submit   #1    set-len       by - 0x800 (file 2)\n",
                "    0 submit   #1    discard       by - 0x800+0x200 label\n",
            ]
        );
        let cut = of(File::First, IoKind::SetLen);
        assert!(first.overlaps(&cut) && !second.overlaps(&cut) && !first.overlaps(&second));
        assert!(second.overlaps(&of(File::Second, IoKind::SetLen)));
    }
}
