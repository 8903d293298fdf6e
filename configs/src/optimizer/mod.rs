//! The optimizer of a run: AdamW (<https://arxiv.org/abs/1711.05101>), rules that move some
//! parameters in its place, a file each, and gradient clipping.

mod muon;

pub use muon::{AdjustLr, MuonConfig};

use crate::{GroupsConfig, ParameterGroup, document::Checks};
use serde::{Deserialize, Serialize};

/// Settings of the optimizer. Norms and biases have no weight decay unless their group sets one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Update rule.
    #[serde(default)]
    pub kind: OptimizerKind,
    /// Peak learning rate; the schedule scales it.
    pub lr: f64,
    /// AdamW: decay rate of the first moment, the running mean of the gradient.
    #[serde(default = "default_beta1")]
    pub beta1: f64,
    /// AdamW: decay rate of the second moment, the running mean of the squared gradient.
    #[serde(default = "default_beta2")]
    pub beta2: f64,
    /// AdamW: added to the square root of the second moment.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Maximum global L2 norm of the gradients; larger gradients are scaled down to it. A very
    /// large value switches clipping off.
    #[serde(default = "default_max_grad_norm")]
    pub max_grad_norm: f64,
    /// Learning-rate factor, weight decay and frozen start of each parameter group.
    #[serde(default)]
    pub groups: GroupsConfig,
}

/// Calls the macro `$with` with the list of the update rules beside AdamW, which moves the
/// parameters that they leave. An entry is the rule's module and name in configurations, its
/// variant of [`OptimizerKind`](crate::OptimizerKind), which is also the trainer's type, and the
/// struct of its settings.
///
/// The list stands once: configurations and the trainer's dispatch are both made from it.
#[macro_export]
macro_rules! for_each_update_rule {
    ($with:ident) => {
        $with! {
            /// Muon for the matrices of the layers, AdamW for every other parameter.
            muon => Muon(MuonConfig),
        }
    };
}

/// Settings of one update rule.
trait RuleSettings {
    /// Records the values that cannot be; `key` is where they stand.
    fn check(&self, _key: &str, _checks: &mut Checks) {}
}

macro_rules! define_kinds {
    ($($(#[$doc:meta])* $module:ident => $variant:ident($settings:ident),)+) => {
        /// Update rule of a run.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum OptimizerKind {
            /// AdamW for every parameter.
            #[default]
            #[serde(rename = "adamw")]
            AdamW,
            $($(#[$doc])* $variant($settings),)+
        }

        impl OptimizerKind {
            fn check(&self, checks: &mut Checks) {
                match self {
                    Self::AdamW => {}
                    $(Self::$variant(settings) => {
                        settings.check(concat!("optimizer.kind.", stringify!($module)), checks);
                    })+
                }
            }
        }
    };
}
for_each_update_rule!(define_kinds);

fn default_beta1() -> f64 {
    0.9
}

fn default_beta2() -> f64 {
    0.95
}

fn default_eps() -> f64 {
    1e-8
}

fn default_weight_decay() -> f64 {
    0.01
}

fn default_max_grad_norm() -> f64 {
    1.0
}

impl OptimizerConfig {
    /// Weight decay of a tensor with `rank` dimensions in `group`.
    #[must_use]
    pub fn weight_decay_of(&self, group: ParameterGroup, rank: usize) -> f64 {
        let by_default = if rank > 1 { self.weight_decay } else { 0.0 };
        self.groups.get(group).weight_decay.unwrap_or(by_default)
    }

    /// Checks the settings; `num_steps` is `None` when the length of the run is itself invalid.
    pub(crate) fn check(&self, num_steps: Option<u64>, checks: &mut Checks) {
        let above_zero = |x: f64| x.is_finite() && x > 0.0;
        let mean = |x: f64| (0.0..1.0).contains(&x);
        checks.require(above_zero(self.lr), "optimizer.lr", self.lr, "a finite number above 0");
        checks.require(mean(self.beta1), "optimizer.beta1", self.beta1, "a number from 0 to below 1");
        checks.require(mean(self.beta2), "optimizer.beta2", self.beta2, "a number from 0 to below 1");
        checks.require(above_zero(self.eps), "optimizer.eps", self.eps, "a finite number above 0");
        let fits = self.weight_decay.is_finite() && self.weight_decay >= 0.0;
        checks.require(fits, "optimizer.weight_decay", self.weight_decay, "a finite number, 0 or more");
        let fits = above_zero(self.max_grad_norm);
        checks.require(fits, "optimizer.max_grad_norm", self.max_grad_norm, "a finite number above 0");
        self.kind.check(checks);
        self.groups.check("optimizer.groups", num_steps, checks);
    }
}
