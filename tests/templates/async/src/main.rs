//! An asynchronous library under the crash-consistency harness. Copy the folder, and fill in what is marked YOURS. Its futures need not be
//! `Send`, and they wait for nothing but the file and each other: no timer, no thread, no runtime.
//!
//! ```text
//!   cargo run --release -- run --contents --faultless                    what the guest sees, on a device that tears writes
//!   cargo run --release -- run --contents --faultless --profile kill     the same of a process that is killed
//!   cargo run --release -- run --keep-going                              all that it is held to, and failing I/O: each cause
//!   cargo run --release -- explain corpus/subjects/mine/NAME.json        a finding, told
//!   cargo run --release -- sensitivity --contents                        when nothing is found: would it have been?
//! ```
//!
//! The first of them finds what is wrong with the stand-in within a second.

use std::io;
use std::process::ExitCode;

use qcow2_crashtest::prelude::*;

mod library; // YOURS: delete this line

/// The file of an image, as the library wants it. YOURS: the library's own trait for files. Each call becomes the same call of `ByteFile`:
/// nothing is kept back, put off or done twice. Where the trait has defaults that do nothing, of a flush above all, they are written out
/// too. Clones of a `ByteFile` are the same file. Whose writes are all of whole sectors, of whatever size the device has, may do without
/// it, and call the `AnyStorage`. A library that writes all of a cache at once in the order of a hash map is another one each time: its
/// requests run through `qcow2_crashtest::in_order::InOrder`, and so do its writes.
struct Device(ByteFile);

impl library::Device for Device {
    fn length(&self) -> u64 {
        self.0.len()
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf).await
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.0.flush().await
    }
}

/// The library, held to everything, or only to what its guest sees.
#[derive(Clone, Copy)]
struct Mine {
    contents: bool,
}

/// An open image, and whether every change is to be durable when it returns. YOURS: the library's type for one.
struct Open(library::Image<Device>, bool);

impl Subject for Mine {
    type Image = Open;

    // YOURS: name and version, for reports.
    fn name(&self) -> String {
        "mine 0.0.0".to_owned()
    }

    // YOURS: two words, for case files and the folder that they are kept in.
    fn key(&self) -> &'static str {
        if self.contents { "mine-contents" } else { "mine" }
    }

    // YOURS: what the library can do. `Capabilities::plain` says yes to most; take away what it has no call for.
    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::plain();
        (can.zeroes, can.discard, can.grow) = (false, false, false);
        (can.repair, can.map) = (false, false);
        // YOURS: delete both lines. The stand-in opens no other images; what yours does not open, the first findings say.
        can.refcount_orders = (4, 4);
        can.initials = &[Initial::Fresh];
        can
    }

    // YOURS: what it is held to. Take away what its documentation does not promise. (What it promises beyond the least that any library says,
    // of discards and growth, is `promises`.)
    fn duties(&self) -> Duties {
        Duties { structure: !self.contents, finds_space: false, ..Duties::default() }
    }

    // YOURS: how an image is opened. `Failed` if the file did, `GaveUp` if the image is not one that the library opens.
    async fn open(&self, storage: AnyStorage, session: Session) -> Result<Open, Refusal> {
        let failed = |error: io::Error| Refusal::Failed(error.to_string());
        let file = ByteFile::new(storage).await.map_err(failed)?;
        let image = library::Image::open(Device(file)).await.map_err(failed)?;
        Ok(Open(image, session.write_through))
    }
}

fn told<T>(done: io::Result<T>) -> Result<T, String> {
    done.map_err(|error| error.to_string())
}

/// YOURS: the library's calls. For more than these see `SubjectImage`; what `capabilities` denies is not called.
impl SubjectImage for Open {
    fn size(&self) -> u64 {
        self.0.size()
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, String> {
        told(self.0.read(offset, &mut buf).await.map(|()| buf))
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        told(self.0.write(offset, &data).await)?;
        if self.1 || durability == Durability::Through { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> Result<(), String> {
        told(self.0.sync().await)
    }

    async fn close(self) -> Result<(), String> {
        self.flush().await
    }
}

fn main() -> ExitCode {
    outsider::main(Mine { contents: false }, Mine { contents: true })
}
