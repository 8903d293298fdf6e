//! Settings of a new router by key, as a command line has them: each kind takes its own.

use std::str::FromStr;

/// Settings that are given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouterSettings(Vec<(&'static str, SettingValue)>);

/// Value of a setting.
#[derive(Clone, Debug, PartialEq)]
pub enum SettingValue {
    /// One of several names.
    Name(String),
    /// A number.
    Number(f64),
    /// A number for each recursion.
    Numbers(Vec<f64>),
}

impl RouterSettings {
    /// The settings and one more, if it is given.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: Option<impl Into<SettingValue>>) -> Self {
        self.0.extend(value.map(|value| (key, value.into())));
        self
    }

    /// Takes a name.
    ///
    /// # Errors
    /// When it is none of those that `T` has.
    pub(super) fn name<T: FromStr<Err = String>>(&mut self, key: &str) -> Result<Option<T>, String> {
        let name = |value: &SettingValue| if let SettingValue::Name(name) = value { Some(name.clone()) } else { None };
        self.take(key, name).map(|name| name.parse()).transpose()
    }

    /// Takes a number.
    pub(super) fn number(&mut self, key: &str) -> Option<f64> {
        self.take(key, |value| if let SettingValue::Number(number) = value { Some(*number) } else { None })
    }

    /// Takes a number for each recursion.
    pub(super) fn numbers(&mut self, key: &str) -> Option<Vec<f64>> {
        self.take(key, |value| if let SettingValue::Numbers(numbers) = value { Some(numbers.clone()) } else { None })
    }

    /// Keys of the settings that were not taken, in their order.
    pub(super) fn left(self) -> Vec<&'static str> {
        self.0.into_iter().map(|(key, _)| key).collect()
    }

    /// Takes a setting as `read` reads it; one of another type stays.
    fn take<T>(&mut self, key: &str, read: impl Fn(&SettingValue) -> Option<T>) -> Option<T> {
        let at = self.0.iter().position(|(other, _)| *other == key)?;
        let value = read(&self.0[at].1)?;
        self.0.remove(at);
        Some(value)
    }
}

impl From<String> for SettingValue {
    fn from(name: String) -> Self {
        Self::Name(name)
    }
}

impl From<f64> for SettingValue {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<Vec<f64>> for SettingValue {
    fn from(numbers: Vec<f64>) -> Self {
        Self::Numbers(numbers)
    }
}
