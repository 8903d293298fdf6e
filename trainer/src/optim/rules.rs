//! The update rules of a run: the registry of the rules.

use super::{adamw::AdamW, muon::Muon, parameters::Parameter, rule::UpdateRule};
use retie_config::OptimizerConfig;

/// The rules that the parameters of a run are moved by.
#[derive(Debug)]
pub struct UpdateRules {
    /// Rules of some parameters; the first that takes one has it.
    special: Vec<Box<dyn UpdateRule>>,
    /// The rule of all others.
    rest: Box<dyn UpdateRule>,
}

impl UpdateRules {
    /// The rules that `config` asks for.
    pub fn new(config: &OptimizerConfig) -> Self {
        let muon = Muon::new(config).map(|muon| -> Box<dyn UpdateRule> { Box::new(muon) });
        Self { special: muon.into_iter().collect(), rest: Box::new(AdamW::new(config)) }
    }

    /// The rule that moves `parameter`.
    pub fn get(&self, parameter: &Parameter) -> &dyn UpdateRule {
        let special = self.special.iter().find(|rule| rule.takes(parameter));
        special.unwrap_or(&self.rest).as_ref()
    }
}
