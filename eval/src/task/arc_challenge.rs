//! ARC-Challenge (<https://arxiv.org/abs/1803.05457>): the questions that simple methods fail on.
//! Rows and prompts are those of `arc_easy`.

use super::{HubSource, Task, arc_easy, converted, main};
use crate::Metric;

pub(super) const TASK: Task = Task {
    name: "arc_challenge",
    hub: HubSource {
        repo: "allenai/ai2_arc",
        config: "ARC-Challenge",
        split: "test",
        files: &[main("ARC-Challenge/test-*.parquet"), converted("ARC-Challenge/test/*.parquet")],
    },
    metrics: &[Metric::Acc, Metric::AccNorm],
    parts: arc_easy::parts,
};
