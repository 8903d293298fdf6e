//! Layout of the dashboard: a headline, the progress bar, curves, and the numbers of the last row
//! if the terminal is wide enough.

use super::{curves, history::History, numbers};
use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style},
    text::Line,
    widgets::{LineGauge, Widget},
};
use retie_report::number::{duration, grouped, rate};

/// Width of the numbers in columns: a third of the picture, within these bounds.
const NUMBERS_WIDTHS: (u16, u16) = (34, 52);

/// Draws the dashboard of a run.
pub fn draw(history: &History, area: Rect) -> Buffer {
    let mut buffer = Buffer::empty(area);
    let rows = Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Fill(1)]);
    let [head, bar, body] = rows.areas(area);
    let (least, most) = NUMBERS_WIDTHS;
    let width = if area.width > 2 * least { (area.width / 3).clamp(least, most) } else { 0 };
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(width)]).areas(body);
    Line::from(headline(history, usize::from(head.width))).render(head, &mut buffer);
    progress(history).render(bar, &mut buffer);
    curves::draw(history, left, &mut buffer);
    if let Some(row) = history.last.as_ref().filter(|_| width > 0) {
        numbers::draw(history, row, right, &mut buffer);
    }
    buffer
}

/// Progress bar. Its symbols differ from those of the frames below it.
fn progress(history: &History) -> LineGauge<'static> {
    let step = history.last.as_ref().map_or(0, |row| row.step);
    let part = (step as f64 / history.num_steps.max(1) as f64).clamp(0.0, 1.0);
    LineGauge::default()
        .ratio(part)
        .label(format!("{:3.0} %", 100.0 * part))
        .filled_symbol("█")
        .unfilled_symbol("░")
        .filled_style(Style::new().fg(Color::Green))
        .unfilled_style(Style::new().fg(Color::DarkGray))
}

/// Name, step, speed and time left in at most `width` columns; a long name is cut at its start.
fn headline(history: &History, width: usize) -> String {
    let step = history.last.as_ref().map_or(0, |row| row.step);
    let speed = history.last.as_ref().map_or_else(String::new, |row| {
        let left = (history.num_steps - row.step.min(history.num_steps)) as f64 * row.seconds;
        format!("  {} tok/s  {} left", rate(row.tokens_per_second), duration(left))
    });
    let numbers = format!("  step {} of {}{speed}", grouped(step), grouped(history.num_steps));
    let room = width.saturating_sub(numbers.chars().count());
    format!("{}{numbers}", end_of(&history.title, room))
}

/// The text, or `…` and as much of its end as fits into `room` columns.
fn end_of(text: &str, room: usize) -> String {
    let length = text.chars().count();
    if length <= room {
        return text.to_owned();
    }
    let tail: String = text.chars().skip(length - room.saturating_sub(1).min(length)).collect();
    if room == 0 { String::new() } else { format!("…{tail}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dashboard::{area, text::text},
        output::Style as Colours,
    };
    use retie_trainer::{Baseline, StepRow};

    const NUM_STEPS: u64 = 3000;

    /// A run of a routed model with three recursions, with early exits and telemetry.
    fn row(step: u64) -> StepRow {
        let loss = 2.6 + 5.0 / (1.0 + step as f64 / 150.0) + 0.05 * ((step * 7919 % 100) as f64 / 50.0 - 1.0);
        let measured = step.is_multiple_of(250);
        serde_json::from_value(serde_json::json!({
            "step": step, "loss": loss,
            "terms": {"cross_entropy": loss + 0.31, "distill": loss - 0.52, "early_exit": loss + 0.84},
            "lr": 4.2e-4, "grad_norm": 1.537, "tokens": step * 8192, "seconds": 6.637, "tokens_per_second": 1234.3,
            "heldout_cross_entropy": measured.then_some(loss + 0.2),
            "heldout_exits": if measured { vec![loss + 0.9, loss + 0.6] } else { Vec::new() },
            "telemetry": {
                "hidden_norm": [812.345, 1024.551, 12345.678, 98765.432], "cosine": [0.751, 0.883, 0.912],
                "grad_norm": {"embeddings": 0.83, "extras": 0.004, "lora": 0.52, "norms": 0.031, "shared": 1.11, "unshared": 0.41},
            },
            "routing": {
                "mean_recursions": 2.1342, "taken": [1.0, 0.67, 0.33], "dead_positions": [0.0, 0.0, 0.0],
                "position_entropy": [1.0, 0.98, 0.97],
            },
        }))
        .unwrap()
    }

    fn history(num_steps: u64) -> History {
        let title = "checkpoints/store/uptrain-smollm2-r3".to_owned();
        let mut history = History { title, num_steps: NUM_STEPS, ..History::default() };
        let baseline = serde_json::json!({
            "heldout_cross_entropy": 8.1, "heldout_exits": [9.4, 8.8], "teacher_heldout_cross_entropy": 2.5321,
        });
        history.start(&serde_json::from_value::<Baseline>(baseline).unwrap());
        (1..=num_steps).for_each(|step| history.add(&row(step)));
        history
    }

    fn plain(history: &History, area: Rect) -> String {
        text(&draw(history, area), Colours::Plain)
    }

    #[test]
    fn a_run_is_drawn_on_a_terminal_of_80_columns() {
        insta::assert_snapshot!(plain(&history(1200), area(80, 24)));
    }

    #[test]
    fn a_run_is_drawn_on_a_terminal_of_120_columns() {
        insta::assert_snapshot!(plain(&history(1200), area(120, 36)));
    }

    #[test]
    fn a_run_is_drawn_on_a_terminal_of_200_columns() {
        insta::assert_snapshot!(plain(&history(1200), area(200, 50)));
    }

    #[test]
    fn the_first_step_is_drawn() {
        insta::assert_snapshot!(plain(&history(1), area(120, 24)));
    }

    #[test]
    fn a_narrow_terminal_has_the_curves_alone_and_no_line_is_wider() {
        for (width, height) in [(60, 12), (20, 8), (1, 8)] {
            for steps in [0, 1, 300] {
                let text = plain(&history(steps), Rect::new(0, 0, width, height));
                assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{text}");
                assert!(!text.contains("gradient norm"));
            }
        }
    }

    #[test]
    fn a_long_name_gives_way_to_the_numbers() {
        let mut history = history(1);
        history.title = format!("/a{}/run", "/very/long/path".repeat(20));
        let line = headline(&history, 80);
        assert_eq!(line.chars().count(), 80);
        assert!(line.starts_with('…') && line.contains("/run  step 1 of 3,000  1,234 tok/s  "), "{line}");
        assert!(headline(&history, 10).starts_with("  step 1 of"));
    }

    #[test]
    fn colours_are_escapes_and_plain_text_has_none() {
        let picture = draw(&history(30), area(100, 24));
        assert!(text(&picture, Colours::Colour).contains("\x1b[36m"));
        assert!(!text(&picture, Colours::Plain).contains('\x1b'));
    }

    #[test]
    fn losses_that_are_not_finite_do_not_stretch_the_axis() {
        let mut history = history(3);
        history.losses.push((4.0, f64::NAN));
        history.losses.push((5.0, f64::INFINITY));
        assert!(plain(&history, area(100, 24)).contains("8.10"));
    }
}
