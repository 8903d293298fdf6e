//! Dashboard of a run (`--tui`): curves and the numbers of the last row, drawn again after every
//! step.
//!
//! The widgets are drawn into a buffer of cells, and its text is the message of a progress bar.
//! Other output goes above it, and the terminal mode stays as it is, so keys and signals work as
//! usual.

mod curves;
mod history;
mod numbers;
mod picture;
mod text;

use crate::{bars, console::RunDisplay, output};
use history::History;
use indicatif::{ProgressBar, ProgressStyle};
use ratatui::layout::Rect;
use retie_config::UptrainConfig;
use retie_trainer::{Baseline, Logger, StepRow, TrainError, read_metrics};
use std::path::PathBuf;

/// Lines of the picture: two thirds of the terminal's, within these bounds.
const HEIGHTS: (u16, u16) = (20, 32);
/// Minimum height in lines for curves; below it nothing is drawn.
const MIN_HEIGHT: u16 = 8;

/// Live dashboard of a run.
pub struct Dashboard {
    dir: PathBuf,
    bar: ProgressBar,
    history: History,
}

impl Dashboard {
    /// Shows a run of `config`; stderr has to be a terminal.
    pub fn new(config: &UptrainConfig) -> Self {
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let (dir, num_steps) = (config.run.dir.clone(), config.num_steps());
        let history = History { title: dir.display().to_string(), num_steps, ..History::default() };
        Self { dir, bar: bars::add(ProgressBar::new(num_steps).with_style(style)), history }
    }

    fn draw(&self) {
        let (height, width) = console::Term::stderr().size();
        let area = area(width, height);
        if area.height >= MIN_HEIGHT {
            self.bar.set_message(text::text(&picture::draw(&self.history, area), output::Style::of_stderr()));
        }
    }
}

/// The part of a terminal that the picture takes.
fn area(width: u16, height: u16) -> Rect {
    let (least, most) = HEIGHTS;
    // One line stays free for the cursor and one for output above; a full-width line would wrap.
    let lines = (height / 3 * 2).clamp(least, most).min(height.saturating_sub(2));
    Rect::new(0, 0, width.saturating_sub(1), lines)
}

impl RunDisplay for Dashboard {
    fn start_at(&mut self, step: u64) {
        // Rows from before the run was stopped. The trainer reports a log that cannot be read.
        for row in read_metrics(&self.dir).unwrap_or_default().into_iter().filter(|row| row.step <= step) {
            self.history.add(&row);
        }
    }
}

impl Logger for Dashboard {
    fn baseline(&mut self, baseline: &Baseline) -> Result<(), TrainError> {
        self.history.start(baseline);
        self.draw();
        Ok(())
    }

    fn step(&mut self, row: &StepRow) -> Result<(), TrainError> {
        self.history.add(row);
        self.draw();
        Ok(())
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if self.history.last.is_some() {
            output::line(&self.bar.message()); // the last picture stays
        }
    }
}
