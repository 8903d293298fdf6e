//! Functions of Python that chat templates call: `json.dumps` and `datetime.strftime`.

use std::{
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use minijinja::{Error, ErrorKind, State, Value, value::Kwargs};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

const SECONDS_PER_DAY: u64 = 86_400;
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Spaces that a level of JSON may be indented by; templates have 2 or 4.
const MOST_INDENT: usize = 64;

/// `json.dumps(value, ensure_ascii=False, indent=…)`, without escapes for HTML.
pub fn to_json(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    if indent.is_some_and(|indent| indent > MOST_INDENT) {
        let message = format!("`tojson` indents by {MOST_INDENT} spaces at most");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "`tojson` cannot escape characters outside of ASCII"));
    }
    options.assert_all_used()?;
    let mut text = Paid { bytes: Vec::new(), state, owed: 0 };
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut text, Spaced)),
        Some(indent) => {
            let indent = " ".repeat(indent);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut text, formatter))
        }
    };
    let failed = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(text.bytes).map(Value::from_safe_string).map_err(|error| failed(error.to_string()))
}

/// Bytes of JSON for a unit of fuel.
const BYTES_PER_FUEL: usize = 16;

/// A text that is written for fuel.
struct Paid<'a, 'b> {
    bytes: Vec<u8>,
    state: &'a State<'b, 'b>,
    owed: usize,
}

impl io::Write for Paid<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.owed += bytes.len();
        self.state.consume_fuel((self.owed / BYTES_PER_FUEL) as u64).map_err(io::Error::other)?;
        self.owed %= BYTES_PER_FUEL;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Python's default separators: `, ` and `: `.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `datetime.now().strftime(format)`, in UTC.
pub fn strftime_now(format: String) -> Result<String, Error> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    strftime(&format, since)
}

/// The time `since` 1970 by a format of C's `strftime`.
fn strftime(format: &str, since: Duration) -> Result<String, Error> {
    let (days, second) = (since.as_secs() / SECONDS_PER_DAY, since.as_secs() % SECONDS_PER_DAY);
    let (year, month, day) = date(days);
    let (hour, minute, weekday) = (second / 3600, second / 60 % 60, DAYS[((days + 4) % 7) as usize]);
    let month_name = MONTHS[(month - 1) as usize];
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let directive = rest.next();
        text += &match directive {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('d') => format!("{day:02}"),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{:02}", second % 60),
            Some('%') => "%".to_owned(),
            _ => {
                let directive = directive.map_or_else(String::new, |c| c.to_string());
                let message = format!("`strftime_now` does not know `%{directive}`");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
    }
    Ok(text)
}

/// Year, month and day of a day since 1970-01-01
/// (<https://howardhinnant.github.io/date_algorithms.html#civil_from_days>).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + u64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_python() {
        // datetime.fromtimestamp(t, UTC).strftime(format)
        let format = "%A %a, %d %B %b %Y (%y-%m) %H:%M:%S %I %p 100%%";
        for (seconds, expected) in [
            (0, "Thursday Thu, 01 January Jan 1970 (70-01) 00:00:00 12 AM 100%"),
            (951_868_799, "Tuesday Tue, 29 February Feb 2000 (00-02) 23:59:59 11 PM 100%"),
            (1_796_000_000, "Monday Mon, 30 November Nov 2026 (26-11) 00:53:20 12 AM 100%"),
        ] {
            assert_eq!(strftime(format, Duration::from_secs(seconds)).unwrap(), expected);
        }
        let error = strftime("%Q", Duration::ZERO).unwrap_err();
        assert_eq!(error.detail(), Some("`strftime_now` does not know `%Q`"));
    }
}
