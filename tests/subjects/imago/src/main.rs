//! Campaigns on imago: the harness of the workspace, with another subject.

use std::process::ExitCode;

use qcow2_crashtest::console::outsider;
use qcow2_crashtest_imago::Imago;

fn main() -> ExitCode {
    outsider::main(Imago::Full, Imago::Contents)
}
