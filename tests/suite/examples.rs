//! Each example does what it says: it is compiled and run.

use std::error::Error;

#[path = "../examples/own_subject.rs"]
mod own_subject;

#[test]
#[cfg_attr(not(turn = "8"), ignore = "its turn is at another commit; CI=1 runs all")]
fn own_subject() -> Result<(), Box<dyn Error>> {
    own_subject::main()
}
