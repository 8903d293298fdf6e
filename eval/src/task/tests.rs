//! Tests of the tasks against the harness (`tests/golden/harness.py`) and on bad files.

use super::*;
use crate::{
    PromptEncoder, evaluate_task,
    testing::{Formula, PREFIX, Pieces},
};
use insta::assert_snapshot;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Golden {
    rows: Vec<Value>,
    examples: Vec<GoldenExample>,
    metrics: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct GoldenExample {
    contexts: Vec<String>,
    continuations: Vec<String>,
    loglikelihoods: Vec<f64>,
}

fn golden(task: &Task) -> Golden {
    let mut all: Map<String, Value> = serde_json::from_str(include_str!("../../tests/golden/harness.json")).unwrap();
    serde_json::from_value(all.remove(task.name).unwrap()).unwrap()
}

fn parquet(task: &Task) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{}.parquet", task.name))
}

fn encoder() -> PromptEncoder<'static> {
    PromptEncoder { codec: &Pieces, prefix_token: PREFIX, bos_token: None, max_length: 1000 }
}

fn written(folder: &Path, name: &str, lines: &[String]) -> PathBuf {
    let path = folder.join(name);
    fs_err::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn prompts_of_the_hubs_rows_are_those_of_the_harness() {
    for task in TASKS {
        let golden = golden(task);
        let examples = task.load(&[parquet(task)]).unwrap();
        assert_eq!(examples.len(), golden.examples.len());
        for (index, (ours, theirs)) in examples.iter().zip(&golden.examples).enumerate() {
            assert_eq!(ours.contexts, theirs.contexts, "{}", task.name);
            assert_eq!(ours.continuations, theirs.continuations, "{}", task.name);
            assert_eq!(ours.id, index);
        }
    }
}

#[test]
fn jsonl_and_parquet_hold_the_same_examples() {
    let folder = tempfile::tempdir().unwrap();
    for task in TASKS {
        let lines: Vec<String> = golden(task).rows.iter().map(Value::to_string).collect();
        let jsonl = written(folder.path(), &format!("{}.jsonl", task.name), &lines);
        assert_eq!(task.file_in(folder.path()).unwrap(), jsonl);
        assert_eq!(task.load(&[jsonl]).unwrap(), task.load(&[parquet(task)]).unwrap(), "{}", task.name);
    }
}

#[test]
fn scores_and_metrics_are_those_of_the_harness_over_the_same_model() {
    for task in TASKS {
        let golden = golden(task);
        let examples = task.load(&[parquet(task)]).unwrap();
        let result = evaluate_task(task, &examples, &encoder(), &mut Formula::default(), 3, &mut |_| ()).unwrap();
        for (sample, theirs) in result.samples.iter().zip(&golden.examples) {
            for (ours, theirs) in sample.loglikelihoods.iter().zip(&theirs.loglikelihoods) {
                // Scores are f32 values of two decimals, below 11: an error of at most 1e-6 each.
                assert!((ours - theirs).abs() < 3e-5, "{}: {ours} {theirs}", task.name);
            }
        }
        let mut names = Vec::new();
        for (metric, estimate) in &result.metrics {
            let theirs = golden.metrics[metric.name()].as_f64().unwrap();
            assert!((estimate.value / theirs - 1.0).abs() < 1e-5 || estimate.value == theirs, "{} {metric}", task.name);
            names.push(metric.name().to_owned());
            if *metric != Metric::Perplexity {
                let stderr = golden.metrics[&format!("{metric}_stderr")].as_f64();
                assert_eq!(estimate.stderr.is_some(), stderr.is_some());
                assert!(
                    (estimate.stderr.unwrap_or(0.0) - stderr.unwrap_or(0.0)).abs() < 1e-12,
                    "{} {metric}",
                    task.name
                );
                names.push(format!("{metric}_stderr"));
            }
        }
        names.sort();
        assert_eq!(names, golden.metrics.keys().cloned().collect::<Vec<_>>(), "{}: no metric is left out", task.name);
    }
}

#[test]
fn rows_that_already_are_examples_are_read_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let row = json!({"id": "x", "task": "piqa", "contexts": ["a", "b"], "continuations": [" c", " d"], "gold": 1});
    let no_id = json!({"contexts": ["a", "b"], "continuations": [" c", " d"], "gold": 0});
    let path = written(folder.path(), "piqa.jsonl", &[row.to_string(), String::new(), no_id.to_string()]);
    let task = Task::find("piqa").unwrap();
    let examples = task.load(&[path.clone(), path]).unwrap();
    assert_eq!(examples[0].id, "x");
    assert_eq!(examples[0].contexts, ["a", "b"]);
    assert_eq!(examples[1].id, 1);
    assert_eq!(examples[3].id, 3, "a second shard goes on counting");
}

