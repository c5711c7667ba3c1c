//! rust-img-qcow2 0.6.1 as a subject: plain calls, in process, on the hostile disk.

use fs_core::{BlockDevice, BlockRead, Result as Done};
use img_qcow2::{Error, Qcow2Reader};
use qcow2_crashtest::prelude::*;

/// The library, held to all that its documentation says, or only to what its guest sees.
#[derive(Clone, Copy, Debug)]
pub struct RustImg {
    /// The latter.
    pub contents: bool,
}

/// The file of an image, as the library's own device for files is: no write goes past the end.
struct Device(PlainFile);

impl BlockRead for Device {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Done<()> {
        Ok(self.0.read_at(offset, buf)?)
    }

    fn size_bytes(&self) -> u64 {
        self.0.len()
    }
}

impl BlockDevice for Device {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Done<()> {
        let (len, size) = (buf.len() as u64, self.0.len());
        if offset + len > size {
            return Err(fs_core::Error::OutOfBounds { offset, len, size });
        }
        Ok(self.0.write_at(offset, buf)?)
    }

    fn flush(&self) -> Done<()> {
        Ok(self.0.flush()?)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn set_len(&self, length: u64) -> Done<()> {
        Ok(self.0.set_len(length)?)
    }
}

impl BlockingSubject for RustImg {
    type Image = Open;

    fn name(&self) -> String {
        "rust-img-qcow2 0.6.1".to_owned()
    }

    fn key(&self) -> &'static str {
        if self.contents { "rust-img-qcow2-contents" } else { "rust-img-qcow2" }
    }

    // As its table of features says. Backing files it opens by path only, and it does not make a refcount table longer.
    fn capabilities(&self) -> Capabilities {
        use Initial::*;
        let mut can = Capabilities::plain();
        (can.zeroes, can.discard, can.grow) = (false, false, false);
        (can.repair, can.map) = (false, false);
        (can.compressed, can.zstd) = (true, true);
        can.refcount_orders = (4, 4);
        can.initials =
            &[Fresh, RefcountBlockOneShort, L1AboutToGrow, Leaky, Fragmented, Bitmaps, Compressed];
        can
    }

    // A crash may leak a cluster and never corrupts the image, it says; what a write replaces is counted down.
    fn duties(&self) -> Duties {
        // It keeps nothing in memory: each write reads its tables, in as many transfers as the device makes of that.
        Duties { structure: !self.contents, ios_per_cluster: 8, ..Duties::default() }
    }

    fn open(&self, file: PlainFile, session: &Session) -> Result<Open, Refusal> {
        let device = std::sync::Arc::new(Device(file));
        let opened = match session.writable {
            true => Qcow2Reader::open_rw_on_device(device),
            false => Qcow2Reader::open_on_device(device),
        };
        opened.map(Open).map_err(|error| match error {
            Error::Io(error) => Refusal::Failed(error.to_string()),
            error => Refusal::GaveUp(error.to_string()),
        })
    }
}

/// An open image.
pub struct Open(Qcow2Reader);

impl BlockingImage for Open {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        self.0.read_at(offset, buf).map_err(|error| error.to_string())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), String> {
        self.0.write_at(offset, data).map_err(|error| error.to_string())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.0.flush().map_err(|error| error.to_string())
    }
}
