//! The same with plain calls.

use super::line::By::{Nothing, Test};
use super::line::lines;
use super::tests::{
    BACKING, BLOCKING, COST, HEAP, IMAGE, LAYERS, PREALLOCATE, RARE, REFUSED, SEPARATE, SHRINK,
    WRITE_COMPRESSED,
};

lines! {
    "storage::block_on::block_on()" {
        "ready at once" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
        "waits for another thread" [Test(RARE, "threads_may_share_a_unit")];
    }
    "blocking::create()" {
        "any" [Test(IMAGE, "reads_back_what_was_written")];
    }
    "blocking::check()" {
        "any" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
    }
    "blocking::Image::open()" {
        "any" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
    }
    "blocking::Image::info()" {
        "any" [Test(IMAGE, "an_abandoned_lazy_image_is_repaired_when_opened")];
    }
    "blocking::Image::work()" {
        "any" [Test(COST, "requests_enter_the_lock_a_few_times")];
    }
    "blocking::Image::read()" {
        "any byte, any length" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
        "past the end" [Test(REFUSED, "plain_calls_that_do_not_fit_are_refused_by_name")];
    }
    "blocking::Image::write()" {
        "any byte, any length" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
        "within one unit, by several threads" [Test(RARE, "threads_may_share_a_unit")];
        "past the end" [Test(REFUSED, "plain_calls_that_do_not_fit_are_refused_by_name")];
    }
    "blocking::Image::write_compressed()" {
        "any byte, any length" [
            Test(WRITE_COMPRESSED, "what_is_written_compressed_reads_back"),
        ];
        "past the end" [Test(REFUSED, "plain_calls_that_do_not_fit_are_refused_by_name")];
    }
    "blocking::Image::write_zeroes()" {
        "any byte, any length" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
        "past the end" [Test(REFUSED, "plain_calls_that_do_not_fit_are_refused_by_name")];
    }
    "blocking::Image::discard()" {
        "any byte, any length" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
        "past the end" [Test(REFUSED, "plain_calls_that_do_not_fit_are_refused_by_name")];
    }
    "blocking::Image::separate()" {
        "of everything" [Test(SEPARATE, "shared_clusters_are_separated")];
    }
    "blocking::Image::uncover()" {
        "any byte, any length" [
            Test(LAYERS, "the_guest_reads_the_layer_where_the_image_says_nothing"),
        ];
        "past the end" [Test(REFUSED, "plain_calls_that_do_not_fit_are_refused_by_name")];
    }
    "blocking::Image::preallocate()" {
        "any byte, any length" [
            Test(PREALLOCATE, "taking_clusters_ahead_changes_nothing_that_is_read"),
        ];
        "past the end" [Test(PREALLOCATE, "the_space_of_growth_is_taken")];
    }
    "blocking::Image::copy_up()" {
        "all of a disk" [Test(BACKING, "an_image_becomes_one_of_its_own")];
    }
    "blocking::Image::set_backing()" {
        "any" [Test(BACKING, "an_image_comes_to_name_another_layer")];
    }
    "blocking::Image::grow()" {
        "with requests before and after" [Test(IMAGE, "reads_back_what_was_written")];
        "under power cuts" [
            Nothing("it is one call of Image::grow, which exploration cuts everywhere"),
        ];
    }
    "blocking::Image::shrink()" {
        "with requests before and after" [Test(SHRINK, "what_is_cut_off_does_not_come_back")];
        "under power cuts" [
            Nothing("it is one call of Image::shrink, which exploration cuts everywhere"),
        ];
    }
    "blocking::Image::flush()" {
        "any" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
    }
    "blocking::Image::close()" {
        "any" [Test(BLOCKING, "blocking_calls_survive_power_cuts")];
    }
    "blocking::SPARE_BYTES" {
        "a request of that length or less" [Test(HEAP, "plain_calls_take_nothing_from_the_heap")];
        "a longer one" [
            Test(BLOCKING, "blocking_calls_survive_power_cuts"),
            Test(IMAGE, "rebuilding_keeps_the_data"),
        ];
    }
    "blocking::MOST_SPARE" {
        "fewer calls at once" [Test(RARE, "threads_may_share_a_unit")];
        "more calls at once" [
            Nothing("the seventeenth buffer is given back to the heap: it would show in memory only"),
        ];
    }
}
