//! What is asked of routers (Mixture-of-Recursions, <https://arxiv.org/abs/2507.10524>, §2.2.1 and Table 4): `w Σ_r L_r`, with `L_r` a
//! mean over the tokens that recursion `r` had before it, or `w L` of the one router of all; the formulas are in `retie_model`. The column
//! of each has its name, and the sum.
//!
//! The means are averaged over micro-batches as every loss is. The paper's code does not divide its auxiliary loss by their number: its
//! coefficient 0.001 in 16 micro-batches is a weight of 0.016 here.

use super::{Loss, Part};
use retie_config::{
    AuxiliaryRouterBceConfig, DepthScore, RouterBalancingConfig, RouterBceConfig, RouterConfig,
    RouterDecisivenessConfig, RouterZLossConfig,
};
use retie_model::{Decision, RouterLoss, balancing, binary_cross_entropy, decisiveness, z_loss};

/// The logits of a router, and what was chosen.
#[derive(Clone, Debug)]
pub enum RouterLogits<'a> {
    /// Of a recursion: one a token.
    Tokens {
        /// `u`.
        logits: Vec<f32>,
        /// Which tokens went through.
        chosen: Vec<bool>,
    },
    /// Of the auxiliary router of a recursion.
    Auxiliary {
        /// `u`.
        logits: Vec<f32>,
        /// Which tokens went through.
        chosen: Vec<bool>,
    },
    /// Of tokens that choose their depth, row by row.
    Depths {
        /// `u`.
        logits: Vec<f32>,
        /// The depth that each token's router chose.
        chosen: &'a [usize],
        /// Depths that there are.
        num_depths: usize,
        /// From `u` to a score.
        score: DepthScore,
        /// Factor of the score.
        alpha: f64,
    },
}

impl<'a> RouterLogits<'a> {
    /// The logits of the router that made `decision`.
    pub fn of(decision: &'a Decision, router: &RouterConfig) -> Self {
        let logits = decision.values();
        match (router, &decision.own) {
            (RouterConfig::TokenChoice(router), Some(chosen)) => Self::Depths {
                num_depths: logits.len() / chosen.len().max(1),
                logits,
                chosen,
                score: router.score,
                alpha: router.alpha,
            },
            _ => Self::Tokens { logits, chosen: decision.mask() },
        }
    }

    /// Those of the auxiliary router beside it.
    pub fn of_auxiliary(decision: &Decision) -> Option<Self> {
        decision.auxiliary.is_some().then(|| {
            let (logits, chosen) = (decision.auxiliary_values(), decision.mask());
            Self::Auxiliary { logits, chosen }
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens { logits, .. } | Self::Auxiliary { logits, .. } | Self::Depths { logits, .. } => logits.len(),
        }
    }
}

impl Loss for RouterBceConfig {
    fn of_router(&self, seen: &RouterLogits<'_>, losses: &mut Part<'_>) -> Option<(f64, RouterLoss)> {
        let RouterLogits::Tokens { logits, chosen } = seen else { return None };
        Some(losses.of_router("router_bce", self.weight, binary_cross_entropy(logits, chosen)))
    }
}

impl Loss for AuxiliaryRouterBceConfig {
    fn of_router(&self, seen: &RouterLogits<'_>, losses: &mut Part<'_>) -> Option<(f64, RouterLoss)> {
        let RouterLogits::Auxiliary { logits, chosen } = seen else { return None };
        Some(losses.of_router("auxiliary_router_bce", self.weight, binary_cross_entropy(logits, chosen)))
    }
}

impl Loss for RouterZLossConfig {
    fn of_router(&self, seen: &RouterLogits<'_>, losses: &mut Part<'_>) -> Option<(f64, RouterLoss)> {
        let loss = match seen {
            RouterLogits::Tokens { logits, .. } => z_loss(logits, 1),
            RouterLogits::Depths { logits, num_depths, .. } => z_loss(logits, *num_depths),
            RouterLogits::Auxiliary { .. } => return None,
        };
        Some(losses.of_router("router_z_loss", self.weight, loss))
    }
}

impl Loss for RouterBalancingConfig {
    fn of_router(&self, seen: &RouterLogits<'_>, losses: &mut Part<'_>) -> Option<(f64, RouterLoss)> {
        let RouterLogits::Depths { logits, chosen, num_depths, score, alpha } = seen else { return None };
        let loss = balancing(logits, chosen, *num_depths, *score, *alpha);
        Some(losses.of_router("router_balancing", self.weight, loss))
    }
}

impl Loss for RouterDecisivenessConfig {
    fn of_router(&self, seen: &RouterLogits<'_>, losses: &mut Part<'_>) -> Option<(f64, RouterLoss)> {
        let loss = match seen {
            RouterLogits::Tokens { logits, .. } => decisiveness(logits, 1, None),
            RouterLogits::Depths { logits, num_depths, score, .. } => decisiveness(logits, *num_depths, Some(*score)),
            RouterLogits::Auxiliary { .. } => return None,
        };
        Some(losses.of_router("router_decisiveness", self.weight, loss))
    }
}

impl Part<'_> {
    /// Adds the value of a router's loss; gives its factor beside it.
    fn of_router(&mut self, name: &str, factor: f64, loss: RouterLoss) -> (f64, RouterLoss) {
        self.add(name, factor, loss.value);
        (factor, loss)
    }
}
