//! The command line of a subject that forgets flushes and, for some requests, ends its process: for tests of campaigns that go on past that. Where
//! there is a file called `once`, it takes that away in its first write, and ends the process, too.

use std::process::{ExitCode, abort, exit};

use model::build::Initial;
use model::op::Durability;
use qcow2_core::Image;
use qcow2_core::storage::{AnyStorage, IoBuf};
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::console::outsider;
use qcow2_crashtest::subject::{Qcow2Core, Refusal, Session, Subject, SubjectImage};

/// The library of the workspace, with a flush that does nothing, and writes that it does not survive.
#[derive(Clone, Debug)]
struct Fragile {
    /// Nor does it survive to open an image of four clusters, which is what a case is shortened to.
    shortened: bool,
}

struct FragileImage(Image<AnyStorage>);

impl Subject for Fragile {
    type Image = FragileImage;

    fn name(&self) -> String {
        "fragile".to_owned()
    }

    fn key(&self) -> &'static str {
        "fragile"
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::plain();
        (can.grow, can.repair, can.map) = (false, false, false);
        can.initials = &[Initial::Fresh];
        can
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<FragileImage, Refusal> {
        let image = Qcow2Core::default().open(storage, session).await?;
        let info = image.info();
        if self.shortened && info.virtual_size == 4 * info.cluster_size {
            abort();
        }
        Ok(FragileImage(image))
    }
}

impl SubjectImage for FragileImage {
    fn size(&self) -> u64 {
        SubjectImage::size(&self.0)
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, String> {
        SubjectImage::read(&self.0, offset, buf).await
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        if std::fs::remove_file("once").is_ok() {
            abort();
        }
        match (offset / 512 % 8, data.len() / 512) {
            (5, 2) => abort(),
            (6, 3) => exit(3),
            _ => SubjectImage::write(&self.0, offset, data, durability).await,
        }
    }

    async fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        SubjectImage::write_zeroes(&self.0, offset, length, unmap).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), String> {
        SubjectImage::discard(&self.0, offset, length).await
    }

    async fn flush(&self) -> Result<(), String> {
        Ok(())
    }

    async fn close(self) -> Result<(), String> {
        SubjectImage::close(self.0).await
    }
}

fn main() -> ExitCode {
    outsider::main(Fragile { shortened: false }, Fragile { shortened: true })
}
