//! `.jsonl`: one JSON object a line (<https://jsonlines.org>), its text in one field.

use std::path::{Path, PathBuf};

use retie_config::parse_json;
use serde_json::Value;

use super::compression::Bytes;
use super::text::BYTE_ORDER_MARK;
use super::{Document, Inner};
use crate::error::{DataError, Place};

pub(super) fn open(path: &Path, text_field: &str) -> Result<Inner, DataError> {
    let (path, text_field) = (path.to_owned(), text_field.to_owned());
    Ok(Box::new(JsonlRows { bytes: Bytes::open(&path)?, path, text_field, line: 0, conversations: false }))
}

pub(super) fn open_conversations(path: &Path, field: &str) -> Result<Inner, DataError> {
    let (path, text_field) = (path.to_owned(), field.to_owned());
    Ok(Box::new(JsonlRows { bytes: Bytes::open(&path)?, path, text_field, line: 0, conversations: true }))
}

struct JsonlRows {
    bytes: Bytes,
    path: PathBuf,
    text_field: String,
    /// Number of the last line read, from 1.
    line: u64,
    /// Whether the field holds messages, which are given as JSON.
    conversations: bool,
}

impl Iterator for JsonlRows {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

impl JsonlRows {
    fn next_row(&mut self) -> Result<Option<Document>, DataError> {
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            self.line += self.bytes.skip_blank_lines()?;
            let mut start = self.bytes.given();
            if self.bytes.read_line(&mut buffer)? == 0 {
                return Ok(None);
            }
            self.line += 1;
            let mut line = buffer.as_slice();
            if self.line == 1 && line.starts_with(BYTE_ORDER_MARK) {
                line = &line[BYTE_ORDER_MARK.len()..];
                start += BYTE_ORDER_MARK.len() as u64;
            }
            if !line.trim_ascii().is_empty() {
                let text = self.parse(line, start)?;
                return Ok(Some(Document { text, bytes_read: self.bytes.position() }));
            }
        }
    }

    fn parse(&self, line: &[u8], start: u64) -> Result<String, DataError> {
        let line = std::str::from_utf8(line).map_err(|error| DataError::NotUtf8 {
            place: self.place(),
            offset: start + error.valid_up_to() as u64,
            unit: self.bytes.unit(),
        })?;
        let value = parse_json(line).map_err(|source| match half_surrogate(line) {
            Some(escape) => DataError::HalfSurrogate { place: self.place(), escape: escape.to_owned() },
            None => {
                // A document over several lines begins with the first.
                let spans_lines = self.line == 1 && source.is_eof() && ["[", "{"].contains(&line.trim());
                DataError::Json { place: self.place(), spans_lines, source }
            }
        })?;
        let Value::Object(mut object) = value else {
            return Err(DataError::NotAnObject {
                place: self.place(),
                field: self.text_field.clone(),
                found: json_type(&value),
            });
        };
        match object.get_mut(&self.text_field).map(Value::take) {
            Some(Value::String(text)) if !self.conversations => Ok(text),
            Some(messages @ Value::Array(_)) if self.conversations => Ok(messages.to_string()),
            Some(other) => Err(DataError::NotAString {
                place: self.place(),
                field: self.text_field.clone(),
                found: json_type(&other).to_owned(),
                expected: if self.conversations { "an array of messages" } else { "a string" },
            }),
            None => Err(DataError::MissingField {
                place: self.place(),
                kind: "field",
                field: self.text_field.clone(),
                found: object.keys().cloned().collect(),
            }),
        }
    }

    fn place(&self) -> Place {
        Place { path: self.path.clone(), part: Some(("line", self.line)) }
    }
}

