//! Typed access to one object of a `config.json`; errors name the file and the key.

use crate::{ConfigError, arch::KeyDefault, json::special_number};
use serde_json::{Map, Value};
use std::{borrow::Cow, path::Path};

/// An object of the file, with the values of the keys that are absent from it.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub path: &'a Path,
    pub map: &'a Map<String, Value>,
    pub defaults: &'static [KeyDefault],
}

impl<'a> Keys<'a> {
    /// Value in the file; a key that is null counts as absent.
    pub fn present(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Value in the file or, where the key is absent, that of the table; `None` for null and for a
    /// key that has neither.
    fn value(&self, key: &str) -> Result<Option<Cow<'a, Value>>, ConfigError> {
        let default = self.defaults.iter().find(|default| default.key == key);
        match (self.map.get(key), default) {
            (Some(Value::Null), Some(default)) if !default.nullable => {
                let expected = format!("a value, or no such key for the default `{}`", default.json());
                Err(self.bad(key, &Value::Null, &expected))
            }
            (Some(Value::Null), _) => Ok(None),
            (Some(value), _) => Ok(Some(Cow::Borrowed(value))),
            (None, default) => Ok(default.map(KeyDefault::json).filter(|value| !value.is_null()).map(Cow::Owned)),
        }
    }

    pub fn bad(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::BadValue {
            path: self.path.to_owned(),
            key: key.to_owned(),
            found: special_number(found).map_or_else(|| found.to_string(), str::to_owned),
            expected: expected.to_owned(),
        }
    }

    pub fn missing(&self, key: &'static str) -> ConfigError {
        ConfigError::MissingKey { path: self.path.to_owned(), key }
    }

    pub fn unsupported(&self, key: &'static str, found: &Value, hint: &str) -> ConfigError {
        ConfigError::Unsupported {
            path: self.path.to_owned(),
            key,
            found: found.as_str().map_or_else(|| found.to_string(), str::to_owned),
            hint: hint.to_owned(),
        }
    }

    fn whole(&self, key: &str, least: u64, expected: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        let number = value.as_u64().filter(|n| *n >= least).and_then(|n| usize::try_from(n).ok());
        number.map(Some).ok_or_else(|| self.bad(key, &value, expected))
    }

    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.whole(key, 1, "a positive integer")
    }

    /// A size of a tensor or a count of layers: one that no machine could hold is refused here,
    /// before anything is made of it, and products of sizes stay within `usize`.
    pub fn size_up_to(&self, key: &'static str, most: usize) -> Result<usize, ConfigError> {
        let found = self.size(key)?;
        if found <= most { Ok(found) } else { Err(self.bad(key, &found.into(), &format!("at most {most}"))) }
    }

    pub fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number that may be 0.
    pub fn count(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.whole(key, 0, "a non-negative integer")?.ok_or_else(|| self.missing(key))
    }

    pub fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.map(Some).ok_or_else(|| self.bad(key, &value, "a positive number"))
    }

    pub fn number(&self, key: &'static str) -> Result<f64, ConfigError> {
        self.optional_number(key)?.ok_or_else(|| self.missing(key))
    }

    pub fn flag(&self, key: &'static str) -> Result<bool, ConfigError> {
        let value = self.value(key)?.ok_or_else(|| self.missing(key))?;
        value.as_bool().ok_or_else(|| self.bad(key, &value, "`true` or `false`"))
    }

    pub fn object(&self, key: &str) -> Result<Option<Self>, ConfigError> {
        match self.present(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { path: self.path, map, defaults: &[] })),
            Some(other) => Err(self.bad(key, other, "an object or null")),
        }
    }

    /// List with one entry for each of `len` depths; `None` if the key is absent.
    pub fn per_depth<T>(
        &self,
        key: &str,
        len: usize,
        entry: impl Fn(&'a Value) -> Result<T, ConfigError>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(value) = self.present(key) else { return Ok(None) };
        match value.as_array().filter(|list| list.len() == len) {
            Some(list) => list.iter().map(entry).collect::<Result<_, _>>().map(Some),
            None => Err(self.bad(key, value, &format!("a list of {len} entries, one for each layer"))),
        }
    }

    /// Ids of a token that the file names. A default that a model of `vocab_size` tokens does not
    /// have names none.
    pub fn token_ids(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.value(key)? else { return Ok(Vec::new()) };
        let one = |v: &Value| {
            v.as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| self.bad(key, &value, "a token id or a list of token ids"))
        };
        let ids = match &*value {
            Value::Array(ids) => ids.iter().map(one).collect::<Result<Vec<_>, _>>()?,
            id => vec![one(id)?],
        };
        let is_stated = self.map.contains_key(key);
        Ok(ids.into_iter().filter(|id| is_stated || (*id as usize) < vocab_size).collect())
    }

    /// The one of `accepted` that `key` names.
    pub fn one_of(&self, key: &'static str, accepted: &[&'static str]) -> Result<&'static str, ConfigError> {
        let value = self.value(key)?.ok_or_else(|| self.missing(key))?;
        accepted.iter().find(|name| value.as_str() == Some(**name)).copied().ok_or_else(|| {
            let list: Vec<String> = accepted.iter().map(|value| format!("`{value}`")).collect();
            self.unsupported(key, &value, &format!("supported: {}", list.join(", ")))
        })
    }
}
