//! Options whose value is one of several names.

use clap::builder::{PossibleValuesParser, TypedValueParser};

/// A parser for a choice by its name; `--help` shows every one of `names`.
pub fn choice<T>(names: impl Into<PossibleValuesParser>) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err = String> + Clone + Send + Sync + 'static,
{
    names.into().try_map(|name| name.parse::<T>().map_err(std::io::Error::other))
}
