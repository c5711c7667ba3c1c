//! Would it have been noticed?
//!
//! Goal: the litmus table and the brute force can fail, each rule of the disk being the reason of some failure. Method:
//! one deliberate defect at a time; each must be killed, by name, and the table of who killed it is printed.

use faultfs::Defect;

use super::{brute, damage, litmus};

#[test]
fn every_defect_is_noticed() {
    let mut survivors = Vec::new();
    println!("{:<26} {:<38} brute force", "defect", "litmus");
    for defect in Defect::ALL {
        let by_litmus = litmus::first_failure(defect);
        let by_litmus = by_litmus.or_else(|| damage::first_failure(defect));
        let by_brute = brute::first_failure(defect);
        println!(
            "{:<26} {:<38} {}",
            format!("{defect:?}"),
            by_litmus.unwrap_or("-"),
            by_brute.as_deref().unwrap_or("-")
        );
        if by_litmus.is_none() && by_brute.is_none() {
            survivors.push(defect);
        }
    }
    assert_eq!(survivors, [], "nobody noticed");
}
