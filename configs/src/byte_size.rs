//! A number of bytes with a unit: `5GB`, `500MiB`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;

/// Bytes, at least 1; written as `transformers` writes `max_shard_size`: a number, or a number with
/// a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(u64);

/// Units of bytes. None ends like another.
const UNITS: [(&str, f64); 6] =
    [("KiB", 1024.0), ("MiB", 1048576.0), ("GiB", 1073741824.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)];

/// `text` without its unit of bytes, and the bytes of the unit; `None` without one.
pub(crate) fn strip_unit(text: &str) -> Option<(&str, f64)> {
    UNITS.into_iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)))
}

impl ByteSize {
    /// The number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

const EXPECTED: &str = "a size in bytes such as `5GB` or `500MiB`";

/// With the largest unit that divides it.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.into_iter().filter(|(_, bytes)| self.0.is_multiple_of(*bytes as u64));
        match whole.max_by(|a, b| a.1.total_cmp(&b.1)) {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes as u64),
            None => write!(f, "{}", self.0),
        }
    }
}

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, unit) = strip_unit(text).unwrap_or((text, 1.0));
        let number: Option<f64> = digits.trim().replace('_', "").parse().ok();
        let bytes = number.map(|number| (number * unit).round()).filter(|bytes| (1.0..=1e18).contains(bytes));
        bytes.map(|bytes| Self(bytes as u64)).ok_or_else(|| format!("`{text}` is no size, expected {EXPECTED}"))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<ByteSize, E> {
                let bad = || E::invalid_value(serde::de::Unexpected::Signed(value), &self);
                u64::try_from(value).ok().filter(|bytes| *bytes > 0).map(ByteSize).ok_or_else(bad)
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<ByteSize, E> {
                i64::try_from(value).map_err(E::custom).and_then(|value| self.visit_i64(value))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit_or_is_a_number_of_bytes() {
        for (text, bytes) in [("5GB", 5_000_000_000), ("500MiB", 524_288_000), ("1.5kB", 1500), ("12_345", 12_345)] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.bytes(), bytes, "{text}");
            assert_eq!(size.to_string().parse(), Ok(size), "{text}");
        }
        assert_eq!(ByteSize(5_000_000_000).to_string(), "5GB");
        for text in ["", "0", "-5GB", "GB", "5 apples", "nan", "infGB", "5M"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
