//! Campaigns on qcow2-rs: the harness of the workspace, with another subject.

use std::process::ExitCode;

use qcow2_crashtest::blocking::Blocking;
use qcow2_crashtest::console::outsider;
use qcow2_crashtest_qcow2_rs::Qcow2Rs;

fn main() -> ExitCode {
    let form = |contents| Blocking(Qcow2Rs { contents });
    outsider::main(form(false), form(true))
}
