//! JSON as Python writes and reads it: also with `NaN`, `Infinity` and `-Infinity`, which JSON does
//! not have (<https://docs.python.org/3/library/json.html#infinite-and-nan-number-values>).
//!
//! Such a number becomes the object that `transformers` writes in its place since version 5,
//! `{"__float__": "NaN"}`, so that a copy of the file is JSON.

use serde_json::Value;

/// Key of the object that stands for a number that JSON does not have.
const TAG: &str = "__float__";
/// Longest first: `Infinity` is a part of `-Infinity`.
const NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Reads `text`, which may begin with a byte-order mark.
///
/// # Errors
/// When it is neither JSON nor what Python's `json` takes for it; line and column are those of
/// `text`.
pub fn parse_json(text: &str) -> Result<Value, serde_json::Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let tag = |number: &str| format!("{{\"{TAG}\": \"{number}\"}}");
    // Strings of the same length leave every position as it is.
    let filler = |number: &str| format!("\"{}\"", " ".repeat(number.len() - 2));
    serde_json::from_str(text).or_else(|error| match replaced(text, filler) {
        None => Err(error),
        Some(filled) => {
            serde_json::from_str::<serde::de::IgnoredAny>(&filled)?;
            serde_json::from_str(&replaced(text, tag).unwrap_or(filled))
        }
    })
}

/// The name of a number that JSON does not have, if `value` stands for one.
#[must_use]
pub fn special_number(value: &Value) -> Option<&str> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    object.get(TAG)?.as_str()
}

/// `text` with something else in the place of the three numbers; `None` where it has none of them.
fn replaced(text: &str, by: impl Fn(&str) -> String) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_string, mut changed) = (text, false, false);
    while let Some(first) = rest.chars().next() {
        let number = NUMBERS.iter().find(|number| !in_string && rest.starts_with(**number));
        if let Some(number) = number {
            out.push_str(&by(number));
            rest = &rest[number.len()..];
            changed = true;
            continue;
        }
        // An escaped character, of which a quote and a backslash matter, is taken with its sign.
        let escaped = (in_string && first == '\\').then(|| rest[1..].chars().next()).flatten();
        in_string ^= first == '"';
        let taken = first.len_utf8() + escaped.map_or(0, char::len_utf8);
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    changed.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_json_does_not_have_are_read_outside_of_strings() {
        let text = r#"{"a": NaN, "b": [0.0, Infinity, -Infinity], "c": "NaN \" Infinity \\", "d": "é"}"#;
        let value = parse_json(text).unwrap();
        assert_eq!(special_number(&value["a"]), Some("NaN"));
        assert_eq!(special_number(&value["b"][1]), Some("Infinity"));
        assert_eq!(special_number(&value["b"][2]), Some("-Infinity"));
        assert_eq!((&value["c"], &value["d"]), (&json!("NaN \" Infinity \\"), &json!("é")));
        assert_eq!(parse_json(&value.to_string()).unwrap(), value);
        assert_eq!(parse_json(&format!("{}{value}", '\u{feff}')).unwrap(), value);
    }

    #[test]
    fn what_python_refuses_is_refused_at_its_place() {
        let message = |text: &str| parse_json(text).unwrap_err().to_string();
        assert!(message("{\"a\": NaN,\n\"b\": x}").contains("line 2 column 6"));
        for text in ["{\"a\": Nan}", "NaNN", "{NaN: 1}", "{\"a\": +Infinity}", "\"\\", ""] {
            assert!(parse_json(text).is_err(), "{text}");
        }
    }
}
