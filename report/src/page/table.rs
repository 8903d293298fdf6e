//! Tables. A table wider than the screen scrolls in its own box, with its first column in place.

use crate::{Label, escape::escape};

/// A table; the first column names the rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Heading.
    pub title: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// The rows, each with a cell for each column.
    pub rows: Vec<Vec<Label>>,
    /// Explanation below the table, e.g. units.
    pub note: Option<String>,
}

impl Table {
    /// Plain text: the first column is left-aligned, the others right-aligned.
    #[must_use]
    pub fn to_text(&self) -> String {
        let header: Vec<&str> = self.header.iter().map(String::as_str).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(|cell| cell.text.as_str()).collect());
        let rows: Vec<Vec<&str>> = std::iter::once(header).chain(rows).collect();
        let width =
            |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..self.header.len()).map(|column| width(column).unwrap_or(0)).collect();
        let lines = rows.iter().map(|row| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

pub(super) fn html(table: &Table) -> String {
    let mut html = format!("<h2>{}</h2>\n<div class=\"scroll\"><table>\n<thead><tr>", escape(&table.title));
    table.header.iter().for_each(|cell| html += &format!("<th>{}</th>", escape(cell)));
    html += "</tr></thead>\n<tbody>\n";
    for row in &table.rows {
        let cells: String = row.iter().map(|cell| format!("<td>{}</td>", cell.to_html())).collect();
        html += &format!("<tr>{cells}</tr>\n");
    }
    html += "</tbody></table></div>\n";
    if let Some(note) = &table.note {
        html += &format!("<p>{}</p>\n", escape(note));
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_tables_are_aligned() {
        let row = |cells: [&str; 3]| cells.map(Label::from).to_vec();
        let table = Table {
            header: ["model", "nll", "ppl"].map(str::to_owned).to_vec(),
            rows: vec![row(["base", "3.1", "22.2"]), row(["recursive", "10.25", "–"])],
            ..Table::default()
        };
        insta::assert_snapshot!(table.to_text(), @"
        model        nll   ppl
        base         3.1  22.2
        recursive  10.25     –
        ");
    }
}
