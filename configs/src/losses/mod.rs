//! Terms of the training loss, a weighted sum. A term is a kind of loss with its parameters, a
//! weight and a schedule of the weight. The parameters of a loss live here, in a file of their own;
//! its formula lives beside its implementation in the trainer.

mod blockwise;
mod cross_entropy;
mod distill;
mod early_exit;
mod hidden;
mod keys;
mod needs;
mod router;
mod schedule;
mod term;

pub use blockwise::BlockwiseConfig;
pub use cross_entropy::CrossEntropyConfig;
pub use distill::{DistillConfig, Divergence};
pub use early_exit::{EarlyExitConfig, ExitCrossEntropy, ExitDistillConfig, ExitReference, ExitWeights};
pub use hidden::{HiddenConfig, HiddenDistance, HiddenPair};
pub use needs::LossNeeds;
pub use router::{
    AuxiliaryRouterBceConfig, RouterBalancingConfig, RouterBceConfig, RouterDecisivenessConfig, RouterZLossConfig,
};
pub use schedule::WeightPoint;
pub use term::LossTerm;

use crate::document::Checks;

/// Calls the macro `$with` with the list of all losses. An entry is the loss's name in
/// configurations and metrics, its variant of [`LossKind`](crate::LossKind) and the struct of its
/// parameters.
///
/// The list stands once: configurations and the trainer's dispatch are both made from it.
#[macro_export]
macro_rules! for_each_loss {
    ($with:ident) => {
        $with! {
            /// Next-token cross-entropy against the text.
            cross_entropy => CrossEntropy(CrossEntropyConfig),
            /// Divergence from the teacher's distribution (RRT Appendix I).
            distill => Distill(DistillConfig),
            /// Losses of the logits after each recursion but the last (RRT Section 3.7).
            early_exit => EarlyExit(EarlyExitConfig),
            /// Distance of hidden states from the teacher's.
            hidden => Hidden(HiddenConfig),
            /// Output of each depth alone on the teacher's hidden states, against the teacher's
            /// own.
            blockwise => Blockwise(BlockwiseConfig),
            /// Binary cross-entropy of router logits with the top-k selection (MoR §2.2.1).
            router_bce => RouterBce(RouterBceConfig),
            /// Binary cross-entropy of auxiliary router logits with the top-k selection (MoR
            /// Appendix A.2).
            auxiliary_router_bce => AuxiliaryRouterBce(AuxiliaryRouterBceConfig),
            /// Square of the logarithm of the sum of a router's exponentiated logits.
            router_z_loss => RouterZLoss(RouterZLossConfig),
            /// Imbalance of the recursion counts that tokens choose.
            router_balancing => RouterBalancing(RouterBalancingConfig),
            /// Distance of a router's probabilities from a decision.
            router_decisiveness => RouterDecisiveness(RouterDecisivenessConfig),
        }
    };
}

/// Parameters of one loss.
pub trait LossParameters {
    /// Tensors that the loss is computed from.
    fn needs(&self) -> LossNeeds;

    /// Records the values that cannot be; `key` is where the term stands.
    fn check(&self, _key: &str, _checks: &mut Checks) {}
}

macro_rules! define_kinds {
    ($($(#[$doc:meta])* $name:ident => $variant:ident($parameters:ident),)+) => {
        /// A loss with its parameters.
        #[derive(Clone, Debug, PartialEq)]
        pub enum LossKind {
            $($(#[$doc])* $variant($parameters),)+
        }

        impl LossKind {
            /// Name in configurations and in metrics.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => stringify!($name),)+ }
            }

            fn parameters(&self) -> &dyn LossParameters {
                match self { $(Self::$variant(parameters) => parameters,)+ }
            }
        }

        $(impl From<$parameters> for LossKind {
            fn from(parameters: $parameters) -> Self {
                Self::$variant(parameters)
            }
        })+
    };
}
for_each_loss!(define_kinds);

/// Checks the list `losses`.
pub(crate) fn check(losses: &[LossTerm], checks: &mut Checks) {
    if losses.is_empty() {
        checks.problem("losses", "`losses` is empty, expected at least one loss");
    }
    for (index, LossTerm { weight, weight_schedule, kind }) in losses.iter().enumerate() {
        let name = kind.name();
        let key = format!("losses.{index}.{name}");
        let fits = weight.is_finite() && *weight >= 0.0;
        checks.require(fits, format!("{key}.weight"), weight, "a finite number, 0 or more");
        schedule::check(weight_schedule, &key, checks);
        kind.parameters().check(&key, checks);
        if let Some(first) = losses[..index].iter().position(|other| other.name() == name) {
            checks
                .problem(key, format!("loss `{name}` stands already at `losses.{first}`"))
                .hint("one entry with the sum of the weights says the same");
        }
    }
    if !losses.is_empty() && losses.iter().all(|term| term.weight == 0.0) {
        checks
            .problem("losses", "every loss in `losses` has weight 0, nothing would be trained")
            .hint("give one of them a weight above 0");
    }
}
