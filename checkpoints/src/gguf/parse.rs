//! Parser of GGUF versions 2 and 3, little-endian: header, metadata, tensor table.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. `GGUF`, version (u32),
//! number of tensors (u64), number of metadata pairs (u64); the pairs; for each tensor its name,
//! number of dimensions (u32), dimensions (u64, fastest first), type (u32) and offset (u64) from
//! the start of the data, which is the next multiple of `general.alignment`. Every length is
//! checked against the rest of the file before anything is allocated for it.

use super::{
    GgufError,
    metadata::{MetaValue, Metadata},
};
use std::collections::HashSet;

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// Version that is written.
pub(super) const NEWEST_VERSION: u32 = 3;
const ALIGNMENT_KEY: &str = "general.alignment";
pub(super) const DEFAULT_ALIGNMENT: u64 = 32; // stated by the format
const MAX_DIMENSIONS: u32 = 4; // `GGML_MAX_DIMS`
const MAX_NESTING: usize = 4; // arrays of arrays do not occur in practice; a bound keeps the stack safe
const SMALLEST_TENSOR_RECORD: u64 = 8 + 1 + 4 + 8 + 4 + 8; // name of one letter, one dimension
const SMALLEST_PAIR: u64 = 8 + 4 + 1; // empty key, one byte

/// One entry of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawTensor {
    pub name: String,
    /// Dimensions, fastest first: a linear is `[in_features, out_features]`.
    pub dimensions: Vec<u64>,
    pub type_id: u32,
    /// Offset from the start of the file.
    pub start: u64,
}

/// Everything before the tensor data.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: Metadata,
    pub tensors: Vec<RawTensor>,
}

