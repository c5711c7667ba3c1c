//! What has no lines.

/// Names that have no lines here, and why. A `*` stands for anything.
pub(super) const OUTSIDE: &[(&str, &str)] = &[
    ("mutant::ALL", "mistakes that can be put in: there only with the feature `sabotage`"),
    ("Rule*", "tests/fuzz/campaign.rs::whatever_is_taken_away_is_missed breaks each"),
    (
        "named::ALL",
        "qcow2-core/src/barrier.rs::names_are_unique_and_resolve goes through one of them",
    ),
    (
        "Work.*",
        "counts for qcow2-core/tests/cost.rs::requests_enter_the_lock_a_few_times; they decide nothing",
    ),
    ("ImageInfo.*", "an answer about what is in the header"),
    (
        "ReadExtent.*",
        "an answer: tests/suite/rare.rs::a_map_may_be_committed_failed_or_dropped uses it",
    ),
    (
        "WriteExtent::*()",
        "an answer: qcow2-core/tests/data_file.rs::guest_data_is_in_the_data_file_at_its_own_offset uses it",
    ),
    (
        "WriteExtent.*",
        "an answer: tests/suite/rare.rs::a_map_may_be_committed_failed_or_dropped uses it",
    ),
    (
        "CheckReport*",
        "an answer: tests/suite/opinions.rs::three_checks_on_damaged_images compares it",
    ),
    ("ErrorKind::*", "qcow2-core/src/error.rs::the_kind_of_an_error_is_that_of_its_cause"),
    ("*Error::kind()", "qcow2-core/src/error.rs::the_kind_of_an_error_is_that_of_its_cause"),
    ("Source::*", "an answer: qcow2-core/tests/image.rs::neighbours_are_one_extent"),
    ("Finding.*", "an answer, of which the variants of Problem have lines"),
    ("EntryError.*", "an answer, of which the variants of EntryProblem have lines"),
    ("Table::*", "the place in an EntryError"),
    ("TableHost.*", "what the bits of an L1 entry say, which have lines"),
    (
        "FormatError::*",
        "tests/suite/malformed.rs::bad_headers_are_refused_by_name has the words of each",
    ),
    ("UnknownFeature.*", "tests/suite/malformed.rs::bad_headers_are_refused_by_name has the words"),
    ("RefcountError::*", "qcow2-core/src/format/refcount.rs::largest_value_and_one_past"),
    (
        "FeatureKind::*",
        "qcow2-core/src/format/feature.rs::every_known_bit_has_its_name goes through them",
    ),
    ("Permission::*", "qcow2-core/storage/src/file.rs::readers_share_and_writers_do_not"),
    ("Holder::*", "qcow2-core/storage/src/file.rs::readers_share_and_writers_do_not"),
    ("CreateOptions::*()", "defaults: the fields have lines"),
    ("OpenOptions::*()", "defaults: the fields have lines"),
    (
        "Header::*()",
        "from bytes to values: qcow2-core/src/format/header/tests.rs::encode_then_parse_is_the_same",
    ),
    (
        "Extension::*()",
        "from bytes to values: qcow2-core/src/format/extension.rs::lists_round_trip",
    ),
    ("Bitmaps::*()", "from bytes to values: qcow2-core/src/format/extension.rs::bitmaps_limits"),
    ("Luks::*()", "from bytes to values: qcow2-core/src/format/extension.rs::luks_limits"),
    (
        "L?Entry::*()",
        "from bytes to values: qcow2-core/src/format/entry.rs::standard_entries_round_trip",
    ),
    (
        "RefcountTableEntry::*()",
        "from bytes to values: qcow2-core/src/format/entry.rs::standard_entries_round_trip",
    ),
    ("crypt::cbc::*", "qcow2-core/src/crypt/cbc.rs::blocks_are_chained"),
    ("crypt::xts::*", "qcow2-core/src/crypt/xts.rs::the_vectors_of_the_standard"),
    ("crypt::header::*", "qcow2-core/src/crypt/header.rs::a_header_round_trips"),
    ("format::*()", "from bytes to values, each with tests in its own file"),
    ("IoBuf::*()", "qcow2-core/storage/src/buffer.rs::split_and_unsplit_keep_address_and_content"),
    ("MemoryStorage::*()", "a storage for tests, which every test with one tests"),
    ("AnyStorage::*()", "what every campaign opens its images on"),
];
