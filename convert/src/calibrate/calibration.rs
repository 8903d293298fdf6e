//! A calibration text with the model that runs on it.

use retie_checkpoint::LayerRunner;

/// A text as tokens, and the model that runs on it.
#[derive(Clone)]
pub struct Calibration<'a> {
    /// Runs layers of the source's architecture.
    pub model: &'a dyn LayerRunner,
    /// Name of the text, for the report.
    pub text: String,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Sequences that are fitted to, one after the other; ids of the source's vocabulary.
    pub train: Vec<u32>,
    /// Sequences that only measure the result.
    pub heldout: Vec<u32>,
}
