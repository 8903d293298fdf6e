//! Lines of text: data on stdout, messages for people on stderr.

use crate::bars;
use anyhow::{bail, ensure};
use serde::Serialize;
use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    path::Path,
};

/// Writes `text` and a newline to stdout.
pub fn data(text: impl Display) -> io::Result<()> {
    let text = text.to_string();
    let mut out = io::stdout().lock();
    out.write_all(text.trim_end_matches('\n').as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes text to stdout unchanged and flushes it, for output that comes token by token.
pub fn stream(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes `value` as JSON to stdout.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(data(serde_json::to_string_pretty(value)?)?)
}

/// Writes a line to stderr, above the progress bars. If stderr is gone there is nobody to tell.
pub fn line(text: &str) {
    bars::write_above(|| _ = writeln!(io::stderr().lock(), "{text}"));
}

/// Reports a file or folder that was written.
pub fn wrote(path: &Path) {
    line(&format!("{} {}", Style::of_stderr().green("wrote"), path.display()));
}

/// Suggests the next command.
pub fn next(command: &str) {
    line(&format!("{} {command}", Style::of_stderr().cyan("next:")));
}

/// A path as a word of a shell command, quoted if necessary.
pub fn word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '@' | ':' | '+' | ',' | '=');
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Checks that a file can be written at `path`, before a long computation.
///
/// # Errors
/// The parent folder does not exist, or `path` is a folder.
pub fn check_file(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if parent.is_some_and(|parent| !parent.is_dir()) {
        bail!("the folder of `{}` does not exist\nhint: make it first", path.display());
    }
    ensure!(!path.is_dir(), "`{}` is a folder, expected a file", path.display());
    Ok(())
}

/// Style of text: with or without colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Colours as ANSI escapes.
    Colour,
    /// No escapes.
    Plain,
}

impl Style {
    /// Style without escapes, for tests.
    #[cfg(test)]
    pub const PLAIN: Self = Self::Plain;

    /// Style for stderr: colours on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub fn of_stderr() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if wanted && io::stderr().is_terminal() { Self::Colour } else { Self::Plain }
    }

    /// Style for stdout, by the same rule.
    pub fn of_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if wanted && io::stdout().is_terminal() { Self::Colour } else { Self::Plain }
    }

    /// Colours a token by its recursion count: the higher, the warmer.
    pub fn recursions(self, count: usize, text: &str) -> String {
        const COLOURS: [&str; 6] = ["2", "38;5;39", "38;5;34", "38;5;178", "38;5;208", "38;5;196"];
        self.paint(COLOURS[count.min(COLOURS.len() - 1)], text)
    }

    /// Colours errors.
    pub fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// Colours reports of finished work.
    pub fn green(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    /// Colours hints and suggestions.
    pub fn cyan(self, text: &str) -> String {
        self.paint("1;36", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Colour if text.is_empty() => String::new(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Plain => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_space_or_a_quote_is_quoted_for_the_shell() {
        assert_eq!(word(Path::new("a/b-1.0_c")), "a/b-1.0_c");
        assert_eq!(word(Path::new("a b")), "'a b'");
        assert_eq!(word(Path::new("it's")), r"'it'\''s'");
    }
}
