//! Typed access to the Hub's rows; error messages state the expected value.

use serde_json::{Map, Value};

/// One row.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, key: &str, expected: &str) -> Result<&'a Value, String> {
        self.0.get(key).ok_or_else(|| {
            let found = self.0.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
            let found = if found.is_empty() { "nothing".into() } else { found };
            format!("no `{key}`, expected {expected}; found {found}")
        })
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<&'a str, String> {
        let value = self.get(key, "a string")?;
        value.as_str().ok_or_else(|| format!("`{key}` is {}, expected a string", short(value)))
    }

    /// A list of strings.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<&'a str>, String> {
        strings(self.get(key, "a list of strings")?, key)
    }

    /// An index, as a number or in a string.
    pub(super) fn index(&self, key: &str, below: usize) -> Result<usize, String> {
        let value = self.get(key, "an index")?;
        let number = match value {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64().and_then(|n| usize::try_from(n).ok()),
        };
        number
            .filter(|n| *n < below)
            .ok_or_else(|| format!("`{key}` is {}, expected an index below {below}", short(value)))
    }

    /// Choices `{text: [..], label: [..]}` and the index of the label that `answerKey` names.
    pub(super) fn labelled_choices(&self) -> Result<(Vec<&'a str>, usize), String> {
        let expected = "a mapping with the lists `text` and `label`";
        let choices = self.get("choices", expected)?;
        let Some(map) = choices.as_object() else {
            return Err(format!("`choices` is {}, expected {expected}", short(choices)));
        };
        let list = |key: &str| {
            let value = map.get(key).ok_or_else(|| format!("`choices` has no `{key}`, expected {expected}"))?;
            strings(value, &format!("choices.{key}"))
        };
        let (texts, labels) = (list("text")?, list("label")?);
        if texts.len() != labels.len() {
            return Err(format!("`choices` has {} texts and {} labels", texts.len(), labels.len()));
        }
        let answer = self.text("answerKey")?;
        let gold = labels.iter().position(|label| *label == answer.trim_start());
        let gold = gold.ok_or_else(|| format!("`answerKey` is `{answer}`, expected one of {}", labels.join(", ")))?;
        Ok((texts, gold))
    }
}

fn strings<'a>(value: &'a Value, key: &str) -> Result<Vec<&'a str>, String> {
    let strings: Option<Vec<&str>> = value.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
    strings.ok_or_else(|| format!("`{key}` is {}, expected a list of strings", short(value)))
}

/// A value on one line, for a message.
fn short(value: &Value) -> String {
    let text = value.to_string();
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(60).collect();
    if chars.next().is_some() { format!("`{start}…`") } else { format!("`{start}`") }
}
