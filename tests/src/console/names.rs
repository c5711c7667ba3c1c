//! Values of arguments that have names.

use std::str::FromStr;

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};

/// One of these names.
pub(super) fn named<T>(
    names: impl IntoIterator<Item = &'static str>,
) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

/// When refcounts reach the disk.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Refcounts {
    Eager,
    Lazy,
    Both,
}

impl Refcounts {
    /// Whether they are lazy, if it is not both.
    pub(super) const fn lazy(self) -> Option<bool> {
        match self {
            Self::Eager => Some(false),
            Self::Lazy => Some(true),
            Self::Both => None,
        }
    }
}
