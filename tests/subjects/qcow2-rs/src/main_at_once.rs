//! Campaigns on qcow2-rs with requests at once.

use std::process::ExitCode;

use qcow2_crashtest::console::outsider;
use qcow2_crashtest_qcow2_rs::at_once::AtOnce;

fn main() -> ExitCode {
    outsider::main(AtOnce { contents: false }, AtOnce { contents: true })
}
