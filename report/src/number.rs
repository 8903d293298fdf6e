//! Formatting of numbers for people.

/// `1234567` as `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest binary unit that leaves 1 or more: `512 B`, `1.5 KiB`, `256.6 MiB`.
#[must_use]
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

/// A rate with three significant digits: `0.42`, `12.3`, `1,234`.
#[must_use]
pub fn rate(number: f64) -> String {
    match number {
        n if !n.is_finite() => "–".to_owned(),
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => grouped(n.round() as u64),
    }
}

/// Seconds as `8.2 s`, `3 min 20 s`, `2 h 05 min`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A number on an axis or beside a point: no trailing zeros, `k` for thousands, `M` for millions.
pub fn short(number: f64) -> String {
    let (scaled, unit) = match number.abs() {
        size if size >= 1e6 => (number / 1e6, "M"),
        size if size >= 1e4 => (number / 1e3, "k"),
        size if size > 0.0 && size < 1e-3 => return format!("{number:.1e}").replace(".0e", "e"),
        _ => (number, ""),
    };
    let text = format!("{scaled:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_unit_that_fits() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (134_515_008, "134,515,008")];
        assert!(cases.iter().all(|(number, text)| grouped(*number) == *text));
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(269_060_552)], ["0 B", "1023 B", "1.5 KiB", "256.6 MiB"]);
        assert_eq!([rate(0.421), rate(12.34), rate(1234.4), rate(f64::INFINITY)], ["0.42", "12.3", "1,234", "–"]);
        assert_eq!([duration(8.21), duration(200.0), duration(7500.0)], ["8.2 s", "3 min 20 s", "2 h 05 min"]);
    }

    #[test]
    fn axis_labels_have_no_trailing_zeros() {
        let shown = [2.0, 0.25, 0.0, 100.0, 250_000.0, 1_500_000.0, 0.0005, -0.00025].map(short);
        assert_eq!(shown, ["2", "0.25", "0", "100", "250k", "1.5M", "5e-4", "-2.5e-4"]);
    }
}
