//! Heat maps: a table of numbers from 0 to 1, each on a colour as strong as it is large.

use crate::escape::escape;
use std::fmt::Write;

/// A matrix of numbers from 0 to 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeatMap {
    /// Heading.
    pub title: String,
    /// What the rows and the columns are.
    pub axes: [String; 2],
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows: a name, and a number for each column where there is one.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
    /// Explanation below.
    pub note: Option<String>,
}

/// Opacity of the colour behind a 1, in percent.
const STRONGEST: f64 = 70.0;

pub(super) fn html(map: &HeatMap) -> String {
    let [rows, columns] = &map.axes;
    let mut html = format!("<h2>{}</h2>\n<div class=\"scroll\"><table>\n<thead><tr>", escape(&map.title));
    let _ = write!(html, "<th>{} \\ {}</th>", escape(rows), escape(columns));
    map.columns.iter().for_each(|name| html += &format!("<th>{}</th>", escape(name)));
    html += "</tr></thead>\n<tbody>\n";
    for (name, numbers) in &map.rows {
        let _ = write!(html, "<tr><td>{}</td>", escape(name));
        for number in numbers {
            html += &match number {
                Some(number) => {
                    let percent = STRONGEST * number.clamp(0.0, 1.0);
                    let colour = format!("color-mix(in srgb, var(--series1) {percent:.0}%, transparent)");
                    format!("<td style=\"background: {colour}\">{number:.2}</td>")
                }
                None => "<td>–</td>".to_owned(),
            };
        }
        html += "</tr>\n";
    }
    html += "</tbody></table></div>\n";
    if let Some(note) = &map.note {
        html += &format!("<p>{}</p>\n", escape(note));
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_colour_as_strong_as_it_is_large() {
        let map = HeatMap {
            title: "succ <1>".into(),
            axes: ["leading X1".into(), "recursions".into()],
            columns: vec!["1".into(), "2".into()],
            rows: vec![("0".into(), vec![Some(1.0), Some(0.25)]), ("1".into(), vec![None, Some(0.0)])],
            note: Some("exact match".into()),
        };
        let html = html(&map);
        for part in [
            "<h2>succ &lt;1&gt;</h2>",
            "<th>leading X1 \\ recursions</th><th>1</th><th>2</th>",
            "var(--series1) 70%, transparent)\">1.00</td>",
            "var(--series1) 18%, transparent)\">0.25</td>",
            "<tr><td>1</td><td>–</td><td style=\"background: color-mix(in srgb, var(--series1) 0%",
            "<p>exact match</p>",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
    }
}