/// Parses everything before the tensor data of the GGUF file `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, GgufError> {
    let mut reader = Reader { bytes, position: 0 };
    let magic = reader.bytes.get(..4).unwrap_or(reader.bytes);
    if magic != MAGIC {
        return Err(GgufError::Magic { found: magic.to_vec() });
    }
    reader.position = 4;
    match reader.u32("the version")? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
        found => return Err(GgufError::Version { found }),
    }
    let num_tensors = reader.u64("the number of tensors")?;
    let num_pairs = reader.u64("the number of metadata pairs")?;
    reader.reserve("the metadata", num_pairs, SMALLEST_PAIR)?;
    let mut metadata = Metadata::default();
    for _ in 0..num_pairs {
        let key = reader.text("a metadata key")?;
        let type_id = reader.u32(&key)?;
        let value = reader.value(&key, type_id, 0)?;
        metadata.insert(key, value)?;
    }
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some(MetaValue::Unsigned(n)) if n.is_power_of_two() && *n <= u64::from(u32::MAX) => *n,
        Some(other) => {
            return Err(GgufError::BadValue {
                key: ALIGNMENT_KEY.to_owned(),
                found: other.to_string(),
                expected: "a power of two".to_owned(),
            });
        }
    };
    reader.reserve("the tensor table", num_tensors, SMALLEST_TENSOR_RECORD)?;
    let mut names = HashSet::new();
    let mut tensors = Vec::new();
    for _ in 0..num_tensors {
        let tensor = reader.tensor()?;
        if !names.insert(tensor.name.clone()) {
            return Err(GgufError::Duplicate { what: "tensor", name: tensor.name });
        }
        tensors.push(tensor);
    }
    let data = (reader.position as u64).next_multiple_of(alignment);
    for tensor in &mut tensors {
        tensor.start = data.checked_add(tensor.start).ok_or_else(|| GgufError::Truncated {
            what: format!("tensor `{}`", tensor.name),
            offset: tensor.start,
            needed: 1,
            len: bytes.len() as u64,
        })?;
    }
    Ok(Header { metadata, tensors })
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn truncated(&self, what: &str, needed: u64) -> GgufError {
        GgufError::Truncated {
            what: what.to_owned(),
            offset: self.position as u64,
            needed,
            len: self.bytes.len() as u64,
        }
    }

    /// Refuses a count of records that cannot fit in the rest of the file.
    fn reserve(&self, what: &str, count: u64, smallest: u64) -> Result<(), GgufError> {
        let needed = count.saturating_mul(smallest);
        if needed > (self.bytes.len() - self.position) as u64 { Err(self.truncated(what, needed)) } else { Ok(()) }
    }

    fn take(&mut self, what: &str, len: u64) -> Result<&'a [u8], GgufError> {
        self.reserve(what, len, 1)?;
        // Cast is exact: `reserve` compared it with a length.
        let end = self.position + len as usize;
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let taken = self.take(what, N as u64)?;
        taken.first_chunk::<N>().copied().ok_or_else(|| self.truncated(what, N as u64))
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn text(&mut self, what: &str) -> Result<String, GgufError> {
        let len = self.u64(what)?;
        let bytes = self.take(what, len)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| GgufError::NotUtf8 { what: what.to_owned() })
    }

    fn value(&mut self, key: &str, type_id: u32, depth: usize) -> Result<MetaValue, GgufError> {
        Ok(match type_id {
            0 => MetaValue::Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            1 => MetaValue::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => MetaValue::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => MetaValue::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => MetaValue::Unsigned(self.u32(key)?.into()),
            5 => MetaValue::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => MetaValue::Float(shortest(f32::from_le_bytes(self.array(key)?))),
            7 => match self.array::<1>(key)? {
                [0] => MetaValue::Bool(false),
                [1] => MetaValue::Bool(true),
                [found] => {
                    return Err(GgufError::BadValue {
                        key: key.to_owned(),
                        found: found.to_string(),
                        expected: "0 or 1 for a boolean".to_owned(),
                    });
                }
            },
            8 => MetaValue::Text(self.text(key)?),
            9 => {
                if depth == MAX_NESTING {
                    return Err(GgufError::Nesting { key: key.to_owned(), limit: MAX_NESTING });
                }
                let item_type = self.u32(key)?;
                let count = self.u64(key)?;
                self.reserve(key, count, smallest_value(item_type))?;
                let items = (0..count).map(|_| self.value(key, item_type, depth + 1));
                MetaValue::Array(items.collect::<Result<_, _>>()?)
            }
            10 => MetaValue::Unsigned(self.u64(key)?),
            11 => MetaValue::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => MetaValue::Float(f64::from_le_bytes(self.array(key)?)),
            found => return Err(GgufError::ValueType { key: key.to_owned(), found }),
        })
    }

    fn tensor(&mut self) -> Result<RawTensor, GgufError> {
        let name = self.text("the name of a tensor")?;
        let what = format!("the table entry of tensor `{name}`");
        let num_dimensions = self.u32(&what)?;
        if !(1..=MAX_DIMENSIONS).contains(&num_dimensions) {
            return Err(GgufError::BadValue {
                key: format!("number of dimensions of `{name}`"),
                found: num_dimensions.to_string(),
                expected: format!("1 to {MAX_DIMENSIONS}"),
            });
        }
        let dimensions = (0..num_dimensions).map(|_| self.u64(&what)).collect::<Result<Vec<_>, _>>()?;
        let type_id = self.u32(&what)?;
        let start = self.u64(&what)?;
        Ok(RawTensor { name, dimensions, type_id, start })
    }
}

/// Minimum size in bytes of a value of the type.
fn smallest_value(type_id: u32) -> u64 {
    match type_id {
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => 12,
        _ => 1,
    }
}

