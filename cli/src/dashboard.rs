//! The rows of a run as a picture that is drawn anew after every step: curves, and the numbers of the last row.
//!
//! The widgets are drawn into a buffer of cells, and its text is the message of a progress bar: lines of the program go above it, and no
//! mode of the terminal is changed, so keys and signals do what they always do.

use crate::{
    console::Rows,
    number::{duration, rate},
    output::{self, Style as Colours},
    progress,
};
use indicatif::{ProgressBar, ProgressStyle};
use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style},
    symbols::Marker,
    text::Line,
    widgets::{Axis, Block, Borders, Chart, Dataset, GraphType, LineGauge, Row, Table, Widget},
};
use retie_config::UptrainConfig;
use retie_trainer::{Baseline, Logger, StepRow, TrainError, read_metrics};
use std::path::PathBuf;

/// Lines of the picture, where the terminal has as many.
const HEIGHT: u16 = 20;
/// Fewer than this make no curve.
const MIN_HEIGHT: u16 = 8;
/// Columns of the numbers.
const NUMBERS: u16 = 34;

/// What is drawn.
pub struct Dashboard {
    dir: PathBuf,
    bar: ProgressBar,
    seen: Seen,
}

/// What was seen of a run.
#[derive(Default)]
struct Seen {
    title: String,
    num_steps: u64,
    losses: Vec<(f64, f64)>,
    heldout: Vec<(f64, f64)>,
    teacher: Option<f64>,
    last: Option<StepRow>,
}

impl Dashboard {
    /// Of a run of `config`; stderr has to be a terminal.
    pub fn new(config: &UptrainConfig) -> Self {
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let (dir, num_steps) = (config.run.dir.clone(), config.num_steps());
        let seen = Seen { title: dir.display().to_string(), num_steps, ..Seen::default() };
        Self { dir, bar: progress::add(ProgressBar::new(num_steps).with_style(style)), seen }
    }

    fn draw(&self) {
        let (height, width) = console::Term::stderr().size();
        // A line less than there are, and a column: a full line would wrap.
        let area = Rect::new(0, 0, width.saturating_sub(1), HEIGHT.min(height.saturating_sub(2)));
        if area.height >= MIN_HEIGHT {
            self.bar.set_message(text(&self.seen.picture(area), Colours::of_stderr()));
        }
    }
}

impl Rows for Dashboard {
    fn start_at(&mut self, step: u64) {
        // What was seen before the run was stopped; a log that cannot be read is the trainer's to report.
        for row in read_metrics(&self.dir).unwrap_or_default().into_iter().filter(|row| row.step <= step) {
            self.seen.add(&row);
        }
    }
}

impl Logger for Dashboard {
    fn baseline(&mut self, baseline: &Baseline) -> Result<(), TrainError> {
        self.seen.teacher = baseline.teacher_heldout_cross_entropy;
        self.seen.heldout.push((0.0, baseline.heldout_cross_entropy));
        self.draw();
        Ok(())
    }

    fn step(&mut self, row: &StepRow) -> Result<(), TrainError> {
        self.seen.add(row);
        self.draw();
        Ok(())
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if self.seen.last.is_some() {
            output::line(&self.bar.message()); // the last picture stays
        }
    }
}

impl Seen {
    fn add(&mut self, row: &StepRow) {
        let step = row.step as f64;
        self.losses.push((step, row.loss));
        self.heldout.extend(row.heldout_cross_entropy.map(|loss| (step, loss)));
        self.last = Some(row.clone());
    }

