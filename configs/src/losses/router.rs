//! Parameters of what is asked of routers.

use super::WeightPoint;
use serde::{Deserialize, Serialize};

/// A weight and its schedule, under the name of a loss.
macro_rules! weighted {
    ($($(#[$doc:meta])* $type:ident),+ $(,)?) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $type {
            /// Factor of this term.
            pub weight: f64,
            /// Factor of the weight over the run; by default 1 throughout.
            #[serde(default)]
            pub weight_schedule: Vec<WeightPoint>,
        }

        impl $type {
            /// The term with this weight throughout.
            #[must_use]
            pub fn new(weight: f64) -> Self {
                Self { weight, weight_schedule: Vec::new() }
            }
        })+
    };
}

weighted! {
    /// Parameters of [`super::LossConfig::RouterBce`].
    RouterBceConfig,
    /// Parameters of [`super::LossConfig::AuxiliaryRouterBce`].
    AuxiliaryRouterBceConfig,
    /// Parameters of [`super::LossConfig::RouterZLoss`].
    RouterZLossConfig,
    /// Parameters of [`super::LossConfig::RouterBalancing`].
    RouterBalancingConfig,
    /// Parameters of [`super::LossConfig::RouterDecisiveness`].
    RouterDecisivenessConfig,
}
