//! What a run may say was shown: certificates are cited for what they are of, and what they say was judged can be found.

use model::build::Initial;
use model::finding::Property;
use model::guest::Promises;
use model::image::Mapping;
use model::judge::{Extent, Statement};
use model::op::{Durability, Geometry};
use qcow2_core::Image;
use qcow2_core::storage::{self, AnyStorage, IoBuf, Storage as _};
use qcow2_crashtest::capabilities::Capabilities;
use qcow2_crashtest::explore::alphabet::{Symbol, World, worlds};
use qcow2_crashtest::explore::certificate::{Certificate, judged};
use qcow2_crashtest::explore::{self, AtOnce, ExploreReport, ExploreSettings};
use qcow2_crashtest::figures::Figures;
use qcow2_crashtest::ledger::{Cited, table};
use qcow2_crashtest::subject::{Duties, Qcow2Core, Refusal, Session, Subject, SubjectImage};

/// A second subject: the implementation under another name, with a mistake of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Second {
    /// None, and it says which source it is of.
    Known,
    /// None, and it does not say that.
    Unknown,
    /// Says of every mapping that there is none.
    MapsWrong,
    /// Does not grow, and says that it did.
    StaysSmall,
    /// Writes the header in each repair.
    Restless,
    /// None, is held to what its guest sees, and can neither repair nor change a size.
    Plain,
}

struct SecondImage {
    image: Image<AnyStorage>,
    how: Second,
}

impl Subject for Second {
    type Image = SecondImage;

    fn name(&self) -> String {
        "second".to_owned()
    }

    fn key(&self) -> &'static str {
        "second"
    }

    fn source(&self) -> Option<Vec<(String, String)>> {
        (*self == Self::Known).then(|| vec![("second".to_owned(), "1.0".to_owned())])
    }

    fn duties(&self) -> Duties {
        Duties { structure: *self != Self::Plain, ..Duties::default() }
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::plain();
        if *self == Self::Plain {
            (can.repair, can.grow, can.shrink) = (false, false, false);
        }
        can
    }

    fn promises(&self, geometry: &Geometry, session: &Session) -> Promises {
        Qcow2Core::default().promises(geometry, session)
    }

    async fn open(&self, storage: AnyStorage, session: Session) -> Result<SecondImage, Refusal> {
        let image = Qcow2Core::default().open(storage, session).await?;
        Ok(SecondImage { image, how: *self })
    }

    async fn repair(&self, storage: AnyStorage) -> Result<Statement, Refusal> {
        if *self == Self::Restless {
            let failed = |error: std::io::Error| Refusal::Failed(error.to_string());
            let (header, read) = storage.read(0, IoBuf::zeroed(512, 512)).await;
            read.map_err(failed)?;
            storage.write(0, header, storage::Durability::Through).await.1.map_err(failed)?;
        }
        Qcow2Core::default().repair(storage).await
    }
}

impl SubjectImage for SecondImage {
    fn size(&self) -> u64 {
        SubjectImage::size(&self.image)
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, String> {
        SubjectImage::read(&self.image, offset, buf).await
    }

    async fn write(&self, offset: u64, data: IoBuf, durability: Durability) -> Result<(), String> {
        SubjectImage::write(&self.image, offset, data, durability).await
    }

    async fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        SubjectImage::write_zeroes(&self.image, offset, length, unmap).await
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<(), String> {
        SubjectImage::discard(&self.image, offset, length).await
    }

    async fn flush(&self) -> Result<(), String> {
        SubjectImage::flush(&self.image).await
    }

    async fn grow(&self, size: u64) -> Result<(), String> {
        if self.how == Second::StaysSmall {
            return Ok(());
        }
        SubjectImage::grow(&self.image, size).await
    }

    async fn map(&self) -> Result<Vec<Extent>, String> {
        let mut map = SubjectImage::map(&self.image).await?;
        if self.how == Second::MapsWrong {
            map.iter_mut().for_each(|extent| extent.to = Mapping::Zero);
        }
        Ok(map)
    }

    async fn close(self) -> Result<(), String> {
        SubjectImage::close(self.image).await
    }
}

fn explored<Sub: Subject>(subject: &Sub, worlds: Vec<World>) -> (ExploreSettings, ExploreReport) {
    let settings = ExploreSettings::new(worlds, 1);
    let report = explore::run(subject, &settings, |_, _, _, _| {});
    (settings, report)
}

fn certificate<Sub: Subject>(subject: &Sub) -> Certificate {
    let (settings, report) = explored(subject, worlds(&[1024], &[false], &[Initial::Fresh]));
    assert!(report.complete && report.found.is_none());
    Certificate::new(subject, &settings, &report)
}

const ALL: [Property; 11] = [
    Property::P0,
    Property::P1,
    Property::P2,
    Property::P3,
    Property::P4,
    Property::P5,
    Property::P6,
    Property::P7,
    Property::P8,
    Property::P9,
    Property::P10,
];

/// What is exhaustive, and the ledger, of a run under a profile.
fn ledger<Sub: Subject>(
    kept: &[Certificate],
    subject: &Sub,
    profile: &str,
) -> (Vec<Property>, String) {
    let cited = Cited::of(kept.to_vec(), subject, profile);
    let exhaustive = ALL.into_iter().filter(|property| cited.is_exhaustive(*property));
    (exhaustive.collect(), table(&Figures::default(), &cited))
}

/// Goal: a run cites what is of its own subject, rules, profile and source, and nothing else. Method: certificates of two subjects, and
/// one of another source, under runs that differ in one of these each.
#[test]
fn a_certificate_is_cited_for_what_it_is_of() {
    let core = Qcow2Core::default();
    let kept = [certificate(&core), certificate(&Second::Known)];
    let all_but_two = || {
        ALL.into_iter().filter(|it| !matches!(it, Property::P7 | Property::P9)).collect::<Vec<_>>()
    };
    // Who encrypts nothing is not judged by that.
    for ((exhaustive, text), missing) in [
        (ledger(&kept, &core, "torn-length"), "not exhaustive: P7, P9, P-cipher, I/O that fails"),
        (ledger(&kept, &Second::Known, "torn-length"), "not exhaustive: P7, P9, I/O that fails"),
    ] {
        assert_eq!(exhaustive, all_but_two());
        assert_eq!(
            text.matches("  exhaustive: workloads of up to 1 requests").count(),
            1,
            "{text}"
        );
        assert!(text.contains(missing), "{text}");
        assert!(!text.contains("not counted"), "{text}");
    }

    let broken = Qcow2Core::without(["refcount-before-reference"]).expect("it is a rule");
    let mutant = Qcow2Core::without(["mutant:close-forgets-freed"]).expect("it is a mutant");
    for (exhaustive, text) in [
        ledger(&kept, &core, "kill"),
        ledger(&kept, &broken, "torn-length"),
        ledger(&kept, &mutant, "torn-length"),
        ledger(&[], &core, "torn-length"),
    ] {
        assert_eq!(exhaustive, []);
        assert!(text.contains("  exhaustive: nothing; no certificate is of "), "{text}");
        assert!(!text.contains("exhaustive (below)") && !text.contains("not counted"), "{text}");
    }

    let mut older = kept[0].clone();
    let part = older.source.iter_mut().find(|(name, _)| name == "model").expect("it is a crate");
    part.1 = "of before".to_owned();
    let (exhaustive, text) = ledger(&[older], &core, "torn-length");
    assert_eq!(exhaustive, []);
    assert!(text.contains("not counted, of another source of model: workloads of"), "{text}");

    let (_, text) = ledger(&kept, &Second::Plain, "torn-length");
    let not_judged = text.lines().filter(|line| line.ends_with("not judged, or not asked for"));
    let names: Vec<_> = not_judged.filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["P4", "P5", "P6", "P9", "P10", "P-cipher"], "{text}");

