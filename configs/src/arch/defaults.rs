//! Values of absent keys: for each family a table, which is that of its configuration class in
//! `transformers`
//! (<https://github.com/huggingface/transformers/tree/main/src/transformers/models>).
//!
//! An absent key and a key that is null differ. A key that is absent has the value of the table;
//! null is a value of its own where the class has it (no soft cap, no window), and is refused
//! elsewhere.

use serde_json::Value;

/// Value of an absent key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Given {
    /// None.
    Null,
    /// A whole number.
    Size(u64),
    /// A number.
    Number(f64),
    /// A switch.
    Flag(bool),
    /// A name.
    Text(&'static str),
}

/// A key of a configuration class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct KeyDefault {
    /// The key.
    pub key: &'static str,
    /// Its value where it is absent.
    pub value: Given,
    /// True if the class also accepts null.
    pub nullable: bool,
}

impl KeyDefault {
    /// The same key, which null is a value of.
    pub const fn or_null(self) -> Self {
        Self { nullable: true, ..self }
    }

    /// The value as JSON.
    pub fn json(&self) -> Value {
        match self.value {
            Given::Null => Value::Null,
            Given::Size(n) => n.into(),
            Given::Number(x) => x.into(),
            Given::Flag(flag) => flag.into(),
            Given::Text(text) => text.into(),
        }
    }
}

/// A key that is null where it is absent.
pub(super) const fn null(key: &'static str) -> KeyDefault {
    KeyDefault { key, value: Given::Null, nullable: true }
}

/// A key with a whole number.
pub(super) const fn size(key: &'static str, value: u64) -> KeyDefault {
    KeyDefault { key, value: Given::Size(value), nullable: false }
}

/// A key with a number.
pub(super) const fn number(key: &'static str, value: f64) -> KeyDefault {
    KeyDefault { key, value: Given::Number(value), nullable: false }
}

/// A key with a switch.
pub(super) const fn flag(key: &'static str, value: bool) -> KeyDefault {
    KeyDefault { key, value: Given::Flag(value), nullable: false }
}

/// A key with a name.
pub(super) const fn text(key: &'static str, value: &'static str) -> KeyDefault {
    KeyDefault { key, value: Given::Text(value), nullable: false }
}
