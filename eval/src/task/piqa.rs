//! PIQA (<https://arxiv.org/abs/1911.11641>): choose the better of two ways to reach a goal.
//!
//! Rows: `{"goal", "sol1", "sol2", "label"}`.

use super::{Fields, HubSource, Parts, Task, converted, main};
use crate::Metric;

pub(super) const TASK: Task = Task {
    name: "piqa",
    hub: HubSource {
        repo: "baber/piqa",
        config: "default",
        split: "validation",
        files: &[
            main("data/validation-*.parquet"),
            main("plain_text/validation-*.parquet"),
            main("validation*.parquet"),
            converted("default/validation/*.parquet"),
        ],
    },
    metrics: &[Metric::Acc, Metric::AccNorm],
    parts,
};

fn parts(row: &Fields<'_>) -> Result<Parts, String> {
    let context = format!("Question: {}\nAnswer:", row.text("goal")?);
    let choices = [row.text("sol1")?, row.text("sol2")?];
    Ok(Parts::choices(&context, &choices, row.index("label", choices.len())?))
}
