//! Interface of a kind of router. A kind is one file here, with its parameters and an
//! implementation of this trait, one file in `model`, and one line in
//! [`for_each_router`](crate::for_each_router).

use super::{Gating, RouterInput, RouterNetwork, RouterSettings, TokenChoiceScore};
use crate::RecursionConfig;

/// Routers of one model with the same network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterNetworks {
    /// Number of routers.
    pub count: usize,
    /// Logits of each router per token.
    pub outputs: usize,
    /// Network of each router.
    pub network: RouterNetwork,
}

/// The routers that a loss of routers can be computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterNeeds {
    /// Every router.
    Any,
    /// Routers of recursions that select tokens.
    ExpertChoice,
    /// Routers of tokens that select their recursion count.
    TokenChoice,
    /// Auxiliary routers.
    Auxiliary,
}

/// Warm-ups of a run, in steps; 0 without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterWarmup {
    /// Steps in which capacities fall from 1.
    pub capacity_steps: u64,
    /// Steps in which a falling part of the tokens goes through every recursion.
    pub full_recursion_steps: u64,
}

/// Selection of tokens in one training step.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainingSelection {
    /// As in inference.
    Causal,
    /// As in inference, but for this fraction of the tokens, which goes through every recursion.
    FullRecursion(f64),
    /// The tokens of each sequence with the highest logits: a capacity for each recursion.
    TopK(Vec<f64>),
}

/// Properties of a kind of router that other modules need.
pub trait RouterSpec {
    /// A new router for `num_recursions` recursions: takes its settings, and has defaults for those
    /// that are not given.
    ///
    /// # Errors
    /// When a value is none of its setting.
    fn from_settings(num_recursions: usize, settings: &mut RouterSettings) -> Result<Self, String>
    where
        Self: Sized;

    /// Network of the routers.
    fn network(&self) -> RouterNetwork;

    /// Input of the network.
    fn input(&self) -> RouterInput;

    /// Combination of a selected token's hidden state with the block's output.
    fn gating(&self) -> Gating;

    /// Name of the score, and its factor `alpha`.
    fn score(&self) -> (&'static str, f64);

    /// Routers that select tokens.
    fn routers(&self, num_recursions: usize) -> RouterNetworks;

    /// The auxiliary routers, if there are any.
    fn auxiliary_routers(&self, num_recursions: usize) -> Option<RouterNetworks>;

    /// Expected fraction of a text's tokens in recursion `recursion` in inference; `None` where it
    /// is every token.
    fn inference_fraction(&self, recursion: usize, num_recursions: usize) -> Option<f64>;

    /// Expected fraction of a text's tokens in recursion `recursion` in training.
    fn training_fraction(&self, recursion: usize, num_recursions: usize) -> f64;

    /// True if recursion `recursion` selects every token in inference.
    fn takes_all(&self, recursion: usize) -> bool;

    /// Router inputs per token of a text, if recursion `r` selects the fraction `fraction(r)`.
    fn inputs_per_token(&self, fraction: &dyn Fn(usize) -> f64) -> f64;

    /// True if gates are 1 while the logits are 0, so that the last layer of a router should start
    /// at 0.
    fn starts_at_zero(&self) -> bool;

    /// True if, with new routers, a token that goes through every recursion has the same hidden
    /// states as without routers.
    fn starts_as_without(&self, num_recursions: usize) -> bool;

    /// Makes every token go through every recursion in inference.
    fn select_all(&mut self, num_recursions: usize);

    /// True if some token may miss a recursion.
    fn skips(&self) -> bool;

    /// True if every token goes through every recursion while the logits are 0.
    fn zero_takes_all(&self) -> bool {
        false
    }

    /// True if a loss that needs such routers can be computed.
    fn meets(&self, needs: RouterNeeds) -> bool;

    /// Score and `alpha` of a router with one logit for each recursion count; `None` for a router
    /// with one logit a token.
    fn count_score(&self) -> Option<(TokenChoiceScore, f64)> {
        None
    }

    /// Selection of tokens in training step `step`, counted from 1.
    fn training_selection(&self, _step: u64, _warmup: RouterWarmup) -> TrainingSelection {
        TrainingSelection::Causal
    }

    /// Title of a report: the number of routers.
    fn title(&self, num_recursions: usize) -> String;

    /// What a run should have that trains it from new weights.
    fn advice(&self) -> &'static str;

    /// Lines of a report: parameters of this kind alone, by name.
    fn rows(&self) -> Vec<(&'static str, String)>;

    /// Lines of a report: what training or calibration has fitted beside the weights, by name.
    fn fitted_rows(&self) -> Vec<(&'static str, String)>;

    /// Adds every problem of the router in a model with `recursion`.
    fn add_problems(&self, recursion: &RecursionConfig, problems: &mut Vec<String>);
}