/// The `f64` with the same decimal text as `x`.
pub(super) fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::test_file::{TestFile, text, u32_value};

    fn small() -> Vec<u8> {
        TestFile::default()
            .pair("general.architecture", 8, &text("llama"))
            .pair("x.list", 9, &[&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &text("a"), &text("b")].concat())
            .pair("x.eps", 6, &1e-5f32.to_le_bytes())
            .tensor("t", &[4, 2], 0, &[0; 32])
            .build()
    }

    #[test]
    fn metadata_and_tensors_are_read() {
        let bytes = small();
        let header = parse(&bytes).unwrap();
        assert_eq!(header.metadata.optional_texts("x.list").unwrap().unwrap(), ["a", "b"]);
        assert_eq!(header.metadata.get("x.eps"), Some(&MetaValue::Float(1e-5)));
        let [tensor] = &header.tensors[..] else { panic!("one tensor") };
        assert_eq!((tensor.name.as_str(), &tensor.dimensions[..], tensor.type_id), ("t", &[4, 2][..], 0));
        assert_eq!(tensor.start as usize + 32, bytes.len());
    }

    /// The tensor data are not checked here, so the file may end after the table.
    #[test]
    fn every_truncation_is_an_error_and_not_a_panic() {
        let bytes = small();
        let end = (0..=bytes.len()).find(|len| parse(&bytes[..*len]).is_ok()).unwrap();
        assert!((0..end).all(|len| parse(&bytes[..len]).is_err()));
        let last_field = 0u64.to_le_bytes();
        assert_eq!(bytes[end - 8..end], last_field, "the table ends with the offset of its only tensor");
    }

    #[test]
    fn every_changed_byte_is_read_without_a_panic() {
        let bytes = small();
        for at in 0..bytes.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= change;
                let _ = parse(&bytes);
            }
        }
    }

    #[test]
    fn another_magic_endianness_or_version_is_named() {
        let error = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        assert!(error(b"PK\x03\x04....").starts_with("the file starts with `PK\\x03\\x04`, expected `GGUF`"));
        assert!(error(b"GG").starts_with("the file starts with `GG`"));
        assert!(error(b"").starts_with("the file starts with ``"));
        assert!(error(b"GGUF\x00\x00\x00\x03").starts_with("the file is big-endian"));
        assert!(error(b"tjgg\x03\x00\x00\x00").contains("of a format before GGUF"));
        assert!(
            error(b"GGUF\x01\x00\x00\x00").starts_with("GGUF version `1` is not supported, expected 2 or 3\nhint: ")
        );
    }

    #[test]
    fn absurd_counts_are_refused_before_anything_is_allocated() {
        let header = |tensors: u64, pairs: u64| {
            [&b"GGUF"[..], &3u32.to_le_bytes(), &tensors.to_le_bytes(), &pairs.to_le_bytes()].concat()
        };
        for bytes in [header(u64::MAX, 0), header(0, u64::MAX), header(1 << 40, 0), header(0, 1 << 40)] {
            assert!(matches!(parse(&bytes), Err(GgufError::Truncated { .. })));
        }
        let array = [&4u32.to_le_bytes()[..], &(1u64 << 61).to_le_bytes()].concat();
        let bytes = TestFile::default().pair("list", 9, &array).build();
        assert!(matches!(parse(&bytes), Err(GgufError::Truncated { .. })));
    }

    #[test]
    fn nested_arrays_end_at_a_limit() {
        let level = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
        let bytes = TestFile::default().pair("list", 9, &level.repeat(100_000)).build();
        assert!(matches!(parse(&bytes), Err(GgufError::Nesting { .. })));
    }

    #[test]
    fn a_name_that_occurs_twice_is_an_error() {
        let bytes = TestFile::default().pair("a", 4, &u32_value(1)).pair("a", 4, &u32_value(1)).build();
        assert_eq!(parse(&bytes).unwrap_err().to_string(), "metadata key `a` occurs twice");
        let bytes = TestFile::default().tensor("t", &[1], 0, &[0; 4]).tensor("t", &[1], 0, &[0; 4]).build();
        assert_eq!(parse(&bytes).unwrap_err().to_string(), "tensor `t` occurs twice");
    }
}
