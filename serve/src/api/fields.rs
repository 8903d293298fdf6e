//! The fields of a JSON body. A field that is taken is read with its type; those that are left are
//! unknown. `null` is the same as a field that is not there.

use super::refusal::Refusal;
use serde_json::{Map, Value};

/// Most characters of a value that a message repeats.
const SHOWN: usize = 60;

/// The fields of an object that have not been taken yet.
#[derive(Debug, Default)]
pub struct Fields {
    fields: Map<String, Value>,
    /// What stands before the names of its fields in messages.
    prefix: String,
    /// Fields that objects inside of it had left.
    left_inside: Vec<String>,
}

impl Fields {
    /// The fields of the object in `body`.
    ///
    /// # Errors
    /// The body is not UTF-8, not JSON, or not an object.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let text = std::str::from_utf8(body).map_err(|error| {
            Refusal::bad_request(format!(
                "the body is not UTF-8: the byte at {} cannot be decoded",
                error.valid_up_to()
            ))
        })?;
        let value = serde_json::from_str(text)
            .map_err(|error| Refusal::bad_request(format!("the body is not JSON: {error}")))?;
        match value {
            Value::Object(fields) => Ok(Self { fields, prefix: String::new(), left_inside: Vec::new() }),
            _ => Err(Refusal::bad_request("the body is not a JSON object")),
        }
    }

    /// Takes a field; `None` if it is not there.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.shift_remove(name).filter(|value| !value.is_null())
    }

    /// True if a field is there.
    pub fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// Takes a field as `read` reads it.
    ///
    /// # Errors
    /// `read` gives nothing: the value is not the `expected` one.
    pub fn read<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match read(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(name, &value, expected)),
        }
    }

    /// The refusal of a value that is not the `expected` one.
    pub fn wrong(&self, name: &str, value: &Value, expected: &str) -> Refusal {
        let name = format!("{}{name}", self.prefix);
        let text = value.to_string();
        let shown: String = text.chars().take(SHOWN).collect();
        let more = if shown.len() < text.len() { "…" } else { "" };
        let message = format!("`{name}` is {} `{shown}{more}`, expected {expected}", kind(value));
        Refusal::of_field(name, message)
    }

    /// Takes an integer of `0..=most`.
    pub fn count(&mut self, name: &str, most: usize) -> Result<Option<usize>, Refusal> {
        self.integer_in(name, 0, most)
    }

    /// Takes an integer of `least..=most`.
    pub fn integer_in(&mut self, name: &str, least: usize, most: usize) -> Result<Option<usize>, Refusal> {
        let read = |value: &Value| {
            let found = value.as_u64().and_then(|value| usize::try_from(value).ok());
            found.filter(|value| (least..=most).contains(value))
        };
        let expected = match most {
            usize::MAX => format!("an integer of at least {least}"),
            most => format!("an integer from {least} to {most}"),
        };
        self.read(name, &expected, read)
    }

    /// Takes a number.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>, Refusal> {
        self.read(name, "a number", |value| value.as_f64().map(|value| value as f32))
    }

    /// Takes `true` or `false`.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// Takes a text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        self.read(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// Takes an object.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>, Refusal> {
        let fields = self.read(name, "an object", |value| value.as_object().cloned())?;
        let prefix = format!("{}{name}.", self.prefix);
        Ok(fields.map(|fields| Self { fields, prefix, left_inside: Vec::new() }))
    }

    /// The fields of `value`, which stands at `place`.
    ///
    /// # Errors
    /// It is not an object.
    pub fn of(value: Value, place: &str) -> Result<Self, Refusal> {
        match value {
            Value::Object(fields) => Ok(Self { fields, prefix: format!("{place}."), left_inside: Vec::new() }),
            _ => Err(Refusal::of_field(place, format!("`{place}` is not an object"))),
        }
    }

    /// The refusal of a field that is missing.
    pub fn missing(&self, name: &str, expected: &str) -> Refusal {
        let name = format!("{}{name}", self.prefix);
        let message = format!("`{name}` is missing, expected {expected}");
        Refusal::of_field(name, message)
    }

    /// Refuses fields that would change the result and are not supported, unless their value
    /// changes nothing: an empty one, or one of those that stand beside the name.
    ///
    /// # Errors
    /// The first such field.
    pub fn refuse(&mut self, unsupported: &[(&str, &[&str])]) -> Result<(), Refusal> {
        for (name, neutral) in unsupported {
            let Some(value) = self.take(name) else { continue };
            if !is_empty(&value) && !neutral.contains(&value.to_string().as_str()) {
                let name = format!("{}{name}", self.prefix);
                let message = format!("`{name}` is not supported");
                return Err(Refusal::of_field(name, message));
            }
        }
        Ok(())
    }

    /// Names of the fields that have not been taken.
    pub fn left(&self) -> impl Iterator<Item = String> {
        let names = self.fields.keys().map(|name| format!("{}{name}", self.prefix));
        names.chain(self.left_inside.iter().cloned())
    }

    /// Adds the fields that are left of an object inside of this one; indices of arrays are left
    /// out of their names.
    pub fn absorb(&mut self, inner: &Self) {
        let without_index = |name: String| {
            let mut parts = name.split('[');
            let first = parts.next().unwrap_or_default().to_owned();
            parts.fold(first, |name, part| name + "[" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
        };
        self.left_inside.extend(inner.left().map(without_index));
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.is_empty(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "the boolean",
        Value::Number(_) => "the number",
        Value::String(_) => "the text",
        Value::Array(_) => "the array",
        Value::Object(_) => "the object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    fn message(refusal: &Refusal) -> (String, String) {
        let json = refusal.to_json();
        let text = |key: &str| json["error"][key].as_str().unwrap_or_default().to_owned();
        (text("param"), text("message"))
    }

    #[test]
    fn fields_are_taken_with_their_type_and_the_rest_is_left() {
        let mut fields = fields(
            r#"{"a": 3, "b": null, "c": true, "d": "x", "e": 0.5, "f": {"g": 1, "h": 2}, "user": "me", "z": []}"#,
        );
        assert_eq!(fields.count("a", 3), Ok(Some(3)));
        assert_eq!((fields.flag("b"), fields.flag("c"), fields.flag("none")), (Ok(None), Ok(Some(true)), Ok(None)));
        assert_eq!(fields.text("d"), Ok(Some("x".to_owned())));
        assert_eq!(fields.number("e"), Ok(Some(0.5)));
        let mut inner = fields.object("f").unwrap().unwrap();
        assert_eq!(inner.count("g", 9), Ok(Some(1)));
        assert_eq!(inner.left().collect::<Vec<_>>(), ["f.h"]);
        fields.absorb(&inner);
        fields.absorb(&Fields::of(serde_json::json!({"x": 1}), "m[12].n[3]").unwrap());
        assert_eq!(fields.left().collect::<Vec<_>>(), ["user", "z", "f.h", "m[].n[].x"]);
    }

    #[test]
    fn a_wrong_type_names_the_field_the_value_and_what_was_expected() {
        let wrong =
            |text: &str, read: fn(&mut Fields) -> Result<(), Refusal>| message(&read(&mut fields(text)).unwrap_err());
        let found = wrong(r#"{"n": "3"}"#, |fields| fields.integer_in("n", 1, 8).map(|_| ()));
        assert_eq!(found, ("n".into(), "`n` is the text `\"3\"`, expected an integer from 1 to 8".into()));
        let found = wrong(r#"{"n": -1}"#, |fields| fields.count("n", usize::MAX).map(|_| ()));
        assert_eq!(found.1, "`n` is the number `-1`, expected an integer of at least 0");
        let found = wrong(r#"{"n": 1.5}"#, |fields| fields.count("n", 4).map(|_| ()));
        assert_eq!(found.1, "`n` is the number `1.5`, expected an integer from 0 to 4");
        let found = wrong(r#"{"o": {"u": 1}}"#, |fields| fields.object("o")?.unwrap().flag("u").map(|_| ()));
        assert_eq!(found, ("o.u".into(), "`o.u` is the number `1`, expected true or false".into()));
        let long = format!(r#"{{"t": ["{}"]}}"#, "é".repeat(99));
        let found = wrong(&long, |fields| fields.text("t").map(|_| ()));
        assert_eq!(found.1, format!("`t` is the array `[\"{}…`, expected a text", "é".repeat(58)));
    }

    #[test]
    fn unsupported_fields_are_refused_unless_they_change_nothing() {
        const LIST: &[(&str, &[&str])] = &[("best_of", &["1"]), ("tools", &[]), ("format", &[r#"{"type":"text"}"#])];
        for text in [r#"{"best_of": 1, "tools": [], "format": {"type": "text"}}"#, r#"{"tools": null}"#, "{}"] {
            let mut fields = fields(text);
            assert_eq!(fields.refuse(LIST), Ok(()));
            assert_eq!(fields.left().count(), 0);
        }
        for (text, param) in [(r#"{"best_of": 2}"#, "best_of"), (r#"{"tools": [1]}"#, "tools")] {
            let (found, text) = message(&fields(text).refuse(LIST).unwrap_err());
            assert_eq!((found.as_str(), text.starts_with(&format!("`{param}` is not supported"))), (param, true));
        }
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        let refused = |body: &[u8]| message(&Fields::parse(body).unwrap_err()).1;
        assert_eq!(refused(b"{\"a\": \"\xff\"}"), "the body is not UTF-8: the byte at 7 cannot be decoded");
        assert!(refused(b"{\"a\": ").starts_with("the body is not JSON: EOF while parsing"));
        assert_eq!(refused(b"[1]"), "the body is not a JSON object");
        assert!(refused(&b"[".repeat(10_000)).starts_with("the body is not JSON: recursion limit"));
    }
}
