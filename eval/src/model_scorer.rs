//! A language model as a [`Scorer`].

use crate::{ScoreRequest, Scorer, TokenAgreement, TokenScores, packing::Packing};
use burn::tensor::{Int, Tensor};
use retie_config::SkippedKv;
use retie_model::{
    CausalLm, ExitLimit, ExitRule, RowExits, SelectionRule,
    kernels::{HeadInput, agreement, token_log_probs},
};
use std::{cell::Cell, convert::Infallible};

/// Scores requests with a model. The sequences of a batch are packed without padding, a common
/// prefix is read once, and only the hidden states whose next token is scored go through the head.
#[derive(Debug)]
pub struct ModelScorer<'m> {
    model: &'m CausalLm,
    exits: TokenExits<'m>,
    /// Where the recursion counts of the tokens that are read are summed, if anywhere.
    counts: Option<&'m Cell<RecursionSum>>,
    teacher: Option<&'m CausalLm>,
}

/// When tokens leave the loop.
#[derive(Clone, Copy, Debug, Default)]
pub enum TokenExits<'m> {
    /// After the last recursion.
    #[default]
    Never,
    /// Every token after so many recursions.
    After(usize),
    /// Where a rule's number reaches the threshold.
    Rule {
        /// The rule.
        rule: &'m ExitRule,
        /// Policy for the keys and values of skipped recursions.
        kv: SkippedKv,
        /// The threshold.
        threshold: f32,
    },
}

/// Sum of recursion counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecursionSum {
    /// Tokens.
    pub tokens: usize,
    /// Their recursion counts, added up.
    pub recursions: usize,
}

impl<'m> ModelScorer<'m> {
    /// A scorer of `model`, which should be on a device without autodiff.
    #[must_use]
    pub fn new(model: &'m CausalLm) -> Self {
        Self { model, exits: TokenExits::Never, counts: None, teacher: None }
    }

    /// Sets when tokens leave the loop. A model with a rule passes [`CausalLm::check_exits`].
    #[must_use]
    pub fn exiting(self, exits: TokenExits<'m>) -> Self {
        Self { exits, ..self }
    }

    /// Sums the recursion counts of tokens that leave by a rule.
    #[must_use]
    pub fn counting(self, counts: &'m Cell<RecursionSum>) -> Self {
        Self { counts: Some(counts), ..self }
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
        let num_rows = layout.num_rows();
        let read = |model: &'_ CausalLm, exits: TokenExits<'_>| {
            let forward = model.begin(ids.clone(), layout.clone(), SelectionRule::Causal);
            let (hidden, trace) = match exits {
                TokenExits::Never => forward.finish(),
                TokenExits::After(recursions) => forward.exit_after(recursions),
                TokenExits::Rule { rule, kv, threshold } => {
                    let limits = vec![ExitLimit { threshold, ..ExitLimit::NEVER }; num_rows];
                    forward.with_exits(RowExits { rule: Some(rule), kv, limits }).finish()
                }
            };
            (HeadInput { hidden: hidden.select(0, rows.clone()), head: model.head() }, trace)
        };
        let (input, trace) = read(self.model, self.exits);
        if let (Some(counts), TokenExits::Rule { .. }) = (self.counts, self.exits) {
            let RecursionSum { tokens, recursions } = counts.get();
            let read: usize = trace.recursion_counts(num_rows).iter().sum();
            counts.set(RecursionSum { tokens: tokens + num_rows, recursions: recursions + read });
        }
        let (log_probs, greedy) = token_log_probs(&input, &targets);
        let beside = self.teacher.map(|teacher| agreement(&input, &read(teacher, TokenExits::Never).0));
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
