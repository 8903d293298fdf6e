//! Tasks with exact answers, which ask whether a model computes recursively.
//!
//! 1. A [`TaskSpec`] names a task with its settings: `succ?length=1..10`. Its [`Grammar`] has a
//!    generator, a reference program and a shortcut, the same program with a cap on recursion.
//! 2. [`TaskDocuments`] is training text, [`Example`]s are problems of an evaluation,
//!    [`in_context`] writes prompts for pretrained models.
//! 3. A [`Scoreboard`] counts answers by depth and recursions; [`Explanation`] says how many of the
//!    wrong answers a shortcut predicts.
//!
//! [`numbers`] has sequences that are defined by recursion, [`regression`] predictions of those
//! beyond the ones that a network was fitted to, [`conformal`] calibrated intervals, [`graph`]
//! knowledge graphs and logical queries.
//! Nothing here depends on a tensor library or a tokenizer.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod conformal;
mod error;
mod example;
mod explain;
mod grammar;
pub mod graph;
pub mod numbers;
mod options;
mod random;
pub mod regression;
mod score;
mod spec;

pub use error::TaskError;
pub use example::{Example, Form, Symbols, in_context};
pub use explain::Explanation;
pub use grammar::{Grammar, SyntaxTree, TASKS, Task};
pub use random::Random;
pub use score::{Cell, Correlation, Failure, Group, Scoreboard, TaskScore, Trial};
pub use spec::{COMMON_KEYS, GRAMMAR_VERSION, Purpose, SCHEME, TaskDocuments, TaskSpec};
