//! A chart as an `<svg>` element in placeholder colours (see [`crate::palette`]).

use super::{
    data::Chart,
    range::{Point, ranges, thin},
};
use crate::{ReportError, escape::escape, number::short, palette};
use plotters::{
    backend::SVGBackend,
    chart::{ChartBuilder, ChartContext},
    coord::{Shift, cartesian::Cartesian2d, types::RangedCoordf64},
    drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea},
    element::{Circle, EmptyElement, Text},
    series::{DashedLineSeries, LineSeries},
    style::{
        Color, IntoFont, ShapeStyle, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};
use std::io;

/// Geometry of a drawing, in pixels.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Class of the element.
    pub class: &'static str,
    /// Width of the drawing; also the limit on points, as more than one per pixel show nothing
    /// more.
    pub width: u32,
    /// Height of the drawing.
    pub height: u32,
    /// Width of the area for the vertical axis's numbers and name.
    y_labels_width: u32,
    /// Maximum number of labels on the horizontal and on the vertical axis.
    num_labels: (usize, usize),
}

/// Size for a page, a file and a picture.
pub const WIDE: Size = Size { class: "wide", width: 900, height: 380, y_labels_width: 68, num_labels: (10, 10) };
/// Size for a phone.
pub const NARROW: Size = Size { class: "narrow", width: 380, height: 300, y_labels_width: 64, num_labels: (4, 6) };

/// Maximum number of points at which each has its value beside it.
const MAX_NUMBERED: usize = 4;
const MARKER_RADIUS: u32 = 3;
/// Minimum distance between markers in pixels; curves with more points have none.
const MARKER_SPACING: f64 = 14.0;
/// Font size in units of `plotters`, of which 1.24 make a pixel.
const FONT_SIZE: u32 = 16;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Context<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type DrawError = DrawingAreaErrorKind<io::Error>;

/// The chart as an `<svg>` element; empty if it has no point.
pub fn svg(chart: &Chart, size: Size) -> Result<String, ReportError> {
    let series: Vec<Vec<Point>> = chart.series.iter().map(|s| thin(&s.points, size.width as usize)).collect();
    let numbered = series.iter().map(Vec::len).sum::<usize>() <= MAX_NUMBERED;
    // A value above the highest point needs space.
    let margin = if numbered { 0.15 } else { 0.05 };
    let Some((x_range, y_range)) = ranges(&series, &chart.reference_lines, margin) else { return Ok(String::new()) };
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, (size.width, size.height)).into_drawing_area();
    let drawn = context(&area, chart, size, (x_range, y_range)).and_then(|mut context| {
        lines(&mut context, chart, &series)?;
        markers(&mut context, &series)?;
        if numbered {
            values(&mut context, &series)?;
        }
        area.present()
    });
    drawn.map_err(|source| ReportError::Chart { title: chart.title.clone(), source })?;
    drop(area);
    // Inside a page the element needs no XML namespace.
    let element = format!("<svg class=\"{}\" role=\"img\" aria-label=\"{}\"", size.class, escape(&chart.title));
    Ok(text.replacen(" xmlns=\"http://www.w3.org/2000/svg\"", "", 1).replacen("<svg", &element, 1))
}

fn font(size: u32) -> TextStyle<'static> {
    ("system-ui, sans-serif", size).into_font().color(&palette::INK)
}

/// Axes, their labels and the grid.
fn context<'a, 'b>(
    area: &'a Area<'b>,
    chart: &Chart,
    size: Size,
    (x_range, y_range): (std::ops::Range<f64>, std::ops::Range<f64>),
) -> Result<Context<'a, 'b>, DrawError> {
    let mut context = ChartBuilder::on(area)
        .margin(10)
        .margin_right(28) // half of the last label
        .x_label_area_size(44)
        .y_label_area_size(size.y_labels_width)
        .build_cartesian_2d(x_range, y_range)?;
    context
        .configure_mesh()
        .bold_line_style(palette::GRID)
        .light_line_style(ShapeStyle { color: palette::GRID.mix(0.0), filled: false, stroke_width: 0 })
        .axis_style(palette::GRID)
        .x_desc(chart.x_label.as_str())
        .y_desc(chart.y_label.as_str())
        .axis_desc_style(font(FONT_SIZE + 1))
        .label_style(font(FONT_SIZE))
        .x_labels(size.num_labels.0)
        .y_labels(size.num_labels.1)
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| short(*y))
        .draw()?;
    Ok(context)
}

