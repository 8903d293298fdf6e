//! A report as one HTML file that needs nothing else: style and curves are in it, for light and dark screens.

mod chart;
mod passage;
mod svg_file;

use crate::EvalError;
pub use chart::{Chart, Level, Series};
pub use passage::{Marked, Passage};
use std::fmt::Write;
pub use svg_file::{light, render_svg};

/// Colours of pages and charts, for light and dark screens.
const PALETTE: &str = include_str!("palette.css");

/// What a report holds, in the order of the page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Heading.
    pub title: String,
    /// Paragraphs under it.
    pub summary: Vec<String>,
    /// Texts with marked tokens.
    pub passages: Vec<Passage>,
    /// Numbers.
    pub tables: Vec<Table>,
    /// Curves.
    pub charts: Vec<Chart>,
    /// Names and values: where it comes from.
    pub facts: Vec<(String, String)>,
    /// Files to be shown whole, e.g. the configuration: a name and the text.
    pub files: Vec<(String, String)>,
}

/// A table; the first column names the rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Heading.
    pub title: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// The rows, each with a cell for each column.
    pub rows: Vec<Vec<String>>,
    /// What the reader has to know about the numbers.
    pub note: Option<String>,
}

/// The page.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn render_report(report: &Report) -> Result<String, EvalError> {
    let mut body = format!("<h1>{}</h1>\n", escape(&report.title));
    report.summary.iter().for_each(|text| body += &format!("<p>{}</p>\n", escape(text)));
    report.passages.iter().for_each(|passage| body += &passage::html(passage));
    report.tables.iter().for_each(|table| body += &table_html(table));
    for chart in &report.charts {
        body += &figure(chart)?;
    }
    if !report.facts.is_empty() {
        body += "<h2>Where it comes from</h2>\n<dl>\n";
        for (name, value) in &report.facts {
            body += &format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value));
        }
        body += "</dl>\n";
    }
    if !report.files.is_empty() {
        body += "<h2>Files</h2>\n";
        for (name, text) in &report.files {
            let (name, text) = (escape(name), escape(text));
            body += &format!("<details><summary>{name}</summary><pre>{text}</pre></details>\n");
        }
    }
    let (style, rules) = (include_str!("style.css"), chart::rules());
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
         <style>\n{PALETTE}{style}{rules}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(&report.title)
    ))
}

fn table_html(table: &Table) -> String {
    let mut html = format!("<h2>{}</h2>\n<div class=\"scroll\"><table>\n<thead><tr>", escape(&table.title));
    table.header.iter().for_each(|cell| html += &format!("<th>{}</th>", escape(cell)));
    html += "</tr></thead>\n<tbody>\n";
    for row in &table.rows {
        let cells = row.iter().fold(String::new(), |mut cells, cell| {
            let _ = write!(cells, "<td>{}</td>", escape(cell));
            cells
        });
        html += &format!("<tr>{cells}</tr>\n");
    }
    html += "</tbody></table></div>\n";
    if let Some(note) = &table.note {
        html += &format!("<p>{}</p>\n", escape(note));
    }
    html
}

fn figure(chart: &Chart) -> Result<String, EvalError> {
    let svg = chart::svg(chart)?;
    if svg.is_empty() {
        return Ok(String::new());
    }
    let curves = chart.series.iter().map(|series| ("curve", &series.name));
    let entries = curves.chain(chart.levels.iter().map(|level| ("level", &level.name))).enumerate();
    let legend = entries.fold(String::new(), |mut legend, (index, (kind, name))| {
        let colour = index % chart::NUM_COLOURS;
        let mark = format!("<span class=\"{kind}\" style=\"border-color: var(--series{colour})\"></span>");
        let _ = write!(legend, "<li>{mark}{}</li>", escape(name));
        legend
    });
    let title = escape(&chart.title);
    Ok(format!("<h2>{title}</h2>\n<figure>\n{svg}\n<ul class=\"legend\">{legend}</ul>\n</figure>\n"))
}

/// Text as HTML shows it unchanged, in an element or in an attribute in double quotes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_all_its_parts_and_no_outside_resource() {
        let report = Report {
            title: "R & D".into(),
            summary: vec!["a < b".into()],
            passages: Vec::new(),
            tables: vec![Table {
                title: "Held-out text".into(),
                header: vec!["model".into(), "nll".into()],
                rows: vec![vec!["<base>".into(), "3.1652".into()]],
                note: Some("nats per token".into()),
            }],
            charts: vec![Chart {
                title: "Loss".into(),
                series: vec![Series { name: "run".into(), points: vec![(1.0, 2.0), (2.0, 1.0)] }],
                levels: vec![Level { name: "base".into(), y: 0.5 }],
                ..Chart::default()
            }],
            facts: vec![("commit".into(), "abc".into())],
            files: vec![("config.yaml".into(), "a: \"b\"\n".into())],
        };
        let html = render_report(&report).unwrap();
        for part in [
            "<title>R &amp; D</title>",
            "<p>a &lt; b</p>",
            "<td>&lt;base&gt;</td><td>3.1652</td>",
            "<p>nats per token</p>",
            "<svg",
            "<span class=\"level\" style=\"border-color: var(--series1)\"></span>base",
            "<dt>commit</dt><dd>abc</dd>",
            "<pre>a: &quot;b&quot;\n</pre>",
            "prefers-color-scheme: dark",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
