//! Trees that are induced without a tree ever being shown: contextual inside-outside layers of
//! ReCAT (Hu et al. 2024, <https://arxiv.org/abs/2309.16319>) on pruned charts, trained by masked
//! words.
//!
//! 1. [`Corpus`]: sentences of generated grammars or of a file, with gold trees to compare with.
//! 2. [`Chart`]: the cells of a sentence, `O(n)` of them, in the order that a parser gives.
//!    `Plan` makes steps of [`crate::drive`] of those of a batch, up and down.
//! 3. `Layer`: what a cell is computed from. [`TreeModel`]: layers, parser and the head for masked
//!    words.
//! 4. [`train()`], and [`Figures`]: unlabelled F1 of the trees of held-out sentences, beside those
//!    of rules. [`probe()`]: the same on frozen hidden states in the place of words.

mod block;
mod chart;
mod data;
mod error;
mod layer;
mod model;
mod parser;
mod plan;
mod probe;
mod scores;
mod train;
mod tree;

pub use chart::{Cell, Chart};
pub use data::{Corpus, Selection, Sentence, tasks_with_trees};
pub use error::TreesError;
pub use model::{Batch, Induced, Losses, ModelSettings, Source, TreeModel};
pub use probe::{ProbedStates, probe};
pub use scores::{Figures, figures, figures_of_rule};
pub use train::{RuleFigures, TokenStates, TrainSettings, Trained, TreeFigures, train};
pub use tree::{Node, Rule, Tree};

#[cfg(test)]
mod tests;