/// Draws the curves, and the reference lines from side to side.
fn lines(context: &mut Context<'_, '_>, chart: &Chart, series: &[Vec<Point>]) -> Result<(), DrawError> {
    for (index, points) in series.iter().enumerate() {
        context.draw_series(LineSeries::new(points.iter().copied(), palette::series(index).stroke_width(2)))?;
    }
    let sides = context.x_range();
    for (index, line) in chart.reference_lines.iter().enumerate().filter(|(_, line)| line.y.is_finite()) {
        let ends = [(sides.start, line.y), (sides.end, line.y)];
        let style = palette::series(series.len() + index).stroke_width(2);
        context.draw_series(DashedLineSeries::new(ends, 7, 6, style))?;
    }
    Ok(())
}

/// Draws markers on the points of curves with few points, to tell measurements from the lines
/// between them.
fn markers(context: &mut Context<'_, '_>, series: &[Vec<Point>]) -> Result<(), DrawError> {
    let sides = context.x_range();
    let pixels = f64::from(context.plotting_area().dim_in_pixel().0) / (sides.end - sides.start);
    let has_room = |points: &[Point]| match points {
        [(first, _), .., (last, _)] => pixels * (last - first) >= MARKER_SPACING * (points.len() - 1) as f64,
        _ => true,
    };
    for (index, points) in series.iter().enumerate().filter(|(_, points)| has_room(points)) {
        let style = palette::series(index).filled();
        context.draw_series(points.iter().map(|point| Circle::new(*point, MARKER_RADIUS, style)))?;
    }
    Ok(())
}

/// Draws the value of each point beside it: towards the middle of the chart, and off the curve.
fn values(context: &mut Context<'_, '_>, series: &[Vec<Point>]) -> Result<(), DrawError> {
    let sides = context.x_range();
    let middle = (sides.start + sides.end) / 2.0;
    for points in series {
        for (index, (x, y)) in points.iter().copied().enumerate() {
            let (side, shift, neighbour) = match x > middle {
                true => (HPos::Right, -4, index.checked_sub(1)),
                false => (HPos::Left, 4, Some(index + 1)),
            };
            let curve_rises = neighbour.and_then(|index| points.get(index)).is_some_and(|(_, other)| *other > y);
            let (edge, drop) = if curve_rises { (VPos::Top, 6) } else { (VPos::Bottom, -6) };
            let style = font(FONT_SIZE).pos(Pos::new(side, edge));
            let value = EmptyElement::at((x, y)) + Text::new(short(y), (shift, drop), style);
            context.draw_series(std::iter::once(value))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReferenceLine, Series};

    fn chart(points: Vec<Point>) -> Chart {
        let series = vec![Series { name: "loss".into(), points }];
        let reference_lines = vec![ReferenceLine { name: "base".into(), y: 2.0 }];
        Chart { title: "Loss".into(), x_label: "step".into(), y_label: "nats".into(), series, reference_lines }
    }

    #[test]
    fn every_colour_of_a_chart_is_one_that_the_page_sets() {
        let svg = svg(&chart(vec![(1.0, 3.0), (2.0, 2.5), (3.0, f64::NAN)]), WIDE).unwrap();
        let rules = palette::rules();
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
    fn a_chart_without_points_is_nothing() {
        assert_eq!(svg(&chart(vec![(1.0, f64::INFINITY)]), WIDE).unwrap(), "");
    }

    #[test]
    fn few_points_have_markers_and_values_and_many_have_neither() {
        let curve = |count: u32| (0..count).map(|i| (f64::from(i), 1.25 + f64::from(i))).collect::<Vec<_>>();
        for (count, markers, values) in [(1, 1, true), (2, 2, true), (10, 10, false), (50, 50, false), (70, 0, false)] {
            let svg = svg(&chart(curve(count)), WIDE).unwrap();
            assert_eq!(svg.matches("<circle").count(), markers, "{count} points");
            assert_eq!(svg.contains("\n1.25\n"), values, "{count} points: {svg}");
        }
    }

    #[test]
    fn a_chart_of_two_points_is_as_recorded() {
        insta::assert_snapshot!(svg(&chart(vec![(0.0, 6.6), (20_000.0, 5.9)]), NARROW).unwrap());
    }
}
