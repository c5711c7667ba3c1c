//! What marks say in the logs that the harness writes, and reads again: what the format of a log has no entry for.
//!
//! ```text
//!   initial image   length 16384   write ... write   flush        what the image was          no power cut in here
//!   life 0          write  flush  length 20480  write
//!   power cut                                                     what was lost is lost       no power cut in here
//!   recovery        length 20480   write ... flush                what recovery made of it    nor here
//!   life 1          ...
//! ```
//!
//! The invariant: a mark that is written here reads back as itself, and any other is somebody's note. Each of ours begins with `campaign: `, which
//! the drawing leaves out.

use std::fmt;

/// What our own marks begin with.
const OURS: &str = "campaign: ";

/// A mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMark {
    /// What follows is the image that the log begins with.
    Initial,
    /// A life begins: from here on the power may fail.
    Life(usize),
    /// The power has failed.
    PowerCut,
    /// What follows turns what was written into what the power cut and recovery left.
    Recovery,
    /// The file has so many bytes from here on.
    Length(u64),
}

impl fmt::Display for LogMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(OURS)?;
        match self {
            Self::Initial => f.write_str("initial image"),
            Self::Life(number) => write!(f, "life {number}"),
            Self::PowerCut => f.write_str("power cut"),
            Self::Recovery => f.write_str("recovery"),
            Self::Length(bytes) => write!(f, "length {bytes}"),
        }
    }
}

impl LogMark {
    /// The mark with this text; none if it is somebody's note.
    pub fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let words = text.strip_prefix(OURS)?;
        let mark = match words.split_once(' ') {
            None => Self::Recovery,
            Some(("initial", _)) => Self::Initial,
            Some(("power", _)) => Self::PowerCut,
            Some(("life", number)) => Self::Life(number.parse().ok()?),
            Some(("length", bytes)) => Self::Length(bytes.parse().ok()?),
            Some(_) => return None,
        };
        (mark.to_string() == text).then_some(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::{LogMark, OURS};

    /// Goal: marks read back as themselves, and notes that look like them do not.
    #[test]
    fn marks_read_back() {
        let all = [
            LogMark::Initial,
            LogMark::Life(12),
            LogMark::PowerCut,
            LogMark::Recovery,
            LogMark::Length(u64::MAX),
        ];
        for mark in all {
            assert_eq!(LogMark::read(mark.to_string().as_bytes()), Some(mark));
        }
        for note in
            ["", "life", "life +1", "life 01", "length -1", "power cuts", "begin", "initial"]
        {
            assert_eq!(LogMark::read(format!("{OURS}{note}").as_bytes()), None, "{note}");
        }
        for note in ["recovery", "power cut", "life 0", "length 512"] {
            assert_eq!(LogMark::read(note.as_bytes()), None, "somebody else's {note}");
        }
        assert_eq!(LogMark::read(&[0xff, b' ']), None);
    }
}
