//! Layers below an image.

use qcow2_crashtest::workload::Shape;

use super::line::By::{Plans, Shape as Shaped, Test};
use super::line::lines;
use super::tests::{COST, INTEROP, LAYERS};

lines! {
    "Backing::of()" {
        "an image that names one, and one that does not" [
            Test(LAYERS, "a_chain_is_read_from_the_top_down"),
        ];
    }
    "Backing::new()" {
        "both formats" [Test(LAYERS, "a_chain_is_read_from_the_top_down")];
    }
    "Backing.name" {
        "as long as fits, and longer" [Test(LAYERS, "what_a_policy_does_not_allow_is_not_opened")];
        "empty" [Test(LAYERS, "a_layer_has_a_name")];
    }
    "Backing.format" {
        "said, unknown, not said" [Test(LAYERS, "what_a_policy_does_not_allow_is_not_opened")];
    }
    "Format::Raw" {
        "below" [Shaped(Shape::Layered), Test(INTEROP, "layers_go_both_ways")] P0 P1 P2 P3;
    }
    "Format::Qcow2" {
        "below" [
            Test(LAYERS, "a_chain_is_read_from_the_top_down"),
            Test(INTEROP, "layers_go_both_ways"),
        ];
    }
    "Format::name()" {
        "both" [Test(INTEROP, "layers_go_both_ways")];
    }
    "Image::open_over()" {
        "a layer that is shorter" [
            Plans(20, |plan| plan.geometry.below.is_some_and(|below| below < plan.geometry.virtual_size)),
        ] P0 P1 P2 P3;
        "longer" [
            Plans(20, |plan| plan.geometry.below.is_some_and(|below| below > plan.geometry.virtual_size)),
        ] P0 P1 P2 P10;
        "that ends inside a cluster" [
            Plans(20, |plan| {
                let cluster = plan.geometry.cluster_size();
                plan.geometry.below.is_some_and(|below| !below.is_multiple_of(cluster))
            }),
        ] P0 P2;
        "of an image of version 2" [
            Plans(5, |plan| plan.geometry.below.is_some() && plan.geometry.version == 2),
        ] P0 P1 P2;
        "that ends inside a unit, or is empty" [
            Test(LAYERS, "the_guest_reads_the_layer_where_the_image_says_nothing"),
        ];
        "an image that names none" [
            Test(LAYERS, "an_image_over_a_layer_is_not_opened_without_it_and_no_other_one_with_it"),
        ];
    }
    "Image::below()" {
        "there" [Test(LAYERS, "a_read_map_says_where_the_layer_shows")];
    }
    "Layer::size()" {
        "of a raw disk and of an image" [Test(LAYERS, "a_chain_is_read_from_the_top_down")];
    }
    "Layer::read()" {
        "all of what is inside" [Shaped(Shape::Layered)] P0 P1 P2;
        "none of what is behind the end" [Test(LAYERS, "a_layer_that_is_an_image_may_be_shorter")];
        "on sectors that are longer" [Test(LAYERS, "a_layer_has_sectors_of_its_own")];
        "fails" [
            Test(LAYERS, "a_layer_that_fails_fails_what_needs_it"),
            Test(LAYERS, "an_error_says_how_deep_it_is"),
        ];
    }
    "Layer::below()" {
        "there, and at the end" [Test(LAYERS, "a_chain_reads_as_its_layers_say")];
    }
    "Layer::read_own()" {
        "of an image over others, and of a raw disk" [
            Test(LAYERS, "a_chain_reads_as_its_layers_say"),
            Test(LAYERS, "a_chain_of_as_many_layers_as_are_allowed_is_read"),
        ];
    }
    "Layer::known_own()" {
        "nothing" [Test(LAYERS, "zeroes_of_a_layer_are_copied_as_zeroes")];
        "of an image over others" [
            Test(COST, "copying_an_empty_layer_costs_its_entries"),
            Test(LAYERS, "what_images_know_is_copied_as_what_is_read"),
        ];
    }
    "Known::Zeroes" {
        "some, and up to the end of the range" [
            Test(COST, "copying_an_empty_layer_costs_its_entries"),
            Test(LAYERS, "what_images_know_is_copied_as_what_is_read"),
        ];
    }
    "Known::Below" {
        "that knows, and that does not" [
            Test(COST, "copying_an_empty_layer_costs_its_entries"),
            Test(LAYERS, "what_images_know_is_copied_as_what_is_read"),
        ];
    }
    "Known::Nothing" {
        "of bytes that are zeroes, and of others" [
            Test(LAYERS, "zeroes_of_a_layer_are_copied_as_zeroes"),
            Test(LAYERS, "what_images_know_is_copied_as_what_is_read"),
        ];
    }
    "Raw::new()" {
        "of any length" [
            Test(LAYERS, "the_guest_reads_the_layer_where_the_image_says_nothing"),
        ];
    }
    "Layers::open()" {
        "opens, refuses" [Test(LAYERS, "what_a_policy_does_not_allow_is_not_opened")];
    }
    "FileLayers::within()" {
        "names that lead out of it, into it, back" [
            Test(LAYERS, "what_a_policy_does_not_allow_is_not_opened"),
        ];
    }
    "chain::open_chain()" {
        "no layer, one, two" [Test(LAYERS, "a_chain_is_read_from_the_top_down")];
        "no end" [Test(LAYERS, "a_chain_without_an_end_is_refused")];
    }
    "format::limits::LAYERS" {
        "more" [Test(LAYERS, "a_chain_without_an_end_is_refused")];
    }
    "create::create_over()" {
        "every version and cluster size" [
            Test(LAYERS, "the_guest_reads_the_layer_where_the_image_says_nothing"),
            Test(INTEROP, "layers_go_both_ways"),
        ];
        "a name that does not fit" [Test(LAYERS, "what_a_policy_does_not_allow_is_not_opened")];
    }
    "blocking::create_over()" {
        "every version and cluster size" [
            Test(LAYERS, "the_guest_reads_the_layer_where_the_image_says_nothing"),
        ];
    }
    "blocking::Image::open_over()" {
        "in random calls" [Test(super::tests::BLOCKING, "blocking_calls_survive_power_cuts")];
    }
    "blocking::Image::open_chain()" {
        "no layer, one, two" [Test(LAYERS, "a_chain_is_read_from_the_top_down")];
    }
    "IoError::Below" {
        "told" [Test(LAYERS, "a_layer_that_fails_fails_what_needs_it")];
    }
    "OpenError::Layer" {
        "told" [Test(LAYERS, "what_a_policy_does_not_allow_is_not_opened")];
    }
    "OpenError::Below" {
        "told" [Test(LAYERS, "what_a_policy_does_not_allow_is_not_opened")];
    }
}
