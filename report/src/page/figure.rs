//! Charts in a page. Each is drawn twice, for wide and for narrow screens; the style sheet shows
//! one of them.

use crate::{
    Chart, ReportError,
    chart::{self, NARROW, WIDE},
    escape::escape,
    palette,
};

pub(super) fn html(chart: &Chart) -> Result<String, ReportError> {
    let (wide, narrow) = (chart::svg(chart, WIDE)?, chart::svg(chart, NARROW)?);
    if wide.is_empty() {
        return Ok(String::new());
    }
    let legend: String = chart
        .legend()
        .enumerate()
        .map(|(index, entry)| {
            let class = if entry.dashed { "reference" } else { "curve" };
            let colour = palette::variable(index);
            let mark = format!("<span class=\"{class}\" style=\"border-color: var({colour})\"></span>");
            format!("<li>{mark}{}</li>", entry.name.to_html())
        })
        .collect();
    let title = escape(&chart.title);
    Ok(format!("<h2>{title}</h2>\n<figure>\n{wide}\n{narrow}\n<ul class=\"legend\">{legend}</ul>\n</figure>\n"))
}
