//! Keys and values of a task's name, `NAME?key=value&key=value`.

use crate::TaskError;
use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive, str::FromStr};

/// The keys of one task that have not been read yet.
#[derive(Debug)]
pub struct Options {
    task: &'static str,
    values: BTreeMap<String, String>,
}

impl Options {
    /// Keys and values of `text`; `spec` is the whole name.
    pub(crate) fn parse(task: &'static str, spec: &str, text: &str) -> Result<Self, TaskError> {
        let mut values = BTreeMap::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let not_a_pair = || TaskError::NotAPair { spec: spec.to_owned(), found: part.to_owned() };
            let (key, value) = part.split_once('=').ok_or_else(not_a_pair)?;
            if values.insert(key.to_owned(), value.to_owned()).is_some() {
                let expected = format!("`{key}` once");
                return Err(TaskError::BadValue { task, key: key.to_owned(), found: value.to_owned(), expected });
            }
        }
        Ok(Self { task, values })
    }

    /// Error for the value of `key`.
    pub(crate) fn bad(&self, key: &str, expected: impl Display) -> TaskError {
        let found = self.values.get(key).cloned().unwrap_or_default();
        TaskError::BadValue { task: self.task, key: key.to_owned(), found, expected: expected.to_string() }
    }

    fn read<T>(
        &mut self,
        key: &str,
        expected: impl Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, TaskError> {
        let Some(text) = self.values.get(key) else { return Ok(None) };
        match parse(text) {
            Some(value) => Ok(Some(value)),
            None => Err(self.bad(key, expected)),
        }
    }

    /// Value of `key` as a number of `range`.
    pub(crate) fn number<T>(&mut self, key: &str, range: RangeInclusive<T>) -> Result<Option<T>, TaskError>
    where
        T: FromStr + PartialOrd + Display,
    {
        let expected = format!("{} to {}", range.start(), range.end());
        self.read(key, expected, |text| text.parse().ok().filter(|number| range.contains(number)))
    }

    /// Value of `key` as a range `A..B`, both included, or one number, within `bounds`.
    pub(crate) fn range(
        &mut self,
        key: &str,
        bounds: RangeInclusive<usize>,
    ) -> Result<Option<RangeInclusive<usize>>, TaskError> {
        let expected = format!("A..B with {} ≤ A ≤ B ≤ {}", bounds.start(), bounds.end());
        self.read(key, expected, |text| {
            let (first, last) = text.split_once("..").unwrap_or((text, text));
            let range = first.parse().ok()?..=last.parse().ok()?;
            (!range.is_empty() && bounds.contains(range.start()) && bounds.contains(range.end())).then_some(range)
        })
    }

    /// Value of `key` among names.
    pub(crate) fn named<T: Copy>(&mut self, key: &str, names: &[(&str, T)]) -> Result<Option<T>, TaskError> {
        let expected = names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" or ");
        self.read(key, expected, |text| names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value))
    }

    /// Value of `key` as it is.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// Checks that every key is among `known`.
    pub(crate) fn check_keys(&self, known: Vec<&'static str>) -> Result<(), TaskError> {
        match self.values.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(TaskError::UnknownKey { task: self.task, key: key.clone(), known }),
            None => Ok(()),
        }
    }
}
