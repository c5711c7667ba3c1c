//! What a guest sees of an image, as a raw file for whoever checks file systems.
//!
//! The disk is read through the subject, which opens the image read-only. What a power cut left open is decided as it is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use faultfs::direct::{self, Direct};
use faultfs::disk::PossibleDisk;
use model::payload::UNIT;
use qcow2_core::storage::{AnyStorage, IoBuf};

use crate::guest_trace::GuestTrace;
use crate::leaf::LeafChooser;
use crate::life::Request;
use crate::subject::{Refusal, Session, Subject, SubjectImage as _};

/// Bytes that are read at once.
const STEP: u64 = 1 << 20;

/// What is not zero is written in pieces of this size; the rest stays a hole.
const PIECE: usize = 4096;

/// Units of a host cluster that are lost as a whole.
const CLUSTER_UNITS: u32 = 128;

/// Reads all of an image's disk into a raw file; `seed` decides what a power cut left open.
///
/// # Errors
/// What the subject or the system said.
pub fn export<Sub: Subject>(
    subject: &Sub,
    disk: &PossibleDisk,
    seed: u64,
    path: &Path,
) -> Result<(), String> {
    let chooser = LeafChooser::random(seed, CLUSTER_UNITS).share();
    let storage = AnyStorage::new(Direct::new(disk.clone(), chooser));
    let file = |error: io::Error| format!("{}: {error}", path.display());
    let raw = File::create(path).map_err(file)?;
    let copy = async {
        let image = subject.open(storage, Session::default()).await.map_err(|why| match why {
            Refusal::GaveUp(why) | Refusal::Failed(why) => format!("opening it read-only: {why}"),
        })?;
        let size = image.size();
        raw.set_len(size).map_err(file)?;
        let mut offset = 0;
        while offset < size {
            let length = STEP.min(size - offset);
            let buf = IoBuf::zeroed(usize::try_from(length).expect("a step"), UNIT);
            let data = image.read(offset, buf).await?;
            for (at, piece) in (offset..).step_by(PIECE).zip(data.chunks(PIECE)) {
                if piece.iter().any(|&byte| byte != 0) {
                    raw.write_all_at(piece, at).map_err(file)?;
                }
            }
            offset += length;
        }
        Ok(())
    };
    direct::run(copy).unwrap_or_else(|| Err("reading it never ends".to_owned()))
}

/// The guest's disk after the first `requests` of a trace, with no image between, as a raw file.
///
/// # Errors
/// What the system said.
pub fn of_trace(trace: &GuestTrace, requests: usize, path: &Path) -> io::Result<()> {
    let raw = File::create(path)?;
    raw.set_len(trace.size())?;
    for request in &trace.requests()[..requests] {
        // What is discarded may stay what it was.
        if let Request::Raw(offset, data) = request {
            raw.write_all_at(data, *offset)?;
        }
    }
    Ok(())
}
