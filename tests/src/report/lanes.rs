//! I/O as a diagram: a column for each kind of structure, time downwards.
//!
//! ```text
//!    I/O              rc block     l1       l2          data
//!     #7 t0 write     [0]#0 LOST                                      what a power cut made of it is in the last word
//!     #8 t0 flush     ------------------------------------            everything above that has ended is durable
//!     #9 t0 write                           [0]#0 kept
//!   ======== power cut; in flight: #9 ========
//! ```
//!
//! Invariants: a row for each write, discard, length change and flush, or a row that says how many were left out; what failed of these, and when that
//! was settled, is never left out; no line longer than [`WIDTH`], but for the text of a guest's request.

use std::collections::BTreeSet;

use faultfs::disk::PossibleDisk;
use faultfs::trace::{Event, Io, IoKind};
use faultfs::values::Key;
use model::label::{Label, Region};

use crate::leaf::Labels;
use crate::report::timeline::{Timeline, unit_of};

/// Columns of a line.
pub(super) const WIDTH: usize = 100;
/// Rows beyond which some are left out, and how many before the power cut are then always shown.
const MOST_ROWS: usize = 36;
const TAIL: usize = 10;

/// What the words in the cells mean.
pub(super) const LEGEND: &str = "\
kept, LOST: on the medium after the power cut, or not; torn: partly; safe: covered by a flush;
over: overwritten; open: nobody read it, so it may be either.
t0: guest task 0; fua: written through; rc: refcount; [i]#u: unit u of table or cluster i.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Header,
    RefcountTable,
    RefcountBlock,
    L1,
    L2,
    Data,
    Bitmaps,
    Unused,
    Length,
}

impl Lane {
    const ALL: [(Self, &str); 9] = [
        (Self::Header, "header"),
        (Self::RefcountTable, "rc table"),
        (Self::RefcountBlock, "rc block"),
        (Self::L1, "l1"),
        (Self::L2, "l2"),
        (Self::Data, "data"),
        (Self::Bitmaps, "bitmaps"),
        (Self::Unused, "unused"),
        (Self::Length, "length"),
    ];

    const fn of(region: Region) -> (Self, Option<u64>) {
        match region {
            Region::Header | Region::EncryptionHeader => (Self::Header, None),
            Region::RefcountTable => (Self::RefcountTable, None),
            Region::RefcountBlock(index) => (Self::RefcountBlock, Some(index)),
            Region::L1 => (Self::L1, None),
            Region::L2(index) => (Self::L2, Some(index)),
            Region::Data(index) | Region::Compressed(index) => (Self::Data, Some(index)),
            Region::BitmapDirectory => (Self::Bitmaps, None),
            Region::BitmapTable(index) | Region::Bitmap(index) => (Self::Bitmaps, Some(index)),
            Region::Free(index) => (Self::Unused, Some(index)),
            Region::BeyondEnd => (Self::Unused, None),
        }
    }
}

/// What became of one unit of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Safe,
    Kept,
    Lost,
    Open,
    Over,
}

/// One unit of a write: where it goes, and what became of it if the power was cut.
type Unit = (Label, Option<Fate>);

/// The disk right before and right after a power cut.
pub(super) struct Cut<'a> {
    /// With its writes pending.
    pub(super) live: &'a PossibleDisk,
    /// As far as it has been decided.
    pub(super) crashed: &'a PossibleDisk,
}

/// I/O to be drawn.
pub(super) struct Drawing<'a> {
    /// The I/O.
    pub(super) timeline: &'a Timeline,
    /// From this event to that one.
    pub(super) events: std::ops::Range<usize>,
    /// Who submits: the name of a task.
    pub(super) who: &'a dyn Fn(Option<u32>) -> String,
    /// What lies where.
    pub(super) labels: &'a Labels,
    /// The power cut that the words in the cells are about.
    pub(super) cut: Option<Cut<'a>>,
    /// Lines between the I/O, by the event that they come before, ascending.
    pub(super) notes: &'a [(usize, String)],
    /// Units that the failure is about: rows that touch one are never left out.
    pub(super) units: &'a BTreeSet<u32>,
}