#[test]
fn every_bad_row_is_named_with_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<String> = [
        r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}"#,
        r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 2}"#,
        r#"{"goal": "g", "sol1": "a", "label": 0}"#,
        r#"{"goal": "g", "sol1": "#,
        r#"[1]"#,
        "",
        r#"{"goal": 5, "sol1": "a", "sol2": "b", "label": 0}"#,
        r#"{"contexts": ["a", "b"], "continuations": ["c"], "gold": 0}"#,
        r#"{"contexts": ["a"], "continuations": ["c"], "gold": 0}"#,
        r#"{"contexts": ["a", "b"], "continuations": ["c", "d"], "gold": 2}"#,
        r#"{"task": "arc_easy", "contexts": ["a", "b"], "continuations": ["c", "d"], "gold": 0}"#,
        r#"{"contexts": [], "continuations": [], "gold": 0}"#,
        r#"{"contexts": ["a", 1], "continuations": ["c", "d"], "gold": 0}"#,
    ]
    .map(str::to_owned)
    .into();
    written(folder.path(), "piqa.jsonl", &lines);
    let task = Task::find("piqa").unwrap();
    let error = task.load(&[task.file_in(folder.path()).unwrap()]).unwrap_err().to_string();
    assert_snapshot!(error.replace(&folder.path().display().to_string(), "DIR"), @r#"
    `DIR/piqa.jsonl` has 11 bad rows for task `piqa`
    line 2: `label` is `2`, expected an index below 2
    line 3: no `sol2`, expected a string; found `goal`, `sol1`, `label`
    line 4: not valid JSON at column 22, expected an object: EOF while parsing a value
    line 5: a list where a JSON object is expected
    line 7: `goal` is `5`, expected a string
    line 8: 2 `contexts` and 1 `continuations`, expected as many of both
    line 9: 1 choice, expected two or more
    line 10: `gold` is 2, expected an index below 2
    line 11: `task` is "arc_easy", expected `piqa`
    line 12: no `contexts`, expected a list of one or more strings
    … and 1 more
    "#);
}

