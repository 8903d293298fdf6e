//! The terms of the training loss. Their formulas live beside their implementation in the trainer; a term's parameters live
//! here, in a file of their own.

mod blockwise;
mod cross_entropy;
mod distill;
mod early_exit;
mod hidden;
mod router;
mod schedule;

pub use blockwise::BlockwiseConfig;
pub use cross_entropy::CrossEntropyConfig;
pub use distill::{DistillConfig, Divergence};
pub use early_exit::{EarlyExitConfig, ExitCrossEntropy, ExitDistillConfig, ExitReference, ExitWeights};
pub use hidden::{HiddenConfig, HiddenDistance, HiddenPair};
pub use router::{
    AuxiliaryRouterBceConfig, RouterBalancingConfig, RouterBceConfig, RouterDecisivenessConfig, RouterZLossConfig,
};
pub use schedule::WeightPoint;

use crate::{ExpertChoiceConfig, RouterConfig, document::Checks};
use serde::{Deserialize, Serialize};

/// One term; the training loss is the weighted sum of the terms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossConfig {
    /// Next-token cross-entropy against the text.
    CrossEntropy(CrossEntropyConfig),
    /// Divergence from the teacher's distribution (RRT Appendix I).
    Distill(DistillConfig),
    /// Losses of the logits after each recursion but the last (RRT Section 3.7).
    EarlyExit(EarlyExitConfig),
    /// Distance of hidden states from the teacher's.
    Hidden(HiddenConfig),
    /// What each depth alone makes of the teacher's hidden states, against what the teacher makes of them.
    Blockwise(BlockwiseConfig),
    /// Binary cross-entropy of a router's logits with what top-k chose (Mixture-of-Recursions, §2.2.1).
    RouterBce(RouterBceConfig),
    /// The same of the auxiliary router's (Mixture-of-Recursions, Appendix A.2).
    AuxiliaryRouterBce(AuxiliaryRouterBceConfig),
    /// The square of the logarithm of the sum of a router's exponentiated logits.
    RouterZLoss(RouterZLossConfig),
    /// How uneven the depths are that tokens choose.
    RouterBalancing(RouterBalancingConfig),
    /// How far a router's probabilities are from a decision.
    RouterDecisiveness(RouterDecisivenessConfig),
}

