//! Durations on the command line.

use std::time::Duration;

/// Parses a duration such as `45s`, `90m`, `1h30m` or `2d`.
///
/// # Errors
/// A message with a hint if `text` is not a duration, is zero, or does not fit `u64` seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a length of time\nhint: e.g. `45s`, `90m`, `1h30m`, `2d`");
    let mut seconds = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return Err(wrong()),
        };
        seconds = number.checked_mul(unit).and_then(|n| seconds.checked_add(n)).ok_or_else(wrong)?;
        rest = &rest[digits + 1..];
    }
    if seconds == 0 { Err(wrong()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_sequence_of_numbers_with_units() {
        let seconds = |text| parse_duration(text).ok().map(|time| time.as_secs());
        assert_eq!(["45s", "90m", "1h30m", "2d"].map(seconds), [Some(45), Some(5400), Some(5400), Some(172_800)]);
        assert_eq!(["", "5", "0m", "m", "1x", "1h-1m", "99999999999999999999d"].map(seconds), [None; 7]);
    }
}
