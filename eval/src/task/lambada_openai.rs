//! LAMBADA (<https://arxiv.org/abs/1606.06031>), OpenAI's version of the test set: the last word of
//! a passage.
//!
//! Rows: `{"text"}`. The context ends before the last space; greedy decoding has to give the word.

use super::{Fields, HubSource, Parts, Task, converted, main};
use crate::Metric;

pub(super) const TASK: Task = Task {
    name: "lambada_openai",
    hub: HubSource {
        repo: "EleutherAI/lambada_openai",
        config: "default",
        split: "test",
        files: &[main("data/lambada_test.jsonl"), main("default/test-*.parquet"), converted("default/test/*.parquet")],
    },
    metrics: &[Metric::Perplexity, Metric::Acc],
    parts,
};

fn parts(row: &Fields<'_>) -> Result<Parts, String> {
    let text = row.text("text")?;
    let (context, word) = text.rsplit_once(' ').unwrap_or(("", text));
    Ok(Parts::choices(context, &[word], 0))
}
