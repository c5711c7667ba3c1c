//! Would it have been noticed?
//!
//! Goal: the litmus table and the brute force can fail, each rule of the disk being the reason of some failure. Method:
//! one deliberate defect at a time; each must be killed, by name, and the table of who killed it is printed.

use faultfs::Defect;

use super::turn::share;
use super::{PARTS, brute, damage, dropped, litmus, views};

#[test]
fn every_defect_is_noticed() {
    let mut survivors = Vec::new();
    println!("{:<26} {:<38} brute force, views", "defect", "litmus, dropped, damage");
    for defect in share(Defect::ALL.into_iter(), PARTS) {
        let by_table = litmus::first_failure(defect);
        let by_table = by_table.or_else(|| damage::first_failure(defect));
        let by_table = by_table.or_else(|| dropped::first_failure(defect));
        // The long programs are for what nothing else has noticed.
        let longest = if by_table.is_some() { 2 } else { 3 };
        let by_brute = brute::first_failure(defect, longest);
        let noticed = by_table.is_some() || by_brute.is_some();
        let by_brute = match noticed {
            true => by_brute,
            false => views::changes(Some(defect), &mut 0),
        };
        println!(
            "{:<26} {:<38} {}",
            format!("{defect:?}"),
            by_table.unwrap_or("-"),
            by_brute.as_deref().unwrap_or("-")
        );
        if by_table.is_none() && by_brute.is_none() {
            survivors.push(defect);
        }
    }
    assert_eq!(survivors, [], "nobody noticed");
}
