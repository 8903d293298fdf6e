//! Conversations of a `.parquet` file: a list of structs with the strings `role` and `content`, as
//! JSON.

use std::path::{Path, PathBuf};

use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value, json};

use super::{Document, Inner};
use crate::error::{DataError, Place};

/// Fields of a message.
const FIELDS: [&str; 2] = ["role", "content"];

pub(super) fn open(path: &Path, field: &str) -> Result<Inner, DataError> {
    let file = fs_err::File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes == 0 {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    let wrap = |source| DataError::Parquet { path: path.to_owned(), source };
    let reader = SerializedFileReader::new(file.into_file()).map_err(wrap)?;
    let metadata = reader.metadata().file_metadata();
    let columns = metadata.schema_descr().columns();
    // `FIELD.list.element.role`; the names between are the writer's.
    let column = |part: &str| {
        columns.iter().position(|column| {
            let parts = column.path().parts();
            let ends =
                parts.first().is_some_and(|first| first == field) && parts.last().is_some_and(|last| last == part);
            ends && column.max_rep_level() == 1
        })
    };
    let place = Place { path: path.to_owned(), part: None };
    let [Some(role), Some(content)] = FIELDS.map(column) else {
        let found = columns.iter().map(|column| column.path().string()).collect();
        return Err(DataError::MissingField { place, kind: "list of messages", field: field.to_owned(), found });
    };
    let num_rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
    // A list that may be null has one level more before that of an element.
    let fields = metadata.schema_descr().root_schema().get_fields();
    let nullable = fields.iter().any(|list| list.name() == field && list.is_optional());
    let levels = [role, content].map(|column| (column, columns[column].max_def_level()));
    let ready = Vec::new().into_iter();
    let path = path.to_owned();
    Ok(Box::new(Rows { path, bytes, num_rows, levels, nullable, reader, row_group: 0, row: 0, ready }))
}

struct Rows {
    path: PathBuf,
    /// Size of the file.
    bytes: u64,
    num_rows: u64,
    /// The columns, each with the definition level of a value that is there.
    levels: [(usize, i16); 2],
    /// Whether a list may be null.
    nullable: bool,
    reader: SerializedFileReader<std::fs::File>,
    /// The next row group to read.
    row_group: usize,
    /// Rows given so far.
    row: u64,
    ready: std::vec::IntoIter<Value>,
}

impl Iterator for Rows {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(messages) = self.ready.next() {
                self.row += 1;
                let bytes_read = u128::from(self.bytes) * u128::from(self.row) / u128::from(self.num_rows.max(1));
                let bytes_read = u64::try_from(bytes_read).unwrap_or(self.bytes);
                return Some(Ok(Document { text: messages.to_string(), bytes_read }));
            }
            if self.row_group == self.reader.num_row_groups() {
                return None;
            }
            match self.read_group() {
                Ok(rows) => self.ready = rows.into_iter(),
                Err(source) => return Some(Err(DataError::Parquet { path: self.path.clone(), source })),
            }
            self.row_group += 1;
        }
    }
}

impl Rows {
    /// The conversations of a row group.
    fn read_group(&self) -> Result<Vec<Value>, ParquetError> {
        let group = self.reader.get_row_group(self.row_group)?;
        let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let mut conversations = vec![Vec::<Map<String, Value>>::new(); rows];
        for ((column, level), field) in self.levels.into_iter().zip(FIELDS) {
            let ColumnReader::ByteArrayColumnReader(values) = group.get_column_reader(column)? else {
                return Err(ParquetError::General(format!("`{field}` of the messages is not a string")));
            };
            for (messages, values) in conversations.iter_mut().zip(lists(values, rows, (level, self.nullable))?) {
                messages.resize(messages.len().max(values.len()), Map::new());
                for (message, value) in messages.iter_mut().zip(values) {
                    message.insert(field.to_owned(), value);
                }
            }
        }
        Ok(conversations.into_iter().map(|messages| json!(messages)).collect())
    }
}

/// The strings of each row's list; null for one that is absent.
fn lists(
    mut column: ColumnReaderImpl<ByteArrayType>,
    rows: usize,
    (level, nullable): (i16, bool),
) -> Result<Vec<Vec<Value>>, ParquetError> {
    let (mut definitions, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::<ByteArray>::new());
    while column.read_records(rows, Some(&mut definitions), Some(&mut repetitions), &mut values)?.0 > 0 {}
    let mut lists: Vec<Vec<Value>> = Vec::with_capacity(rows);
    let mut values = values.into_iter();
    for (definition, repetition) in definitions.into_iter().zip(repetitions) {
        if repetition == 0 {
            lists.push(Vec::new());
        }
        let value = match definition == level {
            true => values.next().map(|value| text(&value)).transpose()?,
            // An element is there if the level is above that of an empty list.
            false => (definition > i16::from(nullable)).then_some(Value::Null),
        };
        if let (Some(list), Some(value)) = (lists.last_mut(), value) {
            list.push(value);
        }
    }
    lists.resize(rows, Vec::new());
    Ok(lists)
}

fn text(value: &ByteArray) -> Result<Value, ParquetError> {
    Ok(Value::from(value.as_utf8()?))
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
