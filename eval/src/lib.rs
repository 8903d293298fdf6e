//! Evaluation of language models, compatible with lm-evaluation-harness 0.4.13
//! (<https://github.com/EleutherAI/lm-evaluation-harness>).
//!
//! 1. A [`Task`] turns rows of a data set into [`Example`]s: contexts, continuations, the right
//!    choice.
//! 2. A [`PromptEncoder`] turns a context and a continuation into a [`ScoreRequest`].
//! 3. A [`Scorer`], which is a model, gives the log-probability of every token of the continuation;
//!    [`score_all`] batches the requests.
//! 4. [`evaluate_task`] and [`measure_perplexity`] compute metrics from the scores, [`EvalReport`]
//!    prints them.
//!
//! Beside these, [`calibrate_exits`] finds thresholds of early exits whose risk is controlled
//! ([`RiskTest`]).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod codec;
mod error;
mod evaluate;
mod example;
mod exits;
mod grouping;
mod metrics;
mod model_scorer;
mod packing;
mod perplexity;
mod prompt;
mod python;
mod report;
mod risk;
mod routed_cost;
mod routing;
mod rows;
mod scorer;
mod sharded_scorer;
pub mod task;
#[cfg(test)]
mod testing;
mod token_class;

pub use codec::TextCodec;
pub use error::{EvalError, RunError};
pub use evaluate::{Sample, TaskResult, evaluate_task};
pub use example::Example;
pub use exits::{
    Beginning, ExitReport, ExitSettings, ExitTexts, LevelReport, PolicyReport, Realised, RuleReport, WriteOwn,
    calibrate_exits,
};
pub use metrics::{Estimate, Metric};
pub use model_scorer::{ModelScorer, RecursionSum, TokenExits};
pub use perplexity::{Agreement, Perplexity, PerplexityOptions, measure_perplexity};
pub use prompt::PromptEncoder;
pub use report::EvalReport;
pub use risk::{Promise, RiskTest, least_level};
pub use routed_cost::{Beside, RoutedCost, measure_cost};
pub use routing::{Chosen, RecursionReport, RouterReport, TopK, measure_router};
pub use scorer::{Progress, ScoreRequest, Scorer, TokenAgreement, TokenScores, score_all};
pub use sharded_scorer::ShardedScorer;
pub use task::{HubSource, TASKS, Task};
pub use token_class::{ClassRecursions, TokenClass, classify};
