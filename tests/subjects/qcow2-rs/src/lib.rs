//! qcow2-rs 0.1.6 as a subject: its futures over a file of plain calls, as its engine for system calls has it, on the hostile disk.

pub mod at_once;
mod file;

use std::mem::forget;

use qcow2_crashtest::prelude::*;
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::utils::qcow2_alloc_dev;

use crate::file::{File, now};

/// The library, held to a legal image whenever the power fails, or only to what its guest sees.
#[derive(Clone, Copy, Debug)]
pub struct Qcow2Rs {
    /// The latter.
    pub contents: bool,
}

impl BlockingSubject for Qcow2Rs {
    type Image = Open;

    fn name(&self) -> String {
        "qcow2-rs 0.1.6".to_owned()
    }

    fn key(&self) -> &'static str {
        if self.contents { "qcow2-rs-contents" } else { "qcow2-rs" }
    }

    fn command(&self) -> &'static str {
        "cargo run --release --manifest-path tests/subjects/qcow2-rs/Cargo.toml --"
    }

    fn capabilities(&self) -> Capabilities {
        can()
    }

    // It says nothing of where it takes space from.
    fn duties(&self) -> Duties {
        Duties { structure: !self.contents, finds_space: false, ..Duties::default() }
    }

    fn open(&self, file: PlainFile, session: &Session) -> Result<Open, Refusal> {
        let parameters = parameters(session);
        let opened = now(qcow2_alloc_dev("image".as_ref(), File::new(file), &parameters));
        let (device, _) = opened.map_err(Refusal::GaveUp)?;
        now(device.qcow2_prep_io()).map_err(Refusal::GaveUp)?;
        Ok(Open(Some(device)))
    }
}

// It reads and writes, compressed clusters too (deflate), and has no code for the rest. Backing files it opens by path only.
fn can() -> Capabilities {
    let mut can = Capabilities::plain();
    (can.zeroes, can.discard, can.grow) = (false, false, false);
    (can.repair, can.map, can.compressed) = (false, false, true);
    can
}

// Its own choice of slices of 4096 bytes needs clusters of as many.
fn parameters(session: &Session) -> Qcow2DevParams {
    let slices = Some((9, 512 * session.cache_pages.max(16) as usize));
    Qcow2DevParams::new(9, slices, slices, !session.writable, false)
}

/// An open image.
pub struct Open(Option<Qcow2Dev<File>>);

impl Open {
    fn device(&self) -> &Qcow2Dev<File> {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

// Dropping a device asserts that all of it was flushed, part by part, and two that were not end the process. No power cut drops anything.
impl Drop for Open {
    fn drop(&mut self) {
        forget(self.0.take_if(|device| device.need_flush_meta()));
    }
}

impl BlockingImage for Open {
    fn size(&self) -> u64 {
        self.device().info.virtual_size()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        match now(self.device().read_at(buf, offset))? {
            read if read == buf.len() => Ok(()),
            read => Err(format!("{read} of {} bytes", buf.len())),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), String> {
        now(self.device().write_at(data, offset))
    }

    fn flush(&mut self) -> Result<(), String> {
        now(self.device().flush_meta())?;
        now(self.device().fsync_range(0, usize::MAX))
    }
}
