//! A decoder as a [`Scorer`].

use crate::{ScoreRequest, Scorer, TokenScores};
use burn::tensor::{Int, Tensor};
use retie_model::{
    CausalLm,
    kernels::{HeadInput, token_log_probs},
};
use std::convert::Infallible;

/// Scores with a model. Sequences of a batch are padded on the right, where causal attention cannot see; only hidden states
/// whose next token is scored go through the head.
#[derive(Debug)]
pub struct ModelScorer<'m> {
    model: &'m CausalLm,
}

impl<'m> ModelScorer<'m> {
    /// A scorer of `model`, which should be on a device without autodiff.
    #[must_use]
    pub fn new(model: &'m CausalLm) -> Self {
        Self { model }
    }
}

impl Scorer for ModelScorer<'_> {
    type Error = Infallible;

    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<TokenScores>, Infallible> {
        const PADDING: i32 = 0; // any id of the vocabulary: no score depends on it
        let device = self.model.device();
        // The last token of a sequence is scored and never read.
        let width = requests.iter().map(|r| r.tokens.len().saturating_sub(1)).max().unwrap_or(0);
        if width == 0 {
            return Ok(vec![TokenScores::default(); requests.len()]);
        }
        let mut inputs = vec![PADDING; requests.len() * width];
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (index, (request, row)) in requests.iter().zip(inputs.chunks_exact_mut(width)).enumerate() {
            let read = request.tokens.split_last().map_or(&[][..], |(_, read)| read);
            for (slot, id) in row.iter_mut().zip(read) {
                *slot = *id as i32;
            }
            let first = request.scored_from.max(1);
            rows.extend((first..request.tokens.len()).map(|position| (index * width + position - 1) as i32));
            targets.extend_from_slice(request.tokens.get(first..).unwrap_or_default());
        }
        let ids = Tensor::<1, Int>::from_ints(inputs.as_slice(), &device).reshape([requests.len(), width]);
        let hidden = self.model.forward(ids, None).select(0, Tensor::from_ints(rows.as_slice(), &device));
        let (log_probs, greedy) = token_log_probs(&HeadInput { hidden, weight: self.model.head() }, &targets);
        let mut start = 0;
        let scores = requests.iter().map(|request| {
            let end = start + request.num_scored();
            let scores = TokenScores { log_probs: log_probs[start..end].to_vec(), greedy: greedy[start..end].to_vec() };
            start = end;
            scores
        });
        Ok(scores.collect())
    }
}