#[test]
fn rows_of_another_task_say_what_is_missing() {
    let errors: Vec<String> = TASKS
        .iter()
        .map(|task| {
            let other = if task.name.starts_with("arc") { "piqa" } else { "arc_easy" };
            let error = task.load(&[parquet(Task::find(other).unwrap())]).unwrap_err().to_string();
            error.split_once("golden/").unwrap().1.lines().take(2).collect::<Vec<_>>().join("\n")
        })
        .collect();
    assert_snapshot!(errors.join("\n"), @"
    arc_easy.parquet` has 2 bad rows for task `lambada_openai`
    row 1: no `text`, expected a string; found `id`, `question`, `answerKey`, `choices`
    arc_easy.parquet` has 2 bad rows for task `hellaswag`
    row 1: no `activity_label`, expected a string; found `id`, `question`, `answerKey`, `choices`
    arc_easy.parquet` has 2 bad rows for task `piqa`
    row 1: no `goal`, expected a string; found `id`, `question`, `answerKey`, `choices`
    arc_easy.parquet` has 2 bad rows for task `winogrande`
    row 1: no `sentence`, expected a string; found `id`, `question`, `answerKey`, `choices`
    piqa.parquet` has 3 bad rows for task `arc_easy`
    row 1: no `choices`, expected a mapping with the lists `text` and `label`; found `goal`, `sol1`, `sol2`, `label`
    piqa.parquet` has 3 bad rows for task `arc_challenge`
    row 1: no `choices`, expected a mapping with the lists `text` and `label`; found `goal`, `sol1`, `sol2`, `label`
    arc_easy.parquet` has 2 bad rows for task `openbookqa`
    row 1: no `question_stem`, expected a string; found `id`, `question`, `answerKey`, `choices`
    ");
}

#[test]
fn answers_outside_their_range_are_refused() {
    let row = |task: &str, row: Value| {
        let row = row.as_object().unwrap().clone();
        Task::find(task).unwrap().example(&row, 0).unwrap_err()
    };
    let choices = json!({"text": ["a", "b"], "label": ["A", "B"]});
    assert_snapshot!([
        row("arc_easy", json!({"question": "q", "choices": choices, "answerKey": "C"})),
        row("openbookqa", json!({"question_stem": "q", "choices": {"text": ["a"], "label": ["A", "B"]}, "answerKey": "A"})),
        row("openbookqa", json!({"question_stem": "q", "choices": ["a"], "answerKey": "A"})),
        row("winogrande", json!({"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"})),
        row("winogrande", json!({"sentence": "a _", "option1": "a", "option2": "b", "answer": ""})),
        row("hellaswag", json!({"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d"], "label": ""})),
        row("lambada_openai", json!({"contexts": ["a", "b"], "continuations": ["c", "d"], "gold": 0})),
    ].join("\n"), @r#"
    `answerKey` is `C`, expected one of A, B
    `choices` has 1 texts and 2 labels
    `choices` is `["a"]`, expected a mapping with the lists `text` and `label`
    `sentence` is `no gap`, expected a gap `_` in it
    `answer` is ``, expected `1` or `2`
    `label` is `""`, expected an index below 1
    2 choices, expected one
    "#);
}

#[test]
fn an_unknown_task_lists_the_tasks_and_the_nearest() {
    assert_snapshot!(Task::find("hellaswg").unwrap_err(), @"
    unknown task `hellaswg`, did you mean `hellaswag`?
    hint: the tasks are `lambada_openai`, `hellaswag`, `piqa`, `winogrande`, `arc_easy`, `arc_challenge`, `openbookqa`
    ");
    assert_snapshot!(Task::find("mmlu").unwrap_err(), @"
    unknown task `mmlu`
    hint: the tasks are `lambada_openai`, `hellaswag`, `piqa`, `winogrande`, `arc_easy`, `arc_challenge`, `openbookqa`
    ");
}

#[test]
fn files_that_are_absent_empty_double_or_of_another_kind_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let task = Task::find("piqa").unwrap();
    let clean = |error: EvalError| error.to_string().replace(&folder.path().display().to_string(), "DIR");
    let mut errors = vec![clean(task.file_in(folder.path()).unwrap_err())];
    let empty = written(folder.path(), "piqa.jsonl", &[]);
    errors.push(clean(task.load(&[empty]).unwrap_err()));
    let broken = written(folder.path(), "piqa.parquet", &["PAR1".into()]);
    errors.push(clean(task.file_in(folder.path()).unwrap_err()));
    errors.push(clean(task.load(&[broken]).unwrap_err()));
    errors.push(clean(task.load(&[folder.path().join("piqa.csv")]).unwrap_err()));
    assert_snapshot!(errors.join("\n"), @"
    `DIR` has no file for task `piqa`, expected `piqa.parquet` or `piqa.jsonl`
    `DIR/piqa.jsonl` has no rows, expected at least one for task `piqa`
    `DIR` has both `piqa.parquet` and `piqa.jsonl`
    hint: keep the one that is to be measured
    `DIR/piqa.parquet` cannot be read as parquet
    `DIR/piqa.csv` is not a task file, expected the extension `.jsonl` or `.parquet`
    ");
}

#[test]
fn a_continuation_that_cannot_be_scored_names_its_example() {
    let task = Task::find("lambada_openai").unwrap();
    let example = |context: &str, continuation: &str| Example {
        id: 5.into(),
        contexts: vec![context.into()],
        continuations: vec![continuation.into()],
        gold: 0,
    };
    let error = |example: Example| {
        let encoder = PromptEncoder { max_length: 3, ..encoder() };
        evaluate_task(task, &[example], &encoder, &mut Formula::default(), 1, &mut |_| ()).unwrap_err().to_string()
    };
    assert_snapshot!(error(example("a", "b")), @"example 5 of task `lambada_openai`: the continuation `b` has no token of its own");
    assert_snapshot!(error(example("a", " b c d e")), @"example 5 of task `lambada_openai`: a continuation has 4 tokens, the model's context has 3");
}

#[test]
fn the_prepared_tasks_of_the_assets_load() {
    let folder = std::env::var_os("RETIE_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/assets"), PathBuf::from);
    let folder = folder.join("tasks");
    if !folder.exists() {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("skipped: no folder `{}` (set RETIE_ASSETS)", folder.display());
        }
        return;
    }
    for task in TASKS {
        let examples = task.load(&[task.file_in(&folder).unwrap()]).unwrap();
        assert!(examples.len() >= 500, "{}", task.name);
    }
}
