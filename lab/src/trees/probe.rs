//! A probe for trees: one contextual inside-outside layer that is fitted to frozen hidden states.
//!
//! The layer reads a linear map of the states of the words of a sentence, some of which are masked,
//! and says which words the masked ones are. It sees no tree. States of later words have read the
//! masked one, so that the loss says nothing about language modelling; what the probe asks is which
//! bracketing makes the words easiest to say from the states, and whether that is the gold one. The
//! states before the first recursion, which are embeddings where nothing runs before it, are probed
//! too: what is found in them is the probe's own work.

use super::{
    data::Corpus,
    error::TreesError,
    train::{TokenStates, TrainSettings, Trained, train},
};

/// Hidden states of the words of all sentences, at one place of a model.
#[derive(Clone, Debug, Default)]
pub struct ProbedStates {
    /// Features of a word.
    pub width: usize,
    /// `n · width` numbers for each sentence to train on.
    pub train: Vec<Vec<f32>>,
    /// `n · width` numbers for each sentence that is held out.
    pub held_out: Vec<Vec<f32>>,
}

/// Below this a feature is taken as constant.
const CONSTANT: f64 = 1e-6;

impl ProbedStates {
    /// Gives every feature the mean 0 and the variance 1 over the sentences to train on: single
    /// features of language models are larger than the others by orders of magnitude.
    fn standardise(&mut self) {
        let (mut sums, mut squares, mut count) = (vec![0.0; self.width], vec![0.0; self.width], 0.0_f64);
        for state in self.train.iter().flat_map(|states| states.chunks_exact(self.width)) {
            for ((value, sum), square) in state.iter().zip(&mut sums).zip(&mut squares) {
                let value = f64::from(*value);
                *sum += value;
                *square += value * value;
            }
            count += 1.0;
        }
        let scales: Vec<(f64, f64)> = sums
            .iter()
            .zip(&squares)
            .map(|(sum, square)| {
                let mean = sum / count.max(1.0);
                let deviation = (square / count.max(1.0) - mean * mean).max(0.0).sqrt();
                (mean, if deviation < CONSTANT { 1.0 } else { deviation })
            })
            .collect();
        let all = self.train.iter_mut().chain(&mut self.held_out);
        for state in all.flat_map(|states| states.chunks_exact_mut(self.width)) {
            for (value, (mean, deviation)) in state.iter_mut().zip(&scales) {
                *value = ((f64::from(*value) - mean) / deviation) as f32;
            }
        }
    }
}

/// Fits a probe of one layer to the states of the sentences of a corpus, and induces the trees of
/// those that are held out. `progress` is that of [`train()`].
///
/// # Errors
/// Those of [`train()`]: settings that no model has, states of other sentences, and a loss that is
/// not finite.
pub fn probe(
    corpus: &Corpus,
    mut states: ProbedStates,
    settings: &TrainSettings,
    progress: impl FnMut(usize, f64),
) -> Result<Trained, TreesError> {
    if states.width == 0 {
        return Err(TreesError::Setting { name: "width", found: "0".to_owned(), expected: "1 or more".to_owned() });
    }
    states.standardise();
    let mut settings = settings.clone();
    settings.model.num_layers = 1;
    let ProbedStates { width, train: of_train, held_out } = &states;
    train(corpus, Some(TokenStates { width: *width, train: of_train, held_out }), &settings, progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_get_mean_0_and_variance_1_over_the_training_sentences() {
        let mut states = ProbedStates {
            width: 2,
            train: vec![vec![1000.0, 5.0, 3000.0, 5.0], vec![1000.0, 5.0, 3000.0, 5.0]],
            held_out: vec![vec![4000.0, 6.0]],
        };
        states.standardise();
        assert_eq!(states.train[0], [-1.0, 0.0, 1.0, 0.0]);
        assert_eq!(states.held_out[0], [2.0, 1.0]);
    }
}
