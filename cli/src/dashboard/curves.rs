//! Curves of the training loss, the held-out loss and the teacher's.

use super::history::History;
use ratatui::{
    buffer::Buffer,
    layout::{HorizontalAlignment, Rect},
    style::{Color, Style},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Block, Chart, Dataset, GraphType, Widget},
};
use retie_report::{number::grouped, thin};

const LOSS: Color = Color::Cyan;
const HELDOUT: Color = Color::Yellow;
const TEACHER: Color = Color::DarkGray;
/// Minimum width in columns for legend and unit side by side.
const WIDTH_WITH_UNIT: u16 = 60;
/// Minimum height in lines for five labels on the vertical axis.
const HEIGHT_OF_FIVE_LABELS: u16 = 15;

type Points = Vec<(f64, f64)>;

/// Draws the curves with a legend.
pub fn draw(history: &History, area: Rect, buffer: &mut Buffer) {
    let num_steps = history.num_steps as f64;
    // A braille cell is two dots wide.
    let losses = thin(&history.losses, 2 * usize::from(area.width.max(1)));
    let heldout = thin(&history.heldout, usize::from(area.width.max(1)));
    let teacher = history.teacher.map_or_else(Points::new, |loss| vec![(0.0, loss), (num_steps, loss)]);
    let (low, high) = range([&losses, &heldout, &teacher]);
    let num_labels = if area.height >= HEIGHT_OF_FIVE_LABELS { 5 } else { 3 };
    let y_labels = (0..num_labels).map(|i| low + (high - low) * f64::from(i) / f64::from(num_labels - 1));
    let y_labels: Vec<String> = y_labels.map(|y| format!("{y:.2}")).collect();
    let x_labels = [0, history.num_steps / 2, history.num_steps].map(grouped);

    // Frame, labels and axes surround the cells of the plot area.
    let labels_width = y_labels.iter().map(String::len).max().unwrap_or(0);
    let cells = Cells {
        width: (f64::from(area.width) - 3.0 - labels_width as f64).max(2.0),
        height: (f64::from(area.height) - 4.0).max(2.0),
        x_max: num_steps,
        y_range: (low, high),
    };
    let (measured, teacher) = (cells.snap(&heldout), cells.snap(&teacher));
    let dataset = |marker, graph_type, colour, data| {
        Dataset::default().marker(marker).graph_type(graph_type).style(Style::new().fg(colour)).data(data)
    };
    let datasets = vec![
        dataset(Marker::Custom('┄'), GraphType::Line, TEACHER, &teacher),
        dataset(Marker::Braille, GraphType::Line, LOSS, &losses),
        dataset(Marker::Braille, GraphType::Line, HELDOUT, &heldout),
        // A marker on each measurement, so that a single one can be seen too.
        dataset(Marker::Dot, GraphType::Scatter, HELDOUT, &measured),
    ];
    Chart::new(datasets)
        .block(frame(history, area.width))
        .legend_position(None)
        .x_axis(Axis::default().bounds([0.0, num_steps]).labels(x_labels))
        .y_axis(Axis::default().bounds([low, high]).labels(y_labels))
        .render(area, buffer);
}

/// Cells of the plot area, and the ranges of its axes.
struct Cells {
    width: f64,
    height: f64,
    x_max: f64,
    y_range: (f64, f64),
}

impl Cells {
    /// Moves points to the middle of the cells in which braille curves pass through them. The
    /// widget rounds to whole cells for other symbols, and to dots, `2 × 4` a cell, for braille.
    fn snap(&self, points: &Points) -> Points {
        let (low, high) = self.y_range;
        let cell = |part: f64, cells: f64, dots: f64| ((part * (dots * cells - 1.0)).round() / dots).floor();
        let snap = |(x, y): &(f64, f64)| {
            let column = cell(x / self.x_max, self.width, 2.0);
            let row = cell((high - y) / (high - low), self.height, 4.0);
            (column / (self.width - 1.0) * self.x_max, high - row / (self.height - 1.0) * (high - low))
        };
        points.iter().map(snap).collect()
    }
}

/// The frame, with the legend in its upper edge.
fn frame(history: &History, width: u16) -> Block<'static> {
    let entries = [
        ("⠤⠤", "loss", LOSS, true),
        ("•", "held-out", HELDOUT, !history.heldout.is_empty()),
        ("┄┄", "teacher", TEACHER, history.teacher.is_some()),
    ];
    let entries = entries.into_iter().filter(|(.., shown)| *shown);
    let spans = entries.flat_map(|(mark, name, colour, _)| {
        [Span::styled(format!(" {mark} "), Style::new().fg(colour)), Span::raw(format!("{name} "))]
    });
    let block = Block::bordered().title_top(Line::from_iter(spans));
    match width >= WIDTH_WITH_UNIT {
        true => block.title_top(Line::from(" nats per token, by step ").alignment(HorizontalAlignment::Right)),
        false => block,
    }
}

/// Smallest and largest finite value; a range of width 1 around a single value.
fn range(curves: [&Points; 3]) -> (f64, f64) {
    let values = curves.into_iter().flatten().map(|(_, y)| *y).filter(|y| y.is_finite());
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
    match (low < high, low.is_finite()) {
        (true, _) => (low, high),
        (false, true) => (low - 0.5, low + 0.5),
        (false, false) => (0.0, 1.0),
    }
}