impl LossConfig {
    /// The name in configurations and in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::CrossEntropy(_) => "cross_entropy",
            Self::Distill(_) => "distill",
            Self::EarlyExit(_) => "early_exit",
            Self::Hidden(_) => "hidden",
            Self::Blockwise(_) => "blockwise",
            Self::RouterBce(_) => "router_bce",
            Self::AuxiliaryRouterBce(_) => "auxiliary_router_bce",
            Self::RouterZLoss(_) => "router_z_loss",
            Self::RouterBalancing(_) => "router_balancing",
            Self::RouterDecisiveness(_) => "router_decisiveness",
        }
    }

    /// Factor of this term.
    #[must_use]
    pub fn weight(&self) -> f64 {
        match self {
            Self::CrossEntropy(c) => c.weight,
            Self::Distill(c) => c.weight,
            Self::EarlyExit(c) => c.weight,
            Self::Hidden(c) => c.weight,
            Self::Blockwise(c) => c.weight,
            Self::RouterBce(c) => c.weight,
            Self::AuxiliaryRouterBce(c) => c.weight,
            Self::RouterZLoss(c) => c.weight,
            Self::RouterBalancing(c) => c.weight,
            Self::RouterDecisiveness(c) => c.weight,
        }
    }

    /// The term as it is in optimizer step `step`, counted from 1: its weight as its schedule says.
    #[must_use]
    pub fn at(&self, step: u64) -> Self {
        let mut term = self.clone();
        let (weight, schedule) = match &mut term {
            Self::CrossEntropy(c) => (&mut c.weight, &c.weight_schedule),
            Self::Distill(c) => (&mut c.weight, &c.weight_schedule),
            Self::EarlyExit(c) => (&mut c.weight, &c.weight_schedule),
            Self::Hidden(c) => (&mut c.weight, &c.weight_schedule),
            Self::Blockwise(c) => (&mut c.weight, &c.weight_schedule),
            Self::RouterBce(c) => (&mut c.weight, &c.weight_schedule),
            Self::AuxiliaryRouterBce(c) => (&mut c.weight, &c.weight_schedule),
            Self::RouterZLoss(c) => (&mut c.weight, &c.weight_schedule),
            Self::RouterBalancing(c) => (&mut c.weight, &c.weight_schedule),
            Self::RouterDecisiveness(c) => (&mut c.weight, &c.weight_schedule),
        };
        *weight *= schedule::factor_at(schedule, step);
        term
    }

    fn weight_schedule(&self) -> &[WeightPoint] {
        match self {
            Self::CrossEntropy(c) => &c.weight_schedule,
            Self::Distill(c) => &c.weight_schedule,
            Self::EarlyExit(c) => &c.weight_schedule,
            Self::Hidden(c) => &c.weight_schedule,
            Self::Blockwise(c) => &c.weight_schedule,
            Self::RouterBce(c) => &c.weight_schedule,
            Self::AuxiliaryRouterBce(c) => &c.weight_schedule,
            Self::RouterZLoss(c) => &c.weight_schedule,
            Self::RouterBalancing(c) => &c.weight_schedule,
            Self::RouterDecisiveness(c) => &c.weight_schedule,
        }
    }

    /// Whether the term needs a teacher.
    #[must_use]
    pub fn needs_teacher(&self) -> bool {
        match self {
            Self::CrossEntropy(_) => false,
            Self::Distill(_) | Self::Hidden(_) | Self::Blockwise(_) => true,
            Self::EarlyExit(c) => c.distill_from(ExitReference::Teacher).is_some(),
            Self::RouterBce(_)
            | Self::AuxiliaryRouterBce(_)
            | Self::RouterZLoss(_)
            | Self::RouterBalancing(_)
            | Self::RouterDecisiveness(_) => false,
        }
    }

    /// Whether the term is about the student's routers.
    #[must_use]
    pub fn needs_router(&self) -> bool {
        matches!(
            self,
            Self::RouterBce(_)
                | Self::AuxiliaryRouterBce(_)
                | Self::RouterZLoss(_)
                | Self::RouterBalancing(_)
                | Self::RouterDecisiveness(_)
        )
    }

    /// What a routed model has to have for the term; `None` where it has that, or where any will do.
    #[must_use]
    pub fn missing_in(&self, router: &RouterConfig) -> Option<&'static str> {
        match (self, router) {
            (Self::RouterBce(_), RouterConfig::TokenChoice(_)) => {
                Some("`expert_choice`, whose recursions choose tokens")
            }
            (
                Self::AuxiliaryRouterBce(_),
                RouterConfig::ExpertChoice(ExpertChoiceConfig { auxiliary: Some(_), .. }),
            ) => None,
            (Self::AuxiliaryRouterBce(_), _) => Some("an auxiliary router"),
            (Self::RouterBalancing(_), RouterConfig::ExpertChoice(_)) => {
                Some("`token_choice`, whose tokens choose depths")
            }
            _ => None,
        }
    }

    /// Whether the term needs more of a teacher than its logits.
    pub(crate) fn needs_hidden_states(&self) -> bool {
        matches!(self, Self::Hidden(_) | Self::Blockwise(_))
    }

    /// Whether its gradient stays within each depth: it needs no forward pass through the student's stack.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Blockwise(_))
    }

    /// Checks the term's own settings; `key` is where it stands.
    fn check(&self, key: &str, checks: &mut Checks) {
        match self {
            Self::CrossEntropy(c) => c.check(key, checks),
            Self::Distill(c) => c.check(key, checks),
            Self::EarlyExit(c) => c.check(key, checks),
            Self::Hidden(c) => c.check(key, checks),
            Self::Blockwise(_)
            | Self::RouterBce(_)
            | Self::AuxiliaryRouterBce(_)
            | Self::RouterZLoss(_)
            | Self::RouterBalancing(_)
            | Self::RouterDecisiveness(_) => {}
        }
    }
}

/// Checks the list `losses`.
pub(crate) fn check(losses: &[LossConfig], checks: &mut Checks) {
    if losses.is_empty() {
        checks.problem("losses", "`losses` is empty, expected at least one loss");
    }
    for (index, loss) in losses.iter().enumerate() {
        let name = loss.name();
        let key = format!("losses.{index}.{name}");
        let weight = loss.weight();
        let fits = weight.is_finite() && weight >= 0.0;
        checks.require(fits, format!("{key}.weight"), weight, "a finite number, 0 or more");
        schedule::check(loss.weight_schedule(), &key, checks);
        loss.check(&key, checks);
        if let Some(first) = losses[..index].iter().position(|other| other.name() == name) {
            checks
                .problem(key, format!("loss `{name}` stands already at `losses.{first}`"))
                .hint("one entry with the sum of the weights says the same");
        }
    }
    if !losses.is_empty() && losses.iter().all(|l| l.weight() == 0.0) {
        checks
            .problem("losses", "every loss in `losses` has weight 0, nothing would be trained")
            .hint("give one of them a weight above 0");
    }
}