/// One row, before the columns have a width.
enum Row {
    Cells { gutter: String, cells: Vec<(Lane, String)>, telling: bool },
    Flush { gutter: String, fill: &'static str },
    Note(String),
    Gap(usize),
}

/// The lines of a drawing, and the I/Os that had not ended.
pub(super) fn draw(drawing: &Drawing<'_>) -> (String, Vec<u64>) {
    let (rows, in_flight) = drawing.rows();
    let rows = elide(rows);
    let mut lanes: Vec<(Lane, &str, usize)> = Vec::new();
    for (lane, title) in Lane::ALL {
        let cells = rows.iter().filter_map(|row| match row {
            Row::Cells { cells, .. } => cells.iter().find(|(of, _)| *of == lane),
            _ => None,
        });
        if let Some(widest) = cells.map(|(_, text)| text.len()).max() {
            lanes.push((lane, title, widest.max(title.len())));
        }
    }
    let gutter = rows.iter().map(Row::gutter_width).max().unwrap_or(0);
    let total: usize = lanes.iter().map(|(.., width)| width + 2).sum();
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(text.trim_end());
        out.push('\n');
    };
    let mut titles = format!("  {:gutter$}", "I/O");
    for (_, title, width) in &lanes {
        titles.push_str(&format!("  {title:<width$}"));
    }
    line(titles);
    for row in &rows {
        match row {
            Row::Note(text) => line(format!("  {text}")),
            Row::Gap(count) => line(format!("  ... {count} rows left out ...")),
            Row::Flush { gutter: text, fill } => {
                let rule = fill.repeat(total.saturating_sub(2) / fill.len());
                line(format!("  {text:gutter$}  {rule}"));
            }
            Row::Cells { gutter: text, cells, .. } => {
                let mut row = format!("  {text:gutter$}");
                for (lane, _, width) in &lanes {
                    let cell = cells.iter().find(|(of, _)| of == lane);
                    row.push_str(&format!("  {:<width$}", cell.map_or("", |(_, text)| text)));
                }
                line(row);
            }
        }
    }
    (out, in_flight)
}

impl Row {
    fn gutter_width(&self) -> usize {
        match self {
            Self::Cells { gutter, .. } | Self::Flush { gutter, .. } => gutter.len(),
            Self::Note(_) | Self::Gap(_) => 0,
        }
    }
}

/// Leaves out what is neither telling nor near the end, where there is too much.
fn elide(rows: Vec<Row>) -> Vec<Row> {
    if rows.len() <= MOST_ROWS {
        return rows;
    }
    let tail = rows.len() - TAIL;
    let mut kept = Vec::new();
    for (at, row) in rows.into_iter().enumerate() {
        let telling = matches!(row, Row::Cells { telling: true, .. });
        if telling || at >= tail {
            kept.push(row);
        } else if let Some(Row::Gap(count)) = kept.last_mut() {
            *count += 1;
        } else {
            kept.push(Row::Gap(1));
        }
    }
    kept
}

