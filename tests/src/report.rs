//! One failure, told to a person.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use model::case::Step;
use model::op::{Durability, Op};

use crate::campaign::initial_name;
use crate::recover::{Failure, name};
use crate::trial::{At, Outcome, Trial};

/// The report of a failed trial.
pub fn text(trial: &Trial, outcome: &Outcome, failure: &Failure) -> String {
    let mut out = String::new();
    let _ = write_report(&mut out, trial, outcome, failure);
    out
}

fn write_report(
    out: &mut String,
    trial: &Trial,
    outcome: &Outcome,
    failure: &Failure,
) -> std::fmt::Result {
    let geometry = &trial.geometry;
    writeln!(out, "{}", failure.violation)?;
    writeln!(out, "seen {}", failure.moment)?;
    writeln!(
        out,
        "\nimage: {}, {} bytes in clusters of {}, {} refcounts; device profile {}",
        initial_name(trial.initial),
        geometry.virtual_size,
        geometry.cluster_size(),
        if geometry.lazy_refcounts { "lazy" } else { "eager" },
        trial.profile,
    )?;
    for (number, (life, record)) in trial.lives.iter().zip(&outcome.lives).enumerate() {
        writeln!(out, "\nlife {number}")?;
        for (task, ops) in life.tasks.iter().enumerate() {
            for (index, op) in ops.iter().enumerate() {
                writeln!(out, "  task {task} op {index}: {}", describe(op))?;
            }
        }
        for fault in &life.faults.0 {
            writeln!(out, "  fault: {:?} at {:?}", fault.fault, fault.at)?;
        }
        if let Some(dropped) = life.dropped {
            let (task, op, ios) = (dropped.task, dropped.op, dropped.after_ios);
            writeln!(out, "  dropped: task {task} op {op} after its I/O {ios}")?;
        }
        writeln!(out, "  storage:")?;
        let place = |offset: u64| {
            let unit = u32::try_from(offset / 512).unwrap_or(u32::MAX);
            (record.places)(unit).to_string()
        };
        let shown = ["write", "discard", "set-len", "flush", "complete", "fail"];
        let mut reads = BTreeSet::new();
        for line in record.trace.dump(place).lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, verb @ ("submit" | "complete" | "fail"), io, rest @ ..] = &words[..] else {
                continue;
            };
            if *verb == "submit"
                && rest
                    .first()
                    .is_none_or(|kind| !shown.contains(kind) && !kind.starts_with("write"))
            {
                reads.insert((*io).to_owned());
            }
            if !reads.contains(*io) {
                writeln!(out, "    {verb:<8} {io:<4} {}", rest.join(" "))?;
            }
        }
        match life.at {
            At::Event(event) => writeln!(out, "  power cut after event {event}")?,
            At::End => writeln!(out, "  power cut when all was done")?,
        }
        let (mut kept, mut lost) = (Vec::new(), Vec::new());
        for (answer, label) in record.answers.iter().zip(&record.labels) {
            if answer.unit.is_some() {
                let list = if answer.taken == 0 { &mut kept } else { &mut lost };
                list.push(label.to_string());
            }
        }
        if !kept.is_empty() {
            writeln!(out, "  kept: {}", kept.join(" "))?;
        }
        if !lost.is_empty() {
            writeln!(out, "  lost: {}", lost.join(" "))?;
        }
        for step in &life.steps {
            match step.crash_at {
                None => writeln!(out, "  recovery: {}", name(step.run))?,
                Some(at) => {
                    let what = name(step.run);
                    writeln!(out, "  recovery: {what}, power cut at its update or flush {at}")?;
                }
            }
        }
        writeln!(out, "  recovery: {}", name(Step::Open))?;
    }
    Ok(())
}

fn describe(op: &Op) -> String {
    match *op {
        Op::Write { offset, length, id, durability } => {
            let through = if durability == Durability::Through { ", through" } else { "" };
            format!("write {length} bytes at {offset:#x} (id {id}{through})")
        }
        Op::WriteZeroes { offset, length, unmap } => {
            let how = if unmap { ", clusters freed" } else { "" };
            format!("zero {length} bytes at {offset:#x}{how}")
        }
        Op::Discard { offset, length } => format!("discard {length} bytes at {offset:#x}"),
        Op::Read { offset, length } => format!("read {length} bytes at {offset:#x}"),
        Op::Flush => "flush".to_owned(),
        Op::Grow { to } => format!("grow the disk to {to} bytes"),
        Op::Reopen => "close and reopen".to_owned(),
    }
}
