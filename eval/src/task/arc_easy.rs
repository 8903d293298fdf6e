//! ARC-Easy (<https://arxiv.org/abs/1803.05457>): science questions from school.
//!
//! Rows: `{"question", "choices": {"text": [k], "label": [k]}, "answerKey"}`.

use super::{Fields, HubSource, Parts, Task, converted, main};
use crate::Metric;

pub(super) const TASK: Task = Task {
    name: "arc_easy",
    hub: HubSource {
        repo: "allenai/ai2_arc",
        config: "ARC-Easy",
        split: "test",
        files: &[main("ARC-Easy/test-*.parquet"), converted("ARC-Easy/test/*.parquet")],
    },
    metrics: &[Metric::Acc, Metric::AccNorm],
    parts,
};

pub(super) fn parts(row: &Fields<'_>) -> Result<Parts, String> {
    let (choices, gold) = row.labelled_choices()?;
    Ok(Parts::choices(&format!("Question: {}\nAnswer:", row.text("question")?), &choices, gold))
}