impl Drawing<'_> {
    fn rows(&self) -> (Vec<Row>, Vec<u64>) {
        let mut rows = Vec::new();
        let mut notes = self.notes.iter().peekable();
        let mut running: Vec<Io> = Vec::new();
        let mut at = self.events.start;
        while at < self.events.end {
            while let Some((_, text)) = notes.next_if(|(before, _)| *before <= at) {
                rows.push(Row::Note(text.clone()));
            }
            match &self.timeline.events[at] {
                Event::Submit { io, .. } if io.kind != IoKind::Read => {
                    let next = (at + 1..self.events.end).find(|at| self.is_shown(*at));
                    let mut undisturbed = |next: usize| {
                        notes.peek().is_none_or(|(before, _)| *before > next)
                            && matches!(self.timeline.events[next],
                                Event::Complete { index, .. } if index == io.index)
                    };
                    let ends = next.filter(|next| undisturbed(*next));
                    rows.push(self.row(io, if ends.is_some() { "" } else { " begins" }));
                    match ends {
                        Some(next) => at = next,
                        None => running.push(*io),
                    }
                }
                Event::Complete { index, .. } | Event::Fail { index, .. } => {
                    if let Some(place) = running.iter().position(|io| io.index == *index) {
                        let io = running.remove(place);
                        rows.push(self.end(&io, &self.timeline.events[at]));
                    }
                }
                Event::Settle => {
                    let gutter = "settled".to_owned();
                    rows.push(Row::Cells { gutter, cells: Vec::new(), telling: true });
                }
                _ => {}
            }
            at += 1;
        }
        rows.extend(notes.map(|(_, text)| Row::Note(text.clone())));
        (rows, running.iter().map(|io| io.index).collect())
    }

    /// Whether an event has a row: reads have none.
    fn is_shown(&self, at: usize) -> bool {
        let of_read = |index: &u64| {
            self.timeline.events[..at].iter().any(|event| {
                matches!(event, Event::Submit { io, .. } if io.index == *index && io.kind == IoKind::Read)
            })
        };
        match &self.timeline.events[at] {
            Event::Submit { io, .. } => io.kind != IoKind::Read,
            Event::Complete { index, .. } | Event::Fail { index, .. } => !of_read(index),
            _ => false,
        }
    }

    fn gutter(&self, io: &Io, what: &str) -> String {
        let kind = match io.kind {
            IoKind::WriteThrough => "fua",
            IoKind::WriteZeroes => "zeroes",
            IoKind::SetLen => "length",
            other => other.name(),
        };
        format!("{:>4} {} {kind}{what}", format!("#{}", io.index), (self.who)(io.task))
    }

    fn end(&self, io: &Io, event: &Event) -> Row {
        let how = match event {
            Event::Fail { errno, .. } if self.timeline.is_late(io) => {
                format!(" FAILS, errno {errno}, and may land")
            }
            Event::Fail { errno, .. } => format!(" FAILS, errno {errno}"),
            _ => " ends".to_owned(),
        };
        let gutter = self.gutter(io, &how);
        let telling = matches!(event, Event::Fail { .. });
        if io.kind == IoKind::Flush && !telling {
            return Row::Flush { gutter, fill: "-" };
        }
        Row::Cells { gutter, cells: Vec::new(), telling }
    }

    fn row(&self, io: &Io, what: &str) -> Row {
        let gutter = self.gutter(io, what);
        if io.kind == IoKind::Flush {
            return Row::Flush { gutter, fill: if what.is_empty() { "-" } else { "- " } };
        }
        if io.kind == IoKind::SetLen {
            let length = io.offset / 512;
            let fate = self.cut.as_ref().map_or("", |cut| {
                let possible = cut.live.possible_lengths();
                let fits = |chosen: u32| u64::from(chosen) >= length;
                match possible[..] {
                    [_] => " safe",
                    _ if fits(length_of(cut.crashed)) => " kept",
                    _ => " LOST",
                }
            });
            let telling = fate == " LOST";
            let cells = vec![(Lane::Length, format!("{:#x}{fate}", io.offset))];
            return Row::Cells { gutter, cells, telling };
        }
        let first = unit_of(io.offset);
        let mut cells: Vec<(Lane, Vec<Unit>)> = Vec::new();
        for nth in 0..io.units() {
            let label = (self.labels)(first + nth);
            let (lane, _) = Lane::of(label.region);
            let fate = self.cut.as_ref().map(|cut| self.fate(cut, io, nth));
            match cells.iter_mut().find(|(of, _)| *of == lane) {
                Some((_, units)) => units.push((label, fate)),
                None => cells.push((lane, vec![(label, fate)])),
            }
        }
        let lost = |(_, units): &(Lane, Vec<Unit>)| {
            units.iter().any(|(_, fate)| *fate == Some(Fate::Lost))
        };
        let touches = (first..first + io.units()).any(|unit| self.units.contains(&unit));
        let telling = touches || cells.iter().any(lost);
        let cells = cells.into_iter().map(|(lane, units)| (lane, cell(&units))).collect();
        Row::Cells { gutter, cells, telling }
    }

    fn fate(&self, cut: &Cut<'_>, io: &Io, nth: u32) -> Fate {
        let unit = unit_of(io.offset) + nth;
        let own = self.timeline.content(io, nth);
        let mut keys: Vec<Key> = Vec::new();
        cut.live.peek(unit, &mut keys);
        match (keys.contains(&own), &keys[..], cut.crashed.single(unit)) {
            (false, ..) => Fate::Over,
            // With the length that it gave the file.
            (true, ..) if cut.crashed.possible_lengths().iter().all(|length| unit >= *length) => {
                Fate::Lost
            }
            (true, [_], _) => Fate::Safe,
            (true, _, None) => Fate::Open,
            (true, _, Some(key)) if key == own => Fate::Kept,
            (true, _, Some(key)) if self.is_later(io, unit, key) => Fate::Over,
            _ => Fate::Lost,
        }
    }

    /// Whether an I/O after `io` gave `key` to `unit`.
    fn is_later(&self, io: &Io, unit: u32, key: Key) -> bool {
        self.timeline.events[..self.events.end].iter().any(|event| match event {
            Event::Submit { io: other, .. } if other.index > io.index => {
                let first = unit_of(other.offset);
                other.kind.is_update()
                    && other.kind != IoKind::SetLen
                    && (first..first + other.units()).contains(&unit)
                    && self.timeline.content(other, unit - first) == key
            }
            _ => false,
        })
    }
}

/// The length that a crashed disk was found to have.
fn length_of(disk: &PossibleDisk) -> u32 {
    disk.possible_lengths().first().copied().unwrap_or(0)
}

/// Where a write goes within one lane, and what became of it.
fn cell(units: &[Unit]) -> String {
    let (first, last) = (units[0].0, units[units.len() - 1].0);
    let number = |label: Label| match Lane::of(label.region).1 {
        Some(index) => format!("[{index}]"),
        None => String::new(),
    };
    let unit = |label: Label| label.unit.map_or_else(String::new, |unit| format!("#{unit}"));
    let place = if first.region != last.region {
        format!("{}..{}", number(first), number(last))
    } else if units.len() > 1 {
        let end = last.unit.map_or_else(String::new, |unit| format!("-{unit}"));
        format!("{}{}{end}", number(first), unit(first))
    } else {
        format!("{}{}", number(first), unit(first))
    };
    let fates: BTreeSet<Fate> = units.iter().filter_map(|(_, fate)| *fate).collect();
    let has = |fate| fates.contains(&fate);
    let kept = has(Fate::Kept) || has(Fate::Safe);
    let word = match () {
        () if fates.is_empty() => "",
        () if has(Fate::Lost) && kept => " torn",
        () if has(Fate::Lost) => " LOST",
        () if has(Fate::Kept) => " kept",
        () if has(Fate::Open) => " open",
        () if has(Fate::Safe) => " safe",
        () => " over",
    };
    format!("{place}{word}")
}
