//! The examples do what they say: whole they lose nothing, and without one flush they are caught.

#[path = "../examples/page_store.rs"]
mod page_store;
#[path = "../examples/write_ahead_log.rs"]
mod write_ahead_log;

use page_store::Missing;

#[test]
fn a_log_loses_nothing_and_is_caught_without_its_flush() {
    write_ahead_log::main();
    assert!(write_ahead_log::explore(true).expect("nothing is lost") > 100);
    let why = write_ahead_log::explore(false).expect_err("a record is acknowledged too early");
    assert!(why.contains("were safe"), "{why}");
    write_ahead_log::sample(true, 2, 500).expect("nothing is lost");
    write_ahead_log::sample(false, 2, 500).expect_err("it is seldom missed at random either");
}

#[test]
fn a_page_store_loses_nothing_and_is_caught_without_either_flush() {
    page_store::main();
    assert!(page_store::explore(Missing::Nothing).expect("nothing is lost") > 30);
    page_store::sample(Missing::Nothing, 2, 500).expect("nothing is lost");
    for missing in [Missing::PageBeforeRoot, Missing::RootBeforeReuse] {
        let why = page_store::explore(missing).expect_err("a root is there too early");
        assert!(why.contains("is none of"), "{why}");
        page_store::sample(missing, 2, 500).expect_err("it is seldom missed at random either");
    }
}
