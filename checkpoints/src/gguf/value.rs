//! Metadata values as they are written.

use super::metadata::MetaValue;

/// A metadata value with its type in the file.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum GgufValue {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    /// An array of text.
    Texts(Vec<String>),
    /// An array of 32-bit integers.
    Integers(Vec<i32>),
    /// An array of 32-bit floats.
    Floats(Vec<f32>),
}

impl GgufValue {
    /// Number of the type, and bytes of the value.
    pub(super) fn encode(&self) -> (u32, Vec<u8>) {
        match self {
            Self::U32(n) => (4, n.to_le_bytes().to_vec()),
            Self::F32(x) => (6, x.to_le_bytes().to_vec()),
            Self::Bool(b) => (7, vec![u8::from(*b)]),
            Self::Text(s) => (8, text(s)),
            Self::Texts(items) => (9, array(8, items.len(), items.iter().flat_map(|item| text(item)))),
            Self::Integers(items) => (9, array(5, items.len(), items.iter().flat_map(|n| n.to_le_bytes()))),
            Self::Floats(items) => (9, array(6, items.len(), items.iter().flat_map(|x| x.to_le_bytes()))),
        }
    }

    /// The value as it is read.
    pub(super) fn read(&self) -> MetaValue {
        match self {
            Self::U32(n) => MetaValue::Unsigned((*n).into()),
            Self::F32(x) => MetaValue::Float(super::parse::shortest(*x)),
            Self::Bool(b) => MetaValue::Bool(*b),
            Self::Text(s) => MetaValue::Text(s.clone()),
            Self::Texts(items) => MetaValue::Array(items.iter().cloned().map(MetaValue::Text).collect()),
            Self::Floats(items) => {
                MetaValue::Array(items.iter().map(|x| MetaValue::Float(super::parse::shortest(*x))).collect())
            }
            Self::Integers(items) => MetaValue::Array(items.iter().map(|n| MetaValue::Signed((*n).into())).collect()),
        }
    }
}

/// A string with its length.
pub(super) fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat()
}

fn array(item_type: u32, len: usize, items: impl Iterator<Item = u8>) -> Vec<u8> {
    let head = [&item_type.to_le_bytes()[..], &(len as u64).to_le_bytes()].concat();
    head.into_iter().chain(items).collect()
}
