//! What reports and logs call the requests of a guest.

use model::op::{Durability, Op, Preallocation};
use model::payload::{has_zeroes, number};

/// A request in words.
pub(super) fn describe(op: &Op) -> String {
    match *op {
        Op::Write { offset, length, id, durability } => {
            let through = if durability == Durability::Through { ", through" } else { "" };
            let zeroes = if has_zeroes(id) { ", some of them zeroes" } else { "" };
            format!("write {length} bytes at {offset:#x} (id {}{zeroes}{through})", number(id))
        }
        Op::WriteCompressed { offset, length, id } => {
            let zeroes = if has_zeroes(id) { ", some of them zeroes" } else { "" };
            format!("write {length} bytes at {offset:#x} (id {}{zeroes}), compressed", number(id))
        }
        Op::WriteZeroes { offset, length, unmap } => {
            let how = if unmap { ", clusters freed" } else { "" };
            format!("zero {length} bytes at {offset:#x}{how}")
        }
        Op::Discard { offset, length } => format!("discard {length} bytes at {offset:#x}"),
        Op::Uncover { offset, length } => format!("uncover {length} bytes at {offset:#x}"),
        Op::Preallocate { offset, length, how } => {
            let how = match how {
                Preallocation::Metadata => "clusters",
                Preallocation::Falloc => "clusters and their space",
                Preallocation::Full => "clusters full of zeroes",
            };
            format!("take {how} for {length} bytes at {offset:#x}")
        }
        Op::Read { offset, length } => format!("read {length} bytes at {offset:#x}"),
        Op::Flush => "flush".to_owned(),
        Op::AddPassphrase { id } => format!("add passphrase {id}"),
        Op::RemovePassphrase { id } => format!("remove passphrase {id}"),
        Op::Grow { to } => format!("grow the disk to {to} bytes"),
        Op::Shrink { to } => format!("shrink the disk to {to} bytes"),
        Op::Reopen => "close and reopen".to_owned(),
    }
}
