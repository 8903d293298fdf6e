//! The token selector of each kind of router: one line each.

use super::{
    expert_choice::ExpertChoice,
    selector::{Origin, TokenSelector},
    token_choice::TokenChoice,
};
use crate::causal_lm::CausalLm;
use retie_config::RouterConfig;

/// Selector of the model's router; `None` without a router.
pub(crate) fn selector<'m>(model: &'m CausalLm, origin: Origin<'_>) -> Option<Box<dyn TokenSelector + 'm>> {
    Some(match model.router()? {
        RouterConfig::ExpertChoice(config) => Box::new(ExpertChoice::new(model, config, origin)),
        RouterConfig::TokenChoice(config) => Box::new(TokenChoice::new(model, config, origin)),
    })
}
