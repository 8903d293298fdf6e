//! A chart as an SVG file that needs nothing else: colours for light and dark screens, title and legend in it.

use super::{
    PALETTE,
    chart::{self, Chart, NUM_COLOURS, SIZE},
    escape,
};
use crate::EvalError;
use std::fmt::Write;

const TITLE_HEIGHT: u32 = 44;
const ENTRY_HEIGHT: u32 = 24;
const MARGIN: u32 = 24;

/// The chart as the text of an `.svg` file; `None` if it has no point.
///
/// # Errors
/// When the chart cannot be drawn.
pub fn render_svg(chart: &Chart) -> Result<Option<String>, EvalError> {
    let curves = chart::svg(chart)?;
    if curves.is_empty() {
        return Ok(None);
    }
    let (width, chart_height) = SIZE;
    let entries = u32::try_from(chart.series.len() + chart.levels.len()).unwrap_or(u32::MAX);
    let height = TITLE_HEIGHT + chart_height + ENTRY_HEIGHT * entries + MARGIN / 2;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"15\" role=\"img\">\n<style>\n{PALETTE}{}\
         .paper {{ fill: var(--paper); }}\ntext {{ fill: var(--ink); }}\n</style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n\
         <text x=\"{MARGIN}\" y=\"29\" font-size=\"18\" font-weight=\"600\">{}</text>\n",
        chart::rules(),
        escape(&chart.title),
    );
    // A nested element keeps its own coordinates and is moved by `y`.
    svg += &curves.replacen("<svg", &format!("<svg y=\"{TITLE_HEIGHT}\""), 1);
    let curves = chart.series.iter().map(|series| ("", &series.name));
    let levels = chart.levels.iter().map(|level| (" stroke-dasharray=\"7 6\"", &level.name));
    for (index, (dashes, name)) in curves.chain(levels).enumerate() {
        let y = TITLE_HEIGHT + chart_height + ENTRY_HEIGHT * index as u32 + ENTRY_HEIGHT / 2;
        let colour = index % NUM_COLOURS;
        let (start, end, text) = (MARGIN, MARGIN + 28, MARGIN + 40);
        let _ = writeln!(
            svg,
            "<path d=\"M{start} {y}H{end}\" style=\"stroke: var(--series{colour})\" stroke-width=\"2\"{dashes}/>\
             <text x=\"{text}\" y=\"{y}\" dominant-baseline=\"central\">{}</text>",
            escape(name)
        );
    }
    svg += "</svg>\n";
    Ok(Some(svg))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Level, Series};

    #[test]
    fn a_file_has_a_name_space_its_colours_and_a_legend() {
        let chart = Chart {
            title: "Held-out <loss>".into(),
            series: vec![Series { name: "average".into(), points: vec![(0.0, 9.0), (1.0, 4.0)] }],
            levels: vec![Level { name: "teacher".into(), y: 2.5 }],
            ..Chart::default()
        };
        let svg = render_svg(&chart).unwrap().unwrap();
        for part in [
            "<svg xmlns=\"http://www.w3.org/2000/svg\"",
            "--series1: #",
            "Held-out &lt;loss&gt;",
            "<svg y=\"44\"",
            "var(--series1)\" stroke-width=\"2\" stroke-dasharray=\"7 6\"/>",
            ">teacher</text>",
        ] {
            assert!(svg.contains(part), "{part}\n{svg}");
        }
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
        assert_eq!(svg.matches("http").count(), 1);
    }

    #[test]
    fn a_chart_without_points_is_no_file() {
        assert_eq!(render_svg(&Chart::default()).unwrap(), None);
    }
}
