//! An implementation under the harness, from nothing to its first finding: one whose guest flush does nothing.
//!
//! What it calls here is the library of this workspace; that is the place of an implementation of one's own.

use std::error::Error;
use std::time::Duration;

use faultfs::profile::Profile;
use model::finding::Property;
use model::guest::{DiscardReads, Promises};
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry};
use qcow2_core::storage::{AnyStorage, IoBuf};
use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::minimise::minimise;
use qcow2_crashtest::report;
use qcow2_crashtest::subject::{Duties, Qcow2Core, Refusal, Session, Subject, SubjectImage};
use qcow2_crashtest::workload::Scope;

/// The implementation, with what it is configured by: here nothing. Reports call this program by its own name, because it says nothing of
/// [`Subject::command`].
#[derive(Clone, Copy)]
struct Forgetful;

/// An open image of it.
struct Open(qcow2_core::Image<AnyStorage>);

impl Subject for Forgetful {
    type Image = Open;

    fn name(&self) -> String {
        "forgetful 0.1".to_owned()
    }

    fn key(&self) -> &'static str {
        "forgetful"
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        Promises {
            cluster_units: geometry.cluster_units(),
            discard: DiscardReads::Zeroes,
            grow: Durability::Through,
            changes: if session.write_through { Durability::Through } else { Durability::Cached },
        }
    }

    fn duties(&self) -> Duties {
        // Space is free again once a flush has made it so.
        Duties { finds_space: false, ..Duties::default() }
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<Open, Refusal> {
        Qcow2Core::default().open(storage, session).await.map(Open)
    }

    async fn repair(&self, storage: AnyStorage) -> Result<Statement, Refusal> {
        Qcow2Core::default().repair(storage).await
    }
}

impl SubjectImage for Open {
    fn size(&self) -> u64 {
        self.0.info().virtual_size
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, String> {
        SubjectImage::read(&self.0, offset, buf).await
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        SubjectImage::write(&self.0, offset, data, durability).await
    }

    async fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        SubjectImage::write_zeroes(&self.0, offset, length, unmap).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), String> {
        SubjectImage::discard(&self.0, offset, length).await
    }

    async fn flush(&self) -> Result<(), String> {
        Ok(()) // the mistake
    }

    async fn grow(&self, size: u64) -> Result<(), String> {
        SubjectImage::grow(&self.0, size).await
    }

    async fn map(&self) -> Result<Vec<Extent>, String> {
        SubjectImage::map(&self.0).await
    }

    async fn close(self) -> Result<(), String> {
        SubjectImage::close(self.0).await
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings {
        seed: 1,
        profile: Profile::TornLength,
        damage: None,
        scope: Scope::default(),
        budget: Budget::Cases(1000),
        workers: 0,
    };
    let report = campaign::run(&Forgetful, &settings, |_| {});
    let found = report.found.ok_or("nobody missed the flush")?;
    let limit = Duration::from_secs(10);
    let small = minimise(&Forgetful, &found.trial, &found.failure, limit, &mut |_| {}).found;
    println!("{}", report::text(&Forgetful, &small.trial, &small.failure, None));
    assert_eq!(small.failure.violation.property, Property::P1, "what was flushed is there");
    Ok(())
}
