//! Support of the tests: tiny random models, golden files, and gradients beside them.
//!
//! A development dependency only. The unit tests of `retie-model` cannot use it: they would see two
//! copies of that crate.
#![expect(clippy::unwrap_used, reason = "what fails here is a test")]

mod golden;
mod gradients;
mod tensors;
mod tiny;

pub use golden::Golden;
pub use gradients::{GoldenGradients, NextTokenLoss, assert_gradients};
pub use tensors::{differences, ids, values};
pub use tiny::{CONTEXT, EOS, RandomWeights, VOCAB_SIZE, overflowing_model, random_model, tiny_llama};
