//! AdamW (<https://arxiv.org/abs/1711.05101>), Muon (<https://kellerjordan.github.io/posts/muon/>),
//! and gradient clipping.

use crate::{GroupsConfig, ParameterGroup, document::Checks, named::named};
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

/// Update rule of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerKind {
    /// AdamW for every parameter.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// Muon for the matrices of the layers, AdamW for every other parameter.
    Muon {
        /// Decay rate of the momentum, the running mean of the gradient.
        #[serde(default = "default_momentum")]
        momentum: f64,
        /// Iterations of the orthogonalisation.
        #[serde(default = "default_ns_steps")]
        ns_steps: u32,
        /// Size of an update.
        #[serde(default)]
        adjust_lr: AdjustLr,
        /// Whether the factors of LoRA are matrices of Muon too.
        #[serde(default)]
        lora: bool,
    },
}

named! {
    /// Factor on the learning rate of a matrix `[rows, columns]`, by its shape; the names are those
    /// of `torch.optim.Muon`.
    #[derive(Default)]
    AdjustLr, "adjustment of the rate" {
        /// `√max(1, rows / columns)`: Muon's own, with rates of some 0.02.
        Original = "original",
        /// `0.2 · √max(rows, columns)`: updates as large as AdamW's, with AdamW's rates
        /// (<https://arxiv.org/abs/2502.16982>, Eq. 4).
        #[default]
        MatchRmsAdamW = "match_rms_adamw",
    }
}

impl AdjustLr {
    /// The factor for a matrix of `rows × columns`.
    #[must_use]
    pub fn factor(self, [rows, columns]: [usize; 2]) -> f64 {
        match self {
            Self::Original => (rows as f64 / columns as f64).max(1.0).sqrt(),
            Self::MatchRmsAdamW => 0.2 * (rows.max(columns) as f64).sqrt(),
        }
    }
}

fn default_momentum() -> f64 {
    0.95
}

fn default_ns_steps() -> u32 {
    5
}

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
        if let OptimizerKind::Muon { momentum, ns_steps, .. } = self.kind {
            let key = "optimizer.kind.muon";
            checks.require(mean(momentum), format!("{key}.momentum"), momentum, "a number from 0 to below 1");
            checks.require(
                (1..=100).contains(&ns_steps),
                format!("{key}.ns_steps"),
                ns_steps,
                "a number from 1 to 100",
            );
        }
        self.groups.check("optimizer.groups", num_steps, checks);
    }
}
