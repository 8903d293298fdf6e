//! Interface of a kind of router. A kind is one file here, with its parameters and an
//! implementation of this trait, one file in `model`, and one line in each of their registries.

use super::{Gating, RouterInput, RouterNetwork};
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

/// Properties of a kind of router that other modules need.
pub trait RouterSpec {
    /// Name in configurations and on the command line.
    fn name(&self) -> &'static str;

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

    /// Adds every problem of the router in a model with `recursion`.
    fn add_problems(&self, recursion: &RecursionConfig, problems: &mut Vec<String>);
}
