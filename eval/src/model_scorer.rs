//! A language model as a [`Scorer`].

use crate::{ScoreRequest, Scorer, TokenAgreement, TokenScores, packing::Packing};
use burn::tensor::{Int, Tensor};
use retie_model::{
    CausalLm, SelectionRule,
    kernels::{HeadInput, agreement, token_log_probs},
};
use std::convert::Infallible;

/// Scores requests with a model. The sequences of a batch are packed without padding, a common
/// prefix is read once, and only the hidden states whose next token is scored go through the head.
#[derive(Debug)]
pub struct ModelScorer<'m> {
    model: &'m CausalLm,
    /// Recursion count of the exit; `None` for the whole stack.
    recursions: Option<usize>,
    teacher: Option<&'m CausalLm>,
}

impl<'m> ModelScorer<'m> {
    /// A scorer of `model`, which should be on a device without autodiff.
    #[must_use]
    pub fn new(model: &'m CausalLm) -> Self {
        Self { model, recursions: None, teacher: None }
    }

    /// Sets an early exit: every token leaves the loop after `recursions` recursions.
    #[must_use]
    pub fn exiting_after(self, recursions: Option<usize>) -> Self {
        Self { recursions, ..self }
    }

    /// Adds a teacher to compare with, of the same vocabulary and on the same device.
    #[must_use]
    pub fn beside(self, teacher: &'m CausalLm) -> Self {
        Self { teacher: Some(teacher), ..self }
    }
}

impl Scorer for ModelScorer<'_> {
    type Error = Infallible;

    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<TokenScores>, Infallible> {
        let Packing { ids, layout, rows, targets } = Packing::new(requests);
        if ids.is_empty() {
            return Ok(vec![TokenScores::default(); requests.len()]);
        }
        let device = self.model.device();
        let indices = |values: Vec<i32>| Tensor::<1, Int>::from_ints(values.as_slice(), &device);
        let ids = indices(ids.into_iter().map(|id| id as i32).collect());
        let rows = indices(rows.into_iter().map(|row| row as i32).collect());
        let read = |model: &CausalLm, recursions: Option<usize>| {
            let forward = model.begin(ids.clone(), layout.clone(), SelectionRule::Causal);
            let (hidden, _) = match recursions {
                Some(recursions) => forward.exit_after(recursions),
                None => forward.finish(),
            };
            HeadInput { hidden: hidden.select(0, rows.clone()), head: model.head() }
        };
        let input = read(self.model, self.recursions);
        let (log_probs, greedy) = token_log_probs(&input, &targets);
        let beside = self.teacher.map(|teacher| agreement(&input, &read(teacher, None)));
        let mut start = 0;
        let scores = requests.iter().map(|request| {
            let end = start + request.num_scored();
            let agreement = beside.as_ref().map(|(forward_kl, same_top)| TokenAgreement {
                forward_kl: forward_kl[start..end].to_vec(),
                same_top: same_top[start..end].to_vec(),
            });
            let (log_probs, greedy) = (log_probs[start..end].to_vec(), greedy[start..end].to_vec());
            start = end;
            TokenScores { log_probs, greedy, agreement }
        });
        Ok(scores.collect())
    }
}
