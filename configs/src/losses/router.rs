//! Losses of routers, which have no parameters beside their weight.

use super::{LossNeeds, LossParameters};
use crate::RouterNeeds;
use serde::{Deserialize, Serialize};

/// Parameters of [`super::LossKind::RouterBce`]: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterBceConfig {}

impl LossParameters for RouterBceConfig {
    fn needs(&self) -> LossNeeds {
        LossNeeds::Router(RouterNeeds::ExpertChoice)
    }
}

/// Parameters of [`super::LossKind::AuxiliaryRouterBce`]: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuxiliaryRouterBceConfig {}

impl LossParameters for AuxiliaryRouterBceConfig {
    fn needs(&self) -> LossNeeds {
        LossNeeds::Router(RouterNeeds::Auxiliary)
    }
}

/// Parameters of [`super::LossKind::RouterZLoss`]: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterZLossConfig {}

impl LossParameters for RouterZLossConfig {
    fn needs(&self) -> LossNeeds {
        LossNeeds::Router(RouterNeeds::Any)
    }
}

/// Parameters of [`super::LossKind::RouterBalancing`]: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterBalancingConfig {}

impl LossParameters for RouterBalancingConfig {
    fn needs(&self) -> LossNeeds {
        LossNeeds::Router(RouterNeeds::TokenChoice)
    }
}

/// Parameters of [`super::LossKind::RouterDecisiveness`]: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterDecisivenessConfig {}

impl LossParameters for RouterDecisivenessConfig {
    fn needs(&self) -> LossNeeds {
        LossNeeds::Router(RouterNeeds::Any)
    }
}
