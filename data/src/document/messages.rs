//! Conversations of a `.parquet` file: a list of structs with the strings `role` and `content`, as
//! JSON.

use std::path::Path;

use ::parquet::basic::Type as PhysicalType;
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::FileReader;
use serde_json::{Map, Value, json};

use super::{Document, Inner};
use crate::error::{DataError, Place};
use crate::parquet_file::{ParquetFile, ROWS_PER_READ};

/// Fields of a message.
const FIELDS: [&str; 2] = ["role", "content"];

pub(super) fn open(path: &Path, field: &str) -> Result<Inner, DataError> {
    let file = ParquetFile::open(path)?;
    // `FIELD.list.element.role`; the names between are the writer's.
    let column = |part: &str| {
        file.columns().iter().position(|column| {
            let parts = column.path().parts();
            let ends =
                parts.first().is_some_and(|first| first == field) && parts.last().is_some_and(|last| last == part);
            ends && column.max_rep_level() == 1 && column.physical_type() == PhysicalType::BYTE_ARRAY
        })
    };
    let [Some(role), Some(content)] = FIELDS.map(column) else {
        let (place, found) = (Place { path: path.to_owned(), part: None }, file.column_names());
        return Err(DataError::MissingField { place, kind: "list of messages", field: field.to_owned(), found });
    };
    file.check_codecs([role, content])?;
    // A list that may be null has one level more before that of an element.
    let fields = file.metadata().file_metadata().schema_descr().root_schema().get_fields();
    let nullable = fields.iter().any(|list| list.name() == field && list.is_optional());
    let columns = [role, content].map(|index| (index, file.columns()[index].max_def_level()));
    let ready = Vec::new().into_iter();
    Ok(Box::new(Rows { file, columns, nullable, row_group: 0, values: None, row: 0, ready }))
}

struct Rows {
    file: ParquetFile,
    /// The columns of [`FIELDS`], each with the definition level of a value that is there.
    columns: [(usize, i16); 2],
    /// Whether a list may be null.
    nullable: bool,
    /// The next row group to open.
    row_group: usize,
    values: Option<[ColumnReaderImpl<ByteArrayType>; 2]>,
    /// Rows given so far.
    row: u64,
    /// Decoded rows.
    ready: std::vec::IntoIter<Value>,
}

impl Iterator for Rows {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(messages) = self.ready.next() {
                self.row += 1;
                let bytes_read = self.file.bytes_read(self.row);
                return Some(Ok(Document { text: messages.to_string(), bytes_read }));
            }
            match self.read_more() {
                Ok(true) => (),
                Ok(false) => return None,
                Err(source) => return Some(Err(self.file.error(source))),
            }
        }
    }
}

impl Rows {
    /// Decodes some conversations into `ready`; false at the end of the file.
    fn read_more(&mut self) -> Result<bool, ParquetError> {
        loop {
            let Some([roles, contents]) = &mut self.values else {
                if self.row_group == self.file.num_row_groups() {
                    return Ok(false);
                }
                let [(role, _), (content, _)] = self.columns;
                let open = |column| self.file.strings(self.row_group, column);
                self.values = Some([open(role)?, open(content)?]);
                self.row_group += 1;
                continue;
            };
            let [(_, role), (_, content)] = self.columns;
            let roles = lists(roles, role, self.nullable)?;
            let contents = lists(contents, content, self.nullable)?;
            if roles.len() != contents.len() {
                let (roles, contents) = (roles.len(), contents.len());
                return Err(ParquetError::General(format!("{roles} lists of roles and {contents} of contents")));
            }
            if roles.is_empty() {
                self.values = None;
                continue;
            }
            let rows = roles.into_iter().zip(contents).map(|(roles, contents)| conversation([roles, contents]));
            self.ready = rows.collect::<Vec<_>>().into_iter();
            return Ok(true);
        }
    }
}

/// The messages of a row, given the values of each of [`FIELDS`].
fn conversation(values: [Vec<Value>; 2]) -> Value {
    let mut messages = Vec::<Map<String, Value>>::new();
    for (values, field) in values.into_iter().zip(FIELDS) {
        messages.resize(messages.len().max(values.len()), Map::new());
        for (message, value) in messages.iter_mut().zip(values) {
            message.insert(field.to_owned(), value);
        }
    }
    json!(messages)
}

/// The strings of the lists of the next rows, null for one that is absent. `level` is the
/// definition level of one that is there; `nullable` says whether a list may be null.
fn lists(
    column: &mut ColumnReaderImpl<ByteArrayType>,
    level: i16,
    nullable: bool,
) -> Result<Vec<Vec<Value>>, ParquetError> {
    let (mut definitions, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::<ByteArray>::new());
    column.read_records(ROWS_PER_READ, Some(&mut definitions), Some(&mut repetitions), &mut values)?;
    let mut lists: Vec<Vec<Value>> = Vec::new();
    let mut values = values.into_iter();
    for (definition, repetition) in definitions.into_iter().zip(repetitions) {
        if repetition == 0 {
            lists.push(Vec::new());
        }
        let value = match definition == level {
            true => values.next().map(|value| value.as_utf8().map(Value::from)).transpose()?,
            // An element is there if the level is above that of an empty list.
            false => (definition > i16::from(nullable)).then_some(Value::Null),
        };
        if let (Some(list), Some(value)) = (lists.last_mut(), value) {
            list.push(value);
        }
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(name: &str, field: &str) -> Result<Vec<Value>, DataError> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let text = |row: Result<Document, DataError>| Ok(serde_json::from_str(&row?.text).unwrap());
        crate::document::conversations(&path, field)?.map(text).collect()
    }

    /// Written by pyarrow: see tests/golden/make_parquet.py.
    #[test]
    fn conversations_come_in_order_with_what_is_null() {
        let talk = |row: usize| {
            let pair = [
                json!({"role": "user", "content": format!("question {row}")}),
                json!({"role": "assistant", "content": "é".repeat(row)}),
            ];
            Value::from(vec![pair; 1 + row % 2].concat())
        };
        let mut expected: Vec<Value> = (0..5).map(talk).collect();
        expected.push(json!([]));
        assert_eq!(rows("chats_required.parquet", "talk").unwrap(), expected);
        expected.push(json!([]));
        expected.push(json!([{"role": "user", "content": null}, {"role": null, "content": null}]));
        assert_eq!(rows("chats.parquet", "messages").unwrap(), expected);
        let message = rows("chats.parquet", "talk").unwrap_err().to_string();
        assert!(
            message.contains("has no list of messages `talk`, found: `id`, `messages.list.element.content`"),
            "{message}"
        );
        assert!(rows("mixed.parquet", "body").is_err() && rows("plain.arrow", "text").is_err());
    }
}
