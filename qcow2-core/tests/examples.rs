//! Each example does what it says: it is compiled and run.

#[path = "../examples/blocking.rs"]
mod blocking;
#[path = "../examples/front_end.rs"]
mod front_end;
#[path = "../examples/layers.rs"]
mod layers;
#[path = "../examples/many_at_once.rs"]
mod many_at_once;
#[path = "../examples/own_storage.rs"]
mod own_storage;
#[path = "../examples/recover.rs"]
mod recover;

use std::error::Error;

#[test]
fn blocking() -> Result<(), Box<dyn Error>> {
    blocking::main()
}

#[test]
fn front_end() -> Result<(), Box<dyn Error>> {
    front_end::main()
}

#[test]
fn layers() -> Result<(), Box<dyn Error>> {
    layers::main()
}

#[test]
fn many_at_once() -> Result<(), Box<dyn Error>> {
    many_at_once::main()
}

#[test]
fn own_storage() -> Result<(), Box<dyn Error>> {
    own_storage::main()
}

#[test]
fn recover() -> Result<(), Box<dyn Error>> {
    recover::main()
}

/// Goal: no example is left out. Method: the folder.
#[test]
fn every_example_is_run() -> Result<(), Box<dyn Error>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.file_name().into_string().expect("file names are text"));
    }
    names.sort();
    let run = [
        "blocking.rs",
        "front_end.rs",
        "layers.rs",
        "many_at_once.rs",
        "own_storage.rs",
        "recover.rs",
    ];
    assert_eq!(names, run);
    Ok(())
}
