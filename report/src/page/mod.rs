//! Self-contained HTML pages: style and charts are in the file, for light and dark, wide and narrow
//! screens.

mod figure;
mod heat_map;
mod passage;
mod table;
mod tree;

pub use heat_map::HeatMap;
pub use passage::{MarkedToken, Passage};
pub use table::Table;
pub use tree::TreeDrawing;

use crate::{Chart, Label, ReportError, escape::escape, palette};

/// A list of names with values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Heading.
    pub title: String,
    /// The names, each with its value.
    pub entries: Vec<(Label, String)>,
}

/// The content of a page, in the order in which it is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Heading.
    pub title: String,
    /// Paragraphs under it.
    pub summary: Vec<String>,
    /// Texts under headings of their own.
    pub passages: Vec<Passage>,
    /// Matrices of numbers from 0 to 1.
    pub heat_maps: Vec<HeatMap>,
    /// Tables of numbers.
    pub tables: Vec<Table>,
    /// Trees over sentences.
    pub trees: Vec<TreeDrawing>,
    /// Charts.
    pub charts: Vec<Chart>,
    /// Names and values, e.g. the provenance of the numbers.
    pub facts: Facts,
    /// Files to show in full, e.g. the configuration: name and text.
    pub files: Vec<(Label, String)>,
}

impl Page {
    /// Content of the HTML file.
    ///
    /// # Errors
    /// When a chart cannot be drawn.
    pub fn to_html(&self) -> Result<String, ReportError> {
        let title = escape(&self.title);
        let (palette, style, rules, body) = (palette::CSS, include_str!("style.css"), palette::rules(), self.body()?);
        Ok(format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>\n{palette}{style}{rules}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
        ))
    }

    fn body(&self) -> Result<String, ReportError> {
        let mut body = format!("<h1>{}</h1>\n", escape(&self.title));
        self.summary.iter().for_each(|text| body += &format!("<p>{}</p>\n", escape(text)));
        self.passages.iter().for_each(|passage| body += &passage::html(passage));
        self.heat_maps.iter().for_each(|map| body += &heat_map::html(map));
        self.tables.iter().for_each(|table| body += &table::html(table));
        self.trees.iter().for_each(|tree| body += &tree::html(tree));
        for chart in &self.charts {
            body += &figure::html(chart)?;
        }
        if !self.facts.entries.is_empty() {
            body += &format!("<h2>{}</h2>\n<dl>\n", escape(&self.facts.title));
            for (name, value) in &self.facts.entries {
                body += &format!("<dt>{}</dt><dd>{}</dd>\n", name.to_html(), escape(value));
            }
            body += "</dl>\n";
        }
        if !self.files.is_empty() {
            body += "<h2>Files</h2>\n";
            for (name, text) in &self.files {
                let (name, text) = (name.to_html(), escape(text));
                body += &format!("<details><summary>{name}</summary><pre>{text}</pre></details>\n");
            }
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReferenceLine, Series};

    fn page() -> Page {
        let run = Label { text: "<base>".into(), hover: Some("runs/\"a\"/<base>".into()) };
        Page {
            title: "R & D".into(),
            summary: vec!["a < b".into()],
            passages: vec![Passage {
                title: "Text".into(),
                unit: "recursion".into(),
                tokens: vec![MarkedToken { text: "The".into(), number: 2 }],
            }],
            heat_maps: Vec::new(),
            tables: vec![Table {
                title: "Held-out text".into(),
                header: vec!["model".into(), "nll".into()],
                rows: vec![vec![run.clone(), "3.1652".into()]],
                note: Some("nats per token".into()),
            }],
            trees: Vec::new(),
            charts: vec![Chart {
                title: "Loss".into(),
                series: vec![Series { name: run, points: vec![(1.0, 2.0), (2.0, 1.0)] }],
                reference_lines: vec![ReferenceLine { name: "base".into(), y: 0.5 }],
                ..Chart::default()
            }],
            facts: Facts { title: "Provenance".into(), entries: vec![("commit".into(), "abc".into())] },
            files: vec![("config.yaml".into(), "a: \"b\"\n".into())],
        }
    }

    /// The page without its style and drawings.
    fn outline(html: &str) -> String {
        let (mut outline, mut skipped) = (String::new(), None);
        for line in html.lines() {
            let start = if line.starts_with("<style") { Some("</style>") } else { None };
            let start = start.or_else(|| line.starts_with("<svg").then_some("</svg>"));
            if let (Some(end), None) = (start, skipped) {
                let tag: String = line.chars().take_while(|c| *c != '>').collect();
                outline += &format!("{tag}>…\n");
                skipped = Some(end);
            }
            match skipped {
                Some(end) if line.contains(end) => skipped = None,
                Some(_) => {}
                None => outline += &format!("{line}\n"),
            }
        }
        outline
    }

    #[test]
    fn a_page_has_all_its_parts() {
        insta::assert_snapshot!(outline(&page().to_html().unwrap()));
    }

    #[test]
    fn a_page_needs_no_other_resource() {
        let html = page().to_html().unwrap();
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(html.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn wide_content_scrolls_or_breaks_within_its_own_box() {
        let style = include_str!("style.css");
        for rule in [".scroll { overflow-x: auto;", "pre { margin: 0; padding: .8rem; overflow-x: auto;", "h1, h2, p,"]
        {
            assert!(style.contains(rule), "{rule}");
        }
    }
}
