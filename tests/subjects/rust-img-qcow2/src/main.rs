//! Campaigns on rust-img-qcow2: the harness of the workspace, with another subject.

use std::process::ExitCode;

use qcow2_crashtest::blocking::Blocking;
use qcow2_crashtest::console::outsider;
use qcow2_crashtest_rust_img_qcow2::RustImg;

fn main() -> ExitCode {
    let form = |contents| Blocking(RustImg { contents });
    outsider::main(form(false), form(true))
}
