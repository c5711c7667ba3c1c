//! One image for each reason that ours and QEMU's check have to think differently, kept in `corpus/differences`.
//!
//! ```text
//!   mutants ──differs for a reason that none is kept for──> without what the difference does not need ──> NAME.json
//! ```
//!
//! A file says what was done to an image that QEMU made, what both checks think of it, and every 512 bytes of it that are not zero.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use qcow2_crashtest::corpus;
use qcow2_crashtest::qemu;
use serde::{Deserialize, Serialize};

use super::changes::{Change, Mutant};
use super::difference::{Difference, Opinions, Verdict};
use super::seeds::{Seed, number, seeds};
use super::setting;
use crate::common::memory_directory;

/// Bytes of a unit.
const UNIT: usize = 512;

/// An image of which the two checks think differently.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    difference: Difference,
    /// What was done to which image.
    what: String,
    /// Which QEMU says so.
    qemu_version: String,
    ours: Verdict,
    qemu: Verdict,
    /// What ours says of it: what it found, or why it looked for nothing.
    findings: Vec<String>,
    /// Bytes.
    length: usize,
    /// Bytes in hexadecimal of units of 512 that are not zero, by their offset, without the zeroes at their end.
    units: BTreeMap<usize, String>,
}

impl Kept {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        for (&at, hex) in &self.units {
            for (index, digits) in hex.as_bytes().chunks(2).enumerate() {
                let digits = str::from_utf8(digits).unwrap();
                bytes[at + index] = u8::from_str_radix(digits, 16).unwrap();
            }
        }
        bytes
    }
}

fn units(bytes: &[u8]) -> BTreeMap<usize, String> {
    let units = (0..).step_by(UNIT).zip(bytes.chunks(UNIT));
    let hex = units.filter_map(|(at, unit)| {
        let last = unit.iter().rposition(|&byte| byte != 0)?;
        Some((at, unit[..=last].iter().map(|byte| format!("{byte:02x}")).collect()))
    });
    hex.collect()
}

/// The image without what the difference does not need: other changes, and every unit whose zeroes leave it as it is and bring nothing
/// new.
fn least(mutant: &Mutant<'_>, difference: Difference) -> (String, Vec<u8>) {
    let directory = memory_directory();
    let path = directory.path().join("less.qcow2");
    let whole = Opinions::of(&mutant.bytes(), &path);
    let same = |bytes: &[u8]| {
        let opinions = Opinions::of(bytes, &path);
        opinions.difference() == Ok(Some(difference))
            && opinions.verdicts() == whole.verdicts()
            && opinions.findings().len() <= whole.findings().len()
    };
    let mut changes: Vec<Change> = mutant.changes.clone();
    let with = |changes: &[Change]| Mutant {
        number: mutant.number,
        seed: mutant.seed,
        changes: changes.to_vec(),
    };
    for index in (0..changes.len()).rev() {
        let mut fewer = changes.clone();
        fewer.remove(index);
        if same(&with(&fewer).bytes()) {
            changes = fewer;
        }
    }
    let what = with(&changes).to_string();
    let mut bytes = with(&changes).bytes();
    for at in (UNIT..bytes.len()).step_by(UNIT) {
        let end = bytes.len().min(at + UNIT);
        if bytes[at..end].iter().any(|&byte| byte != 0) {
            let unit = bytes[at..end].to_vec();
            bytes[at..end].fill(0);
            if !same(&bytes) {
                bytes[at..end].copy_from_slice(&unit);
            }
        }
    }
    (what, bytes)
}

/// What QEMU says of itself: `qemu-img version 10.0.2 (..)`.
fn version() -> String {
    let said = qemu::img(["--version"]).unwrap().stdout;
    said.lines().next().unwrap_or_default().to_owned()
}

/// Whether QEMU needs no other file to open it.
fn stands_alone(seed: &Seed) -> bool {
    const DATA_FILE: u64 = 1 << 2;
    number(&seed.bytes, 8, 8) == 0 && number(&seed.bytes, 72, 8) & DATA_FILE == 0
}

/// Looks for an image for each reason that has none, among so many mutants.
fn keep(mutants: u64) {
    let seeds = seeds();
    let directory = memory_directory();
    let path = directory.path().join("mutant.qcow2");
    for mutant in (0..mutants).map(|number| Mutant::new(&seeds.images, 0, number)) {
        if !stands_alone(mutant.seed) {
            continue;
        }
        let opinions = Opinions::of(&mutant.bytes(), &path);
        if let Ok(Some(difference)) = opinions.difference()
            && !file_of(difference).exists()
        {
            let (what, bytes) = least(&mutant, difference);
            let opinions = Opinions::of(&bytes, &path);
            let [ours, qemu] = opinions.verdicts();
            let kept = Kept {
                difference,
                what,
                qemu_version: version(),
                ours,
                qemu,
                findings: opinions.findings(),
                length: bytes.len(),
                units: units(&bytes),
            };
            let text = serde_json::to_string_pretty(&kept).unwrap() + "\n";
            fs::write(file_of(difference), text).unwrap();
        }
    }
}

fn file_of(difference: Difference) -> PathBuf {
    let name = serde_json::to_value(difference).unwrap();
    corpus::folder().join("differences").join(format!("{}.json", name.as_str().unwrap()))
}

/// Goal: for each reason that the two checks have to think differently there is an image of which they do, and no other file lies there.
/// Method: both check what is kept. `DIFFERENCES=N` looks among so many mutants for those that have none.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
fn every_difference_is_kept() {
    if let Some(mutants) = setting("DIFFERENCES") {
        keep(mutants);
    }
    let directory = memory_directory();
    let path = directory.path().join("kept.qcow2");
    for difference in Difference::ALL {
        let file = file_of(difference);
        let text =
            fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let kept: Kept = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let opinions = Opinions::of(&kept.bytes(), &path);
        let said = (opinions.difference(), opinions.verdicts(), opinions.findings());
        let expected = (Ok(Some(kept.difference)), [kept.ours, kept.qemu], kept.findings);
        assert_eq!(said, expected, "{}, with QEMU {}", file.display(), version());
        assert_eq!(kept.difference, difference, "{}", file.display());
    }
    let files = fs::read_dir(file_of(Difference::ALL[0]).parent().unwrap()).unwrap();
    assert_eq!(files.count(), Difference::ALL.len());
}
