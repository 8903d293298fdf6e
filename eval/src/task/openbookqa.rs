//! OpenBookQA (<https://arxiv.org/abs/1809.02789>): elementary science, the question as the
//! beginning of a sentence.
//!
//! Rows: `{"question_stem", "choices": {"text": [k], "label": [k]}, "answerKey"}`.

use super::{Fields, HubSource, Parts, Task, converted, main};
use crate::Metric;

pub(super) const TASK: Task = Task {
    name: "openbookqa",
    hub: HubSource {
        repo: "allenai/openbookqa",
        config: "main",
        split: "test",
        files: &[main("main/test-*.parquet"), converted("main/test/*.parquet")],
    },
    metrics: &[Metric::Acc, Metric::AccNorm],
    parts,
};

fn parts(row: &Fields<'_>) -> Result<Parts, String> {
    let (choices, gold) = row.labelled_choices()?;
    Ok(Parts::choices(row.text("question_stem")?, &choices, gold))
}
