//! Progress of a long job on stderr: a bar on a terminal, a plain line every ten seconds elsewhere.

use crate::{bars, output};
use indicatif::{ProgressBar, ProgressStyle};
use retie_report::number::bytes;
use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

/// Time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Unit of a bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Items with this name in the plural.
    Count(&'static str),
    /// Bytes.
    Bytes,
}

/// Progress of one job.
pub struct Progress {
    label: String,
    unit: Unit,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    /// Progress of a job that has not begun; `total` may be set later.
    pub fn new(label: &str, unit: Unit, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let counts = match unit {
                Unit::Count(_) => "{pos}/{len}",
                Unit::Bytes => "{bytes}/{total_bytes}",
            };
            // `wide_msg` cuts the message at the end of the line: a line that wraps would leave a
            // copy at every update.
            let template = format!("{{prefix}} {{bar:16}} {counts} [{{elapsed}}, {{eta}} left] {{wide_msg}}");
            let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = bars::add(ProgressBar::new(total).with_style(style.progress_chars("█▉▊▋▌▍▎▏ ")));
            bar.with_prefix(label.to_owned())
        });
        Self { label: label.to_owned(), unit, bar, last_line: Instant::now() }
    }

    /// Shows the progress.
    pub fn set(&mut self, done: u64, total: u64, message: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(message.to_owned());
            }
            None if self.last_line.elapsed() >= PLAIN_EVERY => self.plain_line(done, total, message),
            None => {}
        }
    }

    /// Shows the progress and writes a line that stays, with or without a bar.
    pub fn set_and_keep(&mut self, done: u64, total: u64, message: &str) {
        if self.bar.is_some() {
            self.set(done, total, message);
        }
        self.plain_line(done, total, message);
    }

    /// Starts a resumed job at `done`, which the estimate of the remaining time then leaves out.
    pub fn start_at(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.reset_eta();
        }
    }

    /// True on a terminal, where a bar replaces the lines.
    pub fn is_drawn(&self) -> bool {
        self.bar.is_some()
    }

    fn plain_line(&mut self, done: u64, total: u64, message: &str) {
        self.last_line = Instant::now();
        output::line(&plain(&self.label, self.unit, done, total, message));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            bars::remove(bar);
        }
    }
}

fn plain(label: &str, unit: Unit, done: u64, total: u64, message: &str) -> String {
    let counts = match unit {
        Unit::Count(name) => format!("{done}/{total} {name}"),
        Unit::Bytes => format!("{} of {}", bytes(done), bytes(total)),
    };
    let message = if message.is_empty() { String::new() } else { format!("  {message}") };
    format!("{label}: {counts}{message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_have_no_escapes() {
        assert_eq!(plain("train", Unit::Count("steps"), 3, 10, "loss 2.1"), "train: 3/10 steps  loss 2.1");
        assert_eq!(plain("get x", Unit::Bytes, 1024, 4096, ""), "get x: 1.0 KiB of 4.0 KiB");
    }
}
