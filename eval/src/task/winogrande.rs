//! WinoGrande (<https://arxiv.org/abs/1907.10641>): choose the name that fills the gap.
//!
//! Rows: `{"sentence", "option1", "option2", "answer"}`, the gap is `_`. Partial evaluation: an
//! option becomes part of the context, and the text after the gap is scored.

use super::{Fields, HubSource, Parts, Task, converted, main};
use crate::{Metric, python::strip};

pub(super) const TASK: Task = Task {
    name: "winogrande",
    hub: HubSource {
        repo: "allenai/winogrande",
        config: "winogrande_xl",
        split: "validation",
        files: &[main("winogrande_xl/validation-*.parquet"), converted("winogrande_xl/validation/*.parquet")],
    },
    metrics: &[Metric::Acc],
    parts,
};

fn parts(row: &Fields<'_>) -> Result<Parts, String> {
    let sentence = row.text("sentence")?;
    let (before, after) =
        sentence.split_once('_').ok_or_else(|| format!("`sentence` is `{sentence}`, expected a gap `_` in it"))?;
    let contexts = ["option1", "option2"].map(|key| row.text(key).map(|option| format!("{before}{option}")));
    let contexts: Vec<String> = contexts.into_iter().collect::<Result<_, _>>()?;
    let gold = match row.text("answer")? {
        "1" => 0,
        "2" => 1,
        other => return Err(format!("`answer` is `{other}`, expected `1` or `2`")),
    };
    let continuation = format!(" {}", strip(after));
    Ok(Parts { continuations: vec![continuation; contexts.len()], contexts, gold })
}
