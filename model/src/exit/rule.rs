//! Exit rules: a number for each token after a recursion. Every rule is a file of `signals` and a
//! line of [`for_each_exit_rule`](retie_config::for_each_exit_rule).

use super::signals::{self, probe};
use crate::causal_lm::CausalLm;
use burn::tensor::{Device, Tensor};
use retie_config::{ExitProbe, ExitRuleKind};

/// An exit rule with its weights, if it has any.
#[derive(Clone, Debug)]
pub struct ExitRule {
    kind: ExitRuleKind,
    /// After recursions `1 … R − 1`, on the device of the model.
    pub(super) probes: Vec<probe::Probe>,
}

/// Hidden states of some rows before and after a recursion, `[n, D]`.
#[derive(Clone, Debug)]
pub(crate) struct Passed<'m> {
    pub rule: &'m ExitRule,
    pub model: &'m CausalLm,
    /// Number of recursions that have run.
    pub recursions: usize,
    pub before: Tensor<2>,
    pub after: Tensor<2>,
}

impl ExitRule {
    /// The rule `kind`, with `probes` if it is the probe.
    #[must_use]
    pub fn new(kind: ExitRuleKind, probes: &[ExitProbe], device: &Device) -> Self {
        Self { kind, probes: probes.iter().map(|found| probe::Probe::new(found, device)).collect() }
    }

    /// Name of the rule.
    #[must_use]
    pub fn kind(&self) -> ExitRuleKind {
        self.kind
    }

    /// Number of each row `[n, D]`, from its hidden states before and after recursion number
    /// `recursions`, counted from 1.
    ///
    /// # Panics
    /// When the rule has no probe for this recursion.
    #[must_use]
    pub fn numbers(&self, model: &CausalLm, recursions: usize, [before, after]: [Tensor<2>; 2]) -> Vec<f32> {
        signal(self.kind, &Passed { rule: self, model, recursions, before, after })
    }
}

macro_rules! dispatch {
    ($($(#[$doc:meta])* $name:literal => $variant:ident($module:ident),)+) => {
        fn signal(kind: ExitRuleKind, passed: &Passed<'_>) -> Vec<f32> {
            match kind { $(ExitRuleKind::$variant => signals::$module::signal(passed),)+ }
        }
    };
}
retie_config::for_each_exit_rule!(dispatch);
