//! `.parquet` as the Hub stores it: strings, integers, lists and structs
//! (<https://parquet.apache.org/docs/file-format/>).

use super::TaskRows;
use crate::EvalError;
use parquet::record::{Field, List, Row};
use retie_data::parquet_rows;
use serde_json::{Map, Value};
use std::path::Path;

pub(super) fn read(path: &Path) -> Result<TaskRows, EvalError> {
    let rows = parquet_rows(path)?.into_iter().enumerate();
    Ok(TaskRows { unit: "row", rows: rows.map(|(index, row)| (index + 1, Ok(object(&row)))).collect() })
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

fn list(list: &List) -> Value {
    list.elements().iter().map(value).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Bool(x) => (*x).into(),
        Field::Byte(x) => (*x).into(),
        Field::Short(x) => (*x).into(),
        Field::Int(x) => (*x).into(),
        Field::Long(x) => (*x).into(),
        Field::UByte(x) => (*x).into(),
        Field::UShort(x) => (*x).into(),
        Field::UInt(x) => (*x).into(),
        Field::ULong(x) => (*x).into(),
        Field::Float(x) => (*x).into(),
        Field::Double(x) => (*x).into(),
        Field::Str(x) => x.as_str().into(),
        Field::Bytes(x) => str::from_utf8(x.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => object(row).into(),
        Field::ListInternal(items) => list(items),
        // No task reads dates, decimals or maps: as null they are reported where a text is
        // expected.
        _ => Value::Null,
    }
}
