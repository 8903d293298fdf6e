//! Meaning of a plain YAML scalar: the core schema of YAML 1.2
//! (<https://yaml.org/spec/1.2.2/#103-core-schema>), in which `3e-3` is a number and `yes` is a
//! string. Two additions for numbers written by hand: `_` between digits (`300_000`), and integers
//! with an exponent (`1e9`).

/// A scalar as written. `plain` means without quotes: only plain scalars can be numbers, booleans
/// or null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) plain: bool,
}

impl Scalar {
    pub(super) fn plain(text: &str) -> Self {
        Self { text: text.to_owned(), plain: true }
    }

    fn plain_text(&self) -> Option<&str> {
        self.plain.then_some(self.text.as_str())
    }

    pub(super) fn is_null(&self) -> bool {
        self.plain_text().is_some_and(|t| matches!(t, "" | "~" | "null" | "Null" | "NULL"))
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        match self.plain_text()? {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => None,
        }
    }

    pub(super) fn as_integer(&self) -> Option<i128> {
        let text = self.plain_text()?;
        let based = |prefix: &str, radix| {
            let digits = text.strip_prefix(prefix)?;
            let digits_only = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
            digits_only.then(|| i128::from_str_radix(digits, radix).ok())?
        };
        if let Some(value) = based("0x", 16).or_else(|| based("0o", 8)) {
            return Some(value);
        }
        let text = without_separators(text)?;
        if is_digits(text.strip_prefix(['-', '+']).unwrap_or(&text)) {
            return text.parse().ok();
        }
        let value = self.as_float().filter(|_| text.contains(['e', 'E']))?;
        // Every integer below 2^53 is exact in f64.
        (value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0).then_some(value as i128)
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        let text = without_separators(self.plain_text()?)?;
        let (sign, magnitude) = match text.strip_prefix('-') {
            Some(rest) => (-1.0, rest),
            None => (1.0, text.strip_prefix('+').unwrap_or(&text)),
        };
        match magnitude {
            ".inf" | ".Inf" | ".INF" => return Some(sign * f64::INFINITY),
            ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
            _ => {}
        }
        let (mantissa, exponent) = magnitude.split_once(['e', 'E']).unwrap_or((magnitude, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let is_number = is_digits(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))
            && !mantissa.is_empty()
            && mantissa != "."
            && [whole, fraction].iter().all(|d| d.is_empty() || is_digits(d));
        is_number.then(|| text.parse().ok())?
    }

    /// The text, if YAML reads this scalar as a string.
    pub(super) fn as_str(&self) -> Option<&str> {
        let is_other =
            self.is_null() || self.as_bool().is_some() || self.as_float().is_some() || self.as_integer().is_some();
        (!is_other).then_some(self.text.as_str())
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Removes every `_` between two digits; `None` if one stands elsewhere.
fn without_separators(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let digit = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let separates = |i: usize| digit(i.checked_sub(1)) && digit(i.checked_add(1));
    let fits = bytes.iter().enumerate().all(|(i, b)| *b != b'_' || separates(i));
    fits.then(|| text.chars().filter(|c| *c != '_').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_an_exponent_are_numbers_and_not_text() {
        for (text, value) in [
            ("3e-3", 3e-3),
            ("1e-5", 1e-5),
            ("5E-4", 5e-4),
            ("2_000", 2000.0),
            ("1_000.5", 1000.5),
            (".5", 0.5),
            ("-1.", -1.0),
            ("+2", 2.0),
            ("-.inf", f64::NEG_INFINITY),
        ] {
            assert_eq!(Scalar::plain(text).as_float(), Some(value), "{text}");
            assert_eq!(Scalar::plain(text).as_str(), None, "{text}");
            assert_eq!(Scalar { text: text.into(), plain: false }.as_float(), None, "{text} in quotes");
        }
    }

    #[test]
    fn integers_may_have_separators_a_base_or_an_exponent() {
        for (text, value) in [
            ("0", 0),
            ("-7", -7),
            ("300_000", 300_000),
            ("0x1f", 31),
            ("0o17", 15),
            ("1e9", 1_000_000_000),
            ("1.5e3", 1500),
        ] {
            assert_eq!(Scalar::plain(text).as_integer(), Some(value), "{text}");
        }
        for text in ["1.5", "300.0", "1e-3", "_1", "1__0", "1_", "0x", "", "e5", "1e", "--1"] {
            assert_eq!(Scalar::plain(text).as_integer(), None, "{text}");
        }
    }

    #[test]
    fn words_and_paths_are_text() {
        for text in ["yes", "no", "on", "checkpoints/store/a", "inf", "nan", "e5", "1.2.3", "-", ".", "_", "2_b", "1e"]
        {
            assert_eq!(Scalar::plain(text).as_str(), Some(text));
        }
        for text in ["", "~", "null", "true", "False", "1", ".nan"] {
            assert_eq!(Scalar::plain(text).as_str(), None);
        }
    }
}
