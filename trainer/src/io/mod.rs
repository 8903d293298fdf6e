//! Inputs of runs: models, texts and cached logits, opened and checked.

pub mod inputs;
mod keep_logits;
mod router_checks;
mod texts;
mod tokenize;

pub use keep_logits::{KeepEvent, KeepLogits, KeptLogits, keep_logits};
pub use texts::Texts;
pub use tokenize::{TokenizedText, document_ends, tokenize};
