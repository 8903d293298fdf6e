//! Numbers as people read them.

pub use retie_convert::grouped;
use std::time::Duration;

/// Bytes in the largest binary unit that leaves 1 or more: `512 B`, `1.5 KiB`, `256.6 MiB`.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut scaled = number as f64;
    let mut unit = None;
    for name in UNITS {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = Some(name);
    }
    unit.map_or_else(|| format!("{number} B"), |unit| format!("{scaled:.1} {unit}"))
}

/// A rate with three digits that count: `0.42`, `12.3`, `1,234`.
pub fn rate(number: f64) -> String {
    match number {
        n if !n.is_finite() => "–".to_owned(),
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => grouped(n.round() as u64),
    }
}

/// Seconds as `8.2 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A length of time such as `45s`, `90m`, `1h30m`, `2d`.
///
/// # Errors
/// When it is not one, or none at all.
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
    fn a_length_of_time_is_numbers_with_units() {
        let seconds = |text| parse_duration(text).ok().map(|time| time.as_secs());
        assert_eq!(["45s", "90m", "1h30m", "2d"].map(seconds), [Some(45), Some(5400), Some(5400), Some(172_800)]);
        assert_eq!(["", "5", "0m", "m", "1x", "1h-1m", "99999999999999999999d"].map(seconds), [None; 7]);
    }

    #[test]
    fn numbers_have_the_unit_that_fits() {
        assert_eq!([grouped(0), grouped(999), grouped(134_515_008)], ["0", "999", "134,515,008"]);
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(269_060_552)], ["0 B", "1023 B", "1.5 KiB", "256.6 MiB"]);
        assert_eq!([rate(0.421), rate(12.34), rate(1234.4), rate(f64::INFINITY)], ["0.42", "12.3", "1,234", "–"]);
        assert_eq!([duration(8.21), duration(200.0), duration(7500.0)], ["8.2 s", "3 min 20 s", "2 h 05 min"]);
    }
}
