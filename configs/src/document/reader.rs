//! Typed reading of a tree: a serde deserializer whose errors carry the key at which they happened.
//!
//! One pass stops at the first error; [`super::load`] repairs the tree there and reads again, so
//! that all problems of a document are found.

use super::{
    problem::{nearest_name, quoted_list},
    scalar::Scalar,
    tree::{KeyValue, Node, Value},
};
use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
    value::MapAccessDeserializer,
};
use std::fmt;

/// Error that stopped a reading.
#[derive(Debug)]
pub(super) struct ReadError {
    /// Keys from the root to the node; `None` until a reader that knows the place has seen the
    /// error.
    pub(super) path: Option<Vec<String>>,
    pub(super) fault: Fault,
}

#[derive(Debug)]
pub(super) enum Fault {
    /// The node at the path has no child `key`.
    Missing { key: &'static str },
    /// The node at the path has an unknown child.
    Unknown { key: String, known: &'static [&'static str] },
    /// The node at the path has another type than expected; `found` where the name of a choice says
    /// more than the node's kind.
    Expected { found: Option<String>, expected: String, hint: Option<String> },
    /// Any other error of serde.
    Other(String),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.fault, f)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: None, fault: Fault::Other(message.to_string()) }
    }

    fn missing_field(key: &'static str) -> Self {
        Self { path: None, fault: Fault::Missing { key } }
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self { path: None, fault: Fault::Expected { found: None, expected: expected.to_string(), hint: None } }
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self { path: None, fault: Fault::Expected { found: None, expected: expected.to_string(), hint: None } }
    }
}

/// Deserializer of one node.
pub(super) struct Reader<'n> {
    node: &'n Node,
    path: Vec<String>,
}

impl<'n> Reader<'n> {
    pub(super) fn new(root: &'n Node) -> Self {
        Self { node: root, path: Vec::new() }
    }

    fn child(&self, node: &'n Node, segment: impl Into<String>) -> Self {
        let mut path = self.path.clone();
        path.push(segment.into());
        Self { node, path }
    }

    /// Adds this node's place to an error that has none yet.
    fn place(&self, mut error: ReadError) -> ReadError {
        error.path.get_or_insert_with(|| self.path.clone());
        error
    }

    fn expected(&self, expected: impl Into<String>, hint: Option<String>) -> ReadError {
        self.place(ReadError { path: None, fault: Fault::Expected { found: None, expected: expected.into(), hint } })
    }

    fn is_hole(&self) -> bool {
        matches!(self.node.value, Value::Hole)
    }

    fn scalar(&self) -> Option<&'n Scalar> {
        match &self.node.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// The scalar that `read` makes of this node.
    fn scalar_as<T>(&self, expected: &str, read: impl Fn(&Scalar) -> Option<T>) -> Result<T, ReadError> {
        let scalar = self.scalar();
        scalar.and_then(&read).ok_or_else(|| {
            let unquoted = scalar.filter(|s| !s.plain).map(|s| Scalar::plain(&s.text));
            let hint = unquoted.and_then(|s| read(&s)).map(|_| "write it without quotes".to_owned());
            self.expected(expected, hint)
        })
    }

    fn integer<T: TryFrom<i128>>(&self, range: &str) -> Result<T, ReadError> {
        let value = self.scalar_as("an integer", Scalar::as_integer)?;
        T::try_from(value).map_err(|_| self.expected(range, None))
    }

