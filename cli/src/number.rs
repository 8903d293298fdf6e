//! Numbers as people read them.

pub use retie_convert::grouped;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_unit_that_fits() {
        assert_eq!([grouped(0), grouped(999), grouped(134_515_008)], ["0", "999", "134,515,008"]);
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(269_060_552)], ["0 B", "1023 B", "1.5 KiB", "256.6 MiB"]);
        assert_eq!([rate(0.421), rate(12.34), rate(1234.4), rate(f64::INFINITY)], ["0.42", "12.3", "1,234", "–"]);
        assert_eq!([duration(8.21), duration(200.0), duration(7500.0)], ["8.2 s", "3 min 20 s", "2 h 05 min"]);
    }
}
