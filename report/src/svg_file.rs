//! Self-contained SVG files of charts with titles, legends and colours for light and dark screens.

use crate::{
    Chart, ReportError,
    chart::{self, WIDE},
    escape::escape,
    palette,
};
use std::fmt::Write;

const TITLE_HEIGHT: u32 = 44;
const TITLE_BASELINE: u32 = 29;
const ENTRY_HEIGHT: u32 = 24;
const MARGIN: u32 = 24;

/// Content of an `.svg` file with the charts, one below the other; `None` if none has a point.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn charts_to_svg(charts: &[Chart]) -> Result<Option<String>, ReportError> {
    let width = WIDE.width;
    let (mut body, mut height) = (String::new(), 0);
    for chart in charts {
        let curves = chart::svg(chart, WIDE)?;
        if !curves.is_empty() {
            height = add_chart(chart, &curves, height, &mut body);
        }
    }
    if body.is_empty() {
        return Ok(None);
    }
    let (colours, rules) = (palette::CSS, palette::rules());
    Ok(Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"15\" role=\"img\">\n<style>\n{colours}{rules}\
         .paper {{ fill: var(--paper); }}\ntext {{ fill: var(--ink); }}\n</style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n{body}</svg>\n"
    )))
}

/// Replaces CSS variables by the colours of light screens, for programs that do not support
/// variables.
#[must_use]
pub fn with_light_colours(svg: &str) -> String {
    let (_, style) = palette::CSS.split_once('{').unwrap_or_default();
    let (light, _) = style.split_once('}').unwrap_or_default();
    let colours = light.split(';').filter_map(|rule| rule.trim().strip_prefix("--")?.split_once(": "));
    let svg = svg.replacen(palette::CSS, "", 1);
    colours.fold(svg, |svg, (name, colour)| svg.replace(&format!("var(--{name})"), colour))
}

/// Adds title, curves and legend of a chart below `top`; returns the lower edge.
fn add_chart(chart: &Chart, curves: &str, top: u32, svg: &mut String) -> u32 {
    let title = escape(&chart.title);
    let _ = writeln!(
        svg,
        "<text x=\"{MARGIN}\" y=\"{}\" font-size=\"18\" font-weight=\"600\">{title}</text>",
        top + TITLE_BASELINE
    );
    // A nested element keeps its own coordinates and is moved by `y`.
    let top = top + TITLE_HEIGHT;
    *svg += &curves.replacen("<svg", &format!("<svg y=\"{top}\""), 1);
    let mut end = top + WIDE.height;
    for (index, entry) in chart.legend().enumerate() {
        let y = end + ENTRY_HEIGHT / 2;
        let (colour, name) = (palette::variable(index), entry.name.to_svg());
        let dashes = if entry.dashed { " stroke-dasharray=\"7 6\"" } else { "" };
        let (from, to, text) = (MARGIN, MARGIN + 28, MARGIN + 40);
        let _ = writeln!(
            svg,
            "<path d=\"M{from} {y}H{to}\" style=\"stroke: var({colour})\" stroke-width=\"2\"{dashes}/>\
             <text x=\"{text}\" y=\"{y}\" dominant-baseline=\"central\">{name}</text>"
        );
        end += ENTRY_HEIGHT;
    }
    end + MARGIN / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReferenceLine, Series};

    #[test]
    fn a_file_has_a_name_space_its_colours_and_a_legend() {
        let chart = Chart {
            title: "Held-out <loss>".into(),
            series: vec![Series { name: "average".into(), points: vec![(0.0, 9.0), (1.0, 4.0)] }],
            reference_lines: vec![ReferenceLine { name: "teacher".into(), y: 2.5 }],
            ..Chart::default()
        };
        let other = Chart { title: "Norms".into(), ..chart.clone() };
        let svg = charts_to_svg(&[Chart::default(), chart, other]).unwrap().unwrap();
        for part in [
            "<svg xmlns=\"http://www.w3.org/2000/svg\"",
            "--series1: #",
            "Held-out &lt;loss&gt;",
            "<svg y=\"44\"",
            // Offset of the second chart: 44 + 380 + 2 · 24 + 12.
            "<svg y=\"528\"",
            ">Norms</text>",
            "var(--series1)\" stroke-width=\"2\" stroke-dasharray=\"7 6\"/>",
            ">teacher</text>",
        ] {
            assert!(svg.contains(part), "{part}\n{svg}");
        }
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
        assert_eq!(svg.matches("http").count(), 1);
        let light = with_light_colours(&svg);
        assert!(
            light.contains("stroke: #d2691e\" stroke-width") && light.contains("text { fill: #1d2126; }"),
            "{light}"
        );
        assert!(!light.contains("var(--") && !light.contains("@media"), "{light}");
    }

    #[test]
    fn a_chart_without_points_is_no_file() {
        assert_eq!(charts_to_svg(&[Chart::default()]).unwrap(), None);
    }
}