    let (exhaustive, text) = ledger(&kept, &Second::Unknown, "torn-length");
    assert_eq!(exhaustive, []);
    assert!(text.contains("not counted, the subject does not say which source it is of"), "{text}");
}

/// Goal: what a certificate says was judged, was. Method: for each of these properties somebody whom exploring requests finds to break
/// it; and who is not held to something, or is not asked for it, was not judged by it.
#[test]
fn what_a_certificate_says_was_judged_can_be_found() {
    let images = [Initial::Fresh, Initial::Dirty, Initial::Fragmented, Initial::L1AboutToGrow];
    let found =
        |report: ExploreReport| report.found.expect("it is wrong").failure.violation.property;
    let mut seen = Vec::new();
    for mutant in [
        "mutant:fresh-off-by-one",
        "mutant:in-place-write-unstamped",
        "mutant:l1-copy-one-short",
        "mutant:last-cluster-uncounted",
        "mutant:count-never-lowered",
        "mutant:l1-one-entry-short",
    ] {
        let subject = Qcow2Core::without([mutant]).expect("it is a mutant");
        seen.push(found(explored(&subject, worlds(&[1024], &[false, true], &images)).1));
    }
    for second in [Second::MapsWrong, Second::StaysSmall, Second::Restless] {
        seen.push(found(explored(&second, worlds(&[1024], &[false, true], &images)).1));
    }
    seen.sort();
    seen.dedup();
    let (all, plain) = (Duties::default(), Capabilities::plain());
    let of = |letters: &[Symbol]| ExploreSettings {
        alphabet: letters.to_vec(),
        ..ExploreSettings::new(Vec::new(), 1)
    };
    let at_once = |letters: &[Symbol]| ExploreSettings {
        at_once: Some(AtOnce::Races { delays: 1 }),
        ..of(letters)
    };
    assert_eq!(seen, judged(&all, &plain, &of(&Symbol::ALL)));

    let contents = Duties { structure: false, ..all };
    let mut unrepaired = plain;
    unrepaired.repair = false;
    let of_contents = [Property::P0, Property::P1, Property::P2, Property::P3, Property::P8];
    let letters = [Symbol::WriteA, Symbol::Reopen];
    assert_eq!(judged(&contents, &unrepaired, &of(&letters)), of_contents);
    // At once, nothing is closed, and nothing read but by a request. Without power cuts in it, nothing is known of a repair cut short.
    let asked = |settings: &_| {
        let judged = judged(&all, &plain, settings);
        [Property::P0, Property::P5, Property::P6].map(|property| judged.contains(&property))
    };
    assert_eq!(asked(&at_once(&Symbol::ALL)), [false, true, false]);
    assert_eq!(asked(&at_once(&Symbol::RACING)), [true, true, false]);
    assert_eq!(asked(&ExploreSettings { depth: 0, ..of(&Symbol::ALL) }), [true, false, true]);
    let leaking = Duties { closes_without_leaks: false, ..all };
    assert!(!judged(&leaking, &plain, &of(&Symbol::ALL)).contains(&Property::P6));
    // What changes wholly or not at all: a size, and passphrases.
    let wholly = |letters| judged(&contents, &plain, &of(letters)).contains(&Property::P10);
    assert_eq!(
        [&[Symbol::Grow][..], &Symbol::PASSPHRASES, &[Symbol::WriteA]].map(wholly),
        [true, true, false]
    );
}
