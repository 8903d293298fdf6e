//! How far a long job is: a bar on a terminal, a plain line now and then elsewhere. All of it on stderr.

use crate::output;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    sync::LazyLock,
    time::{Duration, Instant},
};

/// Time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// All bars of the process, so that log lines can be written above them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// Runs `write`, which writes to stderr, while no bar is drawn.
pub fn above_bars(write: impl FnOnce()) {
    BARS.suspend(write);
}

/// Draws `bar` with the others.
pub fn add(bar: ProgressBar) -> ProgressBar {
    BARS.add(bar)
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things with this name in the plural.
    Count(&'static str),
    /// Bytes.
    Bytes,
}

/// One job's progress.
pub struct Progress {
    label: String,
    unit: Unit,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    /// A job that has not begun; `total` may be set later.
    pub fn new(label: &str, unit: Unit, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let counts = match unit {
                Unit::Count(_) => "{pos}/{len}",
                Unit::Bytes => "{bytes}/{total_bytes}",
            };
            let template = format!("{{prefix}} {{bar:24}} {counts} {{msg}} [{{elapsed}}, {{eta}} left]");
            let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = BARS.add(ProgressBar::new(total).with_style(style.progress_chars("█▉▊▋▌▍▎▏ ")));
            bar.with_prefix(label.to_owned())
        });
        Self { label: label.to_owned(), unit, bar, last_line: Instant::now() }
    }

    /// Says how far it is.
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

    /// As [`Progress::set`], and writes a line that stays, whether there is a bar or not.
    pub fn set_and_keep(&mut self, done: u64, total: u64, message: &str) {
        if self.bar.is_some() {
            self.set(done, total, message);
        }
        self.plain_line(done, total, message);
    }

    /// Takes the first `done` out of the estimate of the time left, for a job that goes on from there.
    pub fn start_at(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.reset_eta();
        }
    }

    /// Whether there is a bar, and not lines.
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
            BARS.remove(bar);
        }
    }
}

fn plain(label: &str, unit: Unit, done: u64, total: u64, message: &str) -> String {
    let counts = match unit {
        Unit::Count(name) => format!("{done}/{total} {name}"),
        Unit::Bytes => format!("{} of {}", crate::number::bytes(done), crate::number::bytes(total)),
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
