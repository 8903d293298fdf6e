//! Typed access to one object of a `config.json`; errors name the file and the key.

use crate::ConfigError;
use serde_json::{Map, Value};
use std::path::Path;

/// An object of the file. A key whose value is null counts as absent.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub path: &'a Path,
    pub map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub fn present(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn bad(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::BadValue {
            path: self.path.to_owned(),
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.to_owned(),
        }
    }

    pub fn unsupported(&self, key: &'static str, found: &Value, hint: &str) -> ConfigError {
        ConfigError::Unsupported {
            path: self.path.to_owned(),
            key,
            found: found.as_str().map_or_else(|| found.to_string(), str::to_owned),
            hint: hint.to_owned(),
        }
    }

    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.present(key)
            .map(|v| {
                v.as_u64()
                    .filter(|n| *n > 0)
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or_else(|| self.bad(key, v, "a positive integer"))
            })
            .transpose()
    }

    pub fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or_else(|| ConfigError::MissingKey { path: self.path.to_owned(), key })
    }

    pub fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.present(key)
            .map(|v| {
                v.as_f64().filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| self.bad(key, v, "a positive number"))
            })
            .transpose()
    }

    pub fn number(&self, key: &'static str) -> Result<f64, ConfigError> {
        self.optional_number(key)?.ok_or_else(|| ConfigError::MissingKey { path: self.path.to_owned(), key })
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        self.present(key).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.bad(key, v, "`true` or `false`")))
    }

    pub fn object(&self, key: &str) -> Result<Option<Self>, ConfigError> {
        match self.present(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { path: self.path, map })),
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

    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.present(key) else { return Ok(Vec::new()) };
        let one = |v: &Value| {
            v.as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| self.bad(key, value, "a token id or a list of token ids"))
        };
        match value {
            Value::Array(ids) => ids.iter().map(one).collect(),
            id => Ok(vec![one(id)?]),
        }
    }

    /// Refuses every value of `key` except those in `accepted`.
    pub fn only(&self, key: &'static str, accepted: &[&str]) -> Result<(), ConfigError> {
        match self.present(key) {
            None => Ok(()),
            Some(Value::String(s)) if accepted.contains(&s.as_str()) => Ok(()),
            Some(other) => {
                let list: Vec<String> = accepted.iter().map(|value| format!("`{value}`")).collect();
                Err(self.unsupported(key, other, &format!("supported: {}", list.join(", "))))
            }
        }
    }
}
