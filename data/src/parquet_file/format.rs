//! The structs of a parquet file's metadata and page headers, as far as a walk over their bytes has
//! to know them: the type of each field by its number
//! (<https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>).

/// Type of a field.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// `bool`: its value stands in the type.
    Bool,
    /// `i8`.
    Byte,
    /// `i16`, `i32`, `i64` and enumerations: one encoding, three types.
    I16,
    I32,
    I64,
    Double,
    /// `binary` and `string`.
    Binary,
    Struct(Fields),
    List(&'static Kind),
}

/// Fields of a struct or union by number; others may stand between them.
pub(super) type Fields = &'static [(i16, Kind)];

use Kind::{Binary, Bool, Byte, Double, I16, I32, I64, List, Struct};

/// Number of the uncompressed size of a page, without its header, in [`PAGE_HEADER`].
pub(super) const UNCOMPRESSED_PAGE_SIZE: i16 = 2;
/// Number of the size of a page in the file, without its header, in [`PAGE_HEADER`].
pub(super) const COMPRESSED_PAGE_SIZE: i16 = 3;

pub(super) const FILE_META_DATA: Fields = &[
    (1, I32),
    (2, List(&Struct(SCHEMA_ELEMENT))),
    (3, I64),
    (4, List(&Struct(ROW_GROUP))),
    (5, List(&Struct(KEY_VALUE))),
    (6, Binary),
    (7, List(&Struct(COLUMN_ORDER))),
    (8, Struct(ENCRYPTION_ALGORITHM)),
    (9, Binary),
];

pub(super) const PAGE_HEADER: Fields = &[
    (1, I32),
    (UNCOMPRESSED_PAGE_SIZE, I32),
    (COMPRESSED_PAGE_SIZE, I32),
    (4, I32),
    (5, Struct(DATA_PAGE_HEADER)),
    (6, Struct(NOTHING)),
    (7, Struct(DICTIONARY_PAGE_HEADER)),
    (8, Struct(DATA_PAGE_HEADER_V2)),
];

const NOTHING: Fields = &[];

const SCHEMA_ELEMENT: Fields = &[
    (1, I32),
    (2, I32),
    (3, I32),
    (4, Binary),
    (5, I32),
    (6, I32),
    (7, I32),
    (8, I32),
    (9, I32),
    (10, Struct(LOGICAL_TYPE)),
    (11, I32),
];

const LOGICAL_TYPE: Fields = &[
    (1, Struct(NOTHING)),
    (2, Struct(NOTHING)),
    (3, Struct(NOTHING)),
    (4, Struct(NOTHING)),
    (5, Struct(&[(1, I32), (2, I32)])),
    (6, Struct(NOTHING)),
    (7, Struct(TIME)),
    (8, Struct(TIME)),
    (10, Struct(&[(1, Byte), (2, Bool)])),
    (11, Struct(NOTHING)),
    (12, Struct(NOTHING)),
    (13, Struct(NOTHING)),
    (14, Struct(NOTHING)),
    (15, Struct(NOTHING)),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Binary)])),
    (18, Struct(&[(1, Binary), (2, I32)])),
    (19, Struct(NOTHING)),
];

/// Time and timestamp.
const TIME: Fields = &[(1, Bool), (2, Struct(&[(1, Struct(NOTHING)), (2, Struct(NOTHING)), (3, Struct(NOTHING))]))];

const ROW_GROUP: Fields = &[
    (1, List(&Struct(COLUMN_CHUNK))),
    (2, I64),
    (3, I64),
    (4, List(&Struct(&[(1, I32), (2, Bool), (3, Bool)]))),
    (5, I64),
    (6, I64),
    (7, I16),
];

const COLUMN_CHUNK: Fields = &[
    (1, Binary),
    (2, I64),
    (3, Struct(COLUMN_META_DATA)),
    (4, I64),
    (5, I32),
    (6, I64),
    (7, I32),
    (8, Struct(&[(1, Struct(NOTHING)), (2, Struct(&[(1, List(&Binary)), (2, Binary)]))])),
    (9, Binary),
];

const COLUMN_META_DATA: Fields = &[
    (1, I32),
    (2, List(&I32)),
    (3, List(&Binary)),
    (4, I32),
    (5, I64),
    (6, I64),
    (7, I64),
    (8, List(&Struct(KEY_VALUE))),
    (9, I64),
    (10, I64),
    (11, I64),
    (12, Struct(STATISTICS)),
    (13, List(&Struct(&[(1, I32), (2, I32), (3, I32)]))),
    (14, I64),
    (15, I32),
    (16, Struct(&[(1, I64), (2, List(&I64)), (3, List(&I64))])),
    (17, Struct(&[(1, Struct(BOUNDING_BOX)), (2, List(&I32))])),
];

const STATISTICS: Fields =
    &[(1, Binary), (2, Binary), (3, I64), (4, I64), (5, Binary), (6, Binary), (7, Bool), (8, Bool), (9, I64)];

const BOUNDING_BOX: Fields =
    &[(1, Double), (2, Double), (3, Double), (4, Double), (5, Double), (6, Double), (7, Double), (8, Double)];

const KEY_VALUE: Fields = &[(1, Binary), (2, Binary)];

const COLUMN_ORDER: Fields = &[(1, Struct(NOTHING)), (2, Struct(NOTHING)), (3, Struct(NOTHING))];

const ENCRYPTION_ALGORITHM: Fields = &[(1, Struct(AES_GCM)), (2, Struct(AES_GCM))];

const AES_GCM: Fields = &[(1, Binary), (2, Binary), (3, Bool)];

const DATA_PAGE_HEADER: Fields = &[(1, I32), (2, I32), (3, I32), (4, I32), (5, Struct(STATISTICS))];

const DICTIONARY_PAGE_HEADER: Fields = &[(1, I32), (2, I32), (3, Bool)];

const DATA_PAGE_HEADER_V2: Fields =
    &[(1, I32), (2, I32), (3, I32), (4, I32), (5, I32), (6, I32), (7, Bool), (8, Struct(STATISTICS))];
