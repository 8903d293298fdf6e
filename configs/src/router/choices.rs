//! The choices that a router's configuration is made of, each with its name.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A choice that has a name in configurations and on the command line.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $type {
            $($(#[$variant_doc])* #[serde(rename = $name)] $variant),+
        }

        impl $type {
            /// Every one, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in configurations and on the command line.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                let known = [$($name),+].join(", ");
                Self::ALL
                    .iter()
                    .copied()
                    .find(|x| x.name() == name)
                    .ok_or_else(|| format!(concat!("unknown ", $what, " `{}`, expected one of {}"), name, known))
            }
        }
    };
}

named! {
    /// Layers of a router, none with a bias.
    RouterNetwork, "router network" {
        /// `D → 1`.
        Linear = "linear",
        /// `D → 2D`, exact GELU, `2D → 1`.
        Mlp = "mlp",
        /// `D → 4D`, exact GELU, `4D → 1`: the width that the paper states.
        WideMlp = "wide_mlp",
        /// None: a number is drawn for each token and position. A baseline.
        Random = "random",
    }
}

impl RouterNetwork {
    /// Width of the hidden layer for hidden states of `hidden_size`; `None` without one.
    #[must_use]
    pub fn width(self, hidden_size: usize) -> Option<usize> {
        match self {
            Self::Linear | Self::Random => None,
            Self::Mlp => Some(2 * hidden_size),
            Self::WideMlp => Some(4 * hidden_size),
        }
    }

    /// Whether there is something to train.
    #[must_use]
    pub fn has_weights(self) -> bool {
        self != Self::Random
    }
}

named! {
    /// What a router reads of a token.
    RouterInput, "router input" {
        /// The hidden state, as in the reference.
        Raw = "raw",
        /// The hidden state divided by its root mean square.
        Normalized = "normalized",
    }
}

named! {
    /// From the outputs of the router of a depth choice, one a depth, to scores.
    DepthScore, "depth score" {
        /// `e^{u_i} / Σ_j e^{u_j}`.
        Softmax = "softmax",
        /// `1 / (1 + e^−u_i)`.
        Sigmoid = "sigmoid",
    }
}

impl DepthScore {
    /// The factor `alpha` that goes with it and `gating`, unless another is asked for: the paper's 1 for a softmax and 0.1 for a sigmoid
    /// with the paper's gatings; with [`Gating::Delta`] that which makes a gate of 1 of logits of 0; else 1.
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
    /// What a token that goes on takes from one recursion into the next, under [`RouterConfig::TokenChoice`](super::RouterConfig).
    IntermediateState, "intermediate state" {
        /// What the block gave, as in the paper's code.
        Plain = "plain",
        /// The same times the score of the depth that it would have left at, as in Eq. 2.2 of the paper.
        Gated = "gated",
    }
}

named! {
    /// From the network's output `u` to a score.
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
    /// What the hidden state `x` of a chosen token becomes, with `y = block(x)` (its residual stream included) and `p` its score.
    Gating, "gating" {
        /// `x + (y − x)`, that is `y`; the router's gradient is that of [`Gating::Delta`] at `p = 1`.
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
    /// The factor `alpha` that goes with it, unless another is asked for: the paper's 0.1 for the paper's gatings, 2 for
    /// [`Gating::Delta`], so that a sigmoid at 0 is a gate of 1.
    #[must_use]
    pub fn default_alpha(self) -> f64 {
        match self {
            Self::StraightThrough => 1.0,
            Self::Delta => 2.0,
            Self::Weighted | Self::Additive => 0.1,
        }
    }
}

named! {
    /// Keys and values that the tokens of a recursion attend to (Mixture-of-Recursions, §2.2.2).
    KvStrategy, "KV strategy" {
        /// Of the tokens that the recursion chose, which see one another.
        RecursionWise = "recursion_wise",
        /// Of all tokens, those that the first recursion made: later ones make none.
        Shared = "shared",
        /// Of all tokens: those that the recursion made of the tokens that it chose, and of the others those of the first recursion.
        Hybrid = "hybrid",
    }
}

impl KvStrategy {
    /// Whether later recursions read what the first one made, so that it has to take every token.
    #[must_use]
    pub fn reads_the_first(self) -> bool {
        self != Self::RecursionWise
    }
}