    fn text(&self) -> Result<&'n str, ReadError> {
        self.scalar().and_then(Scalar::as_str).ok_or_else(|| {
            let quoted = self.scalar().filter(|s| !s.is_null());
            self.expected("a string", quoted.map(|s| format!("write it in quotes, `\"{}\"`", s.text)))
        })
    }

    /// Children as `(key, node)`; a hole has one hole for each of `fields`.
    fn entries(&self, fields: &[&'static str]) -> Result<Vec<(String, Reader<'n>)>, ReadError> {
        match &self.node.value {
            Value::Map(entries) => {
                Ok(entries.iter().map(|e| (e.key.clone(), self.child(&e.node, e.key.clone()))).collect())
            }
            Value::Hole => Ok(fields.iter().map(|f| ((*f).to_owned(), self.child(self.node, *f))).collect()),
            _ => Err(self.expected("a mapping", None)),
        }
    }

    fn visit_entries<'de, V: Visitor<'de>>(&self, visitor: V, fields: &[&'static str]) -> Result<V::Value, ReadError> {
        let entries = self.entries(fields)?.into_iter();
        visitor.visit_map(Entries { entries, value: None }).map_err(|e| self.place(e))
    }

    /// The error of a variant that stands without its settings.
    fn with_settings(&self, name: &str) -> ReadError {
        self.expected(format!("`{name}: {{ … }}` with its settings"), None)
    }

    fn visit_items<'de, V: Visitor<'de>>(&self, visitor: V, if_hole: usize) -> Result<V::Value, ReadError> {
        let items: Vec<_> = match &self.node.value {
            Value::List(items) => items.iter().enumerate().map(|(i, n)| self.child(n, i.to_string())).collect(),
            Value::Hole => (0..if_hole).map(|i| self.child(self.node, i.to_string())).collect(),
            _ => return Err(self.expected("a list", None)),
        };
        visitor.visit_seq(Items(items.into_iter())).map_err(|e| self.place(e))
    }
}

macro_rules! integers {
    ($($method:ident, $type:ty, $visit:ident, $range:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            let value = if self.is_hole() { 1 } else { self.integer::<$type>($range)? };
            visitor.$visit(value).map_err(|e| self.place(e))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    integers! {
        deserialize_u8, u8, visit_u8, "an integer from 0 to 255";
        deserialize_u16, u16, visit_u16, "an integer from 0 to 65535";
        deserialize_u32, u32, visit_u32, "an integer from 0 to 4294967295";
        deserialize_u64, u64, visit_u64, "a non-negative integer";
        deserialize_u128, u128, visit_u128, "a non-negative integer";
        deserialize_i8, i8, visit_i8, "an integer from -128 to 127";
        deserialize_i16, i16, visit_i16, "an integer from -32768 to 32767";
        deserialize_i32, i32, visit_i32, "an integer from -2147483648 to 2147483647";
        deserialize_i64, i64, visit_i64, "an integer of 64 bits";
        deserialize_i128, i128, visit_i128, "an integer";
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let scalar = match &self.node.value {
            Value::Scalar(scalar) => scalar,
            Value::List(_) => return self.visit_items(visitor, 0),
            Value::Map(_) => return self.visit_entries(visitor, &[]),
            Value::Hole => return visitor.visit_unit().map_err(|e| self.place(e)),
        };
        if scalar.is_null() {
            visitor.visit_unit()
        } else if let Some(value) = scalar.as_bool() {
            visitor.visit_bool(value)
        } else if let Some(value) = scalar.as_integer().and_then(|i| i64::try_from(i).ok()) {
            visitor.visit_i64(value)
        } else if let Some(value) = scalar.as_float() {
            visitor.visit_f64(value)
        } else {
            visitor.visit_str(&scalar.text)
        }
        .map_err(|e| self.place(e))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let value = !self.is_hole() && self.scalar_as("`true` or `false`", Scalar::as_bool)?;
        visitor.visit_bool(value).map_err(|e| self.place(e))
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let value = if self.is_hole() { 1.0 } else { self.scalar_as("a number", Scalar::as_float)? };
        visitor.visit_f64(value).map_err(|e| self.place(e))
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let value = if self.is_hole() { "" } else { self.text()? };
        visitor.visit_str(value).map_err(|e| self.place(e))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if self.is_hole() || self.scalar().is_some_and(Scalar::is_null) {
            return visitor.visit_none().map_err(|e| self.place(e));
        }
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if !self.is_hole() && !self.scalar().is_some_and(Scalar::is_null) {
            return Err(self.expected("nothing", None));
        }
        visitor.visit_unit().map_err(|e| self.place(e))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.visit_items(visitor, 0)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.visit_items(visitor, len)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.visit_items(visitor, len)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.visit_entries(visitor, &[])
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        if let Value::Map(entries) = &self.node.value
            && let Some(KeyValue { key, .. }) = entries.iter().find(|e| !fields.contains(&e.key.as_str()))
        {
            let fault = Fault::Unknown { key: key.clone(), known: fields };
            return Err(self.place(ReadError { path: None, fault }));
        }
        self.visit_entries(visitor, fields)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let expected = match variants {
            [one] => format!("`{one}`"),
            many => format!("one of {}", quoted_list(many)),
        };
        let (name, content) = match &self.node.value {
            Value::Scalar(scalar) => (scalar.as_str().ok_or_else(|| self.expected(&*expected, None))?, None),
            Value::Map(entries) => match entries.as_slice() {
                [entry] => (entry.key.as_str(), Some(self.child(&entry.node, &*entry.key))),
                _ => return Err(self.expected(format!("exactly {expected}"), None)),
            },
            Value::List(_) => return Err(self.expected(expected, None)),
            Value::Hole => (variants.first().copied().unwrap_or(""), Some(self.child(self.node, "?"))),
        };
        if !variants.contains(&name) {
            let found = content.map(|_| name.to_owned());
            let hint = nearest_name(name, variants).map(|near| format!("did you mean `{near}`?"));
            return Err(self.place(ReadError { path: None, fault: Fault::Expected { found, expected, hint } }));
        }
        let variant = Variant { name: name.to_owned(), content, whole: &self };
        visitor.visit_enum(variant).map_err(|e| self.place(e))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_unit()
    }
}

struct Entries<'n> {
    entries: std::vec::IntoIter<(String, Reader<'n>)>,
    value: Option<Reader<'n>>,
}

impl Entries<'_> {
    fn none() -> Self {
        Self { entries: Vec::new().into_iter(), value: None }
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let value = self.value.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        seed.deserialize(value)
    }
}

struct Items<'n>(std::vec::IntoIter<Reader<'n>>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        self.0.next().map(|item| seed.deserialize(item)).transpose()
    }
}

/// Name of an enum variant and the node under it; a bare name has none.
struct Variant<'n, 'r> {
    name: String,
    content: Option<Reader<'n>>,
    whole: &'r Reader<'n>,
}

impl<'n> Variant<'n, '_> {
    fn content(self) -> Result<Reader<'n>, ReadError> {
        let Self { name, content, whole } = self;
        content.ok_or_else(|| whole.with_settings(&name))
    }
}

impl<'de> EnumAccess<'de> for Variant<'_, '_> {
    type Error = ReadError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ReadError> {
        let name = self.name.clone();
        Ok((seed.deserialize(name.into_deserializer())?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, '_> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        self.content.map_or(Ok(()), <() as serde::Deserialize>::deserialize)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        let Self { name, content, whole } = self;
        match content {
            Some(content) => seed.deserialize(content),
            // A bare name has every default, if every setting has one.
            None => {
                let found = seed.deserialize(MapAccessDeserializer::new(Entries::none()));
                found.map_err(|_| whole.with_settings(&name))
            }
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.content()?.visit_items(visitor, len)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let Self { name, content, whole } = self;
        match content {
            Some(content) => de::Deserializer::deserialize_struct(content, "", fields, visitor),
            // As of a newtype variant.
            None => visitor.visit_map(Entries::none()).map_err(|_| whole.with_settings(&name)),
        }
    }
}