    fn picture(&self, area: Rect) -> Buffer {
        let mut buffer = Buffer::empty(area);
        let [head, body] = Layout::vertical([Constraint::Length(2), Constraint::Fill(1)]).areas(area);
        let numbers = if area.width > 2 * NUMBERS { NUMBERS } else { 0 };
        let [curves, table] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(numbers)]).areas(body);
        self.head(head, &mut buffer);
        self.curves(curves, &mut buffer);
        if numbers > 0 {
            self.numbers(table, &mut buffer);
        }
        buffer
    }

    fn head(&self, area: Rect, buffer: &mut Buffer) {
        let step = self.last.as_ref().map_or(0, |row| row.step);
        let speed = self.last.as_ref().map_or_else(String::new, |row| {
            let left = (self.num_steps - row.step.min(self.num_steps)) as f64 * row.seconds;
            format!("  {} tok/s  {} left", rate(row.tokens_per_second), duration(left))
        });
        let [line, gauge] = Layout::vertical([Constraint::Length(1); 2]).areas(area);
        Line::from(format!("{}  step {step} of {}{speed}", self.title, self.num_steps)).render(line, buffer);
        let part = step as f64 / self.num_steps.max(1) as f64;
        LineGauge::default()
            .ratio(part.clamp(0.0, 1.0))
            .filled_style(Style::new().fg(Color::Green))
            .render(gauge, buffer);
    }

    fn curves(&self, area: Rect, buffer: &mut Buffer) {
        let teacher = self.teacher.map(|loss| [(0.0, loss), (self.num_steps as f64, loss)]);
        let all = self.losses.iter().chain(&self.heldout).map(|(_, loss)| *loss).chain(self.teacher);
        let (low, high) = all
            .filter(|loss| loss.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), loss| (low.min(loss), high.max(loss)));
        // One number alone has no range.
        let (low, high) = if low < high { (low, high) } else { (low.min(1e9) - 0.5, low.min(1e9) + 0.5) };
        let dataset = |name: &'static str, marker, colour, data| {
            let dataset = Dataset::default().name(name).marker(marker).graph_type(GraphType::Line);
            dataset.style(Style::new().fg(colour)).data(data)
        };
        let mut datasets = vec![dataset("loss", Marker::Braille, Color::Cyan, &self.losses)];
        if !self.heldout.is_empty() {
            datasets.push(dataset("held-out", Marker::Dot, Color::Yellow, &self.heldout));
        }
        if let Some(teacher) = &teacher {
            datasets.push(dataset("teacher", Marker::Braille, Color::DarkGray, teacher));
        }
        let x = Axis::default().bounds([0.0, self.num_steps as f64]);
        let x = x.labels(["0".to_owned(), (self.num_steps / 2).to_string(), self.num_steps.to_string()]);
        let y = Axis::default().bounds([low, high]).labels([format!("{low:.2}"), format!("{high:.2}")]);
        Chart::new(datasets).block(Block::new().borders(Borders::TOP)).x_axis(x).y_axis(y).render(area, buffer);
    }

    fn numbers(&self, area: Rect, buffer: &mut Buffer) {
        let Some(row) = &self.last else { return };
        let mut rows = vec![("loss".to_owned(), format!("{:.4}", row.loss))];
        rows.extend(row.terms.iter().map(|(name, value)| (format!("  {name}"), format!("{value:.4}"))));
        if let Some((_, loss)) = self.heldout.last() {
            rows.push(("held-out".to_owned(), format!("{loss:.4}")));
        }
        rows.extend(self.teacher.map(|loss| ("  of the teacher".to_owned(), format!("{loss:.4}"))));
        rows.push(("learning rate".to_owned(), format!("{:.2e}", row.lr)));
        rows.push(("gradient norm".to_owned(), format!("{:.3}", row.grad_norm)));
        if row.loss_spikes > 0 {
            rows.push(("loss spikes".to_owned(), row.loss_spikes.to_string()));
        }
        rows.extend(
            row.routing.as_ref().map(|routing| ("mean depth".to_owned(), format!("{:.2}", routing.mean_depth))),
        );
        if let Some(telemetry) = &row.telemetry {
            let recursions = |values: &[f64]| values.iter().map(|x| format!("{x:.2}")).collect::<Vec<_>>().join(" ");
            rows.push(("hidden norm".to_owned(), recursions(&telemetry.hidden_norm)));
            rows.push(("cosine".to_owned(), recursions(&telemetry.cosine)));
        }
        let rows = rows.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| Row::new([name, value]));
        let block = Block::new().borders(Borders::TOP | Borders::LEFT);
        Table::new(rows, [Constraint::Length(19), Constraint::Fill(1)]).block(block).render(area, buffer);
    }
}

/// The lines of a picture, without blanks at their ends; with the colours of its cells as ANSI escapes, or without.
fn text(picture: &Buffer, colours: Colours) -> String {
    let code = |colour: Color| match colour {
        Color::Green => 32,
        Color::Yellow => 33,
        Color::Cyan => 36,
        Color::DarkGray => 90,
        _ => 0,
    };
    let width = usize::from(picture.area.width.max(1));
    let line = |cells: &[ratatui::buffer::Cell]| {
        let end = cells.iter().rposition(|cell| cell.symbol() != " ").map_or(0, |last| last + 1);
        let mut line = String::new();
        let mut current = 0;
        for cell in &cells[..end] {
            let wanted = if colours == Colours::Colour { code(cell.fg) } else { 0 };
            if wanted != current {
                line.push_str(&format!("\x1b[{wanted}m"));
                current = wanted;
            }
            line.push_str(cell.symbol());
        }
        if current != 0 {
            line.push_str("\x1b[0m");
        }
        line
    };
    picture.content.chunks(width).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(steps: u64) -> Seen {
        let mut seen = Seen { title: "runs/a".into(), num_steps: 40, teacher: Some(2.5), ..Seen::default() };
        seen.heldout.push((0.0, 6.0));
        for step in 1..=steps {
            let row = serde_json::json!({
                "step": step, "loss": 3.0 + 3.0 / step as f64, "terms": {"cross_entropy": 3.5, "distill": 1.25}, "lr": 5e-4,
                "grad_norm": 1.5, "tokens": step * 1024, "seconds": 2.0, "tokens_per_second": 512.0,
                "heldout_cross_entropy": if step % 10 == 0 { Some(3.5 + 2.0 / step as f64) } else { None },
                "telemetry": {"hidden_norm": [10.5, 12.25], "cosine": [0.75], "grad_norm": {}},
            });
            seen.add(&serde_json::from_value(row).unwrap());
        }
        seen
    }

    #[test]
    fn a_run_is_drawn_as_curves_and_numbers() {
        insta::assert_snapshot!(text(&seen(30).picture(Rect::new(0, 0, 100, 20)), Colours::Plain));
    }

    #[test]
    fn a_narrow_terminal_has_the_curves_alone_and_no_line_is_wider() {
        for (width, height) in [(60, 12), (20, 8), (1, 8)] {
            for steps in [0, 1, 30] {
                let text = text(&seen(steps).picture(Rect::new(0, 0, width, height)), Colours::Plain);
                assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{text}");
                assert!(!text.contains("gradient norm"));
            }
        }
    }

    #[test]
    fn colours_are_escapes_where_they_are_wanted() {
        let picture = seen(30).picture(Rect::new(0, 0, 100, 20));
        assert!(text(&picture, Colours::Colour).contains("\x1b[36m"));
        assert!(!text(&picture, Colours::Plain).contains('\x1b'));
    }

    #[test]
    fn losses_that_are_no_numbers_do_not_stretch_the_picture() {
        let mut seen = seen(3);
        seen.losses.push((4.0, f64::NAN));
        seen.losses.push((5.0, f64::INFINITY));
        assert!(text(&seen.picture(Rect::new(0, 0, 100, 20)), Colours::Plain).contains("6.00"));
    }
}
