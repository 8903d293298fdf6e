//! Evaluation of a task on a model.

use crate::{
    EvalError, Example, Progress, PromptEncoder, RunError, ScoreRequest, Scorer, Task, TokenScores,
    metrics::{Answer, Estimate, Metric},
    prompt::PromptError,
    score_all,
    scorer::check_log_probs,
};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

/// Scores of one example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The task.
    pub task: &'static str,
    /// The example's id.
    pub id: Value,
    /// Index of the right choice.
    pub gold: usize,
    /// Natural log-likelihood of each continuation.
    pub loglikelihoods: Vec<f64>,
}

/// Metrics and scores of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskResult {
    /// The task.
    pub task: &'static str,
    /// Its metrics, in the task's order.
    pub metrics: Vec<(Metric, Estimate)>,
    /// Every example, in the file's order.
    pub samples: Vec<Sample>,
}

/// Scores `examples` (at least one) in batches of at most as many tokens as `batch_size` of the
/// longest requests have.
///
/// # Errors
/// When a continuation has no token or does not fit the model, or when the model fails.
pub fn evaluate_task<S: Scorer>(
    task: &'static Task,
    examples: &[Example],
    encoder: &PromptEncoder<'_>,
    scorer: &mut S,
    batch_size: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<TaskResult, RunError<S::Error>> {
    if examples.is_empty() {
        return Err(EvalError::Zero { option: "number of examples" }.into());
    }
    let requests: Vec<Vec<ScoreRequest>> =
        examples.par_iter().map(|example| requests(task, example, encoder)).collect::<Result<_, EvalError>>()?;
    let requests: Vec<ScoreRequest> = requests.into_iter().flatten().collect();
    let scores = score_all(scorer, &requests, batch_size, progress)?;
    let mut rest = scores.as_slice();
    let mut answers = Vec::with_capacity(examples.len());
    let mut samples = Vec::with_capacity(examples.len());
    for example in examples {
        let (example_scores, after) = rest.split_at(example.continuations.len());
        rest = after;
        for scores in example_scores {
            check_log_probs(scores, || format!("example {} of task `{}`", example.id, task.name))?;
        }
        answers.push(Answer::new(example, example_scores, task.is_single()));
        samples.push(Sample {
            task: task.name,
            id: example.id.clone(),
            gold: example.gold,
            loglikelihoods: example_scores.iter().map(TokenScores::sum).collect(),
        });
    }
    let metrics = task.metrics.iter().map(|metric| (*metric, metric.over(&answers))).collect();
    Ok(TaskResult { task: task.name, metrics, samples })
}

fn requests(task: &Task, example: &Example, encoder: &PromptEncoder<'_>) -> Result<Vec<ScoreRequest>, EvalError> {
    let pairs = example.contexts.iter().zip(&example.continuations);
    let one = |(context, continuation): (&String, &String)| {
        encoder.request(context, continuation).map_err(|error| {
            let (task, id) = (task.name, example.id.to_string());
            match error {
                PromptError::Data(error) => error.into(),
                PromptError::NothingToScore => {
                    EvalError::NothingToScore { task, id, continuation: continuation.clone() }
                }
                PromptError::TooLong(found) => EvalError::TooLong { task, id, found, max_length: encoder.max_length },
            }
        })
    };
    pairs.map(one).collect()
}
