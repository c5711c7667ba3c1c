//! Campaigns on qcow2-rs: the harness of the workspace, with another subject.

use std::process::ExitCode;

use qcow2_crashtest::console::outsider;
use qcow2_crashtest_qcow2_rs::Qcow2Rs;

fn main() -> ExitCode {
    outsider::main(Qcow2Rs { contents: false }, Qcow2Rs { contents: true })
}
