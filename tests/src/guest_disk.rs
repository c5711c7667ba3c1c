//! What a guest sees of an image, as a raw file for whoever checks file systems.
//!
//! The disk is read through the subject, which opens the image read-only. What a power cut left open is decided as it is read.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use faultfs::direct::{self, Direct};
use faultfs::disk::PossibleDisk;

use crate::any::AnySubject;
use crate::buffer::to_read_into;
use crate::call;
use crate::file::fresh;
use crate::guest_trace::GuestTrace;
use crate::leaf::{LeafChooser, USUAL_CLUSTER_UNITS};
use crate::life::Request;
use crate::panics;
use crate::subject::{Session, Subject, SubjectImage as _};

/// Bytes that are read at once.
const STEP: u64 = 1 << 20;

/// What is not zero is written in pieces of this size; the rest stays a hole.
const PIECE: usize = 4096;

/// Why there is no raw file.
#[derive(Debug)]
pub enum ExportFailure {
    /// The subject cannot read what recovery left.
    Subject(String),
    /// The file cannot be written.
    File(io::Error),
}

/// Reads all of an image's disk into a raw file; `seed` decides what a power cut left open.
///
/// # Errors
/// [`ExportFailure`].
pub fn export(
    subject: &impl Subject,
    disk: &PossibleDisk,
    seed: u64,
    path: &Path,
) -> Result<(), ExportFailure> {
    let subject = &AnySubject::of(subject);
    let chooser = LeafChooser::random(seed, USUAL_CLUSTER_UNITS).share();
    let storage = Direct::new(disk.clone(), chooser);
    let raw = fresh(path).map_err(ExportFailure::File)?;
    let copy = async {
        let opened = call::open(subject, storage, Session::default()).await;
        let image = opened.map_err(|refusal| {
            ExportFailure::Subject(format!("opening it read-only: {refusal:?}"))
        })?;
        let size = image.size();
        raw.set_len(size).map_err(ExportFailure::File)?;
        let mut offset = 0;
        while offset < size {
            let length = STEP.min(size - offset);
            let data =
                image.read(offset, to_read_into(length)).await.map_err(ExportFailure::Subject)?;
            for (at, piece) in (offset..).step_by(PIECE).zip(data.chunks(PIECE)) {
                if piece.iter().any(|&byte| byte != 0) {
                    raw.write_all_at(piece, at).map_err(ExportFailure::File)?;
                }
            }
            offset += length;
        }
        Ok(())
    };
    let copied = direct::run(copy);
    if let Some(text) = panics::take() {
        return Err(ExportFailure::Subject(format!("reading it: {text}")));
    }
    copied.unwrap_or_else(|| Err(ExportFailure::Subject("reading it never ends".to_owned())))
}

/// The guest's disk after the first `requests` of a trace, with no image between, as a raw file.
///
/// # Errors
/// What the system said.
pub fn of_trace(trace: &GuestTrace, requests: usize, path: &Path) -> io::Result<()> {
    let raw = fresh(path)?;
    raw.set_len(trace.size())?;
    for request in &trace.requests()[..requests] {
        // What is discarded may stay what it was.
        if let Request::Raw(offset, data) = request {
            raw.write_all_at(data, *offset)?;
        }
    }
    Ok(())
}
