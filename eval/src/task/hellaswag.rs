//! HellaSwag (<https://arxiv.org/abs/1905.07830>): choose the sentence that follows.
//!
//! Rows: `{"activity_label", "ctx_a", "ctx_b", "endings": [4], "label"}`. Markup that the WikiHow
//! part left in the text is removed.

use super::{Fields, HubSource, Parts, Task, converted, main};
use crate::{
    Metric,
    python::{capitalize, strip},
};

pub(super) const TASK: Task = Task {
    name: "hellaswag",
    hub: HubSource {
        repo: "Rowan/hellaswag",
        config: "default",
        split: "validation",
        files: &[main("data/validation-*.parquet"), converted("default/validation/*.parquet")],
    },
    metrics: &[Metric::Acc, Metric::AccNorm],
    parts,
};

fn parts(row: &Fields<'_>) -> Result<Parts, String> {
    let [label, ctx_a, ctx_b] = [row.text("activity_label")?, row.text("ctx_a")?, row.text("ctx_b")?];
    let context = clean(&format!("{label}: {ctx_a} {}", capitalize(ctx_b)));
    let endings: Vec<String> = row.texts("endings")?.into_iter().map(clean).collect();
    let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
    let gold = row.index("label", endings.len())?;
    Ok(Parts::choices(&context, &endings, gold))
}

/// Strips outer white space, turns ` [title]` into a full stop, removes other `[…]`, and turns
/// double spaces into single ones; in this order.
fn clean(text: &str) -> String {
    let text = strip(text).replace(" [title]", ". ");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let (before, from_open) = rest.split_at(open);
        kept.push_str(before);
        // A mark ends at the next bracket of its line.
        match from_open.find(['\n', ']']).filter(|end| from_open[*end..].starts_with(']')) {
            Some(close) => rest = &from_open[close + 1..],
            None => {
                kept.push('[');
                rest = &from_open[1..];
            }
        }
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}
