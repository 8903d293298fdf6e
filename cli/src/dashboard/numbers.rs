//! Numbers of the last row, the most important first. The lower edge says how many lines do not
//! fit.

use super::history::History;
use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Rect},
    text::Line,
    widgets::{Block, Row, Table, Widget},
};
use retie_report::number::{grouped, rate};
use retie_trainer::StepRow;

/// Width of the names in columns.
const NAMES_WIDTH: u16 = 17;
/// Width in columns of the frame and of the gap between names and values.
const EDGES_WIDTH: u16 = 3;

/// Draws the numbers of `row`.
pub fn draw(history: &History, row: &StepRow, area: Rect, buffer: &mut Buffer) {
    let room = usize::from(area.width.saturating_sub(NAMES_WIDTH + EDGES_WIDTH));
    let lines: Vec<(String, String)> =
        entries(history, row).into_iter().flat_map(|(name, values)| wrapped(name, &values, room)).collect();
    let height = usize::from(area.height.saturating_sub(2));
    let mut block = Block::bordered().title_top(format!(" step {} ", grouped(row.step)));
    if lines.len() > height {
        block = block.title_bottom(Line::from(format!(" {} more ", lines.len() - height)).right_aligned());
    }
    let rows = lines.into_iter().take(height).map(|(name, value)| Row::new([name, value]));
    Table::new(rows, [Constraint::Length(NAMES_WIDTH), Constraint::Fill(1)]).block(block).render(area, buffer);
}

/// Names and their values; a name without values is left out.
fn entries(history: &History, row: &StepRow) -> Vec<(String, Vec<String>)> {
    let loss = |loss: f64| format!("{loss:.4}");
    let mut entries = vec![("loss".to_owned(), vec![loss(row.loss)])];
    let mut add = |name: &str, values: Vec<String>| entries.push((name.to_owned(), values));
    row.terms.iter().for_each(|(name, value)| add(&format!("  {name}"), vec![loss(*value)]));
    add("held-out", history.heldout.last().map(|(_, y)| loss(*y)).into_iter().collect());
    add("  averaged", history.averaged.map(loss).into_iter().collect());
    add("  early exits", history.heldout_exits.iter().map(|y| loss(*y)).collect());
    add("  teacher", history.teacher.map(loss).into_iter().collect());
    add("learning rate", vec![format!("{:.2e}", row.lr)]);
    add("gradient norm", vec![format!("{:.3}", row.grad_norm)]);
    add("loss spikes", (row.loss_spikes > 0).then(|| row.loss_spikes.to_string()).into_iter().collect());
    let routing = row.routing.as_ref();
    add("mean recursions", routing.map(|routing| format!("{:.2}", routing.mean_recursions)).into_iter().collect());
    if let Some(telemetry) = &row.telemetry {
        add("hidden norm", telemetry.hidden_norm.iter().map(|norm| rate(*norm)).collect());
        add("cosine", telemetry.cosine.iter().map(|cosine| format!("{cosine:.2}")).collect());
    }
    add("tokens", vec![grouped(row.tokens)]);
    if let Some(telemetry) = row.telemetry.as_ref().filter(|telemetry| !telemetry.grad_norm.is_empty()) {
        add("gradient norm of", vec![String::new()]);
        telemetry.grad_norm.iter().for_each(|(group, norm)| add(&format!("  {group}"), vec![format!("{norm:.3}")]));
    }
    entries.retain(|(_, values)| !values.is_empty());
    entries
}

/// Values wrapped to lines of `room` columns; the first line has the name.
fn wrapped(name: String, values: &[String], room: usize) -> Vec<(String, String)> {
    let mut lines: Vec<(String, String)> = Vec::new();
    for value in values {
        match lines.last_mut() {
            Some((_, line)) if line.chars().count() + 1 + value.chars().count() <= room => {
                line.push(' ');
                line.push_str(value);
            }
            Some(_) => lines.push((String::new(), value.clone())),
            None => lines.push((name.clone(), value.clone())),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_do_not_fit_on_one_line_wrap() {
        let values = ["812", "1,025", "12,346"].map(str::to_owned);
        let lines =
            |room| wrapped("hidden norm".into(), &values, room).into_iter().map(|(_, line)| line).collect::<Vec<_>>();
        assert_eq!(lines(20), ["812 1,025 12,346"]);
        assert_eq!(lines(9), ["812 1,025", "12,346"]);
        assert_eq!(lines(0), values);
    }
}
