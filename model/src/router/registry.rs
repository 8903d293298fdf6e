//! The token selector of each kind of router, from the list of kinds.

use super::selector::{MakesSelector, Origin, TokenSelector};
use crate::causal_lm::CausalLm;
use retie_config::RouterConfig;

macro_rules! dispatch {
    ($($(#[$doc:meta])* $name:ident => $variant:ident($parameters:ident),)+) => {
        /// Selector of the model's router; `None` without a router.
        pub(crate) fn selector<'m>(model: &'m CausalLm, origin: Origin<'_>) -> Option<Box<dyn TokenSelector + 'm>> {
            Some(match model.router()? { $(RouterConfig::$variant(config) => config.selector(model, origin),)+ })
        }
    };
}
retie_config::for_each_router!(dispatch);
