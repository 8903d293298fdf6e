//! Options of a router's configuration, each with its name.

use crate::named::named;

named! {
    /// Network of a router; no layer has a bias.
    RouterNetwork, "router network" {
        /// `D → 1`.
        Linear = "linear",
        /// `D → 2D`, exact GELU, `2D → 1`.
        Mlp = "mlp",
        /// `D → 4D`, exact GELU, `4D → 1`: the width that the paper states.
        WideMlp = "wide_mlp",
        /// No network: a logit is drawn for each token and position. A baseline.
        Random = "random",
    }
}

impl RouterNetwork {
    /// Width of the hidden layer for hidden states of `hidden_size`; `None` if there is none.
    #[must_use]
    pub fn width(self, hidden_size: usize) -> Option<usize> {
        match self {
            Self::Linear | Self::Random => None,
            Self::Mlp => Some(2 * hidden_size),
            Self::WideMlp => Some(4 * hidden_size),
        }
    }

    /// True if the network has weights.
    #[must_use]
    pub fn has_weights(self) -> bool {
        self != Self::Random
    }
}

named! {
    /// Input of a router's network.
    RouterInput, "router input" {
        /// The hidden state, as in the reference.
        Raw = "raw",
        /// The hidden state divided by its root mean square.
        Normalized = "normalized",
    }
}

named! {
    /// Function from the router's logits under token choice, one per recursion count, to scores.
    TokenChoiceScore, "score of recursion counts" {
        /// `e^{u_i} / Σ_j e^{u_j}`.
        Softmax = "softmax",
        /// `1 / (1 + e^−u_i)`.
        Sigmoid = "sigmoid",
    }
}

impl TokenChoiceScore {
    /// Factor `alpha` that goes with this score and `gating` by default. With the paper's gatings:
    /// the paper's 1 for a softmax and 0.1 for a sigmoid; with [`Gating::Delta`] the factor that
    /// turns logits of 0 into a gate of 1; else 1.
    #[must_use]
    pub fn default_alpha(self, gating: Gating, num_recursions: usize) -> f64 {
        match (self, gating) {
            (Self::Softmax, Gating::Delta) => num_recursions as f64,
            (Self::Sigmoid, Gating::Delta) => 2.0,
            (Self::Sigmoid, Gating::Weighted | Gating::Additive) => 0.1,
            (Self::Softmax | Self::Sigmoid, _) => 1.0,
        }
    }
}

named! {
    /// State that an active token carries from one recursion into the next, under
    /// [`RouterConfig::TokenChoice`](super::RouterConfig).
    IntermediateState, "intermediate state" {
        /// Output of the block, as in the paper's code.
        Plain = "plain",
        /// Output of the block times the score of the recursion count at which the token would exit
        /// there, as in Eq. 2.2 of the paper.
        Gated = "gated",
    }
}

named! {
    /// Function from the network's output `u` to a score.
    RouterScore, "router score" {
        /// `1 / (1 + e^−u)`.
        Sigmoid = "sigmoid",
        /// `tanh u`.
        Tanh = "tanh",
        /// `u`.
        None = "none",
    }
}

named! {
    /// Combination of a selected token's hidden state `x`, the block's output `y = block(x)` (its
    /// residual stream included) and the token's score `p`.
    Gating, "gating" {
        /// `x + (y − x)`, that is `y`; the router's gradient is that of [`Gating::Delta`] at
        /// `p = 1`.
        StraightThrough = "straight_through",
        /// `(1 − p)·x + p·y`.
        Delta = "delta",
        /// `x + p·y`, Eq. 2.1 of the paper.
        Weighted = "weighted",
        /// `x + y`.
        Additive = "additive",
    }
}

impl Gating {
    /// True if a selected token becomes the output of the block while router logits are 0;
    /// `unit_gate` says that the score of a logit of 0 is 1.
    #[must_use]
    pub(super) fn keeps_output(self, unit_gate: bool) -> bool {
        match self {
            Self::StraightThrough => true,
            Self::Delta => unit_gate,
            Self::Weighted | Self::Additive => false,
        }
    }

    /// Factor `alpha` that goes with this gating by default: the paper's 0.1 for the paper's
    /// gatings, 2 for [`Gating::Delta`], so that a sigmoid at 0 is a gate of 1.
    #[must_use]
    pub fn default_alpha(self) -> f64 {
        match self {
            Self::StraightThrough => 1.0,
            Self::Delta => 2.0,
            Self::Weighted | Self::Additive => 0.1,
        }
    }
}
