//! Metadata of a GGUF file: key-value pairs with typed access.

use super::GgufError;
use std::{collections::BTreeMap, fmt};

/// A metadata value. Integers of every width become 64 bits wide. A 32-bit float becomes the `f64`
/// with the same decimal text (`1e-5`, not `9.999999747378752e-6`), which rounds back to the stored
/// float.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum MetaValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Vec<MetaValue>),
}

impl fmt::Display for MetaValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(n) => n.fmt(f),
            Self::Signed(n) => n.fmt(f),
            Self::Float(x) => x.fmt(f),
            Self::Bool(b) => b.fmt(f),
            Self::Text(s) => f.write_str(s),
            Self::Array(items) => write!(f, "an array of {} items", items.len()),
        }
    }
}

/// All metadata of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(BTreeMap<String, MetaValue>);

impl Metadata {
    /// Adds a key.
    ///
    /// # Errors
    /// When the key is there already.
    pub(super) fn insert(&mut self, key: String, value: MetaValue) -> Result<(), GgufError> {
        match self.0.insert(key.clone(), value) {
            None => Ok(()),
            Some(_) => Err(GgufError::Duplicate { what: "metadata key", name: key }),
        }
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.0.get(key)
    }

    /// Keys and values, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MetaValue)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a MetaValue) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let bad = |value: &MetaValue| GgufError::BadValue {
            key: key.to_owned(),
            found: value.to_string(),
            expected: expected.to_owned(),
        };
        self.get(key).map(|value| convert(value).ok_or_else(|| bad(value))).transpose()
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.typed(key, "a non-negative integer", |value| match value {
            MetaValue::Unsigned(n) => usize::try_from(*n).ok(),
            MetaValue::Signed(n) => usize::try_from(*n).ok(),
            _ => None,
        })
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a finite number", |value| match value {
            MetaValue::Float(x) => Some(*x).filter(|x| x.is_finite()),
            _ => None,
        })
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "text", |value| match value {
            MetaValue::Text(s) => Some(s.as_str()),
            _ => None,
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "`true` or `false`", |value| match value {
            MetaValue::Bool(b) => Some(*b),
            _ => None,
        })
    }

    pub(super) fn optional_texts(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        self.typed(key, "an array of text", |value| match value {
            MetaValue::Array(items) => items
                .iter()
                .map(|item| match item {
                    MetaValue::Text(s) => Some(s.as_str()),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    pub(super) fn optional_floats(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        self.typed(key, "an array of numbers", |value| match value {
            MetaValue::Array(items) => items
                .iter()
                .map(|item| match item {
                    MetaValue::Float(x) => Some(*x as f32),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    pub(super) fn optional_integers(&self, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
        self.typed(key, "an array of integers", |value| match value {
            MetaValue::Array(items) => items
                .iter()
                .map(|item| match item {
                    MetaValue::Signed(n) => Some(*n),
                    MetaValue::Unsigned(n) => i64::try_from(*n).ok(),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }
}

/// Turns an absent key into an error.
pub(super) fn required<T>(value: Option<T>, key: &str) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
}
