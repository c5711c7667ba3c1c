//! Why the possible disk may be trusted.
//!
//! Goal: what [`faultfs::disk::PossibleDisk`] allows is exactly what the device rules allow, no state more and none
//! less. Method: the same small programs go several ways.
//!
//! - `litmus`: programs of a few operations with their outcomes written down by hand.
//! - `brute`: every program over small alphabets, compared with `naive`, an enumerator that keeps the whole history of
//!   a life, applies the rules to it literally and shares no code with the disk. The profiles are held to their order.
//! - `dropped`: operations whose future is dropped, on the executor too.
//! - `asked`: which choices are offered, and when.
//! - `damage`: what the robustness profiles add, again with every outcome written down.
//! - `views`: what a judge sees without deciding anything is what deciding would have found.
//! - `mutants`: the disk with one deliberate defect at a time; each must be noticed by the litmus table, by brute
//!   force, by the tables of damage and of what was dropped, or by the views.

mod asked;
mod brute;
mod damage;
mod dropped;
mod litmus;
mod mutants;
mod naive;
mod program;
#[path = "../../../tests/build/turn.rs"]
mod turn;
mod views;

/// Parts of what is compared. No alphabet has a multiple of that many symbols, or all programs of a part would begin alike.
const PARTS: usize = 19;
