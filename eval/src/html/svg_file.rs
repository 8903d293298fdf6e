//! Charts as one SVG file that needs nothing else: colours for light and dark screens, title and legend in it.

use super::{
    PALETTE,
    chart::{self, Chart, NUM_COLOURS, SIZE},
    escape,
};
use crate::EvalError;
use std::fmt::Write;

const TITLE_HEIGHT: u32 = 44;
const TITLE_BASELINE: u32 = 29;
const ENTRY_HEIGHT: u32 = 24;
const MARGIN: u32 = 24;

/// The charts, one below the other, as the text of an `.svg` file; `None` if none has a point.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn render_svg(charts: &[Chart]) -> Result<Option<String>, EvalError> {
    let (width, _) = SIZE;
    let (mut body, mut height) = (String::new(), 0);
    for chart in charts {
        let curves = chart::svg(chart)?;
        if !curves.is_empty() {
            height = add_chart(chart, &curves, height, &mut body);
        }
    }
    if body.is_empty() {
        return Ok(None);
    }
    let rules = chart::rules();
    Ok(Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"15\" role=\"img\">\n<style>\n{PALETTE}{rules}\
         .paper {{ fill: var(--paper); }}\ntext {{ fill: var(--ink); }}\n</style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n{body}</svg>\n"
    )))
}

/// The same file in the colours of light screens alone, for programs that know no variables.
#[must_use]
pub fn light(svg: &str) -> String {
    let (_, style) = PALETTE.split_once('{').unwrap_or_default();
    let (light, _) = style.split_once('}').unwrap_or_default();
    let colours = light.split(';').filter_map(|rule| rule.trim().strip_prefix("--")?.split_once(": "));
    colours.fold(svg.replacen(PALETTE, "", 1), |svg, (name, colour)| svg.replace(&format!("var(--{name})"), colour))
}

/// Adds title, curves and legend below `top`; gives where they end.
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
    let mut end = top + SIZE.1;
    let curves = chart.series.iter().map(|series| ("", &series.name));
    let levels = chart.levels.iter().map(|level| (" stroke-dasharray=\"7 6\"", &level.name));
    for (index, (dashes, name)) in curves.chain(levels).enumerate() {
        let y = end + ENTRY_HEIGHT / 2;
        let colour = index % NUM_COLOURS;
        let (from, to, text) = (MARGIN, MARGIN + 28, MARGIN + 40);
        let _ = writeln!(
            svg,
            "<path d=\"M{from} {y}H{to}\" style=\"stroke: var(--series{colour})\" stroke-width=\"2\"{dashes}/>\
             <text x=\"{text}\" y=\"{y}\" dominant-baseline=\"central\">{}</text>",
            escape(name)
        );
        end += ENTRY_HEIGHT;
    }
    end + MARGIN / 2
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
        let other = Chart { title: "Norms".into(), ..chart.clone() };
        let svg = render_svg(&[Chart::default(), chart, other]).unwrap().unwrap();
        for part in [
            "<svg xmlns=\"http://www.w3.org/2000/svg\"",
            "--series1: #",
            "Held-out &lt;loss&gt;",
            "<svg y=\"44\"",
            // 44 + 380 + 2 · 24 + 12 of the chart above it.
            "<svg y=\"528\"",
            ">Norms</text>",
            "var(--series1)\" stroke-width=\"2\" stroke-dasharray=\"7 6\"/>",
            ">teacher</text>",
        ] {
            assert!(svg.contains(part), "{part}\n{svg}");
        }
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
        assert_eq!(svg.matches("http").count(), 1);
        let light = light(&svg);
        assert!(
            light.contains("stroke: #d2691e\" stroke-width") && light.contains("text { fill: #1d2126; }"),
            "{light}"
        );
        assert!(!light.contains("--") && !light.contains("@media"), "{light}");
    }

    #[test]
    fn a_chart_without_points_is_no_file() {
        assert_eq!(render_svg(&[Chart::default()]).unwrap(), None);
    }
}
