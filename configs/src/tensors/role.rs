//! Role and owner of a tensor, and the name that follows from the two.

use super::RouterKind;
use crate::{Depth, ExtraVector, LayerIndex};
use std::fmt;

/// A linear of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of attention.
    O,
    /// Gate of a gated feed-forward network.
    Gate,
    /// Input projection of the feed-forward network.
    Up,
    /// Output projection of the feed-forward network.
    Down,
}

impl Projection {
    /// Every linear that a layer can have, in the order of the forward pass.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Name in configurations and reports, and of the module under `model.layers.{i}`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Position of a norm in a layer, under Hugging Face's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NormPosition {
    /// Before attention.
    Input,
    /// After attention: on its output, or before the feed-forward network.
    PostAttention,
    /// Before the feed-forward network, in families with norms on both sides.
    PreFeedforward,
    /// On the output of the feed-forward network.
    PostFeedforward,
    /// On the queries.
    Query,
    /// On the keys.
    Key,
}

impl NormPosition {
    /// Name of the module under `model.layers.{i}`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input_layernorm",
            Self::PostAttention => "post_attention_layernorm",
            Self::PreFeedforward => "pre_feedforward_layernorm",
            Self::PostFeedforward => "post_feedforward_layernorm",
            Self::Query => "self_attn.q_norm",
            Self::Key => "self_attn.k_norm",
        }
    }
}

/// Role of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorRole {
    /// Token embeddings, `[V, D]`.
    Embedding,
    /// A linear, `[out, in]`, or its bias, `[out]`.
    Projection(Projection),
    /// A norm of a layer.
    Norm(NormPosition),
    /// The LoRA factor `A [r, in]` of a linear.
    LoraA(Projection),
    /// The LoRA factor `B [out, r]` of a linear.
    LoraB(Projection),
    /// DoRA magnitudes of the rows of a linear, `[out]`.
    Magnitude(Projection),
    /// An extra vector of a depth that the source model does not have, `[D]`.
    Extra(ExtraVector),
    /// A tensor of a mechanism of a step, by its path under `step.`.
    Step(&'static str),
    /// The hidden layer of a router, `[W, D]`.
    RouterUp,
    /// The output layer of a router, `[O, D]` or `[O, W]`.
    RouterOut,
    /// The norm after the last depth, `[D]`.
    FinalNorm,
    /// The output projection, `[V, D]`.
    Head,
}

/// Weight or bias of a module. A parameter without a module of its own (magnitudes, extras) counts
/// as a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorPart {
    /// The weight.
    Weight,
    /// The bias.
    Bias,
}

/// Owner of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorOwner {
    /// The model as a whole.
    Model,
    /// A stored layer.
    Layer(LayerIndex),
    /// One depth of the unrolled stack.
    Depth(Depth),
    /// A router, by its kind and number.
    Router(RouterKind, usize),
}

impl TensorOwner {
    /// Prefix of the names of its tensors, with a dot at the end: `model.layers.3.`.
    #[must_use]
    pub fn prefix(self) -> String {
        match self {
            Self::Model => String::new(),
            Self::Layer(layer) => format!("model.layers.{layer}."),
            Self::Depth(depth) => format!("model.depths.{depth}."),
            Self::Router(RouterKind::Main, index) => format!("model.routers.{index}."),
            Self::Router(RouterKind::Auxiliary, index) => format!("model.auxiliary_routers.{index}."),
        }
    }

    /// Name of one of its tensors.
    #[must_use]
    pub fn tensor_name(self, role: TensorRole, part: TensorPart) -> String {
        let prefix = self.prefix();
        let module = match role {
            // Parameters without a module of their own.
            TensorRole::Magnitude(projection) => return format!("{prefix}{projection}.lora_magnitude_vector"),
            TensorRole::Extra(vector) => return format!("{prefix}{vector}"),
            TensorRole::Step(path) => return format!("{prefix}step.{path}"),
            TensorRole::LoraA(projection) => format!("{projection}.lora_A"),
            TensorRole::LoraB(projection) => format!("{projection}.lora_B"),
            TensorRole::Projection(projection) => projection.name().to_owned(),
            TensorRole::Norm(position) => position.name().to_owned(),
            TensorRole::Embedding => "model.embed_tokens".to_owned(),
            TensorRole::RouterUp => "up_proj".to_owned(),
            TensorRole::RouterOut => "out_proj".to_owned(),
            TensorRole::FinalNorm => "model.norm".to_owned(),
            TensorRole::Head => "lm_head".to_owned(),
        };
        let part = match part {
            TensorPart::Weight => "weight",
            TensorPart::Bias => "bias",
        };
        format!("{prefix}{module}.{part}")
    }

    /// Name of the weight of one of its modules.
    #[must_use]
    pub fn weight(self, role: TensorRole) -> String {
        self.tensor_name(role, TensorPart::Weight)
    }

    /// Name of the bias of one of its modules.
    #[must_use]
    pub fn bias(self, role: TensorRole) -> String {
        self.tensor_name(role, TensorPart::Bias)
    }
}
