//! Size budget of a converted model: a number of parameters, of bytes, or a fraction of its source.

use crate::byte_size::strip_unit;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;

/// Upper limit for all stored weights of a converted model. Written `90M`, `90_000_000`, `250MiB`
/// or `75%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Parameters; a shared one counts once.
    Parameters(usize),
    /// Bytes of the weights in the stored element type.
    Bytes(usize),
    /// Percent of the source's parameters.
    Percent(f64),
}

/// Units of a count of parameters.
const COUNT_UNITS: [(&str, f64); 3] = [("k", 1e3), ("M", 1e6), ("B", 1e9)];

impl Budget {
    /// Parameters that it allows, for a source of `source` parameters and weights of
    /// `element_bytes` bytes.
    #[must_use]
    pub fn parameters(self, source: usize, element_bytes: usize) -> usize {
        match self {
            Self::Parameters(parameters) => parameters,
            Self::Bytes(bytes) => bytes / element_bytes.max(1),
            Self::Percent(percent) => (source as f64 * percent / 100.0) as usize,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parameters(parameters) => write!(f, "{parameters}"),
            Self::Bytes(bytes) => write!(f, "{}kB", *bytes as f64 / 1e3),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl std::str::FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || {
            format!(
                "`{text}` is no budget, expected parameters (`90M`), bytes (`250MiB`) or a part of the source (`75%`)"
            )
        };
        let number = |digits: &str| {
            let value: f64 = digits.trim().replace('_', "").parse().map_err(|_| bad())?;
            if value.is_finite() && value > 0.0 { Ok(value) } else { Err(bad()) }
        };
        if let Some(digits) = text.strip_suffix('%') {
            return Ok(Self::Percent(number(digits)?));
        }
        // Bytes come first: `MB` ends like nothing else.
        if let Some((digits, size)) = strip_unit(text) {
            return Ok(Self::Bytes((number(digits)? * size).round() as usize));
        }
        for (unit, size) in COUNT_UNITS {
            if let Some(digits) = text.strip_suffix(unit) {
                return Ok(Self::Parameters((number(digits)? * size).round() as usize));
            }
        }
        Ok(Self::Parameters(number(text)? as usize))
    }
}

impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Parameters(parameters) => serializer.serialize_u64(*parameters as u64),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Budget;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("parameters (`90M`), bytes (`250MiB`) or a part of the source (`75%`)")
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Budget, E> {
                let bad = || E::invalid_value(serde::de::Unexpected::Signed(value), &self);
                usize::try_from(value).ok().filter(|value| *value > 0).map(Budget::Parameters).ok_or_else(bad)
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Budget, E> {
                i64::try_from(value).map_err(E::custom).and_then(|value| self.visit_i64(value))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Budget, E> {
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
    fn a_budget_is_a_number_with_what_it_counts() {
        let cases = [
            ("90M", Budget::Parameters(90_000_000)),
            ("1.5B", Budget::Parameters(1_500_000_000)),
            ("90_000_000", Budget::Parameters(90_000_000)),
            ("12k", Budget::Parameters(12_000)),
            ("250MiB", Budget::Bytes(262_144_000)),
            ("0.5GB", Budget::Bytes(500_000_000)),
            ("75%", Budget::Percent(75.0)),
        ];
        for (text, budget) in cases {
            assert_eq!(text.parse(), Ok(budget), "{text}");
            assert_eq!(budget.to_string().parse(), Ok(budget), "{text}");
        }
        for text in ["", "0", "-5M", "M", "75 %%", "12 apples", "nan", "infM"] {
            assert!(text.parse::<Budget>().is_err(), "{text}");
        }
        assert_eq!(Budget::Bytes(1000).parameters(5, 4), 250);
        assert_eq!(Budget::Percent(50.0).parameters(300, 4), 150);
    }
}
