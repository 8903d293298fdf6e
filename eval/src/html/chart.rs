//! Curves as SVG that takes its colours from the page: each colour is drawn as a mark, and the page's style replaces the marks.

use crate::EvalError;
use plotters::{
    backend::SVGBackend,
    chart::ChartBuilder,
    coord::Shift,
    drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea},
    series::{DashedLineSeries, LineSeries},
    style::{Color, IntoFont, RGBColor, ShapeStyle},
};

use std::{fmt::Write, io, ops::Range};

/// Curves over a common axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Heading.
    pub title: String,
    /// What goes to the right.
    pub x_label: String,
    /// What goes up.
    pub y_label: String,
    /// The curves.
    pub series: Vec<Series>,
    /// Values to compare them with, as dashed lines.
    pub levels: Vec<Level>,
}

/// A curve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// `(x, y)`, with ascending x; points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// A value without an x.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Level {
    /// Its name in the legend.
    pub name: String,
    /// The value.
    pub y: f64,
}

/// Width and height in pixels.
pub(super) const SIZE: (u32, u32) = (900, 380);
const INK: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(2, 2, 2);
/// Colours of the style sheet; further curves begin again.
pub(super) const NUM_COLOURS: usize = 6;
/// More points than the chart is wide show nothing more.
const MAX_POINTS: usize = 900;

fn mark(index: usize) -> RGBColor {
    RGBColor(3, 3, 10 + (index % NUM_COLOURS) as u8)
}

/// Rules that give the marks their colours.
pub(super) fn rules() -> String {
    let names = [(INK, "ink".to_owned()), (GRID, "line".to_owned())];
    let series = (0..NUM_COLOURS).map(|i| (mark(i), format!("series{i}")));
    names.into_iter().chain(series).fold(String::new(), |mut css, (RGBColor(r, g, b), name)| {
        let mark = format!("#{r:02X}{g:02X}{b:02X}");
        for property in ["fill", "stroke"] {
            let _ = writeln!(css, "svg [{property}=\"{mark}\"] {{ {property}: var(--{name}); }}");
        }
        css
    })
}

/// The chart as an `<svg>` element; nothing if it has no point.
pub(super) fn svg(chart: &Chart) -> Result<String, EvalError> {
    let series: Vec<Vec<(f64, f64)>> = chart.series.iter().map(|s| thin(&s.points)).collect();
    let Some((x_range, y_range)) = ranges(&series, &chart.levels) else { return Ok(String::new()) };
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    draw(&area, chart, &series, x_range, y_range)
        .map_err(|source| EvalError::Chart { title: chart.title.clone(), source })?;
    drop(area);
    // In a page the element needs no name space.
    Ok(text.replacen(" xmlns=\"http://www.w3.org/2000/svg\"", "", 1))
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    chart: &Chart,
    series: &[Vec<(f64, f64)>],
    x_range: Range<f64>,
    y_range: Range<f64>,
) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let font = |size: u32| ("system-ui, sans-serif", size).into_font().color(&INK);
    let levels_range = x_range.clone();
    let mut context = ChartBuilder::on(area)
        .margin(10)
        .margin_right(28) // half of the last label
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x_range, y_range)?;
    context
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(ShapeStyle { color: GRID.mix(0.0), filled: false, stroke_width: 0 })
        .axis_style(GRID)
        .x_desc(chart.x_label.as_str())
        .y_desc(chart.y_label.as_str())
        .axis_desc_style(font(15))
        .label_style(font(14))
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| short(*y))
        .draw()?;
    for (index, points) in series.iter().enumerate() {
        context.draw_series(LineSeries::new(points.iter().copied(), mark(index).stroke_width(2)))?;
    }
    for (index, level) in chart.levels.iter().enumerate().filter(|(_, level)| level.y.is_finite()) {
        let ends = [(levels_range.start, level.y), (levels_range.end, level.y)];
        let style = mark(series.len() + index).stroke_width(2);
        context.draw_series(DashedLineSeries::new(ends, 7, 6, style))?;
    }
    area.present()
}

/// A number on an axis: without zeros that say nothing, thousands as `k`.
fn short(number: f64) -> String {
    let (number, unit) = if number.abs() >= 10_000.0 { (number / 1000.0, "k") } else { (number, "") };
    let text = format!("{number:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Finite points, at most [`MAX_POINTS`]: means over neighbours if there are more.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let group = finite.len().div_ceil(MAX_POINTS).max(1);
    let mean = |group: &[(f64, f64)]| {
        let (x, y) = group.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        (x / group.len() as f64, y / group.len() as f64)
    };
    finite.chunks(group).map(mean).collect()
}

/// What the axes span: all points and levels, and a little above and below.
fn ranges(series: &[Vec<(f64, f64)>], levels: &[Level]) -> Option<(Range<f64>, Range<f64>)> {
    let points = || series.iter().flatten();
    let span = |values: &mut dyn Iterator<Item = f64>| {
        let first = values.next()?;
        Some(values.fold((first, first), |(low, high), v| (low.min(v), high.max(v))))
    };
    let (left, right) = span(&mut points().map(|(x, _)| *x))?;
    let levels = levels.iter().map(|level| level.y).filter(|y| y.is_finite());
    let (low, high) = span(&mut points().map(|(_, y)| *y).chain(levels))?;
    let pad = |low: f64, high: f64| if high > low { 0.05 * (high - low) } else { 0.5 };
    let right = if right > left { right } else { left + 1.0 };
    Some((left..right, low - pad(low, high)..high + pad(low, high)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = vec![Series { name: "loss".into(), points }];
        let levels = vec![Level { name: "base".into(), y: 2.0 }];
        Chart { title: "Loss".into(), x_label: "step".into(), y_label: "nats".into(), series, levels }
    }

    #[test]
    fn every_colour_of_a_chart_is_one_that_the_page_sets() {
        let svg = svg(&chart(vec![(1.0, 3.0), (2.0, 2.5), (3.0, f64::NAN)])).unwrap();
        let rules = rules();
        for (property, rest) in ["fill", "stroke"]
            .into_iter()
            .flat_map(|p| svg.split(&format!(" {p}=\"")).skip(1).map(move |rest| (p, rest)).collect::<Vec<_>>())
        {
            let colour = rest.split('"').next().unwrap();
            let known = colour == "none" || rules.contains(&format!("svg [{property}=\"{colour}\"]"));
            assert!(known, "{property} {colour}\n{rules}");
        }
        assert!(svg.contains("<svg") && !svg.contains("http"), "{svg}");
    }

    #[test]
    fn a_chart_without_points_is_nothing_and_one_point_is_a_chart() {
        assert_eq!(svg(&chart(vec![(1.0, f64::INFINITY)])).unwrap(), "");
        assert!(svg(&chart(vec![(1.0, 1.0)])).unwrap().contains("<svg"));
    }

    #[test]
    fn long_curves_are_thinned_to_means() {
        let thinned = thin(&(0..2000).map(|i| (f64::from(i), f64::from(i % 2))).collect::<Vec<_>>());
        assert_eq!(thinned.len(), 667);
        assert_eq!(thinned[0], (1.0, 1.0 / 3.0));
    }

    #[test]
    fn labels_have_no_idle_zeros() {
        assert_eq!([short(2.0), short(0.25), short(100.0), short(250_000.0)], ["2", "0.25", "100", "250k"]);
    }
}
