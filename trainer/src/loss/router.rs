//! Losses of routers (Mixture-of-Recursions, <https://arxiv.org/abs/2507.10524>, §2.2.1 and Table
//! 4): `Σ_r L_r`, with `L_r` a mean over the tokens that recursion `r` could select from, or `L` of
//! the one router of token choice; the formulas are in `retie_model`. The column of each has its
//! name, and the sum.
//!
//! The means are averaged over micro-batches as every loss is. The paper's code does not divide its
//! auxiliary loss by their number: its coefficient 0.001 in 16 micro-batches is a weight of 0.016
//! here.

use super::Loss;
use retie_config::{
    AuxiliaryRouterBceConfig, RouterBalancingConfig, RouterBceConfig, RouterConfig, RouterDecisivenessConfig,
    RouterZLossConfig, TokenChoiceScore,
};
use retie_model::{RouterLoss, RoutingDecision, balancing, binary_cross_entropy, decisiveness, z_loss};

/// Logits of one router, and its selection.
#[derive(Clone, Debug)]
pub enum RouterLogits<'a> {
    /// Router of a recursion: one logit a token.
    ExpertChoice {
        /// `u`.
        logits: Vec<f32>,
        /// Whether each token went through.
        selected: Vec<bool>,
    },
    /// Auxiliary router of a recursion.
    Auxiliary {
        /// `u`.
        logits: Vec<f32>,
        /// Whether each token went through.
        selected: Vec<bool>,
    },
    /// Router by which tokens select their recursion count: one logit a token and count, row by
    /// row.
    TokenChoice {
        /// `u`.
        logits: Vec<f32>,
        /// Index of the recursion count that each token's router selected.
        selected: &'a [usize],
        /// Recursion counts to select from.
        num_counts: usize,
        /// From `u` to a score.
        score: TokenChoiceScore,
        /// Factor of the score.
        alpha: f64,
    },
}

impl<'a> RouterLogits<'a> {
    /// The logits of the router that made `decision`.
    pub fn from_decision(decision: &'a RoutingDecision, router: &RouterConfig) -> Self {
        let logits = decision.values();
        match (router.spec().count_score(), &decision.router_recursions) {
            (Some((score, alpha)), Some(selected)) => {
                Self::TokenChoice { num_counts: logits.len() / selected.len().max(1), logits, selected, score, alpha }
            }
            _ => Self::ExpertChoice { logits, selected: decision.mask() },
        }
    }

    /// The logits of the auxiliary router beside it, if there is one.
    pub fn auxiliary(decision: &RoutingDecision) -> Option<Self> {
        decision.auxiliary_logits.is_some().then(|| {
            let (logits, selected) = (decision.auxiliary_values(), decision.mask());
            Self::Auxiliary { logits, selected }
        })
    }

    /// Number of logits.
    pub fn len(&self) -> usize {
        match self {
            Self::ExpertChoice { logits, .. } | Self::Auxiliary { logits, .. } | Self::TokenChoice { logits, .. } => {
                logits.len()
            }
        }
    }
}

impl Loss for RouterBceConfig {
    fn on_router(&self, router: &RouterLogits<'_>) -> Option<RouterLoss> {
        let RouterLogits::ExpertChoice { logits, selected } = router else { return None };
        Some(binary_cross_entropy(logits, selected))
    }
}

impl Loss for AuxiliaryRouterBceConfig {
    fn on_router(&self, router: &RouterLogits<'_>) -> Option<RouterLoss> {
        let RouterLogits::Auxiliary { logits, selected } = router else { return None };
        Some(binary_cross_entropy(logits, selected))
    }
}

impl Loss for RouterZLossConfig {
    fn on_router(&self, router: &RouterLogits<'_>) -> Option<RouterLoss> {
        match router {
            RouterLogits::ExpertChoice { logits, .. } => Some(z_loss(logits, 1)),
            RouterLogits::TokenChoice { logits, num_counts, .. } => Some(z_loss(logits, *num_counts)),
            RouterLogits::Auxiliary { .. } => None,
        }
    }
}

impl Loss for RouterBalancingConfig {
    fn on_router(&self, router: &RouterLogits<'_>) -> Option<RouterLoss> {
        let RouterLogits::TokenChoice { logits, selected, num_counts, score, alpha } = router else { return None };
        Some(balancing(logits, selected, *num_counts, *score, *alpha))
    }
}

impl Loss for RouterDecisivenessConfig {
    fn on_router(&self, router: &RouterLogits<'_>) -> Option<RouterLoss> {
        match router {
            RouterLogits::ExpertChoice { logits, .. } => Some(decisiveness(logits, 1, None)),
            RouterLogits::TokenChoice { logits, num_counts, score, .. } => {
                Some(decisiveness(logits, *num_counts, Some(*score)))
            }
            RouterLogits::Auxiliary { .. } => None,
        }
    }
}