/// The first escape of `line` that is half of a surrogate pair.
fn half_surrogate(line: &str) -> Option<&str> {
    const ESCAPE: usize = "\\u0000".len();
    let unit = |at: usize| -> Option<u16> {
        let escape = line.get(at..at + ESCAPE)?;
        u16::from_str_radix(escape.strip_prefix("\\u")?, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = line.get(at..).and_then(|rest| rest.find('\\')) {
        at += found;
        at += match unit(at) {
            Some(0xd800..0xdc00) if unit(at + ESCAPE).is_some_and(|low| (0xdc00..0xe000).contains(&low)) => 2 * ESCAPE,
            Some(0xd800..0xe000) => return line.get(at..at + ESCAPE),
            Some(_) => ESCAPE,
            // Another escape has one character, a backslash or not.
            None => 1 + line[at + 1..].chars().next().map_or(0, char::len_utf8),
        };
    }
    None
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8], field: &str) -> Result<Vec<String>, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs_err::write(&path, content).unwrap();
        let documents: Result<Vec<Document>, _> = crate::documents(&path, field)?.collect();
        let documents = documents?;
        assert_eq!(documents.last().unwrap().bytes_read, content.trim_ascii_end().len() as u64 + 1);
        Ok(documents.into_iter().map(|document| document.text).collect())
    }

    fn message(content: &[u8]) -> String {
        let message = read(content, "text").unwrap_err().to_string();
        let path = message.split('`').find(|part| part.ends_with("a.jsonl")).unwrap().to_owned();
        message.replace(&path, "FILE")
    }

    #[test]
    fn each_line_is_a_document_and_blank_lines_are_passed_over() {
        let content =
            b"\xef\xbb\xbf{\"text\": \"one\\n\\u00e9\"}\r\n\n  \n{\"id\": 3, \"text\": \"\"}\n{\"text\":\"two\"}\n";
        assert_eq!(read(content, "text").unwrap(), ["one\né", "", "two"]);
        assert_eq!(read(b"{\"body\": \"b\", \"text\": 1}\n", "body").unwrap(), ["b"]);
    }

    #[test]
    fn lines_are_counted_through_millions_of_blank_ones() {
        let blank = "\n \t\r\n".repeat(700_000);
        let text = format!("{blank}{{\"text\": \"a\"}}\n{blank}   [1]");
        assert!(message(text.as_bytes()).starts_with("line 2800002 of `FILE` is an array"));
    }

    #[test]
    fn a_malformed_line_is_named_by_its_number() {
        assert_eq!(message(b"{\"text\": \"a\"}\n\n{\"text\": \n"), "line 3 of `FILE` is not valid JSON");
        let array = "line 1 of `FILE` is an array, expected an object with a text field `text`\nhint: ";
        assert!(message(b"[1]\n").starts_with(array));
        let document = "line 1 of `FILE` is not valid JSON\nhint: the file seems to be one JSON document: `jq -c";
        for text in [&b"[\n{\"text\": \"a\"}\n]\n"[..], b"{\n\"text\": \"a\"}\n"] {
            assert!(message(text).starts_with(document), "{}", message(text));
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_named_and_numbers_of_python_are_read() {
        let whole = b"{\"text\": \"a \\ud83d\\ude00\", \"score\": NaN}\n{\"text\": \"b\", \"least\": -Infinity}\n";
        assert_eq!(read(whole, "text").unwrap(), ["a \u{1f600}", "b"]);
        for (text, escape) in [
            (&b"{\"text\": \"x \\\\ \\ud83d y\"}\n"[..], "\\ud83d"),
            (b"{\"text\": \"\\uDE00\"}\n", "\\uDE00"),
            (b"{\"text\": \"\\ud83d\\ud83d\\ude00\"}\n", "\\ud83d"),
        ] {
            let expected =
                format!("line 1 of `FILE` has `{escape}`, half of a surrogate pair, which is no character\nhint: ");
            assert!(message(text).starts_with(&expected), "{}", message(text));
        }
        assert_eq!(message(b"{\"text\": \"\\\\ud83d\", x}\n"), "line 1 of `FILE` is not valid JSON");
    }

    #[test]
    fn a_missing_field_lists_the_fields_of_the_row() {
        assert_eq!(
            message(b"{\"text\": \"a\"}\n{\"content\": \"x\", \"id\": 1}\n"),
            "line 2 of `FILE` has no field `text`, found: `content`, `id`\n\
             hint: name the one that holds the text with `text_field`"
        );
        assert_eq!(message(b"{}\n"), "line 1 of `FILE` has no field `text`, found: nothing");
        assert!(message(b"{\"messages\": []}\n").contains("found: `messages`\nhint: these are conversations"));
        assert_eq!(message(b"{\"text\": null}\n"), "line 1 of `FILE` has null in `text`, expected a string");
    }

    #[test]
    fn a_bad_byte_is_named_by_line_and_offset_in_the_file() {
        assert_eq!(
            message(b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n"),
            "line 2 of `FILE` is not UTF-8: the byte at offset 24 of the file cannot be decoded\n\
             hint: save the text as UTF-8"
        );
    }
}
