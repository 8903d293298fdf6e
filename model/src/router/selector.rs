//! Token selectors: rules that select the rows that go through a recursion, separate from the
//! forward pass that runs it.

use super::{loop_entry::LoopEntry, trace::RoutingDecision};
use crate::{
    causal_lm::CausalLm,
    kernels::{self, RowSet, Segment},
    row_context::RowContext,
    token_ids::TokenIds,
};
use burn::tensor::Tensor;
use retie_config::{ExpertChoiceConfig, RouterConfig, TokenChoiceConfig};
use std::{cell::OnceCell, fmt::Debug, sync::Arc};

/// Warm-up of token choice: a random part of the tokens goes through every recursion, whatever the
/// router selects. It is drawn from token id, position and step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FullRecursionWarmup {
    /// Fraction of the tokens.
    pub part: f64,
    /// The training step.
    pub step: u64,
}

/// Rule by which a forward pass selects tokens. A model without routers ignores it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum SelectionRule {
    /// Inference: by threshold (expert choice), or by each token's own recursion count (token
    /// choice). Causal, and independent of the rest of the batch.
    #[default]
    Causal,
    /// Warm-up of token choice in training: [`SelectionRule::Causal`], except that some tokens go
    /// through every recursion.
    Warmup(FullRecursionWarmup),
    /// Top-k of each sequence by logit, with one capacity per recursion: for training and for
    /// comparison. Not causal: a token's selection depends on later tokens. Needs whole sequences,
    /// without a cache or a shared prefix.
    TopK(Vec<f64>),
}

/// Origin of a selector's decisions.
pub(crate) enum Origin<'a> {
    /// Tokens of a new forward pass.
    Tokens {
        /// Token ids, `[M]`.
        ids: &'a TokenIds,
        /// Context of their rows.
        rows: &'a RowContext,
        /// Selection rule.
        rule: SelectionRule,
        /// Loop entry of token choice, of tokens that are in the loop.
        entry: Option<Box<LoopEntry>>,
    },
    /// A recursion that runs again over the rows that it selected before.
    Replay {
        /// Its routing decision.
        decision: Box<RoutingDecision>,
        /// Loop entry of token choice.
        entry: Option<Box<LoopEntry>>,
    },
}

/// Selector of rows for the recursions of one forward pass.
pub(crate) trait TokenSelector: Debug {
    /// Selects rows for recursion `recursion` among the `active` rows, of which there is at least
    /// one. `segments` are the sequences of the pass.
    fn select(&mut self, active: &ActiveRows, recursion: usize, segments: &[Segment]) -> RoutingDecision;

    /// Hidden states of all rows, `[M, D]`, after the recursion of `decision`.
    fn merge(&self, passage: Passage, decision: &RoutingDecision) -> Tensor<2>;

    /// Loop entry of token choice, once tokens have selected their recursion counts.
    fn entry(&self) -> Option<&LoopEntry> {
        None
    }
}

/// A kind of router: makes the selector of one forward pass.
pub(crate) trait MakesSelector {
    /// The selector of a pass of `model`, whose router this is.
    fn selector<'m>(&'m self, model: &'m CausalLm, origin: Origin<'_>) -> Box<dyn TokenSelector + 'm>;
}

/// Hidden states before and after a recursion.
pub(crate) struct Passage {
    /// All rows before it, `[M, D]`.
    pub all: Tensor<2>,
    /// The selected rows before it, `[k, D]`.
    pub entering: Tensor<2>,
    /// The selected rows after it, `[k, D]`.
    pub leaving: Tensor<2>,
}

/// Active rows: the rows that a recursion can select from.
pub(crate) struct ActiveRows {
    all: Tensor<2>,
    rows: RowSet,
    gathered: OnceCell<Tensor<2>>,
}

impl ActiveRows {
    /// Active rows with indices `rows` of the hidden states `all [M, D]`.
    pub fn new(all: Tensor<2>, rows: RowSet) -> Self {
        Self { all, rows, gathered: OnceCell::new() }
    }

    /// Row indices.
    pub fn rows(&self) -> &RowSet {
        &self.rows
    }

    /// Hidden states of the active rows, `[n, D]`.
    pub fn hidden(&self) -> Tensor<2> {
        let [num_rows, _] = self.all.dims();
        let gather = || match self.rows.len() == num_rows {
            true => self.all.clone(),
            false => kernels::gather(self.all.clone(), &self.rows),
        };
        self.gathered.get_or_init(gather).clone()
    }

    /// Hidden states of `selected` rows, `[k, D]`.
    pub fn select(&self, selected: &RowSet) -> Tensor<2> {
        match selected.len() == self.rows.len() {
            true => self.hidden(),
            false => kernels::gather(self.all.clone(), selected),
        }
    }
}

impl CausalLm {
    /// Router configuration, if the model has a router.
    #[must_use]
    pub fn router(&self) -> Option<&RouterConfig> {
        self.spec.config.recursion.as_ref()?.router.as_ref()
    }

    /// Router configuration, if it is expert choice.
    #[must_use]
    pub fn expert_choice(&self) -> Option<&ExpertChoiceConfig> {
        self.router()?.as_expert_choice()
    }

    /// Router configuration, if it is token choice.
    #[must_use]
    pub fn token_choice(&self) -> Option<&TokenChoiceConfig> {
        self.router()?.as_token_choice()
    }

    /// Applies `change` to the router's configuration; without a router nothing happens.
    pub fn change_router(&mut self, change: impl FnOnce(&mut RouterConfig)) {
        let recursion = Arc::make_mut(&mut self.spec).config.recursion.as_mut();
        if let Some(router) = recursion.and_then(|recursion| recursion.router.as_mut()) {
            change(router);
        }
    }

    /// Sets the thresholds of expert choice, one per recursion; other models do not change.
    pub fn set_thresholds(&mut self, thresholds: Vec<Option<f64>>) {
        self.change_router(|router| {
            if let RouterConfig::ExpertChoice(router) = router {
                router.thresholds = Some(thresholds);
            }
        });
    }

    /// Sets the biases of token choice, one per recursion count; other models do not change.
    pub fn set_biases(&mut self, biases: Vec<f32>) {
        self.change_router(|router| {
            if let RouterConfig::TokenChoice(router) = router {
                router.biases = Some(biases);
            }
        });
    }
}
