//! The update rules of a run, from the list of rules.

use super::{adamw::AdamW, parameters::Parameter, rule::UpdateRule};
use retie_config::{OptimizerConfig, OptimizerKind};

/// The rules that the parameters of a run are moved by.
#[derive(Debug)]
pub struct UpdateRules {
    /// Rule of some parameters, if the run has one.
    special: Option<Box<dyn UpdateRule>>,
    /// The rule of all others.
    rest: Box<dyn UpdateRule>,
}

macro_rules! dispatch {
    ($($(#[$doc:meta])* $module:ident => $variant:ident($settings:ident),)+) => {
        fn special(config: &OptimizerConfig) -> Option<Box<dyn UpdateRule>> {
            Some(match &config.kind {
                OptimizerKind::AdamW => return None,
                $(OptimizerKind::$variant(settings) => Box::new(super::$module::$variant::new(settings, config)),)+
            })
        }
    };
}
retie_config::for_each_update_rule!(dispatch);

impl UpdateRules {
    /// The rules that `config` asks for.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self { special: special(config), rest: Box::new(AdamW::new(config)) }
    }

    /// The rule that moves `parameter`.
    pub fn get(&self, parameter: &Parameter) -> &dyn UpdateRule {
        self.special.as_ref().filter(|rule| rule.takes(parameter)).unwrap_or(&self.rest).as_ref()
    }
}
